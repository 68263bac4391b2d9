"""What messages tell by themselves: loops, ETAs too far ahead, doubles, and queues that nobody consumes."""

from __future__ import annotations

import pytest

from opslib.findings import Severity
from tests.support.judging import codes, found, planned
from tests.support.rows import NODE, delivered, held, node, queue, silent, snapshot, twice, waiting


@pytest.mark.parametrize("message", [waiting, delivered])
@pytest.mark.parametrize(("retries", "loops"), [(9, False), (10, True), (11, True)])
def test_a_task_loops_from_its_tenth_retry_on(message, retries, loops):
    """Waiting or delivered, the count travels in the message."""
    place = "waiting" if message is waiting else "unacked"
    seen = snapshot(**{place: [message("x", retries=retries)]}, held=[held("x", "scheduled")])

    assert bool(found(seen, "retry-loop")) is loops


def test_a_loop_is_told_once_with_its_highest_count():
    """Each attempt may have left a message of its own."""
    seen = snapshot(waiting=[waiting("x", retries=12), waiting("x", retries=14)], unacked=[delivered("x", retries=13)])

    (finding,) = found(seen, "retry-loop")

    assert finding.evidence["retries"] == 14


@pytest.mark.parametrize(
    ("eta_in_s", "age_s", "far"), [(3599.9, 0, False), (3600, 0, True), (3000, 600, True), (2999.9, 600, False)]
)
def test_an_eta_is_too_far_from_the_visibility_timeout_on(eta_in_s, age_s, far):
    """It counts from the delivery, for that is where the timeout starts."""
    seen = snapshot(unacked=[delivered("x", age_s=age_s, eta_in_s=eta_in_s)], held=[held("x", "scheduled")])

    assert bool(found(seen, "scheduled-beyond-visibility")) is far


@pytest.mark.parametrize(("eta_in_s", "far"), [(3599.9, False), (3600, True)])
def test_a_waiting_eta_counts_from_now(eta_in_s, far):
    """It is delivered from now on at the earliest."""
    assert bool(found(snapshot(waiting=[waiting(eta_in_s=eta_in_s)]), "scheduled-beyond-visibility")) is far


def test_an_eta_that_has_passed_is_not_too_far():
    """However long ago it was delivered."""
    seen = snapshot(unacked=[delivered("x", age_s=9000, eta_in_s=-1)], held=[held("x")])

    assert found(seen, "scheduled-beyond-visibility") == []


def test_one_id_in_two_messages_is_a_duplicate():
    """Celery runs both, and neither is put back."""
    seen = twice(snapshot(waiting=[waiting("x"), waiting("x", queue="mail")]))

    (finding,) = found(seen, "duplicate-task-id")

    assert finding.evidence["copies"] == 2
    assert planned(seen) == []


def test_a_copy_that_was_just_being_moved_is_no_duplicate():
    """A retry sends its new message before the old one is acknowledged."""
    old, new = delivered("x"), waiting("x", retries=1)
    seen = snapshot(unacked=[old], waiting=[new])

    assert found(seen, "duplicate-task-id") == []
    assert found(twice(seen, unacked=[]), "duplicate-task-id") == []
    assert found(twice(seen), "duplicate-task-id") != []


def test_the_same_message_seen_in_two_places_is_no_duplicate():
    """On its way from the list to its node it has one delivery tag."""
    taken = delivered("x", delivery_tag="same")
    seen = twice(snapshot(unacked=[taken], waiting=[waiting("x", delivery_tag="same")], held=[held("x")]))

    assert found(seen, "duplicate-task-id") == []


@pytest.mark.parametrize(("before", "duplicate"), [(True, True), (False, False)])
def test_one_id_held_by_two_nodes_is_a_duplicate(before, duplicate):
    """If both looks saw it held."""
    both = [held("x"), held("x", node="w2@lab")]
    seen = twice(
        snapshot(held=both, nodes=[node(), node("w2@lab")], receivers=2), held=both if before else [held("other")]
    )

    assert bool(found(seen, "duplicate-task-id")) is duplicate


@pytest.mark.parametrize(("depth", "consumers", "alone"), [(1, (), True), (0, (), False), (1, (NODE,), False)])
def test_messages_that_nobody_consumes_are_told(depth, consumers, alone):
    """An empty queue needs nobody."""
    seen = snapshot(queues=[queue("mail", depth, consumers)])

    assert bool(found(seen, "queue-without-consumer")) is alone


def test_a_silent_node_may_consume_it():
    """Then it is not known."""
    seen = snapshot(queues=[queue("mail", 1, ())], nodes=[node(), silent()], receivers=2)

    assert [finding.severity for finding in found(seen, "queue-without-consumer")] == [Severity.UNKNOWN]


def test_without_any_node_the_queues_are_not_told_one_by_one():
    """That nobody works is one finding."""
    seen = snapshot(queues=[queue("mail", 1, ()), queue("celery", 1, ())], nodes=[], receivers=0)

    assert codes(seen) == {"no-workers"}
