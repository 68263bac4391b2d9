"""The tasks of an application of which nothing is wrong; only workers of tests import it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task
from redis import Redis

URL = os.environ["TRIAL_URL"]

app = Celery("tests", broker=URL, backend=URL)
app.conf.update(
    task_track_started=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    task_time_limit=900,
    worker_prefetch_multiplier=1,
)
app.conf.update(json.loads(os.environ.get("TRIAL_CONF", "{}")))


def _ran(task: Task[Any, Any]) -> None:
    with Redis.from_url(URL) as redis:
        redis.hincrby("ran", task.request.id, 1)


@app.task(name="tests.ok", bind=True)
def ok(self: Task[Any, Any]) -> str:
    """Do nothing, and that well."""
    _ran(self)
    return "ok"


@app.task(name="tests.sleep", bind=True)
def sleep(self: Task[Any, Any], length_s: float) -> None:
    """Take a while; acknowledged when it starts."""
    _ran(self)
    time.sleep(length_s)
