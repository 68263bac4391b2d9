"""What is about to be removed for good → a compressed file with a checksum on every line, on the disk, and back."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import secrets
import stat
import zlib
from binascii import b2a_base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from opslib import __version__, records
from opslib.errors import Refused

FILE = "vault.jsonl.gz"
KIND = "vault"
SCHEMA_VERSION = 1

#: The most that one entry may hold: as much as a string of Redis.
LARGEST = 512 * 1024**2
#: Such an entry in base64, with what stands around it. No line is longer, whatever a file claims.
LONGEST_LINE = LARGEST // 3 * 4 + 16 * 1024**2
_LONGEST_HEADER = 64 * 1024
#: How much is handled at once; divisible by 3, so that base64 of pieces is the base64 of the whole.
_PIECE = 3 * 256 * 1024
#: Base64 has little to compress, and somebody is waiting.
_LEVEL = 3
_SEAL = ',"sha256":"{}"}}\n'
_SEAL_LENGTH = len(_SEAL.format("0" * 64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """
    One value as it was.

    Attributes:
        type: string, hash, list, set or zset as Redis calls it, or "message".

        parts: The value alone (string, message), or the server's flat reply: HGETALL, LRANGE, SMEMBERS, or ZRANGE
            WITHSCORES. None of these where only the key's life was changed, and its value stayed.

        expires_at_ms: When it would have expired, since the epoch; None for never.

        note: What else is needed to put it back; JSON values.
    """

    key: bytes
    type: str
    parts: tuple[bytes, ...]
    expires_at_ms: int | None = None
    note: dict[str, Any] = field(default_factory=dict)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """
    Whose vault it is.

    Attributes:
        broker: Fingerprint of the server that the values were on.
    """

    run_id: str
    target: str
    broker: str
    created_at: str = msgspec.field(default_factory=records.now)
    tool_version: str = __version__
    kind: str = KIND
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """
    What is on the disk, and was read back from it.

    Attributes:
        sha256: Over all lines before the last, as the last line has it.

        size: Bytes of the file.
    """

    path: Path
    entries: int
    sha256: str
    size: int


class _About(msgspec.Struct, frozen=True):
    """A line without its parts."""

    key: bytes
    type: str
    expires_at_ms: int | None
    note: dict[str, Any]


def free(folder: Path) -> Path:
    """Return the name of the next vault of a run's folder: none is ever written again."""
    further = (folder / FILE.replace(".", f"-{part}.", 1) for part in itertools.count(2))
    return next(path for path in itertools.chain([folder / FILE], further) if not path.exists())


def write(path: Path, header: Header, entries: Iterable[Kept]) -> Receipt:
    """
    Write a vault beside its place, read it back, and only then give it its name (mode 0600).

    Of the entries, only one is held in memory at a time. An error that `entries` raises comes through, and leaves
    nothing behind.

    Raises:
        Refused: If there is such a file already, it cannot be written, or an entry is too large.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with _disk(path):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "there is one already")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(temporary, flags, 0o600), "wb")
    try:
        writer = _Writer(file)
        with _disk(path):
            writer.plain(json.dumps(msgspec.to_builtins(header), separators=(",", ":")).encode() + b"\n")
        for kept in entries:
            pieces = _pieces(kept)
            with _disk(path):
                writer.sealed(pieces)
        with _disk(path):
            writer.finish()
            receipt = Receipt(
                path=path,
                entries=writer.entries,
                sha256=writer.sha256.hexdigest(),
                size=os.fstat(file.fileno()).st_size,
            )
            _compare(temporary, header, receipt)
            _rename(temporary, path)
    finally:
        with suppress(OSError):
            file.close()  # after an error there is no buffer worth flushing
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return receipt


def read(path: Path) -> tuple[Header, Iterator[Kept]]:
    """
    Make sure that a vault is whole, and return whose it is, and its entries one by one.

    It is read twice: an entry of a file that turns out to be cut off must not have been put back by then.

    Raises:
        Refused: If the file cannot be read, is no vault of this schema, was cut off, or a line of it was altered.
    """
    first = _Pass(path)
    for _ in first.entries():
        pass
    return cast("Header", first.header), _Pass(path, expected=first.sha256.digest()).entries()


class _Writer:
    """Lines → compressed and flushed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.sha256 = hashlib.sha256()
        self.entries = 0
        self._file = file
        self._zip = gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=_LEVEL)
        self._waiting = bytearray()

    def plain(self, line: bytes) -> None:
        self._put(line)

    def sealed(self, pieces: Iterable[bytes]) -> None:
        line = hashlib.sha256()
        for piece in pieces:
            line.update(piece)
            self._put(piece)
        self._put(_SEAL.format(line.hexdigest()).encode())
        self.entries += 1

    def finish(self) -> None:
        """Write the trailer, and have all of it on the disk."""
        self._flush()
        self._zip.write(_trailer(self.entries, self.sha256.hexdigest()))
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):  # what is read back should come from the disk, where the system can do that
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _put(self, piece: bytes) -> None:
        self._waiting += piece
        if len(self._waiting) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        self.sha256.update(self._waiting)
        self._zip.write(self._waiting)
        self._waiting.clear()


def _pieces(kept: Kept) -> Iterator[bytes]:
    """Return an entry's line in pieces, up to its seal, after its length was found to be possible."""
    key = b2a_base64(kept.key, newline=False)
    about = {"type": kept.type, "expires_at_ms": kept.expires_at_ms, "note": kept.note}
    end = json.dumps(about, separators=(",", ":"))[1:-1].encode()
    length = len(key) + len(end) + sum(4 * ((len(part) + 2) // 3) + 3 for part in kept.parts)
    if length > LONGEST_LINE - 1024:
        raise Refused(
            f"{kept.key.decode('utf-8', 'backslashreplace')!r} is too large to be kept in a file "
            f"({sum(map(len, kept.parts)):,} bytes). Nothing was removed."
        )

    def pieces() -> Iterator[bytes]:
        yield b'{"key":"' + key + b'","parts":['
        before = b'"'
        for part in kept.parts:
            yield before
            view = memoryview(part)
            for at in range(0, len(part), _PIECE):
                yield b2a_base64(view[at : at + _PIECE], newline=False)
            before = b'","'
        yield (b'"],' if kept.parts else b"],") + end

    return pieces()


def _trailer(entries: int, sha256: str) -> bytes:
    return f'{{"entries":{entries},"sha256":"{sha256}"}}\n'.encode()


def _compare(temporary: Path, header: Header, receipt: Receipt) -> None:
    """Read back what was written; it has to be that, to the byte."""
    again = _Pass(temporary)
    with suppress(Refused):
        for _ in again.entries():
            pass
    if (again.header, again.count, again.sha256.hexdigest()) != (header, receipt.entries, receipt.sha256):
        raise OSError(errno.EIO, "what was read back is not what was written")


def _rename(temporary: Path, path: Path) -> None:
    """Give a file its name, unless that is taken by now; the name is on the disk when this returns."""
    try:
        os.link(temporary, path, follow_symlinks=False)  # unlike a rename, it never replaces a file
    except FileExistsError:
        raise
    except OSError:  # some file systems know no links
        if os.path.lexists(path):
            raise
        temporary.replace(path)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        path.unlink(missing_ok=True)
        raise


class _Pass:
    """
    One pass over a vault, line by line.

    Attributes:
        header: Once it was read.

        count: Entries so far.

        sha256: Over the lines so far, but the last.
    """

    def __init__(self, path: Path, *, expected: bytes = b"") -> None:
        self.header: Header | None = None
        self.count = 0
        self.sha256 = hashlib.sha256()
        self._path, self._expected = path, expected

    def entries(self) -> Iterator[Kept]:
        """Yield each entry after its seal was compared; raise `Refused` at the first thing that is not as it was."""
        with _damage(self._path), _opened(self._path) as file:
            line = self._line(file, _LONGEST_HEADER)
            self.header = self._whose(line)
            self.sha256.update(line)
            while not (line := self._line(file, LONGEST_LINE)).startswith(b'{"entries":'):
                kept = self._entry(line)
                self.sha256.update(line)
                self.count += 1
                yield kept
            if line != _trailer(self.count, self.sha256.hexdigest()):
                raise self._refusal("its last line does not fit the others: one was altered, added or taken away")
            if file.read(1):
                raise self._refusal("something stands after its end")
            if self._expected not in {b"", self.sha256.digest()}:
                raise self._refusal("it was replaced while it was read")

    def _line(self, file: IO[bytes], longest: int) -> bytearray:
        """Read a line piece by piece: one without an end is told from its first piece, or at the limit."""
        line = bytearray()
        while piece := file.readline(_PIECE):
            line += piece
            if not line.startswith(b'{"'):
                raise self._refusal(f"{self._here} is none of a vault's")
            if line.endswith(b"\n"):
                return line
            if len(line) > longest:
                raise self._refusal(f"{self._here} is longer than any line of a vault")
        raise self._refusal("it was cut off")

    def _whose(self, line: bytearray) -> Header:
        try:
            found = json.loads(line)
            if found.get("kind") != KIND:
                raise self._refusal("it is no vault")
            if found.get("schema_version") != SCHEMA_VERSION:
                raise self._refusal(f"another release wrote it; this one reads schema {SCHEMA_VERSION}")
            return msgspec.convert(found, Header)
        except (ValueError, AttributeError, RecursionError, msgspec.MsgspecError):
            raise self._refusal("its first line does not say whose it is") from None

    def _entry(self, line: bytearray) -> Kept:
        with memoryview(line) as view:
            if line[-_SEAL_LENGTH:] != _SEAL.format(hashlib.sha256(view[:-_SEAL_LENGTH]).hexdigest()).encode():
                raise self._refusal(f"{self._here} was altered")
            start, end = line.find(b"["), line.find(b"]")  # base64 has neither, and no other list stands before
            try:
                parts = msgspec.json.decode(view[start : end + 1], type=tuple[bytes, ...])
                about = msgspec.convert(json.loads(line[:start] + b"null" + line[end + 1 :]), _About)
            except (ValueError, RecursionError, msgspec.MsgspecError):
                raise self._refusal(f"{self._here} is no entry") from None
        return Kept(key=about.key, type=about.type, parts=parts, expires_at_ms=about.expires_at_ms, note=about.note)

    @property
    def _here(self) -> str:
        return f"line {self.count + 2 if self.header else 1}"

    def _refusal(self, why: str) -> Refused:
        return _unusable(self._path, why)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a vault; a pipe or a device in its place is not waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _unusable(path, "it is no file")
        with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
            yield cast("IO[bytes]", io.BufferedReader(cast("io.RawIOBase", unzipped), _PIECE))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise _unusable(path, "it was cut off") from None
    except (zlib.error, gzip.BadGzipFile):
        raise _unusable(path, "it is no compressed file, or was damaged") from None
    except OSError as error:
        raise _unusable(path, f"{error.strerror}") from None


def _unusable(path: Path, why: str) -> Refused:
    return Refused(
        f"The vault {path} cannot be used: {why}.", hint="Nothing was put back. Look for a copy of the file."
    )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            f"The vault {path} cannot be written: {error.strerror}. Nothing was removed.",
            hint="What cannot be kept is not removed: see to the folder, or set OPS_REPORTS to another.",
        ) from None
