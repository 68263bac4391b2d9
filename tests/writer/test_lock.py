"""One run at a time changes a broker; the second is told who the first is."""

from __future__ import annotations

import json
import threading

import pytest

from opslib.errors import Exit, LockHeld
from opslib.plan import Action, Kind, Status
from opslib.writer import apply, lock
from opslib.writer.stop import stop
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


def test_of_many_at_once_one_gets_it(broker, redis):
    """However they come."""
    ready, told = threading.Barrier(8), []

    def attempt():
        ready.wait()
        try:
            with hold(broker):
                told.append("held")
                ready.wait()
        except LockHeld:
            told.append("refused")
            ready.wait()

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert sorted(told) == ["held"] + ["refused"] * 7
    assert not redis.exists(KEYS.lock)


def test_a_stop_without_the_lock_orders_nothing(broker, redis):
    """Not even a revoke is sent once it is lost."""
    action = Action(kind=Kind.STOP, subject="x", source="celery", destination="quarantine", why="retry-loop", id=1)

    (outcome,) = stop(broker, [action], lambda _: {}, lambda: False)

    assert outcome.status is Status.FAILED
    assert "lock was lost" in outcome.reason
    assert list(redis.scan_iter()) == []
