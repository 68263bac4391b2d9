"""The bytes of a stored result → its state, its task and when it was written, or that they do not tell."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from opslib.keys import key_name, raw_name

#: State, task and instant, as `Brief` has them.
Told = tuple[str, str, float | None]
#: Of a result whose value is no JSON of Celery's: compressed, pickled, cut off, or not Celery's at all.
UNREADABLE = "(unreadable)"
#: A date so far ahead of the server's clock is no date: somebody's clock was wrong.
_AHEAD_S = 300.0
#: What stands around the date in a value that is too long to be read whole; a result may hold the same words within.
_STATUS = re.compile(rb'^\s*\{\s*"status":\s*"([^"\\]{1,60})"')
_DONE = re.compile(rb'"date_done":\s*"([^"\\]{10,40})"')


class _Result(msgspec.Struct, gc=False):
    """As Celery writes it."""

    status: str
    date_done: datetime | None = None
    name: str | None = None
    task_id: str | None = None


class _Any(msgspec.Struct, gc=False):
    """As somebody else may."""

    status: str
    date_done: Any = None
    name: Any = None
    task_id: Any = None


_decode = msgspec.json.Decoder(_Result).decode
_decode_any = msgspec.json.Decoder(_Any).decode


class Brief(msgspec.Struct, frozen=True, gc=False):
    """
    What a stored result says of itself.

    Attributes:
        state: As Celery spells it, also one of the application's own; UNREADABLE if it cannot be told.

        task: Name of the task; empty where the application does not store it (`result_extended`).

        written_at: Epoch seconds at which it was written; None where nothing in it says so.
    """

    state: str
    task: str = ""
    written_at: float | None = None


OPAQUE = Brief(UNREADABLE)
UNTOLD: Told = (UNREADABLE, "", None)


def brief(raw: bytes, task_id: str, now: float) -> Brief:
    """
    Return what a whole value says.

    Only a final result says when it was written. One that is stored under another task's id is none of Celery's.
    """
    return Brief(*told(raw, raw_name(task_id), now))


def told(raw: bytes, task_id: bytes, now: float) -> Told:
    """Return the same as `brief`, without its object: what is made of each of a million values takes its time."""
    try:
        found = _decode(raw)
    except msgspec.ValidationError:
        return _told_otherwise(raw, task_id, now)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return UNTOLD
    stored, done = found.task_id, found.date_done
    if not found.status or (stored is not None and stored.encode() != task_id):
        return UNTOLD
    return found.status, found.name or "", None if done is None else _epoch(done, now)


def _told_otherwise(raw: bytes, task_id: bytes, now: float) -> Told:
    """Return what a value says of which a part is not what Celery writes there."""
    try:
        found = _decode_any(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return UNTOLD
    if not found.status or (found.task_id is not None and found.task_id != key_name(task_id)):
        return UNTOLD
    name = found.name if isinstance(found.name, str) else ""
    return found.status, name, _instant(found.date_done, now) if isinstance(found.date_done, str) else None


def of_ends(head: bytes, tail: bytes, now: float) -> Brief:
    """Return what both ends of a value say that is too long to be read; its date only if nothing else could be it."""
    status, dates = _STATUS.match(head), _DONE.findall(tail)
    if not status:
        return OPAQUE
    written_at = _instant(dates[0].decode("ascii", "replace"), now) if len(dates) == 1 else None
    return Brief(status.group(1).decode("utf-8", "replace"), "", written_at)


def by_life(brief: Brief, life_s: float | None, expires_after_s: float, now: float) -> float | None:
    """
    Return when a result was written: as it says itself, or by what is left of its life where that is known.

    Args:
        life_s: Seconds that it still has to live; None for ever.

        expires_after_s: Seconds that the application gives each result; 0 where nobody said.
    """
    if brief.written_at is not None or not expires_after_s or life_s is None or brief.state == UNREADABLE:
        return brief.written_at
    age_s = expires_after_s - life_s
    return now - max(0.0, age_s) if age_s > -1.0 else None


def _instant(text: str, now: float) -> float | None:
    """Return the epoch seconds of a date as text."""
    try:
        return _epoch(datetime.fromisoformat(text), now)
    except ValueError:
        return None


def _epoch(at: datetime, now: float) -> float | None:
    """Return epoch seconds; of a date without an offset in UTC, as old releases wrote it."""
    try:
        at_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        return None
    return at_s if 0.0 < at_s <= now + _AHEAD_S else None
