"""An exception as a node wrote it → its type, and its text without what differs from one task to the next."""

from __future__ import annotations

import re

#: What is read of an exception's text, and what is kept.
_MOST_READ, _MOST_KEPT = 2_000, 200
#: "KeyError('k')", "requests.HTTPError('404 …')" as repr has it; "KeyError: 'k'" as a traceback does.
_REPR = re.compile(r"<?(?P<type>[A-Za-z_][\w.]{0,200})(?:\((?P<arguments>.*)\)|:?\s+(?P<text>[^>]*)>?)?\s*", re.DOTALL)
_WHOLE = re.compile(r"(?P<quote>['\"])(?P<text>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote),?", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_.]{1,60}")
#: A status of HTTP says what a retry can do about it; every other number is only a number.
_STATUS = re.compile(r"(?i:\b(?:http\w*|status|code|status_code)\W{1,12})[345]\d\d\b|\b[45]\d\d\b(?= [A-Z][a-z])")
_ESCAPED = re.compile(r"\\[nrt]")
_VARIES = (
    (re.compile(r"\b([A-Za-z][\w+.-]{0,30}://)(?:[^\s/@'\"]*@)?([^\s/'\"?#]+)[^\s'\"]*"), r"\1\2/…"),
    (re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){0,5}"), "<mail>"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"(['\"])(?:\\.|(?!\1)[^\\])*\1"), "'…'"),
    (re.compile(r"(?<![A-Za-z\d])[-+]?\d+(?:[.,:_]\d+)*|\d{3,}"), "<n>"),
)


def of(exception: str) -> str:
    """
    Return an exception's signature: "ConnectionError: Error <n> connecting to <n>".

    Two failures with the same cause have the same one: numbers, ids, addresses and what stands in quotes are left out,
    and with them what arguments may have brought into the text. A status of HTTP stays.

    Args:
        exception: As an event or a result says it; empty, or "None", for a retry that no exception asked for.
    """
    text = exception[:_MOST_READ].strip()
    if text in {"", "None"}:
        return ""
    found = _REPR.fullmatch(text)
    if found is None:
        return _without(text)
    name = found["type"].rpartition(".")[2]
    said = found["arguments"] if found["arguments"] is not None else found["text"] or ""
    whole = _WHOLE.fullmatch(said.strip())
    if whole:
        said = whole["text"]
        said = said if " " in said or _WORD.fullmatch(said) else "'…'"
    # `<HTTPError 404: 'Not Found'>` says the status right after its type.
    rest = _without(f"{name} {said}").removeprefix(name).strip()
    return f"{name}: {rest}"[:_MOST_KEPT] if rest else name


def kind(signature: str) -> str:
    """Return the type that a signature names: "ConnectionError"."""
    return signature.partition(":")[0]


def _without(text: str) -> str:
    """Return text on one line, with a mark in place of everything that varies."""
    line = " ".join(_ESCAPED.sub(" ", text).split())
    parts, end = [], 0
    for status in _STATUS.finditer(line):
        parts += [_marked(line[end : status.start()]), status.group()]
        end = status.end()
    return "".join([*parts, _marked(line[end:])])[:_MOST_KEPT].strip()


def _marked(text: str) -> str:
    for pattern, mark in _VARIES:
        text = pattern.sub(mark, text)
    return text
