"""A schedule → a table of its entries, the beat that serves it, and who sends twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from opslib.durations import spell
from opslib.facts import BeatLock, ScheduleEntry, Schedules
from opslib.facts.beat import CONFIGURATION
from opslib.render import tables, words
from opslib.render.grid import Cell, Column, Line, Table


def show(seen: Schedules) -> list[object]:
    """Return the schedule, who serves it, the nodes that its tasks go to, and what was not seen."""
    shown: list[object] = [entries(seen.entries, seen.taken_at)]
    if seen.entries:
        shown.append(Line((_beat(seen.lock, any(row.source != CONFIGURATION for row in seen.entries)),)))
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
        empty="No schedule was found: none in redbeat's keys, and none in the nodes' configuration.",
        stack=True,
    )


def _beat(lock: BeatLock | None, is_stored: bool) -> str:
    if not is_stored:
        return "Whether beat runs cannot be seen from here: this scheduler leaves no trace in Redis but its messages."
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
        return "unknown" if row.source == CONFIGURATION else "never"
    if taken_at is None:
        return words.clock(row.due_at)
    ahead_s = row.due_at - taken_at.timestamp()
    return f"in {spell(ahead_s)}" if ahead_s >= 0 else f"{spell(-ahead_s)} ago"


def _remark(row: ScheduleEntry) -> str:
    if row.problem:
        return words.shown(row.problem)
    return "configured too: a beat that starts writes it anew" if row.is_static else ""
