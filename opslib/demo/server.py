"""A folder → the demo's server in it: small, with a random password, and there once it answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from opslib.embedded import processes, server
from opslib.embedded.server import Server
from opslib.errors import OpsError

_ATTEMPTS = 3
_NAME = "server"
#: Told to save, it does under a name of its own, for whoever starts after it would load any `dump.rdb`.
_SMALL = (f"dbfilename {_NAME}.rdb", "maxmemory 256mb", "maxmemory-policy noeviction")


class ServerFailed(OpsError):
    """Raised when the demo's server does not start."""


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
    program, password, lines = server.program(), password or secrets.token_urlsafe(24), (*_SMALL, *extra)
    for _ in range(_ATTEMPTS):  # another process may have been faster at the port
        started = server.launch(program, folder, name=_NAME, password=password, lines=lines)
        if _answers(started, within_s):
            return started
        started.stop()
    raise ServerFailed(
        f"The embedded server did not start, {_ATTEMPTS} times.",
        hint=f"Its log ends with: {processes.tail(folder / f'{_NAME}.log')}",
    )


def _answers(started: Server, within_s: float) -> bool:
    from redis import RedisError

    deadline = time.monotonic() + within_s
    with started.client() as client:
        while not started.has_ended() and time.monotonic() < deadline:
            try:
                # The pid proves that it is ours and not one that was faster at the port; loading answers with an error.
                return cast("dict[str, int]", client.info("server"))["process_id"] == started.child.pid
            except RedisError:
                time.sleep(0.01)
    return False
