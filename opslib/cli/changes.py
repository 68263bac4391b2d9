"""ops apply, ops undo, ops resume: a plan by the id of its run, put back by it, gone on with by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opslib.cli import confirm, options, output, results
from opslib.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from opslib.broker import Broker
    from opslib.direct import Look
    from opslib.plan import Action, Plan

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="As `ops reports list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(apply)
    app.command()(undo)
    app.command()(resume)


def apply(
    run_id: RunId,
    target: options.Target = "",
    yes: options.Yes = False,
    confirmed: options.Confirm = "",
    reason: options.Reason = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Carry out the plan that a run saved: exactly that, each item only if it still is as it was planned.

    Example: ops apply 20261121T021500Z-stuck-tasks-7f3a9c
    """
    del verbose
    import dataclasses

    from opslib import direct, refusals, settings
    from opslib.cli import app_keys, cleanup, resume_task
    from opslib.writer import resume as resuming

    form = output.form(output_form, as_json=as_json)
    plan, record = direct.saved(settings.reports_root(), run_id)
    direct.refused_unless_same(plan, target)
    direct.refused_unless_current(plan)
    confirm.possible(yes=yes)
    broker = output.open_broker(plan.target, env_file)
    with refusals.explained(broker.target.shown_broker):
        begun = not record.dry_run or resuming.begun(plan, broker, run_id)
    if begun:
        hint = f"`ops undo {run_id}` puts it back; `ops resume` finishes the run that applied it, if that was cut off."
        raise Refused(f"The plan of run {run_id} was applied already. Nothing was changed.", hint=hint)
    if record.runbook == cleanup.NAME:
        cleanup.refuse_unless_over(broker, plan)
    if record.runbook == app_keys.NAME:
        app_keys.refuse_unless_over(broker, plan)
    if record.runbook == resume_task.NAME:
        resume_task.refuse_unless_ready(broker, plan)
    plan = dataclasses.replace(plan, continues=plan.continues or run_id)  # one journal: it can be applied once
    asks = Ask(yes=yes, confirmed=confirmed, reason=reason)
    change(broker, plan, "apply", form, name=record.runbook, asks=asks, found=record.findings)


def undo(
    run_id: RunId,
    target: options.Target = "",
    apply: options.Apply = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    confirmed: options.Confirm = "",
    reason: options.Reason = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Put back what a run changed: bytes, places, lives; with --apply, otherwise only say what that would do.

    Example: ops undo 20261121T021500Z-stuck-tasks-7f3a9c --apply
    """
    del verbose
    from opslib import refusals
    from opslib.writer import undo as undoing

    form = output.form(output_form, as_json=as_json)
    confirm.exclusive(apply=apply, dry_run=dry_run)
    if apply:
        confirm.possible(yes=yes)
    known, run_id = _of_archive(run_id)
    broker = output.open_broker(target or known, env_file)
    with refusals.explained(broker.target.shown_broker):
        plan = undoing.plan(broker, run_id)
        has_revoked = not plan and undoing.has_revoked(broker, run_id)
        left = undoing.not_undone(broker, run_id)
        more = undoing.elsewhere(broker, run_id)
    for sentence in left:
        output.say(f"Not undone: {sentence}")
    if more:
        output.say(f"{more} more of its databases have something to put back: run this again after it, for each.")
    if has_revoked:
        output.say(
            f"Run {run_id} told nodes to drop tasks, and nothing of it is left to put back: a revoke is not undone. "
            "A node forgets it when it is restarted."
        )
        return
    if not plan:
        output.say(f"Nothing of what run {run_id} changed is left to put back. Nothing was changed.")
        return
    asks = Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    change(broker, plan, "undo", form, name="undo", asks=asks)


def resume(
    run_id: RunId,
    target: options.Target = "",
    reason: options.Reason = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Finish a run that was interrupted while it changed something; it was confirmed when it was begun.

    Example: ops resume 20261121T021500Z-stuck-tasks-7f3a9c
    """
    del verbose
    from opslib import direct, refusals, settings
    from opslib.cli import app_keys, cleanup, resume_task
    from opslib.writer import resume as resuming

    form = output.form(output_form, as_json=as_json)
    plan, record = direct.saved(settings.reports_root(), run_id)
    direct.refused_unless_same(plan, target)
    if record.parameters.get("dry_run") is not False:
        raise Refused(f"Run {run_id} was a dry run.", hint=f"`ops apply {run_id}` applies its plan.")
    direct.refused_unless_current(plan)
    if direct.finished(record):
        output.say(f"Run {run_id} came to its end. Nothing was changed.")
        return
    broker = output.open_broker(plan.target, env_file)
    with refusals.explained(broker.target.shown_broker):
        left = resuming.remaining(plan, broker, run_id)
    if not left:
        output.say(f"Run {run_id} has made all of its {len(plan)} changes. Nothing was changed.")
        return
    if record.runbook == cleanup.NAME:
        cleanup.refuse_unless_over(broker, left)
    if record.runbook == app_keys.NAME:
        app_keys.refuse_unless_over(broker, left)
    if record.runbook == resume_task.NAME:
        resume_task.refuse_unless_ready(broker, left)
    output.say(f"{len(plan) - len(left)} of {len(plan)} changes are made; going on with {left.summary()}.")
    found = direct.run("resume", left, broker, dry_run=False, reason=reason or record.reason, runbook=record.runbook)
    results.conclude(found, form)


def prepared(output_form: options.Format, *, as_json: bool, apply: bool, dry_run: bool, yes: bool) -> options.Format:
    """
    Return the form of the output, before anything is looked at.

    Raises:
        BadParameter: If --apply and --dry-run are both given.

        Refused: If nobody could confirm what is to be applied.
    """
    confirm.exclusive(apply=apply, dry_run=dry_run)
    if apply:
        confirm.possible(yes=yes)
    return output.form(output_form, as_json=as_json)


def planned(broker: Broker, actions: Sequence[Action], *, max_actions: int = 0, now: datetime | None = None) -> Plan:
    """
    Return a command's actions as a plan of this moment.

    Args:
        max_actions: How many there may be; 0 for as many as there are.

        now: When their facts were seen, by the server's clock, where that is known.

    Raises:
        PlanTooLarge: If there are more.

        BrokerUnreachable: If the server does not say what time it is.
    """
    from opslib import plan as plans

    made_at = now or broker.server_time()
    most = max_actions or len(actions)
    return plans.make(broker.target.name, broker.fingerprint, actions, max_actions=most, made_at=made_at)


class Ask:
    """How a change is confirmed on this command line."""

    def __init__(self, *, apply: bool = True, yes: bool, confirmed: str, reason: str) -> None:
        self.apply, self.yes, self.confirmed, self.reason = apply, yes, confirmed, reason


def agreed(broker: Broker, plans: Sequence[Plan], verb: str, asks: Ask, *, shown: bool = False) -> None:
    """
    Have a person agree to everything at once.

    Args:
        shown: Whether the plans were shown before.

    Raises:
        Refused: If it is not confirmed as its target wants it.

        typer.Exit: With 1 if the person said no.
    """
    from opslib.errors import Exit
    from opslib.render import judged

    target = broker.target
    confirm.permitted(target.name, protected=target.protected, yes=asks.yes, confirmed=asks.confirmed)
    if asks.yes:
        return
    if not shown:
        output.show(*map(judged.plan, plans))
    if not confirm.ask(target.name, verb, sum(map(len, plans))):
        raise typer.Exit(int(Exit.ATTENTION))


def change(
    broker: Broker,
    plan: Plan,
    verb: str,
    form: options.Format,
    *,
    name: str,
    asks: Ask,
    found: list[dict[str, object]] | None = None,
    look: Look | None = None,
) -> NoReturn:
    """
    Carry out a command's plan as a run of its own, after a person agreed; without --apply only show and record it.

    Raises:
        Refused: If it is not confirmed as its target wants it.

        typer.Exit: With the run's exit code; with 1 if the person said no.
    """
    from opslib import direct
    from opslib.errors import Exit
    from opslib.render import judged

    dry_run = not asks.apply or not plan
    if not asks.apply and form is options.Format.TABLE:
        output.show(judged.plan(plan))
    if asks.apply:
        confirm.permitted(broker.target.name, protected=broker.target.protected, yes=asks.yes, confirmed=asks.confirmed)
        if plan and not asks.yes:
            output.show(judged.plan(plan))
            if not confirm.ask(broker.target.name, verb, count(plan)):
                raise typer.Exit(int(Exit.ATTENTION))
    found = found or []
    run = direct.run(name, plan, broker, dry_run=dry_run, reason=asks.reason, runbook=name, found=found, look=look)
    results.conclude(run, form)


def count(plan: Plan) -> int:
    """Return how much a plan is about: whole lists by their messages, everything else by its actions."""
    from opslib.plan import Kind

    return sum(
        action.count if action.kind is Kind.UNDO or any(copy.place in {"list", "held"} for copy in action.copies) else 1
        for action in plan
    )


def _of_archive(run_id: str) -> tuple[str, str]:
    """
    Return the target of an archived run, empty where this archive does not know it, and whose journal it wrote.

    Raises:
        Refused: If the run was an undo itself.

        NotFound: If the id is none.
    """
    from opslib import folders, settings
    from opslib.errors import NotFound
    from opslib.render import archive

    folders.folder(settings.reports_root(), run_id)
    try:
        record = archive.find(settings.reports_root(), run_id)
    except NotFound:
        return "", run_id
    if record.runbook == "drop-quarantine":
        hint = f"The messages are in the vault of its folder, {record.report.rpartition('/')[0]}."
        raise Refused(f"Run {run_id} dropped a quarantine; that is not undone.", hint=hint)
    if record.runbook == "undo":
        hint = "To make its changes once more, run the runbook again."
        raise Refused(f"Run {run_id} put things back itself; that is not undone.", hint=hint)
    return record.target, str(record.parameters.get("run") or run_id)
