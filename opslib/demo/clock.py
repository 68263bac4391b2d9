"""The demo's schedule, as redbeat keeps it → what is left where its beat was killed, and the truth about that."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from opslib.demo.faults import Fault
from opslib.keys import RedBeat

if TYPE_CHECKING:
    from redis import Redis

#: So long ago its beat looked for the last time; redbeat takes its lock for 25 minutes.
KILLED_AGO_S, LOCK_S = 720.0, 1_500.0
THUMBNAILS, STATEMENT, NEWSLETTER = "thumbnails", "monthly-statement", "newsletter"
_KEYS = RedBeat()


def stop(redis: Redis) -> tuple[Fault, ...]:
    """Leave the schedule as a beat does that was killed: its lock stays, what is due is not sent; return the faults."""
    now = datetime.now(UTC)
    every_10_min = {"__type__": "interval", "every": 600.0, "relative": False}
    monthly = {
        "__type__": "crontab",
        "minute": 0,
        "hour": 6,
        "day_of_week": "*",
        "day_of_month": 1,
        "month_of_year": "*",
    }
    weekly = {
        "__type__": "crontab",
        "minute": 0,
        "hour": 9,
        "day_of_week": "mon",
        "day_of_month": "*",
        "month_of_year": "*",
    }
    last = now - timedelta(seconds=KILLED_AGO_S + 590)
    _write(redis, THUMBNAILS, "shop.resize_thumbnail", every_10_min, last, last + timedelta(seconds=600), args=[4411])
    _write(redis, STATEMENT, "shop.render_statement", monthly, now - timedelta(days=20), now + timedelta(days=10))
    _write(
        redis, NEWSLETTER, "shop.send_receipt", weekly, now - timedelta(days=9), now - timedelta(days=2), enabled=False
    )
    redis.set(_KEYS.lock, "5e0c1d4ab6", px=int((LOCK_S - KILLED_AGO_S) * 1000))
    return (
        Fault(
            name="killed-beat",
            code="schedule-overdue",
            subject=THUMBNAILS,
            task="shop.resize_thumbnail",
            what="Beat was killed ten seconds before it was due.",
            key=_KEYS.entry(THUMBNAILS),
            runbook="beat-schedule",
        ),
        Fault(
            name="killed-beat",
            code="beat-lock-stale",
            subject=_KEYS.lock,
            task="",
            what="The beat that was killed holds it, and keeps another one from beginning for 13 minutes more.",
            key=_KEYS.lock,
            runbook="beat-schedule",
        ),
        Fault(
            name="forgotten-schedule",
            code="schedule-broken",
            subject=STATEMENT,
            task="shop.render_statement",
            what="The task was renamed two releases ago, and its schedule was not.",
            key=_KEYS.entry(STATEMENT),
            runbook="beat-schedule",
        ),
    )


def _write(
    redis: Redis,
    name: str,
    task: str,
    schedule: dict[str, object],
    last: datetime,
    due: datetime,
    *,
    args: list[int] | None = None,
    enabled: bool = True,
) -> None:
    definition = {"name": name, "task": task, "args": args, "kwargs": {}, "options": {}, "schedule": schedule}
    parts = ("year", "month", "day", "hour", "minute", "second", "microsecond")
    ran = {"__type__": "datetime", **{each: getattr(last, each) for each in parts}, "timezone": "UTC"}
    key = _KEYS.entry(name)
    redis.hset(key, "definition", json.dumps({**definition, "enabled": enabled}))
    redis.hset(key, "meta", json.dumps({"last_run_at": ran, "total_run_count": 7}))
    redis.zadd(_KEYS.schedule, {key: int(due.timestamp())})
