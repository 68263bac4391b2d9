"""The file that a server wrote → a copy with its checksum, and what its head says of when it was written."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opslib import redact, urls
from opslib.errors import BadParameter

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.backup import Saving

_PIECE = 1024 * 1024
_HEAD_BYTES = 1024
#: A copy that leaves less of the disk free than this is not made.
_SPARE_BYTES = 64 * 1024 * 1024
#: Seconds by which the clocks of file and server may differ, and by which a save may have begun before it is counted.
_CLOCKS_S = 5.0
_CHECKERS = ("redis-check-rdb", "valkey-check-rdb")
#: What a checker says before it says what is wrong; some counts come after that.
_DETECTED = "--- RDB ERROR DETECTED ---"
_CHECK_WITHIN_S = 600.0
_HERE = {"127.0.0.1", "localhost", "::1", ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """
    What the first bytes of an RDB file say.

    Attributes:
        format: Number of the format.

        by: Version of the server that wrote it; empty if it does not say.

        began_at: When the save began; None if it does not say.
    """

    format: int
    valkey: bool = False
    by: str = ""
    began_at: datetime | None = None


def locate(broker: Broker, saving: Saving, dump_path: str) -> tuple[Path | None, str]:
    """
    Return where the server's dump can be read from here; or None, and why it cannot.

    A server on another machine has its file there. Through a tunnel it may look like one of this machine: so a file is
    taken only if its head says that it is of the last save.

    Args:
        dump_path: Where a person says it is: on a mounted disk, or copied there by hand.

    Raises:
        BadParameter: If there is no readable file where that person says.
    """
    if dump_path:
        path = Path(dump_path).expanduser()
        if not path.is_file() or not os.access(path, os.R_OK):
            raise BadParameter(f"dump_path: {redact.plain(dump_path)!r} is no file that can be read from here.")
        return path, ""
    if saving.untold or not saving.directory:
        return None, f"{saving.untold} Name the file with dump_path, if it can be read from here.".strip()
    path = Path(saving.directory, saving.file)
    if not _is_here(broker.target.broker_url):
        host = (
            "HOST" if broker.target.broker_url.startswith("sentinel:") else urlsplit(broker.target.broker_url).hostname
        )
        how = f"`scp {host}:{path} dump.rdb`, compare `sha256sum` there and here, and name it with dump_path."
        return None, f"The file is {path} on the server's machine, which is another one: {how}"
    if not path.is_file():
        return None, f"The server writes {path}, and there is no such file here: nothing is saved, or it is elsewhere."
    if not os.access(path, os.R_OK):
        return None, f"The server writes {path}, which this user may not read."
    head = read_head(path)
    if isinstance(head, str):
        return None, f"{path}: {head}"
    if not is_of_last_save(head, saving):
        return None, f"{path} is not of the last save that the server knows of, so it may be another server's."
    return path, ""


def _is_here(url: str) -> bool:
    if url.startswith(("unix:", "redis+socket:")):
        return True
    return urls.is_redis(url) and (urlsplit(url).hostname or "") in _HERE and not url.startswith("sentinel:")


def is_of_last_save(head: Head, saving: Saving) -> bool:
    """Whether a dump's own date fits the last save that its server knows of."""
    if head.began_at is None:
        return False
    before_s = (saving.last_save_at - head.began_at).total_seconds()
    return -_CLOCKS_S <= before_s <= max(saving.took_s, 0.0) + _CLOCKS_S


def copy(source: Path, goal: Path) -> tuple[int, str]:
    """
    Copy a dump, readable for its owner only, and return its size and its sha256.

    The server replaces its file by another one and never writes into it, so an opened one stays what it was. Of a copy
    that breaks off, nothing is left.

    Raises:
        OSError: If it cannot be read, there is no room for it, or something is in its place already.
    """
    sha256, size = hashlib.sha256(), 0
    with source.open("rb") as theirs:
        wanted = os.fstat(theirs.fileno()).st_size
        if shutil.disk_usage(goal.parent).free < wanted + _SPARE_BYTES:
            raise OSError(28, f"there is no room for {wanted:,} bytes")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(goal, flags, 0o600), "wb") as ours:
            try:
                while piece := theirs.read(_PIECE):
                    sha256.update(piece)
                    size += len(piece)
                    ours.write(piece)
                ours.flush()
                os.fsync(ours.fileno())
            except BaseException:
                goal.unlink(missing_ok=True)
                raise
    return size, sha256.hexdigest()


def check(path: Path) -> tuple[bool | None, str]:
    """Return what the server's own checker says of a dump: whether it is sound, or None where there is no checker."""
    program = next((found for name in _CHECKERS if (found := shutil.which(name))), "")
    if not program:
        return (
            None,
            f"Neither {' nor '.join(_CHECKERS)} is installed here, so the file's own checksum was not looked at.",
        )
    name = Path(program).name
    try:
        done = subprocess.run(
            [program, str(path)], check=False, capture_output=True, timeout=_CHECK_WITHIN_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{name} did not come to an end: {type(error).__name__}."
    said = redact.plain(done.stdout.decode("utf-8", "replace"))
    if done.returncode == 0:
        return True, f"{name}: the file is sound."
    if "handle RDB format version" in said or "Wrong signature" in said:
        return None, f"{name} is older than the dump, and cannot read it."
    _, _, detected = said.partition(_DETECTED)
    lines = [line.strip() for line in (detected or said).splitlines() if line.strip()] or [""]
    return False, f"{name}: {lines[0 if detected else -1][:200]}"


def read_head(path: Path) -> Head | str:
    """Return what a dump says of itself, or why it is none."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"It cannot be read: {error.strerror}."
    valkey = head.startswith(b"VALKEY")
    digits = head[6:9] if valkey else head[5:9]
    if not (valkey or head.startswith(b"REDIS")) or not digits.isdigit():
        return "It is no RDB file."
    fields = _fields(head[9:])
    began = fields.get(b"ctime", b"")
    return Head(
        format=int(digits),
        valkey=valkey or b"valkey-ver" in fields,
        by=(fields.get(b"valkey-ver") or fields.get(b"redis-ver") or b"").decode("ascii", "replace"),
        began_at=datetime.fromtimestamp(int(began), UTC) if began.isdigit() else None,
    )


def _fields(rest: bytes) -> dict[bytes, bytes]:
    """Return the fields at the head of a dump, as far as they go."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(rest) and rest[at] == 0xFA:
        name, at = _text(rest, at + 1)
        value, at = _text(rest, at)
        if at < 0:
            break
        found[name] = value
    return found


def _text(rest: bytes, at: int) -> tuple[bytes, int]:
    """Return a short text or a number, and where the next one begins; a negative place for what is neither."""
    if not 0 <= at < len(rest):
        return b"", -1
    first = rest[at]
    if first >> 6 == 0:
        end = at + 1 + first
        return rest[at + 1 : end], end if end <= len(rest) else -1
    if (size := {0xC0: 1, 0xC1: 2, 0xC2: 4}.get(first)) and at + 1 + size <= len(rest):
        number = int.from_bytes(rest[at + 1 : at + 1 + size], "little", signed=True)
        return str(number).encode(), at + 1 + size
    return b"", -1
