"""What each node has to end, what would be lost with it, and the steps by which it is drained."""

from __future__ import annotations

import pytest

from opslib.errors import BadParameter
from opslib.facts.snapshot import Snapshot
from opslib.plan import Kind
from opslib.symptoms.maintenance_drain import Thresholds, diagnose, nodes, plan
from tests.support.rows import NODE, held, node, queue, snapshot

OTHER = "w2@lab"
LIMITS = Thresholds(wait_s=600.0, scheduled_per_node=100)


def two(**fields: object) -> Snapshot:
    """Return two nodes that share a queue; one of them has another for itself."""
    given = {
        "nodes": [node(queues=("celery", "mail")), node(OTHER)],
        "receivers": 2,
        "queues": [queue(consumers=(NODE, OTHER)), queue("mail", consumers=(NODE,))],
        "held": [
            held("late", age_s=30.0),
            held("early", age_s=600.0, acknowledged=True),
            held("next", "reserved"),
            held("timed", "scheduled"),
            held("there", node=OTHER),
        ],
    }
    return snapshot(**{**given, **fields})


def test_each_node_with_what_it_would_lose() -> None:
    """Acknowledged is lost; what waits for its time is given back."""
    first, second = nodes(two())

    assert (first.node, first.running, first.lost, first.reserved, first.scheduled) == (NODE, 2, 1, 1, 1)
    assert (first.longest_s, first.alone) == (600.0, ("mail",))
    assert (second.node, second.running, second.lost, second.alone) == (OTHER, 1, 0, ())
    assert [row.node for row in nodes(two(), "w2*")] == [OTHER]


def test_nothing_is_planned_unless_it_is_asked_for() -> None:
    """A look is only a look."""
    assert not plan(two(), diagnose(two(), LIMITS))


def test_a_drain_step_by_step() -> None:
    """Those nodes alone; and who waits for nobody else is told."""
    made = plan(two(), [], do="drain", node="w1*", shutdown="warm", wait="5m")

    assert [(a.step, str(a.kind), a.node or (a.gate and a.gate.until)) for a in made] == [
        ("freeze", "pause", NODE),
        ("freeze", "pause", NODE),
        ("freeze", "await", "paused"),
        ("drain", "await", "drained"),
        ("shutdown", "shutdown", NODE),
        ("shutdown", "await", "gone"),
    ]
    assert [("Nobody else consumes it" in a.effect) for a in made if a.kind is Kind.PAUSE] == [False, True]
    assert {a.gate.nodes for a in made if a.gate} == {(NODE,)}
    assert {a.gate.within_s for a in made if a.gate} == {300.0}
    (drained,) = [a for a in made if a.step == "drain"]
    assert "2 run now, 1 are about to; killed now, 1 would be lost" in drained.effect


def test_of_all_nodes_no_queue_has_anybody_left() -> None:
    """Both queues wait then."""
    made = plan(two(), [], do="drain")

    assert all("Nobody else consumes it" in a.effect for a in made if a.kind is Kind.PAUSE)
    assert not [a for a in made if a.kind is Kind.SHUTDOWN]


def test_canaries_for_the_queues_of_the_nodes() -> None:
    """Each queue once."""
    assert [a.subject for a in plan(two(), [], do="canary")] == ["celery", "mail"]
    assert [a.subject for a in plan(two(), [], do="canary", node="w2*")] == ["celery"]


def test_what_has_run_as_long_as_it_would_be_waited_for_is_told() -> None:
    """Exactly so long counts."""
    assert [f.code for f in diagnose(two(), LIMITS)] == ["deploy-risk"]
    assert not diagnose(two(), Thresholds(wait_s=600.1, scheduled_per_node=100))


@pytest.mark.parametrize("asked", [{"do": "end"}, {"do": "drain", "node": "w9*"}, {"do": "drain", "shutdown": "cold"}])
def test_what_cannot_be_meant_is_refused(asked: dict[str, str]) -> None:
    """With a sentence."""
    with pytest.raises(BadParameter):
        plan(two(), [], **asked)  # type: ignore[arg-type]


def test_without_a_node_there_is_nothing_to_drain() -> None:
    """And that is no error."""
    assert not plan(snapshot(nodes=[], receivers=0), [], do="drain")
