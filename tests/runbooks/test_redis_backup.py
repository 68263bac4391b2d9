"""redis-backup on a real Redis with a real worker: a server of its own loads what was saved, and nobody's data leak."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, records, run
from opslib.errors import Exit
from opslib.run import RunResult
from opslib.writer import vault
from tests import command_line
from tests.shop import contents
from tests.support import engines
from tests.support.seed import seed_result, seed_unacked, seed_waiting
from tests.support.workers import deployment

SECRET = "argument-nobody-may-see"
DUMP, EXPORT = "vault-dump.rdb", "vault-export.jsonl.gz"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A deployment on a server that saves by itself, with something in every family of keys."""

    redis: Redis
    engine: engines.Engine
    folder: Path

    def run(self, **parameters: object) -> RunResult:
        """Run the notebook."""
        given = {"target": "shop", **parameters}
        return run.run(catalog.find("redis-backup"), given, target="shop", reason="nightly")

    def files(self, result: RunResult) -> dict[str, Path]:
        """Return the files of a run's folder by name."""
        assert result.report
        return {path.name: path for path in Path(result.report).parent.iterdir()}

    def ops(self, *words: str) -> command_line.Done:
        """Run a command."""
        return command_line.ops(*words, env=dict(os.environ), cwd=self.folder, timeout_s=90)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Results, waiting and unacked messages, a dead letter, a key with a life, and one of the application."""
    folder = tmp_path_factory.mktemp("backup")
    (folder / "data").mkdir()
    with (
        engines.start(engines.REDIS, folder / "data", extra=['save "3600 1"']) as engine,
        deployment(engine, folder) as system,  # type: ignore[arg-type]
        engine.client() as redis,
    ):
        system.worker(name="saver@shop")
        task_id = system.send("ok")
        system.until_done(task_id)
        for n in range(40):
            seed_waiting(redis, queue="lonely", args=[SECRET, n], priority=n % 2 * 9)
            seed_result(redis, "SUCCESS", result=SECRET)
        seed_unacked(redis, queue="lonely")
        redis.lpush("lonely.dead", json.dumps({"task_id": "x", "args": [SECRET]}))
        redis.rpush("long", *(f"element {n}" for n in range(3000)))
        redis.zadd("ranks", {"one": 1.5, "two": float("inf")})
        redis.sadd("members", "a", b"\xff\x00")
        redis.hset("progress:x", mapping={"percent": "40"})
        (folder / "ops.toml").write_text('[targets.shop]\nbroker_url = "env:SHOP_URL"\n')
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(command_line.environment()):
                patch.delenv(name)
            patch.setenv("SHOP_URL", engine.url)
            patch.setenv("OPS_REPORTS", str(folder / "reports"))
            patch.setattr(records, "_HAND", [])
            patch.chdir(folder)
            yield Shop(redis=redis, engine=engine, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A run with the notebook's defaults, and what was there before and after it."""

    result: RunResult
    before: dict[bytes, object]
    after: dict[bytes, object]
    saved: tuple[Any, Any]


@pytest.fixture(scope="module")
def looked(shop: Shop) -> Looked:
    """The dry run, which is the default, on a server that has never saved."""
    before, saved = contents(shop.redis), shop.redis.lastsave()
    result = shop.run()
    return Looked(result=result, before=before, after=contents(shop.redis), saved=(saved, shop.redis.lastsave()))


@pytest.fixture(scope="module")
def made(shop: Shop, looked: Looked) -> RunResult:
    """The run that saves."""
    assert looked
    return shop.run(dry_run=False)


class TestDryRun:
    """It looks, plans, tries what it can, and leaves nothing behind."""

    def test_nothing_was_saved_or_kept(self, shop: Shop, looked: Looked) -> None:
        """Neither on the server nor here."""
        assert looked.before == looked.after
        assert looked.saved[0] == looked.saved[1]
        assert not any(name.startswith("vault") for name in shop.files(looked.result))
        assert not (shop.folder / "data" / "dump.rdb").exists()

    def test_it_says_what_is_wrong(self, looked: Looked) -> None:
        """There is no dump, nothing was ever saved, and so nothing is proven but the export."""
        record = looked.result.record

        assert looked.result.exit_code == Exit.ATTENTION
        assert [row["code"] for row in record.findings] == ["backup-old"]
        assert "has not been saved since it was started" in str(record.findings[0]["message"])
        assert {row["code"] for row in record.remaining} == {"backup-old", "backup-unproven"}
        assert record.plan is not None
        (action,) = record.plan["actions"]
        assert (action["kind"], "more memory" in action["effect"]) == ("save", True)


class TestApplied:
    """What was saved is kept, with proof."""

    def test_it_was_saved_and_all_is_well(self, shop: Shop, looked: Looked, made: RunResult) -> None:
        """LASTSAVE has moved on; nothing remains to be said, and no key of Celery's is another one."""
        record = made.record

        assert (made.exit_code, record.verdict) == (Exit.DONE, "healthy"), record.remaining
        assert [row["status"] for row in record.outcomes] == ["applied"]
        assert "as LASTSAVE says" in str(record.outcomes[0]["reason"])
        assert shop.redis.lastsave() > looked.saved[0]
        assert {k: v for k, v in contents(shop.redis).items() if not k.startswith(b"opslib:")} == looked.before

    def test_files_are_whole_and_for_their_owner_alone(self, shop: Shop, made: RunResult) -> None:
        """The copy is the server's file to the byte, and the report has its checksum."""
        files = shop.files(made)
        sha256 = hashlib.sha256(files[DUMP].read_bytes()).hexdigest()

        assert stat.S_IMODE(files[DUMP].stat().st_mode) == 0o600
        assert stat.S_IMODE(files[EXPORT].stat().st_mode) == 0o600
        assert files[DUMP].read_bytes() == (shop.folder / "data" / "dump.rdb").read_bytes()
        page = _page(made)
        assert sha256 in page.replace("\n", "").replace(" ", "")
        assert "redis-check-rdb: the file is sound." in page

    def test_a_server_loads_it_and_has_the_same(
        self, shop: Shop, made: RunResult, tmp_path: Path, looked: Looked
    ) -> None:
        """Every key to the byte, by another server than the runbook's own."""
        (tmp_path / "dump.rdb").write_bytes(shop.files(made)[DUMP].read_bytes())
        with engines.start(engines.REDIS, tmp_path) as again, again.client() as restored:
            found = {k: v for k, v in contents(restored).items() if not k.startswith(b"opslib:")}

        assert found == looked.before

    def test_the_export_holds_celerys_keys(self, shop: Shop, made: RunResult) -> None:
        """In windows, each with its life; the application's own are not in it."""
        header, entries = vault.read(shop.files(made)[EXPORT])
        found: dict[bytes, list[Any]] = {}
        for each in entries:
            found.setdefault(each.key, []).append(each)

        assert header.target == "shop"
        for key in (b"lonely", b"unacked", b"unacked_index", b"lonely.dead", b"_kombu.binding.celery"):
            assert key in found, key
        assert not {b"progress:x", b"members", b"ranks"} & set(found)
        parts = [part for each in found[b"long"] for part in each.parts]
        assert parts == shop.redis.lrange("long", 0, -1)
        assert len(found[b"long"]) > 1
        results = [each for key, (each, *_) in found.items() if key.startswith(b"celery-task-meta-")]
        assert len(results) == 41
        assert all(each.expires_at_ms for each in results)

    def test_the_export_is_restored_as_the_page_says(
        self, shop: Shop, made: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: Looked
    ) -> None:
        """By those lines of docs/redis-backup.md, into a server of a newer kind: the same keys to the byte."""
        page = (Path(__file__).parents[2] / "docs" / "redis-backup.md").read_text("utf-8")
        (lines,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        monkeypatch.chdir(shop.files(made)[EXPORT].parent)
        with engines.start(engines.VALKEY, tmp_path) as again, again.client() as restored:
            exec(lines.replace("redis://127.0.0.1:6399/0", again.url), {})
            found = {k: v for k, v in contents(restored).items() if not k.startswith(b"opslib:")}

        own = {b"progress:x", b"members", b"ranks", b"ran"}
        assert own < set(looked.before)
        assert found == {key: value for key, value in looked.before.items() if key not in own}

    def test_report_shows_the_rehearsal_and_the_way_back(self, made: RunResult) -> None:
        """How many stood still, and how many of them it holds; then every step."""
        page = _page(made)

        for words in (
            "Restore, rehearsed",
            "stood still looked the same before the save and after it",
            "How to restore it",
            "redis-cli SHUTDOWN NOSAVE",
            "Stop the workers: saver@shop.",
        ):
            assert words in page, words
        assert "appendonly" not in page

    def test_nobodys_data_are_in_any_other_file(self, shop: Shop, made: RunResult, looked: Looked) -> None:
        """Neither an argument nor the server's password, whatever the file is called."""
        for result in (made, looked.result):
            for name, path in shop.files(result).items():
                content = path.read_bytes()
                assert shop.engine.password.encode() not in content, name
                assert name.startswith("vault") or SECRET.encode() not in content, name

    def test_there_is_nothing_to_undo_or_to_resume(self, shop: Shop, made: RunResult) -> None:
        """A save takes nothing away."""
        undone = shop.ops("undo", made.record.run_id, "--apply", "--yes")
        resumed = shop.ops("resume", made.record.run_id)

        assert (undone.code, "left to put back" in undone.err) == (Exit.DONE, True), undone
        assert (resumed.code, "came to its end" in resumed.err) == (Exit.DONE, True), resumed

    def test_the_plan_of_a_dry_run_is_applied(self, shop: Shop, made: RunResult) -> None:
        """It saves, judged as this runbook judges; another time it is refused."""
        assert made
        before = shop.redis.lastsave()
        dry = shop.run(export=False, restore=False)

        done = shop.ops("apply", dry.record.run_id, "--yes", "-o", "json")
        again = shop.ops("apply", dry.record.run_id, "--yes")

        assert done.code == Exit.DONE, done
        assert shop.redis.lastsave() > before
        assert json.loads(done.out)["remaining"] == []
        assert again.code == Exit.REFUSED, again

    def test_the_last_dump_is_rehearsed_without_another_save(self, shop: Shop, made: RunResult) -> None:
        """With `save=False`: the file that lies there, and nothing of it is kept."""
        assert made
        before = shop.redis.lastsave()
        result = shop.run(save=False, export=False)

        assert result.exit_code == Exit.DONE, result.record.remaining
        assert shop.redis.lastsave() == before
        assert not any(name.startswith("vault") for name in shop.files(result))
        assert "Restore, rehearsed" in _page(result)


def _page(result: RunResult) -> str:
    assert result.report
    return " ".join(BeautifulSoup(Path(result.report).read_text("utf-8"), "html.parser").get_text(" ").split())
