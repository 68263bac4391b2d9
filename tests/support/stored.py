"""Results of any state, age, task and life, as Celery stores them → a server, and who of them is who."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis

from tests.support.seed import KEYS

HOUR_S, DAY_S = 3600.0, 86_400.0
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


def value(
    redis: Redis, task_id: str, state: str = "SUCCESS", *, age_s: float = 0.0, task: str = "", **fields: object
) -> bytes:
    """Return a result as Celery writes it; one that is not final says no time."""
    seconds, micros = redis.time()
    done = datetime.fromtimestamp(seconds + micros / 1e6, UTC) - timedelta(seconds=age_s)
    found: dict[str, Any] = {"status": state, "result": None, "traceback": None, "children": []}
    found["date_done"] = done.isoformat() if state in FINAL else None
    found |= {"name": task, "args": [1], "worker": "w@h"} if task else {}
    return json.dumps({**found, **fields, "task_id": task_id}).encode()


def store(
    redis: Redis,
    task_id: str,
    state: str = "SUCCESS",
    *,
    age_s: float = 0.0,
    task: str = "",
    life_s: float | None = DAY_S,
    root: str = KEYS.result_root,
    **fields: object,
) -> str:
    """Store a result and return its key."""
    key = f"{root}{task_id}"
    raw = value(redis, task_id, state, age_s=age_s, task=task, **fields)
    redis.set(key, raw, px=None if life_s is None else int(life_s * 1000))
    return key


def ids(redis: Redis, root: str = KEYS.result_root) -> set[str]:
    """Return the ids of all tasks that have a result."""
    return {key.decode().removeprefix(root) for key in redis.scan_iter(match=f"{root}*", count=1000)}


def held(redis: Redis, root: str = KEYS.result_root) -> Mapping[bytes, tuple[bytes | None, int]]:
    """Return every result with the instant at which it expires, to some seconds; -1 for never."""
    names = sorted(redis.scan_iter(match=f"{root}*", count=1000))
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.get(name)
            pipe.pttl(name)
        replies = pipe.execute()
    now_ms = int(redis.time()[0] * 1000)
    lives = [-1 if life < 0 else round((now_ms + life) / 20_000) for life in replies[1::2]]
    return dict(zip(names, zip(replies[::2], lives, strict=True), strict=True))
