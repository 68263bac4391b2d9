"""Rows become a frame with aware instants."""

from __future__ import annotations

import pandas as pd
import pytest

from opslib.render.frames import frame
from tests.render.samples import finding, message, snapshot


def test_instants_are_aware_utc():
    """Every column that ends in _at holds UTC datetimes; what is no instant is NaT."""
    table = frame([message(1, age_s=0), message(2, age_s=None), message(3, age_s=float("inf"))])

    assert str(table["delivered_at"].dtype).endswith("UTC]")
    assert table["delivered_at"][0] == pd.Timestamp("2026-11-21T02:15:00Z")
    assert table["delivered_at"][1:].isna().all()


def test_a_frame_has_a_row_for_each_row_and_a_column_for_each_field():
    """Findings, facts and the rows of a record alike."""
    assert list(frame([finding(1), finding(2)])["code"]) == ["orphaned-unacked"] * 2
    assert list(frame([{"place": "workers", "seen": 2}])["seen"]) == [2]
    assert len(frame(snapshot().nodes)) == 1


def test_no_rows_are_an_empty_frame():
    """An empty view is an empty frame."""
    assert frame([]).empty


def test_what_is_no_row_is_refused():
    """A mistake is said at once."""
    with pytest.raises(TypeError, match="int is not a row"):
        frame([1])
