"""What came and what went is counted by the newest message, exactly, whatever the depth; if not, it says so."""

from __future__ import annotations

import json
import time

import pytest

from opslib.collectors import flows
from opslib.facts.window import Flow
from opslib.keys import Keyspace
from tests.collectors.test_collect import overheard
from tests.support import servers
from tests.support.seed import envelope, seed_waiting


def measured(broker, *steps, queues=("celery",)):
    """Sample, and again after each step; return the rows by queue and priority."""
    meter = flows.Meter(broker, queues)
    meter.sample()
    for step in steps:
        step()
        meter.sample()
    return {(row.queue, row.priority): row for row in meter.rows()}


def only(broker, *steps) -> Flow:
    """Return the row of the one list there is."""
    return measured(broker, *steps)["celery", 0]


def counts(row: Flow) -> tuple[int, int, bool]:
    """Return what came, what went, and whether that is all."""
    return row.arrived, row.served, row.exact


def push(redis, number):
    """Return a step that publishes so many messages."""
    return lambda: [seed_waiting(redis) for _ in range(number)]


def serve(redis, number):
    """Return a step in which workers take so many messages."""
    return lambda: redis.rpop("celery", number)


def test_what_came_and_what_went_at_once_is_counted(broker, redis):
    """The depth alone would say that nothing happened."""
    push(redis, 10)()

    row = only(broker, lambda: (push(redis, 7)(), serve(redis, 7)()))

    assert (row.before, row.after) == (10, 10)
    assert counts(row) == (7, 7, True)


def test_samples_add_up(broker, redis):
    """Each is counted from the newest message of the one before."""
    push(redis, 20)()

    row = only(broker, push(redis, 3), serve(redis, 5), lambda: None, lambda: (push(redis, 4)(), serve(redis, 2)()))

    assert (row.before, row.after) == (20, 20)
    assert counts(row) == (7, 7, True)


def test_a_list_that_is_drained_within_a_step_is_no_exact_count(broker, redis):
    """Everything that lies there now came after what was the newest, and more may have come and gone."""
    push(redis, 3)()

    row = only(broker, lambda: (push(redis, 5)(), serve(redis, 4)()))

    assert counts(row) == (4, 3, False)
    assert (row.before, row.after) == (3, 4)


def test_the_last_message_itself_is_the_boundary(broker, redis):
    """As long as the newest of the last sample is still there, the count is exact; when it is served, no more."""
    push(redis, 3)()
    there = only(broker, lambda: (push(redis, 5)(), serve(redis, 2)()))
    redis.delete("celery")
    push(redis, 3)()
    gone = only(broker, lambda: (push(redis, 5)(), serve(redis, 3)()))

    assert counts(there) == (5, 2, True)
    assert counts(gone) == (5, 3, False)


def test_a_list_that_was_emptied_counts_what_it_lost(broker, redis):
    """At least those that lay there were served."""
    push(redis, 3)()

    row = only(broker, lambda: redis.delete("celery"))

    assert counts(row) == (0, 3, False)


def test_a_list_that_fills_counts_what_lies_there(broker, redis):
    """What came and went before the sample left no trace."""
    row = only(broker, lambda: None, push(redis, 4), push(redis, 2))

    assert counts(row) == (6, 0, False)
    assert row.before == 0


def test_what_is_put_back_is_not_served_less_than_nothing(broker, redis):
    """A restore pushes at the other end: nothing arrived, and nothing was served."""
    push(redis, 3)()

    row = only(broker, lambda: [redis.rpush("celery", json.dumps(envelope())) for _ in range(4)])

    assert counts(row) == (0, 0, True)
    assert row.restored == 4
    assert (row.before, row.after) == (3, 7)


def test_what_is_put_back_and_served_again_evens_out(broker, redis):
    """Only the difference is known."""
    push(redis, 3)()

    row = only(broker, lambda: ([redis.rpush("celery", json.dumps(envelope())) for _ in range(4)], serve(redis, 5)()))

    assert row.before + row.arrived + row.restored - row.served == row.after


@pytest.mark.parametrize(("came", "exact"), [(199, True), (200, False), (500, False)])
def test_a_search_for_the_newest_message_has_an_end(broker, redis, monkeypatch, came, exact):
    """Beyond it, what the depth says is counted: messages that were served meanwhile are missing from it."""
    monkeypatch.setattr(flows, "_FARTHEST", 200)
    push(redis, 10)()

    row = only(broker, push(redis, came))

    assert counts(row) == (came, 0, exact)


def test_a_message_out_of_the_middle_makes_it_inexact(broker, redis):
    """Somebody purged a message that had arrived meanwhile."""
    push(redis, 3)()
    meter = flows.Meter(broker, ["celery"])
    meter.sample()
    meter._lists[0].passed = 2

    meter.sample()

    (row,) = meter.rows()
    assert row.arrived == 0
    assert not row.exact


def test_pushes_in_the_middle_of_a_sample_are_counted_once(broker, redis):
    """The answers of one list that do not fit together are asked for again."""
    push(redis, 3)()
    (one,) = [each for each in flows.Meter(broker, ["celery"])._lists if not each.priority]
    one.begin([b"a", 3, b"a"], first=True)

    assert one.go_on([2, 5, b"c", 3], 5000) is False
    assert one.arrived == 2
    assert one.go_on([4, 7, b"e", 4], 5000) is True
    assert one.arrived == 4
    assert one.go_on([1, 8, b"f", 1], 5000) is True

    assert counts(one.row()) == (5, 0, True)


def test_every_priority_is_a_list_of_its_own(broker, redis):
    """One that never held anything is left out; the queue's first list stays, so that every queue has a row."""
    seed_waiting(redis, priority=9)

    rows = measured(broker, lambda: seed_waiting(redis, priority=9), queues=["celery", "empty"])

    assert set(rows) == {("celery", 0), ("celery", 9), ("empty", 0)}
    assert counts(rows["celery", 9]) == (1, 0, True)


def test_a_prefix_is_part_of_every_key(redis, server):
    """The queue keeps the name that Celery knows it by."""
    limited = servers.broker(server, global_keyprefix="shop:")
    keys = Keyspace(prefix="shop:")
    seed_waiting(redis, keys=keys)

    rows = measured(limited, lambda: seed_waiting(redis, keys=keys))

    assert counts(rows["celery", 0]) == (1, 0, True)


def test_what_is_no_list_is_left_alone(broker, redis):
    """A key of another type under a queue's name says nothing, and breaks nothing."""
    redis.set("celery", "mine")
    push_elsewhere = seed_waiting(redis, queue="other")

    rows = measured(broker, lambda: None, queues=["celery", "other"])

    assert push_elsewhere.queue == "other"
    assert counts(rows["celery", 0])[:2] == (0, 0)
    assert rows["other", 0].after == 1


def test_equal_messages_are_counted_no_more_often_than_they_came(broker, redis):
    """Handmade messages without a tag of their own: the first of them is found, and the depth tells of the others."""
    raw = json.dumps(envelope(tag="same", task_id="same"))
    redis.lpush("celery", raw)

    row = only(broker, lambda: redis.lpush("celery", raw, raw))

    assert row.arrived == 0
    assert row.before + row.arrived + row.restored - row.served == row.after == 3


def test_a_heavy_message_is_not_sent_back_and_forth(broker, redis):
    """A list of such is watched by its length alone."""
    redis.lpush("celery", json.dumps(envelope(args=["x" * 100_000])))
    meter = flows.Meter(broker, ["celery"])
    meter.sample()
    redis.lpush("celery", json.dumps(envelope(args=["x" * 100_000])))

    with overheard(redis) as said:
        meter.sample()

    asked = [command.split()[0] for command in said if command.startswith("L")]
    assert sorted(asked) == ["LINDEX", "LINDEX", "LINDEX", "LLEN"]  # three for the priorities that are empty
    row, *_ = meter.rows()
    assert (row.arrived, row.exact) == (1, False)


def test_five_hundred_queues_cost_little(broker, redis):
    """One pipeline for all of them; every command of it takes constant time, or an end is set to it."""
    names = [f"q{number}" for number in range(500)]
    for name in names[:250]:
        seed_waiting(redis, queue=name)
    meter = flows.Meter(broker, names)
    meter.sample()
    seed_waiting(redis, queue="q0")

    with overheard(redis) as said:
        meter.sample()
    begun = time.perf_counter()
    meter.sample()

    assert time.perf_counter() - begun < 1.0
    assert sum(command.startswith("L") for command in said) == 250 * 4 + 1_750
    rows = {row.queue: row for row in meter.rows()}
    assert len(rows) == 500
    assert counts(rows["q0"]) == (1, 0, True)
    assert counts(rows["q1"]) == (0, 0, True)


def test_depth_does_not_matter(broker, redis):
    """A hundred thousand messages take no longer than one."""
    raw = json.dumps(envelope()).encode()
    for _ in range(10):
        redis.lpush("celery", *([raw] * 10_000))
    redis.lpush("celery", json.dumps(envelope()))
    meter = flows.Meter(broker, ["celery"])
    meter.sample()
    serve(redis, 100)()
    begun = time.perf_counter()

    meter.sample()

    assert time.perf_counter() - begun < 0.2
    row, *_ = meter.rows()
    assert counts(row) == (0, 100, True)
