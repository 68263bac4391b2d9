"""What the server says of itself becomes one row; what it hides is absent."""

from __future__ import annotations

import threading

from opslib.collectors import server as collector
from tests.support.seed import seed_waiting
from tests.support.waiting import until


def test_the_server_is_described(broker, redis, server):
    """Product, role, limits, and the keys of every database."""
    seed_waiting(redis)
    with server.client() as other:
        other.select(5)
        other.set("a", 1)

    info, coverage = collector.read(broker)

    assert (info.product, info.role, info.mode, info.database) == ("Valkey", "master", "standalone", 0)
    assert (info.keys, dict(info.other_databases)) == (1, {5: 1})
    assert (info.maxmemory_bytes, info.maxmemory_policy) == (256 * 1024**2, "noeviction")
    assert f"{info.run_id}/{info.replication_id}/0/" == broker.fingerprint
    assert (coverage.seen, coverage.silent) == (1, 0)


def test_connections_that_wait_for_work_are_counted(broker, server):
    """Those of this database, while they wait: one that merely did so last is none."""

    def consumers():
        return collector.read(broker)[0].consumers

    def consume(database):
        with server.client() as client:
            client.select(database)
            client.brpop(["celery"], timeout=1)

    assert consumers() == 0
    waiting = [threading.Thread(target=consume, args=(database,)) for database in (0, 0, 1)]
    for each in waiting:
        each.start()
    until(lambda: consumers() == 2, 5, "both wait")
    for each in waiting:
        each.join()
    assert consumers() == 0
