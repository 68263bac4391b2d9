"""Letters are in their list once, within its bound, wherever it is; and nobody waits for a broker that is away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as Gone
from redis.exceptions import RedisError

from opslib.embedded.server import Server
from opslib.errors import SettingsError
from opslib.keys import Keyspace
from opslib.worker import capture, outbox, transport, wishes
from opslib.worker.outbox import Entry, Outbox
from tests.support import certificates, engines, proxy, servers
from tests.support.engines import MASTER, REDIS, VALKEY, Engine
from tests.support.letters import dead, message, node
from tests.support.seed import seed_unacked
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

KEYS = Keyspace()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Engine]:
    """A server for the letters alone, so that it can be away while the broker is not."""
    with engines.start(VALKEY, tmp_path) as running:
        yield running


def box(connect: Callable[[], Redis], most: int = 100) -> Outbox:
    """Return an outbox."""
    return Outbox(connect, KEYS, most=most)


def letter(number: int, queue: str = "q") -> Entry:
    """Return something that stands for a letter."""
    return Entry(queue, b"letter %d" % number, str(number))


def until_written(found: Outbox, count: int) -> None:
    """Wait until so many letters were written, and the thread that did it has ended."""
    until(lambda: found.written == count and found._thread is None, DEADLINE_S, f"{count} are written")


def test_letters_are_written_newest_left_by_a_thread_that_ends(redis: Redis, server: Server) -> None:
    """Nothing is left in a node that a fork could stumble over."""
    found = box(server.client)
    for number in range(250):
        found.put(letter(number, "a" if number % 2 else "b"))
    until_written(found, 250)

    assert redis.lrange("a.dead", 0, -1) == [b"letter %d" % number for number in range(249, 49, -2)]
    assert redis.lrange("b.dead", 0, 0) == [b"letter 248"]
    assert not [each for each in threading.enumerate() if each.name == "opslib-dead-letters"]
    assert (found.lost, found.errors, found.size) == (0, 0, 0)


def test_list_keeps_its_bound_and_what_is_dropped_is_counted(redis: Redis, server: Server) -> None:
    """The newest stay; at its bound a list is as long as before."""
    found = box(server.client, most=5)
    for number in range(5):
        found.put(letter(number))
    until_written(found, 5)
    assert not redis.exists(KEYS.dead_dropped)

    for number in range(5, 12):
        found.put(letter(number))
    until_written(found, 12)

    assert redis.lrange("q.dead", 0, -1) == [b"letter %d" % number for number in range(11, 6, -1)]
    assert redis.hgetall(KEYS.dead_dropped) == {b"q": b"7"}


@pytest.mark.parametrize("times", [1, 3])
def test_letter_whose_answer_is_lost_is_there_once(times: int, redis: Redis, server: Server) -> None:
    """It was written, and nobody was told; asked for again, it is known by its batch's number."""
    with proxy.before(server) as way:
        way.lose(b"EVAL", times=times)
        found = box(lambda: Redis.from_url(way.url, socket_timeout=1))
        for number in range(20):
            found.put(letter(number))
        until_written(found, 20)

    assert way.lost == found.errors == times
    assert sorted(redis.lrange("q.dead", 0, -1)) == sorted(b"letter %d" % number for number in range(20))
    assert redis.llen("q.dead") == 20


def test_letters_wait_for_a_server_that_is_away_within_a_bound(
    redis: Redis, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no place is lost, the oldest first, and counted once the server is back."""
    monkeypatch.setattr(outbox, "MOST_WAITING", 10)
    back = threading.Event()

    def connect() -> Redis:
        if not back.is_set():
            raise Gone("nobody there")
        return server.client()

    found = box(connect)
    found.put(letter(0, "first"))
    until(lambda: found.errors, DEADLINE_S, "it was tried")
    for number in range(1, 16):
        found.put(letter(number))
    assert (found.size, found.lost) == (11, 5)
    back.set()
    until_written(found, 11)

    assert redis.lrange("first.dead", 0, -1) == [b"letter 0"]
    assert redis.lrange("q.dead", 0, -1) == [b"letter %d" % number for number in range(15, 5, -1)]
    assert redis.hgetall(KEYS.dead_dropped) == {b"q": b"5"}


def test_letters_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large a message is, the latest is kept."""
    monkeypatch.setattr(outbox, "MOST_WAITING_BYTES", 100)

    def connect() -> Redis:
        raise Gone("nobody there")

    found = box(connect)
    found.put(Entry("first", b"x"))
    until(lambda: found.errors, DEADLINE_S, "it was tried")
    for size in (60, 40, 30, 500):
        found.put(Entry("q", b"x" * size))
        assert found._waiting_bytes <= 100 or len(found._waiting) == 1

    assert [len(each.raw) for each in found._waiting] == [500]
    assert found.lost == 3


def test_letter_beyond_all_measure_holds_nothing_up(
    redis: Redis, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server refuses what is too large for it, each time anew."""
    monkeypatch.setattr(outbox, "MOST_BYTES", 100)
    found = box(server.client)
    found.put(Entry("q", b"x" * 101, "huge"))
    found.put(letter(1))
    until_written(found, 1)

    assert redis.lrange("q.dead", 0, -1) == [b"letter 1"]
    assert redis.hgetall(KEYS.dead_dropped) == {b"q": b"1"}


@pytest.mark.parametrize("kind", ["string", "queue"])
def test_list_that_cannot_be_is_refused_and_holds_nothing_up(kind: str, redis: Redis, server: Server) -> None:
    """A letter in a queue would be taken for a message by its workers, who stumble over it."""
    if kind == "string":
        redis.set("q.dead", "somebody's")
    else:
        redis.sadd(KEYS.bindings("q.dead"), "q.dead\x06\x16\x06\x16q.dead")
    before = redis.dump("q.dead")
    found = box(server.client)
    for number in range(3):
        found.put(letter(number))
    found.put(letter(3, "other"))
    until_written(found, 1)

    assert redis.dump("q.dead") == before
    assert redis.lrange("other.dead", 0, -1) == [b"letter 3"]
    assert redis.hgetall(KEYS.dead_dropped) == {b"q": b"3"}
    assert found.lost == 3


@pytest.mark.parametrize("right", ["lpush", "set", "eval", "type", "ltrim", "hincrby"])
def test_missing_right_loses_nothing_and_repeats_nothing(right: str, redis: Redis, server: Server) -> None:
    """Refused halfway, a batch is written once the right is given; without the last two only the bound is not kept."""
    rules = "~* &* +@connection +info +eval +get +set +type +exists +lpush +llen +ltrim +hincrby"
    servers.user(redis, f"{rules} -{right}")
    found = box(lambda: Redis.from_url(servers.as_user(server)), most=2)
    for number in range(3):
        found.put(letter(number))
    if right not in {"ltrim", "hincrby"}:
        until(lambda: found.errors >= 2, DEADLINE_S, "it was refused twice")
        assert not redis.exists("q.dead")
        servers.user(redis, rules)
    until_written(found, 3)

    written = redis.lrange("q.dead", 0, -1)
    assert written[:2] == [b"letter 2", b"letter 1"]
    assert len(written) == (3 if right == "ltrim" else 2)


def test_last_call_writes_what_is_left_or_says_what_is_lost(
    redis: Redis, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that ends does not wait for the next attempt, nor longer than it may."""
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 1_000.0)
    is_away = True

    def connect() -> Redis:
        if is_away:
            raise Gone("nobody there")
        return server.client()

    found = box(connect)
    found.put(letter(1))
    until(lambda: found.errors, DEADLINE_S, "it was tried")
    assert found.flush(10.0) == 1
    assert "1 dead letters could not be written before this node ends: 1." in caplog.text

    is_away = False
    assert found.flush(10.0) == 0
    assert redis.lrange("q.dead", 0, -1) == [b"letter 1"]


def test_errors_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away for an hour fills no disk."""

    def connect() -> Redis:
        raise Gone("nobody there")

    found = box(connect)
    found.put(letter(1))
    until(lambda: found.errors >= 5, DEADLINE_S, "it was tried")

    assert caplog.text.count("Dead letters cannot be written: ConnectionError: nobody there.") == 1


def test_node_is_not_slowed_by_a_server_that_hangs_and_loses_nothing(trial: Deployment, elsewhere: Engine) -> None:
    """The letters' server takes connections and never answers; what was asked of it meanwhile is done once."""
    trial.redis.flushall()
    running = node(trial, pool="solo", capture={"url": elsewhere.url})
    rounds: list[float] = []

    def fail(count: int) -> list[str]:
        began = time.monotonic()
        ids = [trial.send("boom") for _ in range(count)]
        trial.until_done(trial.send("ok"))
        rounds.append(time.monotonic() - began)
        return ids

    ids = fail(60)
    with elsewhere.frozen():
        ids += fail(60)
    with elsewhere.client() as redis:
        until(lambda: redis.llen("celery.dead") >= len(ids), DEADLINE_S, "every letter is written")
        assert sorted(each.task_id for each in dead(redis)) == sorted(ids)
        elsewhere.kill()
        ids += fail(60)
        elsewhere.start()
        os.kill(running.child.pid, signal.SIGTERM)
        until(running.child.has_gone, DEADLINE_S, "the node has ended")

        # Killed, the server has forgotten the first ones; it was told each of the last ones once.
        assert sorted(each.task_id for each in dead(redis)) == sorted(ids[120:])
    alive_s, hanging_s, killed_s = rounds
    # To wait for each letter would take a minute.
    assert hanging_s < 5 * alive_s + 5
    assert killed_s < 5 * alive_s + 5
    assert not trial.redis.exists("celery.dead")


def test_letters_follow_the_key_prefix_and_the_bound(trial: Deployment) -> None:
    """A deployment that shares a database with others keeps to its own keys."""
    trial.redis.flushall()
    options = {"broker_transport_options": {"global_keyprefix": "shop:"}}
    ids = []
    for number in range(4):
        task_id, raw = message("boom", priority=0 if number else 9)
        trial.redis.lpush("shop:celery" if number else "shop:celery\x06\x169", raw)
        ids.append(task_id)
    late, raw = message("boom", headers={"expires": "2020-01-01T00:00:00+00:00"})
    trial.redis.lpush("shop:celery", raw)
    conf = {**options, "result_backend_transport_options": options["broker_transport_options"]}
    running = node(trial, pool="solo", conf=conf, capture={"most": 3, "expired": True}, ready=False)
    until(lambda: trial.redis.hget("shop:opslib:dead:dropped", "celery") == b"2", DEADLINE_S, "two were dropped")
    running.kill()

    # The lowest priority comes last.
    first, second, _ = dead(trial.redis, "shop:celery.dead")
    assert (first.task_id, first.queue, first.list_key) == (ids[0], "celery", "shop:celery\x06\x169")
    assert (second.task_id, second.cause, second.message) == (late, "expired", raw)
    assert not trial.redis.exists("celery.dead")


def test_connecting_restores_nobody_elses_messages(redis: Redis, server: Server) -> None:
    """A channel of kombu's sweeps up what was delivered long ago, and a worker may be at it still."""
    seed_unacked(redis, age_s=100_000)
    before = servers.dump(redis)
    app = Celery("shop", broker=server.url)
    app.conf.broker_transport_options = {"visibility_timeout": 1}
    connected = transport.connect(app)

    assert connected.ping()
    assert servers.dump(redis) == before
    assert {each["name"] for each in redis.client_list() if each["name"]} == {transport.CLIENT_NAME}


@pytest.mark.parametrize("way", ["socket", "tls", "sentinel"])
def test_client_goes_the_way_of_the_broker(way: str, tmp_path: Path) -> None:
    """Whatever leads a worker to its messages leads it to its lists as well."""
    with _way(way, tmp_path) as (url, options, seen):
        app = Celery("shop", broker=url)
        app.conf.broker_transport_options = options
        found = box(partial(transport.connect, app))
        found.put(letter(1))
        until_written(found, 1)

        assert seen.lrange("q.dead", 0, -1) == [b"letter 1"]


@contextmanager
def _way(way: str, folder: Path) -> Iterator[tuple[str, dict[str, str], Redis]]:
    """Return a broker's URL and transport options by one way, and a client of the server by another."""
    if way == "socket":
        path = folder / "socket"
        with engines.start(VALKEY, folder, extra=[f"unixsocket {path}"]) as running, running.client() as seen:
            yield f"redis+socket://:{quote(running.password, safe='')}@{path}?virtual_host=0", {}, seen
    elif way == "tls":
        shown = certificates.issue(certificates.authority(folder))
        with engines.start(REDIS, folder, certificate=shown) as running, running.client() as seen:
            yield running.url, {}, seen
    else:
        with engines.failover(folder) as group, group.primary.client() as seen:
            yield group.url, {"master_name": MASTER}, seen


def test_server_that_is_away_is_given_up_soon(tmp_path: Path) -> None:
    """One attempt, and no more: the next one is the outbox's business."""
    with engines.start(VALKEY, tmp_path) as running:
        app = Celery("shop", broker=running.url)
        with running.frozen():
            began = time.monotonic()
            with pytest.raises(RedisError):
                transport.connect(app)
            assert time.monotonic() - began < 3 * transport.TIMEOUT_S


def test_broker_that_is_no_redis_is_told_apart() -> None:
    """A message of another transport is not kept as it was."""
    with pytest.raises(SettingsError, match="The broker is of type memory, and not Redis"):
        transport.connect(Celery("shop", broker="memory://"))


@pytest.mark.parametrize("options", [{"most": 0}, {"most": -1}, {"most": True}, {"most": "10"}, {"url": "amqp://h"}])
def test_option_that_cannot_be_meant_so_is_refused(options: dict[str, object]) -> None:
    """Where the application is made, and not when the first task dies."""
    app = Celery("shop")
    with pytest.raises(SettingsError):
        capture(app, **options)

    assert not app.steps["consumer"]


def test_called_twice_only_the_options_change() -> None:
    """Two modules of an application may both ask for it."""
    app = Celery("shop")
    capture(app)
    capture(app, most=5, expired=True)

    assert len(app.steps["consumer"]) == 1
    assert wishes.of(app) == wishes.Wish(most=5, expired=True)
    assert wishes.of(Celery("other")) == wishes.Wish()
