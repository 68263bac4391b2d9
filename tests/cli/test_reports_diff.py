"""`ops reports diff` says what is new, worse, better and gone between two runs, and never more than both have seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opslib.errors import Exit
from opslib.findings import Severity
from tests.command_line import call
from tests.render.samples import finding, uid
from tests.render.test_figures import keep

SEEN = {"place": "unacked", "seen": 4, "silent": 0, "note": ""}
PARTLY = {"place": "unacked", "seen": 4, "silent": 2, "note": "Two could not be read."}


@pytest.fixture
def root(place: Path) -> Path:
    """An empty archive."""
    archive = place / "reports"
    archive.mkdir()
    return archive


def kept(root: Path, day: str, *rows: Any, name: str = "stuck-tasks", **more: Any) -> str:
    """Archive a run that left these findings behind; return its id."""
    fields = {"findings": list(rows), "coverage": [SEEN], "number": int(day[-2:])}
    return keep(root, day, name, **{**fields, **more}).name


def changes(*arguments: str) -> dict[str, str]:
    """Return what became of each subject."""
    told = json.loads(call("reports", "diff", *arguments, "-o", "json").out)
    return {row["subject"]: row["change"] for row in told["findings"]}


class TestTheNewestAgainstTheOneBefore:
    """Without an id, or with one."""

    def test_each_finding_is_told_by_what_became_of_it(self, root: Path) -> None:
        """New and worse ones come first, and are what a program gets."""
        kept(root, "20260101", finding(1), finding(2, severity=Severity.ATTENTION), finding(3), finding(4))
        kept(root, "20260102", finding(1), finding(2), finding(3, severity=Severity.ATTENTION), finding(5))

        assert changes() == {
            uid(5): "new", uid(2): "worse", uid(1): "remains", uid(3): "better", uid(4): "gone",
        }  # fmt: skip
        told = call("reports", "diff")
        assert told.code == Exit.ATTENTION
        assert "1 new · 1 worse · 1 better · 1 gone · 1 remains" in told.out.splitlines()[0]
        assert call("reports", "diff", "-o", "ids").out.split() == [uid(5), uid(2)]

    def test_nothing_is_gone_that_the_later_run_could_not_see(self, root: Path) -> None:
        """A view that is not whole proves nothing, and the exit code says so."""
        kept(root, "20260101", finding(1))
        kept(root, "20260102", coverage=[PARTLY])

        assert changes() == {uid(1): "not seen"}
        told = call("reports", "diff")
        assert told.code == Exit.CANNOT_SEE
        assert "Mind: The later run did not see all of: unacked." in told.out

    def test_all_is_well_where_nothing_is_new_and_everything_was_seen(self, root: Path) -> None:
        """Exit 0; figures that differ are told beside it."""
        kept(root, "20260101", finding(1))
        kept(root, "20260102", coverage=[{**SEEN, "seen": 9}])

        told = call("reports", "diff")
        assert told.code == Exit.DONE
        assert any(line.split()[:5] == ["unacked", "4", "read", "9", "read"] for line in told.out.splitlines())

    def test_what_its_own_changes_have_removed_is_gone(self, root: Path) -> None:
        """What a run left behind counts, not what it met."""
        kept(root, "20260101", finding(1))
        kept(root, "20260102", finding(1), remaining=[], dry_run=False)

        assert changes() == {uid(1): "gone"}

    def test_runs_of_others_and_failed_ones_are_passed_over(self, root: Path) -> None:
        """The one before is of the same runbook on the same target, and has seen something."""
        first = kept(root, "20260101", finding(1))
        kept(root, "20260102", name="health-check")
        kept(root, "20260103", target="other")
        kept(root, "20260104", verdict="failed", error={"type": "E", "message": "It broke.", "hint": ""})
        last = kept(root, "20260105", finding(1))

        told = json.loads(call("reports", "diff", "--runbook", "stuck-tasks", "--json").out)
        assert (told["earlier"]["run_id"], told["later"]["run_id"]) == (first, last)
        assert json.loads(call("reports", "diff", last, "--json").out) == told
        assert json.loads(call("reports", "diff", last, first, "--json").out) == told

    def test_other_limits_and_another_server_are_told(self, root: Path) -> None:
        """What is judged by other limits, or lies elsewhere, may differ for that alone."""
        kept(root, "20260101", parameters={"stuck_after": "1h", "dry_run": True})
        kept(root, "20260102", parameters={"stuck_after": "2h", "dry_run": False}, broker="redis://b:6379/0")

        assert json.loads(call("reports", "diff", "--json").out)["asked"] == [
            "The broker was redis://ops:***@redis:6379/0, and is redis://b:6379/0 in the later run.",
            "stuck_after was 1h, and is 2h in the later run.",
        ]


class TestRefused:
    """Each in one sentence, with what to do."""

    def test_different_runbooks_or_targets(self, root: Path) -> None:
        """What one does not look for, the other cannot have lost."""
        one, two = kept(root, "20260101"), kept(root, "20260102", name="health-check")
        told = call("reports", "diff", one, two)

        assert (told.code, told.out) == (Exit.USAGE, "")
        assert "only two of one runbook on one target compare" in told.err
        elsewhere = kept(root, "20260103", target="other")
        assert "stuck-tasks on demo and stuck-tasks on other" in call("reports", "diff", one, elsewhere).err

    def test_itself_a_failed_run_and_none_before(self, root: Path) -> None:
        """Nothing follows from any of them."""
        one = kept(root, "20260101")
        broken = kept(root, "20260102", verdict="failed", error={"type": "E", "message": "It broke.", "hint": ""})

        assert "name two" in call("reports", "diff", one, one).err
        assert "failed, so it tells of nothing" in call("reports", "diff", one, broken).err
        told = call("reports", "diff", one)
        assert "There is no run of stuck-tasks on" in told.err
        assert told.code == call("reports", "diff", "no-such-run", one).code == Exit.USAGE

    def test_an_empty_archive(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Said, and no folder is made."""
        monkeypatch.setenv("OPS_REPORTS", str(place / "none"))

        assert "No such run has been archived yet." in call("reports", "diff").err
        assert not (place / "none").exists()
