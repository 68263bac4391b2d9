"""The keys that are kept for a task beside its messages: its result, and what the application itself notes down."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

#: What stands between the parts of a key's name: `progress:ID:step` belongs to task ID.
_BETWEEN = re.compile(r"[:/|.\s]+")


class Tasks(Protocol):
    """Ids that can be asked for."""

    def __contains__(self, task_id: str, /) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskKey:
    """
    One key of one task.

    Attributes:
        name: "result", or what the target calls the application's key: "progress".

        database: URL of its database, without password.

        fingerprint: Identity of that database; a change of the key is planned for it alone.

        type: As Redis calls it.

        elements: Elements of a list, members of a set, fields of a hash; 1 for a string.

        size_bytes: Length of a string; of a collection about what it weighs in the server.

        life_s: How long it had to live; negative for ever.

        sha256: Of its value, as `opslib.values` spells it; what a removal is compared with. Empty if it was not read.

        group: Group that a result names; its own bookkeeping is another key.

        fixed: Why it cannot be removed, as a sentence; empty if it can.
    """

    name: str
    task_id: str
    key: str
    database: str
    fingerprint: str
    type: str
    elements: int
    size_bytes: int
    life_s: float
    sha256: str = ""
    group: str = ""
    fixed: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundKey:
    """
    One key that a scan has met by the pattern of its name; its value was not read.

    Attributes:
        task_id: What stands in its name where the pattern has the id.

        size_bytes: What it weighs in the server, with its name.

        life_s: How long it had to live; negative for ever.

        idle_s: For how long nobody has read or written it; None where the server does not count that.
    """

    key: str
    task_id: str
    type: str
    size_bytes: int
    life_s: float
    idle_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyScan:
    """
    All keys of one name that an application keeps, counted, and the oldest of them one by one.

    Attributes:
        name: What the target calls them: "progress".

        database: URL of their database, without password.

        fingerprint: Identity of that database.

        keys, size_bytes: Of all that fit the pattern, whether they are among the rows or not.

        forever: How many of them never expire.

        fits: How many are old enough, of those.

        strangers: Keys that fit it by their name, and are a queue's, Celery's, ours or those of another pattern.

        rows: Those that are old enough, the longest untouched first; not all of them where there are many.

        visited: Keys of the database that the scan has met, of any name.

        left: How many of the database it has not met, about; 0 if it came to the end.
    """

    name: str
    pattern: str
    database: str
    fingerprint: str
    keys: int = 0
    size_bytes: int = 0
    forever: int = 0
    fits: int = 0
    strangers: int = 0
    rows: tuple[FoundKey, ...] = ()
    visited: int = 0
    left: int = 0
    taken_at: datetime

    def over(self, live: Tasks | Container[str], lists: Container[str] = ()) -> list[FoundKey]:
        """
        Return the rows of tasks that are over, and that are no queue's.

        Args:
            live: Ids of the tasks that can still be run.

            lists: Keys of queues in the same database.
        """
        return [row for row in self.rows if row.key not in lists and not any(i in live for i in ids_in(row.task_id))]


def ids_in(text: str) -> list[str]:
    """Return every id that could be meant by what stands in a key's name for one: itself, and each part of it."""
    return list(dict.fromkeys([text, *filter(None, _BETWEEN.split(text))]))


@dataclass(frozen=True, kw_only=True, slots=True)
class AppValue:
    """
    What one key of one task holds, as far as it was read.

    Attributes:
        type: As Redis calls it.

        elements: Elements of a list, members of a set, fields of a hash, entries of a stream; bytes of a string.

        size_bytes: What it weighs in the server.

        life_s: How long it has to live; negative for ever.

        parts: Pairs of text: field and value, place in the list and line, member and score.

        unread: How many elements are not among the parts; of a string, bytes.

        cut: How many of the parts are longer than what is kept of them.
    """

    name: str
    task_id: str
    key: str
    database: str
    type: str
    elements: int
    size_bytes: int
    life_s: float
    parts: tuple[tuple[str, str], ...] = ()
    unread: int = 0
    cut: int = 0
