"""Tasks that do not move: a Snapshot → which, on what evidence, and what would move them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.durations import seconds, spell
from opslib.errors import BadParameter
from opslib.facts.messages import UNKNOWN_TASK, UnackedMessage, UnreadableMessage
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import FINAL_STATES
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Plan
from opslib.symptoms import messages, orphans, sight, stops
from opslib.symptoms.view import View

if TYPE_CHECKING:
    from opslib.broker import Broker


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When a task counts as stuck.

    Attributes:
        stuck_after_s: Seconds that a task may be active.

        loop_after: Retries after which a task counts as looping.
    """

    stuck_after_s: float = 3 * 3600.0
    loop_after: int = 10

    @classmethod
    def of(cls, broker: Broker, *, stuck_after: str = "", loop_after: int = 0) -> Thresholds:
        """
        Return what was asked for, and for the rest the target's own.

        Raises:
            SettingsError: If a duration has no unit or is not above zero.

            BadParameter: If a number of retries is negative: every message would be a loop.
        """
        if loop_after < 0:
            raise BadParameter(f"loop_after: {loop_after} is no number of retries.", hint="0 takes the target's own.")
        own = broker.target.thresholds
        return cls(
            stuck_after_s=seconds(stuck_after or own.stuck_after, "stuck_after"),
            loop_after=loop_after or own.loop_after,
        )


def diagnose(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """
    Say what is stuck, worst first, and what could not be told.

    Pure: a saved snapshot gives the same findings again. The boundary counts as wrong: a task that has been active
    for exactly `stuck_after_s` is stuck.
    """
    view = View(snapshot)
    found = [
        *sight.judge(snapshot),
        *active_too_long(view, limits),
        *orphans.judge(view),
        *messages.retry_loops(view, limits.loop_after),
        *messages.beyond_visibility(view),
        *messages.duplicates(view),
        *zombies(view),
        *messages.unreadable(snapshot),
        *messages.without_consumer(snapshot),
        *orphans.missing_from_index(view),
    ]
    return worst_first(found)


def active_too_long(view: View, limits: Thresholds) -> Iterator[Finding]:
    """Tasks that a node has been running for as long as they may, or longer."""
    for task in view.snapshot.held:
        if task.place != "active" or task.started_at is None:
            continue
        age_s = view.now - task.started_at
        if age_s >= limits.stuck_after_s:
            node = next((node for node in view.snapshot.nodes if node.name == task.node), None)
            yield Finding(
                code="stuck-active",
                severity=Severity.CRITICAL,
                subject=task.task_id,
                task=task.task,
                message=f"Active on {task.node} for {spell(age_s)}; it may run for {spell(limits.stuck_after_s)}.",
                evidence={
                    "age_s": round(age_s, 1),
                    "node": task.node,
                    "pid": task.pid,
                    "pool": node.pool if node else "",
                    "acknowledged": task.acknowledged,
                },
                hint="Look at what it waits for before it is stopped (py-spy dump --pid); stopping it loses its work.",
            )


def zombies(view: View) -> Iterator[Finding]:
    """Results that say a task is under way while it is in no place, in both looks, with everyone answering."""
    snapshot = view.snapshot
    if snapshot.earlier is None:
        return
    before = {result.task_id: result for result in snapshot.earlier.results}
    placed = (
        {message.task_id for message in view.messages}
        | {m.task_id for m in snapshot.earlier.unacked}
        | view.held_before
        | set(view.held)
    )
    blind = [row.place for row in snapshot.silent_places]
    for result in snapshot.results:
        same = before.get(result.task_id)
        if result.state in FINAL_STATES or result.task_id in placed or same is None or same.sha256 != result.sha256:
            continue
        if same.expires_at and result.expires_at and result.expires_at - same.expires_at > 1:
            continue  # written again between the looks, so somebody is at it
        yield Finding(
            code="zombie-result",
            severity=Severity.UNKNOWN if blind else Severity.ATTENTION,
            subject=result.task_id,
            task=result.task or UNKNOWN_TASK,
            message=(
                f"Its result says {result.state}{f' on {result.node}' if result.node else ''}, "
                + (
                    f"but {', '.join(blind)} could not be seen whole."
                    if blind
                    else "but it is in no queue, not unacked, and no node holds it: it will never finish."
                )
            ),
            evidence={
                "state": result.state,
                "node": result.node,
                "pid": result.pid,
                "exception": result.exception,
                "queue": result.queue,
            },
            hint="Its worker died after an early acknowledgement; send it again if needed. acks_late prevents this.",
        )


def plan(snapshot: Snapshot, findings: Iterable[Finding], *, max_actions: int) -> Plan:
    """
    Propose what the findings allow, and nothing for what is unknown.

    Loops and hung tasks are stopped, orphans go back to their queue, what no sweep would find is indexed, unreadable
    messages leave circulation. What needs a person's decision (duplicates, ETAs beyond the timeout, results) is left
    alone.

    Raises:
        PlanTooLarge: If more than `max_actions` are needed.
    """
    certain = [finding for finding in findings if finding.severity is not Severity.UNKNOWN]
    stopped = {f.subject: f for f in certain if f.code in {"stuck-active", "retry-loop"}}
    doubled = {f.subject for f in certain if f.code == "duplicate-task-id"}
    actions = [stops.of(snapshot, f.subject, task=f.task, why=f.code) for f in stopped.values()]
    ownerless = {f.evidence["delivery_tag"]: f for f in certain if f.code == "orphaned-unacked"}
    finished = {r.task_id for r in snapshot.results if r.state in FINAL_STATES}
    actions += [
        _restore(message)
        for message in snapshot.unacked
        if message.delivery_tag in ownerless
        and message.queue
        and message.task_id not in stopped.keys() | doubled | finished
    ]
    unindexed = {f.evidence["delivery_tag"] for f in certain if f.code == "unacked-index-mismatch"}
    put_right = {copy.delivery_tag for action in actions for copy in action.copies}
    actions += [_repair(m) for m in snapshot.unacked if m.delivery_tag in unindexed - put_right]
    told = {f.subject for f in certain if f.code == "unreadable-message"}
    actions += [quarantine(message) for message in snapshot.unreadable if message.sha256 in told]
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )


def _restore(message: UnackedMessage) -> Action:
    return Action(
        kind=Kind.RESTORE,
        subject=message.task_id,
        task=message.task,
        source="unacked",
        destination=message.queue,
        copies=(stops.copy_of(message),),
        why="orphaned-unacked",
        effect=f"Back to {message.queue}, next to be served, marked redelivered.",
    )


def _repair(message: UnackedMessage) -> Action:
    return Action(
        kind=Kind.REPAIR,
        subject=message.task_id,
        task=message.task,
        source="unacked",
        destination="unacked",
        copies=(stops.copy_of(message),),
        why="unacked-index-mismatch",
        effect="Indexed as if delivered now, so that Celery restores it should its node die.",
    )


def quarantine(message: UnreadableMessage) -> Action:
    """Take a message out of circulation that nobody can decode."""
    return Action(
        kind=Kind.QUARANTINE,
        subject=message.sha256,
        source=message.queue if message.place == "waiting" else message.place,
        destination="quarantine",
        copies=(
            Copy(
                place=message.place,
                key=message.key,
                queue=message.queue,
                delivery_tag=message.delivery_tag,
                sha256=message.sha256,
            ),
        ),
        why="unreadable-message",
        effect="Taken out of circulation, so that no worker dies of it; its bytes are kept.",
    )
