"""The phases of a long look → how far it is, on the terminal and in a log file, so that nobody has to guess."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from opslib import folders, records, redact
from opslib.durations import spell
from opslib.errors import SettingsError

#: A line each few seconds is enough to see that something moves.
_EVERY_S = 2.0


class Progress:
    """
    Writes a line when a phase begins, every few seconds, and when it ends.

    The lines go to the run's folder, where the command that started the run shows the last one, and to a file that a
    person names. They hold what was found so far, so that an interrupted look leaves that.

    Args:
        log_file: A path; empty for none. An existing file is written on.

    Raises:
        SettingsError: If the file cannot be written.
    """

    def __init__(self, log_file: str = "", *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        record = records.context().record
        self._paths = [Path(record).parent / folders.PROGRESS] if record else []
        if log_file:
            path = Path(log_file).expanduser()
            try:
                _write(path, "")
            except OSError as error:
                raise SettingsError(
                    f"log_file: {path} cannot be written: {error.strerror}.",
                    hint="Name a file in a folder that is there.",
                ) from None
            self._paths.append(path)

    @contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Callable[[int, str], None]]:
        """
        Tell of a part of the work; yield what is called with how much of it is done by now, and what was found so far.

        Args:
            total: How much there is to be done; 0 where nobody knows.
        """
        began = last = self._now()
        self.say(f"{name} …")
        done, told = 0, ""

        def step(count: int, so_far: str = "") -> None:
            nonlocal done, told, last
            done, told = count, so_far
            if self._now() - last >= _EVERY_S:
                last = self._now()
                self.say(f"{name}: {_pace(done, total, last - began)}{f'; so far {told}' if told else ''}", aloud=True)

        try:
            yield step
        except BaseException:
            self.say(f"{name} was broken off: {_pace(done, total, self._now() - began)}{f'; {told}' if told else ''}")
            raise
        counted = f"{done:,} in " if done else ""
        self.say(f"{name}: {counted}{spell(self._now() - began)}{f'; {told}' if told else ''}")

    def say(self, text: str, *, aloud: bool = False) -> None:
        """
        Write a line with the time of the day; a disk that is full must not end the look.

        Args:
            aloud: Whether somebody who runs this by hand, with no command around it, gets to read it too.
        """
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {redact.plain(text)}\n"
        for path in self._paths:
            with suppress(OSError):
                _write(path, line)
        if aloud and not records.context().record:
            sys.stderr.write(line)


def _write(path: Path, text: str) -> None:
    """Append to a file; a new one is for its owner only."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "a") as file:
        file.write(text)


def _pace(done: int, total: int, took_s: float) -> str:
    rate = done / took_s if took_s > 0 else 0.0
    if not total:
        return f"{done:,}, {rate:,.0f} a second"
    left = f", {spell((total - done) / rate)} left" if rate and total > done else ""
    return f"{done:,} of {total:,}, {rate:,.0f} a second{left}"
