"""What counts as stuck, at its boundaries; and what is proposed, or left alone, for it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from opslib.errors import BadParameter, PlanTooLarge, SettingsError
from opslib.facts import UNKNOWN_TASK
from opslib.findings import Severity, Verdict, verdict
from opslib.plan import Kind
from opslib.settings import Thresholds as Configured
from opslib.symptoms.orphans import ORPHAN_MARGIN_S
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan
from tests.support import servers
from tests.support.rows import (
    NODE,
    NOW_S,
    coverage,
    delivered,
    held,
    node,
    queue,
    result,
    server,
    silent,
    snapshot,
    twice,
    unreadable,
    waiting,
)

LIMITS = Thresholds(stuck_after_s=3600, loop_after=10)


def found(seen, code, limits=LIMITS):
    """Return the findings with that code."""
    return [finding for finding in diagnose(seen, limits) if finding.code == code]


def codes(seen):
    """Return all that is found."""
    return {finding.code for finding in diagnose(seen, LIMITS)}


def planned(seen, *, max_actions=10):
    """Return kind and subject of what would be done."""
    made = plan(seen, diagnose(seen, LIMITS), max_actions=max_actions)
    return [(action.kind, action.subject) for action in made]


def test_a_healthy_system_has_no_findings():
    """Tasks run, wait their turn and their time, and are acknowledged late."""
    late, timed = delivered("late"), delivered("timed", age_s=1, eta_in_s=60)
    seen = snapshot(
        unacked=[late, timed],
        held=[held("late"), held("timed", "scheduled"), held("running"), held("next", "reserved")],
        waiting=[waiting(retries=3)],
        results=[result("running")],
        queues=[queue(depth=5)],
    )

    assert diagnose(twice(seen), LIMITS) == []


# Hung


@pytest.mark.parametrize(("age_s", "stuck"), [(3599.9, False), (3600.0, True), (3600.1, True)])
def test_a_task_is_stuck_from_its_limit_on(age_s, stuck):
    """The boundary itself counts as wrong."""
    assert bool(found(snapshot(held=[held("x", age_s=age_s)]), "stuck-active")) is stuck


@pytest.mark.parametrize("place", ["reserved", "scheduled"])
def test_only_a_running_task_is_stuck(place):
    """One that waits in a node's memory may do so for as long as it likes."""
    waits = replace(held("x", place), started_at=NOW_S - 10_000)

    assert found(snapshot(held=[waits]), "stuck-active") == []


def test_a_task_without_a_start_is_not_judged():
    """Its node did not say when it began."""
    assert found(snapshot(held=[held("x", age_s=None)]), "stuck-active") == []


# Loops


@pytest.mark.parametrize("message", [waiting, delivered])
@pytest.mark.parametrize(("retries", "loops"), [(9, False), (10, True), (11, True)])
def test_a_task_loops_from_its_tenth_retry_on(message, retries, loops):
    """Waiting or delivered, the count travels in the message."""
    place = "waiting" if message is waiting else "unacked"
    seen = snapshot(**{place: [message("x", retries=retries)]}, held=[held("x", "scheduled")])

    assert bool(found(seen, "retry-loop")) is loops


def test_a_loop_is_told_once_with_its_highest_count():
    """Each attempt may have left a message of its own."""
    seen = snapshot(waiting=[waiting("x", retries=12), waiting("x", retries=14)], unacked=[delivered("x", retries=13)])

    (finding,) = found(seen, "retry-loop")

    assert finding.evidence["retries"] == 14


# Orphans


def orphaned(**fields):
    """Return two looks at a message that nobody holds."""
    message = fields.pop("message", None) or delivered("x")
    return twice(snapshot(unacked=[message], **fields))


def test_a_message_that_nobody_holds_in_both_looks_is_an_orphan():
    """Everyone was asked, and everyone answered."""
    (finding,) = found(orphaned(), "orphaned-unacked")

    assert (finding.severity, finding.subject) == (Severity.CRITICAL, "x")
    assert planned(orphaned()) == [(Kind.RESTORE, "x")]


def test_one_look_is_not_enough():
    """A message may be between the broker and its node's memory."""
    assert found(snapshot(unacked=[delivered("x")]), "orphaned-unacked") == []


def test_another_delivery_of_the_same_message_is_not_an_orphan():
    """Between the looks somebody took it: its score has changed."""
    message = delivered("x")
    seen = twice(snapshot(unacked=[message]), unacked=[replace(message, delivered_at=message.delivered_at - 1)])

    assert found(seen, "orphaned-unacked") == []


@pytest.mark.parametrize("place", ["active", "reserved", "scheduled"])
@pytest.mark.parametrize("look", ["first", "second"])
def test_a_message_that_a_node_holds_in_either_look_is_no_orphan(look, place):
    """Active, prefetched, or waiting for a retry's countdown."""
    mine = [held("x", place)]
    seen = snapshot(unacked=[delivered("x")], held=mine if look == "second" else [])

    assert found(twice(seen, held=mine if look == "first" else []), "orphaned-unacked") == []


@pytest.mark.parametrize(("age_s", "orphan"), [(ORPHAN_MARGIN_S - 0.01, False), (ORPHAN_MARGIN_S, True)])
def test_a_message_younger_than_the_margin_is_not_judged(age_s, orphan):
    """Its node may not have filed it yet."""
    assert bool(found(orphaned(message=delivered("x", age_s=age_s)), "orphaned-unacked")) is orphan


@pytest.mark.parametrize(
    "doubt",
    [
        pytest.param(lambda s: replace(s, nodes=(node(), silent()), receivers=2), id="a node is silent"),
        pytest.param(
            lambda s: replace(s, earlier=replace(s.earlier, receivers=2)), id="a node was silent in the first look"
        ),
        pytest.param(lambda s: replace(s, coverage=coverage(workers=1)), id="an expected node was not asked"),
        pytest.param(lambda s: replace(s, nodes=(node(rate_limited=("tests.ok",)),)), id="its task has a rate limit"),
        pytest.param(lambda s: replace(s, server=server(consumers=2)), id="more consume than answer"),
        pytest.param(
            lambda s: replace(s, nodes=(), receivers=0, server=server(consumers=None)), id="nobody knows who consumes"
        ),
    ],
)
def test_a_message_that_may_have_an_owner_is_not_claimed(doubt):
    """It is told as unknown, and nothing is proposed for it: it could run twice."""
    seen = doubt(orphaned())

    (finding,) = found(seen, "orphaned-unacked")

    assert finding.severity is Severity.UNKNOWN
    assert planned(seen) == []


def test_a_message_without_an_id_is_not_claimed():
    """Nobody can say whether they hold it."""
    seen = orphaned(message=replace(delivered(), task_id="", task=""))

    (finding,) = found(seen, "orphaned-unacked")

    assert (finding.severity, finding.task) == (Severity.UNKNOWN, UNKNOWN_TASK)


@pytest.mark.parametrize(
    "sure",
    [
        pytest.param(lambda s: replace(s, nodes=(node(rate_limited=("tests.other",)),)), id="another has a rate limit"),
        pytest.param(lambda s: replace(s, server=server(consumers=1)), id="as many consume as answer"),
        pytest.param(lambda s: replace(s, nodes=(), receivers=0), id="nobody consumes"),
        pytest.param(lambda s: replace(s, server=server(consumers=None)), id="someone answered, consumers hidden"),
    ],
)
def test_what_leaves_no_doubt_is_claimed(sure):
    """The same message, on the other side of each boundary."""
    seen = sure(orphaned())
    before = replace(seen.earlier, nodes=seen.nodes, receivers=seen.receivers)

    (finding,) = found(replace(seen, earlier=before), "orphaned-unacked")

    assert finding.severity is Severity.CRITICAL


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_an_orphan_that_has_finished_is_not_restored(state):
    """It ran to its end and was not acknowledged: restoring it would run it again."""
    seen = orphaned(results=[result("x", state)])

    assert "left alone" in found(seen, "orphaned-unacked")[0].hint
    assert planned(seen) == []


@pytest.mark.parametrize("state", ["STARTED", "RETRY"])
def test_an_orphan_under_way_is_restored(state):
    """Its node died with it."""
    assert planned(orphaned(results=[result("x", state)])) == [(Kind.RESTORE, "x")]


def test_an_orphan_without_a_queue_is_told_and_left_alone():
    """No queue, or more than one, is bound for it; a guess could lose it."""
    seen = orphaned(message=delivered("x", queue=""))

    assert found(seen, "orphaned-unacked")[0].severity is Severity.CRITICAL
    assert planned(seen) == []


# Waiting for too long


@pytest.mark.parametrize(
    ("eta_in_s", "age_s", "far"), [(3599.9, 0, False), (3600, 0, True), (3000, 600, True), (2999.9, 600, False)]
)
def test_an_eta_is_too_far_from_the_visibility_timeout_on(eta_in_s, age_s, far):
    """It counts from the delivery, for that is where the timeout starts."""
    seen = snapshot(unacked=[delivered("x", age_s=age_s, eta_in_s=eta_in_s)], held=[held("x", "scheduled")])

    assert bool(found(seen, "scheduled-beyond-visibility")) is far


@pytest.mark.parametrize(("eta_in_s", "far"), [(3599.9, False), (3600, True)])
def test_a_waiting_eta_counts_from_now(eta_in_s, far):
    """It is delivered from now on at the earliest."""
    assert bool(found(snapshot(waiting=[waiting(eta_in_s=eta_in_s)]), "scheduled-beyond-visibility")) is far


def test_an_eta_that_has_passed_is_not_too_far():
    """However long ago it was delivered."""
    seen = snapshot(unacked=[delivered("x", age_s=9000, eta_in_s=-1)], held=[held("x")])

    assert found(seen, "scheduled-beyond-visibility") == []


# Twice


def test_one_id_in_two_messages_is_a_duplicate():
    """Celery runs both, and neither is put back."""
    seen = twice(snapshot(waiting=[waiting("x"), waiting("x", queue="mail")]))

    (finding,) = found(seen, "duplicate-task-id")

    assert finding.evidence["copies"] == 2
    assert planned(seen) == []


def test_a_copy_that_was_just_being_moved_is_no_duplicate():
    """A retry sends its new message before the old one is acknowledged."""
    old, new = delivered("x"), waiting("x", retries=1)
    seen = snapshot(unacked=[old], waiting=[new])

    assert found(seen, "duplicate-task-id") == []
    assert found(twice(seen, unacked=[]), "duplicate-task-id") == []
    assert found(twice(seen), "duplicate-task-id") != []


def test_the_same_message_seen_in_two_places_is_no_duplicate():
    """On its way from the list to its node it has one delivery tag."""
    taken = delivered("x", delivery_tag="same")
    seen = twice(snapshot(unacked=[taken], waiting=[waiting("x", delivery_tag="same")], held=[held("x")]))

    assert found(seen, "duplicate-task-id") == []


@pytest.mark.parametrize(("before", "duplicate"), [(True, True), (False, False)])
def test_one_id_held_by_two_nodes_is_a_duplicate(before, duplicate):
    """If both looks saw it held."""
    both = [held("x"), held("x", node="w2@lab")]
    seen = twice(
        snapshot(held=both, nodes=[node(), node("w2@lab")], receivers=2), held=both if before else [held("other")]
    )

    assert bool(found(seen, "duplicate-task-id")) is duplicate


def test_an_orphan_that_has_a_double_is_not_restored():
    """Two copies would run; a person decides."""
    seen = twice(snapshot(unacked=[delivered("x"), delivered("x")]))

    assert len(found(seen, "orphaned-unacked")) == 2
    assert planned(seen) == []


# Never finished


def unfinished(**fields):
    """Return two looks at a result that says STARTED, and nothing else of its task."""
    return twice(snapshot(results=[result("x")], **fields))


def test_a_result_of_a_task_that_is_nowhere_will_never_finish():
    """It is in no queue, not unacked, and no node holds it."""
    (finding,) = found(unfinished(), "zombie-result")

    assert (finding.severity, finding.subject) == (Severity.ATTENTION, "x")
    assert planned(unfinished()) == []


@pytest.mark.parametrize(
    "placed",
    [{"waiting": [waiting("x")]}, {"unacked": [delivered("x")]}, {"held": [held("x")]}],
    ids=["waiting", "unacked", "held"],
)
def test_a_result_of_a_task_that_is_somewhere_is_no_zombie(placed):
    """In one of both looks is enough."""
    assert found(unfinished(**placed), "zombie-result") == []
    if "waiting" not in placed:
        assert found(twice(snapshot(results=[result("x")]), **placed), "zombie-result") == []


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([], id="not there"),
        pytest.param([result("x", sha256="other")], id="another value"),
        pytest.param([result("x", expires_at=NOW_S + 98)], id="written again"),
    ],
)
def test_a_result_that_changes_is_no_zombie(before):
    """Somebody is at it."""
    seen = twice(snapshot(results=[result("x")]), results=before)

    assert found(seen, "zombie-result") == []


@pytest.mark.parametrize("later_s", [0, 0.9])
def test_a_result_whose_end_trembles_is_still_the_same(later_s):
    """Its remaining life is read in milliseconds, and counted from two clocks."""
    seen = twice(snapshot(results=[result("x", expires_at=NOW_S + 100 + later_s)]), results=[result("x")])

    assert found(seen, "zombie-result") != []


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED", "REJECTED"])
def test_a_final_result_is_no_zombie(state):
    """It has finished."""
    assert found(twice(snapshot(results=[result("x", state)])), "zombie-result") == []


@pytest.mark.parametrize("place", ["workers", "waiting", "unacked", "keyspace", "results"])
def test_a_zombie_is_unknown_while_a_place_is_not_seen(place):
    """It may be right there."""
    (finding,) = found(unfinished(coverage=coverage(**{place: 1})), "zombie-result")

    assert finding.severity is Severity.UNKNOWN
    assert place in finding.message


# Queues and the index


@pytest.mark.parametrize(("depth", "consumers", "alone"), [(1, (), True), (0, (), False), (1, (NODE,), False)])
def test_messages_that_nobody_consumes_are_told(depth, consumers, alone):
    """An empty queue needs nobody."""
    seen = snapshot(queues=[queue("mail", depth, consumers)])

    assert bool(found(seen, "queue-without-consumer")) is alone


def test_a_silent_node_may_consume_it():
    """Then it is not known."""
    seen = snapshot(queues=[queue("mail", 1, ())], nodes=[node(), silent()], receivers=2)

    assert [finding.severity for finding in found(seen, "queue-without-consumer")] == [Severity.UNKNOWN]


def test_without_any_node_the_queues_are_not_told_one_by_one():
    """That nobody works is one finding."""
    seen = snapshot(queues=[queue("mail", 1, ()), queue("celery", 1, ())], nodes=[], receivers=0)

    assert codes(seen) == {"no-workers"}


@pytest.mark.parametrize(("look", "told"), [("both", True), ("second", False)])
def test_a_message_missing_from_the_index_is_told(look, told):
    """If both looks saw it so; the two writes of a delivery are not one step."""
    message = delivered("x", age_s=None)
    seen = twice(snapshot(unacked=[message], held=[held("x")]), unacked=[message] if look == "both" else [])

    assert bool(found(seen, "unacked-index-mismatch")) is told


# The plan


def test_a_loop_is_stopped_and_not_restored():
    """Its orphaned copy would start it again."""
    message = delivered("x", retries=10)
    seen = twice(snapshot(unacked=[message], waiting=[waiting("x", retries=11)]))

    (action,) = plan(seen, diagnose(seen, LIMITS), max_actions=10)

    assert (action.kind, action.subject) == (Kind.STOP, "x")
    assert {copy.place for copy in action.copies} == {"waiting", "unacked"}


@pytest.mark.parametrize(
    ("pool", "terminate"), [("prefork", True), ("gevent", True), ("threads", False), ("solo", False)]
)
def test_only_a_pool_that_can_end_a_task_is_asked_to(pool, terminate):
    """The others run on until their node is restarted, and the plan says so."""
    seen = snapshot(held=[held("x", age_s=4000)], nodes=[node(pool=pool)])

    (action,) = plan(seen, diagnose(seen, LIMITS), max_actions=10)

    assert (action.kind, action.terminate, action.node) == (Kind.STOP, terminate, NODE)
    assert ("cannot end" in action.effect) is not terminate


@pytest.mark.parametrize("place", ["waiting", "unacked"])
def test_an_unreadable_message_leaves_circulation(place):
    """Wherever it lies."""
    odd = unreadable("d" * 64, place=place, delivery_tag="t" if place == "unacked" else "")

    assert planned(snapshot(unreadable=[odd])) == [(Kind.QUARANTINE, "d" * 64)]


def test_nothing_is_proposed_for_what_is_unknown():
    """Whatever else the finding says."""
    seen = twice(
        snapshot(
            unacked=[delivered("x", retries=20)],
            held=[held("y", age_s=9000)],
            unreadable=[unreadable()],
        )
    )
    unknown = [replace(finding, severity=Severity.UNKNOWN) for finding in diagnose(seen, LIMITS)]

    assert len(plan(seen, unknown, max_actions=10)) == 0


def many_orphans(number):
    """Return two looks at so many orphans."""
    return twice(snapshot(unacked=[delivered() for _ in range(number)]))


def test_a_plan_is_whole_or_refused():
    """A part of it would be a surprise."""
    assert len(planned(many_orphans(5), max_actions=5)) == 5

    with pytest.raises(PlanTooLarge, match="6 actions; max_actions allows 5"):
        planned(many_orphans(6), max_actions=5)


def test_the_digest_is_that_of_what_would_be_done():
    """The same for the same, whatever order the rows came in; another for another change."""
    seen = many_orphans(8)
    findings = diagnose(seen, LIMITS)
    shuffled = random.Random(7).sample(findings, len(findings))
    other = replace(seen, unacked=(replace(seen.unacked[0], sha256="f" * 64), *seen.unacked[1:]))

    digest = plan(seen, findings, max_actions=10).digest

    assert plan(seen, diagnose(seen, LIMITS), max_actions=10).digest == digest
    assert plan(seen, shuffled, max_actions=10).digest == digest
    assert plan(seen, findings, max_actions=99).digest == digest
    assert plan(other, findings, max_actions=10).digest != digest
    assert plan(replace(seen, fingerprint="another"), findings, max_actions=10).digest != digest


def test_judging_again_says_the_same():
    """Neither the clock nor the system is asked."""
    seen = orphaned(held=[held("y", age_s=3600)], queues=[queue("mail", 3, ())])

    assert diagnose(seen, LIMITS) == diagnose(seen, LIMITS)
    assert verdict(diagnose(seen, LIMITS)) is Verdict.CRITICAL


# Thresholds


@pytest.mark.usefixtures("redis")
def test_thresholds_are_the_targets_unless_they_are_given(server):
    """What is asked for wins; 0 and nothing take the target's own."""
    own = Configured(stuck_after="2h", loop_after=5)
    broker = servers.broker(server, thresholds=own)

    assert Thresholds.of(broker) == Thresholds(stuck_after_s=7200, loop_after=5)
    assert Thresholds.of(broker, stuck_after="90s", loop_after=3) == Thresholds(stuck_after_s=90, loop_after=3)
    with pytest.raises(SettingsError, match="no unit"):
        Thresholds.of(broker, stuck_after="24")
    with pytest.raises(BadParameter):
        Thresholds.of(broker, loop_after=-1)
