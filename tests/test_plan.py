"""A plan says what would be done, how much of it, and where: the same words for the same plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opslib import plan as plans
from opslib.errors import Exit, PlanTooLarge
from opslib.plan import Action, Copy, Kind

COPY = Copy(place="unacked", key="unacked", queue="celery", delivery_tag="t", sha256="0" * 64, score=1795225339.5)


def action(subject: str = "a", kind: Kind = Kind.RESTORE) -> Action:
    """Return one intended change."""
    return Action(
        kind=kind, subject=subject, source="unacked", destination="celery", why="orphaned-unacked", copies=(COPY,)
    )


def make(*actions: Action, target: str = "demo", fingerprint: str = "f", max_actions: int = 10) -> plans.Plan:
    """Return a plan of these actions."""
    return plans.make(target, fingerprint, actions, max_actions=max_actions)


def test_actions_are_numbered_from_one_in_their_order():
    """A number names an action from the plan to its outcome."""
    made = make(action("b"), action("a"), action("b"))

    assert [(each.id, each.subject) for each in made] == [(1, "b"), (2, "a"), (3, "b")]
    assert len(made) == 3


@pytest.mark.parametrize(
    ("count", "limit", "fits"), [(0, 0, True), (2, 2, True), (3, 2, False), (1, 0, False), (1, -1, False)]
)
def test_a_plan_larger_than_its_limit_is_refused_whole(count, limit, fits):
    """As many actions as the limit are allowed; one more, and there is no plan rather than a part of one."""
    actions = [action(str(n)) for n in range(count)]
    if fits:
        assert len(make(*actions, max_actions=limit)) == count
        return
    with pytest.raises(
        PlanTooLarge, match=f"has {count} actions; max_actions allows {limit}. Nothing was changed"
    ) as caught:
        make(*actions, max_actions=limit)
    assert caught.value.exit_code is Exit.REFUSED
    assert "max_actions" in caught.value.hint


def test_the_digest_is_the_same_for_the_same_plan():
    """Two looks that propose the same are the same plan, and may be compared by one line."""
    assert make(action()).digest == make(action()).digest
    assert len(make().digest) == 64


@pytest.mark.parametrize(
    "other",
    [
        make(action("b")),
        make(action(kind=Kind.STOP)),
        make(action(), action("b")),
        make(),
        make(action(), target="prod"),
        make(action(), fingerprint="another server"),
        make(replace(action(), destination="mail")),
        make(replace(action(), copies=(replace(COPY, sha256="1" * 64),))),
        make(replace(action(), copies=(replace(COPY, score=None),))),
        make(replace(action(), terminate=True)),
    ],
)
def test_the_digest_changes_with_anything_that_would_be_done(other):
    """Another subject, message, destination, target or server is another plan."""
    assert other.digest != make(action()).digest


def test_the_order_of_actions_is_part_of_the_plan():
    """What is stopped first is not restored."""
    assert make(action("a"), action("b")).digest != make(action("b"), action("a")).digest


def test_a_plan_is_json():
    """It can be saved and compared; every value has a JSON type, and the digest follows from them."""
    content = json.loads(json.dumps(make(action()).content()))

    assert content["target"] == "demo"
    assert content["actions"][0] | {"kind": "restore", "id": 1, "subject": "a"} == content["actions"][0]
    assert content["actions"][0]["copies"][0]["score"] == 1795225339.5


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([], "nothing"),
        ([Kind.RESTORE], "restore 1"),
        ([Kind.STOP, Kind.RESTORE, Kind.STOP, Kind.QUARANTINE], "stop 2, restore 1, quarantine 1"),
    ],
)
def test_a_plan_is_summed_up_by_kind(kinds, said):
    """In the order in which the kinds first stand in it."""
    assert make(*(action(str(n), kind) for n, kind in enumerate(kinds))).summary() == said
