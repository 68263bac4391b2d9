"""Snapshots → what is found in them with the tests' thresholds, and what would be done about it."""

from __future__ import annotations

from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding
from opslib.plan import Kind
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan

LIMITS = Thresholds(stuck_after_s=3600, loop_after=10)


def found(seen: Snapshot, code: str) -> list[Finding]:
    """Return the findings with that code."""
    return [finding for finding in diagnose(seen, LIMITS) if finding.code == code]


def codes(seen: Snapshot) -> set[str]:
    """Return all that is found."""
    return {finding.code for finding in diagnose(seen, LIMITS)}


def planned(seen: Snapshot, *, max_actions: int = 10) -> list[tuple[Kind, str]]:
    """Return kind and subject of what would be done."""
    made = plan(seen, diagnose(seen, LIMITS), max_actions=max_actions)
    return [(action.kind, action.subject) for action in made]
