"""What a person asks for by name becomes actions that say how much they are about."""

from __future__ import annotations

from opslib.facts import Quarantined
from opslib.plan import Kind
from opslib.symptoms import asked


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
