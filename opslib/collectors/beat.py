"""redbeat's keys, Django's tables, the nodes' configuration, the newest messages → the schedule, and who serves it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import pidbox, redact, refusals, urls
from opslib.collectors import django_beat, entries, keyspace, looks, queues, redbeat
from opslib.durations import seconds
from opslib.errors import OpsError
from opslib.facts.beat import BeatLock, ScheduleEntry, Schedules, SentTwice
from opslib.facts.snapshot import Snapshot, parts_of
from opslib.facts.system import Coverage
from opslib.keys import RedBeat, raw_name

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

#: Of each queue's list, so many of the newest messages are looked at for who has sent them.
_NEWEST = 200
#: Celery's beat sleeps no longer than this, and redbeat takes its lock for five times as long.
_INTERVAL_S, _LOCK_INTERVALS = 300.0, 5
#: By which name a configuration has beat look at Django's tables.
_DJANGO = ("django_celery_beat", "django")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """
    What redbeat keeps in Redis.

    Attributes:
        coverage: How much of it was read; None where there is no such schedule.

        elsewhere, site: See `Schedules`.
    """

    entries: tuple[ScheduleEntry, ...] = ()
    coverage: Coverage | None = None
    lock: BeatLock | None = None
    elsewhere: str = ""
    site: str = ""


_message = msgspec.json.Decoder(_Message).decode


def schedule(broker: Broker, *, answer_within: str = "1.5s", max_keys: int = keyspace.MAX_KEYS) -> Schedules:
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
        interval_s = conf.beat_max_loop_interval or _INTERVAL_S
        taken_for_s = (conf.redbeat_lock_timeout or interval_s * _LOCK_INTERVALS) if confs else None
        kept = _kept(broker, conf, taken_for_s)
        expected = str(conf.beat_scheduler).startswith(_DJANGO)
        django = django_beat.read(broker.target, seen.taken_at, expected=expected)
        names = {entry.name for entry in (*kept.entries, *django.entries)}
        known_to_nodes = list(entries.configured(conf.beat_schedule))
        unwritten = [row for row in known_to_nodes if row.name not in names]
        in_tables = [
            replace(row, is_static=any(row.name == each.name for each in known_to_nodes)) for row in django.entries
        ]
        twice, looked_at = _twice(broker, [queue.name for queue in seen.queues])
    own = [] if kept.entries or in_tables or kept.elsewhere or expected else unwritten  # it may be in beat's own file
    coverage = [*seen.coverage, *filter(None, [kept.coverage]), *django.coverage, *_coverage(seen, confs, own)]
    coverage.append(Coverage(place="newest messages", seen=looked_at, silent=0))
    every = (*kept.entries, *in_tables, *unwritten)
    return Schedules(
        **parts_of(seen, but={"coverage"}),
        coverage=tuple(coverage),
        entries=tuple(sorted(every, key=lambda row: (row.due_at is None, row.due_at or 0.0, row.name))),
        lock=kept.lock,
        interval_s=interval_s,
        twice=tuple(twice),
        elsewhere=kept.elsewhere,
        site=kept.site,
        told_at=django.told_at,
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
        made.beat_scheduler = made.beat_scheduler or conf.beat_scheduler
        made.beat_max_loop_interval = made.beat_max_loop_interval or conf.beat_max_loop_interval
        made.redbeat_key_prefix = made.redbeat_key_prefix or conf.redbeat_key_prefix
        made.redbeat_lock_timeout = made.redbeat_lock_timeout or conf.redbeat_lock_timeout
        made.redbeat_redis_url = made.redbeat_redis_url or conf.redbeat_redis_url
    return made


def _kept(broker: Broker, conf: _Conf, taken_for_s: float | None) -> _Kept:
    """
    Return what redbeat keeps, wherever that is: where the target says, or else where a node does.

    What a node says is enough to look into another database of the broker's own server, with the broker's own
    credentials. It is not enough to change anything there, nor to connect to another server.
    """
    keys = RedBeat(conf.redbeat_key_prefix or RedBeat().prefix)
    url, told = broker.target.beat_url, conf.redbeat_redis_url or ""
    if not url and (not told or urls.place(told) == urls.place(broker.target.broker_url)):
        return _read(broker.reads, keys, taken_for_s)
    shown = redact.url(url or told)
    try:
        with refusals.explained(shown):
            if url:
                site = broker.elsewhere(cast("Redis", broker.beat), url)
                kept = _read(site.reads, keys, taken_for_s)
                return kept if site is broker else replace(kept, elsewhere=shown, site=site.fingerprint)
            client = broker.beside(told)
            if client is not None:
                return replace(_read(client, keys, taken_for_s), elsewhere=shown)
    except OpsError as error:
        return _Kept(elsewhere=shown, coverage=Coverage(place="schedule", seen=0, silent=1, note=error.message))
    note = f"redbeat keeps it in {shown}; `beat_url` of the target lets this tool look there."
    return _Kept(elsewhere=shown, coverage=Coverage(place="schedule", seen=0, silent=1, note=note))


def _read(reads: Redis, keys: RedBeat, taken_for_s: float | None) -> _Kept:
    stored, coverage = redbeat.stored(reads, keys)
    return _Kept(entries=tuple(stored), coverage=coverage, lock=redbeat.lock(reads, keys, taken_for_s))


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


def _coverage(seen: Snapshot, confs: Sequence[_Conf], own: Sequence[ScheduleEntry]) -> Iterator[Coverage]:
    silent = max(0, seen.receivers - len(confs))
    note = f"{silent:,} node{'s' * (silent != 1)} did not tell its configuration." if silent else ""
    yield Coverage(place="configuration", seen=len(confs), silent=silent, note=note)
    if own:
        note = "When each entry last ran, and whether beat runs, is known to the file on the host of beat alone."
        yield Coverage(place="beat's own file", seen=0, silent=1, note=note)
