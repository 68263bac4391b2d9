"""What a command prints at the end of a run, at the boundary of what a terminal takes."""

import pytest

from opslib.records import RunRecord
from opslib.render import summary


def applied(count, failed=0):
    """Return the record of a run that restored `count` messages and failed with some of them."""
    actions = [
        {"id": n, "kind": "restore", "subject": f"task-{n}", "source": "unacked", "destination": "celery"}
        for n in range(count)
    ]
    outcomes = [
        {"action": n, "status": "failed" if n < failed else "applied", "reason": f"reason-{n}", "steps": []}
        for n in range(count)
    ]
    return RunRecord(
        run_id="r",
        runbook="stuck-tasks",
        target="demo",
        operator="ada",
        started_at="2026-11-21T02:15:00Z",
        verdict="healthy",
        exit_code=0,
        dry_run=False,
        plan={"digest": "d", "actions": actions},
        outcomes=outcomes,
    )


@pytest.mark.parametrize(("count", "spelled"), [(20, True), (21, False)])
def test_up_to_twenty_outcomes_are_spelled_out(count, spelled):
    """More would push the verdict's reasons off the screen; the report has them all."""
    text = "\n".join(map(str, summary.of_run(applied(count), "")))

    assert ("reason-19" in text) is spelled
    assert ("21 applied" in text) is not spelled


def test_what_failed_is_always_spelled_out():
    """Of many outcomes, those that need a person are shown."""
    text = "\n".join(map(str, summary.of_run(applied(30, failed=2), "")))

    assert "reason-0" in text
    assert "reason-1" in text
    assert "reason-2" not in text
    assert "28 applied, 2 failed" in text
