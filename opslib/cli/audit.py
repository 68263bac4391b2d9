"""ops audit: whether the audit's lines are whole, and say the same as the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from opslib.cli import options, output
from opslib.errors import Exit, OpsError

if TYPE_CHECKING:
    from opslib.writer.audited import Report

app = typer.Typer(help="The record of every change.", no_args_is_help=True)


@app.callback()
def common() -> None:
    """The record of every change: audit.jsonl in the archive."""


@app.command()
def verify(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Check every line of the audit, and compare it with the journals in the broker.

    Exit 0: it is whole. 1: somebody has to look. 4: it is whole, and the broker could not be asked.

    Example: ops audit verify --target prod
    """
    del verbose
    from opslib.writer import audit, audited

    report = audited.verify(audit.path())
    trouble: OpsError | None = None
    try:
        report = audited.reconcile(report, output.open_broker(target, env_file))
    except OpsError as error:
        trouble = error
    _show(report, output.form(output_form, as_json=as_json))
    if trouble:
        output.problem(trouble)
    if report.unseen:
        output.say(f"Not the whole view: {report.unseen}")
    if not report.whole:
        raise typer.Exit(int(Exit.ATTENTION))
    if trouble or report.unseen:
        raise typer.Exit(int(trouble.exit_code if trouble else Exit.CANNOT_SEE))


def _show(report: Report, form: options.Format) -> None:
    if form in {options.Format.JSON, options.Format.JSONL}:
        told = {"path": str(report.path), "lines": report.lines, "whole": report.whole, "problems": report.problems}
        output.document({**told, "broker": report.broker or None, "unseen": report.unseen}, form)
    elif form is options.Format.IDS:
        output.emit(
            [row for row in report.problems if row.run_id], form, table=lambda: "", ids=lambda row: str(row.run_id)
        )
    else:
        from opslib.render import listings

        output.show(*listings.audit(report))
