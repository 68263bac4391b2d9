"""A task that can still be run is found wherever it is; where a place was not wholly seen, no other task is over."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from opslib.collectors import circulation, server, workers
from opslib.envelope import Head, head
from opslib.facts.system import Coverage
from tests.support import rows
from tests.support.seed import KEYS, seed_unacked, seed_waiting

SAMPLES = Path(__file__).parents[1] / "samples"
PLACES = ("keyspace", "waiting", "unacked", "workers", "set aside")


@pytest.fixture
def look(broker, monkeypatch):
    """Return what looks at a broker whose nodes answer so, one look after the other."""

    def seen(*answers, receivers=1, consumers=0, **limits):
        turns = iter(answers or ((), ()))
        covered = Coverage(place="workers", seen=receivers)
        monkeypatch.setattr(workers, "read", lambda *_, **__: ((), next(turns), receivers, covered))
        monkeypatch.setattr(server, "read", lambda _: (rows.server(consumers=consumers),))
        return circulation.read(broker, timeout_s=0.1, **limits)

    return seen


def test_it_is_found_wherever_it_is(look, redis):
    """In every list, of any protocol; unacknowledged; on a node; and nobody else is."""
    waiting = [seed_waiting(redis, priority=priority).task_id for priority in (0, 9)]
    old = (SAMPLES / "envelope-protocol1.json").read_bytes()
    redis.lpush("celery", old)
    (known,) = [each.task_id for each in [head(old)] if isinstance(each, Head)]
    delivered = seed_unacked(redis).task_id

    seen = look((), (rows.held("on a node", "reserved"),))

    assert seen.unseen == ()
    assert len(seen) == 5
    assert all(each in seen for each in (*waiting, known, delivered, "on a node"))
    assert not any(str(uuid.uuid4()) in seen for _ in range(2_000))


def test_one_that_moves_on_meanwhile_is_met_again(look, redis):
    """A node takes it right after the first look at the nodes."""
    seed_waiting(redis)

    assert "x" in look((), (rows.held("x"),))
    assert "x" not in look((rows.held("x"),), ())


@pytest.mark.parametrize("place", [*PLACES, "results", "server"])
def test_each_place_in_which_a_task_could_be_counts(broker, place):
    """And no other one."""
    assert bool(circulation._unseen(broker, [Coverage(place=place, seen=1, silent=1)], 1)) is (place in PLACES)
    assert not circulation._unseen(broker, [Coverage(place=place, seen=1)], 1)


@pytest.mark.parametrize(("limit", "told"), [(2, True), (3, False)])
def test_more_messages_than_are_looked_at(look, redis, limit, told):
    """Then any task may be among the rest."""
    for _ in range(3):
        seed_waiting(redis)

    assert bool(look(max_messages=limit).unseen) is told


def test_what_a_run_has_set_aside(look, redis):
    """It comes back, and is in no queue until then."""
    redis.rpush(KEYS.work("20261121T030000Z-trial-abc123", "celery"), json.dumps({}))

    assert any("set aside" in each for each in look().unseen)


@pytest.mark.parametrize(
    ("receivers", "consumers", "told"),
    [(0, 0, False), (0, 2, True), (0, None, True), (1, 2, False)],
    ids=["nobody", "the deaf", "who knows", "one that answers"],
)
def test_nodes_that_do_not_listen(look, receivers, consumers, told):
    """Connections consume, and nobody can be asked what they hold."""
    assert bool(look(receivers=receivers, consumers=consumers).unseen) is told
