"""redbeat's keys → the entries of its schedule, and the lock of the beat that serves it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast
from zoneinfo import ZoneInfo

from opslib.collectors import entries
from opslib.envelope import digest
from opslib.facts.beat import REDBEAT, BeatLock, ScheduleEntry
from opslib.facts.system import Coverage
from opslib.keys import RedBeat, key_name, raw_name

if TYPE_CHECKING:
    from redis import Redis

_PAGE = 100


def stored(reads: Redis, keys: RedBeat) -> tuple[list[ScheduleEntry], Coverage | None]:
    """Return the entries of redbeat, and how many were not read; None where there is no such schedule."""
    name = raw_name(keys.schedule)
    if reads.type(name) != b"zset":
        return [], None
    rows = cast("list[tuple[bytes, float]]", reads.zrange(name, 0, entries.MOST - 1, withscores=True))
    rest = max(0, int(reads.zcard(name)) - len(rows))
    found = []
    for start in range(0, len(rows), _PAGE):
        page = rows[start : start + _PAGE]
        pipe = reads.pipeline(transaction=False)
        for key, _ in page:
            pipe.hstrlen(key, "definition")
            pipe.hmget(key, "definition", "meta")
        answers = pipe.execute(raise_on_error=False)
        found += [
            _entry(key_name(key), keys, score, size, values)
            for (key, score), size, values in zip(page, answers[::2], answers[1::2], strict=True)
        ]
    statics = _statics(reads, keys, [row.name for row in found])
    found = [replace(row, is_static=row.name in statics) for row in found]
    odd = sum(1 for row in found if row.problem)
    note = f"{rest:,} more were not looked at." if rest else ""
    return found, Coverage(place="schedule", seen=len(found), silent=rest + odd, note=note)


def lock(reads: Redis, keys: RedBeat, taken_for_s: float | None) -> BeatLock | None:
    """
    Return the lock of the beat that serves the schedule; None if nobody holds it.

    Args:
        taken_for_s: How long it is taken for, each time; None where nobody tells.
    """
    name = raw_name(keys.lock)
    if reads.type(name) != b"string":
        return None
    raw, life_ms = cast("bytes | None", reads.get(name)), int(reads.pttl(name))
    if raw is None:
        return None
    life_s = life_ms / 1000
    ago_s = taken_for_s - life_s if taken_for_s and 0 <= life_s <= taken_for_s else None
    return BeatLock(key=keys.lock, life_s=life_s if life_ms >= 0 else -1.0, renewed_ago_s=ago_s, sha256=digest(raw))


def _statics(reads: Redis, keys: RedBeat, names: Sequence[str]) -> set[str]:
    """Return those entries that a beat has written from the application's configuration."""
    name = raw_name(keys.statics)
    if not names or reads.type(name) != b"set":
        return set()
    said = cast("list[int]", reads.smismember(name, [raw_name(each) for each in names]))
    return {each for each, is_member in zip(names, said, strict=True) if is_member}


def _entry(key: str, keys: RedBeat, score: float, size: object, values: object) -> ScheduleEntry:
    row = ScheduleEntry(
        name=key.removeprefix(keys.prefix), source=REDBEAT, key=key, due_at=score if score >= 0 else None
    )
    if isinstance(size, Exception) or isinstance(values, Exception):
        return replace(row, problem="Its key is no hash of redbeat's.")
    if isinstance(size, int) and size > entries.LARGEST:
        return replace(row, problem=f"Its definition has {size:,} bytes.")
    definition, meta = cast("tuple[bytes | None, bytes | None]", values)
    if not definition:
        return replace(row, problem="It stands in the schedule and has no definition; beat drops it.")
    try:
        said, ran = json.loads(definition), json.loads(meta or b"{}")
        return replace(
            row,
            task=str(said.get("task") or ""),
            when=entries.every(said.get("schedule")),
            is_on=bool(said.get("enabled", True)),
            last_run_at=_moment(ran.get("last_run_at")),
            runs=entries.whole(ran.get("total_run_count")),
            sha256=digest(definition),
            **entries.aimed(entries.call(said)),
        )
    except (ValueError, TypeError, AttributeError, RecursionError, KeyError):
        return replace(row, problem="Its definition cannot be read.")


def _moment(value: Any) -> float | None:  # noqa: ANN401 - whatever JSON has there
    """Return an instant as redbeat writes it; naive ones are UTC."""
    if not isinstance(value, dict):
        return None
    zone = value.get("timezone", "UTC")
    tz = timezone(timedelta(seconds=zone)) if isinstance(zone, (int, float)) else ZoneInfo(str(zone))
    year, month, day, hour, minute, second, micro = (
        int(value[each]) for each in ("year", "month", "day", "hour", "minute", "second", "microsecond")
    )
    return datetime(year, month, day, hour, minute, second, micro, tzinfo=tz).astimezone(UTC).timestamp()
