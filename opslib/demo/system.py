"""Verbs on the embedded broken system: have it up, take it down, ask how it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opslib import redact
from opslib.demo import state
from opslib.demo.state import Demo, DemoFailed
from opslib.embedded import processes, server
from opslib.embedded.processes import Child

READY_WITHIN_S = 30.0
#: Shorter than the visibility timeout, after which Celery itself would change what is wrong.
KEEP_S = 3300.0
END_WITHIN_S = 5.0
_POLL_S = 0.05

Say = Callable[[str], None]

#: Supervisors that this process started, by folder, so that it reaps them when they end.
_started: dict[Path, Child] = {}


def up(
    folder: Path | None = None,
    *,
    keep_s: float = KEEP_S,
    within_s: float = READY_WITHIN_S,
    say: Say | None = None,
) -> Demo:
    """
    Return the folder's demo once it is ready; start it if none runs. It stays when this process ends.

    Args:
        folder: Where its state is kept; OPS_DEMO_DIR, or a folder in the user's runtime directory, if None.

        keep_s: How long it stays up unless it is taken down. After one hour, the visibility timeout, Celery itself
            gives the orphans back, and delivers the late reminder again.

        within_s: Longest wait for it.

        say: Called with a line about each thing that is being broken.

    Raises:
        DemoFailed: If it is not ready in time, or an error or somebody ended it.

        ServerMissing: If the `demo` extra is not installed.
    """
    return _up(state.make_place(folder), keep_s=keep_s, within_s=within_s, say=say)


def down(folder: Path | None = None) -> bool:
    """
    End the folder's demo, with every process and file of it, and say whether there was one.

    Raises:
        DemoFailed: If it does not end.
    """
    folder = state.place(folder)
    there = state.is_owned(folder)
    if there:
        _end(folder)
    if child := _started.get(folder):
        _end_child(child)
    state.sweep(folder)
    return there


def status(folder: Path | None = None) -> Demo | None:
    """Return the folder's demo, ready or still being made; None if none runs. Removes what a dead one left."""
    folder = state.place(folder)
    _reap()
    return None if state.sweep(folder) else state.read(folder)


@contextmanager
def ensure(
    folder: Path | None = None,
    *,
    within_s: float = READY_WITHIN_S,
    say: Say | None = None,
) -> Iterator[Demo]:
    """
    Use the folder's demo if it runs; else start a private one, and end it with the block or with this process.

    Inside the block OPS_DEMO_DIR names the demo's folder, so that processes started there find it. Enter it in a thread
    that lasts as long: on Linux a private demo ends with the thread that started it.

    Raises:
        DemoFailed: If it is not ready in time.

        ServerMissing: If the `demo` extra is not installed.
    """
    if status(folder) is not None:
        with _named(up(folder, within_s=within_s, say=say)) as demo:
            yield demo
        return
    with tempfile.TemporaryDirectory(prefix="opslib-demo-") as name:
        private = state.place(Path(name))
        try:
            with _named(_up(private, keep_s=KEEP_S, within_s=within_s, say=say, owner=os.getpid())) as demo:
                yield demo
        finally:
            down(private)


def _up(folder: Path, *, keep_s: float, within_s: float, say: Say | None, owner: int = 0) -> Demo:
    started = None
    if state.sweep(folder):
        server.program()  # fails here with its hint, not in a log
        started = _launch(folder, keep_s, within_s, owner)
    try:
        return _await(folder, started, within_s, say)
    except BaseException:  # Ctrl-C too: what nobody waits for any more must not go on
        if started is not None:
            _end_child(started)
        raise


def _launch(folder: Path, keep_s: float, within_s: float, owner: int) -> Child:
    if before := _started.get(folder):
        _end_child(before)  # it owns the folder no more, and is about to go
    options = [f"--keep-s={keep_s}", f"--within-s={within_s}", *([f"--owner={owner}"] if owner else [])]
    command = [sys.executable, "-m", "opslib.demo", str(folder), *options]
    child = processes.spawn(state.SUPERVISOR, command, folder=folder, env=processes.environment(), detached=True)
    _started[folder] = child
    return child


def _await(folder: Path, started: Child | None, within_s: float, say: Say | None) -> Demo:
    """Wait for the supervisor's word; `started` is ours, None means somebody else's."""
    told = 0
    # The supervisor has the same deadline, and knows better what it was waiting for: let it speak first.
    until = time.monotonic() + within_s + END_WITHIN_S
    while time.monotonic() < until:
        gone = (started is None or started.process.poll() is not None) and not state.is_owned(folder)
        demo = state.read(folder)
        told = _pass_on(folder, told, say)
        if demo is not None and demo.error:
            raise DemoFailed(demo.error, hint=_last_words(folder))
        if demo is not None and demo.ready:
            return demo
        if gone:
            raise DemoFailed("The demo ended before it was ready.", hint=_last_words(folder))
        time.sleep(_POLL_S)
    raise DemoFailed(f"The demo was not ready within {within_s:g} s.", hint=_last_words(folder))


def _pass_on(folder: Path, told: int, say: Say | None) -> int:
    """Say the lines of the supervisor's progress that were not told yet, and return how many there are by now."""
    if say is None:
        return 0
    with suppress(FileNotFoundError):
        lines = (folder / state.PROGRESS).read_text().splitlines(keepends=True)
        for line in lines[told:]:
            if line.endswith("\n"):
                say(line.rstrip("\n"))
                told += 1
    return told


def _last_words(folder: Path) -> str:
    logs = {name: processes.tail(folder / f"{name}.log") for name in (state.SUPERVISOR, state.NODES[-1])}
    said = "\n".join(f"{name}.log ends with:\n{redact.text(text)}" for name, text in logs.items() if text)
    return said or "`ops demo up` tries again."


def _end(folder: Path) -> None:
    """Tell the folder's owner to end, and see that it does."""
    until = time.monotonic() + END_WITHIN_S
    signum = signal.SIGTERM
    while state.is_owned(folder):
        if time.monotonic() > until + END_WITHIN_S:
            raise DemoFailed(
                f"The demo in {folder} does not end.", hint="Look for `opslib.demo` in the list of processes."
            )
        if time.monotonic() > until:
            signum = signal.SIGKILL
        demo = state.read(folder)  # there is none in the first moments of a supervisor
        if demo is not None:
            with suppress(ProcessLookupError):
                os.kill(demo.pid, signum)
        time.sleep(_POLL_S)


def _end_child(child: Child) -> None:
    child.process.terminate()
    try:
        child.process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.end()
    _reap()


def _reap() -> None:
    for folder in [folder for folder, child in _started.items() if child.has_gone()]:
        del _started[folder]


@contextmanager
def _named(demo: Demo) -> Iterator[Demo]:
    before = os.environ.get("OPS_DEMO_DIR")
    os.environ["OPS_DEMO_DIR"] = str(demo.folder)
    try:
        yield demo
    finally:
        os.environ.pop("OPS_DEMO_DIR")
        if before is not None:
            os.environ["OPS_DEMO_DIR"] = before
