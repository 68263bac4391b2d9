"""emergency-reset on a system in which nothing goes right: it shows what it would take, takes that, and proves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from opslib import catalog, records, run
from opslib.broker import Broker
from opslib.errors import BadParameter, Exit
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.support import servers
from tests.support.resets import NODE, Seeded, consumed, ids, lists, own, seed, unacked
from tests.support.workers import Deployment


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A deployment with tasks that hang, wait for their time and wait, and an archive beside it."""

    trial: Deployment
    there: Seeded
    folder: Path

    def run(self, **parameters: object) -> RunResult:
        """Run the notebook with short looks."""
        given: dict[str, Any] = {"target": "trial", "settle": "0.2s", "wait": "15s", **parameters}
        return run.run(catalog.find("emergency-reset"), given, target="trial", reason="nothing else helped")

    def ops(self, *words: str) -> command_line.Done:
        """Run a command."""
        return command_line.ops(*words, env=dict(os.environ), cwd=self.folder, timeout_s=90)

    @property
    def broker(self) -> Broker:
        """Open clients of it."""
        return servers.broker(self.trial.server)


@contextmanager
def system(folder: Path) -> Iterator[Broken]:
    """A deployment, and an archive beside it."""
    (folder / "ops.toml").write_text('[targets.trial]\nbroker_url = "env:TRIAL"\n')
    with own(folder / "server") as trial, pytest.MonkeyPatch.context() as patch:
        there = seed(trial, conf={"worker_prefetch_multiplier": 4})
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("TRIAL", trial.server.url)
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        yield Broken(trial=trial, there=there, folder=folder)


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    """One that nothing changes."""
    with system(tmp_path_factory.mktemp("reset")) as made:
        yield made


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Broken]:
    """One of the test's own."""
    with system(tmp_path) as made:
        yield made


def page(result: RunResult) -> BeautifulSoup:
    """Return the report."""
    return BeautifulSoup(result.report.read_text(), "html.parser")


def test_without_a_mode_it_says_what_each_would_do_and_plans_nothing(looked_at: Broken) -> None:
    """In numbers; and changes nothing."""
    before = lists(looked_at.trial.redis), unacked(looked_at.trial.redis)

    result = looked_at.run()

    text = page(result).get_text(" ", strip=True)
    assert result.record.plan["actions"] == []
    assert "What each mode would do" in text
    assert "only what is old and stuck" in text
    assert (lists(looked_at.trial.redis), unacked(looked_at.trial.redis)) == before
    assert archive.verify(result.folder) == []


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"mode": "complet"}, "Did you mean complete?"),
        ({"mode": "complete", "queue": "celry"}, "Did you mean celery?"),
        ({"mode": "complete", "shutdown": "cold"}, "SIGQUIT"),
        ({"mode": "memory", "task": "tests.ok"}, "Name a queue"),
        ({"mode": "partial", "shutdown": "warm"}, ""),
    ],
)
def test_what_cannot_be_meant_is_refused(looked_at: Broken, asked: dict[str, str], says: str) -> None:
    """With what to do, and nothing is done."""
    before = lists(looked_at.trial.redis)
    result = looked_at.run(**asked, dry_run=False)

    assert (result.exit_code, result.record.error["type"]) == (Exit.USAGE, BadParameter.__name__)
    assert says in result.record.error["hint"]
    assert lists(looked_at.trial.redis) == before


def test_a_complete_reset_and_back(broken: Broken) -> None:
    """Step by step in the report; the canaries ran; undo puts back what no node remembers, and says the rest."""
    there = broken.there
    dry = broken.run(mode="complete")
    assert {row["step"] for row in dry.record.plan["actions"]} == {"freeze", "revoke", "clear", "resume", "canary"}
    assert {row["status"] for row in dry.record.outcomes} == {"skipped"}
    assert there.every & broken.trial.unacked().keys()

    done = broken.run(mode="complete", dry_run=False)

    assert {row["status"] for row in done.record.outcomes} <= {"applied", "skipped"}
    assert [row["reason"] for row in done.record.outcomes if "SUCCESS" in row["reason"]]
    assert done.record.remaining == []
    assert done.exit_code == Exit.DONE
    assert not there.every & (broken.trial.unacked().keys() | ids(broken.trial.redis))
    text = page(done).get_text(" ", strip=True)
    assert "Step by step" in text
    assert "no node consumes any queue" in text

    undo = broken.ops("undo", done.record.run_id, "--apply", "--yes")

    assert undo.code == Exit.ATTENTION, undo.err  # what a node remembers stays kept
    assert "Not undone: 2 canaries ran, and changed nothing." in undo.err
    assert consumed(broken.broker) == {NODE: ("celery", "mail")}
    there.worker.kill()
    again = broken.ops("undo", done.record.run_id, "--apply", "--yes")
    assert again.code in {Exit.DONE, Exit.ATTENTION}, again.err
    assert set(there.timed) <= broken.trial.unacked().keys()


def test_one_that_stopped_at_a_gate_is_gone_on_from_by_its_id(broken: Broken) -> None:
    """The nodes are to be started; once they are, `ops resume` does the rest."""
    stopped = broken.run(mode="complete", shutdown="warm", wait="3s", dry_run=False)
    failed = [row for row in stopped.record.outcomes if row["status"] == "failed"]
    assert len(failed) == 1, failed
    assert "nobody consumes celery, nobody consumes mail" in failed[0]["reason"]
    assert stopped.exit_code != Exit.DONE
    broken.trial.worker(name="another@pod", queues="celery,mail", concurrency=2)

    done = broken.ops("resume", stopped.record.run_id)

    assert done.code in {Exit.DONE, Exit.ATTENTION}, done.err
    assert "going on with await 1, canary 2" in done.err
    assert broken.ops("resume", stopped.record.run_id).code == Exit.DONE
