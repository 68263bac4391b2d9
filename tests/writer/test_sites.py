"""Each database of a deployment can be changed and undone by itself, with a lock and journals of its own."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import pytest

from opslib.collectors import app_keys
from opslib.collectors.find import find
from opslib.errors import BrokerUnreachable, LockHeld, OpsError, Refused
from opslib.plan import Action, Copy, Kind
from opslib.settings import AppKey
from opslib.symptoms import cleanup
from opslib.writer import apply, lock, points, resume, sites, undo
from tests.support import servers
from tests.support.plans import planned, told, undone, values
from tests.support.seed import seed_result

NOWHERE = "redis://127.0.0.1:1/0"


def at(url: str, database: int) -> str:
    """Return the URL of another database of a server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def app(name: str, url: str = "") -> dict[str, AppKey]:
    """Return one key of the application's."""
    return {name: AppKey(pattern=name + ":{task_id}", url=url)}


def numbers(broker) -> list[int]:
    """Return the databases that may be changed."""
    return [site.keys.database for site in sites.of(broker)]


def run_id() -> str:
    """Return the id of the run by hand that a test is."""
    from opslib import records

    return records.context().run_id


@pytest.fixture
def three(server, redis, archive):
    """A broker with results beside its messages, and two databases of the application."""
    assert archive
    assert not redis.dbsize()
    return servers.broker(server, app_keys=app("progress", at(server.url, 1)) | app("logs", at(server.url, 2)))


class TestSites:
    """Each database once, whichever URLs lead to it."""

    def test_all(self, server):
        """The broker's first, then the results', then the application's."""
        apps = app("a", at(server.url, 7)) | app("b", at(server.url, 6)) | app("c", at(server.url, 7))

        assert numbers(servers.broker(server, result_backend=at(server.url, 5), app_keys=apps)) == [0, 5, 7, 6]

    def test_shared(self, server):
        """The broker's or the results' own database is no other one, under another spelling neither."""
        other = server.url.replace("127.0.0.1", "localhost")
        apps = app("a") | app("b", at(other, 0)) | app("c", at(other, 5))

        assert numbers(servers.broker(server, result_backend=at(server.url, 5), app_keys=apps)) == [0, 5]

    def test_results_elsewhere(self, server):
        """Results that are not in Redis have no database; the application's have."""
        apps = app("a", at(server.url, 7))

        assert numbers(servers.broker(server, result_backend="db+sqlite:///r.db", app_keys=apps)) == [0, 7]

    def test_same_number_on_another_server_is_another(self, server, any_server):
        """A number means nothing without its server."""
        found = list(sites.of(servers.broker(server, app_keys=app("a", any_server.url))))

        assert len({site.fingerprint for site in found}) == len(found) == 2

    def test_no_prefix_elsewhere(self, server):
        """The broker's prefix stands before its own keys alone."""
        broker = servers.broker(server, global_keyprefix="shop-", app_keys=app("a", at(server.url, 7)))

        assert [site.keys.lock for site in sites.of(broker)] == ["shop-opslib:lock", "opslib:lock"]

    def test_one_that_does_not_answer(self, server):
        """It is named in the error, or collected where the others are wanted all the same."""
        apps = app("a", NOWHERE) | app("b", at(server.url, 7))
        broker = servers.broker(server, app_keys=apps)
        unseen: list[OpsError] = []

        with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1/0 cannot be reached"):
            numbers(broker)
        assert [site.keys.database for site in sites.of(broker, unseen=unseen)] == [0, 7]
        assert ["127.0.0.1:1/0" in error.message for error in unseen] == [True]


class TestChange:
    """What a cleanup plans is done in its own database and nowhere else."""

    def seeded(self, three) -> str:
        """Leave a task's keys of every type in three databases, and somebody else's beside them."""
        task_id = seed_result(three.reads, "FAILURE", life_s=4000)
        for each in (task_id, "other"):
            three.apps["progress"].hset(f"progress:{each}", mapping={b"\xff": b"\x00", b"step": b"1"})
            three.apps["logs"].rpush(f"logs:{each}", *(b"%d\xff\n" % n for n in range(2000)))
            three.apps["logs"].expire(f"logs:{each}", 900)
        return task_id

    def plans(self, three, task_id):
        """Return what a cleanup of a task would do."""
        return cleanup.plan(find(three, [task_id]), app_keys.read(three, [task_id])[0])

    def all(self, three):
        """Return every key but our own, with its life, of every database."""
        return [values(client) for client in (three.reads, *three.apps.values())]

    def test_there_and_back(self, three):
        """Values and lives come back to the byte; the lock and the journal are in the database that was changed."""
        task_id = self.seeded(three)
        before = self.all(three)
        plans = self.plans(three, task_id)

        for plan in plans:
            assert told(apply(plan, three, dry_run=False)) == ["applied"]
        journals = [list(client.scan_iter(match="opslib:run:*:j")) for client in (three.reads, *three.apps.values())]
        assert journals == [[b"opslib:run:%s:j" % run_id().encode()]] * 3
        left = [sorted(key.decode() for key in found) for found in self.all(three)]
        assert left == [[], ["progress:other"], ["logs:other"]]
        for _ in plans:  # one run by hand changed all three: each is undone by itself
            assert told(undone(three, run_id())) == ["applied"]

        assert self.all(three) == before
        assert not undo.plan(three, run_id())

    def test_every_type_on_every_server(self, any_server, archive):
        """A value is known again by what it holds, however a server spells numbers or orders fields."""
        assert archive
        broker = servers.broker(any_server, app_keys=app("k", at(any_server.url, 1)))
        client = broker.apps["k"]
        client.set("k:string", b"\xff\x00\n" * 400_000, px=900_000)
        client.set("k:empty", b"")
        client.rpush("k:list", b"", b"\xfe", b"b", b"a")
        client.hset("k:hash", mapping={b"\xff": b"1", b"a": b"", b"Z": b"2", "\u00e4": b"3", b"z": b"4"})
        client.sadd("k:set", *(b"\xfe%d" % n for n in range(400)))
        client.sadd("k:numbers", *range(100))
        client.zadd("k:zset", {b"a": 0.1, b"b": 1e300, b"c": float("-inf"), b"d": 3, b"e": -0.0, b"f": 1 / 3, b"g": 2})
        before = values(client)
        ids = [key.decode().partition(":")[2] for key in client.scan_iter(match="k:*")]

        (plan,) = cleanup.plan(find(broker, ids), app_keys.read(broker, ids)[0])
        assert told(apply(plan, broker, dry_run=False)) == ["applied"] * 7
        assert values(client) == {}
        assert set(told(undone(broker, run_id()))) == {"applied"}

        assert values(client) == before

    def test_each_rewritten_key_survives(self, three):
        """Whatever was changed between look and delete: a field, an element, a byte."""
        task_id = self.seeded(three)
        plans = self.plans(three, task_id)
        three.reads.append(f"celery-task-meta-{task_id}", " ")
        three.apps["progress"].hset(f"progress:{task_id}", "step", "2")
        three.apps["logs"].lset(f"logs:{task_id}", 1000, "another")
        before = self.all(three)

        for plan in plans:
            (outcome,) = apply(plan, three, dry_run=False)
            assert (outcome.status, "written again" in outcome.reason) == ("skipped", True)

        assert self.all(three) == before

    def test_what_expires_meanwhile_is_gone(self, three):
        """It is told as gone, and nothing is put in its place."""
        task_id = self.seeded(three)
        plans = self.plans(three, task_id)
        three.apps["logs"].unlink(f"logs:{task_id}")

        outcomes = [outcome for plan in plans for outcome in apply(plan, three, dry_run=False)]

        assert [str(outcome.status) for outcome in outcomes] == ["applied", "skipped", "applied"]

    def test_interrupted_run_is_resumed_and_undone_there(self, three, monkeypatch):
        """By its id alone: which database it was in, its journal says."""
        task_id = self.seeded(three)
        for n in range(60):
            three.apps["progress"].set(f"progress:{n}", str(n))
        ids = [task_id, *map(str, range(60))]
        plan, *_ = cleanup.plan(find(three, ids), app_keys.read(three, ids)[0])
        before = self.all(three)
        calls: list[str] = []

        def cut(point: str) -> None:
            calls.append(point)
            if point == "after-vault":
                raise KeyboardInterrupt

        monkeypatch.setattr(points, "passed", cut)
        with pytest.raises(KeyboardInterrupt):
            apply(plan, three, dry_run=False)
        monkeypatch.undo()
        assert "after-vault" in calls
        assert self.all(three) == before

        left = resume.remaining(plan, three, run_id())
        assert len(left) == len(plan) == 61
        assert left.fingerprint == plan.fingerprint != three.fingerprint

    def test_lock_of_one_database_is_not_that_of_another(self, three):
        """Who changes the logs keeps nobody from the broker, and the other way round."""
        task_id = self.seeded(three)
        progress, logs, results = self.plans(three, task_id)
        site = sites.planned(three, logs.fingerprint)

        with lock.held(site, run_id="20261121T030000Z-trial-abc123", plan_digest="d"):
            with pytest.raises(LockHeld):
                apply(logs, three, dry_run=False)
            assert told(apply(progress, three, dry_run=False)) == ["applied"]
            assert told(apply(results, three, dry_run=False)) == ["applied"]

    @pytest.mark.parametrize("key", ["opslib:lock", "progress:another"])
    def test_action_that_shows_another_key_is_refused(self, three, key):
        """What a person reads is what is done: an application's key is the action's subject."""
        site = sites.planned(three, sites.planned(three, "").fingerprint)
        action = Action(
            kind=Kind.DELETE,
            subject="progress:x",
            source="progress",
            destination="vault",
            copies=(Copy(place="key", key=key),),
        )

        with pytest.raises(Refused, match="shows progress:x, and is about"):
            apply(planned(site, action), three, dry_run=False)

    def test_undo_of_a_run_needs_only_its_own_database(self, server, redis, archive):
        """One that is down stands in nobody's way; one that could hold the journal does."""
        assert archive
        task_id = seed_result(redis, "FAILURE")
        broker = servers.broker(server, app_keys=app("a", NOWHERE))
        (plan,) = cleanup.plan(find(broker, [task_id]), app_keys.read(broker, [task_id])[0])

        assert told(apply(plan, broker, dry_run=False)) == ["applied"]
        assert told(undone(broker, run_id())) == ["applied"]
        with pytest.raises(BrokerUnreachable):
            undo.plan(broker, "20261121T021500Z-cleanup-task-7f3a9c")
