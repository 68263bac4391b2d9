"""The keys that are kept for a task are found in whichever database they are, and known again by their values."""

from __future__ import annotations

import hashlib
import json
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis import Redis

from opslib import pieces, values
from opslib.collectors import app_keys
from opslib.errors import BadParameter
from opslib.facts.app_keys import TaskKey
from opslib.settings import AppKey
from opslib.writer import lock, stored
from opslib.writer.primitive import Primitive
from tests.support import servers

PROGRESS = AppKey(pattern="progress:{task_id}")
RESULT = json.dumps({"status": "SUCCESS", "result": 1, "task_id": "x"}).encode()


def at(url: str, database: int) -> str:
    """Return the URL of another database of a server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def rows(broker, *ids: str, **more) -> dict[str, TaskKey]:
    """Return the keys of some tasks by what they are called."""
    found, coverage = app_keys.read(broker, ids, **more)
    assert not any(row.silent for row in coverage)
    return {row.name if len(ids) == 1 else f"{row.name} {row.task_id}": row for row in found}


@pytest.fixture
def three(server, redis, archive):
    """A broker, results and keys of the application in a database each."""
    assert archive
    assert not redis.dbsize()
    apps = {
        "progress": AppKey(pattern="progress:{task_id}", url=at(server.url, 1)),
        "logs": AppKey(pattern="logs:{task_id}", url=at(server.url, 2)),
    }
    return servers.broker(server, result_backend=at(server.url, 5), app_keys=apps)


class TestWhereTheyAre:
    """One look at each database, and a row for each key that is there."""

    def test_each_in_its_own_database(self, three):
        """Each with its type, its size, its life, and the identity of the database that a plan is made for."""
        three.results.set("celery-task-meta-x", RESULT, ex=500)
        three.apps["progress"].hset("progress:x", mapping={"percent": "40", "step": "resize"})
        three.apps["logs"].rpush("logs:x", "one", "two", "three")

        found = rows(three, "x")

        assert {name: (row.key, row.type, row.elements) for name, row in found.items()} == {
            "result": ("celery-task-meta-x", "string", 1),
            "progress": ("progress:x", "hash", 2),
            "logs": ("logs:x", "list", 3),
        }
        assert (found["result"].size_bytes, 490 < found["result"].life_s <= 500) == (len(RESULT), True)
        assert found["logs"].life_s < 0
        assert [row.fingerprint.split("/")[2] for row in found.values()] == ["5", "1", "2"]
        assert not any(row.fixed for row in found.values())

    def test_coverage_has_each_database_once(self, three):
        """It says how many keys were looked for, and shows no password."""
        _, coverage = app_keys.read(three, ["x", "y"])

        assert [(row.place.rpartition("/")[2], row.seen, row.silent) for row in coverage] == [
            ("5", 2, 0),
            ("1", 2, 0),
            ("2", 2, 0),
        ]
        password = urlsplit(three.target.broker_url).password
        assert password
        assert password not in str(coverage)

    def test_none_are_no_rows(self, three):
        """What is not there is absent, and was looked for all the same."""
        assert rows(three, "x") == {}

    def test_in_the_brokers_own_database(self, server, redis, archive):
        """Without a URL of their own; no prefix stands before a name that the application chose."""
        assert archive
        broker = servers.broker(server, app_keys={"progress": PROGRESS}, global_keyprefix="shop-")
        redis.set("progress:x", "40")
        redis.set("shop-progress:x", "41")

        assert [(row.key, row.fingerprint) for row in rows(broker, "x").values()] == [
            ("progress:x", broker.fingerprint)
        ]

    def test_prefix_of_results(self, server, redis, archive):
        """The result backend's own prefix stands before a result's key."""
        assert archive
        broker = servers.broker(server, result_keyprefix="res-")
        redis.set("res-celery-task-meta-x", RESULT)
        redis.set("celery-task-meta-x", RESULT)

        assert [row.key for row in rows(broker, "x").values()] == ["res-celery-task-meta-x"]

    def test_one_key_by_two_names_is_one(self, server, redis, archive):
        """Two settings that mean the same key, by two URLs of one database, must not remove it twice."""
        assert archive
        redis.set("progress:x", "40")
        twice = {"one": PROGRESS, "two": AppKey(pattern="progress:{task_id}", url=at(server.url, 0))}

        assert list(rows(servers.broker(server, app_keys=twice), "x")) == ["one"]

    def test_names_narrow_it(self, three):
        """Only what is asked for is read."""
        three.apps["progress"].set("progress:x", "1")
        three.apps["logs"].rpush("logs:x", "1")

        assert list(rows(three, "x", names=["logs"])) == ["logs"]

    def test_results_that_are_not_in_redis(self, server, redis, archive):
        """They are another look's to be silent about; the application's keys are read."""
        assert archive
        redis.set("progress:x", "40")
        broker = servers.broker(server, result_backend="db+sqlite:///r.db", app_keys={"progress": PROGRESS})

        assert list(rows(broker, "x")) == ["progress"]


class TestIdsAreNames:
    """An id is part of a key's name, and never a pattern, a path or markup."""

    @pytest.mark.parametrize(
        "task_id", ["*", "x*", "[a-z]", "../x", "[bold]x[/]", "a b", "{task_id}", "\udcff", "x\x06\x163", "%s", "?"]
    )
    def test_only_the_key_of_that_name_is_met(self, three, task_id):
        """Whatever it holds, it is looked up to the byte."""
        name = f"progress:{task_id}".encode("utf-8", "surrogateescape")
        three.apps["progress"].set("progress:x", "another")
        three.apps["progress"].set("progress:xyz", "another")
        assert rows(three, task_id) == {}

        three.apps["progress"].set(name, "this")

        assert [row.sha256 for row in rows(three, task_id).values()] == [hashlib.sha256(b"this").hexdigest()]

    @pytest.mark.parametrize("task_id", ["opslib:run:1", "_kombu.binding.celery", "celery-task-meta-1"])
    def test_one_that_makes_a_key_of_celerys_is_refused(self, server, redis, archive, task_id):
        """A pattern that begins with the id could mean anything."""
        assert archive
        assert not redis.dbsize()
        broker = servers.broker(server, app_keys={"state": AppKey(pattern="{task_id}:state")})

        with pytest.raises(BadParameter, match="is no task id: as state it would be one of Celery's keys"):
            app_keys.read(broker, [task_id])


class TestValues:
    """A plan knows a value again by its digest, which is the one that the writer compares."""

    @pytest.mark.parametrize("life", [None, 500])
    def test_digest_is_the_writers(self, three, life):
        """Of every type, for odd bytes, numbers and orders; nothing else would ever be removed, or everything."""
        client = three.apps["progress"]
        client.set("progress:string", b"\xff\x00\n")
        client.set("progress:empty", b"")
        client.set("progress:long", b"y" * (2 * values.MOST_BYTES // 4 + 7))
        client.rpush("progress:list", *(b"%d" % n for n in range(values.MOST_ELEMENTS)))
        client.rpush("progress:single", b"one")
        client.hset("progress:hash", mapping={b"\xff": b"1", b"a": b"", b"Z": b"2", "\u00e4": b"3", b"z": b"4"})
        client.sadd("progress:set", *(b"\xfe%d" % n for n in range(500)))
        client.sadd("progress:numbers", *range(100))
        client.zadd("progress:zset", {b"a": 0.1, b"b": 1e300, b"c": float("-inf"), b"d": 3, b"e": -0.0, b"f": 1 / 3})
        ids = [key.decode().partition(":")[2] for key in client.scan_iter()]
        if life:
            for each in ids:
                client.expire(f"progress:{each}", life)

        found, _ = app_keys.read(three, ids)

        site = three.elsewhere(client, three.target.app_keys["progress"].url)
        with lock.held(site, run_id="20261121T030000Z-trial-abc123", plan_digest="d") as held:
            primitive = Primitive(site, held, run_id="20261121T030000Z-trial-abc123", told={"plan": "d"})
            for row in found:
                kept = stored.read(primitive, row.key)
                assert not isinstance(kept, str), kept
                assert values.digest(kept[0].type, kept[0].parts) == row.sha256, row.key
        assert len({row.sha256 for row in found}) == len(found) == len(ids)

    @pytest.mark.parametrize(("extra", "fixed"), [(0, ""), (1, "It has 2,001 elements; at most 2,000 are compared")])
    def test_too_many_elements(self, three, extra, fixed):
        """One more than can be compared in one step is not read, and says so as the writer would."""
        three.apps["logs"].rpush("logs:x", *range(values.MOST_ELEMENTS + extra))

        row = rows(three, "x")["logs"]

        assert row.fixed.startswith(fixed)
        assert bool(row.fixed) is bool(extra)
        assert bool(row.sha256) is not bool(extra)

    def test_too_heavy(self, three):
        """A collection of few large elements is too large as well; a string of that size is not."""
        three.apps["logs"].rpush("logs:x", b"z" * (values.MOST_BYTES + 1))
        three.apps["progress"].set("progress:x", b"z" * (values.MOST_BYTES + 1))

        found = rows(three, "x")

        assert "bytes; at most 4,194,304 of a collection" in found["logs"].fixed
        assert (found["progress"].fixed, found["progress"].size_bytes) == ("", values.MOST_BYTES + 1)

    def test_stream(self, three):
        """A type that no file can keep is told, with its length."""
        three.apps["logs"].xadd("logs:x", {"line": "one"})

        row = rows(three, "x")["logs"]

        assert (row.type, row.elements, row.sha256) == ("stream", 1, "")
        assert row.fixed == "It is a stream, which cannot be kept."

    @pytest.mark.parametrize(
        ("raw", "group"),
        [
            (b'{"status": "SUCCESS", "group_id": "g-1"}', "g-1"),
            (b'{"status": "SUCCESS", "group_id": null}', ""),
            (b'{"group_id": {"a": 1}}', ""),
            (b"\x80\x04}q\x00.", ""),
            (b"", ""),
            (b'{"group_id": ' + b"[" * 100_000, ""),
        ],
    )
    def test_group_of_a_result(self, redis, broker, raw, group):
        """What a result says of its group is taken only if it is a name."""
        redis.set("celery-task-meta-x", raw)

        (row,) = rows(broker, "x").values()

        assert row.group == group
        assert row.sha256 == hashlib.sha256(raw).hexdigest()

    def test_many_are_read_in_few_bites(self, three, monkeypatch):
        """Values are fetched together up to a bound, so that no reply is endless."""
        for n in range(250):
            three.apps["progress"].set(f"progress:{n}", b"w" * 20_000)
        seen = []
        cut = pieces.cut
        monkeypatch.setattr(
            pieces,
            "cut",
            lambda *asked, **most: (
                seen.append(sum(r.size_bytes for r in each)) or each for each in cut(*asked, **most)
            ),
        )

        found, _ = app_keys.read(three, [str(n) for n in range(250)])

        assert len(found) == 250
        assert all(row.sha256 == found[0].sha256 for row in found)
        assert max(seen) <= app_keys._PIECE_BYTES


class TestSilence:
    """What does not answer is a row of coverage, and never an empty table."""

    def test_database_that_is_gone(self, three, server):
        """The others are read; the row says which one it is."""
        apps = {**three.target.app_keys, "state": AppKey(pattern="state:{task_id}", url="redis://127.0.0.1:1/0")}
        broker = servers.broker(server, app_keys=apps)
        three.apps["progress"].set("progress:x", "40")

        found, coverage = app_keys.read(broker, ["x", "y"])

        assert [row.name for row in found] == ["progress"]
        (silent,) = [row for row in coverage if row.silent]
        assert (silent.place, silent.seen, silent.silent) == ("keys in redis://127.0.0.1:1/0", 0, 2)
        assert "cannot be reached" in silent.note

    def test_right_that_is_missing(self, three, server, redis):
        """A user who may not read a key's value sees nothing of it, and that is said."""
        servers.user(redis, f"{servers.READ_ONLY} -hgetall")
        apps = {"progress": AppKey(pattern="progress:{task_id}", url=at(servers.as_user(server), 1))}
        three.apps["progress"].hset("progress:x", "a", "b")

        found, coverage = app_keys.read(servers.broker(server, app_keys=apps), ["x"])

        assert found == []
        assert [row.silent for row in coverage] == [0, 1]
        assert "does not permit" in coverage[1].note
        assert servers.PASSWORD not in str(coverage)

    def test_what_changes_meanwhile(self, three, monkeypatch):
        """A key whose type is another one at the second question is told, and not removed."""
        client = three.apps["progress"]
        client.hset("progress:x", "a", "b")
        asked = app_keys._asked

        def late(found: Redis, commands, keys):
            if commands is app_keys._VALUES:
                found.set("progress:x", "another")
            return asked(found, commands, keys)

        monkeypatch.setattr(app_keys, "_asked", late)

        assert rows(three, "x")["progress"].fixed == "It was written while it was looked at."


def test_nothing_is_written(three):
    """A look leaves every database as it was."""
    three.apps["progress"].set("progress:x", "40", ex=1000)
    before = [servers.dump(client) for client in (three.reads, three.results, *three.apps.values())]

    app_keys.read(three, ["x", "y"])

    assert [servers.dump(client) for client in (three.reads, three.results, *three.apps.values())] == before
