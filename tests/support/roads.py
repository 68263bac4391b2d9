"""A port that listens → what a client may meet there that is no healthy server: silence, rubbish, slowness."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

_CHUNK = 1 << 16


@contextmanager
def black_hole() -> Iterator[int]:
    """Accept every connection and never answer; return the port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as door:
        yield door.getsockname()[1]


@contextmanager
def saying(reply: bytes, *, hang_up: bool = False) -> Iterator[int]:
    """Answer everything with these bytes, and then close the connection or wait for more; return the port."""

    def serve(client: socket.socket) -> None:
        while client.recv(_CHUNK):
            client.sendall(reply)
            if hang_up:
                return

    with _listening(serve) as port:
        yield port


@contextmanager
def slow(port: int, delay_s: float) -> Iterator[int]:
    """Lead to a server that is far away: what either side says arrives `delay_s` / 2 later; return the port."""

    def serve(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=_carry, args=(server, client, delay_s / 2), daemon=True)
            back.start()
            _carry(client, server, delay_s / 2)
            back.join()

    with _listening(serve) as door:
        yield door


#: What a road can be made to lead to.
ENDS = {"black hole": b"", "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n", "half a reply": b"$100\r\nabc"}


@contextmanager
def switched(port: int) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Lead to a server until told where to: one of ENDS, "closed port", or "" for back; return port and switch."""
    leads, carried = [""], list[socket.socket]()

    def serve(client: socket.socket) -> None:
        if leads[0] in ENDS:
            while client.recv(_CHUNK):
                client.sendall(ENDS.get(leads[0], b""))
        elif not leads[0]:
            with socket.create_connection(("127.0.0.1", port)) as server:
                carried.extend([client, server])
                back = threading.Thread(target=_carry, args=(server, client, 0), daemon=True)
                back.start()
                _carry(client, server, 0)
                back.join()

    def switch(end: str) -> None:
        leads[0] = end
        while end and carried:
            with suppress(OSError):
                carried.pop().shutdown(socket.SHUT_RDWR)

    with _listening(serve) as door:
        yield door, switch


@contextmanager
def _listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    def guarded(client: socket.socket) -> None:
        with suppress(OSError), client:
            serve(client)

    def accept(door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=guarded, args=(door.accept()[0],), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as door:
        threading.Thread(target=accept, args=(door,), daemon=True).start()
        yield door.getsockname()[1]


def _carry(one: socket.socket, other: socket.socket, delay_s: float) -> None:
    with suppress(OSError):
        while said := one.recv(_CHUNK):
            time.sleep(delay_s)
            other.sendall(said)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)
