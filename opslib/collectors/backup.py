"""INFO, LASTSAVE, a few settings and one SCAN → how a server saves its data, and what its keys look like."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from opslib import redact, refusals, values
from opslib.collectors import keyspace, server, workers
from opslib.durations import seconds
from opslib.facts.backup import Census, Family, KeyPrint, Saves, Saving
from opslib.facts.system import Coverage
from opslib.keys import DEAD, OWN, Keyspace, key_name, raw_name

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker

#: Keys whose looks are remembered; of more, one of so many, chosen by its name.
MOST_PRINTS = 50_000
#: A collection of so many elements is known by all of them; of a longer list, so many at each end are.
WHOLE, END = 256, 64
#: A string is known by all of it up to so much, and beyond by so much at each end.
WHOLE_BYTES, END_BYTES = 1024 * 1024, 64 * 1024
#: A collection that weighs more is known by its length alone.
HEAVIEST_BYTES = 4 * 1024 * 1024
_PAGE = 100
#: Strings that are no longer than this are fetched together, a page of them at once.
_SHORT_BYTES = 16 * 1024
#: Families whose keys are Celery's or this tool's.
CELERY = (
    "queues",
    "unacked",
    "results",
    "groups",
    "bindings",
    "dead letters",
    "quarantine",
    "schedule",
    "opslib",
    "replies",
)


def saves(broker: Broker, *, answer_within: str = "1.5s") -> Saves:
    """
    Look at how the broker's server saves its data, who uses it, and what its keys look like.

    Raises:
        BrokerUnreachable: If it stops answering on the way.
    """
    timeout_s = seconds(answer_within, "answer_within")
    with refusals.explained(broker.target.shown_broker):
        taken_at = broker.server_time()
        info, server_coverage = server.read(broker)
        remembered = keyspace.remembered(broker)
        nodes, held, receivers, workers_coverage = workers.read(broker, timeout_s=timeout_s, remembered=remembered)
        state = saving(broker)
        found = census(broker.reads, broker.keys)
    return Saves(
        target=broker.target.name,
        broker=broker.target.shown_broker,
        fingerprint=broker.fingerprint,
        taken_at=taken_at,
        server=info,
        nodes=tuple(nodes),
        held=tuple(held),
        receivers=receivers,
        coverage=(server_coverage, workers_coverage, Coverage(place="keyspace", seen=found.keys)),
        saving=state,
        census=found,
    )


def saving(broker: Broker) -> Saving:
    """Return what the server says of its saving; what it does not tell is empty, and said."""
    client = broker.reads
    info: dict[str, Any] = dict(client.info())
    told, untold = _settings(client)
    points = told.get("save")
    return Saving(
        product="Valkey" if "valkey_version" in info else "Redis",
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        directory=told.get("dir", ""),
        file=told.get("dbfilename", ""),
        untold=untold,
        offered=_offers(client),
        save_points=points,
        aof=bool(info.get("aof_enabled", 0)),
        aof_folder=told.get("appenddirname", "") or told.get("appendfilename", ""),
        last_save_at=datetime.fromtimestamp(int(info.get("rdb_last_save_time", 0)), UTC),
        uptime_s=float(info.get("uptime_in_seconds", 0)),
        took_s=float(info.get("rdb_last_bgsave_time_sec", -1)),
        fork_s=float(info.get("latest_fork_usec", 0)) / 1e6,
        changes=int(info.get("rdb_changes_since_last_save", 0)),
        failing=info.get("rdb_last_bgsave_status") == "err",
        running=bool(info.get("rdb_bgsave_in_progress", 0)),
        used_bytes=int(info.get("used_memory", 0)),
        rss_bytes=int(info.get("used_memory_rss", 0)),
        limit_bytes=int(info.get("maxmemory", 0)),
        machine_bytes=int(info.get("total_system_memory", 0)),
        databases={
            int(name[2:]): int(value["keys"])
            for name, value in info.items()
            if name.startswith("db") and name[2:].isdigit() and isinstance(value, dict)
        },
        replicas=int(info.get("connected_slaves", 0)),
        elsewhere=_elsewhere(broker),
    )


def _settings(client: Redis) -> tuple[dict[str, str], str]:
    """Return the settings that say where a server writes; and why it does not tell, where it does not."""
    from redis.exceptions import ResponseError

    found: dict[str, str] = {}
    for name in ("dir", "dbfilename", "save", "appenddirname", "appendfilename"):
        try:
            found |= {_plain(key): _plain(value) for key, value in cast("Any", client.config_get(name)).items()}
        except ResponseError as error:
            said = redact.plain(" ".join(str(error).split()))[:200].rstrip(".")
            return found, f"The server does not say where it saves: {said}."
    return found, ""


def _offers(client: Redis) -> bool:
    """Whether the server has BGSAVE at all; one that does not tell may have it."""
    from redis.exceptions import ResponseError

    try:
        return "bgsave" in {_plain(name).lower() for name in cast("Any", client.command_list(pattern="bgsave"))}
    except ResponseError:  # before 7.0 nobody lists them
        return True


def _elsewhere(broker: Broker) -> tuple[str, ...]:
    """Return the databases of this deployment that are on other servers, or that do not say where they are."""
    from redis.exceptions import RedisError

    mine, found = broker.information.get("run_id"), []
    others = [(broker.results, broker.target.result_backend)] if broker.results else []
    others += [(client, broker.target.app_keys[name].url) for name, client in broker.apps.items()]
    for client, url in others:
        if client is broker.reads:
            continue
        try:
            theirs = client.info("server").get("run_id")
        except RedisError:
            theirs = None
        if theirs != mine:
            found.append(redact.url(url or broker.target.broker_url))
    if broker.results is None and broker.target.result_backend:
        found.append(broker.target.shown_results)
    return tuple(dict.fromkeys(found))


def census(client: Redis, space: Keyspace, *, one_of: int = 0) -> Census:
    """
    Visit every key of a database in small steps, count it, and remember what it looks like.

    Args:
        one_of: Look at one key of so many, the same ones each time; 0 for as few as memory allows.
    """
    seconds_, micros = client.time()
    now_ms = int(seconds_ * 1000 + micros / 1000)
    one_of = one_of or max(1, -(-client.dbsize() // MOST_PRINTS))
    prints: dict[str, KeyPrint] = {}
    seen, cursor = 0, 0
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", client.scan(cursor, count=keyspace.STEP))
        seen += len(names)
        chosen = [name for name in names if is_chosen(name, one_of)]
        for start in range(0, len(chosen), _PAGE):
            prints |= _look(client, space, chosen[start : start + _PAGE])
        if cursor == 0:
            break
    return Census(
        taken_at=datetime.fromtimestamp(now_ms / 1000, UTC),
        keys=seen,
        one_of=one_of,
        families=families(prints.values()),
        prints=prints,
    )


def is_chosen(name: bytes, one_of: int) -> bool:
    """Whether a key is one of those that are looked at."""
    return one_of == 1 or int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % one_of == 0


def families(prints: Any) -> tuple[Family, ...]:  # noqa: ANN401 - any iterable of KeyPrint
    """Return keys counted by family and type, in the order of CELERY, the others last."""
    keys: Counter[tuple[str, str]] = Counter()
    elements: Counter[tuple[str, str]] = Counter()
    for each in prints:
        keys[each.family, each.type] += 1
        elements[each.family, each.type] += each.elements
    order = {name: at for at, name in enumerate(CELERY)}
    ranked = sorted(keys, key=lambda pair: (order.get(pair[0], len(order)), pair))
    return tuple(Family(family=f, type=t, keys=keys[f, t], elements=elements[f, t]) for f, t in ranked)


def family(space: Keyspace, key: str, kind: str) -> str:
    """Return what a key is to Celery."""
    if key in {space.unacked, space.unacked_index}:
        return "unacked"
    if key.startswith(space.result_root):
        return "results"
    if key.startswith(space.group("")):
        return "groups"
    if key.startswith(f"{space.prefix}_kombu."):
        return "bindings"
    if key.startswith(f"{space.prefix}{OWN}"):
        return "quarantine" if space.quarantined(key) else "opslib"
    if key.removeprefix(space.prefix).startswith("redbeat"):
        return "schedule"
    if key.endswith(".reply.celery.pidbox"):
        return "replies"
    if kind == "list" and key.startswith(space.prefix):
        return "dead letters" if key.endswith(DEAD) else "queues"
    return "others"


def key_print(
    space: Keyspace, key: str, kind: str, elements: int, parts: Sequence[bytes], until: int | None
) -> KeyPrint:
    """Return what a key looks like, from all of its parts, or from those at both ends of a long list or string."""
    if kind == "zset":  # a range has them in their order, and a scan in none
        pairs = sorted(zip(parts[::2], parts[1::2], strict=True), key=lambda pair: (float(pair[1]), pair[0]))
        parts = [part for pair in pairs for part in pair]
    digest = values.digest(kind, parts) if parts else ""
    return KeyPrint(family=family(space, key, kind), type=kind, elements=elements, digest=digest, expires_at_ms=until)


_LENGTHS = {"string": "strlen", "list": "llen", "hash": "hlen", "set": "scard", "zset": "zcard", "stream": "xlen"}


def _look(client: Redis, space: Keyspace, names: Sequence[bytes]) -> dict[str, KeyPrint]:
    """Return what keys look like; one that vanishes or changes its type meanwhile is left out."""
    with client.pipeline(transaction=False) as pipe:
        pipe.time()  # a life is counted from when it was asked for, and a pass takes its time
        for name in names:
            pipe.type(name)
            pipe.pttl(name)
            pipe.memory_usage(name)
        (seconds_, micros), *said = pipe.execute()
    now_ms = int(seconds_ * 1000 + micros / 1000)
    kinds = [key_name(kind) for kind in said[::3]]
    lengths = _asked(client, [(name, _LENGTHS.get(kind, "")) for name, kind in zip(names, kinds, strict=True)])
    strings = [n for n, kind, length in zip(names, kinds, lengths, strict=True) if _is_short(kind, length)]
    short = _at_once(client, strings)
    found = {}
    for name, kind, life_ms, weight, length in zip(names, kinds, said[1::3], said[2::3], lengths, strict=True):
        if kind == "none" or not isinstance(length, int):
            continue
        parts = [short[name]] if name in short else _parts(client, name, kind, length, weight or 0)
        if parts is None:
            continue
        key = key_name(name)
        until = now_ms + life_ms if life_ms >= 0 else None
        found[key] = key_print(space, key, kind, length, parts, until)
    return found


def short_strings(client: Redis, names: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the values of those strings that are short, many at once: most keys are results."""
    lengths = _asked(client, [(name, "strlen") for name in names])
    return _at_once(client, [n for n, length in zip(names, lengths, strict=True) if _is_short("string", length)])


def _is_short(kind: str, length: object) -> bool:
    return kind == "string" and isinstance(length, int) and length <= _SHORT_BYTES


def _at_once(client: Redis, names: Sequence[bytes]) -> dict[bytes, bytes]:
    found = _asked(client, [(name, "get") for name in names])
    return {name: value for name, value in zip(names, found, strict=True) if isinstance(value, bytes)}


def _asked(client: Redis, questions: Sequence[tuple[bytes, str]]) -> list[Any]:
    if not questions:
        return []
    with client.pipeline(transaction=False) as pipe:
        for name, command in questions:
            getattr(pipe, command)(name) if command else pipe.exists(name)
        return list(pipe.execute(raise_on_error=False))


def _parts(client: Redis, name: bytes, kind: str, length: int, weight: int) -> list[bytes] | None:
    """Return what a key is known by; nothing for what is too large; None if it changed its type."""
    from redis.exceptions import ResponseError

    try:
        if kind == "string":
            if length <= WHOLE_BYTES:
                return [cast("bytes", client.get(name)) or b""]
            strings = client.getrange(name, 0, END_BYTES - 1), client.getrange(name, -END_BYTES, -1)
            return [cast("bytes", each) for each in strings]
        if kind == "list":
            if length > WHOLE:
                ends = client.lrange(name, 0, END - 1), client.lrange(name, -END, -1)
                return [part for end in ends for part in cast("list[bytes]", end)]
            return cast("list[bytes]", client.lrange(name, 0, WHOLE))
        if length > WHOLE or weight > HEAVIEST_BYTES:
            return []
        if kind == "hash":
            return [part for pair in cast("dict[bytes, bytes]", client.hgetall(name)).items() for part in pair]
        if kind == "set":
            return sorted(cast("set[bytes]", client.smembers(name)))
        if kind == "zset":
            pairs = cast("list[tuple[bytes, float]]", client.zrange(name, 0, -1, withscores=True))
            return [part for member, score in pairs for part in (member, repr(score).encode())]
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            return None
        raise
    return []


def elements(client: Redis, name: bytes, kind: str, *, window: int) -> Iterator[list[bytes]]:
    """Yield what a key holds in windows, so that none is ever whole in memory; what moves meanwhile may show twice."""
    if kind == "string":
        yield [cast("bytes", client.get(name)) or b""]
    elif kind == "list":
        start = 0
        while some := cast("list[bytes]", client.lrange(name, start, start + window - 1)):
            yield some
            start += len(some)
    elif kind == "hash":
        yield from _windows(
            (p for pair in client.hscan_iter(name, count=window) for p in cast("Any", pair)), 2 * window
        )
    elif kind == "set":
        yield from _windows(cast("Iterator[bytes]", client.sscan_iter(name, count=window)), window)
    elif kind == "zset":
        pairs = client.zscan_iter(name, count=window)
        yield from _windows((p for member, score in pairs for p in (member, repr(score).encode())), 2 * window)


def _windows(parts: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    for part in parts:
        some.append(part)
        if len(some) >= size:
            yield some
            some = []
    if some:
        yield some


def _plain(value: object) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def raw(key: str) -> bytes:
    """Return a key's name as the server spells it."""
    return raw_name(key)
