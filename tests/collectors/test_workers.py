"""Real nodes of every pool are asked what they hold; one that stays silent is counted, never overlooked."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from opslib.collectors import workers
from opslib.collectors.deployment import collect
from opslib.findings import Severity
from opslib.symptoms.stuck_tasks import Thresholds, diagnose
from tests.support import servers
from tests.support.impostor import listening, reply
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, RATE_LIMITED

pytestmark = pytest.mark.usefixtures("archive")

PREFORK, THREADS = "prefork@trial", "threads@trial"


@pytest.fixture(scope="module")
def nodes(trial):
    """Two nodes that live as long as the module, by name."""
    started = [
        trial.worker(name=PREFORK, concurrency=2, queues="celery,mail", conf=RATE_LIMITED, ready=False),
        trial.worker(name=THREADS, pool="threads", concurrency=3, queues="threads", ready=False),
    ]
    for each in started:
        trial.wait_for(each)
    return {each.name: each for each in started}


@pytest.fixture
def broker(trial, nodes):
    """Open clients of the server that the nodes work for."""
    assert nodes
    return servers.broker(trial.server)


def read(broker, *, timeout_s=5.0, remembered=()):
    """Read every node, by name."""
    rows, held, receivers, coverage = workers.read(broker, timeout_s=timeout_s, remembered=remembered)
    return {row.name: row for row in rows}, held, receivers, coverage


def test_a_node_tells_what_it_is(broker):
    """Its pool in the words of its command line, its size, its queues, its own visibility timeout."""
    begun = time.monotonic()

    rows, _, receivers, coverage = read(broker)

    prefork, threads = rows[PREFORK], rows[THREADS]
    assert (prefork.pool, prefork.concurrency, prefork.queues) == ("prefork", 2, ("celery", "mail"))
    assert len(prefork.processes) == 2
    assert prefork.can_terminate
    assert (threads.pool, threads.concurrency, threads.processes) == ("threads", 3, ())
    assert not threads.can_terminate
    assert threads.rate_limited == ()
    assert prefork.rate_limited == ("tests.slow_lane",)
    assert prefork.visibility_timeout_s == 3600
    assert prefork.memory_bytes > 10_000_000
    assert (receivers, coverage.seen, coverage.silent) == (2, 2, 0)
    assert time.monotonic() - begun < 4


def test_what_a_node_holds_is_told_by_place(broker, trial):
    """One task runs, one waits for its ETA, and one for a free process; each is a row of its node."""
    running = [trial.send("sleep", 3, queue="mail") for _ in range(2)]
    trial.until_running(*running)
    reserved = trial.send("ok", queue="mail")
    scheduled = trial.send("ok", queue="mail", countdown=600)
    trial.until_unacked(reserved, scheduled)

    _, held, _, _ = read(broker)

    mine = {task.task_id: task for task in held}
    assert {mine[each].place for each in running} == {"active"}
    assert [mine[each].place for each in (reserved, scheduled)] == ["reserved", "scheduled"]
    assert {task.node for task in mine.values()} == {PREFORK}
    assert mine[running[0]].started_at == pytest.approx(time.time(), abs=10)
    assert mine[running[0]].pid in read(broker)[0][PREFORK].processes
    assert (mine[running[0]].acknowledged, mine[running[0]].queue) == (True, "mail")
    assert mine[scheduled].eta_at == pytest.approx(time.time() + 600, abs=10)
    assert mine[reserved].started_at is None


def test_nothing_stays_behind_in_the_broker(broker, trial):
    """Neither the reply list nor its route, though every node answered."""
    read(broker)

    assert not trial.redis.exists("_kombu.binding.reply.celery.pidbox")
    assert list(trial.redis.scan_iter(match="*reply.celery.pidbox")) == []


def test_a_frozen_node_is_silent_and_not_gone(broker, trial, nodes):
    """It heard the question; its name comes from what the broker remembers, and nothing of it is judged."""
    with nodes[THREADS].frozen():
        rows, _, receivers, coverage = read(broker, timeout_s=0.4, remembered=[PREFORK, THREADS])
        snapshot = collect(broker, settle="0.01s", answer_within="0.4s")
    until(lambda: trial.answers(nodes[THREADS]), DEADLINE_S, "the node answers again")

    assert (rows[THREADS].answered, rows[PREFORK].answered) == (False, True)
    assert (receivers, coverage.seen, coverage.silent) == (2, 1, 1)
    assert coverage.note.startswith("1 heard the question")
    assert [(f.severity, f.subject) for f in diagnose(snapshot, Thresholds()) if f.code == "worker-silent"] == [
        (Severity.UNKNOWN, THREADS)
    ]


def test_a_late_answer_leaves_nothing_behind(broker, trial, nodes):
    """What a node answers after it was thawed has no route any more."""
    with nodes[THREADS].frozen():
        read(broker, timeout_s=0.2)
    until(lambda: trial.answers(nodes[THREADS]), DEADLINE_S, "the node answers again")

    assert list(trial.redis.scan_iter(match="*reply.celery.pidbox*")) == []


def test_a_busy_solo_node_is_silent(broker, trial):
    """It answers nothing while its only task runs, and what it holds cannot be told from orphans."""
    solo = trial.worker(name="solo@trial", pool="solo", queues="solo")
    task_id = trial.send("late", 600, queue="solo")
    trial.until_running(task_id)
    try:
        snapshot = collect(broker, settle="1.1s", answer_within="0.4s")
    finally:
        solo.kill()

    assert (snapshot.receivers, len(snapshot.answering), snapshot.silent_nodes) == (3, 2, 1)
    found = {finding.code: finding.severity for finding in diagnose(snapshot, Thresholds())}
    assert found["worker-silent"] is Severity.UNKNOWN
    assert found["orphaned-unacked"] is Severity.UNKNOWN
    trial.redis.hdel("unacked", *trial.redis.hkeys("unacked"))
    trial.redis.delete("unacked_index")


@pytest.mark.usefixtures("nodes")
def test_an_expected_node_that_is_not_there_is_missed(trial):
    """A target may name its nodes; then one that is gone is no longer a matter of who heard."""
    expecting = servers.broker(trial.server, nodes=[PREFORK, "w9@trial"])

    rows, _, receivers, coverage = read(expecting)

    assert not rows["w9@trial"].answered
    assert (receivers, coverage.silent) == (2, 1)
    assert "w9@trial" in coverage.note


def test_who_may_not_publish_has_asked_nobody(broker, trial):
    """A read-only user gets the rest, is not told that nobody works, and has changed nothing."""
    servers.user(trial.redis, servers.READ_ONLY)
    limited = servers.elsewhere(broker, servers.as_user(trial.server))
    trial.redis.lpush("nobodys", "x")
    before = servers.dump(trial.redis)

    snapshot = collect(limited, settle="0.01s")

    assert servers.dump(trial.redis) == before
    assert [row.silent for row in snapshot.coverage if row.place == "workers"] == [1]
    codes = {finding.code for finding in diagnose(snapshot, Thresholds())}
    assert "cannot-see" in codes
    assert "no-workers" not in codes


@pytest.mark.usefixtures("nodes")
def test_nodes_behind_a_prefix_are_seen_with_it(trial):
    """Keys of the broker and of the results have a prefix each; without them nothing is there."""
    conf = {
        "broker_transport_options": {"global_keyprefix": "shop:"},
        "result_backend_transport_options": {"global_keyprefix": "res:"},
    }
    node = trial.worker(name="prefixed@trial", queues="celery", conf=conf, ready=False)
    prefixed = servers.broker(trial.server, global_keyprefix="shop:", result_keyprefix="res:")
    try:
        until(lambda: read(prefixed, timeout_s=0.5)[2] == 1, DEADLINE_S, "the node listens")
        trial.app.conf.broker_transport_options = {"ack_emulation": False, "global_keyprefix": "shop:"}
        with trial.app.connection_for_write() as connection:
            running = trial.app.send_task("tests.sleep", (30,), connection=connection).id
        trial.until_running(running)
        snapshot = collect(prefixed, settle="0.01s")
    finally:
        trial.app.conf.broker_transport_options = {"ack_emulation": False}
        node.kill()

    assert [row.name for row in snapshot.answering] == ["prefixed@trial"]
    assert [(task.task_id, task.place) for task in snapshot.held] == [(running, "active")]
    assert [(row.task_id, row.state) for row in snapshot.results] == [(running, "STARTED")]
    assert "celery" in {queue.name for queue in snapshot.queues}
    assert collect(servers.broker(trial.server), settle="0.01s").foreign_prefixes == ("shop:",)


SOUND = {"stats": {}, "active": [], "reserved": [], "scheduled": [], "active_queues": [], "registered": []}


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("value", [None, 1, "text", [], [1], {"pool": 7}, {"rusage": "N/A"}])
def test_odd_statistics_leave_a_bare_row(server, value):
    """They are for display; the node answered all the same, and holds what it says."""
    answers = {**SOUND, "stats": value, "active": [{"id": "1", "type": "tests.ok"}]}
    with listening(server, lambda asked: [reply(asked, "odd@x", answers[asked["method"]])]):
        rows, held, receivers, coverage = read(servers.broker(server))

    assert rows["odd@x"].answered
    assert [task.task_id for task in held] == ["1"]
    assert (receivers, coverage.silent) == (1, 0)


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("value", [None, 1, "text", {"error": "KeyError('active')"}, [1], [{"id": 5}]])
@pytest.mark.parametrize("method", ["active", "reserved", "scheduled", "registered", "active_queues"])
def test_who_answers_oddly_what_it_holds_has_not_answered(server, method, value):
    """Were it taken for a node that holds nothing, its tasks would look like orphans, and run twice."""
    answers = {**SOUND, method: value}
    with listening(server, lambda asked: [reply(asked, "odd@x", answers[asked["method"]])]):
        rows, _, _, coverage = read(servers.broker(server))

    assert not rows["odd@x"].answered
    assert (coverage.seen, coverage.silent) == (0, 1)


@pytest.mark.usefixtures("redis")
def test_a_node_that_answers_half_has_not_answered(server):
    """Without all of its answers, what it holds is not known."""
    with listening(server, lambda asked: [reply(asked, "half@x", {})] if asked["method"] == "stats" else []):
        rows, _, _, coverage = read(servers.broker(server), timeout_s=0.3)

    assert not rows["half@x"].answered
    assert (coverage.seen, coverage.silent) == (0, 1)


@pytest.mark.usefixtures("redis")
def test_five_hundred_nodes_are_told_one_by_one(server):
    """All of them heard the question, and nobody is waited for once the last one has answered."""
    names = [f"w{number}@lab" for number in range(500)]
    with ExitStack() as listeners, listening(server, lambda asked: _answers(asked, names)):
        for _ in names[1:]:
            client = listeners.enter_context(server.client())
            subscription = listeners.enter_context(client.pubsub())
            subscription.subscribe("/0.celery.pidbox")
            assert subscription.get_message(timeout=2)

        rows, held, receivers, coverage = read(servers.broker(server, nodes=names), timeout_s=30)

    assert (receivers, coverage.seen, coverage.silent) == (500, 500, 0)
    assert all(row.answered for row in rows.values())
    assert {task.node for task in held} == set(names)


def _answers(asked, names):
    value = [{"id": "1", "type": "tests.ok"}] if asked["method"] == "active" else SOUND[asked["method"]]
    return [reply(asked, name, value) for name in names]
