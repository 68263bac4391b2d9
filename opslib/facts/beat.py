"""The schedule by which beat sends tasks: its entries, the lock of the beat that serves it, and who sends twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from opslib.facts.snapshot import Snapshot

#: Where an entry was read: in redbeat's keys, in the tables of django-celery-beat, or in what nodes say of their
#: configuration.
REDBEAT, DJANGO, CONFIGURATION = "redbeat", "django-celery-beat", "configuration"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleEntry:
    """
    One entry of a schedule.

    Attributes:
        source: REDBEAT or DJANGO; or CONFIGURATION, where only the nodes' configuration tells of it, and the file that
            says when it last ran is on the host of beat alone.

        when: How often, in words.

        bounds: From when, until when and whether once only, in words; empty for always.

        is_on: Whether beat sends it; None where nobody knows.

        is_static: Whether the application's configuration has it too, which a beat that starts writes over it.

        last_run_at: Epoch seconds at which beat last sent it; None if never, or not known.

        due_at: Epoch seconds at which it is sent next; None if never, or not known.

        is_unreckoned: Whether it has a next time that nobody here can reckon.

        changed_at: Epoch seconds at which a row of a table was last saved, which beat does as well; None for others.

        queue: Where its tasks wait; empty for wherever the sender's routes lead.

        key: Where it is kept; empty for what is only configured.

        row: Of a row in a table, its id there; None for what is in Redis or configured.

        sha256: Of its definition, as it was read.

        problem: Why it cannot be read, as a sentence; empty if it can.

        call: JSON of its args, kwargs and options, shown nowhere; empty where those are too large to be read.
    """

    name: str
    source: str
    task: str = ""
    when: str = ""
    bounds: str = ""
    is_on: bool | None = None
    is_static: bool = False
    last_run_at: float | None = None
    due_at: float | None = None
    is_unreckoned: bool = False
    changed_at: float | None = None
    runs: int | None = None
    queue: str = ""
    priority: int = 0
    key: str = ""
    row: int | None = None
    sha256: str = ""
    problem: str = ""
    call: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class BeatLock:
    """
    The lock of the beat that serves a schedule of redbeat: no other one begins as long as it is there.

    Attributes:
        life_s: How long it still lives, unless its beat renews it; negative for ever.

        renewed_ago_s: When it was last renewed; None where no node tells for how long it is taken.
    """

    key: str
    life_s: float
    renewed_ago_s: float | None
    sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SentTwice:
    """
    A task that two processes send by a schedule, at the same time.

    Attributes:
        senders: Those processes, as their messages name them.

        messages: How many of theirs wait.
    """

    task: str
    queue: str
    senders: tuple[str, ...]
    messages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedules(Snapshot):
    """
    A deployment's schedule, with its nodes and queues; no message of it was kept.

    Attributes:
        lock: None where nobody holds one.

        interval_s: The longest that beat sleeps, so that it looks at its schedule so often at least.

        elsewhere: Database in which redbeat keeps its schedule, where it is not the broker's own; no password.

        site: Identity of that database, if it may be changed; empty where it is the broker's own, or may not.

        told_at: Epoch seconds at which beat was last told that the tables of django-celery-beat changed; None where
            there are none, or it never was.
    """

    entries: tuple[ScheduleEntry, ...] = ()
    lock: BeatLock | None = None
    interval_s: float = 300.0
    twice: tuple[SentTwice, ...] = ()
    elsewhere: str = ""
    site: str = ""
    told_at: float | None = None
