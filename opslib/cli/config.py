"""ops config: which values count, where they came from, and whether what they name can be reached."""

from __future__ import annotations

import typer

from opslib.cli import options, output
from opslib.errors import Exit, OpsError

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
    from opslib.collectors import reach
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
