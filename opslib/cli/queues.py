"""ops queues: how deep every queue is, by priority, and who consumes it."""

from __future__ import annotations

import typer

from opslib.cli import options, output


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="queues")(queues)


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
