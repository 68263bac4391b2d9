"""What a system leaves behind beside results: quarantines, groups, states, keys of its own, each as old as is said."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
from redis import Redis

from opslib import checkpoints, folders, records
from opslib.checkpoints import Document
from tests.support.plans import values
from tests.support.seed import KEYS, envelope

DAY_S = 86_400.0


def aged(redis: Redis, key: str, idle_s: float) -> str:
    """Have a key look as if nobody had touched it for so long: only one that is restored can."""
    life = redis.pttl(key)
    redis.restore(key, max(0, cast("int", life)), cast("bytes", redis.dump(key)), replace=True, idletime=int(idle_s))
    return key


def values_before(redis: Redis, *patterns: str, idle_s: float = DAY_S) -> dict[bytes, object]:
    """Return what every key holds; reading makes them young, so those of the patterns are aged again."""
    found = values(redis)
    for pattern in patterns:
        for key in list(redis.scan_iter(match=pattern)):
            aged(redis, key.decode(), idle_s)
    return found


def chord(
    redis: Redis, *, size: int = 2, ended: int = 2, idle_s: float = DAY_S, group_id: str = "", done: bool = False
) -> str:
    """Leave what a chord counts: how many members it has, and those that have ended; return its id."""
    group_id = group_id or str(uuid.uuid4())
    base = KEYS.group(group_id)
    ids = [str(uuid.uuid4()) for _ in range(ended)]
    if not done:
        redis.set(f"{base}.s", size)
    if ids:
        redis.zadd(f"{base}.j", {json.dumps([1, each, "SUCCESS", n]): n for n, each in enumerate(ids)})
        redis.sadd(f"{base}.d", *(f"{each}:{n}" for n, each in enumerate(ids)))
    for part in "sjd":
        if redis.exists(f"{base}.{part}"):
            aged(redis, f"{base}.{part}", idle_s)
    return group_id


def group(redis: Redis, members: Sequence[str], *, idle_s: float = DAY_S) -> str:
    """Leave a group that was saved, with its members; return its id."""
    group_id = str(uuid.uuid4())
    value = {"result": [[group_id, None], [[[each, None], None] for each in members]]}
    redis.set(KEYS.group(group_id), json.dumps(value))
    aged(redis, KEYS.group(group_id), idle_s)
    return group_id


def checkpoint(redis: Redis, task_id: str, *, age_s: float, life_s: float | None = None, **fields: Any) -> str:
    """Leave a saved state; return its key."""
    saved = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    document = Document(task_id=task_id, task="tests.ok", args=[1], kwargs={}, saved_at=saved, **fields)
    redis.set(KEYS.checkpoint(task_id), checkpoints.write(document), ex=None if life_s is None else int(life_s))
    return KEYS.checkpoint(task_id)


def run_of(days: float, name: str = "stuck-tasks") -> str:
    """Return the id of a run of so many days ago."""
    return f"{datetime.now(UTC) - timedelta(days=days):%Y%m%dT%H%M%SZ}-{name}-{uuid.uuid4().hex[:6]}"


def quarantine(redis: Redis, run_id: str, *, count: int = 3, host: str | None = None, queue: str = "celery") -> str:
    """Leave what a run took out of circulation, and its journal; return the list's key."""
    key = KEYS.quarantine(run_id, queue)
    redis.lpush(key, *(json.dumps(envelope()) for _ in range(count)))
    told = {"run": run_id, "host": socket.gethostname() if host is None else host}
    redis.hset(KEYS.journal(run_id), "run", json.dumps(told))
    return key


def archived(
    root: Path, run_id: str, *, statuses: Sequence[str] = ("applied",), ended_days: float, continues: str = ""
) -> Path:
    """Put the record of a run into the archive, as if it had ended so many days ago."""
    folder = folders.create(root, run_id)
    ended = f"{datetime.now(UTC) - timedelta(days=ended_days):%Y-%m-%dT%H:%M:%SZ}"
    record = records.RunRecord(
        run_id=run_id,
        runbook="stuck-tasks",
        target="trial",
        operator="o",
        started_at=ended,
        finished_at=ended,
        verdict="healthy",
        exit_code=0,
        dry_run=False,
        plan={"continues": continues},
        outcomes=[{"action": n, "status": status} for n, status in enumerate(statuses, 1)],
    )
    (folder / folders.RECORD).write_bytes(msgspec.json.encode(record))
    (folder / folders.PLAN).write_bytes(b"{}")
    return folder


def held_by(redis: Redis, key: str) -> Any:
    """Return what a key holds, of any type."""
    kind = cast("bytes", redis.type(key))
    read: Mapping[bytes, Any] = {
        b"string": lambda: redis.get(key),
        b"list": lambda: redis.lrange(key, 0, -1),
        b"hash": lambda: redis.hgetall(key),
        b"set": lambda: redis.smembers(key),
        b"zset": lambda: redis.zrange(key, 0, -1, withscores=True),
    }
    return read[kind]() if kind in read else None


def file(path: Path, *, age_s: float = 2 * DAY_S, content: bytes = b"half", mode: int = 0o640) -> Path:
    """Leave a file that was last changed so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    at = time.time() - age_s
    os.utime(path, (at, at))
    return path
