"""Which dead letters are meant, and how they are sent again → how many of each list, and how many are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from opslib import redriving
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.plan import Redrive
from opslib.redriving import Note
from opslib.selection import DeadSelection

#: What is refused no more, if it is asked for in a certain way.
_LIFTS = {
    str(Note.REVOKED): lambda how: how.new_ids,
    str(Note.EXPIRED): lambda how: how.expired,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Meant:
    """
    The letters of one list that are meant.

    Attributes:
        count: How many; at most so many, unless it is `exact`.

        rows: Those of them that are known one by one.
    """

    listed: DeadList
    count: int
    exact: bool
    rows: Sequence[DeadLetter]
    refused: Mapping[str, int]
    noted: Mapping[str, int]

    @property
    def sent(self) -> int:
        """How many of them can be sent again."""
        return max(0, self.count - sum(self.refused.values()))

    @property
    def task(self) -> str:
        """The task that all of them are of; empty where they are of several, or nobody can tell."""
        names = {row.task for row in self.rows}
        return next(iter(names)) if self.exact and len(names) == 1 else ""

    @property
    def queue(self) -> str:
        """The queue that they go back to; empty where it is each one's own, and those differ."""
        names = {row.queue or self.listed.queue for row in self.rows} or {self.listed.queue}
        return next(iter(names)) if len(names) == 1 else ""


def of_list(found: DeadLetters, listed: DeadList, selection: DeadSelection, how: Redrive | None) -> Meant:
    """Count the letters of a list that are meant: one by one where all of them are known, by groups where not."""
    own = [each for each in found.letters if each.entry_id and each.key == listed.key]
    rows = [each for each in own if selection.fits(each)]
    if len(own) + listed.unreadable >= listed.length - (listed.arrived or 0):
        refused, noted = _told(rows, how)
        return Meant(listed=listed, count=len(rows), exact=True, rows=rows, refused=refused, noted=noted)
    groups = [group for group in found.groups if listed.key in group.keys and _may_fit(group, selection)]
    count = sum(min(group.keys[listed.key], _of_group(group, selection)) for group in groups)
    count += 0 if selection.signature else _unsorted(found, listed)
    refused = sum((Counter(_lifted(group.refused, how)) for group in groups), Counter[str]())
    noted = sum((Counter(group.notes) for group in groups), Counter[str]())
    if how and how.poison and (sent := refused.pop(str(Note.POISON), 0)):
        noted[str(Note.POISON)] = sent
    if selection.ids:
        count, refused, noted = len(rows), Counter(), Counter()
    return Meant(listed=listed, count=count, exact=False, rows=rows, refused=refused, noted=noted)


def limited(meant: list[Meant], limit: int, how: Redrive | None) -> list[Meant]:
    """Keep so many letters over all lists, the oldest of each first, the list with the oldest letter first."""
    if not limit:
        return meant
    left, kept = limit, []
    for each in sorted(meant, key=lambda one: one.listed.oldest_at or 0.0):
        count = min(left, each.count)
        left -= count
        if not count:
            continue
        if count == each.count:
            kept.append(each)
            continue
        rows = sorted(each.rows, key=lambda row: row.failed_at or 0.0)[:count] if each.exact else each.rows
        refused, noted = _told(rows, how)
        kept.append(
            replace(
                each,
                count=count,
                rows=rows,
                refused=refused if each.exact else each.refused,
                noted=noted if each.exact else each.noted,
            )
        )
    return kept


def _unsorted(found: DeadLetters, listed: DeadList) -> int:
    """Return how many readable letters of a list are in no group."""
    grouped = sum(group.keys.get(listed.key, 0) for group in found.groups)
    return max(0, listed.length - listed.unreadable - grouped) if found.ungrouped else 0


def _may_fit(group: DeadGroup, selection: DeadSelection) -> bool:
    example = group.example
    probe = replace(selection, ids=(), task="*", cause="", failed_before=None, failed_after=None)
    late = selection.failed_before is not None and (group.first_at is None or group.first_at > selection.failed_before)
    return probe.fits(example) and not late


def _of_group(group: DeadGroup, selection: DeadSelection) -> int:
    """Return how many letters of a group fit, at most."""
    by_task = sum(n for name, n in group.tasks.items() if name == "(others)" or fnmatchcase(name, selection.task))
    by_cause = group.causes.get(selection.cause, 0) if selection.cause else group.count
    by_time = group.count
    if selection.failed_before is not None:
        by_time = sum(n for at, n in group.times if at <= selection.failed_before)
    return min(by_task, by_cause, by_time)


def _told(rows: Iterable[DeadLetter], how: Redrive | None) -> tuple[Counter[str], Counter[str]]:
    """Return why letters are refused, and what else is worth a word of them, each with how many."""
    noted = Counter(note for row in rows for note in _notes(row.notes, how))
    sent = {str(Note.POISON)} if how and how.poison else set()
    refused = Counter({note: n for note, n in noted.items() if note in redriving.REFUSALS and note not in sent})
    return refused, noted - refused


def _notes(noted: Iterable[str], how: Redrive | None) -> list[str]:
    """Return the notes of one letter that are left, once it is said how it is sent."""
    if how is None:
        return []
    left = [note for note in noted if note not in _LIFTS or not _LIFTS[note](how)]
    if how.new_ids and Note.CHORD in left:
        left = [Note.CHORD_ID, *(note for note in left if note != Note.CHORD)]
    return left


def _lifted(counts: Mapping[str, int], how: Redrive | None) -> dict[str, int]:
    if how is None:
        return {}
    return {note: n for note, n in counts.items() if note not in _LIFTS or not _LIFTS[note](how)}
