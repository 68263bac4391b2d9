"""The lists of every queue → depths, tasks, and the messages that somebody asks for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

from opslib.collectors.scan import HASH_BITS, Scan, unreadable_row, waiting_row
from opslib.collectors.windows import Listing, from_served_end, stream
from opslib.envelope import Head, Unreadable, head, peek
from opslib.facts.messages import UnreadableMessage, WaitingMessage
from opslib.facts.system import Coverage, ListInfo, QueueInfo
from opslib.keys import raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.selection import Selection

#: Waiting messages that a look reads at most, unless it is told otherwise.
MAX_MESSAGES = 2_000_000
#: Lists whose lengths are asked for at once.
_PAGE = 2_000


class Wanted(NamedTuple):
    """What is quickly read of a message."""

    task_id: str
    task: str
    root_id: str


def lists(broker: Broker, names: Iterable[str]) -> tuple[list[Listing], dict[str, str]]:
    """Return the lists of these queues that hold something, and the keys that are no lists with their type."""
    wanted = [(name, key, step) for name in sorted(set(names)) for key, step in broker.keys.queue_lists(name).items()]
    found: list[Listing] = []
    strange: dict[str, str] = {}
    for start in range(0, len(wanted), _PAGE):
        page = wanted[start : start + _PAGE]
        with broker.reads.pipeline(transaction=False) as pipe:
            for _, key, _ in page:
                pipe.type(raw_name(key))
                pipe.llen(raw_name(key))
            replies = pipe.execute(raise_on_error=False)
        for (name, key, step), kind, length in zip(page, replies[::2], replies[1::2], strict=True):
            if kind == b"list" and isinstance(length, int):
                found.append(Listing(key=key, queue=name, priority=step, length=length))
            elif kind != b"none":
                strange[key] = bytes(kind).decode()
    return found, strange


def looks_like_one(broker: Broker, key: str) -> bool:
    """Whether the next message of a list that nobody declared as a queue is one of Celery's."""
    raw = cast("bytes | None", broker.reads.lindex(raw_name(key), -1))
    return raw is not None and isinstance(head(raw), Head)


def scan(
    broker: Broker, listings: Sequence[Listing], *, watch: Iterable[str], max_messages: int, now: float = 0.0
) -> Scan:
    """
    Read the headers of every waiting message once.

    Args:
        watch: Ids whose messages are all kept.

        now: Epoch seconds by the server's clock, for what has expired.

        max_messages: Messages after which reading stops, oldest first in each list.
    """
    result = Scan(watch=frozenset(watch), now=now)
    budget = max_messages
    for listing in listings:
        for position, raw in stream(broker, listing, limit=budget):
            result.note(listing, position, raw)
        result.unread += max(0, listing.length - budget)
        budget = max(0, budget - listing.length)
    result.conclude()
    return result


def matches(
    broker: Broker,
    listings: Sequence[Listing],
    *,
    ids: frozenset[str] = frozenset(),
    hashes: AbstractSet[int] = frozenset(),
) -> Iterator[tuple[WaitingMessage, bytes]]:
    """Yield every waiting message with one of these ids (or hashes, where only those are known), and its bytes."""
    for listing in listings:
        for position, raw in stream(broker, listing):
            envelope = peek(raw)
            found = None if envelope else head(raw)
            task_id = envelope.headers.id if envelope else found.task_id if isinstance(found, Head) else ""
            if task_id in ids or (hashes and hash(task_id) & HASH_BITS in hashes):
                found = found or head(raw)
                if isinstance(found, Head):
                    yield waiting_row(found, listing, position, raw), raw


def chosen(
    broker: Broker,
    listings: Sequence[Listing],
    wants: Callable[[Wanted], bool],
    *,
    odd: Counter[str] | None = None,
) -> Iterator[WaitingMessage]:
    """
    Yield the waiting messages that somebody wants, by what is quickly read of each.

    Args:
        odd: Counts by queue the messages that cannot be decoded: nobody can say whether one of them is wanted.
    """
    for listing in listings:
        for position, raw in stream(broker, listing):
            envelope = peek(raw)
            found = None if envelope else head(raw)
            if envelope:
                headers = envelope.headers
                wanted = wants(Wanted(headers.id or "", headers.task or "", headers.root_id or ""))
            elif isinstance(found, Head):
                wanted = wants(Wanted(found.task_id, found.task, found.root_id))
            else:
                wanted = False
                if odd is not None:
                    odd[listing.queue] += 1
            if wanted:
                found = found or head(raw)
                if isinstance(found, Head):
                    yield waiting_row(found, listing, position, raw)


def served_next(
    broker: Broker, listings: Sequence[Listing], selection: Selection | None, *, limit: int
) -> list[WaitingMessage | UnreadableMessage]:
    """
    Return the messages of a queue that are served next, as far as a filter means them; nothing is taken.

    What no worker can decode is of no task that a filter could mean; without one, it is what may stand in the way.
    """
    rows: list[WaitingMessage | UnreadableMessage] = []
    for listing in sorted(listings, key=lambda each: each.priority):
        for position, raw in from_served_end(broker, listing):
            found = head(raw)
            if isinstance(found, Unreadable):
                rows += [] if selection else [unreadable_row(found, listing, position, raw)]
            elif selection is None or selection.fits(found):
                rows.append(waiting_row(found, listing, position, raw))
            if len(rows) == limit:
                return rows
    return rows


def meant(broker: Broker, listings: Sequence[Listing], selection: Selection) -> dict[str, int]:
    """Return how many messages of each list a filter means, up to its limit, the list that is served first first."""
    counts: dict[str, int] = {}
    left = selection.limit
    for listing in sorted(listings, key=lambda each: each.priority):
        if selection.is_everything:
            count = min(listing.length, left) if selection.limit else listing.length
        elif selection.limit:
            heads = (head(raw) for _, raw in from_served_end(broker, listing))
            those = (found for found in heads if isinstance(found, Head) and selection.fits(found))
            count = sum(1 for _ in islice(those, left))
        else:
            rows = chosen(broker, [listing], lambda h: fnmatchcase(h.task, selection.task))
            count = sum(selection.fits(row) for row in rows)
        counts[listing.key] = count
        left -= count
    return counts


def infos(
    names: Iterable[str],
    listings: Sequence[Listing],
    consumers: Mapping[str, Sequence[str]],
    result: Scan | None = None,
) -> list[QueueInfo]:
    """
    Return one row for every queue, deepest first.

    Args:
        result: What was read of their messages; None where none was.
    """
    by_queue, result = _by_queue(listings), result or Scan()
    rows = []
    for name in set(names):
        lists_of = tuple(
            ListInfo(
                key=each.key,
                priority=each.priority,
                length=each.length,
                by_task=dict(result.tasks[each.key].most_common()),
                expired=result.expired[each.key],
            )
            for each in by_queue[name]
        )
        tasks: Counter[str] = Counter()
        for each in lists_of:
            tasks.update(each.by_task)
        odd: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for (task, priority), count in sorted(result.odd_priorities[name].items()):
            odd[task][priority] = count
        rows.append(
            QueueInfo(
                name=name,
                depth=sum(each.length for each in lists_of),
                by_priority={each.priority: each.length for each in lists_of},
                consumers=tuple(sorted(consumers.get(name, ()))),
                read=result.read[name],
                by_task=dict(tasks.most_common()),
                scheduled=result.scheduled[name],
                retrying=dict(result.retrying[name].most_common()),
                odd_priorities=dict(odd),
                lists=lists_of,
            )
        )
    return sorted(rows, key=lambda row: (-row.depth, row.name))


def renewed(
    rows: Iterable[QueueInfo], listings: Sequence[Listing], consumers: Mapping[str, Sequence[str]]
) -> list[QueueInfo]:
    """Return the rows with their depths and consumers of a later look; what was read of their messages stays."""
    by_queue = _by_queue(listings)
    again = []
    for row in rows:
        before = {each.key: each for each in row.lists}
        lists_of = tuple(
            replace(before[each.key], length=each.length)
            if each.key in before
            else ListInfo(key=each.key, priority=each.priority, length=each.length)
            for each in by_queue[row.name]
        )
        again.append(
            replace(
                row,
                depth=sum(each.length for each in lists_of),
                by_priority={each.priority: each.length for each in lists_of},
                consumers=tuple(sorted(consumers.get(row.name, ()))),
                lists=lists_of,
            )
        )
    return again


def _by_queue(listings: Iterable[Listing]) -> defaultdict[str, list[Listing]]:
    """Return the lists of each queue, the one that is served first at the head."""
    found: defaultdict[str, list[Listing]] = defaultdict(list)
    for listing in sorted(listings, key=lambda each: each.priority):
        found[listing.queue].append(listing)
    return found


def coverage(
    read: int, unread: int, strange: Mapping[str, str], not_queues: Sequence[str], *, unlisted: int = 0
) -> Coverage:
    """Say how many of the waiting messages were read, and which keys were left alone."""
    notes = []
    if unread:
        notes.append(f"{unread:,} messages were not read; max_messages allows no more.")
    if unlisted:
        notes.append(f"{unlisted:,} more cannot be decoded than are listed.")
    if strange:
        notes.append("; ".join(f"{key} is a {kind}, not a list" for key, kind in sorted(strange.items())[:5]) + ".")
    if not_queues:
        notes.append(f"Left alone as no queue of Celery's: {', '.join(not_queues[:5])}{' …' * (len(not_queues) > 5)}.")
    return Coverage(place="waiting", seen=read, silent=unread + len(strange), note=" ".join(notes))
