"""Tasks that do not move: a Snapshot → which, on what evidence, and what would move them again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.durations import seconds, spell
from opslib.errors import BadParameter
from opslib.facts import (
    UNKNOWN_TASK,
    HeldTask,
    Message,
    Snapshot,
    StoredResult,
    UnackedMessage,
    UnreadableMessage,
    WaitingMessage,
)
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Plan
from opslib.symptoms import sight

if TYPE_CHECKING:
    from opslib.broker import Broker

#: An unacked message younger than this may still be on its way into a node's memory.
ORPHAN_MARGIN_S = 1.0
_FINAL = {"SUCCESS", "FAILURE", "REVOKED", "REJECTED"}
_MOST_PER_CODE = 200


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
    view = _View(snapshot)
    found = [
        *sight.judge(snapshot),
        *_active_too_long(view, limits),
        *_orphans(view),
        *_retry_loops(view, limits),
        *_beyond_visibility(view),
        *_duplicates(view),
        *_zombies(view),
        *_unreadable(snapshot),
        *_without_consumer(snapshot),
        *_index_mismatch(view),
    ]
    return worst_first(found)


class _View:
    """A snapshot with the look-ups that several judgements share."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.now = snapshot.taken_at.timestamp()
        earlier = snapshot.earlier
        self.held: dict[str, list[HeldTask]] = defaultdict(list)
        for task in snapshot.held:
            self.held[task.task_id].append(task)
        self.held_before = {task.task_id for task in earlier.held} if earlier else set()
        self.delivered_before = {(m.delivery_tag, m.delivered_at) for m in earlier.unacked} if earlier else set()
        self.results = {result.task_id: result for result in snapshot.results}
        self.rate_limited = {name for node in snapshot.nodes for name in node.rate_limited}

    def steady(self, message: UnackedMessage) -> bool:
        """Whether both looks saw the very same delivery."""
        return (message.delivery_tag, message.delivered_at) in self.delivered_before

    @property
    def messages(self) -> Iterator[WaitingMessage | UnackedMessage]:
        yield from self.snapshot.unacked
        yield from self.snapshot.waiting


def _active_too_long(view: _View, limits: Thresholds) -> Iterator[Finding]:
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


def _orphans(view: _View) -> Iterator[Finding]:
    """
    Messages that were delivered and that no node holds (facts §2.5).

    Claimed only if two looks saw the same delivery, everyone who heard the question answered both times, and the
    task has no rate limit: those wait in no reply. Otherwise unknown.
    """
    snapshot = view.snapshot
    for message in snapshot.unacked:
        if message.task_id in view.held or message.task_id in view.held_before:
            continue
        age_s = None if message.delivered_at is None else view.now - message.delivered_at
        if not view.steady(message) or (age_s is not None and age_s < ORPHAN_MARGIN_S):
            continue
        doubt = _doubt(view, message)
        result = view.results.get(message.task_id)
        finished = result is not None and result.state in _FINAL
        due = max(0.0, snapshot.visibility_timeout_s - (age_s or 0.0))
        ago = "at an unknown time" if age_s is None else f"{spell(age_s)} ago"
        yield Finding(
            code="orphaned-unacked",
            severity=Severity.UNKNOWN if doubt else Severity.CRITICAL,
            subject=message.task_id,
            task=message.task or UNKNOWN_TASK,
            message=_orphan_message(ago, doubt, result if finished else None, due),
            evidence={
                "delivery_tag": message.delivery_tag,
                "age_s": None if age_s is None else round(age_s, 1),
                "queue": message.queue or f"none is bound for {message.routing_key!r} of {message.exchange!r}",
                "nodes_answered": f"{len(snapshot.answering)} of {snapshot.receivers}",
                "looks": 2,
                "result": result.state if result else "none stored",
            },
            hint=_orphan_hint(message, finished=finished, doubt=doubt),
        )


def _doubt(view: _View, message: UnackedMessage) -> str:
    """Return why an unheld message may have an owner after all; empty if nothing speaks for it."""
    snapshot = view.snapshot
    if snapshot.silent_nodes or (
        snapshot.earlier and snapshot.earlier.receivers > sum(n.answered for n in snapshot.earlier.nodes)
    ):
        return "a node that did not answer may hold it"
    if any(row.place == "workers" and row.silent for row in snapshot.coverage):
        return "not every expected node was asked"
    if message.task in view.rate_limited:
        return "its task has a rate limit, and tasks held back by one are in no node's answer"
    if not message.task_id:
        return "it names no task id to look for"
    if not snapshot.receivers and snapshot.server.consumers is None:
        return "CLIENT LIST is not permitted, so a worker that takes no control messages cannot be ruled out"
    if snapshot.server.consumers and snapshot.server.consumers > snapshot.receivers:
        return "more connections consume than nodes answer, so somebody does not listen to control messages"
    return ""


def _orphan_message(ago: str, doubt: str, finished: StoredResult | None, due_s: float) -> str:
    if doubt:
        return f"Delivered {ago}, and no node that answered holds it; but {doubt}."
    if finished:
        again = f"it will run again within {spell(due_s)}"
        return f"Delivered {ago} and held by no node, though its result says {finished.state}; {again}."
    return (
        f"Delivered {ago} to a node that is gone; nothing will run it for another {spell(due_s)} unless it is restored."
    )


def _orphan_hint(message: UnackedMessage, *, finished: bool, doubt: str) -> str:
    if doubt:
        return "Restoring it without proof may run it twice."
    if finished:
        return "It ran to its end and was not acknowledged: restoring it would run it twice, so it is left alone."
    if not message.queue:
        return "No queue, or more than one, is bound for it, so it cannot be put back by itself."
    return "Restoring puts it back to its queue, next to be served; if its node lives after all, it runs twice."


def _retry_loops(view: _View, limits: Thresholds) -> Iterator[Finding]:
    loops: dict[str, WaitingMessage | UnackedMessage] = {}
    for message in view.messages:
        if message.retries >= limits.loop_after and message.retries >= getattr(
            loops.get(message.task_id), "retries", 0
        ):
            loops[message.task_id] = message
    for task_id, message in list(loops.items())[:_MOST_PER_CODE]:
        wait_s = None if message.eta_at is None else message.eta_at - view.now
        then = f"; the next attempt is due in {spell(wait_s)}" if wait_s and wait_s > 0 else ""
        yield Finding(
            code="retry-loop",
            severity=Severity.CRITICAL,
            subject=task_id,
            task=message.task,
            message=f"Retried {message.retries} times{then}; {limits.loop_after} count as a loop.",
            evidence={
                "retries": message.retries,
                "queue": message.queue,
                "eta_in_s": None if wait_s is None else round(wait_s, 1),
            },
            hint="Give the task max_retries and a backoff; until then it comes back for ever.",
        )


def _beyond_visibility(view: _View) -> Iterator[Finding]:
    """Tasks whose ETA is further off than the visibility timeout: each sweep delivers them again (facts §2.3)."""
    seen: set[str] = set()
    limit_s = view.snapshot.visibility_timeout_s
    for message in view.messages:
        if message.eta_at is None or message.task_id in seen:
            continue
        since = getattr(message, "delivered_at", None) or view.now
        if message.eta_at - since >= limit_s and message.eta_at > view.now:
            seen.add(message.task_id)
            yield _scheduled_too_far(view, message, message.eta_at)


def _scheduled_too_far(view: _View, message: Message, eta_at: float) -> Finding:
    snapshot = view.snapshot
    return Finding(
        code="scheduled-beyond-visibility",
        severity=Severity.ATTENTION,
        subject=message.task_id,
        task=message.task,
        message=(
            f"Waits {spell(eta_at - view.now)} for its ETA; what is unacknowledged for "
            f"{spell(snapshot.visibility_timeout_s)} is delivered again, so it may run more than once."
        ),
        evidence={
            "eta_in_s": round(eta_at - view.now, 1),
            "visibility_timeout_s": snapshot.visibility_timeout_s,
            "timeout_said_by": snapshot.visibility_source,
            "queue": message.queue,
            "redelivered": message.redelivered,
        },
        hint="Raise visibility_timeout above the longest ETA on every node, or schedule with beat or a table.",
    )


def _duplicates(view: _View) -> Iterator[Finding]:
    """One id in two messages at once, or held by two nodes; only what a second look confirmed."""
    if view.snapshot.earlier is None:
        return
    copies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    tasks: dict[str, str] = {}
    for message in view.snapshot.unacked:
        if message.task_id and view.steady(message):
            copies[message.task_id].append((message.delivery_tag, f"unacked {message.delivery_tag}"))
            tasks[message.task_id] = message.task
    for waiting in view.snapshot.waiting:
        if waiting.task_id:
            copies[waiting.task_id].append(
                (waiting.delivery_tag, f"waiting in {waiting.queue} (priority {waiting.priority})")
            )
            tasks[waiting.task_id] = waiting.task
    for task_id, places in copies.items():
        nodes = sorted({task.node for task in view.held.get(task_id, [])})
        distinct = dict(places)
        if len(distinct) > 1 or len(nodes) > 1:
            yield _duplicate(task_id, tasks[task_id], sorted(distinct.values()), nodes)
    for task_id, tasks_held in view.held.items():
        nodes = sorted({task.node for task in tasks_held})
        if len(nodes) > 1 and task_id not in copies and task_id in view.held_before:
            yield _duplicate(task_id, tasks_held[0].task, [], nodes)


def _duplicate(task_id: str, task: str, places: Sequence[str], nodes: Sequence[str]) -> Finding:
    where = [*places, *(f"held by {node}" for node in nodes)]
    return Finding(
        code="duplicate-task-id",
        severity=Severity.ATTENTION,
        subject=task_id,
        task=task,
        message=f"Celery runs every copy, and there are {len(where)}: {'; '.join(where[:4])}{' …' * (len(where) > 4)}.",
        evidence={"copies": len(places), "nodes": list(nodes), "places": where[:20]},
        hint="A redelivery beyond the visibility timeout or a second send does this; is the task idempotent?",
    )


def _zombies(view: _View) -> Iterator[Finding]:
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
        if result.state in _FINAL or result.task_id in placed or same is None or same.sha256 != result.sha256:
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


def _unreadable(snapshot: Snapshot) -> Iterator[Finding]:
    for message in snapshot.unreadable[:_MOST_PER_CODE]:
        where = (
            f"{message.place} in {message.queue}" if message.place == "waiting" else f"unacked {message.delivery_tag}"
        )
        yield Finding(
            code="unreadable-message",
            severity=Severity.CRITICAL,
            subject=message.sha256,
            message=f"A message {where} cannot be decoded: {message.reason}.",
            evidence={"key": message.key, "position": message.position, "size_bytes": message.size_bytes},
            hint="A worker that takes text that is not JSON exits at once; find out who pushed it.",
        )


def _without_consumer(snapshot: Snapshot) -> Iterator[Finding]:
    """Told only while someone answers: without any node this is no-workers, with a silent one it cannot be told."""
    if not snapshot.answering:
        return
    for queue in snapshot.queues:
        if queue.depth and not queue.consumers:
            yield Finding(
                code="queue-without-consumer",
                severity=Severity.UNKNOWN if snapshot.silent_nodes else Severity.CRITICAL,
                subject=queue.name,
                message=f"No node that answered consumes it; messages waiting: {queue.depth:,}.",
                evidence={"depth": queue.depth, "by_priority": dict(queue.by_priority), "tasks": dict(queue.by_task)},
                hint="Start a worker with -Q for it, or see why the last one ended.",
            )


def _index_mismatch(view: _View) -> Iterator[Finding]:
    for message in view.snapshot.unacked:
        if message.delivered_at is None and view.steady(message):
            yield Finding(
                code="unacked-index-mismatch",
                severity=Severity.ATTENTION,
                subject=message.task_id,
                task=message.task,
                message="Unacked, but missing from the index: Celery's own sweep will never restore it.",
                evidence={"delivery_tag": message.delivery_tag},
                hint="Restoring it here puts it back; left alone it stays for ever.",
            )


# What would move them again


def plan(snapshot: Snapshot, findings: Iterable[Finding], *, max_actions: int) -> Plan:
    """
    Propose what the findings allow, and nothing for what is unknown.

    Loops and hung tasks are stopped, orphans go back to their queue, unreadable messages leave circulation. What needs
    a person's decision (duplicates, ETAs beyond the timeout, results) is left alone.

    Raises:
        PlanTooLarge: If more than `max_actions` are needed.
    """
    certain = [finding for finding in findings if finding.severity is not Severity.UNKNOWN]
    stops = {f.subject: f for f in certain if f.code in {"stuck-active", "retry-loop"}}
    doubled = {f.subject for f in certain if f.code == "duplicate-task-id"}
    actions = [_stop(snapshot, finding) for finding in stops.values()]
    orphans = {f.evidence["delivery_tag"]: f for f in certain if f.code == "orphaned-unacked"}
    finished = {r.task_id for r in snapshot.results if r.state in _FINAL}
    actions += [
        _restore(message)
        for message in snapshot.unacked
        if message.delivery_tag in orphans
        and message.queue
        and message.task_id not in stops.keys() | doubled | finished
    ]
    told = {f.subject for f in certain if f.code == "unreadable-message"}
    actions += [_quarantine(message) for message in snapshot.unreadable if message.sha256 in told]
    return plans.make(snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions)


def _stop(snapshot: Snapshot, finding: Finding) -> Action:
    messages = [m for m in (*snapshot.waiting, *snapshot.unacked) if m.task_id == finding.subject]
    running = next((t for t in snapshot.held if t.task_id == finding.subject and t.place == "active"), None)
    node = next((n for n in snapshot.nodes if running and n.name == running.node), None)
    terminate = node is not None and node.can_terminate
    if running and not terminate:
        pool = f"a {node.pool} pool" if node and node.pool else "its pool"
        effect = f"Revoked everywhere; {pool} cannot end a running task, so it runs until {running.node} is restarted."
    elif running:
        effect = f"Ended on {running.node} and revoked everywhere; its work so far is lost."
    else:
        effect = "Revoked everywhere; every copy of its message is kept in quarantine."
    return Action(
        kind=Kind.STOP,
        subject=finding.subject,
        task=finding.task,
        source=", ".join(
            sorted(
                {m.queue if isinstance(m, WaitingMessage) else "unacked" for m in messages}
                | ({"active"} if running else set())
            )
        ),
        destination="quarantine",
        copies=tuple(_copy(message) for message in messages),
        node=running.node if running else "",
        terminate=terminate,
        why=finding.code,
        effect=effect,
    )


def _restore(message: UnackedMessage) -> Action:
    return Action(
        kind=Kind.RESTORE,
        subject=message.task_id,
        task=message.task,
        source="unacked",
        destination=message.queue,
        copies=(_copy(message),),
        why="orphaned-unacked",
        effect=f"Back to {message.queue}, next to be served, marked redelivered.",
    )


def _quarantine(message: UnreadableMessage) -> Action:
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


def _copy(message: Message) -> Copy:
    return Copy(
        place="unacked" if isinstance(message, UnackedMessage) else "waiting",
        key=message.key,
        queue=message.queue,
        priority=message.priority,
        delivery_tag=message.delivery_tag,
        sha256=message.sha256,
        score=getattr(message, "delivered_at", None),
    )
