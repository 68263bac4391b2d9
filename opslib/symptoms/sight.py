"""How whole a Snapshot is → what could not be seen, and which nodes do not answer or do not work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity


def judge(snapshot: Snapshot) -> Iterator[Finding]:
    """Say what could not be seen and which nodes do not work; every runbook's judgement begins with it."""
    yield from unseen(snapshot)
    yield from absent(snapshot)
    yield from not_consuming(snapshot)


def unseen(snapshot: Snapshot) -> Iterator[Finding]:
    """Say what could not be seen: places, and nodes that stayed silent."""
    yield from _cannot_see(snapshot)
    yield from _silent(snapshot)


def _cannot_see(snapshot: Snapshot) -> Iterator[Finding]:
    for row in snapshot.silent_places:
        if row.place == "workers" and snapshot.silent_nodes:
            continue  # told as worker-silent, with names
        yield Finding(
            code="cannot-see",
            severity=Severity.UNKNOWN,
            subject=row.place,
            message=f"{row.place}: {row.silent:,} not seen. {row.note}".strip(),
            evidence={"seen": row.seen, "silent": row.silent},
            hint="What is not seen may be stuck too; the verdict stays unknown until it is.",
        )
    delivered = any(row.place == "unacked" and row.seen for row in snapshot.coverage)
    if not snapshot.queues and not snapshot.receivers and not (snapshot.unacked or delivered):
        yield _empty(snapshot)


def _empty(snapshot: Snapshot) -> Finding:
    """No queue, no node, no message: more often the wrong place than a quiet one."""
    server = snapshot.server
    elsewhere = ", ".join(f"{n} ({keys:,} keys)" for n, keys in server.other_databases.items())
    hints = []
    if snapshot.foreign_prefixes:
        prefixes = ", ".join(map(repr, snapshot.foreign_prefixes))
        hints.append(f"Celery's keys stand under the prefix {prefixes}: set global_keyprefix.")
    if elsewhere:
        hints.append(f"Other databases of this server hold keys: {elsewhere}.")
    return Finding(
        code="cannot-see",
        severity=Severity.UNKNOWN,
        subject=f"database {server.database}",
        message=f"Nothing of Celery is in database {server.database}: no queue, no message, no node.",
        evidence={"keys": server.keys, "uptime_s": server.uptime_s},
        hint=" ".join(hints) or "Check that this is the broker that the application uses.",
    )


def _silent(snapshot: Snapshot) -> Iterator[Finding]:
    if not snapshot.silent_nodes:
        return
    absent = [node.name for node in snapshot.nodes if not node.answered]
    yield Finding(
        code="worker-silent",
        severity=Severity.UNKNOWN,
        subject=", ".join(absent[:5]) or "a node without a name",
        message=f"{snapshot.silent_nodes} of {snapshot.receivers} nodes heard the question and did not answer.",
        evidence={"receivers": snapshot.receivers, "answered": len(snapshot.answering), "one_of": absent[:20]},
        hint="A node that is stopped, hung, or busy in a solo pool answers nothing; what it holds may look orphaned.",
    )


def absent(snapshot: Snapshot) -> Iterator[Finding]:
    """Nobody heard the question: no worker at all, or workers that do not listen to control messages."""
    work = sum(queue.depth for queue in snapshot.queues) + len(snapshot.unacked)
    unasked = not snapshot.nodes and any(row.place == "workers" for row in snapshot.silent_places)
    if snapshot.receivers or unasked or not (work or snapshot.queues):
        return
    consumers = snapshot.server.consumers
    if consumers:
        yield Finding(
            code="cannot-see",
            severity=Severity.UNKNOWN,
            subject="workers",
            message=f"No node listens to control messages, yet connections consume: {consumers}.",
            evidence={"receivers": 0, "connections_in_brpop": consumers},
            hint="Is worker_enable_remote_control off, or is global_keyprefix of the target another than theirs?",
        )
        return
    yield Finding(
        code="no-workers",
        severity=Severity.CRITICAL if work else Severity.ATTENTION,
        subject=snapshot.target,
        message=f"No node is connected; messages that wait for one: {work:,}.",
        evidence={"receivers": 0, "connections_in_brpop": consumers},
        hint="Start the workers; see their logs for why they ended.",
    )


def not_consuming(snapshot: Snapshot) -> Iterator[Finding]:
    """A node that consumes nothing, or that left work lying beside it through both looks."""
    for node in snapshot.answering:
        if not node.queues:
            yield Finding(
                code="worker-not-consuming",
                severity=Severity.ATTENTION,
                subject=node.name,
                message=f"{node.name} answers and consumes no queue.",
                evidence={"queues": 0, "accepted": node.accepted},
                hint="Somebody cancelled its consumers: `celery control add_consumer QUEUE`, or restart it.",
            )
    if snapshot.earlier is None:
        return
    before = {node.name: node for node in snapshot.earlier.nodes if node.answered}
    lying = {queue.name for queue in snapshot.earlier.queues if queue.depth} & {
        queue.name for queue in snapshot.queues if queue.depth
    }
    busy = {task.node for reading in (snapshot, snapshot.earlier) for task in reading.held if task.place != "scheduled"}
    held = Counter(task.node for task in snapshot.held)
    for node in snapshot.answering:
        beside = lying & set(node.queues)
        idle = node.name not in busy and node.name in before and before[node.name].accepted == node.accepted
        is_full = 0 < node.prefetch <= held[node.name]  # of tasks that wait for their time: it may take no more
        if beside and idle and not is_full and not node.rate_limited:
            yield Finding(
                code="worker-not-consuming",
                severity=Severity.CRITICAL,
                subject=node.name,
                message=f"{node.name} is idle and takes nothing from {', '.join(sorted(beside))}, where messages wait.",
                evidence={
                    "accepted": node.accepted,
                    "queues": sorted(beside),
                    "connections_in_brpop": snapshot.server.consumers,
                },
                hint="A worker that lost its consumer after a connection error does this: restart it.",
            )
