"""Rows and records → what a person reads: tables, charts, frames, reports and their archive."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opslib.render.charts import ages
    from opslib.render.frames import frame
    from opslib.render.tables import show

__all__ = ["ages", "frame", "show"]

_HOMES = {"ages": "opslib.render.charts", "frame": "opslib.render.frames", "show": "opslib.render.tables"}


def __getattr__(name: str) -> object:
    # Loaded when first used: the command line lists runs without ever making a frame.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
