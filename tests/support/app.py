"""The tasks that the tests' workers run; only those workers import it."""

# ruff: noqa: ARG001 - a task takes what its message brings

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Celery, Task
from redis import Redis

URL = os.environ["TRIAL_URL"]

app = Celery("tests", broker=URL, backend=URL)
app.conf.update(
    task_track_started=True,
    result_extended=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
app.conf.update(json.loads(os.environ.get("TRIAL_CONF", "{}")))


def _ran(task: Task[Any, Any]) -> None:
    """Count this attempt where a test finds it, whatever becomes of the task's result."""
    with Redis.from_url(URL) as redis:
        redis.hincrby("ran", task.request.id, 1)


@app.task(name="tests.ok", bind=True)
def ok(self: Task[Any, Any], *args: object) -> str:
    """Do nothing, and that well."""
    _ran(self)
    return "ok"


@app.task(name="tests.sleep", bind=True)
def sleep(self: Task[Any, Any], length_s: float) -> None:
    """Take a while; acknowledged when it starts."""
    _ran(self)
    time.sleep(length_s)


@app.task(name="tests.late", bind=True, acks_late=True)
def late(self: Task[Any, Any], length_s: float = 0.0) -> None:
    """Take a while; acknowledged when it ends, so its message outlives its worker."""
    _ran(self)
    time.sleep(length_s)


@app.task(name="tests.gate", bind=True, acks_late=True)
def gate(self: Task[Any, Any]) -> None:
    """Wait until somebody sets the key `open`; not acknowledged until then."""
    _ran(self)
    with Redis.from_url(URL) as redis:
        while not redis.exists("open"):
            time.sleep(0.02)


@app.task(name="tests.hang", bind=True)
def hang(self: Task[Any, Any]) -> None:
    """Wait for ever."""
    _ran(self)
    while True:
        time.sleep(1)


@app.task(name="tests.hang_late", bind=True, acks_late=True)
def hang_late(self: Task[Any, Any]) -> None:
    """Wait for ever, not acknowledged."""
    _ran(self)
    while True:
        time.sleep(1)


@app.task(name="tests.stubborn", bind=True)
def stubborn(self: Task[Any, Any]) -> None:
    """Wait for ever, and do not mind being asked to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _ran(self)
    while True:
        time.sleep(1)


@app.task(name="tests.retry_forever", bind=True, max_retries=None)
def retry_forever(self: Task[Any, Any], countdown_s: float) -> None:
    """Fail and come back, again and again."""
    _ran(self)
    raise self.retry(countdown=countdown_s)


@app.task(name="tests.broken", bind=True, max_retries=None)
def broken(self: Task[Any, Any], countdown_s: float, account: str = "") -> None:
    """Fail of its own code, and come back all the same."""
    _ran(self)
    try:
        answer: Any = None
        answer[account]
    except TypeError as error:
        raise self.retry(exc=error, countdown=countdown_s) from error


@app.task(name="tests.refused", bind=True, max_retries=50)
def refused(self: Task[Any, Any], countdown_s: float, account: str = "") -> None:
    """Fail because a neighbour is not there, under another number each time."""
    _ran(self)
    raise self.retry(exc=ConnectionError(f"Error 111 for {account} after {time.time()} s"), countdown=countdown_s)


@app.task(name="tests.flaky", bind=True, max_retries=2)
def flaky(self: Task[Any, Any]) -> str:
    """Fail once, and do it then."""
    _ran(self)
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return "ok"


@app.task(name="tests.slow_lane", bind=True)
def slow_lane(self: Task[Any, Any]) -> None:
    """Quick; a node that is told to hold it back keeps it in a bucket that no reply mentions."""
    _ran(self)
