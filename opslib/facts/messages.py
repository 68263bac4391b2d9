"""Messages as they were seen: one frozen row for each, of its headers alone."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_TASK = "(unknown)"


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
