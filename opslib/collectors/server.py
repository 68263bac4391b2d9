"""INFO and CLIENT LIST → one ServerInfo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opslib.facts.system import Coverage, ServerInfo

if TYPE_CHECKING:
    from opslib.broker import Broker


def read(broker: Broker) -> tuple[ServerInfo, Coverage]:
    """Return the server's state; what the user may not see is absent, and the coverage says so."""
    from redis.exceptions import ResponseError

    info = broker.reads.info()
    try:
        consumers: int | None = _consumers(broker)
        note = ""
    except ResponseError:
        consumers, note = None, "CLIENT LIST is not permitted, so connections that consume are not counted."
    server = ServerInfo(
        product="Valkey" if "valkey_version" in info else "Redis",
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        role=str(info.get("role", "")),
        mode=str(info.get("redis_mode") or info.get("server_mode", "")),
        run_id=str(info.get("run_id", "")),
        replication_id=str(info.get("master_replid", "")),
        database=broker.keys.database,
        keys=_keys(info, broker.keys.database),
        other_databases=_others(info, broker.keys.database),
        uptime_s=int(info.get("uptime_in_seconds", 0)),
        used_memory_bytes=int(info.get("used_memory", 0)),
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        maxmemory_policy=str(info.get("maxmemory_policy", "")),
        connected_clients=int(info.get("connected_clients", 0)),
        consumers=consumers,
    )
    return server, Coverage(place="server", seen=1, note=note)


def _consumers(broker: Broker) -> int:
    """
    Count connections blocked in BRPOP on this database; a worker that waits for work holds one of them.

    `cmd` is the last command, also of a connection that idles, so the flag b (blocked) counts too.
    """
    clients = broker.reads.client_list()
    here = str(broker.keys.database)
    return sum(1 for c in clients if c.get("cmd") == "brpop" and "b" in c.get("flags", "") and c.get("db") == here)


def _keys(info: dict[str, Any], database: int) -> int:
    return int(info.get(f"db{database}", {}).get("keys", 0))


def _others(info: dict[str, Any], database: int) -> dict[int, int]:
    return {
        int(name[2:]): int(value.get("keys", 0))
        for name, value in info.items()
        if name.startswith("db") and name[2:].isdigit() and int(name[2:]) != database and isinstance(value, dict)
    }
