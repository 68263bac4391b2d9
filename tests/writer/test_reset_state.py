"""A reset takes what the application noted down of its tasks, each value kept before, and gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec
import pytest
import sqlalchemy as sa
from redis import Redis

from opslib import records
from opslib.broker import Broker, connect
from opslib.collectors.deployment import collect
from opslib.collectors.state_rows import app_state
from opslib.errors import BadParameter
from opslib.plan import Kind
from opslib.settings import AppKey, Target
from opslib.symptoms import emergency_reset
from opslib.task_tables import StateRow
from opslib.writer import resume, undo
from tests.support import tables
from tests.support.plans import undone
from tests.support.resets import by_step, carried_out, consumed, own, reset, seed
from tests.support.workers import Deployment


@pytest.fixture
def broken(tmp_path: Path, archive: Path) -> Iterator[Deployment]:
    """A deployment of its own."""
    assert archive.is_dir()
    with own(tmp_path / "server") as made:
        yield made


@pytest.fixture
def beside(broken: Deployment) -> Iterator[Redis]:
    """The database in which its application keeps progress."""
    with Redis.from_url(_url(broken)) as client:
        yield client


@pytest.fixture
def broker(broken: Deployment) -> Broker:
    """Open clients: progress is in a database of its own, logs are in the broker's."""
    keys = {
        "progress": AppKey(pattern="progress:{task_id}", url=_url(broken)),
        "logs": AppKey(pattern="logs:{task_id}"),
    }
    return connect(Target(name="trial", broker_url=broken.server.url, app_keys=keys))


def _url(broken: Deployment) -> str:
    return urlunsplit(urlsplit(broken.server.url)._replace(path="/1"))


def test_progress_and_logs_of_reset_tasks_go_and_come_back(broken: Deployment, beside: Redis, broker: Broker) -> None:
    """From two databases, before the nodes go on; of other tasks they stay."""
    there = seed(broken)
    for task_id in (*there.every, "other"):
        beside.hset(f"progress:{task_id}", mapping={"percent": 40, "step": b"\xff\x00"})
        broken.redis.rpush(f"logs:{task_id}", "begun", "half")
    plan = reset(broker, keys=emergency_reset.app_keys(broker), canary=False)
    steps = [action.step for action in plan]
    assert steps.index("state") > max(n for n, step in enumerate(steps) if step == "clear")
    assert steps.index("resume") > max(n for n, step in enumerate(steps) if step == "state")

    outcomes = carried_out(broker, plan)
    run_id = records.context().run_id

    assert by_step(outcomes)["state"] == {"applied"}
    told = {o.action.source: o.reason for o in outcomes if o.action.step == "state"}
    assert {text.split(" ")[0] for text in told.values()} == {f"{len(there.every)}"}
    assert beside.keys("progress:*") == [b"progress:other"]
    assert broken.redis.keys("logs:*") == [b"logs:other"]
    assert consumed(broker)
    assert not resume.remaining(plan, broker, run_id).actions or all(
        action.kind in {*resume.ORDERS, Kind.STOP, Kind.AWAIT} for action in resume.remaining(plan, broker, run_id)
    )
    there.worker.kill()  # it remembers what was revoked, and would drop it
    assert undo.elsewhere(broker, run_id) == 1
    undone(broker, run_id)
    assert len(broken.redis.keys("logs:*")) == 1
    undone(broker, run_id)
    assert undo.elsewhere(broker, run_id) == 0
    assert len(broken.redis.keys("logs:*")) == len(there.every) + 1
    assert not {action.subject for action in undo.plan(broker, run_id)} & {*there.every}
    assert {key.decode().removeprefix("progress:") for key in beside.keys("progress:*")} == {*there.every, "other"}
    assert beside.hgetall(f"progress:{there.hung[0]}") == {b"percent": b"40", b"step": b"\xff\x00"}


def test_a_partial_reset_takes_only_what_is_of_the_tasks_that_it_stopped(
    broken: Deployment, beside: Redis, broker: Broker
) -> None:
    """And a name that is not asked for stays."""
    there = seed(broken)
    for task_id in there.every:
        beside.set(f"progress:{task_id}", "40")
        broken.redis.set(f"logs:{task_id}", "begun")
    limits = emergency_reset.Thresholds(stuck_after_s=0.01)
    before = collect(broker, settle="0.2s")
    findings = emergency_reset.diagnose(before, limits)
    keys = emergency_reset.app_keys(broker, "prog*")
    plan = emergency_reset.plan(before, findings, mode="partial", keys=keys, canary=False)

    outcomes = carried_out(broker, plan)

    assert by_step(outcomes)["state"] == {"applied"}, outcomes
    assert {key.decode().removeprefix("progress:") for key in beside.keys("progress:*")} == {*there.timed, *there.waits}
    assert len(broken.redis.keys("logs:*")) == len(there.every)


def test_where_the_applications_database_is_gone_the_nodes_go_on(broken: Deployment) -> None:
    """What it keeps is no reason to leave everybody frozen."""
    seed(broken)
    nowhere = {"progress": AppKey(pattern="progress:{task_id}", url="redis://127.0.0.1:1/0")}
    broker = connect(Target(name="trial", broker_url=broken.server.url, app_keys=nowhere))

    outcomes = carried_out(broker, reset(broker, keys=emergency_reset.app_keys(broker), canary=False))

    assert by_step(outcomes)["state"] == {"failed"}
    assert by_step(outcomes)["resume"] == {"applied"}
    assert all(consumed(broker).values())


def test_a_name_that_the_target_does_not_have_is_refused(broker: Broker) -> None:
    """With one that it has."""
    with pytest.raises(BadParameter, match="keys") as refused:
        emergency_reset.app_keys(broker, "progres")
    assert "progress" in refused.value.hint
    assert emergency_reset.app_keys(broker, "") == {}


@pytest.fixture
def agent(broker: Broker, tmp_path: Path) -> Broker:
    """A deployment whose agent died while it was busy."""
    url = tables.sqlite(tmp_path / "agent.db")
    with tables.connected(url) as connection:
        connection.execute(sa.text("CREATE TABLE agent (id integer PRIMARY KEY, status text)"))
        connection.execute(sa.text("INSERT INTO agent VALUES (1, 'busy')"))
    rows = {"agent": StateRow(table="agent", key={"id": 1}, idle={"status": "idle"})}
    return connect(msgspec.structs.replace(broker.target, database_url=url, state_rows=rows))


def _says(agent: Broker) -> str:
    with tables.connected(agent.target.database_url) as connection:
        return str(connection.execute(sa.text("SELECT status FROM agent")).scalar())


def test_what_the_application_says_that_it_is_at_is_set_back_before_nodes_go_on(
    broken: Deployment, agent: Broker
) -> None:
    """Of a reset of everything; one of a single queue leaves it, and an undo sets it as it was."""
    seed(broken)
    part = reset(agent, queue="celery", state=app_state(agent), canary=False)
    plan = reset(agent, state=app_state(agent), canary=False)

    outcomes = carried_out(agent, plan)

    assert not [action for action in part if action.kind is Kind.UPDATE]
    assert {o.status for o in outcomes if o.action.kind is Kind.UPDATE} == {"applied"}
    assert _says(agent) == "idle"
    undone(agent, records.context().run_id)
    assert _says(agent) == "busy"


def test_a_database_that_is_gone_does_not_keep_nodes_from_going_on(
    broken: Deployment, agent: Broker, tmp_path: Path
) -> None:
    """Whether it is gone when the plan is made, or when it is carried out."""
    seed(broken)
    plan = reset(agent, state=app_state(agent), canary=False)
    (tmp_path / "agent.db").rename(tmp_path / "gone.db")
    (row,) = app_state(agent)

    outcomes = carried_out(agent, plan)

    assert row.problem
    assert not [a for a in reset(agent, state=(row,), canary=False) if a.kind is Kind.UPDATE]
    assert {o.status for o in outcomes if o.action.kind is Kind.UPDATE} == {"failed"}
    assert consumed(agent)
