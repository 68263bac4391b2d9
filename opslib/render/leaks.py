"""A run's folder → the artefacts that hold a credential in spite of every mask, and the archive without them."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from io import BufferedIOBase
from pathlib import Path

from opslib import folders, records, redact
from opslib.errors import Exit
from opslib.findings import Verdict
from opslib.records import RunRecord
from opslib.render import archive

AUDIT = "audit.jsonl"
INDEX = ("index.html", "index.jsonl")
#: What begins so is the only copy of what was taken out of a broker, byte for byte.
VAULT = "vault"
PLAN = "plan.json"

_WINDOW = 1024 * 1024
#: What stands on the border of two windows is looked at whole if it is shorter than this.
_OVERLAP = 64 * 1024
#: A larger file or line is not taken apart: whatever looks like a credential in it is one.
_WHOLE = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"
_HINT = "Change that password if anybody else may have read the archive, and report the case: no mask held it back."
#: Elements within a word; the others end it, as they end a line on the screen.
_WITHIN = frozenset(
    "a abbr b cite code del em font i ins kbd mark q s samp span strong sub sup tspan tt u var wbr".split()  # noqa: SIM905 - easier to read
)
_SPOKEN = frozenset({"alt", "aria-label", "data-label", "label", "placeholder", "summary", "title", "value"})
_DRAWN = re.compile(r"\s*data:image/svg\+xml;base64,", re.IGNORECASE)


def swept(root: Path, run: Path, record: RunRecord) -> list[str]:
    """
    Look through all that a run left behind, take away what holds a credential, and return a sentence for each.

    Nothing is returned for a clean run. Otherwise the record says so and ends with exit code 3, and report, manifest
    and index are written anew. Lines of the audit are chained, and a run that changed something is finished or undone
    with its plan and its vault, so they stay.
    """
    said = [*_in_folder(root, run, record), *_in_audit(root, record.run_id), *_in_index(root)]
    if said:
        before = f" Before that: {record.error['message']}" if record.error else ""
        record.verdict, record.exit_code = str(Verdict.FAILED), int(Exit.FAILED)
        record.error = {"type": "CredentialFound", "message": " ".join(said) + before, "hint": _HINT}
        _rewritten(root, run, record)
    return said


def holds(path: Path) -> bool:
    """
    Whether a file holds a credential: one that was remembered, in any of its forms, or what has the shape of one.

    A password such as "cell" or "table" is also a word of JSON or HTML, so there only texts count, and not structure.
    A file is read in windows; it is taken apart only if it is a page or a notebook, which may cut a text into pieces,
    or if something was seen in a window.

    Raises:
        OSError: If it cannot be read.
    """
    name = path.name.removesuffix(".gz")
    if name == folders.MANIFEST:  # digests, and names that we gave; a password of hex digits may be part of one
        return False
    if name.startswith(VAULT):  # a credential of somebody else's is part of what it has to give back
        return any(_remembered(window) for window in _windows(path))
    apart = name.endswith((".html", ".ipynb"))
    seen = any(redact.text(window) != window for window in _windows(path))
    if not (seen or apart):
        return False
    if name.endswith(".jsonl"):
        return any(_in_json(line) for line in _lines(path))
    content = _whole(path) if name.endswith((".html", ".ipynb", ".json")) else None
    if content is None:
        return seen
    if name.endswith(".html"):
        return _in_page(content)
    if name == PLAN:
        return _in_plan(content)
    return _in_notebook(content) if name.endswith(".ipynb") else _in_json(content)


# --- what there is ---


def _in_folder(root: Path, run: Path, record: RunRecord) -> Iterator[str]:
    for path in sorted(run.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            leaking = holds(path)
        except OSError as error:
            yield f"{_name(path, root)} could not be searched for credentials: {error.strerror}."
            continue
        if leaking and (path.name.startswith(VAULT) or (path.name == PLAN and not record.dry_run)):
            yield f"{_name(path, root)} holds a credential; it stays, because the run is finished or undone with it."
        elif leaking:
            yield _removed(path, root)


def _in_audit(root: Path, run_id: str) -> Iterator[str]:
    """Look through the lines that this run wrote."""
    path, ours = root / AUDIT, json.dumps(run_id)
    with suppress(OSError):
        if any(_in_json(line) for line in _lines(path) if ours in line):
            yield f"{AUDIT} holds a credential in a line of this run; it stays, because its lines are chained."


def _in_index(root: Path) -> Iterator[str]:
    for path in (root / name for name in INDEX):
        with suppress(OSError):
            if path.is_file() and holds(path):
                yield _removed(path, root)


def _removed(path: Path, root: Path) -> str:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"{_name(path, root)} holds a credential and could not be removed: {error.strerror}."
    return f"{_name(path, root)} held a credential and was removed."


def _name(path: Path, root: Path) -> str:
    return redact.plain(path.relative_to(root).as_posix())


def _rewritten(root: Path, run: Path, record: RunRecord) -> None:
    """Write the record that says so, and what is made of it; whatever holds a credential again is left out."""
    path = run / folders.RECORD
    with suppress(OSError):
        records.write(record, path)
        if holds(path):
            record.findings, record.remaining, record.outcomes, record.coverage = [], [], [], []
            record.plan, record.parameters, record.reason, record.broker = {}, {}, "", ""
            records.write(record, path)
        archive.keep(root, run, record)
        if (run / folders.REPORT).is_file() and holds(run / folders.REPORT):
            (run / folders.REPORT).unlink(missing_ok=True)
            archive.seal(run)
            archive.index(root)
        list(_in_index(root))  # another run's record may have brought it in, and would again


# --- what is in a file ---


def _open(path: Path) -> BufferedIOBase:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    return gzip.open(path) if compressed else path.open("rb")


def _windows(path: Path) -> Iterator[str]:
    """Yield a file's text, decompressed, window by window, each with the end of the one before."""
    with _open(path) as file:
        before = b""
        while content := _read(file, _WINDOW):
            window = before + content
            yield window.decode("utf-8", "surrogateescape")
            before = window[-_OVERLAP:]


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        rest = b""
        while content := _read(file, _WINDOW):
            *whole, rest = (rest + content).split(b"\n")
            yield from (line.decode("utf-8", "surrogateescape") for line in whole)
            if len(rest) > _WHOLE:
                yield rest.decode("utf-8", "surrogateescape")
                rest = b""
        yield rest.decode("utf-8", "surrogateescape")


def _whole(path: Path) -> str | None:
    """Return a file's text; None for one that is too large to be taken apart."""
    with _open(path) as file:
        content = b"".join(iter(lambda: _read(file, _WINDOW) if file.tell() <= _WHOLE else b"", b""))
        return None if file.tell() > _WHOLE else content.decode("utf-8", "surrogateescape")


def _read(file: BufferedIOBase, size: int) -> bytes:
    """Read on; the end of a compressed file that was cut off is its end."""
    pieces, wanted = [], size
    with suppress(EOFError, zlib.error, gzip.BadGzipFile):
        while wanted and (piece := file.read1(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
    return b"".join(pieces)


def _remembered(text: str) -> bool:
    return any(secret in text for secret in redact.known())


def _in_json(text: str) -> bool:
    """Whether a document holds a credential; one that is broken is a text."""
    try:
        return redact.has_credential(json.loads(text))
    except (ValueError, RecursionError):
        return redact.text(text) != text


def _in_plan(text: str) -> bool:
    """Whether a plan holds a credential; in what it is to publish, somebody's data, only one of ours counts."""
    try:
        document = json.loads(text)
        messages = [str(action.pop("message", "")) for action in document["actions"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return _in_json(text)
    return any(map(_remembered, messages)) or redact.has_credential(document)


def _in_notebook(text: str) -> bool:
    try:
        return redact.notebook(text) != redact.notebook(text, mask=str)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return _in_json(text)


def _in_page(markup: str) -> bool:
    said = _Page.text(markup)
    return redact.text(said) != said


class _Page(HTMLParser):
    """
    What a person can read of a page or a drawing: its text, whatever tags it is cut into, and what is said of pictures.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._style = False

    @classmethod
    def text(cls, markup: str) -> str:
        """Return it, drawings that are part of the page included."""
        page = cls()
        page.feed(markup)
        page.close()
        return "".join(page._pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element says, and where it begins if it ends a line."""
        self._style = tag == "style"
        self._border(tag)
        for name, value in attrs:
            if value and name == "src" and (match := _DRAWN.match(value)):
                with suppress(binascii.Error):
                    self._pieces.append(
                        f"\n{_Page.text(base64.b64decode(value[match.end() :]).decode('utf-8', 'replace'))}\n"
                    )
            elif value and (name in _SPOKEN or "://" in value):
                self._pieces.append(f"\n{value}\n")

    def handle_endtag(self, tag: str) -> None:
        """Note where an element ends if it ends a line."""
        self._style = False
        self._border(tag)

    def handle_data(self, data: str) -> None:
        """Note a text."""
        if not self._style or "://" in data:
            self._pieces.append(data)

    def handle_comment(self, data: str) -> None:
        """Note a comment: matplotlib repeats in them what it has drawn."""
        self._pieces.append(f"\n{data}\n")

    def _border(self, tag: str) -> None:
        if tag not in _WITHIN:
            self._pieces.append("\n")
