"""What counts as stuck, at its boundaries; and what is proposed, or left alone, for it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from opslib.errors import BadParameter, PlanTooLarge, SettingsError
from opslib.findings import Severity, Verdict, verdict
from opslib.plan import Kind
from opslib.settings import Thresholds as Configured
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan
from tests.support import servers
from tests.support.judging import LIMITS, found, planned
from tests.support.rows import (
    NODE,
    NOW_S,
    coverage,
    delivered,
    held,
    node,
    queue,
    result,
    snapshot,
    twice,
    unreadable,
    waiting,
)


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


# The plan


@pytest.mark.parametrize("doubled", [True, False])
def test_a_loop_is_stopped_and_not_restored(doubled):
    """Its orphaned copy would start it again."""
    copies = [waiting("x", retries=11)] if doubled else []
    seen = twice(snapshot(unacked=[delivered("x", retries=10)], waiting=copies))

    (action,) = plan(seen, diagnose(seen, LIMITS), max_actions=10)

    assert (action.kind, action.subject) == (Kind.STOP, "x")
    assert {copy.place for copy in action.copies} == ({"waiting", "unacked"} if doubled else {"unacked"})


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
    """The same for the same, whatever order the rows came in; another for another change, limit or instant."""
    seen = many_orphans(8)
    findings = diagnose(seen, LIMITS)
    shuffled = random.Random(7).sample(findings, len(findings))
    other = replace(seen, unacked=(replace(seen.unacked[0], sha256="f" * 64), *seen.unacked[1:]))

    digest = plan(seen, findings, max_actions=10).digest

    assert plan(seen, diagnose(seen, LIMITS), max_actions=10).digest == digest
    assert plan(seen, shuffled, max_actions=10).digest == digest
    assert plan(seen, findings, max_actions=99).digest != digest
    assert plan(other, findings, max_actions=10).digest != digest
    assert plan(replace(seen, taken_at=seen.taken_at + timedelta(seconds=1)), findings, max_actions=10).digest != digest
    assert plan(replace(seen, fingerprint="another"), findings, max_actions=10).digest != digest


def test_judging_again_says_the_same():
    """Neither the clock nor the system is asked."""
    seen = twice(snapshot(unacked=[delivered()], held=[held("y", age_s=3600)], queues=[queue("mail", 3, ())]))

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
