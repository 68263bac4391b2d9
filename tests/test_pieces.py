"""What is sent or asked for at once is bounded by bytes and by number, and nothing is left out."""

from __future__ import annotations

import pytest

from opslib import pieces


@pytest.mark.parametrize(
    ("weights", "cut"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([4, 6, 1], [[4, 6], [1]], id="full to the byte"),
        pytest.param([4, 7, 1], [[4], [7, 1]], id="a byte too many"),
        pytest.param([25, 1, 25], [[25], [1], [25]], id="heavier than any piece"),
        pytest.param([1, 1, 1, 1], [[1, 1, 1], [1]], id="too many"),
    ],
)
def test_a_piece_is_as_large_as_it_may_be(weights: list[int], cut: list[list[int]]) -> None:
    """Ten bytes and three things are the most here."""
    assert list(pieces.cut(weights, int, most_bytes=10, most=lambda: 3)) == cut


def test_without_a_number_only_bytes_count() -> None:
    """Things that weigh nothing come at once."""
    assert list(pieces.cut([0] * 1000, int, most_bytes=10)) == [[0] * 1000]


def test_what_a_server_bears_may_change_meanwhile() -> None:
    """The number is asked for again before each thing."""
    bears = iter([3, 3, 3, 1, 1])

    assert list(pieces.cut("abcdef", lambda _: 0, most_bytes=10, most=lambda: next(bears))) == [
        ["a", "b", "c"],
        ["d"],
        ["e"],
        ["f"],
    ]
