"""What is under way → what a deployment now would interrupt or lose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from opslib.durations import spell
from opslib.facts.messages import UNKNOWN_TASK
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import HeldTask
from opslib.findings import Finding, Severity

RUNBOOK = "health-check"
_MOST = 20


def judge(snapshot: Snapshot, *, grace_s: float, held_at_most: int) -> Iterator[Finding]:
    """
    Say what speaks against restarting all nodes now.

    Args:
        grace_s: How long a node is given to end what it runs. A task that has run for as long may run for longer.

        held_at_most: Tasks that nodes may hold for their time to come, retries among them.
    """
    yield from _running(snapshot, grace_s)
    yield from _held(snapshot, held_at_most)


def _running(snapshot: Snapshot, grace_s: float) -> Iterator[Finding]:
    now = snapshot.taken_at.timestamp()
    long: dict[str, list[tuple[float, HeldTask]]] = defaultdict(list)
    for task in snapshot.held:
        if task.place == "active" and task.started_at is not None and now - task.started_at >= grace_s:
            long[task.task or UNKNOWN_TASK].append((now - task.started_at, task))
    for name, rows in sorted(long.items()):
        lost = [task for _, task in rows if task.acknowledged]
        longest_s = max(age_s for age_s, _ in rows)
        count = f"{len(rows):,} of it {'is' if len(rows) == 1 else 'are'} running, for up to {spell(longest_s)}"
        fate = (
            f"{len(lost):,} {'was' if len(lost) == 1 else 'were'} acknowledged at the start: a node that is killed "
            f"loses {'it' if len(lost) == 1 else 'them'} for good."
            if lost
            else f"A node that is killed leaves its message unacknowledged; it runs again, from its beginning, after "
            f"{spell(snapshot.visibility_timeout_s)}."
        )
        yield Finding(
            code="deploy-risk",
            severity=Severity.CRITICAL if lost else Severity.ATTENTION,
            subject=name,
            task=name,
            message=f"{count}; nodes are given {spell(grace_s)} to end. {fate}",
            evidence={
                "tasks": [task.task_id for _, task in rows[:_MOST]],
                "nodes": sorted({task.node for _, task in rows})[:_MOST],
                "acknowledged": len(lost),
                "grace_s": grace_s,
            },
            hint=(
                "Wait for them, or give nodes more time (-p grace=10m, and the same in whatever stops them); a warm "
                "shutdown (SIGTERM) takes no new task and ends after the last. If they hang: stuck-tasks."
            ),
            runbook="stuck-tasks",
        )


def _held(snapshot: Snapshot, most: int) -> Iterator[Finding]:
    by_node: dict[str, int] = defaultdict(int)
    for task in snapshot.held:
        by_node[task.node] += task.place == "scheduled"
    count = sum(by_node.values())
    if count <= most:
        return
    retries = sum(1 for message in snapshot.unacked if message.retries and message.eta_at)
    yield Finding(
        code="deploy-risk",
        severity=Severity.ATTENTION,
        subject="scheduled tasks",
        message=(
            f"{count:,} tasks wait inside nodes for their time, {retries:,} of them for another attempt; {most:,} may. "
            "A warm shutdown gives them back; a node that is killed keeps them unacknowledged for "
            f"{spell(snapshot.visibility_timeout_s)}, so that they come late and all at once."
        ),
        evidence={"by_node": {name: n for name, n in sorted(by_node.items())[:_MOST] if n}, "retries": retries},
        hint="Restart one node after the other, warmly; `retry-storm` tells whether they only retry.",
        runbook="retry-storm" if retries * 2 > count else "queue-backlog",
    )
