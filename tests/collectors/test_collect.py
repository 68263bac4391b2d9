"""One look at everything, a second at what looks wrong; it changes nothing, and says what it did not see."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from opslib.collectors.deployment import collect
from opslib.collectors.parts import depths, nodes, reach
from opslib.demo import server as embedded
from opslib.errors import BrokerRefused, BrokerUnreachable
from opslib.findings import Verdict, verdict
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan
from tests.support import servers
from tests.support.odd import CANARY, ODD
from tests.support.seed import bind, envelope, seed_result, seed_unacked, seed_waiting

#: All that a look may ask of a server: the last line is the control plane's, and takes away what it put there.
ALLOWED = {
    *("PING", "HELLO", "AUTH", "SELECT", "CLIENT", "INFO", "TIME", "DBSIZE", "SCAN", "TYPE", "MEMORY"),
    *("LLEN", "LRANGE", "LINDEX", "SMEMBERS", "HLEN", "HSTRLEN", "HMGET", "HSCAN", "ZCARD", "ZRANGE"),
    *("GETRANGE", "STRLEN", "PTTL", "LPOS", "PSUBSCRIBE"),
    *("SADD", "PUBLISH", "BRPOP", "SREM", "DEL"),
}


@contextmanager
def overheard(redis) -> Iterator[list[str]]:
    """Fill a list with every command that the server got in the block, and end it with the last."""
    said: list[str] = []
    with redis.monitor() as monitor:
        yield said
        redis.echo("the end")
        for line in monitor.listen():
            if line["command"].startswith("ECHO"):
                return
            if line["client_type"] != "lua":
                said.append(line["command"])


def codes(snapshot):
    """Return the codes of what is found, with the default thresholds."""
    return {finding.code for finding in diagnose(snapshot, Thresholds())}


def test_a_look_asks_only_for_what_it_may(broker, redis):
    """No command that scans everything at once, blocks the server or changes a setting."""
    for _ in range(5):
        seed_waiting(redis)
    seed_unacked(redis)
    seed_unacked(redis, indexed=False)
    seed_result(redis, "STARTED")

    with overheard(redis) as said:
        collect(broker, settle="0.01s")

    assert {command.split()[0].upper() for command in said} <= ALLOWED
    assert not [command for command in said if command.startswith("LRANGE") and command.endswith(" 0 -1")]
    assert not [command for command in said if command.startswith("CLIENT") and "KILL" in command]


def test_a_look_changes_nothing(broker, redis):
    """The same keys, with the same bytes and the same lives."""
    seed_waiting(redis, priority=9)
    seed_unacked(redis)
    seed_result(redis, "STARTED")
    bind(redis, "orders", "orders-new", routing_key="new")
    before = servers.dump(redis)

    collect(broker, settle="0.01s")
    depths(broker)
    nodes(broker)
    reach(broker)

    assert servers.dump(redis) == before


def test_a_user_who_may_only_read_sees_all_but_the_nodes(broker, redis, server):
    """And the verdict says that something was not seen."""
    servers.user(redis, servers.READ_ONLY)
    limited = servers.elsewhere(broker, servers.as_user(server))
    seeded = seed_unacked(redis)
    waiting = seed_waiting(redis, retries=1)
    before = servers.dump(redis)

    snapshot = collect(limited, settle="0.01s")

    assert [row.task_id for row in snapshot.unacked] == [seeded.task_id]
    assert [row.task_id for row in snapshot.waiting] == [waiting.task_id]
    assert [row.place for row in snapshot.silent_places] == ["workers"]
    assert snapshot.server.consumers == 0
    assert servers.dump(redis) == before
    assert verdict(diagnose(snapshot, Thresholds())) is not Verdict.HEALTHY


def test_without_client_list_it_is_not_known_who_consumes(broker, redis, server):
    """The right is optional: the count is absent then, and the coverage says why."""
    servers.user(redis, f"{servers.READ_WRITE} +sadd +srem +del +brpop -client|list")
    limited = servers.elsewhere(broker, servers.as_user(server))
    seed_unacked(redis)

    snapshot = collect(limited, settle="0.01s")

    assert snapshot.server.consumers is None
    assert "CLIENT LIST" in next(row.note for row in snapshot.coverage if row.place == "server")


def test_nothing_wrong_needs_no_second_look(broker, redis):
    """A quiet system is told at once."""
    seed_waiting(redis)
    begun = time.monotonic()

    snapshot = collect(broker, settle="30s")

    assert snapshot.earlier is None
    assert time.monotonic() - begun < 10


def test_what_was_passing_is_gone_at_the_second_look(broker, redis, monkeypatch):
    """A delivery that is acknowledged between the looks was never an orphan."""
    gone, stays = seed_unacked(redis), seed_unacked(redis)

    def acknowledge(_):
        redis.hdel("unacked", gone.tag)
        redis.zrem("unacked_index", gone.tag)

    monkeypatch.setattr(time, "sleep", acknowledge)
    snapshot = collect(broker)

    assert [row.task_id for row in snapshot.unacked] == [stays.task_id]
    assert {row.task_id for row in snapshot.earlier.unacked} == {gone.task_id, stays.task_id}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_message_waiting_is_one_of_those_counted(broker, redis, case):
    """Whatever lies in a queue, it is counted, judged without an error, and its neighbours are seen."""
    bind(redis, "celery", "celery")
    before = seed_waiting(redis, retries=1)
    redis.lpush("celery", ODD[case])
    after = seed_waiting(redis, retries=1)

    snapshot = collect(broker, settle="0.01s")
    findings = diagnose(snapshot, Thresholds())

    (queue,) = snapshot.queues
    assert (queue.depth, queue.read, sum(queue.by_task.values())) == (3, 3, 3)
    assert {before.task_id, after.task_id} <= {row.task_id for row in snapshot.waiting}
    assert ("(unreadable)" in queue.by_task) is bool(snapshot.unreadable) is ("unreadable-message" in codes(snapshot))
    assert len(plan(snapshot, findings, max_actions=10)) <= 1


def test_all_odd_messages_at_once(broker, redis, tmp_path, monkeypatch):
    """None is loaded as code, and together they still are a queue."""
    monkeypatch.chdir(tmp_path)
    bind(redis, "celery", "celery")
    for raw in ODD.values():
        redis.lpush("celery", raw)
        redis.hset("unacked", str(time.monotonic_ns()), b"[" + raw + b', "", "celery"]')

    snapshot = collect(broker, settle="0.01s")
    findings = diagnose(snapshot, Thresholds())

    (queue,) = snapshot.queues
    assert (queue.depth, queue.read) == (len(ODD), len(ODD))
    assert len(snapshot.unacked) + sum(row.place == "unacked" for row in snapshot.unreadable) == len(ODD)
    assert plan(snapshot, findings, max_actions=1000).digest
    assert not Path(CANARY).exists()


def test_one_id_in_two_queues_is_seen_twice(broker, redis):
    """And so is one delivery tag; both copies would run."""
    seed_waiting(redis, task_id="twice", queue="mail")
    seed_waiting(redis, task_id="twice", queue="celery")
    tag = envelope()["properties"]["delivery_tag"]
    seed_waiting(redis, task_id="a", tag=tag, retries=1)
    seed_waiting(redis, task_id="b", tag=tag, retries=1)

    snapshot = collect(broker, settle="0.01s")

    assert sorted(row.queue for row in snapshot.waiting if row.task_id == "twice") == ["celery", "mail"]
    assert {"a", "b"} <= {row.task_id for row in snapshot.waiting}
    assert "duplicate-task-id" in codes(snapshot)


def test_an_applications_list_is_left_alone(broker, redis):
    """It is neither read nor judged, and it is said that it was left out."""
    redis.lpush("recent-searches", "shoes")
    seed_waiting(redis)

    snapshot = collect(broker)

    assert [queue.name for queue in snapshot.queues] == ["celery"]
    assert snapshot.unreadable == ()
    assert "recent-searches" in next(row.note for row in snapshot.coverage if row.place == "waiting")


@pytest.mark.parametrize("make", [lambda r: r.set("celery", "x"), lambda r: r.xadd("celery", {"a": "b"})])
def test_a_declared_queue_of_another_type_is_a_place_not_seen(broker, redis, make):
    """No error, and no healthy verdict either."""
    bind(redis, "celery", "celery")
    make(redis)

    snapshot = collect(broker, settle="0.01s")

    assert [row.place for row in snapshot.silent_places] == ["waiting"]
    assert verdict(diagnose(snapshot, Thresholds())) is Verdict.UNKNOWN


@pytest.mark.usefixtures("redis")
def test_a_queue_of_the_target_is_looked_at_though_it_is_empty(server):
    """An idle queue leaves no trace in Redis."""
    snapshot = collect(servers.broker(server, queues=["nightly"]), settle="0.01s")

    assert [(queue.name, queue.depth) for queue in snapshot.queues] == [("nightly", 0)]


@pytest.mark.parametrize(("limit", "silent"), [(4, 1), (5, 0)])
def test_messages_beyond_the_limit_are_not_seen(broker, redis, limit, silent):
    """The rest is named, and keeps the verdict from being healthy."""
    for _ in range(5):
        seed_waiting(redis)

    snapshot = collect(broker, max_messages=limit)

    assert [row.silent for row in snapshot.coverage if row.place == "waiting"] == [silent]


@pytest.mark.parametrize("place", ["keyspace", "results"])
def test_keys_beyond_the_limit_are_not_seen(redis, server, place):
    """In the broker's database, and in that of the results."""
    apart = servers.broker(server, result_backend=server.url[:-1] + "1")
    with server.client() as other:
        other.select({"keyspace": 0, "results": 1}[place])
        for number in range(600):
            other.set(f"celery-task-meta-{number}", json.dumps({"status": "SUCCESS"}))
    bind(redis, "celery", "celery")

    snapshot = collect(apart, max_keys=250)

    assert [row.place for row in snapshot.silent_places] == [place]
    assert verdict(diagnose(snapshot, Thresholds())) is not Verdict.HEALTHY


def test_an_empty_database_is_not_called_healthy(broker, redis, server):
    """It is the wrong place more often than a quiet one; what lies elsewhere is told."""
    redis.sadd("shop:_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
    with server.client() as other:
        other.select(3)
        seed_waiting(other)

    snapshot = collect(broker)

    (finding,) = diagnose(snapshot, Thresholds())
    assert finding.code == "cannot-see"
    assert "'shop:'" in finding.hint
    assert "3 (1 keys)" in finding.hint


def test_a_server_that_stops_answering_is_told_within_seconds(tmp_path):
    """On the way, not only at the start."""
    with embedded.start(tmp_path) as running:
        broker = servers.broker(running)
        running.stop()
        begun = time.monotonic()

        with pytest.raises(BrokerUnreachable):
            collect(broker)

    assert time.monotonic() - begun < 5


def test_a_user_without_the_right_to_look_is_told_so(broker, redis, server):
    """It is the permission that is missing, not the server."""
    servers.user(redis, "~* resetchannels nocommands +ping +info +hello +select +client|setname")
    limited = servers.elsewhere(broker, servers.as_user(server))

    with pytest.raises(BrokerRefused, match="does not permit"):
        collect(limited)
