"""`ops reports stats` says what was done, from the archive alone, and asks for results only where it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opslib.errors import Exit
from opslib.plan import Status
from tests.command_line import call
from tests.render.samples import action, uid
from tests.render.test_figures import done, keep, resumed
from tests.support.seed import seed_result
from tests.support.workers import Deployment


@pytest.fixture
def root(place: Path) -> Path:
    """The archive, with a failed change a long time ago."""
    archive = place / "reports"
    archive.mkdir()
    keep(archive, "20200101", "stuck-tasks", **done(action(), statuses=(Status.FAILED,)))
    return archive


@pytest.mark.usefixtures("root")
class TestWithoutABroker:
    """Nothing is connected to."""

    @pytest.fixture(autouse=True)
    def _nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPS_BROKER_URL", "redis://127.0.0.1:1/0")

    def test_for_a_person(self) -> None:
        """Three tables under one line."""
        told = call("reports", "stats")

        assert (told.code, told.err) == (Exit.DONE, "")
        assert "1 run · on every target · since the oldest that is kept" in told.out
        assert ["100.0%" in line for line in told.out.splitlines() if line.startswith("restore")] == [True]

    def test_as_data(self) -> None:
        """One document, whatever its form; ids are those of the runs that failed, or in which a change did."""
        told = json.loads(call("reports", "stats", "-o", "json").out)

        assert (told["runs"], told["by_kind"][0]["failed"], told["resumed"]["success_rate"]) == (1, 1, None)
        assert json.loads(call("reports", "stats", "-o", "jsonl").out) == told
        assert call("reports", "stats", "-o", "ids").out == "20200101T120000Z-stuck-tasks-000000\n"

    def test_since_and_target(self) -> None:
        """What is older, or elsewhere, does not count; a time that is none is wrong usage."""
        assert json.loads(call("reports", "stats", "--since", "30d", "--json").out)["runs"] == 0
        assert json.loads(call("reports", "stats", "--target", "prod", "--json").out)["runs"] == 0
        assert call("reports", "stats", "--since", "30").code == Exit.USAGE

    def test_no_archive_yet(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Zero runs, and no folder is made for them."""
        monkeypatch.setenv("OPS_REPORTS", str(place / "none"))

        assert call("reports", "stats").code == Exit.DONE
        assert not (place / "none").exists()

    def test_a_result_that_cannot_be_asked_for_is_no_failure(self, root: Path) -> None:
        """Exit 4, which target, and the rest of the figures."""
        keep(root, "20261121", "resume-task", target="default", **resumed(1))

        told = call("reports", "stats", "--results")

        assert told.code == Exit.CANNOT_SEE
        assert "Not the whole view: default:" in told.err
        assert "1 could not be looked at" in told.out

    def test_a_target_that_is_gone_from_the_settings_is_said(self, root: Path) -> None:
        """A record outlives the deployment that it is about."""
        keep(root, "20261121", "resume-task", target="gone", **resumed(1))

        told = call("reports", "stats", "--results")

        assert told.code == Exit.CANNOT_SEE
        assert "Not the whole view: gone:" in told.err


def test_an_audit_that_cannot_be_read_is_said(root: Path) -> None:
    """The records are counted all the same."""
    (root / "audit.jsonl").mkdir()

    told = call("reports", "stats")

    assert told.code == Exit.DONE
    assert "the audit cannot be read" in told.err
    assert "1 run" in told.out


def test_how_resumed_tasks_have_ended(root: Path, shop: Deployment) -> None:
    """By the results that are there now."""
    keep(root, "20261121", "resume-task", target="default", **resumed(1, 2, 3))
    seed_result(shop.redis, "SUCCESS", task_id=uid("new 1"))
    seed_result(shop.redis, "FAILURE", task_id=uid("new 2"))

    told = call("reports", "stats", "--results")
    data = json.loads(call("reports", "stats", "--results", "--json").out)["resumed"]

    assert told.code == Exit.DONE, told
    assert "1 succeeded, 1 failed, 1 without a result, which proves nothing, success rate 50.0%" in told.out
    assert (data["succeeded"], data["failed"], data["without_result"], data["success_rate"]) == (1, 1, 1, 0.5)
