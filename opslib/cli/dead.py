"""ops dead: tasks that failed for good, and what is kept of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opslib.cli import changes, options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opslib.broker import Broker
    from opslib.facts.dead import DeadGroup, DeadLetter
    from opslib.facts.snapshot import Snapshot
    from opslib.letters import Letter
    from opslib.symptoms import letters_asked

Name = Annotated[
    str, typer.Argument(metavar="[NAME]", help="A signature's short name, an entry id or a task id; nothing for all.")
]
Queue = Annotated[str, typer.Option("--queue", "-Q", metavar="NAME", help="Only dead letters of this queue.")]
Task = Annotated[str, typer.Option("--task", metavar="GLOB", help="Only tasks whose name fits, such as shop.*.")]
Signature = Annotated[
    str, typer.Option("--signature", metavar="NAME", help="Only this group, by its short name or a glob of its text.")
]
Window = Annotated[str, typer.Option("--window", metavar="TIME", help="How long to watch whether more come.")]
Names = Annotated[
    list[str], typer.Argument(metavar="[ENTRY]...", help="Entry ids or task ids; none for all that the options mean.")
]
Queues = Annotated[
    str, typer.Option("--queue", "-Q", metavar="NAME", help="Only dead letters of this queue; * for any.")
]
Cause = Annotated[str, typer.Option("--cause", metavar="CAUSE", help="Only those that died so, such as worker-lost.")]
OlderThan = Annotated[str, typer.Option("--older-than", metavar="TIME", help="Only those that failed longer ago.")]
Most = Annotated[int, typer.Option("--limit", min=0, metavar="N", help="So many at most, the oldest first; 0 for all.")]
Rate = Annotated[str, typer.Option("--rate", metavar="RATE", help="So many at most, such as 50/s or 100/m.")]
To = Annotated[str, typer.Option("--to", metavar="QUEUE", help="To this queue instead of that of each.")]
NewIds = Annotated[
    bool, typer.Option("--new-ids", help="Under new ids: what is revoked runs, who waits learns nothing.")
]
KeepRetries = Annotated[bool, typer.Option("--keep-retries", help="The retries that each had count.")]
Expired = Annotated[bool, typer.Option("--expired", help="Also what has expired, without its expiry.")]
Args = Annotated[str, typer.Option("--args", metavar="JSON", help="Other arguments, for one letter: a list.")]
Kwargs = Annotated[str, typer.Option("--kwargs", metavar="JSON", help="Other named arguments, for one: an object.")]
ShowArgs = Annotated[bool, typer.Option("--show-args", help="Show the arguments of one letter, and say so.")]

#: Pause before the second look at the lengths.
_WINDOW = "1s"

app = typer.Typer(help="Tasks that failed for good, and what is kept of them.", no_args_is_help=True)


@app.command(name="list")
def list_(
    window: Window = _WINDOW,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List every dead-letter list with its size, and the letters in groups by what they failed of.

    With -o ids: the short name of each group, for `ops dead show`.

    Example: ops dead list --target prod
    """
    del verbose
    seen = _look(output.open_broker(target, env_file), timeout, window=window)
    groups = _groups(seen)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        from opslib.render import dead

        ungrouped = seen.letters.ungrouped if seen.letters else 0
        lists = seen.letters.lists if seen.letters else ()
        output.show(dead.lists(lists, seen.taken_at), dead.groups(groups, seen.taken_at, ungrouped=ungrouped))
    elif form is options.Format.IDS:
        output.emit(groups, form, table=lambda: "", ids=lambda row: str(row.name))
    else:
        found = seen.letters
        lists = found.lists if found else ()
        counts = {"read": found.read, "ungrouped": found.ungrouped, "watched_s": found.watched_s} if found else {}
        document = {"taken_at": seen.taken_at, "lists": lists, "groups": groups, **counts, "coverage": seen.coverage}
        output.document(document, form)
    output.blind(seen.coverage)


@app.command()
def show(
    name: Name = "",
    queue: Queue = "",
    task: Task = "*",
    signature: Signature = "",
    show_args: ShowArgs = False,
    target: options.Target = "",
    limit: options.Limit = options.LIMIT,
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Show dead letters, newest first; one group of them, or one letter with its traceback.

    Arguments are not shown, unless --show-args is given for one letter. A traceback may quote what the task was given.

    Example: ops dead show 1a2b3c4d --target prod
    """
    del verbose
    from opslib.errors import BadParameter
    from opslib.symptoms import letters_asked

    broker = output.open_broker(target, env_file)
    seen = _look(broker, timeout)
    name, form = name.strip(), output.form(output_form, as_json=as_json)
    group = next((each for each in _groups(seen) if each.name == name), None)
    wish = letters_asked.Wish(do="", queue=queue, task=task, signature=name if group else signature)
    if name and not group:
        _one(broker, seen, name, form, show_args=show_args)
        return
    if show_args:
        hint = "`ops dead show` without it lists their entry ids."
        raise BadParameter("--show-args is for one letter, by its entry id or task id.", hint=hint)
    rows = letters_asked.rows(seen, wish)
    _several(seen, rows, group, form, limit=limit)
    output.blind(seen.coverage)


@app.command()
def redrive(
    names: Names = [],  # noqa: B006 - how Typer spells it
    queue: Queues = "",
    task: Task = "*",
    signature: Signature = "",
    cause: Cause = "",
    older_than: OlderThan = "",
    most: Most = 0,
    rate: Rate = "",
    to: To = "",
    new_ids: NewIds = False,
    keep_retries: KeepRetries = False,
    expired: Expired = False,
    args: Args = "",
    kwargs: Kwargs = "",
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
    Send dead letters again, the oldest first, each to the queue that it came from, under its own id, each once.

    What must not or cannot run is refused, with the reason: revoked, expired, succeeded since, sent again three times
    already. A chord waits for its task again; a chain goes on. --queue '*' means all letters.

    Example: ops dead redrive --signature 1a2b3c4d --rate 50/s --target prod --apply
    """
    del verbose
    from opslib.symptoms import letters_asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    wish = letters_asked.Wish(
        do=letters_asked.REDRIVE,
        queue=queue,
        task=task,
        signature=signature,
        cause=cause,
        entry=" ".join(names),
        older_than=older_than,
        limit=most,
        rate=rate,
        to=to,
        new_ids=new_ids,
        keep_retries=keep_retries,
        expired=expired,
        args=args,
        kwargs=kwargs,
    )
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _carry_out(output.open_broker(target, env_file), wish, form, timeout, asks)


@app.command()
def purge(
    names: Names = [],  # noqa: B006 - how Typer spells it
    queue: Queues = "",
    task: Task = "*",
    signature: Signature = "",
    cause: Cause = "",
    older_than: OlderThan = "",
    most: Most = 0,
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
    Take dead letters out of their lists; they are kept in quarantine, and `ops undo` puts them back.

    --older-than ages them out; --cause worker-lost takes away what kills workers. --queue '*' means all letters.

    Example: ops dead purge --older-than 30d --target prod --apply
    """
    del verbose
    from opslib.symptoms import letters_asked

    form = changes.prepared(output_form, as_json=as_json, apply=apply, dry_run=dry_run, yes=yes)
    wish = letters_asked.Wish(
        do=letters_asked.PURGE,
        queue=queue,
        task=task,
        signature=signature,
        cause=cause,
        entry=" ".join(names),
        older_than=older_than,
        limit=most,
    )
    asks = changes.Ask(apply=apply, yes=yes, confirmed=confirmed, reason=reason)
    _carry_out(output.open_broker(target, env_file), wish, form, timeout, asks)


def _carry_out(
    broker: Broker, wish: letters_asked.Wish, form: options.Format, timeout: str, asks: changes.Ask
) -> NoReturn:
    """Show or carry out what is to be done with letters, as a run of its own."""
    from opslib.symptoms import letters_asked

    seen = _look(broker, timeout)
    actions = letters_asked.actions(seen, wish)
    if not actions:
        output.say("There are no dead letters. Nothing was changed.")
        output.blind(seen.coverage)
        raise typer.Exit
    changes.change(broker, changes.planned(broker, actions), wish.do, form, name=f"{wish.do}-dead", asks=asks)


def _several(
    seen: Snapshot, rows: Sequence[DeadLetter], group: DeadGroup | None, form: options.Format, *, limit: int
) -> None:
    from opslib.render import dead

    if form is options.Format.TABLE:
        table = dead.letters(rows[:limit], seen.taken_at, total=len(rows))
        output.show(*(dead.group_in_full(group, seen.taken_at) if group else ()), table)
    elif group and form is not options.Format.IDS:
        output.document({"group": group, "letters": rows[:limit]}, form)
    else:
        output.emit(rows[:limit], form, table=lambda: "", ids=lambda row: str(row.entry_id))


def _one(broker: Broker, seen: Snapshot, name: str, form: options.Format, *, show_args: bool) -> None:
    """
    Show one letter; of several with one task id, each.

    Raises:
        NotFound: If there is none.
    """
    from opslib.errors import NotFound, near
    from opslib.render import dead

    found = _entries(broker, seen, name)
    if not found:
        letters = seen.letters
        known = [group.name for group in letters.groups] if letters else []
        known += [each.entry_id for each in letters.letters] if letters else []
        raise NotFound(
            f"No dead letter, task or signature is named {name!r}.",
            hint=near(name, known, otherwise="`ops dead show` lists the letters, `ops dead list` the signatures."),
        )
    if show_args:
        output.say("Arguments are shown, as was asked for; they may hold what is private.")
    if form is options.Format.TABLE:
        views = [dead.letter_in_full(row, letter, seen.taken_at, arguments=show_args) for row, letter in found]
        output.show(*(view for each in views for view in each))
    elif form is options.Format.IDS:
        output.emit([row for row, _ in found], form, table=lambda: "", ids=lambda row: str(row.entry_id))
    else:
        documents = [_document(row, letter, show_args=show_args) for row, letter in found]
        output.document(documents[0] if len(documents) == 1 else documents, form)


def _document(row: DeadLetter, letter: Letter, *, show_args: bool) -> dict[str, object]:
    from dataclasses import asdict

    from opslib.letters import MOST_TRACEBACK

    arguments = {"args": letter.args, "kwargs": letter.kwargs} if show_args else {}
    return {**asdict(row), "traceback": letter.traceback[-MOST_TRACEBACK:], **arguments}


def _entries(broker: Broker, seen: Snapshot, name: str) -> list[tuple[DeadLetter, Letter]]:
    """Return the letters of one name, with what the look has found out about each."""
    from opslib import refusals
    from opslib.collectors import dead_letters

    letters = seen.letters
    keys = [each.key for each in letters.lists if each.source == "list"] if letters else []
    known = {(each.key, each.entry_id): each for each in letters.letters} if letters else {}
    with refusals.explained(broker.target.shown_broker):
        found = list(dead_letters.entries(broker, keys, [name]))
    return [(known.get((row.key, row.entry_id), row), letter) for row, letter in found]


def _look(broker: Broker, timeout: str, *, window: str = "") -> Snapshot:
    from opslib.collectors.deployment import collect

    return collect(broker, dead_letters=True, settle=window or "0.001s", answer_within=timeout)


def _groups(seen: Snapshot) -> tuple[DeadGroup, ...]:
    from opslib.symptoms import dlq_triage

    return dlq_triage.groups(seen)
