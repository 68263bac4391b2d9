"""Files of this machine that were looked at → in the run's folder, if they still are as they were; and back again."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from opslib import settings
from opslib import temporary as rules
from opslib.collectors import temporary as collected
from opslib.errors import Refused
from opslib.plan import Action, Outcome, Status
from opslib.writer import points
from opslib.writer.moves import MOVED

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.settings import TemporaryFolder
    from opslib.writer.primitive import Primitive

OP = "files"
#: An item of the journal, and where in it.
Put = tuple[Mapping[str, Any], tuple[str, int]]
#: So many are on record as about to be moved at once: after a crash these alone are looked for in both places.
_BATCH = 20
_PIECE = 1024 * 1024
#: A disk is not filled to its end for files that nobody needs.
_ROOM = 256 * 1024 * 1024
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHY_NOT = {
    "G": "gone already",
    "C": "changed since they were looked at",
    "O": "open in a process",
    "F": "more than this disk has room for",
    "E": "not to be moved by this user",
}
_NOT_BACK = {
    "X": "A file of that name exists again; it was left as it is.",
    "G": "It is not in the run's folder: it was left where it was, or pruned.",
    "P": "Its folder is not there, or no folder of the target's any more; it stays in the run's folder.",
    "E": "It cannot be written there; it stays in the run's folder.",
    "H": "It is of another machine: undo the run there.",
}


def is_meant(action: Action, path: str, broker: Broker) -> bool:
    """Whether a path is one of a file that the target lets go, and that an action shows."""
    place = broker.target.temporary_files.get(action.source)
    return (
        place is not None
        and action.subject == f"{place.folder}/{place.pattern}"
        and rules.fits(path, place.folder, place.pattern)
    )


def remove(primitive: Primitive, action: Action, folder: Path) -> Outcome:
    """
    Move files into the run's folder, each after the journal has where it was.

    A file that was changed, replaced or opened since it was looked at is left; so is one behind a link.

    Args:
        folder: Of the run.
    """
    place = primitive.broker.target.temporary_files[action.source]
    problem = _why_not(action, place)
    if problem:
        return Outcome(action=action, status=Status.SKIPPED, reason=problem)
    letters: Counter[str] = Counter()
    size = 0
    for start in range(0, len(action.copies), _BATCH):
        some = [(copy.key, copy.sha256) for copy in action.copies[start : start + _BATCH]]
        found = [(path, mark, told) for path, mark in some if (told := _stat(place.folder, path)) is not None]
        letters["G"] += len(some) - len(found)
        sound = [each for each in found if collected.mark(each[2]) == each[1]]
        letters["C"] += len(found) - len(sound)
        busy, _ = collected.opened({(told.st_dev, told.st_ino) for _, _, told in sound})
        free = [each for each in sound if (each[2].st_dev, each[2].st_ino) not in busy]
        letters["O"] += len(sound) - len(free)
        if not free:
            continue
        items = [_item(action, path, told, _name(folder)) for path, _, told in free]
        _journal(primitive, "remove", items)
        points.passed("after-intent-of-files")
        for item, (path, mark, told) in zip(items, free, strict=True):
            letter = _take(place.folder, path, mark, _kept(item))
            letters[letter] += 1
            size += told.st_size if letter == MOVED else 0
    return _outcome(action, letters, size, folder)


def put_back(
    primitive: Primitive, action: Action, found: Sequence[tuple[Mapping[str, Any], tuple[str, int]]]
) -> Outcome:
    """
    Copy files back to where they were, with their rights and times; the run's folder keeps them, too.

    Args:
        found: Items of the journal, and what each undoes.
    """
    letters: Counter[str] = Counter()
    for item, at in found:
        letter = _restore(primitive.broker, item)
        letters[letter] += 1
        if letter in {MOVED, "G"}:
            _journal(primitive, "put", [{**item, "undoes": list(at)}])
    back = letters[MOVED]
    said = [f"{back:,} of {len(found):,} files are back."]
    said += [f"{count:,}: {_NOT_BACK[letter]}" for letter, count in letters.items() if letter in _NOT_BACK]
    status = Status.APPLIED if back or not found else Status.SKIPPED
    return Outcome(action=action, status=status, reason=" ".join(said))


def _why_not(action: Action, place: TemporaryFolder) -> str:
    here = socket.gethostname()
    if action.node != here:
        return f"These are files of {action.node}, and this is {here}. Nothing was moved."
    problem = collected.why_not(place.folder)
    return f"{problem} Nothing was moved." if problem else ""


def _name(folder: Path) -> str:
    """Return the name under which a file is kept, from the archive's root; its own name is in the journal."""
    root = settings.reports_root()
    return str((folder / f"kept-{secrets.token_hex(8)}.file").relative_to(root))


def _item(action: Action, path: str, told: os.stat_result, kept: str) -> dict[str, Any]:
    return {
        "a": action.id,
        "s": action.subject,
        "key": path,
        "name": action.source,
        "kept": kept,
        "host": action.node,
        "mode": stat.S_IMODE(told.st_mode),
        "owner": [told.st_uid, told.st_gid],
        "times": [told.st_atime_ns, told.st_mtime_ns],
        "size": told.st_size,
    }


def _journal(primitive: Primitive, role: str, items: Sequence[Mapping[str, Any]]) -> None:
    receipt = {"op": OP, "role": role, "items": list(items)}
    about = {role: [item["key"] for item in items]}
    primitive.call("note", primitive.keys(), [MOVED * len(items)], receipt=receipt, about=about)


@contextmanager
def _parent(folder: str, path: str) -> Iterator[int]:
    """Open the folder that a file is in, step by step from the configured one: no step may be a link."""
    steps = PurePosixPath(path).relative_to(folder).parts[:-1]
    handle = os.open(folder, _FLAGS)
    try:
        for step in steps:
            further = os.open(step, _FLAGS, dir_fd=handle)
            os.close(handle)
            handle = further
        yield handle
    finally:
        os.close(handle)


def _stat(folder: str, path: str) -> os.stat_result | None:
    """Return what a file is now; None if it is gone, no file, or behind a link."""
    try:
        with _parent(folder, path) as handle:
            told = os.stat(PurePosixPath(path).name, dir_fd=handle, follow_symlinks=False)
    except OSError:
        return None
    return told if stat.S_ISREG(told.st_mode) else None


def _kept(item: Mapping[str, Any]) -> Path:
    """
    Return where a file is kept.

    Raises:
        Refused: If that is outside the archive.
    """
    root = settings.reports_root()
    path = root / str(item["kept"])
    if not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink():
        raise Refused(f"The journal names a file outside the archive: {item['kept']}.")
    return path


def _take(folder: str, path: str, mark: str, kept: Path) -> str:
    """Move one file; return a letter. What turns out to be another one, or to be open, is put back at once."""
    name = PurePosixPath(path).name
    try:
        with _parent(folder, path) as handle:
            told = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if not stat.S_ISREG(told.st_mode) or collected.mark(told) != mark:
                return "C"
            if _other_disk(told, kept.parent):
                return _copied_away(handle, name, mark, kept)
            os.rename(name, kept, src_dir_fd=handle)
            letter = _moved(kept, mark)
            if letter != MOVED:
                os.link(kept, name, dst_dir_fd=handle, follow_symlinks=False)  # it never replaces a newer one
                kept.unlink(missing_ok=True)
                return letter
            _flushed(kept.parent)
    except FileNotFoundError:
        return "G"
    except OSError:
        return "E"
    with suppress(OSError):
        kept.chmod(0o600)  # its own rights are in the journal
    return MOVED


def _other_disk(told: os.stat_result, folder: Path) -> bool:
    return told.st_dev != folder.stat().st_dev


def _moved(kept: Path, mark: str) -> str:
    """Return whether what was moved is what was looked at, and nobody has opened it meanwhile."""
    told = kept.lstat()
    if collected.mark(told) != mark:
        return "C"
    busy, _ = collected.opened({(told.st_dev, told.st_ino)})
    return "O" if busy else MOVED


def _copied_away(handle: int, name: str, mark: str, kept: Path) -> str:
    """Copy a file to the archive's disk, and unlink it once that copy is on it."""
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
    with os.fdopen(source, "rb") as file:
        if shutil.disk_usage(kept.parent).free < os.fstat(source).st_size + _ROOM:
            return "F"
        try:
            _written(file, kept)
            now = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if collected.mark(os.fstat(source)) != mark or collected.mark(now) != mark:
                kept.unlink(missing_ok=True)
                return "C"
        except OSError:
            kept.unlink(missing_ok=True)
            raise
    os.unlink(name, dir_fd=handle)
    return MOVED


def _written(file: Any, path: Path) -> None:  # noqa: ANN401 - an open file
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(target, "wb") as copy:
        while piece := file.read(_PIECE):
            copy.write(piece)
        copy.flush()
        os.fsync(target)
    _flushed(path.parent)


def _flushed(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _restore(broker: Broker, item: Mapping[str, Any]) -> str:
    """Copy one file back, if its place is still one of the target's; return a letter."""
    path, place = str(item["key"]), broker.target.temporary_files.get(str(item["name"]))
    if item["host"] != socket.gethostname():
        return "H"
    if place is None or not rules.fits(path, place.folder, place.pattern) or collected.why_not(place.folder):
        return "P"
    kept, name = _kept(item), PurePosixPath(path).name
    if not kept.is_file():
        return "G"
    beside = f".{name}.{secrets.token_hex(4)}"
    try:
        with _parent(place.folder, path) as handle:
            try:
                _copied_back(kept, handle, beside, item)
                os.link(beside, name, src_dir_fd=handle, dst_dir_fd=handle, follow_symlinks=False)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=handle)
    except FileExistsError:
        return "X"
    except (FileNotFoundError, NotADirectoryError):
        return "P"
    except OSError:
        return "E"
    return MOVED


def _copied_back(kept: Path, handle: int, name: str, item: Mapping[str, Any]) -> None:
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=handle)
    with kept.open("rb") as file, os.fdopen(target, "wb") as copy:
        while piece := file.read(_PIECE):
            copy.write(piece)
        copy.flush()
        with suppress(PermissionError):
            os.fchown(target, *item["owner"])
        os.fchmod(target, int(item["mode"]) & 0o777)
        os.utime(target, ns=(int(item["times"][0]), int(item["times"][1])))
        os.fsync(target)


def _outcome(action: Action, letters: Counter[str], size: int, folder: Path) -> Outcome:
    done = letters[MOVED]
    said = [f"{done:,} files, {size:,} bytes, were moved to {folder.name}."] if done else []
    said += [f"{letters[letter]:,} stay: {why}." for letter, why in _WHY_NOT.items() if letters[letter]]
    status = Status.APPLIED if done else Status.SKIPPED
    return Outcome(action=action, status=status, reason=" ".join(said) or "None is left.")
