"""What was seen, as frozen rows: one reading of a deployment, and what of it stayed unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

UNKNOWN_TASK = "(unknown)"
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
class QueueInfo:
    """
    One queue with all its priority lists.

    Attributes:
        depth: Messages waiting, over all priorities.

        by_priority: Messages waiting by priority step; 0 is served first on Redis.

        consumers: Nodes that answered and consume it.

        read: Messages whose headers were read.

        by_task: Messages by task name, the commonest ones.
    """

    name: str
    depth: int
    by_priority: Mapping[int, int]
    consumers: tuple[str, ...] = ()
    read: int = 0
    by_task: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """
    The headers of one message in the broker; its body is never read.

    Attributes:
        queue: Queue it waits in, or would return to; empty if no queue is bound for it.

        key: Redis key that holds it.

        retries: Starts at 0, as Celery counts.

        eta_at: Epoch seconds before which it must not run; None for at once.

        sha256: Of its bytes as stored; what a change is compared with.

        size_bytes: Of its bytes as stored.
    """

    task_id: str
    task: str
    queue: str
    key: str
    priority: int
    retries: int
    eta_at: float | None
    expires_at: float | None
    delivery_tag: str
    sha256: str
    size_bytes: int
    redelivered: bool = False
    origin: str = ""
    root_id: str = ""
    group: str = ""
    content_type: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingMessage(Message):
    """
    A message in a queue's list.

    Attributes:
        position: Messages that are served before it in its list, when it was read.
    """

    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UnackedMessage(Message):
    """
    A message delivered to a node and not acknowledged.

    Attributes:
        delivered_at: Epoch seconds of the last delivery (the index's score); None if the index lacks it.
    """

    delivered_at: float | None
    exchange: str
    routing_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadableMessage:
    """
    A message that no worker can decode.

    Attributes:
        place: "waiting" or "unacked".

        position: Messages served before it in its list; -1 for an unacked one.

        delivery_tag: Its field in the unacked hash; empty for a waiting one.

        reason: What is wrong with it.
    """

    place: str
    queue: str
    key: str
    position: int
    delivery_tag: str
    sha256: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """
    One quarantine list.

    Attributes:
        run_id: Run that filled it.

        queue: Queue, or list of one priority, that its messages were taken from.

        count: Messages that it holds.

        size_bytes: About what it weighs in the server.
    """

    run_id: str
    queue: str
    key: str
    count: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantinedMessage:
    """
    One message that a run took out of circulation.

    Attributes:
        place: Where it was: "waiting" or "unacked".

        subject: Task id; what its note says where it cannot be decoded.

        unreadable: Why it cannot be decoded; empty if it can.
    """

    run_id: str
    queue: str
    place: str
    subject: str
    task: str
    unreadable: str
    sha256: str
    size_bytes: int


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
class NodeInfo:
    """
    A Celery worker, by the name it gives itself.

    Attributes:
        answered: False for a name that only the broker remembers.

        pool: prefork, solo, threads, gevent or eventlet; empty if it did not say.

        processes: Pids of its pool children.

        prefetch: How many messages it may hold unacknowledged.

        accepted: Tasks accepted since it started.

        rate_limited: Tasks with a rate limit: waiting ones are in no reply (facts of Celery 5.7).

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
    rate_limited: tuple[str, ...] = ()
    memory_bytes: int = 0
    uptime_s: int = 0
    visibility_timeout_s: float | None = None

    @property
    def can_terminate(self) -> bool:
        """Whether its pool can end one running task without ending the worker."""
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
class Reading:
    """
    The part of a view that is read twice, a few seconds apart.

    Attributes:
        taken_at: Server time at its start.

        receivers: Subscribers that the broadcast reached: nodes alive, answering or not.
    """

    taken_at: datetime
    unacked: tuple[UnackedMessage, ...] = ()
    held: tuple[HeldTask, ...] = ()
    nodes: tuple[NodeInfo, ...] = ()
    receivers: int = 0
    results: tuple[StoredResult, ...] = ()
    queues: tuple[QueueInfo, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot(Reading):
    """
    Everything that one collection saw; judged without touching the system again.

    Attributes:
        taken_at: Server time, aware UTC: every age is counted from here.

        broker: Its URL, without password.

        earlier: The first of two readings; None where nothing needed a second one.

        waiting: The waiting messages worth keeping: most retried, latest ETA, watched and repeated ids.

        visibility_timeout_s: The shortest that a node uses; Celery's 3600 if none said.

        visibility_source: Who said so.

        foreign_prefixes: Key prefixes under which other Celery keys were seen.

        result_states: Results by state, over all that were read.
    """

    target: str
    broker: str
    fingerprint: str
    server: ServerInfo
    waiting: tuple[WaitingMessage, ...] = ()
    unreadable: tuple[UnreadableMessage, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    earlier: Reading | None = None
    visibility_timeout_s: float = 3600.0
    visibility_source: str = "Celery's default"
    foreign_prefixes: tuple[str, ...] = ()
    result_states: Mapping[str, int] = field(default_factory=dict)

    @property
    def answering(self) -> tuple[NodeInfo, ...]:
        """The nodes that answered."""
        return tuple(node for node in self.nodes if node.answered)

    @property
    def silent_nodes(self) -> int:
        """How many nodes heard the question and did not answer."""
        return max(0, self.receivers - len(self.answering))

    @property
    def silent_places(self) -> tuple[Coverage, ...]:
        """The places of which some part was not seen."""
        return tuple(row for row in self.coverage if row.silent)
