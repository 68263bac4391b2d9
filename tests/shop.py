"""A folder → a small real system in it: a server, a worker with its work done, and messages of processes that died."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

from redis import Redis

from opslib.demo import server
from opslib.embedded import processes
from opslib.symptoms.orphans import ORPHAN_MARGIN_S
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, deployment

NODE = "steady@shop"
#: What live clients of kombu write by themselves: whose turn it is to sweep, and how long their routes count.
_RESTLESS = (b"unacked_mutex", b"_kombu.binding_deadlines")
_NUMBERS = count(1)

#: Takes one message as any consumer of kombu's does, and dies with it.
_DOOMED = """
import os, signal, sys
from kombu import Connection

Connection(sys.argv[1]).SimpleQueue(sys.argv[2]).get(timeout=30)
os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def embedded(folder: Path) -> Iterator[Deployment]:
    """Start the embedded server in an existing folder; its nodes are processes beside it."""
    with server.start(folder) as running, deployment(running, folder) as made:
        yield made


@contextmanager
def open_shop(
    folder: Path, stack: Callable[[Path], AbstractContextManager[Deployment]] = embedded
) -> Iterator[Deployment]:
    """Start a server and a node with two processes, logs in an existing folder, and have three tasks done."""
    with stack(folder) as shop:
        shop.worker(name=NODE, concurrency=2)
        shop.until_done(*(shop.send("ok") for _ in range(3)))
        until(lambda: not shop.unacked(), DEADLINE_S, "the tasks are acknowledged")
        yield shop


def orphan(shop: Deployment, queue: str = "") -> str:
    """Have a message delivered to a process that is killed with it; without `queue`, the node consumes its queue."""
    name = queue or f"parcels-{next(_NUMBERS)}"
    task_id = shop.send("ok", queue=name)
    command = [sys.executable, "-c", _DOOMED, shop.server.url, name]
    assert subprocess.run(command, env=processes.environment(), check=False).returncode == -9
    shop.until_unacked(task_id)
    if not queue:
        until(lambda: _told(shop, "add_consumer", name), DEADLINE_S, f"{NODE} consumes {name}")
    (_, delivered_at), *_ = shop.redis.zrange("unacked_index", 0, 0, desc=True, withscores=True)
    until(lambda: time.time() - delivered_at > ORPHAN_MARGIN_S, DEADLINE_S, "it is too old to be on its way")
    return task_id


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


def _told(shop: Deployment, order: str, queue: str) -> bool:
    replies = getattr(shop.app.control, order)(queue, destination=[NODE], reply=True, timeout=1)
    return any("ok" in reply.get(NODE, {}) for reply in replies or [])
