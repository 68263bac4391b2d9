"""A task is found in every place that holds it, and each place that was not seen is named."""

from __future__ import annotations

import pytest

from opslib.collectors.find import find
from opslib.demo import server as embedded
from opslib.errors import BrokerUnreachable
from tests.support import servers
from tests.support.impostor import listening, reply
from tests.support.seed import bind, seed_result, seed_unacked, seed_waiting


def test_every_place_of_a_task_is_named(broker, redis, server):
    """Two lists of different priorities, a delivery, a node and a result; in the order of a task's life."""
    seed_waiting(redis, task_id="x", queue="mail", priority=9)
    seed_waiting(redis, task_id="x")
    seed_unacked(redis, task_id="x")
    seed_result(redis, "RETRY", task_id="x")
    answers = {"stats": {}, "scheduled": [{"request": {"id": "x"}, "eta": None}]}

    with listening(server, lambda asked: [reply(asked, "a@x", answers.get(asked["method"], []))]):
        found = find(broker, ["x"])

    assert found.places == {"x": ["waiting", "waiting", "unacked", "scheduled", "result"]}
    assert sorted(row.queue for row in found.waiting) == ["celery", "mail"]
    assert not any(row.silent for row in found.coverage)


def test_an_id_that_is_nowhere_has_no_place(broker, redis):
    """It is answered like any other, so that its absence can be read."""
    seed_waiting(redis)

    found = find(broker, ["here-not", "nor-there"])

    assert found.places == {"here-not": [], "nor-there": []}
    assert found.messages == ()


def test_only_the_ids_that_were_asked_for_are_found(broker, redis):
    """Of many messages, one."""
    for _ in range(20):
        seed_waiting(redis)
    wanted = seed_waiting(redis, queue="mail")
    seed_unacked(redis)

    found = find(broker, [wanted.task_id])

    assert [row.sha256 for row in found.messages] == [wanted.sha256]


@pytest.mark.parametrize(
    ("place", "hide"),
    [
        ("unacked", lambda redis: redis.set("unacked", "x")),
        ("waiting", lambda redis: redis.set("celery", "x")),
    ],
)
def test_a_place_that_is_hidden_is_named(broker, redis, place, hide):
    """It may hold the task unseen."""
    bind(redis, "celery", "celery")
    hide(redis)

    found = find(broker, ["x"])

    assert [row.place for row in found.coverage if row.silent] == [place]


def test_a_silent_node_may_hold_it(broker, server):
    """Then the coverage of the nodes is not whole."""
    with listening(server, lambda _: []):
        found = find(broker, ["x"], answer_within="0.2s")

    assert [row.place for row in found.coverage if row.silent] == ["workers"]


@pytest.mark.parametrize("backend", ["redis://127.0.0.1:1/0", "db+sqlite:///results.db"])
def test_results_out_of_reach_are_named(redis, server, backend):
    """The messages are found all the same."""
    seeded = seed_waiting(redis)

    found = find(servers.broker(server, result_backend=backend), [seeded.task_id])

    assert found.places == {seeded.task_id: ["waiting"]}
    assert [row.place for row in found.coverage if row.silent] == ["results"]


def test_a_server_that_is_gone_is_an_error(tmp_path):
    """Not an empty answer."""
    with embedded.start(tmp_path) as running:
        broker = servers.broker(running)

    with pytest.raises(BrokerUnreachable):
        find(broker, ["x"])
