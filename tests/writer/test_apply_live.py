"""Changes on real nodes: what is put back runs once, what is stopped never runs again."""

from __future__ import annotations

import time

import psutil
import pytest

from opslib.collectors.deployment import collect
from opslib.plan import Kind
from opslib.symptoms.stuck_tasks import Thresholds
from opslib.writer import apply
from tests.support import servers
from tests.support.plans import proposed, told
from tests.support.seed import KEYS, quarantined
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

pytestmark = pytest.mark.usefixtures("archive")

IMPATIENT = Thresholds(stuck_after_s=0.2, loop_after=3)
COUNTDOWN_S = 0.5


@pytest.fixture(scope="module")
def steady(trial):
    """The prefork node that lives as long as the module."""
    return trial.worker(name="steady@trial", concurrency=2)


@pytest.fixture
def broker(trial, steady):
    """Open clients of the server; at the end, nothing is left in it but what nodes declared."""
    assert steady
    yield servers.broker(trial.server)
    trial.redis.delete(*(key for key in trial.redis.scan_iter() if not key.startswith(b"_kombu.")))


def doing(broker, task_id):
    """Wait until one task is hung or loops by these thresholds, and return the plan for it."""

    def found():
        plan = proposed(broker, limits=IMPATIENT)
        return [action.subject for action in plan] == [task_id] and plan

    return until(found, DEADLINE_S, "there is a plan for it")


def nowhere(trial, task_id):
    """Say whether no list and no delivery holds a task."""
    lists = [key for key in trial.redis.scan_iter() if trial.redis.type(key) == b"list" and b"opslib:" not in key]
    waiting = [raw for key in lists for raw in trial.redis.lrange(key, 0, -1)]
    return task_id not in trial.unacked() and not any(task_id.encode() in raw for raw in waiting)


def test_what_is_put_back_runs_once(trial, broker):
    """The killed node ran one of them and had the others prefetched; another node does them all."""
    doomed = trial.worker(queues="parcels")
    sent = [trial.send("gate", queue="parcels") for _ in range(4)]
    trial.until_unacked(*sent)
    until(lambda: any(map(trial.ran, sent)), DEADLINE_S, "one runs")
    doomed.kill()
    begun = {task_id: trial.ran(task_id) for task_id in sent}
    until(lambda: len(proposed(broker)) == 4, DEADLINE_S, "all are old enough")

    outcomes = apply(proposed(broker), broker, dry_run=False)
    trial.redis.set("open", 1)
    rescuer = trial.worker(queues="parcels")
    trial.until_done(*sent)
    until(lambda: not trial.redis.hlen(KEYS.unacked), DEADLINE_S, "all are acknowledged")
    rescuer.kill()

    assert told(outcomes) == ["applied"] * 4
    assert {task_id: trial.ran(task_id) - begun[task_id] for task_id in sent} == dict.fromkeys(sent, 1)


@pytest.mark.parametrize("task", ["hang", "hang_late", "stubborn"])
def test_a_hung_task_is_ended_and_its_node_works_on(trial, broker, steady, task):
    """Acknowledged or not, deaf to SIGTERM or not: its process is gone, and no copy of it is left to run again."""
    task_id = trial.send(task)
    trial.until_running(task_id)
    plan = doing(broker, task_id)
    (process,) = [held.pid for held in collect(broker).held if held.task_id == task_id]

    (outcome,) = apply(plan, broker, dry_run=False)

    assert (outcome.action.kind, str(outcome.status)) == (Kind.STOP, "applied"), outcome
    assert {f"revoked on {steady.name}", f"SIGKILL sent on {steady.name}", "it ended"} <= set(outcome.steps)
    assert not psutil.pid_exists(process)
    assert nowhere(trial, task_id)
    assert trial.ran(task_id) == 1
    after = [trial.send("ok") for _ in range(3)]
    trial.until_done(*after)


def test_a_stopped_loop_stays_stopped_without_its_worker(trial, broker):
    """Its node, the only one that knows of the revoke, is killed, and another one joins that has never heard of it."""
    node = trial.worker(queues="loops")
    task_id = trial.send("retry_forever", COUNTDOWN_S, queue="loops")
    plan = doing(broker, task_id)

    (outcome,) = apply(plan, broker, dry_run=False)
    attempts = trial.ran(task_id)
    node.kill()
    heir = trial.worker(queues="loops")
    later = trial.send("ok", queue="loops", countdown=2 * COUNTDOWN_S)
    trial.until_done(later)
    heir.kill()

    assert str(outcome.status) == "applied"
    assert trial.ran(task_id) == attempts
    assert nowhere(trial, task_id)
    assert quarantined(trial.redis).keys() == {"loops"}


def test_a_pool_that_cannot_end_a_task_is_not_said_to_have(trial, broker):
    """It runs on until its node is restarted; but it will not come back then."""
    node = trial.worker(queues="threads", pool="threads")
    task_id = trial.send("hang_late", queue="threads")
    trial.until_running(task_id)

    (outcome,) = apply(doing(broker, task_id), broker, dry_run=False)
    node.kill()

    assert str(outcome.status) == "failed"
    assert f"still runs on {node.name}" in outcome.reason
    assert nowhere(trial, task_id)
    assert quarantined(trial.redis).keys() == {"threads"}


def test_a_node_that_does_not_confirm_is_named(trial, broker):
    """It was frozen when the revoke came, and may run what it holds after all."""
    node = trial.worker(queues="loops")
    task_id = trial.send("retry_forever", COUNTDOWN_S, queue="loops")
    plan = doing(broker, task_id)

    begun = time.monotonic()
    with node.frozen():
        (outcome,) = apply(plan, broker, dry_run=False)
    node.kill()

    assert str(outcome.status) == "failed"
    assert "1 node did not confirm" in outcome.reason
    assert time.monotonic() - begun < 60
