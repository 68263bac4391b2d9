"""An embedded server → targets and brokers on it, users with fewer rights, and all that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis import Redis

from opslib.broker import Broker, connect
from opslib.embedded.server import Server
from opslib.settings import Target

NAME = "trial"
PASSWORD = "correct-horse"
#: Who may look and not touch, as docs/safety.md has it.
READ_ONLY = (
    "resetkeys ~* resetchannels nocommands +@read +@connection -@dangerous +info +role +time +slowlog|get "
    "+slowlog|len +latency|latest +client|list +client|setname"
)
#: Who may carry out a plan.
READ_WRITE = (
    f"{READ_ONLY} &* +eval +evalsha +script|load +lmove +lpush +rpush +lrem +lpop +ltrim +hset +hdel +zadd +zrem "
    "+rename +renamenx +unlink +expire +pexpire +persist +xadd +set +incr +wait +publish"
)


def target(server: Server, **values: Any) -> Target:
    """Return a target on a server, named `trial` unless it says otherwise."""
    return Target(**{"name": NAME, "broker_url": server.url, **values})


def broker(server: Server, **values: Any) -> Broker:
    """Return open clients of a target on a server."""
    return connect(target(server, **values))


def user(client: Redis, rules: str, name: str = "limited") -> None:
    """Make a user with these rights, or give it them; `as_user` opens the door."""
    client.execute_command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules.split())


def as_user(server: Server, name: str = "limited") -> str:
    """Return the server's URL for that user."""
    parts = urlsplit(server.url)
    return urlunsplit(parts._replace(netloc=f"{name}:{PASSWORD}@{parts.hostname}:{parts.port}"))


def elsewhere(found: Broker, url: str) -> Broker:
    """Return the same broker, reached by another way: through a proxy, or as another user."""
    twin = connect(Target(**{**_fields(found.target), "broker_url": url}))
    return replace(twin, information=found.information)


def dump(client: Redis) -> Mapping[bytes, tuple[bytes, int]]:
    """Return every key of the database with its serialised value, and whether it expires."""
    return {key: (client.dump(key), client.pttl(key) >= 0) for key in sorted(client.scan_iter())}


def _fields(found: Target) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__struct_fields__}
