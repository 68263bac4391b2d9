"""What lies deep in a long list is changed by a pass over the whole of it: no search stops the server."""

from __future__ import annotations

import json

import pytest

from opslib import records
from opslib.collectors.find import find
from opslib.plan import Action, Copy, Kind
from opslib.symptoms import asked
from opslib.writer import apply, journal, lists, points
from tests.support.plans import planned, told, undone, values
from tests.support.seed import KEYS, envelope, seed_waiting

LENGTH = 400
QUEUE = "celery"


@pytest.fixture
def seeded(redis, broker, monkeypatch):
    """A queue that counts as long, the first of it to be served first."""
    assert broker.role == "master"
    monkeypatch.setattr(lists, "SEARCHABLE", 100)
    return [seed_waiting(redis) for _ in range(LENGTH)]


def action(kind, seeded, destination):
    """Return what is to become of one waiting message."""
    copy = Copy(place="waiting", key=seeded.key, queue=seeded.queue, sha256=seeded.sha256)
    return Action(kind=kind, subject=seeded.task_id, source=QUEUE, destination=destination, copies=(copy,))


def order(redis, key=QUEUE):
    """Return the messages in the order in which they are served."""
    return redis.lrange(key, 0, -1)[::-1]


def roles(broker):
    """Return how the run changed the broker, step by step."""
    batches = journal.read(broker, records.context().run_id).batches
    return {(batch.receipt["op"], batch.receipt.get("role", "")) for batch in batches}


def test_near_the_end_that_is_served_nothing_is_sieved(broker, redis, seeded):
    """There a message is found at once."""
    near = seeded[20]

    assert told(apply(planned(broker, action(Kind.QUARANTINE, near, "quarantine")), broker, dry_run=False)) == [
        "applied"
    ]

    assert roles(broker) == {("move", "")}
    assert order(redis) == [each.raw for each in seeded if each is not near]


def test_deep_messages_are_quarantined_in_one_pass_and_come_back_to_their_places(broker, redis, seeded):
    """Near ones of the same plan are taken by their bytes."""
    before = values(redis)
    chosen = [seeded[n] for n in (3, 150, 151, 250, LENGTH - 1)]

    outcomes = apply(
        planned(broker, *(action(Kind.QUARANTINE, each, "quarantine") for each in chosen)), broker, dry_run=False
    )

    assert told(outcomes) == ["applied"] * 5
    assert roles(broker) == {("rename", "sieve"), ("deal", "sieve"), ("move", "")}
    assert order(redis) == [each.raw for each in seeded if each not in chosen]
    assert set(told(undone(broker, records.context().run_id))) == {"applied"}
    assert values(redis) == before


def test_a_deep_message_moves_to_another_queue_and_back(broker, redis, seeded):
    """By way of quarantine, where it can be found."""
    before = values(redis)
    deep = seeded[300]

    assert told(apply(planned(broker, action(Kind.MOVE, deep, "slow")), broker, dry_run=False)) == ["applied"]
    assert redis.llen("slow") == 1
    assert order(redis) == [each.raw for each in seeded if each is not deep]
    assert set(told(undone(broker, records.context().run_id))) == {"applied"}

    assert values(redis) == before


@pytest.mark.parametrize(("to", "place"), [("next", 0), ("last", LENGTH - 1), ("5", 5)])
def test_a_deep_message_goes_elsewhere_in_its_list_and_back(broker, redis, seeded, to, place):
    """All others keep their order."""
    before = values(redis)
    deep = seeded[200]
    expected = [each.raw for each in seeded if each is not deep]
    expected.insert(place, deep.raw)

    assert told(apply(planned(broker, action(Kind.REORDER, deep, to)), broker, dry_run=False)) == ["applied"]
    assert order(redis) == expected
    assert set(told(undone(broker, records.context().run_id))) == {"applied"}

    assert values(redis) == before


def test_a_deep_message_that_is_gone_is_told(broker, redis, seeded):
    """The pass over the list does not find it, and all others are where they were."""
    deep = seeded[200]
    plan = planned(
        broker, action(Kind.QUARANTINE, deep, "quarantine"), action(Kind.QUARANTINE, seeded[201], "quarantine")
    )
    redis.lrem(QUEUE, 1, deep.raw)

    assert told(apply(plan, broker, dry_run=False)) == ["skipped", "applied"]

    assert order(redis) == [each.raw for n, each in enumerate(seeded) if n not in {200, 201}]


def test_a_task_that_is_stopped_is_found_however_deep(broker, redis, seeded):
    """Every copy of it, in one pass."""
    copies = [seed_waiting(redis, task_id="x") for _ in range(3)]
    for _ in range(200):
        seed_waiting(redis)
    before = redis.llen(QUEUE)
    stopped = Action(kind=Kind.STOP, subject="x", source=QUEUE, destination="quarantine")

    (outcome,) = apply(planned(broker, stopped), broker, dry_run=False)

    assert "3 copies quarantined" in outcome.steps
    assert redis.llen(QUEUE) == before - 3
    kept = redis.lrange(KEYS.quarantine(records.context().run_id, QUEUE, part=2), 0, -1)
    assert sorted(kept) == sorted(copy.raw for copy in copies)
    assert seeded


def ids(redis):
    """Return the ids of a queue in the order in which they are served."""
    return [json.loads(raw)["headers"]["id"] for raw in order(redis)]


def pushed(redis, name, count):
    """Push messages with a short name each, many at once."""
    redis.lpush(QUEUE, *(json.dumps(envelope(task_id=f"{name}{n}")) for n in range(count)))


@pytest.mark.parametrize("at", [10, 1_500], ids=["near", "deep"])
def test_a_message_stays_where_it_is_once_its_place_is_too_deep(broker, redis, at):
    """Among so many, 800 from the end, while it was planned; nobody said that it should be served next."""
    pushed(redis, "t", 3_000)
    plan = planned(broker, asked.reordered(find(broker, [f"t{at}"]), f"t{at}", "2200"))
    pushed(redis, "u", 300)
    before = order(redis)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "skipped"
    assert outcome.reason == "Its place is too deep in the queue by now; plan it again."
    assert order(redis) == before


def test_a_message_whose_place_became_too_deep_during_the_pass_is_kept(broker, redis, monkeypatch):
    """It is where it can be found, and undo puts it back: to be served next, for the queue has moved on."""
    monkeypatch.setattr(lists, "SEARCHABLE", 100)
    pushed(redis, "t", 3_000)
    plan = planned(broker, asked.reordered(find(broker, ["t1500"]), "t1500", "2200"))

    def push(point):
        if point == "list-set-aside":
            pushed(redis, "u", 300)

    points.watchers.append(push)
    try:
        (outcome,) = apply(plan, broker, dry_run=False)
    finally:
        points.watchers.remove(push)

    run_id = records.context().run_id
    assert outcome.status == "failed"
    assert outcome.reason.endswith(f"It is kept in quarantine; `ops undo {run_id}` puts it back.")
    assert redis.llen(KEYS.quarantine(run_id, QUEUE, part=2)) == 1
    undone(broker, run_id)
    assert [each for each in ids(redis) if each[0] == "t"] == ["t1500", *(f"t{n}" for n in range(3_000) if n != 1_500)]
