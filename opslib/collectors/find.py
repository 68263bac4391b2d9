"""Task ids → every place that holds them, with what could not be looked into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import MAX_KEYS, keyspace, queues, results, unacked, workers
from opslib.collectors.looks import MAX_UNACKED, queue_names
from opslib.durations import seconds
from opslib.facts import Coverage, HeldTask, StoredResult, UnackedMessage, WaitingMessage

if TYPE_CHECKING:
    from opslib.broker import Broker


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """
    Where tasks are, at one moment.

    Attributes:
        coverage: Every place that was searched; one with `silent` above 0 may hold them unseen.
    """

    ids: frozenset[str]
    taken_at: datetime
    waiting: tuple[WaitingMessage, ...]
    unacked: tuple[UnackedMessage, ...]
    held: tuple[HeldTask, ...]
    results: tuple[StoredResult, ...]
    coverage: tuple[Coverage, ...]
    visibility_timeout_s: float = 3600.0

    @property
    def messages(self) -> tuple[WaitingMessage | UnackedMessage, ...]:
        """Every message of these tasks in the broker."""
        return (*self.waiting, *self.unacked)

    @property
    def places(self) -> dict[str, list[str]]:
        """The places of each id that was found anywhere, in the order of a task's life."""
        found: dict[str, list[str]] = {task_id: [] for task_id in sorted(self.ids)}
        for waiting in self.waiting:
            found[waiting.task_id].append("waiting")
        for message in self.unacked:
            found[message.task_id].append("unacked")
        for task in self.held:
            found[task.task_id].append(task.place)
        for result in self.results:
            found[result.task_id].append("result")
        return found


def find(broker: Broker, ids: Iterable[str], *, answer_within: str = "1.5s", max_keys: int = MAX_KEYS) -> Whereabouts:
    """
    Look for tasks in every place.

    Results, then unacked and nodes, then waiting lists, as in `collect`: a task on its way is seen twice rather
    than not at all.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    wanted = frozenset(ids)
    with refusals.explained(broker.target.shown_broker):
        return _find(broker, wanted, timeout_s=seconds(answer_within, "answer_within"), max_keys=max_keys)


def _find(broker: Broker, wanted: frozenset[str], *, timeout_s: float, max_keys: int) -> Whereabouts:
    taken_at = broker.server_time()
    found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
    stored, results_coverage = results.by_id(broker, sorted(wanted))
    delivered, _, unacked_coverage = unacked.read(broker, found.bindings, max_messages=MAX_UNACKED)
    nodes, held, _, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)
    names, not_queues = queue_names(broker, found, nodes)
    listings, strange = queues.lists(broker, names)
    waiting = [row for row, _ in queues.matches(broker, listings, ids=wanted)]
    read = sum(listing.length for listing in listings)
    return Whereabouts(
        ids=wanted,
        taken_at=taken_at,
        waiting=tuple(waiting),
        unacked=tuple(row for row in delivered if row.task_id in wanted),
        held=tuple(row for row in held if row.task_id in wanted),
        results=tuple(stored),
        coverage=(
            keys_coverage,
            workers_coverage,
            queues.coverage(read, 0, strange, not_queues),
            unacked_coverage,
            results_coverage,
            *keyspace.set_aside(broker, found),
        ),
        visibility_timeout_s=min(
            (node.visibility_timeout_s for node in nodes if node.visibility_timeout_s), default=3600.0
        ),
    )
