"""The tasks of `tests.support.app`, others that die in every way, and their dead letters; only workers import it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from opslib import worker
from tests.support.app import _ran, app

worker.capture(app)
#: The second time it is only told what it wants.
worker.capture(app, **app.conf.get("trial_capture", {}))


class OwnRequest(Request):
    """An application's own class of requests: it counts its failures where a test finds them."""

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        """Count, and go on."""
        app.backend.client.hincrby("own requests", self.id, 1)
        return super().on_failure(*args, **kwargs)


class OwnTask(Task):
    """A base class that has nothing to do with the application's."""

    Request = OwnRequest


class Unpicklable(Exception):
    """An error that no process can hand to another."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}, {two}")
        self.lock = signal.getsignal


@app.task(name="tests.boom", bind=True)
def boom(self: Task, text: str = "boom") -> None:
    """Raise."""
    _ran(self)
    raise ValueError(text)


@app.task(name="tests.boom_late", bind=True, acks_late=True)
def boom_late(self: Task, text: str = "boom") -> None:
    """Raise, acknowledged only then."""
    _ran(self)
    raise ValueError(text)


@app.task(name="tests.boom_unacked", bind=True, acks_late=True, acks_on_failure_or_timeout=False)
def boom_unacked(self: Task) -> None:
    """Raise; the message is rejected then, which on Redis is the end of it."""
    _ran(self)
    raise ValueError("boom")


@app.task(name="tests.boom_huge", bind=True)
def boom_huge(self: Task, size: int) -> None:
    """Raise with a text that is endless."""
    _ran(self)
    raise ValueError("x" * size)


@app.task(name="tests.boom_unpicklable", bind=True)
def boom_unpicklable(self: Task) -> None:
    """Raise what cannot be handed to another process."""
    _ran(self)
    raise Unpicklable("one", "two")


@app.task(name="tests.boom_own", bind=True, base=OwnTask)
def boom_own(self: Task) -> None:
    """Raise, as a task with a class of requests of its own."""
    _ran(self)
    raise ValueError("boom")


@app.task(name="tests.boom_memory", bind=True)
def boom_memory(self: Task) -> None:
    """Run out of memory, or say so."""
    _ran(self)
    raise MemoryError("too much")


@app.task(name="tests.exhausted", bind=True, max_retries=1)
def exhausted(self: Task) -> None:
    """Fail, try once more, and fail for good."""
    _ran(self)
    raise self.retry(exc=ConnectionError("nobody there"), countdown=0)


@app.task(name="tests.rejecting", bind=True, acks_late=True)
def rejecting(self: Task) -> None:
    """Reject its message, for good."""
    _ran(self)
    raise Reject("no thanks", requeue=False)


@app.task(name="tests.rejecting_early", bind=True)
def rejecting_early(self: Task) -> None:
    """Ask for its message to be put back, which was acknowledged long ago."""
    _ran(self)
    raise Reject("later", requeue=True)


@app.task(name="tests.requeueing", bind=True, acks_late=True)
def requeueing(self: Task, times: int) -> str:
    """Have its message put back a few times."""
    _ran(self)
    if int(app.backend.client.hget("ran", self.request.id)) <= times:
        raise Reject("later", requeue=True)
    return "ok"


@app.task(name="tests.ignoring", bind=True, acks_late=True)
def ignoring(self: Task) -> None:
    """End without an outcome."""
    _ran(self)
    raise Ignore


@app.task(name="tests.killed", bind=True)
def killed(self: Task) -> None:
    """Have its process killed, as the kernel does when memory runs out."""
    _ran(self)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@app.task(name="tests.killed_late", bind=True, acks_late=True)
def killed_late(self: Task) -> None:
    """Have its process killed; acknowledged then."""
    _ran(self)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@app.task(name="tests.killed_requeued", bind=True, acks_late=True, reject_on_worker_lost=True)
def killed_requeued(self: Task) -> str:
    """Have its process killed the first time; its message goes back."""
    _ran(self)
    if int(app.backend.client.hget("ran", self.request.id)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return "ok"


@app.task(name="tests.killed_retried", bind=True, max_retries=1, retry_on_worker_lost=True, default_retry_delay=0)
def killed_retried(self: Task) -> str:
    """Have its process killed the first time; Celery retries it."""
    _ran(self)
    if not self.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return "ok"


class Careless(Task):
    """Kills its process when all is done, and stored."""

    def on_success(self, *_: Any) -> None:
        """End as if memory had run out."""
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="tests.killed_after", bind=True, base=Careless)
def killed_after(self: Task) -> str:
    """Succeed, and have the process killed then."""
    _ran(self)
    return "ok"


@app.task(name="tests.leaving", bind=True)
def leaving(self: Task) -> None:
    """End its process by itself."""
    _ran(self)
    raise SystemExit(3)


@app.task(name="tests.endless", bind=True, time_limit=1)
def endless(self: Task) -> None:
    """Run into its hard time limit."""
    _ran(self)
    time.sleep(60)


@app.task(name="tests.endless_late", bind=True, time_limit=1, acks_late=True)
def endless_late(self: Task) -> None:
    """Run into its hard time limit; acknowledged then."""
    _ran(self)
    time.sleep(60)


@app.task(name="tests.endless_requeued", bind=True, time_limit=1, acks_late=True, acks_on_failure_or_timeout=False)
def endless_requeued(self: Task) -> str:
    """Run into its hard time limit the first time; its message goes back."""
    _ran(self)
    if int(app.backend.client.hget("ran", self.request.id)) == 1:
        time.sleep(60)
    return "ok"


@app.task(name="tests.endless_softly", bind=True, soft_time_limit=1)
def endless_softly(self: Task) -> None:
    """Run into its soft time limit, which is an exception as any other."""
    _ran(self)
    time.sleep(60)
