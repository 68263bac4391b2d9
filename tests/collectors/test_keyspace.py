"""One pass over the keys sorts each by its name, and says when it had to stop."""

from __future__ import annotations

import pytest

from opslib.collectors import keyspace
from tests.support import servers
from tests.support.seed import KEYS, bind, seed_result, seed_unacked, seed_waiting


def test_every_key_finds_its_place(broker, redis):
    """Queues, routes, nodes and results are told apart; what is none of them is left alone."""
    seed_waiting(redis, queue="mail", priority=9)
    seed_unacked(redis)
    task_id = seed_result(redis, "STARTED")
    bind(redis, "orders", "orders-new", routing_key="new")
    bind(redis, "celery.pidbox", "w1@lab.celery.pidbox")
    redis.set("app:setting", "1")
    redis.lpush("app:recent", "x")

    found, coverage = keyspace.read(broker, max_keys=1000)

    assert sorted(found.lists) == ["app:recent", "mail\x06\x169"]
    assert [(route.exchange, route.queue) for routes in found.bindings.values() for route in routes] == [
        ("orders", "orders-new")
    ]
    assert found.remembered == {"w1@lab"}
    assert found.results == [f"celery-task-meta-{task_id}".encode()]
    assert (coverage.seen, coverage.silent) == (8, 0)


@pytest.mark.parametrize(
    "key",
    [
        "a1b2.reply.celery.pidbox",
        "w1@lab.celery.pidbox",
        "mail.dead",
        "opslib:run:1:q:mail",
        "celery-taskset-meta-1.j",
        "redbeat:job",
        "unacked",
    ],
)
def test_a_list_of_celerys_or_our_own_is_no_queue(broker, redis, key):
    """Names that Celery, its extensions and this tool use never become queues."""
    redis.lpush(key, "x")

    assert keyspace.read(broker, max_keys=1000)[0].lists == []


def test_a_list_that_is_named_like_dead_letters_is_told_apart(broker, redis):
    """Its name is a guess, so it is kept by itself: a route or a node may yet declare it."""
    redis.lpush("mail.dead", "x")

    found, _ = keyspace.read(broker, max_keys=1000)

    assert (found.dead, found.lists) == (["mail.dead"], [])


@pytest.mark.parametrize(("max_keys", "partial"), [(250, True), (600, True), (5000, False)])
def test_a_pass_stops_at_its_limit_and_says_so(broker, redis, max_keys, partial):
    """What was not visited is counted, so that nobody takes a part for the whole."""
    with redis.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"app:{number}", "x")
        pipe.execute()

    found, coverage = keyspace.read(broker, max_keys=max_keys)

    assert found.complete is not partial
    assert (coverage.silent > 0) is partial
    assert coverage.seen + coverage.silent == 1000
    assert ("max_keys" in coverage.note) is partial


@pytest.mark.parametrize("member", [b"", b"no separator", b"one\x06\x16two", b"1\x06\x162\x06\x163\x06\x164", b"\xff"])
def test_a_route_of_another_shape_is_left_out(broker, redis, member):
    """A set member with the wrong number of fields says nothing about a queue."""
    redis.sadd(KEYS.bindings("orders"), member)
    bind(redis, "orders", "orders-new", routing_key="new")

    found, _ = keyspace.read(broker, max_keys=1000)

    assert [route.queue for route in found.bindings["orders"]] == ["orders-new"]


def test_routes_that_are_no_set_are_left_out(broker, redis):
    """Something else uses an exchange's name."""
    redis.set(KEYS.bindings("orders"), "x")

    found, coverage = keyspace.read(broker, max_keys=1000)

    assert (found.bindings, coverage.seen) == ({}, 1)


def test_keys_under_another_prefix_are_named(broker, redis):
    """A prefix that the target does not know looks like an empty broker; so it is told."""
    redis.sadd("shop:_kombu.binding.celery", "celery\x06\x16\x06\x16celery")

    assert keyspace.read(broker, max_keys=1000)[0].foreign == {"shop:"}


@pytest.mark.parametrize("prefix", ["", "shop:"])
def test_remembered_nodes_are_read_from_one_key(redis, server, prefix):
    """Dead ones are among them; nobody else's are."""
    prefixed = servers.broker(server, global_keyprefix=prefix)
    redis.sadd(f"{prefix}_kombu.binding.celery.pidbox", KEYS.separator.join(("", "", "w1@lab.celery.pidbox")), "odd")
    redis.sadd("other:_kombu.binding.celery.pidbox", KEYS.separator.join(("", "", "w2@lab.celery.pidbox")))

    assert keyspace.remembered(prefixed) == {"w1@lab"}


def test_what_is_no_set_remembers_nobody(broker, redis):
    """It is no defect either."""
    assert keyspace.remembered(broker) == set()
    redis.set("_kombu.binding.celery.pidbox", "x")
    assert keyspace.remembered(broker) == set()
