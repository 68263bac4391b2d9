"""A plan says what would be done, how much of it, and where: the same words for the same plan, kept in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opslib import plan as plans
from opslib.errors import Exit, PlanTooLarge, Refused
from opslib.plan import Action, Copy, Kind, Plan, RowChange

COPY = Copy(place="unacked", key="unacked", queue="celery", delivery_tag="t", sha256="0" * 64, score=1795225339.5)
MADE_AT = datetime(2026, 11, 21, 2, 15, tzinfo=UTC)


def action(subject: str = "a", kind: Kind = Kind.RESTORE) -> Action:
    """Return one intended change."""
    return Action(
        kind=kind, subject=subject, source="unacked", destination="celery", why="orphaned-unacked", copies=(COPY,)
    )


def make(
    *actions: Action,
    target: str = "demo",
    fingerprint: str = "f",
    max_actions: int = 10,
    made_at: datetime = MADE_AT,
    life_s: float = plans.LIFE_S,
) -> Plan:
    """Return a plan of these actions."""
    return plans.make(target, fingerprint, actions, max_actions=max_actions, made_at=made_at, life_s=life_s)


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
        make(action(), max_actions=11),
        make(action(), made_at=MADE_AT + timedelta(seconds=1)),
        make(action(), life_s=1),
        make(replace(action(), destination="mail")),
        make(replace(action(), copies=(replace(COPY, sha256="1" * 64),))),
        make(replace(action(), copies=(replace(COPY, score=None),))),
        make(replace(action(), copies=(replace(COPY, score=math.nextafter(1795225339.5, math.inf)),))),
        make(replace(action(), terminate=True)),
        make(replace(action(), ttl_s=60.0)),
        make(replace(action(), copies=(replace(COPY, life_s=60.0),))),
        replace(make(action()), tool_version="another"),
        replace(make(action()), continues="20261121T021500Z-stuck-tasks-7f3a9c"),
    ],
)
def test_the_digest_changes_with_anything_that_would_be_done(other):
    """Another subject, message, destination, target, server, limit, life, tool or earlier run is another plan."""
    assert other.digest != make(action()).digest


def test_the_order_of_actions_is_part_of_the_plan():
    """What is stopped first is not restored."""
    assert make(action("a"), action("b")).digest != make(action("b"), action("a")).digest


def test_a_plan_is_json():
    """It can be saved and compared: what it is made of has JSON types already, and the digest follows from them."""
    content = make(action()).content()

    assert content == json.loads(json.dumps(content))
    assert content["target"] == "demo"
    assert content["actions"][0] | {"kind": "restore", "id": 1, "subject": "a"} == content["actions"][0]
    assert content["actions"][0]["copies"][0]["score"] == 1795225339.5


def test_a_plan_that_is_shown_says_of_a_row_no_more_than_the_names_of_what_it_held():
    """What stands in an application's columns is nobody's business; the file that is applied has it."""
    row = RowChange(table="state_rows.agent", key='{"id": 1}', was='{"task": "card-4711"}', becomes='{"task": ""}')
    plan = make(Action(kind=Kind.UPDATE, subject="agent", source="", destination="idle", row=row))

    (shown,) = plan.shown()["actions"]

    assert shown["row"] == {"table": row.table, "key": row.key, "was": "task", "becomes": row.becomes}
    assert b"card-4711" in plans.write(plan)


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


# When


def test_a_plan_says_when_it_was_made_and_until_when_it_is_good():
    """In UTC, whatever zone the instant came in; with it the tool that made it."""
    there = MADE_AT.astimezone(timezone(timedelta(hours=-3)))

    made = make(made_at=there)

    assert (made.made_at, made.expires_at) == ("2026-11-21T02:15:00.000Z", "2026-11-21T02:30:00.000Z")
    assert made.tool_version


@pytest.mark.parametrize(
    ("after_s", "is_stale"), [(-3600, False), (0, False), (899.999, False), (900, True), (900.001, True), (1e6, True)]
)
def test_a_plan_is_stale_from_the_instant_at_which_it_ends(after_s, is_stale):
    """By the clock of the server that it is for; not a moment of grace."""
    assert plans.stale(make(), MADE_AT + timedelta(seconds=after_s)) is is_stale


@pytest.mark.parametrize("life_s", [0, -1])
def test_a_plan_without_a_life_is_stale_at_once(life_s):
    """It can be read, and not acted upon."""
    assert plans.stale(make(life_s=life_s), MADE_AT)


@pytest.mark.parametrize(
    "expires_at", ["", "soon", "2026-11-21", "2027-11-21T02:30:00", "9999-99-99T00:00:00Z", "\udcff"]
)
def test_a_plan_whose_end_cannot_be_told_is_stale(expires_at):
    """Nobody can say that it is still good: no time, no zone, no day of any calendar."""
    assert plans.stale(replace(make(), expires_at=expires_at), MADE_AT)


# The file


_WORDS = st.text(max_size=12) | st.binary(max_size=12).map(lambda name: name.decode("utf-8", "surrogateescape"))
_NUMBERS = st.none() | st.floats(allow_nan=False)
_COPIES = st.builds(
    Copy,
    place=st.sampled_from(["waiting", "unacked", "index", "list", "key", "pass", "journal"]),
    key=_WORDS,
    queue=_WORDS,
    delivery_tag=_WORDS,
    sha256=st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64),
    priority=st.integers(-(2**63), 2**63),
    score=_NUMBERS,
    count=st.integers(0, 2**63),
    life_s=_NUMBERS,
)
_ACTIONS = st.builds(
    Action,
    kind=st.sampled_from(Kind),
    subject=_WORDS,
    source=_WORDS,
    destination=_WORDS,
    why=_WORDS,
    task=_WORDS,
    copies=st.lists(_COPIES, max_size=3).map(tuple),
    node=_WORDS,
    terminate=st.booleans(),
    ttl_s=_NUMBERS,
    effect=_WORDS,
)


@settings(deadline=None)
@given(
    target=_WORDS,
    fingerprint=_WORDS,
    actions=st.lists(_ACTIONS, max_size=4),
    made_at=st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
    continues=_WORDS,
)
@example(target="", fingerprint="", actions=[], made_at=MADE_AT, continues="")
@example(
    target="\U0001f600",
    fingerprint="f",
    actions=[
        replace(action("\udcff\u2028\x00"), copies=(replace(COPY, score=math.inf), replace(COPY, score=-math.inf)))
    ],
    made_at=MADE_AT,
    continues="",
)
def test_a_plan_is_read_as_it_was_written(target, fingerprint, actions, made_at, continues):
    """Names that are no text and scores without an end included; writing it again makes the same bytes."""
    made = replace(make(*actions, target=target, fingerprint=fingerprint, made_at=made_at), continues=continues)

    content = plans.write(made)
    read = plans.read(content)

    assert (read, read.digest) == (made, made.digest)
    assert plans.write(read) == content
    assert content.isascii()


@pytest.mark.parametrize(
    "changed",
    [
        replace(action(), ttl_s=60),
        replace(action(), copies=(replace(COPY, score=1795225339),)),
        replace(action(), copies=(replace(COPY, life_s=-1),)),
    ],
    ids=["ttl_s", "score", "life_s"],
)
def test_a_whole_number_of_seconds_can_be_read_back(changed):
    """Whoever makes a plan may write 60 for 60.0."""
    assert plans.read(plans.write(make(changed))) == make(changed)


def odd() -> Plan:
    """Return a small plan with every kind of value that a plan can hold."""
    first = replace(action("caf\udce9"), copies=(COPY, replace(COPY, score=math.inf, life_s=-1.0)), ttl_s=0.5)
    return make(first, replace(action("ä"), terminate=True, kind=Kind.STOP, copies=()))


def refused(content: bytes) -> str:
    """Return the sentence with which a file is refused; it has to be one, with a way out."""
    with pytest.raises(Refused) as caught:
        plans.read(content)
    assert caught.value.exit_code is Exit.REFUSED
    assert "Run the runbook again" in caught.value.hint
    message = caught.value.message
    assert message.endswith(".")
    assert message.isprintable()
    assert len(message) < 500
    return message


def test_every_byte_of_a_plan_counts():
    """Any one that is another, is missing or is one too many: the plan is not what a person read."""
    content = plans.write(odd())
    for at in range(len(content)):
        for bit in range(8):
            refused(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        refused(content[:at] + content[at + 1 :])
        refused(content[:at])
    for at in range(len(content) + 1):
        for extra in (b" ", b"\n", b"0", b"a", b"\x00", content[at - 1 : at] or b"{"):
            refused(content[:at] + extra + content[at:])
    assert plans.read(content) == odd()


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a plan's file after something was changed in it, in the form that the file has."""
    document = json.loads(plans.write(odd()))
    change(document)
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def test_a_file_that_is_only_written_anew_is_the_same_plan():
    """So the next test refuses because of what is changed."""
    assert plans.read(edited(lambda _: None)) == odd()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(digest="0" * 64),
        lambda d: d.update(digest=""),
        lambda d: d.update(digest=None),
        lambda d: d.pop("digest"),
        lambda d: d.update(max_actions=10_000),
        lambda d: d.update(expires_at="2099-01-01T00:00:00.000Z"),
        lambda d: d.update(note="another field"),
        lambda d: d.pop("continues"),
        lambda d: d["actions"].pop(),
        lambda d: d["actions"].append(d["actions"][0]),
        lambda d: d["actions"].reverse(),
        lambda d: d["actions"][0].update(destination="elsewhere"),
        lambda d: d["actions"][0].update(more=1),
        lambda d: d["actions"][0]["copies"][0].update(sha256="1" * 64),
        lambda d: d["actions"][0]["copies"][1].update(score=None),
    ],
)
def test_an_edited_plan_is_refused(change):
    """Its digest does not fit, or its digest was edited; it says so in those words."""
    assert "edited after it was made" in refused(edited(change))


def test_a_plan_that_was_signed_anew_is_as_good_as_one_that_was_made():
    """The digest tells an accident or a careless hand, no forger: what guards the broker is checked on the broker."""
    other = replace(odd(), max_actions=10_000)

    assert plans.read(plans.write(other)) == other


@pytest.mark.parametrize("schema", [0, 2, "1", None, "\x1b[31m", "x" * 10_000])
def test_a_plan_of_another_schema_is_refused(schema):
    """Before anything else is read of it: another schema may mean something else by the same words."""
    assert "schema" in refused(edited(lambda d: d.update(schema_version=schema, actions=7)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b'"plan"',
        b"\xff\xfe{",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"schema_version":1,"max_actions":' + b"9" * 5000 + b"}",
        b'{"schema_version":1}',
        edited(lambda d: d["actions"][0].update(kind="drop")),
        edited(lambda d: d["actions"][0].update(kind="\x1b[2Jdrop")),
        edited(lambda d: d["actions"][0].update(kind="x" * 10_000)),
        edited(lambda d: d["actions"][0].update(ttl_s="60")),
        edited(lambda d: d["actions"][0].update(terminate=1)),
        edited(lambda d: d.update(actions={})),
        edited(lambda d: d.update(actions=None)),
        edited(lambda d: d.pop("target")),
    ],
)
def test_what_is_no_plan_is_refused(content):
    """Another document, half of one, none at all: a sentence that can be read, and never a stack of calls."""
    refused(content)


def test_a_file_that_nobody_can_have_read_is_refused_unread(monkeypatch):
    """It is too large; not even its JSON is looked at."""
    content = plans.write(odd())
    monkeypatch.setattr(plans, "MOST_BYTES", len(content))
    assert plans.read(content) == odd()
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was read"))

    assert f"{len(content) + 1:,} bytes" in refused(content + b" ")
