"""One Redis list → its messages, a window of bytes at a time, from either end: no reply holds up a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from opslib.keys import raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

#: What one reply may weigh. Asking for a whole list of a million stops every other client for seconds (PERFORMANCE 0).
WINDOW_BYTES = 256 * 1024
_MOST_PER_WINDOW = 2_000
#: Messages per page from the served end, where few are wanted.
_PEEK = 50
#: Nodes of a list that the server weighs for its size: a few hundred microseconds.
_SAMPLES = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """
    One list.

    Attributes:
        length: As LLEN said before it was read.

        queue: The queue that it is of; empty where nobody asks.
    """

    key: str
    length: int
    queue: str = ""
    priority: int = 0


def stream(broker: Broker, listing: Listing, *, limit: int | None = None) -> Iterator[tuple[int, bytes]]:
    """
    Yield a list's messages with the number of those served before each, newest first.

    Read from the producers' end, each window from the last message of the one before: pushes meanwhile move that
    message further on, where it is looked for; pops take what is being run. From the consumers' end, pops would make
    it skip messages.

    Args:
        limit: At most so many, the next to be served; all by default.
    """
    wanted = listing.length if limit is None else min(limit, listing.length)
    if not wanted:
        return
    name, last = raw_name(listing.key), None
    size, most = _window(broker, name, listing.length)
    index = listing.length - wanted
    while True:
        start = index if last is None else index - 1
        window = cast("list[bytes]", broker.reads.lrange(name, start, index + size - 1))
        for raw in _after(last, window):
            wanted -= 1
            last = raw
            yield max(0, wanted), raw
        if start + len(window) < index + size:
            return
        index += size
        size = min(most, _next_window(size, window))


def from_served_end(broker: Broker, listing: Listing) -> Iterator[tuple[int, bytes]]:
    """
    Yield a list's messages with the number of those served before each, the first served first, for whoever wants few.

    What workers take meanwhile makes it pass over as many of the others, so nothing is decided by it.
    """
    start, (size, most) = 0, _window(broker, raw_name(listing.key), listing.length) if listing.length else (0, 0)
    size = min(_PEEK, size)
    while start < listing.length:
        stop = min(listing.length, start + size)
        page = cast("list[bytes]", broker.reads.lrange(raw_name(listing.key), -stop, -start - 1))
        yield from enumerate(reversed(page), start)
        start, size = stop, min(most, 2 * size)


def likely(broker: Broker, key: str) -> Iterator[bytes]:
    """
    Yield a list's messages, those at the end that is served first, and then all.

    What was put back lies there; only what is not found makes anybody read the rest. On a live queue nothing tells
    where the one ends and the other begins, so those at the end come twice.
    """
    name = raw_name(key)
    length = broker.reads.llen(name)
    size, _ = _window(broker, name, length) if length else (0, 0)
    served = cast("list[bytes]", broker.reads.lrange(name, -size, -1)) if size else []
    yield from reversed(served)
    if length > len(served):
        yield from (raw for _, raw in stream(broker, Listing(key=key, length=length)))


def _window(broker: Broker, name: bytes, length: int) -> tuple[int, int]:
    """
    Return how many messages to ask for first, and how many at the most.

    Both from what the key weighs: where a few heavy messages lie among light ones, every window is a smaller one,
    for nothing tells beforehand which of them holds the heavy ones. Where the server will not say, begin with one.
    """
    from redis.exceptions import ResponseError

    try:
        used = broker.reads.memory_usage(name, samples=_SAMPLES)
    except ResponseError:
        return 1, _MOST_PER_WINDOW
    average = max(1, min(_MOST_PER_WINDOW, WINDOW_BYTES * max(1, length) // max(1, used or 1)))
    return average, average


def _next_window(size: int, window: Sequence[bytes]) -> int:
    """Aim at WINDOW_BYTES from what the last window weighed; grow by half at most, for a heavy message may follow."""
    weight = sum(map(len, window)) / len(window)
    return max(1, min(_MOST_PER_WINDOW, int(WINDOW_BYTES / max(weight, 1.0)), size + size // 2 + 1))


def _after(last: bytes | None, window: Sequence[bytes]) -> Sequence[bytes]:
    """Return what follows the last message that was seen; nothing where pushes moved it beyond this window."""
    if last is None:
        return window
    return window[window.index(last) + 1 :] if last in window else ()
