"""Things, one after another, and what each weighs → pieces of them, each as much as a server takes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def cut(
    each_of: Iterable[T], weight_of: Callable[[T], int], *, most_bytes: int, most: Callable[[], int] | None = None
) -> Iterator[list[T]]:
    """
    Cut by bytes, and by number where that is asked for; what is too heavy for any piece is one by itself.

    Args:
        most: So many in a piece; asked before each, for what a server bears may change meanwhile.
    """
    piece: list[T] = []
    weight = 0
    for each in each_of:
        size = weight_of(each)
        if piece and (weight + size > most_bytes or (most is not None and len(piece) >= most())):
            yield piece
            piece, weight = [], 0
        piece.append(each)
        weight += size
    if piece:
        yield piece
