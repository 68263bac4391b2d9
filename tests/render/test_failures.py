"""The picture of failures over time, and the tables of dead letters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.render import dead, display
from opslib.render.failures import MOST, failures
from tests.support.rows import NOW, NOW_S, letter, snapshot

MARKUP = "<script>alert(1)</script> & \x1b[31m \u202e \ufffe"


def group(name: str = "af2d45dd", count: int = 3, **fields: Any) -> DeadGroup:
    """Return a group whose letters failed one minute after the other, the last a minute ago."""
    times = tuple((NOW_S - 60.0 * (count - n), 1) for n in range(count))
    given = {
        "signature": "ConnectionError: refused @ tasks.py:charge",
        "example": letter("t", entry_id="e"),
        "tasks": {"shop.charge": count},
        "judgement": "transient",
        "first_at": times[0][0] if times else None,
        "last_at": times[-1][0] if times else None,
        "times": times,
    }
    return DeadGroup(name=name, count=count, **{**given, **fields})


class TestPicture:
    """One lane for each group."""

    def test_it_says_in_words_what_is_seen(self):
        """Name, number, judgement and time of each."""
        chart = failures([group(), group("11112222", 1, judgement="poison")], taken_at=NOW)

        assert chart.alt == (
            "Failures by signature, within the last 3 min: af2d45dd 3 letters, transient, from 3 min to 1 min ago; "
            "11112222 1 letter, poison, from 1 min to 1 min ago."
        )
        for text in ("af2d45dd", "3 letters, transient", "now", "1 letter, poison"):
            assert text in chart.svg

    def test_it_is_the_same_for_the_same_groups(self):
        """To the byte."""
        assert failures([group()], taken_at=NOW).svg == failures([group()], taken_at=NOW).svg

    @pytest.mark.parametrize("groups", [[], [group(times=(), first_at=None, last_at=None)]])
    def test_no_time_at_all_is_said(self, groups):
        """Nothing to draw is no error."""
        chart = failures(groups, taken_at=NOW)

        assert "none of them says when" in chart.alt
        assert "No letter says when it failed" in chart.svg

    def test_more_groups_than_have_room_are_counted(self):
        """The smaller ones."""
        chart = failures([group(f"{n:08x}") for n in range(MOST + 2)], taken_at=NOW)

        assert "2 more signatures with 6 letters" in chart.alt
        assert f"{MOST:08x}" not in chart.svg

    def test_a_few_old_letters_do_not_squeeze_the_others(self):
        """They are left out, and that is said."""
        month = 30 * 86_400.0
        old = group("0000aaaa", 1, times=((NOW_S - month, 1),), first_at=NOW_S - month, last_at=NOW_S - month)
        chart = failures([group(count=200), old], taken_at=NOW)
        even = failures([group(count=3), old], taken_at=NOW)

        assert "1 older letter is not drawn" in chart.alt
        assert "within the last 3 h 20 min" in chart.alt
        assert "not drawn" not in even.alt

    def test_hostile_text_is_text(self):
        """Nothing in it becomes markup or breaks the picture."""
        from xml.etree import ElementTree as ET

        chart = failures([group(signature=MARKUP)], taken_at=NOW)

        ET.fromstring(chart.svg)
        assert "<script>" not in chart.svg
        assert "\x1b" not in chart.svg

    def test_what_failed_ahead_of_the_clock_is_drawn(self):
        """A node's clock may be ahead."""
        ahead = group(times=((NOW_S + 50.0, 2),), first_at=NOW_S + 50.0, last_at=NOW_S + 50.0)

        assert failures([ahead], taken_at=NOW).svg


class TestTables:
    """Lists, groups and letters."""

    def test_all_of_it_is_shown_by_its_kind(self):
        """A whole look as its lists and groups; rows as their table, with ages beside a snapshot's instant."""
        listed = DeadList(key="shop:orders.dead", queue="orders", length=3, oldest_at=NOW_S - 120, arrived=2)
        stored = DeadList(key="celery-task-meta-*", queue="", length=9, source="results")
        seen = DeadLetters(lists=(stored, listed), groups=(group(refused={"revoked": 2}),))

        lists, groups = map(str, display.views(seen, NOW))
        assert lists.index("orders.dead") < lists.index("(results)")
        assert "2 min ago" in lists
        assert "not sent again: 2 revoked" in groups
        assert str(display.views((group(),), NOW)[0]) == str(dead.groups([group()], NOW))
        assert "2026-11-21" in str(display.views((listed,))[0])

    def test_hostile_text_is_text(self):
        """In every table."""
        row: DeadLetter = letter("t", task=MARKUP, exception=MARKUP, signature=MARKUP, entry_id=MARKUP, worker=MARKUP)
        tables = [dead.letters([row]), dead.groups([group(signature=MARKUP, tasks={MARKUP: 1}, example=row)])]

        for table in tables:
            assert "<script>" not in table.html()
            assert "\x1b" not in str(table)

    def test_a_snapshot_counts_its_ages(self):
        """The rows that are shown beside it."""
        assert snapshot().taken_at == NOW == datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
        assert "1 min ago" in str(dead.groups([group()], NOW))
