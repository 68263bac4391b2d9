"""What was done is counted from the records; and from the audit where there is none, or none that can be read."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opslib import folders, records
from opslib.plan import Copy, Kind, Outcome, Status
from opslib.redriving import Note
from opslib.render import archive, figures, tally
from opslib.render.figures import Figures
from opslib.render.grid import Table
from opslib.writer import redriven
from tests.render.samples import action, finding, outcome, plan, record, uid


def keep(root: Path, day: str, name: str, *, notebook: bool = False, number: int = 0, **more: Any) -> Path:
    """Archive a run of a day's noon; it took three seconds."""
    run = folders.create(root, f"{day}T120000Z-{name}-{number:06x}")
    at = f"{day[:4]}-{day[4:6]}-{day[6:]}T12:00:"
    fields = {"run_id": run.name, "runbook": name, "started_at": f"{at}00Z", "finished_at": f"{at}03Z"} | more
    records.write(record(**fields), run / folders.RECORD)
    if notebook:
        (run / folders.NOTEBOOK).write_text("{}")
    return run


def done(*actions: Any, statuses: tuple[Status, ...] = (), **more: Any) -> dict[str, Any]:
    """Return the fields of a run that carried out a plan; everything was applied where nothing else is said."""
    made = plan(*actions)
    said = statuses or (Status.APPLIED,) * len(made)
    return {
        "proposed": made,
        "outcomes": [outcome(each, status) for each, status in zip(made, said, strict=True)],
        "dry_run": False,
        **more,
    }


def audit(root: Path, *lines: dict[str, Any] | str) -> None:
    """Write the audit's lines, as the writer does."""
    root.mkdir(exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line, sort_keys=True) for line in lines]
    (root / tally.AUDIT).write_text("".join(f"{line}\n" for line in text))


def begun(run_id: str, actions: str, target: str = "demo", at: str = "2026-11-21T12:00:00Z") -> dict[str, Any]:
    """Return the audit's first line of a run."""
    return {"event": "begin", "run_id": run_id, "at": at, "target": target, "actions": actions}


def ended(run_id: str, **outcomes: int) -> dict[str, Any]:
    """Return the audit's last line of a run."""
    return {"event": "end", "run_id": run_id, "at": "2026-11-21T12:00:01Z", "outcomes": outcomes}


def count(root: Path, **more: str) -> Figures:
    """Count what is in an archive."""
    audited, broken = tally.read(root / tally.AUDIT)
    return tally.of(root, audited, broken=broken, **more)


def by_run(found: Figures, name: str) -> dict[str, Any]:
    """Return the figures of one name that are not zero."""
    (row,) = (row for row in found.by_run if row.name == name)
    return {key: value for key in row.__slots__ if (value := getattr(row, key))}


def by_kind(found: Figures, kind: str) -> dict[str, Any]:
    """Return the figures of one kind that are not zero."""
    (row,) = (row for row in found.by_kind if row.kind == kind)
    return {key: value for key in row.__slots__ if (value := getattr(row, key)) is not None and value != 0}


def shown(found: Figures) -> str:
    """Return what a person reads."""
    return "\n".join(part.text(160) if isinstance(part, Table) else str(part) for part in figures.tables(found))


def test_runs_by_runbook_and_by_command(tmp_path: Path) -> None:
    """How many, dry or applied, with their verdicts and the median of their times; the same name may be both."""
    keep(tmp_path, "20261120", "stop-task", notebook=True)
    keep(tmp_path, "20261121", "stop-task", notebook=True, findings=[finding()], finished_at="2026-11-21T12:00:05Z")
    keep(tmp_path, "20261122", "stop-task", notebook=True, finished_at="2026-11-22T12:01:00Z")
    keep(tmp_path, "20261121", "stop-task", number=1, **done(action()))
    keep(tmp_path, "20261121", "purge-queue", scope="change", **done(action(kind=Kind.PURGE)))

    found = count(tmp_path)

    rows = {(row.name, row.kind): row for row in found.by_run}
    runbook, command = rows["stop-task", "runbook"], rows["stop-task", "command"]
    assert (runbook.runs, runbook.dry, runbook.applied, runbook.healthy, runbook.critical) == (3, 3, 0, 2, 1)
    assert runbook.median_s == 5.0
    assert (command.runs, command.applied) == (1, 1)
    assert by_run(found, "purge-queue") == {
        "name": "purge-queue",
        "kind": "command",
        "runs": 1,
        "applied": 1,
        "healthy": 1,
        "median_s": 3.0,
    }
    assert found.runs == 5


def test_actions_by_kind_and_their_error_rate(tmp_path: Path) -> None:
    """What was skipped was not tried; what only a dry run proposed was not to be made."""
    keep(tmp_path, "20261120", "stuck-tasks", proposed=plan(action(1), action(2)))
    restores = [action(number) for number in range(6)]
    said = (Status.APPLIED, Status.APPLIED, Status.APPLIED, Status.FAILED, Status.SKIPPED, Status.UNVERIFIED)
    keep(
        tmp_path, "20261121", "stuck-tasks", **done(*restores, action(kind=Kind.STOP), statuses=(*said, Status.APPLIED))
    )

    found = count(tmp_path)

    assert by_kind(found, "restore") == {
        "kind": "restore",
        "proposed": 2,
        "planned": 6,
        "applied": 3,
        "skipped": 1,
        "failed": 1,
        "unverified": 1,
        "error_rate": pytest.approx(0.4),
    }
    assert by_kind(found, "stop") == {"kind": "stop", "planned": 1, "applied": 1}
    assert found.attention == ("20261121T120000Z-stuck-tasks-000000",)
    assert "40.0%" in shown(found)


def test_a_rate_needs_something_that_was_tried(tmp_path: Path) -> None:
    """Nothing of nothing is no rate at all, and not none."""
    keep(tmp_path, "20261120", "stuck-tasks", proposed=plan(action()))

    assert by_kind(count(tmp_path), "restore") == {"kind": "restore", "proposed": 1}


def test_a_record_that_is_gone_is_counted_by_the_audit(tmp_path: Path) -> None:
    """With the name that its id has, and what became of its changes; of several kinds only the sum is known."""
    gone = [f"20261121T120000Z-{name}-abcdef" for name in ("stuck-tasks", "move-queue", "expedite", "purge-queue")]
    audit(
        tmp_path,
        begun(gone[0], "restore 4, stop 2"),
        ended(gone[0], applied=5, failed=1),
        begun(gone[1], "move 2, pause 1"),
        ended(gone[1], applied=3),
        begun(gone[2], "reorder 9"),
        ended(gone[2], applied=7, skipped=2),
        begun(gone[3], "purge 1"),
    )

    found = count(tmp_path)

    assert (found.runs, found.audited, found.unreadable) == (4, 4, 0)
    assert by_run(found, "stuck-tasks") == {
        "name": "stuck-tasks",
        "kind": "runbook",
        "runs": 1,
        "applied": 1,
        "audited": 1,
    }
    mixed = {"kind": tally.MIXED, "planned": 6, "applied": 5, "failed": 1, "error_rate": pytest.approx(1 / 6)}
    assert by_kind(found, tally.MIXED) == mixed
    assert by_kind(found, "move") == {"kind": "move", "planned": 2, "applied": 2}
    assert by_kind(found, "reorder") == {"kind": "reorder", "planned": 9, "applied": 7, "skipped": 2}
    assert by_kind(found, "purge") == {"kind": "purge", "planned": 1, "untold": 1}
    assert found.work.reordered == 7
    assert found.attention == (gone[0],)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"run_id": 3}', b"[]"])
def test_a_broken_record_is_a_failed_run_and_the_audit_has_its_changes(tmp_path: Path, content: bytes | None) -> None:
    """It is counted once, on the target that the audit names."""
    run = folders.create(tmp_path, "20261121T120000Z-stuck-tasks-000001")
    if content is not None:
        (run / folders.RECORD).write_bytes(content)
    audit(tmp_path, begun(run.name, "restore 3", "prod"), ended(run.name, applied=3))

    found = count(tmp_path, target="prod")

    assert (found.runs, found.unreadable, found.audited) == (1, 1, 0)
    assert by_run(found, "stuck-tasks") == {
        "name": "stuck-tasks",
        "kind": "runbook",
        "runs": 1,
        "applied": 1,
        "failed": 1,
    }
    assert by_kind(found, "restore") == {"kind": "restore", "planned": 3, "applied": 3}
    assert count(tmp_path, target="other").runs == 0


def test_a_run_that_was_cut_off_has_changes_nobody_can_tell(tmp_path: Path) -> None:
    """Its draft has no plan; the audit says what it was about to do, and no more."""
    error = {"type": "Unfinished", "message": "The run ended before its last cell.", "hint": ""}
    run = keep(tmp_path, "20261121", "stuck-tasks", verdict="failed", dry_run=False, error=error)
    audit(tmp_path, begun(run.name, "restore 3"))

    found = count(tmp_path)

    assert by_kind(found, "restore") == {"kind": "restore", "planned": 3, "untold": 3}
    assert found.attention == (run.name,)


def test_a_record_and_the_audit_are_not_counted_twice(tmp_path: Path) -> None:
    """What both know is taken from the record, which knows more."""
    run = keep(tmp_path, "20261121", "stuck-tasks", **done(action(1), action(2, kind=Kind.STOP)))
    audit(tmp_path, begun(run.name, "restore 1, stop 1"), ended(run.name, applied=2))

    found = count(tmp_path)

    assert (found.runs, found.audited) == (1, 0)
    assert {row.kind: row.applied for row in found.by_kind} == {"restore": 1, "stop": 1}


def test_torn_and_foreign_lines_of_the_audit_are_said(tmp_path: Path) -> None:
    """They hide nothing of the others."""
    gone = "20261121T120000Z-expedite-abcdef"
    torn = '{"event": "begin", "run_id": "2026'
    foreign = '{"event": "end", "outcomes": [1], "run_id": "x"}'
    audit(tmp_path, begun(gone, "reorder 2"), torn, foreign, "what", ended(gone, applied=2, invented=4))

    found = count(tmp_path)

    assert (found.broken_lines, found.work.reordered, found.runs) == (3, 2, 1)
    assert "3 lines of the audit not readable" in shown(found)


def test_only_what_is_younger(tmp_path: Path) -> None:
    """By the instant in the run's id, and by that of the audit's line; what began at that very second counts."""
    keep(tmp_path, "20261120", "stuck-tasks")
    keep(tmp_path, "20261121", "stuck-tasks")
    old, new = "20261119T120000Z-expedite-abcdef", "20261122T120000Z-expedite-abcdef"
    audit(
        tmp_path,
        begun(old, "reorder 1", at="2026-11-19T12:00:00Z"),
        begun(new, "reorder 1", at="2026-11-22T12:00:00Z"),
    )

    found = count(tmp_path, since="2026-11-21T12:00:00Z")

    assert (found.runs, found.oldest, found.newest) == (2, "20261121T120000Z-stuck-tasks-000000", new)
    assert count(tmp_path, since="2026-11-21T12:00:01Z").runs == 1
    assert count(tmp_path).runs == 4


def test_only_those_on_a_target(tmp_path: Path) -> None:
    """The others are as if they were not."""
    keep(tmp_path, "20261120", "stuck-tasks", target="prod")
    keep(tmp_path, "20261121", "stuck-tasks")
    audit(tmp_path, begun("20261122T120000Z-expedite-abcdef", "reorder 1", "prod"))

    assert (count(tmp_path, target="prod").runs, count(tmp_path, target="demo").runs) == (2, 1)


def removed(number: int) -> dict[str, Any]:
    """Return what an action has that removes a key."""
    copies = (Copy(place="key", key=f"celery-task-meta-{uid(number)}", sha256="ab" * 32),)
    return {"kind": Kind.DELETE, "source": "result", "destination": "vault", "copies": copies}


def test_a_cleanup_counts_keys_and_bytes(tmp_path: Path) -> None:
    """Of the keys that went; the size of one that is not on record is said to be unknown, and not zero."""
    sizes = {1: 1000, 2: 24, 3: 5000}
    found = [
        finding(n, code="task-remnant", evidence={"key": f"celery-task-meta-{uid(n)}", "size_bytes": size})
        for n, size in sizes.items()
    ]
    actions = [action(n, **removed(n)) for n in (1, 2, 3, 4)]
    said = (Status.APPLIED, Status.APPLIED, Status.SKIPPED, Status.APPLIED)
    keep(tmp_path, "20261121", "cleanup-task", findings=found, **done(*actions, statuses=said))

    work = count(tmp_path).work

    assert (work.keys_removed, work.bytes_freed, work.sizes_unknown) == (3, 1024, 1)
    assert "1.0 KiB freed, the size of 1 is not on record" in shown(count(tmp_path))


def redrive(reason: str, status: Status = Status.APPLIED) -> dict[str, Any]:
    """Return a run that sent dead letters again."""
    made = plan(action(kind=Kind.REDRIVE, subject="orders.dead", source="orders.dead"))
    return {
        "proposed": made,
        "outcomes": [Outcome(action=made.actions[0], status=status, reason=reason)],
        "dry_run": False,
    }


def test_redrives_are_counted_by_letters(tmp_path: Path) -> None:
    """Sent again and refused; an outcome without figures is said to have none."""
    told = [
        (
            "1,204 letters were sent again. 3 stay: It expired; it is sent only where that is asked for.; 1 stays: No.",
            0,
        ),
        ("1 letter was sent again.", 1),
        ("7 letters were sent again. The server has little memory left.", 2),
        ("None was sent. 12 stay: Its result says SUCCESS: it has run by now.", 3),
        ("None of them is there any more.", 4),
        ("The broker does not answer.", 5),
    ]
    for reason, number in told:
        keep(tmp_path, "20261121", "dead-redrive", number=number, **redrive(reason))

    work = count(tmp_path).work

    assert (work.redriven, work.redrive_refused, work.redrives_untold) == (1212, 16, 1)


@pytest.mark.parametrize("sent", [0, 1, 1204])
@pytest.mark.parametrize("stays", [{}, {Note.LOOPING: 1}, {Note.SUCCEEDED: 1500, Note.REVOKED: 1}])
@pytest.mark.parametrize("halted", ["", "The server has little memory left."])
def test_what_the_writer_says_of_letters_is_understood(sent: int, stays: dict[Note, int], halted: str) -> None:
    """Its sentence is all that a record keeps of the letters of an action."""
    account = redriven._Account(sent=sent, stays=Counter(stays), halted=halted)
    work = SimpleNamespace(account=account, before=0, unheard=" 1 node did not say which ids are revoked.")
    said = redriven._outcome(action(), work)  # type: ignore[arg-type]

    assert tally._redriven({"reason": said.reason}) == (sent, 0 if halted else sum(stays.values()))


def resumed(*numbers: int, statuses: tuple[Status, ...] = ()) -> dict[str, Any]:
    """Return a run that gave the work of failed tasks to new ones."""
    pairs = [
        (
            action(f"old {n}", kind=Kind.HANDOVER, source="checkpoint"),
            action(f"new {n}", kind=Kind.SEND, why="task-resumable"),
        )
        for n in numbers
    ]
    return done(*(each for pair in pairs for each in pair), statuses=statuses)


class TestResumes:
    """How many tasks were resumed, and what became of them."""

    def test_how_they_ended_is_not_guessed(self, tmp_path: Path) -> None:
        """Without a look, how many there are, and how to ask."""
        keep(tmp_path, "20261121", "resume-task", **resumed(1, 2))

        found = count(tmp_path)

        assert (found.resumed.tasks, found.resumed.looked, found.resumed.success_rate) == (2, False, None)
        assert found.resumed.ids == {"demo": [uid("new 1"), uid("new 2")]}
        assert "--results asks for it" in shown(found)

    def test_only_what_was_sent_is_resumed(self, tmp_path: Path) -> None:
        """A message that was not sent gave nobody any work, and a dry run none at all."""
        said = (Status.APPLIED, Status.APPLIED, Status.APPLIED, Status.SKIPPED)
        keep(tmp_path, "20261121", "resume-task", **resumed(1, 2, statuses=said))
        keep(tmp_path, "20261121", "resume-task", number=1, **(resumed(3) | {"dry_run": True}))

        assert count(tmp_path).resumed.ids == {"demo": [uid("new 1")]}

    def test_the_rate_is_over_those_that_have_ended(self, tmp_path: Path) -> None:
        """What runs, and what has no result, counts as neither."""
        keep(tmp_path, "20261121", "resume-task", **resumed(*range(6)))
        said = dict(zip(range(5), ("SUCCESS", "SUCCESS", "FAILURE", "STARTED", "PROGRESS"), strict=True))
        states = {"demo": {uid(f"new {n}"): state for n, state in said.items()}}

        found = figures.looked(count(tmp_path), states).resumed

        assert (found.succeeded, found.failed, found.underway, found.without_result) == (2, 1, 2, 1)
        assert found.success_rate == pytest.approx(2 / 3)
        told = shown(figures.looked(count(tmp_path), states))
        assert "success rate 66.7% of those that have ended" in told
        assert "1 without a result, which proves nothing" in told

    def test_a_target_that_cannot_be_asked_is_said(self, tmp_path: Path) -> None:
        """Its tasks count as not looked at, and not as failed."""
        keep(tmp_path, "20261121", "resume-task", **resumed(1))
        keep(tmp_path, "20261121", "resume-task", number=1, **(resumed(2) | {"target": "prod"}))

        found = figures.looked(count(tmp_path), {"demo": {uid("new 1"): "SUCCESS"}}, ["prod: it does not answer."])

        assert (found.resumed.succeeded, found.resumed.failed, found.resumed.without_result) == (1, 0, 0)
        assert found.resumed.unseen == ("prod: it does not answer.",)
        assert "1 could not be looked at" in shown(found)


def test_an_empty_archive_is_no_error(tmp_path: Path) -> None:
    """Nothing was run, and that is said."""
    found = count(tmp_path / "none")

    assert (found.runs, found.by_run, found.by_kind) == (0, (), ())
    assert "No run has been archived in that time." in shown(found)


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    """A record says what it likes; what is shown is one line of harmless text."""
    escape = "\x1b[31mred\n# heading"
    hostile = record(runbook=escape, target=escape, verdict="\x1b[2J", **done(action()))
    hostile.plan["actions"] = [{"id": 1, "kind": escape}, {"id": [], "kind": None}, "x"]
    hostile.outcomes = [{"action": 1, "status": "planned"}, {"action": [], "status": []}, {}]
    run = folders.create(tmp_path, "20261121T120000Z-x-000001")
    records.write(hostile, run / folders.RECORD)

    found = count(tmp_path)

    assert (found.runs, found.by_run[0].failed) == (1, 1)
    assert "\x1b" not in shown(found)
    assert not [line for line in shown(found).splitlines() if line.startswith("# heading")]
    assert {row.planned for row in found.by_kind} == {1}


def test_three_thousand_runs_are_counted_at_once(tmp_path: Path) -> None:
    """In a fraction of what a person notices; the index is written from as many."""
    first = keep(tmp_path, "20261121", "stuck-tasks", findings=[finding(n) for n in range(3)], **done(action(1)))
    for number in range(1, 3000):
        run = folders.create(tmp_path, f"20261121T120000Z-stuck-tasks-{number:06x}")
        shutil.copyfile(first / folders.RECORD, run / folders.RECORD)
    audit(tmp_path, *(begun(f"20261121T120000Z-stuck-tasks-{number:06x}", "restore 1") for number in range(3000)))

    began = time.perf_counter()
    found = count(tmp_path)
    took_s = time.perf_counter() - began
    began = time.perf_counter()
    archived = sum(1 for _ in archive.runs(tmp_path))
    reading_s = time.perf_counter() - began

    assert (found.runs, by_kind(found, "restore")["applied"], archived) == (3000, 3000, 3000)
    assert took_s < 4 * reading_s + 0.5
