"""What the server says of itself → memory, eviction, persistence, version, connections, replicas, slow commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from opslib import sizes
from opslib.durations import spell
from opslib.facts.care import Care
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity

RUNBOOK = "health-check"
#: From here on a server with a limit is about to refuse what workers write.
_FULL_PERCENT = 95
#: Below so much waste nobody cares about a ratio: an empty server has one of ten.
_WASTE_BYTES, _WASTE_RATIO = 256 * 2**20, 1.5
_SWAPPED_BYTES, _SWAPPED_RATIO = 100 * 2**20, 0.9
_REPLICA_LAG_S, _REPLICA_BEHIND_BYTES = 30.0, 16 * 2**20
_DAY_S = 86400.0
#: The first release of each series in which CVE-2025-49844 is mended: until then, who may send a script may run code on
#: the server. A series that is not here and is older than the last has no such release.
_MENDED: Mapping[str, Mapping[tuple[int, int], tuple[int, int, int]]] = {
    "Redis": {(6, 2): (6, 2, 20), (7, 2): (7, 2, 11), (7, 4): (7, 4, 6), (8, 0): (8, 0, 4), (8, 2): (8, 2, 2)},
    "Valkey": {(7, 2): (7, 2, 11), (8, 0): (8, 0, 6), (8, 1): (8, 1, 4)},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """
    When a server counts as unwell.

    Attributes:
        memory_bytes: Memory that it may use.

        full_percent: Share of a limit from which it is nearly used up.

        save_after_s: How old its last snapshot may be while changes are not saved.

        slow_s: How long a command may hold it up.
    """

    memory_bytes: int = 10**9
    full_percent: int = 80
    save_after_s: float = _DAY_S
    slow_s: float = 0.1


def judge(snapshot: Snapshot, care: Care, limits: Limits) -> Iterator[Finding]:
    """Say what is wrong with the server itself. The boundaries count as wrong."""
    yield from _memory(snapshot, care, limits)
    yield from _eviction(snapshot, care)
    yield from _persistence(snapshot, care, limits)
    yield from _version(snapshot)
    yield from _slow(snapshot, care, limits)
    yield from _connections(snapshot, care, limits)
    yield from _replicas(snapshot, care)


def _finding(
    code: str,
    severity: Severity,
    subject: str,
    message: str,
    hint: str,
    runbook: str = RUNBOOK,
    **evidence: object,
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        subject=subject,
        message=message,
        evidence={name: value for name, value in evidence.items() if value is not None},
        hint=hint,
        runbook=runbook,
    )


def _memory(snapshot: Snapshot, care: Care, limits: Limits) -> Iterator[Finding]:
    server = snapshot.server
    used, most = server.used_memory_bytes, server.maxmemory_bytes
    if most and used * 100 >= most * limits.full_percent:
        critical = used * 100 >= most * max(_FULL_PERCENT, limits.full_percent)
        yield _finding(
            "redis-memory",
            Severity.CRITICAL if critical else Severity.ATTENTION,
            "maxmemory",
            f"{sizes.spell(used)} of {sizes.spell(most)} are used, {used * 100 // most} %; at the limit the server "
            "refuses what workers write, and no task can be acknowledged.",
            "Raise maxmemory, or let results expire sooner; see which queue is long. What is kept in quarantine counts "
            "too: `ops quarantine list`.",
            used_memory_bytes=used,
            maxmemory_bytes=most,
            policy=server.maxmemory_policy,
        )
    elif used >= limits.memory_bytes:
        limit = f"; its own limit is {sizes.spell(most)}" if most else ", and it has no limit of its own"
        yield _finding(
            "redis-memory",
            Severity.ATTENTION,
            "used_memory",
            f"It uses {sizes.spell(used)}; {sizes.spell(limits.memory_bytes)} are expected at most{limit}.",
            "See what grows: results without an end, a long queue, dead letters. If so much is normal here, say so by "
            "redis_memory in ops.toml.",
            used_memory_bytes=used,
            expected_bytes=limits.memory_bytes,
        )
    yield from _fragmentation(used, care)


def _fragmentation(used: int, care: Care) -> Iterator[Finding]:
    rss, ratio = care.server.rss_bytes, care.server.fragmentation
    if rss is None or ratio is None:
        return
    if ratio >= _WASTE_RATIO and rss - used >= _WASTE_BYTES:
        yield _finding(
            "redis-memory",
            Severity.ATTENTION,
            "fragmentation",
            f"It takes {sizes.spell(rss)} of the machine to keep {sizes.spell(used)}: {ratio:.1f} times as much.",
            "activedefrag gives it back while the server runs; a restart does too, if it saves its data.",
            resident_bytes=rss,
            used_memory_bytes=used,
        )
    elif ratio < _SWAPPED_RATIO and used >= _SWAPPED_BYTES:
        yield _finding(
            "redis-memory",
            Severity.ATTENTION,
            "swap",
            f"Only {sizes.spell(rss)} of {sizes.spell(used)} are in memory: the rest was swapped to the disk.",
            "A swapped server answers slowly, and late at that. Give the machine more memory, or the server a limit.",
            resident_bytes=rss,
            used_memory_bytes=used,
        )


def _eviction(snapshot: Snapshot, care: Care) -> Iterator[Finding]:
    policy, most, evicted = (
        snapshot.server.maxmemory_policy,
        snapshot.server.maxmemory_bytes,
        care.server.evicted,
    )
    if policy == "noeviction":
        return
    if not policy:
        yield _finding(
            "redis-eviction",
            Severity.UNKNOWN,
            "maxmemory-policy",
            "The server does not say what it does once its memory is full.",
            "Ask whoever runs it; for a broker it has to be noeviction.",
        )
        return
    only_expiring = policy.startswith("volatile-")
    what = "results and whatever else has an expiry" if only_expiring else "any key: queues, routes, unacked messages"
    when = f"once {sizes.spell(most)} are used" if most else "as soon as somebody sets a limit; it has none now"
    lost = f" It has thrown away {evicted:,} keys since it started." if evicted else ""
    yield _finding(
        "redis-eviction",
        Severity.CRITICAL if most and not only_expiring else Severity.ATTENTION,
        "maxmemory-policy",
        f"The policy is {policy}: it throws away {what}, {when}.{lost}",
        "Set maxmemory-policy to noeviction, in the configuration file too. A cache belongs on a server of its own.",
        policy=policy,
        maxmemory_bytes=most or None,
        evicted=evicted,
    )


def _persistence(snapshot: Snapshot, care: Care, limits: Limits) -> Iterator[Finding]:
    server = care.server
    if server.save_failed or server.aof_failed:
        what = "snapshot (RDB)" if server.save_failed else "file of changes (AOF)"
        yield _finding(
            "save-failing",
            Severity.CRITICAL,
            snapshot.broker,
            f"The last {what} could not be written. With stop-writes-on-bgsave-error the server takes no more writes, "
            "and no worker can acknowledge.",
            "See the server's log: a full disk, a missing right, or too little memory to fork.",
            "redis-backup",
            unsaved_changes=server.unsaved,
            last_save_s=server.save_age_s,
        )
        return
    told = next((row for row in snapshot.coverage if row.place == "persistence" and row.silent), None)
    if told is not None:
        yield _finding(
            "redis-persistence",
            Severity.UNKNOWN,
            "not told",
            f"Whether a restart of the server would lose messages is not known. {told.note}",
            "Ask whoever runs it. Once you know, and can live with it: -p accept=redis-persistence.",
        )
        return
    if server.aof is None or server.aof:
        return
    behind = (server.unsaved or 0) > 0
    since_s = server.save_age_s if server.save_age_s is not None else float(snapshot.server.uptime_s)
    if server.saves == "" and server.save_age_s is None:
        copies = sum(replica.state == "online" for replica in server.replicas)
        spare = f" It has {copies:,} replica{'s' * (copies != 1)}." if copies else ""
        yield _finding(
            "redis-persistence",
            Severity.ATTENTION,
            "off",
            "The server saves nothing: neither snapshots nor an append-only file. Once it ends, every message is "
            f"gone.{spare}",
            "Set appendonly yes, with appendfsync everysec, in the configuration file. Where tasks may be lost, accept "
            "it: -p accept=redis-persistence.",
            append_only=False,
            save="off",
        )
    elif behind and since_s >= limits.save_after_s and (server.saves is not None or server.save_age_s is not None):
        whose = "The last snapshot is" if server.save_age_s is not None else "No snapshot since it started,"
        yield _finding(
            "backup-old",
            Severity.ATTENTION,
            snapshot.broker,
            f"{whose} {spell(since_s)} {'old' if server.save_age_s is not None else 'ago'}, and there is no "
            f"append-only file: {server.unsaved or 0:,} changes since then would be lost.",
            "See why no newer one was taken (`save` in its configuration), or set appendonly yes.",
            "redis-backup",
            last_save_s=since_s,
            unsaved_changes=server.unsaved,
            save=server.saves,
        )


def _version(snapshot: Snapshot) -> Iterator[Finding]:
    server = snapshot.server
    version = _parts(server.version)
    series = _MENDED.get(server.product, {})
    if len(version) < 3 or not series:
        return
    mended = series.get((version[0], version[1]))
    if mended is None and version[:2] > max(series):
        return
    if mended is not None and version >= mended:
        return
    to = ".".join(map(str, mended)) if mended else "a series that is looked after"
    yield _finding(
        "redis-version",
        Severity.ATTENTION,
        f"{server.product} {server.version}",
        "By its number this release lets whoever may send a script run code on the server (CVE-2025-49844); a "
        "distribution may have mended it under the same number. Celery itself "
        "sends scripts, so its users may.",
        f"Upgrade to {to} or later; a restart with snapshots or an append-only file keeps the messages.",
        version=server.version,
        mended_in=to,
    )


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _slow(snapshot: Snapshot, care: Care, limits: Limits) -> Iterator[Finding]:
    told = next((row for row in snapshot.coverage if row.place == "slow log" and row.silent), None)
    if told is not None:
        yield _finding(
            "redis-slow",
            Severity.UNKNOWN,
            "slow log",
            told.note,
            "Give the user +slowlog|get. Where nobody can, and you live with it: -p accept=redis-slow.",
        )
    now = snapshot.taken_at.timestamp()
    for row in care.server.slow:
        ago_s = max(0.0, now - row.last_at)
        if row.longest_s < limits.slow_s or ago_s > _DAY_S:
            continue
        walks = row.name in {"KEYS", "FLUSHALL", "FLUSHDB", "SMEMBERS", "HGETALL", "LRANGE", "SORT"}
        yield _finding(
            "redis-slow",
            Severity.ATTENTION,
            row.name,
            f"{row.name} held the server up for {row.longest_s * 1000:,.0f} ms, the last time {spell(ago_s)} ago; "
            f"meanwhile nobody else was answered. It is in the slow log {row.count:,} time{'s' * (row.count != 1)}.",
            "It walks over all of something at once: SCAN and its like do the same in steps. `SLOWLOG GET` says who."
            if walks
            else "`SLOWLOG GET` shows all of it and who sent it. A swapped or busy machine makes any of them slow.",
            longest_ms=round(row.longest_s * 1000, 1),
            in_slow_log=row.count,
            last_s=ago_s,
        )


def _connections(snapshot: Snapshot, care: Care, limits: Limits) -> Iterator[Finding]:
    open_, most = snapshot.server.connected_clients, care.server.maxclients
    if most and open_ * 100 >= most * limits.full_percent:
        yield _finding(
            "redis-clients",
            Severity.CRITICAL if open_ * 100 >= most * max(_FULL_PERCENT, limits.full_percent) else Severity.ATTENTION,
            "maxclients",
            f"{open_:,} of {most:,} connections are taken; once none is left, no worker and no producer gets in.",
            "See who leaks them: `CLIENT LIST`. A worker needs a handful for each process; broker_pool_limit and "
            "redis_max_connections bound them.",
            connections=open_,
            maxclients=most,
            refused_since_start=care.server.rejected,
        )


def _replicas(snapshot: Snapshot, care: Care) -> Iterator[Finding]:
    if snapshot.server.role == "slave":
        down = care.server.master_link != "up"
        yield _finding(
            "redis-replica",
            Severity.CRITICAL if down else Severity.ATTENTION,
            "role",
            f"This server is a replica{', and its master does not answer it' if down else ''}: workers cannot take "
            "messages here, and what is seen may be old.",
            "Name the master in the target's URL, or a Sentinel.",
            master_link=care.server.master_link,
        )
    for replica in care.server.replicas:
        late = (replica.lag_s or 0) >= _REPLICA_LAG_S or replica.behind_bytes >= _REPLICA_BEHIND_BYTES
        if replica.state == "online" and not late:
            continue
        said = f"its state is {replica.state or 'not told'}" if replica.state != "online" else "it is behind"
        yield _finding(
            "redis-replica",
            Severity.ATTENTION,
            replica.name,
            f"The replica does not follow: {said}, {sizes.spell(replica.behind_bytes)} are missing there. A fail-over "
            "now would lose these messages.",
            "See the replica's log and the network between them; a backlog that is too small makes it begin anew again "
            "and again.",
            state=replica.state,
            lag_s=replica.lag_s,
            behind_bytes=replica.behind_bytes,
        )
