"""What a reset would take, end and leave, and in which order; and that none is planned unless a person says which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib.errors import BadParameter, OpsError, PlanTooLarge
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import ListInfo, QueueInfo
from opslib.findings import Severity
from opslib.plan import Action, Kind, Outcome, Status
from opslib.symptoms.emergency_reset import MODES, Thresholds, choices, diagnose, plan
from tests.support.rows import (
    NODE,
    coverage,
    delivered,
    held,
    node,
    server,
    silent,
    snapshot,
    twice,
    unreadable,
    waiting,
)

LIMITS = Thresholds(stuck_after_s=3600.0, loop_after=10)


def queue(name: str = "celery", count: int = 0, *, consumers: tuple[str, ...] = (NODE,), **by_task: int) -> QueueInfo:
    """Return a queue with so many messages in its first list; without names, of one task."""
    tasks = {name.replace("_", "."): n for name, n in by_task.items()} or ({"tests.ok": count} if count else {})
    length = sum(tasks.values())
    lists = (ListInfo(key=name, priority=0, length=length, by_task=tasks),) if length else ()
    return QueueInfo(
        name=name,
        depth=length,
        by_priority={0: length} if length else {},
        consumers=consumers,
        by_task=tasks,
        lists=lists,
    )


def busy(**fields: object) -> Snapshot:
    """Return a system of two queues in which something runs, is reserved and is scheduled."""
    given = {
        "nodes": [node(queues=("celery", "mail"))],
        "queues": [queue(count=30), queue("mail", 5)],
        "held": [held("run"), held("next", "reserved"), held("later", "scheduled", queue="mail")],
        "unacked": [delivered("run"), delivered("next"), delivered("later", queue="mail")],
    }
    return snapshot(**{**given, **fields})


def steps(made: object) -> list[tuple[str, str, str]]:
    """Return a plan's steps with what is done in them and to what."""
    return [(a.step, str(a.kind), a.subject) for a in made]  # type: ignore[attr-defined]


def complete(seen: Snapshot, **asked: object) -> list[tuple[str, str, str]]:
    """Return the steps of a complete reset."""
    return steps(plan(seen, [], mode="complete", **asked))  # type: ignore[arg-type]


class TestOrder:
    """The steps of a complete reset."""

    def test_freeze_revoke_clear_resume_canary_with_a_gate_after_each(self) -> None:
        """Nodes are told while they listen, and what waits is cleared after what they held has ended."""
        assert complete(busy()) == [
            ("freeze", "pause", "celery"),
            ("freeze", "pause", "mail"),
            ("freeze", "await", "no node consumes any queue"),
            ("revoke", "stop", "*"),
            ("revoke", "await", "nothing of any queue runs"),
            ("clear", "purge", "celery"),
            ("clear", "purge", "mail"),
            ("clear", "await", "nothing of any queue is unacknowledged"),
            ("resume", "resume", "celery"),
            ("resume", "resume", "mail"),
            ("resume", "await", f"each of {NODE} consumes celery, mail"),
            ("canary", "canary", "celery"),
            ("canary", "canary", "mail"),
        ]

    def test_nodes_are_shut_down_between_and_their_start_is_waited_for(self) -> None:
        """Nothing is resumed by order then, for a node that starts consumes by itself."""
        found = complete(busy(), shutdown="warm", canary=False)

        assert found[5:8] == [
            ("shutdown", "shutdown", NODE),
            ("shutdown", "await", f"each of {NODE} is gone"),
            ("shutdown", "await", "no node consumes any queue"),
        ]
        assert found[-1] == ("start", "await", "somebody consumes each of celery, mail")
        assert not [row for row in found if row[1] == "resume"]

    def test_without_nodes_there_is_nobody_to_freeze(self) -> None:
        """What waits and what dead nodes left is taken all the same."""
        seen = busy(nodes=[], receivers=0, held=[], queues=[queue(count=30, consumers=())])

        assert [row[:2] for row in complete(seen)] == [("revoke", "stop"), ("clear", "purge"), ("clear", "await")]

    def test_gates_have_their_deadline_and_know_who_was_silent(self) -> None:
        """Of those, nobody can tell."""
        made = plan(busy(receivers=2), [], mode="complete", wait="5s")

        gates = [action.gate for action in made if action.kind is Kind.AWAIT and action.gate]
        assert {gate.within_s for gate in gates} == {5.0}
        assert {gate.silent for gate in gates} == {1}


class TestScope:
    """Queues and tasks by their globs."""

    def test_a_gate_says_how_many_queues_it_does_not_name(self) -> None:
        """A person at a closed gate must not believe that five queues are all."""
        names = tuple(f"q{n}" for n in range(7))
        many = busy(nodes=[node(queues=names)], queues=[queue(name, 1) for name in names])

        gates = [each.subject for each in plan(many, [], mode="complete") if each.kind is Kind.AWAIT]

        assert gates[-1] == f"each of {NODE} consumes q0, q1, q2, q3, q4 and 2 more"

    def test_a_glob_of_queues(self) -> None:
        """The others are neither frozen nor cleared, and gates do not ask about them."""
        found = plan(busy(), [], mode="complete", queue="ma*")

        assert {a.subject for a in found if a.kind is not Kind.AWAIT} == {"mail"}
        assert {a.gate.queues for a in found if a.gate} == {("mail",)}

    def test_a_glob_of_tasks(self) -> None:
        """Purge and stop mean these alone, and gates wait for these alone."""
        seen = busy(queues=[queue(shop_pay=3, shop_mail=9)])
        made = plan(seen, [], mode="complete", task="shop.p*")

        (purge,) = [a for a in made if a.kind is Kind.PURGE]
        assert (purge.count, purge.only and purge.only.task) == (3, "shop.p*")
        assert {a.gate.task for a in made if a.kind is Kind.AWAIT and a.gate} == {"shop.p*"}

    def test_a_message_goes_by_its_own_queue_not_by_the_key_it_was_routed_with(self) -> None:
        """A node names the routing key."""
        seen = busy(held=[held("run", queue="orders.eu")], unacked=[delivered("run")])

        (stop,) = [a for a in plan(seen, [], mode="complete", queue="celery") if a.kind is Kind.STOP]
        assert stop.count == 1

    def test_what_tasks_leave_behind_that_are_ended_is_cleared_too(self) -> None:
        """As many as the node holds of the queue: a retry, or what it had sent."""
        seen = busy(queues=[queue(count=0)], held=[held("run"), held("next", "reserved")], unacked=[])

        (purge,) = [a for a in plan(seen, [], mode="complete") if a.kind is Kind.PURGE]
        assert [(c.key, c.count) for c in purge.copies] == [("celery", 2)]

    def test_under_a_prefix_an_empty_queue_has_its_own_key(self) -> None:
        """Which the plan's fingerprint tells."""
        seen = replace(busy(queues=[queue(count=0)]), fingerprint="r/p/0/shop:a/")

        (purge,) = [a for a in plan(seen, [], mode="complete") if a.kind is Kind.PURGE]
        assert [c.key for c in purge.copies] == ["shop:a/celery"]


class TestModes:
    """What each of them means."""

    def test_none_plans_nothing_and_all_are_shown_in_numbers(self) -> None:
        """Whatever is wrong."""
        seen = busy()

        assert not plan(seen, diagnose(seen, LIMITS))
        rows = {row.mode: row for row in choices(seen, [], shutdown="warm")}
        assert list(rows) == list(MODES)
        all_of_it = rows["complete"]
        assert (all_of_it.frozen, all_of_it.ended, all_of_it.held) == (2, 1, 2)
        assert (all_of_it.unacked, all_of_it.waiting, all_of_it.left) == (3, 35, 0)
        assert (all_of_it.nodes, all_of_it.canaries) == (1, 2)
        assert (rows["memory"].waiting, rows["memory"].left) == (35, 3)
        assert (rows["partial"].ended, rows["partial"].waiting, rows["partial"].left) == (0, 0, 3)

    def test_partial_takes_the_stuck_the_looping_and_the_lost(self) -> None:
        """And pauses nobody; what nobody holds is kept instead of delivered again."""
        seen = twice(
            busy(
                held=[held("old", age_s=3600.0), held("young", age_s=3599.0)],
                unacked=[delivered("old"), delivered("young"), delivered("lost")],
                waiting=[waiting("loop", retries=10), waiting("fine", retries=9)],
                unreadable=[unreadable("bad")],
            )
        )
        made = plan(seen, diagnose(seen, LIMITS), mode="partial", canary=False)

        assert sorted(steps(made)) == [
            ("clear", "quarantine", "bad"),
            ("clear", "quarantine", "lost"),
            ("revoke", "stop", "loop"),
            ("revoke", "stop", "old"),
        ]
        (row,) = [row for row in choices(seen, diagnose(seen, LIMITS)) if row.mode == "partial"]
        assert (row.ended, row.unacked, row.waiting, row.left) == (1, 2, 2, 1)

    def test_partial_leaves_what_a_silent_node_may_hold(self) -> None:
        """No evidence, no change."""
        seen = twice(busy(receivers=2, nodes=[node(), silent()], held=[], unacked=[delivered("lost")]))

        assert not plan(seen, diagnose(seen, LIMITS), mode="partial", canary=False)

    def test_partial_keeps_to_its_queues_and_tasks(self) -> None:
        """Also of what runs and has no message."""
        seen = twice(busy(held=[held("old", age_s=9999.0), held("there", age_s=9999.0, queue="mail")], unacked=[]))
        found = diagnose(seen, LIMITS)

        assert [a.subject for a in plan(seen, found, mode="partial", queue="mail", canary=False)] == ["there"]
        assert not plan(seen, found, mode="partial", task="shop.*", canary=False)

    def test_memory_takes_whole_queues_the_longest_first(self) -> None:
        """Nothing else, and no step: a full server can do no more."""
        made = plan(busy(queues=[queue("mail", 5), queue(count=30)]), [], mode="memory")

        assert [(a.step, str(a.kind), a.subject, a.count) for a in made] == [
            ("", "purge", "celery", 30),
            ("", "purge", "mail", 5),
        ]
        assert all("frees no memory by itself" in a.effect for a in made)

    def test_a_canary_does_not_wait_behind_a_backlog(self) -> None:
        """In a partial reset the queue keeps what waits."""
        seen = busy(queues=[queue(count=100), queue("mail", 101)])

        assert [a.subject for a in plan(seen, [], mode="partial")] == ["celery"]
        assert [a.subject for a in plan(seen, [], mode="complete") if a.kind is Kind.CANARY] == ["celery", "mail"]


@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "everything"},
        {"mode": "complete", "shutdown": "cold"},
        {"mode": "partial", "shutdown": "warm"},
        {"mode": "memory", "task": "shop.*"},
        {"mode": "complete", "queue": "nowhere"},
        {"mode": "complete", "queue": ""},
        {"mode": "complete", "wait": "60"},
        {"mode": "complete", "wait": "0s"},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(asked: dict[str, str]) -> None:
    """With a sentence, and what to do."""
    with pytest.raises(OpsError) as refused:
        plan(busy(), [], **asked)  # type: ignore[arg-type]

    assert refused.value.message
    assert isinstance(refused.value, BadParameter) or "wait" in refused.value.message


def test_too_large_a_plan_is_refused_whole() -> None:
    """Half a reset would be none."""
    with pytest.raises(PlanTooLarge):
        plan(busy(), [], mode="complete", max_actions=12)


class TestBeyondReach:
    """Who does not take orders."""

    def test_nobody_where_everybody_answers(self) -> None:
        """A healthy system has no such finding."""
        assert not [f for f in diagnose(busy(), LIMITS) if f.code.startswith("reset-")]

    def test_a_silent_node_with_what_may_be_its(self) -> None:
        """The number of messages that no answering node holds."""
        seen = busy(receivers=2, unacked=[delivered("run"), delivered("its"), delivered("its-too")])

        (found,) = [f for f in diagnose(seen, LIMITS) if f.code == "reset-beyond-reach"]
        assert found.evidence == {"silent": 1, "messages": 2}
        (row,) = [row for row in choices(seen, []) if row.mode == "complete"]
        assert (row.unacked, row.left) == (1, 2)
        (stop,) = [a for a in plan(seen, [], mode="complete") if a.kind is Kind.STOP]
        assert "stays: a node stayed silent" in stop.effect

    @pytest.mark.parametrize(("consumers", "found"), [(None, 0), (1, 0), (2, 1)])
    def test_connections_that_listen_to_nobody(self, consumers: int | None, found: int) -> None:
        """More consume than listen; where that may not be seen, nothing is claimed."""
        seen = busy(server=server(consumers=consumers))

        assert len([f for f in diagnose(seen, LIMITS) if f.code == "reset-beyond-reach"]) == found

    @pytest.mark.parametrize(("pool", "found"), [("prefork", 0), ("gevent", 0), ("threads", 1), ("solo", 1)])
    def test_pools_that_end_no_task(self, pool: str, found: int) -> None:
        """Only where something runs on them."""
        seen = busy(nodes=[node(pool=pool, queues=("celery", "mail"))])

        assert len([f for f in diagnose(seen, LIMITS) if f.code == "reset-beyond-reach"]) == found
        assert not [f for f in diagnose(replace(seen, held=()), LIMITS) if f.code == "reset-beyond-reach"]
        (row,) = [row for row in choices(seen, []) if row.mode == "complete"]
        assert (row.ended, row.running_on) == (1 - found, found)

    def test_a_task_that_runs_twice_on_one_node(self) -> None:
        """On two nodes each is ended by itself."""
        once = busy(nodes=[node(), node("w2@lab")], receivers=2, held=[held("run"), held("run", node="w2@lab")])
        both = busy(held=[held("run"), held("run")])

        assert not [f for f in diagnose(once, LIMITS) if f.code == "reset-beyond-reach"]
        assert [f.subject for f in diagnose(both, LIMITS) if f.code == "reset-beyond-reach"] == ["run"]


class TestLeftBehind:
    """What of the old is still there afterwards."""

    def outcomes(self, seen: Snapshot, *, closed: str = "", **asked: object) -> list[Outcome]:
        """Return a complete reset as if all of it had been done, but for a gate that stayed closed."""
        made: list[Outcome] = []
        for action in plan(seen, [], mode="complete", **asked):  # type: ignore[arg-type]
            shut = any(o.status is Status.FAILED for o in made)
            fails = isinstance(action, Action) and action.gate is not None and action.gate.until == closed
            made.append(
                Outcome(action=action, status=Status.SKIPPED if shut else Status.FAILED if fails else Status.APPLIED)
            )
        return made

    def judged(self, before: Snapshot, after: Snapshot, outcomes: list[Outcome]) -> list[tuple[str, str]]:
        """Return what was left behind, and how bad that is."""
        found = diagnose(after, LIMITS, before=before, outcomes=outcomes)
        return [(f.subject, str(f.severity)) for f in found if f.code == "reset-left-behind"]

    def test_a_message_of_before_and_no_other(self) -> None:
        """What was sent since is none."""
        before = busy()
        after = busy(held=[], unacked=[delivered("later", queue="mail"), delivered("new")])

        assert self.judged(before, after, self.outcomes(before)) == [("later", Severity.CRITICAL)]

    def test_it_is_unknown_where_a_node_is_silent(self) -> None:
        """That one may be running it."""
        before = busy(receivers=2)
        after = busy(receivers=2, unacked=[delivered("run")])

        assert self.judged(before, after, self.outcomes(before)) == [("run", Severity.UNKNOWN)]

    def test_of_other_queues_and_tasks_nothing_was_meant(self) -> None:
        """They may well be unacknowledged still."""
        before = busy()

        assert not self.judged(before, before, self.outcomes(before, queue="mail", task="shop.*"))
        assert self.judged(before, before, self.outcomes(before, queue="mail")) == [("later", Severity.CRITICAL)]

    def test_of_a_reset_that_never_came_so_far_nothing_is_said(self) -> None:
        """Its gate says why; nor after a dry run."""
        before = busy()
        dry = [replace(o, status=Status.SKIPPED) for o in self.outcomes(before)]

        assert not self.judged(before, before, self.outcomes(before, closed="paused"))
        assert not self.judged(before, before, dry)

    def test_when_it_comes_back_is_said(self) -> None:
        """By the shortest visibility timeout, from its delivery on."""
        before = busy()
        after = busy(held=[], unacked=[delivered("run", age_s=600.0)], visibility_timeout_s=900.0)

        (found,) = [
            f
            for f in diagnose(after, LIMITS, before=before, outcomes=self.outcomes(before))
            if f.code == "reset-left-behind"
        ]
        assert "within 5 min" in found.message


def test_coverage_that_is_silent_makes_it_unknown_who_holds_what() -> None:
    """As everywhere."""
    seen = busy(coverage=coverage(workers=1), unacked=[delivered("run"), delivered("whose")])

    (row,) = [row for row in choices(seen, []) if row.mode == "complete"]
    assert row.left == 1
