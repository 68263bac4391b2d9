"""What nodes hold of a queue is meant as it is at that moment; what only a silent one may hold is left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from opslib.collectors import holding, server
from opslib.collectors.holding import Holding
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.selection import Selection
from opslib.writer import held, lists
from tests.support import rows

NAME = "a@h"


def action_of(queue="celery", *, task="", count=100):
    """Return the action that means what nodes hold of a queue."""
    copy = Copy(place="held", key="", queue=queue, count=count)
    only = Selection(task=task) if task else None
    return Action(kind=Kind.STOP, subject=queue, source=queue, destination="quarantine", copies=(copy,), only=only)


def seen(*, holds=(), unacked=(), pool="prefork", receivers=1, **fields):
    """Return what one node said."""
    node = rows.node(NAME, pool=pool, prefetch=4, concurrency=2)
    return Holding(nodes={NAME: node}, held=holds, unacked=unacked, receivers=receivers, **fields)


@pytest.fixture
def stop(monkeypatch):
    """Return what stops actions on a system that looks so, with the orders that it gives."""

    def carry_out(look, *actions, consumers=0, became=Status.APPLIED):
        given = []

        def stopped(some):
            given.extend(some)
            return [Outcome(action=each, status=became, reason="So it is.") for each in some]

        monkeypatch.setattr(holding, "look", lambda *_, **__: look)
        monkeypatch.setattr(holding, "routes", lambda *_, **__: {})
        monkeypatch.setattr(server, "read", lambda _: (rows.server(consumers=consumers),))
        return held.stop(SimpleNamespace(broker=None), actions or (action_of(),), stopped), given

    return carry_out


def of(*ids, place="active", **fields):
    """Return what the node says that it holds."""
    return tuple(rows.held(each, place, node=NAME, **fields) for each in ids)


class TestMeant:
    """Which tasks an action means."""

    @pytest.mark.parametrize(("pool", "ends"), [("prefork", True), ("threads", False)])
    def test_only_what_runs_is_ended_and_only_where_that_can_be(self, stop, pool, ends):
        """An order to end reaches one node, and one that cannot obey would be told in vain."""
        _, given = stop(seen(holds=of("runs") + of("waits", place="reserved"), pool=pool))

        assert [(a.subject, a.node, a.terminate) for a in given] == [("runs", NAME, ends), ("waits", "", False)]

    def test_of_one_queue_and_one_task(self, stop):
        """The others run on."""
        others = of("mail", queue="mail") + of("other", task="tests.other")
        _, given = stop(seen(holds=of("x") + others), action_of(task="tests.ok"))

        assert [each.subject for each in given] == ["x"]

    def test_of_two_actions_each_task_is_stopped_once(self, stop):
        """All of them, and one queue: both say what became of it."""
        outcomes, given = stop(seen(holds=of("x")), action_of(), action_of("*"))

        assert [each.subject for each in given] == ["x"]
        assert [str(each.status) for each in outcomes] == ["applied", "skipped"]
        assert "1 are another action's already" in outcomes[1].reason

    @pytest.mark.parametrize(
        ("more", "consumers", "taken"),
        [
            ({}, 1, True),
            ({}, None, True),
            ({"silent": 1}, 1, False),
            ({}, 2, False),
            ({"receivers": 0}, 1, False),
            ({"receivers": 0}, None, False),
            ({"receivers": 0}, 0, True),
        ],
        ids=["all answered", "cannot count", "silent", "more consume", "deaf", "cannot count the deaf", "nobody"],
    )
    def test_what_nobody_says_that_he_holds(self, stop, more, consumers, taken):
        """It is taken only where everybody has answered who may hold it."""
        look = seen(holds=of("known"), unacked=(rows.delivered("x"), rows.delivered("known")), **more)

        (outcome,), given = stop(look, consumers=consumers)

        assert {each.subject for each in given} == ({"known", "x"} if taken else {"known"})
        assert ("1 may be held by a node that does not answer" in outcome.reason) is not taken

    def test_what_has_no_id_stays(self, stop):
        """Nobody could revoke it."""
        (outcome,), given = stop(seen(unacked=(replace(rows.delivered(), task_id=""),)))

        assert not given
        assert (str(outcome.status), "1 have no id, and stay" in outcome.reason) == ("skipped", True)

    @pytest.mark.parametrize("more", [0, 1])
    def test_no_more_than_were_planned_and_nodes_have_room_for(self, stop, more):
        """A person has agreed to a number."""
        count = lists.most(3) + 4 + 2 + more
        (outcome,), given = stop(seen(holds=of(*map(str, range(count)))), action_of(count=3))

        assert len(given) == (0 if more else count)
        assert (outcome.status is Status.FAILED, "Plan it again" in outcome.reason) == (bool(more), bool(more))


class TestSaid:
    """What became of it."""

    def test_where_no_node_can_be_asked_nothing_is_taken(self, stop):
        """Somebody may run all of it."""
        look = seen(holds=of("x"), unacked=(rows.delivered("x"),), unasked="Nodes cannot be asked.")

        (outcome,), given = stop(look)

        assert not given
        assert (outcome.status, "Nothing of it was taken" in outcome.reason) == (Status.FAILED, True)

    def test_one_that_is_not_proven_fails_it(self, stop):
        """With its name; of one that ran twice, why."""
        (once,), _ = stop(seen(holds=of("x")), became=Status.UNVERIFIED)
        (twice,), _ = stop(seen(holds=of("x") + of("x")), became=Status.UNVERIFIED)

        assert (once.status, twice.status) == (Status.FAILED, Status.FAILED)
        assert "Not proven of x: So it is." in once.reason
        assert f"x: it ran more than once on {NAME}" in twice.reason
