"""A folder and a pattern → whether files may be looked for by them, and whether a path is one of these files."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

#: Whoever writes a file for a task may be slow; what was changed within an hour is never anybody's leftover.
YOUNGEST_S = 3600.0
#: Folders of the system: neither they nor anything below.
_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")
#: Folders that hold others' folders: not they themselves, but what is below may be meant.
_SHARED = frozenset(
    f"/{each}"
    for each in ("", "home", "media", "mnt", "opt", "root", "srv", "tmp", "var", "var/lib", "var/log", "var/tmp")
)


def why_not(folder: str) -> str:
    """Return why no file of a folder may be removed, as a sentence; empty if it may."""
    path = PurePosixPath(folder)
    if not folder.startswith("/") or "\0" in folder:
        return f"{folder!r} is no absolute path."
    if ".." in path.parts:
        return f"{folder!r} leads upwards."
    text = "/" + str(path).lstrip("/")
    if text in _SHARED:
        return f"{folder!r} holds more than what tasks leave: name a folder of the application below it."
    if any(text == each or text.startswith(f"{each}/") for each in _SYSTEM):
        return f"{folder!r} is a folder of the system."
    if text in {str(each) for home in _homes() for each in (home, *home.parents)}:
        return f"{folder!r} is a home folder, or holds one: name a folder of the application below it."
    return ""


def _homes() -> list[Path]:
    try:
        home = Path.home()
        return [home, home.resolve()]
    except (RuntimeError, OSError):
        return []


def means_too_much(pattern: str) -> str:
    """Return why a pattern cannot be one, as a sentence; empty if it can."""
    if "/" in pattern or "\0" in pattern:
        return f"{pattern!r} is a path; the glob of a file's name is wanted."
    # What stands between brackets is one of many characters, and so no fixed one.
    if len(re.findall(r"\w", re.sub(r"\[[^]]*\]", "", pattern))) < 2:
        return f"{pattern!r} could be any file: it needs two letters or digits that stand as they are."
    return ""


def fits(path: str, folder: str, pattern: str) -> bool:
    """Whether a path is one of a file in that folder, or below, whose name fits."""
    parts = PurePosixPath(path).parts
    start = PurePosixPath(folder).parts
    inside = parts[: len(start)] == start and len(parts) > len(start) and ".." not in parts
    return inside and path == str(PurePosixPath(path)) and fnmatchcase(parts[-1], pattern)
