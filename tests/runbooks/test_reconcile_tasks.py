"""reconcile-tasks beside real workers and a real PostgreSQL: what became of each open row, by its real cause."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from bs4 import BeautifulSoup

from opslib import catalog, records, run
from opslib.errors import Exit
from opslib.run import RunResult
from tests import command_line
from tests.support import tables
from tests.support.postgres import Postgres
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

SECRET = "card-4711-secret"
TOML = """
[targets.shop]
broker_url = "env:SHOP_URL"
database_url = "env:SHOP_DATABASE"
[targets.shop.thresholds]
stuck_after = "1s"
[targets.shop.task_tables.tasks]
preset = "task-manager"
chains = false
[targets.shop.task_tables.tasks.verify."tests.effect_*"]
sql = "SELECT delivered, 'hook ' || id FROM hook WHERE id = :hook"
"""


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A deployment whose application has a table, with the ids of the tasks that its rows are about."""

    trial: Deployment
    url: str
    folder: Path
    ids: dict[str, str] = field(default_factory=dict)

    def run(self, **parameters: object) -> RunResult:
        """Run the notebook; rows count from the moment on that their tasks were sent."""
        given = {"target": "shop", "hours": 0.0, "answer_within": "20s", **parameters}
        return run.run(catalog.find("reconcile-tasks"), given, target="shop", reason="rows stay open")

    def ops(self, *words: str) -> command_line.Done:
        """Run a command."""
        return command_line.ops(*words, env=dict(os.environ), cwd=self.folder, timeout_s=90)

    def statuses(self) -> dict[str, str]:
        """Return the status of each row, by what happened to its task."""
        names = {task_id: name for name, task_id in self.ids.items()}
        with tables.connected(self.url) as connection:
            found = connection.execute(sa.select(tables.task_manager.c.task_id, tables.task_manager.c.status))
            return {names[task_id]: status for task_id, status in found if task_id in names}


def row(task_id: str | None, name: str, **more: object) -> dict[str, object]:
    """Return an open row, as the application writes one when it sends a task."""
    arguments = {"card": SECRET}
    return {
        "task_module": "tests",
        "task_name": name,
        "task_id": task_id,
        "status": "SCHEDULED",
        "arguments": arguments,
        "last_run": tables.at(0),
        **more,
    }


@pytest.fixture(scope="module")
def shop(trial: Deployment, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Each way in which a row stays open, made by what makes it."""
    folder = tmp_path_factory.mktemp("reconcile")
    (folder / "ops.toml").write_text(TOML)
    with postgres.database() as url, pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("SHOP_URL", trial.server.url)
        patch.setenv("SHOP_DATABASE", url)
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        tables.make(url)
        with tables.connected(url) as connection:
            connection.execute(sa.text("CREATE TABLE hook (id integer PRIMARY KEY, delivered boolean)"))
            connection.execute(sa.text("INSERT INTO hook VALUES (1, true), (2, false)"))
        until(lambda: int(trial.redis.info("server")["uptime_in_seconds"]) >= 2, 30, "the server has been up")
        trial.worker(name="w@shop", conf={"task_track_started": False})
        fragile = trial.worker(name="fragile@shop", queues="fragile", conf={"task_track_started": False})
        ids = {"done": trial.send("ok"), "failed": trial.send("raises")}
        until(lambda: all(trial.state(each) for each in ids.values()), DEADLINE_S, "both have ended")
        ids["deleted"] = trial.send("ok", queue="nobody")
        trial.redis.delete("nobody")
        ids["killed"] = trial.send("hang", queue="fragile")
        trial.until_running(ids["killed"])
        fragile.kill()
        ids["hung"] = trial.send("hang")
        trial.until_running(ids["hung"])
        ids["next"] = trial.send("ok")
        ids["waiting"] = trial.send("ok", queue="later")
        known = {"done": "ok", "failed": "raises", "deleted": "ok", "killed": "hang", "hung": "hang"}
        known |= {"next": "ok", "waiting": "ok"}
        rows = [row(ids[name], task) for name, task in known.items()]
        for name, task, arguments in (
            ("stranger", "unheard_of", {}),
            ("there", "effect_of_hook", {"hook": 1}),
            ("not there", "effect_of_hook", {"hook": 2}),
            ("no such", "effect_of_hook", {"hook": 3}),
        ):
            ids[name] = tables.task_id(len(ids))
            rows.append(row(ids[name], task, arguments=arguments))
        rows += [row(None, "ok"), row(tables.task_id(99), "ok", status="DONE"), row(None, "ok", status="PAUSED")]
        rows += [row(tables.task_id(98), "ok", last_run=None)]
        tables.add(url, rows)
        yield Shop(trial=trial, url=url, folder=folder, ids=ids)


@pytest.fixture(scope="module")
def looked(shop: Shop) -> RunResult:
    """The dry run, which is the default, with its look for effects and its log."""
    before = shop.statuses()
    result = shop.run(check_execution=True, log_file=str(shop.folder / "diagnosis.log"), limit=10)
    assert shop.statuses() == before
    return result


@pytest.fixture(scope="module")
def changed(shop: Shop, looked: RunResult) -> RunResult:
    """Write down how tasks ended, and send again what is lost."""
    assert looked.record.dry_run
    return shop.run(resend=True, queue="celery", check_execution=True, limit=10, dry_run=False)


def evidence(result: RunResult, code: str) -> dict[str, dict[str, object]]:
    """Return the evidence of all findings of a code, by task."""
    return {row["subject"]: row["evidence"] for row in result.record.findings if row["code"] == code}


class TestLooking:
    """Nothing is changed, and each row is told by its real cause."""

    def test_a_task_that_has_ended_is_finished_but_open(self, looked: RunResult) -> None:
        """By its result, or by its effect where there is no result."""
        found = evidence(looked, "table-finished-but-open")

        assert {task: each["because"] for task, each in found.items()} == {
            "tests.ok": {"Its result is SUCCESS": 1},
            "tests.raises": {"Its result is FAILURE": 1},
            "tests.effect_of_hook": {"Its verifier says so": 1},
        }

    def test_a_task_that_is_nowhere_is_lost(self, shop: Shop, looked: RunResult) -> None:
        """Its message was deleted, or its node was killed in it; or its effect is not there."""
        found = evidence(looked, "table-lost")

        assert found["tests.ok"]["task_ids"] == [shop.ids["deleted"]]
        assert found["tests.hang"]["task_ids"] == [shop.ids["killed"]]
        assert found["tests.effect_of_hook"]["rows"] == 2
        assert set(found) == {"tests.ok", "tests.hang", "tests.effect_of_hook"}

    def test_a_task_that_hangs_is_stuck(self, shop: Shop, looked: RunResult) -> None:
        """And the one behind it is not: it waits its turn."""
        found = evidence(looked, "table-stuck")

        assert {task: each["task_ids"] for task, each in found.items()} == {"tests.hang": [shop.ids["hung"]]}
        assert not any(shop.ids[name] in json.dumps(looked.record.findings) for name in ("next", "waiting"))

    def test_nothing_is_claimed_without_evidence(self, looked: RunResult) -> None:
        """A task that no node knows, a row without an id, and one that does not say when it was run."""
        found = evidence(looked, "table-unknown")

        assert set(found) == {"tests.unheard_of", "tests.ok"}
        assert found["tests.ok"]["because"] == {
            "It has no task id to look for": 1,
            "It does not say when it was last run": 1,
        }
        assert "No node that answered knows this task" in json.dumps(found["tests.unheard_of"])
        assert looked.exit_code == Exit.ATTENTION
        assert looked.record.verdict == "critical"

    def test_the_report_shows_it_and_no_argument(self, looked: RunResult) -> None:
        """Statuses that are neither open nor over, classes and samples."""
        page = BeautifulSoup((looked.folder / "report.html").read_text("utf-8"), "html.parser").get_text(" ")

        assert "PAUSED" in page
        assert "finished but open" in page
        assert SECRET not in page
        assert SECRET not in (looked.folder / "record.json").read_text("utf-8")

    def test_the_log_says_how_far_it_came(self, shop: Shop, looked: RunResult) -> None:
        """Each phase with its numbers, in the file that was named and beside the report."""
        lines = (shop.folder / "diagnosis.log").read_text("utf-8")

        assert lines == (looked.folder / "progress.log").read_text("utf-8")
        assert "Looking for the tasks of task_manager_taskmanager: 13 in" in lines
        assert "2 finished but open, 2 lost, 3 still on its way, 6 unknown" in lines
        assert SECRET not in lines


class TestChanging:
    """What was planned, and back."""

    def test_rows_get_the_status_of_their_results(self, shop: Shop, changed: RunResult) -> None:
        """And of their effect; whatever is not finished keeps its own."""
        statuses = shop.statuses()

        assert {row["status"] for row in changed.record.outcomes} == {"applied"}, changed.record.outcomes
        assert (statuses["done"], statuses["failed"], statuses["there"]) == ("DONE", "ERROR", "DONE")
        assert {name for name, each in statuses.items() if each == "SCHEDULED"} == set(shop.ids) - {
            "done",
            "failed",
            "there",
        }

    def test_lost_tasks_are_sent_again_under_their_ids(self, shop: Shop, changed: RunResult) -> None:
        """Once each, with their own arguments; not the one whose effect is there, nor what is unknown."""
        sent = {row["subject"] for row in changed.record.plan["actions"] if row["kind"] == "send"}

        assert sent == {shop.ids[name] for name in ("deleted", "killed", "not there", "no such")}
        assert SECRET not in json.dumps(changed.record.plan)

    def test_undo_writes_the_old_statuses_back(self, shop: Shop, changed: RunResult) -> None:
        """But for a row that the application has touched since."""
        with tables.connected(shop.url) as connection:
            wanted = tables.task_manager.c.task_id == shop.ids["failed"]
            connection.execute(sa.update(tables.task_manager).where(wanted).values(status="CANCELLED"))

        done = shop.ops("undo", changed.record.run_id, "--apply", "--yes")

        assert done.code in {Exit.DONE, Exit.ATTENTION}, done.err
        assert shop.statuses()["done"] == "SCHEDULED"
        assert shop.statuses()["failed"] == "CANCELLED"
