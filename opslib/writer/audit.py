"""What is about to be done, and what came of it → hash-chained JSON lines, on the disk before the change."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from opslib import records, redact, settings
from opslib.errors import Refused

FILE = "audit.jsonl"
_BLOCK = 4 * 1024


def write(event: str, **detail: object) -> None:
    """
    Append one line and flush it to the disk, with all that stands before it.

    Each line holds its number and the sha256 of the one before, so that a line that was changed or taken away shows.

    Args:
        event: "begin", "intent", "result", "end", "refused", "interrupted" or "unlock"; `audited` pairs them.

        detail: JSON values; credentials are masked.

    Raises:
        Refused: If the line cannot be written; what is not on record is not done.
    """
    try:
        _append(event, detail)
    except OSError as error:
        hint = "Set OPS_REPORTS to a folder that can be written."
        raise Refused(
            f"The audit {path()} cannot be written: {error.strerror}. No change goes unrecorded.", hint=hint
        ) from None


def note(event: str, **detail: object) -> None:
    """
    Append a line about what has been done already, if that can be.

    A disk that fills up in the middle must not hide what was changed: the intent is on it, the result in the journal.
    So the result of a batch is not waited for either: the next line that is flushed takes it along.
    """
    with suppress(OSError, Refused):
        _append(event, detail, flush=event != "result")


def _append(event: str, detail: Mapping[str, object], *, flush: bool = True) -> None:
    ctx = records.context()
    root = settings.reports_root()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(root / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "r+b", buffering=0):
        fcntl.flock(handle, fcntl.LOCK_EX)
        torn, number, previous = _end(handle)
        told = {
            "at": records.now(),
            "run_id": ctx.run_id,
            "operator": ctx.operator or records.operator(),
            "host": socket.gethostname(),
            "reason": ctx.reason,
            **detail,
        }
        # What the chain consists of is no text of anybody's: a password of four digits may be part of any digest.
        line = {**cast("Mapping[str, object]", redact.values(told)), "event": event, "seq": number}
        text = json.dumps({**line, "prev_sha256": previous}, sort_keys=True)
        _put(handle, b"\n" * torn + text.encode() + b"\n", flush=flush)


def _put(handle: int, data: bytes, *, flush: bool) -> None:
    """Write a line and have it on the disk, if it is flushed; what fits of one that does not is taken away again."""
    size = os.fstat(handle).st_size
    try:
        while data:
            data = data[os.write(handle, data) :]
        if flush:
            os.fsync(handle)
    except OSError:
        with suppress(OSError):  # a file that is append-only keeps it, as a torn line
            os.ftruncate(handle, size)
        raise


def _end(handle: int) -> tuple[bool, int, str]:
    """
    Return what the next line needs to know of those before it: whether the last one is torn, its number, their digest.

    A line without its end is what a loss of power leaves. It is no part of the line that follows it, and is vouched
    for like any other.
    """
    lines = _backwards(handle)
    end = next(lines)
    last = end or next(lines, None)
    if last is None:
        return False, 1, "0" * 64
    return bool(end), _next_number([last], lines), hashlib.sha256(last).hexdigest()


def _next_number(last: list[bytes], before: Iterator[bytes]) -> int:
    """Return the number after that of the latest line that has one; without any, lines are counted."""
    count = 0
    for line in itertools.chain(last, before):
        count += 1
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            return int(json.loads(line)["seq"]) + count
    return count + 1


def _backwards(handle: int) -> Iterator[bytes]:
    """Yield a file's lines, the last first, however long they are; an empty one first where the last line has ended."""
    at = os.fstat(handle).st_size
    later: list[bytes] = []
    while at:
        start = max(0, at - _BLOCK)
        first, *others = os.pread(handle, at - start, start).split(b"\n")
        for piece in reversed(others):
            yield b"".join([piece, *reversed(later)])
            later.clear()
        later.append(first)
        at = start
    yield b"".join(reversed(later))


def path() -> Path:
    """Return where the audit lines are."""
    return settings.reports_root() / FILE
