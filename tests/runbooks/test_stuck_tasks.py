"""stuck-tasks on the demo, which is really broken: it finds all that is wrong and nothing else, and puts it right."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, demo, find, records, run
from opslib.broker import Broker, connect
from opslib.demo import Demo, Fault, faults
from opslib.errors import Exit
from opslib.keys import Keyspace
from opslib.render import archive
from opslib.run import RunResult
from opslib.writer import lock
from tests import command_line
from tests.shop import contents
from tests.support import seed
from tests.support.waiting import until

KEYS = Keyspace()
#: Results, and what a chord that has failed leaves for a few minutes.
PASSING_RESULTS = (KEYS.result_root.encode(), b"celery-taskset-meta-")
#: What the demo's own nodes keep: how far tasks have come, and which letters they have written.
OF_WORKERS = (KEYS.checkpoint_root.encode(), b"opslib:dead:")
#: What a run of long ago has put aside, and somebody has forgotten.
FORGOTTEN = b"-queue-backlog-"
#: What a plan answers; the rest needs a person and remains.
ANSWERED = {"orphaned-unacked", "retry-loop", "stuck-active", "unreadable-message"}


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The running demo, and what a test needs of it."""

    demo: Demo
    redis: Redis
    reports: Path

    @property
    def faults(self) -> list[Fault]:
        """What is truly the matter, of all that this runbook is for."""
        return [fault for fault in self.demo.faults if fault.runbook == "stuck-tasks"]

    def subjects(self, *codes: str) -> list[str]:
        """Return what is truly the matter, by the findings' codes."""
        return sorted(fault.subject for fault in self.faults if fault.code in codes)

    def lasting(self) -> dict[bytes, object]:
        """Return all that a live system leaves alone, so that a difference would be ours."""
        mine = set(self.subjects("orphaned-unacked", "scheduled-beyond-visibility"))
        kept = {tag: raw for tag, raw in self.redis.hgetall(KEYS.unacked).items() if _id(raw) in mine}
        scores = {tag: self.redis.zscore(KEYS.unacked_index, tag) for tag in kept}
        results = tuple(KEYS.result(each).encode() for each in self.subjects("zombie-result"))
        passing = (b"celery", b"emails", b"invoices", b"invoices\x06\x163", b"reports", b"unacked", b"unacked_index")
        others = {
            key: value
            for key, value in contents(self.redis).items()
            if key not in passing and (key in results or not key.startswith(PASSING_RESULTS))
        }
        return {**others, **kept, b"scores": scores}


def _id(raw: bytes) -> str:
    return str(json.loads(raw)[0]["headers"]["id"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The demo in a folder of its own, and an archive beside it."""
    folder = tmp_path_factory.mktemp("stuck")
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("OPS_DEMO_DIR", str(folder / "demo"))
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setenv("OPS_OPERATOR", "ada")
        patch.setattr(records, "_HAND", [])  # this process may have run by hand, as somebody else
        patch.chdir(folder)
        running = demo.up(within_s=90)
        try:
            with Redis.from_url(running.url) as client:
                yield Shop(demo=running, redis=client, reports=folder / "reports")
        finally:
            demo.down()


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A dry run, and what was there before and after it."""

    result: RunResult
    before: Mapping[bytes, object]
    after: Mapping[bytes, object]
    audited: bool


@pytest.fixture(scope="module")
def looked(shop: Shop) -> Looked:
    """A run with the notebook's defaults."""
    before = shop.lasting()
    result = run.run(catalog.find("stuck-tasks"), {"target": "demo"}, target="demo")
    audited = (shop.reports / "audit.jsonl").exists()
    return Looked(result=result, before=before, after=shop.lasting(), audited=audited)


@pytest.fixture(scope="module")
def rival(shop: Shop, looked: Looked) -> command_line.Done:
    """A run that may change everything, while another one holds the broker's lock."""
    assert looked
    with lock.held(_broker(), run_id="20261121T021500Z-another-run-0a1b2c", plan_digest=""):
        words = ["run", "stuck-tasks", "--target", "demo", "--apply", "--yes"]
        before = shop.lasting()
        done = command_line.ops(*words, env=dict(os.environ), cwd=shop.reports.parent, timeout_s=90)
        assert shop.lasting() == before
    return done


@pytest.fixture(scope="module")
def applied(shop: Shop, rival: command_line.Done) -> RunResult:
    """A run that carries its plan out, after the others have looked."""
    assert rival
    parameters = {"target": "demo", "dry_run": False}
    result = run.run(catalog.find("stuck-tasks"), parameters, target="demo", reason="nothing moves")
    orphans = shop.subjects("orphaned-unacked")
    until(lambda: all(faults.state(shop.redis, each) == "SUCCESS" for each in orphans), 30, "every orphan has run")
    return result


def _broker() -> Broker:
    return connect("demo")


def pairs(rows: list[dict[str, object]]) -> list[tuple[str, str]]:
    """Return findings as code and subject."""
    return sorted((str(row["code"]), str(row["subject"])) for row in rows)


class TestLooking:
    """The dry run, which is the default."""

    def test_finds_what_is_wrong_and_nothing_else(self, shop: Shop, looked: Looked) -> None:
        """The record's findings are the demo's own list of what it broke, and its tasks have the names they have."""
        record = looked.result.record

        assert pairs(record.findings) == sorted((fault.code, fault.subject) for fault in shop.faults)
        assert {row["subject"]: row["task"] for row in record.findings} == {f.subject: f.task for f in shop.faults}
        assert (record.verdict, looked.result.exit_code) == ("critical", Exit.ATTENTION)
        assert [row["place"] for row in record.coverage if row["silent"]] == []

    def test_plans_what_can_be_done(self, shop: Shop, looked: Looked) -> None:
        """Every finding that a plan can answer has its action, each task one; nothing is planned for the others."""
        plan = looked.result.record.plan["actions"]
        wanted = {
            **dict.fromkeys(shop.subjects("orphaned-unacked"), ("restore", "reports")),
            **dict.fromkeys(shop.subjects("retry-loop", "stuck-active"), ("stop", "quarantine")),
            **dict.fromkeys(shop.subjects("unreadable-message"), ("quarantine", "quarantine")),
        }

        assert {each["subject"]: (each["kind"], each["destination"]) for each in plan} == wanted
        assert len(plan) == len(wanted)

    def test_changes_nothing(self, looked: Looked) -> None:
        """What nobody else touches is there to the byte, no key of ours was left, and each outcome says so."""
        assert looked.after == looked.before
        assert len(looked.before) >= 10
        ours = [key for key in looked.after if b"opslib:" in key and not key.startswith(OF_WORKERS)]
        assert not [key for key in ours if FORGOTTEN not in key]
        assert not looked.audited
        outcomes = looked.result.record.outcomes
        assert len(outcomes) == len(looked.result.record.plan["actions"])
        assert {(row["status"], str(row["reason"])[:8]) for row in outcomes} == {("skipped", "Dry run.")}

    def test_hides_arguments(self, looked: Looked) -> None:
        """No argument of a task is in the report, the record or the notebook: they may be anybody's data."""
        texts = [path.read_text() for path in looked.result.folder.iterdir()]

        assert len(texts) == 5
        assert not [hidden for text in texts for hidden in ("acme", "2026-01", "SKU-4412") if hidden in text]

    def test_bare_papermill_runs_the_same_notebook(self, shop: Shop, looked: Looked, tmp_path: Path) -> None:
        """Without our runner the notebook finds the same, writes no record, and ends well."""
        out = tmp_path / "out.ipynb"
        command = [sys.executable, "-m", "papermill", str(catalog.find("stuck-tasks").path), str(out)]
        options = ["-p", "target", "demo", "-p", "dry_run", "True", "--no-progress-bar", "-k", "python3"]
        archived = sorted(shop.reports.rglob("record.json"))

        done = subprocess.run([*command, *options], cwd=tmp_path, check=False, capture_output=True, text=True)

        assert done.returncode == 0, done.stderr
        shown = {cell.id: outputs(cell) for cell in nbformat.read(out, 4).cells if cell.cell_type == "code"}
        assert all(fault.subject in shown["diagnosis"] for fault in shop.faults)
        assert looked.result.record.headline in shown["record"]
        assert sorted(shop.reports.rglob("record.json")) == archived


def outputs(cell: nbformat.NotebookNode) -> str:
    """Return a cell's outputs as text."""
    assert not [output for output in cell.outputs if output.output_type == "error"]
    return "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs)


class TestSecondRun:
    """Two runs that would change one broker."""

    def test_is_refused_with_the_holder(self, shop: Shop, rival: command_line.Done) -> None:
        """The second run is exit 5, names the first one, changes nothing (seen in the fixture), and is archived."""
        assert rival.code == Exit.REFUSED
        assert "another run: 20261121T021500Z-another-run-0a1b2c by ada" in " ".join(rival.out.split())
        record = next(each for each in archive.runs(shop.reports) if each.error)
        assert record.error["type"] == "LockHeld"
        assert (record.exit_code, record.outcomes) == (Exit.REFUSED, [])
        refused = [line for line in audit(shop) if line["run_id"] == record.run_id]
        assert [line["event"] for line in refused] == ["begin", "refused"]


class TestApplying:
    """The plan carried out, and the system after it."""

    def test_every_action_is_applied(self, shop: Shop, applied: RunResult) -> None:
        """Nothing is skipped and nothing fails; each outcome says how it was done."""
        outcomes = applied.record.outcomes

        assert [row["status"] for row in outcomes] == ["applied"] * len(shop.subjects(*ANSWERED))
        assert [row["action"] for row in outcomes] == [each["id"] for each in applied.record.plan["actions"]]
        assert all(row["reason"] for row in outcomes)

    def test_what_needs_a_person_remains(self, shop: Shop, applied: RunResult) -> None:
        """Exactly the findings that no plan answers are left, and the exit code says that somebody is needed."""
        left = [(fault.code, fault.subject) for fault in shop.faults if fault.code not in ANSWERED]

        assert pairs(applied.record.findings) == sorted((fault.code, fault.subject) for fault in shop.faults)
        assert pairs(applied.record.remaining) == sorted(left)
        assert len(left) == 3
        assert applied.exit_code is Exit.ATTENTION
        assert applied.record.dry_run is False

    def test_orphans_have_run(self, shop: Shop, applied: RunResult) -> None:
        """Every report that the dead node held is done, and nothing of it is delivered twice."""
        assert applied
        orphans = shop.subjects("orphaned-unacked")

        until(lambda: not set(orphans) & faults.unacked(shop.redis).keys(), 10, "they are acknowledged")
        assert {faults.state(shop.redis, each) for each in orphans} == {"SUCCESS"}
        assert shop.redis.llen("reports") == 0

    def test_loop_and_hung_task_stay_stopped(self, shop: Shop, applied: RunResult) -> None:
        """Neither is in any queue, in unacked or on a node; the hung one is revoked, and its process is free."""
        (hung,), (loop,) = shop.subjects("stuck-active"), shop.subjects("retry-loop")

        # A retry that a node has in its timer is dropped when it is due, five seconds later at most.
        until(lambda: not find(_broker(), [hung, loop]).held, 30, "the node has dropped them")
        seen = find(_broker(), [hung, loop])

        assert seen.messages == ()
        assert not any(row.silent for row in seen.coverage)
        assert faults.state(shop.redis, hung) == "REVOKED"
        (steps,) = [row["steps"] for row in applied.record.outcomes if row["action"] == _action(applied, loop)]
        kept = _quarantined(shop, applied)  # none where it was caught between two deliveries
        assert kept in ([], [loop])
        assert f"{len(kept)} cop{'y' if kept else 'ies'} quarantined" in steps

    def test_poison_is_kept_to_the_byte(self, shop: Shop, applied: RunResult) -> None:
        """The message that kills workers is in this run's quarantine as it was; the good one behind it stays."""
        assert shop.redis.lrange(KEYS.quarantine(applied.record.run_id, "imports"), 0, -1) == [faults.POISON[1]]
        assert len(seed.waiting_ids(shop.redis, "imports")) == 1
        notes = shop.redis.hgetall(KEYS.quarantine_notes(applied.record.run_id))
        note = json.loads(notes[hashlib.sha256(faults.POISON[1]).hexdigest().encode()])
        assert (note["place"], note["queue"]) == ("waiting", "imports")

    def test_nothing_else_was_touched(self, shop: Shop, looked: Looked, applied: RunResult) -> None:
        """The late reminder, the lost video's result and the routes are as they were before."""
        assert applied
        after = shop.lasting()
        ours = {key for key in after if b"opslib:" in key}
        reminder = set(shop.subjects("scheduled-beyond-visibility"))
        gone = {key for key in looked.before if key not in after}

        assert {_id(raw) for key, raw in after.items() if isinstance(raw, bytes) and raw.startswith(b"[")} == reminder
        assert {_id(looked.before[key]) for key in gone} == set(shop.subjects("orphaned-unacked"))
        differing = {key for key in after if key not in ours and after[key] != looked.before.get(key)}
        assert differing == {b"imports", b"scores"}

    def test_healthy_work_went_on(self, shop: Shop, applied: RunResult) -> None:
        """The demo's everyday tasks are still done, by all the node's processes."""
        assert applied
        done = shop.redis.dbsize()

        until(lambda: shop.redis.dbsize() > done, 30, "another receipt is out")

    def test_lock_is_free_again(self, shop: Shop, applied: RunResult) -> None:
        """Nothing stays locked, and what the run wrote bears its id."""
        ours = {key.decode() for key in shop.redis.scan_iter(match="*opslib:*") if FORGOTTEN not in key}

        assert KEYS.lock not in ours
        assert {key for key in ours if ":run:" in key and applied.record.run_id not in key} == set()

    def test_audit_has_it_before_and_after(self, shop: Shop, applied: RunResult) -> None:
        """Begun, each batch intended and answered, ended; with operator and reason, and each line bound to the last."""
        mine = [line for line in audit(shop) if line["run_id"] == applied.record.run_id]
        events = [line["event"] for line in mine]

        assert (events[0], events[-1]) == ("begin", "end")
        assert events[1:-1] == ["intent", "result"] * (len(events) // 2 - 1)
        assert {(line["operator"], line["reason"]) for line in mine} == {("ada", "nothing moves")}
        assert mine[-1]["outcomes"] == {"applied": len(applied.record.outcomes)}

    @pytest.mark.parametrize("which", ["looked", "applied"])
    def test_report_says_what_the_record_says(self, request: pytest.FixtureRequest, which: str) -> None:
        """Verdict, headline, every finding and every action of the record are on the page, and the page is sealed."""
        made = request.getfixturevalue(which)
        result = made.result if which == "looked" else made
        record = result.record
        page = BeautifulSoup(result.report.read_text(), "html.parser")
        text = page.get_text(" ", strip=True)

        assert page.select_one(".verdict").get_text(" ", strip=True).endswith(record.verdict.upper())
        assert record.run_id in text
        for row in (*record.findings, *record.remaining, *record.plan["actions"]):
            assert str(row["subject"]) in text
        made = sum(1 for row in record.outcomes if row["status"] == "applied")
        assert ("Dry run: nothing was changed" in text) is record.dry_run
        assert (f"Applied: {made} changes made" in text) is not record.dry_run
        assert archive.verify(result.folder) == []
        assert record.report == str(result.report.relative_to(archive_root(result)))

    def test_looking_again_is_calm(self, shop: Shop, applied: RunResult) -> None:
        """A second run to apply finds what remained, plans nothing, and changes nothing."""
        before = shop.lasting()

        again = run.run(catalog.find("stuck-tasks"), {"target": "demo", "dry_run": False}, target="demo")

        assert pairs(again.record.findings) == pairs(applied.record.remaining)
        assert (again.record.plan["actions"], again.record.outcomes) == ([], [])
        assert shop.lasting() == before


def archive_root(result: RunResult) -> Path:
    """Return the archive that a run is in."""
    return result.folder.parents[3]


def audit(shop: Shop) -> list[dict[str, str]]:
    """Return the lines of the audit, each proven to follow the one before."""
    lines = (shop.reports / "audit.jsonl").read_bytes().splitlines()
    digests = ["0" * 64, *(hashlib.sha256(line).hexdigest() for line in lines)]
    told = [json.loads(line) for line in lines]
    assert [line["prev_sha256"] for line in told] == digests[:-1]
    return told


def _action(result: RunResult, subject: str) -> int:
    (number,) = [each["id"] for each in result.record.plan["actions"] if each["subject"] == subject]
    return int(number)


def _quarantined(shop: Shop, applied: RunResult) -> list[str]:
    lists = shop.redis.scan_iter(match=f"*{applied.record.run_id}:q:*")
    raws = [raw for key in lists for raw in shop.redis.lrange(key, 0, -1) if raw not in faults.POISON]
    return [re.search(rb'"id": "([^"]+)"', raw).group(1).decode() for raw in raws]
