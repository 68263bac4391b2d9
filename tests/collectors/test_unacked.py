"""The unacked hash and its index are read from both sides, and an odd entry is a row like any other."""

from __future__ import annotations

import json
import math

import pytest

from opslib.collectors import keyspace, unacked
from opslib.collectors.unacked import _LARGEST_BYTES
from opslib.collectors.windows import WINDOW_BYTES
from tests.support.odd import ODD
from tests.support.seed import bind, envelope, seed_unacked


def read(broker, *, max_messages=1000):
    """Read with the routes that the keyspace has."""
    found, _ = keyspace.read(broker, max_keys=10_000)
    return unacked.read(broker, found.bindings, max_messages=max_messages)


def test_a_delivered_message_is_a_row(broker, redis):
    """With its queue, its bytes' digest and the instant of its delivery; the oldest comes first."""
    young, old = seed_unacked(redis, age_s=5), seed_unacked(redis, age_s=500, queue="mail")

    rows, odd, coverage = read(broker)

    assert [(row.task_id, row.queue, row.sha256, row.delivered_at) for row in rows] == [
        (each.task_id, each.queue, each.sha256, pytest.approx(each.score)) for each in (old, young)
    ]
    assert (odd, coverage.seen, coverage.silent) == ([], 2, 0)


def test_an_entry_that_the_index_lacks_is_found(broker, redis):
    """Celery never restores it, so nobody else will find it either."""
    seed_unacked(redis)
    lost = seed_unacked(redis, indexed=False)

    rows, _, coverage = read(broker)

    assert [row.task_id for row in rows if row.delivered_at is None] == [lost.task_id]
    assert (coverage.seen, coverage.silent) == (2, 0)


def test_a_member_of_the_index_alone_is_no_message(broker, redis):
    """Celery's own sweep drops it."""
    redis.zadd("unacked_index", {"left-behind": 1.0})
    seeded = seed_unacked(redis)

    rows, odd, coverage = read(broker)

    assert [row.task_id for row in rows] == [seeded.task_id]
    assert (odd, coverage.seen, coverage.silent) == ([], 1, 0)


def test_one_of_each_does_not_hide_the_lost_one(broker, redis):
    """Hash and index agree in number, and differ in what they hold."""
    redis.zadd("unacked_index", {"left-behind": 1.0})
    lost = seed_unacked(redis, indexed=False)

    rows, _, coverage = read(broker)

    assert [row.task_id for row in rows] == [lost.task_id]
    assert coverage.seen == 1


@pytest.mark.parametrize(
    "value",
    [
        b"[]",
        b"{}",
        b"null",
        b'["x", "", "celery"]',
        b"[{}]",
        json.dumps([envelope(), ""]).encode(),
        json.dumps([envelope(), "", "celery", 1]).encode(),
        json.dumps(envelope()).encode(),
        b"no JSON",
        b"\xff",
    ],
)
def test_an_entry_of_another_shape_is_unreadable(broker, redis, value):
    """Celery's own sweep stops at such an entry; here it is one row, and its neighbour another."""
    redis.hset("unacked", "odd", value)
    redis.zadd("unacked_index", {"odd": 1.0})
    good = seed_unacked(redis)

    rows, odd, coverage = read(broker)

    assert [row.task_id for row in rows] == [good.task_id]
    assert [(row.place, row.delivery_tag) for row in odd] == [("unacked", "odd")]
    assert coverage.seen == 2


@pytest.mark.parametrize("case", ODD)
def test_every_odd_message_is_counted(broker, redis, case):
    """Whatever a delivered message holds, it is a readable row or an unreadable one."""
    redis.hset("unacked", "odd", b"[" + ODD[case] + b', "", "celery"]')
    redis.zadd("unacked_index", {"odd": 1.0})

    rows, odd, coverage = read(broker)

    assert len(rows) + len(odd) == coverage.seen == 1


@pytest.mark.parametrize("score", [0.0, -1.0, math.inf, -math.inf, 4_102_444_800.5])
def test_any_score_is_an_instant(broker, redis, score):
    """Of the past, of the future, or of no calendar."""
    seeded = seed_unacked(redis)
    redis.zadd("unacked_index", {seeded.tag: score})

    rows, _, _ = read(broker)

    assert [row.delivered_at for row in rows] == [score]


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue"),
    [
        pytest.param("", "celery", "celery", id="default exchange"),
        pytest.param("gone", "celery", "", id="exchange without routes"),
        pytest.param("orders", "new", "orders-new", id="direct"),
        pytest.param("orders", "old", "", id="no route for the key"),
        pytest.param("both", "x", "", id="two queues for one key"),
        pytest.param("events", "user.created", "users", id="topic, one word"),
        pytest.param("audit", "user.created.eu", "everything", id="topic, any words"),
    ],
)
def test_the_queue_is_the_one_that_the_routes_say(broker, redis, exchange, routing_key, queue):
    """It is named only where there is exactly one: restoring to a guess could lose the message."""
    bind(redis, "orders", "orders-new", routing_key="new")
    bind(redis, "both", "one", routing_key="x")
    bind(redis, "both", "two", routing_key="x")
    bind(redis, "events", "users", routing_key="user.*", pattern="user\\.[^.]+")
    bind(redis, "audit", "everything", routing_key="user.#", pattern="user\\..*?")
    seed_unacked(redis, exchange=exchange, queue=routing_key)

    rows, _, _ = read(broker)

    assert [(row.queue, row.exchange, row.routing_key) for row in rows] == [(queue, exchange, routing_key)]


def test_a_value_beyond_the_limit_is_not_fetched(broker, redis):
    """It is named as not seen; the limit itself is."""
    for tag, size in (("at", _LARGEST_BYTES), ("above", _LARGEST_BYTES + 1)):
        redis.hset("unacked", tag, b"x" * size)
        redis.zadd("unacked_index", {tag: 1.0})

    _, odd, coverage = read(broker)

    assert [row.delivery_tag for row in odd] == ["at"]
    assert (coverage.seen, coverage.silent) == (1, 1)
    assert "larger" in coverage.note


@pytest.mark.parametrize(("limit", "silent"), [(2, 1), (3, 0)])
def test_reading_stops_at_its_limit_and_says_so(broker, redis, limit, silent):
    """The oldest are read, for they are the likeliest to be lost."""
    seeded = [seed_unacked(redis, age_s=age_s) for age_s in (300, 200, 100)]

    rows, _, coverage = read(broker, max_messages=limit)

    assert [row.task_id for row in rows] == [each.task_id for each in seeded[:limit]]
    assert coverage.silent == silent


@pytest.mark.parametrize("key", ["unacked", "unacked_index"])
def test_a_key_of_another_type_is_a_place_not_seen(broker, redis, key):
    """Something else uses the name; nothing can be said about what is delivered."""
    seed_unacked(redis)
    redis.delete(key)
    redis.set(key, "x")

    rows, odd, coverage = read(broker)

    assert (rows, odd) == ([], [])
    assert (coverage.place, coverage.silent) == ("unacked", 1)


def test_many_entries_come_in_bounded_replies(broker, redis, monkeypatch):
    """A page of heavy values is split by its bytes."""
    with redis.pipeline(transaction=False) as pipe:
        for number in range(40):
            message = {**envelope(), "body": "x" * 100_000}
            pipe.hset("unacked", f"tag-{number}", json.dumps([message, "", "celery"]))
            pipe.zadd("unacked_index", {f"tag-{number}": number})
        pipe.execute()
    replies = []
    hmget = broker.reads.hmget
    monkeypatch.setattr(broker.reads, "hmget", lambda *asked: replies.append(hmget(*asked)) or replies[-1])

    rows, _, coverage = read(broker)

    assert [row.delivery_tag for row in rows] == [f"tag-{number}" for number in range(40)]
    assert coverage.seen == 40
    assert 100_000 < max(sum(map(len, reply)) for reply in replies) <= WINDOW_BYTES
