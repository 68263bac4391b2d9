"""Open rows, where their tasks were met and what their verifiers say → what became of each, and on what evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from opslib.facts.rows import (
    BEGUN,
    BEYOND,
    CLASSES,
    DEAD,
    ENDED,
    FINISHED,
    HELD,
    LOST,
    NAMELESS,
    NOWHERE,
    OTHERS,
    QUARANTINED,
    STUCK,
    UNACKED,
    UNSEEN,
    WAITING,
    ClassCount,
    Classes,
    Reconciled,
    RowCount,
    Sample,
    TaskRow,
    age_of,
)
from opslib.findings import Finding
from opslib.symptoms import messages, orphans, stuck_tasks
from opslib.symptoms.stuck_tasks import Thresholds
from opslib.symptoms.view import View

#: What makes a task that a node has, or had, one that does not move.
_STUCK_CODES = frozenset({"stuck-active", "orphaned-unacked", "retry-loop"})
_SAID = {
    ENDED: "Its result is {state}.",
    BEGUN: "Its result says {state}, and neither a queue nor a node has it.",
    WAITING: "Its message waits in a queue.",
    UNACKED: "Its message was delivered and is not acknowledged.",
    HELD: "{node} has it.",
    DEAD: "It is a dead letter.",
    QUARANTINED: "A run took its message out of circulation and keeps it.",
    NOWHERE: "It is nowhere, everything was seen, and a result of it would still be there.",
    BEYOND: "It is nowhere. {why}",
    UNSEEN: "It was not found. {why}",
    NAMELESS: "{why}",
}


def classify(seen: Reconciled, limits: Thresholds) -> Classes:
    """
    Sort the rows by what became of their tasks.

    Pure. What a verifier says of a row of which all is told beats a result that is not there; it does not beat a
    message or a node that still has the task.
    """
    stuck = not_moving(seen, limits)
    known = {(each.table, each.task) for each in seen.counts}
    moved = Counter(_cell(row, seen, known) for row in seen.met if row.task_id in stuck)
    rows: list[ClassCount] = []
    for each in seen.counts:
        of = (each.table, each.task, each.status, each.sighting, each.age)
        some = min(each.count, moved[of])
        moved[of] -= some
        base = _of(each)
        rows += [replace(base, kind=STUCK, count=some)] if some else []
        rows += [replace(base, count=each.count - some)] if each.count > some else []
    samples = [Sample(row=row, kind=kind_of(row, stuck), evidence=_evidence(row, stuck)) for row in seen.samples]
    for sample in samples:
        rows = _corrected(rows, sample, _cell(sample.row, seen, known))
    return Classes(
        at=seen.taken_at.timestamp(),
        database=seen.database,
        open_for_s=seen.open_for_s,
        tables=seen.tables,
        rows=tuple(_merged(rows)),
        samples=tuple(samples),
        statuses=seen.statuses,
    )


def not_moving(seen: Reconciled, limits: Thresholds) -> Mapping[str, Finding]:
    """Return what is wrong with each task that does not move, by its id."""
    view = View(seen)
    found = [
        *stuck_tasks.active_too_long(view, limits),
        *orphans.judge(view),
        *messages.retry_loops(view, limits.loop_after),
    ]
    return {each.subject: each for each in found if each.code in _STUCK_CODES}


def _of(each: RowCount) -> ClassCount:
    return ClassCount(
        table=each.table,
        task=each.task,
        status=each.status,
        kind=CLASSES[each.sighting],
        state=each.state if each.sighting in {ENDED, BEGUN} else "",
        age=each.age,
        why=each.why or said(each.sighting, each.state),
        count=each.count,
        longest_s=each.longest_s,
    )


def _cell(row: TaskRow, seen: Reconciled, known: AbstractSet[tuple[str, str]]) -> tuple[str, str, str, str, str]:
    age_s = None if row.last_run_at is None else max(0.0, seen.taken_at.timestamp() - row.last_run_at)
    return row.table, row.task if (row.table, row.task) in known else OTHERS, row.status, row.sighting, age_of(age_s)


def kind_of(row: TaskRow, stuck: Mapping[str, Finding]) -> str:
    """Return a row's class, by where it was met and by what its verifier says."""
    kind = CLASSES[row.sighting]
    if row.task_id in stuck and row.sighting in {UNACKED, HELD}:
        return STUCK
    if row.effect and row.sighting in {NOWHERE, BEYOND, BEGUN}:  # where a place was silent, it may still run
        return FINISHED
    # That it did not happen, and that it is nowhere: only what could not be seen leaves it open.
    return LOST if row.effect is False and row.sighting == BEYOND else kind


def _evidence(row: TaskRow, stuck: Mapping[str, Finding]) -> str:
    is_stuck = row.task_id in stuck and row.sighting in {UNACKED, HELD}
    met = stuck[row.task_id].message if is_stuck else said(row.sighting, row.state, row.node, row.why)
    effect = "" if row.effect is None else f"What it brings about is {'' if row.effect else 'not '}there."
    return " ".join(filter(None, (met, effect, row.effect_said)))


def said(sighting: str, state: str = "", node: str = "", why: str = "") -> str:
    """Return where a task was met, as a sentence."""
    return _SAID[sighting].format(state=state, node=node or "A node", why=why)


def _corrected(rows: list[ClassCount], sample: Sample, of: tuple[str, str, str, str, str]) -> list[ClassCount]:
    """Return the counts with one row in the class that its verifier has put it into."""
    table, task, status, sighting, age = of
    kind = CLASSES[sighting]
    if sample.kind in {kind, STUCK}:
        return rows
    for n, each in enumerate(rows):
        same = (each.table, each.task, each.status, each.kind, each.age) == (table, task, status, kind, age)
        if same and each.why == (sample.row.why or said(sighting, sample.row.state)):
            one = replace(each, kind=sample.kind, count=1, state="", why="Its verifier says so.")
            left = [replace(each, count=each.count - 1)] if each.count > 1 else []
            return [*rows[:n], *left, *rows[n + 1 :], one]
    return rows


def _merged(rows: Iterable[ClassCount]) -> list[ClassCount]:
    """Return the counts with those that are alike as one, the most first."""
    found: dict[ClassCount, tuple[int, float]] = {}
    for row in rows:
        of = replace(row, count=0, longest_s=None)
        count, longest_s = found.get(of, (0, -1.0))
        found[of] = count + row.count, max(longest_s, -1.0 if row.longest_s is None else row.longest_s)
    made = [replace(of, count=n, longest_s=s if s >= 0 else None) for of, (n, s) in found.items()]
    return sorted(made, key=lambda row: (-row.count, row.table, row.task, row.kind, row.age))
