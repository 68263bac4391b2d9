"""Findings, plans, outcomes and records → tables with columns for a person, and the verdict's card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from opslib.findings import Finding
from opslib.plan import Action, Outcome, Plan
from opslib.records import RunRecord
from opslib.render import words
from opslib.render.grid import Cell, Column, Table
from opslib.render.words import Row, row_of

NO_FINDINGS = "No findings in what was seen."


def findings(rows: Iterable[Finding | Row], title: str = "Findings") -> Table:
    """Return findings, the worst first, each with its evidence and what to do; of several runbooks, which answers."""
    ranked = words.worst_first(rows)
    several = len({row.get("runbook") for row in ranked}) > 1
    return Table(
        title=title,
        columns=(
            Column("Severity", "state"),
            Column("Finding"),
            Column("Task or subject", "code"),
            Column("What to do"),
        ),
        rows=[
            (
                row.get("severity"),
                Cell(row.get("message"), words.evidence(row.get("evidence"))),
                _subject(row),
                Cell(row.get("hint"), f"→ {row['runbook']}" if several and row.get("runbook") else ""),
            )
            for row in ranked
        ],
        empty=NO_FINDINGS,
        stack=True,
    )


def comparison(before: Iterable[Finding | Row], after: Iterable[Finding | Row]) -> Table:
    """Return findings before and after: what is new, what remains, what is gone."""
    old, new = ({key(row): row for row in words.worst_first(rows)} for rows in (before, after))
    ranked = [
        *(("new", row) for key, row in new.items() if key not in old),
        *(("remains", row) for key, row in new.items() if key in old),
        *(("gone", row) for key, row in old.items() if key not in new),
    ]
    counts = Counter(word for word, _ in ranked)
    return Table(
        title="Before and after",
        columns=(
            Column("Now", "state"),
            Column("Severity", "state"),
            Column("Finding"),
            Column("Task or subject", "code"),
        ),
        rows=[(word, row.get("severity"), row.get("message"), _subject(row)) for word, row in ranked],
        caption=", ".join(f"{counts[word]:,} {word}" for word in ("new", "remains", "gone") if counts[word]),
        empty="No findings before, and none after.",
        stack=True,
    )


def plan(proposed: Plan | Row) -> Table:
    """Return what a plan would do."""
    content: Row = {**proposed.content(), "digest": proposed.digest} if isinstance(proposed, Plan) else proposed
    actions = [row_of(action) for action in content.get("actions") or ()]
    stepped = any(row.get("step") for row in actions)
    bound = (
        f"{words.plural(len(actions), 'action')}: {words.kinds(actions)}. Digest {str(content.get('digest', ''))[:12]}."
    )
    return Table(
        title="Plan: what would be done",
        columns=(
            Column("#", "number"),
            *([Column("Step")] if stepped else []),
            Column("Would", "text"),
            Column("Task or subject", "code"),
            Column("From → to", "code"),
            Column("What happens"),
        ),
        rows=[_action(row, stepped=stepped) for row in actions],
        caption=bound,
        empty="Nothing would be done.",
        limit=200,
        stack=True,
    )


def _action(row: Row, *, stepped: bool) -> tuple[object, ...]:
    step = [row.get("step") or ""] if stepped else []
    return (row.get("id"), *step, _kind(row), _subject(row), way(row), Cell(row.get("effect"), _because(row)))


def joined(rows: Iterable[Outcome | Row], actions: Iterable[Action | Row] = ()) -> list[tuple[Row, Row]]:
    """Return each outcome with its action, which a record names by number only."""
    known = {row.get("id"): row for row in map(row_of, actions)}
    return [(row, _planned(row.get("action"), known)) for row in map(row_of, rows)]


def outcomes(rows: Iterable[Outcome | Row], actions: Iterable[Action | Row] = ()) -> Table:
    """
    Return what became of each action.

    Args:
        actions: The plan's rows, for outcomes out of a record, which name their action by number.
    """
    pairs = joined(rows, actions)
    # A plan of steps is read as it was done; of others, what went wrong comes first.
    rank = {} if any(row.get("step") for _, row in pairs) else {"failed": 0, "unverified": 0, "skipped": 1}
    pairs.sort(key=lambda pair: (rank.get(str(pair[0].get("status")), 2), pair[1].get("id") or 0))
    counts = Counter(str(row.get("status")) for row, _ in pairs)
    if pairs and all(str(row.get("reason")).startswith("Dry run") for row, _ in pairs):
        pairs, dry = [], f"Dry run: none of the {words.plural(len(pairs), 'planned action')} was carried out."
    else:
        dry = "Nothing was done."
    return Table(
        title="Outcomes: what was done",
        columns=(
            Column("#", "number"),
            Column("Outcome", "state"),
            Column("Action"),
            Column("Task or subject", "code"),
            Column("From → to", "code"),
            Column("What was done, or why not"),
        ),
        rows=[
            (
                action.get("id"),
                str(row.get("status")),
                _kind(action),
                _subject(action),
                way(action),
                Cell(row.get("reason") or row.get("status"), " → ".join(map(str, row.get("steps") or ()))),
            )
            for row, action in pairs
        ],
        caption=", ".join(f"{number:,} {word}" for word, number in sorted(counts.items())),
        empty=dry,
        limit=200,
        stack=True,
    )


@dataclass(frozen=True)
class Card:
    """
    The verdict over a run, as the last cell shows it.
    """

    record: RunRecord

    def _repr_html_(self) -> str:
        word, said = words.badge(self.record)
        head = f'<span class="ops-{word}"><span aria-hidden="true">{words.SIGNS[word]}</span> {said.upper()}</span>'
        lines = "".join(f"<br><small>{escape(words.shown(line))}</small>" for line in self._lines())
        sentence = escape(words.shown(words.headline(self.record)))
        return f'<p class="ops-card"><strong>{head}</strong> {sentence}{lines}</p>'

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401 - IPython's printer has no type
        printer.text(str(self))

    def __str__(self) -> str:
        word, said = words.badge(self.record)
        head = f"{words.SIGNS[word]} {said.upper()}  {words.shown(words.headline(self.record))}"
        return "\n".join([head, *(words.shown(line) for line in self._lines())])

    def _lines(self) -> list[str]:
        run = self.record
        facts = [
            words.mode(run),
            f"exit code {words.exit_meaning(run.exit_code)}",
            words.took(run) and f"took {words.took(run)}",
        ]
        return [" · ".join(fact for fact in facts if fact), f"run {run.run_id}"]


def way(row: Row) -> str:
    """Return where an action takes something from, and where it puts it; for a pool, what it adds or takes away."""
    if sign := {"grow": "+", "shrink": "-"}.get(str(row.get("kind"))):
        return f"{words.shown(row.get('source') or '?')} {sign} {words.shown(row.get('destination') or '?')}"
    return f"{words.shown(row.get('source') or '?')} → {words.shown(row.get('destination') or '?')}"


def _subject(row: Row) -> Cell:
    subject = str(row.get("subject") or "")
    return Cell(row["task"], subject) if row.get("task") else Cell(subject)


def key(row: Row) -> tuple[str, str]:
    """Return what makes two findings the same one."""
    return str(row.get("code")), str(row.get("subject"))


def _kind(row: Row) -> Cell:
    return Cell(str(row.get("kind") or ""), "may end the running task" if row.get("terminate") else "")


def _because(row: Row) -> str:
    node = f" on {row['node']}" if row.get("node") else ""
    return f"because of {row['why']}{node}" if row.get("why") else ""


def _planned(action: object, known: Mapping[object, Row]) -> Row:
    return known.get(action, {"id": action}) if isinstance(action, int) else row_of(action)
