"""Rows are set only if they are as planned; whatever cuts a run off, none is set twice or lost; and all comes back."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa

from opslib import database as databases
from opslib import folders, records
from opslib import plan as plans
from opslib.broker import connect
from opslib.collectors import circulation
from opslib.errors import Refused
from opslib.plan import Action, Copy, Kind, RowChange
from opslib.rewrite import fresh
from opslib.selection import RowSelection
from opslib.settings import Target
from opslib.task_tables import PRESETS, StateRow, TaskTable, resolved
from opslib.writer import apply, points, resume, row_batches, undo, updated
from tests.support import tables
from tests.support.plans import audit, planned, told, undone
from tests.support.seed import seed_waiting, waiting_ids
from tests.support.stored import store
from tests.support.tables import task_id, task_manager

SECRET = "card-4711-secret"
STATE = StateRow(table="agent", key={"id": 1}, idle={"status": "idle", "task": None, "beats": 0})
TABLES = {"tasks": resolved("tasks", TaskTable(preset="task-manager"), "trial")}
_FORKS = multiprocessing.get_context("forkserver")


class Cut(BaseException):
    """Raised where a run is cut off."""


@pytest.fixture
def site(broker, server, url):
    """The shared server, and an application's database beside it."""
    assert broker
    return _site(server, url)


@pytest.fixture
def on_file(broker, server, sqlite_url):
    """The same with a file of SQLite's alone."""
    assert broker
    return _site(server, sqlite_url)


def _site(server, url, **values):
    given = {"task_tables": TABLES, "state_rows": {"agent": STATE}, **values}
    return connect(Target(name="trial", broker_url=server.url, database_url=_plain(url), **given))


def _plain(url):
    return url.replace("postgresql+psycopg", "postgresql")


def fill(redis, url, rows, *, ended=None, state="SUCCESS"):
    """Make the application's table with open rows, and store results for those that have ended."""
    tables.make(url)
    tables.fill(url, rows, secret=SECRET)
    for n in range(1, rows + 1) if ended is None else ended:
        store(redis, task_id(n), state)


def look(url):
    """Return every row: status, last run and arguments, by id."""
    c = task_manager.c
    with tables.connected(url) as connection:
        found = connection.execute(sa.select(c.id, c.status, c.last_run, c.arguments, c.attempts).order_by(c.id))
        return {row.id: tuple(row)[1:] for row in found}


def statuses(url):
    """Return the statuses of all rows, in order."""
    return [row[0] for row in look(url).values()]


def change(url, n, **values):
    """Have the application write a row."""
    with tables.connected(url) as connection:
        connection.execute(sa.update(task_manager).where(task_manager.c.id == n).values(**values))


def settling(count, **only):
    """Return what sets all rows of tasks that have succeeded."""
    meant = RowSelection(**{"table": "tasks", "state": "SUCCESS", "becomes": "DONE", **only})
    return Action(
        kind=Kind.UPDATE,
        subject="tasks",
        source="task_tables.tasks",
        destination=meant.becomes,
        copies=(Copy(place="rows", key="tasks", count=count),),
        rows=meant,
    )


def single(url, n, becomes="DONE", **was):
    """Return what sets one row, as it is now but for what is said."""
    status, last_run, *_ = look(url)[n]
    seen = {"status": status, "last_run": last_run.isoformat(), **was}
    return Action(
        kind=Kind.UPDATE,
        subject=str(n),
        source="task_tables.tasks",
        destination=becomes,
        copies=(Copy(place="row", key="tasks", delivery_tag=str(n)),),
        row=RowChange(
            table="task_tables.tasks",
            key=json.dumps({"id": str(n)}),
            was=json.dumps(seen),
            becomes=json.dumps({"status": becomes}),
        ),
    )


def agent(was, **row):
    """Return what sets the agent's state back."""
    given = {"table": "state_rows.agent", "key": json.dumps(STATE.key), "becomes": json.dumps(STATE.idle)}
    return Action(
        kind=Kind.UPDATE,
        subject="agent",
        source="state_rows.agent",
        destination="idle",
        row=RowChange(**{**given, "was": json.dumps(was), **row}),
    )


def make_agent(url, task):
    """Make the application's own row of state, of every type that such a row has."""
    with tables.connected(url) as connection:
        kind = "JSONB" if connection.dialect.name == "postgresql" else "JSON"
        exact = "(6)" if connection.dialect.name == "mysql" else ""  # it keeps whole seconds, unless it is told
        connection.exec_driver_sql(
            "CREATE TABLE agent (id INTEGER PRIMARY KEY, status VARCHAR(20), task TEXT, beats NUMERIC(12, 3), "
            f"at TIMESTAMP{exact}, notes {kind})"
        )
        values = {"task": task, "notes": json.dumps({"order": [1, 2]})}
        notes = "CAST(:notes AS JSONB)" if kind == "JSONB" else ":notes"
        statement = f"INSERT INTO agent VALUES (1, 'busy', :task, 4711.125, '2026-11-21 03:00:00.123456', {notes})"
        connection.execute(sa.text(statement), values)


def agents(url):
    """Return the rows of state."""
    with tables.connected(url) as connection:
        return [tuple(map(str, row)) for row in connection.execute(sa.text("SELECT * FROM agent"))]


def run(site, *actions):
    """Plan and carry out."""
    return apply(planned(site, *actions), site, dry_run=False)


@contextmanager
def at(monkeypatch, deed):
    """Have something done at each place that a run passes, for the time of a `with` block."""
    with monkeypatch.context() as patch:
        patch.setattr(points, "watchers", [deed])
        yield


class TestCompareAndSet:
    """A row is set if it is as it was planned."""

    def test_rows_of_tasks_that_have_ended_are_set_and_nothing_else_of_them(self, site, redis, url):
        """Those without a result, with another end, younger ones and those of other tasks stay."""
        fill(redis, url, 30, ended=range(1, 11))
        store(redis, task_id(11), "FAILURE")
        store(redis, task_id(12), "STARTED")
        change(url, 2, task_name="other")
        change(url, 3, last_run=tables.at(60))
        change(url, 4, status="PAUSED")
        change(url, 5, task_id=None)
        before = look(url)

        (outcome,) = run(site, settling(10, task="orders.tasks.ship", last_run_by=tables.at(3600).timestamp()))

        assert told([outcome]) == ["applied"]
        assert outcome.reason == "6 rows were set to DONE."
        done = {1, 6, 7, 8, 9, 10}
        assert look(url) == {n: ("DONE" if n in done else row[0], *row[1:]) for n, row in before.items()}

    def test_a_task_that_was_sent_again_stays_whatever_its_old_result_says(self, site, redis, url):
        """Its message waits; the result is of before."""
        fill(redis, url, 3, ended=range(1, 4))
        seed_waiting(redis, task_id=task_id(2))

        (outcome,) = run(site, settling(3))

        assert outcome.reason == "2 rows were set to DONE. 1 can still be run, and stay."
        assert {n: row[0] for n, row in look(url).items()} == {1: "DONE", 2: "SCHEDULED", 3: "DONE"}

    def test_a_row_that_was_given_another_task_meanwhile_stays(self, site, redis, url, monkeypatch):
        """The end of the first attempt is not that of the second."""
        fill(redis, url, 2, ended=range(1, 3))
        monkeypatch.setattr(
            updated.points, "passed", lambda name: name == "after-vault" and change(url, 1, task_id="new")
        )

        (outcome,) = run(site, settling(2))

        assert outcome.reason == "1 row was set to DONE. 1 were changed meanwhile, and stay."
        assert look(url)[1][0] == "SCHEDULED"

    def test_a_single_row(self, site, redis, url):
        """Its key as text, its instant however a driver spells it."""
        fill(redis, url, 3)
        before = look(url)

        outcomes = run(site, single(url, 2), single(url, 3, becomes="ERROR"))

        assert told(outcomes) == ["applied", "applied"]
        assert look(url) == {1: before[1], 2: ("DONE", *before[2][1:]), 3: ("ERROR", *before[3][1:])}

    def test_what_the_application_changed_meanwhile_stays(self, site, redis, url):
        """Another status, another run, a row that is gone: each is told."""
        fill(redis, url, 4)
        actions = [single(url, n) for n in range(1, 5)]
        change(url, 1, status="PAUSED")
        change(url, 2, last_run=tables.at(1))
        with tables.connected(url) as connection:
            connection.execute(sa.delete(task_manager).where(task_manager.c.id == 3))
        before = look(url)

        outcomes = run(site, *actions)

        assert told(outcomes) == ["skipped", "skipped", "skipped", "applied"]
        assert [o.reason for o in outcomes[:3]] == [
            "status: no longer as planned. Look at it again.",
            "last_run: no longer as planned. Look at it again.",
            "The row is gone.",
        ]
        assert {n: row for n, row in look(url).items() if n != 4} == {n: before[n] for n in (1, 2)}

    def test_what_it_changes_after_it_was_written_down_stays_too(self, site, redis, url, monkeypatch):
        """The vault has it, and the transaction finds another row there."""
        fill(redis, url, 6)
        plan = planned(site, settling(6))

        def changes(name):
            if name == "after-vault":
                change(url, 1, status="ERROR")
                change(url, 2, last_run=tables.at(1))
                with tables.connected(url) as connection:
                    connection.execute(sa.delete(task_manager).where(task_manager.c.id == 3))

        with at(monkeypatch, changes):
            (outcome,) = apply(plan, site, dry_run=False)

        assert statuses(url) == ["ERROR", "SCHEDULED", "DONE", "DONE", "DONE"]
        assert outcome.reason == "3 rows were set to DONE. 2 were changed meanwhile, and stay. 1 are gone."
        assert told(undone(site, records.context().run_id)) == ["applied"]
        assert statuses(url) == ["ERROR", "SCHEDULED", "SCHEDULED", "SCHEDULED", "SCHEDULED"]

    def test_more_than_were_planned_are_left_but_for_a_margin(self, site, redis, url):
        """What turned up in between was shown to nobody."""
        fill(redis, url, 40)

        (outcome,) = run(site, settling(20))

        assert statuses(url).count("DONE") == 34
        assert "6 more fit than were planned, and stay" in outcome.reason

    def test_without_the_results_nothing_is_set(self, server, broker, redis, sqlite_url):
        """What was not seen proves nothing."""
        assert broker
        fill(redis, sqlite_url, 3)
        site = _site(server, sqlite_url, result_backend="db+postgresql://somewhere/else")

        (outcome,) = run(site, settling(3))

        assert told([outcome]) == ["skipped"]
        assert "not wholly seen" in outcome.reason
        assert set(statuses(sqlite_url)) == {"SCHEDULED"}

    def test_results_in_a_table_of_results_are_looked_for_there(self, server, broker, redis, url):
        """As Celery's own database backend keeps them; and its own rows are never meant."""
        assert broker
        fill(redis, url, 3, ended=())
        with tables.connected(url) as connection:
            connection.exec_driver_sql(
                "CREATE TABLE celery_taskmeta (id INTEGER PRIMARY KEY, task_id VARCHAR(155) UNIQUE, "
                "status VARCHAR(50), date_done TIMESTAMP, name VARCHAR(155))"
            )
            for n, state in ((1, "SUCCESS"), (2, "STARTED")):
                connection.exec_driver_sql(
                    f"INSERT INTO celery_taskmeta (id, task_id, status) VALUES ({n}, '{task_id(n)}', '{state}')"
                )
        both = {**TABLES, "results": PRESETS["celery"]}
        site = _site(server, url, task_tables=both, result_backend="db+sqlite:///elsewhere")

        assert told(run(site, settling(3))) == ["applied"]
        assert statuses(url) == ["DONE", "SCHEDULED", "SCHEDULED"]
        with pytest.raises(Refused, match="results holds the results themselves"):
            run(site, settling(3, table="results", becomes="SUCCESS"))

    def test_a_row_of_state_is_set_as_its_settings_say(self, site, url):
        """Numbers, nothing and text; undo gives back every digit. What it held is in no receipt."""
        make_agent(url, SECRET)
        before = agents(url)

        outcomes = run(site, agent({"status": "busy", "at": "2026-11-21T03:00:00.123Z"}))

        assert told(outcomes) == ["applied"]
        assert agents(url)[0][1:4] in {("idle", "None", "0.000"), ("idle", "None", "0")}
        assert told(undone(site, records.context().run_id)) == ["applied"]
        assert agents(url) == before

    def test_a_key_that_fits_two_rows_changes_neither(self, server, broker, url):
        """Which is meant, nobody knows."""
        assert broker
        make_agent(url, "a")
        with tables.connected(url) as connection:
            connection.execute(sa.text("INSERT INTO agent (id, status) VALUES (2, 'busy')"))
        row = StateRow(table="agent", key={"status": "busy"}, idle={"beats": 0})
        site = _site(server, url, state_rows={"agent": row})
        before = agents(url)

        (outcome,) = run(site, agent({}, key='{"status": "busy"}', becomes='{"beats": 0}'))

        assert "fits more than one row" in outcome.reason
        assert agents(url) == before


class TestKeptIn:
    """What rows hold is nobody's business."""

    def test_neither_receipts_nor_audit_hold_what_a_row_held(self, site, redis, url, archive):
        """Status, ids and counts; the rest is in the vault, which is the operator's alone."""
        make_agent(url, SECRET)
        fill(redis, url, 3)

        run(site, agent({"status": "busy", "task": SECRET}), settling(3))

        kept = (
            b"".join(json.dumps(b.receipt).encode() for b in _journal(site).batches)
            + json.dumps(audit(archive)).encode()
        )
        assert SECRET.encode() not in kept
        assert {path.stat().st_mode & 0o777 for path in archive.rglob("vault*")} == {0o600}


# Cut off


ROWS = 9
#: A run is cut off at every place that it passes, or at one in so many.
STEPS = [9, pytest.param(1, marks=pytest.mark.slow)]
AFTER = ["DONE"] * (ROWS - 1) + ["ERROR"]


@pytest.fixture
def small(monkeypatch):
    """Batches of four rows, so that there are three."""
    monkeypatch.setattr(updated, "_PAGE", 4)


def _actions(url):
    """Return a change of each sort: rows by a filter, one row, and the row of state."""
    return settling(ROWS - 1, task="orders.tasks.ship"), single(url, 9, becomes="ERROR"), agent({"status": "busy"})


def _begin(redis, url):
    """Make the tables anew."""
    redis.flushdb()
    with tables.connected(url) as connection:
        for name in ("agent", tables.TASK_MANAGER):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
    fill(redis, url, ROWS, ended=range(1, ROWS))
    make_agent(url, SECRET)


def _passes(site, monkeypatch, plan):
    """Return the places that a run passes, in order."""
    seen = []
    with at(monkeypatch, seen.append):
        apply(plan, site, dry_run=False)
    return seen


def _cut_off(site, monkeypatch, plan, nth):
    """Carry a plan out up to the place with that number, as a run of its own; return its id."""
    count = 0

    def deed(_):
        nonlocal count
        count += 1
        if count == nth:
            raise Cut

    monkeypatch.setattr(records, "_HAND", [])
    with at(monkeypatch, deed), pytest.raises(Cut):
        apply(plan, site, dry_run=False)
    run_id = records.context().run_id
    monkeypatch.setattr(records, "_HAND", [])
    return run_id


def _saved(archive, run_id):
    path = folders.folder(archive, run_id) / folders.PLAN
    return plans.read(path.read_bytes()) if path.exists() else None


@pytest.mark.usefixtures("small")
class TestCutOff:
    """Wherever it was."""

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("undoing", [False, True], ids=["resumed", "undone"])
    def test_a_run_that_is_cut_off_is_brought_to_its_end_or_back(
        self, on_file, redis, sqlite_url, archive, monkeypatch, undoing, step
    ):
        """At every place that it passes: no row is set twice, or lost, and each comes back."""
        site = on_file
        _begin(redis, sqlite_url)
        places = _passes(site, monkeypatch, planned(site, *_actions(sqlite_url)))
        state_after = agents(sqlite_url)
        assert statuses(sqlite_url) == AFTER

        for nth in range(places.index("after-lock") + 1 + undoing, len(places) + 1, step):
            _begin(redis, sqlite_url)
            before, whole_state = look(sqlite_url), agents(sqlite_url)
            after = {n: (status, *before[n][1:]) for n, status in enumerate(AFTER, 1)}
            plan = planned(site, *_actions(sqlite_url))
            run_id = _cut_off(site, monkeypatch, plan, nth)
            changed = look(sqlite_url) != before or agents(sqlite_url) != whole_state
            where = f"{nth}: {places[nth - 1]}"
            if undoing:
                if _journal(site, run_id).batches:
                    assert set(told(undone(site, run_id))) <= {"applied"}, where
                else:
                    assert not changed, where
                assert (look(sqlite_url), agents(sqlite_url)) == (before, whole_state), where
            else:
                left = resume.remaining(_saved(archive, run_id), site, run_id)
                outcomes = apply(left, site, dry_run=False)
                assert set(told(outcomes)) <= {"applied"}, where
                assert (look(sqlite_url), agents(sqlite_url)) == (after, state_after), where
                assert not resume.remaining(_saved(archive, run_id), site, run_id), where

    def test_an_undo_that_is_cut_off_is_gone_on_with(self, on_file, redis, sqlite_url, monkeypatch):
        """By another one; and what the application changed in between is its own."""
        site = on_file
        _begin(redis, sqlite_url)
        state = agents(sqlite_url)
        apply(planned(site, *_actions(sqlite_url)), site, dry_run=False)
        places = _passes(site, monkeypatch, undo.plan(site, records.context().run_id))

        for nth in range(places.index("after-lock") + 1, len(places) + 1, 4):
            _begin(redis, sqlite_url)
            before = look(sqlite_url)
            monkeypatch.setattr(records, "_HAND", [])
            apply(planned(site, *_actions(sqlite_url)), site, dry_run=False)
            run_id = records.context().run_id
            _cut_off(site, monkeypatch, undo.plan(site, run_id), nth)
            change(sqlite_url, 5, attempts=7)
            change(sqlite_url, 6, status="REVERSED")
            outcomes = undone(site, run_id)
            where = f"{nth}: {places[nth - 1]}"
            assert set(told(outcomes)) <= {"applied", "skipped"}, where
            expected = {**before, 5: (*before[5][:3], 7), 6: ("REVERSED", *before[6][1:])}
            assert (look(sqlite_url), agents(sqlite_url)) == (expected, state), where
            assert not undo.plan(site, run_id), where

    def test_ctrl_c_waits_until_it_is_known_what_became_of_the_rows(self, on_file, redis, sqlite_url, monkeypatch):
        """In the middle of a transaction: that one is committed and told, and no other is begun."""
        _begin(redis, sqlite_url)

        def interrupt(name):
            if name == "in-rows":
                os.kill(os.getpid(), signal.SIGINT)

        with at(monkeypatch, interrupt), pytest.raises(KeyboardInterrupt):
            run(on_file, settling(ROWS - 1))

        journal = _journal(on_file)
        assert statuses(sqlite_url).count("DONE") == 4
        assert list(row_batches.told_of(journal).values()) == ["AAAA"]

    @pytest.mark.parametrize("where", ["in-rows", "after-rows"])
    def test_killed_on_either_side_of_the_commit(
        self, server, broker, redis, postgres_url, archive, monkeypatch, where
    ):
        """By the kernel, in the middle: the server has it or has it not, and the run finds out which."""
        assert broker
        monkeypatch.setattr(records, "_HAND", [])
        site = _site(server, postgres_url)
        _begin(redis, postgres_url)
        before = look(postgres_url)
        plan = planned(site, *_actions(postgres_url))
        order = (server.url, _plain(postgres_url), str(archive), plans.write(plan), where)
        process = _FORKS.Process(target=_carry_out, args=order, daemon=True)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        run_id = max(path.name for path in archive.glob("[0-9]*/*/*/*"))
        assert [row[0] for row in look(postgres_url).values()].count("SCHEDULED") < ROWS
        redis.delete(site.keys.lock)

        assert set(told(apply(resume.remaining(_saved(archive, run_id), site, run_id), site, dry_run=False))) == {
            "applied"
        }
        assert "SCHEDULED" not in statuses(postgres_url)
        assert set(told(undone(site, run_id))) == {"applied"}
        assert look(postgres_url) == before


def _carry_out(url, database_url, archive, plan, where):
    """Carry a plan out in a process of its own, and be killed at the second passing of a place."""
    os.environ["OPS_REPORTS"] = archive
    records._HAND.clear()
    updated._PAGE = 4
    passed = []

    def deed(name):
        passed.append(name)
        if passed.count(where) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    points.watchers.append(deed)
    given = {"task_tables": TABLES, "state_rows": {"agent": STATE}}
    site = connect(Target(name="trial", broker_url=url, database_url=database_url, **given))
    apply(plans.read(plan), site, dry_run=False)


class TestBadCases:
    """The database has other work, other users and bad days."""

    @pytest.mark.parametrize("kind", ["postgres", "mariadb"])
    def test_a_row_that_is_locked_is_left_and_told(self, server, broker, redis, request, kind):
        """Without waiting for it; the others are set."""
        assert broker
        url = request.getfixturevalue(f"{kind}_url")
        site = _site(server, url)
        fill(redis, url, 5)
        actions = [single(url, 2), settling(5)]

        with tables.connected(url) as other:
            other.execute(sa.select(task_manager.c.id).where(task_manager.c.id == 2).with_for_update())
            one, many = run(site, *actions)

        assert (one.status, one.reason) == ("skipped", "Another transaction holds a lock on it; try again in a moment.")
        assert many.reason == "4 rows were set to DONE. 1 are locked by another transaction, and stay: run it again."
        assert statuses(url) == ["DONE", "SCHEDULED", "DONE", "DONE", "DONE"]

    def test_a_file_that_is_locked_is_waited_for_a_little(self, server, broker, redis, sqlite_url, monkeypatch):
        """SQLite locks all of it."""
        assert broker
        monkeypatch.setattr(databases, "LOCK_TIMEOUT_S", 0.2)
        site = _site(server, sqlite_url)
        fill(redis, sqlite_url, 5)
        plan = planned(site, settling(5))

        with tables.connected(sqlite_url) as other:
            other.exec_driver_sql("UPDATE task_manager_taskmanager SET attempts = 9 WHERE id = 1")
            (outcome,) = apply(plan, site, dry_run=False)

        assert (outcome.status, "holds a lock" in outcome.reason) == ("failed", True)
        assert set(statuses(sqlite_url)) == {"SCHEDULED"}

    def test_who_may_only_read_is_refused_before_anything_is_written_down(
        self, server, broker, redis, postgres, postgres_url, archive
    ):
        """Nothing is changed, and nothing is there to undo."""
        assert broker
        site = _site(server, postgres.as_reader(postgres_url))
        fill(redis, postgres_url, 5)

        outcomes = run(site, settling(5), single(postgres_url, 2))

        assert told(outcomes) == ["failed", "failed"]
        assert all("does not permit" in outcome.reason for outcome in outcomes)
        assert set(statuses(postgres_url)) == {"SCHEDULED"}
        assert not list(archive.rglob("vault*"))
        assert not _journal(site).batches

    def test_the_rights_that_the_safety_page_names_are_enough(self, server, broker, redis, postgres, postgres_url):
        """To read the table, and to set the one column."""
        assert broker
        fill(redis, postgres_url, 5)
        table = tables.TASK_MANAGER
        with tables.connected(postgres_url) as connection:
            connection.exec_driver_sql(f"GRANT UPDATE (status) ON {table} TO reader")
        site = _site(server, postgres.as_reader(postgres_url))

        assert told(run(site, settling(5))) == ["applied"]
        assert told(undone(site, records.context().run_id)) == ["applied"]
        assert set(statuses(postgres_url)) == {"SCHEDULED"}

    def test_a_connection_that_is_lost_half_way_ends_the_run_and_loses_nothing(
        self, server, broker, redis, postgres, postgres_url, archive, monkeypatch
    ):
        """What was committed is known, what was not is done by the next run, and all of it comes back."""
        assert broker
        monkeypatch.setattr(updated, "_PAGE", 10)
        site = _site(server, postgres_url)
        fill(redis, postgres_url, 40)
        before = look(postgres_url)
        passed = []

        def lose(name):
            passed.append(name)
            if name == "in-rows" and passed.count(name) == 3:
                with postgres.connect() as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                        [databases.NAME],
                    )

        with at(monkeypatch, lose):
            (outcome,) = run(site, settling(40))

        assert outcome.status == "failed"
        assert outcome.reason.startswith("20 rows were set to DONE.")
        assert statuses(postgres_url).count("DONE") == 20
        run_id = records.context().run_id
        (again,) = apply(resume.remaining(_saved(archive, run_id), site, run_id), site, dry_run=False)
        assert again.reason == "20 rows were set to DONE. 20 had been set before the run was interrupted."
        assert set(statuses(postgres_url)) == {"DONE"}
        assert set(told(undone(site, run_id))) == {"applied"}
        assert look(postgres_url) == before

    def test_a_server_that_is_gone_while_nobody_knows_what_was_committed(
        self, server, broker, redis, postgres_url, archive, monkeypatch
    ):
        """The journal is left open, and the next run asks the rows."""
        assert broker
        site = _site(server, postgres_url)
        fill(redis, postgres_url, 5)
        real = databases.Database.changing
        calls = []

        @contextmanager
        def gone(self):
            calls.append(1)
            if len(calls) > 2:
                raise databases.DatabaseUnreachable("trial: it is gone.")
            with real(self) as connection:
                yield connection
            if len(calls) == 2:
                raise databases.DatabaseUnreachable("trial: the answer to COMMIT was lost.")

        with monkeypatch.context() as patch:
            patch.setattr(databases.Database, "changing", gone)
            (outcome,) = run(site, settling(5))

        assert outcome.status == "failed"
        assert "`ops resume` looks again" in outcome.reason
        run_id = records.context().run_id
        (again,) = apply(resume.remaining(_saved(archive, run_id), site, run_id), site, dry_run=False)
        assert again.reason == "5 had been set before the run was interrupted."
        assert set(told(undone(site, run_id))) == {"applied"}
        assert set(statuses(postgres_url)) == {"SCHEDULED"}

    def test_what_was_written_over_at_once_is_not_called_done(self, server, broker, redis, sqlite_url, monkeypatch):
        """The rows are looked at again before the run ends."""
        assert broker
        site = _site(server, sqlite_url)
        fill(redis, sqlite_url, 3)

        def changes(name):
            if name == "before-verify":
                change(sqlite_url, 2, status="PAUSED")

        with at(monkeypatch, changes):
            (outcome,) = run(site, settling(3))

        assert outcome.status == "unverified"
        assert "1 of the rows do not hold what was written" in outcome.reason

    @pytest.mark.parametrize("rows", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
    def test_many_rows_are_set_and_set_back_in_little_memory(self, server, broker, redis, sqlite_url, rows):
        """In pages of a thousand, however many there are."""
        assert broker
        site = _site(server, sqlite_url)
        tables.make(sqlite_url)
        tables.fill(sqlite_url, rows)
        with redis.pipeline(transaction=False) as pipe:
            for n in range(1, rows + 1):
                pipe.set(f"celery-task-meta-{task_id(n)}", '{"status": "SUCCESS", "result": null}', ex=600)
            pipe.execute()
        before = look(sqlite_url)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        (outcome,) = run(site, settling(rows))

        assert outcome.reason == f"{rows:,} rows were set to DONE."
        assert set(told(undone(site, records.context().run_id))) == {"applied"}
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        assert look(sqlite_url) == before
        assert grown < 32 * 1024, f"{grown:,} KiB more"


class TestShown:
    """What a person reads is what is done."""

    @pytest.mark.parametrize(
        ("other", "because"),
        [
            ({"destination": "ERROR"}, "it shows ERROR, and would write DONE"),
            ({"subject": "others"}, "it shows others"),
            ({"task": "other"}, "it shows other"),
            ({"rows": RowSelection(table="task", state="SUCCESS", becomes="DONE")}, "no task table task"),
            ({"rows": RowSelection(table="tasks", state="STARTED", becomes="DONE")}, "a state that is not final"),
            ({"rows": RowSelection(table="tasks", state="SUCCESS", becomes="DONE", statuses=("DONE",))}, "not open"),
            ({"rows": None}, "it names no row"),
            ({"copies": ()}, "it does not show how many"),
        ],
    )
    def test_many_rows(self, server, broker, sqlite_url, other, because):
        """A plan that says one thing and means another is refused."""
        assert broker
        with pytest.raises(Refused, match=because):
            run(_site(server, sqlite_url), replace(settling(3), **other))

    @pytest.mark.parametrize(
        ("row", "because"),
        [
            ({"table": "task_tables.task"}, "the target has no task_tables.task"),
            ({"table": "users"}, "the target has no users"),
            ({"key": "{}"}, "cannot be found"),
            ({"key": "[1]"}, "cannot be found"),
            ({"was": "{"}, "cannot be found"),
            ({"becomes": "{}"}, "does not say what"),
            ({"becomes": '{"id": 8}', "key": '{"id": 7}'}, "what the row is found by"),
            ({"becomes": '{"status": "DONE; DROP TABLE x"}'}, "is no status of tasks"),
            ({"becomes": '{"status": "ERROR"}'}, "it shows DONE, not ERROR"),
            ({"key": '{"id": 8}', "was": "{}"}, "is about another row"),
        ],
    )
    def test_one_row(self, server, broker, sqlite_url, row, because):
        """So is one that is about another row than it shows."""
        assert broker
        tables.make(sqlite_url)
        tables.fill(sqlite_url, 8)
        action = single(sqlite_url, 7)
        with pytest.raises(Refused, match=because):
            run(_site(server, sqlite_url), replace(action, row=replace(action.row, **row)))

    def test_a_row_of_state_is_set_to_nothing_else(self, server, broker, sqlite_url):
        """What its settings say is what a person has agreed to."""
        assert broker
        with pytest.raises(Refused, match=r"not what state_rows\.agent says"):
            run(_site(server, sqlite_url), agent({}, becomes='{"status": "free"}'))


class TestResent:
    """A lost task is sent again only while it is lost."""

    QUEUE = "shop"

    def _resend(self, url, n):
        message = fresh("orders.tasks.ship", [], {}, task_id=task_id(n), queue=self.QUEUE).decode()
        row = replace(single(url, n).row, becomes="{}")
        return Action(
            kind=Kind.SEND,
            subject=task_id(n),
            source="task_tables.tasks",
            destination=self.QUEUE,
            message=message,
            row=row,
        )

    @pytest.fixture(autouse=True)
    def _seen(self, monkeypatch):
        """No worker listens here; that nobody consumes either is what the shared server cannot say."""
        read = circulation.read
        monkeypatch.setattr(circulation, "read", lambda *a, **k: replace(read(*a, **k), unseen=()))

    def test_what_is_lost_is_sent_and_what_is_not_is_told(self, site, redis, url):
        """One that waits by now, one that has ended, one whose row has moved on, one that is asked for twice."""
        fill(redis, url, 6, ended=())
        actions = [self._resend(url, n) for n in (1, 2, 3, 4, 5, 5)]
        seed_waiting(redis, "orders.tasks.ship", queue="other", task_id=task_id(2))
        store(redis, task_id(3), "FAILURE")
        change(url, 4, status="PAUSED")

        outcomes = run(site, *actions)

        assert [str(o.status) for o in sorted(outcomes, key=lambda o: o.action.id)] == [
            "applied",
            "skipped",
            "skipped",
            "skipped",
            "applied",
            "skipped",
        ]
        assert sorted(waiting_ids(redis, self.QUEUE)) == [task_id(1), task_id(5)]
        reasons = {o.action.id: o.reason for o in outcomes}
        assert reasons[2] == "It is on its way or runs by now; it was not sent again."
        assert reasons[3] == "It has a result by now: FAILURE. It was not sent again."
        assert reasons[4] == "status: no longer as planned. Look at it again."
        assert reasons[6] == "It was sent by an action before this one."

    def test_a_row_of_another_task_sends_nothing(self, site, redis, url):
        """The message and the row have to be of one task."""
        fill(redis, url, 2, ended=())
        action = replace(self._resend(url, 1), row=self._resend(url, 2).row)

        (outcome,) = run(site, action)

        assert outcome.reason == "task_id: no longer as planned. Look at it again."
        assert not redis.llen(self.QUEUE)

    def test_a_place_that_was_not_seen_holds_everything_back(self, site, redis, url, monkeypatch):
        """The task may be there."""
        fill(redis, url, 1, ended=())
        read = circulation.read
        monkeypatch.setattr(
            circulation, "read", lambda *a, **k: replace(read(*a, **k), unseen=("workers: w1 is silent.",))
        )

        (outcome,) = run(site, self._resend(url, 1))

        assert outcome.status == "skipped"
        assert "workers: w1 is silent." in outcome.reason
        assert not redis.llen(self.QUEUE)

    def test_so_does_a_message_that_nobody_can_decode(self, site, redis, url):
        """Where they are the rule, any may be the task's own; otherwise the one that names it."""
        fill(redis, url, 2, ended=())
        seed_waiting(redis, "tests.ok", queue="other")
        redis.lpush("other", b"\x00 no message, but " + task_id(2).encode())

        (outcome,) = run(site, self._resend(url, 1))

        assert outcome.reason == "It may be among the messages that cannot be decoded (1). It was not sent."
        seed_waiting(redis, "tests.ok", queue="other")

        one, two = run(site, self._resend(url, 1), self._resend(url, 2))

        reasons = {o.action.id: o.reason for o in (one, two)}
        assert reasons == {
            1: f"It was put into {self.QUEUE}.",
            2: "A message that cannot be decoded names it. It was not sent.",
        }
        assert waiting_ids(redis, self.QUEUE) == [task_id(1)]


def _journal(site, run_id=""):
    from opslib.writer import journal

    return journal.read(site, run_id or records.context().run_id)
