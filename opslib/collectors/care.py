"""READ. Everything that other looks see, and what server, nodes and results say of their own health → one Snapshot."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from opslib import pidbox, refusals
from opslib.collectors import dead_letters as dead
from opslib.collectors import keyspace, looks, queues, task_rows, unacked
from opslib.durations import seconds
from opslib.errors import BadParameter
from opslib.facts.care import Care, NodeCare, Replica, ResultLife, ServerCare, SlowCommand, TaskCare
from opslib.facts.dead import DeadLetters
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

#: Results whose time to live is asked; of more, so many are taken evenly from all.
SAMPLE = 5_000
#: Rows of dead letters that are kept; all are counted and grouped.
_MOST_LETTERS = 5_000
_PAGE = 250
_SLOW_ENTRIES = 128
_MOST_VERSION = 40
#: Clocks of whole seconds, and a busy machine between two questions.
_SAME_MOMENT_S = 3.0
_KIB = 1024

_QUESTIONS = (
    pidbox.Call(method="stats"),
    pidbox.Call(method="conf"),
    pidbox.Call(method="report"),
    pidbox.Call(
        method="registered",
        arguments={"taskinfoitems": ["time_limit", "soft_time_limit", "acks_late", "reject_on_worker_lost"]},
    ),
)
_REGISTERED = re.compile(r"(?P<name>\S+)(?: \[(?P<fields>.*)\])?", re.DOTALL)
#: Of a node's report only this is read; the settings behind it may hold somebody's password.
_SOFTWARE = re.compile(r"\b(celery|kombu|redis):(\d[\w.]*)")
_REPORT_HEAD = 400
_REPLICA = re.compile(r"slave\d+")

T = TypeVar("T")


def checkup(
    broker: Broker,
    *,
    settle: str = "2s",
    answer_within: str = "1.5s",
    sample: int = SAMPLE,
    max_keys: int = keyspace.MAX_KEYS,
    max_messages: int = queues.MAX_MESSAGES,
) -> Snapshot:
    """
    Look at everything: what is under way, dead letters, and what server, nodes and results say of their health.

    Nothing is written but a reply list of the control plane, which is removed again.

    Args:
        settle: Pause between two looks: an orphan, and dead letters that grow, are told only by a second one.

        answer_within: How long a silent node is waited for, with a unit.

        sample: Results whose time to live is asked.

        max_keys: Keys visited per database at most; beyond that the coverage is partial.

        max_messages: Waiting messages read at most, the next to be served first.

    Raises:
        BadParameter: If a sample has nothing in it.

        BrokerUnreachable: If the server stops answering on the way.

        BrokerRefused: If it refuses what every look needs.
    """
    if sample < 1:
        raise BadParameter(f"sample: {sample} is no number of results.", hint="5000 is the default; 1 is the least.")
    pause_s, timeout_s = seconds(settle, "settle"), seconds(answer_within, "answer_within")
    with refusals.explained(broker.target.shown_broker):
        found, keys_coverage = keyspace.read(broker, max_keys=max_keys)
        began = time.monotonic()
        before = dead.marks(broker, _dead_lists(broker, found, ()))
        seen = looks.first(
            broker, found, keys_coverage, timeout_s=timeout_s, max_keys=max_keys, max_messages=max_messages
        )
        letters, letters_coverage = _letters(broker, found, seen, timeout_s=timeout_s, max_keys=max_keys)
        care, care_coverage = read(broker, found.results, seen, timeout_s=timeout_s, sample=sample)
        unsettled = looks.unsettled(seen)
        if unsettled or before:
            time.sleep(max(0.0, pause_s - (time.monotonic() - began)))
        if unsettled:
            seen = looks.second(broker, found, seen, timeout_s=timeout_s)
        if before:
            letters = dead.again(broker, letters, before)
    statuses, tables_coverage = task_rows.overall(broker.target)
    coverage = (*seen.coverage, *letters_coverage, *care_coverage, *tables_coverage)
    return replace(seen, letters=letters, care=care, statuses=tuple(statuses), coverage=coverage)


def read(
    broker: Broker, known: Sequence[bytes], seen: Snapshot, *, timeout_s: float, sample: int
) -> tuple[Care, list[Coverage]]:
    """
    Ask server, nodes and results how they are.

    Args:
        known: Keys of results that a pass over the broker's database met.

        seen: Who answers.
    """
    server, server_rows = _server(broker)
    nodes, nodes_row = _nodes(broker, seen, timeout_s=timeout_s)
    life, life_row = _results(broker, known, sample)
    return Care(server=server, nodes=nodes, results=life), [*server_rows, nodes_row, *life_row]


# --- dead letters ---


def _dead_lists(broker: Broker, found: keyspace.Found, declared: Iterable[str]) -> list[str]:
    ours = {broker.keys.queue(name) for name in declared}
    return sorted(key for key in found.dead if key not in ours)


def _letters(
    broker: Broker, found: keyspace.Found, seen: Snapshot, *, timeout_s: float, max_keys: int
) -> tuple[DeadLetters, list[Coverage]]:
    """Read the dead letters; those whose tasks are in circulation again are none that nobody captured."""
    revoked, unasked = dead.revoked(broker, timeout_s=timeout_s)
    letters, (lists, stored) = dead.read(
        broker,
        _dead_lists(broker, found, (queue.name for queue in seen.queues)),
        now=seen.taken_at.timestamp(),
        known_results=found.results,
        revoked=revoked,
        max_letters=_MOST_LETTERS,
        max_keys=max_keys,
        elsewhere=lambda ids: _elsewhere(broker, found, seen, ids),
    )
    note = f"{unasked:,} node{'s' * (unasked != 1)} did not say what is revoked." if unasked else ""
    lists = replace(lists, note=" ".join(filter(None, (lists.note, note))))
    # The same keys were read for their states already; what is missing of them has its row.
    return letters, [lists] if stored.silent <= _silent(seen, "results") else [lists, stored]


def _silent(seen: Snapshot, place: str) -> int:
    return sum(row.silent for row in seen.coverage if row.place == place)


def _elsewhere(broker: Broker, found: keyspace.Found, seen: Snapshot, ids: frozenset[str]) -> set[str]:
    listings, _ = queues.lists(broker, [queue.name for queue in seen.queues])
    delivered, _, _ = unacked.read(broker, found.bindings, max_messages=looks.MAX_UNACKED)
    waiting = {row.task_id for row in queues.chosen(broker, listings, lambda each: each.task_id in ids)}
    under_way = {row.task_id for row in delivered} | {row.task_id for row in seen.held}
    return waiting | (under_way & ids) | dead.put_aside(broker, found.quarantined, ids)


# --- the server ---


def _server(broker: Broker) -> tuple[ServerCare, list[Coverage]]:
    info = cast("Mapping[str, Any]", broker.reads.info())
    now = broker.server_time().timestamp()  # of just now: a look takes its time, and what INFO says counts from here
    slow, slow_row = _slow(broker)
    saved_at = _saved_at(info, now)
    told = info.get("aof_enabled") is not None
    care = ServerCare(
        rss_bytes=_number(info.get("used_memory_rss")),
        fragmentation=_ratio(info.get("mem_fragmentation_ratio")),
        maxclients=_number(info.get("maxclients")),
        rejected=_number(info.get("rejected_connections")),
        evicted=_number(info.get("evicted_keys")),
        aof=bool(info["aof_enabled"]) if told else None,
        aof_failed="err" in {info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")},
        save_failed=info.get("rdb_last_bgsave_status") == "err",
        save_age_s=None if saved_at is None else max(0.0, now - saved_at),
        unsaved=_number(info.get("rdb_changes_since_last_save")),
        saves=_saves(broker),
        replicas=_replicas(info),
        master_link=str(info.get("master_link_status", "")),
        slow=slow,
    )
    return care, [_persistence(care), slow_row]


def _saved_at(info: Mapping[str, Any], now: float) -> int | None:
    """Return when the server saved last; one that has not, since it started, names that instant in place of it."""
    saved_at, saves = _number(info.get("rdb_last_save_time")), _number(info.get("rdb_saves"))
    if saves is not None:
        return saved_at if saves else None
    started_at = now - int(info.get("uptime_in_seconds", 0))  # Redis 6.2 does not count
    return saved_at if saved_at is not None and saved_at > started_at + _SAME_MOMENT_S else None


def _saves(broker: Broker) -> str | None:
    """Return when the server saves by itself; None where CONFIG is refused, and the documented users have it not."""
    from redis.exceptions import ResponseError

    try:
        said = cast("Mapping[str, Any]", broker.reads.config_get("save"))
    except ResponseError:
        return None
    return str(said["save"]) if "save" in said else None


def _persistence(care: ServerCare) -> Coverage:
    """Say whether it is known how the server keeps its data; what it did since it started tells it as well."""
    if care.aof is None:
        note = "INFO has nothing about persistence; ask whoever runs the server."
        return Coverage(place="persistence", seen=0, silent=1, note=note)
    if care.saves is None and not care.aof and care.save_age_s is None:
        note = "CONFIG GET is not permitted, and no snapshot was taken since it started: will one be?"
        return Coverage(place="persistence", seen=0, silent=1, note=note)
    note = "" if care.saves is not None else "CONFIG GET is not permitted; judged by what the server has done."
    return Coverage(place="persistence", seen=1, note=note)


def _replicas(info: Mapping[str, Any]) -> tuple[Replica, ...]:
    offset = _number(info.get("master_repl_offset")) or 0
    return tuple(
        Replica(
            name=f"{value.get('ip', '')}:{value.get('port', '')}",
            state=str(value.get("state", "")),
            lag_s=_ratio(value.get("lag")),
            behind_bytes=max(0, offset - int(value.get("offset", offset))),
        )
        for name, value in sorted(info.items())
        if _REPLICA.fullmatch(name) and isinstance(value, dict)
    )


def _slow(broker: Broker) -> tuple[tuple[SlowCommand, ...], Coverage]:
    """Read the slow log; of each command only its name is kept, for what stands behind it may be anybody's data."""
    from redis.exceptions import ResponseError

    try:
        entries = broker.reads.slowlog_get(_SLOW_ENTRIES)
    except ResponseError:
        note = "SLOWLOG is not permitted, so nobody knows what holds the server up."
        return (), Coverage(place="slow log", seen=0, silent=1, note=note)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        name = bytes(entry.get("command") or b"").partition(b" ")[0].decode("ascii", "replace").upper()
        by_name.setdefault(name[:_MOST_VERSION], []).append(entry)
    rows = [
        SlowCommand(
            name=name,
            count=len(each),
            longest_s=max(int(entry["duration"]) for entry in each) / 1e6,
            last_at=float(max(int(entry["start_time"]) for entry in each)),
        )
        for name, each in by_name.items()
    ]
    rows.sort(key=lambda row: (-row.longest_s, row.name))
    return tuple(rows), Coverage(place="slow log", seen=len(entries))


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _ratio(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


# --- the nodes ---


class _Pool(msgspec.Struct):
    timeouts: Any = None
    most_tasks: Any = msgspec.field(name="max-tasks-per-child", default=None)


class _Stats(msgspec.Struct):
    pool: _Pool = msgspec.field(default_factory=_Pool)


class _Conf(msgspec.Struct):
    """The settings that are judged; no other is kept, whatever it is called."""

    result_expires: Any = msgspec.UNSET
    worker_max_memory_per_child: Any = None


class _Report(msgspec.Struct):
    ok: str = ""


@dataclass(frozen=True, slots=True)
class _Said:
    stats: _Stats
    conf: _Conf
    report: _Report
    registered: list[str]


def _nodes(broker: Broker, seen: Snapshot, *, timeout_s: float) -> tuple[tuple[NodeCare, ...], Coverage]:
    """Ask every node how it is set up; one that answers other questions and not these is counted as silent."""
    from redis.exceptions import ResponseError

    expected = {node.name for node in seen.answering}
    if not expected:
        return (), Coverage(place="settings", seen=0)
    try:
        # Only those that answer: a silent one is known, and need not be waited for again.
        calls = [replace(each, destination=tuple(sorted(expected))) for each in _QUESTIONS]
        answers = pidbox.ask(broker, calls, timeout_s=timeout_s)
    except ResponseError as error:
        note = f"Nodes could not be asked for their settings: {str(error).rstrip('.')}."
        return (), Coverage(place="settings", seen=0, silent=len(expected), note=note)
    rows = []
    for name in sorted(answers.nodes):
        said = _said(name, answers.replies)
        if said is not None:
            rows.append(_node(name, said))
    missing = sorted(expected - {row.name for row in rows})
    note = f"How these are set up is not known: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}." if missing else ""
    return tuple(rows), Coverage(place="settings", seen=len(rows), silent=len(missing), note=note)


def _said(name: str, replies: Mapping[str, Mapping[str, bytes]]) -> _Said | None:
    stats = _convert(replies["stats"].get(name), _Stats)
    conf = _convert(replies["conf"].get(name), _Conf)
    report = _convert(replies["report"].get(name), _Report)
    registered = _convert(replies["registered"].get(name), list[str])
    if stats is None or conf is None or report is None or registered is None:
        return None
    return _Said(stats, conf, report, registered)


def _node(name: str, said: _Said) -> NodeCare:
    timeouts = said.stats.pool.timeouts
    soft, hard = timeouts if isinstance(timeouts, list) and len(timeouts) == 2 else (None, None)
    most_tasks, most_kib = said.stats.pool.most_tasks, said.conf.worker_max_memory_per_child
    expires = said.conf.result_expires
    return NodeCare(
        name=name,
        time_limit_s=_limit(hard),
        soft_time_limit_s=_limit(soft),
        max_tasks_per_child=most_tasks if isinstance(most_tasks, int) and most_tasks > 0 else None,
        max_memory_per_child_bytes=most_kib * _KIB if isinstance(most_kib, int) and most_kib > 0 else None,
        results_for_ever=expires is None or (isinstance(expires, int | float) and expires <= 0),
        versions={("redis-py" if what == "redis" else what): version for what, version in _software(said.report.ok)},
        tasks=tuple(_task(line) for line in sorted(said.registered)),
    )


def _software(report: str) -> list[tuple[str, str]]:
    head = report[:_REPORT_HEAD].partition("platform ->")[0]
    return [(what, version[:_MOST_VERSION]) for what, version in _SOFTWARE.findall(head)]


def _task(line: str) -> TaskCare:
    found = _REGISTERED.match(line)
    if found is None:
        return TaskCare(name=line)
    fields = dict(part.partition("=")[::2] for part in (found["fields"] or "").split())
    return TaskCare(
        name=found["name"],
        time_limit_s=_limit(fields.get("time_limit")),
        soft_time_limit_s=_limit(fields.get("soft_time_limit")),
        acks_late=fields.get("acks_late") == "True",
        comes_back=fields.get("reject_on_worker_lost") == "True",
    )


def _limit(value: object) -> float | None:
    """Return a limit in seconds; 0 is none, and so is what nobody can read."""
    try:
        limit = float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        return None
    return limit if limit > 0 else None


def _convert(raw: bytes | None, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(raw or b"", type=kind)
    except msgspec.DecodeError:
        return None


# --- the results ---


def _results(broker: Broker, known: Sequence[bytes], sample: int) -> tuple[ResultLife | None, list[Coverage]]:
    """Ask how long some of the results live, taken evenly from all that there are."""
    from redis.exceptions import RedisError

    if broker.results is None:
        return None, []  # the look at the results has said so
    try:
        total, keys = len(known), _evenly(known, sample)
        if broker.results is not broker.reads:
            total, keys = _other_database(broker.results, broker.keys.result_root, sample)
        lives = [life for page in _pages(keys) for life in _lives(broker.results, page)]
    except RedisError as error:
        note = f"How long results live cannot be asked: {str(error).rstrip('.')}."
        return None, [Coverage(place="results' life", seen=0, silent=1, note=note)]
    looked = [life for life in lives if life != _GONE]
    gone, endless = len(lives) - len(looked), sum(each == _ENDLESS for each in looked)
    life = ResultLife(total=max(total - gone, len(looked)), looked=len(looked), endless=endless)
    note = "" if life.exact else f"Of {life.total:,} results a sample was asked for its time to live."
    return life, [Coverage(place="results' life", seen=life.looked, note=note)]


#: What the server says of a key without an end, and of one that is not there any more.
_ENDLESS, _GONE = -1, -2


def _evenly(keys: Sequence[bytes], sample: int) -> list[bytes]:
    if len(keys) <= sample:
        return list(keys)
    return [keys[at * len(keys) // sample] for at in range(sample)]


def _other_database(client: Redis, root: str, sample: int) -> tuple[int, list[bytes]]:
    """Return how many keys there are, and the first of those that are results; SCAN meets them in no order."""
    cursor, keys, start, visited, total = 0, list[bytes](), root.encode(), 0, int(client.dbsize())
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, count=_PAGE))
        visited += len(names)
        keys += [name for name in names if name.startswith(start)]
        if cursor == 0:
            return len(keys), keys[:sample]
        if len(keys) >= sample:
            return round(total * len(keys) / max(1, visited)), keys[:sample]
        if visited > 20 * sample:
            return round(total * len(keys) / visited), keys


def _pages(keys: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    return (keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE))


def _lives(client: Redis, keys: Sequence[bytes]) -> list[int]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.pttl(key)
        return cast("list[int]", pipe.execute())
