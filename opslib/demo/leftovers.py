"""The demo's databases → what a week has left in them: results, answers, chords, progress, a forgotten quarantine."""

from __future__ import annotations

import json
import secrets
import socket
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from opslib.demo import notes
from opslib.demo.faults import CROWD, KEPT_S, Fault
from opslib.embedded import server
from opslib.keys import Keyspace

if TYPE_CHECKING:
    from redis import Redis

#: Receipts of last night, which Celery keeps for three days and nobody asks for; and sums that a script has written.
RECEIPTS, SUMS = 240, 40
#: Monitoring scripts that were killed while they waited for the nodes' answers, three hours ago.
SCRIPTS, IDLE_S = 6, 3 * 3600
#: Nightly reports in several parts, each a chord, and what the shop noted down of tasks of last week.
CHORDS, MEMBERS, NOTES = 5, 4, 30
#: Days since somebody took messages out of circulation, and forgot them.
FORGOTTEN_D, FORGOTTEN = 40, 12
_DAY_S, _HOUR_S = 86_400, 3600
_KEYS = Keyspace()


def leave(redis: Redis, url: str) -> tuple[Fault, ...]:
    """
    Leave results that are kept too long, some that never expire, and what nobody needs beside them; return the faults.

    Args:
        url: Of the demo's broker.
    """
    now = datetime.now(UTC)
    with redis.pipeline(transaction=False) as pipe:
        for n in range(RECEIPTS):
            age_s = 13 * _HOUR_S + n * 9 * _HOUR_S // RECEIPTS
            _store(pipe, "shop.send_receipt", now - timedelta(seconds=age_s), life_s=KEPT_S - age_s)
        for n in range(SUMS):
            _store(pipe, "shop.sum_up", now - timedelta(days=9, hours=n), life_s=None)
        pipe.execute()
    for _ in range(SCRIPTS):
        _answer(redis)
    for _ in range(CHORDS):
        _chord(redis)
    _forget(redis, now)
    with server.client(notes.beside(url, notes.PROGRESS)) as beside:
        for _ in range(NOTES):
            key = f"progress:{uuid.uuid4()}"
            beside.hset(key, mapping={"percent": 100, "step": "sent"})
            _age(beside, key, 8 * _DAY_S)
    root, replies = _KEYS.result_root, "*.reply.celery.pidbox"
    told = {
        "results-expired": (
            "default",
            "Receipts of last night are kept for three days; nobody asks for one after an hour.",
        ),
        "results-without-ttl": ("default", "A script of the shop writes its sums itself, and gives them no life."),
        "orphan-reply-keys": (replies, "A monitoring script was killed again and again while it asked the nodes."),
        "quarantine-expired": (
            "quarantine",
            "Somebody took messages out of circulation forty days ago, and forgot them.",
        ),
        "group-keys": (
            f"{_KEYS.group('')}*",
            "Nightly reports were made in parts, and the keys of those groups were given no end.",
        ),
        "app-keys": (notes.PATTERN, "The shop writes down how far each task is, and never removes it."),
    }
    return tuple(
        Fault(
            name="a-week-of-leftovers",
            code=code,
            subject=subject,
            task="",
            what=what,
            key=f"{root}*" if subject == "default" else subject,
            runbook="weekly-cleanup",
        )
        for code, (subject, what) in told.items()
    )


def _store(pipe: Redis, task: str, done: datetime, *, life_s: int | None) -> None:
    task_id = str(uuid.uuid4())
    value = {"status": "SUCCESS", "result": True, "traceback": None, "children": [], "date_done": done.isoformat()}
    extended = {"name": task, "args": [], "kwargs": {}, "worker": CROWD, "retries": 0, "queue": "emails"}
    pipe.set(_KEYS.result(task_id), json.dumps({**value, **extended, "task_id": task_id}), ex=life_s)


def _age(redis: Redis, key: str, idle_s: int) -> None:
    """Have a key look as if nobody had touched it for so long: only one that is restored can."""
    redis.restore(key, 0, cast("bytes", redis.dump(key)), replace=True, idletime=idle_s)


def _chord(redis: Redis) -> None:
    """Leave what a chord counts, all of whose members have ended."""
    base = _KEYS.group(str(uuid.uuid4()))
    ids = [str(uuid.uuid4()) for _ in range(MEMBERS)]
    redis.set(f"{base}.s", MEMBERS)
    redis.zadd(f"{base}.j", {json.dumps([1, task_id, "SUCCESS", n]): n for n, task_id in enumerate(ids)})
    redis.sadd(f"{base}.d", *(f"{task_id}:{n}" for n, task_id in enumerate(ids)))
    for part in "sjd":
        _age(redis, f"{base}.{part}", 2 * _DAY_S)


def _forget(redis: Redis, now: datetime) -> None:
    """Leave a quarantine whose run nobody remembers."""
    run_id = f"{now - timedelta(days=FORGOTTEN_D):%Y%m%dT%H%M%SZ}-queue-backlog-{secrets.token_hex(3)}"
    for n in range(FORGOTTEN):
        task_id = str(uuid.uuid4())
        headers = {"lang": "py", "task": "shop.send_receipt", "id": task_id, "retries": 0, "root_id": task_id}
        properties = {"correlation_id": task_id, "delivery_mode": 2, "priority": 0, "delivery_tag": str(uuid.uuid4())}
        properties["delivery_info"] = {"exchange": "", "routing_key": "emails"}
        body = json.dumps([[n], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
        kinds = {"content-encoding": "utf-8", "content-type": "application/json"}
        redis.lpush(
            _KEYS.quarantine(run_id, "emails"),
            json.dumps({"body": body, **kinds, "headers": headers, "properties": properties}),
        )
    redis.hset(_KEYS.journal(run_id), "run", json.dumps({"run": run_id, "host": socket.gethostname()}))


def _answer(redis: Redis) -> None:
    """Leave a list of answers that nobody has touched for hours: only a key that is restored can be as old as that."""
    key = _KEYS.reply_list(str(uuid.uuid4()))
    redis.rpush(key, json.dumps({"body": "", "headers": {"ticket": str(uuid.uuid4())}}))
    _age(redis, key, IDLE_S)
