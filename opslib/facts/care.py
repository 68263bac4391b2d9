"""What a deployment's server, nodes and results say of their own health, beside what is under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """
    A replica that is connected to the server.

    Attributes:
        state: As the server calls it: "online" once it follows.

        lag_s: Seconds since it was last heard of; None if the server does not say.

        behind_bytes: How much it has not received yet.
    """

    name: str
    state: str
    lag_s: float | None = None
    behind_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowCommand:
    """
    A command that the server took long for, by its name alone: what stood behind it may be anybody's data.

    Attributes:
        count: How often it is in the slow log.

        longest_s: The slowest of them.

        last_at: Epoch seconds of the latest.
    """

    name: str
    count: int
    longest_s: float
    last_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCare:
    """
    What the server says of its own health; None stands for what it does not say.

    Attributes:
        rss_bytes: Memory as the system counts it.

        fragmentation: That, by the memory in use.

        maxclients: Connections that it takes at most.

        rejected: Connections that it refused since it started, for there were too many.

        evicted: Keys that it threw away since it started, to make room.

        aof: Whether it writes down every change (append-only file).

        aof_failed, save_failed: Whether the last attempt to write to the disk failed.

        save_age_s: Age of the last snapshot; None where none was taken since it started.

        unsaved: Changes since the last snapshot.

        saves: When it takes snapshots, as CONFIG has it; empty for never, None where it may not be asked.

        replicas: Those that are connected.

        master_link: "up" or "down", on a replica.

        slow: The slow log, by command, the slowest first.
    """

    rss_bytes: int | None = None
    fragmentation: float | None = None
    maxclients: int | None = None
    rejected: int | None = None
    evicted: int | None = None
    aof: bool | None = None
    aof_failed: bool = False
    save_failed: bool = False
    save_age_s: float | None = None
    unsaved: int | None = None
    saves: str | None = None
    replicas: tuple[Replica, ...] = ()
    master_link: str = ""
    slow: tuple[SlowCommand, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCare:
    """
    How a node runs a task.

    Attributes:
        time_limit_s: After which its process is killed; None if the task has none of its own.

        soft_time_limit_s: After which it is told to end.

        acks_late: Whether its message is acknowledged only when it is done.

        comes_back: Whether it goes back to its queue when its process dies (task_reject_on_worker_lost).
    """

    name: str
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    acks_late: bool = False
    comes_back: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCare:
    """
    How a node is set up, as it says itself.

    Attributes:
        time_limit_s, soft_time_limit_s: For every task that has none of its own; None for no limit.

        max_tasks_per_child: Tasks after which a process is replaced; None for never.

        max_memory_per_child_bytes: Memory beyond which a process is replaced after its task; None for never.

        results_for_ever: Whether its results never expire.

        versions: Of celery, kombu and redis-py, as far as it says.
    """

    name: str
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child_bytes: int | None = None
    results_for_ever: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[TaskCare, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultLife:
    """
    How long results are kept, by a sample.

    Attributes:
        total: Results that there are.

        looked: Of how many the time to live was asked.

        endless: Those of them that never expire.
    """

    total: int
    looked: int
    endless: int

    @property
    def estimate(self) -> int:
        """How many of all never expire; exact where all were looked at."""
        return round(self.endless * self.total / self.looked) if self.looked else 0

    @property
    def exact(self) -> bool:
        """Whether that is counted, not estimated."""
        return self.looked >= self.total


@dataclass(frozen=True, kw_only=True, slots=True)
class Care:
    """
    What was asked beside what is under way.

    Attributes:
        nodes: Those that said how they are set up.

        results: None where the result backend could not be asked.
    """

    server: ServerCare
    nodes: tuple[NodeCare, ...] = ()
    results: ResultLife | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """
    One part of a deployment, judged in a word and a figure.

    Attributes:
        state: fine, attention, critical, not seen, or not judged.

        figure: The one number that a person wants of it.

        says: What the figure is, or what is wrong.

        runbook: The runbook that answers what is wrong; empty where nothing is.
    """

    name: str
    state: str
    figure: str
    says: str
    findings: int = 0
    runbook: str = ""
