"""Each task that dies is in its queue's dead-letter list exactly once, with the very bytes of its message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from opslib.demo import server as embedded
from opslib.letters import MOST_EXCEPTION, MOST_TRACEBACK, Letter
from tests.support.letters import dead, message, node, until_dead, waiting
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, deployment

#: Ways to die: the task → its cause, and the class of its exception.
DIES = {
    "boom": ("raised", "ValueError"),
    "boom_late": ("raised", "ValueError"),
    "boom_unacked": ("raised", "ValueError"),
    "boom_unpicklable": ("raised", "Unpicklable"),
    "boom_own": ("raised", "ValueError"),
    "exhausted": ("raised", "ConnectionError"),
    "endless_softly": ("raised", "SoftTimeLimitExceeded"),
    "rejecting": ("rejected", "Reject"),
    "rejecting_early": ("rejected", "Reject"),
    "killed": ("worker-lost", "WorkerLostError"),
    "killed_late": ("worker-lost", "WorkerLostError"),
    "leaving": ("worker-lost", "WorkerLostError"),
    "endless": ("time-limit", "TimeLimitExceeded"),
    "endless_late": ("time-limit", "TimeLimitExceeded"),
    "not_there": ("unknown-task", "NotRegistered"),
}
#: Ways not to: what goes back or goes on as another message, and does its work in the end.
LIVES = ["ok", "flaky", "requeueing", "killed_requeued", "endless_requeued"]
#: Messages that no task gets: what is changed about a good one.
UNREADABLE = {
    "of a content type that is refused": {"content-type": "application/x-python-serialize"},
    "with a body that is no JSON": {"body": "{"},
    "without a task": {"headers": None},
    "without anything": {"headers": None, "body": "[]"},
}


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """What every task of the module's node came to: names to ids, ids to bytes, and the list."""

    found: Deployment
    ids: dict[str, str]
    before: dict[str, bytes]
    letters: list[Letter]

    def of(self, name: str) -> list[Letter]:
        """Return the letters of a task, by the name that it has here."""
        return [each for each in self.letters if each.task_id == self.ids[name]]


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """Everything that can happen to a task on a prefork node, once each, from messages that were looked at before."""
    folder = tmp_path_factory.mktemp("aftermath")
    with embedded.start(folder) as server, deployment(server, folder) as found:
        ids = {name: found.send(name) for name in ("ok", "flaky", "ignoring", *DIES)}
        ids["requeueing"] = found.send("requeueing", 2)
        ids |= {name: found.send(name) for name in LIVES if name not in ids}
        ids["boom_huge"] = found.send("boom_huge", 200_000)
        ids["of priority"] = found.send("boom", priority=5)
        ids["expired"] = found.send("boom", expires=-1)
        for name, change in UNREADABLE.items():
            ids[name], raw = message("boom", **change)
            found.redis.lpush("celery", raw)
        ids["from another exchange"], raw = message("boom", "x", exchange="shop", routing_key="orders.eu")
        found.redis.lpush("celery", raw)
        ids["redriven"], raw = message("boom", headers={"x-redrive": 2, "retries": 1, "argsrepr": "('é',)"})
        found.redis.lpush("celery", raw)
        before = waiting(found.redis)
        assert before.keys() == set(ids.values())

        node(found, concurrency=2)
        found.until_done(*(ids[name] for name in LIVES))
        found.until_running(ids["ignoring"])
        gone = set(ids.values()) - {ids[name] for name in (*LIVES, "ignoring", "expired")}
        until_dead(found, *gone)
        until(lambda: not found.redis.llen("celery") and not found.redis.hlen("unacked"), DEADLINE_S, "nothing is left")
        yield Aftermath(found=found, ids=ids, before=before, letters=dead(found.redis))


@pytest.mark.parametrize("name", DIES)
def test_a_task_that_dies_has_one_letter_with_its_message(name: str, aftermath: Aftermath) -> None:
    """Whatever it died of, and wherever that was learnt: in a process of the pool, or in the one that misses it."""
    (letter,) = aftermath.of(name)

    assert (letter.cause, letter.exc_type) == DIES[name]
    assert (letter.task_name, letter.queue, letter.list_key) == (f"tests.{name}", "celery", "celery")
    if name == "exhausted":  # its last message is not its first
        first, last = json.loads(aftermath.before[letter.task_id]), json.loads(letter.message)
        assert (letter.retries, last["headers"]["retries"], last["body"]) == (1, 1, first["body"])
    else:
        assert letter.message == aftermath.before[letter.task_id]


@pytest.mark.parametrize("name", [*LIVES, "ignoring"])
def test_what_goes_on_goes_back_or_is_ignored_has_none(name: str, aftermath: Aftermath) -> None:
    """A message that is delivered again is not dead; nor is one whose task wants no outcome."""
    assert aftermath.of(name) == []
    assert aftermath.found.ran(aftermath.ids[name]) >= 1


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_message_that_no_task_gets_is_kept(name: str, aftermath: Aftermath) -> None:
    """A node drops what it cannot read, with no result that would tell."""
    (letter,) = aftermath.of(name)

    assert letter.cause == "undecodable"
    assert letter.message == aftermath.before[letter.task_id]
    assert not aftermath.found.ran(letter.task_id)


def test_expired_task_is_kept_on_request_alone(aftermath: Aftermath) -> None:
    """Who lets tasks expire does not want them back, as a rule."""
    assert aftermath.of("expired") == []
    assert aftermath.found.state(aftermath.ids["expired"]) == "REVOKED"


def test_a_letter_says_where_its_message_was(aftermath: Aftermath) -> None:
    """The queue is the one that it was taken from, whatever its routing key says; the list is that of its priority."""
    (letter,) = aftermath.of("of priority")
    assert (letter.queue, letter.list_key) == ("celery", "celery\x06\x163")

    (letter,) = aftermath.of("from another exchange")
    assert (letter.queue, letter.list_key) == ("celery", "celery")


def test_a_letter_says_how_its_task_died(aftermath: Aftermath) -> None:
    """By whom, when, where in the code, and after how many tries."""
    (letter,) = aftermath.of("redriven")
    assert (letter.redrives, letter.retries, letter.args) == (2, 1, "('é',)")

    (letter,) = aftermath.of("boom")
    assert letter.exception == "ValueError('boom')"
    assert letter.frame == "dying.py:boom"
    assert letter.worker.endswith("@trial")
    assert letter.failed_at.endswith("+00:00")
    assert abs(letter.failed_epoch - time.time()) < 600
    assert letter.redrives == letter.retries == 0
    assert (letter.args, letter.kwargs) == ("()", "{}")
    assert letter.v == 1
    assert len({each.entry_id for each in aftermath.letters}) == len(aftermath.letters)


def test_frames_of_a_pool_are_no_frames_of_the_task(aftermath: Aftermath) -> None:
    """Otherwise every task whose process was killed would have died of the same line."""
    assert [aftermath.of(name)[0].frame for name in ("killed", "endless", "leaving")] == ["", "", "dying.py:leaving"]


def test_an_endless_exception_is_cut_and_its_frames_stay(aftermath: Aftermath) -> None:
    """A letter is not as long as whatever an exception quotes."""
    (letter,) = aftermath.of("boom_huge")

    assert len(letter.exception) == MOST_EXCEPTION
    assert len(letter.traceback) <= MOST_TRACEBACK
    assert letter.frame == "dying.py:boom_huge"
    assert letter.message == aftermath.before[letter.task_id]


def test_an_exception_that_cannot_be_pickled_keeps_its_name(aftermath: Aftermath) -> None:
    """What Celery puts in its place says nothing to anybody."""
    (letter,) = aftermath.of("boom_unpicklable")

    assert letter.exception == "Unpicklable('one, two')"


def test_application_keeps_its_own_requests(aftermath: Aftermath) -> None:
    """A class that a task has for its requests is used as before."""
    assert aftermath.found.redis.hgetall("own requests") == {aftermath.ids["boom_own"].encode(): b"1"}


def test_nothing_was_lost_or_left_over(aftermath: Aftermath) -> None:
    """Called twice it captures once; and the only keys of its own are the list and the number of the last batch."""
    redis = aftermath.found.redis
    own = {key for key in redis.scan_iter() if key.startswith(b"opslib:") or key.endswith(b".dead")}

    assert len(aftermath.letters) == len({each.task_id for each in aftermath.letters})
    assert {key.rpartition(b":")[0] for key in own} == {b"", b"opslib:dead:from"}
    assert all(0 < redis.ttl(key) <= 86_400 for key in own if key.startswith(b"opslib:"))


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_other_pools(pool: str, trial: Deployment) -> None:
    """The node itself runs the tasks: what it survives is captured."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    trial.redis.flushall()
    dies = ["boom", "boom_late", "exhausted", "rejecting", "not_there"] + (["endless"] if pool == "gevent" else [])
    ids = {name: trial.send(name) for name in (*dies, "ok", "flaky", "ignoring")}
    ids["requeueing"] = trial.send("requeueing", 1)
    before = waiting(trial.redis)

    running = node(trial, pool=pool, concurrency=1 if pool == "solo" else 3)
    found = until_dead(trial, *(ids[name] for name in dies))
    trial.until_done(ids["ok"], ids["flaky"], ids["requeueing"])
    trial.until_running(ids["ignoring"])
    running.kill()

    assert {each.task_id for each in dead(trial.redis)} == found.keys() == {ids[name] for name in dies}
    assert len(dead(trial.redis)) == len(dies)
    for name in dies:
        letter = found[ids[name]]
        assert (letter.cause, letter.exc_type) == DIES[name]
        assert name == "exhausted" or letter.message == before[letter.task_id]


def test_same_message_that_dies_again_is_another_letter(trial: Deployment) -> None:
    """One that is sent again, and fails again, has failed twice."""
    trial.redis.flushall()
    task_id = trial.send("boom")
    (raw,) = waiting(trial.redis).values()
    running = node(trial, pool="solo")
    until_dead(trial, task_id)
    trial.redis.lpush("celery", raw)
    until(lambda: len(dead(trial.redis)) == 2, DEADLINE_S, "there are two letters")
    running.kill()

    first, second = dead(trial.redis)
    assert first.entry_id != second.entry_id
    assert first.message == second.message == raw


def test_task_that_says_memory_error_takes_its_node_along_but_is_kept(trial: Deployment) -> None:
    """Celery ends the whole node then; the letter is written on the way out."""
    trial.redis.flushall()
    task_id = trial.send("boom_memory")
    running = node(trial, ready=False)
    until(running.child.has_gone, DEADLINE_S, "the node has ended")

    assert [(each.task_id, each.exc_type) for each in dead(trial.redis)] == [(task_id, "MemoryError")]


def test_cold_shutdown_keeps_what_it_ends_for_good(trial: Deployment) -> None:
    """Acknowledged when it began, a task that a cold shutdown ends is in no place any more; a late one goes back."""
    trial.redis.flushall()
    early, late = trial.send("hang"), trial.send("hang_late")
    before = waiting(trial.redis)
    running = node(trial, concurrency=2)
    trial.until_running(early, late)
    os.kill(running.child.pid, signal.SIGQUIT)
    found = until_dead(trial, early)
    until(lambda: late in waiting(trial.redis), DEADLINE_S, "the late one is back")
    until(running.child.has_gone, DEADLINE_S, "the node has ended")

    assert [each.task_id for each in dead(trial.redis)] == [early]
    assert (found[early].cause, found[early].message) == ("worker-lost", before[early])


def test_task_that_somebody_stopped_is_not_kept(trial: Deployment) -> None:
    """A revoke is no failure, even where it kills a process."""
    trial.redis.flushall()
    hung, waits, after = trial.send("hang"), trial.send("boom"), trial.send("boom", queue="after")
    running = node(trial, queues="celery,after", conf={"worker_prefetch_multiplier": 1})
    trial.until_running(hung)
    trial.app.control.revoke([waits, hung], terminate=True, signal="SIGKILL")
    until_dead(trial, after, key="after.dead")
    running.kill()

    assert dead(trial.redis) == []
    assert trial.state(hung) == "REVOKED"


def test_a_process_that_only_sends_loads_nothing_of_a_node() -> None:
    """One line in the application, which the web processes import as well."""
    code = """
import sys, celery
app = celery.Celery("shop")
before = set(sys.modules)
from opslib import worker
worker.capture(app)
new = {name for name in set(sys.modules) - before}
print(*sorted(name for name in new if name.split(".")[0] in {"redis", "pandas", "typer", "IPython"}
      or name.startswith(("celery.worker", "celery.bootsteps"))))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.split() == []
