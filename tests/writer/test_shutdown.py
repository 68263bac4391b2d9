"""A node is told to end once, by its own name, and the journal knows it before the node does."""

from __future__ import annotations

import pytest

from opslib import pidbox, records
from opslib.plan import Action, Kind
from opslib.writer import apply, journal, nodes, shutdown
from tests.support import rows
from tests.support.plans import planned, told

NAME = "a@h"


@pytest.fixture
def end(broker, monkeypatch):
    """Return what tells a node to end, as often as one likes, on a system that looks so; and what it sent."""
    sent = []

    def asked(_, calls, **__):
        known = shutdown.told_at(journal.read(broker, records.context().run_id))
        sent.extend((call.method, call.destination, dict(known)) for call in calls)

    def carry_out(*there, silent=0, times=1):
        monkeypatch.setattr(nodes, "look", lambda _: ({node.name: node for node in there}, [], silent))
        monkeypatch.setattr(pidbox, "ask", asked)
        action = Action(kind=Kind.SHUTDOWN, subject=NAME, source=NAME, destination="", node=NAME)
        outcomes = apply(planned(broker, *[action] * times), broker, dry_run=False)
        return outcomes, sent

    return carry_out


def test_it_alone_is_told_once_that_is_on_record(end):
    """A run that is cut off there does not take the node's silence for a fault; one that goes on knows since when."""
    outcomes, sent = end(rows.node(NAME, uptime_s=50), rows.node("b@h"), times=2)

    assert told(outcomes) == ["applied"] * 2
    assert [(method, names) for method, names, _ in sent] == [("shutdown", (NAME,))] * 2
    first, second = (known for _, _, known in sent)
    assert first == second
    assert set(first) == {NAME}


def test_one_that_is_not_there_is_not_told(end):
    """Nor is anybody else; and who stayed silent is said."""
    (outcome,), sent = end(rows.node("b@h"), silent=1)

    assert not sent
    assert (outcome.status, "1 node that did not answer" in outcome.reason) == ("skipped", True)


def test_one_that_was_started_again_since_is_not_told_again(end, broker, monkeypatch):
    """It is another process of the same name."""
    monkeypatch.setattr(shutdown, "told_at", lambda _: {NAME: broker.server_time().timestamp() - 100})

    (old,), _ = end(rows.node(NAME, uptime_s=99))
    (young,), sent = end(rows.node(NAME, uptime_s=90))

    assert (old.status, young.status) == ("applied", "skipped")
    assert len(sent) == 1


@pytest.mark.parametrize(("uptime_s", "younger"), [(0, True), (97, True), (98, False), (200, False)])
def test_an_uptime_counts_whole_seconds(uptime_s, younger):
    """By a clock of its own; and one that was never told is no younger."""
    node = rows.node(NAME, uptime_s=uptime_s)

    assert shutdown.is_younger(node, 900.0, 1000.0) is younger
    assert not shutdown.is_younger(node, None, 1000.0)
