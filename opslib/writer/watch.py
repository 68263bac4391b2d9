"""
A broker that is being changed → how it bears it, seen over a second connection: go on, slower, wait, or stop.

A wait is between two batches; a stop leaves whole batches, and a run that can be resumed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from opslib.errors import Refused
from opslib.writer.lock import LIFE_MS

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.lock import Lock

_PING_EVERY_S = 0.1
_LOOK_EVERY_S = 2.0
_RENEW_EVERY_S = LIFE_MS / 1000 / 4
#: A script that takes longer than this makes the next one half as large; one that takes less than that, twice.
_SLOW_S, _QUICK_S = 0.005, 0.002
#: At this latency over a second, the next batch waits. This and the next are beyond what the way to the broker takes.
_PAUSE_S = 0.020
#: At this latency, three times running, the run ends: the broker is in trouble, with or without us.
_ABORT_S, _ABORT_TIMES = 0.250, 3
_LONGEST_PAUSE_S = 60.0
#: Connections in use, of those that there may be.
_CROWDED = 0.95
#: How far a replica may be behind.
_REPLICA_GAP_BYTES = 16 * 1024 * 1024
#: Messages in a batch, at first and at the most; a server that forks to save its data gets no more than the first.
_FIRST, _MOST = 20, 200


class Halted(Refused):
    """Raised between two batches when the broker suffers, or is no longer the one that was there."""

    hint = "What was done is whole. `ops resume` goes on with it, `ops undo` puts it back."


class Watch:
    """
    What a second connection sees while changes are made.

    Attributes:
        batch: How many messages the next batch may have, MOST of them where the broker is near and quick.

        paused_s: How long the run has waited for the broker so far.
    """

    MOST = _MOST

    def __init__(self, broker: Broker, lock: Lock) -> None:
        self._broker, self._lock = broker, lock
        self._client = broker.reads
        self._pings: deque[float] = deque(maxlen=10)
        self._stop = threading.Event()
        self._ending = ""
        self._waiting_for = self._unanswered = ""
        self._identity = _identity(broker.information)
        #: What the way to the broker takes, whatever the broker does: the quickest PING.
        self._way_s = float("inf")
        self._asked_at: float | None = None
        self._ceiling = _MOST
        self._thread = threading.Thread(target=self._run, name="opslib-watch", daemon=True)
        self.batch = _FIRST
        self.paused_s = 0.0

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and wait until the second connection is silent."""
        self._stop.set()
        self._thread.join(timeout=5)

    def before_batch(self) -> None:
        """
        Wait while the broker should be left alone.

        Raises:
            Halted: If it is another server by now, in trouble, or has to be waited for too long.
        """
        since = time.monotonic()
        while True:
            if self._ending:
                raise Halted(self._ending)
            waiting_for = self._unanswered or self._silent() or self._waiting_for or self._slow()
            if not waiting_for:
                return
            if time.monotonic() - since > _LONGEST_PAUSE_S:
                self._ending = f"The run waited {_LONGEST_PAUSE_S:.0f} s for the broker: {waiting_for}."
                continue
            time.sleep(_PING_EVERY_S)
            self.paused_s += _PING_EVERY_S

    def after_batch(self, took_s: float) -> None:
        """Learn from how long a script took: a batch grows where the broker is near, and shrinks where it is slow."""
        if took_s - self._way() > _SLOW_S:
            self.batch = max(1, self.batch // 2)
        elif took_s < _QUICK_S:
            self.batch = self.batch * 2
        self.batch = min(self.batch, self._ceiling)

    def _slow(self) -> str:
        """Return what is slow; only a full second of it counts, for a busy machine delays a thread now and then."""
        pings = sorted(self._pings)
        slow = len(pings) == self._pings.maxlen and pings[len(pings) // 2] - self._way() > _PAUSE_S
        return f"it answers a PING in {pings[len(pings) // 2] * 1000:.0f} ms" if slow else ""

    def _silent(self) -> str:
        """Return for how long a PING has had no answer, once that is too long."""
        asked_at = self._asked_at
        waited_s = 0.0 if asked_at is None else time.monotonic() - asked_at - self._way()
        return f"a PING has had no answer for {waited_s:.1f} s" if waited_s > _ABORT_S else ""

    def _way(self) -> float:
        return 0.0 if self._way_s == float("inf") else self._way_s

    def _run(self) -> None:
        looked = renewed = time.monotonic()
        while not self._stop.wait(_PING_EVERY_S):
            try:
                self._ping()
                if self._unanswered:  # whoever answers now need not be who answered before
                    self._look(cast("Mapping[str, Any]", self._client.info()))
                if time.monotonic() - renewed > _RENEW_EVERY_S:
                    renewed = time.monotonic()
                    self._renew()
                if time.monotonic() - looked > _LOOK_EVERY_S:
                    looked = time.monotonic()
                    self._look(cast("Mapping[str, Any]", self._client.info()))
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody answers
                self._unanswered = f"the second connection failed: {type(error).__name__}"
            else:
                self._unanswered = ""

    def _ping(self) -> None:
        began = self._asked_at = time.monotonic()
        try:
            self._client.ping()
        finally:
            self._asked_at = None
        took_s = time.monotonic() - began
        self._way_s = min(self._way_s, took_s)
        self._pings.append(took_s)
        last = list(self._pings)[-_ABORT_TIMES:]
        if len(last) == _ABORT_TIMES and min(last) - self._way() > _ABORT_S:
            self._ending = f"The broker answers a PING in {last[-1] * 1000:.0f} ms; it was left alone."

    def _renew(self) -> None:
        if not self._lock.renew():
            self._ending = "The lock was lost: another run may be changing the broker by now."

    def _look(self, info: Mapping[str, Any]) -> None:
        if _identity(info) != self._identity or info.get("role") != "master":
            self._ending = "The server was restarted or failed over while it was being changed."
        limit, clients = info.get("maxclients", 0), info.get("connected_clients", 0)
        if limit and clients > _CROWDED * limit:
            self._ending = f"The server has {clients} of {limit} connections in use."
        saving = info.get("rdb_bgsave_in_progress") or info.get("aof_rewrite_in_progress")
        self._ceiling = _FIRST if saving else _MOST
        gap = _replica_gap(info)
        self._waiting_for = f"a replica is {gap:,} bytes behind" if gap > _REPLICA_GAP_BYTES else ""


def _identity(info: Mapping[str, Any]) -> tuple[object, object]:
    return info.get("run_id"), info.get("master_replid")


def _replica_gap(info: Mapping[str, Any]) -> int:
    """Return how many bytes the slowest connected replica is behind."""
    replicas = [each for name, each in info.items() if name.startswith("slave") and isinstance(each, dict)]
    offsets = [int(each.get("offset", 0)) for each in replicas if each.get("state") == "online"]
    return int(info.get("master_repl_offset", 0)) - min(offsets) if offsets else 0


@contextmanager
def watching(broker: Broker, lock: Lock) -> Iterator[Watch]:
    """Watch a broker for the time of a `with` block."""
    seen = Watch(broker, lock)
    seen.start()
    try:
        yield seen
    finally:
        seen.stop()
