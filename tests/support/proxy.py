"""A server → a way to it on which answers get lost: the request is carried out, and nobody is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import hiredis

from opslib.embedded.server import Server

_CHUNK = 1 << 16


@dataclass(kw_only=True)
class Proxy:
    """
    A TCP proxy before a server.

    Attributes:
        url: The server's URL by this way.

        cuts: How many more answers to requests that hold `marker` get lost, with their connection.

        lost: How many did.
    """

    url: str
    marker: bytes = b""
    cuts: int = 0
    lost: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def lose(self, marker: bytes, *, times: int = 1) -> None:
        """Lose the next answers to requests that hold these bytes."""
        self.marker, self.cuts = marker, times

    def doomed(self, request: bytes) -> bool:
        """Say whether the answer to this request gets lost, and count it."""
        with self._guard:
            if not self.cuts or self.marker not in request:
                return False
            self.cuts -= 1
            self.lost += 1
            return True


@contextmanager
def before(server: Server) -> Iterator[Proxy]:
    """Open a proxy for the time of a `with` block."""
    with closing(socket.create_server(("127.0.0.1", 0))) as door:
        port = door.getsockname()[1]
        proxy = Proxy(url=server.url.replace(f":{server.port}/", f":{port}/"))
        threading.Thread(target=_accept, args=(door, server.port, proxy), daemon=True).start()
        yield proxy


def _accept(door: socket.socket, port: int, proxy: Proxy) -> None:
    with suppress(OSError):
        while True:
            client = door.accept()[0]
            threading.Thread(target=_serve, args=(client, port, proxy), daemon=True).start()


def _serve(client: socket.socket, port: int, proxy: Proxy) -> None:
    """Carry one connection: what is asked together, then its answers, as redis-py speaks."""
    with suppress(OSError, hiredis.ProtocolError), client, socket.create_connection(("127.0.0.1", port)) as server:
        while request := _whole(client, 1):
            server.sendall(request[0])
            answer = _whole(server, request[1])
            if not answer or proxy.doomed(request[0]):
                return
            client.sendall(answer[0])


def _whole(sender: socket.socket, least: int) -> tuple[bytes, int] | None:
    """Return what is sent next, with how many requests or answers that are: whole ones, at least so many."""
    reader, content, count = hiredis.Reader(), b"", 0
    while count < least or reader.has_data():
        more = sender.recv(_CHUNK)
        if not more:
            return None
        content += more
        reader.feed(more)
        while reader.gets() is not False:
            count += 1
    return content, count
