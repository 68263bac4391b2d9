"""An application's open rows, sorted → tables by task, class and status, samples, and a picture of how old they are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from opslib.durations import spell
from opslib.facts.rows import (
    AGES,
    FINISHED,
    LOST,
    ORDER,
    STUCK,
    UNDER_WAY,
    UNKNOWN,
    UNKNOWN_AGE,
    ClassCount,
    Classes,
    Reconciled,
    Sample,
    StateNow,
)
from opslib.facts.system import StatusCount
from opslib.render import tables
from opslib.render.grid import Cell, Column, Line, Table
from opslib.render.pen import LEFT, QUIET, RIGHT, RULE, WIDTH, Chart, Pen
from opslib.render.words import clock, plural, shown, size

_MOST_TASKS, _MOST_SAMPLES = 40, 60
_STANDINGS = {"open": "looked into", "closed": "over", "other": "neither open nor over"}


def show(seen: Reconciled) -> list[object]:
    """Return what is told of the tables that were read, before anything is judged."""
    return [tables.server(seen), _read(seen), statuses(seen.statuses), tables.coverage(seen.coverage)]


def _read(seen: Reconciled) -> Line:
    named = ", ".join(f"{each.table} ({each.name})" for each in seen.tables)
    open_rows = sum(each.read for each in seen.tables)
    return Line(
        (
            f"{seen.database}: {named}",
            f"{open_rows:,} open rows",
            f"{seen.rows:,} of them last run {spell(seen.open_for_s)} ago or longer"
            if seen.open_for_s
            else f"{seen.rows:,} of any age",
            "verifiers were asked about the samples" if seen.verified else "",
        )
    )


def statuses(rows: Sequence[StatusCount]) -> Table:
    """Return how many rows there are of each status."""
    several = len({row.table for row in rows}) > 1
    return Table(
        title="Rows by status",
        columns=(
            *([Column("Table", "code")] if several else []),
            Column("Status"),
            Column("Rows", "number"),
            Column("Which is"),
        ),
        rows=[
            (
                *([row.table] if several else []),
                shown(row.status or "(none)", 60),
                row.count,
                _STANDINGS.get(row.standing, ""),
            )
            for row in rows
        ],
        caption="Statuses that are neither open nor over hold tasks that nobody looks into here.",
        empty="The table has no rows.",
    )


def classes(sorted_: Classes) -> list[object]:
    """Return everything that is told of rows that were sorted."""
    return [_whole(sorted_), by_task(sorted_), reasons(sorted_)]


def _whole(sorted_: Classes) -> Line:
    counted = [f"{sorted_.count(kind):,} {kind}" for kind in ORDER if sorted_.count(kind)]
    return Line(tuple(counted) or ("No row has been open for so long.",))


def by_task(sorted_: Classes) -> Table:
    """Return the rows by task and class, the task with the most first."""
    found: defaultdict[tuple[str, str], list[ClassCount]] = defaultdict(list)
    for row in sorted_.rows:
        found[row.table, row.task].append(row)
    ranked = sorted(found.items(), key=lambda each: (-_count(each[1]), each[0]))
    there = [kind for kind in ORDER if sorted_.count(kind)]
    return Table(
        title="Open rows by task",
        columns=(
            Column("Task", "code"),
            Column("Rows", "number"),
            Column("Longest open"),
            *(Column(kind.capitalize(), "number") for kind in there),
        ),
        rows=[
            (
                shown(task or "(no name)"),
                _count(rows),
                _longest(rows),
                *(_count(row for row in rows if row.kind == kind) for kind in there),
            )
            for (_, task), rows in ranked
        ],
        empty="No row has been open for so long.",
        limit=_MOST_TASKS,
    )


def reasons(sorted_: Classes) -> Table:
    """Return what each class was judged on."""
    found = Counter[tuple[str, str]]()
    for row in sorted_.rows:
        found[row.kind, row.why] += row.count
    ranked = sorted(found.items(), key=lambda each: (ORDER.index(each[0][0]), -each[1]))
    return Table(
        title="On what evidence",
        columns=(Column("Class"), Column("Rows", "number"), Column("Because")),
        rows=[(kind, count, shown(why)) for (kind, why), count in ranked],
        empty="There is nothing to judge.",
        limit=_MOST_TASKS,
    )


def samples(rows: Sequence[Sample], at: float | None = None) -> Table:
    """
    Return single rows with their evidence.

    Args:
        at: Epoch seconds from which their ages count; without it, it is said when instead.
    """
    return Table(
        title="Sample rows",
        columns=(Column("Task and id", "code"), Column("The row says"), Column("Class and evidence")),
        rows=[
            (
                Cell(each.row.task or "(no name)", each.row.task_id or "no task id"),
                Cell(" ".join(filter(None, (each.row.status, _attempts(each)))), _row(each, at)),
                Cell(each.kind, " ".join(filter(None, (each.evidence, _said(each))))),
            )
            for each in sorted(rows, key=_rank)
        ],
        caption="Those of each task and class that have waited the longest.",
        empty="No row has been open for so long.",
        limit=_MOST_SAMPLES,
        stack=True,
    )


def _rank(each: Sample) -> tuple[str, int, float]:
    return each.row.task, ORDER.index(each.kind), each.row.last_run_at or 0.0


def _attempts(each: Sample) -> str:
    return "" if each.row.attempts is None else f"after {plural(each.row.attempts, 'attempt')}"


def _row(each: Sample, at: float | None) -> str:
    size_of = f"; arguments of {size(each.row.arguments_bytes)}, hidden" if each.row.arguments_bytes else ""
    return f"row {shown(each.row.row_id, 40)}, last run {_when(each, at)}{size_of}"


def _said(each: Sample) -> str:
    return f"Status message: {shown(each.row.status_message)}" if each.row.status_message else ""


def _when(each: Sample, at: float | None) -> str:
    if each.row.last_run_at is None:
        return "unknown"
    return clock(each.row.last_run_at) if at is None else f"{spell(at - each.row.last_run_at)} ago"


def _count(rows: Iterable[ClassCount]) -> int:
    return sum(row.count for row in rows)


def _longest(rows: Iterable[ClassCount]) -> str:
    known = [row.longest_s for row in rows if row.longest_s is not None]
    return spell(max(known)) if known else "unknown"


def states(found: Sequence[StateNow]) -> Table:
    """Return what an application says that it is at."""
    return Table(
        title="What the application is at",
        columns=(
            Column("Name", "code"),
            Column("Table", "code"),
            Column("Row", "code"),
            Column("Holds"),
            Column("Idle is"),
        ),
        rows=[
            (row.name, row.table, _pairs(row.key), row.problem or _pairs(row.now), _pairs(row.idle)) for row in found
        ],
    )


def _pairs(values: str) -> str:
    return shown(", ".join(f"{name} {shown(value, 60)}" for name, value in json.loads(values or "{}").items()), 300)


# --- the picture ---

#: By Okabe and Ito, which colour-blind eyes tell apart; the words stand beside them besides.
_COLOURS = {FINISHED: "#009E73", LOST: "#D55E00", STUCK: "#E69F00", UNDER_WAY: "#56B4E9", UNKNOWN: "#8c959f"}
_HEAD, _ROW, _BAR, _SECOND = 56.0, 30.0, 13.0, 7.0
_FULL = RIGHT - 96.0


def open_rows(before: Classes, after: Classes | None = None) -> Chart:
    """
    Draw how long rows have been open, by class; with a second look, what is left in a second bar.

    Args:
        after: The rows after a change.
    """
    first, second = _by_age(before), _by_age(after) if after else None
    return Chart(_bars(before, first, second), _told(first, second))


def _by_age(sorted_: Classes) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {name: Counter() for name in (*(name for _, name in AGES), UNKNOWN_AGE)}
    for row in sorted_.rows:
        found[row.age][row.kind] += row.count
    return found


def _bars(at: Classes, first: dict[str, Counter[str]], second: dict[str, Counter[str]] | None) -> str:
    row = _ROW + (_SECOND + 4 if second else 0)
    pen = Pen(_HEAD + row * len(first) + 10)
    pen.text(
        0,
        14,
        f"Open rows by age and class{', before and, in the thin bars, after' if second else ''}",
        weight="bold",
        size=11,
    )
    pen.text(WIDTH, 14, clock(at.at), colour=QUIET, ha="right")
    there = sum(first.values(), Counter()) + sum((second or {}).values(), Counter())
    x = LEFT
    for name, colour in ((name, colour) for name, colour in _COLOURS.items() if there[name]):
        pen.bar(x, 26, 9, 9, colour, edge="none")
        pen.text(x + 13, 34, name, colour=QUIET, size=8.5)
        x += 13 + 5.2 * len(name) + 16
    most = max(1, *(each.total() for each in first.values()), *(each.total() for each in (second or {}).values()))
    for n, (age, counts) in enumerate(first.items()):
        top = _HEAD + row * n
        pen.text(0, top + 11, age if age != UNKNOWN_AGE else "age unknown", weight="bold")
        end = _bar(pen, counts, top + 1, _BAR, most)
        said = f"{counts.total():,}"
        if second and (counts or second[age]):
            end = max(end, _bar(pen, second[age], top + 3 + _BAR, _SECOND, most))
            said += f", {second[age].total():,} after"
        pen.text(end + 6, top + 11, said, weight="bold" if counts else "normal", size=8.5)
    pen.line([LEFT, LEFT], [_HEAD - 4, _HEAD + row * len(first)], RULE, 0.8)
    return pen.svg()


def _bar(pen: Pen, counts: Counter[str], top: float, height: float, most: int) -> float:
    """Draw one bar; return where it ends."""
    x = LEFT
    for name, colour in _COLOURS.items():
        if counts[name]:
            width = (_FULL - LEFT) * counts[name] / most
            pen.bar(x, top, max(width, 0.8), height, colour, edge="#ffffff" if width > 4 and height == _BAR else "none")
            x += width
    return x


def _told(first: dict[str, Counter[str]], second: dict[str, Counter[str]] | None) -> str:
    told = []
    for age, counts in first.items():
        if counts or (second and second[age]):
            split = ", ".join(f"{name} {counts[name]:,}" for name in _COLOURS if counts[name])
            left = f", {second[age].total():,} after" if second else ""
            of = age if age != UNKNOWN_AGE else "age unknown"
            told.append(f"{of} {counts.total():,}{f' ({split})' if split else ''}{left}")
    return f"Open rows by age and class: {'; '.join(told) or 'there are none'}."
