"""The lists of every queue, sampled over a window → how many messages came and went, counted without events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from opslib.facts.window import Flow
from opslib.keys import raw_name

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Messages of one list that a search for the last newest one passes, and those of all lists in one sample.
_FARTHEST, _FARTHEST_OF_ALL = 5_000, 250_000
#: A message beyond this is not sent back and forth to be found again.
_HEAVIEST_BYTES = 64 * 1024
#: How often a list into which messages are pushed between two commands of one sample is sampled once more.
_ATTEMPTS = 4


@dataclass(kw_only=True, slots=True)
class _Watched:
    """
    One list, and what was counted so far.

    Attributes:
        marker: Bytes of a message that was the newest once; None while there is none to search for.

        passed: Messages pushed after the marker that are counted already.

        blind: Whether it was empty at some sample, so that messages may have come and gone unseen.

        heavy: Whether its messages are too large to be searched for.
    """

    name: bytes
    queue: str
    priority: int
    before: int = 0
    length: int = 0
    arrived: int = 0
    marker: bytes | None = None
    passed: int = 0
    exact: bool = True
    blind: bool = False
    heavy: bool = False
    seen: bool = False

    def begin(self, replies: Sequence[object], *, first: bool) -> None:
        """Take a list that holds something, and has no marker, as it is now: its newest, its length, its newest."""
        newest, length, still = replies
        if not isinstance(newest, bytes) or not isinstance(length, int):
            return
        self.exact &= newest == still
        if first:
            self.before = length
        else:
            self.exact = False
            self.arrived += max(0, length - self.length)
        self._mark(newest, length)

    def go_on(self, replies: Sequence[object], farthest: int) -> bool:
        """
        Count what came since the last sample; return whether the answers fit together.

        They are the marker's index, the length, the newest message, and the index again: where both are the same,
        nothing was pushed in between, and all four are of one moment.
        """
        index, length, newest, again = replies
        if not isinstance(length, int) or not isinstance(newest, bytes):
            self._emptied()
            return True
        if index is None or again is None:
            self._lost(length, farthest)
            self._mark(newest, length)
            return True
        pushed = cast("int", index) - self.passed
        self.exact &= pushed >= 0  # somebody took messages out of the middle
        self.arrived += max(0, pushed)
        self.passed = cast("int", index)
        if index != again:
            return False
        self._mark(newest, length)
        return True

    def weigh(self, length: object) -> None:
        """Go by the length alone."""
        if isinstance(length, int):
            self.arrived += max(0, length - self.length)
            self.exact, self.length = False, length

    def row(self) -> Flow:
        """Return what was counted."""
        change = self.length - self.before
        return Flow(
            queue=self.queue,
            priority=self.priority,
            before=self.before,
            after=self.length,
            arrived=self.arrived,
            served=max(0, self.arrived - change),
            restored=max(0, change - self.arrived),
            exact=self.exact and not self.blind,
        )

    def _mark(self, newest: bytes, length: int) -> None:
        self.length, self.passed, self.seen = length, 0, True
        self.heavy = len(newest) > _HEAVIEST_BYTES
        self.marker = None if self.heavy else newest

    def _emptied(self) -> None:
        self.length, self.passed, self.marker = 0, 0, None
        self.exact, self.blind = False, True

    def _lost(self, length: int, farthest: int) -> None:
        """The marker was served, and then all that is there came after it; or more came than are searched through."""
        came = length if length <= farthest else min(length, max(farthest, length - self.length))
        self.arrived += came
        self.exact = False


class Meter:
    """
    Samples every list of some queues; what a sample costs depends on their number, not on their depth.
    """

    def __init__(self, broker: Broker, queues: Iterable[str]) -> None:
        self._broker = broker
        self._lists = [
            _Watched(name=raw_name(key), queue=queue, priority=step)
            for queue in sorted(set(queues))
            for key, step in broker.keys.queue_lists(queue).items()
        ]
        self._begun = False

    def sample(self) -> None:
        """Look at every list once, in one pipeline, and once more at those into which messages are pushed just then."""
        lists = self._lists
        for _ in range(_ATTEMPTS):
            lists = self._sample(lists)
            if not lists:
                break
        self._begun = True

    def rows(self) -> list[Flow]:
        """Return one row for each queue, and one for each further priority that held anything."""
        return [each.row() for each in self._lists if each.seen or each.heavy or not each.priority]

    def _sample(self, lists: Sequence[_Watched]) -> list[_Watched]:
        """Return those lists whose answers do not fit together."""
        marked = sum(each.marker is not None for each in lists)
        farthest = max(200, min(_FARTHEST, _FARTHEST_OF_ALL // max(1, marked)))
        with self._broker.reads.pipeline(transaction=False) as pipe:
            for each in lists:
                if each.marker is not None:
                    pipe.lpos(each.name, cast("str", each.marker), rank=1, maxlen=farthest)
                    pipe.llen(each.name)
                    pipe.lindex(each.name, 0)
                    pipe.lpos(each.name, cast("str", each.marker), rank=1, maxlen=farthest)
                elif each.heavy:
                    pipe.llen(each.name)
                else:
                    pipe.lindex(each.name, 0)
            replies = iter(pipe.execute(raise_on_error=False))
        torn, filled = [], []
        for each in lists:
            if each.marker is not None:
                if not each.go_on([next(replies) for _ in range(4)], farthest):
                    torn.append(each)
            elif each.heavy:
                each.weigh(next(replies))
            elif isinstance(next(replies), bytes):
                filled.append(each)
            else:
                each.blind = True
        self._begin(filled)
        return torn

    def _begin(self, lists: Sequence[_Watched]) -> None:
        """Mark the newest message of lists that held nothing before."""
        with self._broker.reads.pipeline(transaction=False) as pipe:
            for each in lists:
                pipe.lindex(each.name, 0)
                pipe.llen(each.name)
                pipe.lindex(each.name, 0)
            replies = pipe.execute(raise_on_error=False)
        for at, each in enumerate(lists):
            each.begin(replies[3 * at : 3 * at + 3], first=not self._begun)
