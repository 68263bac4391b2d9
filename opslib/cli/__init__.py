"""The words on the command line → a call, and its exit code: one file for each noun."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from opslib import __version__
from opslib.cli import (
    audit,
    changes,
    cleanup,
    config,
    dead,
    demo,
    find,
    output,
    quarantine,
    queues,
    reports,
    resume_task,
    runbooks,
    stats,
    task,
    tasks,
    unlock,
    workers,
)
from opslib.errors import Exit, OpsError

#: What is imported lives as long as its process: to search it for garbage would be a sixth of a short command's time.
_SELDOM = (50_000, 20, 50)


class Commands(TyperGroup):
    """The one place where an error becomes a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - what the library hands through
        """Run a command; end with the error's own exit code."""
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


app = typer.Typer(
    name="ops",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opslib {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Executable runbooks for Celery on Redis: look, judge, plan, apply, verify, and keep the report."""
    del version  # answered by its callback


runbooks.register(app)
changes.register(app)
find.register(app)
task.register()
cleanup.register()
resume_task.register()
tasks.register(app)
queues.register(app)
workers.register(app)
stats.register(app)
unlock.register(app)
app.add_typer(dead.app, name="dead")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(reports.app, name="reports")
app.add_typer(audit.app, name="audit")
app.add_typer(config.app, name="config")
app.add_typer(demo.app, name="demo")


def main() -> None:
    """Run the command line."""
    gc.set_threshold(*_SELDOM)
    _only(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    app(prog_name="ops")


def _only(noun: str) -> None:
    """Leave only the command that is called, or its group: the library would build every one of them first."""
    commands = [each for each in app.registered_commands if _name(each) == noun]
    groups = [each for each in app.registered_groups if each.name == noun]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or getattr(command.callback, "__name__", "").replace("_", "-")
