"""A schedule → a table of its entries, the beat that serves it, and who sends twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from opslib.durations import spell
from opslib.facts.beat import CONFIGURATION, REDBEAT, BeatLock, ScheduleEntry, Schedules
from opslib.render import tables, words
from opslib.render.grid import Cell, Column, Line, Table


def show(seen: Schedules) -> list[object]:
    """Return the schedule, who serves it, the nodes that its tasks go to, and what was not seen."""
    shown: list[object] = [entries(seen.entries, seen.taken_at)]
    if seen.entries:
        shown.append(Line(_who(seen)))
    return [*shown, tables.nodes(seen.nodes), tables.queues(seen.queues), tables.coverage(seen.coverage)]


def entries(rows: Sequence[ScheduleEntry], taken_at: datetime | None = None) -> Table:
    """
    Return the entries, the next to be sent first.

    Args:
        taken_at: The instant from which times are counted; without it they are instants.
    """
    return Table(
        title="Schedule",
        columns=(
            Column("Entry and task", "code"),
            Column("How often"),
            Column("Last sent", "number"),
            Column("Next", "number"),
            Column("Queue"),
            Column("Kept in"),
        ),
        rows=[
            (
                Cell(words.shown(row.name), words.shown(row.task)),
                words.shown(row.when).replace(" ", "\u00a0"),
                _last(row, taken_at),
                _next(row, taken_at),
                words.shown(row.queue) if row.queue else "by its route",
                Cell(row.source, _remark(row)),
            )
            for row in rows
        ],
        empty="No schedule was found: none in redbeat's keys, in no table, and none in the nodes' configuration.",
        stack=True,
    )


def _who(seen: Schedules) -> tuple[str, ...]:
    """Return what is known of the beat that serves a schedule, as sentences."""
    said = []
    sources = {row.source for row in seen.entries}
    if REDBEAT in sources:
        where = f" It is kept in {words.shown(seen.elsewhere)}." if seen.elsewhere else ""
        said.append(f"{_lock(seen.lock)}{where}")
    if seen.told_at is not None:
        told = spell(max(0.0, seen.taken_at.timestamp() - seen.told_at))
        said.append("A beat on tables shows by the runs that it writes down, every few minutes.")
        said.append(f"It was last told of a change {told} ago.")
    if not said:
        said = ["Whether beat runs cannot be seen from here: this scheduler leaves no trace in Redis but its messages."]
    return tuple(said)


def _lock(lock: BeatLock | None) -> str:
    if lock is None:
        return "No beat holds the schedule's lock."
    renewed = f", which it renewed {spell(lock.renewed_ago_s)} ago" if lock.renewed_ago_s is not None else ""
    return f"A beat holds the schedule's lock{renewed}. It expires in {spell(lock.life_s)} unless it is renewed again."


def _last(row: ScheduleEntry, taken_at: datetime | None) -> str:
    if row.last_run_at is None:
        return "unknown" if row.source == CONFIGURATION else "never"
    if taken_at is None:
        return words.clock(row.last_run_at)
    return f"{spell(max(0.0, taken_at.timestamp() - row.last_run_at))} ago"


def _next(row: ScheduleEntry, taken_at: datetime | None) -> str:
    if row.is_on is False:
        return "paused"
    if row.due_at is None:
        return "unknown" if row.source == CONFIGURATION or row.is_unreckoned else "never"
    if taken_at is None:
        return words.clock(row.due_at)
    ahead_s = row.due_at - taken_at.timestamp()
    return f"in {spell(ahead_s)}" if ahead_s >= 0 else f"{spell(-ahead_s)} ago"


def _remark(row: ScheduleEntry) -> str:
    if row.problem:
        return words.shown(row.problem)
    static = "configured too: a beat that starts writes it anew" if row.is_static else ""
    return "; ".join(filter(None, [words.shown(row.bounds) if row.bounds else "", static]))
