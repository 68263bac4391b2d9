"""What a run changed is put back: the same bytes, in the same places, for the same time; and what cannot be is told."""

from __future__ import annotations

import hashlib
import time
from urllib.parse import urlsplit, urlunsplit

import pytest

from opslib import records
from opslib.errors import NotFound
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply, lists, points, sites, stored, undo
from tests.support import servers
from tests.support.plans import mover, planned, purge_of, told, undone, values
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.waiting import until

QUEUE = "celery"


def run_id():
    """Return the id of the run that this test is."""
    return records.context().run_id


def waiting_copy(seeded, priority=0):
    """Return what a plan says of a waiting message."""
    return Copy(place="waiting", key=seeded.key, queue=seeded.queue, sha256=seeded.sha256, priority=priority)


def quarantine_of(seeded):
    """Return the action that takes a waiting message out of circulation."""
    return Action(
        kind=Kind.QUARANTINE,
        subject=seeded.task_id,
        source=seeded.queue,
        destination="quarantine",
        copies=(waiting_copy(seeded),),
    )


def restore_of(seeded):
    """Return the action that puts a delivered message back to its queue."""
    copy = Copy(
        place="unacked",
        key=KEYS.unacked,
        queue=seeded.queue,
        delivery_tag=seeded.tag,
        sha256=seeded.sha256,
        score=seeded.score,
    )
    return Action(kind=Kind.RESTORE, subject=seeded.task_id, source="unacked", destination=QUEUE, copies=(copy,))


def test_a_purged_queue_comes_back_with_its_priorities(broker, redis):
    """Every list has its name again, and every message its place."""
    for priority in (0, 3, 6, 9):
        for _ in range(20):
            seed_waiting(redis, priority=priority)
    before = values(redis)

    assert told(apply(planned(broker, purge_of(broker, QUEUE)), broker, dry_run=False)) == ["applied"]
    assert not values(redis)
    assert told(undone(broker, run_id())) == ["applied"] * 4

    assert values(redis) == before


def test_what_was_pushed_after_a_purge_is_served_after_what_comes_back(broker, redis):
    """It is younger."""
    for n in range(5):
        redis.lpush(QUEUE, b"old%d" % n)
    apply(planned(broker, purge_of(broker, QUEUE)), broker, dry_run=False)
    redis.lpush(QUEUE, b"new0", b"new1")

    assert told(undone(broker, run_id())) == ["applied"]

    assert redis.lrange(QUEUE, 0, -1) == [b"new1", b"new0", b"old4", b"old3", b"old2", b"old1", b"old0"]


@pytest.mark.parametrize("chosen", [[0], [19], [7], [0, 1, 2], [3, 9, 15], list(range(20)), [18, 2, 11]])
def test_quarantined_messages_come_back_to_their_places(broker, redis, chosen):
    """Whichever they were, and in whatever order they were taken."""
    seeded = [seed_waiting(redis) for _ in range(20)]
    before = values(redis)

    outcomes = apply(planned(broker, *(quarantine_of(seeded[n]) for n in chosen)), broker, dry_run=False)
    assert told(outcomes) == ["applied"] * len(chosen)
    assert redis.llen(QUEUE) == 20 - len(chosen)
    assert told(undone(broker, run_id())) == ["applied"] * len(chosen)

    assert values(redis) == before


def test_where_the_queue_has_moved_on_a_message_is_served_next(broker, redis):
    """Its old place is nobody's any more; it was due before what is there now."""
    seeded = [seed_waiting(redis) for _ in range(5)]
    apply(planned(broker, quarantine_of(seeded[2])), broker, dry_run=False)
    redis.rpop(QUEUE)

    (outcome,) = undone(broker, run_id())

    assert "moved on" in outcome.reason
    assert redis.lrange(QUEUE, -1, -1) == [seeded[2].raw]


def test_a_restored_message_becomes_unacked_again(broker, redis):
    """With its old bytes, tag and score."""
    seeded = [seed_unacked(redis) for _ in range(3)]
    before = values(redis)

    assert told(apply(planned(broker, *map(restore_of, seeded)), broker, dry_run=False)) == ["applied"] * 3
    assert redis.llen(QUEUE) == 3
    assert told(undone(broker, run_id())) == ["applied"] * 3

    assert values(redis) == before


def test_a_restored_message_that_a_worker_took_is_told(broker, redis):
    """Nothing is invented in its place."""
    seeded = seed_unacked(redis)
    apply(planned(broker, restore_of(seeded)), broker, dry_run=False)
    redis.rpop(QUEUE)

    (outcome,) = undone(broker, run_id())

    assert outcome.status == "skipped"
    assert "taken it" in outcome.reason
    assert not values(redis)


@pytest.mark.parametrize("chosen", [range(0, 300, 7), range(300), [0], [299], range(150, 160)])
def test_a_list_too_long_to_search_is_sieved_and_put_together_again(broker, redis, monkeypatch, chosen):
    """The order of all others stays, and so does each place."""
    monkeypatch.setattr(lists, "SEARCHABLE", 100)
    seeded = [seed_waiting(redis) for _ in range(300)]
    before = values(redis)
    wanted = {seeded[n].sha256: [{"a": 1, "s": seeded[n].task_id}] for n in chosen}
    with mover(broker, run_id()) as hand:
        assert len(lists.sieve(hand.primitive, QUEUE, lists.by_sha(wanted))) == len(list(chosen))
    left = [each.raw for n, each in enumerate(seeded) if n not in set(chosen)]
    assert redis.lrange(QUEUE, 0, -1) == left[::-1]
    assert told(undone(broker, run_id())) == ["applied"]

    assert values(redis) == before


def test_deleted_keys_come_back_with_value_and_life(broker, redis):
    """Of every type, at the instant at which they were to expire."""
    redis.set("text", b"\x00\xff" * 100, px=500_000)
    redis.hset("hash", mapping={f"f{n}": n for n in range(50)})
    redis.rpush("list", *range(50))
    redis.sadd("set", *range(50))
    redis.zadd("zset", {f"m{n}": n / 7 for n in range(50)})
    before = values(redis)
    keys = ["text", "hash", "list", "set", "zset"]
    actions = [
        Action(kind=Kind.DELETE, subject=key, source=key, destination="vault", copies=(Copy(place="key", key=key),))
        for key in keys
    ]

    assert told(apply(planned(broker, *actions), broker, dry_run=False)) == ["applied"] * 5
    assert not values(redis)
    assert told(undone(broker, run_id())) == ["applied"] * 5

    assert values(redis) == before


def test_a_key_that_was_written_since_it_was_planned_is_left_alone(broker, redis):
    """Its new value was never meant."""
    redis.set("key", "old")
    copy = Copy(place="key", key="key", sha256=hashlib.sha256(b"old").hexdigest())
    plan = planned(broker, Action(kind=Kind.DELETE, subject="key", source="key", destination="vault", copies=(copy,)))
    redis.set("key", "new")

    assert told(apply(plan, broker, dry_run=False)) == ["skipped"]

    assert redis.get("key") == b"new"


@pytest.mark.parametrize("life", [None, 300])
def test_a_shorter_life_is_taken_back(broker, redis, life):
    """For ever, or what it was."""
    redis.set("key", "x", ex=life)
    before = values(redis)
    copy = Copy(place="key", key="key", life_s=-1 if life is None else life)
    action = Action(kind=Kind.EXPIRE, subject="key", source="key", destination="key", copies=(copy,), ttl_s=60)

    assert told(apply(planned(broker, action), broker, dry_run=False)) == ["applied"]
    assert 0 < redis.ttl("key") <= 60
    assert told(undone(broker, run_id())) == ["applied"]

    assert values(redis) == before


@pytest.mark.parametrize(("to", "order"), [("next", "bcda"), ("last", "abcd"), ("1", "bcad")])
def test_a_message_goes_elsewhere_in_its_list_and_back(broker, redis, to, order):
    """Everything else keeps its order."""
    seeded = {name: seed_waiting(redis) for name in "dcba"}  # d is served first
    before = values(redis)
    moved = seeded["a"]
    action = Action(
        kind=Kind.REORDER, subject=moved.task_id, source=QUEUE, destination=to, copies=(waiting_copy(moved),)
    )

    assert told(apply(planned(broker, action), broker, dry_run=False)) == ["applied"]
    assert redis.lrange(QUEUE, 0, -1) == [seeded[name].raw for name in order]
    assert told(undone(broker, run_id())) == ["applied"]

    assert values(redis) == before


def test_a_message_moves_to_another_queue_and_back(broker, redis):
    """There it is routed to its new queue, should it ever be restored; back, it has its old bytes."""
    seeded = [seed_waiting(redis) for _ in range(3)]
    before = values(redis)
    action = Action(
        kind=Kind.MOVE, subject=seeded[1].task_id, source=QUEUE, destination="slow", copies=(waiting_copy(seeded[1]),)
    )

    assert told(apply(planned(broker, action), broker, dry_run=False)) == ["applied"]
    assert b'"routing_key": "slow"' in redis.lindex("slow", 0)
    assert told(undone(broker, run_id())) == ["applied"]

    assert values(redis) == before


def test_hash_and_index_are_made_to_agree_and_disagree_again(broker, redis):
    """One entry that the sweep would never find, one that names nothing."""
    lost, named = seed_unacked(redis), seed_unacked(redis)
    redis.zrem(KEYS.unacked_index, lost.tag)
    redis.hdel(KEYS.unacked, named.tag)
    before = values(redis)
    actions = [
        Action(
            kind=Kind.REPAIR,
            subject=each.task_id,
            source="unacked",
            destination="unacked",
            copies=(Copy(place=place, key=KEYS.unacked, delivery_tag=each.tag, score=score),),
        )
        for each, place, score in ((lost, "unacked", None), (named, "index", named.score))
    ]

    assert told(apply(planned(broker, *actions), broker, dry_run=False)) == ["applied"] * 2
    assert redis.zscore(KEYS.unacked_index, lost.tag)
    assert redis.zscore(KEYS.unacked_index, named.tag) is None
    assert told(undone(broker, run_id())) == ["applied"] * 2

    assert values(redis) == before


def test_undoing_twice_does_nothing_twice(broker, redis):
    """The second one has nothing left to do."""
    for _ in range(3):
        seed_waiting(redis)
    before = values(redis)
    apply(planned(broker, purge_of(broker, QUEUE)), broker, dry_run=False)
    undone(broker, run_id())

    assert len(undo.plan(broker, run_id())) == 0
    assert values(redis) == before


def test_a_run_that_this_broker_does_not_know_cannot_be_undone(broker):
    """It says where to look."""
    with pytest.raises(NotFound, match="knows nothing"):
        undo.plan(broker, "20261121T021500Z-stuck-tasks-7f3a9c")


@pytest.mark.usefixtures("archive")
def test_keys_of_a_result_backend_of_its_own_are_changed_there(server):
    """With that database's own lock and journal; undo finds them by the run's id alone."""
    url = urlunsplit(urlsplit(server.url)._replace(path="/5"))
    with server.client() as client:
        client.flushall()
    broker = servers.broker(server, result_backend=url)
    results = broker.results
    results.set("celery-task-meta-x", b'{"status": "SUCCESS"}', ex=500)
    before = values(results)
    _, site = sites.of(broker)
    copy = Copy(place="key", key="celery-task-meta-x")
    action = Action(kind=Kind.DELETE, subject="x", source="result", destination="vault", copies=(copy,))

    assert told(apply(planned(site, action), broker, dry_run=False)) == ["applied"]
    assert not values(results)
    assert not broker.reads.exists(KEYS.journal(run_id()))
    assert told(undone(broker, run_id())) == ["applied"]

    assert values(results) == before
    results.flushdb()


def test_many_keys_come_back_in_few_batches(broker, redis):
    """The vault is read once, and a batch is bounded by number and bytes."""
    for n in range(120):
        redis.set(f"key{n}", b"x" * (n + 1), ex=1000)
    redis.set("big", b"y" * (2 * 1024 * 1024))
    before = values(redis)
    keys = [*(f"key{n}" for n in range(120)), "big"]
    actions = [
        Action(kind=Kind.DELETE, subject=key, source=key, destination="vault", copies=(Copy(place="key", key=key),))
        for key in keys
    ]

    assert told(apply(planned(broker, *actions), broker, dry_run=False)) == ["applied"] * 121
    assert not values(redis)
    assert told(undone(broker, run_id())) == ["applied"] * 121

    assert values(redis) == before
    assert redis.xlen(KEYS.audit) < 12


def test_a_key_that_would_have_expired_meanwhile_stays_gone(broker, redis):
    """Its value is in the vault all the same."""
    redis.set("key", "x", px=300)
    expires = time.monotonic() + 0.3
    action = Action(
        kind=Kind.DELETE, subject="key", source="key", destination="vault", copies=(Copy(place="key", key="key"),)
    )
    apply(planned(broker, action), broker, dry_run=False)
    until(lambda: time.monotonic() > expires + 0.05, 5, "its life is over")

    (outcome,) = undone(broker, run_id())

    assert outcome.status == "skipped"
    assert "would have expired" in outcome.reason
    assert not redis.exists("key")


def test_what_was_done_before_a_failure_is_told_as_done(broker, redis, monkeypatch):
    """An error in a later batch does not turn the earlier ones into failures."""
    monkeypatch.setattr(stored, "_PER_BATCH", 2)
    for n in range(5):
        redis.set(f"key{n}", "x")
    actions = [
        Action(
            kind=Kind.DELETE,
            subject=f"key{n}",
            source="",
            destination="vault",
            copies=(Copy(place="key", key=f"key{n}"),),
        )
        for n in range(5)
    ]
    monkeypatch.setattr(points, "watchers", [lambda name: redis.delete(KEYS.lock) if name == "after-result" else None])

    outcomes = apply(planned(broker, *actions), broker, dry_run=False)

    assert told(outcomes) == ["applied", "applied", "failed", "failed", "failed"]
    assert "lock was lost" in outcomes[2].reason
    assert sorted(values(redis)) == [b"key2", b"key3", b"key4"]
