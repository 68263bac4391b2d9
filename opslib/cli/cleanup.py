"""ops task cleanup: the keys that a task has left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from opslib.cli import changes, find, options, output, results
from opslib.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opslib.broker import Broker
    from opslib.direct import Look
    from opslib.facts.app_keys import TaskKey
    from opslib.facts.snapshot import Snapshot
    from opslib.facts.whereabouts import Whereabouts
    from opslib.findings import Finding
    from opslib.plan import Outcome, Plan
    from opslib.session import RunResult

#: Pause before a second look; made only where the first one was not enough.
_SETTLE = "0.5s"
#: What its runs are called.
NAME = "cleanup-task"


def register(_: typer.Typer) -> None:
    """Add the command to those of single tasks."""
    find.task.command()(cleanup)


def cleanup(
    ids: find.Ids,
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
    Remove what a task has left behind: its result, and the application's own keys that the target names.

    A task that is still in circulation is refused. Each database is a run of its own, which `ops undo` puts back.

    Exit 1: nothing was found, or something is left. 4: not everything could be seen. 5: a task is in circulation.

    Example: ops task cleanup 8a1f… --target prod --apply
    """
    del verbose
    from opslib import direct, records
    from opslib.symptoms import cleanup as remnants

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    wanted = list(dict.fromkeys(options.task_id(each) for each in ids))
    broker = output.open_broker(target, env_file)
    seen, keys = _look(broker, wanted, timeout)
    _refuse_unless_over(seen)
    findings = remnants.diagnose(seen, keys)
    plans = remnants.plan(seen, keys)
    if not plans:
        _nothing(seen, keys, findings, form)
    _announce(plans)
    if form is options.Format.TABLE:
        _show(plans, keys)
    if apply:
        asks = changes.Ask(yes=yes, confirmed=confirmed, reason=reason)
        changes.agreed(broker, plans, "cleanup", asks, shown=form is options.Format.TABLE)
        # What was just moving can slip through one look; and while a person read, somebody may have sent it again.
        _refuse_unless_over(_look(broker, wanted, timeout)[0])
    runs = []
    for plan in plans:
        found = records.rows(remnants.diagnose(seen, _of(plan, keys)))
        runs.append(
            direct.run(
                NAME,
                plan,
                broker,
                dry_run=not apply,
                reason=reason,
                runbook=NAME,
                found=found,
                look=_left_of(plan, wanted, timeout),
            )
        )
        if runs[-1].exit_code is Exit.INTERRUPTED:
            break
    _conclude(runs, form, least=Exit.ATTENTION if any(key.fixed for key in keys) else Exit.DONE)


def refuse_unless_over(broker: Broker, plan: Plan) -> None:
    """
    Look once more whether the tasks of a saved plan are over: it says what their keys held, and not that they run.

    Raises:
        Refused: If one is in circulation.

        typer.Exit: With 4 if a place was not seen in which one could be.
    """
    from opslib.plan import Kind

    known = broker.target.app_keys
    meant = [action for action in plan if action.kind is Kind.DELETE]
    ids = [known[each.source].task_id(each.subject) if each.source in known else each.subject for each in meant]
    _refuse_unless_over(_look(broker, ids, options.TIMEOUT)[0])


def _look(broker: Broker, ids: Sequence[str], timeout: str) -> tuple[Whereabouts, list[TaskKey]]:
    """Look for the tasks wherever one could run from, and for their keys."""
    import dataclasses

    from opslib.collectors import app_keys
    from opslib.collectors.find import find as look
    from opslib.symptoms import cleanup as remnants

    seen = look(broker, ids, kept=False, settle=_SETTLE, answer_within=timeout)
    keys, coverage = app_keys.read(broker, ids)
    return dataclasses.replace(seen, coverage=(*seen.coverage, *coverage)), remnants.apart_from_queues(seen, keys)


def _refuse_unless_over(seen: Whereabouts) -> None:
    """
    Go on only if nothing speaks against it that every task is over.

    Raises:
        Refused: If one is in circulation.

        typer.Exit: With 4 if a place was not seen in which one could be.
    """
    from opslib.symptoms import cleanup as remnants

    remnants.refuse_live(seen)
    unseen = remnants.blind(seen)
    for sentence in unseen:
        output.say(f"Not the whole view: {sentence}")
    if unseen:
        output.say("Whether it still runs cannot be told, and what runs writes its keys again. Nothing was changed.")
        raise typer.Exit(int(Exit.CANNOT_SEE))


def _announce(plans: Sequence[Plan]) -> None:
    count, runs = sum(map(len, plans)), len(plans)
    if runs > 1:
        output.say(f"{count:,} keys in {runs} databases: {runs} runs, each of which is undone by its own id.")


def _show(plans: Sequence[Plan], keys: Sequence[TaskKey]) -> None:
    from opslib.render import judged

    output.show(*map(judged.plan, plans))
    for key in keys:
        if key.fixed:
            output.say(f"{key.key} is left as it is. {key.fixed}")


def _of(plan: Plan, keys: Sequence[TaskKey]) -> list[TaskKey]:
    """Return a plan's own keys, and those beside them that cannot be removed."""
    meant = {copy.key for action in plan for copy in action.copies}
    return [key for key in keys if key.fingerprint == plan.fingerprint and (key.key in meant or key.fixed)]


def _left_of(plan: Plan, ids: Sequence[str], timeout: str) -> Look:
    """Return the look at what is left of a plan's own keys."""

    def look(broker: Broker, _: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.symptoms import cleanup as remnants

        seen, keys = _look(broker, ids, timeout)
        return seen, remnants.diagnose(seen, _of(plan, keys))

    return look


def _conclude(runs: Sequence[RunResult], form: options.Format, *, least: Exit) -> NoReturn:
    """
    Print what each run came to; programs get a list of them, however many there are.

    Raises:
        typer.Exit: With the worst of their exit codes.
    """
    for run in runs:
        for sentence in run.leaked:
            output.say(sentence)
        if form is options.Format.TABLE:
            output.show(*results.summary(run))
    if form is options.Format.IDS:
        rows = [row for run in runs for row in run.record.remaining]
        output.emit(rows, form, table=lambda: "", ids=lambda row: str(row["subject"]))
    elif form is not options.Format.TABLE:
        output.emit([run.record for run in runs], form, table=lambda: "")
    raise typer.Exit(max(int(least), *(int(run.exit_code) for run in runs)))


def _nothing(seen: Whereabouts, keys: Sequence[TaskKey], findings: Sequence[Finding], form: options.Format) -> NoReturn:
    """
    Say that there is nothing to remove, and why.

    Raises:
        typer.Exit: With 4 if something was not seen, with 1 otherwise.
    """
    from opslib import records
    from opslib.render import judged

    if form is options.Format.TABLE:
        if findings:
            output.show(judged.findings(findings))
    elif form is not options.Format.IDS:
        told = {"keys": list(keys), "findings": records.rows(findings), "coverage": seen.coverage}
        output.document(told, form)
    what = "What is left of it cannot be removed" if keys else "No key is left of it"
    if not seen.silent_places:
        output.say(f"{what}. Nothing was changed.")
        raise typer.Exit(int(Exit.ATTENTION))
    for row in seen.silent_places:
        output.say(f"Not the whole view: {row.place}: {row.note or f'{row.silent:,} not seen.'}")
    output.say(f"{what}, as far as could be seen. Nothing was changed.")
    raise typer.Exit(int(Exit.CANNOT_SEE))
