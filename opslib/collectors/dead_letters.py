"""Dead-letter lists → the entries of certain tasks, whoever wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from opslib.collectors import queues
from opslib.facts import Coverage, DeadLetter
from opslib.keys import raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Entries of all lists that are read, newest first in each.
MOST_ENTRIES = 200_000
_QUOTED = 200


class _Entry(msgspec.Struct):
    """The fields that this tool and the scripts before it write; arguments and tracebacks are skipped."""

    task_id: str | None = None
    task_name: str | None = None
    exception: str | None = None
    failed_at: str | float | None = None


_decode = msgspec.json.Decoder(_Entry).decode


def of_tasks(broker: Broker, keys: Sequence[str], ids: frozenset[str]) -> tuple[list[DeadLetter], Coverage]:
    """Return the entries of these tasks, and how many were looked through."""
    from redis.exceptions import ResponseError

    rows: list[DeadLetter] = []
    seen = silent = 0
    for key in keys:
        try:
            length = broker.reads.llen(raw_name(key))
        except ResponseError:  # it is called like a dead-letter list, and is no list
            continue
        room = max(0, MOST_ENTRIES - seen)
        silent += max(0, length - room)
        for _, raw in queues.stream(broker, queues.Listing(key=key, queue=key, priority=0, length=min(length, room))):
            seen += 1
            entry = _read(raw)
            if entry and entry.task_id in ids:
                rows.append(
                    DeadLetter(
                        task_id=entry.task_id or "",
                        task=entry.task_name or "",
                        key=key,
                        exception=(entry.exception or "")[:_QUOTED],
                        failed_at=str(entry.failed_at or ""),
                    )
                )
    note = f"{silent:,} older entries were not looked through." if silent else ""
    return rows, Coverage(place="dead letters", seen=seen, silent=silent, note=note)


def _read(raw: bytes) -> _Entry | None:
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
