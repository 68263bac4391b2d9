"""A reset takes what the application noted down of its tasks, each value kept before, and gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis import Redis

from opslib import records
from opslib.broker import Broker, connect
from opslib.collectors import collect
from opslib.errors import BadParameter
from opslib.plan import Kind
from opslib.settings import AppKey, Target
from opslib.symptoms import emergency_reset
from opslib.writer import resume, undo
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
