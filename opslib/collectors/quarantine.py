"""The quarantine lists of every run → what each holds, and the messages of one with why they are there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from opslib.collectors import windows
from opslib.collectors.keyspace import STEP
from opslib.envelope import Head, Unreadable, digest, head, unacked_head
from opslib.facts.messages import Quarantined, QuarantinedMessage
from opslib.facts.system import Coverage
from opslib.keys import key_name, raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

_SAMPLES = 100
#: Messages of all quarantines that a search for tasks reads.
MOST_MESSAGES = 200_000
#: Messages of all quarantines that a look for every task reads.
MAX_MESSAGES = 5_000_000
#: Messages of the tasks that are searched for that become rows.
_MOST_ROWS = 1_000


def lists(broker: Broker, run_id: str = "") -> list[Quarantined]:
    """Return every quarantine list, or those of one run, the oldest run first."""
    space = broker.keys
    root = f"{space.own_runs}{run_id}{':q' if run_id else ''}"
    found = []
    for name in broker.reads.scan_iter(match=f"{_literal(root)}*", count=STEP):
        key = key_name(name)
        parts = space.quarantined(key)
        if parts and (not run_id or parts[0] == run_id):
            count = broker.reads.llen(cast("bytes", name))
            weight = broker.reads.memory_usage(cast("bytes", name), samples=_SAMPLES) or 0
            found.append(Quarantined(run_id=parts[0], queue=parts[1], key=key, count=count, size_bytes=weight))
    return sorted(found, key=lambda row: (row.run_id, row.queue, row.key))


def set_aside(broker: Broker) -> dict[str, int]:
    """Return how many messages each interrupted run has set aside of lists that it was sorting."""
    root = broker.keys.own_runs
    found: Counter[str] = Counter()
    for name in broker.reads.scan_iter(match=f"{_literal(root)}*:w*:*", count=STEP):
        run_id, part, _ = key_name(name)[len(root) :].split(":", 2)
        if part in {"w", "w.back"}:
            found[run_id] += broker.reads.llen(cast("bytes", name))
    return dict(found)


def messages(broker: Broker, listing: Quarantined, *, limit: int) -> Iterator[QuarantinedMessage]:
    """Yield what one list holds, as far as it can be decoded, with the note that was made of each."""
    notes = raw_name(broker.keys.quarantine_notes(listing.run_id))
    for raw in _stored(broker, listing, limit=limit):
        yield _message(broker, listing, raw, _head(raw), notes)


def of_tasks(broker: Broker, keys: Sequence[str], ids: frozenset[str]) -> tuple[list[QuarantinedMessage], Coverage]:
    """Return the messages of these tasks that runs took out of circulation, and how many were looked through."""
    from redis.exceptions import ResponseError

    rows: list[QuarantinedMessage] = []
    seen = silent = 0
    unread: list[str] = []
    for key in keys:
        run_id, queue = broker.keys.quarantined(key) or ("", "")
        notes = raw_name(broker.keys.quarantine_notes(run_id))
        try:
            count = broker.reads.llen(raw_name(key))
            listing = Quarantined(run_id=run_id, queue=queue, key=key, count=count, size_bytes=0)
            room = max(0, MOST_MESSAGES - seen)
            seen, silent = seen + min(count, room), silent + max(0, count - room)
            for raw in _stored(broker, listing, limit=room):
                found = _head(raw)
                # The note costs a question, so it is asked for only where it matters.
                if isinstance(found, Unreadable) or found.task_id in ids:
                    row = _message(broker, listing, raw, found, notes)
                    rows += [row] if row.subject in ids and len(rows) < _MOST_ROWS else []
        except ResponseError as error:
            unread.append(f"{key} cannot be read: {str(error).rstrip('.')}.")
    said = [f"{silent:,} messages were not looked through."] if silent else []
    said += unread[:3]
    return rows, Coverage(place="quarantine", seen=seen, silent=silent + len(unread), note=" ".join(said))


def ids(broker: Broker, keys: Sequence[str], note: Callable[[str], None]) -> Coverage:
    """Tell `note` the id of every task that runs took out of circulation; return how many were looked through."""
    seen = silent = 0
    for key in keys:
        run_id, queue = broker.keys.quarantined(key) or ("", "")
        count = broker.reads.llen(raw_name(key))
        room = max(0, MAX_MESSAGES - seen)
        seen, silent = seen + min(count, room), silent + max(0, count - room)
        listing = Quarantined(run_id=run_id, queue=queue, key=key, count=count, size_bytes=0)
        for raw in _stored(broker, listing, limit=room):
            found = _head(raw)
            if isinstance(found, Head):
                note(found.task_id)
    said = f"{silent:,} messages were not looked through." if silent else ""
    return Coverage(place="quarantine", seen=seen, silent=silent, note=said)


def _stored(broker: Broker, listing: Quarantined, *, limit: int) -> Iterator[bytes]:
    whole = windows.Listing(key=listing.key, length=listing.count)
    return (raw for _, raw in windows.stream(broker, whole, limit=limit))


def _head(raw: bytes) -> Head | Unreadable:
    """Return the headers of a message that was waiting, or unacked."""
    return unacked_head(raw)[0] if raw[:1] == b"[" else head(raw)


def _message(
    broker: Broker, listing: Quarantined, raw: bytes, found: Head | Unreadable, notes: bytes
) -> QuarantinedMessage:
    note = _note(cast("bytes | None", broker.reads.hget(notes, digest(raw).encode())))
    return QuarantinedMessage(
        run_id=listing.run_id,
        queue=str(note.get("queue") or listing.queue),
        place=str(note.get("place", "waiting")),
        subject=found.task_id if isinstance(found, Head) else str(note.get("subject", "")),
        task=found.task if isinstance(found, Head) else "",
        unreadable=found.reason if isinstance(found, Unreadable) else "",
        sha256=digest(raw),
        size_bytes=len(raw),
    )


def _note(raw: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(raw or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _literal(text: str) -> str:
    """Return text that SCAN's pattern matches as it stands."""
    return "".join(f"\\{char}" if char in "*?[]\\^" else char for char in text)
