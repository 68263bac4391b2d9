"""What a filter means of a queue is kept, moved or served next, in its order; everything else stays as it was."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from opslib.broker import connect
from opslib.keys import Keyspace
from opslib.selection import Selection
from opslib.symptoms import asked
from opslib.writer import apply, lists, resume
from tests.support import servers
from tests.support.plans import interrupted, planned, told, undone, values
from tests.support.seed import KEYS, iso, quarantined, seed_waiting, waiting, waiting_ids
from tests.writer.test_undo import run_id

QUEUE, TO = "celery", "other"
WANTED = Selection(task="shop.*")


both = pytest.mark.usefixtures("_both")


@pytest.fixture(params=[False, True], ids=["searched", "sieved"])
def _both(request, monkeypatch):
    """Take every list for one that is short enough to search, and for one that is too long."""
    monkeypatch.setattr(lists, "SEARCHABLE", 5 if request.param else 2_000)


def seeded(redis, count=60, *, queue=QUEUE, priorities=(0,)):
    """Fill a queue, every third message of each list the shop's."""
    return [
        seed_waiting(
            redis,
            "shop.order" if n % 3 == 0 else "tests.ok",
            queue=queue,
            priority=priorities[n // 3 % len(priorities)],
            args=[n],
        )
        for n in range(count)
    ]


def lengths(broker, only=None, queue=QUEUE):
    """Return how many messages of each list are meant, as a plan's maker counts them."""
    found = {}
    for key in broker.keys.queue_lists(queue):
        rows = [json.loads(raw)["headers"] for raw in broker.reads.lrange(key, 0, -1)]
        found[key] = sum(only is None or only.task == "*" or row["task"].startswith("shop.") for row in rows)
    return found


def of_shop(messages):
    """Return the ids of the shop's tasks among these."""
    return [m["headers"]["id"] for m in messages if m["headers"]["task"].startswith("shop.")]


@both
def test_a_purge_takes_what_is_meant_and_leaves_the_rest_in_its_order(broker, redis):
    """Whether the list is searched or sieved; and undo puts each back between its neighbours."""
    seeded(redis)
    before, bytes_before = waiting(redis), values(redis)

    outcomes = apply(planned(broker, *asked.purge(QUEUE, lengths(broker, WANTED), WANTED)), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert "20 messages are kept" in outcomes[0].reason
    assert waiting(redis) == [m for m in before if not m["headers"]["task"].startswith("shop.")]
    kept = [json.loads(raw)["headers"]["id"] for name in quarantined(redis).values() for raw in name]
    kept += [
        json.loads(raw)["headers"]["id"]
        for key in redis.scan_iter(match="*opslib:run:*:q.*")
        for raw in redis.lrange(key, 0, -1)
    ]
    assert sorted(kept) == sorted(of_shop(before))

    assert set(told(undone(broker, run_id()))) == {"applied"}
    assert values(redis) == bytes_before


def test_a_queue_is_moved_in_its_order_behind_what_waits_there(broker, redis):
    """Priority by priority; a retry of it stays in the new queue, for the message says so."""
    seeded(redis, 90, priorities=(0, 3, 9))
    first = [seed_waiting(redis, queue=TO, priority=3).task_id]
    before, bytes_before = {step: waiting_ids(redis, QUEUE, step) for step in KEYS.priority_steps}, values(redis)

    outcomes = apply(planned(broker, *asked.move(QUEUE, TO, lengths(broker))), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert "90 messages now in other" in outcomes[0].reason
    assert not any(waiting_ids(redis, QUEUE, step) for step in KEYS.priority_steps)
    assert waiting_ids(redis, TO) == before[0]
    assert waiting_ids(redis, TO, 3) == first + before[3]
    assert waiting_ids(redis, TO, 9) == before[9]
    moved = waiting(redis, TO, 9)[0]["properties"]["delivery_info"]
    assert (moved["exchange"], moved["routing_key"]) == ("", TO)

    assert set(told(undone(broker, run_id()))) == {"applied"}
    assert values(redis) == bytes_before


@both
def test_what_is_meant_of_a_queue_is_moved_and_the_rest_stays(broker, redis):
    """In its order, on both sides."""
    seeded(redis)
    before, bytes_before = waiting(redis), values(redis)

    outcomes = apply(planned(broker, *asked.move(QUEUE, TO, lengths(broker, WANTED), WANTED)), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert waiting(redis) == [m for m in before if not m["headers"]["task"].startswith("shop.")]
    assert waiting_ids(redis, TO) == of_shop(before)
    assert not any(redis.lrange(key, 0, -1) for key in redis.scan_iter(match="*opslib:run:*:q*"))

    assert set(told(undone(broker, run_id()))) == {"applied"}
    assert values(redis) == bytes_before


@both
def test_what_is_expedited_is_served_before_everything_in_its_order(broker, redis):
    """The more urgent list first; what comes from another list has priority 0 from now on."""
    seeded(redis, 90, priorities=(0, 3, 9))
    urgent = [of_shop(waiting(redis, QUEUE, step)) for step in (0, 3, 9)]
    others = [m["headers"]["id"] for m in waiting(redis) if not m["headers"]["task"].startswith("shop.")]
    bytes_before = values(redis)

    outcomes = apply(planned(broker, *asked.expedite(QUEUE, lengths(broker, WANTED), WANTED)), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert waiting_ids(redis) == [*urgent[0], *urgent[1], *urgent[2], *others]
    assert {m["properties"]["priority"] for m in waiting(redis)} == {0}

    assert set(told(undone(broker, run_id()))) == {"applied"}
    assert values(redis) == bytes_before


@pytest.mark.parametrize("at", [0, 12], ids=["the first", "in the middle"])
def test_where_some_were_run_meanwhile_the_rest_of_a_sieved_move_comes_back_next(broker, redis, monkeypatch, at):
    """To put them into the first of the places would have one from the end be served first, and be called in order."""
    monkeypatch.setattr(lists, "SEARCHABLE", 5)
    seeded(redis)
    before = waiting_ids(redis)
    apply(planned(broker, *asked.move(QUEUE, TO, lengths(broker, WANTED), WANTED)), broker, dry_run=False)
    moved = waiting_ids(redis, TO)
    for raw in redis.lrange(TO, 0, -1)[::-1][at : at + 7]:
        redis.lrem(TO, 1, raw)
    left = [*moved[:at], *moved[at + 7 :]]

    first, second = undone(broker, run_id())

    assert waiting_ids(redis) == [*left, *(each for each in before if each not in set(moved))]
    assert first.reason == "Back in quarantine, on the way to their places. 7 of 20 were taken meanwhile."
    assert second.reason.startswith("13 messages are back, next to be served, for 7 of them are gone")
    assert not any(b"opslib:run:" in key and b":q" in key for key in redis.scan_iter() if redis.type(key) == b"list")


def test_an_expired_message_is_meant_by_the_instant_of_the_plan(broker, redis):
    """What expires between plan and purge was not counted, and stays."""
    gone = seed_waiting(redis, expires=iso(-5))
    stays = [seed_waiting(redis, expires=iso(2)), seed_waiting(redis)]
    only = Selection(expired_at=time.time())
    plan = planned(broker, *asked.purge(QUEUE, {QUEUE: 1}, only))
    time.sleep(2.1)  # until the second one has expired too

    apply(plan, broker, dry_run=False)

    assert waiting_ids(redis) == [each.task_id for each in stays]
    assert quarantined(redis) == {QUEUE: [gone.raw]}


@both
def test_no_more_is_taken_than_was_planned_and_a_little(broker, redis):
    """A producer that sends on meanwhile does not make a plan of twenty one of thousands."""
    seeded(redis)
    plan = planned(broker, *asked.purge(QUEUE, lengths(broker, WANTED), WANTED))
    seeded(redis, 300)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert f"{lists.most(20)} messages are kept" in outcome.reason
    assert len(of_shop(waiting(redis))) == 20 + 100 - lists.most(20)


def test_workers_that_take_messages_meanwhile_get_each_once(broker, redis):
    """What they took is told; nothing of it is moved as well."""
    seeded(redis, 500)
    before = waiting_ids(redis)
    taken = []
    plan = planned(broker, *asked.move(QUEUE, TO, lengths(broker)))
    interrupted(broker, lambda _: taken.extend(redis.rpop(QUEUE, 7) or []))

    (outcome,) = apply(plan, broker, dry_run=False)

    ids = [json.loads(raw)["headers"]["id"] for raw in taken]
    assert outcome.status == "applied"
    assert ids
    assert not set(ids) & set(waiting_ids(redis, TO))
    assert sorted(ids + waiting_ids(redis, TO)) == sorted(before)
    assert waiting_ids(redis, TO) == [each for each in before if each not in set(ids)]


@both
def test_a_message_that_cannot_be_written_again_stays_where_it_is(broker, redis):
    """NaN is what Python writes and JSON does not have; to write it as something else would change the message."""
    rest = seeded(redis, 12)
    odd = json.loads(rest[0].raw) | {"headers": {**json.loads(rest[0].raw)["headers"], "x": float("nan")}}
    redis.lset(QUEUE, -1, json.dumps(odd))

    (outcome,) = apply(planned(broker, *asked.move(QUEUE, TO, lengths(broker))), broker, dry_run=False)

    assert outcome.status == "applied"
    assert "1 cannot be written again" in outcome.reason
    assert len(waiting_ids(redis)) == 1
    assert waiting_ids(redis, TO) == [each.task_id for each in rest[1:]]


def test_a_queue_that_is_empty_by_now_is_skipped(broker, redis):
    """With the reason."""
    seeded(redis, 3)
    plan = planned(broker, *asked.move(QUEUE, TO, lengths(broker)))
    redis.delete(QUEUE)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "skipped"
    assert "None of them waits" in outcome.reason


@both
@pytest.mark.parametrize("wanted", [None, WANTED], ids=["all", "some"])
def test_a_move_that_was_cut_off_is_finished_in_order(broker, redis, monkeypatch, wanted):
    """After any of its batches: resume moves the rest behind what has arrived; undo puts all of it back."""
    seeded(redis, 60)
    monkeypatch.setattr("opslib.writer.selected.BATCH_MOVES", 4)
    monkeypatch.setattr("opslib.writer.moves.BATCH_MOVES", 4)
    monkeypatch.setattr(lists, "_WINDOW", 16)
    before, bytes_before = waiting(redis), values(redis)
    meant = [m["headers"]["id"] for m in before] if wanted is None else of_shop(before)
    plan = planned(broker, *asked.move(QUEUE, TO, lengths(broker, wanted), wanted))

    def fall(number):
        if number == 3:
            raise KeyboardInterrupt

    interrupted(broker, fall)
    with pytest.raises(KeyboardInterrupt):
        apply(plan, broker, dry_run=False)
    assert len(waiting_ids(redis, TO)) < len(meant)

    again = connect(broker.target)
    left = resume.remaining(plan, again, run_id())
    apply(replace(left, continues=run_id()), again, dry_run=False)

    assert waiting_ids(redis, TO) == meant
    assert waiting(redis) == [m for m in before if m["headers"]["id"] not in set(meant)]
    undone(again, run_id())
    assert values(redis) == bytes_before


@pytest.mark.usefixtures("archive")
def test_a_key_prefix_is_before_every_list(redis, server):
    """Of the source, of the destination and of the quarantine."""
    keys = Keyspace(prefix="shop:")
    broker = connect(servers.target(server, global_keyprefix="shop:"))
    sent = [seed_waiting(redis, "shop.order", keys=keys, priority=3) for _ in range(5)]

    apply(planned(broker, *asked.move(QUEUE, TO, lengths(broker))), broker, dry_run=False)

    names = [json.loads(raw)["headers"]["id"] for raw in redis.lrange(keys.queue(TO, 3), 0, -1)]
    assert names[::-1] == [each.task_id for each in sent]
    assert all(key.startswith(b"shop:") for key in redis.scan_iter())
