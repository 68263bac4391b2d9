"""READ. INFO, the slow log and when the server saves → how the server is kept, and what holds it up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from opslib.facts.care import Replica, ServerCare, SlowCommand
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker

_SLOW_ENTRIES = 128
_MOST_NAME = 40
#: Clocks of whole seconds, and a busy machine between two questions.
_SAME_MOMENT_S = 3.0
_REPLICA = re.compile(r"slave\d+")


def read(broker: Broker) -> tuple[ServerCare, list[Coverage]]:
    """
    Return what the server says of its memory, its data on disk, its replicas and its slowest commands.

    Raises:
        redis.RedisError: If INFO is refused, or the server stops answering; what else is refused is in the coverage.
    """
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
        by_name.setdefault(name[:_MOST_NAME], []).append(entry)
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
