"""ops results stats, and ops results clean: what is stored of results, and what of it has been kept long enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import changes, options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opslib.broker import Broker
    from opslib.direct import Look
    from opslib.facts.snapshot import Snapshot
    from opslib.facts.stored import Stored
    from opslib.findings import Finding
    from opslib.plan import Outcome
    from opslib.retention import Retention

NAME = "clean-results"

OlderThan = Annotated[
    str,
    typer.Option(
        "--older-than", metavar="TIME", help="In place of the target's retention: older than this, such as 24h."
    ),
]
Status = Annotated[
    list[str], typer.Option("--status", metavar="STATE", help="Only this state, also a custom one; may be repeated.")
]
Task = Annotated[str, typer.Option("--task", metavar="GLOB", help="Only tasks whose name fits, such as shop.*.")]
Expires = Annotated[
    str,
    typer.Option(
        "--result-expires", metavar="TIME", help="The application's setting: tells how old unfinished results are."
    ),
]
Everything = Annotated[bool, typer.Option("--everything", help="Confirm that results of any age or task are meant.")]
Lasting = Annotated[
    str,
    typer.Option("--lasting", metavar="WORD", help="Those that never expire: expire (give a life), delete or leave."),
]
Clean = Annotated[str, typer.Option("--clean", metavar="WORD", help="Only results, or only replies.")]

app = typer.Typer(help="What is stored of results, and what of it is too old.", no_args_is_help=True)


def register(application: typer.Typer) -> None:
    """Add the commands to the application."""
    application.add_typer(app, name="results")


@app.command()
def stats(
    older_than: OlderThan = "",
    status: Status = [],  # noqa: B006 - how Typer spells it
    task: Task = "",
    result_expires: Expires = "",
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Count the stored results by task, state, age and retention, and what they weigh; nothing is changed.

    With -o ids: the names of their tasks.

    Example: ops results stats --target prod
    """
    del verbose
    form = output.form(output_form, as_json=as_json)
    broker = output.open_broker(target, env_file)
    seen = _look(broker, _asked(broker, older_than, status, task, result_expires), timeout, only_count=True)
    if form is options.Format.TABLE:
        from opslib.render import stored

        output.show(*stored.show(seen))
    elif form in {options.Format.IDS, options.Format.JSONL}:
        output.emit(seen.groups, form, table=lambda: "", ids=lambda row: str(row.task))
    else:
        output.document(
            {
                "taken_at": seen.taken_at,
                "results": seen.count,
                "size_bytes": seen.size_bytes,
                "rules": [{"task": rule.name, "keep_s": rule.keep_s} for rule in seen.retention.rules],
                "groups": seen.groups,
                "leftovers": seen.leftovers,
                "lives_s": seen.lives_s,
                "strangers": seen.strangers,
                "coverage": seen.coverage,
            },
            form,
        )
    output.blind(seen.coverage)


@app.command()
def clean(
    older_than: OlderThan = "",
    status: Status = [],  # noqa: B006 - how Typer spells it
    task: Task = "",
    result_expires: Expires = "",
    everything: Everything = False,
    lasting: Lasting = "expire",
    only: Clean = "",
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
    Remove results that are past their retention, and give a life to those that never expire.

    Results of tasks that can still be run stay. Also removed: answers to control clients that are gone. What was done
    is put back by `ops undo`. Whatever else piles up, `ops run weekly-cleanup` finds and removes.

    Example: ops results clean --older-than 24h --status FAILURE --target prod --apply
    """
    del verbose
    from opslib import records
    from opslib.symptoms import weekly_cleanup

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    broker = output.open_broker(target, env_file)
    retention = _asked(broker, older_than, status, task, result_expires, everything=everything)
    seen = _look(broker, retention, timeout)
    findings = weekly_cleanup.diagnose(seen)
    plan = weekly_cleanup.plan(seen, findings, lasting=lasting, clean=only)
    for sentence in seen.unseen:
        output.say(f"Not the whole view: {sentence} No result is touched.")
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    found = records.rows(findings)
    look = _again(retention, timeout)
    changes.change(broker, plan, "clean", form, name=NAME, asks=asks, found=found, look=look)


def _asked(
    broker: Broker, older_than: str, status: Sequence[str], task: str, result_expires: str, *, everything: bool = False
) -> Retention:
    from opslib.symptoms import weekly_cleanup

    return weekly_cleanup.asked(
        broker,
        older_than=older_than,
        status=",".join(status),
        task=task,
        result_expires=result_expires,
        everything=everything,
    )


def _look(broker: Broker, retention: Retention, timeout: str, *, only_count: bool = False) -> Stored:
    from opslib.collectors.stored import stored

    return stored(broker, retention, answer_within=timeout, only_count=only_count)


def _again(retention: Retention, timeout: str) -> Look:
    """Return the look at what is stored afterwards."""

    def look(broker: Broker, outcomes: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.symptoms import weekly_cleanup

        seen = _look(broker, retention, timeout)
        return seen, weekly_cleanup.diagnose(seen, outcomes=outcomes)

    return look
