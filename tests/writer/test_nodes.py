"""Nodes are told to resize, to slow down, to drop a task: it is so as they say themselves, and goes back by run id."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from opslib import plan as plans
from opslib import records
from opslib.collectors.parts import nodes
from opslib.plan import Action, Kind
from opslib.symptoms import asked
from opslib.writer import apply, journal, pools, rates, resume, undo
from opslib.writer import nodes as ordering
from tests.support import servers
from tests.support.impostor import listening, reply
from tests.support.plans import RUN, planned, told, undone
from tests.support.seed import seed_unacked
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

pytestmark = pytest.mark.usefixtures("archive")

POOL, OTHER, SOLO, THREADS = "pool@trial", "other@trial", "solo@trial", "threads@trial"
TASK = "tests.slow_lane"


@pytest.fixture(scope="module")
def workers(trial):
    """Four nodes that live as long as the module, by name."""
    started = [
        trial.worker(name=POOL, concurrency=3, queues="pool", ready=False),
        trial.worker(name=OTHER, queues="other", ready=False),
        trial.worker(name=SOLO, pool="solo", queues="solo", ready=False),
        trial.worker(name=THREADS, pool="threads", queues="threads", ready=False),
    ]
    for each in started:
        trial.wait_for(each)
    return {each.name: each for each in started}


@pytest.fixture
def broker(trial, workers):
    """Open clients of the server that the nodes work for."""
    assert workers
    return servers.broker(trial.server)


def seen(broker):
    """Return the nodes that answer, by name."""
    return {row.name: row for row in nodes(broker)[0] if row.answered}


def limits(broker, task=TASK):
    """Return each node's limit of a task."""
    return {name: each.rate_limit for name, row in seen(broker).items() for each in row.tasks if each.name == task}


def run_id():
    """Return the id of the run that this test is."""
    return records.context().run_id


def once(broker, *actions, continues=""):
    """Carry actions out; return what became of each, with why."""
    plan = replace(planned(broker, *actions), continues=continues)
    return [(str(o.status), o.reason) for o in apply(plan, broker, dry_run=False)]


def resized(broker, name, by):
    """Return the action that has a node grow or shrink."""
    return asked.resized(seen(broker)[name], by)


def limited(broker, rate, *names):
    """Return the action that has nodes keep to a rate."""
    (action,) = asked.limited(
        TASK, rate, [row for name, row in seen(broker).items() if name in (names or seen(broker))]
    )
    return action


class TestPools:
    """Processes are added and taken away while tasks run."""

    def test_a_pool_grows_and_goes_back(self, broker):
        """Its prefetch goes with it, both ways."""
        before = seen(broker)[POOL]

        ((status, reason),) = once(broker, resized(broker, POOL, 2))
        assert (status, reason.partition(".")[0]) == ("applied", f"{POOL} has 5 by now, and had 3 before")
        grown = seen(broker)[POOL]
        assert (grown.concurrency, grown.prefetch) == (5, before.prefetch * 5 // 3)
        (action,) = undo.plan(broker, run_id())
        assert (action.count, action.effect.partition(",")[0]) == (2, f"{POOL} gives up 2 processes")
        assert told(undone(broker, run_id())) == ["applied"]

        after = seen(broker)[POOL]
        assert (after.concurrency, after.prefetch) == (before.concurrency, before.prefetch)
        assert len(undo.plan(broker, run_id())) == 0

    def test_a_pool_shrinks_and_goes_back(self, broker):
        """One by one."""
        before = seen(broker)[POOL]

        ((status, reason),) = once(broker, resized(broker, POOL, -2))
        assert (status, reason.partition(".")[0]) == ("applied", f"{POOL} has 1 by now, and had 3 before")
        (action,) = undo.plan(broker, run_id())
        assert (action.count, action.effect.partition(",")[0]) == (2, f"{POOL} gets back 2 processes")
        assert told(undone(broker, run_id())) == ["applied"]

        after = seen(broker)[POOL]
        assert (after.concurrency, after.prefetch) == (before.concurrency, before.prefetch)
        assert len(undo.plan(broker, run_id())) == 0

    def test_a_busy_process_is_not_taken_away(self, broker, trial):
        """What went before the node said no is told, and comes back; its prefetch is right."""
        before = seen(broker)[POOL]
        running = [trial.send("gate", queue="pool") for _ in range(2)]
        trial.until_running(*running)
        try:
            ((status, reason),) = once(broker, resized(broker, POOL, -2))

            assert status == "failed"
            assert "All processes busy!" in reason
            assert f"{POOL} has 2 by now, and had 3 before." in reason
            assert (seen(broker)[POOL].concurrency, seen(broker)[POOL].prefetch) == (2, before.prefetch * 2 // 3)
            (action,) = undo.plan(broker, run_id())
            assert action.count == 1
            assert told(undone(broker, run_id())) == ["applied"]
        finally:
            trial.redis.set("open", 1)
            trial.until_done(*running)
            trial.redis.delete("open")
        assert (seen(broker)[POOL].concurrency, seen(broker)[POOL].prefetch) == (3, before.prefetch)

    @pytest.mark.parametrize("by", [1, 2, 100])
    def test_one_process_has_to_stay(self, broker, by):
        """Without any, a node would take tasks and run none."""
        ((status, reason),) = once(broker, resized(broker, OTHER, -by))

        assert (status, "one has to stay" in reason) == ("skipped", True)
        assert seen(broker)[OTHER].concurrency == 1
        assert not journal.read(broker, run_id()).batches

    @pytest.mark.parametrize("name", [SOLO, THREADS])
    @pytest.mark.parametrize("by", [1, -1])
    def test_a_pool_that_cannot_is_left_alone(self, broker, name, by):
        """Their nodes would answer with an error of Python's."""
        ((status, reason),) = once(broker, resized(broker, name, by))

        assert status == "skipped"
        assert "cannot change its size while it runs" in reason
        refused, mute = ordering.tell(broker, "pool_grow", {"n": 1}, [name])
        assert "has no attribute 'grow'" in refused[name]
        assert not mute

    @pytest.mark.parametrize("text", ["0", "", "-1", "101", "many", "1.5"])
    def test_what_is_no_number_is_no_order(self, broker, text):
        """Whoever wrote the plan."""
        action = replace(resized(broker, POOL, 1), destination=text)

        ((status, reason),) = once(broker, action)

        assert (status, reason) == ("skipped", "It says no number from 1 to 100.")

    def test_a_node_that_scales_itself_says_so(self, broker, trial):
        """In its own words; there is nothing to undo."""
        scaling = trial.launch(
            "scaling@trial",
            [
                "-A",
                "tests.support.app",
                "worker",
                "-n",
                "scaling@trial",
                "--autoscale=3,1",
                "-Q",
                "scaling",
                "-l",
                "ERROR",
            ],
            {"TRIAL_URL": trial.server.url},
            trial.folder,
        )
        try:
            trial.wait_for(scaling)
            ((status, reason),) = once(broker, resized(broker, "scaling@trial", 1))
        finally:
            scaling.kill()

        assert status == "failed"
        assert "scaling@trial says: pool_grow is not supported with autoscale" in reason
        assert len(undo.plan(broker, run_id())) == 0

    def test_a_node_that_is_not_there_is_not_told(self, broker):
        """And what could not be seen is said."""
        gone = replace(resized(broker, POOL, 1), subject="w9@trial")

        ((status, reason),) = once(broker, gone)

        assert (status, reason) == ("skipped", "w9@trial is not among the nodes that answer.")

    def test_a_frozen_node_is_not_vouched_for(self, broker, workers, monkeypatch):
        """It was there when it was looked for; what it does once it goes on is not known."""
        tell = ordering.tell

        def freezing(*order):
            workers[POOL].freeze()
            return tell(*order)

        action = resized(broker, POOL, 1)
        with monkeypatch.context() as patched:
            patched.setattr(ordering, "tell", freezing)
            patched.setattr(ordering, "_ANSWER_S", 0.5)
            patched.setattr(pools, "_ANSWER_S", 0.5)
            try:
                ((status, reason),) = once(broker, action)
            finally:
                workers[POOL].thaw()

        assert (status, f"{POOL} did not answer" in reason) == ("unverified", True)
        until(lambda: seen(broker)[POOL].concurrency == 4, DEADLINE_S, "the node did as it was told")
        assert told(undone(broker, run_id())) == ["applied"]
        assert seen(broker)[POOL].concurrency == 3

    def test_what_somebody_else_did_meanwhile_stays(self, broker, trial):
        """Never more is taken back than the node has beyond what it had."""
        once(broker, resized(broker, POOL, 2))
        trial.app.control.pool_shrink(1, destination=[POOL], reply=True, timeout=1)
        until(lambda: seen(broker)[POOL].concurrency == 4, DEADLINE_S, "somebody else shrank it")

        assert told(undone(broker, run_id())) == ["applied"]

        assert seen(broker)[POOL].concurrency == 3
        assert len(undo.plan(broker, run_id())) == 0

    def test_an_order_that_was_never_given_is_not_undone(self, broker, monkeypatch):
        """A run was cut off between its journal and the node: the node says what is so."""
        action = resized(broker, POOL, 1)

        def cut(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(ordering, "tell", cut)
            with pytest.raises(KeyboardInterrupt):
                once(broker, action)

        (outcome,) = undone(broker, run_id())

        assert (str(outcome.status), "as it had before" in outcome.reason) == ("skipped", True)
        assert seen(broker)[POOL].concurrency == 3
        assert len(undo.plan(broker, run_id())) == 0


class TestLimits:
    """A task is slowed down, and let go again."""

    @pytest.fixture(autouse=True)
    def unlimited(self, trial, broker):
        """No limit anywhere before and after."""
        yield
        trial.app.control.rate_limit(TASK, None, reply=True, timeout=1)
        assert set(limits(broker).values()) == {""}
        trial.redis.delete("unacked", "unacked_index")

    def test_every_node_that_has_the_task_keeps_to_it_and_goes_back(self, broker):
        """Of any pool, each to what it had."""
        assert once(broker, limited(broker, "600/m", OTHER), continues=RUN)[0][0] == "applied"
        before = limits(broker)
        assert before == {POOL: "", OTHER: "600/m", SOLO: "", THREADS: ""}

        ((status, reason),) = once(broker, limited(broker, "1/h"))
        assert (status, reason) == ("applied", f"1/h at most on {OTHER}, {POOL}, {SOLO}, {THREADS}.")
        assert set(limits(broker).values()) == {"1/h"}
        assert once(broker, limited(broker, "1/h"))[0][0] == "skipped"

        (action,) = undo.plan(broker, run_id())
        assert action.count == 4
        assert told(undone(broker, run_id())) == ["applied"]
        assert limits(broker) == before
        assert len(undo.plan(broker, run_id())) == 0
        assert told(undone(broker, RUN)) == ["applied"]

    @pytest.mark.parametrize("none", ["none", "0", ""])
    def test_no_limit_is_none(self, broker, none):
        """However it is spelled; afterwards no node shows one."""
        once(broker, limited(broker, "600/m", POOL))

        ((status, reason),) = once(broker, replace(limited(broker, "none", POOL), destination=none))

        assert (status, reason) == ("applied", f"No limit any more on {POOL}.")
        assert limits(broker)[POOL] == ""

    def test_what_is_held_back_keeps_the_old_limit_so_it_is_not_changed(self, broker, trial):
        """The trap: they are unacknowledged, in no answer, and no new limit reaches them."""
        once(broker, limited(broker, "1/h", OTHER))
        sent = [trial.send("slow_lane", queue="other") for _ in range(3)]
        trial.until_running(sent[0])
        trial.until_unacked(*sent[1:])

        ((status, reason),) = once(broker, limited(broker, "none", OTHER))

        assert status == "skipped"
        assert reason.startswith("2 tasks received under 1/h go on at that pace for up to 2 h")
        assert "restart its nodes warmly" in reason
        assert limits(broker)[OTHER] == "1/h"
        assert told(undone(broker, run_id())) == ["skipped"]
        trial.app.control.rate_limit(TASK, None, destination=[OTHER], reply=True, timeout=1)  # what others would do
        done = trial.send("ok", queue="other")
        trial.until_done(done)
        assert [trial.ran(each) for each in sent] == [1, 0, 0]
        assert trial.unacked().keys() == set(sent[1:])

    def test_those_whose_time_has_not_come_are_only_told(self, broker, trial):
        """A node keeps them for the bucket of the limit under which it received them, or for none."""
        once(broker, limited(broker, "1/h", POOL))
        scheduled = [trial.send("slow_lane", queue="pool", countdown=600) for _ in range(2)]
        trial.until_unacked(*scheduled)
        until(lambda: len(nodes(broker)[1]) == 2, DEADLINE_S, "the node has them in its timer")

        ((status, reason),) = once(broker, limited(broker, "10/m", POOL))

        assert (status, reason) == (
            "applied",
            f"10/m at most on {POOL}. 2 tasks with a time of their own keep the limit under which they were received.",
        )
        assert told(undone(broker, run_id())) == ["applied"]

    def test_what_is_held_back_for_a_moment_is_only_told(self, broker, trial):
        """A limit of many a second always holds some back."""
        first = once(broker, limited(broker, "40/m", THREADS))
        assert first[0][0] == "applied"
        sent = [trial.send("slow_lane", queue="threads") for _ in range(3)]
        trial.until_running(sent[0])

        ((status, reason),) = once(broker, limited(broker, "1200/m", THREADS))

        assert status == "applied"
        assert f"1200/m at most on {THREADS}. " in reason
        assert "received under 40/m go" in reason
        trial.until_done(*sent)

    def test_and_it_is_waited_for_where_no_limit_is_left(self, broker, trial):
        """It would look like orphans to the next run."""
        once(broker, limited(broker, "40/m", THREADS))
        sent = [trial.send("slow_lane", queue="threads") for _ in range(3)]
        trial.until_running(sent[0])

        ((status, reason),) = once(broker, limited(broker, "none", THREADS))

        assert status == "applied"
        assert reason.startswith(f"No limit any more on {THREADS}. ")
        assert "All of them have begun by now." in reason
        assert [trial.ran(each) for each in sent] == [1, 1, 1]

    def test_the_first_limit_needs_no_second_look(self, broker, trial):
        """There is no bucket yet, whatever else is unacknowledged."""
        held = trial.send("slow_lane", queue="other", countdown=600)
        trial.until_unacked(held)

        assert once(broker, limited(broker, "1/h", POOL))[0][0] == "applied"

    def test_what_no_node_takes_for_a_rate_fails_in_its_words(self, broker):
        """And there is nothing to undo."""
        action = replace(limited(broker, "1/m", POOL), destination="10/fortnight")

        ((status, reason),) = once(broker, action)

        assert status == "failed"
        assert reason == f"{POOL} says: KeyError('fortnight')."
        assert limits(broker)[POOL] == ""
        assert len(undo.plan(broker, run_id())) == 0

    def test_a_task_that_no_node_has_is_not_limited(self, broker):
        """Nobody is told."""
        action = Action(kind=Kind.LIMIT, subject="tests.nosuch", source="none", destination="1/m")

        assert once(broker, action) == [("skipped", "No node that answers can run tests.nosuch.")]

    def test_a_frozen_node_is_not_vouched_for(self, broker, workers, monkeypatch):
        """The others keep to it."""
        monkeypatch.setattr(ordering, "_ANSWER_S", 0.7)
        action = replace(limited(broker, "1/h"), node="")
        with workers[POOL].frozen():
            ((status, reason),) = once(broker, action)

        assert status == "unverified"
        assert f"on {OTHER}, {SOLO}, {THREADS}." in reason
        assert "1 node that did not answer" in reason
        assert told(undone(broker, run_id())) == ["applied"]

    def test_a_node_that_ignores_limits_is_not_believed(self, broker, trial):
        """It agrees to any, and keeps to none."""
        deaf = trial.worker(name="deaf@trial", queues="deaf", conf={"worker_disable_rate_limits": True})
        try:
            ((status, reason),) = once(broker, limited(broker, "1/h", POOL, "deaf@trial"))
        finally:
            deaf.kill()

        assert status == "unverified"
        assert "deaf@trial (worker_disable_rate_limits)" in reason

    def test_a_limit_that_was_changed_again_is_left(self, broker, trial):
        """Whoever did so knew why."""
        once(broker, limited(broker, "600/m", POOL))
        trial.app.control.rate_limit(TASK, "900/m", destination=[POOL], reply=True, timeout=1)

        (outcome,) = undone(broker, run_id())

        assert (str(outcome.status), "another limit by now" in outcome.reason) == ("skipped", True)
        assert limits(broker)[POOL] == "900/m"


def node_with(name, limit, uptime_s, prefetch):
    """Return what a node answers that has a limit of the task, and has been there for so long."""
    pool = {"implementation": "celery.concurrency.prefork:TaskPool", "max-concurrency": 1, "processes": [1]}
    common = {"total": {}, "broker": {}, "rusage": {}, "pool": pool}
    said = {
        "stats": {**common, "uptime": uptime_s, "prefetch_count": prefetch},
        "active": [],
        "reserved": [],
        "scheduled": [],
        "active_queues": [{"name": "celery"}],
        "registered": [f"{TASK} [rate_limit={limit}]"],
        "conf": {},
        "rate_limit": {"ok": "new rate limit set successfully"},
    }

    def answer(question):
        meant = name in (question.get("destination") or [name]) and question["method"] in said
        return [reply(question, name, said[question["method"]])] if meant else []

    return answer


class TestHeldBackOrOrphaned:
    """What is unacknowledged and in no answer is held back by a node only if it was there when it was delivered."""

    @pytest.fixture
    def alone(self, redis, server):
        """Open clients of a server without nodes."""
        assert not redis.dbsize()
        return servers.broker(server)

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        """Nodes that play their part never change their limit."""
        monkeypatch.setattr(rates, "_WITHIN_S", 0.1)
        monkeypatch.setattr(ordering, "_ANSWER_S", 0.5)
        monkeypatch.setattr(rates, "_ANSWER_S", 0.5)

    def slower(self, alone, server, limits, uptimes, *, prefetch=0):
        """Ask for another limit; return why it was left alone, empty where it was ordered, and what was said."""
        action = Action(kind=Kind.LIMIT, subject=TASK, source="-", destination="20/m", node=",".join(limits))
        with ExitStack() as stack:
            for (name, limit), uptime_s in zip(limits.items(), uptimes, strict=True):
                stack.enter_context(listening(server, node_with(name, limit, uptime_s, prefetch)))
            ((status, reason),) = once(alone, action)
        return status == "skipped", reason

    def test_what_was_delivered_before_the_nodes_started_is_with_none_of_them(self, alone, redis, server):
        """It is no reason to leave the limit, and it is said what it may be."""
        for _ in range(30):
            seed_unacked(redis, TASK, age_s=3600)

        is_trap, reason = self.slower(alone, server, {"a@x": "10/m", "b@x": "10/m"}, [10, 3000])

        assert not is_trap
        assert "received under" not in reason

    def test_and_it_is_said_what_it_may_be(self, alone, redis, server, monkeypatch):
        """Where the nodes do as they are told."""
        monkeypatch.setattr(rates, "_ordered", lambda *_: ({}, []))
        seed_unacked(redis, TASK, age_s=3600)
        seed_unacked(redis, TASK, age_s=3600)
        seed_unacked(redis, "shop.other", age_s=3600)

        _, reason = self.slower(alone, server, {"a@x": "10/m"}, [10])

        assert reason == (
            "20/m at most on a@x. 2 tasks were delivered before any of these nodes started, and no node reports them: "
            "they may be orphaned (`ops run stuck-tasks`)."
        )

    @pytest.mark.parametrize("uptimes", [[10, 7200], [10, 0]])
    def test_a_node_that_was_there_or_does_not_say_may_hold_it_back(self, alone, redis, server, uptimes):
        """One is enough."""
        for _ in range(12):
            seed_unacked(redis, TASK, age_s=3600)

        is_trap, reason = self.slower(alone, server, {"a@x": "1/m", "b@x": "1/m"}, uptimes)

        assert is_trap
        assert reason.startswith("12 tasks received under 1/m go on at that pace")

    def test_both_kinds_are_told_apart(self, alone, redis, server):
        """Each with its number."""
        for age_s in (3600, 3600, 3600, 60, 60):
            seed_unacked(redis, TASK, age_s=age_s)

        is_trap, reason = self.slower(alone, server, {"a@x": "1/h"}, [600])

        assert is_trap
        assert reason.startswith("2 tasks received under 1/h go on")
        assert "3 tasks were delivered before any of these nodes started" in reason

    @pytest.mark.parametrize(("prefetch", "takes"), [(4, "4 min"), (12, "12 min"), (40, "12 min"), (0, "12 min")])
    def test_a_node_holds_back_no_more_than_it_may_have(self, alone, redis, server, prefetch, takes):
        """All of it is not with the slowest one where there is no room for it."""
        for _ in range(12):
            seed_unacked(redis, TASK, age_s=60)

        is_trap, reason = self.slower(alone, server, {"a@x": "1/m", "b@x": "600/m"}, [600, 600], prefetch=prefetch)

        assert is_trap
        assert f"go on at that pace for up to {takes}, whatever" in reason


class TestRevoke:
    """Ids that nodes drop, for as long as they remember."""

    def test_a_waiting_task_does_not_run(self, broker, trial):
        """All in one order, on every node; its message is dropped where it comes up."""
        ids = [trial.send("ok", queue="pool", countdown=3) for _ in range(2)]
        trial.until_unacked(*ids)

        made = once(broker, *asked.revoked(ids))

        assert [status for status, _ in made] == ["applied"] * 2
        assert made[0][1].startswith(f"Revoked on {OTHER}, {POOL}, {SOLO}, {THREADS}. It lives in their memory alone")
        assert len(journal.read(broker, run_id()).of("note", "revoke")) == 1
        until(lambda: not trial.unacked(), DEADLINE_S, "the node dropped them")
        assert [trial.ran(each) for each in ids] == [0, 0]
        assert len(undo.plan(broker, run_id())) == 0

    def test_a_frozen_node_is_not_vouched_for(self, broker, workers, monkeypatch):
        """It may run it still."""
        monkeypatch.setattr(ordering, "_ANSWER_S", 0.7)
        with workers[THREADS].frozen():
            ((status, reason),) = once(broker, *asked.revoked(["some-id"]))

        assert status == "unverified"
        assert "1 node that did not answer" in reason

    def test_nobody_there_is_nobody_told(self, archive, redis, server):
        """It says what does stop a task."""
        assert archive.is_dir()
        assert not redis.dbsize()
        alone = servers.broker(server)

        ((status, reason),) = once(alone, *asked.revoked(["some-id"]))

        assert (status, "No node listens" in reason, "ops task stop" in reason) == ("skipped", True, True)
        assert not journal.read(alone, run_id()).batches


class TestResume:
    """What was cut off is asked for again: nodes say whether it is so."""

    def test_an_order_is_given_again_where_it_is_not_so(self, broker, monkeypatch):
        """The journal knew of it, and no node."""
        plan = planned(broker, limited(broker, "600/m", POOL))

        def cut(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(rates, "_ordered", cut)
            with pytest.raises(KeyboardInterrupt):
                apply(plan, broker, dry_run=False)

        left = resume.remaining(plan, broker, run_id())
        assert told(apply(left, broker, dry_run=False)) == ["applied"]
        assert limits(broker)[POOL] == "600/m"
        assert told(apply(left, broker, dry_run=False)) == ["skipped"]
        undone(broker, run_id())
        assert limits(broker)[POOL] == ""

    def test_what_came_before_a_failure_is_told_as_done(self, broker, monkeypatch):
        """Each order by itself."""
        orders = [resized(broker, POOL, 1), limited(broker, "600/m", POOL)]

        def refuse(*_):
            raise OSError("no way")

        with monkeypatch.context() as patched:
            patched.setattr(pools, "_ordered", refuse)
            outcomes = apply(planned(broker, *orders), broker, dry_run=False)

        assert told(outcomes) == ["failed", "applied"]
        undone(broker, run_id())
        assert limits(broker)[POOL] == ""


def test_such_plans_are_saved_and_read_back(broker):
    """With all that they say."""
    plan = planned(broker, resized(broker, POOL, 1), limited(broker, "1/h"), *asked.revoked(["x"]))

    assert plans.read(plans.write(plan)) == plan
    assert [action.kind for action in plan] == [Kind.GROW, Kind.LIMIT, Kind.REVOKE]


def test_a_limit_of_nothing_is_none(broker, trial):
    """Celery's own client leaves a 0, which holds nothing back."""
    trial.app.control.rate_limit(TASK, "0", destination=[POOL], reply=True, timeout=1)
    began = time.monotonic()

    assert limits(broker)[POOL] == ""
    assert seen(broker)[POOL].rate_limited == ()

    trial.app.control.rate_limit(TASK, None, destination=[POOL], reply=True, timeout=1)
    assert time.monotonic() - began < DEADLINE_S
