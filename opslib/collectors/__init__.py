"""READ. Every source of a deployment → one Snapshot; a source that does not answer is a row of coverage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import keyspace, queues, results, server, unacked, workers
from opslib.durations import seconds
from opslib.facts import Coverage, HeldTask, NodeInfo, QueueInfo, Reading, Snapshot, WaitingMessage

if TYPE_CHECKING:
    from opslib.broker import Broker

MAX_KEYS = 1_000_000
MAX_MESSAGES = 2_000_000
#: Rows of unacked messages that are kept; a deployment has as many as its nodes prefetch.
MAX_UNACKED = 50_000
_MOST_RESULTS = 5_000
#: Celery's own default for the Redis transport.
VISIBILITY_TIMEOUT_S = 3600.0


def collect(
    broker: Broker,
    *,
    settle: str = "2s",
    answer_within: str = "1.5s",
    max_keys: int = MAX_KEYS,
    max_messages: int = MAX_MESSAGES,
) -> Snapshot:
    """
    Look at everything once, and at what looks wrong a second time.

    Nothing is written but a reply list of the control plane, which is removed again. The second look tells an
    orphan from a message that was just being delivered; it is left out where there is nothing to confirm.

    Args:
        settle: Pause between the two looks, with a unit.

        answer_within: How long a silent node is waited for, with a unit.

        max_keys: Keys visited per database at most; beyond that the coverage is partial.

        max_messages: Waiting messages read at most, the next to be served first.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.

        BrokerRefused: If it refuses what every look needs.
    """
    pause_s, timeout_s = seconds(settle, "settle"), seconds(answer_within, "answer_within")
    try:
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        first = _look(broker, found, keys_coverage, timeout_s=timeout_s, max_keys=max_keys, max_messages=max_messages)
        if not unsettled(first):
            return first
        time.sleep(pause_s)
        return _look_again(broker, found, first, timeout_s=timeout_s)
    except Exception as error:
        raise refusals.of(error, broker.target.shown_broker) from error


def depths(
    broker: Broker, *, answer_within: str = "1.5s", max_keys: int = MAX_KEYS
) -> tuple[list[QueueInfo], list[Coverage]]:
    """
    Return every queue with its depth and consumers, without reading a message.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    try:
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        answering, _, _, workers_coverage = workers.read(
            broker, timeout_s=seconds(answer_within, "answer_within"), remembered=found.remembered
        )
        names, not_queues = queue_names(broker, found, answering)
        listings, strange = queues.lists(broker, names)
        rows = queues.infos(names, listings, queues.Scan(), _consumers(answering))
        waiting = queues.coverage(sum(row.depth for row in rows), 0, strange, not_queues)
    except Exception as error:
        raise refusals.of(error, broker.target.shown_broker) from error
    return rows, [keys_coverage, workers_coverage, waiting]


def nodes(
    broker: Broker, *, answer_within: str = "1.5s", max_keys: int = MAX_KEYS
) -> tuple[list[NodeInfo], list[HeldTask], Coverage]:
    """
    Return every node with what it holds, those that only the broker remembers too.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    try:
        remembered = keyspace.read(broker, max_keys=max_keys)[0].remembered
        rows, held, _, coverage = workers.read(
            broker, timeout_s=seconds(answer_within, "answer_within"), remembered=remembered
        )
    except Exception as error:
        raise refusals.of(error, broker.target.shown_broker) from error
    return rows, held, coverage


def reach(broker: Broker, *, answer_within: str = "1.5s") -> list[Coverage]:
    """
    Try every part that a target names, each by itself.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    try:
        _, server_coverage = server.read(broker)
        found, keys_coverage = keyspace.read(broker, max_keys=keyspace.STEP)
        _, _, _, workers_coverage = workers.read(broker, timeout_s=seconds(answer_within, "answer_within"))
        _, _, results_coverage = results.read(broker, found.results[:1], max_keys=keyspace.STEP)
    except Exception as error:
        raise refusals.of(error, broker.target.shown_broker) from error
    sampled = [
        replace(
            row, silent=0 if "max_keys" in row.note else row.silent, note="" if "max_keys" in row.note else row.note
        )
        for row in (keys_coverage, results_coverage)
    ]
    return [server_coverage, workers_coverage, *sampled]


def unsettled(snapshot: Snapshot) -> frozenset[str] | bool:
    """
    Return what in a first look could be a passing state: a delivery, a retry, an answer on its way.

    The ids of such tasks; or True where it is a node that could be passing.
    """
    held = {task.task_id for task in snapshot.held}
    delivered = {message.task_id for message in snapshot.unacked}
    waiting = Counter(message.task_id for message in snapshot.waiting)
    placed = held | delivered | waiting.keys()
    suspects = (
        (delivered - held)
        | (waiting.keys() & (held | delivered))
        | {task_id for task_id, copies in waiting.items() if copies > 1}
        | {result.task_id for result in snapshot.results if result.task_id not in placed}
    )
    return frozenset(suspects) or bool(snapshot.silent_nodes or idle_beside_work(snapshot))


def idle_beside_work(snapshot: Reading) -> list[NodeInfo]:
    """Return the nodes that hold nothing while a queue that they consume has messages."""
    busy = {task.node for task in snapshot.held if task.place != "scheduled"}
    full = {queue.name for queue in snapshot.queues if queue.depth}
    return [node for node in snapshot.nodes if node.answered and node.name not in busy and full & set(node.queues)]


def _look(
    broker: Broker,
    found: keyspace.Found,
    keys_coverage: Coverage,
    *,
    timeout_s: float,
    max_keys: int,
    max_messages: int,
) -> Snapshot:
    """
    Read every source once, in this order: results, unacked, nodes, waiting.

    A task moves the other way (waiting, unacked, held, result), so one that moves meanwhile shows up twice
    rather than nowhere; twice is settled by the second look, nowhere would look like a loss.
    """
    taken_at = broker.server_time()
    info, server_coverage = server.read(broker)
    open_results, states, results_coverage = results.read(broker, found.results, max_keys=max_keys)
    delivered, odd, unacked_coverage = unacked.read(broker, found.bindings, max_messages=MAX_UNACKED)
    nodes, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)

    names, not_queues = queue_names(broker, found, nodes)
    listings, strange = queues.lists(broker, names)
    watch = {row.task_id for rows in (open_results, delivered, held) for row in rows}
    scan = queues.scan(broker, listings, watch=watch, max_messages=max_messages)
    repeated = [row for row, _ in queues.matches(broker, listings, hashes=scan.repeated)] if scan.repeated else []
    visibility_s, source = _visibility(broker, nodes)
    return Snapshot(
        target=broker.target.name,
        broker=broker.target.shown_broker,
        fingerprint=broker.fingerprint,
        taken_at=taken_at,
        server=info,
        queues=tuple(queues.infos(names, listings, scan, _consumers(nodes))),
        waiting=_each_once([*scan.kept, *repeated]),
        unreadable=(*scan.unreadable, *odd),
        unacked=tuple(delivered),
        held=tuple(held),
        nodes=tuple(nodes),
        receivers=receivers,
        results=tuple(open_results),
        result_states=dict(states),
        coverage=(
            server_coverage,
            keys_coverage,
            workers_coverage,
            queues.coverage(scan.total, scan.unread, strange, not_queues, unlisted=scan.unlisted),
            unacked_coverage,
            results_coverage,
        ),
        visibility_timeout_s=visibility_s,
        visibility_source=source,
        foreign_prefixes=tuple(sorted(found.foreign)),
    )


def _look_again(broker: Broker, found: keyspace.Found, first: Snapshot, *, timeout_s: float) -> Snapshot:
    """
    Read again what may have been passing, in the order that makes a copy seen twice a real one.

    Waiting copies first and unacked ones after: a retry pushes its new message before the old one is acknowledged,
    so an old copy that is still there after the new one was seen did not just lose a race.
    """
    taken_at = broker.server_time()
    suspects = unsettled(first)
    ids = suspects if isinstance(suspects, frozenset) else frozenset[str]()
    listings, _ = queues.lists(broker, [queue.name for queue in first.queues])
    elsewhere = [message for message in first.waiting if message.task_id not in ids]
    again = [row for row, _ in queues.matches(broker, listings, ids=ids)] if len(elsewhere) < len(first.waiting) else []
    delivered, odd, unacked_coverage = unacked.read(broker, found.bindings, max_messages=MAX_UNACKED)
    nodes, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)
    unplaced = {result.task_id for result in first.results} | ids
    stored, again_coverage = results.by_id(broker, sorted(unplaced)[:_MOST_RESULTS])
    renewed = {"workers": workers_coverage, "unacked": unacked_coverage}
    if again_coverage.silent:
        renewed["results"] = again_coverage
    depths = queues.depths(listings)
    return replace(
        first,
        taken_at=taken_at,
        unacked=tuple(delivered),
        unreadable=(*(row for row in first.unreadable if row.place == "waiting"), *odd),
        held=tuple(held),
        nodes=tuple(nodes),
        receivers=receivers,
        waiting=_each_once([*elsewhere, *again]),
        results=tuple(stored),
        queues=tuple(
            replace(queue, depth=depths[queue.name], consumers=_consumers(nodes).get(queue.name, ()))
            for queue in first.queues
        ),
        coverage=tuple(renewed.get(row.place, row) for row in first.coverage),
        earlier=Reading(
            taken_at=first.taken_at,
            unacked=first.unacked,
            held=first.held,
            nodes=first.nodes,
            receivers=first.receivers,
            results=first.results,
            queues=first.queues,
        ),
    )


def queue_names(broker: Broker, found: keyspace.Found, nodes: Sequence[NodeInfo]) -> tuple[set[str], list[str]]:
    """
    Return the names of every queue, and of the lists that are none.

    Declared queues are those of a route, a node or the target; a list that nobody declares counts if its next
    message is one of Celery's, for applications keep lists of their own beside the broker's.
    """
    declared = {route.queue for routes in found.bindings.values() for route in routes if route.queue}
    declared |= {name for node in nodes for name in node.queues} | set(broker.target.queues)
    undeclared: dict[str, bool] = {}
    for key in found.lists:
        place = broker.keys.queue_of(key)
        if place and place[0] not in declared:
            undeclared[place[0]] = undeclared.get(place[0], False) or queues.looks_like_one(broker, key)
    return declared | {name for name, is_one in undeclared.items() if is_one}, sorted(
        n for n, is_one in undeclared.items() if not is_one
    )


def _consumers(nodes: Sequence[NodeInfo]) -> dict[str, tuple[str, ...]]:
    names = {name for node in nodes for name in node.queues}
    return {name: tuple(sorted(node.name for node in nodes if name in node.queues)) for name in names}


def _visibility(broker: Broker, nodes: Sequence[NodeInfo]) -> tuple[float, str]:
    """Return the deployment's visibility timeout: the shortest, as each node applies its own to all."""
    said = [(node.visibility_timeout_s, node.name) for node in nodes if node.visibility_timeout_s]
    if said:
        shortest, name = min(said)
        return shortest, name
    if broker.target.thresholds.visibility_timeout:
        return seconds(broker.target.thresholds.visibility_timeout), "the target's thresholds"
    return VISIBILITY_TIMEOUT_S, "Celery's default, as no node said"


def _each_once(rows: Sequence[WaitingMessage]) -> tuple[WaitingMessage, ...]:
    return tuple({(row.key, row.delivery_tag, row.sha256): row for row in rows}.values())
