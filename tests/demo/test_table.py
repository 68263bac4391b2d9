"""The rows of the demo's own task table stay open for the reasons that it says, and each of those is found."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from opslib import broker, demo
from opslib.broker import Broker
from opslib.collectors import reconciling
from opslib.demo import Demo, ledger, open_rows
from opslib.demo.open_rows import HOOK, SIGNAL, VIEW
from opslib.facts.rows import (
    BEGUN,
    BEYOND,
    DEAD,
    ENDED,
    FINISHED,
    HELD,
    LOST,
    NAMELESS,
    NOWHERE,
    STUCK,
    UNACKED,
    UNDER_WAY,
    UNKNOWN,
    WAITING,
    Classes,
    Reconciled,
)
from opslib.symptoms import reconcile_tasks
from opslib.symptoms.reconcile_tasks import Thresholds

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo in a folder of its own, which OPS_DEMO_DIR names."""
    folder = tmp_path_factory.mktemp("table") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPS_DEMO_DIR", str(folder))
        patch.chdir(folder.parent)
        try:
            yield demo.up(within_s=90)
        finally:
            demo.down()


@pytest.fixture(scope="module")
def connected(shop: Demo) -> Broker:
    """The demo's target, as a runbook has it."""
    assert shop.ready
    return broker.connect("demo")


@pytest.fixture(scope="module")
def seen(connected: Broker) -> Reconciled:
    """What was met, by the defaults of the runbook and with verifiers."""
    return reconciling.reconcile(connected, check_execution=True, limit=10, answer_within="5s")


@pytest.fixture(scope="module")
def classes(connected: Broker, seen: Reconciled) -> Classes:
    """What that means."""
    return reconcile_tasks.classify(seen, Thresholds.of(connected))


def asked(shop: Demo, statement: str) -> list[tuple[object, ...]]:
    """Return what the demo's database says."""
    with closing(sqlite3.connect(shop.folder / ledger.FILE)) as connection:
        return connection.execute(statement).fetchall()


def test_each_row_is_told_by_its_real_cause(classes: Classes) -> None:
    """Every class, by task and by how many rows; nothing is claimed of what nobody can know."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in classes.rows:
        found[row.kind, row.task, row.state] += row.count

    assert found == {
        (FINISHED, SIGNAL, "SUCCESS"): open_rows.DONE_SIGNALS,
        (FINISHED, HOOK, "SUCCESS"): open_rows.DONE_HOOKS,
        (FINISHED, HOOK, ""): 1,  # its result is gone, and its receiver has it
        (FINISHED, "shop.notify_supplier", "FAILURE"): 1,
        (FINISHED, "shop.send_offer", "REVOKED"): 1,
        (LOST, SIGNAL, ""): open_rows.POPPED_SIGNALS,
        (LOST, HOOK, ""): open_rows.POPPED_HOOKS + 2,  # one died with its node, one was refused by its receiver
        (LOST, "shop.transcode_video", "STARTED"): 1,
        (STUCK, "shop.sync_inventory", ""): 1,
        (STUCK, "shop.render_report", ""): 1,
        (STUCK, "shop.book_order", ""): 1,
        (UNDER_WAY, "shop.print_invoice", ""): open_rows.INVOICES,
        (UNDER_WAY, "shop.send_reminder", ""): 1,
        (UNKNOWN, SIGNAL, ""): open_rows.OLD_SIGNALS + 1,
        (UNKNOWN, HOOK, ""): open_rows.OLD_HOOKS - 2,
        (UNKNOWN, VIEW, ""): open_rows.VIEWS,
    }


def test_each_was_met_where_it_is(seen: Reconciled) -> None:
    """In every place that there is, but in quarantine; and nothing was out of sight."""
    met = {(row.sighting, row.task) for row in seen.counts}

    assert met >= {
        *((ENDED, task) for task in (SIGNAL, HOOK, "shop.notify_supplier", "shop.send_offer")),
        *((NOWHERE, task) for task in (SIGNAL, HOOK)),
        *((BEYOND, task) for task in (SIGNAL, HOOK, VIEW)),
        *((BEGUN, "shop.transcode_video"), (DEAD, "shop.book_order"), (NAMELESS, SIGNAL)),
        *((UNACKED, "shop.render_report"), (WAITING, "shop.print_invoice")),
        *((HELD, task) for task in ("shop.sync_inventory", "shop.send_reminder")),
    }
    assert {sighting for sighting, _ in met} == {ENDED, NOWHERE, BEYOND, BEGUN, DEAD, NAMELESS, UNACKED, WAITING, HELD}
    assert [row for row in seen.coverage if row.silent] == []
    assert {row.why for row in seen.counts if row.sighting == BEYOND} == {
        "Results are kept for 3 d, and it was last run before that.",
        "Its result is not stored (ignore_result).",
    }


def test_verifiers_say_what_results_cannot(classes: Classes) -> None:
    """Of the two oldest hooks, whose results are gone, one has come to its receiver and one has not."""
    oldest = sorted((each for each in classes.samples if each.row.task == HOOK), key=lambda each: each.row.last_run)

    assert [(each.kind, each.row.effect, each.row.sighting) for each in oldest[:3]] == [
        (FINISHED, True, BEYOND),
        (LOST, False, BEYOND),
        (UNKNOWN, None, BEYOND),
    ]
    assert "200 from its receiver." in oldest[0].evidence
    lost = {each.row.effect_said for each in classes.samples if each.row.task == HOOK and each.row.sighting == NOWHERE}
    assert lost == {"Nobody answered.", "It was not tried."}


def test_its_faults_are_what_is_found(shop: Demo, connected: Broker, seen: Reconciled) -> None:
    """By code and task; and the oldest rows are as old as nobody likes them to be."""
    found = reconcile_tasks.diagnose(seen, Thresholds.of(connected))
    wanted = {(fault.code, fault.subject) for fault in shop.faults if fault.runbook == "reconcile-tasks"}

    assert {(each.code, each.subject) for each in found if each.code.startswith("table-")} == wanted
    assert {each.code for each in found} - {code for code, _ in wanted} == {"queue-without-consumer"}
    longest = {row.task: row.longest_s or 0.0 for row in sorted(seen.counts, key=lambda row: row.longest_s or 0.0)}
    assert [int(longest[task] / 360) / 10 for task in (SIGNAL, HOOK)] == [906.6, 906.5]


def test_what_is_no_open_row_is_counted(shop: Demo, classes: Classes) -> None:
    """What was sent after the repair is done; what has other statuses is left alone."""
    done = next(row.count for row in classes.statuses if row.status == "DONE")

    assert 0 < done <= open_rows.CLOSED
    assert {row.status: row.count for row in classes.statuses if row.standing == "other"} == {"PENDING": 4, "PAUSED": 1}
    assert {status for (status,) in asked(shop, f"SELECT DISTINCT status FROM {ledger.TABLE}")} == {
        row.status for row in classes.statuses
    }


def test_rows_stayed_open_because_they_could_not_be_written(shop: Demo) -> None:
    """Each task that was done meanwhile has noted why; nothing hinders them any more."""
    told = asked(shop, "SELECT message, count(DISTINCT task_id) FROM task_manager_error GROUP BY message")
    missing, count = told[0]

    assert len(told) == 1
    assert "no such table" in str(missing)
    assert count == sum(
        (open_rows.DONE_SIGNALS, open_rows.DONE_HOOKS, open_rows.OLD_SIGNALS, open_rows.OLD_HOOKS, open_rows.VIEWS)
    )
    assert asked(shop, "SELECT name FROM sqlite_master WHERE type = 'trigger'") == []


def test_agent_is_busy_with_what_died(shop: Demo, connected: Broker) -> None:
    """Its row names the video, and the target knows what it is set back to."""
    (video,) = (fault.subject for fault in shop.faults if fault.code == "zombie-result")
    state = connected.target.state_rows["agent"]

    assert asked(shop, "SELECT id, status, task_id FROM agent_state") == [(state.key["id"], "busy", video)]
    assert state.idle == {"status": "idle", "task_id": None}


def test_an_app_without_a_database_keeps_no_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container, whose worker has the demo's tasks alone."""
    monkeypatch.delenv(ledger.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)

    ledger.close("4711")
    ledger.set_agent("busy")

    assert list(tmp_path.iterdir()) == []
