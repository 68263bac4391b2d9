"""ops stats: the overall figures, as the places themselves have them."""

from __future__ import annotations

import json

from opslib.errors import Exit
from tests.cli.conftest import Busy
from tests.command_line import call


def figures(code: int = Exit.DONE):
    """Return the figures as a program reads them."""
    done = call("stats", "-o", "json")
    assert done.code == code, done
    return json.loads(done.out)


def test_every_place_is_counted(busy: Busy):
    """What a node runs, has reserved and schedules; what waits, is unacknowledged and is retried; what is stored."""
    found = figures()

    assert (found["nodes"], found["nodes_silent"], found["slots"]) == (1, 0, 1)
    assert (found["active"], found["reserved"]) == (1, 1)
    assert (found["retrying"], found["waiting"], found["queues"]["lonely"]) == (1, 2, 2)
    assert found["scheduled"] == 2
    assert found["unacked"] == busy.system.redis.hlen("unacked")
    assert found["results"]["SUCCESS"] >= 1
    assert found["memory_bytes"] > 0


def test_a_person_reads_them_as_tables(busy: Busy):
    """With what each figure is a part of, and the nodes below."""
    done = call("stats")

    assert done.code == Exit.DONE
    for words in ("of 1 slots", "in lonely", "delivered and not acknowledged", busy.worker.name):
        assert words in done.out


def test_names_are_those_of_the_nodes(busy: Busy):
    """One on a line."""
    assert call("stats", "-o", "ids").out.split() == [busy.worker.name]


def test_a_silent_node_is_counted_and_the_figures_are_not_called_whole(busy: Busy):
    """Exit 4: what it holds is in no figure."""
    with busy.worker.frozen():
        done = call("stats", "--timeout", "0.2s", "-o", "json")
    found = json.loads(done.out)

    assert done.code == Exit.CANNOT_SEE
    assert (found["nodes"], found["nodes_silent"]) == (0, 1)
    assert any(row["place"] == "workers" and row["silent"] for row in found["coverage"])
