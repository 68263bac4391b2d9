"""Waiting messages, one after another → counts of all of them, and the few that are worth a row."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from opslib.collectors.windows import Listing
from opslib.envelope import Head, Unreadable, digest, head, instant, peek
from opslib.facts.messages import UNKNOWN_TASK, UnreadableMessage, WaitingMessage

#: Rows kept for each question; the counts beside them are of all messages.
_KEEP = 1_000
_KEEP_WATCHED = 5_000
_TASK_NAMES = 1_000
#: Pairs of task and odd priority that are told apart in one queue.
_ODD_PAIRS = 100
#: The lowest that Celery knows; kombu takes a higher number for it, and one below 0 for 0 (facts §1.2).
_LAST = 9
_BUCKETS = 256
#: Of an id so much is kept, of all waiting messages.
HASH_BITS = 2**64 - 1


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
        hashed = hash(task_id) & HASH_BITS
        self._hashes[hashed % _BUCKETS].append(hashed)
        if headers.expires is not None:
            self._note_expiry(listing, instant(headers.expires))
        if not 0 <= (envelope.properties.priority or 0) <= _LAST:
            self._note_priority(listing, task, envelope.properties.priority or 0)
        if headers.retries or headers.eta or task_id in self.watch:
            found = head(raw)
            if isinstance(found, Head):
                self._keep(waiting_row(found, listing, position, raw))

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
            self._keep(waiting_row(found, listing, position, raw))
            return
        tasks["(unreadable)"] += 1
        self.unreadable_count += 1
        if len(self.unreadable) < _KEEP:
            self.unreadable.append(unreadable_row(found, listing, position, raw))

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


def waiting_row(found: Head, listing: Listing, position: int, raw: bytes) -> WaitingMessage:
    """Return the row of a message that was read."""
    return WaitingMessage(
        **head_fields(found),
        queue=listing.queue,
        key=listing.key,
        sha256=digest(raw),
        size_bytes=len(raw),
        position=position,
    )


def unreadable_row(found: Unreadable, listing: Listing, position: int, raw: bytes) -> UnreadableMessage:
    """Return the row of a message that nobody can decode."""
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


def head_fields(found: Head) -> dict[str, Any]:
    """Return the fields that a message's row takes over from its head."""
    return {name: getattr(found, name) for name in Head.__struct_fields__}
