"""A deployment → the databases that may be changed in it, each with a lock and journals of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib.keys import Keyspace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opslib.broker import Broker


def of(broker: Broker) -> Iterator[Broker]:
    """Yield the broker's database, and the result backend's where that is another one."""
    yield broker
    if broker.results is None or broker.results is broker.reads:
        return
    information = cast("Mapping[str, Any]", broker.results.info())
    database = int(broker.results.connection_pool.connection_kwargs.get("db") or 0)
    same_server = information.get("run_id") == broker.information.get("run_id")
    if same_server and database == broker.keys.database:
        return
    yield replace(
        broker,
        target=msgspec.structs.replace(broker.target, broker_url=broker.target.result_backend),
        reads=broker.results,
        keys=Keyspace(database=database, result_prefix=broker.keys.result_prefix),
        information=information,
    )


def planned(broker: Broker, fingerprint: str) -> Broker:
    """Return the database that a plan was made for; the broker's, if it is none of them, where it is refused."""
    if fingerprint == broker.fingerprint:
        return broker
    return next((site for site in of(broker) if site.fingerprint == fingerprint), broker)
