"""Tables that are the result backend itself, written by real nodes: what an open row of theirs proves."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from opslib import settings
from opslib.broker import connect
from opslib.collectors.reconciling import reconcile
from opslib.symptoms import reconcile_tasks
from opslib.task_tables import TaskTable, Verifier, resolved
from tests.support import tables
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

LIMITS = reconcile_tasks.Thresholds(stuck_after_s=3600)
#: Of each backend: its table, the setting by which nodes write it, and what else their module needs.
BACKENDS = {"celery": "celery_taskmeta", "django-celery-results": "django_celery_results_taskresult"}


def rows(url, table):
    """Return the state of each task that has a row."""
    with tables.connected(url) as connection:
        if not sa.inspect(connection).has_table(table):
            return {}
        return dict(connection.execute(sa.text(f"SELECT task_id, status FROM {table}")).all())


@pytest.mark.parametrize("preset", BACKENDS)
def test_a_row_of_the_backend_whose_node_died_is_lost_and_one_that_runs_is_not(trial, postgres_url, preset):
    """STARTED says that no result was ever stored: no life of results has to be known."""
    table = BACKENDS[preset]
    if preset == "celery":
        given = {"conf": {"result_backend": f"db+{postgres_url}", "result_extended": True}}
    else:
        tables.django(postgres_url)
        given = {
            "module": tables.SITE,
            "environment": tables.site(postgres_url),
            "conf": {"result_backend": "django-db", "result_extended": True},
        }
    queue, doomed_queue = f"{preset}-lives", f"{preset}-dies"
    alive = trial.worker(queues=queue, **given)
    doomed = trial.worker(queues=doomed_queue, **given)
    done, lives, dies = trial.send("ok", queue=queue), trial.send("hang", queue=queue), None
    dies = trial.send("hang", queue=doomed_queue)
    wanted = {done: "SUCCESS", lives: "STARTED", dies: "STARTED"}
    until(lambda: rows(postgres_url, table) == wanted, DEADLINE_S, "all have their rows")
    doomed.kill()
    broker = connect(
        settings.Target(
            name="shop",
            broker_url=trial.server.url,
            database_url=postgres_url,
            task_tables={preset: resolved(preset, TaskTable(preset=preset, chains=False), preset)},
        )
    )

    seen = reconcile(broker, hours=0, answer_within="10s")
    alive.kill()  # it would tell others where it stores results
    classes = {each.row.task_id: each.kind for each in reconcile_tasks.classify(seen, LIMITS).samples}

    assert classes == {lives: "still on its way", dies: "lost"}


def test_a_node_that_died_between_the_work_and_the_row_is_told_by_the_effect(trial, postgres_url):
    """Without a verifier it is lost, as one that never ran; with it, the work is known to be done."""
    tables.make(postgres_url)
    with tables.connected(postgres_url) as connection:
        connection.execute(sa.text("CREATE TABLE done (task_id text PRIMARY KEY)"))
    until(lambda: int(trial.redis.info("server")["uptime_in_seconds"]) >= 2, 30, "the server has been up")
    trial.worker(queues="others")  # one has to be there that knows the task
    doomed = trial.worker(queues="works", conf={"task_track_started": False})
    task_id = trial.send("hang", queue="works")
    row = {"task_module": "tests", "task_name": "hang", "task_id": task_id, "status": "SCHEDULED"}
    tables.add(postgres_url, [{**row, "last_run": tables.at(0)}])
    trial.until_running(task_id)
    with tables.connected(postgres_url) as connection:  # what the task was to bring about
        connection.execute(sa.text("INSERT INTO done VALUES (:id)"), {"id": task_id})
    doomed.kill()

    def told(**says):
        table = resolved("tasks", TaskTable(preset="task-manager", chains=False, **says), "tasks")
        target = settings.Target(
            name="shop", broker_url=trial.server.url, database_url=postgres_url, task_tables={"tasks": table}
        )
        seen = reconcile(connect(target), hours=0, answer_within="10s", check_execution=True, with_arguments=True)
        (sample,) = reconcile_tasks.classify(seen, LIMITS).samples
        plan = reconcile_tasks.plan(seen, [], LIMITS, resend=True, queue="works")
        return sample.kind, [(action.kind, action.destination) for action in plan]

    assert told() == ("lost", [("send", "works")])
    query = "SELECT true FROM done WHERE task_id = :task_id"
    assert told(verify={"tests.*": Verifier(sql=query)}) == ("finished but open", [("update", "DONE")])


def test_a_later_link_of_a_chain_is_not_lost_while_the_earlier_one_runs(trial, postgres_url):
    """Its earlier one has acknowledged its message: no message names it, and none but that node knows of it."""
    tables.make(postgres_url)
    until(lambda: int(trial.redis.info("server")["uptime_in_seconds"]) >= 2, 30, "the server has been up")
    worker = trial.worker(queues="links", conf={"task_track_started": False})
    link = tables.task_id(4711)
    chain = trial.app.signature("tests.hang") | trial.app.signature("tests.ok", task_id=link)
    first = chain.apply_async(queue="links").parent.id
    trial.until_running(first)
    until(lambda: first not in trial.unacked(), DEADLINE_S, "its message is acknowledged")
    row = {"task_module": "tests", "task_name": "ok", "task_id": link, "status": "SCHEDULED"}
    tables.add(postgres_url, [{**row, "last_run": tables.at(0)}])

    def told(**says):
        table = resolved("tasks", TaskTable(preset="task-manager", **says), "tasks")
        target = settings.Target(
            name="shop", broker_url=trial.server.url, database_url=postgres_url, task_tables={"tasks": table}
        )
        (sample,) = reconcile_tasks.classify(reconcile(connect(target), hours=0, answer_within="10s"), LIMITS).samples
        return sample.kind, sample.evidence

    kind, evidence = told()
    assert kind == "unknown"
    assert "may come after it in a chain" in evidence
    assert told(chains=False)[0] == "lost"
    worker.kill()
