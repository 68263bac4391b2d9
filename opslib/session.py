"""The name of a run → its folder and context, its record however it ended, and its place in the archive."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opslib import errors, folders, records, settings
from opslib.errors import Exit, OpsError
from opslib.findings import Verdict
from opslib.records import RunContext, RunRecord

if TYPE_CHECKING:
    from opslib.catalog import Parameter, Value


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """
    What a run left behind.

    Attributes:
        record: Read back from where the kernel wrote it; made here if the kernel could not.

        report: Path of the HTML report; None if even that could not be written.

        leaked: What was said of files that held a credential, a sentence each.
    """

    record: RunRecord
    folder: Path
    report: Path | None
    leaked: tuple[str, ...] = ()

    @property
    def exit_code(self) -> Exit:
        """The exit code that the run's command ends with."""
        return Exit(self.record.exit_code)


def context(
    name: str, *, target: str, reason: str = "", confirmed: str = "", parameters: dict[str, Value] | None = None
) -> RunContext:
    """
    Begin a run: give it an id and a folder in the archive.

    Raises:
        SettingsError: If the archive cannot be written.
    """
    run_id = records.new_run_id(name)
    folder = _folder(run_id)
    return RunContext(
        run_id=run_id,
        runbook=name,
        target=target,
        record=str(folder / folders.RECORD),
        report=str((folder / folders.REPORT).relative_to(settings.reports_root())),
        operator=records.operator(),
        reason=reason,
        confirmed=confirmed,
        started_at=records.now(),
        parameters=dict(parameters or {}),
    )


def _folder(run_id: str) -> Path:
    root = settings.reports_root()
    try:
        return folders.create(root, run_id)
    except OSError as error:
        raise errors.SettingsError(
            f"The archive {root} cannot be written: {error.strerror}.", hint="Set OPS_REPORTS to a folder that can be."
        ) from None


def concluded(context: RunContext, problem: OpsError | None, known: RunRecord | None = None) -> RunRecord:
    """
    Read the record that the run wrote; where it says less than happened here, say more.

    Args:
        known: The record, where the run was made here: a full disk costs the file, not what it says.
    """
    path = Path(context.record)
    try:
        record = known or records.read(path)
    except (OSError, msgspec.DecodeError):
        record = records.unfinished(
            context,
            error={
                "type": "NoRecord",
                "message": "The runbook ended without its record: a cell stopped it before the last one.",
                "hint": "",
            },
        )
    if record.error and not problem:
        problem = errors.RunbookFailed(record.error["message"])
    if problem:
        if isinstance(problem, errors.Interrupted | errors.RunbookFailed | errors.BrokerUnreachable):
            problem.hint = " ".join(filter(None, (problem.hint, _way_on(context))))
        record.verdict = str(Verdict.UNKNOWN if problem.exit_code is Exit.CANNOT_SEE else Verdict.FAILED)
        record.exit_code = int(problem.exit_code)
        record.error = {"type": type(problem).__name__, "message": problem.message, "hint": problem.hint}
    record.finished_at = record.finished_at or records.now()
    with suppress(OSError):
        records.write(record, path)
    return record


def _way_on(context: RunContext) -> str:
    """Return what to do about a run that was cut off while it was allowed to change something."""
    begun = context.parameters.get("dry_run") is False and (Path(context.record).parent / folders.PLAN).is_file()
    run_id = context.run_id
    return f"`ops resume {run_id}` goes on with it, `ops undo {run_id}` puts back what was done." if begun else ""


def archived(record: RunRecord, folder: Path, *, declared: Sequence[Parameter] = ()) -> RunResult:
    """Write report, checksums and the archive's index; a full disk costs the report, not the run's outcome."""
    from opslib.render import archive, leaks, report

    notebook = folder / folders.NOTEBOOK
    path: Path | None
    try:
        path = report.write_report(
            folder / folders.REPORT, notebook if notebook.is_file() else None, record, declared=declared
        )
        archive.seal(folder)
        archive.index(settings.reports_root())
    except OSError:
        path = None
    leaked = tuple(leaks.swept(settings.reports_root(), folder, record))
    return RunResult(record=record, folder=folder, report=path if path and path.is_file() else None, leaked=leaked)


@contextmanager
def environment(context: RunContext) -> Iterator[None]:
    """Tell whatever runs in the block about its run; a kernel inherits the environment at its start."""
    with tempfile.TemporaryDirectory(prefix="opslib-") as private:
        told = {
            records.RUN_ENV: msgspec.json.encode(context).decode(),
            "OPS_REPORTS": str(settings.reports_root()),
            "OPS_PROJECT": str(settings.project(os.environ).absolute()),
            "IPYTHONDIR": private,  # a user's start-up files are no part of a runbook,
            "PYTHONSTARTUP": "",  # and IPython runs this one too
        }
        if context.target:
            told["OPS_TARGET"] = context.target
        before = {name: os.environ.get(name) for name in told}
        os.environ.update(told)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: with a report."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the report be written, whoever is impatient by now."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
