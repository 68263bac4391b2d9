"""ops app list, show, progress, logs, flush: what the application itself keeps for its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opslib.cli import changes, options, output, results
from opslib.errors import Exit, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opslib.broker import Broker
    from opslib.direct import Look
    from opslib.facts.app_keys import FoundKey, KeyScan
    from opslib.facts.snapshot import Snapshot
    from opslib.facts.whereabouts import Whereabouts
    from opslib.findings import Finding
    from opslib.plan import Outcome, Plan

#: Pause before a second look; made only where the first one was not enough.
_SETTLE = "0.5s"
#: What its runs are called.
NAME = "flush-app"

Name = Annotated[str, typer.Argument(metavar="NAME", help="As the target calls the keys under app_keys: progress.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help="The task's id.")]
Lines = Annotated[int, typer.Option("--limit", min=1, max=10_000, metavar="N", help="At most so many elements.")]
First = Annotated[bool, typer.Option("--first", help="Of a list, the first lines instead of the last ones.")]
Most = Annotated[int, typer.Option("--limit", min=1, max=10_000, metavar="N", help="At most so many keys in one run.")]
OlderThan = Annotated[
    str, typer.Option("--older-than", metavar="TIME", help="Only keys that nobody has read or written for so long.")
]
_LINES, _MOST = 100, 1_000

group = typer.Typer(
    help="What the application keeps: progress, logs and the like, and its state.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(group, name="app")


@group.command(name="list")
def list_(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Count the keys of each name that the target has, by their pattern, in small steps.

    Example: ops app list --target prod
    """
    del verbose
    import dataclasses

    from opslib.collectors import app_scan
    from opslib.errors import OpsError
    from opslib.facts.system import Coverage
    from opslib.render import app_values

    broker = output.open_broker(target, env_file)
    rows: list[KeyScan] = []
    unseen: list[Coverage] = []
    for name, each in broker.target.app_keys.items():
        try:
            rows.append(dataclasses.replace(app_scan.scan(broker, name, keep=1), rows=()))
        except OpsError as error:
            unseen.append(Coverage(place=f"keys in {each.shown}", seen=0, silent=1, note=error.message))
    names = [(name, each.pattern, each.shown) for name, each in broker.target.app_keys.items()]
    form = output.form(output_form, as_json=as_json)
    output.emit(rows, form, table=lambda: app_values.counts(rows, names), ids=lambda row: str(row.name))
    left = (Coverage(place=f"keys in {row.database}", seen=row.visited, silent=row.left) for row in rows)
    output.blind([*unseen, *left])


@group.command()
def show(
    name: Name,
    task_id: TaskId,
    limit: Lines = _LINES,
    first: First = False,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show what the application keeps under one name for one task: the fields of a hash, the last lines of a list.

    These are the application's own data, as they are; passwords are masked. Exit 2: there is no such key.

    Example: ops app show progress 8a1f… --target prod
    """
    del verbose
    from opslib.collectors import app_values as collected
    from opslib.render import app_values

    wanted = options.task_id(task_id)
    broker = output.open_broker(target, env_file)
    found = collected.read(broker, name, wanted, limit=limit, first=first)
    if found is None:
        each = broker.target.app_keys[name]
        hint = f"`ops find {wanted}` looks for the task itself; its key may have expired, or was never written."
        raise NotFound(f"There is no key {each.key(wanted)} in {each.shown}.", hint=hint)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        output.show(*app_values.value(found))
    elif form is options.Format.IDS:
        output.emit([found], form, table=lambda: "", ids=lambda row: str(row.key))
    else:
        output.document(found, form)


@group.command()
def progress(
    task_id: TaskId,
    limit: Lines = _LINES,
    first: First = False,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show how far a task says it is: the same as `ops app show progress TASK_ID`.

    Example: ops app progress 8a1f…
    """
    show("progress", task_id, limit, first, target, env_file, output_form, as_json, verbose)


@group.command()
def logs(
    task_id: TaskId,
    limit: Lines = _LINES,
    first: First = False,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show the last lines that a task has logged: the same as `ops app show logs TASK_ID`.

    Example: ops app logs 8a1f… --limit 20
    """
    show("logs", task_id, limit, first, target, env_file, output_form, as_json, verbose)


@group.command()
def flush(
    name: Name,
    older_than: OlderThan = "",
    limit: Most = _MOST,
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
    Remove the keys of one name of tasks that are over, the longest untouched first; `ops undo` writes them again.

    A key of a task in circulation stays. Where it cannot be seen whether one is, nothing is changed, and the exit
    code is 4. Exit 1: keys are left, or a plan waits.

    Example: ops app flush progress --older-than 7d --target prod --apply
    """
    del verbose
    from opslib import direct, records
    from opslib.durations import seconds
    from opslib.render import judged
    from opslib.symptoms import app_flush

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    older_than_s = seconds(older_than, "older_than") if older_than else 0.0
    broker = output.open_broker(target, env_file)
    seen, scan = _look(broker, name, older_than_s, timeout)
    _refuse_blind(seen)
    rows = app_flush.over(seen, scan)
    plan = app_flush.plan(broker.target.name, scan, rows, limit=limit)
    for sentence in app_flush.told(scan, rows, len(plan)):
        output.say(sentence)
    if not plan:
        _nothing(scan, form)
    if form is options.Format.TABLE and (yes or not apply):
        output.show(judged.plan(plan))
    if apply:
        changes.agreed(broker, [plan], "flush", changes.Ask(yes=yes, confirmed=confirmed, reason=reason))
        # While a person read, somebody may have sent one of them again.
        refuse_unless_over(broker, plan, timeout)
    found = records.rows(app_flush.diagnose(seen, scan, rows))
    look = _afterwards(scan, older_than_s, timeout)
    run = direct.run(NAME, plan, broker, dry_run=not apply, reason=reason, runbook=NAME, found=found, look=look)
    results.conclude(run, form)


def refuse_unless_over(broker: Broker, plan: Plan, timeout: str = options.TIMEOUT) -> None:
    """
    Look once more whether the tasks of a plan are over: it says what their keys are called, and not that they run.

    Raises:
        Refused: If one is in circulation.

        typer.Exit: With 4 if a place was not seen in which one could be.
    """
    from opslib.symptoms import app_flush

    known = broker.target.app_keys
    named = [known[each.source].task_id(each.subject) for each in plan if each.source in known]
    seen = _whereabouts(broker, named, timeout)
    _refuse_blind(seen)
    if live := sorted(app_flush.in_circulation(seen)):
        more = f" and {len(live) - 1:,} more tasks are" if len(live) > 1 else " is"
        hint = f"`ops app flush` makes a plan without {'them' if len(live) > 1 else 'it'}."
        raise Refused(f"{live[0]}{more} in circulation by now. Nothing was changed.", hint=hint)


def _look(broker: Broker, name: str, older_than_s: float, timeout: str) -> tuple[Whereabouts, KeyScan]:
    """Scan for keys first and look for their tasks then: whoever is sent in between is met."""
    from opslib.collectors import app_scan

    scan = app_scan.scan(broker, name, older_than_s=older_than_s)
    return _whereabouts(broker, (row.task_id for row in scan.rows), timeout), scan


def _whereabouts(broker: Broker, named: Iterable[str], timeout: str) -> Whereabouts:
    from opslib.collectors.find import find
    from opslib.symptoms import app_flush

    return find(broker, app_flush.ids(named), kept=False, settle=_SETTLE, answer_within=timeout)


def _refuse_blind(seen: Whereabouts) -> None:
    """
    Go on only if everything was seen in which a task could still be.

    Raises:
        typer.Exit: With 4 otherwise.
    """
    from opslib.symptoms import cleanup

    unseen = cleanup.blind(seen)
    for sentence in unseen:
        output.say(f"Not the whole view: {sentence}")
    if unseen:
        output.say("Which tasks still run cannot be told, and what runs writes its keys again. Nothing was changed.")
        raise typer.Exit(int(Exit.CANNOT_SEE))


def _afterwards(before: KeyScan, older_than_s: float, timeout: str) -> Look:
    """Return the look at what is left of the keys that were old enough: what has aged since is not among them."""

    def look(broker: Broker, _: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.symptoms import app_flush

        passed_s = (broker.server_time() - before.taken_at).total_seconds()
        seen, scan = _look(broker, before.name, older_than_s + passed_s if older_than_s else 0.0, timeout)
        rows: list[FoundKey] = app_flush.over(seen, scan)
        return seen, app_flush.diagnose(seen, scan, rows)

    return look


def _nothing(scan: KeyScan, form: options.Format) -> NoReturn:
    """
    Say that there is nothing to remove.

    Raises:
        typer.Exit: With 0, or 4 if not the whole database was visited.
    """
    if form in {options.Format.JSON, options.Format.JSONL}:
        output.document(scan, form)
    output.say("There is nothing to remove. Nothing was changed.")
    raise typer.Exit(int(Exit.CANNOT_SEE if scan.left else Exit.DONE))
