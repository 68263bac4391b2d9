"""A folder → a small real system for tests: an embedded server, one prefork worker, tasks done and tasks orphaned."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from celery import Celery
from redis import Redis

from opslib.demo import faults, processes, server
from opslib.demo.processes import Child
from opslib.demo.server import Server
from opslib.keys import OWN, Keyspace

NODE = "steady@shop"
KEYS = Keyspace()
#: What live clients of kombu write by themselves: whose turn it is to sweep, and how long their routes count.
_RESTLESS = (b"unacked_mutex", b"_kombu.binding_deadlines")
#: Generous, for a machine that does other things too; nobody waits for it who need not.
DEADLINE_S = 60.0

#: Takes one message as any consumer of kombu's does, and dies with it.
_DOOMED = """
import os, signal, sys
from kombu import Connection

Connection(sys.argv[1]).SimpleQueue(sys.argv[2]).get(timeout=30)
os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True, kw_only=True)
class Shop:
    """
    A running small system; its worker consumes `celery`, and the queue of every orphan.

    Attributes:
        app: A producer.
    """

    server: Server
    worker: Child
    app: Celery
    redis: Redis
    _queues: Iterator[str] = field(default_factory=lambda: (f"parcels-{n}" for n in count(1)))

    @property
    def url(self) -> str:
        """The broker's URL, with its password."""
        return self.server.url

    def send(self, task: str, *args: object, queue: str = "celery", **options: Any) -> str:
        """Publish a task and return its id."""
        return str(self.app.send_task(f"shop.{task}", args, queue=queue, **options).id)

    def orphan(self) -> str:
        """Have a message delivered to a process that is killed with it; the worker could do it, were it put back."""
        queue = next(self._queues)
        task_id = self.send("render_report", "2026-11", queue=queue)
        doomed = subprocess.run(
            [sys.executable, "-c", _DOOMED, self.url, queue], env=processes.environment(), check=False
        )
        assert doomed.returncode == -9
        wait_until(lambda: self._told("add_consumer", queue), f"{NODE} consumes {queue}")
        assert task_id in faults.unacked(self.redis)
        return task_id

    def state(self, task_id: str) -> str:
        """Return the state of a stored result; empty if there is none."""
        return faults.state(self.redis, task_id)

    def contents(self) -> dict[bytes, object]:
        """Return all that is in the database, but what its live worker touches all the time."""
        return contents(self.redis)

    def _told(self, order: str, queue: str) -> bool:
        replies = getattr(self.app.control, order)(queue, destination=[NODE], reply=True, timeout=1)
        return any("ok" in reply.get(NODE, {}) for reply in replies or [])


@contextmanager
def open_shop(folder: Path) -> Iterator[Shop]:
    """Start a small system in an existing folder, with three tasks done; end it with the block."""
    with server.start(folder) as running, running.client() as client:
        # Without acknowledgements of its own: emulating them would give back what other clients hold.
        options = {"ack_emulation": False}
        app = Celery("tests", broker=running.url, backend=running.url, broker_transport_options=options)
        worker = _worker(folder, running.url)
        try:
            shop = Shop(server=running, worker=worker, app=app, redis=client)
            done = [shop.send("send_receipt", order) for order in (1, 2, 3)]
            wait_until(lambda: all(shop.state(each) == "SUCCESS" for each in done), f"{NODE} works")
            wait_until(lambda: not client.hlen(KEYS.unacked), f"{NODE} has acknowledged its work")
            yield shop
        finally:
            worker.end()
            app.close()


def contents(redis: Redis) -> dict[bytes, object]:
    """Return every key with its value, but those that live workers touch all the time."""
    readers: dict[bytes, Callable[[bytes], object]] = {
        b"string": redis.get,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"stream": redis.xrange,
    }
    found = {key: redis.type(key) for key in redis.scan_iter() if key not in _RESTLESS}
    return {key: readers[kind](key) for key, kind in sorted(found.items()) if kind in readers}


def own_keys(redis: Redis) -> list[bytes]:
    """Return the keys that this tool wrote."""
    return sorted(redis.scan_iter(match=f"*{OWN}*"))


def wait_until(condition: Callable[[], object], what: str, *, within_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail with `what` was waited for."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s:g} s in vain until {what}"
        time.sleep(0.02)


def _worker(folder: Path, url: str) -> Child:
    command = f"-m celery -A opslib.demo.app worker -n {NODE} -P prefork -c 2 -Q celery -l WARNING --without-mingle"
    return processes.spawn(
        "steady",
        [sys.executable, *command.split()],
        folder=folder,
        env=processes.environment(DEMO_BROKER_URL=url, DEMO_CLIENT_NAME=NODE),
    )
