"""A canary says only what it proves: each way in which one can end, with nobody there but this test."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from opslib import records
from opslib.plan import Action, Gate, Kind
from opslib.writer import apply, canary, points, resume
from tests.support.plans import planned
from tests.support.resets import Cut, cut_at
from tests.support.seed import KEYS, envelope, seed_result

QUEUE = "celery"
CANARY = Action(
    kind=Kind.CANARY,
    subject=QUEUE,
    source="canary",
    destination=QUEUE,
    step="canary",
    gate=Gate(until="ran", within_s=0.5),
)


@pytest.fixture
def fly(broker, redis, monkeypatch):
    """Return what sends one off, or goes on with a plan, and does something to its message once it waits."""
    monkeypatch.setattr(canary, "_PAUSE_S", 0.01)
    monkeypatch.setattr(canary, "_RESULT_S", 0.1)

    def sent(do=None, plan=None):
        plan = plan or planned(broker, CANARY)
        with monkeypatch.context() as patched:
            at = {"canary-published": lambda: do(redis.lindex(QUEUE, 0))} if do else {}
            patched.setattr(points, "watchers", [*points.watchers, lambda name: at.get(name, bool)()])
            (outcome,) = apply(plan, broker, dry_run=False)
        left = resume.remaining(plan, broker, records.context().run_id)
        assert bool(left.actions) is (outcome.status != "applied"), "only one that proved something is not sent again"
        return outcome, left

    return sent


def id_of(raw):
    """Return the id of a message."""
    return json.loads(raw)["headers"]["id"]


@pytest.mark.parametrize(("state", "status"), [("SUCCESS", "applied"), ("FAILURE", "failed"), ("REVOKED", "failed")])
def test_its_result_counts_and_not_that_there_is_one(fly, redis, monkeypatch, state, status):
    """Also where it is written a moment after the message has gone."""
    by_id = canary.results.by_id
    looks = []

    def late(broker, ids):
        looks.append(ids)
        if len(looks) == 3:
            seed_result(redis, state, task_id=ids[0])
        return by_id(broker, ids)

    monkeypatch.setattr(canary.results, "by_id", late)

    outcome, _ = fly(lambda raw: redis.lrem(QUEUE, 1, raw))

    assert (outcome.status, state in outcome.reason) == (status, True)


def test_without_a_result_it_was_taken_and_no_more(fly, redis):
    """Nobody says that it ran to its end."""
    outcome, _ = fly(lambda raw: redis.lrem(QUEUE, 1, raw))

    assert outcome.status == "applied"
    assert "That it ran to its end is not proven." in outcome.reason


def test_one_that_waits_proves_nothing_and_expires(fly, broker, redis, monkeypatch):
    """Also where so much came after it that it cannot be found any more."""
    monkeypatch.setattr(canary, "_NEAR", 2)
    seen = []

    def others(raw):
        seen.append(json.loads(raw)["headers"])
        redis.lpush(QUEUE, *(json.dumps(envelope()) for _ in range(5)))

    outcome, _ = fly(others)

    assert (outcome.status, "No node took it" in outcome.reason) == ("failed", True)
    assert "It was taken out again." in outcome.reason
    assert redis.llen(QUEUE) == 5
    life_s = (datetime.fromisoformat(seen[0]["expires"]) - broker.server_time()).total_seconds()
    assert 30 < life_s < 90


def test_what_a_node_holds_and_does_not_finish_is_left_to_it(fly, redis):
    """It proves nothing, and nobody takes it out of a node's hands."""
    tag = []

    def take(raw):
        message = json.loads(raw)
        tag.append(message["properties"]["delivery_tag"])
        redis.hset(KEYS.unacked, tag[0], json.dumps([message, "", QUEUE]))
        redis.lrem(QUEUE, 1, raw)

    outcome, _ = fly(take)

    assert (outcome.status, "did not finish it" in outcome.reason) == ("failed", True)
    assert redis.hexists(KEYS.unacked, tag[0])


def test_it_is_put_beside_what_is_kept_already(fly, redis):
    """Nothing joins a list that an undo would put back as a whole."""
    kept = KEYS.quarantine(records.context().run_id, QUEUE, 2)
    redis.rpush(kept, b"kept")

    outcome, _ = fly()

    assert "taken out again" in outcome.reason
    assert redis.lrange(kept, 0, -1) == [b"kept"]


def test_one_run_sends_one(fly, broker, redis):
    """Cut off, it goes on with the one that it has sent; once that one was taken out, with another."""
    seen = []
    plan = planned(broker, CANARY)
    with cut_at("canary-published"), pytest.raises(Cut):
        fly(plan=plan)
    broker.writes.delete(broker.keys.lock)
    (first,) = redis.lrange(QUEUE, 0, -1)

    left = resume.remaining(plan, broker, records.context().run_id)
    _, left = fly(lambda _: seen.append(redis.lrange(QUEUE, 0, -1)), left)
    outcome, _ = fly(lambda _: seen.append(redis.lrange(QUEUE, 0, -1)), left)

    assert seen[0] == [first]
    assert len(seen[1]) == 1
    assert id_of(seen[1][0]) != id_of(first)
    assert "No node took it" in outcome.reason
