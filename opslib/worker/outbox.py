"""
Dead letters of one node → their lists, by a thread that lives as long as there is something to write.

Whoever puts a letter in never waits, neither for a broker nor for a name server, and learns of no error. What cannot be
written is kept here within a bound, and sent when the broker is back. A batch whose answer was lost is sent again under
its number, so that each letter is in its list once.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from opslib.keys import DEAD, Keyspace, key_name, raw_name
from opslib.letters import MOST_BYTES

if TYPE_CHECKING:
    from redis import Redis

#: What waits for a broker that is away, at most; the oldest are lost, and counted.
MOST_WAITING, MOST_WAITING_BYTES = 1_000, 32 * 1024 * 1024
#: What one script is given.
_MOST_SENT, _MOST_SENT_BYTES = 100, 4 * 1024 * 1024
#: After an error nothing is tried for so long; twice as long after each further one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
#: While errors last, one line of the log in so many seconds.
_LOG_EVERY_S = 60.0
#: For how long a batch can be sent again without being written twice.
_NUMBER_LIFE_S = 24 * 60 * 60
_MOST_NAMED = 10

logger = logging.getLogger("opslib.worker")


class Entry(NamedTuple):
    """A letter's bytes, and what is said of it should they be lost."""

    queue: str
    raw: bytes
    task_id: str = ""


class Outbox:
    """
    What one node has to write into its dead-letter lists.

    Args:
        connect: Makes the client, in the thread; called again after it failed.

        most: Letters that a list holds.

    Attributes:
        written: Letters that were written into their list.

        lost: Letters that were lost before: too many waited, or there can be no such list.

        errors: Attempts that failed.
    """

    def __init__(self, connect: Callable[[], Redis], keys: Keyspace, *, most: int) -> None:
        self.written = self.lost = self.errors = 0
        self._connect, self._keys, self._most = connect, keys, most
        self._client: Redis | None = None
        # A cold shutdown calls back from within a signal's handler, which may have interrupted another call.
        self._guard = threading.RLock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_last_call = False
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        #: A batch of one queue; it stays as it is until its fate is known.
        self._sending: list[Entry] = []
        self._uncounted: Counter[str] = Counter()
        self._sender, self._number = uuid.uuid4().hex, 0
        self._failing_since: float | None = None
        self._logged_at = float("-inf")

    @property
    def size(self) -> int:
        """How many letters are not written yet."""
        return len(self._waiting) + len(self._sending)

    def put(self, entry: Entry) -> None:
        """Take a letter, and return at once."""
        with self._guard:
            if len(entry.raw) > MOST_BYTES:
                self._lose(entry)
                self._log(logging.ERROR, f"The dead letter of {entry.task_id} is lost: {len(entry.raw):,} bytes.")
                return
            self._waiting.append(entry)
            self._waiting_bytes += len(entry.raw)
            while len(self._waiting) > 1 and (
                len(self._waiting) > MOST_WAITING or self._waiting_bytes > MOST_WAITING_BYTES
            ):
                self._lose(self._taken(0))
            self._begin()

    def flush(self, within_s: float) -> int:
        """Write what is left, if that can be done so soon; return how many letters could not be written."""
        with self._guard:
            self._is_last_call = True
            self._woken.set()
            if self.size:
                self._begin()
            thread = self._thread
        if thread is not None:
            thread.join(within_s)
        with self._guard:
            self._is_last_call = False
            left = [*self._sending, *self._waiting]
        if left:
            named = ", ".join(entry.task_id for entry in left[:_MOST_NAMED])
            named += f" and {len(left) - _MOST_NAMED:,} more" if len(left) > _MOST_NAMED else ""
            logger.error("%d dead letters could not be written before this node ends: %s.", len(left), named)
        return len(left)

    def _taken(self, index: int) -> Entry:
        entry = self._waiting[index]
        del self._waiting[index]
        self._waiting_bytes -= len(entry.raw)
        return entry

    def _lose(self, entry: Entry) -> None:
        self.lost += 1
        self._uncounted[entry.queue] += 1

    def _begin(self) -> None:
        """Have a thread, with the guard held; none that has nothing to do, for the pool may fork at any time."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="opslib-dead-letters", daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        try:
            pause_s = FIRST_PAUSE_S
            while self._has_more():
                try:
                    self._send()
                except Exception as error:  # noqa: BLE001 - whatever becomes of a letter, the worker goes on
                    self._failed(error)
                    if self._is_last_call:
                        return
                    self._woken.wait(pause_s)
                    self._woken.clear()
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                else:
                    pause_s = FIRST_PAUSE_S
                    self._succeeded()
        finally:
            with self._guard:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _has_more(self) -> bool:
        """Make a batch if there is none; without any, the thread is over in the same step."""
        with self._guard:
            if self._sending:
                return True
            queue = self._waiting[0].queue if self._waiting else ""
            index = size = 0
            while index < len(self._waiting) and len(self._sending) < _MOST_SENT and size < _MOST_SENT_BYTES:
                if self._waiting[index].queue == queue:
                    self._sending.append(self._taken(index))
                    size += len(self._sending[-1].raw)
                else:
                    index += 1
            self._number += 1
            if not self._sending:
                self._thread = None
            return bool(self._sending)

    def _send(self) -> None:
        if self._client is None:
            self._client = self._connect()
        queue, entries = self._sending[0].queue, [entry.raw for entry in self._sending]
        before = self._uncounted[queue]
        keys = [
            self._keys.dead_sender(self._sender),
            self._keys.dead_dropped,
            self._keys.dead_list(queue),
            self._keys.bindings(f"{queue}{DEAD}"),
        ]
        numbers = (self._number, _NUMBER_LIFE_S, self._most)
        answer: Any = self._client.eval(
            keep_script(), len(keys), *map(raw_name, keys), *numbers, raw_name(queue), before, *entries
        )
        written, _, problem = answer or (len(entries), 0, b"")
        with self._guard:
            self._uncounted[queue] -= before
            self.lost += len(entries) - written
            self.written += written
            self._sending = []
        if problem:
            self._log(logging.ERROR, f"Dead letters of {queue} are lost, for {queue}{DEAD}: {key_name(problem)}.")

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        # A client that was never on the line is made anew: what it was made from may have changed.
        if not self.written:
            self._client = None
        said = f"{type(error).__name__}: {str(error)[:300]}".rstrip(" .:")
        lost = f", {self.lost:,} were lost" if self.lost else ""
        self._log(logging.WARNING, f"Dead letters cannot be written: {said}. {self.size:,} are kept until then{lost}.")

    def _succeeded(self) -> None:
        if self._failing_since is not None:
            passed_s = time.monotonic() - self._failing_since
            logger.warning("Dead letters are written again, after %.0f s.", passed_s)
            self._failing_since, self._logged_at = None, float("-inf")

    def _log(self, level: int, sentence: str) -> None:
        """Log a sentence, unless one was logged just before."""
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            logger.log(level, "%s", sentence)


@cache
def keep_script() -> str:
    """Return the text of the one script that is sent."""
    return (files("opslib.worker") / "keep.lua").read_text("utf-8")
