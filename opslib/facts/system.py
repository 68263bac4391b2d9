"""The server, queues, nodes and results as they were seen, and how much of each place that was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Result states after which Celery writes no other.
FINAL_STATES = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """
    One place that was looked into, and how much of it answered.

    Attributes:
        place: Where: workers, waiting, unacked, results, server.

        seen: How many units were read (nodes, messages, keys).

        silent: How many units are known to exist and were not read; 0 means the whole view.

        note: What a reader has to know about it, as a sentence.
    """

    place: str
    seen: int
    silent: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """
    The Redis server behind the broker.

    Attributes:
        product: "Redis" or "Valkey".

        role: "master" or "slave", as the server calls it.

        run_id: Changes at every restart; part of a plan's fingerprint.

        replication_id: Changes at a fail-over; empty where INFO hides it.

        keys: Keys in this database.

        other_databases: Keys by number of every other database that holds some.

        used_memory_bytes: Memory in use.

        maxmemory_bytes: The limit; 0 means none.

        consumers: Connections that wait in BRPOP now; None where CLIENT LIST is not permitted.
    """

    product: str
    version: str
    role: str
    mode: str
    run_id: str
    replication_id: str
    database: int
    keys: int
    other_databases: Mapping[int, int]
    uptime_s: int
    used_memory_bytes: int
    maxmemory_bytes: int
    maxmemory_policy: str
    connected_clients: int
    consumers: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ListInfo:
    """
    One list of a queue: its messages of one priority step.

    Attributes:
        priority: The step; 0 is served first on Redis.

        length: Messages waiting.

        by_task: Those that were read, by task name, the commonest first.

        expired: Those that were read and that no worker runs any more, for they have expired.
    """

    key: str
    priority: int
    length: int
    by_task: Mapping[str, int] = field(default_factory=dict)
    expired: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueInfo:
    """
    One queue with all its priority lists.

    Attributes:
        depth: Messages waiting, over all priorities.

        by_priority: Messages waiting by priority step; 0 is served first on Redis.

        consumers: Nodes that answered and consume it.

        read: Messages whose headers were read; what follows counts only these.

        by_task: Messages by task name, the commonest first.

        scheduled: Messages with an ETA.

        retrying: Messages that were retried before, by task name, the commonest first.

        odd_priorities: Messages by task name and priority, of those whose own priority is none of 0 to 9.

        lists: Its lists that hold something, the one that is served first at the head.
    """

    name: str
    depth: int
    by_priority: Mapping[int, int]
    consumers: tuple[str, ...] = ()
    read: int = 0
    by_task: Mapping[str, int] = field(default_factory=dict)
    scheduled: int = 0
    retrying: Mapping[str, int] = field(default_factory=dict)
    odd_priorities: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    lists: tuple[ListInfo, ...] = ()

    @property
    def expired(self) -> int:
        """Messages that no worker runs any more, for they have expired."""
        return sum(each.expired for each in self.lists)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldTask:
    """
    A task that a node says it holds.

    Attributes:
        place: "active", "reserved" or "scheduled".

        started_at: Epoch seconds, by the node's clock; None while it is not active.

        acknowledged: Whether its message has left the broker.
    """

    place: str
    node: str
    task_id: str
    task: str
    queue: str
    started_at: float | None = None
    eta_at: float | None = None
    acknowledged: bool = False
    redelivered: bool = False
    pid: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """
    What a node says of a task that it can run.

    Attributes:
        rate_limit: As the node has it: "10/m"; empty for none.

        max_retries: Retries after which it fails for good; None for no end.
    """

    name: str
    rate_limit: str = ""
    max_retries: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeInfo:
    """
    A Celery worker, by the name it gives itself.

    Attributes:
        answered: False for a name that only the broker remembers.

        pool: prefork, solo, threads, gevent or eventlet; empty if it did not say.

        processes: Pids of its pool children.

        prefetch: How many messages it may hold unacknowledged.

        accepted: Tasks accepted since it started.

        tasks: What it can run, but for Celery's own.

        memory_bytes: Peak resident memory of its main process.

        visibility_timeout_s: As this node has it; None if it did not say.
    """

    name: str
    answered: bool
    pool: str = ""
    concurrency: int = 0
    processes: tuple[int, ...] = ()
    prefetch: int = 0
    queues: tuple[str, ...] = ()
    accepted: int = 0
    tasks: tuple[TaskInfo, ...] = ()
    memory_bytes: int = 0
    uptime_s: int = 0
    visibility_timeout_s: float | None = None

    @property
    def rate_limited(self) -> tuple[str, ...]:
        """Tasks with a rate limit: those held back by one are in no reply (facts of Celery 5.7)."""
        return tuple(task.name for task in self.tasks if task.rate_limit)

    @property
    def can_terminate(self) -> bool:
        """Whether its pool can end one running task without ending the worker."""
        return self.pool in {"prefork", "gevent", "eventlet"}

    @property
    def can_resize(self) -> bool:
        """Whether its pool can change its size while it runs; the others answer with an error of Python's."""
        return self.pool in {"prefork", "gevent", "eventlet"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResult:
    """
    A result that is not final, or that was asked for by id.

    Attributes:
        state: Celery's own word; PENDING is never stored, so its absence proves nothing.

        node: Node that wrote it; empty if the result does not say.

        pid: Pool child that wrote it.

        expires_at: Epoch seconds; None for never.
    """

    task_id: str
    key: str
    state: str
    task: str = ""
    node: str = ""
    pid: int | None = None
    queue: str = ""
    retries: int = 0
    exception: str = ""
    expires_at: float | None = None
    sha256: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusCount:
    """
    All rows of one status.

    Attributes:
        standing: "open", "closed", or "other" for one that is neither and yet no end.
    """

    table: str
    status: str
    standing: str
    count: int
