"""Which tasks can still be run, which were found nowhere, and what a stop of them could not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib.errors import BadParameter, PlanTooLarge
from opslib.findings import Severity
from opslib.plan import Action, Kind, Outcome, Status
from opslib.selection import Selection
from opslib.symptoms import stop_task, stops
from opslib.symptoms.stop_task import diagnose
from tests.support.rows import (
    coverage,
    delivered,
    held,
    letter,
    node,
    put_aside,
    result,
    silent,
    waiting,
    whereabouts,
)


def found(seen, *, before=None):
    """Return what is found, as code and subject."""
    return [(each.code, each.subject) for each in stop_task.diagnose(seen, before=before)]


def one(seen, code, *, before=None):
    """Return the only finding of a code."""
    (finding,) = [each for each in stop_task.diagnose(seen, before=before) if each.code == code]
    return finding


class TestWanted:
    """What a person names."""

    @pytest.mark.parametrize(
        ("text", "ids"),
        [
            ("a", ["a"]),
            ("a,b", ["a", "b"]),
            (" a ;\n b\t,, c ", ["a", "b", "c"]),
            ("order:4711/x", ["order:4711/x"]),
            ("*", ["*"]),
        ],
    )
    def test_ids(self, text, ids):
        """Between them commas, semicolons or white space; a wildcard is an id like any other."""
        assert stop_task.wanted(task_id=text) == {"ids": ids}

    @pytest.mark.parametrize("text", ["", " ", ",;"])
    def test_nothing(self, text):
        """It means no task, and never every one."""
        assert stop_task.wanted(task_id=text) == {"ids": []}

    def test_a_filter(self):
        """With all that it says."""
        found = stop_task.wanted(task="shop.*", place="active", retries=3, limit=7)

        assert found == {"selection": Selection(task="shop.*", retries=3), "places": ["active"], "limit": 7}
        assert stop_task.wanted(retries=3) == {"selection": Selection(retries=3), "places": []}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ({"task": "*"}, "every task there is"),
            ({"task": "**"}, "every task there is"),
            ({"place": "active"}, "every task that is active"),
            ({"place": "active", "task": "*"}, "every task that is active"),
            ({"place": "running", "limit": 1}, "'running' is none"),
            ({"place": "result", "limit": 1}, "'result' is none"),
            ({"task_id": "x", "task": "y"}, "not by both"),
            ({"task_id": "x", "retries": 1}, "not by both"),
            ({"task_id": "x", "place": "active"}, "not by both"),
            ({"task": "x", "limit": -1}, "limit must not be negative"),
            ({"task": "x", "retries": -1}, "retries must not be negative"),
        ],
    )
    def test_what_is_refused(self, words, said):
        """Everything without a limit, a place that is none, ids and a filter at once."""
        with pytest.raises(BadParameter, match=said):
            stop_task.wanted(**words)

    @pytest.mark.parametrize("place", stop_task.PLACES)
    def test_everything_with_a_limit(self, place):
        """Whoever says how many may mean all of them."""
        assert stop_task.wanted(place=place, limit=1)["places"] == [place]
        assert stop_task.wanted(task="*", limit=1)["limit"] == 1


class TestInCirculation:
    """What can still be run."""

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ({"waiting": [waiting("x")]}, "It is waiting."),
            ({"unacked": [delivered("x", retries=1)]}, "It is unacked, retried 1 time."),
            ({"held": [held("x")]}, "It is active."),
            ({"held": [held("x", "reserved")]}, "It is reserved."),
            (
                {"waiting": [waiting("x", retries=2)], "unacked": [delivered("x", retries=3)], "held": [held("x")]},
                "It is waiting and unacked and active, retried 3 times.",
            ),
            (
                {"unacked": [delivered("x")], "held": [held("x", "scheduled")]},
                "It is unacked and scheduled.",
            ),
        ],
    )
    def test_where_it_is(self, rows, message):
        """Every place once, however many copies there are."""
        finding = one(whereabouts("x", **rows), "task-in-circulation")

        assert (finding.subject, finding.message, finding.severity) == ("x", message, Severity.ATTENTION)
        assert finding.task == "tests.ok"

    @pytest.mark.parametrize(
        "rows",
        [
            {"results": [result("x", "SUCCESS")]},
            {"results": [result("x", "STARTED")]},
            {"quarantined": [put_aside("x")]},
            {"dead": [letter("x")]},
            {"held": [held("x", "scheduled")], "results": [result("x", "REVOKED")]},
            {"held": [held("x", "reserved")], "results": [result("x", "REVOKED")]},
        ],
    )
    def test_what_cannot_run_is_not_stopped(self, rows):
        """A result, what is kept, and what a node has in memory alone after it was told to drop it."""
        assert found(whereabouts("x", **rows)) == []

    @pytest.mark.parametrize("place", ["scheduled", "reserved"])
    def test_what_a_node_has_in_memory_alone_runs_unless_it_was_told(self, place):
        """Its message is gone, and nobody has revoked it; a stop that was proven has."""
        seen = whereabouts("x", held=[held("x", place)])
        stop = Action(kind=Kind.STOP, subject="x", source="", destination="quarantine")

        assert one(seen, "task-in-circulation").message == f"It is {place}."
        for status, left in ((Status.APPLIED, 0), (Status.SKIPPED, 1), (Status.FAILED, 1)):
            assert len(diagnose(seen, before=seen, outcomes=[Outcome(action=stop, status=status)])) == left

    def test_a_pool_that_cannot_end_it_is_named(self):
        """Before anything is done."""
        seen = whereabouts("x", held=[held("x")], nodes=[node(pool="threads")])

        assert "The threads pool of w1@lab cannot end a running task" in one(seen, "task-in-circulation").hint
        assert "cannot end" not in one(replace(seen, nodes=(node(),)), "task-in-circulation").hint


class TestNotFound:
    """What is nowhere."""

    def test_every_place_was_seen(self):
        """Then there is nothing to stop."""
        finding = one(whereabouts("x"), "task-not-found")

        assert finding.severity is Severity.ATTENTION
        assert finding.message == "It was found nowhere, and every place was seen; there is nothing to stop."

    def test_a_place_was_not_seen(self):
        """Then nobody may say so."""
        seen = whereabouts("x", coverage=coverage(workers=1), nodes=[node(), silent()], receivers=2)

        finding = one(seen, "task-not-found")

        assert finding.severity is Severity.UNKNOWN
        assert "but not everything could be seen: workers" in finding.message
        assert "nothing to stop" not in finding.message

    def test_each_id_by_itself(self):
        """One that is there does not make up for one that is not."""
        assert sorted(found(whereabouts("x", "y", waiting=[waiting("x")]))) == [
            ("task-in-circulation", "x"),
            ("task-not-found", "y"),
        ]

    def test_what_was_there_before_the_stop_is_not_missing(self):
        """It was stopped; what was not there before is missing still."""
        before = whereabouts("x", "y", waiting=[waiting("x")])

        assert found(whereabouts("x", "y"), before=before) == [("task-not-found", "y")]

    def test_no_task_was_named(self):
        """Or a filter meant none."""
        assert one(whereabouts(), "task-not-found").message == "No task was named."
        chosen = whereabouts(selection=Selection(task="shop.*"))
        assert one(chosen, "task-not-found").message == "No task of shop.* is in flight."
        assert found(whereabouts(), before=whereabouts("x", waiting=[waiting("x")])) == []


def test_a_limit_leaves_some_out_before_and_after():
    """That those were stopped that it allows does not mean that the others were."""
    before = whereabouts("x", waiting=[waiting("x")], selection=Selection(task="shop.*"), more=1_200)

    for seen, earlier in ((before, None), (whereabouts("x"), before)):
        last = [each for each in stop_task.diagnose(seen, before=earlier) if each.subject == "of shop.*"]
        assert [each.message for each in last] == ["The filter means 1,200 more than the limit allows."]
    assert [action.subject for action in stop_task.plan(before, stop_task.diagnose(before), max_actions=5)] == ["x"]


def test_a_task_that_sends_itself_anew_is_told():
    """By offspring of its own name; that of other names is its work."""
    sent = [waiting(f"n{n}", root_id="x", task="shop.poll", queue="polls") for n in range(3)]
    work = [delivered("w", root_id="x", task="shop.charge")]
    seen = whereabouts("x", held=[held("x", task="shop.poll")], offspring=[*sent, *work])

    finding = one(seen, "resent-task")

    assert "3 such messages in flight" in finding.message
    assert "ops queue purge --task shop.poll" in finding.hint
    assert not [code for code, _ in found(replace(seen, offspring=tuple(work))) if code == "resent-task"]


class TestPlan:
    """What would be done."""

    def test_every_copy_is_named(self):
        """And nothing is planned for what is nowhere."""
        rows = {"waiting": [waiting("x"), waiting("x", queue="mail", key="mail")], "unacked": [delivered("x")]}
        seen = whereabouts("x", "y", **rows)

        (action,) = stop_task.plan(seen, stop_task.diagnose(seen), max_actions=1)

        assert (action.kind, action.subject, action.source) == (Kind.STOP, "x", "celery, mail, unacked")
        assert [copy.place for copy in action.copies] == ["waiting", "waiting", "unacked"]

    def test_more_than_allowed_is_refused_whole(self):
        """A part of it would be a surprise."""
        seen = whereabouts("x", "y", waiting=[waiting("x"), waiting("y")])

        assert len(stop_task.plan(seen, stop_task.diagnose(seen), max_actions=2)) == 2
        with pytest.raises(PlanTooLarge):
            stop_task.plan(seen, stop_task.diagnose(seen), max_actions=1)

    @pytest.mark.parametrize(
        ("pool", "ends", "words"),
        [
            ("prefork", True, "Ended on w1@lab and revoked everywhere; its work so far is lost."),
            ("gevent", True, "Ended on w1@lab"),
            ("threads", False, "a threads pool cannot end a running task, so it runs until w1@lab is restarted."),
            ("solo", False, "a solo pool cannot end a running task"),
            ("", False, "its pool cannot end a running task"),
        ],
    )
    def test_what_a_pool_can_end(self, pool, ends, words):
        """Only that is promised."""
        seen = whereabouts("x", held=[held("x")], nodes=[node(pool=pool)])

        action = stops.of(seen, "x", task="t", why="w")

        assert (action.terminate, action.node) == (ends, "w1@lab")
        assert words in action.effect

    def test_what_only_waits_is_not_ended(self):
        """No process is killed for a task that does not run."""
        seen = whereabouts("x", unacked=[delivered("x")], held=[held("x", "reserved")])

        action = stops.of(seen, "x", task="t", why="w")

        assert (action.terminate, action.node) == (False, "")
        assert action.effect == "Revoked everywhere; every copy of its message is kept in quarantine."
