"""ops config: which values count, whether what they name can be reached, and whether it is what it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from opslib.cli import confirm, options, output
from opslib.errors import Exit, OpsError, Refused

app = typer.Typer(help="The settings of a target.", no_args_is_help=True)


@app.command()
def show(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show a target's values, secrets masked, and where each came from.

    Example: ops config show --target prod
    """
    del verbose
    from opslib import settings
    from opslib.render import listings

    chosen = settings.load(target, env_file=env_file)
    rows = settings.described(chosen)
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.values(rows),
        ids=lambda row: str(row["setting"]),
    )
    for warning in chosen.warnings:
        output.say(f"Warning: {warning}")


@app.command()
def check(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    timeout: options.Timeout = options.TIMEOUT,
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Try to reach everything that a target names; exit 4 if a part cannot be seen.

    Example: ops config check --target prod
    """
    del verbose
    from opslib.collectors.parts import reach
    from opslib.render import tables

    try:
        coverage = reach(output.open_broker(target, env_file), answer_within=timeout)
    except OpsError as error:
        if error.exit_code is not Exit.CANNOT_SEE:
            raise
        output.problem(error)
        raise typer.Exit(int(Exit.CANNOT_SEE)) from None
    output.emit(
        coverage,
        output.form(output_form, as_json=as_json),
        table=lambda: tables.coverage(coverage),
        ids=lambda row: str(row.place),
    )
    output.blind(coverage)


@app.command()
def stamp(
    label: Annotated[str, typer.Option("--label", metavar="TEXT", help="What people call it, if not that.")] = "",
    target: options.Target = "",
    apply: options.Apply = False,
    dry_run: options.DryRun = False,
    confirmed: options.Confirm = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Write into a broker which environment it is; a target that names another one is then refused.

    It is named as the target's `environment`, or else as the target, and written once: no stamp is ever overwritten.
    Without --apply it shows what it would write. Exit 0: it is stamped. 1: it is not yet.

    Example: ops config stamp --target prod --apply
    """
    del verbose
    from opslib.render import listings
    from opslib.writer import stamp as stamps

    confirm.exclusive(apply=apply, dry_run=dry_run)
    broker = output.open_broker(target, env_file)
    name, key = broker.target.name, broker.keys.environment
    wanted = broker.target.environment or name
    if broker.environment and wanted not in {broker.environment["env"], broker.environment.get("id")}:
        raise Refused(
            f"{broker.target.shown_broker} is stamped {broker.environment['env']!r}, not {wanted!r}. "
            "Nothing was changed.",
            hint="A stamp is written once. Is this the broker that is meant?",
        )
    stamped = bool(broker.environment)
    if not stamped and apply:
        confirm.permitted(name, protected=broker.target.protected, yes=True, confirmed=confirmed)
    made = dict(broker.environment) or stamps.make(broker, wanted, label)
    if not stamped and apply:
        stamps.write(broker, made)
    origin = "the broker" if stamped else "written now" if apply else "not written"
    rows = [{"setting": field, "value": value, "from": origin} for field, value in made.items()]
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: listings.values(rows),
        ids=lambda row: str(row["setting"]),
    )
    if not stamped and not apply:
        output.say(f"This would be written to {key} of {broker.target.shown_broker}; --apply does it.")
        raise typer.Exit(int(Exit.ATTENTION))
    if not broker.target.environment:
        output.say(f'To have it checked, set environment = "{wanted}" in the table of target {name}.')
