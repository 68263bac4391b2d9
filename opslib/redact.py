"""Any text on its way out → the same text without a credential: the one filter of every sink."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote, urlsplit

MASK = "***"

#: user:password@ in any URL, also inside JSON or a repr.
_USERINFO = re.compile(r"([A-Za-z][\w+.\-]*://)([^\s:@/'\"<>\\]*):([^\s/'\"<>\\]*)@")
_QUERY = re.compile(r"([?&](?:password|username|secret|token)=)[^&\s'\"<>]+", re.IGNORECASE)
#: Characters that drive a terminal or turn the direction of text: C0 (but tab and newline), C1, bidi controls.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SHORTEST = 4

_known: set[str] = set()


def remember(url: str) -> None:
    """Learn the password of a URL, so that it is masked wherever it turns up by itself."""
    for part in url.split(";"):
        try:
            password = urlsplit(part).password
        except ValueError:
            continue
        for form in {password or "", unquote(password or ""), quote(unquote(password or ""), safe="")}:
            if len(form) >= _SHORTEST:
                _known.add(form)


def text(value: str) -> str:
    """Return `value` with every credential masked that has the shape of one or was remembered."""
    value = _USERINFO.sub(rf"\1\2:{MASK}@", value)
    value = _QUERY.sub(rf"\1{MASK}", value)
    for secret in sorted(_known, key=len, reverse=True):
        value = value.replace(secret, MASK)
    return value


def url(value: str) -> str:
    """Return a URL fit to be shown: no password, no query."""
    return ";".join(text(part.split("?", 1)[0]) for part in value.split(";"))


def plain(value: object) -> str:
    """Return `value` as text that no terminal obeys: control and direction characters become visible."""
    shown = text(str(value)).encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", shown)


def remember_environment() -> None:
    """Learn the passwords of every URL in the environment."""
    for value in os.environ.values():
        if "://" in value and "@" in value:
            remember(value)
