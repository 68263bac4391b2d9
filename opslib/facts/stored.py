"""What Celery has stored besides messages, counted: how many results of which kind and age, and what is orphaned."""

from __future__ import annotations

from dataclasses import dataclass, field

from opslib.facts.remains import Remains
from opslib.facts.snapshot import Snapshot
from opslib.retention import Retention

#: Ages that results are counted by: up to so many seconds, and how that is called. The last has no end.
AGES: tuple[tuple[float, str], ...] = (
    (3600.0, "under 1 h"),
    (12 * 3600.0, "1 to 12 h"),
    (24 * 3600.0, "12 to 24 h"),
    (48 * 3600.0, "1 to 2 d"),
    (7 * 86400.0, "2 to 7 d"),
    (30 * 86400.0, "7 to 30 d"),
    (float("inf"), "over 30 d"),
)
UNKNOWN_AGE = "unknown"
#: How a result stands to the retention that it is kept by.
PAST, KEPT, UNDATED, HELD, ASIDE, OPAQUE = "past", "kept", "undated", "held", "aside", "opaque"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredGroup:
    """
    Results that are alike.

    Attributes:
        state: As Celery spells it, also one of the application's own.

        task: Name of the task; empty where results do not say; "(others)" beyond those that are told apart.

        rule: Number of the rule that they are kept by.

        age: As AGES calls it, or UNKNOWN_AGE.

        lasting: Whether they never expire.

        standing: PAST its retention; KEPT, within it; UNDATED, nobody knows when it was written; HELD, the task can
            still be run, or runs; ASIDE, not asked about; OPAQUE, it cannot be read.

        size_bytes: Of the values, as they are stored.
    """

    state: str
    task: str
    rule: int
    age: str
    lasting: bool
    standing: str
    count: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """
    Keys of one kind that are no results.

    Attributes:
        name: "replies", "groups" or "checkpoints".

        count: How many there are.

        orphaned: Replies: nobody has read or written it for longer than `idle_s`. Others: it never expires.

        size_bytes: What those weigh that are orphaned, as far as the server says.

        undated: Replies of which the server does not say how long they have been idle.
    """

    name: str
    count: int
    orphaned: int = 0
    size_bytes: int = 0
    undated: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored(Snapshot):
    """
    A snapshot of what is stored: its queues are only counted, and no message of it is kept.

    Attributes:
        groups: Every result, counted.

        site: Fingerprint of the database that the results are in; empty if that is not Redis.

        replies_site: Fingerprint of the one that replies are in: the broker's.

        result_root, reply_root: What the key of every result begins with, and of a reply what stands around its id.

        leftovers: What else is stored of Celery's or this tool's.

        retention: How long results are kept, and which were asked about.

        idle_s: Idle for so long, a reply has nobody who waits for it.

        unseen: Why nobody can say which tasks could still be run, a sentence each; empty if that was seen.

        lives_s: The shortest and the longest life that results were given, of those that say when they were written.

        circulating: How many tasks can still be run or run, everywhere.

        strangers: Keys that are none of Celery's nor of this tool's; an application's own. They are left alone.

        remains: What is left beside results; None where that was not looked at.
    """

    groups: tuple[StoredGroup, ...] = ()
    site: str = ""
    replies_site: str = ""
    result_root: str = ""
    reply_root: str = ""
    leftovers: tuple[Leftover, ...] = ()
    retention: Retention = field(default_factory=lambda: Retention(rules=()))
    idle_s: float = 0.0
    unseen: tuple[str, ...] = ()
    lives_s: tuple[float, float] | None = None
    circulating: int = 0
    strangers: int = 0
    remains: Remains | None = None

    @property
    def count(self) -> int:
        """How many results there are."""
        return sum(group.count for group in self.groups)

    @property
    def size_bytes(self) -> int:
        """What their values weigh."""
        return sum(group.size_bytes for group in self.groups)

    def leftover(self, name: str) -> Leftover:
        """Return the row of one kind of keys; an empty one if none were seen."""
        return next((row for row in self.leftovers if row.name == name), Leftover(name=name, count=0))


def age_of(age_s: float | None) -> str:
    """Return what AGES calls an age; None for one that nobody knows."""
    if age_s is None:
        return UNKNOWN_AGE
    return next(name for most, name in AGES if age_s < most)
