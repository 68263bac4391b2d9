"""Messages and results as Celery writes them → into a server, and out of it again."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from opslib.envelope import digest
from opslib.keys import Keyspace

KEYS = Keyspace()
_EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """
    A message that was put somewhere.

    Attributes:
        raw: Its bytes as stored.

        key: The key that holds it.

        score: Of the unacked index; None for one that has none.
    """

    task_id: str
    tag: str
    raw: bytes
    key: str
    queue: str
    score: float | None = None

    @property
    def sha256(self) -> str:
        """Of its bytes as stored."""
        return digest(self.raw)


def envelope(
    task: str = "tests.ok",
    *,
    task_id: str = "",
    args: Sequence[object] = (),
    queue: str = "celery",
    exchange: str = "",
    priority: int = 0,
    tag: str = "",
    **headers: object,
) -> dict[str, Any]:
    """Return a message of protocol 2, field by field as celery-samples/envelope-plain.json has it."""
    task_id = task_id or str(uuid.uuid4())
    body = json.dumps([list(args), {}, _EMBEDDED])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": repr(tuple(args)),
            "kwargsrepr": "{}",
            "origin": "gen1@seed",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
            **headers,
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": exchange, "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": tag or str(uuid.uuid4()),
        },
    }


def seed_waiting(
    redis: Redis,
    task: str = "tests.ok",
    *,
    queue: str = "celery",
    priority: int = 0,
    keys: Keyspace = KEYS,
    **of: Any,
) -> Seeded:
    """Publish a message as a producer does: it is served last."""
    message = envelope(task, queue=queue, priority=priority, **of)
    raw, key = json.dumps(message).encode(), keys.queue(queue, priority)
    redis.lpush(key, raw)
    return _seeded(message, raw, key, queue)


def seed_unacked(
    redis: Redis,
    task: str = "tests.ok",
    *,
    age_s: float = 60.0,
    queue: str = "celery",
    exchange: str = "",
    keys: Keyspace = KEYS,
    indexed: bool = True,
    **of: Any,
) -> Seeded:
    """Leave a message as a worker does that took it `age_s` seconds ago and did not acknowledge it."""
    message = envelope(task, queue=queue, exchange=exchange, **of)
    tag, score = message["properties"]["delivery_tag"], time.time() - age_s
    raw = json.dumps([message, exchange, queue]).encode()
    redis.hset(keys.unacked, tag, raw)
    if indexed:
        redis.zadd(keys.unacked_index, {tag: score})
    return _seeded(message, raw, keys.unacked, queue, score if indexed else None)


def seed_result(redis: Redis, state: str, *, task_id: str = "", life_s: int = 86_400, **fields: object) -> str:
    """Store a result and return its task's id."""
    task_id = task_id or str(uuid.uuid4())
    value = {"status": state, "result": None, "traceback": None, "children": [], "date_done": None, **fields}
    redis.set(KEYS.result(task_id), json.dumps({**value, "task_id": task_id}), ex=life_s)
    return task_id


def bind(redis: Redis, exchange: str, queue: str, *, routing_key: str = "", pattern: str = "") -> None:
    """Declare a route as kombu does; a queue's own default exchange carries its name."""
    member = KEYS.separator.join((routing_key or queue, pattern, queue))
    redis.sadd(KEYS.bindings(exchange), member)


def iso(in_s: float) -> str:
    """Return the instant so many seconds from now, as an ETA is written."""
    return datetime.fromtimestamp(time.time() + in_s, UTC).isoformat()


def waiting(redis: Redis, queue: str = "celery", priority: int = 0) -> list[dict[str, Any]]:
    """Return the messages of one list, the next to be served first."""
    return [json.loads(raw) for raw in reversed(redis.lrange(KEYS.queue(queue, priority), 0, -1))]


def waiting_ids(redis: Redis, queue: str = "celery", priority: int = 0) -> list[str]:
    """Return the task ids of one list, the next to be served first."""
    return [message["headers"]["id"] for message in waiting(redis, queue, priority)]


def unacked(redis: Redis) -> Mapping[str, list[Any]]:
    """Return the unacked triples by task id."""
    triples = [json.loads(raw) for raw in redis.hvals(KEYS.unacked)]
    return {triple[0]["headers"]["id"]: triple for triple in triples}


def quarantined(redis: Redis) -> dict[str, list[bytes]]:
    """Return what was taken out of circulation, by the name of its list."""
    lists = sorted(redis.scan_iter(match="*opslib:run:*:q:*"))
    return {key.decode().rpartition(":q:")[2]: redis.lrange(key, 0, -1) for key in lists}


def _seeded(message: dict[str, Any], raw: bytes, key: str, queue: str, score: float | None = None) -> Seeded:
    return Seeded(
        task_id=message["headers"]["id"],
        tag=message["properties"]["delivery_tag"],
        raw=raw,
        key=key,
        queue=queue,
        score=score,
    )
