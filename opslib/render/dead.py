"""Dead letters, as rows → tables: the lists, the groups by what they failed of, and single letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from opslib import letters as written
from opslib.durations import spell
from opslib.keys import DEAD
from opslib.redriving import REFUSALS
from opslib.render import words
from opslib.render.grid import Cell, Column, Table
from opslib.render.words import Row, age, clock, row_of, shown, size

if TYPE_CHECKING:
    from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList

_MOST_NAMED = 3
_SIGNATURE = 160


def show(seen: DeadLetters, taken_at: datetime | None = None) -> list[object]:
    """Return the lists, and the groups of what is in them."""
    return [lists(seen.lists, taken_at), groups(seen.groups, taken_at, ungrouped=seen.ungrouped)]


def lists(rows: Iterable[DeadList | Row], taken_at: datetime | None = None) -> Table:
    """Return the lists of dead letters, the longest first."""
    ranked = sorted(map(row_of, rows), key=lambda row: (row["source"] != "list", -row["length"], row["key"]))
    told = any(row["source"] != "list" for row in ranked)
    return Table(
        title="Dead letters",
        columns=(
            Column("List", "code"),
            Column("Letters", "number"),
            Column("Came meanwhile", "number"),
            Column("Oldest", "number"),
            Column("Newest", "number"),
            Column("Size", "number"),
            Column("Unreadable", "number"),
            Column("Lost", "number"),
        ),
        rows=[_list(row, taken_at) for row in ranked],
        caption="(results) are failures of which no letter was kept: they cannot be sent again." if told else "",
        empty="There is no dead-letter list: nothing failed for good, or nothing keeps what does.",
    )


def _list(row: Row, taken_at: datetime | None) -> tuple[object, ...]:
    if row["source"] != "list":
        return (Cell("(results)", shown(row["key"])), row["length"], *[""] * 4, row["unreadable"], "")
    return (
        shown(f"{row['queue']}{DEAD}"),
        row["length"],
        "" if row["arrived"] is None else row["arrived"],
        _ago(row["oldest_at"], taken_at),
        _ago(row["newest_at"], taken_at),
        size(row["size_bytes"]),
        row["unreadable"],
        row["dropped"],
    )


def groups(rows: Iterable[DeadGroup | Row], taken_at: datetime | None = None, *, ungrouped: int = 0) -> Table:
    """Return the groups by signature, the largest first."""
    ranked = sorted(map(row_of, rows), key=lambda row: (-row["count"], row["name"]))
    judged = any(row.get("judgement") for row in ranked)
    return Table(
        title="By what they failed of",
        columns=(
            Column("Signature", "code"),
            Column("Letters", "number"),
            *((Column("Judged"),) if judged else ()),
            Column("Tasks", "code"),
            Column("Failed"),
        ),
        rows=[_group(row, taken_at, judged=judged) for row in ranked],
        caption=f"{ungrouped:,} letters have other signatures, too many to be told apart." if ungrouped else "",
        empty="No letter can be read.",
        stack=True,
    )


def _group(row: Row, taken_at: datetime | None, *, judged: bool) -> tuple[object, ...]:
    return (
        Cell(row["name"], shown(row["signature"], _SIGNATURE)),
        Cell(row["count"], f"not sent again: {_refused(row['refused'])}" if row["refused"] else ""),
        *((row.get("judgement") or "",) if judged else ()),
        _names(row["tasks"]),
        _when(row, taken_at),
    )


def _when(row: Row, taken_at: datetime | None) -> str:
    if row["first_at"] is None or row["last_at"] is None:
        return "none says when"
    last = _ago(row["last_at"], taken_at)
    length = row["last_at"] - row["first_at"]
    if row["count"] == 1:
        return last
    return f"{last}, over {spell(length)}" if length > 60 else f"{last}, all within {spell(length)}"


def _refused(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {note}" for note, n in counts.items())


def letters(rows: Sequence[DeadLetter | Row], taken_at: datetime | None = None, *, total: int | None = None) -> Table:
    """
    Return single letters, as they are given.

    Args:
        total: How many there are in all.
    """
    seen = list(map(row_of, rows))
    more = f"The first {len(seen):,} of {total:,}." if total is not None and total > len(seen) else ""
    return Table(
        title="Letters",
        columns=(
            Column("Task", "code"),
            Column("Entry", "code"),
            Column("Failed", "number"),
            Column("Died as"),
            Column("Signature", "code"),
            Column("Sent again", "number"),
            Column("To be said"),
        ),
        rows=[
            (
                Cell(row["task"] or "(unknown)", shown(row["task_id"])),
                row["entry_id"] or "(result)",
                _ago(row["failed_at"], taken_at),
                row["cause"],
                _signed(row),
                row["redrives"],
                ", ".join(row["notes"]),
            )
            for row in seen
        ],
        caption=more,
        empty="No letter is like that.",
        limit=len(seen),
        stack=True,
    )


def _signed(row: Row) -> object:
    if not row["signature"]:
        return shown(row["exception"], _SIGNATURE)
    return Cell(written.name_of(row["signature"]), shown(row["signature"], _SIGNATURE))


def group_in_full(row: DeadGroup, taken_at: datetime) -> list[object]:
    """Return all that is known of one group."""
    said: list[tuple[str, object]] = [
        ("signature", shown(row.signature, words.LONGEST)),
        ("letters", row.count),
        ("judged", row.judgement),
        ("tasks", _counts(row.tasks)),
        ("queues", _counts(row.queues)),
        ("nodes", _counts(row.workers)),
        ("died as", _counts(row.causes)),
        ("first", _at(row.first_at, taken_at)),
        ("last", _at(row.last_at, taken_at)),
        ("sent again before", row.redriven),
        ("without message", row.inexact),
        ("not sent again", _refused(row.refused)),
        ("to be said", _refused(row.notes)),
    ]
    return [_facts(f"Signature {row.name}", said)]


def letter_in_full(row: DeadLetter, letter: written.Letter, taken_at: datetime, *, arguments: bool) -> list[object]:
    """
    Return all that an entry says.

    Args:
        arguments: Whether those are shown too.
    """
    said: list[tuple[str, object]] = [
        ("task", row.task),
        ("task id", row.task_id),
        ("list", row.key),
        ("queue", row.queue),
        ("failed", _at(row.failed_at, taken_at)),
        ("died as", row.cause),
        ("node", row.worker),
        ("retries", row.retries),
        ("sent again", row.redrives),
        ("signature", f"{written.name_of(row.signature)} {shown(row.signature)}"),
        ("exception", shown(letter.exception, written.MOST_EXCEPTION)),
        ("size", size(row.size_bytes)),
        ("message", "kept as it was" if row.exact else "not kept: one can only be made anew"),
        ("to be said", ", ".join(row.notes)),
        *((f"refused, {note}", REFUSALS[note]) for note in REFUSALS if note in row.notes),
    ]
    if arguments:
        said += [("args", _value(letter.args)), ("kwargs", _value(letter.kwargs))]
    else:
        said.append(("arguments", "not shown; --show-args shows them"))
    return [_facts(f"Letter {row.entry_id}", said), *_traceback(letter.traceback)]


def _facts(title: str, said: Iterable[tuple[str, object]]) -> Table:
    return Table(
        title=title,
        columns=(Column("What"), Column("Says", "code")),
        rows=[(name, value) for name, value in said if value not in {"", None}],
        limit=100,
    )


def _traceback(text: str) -> list[object]:
    """Return a traceback line by line, without its heading: what is in it cannot pass for a line of ours."""
    lines = [line for line in text[-written.MOST_TRACEBACK :].splitlines() if not line.startswith("Traceback (")]
    if not lines:
        return []
    rows = [
        (Cell("".join(("\u00a0" * (len(line) - len(line.lstrip())), shown(line.strip() or " ")))),) for line in lines
    ]
    return [Table(title="", columns=(Column("Where it failed, innermost last", "code"),), rows=rows, limit=len(rows))]


def _value(value: object) -> str:
    return shown(value, 10_000)


def _names(counts: Mapping[str, int]) -> str:
    names = [name or "(unknown)" for name in islice(counts, _MOST_NAMED)]
    return f"{', '.join(names)}{f', {len(counts) - _MOST_NAMED} more' if len(counts) > _MOST_NAMED else ''}"


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name or '(unknown)'}: {n:,}" for name, n in counts.items())


def _at(at: float | None, taken_at: datetime) -> str:
    return f"{clock(at)}, {_ago(at, taken_at)}" if at is not None else "not said"


def _ago(at: float | None, taken_at: datetime | None) -> str:
    if at is None or taken_at is None:
        return clock(at) or "not said"
    ahead = at - taken_at.timestamp()
    return f"in {age(ahead)}" if ahead > 1 else f"{age(max(0.0, -ahead))} ago"
