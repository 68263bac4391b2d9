"""A server → real `celery worker` processes on it, what can be done to them, and their end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from celery import Celery
from redis import Redis

from opslib.embedded import processes
from opslib.embedded.processes import Child
from opslib.embedded.server import Server
from tests.support.waiting import until

#: Generous, for a machine that does other things too; nobody waits for it who need not.
DEADLINE_S = 45.0
_NUMBERS = count(1)
#: For a node that may run `tests.slow_lane` once an hour.
RATE_LIMITED = {"task_annotations": {"tests.slow_lane": {"rate_limit": "1/h"}}}
#: Each node by itself: what its neighbours tell it would take a second, and prove nothing here.
_ALONE = "--without-mingle --without-gossip"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """
    A running node.

    Attributes:
        name: As it calls itself on the control plane.
    """

    name: str
    child: Child

    def kill(self) -> None:
        """Kill it with its whole pool, a stopped one too, as the kernel does when memory runs out."""
        self.child.end()

    def freeze(self) -> None:
        """Stop it as a debugger does: its connections stay open, and it answers nobody."""
        os.killpg(self.child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self.child.pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep it stopped for the time of a `with` block."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()


#: Its name, arguments of `celery`, variables and a folder for its log → a node that starts.
Launch = Callable[[str, Sequence[str], Mapping[str, str], Path], Worker]


def here(name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Worker:
    """Start a node as processes of this machine."""
    command = [sys.executable, "-m", "celery", *arguments]
    return Worker(
        name=name, child=processes.spawn(name, command, folder=folder, env=processes.environment(**environment))
    )


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """
    A server with producers and workers; ends every process that it started.

    Attributes:
        app: A producer that emulates no acknowledgements, so that it redelivers nothing.

        launch: How its nodes are started.
    """

    server: Server
    folder: Path
    redis: Redis
    app: Celery
    launch: Launch
    _running: ExitStack = field(repr=False)

    def worker(
        self,
        *,
        queues: str = "celery",
        pool: str = "prefork",
        concurrency: int = 1,
        conf: Mapping[str, object] | None = None,
        name: str = "",
        ready: bool = True,
        heartbeat: bool = False,
        module: str = "tests.support.app",
        environment: Mapping[str, str] | None = None,
    ) -> Worker:
        """Start a node and wait until it answers; without a heartbeat it has nobody who could send its events."""
        name = name or f"w{next(_NUMBERS)}@trial"
        options = f"-n {name} -P {pool} -c {concurrency} -Q {queues} -l WARNING"
        command = f"-A {module} worker {options} {_ALONE}{'' if heartbeat else ' --without-heartbeat'}"
        known = {"TRIAL_URL": self.server.url, "TRIAL_CONF": json.dumps(dict(conf or {})), **(environment or {})}
        started = self.launch(name, command.split(), known, self.folder)
        self._running.callback(started.kill)
        if ready:
            self.wait_for(started)
        return started

    def beat(
        self,
        *,
        scheduler: str = "redbeat.RedBeatScheduler",
        conf: Mapping[str, object] | None = None,
        name: str = "",
        module: str = "tests.support.app",
        environment: Mapping[str, str] | None = None,
    ) -> Worker:
        """Start a beat with a file of its own; it is there once it has sent something, or taken its lock."""
        name = name or f"beat{next(_NUMBERS)}"
        command = f"-A {module} beat -S {scheduler} -s {self.folder / name}.db --pidfile= -l INFO"
        known = {"TRIAL_URL": self.server.url, "TRIAL_CONF": json.dumps(dict(conf or {})), **(environment or {})}
        started = self.launch(name, command.split(), known, self.folder)
        self._running.callback(started.kill)
        return started

    def wait_for(self, worker: Worker) -> None:
        """Wait until a node that was just started answers."""

        def ready() -> bool:
            assert worker.child.process.poll() is None, processes.tail(self.folder / f"{worker.name}.log", 20)
            return self.answers(worker)

        until(ready, DEADLINE_S, f"{worker.name} answers")

    def answers(self, worker: Worker) -> bool:
        """Say whether a node answers a ping."""
        return bool(self.app.control.ping(destination=[worker.name], timeout=0.5))

    def send(self, task: str, *args: object, queue: str = "celery", **options: Any) -> str:
        """Publish a task and return its id."""
        return str(self.app.send_task(f"tests.{task}", args, queue=queue, **options).id)

    def ran(self, task_id: str) -> int:
        """Return how often a task was begun."""
        return int(self.redis.hget("ran", task_id) or 0)

    def state(self, task_id: str) -> str:
        """Return the state of its stored result; empty if there is none."""
        value = self.redis.get(f"celery-task-meta-{task_id}")
        return str(json.loads(value)["status"]) if value else ""

    def unacked(self) -> dict[str, dict[str, Any]]:
        """Return the headers of every unacknowledged message by task id."""
        triples = [json.loads(value) for value in self.redis.hvals("unacked")]
        return {triple[0]["headers"]["id"]: triple[0]["headers"] for triple in triples}

    def until_running(self, *task_ids: str) -> None:
        """Wait until all of these were begun."""
        until(lambda: all(self.ran(each) for each in task_ids), DEADLINE_S, "every task runs")

    def until_done(self, *task_ids: str) -> None:
        """Wait until all of these ended well."""
        until(lambda: all(self.state(each) == "SUCCESS" for each in task_ids), DEADLINE_S, "every task is done")

    def until_unacked(self, *task_ids: str) -> None:
        """Wait until all of these are delivered and not acknowledged."""
        until(lambda: set(task_ids) <= self.unacked().keys(), DEADLINE_S, "every message is delivered")


@contextmanager
def deployment(server: Server, folder: Path, *, launch: Launch = here) -> Iterator[Deployment]:
    """Return a server without workers yet; those that are started on it end with the block."""
    processes.adopt_orphans()  # the pool of a node that is killed: otherwise nobody here could wait for its end
    with ExitStack() as running, server.client() as redis:
        app = Celery("producer", broker=server.url, backend=server.url)
        app.conf.broker_transport_options = {"ack_emulation": False}
        running.callback(app.close)
        yield Deployment(server=server, folder=folder, redis=redis, app=app, launch=launch, _running=running)
