"""What a filter means of several lists: so many and no more, in the order of their service, cut off or not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opslib.broker import connect
from opslib.collectors import queues
from opslib.plan import Action, Kind
from opslib.symptoms import asked
from opslib.writer import apply, lists, points, resume
from opslib.writer.primitive import Primitive
from tests.support.plans import interrupted, planned, told, undone, values
from tests.support.seed import seed_waiting, waiting, waiting_ids
from tests.writer.test_selected import QUEUE, TO, WANTED, _both, both, of_shop  # noqa: F401 - a fixture
from tests.writer.test_undo import run_id

STEPS = (0, 3, 9)


def mixed(redis, count=60, queue=QUEUE):
    """Fill three lists of a queue, half of each with what the filter means, in no regular order."""
    for n in range(count):
        name = "shop.order" if n % 4 in {0, 3} else "tests.ok"
        seed_waiting(redis, name, queue=queue, priority=STEPS[n % 3], args=[n])


def counted(broker, only=None, queue=QUEUE):
    """Return how many messages of each list are meant, as the command counts them."""
    listings, _ = queues.lists(broker, [queue])
    listings.sort(key=lambda each: each.priority)
    return queues.meant(broker, listings, only) if only else {each.key: each.length for each in listings}


def served(redis, queue=QUEUE):
    """Return the ids of a queue in the order in which they are served."""
    return [each for step in STEPS for each in waiting_ids(redis, queue, step)]


def meant(redis):
    """Return the ids that the filter means, in that order."""
    return [each for step in STEPS for each in of_shop(waiting(redis, QUEUE, step))]


def asking(broker, kind, only) -> list[Action]:
    """Return what a command would plan."""
    lengths = counted(broker, only)
    ask = {
        Kind.MOVE: lambda: asked.move(QUEUE, TO, lengths, only),
        Kind.PURGE: lambda: asked.purge(QUEUE, lengths, only),
        Kind.REORDER: lambda: asked.expedite(QUEUE, lengths, only),
    }
    return ask[kind]()


KINDS = pytest.mark.parametrize("kind", [Kind.MOVE, Kind.PURGE, Kind.REORDER])


@both
@KINDS
@pytest.mark.parametrize("limit", [0, 1, 7, 25, 30, 31])
def test_those_served_first_are_taken_up_to_the_limit(broker, redis, kind, limit):
    """Over three lists, the more urgent one first; undo puts each of them back to its place."""
    mixed(redis)
    wanted, before, bytes_before = meant(redis), served(redis), values(redis)
    taken = wanted[:limit] if limit else wanted
    rest = [each for each in before if each not in set(taken)]
    (action,) = asking(broker, kind, replace(WANTED, limit=limit))
    assert action.count == len(taken)

    (outcome,) = apply(planned(broker, action), broker, dry_run=False)

    assert outcome.status == "applied"
    assert outcome.reason.startswith(f"{len(taken)} message")
    assert served(redis) == (taken + rest if kind is Kind.REORDER else rest)
    assert served(redis, TO) == (taken if kind is Kind.MOVE else [])
    undone(broker, run_id())
    assert values(redis) == bytes_before


@both
@KINDS
@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_a_run_that_was_cut_off_takes_no_more_than_the_limit(broker, redis, monkeypatch, kind, at):
    """What it had taken before counts; what goes on stands in the order in which it would have stood."""
    mixed(redis)
    monkeypatch.setattr("opslib.writer.selected.BATCH_MOVES", 3)
    monkeypatch.setattr("opslib.writer.moves.BATCH_MOVES", 3)
    monkeypatch.setattr(lists, "_WINDOW", 6)
    wanted, before, bytes_before = meant(redis)[:16], served(redis), values(redis)
    plan = planned(broker, *asking(broker, kind, replace(WANTED, limit=16)))

    def fall(number):
        if number == at:
            raise KeyboardInterrupt

    interrupted(broker, fall)
    again = broker
    try:
        apply(plan, broker, dry_run=False)
    except KeyboardInterrupt:
        again = connect(broker.target)
        left = resume.remaining(plan, again, run_id())
        assert told(apply(left, again, dry_run=False)) == ["applied"] * len(left)

    rest = [each for each in before if each not in set(wanted)]
    assert served(redis) == (wanted + rest if kind is Kind.REORDER else rest)
    assert served(redis, TO) == (wanted if kind is Kind.MOVE else [])
    assert not resume.remaining(plan, again, run_id())
    undone(again, run_id())
    assert values(redis) == bytes_before


def test_a_list_that_was_done_with_is_left_alone_by_a_resume(broker, redis):
    """What has come into it since was in nobody's plan."""
    mixed(redis)
    plan = planned(broker, *asking(broker, Kind.MOVE, None))

    def fall(point):
        if point == "before-verify":
            raise KeyboardInterrupt

    points.watchers.append(fall)
    try:
        with pytest.raises(KeyboardInterrupt):
            apply(plan, broker, dry_run=False)
    finally:
        points.watchers.remove(fall)
    late = seed_waiting(redis)

    assert not resume.remaining(plan, broker, run_id())
    assert waiting_ids(redis) == [late.task_id]


def test_the_first_of_a_long_queue_are_taken_without_a_pass_over_it(broker, redis, monkeypatch):
    """A limit says that few are meant; to set the whole list aside for them would cost everybody else."""
    mixed(redis, 90)
    monkeypatch.setattr(lists, "SEARCHABLE", 12)
    first = meant(redis)[:2]

    def sieve(*_):
        raise AssertionError("no pass over the list is needed")

    monkeypatch.setattr(lists, "sieve", sieve)
    (outcome,) = apply(planned(broker, *asking(broker, Kind.MOVE, replace(WANTED, limit=2))), broker, dry_run=False)

    assert outcome.status == "applied"
    assert served(redis, TO) == first


@both
@pytest.mark.parametrize("limit", [0, 3])
def test_what_cannot_be_written_again_does_not_hide_what_is_behind_it(broker, redis, limit):
    """However much of it is served first, alike to the byte or not."""
    for n in range(450):
        redis.lpush(QUEUE, b"no JSON %d" % n)
    for _ in range(300):
        redis.lpush(QUEUE, b"no JSON")
    good = [seed_waiting(redis).task_id for _ in range(5)]
    only = replace(WANTED, task="*", limit=limit) if limit else None
    lengths = {QUEUE: limit or 755}

    (outcome,) = apply(planned(broker, *asked.move(QUEUE, TO, lengths, only)), broker, dry_run=False)

    assert waiting_ids(redis, TO) == good[: limit or 5]
    assert "750 cannot be written again, and stay behind" in outcome.reason
    assert redis.llen(QUEUE) == 755 - (limit or 5)


def test_each_list_of_a_plan_answers_for_itself(broker, redis):
    """The second is no queue any more: the first is purged all the same, and is said to be."""
    for queue in ("one", "two", "three"):
        mixed(redis, 12, queue)
    actions = [asked.purge(name, counted(broker, WANTED, name), WANTED)[0] for name in ("one", "two", "three")]

    def strike(number):
        if number == 3:
            redis.delete(*redis.scan_iter(match="two*"))
            redis.set("two", "a string")

    interrupted(broker, strike)
    outcomes = apply(planned(broker, *actions), broker, dry_run=False)

    assert told(outcomes) == ["applied", "failed", "applied"]
    assert "WRONGTYPE" in outcomes[1].reason


def test_a_refusal_on_the_way_tells_how_much_was_moved(broker, redis):
    """What was moved before is where it was put."""
    for _ in range(900):
        seed_waiting(redis)
    interrupted(broker, lambda number: number == 2 and (redis.rename(TO, "kept"), redis.set(TO, "a string")))

    (outcome,) = apply(planned(broker, *asked.move(QUEUE, TO, {QUEUE: 900})), broker, dry_run=False)

    moved = redis.llen("kept")
    assert outcome.status == "failed"
    assert f"{moved:,} were moved" in outcome.reason
    assert 0 < moved < 900
    assert redis.llen(QUEUE) == 900 - moved


@pytest.mark.parametrize("kind", [Kind.MOVE, Kind.REORDER])
def test_what_is_only_on_its_way_is_told_and_gone_on_with(broker, redis, monkeypatch, kind):
    """The server is out of memory once the list is sieved: no worker sees what lies in quarantine."""
    monkeypatch.setattr(lists, "SEARCHABLE", 5)
    mixed(redis)
    wanted, before = meant(redis), served(redis)
    plan = planned(broker, *asking(broker, kind, WANTED))
    call = Primitive.call

    def full(self, script, *values, **about):
        if script == "move":
            redis.config_set("maxmemory", "1")
        return call(self, script, *values, **about)

    with monkeypatch.context() as broken:
        broken.setattr(Primitive, "call", full)
        (outcome,) = apply(plan, broker, dry_run=False)
    redis.config_set("maxmemory", "0")

    kept = 10  # a third of what is meant: the first list
    assert outcome.status == "failed"
    assert "nothing of" not in outcome.reason
    assert f"{kept} messages are on their way in quarantine; `ops resume` finishes it." in outcome.reason
    again = connect(broker.target)
    left = resume.remaining(plan, again, run_id())
    assert told(apply(left, again, dry_run=False)) == ["applied"]
    rest = [each for each in before if each not in set(wanted)]
    assert served(redis) == (wanted + rest if kind is Kind.REORDER else rest)
    assert served(redis, TO) == (wanted if kind is Kind.MOVE else [])


def test_of_a_long_list_too_it_is_told_what_cannot_be_written_again(broker, redis, monkeypatch):
    """NaN is what Python writes and JSON does not have; those of other tasks are nobody's concern."""
    monkeypatch.setattr(lists, "SEARCHABLE", 5)
    mixed(redis)
    ids = waiting_ids(redis)
    shop = of_shop(waiting(redis))
    for each in (shop[0], next(each for each in ids if each not in shop)):
        at = -1 - ids.index(each)
        odd = json.loads(redis.lindex(QUEUE, at))
        redis.lset(QUEUE, at, json.dumps(odd | {"headers": {**odd["headers"], "x": float("nan")}}))

    (outcome,) = apply(planned(broker, *asking(broker, Kind.MOVE, WANTED)), broker, dry_run=False)

    assert "1 cannot be written again, and stays behind" in outcome.reason
    assert waiting_ids(redis, TO) == shop[1:]


@pytest.mark.parametrize("limit", [0, 15])
def test_what_workers_take_of_what_stays_hides_nothing(broker, redis, monkeypatch, limit):
    """Each window begins where the one before ended; as many as were taken meanwhile would never be looked at."""
    monkeypatch.setattr(lists, "SEARCHABLE", 100)
    monkeypatch.setattr(lists, "_most", lambda *_: 10)
    monkeypatch.setattr("opslib.writer.selected.BATCH_MOVES", 10)
    for n in range(30):
        redis.lpush(QUEUE, b"no JSON %d" % n)
    good = [seed_waiting(redis, "shop.order").task_id for _ in range(100)]
    only = replace(WANTED, limit=limit) if limit else None
    plan = planned(broker, *asked.move(QUEUE, TO, {QUEUE: limit or 130}, only))
    served_end, looks = lists.served_end, []

    def taken_meanwhile(*values):
        window = served_end(*values)
        looks.append(len(window))
        if len(looks) == 3:
            redis.rpop(QUEUE, 7)
        return window

    monkeypatch.setattr(lists, "served_end", taken_meanwhile)
    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "applied"
    assert waiting_ids(redis, TO) == good[: limit or 100]


@pytest.mark.parametrize("glob", ["shop.{x}", "shop.{", "{0}", "shop.[a", "%s"])
def test_a_filter_is_no_format(glob):
    """Whatever is in it, it is said as it was typed."""
    only = replace(WANTED, task=glob)

    for action in (asked.purge(QUEUE, {QUEUE: 2}, only), asked.move(QUEUE, "{to}", {QUEUE: 2}, only)):
        assert f"2 messages of {glob} " in action[0].effect
