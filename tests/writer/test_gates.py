"""A gate opens once its condition was seen twice, and by nobody's silence; what nodes say is made up, row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest

from opslib import records
from opslib.collectors import holding
from opslib.collectors.holding import Holding
from opslib.plan import Action, Gate, Kind
from opslib.writer import apply, gates, resume, shutdown
from tests.support import rows
from tests.support.plans import planned, told

NAME, OTHER = "a@h", "b@h"
NOBODY = "Nodes cannot be asked."
#: Of nodes that were told to end so long ago.
TOLD_S = 100.0


def seen(*nodes, **fields):
    """Return what nodes said."""
    return Holding(nodes={node.name: node for node in nodes}, receivers=len(nodes), **fields)


def node(name=NAME, queues=("celery",), **fields):
    """Return a node that answered."""
    return rows.node(name, queues=queues, **fields)


def holds(place, name=NAME, task_id="x", **fields):
    """Return what was said of one task."""
    return seen(node(name), held=(rows.held(task_id, place, node=name, **fields),))


def delivered(*held, **fields):
    """Return one message that is unacknowledged, beside what nodes said that they hold."""
    return seen(node(), unacked=(replace(rows.delivered("x"), **fields),), held=held)


def silent(count=1, *nodes):
    """Return what others said while some nodes heard the question, and did not answer."""
    return seen(*nodes, silent=count)


@pytest.fixture
def pass_(broker, monkeypatch):
    """Return what carries one gate out, on a system that looks so, and whose node was told to end a while ago."""
    monkeypatch.setattr(gates, "_PAUSE_S", 0.005)
    monkeypatch.setattr(shutdown, "told_at", lambda _: {NAME: broker.server_time().timestamp() - TOLD_S})

    def carry_out(gate, *looks):
        turns = cycle(looks)
        monkeypatch.setattr(holding, "nodes", lambda *_, **__: next(turns))
        monkeypatch.setattr(holding, "look", lambda *_, **__: next(turns))
        monkeypatch.setattr(holding, "routes", lambda *_, **__: {})
        plan = planned(broker, Action(kind=Kind.AWAIT, subject="celery", source="gate", destination="", gate=gate))
        (outcome,) = apply(plan, broker, dry_run=False)
        left = resume.remaining(plan, broker, records.context().run_id) if outcome.status == "applied" else plan
        assert bool(left.actions) is (outcome.status == "failed"), "only one that was passed is never waited for again"
        return outcome

    return carry_out


CLOSED = [
    ("paused", {"queues": ("celery",)}, seen(node()), "a@h consumes celery"),
    ("paused", {"queues": ("",)}, seen(node(queues=("mail",))), "a@h consumes mail"),
    ("paused", {"queues": ("celery",), "nodes": (NAME,)}, seen(node()), "a@h consumes celery"),
    ("idle", {"queues": ("celery",)}, holds("active"), "tests.ok x runs on a@h"),
    ("drained", {"nodes": (NAME,)}, holds("active"), "0 of them would be lost"),
    ("drained", {"nodes": (NAME,)}, holds("reserved", acknowledged=True), "1 of them would be lost"),
    ("gone", {"nodes": (NAME,)}, seen(node(uptime_s=99)), "a@h still answers"),
    ("cleared", {"queues": ("celery",)}, delivered(), "tests.ok x is unacknowledged"),
    ("cleared", {"queues": ("celery",), "hidden": 1}, delivered(rows.held("x", node=NAME)), "x is unacknowledged"),
    ("consumed", {"nodes": (NAME,), "queues": ("celery",)}, seen(node(OTHER)), "a@h does not answer"),
    ("consumed", {"nodes": (NAME,), "queues": ("celery", "mail")}, seen(node()), "a@h does not consume mail"),
    ("consumed", {"queues": ("celery",)}, seen(unasked=NOBODY), NOBODY[:-1]),
    ("served", {"queues": ("celery", "mail")}, seen(node()), "nobody consumes mail"),
    ("served", {"queues": ("celery",)}, seen(unasked=NOBODY), NOBODY[:-1]),
    *(
        (until, {"queues": ("celery",), "nodes": (NAME,), **more}, look, words)
        for until in ("paused", "idle", "drained", "gone", "cleared")
        for more, look, words in (
            ({}, silent(), "1 node heard the question and did not answer"),
            ({"silent": 1}, silent(2, node(OTHER, queues=())), "did not answer, 1 did when this was planned"),
            ({}, seen(unasked=NOBODY), NOBODY[:-1]),
        )
    ),
]
OPEN = [
    ("paused", {"queues": ("celery",)}, seen(node(queues=("mail",)))),
    ("paused", {"queues": ("celery",), "nodes": (OTHER,)}, seen(node())),
    ("paused", {"queues": ("celery",), "silent": 1}, silent()),
    ("idle", {"queues": ("celery",)}, holds("reserved")),
    ("idle", {"queues": ("celery",)}, holds("active", queue="mail")),
    ("idle", {"queues": ("celery",), "task": "shop.*"}, holds("active")),
    ("drained", {"nodes": (NAME,)}, holds("scheduled")),
    ("drained", {"nodes": (NAME,)}, holds("active", OTHER)),
    ("gone", {"nodes": (NAME,)}, seen(node(OTHER))),
    ("gone", {"nodes": (NAME,)}, seen(node(uptime_s=90))),
    ("cleared", {"queues": ("celery",)}, delivered(queue="mail")),
    ("cleared", {"queues": ("celery",)}, delivered(task_id="")),
    ("cleared", {"queues": ("celery",), "hidden": 1}, delivered()),
    ("cleared", {"queues": ("celery",), "silent": 1}, silent()),
    ("consumed", {"nodes": (NAME,), "queues": ("celery",)}, silent(1, node(), node(OTHER, queues=()))),
    ("served", {"queues": ("celery",)}, seen(node(OTHER))),
]


@pytest.mark.parametrize(("until", "about", "look", "words"), CLOSED)
def test_it_stays_closed(pass_, until, about, look, words):
    """And says why."""
    outcome = pass_(Gate(until=until, within_s=0.02, **about), look)

    assert (outcome.status, words in outcome.reason) == ("failed", True), outcome.reason


@pytest.mark.parametrize(("until", "about", "look"), OPEN)
def test_it_opens(pass_, until, about, look):
    """What others do, or what was known before, does not hold it."""
    outcome = pass_(Gate(until=until, within_s=20, **about), look)

    assert outcome.status == "applied", outcome.reason


def test_what_is_true_for_a_moment_does_not_open_it(pass_):
    """A node takes the next message between two looks."""
    busy, idle = holds("active"), holds("reserved")

    assert pass_(Gate(until="idle", queues=("celery",), within_s=0.1), idle, busy).status == "failed"
    assert pass_(Gate(until="idle", queues=("celery",), within_s=20), busy, idle, idle).status == "applied"


@pytest.mark.parametrize("gate", [None, Gate(until="ran"), Gate(until="someday")])
def test_a_condition_that_nobody_knows_is_never_met(pass_, gate):
    """The plan ends there, and says so."""
    assert "no condition" in pass_(gate, seen()).reason


def test_what_stands_behind_a_closed_gate_is_not_tried(broker, monkeypatch):
    """Not even another gate."""
    monkeypatch.setattr(holding, "nodes", lambda *_, **__: seen())
    one, two = (
        Action(kind=Kind.AWAIT, subject="celery", source="gate", destination="", gate=gate)
        for gate in (Gate(until="served", queues=("celery",), within_s=0.0), Gate(until="paused", within_s=5))
    )

    outcomes = apply(planned(broker, one, two), broker, dry_run=False)

    assert told(outcomes) == ["failed", "skipped"]
    assert f"gate {outcomes[0].action.id} was not passed" in outcomes[1].reason
