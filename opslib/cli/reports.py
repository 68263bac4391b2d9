"""ops reports: the archive of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import options, output
from opslib.errors import BadParameter, Exit, OpsError

if TYPE_CHECKING:
    from opslib.render.figures import Figures

#: So long a run can be undone, and its folder may be needed for that.
_LEAST_S = 14 * 86_400.0

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
def diff(
    earlier: Annotated[
        str, typer.Argument(metavar="[RUN_ID]", help="A run; by default the newest is compared with the one before.")
    ] = "",
    later: Annotated[
        str, typer.Argument(metavar="[RUN_ID]", help="Another; by default the run before the first is taken.")
    ] = "",
    runbook: Annotated[str, typer.Option("--runbook", metavar="NAME", help="The newest runs of this one.")] = "",
    target: options.Target = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Compare two runs of one runbook on one target: findings that are new, worse, better or gone, and other figures.

    What each run left behind is compared, after its changes. A finding that was not met again counts as gone only where
    the later run saw everything. -o ids names what is new or worse.

    Exit 1: something is new or worse. Exit 4: nothing is, as far as could be seen, and one run did not see everything.

    Example: ops reports diff --runbook health-check
    """
    del verbose
    from opslib import settings
    from opslib.render import compared

    found = compared.compare(
        *compared.chosen(settings.reports_root(), (earlier, later), runbook=runbook, target=target)
    )
    form = output.form(output_form, as_json=as_json)
    if form in {options.Format.JSON, options.Format.JSONL}:
        output.document(compared.document(found), form)
    elif form is options.Format.IDS:
        output.emit(found.worse, form, table=lambda: "", ids=lambda row: str(row.subject))
    else:
        output.show(*compared.shown(found))
    if found.worse:
        raise typer.Exit(int(Exit.ATTENTION))
    if found.unseen:
        raise typer.Exit(int(Exit.CANNOT_SEE))


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


@app.command()
def verify(
    run_id: Annotated[str, typer.Argument(metavar="[RUN_ID]", help="A run; all of them by default.")] = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Compare the files of runs with the checksums that were written when they ended.

    Exit 1: a file was changed, added or removed since; `ops audit verify` does the same for the record of changes.

    Example: ops reports verify
    """
    del verbose
    from opslib import folders, settings
    from opslib.render import archive, listings

    root = settings.reports_root()
    names = [archive.find(root, run_id).run_id] if run_id else [run.name for run in archive.folders(root)]
    rows = [
        {"run_id": name, "problem": problem} for name in names for problem in archive.verify(folders.folder(root, name))
    ]
    form = output.form(output_form, as_json=as_json)
    output.emit(rows, form, table=lambda: listings.altered(rows), ids=lambda row: str(row["run_id"]))
    if form is options.Format.TABLE:
        output.say(f"{len(names):,} looked at, {len({row['run_id'] for row in rows}):,} not as they were sealed.")
    if rows:
        raise typer.Exit(int(Exit.ATTENTION))


@app.command()
def prune(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Runs of before so long, such as 90d.")
    ],
    with_kept: Annotated[
        bool, typer.Option("--with-kept", help="Also those whose folder holds what was removed from a broker.")
    ] = False,
    apply: options.Apply = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Remove the folders of old runs from the archive, for good; the audit keeps what they did.

    A folder that holds what a run took out of a broker, a vault or an export, may be the only copy of it: it stays
    unless --with-kept says so.

    Exit 1: some stay for that reason.

    Example: ops reports prune --older-than 90d --apply
    """
    del verbose
    from datetime import UTC, datetime, timedelta

    from opslib import durations, folders, settings
    from opslib.cli import confirm
    from opslib.render import archive, listings
    from opslib.render import prune as pruning

    confirm.exclusive(apply=apply, dry_run=dry_run)
    if apply:
        confirm.possible(yes=yes)
    age_s = durations.seconds(older_than, "--older-than")
    if age_s < _LEAST_S:
        hint = "So long `ops undo` may need what a run has kept."
        raise BadParameter(f"--older-than: {older_than} is less than 14 days. Nothing was removed.", hint=hint)
    form = output.form(output_form, as_json=as_json)
    root = settings.reports_root()
    found = list(pruning.before(root, datetime.now(UTC) - timedelta(seconds=age_s)))
    meant = [run for run in found if with_kept or not run.kept]
    stay = [run for run in found if run not in meant]
    output.emit(meant, form, table=lambda: listings.old_runs(meant), ids=lambda run: run.run_id)
    removed = 0
    if apply and meant and (yes or confirm.ask("archive", "prune", len(meant))):
        removed = sum(pruning.remove(root, folders.folder(root, run.run_id)) for run in meant)
        archive.index(root)
        output.say(f"{removed:,} of {len(meant):,} were removed.")
    elif meant and not apply:
        output.say(f"Nothing was removed. {len(meant):,} would be, with --apply.")
    if stay:
        output.say(f"Left: {len(stay):,}, which keep what was removed from a broker. --with-kept removes them too.")
    if stay or removed < len(meant):
        raise typer.Exit(int(Exit.ATTENTION))


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
