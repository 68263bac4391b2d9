"""What a person asks for by name becomes actions that say how much they are about."""

from __future__ import annotations

import pytest

from opslib.facts import Quarantined, TaskInfo
from opslib.plan import Kind
from opslib.symptoms import asked
from tests.support import rows


def test_a_purge_is_about_every_list_that_holds_something():
    """With how many each of them held."""
    (action,) = asked.purge("celery", {"celery": 5, "celery\x06\x163": 0, "celery\x06\x169": 7})

    assert action.kind is Kind.PURGE
    assert [(copy.key, copy.count) for copy in action.copies] == [("celery", 5), ("celery\x06\x169", 7)]
    assert action.count == 12
    assert "12 messages" in action.effect


def test_an_empty_queue_needs_no_purge():
    """A plan without an action changes nothing."""
    assert asked.purge("celery", {"celery": 0}) == []
    assert asked.purge("celery", {}) == []


def test_each_quarantine_list_is_dropped_by_itself():
    """One that has grown meanwhile does not keep the others."""
    rows = [
        Quarantined(run_id="r", queue=name, key=f"k:{name}", count=n, size_bytes=1) for n, name in ((1, "a"), (2, "b"))
    ]

    actions = asked.drop(rows)

    assert [(action.kind, action.subject, action.count) for action in actions] == [
        (Kind.DROP, "k:a", 1),
        (Kind.DROP, "k:b", 2),
    ]


@pytest.mark.parametrize(("by", "kind", "after"), [(2, Kind.GROW, 6), (-1, Kind.SHRINK, 3), (-9, Kind.SHRINK, 0)])
def test_a_resized_pool_says_how_much_it_runs_then(by, kind, after):
    """And that it is forgotten, and that prefetch goes with it."""
    action = asked.resized(rows.node(concurrency=4), by)

    assert (action.kind, action.subject, action.node) == (kind, rows.NODE, rows.NODE)
    assert (action.source, action.destination) == ("4", str(abs(by)))
    assert f"{after} tasks at once instead of 4" in action.effect
    assert "prefetch" in action.effect
    assert "restarted" in action.effect
    assert ("Only idle ones go" in action.effect) is (by < 0)


def test_a_limit_counts_on_each_node_and_what_they_have_keeps_the_old_one():
    """Only the nodes that have the task are meant."""
    had = (TaskInfo(name="shop.pay", rate_limit="1/h"),)
    nodes = [rows.node("b", tasks=had), rows.node("a", tasks=(TaskInfo(name="shop.pay"),)), rows.node("c")]

    (action,) = asked.limited("shop.pay", "10/m", nodes)

    assert (action.kind, action.subject, action.node) == (Kind.LIMIT, "shop.pay", "a,b")
    assert (action.source, action.destination) == ("1/h", "10/m")
    assert "a, b begin it at most 10/m each, 2 nodes together 2 times that." in action.effect
    assert "received under 1/h goes on at that pace" in action.effect


@pytest.mark.parametrize("rate", ["", "0", "0/m", "none"])
def test_no_limit_is_no_limit_however_it_is_spelled(rate):
    """And the first one has no old one."""
    (action,) = asked.limited("shop.pay", rate, [rows.node(tasks=(TaskInfo(name="shop.pay"),))])

    assert (action.source, action.destination) == ("none", "none")
    assert "No limit any more on" in action.effect
    assert "received under" not in action.effect


def test_a_task_that_no_node_has_is_not_limited():
    """A plan without an action changes nothing."""
    assert asked.limited("shop.pay", "1/m", [rows.node()]) == []


def test_each_revoked_id_is_an_action_once():
    """It says what a revoke does not do."""
    actions = asked.revoked(["b", "a", "b"])

    assert [(action.kind, action.subject) for action in actions] == [(Kind.REVOKE, "b"), (Kind.REVOKE, "a")]
    assert "its message stays" in actions[0].effect
    assert asked.revoked([]) == []
