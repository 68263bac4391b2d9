"""One key of an application, by its name and a task's id → what it holds, by its type, and never all of a large one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from opslib import redact, refusals
from opslib.collectors.app_scan import known
from opslib.errors import BadParameter
from opslib.facts.app_keys import AppValue
from opslib.keys import key_name, raw_name

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

#: Elements that are read unless somebody asks for more, and the most that anybody gets.
LIMIT, MOST = 100, 10_000
#: So much of a string, and of any one element; the rest is only counted.
PART_BYTES = 16 * 1024
#: What an answer may weigh, as far as the average of its elements tells.
_ANSWER_BYTES = 4 * 1024 * 1024

Pairs = Iterable[tuple[object, object]]
_LENGTHS: Mapping[str, Callable[[Redis, bytes], Any]] = {
    "string": lambda client, key: client.strlen(key),
    "list": lambda client, key: client.llen(key),
    "hash": lambda client, key: client.hlen(key),
    "set": lambda client, key: client.scard(key),
    "zset": lambda client, key: client.zcard(key),
    "stream": lambda client, key: client.xlen(key),
}


def read(broker: Broker, name: str, task_id: str, *, limit: int = LIMIT, first: bool = False) -> AppValue | None:
    """
    Return what a task's key of this name holds; None if there is no such key.

    Args:
        limit: Elements at most. Of a list, a sorted set or a stream those are the last ones.

        first: The first ones instead.

    Raises:
        BadParameter: If the target has no keys of that name, or the id would make another one's key of it.

        OpsError: If the database does not answer.
    """
    app_key = known(broker, name)
    key = app_key.key(task_id)
    if broker.keys.is_reserved(key):
        said = redact.plain(task_id)[:100]
        raise BadParameter(f"{said!r} is no task id: as {name} it would be one of Celery's keys, or of ours.")
    shown = redact.url(app_key.url or broker.target.broker_url)
    client, raw = broker.apps[name], raw_name(key)
    with refusals.explained(shown):
        kind = key_name(client.type(raw))
        life_ms, weight = client.pttl(raw), client.memory_usage(raw)
        if kind == "none" or life_ms == -2 or weight is None:
            return None
        length = _LENGTHS[kind](client, raw) if kind in _LENGTHS else 0
        most = min(limit, MOST, max(1, _ANSWER_BYTES * max(length, 1) // max(weight, 1)))
        pairs = list(islice(_pairs(client, raw, kind, length, most, first=first), most))
    kept = [(_text(label), _text(value)) for label, value in pairs]
    bytes_read = sum(_length(value) for _, value in pairs)
    return AppValue(
        name=name,
        task_id=task_id,
        key=key,
        database=shown,
        type=kind,
        elements=length,
        size_bytes=weight,
        life_s=life_ms / 1000 if life_ms >= 0 else -1.0,
        parts=tuple(kept),
        unread=max(0, length - (bytes_read if kind == "string" else len(kept))),
        cut=sum(kind != "string" and _length(value) > PART_BYTES for _, value in pairs),
    )


def _pairs(client: Redis, key: bytes, kind: str, length: int, most: int, *, first: bool) -> Pairs:
    """Yield label and value of each element, in the order in which the server has them."""
    start = 0 if first else max(0, length - most)
    if kind == "string":
        return [("", client.getrange(key, 0, PART_BYTES - 1))]
    if kind == "list":
        lines = cast("list[bytes]", client.lrange(key, start, start + most - 1))
        return [(start + n + 1, line) for n, line in enumerate(lines)]
    if kind == "hash":
        return cast("Pairs", client.hscan_iter(key, count=most))
    if kind == "set":
        return (("", member) for member in client.sscan_iter(key, count=most))
    if kind == "zset":
        members = cast("list[tuple[bytes, float]]", client.zrange(key, start, start + most - 1, withscores=True))
        return [(f"{score:.15g}", member) for member, score in members]
    if kind == "stream":
        entries: Any = (
            client.xrange(key, count=most) if first else list(cast("Any", client.xrevrange(key, count=most)))[::-1]
        )
        return [(entry, b" ".join(b"%b=%b" % pair for pair in fields.items())) for entry, fields in entries]
    return []


def _length(value: object) -> int:
    return len(value) if isinstance(value, bytes) else 0


def _text(value: object) -> str:
    """Return a value as text: bytes that are none are spelled out."""
    if not isinstance(value, bytes):
        return str(value)
    return value[:PART_BYTES].decode("utf-8", "backslashreplace")
