"""ops tasks: the tasks in flight, by where they are."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opslib.cli import options, output
from opslib.errors import BadParameter

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.snapshot import Snapshot
    from opslib.symptoms.stuck_tasks import Thresholds


class State(StrEnum):
    """A place, or a question about several of them."""

    ACTIVE = "active"
    RESERVED = "reserved"
    SCHEDULED = "scheduled"
    RETRYING = "retrying"
    WAITING = "waiting"
    UNACKED = "unacked"
    STUCK = "stuck"


#: The places in which a task has an age that somebody knows.
_WITH_AGE = (State.ACTIVE, State.UNACKED)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="tasks")(tasks)


def tasks(
    state: Annotated[State, typer.Option("--state", help="Which tasks.")] = State.ACTIVE,
    name: Annotated[str, typer.Option("--task", metavar="GLOB", help="Only tasks of this name.")] = "*",
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Only active or unacked for so long, such as 3h.")
    ] = "",
    limit: options.Limit = options.LIMIT,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    List tasks in flight.

    Of what waits these are the next to be served, some of each queue; `ops queues` counts them all.

    Example: ops tasks --state retrying --target prod
    """
    del verbose
    from opslib.collectors.deployment import collect
    from opslib.durations import seconds
    from opslib.render import listings
    from opslib.symptoms.stuck_tasks import Thresholds

    if older_than and state not in _WITH_AGE:
        hint = "Nobody writes down when a task began to wait."
        raise BadParameter(f"--older-than counts {', '.join(_WITH_AGE)} tasks, not {state} ones.", hint=hint)
    longer_s = seconds(older_than, "--older-than") if older_than else 0.0
    broker = output.open_broker(target, env_file)
    form = output.form(output_form, as_json=as_json)
    if state is State.WAITING:
        _waiting(broker, name, limit, form, timeout)
        return
    # Only what is called stuck has to be proven by a second look after a pause.
    snapshot = collect(broker, answer_within=timeout, settle="2s" if state is State.STUCK else "0.01s")
    rows = _rows(snapshot, state, Thresholds.of(broker))
    rows = [row for row in rows if fnmatchcase(getattr(row, "task", ""), name)]
    rows = [row for row in rows if not longer_s or (_age_s(row, snapshot) or 0.0) >= longer_s]
    output.emit(rows[:limit], form, table=lambda: listings.tasks(rows[:limit], snapshot), ids=_id)
    if len(rows) > limit:
        output.say(f"{len(rows) - limit:,} more; --limit shows them.")
    if state is State.RETRYING and rows:
        counted = sum(sum(queue.retrying.values()) for queue in snapshot.queues) - sum(
            row.place == "waiting" for row in rows
        )
        if counted > 0:
            output.say(f"Retrying and waiting, not listed: {counted:,}; the most retried ones are.")
        output.say("`ops run retry-storm` says why, and how often; `ops task stop --task NAME` ends them.")
    output.blind(snapshot.coverage)


def _waiting(broker: Broker, name: str, limit: int, form: options.Format, timeout: str) -> None:
    """List what is served next, of each queue as many as of any other."""
    from opslib import refusals
    from opslib.collectors import queues
    from opslib.collectors.parts import depths
    from opslib.facts.messages import WaitingMessage
    from opslib.render import tables
    from opslib.selection import Selection

    known, coverage = depths(broker, answer_within=timeout)
    full = [row.name for row in known if row.depth]
    only = None if name == "*" else Selection(task=name)
    with refusals.explained(broker.target.shown_broker):
        listings, _ = queues.lists(broker, full)
        each = max(1, limit // max(1, len(full)))
        rows = [
            row
            for queue in full
            for row in queues.served_next(broker, [of for of in listings if of.queue == queue], only, limit=each)
        ][:limit]
    readable = [row for row in rows if isinstance(row, WaitingMessage)]
    if form is options.Format.TABLE:
        output.show(tables.waiting(rows) if rows else "No such task was seen.")
    else:
        output.emit(readable, form, table=list, ids=_id)
    rest = sum(row.depth for row in known) - len(rows)
    if rest > 0:
        of = "" if only is None else ", of whatever task"
        output.say(
            f"Waiting and not listed{of}: {rest:,}. `ops queue peek QUEUE` shows more, `ops queues` counts them."
        )
    output.blind(coverage)


def _rows(snapshot: Snapshot, state: State, limits: Thresholds) -> list[Any]:
    if state in {State.ACTIVE, State.RESERVED, State.SCHEDULED}:
        return [task for task in snapshot.held if task.place == state]
    if state is State.UNACKED:
        return list(snapshot.unacked)
    from opslib.symptoms import retries, stuck_tasks

    if state is State.RETRYING:
        return list(retries.retrying(snapshot))

    return stuck_tasks.diagnose(snapshot, limits)


def _age_s(row: object, snapshot: Snapshot) -> float | None:
    since = getattr(row, "started_at", None) or getattr(row, "delivered_at", None)
    return None if since is None else snapshot.taken_at.timestamp() - since


def _id(row: object) -> str:
    return str(getattr(row, "task_id", "") or getattr(row, "subject", ""))
