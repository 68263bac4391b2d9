"""Whether one task is in a retry loop, and where that cannot be told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from opslib.facts.system import TaskInfo
from opslib.symptoms.retrying import judge
from tests.support.judging import LIMITS
from tests.support.rows import NOW, coverage, delivered, held, letter, node, queue, result, waiting, whereabouts


def retried(times, *, cap=None, **fields):
    """Return a look at a task that waits on a node for its next attempt."""
    message = delivered("x", age_s=1, retries=times, eta_in_s=4)
    known = node(tasks=(TaskInfo(name="tests.ok", max_retries=cap),))
    given = {"unacked": [message], "held": [held("x", "scheduled")], "nodes": [known]}
    return whereabouts("x", **{**given, **fields})


def later(seen, after_s=10):
    """Return a look that was taken after another one."""
    return replace(seen, taken_at=NOW + timedelta(seconds=after_s))


@pytest.mark.parametrize(("times", "is_loop"), [(0, False), (1, False), (9, False), (10, True), (11, True)])
def test_a_task_loops_from_so_many_retries_on(times, is_loop):
    """The boundary itself counts as a loop, as in the runbook of stuck tasks."""
    answer = judge([retried(times)], "x", LIMITS)

    assert answer.is_loop is is_loop
    assert answer.sentence.startswith("Yes: " if is_loop else "No: ")
    assert (answer.evidence["retries"], answer.evidence["loop_after"]) == (times, 10)


def test_a_loop_is_told_with_its_next_attempt():
    """When and where it comes."""
    said = judge([retried(12)], "x", LIMITS).sentence

    assert said == "Yes: retried 12 times, where 10 count as a loop; the next attempt is due in 4.0 s on w1@lab."


@pytest.mark.parametrize(("cap", "is_loop"), [(None, True), (5, False), (3, True)])
def test_rising_retries_are_a_loop_unless_a_limit_ends_them(cap, is_loop):
    """A limit that they have passed is none."""
    answer = judge([retried(2, cap=cap), later(retried(4, cap=cap))], "x", LIMITS)

    assert answer.is_loop is is_loop
    assert answer.evidence["rose_by"] == 2
    assert answer.evidence["watched_s"] == 10.0
    assert ("rose by 2 to 4 within 10 s" in answer.sentence) is is_loop
    assert ("of at most 5" in answer.sentence) is (cap == 5)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"nodes": []}, "no node that answered has the task"),
        ({"nodes": [node(tasks=(TaskInfo(name="tests.other"),))]}, "no node that answered has the task"),
        ({"nodes": [], "coverage": coverage(workers=1)}, "not everything could be seen: workers"),
        ({"coverage": coverage(workers=1)}, "not everything could be seen: workers"),
        ({"coverage": coverage(workers=1), "cap": 1}, "not everything could be seen: workers"),
    ],
)
def test_a_rise_is_no_proof_where_a_limit_may_be_out_of_sight(fields, why):
    """One retry and a silent node is what any task does once that is about to give up."""
    answer = judge([retried(1, **fields), later(retried(2, **fields))], "x", LIMITS)

    assert answer.is_loop is None
    assert answer.sentence.startswith("Cannot tell: ")
    assert why in answer.sentence


def test_the_highest_limit_of_any_node_counts():
    """And one node without any is none, whatever the others have."""
    capped, endless = (node(f"w{cap}", tasks=(TaskInfo(name="tests.ok", max_retries=cap),)) for cap in (9, None))
    ends = [retried(2, cap=3, nodes=[node(tasks=(TaskInfo(name="tests.ok", max_retries=3),)), capped])]
    never = [retried(2, nodes=[capped, endless])]

    assert judge([*ends, later(replace(ends[0], unacked=retried(4).unacked))], "x", LIMITS).is_loop is False
    assert judge([*never, later(replace(never[0], unacked=retried(4).unacked))], "x", LIMITS).is_loop


def test_retries_that_stand_still_are_no_loop():
    """And how long they did is said."""
    said = judge([retried(2), later(retried(2))], "x", LIMITS).sentence

    assert said.startswith("No: retried 2 times, and not once more in the 10 s that it was watched")


def test_a_copy_that_waits_counts_too():
    """The latest attempt is the one that tells."""
    seen = retried(3, waiting=[waiting("x", retries=12)], queues=[queue(depth=1)])

    assert judge([seen], "x", LIMITS).is_loop


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (
            whereabouts("x", results=[result("x", "SUCCESS")]),
            "No: its result says SUCCESS, and no attempt is under way.",
        ),
        (whereabouts("x", results=[result("x", "RETRY")]), "No: its result says RETRY, and no attempt is under way."),
        (whereabouts("x", dead=[letter("x")]), "No: it is dead."),
        (whereabouts("x"), "No: it was found nowhere, so nothing retries it."),
        (whereabouts("x", waiting=[waiting("x")]), "No: it has not been retried; it is waiting."),
        (whereabouts("x", held=[held("x")], results=[result("x")]), "No: it has not been retried; it is active."),
    ],
)
def test_what_is_no_loop_is_said_to_be_none(seen, said):
    """With what it is instead."""
    answer = judge([seen], "x", LIMITS)

    assert (answer.is_loop, answer.sentence) == (False, said)


def test_a_running_task_without_a_message_cannot_be_told():
    """Its message is acknowledged, and the application keeps no extended results."""
    answer = judge([whereabouts("x", held=[held("x")], results=[result("x", task="")])], "x", LIMITS)

    assert answer.is_loop is None
    assert "--watch" in answer.sentence


def test_an_earlier_look_may_know_what_the_latest_does_not():
    """Between two attempts there is a message, and while it runs there is none."""
    runs = whereabouts("x", held=[held("x")], results=[result("x", task="")])

    assert judge([retried(2), later(retried(3), 5), later(runs)], "x", LIMITS).is_loop


@pytest.mark.parametrize(("times", "is_loop"), [(9, None), (10, True)])
def test_a_place_that_is_silent_hides_no_loop_that_was_seen(times, is_loop):
    """But it may hold a later attempt of one that was not."""
    answer = judge([retried(times, coverage=coverage(workers=1))], "x", LIMITS)

    assert answer.is_loop is is_loop
    assert answer.evidence["not_seen"] == ["workers"]
