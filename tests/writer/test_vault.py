"""What was put into a vault comes out of it to the byte, or the vault says what is wrong with it."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opslib.errors import Exit, Refused
from opslib.writer import vault
from opslib.writer.vault import Header, Kept

HEADER = Header(run_id="20261121T030000Z-trial-abc123", target="trial", broker="a/b/0/")
SOME = (
    Kept(key=b"celery-task-meta-1", type="string", parts=(b'{"status": "SUCCESS"}',), expires_at_ms=1_800_000_000_000),
    Kept(key=b"\xff\x00]", type="hash", parts=(b"a", b"", b"]", b"\n\x00\xfe"), note={"queue": "a]b", "score": 1.5}),
    Kept(key=b"", type="set", parts=()),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)
kept = st.builds(
    Kept,
    key=st.binary(max_size=64),
    type=st.sampled_from(["string", "hash", "list", "set", "zset", "message"]) | st.text(st.characters(), max_size=9),
    parts=st.lists(st.binary(max_size=300), max_size=6).map(tuple),
    expires_at_ms=st.none() | st.integers(),
    note=st.dictionaries(st.text(st.characters(), max_size=9), json_values, max_size=4),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the vault is to be."""
    return tmp_path / vault.FILE


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of a vault."""
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def put_lines(path: Path, lines: list[bytes]) -> None:
    """Make a file of these lines, compressed as a vault is."""
    path.write_bytes(gzip.compress(b"".join(lines)))


def sealed(line: bytes) -> bytes:
    """Return an entry with the seal that fits it."""
    body = line[: line.rindex(b',"sha256"')]
    return body + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def ended(lines: list[bytes]) -> list[bytes]:
    """Return lines with the trailer that fits them."""
    return [*lines, vault._trailer(len(lines) - 1, hashlib.sha256(b"".join(lines)).hexdigest())]


class TestRoundTrip:
    """What goes in comes out."""

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(entries=st.lists(kept, max_size=6), run_id=st.text(st.characters(), max_size=20))
    def test_any_bytes(self, path: Path, entries: list[Kept], run_id: str) -> None:
        """Keys, values and notes of any kind, in their order; and the receipt counts them."""
        path.unlink(missing_ok=True)
        header = Header(run_id=run_id, target="trial", broker="")

        receipt = vault.write(path, header, iter(entries))
        found, back = vault.read(path)

        assert (found, list(back)) == (header, entries)
        assert (receipt.entries, receipt.size) == (len(entries), path.stat().st_size)

    @pytest.mark.parametrize("length", [vault._PIECE - 1, vault._PIECE, vault._PIECE + 1, 3 * vault._PIECE + 2])
    def test_values_of_several_pieces(self, path: Path, length: int) -> None:
        """Base64 of pieces is base64 of the whole only if they are cut where it allows."""
        entries = [Kept(key=b"k", type="string", parts=(os.urandom(length), b"x"))] * 2

        vault.write(path, HEADER, entries)

        assert list(vault.read(path)[1]) == entries

    def test_anybody_can_read_it(self, path: Path) -> None:
        """It is a gzip of JSON lines, with nothing in it that only this tool knows."""
        receipt = vault.write(path, HEADER, SOME)

        header, *entries, trailer = (json.loads(line) for line in lines_of(path))
        assert (header["schema_version"], header["kind"], header["run_id"]) == (1, "vault", HEADER.run_id)
        assert set(header) == {"schema_version", "kind", "run_id", "target", "broker", "created_at", "tool_version"}
        assert [set(entry) for entry in entries] == [
            {"key", "parts", "type", "expires_at_ms", "note", "sha256"} for _ in SOME
        ]
        assert trailer == {"entries": 3, "sha256": hashlib.sha256(b"".join(lines_of(path)[:-1])).hexdigest()}
        assert receipt.sha256 == trailer["sha256"]

    def test_endless_scores(self, path: Path) -> None:
        """A score may be infinite, and a note may hold one."""
        entry = Kept(key=b"unacked_index", type="zset", parts=(b"tag", b"inf"), note={"score": float("inf")})

        vault.write(path, HEADER, [entry])

        assert list(vault.read(path)[1]) == [entry]


class TestWriting:
    """All of it is on the disk under its name, or nothing is."""

    def test_only_its_owner_may_read_it(self, path: Path) -> None:
        """Values are customers' data."""
        vault.write(path, HEADER, SOME)

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("there", ["file", "link", "dangling link"])
    def test_nothing_is_overwritten(self, path: Path, there: str) -> None:
        """What an earlier run kept may be the only copy."""
        elsewhere = path.with_name("elsewhere")
        if there == "file":
            path.write_text("precious")
        else:
            path.symlink_to(elsewhere)
            if there == "link":
                elsewhere.write_text("precious")

        with pytest.raises(Refused, match="there is one already") as told:
            vault.write(path, HEADER, SOME)

        assert told.value.exit_code is Exit.REFUSED
        assert [each.read_text() for each in path.parent.iterdir() if each.exists()] in (
            [],
            ["precious"],
            ["precious"] * 2,
        )
        assert elsewhere.exists() is (there == "link")

    def test_a_file_that_comes_meanwhile_is_not_overwritten_either(self, path: Path) -> None:
        """It was not there when the writing began."""

        def entries() -> Iterator[Kept]:
            yield from SOME
            path.write_text("precious")

        with pytest.raises(Refused, match="File exists"):
            vault.write(path, HEADER, entries())

        assert [each.read_text() for each in path.parent.iterdir()] == ["precious"]

    def test_a_file_system_without_links(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file gets its name all the same, and takes nobody else's."""

        def no_links(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)

        def late() -> Iterator[Kept]:
            (path.parent / "late").write_text("precious")
            yield from SOME

        vault.write(path, HEADER, SOME)
        assert list(vault.read(path)[1]) == list(SOME)
        with pytest.raises(Refused):
            vault.write(path.parent / "late", HEADER, late())
        assert (path.parent / "late").read_text() == "precious"

    @pytest.mark.parametrize("where", ["no-such-folder", "a-file"])
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, where: str) -> None:
        """It is refused with a sentence."""
        (tmp_path / "a-file").write_text("precious")

        with pytest.raises(Refused, match=r"cannot be written: .*\. Nothing was removed\."):
            vault.write(tmp_path / where / vault.FILE, HEADER, SOME)

        assert [each.name for each in tmp_path.iterdir()] == ["a-file"]

    @pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only to root")
    def test_a_folder_that_is_read_only(self, path: Path) -> None:
        """It is refused with a sentence."""
        path.parent.chmod(0o500)

        with pytest.raises(Refused, match="Permission denied"):
            vault.write(path, HEADER, SOME)

        path.parent.chmod(0o700)
        assert list(path.parent.iterdir()) == []

    def test_a_full_disk(self, path: Path) -> None:
        """No more than some bytes fit; what fitted is taken away again."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
        try:
            with pytest.raises(Refused, match="cannot be written: File too large"):
                vault.write(path, HEADER, [Kept(key=b"k", type="string", parts=(os.urandom(3_000_000),))])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        assert list(path.parent.iterdir()) == []

    @pytest.mark.parametrize("error", [RuntimeError("the server is gone"), ConnectionResetError(104, "reset")])
    def test_an_error_of_the_source_comes_through(self, path: Path, error: Exception) -> None:
        """It is not the disk's, even where it is of the same kind; and nothing is left behind."""

        def entries() -> Iterator[Kept]:
            yield SOME[0]
            raise error

        with pytest.raises(type(error)):
            vault.write(path, HEADER, entries())

        assert list(path.parent.iterdir()) == []

    @pytest.mark.parametrize("keep", [0, 5_000])
    def test_what_is_read_back_is_compared(self, path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
        """A disk that says yes and keeps something else is found out before anything is removed."""
        fsync = os.fsync

        def lying(handle: int) -> None:
            fsync(handle)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.ftruncate(handle, keep)

        monkeypatch.setattr(os, "fsync", lying)

        with pytest.raises(Refused, match="what was read back is not what was written"):
            vault.write(path, HEADER, [Kept(key=b"k", type="string", parts=(os.urandom(20_000),))])

        assert list(path.parent.iterdir()) == []

    def test_another_whole_vault_is_not_what_was_written(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is compared, and not only looked at whether it is whole."""
        other = path.with_name("other")
        vault.write(other, HEADER, SOME[:1])
        fsync = os.fsync

        def swapping(handle: int) -> None:
            fsync(handle)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.ftruncate(handle, 0)
                os.pwrite(handle, other.read_bytes(), 0)

        monkeypatch.setattr(os, "fsync", swapping)

        with pytest.raises(Refused, match="what was read back"):
            vault.write(path, HEADER, SOME)

        assert not path.exists()

    def test_a_name_that_is_not_on_the_disk_is_taken_away(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the folder cannot be flushed, a second attempt does not find the first one in its way."""
        fsync = os.fsync

        def failing(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(errno.EIO, "Input/output error")
            fsync(handle)

        monkeypatch.setattr(os, "fsync", failing)

        with pytest.raises(Refused, match="Input/output error"):
            vault.write(path, HEADER, SOME)

        assert list(path.parent.iterdir()) == []

    def test_file_and_folder_are_flushed(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file before it gets its name, the folder after."""
        flushed = []
        fsync = os.fsync

        def watched(handle: int) -> None:
            flushed.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", watched)

        vault.write(path, HEADER, SOME)

        assert flushed == [(False, False), (True, True)]

    def test_a_death_in_the_middle_leaves_no_vault(self, path: Path) -> None:
        """SIGKILL gives no time to tidy up; the name is given last."""
        code = """
import os, signal, sys
from pathlib import Path
from opslib.writer import vault
def entries():
    for n in range(50):
        yield vault.Kept(key=b"k", type="string", parts=(os.urandom(200_000),))
        if n == 40:
            os.kill(os.getpid(), signal.SIGKILL)
vault.write(Path(sys.argv[1]), vault.Header(run_id="r", target="t", broker="b"), entries())
"""
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)

        assert done.returncode == -signal.SIGKILL
        assert not path.exists()
        (left,) = path.parent.iterdir()
        assert left.stat().st_size > 1_000_000
        with pytest.raises(Refused, match="it was cut off"):
            vault.read(left)
        vault.write(path, HEADER, SOME)  # what is left does not stand in the way
        assert list(vault.read(path)[1]) == list(SOME)

    def test_too_large_an_entry(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What could not be read back is not written; up to there it can be."""
        monkeypatch.setattr(vault, "LONGEST_LINE", 100_000)
        fitting = Kept(key=b"k", type="string", parts=(bytes(74_000),))

        vault.write(path, HEADER, [fitting])
        assert list(vault.read(path)[1]) == [fitting]
        for entry in (
            replace(fitting, parts=(bytes(75_000),)),
            replace(fitting, parts=(b"",) * 40_000),
            replace(fitting, key=bytes(100_000)),
            replace(fitting, note={"x": "x" * 100_000}),
        ):
            with pytest.raises(Refused, match="too large to be kept"):
                vault.write(path.with_name("other"), HEADER, [entry])
        assert [each.name for each in path.parent.iterdir()] == [path.name]


class TestReading:
    """A vault that is not whole gives nothing at all."""

    def test_every_byte_counts(self, path: Path) -> None:
        """With any byte flipped, the file is refused, or reads as if it were not."""
        vault.write(path, HEADER, SOME)
        good = path.read_bytes()
        refused = 0
        for at in range(len(good)):
            for bit in (0x01, 0x20, 0x80):
                path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
                try:
                    header, entries = vault.read(path)
                    assert (header, list(entries)) == (HEADER, list(SOME))
                except Refused:
                    refused += 1

        assert refused > 3 * len(good) - 30  # a time and flags in gzip's own header change nothing

    def test_every_cut_is_refused(self, path: Path) -> None:
        """Wherever the file ends too early."""
        vault.write(path, HEADER, SOME)
        good = path.read_bytes()
        for length in range(len(good)):
            path.write_bytes(good[:length])
            with pytest.raises(Refused, match=r"cut off|no compressed file"):
                vault.read(path)

    def test_every_byte_of_the_text_counts(self, path: Path) -> None:
        """Also for somebody who compresses again what was altered."""
        vault.write(path, HEADER, SOME)
        good = b"".join(lines_of(path))
        for at in range(len(good)):
            put_lines(path, [good[:at], bytes([good[at] ^ 1]), good[at + 1 :]])
            with pytest.raises(Refused):
                vault.read(path)

    @pytest.mark.parametrize(
        ("tamper", "why"),
        [
            (lambda lines: lines[:-1], "cut off"),
            (lambda lines: [*lines[:-1], lines[-1][:-1]], "cut off"),
            (lambda lines: lines[:1], "cut off"),
            (lambda _: [], "cut off"),
            (lambda lines: lines[:2] + lines[3:], "does not fit the others"),
            (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "does not fit the others"),
            (lambda lines: [*lines[:2], lines[1], *lines[2:]], "does not fit the others"),
            (lambda lines: [lines[0].replace(b"trial", b"other"), *lines[1:]], "does not fit the others"),
            (lambda lines: [lines[0], lines[1].replace(b"string", b"strinG"), *lines[2:]], "line 2 was altered"),
            (lambda lines: [*lines, lines[1]], "after its end"),
            (lambda lines: [*lines, b"\n"], "after its end"),
            (lambda lines: lines[1:], "it is no vault"),
            (lambda lines: [b"[1]\n", *lines[1:]], "line 1 is none of a vault's"),
            (lambda lines: [b'{"x\n', *lines[1:]], "does not say whose it is"),
            (lambda lines: [b'{"kind":"plan"}\n', *lines[1:]], "it is no vault"),
            (lambda lines: [b'{"kind":"vault"}\n', *lines[1:]], "reads schema 1"),
            (lambda lines: [b'{"kind":"vault","schema_version":2}\n', *lines[1:]], "another release wrote it"),
            (lambda lines: [b'{"kind":"vault","schema_version":1}\n', *lines[1:]], "does not say whose it is"),
            (lambda lines: [b'{"a":' + b"[" * 60_000 + b"\n", *lines[1:]], "does not say whose it is"),
            (lambda lines: [lines[0], b"\n", *lines[1:]], "line 2 is none of a vault's"),
        ],
    )
    def test_what_is_wrong_is_said(self, path: Path, tamper: Callable[[list[bytes]], list[bytes]], why: str) -> None:
        """In a sentence, with the line where there is one; and not one entry is given before."""
        vault.write(path, HEADER, SOME)
        put_lines(path, tamper(lines_of(path)))

        with pytest.raises(Refused, match=why) as told:
            vault.read(path)
        assert told.value.message.startswith(f"The vault {path} cannot be used: ")

    @pytest.mark.parametrize(
        "line",
        [
            b'{"key":"AA=","parts":["AA=="],"type":"string","expires_at_ms":null,"note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":["?"],"type":"string","expires_at_ms":null,"note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":[1],"type":"string","expires_at_ms":null,"note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":["AA=="],"type":3,"expires_at_ms":null,"note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":["AA=="],"type":"string","expires_at_ms":"x","note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":["AA=="],"type":"string","expires_at_ms":null,"note":[],"sha256":""}\n',
            b'{"key":"AA==","parts":["AA=="],"type":"string","note":{},"sha256":""}\n',
            b'{"key":"AA==","type":"string","expires_at_ms":null,"note":{},"sha256":""}\n',
            b'{"nonsense,"sha256":""}\n',
            b'{"key":"\xff","parts":["AA=="],"type":"string","expires_at_ms":null,"note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":[],"type":"s","expires_at_ms":' + b"9" * 5000 + b',"note":{},"sha256":""}\n',
            b'{"key":"AA==","parts":[],"note":' + b'{"a":' * 100_000 + b',"sha256":""}\n',
        ],
    )
    def test_an_entry_of_another_shape(self, path: Path, line: bytes) -> None:
        """Even where every checksum fits."""
        vault.write(path, HEADER, SOME)
        put_lines(path, ended([lines_of(path)[0], sealed(line)]))

        with pytest.raises(Refused, match="line 2 is no entry"):
            vault.read(path)

    @pytest.mark.parametrize(
        ("what", "why"),
        [
            ("nothing", "No such file"),
            ("folder", "Is a directory"),
            ("link", "symbolic links"),
            ("pipe", "it is no file"),
            ("text", "no compressed file"),
        ],
    )
    def test_what_is_no_file_of_ours(self, path: Path, what: str, why: str) -> None:
        """Nothing is waited for, and no link is followed."""
        if what == "folder":
            path.mkdir()
        elif what == "link":
            vault.write(path.with_name("real"), HEADER, SOME)
            path.symlink_to("real")
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "text":
            path.write_text("hello")

        with pytest.raises(Refused, match=f"cannot be used: .*{why}"):
            vault.read(path)

    def test_a_file_that_is_replaced_after_it_was_checked(self, path: Path) -> None:
        """By one as whole as itself; that is found out at the end at the latest."""
        vault.write(path, HEADER, SOME)
        _, entries = vault.read(path)
        path.unlink()
        vault.write(path, HEADER, SOME[:1])

        with pytest.raises(Refused, match="replaced while it was read"):
            list(entries)


class TestMemory:
    """How large a vault may be is not decided by the memory of who reads it."""

    @pytest.fixture(autouse=True)
    def traced(self) -> Iterator[None]:
        """Count what Python allocates."""
        tracemalloc.start()
        yield
        tracemalloc.stop()

    def test_one_entry_at_a_time(self, path: Path) -> None:
        """Writing and reading 60 MB takes a few."""
        value = os.urandom(1_000_000)
        vault.write(path, HEADER, (Kept(key=b"%d" % n, type="string", parts=(value,)) for n in range(60)))
        assert sum(1 for _ in vault.read(path)[1]) == 60

        assert tracemalloc.get_traced_memory()[1] < 16_000_000

    def test_a_large_value_is_not_held_many_times(self, path: Path) -> None:
        """Its line, and itself; not its text in every stage besides."""
        size = 30_000_000
        vault.write(path, HEADER, (Kept(key=b"k", type="string", parts=(bytes(size),)) for _ in range(1)))

        assert tracemalloc.get_traced_memory()[1] < 4.5 * size

    @pytest.mark.parametrize("start", [b"", b'{"key":"'])
    def test_a_bomb(self, path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
        """A megabyte that unfolds to a gigabyte is refused when the first piece, or the limit, says that it is one."""
        monkeypatch.setattr(vault, "LONGEST_LINE", 10_000_000)
        vault.write(path, HEADER, SOME)
        first = lines_of(path)[0]
        with gzip.open(path, "wb", 1) as file:
            file.write(first + start)
            for _ in range(200):
                file.write(bytes(1_000_000))
        tracemalloc.reset_peak()

        with pytest.raises(Refused, match="none of a vault's" if not start else "longer than any line"):
            vault.read(path)

        assert tracemalloc.get_traced_memory()[1] < 30_000_000

    def test_a_bomb_in_the_first_line(self, path: Path) -> None:
        """It is short, in a vault."""
        with gzip.open(path, "wb", 1) as file:
            file.write(b'{"kind":"' + b"v" * 100_000_000)
        tracemalloc.reset_peak()

        with pytest.raises(Refused, match="line 1 is longer"):
            vault.read(path)

        assert tracemalloc.get_traced_memory()[1] < 5_000_000


@pytest.mark.slow
def test_the_largest_string_of_redis(path: Path) -> None:
    """512 MiB that nobody can compress come back as they were."""
    value = os.urandom(vault.LARGEST)

    vault.write(path, HEADER, [Kept(key=b"k", type="string", parts=(value,))])
    ((back,),) = [entry.parts for entry in vault.read(path)[1]]

    assert back == value
