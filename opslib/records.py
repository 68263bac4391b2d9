"""One run → its record: a JSON document that outlives the kernel, and says everything the report's head says."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opslib import redact
from opslib.errors import Exit
from opslib.findings import Finding, Verdict, counted, verdict, worst_first
from opslib.plan import Status

if TYPE_CHECKING:
    from opslib.facts import Snapshot
    from opslib.plan import Outcome, Plan

SCHEMA_VERSION = 1
RUN_ENV = "OPS_RUN"


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the runner tells the kernel about the run, through the environment.

    Attributes:
        record: Path that the record is written to; empty when a person runs the notebook by hand.

        confirmed: Path of the plan that was confirmed; empty where `--yes` or a person stands for it.

        report: Path of the report, relative to the archive.
    """

    run_id: str
    runbook: str = ""
    record: str = ""
    report: str = ""
    operator: str = ""
    reason: str = ""
    confirmed: str = ""
    started_at: str = ""
    parameters: dict[str, object] = {}


class RunRecord(msgspec.Struct, kw_only=True):
    """
    The record of a run, schema version 1 (docs/record.md).

    Attributes:
        verdict: Over the findings that remain; over all findings where nothing was applied.

        error: Type, message and hint of what stopped the run; None for a run that ended.
    """

    run_id: str
    runbook: str
    target: str
    operator: str
    started_at: str
    verdict: str
    exit_code: int
    reason: str = ""
    finished_at: str = ""
    broker: str = ""
    parameters: dict[str, object] = {}
    dry_run: bool = True
    coverage: list[dict[str, object]] = []
    findings: list[dict[str, object]] = []
    plan: dict[str, object] = {}
    outcomes: list[dict[str, object]] = []
    remaining: list[dict[str, object]] = []
    report: str = ""
    error: dict[str, str] | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def headline(run: RunRecord) -> str:
    """Return the run in one sentence, for the report's head, the terminal and the index."""
    if run.error:
        return run.error["message"]
    actions = run.plan.get("actions")
    planned = len(actions) if isinstance(actions, list) else 0
    left = counted(str(row["code"]) for row in run.remaining)
    if not run.dry_run and planned:
        applied = sum(1 for outcome in run.outcomes if outcome["status"] == Status.APPLIED)
        return f"{applied:,} of {planned:,} planned changes made. {f'Left: {left}' if left else 'Nothing is left to do'}."
    if not left:
        return "Nothing is stuck, and everything answered."
    would = f" {planned:,} change{'s' * (planned != 1)} would be made; nothing was changed." if planned else ""
    return f"{left}.{would}"


def write(run: RunRecord, path: str | Path) -> None:
    """Write the record to `path` in one step (mode 0600); do nothing where `path` is empty."""
    if path:
        text = json.dumps(msgspec.to_builtins(run), indent=1, default=str)
        write_atomically(Path(path), redact.text(text).encode())


def read(path: Path) -> RunRecord:
    """
    Read a record back.

    Raises:
        FileNotFoundError: If there is none.

        msgspec.DecodeError: If it is no record.
    """
    return msgspec.json.decode(path.read_bytes(), type=RunRecord)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk and move it there; mode 0600."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def parameters_shown(parameters: Mapping[str, object]) -> dict[str, str]:
    """Return parameters as text, secrets masked."""
    return {name: redact.text(str(value)) for name, value in parameters.items()}
