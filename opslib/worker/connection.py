"""
A Celery application → one client of its broker for the notes that a worker makes, and what the keys there are called.

It connects when it is used first, and a forked process gets connections of its own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from opslib.keys import Keyspace
from opslib.worker import transport

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

_clients: WeakKeyDictionary[Celery, Redis] = WeakKeyDictionary()
_making = threading.Lock()


def client(app: Celery) -> Redis:
    """
    Return the client of an application's broker; one that could not be made is tried again the next time.

    Raises:
        SettingsError: If the broker is not Redis.
    """
    with _making:
        if app not in _clients:
            _clients[app] = transport.connect(app)
        return _clients[app]


def keys(app: Celery) -> Keyspace:
    """Return the names of the keys in the application's broker."""
    options = app.conf.broker_transport_options or {}
    return Keyspace(prefix=str(options.get("global_keyprefix") or ""))
