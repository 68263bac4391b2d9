"""ops app state, reset: the row in which an application says what it is at, and to set it back."""

from __future__ import annotations

from typing import Annotated

import typer

from opslib.cli import changes, options, output
from opslib.cli.app_keys import group

#: What its runs are called.
NAME = "reset-state"
_SETTLE = "0.01s"
Name = Annotated[str, typer.Argument(metavar="NAME", help="As the target calls the row under state_rows.")]


def register(app: typer.Typer) -> None:
    """Leave it to the group that its commands belong to."""
    del app


@group.command()
def state(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show what the application says that it is at, in the rows that the target has under state_rows.

    Exit 1: one is not idle, or is not there.

    Example: ops app state --target prod
    """
    del verbose
    from opslib.collectors import state_rows
    from opslib.errors import Exit
    from opslib.render import rows as tables

    form = output.form(output_form, as_json=as_json)
    found = state_rows.read(output.open_broker(target, env_file))
    output.emit(found, form, table=lambda: tables.states(found), ids=lambda row: row.name)
    raise typer.Exit(int(Exit.DONE if all(row.is_idle for row in found) else Exit.ATTENTION))


@group.command()
def reset(
    name: Name,
    target: options.Target = "",
    apply: options.Apply = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    confirmed: options.Confirm = "",
    reason: options.Reason = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Set such a row back to idle, if it still holds what was seen; the old values are kept.

    A task that runs on may set it again, so the ones that do are counted first.

    Example: ops app reset agent --apply --reason "the agent died"
    """
    del verbose
    from opslib import plan as plans
    from opslib.collectors import state_rows
    from opslib.collectors.deployment import collect
    from opslib.errors import NotFound
    from opslib.symptoms import state_reset

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    broker = output.open_broker(target, env_file)
    (row,) = state_rows.read(broker, name)
    if row.problem:
        raise NotFound(f"{row.table}: {row.problem}", hint="Check the key of the row in ops.toml.")
    seen = collect(broker, answer_within=timeout, settle=_SETTLE)
    running = sum(task.place == "active" for task in seen.held)
    if running or seen.silent_nodes:
        more = f", and {seen.silent_nodes} did not answer" if seen.silent_nodes else ""
        output.say(f"{running:,} task{'s run' if running != 1 else ' runs'}{more}: the application may set it again.")
    actions = list(state_reset.actions([row]))
    made = plans.make(seen.target, seen.fingerprint, actions, max_actions=1, made_at=seen.taken_at)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    changes.change(broker, made, "reset", form, name=NAME, asks=asks)
