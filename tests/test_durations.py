"""A duration is what a person writes with a unit, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opslib.durations import LONGEST_S, pace, rate, seconds, spell
from opslib.errors import SettingsError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90),
        ("90 s", 90),
        (" 15m ", 900),
        ("3h", 10800),
        ("3H", 10800),
        ("3 hours", 10800),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172800),
        ("1w", 604800),
        ("1:30:00", 5400),
        ("PT2H", 7200),
        ("p1d", 86400),
    ],
)
def test_what_people_write_is_understood(text, expected):
    """Short and long units, sums, fractions, a clock's form and ISO 8601 give the same seconds."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["24", "1.5", " 24 ", "0"])
def test_a_number_without_a_unit_is_refused_with_a_proposal(text):
    """Nobody can tell hours from seconds, so the hint offers the number with each unit."""
    with pytest.raises(SettingsError, match="has no unit") as caught:
        seconds(text, "stuck_after")

    assert caught.value.message.startswith("stuck_after: ")
    assert f"{text.strip()}h" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", " ", "0s", "PT0S", "-3h", "-PT1H", "h", "P", "soon", "3h garbage", "1e3s", "nan", "inf", "500ms"]
)
def test_what_is_no_duration_above_zero_is_refused(text):
    """Zero, a past, an unknown unit and prose are wrong values with a hint, never a zero."""
    with pytest.raises(SettingsError, match="not a duration above zero") as caught:
        seconds(text)

    assert "3h" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "usable"), [("36500d", True), ("36501d", False), ("9" * 400 + "s", False), ("9" * 30 + "h", False)]
)
def test_a_duration_beyond_a_century_is_refused(text, usable):
    """What no clock can count is a wrong value, and not an overflow later on."""
    if usable:
        assert seconds(text) == LONGEST_S
        return
    with pytest.raises(SettingsError):
        seconds(text)


@given(st.integers(1, 999), st.sampled_from(sorted(_UNITS)), st.sampled_from(["", " "]))
def test_every_whole_number_with_a_unit_is_read_exactly(number, unit, space):
    """The number times the unit, with a space between them or not."""
    assert seconds(f"{number}{space}{unit}") == number * _UNITS[unit]


@settings(deadline=None)
@given(st.text())
@example("٣")
@example("²")
@example("P" + "9" * 50 + "D")
def test_any_text_gives_seconds_or_a_sentence(text):
    """Whatever is typed, the answer is a usable number or an error that a person can read."""
    try:
        found = seconds(text)
    except SettingsError:
        return
    assert 0 < found <= LONGEST_S


@pytest.mark.parametrize(
    ("value_s", "said"),
    [
        (None, "unknown"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
        (-1, "0.0 s"),
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3601, "1 h"),
        (11520, "3 h 12 min"),
        (86400, "1 d"),
        (90000, "1 d 1 h"),
    ],
)
def test_seconds_are_said_as_a_person_says_them(value_s, said):
    """Two units at most; below ten seconds with a decimal; what cannot be told is unknown."""
    assert spell(value_s) == said


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_of_seconds_can_be_said(value_s):
    """A score in Redis may be any float, infinity too; a sentence about it always can be made."""
    assert spell(value_s)


@given(st.integers(10, 10**8))
def test_what_is_said_is_less_than_two_units_off(value_s):
    """Nothing but the parts below the second unit is lost, and nothing is rounded up."""
    said = sum(int(n) * {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit] for n, unit in _pairs(spell(value_s)))

    assert 0 <= value_s - said < max(3600, value_s / 24)


def _pairs(text: str) -> list[tuple[str, str]]:
    words = text.split(" ")
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    ("text", "per_s"),
    [
        ("10/s", 10),
        ("10/m", 10 / 60),
        ("600/m", 10),
        ("1/h", 1 / 3600),
        ("0.5/s", 0.5),
        ("10", 10),
        (" 10/m ", 10 / 60),
        ("", 0),
        ("0", 0),
        ("0/m", 0),
        ("0.0", 0),
    ],
)
def test_a_rate_is_read_as_celery_reads_it(text, per_s):
    """A number alone is so many a second, and none at all is no limit."""
    assert pace(text) == pytest.approx(per_s)


@pytest.mark.parametrize("text", ["/m", "ten/m", "10/d", "10/m/s", "-1/m", "nan", "inf/s", "10 per minute", "none"])
def test_what_is_no_rate_is_refused(text):
    """Rather than taken for no limit."""
    with pytest.raises(ValueError, match="is no rate"):
        pace(text)


@pytest.mark.parametrize(
    ("text", "told"), [("10/m", "10/m"), (" 1/h ", "1/h"), ("5", "5"), ("none", ""), ("0", ""), ("0/m", "")]
)
def test_a_rate_limit_is_told_as_it_was_written(text, told):
    """And no limit is empty, however it is spelled."""
    assert rate(text) == told


@pytest.mark.parametrize("text", ["", " ", "fast", "10/d", "-1/m"])
def test_what_is_no_rate_limit_is_none(text):
    """Least of all nothing: a limit is not taken away by leaving something out."""
    with pytest.raises(ValueError, match="no rate"):
        rate(text)
