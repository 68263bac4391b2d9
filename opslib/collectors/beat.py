"""redbeat's keys, the nodes' configuration and the newest messages → the schedule, the lock on it, who sends twice."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast
from zoneinfo import ZoneInfo

import msgspec

from opslib import pidbox, redact, refusals
from opslib.collectors import MAX_KEYS, keyspace, looks, queues
from opslib.durations import seconds, spell
from opslib.envelope import digest
from opslib.facts import BeatLock, Coverage, ScheduleEntry, Schedules, SentTwice, Snapshot
from opslib.facts.beat import CONFIGURATION, REDBEAT
from opslib.keys import RedBeat, key_name, raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Entries that are read; a schedule of more is told of as not wholly seen.
_MOST = 5_000
_PAGE = 100
_LARGEST = 256 * 1024
#: Of each queue's list, so many of the newest messages are looked at for who has sent them.
_NEWEST = 200
#: Celery's beat sleeps no longer than this, and redbeat takes its lock for five times as long.
_INTERVAL_S, _LOCK_INTERVALS = 300.0, 5
#: What an entry calls its task with.
_CALL: tuple[tuple[str, type], ...] = (("args", list), ("kwargs", dict), ("options", dict))
#: How a node spells a length of time: 0:02:00, or 1 day, 0:00:00.
_CLOCK = re.compile(r"(?:\d+ days?, )?\d+:\d\d:\d\d(?:\.\d+)?")


class _Conf(msgspec.Struct):
    """What a node says of its configuration, as far as it is about beat; what else it says is skipped."""

    beat_schedule: dict[str, Any] = {}
    beat_scheduler: str | None = None
    beat_max_loop_interval: float | None = None
    redbeat_key_prefix: str | None = None
    redbeat_lock_timeout: float | None = None
    redbeat_redis_url: str | None = None


class _Headers(msgspec.Struct):
    task: str = ""
    origin: str = ""
    retries: int | None = 0
    celery_beat_task: bool | None = False


class _Message(msgspec.Struct):
    headers: _Headers


_message = msgspec.json.Decoder(_Message).decode


def schedule(broker: Broker, *, answer_within: str = "1.5s", max_keys: int = MAX_KEYS) -> Schedules:
    """
    Look at the schedule of a deployment, at its nodes, and at how much waits.

    The file of Celery's own scheduler is not opened: it is on another host, and opening it runs what is in it.

    Args:
        answer_within: How long a silent node is waited for, with a unit.

    Raises:
        BrokerUnreachable: If the server stops answering on the way.
    """
    timeout_s = seconds(answer_within, "answer_within")
    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        seen = looks.around(broker, found, keys_coverage, timeout_s=timeout_s)
        confs = _configurations(broker, timeout_s) if seen.receivers else []
        conf = _agreed(confs)
        keys = RedBeat(conf.redbeat_key_prefix or RedBeat().prefix)
        elsewhere = _elsewhere(broker, conf)
        stored, unread = _stored(broker, keys)
        interval_s = conf.beat_max_loop_interval or _INTERVAL_S
        taken_for_s = (conf.redbeat_lock_timeout or interval_s * _LOCK_INTERVALS) if confs else None
        lock = _lock(broker, keys, taken_for_s)
        names = {entry.name for entry in stored}
        told = [row for row in _configured(conf.beat_schedule) if row.name not in names]
        twice, looked_at = _twice(broker, [queue.name for queue in seen.queues])
    coverage = [*seen.coverage, *_coverage(seen, confs, stored, unread, told, elsewhere)]
    coverage.append(Coverage(place="newest messages", seen=looked_at, silent=0))
    known = {each.name: getattr(seen, each.name) for each in fields(Snapshot)}
    known["coverage"] = tuple(coverage)
    return Schedules(
        **known,
        entries=tuple(sorted((*stored, *told), key=lambda row: (row.due_at is None, row.due_at or 0.0, row.name))),
        lock=lock,
        interval_s=interval_s,
        twice=tuple(twice),
        elsewhere=elsewhere,
    )


def _configurations(broker: Broker, timeout_s: float) -> list[_Conf]:
    call = pidbox.Call(method="conf", arguments={"with_defaults": False})
    answers = pidbox.ask(broker, [call], timeout_s=timeout_s)
    found = []
    for name, raw in sorted(answers.replies["conf"].items()):
        del name
        try:
            found.append(msgspec.convert(pidbox.read(raw), _Conf))
        except msgspec.ValidationError:
            continue
    return found


def _agreed(confs: Sequence[_Conf]) -> _Conf:
    """Return what the nodes say together: of each value the first that any of them has."""
    made = _Conf()
    for conf in confs:
        made.beat_schedule = {**conf.beat_schedule, **made.beat_schedule}
        made.beat_max_loop_interval = made.beat_max_loop_interval or conf.beat_max_loop_interval
        made.redbeat_key_prefix = made.redbeat_key_prefix or conf.redbeat_key_prefix
        made.redbeat_lock_timeout = made.redbeat_lock_timeout or conf.redbeat_lock_timeout
        made.redbeat_redis_url = made.redbeat_redis_url or conf.redbeat_redis_url
    return made


def _elsewhere(broker: Broker, conf: _Conf) -> str:
    """Return where redbeat keeps its schedule if that is not here, by server and database; empty if it is."""
    url = conf.redbeat_redis_url
    if not url or _place(url) == _place(broker.target.broker_url):
        return ""
    return redact.url(url)


def _place(url: str) -> str:
    """Return what of a URL says which database it is; the user is no part of it, and database 0 need not be said."""
    bare = url.partition("?")[0].rpartition("@")[2].rpartition("://")[2].rstrip("/")
    return bare if "/" in bare else f"{bare}/0"


def _stored(broker: Broker, keys: RedBeat) -> tuple[list[ScheduleEntry], Coverage | None]:
    """Return the entries of redbeat, and how many were not read; None where there is no such schedule."""
    reads = broker.reads
    name = raw_name(keys.schedule)
    if reads.type(name) != b"zset":
        return [], None
    rows = cast("list[tuple[bytes, float]]", reads.zrange(name, 0, _MOST - 1, withscores=True))
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
    statics = _statics(broker, keys, [row.name for row in found])
    found = [replace(row, is_static=row.name in statics) for row in found]
    odd = sum(1 for row in found if row.problem)
    note = f"{rest:,} more were not looked at." if rest else ""
    return found, Coverage(place="schedule", seen=len(found), silent=rest + odd, note=note)


def _statics(broker: Broker, keys: RedBeat, names: Sequence[str]) -> set[str]:
    """Return those entries that a beat has written from the application's configuration."""
    name = raw_name(keys.statics)
    if not names or broker.reads.type(name) != b"set":
        return set()
    said = cast("list[int]", broker.reads.smismember(name, [raw_name(each) for each in names]))
    return {each for each, is_member in zip(names, said, strict=True) if is_member}


def _entry(key: str, keys: RedBeat, score: float, size: object, values: object) -> ScheduleEntry:
    row = ScheduleEntry(
        name=key.removeprefix(keys.prefix), source=REDBEAT, key=key, due_at=score if score >= 0 else None
    )
    if isinstance(size, Exception) or isinstance(values, Exception):
        return _odd(row, "Its key is no hash of redbeat's.")
    if isinstance(size, int) and size > _LARGEST:
        return _odd(row, f"Its definition has {size:,} bytes.")
    definition, meta = cast("tuple[bytes | None, bytes | None]", values)
    if not definition:
        return _odd(row, "It stands in the schedule and has no definition; beat drops it.")
    try:
        said, ran = json.loads(definition), json.loads(meta or b"{}")
        call = {each: said.get(each) or kind() for each, kind in _CALL}
        return replace(
            row,
            task=str(said.get("task") or ""),
            when=_every(said.get("schedule")),
            is_on=bool(said.get("enabled", True)),
            last_run_at=_moment(ran.get("last_run_at")),
            runs=_whole(ran.get("total_run_count")),
            sha256=digest(definition),
            **_aimed(call),
        )
    except (ValueError, TypeError, AttributeError, RecursionError, KeyError):
        return _odd(row, "Its definition cannot be read.")


def _odd(row: ScheduleEntry, problem: str) -> ScheduleEntry:
    return replace(row, problem=problem)


def _aimed(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry's call says of where its tasks wait, and the call as it is kept."""
    options = call["options"]
    return {
        "queue": str(options.get("queue") or ""),
        "priority": _whole(options.get("priority")) or 0,
        "call": json.dumps(call),
    }


def _configured(schedule: Mapping[str, Any]) -> Iterator[ScheduleEntry]:
    """Return the entries that the nodes' configuration has; when they last ran, it does not say."""
    for name, said in sorted(schedule.items()):
        row = ScheduleEntry(name=name, source=CONFIGURATION)
        try:
            call = {
                each: said.get(each) or kind() for each, kind in (("args", list), ("kwargs", dict), ("options", dict))
            }
            yield replace(row, task=str(said["task"]), when=_every(said["schedule"]), **_aimed(call))
        except (KeyError, TypeError, AttributeError, ValueError):
            yield _odd(row, "The nodes' configuration does not tell what it does.")


def _every(schedule: object) -> str:
    """Return how often, in words: of seconds, of a crontab, of what a node spells for people."""
    if isinstance(schedule, (int, float)):
        return f"every {spell(float(schedule))}"
    if isinstance(schedule, dict):
        kind = schedule.get("__type__")
        if kind == "interval":
            return f"every {spell(float(schedule['every']))}"
        if kind == "crontab":
            fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
            return f"crontab {' '.join(str(schedule[each]) for each in fields)}"
        return str(kind or "")
    text = (
        str(schedule).removeprefix("<").removesuffix(">").replace(" (m/h/dM/MY/d)", "").replace("crontab:", "crontab")
    )
    return f"every {text}" if _CLOCK.fullmatch(text) else text


def _moment(value: object) -> float | None:
    """Return an instant as redbeat writes it; naive ones are UTC."""
    if not isinstance(value, dict):
        return None
    zone = value.get("timezone", "UTC")
    tz = timezone(timedelta(seconds=zone)) if isinstance(zone, (int, float)) else ZoneInfo(str(zone))
    year, month, day, hour, minute, second, micro = (
        int(value[each]) for each in ("year", "month", "day", "hour", "minute", "second", "microsecond")
    )
    return datetime(year, month, day, hour, minute, second, micro, tzinfo=tz).astimezone(UTC).timestamp()


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _lock(broker: Broker, keys: RedBeat, taken_for_s: float | None) -> BeatLock | None:
    name = raw_name(keys.lock)
    if broker.reads.type(name) != b"string":
        return None
    raw, life_ms = cast("bytes | None", broker.reads.get(name)), int(broker.reads.pttl(name))
    if raw is None:
        return None
    life_s = life_ms / 1000
    ago_s = taken_for_s - life_s if taken_for_s and 0 <= life_s <= taken_for_s else None
    return BeatLock(key=keys.lock, life_s=life_s if life_ms >= 0 else -1.0, renewed_ago_s=ago_s, sha256=digest(raw))


def _twice(broker: Broker, names: Sequence[str]) -> tuple[list[SentTwice], int]:
    """
    Return the tasks that two beats send by turns, as the newest messages tell, and how many messages those are.

    One that was restarted is another process too; but what it sent stands behind all that the old one had sent.
    """
    listings, _ = queues.lists(broker, names)
    found, count = [], 0
    for listing in listings:
        window = cast("list[bytes]", broker.reads.lrange(raw_name(listing.key), 0, _NEWEST - 1))
        count += len(window)
        senders = defaultdict[str, list[str]](list)
        for raw in reversed(window):
            try:
                head = _message(raw).headers
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if head.celery_beat_task and head.origin and not head.retries:  # a retry is sent by a node
                senders[head.task].append(head.origin)
        for task, origins in senders.items():
            turns = [origin for origin, _ in groupby(origins)]
            if len(turns) > len(set(turns)):
                by = tuple(sorted(set(turns)))
                found.append(SentTwice(task=task, queue=listing.queue, senders=by, messages=len(origins)))
    return found, count


def _coverage(
    seen: Snapshot,
    confs: Sequence[_Conf],
    stored: Sequence[ScheduleEntry],
    unread: Coverage | None,
    told: Sequence[ScheduleEntry],
    elsewhere: str,
) -> Iterator[Coverage]:
    if unread is not None:
        yield unread
    if elsewhere and not stored:
        yield Coverage(place="schedule", seen=0, silent=1, note=f"redbeat keeps it in {elsewhere}.")
    silent = max(0, seen.receivers - len(confs))
    note = f"{silent:,} node{'s' * (silent != 1)} did not tell its configuration." if silent else ""
    yield Coverage(place="configuration", seen=len(confs), silent=silent, note=note)
    if told and not stored and not elsewhere:
        note = "When each entry last ran, and whether beat runs, is known to the file on the host of beat alone."
        yield Coverage(place="beat's own file", seen=0, silent=1, note=note)
