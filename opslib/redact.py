"""Any text or document on its way out → the same without a credential: the one filter of every sink."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
#: A shorter password is masked in URLs only: to mask every `abc` would garble every text.
SHORTEST = 4

Mask = Callable[[str], str]

#: user:password@ in any URL, also inside JSON or a repr. A scheme is short; without a bound, a long word takes minutes.
_USERINFO = re.compile(r"([A-Za-z][\w+.\-]{0,30}:\\?/\\?/)([^\s:@/'\"<>\\]*):([^\s/'\"<>\\]*)@")
_QUERY = re.compile(r"([?&](?:(?:ssl_?)?password|passwd|pwd|username|secret|token)=)[^&\s'\"<>]+", re.IGNORECASE)
#: What services give out as keys and tokens, by the shape that they gave it: GitHub, Amazon, Slack, JSON web tokens.
_TOKEN = re.compile(
    r"\b(?:gh[pousr]_\w{30,255}|github_pat_\w{30,255}|A[KS]IA[0-9A-Z]{16}|xox[abeoprs]-[\w\-]{10,255}"
    r"|eyJ[\w\-]{10,2000}\.eyJ[\w\-]{4,8000}\.[\w\-]{10,2000})"
)
#: Sequences that colour a text or link it; a traceback in colours cuts a quoted password into pieces.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: What drives a terminal, ends a line, turns the direction of text or cannot be seen: C0 (but tab and newline), C1,
#: bidi, zero width, tags.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
#: Where one URL ends and the next begins, in an environment variable that holds several, or JSON.
_BETWEEN = re.compile(r"[\s'\",]+")
#: Variables that hold a secret by itself, by their name; a file's or a folder's name is none.
_SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|REDISCLI_AUTH|(?:API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE
)
_NO_SECRET_NAME = re.compile(r"(?:FILE|PATH|DIR|URL|URI|NAME|_ID|TTL|TIMEOUT|LENGTH|TYPE)$", re.IGNORECASE)
_SHORTEST_BY_NAME = 8
#: A part of a base64 text that is shorter than this could be part of any picture.
_SHORTEST_CORE = 8

#: Names as fields have them, and secrets that could be part of one.
_FIELD = re.compile(r"[A-Za-z_][\w./+\-]*")
_WORD = re.compile(r"[a-z_./+\-]+")
#: Fields whose value is a word of ours or a name that we gave, and how such a value looks.
_OURS = {
    **dict.fromkeys(("verdict", "severity", "status", "kind", "code"), re.compile(r"[a-z]{1,20}(?:-[a-z]{1,20}){0,5}")),
    "runbook": re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*"),
    **dict.fromkeys(("digest", "plan", "sha256", "prev_sha256"), re.compile("[0-9a-f]{64}")),
    "run_id": re.compile(r"\d{8}T\d{6}Z-[a-z0-9-]+-[0-9a-f]{6}"),
}
#: Fields whose content somebody else named.
_THEIRS = frozenset({"evidence", "parameters"})
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")

_TAG = re.compile(r"(<[^<>]*>)")
#: Attributes of HTML that a person gets to read; the others are the page's own, and a masked one would break it.
_SPOKEN = re.compile(
    r"(\s(?:alt|title|value|label|summary|placeholder|aria-label|data-label)\s*=\s*)(\"[^\"]*\"|'[^']*')", re.IGNORECASE
)

_known: set[str] = set()


# --- what is secret ---


def remember(url: str) -> None:
    """Learn the password of a URL, so that it is masked wherever it turns up by itself."""
    for part in _parts(url):
        for password in _passwords(part):
            _known.update(_forms(password))


def remember_environment() -> None:
    """Learn the passwords of every URL in the environment, and what a variable's name calls a secret."""
    for name, value in os.environ.items():
        if "://" in value:
            if "@" in value or "password=" in value.lower():
                for each in _BETWEEN.split(value):
                    remember(each)
        elif (
            len(value) >= _SHORTEST_BY_NAME
            and not value.startswith((os.sep, "~", "."))
            and _SECRET_NAME.search(name)
            and not _NO_SECRET_NAME.search(name)
        ):
            _known.update(_forms(value.strip()))


def known() -> tuple[str, ...]:
    """Return every remembered secret in each of its forms, the longest first."""
    return _longest_first(frozenset(_known))


def has_password(url: str) -> bool:
    """Whether a URL, or one of a list of sentinels, holds a password."""
    return any(password for part in _parts(url) for password in _passwords(part))


def too_short(url: str) -> bool:
    """Whether a URL's password is so short that it is masked in URLs only."""
    shortest = (min(len(password), len(unquote(password))) for part in _parts(url) for password in _passwords(part))
    return any(0 < length < SHORTEST for length in shortest)


@lru_cache(maxsize=4)
def _longest_first(secrets: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(secrets, key=lambda secret: (-len(secret), secret)))


def _passwords(url: str) -> Iterator[str]:
    """Yield what is, or was meant as, the password of a URL: also one whose / ? # or @ somebody forgot to escape."""
    yield url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    try:
        parts = urlsplit(url)
        yield parts.password or ""
        yield from (value for name, value in parse_qsl(parts.query) if name.lower().endswith("password"))
    except ValueError:
        pass


def _forms(password: str) -> Iterator[str]:
    """Yield the spellings of a password: in a URL, base64, HTML, JSON or a repr, in JSON of those, and on one line."""
    for plain in {password, unquote(password)}:
        if len(plain) >= SHORTEST:
            yield from _encoded(plain)
            for once in {plain, *_escaped(plain)}:
                yield once
                yield from _escaped(once)
                yield from _in_html(once)
            if len((line := " ".join(plain.splitlines())).strip()) >= SHORTEST:
                yield line


def _encoded(plain: str) -> Iterator[str]:
    whole = quote(plain, safe="", errors="surrogateescape")
    yield whole
    yield re.sub("%[0-9A-F]{2}", lambda match: match.group().lower(), whole)
    yield quote(plain, errors="surrogateescape")
    yield quote_plus(plain, errors="surrogateescape")
    content = plain.encode("utf-8", "surrogateescape")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(content).decode()
        # Inside something longer, such as `user:password`, only the middle is the same; it depends on what precedes it.
        for before in range(3):
            core = encode(b"\0" * before + content).decode()[-(-before * 8 // 6) : (before + len(content)) * 8 // 6]
            if len(core) >= _SHORTEST_CORE:
                yield core


def _escaped(text: str) -> Iterator[str]:
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]


def _in_html(text: str) -> Iterator[str]:
    """Yield the spellings of Python, Pygments, Jinja and BeautifulSoup."""
    bare = html.escape(text, quote=False)
    yield bare
    for double, single in (("&quot;", "&#x27;"), ("&quot;", "&#39;"), ("&#34;", "&#39;")):
        yield bare.replace('"', double).replace("'", single)


def _parts(url: str) -> list[str]:
    """Return the URLs of a list of sentinels; a semicolon elsewhere belongs to the URL."""
    return url.split(";") if url.startswith("sentinel:") else [url]


# --- text ---


def text(value: str) -> str:
    """Return `value` with every credential masked that has the shape of one or was remembered."""
    value = _masked(value)
    if "\x1b" in value:
        bare = _ESCAPE.sub("", value)
        if (without := _masked(bare)) != bare:
            return without
    return value


def _masked(value: str) -> str:
    if ":" in value:
        value = _USERINFO.sub(rf"\1\2:{MASK}@", value)
    if "=" in value:
        value = _QUERY.sub(rf"\1{MASK}", value)
    for secret in known():
        value = value.replace(secret, MASK)
    return _TOKEN.sub(MASK, value)


def url(value: str) -> str:
    """Return a URL fit to be shown: no password, whatever characters it holds, and no query."""
    return ";".join(_shown(part) for part in _parts(value))


def _shown(part: str) -> str:
    scheme, separator, rest = part.partition("://")
    userinfo, _, place = rest.rpartition("@")
    if ":" in userinfo:
        part = f"{scheme}{separator}{userinfo.partition(':')[0]}:{MASK}@{place}"
    return text(part.split("?", 1)[0])


def plain(value: object) -> str:
    """Return `value` as text that no terminal obeys: control, direction and unseen characters become visible."""
    return _CONTROL.sub(_visible, _spelled(text(str(value))))


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _spelled(value: str) -> str:
    """Return text that can be encoded: half of a surrogate pair is spelled out."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def markup(value: str, mask: Mask = text) -> str:
    """
    Return HTML or SVG with every credential masked in its text.

    A password such as "table" or "content" is masked where it can be read, and not in a tag or a style, where it would
    break the page and its policy. A tag that holds a URL is no exception: its credentials are masked too.

    Args:
        mask: What is done with each text.
    """
    parts = _TAG.split(value)
    styled = max((at for at, part in enumerate(parts) if part.lower().startswith("</style")), default=0)
    found, in_style = [], False
    for at, part in enumerate(parts):
        if at % 2:
            in_style = at < styled and (in_style or part.lower().startswith("<style")) and part.lower()[:7] != "</style"
            found.append(_tag(part, mask))
        else:
            found.append(part if in_style and "://" not in part else mask(part))
    return "".join(found)


def _tag(tag: str, mask: Mask) -> str:
    if "://" in tag or tag.startswith("<!--"):  # matplotlib repeats in comments what it has drawn
        return mask(tag)
    return _SPOKEN.sub(lambda match: f"{match[1]}{match[2][0]}{mask(match[2][1:-1])}{match[2][0]}", tag)


# --- documents ---


def values(document: object, mask: Mask = text) -> object:
    """
    Return a document as JSON can hold it, with every credential masked in its texts.

    Its structure stays, whatever a password is: names of fields, and words and names of ours as values. What JSON has
    no form for is spelled as text; infinity becomes none. A text that is kept as a list of lines is masked as a whole.

    Args:
        mask: What is done with each text.
    """
    return _value(document, "", mask, ours=True)


def has_credential(document: object) -> bool:
    """Whether a document holds a credential in its texts: masked, it would be another one."""
    return values(document) != values(document, mask=str)


def _value(value: object, name: str, mask: Mask, *, ours: bool) -> object:
    if isinstance(value, str):
        stays = _INSTANT.fullmatch(value) or (ours and name in _OURS and _OURS[name].fullmatch(value))
        return str(value) if stays else _spelled(mask(value))
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        ours = ours and name not in _THEIRS
        return _named((_name(str(each), mask), _value(of, str(each), mask, ours=ours)) for each, of in value.items())
    if isinstance(value, bytes):
        return _spelled(mask(value.decode("utf-8", "backslashreplace")))
    if isinstance(value, Sequence):
        lines = _lines(value, mask)
        return [_value(each, name, mask, ours=ours) for each in value] if lines is None else lines
    return _spelled(mask(str(value)))


def _name(name: str, mask: Mask) -> str:
    """
    Return a name that somebody else gave masked, and that of a field as it is.

    A secret out of small letters in a name of letters could be part of any field's name; any other secret is none.
    """
    if _FIELD.fullmatch(name) and all(_WORD.fullmatch(secret) for secret in known() if secret in name):
        return name
    return _spelled(mask(name))


def _named(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Return a dict of all pairs: two names that became one by the mask are told apart."""
    found: dict[str, object] = {}
    for name, value in pairs:
        found[name if name not in found else f"{name} ({len(found) + 1})"] = value
    return found


def _lines(value: Sequence[object], mask: Mask) -> list[str] | None:
    """Return the masked lines of a text that is kept as a list of them; None if it is another list."""
    lines = [each for each in value if isinstance(each, str)]
    whole = "".join(lines)
    if len(lines) < 2 or len(lines) < len(value) or whole.splitlines(keepends=True) != lines:
        return None
    return _spelled(mask(whole)).splitlines(keepends=True)


# --- notebooks ---


def notebook(content: str, mask: Mask = text) -> str:
    """
    Return a notebook's JSON with every credential masked in its sources, outputs and metadata.

    It stays a valid notebook, whatever a password is: the format's own words and the ids of its cells stay. Neither
    the end of a line nor that of an output hides a password that goes on in the next one.
    """
    document = json.loads(content)
    cells = [_cell(cell, mask) for cell in document.get("cells", [])]
    rest = {name: each for name, each in document.items() if name not in {"cells", "metadata"}}
    masked = {**_mapping(rest, mask), "metadata": _metadata(document.get("metadata", {}), mask), "cells": cells}
    return json.dumps(masked, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": "))


def _cell(cell: Mapping[str, object], mask: Mask) -> dict[str, object]:
    own = {name: cell[name] for name in ("cell_type", "id", "execution_count") if name in cell}
    rest = {name: each for name, each in cell.items() if name not in {*own, "outputs", "metadata"}}
    outputs = {"outputs": _outputs(cell["outputs"], mask)} if isinstance(cell.get("outputs"), list) else {}
    return {**_mapping(rest, mask), **own, **outputs, "metadata": _metadata(cell.get("metadata", {}), mask)}


def _metadata(metadata: object, mask: Mask) -> dict[str, object]:
    """Return metadata masked but for what names the kernel, and what tells runners which cell is which."""
    if not isinstance(metadata, Mapping):
        return {}
    own = {name: metadata[name] for name in ("kernelspec", "language_info", "tags") if name in metadata}
    return {**_mapping(metadata, mask), **own}


def _outputs(outputs: object, mask: Mask) -> list[dict[str, object]]:
    rows = [dict(each) for each in outputs if isinstance(each, Mapping)] if isinstance(outputs, list) else []
    for name in ("stdout", "stderr"):
        streams = [row for row in rows if row.get("output_type") == "stream" and row.get("name") == name]
        texts = [_joined(row.get("text")) for row in streams]
        whole = mask("".join(texts))
        if whole != "".join(mask(each) for each in texts):
            streams[0]["text"] = whole
            rows = [row for row in rows if not any(row is each for each in streams[1:])]
    return [_output(row, mask) for row in rows]


def _output(output: Mapping[str, object], mask: Mask) -> dict[str, object]:
    own = {"output_type": output.get("output_type")}
    if output.get("output_type") == "stream":
        own["name"] = output.get("name")
    found = {**_mapping(output, mask), **own}
    data, traceback = output.get("data"), output.get("traceback")
    if isinstance(data, Mapping):
        found["data"] = _named((_name(kind, mask), _data(kind, of, mask)) for kind, of in data.items())
    if isinstance(traceback, list):
        said = "\n".join(map(str, traceback))
        frames, whole = [_spelled(mask(str(frame))) for frame in traceback], _spelled(mask(said))
        found["traceback"] = frames if whole == "\n".join(frames) else whole.split("\n")
    return found


def _data(kind: str, value: object, mask: Mask) -> object:
    """Return what is displayed; in HTML and pictures that are drawn, tags are structure."""
    if kind not in {"text/html", "image/svg+xml"}:
        return _value(value, "", mask, ours=False)
    drawn = _spelled(markup(_joined(value), mask))
    return drawn.splitlines(keepends=True) if isinstance(value, list) else drawn


def _joined(value: object) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _mapping(value: Mapping[str, object], mask: Mask) -> dict[str, object]:
    return _named((_name(str(name), mask), _value(of, str(name), mask, ours=False)) for name, of in value.items())
