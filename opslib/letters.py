"""
Bytes of a dead letter ⇄ what it says: our own entries, those of older scripts, and whatever else lies in such a list.

An entry of ours keeps the message that failed as the text that it was, so that it can be sent again byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from opslib import signatures
from opslib.envelope import Head, Unreadable, head, instant, load

VERSION = 1
#: Header in which a message that was sent again says how often.
REDRIVES = "x-redrive"
#: What is kept of an exception's text and of a traceback, from its end: the innermost frames tell the cause.
MOST_EXCEPTION, MOST_TRACEBACK = 2_000, 20_000
#: Larger than any message that a broker should carry; what is larger is not decoded.
MOST_BYTES = 64 * 1024 * 1024
_FRAME = re.compile(r'File "(?P<file>[^"\n]{1,500})", line \d+, in (?P<name>[^\n]{1,200})')
#: Frames of these are not the application's own.
_FOREIGN = ("site-packages", "dist-packages", "/lib/python", "<frozen")


class Cause(StrEnum):
    """
    How a task died.

    Attributes:
        RAISED: It raised an exception, after its last retry.

        REJECTED: It raised Reject without requeue.

        WORKER_LOST: The process that ran it ended.

        TIME_LIMIT: It ran longer than its hard time limit.

        EXPIRED: Its time to be run had passed when a node took it.

        UNKNOWN_TASK: The node had no task of that name.

        UNDECODABLE: The node could not decode its message, or refuses its content type.

        UNKNOWN: The entry does not say.
    """

    RAISED = "raised"
    REJECTED = "rejected"
    WORKER_LOST = "worker-lost"
    TIME_LIMIT = "time-limit"
    EXPIRED = "expired"
    UNKNOWN_TASK = "unknown-task"
    UNDECODABLE = "undecodable"
    UNKNOWN = "unknown"


class Letter(msgspec.Struct, kw_only=True):
    """
    One entry as a list holds it.

    Attributes:
        args: As `argsrepr` has it in an entry of ours; the value itself in one of another shape.

        failed_at: ISO 8601 in UTC.

        queue: Queue that its message was taken from, which is where it goes back to.

        list_key: Key of the list that the message was taken from, with its priority.

        redrives: How often the message had been sent again from a dead-letter list.

        envelope: The message as the broker held it, as text; empty if there is none.

        envelope_base64: The same where its bytes are not UTF-8.
    """

    v: int = 0
    entry_id: str = ""
    task_id: str = ""
    task_name: str = ""
    args: Any = None
    kwargs: Any = None
    exception: str = ""
    exc_type: str = ""
    traceback: str = ""
    failed_at: Any = None
    worker: str = ""
    queue: str = ""
    list_key: str = ""
    retries: int = 0
    redrives: int = 0
    cause: str = ""
    envelope: str = ""
    envelope_base64: str = ""

    @property
    def message(self) -> bytes:
        """The bytes of the message that failed; empty if the entry has none."""
        if self.envelope_base64:
            return base64.b64decode(self.envelope_base64)
        try:
            return self.envelope.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half of a surrogate pair, which no message is written with
            return self.envelope.encode("utf-8", "backslashreplace")

    @property
    def failed_epoch(self) -> float | None:
        """Epoch seconds of `failed_at`; None if it does not say, or not so that it can be read."""
        return instant(self.failed_at)

    @property
    def frame(self) -> str:
        """The innermost frame of the application: "tasks.py:charge"; empty if the traceback has none."""
        found = list(_FRAME.finditer(self.traceback[-MOST_TRACEBACK:]))
        own = [match for match in found if not any(part in match["file"] for part in _FOREIGN)]
        if not found:
            return ""
        innermost = (own or found)[-1]
        file = innermost["file"].replace("\\", "/").rpartition("/")[2]
        return f"{file}:{innermost['name'].strip()}"

    @property
    def signature(self) -> str:
        """What failures of one cause have in common: type, text without what varies, and the innermost own frame."""
        said = ": ".join(dict.fromkeys(filter(None, (self.exc_type, self.exception[:MOST_EXCEPTION]))))
        text = signatures.of(self.exception if self.exception.startswith(f"{self.exc_type}(") else said)
        return " @ ".join(filter(None, (text or self.cause or "(no exception)", self.frame)))


@dataclass(frozen=True, slots=True)
class Row:
    """A letter under the names by which a selection asks for it."""

    letter: Letter

    @property
    def entry_id(self) -> str:
        """The entry's own name."""
        return self.letter.entry_id

    @property
    def task_id(self) -> str:
        """Id of the task that failed."""
        return self.letter.task_id

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.letter.task_name

    @property
    def signature(self) -> str:
        """What failures of one cause have in common."""
        return self.letter.signature

    @property
    def cause(self) -> str:
        """How the task died."""
        return self.letter.cause or Cause.UNKNOWN

    @property
    def failed_at(self) -> float | None:
        """Epoch seconds of the failure."""
        return self.letter.failed_epoch


def name_of(signature: str) -> str:
    """Return a signature's short name, to be typed: eight hexadecimal digits."""
    return hashlib.sha256(signature.encode("utf-8", "surrogatepass")).hexdigest()[:8]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Letter).decode


def write(letter: Letter) -> bytes:
    """Return an entry's bytes."""
    return _encode(letter)


def read(raw: bytes) -> Letter | Unreadable:
    """
    Return what an entry says, whoever wrote it.

    One of ours is decoded in microseconds. An entry of another shape gives what it has, under the names that entries of
    older scripts use; one that is a message itself, moved there as it was, is its own envelope.
    """
    if len(raw) > MOST_BYTES:
        return Unreadable(f"it has {len(raw):,} bytes")
    try:
        found = _decode(raw)
        if found.v == VERSION and found.entry_id:
            return found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return _tolerant(raw)


def _tolerant(raw: bytes) -> Letter | Unreadable:
    value = load(raw)
    if isinstance(value, Unreadable):
        return value
    if not isinstance(value, dict):
        return Unreadable("it is no JSON object")
    if "task_id" not in value and isinstance(found := head(raw), Head):
        return Letter(
            entry_id=_own_id(raw),
            task_id=found.task_id,
            task_name=found.task,
            retries=found.retries,
            envelope=raw.decode("utf-8", "surrogateescape"),
        )
    if not any(value.get(name) for name in ("task_id", "task_name", "envelope")):
        return Unreadable("it names no task")
    envelope = value.get("envelope")
    letter = Letter(
        v=_whole(value.get("v")),
        entry_id=_text(value.get("entry_id")) or _own_id(raw),
        args=value.get("args"),
        kwargs=value.get("kwargs"),
        failed_at=value.get("failed_at") or value.get("dead_at"),
        retries=_whole(value.get("retries")),
        redrives=_whole(value.get("redrives")),
        exception=_text(value.get("exception") or value.get("exc"), MOST_EXCEPTION),
        traceback=_text(value.get("traceback"))[-MOST_TRACEBACK:],
        envelope=envelope if isinstance(envelope, str) else json.dumps(envelope) if envelope else "",
        **{name: _text(value.get(name)) for name in ("task_id", "task_name", "exc_type", "worker", "queue", "cause")},
    )
    if letter.envelope and isinstance(found := head(letter.message), Head):
        letter.task_id, letter.task_name = letter.task_id or found.task_id, letter.task_name or found.task
    return letter


def _own_id(raw: bytes) -> str:
    """Return what names an entry that has no id: two that are equal to the byte have the same."""
    return hashlib.sha256(raw).hexdigest()[:32]


def _text(value: object, most: int = MOST_TRACEBACK * 50) -> str:
    text = str(value)[:most] if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    return text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair cannot be written anywhere


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0
