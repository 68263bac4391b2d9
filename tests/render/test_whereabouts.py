"""How a task stands, in one sentence with a next step, and every place that was searched for it in a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib.facts.system import NodeInfo
from opslib.render import whereabouts as shown
from opslib.render.display import views
from opslib.selection import Selection
from opslib.symptoms.find_task import diagnose
from tests.support.judging import LIMITS
from tests.support.rows import (
    NOW_S,
    RUN,
    coverage,
    delivered,
    held,
    letter,
    node,
    put_aside,
    queue,
    result,
    twice,
    waiting,
    whereabouts,
)


def told(seen, task_id="x"):
    """Return a task's story, by what is judged of it."""
    return shown.tell(seen, task_id, diagnose(seen, LIMITS))


def places(seen, task_id="x"):
    """Return the rows of a task's table, by place."""
    return {row[0]: row[1:] for row in shown.lifecycle(seen, task_id).rows}


ON_W1 = "on w1@lab"
LOST = {"unacked": [delivered("x", age_s=840)]}
WAITS = {"waiting": [waiting("x", position=12)], "queues": [queue(depth=20)]}
TIMED = {"held": [held("x", "scheduled", eta_at=NOW_S + 4)], "unacked": [delivered("x", age_s=1, eta_in_s=4)]}

#: A view, the sentence that it gives, and a part of the next step or of its command.
STORIES = {
    "waiting": (whereabouts("x", **WAITS), "waiting in celery, behind 12 (priority 0).", "Wait"),
    "next": (
        whereabouts("x", waiting=[waiting("x")], queues=[queue(depth=1)]),
        "waiting in celery, next to be served (priority 0).",
        "Wait",
    ),
    "behind a higher priority": (
        whereabouts(
            "x",
            waiting=[waiting("x", priority=5, key="celery\x06\x163", position=2)],
            queues=[replace(queue(depth=9), by_priority={0: 6, 3: 3})],
        ),
        "waiting in celery, behind 2 and behind 6 of higher priority (priority 5).",
        "Wait",
    ),
    "waiting, and nobody consumes": (
        whereabouts("x", **{**WAITS, "queues": [queue(depth=20, consumers=())]}),
        "waiting in celery, behind 12 (priority 0); no node consumes that queue.",
        "ops workers --target trial",
    ),
    "waiting, and nobody is there": (
        whereabouts("x", **{**WAITS, "queues": [queue(depth=20, consumers=())]}, nodes=[], receivers=0),
        "waiting in celery, behind 12 (priority 0); no node is connected.",
        "Start the workers",
    ),
    "waiting beside a silent node": (
        whereabouts("x", **{**WAITS, "queues": [queue(depth=20, consumers=())]}, receivers=2),
        "waiting in celery, behind 12 (priority 0); no node that answered consumes that queue.",
        "ops workers",
    ),
    "expired": (
        whereabouts("x", waiting=[waiting("x", expires_at=NOW_S - 300)], queues=[queue(depth=1)]),
        "waiting in celery, next to be served (priority 0); it expired 5 min ago, so the node that takes it drops it.",
        "Send it again, with a later expiry",
    ),
    "waiting for its next attempt": (
        whereabouts("x", waiting=[waiting("x", retries=2)], queues=[queue(depth=1)]),
        "retried 2 times, and waiting in celery, next to be served (priority 0).",
        "Wait",
    ),
    "reserved": (
        twice(whereabouts("x", held=[held("x", "reserved")], unacked=[delivered("x", age_s=3)])),
        f"reserved {ON_W1}, which has not begun it; it was delivered 3.0 s ago.",
        "Nothing to do.",
    ),
    "scheduled": (
        twice(whereabouts("x", **TIMED)),
        f"scheduled {ON_W1}, due in 4.0 s at 03:00:04 UTC.",
        "Nothing to do.",
    ),
    "scheduled for a time after the next delivery": (
        twice(
            whereabouts(
                "x",
                held=[held("x", "scheduled", eta_at=NOW_S + 7200)],
                unacked=[delivered("x", age_s=1, eta_in_s=7200)],
            )
        ),
        f"scheduled {ON_W1}, due in 2 h at 05:00:00 UTC; it will be delivered again before that.",
        "ops task stop x --target trial",
    ),
    "revoked while it is scheduled": (
        twice(whereabouts("x", **TIMED, results=[result("x", "REVOKED")])),
        "revoked; w1@lab drops it when its time comes.",
        "Nothing to do.",
    ),
    "retrying": (
        twice(whereabouts("x", **{**TIMED, "unacked": [delivered("x", age_s=1, retries=2, eta_in_s=4)]})),
        f"retried 2 times; the next attempt is due in 4.0 s {ON_W1}.",
        "ops task check x --watch 10s --target trial",
    ),
    "a retry loop": (
        twice(whereabouts("x", **{**TIMED, "unacked": [delivered("x", age_s=1, retries=12, eta_in_s=4)]})),
        f"retried 12 times; the next attempt is due in 4.0 s {ON_W1}.",
        "ops task stop x --target trial",
    ),
    "active": (whereabouts("x", held=[held("x", age_s=840)]), f"active {ON_W1} for 14 min.", "Nothing to do."),
    "active for too long": (
        whereabouts("x", held=[held("x", age_s=4000)]),
        f"active {ON_W1} for 1 h 6 min, which is longer than it may run.",
        "ops task stop x",
    ),
    "active at its third attempt": (
        twice(whereabouts("x", held=[held("x")], unacked=[delivered("x", retries=2)])),
        f"active {ON_W1} for 1 min; attempt 3.",
        "ops task check x",
    ),
    "orphaned": (
        twice(whereabouts("x", **LOST)),
        "delivered 14 min ago to a node that is gone; nothing will run it before 03:46:00 UTC unless it is restored.",
        "ops run stuck-tasks --target trial",
    ),
    "orphaned, and finished": (
        twice(whereabouts("x", **LOST, results=[result("x", "SUCCESS")])),
        "delivered 14 min ago and held by no node, though its result says SUCCESS; it will run again within 46 min.",
        "ops task stop x",
    ),
    "orphaned, and overdue": (
        twice(whereabouts("x", unacked=[delivered("x", age_s=3700)])),
        "delivered 1 h 1 min ago to a node that is gone; nothing runs it until Celery gives it back, which is overdue.",
        "ops run stuck-tasks",
    ),
    "orphaned, and in no index": (
        twice(whereabouts("x", unacked=[delivered("x", age_s=None)])),
        (
            "delivered at an unknown time to a node that is gone, and missing from the index; "
            "nothing will ever run it unless it is restored."
        ),
        "ops run stuck-tasks",
    ),
    "orphaned, perhaps": (
        twice(whereabouts("x", **LOST, receivers=2)),
        "delivered 14 min ago, and no node that answered holds it; but a node that did not answer may hold it.",
        "ops workers",
    ),
    "delivered, by one look": (
        whereabouts("x", **LOST),
        "delivered 14 min ago, and no node that answered has it; one look cannot tell whether it is lost.",
        "ops task status x",
    ),
    "on its way": (
        twice(whereabouts("x", unacked=[delivered("x", age_s=0.2)])),
        "delivered 0.2 s ago, and no node that answered has it; it may be on its way into one.",
        "Look again",
    ),
    "two copies": (
        twice(whereabouts("x", **WAITS, held=[held("x")], unacked=[delivered("x")])),
        f"in 2 places at once: active {ON_W1} for 1 min; waiting in celery, behind 12 (priority 0).",
        "ops task stop x",
    ),
    "finished": (
        whereabouts("x", results=[result("x", "SUCCESS")]),
        "finished: its result says SUCCESS.",
        "Nothing to do.",
    ),
    "failed": (
        whereabouts("x", results=[result("x", "FAILURE", exception="ValueError")]),
        "failed: its result says FAILURE (ValueError).",
        "It has ended",
    ),
    "revoked": (
        whereabouts("x", results=[result("x", "REVOKED")]),
        "revoked: its result says REVOKED.",
        "It has ended",
    ),
    "a zombie": (
        twice(whereabouts("x", results=[result("x")])),
        (
            "its result says STARTED on w1@lab, but it is in no queue, not unacked, and no node holds it: "
            "it will never finish."
        ),
        "ops task cleanup x --target trial",
    ),
    "a zombie, perhaps": (
        twice(whereabouts("x", results=[result("x")], coverage=coverage(unacked=1))),
        "its result says STARTED on w1@lab, but unacked could not be seen whole.",
        "ops workers",
    ),
    "by one look under way": (
        whereabouts("x", results=[result("x", "PROGRESS")]),
        "its result says PROGRESS, and it was in no other place when that was looked at.",
        "Look again",
    ),
    "a result that cannot be read": (
        whereabouts("x", results=[result("x", "(unreadable)")]),
        "a result is stored, and its state cannot be read; no message of it is left.",
        "Look again",
    ),
    "finished, and waiting": (
        whereabouts("x", **WAITS, results=[result("x", "SUCCESS")]),
        "waiting in celery, behind 12 (priority 0); its result says SUCCESS already.",
        "Wait",
    ),
    "put aside": (
        whereabouts("x", quarantined=[put_aside("x")], results=[result("x", "RETRY")]),
        f"taken out of circulation by run {RUN}, from celery (waiting); its result says RETRY.",
        f"ops undo {RUN}",
    ),
    "dead": (
        whereabouts("x", dead=[letter("x", exception="ValueError: 7", failed_at=NOW_S - 60)]),
        "failed for good; its letter is in celery.dead: ValueError: 7, 1 min ago.",
        "mend the cause",
    ),
    "dead, and sent again": (
        whereabouts("x", **WAITS, dead=[letter("x")]),
        "waiting in celery, behind 12 (priority 0); it has a letter in celery.dead.",
        "Wait",
    ),
    "nowhere": (
        whereabouts("x"),
        "found nowhere: not waiting, not delivered, on no node, not put aside, and no result is stored.",
        "application's log",
    ),
    "nowhere, by what was seen": (
        whereabouts("x", coverage=coverage(workers=1, keyspace=7)),
        "found nowhere, but not everything could be seen: keyspace (7 not seen); workers (1 not seen).",
        "ops workers",
    ),
}


@pytest.mark.parametrize(("seen", "sentence", "step"), STORIES.values(), ids=STORIES)
def test_a_task_stands_as_one_sentence_says(seen, sentence, step):
    """And the next step fits it."""
    story = told(seen)

    assert story.sentence == sentence
    assert step in f"{story.step} {story.command}"


@pytest.mark.parametrize(("seen", "sentence", "_step"), STORIES.values(), ids=STORIES)
def test_no_sentence_says_pending(seen, sentence, _step):
    """Celery means by it that it knows nothing."""
    table = shown.lifecycle(seen, "x").text(200)

    assert "PENDING" not in sentence + table + str(shown.answers(seen))


def test_a_stored_pending_is_quoted_as_what_it_is():
    """Celery stores none; an application that does has said nothing of where its task is."""
    said = told(whereabouts("x", results=[result("x", "PENDING")])).sentence

    assert said == "its result says PENDING, and it was in no other place when that was looked at."


@pytest.mark.parametrize("task_id", ["; rm -rf ~", "$(reboot)", "a b", "x" * 10_000, "\x1b[2J", "--target", "日本"])
def test_no_command_holds_an_id_that_a_shell_would_take_apart(task_id):
    """It is left to be filled in."""
    seen = whereabouts(task_id, unacked=[delivered(task_id, retries=12)], held=[held(task_id, "scheduled")])

    command = told(twice(seen), task_id).command

    assert command == "ops task stop TASK_ID --target trial"


HOSTILE = "<script>alert(1)</script>\x1b[2J"


def test_what_messages_say_is_harmless_in_every_place():
    """Names, nodes, exceptions, queues and runs: as HTML and as text."""
    seen = twice(
        whereabouts(
            HOSTILE,
            waiting=[waiting(HOSTILE, task=HOSTILE, queue=HOSTILE)],
            unacked=[delivered(HOSTILE, task=HOSTILE, queue=HOSTILE)],
            held=[held(HOSTILE, node=HOSTILE)],
            results=[result(HOSTILE, HOSTILE, node=HOSTILE, exception=HOSTILE)],
            dead=[letter(HOSTILE, key=HOSTILE, exception=HOSTILE)],
            quarantined=[put_aside(HOSTILE, run_id=HOSTILE, queue=HOSTILE, place=HOSTILE)],
            queues=[queue(HOSTILE, depth=1)],
        )
    )
    made = [*shown.show(seen), shown.answers(seen, diagnose(seen, LIMITS))]

    for view in made:
        assert "<script" not in view.html()
        assert "\x1b" not in view.html() + str(view)


class TestPlaces:
    """The table of one task."""

    def test_every_place_that_was_searched_has_a_row(self):
        """In the order of a task's life."""
        assert list(places(whereabouts("x"))) == [
            "waiting",
            "unacked",
            "reserved",
            "scheduled",
            "active",
            "result",
            "dead letters",
            "quarantine",
        ]

    def test_a_place_that_was_not_searched_has_none(self):
        """It is not said to be empty."""
        assert "quarantine" not in places(whereabouts("x", coverage=coverage()))

    def test_what_is_there_is_said(self):
        """Queue and turn, node and process, since when and until when, retries, and the life of a result."""
        seen = whereabouts(
            "x",
            waiting=[waiting("x", position=12, retries=2, eta_in_s=60, expires_at=NOW_S + 120)],
            unacked=[delivered("x", age_s=840)],
            held=[held("x", pid=4711), held("x", "scheduled", eta_at=NOW_S + 4)],
            results=[result("x", "RETRY", exception="ValueError", expires_at=NOW_S + 3600)],
            quarantined=[put_aside("x")],
            queues=[queue(depth=20)],
        )

        assert places(seen) == {
            "waiting": (
                "there",
                "in celery, behind 12 (priority 0); retried 2 times; due in 1 min; expires in 2 min",
            ),
            "unacked": (
                "there",
                "delivered 14 min ago from celery; given back at 03:46:00 UTC unless it is acknowledged by then",
            ),
            "reserved": ("not there", "1 node answered."),
            "scheduled": ("there", "on w1@lab, due in 4.0 s"),
            "active": ("there", "on w1@lab, pid 4711, for 1 min"),
            "result": ("there", "RETRY (ValueError) by w1@lab; expires in 1 h"),
            "dead letters": ("not there", "1 letter looked through."),
            "quarantine": ("there", f"by run {RUN}, from celery (waiting)"),
        }

    @pytest.mark.parametrize(
        ("silent", "unseen"),
        [
            ("waiting", {"waiting"}),
            ("unacked", {"unacked"}),
            ("workers", {"reserved", "scheduled", "active"}),
            ("results", {"result"}),
            ("keyspace", {"waiting", "dead letters", "quarantine"}),
        ],
    )
    def test_what_was_not_seen_is_never_said_to_be_empty(self, silent, unseen):
        """Each place that depends on what was silent."""
        full = (*coverage(**{silent: 2}), *whereabouts().coverage[-2:])

        rows = places(whereabouts("x", coverage=full))

        assert {place for place, (view, _) in rows.items() if view == "not seen"} == unseen
        assert all("2 " in said for view, said in rows.values() if view == "not seen")

    def test_a_copy_is_there_though_the_rest_was_not_seen(self):
        """What was found was found; the coverage below says the rest."""
        seen = whereabouts("x", **WAITS, coverage=coverage(waiting=5))

        assert places(seen)["waiting"][0] == "there"
        assert any("Coverage" in str(view) for view in shown.show(seen))

    def test_many_copies_are_counted(self):
        """A few are described."""
        seen = whereabouts("x", waiting=[waiting("x", position=at) for at in range(9)], queues=[queue(depth=9)])

        assert places(seen)["waiting"][1].endswith("behind 3 (priority 0); 5 more")

    def test_offspring_are_counted(self):
        """They are not the task."""
        seen = whereabouts("x", results=[result("x", "SUCCESS")], offspring=[waiting("a"), delivered("b")])

        assert "that it has sent, or that these have: 2" in shown.lifecycle(seen, "x").text()


class TestViews:
    """What `show` makes of a view."""

    def test_one_task_has_every_place(self):
        """With its name and id above them."""
        name, table, seen = views(whereabouts("x", results=[result("x", "SUCCESS")]))

        assert str(name) == "tests.ok · x"
        assert len(table.rows) == 8
        assert str(seen).startswith("Every place answered: server, keyspace")

    def test_several_tasks_have_the_places_that_hold_them(self):
        """And one that is nowhere says so."""
        table, _ = views(whereabouts("x", "y", results=[result("x", "SUCCESS")]))

        assert [(str(row[0]), *row[1:3]) for row in table.rows] == [
            ("tests.ok", "result", "there"),
            ("y", "anywhere", "not there"),
        ]

    @pytest.mark.parametrize(
        ("seen", "said"),
        [
            (whereabouts(), "No task was named, and none is unacknowledged."),
            (whereabouts(selection=Selection(task="shop.*")), "No task of shop.* is in flight."),
            (whereabouts(selection=Selection()), "No task is in flight."),
        ],
    )
    def test_no_task_is_said(self, seen, said):
        """Instead of an empty table."""
        line, *_ = views(seen)

        assert said in str(line)
        assert said in str(shown.answers(seen))

    def test_what_the_limit_left_out_is_counted(self):
        """A filter may mean more tasks than are shown."""
        seen = whereabouts("x", "y", selection=Selection(), more=1200)

        assert "1,200 more tasks are meant" in str(shown.answers(seen))
        assert "1,200 more tasks are meant" in str(views(seen)[0])

    def test_what_was_noted_of_a_place_is_said_once(self):
        """In the row of the place, or below several tasks."""
        noted = [replace(row, note="1 message cannot be decoded." * (row.place == "waiting")) for row in coverage()]

        one, several = views(whereabouts("x", coverage=noted)), views(whereabouts("x", "y", coverage=noted))

        assert "1 message cannot be decoded." in one[1].html()
        assert "decoded" not in str(one[-1])
        assert str(several[-1]).endswith("one look · 1 message cannot be decoded.")

    def test_a_silent_node_is_named_below(self):
        """As the table of coverage says it."""
        seen = whereabouts(
            "x", "y", coverage=coverage(workers=1), nodes=[node(), NodeInfo(name="w2@lab", answered=False)]
        )

        assert "partly" in str(views(seen)[-1])
