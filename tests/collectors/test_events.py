"""Events are counted whatever comes: gathered by a node, by its prefix, hostile; and never more is kept than may be."""

from __future__ import annotations

import base64
import json
import signal
import time

import pytest

from opslib.collectors import events
from opslib.facts.window import TaskEvents
from tests.support import servers
from tests.support.impostor import listening, reply


def message(body, *, encoding="base64", **fields):
    """Return an event, or several, as kombu publishes them."""
    text = json.dumps(body)
    if encoding == "base64":
        text = base64.b64encode(text.encode()).decode()
    properties = {"body_encoding": encoding, "delivery_tag": "t"}
    whole = {"body": text, "content-type": "application/json", "headers": {}, "properties": properties}
    return json.dumps({**whole, **fields}).encode()


def event(kind="task-received", uuid="a", **fields):
    """Return an event as a node writes it."""
    return {"type": kind, "uuid": uuid, "hostname": "w1@lab", "pid": 1, "timestamp": 1.0, "clock": 3, **fields}


def heard(*bodies):
    """Return what was counted of these."""
    taken = events.Heard()
    for body in bodies:
        taken.take(body if isinstance(body, bytes) else message(body))
    return taken


def test_an_event_names_a_task_only_once():
    """Those that follow are joined to it by their id."""
    rows = heard(event(name="shop.charge"), event("task-started"), event("task-succeeded")).rows({})

    assert {(row.kind, row.task, row.count) for row in rows} == {
        ("task-received", "shop.charge", 1),
        ("task-started", "shop.charge", 1),
        ("task-succeeded", "shop.charge", 1),
    }


def test_what_was_received_before_the_window_is_named_by_its_message():
    """Or by an event that comes later; where nothing names it, the row has no name."""
    taken = heard(event("task-retried", "a"), event("task-retried", "b"), event("task-retried", "c"))
    taken.take(message(event("task-sent", "b", name="shop.pack", hostname="gen1@lab")))

    rows = taken.rows({"a": "shop.charge", "b": "shop.other"})

    retried = {(row.task, row.ids) for row in rows if row.kind == "task-retried"}
    assert retried == {("shop.charge", ("a",)), ("shop.pack", ("b",)), ("", ("c",))}


def test_gathered_events_are_counted_one_by_one():
    """A node buffers the events of tasks and sends them as a list; one that is odd does not hide its neighbours."""
    taken = heard([event(uuid=str(number), name="shop.charge") for number in range(24)])
    taken.take(message([event(uuid="x", name="shop.charge"), {"type": 7}, event(uuid="y", name="shop.charge")]))

    (row,) = taken.rows({})

    assert row.count == 26
    assert len(row.ids) == 20
    assert taken.unreadable == 1


def test_failures_are_told_apart_by_their_cause():
    """Not by the order that they were about; the type and what is always the same stay."""
    rows = heard(
        *(event("task-retried", str(n), name="a", exception=f"Timeout('order {n} timed out')") for n in range(30)),
        event("task-retried", "x", name="a", exception="KeyError('customer')"),
        event("task-started", "x", name="a", exception="ignored"),
    ).rows({})

    assert [(row.kind, row.exception, row.count) for row in rows] == [
        ("task-retried", "Timeout: order <n> timed out", 30),
        ("task-retried", "KeyError: customer", 1),
        ("task-started", "", 1),
    ]


def test_only_nodes_that_tell_of_tasks_are_senders():
    """A heartbeat comes from any node, task-sent from whoever published it."""
    taken = heard(
        {"type": "worker-heartbeat", "hostname": "idle@lab"},
        event("task-sent", hostname="gen1@web", name="a"),
        event("task-started", hostname="busy@lab"),
    )

    assert taken.senders == {"busy@lab"}
    assert taken.heard == {"idle@lab", "busy@lab"}


HOSTILE = {
    "no-json": b"\xff\xfe not json",
    "empty": b"",
    "a-number": b"7",
    "deep": b"[" * 5_000,
    "no-body": b'{"properties": {}}',
    "body-of-another-type": json.dumps({"body": {"type": "task-sent"}, "properties": {}}).encode(),
    "not-base64": b'{"body": "%%%", "properties": {"body_encoding": "base64"}}',
    "pickle": message("").replace(b"IiI=", base64.b64encode(b"\x80\x04K\x01.")),
    "a-list-of-lists": message([[event()]]),
    "deep-inside": json.dumps({"body": "[" * 5_000, "properties": {"body_encoding": None}}).encode(),
    "type-is-a-number": message({"type": 5}),
    "too-large": b" " * (4 * 1024 * 1024 + 1),
    "surrogate": b'{"body": "\\ud800", "properties": {"body_encoding": null}}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_is_published_breaks_nothing(case):
    """It is counted as unreadable, and what follows is heard."""
    taken = heard(HOSTILE[case], event(name="shop.charge"))

    assert taken.unreadable == 1
    assert [row.task for row in taken.rows({})] == ["shop.charge"]


def test_plain_bodies_and_foreign_kinds_are_fine():
    """An application's own events are none of Celery's; a body may be plain text."""
    taken = heard(message(event(name="a"), encoding=None), event("order-placed"), event("task-dreamt"))

    assert taken.unreadable == 0
    assert [(row.kind, row.task) for row in taken.rows({})] == [("task-received", "a")]


def test_memory_is_bounded_and_counts_are_not():
    """A hundred rows, twenty ids in each, and the rest is counted all the same."""
    taken = events.Heard()
    for number in range(6_000):
        taken.take(message(event("task-started", f"nameless-{number}")))
        taken.take(message(event(uuid=str(number), hostname=f"w{number}@lab", name=f"task-{number}" * 100)))

    rows = taken.rows({})

    assert len(rows) <= 100 + len(events.KINDS)
    assert sum(row.count for row in rows) == 12_000
    assert max(len(row.ids) for row in rows) == 20
    assert max(len(row.task) for row in rows) <= 512
    assert len(taken.senders) == 1_000
    assert {row.task for row in rows if row.kind == "task-started"} <= {"", events.OTHERS}


@pytest.mark.parametrize("prefix", ["", "shop:", "a*[b]?\\c"])
def test_a_deployment_hears_only_its_own(redis, server, prefix):
    """Another prefix and another database share the server's channels."""
    limited = servers.broker(server, global_keyprefix=prefix)
    listener = events.Listener(limited)
    listener.open()
    for channel in (f"{prefix}/0.celeryev/task.multi", "other:/0.celeryev/task.multi", f"{prefix}/1.celeryev/x"):
        redis.publish(channel, message(event(name=channel)))

    listener.gather(time.monotonic() + 0.3)
    listener.close()

    assert listener.problem == ""
    assert [row.task for row in listener.heard.rows({})] == [f"{prefix}/0.celeryev/task.multi"]


def test_a_user_without_the_right_hears_nothing_and_says_so(broker, redis, server):
    """It waits all the same, for the queues are sampled meanwhile."""
    servers.user(redis, servers.READ_ONLY)
    listener = events.Listener(servers.elsewhere(broker, servers.as_user(server)))
    begun = time.monotonic()

    listener.open()
    listener.gather(begun + 0.2)
    listener.close()

    assert "may not listen to events" in listener.problem
    assert time.monotonic() - begun >= 0.2


def test_a_subscription_that_is_cut_is_told(broker, redis):
    """A server closes a subscriber who is too slow."""
    listener = events.Listener(broker)
    listener.open()
    redis.client_kill_filter(_type="pubsub")

    listener.gather(time.monotonic() + 0.3)
    listener.close()

    assert "closed the subscription" in listener.problem


def test_coverage_says_what_silence_means():
    """Nodes that ran tasks and told nothing of them; or nothing ran, so that nobody could have told anything."""
    told = TaskEvents(kind="task-started", task="a", count=1)
    talking = heard(event(name="a"))

    assert told.count == 1
    assert events.coverage(talking, [], 4, []).note == ""
    assert events.coverage(talking, [], 4, []).seen == 1
    assert "w2@lab" in events.coverage(talking, ["w2@lab"], 4, []).note
    assert "`-E`" in events.coverage(events.Heard(), ["w2@lab"], 4, []).note
    assert "No task began" in events.coverage(events.Heard(), [], 0, []).note
    assert "could not be read: 1" in events.coverage(heard(b"?"), [], 0, []).note
    assert not any(events.coverage(events.Heard(), names, 0, ["odd"]).silent for names in ([], ["w"]))


def test_nodes_are_told_to_stop_though_the_first_order_was_interrupted(broker, server):
    """Ctrl-C waits for the answers: whoever began to send events because of us, ends it because of us."""

    def answer(question):
        if question["method"] == "enable_events":
            signal.raise_signal(signal.SIGINT)  # a signal of the process: its main thread is in the middle of the order
            return [reply(question, "w1@lab", {"ok": "task events enabled"})]
        return [reply(question, "w1@lab", {"ok": "task events disabled"})]

    with (
        listening(server, answer) as questions,
        pytest.raises(KeyboardInterrupt),
        events.told(broker, timeout_s=2.0),
    ):
        pytest.fail("a run that was interrupted went on")

    orders = [(question["method"], question.get("destination")) for question in questions]
    assert orders == [("enable_events", None), ("disable_events", ["w1@lab"])]
