"""What a person asked for, and a Snapshot → the queues, nodes, tasks and messages that a reset is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

from opslib.durations import seconds
from opslib.errors import BadParameter, near
from opslib.facts.messages import UnackedMessage
from opslib.facts.rows import StateNow
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import HeldTask, ListInfo, NodeInfo, QueueInfo
from opslib.naming import named
from opslib.plan import CONDITIONS, Action, Gate
from opslib.selection import Selection
from opslib.symptoms import reset_reach, steps


@dataclass(frozen=True, kw_only=True)
class Scope:
    """
    What a reset is about.

    Attributes:
        names: Queues, in their order.

        every: Whether all of them are meant, and what is of no known queue.

        task: Glob of the tasks' names.

        keys: Patterns of the application's keys that go with the tasks, by their names.

        state: Rows that say what the application is at.
    """

    snapshot: Snapshot
    names: tuple[str, ...]
    every: bool
    task: str
    wait_s: float
    keys: Mapping[str, str] = field(default_factory=dict)
    state: tuple[StateNow, ...] = ()

    @property
    def queues(self) -> list[QueueInfo]:
        """The queues that are meant."""
        return [queue for queue in self.snapshot.queues if queue.name in self.names]

    @property
    def consumed(self) -> list[QueueInfo]:
        """Those of them that somebody consumes."""
        return [queue for queue in self.queues if queue.consumers]

    @property
    def only(self) -> Selection | None:
        """Which messages of the queues are meant; None for all."""
        return Selection(task=self.task) if self.task.strip("*") else None

    @property
    def unacked(self) -> list[UnackedMessage]:
        """Unacknowledged messages that are meant."""
        return [message for message in self.snapshot.unacked if self.has(message.queue, message.task)]

    @property
    def held(self) -> list[HeldTask]:
        """Tasks of nodes that are meant."""
        return [each for each in self._at_home if self.has(each.queue, each.task)]

    @property
    def nodes(self) -> list[NodeInfo]:
        """Those that consume one of the queues, or hold something of them."""
        holding = {each.node for each in self.held}
        return [n for n in self.snapshot.answering if set(n.queues) & set(self.names) or n.name in holding]

    def has(self, queue: str, task: str) -> bool:
        """Whether a task of a queue is meant."""
        return (self.every or queue in self.names) and fnmatchcase(task, self.task)

    def waiting(self, listed: ListInfo) -> int:
        """Return how many messages of a list are meant at most: what was not read may be."""
        if self.only is None:
            return listed.length
        unread = listed.length - sum(listed.by_task.values())
        return unread + sum(
            n for name, n in listed.by_task.items() if fnmatchcase(name, self.task) or name == "(others)"
        )

    def gate(self, until: str, step: str, *, nodes: Sequence[str] = (), queues: Sequence[str] = ()) -> Action:
        """Return the gate that ends a step."""
        about = named(queues) if queues else "any queue" if self.every else named(self.names)
        condition = Gate(
            until=until,
            queues=tuple(queues) or (*self.names, *([""] if self.every else [])),
            nodes=tuple(nodes),
            task=self.task,
            within_s=self.wait_s,
            silent=self.snapshot.silent_nodes,
            hidden=reset_reach.hidden(self.snapshot),
        )
        silent = reset_reach.silent(self.snapshot)
        doubt = f" Of {silent} that did not answer nobody can tell." if self.snapshot.silent_nodes else ""
        return steps.gate(step, CONDITIONS[until].format(queues=about, nodes=named(nodes)), condition, doubt=doubt)

    @cached_property
    def _at_home(self) -> list[HeldTask]:
        """What nodes hold, each of the queue that its message came from."""
        home = {message.task_id: message.queue for message in self.snapshot.unacked}
        return [replace(each, queue=home.get(each.task_id, each.queue)) for each in self.snapshot.held]


def meant(snapshot: Snapshot, queue: str, task: str, wait: str) -> Scope:
    """
    Return what is meant.

    Raises:
        BadParameter: If no queue fits.

        SettingsError: If the deadline is none.
    """
    every = not queue.strip("*") and bool(queue)
    names = tuple(each.name for each in snapshot.queues if fnmatchcase(each.name, queue))
    if not names and not every:
        known = [each.name for each in snapshot.queues]
        raise BadParameter(f"queue: there is no queue that fits {queue!r}.", hint=near(queue, known))
    return Scope(snapshot=snapshot, names=names, every=every, task=task or "*", wait_s=seconds(wait, "wait"))
