"""What a second connection sees while a broker is changed → batches that grow, shrink, wait or end, by its figures."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as Lost

from opslib.writer import watch
from opslib.writer.watch import Halted, Watch
from tests.support import engines, servers
from tests.support.waiting import until

INFO = {"run_id": "r", "master_replid": "x", "role": "master", "maxclients": 100, "connected_clients": 10}
MIB = 1024 * 1024


class Client:
    """
    Answers as told, and takes as long as told.

    Attributes:
        pings: Seconds that each PING takes, the last one for all that follow; an exception is raised.
    """

    def __init__(self, *pings, **info):
        self.pings, self.answer = list(pings) or [0.0], {**INFO, **info}
        self.asked = 0

    def ping(self):
        """Take the next of its times."""
        self.asked += 1
        taken = self.pings.pop(0) if len(self.pings) > 1 else self.pings[0]
        if isinstance(taken, Exception):
            raise taken
        Clock.now += taken
        return True

    def info(self):
        """Say who it is."""
        return self.answer


class Clock:
    """The time of a test: it passes when somebody waits."""

    now = 1000.0


@pytest.fixture(autouse=True)
def clock(request, monkeypatch):
    """Waiting takes no time, but on real servers."""
    if not {"any_server", "kind"} & set(request.fixturenames):

        def sleep(seconds):
            Clock.now += seconds

        monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: Clock.now, sleep=sleep))


def watching(client, *, renews=True):
    """Return a watch of such a client, which has no thread of its own."""
    return Watch(SimpleNamespace(reads=client, information=INFO), SimpleNamespace(renew=lambda: renews))


def pinged(*pings):
    """Return a watch that has asked so often, with these answers."""
    seen = watching(Client(*pings))
    for _ in pings:
        seen._ping()
    return seen


def waits(seen):
    """Return what ends a wait that would otherwise last for ever."""
    with pytest.raises(Halted) as told:
        seen.before_batch()
    return told.value.message


# The size of a batch


@pytest.mark.parametrize(
    ("took_s", "sizes"),
    [(0.0019, [40, 80, 160, 200, 200]), (0.0021, [20] * 5), (0.005, [20] * 5), (0.0051, [10, 5, 2, 1, 1])],
    ids=["quick", "not so quick", "not yet slow", "slow"],
)
def test_a_batch_doubles_below_2_ms_and_halves_above_5(took_s, sizes):
    """Never less than one message, and never more than two hundred."""
    seen = watching(Client())
    found = []
    for _ in sizes:
        seen.after_batch(took_s)
        found.append(seen.batch)

    assert found == sizes


def test_a_long_way_to_the_broker_neither_grows_nor_shrinks_a_batch():
    """A tenth of a second on the road says nothing about the server."""
    seen = pinged(*[0.1] * 12)
    for _ in range(5):
        seen.after_batch(0.104)
    seen.before_batch()

    assert seen.batch == 20
    seen.after_batch(0.106)
    assert seen.batch == 10


@pytest.mark.parametrize("what", ["rdb_bgsave_in_progress", "aof_rewrite_in_progress"])
def test_a_server_that_saves_its_data_gets_small_batches(what):
    """It has forked; what is changed now is copied in its memory."""
    seen = watching(Client())
    seen._look({**INFO, what: 1})
    for _ in range(5):
        seen.after_batch(0.0)
    assert seen.batch == 20

    seen._look(INFO)
    seen.after_batch(0.0)
    assert seen.batch == 40


# To wait


def test_a_healthy_broker_is_not_waited_for():
    """Nor is one of which nothing is known yet."""
    for seen in (watching(Client()), pinged(*[0.001] * 20)):
        seen.before_batch()
        assert seen.paused_s == 0


@pytest.mark.parametrize(("slow", "is_slow"), [(5, True), (4, False), (10, True)])
def test_a_second_of_more_than_20_ms_is_waited_out(slow, is_slow):
    """The median of ten counts, for a busy machine delays a thread now and then."""
    seen = pinged(0.001, *[0.001] * (10 - slow), *[0.022] * slow)

    if is_slow:
        assert "waited 60 s for the broker: it answers a PING in 22 ms" in waits(seen)
    else:
        seen.before_batch()


def test_what_is_slow_only_by_its_way_is_not_waited_for():
    """All answers take a tenth of a second, and always did."""
    pinged(*[0.1] * 20).before_batch()


def test_a_replica_that_is_behind_is_waited_for():
    """Beyond 16 MiB; how far is told."""
    gap = {"master_repl_offset": 40 * MIB, "slave0": {"state": "online", "offset": 40 * MIB - 16 * MIB}}
    seen = watching(Client())
    seen._look({**INFO, **gap})
    seen.before_batch()

    gap["slave0"]["offset"] -= 1
    seen._look({**INFO, **gap})

    assert "a replica is 16,777,217 bytes behind" in waits(seen)


def test_a_wait_ends_with_its_reason():
    """The replica catches up, and the run goes on."""
    seen = watching(Client())
    seen._waiting_for = "a replica is behind"
    monkey = watch.time.sleep

    def sleep(seconds):
        monkey(seconds)
        if seen.paused_s > 3:
            seen._waiting_for = ""

    watch.time.sleep = sleep
    seen.before_batch()

    assert 3 < seen.paused_s < 4


def test_a_wait_of_a_minute_is_the_last():
    """What comes after it is not waited for once more."""
    seen = watching(Client())
    seen._waiting_for = "a replica is behind"
    began = Clock.now
    first = waits(seen)
    again = waits(seen)

    assert first == again == "The run waited 60 s for the broker: a replica is behind."
    assert Clock.now - began < 61


# To stop


def test_three_times_more_than_250_ms_are_enough():
    """Twice are not, nor three times with a good answer between them."""
    pinged(0.001, 0.3, 0.3).before_batch()
    pinged(0.001, 0.3, 0.3, 0.001, 0.3).before_batch()

    assert waits(pinged(0.001, 0.3, 0.3, 0.3)) == "The broker answers a PING in 300 ms; it was left alone."


@pytest.mark.parametrize(
    "change",
    [{"run_id": "another"}, {"master_replid": "another"}, {"role": "slave"}],
    ids=lambda each: next(iter(each)),
)
def test_another_server_ends_the_run(change):
    """From the very first look: the one that was opened counts."""
    seen = watching(Client())
    seen._look({**INFO, **change})

    assert "restarted or failed over" in waits(seen)


@pytest.mark.parametrize(("clients", "crowded"), [(95, False), (96, True)])
def test_a_server_short_of_connections_is_left(clients, crowded):
    """More than 95 % are in use."""
    seen = watching(Client())
    seen._look({**INFO, "connected_clients": clients})

    if crowded:
        assert waits(seen) == "The server has 96 of 100 connections in use."
    else:
        seen.before_batch()


def test_a_lost_lock_ends_the_run():
    """Whoever holds it now may be changing the broker."""
    seen = watching(Client(), renews=False)
    seen._renew()

    assert "lock was lost" in waits(seen)


# The thread


@pytest.fixture
def quick(monkeypatch):
    """A thread that does in milliseconds what takes it seconds."""
    monkeypatch.setattr(watch, "time", time)
    for name, value in {"_PING_EVERY_S": 0.01, "_LOOK_EVERY_S": 0.02, "_RENEW_EVERY_S": 0.02}.items():
        monkeypatch.setattr(watch, name, value)


@pytest.mark.usefixtures("quick")
def test_a_lock_is_renewed_and_its_loss_is_noticed_between_two_batches():
    """By the thread, however long the run has nothing to send."""
    renewed = []
    lock = SimpleNamespace(renew=lambda: renewed.append(1) or len(renewed) < 3)
    with watch.watching(SimpleNamespace(reads=Client(), information=INFO), lock) as seen:
        until(lambda: seen._ending, 5, "its loss is noticed")

    assert len(renewed) >= 3
    assert "lock was lost" in waits(seen)


@pytest.mark.usefixtures("quick")
def test_whoever_answers_after_a_silence_is_looked_at_before_it_gets_a_batch(monkeypatch):
    """A failover is quicker than the next look."""
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 3600.0)
    client = Client(0.0, Lost("gone"), 0.0)
    client.answer = {**INFO, "run_id": "another"}
    with watch.watching(SimpleNamespace(reads=client, information=INFO), SimpleNamespace(renew=lambda: True)) as seen:
        until(lambda: client.asked > 3, 5, "it answers again")

        assert "restarted or failed over" in waits(seen)


@pytest.mark.usefixtures("quick")
def test_a_second_connection_that_fails_is_waited_for():
    """What cannot be watched is not changed."""
    client = Client(Lost("gone"))
    with watch.watching(SimpleNamespace(reads=client, information=INFO), SimpleNamespace(renew=lambda: True)) as seen:
        until(lambda: seen._unanswered, 5, "it is noticed")
        threading.Timer(0.3, lambda: client.pings.append(0.0) or client.pings.pop(0)).start()
        seen.before_batch()

    assert seen.paused_s > 0


def test_a_server_that_stops_is_noticed_before_its_timeout(any_server):
    """A PING that has no answer counts from the first quarter of a second, and no longer than the silence lasts."""
    broker = servers.broker(any_server)
    with watch.watching(broker, SimpleNamespace(renew=lambda: True)) as seen:
        until(lambda: seen._pings, 5, "it has answered once")
        with any_server.frozen():
            began = time.monotonic()
            reason = until(seen._silent, 5, "the silence is noticed")
            assert time.monotonic() - began < 1.5
            assert "no answer for 0." in reason
        seen.before_batch()

        assert not seen._silent()


@pytest.mark.parametrize("kind", [engines.REDIS])
def test_a_server_that_is_restarted_is_noticed(kind, tmp_path):
    """By its run_id, within a look."""
    with engines.start(kind, tmp_path, persistent=True) as running:
        broker = servers.broker(running)
        with watch.watching(broker, SimpleNamespace(renew=lambda: True)) as seen:
            until(lambda: seen._pings, 5, "it has answered once")
            running.restart()
            until(lambda: seen._ending, 5, "it is noticed")

            assert "restarted or failed over" in waits(seen)
