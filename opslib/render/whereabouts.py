"""Where a task was found → one sentence, and one table for each place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opslib.durations import spell
from opslib.render import display, tables
from opslib.render.grid import Line

if TYPE_CHECKING:
    from opslib.facts import Whereabouts


def show(seen: Whereabouts) -> list[object]:
    """Return a sentence for each id, the tables of the places that hold any, and the coverage."""
    views: list[object] = [Line((f"{task_id}: {sentence(seen, task_id)}",)) for task_id in sorted(seen.ids)]
    for rows in (seen.waiting, seen.unacked, seen.held, seen.results):
        if rows:
            views += display.views(rows, seen.taken_at, held=seen.held)
    return [*views, tables.coverage(seen.coverage)]


def sentence(seen: Whereabouts, task_id: str) -> str:
    """
    Say where a task is, in the order of its life.

    PENDING is never said: for Celery it means "no result is stored", which is true of an id that never existed.
    """
    now = seen.taken_at.timestamp()
    said = [
        f"waiting in {waiting.queue} behind {waiting.position:,} (priority {waiting.priority})"
        for waiting in seen.waiting
        if waiting.task_id == task_id
    ]
    held = [task for task in seen.held if task.task_id == task_id]
    for task in held:
        since = f" for {spell(now - task.started_at)}" if task.started_at else ""
        until = f", due in {spell(task.eta_at - now)}" if task.eta_at and task.eta_at > now else ""
        said.append(f"{task.place} on {task.node}{since}{until}")
    for message in (m for m in seen.unacked if m.task_id == task_id):
        ago = "at an unknown time" if message.delivered_at is None else f"{spell(now - message.delivered_at)} ago"
        if not held:
            left = (
                ""
                if message.delivered_at is None
                else f"; Celery gives it back in {spell(message.delivered_at + seen.visibility_timeout_s - now)}"
            )
            said.append(f"delivered {ago} to a node that no longer has it{left}")
        else:
            said.append(f"unacknowledged since {ago}")
    said += [f"its result says {result.state}" for result in seen.results if result.task_id == task_id]
    if said:
        return "; ".join(said) + "."
    blind = [row.place for row in seen.coverage if row.silent]
    if blind:
        return f"found nowhere, but not everything could be seen: {', '.join(blind)}."
    return "found nowhere: not waiting, not delivered, on no node, and no result is stored."
