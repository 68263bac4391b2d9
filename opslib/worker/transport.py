"""
A Celery application → a client of its broker, made from what kombu itself makes of the application's settings.

So whatever leads a worker to its messages leads its notes and dead letters there too: TLS, Sentinel, sockets, logins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opslib.errors import SettingsError

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

#: To connect, and to be answered.
TIMEOUT_S = 1.0
CLIENT_NAME = "opslib-worker"


def connect(app: Celery, url: str = "") -> Redis:
    """
    Return a client that repeats nothing, and waits for nothing long; the server has answered once by then.

    A channel of kombu's is made, for the sake of its connection pool, and left at that: it consumes nothing and has no
    acknowledgements, so it restores no messages (facts §2.3).

    Args:
        url: Another Redis than the broker; what else the application's settings say holds for it too.

    Raises:
        SettingsError: If the broker is not Redis.
        RedisError: If it does not answer.
    """
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = {
        "ack_emulation": False,
        "max_connections": None,
        "retry_on_timeout": False,
        "socket_connect_timeout": TIMEOUT_S,
        "socket_timeout": TIMEOUT_S,
    }
    connection: Any = app.connection_for_write(url or None, transport_options=options)
    transport = connection.transport
    if transport.driver_type != "redis":
        raise SettingsError(f"The broker is of type {transport.driver_type}, and not Redis.")
    # Not `connection.channel()`, which tries again for seconds.
    channel = transport.create_channel(transport)
    pool = channel.pool
    channel.async_pool.disconnect()  # by which it has asked whether there is a server
    # A command that is repeated by the client is a command that is made twice.
    pool.connection_kwargs |= {"client_name": CLIENT_NAME, "retry": Retry(NoBackoff(), 0)}
    client = Redis(connection_pool=pool)
    client.opslib_channel = channel  # type: ignore[attr-defined]  # lives as long as its connections
    return client
