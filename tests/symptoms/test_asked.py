"""What a person asks for by name becomes actions that say how much they are about."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from opslib.errors import BadParameter, NotFound
from opslib.facts.messages import Quarantined
from opslib.facts.system import TaskInfo
from opslib.plan import Kind
from opslib.selection import Selection
from opslib.symptoms import asked
from tests.support import rows
from tests.support.rows import coverage, delivered, held, put_aside, queue, result, waiting, whereabouts


def test_a_purge_is_about_every_list_that_holds_something():
    """With how many each of them held."""
    (action,) = asked.purge("celery", {"celery": 5, "celery\x06\x163": 0, "celery\x06\x169": 7})

    assert action.kind is Kind.PURGE
    assert [(copy.key, copy.count) for copy in action.copies] == [("celery", 5), ("celery\x06\x169", 7)]
    assert action.count == 12
    assert "12 messages" in action.effect


def test_an_empty_queue_needs_no_purge():
    """A plan without an action changes nothing."""
    assert asked.purge("celery", {"celery": 0}) == []
    assert asked.purge("celery", {}) == []


def test_each_quarantine_list_is_dropped_by_itself():
    """One that has grown meanwhile does not keep the others."""
    rows = [
        Quarantined(run_id="r", queue=name, key=f"k:{name}", count=n, size_bytes=1) for n, name in ((1, "a"), (2, "b"))
    ]

    actions = asked.drop(rows)

    assert [(action.kind, action.subject, action.count) for action in actions] == [
        (Kind.DROP, "k:a", 1),
        (Kind.DROP, "k:b", 2),
    ]


@pytest.mark.parametrize(("by", "kind", "after"), [(2, Kind.GROW, 6), (-1, Kind.SHRINK, 3), (-9, Kind.SHRINK, 0)])
def test_a_resized_pool_says_how_much_it_runs_then(by, kind, after):
    """And that it is forgotten, and that prefetch goes with it."""
    action = asked.resized(rows.node(concurrency=4), by)

    assert (action.kind, action.subject, action.node) == (kind, rows.NODE, rows.NODE)
    assert (action.source, action.destination) == ("4", str(abs(by)))
    assert f"{after} tasks at once instead of 4" in action.effect
    assert "prefetch" in action.effect
    assert "restarted" in action.effect
    assert ("Only idle ones go" in action.effect) is (by < 0)


@pytest.mark.parametrize(
    ("fields", "by", "said"),
    [
        ({"concurrency": 1}, -1, "has 1 process, and at least one has to stay"),
        ({"concurrency": 4, "pool": "solo"}, 1, "(solo) cannot change its size"),
    ],
)
def test_a_size_that_no_pool_takes_is_refused(fields, by, said):
    """By a command as by a runbook, before there is a plan."""
    with pytest.raises(BadParameter, match=re.escape(said)):
        asked.refuse_size(rows.node(**fields), by)

    asked.refuse_size(rows.node(concurrency=2), -1)


def test_a_limit_counts_on_each_node_and_what_they_have_keeps_the_old_one():
    """Only the nodes that have the task are meant."""
    had = (TaskInfo(name="shop.pay", rate_limit="1/h"),)
    nodes = [rows.node("b", tasks=had), rows.node("a", tasks=(TaskInfo(name="shop.pay"),)), rows.node("c")]

    (action,) = asked.limited("shop.pay", "10/m", nodes)

    assert (action.kind, action.subject, action.node) == (Kind.LIMIT, "shop.pay", "a,b")
    assert (action.source, action.destination) == ("1/h", "10/m")
    assert "a, b begin it at most 10/m each, 2 nodes together 2 times that." in action.effect
    assert "received under 1/h goes on at that pace" in action.effect


@pytest.mark.parametrize("rate", ["0", "0/m", "none"])
def test_no_limit_is_no_limit_however_it_is_spelled(rate):
    """And the first one has no old one."""
    (action,) = asked.limited("shop.pay", rate, [rows.node(tasks=(TaskInfo(name="shop.pay"),))])

    assert (action.source, action.destination) == ("none", "none")
    assert "No limit any more on" in action.effect
    assert "received under" not in action.effect


def test_a_task_that_no_node_has_is_not_limited():
    """A plan without an action changes nothing."""
    assert asked.limited("shop.pay", "1/m", [rows.node()]) == []


def test_each_revoked_id_is_an_action_once():
    """It says what a revoke does not do."""
    actions = asked.revoked(["b", "a", "b"])

    assert [(action.kind, action.subject) for action in actions] == [(Kind.REVOKE, "b"), (Kind.REVOKE, "a")]
    assert "its message stays" in actions[0].effect
    assert asked.revoked([]) == []


@pytest.mark.parametrize(
    ("make", "one", "many"),
    [
        (
            lambda lengths: asked.purge("q", lengths),
            "1 message leaves circulation at once and is kept; what nodes hold already stays there.",
            "1,200 messages leave circulation at once and are kept; what nodes hold already stays there.",
        ),
        (
            lambda lengths: asked.purge("q", lengths, Selection(task="shop.*", limit=5)),
            "1 message of shop.* leaves circulation and is kept; what nodes hold already stays there.",
            "1,200 messages of shop.* leave circulation and are kept; what nodes hold already stays there.",
        ),
        (
            lambda lengths: asked.move("q", "{to}", lengths),
            "1 message waits in {to} from now on; a retry of it stays there.",
            "1,200 messages wait in {to} from now on, in their order; a retry of them stays there.",
        ),
        (
            lambda lengths: asked.expedite("q", lengths, Selection(limit=1_200)),
            "1 message is served next, with priority 0.",
            "1,200 messages are served next, in their order, with priority 0.",
        ),
    ],
)
def test_what_is_about_lists_says_how_many_messages_it_means(make, one, many):
    """Of all lists together; how many at most, that number says already."""
    assert [action.effect for action in make({"q": 1, "q\x06\x163": 0})] == [one]
    (action,) = make({"q": 1_000, "q\x06\x163": 200})
    assert (action.effect, action.count, action.subject) == (many, 1_200, "q")
    assert make({"q": 0}) == make({}) == []


@pytest.mark.parametrize(
    ("kind", "nodes", "words"),
    [
        (Kind.PAUSE, (), "Every node takes no more of q;"),
        (Kind.PAUSE, ("b", "a"), "a,b takes no more of q;"),
        (Kind.RESUME, ("a",), "a consumes q, as long as it lives."),
    ],
)
def test_an_order_about_a_queue_says_who_is_told(kind, nodes, words):
    """And of a pause, what it does not hold."""
    (action,) = asked.consuming(kind, "q", nodes)

    assert action.effect.startswith(words)
    assert action.node == ",".join(sorted(nodes))
    assert kind is Kind.RESUME or "A node that starts later consumes it again." in action.effect


def test_who_shall_consume_a_queue_has_to_be_named():
    """Every node would, those too that never have: one of them may die of what is in it."""
    with pytest.raises(BadParameter, match="Which nodes shall consume q"):
        asked.consuming(Kind.RESUME, "q")


def lined_up(depth, *, position=0, priority=0):
    """Return one waiting task, and how many its list has."""
    message = waiting("x", priority=priority, position=position)
    return whereabouts(
        "x",
        waiting=[message],
        queues=[replace(queue(depth=depth), by_priority={0: 1, 3: depth} if priority else {0: depth})],
    )


class TestReordered:
    """Where one message may go."""

    @pytest.mark.parametrize("to", ["next", "last", "0", "1", "4"])
    def test_a_place_that_there_is(self, to):
        """As it was said."""
        action = asked.reordered(lined_up(5, position=2), "x", to)

        assert (action.kind, action.destination, action.source) == (Kind.REORDER, to, "celery")
        assert "2 are before it now" in action.effect

    @pytest.mark.parametrize("to", ["5", "6", "1" * 30, "", "x", "-1", "+1", "1.0", " 1", "\u0661", "\u00b2", "Next"])
    def test_a_place_that_is_none(self, to):
        """Beyond the end, or no number as the server writes one."""
        with pytest.raises(BadParameter):
            asked.reordered(lined_up(5), "x", to)

    def test_its_own_list_counts(self):
        """Of three lists, the one that its priority is rounded down to; in one of its own there is one place."""
        assert asked.reordered(lined_up(9, priority=5), "x", "8").destination == "8"
        with pytest.raises(BadParameter, match="places are 0 to 8"):
            asked.reordered(lined_up(9, priority=5), "x", "9")
        with pytest.raises(BadParameter, match="places are 0 to 0"):
            asked.reordered(lined_up(1), "x", "1")

    @pytest.mark.parametrize(
        ("to", "fits"), [(asked.ASIDE, True), (asked.ASIDE + 1, False), (4_999, False), (9_000, True), (8_999, False)]
    )
    def test_so_deep_that_too_many_would_have_to_step_aside(self, to, fits):
        """From either end it is near enough."""
        seen = lined_up(10_000)
        if fits:
            assert asked.reordered(seen, "x", str(to)).destination == str(to)
        else:
            with pytest.raises(BadParameter, match="too deep"):
                asked.reordered(seen, "x", str(to))

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            ({"unacked": [delivered("x")], "held": [held("x")]}, "it is unacked, active"),
            ({"unacked": [delivered("x")], "held": [held("x", "scheduled")]}, "it is unacked, scheduled"),
            ({"results": [result("x", "SUCCESS")]}, "it is result"),
            ({"quarantined": [put_aside("x")]}, "it is quarantined"),
            ({"waiting": [waiting("x"), waiting("x")]}, "waits 2 times"),
        ],
    )
    def test_what_waits_in_no_list_or_in_two(self, found, said):
        """With where it is."""
        with pytest.raises(BadParameter, match=said):
            asked.reordered(whereabouts("x", **found), "x", "next")

    def test_what_is_nowhere(self):
        """And whether everything was seen."""
        with pytest.raises(NotFound, match="was found nowhere\\."):
            asked.reordered(whereabouts("x"), "x", "next")
        with pytest.raises(NotFound, match="not everything could be seen: workers"):
            asked.reordered(whereabouts("x", coverage=coverage(workers=1)), "x", "next")
