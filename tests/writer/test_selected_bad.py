"""scratch"""
from __future__ import annotations
import json
from dataclasses import replace
import pytest
from opslib.broker import connect
from opslib.plan import Action, Kind
from opslib.selection import Selection
from opslib.symptoms import asked
from opslib.writer import apply, lists, resume
from tests.support.plans import interrupted, planned, told, undone, values
from tests.support.seed import KEYS, seed_waiting, waiting, waiting_ids
from tests.writer.test_selected import QUEUE, TO, WANTED, both, lengths, of_shop, _both
from tests.writer.test_undo import run_id
from opslib.collectors import queues as collected

def meant(broker, only, queue=QUEUE):
    listings, _ = collected.lists(broker, [queue])
    listings.sort(key=lambda e: e.priority)
    return collected.meant(broker, listings, only) if only else {e.key: e.length for e in listings}

def mixed(redis, count=60, queue=QUEUE):
    return [seed_waiting(redis, "shop.order" if n % 4 == 0 or n % 4 == 3 else "tests.ok", queue=queue, priority=(0, 3, 9)[n % 3], args=[n]) for n in range(count)]

@both
@pytest.mark.parametrize("limit", [0, 7, 25])
def test_expedite_two(broker, redis, limit):
    mixed(redis, 60)
    only = replace(WANTED, limit=limit)
    urgent = [i for step in (0, 3, 9) for i in of_shop(waiting(redis, QUEUE, step))]
    before = values(redis)
    first = urgent[:limit] if limit else urgent
    rest0 = [i for i in waiting_ids(redis) if i not in first]
    (o,) = apply(planned(broker, *asked.expedite(QUEUE, meant(broker, only), only)), broker, dry_run=False)
    print(o)
    assert waiting_ids(redis) == [*first, *rest0]
    undone(broker, run_id())
    assert values(redis) == before

@both
@pytest.mark.parametrize("kind", ["move", "purge", "expedite"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_limit_resume(broker, redis, monkeypatch, kind, at):
    mixed(redis, 60)
    monkeypatch.setattr("opslib.writer.selected.BATCH_MOVES", 3)
    monkeypatch.setattr("opslib.writer.moves.BATCH_MOVES", 3)
    monkeypatch.setattr(lists, "_WINDOW", 6)
    only = replace(WANTED, limit=16)
    every = [i for step in (0, 3, 9) for i in of_shop(waiting(redis, QUEUE, step))]
    before = values(redis)
    make = {"move": lambda: asked.move(QUEUE, TO, meant(broker, only), only), "purge": lambda: asked.purge(QUEUE, meant(broker, only), only), "expedite": lambda: asked.expedite(QUEUE, meant(broker, only), only)}[kind]
    rest = [i for step in (0, 3, 9) for i in waiting_ids(redis, QUEUE, step)]
    plan = planned(broker, *make())
    def fall(number):
        if number == at:
            raise KeyboardInterrupt
    interrupted(broker, fall)
    try:
        apply(plan, broker, dry_run=False)
    except KeyboardInterrupt:
        again = connect(broker.target)
        left = resume.remaining(plan, again, run_id())
        out = apply(left, again, dry_run=False)
        print(out)
    else:
        again = broker
    now = [i for step in (0, 3, 9) for i in waiting_ids(redis, QUEUE, step)]
    if kind == "expedite":
        assert now == [*every[:16], *[i for i in rest if i not in every[:16]]]
    else:
        assert now == [i for i in rest if i not in every[:16]]
        if kind == "move":
            assert [i for step in (0, 3, 9) for i in waiting_ids(redis, TO, step)] == every[:16]
    undone(again, run_id())
    assert values(redis) == before

@both
def test_many_unwritable(broker, redis):
    for n in range(450):
        redis.lpush(QUEUE, b"not json %d" % n)
    for n in range(300):
        redis.lpush(QUEUE, b"same")
    good = [seed_waiting(redis) for _ in range(5)]
    (o,) = apply(planned(broker, *asked.move(QUEUE, TO, meant(broker, None))), broker, dry_run=False)
    print(o)
    assert waiting_ids(redis, TO) == [g.task_id for g in good]
    assert redis.llen(QUEUE) == 750

def test_account_of_two(broker, redis):
    for q in ("a", "b"):
        mixed(redis, 12, q)
    acts = [a for q in ("a", "b") for a in asked.purge(q, meant(broker, WANTED, q), WANTED)]
    plan = planned(broker, *acts)
    from tests.support import plans as P
    b = interrupted(broker, lambda n: n == 3 and (redis.delete(*redis.scan_iter("b*")), redis.set("b", "x")))
    out = apply(plan, broker, dry_run=False)
    for o in out: print(o.status, o.reason)
    assert told(out) == ["applied", "failed"]
