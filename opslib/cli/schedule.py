"""ops schedule: what beat sends and when, and to send, pause, resume one entry of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opslib.cli import changes, options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opslib.broker import Broker
    from opslib.facts.beat import Schedules
    from opslib.facts.snapshot import Snapshot
    from opslib.findings import Finding
    from opslib.plan import Outcome

#: What its runs are called.
NAME = "beat-schedule"
Entry = Annotated[str, typer.Argument(metavar="ENTRY", help="As `ops schedule list` shows it.")]
OverdueAfter = Annotated[str, typer.Option("--overdue-after", metavar="TIME", help="So late is overdue.")]
_OVERDUE_AFTER = "6m"

app = typer.Typer(no_args_is_help=True, help="What beat sends, and when.")


@app.command(name="list")
def listed(
    overdue_after: OverdueAfter = _OVERDUE_AFTER,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List the entries of the schedule: how often, last and next time, and what is wrong with them.

    Exit 1: something is overdue or broken. 4: not everything could be seen, such as the file of Celery's own beat.

    Example: ops schedule list --target prod
    """
    del verbose
    from opslib.findings import verdict
    from opslib.records import exit_code
    from opslib.render import beat, judged
    from opslib.symptoms import beat_schedule

    form = output.form(output_form, as_json=as_json)
    seen = _look(target, env_file, timeout)
    findings = beat_schedule.diagnose(seen, beat_schedule.Thresholds.of(overdue_after))
    output.emit(seen.entries, form, table=lambda: beat.entries(seen.entries, seen.taken_at), ids=lambda row: row.name)
    if findings and form is options.Format.TABLE:
        output.show(judged.findings(findings))
    raise typer.Exit(int(exit_code(verdict(findings))))


@app.command()
def run(
    entry: Entry,
    to: Annotated[str, typer.Option("--to", metavar="QUEUE", help="Where it waits; else where the entry says.")] = "",
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
    Send the task of an entry now, whether beat runs or not; the schedule goes on as before.

    Example: ops schedule run nightly-report --apply
    """
    del verbose
    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _change("run", entry, to, target, env_file, timeout, form, asks)


@app.command()
def pause(
    entry: Entry,
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
    Have beat leave an entry out, where redbeat or django-celery-beat keeps the schedule.

    Example: ops schedule pause nightly-report --apply --reason "the warehouse moves"
    """
    del verbose
    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _change("pause", entry, "", target, env_file, timeout, form, asks)


@app.command()
def resume(
    entry: Entry,
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
    Have beat send an entry again; if it was due meanwhile, at once.

    Example: ops schedule resume nightly-report --apply
    """
    del verbose
    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _change("resume", entry, "", target, env_file, timeout, form, asks)


def _look(target: str, env_file: str, timeout: str) -> Schedules:
    from opslib.collectors.beat import schedule

    return schedule(output.open_broker(target, env_file), answer_within=timeout)


def _change(
    do: str, entry: str, to: str, target: str, env_file: str, timeout: str, form: options.Format, asks: changes.Ask
) -> NoReturn:
    from opslib import records
    from opslib.collectors.beat import schedule
    from opslib.symptoms import beat_schedule

    broker = output.open_broker(target, env_file)
    seen = schedule(broker, answer_within=timeout)
    made = beat_schedule.plan(seen, do=do, name=entry, to=to)
    found = records.rows(beat_schedule.diagnose(seen))

    def look(broker: Broker, _: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        after = schedule(broker, answer_within=timeout)
        return after, beat_schedule.diagnose(after)

    changes.change(broker, made, do, form, name=NAME, asks=asks, found=found, look=look)
