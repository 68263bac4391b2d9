"""Rows and records → what a person reads: tables, charts, frames, reports and their archive."""

from __future__ import annotations

from opslib.render.charts import ages
from opslib.render.frames import frame
from opslib.render.tables import show

__all__ = ["ages", "frame", "show"]
