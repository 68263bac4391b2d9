"""What a person asks for to relieve a queue → the actions for it, or the one thing that is wrong with the wish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from opslib.durations import rate
from opslib.errors import BadParameter, near
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import ListInfo, NodeInfo, QueueInfo
from opslib.keys import DEAD, Keyspace
from opslib.plan import Action, Kind
from opslib.selection import Selection
from opslib.symptoms import asked, serving

#: Characters with which a name means more than one task.
_WILD = "*?["


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """
    What a person asks for, as the runbook's parameters say it.

    Attributes:
        do: A key of WISHES.

        queue: "*" for every queue that is not empty, where that can be meant.

        by: Processes for each node.

        limit: Messages at most; 0 for all.
    """

    do: str
    queue: str = ""
    task: str = "*"
    to: str = ""
    node: str = ""
    by: int = 1
    rate: str = ""
    limit: int = 0

    @property
    def is_any_task(self) -> bool:
        """Whether its glob leaves no task out."""
        return not self.task.strip("*")


def actions(snapshot: Snapshot, wish: Wish) -> list[Action]:
    """
    Return what would do as a person wishes; nothing where nothing waits that is meant.

    Raises:
        BadParameter: If something is missing, unknown, or cannot be meant.
    """
    if wish.do not in WISHES:
        raise BadParameter(f"do: {wish.do!r} is nothing that can be done here.", hint=near(wish.do, WISHES))
    if wish.limit < 0:
        raise BadParameter(f"limit: {wish.limit} is no number of messages.", hint="0 means all of them.")
    if not wish.task:
        hint = "Leave it out to mean every task; is a variable of the shell not set?"
        raise BadParameter("task: it is empty, and would mean every task.", hint=hint)
    return WISHES[wish.do](snapshot, wish)


def _purge(snapshot: Snapshot, wish: Wish) -> list[Action]:
    """Take messages out of circulation: a whole queue, or those of a task; every queue only where that is said."""
    found = _queues(snapshot) if wish.queue == "*" else [_queue(snapshot, wish)]
    only = _selection(snapshot, wish)
    return [action for queue in found for action in _purged(queue, only)]


def _purge_expired(snapshot: Snapshot, wish: Wish) -> list[Action]:
    """Take out of circulation what no worker runs any more, as of the moment in which it was counted."""
    found = _queues(snapshot) if wish.queue == "*" else [_queue(snapshot, wish)]
    counted_at = (snapshot.earlier or snapshot).taken_at.timestamp()
    only = replace(_selection(snapshot, wish) or Selection(), expired_at=counted_at)
    return [action for queue in found for action in _purged(queue, only)]


def _purged(queue: QueueInfo, only: Selection | None) -> list[Action]:
    """Return what takes messages of a queue out of circulation, with a number that is only a bound called one."""
    made = asked.purge(queue.name, _meant(queue, only), only)
    return [replace(action, effect=f"{_at_most(queue, only)}{action.effect}") for action in made]


def _move(snapshot: Snapshot, wish: Wish) -> list[Action]:
    queue, only = _queue(snapshot, wish), _selection(snapshot, wish)
    if not wish.to:
        raise BadParameter("do=move needs a queue to move to.", hint="Name it, for instance -p to=overflow.")
    if wish.to == wish.queue:
        raise BadParameter(f"to: {wish.to} is the queue that the messages are in already.")
    if not Keyspace().is_queue_name(wish.to):  # a target's own names, the writer knows
        raise BadParameter(f"to: {wish.to!r} is no queue: Celery keeps something else under that name.")
    if wish.to.endswith(DEAD) and wish.to not in {row.name for row in snapshot.queues}:
        raise BadParameter(f"to: {wish.to!r} is called like a dead-letter list, from which no worker takes.")
    made = asked.move(queue.name, wish.to, _meant(queue, only), only)
    consumed = any(row.name == wish.to and row.consumers for row in snapshot.queues)
    nobody = "" if consumed else f" No node that answered consumes {wish.to}: there they wait until one does."
    return [replace(action, effect=f"{_at_most(queue, only)}{action.effect}{nobody}") for action in made]


def _expedite(snapshot: Snapshot, wish: Wish) -> list[Action]:
    queue = _queue(snapshot, wish)
    if wish.is_any_task and not wish.limit:
        raise BadParameter(
            "do=expedite with every task would change nothing: all cannot be first.",
            hint="Name a task, such as -p task='shop.pay*', or a limit.",
        )
    only = _selection(snapshot, wish) or Selection(limit=wish.limit)
    made = asked.expedite(queue.name, _meant(queue, only), only)
    return [replace(action, effect=f"{_at_most(queue, only)}{action.effect}") for action in made]


def _consuming(snapshot: Snapshot, wish: Wish) -> list[Action]:
    kind = Kind.PAUSE if wish.do == "pause" else Kind.RESUME
    names = [_node(snapshot, wish.node).name] if wish.node else []
    return asked.consuming(kind, _queue(snapshot, wish).name, names)


def _resize(snapshot: Snapshot, wish: Wish) -> list[Action]:
    """Add processes to the nodes that consume a queue, or to one; pools that cannot change their size are left out."""
    if wish.by < 1:
        raise BadParameter(f"by: {wish.by} is no number of processes.", hint="1 is the least; do=shrink takes away.")
    nodes = _nodes(snapshot, wish)
    able = [node for node in nodes if node.can_resize]
    if not able:
        pools = ", ".join(sorted({f"{node.name} ({node.pool or 'unknown pool'})" for node in nodes}))
        raise BadParameter(
            f"No pool of these can change its size while it runs: {pools}.",
            hint="Restart the node with another --concurrency, or start one more.",
        )
    by = wish.by if wish.do == "grow" else -wish.by
    for node in able:
        asked.refuse_size(node, by)
    return [asked.resized(node, by) for node in able]


def _limit(snapshot: Snapshot, wish: Wish) -> list[Action]:
    if wish.is_any_task or any(sign in wish.task for sign in _WILD):
        raise BadParameter("do=limit needs the name of one task.", hint="Name it, for instance -p task=shop.charge.")
    having = [node for node in snapshot.answering if any(task.name == wish.task for task in node.tasks)]
    if not having:
        known = {task.name for node in snapshot.answering for task in node.tasks}
        raise BadParameter(f"task: no node that answered has {wish.task!r}.", hint=near(wish.task, known))
    try:
        rate(wish.rate)
    except ValueError:
        hint = "Write 10/s, 10/m or 10/h; 0 takes the limit away."
        raise BadParameter(f"rate: {wish.rate!r} is no rate limit.", hint=hint) from None
    nodes = [_node(snapshot, wish.node)] if wish.node else having
    return asked.limited(wish.task, wish.rate, nodes)


#: What can be asked for, by the word for it.
WISHES: dict[str, Callable[[Snapshot, Wish], list[Action]]] = {
    "purge": _purge,
    "purge-expired": _purge_expired,
    "move": _move,
    "expedite": _expedite,
    "pause": _consuming,
    "resume": _consuming,
    "grow": _resize,
    "shrink": _resize,
    "limit": _limit,
}


def _queues(snapshot: Snapshot) -> list[QueueInfo]:
    """Return every queue that holds something that may be meant."""
    return [queue for queue in snapshot.queues if queue.depth]


def _queue(snapshot: Snapshot, wish: Wish) -> QueueInfo:
    known = {queue.name: queue for queue in snapshot.queues}
    if not wish.queue:
        raise BadParameter(f"do={wish.do} needs a queue.", hint=near("", known, option="-p queue="))
    if wish.queue not in known:
        every = " One queue at a time." if wish.queue == "*" else ""
        raise BadParameter(f"queue: there is no queue named {wish.queue!r}.{every}", hint=near(wish.queue, known))
    return known[wish.queue]


def _nodes(snapshot: Snapshot, wish: Wish) -> list[NodeInfo]:
    """Return the node that is named, or those that consume the queue; every one for "*"."""
    if wish.node:
        return [_node(snapshot, wish.node)]
    if wish.queue == "*":
        return _somebody(snapshot.answering, "No node answered.")
    queue = _queue(snapshot, wish)
    consuming = [node for node in snapshot.answering if queue.name in node.queues]
    return _somebody(consuming, f"No node that answered consumes {queue.name}.")


def _somebody(nodes: Sequence[NodeInfo], nobody: str) -> list[NodeInfo]:
    if not nodes:
        raise BadParameter(nobody, hint="Start a worker; there is no pool that could be resized.")
    return list(nodes)


def _node(snapshot: Snapshot, name: str) -> NodeInfo:
    known = {node.name: node for node in snapshot.answering}
    if name not in known:
        raise BadParameter(f"node: {name!r} is not among the nodes that answered.", hint=near(name, known))
    return known[name]


def _selection(snapshot: Snapshot, wish: Wish) -> Selection | None:
    """Return which messages are meant, None for all of a list; a name that nobody knows is a slip of the finger."""
    if wish.is_any_task:
        return Selection(limit=wish.limit) if wish.limit else None
    known = {task for queue in snapshot.queues for task in queue.by_task} - serving.UNNAMED
    known |= {task.name for node in snapshot.answering for task in node.tasks}
    if not any(fnmatchcase(name, wish.task) for name in known):
        raise BadParameter(f"task: no message and no node has a task {wish.task!r}.", hint=near(wish.task, known))
    return Selection(task=wish.task, limit=wish.limit)


def _meant(queue: QueueInfo, only: Selection | None) -> dict[str, int]:
    """Return how many messages of each list are meant, the list that is served first at the head."""
    left = only.limit if only and only.limit else queue.depth
    found = {}
    for each in queue.lists:
        found[each.key] = min(left, each.length if only is None else _of(each, only))
        left -= found[each.key]
    return found


def _of(listed: ListInfo, only: Selection) -> int:
    """Count what a filter means; names that were too many to be told apart may all be meant."""
    meant = sum(n for task, n in listed.by_task.items() if fnmatchcase(task, only.task) or task == "(others)")
    if only.is_everything:
        return listed.length
    return min(meant, listed.expired) if only.expired_at is not None else meant


def _at_most(queue: QueueInfo, only: Selection | None) -> str:
    """Say that no more than so many are meant, where the counts of a queue do not tell how many exactly."""
    if only is None or only.is_everything:
        return ""
    for listed in queue.lists:
        fitting = sum(count for task, count in listed.by_task.items() if fnmatchcase(task, only.task))
        some_expired = only.expired_at is not None and listed.expired and 0 < fitting < listed.length
        if some_expired or ("(others)" in listed.by_task and only.task.strip("*")):
            return "At most "
    return ""
