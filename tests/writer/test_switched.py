"""An entry of a schedule is switched only as it was seen, to the byte, and put back the same way."""

from __future__ import annotations

import json

import pytest

from opslib.envelope import digest
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply, points
from tests.support import servers
from tests.support.plans import planned, told, undone
from tests.support.seed import KEYS
from tests.writer.test_undo import run_id

KEY = "redbeat:nightly"
DEFINITION = json.dumps(
    {
        "name": "nightly",
        "task": "tests.ok",
        "args": ["ü", 1.0],
        "kwargs": {},
        "options": {},
        "schedule": {"__type__": "interval", "every": 30.0, "relative": False},
        "enabled": True,
    }
)
CHANGED = DEFINITION.replace("30.0", "60.0")


@pytest.fixture
def stored(redis):
    """An entry as redbeat keeps it."""
    redis.hset(KEY, mapping={"definition": DEFINITION, "meta": "{}"})
    return redis


def switch(broker, to="off", *, seen=DEFINITION, key=KEY):
    """Switch the entry, and return the one outcome."""
    copy = Copy(place="entry", key=key, sha256=digest(seen.encode()))
    action = Action(kind=Kind.SWITCH, subject="nightly", source=key, destination=to, copies=(copy,), task="tests.ok")
    (outcome,) = apply(planned(broker, action), broker, dry_run=False)
    return outcome


def definition(redis):
    """Return the definition as it is stored."""
    return redis.hget(KEY, "definition").decode()


def test_only_that_one_word_is_another(broker, stored):
    """Redbeat writes JSON as Python does, and so do we."""
    outcome = switch(broker)

    assert outcome.status == "applied"
    assert definition(stored) == DEFINITION.replace('"enabled": true', '"enabled": false')
    assert stored.hget(KEY, "meta") == b"{}"


def test_what_is_off_goes_on_and_back(broker, stored):
    """An undo writes the very bytes, whatever they were spelled like."""
    spelled = DEFINITION.replace(": ", ":").replace("true", "false")
    stored.hset(KEY, "definition", spelled)

    switch(broker, "on", seen=spelled)
    went_on = json.loads(definition(stored))["enabled"]
    back = undone(broker, run_id())

    assert went_on
    assert told(back) == ["applied"]
    assert definition(stored) == spelled


@pytest.mark.parametrize(
    ("meddle", "words"),
    [
        (lambda redis: redis.hset(KEY, "definition", CHANGED), "written again"),
        (lambda redis: redis.delete(KEY), "removed it"),
    ],
    ids=["changed", "gone"],
)
def test_what_changes_in_the_last_moment_stays_as_it_is(broker, stored, monkeypatch, meddle, words):
    """Between our look and the script, somebody writes it; the script compares again."""
    monkeypatch.setattr(points, "passed", lambda name: meddle(stored) if name == "after-intent" else None)

    outcome = switch(broker)

    assert (outcome.status, words in outcome.reason) == ("skipped", True)
    assert stored.hget(KEY, "definition") in {None, CHANGED.encode()}


@pytest.mark.parametrize(
    ("meddle", "words"),
    [
        (lambda redis: redis.hset(KEY, "definition", CHANGED), "written again"),
        (lambda redis: redis.delete(KEY), "removed it"),
    ],
    ids=["changed", "gone"],
)
def test_what_has_changed_since_the_look_stays_as_it_is(broker, stored, meddle, words):
    """What a person has read is what is switched: the script compares with what is there now, not with that."""
    meddle(stored)

    outcome = switch(broker)

    assert (outcome.status, words in outcome.reason) == ("skipped", True)
    assert stored.hget(KEY, "definition") in {None, CHANGED.encode()}


def test_another_type_in_the_last_moment_leaves_no_batch_half_done(broker, stored, monkeypatch):
    """A batch that was begun and not ended would stand in the way of every undo."""

    def meddle(name):
        if name == "after-intent":
            stored.delete(KEY)
            stored.set(KEY, "a text")

    monkeypatch.setattr(points, "passed", meddle)

    outcome = switch(broker)

    assert (outcome.status, "WRONGTYPE" in outcome.reason) == ("failed", True)
    assert not stored.exists(KEYS.journal(run_id()))


def test_a_right_that_is_missing_leaves_no_batch_half_done(broker, stored, server):
    """It may write what is ours, and may only read the schedule."""
    servers.user(stored, f"{servers.READ_WRITE} -hset")
    stored.execute_command("ACL", "SETUSER", "limited", "(+hset ~opslib:*)")

    outcome = switch(servers.elsewhere(broker, servers.as_user(server)))

    assert outcome.status == "failed"
    assert definition(stored) == DEFINITION
    assert not stored.exists(KEYS.journal(run_id()))


def test_what_was_written_since_is_not_put_back(broker, stored):
    """Whoever wrote it meant that."""
    switch(broker)
    stored.hset(KEY, "definition", CHANGED)

    back = undone(broker, run_id())

    assert told(back) == ["skipped"]
    assert definition(stored) == CHANGED


def test_a_key_of_another_type_is_refused(broker, redis):
    """And nothing is written."""
    redis.set(KEY, "a text")

    outcome = switch(broker)

    assert outcome.status == "failed"
    assert redis.get(KEY) == b"a text"


@pytest.mark.parametrize("odd", ["{no", "7", "[" * 100_000], ids=["cut off", "number", "deep"])
def test_what_is_no_definition_is_left(broker, redis, odd):
    """One that nobody can read is nobody's to write."""
    redis.hset(KEY, "definition", odd)

    outcome = switch(broker, seen=odd)

    assert (outcome.status, outcome.reason) == ("failed", "Its definition cannot be read.")
    assert definition(redis) == odd
