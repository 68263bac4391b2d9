"""Rows and errors → the terminal: data on stdout, talk on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from opslib.cli.options import Format
from opslib.errors import Exit, OpsError

if TYPE_CHECKING:
    from rich.console import Console

    from opslib.broker import Broker
    from opslib.facts.system import Coverage


def form(output: Format, *, as_json: bool) -> Format:
    """Return the form that was asked for by either spelling."""
    return Format.JSON if as_json else output


def open_broker(target: str, env_file: str) -> Broker:
    """Connect to a target named on the command line, and say aloud what is odd about it."""
    from opslib import settings
    from opslib.broker import connect

    chosen = settings.load(target, env_file=env_file)
    for warning in chosen.warnings:
        say(f"Warning: {warning}")
    broker = connect(chosen)
    for problem in filter(None, (broker.environment_problem, broker.clock_problem)):
        say(f"Warning: {problem}")
    return broker


def emit(
    rows: Sequence[object], form: Format, *, table: Callable[[], object], ids: Callable[[Any], str] | None = None
) -> None:
    """
    Print rows in the form that was asked for.

    Args:
        table: Makes what is printed for a person, a list of it or one thing; called only then.

        ids: What names a row, for `-o ids`.
    """
    if form is Format.TABLE:
        shown = table()
        show(*(shown if isinstance(shown, list) else [shown]))
    elif form is Format.IDS:
        from opslib import redact

        for name in dict.fromkeys(ids(row) if ids else "" for row in rows):
            line = redact.plain(name).replace("\n", "\\x0a")
            sys.stdout.write(f"{line}\n")
    elif form is Format.JSONL:
        for row in rows:
            sys.stdout.write(_json(row) + "\n")
    else:
        sys.stdout.write(_json(list(rows), indent=2) + "\n")


def document(value: object, form: Format = Format.JSON) -> None:
    """Print one JSON document, on one line where lines are asked for."""
    sys.stdout.write(_json(value, indent=None if form is Format.JSONL else 2) + "\n")


def show(*things: object) -> None:
    """Print tables and lines for a person; where no terminal is, as plain text, without what makes colours."""
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        sys.stdout.write("\n".join(_unstyled(thing) for thing in things) + "\n")
        return
    from opslib.render import terminal

    console = stdout()
    with console.capture() as captured:
        for thing in things:
            console.print(terminal.of(thing), markup=False, highlight=False)
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def blind(coverage: Iterable[Coverage]) -> None:
    """Say what was not seen, and end with exit 4 if anything was not: a partial list must not pass for a whole one."""
    partial = [row for row in coverage if row.silent]
    for row in partial:
        say(f"Not the whole view: {row.place}: {row.note or f'{row.silent:,} not seen.'}")
    if partial:
        raise typer.Exit(int(Exit.CANNOT_SEE))


def say(sentence: str) -> None:
    """Print a sentence of talk."""
    stderr().print(_line(sentence), markup=False, highlight=False, soft_wrap=True)


def problem(error: OpsError) -> None:
    """Print what went wrong, and what to do about it."""
    console = stderr()
    console.print(f"✖ {_line(error.message)}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        console.print(f"  {_line(error.hint)}", markup=False, highlight=False, soft_wrap=True)


def defect(error: Exception) -> None:
    """Print an error that nobody foresaw."""
    stderr().print(
        f"✖ This is a defect of ops: {type(error).__name__}: {_line(error)}",
        style="bold red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    say("  The same command with -v shows where; nothing was hidden from the audit.")


def is_usage_error(error: Exception) -> bool:
    """Whether the command line library means to print this itself, with its own exit code 2."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


def stdout() -> Console:
    """Return the console for data."""
    from rich.console import Console

    return Console(width=_width(sys.stdout.isatty()), emoji=False)


def stderr() -> Console:
    """Return the console for talk."""
    from rich.console import Console

    return Console(stderr=True, width=_width(sys.stderr.isatty()), emoji=False)


def _unstyled(thing: object) -> str:
    from opslib import redact
    from opslib.render.grid import Table
    from opslib.render.words import shown

    if isinstance(thing, Table):
        return thing.text(_width(is_terminal=False), fold=True)
    return shown(thing, 10 * len(thing)) if isinstance(thing, str) else redact.plain(thing)


def _width(is_terminal: bool) -> int | None:
    """Return None for a terminal (it knows), and room enough for whole ids elsewhere, unless COLUMNS says otherwise."""
    return None if is_terminal or os.environ.get("COLUMNS") else 160


def _line(value: object) -> str:
    """Return text on one line: what it quotes from elsewhere must not look like a line of ours."""
    from opslib import redact

    return redact.plain(" ".join(str(value).splitlines()))


def _json(value: object, indent: int | None = None) -> str:
    """Return JSON in ASCII: a control character or one that turns the direction is spelled out, DEL too."""
    import json

    from opslib import redact

    return json.dumps(redact.values(_plain(value)), indent=indent).replace("\x7f", "\\u007f")


def _plain(value: object) -> object:
    import msgspec

    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [_plain(each) for each in value]
    return value
