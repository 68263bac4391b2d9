"""`ops task check`: whether a task is in a retry loop, in one sentence and by the exit code."""

from __future__ import annotations

import json

import pytest

from opslib.errors import Exit
from tests.cli.conftest import Busy
from tests.command_line import Done, call
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment


def check(*words: str) -> Done:
    """Ask about a task."""
    return call("task", "check", *words)


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("retrying", "No: retried 1 time; the next attempt is due in "),
        ("active", "No: it has not been retried; it is active."),
        ("scheduled", "No: it has not been retried; it is scheduled."),
        ("waiting", "No: it has not been retried; it is waiting."),
        ("result", "No: its result says SUCCESS, and no attempt is under way."),
    ],
)
def test_a_task_that_does_not_loop(busy: Busy, which: str, said: str) -> None:
    """Exit 0, and what it does instead."""
    done = check(busy.ids[which])

    assert done.code == Exit.DONE
    assert done.out.startswith(said)


def test_a_task_that_is_nowhere_is_retried_by_nobody(busy: Busy) -> None:
    """Which is said, so that a wrong id is noticed."""
    assert busy
    done = check("no-such-id")

    assert (done.code, done.out) == (Exit.DONE, "No: it was found nowhere, so nothing retries it.\n")


def test_a_watch_says_that_nothing_rose(busy: Busy) -> None:
    """For how long it was watched, as a sentence and as figures."""
    done = check(busy.ids["retrying"], "--watch", "1.2s", "-o", "json")
    found = json.loads(done.out)

    assert done.code == Exit.DONE
    assert (found["is_loop"], found["retries"], found["rose_by"], found["max_retries"]) == (False, 1, 0, None)
    assert found["watched_s"] >= 1.0
    assert "not once more in the" in found["sentence"]
    assert check(busy.ids["retrying"], "-o", "ids").out == ""


def test_a_silent_node_leaves_it_open(busy: Busy) -> None:
    """It may hold the next attempt: exit 4, and who is silent is named."""
    with busy.worker.frozen():
        done = check(busy.ids["retrying"], "--timeout", "0.2s")

    assert done.code == Exit.CANNOT_SEE
    assert done.out.startswith("Cannot tell: it was retried 1 time so far")
    assert "Not the whole view: workers" in done.err


@pytest.mark.parametrize("words", [[""], ["x", "--watch", "10"], ["x", "--watch", "soon"], ["x", "--watch", "-1s"], []])
def test_what_cannot_be_meant_is_refused(busy: Busy, words: list[str]) -> None:
    """An empty id, and a duration that is none."""
    assert busy

    assert check(*words).code == Exit.USAGE


def test_a_loop_is_seen_while_it_is_watched(trial: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task without a limit comes back twice a second; a few retries are no proof by themselves, their rise is."""
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    worker = trial.worker()
    looping = trial.send("retry_forever", 0.5)
    until(lambda: trial.ran(looping) >= 2, DEADLINE_S, "it has come back once")

    done = check(looping, "--watch", "20s", "-o", "json")
    ids = check(looping, "--watch", "20s", "-o", "ids")
    worker.kill()

    found = json.loads(done.out)
    assert (done.code, ids.code) == (Exit.ATTENTION, Exit.ATTENTION)
    assert found["is_loop"]
    assert found["rose_by"] >= 1
    assert found["sentence"].startswith("Yes: ")
    assert ids.out == f"{looping}\n"
