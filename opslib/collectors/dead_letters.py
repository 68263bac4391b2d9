"""Dead-letter lists → the entries of certain tasks, whoever wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from opslib.collectors import queues
from opslib.envelope import Head, head
from opslib.facts import Coverage, DeadLetter
from opslib.keys import key_name, raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Entries of all lists that are read, newest first in each.
MOST_ENTRIES = 200_000
#: Entries of the tasks that are searched for that become rows.
_MOST_ROWS = 1_000
_QUOTED = 200


class _Entry(msgspec.Struct):
    """The fields that are looked at, of whatever type; arguments, tracebacks and envelopes are skipped."""

    task_id: Any = None
    task_name: Any = None
    exception: Any = None
    exc_type: Any = None
    failed_at: Any = None


_decode = msgspec.json.Decoder(_Entry).decode


def of_tasks(broker: Broker, keys: Sequence[str], ids: frozenset[str]) -> tuple[list[DeadLetter], Coverage]:
    """
    Return the entries of these tasks, and how many were looked through.

    An entry names its task, or is the task's message itself, as somebody moved it there.
    """
    from redis.exceptions import ResponseError

    rows: list[DeadLetter] = []
    seen = silent = odd = 0
    unread: list[str] = []
    for key in keys:
        try:
            length = broker.reads.llen(raw_name(key))
            room = max(0, MOST_ENTRIES - seen)
            seen, silent = seen + min(length, room), silent + max(0, length - room)
            listing = queues.Listing(key=key, queue=key, priority=0, length=length)
            for _, raw in islice(queues.stream(broker, listing), room):
                letter = _letter(raw, key)
                odd += letter is None
                if letter is not None and letter.task_id in ids and len(rows) < _MOST_ROWS:
                    rows.append(letter)
        except ResponseError as error:
            if why := _unread(broker, key, error):
                unread.append(why)
    said = [f"{silent:,} older entries were not looked through."] if silent else []
    said += [f"{odd:,} cannot be decoded, so nobody knows of which task."] if odd else []
    said += unread[:3]
    return rows, Coverage(place="dead letters", seen=seen, silent=silent + len(unread), note=" ".join(said))


def _unread(broker: Broker, key: str, error: Exception) -> str:
    """Return why a key that is called like a list of dead letters was not read; empty for a plain value."""
    if not str(error).startswith("WRONGTYPE"):
        return f"{key} cannot be read: {str(error).rstrip('.')}."
    kind = key_name(broker.reads.type(raw_name(key)))
    return "" if kind in {"string", "none"} else f"{key} is a {kind}, not a list."


def _letter(raw: bytes, key: str) -> DeadLetter | None:
    """Return what one entry says; None where nobody can tell."""
    try:
        entry = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if entry.task_id is None:
        found = head(raw)
        return DeadLetter(task_id=found.task_id, task=found.task, key=key) if isinstance(found, Head) else None
    return DeadLetter(
        task_id=str(entry.task_id),
        task=_text(entry.task_name),
        key=key,
        exception=": ".join(dict.fromkeys(filter(None, (_text(entry.exc_type), _text(entry.exception))))),
        failed_at=_text(entry.failed_at),
    )


def _text(value: object) -> str:
    """Return a field as text that is not endless; what is no text or number says nothing to a person."""
    return str(value)[:_QUOTED].strip() if isinstance(value, str | int | float) else ""
