"""What was not seen is said, and is never taken for health."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from opslib.findings import Severity, Verdict, verdict
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan
from tests.support.rows import (
    PLACES,
    coverage,
    delivered,
    held,
    limited,
    node,
    queue,
    result,
    server,
    silent,
    snapshot,
    twice,
    unreadable,
    waiting,
)


def found(seen, code):
    """Return the findings with that code."""
    return [finding for finding in diagnose(seen, Thresholds()) if finding.code == code]


IDS = some.sampled_from(["a", "b", "c"])
AGES = some.sampled_from([None, 0.5, 600.0, 100_000.0])
NODES = some.sampled_from(["w1@lab", "w2@lab"])
FIELDS = some.fixed_dictionaries(
    {
        "unacked": some.lists(some.builds(delivered, IDS, age_s=AGES, retries=some.integers(0, 12)), max_size=3),
        "waiting": some.lists(some.builds(waiting, IDS, eta_in_s=AGES, retries=some.integers(0, 12)), max_size=3),
        "held": some.lists(
            some.builds(held, IDS, some.sampled_from(["active", "reserved", "scheduled"]), age_s=AGES, node=NODES),
            max_size=3,
        ),
        "results": some.lists(some.builds(result, IDS, some.sampled_from(["STARTED", "SUCCESS", "RETRY"])), max_size=3),
        "unreadable": some.lists(some.builds(unreadable), max_size=1),
        "queues": some.lists(
            some.builds(queue, IDS, some.integers(0, 3), some.sampled_from([(), ("w1@lab",)])),
            max_size=2,
            unique_by=lambda row: row.name,
        ),
        "nodes": some.sampled_from([[], [node()], [node(), node("w2@lab", queues=())], [node(), silent()]]),
        "receivers": some.integers(0, 3),
        "server": some.builds(server, consumers=some.sampled_from([None, 0, 1, 5])),
    }
)
LOOKS = some.builds(
    lambda fields, before, two: twice(snapshot(**fields), **before) if two else snapshot(**fields),
    FIELDS,
    some.fixed_dictionaries({}, optional={"receivers": some.integers(0, 3), "held": some.just([])}),
    some.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(seen=LOOKS, place=some.sampled_from(PLACES), number=some.integers(1, 10**6))
def test_what_has_a_silent_place_is_never_healthy(seen, place, number):
    """Whatever else was seen, and however good it looked."""
    partial = replace(seen, coverage=coverage(**{place: number}))

    assert verdict(diagnose(partial, Thresholds())) in {Verdict.UNKNOWN, Verdict.CRITICAL}


@settings(max_examples=200, deadline=None)
@given(seen=LOOKS)
def test_a_node_that_did_not_answer_is_never_healthy(seen):
    """More heard the question than answered it."""
    partial = replace(seen, receivers=len(seen.answering) + 1)

    assert verdict(diagnose(partial, Thresholds())) in {Verdict.UNKNOWN, Verdict.CRITICAL}


@settings(max_examples=300, deadline=None)
@given(seen=LOOKS)
def test_whatever_was_seen_can_be_judged(seen):
    """Without an error, the same each time; and a plan never touches what is held, doubted or unknown."""
    findings = diagnose(seen, Thresholds())
    made = plan(seen, findings, max_actions=100)

    assert diagnose(seen, Thresholds()) == findings
    certain = {finding.subject for finding in findings if finding.severity is not Severity.UNKNOWN}
    assert {action.subject for action in made} <= certain
    restored = {action.subject for action in made if action.kind == "restore"}
    assert not restored & {task.task_id for task in seen.held}
    assert not restored & {row.task_id for row in seen.results if row.state == "SUCCESS"}
    assert not restored or (seen.earlier is not None and seen.receivers <= len(seen.answering))


@pytest.mark.parametrize("place", PLACES)
def test_each_silent_place_is_a_finding(place):
    """With how much of it was not seen."""
    (finding,) = diagnose(snapshot(coverage=coverage(**{place: 7})), Thresholds())

    assert (finding.code, finding.severity, finding.subject) == ("cannot-see", Severity.UNKNOWN, place)
    assert finding.evidence["silent"] == 7


def test_a_silent_node_is_told_once_and_by_name():
    """Not a second time as a place that was not seen."""
    seen = snapshot(nodes=[node(), silent("w2@lab")], receivers=2, coverage=coverage(workers=1))

    (finding,) = diagnose(seen, Thresholds())

    assert (finding.code, finding.severity, finding.subject) == ("worker-silent", Severity.UNKNOWN, "w2@lab")


def test_a_silent_node_without_a_name_is_told_too():
    """The broker remembers nobody who could be it."""
    (finding,) = diagnose(snapshot(receivers=2), Thresholds())

    assert (finding.code, finding.subject) == ("worker-silent", "a node without a name")


@pytest.mark.parametrize(
    ("work", "severity"),
    [
        ({"queues": [queue()]}, Severity.ATTENTION),
        ({"queues": [queue(depth=1)]}, Severity.CRITICAL),
        ({"unacked": [delivered()]}, Severity.CRITICAL),
    ],
)
@pytest.mark.parametrize("consumers", [0, None])
def test_without_a_node_it_depends_on_the_work(work, severity, consumers):
    """Nobody is needed where nothing waits, but somebody should know."""
    seen = snapshot(**{"queues": [], **work}, nodes=[], receivers=0, server=server(consumers=consumers))

    assert [finding.severity for finding in found(seen, "no-workers")] == [severity]


def test_consumers_that_take_no_control_messages_are_no_absent_workers():
    """Somebody waits in BRPOP, so somebody works; who it is cannot be asked."""
    seen = snapshot(queues=[queue(depth=9)], nodes=[], receivers=0, server=server(consumers=2))

    assert [finding.code for finding in diagnose(seen, Thresholds())] == ["cannot-see"]


def test_nodes_that_nobody_asked_are_not_absent():
    """A user who may not publish has learned nothing about them."""
    seen = snapshot(queues=[queue(depth=9)], nodes=[], receivers=0, coverage=coverage(workers=1))

    assert [(f.code, f.subject) for f in diagnose(seen, Thresholds())] == [("cannot-see", "workers")]


def test_an_expected_node_that_is_absent_does_not_hide_that_all_are():
    """It was asked for by name, and nobody heard."""
    seen = snapshot(queues=[queue(depth=9)], nodes=[silent()], receivers=0, coverage=coverage(workers=1))

    assert [finding.code for finding in diagnose(seen, Thresholds())] == ["no-workers", "cannot-see"]


def test_an_empty_database_is_more_often_the_wrong_one():
    """With what else the server holds as a hint."""
    empty = snapshot(queues=[], nodes=[], receivers=0, coverage=[])
    elsewhere = replace(empty, server=server(other_databases={3: 4711}), foreign_prefixes=("shop:",))

    (bare,), (hinted,) = diagnose(empty, Thresholds()), diagnose(elsewhere, Thresholds())

    assert (bare.code, bare.subject, bare.severity) == ("cannot-see", "database 0", Severity.UNKNOWN)
    assert "Check that this is the broker" in bare.hint
    assert "3 (4,711 keys)" in hinted.hint
    assert "'shop:'" in hinted.hint


def test_a_node_that_consumes_nothing_is_told():
    """Somebody cancelled its consumers."""
    (finding,) = diagnose(snapshot(nodes=[node(queues=())]), Thresholds())

    assert (finding.code, finding.severity) == ("worker-not-consuming", Severity.ATTENTION)


def idle(**before):
    """Return two looks at a node that did nothing while a message waited beside it."""
    return twice(snapshot(queues=[queue(depth=1)]), **before)


def test_a_node_full_of_tasks_that_wait_for_their_time_is_not_called_idle():
    """With worker_eta_task_limit it may take no more; a place that is free tells the one from the other."""
    later = [held(name, "scheduled") for name in "abc"]

    full = twice(snapshot(queues=[queue(depth=1)], held=later, nodes=[node(prefetch=3)]))
    free = twice(snapshot(queues=[queue(depth=1)], held=later, nodes=[node(prefetch=4)]))

    assert found(full, "worker-not-consuming") == []
    assert len(found(free, "worker-not-consuming")) == 1


def test_a_node_idle_beside_work_is_told():
    """It took nothing between the looks, and holds nothing."""
    (finding,) = found(idle(), "worker-not-consuming")

    assert finding.severity is Severity.CRITICAL


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(snapshot(queues=[queue(depth=1)]), id="one look"),
        pytest.param(idle(queues=[queue()]), id="the work has just come"),
        pytest.param(twice(snapshot(), queues=[queue(depth=1)]), id="the work is done"),
        pytest.param(idle(nodes=[node(accepted=4)]), id="it accepted a task"),
        pytest.param(idle(nodes=[]), id="it has just come"),
        pytest.param(idle(held=[held("x")]), id="it was busy"),
        pytest.param(twice(snapshot(queues=[queue(depth=1)], held=[held("x", "reserved")])), id="it is busy"),
        pytest.param(
            twice(snapshot(queues=[queue(depth=1)], nodes=[node(tasks=limited("t"))])),
            id="a rate limit",
        ),
        pytest.param(twice(snapshot(queues=[queue("mail", 1)])), id="another queue"),
    ],
)
def test_a_node_that_may_be_working_is_not_accused(seen):
    """Each of these explains why a message still waits."""
    assert found(seen, "worker-not-consuming") == []


def test_holding_only_tasks_for_later_is_idle():
    """An ETA keeps nobody from taking the next message."""
    assert found(idle(held=[held("x", "scheduled")]), "worker-not-consuming") != []
