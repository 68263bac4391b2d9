"""Dead letters of real nodes are sent again: each runs once, whatever is killed, and what depends on it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from opslib import letters
from opslib.errors import Exit
from tests.command_line import OPS, call, start
from tests.support.graveyard import bury, letter
from tests.support.seed import KEYS, envelope
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

MODULE = "tests.support.mending"
LETTERS = 1_000


@pytest.fixture
def system(trial, archive, monkeypatch):
    """A server as the default target, and an archive for its runs."""
    assert archive
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    yield trial
    trial.redis.flushdb()


@pytest.fixture
def node(system):
    """A node that captures what dies on it."""
    found = system.worker(module=MODULE, concurrency=2)
    yield found
    found.kill()


def dead(system):
    """Return the letters that there are."""
    return [letters.read(raw) for raw in system.redis.lrange("celery.dead", 0, -1)]


def redriven(*words):
    """Send all letters again and return what was said."""
    return call("dead", "redrive", "--queue", "celery", *words, "--apply", "--yes")


def effect():
    """Return what the plan says of sending all letters again."""
    (action,) = json.loads(call("dead", "redrive", "--queue", "celery", "-o", "json").out)["plan"]["actions"]
    return action["effect"]


def workflow(system, name, *arguments):
    """Have a workflow sent by a process of its own, as applications do; return the id of its last task."""
    code = f"from {MODULE} import {name}; print({name}(*{arguments!r}).id)"
    environment = {**os.environ, "TRIAL_URL": system.server.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def result(system, task_id):
    """Return what a task has given back."""
    return json.loads(system.redis.get(KEYS.result(task_id)))["result"]


@pytest.mark.timeout(240)
def test_each_of_a_thousand_runs_once_though_the_runbook_is_killed_again_and_again(system, tmp_path):
    """Killed without a word five times, while nodes consume; what is there then is what was not sent."""
    some = [letter(message=envelope("tests.ok")) for _ in range(LETTERS)]
    bury(system.redis, *some)
    node = system.worker(concurrency=2)
    words = ("dead", "redrive", "--queue", "celery", "--rate", "150/s", "--apply", "--yes")

    for _ in range(5):
        before = system.redis.llen("celery.dead")
        with start(*words, env=dict(os.environ), cwd=tmp_path) as process:
            until(lambda n=before: system.redis.llen("celery.dead") < n - 50, DEADLINE_S, "some were sent")
            process.send_signal(signal.SIGKILL)
            process.wait()
        system.redis.delete(KEYS.lock)
    assert system.redis.llen("celery.dead") > 0
    done = subprocess.run([OPS, *words[:4], *words[6:]], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == Exit.DONE, done.stderr
    ids = [each.task_id for each in some]
    until(lambda: sum(map(system.ran, ids)) >= LETTERS, DEADLINE_S * 2, "all of them have run")
    node.kill()
    assert Counter(map(system.ran, ids)) == {1: LETTERS}
    assert not system.redis.exists("celery.dead")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_chord_goes_on_once_its_failed_tasks_have_run(system, node, failing):
    """Its body runs with the results of all, and its failure becomes success."""
    body = workflow(system, "workflow_of_chord", 4, failing)
    until(lambda: len(dead(system)) == failing, DEADLINE_S, "each of its failures is captured")
    until(lambda: system.state(body) == "FAILURE", DEADLINE_S, "the chord has failed")
    system.redis.set("mended", 1)

    planned, done = effect(), redriven()

    assert node
    assert done.code == Exit.DONE, done.out
    assert "whose count" in planned
    system.until_done(body)
    assert result(system, body) == sum(range(4))
    assert system.ran(body) == 1
    assert not dead(system)


def test_a_chain_goes_on_where_it_broke(system, node):
    """Its rest stands in the message of the task that failed."""
    last = workflow(system, "workflow_of_chain")
    until(lambda: dead(system), DEADLINE_S, "its failure is captured")
    system.redis.set("mended", 1)

    planned, done = effect(), redriven()

    assert node
    assert done.code == Exit.DONE, done.out
    assert "1 has a chain, which goes on after it." in planned
    system.until_done(last)
    assert result(system, last) == 111


def test_what_fails_again_and_again_is_sent_three_times_and_no_more(system, node):
    """Each time it comes back with one more; then somebody has to mend the cause."""
    task_id = system.send("needs")

    for times in range(4):
        until(lambda n=times: [each.redrives for each in dead(system)] == [n], DEADLINE_S, f"{times} times")
        done = redriven()

    assert node
    assert done.code == Exit.USAGE
    assert "sent again 3 times already" in done.err
    assert system.ran(task_id) == 4
    assert len(dead(system)) == 1


def test_what_was_revoked_runs_only_under_a_new_id(system, node):
    """Under its own, nodes would drop it without a word."""
    task_id = system.send("needs")
    until(lambda: dead(system), DEADLINE_S, "its failure is captured")
    system.redis.set("mended", 1)
    system.app.control.revoke(task_id, reply=True, destination=[node.name])

    refused = redriven()
    sent = redriven("--new-ids")

    assert "1 refused: revoked" in refused.err
    assert sent.code == Exit.DONE, sent.out
    until(lambda: not dead(system), DEADLINE_S, "it was sent")
    until(lambda: system.redis.hlen("ran") == 2, DEADLINE_S, "it runs under its new id")
    assert system.ran(task_id) == 1
