"""One part of a deployment → its rows and their coverage, in one short look: queues, nodes, or each by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import keyspace, workers
from opslib.durations import seconds

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.system import Coverage, HeldTask, NodeInfo, QueueInfo


def nodes(broker: Broker, *, answer_within: str = "1.5s") -> tuple[list[NodeInfo], list[HeldTask], Coverage]:
    """
    Return every node with what it holds, those that only the broker remembers too.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    with refusals.explained(broker.target.shown_broker):
        remembered = keyspace.remembered(broker)
        rows, held, _, coverage = workers.read(
            broker, timeout_s=seconds(answer_within, "answer_within"), remembered=remembered
        )
    return rows, held, coverage


def depths(
    broker: Broker, *, answer_within: str = "1.5s", max_keys: int = keyspace.MAX_KEYS
) -> tuple[list[QueueInfo], list[Coverage]]:
    """
    Return every queue with its depth and consumers, without reading a message.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    from opslib.collectors import looks, queues

    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        answering, _, _, workers_coverage = workers.read(
            broker, timeout_s=seconds(answer_within, "answer_within"), remembered=found.remembered
        )
        names, not_queues = looks.queue_names(broker, found, answering)
        listings, strange = queues.lists(broker, names)
        rows = queues.infos(names, listings, looks.consumers(answering))
        waiting = queues.coverage(sum(row.depth for row in rows), 0, strange, not_queues)
        aside = keyspace.set_aside(broker, found)
    return rows, [keys_coverage, workers_coverage, waiting, *aside]


def reach(broker: Broker, *, answer_within: str = "1.5s") -> list[Coverage]:
    """
    Try every part that a target names, each by itself.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    from opslib.collectors import app_keys, results, server

    with refusals.explained(broker.target.shown_broker):
        _, server_coverage = server.read(broker)
        found, keys_coverage = keyspace.read(broker, max_keys=keyspace.STEP)
        _, _, _, workers_coverage = workers.read(broker, timeout_s=seconds(answer_within, "answer_within"))
        _, _, results_coverage = results.read(broker, found.results[:1], max_keys=keyspace.STEP)
        _, apps_coverage = app_keys.read(broker, ["-"], names=broker.target.app_keys)
    sampled = [
        replace(
            row, silent=0 if "max_keys" in row.note else row.silent, note="" if "max_keys" in row.note else row.note
        )
        for row in (keys_coverage, results_coverage)
    ]
    return [server_coverage, workers_coverage, *sampled, *apps_coverage]
