"""A dead letter, how it shall be sent again, and what is known of its task → the message to send, or why not."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from opslib.envelope import Unreadable, instant, load
from opslib.letters import REDRIVES, Cause, Letter
from opslib.plain_letters import NOTHING_FOLLOWS
from opslib.plan import Redrive
from opslib.rewrite import fresh


class Note(StrEnum):
    """
    What is to be said of a letter before it is sent again; those that refuse it have a sentence in REFUSALS.

    Attributes:
        LOOPING: It was sent again three times already, and failed each time.

        REVOKED: Its id is revoked: nodes would drop it.

        SUCCEEDED: Its result says SUCCESS: another copy of it has run.

        RESUMED: Another task has gone on from where it failed.

        EXPIRED: It was not to be run after a time that has passed.

        CHORD: It is one of a chord's tasks, whose count has to be mended first.

        CHORD_UNKNOWN: It is one of a chord's tasks, and what is left of the chord does not tell how to mend it.

        CHORD_ID: It is one of a chord's tasks, which would count it twice under a new id.

        CHORD_ELSEWHERE: It is one of a chord's tasks, and they are counted on another server.

        CHAIN: Other tasks follow it, once it succeeds.

        ERRBACKS: What was to be called on its failure has been called, and will be again.

        ETA: It has a time before which it is not run.

        INEXACT: Its entry has no message: one is made from task and arguments, without chain, chord and headers.

        NO_ARGUMENTS: Neither a message nor arguments were kept.

        UNREADABLE: Its entry or its message cannot be read.

        UNWRITABLE: Its message cannot be written as it was asked for.

        POISON: It ended the process that ran it.
    """

    LOOPING = "looping"
    REVOKED = "revoked"
    SUCCEEDED = "succeeded"
    RESUMED = "resumed"
    EXPIRED = "expired"
    CHORD = "chord"
    CHORD_UNKNOWN = "chord-unknown"
    CHORD_ID = "chord-id"
    CHORD_ELSEWHERE = "chord-elsewhere"
    CHAIN = "chain"
    ERRBACKS = "errbacks"
    ETA = "eta"
    INEXACT = "inexact"
    NO_ARGUMENTS = "no-arguments"
    UNREADABLE = "unreadable"
    UNWRITABLE = "unwritable"
    POISON = "poison"


#: So often a letter is sent again, and no more: then the cause is not mended.
LOOPS = 3
#: Header with the id that a message had before it was sent again under another.
REDRIVE_OF = "x-redrive-of"

#: What is not sent again, each with the reason as a sentence.
REFUSALS: Mapping[str, str] = {
    Note.LOOPING: f"It was sent again {LOOPS} times and failed each time: mend the cause first.",
    Note.REVOKED: "Its id is revoked, so nodes would drop it; a new id runs.",
    Note.SUCCEEDED: "Its result says SUCCESS: it has run by now.",
    Note.RESUMED: "Another task has gone on from where it failed.",
    Note.EXPIRED: "It expired; it is sent only where that is asked for.",
    Note.POISON: "It ended the process that ran it; it is sent only by its id, its signature or its cause.",
    Note.CHORD_UNKNOWN: "It is one of a chord's tasks, and how many those are is not known any more.",
    Note.CHORD_ID: "It is one of a chord's tasks, which would count it twice under a new id.",
    Note.CHORD_ELSEWHERE: "It is one of a chord's tasks, which are counted on another server than the broker's.",
    Note.NO_ARGUMENTS: "Neither its message nor its arguments were kept.",
    Note.UNREADABLE: "It cannot be read.",
    Note.UNWRITABLE: "Its message cannot be written as it was asked for.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """
    What is known of the tasks of some letters, beside the letters.

    Attributes:
        now: Epoch seconds, by the server's clock.

        revoked: Ids that a node would drop.

        succeeded: Ids whose result says SUCCESS.
    """

    now: float
    revoked: Collection[str] = frozenset()
    succeeded: Collection[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """
    A message that is to be sent for a letter.

    Attributes:
        queue: Queue that it goes to.

        chord: Its group, where it is one of a chord's tasks; `index` is its place among them, None if it has none.

        notes: What is to be said of it.
    """

    message: bytes
    task_id: str
    queue: str
    priority: int
    chord: str = ""
    index: float | None = None
    notes: tuple[Note, ...] = ()


def notes(
    letter: Letter | Unreadable,
    *,
    now: float,
    revoked: Collection[str] = frozenset(),
    states: Mapping[str, str] | None = None,
) -> tuple[Note, ...]:
    """
    Return what is to be said of a letter before it is sent again under its own id.

    Args:
        now: Epoch seconds.

        revoked: Ids that a node would drop.

        states: State of the result of each task, where there is one.
    """
    if isinstance(letter, Unreadable):
        return (Note.UNREADABLE,)
    succeeded = {letter.task_id} if (states or {}).get(letter.task_id) == "SUCCESS" else set()
    decided = decide(letter, Redrive(), Known(now=now, revoked=revoked, succeeded=succeeded), tag="")
    return (decided,) if isinstance(decided, Note) else decided.notes


def decide(letter: Letter | Unreadable, how: Redrive, known: Known, *, tag: str, task_id: str = "") -> Sending | Note:
    """
    Return the message to be sent for a letter, or why none is.

    Args:
        tag: Its new delivery tag.

        task_id: Its new id, where it is to have one.
    """
    if isinstance(letter, Unreadable):
        return Note.UNREADABLE
    new_id = task_id if how.new_ids else ""
    if letter.task_id in known.succeeded:
        return Note.SUCCEEDED
    if not new_id and letter.task_id in known.revoked:
        return Note.REVOKED
    if letter.cause == Cause.WORKER_LOST and not how.poison:
        return Note.POISON
    parts = _parts(letter)
    if isinstance(parts, Note):
        return parts
    if max(letter.redrives, parts.redrives) >= LOOPS:
        return Note.LOOPING
    if parts.expires_at is not None and parts.expires_at <= known.now and not how.expired:
        return Note.EXPIRED
    if parts.chord and new_id:
        return Note.CHORD_ID
    try:
        message = _written(parts, letter, how, known.now, tag, new_id)
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return Note.UNWRITABLE
    return Sending(
        message=message,
        task_id=new_id or letter.task_id,
        queue=how.queue or letter.queue or parts.queue,
        priority=parts.priority,
        chord=parts.chord,
        index=parts.index,
        notes=tuple(note for note, holds in _said(parts, letter, known.now) if holds),
    )


def _said(parts: _Message, letter: Letter, now: float) -> Sequence[tuple[Note, bool]]:
    return (
        (Note.INEXACT, not (letter.envelope or letter.envelope_base64)),
        (Note.CHORD, bool(parts.chord)),
        (Note.CHAIN, parts.has_chain),
        (Note.ERRBACKS, parts.has_errbacks),
        (Note.ETA, parts.eta_at is not None and parts.eta_at > now),
        (Note.POISON, letter.cause == Cause.WORKER_LOST),
    )


# A message in the parts that are changed: all else stays as it is written, to the byte.
_Raw = dict[str, msgspec.Raw]


@dataclass(kw_only=True, slots=True)
class _Message:
    """A message taken apart: what is written anew, and what decides."""

    whole: _Raw
    headers: _Raw
    properties: _Raw
    body: bytes
    is_json: bool
    redrives: int = 0
    priority: int = 0
    expires_at: float | None = None
    eta_at: float | None = None
    chord: str = ""
    index: float | None = None
    has_chain: bool = False
    has_errbacks: bool = False
    protocol_1: dict[str, Any] = field(default_factory=dict)

    @property
    def queue(self) -> str:
        """The queue that it was sent to by the default exchange; empty if it went through another."""
        information = _any(self.properties.get("delivery_info", _NULL))
        if not isinstance(information, dict) or information.get("exchange"):
            return ""
        return str(information.get("routing_key") or "")

    @property
    def text(self) -> bytes:
        """Its body as the task's arguments are written in it."""
        body = _text(self.body)
        return base64.b64decode(body) if self.properties.get("body_encoding") == _BASE64 else body.encode()


_opened = msgspec.json.Decoder(_Raw).decode
_text = msgspec.json.Decoder(str).decode
_any = msgspec.json.decode
_encode = msgspec.json.encode
_NULL, _ZERO, _JSON, _BASE64 = (msgspec.Raw(text) for text in (b"null", b"0", b'"application/json"', b'"base64"'))
_NO_PRIORITY = (_NULL, _ZERO)


def _parts(letter: Letter) -> _Message | Note:
    """Take a letter's message apart; make one, where it has none."""
    raw = letter.message
    if not raw:
        if not isinstance(letter.args, list) or not isinstance(letter.kwargs, dict) or not letter.task_name:
            return Note.NO_ARGUMENTS
        try:
            raw = fresh(letter.task_name, letter.args, letter.kwargs, task_id=letter.task_id, queue=letter.queue)
        except ValueError:
            return Note.UNWRITABLE
    try:
        whole = _opened(raw)
        headers, properties = _opened(whole["headers"]), _opened(whole["properties"])
        body = bytes(whole["body"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return _odd_parts(raw)
    return _of_parts(whole, headers, properties, body)


def _odd_parts(raw: bytes) -> _Message | Note:
    """Take a message apart that only Python's own decoder reads, as kombu does: NaN, or bytes that are no UTF-8."""
    value = load(raw)
    if isinstance(value, Unreadable) or not isinstance(value, dict) or not isinstance(value.get("body"), str):
        return Note.UNREADABLE
    headers, properties = value.get("headers") or {}, value.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return Note.UNREADABLE
    try:
        whole, inner, outer = (
            {str(k): msgspec.Raw(json.dumps(v, allow_nan=False).encode()) for k, v in each.items()}
            for each in (value, headers, properties)
        )
    except ValueError:
        return Note.UNWRITABLE
    return _of_parts(whole, inner, outer, bytes(whole["body"]))


def _of_parts(whole: _Raw, headers: _Raw, properties: _Raw, body: bytes) -> _Message | Note:
    found = _Message(
        whole=whole,
        headers=headers,
        properties=properties,
        body=body,
        is_json=whole.get("content-type") == _JSON and headers.get("compression", _NULL) == _NULL,
    )
    try:
        if "task" not in headers:
            if not _read_protocol_1(found):
                return Note.UNREADABLE
        elif not (found.is_json and body.endswith(NOTHING_FOLLOWS)):
            _read_embedded(found)
        _read_rest(found)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return Note.UNREADABLE
    return found


def _read_rest(found: _Message) -> None:
    headers, properties = found.headers, found.properties
    if (expires := headers.get("expires", _NULL)) != _NULL:
        found.expires_at = instant(_any(expires))
    if (eta := headers.get("eta", _NULL)) != _NULL:
        found.eta_at = instant(_any(eta))
    if REDRIVES in headers:
        count = _any(headers[REDRIVES])
        found.redrives = count if isinstance(count, int) and count > 0 else 0
    if (priority := properties.get("priority", _ZERO)) not in _NO_PRIORITY:
        value = _any(priority)
        found.priority = value if isinstance(value, int) else 0


def _read_embedded(found: _Message) -> None:
    """Read what is to follow a task, from the end of its body; a body that is pickled or compressed is not opened."""
    if not found.is_json:
        # What cannot be looked into may be one of a chord's: its group says so much.
        if found.headers.get("group", _NULL) != _NULL:
            raise ValueError("a group's task whose body is not read")
        return
    embedded = _body_of(found)[2]
    if not isinstance(embedded, dict):
        return
    found.has_chain, found.has_errbacks = bool(embedded.get("chain")), bool(embedded.get("errbacks"))
    if embedded.get("chord") and (group := found.headers.get("group", _NULL)) != _NULL:
        found.chord = str(_any(group))
        index = _any(found.headers.get("group_index", _NULL))
        found.index = float(index) if isinstance(index, int) else None


def _body_of(found: _Message) -> list[Any]:
    body = _any(found.text)
    if not isinstance(body, list) or len(body) != 3:
        raise ValueError("a body is a list of args, kwargs and what follows")
    return body


def _read_protocol_1(found: _Message) -> bool:
    """Read the header fields that a message of protocol 1 keeps in its body; False if they cannot be."""
    if not found.is_json:
        return False
    body = _any(found.text)
    if not isinstance(body, dict) or not body.get("task"):
        return False
    found.protocol_1 = body
    found.expires_at, found.eta_at = instant(body.get("expires")), instant(body.get("eta"))
    found.has_errbacks = bool(body.get("errbacks"))
    if body.get("chord"):
        found.chord = str(body.get("taskset") or body.get("group") or "")
    return True


def _written(parts: _Message, letter: Letter, how: Redrive, now: float, tag: str, new_id: str) -> bytes:
    """
    Put a message together again.

    Raises:
        ValueError: If its arguments are to be others, and its body is not JSON.
    """
    headers, properties = parts.headers, parts.properties
    changed: dict[str, object] = {}
    if not how.keep_retries and headers.get("retries") != _ZERO:
        changed["retries"] = 0
    if parts.eta_at is not None and parts.eta_at <= now:
        changed["eta"] = None
    if parts.expires_at is not None and parts.expires_at <= now:
        changed["expires"] = None
        properties.pop("expiration", None)
    if new_id:
        changed["id"] = new_id
        if headers.get("root_id") in (None, headers.get("id")):
            changed["root_id"] = new_id
        properties["correlation_id"] = _raw(new_id)
        headers[REDRIVE_OF] = _raw(letter.task_id)
    if how.args or how.kwargs:
        parts.whole["body"] = _raw(_edited(parts, how, changed))
    if parts.protocol_1:
        parts.whole["body"] = _raw(_protocol_1(parts, {k: v for k, v in changed.items() if k != "root_id"}))
    elif changed:
        headers |= {name: _raw(value) for name, value in changed.items()}
    headers[REDRIVES] = _raw(max(letter.redrives, parts.redrives) + 1)
    properties["delivery_tag"] = msgspec.Raw(f'"{tag}"'.encode())
    if how.queue:
        properties["delivery_info"] = _raw({"exchange": "", "routing_key": how.queue})
    return _encode({**parts.whole, "headers": headers, "properties": properties})


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


def _edited(parts: _Message, how: Redrive, changed: dict[str, object]) -> str:
    """Return a body with other arguments, in the spelling that it had; `changed` gets how headers show them."""
    if parts.protocol_1 or not parts.is_json:
        raise ValueError("its arguments cannot be changed: its body is not the JSON of protocol 2")
    args, kwargs, embedded = _body_of(parts)
    args, kwargs = json.loads(how.args) if how.args else args, json.loads(how.kwargs) if how.kwargs else kwargs
    changed |= {"argsrepr": repr(tuple(args)), "kwargsrepr": repr(kwargs)}
    return _spelled(parts, [args, kwargs, embedded])


def _protocol_1(parts: _Message, changed: Mapping[str, object]) -> str:
    return _spelled(parts, {**parts.protocol_1, **changed})


def _spelled(parts: _Message, body: object) -> str:
    text = json.dumps(body, allow_nan=False).encode()
    return base64.b64encode(text).decode() if parts.properties.get("body_encoding") == _BASE64 else text.decode()
