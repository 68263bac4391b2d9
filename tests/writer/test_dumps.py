"""A dump is taken for what it is, and a scratch server shut off: each doubt by itself, without a server to save."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from opslib import redact
from opslib.errors import BadParameter
from opslib.facts.backup import Saving
from opslib.writer import dumps, scratch
from tests.support import engines

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
HEAD = b"REDIS0010\xfa\x05ctime"


def saving(folder, **fields):
    """Return what a server says that saved a moment ago, and took ten seconds."""
    given = {"directory": str(folder), "file": "dump.rdb", "last_save_at": NOW, "took_s": 10.0}
    return Saving(product="Redis", version="7", **{**given, **fields})


def broker(url="redis://127.0.0.1:6379/0"):
    """Return what is asked of a broker."""
    return SimpleNamespace(target=SimpleNamespace(broker_url=url))


@pytest.fixture
def dump(tmp_path):
    """A file that says that it was begun at that instant."""
    path = tmp_path / "dump.rdb"
    path.write_bytes(HEAD + b"\xc2" + int(NOW.timestamp()).to_bytes(4, "little"))
    return path


class TestWhere:
    """Which file is the server's."""

    def test_it_is_taken(self, dump):
        """Where nothing is in doubt."""
        assert dumps.locate(broker(), saving(dump.parent), "") == (dump, "")

    @pytest.mark.parametrize("url", ["redis://redis.example:6379/0", "sentinel://127.0.0.1:26379/0;sentinel://b:1"])
    def test_only_on_this_machine(self, dump, url):
        """Whoever answers for a Sentinel is somewhere."""
        path, why = dumps.locate(broker(url), saving(dump.parent), "")

        assert (path, "another one" in why) == (None, True)

    def test_only_where_the_server_says_so(self, dump):
        """Not in whatever folder this is."""
        for untold in ({"directory": ""}, {"untold": "It does not say."}):
            path, why = dumps.locate(broker(), saving(dump.parent, **untold), "")

            assert (path, "Name the file with dump_path" in why) == (None, True)

    def test_only_what_may_be_read(self, dump, monkeypatch):
        """Neither the server's file nor one that somebody names."""
        monkeypatch.setattr(os, "access", lambda *_: False)

        assert "may not read" in dumps.locate(broker(), saving(dump.parent), "")[1]
        with pytest.raises(BadParameter, match="can be read from here"):
            dumps.locate(broker(), saving(dump.parent), str(dump))

    def test_only_what_is_a_dump(self, dump):
        """By its first bytes."""
        dump.write_bytes(b"HELLO0010")

        path, why = dumps.locate(broker(), saving(dump.parent), "")

        assert (path, "no RDB file" in why) == (None, True)

    @pytest.mark.parametrize(("before_s", "is_it"), [(-6, False), (-4, True), (0, True), (14, True), (16, False)])
    def test_only_of_the_last_save(self, before_s, is_it):
        """Clocks may differ by seconds; and one that says no time is of none."""
        head = dumps.Head(format=10, began_at=NOW - timedelta(seconds=before_s))

        assert dumps.is_of_last_save(head, saving("/")) is is_it
        assert not dumps.is_of_last_save(replace(head, began_at=None), saving("/"))


class TestCopy:
    """Somebody's data, for one pair of eyes."""

    def test_for_its_owner_only_and_over_nothing(self, dump, tmp_path):
        """Neither over a file nor through a link."""
        goal, link, outside = tmp_path / "copy", tmp_path / "link", tmp_path / "outside"
        link.symlink_to(outside)

        size, _ = dumps.copy(dump, goal)

        assert (goal.stat().st_mode & 0o777, size) == (0o600, dump.stat().st_size)
        for there in (goal, link):
            with pytest.raises(FileExistsError):
                dumps.copy(dump, there)
        assert not outside.exists()

    def test_of_one_that_breaks_off_nothing_is_left(self, dump, tmp_path, monkeypatch):
        """Half of somebody's data is no backup."""

        def full(_):
            raise OSError(28, "no space")

        monkeypatch.setattr(os, "fsync", full)

        with pytest.raises(OSError, match="no space"):
            dumps.copy(dump, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_it_leaves_room_for_others(self, dump, tmp_path, monkeypatch):
        """A full disk stops more than this."""
        usage, size = type(shutil.disk_usage("/")), dump.stat().st_size
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, size + 1_000_000))

        with pytest.raises(OSError, match="no room"):
            dumps.copy(dump, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


class TestCheck:
    """What the server's own checker says."""

    @pytest.mark.parametrize(
        ("script", "sound", "words"),
        [
            ("exit 0", True, "sound"),
            ("echo 'CRC \033[31merror'; exit 1", False, "error"),
            ("echo '--- RDB ERROR DETECTED ---\n[offset 9] CRC\n[info] 0 keys'; exit 1", False, "rdb: [offset 9] CRC"),
            ("echo Wrong signature; exit 1", None, "older than the dump"),
            ("exec sleep 30", None, "did not come to an end"),
        ],
    )
    def test_it_is_believed_as_far_as_it_goes(self, dump, tmp_path, monkeypatch, script, sound, words):
        """One that is too old, or does not end, has proven nothing."""
        program = tmp_path / "redis-check-rdb"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(dumps, "_CHECK_WITHIN_S", 0.5 if "sleep" in script else 20)

        found, said = dumps.check(dump)

        assert (found, words in said) == (sound, True)
        assert "\033" not in said


@pytest.mark.parametrize(
    "rest",
    [b"", b"\xc2\x01\x02", b"\x0a123", b"\x0a12\xfa", b"\xc3\x01\x01\x01"],
    ids=["no value", "half a number", "half a text", "and another field", "neither"],
)
def test_a_date_that_is_cut_off_is_none(tmp_path, rest):
    """No more is claimed than is there."""
    (tmp_path / "x").write_bytes(HEAD + rest)

    head = dumps.read_head(tmp_path / "x")

    assert (head.format, head.began_at) == (10, None)
    assert "cannot be read" in dumps.read_head(tmp_path / "missing")


class TestScratch:
    """A server of our own, for a moment."""

    @pytest.fixture
    def folder(self, tmp_path):
        """A folder with a dump of one key."""
        engines.available(engines.REDIS)
        (tmp_path / "data").mkdir()
        (tmp_path / "own").mkdir()
        with engines.start(engines.REDIS, tmp_path / "data") as engine, engine.client() as redis:
            redis.set("x", "1")
            redis.save()
        shutil.copy(tmp_path / "data" / "dump.rdb", tmp_path / "own" / scratch.DUMP)
        return tmp_path / "own"

    def test_nobody_else_gets_in_and_it_leaves_nothing(self, folder, monkeypatch):
        """On this machine alone, by a password that is never shown; it writes nothing, and is gone afterwards."""
        programs = scratch.programs(dumps.Head(format=10))
        monkeypatch.setattr(scratch, "programs", lambda _: [("Broken", Path("/bin/false")), *programs])
        before = (folder / scratch.DUMP).read_bytes()
        with scratch.loaded(folder, dumps.Head(format=10), 0) as server:
            assert isinstance(server, scratch.Scratch), server
            given = server.client.get_connection_kwargs()
            told = server.client.config_get("bind", "save", "appendonly", "maxmemory")
            assert told == {"bind": "127.0.0.1", "save": "", "appendonly": "no", "maxmemory": "0"}
            assert server.databases == {0: 1}
            assert given["password"] in redact.known()
            assert given["password"] not in Path(f"/proc/{server.client.info()['process_id']}/cmdline").read_text()
            with Redis(port=given["port"]) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()

        once = Retry(NoBackoff(), 0)
        with Redis(port=given["port"], password=given["password"], retry=once) as late, pytest.raises(RedisError):
            late.ping()
        assert (folder / scratch.DUMP).read_bytes() == before

    @pytest.mark.parametrize("info", [{"process_id": 2}, {"process_id": 1, "loading": 1}], ids=["another", "loading"])
    def test_only_our_own_counts_and_only_once_it_has_loaded(self, tmp_path, info):
        """Somebody else may have taken the port."""
        polls = iter([None, None, 0])
        child = SimpleNamespace(pid=1, process=SimpleNamespace(poll=lambda: next(polls)))
        (tmp_path / "log").write_text("1:M 01 Jan # Cannot \033[31mload\n")

        said = scratch._until_loaded(SimpleNamespace(info=lambda: info), child, "Redis", tmp_path / "log")

        assert isinstance(said, str)
        assert "\033" not in said

    def test_programs_of_the_dumps_kind_come_first(self, monkeypatch):
        """One that cannot be asked is called by its name."""
        monkeypatch.setattr(shutil, "which", lambda name: f"/nowhere/{name}")
        monkeypatch.setattr(scratch.embedded, "program", lambda: Path("/nowhere/valkey-server"))

        for valkey in (True, False):
            first, *_ = scratch.programs(dumps.Head(format=10, valkey=valkey))
            assert first[0] == ("valkey-server" if valkey else "redis-server")
