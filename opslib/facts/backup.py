"""What a server says of its saving, what its keys look like, and what became of a rehearsed restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from opslib.facts.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """
    How a server keeps its data on disk, as far as it tells.

    Attributes:
        directory, file: Where it writes its RDB file; empty where it does not tell.

        untold: Why it does not tell; empty if it does.

        offered: Whether it has BGSAVE at all; a managed service has not.

        save_points: After how many changes it saves by itself; empty for never, None where it does not tell.

        aof: Whether it keeps an append-only file, from which it starts then, and not from the RDB file.

        aof_folder: Where that is, within the directory.

        last_save_at: When it last wrote an RDB file, or else when it was started.

        uptime_s: How long it has been up; a save that is as old may be none.

        took_s: How long the last save took; negative for none yet.

        fork_s: For how long the last fork stopped it.

        changes: Changes since the last save.

        failing: Whether the last save failed.

        running: Whether one is running.

        used_bytes, rss_bytes, limit_bytes, machine_bytes: Memory: of the data, of the process, what it may use (0 for
            no limit), and of the machine, as the server sees that.

        databases: Keys by database.

        replicas: How many are connected.

        elsewhere: Databases of this deployment on other servers: a dump of this one has nothing of them.
    """

    product: str
    version: str
    directory: str = ""
    file: str = ""
    untold: str = ""
    offered: bool = True
    save_points: str | None = None
    aof: bool = False
    aof_folder: str = ""
    last_save_at: datetime
    uptime_s: float = 0.0
    took_s: float = -1.0
    fork_s: float = 0.0
    changes: int = 0
    failing: bool = False
    running: bool = False
    used_bytes: int = 0
    rss_bytes: int = 0
    limit_bytes: int = 0
    machine_bytes: int = 0
    databases: Mapping[int, int] = field(default_factory=dict)
    replicas: int = 0
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPrint:
    """
    What one key looked like.

    Attributes:
        family: What it is to Celery: "queues", "results" and so on, or "others".

        elements: Of a collection, or bytes of a string.

        digest: Of its value, or of the beginning and the end of a long list or string; empty for what is too large.

        expires_at_ms: When it expires, since the epoch; None for never.
    """

    family: str
    type: str
    elements: int
    digest: str
    expires_at_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """
    Keys of one family and one type, counted.

    Attributes:
        elements: Over all of them; bytes for strings.
    """

    family: str
    type: str
    keys: int
    elements: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """
    The keys of the broker's database at one time.

    Attributes:
        one_of: Of so many keys one was looked at, chosen by its name: the same ones each time.

        prints: What those looked like, by name.
    """

    taken_at: datetime
    keys: int
    one_of: int = 1
    families: tuple[Family, ...] = ()
    prints: Mapping[str, KeyPrint] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saves(Snapshot):
    """
    A deployment with an eye on what is left of it after a loss.

    Attributes:
        saving: What the server says of its saving.

        census: Its keys.
    """

    saving: Saving
    census: Census


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """
    A file that a backup consists of.

    Attributes:
        kind: "dump", the server's own file; or "export", Celery's keys one by one.

        path: Below the archive; empty where it was only rehearsed and is not kept.

        problem: Why it is not there, or not proven, as a sentence.

        note: What was found good about it.
    """

    kind: str
    path: str = ""
    size_bytes: int = 0
    sha256: str = ""
    keys: int = 0
    saved_at: datetime | None = None
    problem: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """
    What a backup holds, compared with the server.

    Attributes:
        of: "dump" or "export".

        by: What read it: a scratch server, or this tool.

        keys: Keys that it holds of the broker's database, or of those that were looked at.

        settled: Keys that looked the same before the backup and after it, so that it has to hold them so.

        same: How many of the settled ones it holds so.

        others: How many of those that it does not are the application's own, which may have changed and changed back.

        differing: Names of settled keys that it does not hold, or holds otherwise; the first of them.

        families: What it holds, by family and type.

        databases: Keys by database, of all that it holds.

        took_s: How long it took to load.

        problem: Why there is nothing to compare, as a sentence.
    """

    of: str
    by: str = ""
    keys: int = 0
    settled: int = 0
    same: int = 0
    others: int = 0
    differing: tuple[str, ...] = ()
    families: tuple[Family, ...] = ()
    databases: Mapping[int, int] = field(default_factory=dict)
    took_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backup:
    """
    What was kept, and what a rehearsed restore of it showed.

    Attributes:
        fresh: Whether it is of a save that this run made; otherwise of whatever lay there, and nothing of it is kept.

        census: The server's keys after it was made.
    """

    fresh: bool
    census: Census
    files: tuple[Kept, ...] = ()
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreStep:
    """
    One step of a restore, in its order.

    Attributes:
        command: What to type, for this deployment; empty where only a person can say.

        why: What happens otherwise.
    """

    title: str
    command: str = ""
    why: str = ""
