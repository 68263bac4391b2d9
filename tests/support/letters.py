"""A deployment → a node that captures, the messages that it is given, and the letters that they become."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from redis import Redis

from opslib import letters
from opslib.keys import Keyspace
from opslib.letters import Letter
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker

#: A process that was lost is missed at once.
_CONF = {"worker_lost_wait": 0.05, "worker_prefetch_multiplier": 1}


def node(found: Deployment, *, capture: dict[str, object] | None = None, **options: Any) -> Worker:
    """Start a node that captures; the rest is as `Deployment.worker` has it."""
    conf = {**_CONF, **options.pop("conf", {}), "trial_capture": capture or {}}
    return found.worker(module="tests.support.dying", conf=conf, **options)


def message(
    task: str,
    *args: object,
    exchange: str = "",
    routing_key: str = "celery",
    priority: int = 0,
    headers: Mapping[str, object] | None = MappingProxyType({}),
    **change: Any,
) -> tuple[str, bytes]:
    """
    Return a task's id and the bytes of its message, as kombu writes them.

    Args:
        headers: Beside those that each has; None for no headers at all.

        change: Whatever else is different about it.
    """
    task_id = str(uuid.uuid4())
    body = [list(args), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    value = {
        "body": json.dumps(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {} if headers is None else {"lang": "py", "task": f"tests.{task}", "id": task_id, **headers},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": exchange, "routing_key": routing_key},
            "priority": priority,
            "body_encoding": None,
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return task_id, json.dumps({**value, **change}).encode()


def waiting(redis: Redis, queue: str = "celery") -> dict[str, bytes]:
    """Return the messages that wait in a queue by the ids of their tasks."""
    keys = Keyspace().queue_lists(queue)
    raws = [raw for key in keys for raw in redis.lrange(key, 0, -1)]
    return {json.loads(raw)["properties"]["correlation_id"]: raw for raw in raws}


def dead(redis: Redis, key: str = "celery.dead") -> list[Letter]:
    """Return a list's letters, the newest first."""
    found = [letters.read(raw) for raw in redis.lrange(key, 0, -1)]
    return [each for each in found if isinstance(each, Letter)]


def until_dead(found: Deployment, *task_ids: str, key: str = "celery.dead") -> dict[str, Letter]:
    """Wait until all of these have a letter, and return each by its task's id."""

    def missing() -> set[str]:
        return set(task_ids) - {each.task_id for each in dead(found.redis, key)}

    until(lambda: not missing(), DEADLINE_S, "every task has its letter")
    return {each.task_id: each for each in dead(found.redis, key)}
