"""find-task on the demo, which is really broken: it finds each task where it is, and changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, demo, records, run
from opslib.demo import Demo
from opslib.errors import Exit
from opslib.keys import Keyspace
from opslib.run import RunResult
from opslib.symptoms import find_task
from tests import command_line
from tests.support.seed import KEYS, envelope

#: What a run of long ago has put aside, and somebody has forgotten.
FORGOTTEN = b"-queue-backlog-"
#: What the demo's own nodes keep: how far tasks have come, and which letters they have written.
OF_WORKERS = (KEYS.checkpoint_root.encode(), b"opslib:dead:")

KEYS = Keyspace()
HOSTILE = "<script>alert(1)</script>/../../etc/passwd"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The running demo, and what a test needs of it."""

    demo: Demo
    redis: Redis

    def subject(self, code: str) -> str:
        """Return a task that is truly in that trouble."""
        return next(fault.subject for fault in self.demo.faults if fault.code == code)

    def ours(self) -> dict[bytes, bytes | None]:
        """Return what only a run of this tool would make."""
        ours = (key for key in self.redis.scan_iter(match="opslib:*") if not key.startswith(OF_WORKERS))
        return {key: self.redis.dump(key) for key in ours if FORGOTTEN not in key}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The demo in a folder of its own, and an archive beside it."""
    folder = tmp_path_factory.mktemp("find")
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("OPS_DEMO_DIR", str(folder / "demo"))
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        running = demo.up(within_s=90)
        try:
            with Redis.from_url(running.url) as client:
                yield Shop(demo=running, redis=client)
        finally:
            demo.down()


def look(task_id: str, **parameters: object) -> RunResult:
    """Run it on the demo."""
    given: dict[str, Any] = {"target": "demo", "task_id": task_id, "settle": "1s", **parameters}
    return run.run(catalog.find("find-task"), given, target="demo")


def shown(result: RunResult, cell: str) -> str:
    """Return what a cell of an executed notebook has displayed, as a reader sees it."""
    assert result.report is not None
    book = nbformat.read(result.report.parent / "runbook.ipynb", 4)
    (found,) = [each for each in book.cells if each.id == cell]
    pages = [output.get("data", {}).get("text/html", "") for output in found.outputs]
    texts = [page if isinstance(page, str) else "".join(page) for page in pages]
    return " ".join(" ".join(BeautifulSoup(text, "html.parser").get_text(" ").split()) for text in texts)


@pytest.fixture(scope="module")
def found(shop: Shop) -> tuple[RunResult, dict[bytes, bytes | None], dict[bytes, bytes | None]]:
    """One run for a task of each trouble and one that never was, and what of ours was there before and after it."""
    codes = ("orphaned-unacked", "zombie-result", "stuck-active", "retry-loop", "scheduled-beyond-visibility")
    before = shop.ours()
    result = look(", ".join([*map(shop.subject, codes), "no-such-task"]))
    return result, before, shop.ours()


class TestFound:
    """Tasks of the demo, named by their ids."""

    def test_the_record_has_what_is_wrong_with_each(self, shop: Shop, found: tuple[RunResult, object, object]) -> None:
        """The truth of the demo, and the task that is nowhere; nothing of the tasks that nobody asked for."""
        record = found[0].record
        codes = {str(row["code"]): row["subject"] for row in record.findings}

        assert codes.pop("task-not-found") == "no-such-task"
        assert codes == {code: shop.subject(code) for code in codes}
        assert len(record.findings) == 6
        assert (record.verdict, record.exit_code, record.runbook) == ("critical", Exit.ATTENTION, "find-task")
        assert record.remaining == record.findings

    def test_every_place_is_in_the_coverage(self, found: tuple[RunResult, object, object]) -> None:
        """What is kept aside too."""
        coverage = {str(row["place"]): row["silent"] for row in found[0].record.coverage}

        assert set(coverage) >= {"waiting", "unacked", "workers", "results", "dead letters", "quarantine"}
        assert not any(coverage.values())

    def test_each_task_has_its_sentence_and_its_step(self, found: tuple[RunResult, object, object]) -> None:
        """As the demo broke it."""
        said = shown(found[0], "diagnosis")

        for part in (
            "to a node that is gone; nothing will run it before ",
            "no node holds it: it will never finish. Nothing will finish it.",
            ", which is longer than it may run. It holds up a slot",
            "; it will be delivered again before that.",
            "Found nowhere: not waiting",
        ):
            assert part in said, part
        assert re.search(r"Retried \d+ times; the next attempt is due (in .* )?on crowd@shop. Nothing but a stop", said)
        assert "no-such-task anywhere – not there" in shown(found[0], "facts")
        assert "PENDING" not in said

    def test_nothing_is_changed(self, found: tuple[RunResult, object, object]) -> None:
        """No lock, no journal, no quarantine, and no plan."""
        result, before, after = found

        assert before == after == {}
        assert (result.record.plan, result.record.outcomes) == ({}, [])

    def test_the_report_is_whole(self, found: tuple[RunResult, object, object]) -> None:
        """And has the sentences in it."""
        assert found[0].report is not None
        html = found[0].report.read_text("utf-8")

        assert "How it stands" in html
        assert "Where they are" in html


def test_what_was_put_aside_is_found(shop: Shop) -> None:
    """A run that stopped a task names itself; a letter of the dead is read whoever wrote it."""
    space = KEYS.quarantine("20261121T021500Z-stop-task-7f3a9c", "celery")
    shop.redis.lpush(space, json.dumps(envelope("shop.charge_card", task_id="aside")))
    shop.redis.lpush("celery.dead", json.dumps({"task_id": "dead", "task_name": "shop.x", "exception": "ValueError"}))
    try:
        result = look("aside dead")
    finally:
        shop.redis.delete(space, "celery.dead")

    assert [row["subject"] for row in result.record.findings] == ["dead"]
    assert (result.record.verdict, result.exit_code) == ("attention", Exit.ATTENTION)
    said = shown(result, "facts")
    assert "by run 20261121T021500Z-stop-task-7f3a9c" in said
    assert "in celery.dead: ValueError" in said


def test_without_a_name_it_takes_the_longest_unacknowledged(shop: Shop) -> None:
    """On the demo these are reports that died with their worker, and what the living one keeps for later."""
    tags = shop.redis.zrange(KEYS.unacked_index, 0, 9)
    ids = [json.loads(raw)[0]["headers"]["id"] for raw in shop.redis.hmget(KEYS.unacked, tags) if raw]
    orphans = {fault.subject for fault in shop.demo.faults if fault.code == "orphaned-unacked"}

    result = look("")

    said = shown(result, "facts")
    assert [each for each in ids if each in said] == ids[: find_task.OLDEST]
    found = {row["subject"] for row in result.record.findings if row["code"] == "orphaned-unacked"}
    assert found == orphans & set(ids[: find_task.OLDEST])


def test_a_hostile_id_is_only_an_id(shop: Shop) -> None:
    """It is found nowhere, it is no markup in the report, and no path on the disk."""
    assert shop
    result = look(HOSTILE)

    assert [(row["code"], row["subject"]) for row in result.record.findings] == [("task-not-found", HOSTILE)]
    assert result.report is not None
    assert "<script>alert" not in result.report.read_text("utf-8")


def test_the_answer_is_unknown_while_a_node_is_silent(shop: Shop) -> None:
    """It may hold the task; the record says that it did not answer, and nothing is claimed."""
    (pid,) = [pid for name, pid in shop.demo.processes.items() if name.startswith("crowd")]
    os.kill(pid, signal.SIGSTOP)
    try:
        result = look(f"{shop.subject('orphaned-unacked')},no-such-task", answer_within="0.3s", settle="0.1s")
    finally:
        os.kill(pid, signal.SIGCONT)

    severities = {str(row["code"]): str(row["severity"]) for row in result.record.findings}
    assert severities == dict.fromkeys(("worker-silent", "orphaned-unacked", "task-not-found"), "unknown")
    assert (result.record.verdict, result.exit_code) == ("unknown", Exit.CANNOT_SEE)
    assert "not seen" in shown(result, "facts")
