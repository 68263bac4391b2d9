"""The lists of every queue, streamed in windows of bytes → depths, tasks, and the messages worth keeping."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from opslib.envelope import Head, Unreadable, digest, head, instant, peek
from opslib.facts.messages import UNKNOWN_TASK, UnreadableMessage, WaitingMessage
from opslib.facts.system import Coverage, ListInfo, QueueInfo
from opslib.keys import raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.selection import Selection

#: What one reply may weigh. Asking for a whole list of a million stops every other client for seconds (PERFORMANCE 0).
WINDOW_BYTES = 256 * 1024
#: Waiting messages that a look reads at most, unless it is told otherwise.
MAX_MESSAGES = 2_000_000
_MOST_PER_WINDOW = 2_000
#: Messages per page from the served end, where few are wanted.
_PEEK = 50
#: Nodes of a list that the server weighs for its size: a few hundred microseconds.
_SAMPLES = 1_000
#: Rows kept for each question; the counts beside them are of all messages.
_KEEP = 1_000
_KEEP_WATCHED = 5_000
_TASK_NAMES = 1_000
#: Pairs of task and odd priority that are told apart in one queue.
_ODD_PAIRS = 100
#: The lowest that Celery knows; kombu takes a higher number for it, and one below 0 for 0 (facts §1.2).
_LAST = 9
_BUCKETS = 256
_HASH_BITS = 2**64 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """
    One list of a queue.

    Attributes:
        length: As LLEN said before it was read.
    """

    key: str
    queue: str
    priority: int
    length: int


class Wanted(NamedTuple):
    """What is quickly read of a message."""

    task_id: str
    task: str
    root_id: str


@dataclass(kw_only=True)
class Scan:
    """
    What a pass over all waiting messages found; memory is bounded whatever their number.

    Attributes:
        watch: Ids whose every waiting message is kept: those that other places name too.

        now: Epoch seconds by the server's clock; what expires by then has expired.

        read: Messages read, by queue.

        tasks: Messages by key of their list and task name.

        expired: Messages that have expired, by key of their list.

        scheduled: Messages with an ETA, by queue.

        retrying: Messages that were retried before, by queue and task name.

        odd_priorities: Messages whose own priority is none of 0 to 9, by queue, task name and that priority.

        repeated: Hashes of ids that were met more than once.
    """

    watch: frozenset[str] = frozenset()
    now: float = 0.0
    read: Counter[str] = field(default_factory=Counter)
    tasks: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    expired: Counter[str] = field(default_factory=Counter)
    scheduled: Counter[str] = field(default_factory=Counter)
    odd_priorities: defaultdict[str, Counter[tuple[str, int]]] = field(default_factory=lambda: defaultdict(Counter))
    retrying: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unreadable: list[UnreadableMessage] = field(default_factory=list)
    unreadable_count: int = 0
    repeated: set[int] = field(default_factory=set)
    unread: int = 0
    _retried: list[tuple[int, int, WaitingMessage]] = field(default_factory=list)
    _latest: list[tuple[float, int, WaitingMessage]] = field(default_factory=list)
    _watched: list[WaitingMessage] = field(default_factory=list)
    _hashes: list[array[int]] = field(default_factory=lambda: [array("Q") for _ in range(_BUCKETS)])
    _order: int = 0

    @property
    def total(self) -> int:
        """Messages read, over all queues."""
        return sum(self.read.values())

    @property
    def unlisted(self) -> int:
        """Unreadable messages beyond those that got a row."""
        return self.unreadable_count - len(self.unreadable)

    @property
    def kept(self) -> list[WaitingMessage]:
        """The messages worth a row: watched ids, the most retried and the latest ETAs, each once."""
        rows = [*self._watched, *(row for *_, row in self._retried), *(row for *_, row in self._latest)]
        return list({(row.key, row.delivery_tag, row.sha256): row for row in rows}.values())

    def note(self, listing: Listing, position: int, raw: bytes) -> None:
        """Take one message into account."""
        self.read[listing.queue] += 1
        tasks = self.tasks[listing.key]
        envelope = peek(raw)
        if envelope is None:
            self._note_odd(listing, position, raw, tasks)
            return
        headers = envelope.headers
        task_id, task = headers.id or "", headers.task or ""
        tasks[task if task in tasks or len(tasks) < _TASK_NAMES else "(others)"] += 1
        hashed = hash(task_id) & _HASH_BITS
        self._hashes[hashed % _BUCKETS].append(hashed)
        if headers.expires is not None:
            self._note_expiry(listing, instant(headers.expires))
        if not 0 <= (envelope.properties.priority or 0) <= _LAST:
            self._note_priority(listing, task, envelope.properties.priority or 0)
        if headers.retries or headers.eta or task_id in self.watch:
            found = head(raw)
            if isinstance(found, Head):
                self._keep(_row(found, listing, position, raw))

    def _note_expiry(self, listing: Listing, expires_at: float | None) -> None:
        self.expired[listing.key] += expires_at is not None and expires_at <= self.now

    def _note_priority(self, listing: Listing, task: str, priority: int) -> None:
        odd = self.odd_priorities[listing.queue]
        pair = (task, priority)
        odd[pair if pair in odd or len(odd) < _ODD_PAIRS else ("(others)", -1 if priority < 0 else _LAST + 1)] += 1

    def conclude(self) -> None:
        """Find the repeated ids and let go of the rest."""
        for bucket in self._hashes:
            if len(set(bucket)) != len(bucket):
                self.repeated |= {hashed for hashed, times in Counter(bucket).items() if times > 1}
        self._hashes = []

    def _note_odd(self, listing: Listing, position: int, raw: bytes, tasks: Counter[str]) -> None:
        found = head(raw)
        if isinstance(found, Head):
            name = found.task or UNKNOWN_TASK
            tasks[name if name in tasks or len(tasks) < _TASK_NAMES else "(others)"] += 1
            self._note_expiry(listing, found.expires_at)
            if not 0 <= found.priority <= _LAST:
                self._note_priority(listing, found.task, found.priority)
            self._keep(_row(found, listing, position, raw))
            return
        tasks["(unreadable)"] += 1
        self.unreadable_count += 1
        if len(self.unreadable) < _KEEP:
            self.unreadable.append(_unreadable(found, listing, position, raw))

    def _keep(self, row: WaitingMessage) -> None:
        """Keep a row while it is among the extremes; the order of arrival settles ties."""
        self._order += 1
        if row.task_id in self.watch and len(self._watched) < _KEEP_WATCHED:
            self._watched.append(row)
        if row.retries:
            names = self.retrying[row.queue]
            names[row.task if row.task in names or len(names) < _TASK_NAMES else "(others)"] += 1
            _push(self._retried, (row.retries, self._order, row))
        if row.eta_at is not None:
            self.scheduled[row.queue] += 1
            _push(self._latest, (row.eta_at, self._order, row))


def _push(heap: list[Any], entry: tuple[float, int, WaitingMessage]) -> None:
    if len(heap) < _KEEP:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def lists(broker: Broker, names: Iterable[str]) -> tuple[list[Listing], dict[str, str]]:
    """Return the lists of these queues that hold something, and the keys that are no lists with their type."""
    wanted = [(name, key, step) for name in sorted(set(names)) for key, step in broker.keys.queue_lists(name).items()]
    found: list[Listing] = []
    strange: dict[str, str] = {}
    for start in range(0, len(wanted), _MOST_PER_WINDOW):
        page = wanted[start : start + _MOST_PER_WINDOW]
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
            if task_id in ids or (hashes and hash(task_id) & _HASH_BITS in hashes):
                found = found or head(raw)
                if isinstance(found, Head):
                    yield _row(found, listing, position, raw), raw


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
                    yield _row(found, listing, position, raw)


def served_next(
    broker: Broker, listings: Sequence[Listing], selection: Selection | None, *, limit: int
) -> list[WaitingMessage | UnreadableMessage]:
    """
    Return the messages of a queue that are served next, as far as a filter means them; nothing is taken.

    What no worker can decode is of no task that a filter could mean; without one, it is what may stand in the way.
    """
    rows: list[WaitingMessage | UnreadableMessage] = []
    for listing in sorted(listings, key=lambda each: each.priority):
        for position, raw in _from_served_end(broker, listing):
            found = head(raw)
            if isinstance(found, Unreadable):
                rows += [] if selection else [_unreadable(found, listing, position, raw)]
            elif selection is None or selection.fits(found):
                rows.append(_row(found, listing, position, raw))
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
            heads = (head(raw) for _, raw in _from_served_end(broker, listing))
            those = (found for found in heads if isinstance(found, Head) and selection.fits(found))
            count = sum(1 for _ in islice(those, left))
        else:
            rows = chosen(broker, [listing], lambda h: fnmatchcase(h.task, selection.task))
            count = sum(selection.fits(row) for row in rows)
        counts[listing.key] = count
        left -= count
    return counts


def _from_served_end(broker: Broker, listing: Listing) -> Iterator[tuple[int, bytes]]:
    """
    Yield a list's messages with the number of those served before each, the first served first, for whoever wants few.

    What workers take meanwhile makes it pass over as many of the others, so nothing is decided by it.
    """
    start, (size, most) = 0, _window(broker, raw_name(listing.key), listing.length) if listing.length else (0, 0)
    size = min(_PEEK, size)
    while start < listing.length:
        stop = min(listing.length, start + size)
        page = cast("list[bytes]", broker.reads.lrange(raw_name(listing.key), -stop, -start - 1))
        yield from enumerate(reversed(page), start)
        start, size = stop, min(most, 2 * size)


def stream(broker: Broker, listing: Listing, *, limit: int | None = None) -> Iterator[tuple[int, bytes]]:
    """
    Yield a list's messages with the number of those served before each, newest first.

    Read from the producers' end, each window from the last message of the one before: pushes meanwhile move that
    message further on, where it is looked for; pops take what is being run. From the consumers' end, pops would make
    it skip messages.

    Args:
        limit: At most so many, the next to be served; all by default.
    """
    wanted = listing.length if limit is None else min(limit, listing.length)
    if not wanted:
        return
    name, last = raw_name(listing.key), None
    size, most = _window(broker, name, listing.length)
    index = listing.length - wanted
    while True:
        start = index if last is None else index - 1
        window = cast("list[bytes]", broker.reads.lrange(name, start, index + size - 1))
        for raw in _after(last, window):
            wanted -= 1
            last = raw
            yield max(0, wanted), raw
        if start + len(window) < index + size:
            return
        index += size
        size = min(most, _next_window(size, window))


def likely(broker: Broker, key: str) -> Iterator[bytes]:
    """
    Yield a list's messages, those at the end that is served first, and then all.

    What was put back lies there; only what is not found makes anybody read the rest. On a live queue nothing tells
    where the one ends and the other begins, so those at the end come twice.
    """
    name = raw_name(key)
    length = broker.reads.llen(name)
    size, _ = _window(broker, name, length) if length else (0, 0)
    served = cast("list[bytes]", broker.reads.lrange(name, -size, -1)) if size else []
    yield from reversed(served)
    if length > len(served):
        yield from (raw for _, raw in stream(broker, Listing(key=key, queue=key, priority=0, length=length)))


def _window(broker: Broker, name: bytes, length: int) -> tuple[int, int]:
    """
    Return how many messages to ask for first, and how many at the most.

    Both from what the key weighs: where a few heavy messages lie among light ones, every window is a smaller one,
    for nothing tells beforehand which of them holds the heavy ones. Where the server will not say, begin with one.
    """
    from redis.exceptions import ResponseError

    try:
        used = broker.reads.memory_usage(name, samples=_SAMPLES)
    except ResponseError:
        return 1, _MOST_PER_WINDOW
    average = max(1, min(_MOST_PER_WINDOW, WINDOW_BYTES * max(1, length) // max(1, used or 1)))
    return average, average


def _next_window(size: int, window: Sequence[bytes]) -> int:
    """Aim at WINDOW_BYTES from what the last window weighed; grow by half at most, for a heavy message may follow."""
    weight = sum(map(len, window)) / len(window)
    return max(1, min(_MOST_PER_WINDOW, int(WINDOW_BYTES / max(weight, 1.0)), size + size // 2 + 1))


def _after(last: bytes | None, window: Sequence[bytes]) -> Sequence[bytes]:
    """Return what follows the last message that was seen; nothing where pushes moved it beyond this window."""
    if last is None:
        return window
    return window[window.index(last) + 1 :] if last in window else ()


def infos(
    names: Iterable[str], listings: Sequence[Listing], result: Scan, consumers: Mapping[str, Sequence[str]]
) -> list[QueueInfo]:
    """Return one row for every queue, deepest first."""
    by_queue = _by_queue(listings)
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


def _row(found: Head, listing: Listing, position: int, raw: bytes) -> WaitingMessage:
    return WaitingMessage(
        **head_fields(found),
        queue=listing.queue,
        key=listing.key,
        sha256=digest(raw),
        size_bytes=len(raw),
        position=position,
    )


def head_fields(found: Head) -> dict[str, Any]:
    """Return the fields that a message's row takes over from its head."""
    return {name: getattr(found, name) for name in Head.__struct_fields__}


def _unreadable(found: Unreadable, listing: Listing, position: int, raw: bytes) -> UnreadableMessage:
    return UnreadableMessage(
        place="waiting",
        queue=listing.queue,
        key=listing.key,
        position=position,
        delivery_tag="",
        sha256=digest(raw),
        size_bytes=len(raw),
        reason=found.reason,
    )
