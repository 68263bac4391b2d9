"""Whatever a cell has at hand → the reader's screen, in a notebook or a terminal: the verb `show`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from opslib import records
from opslib.facts.backup import Backup, RestoreStep, Saves
from opslib.facts.beat import ScheduleEntry, Schedules
from opslib.facts.care import Area, Care
from opslib.facts.checkpoints import Checkpoint, Resumable
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.facts.messages import UnackedMessage, UnreadableMessage, WaitingMessage
from opslib.facts.rates import Rate
from opslib.facts.resets import DrainNode, ResetChoice
from opslib.facts.retries import RetryingTask, TaskRetries
from opslib.facts.rows import Classes, Reconciled, Sample, StateNow
from opslib.facts.snapshot import Snapshot
from opslib.facts.stored import Stored
from opslib.facts.system import Coverage, HeldTask, NodeInfo, QueueInfo, ServerInfo, StoredResult
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding
from opslib.plan import Outcome, Plan
from opslib.records import RunRecord
from opslib.render import (
    areas,
    backups,
    beat,
    care,
    checkpoints,
    dead,
    judged,
    resets,
    retries,
    rows,
    stored,
    tables,
    whereabouts,
)
from opslib.render.grid import Line

if TYPE_CHECKING:
    from opslib.render.pen import Chart


def show(*things: object, compare: tuple[Sequence[Finding], Sequence[Finding]] | None = None) -> None:
    """
    Display each thing in a notebook, or print it where there is none.

    Args:
        things: Snapshots, lists of findings, plans, outcomes, records, facts rows, charts and figures.
            An empty list stands for findings, because only findings are lists; rows and outcomes are tuples.

        compare: Findings before and after, shown as one table: gone, remains, new.
    """
    taken_at = next((thing.taken_at for thing in things if isinstance(thing, Snapshot)), None)
    for thing in things:
        _keep(thing)
        for view in views(thing, taken_at):
            _display(view)
    if compare:
        _display(judged.comparison(*compare))


def views(thing: object, taken_at: datetime | None = None, *, held: Iterable[HeldTask] = ()) -> list[object]:
    """
    Return what `show` displays for a thing.

    Args:
        taken_at: The instant from which rows count their ages; without it they say when instead of how long ago.

        held: What the nodes hold, for rows of unacked messages.
    """
    if isinstance(thing, DeadLetters):
        return dead.show(thing, taken_at)
    for kind, view in _VIEWS.items():
        if isinstance(thing, kind):
            return view(thing)
    if isinstance(thing, (list, tuple)):
        return [*_by_step(thing), _rows(thing, taken_at, held)]
    return [_picture(thing) or thing]


def _by_step(rows: Sequence[Any]) -> list[object]:
    """Return what became of a plan of steps, step by step; nothing for other rows, or where nothing was begun."""
    if not rows or not isinstance(rows[0], Outcome) or not any(o.status != "skipped" for o in rows):
        return []
    return [resets.became(rows)] if any(outcome.action.step for outcome in rows) else []


def _rows(rows: Sequence[Any], taken_at: datetime | None, holders: Iterable[HeldTask] = ()) -> object:
    if not rows:
        return judged.findings([]) if isinstance(rows, list) else Line(("Nothing of this kind was seen.",))
    if isinstance(rows[0], UnackedMessage):
        return tables.unacked(rows, taken_at=taken_at, held=holders)
    if isinstance(rows[0], HeldTask):
        return tables.held(rows, taken_at=taken_at)
    dated = next((view for kind, view in _DATED_VIEWS.items() if isinstance(rows[0], kind)), None)
    if dated:
        return dated(rows, taken_at)
    view = next((view for kind, view in _ROW_VIEWS.items() if isinstance(rows[0], kind)), None)
    return view(rows) if view else Line(rows)


def _keep(thing: object) -> None:
    """Put findings into the run's draft record: what was shown survives a kernel that dies later."""
    if isinstance(thing, list) and thing and all(isinstance(row, Finding) for row in thing):
        records.draft(thing)


def _picture(thing: object) -> Chart | None:
    """Return a matplotlib figure as a chart; matplotlib is asked only where it is loaded already."""
    figure = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
    if figure is None or not isinstance(thing, figure):
        return None
    from opslib.render.pen import from_figure

    return from_figure(thing)


def _display(thing: object) -> None:
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(thing)
        return
    out = sys.stdout
    # A terminal in an old locale gets question marks in place of an error.
    print(str(thing).encode(out.encoding or "utf-8", "replace").decode(out.encoding or "utf-8"), file=out, end="\n\n")


#: The first that fits: a Whereabouts is a Snapshot too.
_VIEWS: dict[type, Callable[[Any], list[object]]] = {
    Care: care.show,
    Schedules: beat.show,
    Reconciled: rows.show,
    Classes: rows.classes,
    Saves: backups.saves,
    Backup: backups.backup,
    Resumable: checkpoints.show,
    Whereabouts: whereabouts.show,
    Stored: stored.show,
    Snapshot: tables.snapshot,
    Plan: lambda thing: [*([resets.steps(thing)] if any(a.step for a in thing) else []), judged.plan(thing)],
    RunRecord: lambda thing: [judged.Card(thing)],
    ServerInfo: lambda thing: [tables.server(thing)],
    Finding: lambda thing: [judged.findings([thing])],
}


_ROW_VIEWS: dict[type, Callable[[Any], object]] = {
    Area: areas.tiles,
    Sample: rows.samples,
    StateNow: rows.states,
    Finding: judged.findings,
    Outcome: judged.outcomes,
    QueueInfo: tables.queues,
    Rate: tables.rates,
    ResetChoice: resets.choices,
    DrainNode: resets.nodes,
    RestoreStep: backups.steps,
    Checkpoint: checkpoints.states,
    RetryingTask: retries.tasks,
    TaskRetries: retries.names,
    NodeInfo: tables.nodes,
    WaitingMessage: tables.waiting,
    UnreadableMessage: tables.unreadable,
    StoredResult: tables.results,
    Coverage: tables.coverage,
}


#: Of rows that count an age from the instant of a snapshot, where one is shown beside them.
_DATED_VIEWS: dict[type, Callable[[Any, datetime | None], object]] = {
    ScheduleEntry: beat.entries,
    DeadList: dead.lists,
    DeadGroup: dead.groups,
    DeadLetter: dead.letters,
}
