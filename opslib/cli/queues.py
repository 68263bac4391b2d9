"""ops queues, and ops queue peek, purge, move, expedite, pause, resume: what waits, and what is to become of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opslib.cli import changes, options, output
from opslib.errors import BadParameter, Exit, NotFound, near

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.collectors.windows import Listing
    from opslib.plan import Action, Kind
    from opslib.selection import Selection

Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue's name; `ops queues` lists them.")]
Glob = Annotated[str, typer.Option("--task", metavar="GLOB", help="Only messages of this task.")]
Most = Annotated[int, typer.Option("--limit", min=0, metavar="N", help="At most so many, those served first; 0: all.")]
MostOfEach = Annotated[
    int,
    typer.Option(
        "--limit", min=0, metavar="N", help="At most so many, those served first; 0: all. With --all, of each queue."
    ),
]
Node = Annotated[list[str], typer.Option("--node", metavar="NODE", help="Only this node; may be repeated.")]

queue = typer.Typer(help="One queue: what waits in it, and what is to become of that.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="queues")(queues)
    app.add_typer(queue, name="queue")


def queues(
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List every queue with its depth by priority and its consumers.

    Example: ops queues --target prod -o json
    """
    del verbose
    from opslib.collectors.parts import depths
    from opslib.naming import named
    from opslib.render import tables

    rows, coverage = depths(output.open_broker(target, env_file), answer_within=timeout)
    form = output.form(output_form, as_json=as_json)
    output.emit(rows, form, table=lambda: tables.queues(rows), ids=lambda row: str(row.name))
    alone = [row.name for row in rows if row.depth and not row.consumers]
    if alone and form is options.Format.TABLE and not any(row.silent for row in coverage):
        hint = "`ops run queue-backlog` says why queues wait, and what can be done."
        output.say(f"Nobody consumes {named(alone, 3)}. {hint}")
    output.blind(coverage)


@queue.command()
def peek(
    name: Queue,
    glob: Glob = "*",
    limit: options.Limit = 20,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """
    Show what waits in a queue, the next to be served first; nothing is taken, and no argument is shown.

    Example: ops queue peek celery --task 'shop.*' --limit 5
    """
    del verbose
    from opslib import refusals
    from opslib.collectors import queues as collected
    from opslib.facts.messages import WaitingMessage
    from opslib.render import tables

    broker = output.open_broker(target, env_file)
    with refusals.explained(broker.target.shown_broker):
        listings = _listings(name, broker)
        if not listings:
            _refuse_unknown(name, broker)
        rows = collected.served_next(broker, listings, _selection(glob), limit=limit)
    depth = sum(each.length for each in listings)
    form = output.form(output_form, as_json=as_json)
    shown = [row for row in rows if form is not options.Format.IDS or isinstance(row, WaitingMessage)]
    if rows or form is not options.Format.TABLE:
        output.emit(shown, form, table=lambda: tables.waiting(rows), ids=lambda row: str(row.task_id))
    if not depth:
        output.say(f"Nothing waits in {name}.")
    elif not rows:
        output.say(f"No task {glob} is among the {depth:,} that wait in {name}.")
    else:
        output.say(f"{len(rows):,} of {depth:,} that wait in {name}.")


@queue.command()
def purge(
    name: Annotated[str, typer.Argument(metavar="QUEUE", help="A queue's name; or say --all.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Every queue.")] = False,
    glob: Glob = "*",
    expired: Annotated[bool, typer.Option("--expired", help="Only messages whose time has passed.")] = False,
    limit: MostOfEach = 0,
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
    Take what waits in a queue out of circulation and keep it; `ops undo` puts it back.

    A whole queue goes at once, whatever its size. What nodes hold already, unacked, active or reserved, is not touched.

    Example: ops queue purge celery --target prod --apply --reason "import sent twice"
    Example: ops queue purge celery --task 'shop.import*' --expired
    """
    del verbose
    from opslib.collectors.parts import depths
    from opslib.symptoms import asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    if bool(name) is every:
        raise BadParameter(
            "Name a queue, or say --all." if not name else "A queue's name and --all exclude each other."
        )
    broker = output.open_broker(target, env_file)
    rows, coverage = depths(broker) if every else ([], [])
    names = [row.name for row in rows if row.depth] if every else [name]
    now = broker.server_time().timestamp()
    only = _selection(glob, expired_at=now if expired else None, limit=limit)
    actions = [action for each in names for action in asked.purge(each, _meant(each, broker, only), only)]
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    try:
        where, nothing = name or "any queue", "Nothing that has expired" if expired else "Nothing"
        _carry_out(
            broker, actions, "purge", form, name="purge-queue", asks=asks, where=where, glob=glob, nothing=nothing
        )
    except typer.Exit as done:
        if done.exit_code in {Exit.DONE, Exit.ATTENTION}:
            output.blind(coverage)  # every queue that was seen is not every queue
        raise


@queue.command()
def move(
    source: Queue,
    to: Annotated[str, typer.Argument(metavar="TO", help="The queue that it shall wait in.")],
    glob: Glob = "*",
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
    Put what waits in a queue into another one, in its order and with its priorities.

    Each message says from then on that it belongs there, so that a retry or a restore does not bring it back.

    Example: ops queue move celery bulk --task 'shop.import*' --apply
    """
    del verbose
    from opslib.symptoms import asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    if source == to:
        raise BadParameter(f"{source} is both: name another queue to move to.")
    broker = output.open_broker(target, env_file)
    refuse_reserved(to, broker)
    _listings(to, broker)
    only = _selection(glob, limit=limit)
    actions = asked.move(source, to, _meant(source, broker, only), only)
    if actions and not _is_consumed(to, broker):
        output.say(f"Warning: No node that answered consumes {to}: what is moved there waits until one does.")
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _carry_out(broker, actions, "move", form, name="move-queue", asks=asks, where=source, glob=glob)


@queue.command()
def expedite(
    name: Queue,
    glob: Annotated[str, typer.Option("--task", metavar="GLOB", help="Messages of this task.")],
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
    Have some of what waits in a queue served before everything else in it, with priority 0.

    Example: ops queue expedite celery --task shop.charge_card --limit 100 --apply
    """
    del verbose
    from opslib.symptoms import asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    only = _selection(glob, limit=limit)
    if only is None or (only.is_everything and not limit):
        hint = "Name tasks, or say how many: --limit 100."
        raise BadParameter("This means every message, and would leave their order as it is.", hint=hint)
    broker = output.open_broker(target, env_file)
    actions = asked.expedite(name, _meant(name, broker, only), only)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _carry_out(broker, actions, "expedite", form, name="expedite", asks=asks, where=name, glob=glob)


@queue.command()
def pause(
    name: Queue,
    node: Node = [],  # noqa: B006 - how Typer spells it
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
    Have nodes take no more from a queue; what they have already, they run.

    A node that is started later consumes it again: it does what its command line says.

    Example: ops queue pause celery --apply --reason "gateway is down"
    """
    del verbose
    from opslib.plan import Kind

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _consuming(Kind.PAUSE, name, node, output.open_broker(target, env_file), form, asks)


@queue.command()
def resume(
    name: Queue,
    node: Node = [],  # noqa: B006 - how Typer spells it
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
    Have the nodes that are named consume a queue.

    After a pause, `ops undo RUN_ID` is more exact: it tells those nodes alone that consumed it before.

    Example: ops queue resume celery --node w1@shop --apply
    """
    del verbose
    from opslib.plan import Kind

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _consuming(Kind.RESUME, name, node, output.open_broker(target, env_file), form, asks)


def refuse_reserved(name: str, broker: Broker) -> None:
    """
    Refuse a name that cannot be a queue's.

    Raises:
        BadParameter: If it is empty, a key of Celery's or our own, the list of one priority of a queue, or one of dead
            letters.
    """
    if name == broker.keys.unacked_name:
        hint = "`ops tasks --state unacked` lists it; `ops run stuck-tasks` puts back what nobody has any more."
        raise BadParameter(f"{name!r} is no queue: it holds what nodes have taken.", hint=hint)
    if not broker.keys.is_queue_name(name):
        raise BadParameter(f"{name!r} is no queue.", hint="`ops queues` lists them.")
    _refuse_dead(name, broker)


def _consuming(
    kind: Kind, name: str, wanted: list[str], broker: Broker, form: options.Format, asks: changes.Ask
) -> NoReturn:
    from opslib.collectors.parts import nodes
    from opslib.symptoms import asked

    refuse_reserved(name, broker)
    rows = nodes(broker)[0]
    if not any(name in row.queues for row in rows):
        _refuse_unknown(name, broker)
    known = [row.name for row in rows]  # a silent one too: what becomes of it is not known, and is said
    for each in wanted:
        if each not in known:
            hint = near(each, known, otherwise="`ops workers` lists them.")
            raise NotFound(f"No node {each!r} is known here.", hint=hint)
    for row in rows:
        if row.name in wanted and not row.answered:
            output.say(f"Warning: {row.name} does not answer: it is hung or gone, and may never hear of it.")
    verb = str(kind)
    _carry_out(broker, asked.consuming(kind, name, wanted), verb, form, name=f"{verb}-queue", asks=asks, where=name)


def _carry_out(
    broker: Broker,
    actions: list[Action],
    verb: str,
    form: options.Format,
    *,
    name: str,
    asks: changes.Ask,
    where: str,
    glob: str = "*",
    nothing: str = "Nothing",
) -> NoReturn:
    if not actions and glob != "*":  # a slip of the pen is likelier than that none of it waits
        output.say(f"No task {glob} waits in {where}; `ops queue peek` shows what does. Nothing was changed.")
        raise typer.Exit(int(Exit.ATTENTION))
    if not actions:
        output.say(f"{nothing} waits in {where}. Nothing was changed.")
        raise typer.Exit
    made = changes.planned(broker, actions)
    changes.change(broker, made, verb, form, name=name, asks=asks)


def _meant(name: str, broker: Broker, only: Selection | None) -> dict[str, int]:
    """Return how many messages of each of a queue's lists are meant, the list that is served first first."""
    from opslib import refusals
    from opslib.collectors import queues as collected

    with refusals.explained(broker.target.shown_broker):
        listings = _listings(name, broker)
        if not listings:
            _refuse_unknown(name, broker)
        return collected.meant(broker, listings, only) if only else {each.key: each.length for each in listings}


def _refuse_unknown(name: str, broker: Broker) -> None:
    """
    Refuse a name that nobody declares; a queue that is only empty has a route, or a node that consumes it.

    Raises:
        NotFound: If it is unknown, with the nearest name.
    """
    from opslib.collectors.parts import depths

    rows, coverage = depths(broker)
    known = [row.name for row in rows]
    if name in known:
        return
    silent = ", and not everything answered" if any(row.silent for row in coverage) else ""
    hint = near(name, known, otherwise="`ops queues` lists those that are known.")
    raise NotFound(
        f"No queue {name} is known here{silent}; an empty one that nobody consumes leaves no trace.", hint=hint
    )


def _listings(name: str, broker: Broker) -> list[Listing]:
    """
    Return the lists of a queue.

    Raises:
        BadParameter: If its name is none, or what is called so is no list.
    """
    from opslib.collectors import queues as collected

    refuse_reserved(name, broker)
    listings, strange = collected.lists(broker, [name])
    for key, kind in strange.items():
        raise BadParameter(f"{key} is a {kind}, not a queue.", hint="`ops queues` lists them.")
    return sorted(listings, key=lambda each: each.priority)


def _refuse_dead(name: str, broker: Broker) -> None:
    """
    Refuse a list of dead letters: what it holds are no messages, and a node that takes one may die of it.

    Raises:
        BadParameter: If it is called like one, and nobody declares a queue of that name.
    """
    from opslib.collectors.parts import depths
    from opslib.keys import DEAD

    if not name.endswith(DEAD) or name in {row.name for row in depths(broker)[0]}:
        return
    hint = "`ops dead list` shows such lists; `ops dead show`, `ops dead redrive` and `ops dead purge` are for them."
    raise BadParameter(f"{name} is called like a list of dead letters, and no queue is declared so.", hint=hint)


def _selection(glob: str, *, expired_at: float | None = None, limit: int = 0) -> Selection | None:
    """
    Return which messages are meant; None for every one.

    Raises:
        BadParameter: If the task's name is empty: a shell's unset variable must not mean the whole queue.
    """
    from opslib.selection import Selection

    if not glob:
        raise BadParameter(
            "--task is empty.", hint="Leave it out to mean every task; is a variable of the shell not set?"
        )
    chosen = Selection(task=glob, expired_at=expired_at, limit=limit)
    return chosen if limit or not chosen.is_everything else None


def _is_consumed(name: str, broker: Broker) -> bool:
    from opslib.collectors.parts import nodes

    return any(name in row.queues for row in nodes(broker)[0] if row.answered)
