"""Task ids → the keys that are kept for them: results, and the application's own, in whichever database they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import pieces, redact, refusals, values
from opslib.errors import BadParameter, OpsError
from opslib.facts.app_keys import TaskKey
from opslib.facts.system import Coverage
from opslib.keys import RESULT, key_name, raw_name

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

    from opslib.broker import Broker

_PAGE = 100
#: Values that are fetched at once weigh no more together; a longer string is fetched in pieces.
_PIECE_BYTES = 1024 * 1024
_LENGTHS: Mapping[str, Callable[[Pipeline, bytes], object]] = {
    "string": lambda pipe, key: pipe.strlen(key),
    "list": lambda pipe, key: pipe.llen(key),
    "hash": lambda pipe, key: pipe.hlen(key),
    "set": lambda pipe, key: pipe.scard(key),
    "zset": lambda pipe, key: pipe.zcard(key),
    "stream": lambda pipe, key: pipe.xlen(key),
}
_VALUES: Mapping[str, Callable[[Pipeline, bytes], object]] = {
    "string": lambda pipe, key: pipe.get(key),
    "list": lambda pipe, key: pipe.lrange(key, 0, -1),
    "hash": lambda pipe, key: pipe.hgetall(key),
    "set": lambda pipe, key: pipe.smembers(key),
    "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
}
_PARTS: Mapping[str, Callable[[Any], Iterable[bytes]]] = {
    "string": lambda value: [value],
    "list": list,
    "hash": lambda value: (part for field in value.items() for part in field),
    "set": list,
    "zset": lambda value: (part for member, score in value for part in (member, repr(score).encode())),
}
_CHANGED = "It was written while it was looked at."


class _Result(msgspec.Struct):
    group_id: Any = None


_decode = msgspec.json.Decoder(_Result).decode


@dataclass(frozen=True, slots=True)
class _Wanted:
    name: str
    task_id: str
    key: str


def read(
    broker: Broker, ids: Iterable[str], *, names: Iterable[str] | None = None
) -> tuple[list[TaskKey], list[Coverage]]:
    """
    Return the keys that are there, and how many were looked for in each database; one that does not answer is silent.

    A value is read to be known again, and kept nowhere. One that is too large to be compared in one step is not read.

    Args:
        names: Only these: "result", or what the target calls the application's keys; all of them where none is named.

    Raises:
        BadParameter: If an id would make one of Celery's keys, or of ours, out of an application's pattern.
    """
    chosen = [RESULT, *broker.target.app_keys] if names is None else list(names)
    asked = list(dict.fromkeys(ids))
    rows: dict[tuple[str, str], TaskKey] = {}
    coverage = []
    for client, url, some in _by_database(broker, chosen):
        wanted = [_Wanted(name, task_id, _key(broker, name, task_id)) for task_id in asked for name in some]
        found, row = _of_database(broker, client, url, wanted)
        for each in found:
            rows.setdefault((each.fingerprint, each.key), each)
        coverage.append(row)
    return list(rows.values()), coverage


def _by_database(broker: Broker, names: Sequence[str]) -> Iterator[tuple[Redis, str, list[str]]]:
    """Yield each client with its URL and the names of the keys that are read by it."""
    clients: dict[Redis, tuple[str, list[str]]] = {}
    for name in names:
        client, url = broker.apps.get(name), ""
        if name == RESULT:
            client, url = broker.results, broker.target.result_backend
        elif client is not None:
            url = broker.target.app_keys[name].url
        if client is not None:
            clients.setdefault(client, (url or broker.target.broker_url, []))[1].append(name)
    for client, (url, some) in clients.items():
        yield client, url, some


def _key(broker: Broker, name: str, task_id: str) -> str:
    if name == RESULT:
        return broker.keys.result(task_id)
    key = broker.target.app_keys[name].key(task_id)
    if broker.keys.is_reserved(key):
        said = redact.plain(task_id)[:100]
        raise BadParameter(f"{said!r} is no task id: as {name} it would be one of Celery's keys, or of ours.")
    return key


def _of_database(broker: Broker, client: Redis, url: str, wanted: Sequence[_Wanted]) -> tuple[list[TaskKey], Coverage]:
    shown = redact.url(url)
    place = f"keys in {shown}"
    rows: list[TaskKey] = []
    seen = 0
    try:
        with refusals.explained(shown):
            fingerprint = broker.elsewhere(client, url).fingerprint
            for start in range(0, len(wanted), _PAGE):
                page = wanted[start : start + _PAGE]
                rows += _rows(client, page, shown, fingerprint)
                seen += len(page)
    except OpsError as error:
        return rows, Coverage(place=place, seen=seen, silent=len(wanted) - seen, note=error.message)
    return rows, Coverage(place=place, seen=seen)


def _rows(client: Redis, page: Sequence[_Wanted], shown: str, fingerprint: str) -> list[TaskKey]:
    """Read one page of keys; one that vanishes meanwhile is left out."""
    with client.pipeline(transaction=False) as pipe:
        for each in page:
            name = raw_name(each.key)
            pipe.type(name)
            pipe.pttl(name)
            pipe.memory_usage(name)
        said = pipe.execute()
    kinds = [(each, key_name(kind)) for each, kind in zip(page, said[::3], strict=True)]
    lengths = _asked(client, _LENGTHS, [(raw_name(each.key), kind) for each, kind in kinds])
    rows = []
    for (each, kind), life_ms, weight, length in zip(kinds, said[1::3], said[2::3], lengths, strict=True):
        if kind == "none" or life_ms == -2:
            continue
        elements = 1 if kind == "string" or not isinstance(length, int) else length
        size = length if kind == "string" and isinstance(length, int) else int(weight or 0)
        fixed = values.not_kept(kind) or values.too_large(kind, elements, size)
        rows.append(
            TaskKey(
                name=each.name,
                task_id=each.task_id,
                key=each.key,
                database=shown,
                fingerprint=fingerprint,
                type=kind,
                elements=elements,
                size_bytes=size,
                life_s=life_ms / 1000 if life_ms >= 0 else -1.0,
                fixed=fixed or ("" if isinstance(length, int) else _CHANGED),
            )
        )
    return list(_with_digests(client, rows))


def _asked(
    client: Redis, commands: Mapping[str, Callable[[Pipeline, bytes], object]], keys: Sequence[tuple[bytes, str]]
) -> list[Any]:
    """Ask for each key what its type has an answer to; None for the others, and for one whose type changed."""
    from redis.exceptions import ResponseError

    with client.pipeline(transaction=False) as pipe:
        for key, kind in keys:
            if kind in commands:
                commands[kind](pipe, key)
        answers = iter(pipe.execute(raise_on_error=False))
    found = [next(answers) if kind in commands else None for _, kind in keys]
    for answer in found:
        if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
            raise answer
    return [None if isinstance(answer, ResponseError) else answer for answer in found]


def _with_digests(client: Redis, rows: Sequence[TaskKey]) -> Iterator[TaskKey]:
    """Yield rows with the digests of those values that can be removed."""
    for some in pieces.cut(rows, lambda row: 0 if row.fixed else row.size_bytes, most_bytes=_PIECE_BYTES):
        if len(some) == 1 and some[0].type == "string" and some[0].size_bytes > _PIECE_BYTES:
            yield _of_long(client, some[0])
            continue
        readable = [("" if row.fixed else row.type) for row in some]
        found = _asked(client, _VALUES, [(raw_name(row.key), kind) for row, kind in zip(some, readable, strict=True)])
        for row, value in zip(some, found, strict=True):
            yield row if row.fixed else _with_value(row, value)


def _with_value(row: TaskKey, value: object) -> TaskKey:
    if value is None or (row.type != "string" and not value):
        return replace(row, fixed=_CHANGED)
    digest = values.digest(row.type, list(_PARTS[row.type](value)))
    return replace(row, sha256=digest, group=_group(value) if row.name == RESULT and isinstance(value, bytes) else "")


def _of_long(client: Redis, row: TaskKey) -> TaskKey:
    """Return a row with the digest of a long string, read piece by piece; one that is written meanwhile has another."""
    sha256 = hashlib.sha256()
    for start in range(0, row.size_bytes, _PIECE_BYTES):
        sha256.update(cast("bytes", client.getrange(raw_name(row.key), start, start + _PIECE_BYTES - 1)))
    return replace(row, sha256=sha256.hexdigest())


def _group(raw: bytes) -> str:
    """Return the group that a result names; empty for none, and for one that nobody can read."""
    try:
        found = _decode(raw).group_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""
