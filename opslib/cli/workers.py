"""ops workers, and ops worker grow, shrink, limit: what every node is and holds, and how much it is to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from opslib.cli import changes, options, output
from opslib.errors import BadParameter, near

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.system import Coverage, HeldTask, NodeInfo
    from opslib.plan import Action

Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's name; `ops workers` lists them.")]
By = Annotated[int, typer.Option("--by", min=1, max=100, metavar="N", help="How many processes.")]
Nodes = Annotated[list[str], typer.Option("--node", metavar="NODE", help="Only this node; may be repeated.")]

worker = typer.Typer(help="One node, or one task on all of them: how much is done at once.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="workers")(workers)
    app.add_typer(worker, name="worker")


def workers(
    with_tasks: Annotated[bool, typer.Option("--tasks", help="Also the tasks that each node holds.")] = False,
    limit: options.Limit = options.LIMIT,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List the nodes: pool, slots, what each holds, memory, queues, and the names that do not answer.

    With --tasks also what they hold, the longest running first; -o ids names these tasks then.

    Example: ops workers --tasks --target prod
    """
    del verbose
    from opslib import refusals

    broker = output.open_broker(target, env_file)
    rows, held, coverage = _look(broker, timeout)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        from opslib.render import tables

        shown: list[object] = [tables.nodes(rows, held)]
        if with_tasks:
            with refusals.explained(broker.target.shown_broker):
                now = broker.server_time()
            ranked = sorted(held, key=lambda task: (task.place, task.started_at or 0.0, task.eta_at or 0.0))
            shown.append(tables.held(ranked[:limit], taken_at=now))
        output.show(*shown)
    elif form is options.Format.IDS and with_tasks:
        output.emit(held, form, table=list, ids=lambda task: str(task.task_id))
    else:
        every = [_document(row, [task for task in held if task.node == row.name], with_tasks) for row in rows]
        output.emit(every, form, table=list, ids=lambda row: str(row["name"]))
    if with_tasks and form is options.Format.TABLE and len(held) > limit:
        output.say(f"{len(held) - limit:,} tasks more; --limit shows them.")
    gone = [] if coverage.silent else [row.name for row in rows if not row.answered]
    if gone and form is options.Format.TABLE:  # whoever listens has answered, so these are names without a node
        names = f"{', '.join(gone[:3])}{f' and {len(gone) - 3:,} more' * (len(gone) > 3)}"
        output.say(f"Nobody listens any more as {names}. `ops run stuck-tasks` shows what such a node leaves behind.")
    output.blind([coverage])


@worker.command()
def grow(
    name: Node,
    by: By = 1,
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
    Add processes to a node's pool while it runs; its prefetch grows with it.

    It has its own number again once it is restarted. Only prefork, gevent and eventlet pools can.

    Example: ops worker grow celery@app1 --by 2 --target prod --apply
    """
    del verbose
    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    broker = output.open_broker(target, env_file)
    _carry_out(broker, [_resized(broker, name, by, timeout)], "grow", form, asks)


@worker.command()
def shrink(
    name: Node,
    by: By = 1,
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
    Take idle processes out of a node's pool while it runs; its prefetch shrinks with it, and one always stays.

    A process that runs a task is not ended: where too few are idle, the node says so.

    Example: ops worker shrink celery@app1 --by 2 --target prod --apply
    """
    del verbose
    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    broker = output.open_broker(target, env_file)
    _carry_out(broker, [_resized(broker, name, -by, timeout)], "shrink", form, asks)


@worker.command()
def limit(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name.")],
    rate: Annotated[str, typer.Argument(metavar="RATE", help="10/s, 10/m, 10/h, or none.")],
    only: Nodes = [],  # noqa: B006 - how Typer spells it
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
    Have nodes begin a task at most so often, each of them by itself.

    What a node has received under an old limit goes on at that one: where it would take long, nothing is ordered, and
    it is said what to do instead.

    Example: ops worker limit shop.charge 10/m --target prod --apply
    """
    del verbose
    from opslib import durations
    from opslib.symptoms import asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _refuse_no_rate(rate)
    broker = output.open_broker(target, env_file)
    known = _known(broker, timeout)
    rows = [row for row in known if row.answered]
    chosen = [_named(name, known) for name in only] or rows
    having = [row for row in chosen if any(each.name == task for each in row.tasks)]
    if not having:
        _refuse_unknown(
            task, f"No node that answers can run {task!r}.", (each.name for row in rows for each in row.tasks)
        )
    wanted = durations.rate(rate)
    if all(each.rate_limit == wanted for row in having for each in row.tasks if each.name == task):
        nodes = ", ".join(row.name for row in having)
        output.say(f"{task} has {f'the limit {wanted}' if wanted else 'no limit'} on {nodes}. Nothing was changed.")
        raise typer.Exit
    _carry_out(broker, asked.limited(task, rate, having), "limit", form, asks)


def _look(broker: Broker, timeout: str) -> tuple[list[NodeInfo], list[HeldTask], Coverage]:
    from opslib.collectors.parts import nodes

    return nodes(broker, answer_within=timeout)


def _document(row: NodeInfo, held: Sequence[HeldTask], with_tasks: bool) -> dict[str, Any]:
    """Return a node as data: what it is, how much it holds and, if that is wanted, what."""
    from collections import Counter
    from dataclasses import asdict

    places = Counter(task.place for task in held)
    counts = {place: places[place] for place in ("active", "reserved", "scheduled")}
    return {**asdict(row), **counts, **({"holds": [asdict(task) for task in held]} if with_tasks else {})}


def _known(broker: Broker, timeout: str) -> list[NodeInfo]:
    """Return the nodes, those too that do not answer; say what could not be seen."""
    rows, _, coverage = _look(broker, timeout)
    if coverage.silent:
        output.say(f"Not the whole view: {coverage.place}: {coverage.note or f'{coverage.silent:,} not seen.'}")
    return rows


def _named(name: str, rows: Sequence[NodeInfo]) -> NodeInfo:
    """
    Return a node that answers.

    Raises:
        BadParameter: If it is a name that does not, or that nobody has.
    """
    found = next((row for row in rows if row.name == name), None)
    if found is None:
        _refuse_unknown(name, f"No node {name!r} answers.", (row.name for row in rows if row.answered))
    if not found.answered:
        hint = "It is hung or gone: `ops workers` says which, `ops run stuck-tasks` what it has left behind."
        raise BadParameter(f"{name} is known here, and does not answer.", hint=hint)
    return found


def _resized(broker: Broker, name: str, by: int, timeout: str) -> Action:
    from opslib.symptoms import asked

    node = _named(name, _known(broker, timeout))
    asked.refuse_size(node, by)
    return asked.resized(node, by)


def _refuse_no_rate(rate: str) -> None:
    from opslib import durations

    try:
        durations.rate(rate)
    except ValueError:
        raise BadParameter(f"{rate!r} is no rate.", hint="Write 10/s, 10/m, 10/h, or none.") from None


def _refuse_unknown(wanted: str, what: str, known: Iterable[str]) -> NoReturn:
    """
    Refuse a name that nobody has.

    Raises:
        BadParameter: In any case; with the nearest that there is.
    """
    raise BadParameter(what, hint=near(wanted, known, otherwise="`ops workers` lists the nodes that answer."))


def _carry_out(
    broker: Broker, actions: Sequence[Action], verb: str, form: options.Format, asks: changes.Ask
) -> NoReturn:
    """Show or carry out what is to be ordered, as a run of its own."""
    changes.change(broker, changes.planned(broker, actions), verb, form, name=f"{verb}-worker", asks=asks)
