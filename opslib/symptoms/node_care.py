"""How nodes are set up, and how long results live → what works today and causes an incident one day."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from opslib import sizes
from opslib.durations import spell
from opslib.facts.care import Care, NodeCare, ResultLife, TaskCare
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity
from opslib.naming import named

RUNBOOK = "health-check"
#: A task that has run for so long is a long one, and what was prefetched behind it waits as long.
LONG_S = 600.0
#: Results without an end, below which they are somebody's exception.
ENDLESS = 100
_MOST = 10
#: Pools that enforce no time limit, whatever the settings say.
_UNLIMITED_POOLS = frozenset({"solo", "threads"})
#: Versions below which something is known to go wrong, with what that is.
_OLD = {
    "celery": ((5, 5), "after a lost connection such a node may answer and take no more messages"),
    "kombu": ((5, 5), "after a lost connection such a node may answer and take no more messages"),
    "redis-py": ((4, 5, 4), "a cut-off command may leave its answer to the next one"),
}


def judge(snapshot: Snapshot, care: Care, *, memory_bytes: int, full_percent: int) -> Iterator[Finding]:
    """
    Say which nodes, settings and results are a risk. The boundaries count as wrong.

    Args:
        memory_bytes: Memory that a node has; 0 where nobody said, and then it is not judged.

        full_percent: Share of it from which it is nearly used up.
    """
    if memory_bytes:
        yield from _memory(snapshot, memory_bytes, full_percent)
    yield from _versions(care.nodes)
    yield from _no_time_limit(snapshot, care.nodes)
    yield from _no_end_of_retries(snapshot)
    yield from _visibility(snapshot, care.nodes)
    yield from _prefetch(snapshot)
    yield from _comes_back(care.nodes)
    yield from _endless(care.results, care.nodes)


def _memory(snapshot: Snapshot, limit: int, percent: int) -> Iterator[Finding]:
    """Judge the highest that a node's main process ever had; of its pool's processes no node says anything."""
    for node in snapshot.answering:
        if node.memory_bytes * 100 < limit * percent:
            continue
        rest = (
            " That is its main process alone: what its pool takes comes on top, and no node tells it."
            if node.pool == "prefork"
            else ""
        )
        yield Finding(
            code="worker-memory",
            severity=Severity.CRITICAL if node.memory_bytes >= limit else Severity.ATTENTION,
            subject=node.name,
            message=(
                f"It has had up to {sizes.spell(node.memory_bytes)} of {sizes.spell(limit)} since it started, "
                f"{node.memory_bytes * 100 // limit} %.{rest}"
            ),
            evidence={
                "peak_bytes": node.memory_bytes,
                "limit_bytes": limit,
                "scheduled": sum(task.node == node.name and task.place == "scheduled" for task in snapshot.held),
                "uptime_s": node.uptime_s,
            },
            hint=(
                "Tasks that wait for their time take about 9 KiB each in the main process; what tasks themselves take "
                "is bounded by worker_max_tasks_per_child and worker_max_memory_per_child. A restart gives it back."
            ),
            runbook=RUNBOOK,
        )


def _versions(nodes: Sequence[NodeCare]) -> Iterator[Finding]:
    for what, (least, why) in _OLD.items():
        old = {node.name: node.versions[what] for node in nodes if _older(node.versions.get(what, ""), least)}
        if old:
            yield Finding(
                code="celery-version",
                severity=Severity.ATTENTION,
                subject=what,
                message=f"{_nodes(old)} {_run(old)} {what} {_some(sorted(set(old.values())))}: {why}.",
                evidence={"versions": _counted(old.values()), "nodes": list(old)[:_MOST]},
                hint=f"Upgrade {what} to {'.'.join(map(str, least))} or later, all nodes of a queue together.",
                runbook=RUNBOOK,
            )
    series = defaultdict(list)
    for node in nodes:
        if version := node.versions.get("celery", ""):
            series[".".join(version.split(".")[:2])].append(node.name)
    if len(series) > 1:
        yield Finding(
            code="celery-version",
            severity=Severity.ATTENTION,
            subject="celery (several)",
            message=(
                f"Nodes run Celery {_some(sorted(series))} side by side; chords that both work on may never be "
                "complete, as 5.7 counts their members in another way."
            ),
            evidence={"nodes": {version: len(names) for version, names in sorted(series.items())}},
            hint="Bring all nodes to one version; until then, let chords end before other nodes take over.",
            runbook=RUNBOOK,
        )


def _older(version: str, least: tuple[int, ...]) -> bool:
    parts = tuple(int(part) for part in version.split(".")[: len(least)] if part.isdigit())
    return bool(parts) and parts < least


# --- settings ---


def _risk(subject: str, message: str, hint: str, **evidence: object) -> Finding:
    return Finding(
        code="risky-setting",
        severity=Severity.ATTENTION,
        subject=subject,
        message=message,
        evidence=evidence,
        hint=hint,
        runbook=RUNBOOK,
    )


def _limit_of(node: NodeCare, task: TaskCare) -> float | None:
    """Return after how long a task ends for sure; a soft limit asks it to, and counts where there is no other."""
    return task.time_limit_s or node.time_limit_s or task.soft_time_limit_s or node.soft_time_limit_s


def _no_time_limit(snapshot: Snapshot, nodes: Sequence[NodeCare]) -> Iterator[Finding]:
    pools = {node.name: node.pool for node in snapshot.answering}
    idle = sorted(node.name for node in nodes if pools.get(node.name) in _UNLIMITED_POOLS)
    without: dict[str, set[str]] = defaultdict(set)
    late: set[str] = set()
    for node in nodes:
        for task in node.tasks:
            if _limit_of(node, task) is None or node.name in idle:
                without[task.name].add(node.name)
                late |= {task.name} if task.acks_late else set()
    if not without:
        return
    names = sorted(set().union(*without.values()))
    twice = (
        f" {len(late):,} of them {_are(late)} acknowledged late: after {spell(snapshot.visibility_timeout_s)} another "
        "node runs them beside the first."
        if late
        else ""
    )
    pool = f" A {_some(sorted({pools[name] for name in idle}))} pool enforces none, whatever is set." if idle else ""
    yield _risk(
        "task_time_limit",
        f"{len(without):,} task{'s' * (len(without) != 1)} may run for ever on {_some(names)}: one that hangs keeps "
        f"its process until somebody ends it.{twice}{pool}",
        "Set task_time_limit, and task_soft_time_limit a little below it, for all; give the long ones their own.",
        tasks=sorted(without)[:_MOST],
        acknowledged_late=sorted(late)[:_MOST],
        nodes=names[:_MOST],
    )


def _no_end_of_retries(snapshot: Snapshot) -> Iterator[Finding]:
    tasks = {task.name for node in snapshot.answering for task in node.tasks if task.max_retries is None}
    if tasks:
        yield _risk(
            "max_retries",
            f"{_some(sorted(tasks))} {_have(tasks)} no max_retries: if {'it is' if len(tasks) == 1 else 'they are'} "
            "retried after an error that stays, that never ends.",
            "Give each of them max_retries and a backoff (retry_backoff, retry_jitter).",
            tasks=sorted(tasks)[:_MOST],
        )


def _visibility(snapshot: Snapshot, nodes: Sequence[NodeCare]) -> Iterator[Finding]:
    own = {node.name: node.visibility_timeout_s for node in snapshot.answering if node.visibility_timeout_s}
    if len(set(own.values())) > 1:
        yield _risk(
            "visibility_timeout (several)",
            f"Nodes differ: {', '.join(spell(value) for value in sorted(set(own.values())))}. Each applies its own to "
            "the messages of all, so the shortest counts.",
            "Give every node and every producer the same broker_transport_options.",
            timeouts={name: spell(value) for name, value in list(own.items())[:_MOST]},
        )
    limit_s = snapshot.visibility_timeout_s
    over = {
        task.name: limit
        for node in nodes
        for task in node.tasks
        if task.acks_late and (limit := _limit_of(node, task) or 0.0) >= limit_s
    }
    now = snapshot.taken_at.timestamp()
    for held in snapshot.held:
        is_open = held.place == "active" and not held.acknowledged and held.started_at is not None
        if is_open and now - (held.started_at or now) >= limit_s:
            over[held.task] = max(over.get(held.task, 0.0), now - (held.started_at or now))
    if over:
        yield _risk(
            "visibility_timeout",
            f"{_some(sorted(over))} may run for {spell(max(over.values()))} and {_are(over)} acknowledged late; after "
            f"{spell(limit_s)} the message is delivered again, and the task runs twice.",
            "Set visibility_timeout on every node above the longest task and ETA, or the time limit below it.",
            tasks=sorted(over)[:_MOST],
            visibility_timeout_s=limit_s,
            timeout_said_by=snapshot.visibility_source,
        )


def _prefetch(snapshot: Snapshot) -> Iterator[Finding]:
    now = snapshot.taken_at.timestamp()
    held = Counter((task.node, task.place) for task in snapshot.held)
    long = {
        task.node: now - task.started_at
        for task in sorted(snapshot.held, key=lambda task: -(task.started_at or 0.0))
        if task.place == "active" and task.started_at is not None and now - task.started_at >= LONG_S
    }
    behind = {
        node.name: held[node.name, "reserved"]
        for node in snapshot.answering
        if node.name in long
        and held[node.name, "reserved"]
        and node.prefetch - held[node.name, "scheduled"] > node.concurrency
    }
    if behind:
        yield _risk(
            "worker_prefetch_multiplier",
            f"{sum(behind.values()):,} message{'s' * (sum(behind.values()) != 1)} wait inside {_some(sorted(behind))} "
            f"behind tasks that have been running for up to {spell(max(long[name] for name in behind))}, and no other "
            "node can take them.",
            "Set worker_prefetch_multiplier = 1 with acks_late where tasks are long, or worker_disable_prefetch "
            "(Celery 5.6 and later); give long tasks a queue and nodes of their own.",
            reserved={name: behind[name] for name in sorted(behind)[:_MOST]},
        )


def _comes_back(nodes: Sequence[NodeCare]) -> Iterator[Finding]:
    tasks = {task.name for node in nodes for task in node.tasks if task.acks_late and task.comes_back}
    if tasks:
        yield _risk(
            "task_reject_on_worker_lost",
            f"{_some(sorted(tasks))} {'goes' if len(tasks) == 1 else 'go'} back to the queue when a process dies of "
            f"{'it' if len(tasks) == 1 else 'them'}: a message that kills its process does so again and again, without "
            "an end and without a count.",
            "Use it only for tasks that cannot kill their process; bound the memory of processes by "
            "worker_max_memory_per_child; have dead letters captured, so that it is seen.",
            tasks=sorted(tasks)[:_MOST],
        )


# --- results ---


def _endless(life: ResultLife | None, nodes: Sequence[NodeCare]) -> Iterator[Finding]:
    if life is None or life.estimate < ENDLESS:
        return
    setters = [node.name for node in nodes if node.results_for_ever]
    how = "" if life.exact else f", estimated from {life.looked:,} that were looked at"
    who = f" On {_some(setters)} result_expires is off." if setters else ""
    yield Finding(
        code="results-without-ttl",
        severity=Severity.ATTENTION,
        subject="results",
        message=(
            f"{'' if life.exact else 'About '}{life.estimate:,} of {life.total:,} results never expire{how}: they stay "
            f"until somebody removes them.{who}"
        ),
        evidence={"results": life.total, "looked_at": life.looked, "without_end": life.endless},
        hint="Set result_expires, and ignore_result for tasks of which nobody reads one.",
        runbook="weekly-cleanup",
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common(_MOST))


def _some(names: Sequence[str]) -> str:
    return named(names, 3)


def _nodes(names: Iterable[str]) -> str:
    return _some(sorted(names))


def _run(names: Sequence[str] | dict[str, str]) -> str:
    return "runs" if len(names) == 1 else "run"


def _have(names: set[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _are(names: set[str] | dict[str, float]) -> str:
    return "is" if len(names) == 1 else "are"
