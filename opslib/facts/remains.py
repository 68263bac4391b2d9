"""What is left beside results: quarantines that nobody needs, keys of groups, saved states, an application's, files."""

from __future__ import annotations

from dataclasses import dataclass

from opslib.facts.app_keys import FoundKey, KeyScan
from opslib.facts.messages import Quarantined


@dataclass(frozen=True, kw_only=True, slots=True)
class OldQuarantine:
    """
    What one run took out of circulation, longer ago than quarantines are kept.

    Attributes:
        age_s: Since the last sign of the run: its record, a batch in the broker's audit, or its id.

        stays: Why it is not to be dropped, as a sentence; empty if it may be.
    """

    run_id: str
    age_s: float
    lists: tuple[Quarantined, ...]
    stays: str = ""

    @property
    def count(self) -> int:
        """How many messages it holds."""
        return sum(each.count for each in self.lists)

    @property
    def size_bytes(self) -> int:
        """What they weigh in the server."""
        return sum(each.size_bytes for each in self.lists)


@dataclass(frozen=True, kw_only=True, slots=True)
class OldKeys:
    """
    Keys of one kind that were kept long enough, counted.

    Attributes:
        name: "groups" or "checkpoints".

        root: What the key of each begins with.

        site: Fingerprint of their database.

        count, size_bytes: Of those that may go, as far as their names, their age and the messages tell.

        keep_s: How long they are kept.

        in_use: How many are old enough and stay: a message in circulation names them, or their task can still be run.

        doubtful: Tasks that run, and of which nobody can say to which group they belong.

        more: Whether there are more than are looked at in one run.

        undated: Of how many the server does not say for how long nobody has touched them.

        unseen: Why none of them may go, a sentence each; empty if everything was seen.
    """

    name: str
    root: str
    site: str
    count: int = 0
    size_bytes: int = 0
    keep_s: float = 0.0
    in_use: int = 0
    doubtful: int = 0
    more: bool = False
    undated: int = 0
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class AppRemains:
    """
    What an application has kept for tasks that are over, under one name.

    Attributes:
        scan: All keys of that name, and those that nobody has read or written for longer than `keep_s`.

        rows: Of these, those whose tasks are over.

        unseen: Why none of them may go, a sentence each.
    """

    scan: KeyScan
    rows: tuple[FoundKey, ...] = ()
    keep_s: float = 0.0
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporaryFile:
    """
    A file that a task may have left.

    Attributes:
        path: Absolute; inside its folder, and no part of it below that folder is a link.

        mark: Of what it was when it was looked at: device, inode, size and time of its last change.
    """

    path: str
    size_bytes: int
    age_s: float
    mark: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporaryFiles:
    """
    The files of one configured folder that fit its pattern.

    Attributes:
        name: What the target calls them.

        host: Machine that was looked at; of other machines nothing is known.

        rows: Those that may go, the oldest first.

        open: How many are old enough, and open in a process.

        links: How many fit and are symbolic links, or no files: left alone.

        young: How many fit, and were changed since.

        more: How many are old enough beside the rows.

        problem: Why the folder was not looked into, as a sentence.

        unread: How many processes did not say which files they have open.
    """

    name: str
    folder: str
    pattern: str
    older_than_s: float
    host: str
    rows: tuple[TemporaryFile, ...] = ()
    open: int = 0
    links: int = 0
    young: int = 0
    more: int = 0
    problem: str = ""
    unread: int = 0

    @property
    def size_bytes(self) -> int:
        """What those weigh that may go."""
        return sum(row.size_bytes for row in self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class OldReports:
    """
    Runs in the archive of this machine that are old.

    Attributes:
        kept: How many of them hold what was taken out of a broker, and so are not pruned without a word of their own.
    """

    count: int = 0
    size_bytes: int = 0
    kept: int = 0
    older_than_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Remains:
    """
    All of it.

    Attributes:
        quarantine_after_s: How long what runs took out of circulation is kept.
    """

    quarantines: tuple[OldQuarantine, ...] = ()
    quarantine_after_s: float = 0.0
    groups: OldKeys | None = None
    checkpoints: OldKeys | None = None
    apps: tuple[AppRemains, ...] = ()
    files: tuple[TemporaryFiles, ...] = ()
    reports: OldReports | None = None
