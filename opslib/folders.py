"""A run id → its folder in the archive: found, or made for its owner only."""

from __future__ import annotations

import re
from pathlib import Path

from opslib import redact
from opslib.errors import NotFound

#: What a long look says of itself while it goes on.
PROGRESS = "progress.log"
#: Files of a run's folder, each written once and whole.
RECORD, REPORT, NOTEBOOK, PLAN, MANIFEST = "record.json", "report.html", "runbook.ipynb", "plan.json", "manifest.sha256"
_RUN_ID = re.compile(
    r"(?P<year>[0-9]{4})(?P<month>[0-9]{2})(?P<day>[0-9]{2})T[0-9]{6}Z-[a-z0-9]+(?:-[a-z0-9]+)*-[0-9a-f]{6}"
)
#: What the name of a run's folder looks like.
PATTERN = _RUN_ID.pattern
_LONGEST_ID = 120


def folder(root: Path, run_id: str) -> Path:
    """
    Return where a run is archived: `<root>/YYYY/MM/DD/<run_id>`, whether it exists or not.

    Raises:
        NotFound: If the id is none; a path can never pass for one.
    """
    match = _RUN_ID.fullmatch(run_id) if len(run_id) <= _LONGEST_ID else None
    if not match:
        raise NotFound(
            f"{redact.plain(run_id[:80])!r} is not a run id.",
            hint="They look like 20261121T021500Z-stuck-tasks-7f3a9c; see `ops reports list`.",
        )
    return root / match["year"] / match["month"] / match["day"] / run_id


def create(root: Path, run_id: str) -> Path:
    """Make the folder of a run, and those above it, readable for their owner only; return it."""
    path = folder(root, run_id)
    for each in [*reversed(path.relative_to(root).parents), path.relative_to(root)]:
        (root / each).mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
