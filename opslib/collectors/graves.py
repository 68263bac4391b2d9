"""Dead letters, one after the other → groups by what they failed of, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opslib import letters, redriving
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.letters import Letter

#: Signatures that are told apart; letters of the others are counted as ungrouped.
MOST_GROUPS = 500
#: Names of tasks, queues or workers that one group tells apart.
_MOST_NAMES = 50
OTHERS = "(others)"
#: Buckets of time that one group has at most; where they were more, each gets twice as long.
_MOST_BUCKETS = 120
#: A time before this, or so far ahead of the server's clock, is no time of a failure.
_EARLIEST, _AHEAD_S = 1_262_304_000.0, 86_400.0  # 2010: Celery is hardly older
_MOST_SIGNED = 10_000


@dataclass(kw_only=True, slots=True)
class _Group:
    signature: str
    example: DeadLetter
    count: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    queues: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    times: dict[int, int] = field(default_factory=dict)
    width: int = 1
    first_at: float = math.inf
    last_at: float = -math.inf
    redriven: int = 0
    inexact: int = 0

    def take(self, letter: DeadLetter, at: float | None) -> None:
        self.count += 1
        for counter, name in (
            (self.tasks, letter.task),
            (self.queues, letter.queue),
            (self.keys, letter.key),
            (self.workers, letter.worker),
            (self.causes, letter.cause),
        ):
            counter[name if name in counter or len(counter) < _MOST_NAMES else OTHERS] += 1
        for note in letter.notes:
            (self.refused if note in redriving.REFUSALS else self.notes)[note] += 1
        self.redriven += letter.redrives > 0
        self.inexact += not letter.exact
        if at is not None:
            if at > self.last_at:
                self.example = letter
            self.first_at, self.last_at = min(self.first_at, at), max(self.last_at, at)
            bucket = int(at) // self.width
            self.times[bucket] = self.times.get(bucket, 0) + 1
            while len(self.times) > _MOST_BUCKETS:
                self.widen(self.width * 2)

    def widen(self, width: int) -> None:
        """Make each bucket as long as this, a multiple of what it was."""
        by, self.width = width // self.width, width
        wider: dict[int, int] = {}
        for bucket, count in self.times.items():
            wider[bucket // by] = wider.get(bucket // by, 0) + count
        self.times = wider


@dataclass(kw_only=True, slots=True)
class _List:
    size_bytes: int = 0
    unreadable: int = 0
    oldest_at: float | None = None
    newest_at: float | None = None


class Tally:
    """
    Counts letters as they come; what it keeps is bounded, whatever comes.

    Attributes:
        ids: Of the tasks of all letters.
    """

    def __init__(self, *, now: float, max_letters: int) -> None:
        self._now, self._room = now, max_letters
        self._groups: dict[str, _Group] = {}
        self._lists: dict[str, _List] = {}
        self._kept: list[DeadLetter] = []
        self._signed: dict[int, tuple[str, str]] = {}
        self._read = self._ungrouped = 0
        self.ids: set[str] = set()

    def signature(self, letter: Letter) -> tuple[str, str]:
        """Return a letter's signature and innermost frame; failures of one cause are the same to the letter."""
        known = hash((letter.exc_type, letter.exception, letter.traceback, letter.cause))
        if known not in self._signed:
            if len(self._signed) >= _MOST_SIGNED:
                self._signed.clear()
            self._signed[known] = (letter.signature, letter.frame)
        return self._signed[known]

    def take(self, letter: DeadLetter) -> None:
        """Take an entry of a list into account."""
        self._read += 1
        self.ids.add(letter.task_id)
        at = self._plausible(letter.failed_at)
        of = self._of(letter.key, letter.size_bytes)
        if at is not None:
            of.oldest_at = at if of.oldest_at is None else min(of.oldest_at, at)
            of.newest_at = at if of.newest_at is None else max(of.newest_at, at)
        group = self._groups.get(letter.signature)
        if group is None and len(self._groups) < MOST_GROUPS:
            group = self._groups[letter.signature] = _Group(signature=letter.signature, example=letter)
        if group is None:
            self._ungrouped += 1
        else:
            group.take(letter, at)
        self.keep(letter)

    def keep(self, letter: DeadLetter) -> None:
        """Keep a row, while there is room."""
        if self._room > 0:
            self._room -= 1
            self._kept.append(letter)

    def unreadable(self, key: str, size_bytes: int) -> None:
        """Count an entry that nobody can read."""
        self._read += 1
        self._of(key, size_bytes).unreadable += 1

    def of_list(self, key: str) -> dict[str, Any]:
        """Return what was seen of one list, as fields of its row."""
        of = self._lists.get(key, _List())
        return {name: getattr(of, name) for name in ("size_bytes", "unreadable", "oldest_at", "newest_at")}

    def result(self, lists: tuple[DeadList, ...], revoked: frozenset[str]) -> DeadLetters:
        """Return all of it, times in buckets of one length for every group."""
        width = max((group.width for group in self._groups.values()), default=1)
        for group in self._groups.values():
            group.widen(width)
        groups = sorted(map(_row, self._groups.values()), key=lambda row: (-row.count, row.signature))
        return DeadLetters(
            lists=lists,
            groups=tuple(groups),
            letters=tuple(self._kept),
            read=self._read,
            ungrouped=self._ungrouped,
            revoked=revoked & self.ids,
        )

    def _of(self, key: str, size_bytes: int) -> _List:
        of = self._lists.setdefault(key, _List())
        of.size_bytes += size_bytes
        return of

    def _plausible(self, at: float | None) -> float | None:
        """Return a time of failure if it can be one: whoever writes an entry may write any number."""
        return at if at is not None and _EARLIEST <= at <= self._now + _AHEAD_S else None


def _row(group: _Group) -> DeadGroup:
    timed = bool(group.times)
    return DeadGroup(
        signature=group.signature,
        name=letters.name_of(group.signature),
        count=group.count,
        example=group.example,
        tasks=_ranked(group.tasks),
        queues=_ranked(group.queues),
        keys=_ranked(group.keys),
        workers=_ranked(group.workers),
        causes=_ranked(group.causes),
        first_at=group.first_at if timed else None,
        last_at=group.last_at if timed else None,
        times=tuple((float(bucket * group.width), n) for bucket, n in sorted(group.times.items())),
        redriven=group.redriven,
        refused=_ranked(group.refused),
        notes=_ranked(group.notes),
        inexact=group.inexact,
    )


def _ranked(counter: Counter[str]) -> Mapping[str, int]:
    return dict(counter.most_common())
