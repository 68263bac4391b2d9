"""Dead letters, and where else their tasks are → the letters that are still to be dealt with, and what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opslib.collectors import dead_letters as dead
from opslib.collectors import keyspace, looks, queues, unacked
from opslib.facts.dead import DeadLetters
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker


def read(
    broker: Broker,
    found: keyspace.Found,
    seen: Snapshot,
    keys: Sequence[str],
    *,
    timeout_s: float,
    max_letters: int,
    max_keys: int,
    notes: Iterable[str] = (),
) -> tuple[DeadLetters, Coverage, Coverage]:
    """
    Return the dead letters of some lists, the coverage of these lists, and that of their tasks' results.

    Args:
        seen: The look at everything else, which knows what nodes hold.

        notes: What else is to be said of the lists.
    """
    revoked, unasked = dead.revoked(broker, timeout_s=timeout_s)
    letters, (lists, stored) = dead.read(
        broker,
        keys,
        now=seen.taken_at.timestamp(),
        known_results=found.results,
        revoked=revoked,
        max_letters=max_letters,
        max_keys=max_keys,
        elsewhere=lambda ids: _elsewhere(broker, found, seen, ids),
    )
    silent = f"{unasked:,} node{'s' * (unasked != 1)} did not say what is revoked." if unasked else ""
    return letters, replace(lists, note=" ".join(filter(None, (lists.note, *notes, silent)))), stored


def _elsewhere(broker: Broker, found: keyspace.Found, seen: Snapshot, ids: frozenset[str]) -> set[str]:
    """Return those of some tasks that are in circulation again, though their results are the old ones, or put aside."""
    listings, _ = queues.lists(broker, [queue.name for queue in seen.queues])
    delivered, _, _ = unacked.read(broker, found.bindings, max_messages=looks.MAX_UNACKED)
    waiting = {row.task_id for row in queues.chosen(broker, listings, lambda each: each.task_id in ids)}
    under_way = {row.task_id for row in delivered} | {row.task_id for row in seen.held}
    return waiting | (under_way & ids) | dead.put_aside(broker, found.quarantined, ids)
