"""Columns that the settings name are there and of a kind that can be used, or a sentence names the nearest that is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from opslib import database as databases
from opslib.collectors import task_rows
from opslib.errors import SettingsError
from opslib.settings import Target
from opslib.tables import instant, state_table, task_table, task_tables
from opslib.task_tables import StateRow, TaskTable, resolved
from tests.support import tables

COLUMNS = {"id": "id", "task_id": "task_id", "status": "status", "last_run": "last_run"}
OWN = {"columns": COLUMNS, "open": ["NEW"], "closed": ["OK"]}
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def target(url, **of):
    """Return a target with these tables, as its settings have them."""
    made = {name: resolved(name, TaskTable(**says), f"task_tables.{name}") for name, says in of.items()}
    return Target(name="trial", broker_url="redis://h", database_url=_plain(url), task_tables=made)


def _plain(url):
    from opslib import urls

    return urls.database(url, "database_url")


def mapped(url, **says):
    """Return the one table of a target."""
    site = target(url, tasks=says)
    return task_table(site, databases.connect(site), "tasks")


def execute(url, *statements):
    """Run statements, as the application would."""
    with tables.connected(url) as connection:
        for each in statements:
            connection.exec_driver_sql(each)


def refused(url, **says):
    """Return the error with which a table is refused."""
    with pytest.raises(SettingsError) as caught:
        mapped(url, **says)
    return caught.value


class TestFound:
    """What is there is found by its name."""

    def test_real_tables_of_django_and_celery_are_known_without_settings(self, postgres_url, trial):
        """django-celery-results by its own migrations, Celery's backend by a real worker, and a task manager's."""
        tables.django(postgres_url)
        (done,) = tables.celery(trial, postgres_url, ("ok", ()), result_extended=True)
        tables.make(postgres_url)
        tables.fill(postgres_url, 3)
        site = target(postgres_url)
        known = databases.connect(site)

        found = {each.name: each for each in task_tables(site, known)}

        assert set(found) == {"django-celery-results", "celery", "task-manager"}
        assert found["task-manager"].columns["task_module"].name == "task_module"
        assert task_rows.states(known, found["celery"], [done]) == {done: "SUCCESS"}
        assert task_rows.states(known, found["django-celery-results"], [done]) == {}
        assert [row.task for page in task_rows.pages(known, found["task-manager"]) for row in page] == [
            "orders.tasks.ship"
        ] * 3

    def test_a_table_of_another_schema(self, postgres_url):
        """The one that is meant, though another has its name."""
        execute(
            postgres_url,
            "CREATE SCHEMA sales",
            "CREATE TABLE jobs (id int PRIMARY KEY, status text)",
            "CREATE TABLE sales.jobs (id int PRIMARY KEY, task_id uuid, status text, last_run timestamptz)",
            "INSERT INTO sales.jobs VALUES (1, '00000000-0000-4000-8000-000000000001', 'NEW', now())",
        )
        site = target(postgres_url, tasks={"table": "sales.jobs", **OWN})
        known = databases.connect(site)

        found = task_table(site, known, "tasks")

        assert found.table.schema == "sales"
        ((row,),) = task_rows.pages(known, found)
        assert row.task_id == "00000000-0000-4000-8000-000000000001"

    def test_names_with_metacharacters_are_names_and_nothing_else(self, url):
        """Quotes, semicolons and spaces of a table and of its columns."""
        name, status, key = 'jobs"; DROP TABLE jobs; --', "status' OR '1'='1", "id) UNION SELECT (1"
        made = sa.Table(
            name,
            sa.MetaData(),
            sa.Column(key, sa.Integer, primary_key=True),
            sa.Column("task_id", sa.String(40)),
            sa.Column(status, sa.String(40)),
            sa.Column("last_run", sa.DateTime),
        )
        with tables.connected(url) as connection:
            connection.exec_driver_sql("CREATE TABLE jobs (id int)")
            made.create(connection)
            rows = [(1, "NEW"), (2, "NEW'; DROP TABLE jobs; --"), (3, "OK")]
            for n, said in rows:
                connection.execute(made.insert().values({key: n, "task_id": str(n), status: said}))
        says = {"table": name, **OWN, "columns": {**COLUMNS, "id": key, "status": status}}
        says["open"] = ["NEW", "NEW'; DROP TABLE jobs; --"]
        site = target(url, tasks=says)
        known = databases.connect(site)

        found = [row.key for page in task_rows.pages(known, task_table(site, known, "tasks"), size=1) for row in page]

        assert found == [1, 2]
        counts, _ = task_rows.statuses(known, task_table(site, known, "tasks"))
        assert {each.status: each.count for each in counts} == {said: 1 for _, said in rows}
        with tables.connected(url) as connection:
            assert sa.inspect(connection).has_table("jobs")

    def test_a_row_of_state(self, url):
        """With the columns that find it, and those that are set."""
        execute(url, "CREATE TABLE agent (id int PRIMARY KEY, status text)")
        known = databases.connect(target(url))

        found = state_table(known, "agent", StateRow(table="agent", key={"id": 1}, idle={"status": "idle"}))

        assert found.columns.keys() == ["id", "status"]
        for row, near in (
            (StateRow(table="agents", key={"id": 1}, idle={"status": ""}), "agent"),
            (StateRow(table="agent", key={"idd": 1}, idle={"status": ""}), "id"),
            (StateRow(table="agent", key={"id": 1}, idle={"state": ""}), "status"),
        ):
            with pytest.raises(SettingsError) as caught:
                state_table(known, "agent", row)
            assert caught.value.hint == f"Did you mean {near}?"


class TestRefused:
    """What is not there, or cannot be used, is named."""

    @pytest.fixture
    def jobs(self, url):
        """A table of the application's own."""
        execute(
            url,
            "CREATE TABLE jobs (id int PRIMARY KEY, task_id text, status text, last_run timestamp, "
            "attempts int, done boolean, code text NOT NULL DEFAULT '')",
            "CREATE VIEW open_jobs AS SELECT * FROM jobs",
        )
        return url

    def test_a_missing_table_is_told_with_the_nearest(self, jobs):
        """A view counts; the tables of others do not."""
        assert refused(jobs, table="job", **OWN).hint == "Did you mean jobs?"
        assert refused(jobs, table="open_job", **OWN).hint == "Did you mean open_jobs?"
        assert "there is no schema 'sales'" in refused(jobs, table="sales.jobs", **OWN).message

    def test_a_missing_column_is_told_with_the_nearest(self, jobs):
        """And with the setting that names it."""
        error = refused(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, "status": "statuss"}})

        assert error.message == "task_tables.tasks.columns.status: jobs has no column 'statuss'."
        assert error.hint == "Did you mean status?"

    def test_a_key_that_is_not_unique(self, jobs):
        """Rows could not be told apart; a view says of none of its columns that it is."""
        error = refused(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, "id": "attempts"}})

        assert error.message == (
            "task_tables.tasks.columns.id: attempts of jobs is not unique, so rows cannot be told apart."
        )
        assert "is not unique" in refused(jobs, table="open_jobs", **OWN).message

    def test_a_unique_column_will_do_for_a_key(self, jobs):
        """It needs not be the primary one; but one that may be empty has rows that no page can begin after."""
        execute(
            jobs,
            "CREATE UNIQUE INDEX by_code ON jobs (code)",
            "CREATE UNIQUE INDEX by_task ON jobs (task_id)",
            "CREATE UNIQUE INDEX two ON jobs (status, done)",
        )

        assert mapped(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, "id": "code"}})
        assert refused(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, "id": "task_id"}})
        assert refused(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, "id": "status"}})

    def test_a_key_that_only_some_rows_have_to_themselves(self, jobs):
        """An index over a part of the rows says nothing of the others; MariaDB has none such."""
        if jobs.startswith("mysql"):
            return
        execute(jobs, "CREATE UNIQUE INDEX part ON jobs (code) WHERE done")

        assert "is not unique" in refused(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, "id": "code"}}).message

    @pytest.mark.parametrize(("field", "said"), [("last_run", "is no instant"), ("status", "is no text")])
    def test_a_column_of_a_wrong_type(self, jobs, field, said):
        """A word cannot be a number, and a boolean no time; MariaDB has no booleans, but small numbers."""
        if jobs.startswith("mysql") and field == "last_run":
            return
        error = refused(jobs, table="jobs", **{**OWN, "columns": {**COLUMNS, field: "done"}})

        assert said in error.message
        assert f"columns.{field}" in error.message

    def test_a_table_that_nobody_has_named(self, jobs):
        """The nearest of those that there are."""
        site = target(jobs, tasks={"table": "jobs", **OWN})
        with pytest.raises(SettingsError) as caught:
            task_table(site, databases.connect(site), "task")
        assert caught.value.hint == "Did you mean tasks?"


class TestTimes:
    """An instant is one, however it is spelled."""

    @pytest.mark.parametrize(
        ("spelled", "zone"),
        [
            (NOON, "UTC"),
            (datetime(2026, 11, 21, 12), "UTC"),  # noqa: DTZ001 - as a column without zones has it
            (datetime(2026, 11, 21, 13), "Europe/Berlin"),  # noqa: DTZ001
            ("2026-11-21 12:00:00", "UTC"),
            ("2026-11-21T12:00:00Z", "Europe/Berlin"),
            ("2026-11-21 12:00:00.000000", "UTC"),
            (" 2026-11-21T13:00:00+01:00 ", "UTC"),
            ("20261121T120000", "UTC"),
            (NOON.timestamp(), "Europe/Berlin"),
            (int(NOON.timestamp()), "UTC"),
        ],
    )
    def test_one_instant(self, spelled, zone):
        """Zoned, naive in the zone that the settings name, text of SQLite's, epoch seconds."""
        assert instant(spelled, zone) == NOON

    @pytest.mark.parametrize("spelled", [None, "", "yesterday", "0000-00-00 00:00:00", True, 1e30, float("nan"), b"x"])
    def test_what_is_no_instant_is_none(self, spelled):
        """A row of which nobody knows when it was last run is no old one."""
        assert instant(spelled, "UTC") is None

    def test_an_instant_beyond_the_calendar_is_none(self):
        """As some applications write "never"."""
        assert instant("0001-01-01 00:00:00", "Europe/Berlin") is None
        assert instant("9999-12-31 23:59:59", "America/New_York") is None

    def test_columns_with_and_without_zones_are_read_alike(self, url):
        """Of one database, in two tables; and SQLite's dates, oddly spelled, stop nobody."""
        zoned, zone = "timestamptz" if url.startswith("postgresql") else "timestamp", "+00:00"
        if url.startswith("mysql"):  # which takes none with an instant
            zone = ""
        naive = "datetime" if url.startswith("mysql") else "timestamp"
        execute(
            url,
            f"CREATE TABLE zoned (id int PRIMARY KEY, task_id text, status text, last_run {zoned})",
            f"CREATE TABLE naive (id int PRIMARY KEY, task_id text, status text, last_run {naive})",
            f"INSERT INTO zoned VALUES (1, 'a', 'NEW', '2026-11-21 12:00:00{zone}')",
            "INSERT INTO naive VALUES (1, 'a', 'NEW', '2026-11-21 13:00:00')",
        )
        if url.startswith("sqlite"):
            execute(url, "INSERT INTO naive VALUES (2, 'b', 'NEW', 'soon'), (3, 'c', 'NEW', '21.11.2026')")
        site = target(url, zoned={"table": "zoned", **OWN}, naive={"table": "naive", "zone": "Europe/Berlin", **OWN})
        known = databases.connect(site)

        found = {
            each.name: [row.at for page in task_rows.pages(known, each) for row in page]
            for each in task_tables(site, known)
        }

        if url.startswith("mysql"):  # its TIMESTAMP is an instant
            assert refused(url, table="zoned", zone="Europe/Berlin", **OWN).hint.startswith("Leave the zone away")
        assert found["zoned"] == [NOON.timestamp()]
        assert found["naive"][0] == NOON.timestamp()
        assert not any(found["naive"][1:])
