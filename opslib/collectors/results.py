"""The result backend → every result that is not final, read by its head; and any result asked for by id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib.envelope import digest
from opslib.facts.system import FINAL_STATES, Coverage, StoredResult
from opslib.keys import key_name, raw_name

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

_PAGE = 250
#: The status is the first field of what Celery writes (facts §3.1).
_HEAD_BYTES = 96
_LARGEST_BYTES = 64 * 1024
_MOST_OPEN = 5_000
#: Failures that are read whole, and those that are told apart by their id; of the others only the number is known.
_MOST_FAILED, _MOST_FAILED_IDS = 5_000, 200_000
_STATUS = re.compile(rb'^\s*\{\s*"status":\s*"([^"\\]{1,60})"')
UNREADABLE = "(unreadable)"
_NOT_REDIS = "The result backend is not Redis, so results were not looked at."


class _Result(msgspec.Struct):
    """The fields of a result that any question needs; value and arguments are skipped."""

    status: str
    result: Any = None
    name: str | None = None
    worker: str | None = None
    queue: str | None = None
    retries: int | None = 0
    task_id: str | None = None


_decode = msgspec.json.Decoder(_Result).decode


def read(broker: Broker, known: Sequence[bytes], *, max_keys: int) -> tuple[list[StoredResult], Counter[str], Coverage]:
    """
    Return the results that are not final, how many there are by state, and the coverage.

    Args:
        known: Keys of results that a pass over the broker's database met; used where both share it.

        max_keys: Keys after which a pass over another database stops.
    """
    if broker.results is None:
        return [], Counter(), Coverage(place="results", seen=0, silent=1, note=_NOT_REDIS)
    from redis.exceptions import RedisError

    client, states, rows = broker.results, Counter[str](), list[StoredResult]()
    silent = 0
    try:
        keys: Iterable[bytes] = known
        if client is not broker.reads:
            total = client.dbsize()
            silent = max(0, total - max_keys)
            keys = _scan(client, broker.keys.result_root, max_keys)
        for page in _pages(keys):
            for key, state in _heads(client, page):
                states[state] += 1
                if state not in FINAL_STATES and state != UNREADABLE and len(rows) < _MOST_OPEN:
                    rows += _full(client, [key], broker.keys.result_root)
    except RedisError as error:
        return rows, states, Coverage(place="results", seen=sum(states.values()), silent=1, note=_unread(error))
    opaque = states[UNREADABLE]
    silent += max(0, sum(n for state, n in states.items() if state not in FINAL_STATES) - opaque - _MOST_OPEN)
    notes = [f"{silent:,} keys were not looked at; max_keys allows no more."] if silent else []
    if opaque:
        notes.append(f"{opaque:,} are not plain JSON (compressed, pickled), so their states are not known.")
    coverage = Coverage(place="results", seen=sum(states.values()), silent=silent + opaque, note=" ".join(notes))
    return rows, states, coverage


def by_id(broker: Broker, ids: Iterable[str]) -> tuple[list[StoredResult], Coverage]:
    """Return the stored results of these tasks, and the coverage; an id without one is absent, which proves nothing."""
    from redis.exceptions import RedisError

    asked = list(ids)
    if broker.results is None:
        return [], Coverage(place="results", seen=0, silent=len(asked), note=_NOT_REDIS)
    rows: list[StoredResult] = []
    try:
        for page in _pages(raw_name(broker.keys.result(task_id)) for task_id in asked):
            rows += _full(broker.results, page, broker.keys.result_root)
    except RedisError as error:
        return rows, Coverage(place="results", seen=len(rows), silent=len(asked), note=_unread(error))
    return rows, Coverage(place="results", seen=len(asked))


class States:
    """
    The states of many tasks' results, a page at a time, by the first bytes of each.

    Attributes:
        unread: Why they are not known; empty as long as they are.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.unread = "" if broker.results is not None else _NOT_REDIS.rstrip(".")

    def of(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the state of each task that has a result."""
        from redis.exceptions import RedisError

        root, client = self._broker.keys.result_root, self._broker.results
        if client is None or self.unread:
            return {}
        try:
            heads = _heads(client, [raw_name(f"{root}{task_id}") for task_id in ids])
            return {key_name(key).removeprefix(root): state for key, state in heads}
        except RedisError as error:
            self.unread = f"Results: {_unread(error)}".rstrip(".")
            return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """
    Failed tasks by their results.

    Attributes:
        count: How many there are.

        rows: The first of them.
    """

    count: int
    rows: Sequence[StoredResult]
    coverage: Coverage


def failures(
    broker: Broker,
    known: Sequence[bytes],
    captured: Collection[str],
    *,
    max_keys: int,
    elsewhere: Callable[[frozenset[str]], Collection[str]] | None = None,
) -> Failures:
    """
    Return the results that say FAILURE.

    Args:
        known: Keys of results that a pass over the broker's database met; used where both share it.

        captured: Ids that are left out: something better tells of them.

        max_keys: Keys after which a pass over another database stops.

        elsewhere: Tells which of some ids are left out besides; called once, and only if there are any.
    """
    if broker.results is None:
        return Failures(count=0, rows=(), coverage=Coverage(place="results", seen=0, silent=1, note=_NOT_REDIS))
    from redis.exceptions import RedisError

    client, root, rows, failed = broker.results, broker.keys.result_root, list[StoredResult](), list[bytes]()
    seen = silent = opaque = beyond = 0
    try:
        keys: Iterable[bytes] = known
        if client is not broker.reads:
            silent = max(0, client.dbsize() - max_keys)
            keys = _scan(client, root, max_keys)
        for page in _pages(keys):
            heads = list(_heads(client, page))
            found = [key for key, state in heads if state == "FAILURE" and key_name(key)[len(root) :] not in captured]
            room = max(0, _MOST_FAILED_IDS - len(failed))
            failed.extend(found[:room])
            beyond += len(found[room:])
            seen, opaque = seen + len(heads), opaque + sum(state == UNREADABLE for _, state in heads)
        if failed and elsewhere:
            others = elsewhere(frozenset(key_name(key)[len(root) :] for key in failed))
            failed = [key for key in failed if key_name(key)[len(root) :] not in others]
        for page in _pages(failed[:_MOST_FAILED]):
            rows += _full(client, page, root)
    except RedisError as error:
        unread = Coverage(place="results", seen=seen, silent=1, note=_unread(error))
        return Failures(count=len(failed) + beyond, rows=rows, coverage=unread)
    notes = [f"{silent:,} keys were not looked at; max_keys allows no more."] if silent else []
    notes += [f"{opaque:,} are not plain JSON (compressed, pickled), so their states are not known."] if opaque else []
    coverage = Coverage(place="results", seen=seen, silent=silent + opaque, note=" ".join(notes))
    return Failures(count=len(failed) + beyond, rows=rows, coverage=coverage)


def _unread(error: Exception) -> str:
    return f"It cannot be read: {str(error).rstrip('.')}."


def _scan(client: Redis, root: str, max_keys: int) -> Iterator[bytes]:
    """Yield the keys of results in a database of their own, in steps."""
    cursor, visited, start = 0, 0, root.encode()
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, count=_PAGE))
        yield from (name for name in names if name.startswith(start))
        visited += len(names)
        if cursor == 0 or visited >= max_keys:
            return


def _pages(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    page: list[bytes] = []
    for key in keys:
        page.append(key)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _heads(client: Redis, keys: Sequence[bytes]) -> Iterator[tuple[bytes, str]]:
    """Yield each key's state from the first bytes of its value; keys that vanished are left out."""
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.getrange(key, 0, _HEAD_BYTES)
        heads = pipe.execute(raise_on_error=False)
    for key, raw in zip(keys, heads, strict=True):
        if raw == b"":
            continue
        found = _STATUS.match(raw) if isinstance(raw, bytes) else None
        yield key, found.group(1).decode() if found else UNREADABLE


def _full(client: Redis, keys: Sequence[bytes], root: str) -> list[StoredResult]:
    """Read whole results: their sizes first, for one of megabytes is not fetched."""
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.strlen(key)
            pipe.getrange(key, 0, _LARGEST_BYTES - 1)
            pipe.pttl(key)
        replies = pipe.execute(raise_on_error=False)
    seconds, micros = client.time()
    rows = []
    for key, size, raw, life in zip(keys, replies[::3], replies[1::3], replies[2::3], strict=True):
        if isinstance(raw, bytes) and raw:
            expires_at = seconds + micros / 1e6 + life / 1000 if isinstance(life, int) and life >= 0 else None
            rows.append(_row(key, raw, int(size), expires_at, root))
    return rows


def _row(key: bytes, raw: bytes, size: int, expires_at: float | None, root: str) -> StoredResult:
    name = key_name(key)
    task_id = name.removeprefix(root)
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, RecursionError):
        head = _STATUS.match(raw[:_HEAD_BYTES])
        state = head.group(1).decode() if head else UNREADABLE
        return StoredResult(
            task_id=task_id, key=name, state=state, expires_at=expires_at, sha256=digest(raw), size_bytes=size
        )
    value = found.result if isinstance(found.result, dict) else {}
    pid = value.get("pid")
    return StoredResult(
        task_id=task_id,
        key=name,
        state=found.status,
        task=found.name or "",
        node=str(value.get("hostname") or found.worker or ""),
        pid=pid if isinstance(pid, int) else None,
        queue=found.queue or "",
        retries=found.retries or 0,
        exception=str(value.get("exc_type") or ""),
        expires_at=expires_at,
        sha256=digest(raw),
        size_bytes=size,
    )
