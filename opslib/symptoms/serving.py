"""The nodes, and what waits for them → what keeps messages from being served although somebody consumes their queue."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite

from opslib.durations import pace, spell
from opslib.errors import typed
from opslib.facts.messages import UNKNOWN_TASK
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import NodeInfo
from opslib.findings import Finding, Severity

#: What a queue's counts call that which has no name of its own.
UNNAMED = frozenset({UNKNOWN_TASK, "(unreadable)", "(others)"})
#: How what a person may do about a queue is begun; a hint is read where another runbook may have found it.
RELIEF = "ops run queue-backlog -p"
#: What waits for less at its rate limit is only passing by.
_HELD_BACK_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """
    What some nodes can run at once.

    Attributes:
        busy: Tasks that they run now.
    """

    busy: int
    total: int

    @property
    def free(self) -> int:
        """How many more they could run."""
        return max(0, self.total - self.busy)

    def __str__(self) -> str:
        return f"{self.busy:,} of {self.total:,} busy"


def slots(snapshot: Snapshot, names: Iterable[str]) -> Slots:
    """Return what these nodes can run at once."""
    wanted = set(names)
    total = sum(node.concurrency for node in snapshot.answering if node.name in wanted)
    busy = len({(t.node, t.task_id) for t in snapshot.held if t.place == "active" and t.node in wanted})
    return Slots(busy=busy, total=total)


def unheard(snapshot: Snapshot) -> str:
    """Say why some node may consume what no answering node does; empty if none can."""
    if snapshot.silent_nodes:
        return "a node stayed silent"
    if any(row.place == "workers" and row.silent for row in snapshot.coverage):
        return "not every node could be asked"
    if snapshot.server.consumers is not None and snapshot.server.consumers > snapshot.receivers:
        return "more connections consume than nodes answer"
    return ""


def unregistered(snapshot: Snapshot) -> Iterator[Finding]:
    """
    Tasks that wait where a node would take them that does not have them: it drops the message (facts §1.4).

    Critical where no node that consumes the queue has the task, attention where only some have not. Celery's own tasks
    are on every node, and in no node's list.
    """
    waits: dict[str, Counter[str]] = defaultdict(Counter)
    without: dict[str, set[str]] = defaultdict(set)
    having: dict[str, set[str]] = defaultdict(set)
    has = {node.name: {task.name for task in node.tasks} for node in snapshot.answering}
    for queue in snapshot.queues:
        nodes = [name for name in queue.consumers if name in has]
        for task, count in queue.by_task.items() if nodes and queue.depth else ():
            lacking = {name for name in nodes if task not in has[name]}
            if lacking and task not in UNNAMED and not task.startswith("celery."):
                waits[task][queue.name] += count
                without[task] |= lacking
                having[task] |= set(nodes) - lacking
    doubt = unheard(snapshot)
    for task, queues in waits.items():
        yield _unregistered(task, queues, sorted(without[task]), sorted(having[task]), doubt)


def _unregistered(task: str, queues: Counter[str], without: list[str], having: list[str], doubt: str) -> Finding:
    where = _some(sorted(queues))
    count = f"{queues.total():,} message{'s' * (queues.total() != 1)}"
    if having:
        said = (
            f"Of the nodes that consume {where}, {_some(without)} {'does' if len(without) == 1 else 'do'} not have it"
        )
        severity = Severity.ATTENTION
    else:
        said = f"No node that answered and consumes {where} has it"
        severity = Severity.UNKNOWN if doubt else Severity.CRITICAL
    lost = f"{count} wait{'s' * (queues.total() == 1)}, and such a node drops each that it takes"
    unsure = f"; but {doubt}" if doubt and not having else ""
    return Finding(
        code="unregistered-task",
        severity=severity,
        subject=task,
        message=f"{said}: {lost}{unsure}.",
        evidence={"waiting": dict(queues), "without": without[:20], "with": having[:20]},
        hint=(
            f"Do not wait: pause the queue (`{RELIEF} do=pause -p queue={typed(next(iter(queues)))}`), deploy "
            "the task, resume."
            " A name that is misspelt, or a worker started with another app, does this too; what was dropped has the "
            "result FAILURE NotRegistered."
        ),
        runbook="queue-backlog",
    )


def rate_limited(snapshot: Snapshot) -> Iterator[Finding]:
    """
    Tasks whose messages wait for a minute or longer at the rate that every node which would take them may run them.

    The limit is each node's own. Where one of these nodes has none, the task is not held back.
    """
    limits = {node.name: {task.name: _pace(task.rate_limit) for task in node.tasks} for node in snapshot.answering}
    waits: Counter[str] = Counter()
    nodes: dict[str, set[str]] = defaultdict(set)
    where: dict[str, list[str]] = defaultdict(list)
    for queue in snapshot.queues:
        serving = [name for name in queue.consumers if name in limits]
        for task, count in queue.by_task.items() if queue.depth else ():
            having = [name for name in serving if task in limits[name]]
            if having and all(limits[name][task] for name in having):
                waits[task] += count
                nodes[task] |= set(having)
                where[task].append(queue.name)
    for task, count in waits.items():
        rate = sum(limits[name][task] for name in nodes[task])
        if count / rate >= _HELD_BACK_S:
            yield _rate_limited(snapshot, task, count, sorted(nodes[task]), where[task], rate)


def _rate_limited(
    snapshot: Snapshot, task: str, count: int, nodes: list[str], where: list[str], rate: float
) -> Finding:
    said = {node.name: t.rate_limit for node in snapshot.answering for t in node.tasks if t.name == task}
    limits = sorted({said[name] for name in nodes})
    each = " each" if len(nodes) > 1 else ""
    return Finding(
        code="rate-limited",
        severity=Severity.ATTENTION,
        subject=task,
        message=(
            f"{count:,} wait in {_some(where)}, and {_some(nodes)} may run {' or '.join(limits)}{each}: "
            f"that takes {spell(count / rate)}."
        ),
        evidence={
            "waiting": count,
            "rate_limits": [f"{name}: {said[name]}" for name in nodes[:20]],
            "needs_s": round(count / rate, 1),
            **({"accepted_in_window": snapshot.window.accepted.get(task, 0)} if snapshot.window else {}),
        },
        hint=(
            f"`{RELIEF} do=limit` alone changes little: what a node has received under the old limit goes on at that "
            "pace, in no answer and in no queue. Pause the queue, restart its nodes warmly (SIGTERM), which gives "
            "those messages back, then set the limit and undo the pause."
        ),
        runbook="queue-backlog",
    )


def _pace(rate_limit: str) -> float:
    """Return how many a second a node's rate limit allows; 0 for none, and for one that nobody can read."""
    try:
        return pace(rate_limit)
    except ValueError:
        return 0.0


def eta_flood(snapshot: Snapshot, scheduled_per_node: int) -> Iterator[Finding]:
    """
    Nodes that are full of tasks which wait for their time, and nodes that hold `scheduled_per_node` of them or more.

    A node takes such a task at once and raises its prefetch by one for it, so ordinary tasks flow on (facts §2.2).
    Where `worker_eta_task_limit` ends that, as many scheduled tasks as its prefetch leave room for no other.
    """
    scheduled = Counter[str]()
    due: dict[str, float] = {}
    for task in snapshot.held:
        if task.place == "scheduled":
            scheduled[task.node] += 1
            due[task.node] = min(due.get(task.node, inf), task.eta_at or inf)
    depths = {queue.name: queue.depth for queue in snapshot.queues}
    for node in snapshot.answering:
        waiting = sum(depths.get(name, 0) for name in node.queues)
        room = slots(snapshot, [node.name])
        full = 0 < node.prefetch <= scheduled[node.name] and bool(waiting) and bool(room.free)
        if full or scheduled[node.name] >= scheduled_per_node:
            next_at = due.get(node.name, inf)
            next_s = max(0.0, next_at - snapshot.taken_at.timestamp()) if isfinite(next_at) else None
            yield _eta_flood(node, scheduled[node.name], waiting, room, next_s, full=full)


def _eta_flood(
    node: NodeInfo, scheduled: int, waiting: int, room: Slots, next_s: float | None, *, full: bool
) -> Finding:
    due = f" until {spell(next_s)} from now, when the next of them is due" if next_s is not None else ""
    return Finding(
        code="eta-flood",
        severity=Severity.CRITICAL if full else Severity.ATTENTION,
        subject=node.name,
        message=(
            f"{scheduled:,} tasks wait in it for their time and fill its prefetch of {node.prefetch:,}: with "
            f"{room.free:,} of {room.total:,} slots free it takes none of the {waiting:,} messages in its queues{due}."
            if full
            else f"{scheduled:,} tasks wait in its memory for their time; it took them from the queue long before."
        ),
        evidence={
            "scheduled": scheduled,
            "prefetch": node.prefetch,
            "waiting": waiting,
            "slots": str(room),
            "next_due_in_s": None if next_s is None else round(next_s, 1),
            "memory_bytes": node.memory_bytes,
        },
        hint=(
            "worker_eta_task_limit does this once it is reached: raise it, or give tasks with an ETA a queue and "
            "workers of their own."
            if full
            else "worker_eta_task_limit (Celery 5.6) bounds it; but at the bound a node takes ordinary tasks no more "
            "either, so give tasks with an ETA a queue of their own, or keep what is far off in beat or a table."
        ),
        runbook="queue-backlog",
    )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' * (len(names) > 3)}"
