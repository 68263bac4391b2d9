"""What a key holds, as the server tells its parts → the digest by which a plan knows it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: A collection with more elements, or of more bytes, is not compared in one step: that would stop everybody else.
MOST_ELEMENTS = 2_000
MOST_BYTES = 4 * 1024 * 1024
#: What can be kept in a file and written again.
KINDS = ("string", "list", "hash", "set", "zset")


def digest(kind: str, parts: Sequence[bytes]) -> str:
    """
    Return the sha256 of a value: of a string its bytes, else its type and each part with its length.

    Args:
        kind: As Redis calls the type.

        parts: Elements of a list; members of a set, in any order; of a hash each field with its value, in any order; of
            a sorted set each member with its score, in their order.
    """
    if kind == "string":
        return hashlib.sha256(b"".join(parts)).hexdigest()
    spelled = _SPELLED[kind](parts) if kind in _SPELLED else parts
    lines = (b"%d:%b\n" % (len(part), part) for part in (kind.encode(), *spelled))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def too_large(kind: str, elements: int, size_bytes: int) -> str:
    """Return why a value is too large to be removed and kept in one step, as a sentence; empty if it is not."""
    if kind == "string":
        return ""
    if elements > MOST_ELEMENTS:
        return f"It has {elements:,} elements; at most {MOST_ELEMENTS:,} are compared in one step."
    if size_bytes > MOST_BYTES:
        return f"It weighs {size_bytes:,} bytes; at most {MOST_BYTES:,} of a collection are compared in one step."
    return ""


def not_kept(kind: str) -> str:
    """Return why a value of this type cannot be kept, as a sentence; empty if it can."""
    return "" if kind in KINDS else f"It is a {kind}, which cannot be kept."


def _fields(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Order a hash by its fields: a server sorts by its own locale, if at all."""
    for field, value in sorted(zip(parts[::2], parts[1::2], strict=True)):
        yield field
        yield value


def _scores(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Spell every score in one way: a server has several for the same number."""
    return (repr(float(part)).encode() if n % 2 else part for n, part in enumerate(parts))


_SPELLED: Mapping[str, Callable[[Sequence[bytes]], Iterable[bytes]]] = {
    "set": sorted,
    "hash": _fields,
    "zset": _scores,
}
