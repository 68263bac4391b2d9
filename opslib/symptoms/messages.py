"""Messages in the broker → those that loop, come too early, stand twice, cannot be read, or wait for nobody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from opslib.durations import spell
from opslib.facts.messages import Message, UnackedMessage, WaitingMessage
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity
from opslib.symptoms.view import View


def retry_loops(view: View, loop_after: int) -> Iterator[Finding]:
    """Tasks whose message has been retried `loop_after` times or more."""
    loops: dict[str, WaitingMessage | UnackedMessage] = {}
    for message in view.messages:
        if message.retries >= loop_after and message.retries >= getattr(loops.get(message.task_id), "retries", 0):
            loops[message.task_id] = message
    for task_id, message in loops.items():
        wait_s = None if message.eta_at is None else message.eta_at - view.now
        then = f"; the next attempt is due in {spell(wait_s)}" if wait_s and wait_s > 0 else ""
        yield Finding(
            code="retry-loop",
            severity=Severity.CRITICAL,
            subject=task_id,
            task=message.task,
            message=f"Retried {message.retries} times{then}; {loop_after} count as a loop.",
            evidence={
                "retries": message.retries,
                "queue": message.queue,
                "eta_in_s": None if wait_s is None else round(max(0.0, wait_s), 1),
            },
            hint="Give the task max_retries and a backoff; until then it comes back for ever.",
        )


def beyond_visibility(view: View) -> Iterator[Finding]:
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


def _scheduled_too_far(view: View, message: Message, eta_at: float) -> Finding:
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


def duplicates(view: View) -> Iterator[Finding]:
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


def unreadable(snapshot: Snapshot) -> Iterator[Finding]:
    """Messages that no worker can decode."""
    for message in snapshot.unreadable:
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


def without_consumer(snapshot: Snapshot) -> Iterator[Finding]:
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
                evidence={
                    "depth": queue.depth,
                    "by_priority": dict(queue.by_priority),
                    "tasks": dict(islice(queue.by_task.items(), 10)),
                },
                hint="Start a worker with -Q for it, or see why the last one ended.",
            )
