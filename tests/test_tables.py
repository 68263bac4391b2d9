"""The databases that other tests judge by hold what Django, Celery and an application write there."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.support import tables


def test_django_makes_its_tables_by_its_own_migrations(url):
    """Those of the schedule, those of the results."""
    tables.django(url)

    with tables.connected(url) as connection:
        found = set(sa.inspect(connection).get_table_names())

    assert {"django_celery_beat_periodictask", "django_celery_beat_periodictasks"} <= found
    assert {"django_celery_results_taskresult", "django_celery_results_groupresult"} <= found


def test_celery_makes_its_own_when_a_node_stores_a_result(url, trial):
    """With what each task returned; the state is in plain text, the rest is for Celery alone."""
    done, failed = tables.celery(trial, url, ("ok", ()), ("sleep", ("no number",)), result_extended=True)

    with tables.connected(url) as connection:
        rows = connection.execute(sa.text("SELECT task_id, status FROM celery_taskmeta")).all()

    assert {tuple(row) for row in rows} == {(done, "SUCCESS"), (failed, "FAILURE")}


def test_an_application_s_rows_are_spread_by_even_steps(url):
    """Row i has its own id, its task's id, and of each list its turn."""
    tables.make(url)
    tables.add(url, [{"id": 1, "task_id": None, "status": "DONE", "arguments": {"order": 1}}])
    tables.fill(url, 1_000, first=2, statuses=["SCHEDULED", "PAUSED"], names=["a", "b", "c"], youngest_s=3_600)
    table = tables.task_manager.c

    with tables.connected(url) as connection:
        assert connection.scalar(sa.select(sa.func.count(table.id))) == 1_001
        row = connection.execute(sa.select(tables.task_manager).where(table.id == 5)).one()
        ends = connection.execute(sa.select(sa.func.min(table.last_run), sa.func.max(table.last_run))).one()

    assert (row.task_id, row.status, row.task_name) == (tables.task_id(5), "PAUSED", "c")
    assert row.arguments["order"] == 5
    assert (ends[1] - ends[0]).total_seconds() == 899 * 3_600


def test_who_may_only_read_cannot_write(postgres, postgres_url):
    """The server says so, whatever a client means to do."""
    tables.make(postgres_url)
    tables.fill(postgres_url, 3)

    with tables.connected(postgres.as_reader(postgres_url)) as connection:
        assert connection.scalar(sa.text(f"SELECT count(*) FROM {tables.TASK_MANAGER}")) == 3
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.execute(sa.text(f"DELETE FROM {tables.TASK_MANAGER}"))
