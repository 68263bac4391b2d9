"""
A change and its receipt → one script under the lock, journalled: asking again does nothing, and the way back is kept.

Every change of a broker goes through here, and here alone (docs/safety.md).
"""

from __future__ import annotations

import itertools
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from opslib.errors import Refused
from opslib.interrupts import deferred
from opslib.keys import raw_name
from opslib.writer import audit, points, scripts
from opslib.writer import journal as journals
from opslib.writer.lock import AUDIT_ENTRIES, LIFE_MS
from opslib.writer.watch import Halted, Watch

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.lock import Lock

JOURNAL_LIFE_S = 14 * 86_400
#: Before a batch without an answer is asked for again; its journal says whether it ran.
_ASK_AGAIN_S = 0.3


class Fenced(Refused):
    """Raised when the lock was lost: another run may be changing the broker by now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """
    What a batch did.

    Attributes:
        number: Its place in the journal, "epoch.n".

        letters: One for each item; what they mean stands at the head of the script.

        seen: What the script saw of each item, as text.

        ahead: What the server answered to what was asked behind the script; None if nothing was, or it is not known.
    """

    number: str
    letters: str
    seen: tuple[str, ...]
    ahead: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """
    A script that is on record as about to be run.

    Attributes:
        number: Its place in the journal, "epoch.n".

        asked: The number of its keys, its keys, and its values.
    """

    number: str
    script: str
    asked: tuple[Any, ...] = field(repr=False)


class Keys:
    """The keys of one call, each once, by the number that a script knows it by; 0 is no key."""

    def __init__(self, own: Sequence[str]) -> None:
        self.names = list(own)

    def number(self, name: str) -> int:
        """Return a key's number, from 1."""
        if not name:
            return 0
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name) + 1


class Primitive:
    """
    Runs scripts under one lock and one journal.

    Args:
        run_id: Names the journal; a batch that was done under it is not done again. A batch's number starts with the
            lock's, so that a resumed or an undone run is not taken for the first one asked again.

        told: What the journal says about the run, once: plan, target, runbook; and `server`, the run_id of the one
            server that takes its batches.

        goes_on: Whether an earlier run may have done some of it, as the journal tells.

    Attributes:
        over: Why nothing more is sent; empty while the run may go on.
    """

    over: str = ""
    _ahead: Any = None
    _unsent: Batch | None = None

    def __init__(
        self,
        broker: Broker,
        lock: Lock,
        *,
        run_id: str,
        told: Mapping[str, object],
        watch: Watch | None = None,
        goes_on: bool = False,
    ) -> None:
        self.broker, self.run_id, self.watch, self.goes_on = broker, run_id, watch, goes_on
        self._lock = lock
        self._plan = told.get("plan", "")
        self._line = json.dumps({"run": run_id, **told}, sort_keys=True)
        self._numbers = itertools.count(1)
        self._answered = True

    @property
    def plan(self) -> str:
        """Digest of the plan that it carries out."""
        return str(self._plan)

    @property
    def epoch(self) -> int:
        """What the numbers of its batches begin with; those of an earlier plan of the same run have another."""
        return self._lock.epoch

    def keys(self, *more: str) -> Keys:
        """Return the keys that every script has, and these after them."""
        space = self.broker.keys
        return Keys([space.lock, space.journal(self.run_id), space.audit, *more])

    def call(
        self,
        script: str,
        keys: Keys,
        values: Sequence[bytes | str | float],
        *,
        receipt: Mapping[str, Any],
        about: Mapping[str, object],
    ) -> Answer:
        """
        Run a script as the next batch and return what it did.

        Args:
            receipt: What its undoing needs to know; kept in the journal.

            about: What the audit says of it.

        Raises:
            Halted: If the broker should be left alone, is another server by now, or did not answer an earlier batch.

            Fenced: If the lock was lost; nothing of the batch was written.

            Refused: If a key has another type than it should, or a right is missing; nothing of it was written.

            redis.exceptions.RedisError: If the server does not say what became of it, asked twice.
        """
        self._may_go_on()
        with deferred():  # Ctrl-C waits for the batch and its line in the audit
            return self._sent(self.intend(script, keys, values, receipt=receipt, about=about))

    def intend(
        self,
        script: str,
        keys: Keys,
        values: Sequence[bytes | str | float],
        *,
        receipt: Mapping[str, Any],
        about: Mapping[str, object],
    ) -> Batch:
        """Return the next batch, written into the audit; what `run` is not called for has to be dropped."""
        number = f"{self._lock.epoch}.{next(self._numbers)}"
        kept = zlib.compress(json.dumps(receipt, separators=(",", ":")).encode(), 1)
        points.passed("before-intent")
        audit.write("intent", batch=number, plan=self._plan, script=script, **about)
        points.passed("after-intent")
        values = [self._lock.token, number, LIFE_MS, self._line, AUDIT_ENTRIES, kept, *values]
        names = [raw_name(name) for name in keys.names]
        asked = (len(names), *names, *(_encoded(value) for value in values))
        self._unsent = Batch(number=number, script=script, asked=asked)
        return self._unsent

    def run(self, batch: Batch, *, meanwhile: Callable[[], object], ahead: Sequence[object] = ()) -> Answer:
        """
        Send a batch that was intended and return what it did; raise as `call` does.

        Args:
            meanwhile: Called while the server works, such as what prepares the next batch.

            ahead: A command that only reads, which the server is asked right behind the script.
        """
        self._may_go_on()
        with deferred():
            return self._sent(batch, meanwhile, ahead)

    def drop(self) -> None:
        """Have the audit know of a batch that was intended that it is not sent; without one, do nothing."""
        if self._unsent is not None:
            audit.note("result", batch=self._unsent.number, said="UNSENT", letters="")
            self._unsent = None

    def _may_go_on(self) -> None:
        if self.over:
            raise Halted(self.over)
        if self.watch:
            try:
                self.watch.before_batch()
            except Halted as halted:
                self.over = halted.message
                raise

    def _sent(
        self, batch: Batch, meanwhile: Callable[[], object] | None = None, ahead: Sequence[object] = ()
    ) -> Answer:
        self._ahead = self._unsent = None
        said, letters, seen = self._eval(batch, meanwhile, ahead)
        points.passed("after-script")
        audit.note("result", batch=batch.number, said=said, letters=letters)
        points.passed("after-result")
        if said not in {"APPLIED", "REPLAY"}:
            raise self._refused(batch.number, said, letters)
        return Answer(
            number=batch.number, letters=letters, seen=tuple(seen.split(",")) if seen else (), ahead=self._ahead
        )

    def _refused(self, number: str, said: str, letters: str) -> Refused:
        """Return what it means that the script wrote nothing; after some answers, nothing more is sent."""
        if said == "FENCED":
            self.over = "The lock was lost while this run was paused; nothing more was changed."
            return Fenced(self.over)
        if said == "ELSEWHERE":
            self.over = "The server was restarted or failed over while it was being changed; nothing more was changed."
            return Halted(self.over)
        if said == "PARTIAL":
            return Refused(f"Batch {number} was begun and not ended; a person has to compare journal and quarantine.")
        return Refused(f"The server refused the batch: {said} {letters}; nothing of it was changed.")

    def close(self, run_id: str = "") -> None:
        """
        Let a journal expire some day, once its run keeps nothing: what is quarantined never does, nor the way back.

        Args:
            run_id: Of another run, whose quarantine this one has dropped.
        """
        from redis.exceptions import RedisError

        run_id = run_id or self.run_id
        if not self._answered:
            return
        with suppress(RedisError, Refused):
            kept = [_encoded(key) for key in journals.read(self.broker, run_id).keeps]
            if not kept or not self.broker.reads.exists(*kept):
                self.broker.writes.expire(self.broker.keys.journal(run_id), JOURNAL_LIFE_S)

    def _eval(
        self, batch: Batch, meanwhile: Callable[[], object] | None, ahead: Sequence[object]
    ) -> tuple[str, str, str]:
        """Send a batch; one without an answer is asked for again under its number, which the journal makes safe."""
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import TimeoutError as Late

        text = scripts.text(batch.script)
        took_s = 0.0
        try:
            if meanwhile is None:
                began = time.monotonic()
                answer = self.broker.writes.eval(text, *batch.asked)
                took_s = time.monotonic() - began
            else:
                answer, took_s = self._asked(("EVAL", text, *batch.asked), meanwhile, ahead)
        except (Lost, Late):
            time.sleep(_ASK_AGAIN_S)
            self.over = f"Batch {batch.number} had no answer, asked twice; nothing more was sent."
            self._answered = False
            answer = self.broker.writes.eval(text, *batch.asked)
            self.over, self._answered = "", True
        if self.watch:
            self.watch.after_batch(took_s)
        parts = [part.decode("utf-8", "backslashreplace") for part in cast("list[bytes]", answer)]
        said, letters, seen = [*parts, "", ""][:3]
        return said, letters, seen

    def _asked(
        self, command: Sequence[object], meanwhile: Callable[[], object], ahead: Sequence[object]
    ) -> tuple[object, float]:
        """Send a command, do something else until its answer is there; return it, and how long it was waited for."""
        client = self.broker.writes
        pool = client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*command)
            if ahead:
                connection.send_command(*ahead)
            meanwhile()
            began = time.monotonic()
            answer = client.parse_response(connection, "EVAL")
            took_s = time.monotonic() - began
            if ahead:
                self._ahead = client.parse_response(connection, str(ahead[0]))
        except BaseException:
            connection.disconnect()  # an answer that nobody has read would be taken for the next one
            raise
        else:
            return answer, took_s
        finally:
            pool.release(connection)


def _encoded(value: bytes | str | float) -> bytes:
    return value if isinstance(value, bytes) else raw_name(str(value))
