"""
Executable runbooks for Celery on Redis.

The seven verbs of a runbook come from here: `connect`, `collect`, `apply`, `record`, `show`, and from the symptom's own
module `diagnose` and `plan`. Names are loaded when they are first used, so that `import opslib` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opslib.broker import connect
    from opslib.collectors.backup import saves
    from opslib.collectors.beat import schedule
    from opslib.collectors.care import checkup
    from opslib.collectors.checkpoints import resumable
    from opslib.collectors.deployment import collect
    from opslib.collectors.find import find
    from opslib.collectors.reconciling import reconcile
    from opslib.collectors.remains import remains
    from opslib.collectors.state_rows import app_state
    from opslib.collectors.stored import stored
    from opslib.records import record
    from opslib.render.charts import ages
    from opslib.render.depths import depths, forecast
    from opslib.render.display import show
    from opslib.render.failures import failures
    from opslib.render.frames import frame
    from opslib.render.retries import retries
    from opslib.render.rows import open_rows
    from opslib.render.stored import freed, results_by_age
    from opslib.render.whereabouts import answers, in_words
    from opslib.writer import apply
    from opslib.writer.rehearsed import rehearse

__version__ = "0.1.0"
__all__ = [
    "ages",
    "answers",
    "app_state",
    "apply",
    "checkup",
    "collect",
    "connect",
    "depths",
    "failures",
    "find",
    "forecast",
    "frame",
    "freed",
    "in_words",
    "open_rows",
    "reconcile",
    "record",
    "rehearse",
    "remains",
    "results_by_age",
    "resumable",
    "retries",
    "saves",
    "schedule",
    "show",
    "stored",
]

_HOMES = {
    "ages": "opslib.render.charts",
    "answers": "opslib.render.whereabouts",
    "app_state": "opslib.collectors.state_rows",
    "apply": "opslib.writer",
    "checkup": "opslib.collectors.care",
    "collect": "opslib.collectors.deployment",
    "connect": "opslib.broker",
    "depths": "opslib.render.depths",
    "failures": "opslib.render.failures",
    "find": "opslib.collectors.find",
    "forecast": "opslib.render.depths",
    "frame": "opslib.render.frames",
    "freed": "opslib.render.stored",
    "in_words": "opslib.render.whereabouts",
    "open_rows": "opslib.render.rows",
    "reconcile": "opslib.collectors.reconciling",
    "record": "opslib.records",
    "results_by_age": "opslib.render.stored",
    "rehearse": "opslib.writer.rehearsed",
    "remains": "opslib.collectors.remains",
    "resumable": "opslib.collectors.checkpoints",
    "retries": "opslib.render.retries",
    "saves": "opslib.collectors.backup",
    "schedule": "opslib.collectors.beat",
    "show": "opslib.render.display",
    "stored": "opslib.collectors.stored",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
