"""ops stats: the overall figures of a deployment."""

from __future__ import annotations

from dataclasses import replace

import typer

from opslib.cli import options, output


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="stats")(stats)


def stats(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Show how many tasks there are in each place, how busy the nodes are, and what is stored.

    Where the target is configured with task tables of its application, their rows by status too.

    Nothing is judged here: `ops run stuck-tasks` and `ops run queue-backlog` say what is wrong.

    Example: ops stats --target prod
    """
    del verbose
    from opslib.collectors import task_rows
    from opslib.collectors.deployment import collect
    from opslib.render import overview

    broker = output.open_broker(target, env_file)
    seen = collect(broker, answer_within=timeout, settle="0.01s")
    statuses, coverage = task_rows.overall(broker.target)
    seen = replace(seen, statuses=tuple(statuses), coverage=(*seen.coverage, *coverage))
    form = output.form(output_form, as_json=as_json)
    if form in {options.Format.JSON, options.Format.JSONL}:
        output.document(overview.figures(seen), form)
    elif form is options.Format.IDS:
        output.emit([row.name for row in seen.answering], form, table=lambda: "", ids=str)
    else:
        output.show(*overview.stats(seen))
    output.blind(seen.coverage)
