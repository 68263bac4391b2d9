"""One test for each exit code: scripts and cron decide by them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from opslib.errors import Exit
from tests import tiny
from tests.command_line import ops, start
from tests.shop import orphan
from tests.support.waiting import until
from tests.support.workers import Deployment

RUN = ["run", "stuck-tasks", "-q", "-p", "settle=0.1s"]


def test_they_are_these() -> None:
    """No code is added, taken away or renumbered without somebody noticing."""
    assert {code.name: int(code) for code in Exit} == {
        "DONE": 0,
        "ATTENTION": 1,
        "USAGE": 2,
        "FAILED": 3,
        "CANNOT_SEE": 4,
        "REFUSED": 5,
        "INTERRUPTED": 130,
    }


def test_0_nothing_needs_a_person(shop: Deployment, place: Path) -> None:
    """A healthy system that was seen whole."""
    assert shop
    done = ops(*RUN, env=dict(os.environ), cwd=place)

    assert (done.code, "HEALTHY" in done.out) == (0, True)


def test_1_a_person_is_needed(shop: Deployment, place: Path) -> None:
    """Something is wrong, and a plan waits."""
    orphan(shop)

    done = ops(*RUN, env=dict(os.environ), cwd=place)

    assert (done.code, "CRITICAL" in done.out) == (1, True)


def test_2_wrong_usage(place: Path) -> None:
    """There is no such runbook."""
    assert ops("run", "nonsense", env=dict(os.environ), cwd=place).code == 2


def test_3_the_runbook_failed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of the notebook broke."""
    tiny.runbook(place / "runbooks", "broken", "1 / 0")
    monkeypatch.setenv("OPS_RUNBOOKS", str(place / "runbooks"))
    monkeypatch.setenv("OPS_BROKER_URL", "redis://127.0.0.1:1/0")

    done = ops("run", "broken", env=dict(os.environ), cwd=place)

    assert (done.code, "FAILED" in done.out) == (3, True)


def test_4_could_not_see(place: Path) -> None:
    """Nobody answers at the broker's address."""
    done = ops(*RUN, env={**os.environ, "OPS_BROKER_URL": "redis://127.0.0.1:1/0"}, cwd=place)

    assert (done.code, "UNKNOWN" in done.out) == (4, True)


def test_5_refused_by_a_safety_rule(shop: Deployment, place: Path) -> None:
    """A change that nobody confirmed."""
    assert shop
    assert ops(*RUN, "--apply", env=dict(os.environ), cwd=place).code == 5


def test_130_interrupted(shop: Deployment, place: Path) -> None:
    """Ctrl-C while a list is being made is no run, so there is nothing but the code and a word."""
    orphan(shop)
    before = clients(shop)
    with start("tasks", "--state", "stuck", env=dict(os.environ), cwd=place) as process:
        until(lambda: clients(shop) - before, 30, "it has connected")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, out, err) == (130, "", "Interrupted.\n")


def clients(shop: Deployment) -> set[str]:
    """Return the ids of our own connections."""
    return {client["id"] for client in shop.redis.client_list() if client["name"].startswith("opslib:")}
