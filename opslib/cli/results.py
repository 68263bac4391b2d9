"""A run that has ended → what its command prints, and the exit code that it ends with."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from opslib.cli import options, output

if TYPE_CHECKING:
    from opslib.session import RunResult


def summary(result: RunResult) -> tuple[object, ...]:
    """Return what a person at a terminal has to know of a run."""
    from opslib.render import summary as rendered

    report = os.path.relpath(result.report) if result.report else ""
    return rendered.of_run(result.record, report, by_make="MAKELEVEL" in os.environ)


def conclude(result: RunResult, form: options.Format) -> NoReturn:
    """
    Print what the run came to.

    Raises:
        typer.Exit: With the run's exit code.
    """
    from opslib.render import words

    for sentence in result.leaked:
        output.say(sentence)
    if form is options.Format.TABLE:
        output.show(*summary(result))
    elif form is options.Format.IDS:
        record = result.record  # of a change, what it is about; of a runbook, what remains
        rows = words.actions_of(record) if record.scope == "change" else record.remaining
        output.emit(rows, form, table=lambda: "", ids=lambda row: str(row["subject"]))
    else:
        output.document(result.record, form)
    sys.stdout.flush()
    raise typer.Exit(int(result.exit_code))
