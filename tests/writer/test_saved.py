"""A save is done when the server says so, and whatever keeps it from saving is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from opslib import records
from opslib.collectors import backup
from opslib.errors import BrokerRefused, Refused
from opslib.plan import Action, Kind, Plan, Status
from opslib.symptoms import redis_backup
from opslib.writer import apply, points, resume, saved, undo
from tests.support import engines, servers
from tests.support.waiting import until

DEADLINE_S = 20.0


@pytest.fixture(params=[engines.VALKEY, engines.REDIS])
def engine(request: pytest.FixtureRequest, tmp_path: Path, archive: Path) -> Iterator[engines.Engine]:
    """A server with a folder of its own."""
    assert archive
    (tmp_path / "data").mkdir()
    with engines.start(request.param, tmp_path / "data") as running:
        yield running


@pytest.fixture
def redis(engine: engines.Engine) -> Iterator[Redis]:
    """A plain client of it, with one key there."""
    with engine.client() as client:
        client.set("celery-task-meta-x", "{}")
        yield client


def plan_of(broker: Any) -> Plan:
    """Return the plan of the runbook."""
    return redis_backup.plan(backup.saves(broker, answer_within="0.2s"))


def saved_by(server: Any, **more: Any) -> Any:
    """Carry out the runbook's plan, and return its one outcome."""
    broker = servers.broker(server, **more)
    (outcome,) = apply(plan_of(broker), broker, dry_run=False)
    return outcome


class TestSaved:
    """It was made, and by this order."""

    def test_the_file_is_of_this_save(self, engine: engines.Engine, redis: Redis) -> None:
        """LASTSAVE is later than it was, also of two saves within the same second."""
        path = engine.folder / "dump.rdb"
        first = saved_by(engine)
        one, was = redis.lastsave(), path.read_bytes()
        redis.set("later", "1")
        second = saved_by(engine)

        assert [first.status, second.status] == [Status.APPLIED] * 2
        assert redis.lastsave() > one
        assert b"later" not in was
        assert b"later" in path.read_bytes()

    def test_a_dry_run_saves_nothing(self, engine: engines.Engine, redis: Redis) -> None:
        """As everywhere."""
        broker, before = servers.broker(engine), redis.lastsave()
        (outcome,) = apply(plan_of(broker), broker)

        assert outcome.status is Status.SKIPPED
        assert (redis.lastsave(), (engine.folder / "dump.rdb").exists()) == (before, False)

    def test_one_that_runs_is_waited_for(self, engine: engines.Engine, redis: Redis) -> None:
        """It began before, so it does not have what came since; another one is made."""
        with slow(redis):
            redis.bgsave()
        assert redis.info()["rdb_bgsave_in_progress"]

        outcome = saved_by(engine)

        assert outcome.status is Status.APPLIED
        assert "Waited for a save that was running already" in " ".join(outcome.steps)

    def test_an_aof_rewrite_is_waited_for(self, engine: engines.Engine, redis: Redis) -> None:
        """The server puts the save off until then."""
        with slow(redis):
            redis.bgrewriteaof()
            until(lambda: redis.info()["aof_rewrite_in_progress"], DEADLINE_S, "it is rewritten")

        assert saved_by(engine).status is Status.APPLIED


class TestCutOff:
    """Between the journal and the order: nobody knows whether it was given, so it is given again."""

    def test_it_is_gone_on_with(self, engine: engines.Engine, redis: Redis) -> None:
        """By the id of the run; an undo has nothing to put back."""
        broker, before = servers.broker(engine), redis.lastsave()
        plan = plan_of(broker)
        run_id = records.context().run_id

        def cut() -> None:
            raise KeyboardInterrupt

        with at("before-save", cut), pytest.raises(KeyboardInterrupt):
            apply(plan, broker, dry_run=False)
        left = resume.remaining(plan, broker, run_id)
        assert [each.kind for each in left] == [Kind.SAVE]
        assert not undo.plan(broker, run_id)
        (outcome,) = apply(left, broker, dry_run=False)

        assert outcome.status is Status.APPLIED
        assert redis.lastsave() > before


class TestNotSaved:
    """Whatever the reason is, it is said, and the run goes on to its end."""

    @pytest.mark.parametrize("by_itself", ["", "3600 1"])
    def test_a_file_that_cannot_be_written(self, engine: engines.Engine, redis: Redis, by_itself: str) -> None:
        """Also where the server then refuses every write: the account of it is given, and the finding is critical."""
        redis.config_set("save", by_itself)
        (engine.folder / "dump.rdb").mkdir()  # which no file can replace
        broker = servers.broker(engine)
        seen = backup.saves(broker, answer_within="0.2s")

        outcomes = apply(redis_backup.plan(seen), broker, dry_run=False)

        after = backup.saves(broker, answer_within="0.2s")
        found = redis_backup.diagnose(after, redis_backup.Thresholds(), outcomes=outcomes)
        assert (outcomes[0].status, "The save failed" in outcomes[0].reason) == (Status.FAILED, True), outcomes
        assert [each.code for each in found if each.severity == "critical"] == ["save-failing"]

    def test_a_user_without_the_right(self, engine: engines.Engine, redis: Redis) -> None:
        """Says which one is missing."""
        servers.user(redis, f"{servers.READ_WRITE} +config|get")
        broker = servers.broker(engine, broker_url=servers.as_user(engine))

        (outcome,) = apply(plan_of(broker), broker, dry_run=False)

        assert (outcome.status, "+bgsave" in outcome.reason) == (Status.FAILED, True), outcome

    def test_a_user_who_may_only_look(self, engine: engines.Engine, redis: Redis) -> None:
        """Sees that where it saves is not told, and may not even take the lock."""
        servers.user(redis, servers.READ_ONLY)
        broker = servers.broker(engine, broker_url=servers.as_user(engine))
        plan = plan_of(broker)

        assert "does not say where it saves" in backup.saving(broker).untold
        with pytest.raises(BrokerRefused):
            apply(plan, broker, dry_run=False)

    def test_a_server_that_is_restarted_meanwhile(self, engine: engines.Engine, redis: Redis) -> None:
        """Its LASTSAVE is then the instant of its start, which proves nothing."""
        assert redis
        broker = servers.broker(engine)
        plan = plan_of(broker)

        def restart() -> None:
            with engine.client() as client, slow(client):
                client.bgsave()  # so that ours has to wait behind it, and the server is another one by then
            engine.restart()

        with at("before-save", restart):
            (outcome,) = apply(plan, broker, dry_run=False)

        assert outcome.status is Status.FAILED
        assert "restarted" in outcome.reason

    def test_a_server_without_memory(self, engine: engines.Engine, redis: Redis) -> None:
        """Takes no lock, and so no order; nothing was begun."""
        broker, before = servers.broker(engine), redis.lastsave()
        plan = plan_of(broker)
        redis.config_set("maxmemory", 100_000)

        with pytest.raises(Refused, match="out of memory"):
            apply(plan, broker, dry_run=False)
        assert redis.lastsave() == before

    def test_a_service_that_has_no_such_command(self, tmp_path: Path, archive: Path) -> None:
        """Then nothing is planned, and a finding says what to do."""
        assert archive
        (tmp_path / "managed").mkdir()
        extra = ['rename-command BGSAVE ""', 'rename-command CONFIG ""']
        with engines.start(engines.REDIS, tmp_path / "managed", extra=extra) as managed:
            seen = backup.saves(servers.broker(managed), answer_within="0.2s")

            assert not seen.saving.offered
            assert not redis_backup.plan(seen)
            found = {each.code: each.message for each in redis_backup.diagnose(seen, redis_backup.Thresholds())}
            assert "managed service" in found["save-failing"]
            assert "does not say where it saves" in seen.saving.untold


class TestAwaited:
    """How long it is waited for, look by look, and what the order's answer is taken for."""

    @pytest.fixture
    def awaited(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return what waits for a save on a server that looks so: first for a while, and then."""
        for name, value in (("_LOOK_S", 0.005), ("_BEGINS_S", 0.05)):
            monkeypatch.setattr(saved, name, value)

        def wait(first: dict[str, Any], then: dict[str, Any], *, most_s: float = 20.0) -> Any:
            still = {"run_id": "r", "running": False, "rewriting": False, "saved_at": 10, "failing": False}
            began = time.monotonic()

            def told(_: object) -> dict[str, Any]:
                return still | (first if time.monotonic() - began < 0.3 else then)

            monkeypatch.setattr(saved, "_told", told)
            action = Action(kind=Kind.SAVE, subject="server", source="server", destination="")
            return saved._awaited(action, cast("Redis", None), "r", 10, began + most_s, [])

        return wait

    @pytest.mark.parametrize("busy", ["running", "rewriting"])
    def test_while_the_server_is_at_it_it_is_waited_for(self, awaited: Any, busy: str) -> None:
        """However long that takes; but not for ever."""
        assert awaited({busy: True}, {"saved_at": 11}).status is Status.APPLIED
        assert "did not end within an hour" in awaited({busy: True}, {busy: True}, most_s=0.2).reason

    def test_a_save_that_never_begins_is_said(self, awaited: Any) -> None:
        """LASTSAVE stays what it was."""
        outcome = awaited({}, {})

        assert (outcome.status, "neither saved nor failed" in outcome.reason) == (Status.FAILED, True)

    def test_what_a_server_says_is_shown_as_text(self) -> None:
        """It may say anything."""
        assert "\x1b" not in saved._refusal(ResponseError("no \x1b[31mway"))


@contextmanager
def slow(redis: Redis) -> Iterator[None]:
    """Have what begins meanwhile take some two seconds: a pause after each key, which a fork keeps to its end."""
    redis.mset({f"key-{n}": "x" for n in range(100)})
    redis.config_set("rdb-key-save-delay", 20_000)
    yield
    redis.config_set("rdb-key-save-delay", 0)


@contextmanager
def at(name: str, do: Any) -> Iterator[None]:
    """Do something when a run passes a place, once."""
    left = [do]

    def watch(point: str) -> None:
        if point == name and left:
            left.pop()()

    points.watchers.append(watch)
    try:
        yield
    finally:
        points.watchers.remove(watch)
