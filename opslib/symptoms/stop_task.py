"""Tasks that somebody wants stopped → which of them are still in circulation, what stops them, and what would not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from opslib import plan as plans
from opslib.errors import BadParameter
from opslib.facts.messages import UNKNOWN_TASK, UnackedMessage
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Outcome, Plan, Status
from opslib.selection import Selection, ids
from opslib.symptoms import sight, stops

#: Places in a node's memory from which it drops a task that was revoked.
_REMEMBERED = frozenset({"reserved", "scheduled"})
PLACES = ("waiting", "unacked", "active", "reserved", "scheduled")


def wanted(
    *, task_id: str | Sequence[str] = "", task: str = "", place: str = "", retries: int = 0, limit: int = 0
) -> dict[str, Any]:
    """
    Return what `find` takes for the tasks that somebody names, by their ids or by what they are.

    Args:
        task_id: Ids, each as it is; or a text in which commas or white space stand between them.

        task: Glob of the tasks' name, instead of ids.

        place: Only those in one of PLACES.

        retries: Only those that were retried so often or more.

        limit: Tasks at most; has to be said for a filter that leaves nothing out.

    Raises:
        BadParameter: If both ids and a filter are given, a place is none, or everything is meant without a limit.
    """
    named = ids(task_id) if isinstance(task_id, str) else list(dict.fromkeys(task_id))
    if place and place not in PLACES:
        raise BadParameter(f"place: {place!r} is none.", hint=f"There are: {', '.join(PLACES)}.")
    if limit < 0 or retries < 0:
        raise BadParameter(f"{'limit' if limit < 0 else 'retries'} must not be negative.")
    if named and (task or place or retries):
        raise BadParameter("Name tasks by their ids or by a filter, not by both.")
    if named or not (task or place or retries):
        return {"ids": named}
    selection = Selection(task=task or "*", retries=retries)
    if selection.is_everything and not limit:
        meant = f"every task that is {place}" if place else "every task there is"
        raise BadParameter(f"This means {meant}.", hint="Say how many at most, with a limit: 20, for instance.")
    chosen = {"selection": selection, "places": [place] if place else []}
    return {**chosen, "limit": limit} if limit else chosen


def diagnose(
    seen: Whereabouts, *, before: Whereabouts | None = None, outcomes: Iterable[Outcome] = ()
) -> list[Finding]:
    """
    Say which of the tasks can still be run, which were found nowhere, and what stopping them by id would not hold.

    Args:
        before: The look before the stop: what it had found is not missing now.

        outcomes: What became of the stop: a node that has been told drops what it still has in memory.
    """
    stopped = {each.action.subject for each in outcomes if each.status is Status.APPLIED}
    found = [
        *sight.unseen(seen),
        *_not_found(seen, before, stopped),
        *_in_circulation(seen, stopped),
        *_beyond(before or seen),
        *_resent(seen),
    ]
    return worst_first(found)


def said(chosen: Whereabouts) -> str:
    """Return the answer where nothing was chosen that could be stopped; empty where the findings are the answer."""
    if chosen.ids:
        return ""
    if not chosen.selection:
        return "No task was named."
    return (
        f"No task {chosen.selection.words()} is in flight."
        if chosen.selection.words()
        else "No such task is in flight."
    )


def plan(seen: Whereabouts, findings: Iterable[Finding], *, max_actions: int) -> Plan:
    """
    Propose a durable stop of every task that is still in circulation.

    Raises:
        PlanTooLarge: If more than `max_actions` are needed.
    """
    asked = [f for f in findings if f.code == "task-in-circulation" and f.subject in seen.ids]
    actions = [stops.of(seen, f.subject, task=f.task, why=f.code) for f in asked]
    return plans.make(seen.target, seen.fingerprint, actions, max_actions=max_actions, made_at=seen.taken_at)


def _not_found(seen: Whereabouts, before: Whereabouts | None, stopped: AbstractSet[str]) -> Iterator[Finding]:
    if not seen.ids and not (before and before.ids):
        yield Finding(
            code="task-not-found",
            severity=Severity.ATTENTION,
            subject="",
            message=said(seen),
            hint="Name one by its id (task_id), or several by a filter (task, place, retries).",
            runbook="find-task",
        )
        return
    known = stopped | ({task_id for task_id, places in before.places.items() if places} if before else set())
    blind = [row.place for row in seen.silent_places]
    for task_id, places in seen.places.items():
        if not places and task_id not in known:
            where = (
                f"but not everything could be seen: {', '.join(blind)}; whether it can still run is not known"
                if blind
                else "and every place was seen; there is nothing to stop"
            )
            yield Finding(
                code="task-not-found",
                severity=Severity.UNKNOWN if blind else Severity.ATTENTION,
                subject=task_id,
                message=f"It was found nowhere, {where}.",
                evidence={"searched": [row.place for row in seen.coverage], "silent": blind},
                hint="Is the id whole, and is this the deployment that it was sent to?",
                runbook="find-task",
            )


def _in_circulation(seen: Whereabouts, stopped: AbstractSet[str]) -> Iterator[Finding]:
    """
    Tasks that can still be run.

    What a node has in memory alone, without a message, it drops in its time, if it was told to: by a stop that was
    proven just now, or by an earlier revoke, which it answers with that result.
    """
    names = {row.task_id: row.task for row in (*seen.held, *seen.messages) if row.task}
    told = stopped | {result.task_id for result in seen.results if result.state == "REVOKED"}
    for task_id, places in seen.places.items():
        here = [place for place in dict.fromkeys(places) if place in PLACES]
        if not here or (set(here) <= _REMEMBERED and task_id in told):
            continue
        yield Finding(
            code="task-in-circulation",
            severity=Severity.ATTENTION,
            subject=task_id,
            task=names.get(task_id, UNKNOWN_TASK),
            message=f"It is {' and '.join(here)}{_retried(seen, task_id)}.",
            evidence={
                "places": here,
                "queues": sorted({m.queue for m in seen.messages if m.task_id == task_id}),
                "nodes": sorted({task.node for task in seen.held if task.task_id == task_id}),
            },
            hint=_promise(seen, task_id),
            runbook="stop-task",
        )


def _beyond(chosen: Whereabouts) -> Iterator[Finding]:
    """Tasks that a filter means and a limit leaves out: of those, nothing was done."""
    if chosen.more:
        yield Finding(
            code="task-in-circulation",
            severity=Severity.ATTENTION,
            subject=chosen.selection.words() if chosen.selection else "",
            message=f"The filter means {chosen.more:,} more than the limit allows.",
            hint="Run this again for the rest, or raise the limit.",
            runbook="stop-task",
        )


def _retried(seen: Whereabouts, task_id: str) -> str:
    retries = max((m.retries for m in seen.messages if m.task_id == task_id), default=0)
    return f", retried {retries} time{'s' * (retries != 1)}" if retries else ""


def _promise(seen: Whereabouts, task_id: str) -> str:
    """Return how far a stop can hold, as a sentence."""
    nodes = {node.name: node for node in seen.nodes}
    for task in seen.held:
        node = nodes.get(task.node)
        if task.task_id == task_id and task.place == "active" and node and not node.can_terminate:
            pool = node.pool or "its"
            return f"The {pool} pool of {node.name} cannot end a running task: restart that node to end it at once."
    return "A stop takes its message out of circulation, so that no worker's death brings it back."


def _resent(seen: Whereabouts) -> Iterator[Finding]:
    """Tasks whose offspring has their own name: they send themselves again, each time under a new id (facts §4.5)."""
    names = {row.task_id: row.task for row in (*seen.held, *seen.messages, *seen.results) if row.task}
    sent = Counter((m.root_id, m.task) for m in seen.offspring if names.get(m.root_id) == m.task)
    for (task_id, task), count in sent.items():
        queues = sorted({m.queue for m in seen.offspring if m.root_id == task_id and m.task == task})
        yield Finding(
            code="resent-task",
            severity=Severity.ATTENTION,
            subject=task_id,
            task=task,
            message=f"It has sent itself again under new ids: {count:,} such message{'s' * (count != 1)} in flight.",
            evidence={
                "messages": count,
                "queues": queues,
                "unacked": sum(isinstance(m, UnackedMessage) for m in seen.offspring),
            },
            hint=(
                f"A stop by id cannot hold it. Pause {queues[0] or 'its queue'} "
                f"(`ops queue pause`), purge the name (`ops queue purge --task {task}`), and change the code."
            ),
            runbook="stop-task",
        )
