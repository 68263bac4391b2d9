"""What counts as a storm, a loop and a retry in vain, at its boundaries; and nothing is stopped that nobody named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from opslib import signatures
from opslib.errors import BadParameter, PlanTooLarge
from opslib.facts.system import TaskInfo
from opslib.facts.window import TaskEvents, Window
from opslib.findings import Severity
from opslib.plan import Kind
from opslib.settings import Thresholds as Configured
from opslib.symptoms import causes
from opslib.symptoms.retry_storm import Thresholds, by_task, diagnose, plan, retrying
from tests.support import servers
from tests.support.rows import (
    NODE,
    NOW,
    coverage,
    delivered,
    held,
    node,
    queue,
    result,
    snapshot,
    twice,
    waiting,
)

LIMITS = Thresholds(loop_after=10, storm_after=5, storm_per_minute=60)
CHARGE = "shop.charge"
REFUSED = "ConnectionError: Error <n> connecting"


def found(seen, code, limits=LIMITS):
    """Return the findings with that code."""
    return [each for each in diagnose(seen, limits) if each.code == code]


def codes(seen):
    """Return all that is found."""
    return {each.code for each in diagnose(seen, LIMITS)}


def retried(number, retries=1, task=CHARGE, **fields):
    """Return so many tasks of one name that wait in a node for their next attempt."""
    return [delivered(f"{task}-{n}", task=task, retries=retries, eta_in_s=30, **fields) for n in range(number)]


def watched(seen, *events, length_s=10.0, before=None, **fields):
    """Return the snapshot as the second of two looks, with a window between them."""
    window = Window(started_at=NOW - timedelta(seconds=length_s), length_s=length_s, events=events, **fields)
    again = replace(twice(seen, **(before or {})), window=window)
    return replace(again, earlier=replace(again.earlier, taken_at=NOW - timedelta(seconds=length_s)))


def told(count, exception="", task=CHARGE, ids=()):
    """Return what nodes told of retries."""
    return TaskEvents(kind="task-retried", task=task, exception=exception, count=count, ids=tuple(ids))


def having(task, cap=None):
    """Return a node that has a task with that limit."""
    return node(tasks=(TaskInfo(name=task, max_retries=cap),))


def stopped(seen, **asked):
    """Return the subjects of what would be stopped."""
    made = plan(seen, diagnose(seen, LIMITS), LIMITS, **asked)
    assert {action.kind for action in made} <= {Kind.STOP}
    return [action.subject for action in made]


# What is retried


def test_a_few_retries_with_an_end_are_no_finding():
    """They do what they are for."""
    seen = snapshot(
        unacked=retried(4), held=[held(f"{CHARGE}-{n}", "scheduled") for n in range(4)], nodes=[having(CHARGE, 3)]
    )

    assert diagnose(twice(seen), LIMITS) == []
    assert [row.retries for row in retrying(seen)] == [1, 1, 1, 1]


def test_a_task_is_one_row_wherever_it_is():
    """The message of its latest attempt counts; with place, node, time and cap."""
    seen = snapshot(
        unacked=[
            delivered("a", task=CHARGE, retries=4, eta_in_s=30),
            delivered("b", task=CHARGE, retries=2),
            delivered("c", task=CHARGE, retries=1, queue=""),
            delivered("fresh", task=CHARGE),
        ],
        waiting=[waiting("a", task=CHARGE, retries=3), waiting("d", task=CHARGE, retries=7, eta_in_s=-5)],
        held=[held("a", "scheduled"), held("b", "active")],
        nodes=[having(CHARGE, 3)],
    )

    rows = {row.task_id: (row.retries, row.place, row.node, row.due_in_s, row.beyond) for row in retrying(seen)}

    assert rows == {
        "d": (7, "waiting", "", -5.0, True),
        "a": (4, "scheduled", NODE, 30.0, True),
        "b": (2, "active", NODE, None, False),
        "c": (1, "unacked", "", None, False),
    }
    assert [row.task_id for row in retrying(seen)] == ["d", "a", "b", "c"]


@pytest.mark.parametrize(("state", "retries", "rows"), [("STARTED", 3, 1), ("STARTED", 0, 0), ("SUCCESS", 3, 0)])
def test_a_task_that_runs_without_a_message_is_known_by_its_result(state, retries, rows):
    """Where the application keeps extended results."""
    seen = snapshot(held=[held("a", "active", task=CHARGE)], results=[result("a", state, retries=retries)])

    assert [(row.task_id, row.retries, row.place) for row in retrying(seen)] == [("a", 3, "active")] * rows


def test_all_are_counted_also_those_without_a_row():
    """Of the waiting messages only the most retried are kept."""
    full = replace(queue(depth=2_500), retrying={CHARGE: 1_500, "shop.pack": 2})
    seen = twice(snapshot(queues=[full], waiting=[waiting(f"w{n}", task=CHARGE, retries=9) for n in range(3)]))

    charge, pack = by_task(seen)
    (storm,) = found(seen, "retry-storm")

    assert (charge.count, charge.rows, charge.most) == (1_500, 3, 9)
    assert (pack.count, pack.rows, pack.most) == (2, 0, 0)
    assert storm.evidence["beyond_rows"] == 1_497
    assert "the others are counted" in storm.message


def test_a_message_that_was_served_between_the_looks_is_counted_once():
    """It waited at the first, and is retried in a node at the second."""
    moved = waiting("a", task=CHARGE, retries=1)
    seen = twice(
        snapshot(
            queues=[replace(queue(), retrying={CHARGE: 1})],
            unacked=[delivered("a", task=CHARGE, retries=2, eta_in_s=5)],
        ),
        waiting=[moved],
        unacked=[],
    )

    (row,) = by_task(seen)

    assert row.count == 1


@pytest.mark.parametrize(
    ("caps", "cap", "endless"),
    [([3], 3, False), ([3, 5], 5, False), ([3, None], None, True), ([None], None, True), ([], None, False)],
)
def test_a_cap_is_what_all_nodes_say(caps, cap, endless):
    """The highest where they differ; none where one of them has none; unknown where no node has the task."""
    nodes = [replace(having(CHARGE, each), name=f"w{at}@lab") for at, each in enumerate(caps)]

    (row,) = by_task(snapshot(unacked=retried(1), nodes=nodes or [node()]))

    assert (row.cap, row.endless) == (cap, endless)


# How fast


def test_events_tell_the_rate():
    """All of them, also of tasks that are finished by now."""
    seen = watched(snapshot(unacked=retried(1)), told(8, REFUSED), senders=(NODE,))

    (row,) = by_task(seen)

    assert (row.per_minute, row.told_by) == (48.0, "events")


def test_without_events_two_looks_tell_the_least():
    """By how much the retries of the same tasks grew; a task that came meanwhile says nothing."""
    then = [delivered("a", task=CHARGE, retries=3), delivered("b", task=CHARGE, retries=1)]
    now = [
        delivered("a", task=CHARGE, retries=5, eta_in_s=1),
        delivered("b", task=CHARGE, retries=2),
        delivered("new", task=CHARGE, retries=9),
    ]
    seen = watched(
        snapshot(unacked=now, waiting=[waiting("a", task=CHARGE, retries=4)]),
        before={"unacked": then, "waiting": []},
        mute=(NODE,),
    )

    (row,) = by_task(seen)

    assert (row.per_minute, row.told_by) == (18.0, "two looks")


def test_whichever_saw_more_is_believed():
    """A node that sends no events runs the same task as one that does."""
    then, now = [delivered("a", retries=1, task=CHARGE)], [delivered("a", retries=9, task=CHARGE)]

    (row,) = by_task(
        watched(snapshot(unacked=now), told(2), before={"unacked": then}, senders=(NODE,), mute=("w2@lab",))
    )

    assert (row.per_minute, row.told_by) == (48.0, "two looks")


def test_silence_of_nodes_that_tell_is_a_rate_of_none():
    """Of nodes that do not, it is only what two looks did not see; where nobody watched, nothing is known."""
    seen = snapshot(unacked=retried(1))

    assert [(row.per_minute, row.told_by) for row in by_task(watched(seen, senders=(NODE,)))] == [(0.0, "events")]
    assert [(row.per_minute, row.told_by) for row in by_task(watched(seen, mute=(NODE,)))] == [(0.0, "two looks")]
    assert [(row.per_minute, row.told_by) for row in by_task(twice(seen))] == [(None, "")]


# Storms


@pytest.mark.parametrize(("number", "storm"), [(4, False), (5, True), (6, True)])
def test_so_many_of_one_name_are_a_storm(number, storm):
    """The boundary itself counts; other names do not add up to it."""
    seen = snapshot(unacked=[*retried(number), *retried(3, task="shop.pack")])

    assert bool(found(seen, "retry-storm")) is storm


@pytest.mark.parametrize(("count", "storm"), [(9, False), (10, True)])
def test_so_many_in_a_minute_are_a_storm(count, storm):
    """Ten in ten seconds are sixty in a minute, though it is one task."""
    seen = watched(snapshot(unacked=retried(1)), told(count), senders=(NODE,))

    assert bool(found(seen, "retry-storm")) is storm


@pytest.mark.parametrize(("count", "storm"), [(4, False), (5, True)])
def test_a_handful_is_no_rate(count, storm):
    """Three retries in a second are chance."""
    seen = watched(snapshot(unacked=retried(1)), told(count), length_s=1.0, senders=(NODE,))

    assert bool(found(seen, "retry-storm")) is storm


def test_a_storm_says_what_is_needed_to_decide():
    """How many, how far, how fast, after what, and whether it ends."""
    seen = watched(
        snapshot(unacked=[*retried(6, 2), delivered("worst", task=CHARGE, retries=41)], nodes=[having(CHARGE)]),
        told(20, REFUSED, ids=["worst"]),
        senders=(NODE,),
    )

    (storm,) = found(seen, "retry-storm")

    assert storm.severity is Severity.CRITICAL
    assert (storm.subject, storm.task, storm.runbook) == (CHARGE, CHARGE, "retry-storm")
    assert storm.message == (
        "7 tasks of it are being retried, one of them 41 times so far. That is 120 retries a minute. "
        "Its code has no max_retries, so nothing ends that."
    )
    assert storm.evidence["errors"] == {REFUSED: 1}
    assert storm.evidence["loops"] == 1
    assert REFUSED in storm.hint
    assert f"-p task={CHARGE}" in storm.hint


def test_a_name_that_nobody_could_type_is_not_pasted():
    """Whoever sent the message chose it."""
    (storm,) = found(snapshot(unacked=retried(5, task="x;reboot")), "retry-storm")

    assert "reboot" not in storm.hint


# Errors


def test_an_error_is_told_whole_or_by_its_type():
    """An event names it for a few ids, a result by its type; where one error has that type, it is that one."""
    seen = watched(
        snapshot(
            unacked=retried(4),
            results=[
                *(result(f"{CHARGE}-{n}", "RETRY", exception="ConnectionError") for n in range(3)),
                result(f"{CHARGE}-3", "RETRY", exception="NoneType"),
            ],
        ),
        told(9, REFUSED, ids=[f"{CHARGE}-0", "gone"]),
    )

    assert {row.task_id: row.error for row in retrying(seen)} == {
        f"{CHARGE}-0": REFUSED,
        f"{CHARGE}-1": REFUSED,
        f"{CHARGE}-2": REFUSED,
        f"{CHARGE}-3": "",
    }
    assert by_task(seen)[0].errors == {REFUSED: 3}


def test_two_errors_of_one_type_are_not_mixed_up():
    """Then only the type is known."""
    other = "ConnectionError: reset"
    seen = watched(
        snapshot(unacked=retried(2), results=[result(f"{CHARGE}-1", "RETRY", exception="ConnectionError")]),
        told(5, REFUSED, ids=[f"{CHARGE}-0"]),
        told(5, other, ids=["x", "y"]),
    )

    assert by_task(seen)[0].errors == {other: 2, "ConnectionError": 1, REFUSED: 1}


def test_an_error_of_yesterday_is_not_todays():
    """Only a result that says RETRY holds what the last attempt failed of."""
    seen = snapshot(unacked=retried(1), results=[result(f"{CHARGE}-0", "STARTED", exception="TypeError")])

    assert [row.error for row in retrying(seen)] == [""]


@pytest.mark.parametrize(
    ("exception", "heals"),
    [
        ("TypeError(\"f() missing 1 required positional argument: 'x'\")", False),
        ("pydantic_core._pydantic_core.ValidationError('1 validation error')", False),
        ("KeyError('customer')", False),
        ("PermissionError(13, 'denied')", False),
        ("NotRegistered('shop.charge')", False),
        ("HTTPError('401 Client Error: Unauthorized for url: https://x/')", False),
        ("HTTPError('404 Client Error: Not Found for url: https://x/')", False),
        ("ApiError(status_code=422)", False),
        ("HTTPError('429 Client Error: Too Many Requests for url: https://x/')", True),
        ("HTTPError('503 Server Error: Service Unavailable for url: https://x/')", True),
        ("ValueError('status 503')", False),
        ("ConnectionError('refused')", True),
        ("TimeoutError()", True),
        ("JSONDecodeError('Expecting value')", True),
        ("Order.DoesNotExist('no such order')", True),
        ("OSError(28, 'No space left on device')", True),
        ("ValueErrorish('x')", True),
    ],
)
def test_what_no_retry_heals(exception, heals):
    """The same code or the same arguments; not a neighbour that is out of order for a while."""
    seen = watched(snapshot(unacked=retried(1)), told(1, signatures.of(exception), ids=[f"{CHARGE}-0"]))

    assert bool(found(seen, "hopeless-retry")) is not heals


@pytest.mark.parametrize(("cap", "severity"), [(None, Severity.CRITICAL), (3, Severity.ATTENTION)])
def test_a_hopeless_retry_without_an_end_is_the_worse_one(cap, severity):
    """With a limit it only wastes so many attempts."""
    seen = snapshot(
        unacked=retried(3), results=[result(f"{CHARGE}-0", "RETRY", exception="TypeError")], nodes=[having(CHARGE, cap)]
    )

    (hopeless,) = found(seen, "hopeless-retry")

    assert hopeless.severity is severity
    assert "1 task of it retried after TypeError" in hopeless.message
    assert "-p signature='TypeError*'" in hopeless.hint


def test_every_reason_is_a_clause():
    """It stands behind `as` in a sentence."""
    reasons = {*causes.HOPELESS.values(), *(causes.hopeless(f"E: {code}") for code in range(400, 500))} - {""}

    assert len(reasons) > 8
    assert not [each for each in reasons if each[0].isupper() or each.endswith(".")]
    assert causes.hopeless("") == causes.hopeless("ConnectionError: refused") == ""


# Caps and loops


@pytest.mark.parametrize(("retries", "beyond"), [(3, False), (4, True)])
def test_beyond_its_own_limit(retries, beyond):
    """The last attempt that is allowed is no breach."""
    seen = snapshot(unacked=retried(2, retries), nodes=[having(CHARGE, 3)])

    breaches = found(seen, "retries-beyond-cap")

    assert bool(breaches) is beyond
    assert all(each.subject == CHARGE and each.evidence["max_retries"] == 3 for each in breaches)


def test_without_a_cap_nothing_is_beyond_it():
    """No end is none, and unknown is none either."""
    assert not found(snapshot(unacked=retried(1, 500), nodes=[having(CHARGE)]), "retries-beyond-cap")
    assert not found(snapshot(unacked=retried(1, 500)), "retries-beyond-cap")


@pytest.mark.parametrize(("retries", "loops"), [(9, 0), (10, 1)])
def test_a_loop_is_one_from_its_limit_on(retries, loops):
    """As in the other runbooks."""
    assert len(found(snapshot(unacked=retried(1, retries)), "retry-loop")) == loops


def test_many_loops_of_a_name_are_folded():
    """The most retried one by one, and the others as a number."""
    loops = [delivered(f"t{n}", task=CHARGE, retries=10 + n) for n in range(25)]

    told_of = found(snapshot(unacked=loops), "retry-loop")

    assert len(told_of) == 11
    assert {each.subject for each in told_of} == {*(f"t{n}" for n in range(15, 25)), f"{CHARGE} (others)"}
    (rest,) = [each for each in told_of if each.subject.endswith("(others)")]
    assert rest.message.startswith("15 tasks more of it loop, retried 10 to 24 times")


def test_chord_unlock_is_explained():
    """It polls for a chord, and with results in Redis nobody needs it."""
    seen = snapshot(unacked=retried(6, 40, task="celery.chord_unlock"))

    (storm,) = found(seen, "retry-storm")
    loop, *_ = found(seen, "retry-loop")

    assert "Its code has no max_retries" in storm.message
    assert "chord" in loop.message
    assert "Redis" in loop.hint
    assert "Redis" in storm.hint
    made = plan(seen, [], LIMITS, task="celery.chord_unlock")
    assert all("its body never runs" in action.effect for action in made)


def test_only_retries_beyond_the_visibility_timeout_are_told():
    """A task that was merely scheduled for tomorrow is none of this runbook's."""
    seen = snapshot(
        unacked=[
            delivered("retried", task=CHARGE, retries=1, eta_in_s=7200, age_s=1),
            delivered("scheduled", task=CHARGE, eta_in_s=7200, age_s=1),
        ]
    )

    assert [each.subject for each in found(seen, "scheduled-beyond-visibility")] == ["retried"]


def test_what_is_not_seen_is_said():
    """A part that did not answer makes it unknown, and nothing else."""
    assert codes(snapshot(coverage=coverage(waiting=5))) == {"cannot-see"}


# The plan


def storm():
    """Return five tasks of one name, three of another, with their errors."""
    return watched(
        snapshot(
            unacked=[*retried(5, 12), *retried(3, 2, task="shop.pack")],
            held=[held(f"{CHARGE}-0", "scheduled", task=CHARGE)],
        ),
        told(5, "TypeError: x", ids=[f"{CHARGE}-0", f"{CHARGE}-1"]),
        told(5, "KeyError: [a]", task="shop.pack", ids=["shop.pack-0"]),
    )


def test_nothing_is_stopped_that_nobody_named():
    """However bad it is."""
    assert stopped(storm()) == []


def test_a_name_stops_its_tasks():
    """By a glob, capitals and all; the others stay."""
    assert stopped(storm(), task="shop.ch*") == [f"{CHARGE}-{n}" for n in range(5)]
    assert stopped(storm(), task="shop.pack") == [f"shop.pack-{n}" for n in range(3)]


def test_an_error_stops_what_failed_of_it():
    """A task of which nobody knows the error is not meant; an error's own brackets are no glob."""
    assert stopped(storm(), signature="TypeError*") == [f"{CHARGE}-0", f"{CHARGE}-1"]
    assert stopped(storm(), signature="KeyError: [a]") == ["shop.pack-0"]
    assert stopped(storm(), task="shop.*", signature="KeyError*") == ["shop.pack-0"]


def test_loops_are_stopped_on_request():
    """Beside what is named, each task once."""
    made = plan(storm(), diagnose(storm(), LIMITS), LIMITS, task="shop.pack", stop_loops=True)

    assert [(action.subject, action.why) for action in made] == [
        *((f"shop.pack-{n}", "") for n in range(3)),
        *((f"{CHARGE}-{n}", "retry-loop") for n in range(5)),
    ]


def test_a_limit_takes_the_most_retried():
    """So many of those that are named, and no more."""
    seen = snapshot(unacked=[delivered(f"t{n}", task=CHARGE, retries=n) for n in range(1, 6)])

    assert stopped(seen, task="*", limit=2) == ["t5", "t4"]


@pytest.mark.parametrize("asked", [{"task": "*"}, {"signature": "*"}, {"task": "**", "signature": "*"}])
def test_everything_is_only_meant_with_a_limit(asked):
    """One star too many must not end every retry there is."""
    with pytest.raises(BadParameter, match="every task"):
        plan(storm(), [], LIMITS, **asked)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"task": "shop.chrage"}, "Did you mean shop.charge?"),
        ({"task": CHARGE, "signature": "TypeErorr: x"}, "Did you mean TypeError: x?"),
        ({"signature": "nothing like it"}, "There are: KeyError"),
        ({"limit": -1}, "0 means all"),
    ],
)
def test_what_fits_nothing_is_refused_with_what_there_is(asked, says):
    """A misspelt name must not pass as a storm that is over."""
    with pytest.raises(BadParameter) as caught:
        plan(storm(), [], LIMITS, **asked)

    assert says in str(caught.value.hint)


def test_a_storm_that_is_over_needs_nothing():
    """Naming what was there is no mistake then."""
    assert stopped(snapshot(), task=CHARGE) == []


def test_too_many_are_refused_whole():
    """A part of a plan would be a surprise."""
    with pytest.raises(PlanTooLarge):
        plan(storm(), [], LIMITS, task=CHARGE, max_actions=4)

    assert len(plan(storm(), [], LIMITS, task=CHARGE, max_actions=5)) == 5


# Thresholds


def test_thresholds_are_the_targets_unless_they_are_given(redis, server):
    """0 takes the target's own."""
    own = Configured(loop_after=7, storm_after=8, storm_per_minute=9)
    broker = servers.broker(server, thresholds=own)

    assert redis.ping()
    assert Thresholds.of(broker) == Thresholds(loop_after=7, storm_after=8, storm_per_minute=9)
    assert Thresholds.of(broker, loop_after=1, storm_after=2, storm_per_minute=3) == Thresholds(
        loop_after=1, storm_after=2, storm_per_minute=3
    )
    with pytest.raises(BadParameter, match="storm_after"):
        Thresholds.of(broker, storm_after=-1)
