"""retry-storm on real retries: it tells them apart, stops those that were named for good, and no other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from opslib import catalog, find, records, run
from opslib.broker import Broker
from opslib.demo import server as embedded
from opslib.errors import Exit
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.shop import contents
from tests.support import seed, servers
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker, deployment

#: Twenty loops that are in vain, three that wait for a neighbour, and one task that is retried once.
VAIN, WAITING = 20, 3
#: Shorter than a person would have it, so that what a dead node held is delivered again while the test looks.
SOON = {"visibility_timeout": 6, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
CONF = {"worker_send_task_events": True, "broker_transport_options": SOON}
SECRET = "acct-4711"


@dataclass(frozen=True, kw_only=True)
class Storm:
    """Real loops on a real node, and the folder of the archive."""

    system: Deployment
    node: Worker
    vain: list[str]
    waiting: list[str]
    reports: Path

    def broker(self) -> Broker:
        """Return open clients of it."""
        return servers.broker(self.system.server)

    def look(self, **parameters: catalog.Value) -> RunResult:
        """Run the notebook."""
        asked = {
            "answer_within": "5s",
            "window": "3s",
            "storm_per_minute": 3000,
            "storm_after": VAIN,
            "loop_after": 500,
        }
        return run.run(catalog.find("retry-storm"), {**asked, **parameters})


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """A node with events, and tasks that it retries; each was retried twice."""
    folder = tmp_path_factory.mktemp("storm")
    with pytest.MonkeyPatch.context() as patch, embedded.start(folder) as server, deployment(server, folder) as system:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        (folder / "reports").mkdir(mode=0o700)
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setenv("OPS_BROKER_URL", server.url)
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        node = system.worker(concurrency=2, conf=CONF, name="old@storm")
        vain = [system.send("broken", 1.5, SECRET) for _ in range(VAIN)]
        waiting = [system.send("refused", 1.5, SECRET) for _ in range(WAITING)]
        until(lambda: all(system.ran(each) >= 3 for each in [*vain, *waiting]), DEADLINE_S, "all were retried twice")
        yield Storm(system=system, node=node, vain=vain, waiting=waiting, reports=folder / "reports")


@pytest.fixture(scope="module")
def looked(storm: Storm) -> RunResult:
    """A run that only looks."""
    return storm.look()


@pytest.fixture(scope="module")
def applied(storm: Storm, looked: RunResult) -> RunResult:
    """A run that stops one name."""
    assert looked
    return storm.look(task="tests.broken", dry_run=False)


def by_code(rows: list[dict[str, object]]) -> dict[str, str]:
    """Return the subjects of findings by code."""
    return {str(row["code"]): str(row["subject"]) for row in rows}


def test_it_tells_in_vain_from_waiting(looked: RunResult) -> None:
    """Twenty of one name are a storm, and no TypeError heals; three that wait for a neighbour are fine."""
    record = looked.record
    found = {(row["code"], row["subject"]): row for row in record.findings}

    assert set(found) == {("retry-storm", "tests.broken"), ("hopeless-retry", "tests.broken")}
    storm = found["retry-storm", "tests.broken"]["evidence"]
    assert storm["retrying"] == VAIN
    assert storm["max_retries"] == "none"
    assert storm["told_by"] in {"events", "two looks"}  # whichever saw more of them
    assert storm["per_minute"] >= 60
    assert storm["errors"] == {"TypeError: '…' object is not subscriptable": VAIN}
    assert (record.verdict, looked.exit_code) == ("critical", Exit.ATTENTION)


def test_it_plans_nothing_that_nobody_named(storm: Storm, looked: RunResult) -> None:
    """And leaves nothing of its own behind."""
    assert looked.record.plan["actions"] == []
    assert not list(storm.system.redis.scan_iter(match="*opslib:*"))


def test_the_report_shows_names_errors_and_no_argument(looked: RunResult) -> None:
    """The picture, both tables, and the neighbours' error without what differs from one to the next."""
    page = BeautifulSoup(looked.report.read_text(), "html.parser").get_text(" ", strip=True)
    texts = [path.read_text() for path in looked.folder.iterdir()]

    assert "tests.refused" in page
    assert "ConnectionError: Error <n> for" in page
    assert "Retried tasks, by their next attempt. tests.broken: 20 tasks" in looked.report.read_text()
    assert archive.verify(looked.folder) == []
    assert not [text for text in texts if SECRET in text]


def test_every_action_is_applied(applied: RunResult) -> None:
    """Each of the twenty, by name."""
    assert [row["status"] for row in applied.record.outcomes] == ["applied"] * VAIN
    assert {row["task"] for row in applied.record.plan["actions"]} == {"tests.broken"}
    assert applied.record.remaining == []
    assert applied.exit_code is Exit.DONE


def test_none_comes_back_when_its_node_dies_and_another_joins(storm: Storm, applied: RunResult) -> None:
    """The revoke died with the node; the messages are gone from the broker, so those of the others alone are back."""
    assert applied
    system = storm.system
    attempts = {task_id: system.ran(task_id) for task_id in storm.vain}
    until(lambda: set(storm.waiting) <= system.unacked().keys(), DEADLINE_S, "the others wait in the node")
    storm.node.kill()
    before = {task_id: system.ran(task_id) for task_id in storm.waiting}
    system.worker(concurrency=2, conf=CONF, name="new@storm")

    until(
        lambda: all(system.ran(each) > before[each] + 1 for each in storm.waiting),
        DEADLINE_S,
        "what was not stopped is delivered again, and retried",
    )

    assert {task_id: system.ran(task_id) for task_id in storm.vain} == attempts
    seen = find(storm.broker(), storm.vain)
    assert not seen.messages
    assert not seen.held
    assert not any(row.silent for row in seen.coverage)
    kept = [json.loads(raw) for raw in seed.quarantined(system.redis).get("celery", [])]
    ids = {(each[0] if isinstance(each, list) else each)["headers"]["id"] for each in kept}
    assert ids <= set(storm.vain)
    assert len(ids) > VAIN / 2  # one that just ran when it was stopped has no message to keep


def test_a_name_that_nothing_fits_is_refused(storm: Storm, applied: RunResult) -> None:
    """With what there is; nothing is changed, and the run says so."""
    assert applied

    result = storm.look(task="tests.refsued", dry_run=False)

    assert result.exit_code is Exit.USAGE
    assert result.record.error
    assert "tests.refused" in str(result.record.error)
    assert result.record.outcomes == []


def test_the_notebook_leaves_a_quiet_broker_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its defaults, and headless without our runner: seeded retries are found, and every key is as before."""
    with embedded.start(tmp_path) as server, server.client() as redis:
        for retries in (1, 4, 30):
            seed.seed_waiting(redis, "shop.charge", retries=retries)
            seed.seed_unacked(redis, "shop.charge", retries=retries, eta=seed.iso(60))
        before = contents(redis)
        monkeypatch.setenv("OPS_BROKER_URL", server.url)
        monkeypatch.setenv("OPS_REPORTS", str(tmp_path))
        nb = nbformat.read(catalog.find("retry-storm").path, 4)

        from nbclient import NotebookClient

        NotebookClient(nb, timeout=90, kernel_name="python3").execute()

        outputs = {cell.id: str(cell.outputs) for cell in nb.cells if cell.cell_type == "code"}
        assert "shop.charge" in outputs["names"]
        assert "image/svg+xml" in outputs["picture"]
        assert "retry-loop" in outputs["diagnosis"] or "Retried 30 times" in outputs["diagnosis"]
        assert contents(redis) == before
