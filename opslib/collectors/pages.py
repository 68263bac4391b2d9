"""Keys that begin alike → what each value says of itself and how long it lives, page by page over one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import aging
from opslib.aging import Brief
from opslib.keys import key_name

if TYPE_CHECKING:
    from redis import Redis

#: Keys that a step of SCAN visits: at 100 other clients notice nothing, and more of them are no quicker.
STEP = 100
#: A value of fewer bytes comes whole; of a longer one its length is asked for as well.
HEAD_BYTES = 4096
#: A value of so many bytes is fetched whole to be understood; of a longer one both ends are.
WHOLE_BYTES = 64 * 1024
_TAIL_BYTES = 4096
_RECEIVE_BYTES = 256 * 1024


class Value(msgspec.Struct, frozen=True, gc=False):
    """
    What was seen of one key.

    Attributes:
        size_bytes: Of the value, as it is stored.

        life_s: Seconds that it still has to live; None for ever.
    """

    key: bytes
    brief: Brief
    size_bytes: int
    life_s: float | None


def walk(
    client: Redis, root: bytes, now: float, *, other: Callable[[list[bytes]], None] | None = None, max_keys: int = 0
) -> Iterator[list[Value]]:
    """
    Visit every key of a database once and yield what those hold that begin with `root`, in constant memory.

    A pass over all names is what it costs: the values of one step come back with the names of the next, and are
    understood while the server works. A key that vanishes meanwhile is left out; one that the server moves while its
    table of keys grows or shrinks may come twice.

    Args:
        now: The server's clock, in epoch seconds.

        other: Told the names of all other keys, step by step.

        max_keys: Keys to visit at most; 0 for all.

    Raises:
        redis.exceptions.RedisError: If the server does not answer, or refuses.
    """
    line = _Line(client)
    try:
        line.send(_scan(b"0"))
        cursor, names = _scanned(line.receive(1)[0])
        visited, before = len(names), None
        while True:
            if max_keys and visited >= max_keys:
                cursor = b"0"
            ours = [name for name in names if name.startswith(root)]
            if other and len(ours) < len(names):
                other([name for name in names if not name.startswith(root)])
            asked = b"".join([_LOOK % (len(name), name, len(name), name) for name in ours])
            goes_on = cursor != b"0"
            line.send((_scan(cursor) if goes_on else b"") + asked)
            if before:  # understood while the server works on what was just sent
                yield _values(client, *before, root, now)
            replies = line.receive(goes_on + 2 * len(ours))
            if goes_on:
                cursor, names = _scanned(replies[0])
                visited += len(names)
            before = (ours, replies[goes_on:]) if ours else None
            if not goes_on:
                break
        line.done()
        if before:
            yield _values(client, *before, root, now)
    finally:
        line.close()


_LOOK = (
    b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b\r\n$1\r\n0\r\n$4\r\n"
    + str(HEAD_BYTES - 1).encode()
    + b"\r\n*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n"
)


def _scan(cursor: bytes) -> bytes:
    return b"*4\r\n$4\r\nSCAN\r\n$%d\r\n%b\r\n$5\r\nCOUNT\r\n$3\r\n%d\r\n" % (len(cursor), cursor, STEP)


def _scanned(reply: Any) -> tuple[bytes, list[bytes]]:  # noqa: ANN401 - whatever a server answers
    if isinstance(reply, Exception):
        from redis.exceptions import ResponseError

        raise ResponseError(str(reply))
    return cast("tuple[bytes, list[bytes]]", (reply[0], reply[1]))


def _values(client: Redis, names: Sequence[bytes], replies: Sequence[Any], root: bytes, now: float) -> list[Value]:
    found: list[Value] = []
    add, brief = found.append, aging.brief
    long: list[tuple[bytes, bytes, float | None]] = []
    start = len(root)
    for name, raw, life in zip(names, replies[::2], replies[1::2], strict=True):
        life_s = life / 1000 if isinstance(life, int) and life >= 0 else None
        if not isinstance(raw, bytes):
            _refuse_unless_wrong_type(raw)
            found.append(Value(name, aging.OPAQUE, 0, life_s))
        elif len(raw) == HEAD_BYTES:
            long.append((name, raw, life_s))
        elif raw:
            add(Value(name, brief(raw, name[start:].decode("utf-8", "surrogateescape"), now), len(raw), life_s))
    if long:
        found += _long(client, long, start, now)
    return found


def _refuse_unless_wrong_type(said: object) -> None:
    """Pass over a key that is no string; whatever else a server refuses would make its results look like none."""
    if not str(said).startswith("WRONGTYPE"):
        from redis.exceptions import ResponseError

        raise ResponseError(str(said))


def _long(client: Redis, rows: Sequence[tuple[bytes, bytes, float | None]], start: int, now: float) -> Iterator[Value]:
    """Yield what long values say: whole ones where that is no burden, both ends of the others."""
    with client.pipeline(transaction=False) as pipe:
        for name, _, _ in rows:
            pipe.strlen(name)
        sizes = pipe.execute(raise_on_error=False)
    for (name, head, life_s), size in zip(rows, sizes, strict=True):
        if not isinstance(size, int) or size < HEAD_BYTES:
            continue  # written anew, or gone, since its head was read
        if size <= WHOLE_BYTES:
            raw = cast("bytes", client.getrange(name, 0, size - 1))
            yield Value(name, aging.brief(raw, key_name(name[start:]), now), size, life_s)
        else:
            tail = cast("bytes", client.getrange(name, -_TAIL_BYTES, -1))
            yield Value(name, aging.of_ends(head, tail, now), size, life_s)


class _Line:
    """One connection of a client's pool, read by hiredis itself: the client's own pipeline costs more than all else."""

    def __init__(self, client: Redis) -> None:
        import hiredis

        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        self._socket: Any = self._connection._sock  # noqa: SLF001 - nothing else reads replies without a call for each
        self._reader = hiredis.Reader()
        self._clean = False

    def send(self, commands: bytes) -> None:
        self._connection.send_packed_command([commands], check_health=False)

    def receive(self, count: int) -> list[Any]:
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import TimeoutError as Late

        replies: list[Any] = []
        gets, add = self._reader.gets, replies.append
        while len(replies) < count:
            reply = gets()
            if reply is not False:
                add(reply)
                continue
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError as error:
                raise Late("Timeout reading from socket") from error
            except OSError as error:
                raise Lost(f"Error while reading from socket: {error}") from error
            if not data:
                raise Lost("Connection closed by server.")
            self._reader.feed(data)
        return replies

    def done(self) -> None:
        """Say that every reply was read, so that the connection can be used again."""
        self._clean = True

    def close(self) -> None:
        if not self._clean:
            self._connection.disconnect()  # replies that nobody has read would be taken for others
        self._pool.release(self._connection)
