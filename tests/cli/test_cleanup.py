"""What a task has left behind is removed from each database, and comes back; what may still run keeps all of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis import Redis

from opslib import direct
from opslib.errors import Exit
from opslib.writer import points
from tests.command_line import call, on_terminal
from tests.shop import contents
from tests.support.plans import values
from tests.support.seed import seed_result, seed_waiting
from tests.support.workers import Deployment

NOWHERE = "redis://127.0.0.1:1/0"


def at(url: str, database: int) -> str:
    """Return the URL of another database of a server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """
    A live system whose application keeps progress and logs in databases of their own.

    Attributes:
        clients: Of all three databases.
    """

    shop: Deployment
    clients: tuple[Redis, Redis, Redis]

    def leave(self, task_id: str, lines: int = 40) -> None:
        """Write what the application writes for a task."""
        self.clients[1].hset(f"progress:{task_id}", mapping={"percent": b"80", "step": b"\xff\x00resize"})
        self.clients[2].rpush(f"logs:{task_id}", *(f"line {n}" for n in range(lines)))
        self.clients[2].expire(f"logs:{task_id}", 5000)

    def done(self, **more: Any) -> str:
        """Run a task to its end, and return its id; its keys are there."""
        task_id = self.shop.send("ok")
        self.shop.until_done(task_id)
        self.leave(task_id, **more)
        return task_id

    def of(self, task_id: str) -> set[str]:
        """Return the keys that a task has."""
        return {key.decode() for client in self.clients for key in client.scan_iter() if key.decode().endswith(task_id)}

    def all(self) -> list[dict[bytes, object]]:
        """Return what every key but our own holds, with its life."""
        results = {key: value for key, value in values(self.clients[0]).items() if key.startswith(b"celery-task-meta")}
        return [values(self.clients[1]), values(self.clients[2]), results]


@pytest.fixture
def kept(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """The databases of progress and logs are named as the application names them."""
    urls = [at(shop.server.url, number) for number in (1, 2)]
    monkeypatch.setenv("REDIS_PROGRESS_URL", urls[0])
    monkeypatch.setenv("REDIS_LOGS_URL", urls[1])
    with Redis.from_url(urls[0]) as progress, Redis.from_url(urls[1]) as logs:
        yield Kept(shop=shop, clients=(shop.redis, progress, logs))
        progress.flushdb()
        logs.flushdb()


def toml(place: Path, shop: Deployment, more: str) -> None:
    """Have the default target say more than the environment does."""
    start = 'default_target = "shop"\n[targets.shop]\nbroker_url = "env:OPS_BROKER_URL"\n'
    assert shop
    (place / "ops.toml").write_text(f"{start}{more}\n")


def records(*words: str, code: Exit) -> list[dict[str, Any]]:
    """Return the records of a cleanup's runs."""
    done = call("task", "cleanup", *words, "-o", "json")
    assert done.code == code, done
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


class TestDryRun:
    """Without --apply it says what it would do, to the key."""

    def test_shows_each_key_and_changes_nothing(self, kept: Kept) -> None:
        """Each database is a plan of its own, and that is said before."""
        task_id = kept.done()
        before = kept.all()

        done = call("task", "cleanup", task_id)

        assert done.code == Exit.ATTENTION, done
        assert "3 keys in 3 databases: 3 runs, each of which is undone by its own id." in done.err
        for key in (f"progress:{task_id}", f"logs:{task_id}"):
            assert key in done.out
        assert "whoever asks" in done.out
        assert "resize" not in done.out
        assert kept.all() == before

    def test_records(self, kept: Kept) -> None:
        """A program gets one record for each run, in a list."""
        task_id = kept.done()

        found = records(task_id, code=Exit.ATTENTION)

        assert [record["dry_run"] for record in found] == [True] * 3
        assert [action["source"] for record in found for action in record["plan"]["actions"]] == [
            "progress",
            "logs",
            "result",
        ]
        assert [record["verdict"] for record in found] == ["attention"] * 3
        lines = call("task", "cleanup", task_id, "-o", "jsonl").out.splitlines()
        assert [json.loads(line)["runbook"] for line in lines] == ["cleanup-task"] * 3
        assert call("task", "cleanup", task_id, "-o", "ids").out.split() == [
            f"progress:{task_id}",
            f"logs:{task_id}",
            task_id,
        ]

    @pytest.mark.parametrize("form", ["table", "json", "ids"])
    def test_nothing_left(self, kept: Kept, form: str) -> None:
        """A sentence, exit 1, and no run."""
        assert kept
        done = call("task", "cleanup", "no-such-task", "-o", form)

        assert done.code == Exit.ATTENTION, done
        assert "No key is left of it. Nothing was changed." in done.err
        assert form != "json" or json.loads(done.out)["keys"] == []
        assert form != "ids" or done.out == ""

    def test_one_database_is_one_run(self, shop: Deployment) -> None:
        """Without keys of the application there is the result alone, and no word of databases."""
        task_id = seed_result(shop.redis, "FAILURE")

        done = call("task", "cleanup", task_id)

        assert "databases" not in done.err
        assert done.out.count("Plan:") == 1


class TestApply:
    """With --apply they are gone, and come back to the byte."""

    def test_three_databases_and_back(self, kept: Kept) -> None:
        """Each run is undone by its own id, with the lives that the keys had; the tasks beside it keep theirs."""
        task_id, other = kept.done(), kept.done()
        before, others = kept.all(), kept.of(other)

        found = records(task_id, "--apply", "--yes", code=Exit.DONE)

        assert kept.of(task_id) == set()
        assert kept.of(other) == others
        assert [[row["status"] for row in record["outcomes"]] for record in found] == [["applied"]] * 3
        assert [record["verdict"] for record in found] == ["healthy"] * 3
        assert [row["code"] for record in found for row in record["findings"]] == ["task-remnant"] * 3
        for n, record in enumerate(found, 1):
            done = call("undo", record["run_id"], "--apply", "--yes")
            assert done.code in {Exit.DONE, Exit.ATTENTION}, done
            assert len(kept.of(task_id)) == n
        assert kept.all() == before

    def test_several_tasks_and_repeated_ids(self, kept: Kept) -> None:
        """Each once, however often it is named."""
        one, two = kept.done(), kept.done()

        found = records(one, two, one, "--apply", "--yes", code=Exit.DONE)

        assert [len(record["outcomes"]) for record in found] == [2, 2, 2]
        assert kept.of(one) | kept.of(two) == set()
        assert call("task", "cleanup", one, two).code == Exit.ATTENTION

    def test_result_written_between_look_and_delete_survives(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is another one than was shown: it stays, and its run says so; the others are done."""
        task_id = kept.done()
        run = direct.run

        def later(*args: Any, **more: Any) -> Any:
            seed_result(kept.shop.redis, "SUCCESS", task_id=task_id, date_done="later")
            return run(*args, **more)

        monkeypatch.setattr(direct, "run", later)

        found = records(task_id, "--apply", "--yes", code=Exit.ATTENTION)

        assert [record["outcomes"][0]["status"] for record in found] == ["applied", "applied", "skipped"]
        assert "written again since it was planned" in found[-1]["outcomes"][0]["reason"]
        assert [row["subject"] for row in found[-1]["remaining"]] == [task_id]
        assert kept.of(task_id) == {f"celery-task-meta-{task_id}"}

    def test_long_list_is_left_and_told(self, kept: Kept) -> None:
        """What cannot be compared in one step is not planned; the rest goes, and the list is named."""
        task_id = kept.done(lines=2001)

        done = call("task", "cleanup", task_id, "--apply", "--yes")

        assert done.code == Exit.ATTENTION, done
        assert f"logs:{task_id} is left as it is. It has 2,001 elements; at most 2,000" in done.err
        assert kept.of(task_id) == {f"logs:{task_id}"}
        again = call("task", "cleanup", task_id)
        assert again.code == Exit.ATTENTION
        assert "What is left of it cannot be removed. Nothing was changed." in again.err

    def test_prefix_of_results(self, shop: Deployment, place: Path) -> None:
        """The key that is removed is the one that the result backend's own prefix makes."""
        toml(place, shop, 'result_keyprefix = "res-"')
        plain = seed_result(shop.redis, "FAILURE")
        shop.redis.set(f"res-celery-task-meta-{plain}", '{"status": "FAILURE"}')

        done = call("task", "cleanup", plain, "--apply", "--yes")

        assert done.code == Exit.DONE, done
        assert not shop.redis.exists(f"res-celery-task-meta-{plain}")
        assert shop.redis.exists(f"celery-task-meta-{plain}")

    @pytest.mark.parametrize("task_id", ["*", "[bold]x[/bold]", "../../x", "{task_id}", "x\x1b[31m"])
    def test_id_is_only_ever_a_part_of_a_name(self, kept: Kept, task_id: str) -> None:
        """No key but the one that is called exactly so is met, and no terminal obeys what it holds."""
        other = kept.done()
        before = kept.of(other)
        kept.clients[1].set(f"progress:{task_id}", "40")

        done = call("task", "cleanup", task_id, "--apply", "--yes")

        assert done.code == Exit.DONE, done
        assert not kept.clients[1].exists(f"progress:{task_id}")
        assert kept.of(other) == before
        assert "\x1b" not in done.out + done.err

    def test_queue_that_a_pattern_could_mean(self, shop: Deployment, place: Path) -> None:
        """Messages that wait are nobody's remnants, whatever their queue is called."""
        toml(place, shop, '[targets.shop.app_keys.mail]\npattern = "mail:{task_id}"')
        seed_waiting(shop.redis, queue="mail:high")

        done = call("task", "cleanup", "high", "--apply", "--yes")

        assert done.code == Exit.ATTENTION, done
        assert "It is a list of queue mail:high." in " ".join(done.out.split())
        assert shop.redis.llen("mail:high") == 1
        shop.redis.delete("mail:high")


class TestStillInCirculation:
    """A task that may run keeps every key."""

    def test_running_task(self, kept: Kept) -> None:
        """Refused with the node that runs it; once it has ended, its keys may go."""
        task_id = kept.shop.send("gate")
        kept.shop.until_running(task_id)
        kept.leave(task_id)
        before = kept.of(task_id)
        try:
            done = call("task", "cleanup", task_id, "--apply", "--yes")
            looked = call("task", "cleanup", task_id)
        finally:
            kept.shop.redis.set("open", 1)

        assert (done.code, looked.code) == (Exit.REFUSED, Exit.REFUSED), done
        assert re.search(rf"{task_id} is .*active on steady@shop\. Nothing was changed", " ".join(done.err.split()))
        assert f"`ops task stop {task_id}` first" in done.err
        assert kept.of(task_id) == before
        kept.shop.until_done(task_id)
        kept.shop.redis.delete("open")
        assert call("task", "cleanup", task_id, "--apply", "--yes").code == Exit.DONE
        assert kept.of(task_id) == set()

    def test_one_of_two_waits(self, kept: Kept) -> None:
        """Then the other one keeps its keys as well: half of what was asked for is nothing that anybody asked for."""
        over = kept.done()
        waits = seed_waiting(kept.shop.redis, queue="lonely").task_id
        before = kept.all()

        done = call("task", "cleanup", over, waits, "--apply", "--yes")
        kept.shop.redis.delete("lonely")

        assert done.code == Exit.REFUSED, done
        assert f"{waits} is waiting in lonely" in " ".join(done.err.split())
        assert kept.all() == before

    def test_sent_again_while_a_person_reads(self, kept: Kept, place: Path) -> None:
        """What was over when it was shown is looked for once more when it was agreed to."""
        task_id = kept.done()
        before = kept.all()

        def answer(shown: str) -> str:
            seed_waiting(kept.shop.redis, queue="lonely", task_id=task_id)
            return re.findall(r"type: (.*)", shown.replace("\r", ""))[-1]

        done = on_terminal("task", "cleanup", task_id, "--apply", env=dict(os.environ), cwd=place, answer=answer)
        kept.shop.redis.delete("lonely")

        assert done.code == Exit.REFUSED, done
        assert "waiting in lonely" in done.out
        assert kept.all() == before

    def test_node_that_does_not_answer(self, kept: Kept, place: Path) -> None:
        """It may run it: exit 4, with what was not seen, and nothing is changed."""
        task_id = seed_result(kept.shop.redis, "SUCCESS")
        toml(place, kept.shop, 'nodes = ["ghost@shop"]')

        done = call("task", "cleanup", task_id, "--apply", "--yes")

        assert done.code == Exit.CANNOT_SEE, done
        assert "Whether it still runs cannot be told" in done.err
        assert kept.shop.redis.exists(f"celery-task-meta-{task_id}")

    def test_saved_plan_of_a_task_that_was_sent_again(self, kept: Kept) -> None:
        """The plan of a dry run is applied to the key, and only while its tasks are over."""
        task_id = kept.done()
        looked = records(task_id, code=Exit.ATTENTION)
        seed_waiting(kept.shop.redis, queue="lonely", task_id=task_id)
        before = kept.all()

        refused = [call("apply", record["run_id"], "--yes") for record in looked]
        kept.shop.redis.delete("lonely")

        assert [(done.code, f"{task_id} is waiting" in done.err) for done in refused] == [(Exit.REFUSED, True)] * 3
        assert kept.all() == before
        for record in looked:
            call("apply", record["run_id"], "--yes")
        assert kept.of(task_id) == set()

    def test_interrupted_run(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other databases are not begun; resume finishes the one that was, once its tasks are over."""
        task_id = kept.done()
        before = kept.all()

        def cut(point: str) -> None:
            if point == "after-vault":
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(points, "passed", cut)
            done = call("task", "cleanup", task_id, "--apply", "--yes", "-o", "json")
        (record,) = json.loads(done.out)
        assert (done.code, kept.all()) == (Exit.INTERRUPTED, before), done

        seed_waiting(kept.shop.redis, queue="lonely", task_id=task_id)
        refused = call("resume", record["run_id"])
        kept.shop.redis.delete("lonely")
        assert (refused.code, kept.all()) == (Exit.REFUSED, before), refused
        call("resume", record["run_id"])

        assert kept.of(task_id) == {f"logs:{task_id}", f"celery-task-meta-{task_id}"}


class TestConfirming:
    """One question for all of it."""

    def test_on_a_terminal(self, kept: Kept, place: Path) -> None:
        """All plans are shown, and the phrase counts every key."""
        task_id = kept.done()
        phrases: list[str] = []

        def answer(shown: str) -> str:
            assert f"progress:{task_id}" in shown
            phrases.append(re.findall(r"type: (.*)", shown.replace("\r", ""))[-1])
            return phrases[-1]

        done = on_terminal("task", "cleanup", task_id, "--apply", env=dict(os.environ), cwd=place, answer=answer)

        assert phrases == ["default cleanup 3"]
        assert done.code == Exit.DONE, done
        assert kept.of(task_id) == set()

    def test_a_no_changes_nothing(self, kept: Kept, place: Path) -> None:
        """Other words are a no."""
        task_id = kept.done()
        before = kept.all()

        done = on_terminal("task", "cleanup", task_id, "--apply", env=dict(os.environ), cwd=place, answer=lambda _: "y")

        assert (done.code, kept.all()) == (Exit.ATTENTION, before)

    @pytest.mark.parametrize("words", [["--apply"], ["--apply", "--dry-run"], ["--apply", "--yes"]])
    def test_protected_or_unasked(self, kept: Kept, place: Path, words: list[str]) -> None:
        """Without a terminal it takes --yes, and on a protected target its name."""
        toml(place, kept.shop, "protected = true")
        task_id = kept.done()
        before = contents(kept.shop.redis)

        done = call("task", "cleanup", task_id, *words)

        assert done.code in {Exit.REFUSED, Exit.USAGE}, done
        assert contents(kept.shop.redis) == before

    @pytest.mark.parametrize("task_id", ["", "  "])
    def test_empty_id(self, kept: Kept, task_id: str) -> None:
        """It is a variable that was not set."""
        assert kept
        assert call("task", "cleanup", task_id).code == Exit.USAGE


class TestDatabaseThatIsGone:
    """What cannot be seen is told, and is no reason to leave the rest."""

    def test_the_others_are_done(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 4: nobody can say whether its keys are there."""
        monkeypatch.setenv("REDIS_LOGS_URL", NOWHERE)
        task_id = kept.done()

        done = call("task", "cleanup", task_id, "--apply", "--yes")

        assert done.code == Exit.CANNOT_SEE, done
        assert f"keys in {NOWHERE}" in done.out
        assert kept.of(task_id) == {f"logs:{task_id}"}

    def test_nothing_found_is_not_nothing_there(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sentence says so, and so does the exit code."""
        monkeypatch.setenv("REDIS_LOGS_URL", NOWHERE)
        assert kept

        done = call("task", "cleanup", "no-such-task")

        assert done.code == Exit.CANNOT_SEE, done
        assert "No key is left of it, as far as could be seen." in done.err

    def test_other_runs_are_undone_all_the_same(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database that a run has nothing to do with does not stand in the way of putting it back."""
        task_id = seed_result(kept.shop.redis, "FAILURE")
        (record,) = records(task_id, "--apply", "--yes", code=Exit.DONE)
        monkeypatch.setenv("REDIS_LOGS_URL", NOWHERE)

        done = call("undo", record["run_id"], "--apply", "--yes")

        assert kept.of(task_id) == {f"celery-task-meta-{task_id}"}, done

    def test_check_names_it(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """`ops config check` tries each of them."""
        whole = call("config", "check")
        monkeypatch.setenv("REDIS_LOGS_URL", NOWHERE)
        assert kept

        partial = call("config", "check")

        assert (whole.code, partial.code) == (Exit.DONE, Exit.CANNOT_SEE), whole
        assert "/1" in whole.out
        assert f"keys in {NOWHERE}" in partial.err

    def test_lock_is_shown_all_the_same(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the databases that answer; that one does not is said, and is exit 4."""
        monkeypatch.setenv("REDIS_LOGS_URL", NOWHERE)
        assert kept

        done = call("unlock")

        assert done.code == Exit.CANNOT_SEE, done
        assert "127.0.0.1:1/0 cannot be reached" in done.err
