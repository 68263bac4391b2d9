"""ops task revoke and reorder on real nodes: what is only revoked may come back, and one that moves moves no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib.demo import server
from opslib.errors import Exit
from opslib.records import RunRecord
from opslib.render import archive
from opslib.writer import nodes
from tests.command_line import Done, call
from tests.shop import contents
from tests.support.seed import KEYS, seed_result, seed_waiting, unacked, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker, deployment

#: A node that hands its messages on soon after it has died.
HASTY = {"broker_transport_options": {"visibility_timeout": 3}}


@pytest.fixture
def system(trial: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A server as the default target; what a test leaves in it is cleared away, but for what nodes declared."""
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    monkeypatch.setattr(nodes, "_ANSWER_S", 1.0)
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


def newest(place: Path, name: str) -> RunRecord:
    """Return the record of a command's only run that was to change something."""
    (run,) = (run for run in archive.runs(place / "reports") if (run.runbook, run.dry_run) == (name, False))
    return run


def apply(*words: str) -> Done:
    """Carry out a command about tasks."""
    return call("task", *words, "--apply", "--yes")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A system of its own, in which no node remembers anything yet."""
    with server.start(tmp_path) as running, deployment(running, tmp_path) as made:
        monkeypatch.setenv("OPS_BROKER_URL", running.url)
        yield made


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

        plan = call("task", "revoke", task_id, "--json").out
        done = apply("revoke", task_id)
        node.kill()
        until(lambda: _age_s(system, task_id) > 3, DEADLINE_S, "its delivery is old enough to be repeated")
        heir = system.worker(queues="hasty", conf=HASTY)
        system.until_done(task_id)
        heir.kill()

        assert system.ran(task_id) == 1
        assert "Nodes forget it when they are restarted" in plan
        assert "its message stays" in plan
        assert "It lives in their memory alone" in done.out
        assert "ops task stop" in done.out

    def test_without_a_node_nobody_would_know_of_it(self, alone, place):
        """So that nothing was done, and that is said with what to do instead."""
        task_id = seed_waiting(alone.redis, queue="strays").task_id

        apply("revoke", task_id)

        (outcome,) = newest(place, "revoke-task").outcomes
        assert outcome["status"] == "skipped"
        assert (
            outcome["reason"]
            == "No node listens, so that none would know of it. `ops task stop` takes its message away."
        )

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

        assert {each.code for each in (*said.values(), twice, done)} == {Exit.USAGE}
        assert unknown.code == Exit.ATTENTION
        for word, answer in said.items():
            assert f"does not wait: it is {'unacked, ' * (word != 'result')}{word}" in answer.err, answer
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
