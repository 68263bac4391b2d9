"""A dump is proven by a server that loads it; one that is old, foreign, damaged or out of reach is not, and says so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from opslib.collectors import backup
from opslib.errors import BadParameter, Refused
from opslib.facts.backup import Backup, Census, Compared, Kept, KeyPrint, Saves
from opslib.plan import Outcome
from opslib.settings import AppKey
from opslib.symptoms import redis_backup
from opslib.writer import apply, dumps, rehearsed, scratch
from tests.support import engines, servers
from tests.support.seed import seed_result, seed_unacked, seed_waiting


@pytest.fixture
def engine(tmp_path: Path, archive: Path) -> Iterator[engines.Engine]:
    """Debian's Redis, with something to save."""
    assert archive
    engines.available(engines.REDIS)
    (tmp_path / "data").mkdir()
    with engines.start(engines.REDIS, tmp_path / "data") as running, running.client() as redis:
        fill(redis)
        yield running


@pytest.fixture
def redis(engine: engines.Engine) -> Iterator[Redis]:
    """A plain client of it."""
    with engine.client() as client:
        yield client


def fill(redis: Redis) -> None:
    """Write something of every family and type."""
    for n in range(20):
        seed_waiting(redis, args=[n])
        seed_result(redis, "SUCCESS")
    seed_unacked(redis)
    redis.zadd("celery-taskset-meta-g.j", {f"{n:03}" * 30: (7 * n) % 10 for n in range(20)})
    redis.zadd("celery-taskset-meta-low.j", {"a": float("-inf"), "b": 0.1})
    redis.hset("redbeat:nightly", mapping={"definition": "{}"})
    redis.rpush("logs:x", *(f"line {n}" for n in range(1000)))
    redis.hset("progress:x", mapping={"percent": "40", b"\xff": b"\x00"})
    redis.zadd("ranks", {"one": 1.5, "low": float("-inf")})
    redis.sadd("members", *map(str, range(400)))
    redis.set("big", b"ab" * 800_000)
    redis.xadd("stream", {"a": "b"})


class Made:
    """A run by hand: look, save, rehearse."""

    def __init__(self, broker: Any, *, dry_run: bool = False, meanwhile: Any = None, **more: Any) -> None:
        self.broker = broker
        self.before: Saves = backup.saves(broker, answer_within="0.2s")
        self.outcomes: tuple[Outcome, ...] = apply(redis_backup.plan(self.before), broker, dry_run=dry_run)
        if meanwhile:
            meanwhile()
        self.made: Backup = rehearsed.rehearse(broker, self.before, self.outcomes, **more)

    @property
    def codes(self) -> dict[str, str]:
        """Return what is judged wrong afterwards, by its code."""
        after = backup.saves(self.broker, answer_within="0.2s")
        found = redis_backup.diagnose(after, redis_backup.Thresholds(), self.made, self.outcomes)
        return {each.code: each.message for each in found if each.code not in {"no-workers", "cannot-see"}}

    @property
    def dump(self) -> Kept:
        """The dump."""
        return next(each for each in self.made.files if each.kind == "dump")

    def compared(self, of: str) -> Compared:
        """Return the comparison of a kind."""
        return next(each for each in self.made.compared if each.of == of)


class TestProven:
    """Everything that stood still is in it as it is."""

    def test_every_type_and_every_family(self, engine: engines.Engine, archive: Path) -> None:
        """In the dump all of it, in the export what is Celery's; nothing is left in the way of a temporary file."""
        run = Made(servers.broker(engine))

        dump, export = run.compared("dump"), run.compared("export")
        assert (dump.problem, dump.settled, dump.same) == ("", 32, 32)
        assert dump.by.startswith("Redis 7")
        assert sum(dump.databases.values()) == dump.keys > 31
        assert (export.problem, export.settled, export.same) == ("", 27, 27)
        assert run.codes == {}
        assert (archive / run.dump.path).is_file()
        assert run.dump.sha256 == rehearsed._sha256(archive / run.dump.path)
        assert not list(archive.rglob("scratch*"))

    def test_what_moved_meanwhile_is_no_damage(self, engine: engines.Engine, redis: Redis) -> None:
        """A live system goes on; only what stood still is compared."""

        def live() -> None:
            redis.rpop("celery")
            redis.hset("progress:x", "percent", "50")
            redis.delete("members")
            redis.set("new", "1")

        run = Made(servers.broker(engine), meanwhile=live)

        assert (run.compared("dump").settled, run.compared("dump").same) == (29, 29)
        assert run.codes == {}

    def test_what_moves_while_it_is_exported(self, engine: engines.Engine, redis: Redis, monkeypatch: Any) -> None:
        """Is no damage either: the export is compared with the looks right before and right after it."""
        entries = rehearsed._entries

        def moving(*args: Any) -> Any:
            redis.rpop("celery")
            yield from entries(*args)
            redis.lpush("celery", "later")

        monkeypatch.setattr(rehearsed, "_entries", moving)

        run = Made(servers.broker(engine))

        assert run.codes == {}
        assert run.compared("export").settled == run.compared("export").same == 26

    def test_other_databases_are_counted(self, engine: engines.Engine) -> None:
        """And one on another server is named, for nothing of it is in the dump."""
        with Redis.from_url(engine.url.replace("/0", "/3")) as other:
            other.set("x", "1")
        apps = {
            "progress": AppKey(pattern="progress:{task_id}", url=engine.url.replace("/0", "/3")),
            "logs": AppKey(pattern="logs:{task_id}", url="redis://127.0.0.1:1/0"),
        }
        run = Made(servers.broker(engine, app_keys=apps))

        assert run.compared("dump").databases[3] == 1
        assert run.before.saving.elsewhere == ("redis://127.0.0.1:1/0",)
        assert "redis://127.0.0.1:1/0" in " ".join(each.title for each in redis_backup.steps(run.before, run.made))

    def test_under_a_prefix(self, engine: engines.Engine, redis: Redis) -> None:
        """The families are told by the deployment's own names."""
        seed_waiting(redis)
        redis.rename("celery", "app:celery")
        run = Made(servers.broker(engine, global_keyprefix="app:"))

        assert run.compared("export").problem == ""
        assert "queues" in {each.family for each in run.compared("export").families}

    def test_one_of_many(self, engine: engines.Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of many keys the same few are looked at each time."""
        redis.mset({f"celery-task-meta-{n}": "{}" for n in range(2000)})
        monkeypatch.setattr(backup, "MOST_PRINTS", 500)

        run = Made(servers.broker(engine))

        assert run.before.census.one_of == 5
        assert run.before.census.keys == 2032
        assert 200 < run.compared("dump").settled == run.compared("dump").same < 800
        assert run.compared("export").settled == run.compared("export").same > 200

    def test_a_pass_that_takes_its_time(
        self, engine: engines.Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each life is counted from when it was asked for, so that every look has the same end of it."""
        broker, quick = servers.broker(engine), backup._at_once
        until = {
            key.decode(): redis.execute_command("PEXPIRETIME", key) for key in redis.scan_iter("celery-task-meta-*")
        }

        def slow(*args: Any) -> Any:
            time.sleep(0.05)
            return quick(*args)

        monkeypatch.setattr(backup, "_PAGE", 1)
        monkeypatch.setattr(backup, "_at_once", slow)
        seen = backup.census(broker.reads, broker.keys).prints

        assert len(until) == 20
        assert all(abs((seen[key].expires_at_ms or 0) - at) < 500 for key, at in until.items())


class TestNotProven:
    """Then it says why, and what to do; where there is an export, that is proven all the same."""

    def test_no_dump_was_ever_made(self, engine: engines.Engine) -> None:
        """A dry run on a server that never saved."""
        run = Made(servers.broker(engine), dry_run=True)

        assert "there is no such file here" in run.codes["backup-unproven"]
        assert not run.made.fresh
        assert run.compared("export").same == run.compared("export").settled

    def test_an_older_dump_has_to_differ(self, engine: engines.Engine, redis: Redis, archive: Path) -> None:
        """In a dry run the last one is tried; that it lacks what came since is no damage."""
        redis.save()
        redis.delete("progress:x", "ranks")
        redis.set("since", "1")

        run = Made(servers.broker(engine), dry_run=True)

        assert (run.compared("dump").settled, run.compared("dump").same) == (31, 30)
        assert "restore-differs" not in run.codes
        assert run.dump.path == ""
        assert not list(archive.rglob("vault*"))

    def test_a_damaged_file(self, engine: engines.Engine) -> None:
        """Its checksum does not fit: it is not even loaded."""
        broker = servers.broker(engine)
        before = backup.saves(broker, answer_within="0.2s")
        outcomes = apply(redis_backup.plan(before), broker, dry_run=False)
        path = engine.folder / "dump.rdb"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)

        made = rehearsed.rehearse(broker, before, outcomes)
        dump = next(each for each in made.files if each.kind == "dump")

        assert dump.problem
        assert [each.of for each in made.compared] == ["export"]

    def test_a_damaged_file_without_a_checker(self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the server that loads it finds out."""
        monkeypatch.setattr(dumps, "_CHECKERS", ())
        broker = servers.broker(engine)
        before = backup.saves(broker, answer_within="0.2s")
        outcomes = apply(redis_backup.plan(before), broker, dry_run=False)
        path = engine.folder / "dump.rdb"
        path.write_bytes(path.read_bytes()[:-2000])

        made = rehearsed.rehearse(broker, before, outcomes)
        (dump, _) = made.compared

        assert "could not load the dump" in dump.problem
        assert "EOF" in dump.problem

    def test_a_format_that_nobody_here_can_read(self, engine: engines.Engine, tmp_path: Path) -> None:
        """A newer server's dump: which programs were tried is said."""
        Made(servers.broker(engine), export=False)
        newer = tmp_path / "newer.rdb"
        newer.write_bytes((engine.folder / "dump.rdb").read_bytes().replace(b"REDIS0010", b"REDIS0078", 1))

        run = Made(servers.broker(engine), dry_run=True, dump_path=str(newer))

        assert "is older than the dump" in run.dump.note
        assert "format version" in run.compared("dump").problem
        assert "Redis 7" in run.codes["backup-unproven"]

    def test_a_server_on_another_machine(self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Says how to copy it; and once it is copied, it is proven."""
        monkeypatch.setattr(dumps, "_HERE", set())
        run = Made(servers.broker(engine))

        said = run.codes["backup-unproven"]
        assert f"scp 127.0.0.1:{engine.folder}/dump.rdb dump.rdb" in said
        again = Made(servers.broker(engine), dry_run=True, dump_path=str(engine.folder / "dump.rdb"))
        assert again.codes == {}
        assert again.compared("dump").same == again.compared("dump").settled == 32

    def test_a_file_of_another_server_at_the_same_place(self, engine: engines.Engine, redis: Redis) -> None:
        """Through a tunnel a path is that of the other machine: a file that is not of the last save is not taken."""
        redis.save()
        old = (engine.folder / "dump.rdb").read_bytes()
        began = old.index(b"\x05ctime\xc2") + 7
        old = old[:began] + (1_600_000_000).to_bytes(4, "little") + old[began + 4 :]
        (engine.folder / "dump.rdb").write_bytes(old)

        run = Made(servers.broker(engine), dry_run=True)

        assert "is not of the last save" in run.codes["backup-unproven"]

    def test_something_that_is_no_dump(self, engine: engines.Engine, tmp_path: Path) -> None:
        """Is told by its first bytes."""
        (tmp_path / "x").write_text("hello")

        run = Made(servers.broker(engine), dry_run=True, dump_path=str(tmp_path / "x"))

        assert "It is no RDB file" in run.codes["backup-unproven"]

    @pytest.mark.parametrize("name", ["missing.rdb", "."])
    def test_a_path_that_leads_nowhere(self, engine: engines.Engine, tmp_path: Path, name: str) -> None:
        """Is the mistake of the one who named it."""
        with pytest.raises(BadParameter, match="dump_path"):
            Made(servers.broker(engine), dry_run=True, dump_path=str(tmp_path / name))

    def test_no_room_on_the_disk(self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing half is left."""
        usage = type(shutil.disk_usage("/"))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))

        run = Made(servers.broker(engine))

        assert "there is no room" in run.codes["backup-unproven"]
        assert run.dump.path == ""

    def test_no_memory_for_a_second_server(self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then none is started."""
        monkeypatch.setattr(scratch, "_SHARE", 0.0)

        assert "not rehearsed here" in Made(servers.broker(engine)).codes["backup-unproven"]

    def test_no_program_here(self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Says what to install."""
        monkeypatch.setattr(scratch, "programs", lambda _: [])

        assert "install redis-server" in Made(servers.broker(engine)).codes["backup-unproven"]

    def test_a_dump_that_lacks_what_stood_still(self, engine: engines.Engine, redis: Redis, tmp_path: Path) -> None:
        """The wrong file, for instance: it is critical, and names of keys say where to look."""
        redis.delete("ranks")
        redis.save()
        wrong = tmp_path / "wrong.rdb"
        wrong.write_bytes((engine.folder / "dump.rdb").read_bytes())
        redis.zadd("ranks", {"one": 1.5})

        run = Made(servers.broker(engine), dump_path=str(wrong))

        assert run.codes["restore-differs"].startswith("1 of 32 keys that stood still")
        assert (run.compared("dump").differing, run.compared("dump").others) == (("ranks",), 1)


class TestJudged:
    """What a backup has to hold, key by key."""

    ONE = KeyPrint(family="results", type="string", elements=2, digest="d", expires_at_ms=10**12)

    @pytest.mark.parametrize(
        ("change", "alike"),
        [
            ({}, True),
            ({"expires_at_ms": 10**12 + 2_000}, True),
            ({"expires_at_ms": 10**12 + 2_001}, False),
            ({"expires_at_ms": None}, False),
            ({"digest": "e"}, False),
            ({"elements": 3}, False),
            ({"type": "list"}, False),
        ],
    )
    def test_by_value_and_by_life(self, change: dict[str, Any], alike: bool) -> None:
        """One that would never expire, or would be gone, is not as it was."""
        found = {"a": replace(self.ONE, **change)}
        judged = rehearsed._judged(Compared(of="dump"), {"a": self.ONE}, found)

        assert (judged.same, judged.differing) == ((1, ()) if alike else (0, ("a",)))

    def test_what_it_lacks_is_named_as_text(self) -> None:
        """A key may be called anything."""
        judged = rehearsed._judged(Compared(of="dump"), {"\x1b[31mkey": self.ONE}, {})

        assert (judged.same, "\x1b" in judged.differing[0]) == (0, False)

    @pytest.mark.parametrize(
        ("family", "left_s", "settled"), [("results", 61, 1), ("results", 59, 0), ("opslib", 61, 0)]
    )
    def test_what_is_about_to_expire_proves_nothing(self, family: str, left_s: int, settled: int) -> None:
        """It may be gone by the time that the copy is looked at."""
        now = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
        until = int((now.timestamp() + left_s) * 1000)
        census = Census(taken_at=now, keys=1, prints={"a": replace(self.ONE, family=family, expires_at_ms=until)})

        assert len(rehearsed._settled(census, census)) == settled


class TestKept:
    """What is in the run's folder is whole, and of this run."""

    def test_a_second_try_leaves_the_first_one_what_it_is(self, engine: engines.Engine, archive: Path) -> None:
        """A cell that is run twice must not cost the backup that is there."""
        first = Made(servers.broker(engine), export=False, restore=False)
        again = Made(servers.broker(engine), export=False, restore=False)

        assert "File exists" in again.dump.problem
        assert rehearsed._sha256(archive / first.dump.path) == first.dump.sha256

    def test_a_second_copy_that_finds_no_room_is_said(
        self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first one is kept all the same."""
        copy, calls = dumps.copy, []

        def once(source: Path, goal: Path) -> Any:
            calls.append(goal)
            if len(calls) > 1:
                raise OSError(28, "no space")
            return copy(source, goal)

        monkeypatch.setattr(dumps, "copy", once)

        run = Made(servers.broker(engine), export=False)

        assert "no room for a second copy" in run.compared("dump").problem
        assert run.dump.path

    def test_a_folder_that_cannot_be_written_ends_it(
        self, engine: engines.Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one sentence."""

        def refused(*_: object) -> Any:
            raise OSError(13, "Permission denied")

        broker = servers.broker(engine)
        before = backup.saves(broker, answer_within="0.2s")
        outcomes = apply(redis_backup.plan(before), broker, dry_run=False)
        monkeypatch.setattr(rehearsed.folders, "create", refused)

        with pytest.raises(Refused, match="Nothing was kept"):
            rehearsed.rehearse(broker, before, outcomes)

    def test_a_file_of_another_save_is_no_backup_of_this_one(self, engine: engines.Engine, tmp_path: Path) -> None:
        """A person may name yesterday's; and no server is started for it that nobody asked for."""
        with engine.client() as redis:
            redis.save()
        old = (engine.folder / "dump.rdb").read_bytes()
        began = old.index(b"\x05ctime\xc2") + 7
        old = old[:began] + (1_600_000_000).to_bytes(4, "little") + old[began + 4 : -8]
        (tmp_path / "old.rdb").write_bytes(old + bytes(8))  # by which a dump says that it has no checksum

        for dry_run in (True, False):
            broker = servers.broker(engine)
            run = Made(broker, dry_run=dry_run, dump_path=str(tmp_path / "old.rdb"), export=False, restore=False)

            assert run.made.compared == ()
            assert ("not of the last save" in run.dump.problem) is not dry_run
            assert "It is of another save" in run.dump.note

    def test_the_export_has_what_is_celerys_and_counts_what_it_cannot_hold(
        self, engine: engines.Engine, redis: Redis
    ) -> None:
        """Nothing of the application's own; a stream is in the dump alone."""
        names = set(redis.scan_iter("*"))
        redis.xadd("celery-task-meta-stream", {"a": "b"})

        run = Made(servers.broker(engine), restore=False)

        export = next(each for each in run.made.files if each.kind == "export")
        assert "2 streams are in the dump alone" in export.note  # this one, and the tool's own
        assert export.keys < len(names)
        assert {each.family for each in run.compared("export").families} <= {"queues", "results", "beat", "opslib"} | {
            each.family for each in run.before.census.families if each.family not in {"others", "replies"}
        }


class TestAppendOnlyFile:
    """With it on, a dump that is put in place is ignored: the trap that the steps lead around."""

    def test_steps_bring_it_back(self, tmp_path: Path, archive: Path) -> None:
        """Without them the server comes up as it was; with them, as it was saved, and it appends again."""
        data = tmp_path / "data"
        data.mkdir()
        with engines.start(engines.REDIS, data, persistent=True) as engine:
            with engine.client() as redis:
                redis.set("celery-task-meta-x", "old")
                run = Made(servers.broker(engine))
                redis.set("celery-task-meta-x", "today")
            steps = redis_backup.steps(run.before, run.made)
            engine.kill()
            dump = archive / run.dump.path

            shutil.copy(dump, data / "dump.rdb")
            engine.start()
            with engine.client() as redis:
                assert redis.get("celery-task-meta-x") == b"today"
            engine.kill()

            titles = [each.title for each in steps]
            assert any("Start it without the append-only file" in title for title in titles)
            aside = next(each.command for each in steps if "Put aside" in each.title)
            assert (
                aside
                == f"mv {data}/dump.rdb {data}/dump.rdb.before && mv {data}/appendonlydir {data}/appendonlydir.before"
            )
            (data / "appendonlydir").rename(data / "appendonlydir.before")
            engine.lines = (*engine.lines, "appendonly no")
            engine.start()
            with engine.client() as redis:
                assert redis.get("celery-task-meta-x") == b"old"
                redis.config_set("appendonly", "yes")
                assert redis.info("persistence")["aof_enabled"] == 1


class TestHead:
    """What a dump says of itself is read from its first bytes, whatever they are."""

    @pytest.mark.parametrize("kind", [engines.VALKEY, engines.REDIS])
    def test_of_each_kind(self, kind: str, tmp_path: Path) -> None:
        """When the save began, and which server made it."""
        engines.available(kind)
        with engines.start(kind, tmp_path) as engine, engine.client() as redis:
            redis.save()
            now = redis.time()[0]
        head = dumps.read_head(tmp_path / "dump.rdb")

        assert isinstance(head, dumps.Head)
        assert head.valkey is (kind == engines.VALKEY)
        assert head.began_at is not None
        assert abs(head.began_at.timestamp() - now) < 5
        assert head.by[0].isdigit()

    @pytest.mark.parametrize(
        "content", [b"", b"REDIS", b"REDISabcd", b"REDIS0010", b"REDIS0010\xfa\x3f", b"REDIS0010\xfa\xc2"]
    )
    def test_cut_off_or_none(self, tmp_path: Path, content: bytes) -> None:
        """No more is claimed than is there."""
        (tmp_path / "x").write_bytes(content)
        head = dumps.read_head(tmp_path / "x")

        assert isinstance(head, str) is not content.startswith(b"REDIS0010")
        assert isinstance(head, str) or head.began_at is None
