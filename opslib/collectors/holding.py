"""Nodes and the unacked hash → what nodes hold of some queues, what of it is unacknowledged, and who did not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib.collectors import keyspace, unacked, workers
from opslib.facts.messages import UnackedMessage, UnreadableMessage
from opslib.facts.system import HeldTask, NodeInfo
from opslib.keys import Binding

if TYPE_CHECKING:
    from opslib.broker import Broker

MAX_UNACKED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Holding:
    """
    What nodes hold, as they say it, and what the broker has of it.

    Attributes:
        nodes: Those that answered, by name.

        silent: How many heard the question and did not answer.

        unasked: Why no node was asked; empty if they were.
    """

    nodes: Mapping[str, NodeInfo]
    held: Sequence[HeldTask] = ()
    unacked: Sequence[UnackedMessage] = ()
    unreadable: Sequence[UnreadableMessage] = ()
    silent: int = 0
    receivers: int = 0
    unasked: str = ""

    def of(self, queues: Sequence[str], task: str = "*") -> tuple[list[HeldTask], list[UnackedMessage]]:
        """
        Return what is held and what is unacknowledged of some queues.

        A node names the routing key of what it runs, which a route may lead to another queue; so its message is asked
        first.

        Args:
            queues: "" among them stands for all, those too of which nobody knows the queue.

            task: Glob of the tasks' names.
        """
        every = "" in queues
        delivered = [m for m in self.unacked if (every or m.queue in queues) and fnmatchcase(m.task, task)]
        home = {message.task_id: message.queue for message in self.unacked}
        held = [
            each
            for each in self.held
            if (every or home.get(each.task_id, each.queue) in queues) and fnmatchcase(each.task, task)
        ]
        return held, delivered


def nodes(broker: Broker, *, timeout_s: float) -> Holding:
    """Ask every node what it holds, and do not look into the broker."""
    rows, held, receivers, coverage = workers.read(broker, timeout_s=timeout_s)
    answered = {row.name: row for row in rows if row.answered}
    unasked = coverage.note if not rows and coverage.silent and not receivers else ""
    silent = max(0, receivers - len(answered))
    return Holding(nodes=answered, held=held, silent=silent, receivers=receivers, unasked=unasked)


def look(broker: Broker, bindings: Mapping[str, Sequence[Binding]], *, timeout_s: float) -> Holding:
    """
    Ask every node what it holds, and read what is unacknowledged.

    The hash is read after the nodes: what is unacknowledged and in no answer is then nobody's, or was just taken.
    """
    said = nodes(broker, timeout_s=timeout_s)
    rows, odd, _ = unacked.read(broker, bindings, max_messages=MAX_UNACKED)
    return Holding(
        nodes=said.nodes,
        held=said.held,
        unacked=rows,
        unreadable=odd,
        silent=said.silent,
        receivers=said.receivers,
        unasked=said.unasked,
    )


def routes(broker: Broker, *, max_keys: int = 1_000_000) -> Mapping[str, Sequence[Binding]]:
    """Return the routes of every exchange, by which an unacknowledged message has its queue."""
    found, _ = keyspace.read(broker, max_keys=max_keys)
    return found.bindings
