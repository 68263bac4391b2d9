"""READ. Everything that other looks see, and what server, nodes and results say of their own health → one Snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import dead_letters as dead
from opslib.collectors import dead_look, keyspace, looks, node_care, queues, result_life, server_care, task_rows
from opslib.durations import seconds
from opslib.errors import BadParameter
from opslib.facts.care import Care
from opslib.facts.dead import DeadLetters
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Results whose time to live is asked; of more, so many are taken evenly from all.
SAMPLE = 5_000
#: Rows of dead letters that are kept; all are counted and grouped.
_MOST_LETTERS = 5_000


def checkup(
    broker: Broker,
    *,
    settle: str = "2s",
    answer_within: str = "1.5s",
    sample: int = SAMPLE,
    max_keys: int = keyspace.MAX_KEYS,
    max_messages: int = queues.MAX_MESSAGES,
) -> Snapshot:
    """
    Look at everything: what is under way, dead letters, and what server, nodes and results say of their health.

    Nothing is written but a reply list of the control plane, which is removed again.

    Args:
        settle: Pause between two looks: an orphan, and dead letters that grow, are told only by a second one.

        answer_within: How long a silent node is waited for, with a unit.

        sample: Results whose time to live is asked.

        max_keys: Keys visited per database at most; beyond that the coverage is partial.

        max_messages: Waiting messages read at most, the next to be served first.

    Raises:
        BadParameter: If a sample has nothing in it.

        BrokerUnreachable: If the server stops answering on the way.

        BrokerRefused: If it refuses what every look needs.
    """
    if sample < 1:
        raise BadParameter(f"sample: {sample} is no number of results.", hint="5000 is the default; 1 is the least.")
    pause_s, timeout_s = seconds(settle, "settle"), seconds(answer_within, "answer_within")
    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        began = time.monotonic()
        before = dead.marks(broker, _dead_lists(broker, found, ()))
        seen = looks.first(
            broker, found, keys_coverage, timeout_s=timeout_s, max_keys=max_keys, max_messages=max_messages
        )
        letters, letters_coverage = _letters(broker, found, seen, timeout_s=timeout_s, max_keys=max_keys)
        care, care_coverage = _care(broker, found.results, seen, timeout_s=timeout_s, sample=sample)
        unsettled = looks.unsettled(seen)
        if unsettled or before:
            time.sleep(max(0.0, pause_s - (time.monotonic() - began)))
        if unsettled:
            seen = looks.second(broker, found, seen, timeout_s=timeout_s)
        if before:
            letters = dead.again(broker, letters, before)
    statuses, tables_coverage = task_rows.overall(broker.target)
    coverage = (*seen.coverage, *letters_coverage, *care_coverage, *tables_coverage)
    return replace(seen, letters=letters, care=care, statuses=tuple(statuses), coverage=coverage)


def _care(
    broker: Broker, known: Sequence[bytes], seen: Snapshot, *, timeout_s: float, sample: int
) -> tuple[Care, list[Coverage]]:
    server, server_rows = server_care.read(broker)
    nodes, nodes_row = node_care.read(broker, {node.name for node in seen.answering}, timeout_s=timeout_s)
    life, life_row = result_life.read(broker, known, sample)
    return Care(server=server, nodes=nodes, results=life), [*server_rows, nodes_row, *life_row]


def _dead_lists(broker: Broker, found: keyspace.Found, declared: Iterable[str]) -> list[str]:
    ours = {broker.keys.queue(name) for name in declared}
    return sorted(key for key in found.dead if key not in ours)


def _letters(
    broker: Broker, found: keyspace.Found, seen: Snapshot, *, timeout_s: float, max_keys: int
) -> tuple[DeadLetters, list[Coverage]]:
    """Read the dead letters; those whose tasks are in circulation again are none that nobody captured."""
    keys = _dead_lists(broker, found, (queue.name for queue in seen.queues))
    letters, lists, stored = dead_look.read(
        broker, found, seen, keys, timeout_s=timeout_s, max_letters=_MOST_LETTERS, max_keys=max_keys
    )
    # The same keys were read for their states already; what is missing of them has its row.
    return letters, [lists] if stored.silent <= _silent(seen, "results") else [lists, stored]


def _silent(seen: Snapshot, place: str) -> int:
    return sum(row.silent for row in seen.coverage if row.place == place)
