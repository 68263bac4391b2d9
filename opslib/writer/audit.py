"""What is about to be done, and what came of it → hash-chained JSON lines, on the disk before the change."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from opslib import records, redact, settings
from opslib.errors import Refused

FILE = "audit.jsonl"


def write(event: str, **detail: object) -> None:
    """
    Append one line and flush it to the disk.

    Each line holds the sha256 of the one before, so that a line that was changed or taken away shows.

    Args:
        event: "begin", "intent", "result", "end" or "refused".

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
    """
    with suppress(Refused):
        write(event, **detail)


def _append(event: str, detail: Mapping[str, object]) -> None:
    ctx = records.context()
    root = settings.reports_root()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(root / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = {
            "at": records.now(),
            "run_id": ctx.run_id,
            "operator": ctx.operator or records.operator(),
            "host": socket.gethostname(),
            "reason": ctx.reason,
            "event": event,
            **detail,
            "prev_sha256": _last_digest(file.fileno()),
        }
        text = redact.text(json.dumps(line, sort_keys=True, default=str))
        file.seek(0, os.SEEK_END)
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _last_digest(handle: int) -> str:
    """Return the sha256 of the file's last line; zeros for an empty file."""
    size = os.fstat(handle).st_size
    if not size:
        return "0" * 64
    start = max(0, size - 1024 * 1024)
    lines = os.pread(handle, size - start, start).rstrip(b"\n").rsplit(b"\n", 1)
    return hashlib.sha256(lines[-1]).hexdigest()


def path() -> Path:
    """Return where the audit lines are."""
    return settings.reports_root() / FILE
