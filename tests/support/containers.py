"""A docker engine → Redis, Celery workers and `ops` in containers on it, with the rights that deploy/ gives them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from redis import RedisError

from opslib.embedded import processes
from opslib.embedded.server import Server, free_port
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker, deployment

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
LOCK = ROOT / "deploy" / "requirements.lock"

_STARTS_WITHIN_S = 30.0
_PULLED_WITHIN_S = 60.0
_BUILT_WITHIN_S = 400.0
_PLUGIN_SINCE = 23
_NEEDED = "apt-get install --no-install-recommends docker.io mmdebstrap"
#: One of docker's services, and one option of `docker run` for each of its settings; what a test chooses has none.
_OPTIONS = {
    "cap_drop": "--cap-drop",
    "init": "--init",
    "mem_limit": "--memory",
    "pids_limit": "--pids-limit",
    "read_only": "--read-only",
    "security_opt": "--security-opt",
    "tmpfs": "--tmpfs",
    "user": "--user",
}
_CHOSEN = {
    *("command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "profiles", "restart"),
    *("stop_grace_period", "volumes"),
}
#: Where no registry can be reached: Debian's Python for the image, and its Redis.
_DEBIAN = "opslib-debian:bookworm"
_INCLUDED = "python3,python3-venv,redis-server,tzdata"
_BUILDER = "ARG BASE\nFROM ${BASE}\nCOPY . /wheels\nENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels\n"
_WORKER = "ARG BASE\nFROM ${BASE}\nCOPY app.py /app/tests/support/\nENV PYTHONPATH=/app\n"
_ABOUT = "import platform as p; print(p.python_version(), p.machine(), p.libc_ver()[1])"


_SHARED = pytest.StashKey["Engine | str"]()


class Unusable(Exception):
    """Raised where containers cannot be run; says why, and what to install."""


def services(**variables: str) -> dict[str, dict[str, Any]]:
    """Return the services of deploy/compose.yaml, with its variables put in."""

    def value(found: re.Match[str]) -> str:
        name, rule, rest = found.groups()
        return "$" if name is None else variables.get(name) or (rest if rule == "-" else "")

    text = re.sub(r"\$\$|\$\{(\w+)(?::([-?])([^}]*))?\}", value, COMPOSE.read_text("utf-8"))
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


@dataclass(frozen=True, kw_only=True)
class Engine:
    """
    A docker engine that answers.

    Attributes:
        host: As DOCKER_HOST has it; empty for the client's own choice.

        mark: In the names of all that is started on it here, and on nothing else.

        images: Those for each service of deploy/compose.yaml.
    """

    host: str
    mark: str = field(default_factory=lambda: f"opslib-{secrets.token_hex(4)}")
    images: Mapping[str, str] = field(default_factory=dict)

    def do(self, *words: str, stdin: str = "", within_s: float = DEADLINE_S, **variables: str) -> str:
        """
        Return what a command of the docker client prints.

        Raises:
            Unusable: If it fails, or takes too long.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        env = self.environment(**variables)
        try:
            command = ["docker", *words]
            done = subprocess.run(command, input=stdin, env=env, text=True, timeout=within_s, check=False, **pipes)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unusable(f"docker {words[0]}: {error}") from None
        if done.returncode:
            raise Unusable(f"docker {words[0]} failed: {done.stdout.strip()[-2000:]}")
        return done.stdout.strip()

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment for the client."""
        return processes.environment(**({"DOCKER_HOST": self.host} if self.host else {}), **more)

    def command(self, service: str, *words: str, name: str, hands: Sequence[str] = ()) -> list[str]:
        """
        Return the command that runs a service on the host's network, with the rights of deploy/compose.yaml.

        Args:
            words: Instead of the service's own command.

            name: Of the container, without `mark`.

            hands: Variables that it gets from the client's environment, where no list of processes shows them.
        """
        described = services()[service]
        entry, *first = described.get("entrypoint", [""])
        options = ["--rm", f"--name={self.name(name)}", "--network=host", *(f"--env={hand}" for hand in hands)]
        options += [f"--volume={self.mark}-{volume}" for volume in described.get("volumes", [])]
        for setting in described.keys() - _CHOSEN:
            wanted = described[setting]
            values = wanted if isinstance(wanted, list) else [wanted]
            options += [f"{_OPTIONS[setting]}={str(each).lower() if each is True else each}" for each in values]
        options += [f"--entrypoint={entry}"] if entry else []
        return ["docker", "run", *options, self.images[service], *first, *words]

    def name(self, name: str) -> str:
        """Return a container's name with the mark."""
        return f"{self.mark}-{name}"

    def kill(self, name: str) -> None:
        """Kill a container as the kernel does when memory runs out; one that has gone is no matter."""
        with suppress(Unusable):
            self.do("kill", "--signal=KILL", self.name(name))

    def ops(self, *words: str, url: str, within_s: float = 90.0) -> subprocess.CompletedProcess[str]:
        """Run `ops` to completion, in a container without a terminal."""
        name = f"ops-{secrets.token_hex(4)}"
        env = self.environment(OPS_BROKER_URL=url, OPS_OPERATOR="ada", COLUMNS="160")
        command = self.command("ops", *words, name=name, hands=["OPS_BROKER_URL", "OPS_OPERATOR", "COLUMNS"])
        try:
            return subprocess.run(command, env=env, check=False, capture_output=True, text=True, timeout=within_s)
        finally:
            self.kill(name)

    def leave(self) -> None:
        """Take away the containers and volumes that were made here; the images stay."""
        for kind, listed, removed in (("container", ["--all"], ["--force"]), ("volume", [], ["--force"])):
            found = self.do(kind, "ls", "--quiet", *listed, f"--filter=name={self.mark}").split()
            if found:
                self.do(kind, "rm", *removed, *found)


@dataclass(frozen=True, kw_only=True)
class Contained(Worker):
    """
    A node in a container; its child is the docker client that waits for it.

    Attributes:
        container: Its name without the engine's mark.
    """

    engine: Engine
    container: str

    def kill(self) -> None:
        """Kill the container with all that is in it."""
        self.engine.kill(self.container)
        self.child.process.wait(DEADLINE_S)

    def freeze(self) -> None:
        """Stop all that is in it; connections stay open."""
        self.engine.do("pause", self.engine.name(self.container))

    def thaw(self) -> None:
        """Let it go on."""
        self.engine.do("unpause", self.engine.name(self.container))


@contextmanager
def stack(engine: Engine, folder: Path) -> Iterator[Deployment]:
    """Start Redis in a container; nodes that are started on it are in containers too, and all end with the block."""
    with ExitStack() as running:
        port = free_port()
        running.callback(engine.kill, redis_name(port))
        server = _redis(engine, folder, port)
        yield running.enter_context(deployment(server, folder, launch=partial(_launch, engine)))


def shared(config: pytest.Config) -> Engine:
    """Return the one engine of these tests, which is opened when it is first asked for; fail where it cannot be."""
    if _SHARED not in config.stash:
        running = ExitStack()
        config.add_cleanup(running.close)
        try:
            config.stash[_SHARED] = open_engine(running, config.cache.mkdir("containers"))
        except Unusable as error:
            config.stash[_SHARED] = str(error)
    if isinstance(engine := config.stash[_SHARED], str):
        pytest.fail(engine, pytrace=False)
    return engine


def redis_name(port: int) -> str:
    """Return the name of the container whose Redis has that port."""
    return f"redis-{port}"


def open_engine(running: ExitStack, cache: Path) -> Engine:
    """
    Return an engine with the images built: the one that is there, or one of our own that ends with `running`.

    Args:
        cache: What is slow to make, and lasts from run to run.

    Raises:
        Unusable: If there is none, or it cannot build them.
    """
    engine = Engine(host="")
    try:
        engine.do("version")
    except Unusable:
        folder = Path(running.enter_context(TemporaryDirectory(prefix="opslib-docker-")))
        engine = running.enter_context(_private(folder))
    running.callback(engine.leave)
    return replace(engine, images=_images(engine, cache))


@contextmanager
def _private(folder: Path) -> Iterator[Engine]:
    """Start an engine that no other one is disturbed by: nothing of the machine's network is touched."""
    for program in ("dockerd", "docker"):
        if not shutil.which(program):
            raise Unusable(f"No docker engine answers, and there is no {program} to start one: {_NEEDED}")
    engine = Engine(host=f"unix://{folder}/docker.sock")
    places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    network = ["--iptables=false", "--ip6tables=false", "--bridge=none"]
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            # In a mount namespace of its own: what it mounts goes when it goes, even if it is killed.
            ["unshare", "--mount", "dockerd", f"--host={engine.host}", "--storage-driver=overlay2", *places, *network],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for the tests, which end it in their own time
            # Were it killed with us, its containers would go on without it.
            preexec_fn=partial(processes.bind_to_parent, os.getpid()),  # noqa: PLW1509
        )

    def answers() -> bool:
        if daemon.poll() is not None:
            raise Unusable(f"dockerd has ended: {processes.tail(folder / 'dockerd.log', 20)}")
        with suppress(Unusable):
            return bool(engine.do("version"))
        return False

    try:
        until(answers, _STARTS_WITHIN_S, "dockerd answers")
        yield engine
    finally:
        daemon.terminate()
        try:
            daemon.wait(_STARTS_WITHIN_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _images(engine: Engine, cache: Path) -> dict[str, str]:
    """Build the project's image as deploy/ has it, and one with the tests' tasks from it."""
    base, redis = _bases(engine, cache)
    # The quicker builder is part of old clients, and a plugin that a new one finds by itself.
    client, _, _ = engine.do("version", "--format={{.Client.Version}}").partition(".")
    quicker = {"DOCKER_BUILDKIT": "1"} if int(client) < _PLUGIN_SINCE else {}
    build = partial(engine.do, "build", "--quiet", "--network=none", within_s=_BUILT_WITHIN_S, **quicker)
    names = {"builder": "opslib-test-builder", "ops": "opslib-test", "worker": "opslib-test-worker"}
    wheels = str(_wheels(engine, base, cache))
    build("--tag", names["builder"], f"--build-arg=BASE={base}", "--file=-", wheels, stdin=_BUILDER)
    bases = [f"--build-arg=BASE={base}", f"--build-arg=BUILDER={names['builder']}"]
    build("--tag", names["ops"], *bases, f"--file={DOCKERFILE}", str(ROOT))
    tasks = str(Path(__file__).parent)
    build("--tag", names["worker"], f"--build-arg=BASE={names['ops']}", "--file=-", tasks, stdin=_WORKER)
    return {"redis": redis, "ops": names["ops"], "worker": names["worker"]}


def _bases(engine: Engine, cache: Path) -> tuple[str, str]:
    """Return the images of Python and Redis that deploy/ names, or Debian's for both where they cannot be had."""
    named = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert named
    wanted = (named[1], services()["redis"]["image"])
    try:
        for image in wanted:
            if not _has(engine, image):
                engine.do("pull", "--quiet", image, within_s=_PULLED_WITHIN_S)
    except Unusable:
        return _debian(engine, cache), _DEBIAN
    return wanted


def _has(engine: Engine, image: str) -> bool:
    with suppress(Unusable):
        return bool(engine.do("image", "inspect", image))
    return False


def _debian(engine: Engine, cache: Path) -> str:
    if _has(engine, _DEBIAN):
        return _DEBIAN
    tree = cache / "bookworm.tar"
    if not tree.exists():
        made = tree.with_suffix(".new.tar")
        options = ["--variant=apt", f"--include={_INCLUDED}", "--dpkgopt=force-unsafe-io"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "locale", "man")]
        _make("mmdebstrap", "--quiet", *options, "bookworm", str(made))
        made.rename(tree)
    engine.do("import", str(tree), _DEBIAN, within_s=_BUILT_WITHIN_S)
    return _DEBIAN


def _wheels(engine: Engine, base: str, cache: Path) -> Path:
    """Download what the lock file names for the Python of an image, with whatever index this machine's pip has."""
    python, machine, libc = engine.do("run", "--rm", "--network=none", base, "python3", "-c", _ABOUT).split()
    pins = "".join(_pins(python))
    folder = cache / f"wheels-{hashlib.sha256(f'{pins}{machine}{libc}'.encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    for old in cache.glob("wheels-*"):
        shutil.rmtree(old)
    with TemporaryDirectory(dir=cache) as new:
        listed, found = Path(new, "requirements.lock"), Path(new, "wheels")
        listed.write_text(pins)
        platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(5, int(libc.split(".")[1]) + 1)]
        platforms += [f"--platform=manylinux{name}_{machine}" for name in ("1", "2010", "2014")]
        # The interpreter that runs pip decides by its own version what markers mean: they were decided by `_pins`.
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", f"--python-version={python}"]
        pip = [sys.executable, "-m", "pip", "download"]
        _make(*pip, *options, *platforms, f"--dest={found}", f"--requirement={listed}")
        found.rename(folder)
    return folder


def _pins(python: str) -> Iterator[str]:
    """Yield what the lock file has for that Python on Linux, without markers."""
    image = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2]), "sys_platform": "linux"}
    for pin, marker, hashes in re.findall(
        r"^(\S+==\S+)(?: ; (.*))? \\\n((?: {4}--hash=.*\n)+)", LOCK.read_text("utf-8"), re.MULTILINE
    ):
        if not marker or Marker(marker).evaluate(image):
            yield f"{pin} \\\n{hashes}"


def _make(*command: str) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, text=True, timeout=_BUILT_WITHIN_S, check=False, **pipes)
    except FileNotFoundError:
        raise Unusable(f"There is no {command[0]} to make a base image with: {_NEEDED}") from None
    if done.returncode:
        raise Unusable(f"{command[0]} failed: {done.stdout.strip()[-2000:]}")


def _redis(engine: Engine, folder: Path, port: int) -> Server:
    """Start the service as it is described, on a port of this machine's own, and keep nothing on disk."""
    password = secrets.token_urlsafe(24)
    local = ["--bind", "127.0.0.1", "--port", str(port), "--appendonly", "no"]
    command = engine.command("redis", *local, name=redis_name(port), hands=["REDISCLI_AUTH"])
    child = processes.spawn("redis", command, folder=folder, env=engine.environment(REDISCLI_AUTH=password))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    server = Server(child=child, port=port, password=password, url=url, folder=folder)

    def answers() -> bool:
        assert child.process.poll() is None, processes.tail(folder / "redis.log", 20)
        with suppress(RedisError), server.client() as client:
            return bool(client.ping())
        return False

    until(answers, DEADLINE_S, "Redis answers")
    return server


def _launch(
    engine: Engine, name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Contained:
    container = f"{name.replace('@', '-')}-{secrets.token_hex(4)}"
    command = engine.command("worker", *arguments, name=container, hands=list(environment))
    child = processes.spawn(name, command, folder=folder, env=engine.environment(**environment))
    return Contained(name=name, child=child, engine=engine, container=container)
