"""What holds messages up, on real workers: a full prefetch, a rate limit, a task that nobody has, too much of it."""

from __future__ import annotations

import json
import threading
import time

import pytest

from opslib.collectors.deployment import collect
from opslib.symptoms.queue_backlog import Thresholds, diagnose, rates
from tests.support import servers
from tests.support.seed import envelope, iso
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, RATE_LIMITED

LIMITS = Thresholds(queue_depth=10)
PREFETCH = {"worker_prefetch_multiplier": 1}


@pytest.fixture
def queue(request, trial):
    """A queue of the test's own, on a deployment that is shared."""
    name = request.node.name.replace("[", "-").rstrip("]")
    yield name
    trial.redis.delete(name)


def push(trial, queue, count, task="tests.ok", **headers):
    """Publish messages as a producer does."""
    trial.redis.lpush(queue, *(json.dumps(envelope(task, queue=queue, **headers)) for _ in range(count)))


def held_by(trial, queue):
    """Return how many messages of a queue were delivered and are not acknowledged."""
    values = (json.loads(value) for value in trial.redis.hvals("unacked"))
    return sum(value[2] == queue for value in values)


def look(trial, window="0.6s"):
    """Return a snapshot with a short window."""
    return collect(servers.broker(trial.server), window=window)


def found(seen, code, subject):
    """Return the finding of that code about a subject; None if there is none."""
    return next((each for each in diagnose(seen, LIMITS) if (each.code, each.subject) == (code, subject)), None)


@pytest.mark.parametrize("limit", [3, None])
def test_a_node_is_full_where_its_eta_limit_is_reached(trial, queue, limit):
    """Then ordinary messages stay in the queue; without a limit the prefetch grows with each, and they flow."""
    worker = trial.worker(queues=queue, conf={**PREFETCH, "worker_eta_task_limit": limit})
    push(trial, queue, 5, eta=iso(1000))
    until(lambda: held_by(trial, queue) == (limit or 5), DEADLINE_S, "the node holds all that it may")
    push(trial, queue, 3)
    if not limit:
        until(lambda: not trial.redis.llen(queue), DEADLINE_S, "ordinary messages flow")

    seen = look(trial)
    finding = found(seen, "eta-flood", worker.name)

    assert (finding is not None) is (limit is not None)
    assert trial.redis.llen(queue) == (5 if limit else 0)
    if finding:
        assert (finding.evidence["scheduled"], finding.evidence["prefetch"]) == (limit, limit)
        assert found(seen, "worker-not-consuming", worker.name) is None
    worker.kill()


def test_a_rate_limit_is_the_nodes_own(trial, queue):
    """What the node has received it holds back unseen; what waits takes as long as it says."""
    worker = trial.worker(queues=queue, conf={**PREFETCH, **RATE_LIMITED})
    push(trial, queue, 4, "tests.slow_lane")
    # One runs at once, and the next is held back and fills the prefetch.
    until(lambda: trial.redis.llen(queue) == 2, DEADLINE_S, "the node takes no more")

    finding = found(look(trial), "rate-limited", "tests.slow_lane")

    assert finding.evidence["rate_limits"] == [f"{worker.name}: 1/h"]
    assert finding.evidence["needs_s"] == 2 * 3600
    worker.kill()


def test_a_task_that_no_node_has_is_lost_once_it_is_taken(trial, queue):
    """While its node is busy it can still be told; then it is gone, and its result says why."""
    worker = trial.worker(queues=queue, conf=PREFETCH)
    gate = trial.send("gate", queue=queue)
    trial.until_running(gate)
    push(trial, queue, 1, "tests.nowhere", task_id="lost")

    finding = found(look(trial), "unregistered-task", "tests.nowhere")
    trial.redis.set("open", 1)
    until(lambda: trial.state("lost"), DEADLINE_S, "the message is taken")
    trial.redis.delete("open")

    assert (str(finding.severity), finding.evidence["without"]) == ("critical", [worker.name])
    assert trial.state("lost") == "FAILURE"
    assert not held_by(trial, queue)
    worker.kill()


def test_a_queue_that_fills_faster_than_it_drains_grows(trial, queue):
    """Counted without events, while a node takes and a producer pushes."""
    worker = trial.worker(queues=queue, conf=PREFETCH)
    push(trial, queue, 15, "tests.sleep", args=[0.05])
    done = threading.Event()

    def produce():
        with trial.server.client() as client:
            while not done.is_set():
                client.lpush(queue, *(json.dumps(envelope("tests.sleep", queue=queue, args=[0.05])) for _ in range(8)))
                time.sleep(0.05)

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        seen = look(trial, "2s")
    finally:
        done.set()
        thread.join()
    (rate,) = [each for each in rates(seen) if each.queue == queue]
    finding = found(seen, "queue-backlog", queue)

    assert rate.grows
    assert rate.served
    assert rate.arrived - rate.served == rate.depth - rate.before
    assert str(finding.severity) == "critical"
    assert "never empty: it grows by" in finding.message
    worker.kill()
