"""Bytes of a message → its headers: typed and fast for what Celery writes, tolerant for everything else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

#: A protocol 1 message keeps its id and task name in the body; a larger one is named by its correlation id alone.
_PROTOCOL_1_BODY_BYTES = 64 * 1024
_TEXT_LIMIT = 512
_Filled = Annotated[str, msgspec.Meta(min_length=1)]


class Headers(msgspec.Struct):
    """The header fields of protocol 2 that any question needs; the rest is skipped, not stored."""

    task: _Filled | None = None
    id: str | None = None
    retries: int | None = 0
    eta: str | None = None
    expires: str | float | None = None
    origin: str | None = None
    root_id: str | None = None
    group: str | None = None
    redelivered: bool | None = None


class Properties(msgspec.Struct):
    """The properties that any question needs."""

    delivery_tag: str
    priority: int | None = 0
    correlation_id: str | None = None
    body_encoding: Literal["base64"] | None = None


class Envelope(msgspec.Struct):
    """A message of protocol 2, typed; its body stays the text that it is."""

    headers: Headers
    properties: Properties
    body: _Filled
    content_type: str | None = msgspec.field(name="content-type", default=None)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a message says about itself outside its body.

    Attributes:
        task: Empty if the message does not name one that can be read.

        eta_at: Epoch seconds; None for none, or for one that cannot be parsed.
    """

    task_id: str
    task: str
    delivery_tag: str
    retries: int = 0
    priority: int = 0
    eta_at: float | None = None
    expires_at: float | None = None
    redelivered: bool = False
    origin: str = ""
    root_id: str = ""
    group: str = ""
    content_type: str = ""


class Unreadable(msgspec.Struct, frozen=True):
    """Why a message has no head: what a worker would stumble over, as a sentence."""

    reason: str


_decode = msgspec.json.Decoder(Envelope).decode
_decode_unacked = msgspec.json.Decoder(tuple[Envelope, str | None, str | None]).decode


def peek(raw: bytes) -> Envelope | None:
    """Return a message as Celery writes it, in well under a microsecond; None for every other message."""
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if found.headers.id is not None and _is_sound(found) else None


def _is_sound(found: Envelope) -> bool:
    """Whether a typed message has what a worker needs of it; if not, the tolerant decoder says what is wrong."""
    base64_text = found.properties.body_encoding is None or (found.body.isascii() and not len(found.body) % 4)
    return found.headers.task is not None and base64_text


def head(raw: bytes) -> Head | Unreadable:
    """Return the headers of one waiting message; its body is not decoded (but see protocol 1)."""
    found = peek(raw)
    return _from_typed(found) if found is not None else _tolerant(raw)


def unacked_head(raw: bytes) -> tuple[Head | Unreadable, str, str]:
    """Return the headers, exchange and routing key of one value of the unacked hash."""
    try:
        envelope, exchange, routing_key = _decode_unacked(raw)
        if _is_sound(envelope):
            return _from_typed(envelope), exchange or "", routing_key or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    value = load(raw)
    if isinstance(value, Unreadable):
        return value, "", ""
    if not isinstance(value, list) or len(value) != 3:
        return Unreadable("the entry is not a list of envelope, exchange and routing key"), "", ""
    return _from_any(value[0]), _word(value[1]), _word(value[2])


def digest(raw: bytes) -> str:
    """Return the sha256 of a message's stored bytes, in hex."""
    return hashlib.sha256(raw).hexdigest()


def instant(value: object) -> float | None:
    """Return epoch seconds of an ISO-8601 text or a number; a missing offset means UTC; None if it is neither."""
    try:
        if isinstance(value, bool) or value is None or value == "":
            return None
        if isinstance(value, int | float):
            return float(value) if math.isfinite(value) else None
        at = datetime.fromisoformat(str(value))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _from_typed(found: Envelope) -> Head:
    headers, properties = found.headers, found.properties
    return Head(
        task_id=headers.id or properties.correlation_id or "",
        task=_text(headers.task),
        delivery_tag=properties.delivery_tag,
        retries=_whole(headers.retries),
        priority=_whole(properties.priority),
        eta_at=instant(headers.eta),
        expires_at=instant(headers.expires),
        redelivered=bool(headers.redelivered),
        origin=_text(headers.origin),
        root_id=_text(headers.root_id),
        group=_text(headers.group),
        content_type=_text(found.content_type),
    )


def _tolerant(raw: bytes) -> Head | Unreadable:
    """Read one odd message the way a worker would, and say what a worker would stumble over."""
    value = load(raw)
    return value if isinstance(value, Unreadable) else _from_any(value)


def load(raw: bytes, errors: str = "replace") -> Any:  # noqa: ANN401 - whatever JSON holds
    """
    Load JSON as kombu does, without its failures: an Unreadable says what is wrong.

    With Python's json: NaN is allowed, and the last of two equal keys wins. Bytes that are not UTF-8 are replaced.
    """
    try:
        return json.loads(raw.decode("utf-8", errors))
    except UnicodeDecodeError:
        return Unreadable("it is not UTF-8 text")
    except RecursionError:
        return Unreadable("it is nested too deeply")
    except ValueError as error:
        return Unreadable("it is empty" if not raw.strip() else f"it is not JSON ({str(error).split(':')[0][:80]})")


def _from_any(value: object) -> Head | Unreadable:
    if not isinstance(value, dict):
        return Unreadable(f"it is a JSON {_json_kind(value)}, not an object")
    properties, headers = value.get("properties"), value.get("headers")
    if not isinstance(properties, dict):
        return Unreadable("it has no properties")
    if not isinstance(properties.get("delivery_tag"), str):
        return Unreadable("it has no delivery tag")
    if headers is not None and not isinstance(headers, dict):
        return Unreadable("its headers are not an object")
    if why := _unusable_body(value.get("body"), properties.get("body_encoding")):
        return Unreadable(why)
    fields = headers if headers and headers.get("task") else _protocol_1(value, properties)
    if fields is None:
        return Unreadable("it names no task")
    if not isinstance(fields.get("task", ""), str):
        return Unreadable("its task name is not text")
    return Head(
        task_id=_word(fields.get("id") or properties.get("correlation_id")),
        task=_text(fields.get("task")),
        delivery_tag=_word(properties["delivery_tag"]),
        retries=_whole(fields.get("retries")),
        priority=_whole(properties.get("priority")),
        eta_at=instant(fields.get("eta")),
        expires_at=instant(fields.get("expires")),
        redelivered=bool((headers or {}).get("redelivered")),
        origin=_text((headers or {}).get("origin")),
        root_id=_text(fields.get("root_id")),
        group=_text(fields.get("group")),
        content_type=_text(value.get("content-type")),
    )


def _unusable_body(body: object, encoding: object) -> str:
    """Return why kombu, and with it the worker, would fail on a body before any task is looked for; empty if not."""
    if not isinstance(body, str):
        return "it has no body" if body is None else f"its body is a JSON {_json_kind(body)}, not text"
    if not body:
        return "its body is empty"
    if not encoding or encoding == "utf-8":
        return ""
    if encoding != "base64":
        return f"its body_encoding {_text(encoding)!r} is not known"
    try:
        base64.b64decode(body)
    except ValueError:
        return "its body is not base64"
    return ""


class _Protocol1(msgspec.Struct):
    task: str | None = None
    id: str | None = None
    retries: int | None = 0
    eta: str | None = None
    expires: str | float | None = None


def _protocol_1(value: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any] | None:
    """
    Return the header fields that a protocol 1 message keeps in its body: those five, no argument.

    Nothing of a body that is not plain JSON or too large; None if the body is read and names no task.
    """
    body = value.get("body")
    if (
        value.get("content-type") != "application/json"
        or not isinstance(body, str)
        or len(body) > _PROTOCOL_1_BODY_BYTES
    ):
        return {}
    try:
        text = base64.b64decode(body, validate=True) if properties.get("body_encoding") == "base64" else body.encode()
        found = msgspec.json.decode(text, type=_Protocol1)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
    return {name: getattr(found, name) for name in _Protocol1.__struct_fields__} if found.task else None


def _word(value: object) -> str:
    """Return a value as text that can be written anywhere: half of a surrogate pair is spelled out."""
    text = "" if value is None else value if isinstance(value, str) else str(value)[:_TEXT_LIMIT]
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(value: object) -> str:
    return _word(value)[:_TEXT_LIMIT]


def _whole(value: object) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]  # anything JSON holds; what is no number is 0
    except (TypeError, ValueError, OverflowError):
        return 0
    return max(-(2**31), min(2**31, int(number)))


def _json_kind(value: object) -> str:
    kinds = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
