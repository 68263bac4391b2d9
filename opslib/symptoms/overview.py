"""A snapshot and its findings → each part of the deployment in a word, a figure and a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from opslib import sizes
from opslib.durations import spell
from opslib.facts.care import Area, ServerCare
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity, counted, worst_first
from opslib.symptoms.retries import by_task

#: A part that only a deployment has which is configured with one.
TABLES = "Task tables"
#: Each part with the findings that are about it, in the order in which a task meets them.
PARTS = {
    "Nodes": ("no-workers", "worker-silent", "worker-not-consuming", "celery-version"),
    "Node memory": ("worker-memory", "eta-flood"),
    "Queues": (
        *("queue-backlog", "queue-without-consumer", "unreadable-message", "unregistered-task", "priority-inverted"),
        "rate-limited",
    ),
    "Running tasks": ("stuck-active", "duplicate-task-id", "deploy-risk"),
    "Unacknowledged": ("orphaned-unacked", "unacked-index-mismatch", "scheduled-beyond-visibility"),
    "Retries": ("retry-storm", "retry-loop", "hopeless-retry", "retries-beyond-cap"),
    "Dead letters": (
        *("dead-letters", "dead-letters-growing", "poison-task", "dead-letters-dropped", "unreadable-letter"),
        "uncaptured-failures",
    ),
    "Results": ("zombie-result", "results-without-ttl"),
    "Redis memory": ("redis-memory", "redis-eviction"),
    "Redis data": ("redis-persistence", "save-failing", "backup-old", "redis-replica"),
    "Redis server": ("redis-version", "redis-slow", "redis-clients"),
    "Settings": ("risky-setting",),
    TABLES: ("table-finished-but-open", "table-lost", "table-stuck", "table-unknown"),
}
#: Which parts are not seen where a place was not.
_PLACES = {
    "server": ("Redis memory", "Redis data", "Redis server"),
    "keyspace": ("Queues", "Dead letters", "Results"),
    "workers": ("Nodes", "Node memory", "Running tasks", "Retries", "Unacknowledged", "Settings"),
    "waiting": ("Queues", "Retries"),
    "set aside": ("Queues",),
    "unacked": ("Unacknowledged", "Retries"),
    "results": ("Results",),
    "results' life": ("Results",),
    "dead letters": ("Dead letters",),
    "settings": ("Settings",),
    "task tables": (TABLES,),
}
_OF_NOBODY = ("Nodes", "Node memory", "Queues", "Running tasks", "Unacknowledged", "Retries", "Results", "Settings")
_WORDS = {Severity.CRITICAL: "critical", Severity.UNKNOWN: "not seen", Severity.ATTENTION: "attention"}


def areas(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    *,
    accepted: Iterable[Finding],
    judged: AbstractSet[str] | None,
    has_worker_limit: bool,
) -> tuple[Area, ...]:
    """
    Return every part.

    Args:
        accepted: Findings that somebody lives with; the part says how many.

        judged: Codes that count; None for all. A part of which none does is not judged.

        has_worker_limit: Whether it is known how much memory a node has.
    """
    by_part: dict[str, list[Finding]] = {name: [] for name in PARTS}
    for finding in findings:
        for name in _parts_of(finding):
            by_part[name].append(finding)
    lived_with = list(accepted)
    known = Counter(name for finding in lived_with for name in _parts_of(finding))
    untold = {n for finding in lived_with if finding.severity is Severity.UNKNOWN for n in _parts_of(finding)}
    rows = []
    for name, codes in PARTS.items():
        if name == TABLES and not any(row.place == "task tables" for row in snapshot.coverage):
            continue
        figure, says = _FIGURES[name](snapshot)
        wrong = worst_first(by_part[name])
        asked = judged is None or bool(judged & set(codes))
        if wrong:
            state, says = _WORDS[wrong[0].severity], _told(wrong)
        elif not asked or name in untold or not _looked(snapshot, name):
            state = "not judged"
        elif name == "Node memory" and not has_worker_limit:
            state, says = "not judged", f"{says}; worker_memory is not set" if says else "worker_memory is not set"
        else:
            state = "fine"
        if known[name]:
            says = f"{says}; {known[name]:,} accepted" if says else f"{known[name]:,} accepted"
        own = next((each for each in wrong if each.runbook != "health-check"), None)
        rows.append(
            Area(
                name=name,
                state=state,
                figure=figure,
                says=says,
                findings=len(wrong),
                runbook=own.runbook if own else "health-check" if wrong else "",
            )
        )
    return tuple(rows)


def _looked(snapshot: Snapshot, name: str) -> bool:
    """Whether anything was there by which a part could be judged: a snapshot of another runbook has less."""
    care = snapshot.care
    if name == "Settings":
        return care is not None and bool(care.nodes)
    if name in {"Redis data", "Redis server"}:
        return care is not None
    if name == TABLES:
        return False  # what became of open rows, `reconcile-tasks` looks into
    return name != "Dead letters" or snapshot.letters is not None


def in_words(rows: Sequence[Area]) -> str:
    """Return all parts in one sentence, the worst first, for a headline."""
    by_state: dict[str, list[str]] = {}
    for row in rows:
        by_state.setdefault(row.state, []).append(row.name)
    wrong = [state for state in ("critical", "not seen", "attention") if state in by_state]
    said = [f"{state.capitalize()}: {', '.join(by_state[state])}." for state in wrong]
    fine = len(by_state.get("fine", ()))
    if not said:
        return f"All {fine:,} parts that were judged are fine."
    return " ".join([*said, f"Fine: {fine:,} of {len(rows):,}."])


def _parts_of(finding: Finding) -> tuple[str, ...]:
    if finding.code == "worker-silent":
        return _PLACES["workers"]
    if finding.code == "cannot-see":
        return _OF_NOBODY if finding.subject.startswith("database ") else _PLACES.get(finding.subject, ("Nodes",))
    return tuple(name for name, codes in PARTS.items() if finding.code in codes)


def _told(findings: Sequence[Finding]) -> str:
    """Say what the findings of a part are; of a place that was not seen, only that."""
    seen = [
        code
        for finding in findings
        if finding.code not in {"cannot-see", "worker-silent"}
        for code in [finding.code] * _times(finding)
    ]
    blind = [finding for finding in findings if finding.code in {"cannot-see", "worker-silent"}]
    said = [counted(seen)] if seen else []
    said += ["not all of it was seen"] if blind and seen else []
    said += [blind[0].message.rstrip(".")] if blind and not seen else []
    return "; ".join(said)


def _times(finding: Finding) -> int:
    """Return how many things a finding tells of: all failures without a letter are one of it."""
    count = finding.evidence.get("results") if finding.code == "uncaptured-failures" else 1
    return count if isinstance(count, int) else 1


# --- the figures ---


def _nodes(snapshot: Snapshot) -> tuple[str, str]:
    nodes = snapshot.answering
    slots = sum(node.concurrency for node in nodes)
    active = sum(task.place == "active" for task in snapshot.held)
    return _many(len(nodes), "node"), f"{active:,} of {slots:,} slots busy"


def _node_memory(snapshot: Snapshot) -> tuple[str, str]:
    peak = max((node.memory_bytes for node in snapshot.answering), default=0)
    return (sizes.spell(peak), "the most that a main process took") if peak else ("–", "no node told it")


def _queues(snapshot: Snapshot) -> tuple[str, str]:
    filled = [queue for queue in snapshot.queues if queue.depth]
    many = len(snapshot.queues)
    return f"{sum(queue.depth for queue in filled):,} waiting", f"in {len(filled):,} of {many:,} queues"


def _running(snapshot: Snapshot) -> tuple[str, str]:
    now = snapshot.taken_at.timestamp()
    ages = [now - task.started_at for task in snapshot.held if task.place == "active" and task.started_at is not None]
    active = sum(task.place == "active" for task in snapshot.held)
    held = Counter(task.place for task in snapshot.held)
    longest = f"the longest for {spell(max(ages))}; " if ages else ""
    return f"{active:,} active", f"{longest}{held['scheduled']:,} scheduled"


def _unacked(snapshot: Snapshot) -> tuple[str, str]:
    return f"{len(snapshot.unacked):,} unacked", f"delivered again after {spell(snapshot.visibility_timeout_s)}"


def _retries(snapshot: Snapshot) -> tuple[str, str]:
    names = by_task(snapshot)
    most = max((name.most for name in names), default=0)
    return f"{sum(name.count for name in names):,} retrying", f"up to {most:,} times" if most else ""


def _letters(snapshot: Snapshot) -> tuple[str, str]:
    if snapshot.letters is None:
        return "–", "not looked at"
    lists = sum(each.source == "list" for each in snapshot.letters.lists)
    failed = sum(each.length for each in snapshot.letters.lists if each.source == "results")
    beside = f"; {failed:,} failed without a letter" if failed else ""
    return _many(snapshot.letters.length, "letter"), f"in {lists:,} list{'s' * (lists != 1)}{beside}"


def _results(snapshot: Snapshot) -> tuple[str, str]:
    life = snapshot.care.results if snapshot.care else None
    total = sum(snapshot.result_states.values())
    if life is None or not life.looked:
        return _many(total, "result"), ""
    about = "" if life.exact else "about "
    ends = "all of them expire" if not life.endless else f"{about}{life.estimate:,} of them never expire"
    return _many(life.total, "result"), ends if life.exact or life.endless else "all of a sample expire"


def _memory(snapshot: Snapshot) -> tuple[str, str]:
    server = snapshot.server
    policy = server.maxmemory_policy or "policy not told"
    of = f"of {sizes.spell(server.maxmemory_bytes)}" if server.maxmemory_bytes else "no limit"
    return sizes.spell(server.used_memory_bytes), f"{of}; {policy}"


def _data(snapshot: Snapshot) -> tuple[str, str]:
    care = snapshot.care.server if snapshot.care else ServerCare()
    copies = f"; {len(care.replicas):,} replica{'s' * (len(care.replicas) != 1)}" if care.replicas else ""
    if care.aof:
        return "AOF", f"every change is written down{copies}"
    if care.save_age_s is not None:
        return spell(care.save_age_s), f"since the last snapshot{copies}"
    if care.saves:
        return "RDB", f"snapshots; none since it started{copies}"
    return (
        ("not saved", f"neither snapshots nor an append-only file{copies}") if care.saves == "" else ("–", "not told")
    )


def _server(snapshot: Snapshot) -> tuple[str, str]:
    care, server = snapshot.care.server if snapshot.care else ServerCare(), snapshot.server
    most = f" of {care.maxclients:,}" if care.maxclients else ""
    return f"{server.product} {server.version}", f"{server.connected_clients:,}{most} connections"


def _settings(snapshot: Snapshot) -> tuple[str, str]:
    nodes = snapshot.care.nodes if snapshot.care else ()
    tasks = {task.name for node in nodes for task in node.tasks}
    return _many(len(tasks), "task"), f"on {len(nodes):,} node{'s' * (len(nodes) != 1)}"


def _tables(snapshot: Snapshot) -> tuple[str, str]:
    """Say how many rows are open; whether they are so rightly, the runbook that looks for their tasks can tell."""
    by = Counter[str]()
    for row in snapshot.statuses:
        by[row.standing] += row.count
    other = f"; {by['other']:,} neither open nor over" if by["other"] else ""
    return f"{by['open']:,} open", f"of {by.total():,} rows{other}"


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


_FIGURES: dict[str, Callable[[Snapshot], tuple[str, str]]] = {
    "Nodes": _nodes,
    "Node memory": _node_memory,
    "Queues": _queues,
    "Running tasks": _running,
    "Unacknowledged": _unacked,
    "Retries": _retries,
    "Dead letters": _letters,
    "Results": _results,
    "Redis memory": _memory,
    "Redis data": _data,
    "Redis server": _server,
    "Settings": _settings,
    TABLES: _tables,
}
