"""The image, a Redis and Celery workers, each in a container of its own: a node is killed, and its work is not lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib.errors import Exit
from opslib.symptoms.orphans import ORPHAN_MARGIN_S
from tests.shop import contents
from tests.support import containers
from tests.support.containers import Engine
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

APPLY = ["run", "stuck-tasks", "--apply", "--yes", "--reason", "a node was killed", "--json"]


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Engine:
    """The engine that all containers of these tests run on."""
    return containers.shared(pytestconfig)


@pytest.fixture
def shop(engine: Engine, tmp_path: Path) -> Iterator[Deployment]:
    """A Redis in a container, without nodes yet."""
    with containers.stack(engine, tmp_path) as made:
        yield made


def test_a_killed_nodes_message_is_restored_and_done_elsewhere(engine: Engine, shop: Deployment) -> None:
    """SIGKILL ends a node and its pool in the middle of a task; another one, in its own container, does it again."""
    doomed = shop.worker()
    task_id = shop.send("gate")
    shop.until_running(task_id)
    begun_at = time.time()
    doomed.kill()
    assert doomed.child.process.returncode == 128 + 9
    shop.worker()
    until(lambda: time.time() - begun_at > ORPHAN_MARGIN_S, DEADLINE_S, "it is too old to be on its way")

    before = contents(shop.redis)
    looked = engine.ops("run", "stuck-tasks", "--json", url=shop.server.url)
    assert looked.returncode == Exit.ATTENTION, looked.stderr
    found = json.loads(looked.stdout)["findings"]
    assert [(each["code"], each["subject"]) for each in found] == [("orphaned-unacked", task_id)]
    assert contents(shop.redis) == before

    applied = engine.ops(*APPLY, url=shop.server.url)
    assert applied.returncode == Exit.DONE, applied.stderr
    record = json.loads(applied.stdout)
    assert [row["status"] for row in record["outcomes"]] == ["applied"]
    assert record["operator"] == "ada"
    until(lambda: shop.ran(task_id) == 2, DEADLINE_S, "another node has begun it")
    shop.redis.set("open", 1)
    shop.until_done(task_id)
    until(lambda: not shop.unacked(), DEADLINE_S, "it is acknowledged")

    # The archive is a volume: what one container left there, the next one finds.
    listed = engine.ops("reports", "list", "--json", url=shop.server.url)
    assert {each["run_id"] for each in json.loads(listed.stdout)} >= {
        json.loads(looked.stdout)["run_id"],
        record["run_id"],
    }


def test_a_silent_redis_is_not_called_healthy(engine: Engine, shop: Deployment) -> None:
    """A server that is paused in the middle of everything gives the exit code for what could not be seen."""
    redis = engine.name(containers.redis_name(shop.server.port))
    engine.do("pause", redis)
    try:
        seen = engine.ops("run", "stuck-tasks", url=shop.server.url)
    finally:
        engine.do("unpause", redis)

    assert seen.returncode == Exit.CANNOT_SEE, seen.stdout + seen.stderr


def test_nobody_in_a_container_has_more_rights_than_said(engine: Engine, shop: Deployment) -> None:
    """The kernel's own view of each process: no root, no capability and none to be had, nothing to write on."""
    node = shop.worker()

    for name in (containers.redis_name(shop.server.port), node.container):
        pids = [line.split()[1] for line in engine.do("top", engine.name(name)).splitlines()[1:]]
        assert pids
        for pid in pids:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert "0" not in status["Uid"].split() + status["Gid"].split()
            assert {int(status[each], 16) for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            assert status["NoNewPrivs"].strip() == "1"
            mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
            assert all("ro" in options.split(",") for _, place, _, options, *_ in mounts if place == "/")


def test_the_image_has_what_it_needs_and_no_more(engine: Engine) -> None:
    """It knows every runbook, has no pip to install more with, and is not root's."""
    image = engine.images["ops"]
    isolated = ["run", "--rm", "--network=none", "--read-only"]

    assert "stuck-tasks" in engine.do(*isolated, "--tmpfs=/tmp", image, "list")
    seen = engine.do(*isolated, "--entrypoint=sh", image, "-c", "id -u; id -g; command -v pip || echo none")
    assert seen.split() == ["10001", "10001", "none"]
