"""The embedded, really broken Celery system that `stuck-tasks` is shown on; importing this imports no Celery."""

from __future__ import annotations

from opslib.demo.faults import Fault
from opslib.demo.state import Demo, DemoFailed
from opslib.demo.system import down, ensure, status, up

__all__ = ["Demo", "DemoFailed", "Fault", "down", "ensure", "status", "up"]
