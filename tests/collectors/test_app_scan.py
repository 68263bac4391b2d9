"""An application's keys are counted by their pattern without being touched, and the oldest of them are kept."""

from __future__ import annotations

import pytest

from opslib.collectors import app_scan
from opslib.errors import BadParameter, BrokerUnreachable, Refused
from opslib.settings import AppKey
from tests.support import servers
from tests.support.waiting import until

NAMES = {
    "progress": AppKey(pattern="progress:{task_id}"),
    "logs": AppKey(pattern="logs:{task_id}"),
}
DEADLINE_S = 20.0


@pytest.fixture
def scanned(server, redis, archive):
    """A broker whose own database has keys of the application."""
    assert archive
    assert not redis.dbsize()
    return servers.broker(server, app_keys=NAMES)


def keys(found) -> set[str]:
    """Return the names of the rows."""
    return {row.key for row in found.rows}


class TestWhatFits:
    """Every key of the pattern, and no other."""

    def test_counts_weighs_and_knows_lives(self, scanned, redis):
        """Of all of them; each row with its type, its id and its life."""
        redis.hset("progress:a", mapping={"percent": "40"})
        redis.set("progress:b", "x" * 5000, ex=500)
        redis.rpush("logs:a", "one")

        found = app_scan.scan(scanned, "progress")

        assert (found.keys, found.fits, found.forever, found.left, found.strangers) == (2, 2, 1, 0, 0)
        assert {(row.key, row.task_id, row.type) for row in found.rows} == {
            ("progress:a", "a", "hash"),
            ("progress:b", "b", "string"),
        }
        lives = {row.task_id: row.life_s for row in found.rows}
        assert lives["a"] < 0
        assert 490 < lives["b"] <= 500
        assert found.size_bytes == sum(row.size_bytes for row in found.rows)
        assert found.size_bytes > 5000
        assert found.fingerprint == scanned.fingerprint

    def test_nothing_there(self, scanned):
        """It is a scan of nothing, and whole."""
        found = app_scan.scan(scanned, "progress")

        assert (found.keys, found.rows, found.left) == (0, (), 0)

    @pytest.mark.parametrize(
        ("pattern", "fits", "fits_not"),
        [
            ("p?:{task_id}", "p?:a", "px:a"),
            ("p[ab]:{task_id}", "p[ab]:x", "pa:x"),
            ("p\\{task_id}", "p\\x", "px"),
            ("p:{task_id}:end", "p:a:b:end", "p:a:end:more"),
            ("p:{task_id}", "p:\udcff", "q:x"),
            ("p:{task_id}", "p:x\n", "p:"),
        ],
    )
    def test_a_pattern_is_no_glob(self, server, redis, pattern, fits, fits_not):
        """Its signs mean themselves; an id is at least one character."""
        broker = servers.broker(server, app_keys={"p": AppKey(pattern=pattern)})
        for key in (fits, fits_not):
            redis.set(key.encode("utf-8", "surrogateescape"), "1")

        assert keys(app_scan.scan(broker, "p")) == {fits}

    def test_what_is_called_so_and_is_not_the_applications(self, server, redis):
        """Celery's keys and ours are counted as strangers, and those of a closer pattern too."""
        names = {"c": AppKey(pattern="c{task_id}"), "close": AppKey(pattern="c:{task_id}:log")}
        broker = servers.broker(server, app_keys=names)
        for key in ("celery-task-meta-x", "c:1", "c:1:log"):
            redis.set(key, "1")

        found = app_scan.scan(broker, "c")

        assert keys(found) == {"c:1"}
        assert (found.keys, found.strangers) == (1, 2)
        assert keys(app_scan.scan(broker, "close")) == {"c:1:log"}

    @pytest.mark.parametrize("pattern", [":{task_id}", "-{task_id}-"])
    def test_a_pattern_that_could_be_any_key(self, server, redis, pattern):
        """Is refused before anything is read."""
        assert not redis.dbsize()
        broker = servers.broker(server, app_keys={"p": AppKey(pattern=pattern)})

        with pytest.raises(BadParameter, match="could be any key"):
            app_scan.scan(broker, "p")

    def test_unknown_name(self, scanned):
        """Says which there are."""
        with pytest.raises(BadParameter, match="names no keys 'progres'") as raised:
            app_scan.scan(scanned, "progres")
        assert "progress" in raised.value.hint

    def test_no_names_at_all(self, broker):
        """Says how to name one."""
        with pytest.raises(BadParameter) as raised:
            app_scan.scan(broker, "progress")
        assert "REDIS_PROGRESS_URL" in raised.value.hint


class TestAges:
    """How long a key was untouched is told by the server, and looking does not change it."""

    def test_only_the_old_ones_and_the_oldest_first(self, scanned, redis):
        """The others are counted; a scan leaves every key as old as it was."""
        redis.set("progress:old", "1")
        until(lambda: redis.object("IDLETIME", "progress:old") >= 3, DEADLINE_S, "the key is old")
        redis.set("progress:new", "1")

        found = app_scan.scan(scanned, "progress", older_than_s=2.0)

        assert (found.keys, found.fits, keys(found)) == (2, 1, {"progress:old"})
        assert redis.object("IDLETIME", "progress:old") >= 3
        assert [row.task_id for row in app_scan.scan(scanned, "progress").rows] == ["old", "new"]
        assert [row.task_id for row in app_scan.scan(scanned, "progress", keep=1).rows] == ["old"]

    def test_a_server_that_does_not_count_them(self, scanned, redis):
        """Without an age it is scanned all the same; with one it is refused."""
        redis.set("progress:a", "1")
        redis.config_set("maxmemory-policy", "allkeys-lfu")
        try:
            found = app_scan.scan(scanned, "progress")
            with pytest.raises(Refused, match="older_than cannot be told"):
                app_scan.scan(scanned, "progress", older_than_s=1.0)
        finally:
            redis.config_set("maxmemory-policy", "noeviction")

        assert [row.idle_s for row in found.rows] == [None]


class TestMany:
    """What is kept is bounded, and what was not met is said."""

    def test_rows_are_bounded_and_keys_are_counted(self, scanned, redis):
        """All of several thousand are counted, a few kept."""
        with redis.pipeline(transaction=False) as pipe:
            for n in range(3000):
                pipe.set(f"progress:{n}", n)
            pipe.execute()

        found = app_scan.scan(scanned, "progress", keep=10)

        assert (found.keys, found.fits, len(found.rows), found.left) == (3000, 3000, 10, 0)

    def test_a_scan_that_was_ended(self, scanned, redis):
        """Says about how many keys it has not met."""
        redis.mset({f"progress:{n}": n for n in range(3000)})

        found = app_scan.scan(scanned, "progress", max_keys=500)

        assert 0 < found.keys < 3000
        assert found.left == 2500

    def test_who_may_only_look_may_count(self, server, redis):
        """The rights that docs/safety.md lists for looking are enough, ages included."""
        servers.user(redis, servers.READ_ONLY)
        redis.set("progress:a", "1")
        broker = servers.broker(server, broker_url=servers.as_user(server), app_keys=NAMES)

        found = app_scan.scan(broker, "progress")

        assert [(row.task_id, row.idle_s is not None) for row in found.rows] == [("a", True)]

    def test_a_database_that_does_not_answer(self, server, redis):
        """Is an error that names it."""
        assert not redis.dbsize()
        gone = AppKey(pattern="p:{task_id}", url="redis://127.0.0.1:1/0")

        with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1"):
            app_scan.scan(servers.broker(server, app_keys={"p": gone}), "p")
