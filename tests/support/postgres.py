"""Debian's PostgreSQL → a real server for the time of a block, which can be killed and frozen, and databases on it."""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

from opslib.embedded import processes
from opslib.embedded.processes import Child
from tests.support import engines
from tests.support.waiting import until

#: Who may read every table, and write none.
READER = "reader"
#: Whom the application logs in as; every database is its own.
OWNER = "shop"
DEADLINE_S = 30.0
_DEBIAN = Path("/usr/lib/postgresql")
#: As whom it runs where this is root, for it refuses to run as root.
_USER = "postgres"
#: Nobody needs what it holds after a crash of the machine; and no more memory than the tests fill.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "2GB",
    "max_connections": "60",
    "timezone": "UTC",
}
_ATTEMPTS = 5
_PORTS = range(20_000, 32_000)
_NUMBERS = count(1)


@dataclass(kw_only=True)
class Postgres:
    """
    A running server.

    Attributes:
        folder: Where its data and its log are; its own user's, where this is root.

        password: Everybody's.

        child: The process, or the last one.
    """

    folder: Path
    programs: Path
    password: str = field(repr=False)
    port: int = 0
    child: Child = field(init=False, repr=False)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.child.pid

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return where a database is, as SQLAlchemy writes it, with the password."""
        return f"postgresql+psycopg://{user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def as_reader(self, url: str) -> str:
        """Return the URL of the same database for READER."""
        return self.url(url.rpartition("/")[2], READER)

    def as_superuser(self, url: str) -> str:
        """Return the URL of the same database for one who may do everything."""
        return self.url(url.rpartition("/")[2])

    def connect(self, database: str = "postgres", user: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Return a connection that commits each statement."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database,
            user=user,
            password=self.password,
            autocommit=True,
            connect_timeout=5,
        )

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make a database of OWNER's for the time of a `with` block; returns its URL."""
        name = f"trial_{next(_NUMBERS)}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" OWNER "{OWNER}"')
        try:
            yield self.url(name, OWNER)
        finally:
            with self.connect() as connection:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def start(self) -> None:
        """Start it, or start it again after `stop`, on the same port and the same data."""
        options = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": self.port}.items()]
        self.child = processes.spawn(
            "postgres",
            [*as_user(_USER), str(self.programs / "postgres"), "-D", str(self.folder / "data"), *options],
            folder=self.folder,
            env=processes.environment(LC_ALL="C"),
        )
        until(self._answers, DEADLINE_S, "PostgreSQL answers")

    def stop(self) -> None:
        """End it as a crash does, its connections too, but for the shared memory that it would leave behind."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            self.child.process.wait(DEADLINE_S)
        self.child.end()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Have it not there for the time of a `with` block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def log(self, lines: int = 10) -> str:
        """Return the last lines of its log."""
        return processes.tail(self.folder / "postgres.log", lines)

    def _answers(self) -> bool:
        assert self.child.process.poll() is None, f"PostgreSQL has ended: {self.log()}"
        with suppress(psycopg.OperationalError), self.connect() as connection:
            # Its own folder proves that it is ours and not one that was faster at the port.
            row = connection.execute("SHOW data_directory").fetchone()
            return row == (str(self.folder / "data"),)
        return False


def available() -> Path:
    """Return where the programs are; skip the test if there are none, or fail it if there have to be some."""
    try:
        return _programs()
    except LookupError as missing:
        if engines.ARE_REQUIRED:
            pytest.fail(f"{missing} ({engines.REQUIRED} is set)", pytrace=False)
        pytest.skip(str(missing))


@contextmanager
def start() -> Iterator[Postgres]:
    """Start a server for the time of a `with` block: loopback, a port of its own, passwords, an empty cluster."""
    programs = available()
    # Not below the tests' own folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="opslib-postgres-"))
    server = Postgres(folder=folder, programs=programs, password=secrets.token_urlsafe(18))
    try:
        _prepare(server)
        _begin(server)
        try:
            with server.connect() as connection:
                for role in (OWNER, READER):
                    connection.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{server.password}'")
                connection.execute(f'GRANT pg_read_all_data TO "{READER}"')
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(server: Postgres) -> None:
    """Make its cluster."""
    secret = server.folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(server.password)
    if os.geteuid() == 0:
        found = pwd.getpwnam(_USER)
        for path in (server.folder, secret):
            os.chown(path, found.pw_uid, found.pw_gid)
    made = subprocess.run(
        [
            *as_user(_USER),
            str(server.programs / "initdb"),
            *("-D", str(server.folder / "data"), "-U", "postgres", f"--pwfile={secret}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        ],
        cwd=server.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not made.returncode, made.stderr
    secret.unlink()


def _begin(server: Postgres) -> None:
    """Start it on a free port; another process may be faster at it, then on another one."""
    for attempt in range(1, _ATTEMPTS + 1):
        server.port = free_port()
        try:
            server.start()
        except AssertionError:
            server.stop()
            if attempt == _ATTEMPTS:
                raise
        else:
            return


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    while True:
        port = random.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def as_user(name: str) -> list[str]:
    """Return what runs a command as one who is not root, and ends it when this process ends."""
    if os.geteuid() != 0:
        return []
    # The kernel forgets on a change of user what `spawn` has told it about the end of this process.
    return ["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups", "--pdeathsig=QUIT"]


def _programs() -> Path:
    """
    Return the folder of the newest server's programs.

    Raises:
        LookupError: If there is none, or nobody as whom root could run it; says where it could come from.
    """
    folders = sorted(_DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    if initdb := shutil.which("initdb"):
        folders.append(Path(initdb).resolve().parent)
    found = next((each for each in folders if (each / "initdb").exists() and (each / "postgres").exists()), None)
    if found is None:
        raise LookupError("PostgreSQL is not installed (Debian: apt-get install postgresql).")
    if os.geteuid() == 0:
        with suppress(KeyError):
            pwd.getpwnam(_USER)
            if shutil.which("setpriv"):
                return found
        raise LookupError(f"PostgreSQL refuses to run as root, and there is no user {_USER} or no setpriv.")
    return found
