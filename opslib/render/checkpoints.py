"""Saved states of tasks → a table of how far each has come; what is in them is not shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from opslib.durations import spell
from opslib.facts.checkpoints import Checkpoint, Resumable
from opslib.render import whereabouts, words
from opslib.render.grid import Cell, Column, Table


def show(seen: Resumable) -> list[object]:
    """Return what states tasks have saved, and where the tasks are."""
    return [states(seen.checkpoints, seen.taken_at), *whereabouts.show(seen)]


def states(rows: Sequence[Checkpoint], taken_at: datetime | None = None) -> Table:
    """
    Return the states, one row each.

    Args:
        taken_at: The instant from which their ages are counted; without it they say when they were saved.
    """
    return Table(
        title="Saved states",
        columns=(
            Column("Task and key", "code"),
            Column("Progress", "number"),
            Column("Results", "number"),
            Column("Saved", "number"),
            Column("Expires in", "number"),
            Column("Called with what"),
            Column("What to know"),
        ),
        rows=[
            (
                Cell(" ".join(words.shown(each) for each in (row.task, row.task_id) if each), words.shown(row.key)),
                "" if row.progress is None else f"{row.progress:.0%}",
                row.results,
                _saved(row, taken_at),
                "never" if row.life_s < 0 else spell(row.life_s),
                _source(row),
                words.shown(_remark(row), 300),
            )
            for row in rows
        ],
        empty="No state is saved.",
        stack=True,
    )


def _saved(row: Checkpoint, taken_at: datetime | None) -> str:
    if row.saved_at is None:
        return ""
    return f"{spell(max(0.0, taken_at.timestamp() - row.saved_at))} ago" if taken_at else words.clock(row.saved_at)


def _source(row: Checkpoint) -> str:
    if row.message:
        return "the message that failed"
    return f"what its {row.source} says" if row.source else "nobody knows"


def _remark(row: Checkpoint) -> str:
    said = [row.problem, row.refused, f"It failed: {row.failure}" if row.failure else ""]
    said += [f"It goes on from {row.resumed_from}" if row.resumed_from else ""]
    said += [f"{row.resumed_as} goes on from it" if row.resumed_as else ""]
    return ". ".join(each.rstrip(".") for each in said if each)
