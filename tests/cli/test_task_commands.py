"""ops task stop, revoke and reorder on real nodes: what is stopped stays so, what is only revoked may come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib.errors import Exit
from opslib.records import RunRecord
from opslib.render import archive
from opslib.writer import consumers, nodes, stop
from tests.command_line import Done, call
from tests.shop import contents
from tests.support.seed import KEYS, quarantined, seed_result, seed_waiting, unacked, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker

COUNTDOWN_S = 0.5
#: A node that hands its messages on soon after it has died.
HASTY = {"broker_transport_options": {"visibility_timeout": 3}}


@pytest.fixture
def system(trial: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A server as the default target; what a test leaves in it is cleared away, but for what nodes declared."""
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    for module in (stop_module(), nodes, consumers):
        monkeypatch.setattr(module, "_ANSWER_S", 1.0)
    yield trial
    trial.redis.delete(*(key for key in trial.redis.scan_iter() if not key.startswith(b"_kombu.")), "nothing")


def stop_module() -> object:
    """Return the module; the package gives its name to a function."""
    from importlib import import_module

    assert callable(stop)
    return import_module("opslib.writer.stop")


@pytest.fixture(scope="module")
def _steady(trial: Deployment) -> Worker:
    return trial.worker(name="steady@trial", queues="steady")


@pytest.fixture
def steady(system: Deployment, _steady: Worker) -> Worker:
    """A prefork node that lives as long as the module."""
    assert system
    return _steady


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
    heir = system.worker(queues=queue, conf=HASTY)
    system.until_done(system.send("ok", queue=queue, countdown=wait_s or None))
    heir.kill()


class TestStop:
    """For good: whoever dies, and whoever joins."""

    def test_a_loop_stays_stopped_without_its_worker(self, system, place):
        """Its node is killed, and one joins that has never heard of it: no further attempt is ever begun."""
        node = system.worker(queues="loops", conf=HASTY)
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

    def test_what_waits_for_its_time_does_not_run(self, system, place):
        """One that is due after the stop, on a node that heard of it; one in an hour, on a node that is killed."""
        node = system.worker(queues="timed", conf=HASTY)
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

        plan = call("task", "stop", hung)
        done = apply("stop", hung)
        system.until_done(system.send("ok", queue="steady"))

        assert (plan.code, done.code) == (Exit.ATTENTION, Exit.DONE)
        assert f"Ended on {steady.name} and revoked everywhere; its work so far is lost" in " ".join(plan.out.split())
        assert (system.ran(hung), nowhere(system, hung)) == (1, True)

    @pytest.mark.parametrize("pool", ["threads", "solo"])
    def test_a_pool_that_cannot_end_it_is_not_said_to_have(self, system, place, pool):
        """It is told, and no success; the message is gone, so that it does not come back once the node has."""
        node = system.worker(queues="stuck", pool=pool, conf=HASTY)
        hung = system.send("hang_late", queue="stuck")
        system.until_running(hung)
        until(lambda: hung in system.unacked(), DEADLINE_S, "it is delivered")

        plan = call("task", "stop", hung)
        done = apply("stop", hung)
        assert nowhere(system, hung)
        survive(system, node, "stuck")

        (outcome,) = newest(place).outcomes
        assert outcome["status"] == "failed"
        if pool == "threads":
            assert "a threads pool cannot end a running task" in " ".join(plan.out.split())
            assert f"still runs on {node.name}, whose pool cannot end it" in outcome["reason"]
            assert done.code == Exit.ATTENTION
        else:  # it answers nobody while it is busy, so nobody knows what it runs
            assert (plan.code, done.code) == (Exit.CANNOT_SEE, Exit.CANNOT_SEE)
            assert "1 node did not confirm the revoke and may still run it" in outcome["reason"]
        assert system.ran(hung) == 1
        assert nowhere(system, hung)

    def test_a_frozen_node_leaves_it_unproven_and_drops_it_later(self, system, place):
        """It hears of the revoke when it goes on; until then nobody may say that the task is stopped."""
        node = system.worker(queues="frozen")
        running = system.send("gate", queue="frozen")
        system.until_running(running)
        behind = system.send("late", 0, queue="frozen")
        system.until_unacked(running, behind)

        with node.frozen():
            unknown = call("task", "stop", "nobody-knows-it")
            done = apply("stop", behind)
        system.wait_for(node)
        system.redis.set("open", 1)
        system.until_done(running, system.send("ok", queue="frozen"))
        node.kill()

        assert unknown.code == Exit.CANNOT_SEE
        assert "whether it can still run is not known" in " ".join(unknown.out.split())
        assert "None of it was seen in circulation" in unknown.err
        assert done.code == Exit.CANNOT_SEE, done
        (outcome,) = newest(place).outcomes
        assert outcome["status"] == "failed"
        assert "Not proven: 1 node did not confirm" in outcome["reason"]
        assert system.ran(behind) == 0
        assert nowhere(system, behind)

    def test_one_id_that_waits_twice(self, system, place):
        """Both copies are taken, of whatever list; undo puts both back."""
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
        other = system.worker(queues="other")
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
        assert done.code == Exit.DONE or "more" in done.out

    def test_undo_waits_until_no_node_would_drop_it(self, system, place):
        """A node that remembers the revoke would drop it, so it stays kept, and that is no success; restarted, it runs."""
        node = system.worker(queues="idle")
        task_id = system.send("ok", queue="later")
        assert apply("stop", task_id).code == Exit.DONE
        run_id = newest(place).run_id

        early = call("undo", run_id, "--apply", "--yes")
        kept = quarantined(system.redis)
        node.kill()
        heir = system.worker(queues="later")
        done = call("undo", run_id, "--apply", "--yes")
        system.until_done(task_id)
        heir.kill()

        assert early.code == Exit.ATTENTION
        assert "remembers the revoke" in " ".join(early.out.split())
        assert len(kept["later"]) == 1
        assert done.code == Exit.DONE, done
        assert system.ran(task_id) == 1


class TestRevoke:
    """A word to those who listen now, and no more than that."""

    def test_a_node_that_was_told_drops_it(self, system, place):
        """It has it in advance, and does not begin it; what runs goes on."""
        node = system.worker(queues="told")
        running = system.send("gate", queue="told")
        system.until_running(running)
        behind = system.send("late", 0, queue="told")
        system.until_unacked(running, behind)

        done = apply("revoke", behind, running)
        system.redis.set("open", 1)
        system.until_done(running, system.send("ok", queue="told"))
        node.kill()

        assert done.code == Exit.DONE, done
        assert [row["status"] for row in newest(place, "revoke-task").outcomes] == ["applied", "applied"]
        assert (system.ran(running), system.ran(behind), system.state(behind)) == (1, 0, "REVOKED")

    def test_after_its_death_it_comes_back_and_that_was_said(self, system):
        """The node that remembered is gone, the message is not: another one runs it."""
        node = system.worker(queues="hasty", conf=HASTY)
        task_id = system.send("ok", queue="hasty", countdown=4)
        system.until_unacked(task_id)

        plan = call("task", "revoke", task_id)
        done = apply("revoke", task_id)
        node.kill()
        until(lambda: _age_s(system, task_id) > 3, DEADLINE_S, "its delivery is old enough to be repeated")
        heir = system.worker(queues="hasty", conf=HASTY)
        system.until_done(task_id)
        heir.kill()

        assert system.ran(task_id) == 1
        assert "Nodes forget it when they are restarted" in " ".join(plan.out.split())
        assert "its message stays" in " ".join(plan.out.split())
        assert "It lives in their memory alone" in " ".join(done.out.split())
        assert "ops task stop" in done.out

    def test_without_a_node_nobody_would_know_of_it(self, system, place):
        """Which is no success that anybody could rely upon."""
        steady = seed_waiting(system.redis, queue="strays").task_id
        for name in ("steady@trial",):
            system.app.control.broadcast("ping", destination=[name])

        done = apply("revoke", steady, "--task", "shop.*")

        assert done.code == Exit.USAGE
        assert not (place / "reports").exists()

    def test_a_filter_that_means_nothing(self, system, steady, place):
        """It is told, and nothing begun."""
        assert system
        assert steady
        done = apply("revoke", "--task", "shop.nothing*")

        assert done.code == Exit.ATTENTION
        assert "No such task is in flight" in done.err
        assert not (place / "reports").exists()


class TestReorder:
    """One message moves, and every other one keeps its place in the row."""

    @pytest.mark.parametrize(
        ("to", "at"), [("next", 0), ("0", 0), ("1", 1), ("4", 4), ("7", 7), ("last", 9), ("9", 9), ("07", 7)]
    )
    @pytest.mark.parametrize("start", [0, 5, 9])
    def test_it_goes_where_it_was_told_to(self, system, place, start, to, at):
        """With so many before it; undo brings it back."""
        ids = [seed_waiting(system.redis, queue="strays", priority=3).task_id for _ in range(10)]
        seed_waiting(system.redis, queue="strays")
        before = contents(system.redis)
        chosen = ids.pop(start)

        done = apply("reorder", chosen, "--to", to)

        assert done.code == Exit.DONE, done
        assert waiting_ids(system.redis, "strays", 3) == [*ids[:at], chosen, *ids[at:]]
        call("undo", newest(place, "reorder-task").run_id, "--apply", "--yes")
        assert {key: value for key, value in contents(system.redis).items() if not key.startswith(b"opslib:")} == before

    def test_while_a_worker_takes_from_the_queue(self, system, place):
        """The last of them is run long before those that stood before it; each of them once, the others in order."""
        node = system.worker(queues="live")
        ids = [f"r{n:03}" for n in range(400)]
        for each in ids:
            seed_waiting(system.redis, queue="live", task_id=each)

        done = apply("reorder", ids[-1], "--to", "next")
        system.until_done(*ids)
        node.kill()

        assert done.code == Exit.DONE, done
        assert newest(place, "reorder-task").outcomes[0]["status"] == "applied"
        order = in_order(system, ids)
        assert set(system.redis.hvals("ran")) == {b"1"}
        assert [each for each in order if each != ids[-1]] == ids[:-1]
        assert order.index(ids[-1]) < len(ids) - 20

    @pytest.mark.parametrize(
        ("to", "said"),
        [
            ("3", "places are 0 to 2, not 3"),
            ("99999999999999999999", "places are 0 to 2"),
            ("x", "is no place"),
            ("-1", "is no place"),
            ("1.5", "is no place"),
            ("\u0663", "is no place"),
            ("", "is no place"),
            ("Next", "is no place"),
        ],
    )
    def test_a_place_that_is_none_is_refused(self, system, place, to, said):
        """With those that there are."""
        ids = [seed_waiting(system.redis, queue="strays").task_id for _ in range(3)]

        done = apply("reorder", ids[0], f"--to={to}")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert said in done.err
        assert waiting_ids(system.redis, "strays") == ids
        assert not (place / "reports").exists()

    def test_what_has_no_place_in_a_queue_is_refused_with_why(self, system, place):
        """A node has it, or it waits for its next attempt, is finished, unknown, or there twice."""
        node = system.worker(queues="held")
        ids = {"result": system.send("ok", queue="held")}
        system.until_done(ids["result"])
        ids["scheduled"] = system.send("retry_forever", 600, queue="held")
        until(lambda: system.state(ids["scheduled"]) == "RETRY", DEADLINE_S, "it waits for its next attempt")
        ids["active"] = system.send("gate", queue="held")
        system.until_running(ids["active"])
        ids["reserved"] = system.send("late", 0, queue="held")
        system.until_unacked(ids["active"], ids["reserved"])
        seed_waiting(system.redis, queue="strays", task_id="twice")
        seed_waiting(system.redis, queue="strays", task_id="twice", priority=9)
        finished = seed_result(system.redis, "SUCCESS")

        said = {word: apply("reorder", task_id) for word, task_id in ids.items()}
        twice, unknown, done = (apply("reorder", each) for each in ("twice", "nobody-knows-it", finished))
        system.redis.set("open", 1)
        system.until_done(ids["active"], ids["reserved"])
        node.kill()

        assert {each.code for each in (*said.values(), twice, unknown, done)} == {Exit.USAGE}
        for word, answer in said.items():
            assert f"does not wait: it is {'unacked, ' * (word not in {'result'})}{word}" in answer.err, answer
        assert "does not wait: it is result" in done.err
        assert "waits 2 times; which of them is meant?" in twice.err
        assert "was found nowhere" in unknown.err
        assert not (place / "reports").exists()


def in_order(system: Deployment, ids: list[str]) -> list[str]:
    """Return tasks in the order in which they were finished."""
    results = [json.loads(raw) for raw in system.redis.mget([KEYS.result(each) for each in ids])]
    return [each["task_id"] for each in sorted(results, key=lambda each: each["date_done"])]


def _age_s(system: Deployment, task_id: str) -> float:
    """Return for how long a task's message has been delivered."""
    tag = unacked(system.redis)[task_id][0]["properties"]["delivery_tag"]
    return float(system.redis.time()[0]) - float(system.redis.zscore(KEYS.unacked_index, tag))
