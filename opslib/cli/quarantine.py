"""ops quarantine: what was taken out of circulation and is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import changes, confirm, options, output

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.messages import Quarantined

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="Run that took the messages out of circulation.")]

app = typer.Typer(help="Messages that were taken out of circulation and are kept.", no_args_is_help=True)


@app.command(name="list")
def list_(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    List every quarantine: which run filled it, from which queue, with how many messages.

    Example: ops quarantine list --target prod
    """
    del verbose
    from opslib.render import listings

    rows = _lists(output.open_broker(target, env_file))
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.quarantines(rows),
        ids=lambda row: str(row.run_id),
    )


@app.command()
def show(
    run_id: RunId,
    target: options.Target = "",
    limit: options.Limit = options.LIMIT,
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show the messages that a run took out of circulation, the next to be served first; arguments are not shown.

    Example: ops quarantine show 20261121T021500Z-stuck-tasks-7f3a9c
    """
    del verbose
    from opslib import refusals
    from opslib.collectors import quarantine
    from opslib.render import listings

    broker = output.open_broker(target, env_file)
    lists = _of_run(broker, run_id)
    with refusals.explained(broker.target.shown_broker):
        rows = [row for each in lists for row in list(quarantine.messages(broker, each, limit=limit))[::-1]][:limit]
    total = sum(each.count for each in lists)
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.quarantined(rows, total),
        ids=lambda row: str(row.subject),
    )


@app.command()
def drop(
    run_id: RunId,
    target: options.Target = "",
    apply: options.Apply = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    confirmed: options.Confirm = "",
    reason: options.Reason = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Remove a run's quarantine from the server for good, after its messages were written to a file.

    This cannot be undone by `ops undo`; the file holds every byte.

    Example: ops quarantine drop 20261121T021500Z-stuck-tasks-7f3a9c --apply
    """
    del verbose
    from opslib import refusals
    from opslib.symptoms import asked
    from opslib.writer import drop as dropping

    form = output.form(output_form, as_json=as_json)
    confirm.exclusive(apply=apply, dry_run=dry_run)
    if apply:
        confirm.possible(yes=yes)
    broker = output.open_broker(target, env_file)
    lists = _of_run(broker, run_id)
    with refusals.explained(broker.target.shown_broker):
        dropping.refuse_unfinished(broker, run_id)  # before anybody is asked to agree to it
    actions = asked.drop(lists)
    made = changes.planned(broker, actions)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    changes.change(broker, made, "drop", form, name="drop-quarantine", asks=asks)


def _lists(broker: Broker, run_id: str = "") -> list[Quarantined]:
    from opslib import refusals
    from opslib.collectors import quarantine

    with refusals.explained(broker.target.shown_broker):
        return quarantine.lists(broker, run_id)


def _of_run(broker: Broker, run_id: str) -> list[Quarantined]:
    """
    Return the lists of one run.

    Raises:
        NotFound: If it has none here, or the id is none.
    """
    from opslib import folders, settings
    from opslib.errors import NotFound

    folders.folder(settings.reports_root(), run_id)
    lists = _lists(broker, run_id)
    if not lists:
        hint = "`ops quarantine list` shows the runs that do."
        raise NotFound(f"Run {run_id} has nothing in quarantine on {broker.target.name}.", hint=hint)
    return lists
