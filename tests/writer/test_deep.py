"""What lies deep in a long list is changed by a pass over the whole of it: no search stops the server."""

from __future__ import annotations

import pytest

from opslib import records
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply, journal, lists
from tests.support.plans import planned, told, undone, values
from tests.support.seed import KEYS, seed_waiting

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
