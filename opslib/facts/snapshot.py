"""Everything that one collection saw, judged without touching the system again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, ClassVar

from opslib.facts.care import Care
from opslib.facts.dead import DeadLetters
from opslib.facts.messages import UnackedMessage, UnreadableMessage, WaitingMessage
from opslib.facts.system import Coverage, HeldTask, NodeInfo, QueueInfo, ServerInfo, StatusCount, StoredResult
from opslib.facts.window import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """
    The part of a view that is read twice, a few seconds apart.

    Attributes:
        taken_at: Server time at its start.

        receivers: Subscribers that the broadcast reached: nodes alive, answering or not.

        waiting: The waiting messages worth keeping: most retried, latest ETA, watched and repeated ids.
    """

    taken_at: datetime
    unacked: tuple[UnackedMessage, ...] = ()
    held: tuple[HeldTask, ...] = ()
    nodes: tuple[NodeInfo, ...] = ()
    receivers: int = 0
    results: tuple[StoredResult, ...] = ()
    waiting: tuple[WaitingMessage, ...] = ()
    queues: tuple[QueueInfo, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot(Reading):
    """
    Everything that one collection saw; judged without touching the system again.

    Attributes:
        scope: What the view is of: the whole `deployment`, or the `tasks` that were asked for.

        taken_at: Server time, aware UTC: every age is counted from here.

        broker: Its URL, without password.

        earlier: The first of two readings; None where nothing needed a second one.

        visibility_timeout_s: The shortest that a node uses; Celery's 3600 if none said.

        visibility_source: Who said so.

        window: What happened between the two looks; None where nobody watched.

        letters: Every dead letter; None where nobody asked for them.

        care: What server and nodes say of their own health; None where nobody asked.

        statuses: Rows of the application's own task tables, by status; empty where none was looked at.

        foreign_prefixes: Key prefixes under which other Celery keys were seen.

        result_states: Results by state, over all that were read.
    """

    scope: ClassVar[str] = "deployment"

    target: str
    broker: str
    fingerprint: str
    server: ServerInfo
    unreadable: tuple[UnreadableMessage, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    earlier: Reading | None = None
    window: Window | None = None
    letters: DeadLetters | None = None
    care: Care | None = None
    statuses: tuple[StatusCount, ...] = ()
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


def parts_of(seen: Snapshot, *, but: Collection[str] = ()) -> dict[str, Any]:
    """Return what a view tells, to make one of a kind that tells more; `but` is what that one says by itself."""
    return {each.name: getattr(seen, each.name) for each in fields(seen) if each.name not in but}
