"""A stopped task stays stopped, whatever becomes of its worker; where that is not proven, it is not claimed."""

from __future__ import annotations

import sys

import pytest

from opslib.plan import Action, Kind
from opslib.symptoms.stuck_tasks import Thresholds
from opslib.writer import apply
from tests.support.impostor import listening, reply
from tests.support.plans import audit, interrupted, proposed, told
from tests.support.seed import KEYS, quarantined, seed_unacked, seed_waiting, waiting_ids


def test_a_loop_is_taken_out_of_every_list(broker, redis):
    """Of each priority, and of what was delivered; its neighbours stay, and the bytes are kept."""
    neighbour = seed_waiting(redis)
    copies = [
        seed_waiting(redis, task_id="x", retries=12),
        seed_waiting(redis, task_id="x", retries=13, priority=9),
        seed_waiting(redis, task_id="x", retries=11, queue="mail"),
        seed_unacked(redis, task_id="x", retries=14),
    ]

    (outcome,) = apply(proposed(broker), broker, dry_run=False)

    assert (outcome.action.kind, str(outcome.status)) == (Kind.STOP, "applied")
    assert outcome.steps == ("no node to revoke it on", "4 copies quarantined", "found nowhere, twice")
    kept = [raw for raws in quarantined(redis).values() for raw in raws]
    assert sorted(kept) == sorted(copy.raw for copy in copies)
    assert waiting_ids(redis) == [neighbour.task_id]
    assert (redis.hlen(KEYS.unacked), redis.zcard(KEYS.unacked_index)) == (0, 0)


def test_a_loop_is_stopped_before_an_orphan_is_restored(broker, redis, archive):
    """What is stopped is out of the way when the rest goes back."""
    orphan = seed_unacked(redis)
    seed_unacked(redis, task_id="x", retries=12)

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert [str(outcome.action.kind) for outcome in outcomes] == ["stop", "restore"]
    assert told(outcomes) == ["applied", "applied"]
    assert waiting_ids(redis) == [orphan.task_id]
    intents = [line for line in audit(archive) if line["event"] == "intent"]
    assert [line["script"] for line in intents] == ["move", "note", "move"]
    assert intents[1]["revoke"] == ["x"]
    assert [subject for line in intents for subject, *_ in line.get("moves", [])] == ["x", orphan.task_id]


def test_a_copy_that_comes_meanwhile_is_taken_too(broker, redis):
    """A retry that was on its way when the stop began."""
    seed_waiting(redis, task_id="x", retries=12)
    plan = proposed(broker)
    late = []
    interrupted(broker, lambda batch: batch == 1 and late.append(seed_waiting(redis, task_id="x", retries=13)))

    (outcome,) = apply(plan, broker, dry_run=False)

    assert str(outcome.status) == "applied"
    assert "2 copies quarantined" in outcome.steps
    assert waiting_ids(redis) == []


def test_what_comes_back_again_and_again_is_not_called_stopped(broker, redis):
    """Somebody sends it faster than it is taken; that is said."""
    seed_waiting(redis, task_id="x", retries=12)
    plan = proposed(broker)
    interrupted(broker, lambda _: seed_waiting(redis, task_id="x", retries=13))

    (outcome,) = apply(plan, broker, dry_run=False)

    assert str(outcome.status) == "failed"
    assert "still found" in outcome.reason


def test_a_stop_that_loses_its_lock_is_not_called_done(broker, redis):
    """Another run may be at it by now."""
    seed_waiting(redis, task_id="x", retries=12)
    plan = proposed(broker)
    interrupted(broker, lambda _: redis.delete(KEYS.lock))

    (outcome,) = apply(plan, broker, dry_run=False)

    assert str(outcome.status) == "failed"


def test_a_stop_of_nothing_is_proven_all_the_same(broker, redis):
    """It ended by itself between plan and apply."""
    gone = seed_waiting(redis, task_id="x", retries=12)
    plan = proposed(broker)
    redis.lrem("celery", 1, gone.raw)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert (str(outcome.status), "0 copies quarantined" in outcome.steps) == ("applied", True)
    assert quarantined(redis) == {}


def test_a_plan_for_a_loop_names_every_copy(broker, redis):
    """So that it can be read what will be moved."""
    seed_waiting(redis, task_id="x", retries=12)
    seed_unacked(redis, task_id="x", retries=11)

    (action,) = proposed(broker, limits=Thresholds(loop_after=12))

    assert isinstance(action, Action)
    assert action.source == "celery, unacked"


@pytest.mark.parametrize("task_id", ["order:4711", "ä b", "x" * 300, "*"])
def test_any_id_can_be_stopped(broker, redis, task_id):
    """An id is whatever a producer chose."""
    seed_waiting(redis, task_id=task_id, retries=12)
    other = seed_waiting(redis, task_id="other")

    assert told(apply(proposed(broker), broker, dry_run=False)) == ["applied"]
    assert waiting_ids(redis) == [other.task_id]


PID = 4711


class Node:
    """
    Something that answers as a prefork node does with one task, whose process `stays` or not after it is killed.

    Attributes:
        told: Whether it was told to end the task.
    """

    def __init__(self, *, stays):
        self.stays, self.told = stays, False

    def __call__(self, asked):
        """Answer one question."""
        method = asked["method"]
        if method == "revoke":
            self.told = self.told or bool(asked["arguments"].get("terminate"))
            return [reply(asked, "n@x", {"ok": "terminate: x" if self.told else "flagged"})]
        running = {"id": "x", "type": "tests.hang", "time_start": 1.0, "worker_pid": PID}
        processes = [PID, PID + 1] if self.stays or not self.told else [PID + 1, PID + 2]
        answers = {
            "stats": {"pool": {"implementation": "celery.concurrency.prefork:TaskPool", "processes": processes}},
            "active": [] if self.told else [running],
            "query_task": {} if self.told else {"x": ["active", running]},
        }
        return [reply(asked, "n@x", answers.get(method, []))]


@pytest.mark.parametrize(("stays", "status"), [(True, "failed"), (False, "applied")])
def test_a_task_has_ended_when_its_process_has(broker, server, monkeypatch, stays, status):
    """Its node forgets it at once; a process in an uninterruptible call lives on, and the pool still has it."""
    monkeypatch.setattr(sys.modules["opslib.writer.stop"], "_END_WITHIN_S", 0.6)

    with listening(server, Node(stays=stays)):
        plan = proposed(broker)
        (outcome,) = apply(plan, broker, dry_run=False)

    assert plan.actions[0].terminate
    assert str(outcome.status) == status
    assert ("it did not end" in outcome.steps) is stays
    assert ("process" in outcome.reason) is stays
