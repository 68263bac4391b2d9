"""Any text on its way out → the same text without a credential: the one filter of every sink."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote, urlsplit

MASK = "***"

#: user:password@ in any URL, also inside JSON or a repr. A scheme is short; without a bound, a long word takes minutes.
_USERINFO = re.compile(r"([A-Za-z][\w+.\-]{0,30}://)([^\s:@/'\"<>\\]*):([^\s/'\"<>\\]*)@")
_QUERY = re.compile(r"([?&](?:password|username|secret|token)=)[^&\s'\"<>]+", re.IGNORECASE)
#: Characters that drive a terminal, end a line or turn the direction of text: C0 (but tab and newline), C1, bidi.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: Where one URL ends and the next begins, in an environment variable that holds several, or JSON.
_BETWEEN = re.compile(r"[\s'\",]+")
_SHORTEST = 4

_known: set[str] = set()


def remember(url: str) -> None:
    """Learn the password of a URL, so that it is masked wherever it turns up by itself."""
    for part in _parts(url):
        for password in _passwords(part):
            _known.update(_forms(password))


def _passwords(url: str) -> Iterator[str]:
    """Yield what is, or was meant as, the password of a URL: also one whose / ? # or @ somebody forgot to escape."""
    yield url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    try:
        parts = urlsplit(url)
        yield parts.password or ""
        yield from (value for name, value in parse_qsl(parts.query) if name.lower() == "password")
    except ValueError:
        pass


def _forms(password: str) -> Iterator[str]:
    """Yield the spellings in which a password turns up: in a URL, base64, JSON or a repr, and in JSON of those."""
    for plain in {password, unquote(password)}:
        if len(plain) >= _SHORTEST:
            yield quote(plain, safe="", errors="surrogateescape")
            yield base64.b64encode(plain.encode("utf-8", "surrogateescape")).decode()
            for once in {plain, *_escaped(plain)}:
                yield once
                yield from _escaped(once)


def _escaped(text: str) -> Iterator[str]:
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]


def _parts(url: str) -> list[str]:
    """Return the URLs of a list of sentinels; a semicolon elsewhere belongs to the URL."""
    return url.split(";") if url.startswith("sentinel:") else [url]


def text(value: str) -> str:
    """Return `value` with every credential masked that has the shape of one or was remembered."""
    value = _USERINFO.sub(rf"\1\2:{MASK}@", value)
    value = _QUERY.sub(rf"\1{MASK}", value)
    for secret in sorted(_known, key=len, reverse=True):
        value = value.replace(secret, MASK)
    return value


def url(value: str) -> str:
    """Return a URL fit to be shown: no password, whatever characters it holds, and no query."""
    return ";".join(_shown(part) for part in _parts(value))


def has_password(url: str) -> bool:
    """Whether a URL, or one of a list of sentinels, holds a password."""
    return any(password for part in _parts(url) for password in _passwords(part))


def _shown(part: str) -> str:
    scheme, separator, rest = part.partition("://")
    userinfo, _, place = rest.rpartition("@")
    if ":" in userinfo:
        part = f"{scheme}{separator}{userinfo.partition(':')[0]}:{MASK}@{place}"
    return text(part.split("?", 1)[0])


def plain(value: object) -> str:
    """Return `value` as text that no terminal obeys: control and direction characters become visible."""
    shown = text(str(value)).encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROL.sub(_visible, shown)


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def remember_environment() -> None:
    """Learn the passwords of every URL in the environment."""
    for value in os.environ.values():
        if "://" in value and "@" in value:
            for each in _BETWEEN.split(value):
                remember(each)
