"""Task ids, however many → whether one was among them, in eight bytes for each."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b

#: The ids are kept in so many parts, by their marks.
_PARTS = 256


class Marks:
    """
    A set of task ids that cannot be read back.

    Two ids of one mark are one in 10**19, and then the other one is taken to be among them as well.
    """

    def __init__(self) -> None:
        self._parts: list[array[int]] = [array("Q") for _ in range(_PARTS)]

    def note(self, task_id: str) -> None:
        """Add an id; `sealed` has to be called before any is looked for."""
        mark = _mark(task_id)
        self._parts[mark % _PARTS].append(mark)

    def sealed(self) -> Marks:
        """Sort what was noted; return the same set."""
        for n, part in enumerate(self._parts):  # a part at a time: what sorts them holds each as an object
            self._parts[n] = array("Q", sorted(set(part)))
        return self

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, task_id: str) -> bool:
        mark = _mark(task_id)
        part = self._parts[mark % _PARTS]
        at = bisect_left(part, mark)
        return at < len(part) and part[at] == mark


def _mark(task_id: str) -> int:
    return int.from_bytes(blake2b(task_id.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
