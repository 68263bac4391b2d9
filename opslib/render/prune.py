"""The archive and an instant → the runs that ended before it, what of theirs is nowhere else; and folders removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from opslib.folders import MANIFEST, NOTEBOOK, PLAN, RECORD, REPORT
from opslib.render import archive

#: What a run says of itself; whatever else is in its folder was kept there before it was taken out of a broker.
_SAID = frozenset({MANIFEST, NOTEBOOK, PLAN, RECORD, REPORT})


@dataclass(frozen=True, kw_only=True, slots=True)
class OldRun:
    """
    A run that began before an instant.

    Attributes:
        size_bytes: Of its files together.

        kept: Names of files that hold what was removed from a broker, and may be the only copy.
    """

    run_id: str
    size_bytes: int
    kept: tuple[str, ...] = ()


def before(root: Path, instant: datetime) -> Iterator[OldRun]:
    """Yield the runs that began before an instant, the newest first."""
    stamp = f"{instant:%Y%m%dT%H%M%SZ}"
    for run in archive.folders(root):
        if run.name < stamp:
            files = [path for path in run.iterdir() if path.is_file() and not path.is_symlink()]
            yield OldRun(
                run_id=run.name,
                size_bytes=sum(path.stat().st_size for path in files),
                kept=tuple(sorted(path.name for path in files if path.name not in _SAID)),
            )


def remove(root: Path, run: Path) -> bool:
    """
    Remove a run's folder with its files, and the folders of its day, month and year once they are empty.

    What is no file of a run, such as a folder within, stays, and the run's folder with it. A link is removed, never
    followed.

    Returns:
        Whether the folder is gone.
    """
    for path in run.iterdir():
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
    with suppress(OSError):
        run.rmdir()
    for parent in run.parents:
        if parent == root:
            break
        with suppress(OSError):
            parent.rmdir()
    return not run.exists()
