"""A run leaves one JSON document that says what came of it, whatever became of the run."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opslib import records, redact
from opslib.errors import Exit
from opslib.findings import Finding, Severity, Verdict
from opslib.plan import Outcome, Status
from opslib.records import RunContext, RunRecord
from tests.render.samples import action, finding, outcome, plan, snapshot

CONTEXT = RunContext(
    run_id="20261121T021500Z-stuck-tasks-7f3a9c",
    runbook="stuck-tasks",
    report="2026/11/21/report.html",
    operator="ada",
    reason="ticket 5",
    started_at="2026-11-21T02:15:00Z",
    parameters={"stuck_after": "90m"},
)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """No password of another test is masked in this one."""
    monkeypatch.setattr(redact, "_known", set())


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """Where the runner wants the record, as a kernel is told."""
    wanted = tmp_path / "record.json"
    told = msgspec.structs.replace(CONTEXT, record=str(wanted))
    monkeypatch.setenv("OPS_RUN", msgspec.json.encode(told).decode())
    return wanted


def conclude(
    *remaining: Finding,
    findings: tuple[Finding, ...] = (),
    actions: int = 0,
    outcomes: tuple[Outcome, ...] = (),
    dry_run: bool = True,
) -> RunRecord:
    """Conclude a run of which this remains."""
    return records.record(
        "stuck-tasks",
        before=snapshot(),
        findings=findings or remaining,
        plan=plan(*(action(number) for number in range(actions))),
        outcomes=outcomes,
        after=snapshot(),
        remaining=remaining,
        dry_run=dry_run,
    )


@pytest.mark.parametrize(
    ("verdict", "needs_person", "code"),
    [
        ("healthy", False, Exit.DONE),
        ("healthy", True, Exit.ATTENTION),
        ("attention", False, Exit.ATTENTION),
        ("attention", True, Exit.ATTENTION),
        ("critical", False, Exit.ATTENTION),
        ("critical", True, Exit.ATTENTION),
        ("unknown", False, Exit.CANNOT_SEE),
        ("unknown", True, Exit.CANNOT_SEE),
        ("failed", False, Exit.FAILED),
        ("failed", True, Exit.FAILED),
    ],
)
def test_each_verdict_has_its_exit_code(verdict, needs_person, code):
    """Only a healthy view in which nothing waits ends with 0; what cannot be told ends with 4, whatever else waits."""
    assert records.exit_code(Verdict(verdict), needs_person=needs_person) is code


@pytest.mark.parametrize(
    ("severity", "actions", "statuses", "dry_run", "verdict", "code"),
    [
        (None, 0, [], True, "healthy", 0),
        (None, 0, [], False, "healthy", 0),
        (None, 1, [], True, "healthy", 1),
        (None, 1, ["applied"], False, "healthy", 0),
        (None, 1, ["skipped"], False, "healthy", 0),
        (None, 2, ["applied", "failed"], False, "healthy", 1),
        (None, 1, ["unverified"], False, "unknown", 4),
        (None, 2, ["applied", "unverified"], False, "unknown", 4),
        (None, 2, ["failed", "unverified"], False, "unknown", 4),
        ("critical", 2, ["applied", "unverified"], False, "critical", 1),
        ("attention", 0, [], True, "attention", 1),
        ("critical", 1, ["applied"], False, "critical", 1),
        ("unknown", 1, [], True, "unknown", 4),
        ("unknown", 1, ["failed"], False, "unknown", 4),
    ],
)
def test_a_run_ends_with_what_remains(severity, actions, statuses, dry_run, verdict, code):
    """A plan that waits or an action that failed needs a person; what is not proven leaves the verdict unknown."""
    remaining = [finding(severity=Severity(severity))] if severity else []
    outcomes = tuple(outcome(action(n), Status(status)) for n, status in enumerate(statuses))

    run = conclude(*remaining, actions=actions, outcomes=outcomes, dry_run=dry_run)

    assert (run.verdict, run.exit_code) == (verdict, code)


def test_the_record_is_written_where_the_runner_wants_it(path):
    """It survives the kernel: the same fields are read back from the disk, and the runner's own are in it."""
    made = conclude(finding(1), actions=2, outcomes=(outcome(action(0)),))

    read = records.read(path)

    assert msgspec.to_builtins(read) == json.loads(json.dumps(msgspec.to_builtins(made), default=str))
    assert (read.run_id, read.operator, read.reason, read.report) == (
        CONTEXT.run_id,
        CONTEXT.operator,
        CONTEXT.reason,
        CONTEXT.report,
    )
    assert read.parameters == {"stuck_after": "90m"}
    assert read.schema_version == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", read.finished_at)


def test_a_run_by_hand_writes_nothing_and_keeps_one_run_id(monkeypatch, tmp_path):
    """Without a runner there is no path; every cell of the kernel still names the same run."""
    monkeypatch.delenv("OPS_RUN", raising=False)
    monkeypatch.setattr(records, "_HAND", [])
    monkeypatch.chdir(tmp_path)

    first, second = conclude(), conclude()

    assert first.run_id == second.run_id
    assert list(tmp_path.iterdir()) == []


def test_a_draft_says_that_the_run_did_not_end(path):
    """What was found stands on the disk before the next cell begins; the end of the run replaces it."""
    records.draft([finding(1), finding(2, Severity.ATTENTION)])

    drafted = records.read(path)
    assert (drafted.verdict, drafted.exit_code) == ("failed", 3)
    assert drafted.error == {"type": "Unfinished", "message": "The run ended before its last cell.", "hint": ""}
    assert [row["severity"] for row in drafted.findings] == ["critical", "attention"]

    conclude()

    assert records.read(path).error is None


def test_findings_stand_worst_first_in_the_record(path):
    """Whoever reads the document reads the worst at once."""
    conclude(finding(1, Severity.ATTENTION), finding(2, Severity.UNKNOWN), finding(3, Severity.CRITICAL))

    assert [row["severity"] for row in records.read(path).remaining] == ["critical", "unknown", "attention"]


def test_no_secret_reaches_the_record(path):
    """A password is masked in every value, in each of its forms; the fields keep their names whatever it is."""
    redact.remember("redis://:target@broker/0")
    redact.remember('redis://:ge"heim@broker/0')
    odd = finding(
        1, message='AUTH ge"heim failed at redis://u:other@h', evidence={"url": "redis://:x1y2@h", "a": ["target"]}
    )

    conclude(odd)

    text = path.read_text()
    assert "heim" not in text
    assert "other" not in text
    assert "x1y2" not in text
    assert records.read(path).findings[0]["evidence"] == {"url": "redis://:***@h", "a": ["***"]}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (float("inf"), None),
        (float("-inf"), None),
        (float("nan"), None),
        (1.5, 1.5),
        ("half \ud800", "half \\ud800"),
        ("queue \udcff", "queue \\udcff"),
        ({"\udcff": 1, 2: 3}, {"\\udcff": 1, "2": 3}),
        (("a", 1), ["a", 1]),
        (10**30, 10**30),
    ],
)
def test_any_evidence_can_be_read_back(path, value, read):
    """A score of infinity, half of a surrogate pair, a name that is not UTF-8: none makes the record unreadable."""
    conclude(finding(1, evidence={"odd": value}))

    assert records.read(path).findings[0]["evidence"] == {"odd": read}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)  # each example is flushed to a disk that others use as well
@given(value=_VALUES)
def test_any_value_can_be_written_and_read_back(tmp_path_factory, value):
    """Whatever was evidence, a record on the disk is a record."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    run = conclude()
    run.findings = [{"evidence": value}]

    records.write(run, path)

    assert records.read(path).run_id == run.run_id


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"run_id": 5}', b"\xff"])
def test_what_is_no_record_is_not_read_as_one(tmp_path, content):
    """Half a file, another document, no text: an error that the runner knows, never an empty record."""
    (tmp_path / "record.json").write_bytes(content)

    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        records.read(tmp_path / "record.json")


# The sentence over a run


@pytest.mark.parametrize(
    ("remaining", "actions", "applied", "dry_run", "sentence"),
    [
        (0, 0, 0, True, "Nothing was found to be wrong, and everything answered."),
        (1, 0, 0, True, "1 orphaned message."),
        (2, 1, 0, True, "2 orphaned messages. 1 change would be made; nothing was changed."),
        (1200, 1000, 0, True, "1,200 orphaned messages. 1,000 changes would be made; nothing was changed."),
        (0, 3, 3, False, "3 of 3 planned changes made. Nothing is left to do."),
        (1, 3, 2, False, "2 of 3 planned changes made. Left: 1 orphaned message."),
        (0, 0, 0, False, "Nothing was found to be wrong, and everything answered."),
    ],
)
def test_a_run_is_one_sentence(remaining, actions, applied, dry_run, sentence):
    """How many of what, what was or would be done, and what is left."""
    outcomes = tuple(outcome(action(n)) for n in range(applied))

    run = conclude(*(finding(n) for n in range(remaining)), actions=actions, outcomes=outcomes, dry_run=dry_run)

    assert run.headline == sentence


def test_a_run_that_failed_is_its_error():
    """What stopped it matters more than what it had found."""
    run = conclude(finding(1))
    run.error = {"type": "BrokerUnreachable", "message": "It did not answer.", "hint": ""}

    assert run.headline == "It did not answer."


# The file


def test_a_file_is_its_owners_alone(tmp_path):
    """Mode 0600, also where a file of another mode was before."""
    path = tmp_path / "file"
    path.touch(0o644)

    records.write_atomically(path, b"content")

    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    """Flushing to a full disk fails: the old content stays, and nothing half-written lies about."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_atomically(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    """Never a part: it is moved into place whole."""
    path = tmp_path / "file"
    contents = {bytes([letter]) * 200_000 for letter in b"abc"}
    records.write_atomically(path, b"a" * 200_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                records.write_atomically(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()

    assert seen <= contents


def test_two_runs_of_one_second_have_two_names():
    """A run id sorts by time and is unique all the same."""
    ids = {records.new_run_id("stuck-tasks") for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-stuck-tasks-[0-9a-f]{6}", each) for each in ids)


@pytest.mark.parametrize(
    ("env", "name"),
    [({"OPS_OPERATOR": "ada", "SUDO_USER": "bob"}, "ada"), ({"SUDO_USER": "bob"}, "bob"), ({"LOGNAME": "eve"}, "eve")],
)
def test_the_operator_is_the_person_behind_the_user(monkeypatch, env, name):
    """OPS_OPERATOR says it; else who called sudo; else the login name."""
    for variable in ("OPS_OPERATOR", "SUDO_USER", "LOGNAME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)

    assert records.operator() == name


def test_a_finding_is_in_the_record_with_every_field(path):
    """Nothing of what it was judged on is lost."""
    one = finding(1)

    conclude(one)

    assert records.read(path).findings == [json.loads(json.dumps(asdict(one)))]
