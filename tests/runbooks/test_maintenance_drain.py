"""maintenance-drain on real nodes: what runs comes to its end, the other goes on, and what would be lost is said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib import catalog, records, run
from opslib.errors import Exit
from opslib.run import RunResult
from tests import command_line
from tests.support import servers
from tests.support.resets import consumed, own
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

GOES, STAYS = "goes@trial", "stays@trial"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """Two nodes of one queue, and an archive beside them."""
    (tmp_path / "ops.toml").write_text('[targets.trial]\nbroker_url = "env:TRIAL"\n')
    with own(tmp_path / "server") as trial:
        for name in set(os.environ) - set(command_line.environment()):
            monkeypatch.delenv(name)
        monkeypatch.setenv("TRIAL", trial.server.url)
        monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
        monkeypatch.setattr(records, "_HAND", [])
        monkeypatch.chdir(tmp_path)
        yield trial


def drain(**parameters: object) -> RunResult:
    """Run the notebook."""
    given = {"target": "trial", "wait": "20s", **parameters}
    return run.run(catalog.find("maintenance-drain"), given, target="trial", reason="a new kernel")


def ops(*words: str) -> command_line.Done:
    """Run a command."""
    return command_line.ops(*words, env=dict(os.environ), cwd=Path.cwd(), timeout_s=90)


def test_a_node_ends_what_it_runs_and_then_itself(shop: Deployment) -> None:
    """Its queue goes on being served by the other; nothing is lost; a canary shows it."""
    goes = shop.worker(name=GOES, queues="celery", concurrency=2)
    gate = shop.send("gate")
    quick = shop.send("sleep", 2)
    shop.until_running(gate, quick)
    shop.worker(name=STAYS, queues="celery")
    broker = servers.broker(shop.server)

    looked = drain(do="drain", node="goes*", shutdown="warm")
    assert looked.record.plan["actions"]
    assert consumed(broker)[GOES] == ("celery",)
    stopped = drain(do="drain", node="goes*", shutdown="warm", wait="1s", dry_run=False)

    (failed,) = [row for row in stopped.record.outcomes if row["status"] == "failed"]
    assert gate in failed["reason"]
    assert "would be lost if their node ended now" in failed["reason"]
    assert consumed(broker) == {GOES: (), STAYS: ("celery",)}
    assert goes.child.process.poll() is None
    other = shop.send("ok")
    shop.until_done(other)

    shop.redis.set("open", 1)
    done = ops("resume", stopped.record.run_id)

    assert done.code in {Exit.DONE, Exit.ATTENTION}, done.err
    until(lambda: goes.child.process.poll() is not None, DEADLINE_S, "the node has ended")
    shop.until_done(gate, quick)
    assert shop.ran(gate) == shop.ran(quick) == 1
    canary = drain(do="canary", dry_run=False)
    assert [row["status"] for row in canary.record.outcomes] == ["applied"]
    assert f"ran on {STAYS}" in canary.record.outcomes[0]["reason"]


def test_one_that_is_called_off_is_undone(shop: Deployment) -> None:
    """The node consumes again; while it drained, its reserved tasks ran and its progress was kept."""
    shop.worker(name=GOES, queues="celery,mail", concurrency=1, conf={"worker_prefetch_multiplier": 4})
    tasks = [shop.send("sleep", 4) for _ in range(3)]
    shop.until_running(tasks[0])
    broker = servers.broker(shop.server)

    done = drain(do="drain", dry_run=False)

    assert {row["status"] for row in done.record.outcomes} == {"applied"}
    waited = next(row for row in done.record.outcomes if row["steps"])
    assert all(" after " in step for step in waited["steps"])
    assert consumed(broker) == {GOES: ()}
    left = {each["headers"]["id"] for each in map(json.loads, shop.redis.lrange("celery", 0, -1))}
    shop.until_done(*(set(tasks) - left))
    undo = ops("undo", done.record.run_id, "--apply", "--yes")
    assert undo.code in {Exit.DONE, Exit.ATTENTION}, undo.err
    assert consumed(broker) == {GOES: ("celery", "mail")}
    shop.until_done(*tasks)
