"""A key may go once its task is over, whatever part of its name the id is; what cannot be kept gets a life instead."""

from __future__ import annotations

from typing import Any

import pytest

from opslib.facts.app_keys import FoundKey, KeyScan
from opslib.facts.system import ListInfo, QueueInfo
from opslib.findings import Severity
from opslib.plan import Kind
from opslib.symptoms import app_flush
from tests.support.rows import NOW, coverage, delivered, held, result, waiting, whereabouts


def row(task_id: str = "x", **fields: Any) -> FoundKey:
    """Return a small hash that never expires."""
    given = {"key": f"progress:{task_id}", "type": "hash", "size_bytes": 100, "life_s": -1.0, "idle_s": 60.0}
    return FoundKey(task_id=task_id, **{**given, **fields})


def scan(*rows: FoundKey, **fields: Any) -> KeyScan:
    """Return a scan of another database than the broker's that has met these."""
    given = {
        "name": "progress",
        "pattern": "progress:{task_id}",
        "database": "redis://h/1",
        "fingerprint": "r/p/1/",
        "keys": len(rows),
        "fits": len(rows),
        "size_bytes": sum(each.size_bytes for each in rows),
        "taken_at": NOW,
    }
    return KeyScan(rows=rows, **{**given, **fields})


class TestWhichMayGo:
    """Only what is of no task in circulation."""

    @pytest.mark.parametrize(
        "seen",
        [
            whereabouts("x", waiting=[waiting("x")]),
            whereabouts("x", unacked=[delivered("x")]),
            whereabouts("x", held=[held("x")]),
            whereabouts("x", held=[held("x", "reserved")]),
            whereabouts("x", held=[held("x", "scheduled")]),
        ],
    )
    @pytest.mark.parametrize("name", ["x", "x:step", "batch/x", "x.log"])
    def test_none_of_a_task_in_circulation(self, seen, name):
        """Wherever the task is, and whatever stands around its id."""
        found = scan(row(name), row("y"))

        assert "x" in app_flush.ids([name])
        assert [each.task_id for each in app_flush.over(seen, found)] == ["y"]

    @pytest.mark.parametrize("task_id", ["a:b", "a.b", "a/b"])
    def test_an_id_may_have_what_stands_between_the_parts_of_a_name(self, task_id):
        """An application may give its own ids."""
        seen = whereabouts(task_id, waiting=[waiting(task_id)])

        assert app_flush.over(seen, scan(row(task_id))) == []

    def test_a_result_is_no_place(self):
        """A task that is over keeps nothing."""
        seen = whereabouts("x", results=[result("x", "FAILURE")])

        assert app_flush.over(seen, scan(row("x"))) == [row("x")]

    def test_a_queues_list_is_nobodys_progress(self):
        """In the broker's own database alone."""
        queue = QueueInfo(
            name="p", depth=1, by_priority={0: 1}, lists=(ListInfo(key="progress:x", priority=0, length=1),)
        )
        seen = whereabouts("x", queues=[queue])

        assert app_flush.over(seen, scan(row("x"), fingerprint=seen.fingerprint)) == []
        assert app_flush.over(seen, scan(row("x"))) == [row("x")]


class TestPlan:
    """One action for each key, the longest untouched first, and no more than was asked for."""

    def test_small_ones_are_removed_and_large_ones_get_a_life(self):
        """What is too large to be kept in one step is told to expire; a string can always be kept."""
        rows = [
            row("a"),
            row("b", size_bytes=10**6),
            row("c", type="string", size_bytes=10**7),
            row("d", type="stream"),
        ]

        plan = app_flush.plan("t", scan(*rows), rows)

        assert [(each.subject, each.kind, each.ttl_s) for each in plan] == [
            ("progress:a", Kind.DELETE, None),
            ("progress:b", Kind.EXPIRE, 86_400.0),
            ("progress:c", Kind.DELETE, None),
            ("progress:d", Kind.EXPIRE, 86_400.0),
        ]
        assert {each.copies[0].key for each in plan} == {each.key for each in rows}
        assert plan.fingerprint == "r/p/1/"

    def test_what_got_a_life_is_not_proposed_again(self):
        """All that can be done about it is done."""
        given = row("b", size_bytes=10**6, life_s=80_000.0)

        assert app_flush.over(whereabouts("b"), scan(given)) == []

    @pytest.mark.parametrize(
        "left",
        [
            row("b", life_s=80_000.0),
            row("b", size_bytes=10**6),
            row("b", size_bytes=10**6, life_s=90_000.0),
            row("b", type="stream", life_s=90_000.0),
        ],
        ids=["can be kept", "lasts", "lives longer", "cannot be kept"],
    )
    def test_what_does_not_go_by_itself_within_a_day_is_proposed(self, left):
        """Whatever its size is."""
        assert app_flush.over(whereabouts("b"), scan(left)) == [left]

    def test_no_more_than_was_asked_for(self):
        """The rest is told, with what to do about it."""
        rows = [row(str(n)) for n in range(5)]
        found = scan(*rows, keys=9, fits=8)

        plan = app_flush.plan("t", found, rows, limit=2)
        said = " ".join(app_flush.told(found, rows, len(plan)))

        assert [each.subject for each in plan] == ["progress:0", "progress:1"]
        assert "9 keys" in said
        assert "1 of them were read or written since" in said
        assert "The plan has the 2 that were untouched the longest; 6 more" in said
        assert "run the same command again, or raise --limit" in said


class TestFindings:
    """One judgement over all keys of a name."""

    def test_how_many_and_how_much(self):
        """With what stays."""
        rows = [row("a"), row("b"), row("c")]
        (found,) = app_flush.diagnose(whereabouts("a", "b", "c"), scan(*rows), rows[:2])

        assert (found.code, found.severity, found.subject) == ("app-keys", Severity.ATTENTION, "progress:{task_id}")
        assert found.message == "2 of 3 keys in redis://h/1 are of tasks that are over: 200 bytes."
        assert found.evidence["stay"] == 1

    def test_none_left(self):
        """Then there is nothing to say."""
        assert app_flush.diagnose(whereabouts("x", held=[held("x")]), scan(row("x")), []) == []

    def test_what_was_not_seen(self):
        """Of the tasks, or of the keys, makes it unknown."""
        unseen = whereabouts("x", coverage=coverage(waiting=3))

        assert [each.code for each in app_flush.diagnose(unseen, scan(row("x")), [])] == ["cannot-see"]
        assert [each.code for each in app_flush.diagnose(whereabouts("x"), scan(left=5), [])] == ["cannot-see"]
