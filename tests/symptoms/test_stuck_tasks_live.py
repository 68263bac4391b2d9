"""The judgement on real nodes: what a dead one left behind is claimed, what a living one holds never is."""

from __future__ import annotations

import threading

import pytest

from opslib.collectors.deployment import collect
from opslib.findings import Severity, Verdict, verdict
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan
from tests.support import servers
from tests.support.seed import KEYS
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, RATE_LIMITED

pytestmark = pytest.mark.usefixtures("archive")

STEADY, OTHER = "steady@trial", "other@trial"
LONG_S = 600


@pytest.fixture(scope="module")
def steady(trial):
    """The node that lives as long as the module, with a neighbour that holds back one task."""
    nodes = [
        trial.worker(name=STEADY, concurrency=2, queues="celery", ready=False),
        trial.worker(name=OTHER, pool="threads", queues="slow", conf=RATE_LIMITED, ready=False),
    ]
    for each in nodes:
        trial.wait_for(each)
    return nodes[0]


@pytest.fixture
def broker(trial, steady):
    """Open clients of the server; at the end, what its test left behind is taken away."""
    assert steady
    yield servers.broker(trial.server)
    trial.redis.delete(KEYS.unacked, KEYS.unacked_index, *trial.redis.scan_iter(match=f"{KEYS.result_root}*"))


def judged(broker, *, settle="1.1s", answer_within="1s", code="orphaned-unacked"):
    """Look twice, and return severity by subject of one kind of finding; and what would be done."""
    snapshot = collect(broker, settle=settle, answer_within=answer_within)
    findings = diagnose(snapshot, Thresholds())
    actions = [(str(action.kind), action.subject) for action in plan(snapshot, findings, max_actions=100)]
    return {finding.subject: finding.severity for finding in findings if finding.code == code}, actions


def doomed(trial, number=4, **options):
    """Start a node of one process, and have it run one late task and prefetch the rest."""
    node = trial.worker(queues="doomed", **options)
    sent = [trial.send("late", LONG_S, queue="doomed") for _ in range(number)]
    trial.until_unacked(*sent)
    until(lambda: any(map(trial.ran, sent)), DEADLINE_S, "one of them runs")
    return node, sent


def test_a_quiet_system_is_healthy(broker):
    """Two nodes, nothing to do."""
    snapshot = collect(broker)

    assert verdict(diagnose(snapshot, Thresholds())) is Verdict.HEALTHY


def test_what_a_dead_node_left_is_claimed_and_not_before(trial, broker):
    """While it lives, neither what it runs nor what it prefetched; once it is killed, exactly those."""
    node, sent = doomed(trial)

    alive = judged(broker)
    node.kill()
    dead, actions = judged(broker)

    assert alive == ({}, [])
    assert dead == dict.fromkeys(sent, Severity.CRITICAL)
    assert sorted(actions) == sorted(("restore", task_id) for task_id in sent)


def test_a_frozen_node_keeps_what_it_holds(trial, broker):
    """Nobody can tell it from a dead one, so nothing is claimed until it is dead or answers."""
    node, sent = doomed(trial, number=2)

    with node.frozen():
        frozen, actions = judged(broker, answer_within="0.4s")
    until(lambda: trial.answers(node), DEADLINE_S, "it answers again")
    thawed = judged(broker)
    node.kill()

    assert (frozen, actions) == (dict.fromkeys(sent, Severity.UNKNOWN), [])
    assert thawed == ({}, [])


def test_a_node_that_takes_no_control_messages_may_hold_it(trial, broker):
    """Its connection waits in BRPOP, and nobody answers for it."""
    node, sent = doomed(trial, number=1)
    deaf = trial.worker(queues="deaf", conf={"worker_enable_remote_control": False}, ready=False)
    until(lambda: collect(broker, settle="0.01s").server.consumers == 4, DEADLINE_S, "it consumes")
    node.kill()

    found, actions = judged(broker)
    deaf.kill()

    assert (found, actions) == ({sent[0]: Severity.UNKNOWN}, [])


def test_a_task_in_a_rate_limits_bucket_is_never_claimed(trial, broker):
    """It is unacked and in no node's answer, and its node lives."""
    first, second = [trial.send("slow_lane", queue="slow") for _ in range(2)]
    trial.until_running(first)
    trial.until_unacked(second)

    found, actions = judged(broker)

    assert (found, actions) == ({second: Severity.UNKNOWN}, [])


def test_a_retry_in_its_countdown_is_held(trial, broker):
    """It is unacked for as long as the countdown takes, and its node says so."""
    task_id = trial.send("retry_forever", 60)
    until(lambda: trial.unacked().get(task_id, {}).get("retries") == 1, DEADLINE_S, "it waits for its retry")

    assert judged(broker) == ({}, [])
    assert judged(broker, code="retry-loop") == ({}, [])


def test_an_early_acknowledged_task_of_a_dead_node_is_a_zombie(trial, broker):
    """No message of it is left; only its result still says that it is under way."""
    node = trial.worker(queues="early")
    task_id = trial.send("sleep", LONG_S, queue="early")
    until(lambda: trial.state(task_id) == "STARTED" and task_id not in trial.unacked(), DEADLINE_S, "it runs")

    alive = judged(broker, code="zombie-result")
    node.kill()
    dead, actions = judged(broker, code="zombie-result")

    assert alive == ({}, [])
    assert (dead, actions) == ({task_id: Severity.ATTENTION}, [])


def test_a_busy_system_is_accused_of_nothing(trial, broker):
    """Ten looks in a row, while tasks of every kind come and go faster than they can be read."""
    over, sent = threading.Event(), []

    def produce():
        while not over.wait(0.003):
            sent.append(trial.send("ok"))
            sent.append(trial.send("late", 0.005))
            if len(sent) % 10 == 0:
                sent.append(trial.send("flaky"))

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        until(lambda: len(sent) > 20, DEADLINE_S, "there is work")
        looks = [collect(broker, settle="0.1s") for _ in range(10)]
    finally:
        over.set()
        producer.join()

    assert [diagnose(each, Thresholds()) for each in looks] == [[]] * 10
    assert any(each.earlier for each in looks)
    trial.until_done(*sent)
