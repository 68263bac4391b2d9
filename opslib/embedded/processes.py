"""Commands → child processes that cannot outlive the one that started them, and their end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_END_WITHIN_S = 2.0


@dataclass(kw_only=True)
class Child:
    """
    A process in a group of its own, with whatever it forks.

    Attributes:
        name: What it is called in logs and messages.

        gone: Whether its last member was seen to be gone; from then on its pid may belong to a stranger.
    """

    name: str
    process: subprocess.Popen[bytes]
    gone: bool = False

    @property
    def pid(self) -> int:
        """Pid of the process itself, which is also the id of its group."""
        return self.process.pid

    def kill(self) -> None:
        """Send SIGKILL to the process itself, not to what it forked."""
        self.process.kill()

    def has_gone(self) -> bool:
        """Say whether the process and everything that it forked have gone."""
        if self.gone or self.process.poll() is None:
            return self.gone
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            self.gone = True
        except PermissionError:
            pass  # macOS says so about a group of zombies; they are about to go
        return self.gone

    def end(self) -> None:
        """Kill the whole group and wait until it has gone."""
        deadline = time.monotonic() + _END_WITHIN_S
        while not self.has_gone() and time.monotonic() < deadline:
            # Asked again each round: a pool may have forked in between.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.01)


def spawn(
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    env: dict[str, str],
    stdin: int = subprocess.DEVNULL,
    detached: bool = False,
) -> Child:
    """
    Start a command in `folder`, its output appended to `<name>.log` there.

    Args:
        detached: Whether it stays when this process ends, and leaves the terminal. Otherwise Linux kills it when the
            *thread* that calls this ends, so call it from one that lasts; elsewhere nobody does.
    """
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=env,
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Either way it leads a group of its own.
            start_new_session=detached,
            process_group=None if detached else 0,
            # It calls nothing but prctl and getppid, so a lock that another thread held is no matter.
            preexec_fn=None if detached else _bound_to(os.getpid(), signal.SIGKILL),  # noqa: PLW1509
        )
    finally:
        os.close(log)
    return Child(name=name, process=process)


def bind_to_parent(parent: int) -> None:
    """Have this process sent SIGTERM when its parent ends; Linux only."""
    if arm := _bound_to(parent, signal.SIGTERM):
        arm()


def environment(**extra: str) -> dict[str, str]:
    """
    Return this process's environment as the processes that this tool starts may have it.

    Without any CELERY_ variable: CELERY_BROKER_URL wins over an app's own configuration, and would send the demo's
    faults to the broker that it names. Without PYTHONDONTWRITEBYTECODE: every worker would compile Celery anew.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CELERY_") and name not in {"PYTHONDONTWRITEBYTECODE", "REMAP_SIGTERM"}
    }
    source = str(Path(__file__).resolve().parents[2])
    if source not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        # Children run in a folder of their own, where a checkout is not found by itself.
        kept["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [kept.get("PYTHONPATH")])])
    return kept | extra


def adopt_orphans() -> None:
    """Become the parent of what a killed child leaves behind, so that it can be reaped; Linux only."""
    if prctl := _prctl():
        prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tail(path: Path, lines: int = 5) -> str:
    """Return the last lines of a log, or nothing if there is none."""
    with suppress(OSError):
        return "\n".join(path.read_text(errors="replace").strip().splitlines()[-lines:])
    return ""


@cache
def _prctl() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl


def _bound_to(parent: int, signum: signal.Signals) -> Callable[[], None] | None:
    prctl = _prctl()
    if prctl is None:
        return None

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)  # it ended before the request was made

    return arm
