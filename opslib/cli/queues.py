"""ops queues, ops queue purge: how deep every queue is, who consumes it, and how one is emptied."""

from __future__ import annotations

from typing import Annotated

import typer

from opslib.cli import changes, confirm, options, output

Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue's name; `ops queues` lists them.")]

queue = typer.Typer(help="One queue: what is to become of what waits in it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="queues")(queues)
    app.add_typer(queue, name="queue")


def queues(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List every queue with its depth by priority and its consumers.

    Example: ops queues --target prod -o json
    """
    del verbose
    from opslib.collectors import depths
    from opslib.render import tables

    rows, coverage = depths(output.open_broker(target, env_file), answer_within=timeout)
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: tables.queues(rows),
        ids=lambda row: str(row.name),
    )
    output.blind(coverage)


@queue.command()
def purge(
    name: Queue,
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
    Take all that waits in a queue out of circulation at once, whatever its size; `ops undo` puts it back.

    What nodes hold already, unacked, active or reserved, is not touched.

    Example: ops queue purge celery --target prod --apply --reason "import sent twice"
    """
    del verbose
    from opslib import plan, refusals
    from opslib.collectors import queues as collected
    from opslib.symptoms import asked

    form = output.form(output_form, as_json=as_json)
    confirm.exclusive(apply=apply, dry_run=dry_run)
    if apply:
        confirm.possible(yes=yes)
    broker = output.open_broker(target, env_file)
    _refuse_reserved(name, broker.keys.is_queue_like(broker.keys.queue(name)))
    with refusals.explained(broker.target.shown_broker):
        listings, _ = collected.lists(broker, [name])
        now = broker.server_time()
    actions = asked.purge(name, {each.key: each.length for each in listings})
    if not actions:
        output.say(f"Nothing waits in {name}. Nothing was changed.")
        return
    made = plan.make(broker.target.name, broker.fingerprint, actions, max_actions=1, made_at=now)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    changes.change(broker, made, "purge", form, name="purge-queue", asks=asks)


def _refuse_reserved(name: str, is_one: bool) -> None:
    """
    Refuse a name that cannot be a queue's.

    Raises:
        BadParameter: If it is empty, or a key of Celery's or our own.
    """
    from opslib.errors import BadParameter

    if not name or not is_one:
        raise BadParameter(f"{name!r} is no queue.", hint="`ops queues` lists them.")
