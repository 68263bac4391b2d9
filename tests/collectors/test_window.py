"""Watched for a while: what real traffic came and went, what nodes told of it, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from opslib.collectors import workers
from opslib.collectors.deployment import collect
from opslib.embedded import processes
from opslib.errors import BrokerUnreachable, SettingsError
from opslib.findings import verdict
from opslib.symptoms.stuck_tasks import Thresholds, diagnose
from tests.collectors.test_collect import ALLOWED, overheard
from tests.support import engines, servers
from tests.support.seed import bind, seed_result, seed_unacked, seed_waiting
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

TELLS = {"worker_send_task_events": True}


@contextmanager
def traffic(send, pause_s=0.05):
    """Call something again and again in the block; give the list of what it returned."""
    over, sent = threading.Event(), []

    def run():
        while not over.wait(pause_s):
            sent.append(send())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()


def of(window, kind):
    """Return the window's rows of one kind of event by task."""
    return {row.task: row for row in window.events if row.kind == kind}


def listeners(redis):
    """Return this tool's connections that are subscribed to something."""
    return [each for each in redis.client_list(_type="pubsub") if each["name"].startswith("opslib")]


def note(snapshot):
    """Return what the coverage says about events."""
    return next(row for row in snapshot.coverage if row.place == "events")


@pytest.fixture
def node(trial):
    """Start a node that ends with its test; the queues that it leaves behind are gone then."""
    running = []

    def start(**options):
        running.append(trial.worker(**options))
        return running[-1]

    yield start
    for worker in running:
        worker.kill()
    trial.redis.flushall()


def test_a_node_that_tells_is_heard(trial, node):
    """Real traffic is counted by the lists, by the events and by the node's own counters; all three agree."""
    worker = node(conf=TELLS, concurrency=2)
    backlog = [trial.send("sleep", 0.05) for _ in range(150)]
    broker = servers.broker(trial.server)

    with traffic(lambda: trial.send("sleep", 0.05)):
        snapshot = collect(broker, window="3s")

    window = snapshot.window
    (flow,) = window.flows
    assert flow.exact
    assert flow.arrived > 10
    assert flow.served > 10
    assert flow.before + flow.arrived - flow.served == flow.after
    assert flow.before <= len(backlog)
    assert 3.0 <= window.length_s < 4.0
    assert window.senders == window.heard == (worker.name,)
    assert window.mute == ()
    started = of(window, "task-started")["tests.sleep"]
    assert abs(started.count - flow.served) <= 8  # what is prefetched at either end
    assert abs(window.accepted["tests.sleep"] - started.count) <= 4
    assert len(started.ids) == 20
    assert note(snapshot).note == ""
    assert snapshot.earlier is not None


def test_retries_are_heard_with_their_cause(trial, node):
    """A task that began before the window is named by its message."""
    node(conf=TELLS)
    task_id = trial.send("retry_forever", 0.3)
    trial.until_running(task_id)

    snapshot = collect(servers.broker(trial.server), window="2s")

    retried = of(snapshot.window, "task-retried")["tests.retry_forever"]
    assert retried.count >= 2
    assert retried.ids == (task_id,)
    first, last = snapshot.earlier.unacked, snapshot.unacked
    assert [row.task_id for row in (*first, *last)].count(task_id) <= 2


def test_a_silent_teller_is_no_reason_for_doubt(trial, node):
    """A node without -E runs tasks and tells nothing: it is named, with what to do, and the verdict stays."""
    worker = node()
    broker = servers.broker(trial.server)

    with traffic(lambda: trial.send("ok")):
        snapshot = collect(broker, window="1.5s")

    assert snapshot.window.senders == ()
    assert snapshot.window.mute == (worker.name,)
    assert snapshot.window.events == ()
    assert snapshot.window.accepted["tests.ok"] > 5
    assert worker.name in note(snapshot).note
    assert "`-E`" in note(snapshot).note
    assert note(snapshot).silent == 0
    assert verdict(diagnose(snapshot, Thresholds())) == "healthy"


def test_an_idle_queue_is_known_to_be_idle(trial, node):
    """Its node accepted nothing; a queue through which tasks pass unseen is no exact count."""
    node(queues="celery,passing")
    trial.send("ok", queue="passing")
    broker = servers.broker(trial.server)

    with traffic(lambda: trial.send("ok", queue="passing"), pause_s=0.01):
        busy = collect(broker, window="1s")
    until(lambda: not trial.unacked(), DEADLINE_S, "all is done")
    quiet = collect(broker, window="1s")

    assert not any(flow.exact for flow in busy.window.flows)
    assert {flow.queue: (flow.arrived, flow.served, flow.exact) for flow in quiet.window.flows} == {
        "celery": (0, 0, True),
        "passing": (0, 0, True),
    }
    assert "No task began" in note(quiet).note


def test_events_are_switched_on_for_the_window_alone(trial, node):
    """And off again, but for the node that sent them anyway."""
    quiet, loud = node(queues="a", heartbeat=True), node(queues="b", conf=TELLS)
    broker = servers.broker(trial.server)

    with traffic(lambda: (trial.send("ok", queue="a"), trial.send("ok", queue="b"))):
        during = collect(broker, window="2s", tell_events=True)
        after = collect(broker, window="1s")

    assert during.window.told == (quiet.name,)
    assert set(during.window.senders) == {quiet.name, loud.name}
    assert after.window.told == ()
    assert after.window.senders == (loud.name,)
    assert after.window.mute == (quiet.name,)


def test_events_are_switched_off_when_the_window_ends_early(trial, node):
    """Ctrl-C ends it at once, without a connection or an order left over."""
    worker = node(heartbeat=True)
    code = (
        "import sys\nfrom opslib import collect, connect\nfrom opslib.settings import Target\n"
        "collect(connect(Target(name='trial', broker_url=sys.argv[1])), window='60s', tell_events=True)\n"
    )
    environment = processes.environment(PYTHONPATH=os.pathsep.join(sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", code, trial.server.url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        until(lambda: listeners(trial.redis), DEADLINE_S, "it listens")
        with traffic(lambda: trial.send("ok")):
            listening = trial.redis.pubsub()
            listening.psubscribe("/0.celeryev/task.*")
            until(lambda: (listening.get_message() or {}).get("type") == "pmessage", DEADLINE_S, "events are sent")
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=20)

        assert "KeyboardInterrupt" in said
        assert child.returncode == -signal.SIGINT

    answer = trial.app.control.broadcast("disable_events", destination=[worker.name], reply=True, timeout=2)
    listening.close()
    assert answer == [{worker.name: {"ok": "task events already disabled"}}]
    assert not listeners(trial.redis)


def test_what_waits_to_be_retried_is_read_again(broker, redis):
    """How far it came meanwhile is part of the second look; that which was served is gone from it."""
    bind(redis, "celery", "celery")
    served, stays = seed_waiting(redis, retries=3), seed_waiting(redis, retries=4)

    timer = threading.Timer(0.4, lambda: redis.lrem("celery", 1, served.raw))
    timer.start()
    snapshot = collect(broker, window="1s")
    timer.join()

    assert {row.task_id for row in snapshot.earlier.waiting} == {served.task_id, stays.task_id}
    assert [row.task_id for row in snapshot.waiting] == [stays.task_id]


def test_all_that_retries_is_counted(broker, redis):
    """Also what is beyond the rows that are kept, by queue and task."""
    for _ in range(3):
        seed_waiting(redis, "shop.charge", retries=2)
    seed_waiting(redis, "shop.charge")
    seed_waiting(redis, "shop.pack", retries=1, priority=6)

    (queue,) = collect(broker).queues

    assert queue.retrying == {"shop.charge": 3, "shop.pack": 1}


def test_watching_changes_nothing(broker, redis):
    """The same keys, with the same bytes and the same lives."""
    seed_waiting(redis, retries=1)
    seed_unacked(redis)
    seed_result(redis, "STARTED")
    before = servers.dump(redis)

    collect(broker, window="0.7s", tell_events=True)

    assert servers.dump(redis) == before


def test_a_user_who_may_only_read_still_counts(broker, redis, server):
    """Events and nodes are refused, and the coverage says so; the lists are not."""
    servers.user(redis, servers.READ_ONLY)
    limited = servers.elsewhere(broker, servers.as_user(server))
    seed_waiting(redis)

    timer = threading.Timer(0.3, lambda: seed_waiting(redis))
    timer.start()
    snapshot = collect(limited, window="1s", tell_events=True)
    timer.join()

    (flow,) = snapshot.window.flows
    assert (flow.arrived, flow.exact) == (1, True)
    assert "may not listen" in note(snapshot).note
    assert "could not be told" in note(snapshot).note


def test_watching_asks_only_for_what_it_may(broker, redis):
    """As every other look does."""
    seed_waiting(redis, retries=1)

    with overheard(redis) as said:
        collect(broker, window="0.7s", tell_events=True)

    assert {command.split()[0].upper() for command in said} <= ALLOWED
    assert sum(command.startswith("LPOS") for command in said) == 4  # twice in each of two samples


def test_nobody_there_is_no_error(broker):
    """An empty database has no queue, no node and no event."""
    window = collect(broker, window="0.3s").window

    assert (window.flows, window.events, window.accepted) == ((), (), {})


@pytest.mark.parametrize("window", ["10", "-3s", "never"])
def test_a_window_needs_a_unit(broker, window):
    """A bare number is refused before anything is read."""
    with pytest.raises(SettingsError, match="window"):
        collect(broker, window=window)


def test_a_server_that_goes_away_is_told(tmp_path):
    """Within seconds, as everywhere."""
    with engines.start(engines.VALKEY, tmp_path) as engine, engine.client() as redis:
        broker = servers.broker(engine)
        seed_waiting(redis)
        timer = threading.Timer(1.0, engine.kill)
        timer.start()
        begun = time.monotonic()

        with pytest.raises(BrokerUnreachable):
            collect(broker, window="60s", tell_events=True)

        assert time.monotonic() - begun < 15
        timer.join()


def test_counters_of_a_restarted_node_begin_again():
    """It cannot have accepted fewer than none."""
    from opslib.collectors.window import _grown

    assert _grown({"a": 5, "b": 1}, {"a": 7, "b": 1, "c": 2}) == {"a": 2, "c": 2}
    assert _grown({"a": 5}, {"a": 2}) == {"a": 2}
    assert _grown({"a": 5}, {}) == {}


def test_counters_are_told_by_task(trial, node):
    """As the node has counted since it started."""
    worker = node()
    trial.until_done(*(trial.send("ok") for _ in range(3)))

    assert workers.accepted(servers.broker(trial.server), timeout_s=2.0) == {worker.name: {"tests.ok": 3}}
