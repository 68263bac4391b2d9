"""ops task stop, revoke, cleanup, reorder, send: what becomes of single tasks."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opslib.cli import changes, find, options, output, queues
from opslib.errors import BadParameter, Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opslib.broker import Broker
    from opslib.facts.snapshot import Snapshot
    from opslib.facts.whereabouts import Whereabouts
    from opslib.findings import Finding
    from opslib.plan import Outcome

Ids = Annotated[list[str], typer.Argument(metavar="[TASK_ID]...", help="Ids; or say which by a filter.")]
Glob = Annotated[str, typer.Option("--task", metavar="GLOB", help="Instead of ids: tasks of this name.")]
Place = Annotated[
    str, typer.Option("--state", metavar="PLACE", help="Only waiting, unacked, active, reserved or scheduled ones.")
]
Retries = Annotated[int, typer.Option("--retries", metavar="N", help="Only those that were retried so often or more.")]
Most = Annotated[int, typer.Option("--limit", min=0, metavar="N", help="At most so many tasks; 0 for 500.")]


def register(_: typer.Typer) -> None:
    """Add the commands to those of single tasks."""
    for command in (stop, revoke, reorder, send):
        find.task.command()(command)


def stop(
    ids: Ids = [],  # noqa: B006 - how Typer spells it
    name: Glob = "",
    state: Place = "",
    retries: Retries = 0,
    limit: Most = 0,
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
    Stop tasks for good: take every copy out of circulation, revoke, end what runs, and prove it.

    A stopped task does not come back when its worker dies. Its messages are kept; `ops undo` puts them back.

    Example: ops task stop 8a1f… --target prod --apply
    Example: ops task stop --task 'shop.charge*' --retries 3 --limit 20
    """
    del verbose
    from opslib import records
    from opslib.collectors.find import MOST_TASKS
    from opslib.collectors.find import find as look
    from opslib.symptoms import stop_task

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    chosen = _wanted(ids, name, state, retries, limit)
    broker = output.open_broker(target, env_file)
    before = look(broker, **chosen)
    findings = stop_task.diagnose(before)
    plan = stop_task.plan(before, findings, max_actions=limit or MOST_TASKS)
    if not plan:
        _nothing(before, findings, form)

    def again(broker: Broker, outcomes: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        after = look(broker, before.ids)
        return after, stop_task.diagnose(after, before=before, outcomes=outcomes)

    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    found = records.rows(findings)
    changes.change(broker, plan, "stop", form, name="stop-task", asks=asks, found=found, look=again)


def revoke(
    ids: Ids = [],  # noqa: B006 - how Typer spells it
    name: Glob = "",
    state: Place = "",
    retries: Retries = 0,
    limit: Most = 0,
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
    Tell every node to drop tasks that it has not begun; what runs goes on.

    Only the nodes that listen now hear it, and only their memory keeps it: for good is `ops task stop`.

    Example: ops task revoke 8a1f… --apply
    """
    del verbose
    from opslib.collectors.find import MOST_TASKS
    from opslib.collectors.find import find as look
    from opslib.symptoms import asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    chosen = _wanted(ids, name, state, retries, limit)
    broker = output.open_broker(target, env_file)
    seen = look(broker, kept=False, **chosen)
    if seen.more:
        output.say(f"The filter means {seen.more:,} more, which the limit leaves out.")
    flying = sorted(task_id for task_id, places in seen.places.items() if set(places) - {"result"})
    for task_id in sorted(seen.ids - set(flying)):
        output.say(f"{task_id} is not in flight: there is nothing to revoke.")
    if not flying:
        output.say("No such task is in flight. Nothing was changed.")
        output.blind(seen.coverage)
        raise typer.Exit(int(Exit.ATTENTION))
    find.say_unseen(seen)
    for task in seen.held:
        if task.place == "active":
            output.say(f"{task.task_id} runs on {task.node} already: a revoke does not end it, `ops task stop` does.")
    actions = asked.revoked(flying)
    made = changes.planned(broker, actions, max_actions=limit or MOST_TASKS)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    changes.change(broker, made, "revoke", form, name="revoke-task", asks=asks)


def reorder(
    task_id: find.Id,
    to: Annotated[
        str, typer.Option("--to", metavar="PLACE", help="next, last, or how many messages are to be served before it.")
    ] = "next",
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
    Put one waiting task elsewhere in its queue: its message is moved, and workers serve it there.

    Only a task that waits has a place: one that a node has, or that retries, is in no list.

    Example: ops task reorder 8a1f… --to next --apply
    """
    del verbose
    from opslib.collectors.find import find as look
    from opslib.symptoms import asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    broker = output.open_broker(target, env_file)
    task_id = options.task_id(task_id)
    seen = look(broker, [task_id], answer_within=timeout)
    if not seen.places[task_id]:
        output.say(f"{task_id} was found nowhere: is the id whole, and is this its deployment? Nothing was changed.")
        find.say_unseen(seen)
        find.end(seen)
    action = asked.reordered(seen, task_id, to)
    made = changes.planned(broker, [action], now=seen.taken_at)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    changes.change(broker, made, "reorder", form, name="reorder-task", asks=asks)


def send(
    name: Annotated[str, typer.Argument(metavar="TASK", help="A task's name, such as shop.send_receipt.")],
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="Its arguments, a JSON list.")] = "[]",
    kwargs: Annotated[str, typer.Option("--kwargs", metavar="JSON", help="Its named ones, a JSON object.")] = "{}",
    queue: Annotated[str, typer.Option("--queue", metavar="QUEUE", help="Where it waits.")] = "celery",
    priority: Annotated[int, typer.Option("--priority", min=0, max=9, help="0 is served first on Redis.")] = 0,
    countdown: Annotated[str, typer.Option("--countdown", metavar="TIME", help="Run it then, such as 5m.")] = "",
    eta: Annotated[str, typer.Option("--eta", metavar="INSTANT", help="Run it then: 2026-11-21T18:00:00+01:00.")] = "",
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
    Publish a task: now, or at its time. Its arguments are in the plan's file, and nowhere else.

    Example: ops task send shop.send_receipt --args '[4711]' --countdown 5m --apply
    """
    del verbose
    from opslib.collectors.parts import nodes
    from opslib.symptoms import sending

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    order = sending.order(name, args, kwargs, countdown=countdown, eta=eta, priority=priority)
    broker = output.open_broker(target, env_file)
    queues.refuse_reserved(queue, broker)
    known, _, coverage = nodes(broker, answer_within=timeout)
    now = broker.server_time()
    for doubt in sending.doubts(order, queue, known, now=now, whole=not coverage.silent):
        output.say(f"Warning: {doubt}")
    action = sending.action(order, queue, task_id=str(uuid.uuid4()), now=now)
    made = changes.planned(broker, [action], now=now)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    changes.change(broker, made, "send", form, name="send-task", asks=asks)


def _wanted(ids: list[str], name: str, state: str, retries: int, limit: int) -> dict[str, Any]:
    """
    Return what `find` takes for the tasks that are named.

    Raises:
        BadParameter: If none is, or everything is without a limit.
    """
    from opslib.symptoms import stop_task

    if not ids and not (name or state or retries):
        raise BadParameter(
            "No task was named.", hint="Name ids, or say which: --task GLOB, --state active, --retries 3."
        )
    named = [options.task_id(each) for each in ids]
    return stop_task.wanted(task_id=named, task=name, place=state, retries=retries, limit=limit)


def _nothing(seen: Whereabouts, findings: list[Finding], form: options.Format) -> None:
    """
    Say that there is nothing to do, and why.

    Raises:
        typer.Exit: With 4 if something was not seen, with 1 if a task was found nowhere.
    """
    from opslib import records
    from opslib.findings import verdict
    from opslib.render import judged, whereabouts

    if form is options.Format.TABLE:
        output.show(*whereabouts.show(seen), *([judged.findings(findings)] if findings else []))
    else:
        output.document({"places": seen.places, "findings": records.rows(findings), "coverage": seen.coverage}, form)
    seen_whole = not any(row.silent for row in seen.coverage)
    output.say(f"{'None of it is' if seen_whole else 'None of it was seen'} in circulation. Nothing was changed.")
    raise typer.Exit(int(records.exit_code(verdict(findings))))
