"""The steps of a run → a line for each, live on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opslib.cli import output

if TYPE_CHECKING:
    from opslib.run import Say, Step


@contextmanager
def shown(*, quiet: bool) -> Iterator[Say | None]:
    """Give the runner somebody to tell of its steps; nobody with `quiet`."""
    if quiet:
        yield None
        return
    from rich.markup import escape

    console = output.stderr()
    live = console.status("starting the kernel") if sys.stderr.isatty() else None

    def say(step: Step) -> None:
        if step.took_s is None:
            if live:
                live.update(f"{escape(step.name)} ({step.number} of {step.total})")
            return
        sign = "[red]✖[/red]" if step.failed else "[green]✔[/green]"
        console.print(f"{sign} {escape(f'{step.name:<12}')}[dim]{step.took_s:6.1f} s[/dim]", highlight=False)

    if live:
        with live:
            yield say
    else:
        yield say
