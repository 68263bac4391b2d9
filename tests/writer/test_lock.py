"""One run at a time changes a broker; the second is told who the first is."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as Lost

from opslib.errors import BrokerRefused, BrokerUnreachable, Exit, LockHeld, Refused
from opslib.plan import Action, Kind, Status
from opslib.writer import apply, lock
from opslib.writer.stop import stop
from tests.support import servers
from tests.support.plans import RUN, audit, foreign, proposed
from tests.support.seed import KEYS, seed_unacked
from tests.support.waiting import until


def hold(broker, run_id=RUN):
    """Take the lock for a `with` block."""
    return lock.held(broker, run_id=run_id, plan_digest="d")


def test_a_second_run_is_refused_and_told_who_holds_it(broker, redis, archive, monkeypatch):
    """Run, person, host and since when; nothing is changed, and the refusal is on record."""
    seed_unacked(redis)
    plan = proposed(broker)
    monkeypatch.setenv("OPS_OPERATOR", "ada")

    with hold(broker):
        before = foreign(redis)
        with pytest.raises(LockHeld, match=f"{RUN} by ada on .*, since 20") as told:
            apply(plan, broker, dry_run=False)
        assert foreign(redis) == before

    assert told.value.exit_code is Exit.REFUSED
    assert "`ops unlock --target trial`" in told.value.hint
    assert [line["event"] for line in audit(archive)] == ["begin", "refused"]


def test_the_lock_is_free_again_after_the_run(broker, redis):
    """And the next run's number is higher."""
    with hold(broker) as first:
        assert redis.exists(KEYS.lock)
    assert not redis.exists(KEYS.lock)

    with hold(broker) as second:
        assert second.epoch == first.epoch + 1
        assert second.token != first.token


def test_an_error_frees_the_lock_too(broker, redis):
    """A defect of ours must not stop the next person for a minute."""
    with pytest.raises(ZeroDivisionError), hold(broker):
        raise ZeroDivisionError

    assert not redis.exists(KEYS.lock)


def test_the_lock_of_a_dead_run_expires(broker, redis):
    """It has a life from its first moment on, and that is a minute."""
    with hold(broker):
        assert lock.LIFE_MS - 5000 < redis.pttl(KEYS.lock) <= lock.LIFE_MS
        redis.pexpire(KEYS.lock, 30)
        until(lambda: not redis.exists(KEYS.lock), 5, "it has expired")

        with hold(broker, "another") as taken:
            assert json.loads(redis.get(KEYS.lock))["run"] == "another"
            assert taken.renew()


def test_who_lost_the_lock_neither_renews_nor_frees_it(broker, redis):
    """It is another's by now."""
    with hold(broker) as lost:
        redis.delete(KEYS.lock)
        with hold(broker, "another") as taken:
            assert not lost.renew()
            assert taken.renew()
            theirs = redis.get(KEYS.lock)
            redis.persist(KEYS.lock)
            assert not lost.renew()
            assert redis.pttl(KEYS.lock) == -1
            lock._keep(broker, lost.token, 0)
            assert redis.get(KEYS.lock) == theirs


def test_a_lock_of_unknown_shape_is_a_lock(broker, redis):
    """Somebody else's tool may use the name."""
    redis.set(KEYS.lock, "mine")

    with pytest.raises(LockHeld, match="unknown shape"), hold(broker):
        pass

    assert redis.get(KEYS.lock) == b"mine"


@pytest.mark.parametrize("put", ["hset", "text", "number"])
def test_who_lost_the_lock_to_something_odd_has_lost_it(broker, redis, put):
    """It says so, instead of an error of the server's; and the odd thing stays."""
    with hold(broker) as lost:
        redis.delete(KEYS.lock)
        if put == "hset":
            redis.hset(KEYS.lock, "a", "b")
        else:
            redis.set(KEYS.lock, "mine" if put == "text" else "5")
        assert not lost.renew()
        with pytest.raises(LockHeld, match="unknown shape"), hold(broker):
            pass
    assert redis.exists(KEYS.lock)


def test_of_a_thousand_attempts_at_once_one_gets_it(broker, redis):
    """However they come; and every other one is shown who it was."""
    attempts, threads = 1_000, 100
    ready, all_told = threading.Barrier(threads), threading.Event()
    won, refused = [], []

    def attempt(number):
        if number < threads:
            ready.wait()
        try:
            with hold(broker, f"run-{number}") as taken:
                won.append((f"run-{number}", taken.token[:12]))
                assert all_told.wait(60)
        except LockHeld as told:
            refused.append(told.message)
            if len(refused) == attempts - 1:
                all_told.set()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(attempt, range(attempts)))

    ((run, lock_id),) = won
    assert len(refused) == attempts - 1
    assert all(f"another run: {run} by " in message and f"(lock id {lock_id})" in message for message in refused)
    assert not redis.exists(KEYS.lock)
    assert redis.get(KEYS.epoch) == b"1"


def test_a_stop_without_the_lock_orders_nothing(broker, redis):
    """Not even a revoke is sent once it is lost."""
    action = Action(kind=Kind.STOP, subject="x", source="celery", destination="quarantine", why="retry-loop", id=1)

    (outcome,) = stop(broker, [action], lambda _: {}, lambda: False)

    assert outcome.status is Status.FAILED
    assert "lock was lost" in outcome.reason
    assert list(redis.scan_iter()) == []


REASON = "its host was lost at noon"


class Meanwhile:
    """A client for changes, before whose next script something happens."""

    def __init__(self, broker, happens):
        self._client, self._happens = broker.writes, happens
        broker.__dict__["writes"] = self

    def eval(self, *values):
        """Let it happen, then run the script."""
        self._happens()
        return self._client.eval(*values)


@pytest.fixture
def dead(broker, redis):
    """The token of a lock whose holder is gone."""
    with hold(broker) as taken:
        raw = redis.get(KEYS.lock)
    redis.set(KEYS.lock, raw, px=50_000)
    return taken.token


class TestLooking:
    """Who holds the lock, and whether that run still lives."""

    def test_nobody(self, broker, redis):
        """A free lock is none; and looking changes nothing."""
        assert lock.look(broker) is None
        assert not redis.dbsize()

    def test_the_holder(self, broker, redis, monkeypatch):
        """What it says of itself, how old it is by the server's clock, and how long it has."""
        monkeypatch.setenv("OPS_OPERATOR", "ada")
        with hold(broker) as taken:
            time.sleep(1.1)
            found = lock.look(broker)
            before = redis.get(KEYS.lock)

            assert (found.run, found.who, found.lock_id) == (RUN, "ada", taken.token[:12])
            assert found.pid == json.loads(before)["pid"]
            assert 0 < found.age_s < 60
            assert 50_000 < found.remaining_ms < lock.LIFE_MS
            assert taken.token not in str(found)
            assert (found.last_batch, found.last_letters) == ("", "")

    def test_the_last_batch(self, broker, redis, dead):
        """The highest number counts, and what stands beside the numbers does not."""
        assert dead
        batches = {"2.9": "AAG", "2.10": "intent", "1.30": "A", "run": "{}", "2.10:u": "x", "2.10:p": "y", "2.11x": "z"}
        redis.hset(KEYS.journal(RUN), mapping=batches)

        found = lock.look(broker)

        assert (found.last_batch, found.last_letters) == ("2.10", "intent")

    def test_a_journal_of_another_type(self, broker, redis, dead):
        """It tells nothing, and hides nothing either."""
        assert dead
        redis.set(KEYS.journal(RUN), "x")

        assert lock.look(broker).last_batch == ""

    def test_whether_it_is_connected(self, broker, server, dead):
        """By the name of its client, which ends with it; another run's is not its."""
        assert dead
        with Redis.from_url(server.url, client_name=f"opslib:{RUN}0") as other:
            other.ping()
            assert lock.look(broker).connected is False
        with Redis.from_url(server.url, client_name=f"opslib:{RUN}") as client:
            client.ping()
            assert lock.look(broker).connected is True
        until(lambda: lock.look(broker).connected is False, 5, "the server knows that it has gone")

    def test_who_may_not_list_the_clients(self, broker, redis, server, dead):
        """It is unknown then, which is not no."""
        assert dead
        servers.user(redis, f"{servers.READ_WRITE} -client|list")

        assert lock.look(servers.elsewhere(broker, servers.as_user(server))).connected is None

    def test_who_may_not_read_it(self, broker, redis, server, dead):
        """That is said."""
        assert dead
        servers.user(redis, f"{servers.READ_ONLY} -get")

        with pytest.raises(BrokerRefused, match="does not permit"):
            lock.look(servers.elsewhere(broker, servers.as_user(server)))

    @pytest.mark.parametrize("content", ["mine", "5", "null", "{}", '{"token": 5}', "[" * 5_000, "", b"\xff"])
    def test_a_lock_of_unknown_shape(self, broker, redis, content):
        """It is a lock, without a run; it is named by what it holds, and never frees itself."""
        redis.set(KEYS.lock, content)

        found = lock.look(broker)

        assert (found.run, found.remaining_ms, found.connected) == ("", None, None)
        assert len(found.lock_id) == (12 if content else 0)

    @pytest.mark.parametrize("started", ["", "soon", 5, None, "9999-12-31T23:59:59Z", "2026-11-21T03:00:00"])
    def test_a_beginning_that_is_no_time(self, broker, redis, dead, started):
        """No age, or none below zero."""
        redis.set(KEYS.lock, json.dumps({"token": dead, "run": RUN, "started": started, "pid": "x"}))

        found = lock.look(broker)

        assert found.age_s is None or found.age_s >= 0
        assert found.pid is None

    def test_a_key_of_another_type(self, broker, redis):
        """Something is there, and it cannot be named."""
        redis.hset(KEYS.lock, "a", "b")

        assert lock.look(broker).lock_id == ""
        with pytest.raises(Refused, match="is no lock"):
            lock.unlock(broker, "12345678", REASON)
        assert redis.exists(KEYS.lock)

    def test_a_lock_cannot_drive_a_terminal(self, broker, redis, dead):
        """What it says of itself was written by somebody."""
        redis.set(KEYS.lock, json.dumps({"token": dead, "run": "a\x1b[31m\nb", "who": "\u202e"}))

        assert str(lock.look(broker)).isprintable()


class TestUnlocking:
    """A person takes the lock from a run that cannot let go of it."""

    @pytest.mark.parametrize("length", [8, 12, 20, 32])
    def test_who_names_the_lock_and_a_reason_takes_it(self, broker, redis, archive, dead, length):
        """It is on record before and after, here and in the broker, with the reason."""
        found = lock.unlock(broker, f" {dead[:length]} ", REASON)

        assert found.run == RUN
        assert not redis.exists(KEYS.lock)
        intent, result = audit(archive)
        assert [line["event"] for line in (intent, result)] == ["unlock", "unlock"]
        assert [line["stage"] for line in (intent, result)] == ["intent", "result"]
        assert {line["reason"] for line in (intent, result)} == {REASON}
        assert (intent["holder"]["run"], intent["target"], result["said"]) == (RUN, "trial", "FREED")
        ((_, entry),) = redis.xrange(KEYS.audit)
        assert entry[b"unlock"].decode() == dead[:length]
        assert json.loads(entry[b"line"])["reason"] == REASON

    def test_the_next_run_can_take_it(self, broker, dead):
        """And who held it before neither renews nor frees it."""
        old = lock.Lock(broker=broker, token=dead, epoch=1)
        lock.unlock(broker, dead[:8], REASON)

        with hold(broker, "another") as taken:
            assert taken.epoch == 2
            assert not old.renew()
            assert taken.renew()

    @pytest.mark.parametrize(
        ("lock_id", "reason", "why"),
        [
            ("", REASON, "at least 8 characters"),
            ("1234567", REASON, "at least 8 characters"),
            ("        ", REASON, "at least 8 characters"),
            ("token[:7]", REASON, "at least 8 characters"),
            ("token[:8]", "", "needs a reason"),
            ("token[:8]", "too short", "needs a reason"),
            ("token[:8]", " " * 20, "needs a reason"),
            ("00000000", REASON, "not the one that was named"),
            ("token[:8]!", REASON, "not the one that was named"),
            ("token[:31]!", REASON, "not the one that was named"),
            ("token[1:13]", REASON, "not the one that was named"),
            ("token+0", REASON, "not the one that was named"),
            ("*" * 8, REASON, "not the one that was named"),
        ],
    )
    def test_anything_else_is_refused(self, broker, redis, dead, lock_id, reason, why):
        """And the lock stays."""
        before = redis.get(KEYS.lock)
        given = {
            "token[:7]": dead[:7],
            "token[:8]": dead[:8],
            "token[:8]!": f"{dead[:8]}!",
            "token[:31]!": f"{dead[:31]}!",
            "token[1:13]": dead[1:13],
            "token+0": f"{dead}0",
        }

        with pytest.raises(Refused, match=why) as told:
            lock.unlock(broker, given.get(lock_id, lock_id), reason)

        assert told.value.exit_code is Exit.REFUSED
        assert redis.get(KEYS.lock) == before

    def test_a_lock_that_changes_hands_meanwhile_stays(self, broker, redis, archive, dead):
        """Between the look and the script another run has taken it; only the script can tell."""
        other = json.dumps({**json.loads(redis.get(KEYS.lock)), "token": "f" * 32, "run": "another"})
        Meanwhile(broker, lambda: redis.set(KEYS.lock, other))

        with pytest.raises(Refused, match=r"not the one that was named, but another .*lock id ffffffffffff"):
            lock.unlock(broker, dead[:8], REASON)

        assert json.loads(redis.get(KEYS.lock))["run"] == "another"
        assert [(line["stage"], line.get("said")) for line in audit(archive)] == [("intent", None), ("result", "OTHER")]
        assert not redis.exists(KEYS.audit)

    def test_the_script_itself_wants_eight_characters(self, broker, dead):
        """Whoever calls it."""
        assert lock._take(broker, dead[:7], {})[0] == "OTHER"
        assert lock._take(broker, "", {})[0] == "OTHER"
        assert lock._take(broker, dead[:8], {})[0] == "FREED"

    def test_a_refusal_is_on_record(self, broker, archive, dead):
        """As what it was: nothing was begun."""
        assert dead
        with pytest.raises(Refused):
            lock.unlock(broker, "0" * 8, REASON)

        assert [line["stage"] for line in audit(archive)] == ["refused"]

    def test_the_script_takes_no_other_key(self, broker, redis):
        """Something that is no lock may come in between, too."""
        redis.hset(KEYS.lock, "a", "b")

        assert lock._take(broker, "12345678", {}) == ("WRONGTYPE", KEYS.lock.encode())

    def test_a_lock_that_frees_itself_meanwhile(self, broker, redis, archive, dead):
        """Then nobody was locked out by us."""
        Meanwhile(broker, lambda: redis.delete(KEYS.lock))

        assert lock.unlock(broker, dead[:8], REASON) is None
        assert audit(archive)[-1]["said"] == "FREE"

    def test_a_lock_that_is_free(self, broker, archive):
        """There is nothing to do, and nothing to put on record."""
        assert lock.unlock(broker, "12345678", REASON) is None
        assert audit(archive) == []

    def test_a_run_that_is_connected_keeps_its_lock(self, broker, redis, server, archive, dead):
        """Unless that is said in so many words; a refusal is on record too."""
        with Redis.from_url(server.url, client_name=f"opslib:{RUN}") as client:
            client.ping()
            with pytest.raises(Refused, match="still connected"):
                lock.unlock(broker, dead[:8], REASON)
            assert redis.exists(KEYS.lock)
            assert [line["stage"] for line in audit(archive)] == ["refused"]

            assert lock.unlock(broker, dead[:8], REASON, though_connected=True).connected
            assert not redis.exists(KEYS.lock)

    def test_without_a_record_it_stays(self, broker, redis, archive, dead):
        """No change goes unrecorded."""
        (archive / "audit.jsonl").mkdir()

        with pytest.raises(Refused, match="No change goes unrecorded"):
            lock.unlock(broker, dead[:8], REASON)

        assert redis.exists(KEYS.lock)

    def test_an_answer_that_does_not_come(self, broker, archive, dead):
        """Whether it was done is not known, and the record says that."""

        def lost():
            raise Lost("cut off")

        Meanwhile(broker, lost)

        with pytest.raises(BrokerUnreachable):
            lock.unlock(broker, dead[:8], REASON)

        assert [(line["stage"], line.get("said")) for line in audit(archive)] == [("intent", None), ("result", "ERROR")]

    def test_a_right_that_is_missing(self, broker, redis, server, dead):
        """It is found out before anything is written."""
        servers.user(redis, f"{servers.READ_WRITE} -unlink")

        with pytest.raises(Refused, match="NOPERM"):
            lock.unlock(servers.elsewhere(broker, servers.as_user(server)), dead[:8], REASON)

        assert redis.exists(KEYS.lock)
        assert not redis.exists(KEYS.audit)

    def test_the_brokers_audit_has_another_type(self, broker, redis, dead):
        """It stays as it is, and so does the lock."""
        redis.set(KEYS.audit, "x")

        with pytest.raises(Refused, match="WRONGTYPE"):
            lock.unlock(broker, dead[:8], REASON)

        assert redis.exists(KEYS.lock)

    def test_a_full_server(self, broker, redis, dead):
        """What cannot be put on record there is not done."""
        redis.config_set("maxmemory", "1")

        with pytest.raises(Refused, match="out of memory"):
            lock.unlock(broker, dead[:8], REASON)

        assert redis.exists(KEYS.lock)

    @pytest.mark.parametrize("content", ["mine", "5", "{}", '{"token": 5}'])
    def test_a_lock_of_unknown_shape(self, broker, redis, content):
        """It is taken by what it holds; with another content it is another lock."""
        redis.set(KEYS.lock, content)
        lock_id = lock.look(broker).lock_id
        redis.set(KEYS.lock, "other")
        with pytest.raises(Refused, match="not the one"):
            lock.unlock(broker, lock_id, REASON)

        redis.set(KEYS.lock, content)
        assert lock.unlock(broker, lock_id, REASON).run == ""
        assert not redis.exists(KEYS.lock)

    def test_a_prefix_is_no_hole(self, redis, server, archive):
        """With a prefix of its own, a deployment has a lock of its own."""
        assert archive
        mine, other = servers.broker(server), servers.broker(server, global_keyprefix="other:")
        with hold(mine), hold(other) as taken:
            lock.unlock(other, taken.token[:8], REASON)
            assert not redis.exists(replace(KEYS, prefix="other:").lock)
            assert redis.exists(KEYS.lock)
