"""ops task stop on real nodes: what is stopped stays so, whoever dies and whoever joins, or is not said to be."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib.demo import server
from opslib.errors import Exit
from opslib.records import RunRecord
from opslib.render import archive
from opslib.writer import consumers, nodes, stop
from tests.command_line import Done, call
from tests.shop import contents
from tests.support.seed import envelope, quarantined, seed_waiting, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker, deployment

COUNTDOWN_S = 0.5
#: A node that hands its messages on soon after it has died.
HASTY = {"broker_transport_options": {"visibility_timeout": 3}}


@pytest.fixture
def system(trial: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A server as the default target; what a test leaves in it is cleared away, but for what nodes declared."""
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    for module in (stop, nodes, consumers):
        monkeypatch.setattr(module, "_ANSWER_S", 1.0)
    yield trial
    trial.redis.delete(*(key for key in trial.redis.scan_iter() if not key.startswith(b"_kombu.")), "nothing")


@pytest.fixture(scope="module")
def _steady(trial: Deployment) -> Worker:
    return trial.worker(name="steady@trial", queues="steady")


@pytest.fixture
def steady(system: Deployment, _steady: Worker) -> Worker:
    """A prefork node that lives as long as the module."""
    assert system
    return _steady


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A system of its own, in which no node remembers anything yet."""
    with server.start(tmp_path) as running, deployment(running, tmp_path) as made:
        monkeypatch.setenv("OPS_BROKER_URL", running.url)
        yield made


def newest(place: Path, name: str = "stop-task") -> RunRecord:
    """Return the record of a command's only run that was to change something."""
    (run,) = (run for run in archive.runs(place / "reports") if (run.runbook, run.dry_run) == (name, False))
    return run


def apply(*words: str) -> Done:
    """Carry out a command about tasks."""
    return call("task", *words, "--apply", "--yes")


def nowhere(system: Deployment, task_id: str) -> bool:
    """Say whether no list and no delivery holds a task, but for what is kept of it."""
    keys = [key for key in system.redis.scan_iter(_type="list") if b"opslib:" not in key]
    raws = [raw for key in keys for raw in system.redis.lrange(key, 0, -1)]
    return task_id not in system.unacked() and not any(task_id.encode() in raw for raw in raws)


def survive(system: Deployment, node: Worker, queue: str, *, wait_s: float = 0.0) -> None:
    """Kill a node, let another one join, and wait until it has run what comes last."""
    node.kill()
    heir = system.worker(queues=queue, conf=HASTY, ready=False)
    system.until_done(system.send("ok", queue=queue, countdown=wait_s or None))
    heir.kill()


class TestStop:
    """For good: whoever dies, and whoever joins."""

    def test_a_loop_stays_stopped_without_its_worker(self, system, place):
        """Its node is killed, and one joins that has never heard of it: no further attempt is ever begun."""
        node = system.worker(queues="loops", conf=HASTY, ready=False)
        loop = system.send("retry_forever", COUNTDOWN_S, queue="loops")
        until(lambda: system.ran(loop) >= 2, DEADLINE_S, "it has retried")

        done = apply("stop", loop)
        attempts = system.ran(loop)
        survive(system, node, "loops", wait_s=3 * COUNTDOWN_S)

        assert done.code == Exit.DONE, done
        assert system.ran(loop) == attempts
        assert nowhere(system, loop)
        (outcome,) = newest(place).outcomes
        assert (outcome["status"], outcome["reason"]) == ("applied", "Found nowhere, twice.")
        assert f"ops undo {newest(place).run_id}" in done.out
        assert "A node that remembers a stopped task would drop it at once" in done.out

    def test_what_waits_for_its_time_does_not_run(self, system, place):
        """One that is due after the stop, on a node that heard of it; one in an hour, on a node that is killed."""
        node = system.worker(queues="timed", conf=HASTY, ready=False)
        soon, far = (system.send("ok", queue="timed", countdown=after) for after in (3, 3600))
        system.until_unacked(soon, far)

        done = apply("stop", soon, far)
        assert done.code == Exit.DONE, done
        until(lambda: system.state(soon) == "REVOKED", DEADLINE_S, "its node has dropped it")
        survive(system, node, "timed", wait_s=1)

        assert (system.ran(soon), system.ran(far)) == (0, 0)
        assert nowhere(system, soon)
        assert nowhere(system, far)
        steps = {row["action"]: " ".join(row["steps"]) for row in newest(place).outcomes}
        number = {row["subject"]: row["id"] for row in newest(place).plan["actions"]}
        assert "its next attempt came due, and did not run" in steps[number[soon]]
        assert f"{node.name} drops what it remembers in 59 min" in steps[number[far]]

    def test_what_hangs_is_ended_and_its_node_works_on(self, system, steady):
        """On a prefork pool, not acknowledged: neither this process nor another one runs it again."""
        hung = system.send("hang_late", queue="steady")
        system.until_running(hung)

        plan = call("task", "stop", hung, "--json")
        done = apply("stop", hung)
        system.until_done(system.send("ok", queue="steady"))

        assert (plan.code, done.code) == (Exit.ATTENTION, Exit.DONE)
        assert f"Ended on {steady.name} and revoked everywhere; its work so far is lost" in plan.out
        assert (system.ran(hung), nowhere(system, hung)) == (1, True)

    @pytest.mark.parametrize("pool", ["threads", "solo"])
    def test_a_pool_that_cannot_end_it_is_not_said_to_have(self, system, place, pool):
        """It is told, and no success; the message is gone, so that it does not come back once the node has."""
        node = system.worker(queues="stuck", pool=pool, conf=HASTY, ready=False)
        hung = system.send("hang_late", queue="stuck")
        system.until_running(hung)
        until(lambda: hung in system.unacked(), DEADLINE_S, "it is delivered")

        plan = call("task", "stop", hung, "--json") if pool == "threads" else None
        done = apply("stop", hung)
        assert nowhere(system, hung)
        survive(system, node, "stuck")

        (outcome,) = newest(place).outcomes
        assert outcome["status"] == "failed"
        if plan:
            assert "a threads pool cannot end a running task" in plan.out
            assert f"still runs on {node.name}, whose pool cannot end it" in outcome["reason"]
            assert done.code == Exit.ATTENTION
        else:  # it answers nobody while it is busy, so nobody knows what it runs
            assert done.code == Exit.CANNOT_SEE
            assert "1 node did not confirm the revoke and may still run it" in outcome["reason"]
        assert system.ran(hung) == 1
        assert nowhere(system, hung)

    def test_a_frozen_node_leaves_it_unproven_and_drops_it_later(self, system, place):
        """It hears of the revoke when it goes on; until then nobody may say that the task is stopped."""
        node = system.worker(queues="frozen", ready=False)
        running = system.send("gate", queue="frozen")
        system.until_running(running)
        behind = system.send("late", 0, queue="frozen")
        system.until_unacked(running, behind)

        with node.frozen():
            unknown = call("task", "stop", "nobody-knows-it", "--json")
            done = apply("stop", behind)
        system.wait_for(node)
        system.redis.set("open", 1)
        system.until_done(running, system.send("ok", queue="frozen"))
        node.kill()

        assert unknown.code == Exit.CANNOT_SEE
        assert "whether it can still run is not known" in unknown.out
        assert "None of it was seen in circulation" in unknown.err
        assert done.code == Exit.CANNOT_SEE, done
        (outcome,) = newest(place).outcomes
        assert outcome["status"] == "failed"
        assert "Not proven: 1 node did not confirm" in outcome["reason"]
        assert system.ran(behind) == 0
        assert nowhere(system, behind)

    def test_one_id_that_waits_twice(self, alone, place):
        """Both copies are taken, of whatever list; undo puts both back."""
        system = alone
        seed_waiting(
            system.redis, queue="others"
        )  # without a task and a node, nobody could say what this server is for
        copies = [seed_waiting(system.redis, queue="strays", task_id="twice", priority=priority) for priority in (0, 6)]
        before = contents(system.redis)

        done = apply("stop", "twice")

        assert done.code == Exit.DONE, done
        assert "2 copies quarantined" in newest(place).outcomes[0]["steps"]
        assert sorted(quarantined(system.redis)["strays"]) == sorted(each.raw for each in copies)
        assert call("undo", newest(place).run_id, "--apply", "--yes").code == Exit.DONE
        after = {key: value for key, value in contents(system.redis).items() if not key.startswith(b"opslib:")}
        assert after == before

    def test_an_id_that_is_nowhere_is_told_with_every_place(self, system, steady, place):
        """There is nothing to do, and a person should know that; a run is not made of it."""
        assert system
        assert steady
        done = apply("stop", "nobody-knows-it")

        assert done.code == Exit.ATTENTION
        for word in ("waiting", "unacked", "reserved", "scheduled", "active", "result", "dead letters", "quarantine"):
            assert word in done.out
        assert "None of it is in circulation" in done.err
        assert not (place / "reports").exists()

    def test_one_of_two_ids_that_is_nowhere_is_not_passed_over(self, system, steady, place):
        """The other one is stopped; whoever named both is told."""
        assert steady
        there = seed_waiting(system.redis, queue="strays").task_id

        done = apply("stop", there, "nobody-knows-it")

        assert done.code == Exit.ATTENTION, done
        assert [row["status"] for row in newest(place).outcomes] == ["applied"]
        assert [(row["code"], row["subject"]) for row in newest(place).remaining] == [
            ("task-not-found", "nobody-knows-it")
        ]

    @pytest.mark.parametrize(
        "task_id", ["../../../etc/passwd", "[red]x[/red]<script>1</script>", "a/b?c#d%00", "-x", "ö\u202ex", "*"]
    )
    def test_any_id_is_just_an_id(self, system, place, task_id):
        """A path, markup or a wildcard in it means nothing."""
        other = seed_waiting(system.redis, queue="strays").task_id
        seed_waiting(system.redis, queue="strays", task_id=task_id)

        done = call("task", "stop", "--apply", "--yes", "--", task_id)

        assert done.code == Exit.DONE, done
        assert waiting_ids(system.redis, "strays") == [other]
        run = newest(place)
        assert [row["subject"] for row in run.plan["actions"]] == [task_id]
        report = (place / "reports" / run.report).read_text()
        assert "<script>1" not in report
        assert not list(place.glob("etc*"))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--task", "*"], "This means every task there is"),
            (["--state", "active"], "This means every task that is active"),
            (["--state", "running", "--limit", "3"], "'running' is none"),
            (["x", "--task", "shop.*"], "not by both"),
            ([], "No task was named"),
            ([""], "An empty text is no task id"),
            (["--retries", "-1"], "must not be negative"),
        ],
    )
    def test_what_means_everything_or_nothing_is_refused(self, system, place, words, said):
        """Before anything is begun; a script's empty variable must not mean every task."""
        seed_waiting(system.redis, queue="strays")
        before = contents(system.redis)

        done = apply("stop", *words)

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert said in done.err
        assert contents(system.redis) == before
        assert not (place / "reports").exists()

    def test_all_that_is_active(self, system, steady, place):
        """On every node, whatever its name; what waits is not meant."""
        other = system.worker(queues="other", ready=False)
        hung = [system.send("hang", queue=name) for name in ("steady", "other")]
        system.until_running(*hung)
        waits = seed_waiting(system.redis, queue="strays").task_id

        done = apply("stop", "--state", "active", "--limit", "50")
        other.kill()

        assert done.code == Exit.DONE, done
        assert sorted(row["subject"] for row in newest(place).plan["actions"]) == sorted(hung)
        assert {row["node"] for row in newest(place).plan["actions"]} == {steady.name, other.name}
        assert waiting_ids(system.redis, "strays") == [waits]
        assert [system.state(each) for each in hung] == ["REVOKED", "REVOKED"]

    def test_a_limit_says_that_there_are_more(self, system, steady, place):
        """Those are stopped that it allows; the exit code says that a person is needed for the rest."""
        assert steady
        for retries in (5, 5, 5, 1):
            seed_waiting(system.redis, "shop.charge", queue="strays", retries=retries)

        done = apply("stop", "--task", "shop.*", "--retries", "3", "--limit", "2")

        assert [row["status"] for row in newest(place).outcomes] == ["applied", "applied"]
        assert len(waiting_ids(system.redis, "strays")) == 2
        assert done.code == Exit.ATTENTION, "two of them are left"
        assert [row["message"] for row in newest(place).remaining] == ["The filter means 1 more than the limit allows."]

    def test_undo_waits_until_no_node_would_drop_it(self, alone, place):
        """A node that remembers the revoke would drop it, so it stays kept, and is no success; restarted, it runs."""
        system = alone
        node = system.worker(queues="idle")
        task_id = system.send("ok", queue="later")
        assert apply("stop", task_id).code == Exit.DONE
        run_id = newest(place).run_id

        early = call("undo", run_id, "--apply", "--yes", "--json")
        kept = quarantined(system.redis)
        node.kill()
        heir = system.worker(queues="later", ready=False)
        done = call("undo", run_id, "--apply", "--yes")
        system.until_done(task_id)
        heir.kill()

        assert early.code == Exit.ATTENTION
        assert "remembers the revoke" in early.out
        assert len(kept["later"]) == 1
        assert done.code == Exit.DONE, done
        assert system.ran(task_id) == 1


def test_an_id_is_taken_as_it_is(system) -> None:
    """One with a comma in it is one task, and its parts are others: none of them may be stopped in its place."""
    for task_id in ("order,12", "order", "12"):
        system.send("ok", queue="ids", task_id=task_id)

    done = apply("stop", "order,12")

    assert done.code == Exit.DONE, done
    assert sorted(waiting_ids(system.redis, "ids")) == ["12", "order"]


def test_a_copy_that_could_not_be_seen_is_not_proven_away(system, monkeypatch) -> None:
    """An unacknowledged message that is too large to be read may be another copy of it."""
    monkeypatch.setattr("opslib.collectors.unacked._LARGEST_BYTES", 3_000)
    system.send("ok", queue="ids", task_id="twice")
    big = json.dumps([envelope(task_id="twice", args=["x" * 4_000], tag="big"), "", "ids"])
    system.redis.hset("unacked", "big", big)
    system.redis.zadd("unacked_index", {"big": time.time()})

    done = apply("stop", "twice")

    assert done.code == Exit.CANNOT_SEE, done
    (outcome,) = newest(Path.cwd()).outcomes
    assert outcome["status"] == "failed"
    assert "Not proven: not everything could be seen: unacked" in outcome["reason"]
