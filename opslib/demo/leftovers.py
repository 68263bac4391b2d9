"""The demo's result backend → what a week has left in it: old results, some for ever, and answers that nobody reads."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from opslib.demo.faults import CROWD, Fault
from opslib.keys import Keyspace

if TYPE_CHECKING:
    from redis import Redis

#: Receipts of last night, which Celery keeps for a day and nobody asks for; and sums that a script of the shop's wrote.
RECEIPTS, SUMS = 240, 40
#: Monitoring scripts that were killed while they waited for the nodes' answers, three hours ago.
SCRIPTS, IDLE_S = 6, 3 * 3600
_DAY_S, _HOUR_S = 86_400, 3600
_KEYS = Keyspace()


def leave(redis: Redis) -> tuple[Fault, ...]:
    """Leave results that are kept too long, some that never expire, and orphaned answers; return the faults."""
    now = datetime.now(UTC)
    with redis.pipeline(transaction=False) as pipe:
        for n in range(RECEIPTS):
            age_s = 13 * _HOUR_S + n * 9 * _HOUR_S // RECEIPTS
            _store(pipe, "shop.send_receipt", now - timedelta(seconds=age_s), life_s=_DAY_S - age_s)
        for n in range(SUMS):
            _store(pipe, "shop.sum_up", now - timedelta(days=9, hours=n), life_s=None)
        pipe.execute()
    for _ in range(SCRIPTS):
        _answer(redis)
    root, replies = _KEYS.result_root, "*.reply.celery.pidbox"
    told = {
        "results-expired": ("default", "Receipts of last night are kept for a day; nobody asks for one after an hour."),
        "results-without-ttl": ("default", "A script of the shop writes its sums itself, and gives them no life."),
        "orphan-reply-keys": (replies, "A monitoring script was killed again and again while it asked the nodes."),
    }
    return tuple(
        Fault(
            name="a-week-of-leftovers",
            code=code,
            subject=subject,
            task="",
            what=what,
            key=replies if subject == replies else f"{root}*",
            runbook="weekly-cleanup",
        )
        for code, (subject, what) in told.items()
    )


def _store(pipe: Redis, task: str, done: datetime, *, life_s: int | None) -> None:
    task_id = str(uuid.uuid4())
    value = {"status": "SUCCESS", "result": True, "traceback": None, "children": [], "date_done": done.isoformat()}
    extended = {"name": task, "args": [], "kwargs": {}, "worker": CROWD, "retries": 0, "queue": "emails"}
    pipe.set(_KEYS.result(task_id), json.dumps({**value, **extended, "task_id": task_id}), ex=life_s)


def _answer(redis: Redis) -> None:
    """Leave a list of answers that nobody has touched for hours: only a key that is restored can be as old as that."""
    key = _KEYS.reply_list(str(uuid.uuid4()))
    redis.rpush(key, json.dumps({"body": "", "headers": {"ticket": str(uuid.uuid4())}}))
    redis.restore(key, 0, cast("bytes", redis.dump(key)), replace=True, idletime=IDLE_S)
