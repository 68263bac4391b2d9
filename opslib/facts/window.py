"""What happened while somebody watched: messages that came and went, and what the nodes told of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """
    One list of a queue over a window.

    Attributes:
        priority: Step of the list; 0 is served first on Redis.

        before: Messages at the window's start.

        after: Messages at its end.

        arrived: Messages that were pushed meanwhile.

        served: Messages that nodes took meanwhile.

        exact: False where the list was emptied between two samples: then more may have come and gone.
    """

    queue: str
    priority: int
    before: int
    after: int
    arrived: int
    served: int
    exact: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEvents:
    """
    Events of one kind and task over a window.

    Attributes:
        kind: As Celery names it: task-received, task-retried, task-failed …

        task: Empty where no event of the window names it.

        exception: Type and text, as the node wrote it; only of task-retried and task-failed.

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

        senders: Nodes that send task events; of the others nothing was heard.

        accepted: Tasks that nodes accepted meanwhile, by name, as their own counters say.
    """

    started_at: datetime
    length_s: float
    flows: tuple[Flow, ...] = ()
    events: tuple[TaskEvents, ...] = ()
    senders: tuple[str, ...] = ()
    accepted: Mapping[str, int] = field(default_factory=dict)
