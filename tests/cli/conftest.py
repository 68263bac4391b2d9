"""A working directory, an archive and an environment of their own for every command, and a system to point it at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opslib.demo import server
from tests import command_line
from tests.shop import open_shop, orphan
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker, deployment


@dataclass(frozen=True, kw_only=True)
class Busy:
    """
    A system with a task in every place.

    Attributes:
        ids: Task ids by the place or the trouble that they are in.
    """

    system: Deployment
    worker: Worker
    ids: dict[str, str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the developer's shell, and nothing configured."""
    for name in set(os.environ) - set(command_line.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("OPS_DEMO_DIR", str(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    folder = tmp_path_factory.mktemp("busy")
    with server.start(folder) as running, deployment(running, folder) as system:
        worker = system.worker(name="busy@shop")
        ids = {"result": system.send("ok"), "retrying": system.send("retry_forever", 3000)}
        system.until_done(ids["result"])
        until(lambda: _retries(system, ids["retrying"]), DEADLINE_S, "the retry is in the node's timer")
        ids["scheduled"] = system.send("ok", countdown=3000)
        ids["active"] = system.send("hang")
        system.until_running(ids["active"])
        ids["reserved"] = system.send("late")
        system.send("ok", queue="lonely")
        ids["waiting"] = system.send("ok", queue="lonely", countdown=3000)
        ids["orphan"] = orphan(system, "parcels")
        system.until_unacked(ids["reserved"], ids["scheduled"], ids["retrying"])
        yield Busy(system=system, worker=worker, ids=ids)


@pytest.fixture
def busy(_busy: Busy, monkeypatch: pytest.MonkeyPatch) -> Busy:
    """The shared busy system as the default target; tests only look at it."""
    monkeypatch.setenv("OPS_BROKER_URL", _busy.system.server.url)
    return _busy


@pytest.fixture(scope="session")
def _shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with open_shop(tmp_path_factory.mktemp("shop")) as system:
        yield system


@pytest.fixture
def shop(_shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A healthy system as the default target; what a test leaves undone is cleared away."""
    monkeypatch.setenv("OPS_BROKER_URL", _shop.server.url)
    yield _shop
    _shop.redis.delete("unacked", "unacked_index", *_shop.redis.scan_iter(match="opslib:*"))


def _retries(system: Deployment, task_id: str) -> int:
    return int(system.unacked().get(task_id, {}).get("retries", 0))
