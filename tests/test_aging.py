"""When a result was written is what it says itself, or unknown; never a guess."""

from __future__ import annotations

import json

import pytest

from opslib.aging import UNREADABLE, Brief, brief, by_life, of_ends

NOW = 1_800_000_000.0
AT = "2027-01-15T07:59:00+00:00"


def raw(**fields):
    """Return a result as Celery writes it."""
    found = {"status": "SUCCESS", "result": 3, "traceback": None, "children": [], "date_done": AT, "task_id": "a"}
    return json.dumps({**found, **fields}).encode()


@pytest.mark.parametrize(
    ("date", "at"),
    [
        (AT, NOW - 60),
        ("2027-01-15T16:59:00+09:00", NOW - 60),
        ("2027-01-15T07:59:00", NOW - 60),
        ("2027-01-15T07:59:00.500000+00:00", NOW - 59.5),
        ("2027-01-15T07:59:00Z", NOW - 60),
        ("20270115T075900", NOW - 60),
        ("2027-01-15T08:04:59+00:00", NOW + 299),
        ("2027-01-15T08:05:01+00:00", None),
        ("yesterday", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        (None, None),
        (7, None),
        ({"$date": 1}, None),
    ],
)
def test_it_is_as_old_as_it_says(date, at):
    """In any time zone, without one in UTC; what is no date, or far ahead, is unknown."""
    assert brief(raw(date_done=date), "a", NOW) == Brief("SUCCESS", "", at)


def test_the_name_is_there_only_if_it_is_stored():
    """And only if it is one."""
    assert brief(raw(name="shop.mail"), "a", NOW).task == "shop.mail"
    assert brief(raw(name={"x": 1}), "a", NOW).task == ""


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x80\x04K\x01.",
        b"\x00celery-compressed\x00",
        raw()[:50],
        b"[1]",
        b"{}",
        raw(status=""),
        raw(task_id="b"),
    ],
)
def test_what_is_not_celerys_is_unreadable(value):
    """So that nobody removes it by an age that it does not have."""
    assert brief(value, "a", NOW) == Brief(UNREADABLE)


@pytest.mark.parametrize(
    ("life_s", "expires_s", "age_s"),
    [
        (3600.0, 86_400.0, 82_800.0),
        (86_400.0, 86_400.0, 0.0),
        (86_400.5, 86_400.0, 0.0),
        (86_402.0, 86_400.0, None),
        (None, 86_400.0, None),
        (3600.0, 0.0, None),
    ],
)
def test_an_unfinished_one_is_as_old_as_its_life_tells(life_s, expires_s, age_s):
    """If anybody said how long it was at first; a life that is longer was given by somebody else."""
    at = by_life(Brief("PROGRESS"), life_s, expires_s, NOW)

    assert at == (None if age_s is None else NOW - age_s)


def test_what_cannot_be_read_has_no_age():
    """Not even by its life."""
    assert by_life(Brief(UNREADABLE), 60.0, 86_400.0, NOW) is None


def test_of_a_long_value_both_ends_tell():
    """Its date only if there is but one."""
    whole = raw(result="x" * 9000)
    twice = raw(result="x" * 9000, meta={"date_done": AT})

    assert of_ends(whole[:4096], whole[-4096:], NOW) == Brief("SUCCESS", "", NOW - 60)
    assert of_ends(twice[:4096], twice[-4096:], NOW) == Brief("SUCCESS", "", None)
    assert of_ends(b"\x80\x04", b"", NOW) == Brief(UNREADABLE)
