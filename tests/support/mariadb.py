"""Debian's MariaDB → a real server for the time of a block, and databases on it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pymysql
import pytest

from opslib.embedded import processes
from tests.support import engines, postgres
from tests.support.waiting import until

#: Whom the application logs in as; every database is its own.
OWNER = "shop"
DEADLINE_S = 30.0
#: As whom it runs where this is root, for it refuses to run as root.
_USER = "mysql"
#: Nobody needs what it holds after a crash of the machine; and no more memory than the tests fill.
_SETTINGS = {
    "bind-address": "127.0.0.1",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-buffer-pool-size": "64M",
    "innodb-log-file-size": "32M",
    "innodb-lock-wait-timeout": "50",
    "performance-schema": "OFF",
    "skip-log-bin": "",
    "character-set-server": "utf8mb4",
    "default-time-zone": "+00:00",
}
_ATTEMPTS = 5
_NUMBERS = count(1)


@dataclass(kw_only=True)
class MariaDB:
    """
    A running server.

    Attributes:
        folder: Where its data and its log are; its own user's, where this is root.

        password: OWNER's; whoever made the folder needs none on its socket.
    """

    folder: Path
    port: int = 0
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make a database of OWNER's for the time of a `with` block; returns its URL, as SQLAlchemy writes it."""
        name = f"trial_{next(_NUMBERS)}"
        self._run(
            f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4", f"GRANT ALL ON `{name}`.* TO '{OWNER}'@'127.0.0.1'"
        )
        try:
            yield f"mysql+pymysql://{OWNER}:{self.password}@127.0.0.1:{self.port}/{name}"
        finally:
            self._run(f"DROP DATABASE `{name}`")

    def _run(self, *statements: str) -> None:
        with pymysql.connect(unix_socket=str(self.folder / "socket"), user="root", connect_timeout=5) as connection:
            for each in statements:
                connection.cursor().execute(each)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and end it with the block."""
        options = [f"--{name}={value}" if value else f"--{name}" for name, value in _SETTINGS.items()]
        own = [f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 'socket'}", f"--port={self.port}"]
        child = processes.spawn(
            "mariadb",
            [*postgres.as_user(_USER), "mariadbd", "--no-defaults", *own, *options],
            folder=self.folder,
            env=processes.environment(LC_ALL="C"),
        )

        def answers() -> bool:
            assert child.process.poll() is None, f"MariaDB has ended: {processes.tail(self.folder / 'mariadb.log', 10)}"
            with suppress(pymysql.OperationalError):
                self._run(f"CREATE USER '{OWNER}'@'127.0.0.1' IDENTIFIED BY '{self.password}'")
                return True
            return False

        try:
            until(answers, DEADLINE_S, "MariaDB answers")
            yield
        finally:
            child.end()


@contextmanager
def start() -> Iterator[MariaDB]:
    """Start a server for the time of a `with` block: loopback, a port of its own, a password, and no database."""
    if not all(map(shutil.which, ("mariadbd", "mariadb-install-db"))):
        missing = "No MariaDB was found: `apt-get install mariadb-server`."
        if engines.ARE_REQUIRED:
            pytest.fail(f"{missing} ({engines.REQUIRED} is set)", pytrace=False)
        pytest.skip(missing)
    # Not below the tests' own folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="opslib-mariadb-"))
    try:
        _prepare(folder)
        server = MariaDB(folder=folder, port=postgres.free_port())
        with server.running():
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path) -> None:
    """Make its data folder."""
    if os.geteuid() == 0:
        found = pwd.getpwnam(_USER)
        os.chown(folder, found.pw_uid, found.pw_gid)
    made = subprocess.run(
        [
            *postgres.as_user(_USER),
            *("mariadb-install-db", "--no-defaults", f"--datadir={folder / 'data'}", "--skip-test-db"),
            "--auth-root-authentication-method=normal",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not made.returncode, made.stderr + made.stdout
