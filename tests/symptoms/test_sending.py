"""A task in a person's words becomes one message, or a sentence; what speaks against it is said before it is sent."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from opslib.envelope import Head, head
from opslib.errors import BadParameter, OpsError, SettingsError
from opslib.facts.system import TaskInfo
from opslib.plan import Kind
from opslib.symptoms import sending
from tests.support.rows import NOW, node, silent

TASKS = (TaskInfo(name="shop.charge"), TaskInfo(name="shop.refund"))


def order(task="shop.charge", args="[]", kwargs="{}", **more):
    """Read a task from the words of a command line."""
    return sending.order(task, args, kwargs, **more)


def doubts(wanted, *nodes, queue="celery", whole=True):
    """Return what speaks against it."""
    return list(sending.doubts(wanted, queue, nodes, now=NOW, whole=whole))


def knowing(**fields):
    """Return a node that knows the shop's tasks."""
    return node(**{"tasks": TASKS, **fields})


def message(action):
    """Return the message that an action publishes, as it is loaded."""
    return json.loads(action.message)


def test_a_message_has_what_was_said():
    """Its head is read as that of any other message; its body holds the arguments as they were typed."""
    wanted = order(args='[4711, "ä", null]', kwargs='{"a": [1.5]}', priority=4)

    action = sending.action(wanted, "bulk", task_id="id-1", now=NOW)

    found = head(action.message.encode())
    assert isinstance(found, Head)
    assert (found.task_id, found.task, found.priority, found.retries) == ("id-1", "shop.charge", 4, 0)
    assert (found.eta_at, found.expires_at, found.root_id) == (None, None, "id-1")
    args, kwargs, embedded = json.loads(base64.b64decode(message(action)["body"]))
    assert (args, kwargs) == ([4711, "ä", None], {"a": [1.5]})
    assert set(embedded) == {"callbacks", "errbacks", "chain", "chord"}
    assert message(action)["properties"]["delivery_info"] == {"exchange": "", "routing_key": "bulk"}
    assert (action.kind, action.subject, action.task, action.destination) == (Kind.SEND, "id-1", "shop.charge", "bulk")


def test_an_effect_says_when_and_how_urgent_and_no_argument():
    """It is shown on the terminal and in the report."""
    at_once = sending.action(order(args='["4711"]'), "bulk", task_id="x", now=NOW)
    later = sending.action(order(priority=4, countdown="5m"), "bulk", task_id="x", now=NOW)

    assert at_once.effect == "A new task shop.charge waits in bulk and runs when its turn comes."
    assert later.effect == "A new task shop.charge waits in bulk with priority 4 and runs in 5 min."


@pytest.mark.parametrize(
    ("words", "due"),
    [
        ({"countdown": "5m"}, NOW + timedelta(minutes=5)),
        ({"eta": "2026-11-21T18:00:00Z"}, datetime(2026, 11, 21, 18, tzinfo=UTC)),
        ({"eta": "2026-11-21T18:00:00+01:00"}, datetime(2026, 11, 21, 17, tzinfo=UTC)),
        ({"eta": "2026-11-20T18:00:00-05:30"}, datetime(2026, 11, 20, 23, 30, tzinfo=UTC)),
    ],
)
def test_its_time_is_written_in_utc(words, due):
    """Counted from the server's clock; one that has passed is run at once, as Celery does it."""
    action = sending.action(order(**words), "celery", task_id="x", now=NOW)

    assert message(action)["headers"]["eta"] == due.isoformat()
    assert ("when its turn comes" in action.effect) is (due <= NOW)


@pytest.mark.parametrize(
    "words",
    [
        {"args": "[1"},
        {"args": "{}"},
        {"args": "null"},
        {"args": "4711"},
        {"args": ""},
        {"args": "[NaN]"},
        {"args": "[-Infinity]"},
        {"args": "[1e999]"},
        {"args": "[" * 100_000},
        {"kwargs": "[]"},
        {"kwargs": '{"a": {"b": NaN}}'},
        {"task": ""},
        {"task": " "},
        {"task": "a b"},
        {"task": "a\n"},
        {"eta": "tomorrow"},
        {"eta": "2026-11-21"},
        {"eta": "2026-11-21T18:00:00"},
        {"eta": "0001-01-01T00:00:00+23:00"},
        {"eta": "9999-12-31T23:59:59-23:00"},
        {"eta": "2026-11-21T18:00:00Z", "countdown": "5m"},
    ],
)
def test_what_is_no_task_is_refused(words):
    """With a sentence that repeats no argument."""
    with pytest.raises(BadParameter) as caught:
        order(**words)

    assert str(caught.value).count("\n") <= 1
    assert "1e999" not in str(caught.value)


@pytest.mark.parametrize("countdown", ["5", "-5m", "0s", "soon", "99999999999d"])
def test_what_is_no_duration_is_refused(countdown):
    """As everywhere."""
    with pytest.raises(SettingsError):
        order(countdown=countdown)


@pytest.mark.parametrize("depth", [10, 200, 400, 900, 990, 5_000])
def test_deep_nesting_is_sent_or_refused(depth):
    """Wherever the limit is, it is no defect."""
    try:
        wanted = order(args="[" * depth + "]" * depth)
        action = sending.action(wanted, "celery", task_id="x", now=NOW)
    except OpsError:
        assert depth > 400
    else:
        assert isinstance(head(action.message.encode()), Head)


class TestDoubts:
    """What a person should know before it is sent."""

    def test_none(self):
        """A node consumes the queue and knows the task."""
        assert doubts(order(), knowing()) == []

    def test_nobody_consumes_the_queue(self):
        """Who answers, at least; a node that does not may."""
        (said,) = doubts(order(), knowing(), queue="bulk")
        assert said == "No node that answered consumes bulk: it would wait there until one does."

        (unsure,) = doubts(order(), knowing(), silent(), queue="bulk", whole=False)
        assert unsure.endswith("Not every node answered, though.")

    def test_nobody_at_all(self):
        """Then nobody knows which tasks there are."""
        assert doubts(order()) == ["No node that answered consumes celery: it would wait there until one does."]

    @pytest.mark.parametrize(
        ("task", "meant"), [("shop.chrage", " Did you mean shop.charge?"), ("other.thing", ""), ("SHOP.CHARGE", "")]
    )
    def test_an_unknown_task(self, task, meant):
        """With the nearest name, if one is near."""
        (said,) = doubts(order(task), knowing())

        assert said == f"No node that answered knows a task {task}: it would be dropped as not registered.{meant}"

    def test_a_task_that_only_nodes_of_another_queue_know(self):
        """They do not take it from there."""
        mine = knowing(tasks=TASKS[:1])
        other = knowing(name="w2@lab", queues=("bulk",))

        assert len(doubts(order("shop.refund"), mine, other)) == 1
        assert doubts(order("shop.refund"), mine, other, queue="bulk") == []

    @pytest.mark.parametrize(("ahead_s", "doubted"), [(3_599, False), (3_600, False), (3_601, True)])
    def test_due_beyond_the_visibility_timeout(self, ahead_s, doubted):
        """The shortest of those that consume the queue counts; one that is not known says nothing."""
        nodes = [
            knowing(visibility_timeout_s=3_600.0),
            knowing(name="w2@lab", visibility_timeout_s=7_200.0),
            knowing(name="w3@lab", visibility_timeout_s=None),
            knowing(name="w4@lab", visibility_timeout_s=60.0, queues=("bulk",)),
        ]
        by_countdown = order(countdown=f"{ahead_s}s")
        by_eta = replace(by_countdown, countdown_s=None, eta=NOW + timedelta(seconds=ahead_s))

        for wanted in (by_countdown, by_eta):
            said = doubts(wanted, *nodes)
            assert bool(said) is doubted
            assert not said or "visibility timeout of 1 h" in said[0]


def test_an_eta_that_has_passed_is_said():
    """It may be a slip of the pen, and it runs at once."""
    (doubt,) = doubts(order(eta=(NOW - timedelta(hours=2)).isoformat()), knowing())

    assert doubt == "Its ETA was 2 h ago: it runs as soon as its turn comes."


def test_another_zone_is_the_same_instant():
    """A zone is only a spelling."""
    there = NOW.astimezone(timezone(timedelta(hours=9)))

    wanted = order(eta=there.isoformat())

    assert wanted.eta == NOW
