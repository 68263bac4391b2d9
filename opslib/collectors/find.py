"""Task ids, or a filter → every place that holds such tasks, with what could not be looked into."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import (
    MAX_KEYS,
    dead_letters,
    keyspace,
    looks,
    quarantine,
    queues,
    results,
    server,
    unacked,
    workers,
)
from opslib.durations import seconds
from opslib.facts import Coverage, HeldTask, UnackedMessage, WaitingMessage, Whereabouts
from opslib.selection import Selection

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Tasks that a filter may mean before the others are only counted.
MOST_TASKS = 500
#: Messages of a task's offspring that are kept.
_MOST_OFFSPRING = 200


def find(
    broker: Broker,
    ids: Iterable[str] = (),
    *,
    selection: Selection | None = None,
    places: Iterable[str] = (),
    limit: int = MOST_TASKS,
    kept: bool = True,
    settle: str = "",
    answer_within: str = "1.5s",
    max_keys: int = MAX_KEYS,
) -> Whereabouts:
    """
    Look for tasks in every place.

    Results, then unacked and nodes, then waiting lists, as in `collect`: a task on its way is seen twice rather
    than not at all.

    Args:
        selection: Instead of ids: the tasks in flight that it means.

        places: Of those only the ones that are in one of these: waiting, unacked, active, reserved, scheduled.

        limit: Tasks of a selection that are kept; the others are counted.

        kept: Whether quarantine and dead letters are looked through too.

        settle: Pause before a second look at what may just be passing by, with a unit; empty for one look.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    timeout_s = seconds(answer_within, "answer_within")
    pause_s = seconds(settle, "settle") if settle else None
    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        stored, results_coverage = results.by_id(broker, sorted(set(ids)))
        everything, listings = _in_flight(broker, found, keys_coverage, timeout_s=timeout_s)
        if selection is None:
            seen = _by_id(broker, everything, listings, frozenset(ids))
        else:
            seen = _by_selection(broker, everything, listings, selection, frozenset(places), limit)
            stored, results_coverage = results.by_id(broker, sorted(seen.ids))
        seen = replace(seen, results=tuple(stored), coverage=(*seen.coverage, results_coverage))
        if kept:
            seen = _with_kept(broker, found, seen)
        if pause_s is None or not looks.unsettled(seen):
            return seen
        time.sleep(pause_s)
        again = looks.second(broker, found, seen, timeout_s=timeout_s)
        return _only(again, ids=seen.ids, offspring=seen.offspring)


def _in_flight(
    broker: Broker, found: keyspace.Found, keys_coverage: Coverage, *, timeout_s: float
) -> tuple[Whereabouts, list[queues.Listing]]:
    """Return all that is delivered and held, of any task, and the lists that are yet to be read."""
    taken_at = broker.server_time()
    info, server_coverage = server.read(broker)
    delivered, _, unacked_coverage = unacked.read(broker, found.bindings, max_messages=looks.MAX_UNACKED)
    nodes, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=found.remembered)
    names, not_queues = looks.queue_names(broker, found, nodes)
    listings, strange = queues.lists(broker, names)
    visibility_s, source = looks.visibility(broker, nodes)
    everything = Whereabouts(
        target=broker.target.name,
        broker=broker.target.shown_broker,
        fingerprint=broker.fingerprint,
        taken_at=taken_at,
        server=info,
        queues=tuple(queues.infos(names, listings, queues.Scan(), looks.consumers(nodes))),
        unacked=tuple(delivered),
        held=tuple(held),
        nodes=tuple(nodes),
        receivers=receivers,
        visibility_timeout_s=visibility_s,
        visibility_source=source,
        coverage=(
            server_coverage,
            keys_coverage,
            workers_coverage,
            queues.coverage(sum(each.length for each in listings), 0, strange, not_queues),
            unacked_coverage,
            *keyspace.set_aside(broker, found),
        ),
    )
    return everything, listings


def _by_id(
    broker: Broker, everything: Whereabouts, listings: Sequence[queues.Listing], ids: frozenset[str]
) -> Whereabouts:
    rows: list[WaitingMessage] = []
    offspring: list[WaitingMessage | UnackedMessage] = [
        row for row in everything.unacked if row.root_id in ids and row.task_id not in ids
    ]
    for row in queues.chosen(broker, listings, lambda h: h.task_id in ids or h.root_id in ids):
        if row.task_id in ids:
            rows.append(row)
        elif len(offspring) < _MOST_OFFSPRING:
            offspring.append(row)
    return _only(replace(everything, waiting=tuple(rows)), ids=ids, offspring=offspring)


def _by_selection(
    broker: Broker,
    everything: Whereabouts,
    listings: Sequence[queues.Listing],
    selection: Selection,
    places: frozenset[str],
    limit: int,
) -> Whereabouts:
    """
    Look for what a filter means, the tasks that nodes have first.

    A task that a node holds is judged by its message where it has one; without, it has no retries that anybody knows.
    """
    delivered = {row.task_id: row for row in everything.unacked}
    meant: dict[str, None] = {}
    if not places or "unacked" in places:
        meant |= dict.fromkeys(task_id for task_id, row in delivered.items() if selection.fits(row))
    for task in everything.held:
        if (not places or task.place in places) and selection.fits(delivered.get(task.task_id) or _Held(task)):
            meant[task.task_id] = None
    rows: list[WaitingMessage] = []
    more = max(0, len(meant) - limit)
    ids = set(list(meant)[:limit])
    if not places or "waiting" in places:
        for row in queues.chosen(broker, listings, lambda h: fnmatchcase(h.task, selection.task)):
            if row.task_id in ids:
                rows.append(row)
            elif selection.fits(row) and len(ids) < limit:
                ids.add(row.task_id)
                rows.append(row)
            elif selection.fits(row):
                more += 1
    elif ids:
        rows = [row for row, _ in queues.matches(broker, listings, ids=frozenset(ids))]
    return replace(_only(replace(everything, waiting=tuple(rows)), ids=frozenset(ids)), selection=selection, more=more)


@dataclass(frozen=True, slots=True)
class _Held:
    """A held task whose message is not in the broker any more, as a filter looks at it."""

    held: HeldTask
    retries: int = 0
    expires_at: float | None = None

    @property
    def task(self) -> str:
        return self.held.task


def _with_kept(broker: Broker, found: keyspace.Found, seen: Whereabouts) -> Whereabouts:
    """Look through what is out of circulation as well."""
    kept, quarantine_coverage = quarantine.of_tasks(broker, found.quarantined, seen.ids)
    dead, dead_coverage = dead_letters.of_tasks(broker, found.dead, seen.ids)
    coverage = (*seen.coverage, quarantine_coverage, dead_coverage)
    return replace(seen, quarantined=tuple(kept), dead=tuple(dead), coverage=coverage)


def _only(
    seen: Whereabouts, *, ids: frozenset[str], offspring: Iterable[WaitingMessage | UnackedMessage] = ()
) -> Whereabouts:
    """Return of a view what is of these tasks."""
    return replace(
        seen,
        ids=ids,
        unacked=tuple(row for row in seen.unacked if row.task_id in ids),
        held=tuple(row for row in seen.held if row.task_id in ids),
        unreadable=(),
        offspring=tuple(offspring),
    )
