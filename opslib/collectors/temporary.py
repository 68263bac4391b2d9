"""A folder of this machine and a pattern → the files that are old, that nobody has open, and that are no links."""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from opslib import settings
from opslib import temporary as rules
from opslib.durations import seconds
from opslib.facts.remains import TemporaryFile, TemporaryFiles

if TYPE_CHECKING:
    from collections.abc import Collection

    from opslib.settings import TemporaryFolder

#: Files of one folder that one run deals with; the others wait for the next.
MOST_FILES = 1_000
_PROCESSES = Path("/proc")


def look(name: str, place: TemporaryFolder) -> TemporaryFiles:
    """
    Look through a folder and what is below it, on its own file system, and follow no link.

    Args:
        name: What the target calls it.
    """
    found = TemporaryFiles(
        name=name,
        folder=place.folder,
        pattern=place.pattern,
        older_than_s=seconds(place.older_than, "older_than"),
        host=socket.gethostname(),
    )
    problem = why_not(place.folder)
    if problem:
        return replace(found, problem=problem)
    rows: list[TemporaryFile] = []
    inodes: dict[str, tuple[int, int]] = {}
    links = young = 0
    now = time.time()
    try:
        device = Path(place.folder).lstat().st_dev
        for root, folders, files, handle in os.fwalk(place.folder, follow_symlinks=False):
            folders[:] = [each for each in folders if _is_of(each, handle, device)]
            for each in filter(lambda each: fnmatchcase(each, place.pattern), files):
                with suppress(FileNotFoundError):
                    told = os.stat(each, dir_fd=handle, follow_symlinks=False)
                    if not stat.S_ISREG(told.st_mode):
                        links += 1
                    elif now - told.st_mtime < found.older_than_s:
                        young += 1
                    elif rules.fits(path := os.path.join(root, each), place.folder, place.pattern):  # noqa: PTH118
                        age_s = now - told.st_mtime
                        rows.append(TemporaryFile(path=path, size_bytes=told.st_size, age_s=age_s, mark=mark(told)))
                        inodes[path] = (told.st_dev, told.st_ino)
    except OSError as error:
        return replace(found, problem=f"{place.folder} cannot be read: {error.strerror}.")
    busy, unread = opened(set(inodes.values())) if rows else (set(), 0)
    free = sorted((row for row in rows if inodes[row.path] not in busy), key=lambda row: (-row.age_s, row.path))
    return replace(
        found,
        rows=tuple(free[:MOST_FILES]),
        open=len(rows) - len(free),
        links=links,
        young=young,
        more=max(0, len(free) - MOST_FILES),
        unread=unread,
    )


def why_not(folder: str) -> str:
    """Return why a folder is not looked into, as a sentence; empty if it may be."""
    path = Path(folder)
    if problem := rules.why_not(folder):
        return problem
    try:
        if path.is_symlink():
            return f"{folder} is a symbolic link: name the folder itself."
        if not path.is_dir():
            return f"{folder} is not there, or no folder, on {socket.gethostname()}."
        resolved, archive = path.resolve(), settings.reports_root().resolve()
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}."
    if problem := rules.why_not(str(resolved)):
        return f"{folder} leads to {resolved}. {problem}"
    if archive.is_relative_to(resolved) or resolved.is_relative_to(archive):
        return f"{folder} holds the archive of runs, or is part of it."
    return ""


def mark(told: os.stat_result) -> str:
    """Return by what a file is known again: which one it is, how long, and when it was last changed."""
    return f"{told.st_dev}:{told.st_ino}:{told.st_size}:{told.st_mtime_ns}"


def opened(inodes: Collection[tuple[int, int]]) -> tuple[set[tuple[int, int]], int]:
    """Return which of these files a process of this machine has open, and how many processes do not say."""
    found: set[tuple[int, int]] = set()
    unread = 0
    if not _PROCESSES.is_dir():
        return found, 1
    for each in os.listdir(_PROCESSES):  # noqa: PTH208 - a name is all that is needed
        if not each.isdigit():
            continue
        try:
            handles = os.listdir(_PROCESSES / each / "fd")  # noqa: PTH208 - as above
        except PermissionError:
            unread += 1
            continue
        except OSError:
            continue  # it has ended
        for handle in handles:
            with suppress(OSError):
                told = os.stat(_PROCESSES / each / "fd" / handle)  # noqa: PTH116 - a Path for each costs more
                if (told.st_dev, told.st_ino) in inodes:
                    found.add((told.st_dev, told.st_ino))
    return found, unread


def _is_of(name: str, handle: int, device: int) -> bool:
    """Whether a folder is one, on the same file system, and no link."""
    try:
        told = os.stat(name, dir_fd=handle, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(told.st_mode) and told.st_dev == device
