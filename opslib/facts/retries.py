"""Tasks that are being retried, and what is known of them by the name of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryingTask:
    """
    One task that was retried and is not finished.

    Attributes:
        retries: How often; Celery counts from 0.

        cap: Retries after which its own code gives up, as the nodes say; None for no end, or where no node says.

        place: "waiting", "unacked", or where a node has it: "active", "reserved", "scheduled".

        queue: Queue that it waits in, or came from.

        node: Node that has it; empty for one that waits, or that nobody holds.

        due_in_s: Seconds until its next attempt; below zero for one that is late, None for one that may run at once.

        error: Signature of what its last attempt failed of; empty if nothing tells.
    """

    task_id: str
    task: str
    retries: int
    cap: int | None = None
    place: str
    queue: str
    node: str = ""
    due_in_s: float | None = None
    error: str = ""

    @property
    def beyond(self) -> bool:
        """Whether it was retried more often than its own code allows."""
        return self.cap is not None and self.retries > self.cap


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRetries:
    """
    All that is retried under one name.

    Attributes:
        count: Tasks that are being retried, also those that are only counted.

        rows: Those of them that have a row.

        most: The most retries of one of them.

        per_minute: Retries in a minute while somebody watched; None where nobody did.

        told_by: "events" of the nodes; or "two looks", which is the least that it can be.

        endless: Whether a node says that its code never gives up.

        errors: Tasks by the signature of what they failed of.

        next_in_s: Seconds until the next of their attempts; None if none has a time.
    """

    task: str
    count: int
    rows: int
    most: int
    cap: int | None = None
    endless: bool = False
    per_minute: float | None = None
    told_by: str = ""
    errors: Mapping[str, int] = field(default_factory=dict)
    queues: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    next_in_s: float | None = None
