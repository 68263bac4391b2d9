"""The commands that only look: what each one says, to a person and to a program."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from opslib import catalog
from opslib.errors import Exit
from tests.cli.conftest import Busy
from tests.command_line import call
from tests.shop import contents


def answer(*words: str, code: int = Exit.DONE) -> Any:
    """Return what a command answers as JSON."""
    done = call(*words, "-o", "json")
    assert done.code == code, done
    return json.loads(done.out)


def lines(*words: str, code: int = Exit.DONE) -> list[str]:
    """Return what a command answers as ids."""
    done = call(*words, "-o", "ids")
    assert done.code == code, done
    return done.out.splitlines()


def table(*words: str, code: int = Exit.DONE) -> str:
    """Return what a command shows to a person."""
    done = call(*words)
    assert done.code == code, done
    return done.out


class TestRunbooks:
    """What there is to run needs no system at all."""

    def test_list(self) -> None:
        """Every runbook by its symptom, and how to go on."""
        assert [row["name"] for row in answer("list")] == lines("list") == catalog.names()
        shown = table("list")
        assert "Tasks were sent and do not finish" in shown
        assert "ops show NAME" in shown

    def test_show(self) -> None:
        """One runbook with its parameters, their defaults and what they mean."""
        known = answer("show", "stuck-tasks")
        shown = table("show", "stuck-tasks")

        assert {each["name"]: each["default"] for each in known["parameters"]}["dry_run"] is True
        assert all(each["name"] in shown and each["help"].split()[0] in shown for each in known["parameters"])
        assert "Changes nothing unless dry_run = False" in shown


class TestTasks:
    """Tasks by where they are."""

    @pytest.mark.parametrize(
        ("state", "wanted"),
        [
            ("active", {"active"}),
            ("reserved", {"reserved"}),
            ("scheduled", {"scheduled", "retrying"}),
            ("retrying", {"retrying"}),
            ("unacked", {"reserved", "scheduled", "retrying", "orphan"}),
        ],
    )
    def test_by_state(self, busy: Busy, state: str, wanted: set[str]) -> None:
        """Each state has its tasks and no other, in every form."""
        ids = {busy.ids[name] for name in wanted}

        assert set(lines("tasks", "--state", state)) == ids
        assert {row["task_id"] for row in answer("tasks", "--state", state)} == ids
        shown = table("tasks", "--state", state)
        assert all(each in shown for each in ids)

    def test_what_waits_is_listed_as_it_is_served(self, busy: Busy) -> None:
        """What is not listed is counted on stderr, so that a short list is not taken for a short queue."""
        ids = lines("tasks", "--state", "waiting")
        assert (len(ids), ids[1]) == (2, busy.ids["waiting"])
        assert [row["task_id"] for row in answer("tasks", "--state", "waiting")] == ids
        assert all(each in table("tasks", "--state", "waiting") for each in ids)

        assert lines("tasks", "--state", "waiting", "--limit", "1") == ids[:1]
        assert "Waiting and not listed: 1." in call("tasks", "--state", "waiting", "--limit", "1").err
        assert "not listed" not in call("tasks", "--state", "waiting").err
        assert lines("tasks", "--state", "waiting", "--task", "nothing.*") == []

    def test_a_retried_task_has_its_count_and_its_next_attempt(self, busy: Busy) -> None:
        """And where it waits; the runbook that says why is named."""
        (row,) = answer("tasks", "--state", "retrying")
        done = call("tasks", "--state", "retrying")

        assert (row["task_id"], row["retries"], row["place"]) == (busy.ids["retrying"], 1, "scheduled")
        assert re.search(r" 1 +in \d+ min.* +scheduled +celery ", done.out), done.out
        assert "`ops run retry-storm`" in done.err

    def test_stuck(self, busy: Busy) -> None:
        """Stuck is what the runbook would say, by the same judgement."""
        found = {(row["code"], row["subject"]) for row in answer("tasks", "--state", "stuck")}

        assert found == {("orphaned-unacked", busy.ids["orphan"]), ("queue-without-consumer", "lonely")}

    def test_stuck_by_the_targets_own_threshold(self, busy: Busy, place: Path) -> None:
        """What the target calls stuck counts, not a default."""
        toml = 'default_target = "shop"\n[targets.shop]\nbroker_url = "env:OPS_BROKER_URL"\n'
        (place / "ops.toml").write_text(f'{toml}[targets.shop.thresholds]\nstuck_after = "0.1s"\n')

        assert busy.ids["active"] in lines("tasks", "--state", "stuck")

    def test_filters(self, busy: Busy) -> None:
        """Name and age narrow the list, and what the limit leaves out is counted on stderr."""
        assert lines("tasks", "--state", "unacked", "--task", "*.late") == [busy.ids["reserved"]]
        assert lines("tasks", "--state", "unacked", "--older-than", "5h") == []
        assert set(lines("tasks", "--state", "unacked", "--older-than", "0.01s")) >= {busy.ids["orphan"]}
        done = call("tasks", "--state", "unacked", "--limit", "1", "-o", "ids")
        assert len(done.out.splitlines()) == 1
        assert "3 more" in done.err

    def test_none(self, busy: Busy) -> None:
        """An empty list is said to a person, and is empty for a program."""
        assert busy
        assert "No such task was seen." in table("tasks", "--task", "nothing.*")
        assert answer("tasks", "--task", "nothing.*") == []


class TestFind:
    """Where a task is."""

    @pytest.mark.parametrize(
        ("which", "places", "said"),
        [
            ("active", ["active", "result"], "active on busy@shop for "),
            ("reserved", ["unacked", "reserved"], "reserved on busy@shop, which has not begun it"),
            ("scheduled", ["unacked", "scheduled"], "scheduled on busy@shop, due in "),
            ("retrying", ["unacked", "scheduled", "result"], "retried once; the next attempt is due in "),
            ("waiting", ["waiting"], "waiting in lonely, behind 1 (priority 0)"),
            ("orphan", ["unacked"], "to a node that is gone; nothing will run it before "),
            ("result", ["result"], "finished: its result says SUCCESS."),
        ],
    )
    def test_each_place(self, busy: Busy, which: str, places: list[str], said: str) -> None:
        """A task is found wherever it is, and a sentence says how it stands."""
        task_id = busy.ids[which]
        status, found = answer("task", "status", task_id), answer("find", task_id)

        assert said in status["sentence"]
        shown = call("task", "status", task_id).out
        assert said in shown
        assert shown.startswith(f"{status['task'] or task_id}: ")
        assert status["places"] == places
        assert found["places"] == answer("task", "info", task_id)["places"] == {task_id: places}
        assert [row["task_id"] for row in found["tasks"]] == [task_id]
        assert lines("find", task_id) == lines("task", "status", task_id) == [task_id]
        for words in (["find", task_id], ["task", "info", task_id]):
            shown = table(*words)
            assert all(task_id in shown and place in shown for place in places), words
            assert "there" in shown

    def test_several_at_once(self, busy: Busy) -> None:
        """Every id is answered; one that is nowhere makes it exit 1, with every place named as searched."""
        done = call("find", *busy.ids.values(), "no-such-id", "-o", "ids")
        found = answer("find", *busy.ids.values(), "no-such-id", code=Exit.ATTENTION)

        assert (done.code, set(done.out.split())) == (Exit.ATTENTION, set(busy.ids.values()))
        assert found["places"]["no-such-id"] == []
        assert {row["place"] for row in found["coverage"]} >= {"waiting", "unacked", "workers", "results"}
        assert not any(row["silent"] for row in found["coverage"])

    def test_nowhere_is_not_pending(self, busy: Busy) -> None:
        """An id that nobody knows is found nowhere; PENDING is never said."""
        assert busy
        done = call("task", "status", "no-such-id")

        assert done.code == Exit.ATTENTION
        assert "found nowhere" in done.out
        assert "PENDING" not in done.out


class TestPlaces:
    """Queues and nodes."""

    def test_a_queue_that_nobody_consumes_is_pointed_out(self, busy: Busy) -> None:
        """To a person, with the runbook that says why; a program has it in its data."""
        assert busy
        assert "Nobody consumes lonely. `ops run queue-backlog`" in call("queues").err
        assert call("queues", "-o", "json").err == ""

    def test_queues(self, busy: Busy) -> None:
        """Depth and consumers of each queue, the deepest first."""
        assert busy
        rows = {row["name"]: row for row in answer("queues")}

        assert (rows["lonely"]["depth"], rows["lonely"]["consumers"]) == (2, [])
        assert (rows["celery"]["depth"], rows["celery"]["consumers"]) == (0, ["busy@shop"])
        assert lines("queues")[0] == "lonely"
        assert "nobody" in table("queues")

    def test_workers(self, busy: Busy) -> None:
        """Each node with its pool, its slots and its queues."""
        assert busy
        (node,) = answer("workers")

        assert (node["name"], node["answered"], node["pool"]) == ("busy@shop", True, "prefork")
        assert (node["concurrency"], node["queues"]) == (1, ["celery"])
        assert lines("workers") == ["busy@shop"]
        assert "1 of 1" in table("workers")

    def test_frozen_node_is_named_and_the_view_is_partial(self, busy: Busy) -> None:
        """While a node is stopped, every list says on stderr that it is not whole, and ends with 4."""
        commands = (["workers"], ["queues"], ["tasks"], ["config", "check"], ["find", "no-such-id"])
        with busy.worker.frozen():
            told = {" ".join(words): call(*words, "--timeout", "0.2s", "-o", "json") for words in commands}
            words = ["run", "stuck-tasks", "-q", "-p", "settle=0.1s", "-p", "answer_within=0.2s"]
            run = answer(*words, code=Exit.CANNOT_SEE)

        assert {words: done.code for words, done in told.items()} == dict.fromkeys(told, Exit.CANNOT_SEE)
        lists = [done for words, done in told.items() if not words.startswith("find")]
        assert all("Not the whole view: workers: 1 heard the question" in done.err for done in lists), lists
        assert [row["answered"] for row in json.loads(told["workers"].out)] == [False]
        assert {row["severity"] for row in run["remaining"] if row["code"] == "orphaned-unacked"} == {"unknown"}
        assert run["plan"]["actions"] == []


class TestConfig:
    """Settings, and what they lead to."""

    def test_show(self, busy: Busy) -> None:
        """Each value with its origin, the password masked in every form."""
        rows = {row["setting"]: row for row in answer("config", "show")}
        password = busy.system.server.password

        assert rows["broker_url"]["from"] == "environment: OPS_BROKER_URL"
        assert rows["broker_url"]["value"] == f"redis://:***@127.0.0.1:{busy.system.server.port}/0"
        assert "broker_url" in lines("config", "show")
        for form in ("table", "json", "jsonl", "ids"):
            assert password not in call("config", "show", "-o", form).out

    def test_check(self, busy: Busy) -> None:
        """Every part that can be reached is listed."""
        assert busy
        assert {row["place"] for row in answer("config", "check")} >= {"server", "workers", "results"}
        assert "workers" in lines("config", "check")
        assert "workers" in table("config", "check")


class TestReports:
    """The archive."""

    def test_empty_one(self) -> None:
        """Nothing archived is no error, but nothing can be opened."""
        assert answer("reports", "list") == lines("reports", "list") == []
        assert "No run has been archived yet." in table("reports", "list")
        assert call("reports", "open", "--path").code == Exit.USAGE

    def test_list_and_open(self, busy: Busy, place: Path) -> None:
        """A run is listed, found by its id or as the newest, and its path is one that opens."""
        before = contents(busy.system.redis)
        run = answer("run", "stuck-tasks", "-q", "-p", "settle=0.1s", code=Exit.ATTENTION)

        assert lines("reports", "list") == lines("reports", "list", "--runbook", "stuck-tasks") == [run["run_id"]]
        assert lines("reports", "list", "--runbook", "another") == []
        assert answer("reports", "list")[0]["verdict"] == run["verdict"] == "critical"
        assert run["run_id"] in table("reports", "list")
        newest, named = (table("reports", "open", *words, "--path").strip() for words in ([], [run["run_id"]]))
        assert newest == named == str(place / "reports" / run["report"])
        assert "CRITICAL" in Path(newest).read_text()
        assert contents(busy.system.redis) == before
        assert {row["subject"] for row in run["remaining"]} == {busy.ids["orphan"], "lonely"}

    def test_unknown_run(self, busy: Busy) -> None:
        """A run that is not there is exit 2, and a path is no run."""
        assert busy
        for name in ("20261121T021500Z-stuck-tasks-000000", "../../etc/passwd", "/etc/passwd"):
            done = call("reports", "open", name, "--path")
            assert (done.code, done.out) == (Exit.USAGE, "")


class TestDemo:
    """The demo's own commands."""

    def test_up_status_down(self, place: Path) -> None:
        """It comes up with its faults told, stays, is found again, and goes."""
        assert call("demo", "status").code == Exit.CANNOT_SEE
        up = call("demo", "up")
        assert up.code == Exit.DONE
        assert "an embedded server" in up.err
        status = answer("demo", "status")
        assert "retry-loop" in {row["code"] for row in status}
        assert all(row["subject"][:20] in up.out for row in status)  # a longer one is folded
        assert set(lines("demo", "status")) == {row["subject"] for row in status}
        assert "crowd@shop" in lines("workers", "--target", "demo", code=Exit.DONE)
        again = call("demo", "up", "-q")
        assert (again.code, again.err) == (Exit.DONE, "")
        assert call("demo", "down").code == Exit.DONE
        assert call("demo", "status").code == Exit.CANNOT_SEE
        assert "not running" in call("demo", "down").err
        assert not list((place / "demo").iterdir())
        assert call("queues", "--target", "demo").code == Exit.USAGE

    def test_run_brings_its_own(self) -> None:
        """A run on the demo where none is up makes one for itself, tells what it breaks, and leaves nothing of it."""
        done = call("run", "stuck-tasks", "--target", "demo", "-o", "ids")

        assert done.code == Exit.ATTENTION
        assert len(done.out.splitlines()) == 12
        assert "killed with SIGKILL" in done.err
        assert call("demo", "status").code == Exit.CANNOT_SEE
