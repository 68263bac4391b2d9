"""ops find, ops task status, ops task info, ops task check: where one task is, and whether it loops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from opslib.cli import options, output
from opslib.errors import Exit

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.whereabouts import Whereabouts
    from opslib.findings import Finding

Ids = Annotated[list[str], typer.Argument(metavar="TASK_ID...", help="One or more task ids.")]
Id = Annotated[str, typer.Argument(metavar="TASK_ID", help="A task's id.")]
Watch = Annotated[str, typer.Option("--watch", metavar="TIME", help="See whether its retries rise meanwhile, as 10s.")]

#: Pause before a second look; made only where the first one was not enough.
_SETTLE = "1s"
#: Looks that a watch is divided into, and the shortest pause between two.
_LOOKS, _SHORTEST_S = 10, 0.5
#: What one document holds of a view.
_FIELDS = ("taken_at", "waiting", "unacked", "held", "results", "dead", "quarantined", "offspring", "coverage")

task = typer.Typer(help="One task: where it is and what is known of it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="find")(find)
    app.add_typer(task, name="task")


def find(
    ids: Ids,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Look for tasks in every place, and say what could not be looked into.

    Exit 0: each id was found. 1: one was not, and every place was seen. 4: one was not, and something was not seen.

    Example: ops find 8a1f… 5c0d… --target prod
    """
    del verbose
    from opslib.render import whereabouts

    wanted = [options.task_id(each) for each in ids]
    seen, findings = _look(output.open_broker(target, env_file), wanted, timeout)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        output.show(whereabouts.answers(seen, findings), *whereabouts.show(seen))
    else:
        _document(seen, findings, form)
    end(seen)


@task.command()
def status(
    task_id: Id,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Say in one sentence how a task stands, and what to do.

    PENDING is never said: Celery answers so for an id that it does not know, too.

    Example: ops task status 8a1f… --target prod
    """
    del verbose
    from opslib.render import whereabouts

    task_id = options.task_id(task_id)
    seen, findings = _look(output.open_broker(target, env_file), [task_id], timeout)
    told = whereabouts.tell(seen, task_id, findings)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        output.show(whereabouts.in_words(seen, findings))
        output.say(" ".join(filter(None, (told.step, told.command))))
        say_unseen(seen)
    elif form is options.Format.IDS:
        output.emit([task_id] if seen.places[task_id] else [], form, table=lambda: "", ids=str)
    else:
        said = {name: getattr(told, name) for name in ("task_id", "task", "sentence", "step", "command")}
        found = {"places": seen.places[task_id], "findings": findings, "coverage": seen.coverage}
        output.document({**said, **found}, form)
    end(seen)


@task.command()
def info(
    task_id: Id,
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Show everything that is known of a task, place by place.

    Example: ops task info 8a1f… -o json
    """
    del verbose
    from opslib.render import display, whereabouts

    task_id = options.task_id(task_id)
    seen, findings = _look(output.open_broker(target, env_file), [task_id], timeout)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        views: list[object] = [whereabouts.answers(seen, findings), *whereabouts.show(seen)]
        for rows in (seen.waiting, seen.unacked, seen.held, seen.results, seen.offspring):
            views += display.views(rows, seen.taken_at, held=seen.held) if rows else []
        output.show(*views, *(display.views(findings) if findings else []))
    else:
        _document(seen, findings, form)
    end(seen)


@task.command()
def check(
    task_id: Id,
    watch: Watch = "",
    target: options.Target = "",
    env_file: options.EnvFile = "",
    output_form: options.Output = options.Format.TABLE,
    as_json: options.Json = False,
    timeout: options.Timeout = options.TIMEOUT,
    verbose: options.Verbose = False,
) -> None:
    """
    Say whether a task is in a retry loop.

    It is, if it was retried as often as the target's loop_after, or if its retries rise and nothing says that they end.

    Exit 0: no. 1: yes. 4: that cannot be told.

    Example: ops task check 8a1f… --watch 10s
    """
    del verbose
    from opslib.durations import seconds
    from opslib.symptoms import retrying
    from opslib.symptoms.stuck_tasks import Thresholds

    task_id = options.task_id(task_id)
    watch_s = seconds(watch, "--watch") if watch else 0.0
    broker = output.open_broker(target, env_file)
    limits = Thresholds.of(broker)
    looks: list[Whereabouts] = []
    for seen in _looks(broker, task_id, timeout, watch_s):
        looks.append(seen)
        answer = retrying.judge(looks, task_id, limits)
        if answer.is_loop and answer.evidence["rose_by"]:  # what was asked for was seen
            break
    answer = retrying.judge(looks, task_id, limits)
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        output.show(answer.sentence)
        say_unseen(looks[-1])
    elif form is options.Format.IDS:
        output.emit([task_id] if answer.is_loop else [], form, table=lambda: "", ids=str)
    else:
        output.document(
            {"task_id": task_id, "is_loop": answer.is_loop, "sentence": answer.sentence, **answer.evidence}, form
        )
    if answer.is_loop is not False:
        raise typer.Exit(int(Exit.ATTENTION if answer.is_loop else Exit.CANNOT_SEE))


def _looks(broker: Broker, task_id: str, timeout: str, watch_s: float) -> Iterator[Whereabouts]:
    """Look at a task once, and again and again for as long as it is watched."""
    from opslib.collectors.find import find as look

    until = time.monotonic() + watch_s
    pause_s = max(_SHORTEST_S, watch_s / _LOOKS)
    yield look(broker, [task_id], kept=not watch_s, settle="" if watch_s else _SETTLE, answer_within=timeout)
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(pause_s, left_s))
        yield look(broker, [task_id], answer_within=timeout)


def _look(broker: Broker, ids: list[str], timeout: str) -> tuple[Whereabouts, list[Finding]]:
    """Look for tasks, a second time where one look is not enough, and judge what was seen of them."""
    from opslib.collectors.find import find as look
    from opslib.symptoms import find_task

    seen = look(broker, ids, in_tables=True, settle=_SETTLE, answer_within=timeout)
    return seen, find_task.diagnose(seen, find_task.Thresholds.of(broker))


def _document(seen: Whereabouts, findings: list[Finding], form: options.Format) -> None:
    """Print all of a view for a program, or the ids that were found."""
    from opslib.render import whereabouts

    if form is options.Format.IDS:
        output.emit([each for each, places in seen.places.items() if places], form, table=lambda: "", ids=str)
        return
    told = [whereabouts.tell(seen, task_id, findings) for task_id in sorted(seen.ids)]
    rows = {name: getattr(seen, name) for name in _FIELDS}
    output.document({"places": seen.places, "tasks": told, "findings": findings, **rows}, form)


def end(seen: Whereabouts) -> None:
    """End with the exit code that says whether each task was found."""
    if not all(seen.places.values()):
        raise typer.Exit(int(Exit.CANNOT_SEE if seen.silent_places else Exit.ATTENTION))


def say_unseen(seen: Whereabouts) -> None:
    """Say of each place that was not seen why."""
    for row in seen.silent_places:
        output.say(f"Not the whole view: {row.place}: {row.note or f'{row.silent:,} not seen.'}")
