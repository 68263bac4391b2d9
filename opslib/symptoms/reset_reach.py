"""A Snapshot → what a reset would not reach, and after one, what of the old it has left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from opslib.durations import spell
from opslib.facts.messages import UnackedMessage
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity
from opslib.plan import Action, Kind, Outcome, Status
from opslib.symptoms import serving


def beyond(snapshot: Snapshot) -> Iterator[Finding]:
    """What an order to nodes would not reach: those that stay silent or do not listen, and pools that end no task."""
    loose = unheld(snapshot)
    if snapshot.silent_nodes:
        yield _finding(
            "a silent node",
            f"{silent(snapshot)} would not hear that they shall drop what they hold; "
            f"{len(loose):,} unacknowledged messages may be theirs and are not taken.",
            {"silent": snapshot.silent_nodes, "messages": len(loose)},
            "End its process on its machine (kill -9 for one that hangs), then run this again: then nobody holds them.",
        )
    consumers = snapshot.server.consumers
    if hidden(snapshot):
        yield _finding(
            "connections without remote control",
            f"{consumers} connections consume, {snapshot.receivers} listen to orders: the others cannot be paused, and "
            "end nothing that they run.",
            {"consumers": consumers, "listening": snapshot.receivers, "messages": len(loose)},
            "What waits is taken from them all the same. What they run, only their own end ends: stop these workers.",
        )
    stuck = [
        (each, node)
        for each in snapshot.held
        for node in snapshot.answering
        if each.place == "active" and node.name == each.node and not node.can_terminate
    ]
    for name in sorted({node.name for _, node in stuck}):
        of_node = [each for each, node in stuck if node.name == name]
        pool = next(node.pool for _, node in stuck if node.name == name) or "unknown"
        yield _finding(
            name,
            f"{len(of_node):,} task{'s' * (len(of_node) != 1)} run{'s' * (len(of_node) == 1)} on it, and its {pool} "
            "pool cannot end one.",
            {"running": len(of_node), "pool": pool},
            "A reset waits for them, and stops at that gate if they take longer: restart that node, then resume.",
        )
    copies = Counter((each.task_id, each.node) for each in snapshot.held if each.place == "active")
    for (task_id, name), count in copies.items():
        if count > 1:
            yield _finding(
                task_id,
                f"It runs {count} times at once on {name}, and an order ends only one of them.",
                {"node": name, "copies": count},
                "Restart that node. It was delivered again while it ran: the visibility timeout is too short for it.",
            )


def left_behind(before: Snapshot, after: Snapshot, outcomes: Sequence[Outcome]) -> Iterator[Finding]:
    """What was delivered before a reset and is unacknowledged still: it comes back once its timeout is over."""
    closed = [o.action.id for o in outcomes if o.action.kind is Kind.AWAIT and o.status is Status.FAILED]
    stops = [o.action for o in outcomes if o.action.kind is Kind.STOP and _is_held(o.action)]
    meant = [action for action in stops if action.id < min(closed, default=action.id + 1)]
    if not meant or not any(outcome.status is Status.APPLIED for outcome in outcomes):
        return
    old = {m.task_id for m in before.unacked} | {each.task_id for each in before.held}
    everything = any(action.subject == "*" for action in meant)
    queues = {action.subject for action in meant}
    tasks = {action.only.task if action.only else "*" for action in meant}
    left = [
        m
        for m in after.unacked
        if m.task_id in old and (everything or m.queue in queues) and any(fnmatchcase(m.task, t) for t in tasks)
    ]
    for message in left:
        unsure = doubt(after)
        yield Finding(
            code="reset-left-behind",
            severity=Severity.UNKNOWN if unsure else Severity.CRITICAL,
            subject=message.task_id,
            task=message.task,
            message=f"It was unacknowledged before the reset, and is so still; {_comes_back(after, message)}.",
            evidence={"queue": message.queue, "delivery_tag": message.delivery_tag, "doubt": unsure or "none"},
            hint="End the worker that does not answer, and run this again." if unsure else "Run this again.",
            runbook="emergency-reset",
        )


def unheld(snapshot: Snapshot) -> list[UnackedMessage]:
    """Return the unacknowledged messages of tasks that no answering node holds."""
    held = {each.task_id for each in snapshot.held}
    return [message for message in snapshot.unacked if message.task_id not in held]


def hidden(snapshot: Snapshot) -> int:
    """Return how many connections consume and belong to nobody who listens to orders."""
    return max(0, (snapshot.server.consumers or 0) - snapshot.receivers)


def doubt(snapshot: Snapshot) -> str:
    """Return why a message that no answering node holds may have an owner; empty if it cannot."""
    if not snapshot.receivers and snapshot.server.consumers is None:
        return "CLIENT LIST is not permitted, so that a worker which takes no orders cannot be ruled out"
    return serving.unheard(snapshot)


def silent(snapshot: Snapshot) -> str:
    """Return how many nodes did not answer, such as "1 node"."""
    return f"{snapshot.silent_nodes:,} node{'s' * (snapshot.silent_nodes != 1)}"


def _finding(subject: str, message: str, evidence: dict[str, object], hint: str) -> Finding:
    return Finding(
        code="reset-beyond-reach",
        severity=Severity.ATTENTION,
        subject=subject,
        message=message,
        evidence=evidence,
        hint=hint,
        runbook="emergency-reset",
    )


def _is_held(action: Action) -> bool:
    return any(copy.place == "held" for copy in action.copies)


def _comes_back(snapshot: Snapshot, message: UnackedMessage) -> str:
    if message.delivered_at is None:
        return "it is not in the index, so that nothing brings it back"
    due_s = snapshot.visibility_timeout_s - (snapshot.taken_at.timestamp() - message.delivered_at)
    return f"it comes back within {spell(max(0.0, due_s))}"
