"""A folder → the demo that runs in it until it is told to end: owns the server, the workers and the traffic."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from opslib import redact
from opslib.demo import clock, failures, faults, ledger, leftovers, open_rows, server, state
from opslib.demo.faults import CLERK, CROWD, DOOMED, IMPORTS, Stage
from opslib.demo.state import DemoFailed
from opslib.embedded import processes
from opslib.embedded.processes import Child
from opslib.embedded.server import Server
from opslib.errors import Exit, OpsError

POLL_S = 0.05
LOOK_S = 0.2
#: Longest wait for those who only look whether the folder has an owner.
_OWN_WITHIN_S = 2.0
#: The shop's server loses nothing when it is started anew, so that what is not there was not stored.
_KEEPS_CHANGES = (
    "appendonly yes",
    f"appenddirname {state.CHANGES}",
    f"appendfilename {state.CHANGES_FILE}",
    "auto-aof-rewrite-min-size 8mb",
)


class _Told(Exception):
    """Raised where the supervisor learns, in the middle of its work, that it was told to end."""


class Supervisor:
    """
    One demo, from its first process to its last file.

    Args:
        keep_s: How long it stays up once it is ready.

        within_s: How long it may take to be ready.

    Attributes:
        told: Whether it was told to end.
    """

    def __init__(self, folder: Path, *, keep_s: float, within_s: float) -> None:
        self.told = False
        self._demo = state.Demo(folder=folder, pid=os.getpid(), started_at=datetime.now(UTC))
        self._workers: dict[str, Child] = {}
        self._keep_s = keep_s
        self._deadline = time.monotonic() + within_s

    def run(self) -> Exit:
        """Make the demo, keep it, and remove every trace of it; after a failure its state and logs stay."""
        folder = self._demo.folder
        state.clean(folder)
        state.write(self._demo)
        try:
            with ExitStack() as running:  # ends what it started, the last one first
                self._make(running)
        except _Told:
            pass
        except OpsError as error:
            self._update(error=redact.text(error.message), ready=False)
            return error.exit_code
        except Exception as error:
            self._update(error=redact.text(repr(error)), ready=False)
            raise
        state.clean(folder)
        return Exit.DONE

    def _make(self, running: ExitStack) -> None:
        self._say("an embedded server and four Celery workers start")
        embedded = running.enter_context(server.start(self._demo.folder, extra=_KEEPS_CHANGES))
        self._update(url=embedded.url, processes={"server": embedded.child.pid})
        running.callback(self._end_workers)
        os.environ[ledger.VARIABLE] = str(self._demo.folder / ledger.FILE)
        ledger.make()
        self._start_workers(embedded.url)
        self._break(embedded, running)
        self._update(ready=True)
        self._keep(embedded)

    def _start_workers(self, url: str) -> None:
        self._start(DOOMED, url, "-c", "4", "-Q", "reports", DEMO_REPORT_S="600")
        self._start(IMPORTS, url, "-c", "1", "-Q", "imports")
        self._start(CROWD, url, "-c", "4", "-Q", f"celery,emails,{failures.QUEUE}", "-E")
        self._start(CLERK, url, "-c", "1", "-Q", "invoices", "-E", DEMO_KEEPS_NO_LETTERS="1")
        self._update(processes={**self._demo.processes, **{node: worker.pid for node, worker in self._workers.items()}})

    def _start(self, node: str, url: str, *options: str, **env: str) -> None:
        # Without mingling: a worker asks all others for their revokes, and waits a whole second for the answers.
        command = f"-m celery -A opslib.demo.app worker -n {node} -P prefork -l WARNING --without-mingle".split()
        self._workers[node] = processes.spawn(
            node.partition("@")[0],
            [sys.executable, *command, *options],
            folder=self._demo.folder,
            env=processes.environment(DEMO_BROKER_URL=url, DEMO_CLIENT_NAME=node, **env),
        )

    def _break(self, embedded: Server, running: ExitStack) -> None:
        os.environ["DEMO_BROKER_URL"] = embedded.url
        # Only now: it takes a while, and the workers do the same meanwhile.
        from opslib.demo.app import app
        from opslib.demo.traffic import Traffic

        # A client that emulates acknowledgements runs the visibility sweep, which gives back other clients' messages.
        app.conf.broker_transport_options = {"ack_emulation": False, "client_name": "supervisor@shop"}
        traffic = Traffic(app)
        running.callback(traffic.stop)
        client = running.enter_context(embedded.client())
        stage = Stage(app=app, redis=client, workers=self._workers, until=self._until, say=self._say)
        self._heed("Celery is there")
        first = traffic.send_first()
        traffic.start()
        failing = failures.send(stage)  # first: some of them take their time to die
        rows = open_rows.begin(stage)
        made = (*faults.make(stage), *failures.buried(stage, failing), *clock.stop(stage.redis))
        made += leftovers.leave(stage.redis, embedded.url)
        made += open_rows.leave(stage, rows, failing, made)
        self._until(
            "the first receipts are out",
            # One may have been in the process that a poster has killed.
            lambda: sum(faults.state(client, order) == "SUCCESS" for order in first) > len(first) // 2,
        )
        self._say(f"around all that {CROWD} does its healthy work, about six tasks a second")
        self._update(faults=made)

    def _until(self, what: str, condition: faults.Condition) -> None:
        crowd = self._workers[CROWD]
        while not condition():
            if crowd.has_gone() and not self.told:
                raise DemoFailed(f"{CROWD} ended by itself, with code {crowd.process.returncode}.")
            self._heed(what)
            time.sleep(POLL_S)

    def _heed(self, what: str) -> None:
        """Go no further if it was told to end, or if there is no time left."""
        if self.told:
            raise _Told
        if time.monotonic() > self._deadline:
            raise DemoFailed(f"The demo was not ready in time: it was waiting until {what}.")

    def _keep(self, embedded: Server) -> None:
        until = time.monotonic() + self._keep_s
        while not self.told and time.monotonic() < until and not embedded.has_ended():
            for worker in self._workers.values():
                worker.has_gone()  # reaps what was killed meanwhile
            time.sleep(LOOK_S)

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            worker.end()

    def _say(self, line: str) -> None:
        with (self._demo.folder / state.PROGRESS).open("a") as log:
            log.write(f"{line}\n")

    def _update(self, **changes: object) -> None:
        self._demo = replace(self._demo, **changes)  # type: ignore[arg-type]
        state.write(self._demo)


def main(arguments: list[str]) -> int:
    """Run a demo until a signal, its time or its server ends it; does nothing if the folder has one."""
    given = _parser().parse_args(arguments)
    os.umask(0o077)
    if given.owner:
        processes.bind_to_parent(given.owner)
    processes.adopt_orphans()
    supervisor = Supervisor(given.folder, keep_s=given.keep_s, within_s=given.within_s)

    def tell(*_: object) -> None:
        supervisor.told = True

    signal.signal(signal.SIGTERM, tell)
    signal.signal(signal.SIGINT, tell)
    until = time.monotonic() + _OWN_WITHIN_S
    while not state.own(given.folder):
        if supervisor.told or time.monotonic() > until:
            return Exit.DONE
        time.sleep(POLL_S)
    code = supervisor.run()
    if given.owner:  # who would have removed the folder may have died
        with suppress(OSError):
            given.folder.rmdir()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m opslib.demo")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep-s", type=float, required=True)
    parser.add_argument("--within-s", type=float, required=True)
    parser.add_argument("--owner", type=int, help="pid of the parent, if the demo is private to it")
    return parser
