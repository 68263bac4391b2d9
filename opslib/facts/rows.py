"""The open rows of an application's own task tables, and where Celery has, had or has lost the task of each."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from opslib.facts.snapshot import Snapshot
from opslib.facts.system import StatusCount

#: Where the task of a row was met.
ENDED = "ended"  # a final result is stored
BEGUN = "begun"  # a result that is not final is stored, and no message or node has the task
WAITING = "waiting"
UNACKED = "unacked"
HELD = "held"  # a node says that it has it
DEAD = "dead"  # a dead letter
QUARANTINED = "quarantined"
NOWHERE = "nowhere"  # and a result would still be there
BEYOND = "beyond"  # nowhere, and a result could have been there and be gone
UNSEEN = "unseen"  # nowhere that was looked, and not every place could be
NAMELESS = "nameless"  # the row has no id to look for

#: What that means.
FINISHED, LOST, STUCK, UNDER_WAY, UNKNOWN = "finished but open", "lost", "stuck", "still on its way", "unknown"
CLASSES = {
    ENDED: FINISHED,
    BEGUN: LOST,
    NOWHERE: LOST,
    DEAD: STUCK,
    QUARANTINED: STUCK,
    WAITING: UNDER_WAY,
    UNACKED: UNDER_WAY,
    HELD: UNDER_WAY,
    BEYOND: UNKNOWN,
    UNSEEN: UNKNOWN,
    NAMELESS: UNKNOWN,
}
ORDER = (FINISHED, LOST, STUCK, UNDER_WAY, UNKNOWN)

#: Ages that open rows are counted by: up to so many seconds, and how that is called. The last has no end.
AGES: tuple[tuple[float, str], ...] = (
    (24 * 3600.0, "under 1 d"),
    (3 * 86400.0, "1 to 3 d"),
    (7 * 86400.0, "3 to 7 d"),
    (14 * 86400.0, "7 to 14 d"),
    (30 * 86400.0, "14 to 30 d"),
    (90 * 86400.0, "30 to 90 d"),
    (float("inf"), "over 90 d"),
)
UNKNOWN_AGE = "unknown"
_BOUNDS = [most for most, _ in AGES]
#: What stands for all tasks beyond those that are told apart.
OTHERS = "(others)"


def age_of(age_s: float | None) -> str:
    """Return an age in seconds as AGES calls it; the bound belongs to the older ones, as a threshold does."""
    return UNKNOWN_AGE if age_s is None else AGES[bisect_right(_BOUNDS, age_s)][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """
    One open row.

    Attributes:
        table: Name of its table in the target's settings.

        row_id: What its column `id` holds, as text.

        task_id: Celery's id; empty if the row has none.

        task: Name of the task, its module included.

        last_run_at: Epoch seconds; None where that cannot be read.

        sighting: Where its task was met: ENDED, BEGUN, WAITING, UNACKED, HELD, DEAD, QUARANTINED, NOWHERE, BEYOND,
            UNSEEN or NAMELESS.

        state: Of its stored result; empty if there is none.

        node: Node that has the task; empty if none says so.

        why: What stands against a verdict, as a sentence; empty where nothing does.

        effect: What a verifier says: whether what the task was to bring about is there; None where nobody can tell, or
            nobody was asked.

        effect_said: What it says besides.

        asked: Whether a verifier was asked, whatever came of it.

        arguments, kwargs: JSON, shown nowhere; empty where they were not read.

        arguments_bytes: How much they are.

        last_run: What the column holds, as it is compared before a change.
    """

    table: str
    row_id: str
    task_id: str
    task: str
    status: str
    last_run_at: float | None
    sighting: str = ""
    state: str = ""
    node: str = ""
    why: str = ""
    effect: bool | None = None
    effect_said: str = ""
    asked: bool = False
    status_message: str = ""
    attempts: int | None = None
    arguments_bytes: int = 0
    arguments: str = field(default="", repr=False)
    kwargs: str = field(default="", repr=False)
    last_run: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCount:
    """
    Open rows that are alike.

    Attributes:
        age: How long ago they were last run, as AGES calls it, or UNKNOWN_AGE.

        longest_s: Of the one that has waited the longest; None where no age is known.
    """

    table: str
    task: str
    status: str
    sighting: str
    state: str
    why: str
    age: str
    count: int
    longest_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenTable:
    """
    A task table that was read.

    Attributes:
        name: As the target's settings call it.

        table: As the database does.

        results: Whether it is the result backend itself.

        becomes: What is written for a final state of Celery's.

        read: Open rows that were read, of whatever age.
    """

    name: str
    table: str
    results: bool
    becomes: tuple[tuple[str, str], ...]
    read: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconciled(Snapshot):
    """
    A deployment, and the open rows of its application's task tables beside it.

    Attributes:
        database: Its URL, without password.

        open_for_s: Rows that were last run so long ago or longer were looked into.

        counts: All of them, by what they have in common.

        samples: Of each task and sighting the rows that have waited the longest.

        met: Rows whose task is with a node or unacknowledged; so many of them as are kept.

        gone: Rows whose task is lost, so many of them as are kept, the oldest first; none where nobody asked for their
            arguments, to send them again.

        verified: Whether verifiers were asked.
    """

    database: str = ""
    open_for_s: float = 0.0
    tables: tuple[SeenTable, ...] = ()
    counts: tuple[RowCount, ...] = ()
    samples: tuple[TaskRow, ...] = ()
    met: tuple[TaskRow, ...] = ()
    gone: tuple[TaskRow, ...] = ()
    verified: bool = False

    @property
    def rows(self) -> int:
        """How many open rows were looked into."""
        return sum(each.count for each in self.counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCount:
    """
    Open rows of one task and class.

    Attributes:
        kind: FINISHED, LOST, STUCK, UNDER_WAY or UNKNOWN.

        state: Of their results; empty where that is not what they have in common.

        age: As AGES calls it, or UNKNOWN_AGE.

        why: What stands against a verdict, or shows it, as a sentence.
    """

    table: str
    task: str
    status: str
    kind: str
    state: str
    age: str
    why: str
    count: int
    longest_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """
    One open row with its class.

    Attributes:
        evidence: What it was judged on, as a sentence.
    """

    row: TaskRow
    kind: str
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """
    What became of the tasks of all open rows.

    Attributes:
        at: Epoch seconds at which it was looked.

        samples: Of each task and class the rows that have waited the longest.

        statuses: All rows of the tables, by status.
    """

    at: float
    database: str
    open_for_s: float
    tables: tuple[SeenTable, ...]
    rows: tuple[ClassCount, ...]
    samples: tuple[Sample, ...]
    statuses: tuple[StatusCount, ...]

    def count(self, kind: str) -> int:
        """How many rows are of one class."""
        return sum(row.count for row in self.rows if row.kind == kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateNow:
    """
    A row that says what the application is at.

    Attributes:
        name: As the target's settings call it.

        key: JSON object of the columns and values by which it is found.

        idle: JSON object of what it is set back to.

        now: JSON object of what it holds in those columns; empty if it is not there.

        problem: Why it cannot be set back, as a sentence; empty if it can.
    """

    name: str
    table: str
    key: str
    idle: str
    now: str = ""
    problem: str = ""

    @property
    def is_idle(self) -> bool:
        """Whether it holds that already."""
        return self.now == self.idle
