"""Keys that begin alike → what each value says of itself and how long it lives, page by page over one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import aging
from opslib.aging import Brief, Told

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
#: Instead of a reply of which some is still on its way.
_NOT_YET = object()

#: What a step asked for: names, the head of each value, what is left of each life; an error in place of any.
Step = tuple[list[bytes], list[Any], list[Any]]
#: The same as a Value, without the objects: name, what the value tells, its bytes, seconds that it still has to live.
Seen = tuple[bytes, Told, int, float | None]


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


def walk(client: Redis, root: bytes, now: float) -> Iterator[list[Value]]:
    """
    Visit every key of a database once and yield what those hold that begin with `root`, in constant memory.

    What `steps` says of a pass holds for this one, and what it raises is raised.

    Args:
        now: The server's clock, in epoch seconds.
    """
    for step in steps(client, root):
        seen = understood(client, step, len(root), now)
        yield [Value(name, Brief(*told), size, life_s) for name, told, size, life_s in seen]


def steps(
    client: Redis, root: bytes, *, other: Callable[[list[bytes]], None] | None = None, max_keys: int = 0
) -> Iterator[Step]:
    """
    Visit every key of a database once; yield the names that begin with `root`, their values' heads, and their lives.

    A pass over all names is what it costs: the next names are asked for before the values of these, and while the
    server looks for both, whoever takes a step understands the one before. A key that vanishes meanwhile is left out;
    one that the server moves while its table of keys grows or shrinks may come twice.

    Args:
        other: Told the names of all other keys, step by step.

        max_keys: Keys to visit at most; 0 for all.

    Raises:
        redis.exceptions.RedisError: If the server does not answer, or refuses.
    """
    line = _Line(client)
    try:
        line.send(_scan(b"0"))
        before: list[bytes] = []
        visited, goes_on = 0, True
        while goes_on:
            cursor, names = _scanned(line.receive(1)[0])
            visited += len(names)
            goes_on = cursor != b"0" and not (max_keys and visited >= max_keys)
            if goes_on:
                line.send(_scan(cursor))
            ours = [name for name in names if name.startswith(root)]
            if ours:
                line.send(_looks(ours))
            if other and len(ours) < len(names):
                other([name for name in names if not name.startswith(root)])
            if before:
                yield _looked(line, before)
            before = ours
        if before:
            yield _looked(line, before)
        line.done()
    finally:
        line.close()


def _looked(line: _Line, names: list[bytes]) -> Step:
    replies = line.receive(2 * len(names))
    return names, replies[::2], replies[1::2]


def _looks(names: Sequence[bytes]) -> bytes:
    """Return the questions for the head of each value and for its life; most names are of one length."""
    size = len(names[0])
    if any(len(name) != size for name in names):
        return b"".join([_looks([name]) for name in names])
    before, between = _HEAD % size, _LIFE % size
    asked = (b"\r\n" + before).join([name + between + name for name in names])
    return b"%b%b\r\n" % (before, asked)


def _scan(cursor: bytes) -> bytes:
    return _SCAN % (len(cursor), cursor, len(str(STEP)), STEP)


_SCAN = b"*4\r\n$4\r\nSCAN\r\n$%d\r\n%b\r\n$5\r\nCOUNT\r\n$%d\r\n%d\r\n"
_HEAD = b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n"
_LIFE = b"\r\n$1\r\n0\r\n$4\r\n" + str(HEAD_BYTES - 1).encode() + b"\r\n*2\r\n$4\r\nPTTL\r\n$%d\r\n"


def _scanned(reply: Any) -> tuple[bytes, list[bytes]]:  # noqa: ANN401 - whatever a server answers
    if isinstance(reply, Exception):
        from redis.exceptions import ResponseError

        raise ResponseError(str(reply))
    return cast("tuple[bytes, list[bytes]]", (reply[0], reply[1]))


def understood(client: Redis, step: Step, start: int, now: float) -> list[Seen]:
    """Return what the heads and the lives of a step say; more of a long value is asked for."""
    found: list[Seen] = []
    long: list[tuple[bytes, bytes, float | None]] = []
    add, told = found.append, aging.told
    for name, raw, life in zip(*step, strict=True):
        life_s = life / 1000 if isinstance(life, int) and life >= 0 else None
        if not isinstance(raw, bytes):
            _refuse_unless_wrong_type(raw)
            add((name, aging.UNTOLD, 0, life_s))
        elif (size := len(raw)) == HEAD_BYTES:
            long.append((name, raw, life_s))
        elif size:
            add((name, told(raw, name[start:], now), size, life_s))
    if long:
        found += _long(client, long, start, now)
    return found


def _refuse_unless_wrong_type(said: object) -> None:
    """Pass over a key that is no string; whatever else a server refuses would make its results look like none."""
    if not str(said).startswith("WRONGTYPE"):
        from redis.exceptions import ResponseError

        raise ResponseError(str(said))


def _long(client: Redis, rows: Sequence[tuple[bytes, bytes, float | None]], start: int, now: float) -> Iterator[Seen]:
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
            yield name, aging.told(raw, name[start:], now), size, life_s
        else:
            tail = cast("bytes", client.getrange(name, -_TAIL_BYTES, -1))
            yield name, msgspec.structs.astuple(aging.of_ends(head, tail, now)), size, life_s


class _Line:
    """One connection of a client's pool, read by hiredis itself: the client's own pipeline costs more than all else."""

    def __init__(self, client: Redis) -> None:
        import hiredis

        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        self._socket: Any = self._connection._sock  # noqa: SLF001 - nothing else reads replies without a call for each
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._ready: list[Any] = []
        self._clean = False

    def send(self, commands: bytes) -> None:
        self._connection.send_packed_command([commands], check_health=False)

    def receive(self, count: int) -> list[Any]:
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import TimeoutError as Late

        gets, ready = self._reader.gets, self._ready
        while len(ready) < count:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError as error:
                raise Late("Timeout reading from socket") from error
            except OSError as error:
                raise Lost(f"Error while reading from socket: {error}") from error
            if not data:
                raise Lost("Connection closed by server.")
            self._reader.feed(data)
            ready += iter(gets, _NOT_YET)
        self._ready = ready[count:]
        return ready[:count]

    def done(self) -> None:
        """Say that every reply was read, so that the connection can be used again."""
        self._clean = True

    def close(self) -> None:
        if not self._clean:
            self._connection.disconnect()  # replies that nobody has read would be taken for others
        self._pool.release(self._connection)
