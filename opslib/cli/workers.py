"""ops workers: every node, what it runs, and who stays silent."""

from __future__ import annotations

import typer

from opslib.cli import options, output


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="workers")(workers)


def workers(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List the nodes: pool, slots, queues, memory, and the names that do not answer.

    Example: ops workers --target prod
    """
    del verbose
    from opslib.collectors import nodes
    from opslib.render import tables

    rows, held, coverage = nodes(output.open_broker(target, env_file), answer_within=timeout)
    output.emit(
        rows,
        output.form(output_form, as_json=as_json),
        table=lambda: tables.nodes(rows, held),
        ids=lambda row: str(row.name),
    )
    output.blind([coverage])
