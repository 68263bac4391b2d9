"""Keys of a task may go once nothing speaks against it that the task is over; until then not one of them is touched."""

from __future__ import annotations

from typing import Any

import pytest

from opslib.errors import Exit, Refused
from opslib.facts.app_keys import TaskKey
from opslib.facts.system import Coverage, ListInfo, QueueInfo
from opslib.findings import Severity
from opslib.plan import Kind
from opslib.symptoms import cleanup
from tests.support.rows import (
    coverage,
    delivered,
    held,
    result,
    server,
    waiting,
    whereabouts,
)

SHA = "a" * 64


def key(name: str = "result", task_id: str = "x", **fields: Any) -> TaskKey:
    """Return a key of a task: its result, in the broker's database, or one of the application's in another."""
    is_result = name == "result"
    given = {
        "key": f"celery-task-meta-{task_id}" if is_result else f"{name}:{task_id}",
        "database": "redis://h/0" if is_result else "redis://h/1",
        "fingerprint": "r/p/0/" if is_result else "r/p/1/",
        "type": "string" if is_result else "hash",
        "elements": 1 if is_result else 3,
        "size_bytes": 200,
        "life_s": 500.0 if is_result else -1.0,
        "sha256": SHA,
    }
    return TaskKey(name=name, task_id=task_id, **{**given, **fields})


OVER = whereabouts("x", results=[result("x", "FAILURE")])


class TestLive:
    """A task that can still be run keeps everything."""

    @pytest.mark.parametrize(
        ("seen", "where"),
        [
            (whereabouts("x", waiting=[waiting("x")]), "x is waiting in celery."),
            (whereabouts("x", unacked=[delivered("x")]), "x is unacked."),
            (whereabouts("x", held=[held("x")]), "x is active on w1@lab."),
            (
                whereabouts("x", held=[held("x", "reserved")], unacked=[delivered("x")]),
                "x is unacked and reserved on w1@lab.",
            ),
            (
                whereabouts("x", held=[held("x", "scheduled")], unacked=[delivered("x")]),
                "x is unacked and scheduled on w1@lab.",
            ),
            (whereabouts("x", held=[held("x")], results=[result("x", "SUCCESS")]), "x is active on w1@lab."),
        ],
    )
    def test_is_refused_with_where_it_is(self, seen, where):
        """Each place by itself is enough, whatever a result says; stopping it is the way on."""
        with pytest.raises(Refused) as told:
            cleanup.refuse_live(seen)

        assert told.value.message == f"{where} Nothing was changed."
        assert told.value.hint.startswith("`ops task stop x` first")
        assert told.value.exit_code is Exit.REFUSED

    def test_timer_alone(self):
        """What a node has in its timer and nowhere else cannot be stopped any further: its time has to come."""
        with pytest.raises(Refused, match="x is scheduled on w1@lab") as told:
            cleanup.refuse_live(whereabouts("x", held=[held("x", "scheduled")]))

        assert "ops task stop" not in told.value.hint
        assert "Clean up after that." in told.value.hint

    def test_one_of_many_keeps_all(self):
        """A part of what was asked for would be a surprise; beyond five they are counted."""
        ids = [f"t{n}" for n in range(8)]

        with pytest.raises(Refused) as told:
            cleanup.refuse_live(whereabouts(*ids, waiting=[waiting(each) for each in ids[:7]]))

        assert "t4 is waiting in celery, and 2 more are in circulation." in told.value.message
        assert "t7" not in str(told.value)

    @pytest.mark.parametrize("seen", [OVER, whereabouts("x"), whereabouts("x", results=[result("x", "STARTED")])])
    def test_what_is_over_is_not(self, seen):
        """A result that says STARTED is none of a task that nobody has: it will never be finished."""
        cleanup.refuse_live(seen)


class TestBlind:
    """Where a task could be and nobody looked, it may be running."""

    @pytest.mark.parametrize("place", ["keyspace", "workers", "waiting", "unacked"])
    def test_silent_place(self, place):
        """Each of these is enough; a final result is no proof, for a message may have been delivered twice."""
        seen = whereabouts("x", results=[result("x", "SUCCESS")], coverage=coverage(**{place: 2}))

        assert cleanup.blind(seen) == [f"{place}: 2 not seen."]

    def test_what_is_set_aside(self):
        """Messages of an interrupted run are in no queue, and come back."""
        aside = Coverage(place="set aside", seen=0, silent=3, note="Run r was cut off.")

        assert cleanup.blind(whereabouts("x", coverage=(*coverage(), aside))) == ["set aside: Run r was cut off."]

    @pytest.mark.parametrize("place", ["server", "results"])
    def test_places_in_which_no_task_runs(self, place):
        """They are told, and are no reason against it."""
        seen = whereabouts("x", coverage=coverage(**{place: 1}))

        assert cleanup.blind(seen) == []
        assert [finding.code for finding in cleanup.diagnose(seen, [])] == ["cannot-see"]

    @pytest.mark.parametrize(
        ("receivers", "consumers", "blind"), [(0, 2, True), (0, None, True), (0, 0, False), (1, 2, False)]
    )
    def test_workers_without_control(self, receivers, consumers, blind):
        """Connections that consume and do not listen run tasks that nobody sees; without any, nothing runs."""
        seen = whereabouts("x", receivers=receivers, nodes=(), server=server(consumers=consumers))

        assert bool(cleanup.blind(seen)) is blind


class TestPlan:
    """One plan for each database, with what each key has to hold still."""

    def test_each_database_has_its_own(self):
        """That of the results is the last one."""
        keys = [key(), key("progress"), key("logs", fingerprint="r/p/2/", type="list"), key("progress", "y")]

        plans = cleanup.plan(whereabouts("x", "y", results=[result("x", "FAILURE")]), keys)

        assert [(plan.fingerprint, [action.subject for action in plan]) for plan in plans] == [
            ("r/p/1/", ["progress:x", "progress:y"]),
            ("r/p/2/", ["logs:x"]),
            ("r/p/0/", ["x"]),
        ]
        (action,) = plans[-1]
        assert (action.kind, action.task, action.source, action.destination) == (
            Kind.DELETE,
            "tests.ok",
            "result",
            "vault",
        )
        (copy,) = action.copies
        assert (copy.place, copy.key, copy.sha256, copy.life_s) == ("key", "celery-task-meta-x", SHA, 500.0)
        assert action.effect == "Its result (FAILURE) leaves redis://h/0: whoever asks for it is told PENDING."

    def test_application_beside_results(self):
        """Where they share a database, one plan has all, the result last."""
        keys = [key(), key("progress", fingerprint="r/p/0/")]

        (plan,) = cleanup.plan(OVER, keys)

        assert [action.source for action in plan] == ["progress", "result"]

    def test_group_stays(self):
        """What a group keeps for itself is another key, and that is said."""
        ((action,),) = cleanup.plan(OVER, [key(group="g-1")])

        assert action.effect.endswith("It is one of group g-1, whose own bookkeeping stays.")
        assert len(action.copies) == 1

    @pytest.mark.parametrize("fields", [{"fixed": "It is a stream, which cannot be kept."}, {"sha256": ""}])
    def test_what_cannot_be_removed(self, fields):
        """Without a value to compare nothing is planned: to the writer, no digest means any value."""
        assert cleanup.plan(OVER, [key("progress", **fields)]) == []

    def test_nothing(self):
        """No keys, no plan."""
        assert cleanup.plan(OVER, []) == []


class TestQueues:
    """Messages that wait are nobody's remnants."""

    @pytest.mark.parametrize(("fingerprint", "apart"), [("r/p/0/", True), ("r/p/1/", False)])
    def test_list_of_a_queue(self, fingerprint, apart):
        """In the broker's own database; a key that is only called so in another one is no queue."""
        waits = ListInfo(key="mail:x", priority=0, length=1)
        mail = QueueInfo(name="mail:x", depth=1, by_priority={0: 1}, lists=(waits,))
        seen = whereabouts("x", queues=(mail,))

        (found,) = cleanup.apart_from_queues(seen, [key("mail", type="list", fingerprint=fingerprint)])

        assert bool(found.fixed) is apart
        assert len(cleanup.plan(seen, [found])) == (not apart)
        assert ("ops queue purge" in cleanup.diagnose(seen, [found])[0].hint) is apart


class TestDiagnose:
    """What is left is a finding for each key."""

    def test_each_key(self):
        """With its size, place and life, and without anything of its value."""
        found = cleanup.diagnose(OVER, [key(), key("logs", type="list", elements=1200)])

        assert {(finding.code, finding.severity, finding.subject) for finding in found} == {
            ("task-remnant", Severity.ATTENTION, "x"),
            ("task-remnant", Severity.ATTENTION, "logs:x"),
        }
        said = {finding.subject: finding.message for finding in found}
        assert said["x"] == "Left in redis://h/0: its result, a string of 200 bytes that expires in 8 min 20 s."
        assert said["logs:x"] == "Left in redis://h/1: its logs, a list of 1,200 elements that never expires."

    def test_what_cannot_be_removed_says_why(self):
        """And what a person can do about it."""
        (finding,) = cleanup.diagnose(OVER, [key("logs", fixed="It has 9,000 elements.", sha256="")])

        assert finding.message.endswith("It has 9,000 elements.")
        assert "left as it is" in finding.hint

    def test_none(self):
        """Nothing left and everything seen is nothing to say."""
        assert cleanup.diagnose(OVER, []) == []
