"""The unacked hash and its index → one row for each delivered, unacknowledged message, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from opslib import pieces
from opslib.collectors.scan import head_fields
from opslib.collectors.windows import WINDOW_BYTES
from opslib.envelope import Head, digest, unacked_head
from opslib.facts.messages import UnackedMessage, UnreadableMessage
from opslib.facts.system import Coverage
from opslib.keys import Binding, destinations, key_name

if TYPE_CHECKING:
    from opslib.broker import Broker

_PAGE = 200
#: A value beyond this is not fetched: it would be a stall for the server and a risk for us.
_LARGEST_BYTES = 8 * 1024 * 1024


def read(
    broker: Broker, bindings: Mapping[str, Sequence[Binding]], *, max_messages: int
) -> tuple[list[UnackedMessage], list[UnreadableMessage], Coverage]:
    """
    Return what is delivered and not acknowledged: readable rows, unreadable ones, and the coverage.

    The index gives the oldest first; the hash is walked once for entries that the index lacks, which Celery itself
    never restores (facts §2.3).

    Args:
        max_messages: Entries after which reading stops, oldest first.
    """
    from redis.exceptions import ResponseError

    rows: list[UnackedMessage] = []
    odd: list[UnreadableMessage] = []
    try:
        total = broker.reads.hlen(broker.keys.unacked)
        scores = _indexed(broker, max_messages)
    except ResponseError as error:
        return [], [], Coverage(place="unacked", seen=0, silent=1, note=f"It cannot be read: {error}.")
    seen = skipped = 0
    for tag, raw in _entries(broker, scores, min(total, max_messages)):
        if raw is None:
            skipped += 1
            continue
        seen += 1
        _file(tag, raw, scores.get(tag), broker, bindings, rows, odd)
    left = max(0, total - max_messages) + skipped
    note = f"{left:,} entries were not read: more than max_messages, or larger than 8 MiB." if left else ""
    return rows, odd, Coverage(place="unacked", seen=seen, silent=left, note=note)


def raws(broker: Broker) -> Iterator[bytes]:
    """Yield every entry as it is stored; one that is too large to be fetched is an empty one."""
    for start in _fields_in_pages(broker):
        yield from (raw or b"" for _, raw in _values(broker, start))


def _fields_in_pages(broker: Broker) -> Iterator[list[bytes]]:
    page: list[bytes] = []
    for field in _fields(broker):
        page.append(field)
        if len(page) >= _PAGE:
            yield page
            page = []
    if page:
        yield page


def _indexed(broker: Broker, limit: int) -> dict[bytes, float | None]:
    """Return delivery tags with their scores, oldest first, in pages."""
    scores: dict[bytes, float | None] = {}
    for start in range(0, limit, _PAGE * 5):
        stop = min(limit, start + _PAGE * 5) - 1
        page = cast(
            "list[tuple[bytes, float]]", broker.reads.zrange(broker.keys.unacked_index, start, stop, withscores=True)
        )
        scores.update((tag, float(score)) for tag, score in page)
        if len(page) < stop - start + 1:
            break
    return scores


def _entries(broker: Broker, scores: Mapping[bytes, object], expected: int) -> Iterator[tuple[bytes, bytes | None]]:
    """
    Yield what the index names, then what the hash holds besides.

    A walk over the hash costs a pass over the values too, so it is left out where the index led to all that there is.
    """
    met = 0
    for tag, raw in _values(broker, list(scores)):
        met += 1
        yield tag, raw
    if met < expected:
        lost = list(dict.fromkeys(tag for tag in _fields(broker) if tag not in scores))
        yield from _values(broker, lost[: expected - met])


def _fields(broker: Broker) -> Iterator[bytes]:
    """Yield every field of the hash at least once."""
    cursor = 0
    while True:
        cursor, page = cast(
            "tuple[int, dict[bytes, bytes]]", broker.reads.hscan(broker.keys.unacked, cursor, count=_PAGE)
        )
        yield from page
        if cursor == 0:
            return


def _values(broker: Broker, tags: Sequence[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield values in windows of bytes; None for one too large to fetch. Entries acked meanwhile are left out."""
    for start in range(0, len(tags), _PAGE):
        page = tags[start : start + _PAGE]
        with broker.reads.pipeline(transaction=False) as pipe:
            for tag in page:
                pipe.hstrlen(broker.keys.unacked, tag)
            sizes = dict(zip(page, cast("list[int]", pipe.execute()), strict=True))
        yield from ((tag, None) for tag in page if sizes[tag] > _LARGEST_BYTES)
        readable = [tag for tag in page if 0 < sizes[tag] <= _LARGEST_BYTES]
        for window in pieces.cut(readable, sizes.__getitem__, most_bytes=WINDOW_BYTES):
            values = cast("list[bytes | None]", broker.reads.hmget(broker.keys.unacked, window))
            yield from ((tag, value) for tag, value in zip(window, values, strict=True) if value is not None)


def _file(
    tag: bytes,
    raw: bytes,
    score: float | None,
    broker: Broker,
    bindings: Mapping[str, Sequence[Binding]],
    rows: list[UnackedMessage],
    odd: list[UnreadableMessage],
) -> None:
    found, exchange, routing_key = unacked_head(raw)
    name = key_name(tag)
    if isinstance(found, Head):
        queues = destinations(bindings, exchange, routing_key)
        rows.append(
            UnackedMessage(
                **{**head_fields(found), "delivery_tag": name},
                queue=queues[0] if len(queues) == 1 else "",
                key=broker.keys.unacked,
                sha256=digest(raw),
                size_bytes=len(raw),
                delivered_at=score,
                exchange=exchange,
                routing_key=routing_key,
            )
        )
    else:
        odd.append(
            UnreadableMessage(
                place="unacked",
                queue=routing_key,
                key=broker.keys.unacked,
                position=-1,
                delivery_tag=name,
                sha256=digest(raw),
                size_bytes=len(raw),
                reason=found.reason,
            )
        )
