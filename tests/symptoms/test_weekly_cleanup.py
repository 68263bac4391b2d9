"""What is stored is judged by its retention, and the plan says in numbers what would go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib import retention as retentions
from opslib.errors import BadParameter, PlanTooLarge
from opslib.facts.snapshot import parts_of
from opslib.facts.stored import (
    AGES,
    HELD,
    KEPT,
    OPAQUE,
    PAST,
    UNDATED,
    UNKNOWN_AGE,
    Leftover,
    Stored,
    StoredGroup,
    age_of,
)
from opslib.facts.system import Coverage
from opslib.plan import Kind, Outcome, Status
from opslib.selection import REPLIES
from opslib.symptoms.weekly_cleanup import diagnose, plan
from tests.support.rows import NOW_S, snapshot

RULES = {"shop.*": "24h", "default": "12h"}


def group(standing, count=10, **fields):
    """Return results that are alike; those of the default rule, unless it is said."""
    given = {"state": "SUCCESS", "task": "", "rule": 1, "age": "1 to 2 d", "lasting": False, "size_bytes": count * 100}
    return StoredGroup(**{**given, "standing": standing, "count": count, **fields})


def stored(*groups, **fields):
    """Return a view of what is stored, in the broker's database."""
    base = parts_of(snapshot())
    given = {
        "groups": groups,
        "site": "a/b/0/",
        "replies_site": "a/b/0/",
        "result_root": "celery-task-meta-",
        "reply_root": ".reply.celery.pidbox",
        "retention": retentions.read(RULES),
        "idle_s": 900.0,
        "coverage": (),
    }
    return Stored(**{**base, **given, **fields})


def codes(seen, **asked):
    """Return what is found, and about which retention."""
    return {(finding.code, finding.subject) for finding in diagnose(seen, **asked)}


def test_nothing_is_wrong_with_what_is_within_its_retention():
    """Nor with what nobody asked about, or knows the age of."""
    seen = stored(group(KEPT), group(UNDATED, age=UNKNOWN_AGE), group(HELD), group(OPAQUE, state="(unreadable)"))

    assert codes(seen) == set()
    assert not plan(seen, [])


def test_each_retention_is_judged_by_itself():
    """With its own numbers."""
    seen = stored(group(PAST, 5), group(PAST, 7, rule=0, task="shop.mail"), group(KEPT, 3, lasting=True))

    assert codes(seen) == {
        ("results-expired", "default"),
        ("results-expired", "shop.*"),
        ("results-without-ttl", "default"),
    }
    assert [(a.kind, a.task, a.count) for a in plan(seen, [])] == [
        (Kind.DELETE, "shop.*", 7),
        (Kind.DELETE, "tasks without a rule", 5),
        (Kind.EXPIRE, "tasks without a rule", 3),
    ]


@pytest.mark.parametrize(
    ("lasting", "expected"),
    [
        ("expire", [(Kind.DELETE, 4), (Kind.EXPIRE, 3 + 2 + 1)]),
        ("delete", [(Kind.DELETE, 4 + 3), (Kind.EXPIRE, 2 + 1)]),
        ("leave", [(Kind.DELETE, 4)]),
    ],
)
def test_what_never_expires_is_repaired_removed_or_left(lasting, expected):
    """As it is asked for; the first is the default."""
    seen = stored(
        group(PAST, 4),
        group(PAST, 3, lasting=True),
        group(KEPT, 2, lasting=True),
        group(UNDATED, 1, lasting=True, age=UNKNOWN_AGE),
        group(HELD, 50, lasting=True),
        group(OPAQUE, 60, lasting=True, state="(unreadable)"),
    )

    assert [(action.kind, action.count) for action in plan(seen, [], lasting=lasting)] == expected


def test_a_filter_of_one_action_means_no_result_of_another():
    """Each by its state, its rule and whether it lasts."""
    seen = stored(group(PAST), group(PAST, state="FAILURE"), group(PAST, rule=0, task="shop.mail"))

    actions = list(plan(seen, []))

    assert [(a.results.rule, a.results.besides, a.results.states, a.results.lasting) for a in actions] == [
        ("shop.*", (), ("SUCCESS",), False),
        ("*", ("shop.*",), ("SUCCESS",), False),
        ("*", ("shop.*",), ("FAILURE",), False),
    ]
    assert {a.results.written_by for a in actions} == {NOW_S - 86_400, NOW_S - 43_200}


def test_where_a_place_was_not_seen_no_result_is_planned_for():
    """Answers are nobody's task, and go all the same."""
    silent = Coverage(place="workers", seen=1, silent=1, note="w@h did not answer.")
    seen = stored(
        group(PAST),
        unseen=("workers: w@h did not answer.",),
        coverage=(silent,),
        leftovers=(Leftover(name="replies", count=3, orphaned=2, size_bytes=90),),
    )

    assert [action.results.what for action in plan(seen, [])] == [REPLIES]
    assert ("cannot-see", "workers") in codes(seen)


def test_what_was_just_given_a_life_is_not_told_as_kept_too_long():
    """It goes by itself; but what came besides is told."""
    before = stored(group(PAST, 3, lasting=True))
    (action,) = plan(before, [])
    outcomes = [Outcome(action=action, status=Status.APPLIED)]

    assert codes(stored(group(PAST, 3)), outcomes=outcomes) == set()
    assert codes(stored(group(PAST, 4)), outcomes=outcomes) == {("results-expired", "default")}
    skipped = [replace(outcomes[0], status=Status.SKIPPED)]
    assert codes(stored(group(PAST, 3)), outcomes=skipped) == {("results-expired", "default")}


def test_of_two_databases_a_plan_is_for_one():
    """The results'; that of the answers is asked for by its word."""
    replies = Leftover(name="replies", count=3, orphaned=2, size_bytes=90)
    seen = stored(group(PAST), leftovers=(replies,), site="a/b/5/")

    results, answers = plan(seen, []), plan(seen, [], clean="replies")

    assert (results.fingerprint, [a.results.what for a in results]) == ("a/b/5/", ["results"])
    assert (answers.fingerprint, [a.results.what for a in answers]) == ("a/b/0/", ["replies"])
    assert "clean=replies" in next(f for f in diagnose(seen) if f.code == "orphan-reply-keys").hint


def test_that_all_there_is_would_go_is_said():
    """In the action that would take it."""
    alone = plan(stored(group(PAST), group(HELD)), [])
    some = plan(stored(group(PAST), group(KEPT)), [])

    assert "all the results that there are" in next(iter(alone)).effect
    assert "all the results that there are" not in next(iter(some)).effect


@pytest.mark.parametrize("asked", [{"lasting": "keep"}, {"clean": "all"}])
def test_a_word_that_is_none_is_refused(asked):
    """With those that there are."""
    with pytest.raises(BadParameter, match="unknown"):
        plan(stored(group(PAST)), [], **asked)


def test_a_plan_is_bounded():
    """An action is about all of one kind, so few are enough."""
    seen = stored(*(group(PAST, state=f"STATE{n}") for n in range(6)))

    with pytest.raises(PlanTooLarge):
        plan(seen, [], max_actions=5)
    assert len(plan(seen, [], max_actions=6)) == 6


@pytest.mark.parametrize(
    ("age_s", "name"),
    [(0.0, "under 1 h"), (3599.9, "under 1 h"), (3600.0, "1 to 12 h"), (86_400.0 * 30, "over 30 d"), (None, "unknown")],
)
def test_an_age_belongs_to_one_class(age_s, name):
    """From its first second on."""
    assert age_of(age_s) == name
    assert len({each for _, each in AGES}) == len(AGES)
