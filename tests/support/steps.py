"""Tasks that go step by step and save how far they have come; only the workers of the tests of that import it."""

# ruff: noqa: ARG001 - a task takes what its message brings

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Task
from redis import Redis

from opslib.worker import checkpoint
from tests.support.app import URL, app


def _step(task: Task[Any, Any], job: str, step: int) -> None:
    """Do one step: all that is to be seen of it is a count."""
    with Redis.from_url(URL) as redis:
        redis.hincrby(f"steps:{job}", str(step), 1)
        redis.hset(f"steps-by:{job}", str(step), task.request.id)


def _breaks(job: str, step: int) -> str:
    """Return how a job is to end at a step; only once."""
    with Redis.from_url(URL) as redis:
        said = redis.hget(f"breaks:{job}", str(step))
        redis.hdel(f"breaks:{job}", str(step))
    return said.decode() if said else ""


@app.task(name="tests.steps", bind=True, max_retries=2)
def steps(self: Task[Any, Any], job: str, count: int, secret: str = "") -> int:
    """Do so many steps, each saved; end at those that the key `breaks:JOB` names, as it says there."""
    state = checkpoint(self)
    with Redis.from_url(URL) as redis:
        opened = {"at": state.get("done", 0), "resumed": state.is_resumed, "from": state.resumed_from}
        redis.rpush(f"opened:{job}", json.dumps(opened))
    for step in range(state.get("done", 0), count):
        said = _breaks(job, step)
        if said == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while said == "hang":
            with Redis.from_url(URL) as redis:
                redis.set(f"hangs:{job}", 1)
            time.sleep(1)
        if said == "retry":
            raise self.retry(countdown=0.1)
        if said == "give up":
            state.give_up("the file is damaged")
        if said:
            raise ValueError(f"{said} {job}")
        _step(self, job, step)
        state.save(progress=(step + 1) / count, done=step + 1, sums=[*state.get("sums", []), step])
    return int(sum(state.get("sums", [])))


@app.task(name="tests.own_steps", bind=True)
def own_steps(self: Task[Any, Any], job: str, count: int) -> None:
    """Do the same with a state of its own, as older scripts kept it."""
    key = f"archivist:task_state:{self.request.id}"
    with Redis.from_url(URL) as redis:
        state = json.loads(redis.get(key) or "{}")
        for step in range(state.get("done", 0), count):
            if _breaks(job, step):
                raise ValueError(job)
            _step(self, job, step)
            told = {"task_name": "tests.own_steps", "args": [job, count], "kwargs": {}, "progress": 100 * step / count}
            redis.set(key, json.dumps({**state, **told, "done": step + 1}), ex=3600)
