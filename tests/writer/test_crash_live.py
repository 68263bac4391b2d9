"""A stop on real nodes is cut off and gone on with by its id: what it was about runs no more."""

from __future__ import annotations

import signal
import time

import pytest

from opslib import direct
from opslib import plan as plans
from opslib.plan import Kind
from opslib.symptoms.stuck_tasks import Thresholds
from opslib.writer import lock, resume
from tests.support import crashing, servers
from tests.support.crashing import Order, cut
from tests.support.plans import audit, proposed, told
from tests.support.seed import KEYS
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

COUNTDOWN_S = 0.5
LOOPS = 3


@pytest.mark.parametrize("place", ["after-script", "after-result-2"])
def test_a_stop_that_is_killed_is_gone_on_with(trial, archive, place):
    """Before its nodes were told to drop the task, and after that was written down."""
    worker = trial.worker()
    looping = [trial.send("retry_forever", COUNTDOWN_S) for _ in range(LOOPS)]
    broker = servers.broker(trial.server)
    limits = Thresholds(loop_after=2)
    plan = until(
        lambda: (found := proposed(broker, limits=limits)) and len(found) == LOOPS and found,
        DEADLINE_S,
        "all of them loop",
    )
    assert {action.kind for action in plan} == {Kind.STOP}

    _killed(trial.server.url, archive, plan, place)
    (run_id,) = {line["run_id"] for line in audit(archive)}
    trial.redis.delete(KEYS.lock)
    saved, _ = direct.saved(archive, run_id)
    _, outcomes = crashing.run("resume", resume.remaining(saved, broker, run_id), broker)

    assert told(outcomes) == ["applied"] * LOOPS, outcomes
    begun = [trial.ran(task_id) for task_id in looping]
    time.sleep(3 * COUNTDOWN_S)
    assert [trial.ran(task_id) for task_id in looping] == begun
    there = [
        raw for key in trial.redis.scan_iter(match="celery*", _type="list") for raw in trial.redis.lrange(key, 0, -1)
    ]
    assert not [
        task_id for task_id in looping if task_id in trial.unacked() or any(task_id.encode() in r for r in there)
    ]
    assert not trial.redis.exists(KEYS.lock)
    worker.kill()
    trial.redis.flushdb()


def _killed(url, archive, plan, place):
    order = Order(
        url=url,
        archive=str(archive),
        name="stop",
        plan=plans.write(plan),
        where=cut(place),
        signal=signal.SIGKILL,
        life_ms=lock.LIFE_MS,
        whole=False,
    )
    process = crashing.begin(order)
    process.join(DEADLINE_S)
    assert process.exitcode == -signal.SIGKILL
    process.close()
