"""ops find, ops task status, ops task info: where one task is."""

from __future__ import annotations

from typing import Annotated

import typer

from opslib.cli import options, output
from opslib.errors import BadParameter, Exit

Ids = Annotated[list[str], typer.Argument(metavar="TASK_ID...", help="One or more task ids.")]
Id = Annotated[str, typer.Argument(metavar="TASK_ID", help="A task's id.")]

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
    from opslib.collectors.find import find as look
    from opslib.render import whereabouts

    wanted = [named(each) for each in ids]
    broker = output.open_broker(target, env_file)
    seen = look(broker, wanted, answer_within=timeout)
    form = output.form(output_form, as_json=as_json)
    if form in {options.Format.JSON, options.Format.JSONL}:
        output.document(
            {
                "places": seen.places,
                **{
                    name: getattr(seen, name)
                    for name in ("taken_at", "waiting", "unacked", "held", "results", "coverage")
                },
            },
            form,
        )
    elif form is options.Format.IDS:
        output.emit([each for each, places in seen.places.items() if places], form, table=lambda: "", ids=str)
    else:
        output.show(*whereabouts.show(seen))
    lost = [each for each, places in seen.places.items() if not places]
    if lost:
        blind = any(row.silent for row in seen.coverage)
        raise typer.Exit(int(Exit.CANNOT_SEE if blind else Exit.ATTENTION))


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
    Say in one sentence where a task is.

    PENDING is never said: Celery answers so for an id that it does not know, too.

    Example: ops task status 8a1f… --target prod
    """
    del verbose
    from opslib.collectors.find import find as look
    from opslib.render import whereabouts

    task_id = named(task_id)
    seen = look(output.open_broker(target, env_file), [task_id], answer_within=timeout)
    sentence, places = whereabouts.sentence(seen, task_id), seen.places[task_id]
    form = output.form(output_form, as_json=as_json)
    if form is options.Format.TABLE:
        output.show(sentence)
    elif form is options.Format.IDS:
        output.emit([task_id] if places else [], form, table=lambda: "", ids=str)
    else:
        told = {"task_id": task_id, "places": places, "sentence": sentence, "coverage": seen.coverage}
        output.document(told, form)
    if not places:
        raise typer.Exit(int(Exit.CANNOT_SEE if any(row.silent for row in seen.coverage) else Exit.ATTENTION))


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
    find([task_id], target, env_file, output_form, as_json, timeout, verbose)


def named(task_id: str) -> str:
    """Return an id without the white space around it; an empty one is a script's variable that was not set."""
    if not task_id.strip():
        raise BadParameter("An empty text is no task id.")
    return task_id.strip()
