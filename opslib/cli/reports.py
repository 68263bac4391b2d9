"""ops reports: the archive of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import options, output
from opslib.errors import Exit, OpsError

if TYPE_CHECKING:
    from opslib.render.figures import Figures

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


@app.command()
def stats(
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Only the last so long, such as 30d.")] = "",
    target: options.Target = "",
    results: Annotated[bool, typer.Option("--results", help="Ask how the tasks that were resumed have ended.")] = False,
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Count what was done: runs, changes and their failures, tasks resumed and reordered, keys removed, letters sent.

    From the records and the audit alone; a run whose record is gone is counted by the audit. -o ids names the runs
    that failed, or in which a change did. Exit 4: with --results, not every result could be asked for.

    Example: ops reports stats --since 30d
    """
    del verbose
    from datetime import UTC, datetime, timedelta

    from opslib import durations, settings
    from opslib.render import figures, tally

    start = ""
    if since:
        start = f"{datetime.now(UTC) - timedelta(seconds=durations.seconds(since, 'since')):%Y-%m-%dT%H:%M:%SZ}"
    root = settings.reports_root()
    try:
        audited, broken = tally.read(root / tally.AUDIT)
    except OSError as error:
        output.say(f"Warning: the audit cannot be read: {error.strerror}. Only the records are counted.")
        audited, broken = {}, 0
    found = tally.of(root, audited, since=start, target=target, broken=broken)
    if results:
        found = _looked(found, env_file)
    form = output.form(output_form, as_json=as_json)
    if form in {options.Format.JSON, options.Format.JSONL}:
        output.document(figures.document(found), form)
    elif form is options.Format.IDS:
        output.emit(list(found.attention), form, table=lambda: "", ids=str)
    else:
        output.show(*figures.tables(found))
    for sentence in found.resumed.unseen:
        output.say(f"Not the whole view: {sentence}")
    if found.resumed.unseen:
        raise typer.Exit(int(Exit.CANNOT_SEE))


def _looked(found: Figures, env_file: str) -> Figures:
    """Ask each target for the results of the tasks that were resumed on it."""
    from opslib.collectors import results
    from opslib.render import figures

    states: dict[str, dict[str, str]] = {}
    unseen = []
    for target, ids in found.resumed.ids.items():
        try:
            rows, coverage = results.by_id(output.open_broker(target, env_file), ids)
        except OpsError as error:
            unseen.append(f"{target}: {error.message}")
            continue
        if coverage.silent:
            unseen.append(f"{target}: {coverage.note}")
        else:
            states[target] = {row.task_id: row.state for row in rows}
    return figures.looked(found, states, unseen)
