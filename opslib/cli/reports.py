"""ops reports: the archive of runs."""

from __future__ import annotations

from typing import Annotated

import typer

from opslib.cli import options, output

app = typer.Typer(help="The archive of incident reports.", no_args_is_help=True)


@app.command(name="list")
def list_(
    runbook: Annotated[str, typer.Option("--runbook", metavar="NAME", help="Only runs of this one.")] = "",
    limit: options.Limit = 20,
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    List runs, newest first.

    Example: ops reports list --runbook stuck-tasks
    """
    del verbose
    from itertools import islice

    from opslib import settings
    from opslib.render import archive, listings

    found = (run for run in archive.runs(settings.reports_root()) if not runbook or run.runbook == runbook)
    rows = list(islice(found, limit))
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.runs(rows),
        ids=lambda run: str(run.run_id),
    )


@app.command(name="open")
def open_(
    run_id: Annotated[str, typer.Argument(metavar="[RUN_ID]", help="A run; the newest by default.")] = "",
    path_only: Annotated[bool, typer.Option("--path", help="Print the path instead of opening a browser.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Open a run's report in the browser.

    Example: ops reports open --path
    """
    del verbose
    import webbrowser

    from opslib import folders, settings
    from opslib.render import archive

    root = settings.reports_root()
    report = folders.folder(root, archive.find(root, run_id).run_id) / folders.REPORT
    typer.echo(str(report))
    if not path_only and not webbrowser.open(report.as_uri()):
        output.say("No browser could be opened; the path is above.")
