"""A Snapshot → the look-ups that several judgements share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from opslib.facts.messages import UnackedMessage, WaitingMessage
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import HeldTask


class View:
    """
    A snapshot, looked up by task and by delivery.

    Attributes:
        now: Epoch seconds of the snapshot, from which every age is counted.

        held: What the nodes say they hold, by task id.

        held_before: Ids that a node held at the first of two looks.

        results: Results that are not final, or that were asked for, by task id.

        rate_limited: Names of tasks with a rate limit on any node.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.now = snapshot.taken_at.timestamp()
        earlier = snapshot.earlier
        self.held: dict[str, list[HeldTask]] = defaultdict(list)
        for task in snapshot.held:
            self.held[task.task_id].append(task)
        self.held_before = {task.task_id for task in earlier.held} if earlier else set()
        self.delivered_before = {(m.delivery_tag, m.delivered_at) for m in earlier.unacked} if earlier else set()
        self.results = {result.task_id: result for result in snapshot.results}
        self.rate_limited = {name for node in snapshot.nodes for name in node.rate_limited}

    def steady(self, message: UnackedMessage) -> bool:
        """Whether both looks saw the very same delivery."""
        return (message.delivery_tag, message.delivered_at) in self.delivered_before

    @property
    def messages(self) -> Iterator[WaitingMessage | UnackedMessage]:
        """Every message that was kept, unacknowledged ones first."""
        yield from self.snapshot.unacked
        yield from self.snapshot.waiting
