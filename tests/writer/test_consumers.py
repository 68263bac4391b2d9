"""Nodes stop consuming a queue, and begin again: as they say themselves, and back by the run's id alone."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from opslib import records
from opslib.collectors.parts import nodes
from opslib.plan import Action, Kind
from opslib.writer import apply, consumers
from opslib.writer import nodes as writer_nodes
from tests.support import servers
from tests.support.impostor import listening, reply
from tests.support.plans import planned, told, undone


def consumed(broker):
    """Return what each node says that it consumes."""
    return {row.name: row.queues for row in nodes(broker)[0] if row.answered}


def order(kind, queue):
    """Return the action that has every node begin or stop."""
    return Action(kind=kind, subject=queue, source=queue, destination="nodes")


@pytest.fixture
def broker(trial, archive):
    """Open clients of a deployment with a node."""
    assert archive.is_dir()
    trial.worker(name="w1@trial", queues="celery,mail")
    return servers.broker(trial.server)


def test_a_queue_is_paused_and_taken_up_again(broker):
    """By the nodes that consumed it, with what they had declared."""
    before = consumed(broker)
    assert "mail" in before["w1@trial"]

    (outcome,) = apply(planned(broker, order(Kind.PAUSE, "mail")), broker, dry_run=False)
    assert (str(outcome.status), outcome.reason) == ("applied", "No longer consumed by w1@trial.")
    assert "mail" not in consumed(broker)["w1@trial"]
    assert told(apply(planned(broker, order(Kind.PAUSE, "mail")), broker, dry_run=False)) == ["skipped"]
    assert told(undone(broker, records.context().run_id)) == ["applied"]

    assert consumed(broker) == before


def test_a_queue_is_taken_up_and_let_go_again(broker):
    """One that nobody consumed."""
    before = consumed(broker)

    (outcome,) = apply(planned(broker, order(Kind.RESUME, "parcels")), broker, dry_run=False)
    assert (str(outcome.status), outcome.reason) == ("applied", "Consumed by w1@trial.")
    assert "parcels" in consumed(broker)["w1@trial"]
    assert told(undone(broker, records.context().run_id)) == ["applied"]

    assert consumed(broker) == before


def test_a_silent_node_is_none_of_those_that_were_named(broker, trial, monkeypatch):
    """Whether the others answer does not matter then; of one that is named and silent nobody knows."""
    monkeypatch.setattr(consumers, "_ANSWER_S", 0.5)
    other = trial.worker(name="w2@trial", queues="celery,parcels")

    with other.frozen():
        mine = apply(planned(broker, replace(order(Kind.PAUSE, "mail"), node="w1@trial")), broker, dry_run=False)
        its = apply(planned(broker, replace(order(Kind.PAUSE, "parcels"), node="w2@trial")), broker, dry_run=False)
        all_of_them = apply(planned(broker, order(Kind.PAUSE, "parcels")), broker, dry_run=False)
    trial.wait_for(other)

    assert told(mine) == ["applied"]
    assert told(its) == told(all_of_them) == ["unverified"]
    assert its[0].reason.startswith("Not known of 1 silent node. A silent node was not told")
    assert "parcels" in consumed(broker)["w2@trial"]
    undone(broker, records.context().run_id)
    other.kill()


def test_an_answer_that_nobody_can_read_ends_no_account(redis, server, archive, monkeypatch):
    """The other node was told, and obeyed; of this one nobody knows."""
    assert archive.is_dir()
    assert not redis.dbsize()
    for module in (consumers, writer_nodes):
        monkeypatch.setattr(module, "_ANSWER_S", 0.5)
    monkeypatch.setattr(consumers, "_WITHIN_S", 0.1)

    def node(name, then):
        told_to = []

        def answers(question):
            if name not in (question["destination"] or [name]):
                return []
            if question["method"] == "cancel_consumer":
                told_to.append(question)
                return [reply(question, name, {"ok": "no longer"})]
            if question["method"] != "active_queues":
                return []
            return [then(question) if told_to else reply(question, name, [{"name": "mail"}])]

        return answers

    def odd(question):
        body = base64.b64encode(
            b'{"odd@x": ' + b"1" * 5_000 + b"}"
        ).decode()  # Python reads no number of so many digits
        return json.dumps({"body": body, "headers": {"ticket": question["ticket"]}}).encode()

    with (
        listening(server, node("good@x", lambda question: reply(question, "good@x", []))),
        listening(server, node("odd@x", odd)),
    ):
        broker = servers.broker(server)
        (outcome,) = apply(planned(broker, order(Kind.PAUSE, "mail")), broker, dry_run=False)

    assert outcome.status == "unverified"
    assert outcome.reason == "Not known of odd@x. good@x obeyed."
