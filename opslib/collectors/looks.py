"""A deployment → one look at all of it, and a second one at what may only have been passing by."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from opslib.collectors import keyspace, queues, results, server, unacked, workers
from opslib.durations import seconds
from opslib.facts.messages import WaitingMessage
from opslib.facts.snapshot import Reading, Snapshot
from opslib.facts.system import Coverage, NodeInfo
from opslib.keys import OWN

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Rows of unacked messages that are kept; a deployment has as many as its nodes prefetch.
MAX_UNACKED = 50_000
_MOST_RESULTS = 5_000
#: Copies of one id that are kept: somebody who gives every message the same id must not fill this machine's memory.
MOST_COPIES = 100
AnySnapshot = TypeVar("AnySnapshot", bound=Snapshot)

#: Celery's own default for the Redis transport.
VISIBILITY_TIMEOUT_S = 3600.0


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


def first(
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
    scan = queues.scan(broker, listings, watch=watch, max_messages=max_messages, now=taken_at.timestamp())
    repeated = [row for row, _ in queues.matches(broker, listings, hashes=scan.repeated)] if scan.repeated else []
    visibility_s, source = visibility(broker, nodes)
    return Snapshot(
        target=broker.target.name,
        broker=broker.target.shown_broker,
        fingerprint=broker.fingerprint,
        taken_at=taken_at,
        server=info,
        queues=tuple(queues.infos(names, listings, consumers(nodes), scan)),
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
            *keyspace.set_aside(broker, found),
        ),
        visibility_timeout_s=visibility_s,
        visibility_source=source,
        foreign_prefixes=tuple(sorted(found.foreign)),
    )


def around(broker: Broker, found: keyspace.Found, keys_coverage: Coverage, *, timeout_s: float) -> Snapshot:
    """Look at the server, the nodes, and how much waits in each queue; no message and no result is read."""
    taken_at = broker.server_time()
    info, server_coverage = server.read(broker)
    nodes, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)
    names, not_queues = queue_names(broker, found, nodes)
    listings, strange = queues.lists(broker, names)
    visibility_s, source = visibility(broker, nodes)
    return Snapshot(
        target=broker.target.name,
        broker=broker.target.shown_broker,
        fingerprint=broker.fingerprint,
        taken_at=taken_at,
        server=info,
        queues=tuple(queues.infos(names, listings, consumers(nodes))),
        held=tuple(held),
        nodes=tuple(nodes),
        receivers=receivers,
        coverage=(
            server_coverage,
            keys_coverage,
            workers_coverage,
            queues.coverage(sum(each.length for each in listings), 0, strange, not_queues),
            *keyspace.set_aside(broker, found),
        ),
        visibility_timeout_s=visibility_s,
        visibility_source=source,
        foreign_prefixes=tuple(sorted(found.foreign)),
    )


def second(
    broker: Broker,
    found: keyspace.Found,
    before: AnySnapshot,
    *,
    timeout_s: float,
    wanted: frozenset[str] = frozenset(),
) -> AnySnapshot:
    """
    Read again what may have been passing, in the order that makes a copy seen twice a real one.

    Waiting copies first and unacked ones after: a retry pushes its new message before the old one is acknowledged,
    so an old copy that is still there after the new one was seen did not just lose a race. It is also the order in
    which a task moves, so one that overtook the first look cannot overtake this one.

    Args:
        wanted: Tasks that are looked for again wherever the first look saw them, or did not.
    """
    taken_at = broker.server_time()
    suspects = unsettled(before)
    ids = wanted | (suspects if isinstance(suspects, frozenset) else frozenset[str]())
    listings, _ = queues.lists(broker, [queue.name for queue in before.queues])
    elsewhere = [message for message in before.waiting if message.task_id not in ids]
    searched = wanted or len(elsewhere) < len(before.waiting)
    again = copies(row for row, _ in queues.matches(broker, listings, ids=ids)) if searched else []
    delivered, odd, unacked_coverage = unacked.read(broker, found.bindings, max_messages=MAX_UNACKED)
    nodes, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)
    unplaced = {result.task_id for result in before.results} | ids
    stored, again_coverage = results.by_id(broker, sorted(unplaced)[:_MOST_RESULTS])
    renewed = {"workers": workers_coverage, "unacked": unacked_coverage}
    if again_coverage.silent:
        renewed["results"] = again_coverage
    return replace(
        before,
        taken_at=taken_at,
        unacked=tuple(delivered),
        unreadable=(*(row for row in before.unreadable if row.place == "waiting"), *odd),
        held=tuple(held),
        nodes=tuple(nodes),
        receivers=receivers,
        waiting=_each_once([*elsewhere, *again]),
        results=tuple(stored),
        queues=tuple(queues.renewed(before.queues, listings, consumers(nodes))),
        coverage=tuple(renewed.get(row.place, row) for row in before.coverage),
        earlier=Reading(
            taken_at=before.taken_at,
            unacked=before.unacked,
            held=before.held,
            nodes=before.nodes,
            receivers=before.receivers,
            results=before.results,
            waiting=before.waiting,
            queues=before.queues,
        ),
    )


def retrying(snapshot: Reading) -> frozenset[str]:
    """Return the ids of all messages that were retried before: of how far they came, a later look tells."""
    return frozenset(row.task_id for row in (*snapshot.waiting, *snapshot.unacked) if row.retries)


def queue_names(broker: Broker, found: keyspace.Found, nodes: Sequence[NodeInfo]) -> tuple[set[str], list[str]]:
    """
    Return the names of every queue, and of the lists that are none.

    Declared queues are those of a route, a node or the target; a list that nobody declares counts if its next
    message is one of Celery's, for applications keep lists of their own beside the broker's. What this tool keeps is
    never a queue, whoever declares it: a quarantined message must not look like one that waits.
    """
    declared = {route.queue for routes in found.bindings.values() for route in routes if route.queue}
    declared |= {name for node in nodes for name in node.queues} | set(broker.target.queues)
    ours = {name for name in declared if name.startswith(OWN)}
    declared -= ours
    undeclared: dict[str, bool] = {}
    for key in found.lists:
        place = broker.keys.queue_of(key)
        if place and place[0] not in declared:
            undeclared[place[0]] = undeclared.get(place[0], False) or queues.looks_like_one(broker, key)
    apart = {name for name, is_one in undeclared.items() if not is_one}
    return declared | (undeclared.keys() - apart), sorted(apart | ours)


def consumers(nodes: Sequence[NodeInfo]) -> dict[str, tuple[str, ...]]:
    """Return the nodes that consume each queue."""
    names = {name for node in nodes for name in node.queues}
    return {name: tuple(sorted(node.name for node in nodes if name in node.queues)) for name in names}


def visibility(broker: Broker, nodes: Sequence[NodeInfo]) -> tuple[float, str]:
    """Return the deployment's visibility timeout: the shortest, as each node applies its own to all."""
    said = [(node.visibility_timeout_s, node.name) for node in nodes if node.visibility_timeout_s]
    if said:
        shortest, name = min(said)
        return shortest, name
    if broker.target.thresholds.visibility_timeout:
        return seconds(broker.target.thresholds.visibility_timeout), "the target's thresholds"
    return VISIBILITY_TIMEOUT_S, "Celery's default, as no node said"


def copies(rows: Iterable[WaitingMessage]) -> list[WaitingMessage]:
    """Return messages as they come, of one task id no more than the last MOST_COPIES: those served first."""
    kept: defaultdict[str, deque[WaitingMessage]] = defaultdict(lambda: deque(maxlen=MOST_COPIES))
    for row in rows:
        kept[row.task_id].append(row)
    return [row for same in kept.values() for row in same]


def _each_once(rows: Sequence[WaitingMessage]) -> tuple[WaitingMessage, ...]:
    return tuple({(row.key, row.delivery_tag, row.sha256): row for row in rows}.values())
