"""A delivered message is an orphan only where nothing speaks for an owner; else it is unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib.facts.messages import UNKNOWN_TASK
from opslib.findings import Severity
from opslib.plan import Kind
from opslib.symptoms.orphans import ORPHAN_MARGIN_S
from tests.support.judging import found, planned
from tests.support.rows import coverage, delivered, held, limited, node, result, server, silent, snapshot, twice


def orphaned(**fields):
    """Return two looks at a message that nobody holds."""
    message = fields.pop("message", None) or delivered("x")
    return twice(snapshot(unacked=[message], **fields))


def test_a_message_that_nobody_holds_in_both_looks_is_an_orphan():
    """Everyone was asked, and everyone answered."""
    (finding,) = found(orphaned(), "orphaned-unacked")

    assert (finding.severity, finding.subject) == (Severity.CRITICAL, "x")
    assert planned(orphaned()) == [(Kind.RESTORE, "x")]


def test_one_look_is_not_enough():
    """A message may be between the broker and its node's memory."""
    assert found(snapshot(unacked=[delivered("x")]), "orphaned-unacked") == []


def test_another_delivery_of_the_same_message_is_not_an_orphan():
    """Between the looks somebody took it: its score has changed."""
    message = delivered("x")
    seen = twice(snapshot(unacked=[message]), unacked=[replace(message, delivered_at=message.delivered_at - 1)])

    assert found(seen, "orphaned-unacked") == []


@pytest.mark.parametrize("place", ["active", "reserved", "scheduled"])
@pytest.mark.parametrize("look", ["first", "second"])
def test_a_message_that_a_node_holds_in_either_look_is_no_orphan(look, place):
    """Active, prefetched, or waiting for a retry's countdown."""
    mine = [held("x", place)]
    seen = snapshot(unacked=[delivered("x")], held=mine if look == "second" else [])

    assert found(twice(seen, held=mine if look == "first" else []), "orphaned-unacked") == []


@pytest.mark.parametrize(("age_s", "orphan"), [(ORPHAN_MARGIN_S - 0.01, False), (ORPHAN_MARGIN_S, True)])
def test_a_message_younger_than_the_margin_is_not_judged(age_s, orphan):
    """Its node may not have filed it yet."""
    assert bool(found(orphaned(message=delivered("x", age_s=age_s)), "orphaned-unacked")) is orphan


@pytest.mark.parametrize(
    "doubt",
    [
        pytest.param(lambda s: replace(s, nodes=(node(), silent()), receivers=2), id="a node is silent"),
        pytest.param(
            lambda s: replace(s, earlier=replace(s.earlier, receivers=2)), id="a node was silent in the first look"
        ),
        pytest.param(lambda s: replace(s, coverage=coverage(workers=1)), id="an expected node was not asked"),
        pytest.param(
            lambda s: replace(s, nodes=(node(tasks=limited("tests.ok")),)),
            id="its task has a rate limit",
        ),
        pytest.param(lambda s: replace(s, server=server(consumers=2)), id="more consume than answer"),
        pytest.param(
            lambda s: replace(s, nodes=(), receivers=0, server=server(consumers=None)), id="nobody knows who consumes"
        ),
    ],
)
def test_a_message_that_may_have_an_owner_is_not_claimed(doubt):
    """It is told as unknown, and nothing is proposed for it: it could run twice."""
    seen = doubt(orphaned())

    (finding,) = found(seen, "orphaned-unacked")

    assert finding.severity is Severity.UNKNOWN
    assert planned(seen) == []


def test_a_message_without_an_id_is_not_claimed():
    """Nobody can say whether they hold it."""
    seen = orphaned(message=replace(delivered(), task_id="", task=""))

    (finding,) = found(seen, "orphaned-unacked")

    assert (finding.severity, finding.task) == (Severity.UNKNOWN, UNKNOWN_TASK)


@pytest.mark.parametrize(
    "sure",
    [
        pytest.param(
            lambda s: replace(s, nodes=(node(tasks=limited("tests.other")),)),
            id="another has a rate limit",
        ),
        pytest.param(lambda s: replace(s, server=server(consumers=1)), id="as many consume as answer"),
        pytest.param(lambda s: replace(s, nodes=(), receivers=0), id="nobody consumes"),
        pytest.param(lambda s: replace(s, server=server(consumers=None)), id="someone answered, consumers hidden"),
    ],
)
def test_what_leaves_no_doubt_is_claimed(sure):
    """The same message, on the other side of each boundary."""
    seen = sure(orphaned())
    before = replace(seen.earlier, nodes=seen.nodes, receivers=seen.receivers)

    (finding,) = found(replace(seen, earlier=before), "orphaned-unacked")

    assert finding.severity is Severity.CRITICAL


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_an_orphan_that_has_finished_is_not_restored(state):
    """It ran to its end and was not acknowledged: restoring it would run it again."""
    seen = orphaned(results=[result("x", state)])

    assert "left alone" in found(seen, "orphaned-unacked")[0].hint
    assert planned(seen) == []


@pytest.mark.parametrize("state", ["STARTED", "RETRY"])
def test_an_orphan_under_way_is_restored(state):
    """Its node died with it."""
    assert planned(orphaned(results=[result("x", state)])) == [(Kind.RESTORE, "x")]


def test_an_orphan_without_a_queue_is_told_and_left_alone():
    """No queue, or more than one, is bound for it; a guess could lose it."""
    seen = orphaned(message=delivered("x", queue=""))

    assert found(seen, "orphaned-unacked")[0].severity is Severity.CRITICAL
    assert planned(seen) == []


def test_an_orphan_that_has_a_double_is_not_restored():
    """Two copies would run; a person decides."""
    seen = twice(snapshot(unacked=[delivered("x"), delivered("x")]))

    assert len(found(seen, "orphaned-unacked")) == 2
    assert planned(seen) == []


@pytest.mark.parametrize(("look", "told"), [("both", True), ("second", False)])
def test_a_message_missing_from_the_index_is_told(look, told):
    """If both looks saw it so; the two writes of a delivery are not one step."""
    message = delivered("x", age_s=None)
    seen = twice(snapshot(unacked=[message], held=[held("x")]), unacked=[message] if look == "both" else [])

    assert bool(found(seen, "unacked-index-mismatch")) is told
    assert planned(seen) == ([(Kind.REPAIR, "x")] if told else [])


def test_an_orphan_missing_from_the_index_is_restored_and_not_repaired_as_well():
    """Back in its queue it has no need of an index."""
    seen = twice(snapshot(unacked=[delivered("x", age_s=None)]))

    assert planned(seen) == [(Kind.RESTORE, "x")]
