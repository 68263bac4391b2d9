"""The demo's folder ⇄ one row: what runs there, and whether it still does."""

from __future__ import annotations

import fcntl
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
from platformdirs import user_runtime_path

from opslib import redact
from opslib.demo import ledger
from opslib.demo.faults import Fault
from opslib.errors import OpsError, SettingsError

STATE = "demo.json"
PROGRESS = "progress.log"
SUPERVISOR = "supervisor"
NODES = ("doomed", "imports", "clerk", "crowd")
#: Everything that the demo ever writes into its folder; nothing else in there is touched.
FILES = (
    *(STATE, f"{STATE}.new", PROGRESS, "server.log", "server.rdb", f"{SUPERVISOR}.log"),
    *(f"{node}.log" for node in NODES),
    *(f"{ledger.FILE}{part}" for part in ("", "-wal", "-shm", "-journal")),
)
#: The folder of the server's log of changes, and what its files begin with.
CHANGES, CHANGES_FILE = "server.changes", "changes.aof"


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """
    A demo as its supervisor describes it.

    Attributes:
        url: Broker and result backend, with the password; empty until the server answers.

        folder: Where its state and logs are.

        pid: Of the supervisor, which owns every other process.

        processes: Pids by name: the server, and the workers that were started (some of them to be killed).

        faults: What is wrong with it; complete once it is ready.

        ready: Whether every fault has been made and was seen in Redis.

        error: Why it could not be made ready; empty if nothing went wrong.
    """

    url: str = field(default="", repr=False)
    folder: Path
    pid: int
    started_at: datetime
    processes: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    ready: bool = False
    error: str = ""


class DemoFailed(OpsError):
    """Raised when the demo cannot be made or ended."""


def place(folder: Path | None) -> Path:
    """
    Return the demo's folder: `folder`, else OPS_DEMO_DIR, else one in the user's runtime directory. It need not exist.

    Raises:
        SettingsError: If it is not ours alone: the broker's password will be in it.
    """
    named = os.environ.get("OPS_DEMO_DIR")
    chosen = (folder or (Path(named) if named else _default_place())).expanduser().absolute()
    try:
        facts = chosen.lstat()
    except OSError:
        return chosen
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise SettingsError(
            f"The demo's folder {chosen} is a link or a file, belongs to someone else, or may be written by others.",
            hint="Set OPS_DEMO_DIR to a folder of your own with mode 0700.",
        )
    return chosen


def _default_place() -> Path:
    with warnings.catch_warnings():
        # platformdirs warns where a container has no runtime directory; what it names in its place is checked as any.
        warnings.simplefilter("ignore")
        return user_runtime_path("opslib") / "demo"


def make_place(folder: Path | None) -> Path:
    """
    Return the demo's folder as `place` does, made if there is none.

    Raises:
        SettingsError: If it cannot be made, or is not ours alone.
    """
    chosen = place(folder)
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"The demo's folder {chosen} cannot be made: {reason}.", hint="Set OPS_DEMO_DIR.") from None
    return place(chosen)


def write(demo: Demo) -> None:
    """Replace the state in one step, readable by its owner only."""
    new = demo.folder / f"{STATE}.new"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(demo, enc_hook=str))
    new.replace(demo.folder / STATE)


def read(folder: Path) -> Demo | None:
    """Return what the folder's state says, true or stale; None if there is none, or none of ours."""
    try:
        demo = msgspec.json.decode((folder / STATE).read_bytes(), type=Demo, dec_hook=_path)
    except (OSError, msgspec.DecodeError):
        return None
    redact.remember(demo.url)
    return demo


def clean(folder: Path) -> None:
    """Remove what a demo wrote into its folder; for its owner, everybody else calls `sweep`."""
    changes = folder / CHANGES
    halves = [*folder.glob("temp-rewriteaof-*.aof"), *folder.glob("temp-[0-9]*.rdb")]  # of a server that was killed
    for path in (*(folder / name for name in FILES), *halves, *changes.glob(f"{CHANGES_FILE}.*")):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        changes.rmdir()


def own(folder: Path) -> bool:
    """
    Own the folder's demo for the rest of this process's life; False if another process does.

    The kernel ends it with the process, whatever that dies of. A pid in a file cannot tell as much: it may be reused.
    """
    # The folder itself is locked: a lock file could not be removed at the end without a race.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def is_owned(folder: Path) -> bool:
    """Say whether a supervisor lives that owns the folder's demo."""
    with _looking(folder) as free:
        return not free


def sweep(folder: Path) -> bool:
    """Remove what a dead demo left in its folder; False, and nothing removed, if a supervisor lives."""
    with _looking(folder) as free:
        if free:
            clean(folder)
        return free


@contextmanager
def _looking(folder: Path) -> Iterator[bool]:
    """Yield whether no supervisor lives; none can begin before the block ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        # Shared, so that two who look at once do not take each other for a supervisor.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _path(_: type, value: object) -> Path:
    """Decode the one type of a state that JSON and msgspec do not know."""
    return Path(str(value))
