"""The text of every script that changes a broker: constant, with inputs only through KEYS and ARGV."""

from __future__ import annotations

from importlib.resources import files


def text(name: str) -> str:
    """Return one script's source."""
    return (files(__name__) / f"{name}.lua").read_text("utf-8")
