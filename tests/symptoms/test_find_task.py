"""What is wrong with certain tasks, judged of them alone; and which of them were found nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib.facts.system import NodeInfo
from opslib.findings import Severity, Verdict, verdict
from opslib.selection import ids
from opslib.symptoms import find_task
from opslib.symptoms.find_task import diagnose, wanted
from tests.support.judging import LIMITS
from tests.support.rows import (
    coverage,
    delivered,
    held,
    letter,
    node,
    put_aside,
    queue,
    result,
    twice,
    waiting,
    whereabouts,
)


def codes(seen):
    """Return what is found, with its severity."""
    return {finding.code: finding.severity for finding in diagnose(seen, LIMITS)}


# Nothing is wrong


WELL = {
    "finished": whereabouts("x", results=[result("x", "SUCCESS")]),
    "waiting": whereabouts("x", waiting=[waiting("x")], queues=[queue(depth=1)]),
    "running": twice(whereabouts("x", held=[held("x")], results=[result("x")])),
    "running, acknowledged late": twice(whereabouts("x", held=[held("x")], unacked=[delivered("x")])),
    "reserved": twice(whereabouts("x", held=[held("x", "reserved")], unacked=[delivered("x")])),
    "scheduled": twice(whereabouts("x", held=[held("x", "scheduled")], unacked=[delivered("x", age_s=1, eta_in_s=60)])),
    "on its way": twice(whereabouts("x", unacked=[delivered("x", age_s=0.2)])),
    "put aside": twice(whereabouts("x", quarantined=[put_aside("x")], results=[result("x", "RETRY")])),
    "nothing that was asked for": whereabouts(),
}


@pytest.mark.parametrize("seen", WELL.values(), ids=WELL)
def test_a_task_that_is_well_is_no_finding(seen):
    """It has ended, waits its turn or its time, or runs as it may."""
    assert diagnose(seen, LIMITS) == []


FAILED = {
    "a result": whereabouts("x", results=[result("x", "FAILURE", exception="ValueError")]),
    "a dead letter": whereabouts("x", dead=[letter("x")]),
    "both": whereabouts("x", results=[result("x", "FAILURE")], dead=[letter("x")]),
}


@pytest.mark.parametrize("seen", FAILED.values(), ids=FAILED)
def test_a_task_that_has_failed_needs_a_person(seen):
    """By its result or by its letter: one finding either way."""
    (finding,) = diagnose(seen, LIMITS)

    assert (finding.code, finding.severity, finding.subject) == ("task-failed", Severity.ATTENTION, "x")


def test_a_failed_task_that_is_in_flight_again_is_not_called_failed():
    """Somebody sent it again under its id; the old result stays until the new one is written."""
    again = whereabouts("x", waiting=[waiting("x")], queues=[queue(depth=1)], results=[result("x", "FAILURE")])

    assert diagnose(again, LIMITS) == []


@pytest.mark.parametrize("seen", [WELL["finished"], WELL["running"]], ids=["finished", "running"])
def test_what_others_suffer_from_is_not_said_of_a_task(seen):
    """A queue in which it does not wait, and a node that has nothing to do with it."""
    others = replace(
        seen,
        queues=(queue(), queue("mail", depth=9, consumers=())),
        nodes=(node(), node("w2@lab", queues=())),
        receivers=2,
    )

    assert diagnose(others, LIMITS) == []


@pytest.mark.parametrize("seen", WELL.values(), ids=WELL)
def test_nothing_is_called_well_on_a_partial_view(seen):
    """What could not be seen is a finding, and the verdict is unknown."""
    blind = replace(seen, coverage=coverage(keyspace=3))

    assert codes(blind)["cannot-see"] is Severity.UNKNOWN
    assert verdict(diagnose(blind, LIMITS)) is Verdict.UNKNOWN


# Found nowhere


def test_a_task_that_is_nowhere_is_told():
    """Every place was seen: a person has to know, and there is nothing to be done here."""
    (finding,) = diagnose(twice(whereabouts("x", "y", results=[result("y", "SUCCESS")])), LIMITS)

    assert (finding.code, finding.severity, finding.subject) == ("task-not-found", Severity.ATTENTION, "x")
    assert finding.evidence["not_seen"] == []
    assert finding.evidence["looks"] == 2
    assert {"waiting", "unacked", "workers", "results", "quarantine"} <= set(finding.evidence["searched"])
    assert finding.runbook == "find-task"


@pytest.mark.parametrize("place", ["waiting", "unacked", "results", "keyspace", "workers"])
def test_a_task_that_is_nowhere_is_unknown_while_a_place_is_silent(place):
    """It may be there; the place is named."""
    found = diagnose(whereabouts("x", coverage=coverage(**{place: 1})), LIMITS)

    (finding,) = [each for each in found if each.code == "task-not-found"]
    assert finding.severity is Severity.UNKNOWN
    assert place in finding.message
    assert finding.evidence["not_seen"] == [place]


def test_what_cannot_be_decoded_is_evidence():
    """Nobody knows of which task it is, though every place answered."""
    seen = whereabouts("x")
    odd = replace(seen, coverage=tuple(replace(row, note="1 message cannot be decoded.") for row in seen.coverage[3:4]))

    (finding,) = diagnose(odd, LIMITS)

    assert finding.severity is Severity.ATTENTION
    assert finding.evidence["noted"] == ["waiting: 1 message cannot be decoded."]


# Judged as the runbook of stuck tasks judges


BAD = {
    "stuck-active": whereabouts("x", held=[held("x", age_s=3600)]),
    "orphaned-unacked": twice(whereabouts("x", unacked=[delivered("x")])),
    "retry-loop": twice(
        whereabouts("x", unacked=[delivered("x", age_s=1, retries=10, eta_in_s=5)], held=[held("x", "scheduled")])
    ),
    "scheduled-beyond-visibility": twice(
        whereabouts("x", unacked=[delivered("x", eta_in_s=7200)], held=[held("x", "scheduled")])
    ),
    "duplicate-task-id": twice(
        whereabouts("x", waiting=[waiting("x")], unacked=[delivered("x")], held=[held("x")], queues=[queue(depth=1)])
    ),
    "zombie-result": twice(whereabouts("x", results=[result("x")])),
    "queue-without-consumer": whereabouts("x", waiting=[waiting("x")], queues=[queue(depth=1, consumers=())]),
    "worker-not-consuming": twice(
        whereabouts("x", waiting=[waiting("x")], queues=[queue(depth=1)]), queues=[queue(depth=1)]
    ),
    "no-workers": whereabouts("x", waiting=[waiting("x")], queues=[queue(depth=1)], nodes=[], receivers=0),
    "unacked-index-mismatch": twice(whereabouts("x", unacked=[delivered("x", age_s=None)], held=[held("x")])),
    "worker-silent": whereabouts("x", results=[result("x", "SUCCESS")], receivers=2),
}


@pytest.mark.parametrize(("code", "seen"), BAD.items(), ids=BAD)
def test_what_is_wrong_with_a_task_is_told_of_it(code, seen):
    """The same code for the same trouble, and nothing else."""
    assert set(codes(seen)) == {code}


def test_each_finding_names_what_answers_it():
    """The runbook, and the command where there is one for a single task."""
    (loop,) = diagnose(BAD["retry-loop"], LIMITS)
    (zombie,) = diagnose(BAD["zombie-result"], LIMITS)
    (orphan,) = diagnose(BAD["orphaned-unacked"], LIMITS)

    assert (loop.runbook, orphan.runbook) == ("stop-task", "stuck-tasks")
    assert "`ops task stop ID`" in loop.hint
    assert "`ops task cleanup ID`" in zombie.hint


def test_no_command_is_given_for_what_is_unknown():
    """A result that may be somebody's is not to be cleaned up."""
    found = diagnose(replace(BAD["zombie-result"], coverage=coverage(unacked=1)), LIMITS)

    (zombie,) = [each for each in found if each.code == "zombie-result"]
    assert zombie.severity is Severity.UNKNOWN
    assert "cleanup" not in zombie.hint


def test_an_orphan_is_unknown_while_a_node_is_silent():
    """It may hold it."""
    seen = replace(BAD["orphaned-unacked"], receivers=2, nodes=(node(), NodeInfo(name="w2@lab", answered=False)))

    assert codes(seen) == {"worker-silent": Severity.UNKNOWN, "orphaned-unacked": Severity.UNKNOWN}


def test_a_database_with_messages_of_others_is_not_called_empty():
    """The view has only the tasks that were asked for; that others are delivered, the coverage says."""
    nobody = {"queues": [], "nodes": [], "receivers": 0}

    assert "cannot-see" not in codes(whereabouts("x", **nobody))
    assert "cannot-see" in codes(whereabouts("x", **nobody, coverage=[]))


def test_judging_again_says_the_same():
    """Nothing but the view goes in."""
    for seen in BAD.values():
        assert diagnose(seen, LIMITS) == diagnose(seen, LIMITS)


# What is asked for


@pytest.mark.parametrize("text", ["a,b", "a b", " a ,\n b ", "a;b", "a,,b,a"])
def test_ids_stand_between_commas_or_white_space(text):
    """Each once, in their order."""
    assert ids(text) == ["a", "b"]
    assert wanted(text) == {"ids": ["a", "b"]}


@pytest.mark.parametrize("text", ["", " ", ",", "\n, ;"])
def test_no_id_means_the_longest_unacknowledged(text):
    """A few of them."""
    assert wanted(text) == {"oldest": find_task.OLDEST}
