"""
What an application's own workers import: dead letters are captured, and how far tasks have come is kept.

Nothing here looks at a broker or changes it for an operator; see `ops` for that.
"""

from opslib.worker.checkpoint import checkpoint
from opslib.worker.wishes import capture

__all__ = ["capture", "checkpoint"]
