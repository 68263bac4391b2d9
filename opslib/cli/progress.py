"""The steps of a run, and what a long one writes of itself → a line for each, live on a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from opslib.cli import output

if TYPE_CHECKING:
    from opslib.run import Say, Step

#: A log is looked at so often while a cell runs.
_EVERY_S = 0.5
_MOST_BYTES = 64 * 1024


@contextmanager
def shown(*, quiet: bool) -> Iterator[Say | None]:
    """Give the runner somebody to tell of its steps; nobody with `quiet`."""
    if quiet:
        yield None
        return
    from rich.markup import escape

    console = output.stderr()
    live = console.status("starting the kernel") if sys.stderr.isatty() else None
    following: list[_Follower] = []

    def aloud(line: str) -> None:
        if not line.endswith("…"):  # where lines stay, one that only says that something begins is one too many
            console.print(escape(line), highlight=False)

    def say(step: Step) -> None:
        while following:
            following.pop().end()
        if step.took_s is None:
            head = f"{step.name} ({step.number} of {step.total})"
            if live:
                live.update(escape(head))
                following.append(_Follower(step.log, lambda line: live.update(escape(f"{head}: {line[20:]}"))))
            else:
                following.append(_Follower(step.log, aloud))
            return
        sign = "[red]✖[/red]" if step.failed else "[green]✔[/green]"
        console.print(f"{sign} {escape(f'{step.name:<12}')}[dim]{step.took_s:6.1f} s[/dim]", highlight=False)

    try:
        if live:
            with live:
                yield say
        else:
            yield say
    finally:
        while following:
            following.pop().end()


class _Follower:
    """Reads what is written on to a log, in a thread of its own, until it is told to end."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path, self._tell = path, tell
        self._at = self._size()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Tell what is left, and stop."""
        self._over.set()
        self._thread.join()

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _follow(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._read()

    def _read(self) -> None:
        """Tell of the lines that are whole, those of a phase that takes its time: the others are over at once."""
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._at)
            lines = file.read(_MOST_BYTES).splitlines(keepends=True)
            for line in lines:
                if line.endswith(b"\n"):
                    self._at += len(line)
                    self._tell(line.decode("utf-8", "replace").rstrip())
