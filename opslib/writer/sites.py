"""A deployment → the databases that may be changed in it, each with a lock and journals of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from opslib.errors import OpsError

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker


def of(broker: Broker, *, unseen: list[OpsError] | None = None) -> Iterator[Broker]:
    """
    Yield the broker's database, then the result backend's, those of the application's keys and beat's, each once.

    Args:
        unseen: Gets what is wrong with those that do not answer, instead of an error that ends it.

    Raises:
        OpsError: On reaching one that does not answer; what was looked for may have been found before.
    """
    yield broker
    asked, known = {broker.reads}, {_identity(broker)}
    for client, url in _others(broker):
        if client in asked:
            continue
        asked.add(client)
        try:
            site = broker.elsewhere(client, url)
        except OpsError as error:
            if unseen is None:
                raise
            unseen.append(error)
            continue
        if _identity(site) not in known:
            known.add(_identity(site))
            yield site


def planned(broker: Broker, fingerprint: str) -> Broker:
    """Return the database that a plan was made for; the broker's, if it is none of them, where it is refused."""
    return next((site for site in of(broker) if site.fingerprint == fingerprint), broker)


def _others(broker: Broker) -> Iterator[tuple[Redis, str]]:
    if broker.results is not None:
        yield broker.results, broker.target.result_backend
    for name, client in broker.apps.items():
        yield client, broker.target.app_keys[name].url
    if broker.beat is not None:
        yield broker.beat, broker.target.beat_url


def _identity(site: Broker) -> tuple[object, int]:
    """Return what a database is known by, whichever URL leads to it: its server, and its number there."""
    return site.information.get("run_id") or site.target.broker_url, site.keys.database
