"""What happened while somebody watched: messages that came and went, and what the nodes told of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """
    One list of a queue over a window; before + arrived + restored - served = after, always.

    Attributes:
        priority: Step of the list; 0 is served first on Redis.

        before: Messages at the window's start.

        after: Messages at its end.

        arrived: Messages that were pushed meanwhile, retries among them.

        served: Messages that nodes took meanwhile.

        restored: Messages that were put back at the end that is served first, less those that were served.

        exact: False where the list was empty between two samples, or may have been: then `arrived` and `served` are
            the least that they can have been, for more may have come and gone.
    """

    queue: str
    priority: int
    before: int
    after: int
    arrived: int
    served: int
    restored: int = 0
    exact: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEvents:
    """
    Events of one kind, task and exception over a window.

    Attributes:
        kind: As Celery names it: task-received, task-retried, task-failed …

        task: Empty where nothing names it; "(others)" where there were too many kinds to tell apart.

        exception: Its signature (see `signatures.of`); only of task-retried and task-failed.

        count: How many there were.

        ids: Tasks that they were about, each once; a few of many.
    """

    kind: str
    task: str
    exception: str = ""
    count: int = 0
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """
    What was watched, and for how long.

    Attributes:
        started_at: Server time at its start.

        length_s: Seconds that it lasted.

        flows: One row for each queue, and one more for each of its other priorities that held anything.

        senders: Nodes that sent events of tasks.

        mute: Nodes that accepted tasks meanwhile and sent no event of any.

        heard: Nodes that sent anything, if only heartbeats.

        told: Nodes that were told to send events for the window, and told to stop again.

        accepted: Tasks that nodes accepted meanwhile, by name, as their own counters say.
    """

    started_at: datetime
    length_s: float
    flows: tuple[Flow, ...] = ()
    events: tuple[TaskEvents, ...] = ()
    senders: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    accepted: Mapping[str, int] = field(default_factory=dict)

    def per_minute(self, count: int) -> float:
        """Return a count of the window as a rate."""
        return count * 60 / self.length_s if self.length_s > 0 else 0.0
