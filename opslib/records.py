"""One run → its record: a JSON document that outlives the kernel, and says everything the report's head says."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opslib import redact
from opslib.errors import Exit
from opslib.findings import Finding, Severity, Verdict, counted, verdict, worst_first
from opslib.plan import Kind, Status

if TYPE_CHECKING:
    from opslib.facts.care import Area
    from opslib.facts.snapshot import Snapshot
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
    target: str = ""
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

        scope: What was judged: the whole "deployment"; certain "tasks" alone; or, for a "change" that somebody asked
            for by name, what else is wrong beside it, which its exit code does not count.

        said: The answer that a run was made for, in its own words; empty where its findings are the answer.

        areas: Each part of the deployment in a word and a figure; empty where the runbook looks at one part alone.

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
    scope: str = "deployment"
    said: str = ""
    areas: list[dict[str, object]] = []
    error: dict[str, str] | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def headline(self) -> str:
        """The run in one sentence."""
        return headline(self)


def operator() -> str:
    """Return who runs this: OPS_OPERATOR, the user behind sudo, or the login name."""
    try:
        return os.environ.get("OPS_OPERATOR") or os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def now() -> str:
    """Return the present as the record writes it: UTC, seconds, with a Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_run_id(runbook: str) -> str:
    """Return a name for a run that sorts by time and cannot collide: `<utc>-<runbook>-<random>`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{runbook}-{secrets.token_hex(3)}"


def context() -> RunContext:
    """Return the runner's context, or a fresh one when a person runs the notebook by hand."""
    given = os.environ.get(RUN_ENV)
    return msgspec.json.decode(given, type=RunContext) if given else _by_hand()


_HAND: list[RunContext] = []


def _by_hand() -> RunContext:
    """Keep one context for a kernel's life, so that every cell of a run by hand shares the run id."""
    if not _HAND:
        _HAND.append(RunContext(run_id=new_run_id("by-hand"), operator=operator(), started_at=now()))
    return _HAND[0]


def record(
    runbook: str,
    *,
    before: Snapshot,
    findings: Sequence[Finding],
    plan: Plan | None = None,
    outcomes: Sequence[Outcome] = (),
    after: Snapshot | None = None,
    remaining: Sequence[Finding] | None = None,
    dry_run: bool = True,
    scope: str = "",
    said: str = "",
    areas: Sequence[Area] = (),
    written: bool = True,
) -> RunRecord:
    """
    Conclude a run: write its record where the runner wants it, and return it to be shown.

    The verdict is over what remains; so is the coverage. Exit code: docs/exit-codes.md.

    Args:
        plan: None, with no outcomes, for a runbook that only looks.

        after: The look after the changes; None where there was no second one, and what was found remains.

        said: As RunRecord has it.

        scope: As RunRecord has it; where it is not said, what the view is of.

        areas: As RunRecord has it.

        written: False leaves the writing to the caller: where no disk takes a record, it can still be told.
    """
    ctx = context()
    scope = scope or before.scope
    unproven = _unproven(outcomes)
    remaining = [*(findings if remaining is None else remaining), *unproven]
    judged = verdict(remaining)
    undone = {Status.FAILED, Status.SKIPPED} if scope == "change" and not dry_run else {Status.FAILED}
    failed = any(outcome.status in undone for outcome in outcomes)
    waiting = dry_run and bool(plan)
    result = RunRecord(
        run_id=ctx.run_id,
        runbook=runbook,
        target=before.target,
        broker=before.broker,
        operator=ctx.operator,
        reason=ctx.reason,
        started_at=ctx.started_at,
        finished_at=now(),
        parameters=ctx.parameters,
        dry_run=dry_run,
        verdict=str(judged),
        exit_code=int(exit_code(verdict(unproven) if scope == "change" else judged, needs_person=failed or waiting)),
        coverage=[asdict(row) for row in (after or before).coverage],
        findings=rows(findings),
        plan=plan.shown() if plan is not None else {},
        outcomes=_told(outcomes),
        remaining=rows(remaining),
        report=ctx.report,
        scope=scope,
        said=redact.plain(said),
        areas=[asdict(row) for row in areas],
    )
    if written:
        write(result, ctx.record)
    return result


def _unproven(outcomes: Iterable[Outcome]) -> list[Finding]:
    """Return a finding for each change whose effect could not be found: it leaves the whole view in doubt."""
    return [
        Finding(
            code="cannot-see",
            severity=Severity.UNKNOWN,
            subject=o.action.subject,
            task=o.action.task,
            message=f"What became of the {o.action.kind} cannot be proven. {o.reason}",
            hint="`ops find` looks for it everywhere; `ops audit verify` compares audit and journal.",
        )
        for o in outcomes
        if o.status is Status.UNVERIFIED
    ]


def draft(findings: Iterable[Finding]) -> None:
    """Write what is known so far, so that a kernel that dies later has not died in vain; only inside a run."""
    ctx = context()
    if ctx.record:
        write(
            unfinished(
                ctx,
                error={"type": "Unfinished", "message": "The run ended before its last cell.", "hint": ""},
                findings=rows(findings),
            ),
            ctx.record,
        )


def carried_out(plan: Plan, outcomes: Iterable[Outcome]) -> None:
    """Put what was done into the draft: a server that is not there for the look afterwards must not hide it."""
    ctx = context()
    if not ctx.record:
        return
    path = Path(ctx.record)
    with suppress(OSError, msgspec.DecodeError):  # a full disk must not hide it either; the journal has it
        known = read(path)
        known.plan, known.outcomes = plan.shown(), _told(outcomes)
        write(known, path)


def _told(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    return [
        {"action": o.action.id, "status": str(o.status), "reason": o.reason, "steps": list(o.steps)} for o in outcomes
    ]


def unfinished(ctx: RunContext, *, error: dict[str, str], findings: list[dict[str, object]] | None = None) -> RunRecord:
    """Return the record of a run that has not come to its end, and may never."""
    return RunRecord(
        run_id=ctx.run_id,
        runbook=ctx.runbook,
        target=ctx.target or os.environ.get("OPS_TARGET", ""),
        operator=ctx.operator,
        reason=ctx.reason,
        started_at=ctx.started_at,
        parameters=ctx.parameters,
        dry_run=ctx.parameters.get("dry_run") is not False,
        verdict=str(Verdict.FAILED),
        exit_code=int(Exit.FAILED),
        findings=findings or [],
        report=ctx.report,
        error=error,
    )


def rows(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Return findings as a record has them, the worst first."""
    return [asdict(finding) for finding in worst_first(findings)]


def exit_code(judged: Verdict, *, needs_person: bool = False) -> Exit:
    """
    Return the exit code of a verdict.

    Args:
        needs_person: A plan waits or an action failed, so that even a healthy view ends with 1.
    """
    if judged is Verdict.FAILED:
        return Exit.FAILED
    if judged is Verdict.UNKNOWN:
        return Exit.CANNOT_SEE
    return Exit.ATTENTION if needs_person or judged is not Verdict.HEALTHY else Exit.DONE


def headline(run: RunRecord) -> str:
    """Return the run in one sentence, for the report's head, the terminal and the index."""
    if run.error:
        return run.error["message"]
    if run.said:
        return run.said
    actions = run.plan.get("actions")
    gates = {row.get("id") for row in actions if row.get("kind") == Kind.AWAIT} if isinstance(actions, list) else set()
    planned = len(actions) - len(gates) if isinstance(actions, list) else 0
    left = counted(str(row["code"]) for row in run.remaining) if run.scope != "change" else ""
    if not run.dry_run and planned:
        made_of = [outcome for outcome in run.outcomes if outcome["action"] not in gates]  # a gate changes nothing
        applied = sum(1 for outcome in made_of if outcome["status"] == Status.APPLIED)
        made = f"{applied:,} of {planned:,} planned change{'s' * (planned != 1)} made."
        return made if run.scope == "change" else f"{made} {f'Left: {left}' if left else 'Nothing is left to do'}."
    would = f"{planned:,} change{'s' * (planned != 1)} would be made; nothing was changed." if planned else ""
    if not left:
        quiet = {
            "deployment": "Nothing was found to be wrong, and everything answered.",
            "tasks": "Nothing is wrong with them.",
        }
        return would or quiet.get(run.scope, "Nothing was to be changed.")
    return f"{left}. {would}".rstrip()


def write(run: RunRecord, path: str | Path) -> None:
    """Write the record to `path` in one step (mode 0600); do nothing where `path` is empty."""
    if path:
        write_atomically(Path(path), json.dumps(redact.values(msgspec.to_builtins(run)), indent=1).encode())


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
