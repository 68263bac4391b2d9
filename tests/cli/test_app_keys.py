"""What the application keeps for its tasks is shown as it is, and flushed only of tasks that are over."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis import Redis

from opslib.errors import Exit
from opslib.writer import points
from tests.command_line import call, on_terminal
from tests.support.plans import values
from tests.support.seed import seed_waiting
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

NOWHERE = "redis://127.0.0.1:1/0"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A live system whose application keeps progress and logs in databases of their own."""

    shop: Deployment
    progress: Redis
    logs: Redis

    def leave(self, task_id: str, lines: int = 3) -> None:
        """Write what the application writes for a task."""
        self.progress.hset(f"progress:{task_id}", mapping={"percent": b"80", "step": b"\xff\x00resize"})
        self.logs.rpush(f"logs:{task_id}", *(f"line {n}" for n in range(1, lines + 1)))
        self.logs.expire(f"logs:{task_id}", 5000)


@pytest.fixture
def kept(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """The databases of progress and logs are named as the application names them."""
    urls = [urlunsplit(urlsplit(shop.server.url)._replace(path=f"/{number}")) for number in (1, 2)]
    monkeypatch.setenv("REDIS_PROGRESS_URL", urls[0])
    monkeypatch.setenv("REDIS_LOGS_URL", urls[1])
    with Redis.from_url(urls[0]) as progress, Redis.from_url(urls[1]) as logs:
        yield Kept(shop=shop, progress=progress, logs=logs)
        progress.flushdb()
        logs.flushdb()


def toml(place: Path, more: str) -> None:
    """Have the default target say more than the environment does."""
    start = 'default_target = "shop"\n[targets.shop]\nbroker_url = "env:OPS_BROKER_URL"\n'
    (place / "ops.toml").write_text(f"{start}{more}\n")


def record(*words: str, code: Exit) -> dict[str, Any]:
    """Return the record of a flush."""
    done = call("app", "flush", *words, "-o", "json")
    assert done.code == code, done
    found: dict[str, Any] = json.loads(done.out)
    return found


class TestShow:
    """One task's key, by its type."""

    def test_progress_and_logs_by_the_names_that_scripts_had(self, kept: Kept) -> None:
        """Fields of a hash, lines of a list, each from its own database."""
        kept.leave("x")

        progress, logs = call("app", "progress", "x"), call("app", "logs", "x", "--limit", "2")

        assert (progress.code, logs.code) == (Exit.DONE, Exit.DONE), (progress, logs)
        assert re.search(r"percent +80", progress.out)
        assert "\\xff\\x00resize" in progress.out
        assert "2 fields" in progress.out
        assert "never expires" in progress.out
        assert "/1" in progress.out
        assert re.search(r"2 +line 2\n3 +line 3", logs.out)
        assert "line 1" not in logs.out
        assert "1 line more is not shown." in logs.out
        assert call("app", "show", "progress", "x").out == progress.out
        assert "line 1" in call("app", "logs", "x", "--limit", "2", "--first").out

    def test_as_data(self, kept: Kept) -> None:
        """One document with type, size and life."""
        kept.leave("x")

        found = json.loads(call("app", "show", "logs", "x", "--json").out)

        assert (found["type"], found["elements"], found["key"]) == ("list", 3, "logs:x")
        assert found["parts"] == [["1", "line 1"], ["2", "line 2"], ["3", "line 3"]]
        assert 4000 < found["life_s"] <= 5000

    @pytest.mark.parametrize("form", ["table", "json"])
    def test_hostile_content(self, kept: Kept, form: str) -> None:
        """No credential, and nothing that a terminal obeys."""
        password = urlsplit(kept.shop.server.url).password or "s3cret-enough"
        lines = ["\x1b[31mred", "redis://u:hunter2@h/0", f"the password is {password}", "a\u202eb", "ghp_" + "a1" * 18]
        kept.logs.rpush("logs:x", *lines)

        done = call("app", "logs", "x", "-o", form)

        assert done.code == Exit.DONE, done
        for secret in ("hunter2", password, "ghp_a1", "\x1b", "\u202e"):
            assert secret not in done.out
        assert "red" in done.out

    def test_no_such_key(self, kept: Kept) -> None:
        """A sentence with its name and its database."""
        assert kept
        done = call("app", "progress", "nobody")

        assert done.code == Exit.USAGE, done
        assert "There is no key progress:nobody in" in done.err
        assert "`ops find nobody`" in done.err

    @pytest.mark.parametrize("words", [["app", "show", "state", "x"], ["app", "flush", "state"]])
    def test_no_such_name(self, kept: Kept, words: list[str]) -> None:
        """Says which there are."""
        assert kept
        done = call(*words)

        assert done.code == Exit.USAGE, done
        assert "names no keys 'state'" in done.err
        assert "logs" in done.err

    @pytest.mark.parametrize("words", [["app", "logs", "x"], ["app", "flush", "logs"], ["app", "list"]])
    def test_database_that_is_gone(self, kept: Kept, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
        """Exit 4, and which one."""
        kept.leave("x")
        monkeypatch.setenv("REDIS_LOGS_URL", NOWHERE)

        done = call(*words)

        assert done.code == Exit.CANNOT_SEE, done
        assert NOWHERE in done.err + done.out

    def test_list_counts_by_pattern(self, kept: Kept) -> None:
        """Without the command that stops the server for as long as it counts."""
        kept.leave("x")
        kept.leave("y")
        before = _calls(kept.progress, "keys")

        done = call("app", "list")
        rows = json.loads(call("app", "list", "--json").out)

        assert done.code == Exit.DONE, done
        assert re.search(r"progress +progress:\{task_id\} +2 ", done.out)
        assert [(row["name"], row["keys"], row["forever"]) for row in rows] == [("progress", 2, 2), ("logs", 2, 0)]
        assert _calls(kept.progress, "keys") == before


class TestFlush:
    """Keys of tasks that are over go, and come back; those of tasks in circulation stay."""

    def test_running_and_waiting_tasks_keep_theirs(self, kept: Kept) -> None:
        """The old scripts took the progress of what was running; this leaves it, and its parts, and says how many."""
        running = kept.shop.send("gate")
        kept.shop.until_running(running)
        waits = seed_waiting(kept.shop.redis, queue="lonely").task_id
        for task_id in (running, waits, "over", f"{running}:step"):
            kept.leave(task_id)
        before = values(kept.progress)
        try:
            looked = call("app", "flush", "progress")
            assert values(kept.progress) == before
            found = record("progress", "--apply", "--yes", code=Exit.DONE)
        finally:
            kept.shop.redis.set("open", 1)
            kept.shop.redis.delete("lonely")
        kept.shop.until_done(running)
        kept.shop.redis.delete("open")

        assert looked.code == Exit.ATTENTION, looked
        assert "4 keys" in looked.err
        assert "3 of them stay: of tasks in circulation" in looked.err
        assert [row["status"] for row in found["outcomes"]] == ["applied"]
        left = {key.decode().removeprefix("progress:") for key in kept.progress.scan_iter("progress:*")}
        assert left == {running, waits, f"{running}:step"}
        assert len(list(kept.logs.scan_iter("logs:*"))) == 4

    def test_all_of_it_comes_back(self, kept: Kept) -> None:
        """To the byte, with the lives that the keys had; the database is written to by this run alone."""
        for n in range(60):
            kept.leave(f"t{n}")
        before = values(kept.logs)

        found = record("logs", "--apply", "--yes", code=Exit.DONE)

        assert not list(kept.logs.scan_iter("logs:*"))
        assert found["verdict"] == "healthy"
        assert [row["code"] for row in found["findings"]] == ["app-keys"]
        undone = call("undo", found["run_id"], "--apply", "--yes")
        assert undone.code in {Exit.DONE, Exit.ATTENTION}, undone
        assert values(kept.logs) == before

    def test_only_the_old_ones(self, kept: Kept) -> None:
        """A dry run before it does not make them young, for it reads no value."""
        kept.leave("old")
        until(lambda: kept.progress.object("IDLETIME", "progress:old") >= 6, DEADLINE_S, "the key is old")
        kept.leave("new")

        looked = call("app", "flush", "progress", "--older-than", "5s")
        kept.leave("new")
        found = record("progress", "--older-than", "5s", "--apply", "--yes", code=Exit.DONE)

        assert "1 of them were read or written since, and stay." in looked.err
        assert [row["subject"] for row in found["plan"]["actions"]] == ["progress:old"]
        assert list(kept.progress.scan_iter("progress:*")) == [b"progress:new"]

    def test_so_many_at_a_time(self, kept: Kept) -> None:
        """The rest is told, with how to go on; the same command again goes on."""
        for n in range(5):
            kept.leave(f"t{n}")

        done = call("app", "flush", "progress", "--limit", "3", "--apply", "--yes")
        again = call("app", "flush", "progress", "--limit", "3", "--apply", "--yes")

        assert (done.code, again.code) == (Exit.ATTENTION, Exit.DONE), (done, again)
        assert "2 more are old enough" in done.err
        assert "run the same command again" in done.err
        assert not list(kept.progress.scan_iter("progress:*"))
        nothing = call("app", "flush", "progress")
        assert nothing.code == Exit.DONE
        assert "There is nothing to remove. Nothing was changed." in nothing.err

    def test_a_long_list_gets_a_life_and_its_undo_takes_it_back(self, kept: Kept) -> None:
        """What is too large to be kept in one step is not removed in one."""
        kept.logs.rpush("logs:long", *("a line of some length " * 4 + str(n) for n in range(5000)))

        found = record("logs", "--apply", "--yes", code=Exit.DONE)

        assert [row["kind"] for row in found["plan"]["actions"]] == ["expire"]
        assert 86_000 < kept.logs.ttl("logs:long") <= 86_400
        assert kept.logs.llen("logs:long") == 5000
        call("undo", found["run_id"], "--apply", "--yes")
        assert kept.logs.ttl("logs:long") == -1

    def test_node_that_does_not_answer(self, kept: Kept, place: Path) -> None:
        """It may run any of them: nothing is done, exit 4."""
        kept.leave("x")
        progress = os.environ["REDIS_PROGRESS_URL"]
        assert progress
        more = 'nodes = ["ghost@shop"]\n[targets.shop.app_keys.progress]\n'
        toml(place, f'{more}pattern = "progress:{{task_id}}"\nurl = "env:REDIS_PROGRESS_URL"')

        done = call("app", "flush", "progress", "--apply", "--yes")

        assert done.code == Exit.CANNOT_SEE, done
        assert "Which tasks still run cannot be told" in done.err
        assert kept.progress.exists("progress:x")

    def test_sent_again_while_a_person_reads(self, kept: Kept, place: Path) -> None:
        """Then nothing is done, and it says for which task."""
        kept.leave("x")

        def answer(shown: str) -> str:
            seed_waiting(kept.shop.redis, queue="lonely", task_id="x")
            return re.findall(r"type: (.*)", shown.replace("\r", ""))[-1]

        env = dict(os.environ)
        done = on_terminal("app", "flush", "progress", "--apply", env=env, cwd=place, answer=answer)
        kept.shop.redis.delete("lonely")

        assert done.code == Exit.REFUSED, done
        assert "x is in circulation by now. Nothing was changed." in done.out
        assert kept.progress.exists("progress:x")

    def test_saved_plan(self, kept: Kept) -> None:
        """It is applied to the key, and only while its tasks are over."""
        kept.leave("x")
        looked = record("progress", code=Exit.ATTENTION)
        seed_waiting(kept.shop.redis, queue="lonely", task_id="x")

        refused = call("apply", looked["run_id"], "--yes")
        kept.shop.redis.delete("lonely")
        done = call("apply", looked["run_id"], "--yes")

        assert (refused.code, "x is in circulation" in refused.err) == (Exit.REFUSED, True), refused
        assert done.code in {Exit.DONE, Exit.ATTENTION}, done
        assert not kept.progress.exists("progress:x")

    def test_interrupted_run(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is lost, and resume finishes it."""
        kept.leave("x")

        def cut(point: str) -> None:
            if point == "after-vault":
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(points, "passed", cut)
            found = record("progress", "--apply", "--yes", code=Exit.INTERRUPTED)
        assert kept.progress.exists("progress:x")

        call("resume", found["run_id"])

        assert not kept.progress.exists("progress:x")

    @pytest.mark.parametrize("pattern", ["*", "{task_id}", "progress:*", "celery-task-meta-{task_id}", "-{task_id}"])
    def test_patterns_that_could_be_anything(self, kept: Kept, place: Path, pattern: str) -> None:
        """Refused, whether as a setting or when it would be used."""
        kept.shop.redis.set("celery-task-meta-x", "{}")
        toml(place, f"[targets.shop.app_keys.p]\npattern = {json.dumps(pattern)}")

        done = call("app", "flush", "p", "--apply", "--yes")

        assert done.code == Exit.USAGE, done
        assert kept.shop.redis.delete("celery-task-meta-x") == 1

    @pytest.mark.parametrize("words", [["--older-than", "0s"], ["--older-than", "7"], ["--limit", "0"]])
    def test_ages_and_limits_that_are_none(self, kept: Kept, words: list[str]) -> None:
        """Usage, before anything is looked at."""
        assert kept
        assert call("app", "flush", "progress", *words).code == Exit.USAGE


class TestMany:
    """A large side database is scanned in steps that other clients do not notice, and in bounded memory."""

    def test_thirty_thousand_keys(self, kept: Kept) -> None:
        """Counted as they are, within a few seconds; no command but small ones was used."""
        with kept.progress.pipeline(transaction=False) as pipe:
            for n in range(30_000):
                pipe.hset(f"progress:task-{n}", mapping={"percent": n % 100})
            pipe.execute()
        began = time.monotonic()

        done = call("app", "flush", "progress", "--limit", "100")

        assert done.code == Exit.ATTENTION, done
        assert "30,000 keys" in done.err
        assert "29,900 more are old enough" in done.err
        assert time.monotonic() - began < DEADLINE_S


def _calls(client: Redis, command: str) -> int:
    found: Any = client.info("commandstats")
    return int(found.get(f"cmdstat_{command}", {}).get("calls", 0))
