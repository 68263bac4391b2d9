"""ops task resume: a task that failed half-way goes on from where it had come, under a new id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opslib.cli import changes, find, options, output, queues, results
from opslib.errors import Exit, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opslib.broker import Broker
    from opslib.direct import Look
    from opslib.facts.checkpoints import Resumable
    from opslib.facts.snapshot import Snapshot
    from opslib.findings import Finding
    from opslib.plan import Outcome, Plan
    from opslib.session import RunResult

#: Pause before a second look; made only where the first one was not enough.
_SETTLE = "0.5s"
#: What its runs are called, by a command or by the notebook.
NAME = "resume-task"


def register(_: typer.Typer) -> None:
    """Add the command to those of single tasks."""
    find.task.command()(resume)


def resume(
    ids: find.Ids,
    to: Annotated[str, typer.Option("--to", metavar="QUEUE", help="Where they wait; else where they came from.")] = "",
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
    Have failed tasks go on from the state that they have saved, each under a new id, with the same arguments.

    With -o ids it prints the new ids of those that go on, with --json what became of each.

    Exit 1: one of them cannot go on. 4: not everything could be seen. 5: it changed meanwhile.

    Example: ops task resume 8a1f… --target prod --apply
    """
    del verbose
    from opslib import direct, records
    from opslib.symptoms import resume_task

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    wanted = list(dict.fromkeys(options.task_id(each) for each in ids))
    broker = output.open_broker(target, env_file)
    if to:
        queues.refuse_reserved(to, broker)
    seen = _look(broker, wanted, timeout)
    findings = resume_task.diagnose(seen)
    plans = resume_task.steps(seen, findings, to=to)
    if not plans:
        _nothing(seen, findings, form)
    for doubt in _doubts(seen, plans[-1]):
        output.say(f"Warning: {doubt}")
    if form is options.Format.TABLE:
        _show(seen, findings, plans)
    if apply:
        asks = changes.Ask(yes=yes, confirmed=confirmed, reason=reason)
        changes.agreed(broker, plans, "resume", asks, shown=form is options.Format.TABLE)
        if not yes:
            again = _look(broker, wanted, timeout)
            _refuse_unless_same(plans, resume_task.steps(again, resume_task.diagnose(again), to=to))
    runs = []
    for plan in plans:
        runs.append(
            direct.run(
                NAME,
                plan,
                broker,
                dry_run=not apply,
                reason=reason,
                runbook=NAME,
                found=records.rows(findings),
                look=_after(seen, timeout),
            )
        )
        if apply and any(row["status"] != "applied" for row in runs[-1].record.outcomes):
            break  # what was not handed over is not sent
    _conclude(runs, plans, form, least=_least(findings))


def refuse_unless_ready(broker: Broker, plan: Plan) -> None:
    """
    Look once more at the tasks of a saved plan: it says what their states were, and not that nobody has them by now.

    Raises:
        Refused: If one cannot go on any more, or a state of it in another database has to be handed over before.
    """
    from opslib.symptoms import resume_task

    against = resume_task.why_not(_look(broker, resume_task.meant(plan), options.TIMEOUT), plan)
    if against:
        raise Refused(f"{' '.join(against[:5])} Nothing was changed.", hint="Run `ops task resume` again.")


def _look(broker: Broker, ids: Sequence[str], timeout: str) -> Resumable:
    from opslib.collectors.checkpoints import resumable

    return resumable(broker, ids, settle=_SETTLE, answer_within=timeout)


def _after(before: Resumable, timeout: str) -> Look:
    def look(broker: Broker, outcomes: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.symptoms import resume_task

        seen = _look(broker, before.asked, timeout)
        return seen, resume_task.diagnose(seen, before=before, outcomes=outcomes)

    return look


def _doubts(seen: Resumable, plan: Plan) -> Iterator[str]:
    """Say what speaks against sending: nobody consumes the queue, or knows the task."""
    from opslib.plan import Kind
    from opslib.symptoms import sending

    told = set()
    for action in plan:
        if action.kind is Kind.SEND:
            order = sending.Order(task=action.task, args=(), kwargs={})
            now, whole = seen.taken_at, not seen.silent_nodes
            told |= set(sending.doubts(order, action.destination, seen.nodes, now=now, whole=whole))
    yield from sorted(told)


def _show(seen: Resumable, findings: Sequence[Finding], plans: Sequence[Plan]) -> None:
    from opslib.render import checkpoints, judged

    output.show(
        checkpoints.states(seen.checkpoints, seen.taken_at), judged.findings(findings), *map(judged.plan, plans)
    )
    if len(plans) > 1:
        output.say(f"Their states are in {len(plans)} databases: {len(plans)} runs, each undone by its own id.")


def _refuse_unless_same(plans: Sequence[Plan], again: Sequence[Plan]) -> None:
    """
    Go on only if another look proposes the same: while a person read, somebody may have sent a task again.

    Raises:
        Refused: If it does not.
    """
    meant, now = ({(a.kind, a.subject, a.destination) for plan in some for a in plan} for some in (plans, again))
    if meant != now:
        raise Refused("The tasks have moved on since the plan was made. Nothing was changed.", hint="Look again.")


def _least(findings: Sequence[Finding]) -> Exit:
    return Exit.ATTENTION if any(f.code == "task-not-resumable" for f in findings) else Exit.DONE


def _conclude(runs: Sequence[RunResult], plans: Sequence[Plan], form: options.Format, *, least: Exit) -> NoReturn:
    """
    Print who goes on as whom; programs get the new ids, or what became of each, and the runs.

    Raises:
        typer.Exit: With the worst of their exit codes.
    """
    rows = list(_told(runs, plans))
    for run in runs:
        for sentence in run.leaked:
            output.say(sentence)
        if form is options.Format.TABLE:
            output.show(*results.summary(run))
    if form is options.Format.TABLE:
        for row in rows:
            if row["success"]:
                output.say(f"{row['task_id']} goes on as {row['new_task_id']}.")
    elif form is options.Format.IDS:
        done = [row for row in rows if row["success"]]
        output.emit(done, form, table=lambda: "", ids=lambda row: str(row["new_task_id"]))
    else:
        output.document({"resumed": rows, "runs": [run.record for run in runs]}, form)
    raise typer.Exit(max(int(least), *(int(run.exit_code) for run in runs)))


def _told(runs: Sequence[RunResult], plans: Sequence[Plan]) -> Iterator[dict[str, object]]:
    """Yield for each task whether it goes on, as whom, and why not."""
    from opslib.plan import Kind

    outcomes = {row["action"]: row for row in runs[-1].record.outcomes} if len(runs) == len(plans) else {}
    for action in plans[-1]:
        if action.kind is Kind.SEND:
            became = outcomes.get(action.id, {})
            success = became.get("status") == "applied"
            message = became.get("reason") or "Its state was not handed over, so nothing was sent."
            told: dict[str, object] = {"success": success, "message": message}
            yield {"task_id": action.source, "new_task_id": action.subject, **told}


def _nothing(seen: Resumable, findings: list[Finding], form: options.Format) -> NoReturn:
    """
    Say that none of them can go on, and why.

    Raises:
        typer.Exit: With 4 if something was not seen, with 1 otherwise.
    """
    from opslib import records
    from opslib.findings import verdict
    from opslib.render import checkpoints, judged

    if form is options.Format.TABLE:
        output.show(checkpoints.states(seen.checkpoints, seen.taken_at), judged.findings(findings))
    elif form is not options.Format.IDS:
        output.document({"resumed": [], "findings": records.rows(findings), "coverage": seen.coverage}, form)
    output.say("None of them goes on. Nothing was changed.")
    raise typer.Exit(int(records.exit_code(verdict(findings))))
