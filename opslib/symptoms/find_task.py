"""Where certain tasks were found → what is wrong with them, and which of them were found nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opslib.facts.messages import UNKNOWN_TASK
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding, Severity, worst_first
from opslib.selection import ids
from opslib.symptoms import messages, orphans, sight, stuck_tasks
from opslib.symptoms.stuck_tasks import Thresholds
from opslib.symptoms.view import View

__all__ = ["Thresholds", "diagnose", "wanted"]

#: Tasks that are looked for where none is named.
OLDEST = 3
#: Findings that another runbook answers than that of stuck tasks, and the command that does it at once.
_ANSWERS: Mapping[str, tuple[str, str]] = {
    "stuck-active": ("stop-task", "`ops task stop ID` ends it."),
    "retry-loop": ("stop-task", "`ops task stop ID` ends it now."),
    "zombie-result": ("find-task", "`ops task cleanup ID` removes the result."),
    "queue-without-consumer": ("queue-backlog", ""),
    "worker-not-consuming": ("queue-backlog", ""),
}


def wanted(task_id: str) -> dict[str, Any]:
    """
    Return what `find` takes for the tasks that somebody names.

    Args:
        task_id: One id or several; empty for the tasks that have been delivered and unacknowledged the longest.
    """
    named = ids(task_id)
    return {"ids": named} if named else {"oldest": OLDEST}


def diagnose(seen: Whereabouts, limits: Thresholds) -> list[Finding]:
    """
    Say what is wrong with these tasks, worst first, and what could not be told.

    They are judged as the runbook of stuck tasks judges all; one that has ended, waits its turn or runs as it may is
    no finding. Pure: a saved view gives the same findings again.
    """
    view = View(seen)
    aside = {kept.subject for kept in seen.quarantined} | {letter.task_id for letter in seen.dead}
    queued = {message.queue for message in seen.waiting}
    found = [
        *sight.unseen(seen),
        *_not_found(seen),
        *_failed(seen),
        *(sight.absent(seen) if seen.messages else ()),
        *_beside_idle_nodes(seen),
        *stuck_tasks.active_too_long(view, limits),
        *orphans.judge(view),
        *messages.retry_loops(view, limits.loop_after),
        *messages.beyond_visibility(view),
        *messages.duplicates(view),
        # What was put aside is not lost, whatever its result says.
        *(each for each in stuck_tasks.zombies(view) if each.subject not in aside),
        *messages.without_consumer(replace(seen, queues=tuple(q for q in seen.queues if q.name in queued))),
        *orphans.missing_from_index(view),
    ]
    return worst_first(map(_answered, found))


def _not_found(seen: Whereabouts) -> Iterator[Finding]:
    blind = [row.place for row in seen.silent_places]
    noted = [f"{row.place}: {row.note}" for row in seen.coverage if row.note and not row.silent]
    for task_id, places in seen.places.items():
        if places:
            continue
        where = f"but not everything could be seen: {', '.join(blind)}" if blind else "and every place was seen"
        yield Finding(
            code="task-not-found",
            severity=Severity.UNKNOWN if blind else Severity.ATTENTION,
            subject=task_id,
            message=f"Found nowhere, {where}.",
            evidence={
                "searched": [row.place for row in seen.coverage],
                "not_seen": blind,
                "looks": 2 if seen.earlier else 1,
                "noted": noted,
            },
            hint=(
                "It may be in what was not seen: have that answer, and look again."
                if blind
                else "It ended and its result has expired or was not kept, or a node died with it after it had "
                "acknowledged it; or the id is not whole, or another deployment's. The application's log knows."
            ),
            runbook="find-task",
        )


def _failed(seen: Whereabouts) -> Iterator[Finding]:
    """Tasks that have failed for good, by their result or by their letter; one that is in flight again has not."""
    moving = {row.task_id for row in (*seen.messages, *seen.held)}
    letters = {letter.task_id: letter for letter in seen.dead}
    ends = {result.task_id: result for result in seen.results if result.state in {"FAILURE", "REJECTED"}}
    for task_id in sorted((letters.keys() | ends.keys()) - moving):
        letter, result = letters.get(task_id), ends.get(task_id)
        why = (result.exception if result else "") or (letter.exception if letter else "")
        told = [f"its result says {result.state}"] if result else []
        told += [f"its letter is in {letter.key}"] if letter else []
        yield Finding(
            code="task-failed",
            severity=Severity.ATTENTION,
            subject=task_id,
            task=(letter.task if letter else "") or (result.task if result else "") or UNKNOWN_TASK,
            message=f"It failed{f' of {why}' if why else ''}: {' and '.join(told)}.",
            evidence={
                "result": result.state if result else "none stored",
                "dead_letter": letter.key if letter else "none",
                "retries": result.retries if result else None,
                "node": result.node if result else "",
            },
            hint="Mend what it failed of first; then send it again, if it is still needed.",
            runbook="find-task",
        )


def _beside_idle_nodes(seen: Whereabouts) -> Iterator[Finding]:
    """Nodes that take nothing from a queue in which one of these tasks waits."""
    queued = {message.queue for message in seen.waiting}
    for finding in sight.not_consuming(seen):
        beside = finding.evidence["queues"]
        if isinstance(beside, list) and queued & set(beside):
            yield finding


def _answered(finding: Finding) -> Finding:
    """Return a finding with the runbook, and the command, that answers it for a single task."""
    if finding.code not in _ANSWERS:
        return finding
    runbook, command = _ANSWERS[finding.code]
    certain = finding.severity is not Severity.UNKNOWN
    return replace(finding, runbook=runbook, hint=f"{finding.hint} {command if certain else ''}".strip())
