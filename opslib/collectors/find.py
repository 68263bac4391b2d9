"""Task ids, or a filter → every place that holds such tasks, with what could not be looked into."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import refusals
from opslib.collectors import (
    dead_letters,
    keyspace,
    looks,
    quarantine,
    queues,
    results,
    server,
    task_rows,
    unacked,
    workers,
)
from opslib.collectors.windows import Listing
from opslib.durations import seconds
from opslib.facts.messages import UnackedMessage, WaitingMessage
from opslib.facts.system import FINAL_STATES, Coverage, HeldTask
from opslib.facts.whereabouts import Whereabouts
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
    oldest: int = 0,
    kept: bool = True,
    in_tables: bool = False,
    settle: str = "",
    answer_within: str = "1.5s",
    max_keys: int = keyspace.MAX_KEYS,
) -> Whereabouts:
    """
    Look for tasks in every place.

    Read from the end of a task's life to its beginning: a retry and a restored message go this way, and are met at
    least once. A task that moves on meanwhile goes the other way and can slip through, so whatever was found nowhere,
    or may just have been passing, is looked for once more in the opposite order.

    Args:
        selection: Instead of ids: the tasks in flight that it means.

        places: Of those only the ones that are in one of these: waiting, unacked, active, reserved, scheduled.

        limit: Tasks of a selection that are kept; the others are counted.

        oldest: Where neither is given: so many of the tasks that have been delivered and unacknowledged the longest.

        kept: Whether quarantine and dead letters are looked through too.

        in_tables: Whether the application's own task tables are asked for their rows, where the target has some.

        settle: Pause before a second look, with a unit; empty for one look.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    timeout_s = seconds(answer_within, "answer_within")
    pause_s = seconds(settle, "settle") if settle else None
    named = frozenset(map(_spelled, ids))
    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        stored = results.by_id(broker, sorted(named))
        everything, listings = _in_flight(broker, found, keys_coverage, timeout_s=timeout_s)
        if selection is not None:
            seen = _by_selection(broker, everything, listings, selection, frozenset(places), limit)
        else:
            longest = (message.task_id for message in everything.unacked if message.task_id)
            wanted = named or frozenset(list(dict.fromkeys(longest))[:oldest])
            seen = replace(_by_id(broker, everything, listings, wanted), unasked=not named)
        if seen.ids != named:
            stored = results.by_id(broker, sorted(seen.ids))
        seen = replace(seen, results=tuple(stored[0]), coverage=(*seen.coverage, stored[1]))
        if kept:
            seen = _with_kept(broker, found, listings, seen)
        if pause_s is not None and _unsure(seen):
            time.sleep(pause_s)
            seen = _again(broker, found, seen, timeout_s=timeout_s)
            seen = _with_kept(broker, found, listings, seen) if kept else seen
        return _with_rows(broker, seen) if in_tables else seen


def _with_rows(broker: Broker, seen: Whereabouts) -> Whereabouts:
    """Ask the application's own tables as well; they are read last, for a task writes its row at its end."""
    rows, coverage = task_rows.of_tasks(broker.target, sorted(seen.ids))
    return replace(seen, rows=tuple(rows), coverage=(*seen.coverage, *coverage))


def _unsure(seen: Whereabouts) -> bool:
    """Whether a second look could say more: a task that is nowhere, in passing, or waits beside an idle node."""
    under_way = tuple(row for row in seen.results if row.state not in FINAL_STATES)
    passing = looks.unsettled(replace(seen, results=under_way))
    return (
        isinstance(passing, frozenset)
        or not all(seen.places.values())
        or bool(seen.waiting and looks.idle_beside_work(seen))
    )


def _again(broker: Broker, found: keyspace.Found, seen: Whereabouts, *, timeout_s: float) -> Whereabouts:
    """Look for the same tasks once more, in the other direction."""
    again = looks.second(broker, found, seen, timeout_s=timeout_s, wanted=seen.ids)
    odd = sum(row.place == "unacked" for row in again.unreadable)
    coverage = tuple(_noting(row, odd) if row.place == "unacked" else row for row in again.coverage)
    return _only(replace(again, coverage=coverage), ids=seen.ids, offspring=seen.offspring)


def _in_flight(
    broker: Broker, found: keyspace.Found, keys_coverage: Coverage, *, timeout_s: float
) -> tuple[Whereabouts, list[Listing]]:
    """Return all that is delivered and held, of any task, and the lists that are yet to be read."""
    taken_at = broker.server_time()
    info, server_coverage = server.read(broker)
    delivered, odd, unacked_coverage = unacked.read(broker, found.bindings, max_messages=looks.MAX_UNACKED)
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
        queues=tuple(queues.infos(names, listings, looks.consumers(nodes))),
        unacked=tuple(delivered),
        held=tuple(held),
        nodes=tuple(nodes),
        receivers=receivers,
        visibility_timeout_s=visibility_s,
        visibility_source=source,
        foreign_prefixes=tuple(sorted(found.foreign)),
        coverage=(
            server_coverage,
            keys_coverage,
            workers_coverage,
            queues.coverage(sum(each.length for each in listings), 0, strange, not_queues),
            _noting(unacked_coverage, len(odd)),
            *keyspace.set_aside(broker, found),
        ),
    )
    return everything, listings


def _by_id(broker: Broker, everything: Whereabouts, listings: Sequence[Listing], ids: frozenset[str]) -> Whereabouts:
    odd: Counter[str] = Counter()
    offspring: list[WaitingMessage | UnackedMessage] = []
    offspring += [row for row in everything.unacked if row.root_id in ids and row.task_id not in ids][:_MOST_OFFSPRING]

    def theirs() -> Iterable[WaitingMessage]:
        for row in queues.chosen(broker, listings, lambda h: h.task_id in ids or h.root_id in ids, odd=odd):
            if row.task_id in ids:
                yield row
            elif len(offspring) < _MOST_OFFSPRING:
                offspring.append(row)

    rows = looks.copies(theirs())
    seen = replace(everything, waiting=tuple(rows), coverage=_with_odd(everything.coverage, odd))
    return _only(seen, ids=ids, offspring=offspring)


def _by_selection(
    broker: Broker,
    everything: Whereabouts,
    listings: Sequence[Listing],
    selection: Selection,
    places: frozenset[str],
    limit: int,
) -> Whereabouts:
    """
    Look for what a filter means, the tasks that nodes have first.

    A task that a node holds is judged by its message where it has one; without, it has no retries that anybody knows.
    """
    odd: Counter[str] = Counter()
    meant = _meant(everything, selection, places)
    ids = set(meant[:limit])
    beyond = frozenset(meant[limit:])
    more = len(beyond)

    def theirs() -> Iterable[WaitingMessage]:
        nonlocal more
        for row in queues.chosen(broker, listings, lambda h: fnmatchcase(h.task, selection.task), odd=odd):
            if row.task_id not in ids and row.task_id not in beyond and selection.fits(row):
                if len(ids) < limit:
                    ids.add(row.task_id)
                else:
                    more += 1
            if row.task_id in ids:
                yield row

    rows = looks.copies(theirs()) if not places or "waiting" in places else []
    if ids and ((places and "waiting" not in places) or selection.retries or selection.expired_at is not None):
        # A copy that the filter does not mean by itself is one of the task's all the same.
        rows = looks.copies(row for row, _ in queues.matches(broker, listings, ids=frozenset(ids)))
    seen = replace(everything, waiting=tuple(rows), coverage=_with_odd(everything.coverage, odd))
    return replace(_only(seen, ids=frozenset(ids)), selection=selection, more=more)


def _meant(everything: Whereabouts, selection: Selection, places: frozenset[str]) -> list[str]:
    """Return the tasks that nodes have and a filter means, each once, those delivered the longest ago first."""
    delivered = {row.task_id: row for row in everything.unacked}
    unacked_ids = [row.task_id for row in everything.unacked if selection.fits(row)]
    held_ids = [
        task.task_id
        for task in everything.held
        if (not places or task.place in places) and selection.fits(delivered.get(task.task_id) or _Held(task))
    ]
    return list(dict.fromkeys([*(unacked_ids if not places or "unacked" in places else ()), *held_ids]))


@dataclass(frozen=True, slots=True)
class _Held:
    """A held task whose message is not in the broker any more, as a filter looks at it."""

    held: HeldTask
    retries: int = 0
    expires_at: float | None = None

    @property
    def task(self) -> str:
        return self.held.task


def _with_kept(broker: Broker, found: keyspace.Found, listings: Sequence[Listing], seen: Whereabouts) -> Whereabouts:
    """Look through what is out of circulation as well; what was read as a queue is no list of dead letters."""
    read = {listing.key for listing in listings}
    kept, quarantine_coverage = quarantine.of_tasks(broker, found.quarantined, seen.ids)
    dead, dead_coverage = dead_letters.of_tasks(broker, [key for key in found.dead if key not in read], seen.ids)
    others = (row for row in seen.coverage if row.place not in {quarantine_coverage.place, dead_coverage.place})
    coverage = (*others, quarantine_coverage, dead_coverage)
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


def _with_odd(rows: Iterable[Coverage], odd: Counter[str]) -> tuple[Coverage, ...]:
    where = ", ".join(name for name, _ in odd.most_common(3))
    return tuple(_noting(row, odd.total(), f" in {where}") if row.place == "waiting" else row for row in rows)


def _noting(row: Coverage, odd: int, where: str = "") -> Coverage:
    """
    Return coverage that says how many messages cannot be decoded.

    They were looked at, so nothing of the place was silent; but nobody can say which tasks they are of.
    """
    if not odd:
        return row
    said = f"{odd:,} message{'s' * (odd != 1)}{where} cannot be decoded, so nobody knows of which task."
    return replace(row, note=f"{row.note} {said}".strip())


def _spelled(task_id: str) -> str:
    """Return an id as a message's row has it: half of a surrogate pair is spelled out, as the server knows none."""
    try:
        task_id.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return task_id.encode("utf-8", "backslashreplace").decode("utf-8")
    return task_id
