"""The words on the command line → a call, and its exit code: one file for each noun."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from opslib import __version__
from opslib.errors import Exit, OpsError

if TYPE_CHECKING:
    app: typer.Typer

#: What is imported lives as long as its process: to search it for garbage would be a sixth of a short command's time.
SELDOM = (50_000, 20, 50)

#: Every command and group: the modules that it is made of, and what it is for. So `ops --help` need not load them.
INDEX: dict[str, tuple[tuple[str, ...], str]] = {
    "list": (("runbooks",), "List the runbooks by symptom."),
    "show": (("runbooks",), "Show what a runbook is for, its parameters, and what it changes."),
    "run": (("runbooks",), "Run a runbook headless and keep its report; nothing is changed without --apply."),
    "apply": (
        ("changes",),
        "Carry out the plan that a run saved: exactly that, each item only if it still is as it was planned.",
    ),
    "undo": (
        ("changes",),
        "Put back what a run changed: bytes, places, lives; with --apply, otherwise only say what that would do.",
    ),
    "resume": (
        ("changes",),
        "Finish a run that was interrupted while it changed something; it was confirmed when it was begun.",
    ),
    "find": (("find",), "Look for tasks in every place, and say what could not be looked into."),
    "tasks": (("tasks",), "List tasks in flight."),
    "queues": (("queues",), "List every queue with its depth by priority and its consumers."),
    "workers": (
        ("workers",),
        "List the nodes: pool, slots, what each holds, memory, queues, and the names that do not answer.",
    ),
    "stats": (("stats",), "Show how many tasks there are in each place, how busy the nodes are, and what is stored."),
    "unlock": (("unlock",), "Show which run holds the lock; with --lock-id and --reason, take it from that run."),
    "task": (("find", "task", "cleanup", "resume_task"), "One task: where it is and what is known of it."),
    "app": (("app_keys", "app_state"), "What the application keeps: progress, logs and the like, and its state."),
    "queue": (("queues",), "One queue: what waits in it, and what is to become of that."),
    "worker": (("workers",), "One node, or one task on all of them: how much is done at once."),
    "dead": (("dead",), "Tasks that failed for good, and what is kept of them."),
    "schedule": (("schedule",), "What beat sends, and when."),
    "results": (("stored",), "What is stored of results, and what of it is too old."),
    "quarantine": (("quarantine",), "Messages that were taken out of circulation and are kept."),
    "reports": (("reports",), "The archive of incident reports."),
    "audit": (("audit",), "The record of every change."),
    "config": (("config",), "The settings of a target."),
    "demo": (("demo",), "An embedded, really broken Celery system to practise on."),
}


class Commands(TyperGroup):
    """The one place where an error becomes a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - what the library hands through
        """Run a command; end with the error's own exit code."""
        from opslib.cli import output

        try:
            return super().invoke(ctx)
        except OpsError as error:
            output.problem(error)
            raise typer.Exit(int(error.exit_code)) from None
        except KeyboardInterrupt:
            output.say("Interrupted.")
            raise typer.Exit(int(Exit.INTERRUPTED)) from None
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # who reads this has seen enough: `ops tasks | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(int(Exit.DONE)) from None
        except Exception as error:
            if output.is_usage_error(error) or "-v" in sys.argv or "--verbose" in sys.argv:
                raise
            output.defect(error)
            raise typer.Exit(int(Exit.FAILED)) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opslib {__version__}")
        raise typer.Exit


def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Executable runbooks for Celery on Redis: look, judge, plan, apply, verify, and keep the report."""
    del version  # answered by its callback


def main() -> None:
    """Run the command line."""
    gc.set_threshold(*SELDOM)
    noun = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if noun in INDEX:
        made = assembled(INDEX[noun][0])
        _only(made, noun)
    else:
        # A shell that completes a word asks without one, and wants to know all about each.
        made = every() if "_OPS_COMPLETE" in os.environ else listed()
    try:
        made(prog_name="ops")
    finally:
        gc.freeze()  # an interpreter that ends looks through all objects once more: 70 ms, of which nobody has anything


def assembled(modules: tuple[str, ...]) -> typer.Typer:
    """Return the application with what these modules have."""
    made = _empty()
    for name in modules:
        module = import_module(f"opslib.cli.{name}")
        if hasattr(module, "register"):
            module.register(made)
        else:
            made.add_typer(module.app, name=name)
    return made


def every() -> typer.Typer:
    """Return the application with all that it has."""
    return assembled(tuple(dict.fromkeys(name for modules, _ in INDEX.values() for name in modules)))


def listed() -> typer.Typer:
    """Return the application with the names of all that it has, and what each is for; none of them can be called."""
    made = _empty()
    for name, (_, summary) in INDEX.items():
        made.command(name=name, help=summary)(_unloaded)
    return made


def _unloaded() -> None:
    """Stand for a command that was not loaded."""


def _empty() -> typer.Typer:
    made = typer.Typer(
        name="ops",
        cls=Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(common)
    return made


def _only(made: typer.Typer, noun: str) -> None:
    """Leave only the command that is called, or its group: the library would build every one of them first."""
    made.registered_commands = [each for each in made.registered_commands if _name(each) == noun]
    made.registered_groups = [each for each in made.registered_groups if each.name == noun]


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or getattr(command.callback, "__name__", "").replace("_", "-")


def __getattr__(name: str) -> typer.Typer:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = every()
    return made
