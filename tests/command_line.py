"""Words → what `ops` answers to them: as a process of its own, on a terminal, or, quickest, in this process."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.workers import DEADLINE_S

OPS = str(Path(sys.executable).with_name("ops"))


@dataclass(frozen=True, kw_only=True)
class Done:
    """
    A command that has ended.

    Attributes:
        out: Everything on stdout; on a terminal that of stderr too.
    """

    code: int
    out: str
    err: str = ""

    def __post_init__(self) -> None:
        assert "Traceback" not in self.out + self.err


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what a developer's shell says to `ops`; `more` on top."""
    mine = ("OPS_", "CELERY_", "REDIS_", "BROKER_URL", "RESULT_BACKEND", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)} | more


def ops(*words: str, env: Mapping[str, str], cwd: Path, timeout_s: float = DEADLINE_S) -> Done:
    """Run `ops` as a process, without a terminal."""
    done = subprocess.run(
        [OPS, *words],
        env=dict(env),
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


@contextmanager
def start(*words: str, env: Mapping[str, str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `ops` and go on at once; it ends with the block at the latest."""
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([OPS, *words], env=dict(env), cwd=cwd, text=True, **pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def on_terminal(*words: str, env: Mapping[str, str], cwd: Path, answer: Callable[[str], str] | None = None) -> Done:
    """Run `ops` on a terminal of 160 columns; once it asks, type what `answer` makes of all that was shown."""
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "160", "TERM": "xterm-256color"}
    process = subprocess.Popen([OPS, *words], env={**env, **size}, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        deadline = time.monotonic() + DEADLINE_S
        with suppress(OSError):  # Linux says EIO when the last one on the terminal has gone
            while time.monotonic() < deadline:
                if select.select([ours], [], [], 0.1)[0]:
                    seen += os.read(ours, 65536)
                if answer and seen.endswith(b"\n> "):
                    os.write(ours, f"{answer(seen.decode())}\n".encode())
                    answer = None
        assert process.wait(5) is not None
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return Done(code=process.returncode, out=seen.decode().replace("\r\n", "\n"))


def call(*words: str) -> Done:
    """Run `ops` in this process; an environment that it changes is put back."""
    from typer.testing import CliRunner

    from opslib.cli import app

    before = dict(os.environ)
    try:
        done = CliRunner().invoke(app, list(words), prog_name="ops")
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(code=done.exit_code, out=done.stdout, err=done.stderr)
