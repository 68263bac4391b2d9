"""Queues, the unacked hash and the nodes → the ids of all tasks that can still be run or run, in little memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib.collectors import keyspace, looks, queues, unacked, windows, workers
from opslib.collectors.marks import Marks
from opslib.envelope import Head, head, peek
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Places in which a task could still be, so that one that was not wholly seen leaves everything open.
_PLACES = frozenset({"keyspace", "waiting", "unacked", "workers", "set aside"})
_MOST_MESSAGES = 20_000_000
_MOST_KEYS = 100_000_000
#: Messages that cannot be decoded and are kept, and how large each may be.
_MOST_DAMAGED, _DAMAGED_BYTES = 200, 64 * 1024


@dataclass(kw_only=True)
class Circulation:
    """
    Which tasks are in circulation.

    Attributes:
        unseen: Why nobody can say of any other task that it is over, a sentence each; empty if that was seen.

        unreadable: Messages of which nobody knows to which task they belong.

        damaged: Those of them that wait, as they are stored; so many as are kept.
    """

    coverage: tuple[Coverage, ...] = ()
    unseen: tuple[str, ...] = ()
    unreadable: int = 0
    damaged: tuple[bytes, ...] = field(default=(), repr=False)
    _marks: Marks = field(default_factory=Marks, repr=False)

    def __len__(self) -> int:
        return len(self._marks)

    def __contains__(self, task_id: str) -> bool:
        """Whether a task can still be run."""
        return task_id in self._marks


def read(broker: Broker, *, timeout_s: float, max_messages: int = _MOST_MESSAGES) -> Circulation:
    """
    Look everywhere, in the order in which a task moves: waiting lists, what is unacknowledged, and the nodes.

    One that moves on meanwhile is met again further on; one that ends meanwhile has just written its result anew.

    Args:
        broker: The deployment's own, wherever its results are.

    Raises:
        redis.exceptions.RedisError: If the server stops answering on the way.
    """
    found, keys_coverage = keyspace.read(broker, max_keys=_MOST_KEYS, keep_results=False)
    nodes, _, _, _ = workers.read(broker, timeout_s=timeout_s)
    names, not_queues = looks.queue_names(broker, found, nodes)
    listings, strange = queues.lists(broker, names)
    marks = Marks()
    damaged: list[bytes] = []
    read_ = unread = unreadable = 0
    for listing in listings:
        room = max(0, max_messages - read_)
        unread += max(0, listing.length - room)
        for _, raw in windows.stream(broker, listing, limit=room):
            read_ += 1
            message = peek(raw)
            if message is not None:
                marks.note(str(message.headers.id))
            elif isinstance(odd := head(raw), Head):
                marks.note(odd.task_id)
            else:
                unreadable += 1
                damaged += [raw] if len(raw) <= _DAMAGED_BYTES and len(damaged) < _MOST_DAMAGED else []
    delivered, opaque, unacked_coverage = unacked.read(broker, found.bindings, max_messages=max_messages)
    for row in delivered:
        marks.note(row.task_id)
    _, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)
    for task in held:
        marks.note(task.task_id)
    coverage = (
        keys_coverage,
        workers_coverage,
        queues.coverage(read_, unread, strange, not_queues),
        unacked_coverage,
        *keyspace.set_aside(broker, found),
    )
    return Circulation(
        coverage=coverage,
        unseen=_unseen(broker, coverage, receivers),
        unreadable=unreadable + len(opaque),
        damaged=tuple(damaged),
        _marks=marks.sealed(),
    )


def _unseen(broker: Broker, coverage: Iterable[Coverage], receivers: int) -> tuple[str, ...]:
    from opslib.collectors import server

    said = [
        f"{row.place}: {row.note or f'{row.silent:,} not seen.'}"
        for row in coverage
        if row.silent and row.place in _PLACES
    ]
    if not receivers:
        consumers = server.read(broker)[0].consumers
        if consumers != 0:
            who = "nobody can say whether connections consume" if consumers is None else "connections consume"
            said.append(f"workers: no node listens to control messages, and {who}.")
    return tuple(dict.fromkeys(said))
