"""The text of every script that a broker is sent: constant, with inputs only through KEYS and ARGV."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

#: What a script begins with: those that change messages and keys share one protocol, those that compare keys one eye.
_BEGINS = {
    "move": ("primitive",),
    "deal": ("primitive",),
    "push": ("primitive",),
    "redrive": ("primitive",),
    "rename": ("primitive",),
    "note": ("primitive",),
    "index": ("primitive",),
    "keys": ("primitive", "value"),
    "hand": ("primitive",),
    "switch": ("primitive",),
    "sweep": ("primitive", "value"),
    "read_key": ("value",),
}


@cache
def text(name: str) -> str:
    """Return one script's source, whole."""
    return "".join((files(__name__) / f"{part}.lua").read_text("utf-8") for part in (*_BEGINS.get(name, ()), name))
