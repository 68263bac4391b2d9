"""Messages to move → batches through the one script that moves them, journalled so that asking again does nothing."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from opslib import refusals
from opslib.errors import OpsError, Refused
from opslib.interrupts import deferred
from opslib.writer import audit, scripts
from opslib.writer.lock import LIFE_MS

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.lock import Lock

BATCH_BYTES = 256 * 1024
BATCH_MOVES = 50
_AUDIT_ENTRIES = 100_000
JOURNAL_LIFE_S = 14 * 86_400
#: Before a batch without an answer is asked for again; its journal says whether it ran.
_ASK_AGAIN_S = 0.3

MOVED, GONE, CHANGED = "A", "G", "C"
#: For what was not tried any more, after a batch before it failed.
UNDONE = "U"


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """
    One message, from where it was seen to where it should be.

    Attributes:
        subject: What it is about, for the audit.

        source: List or hash that holds it.

        index: Sorted set beside a hash; empty for a list.

        delivery_tag: Field of the hash; empty for a list.

        score: Score that was seen; None to compare none.

        seen: Bytes as they were seen; it moves only if they still are so.

        destination: List that it goes to.

        served: "next" or "last".

        written: Bytes to write; empty for the bytes as seen.

        note: What quarantine remembers of it, under `note_field`; empty for nothing.
    """

    subject: str
    source: str
    seen: bytes
    destination: str
    index: str = ""
    delivery_tag: str = ""
    score: float | None = None
    served: str = "last"
    written: bytes = b""
    note_field: str = ""
    note: str = ""


class Fenced(Refused):
    """Raised when the lock was lost: another run may be changing the broker by now."""


class Mover:
    """
    Runs batches under one lock and one journal.

    Args:
        run_id: Names the journal; a batch that was already done under it is not done again. A batch's number starts
            with the lock's, so that a second plan of the same run is not taken for the first one asked again.

    Attributes:
        halted: Why the last moves that are UNDONE were not tried.
    """

    halted: str = ""

    def __init__(self, broker: Broker, lock: Lock, *, run_id: str, plan_digest: str) -> None:
        self._broker, self._lock, self._run_id, self._digest = broker, lock, run_id, plan_digest
        self._numbers = itertools.count(1)

    def move(self, moves: Sequence[Move]) -> list[str]:
        """
        Move every message and return a letter for each: MOVED, GONE or CHANGED.

        Once a batch was done, a later one that fails ends it without an error, so that the account stays whole: what
        was not done is UNDONE, and `halted` says why.

        Raises:
            Fenced: If the lock was lost; nothing of the batch was written.

            Refused: If a key has another type than it should, or a right is missing; nothing of the batch was written.

            redis.exceptions.RedisError: If the server does not say what became of a batch, asked twice.
        """
        from redis.exceptions import RedisError

        letters: list[str] = []
        for batch in _batches(moves):
            try:
                letters += self._batch(batch)
            except (OpsError, RedisError) as error:
                if not letters:
                    raise
                self.halted = refusals.of(error, self._broker.target.shown_broker).message
                return letters + [UNDONE] * (len(moves) - len(letters))
        return letters

    def close(self) -> None:
        """Let the journal expire, now that nobody will ask for its batches again; what is quarantined never does."""
        from redis.exceptions import RedisError

        with suppress(RedisError):
            self._broker.writes.expire(self._broker.keys.journal(self._run_id), JOURNAL_LIFE_S)

    def _batch(self, batch: Sequence[Move]) -> str:
        number = f"{self._lock.epoch}.{next(self._numbers)}"
        line = {"batch": number, "plan": self._digest, "moves": [[m.subject, m.source, m.destination] for m in batch]}
        with deferred():  # Ctrl-C waits for the batch and its line in the audit
            audit.write("intent", **line)
            said, letters = self._call(number, batch, json.dumps({"run": self._run_id, "plan": self._digest}))
            audit.note("result", batch=number, said=said, letters=letters)
        if said in {"APPLIED", "REPLAY"}:
            return letters
        if said == "FENCED":
            raise Fenced("The lock was lost while this run was paused; nothing more was changed.")
        if said == "PARTIAL":
            raise Refused(f"Batch {number} was begun and not ended; a person has to compare journal and quarantine.")
        raise Refused(f"The server refused the batch: {said} {letters}; nothing of it was changed.")

    def _call(self, number: str, batch: Sequence[Move], line: str) -> tuple[str, str]:
        """Send a batch; one without an answer is asked for again under its number, which the journal makes safe."""
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import TimeoutError as Late

        keys, values = self._arguments(number, batch, line)
        script = scripts.text("move")
        try:
            answer = self._broker.writes.eval(script, len(keys), *keys, *values)
        except (Lost, Late):
            time.sleep(_ASK_AGAIN_S)
            answer = self._broker.writes.eval(script, len(keys), *keys, *values)
        said, *rest = (part.decode() for part in cast("list[bytes]", answer))
        return said, rest[0] if rest else ""

    def _arguments(self, number: str, batch: Sequence[Move], line: str) -> tuple[list[str], list[bytes | str | int]]:
        space = self._broker.keys
        keys = [space.lock, space.journal(self._run_id), space.audit, space.quarantine_notes(self._run_id)]
        values: list[bytes | str | int] = [self._lock.token, number, LIFE_MS, line, _AUDIT_ENTRIES]

        def key(name: str) -> int:
            if not name:
                return 0
            if name not in keys:
                keys.append(name)
            return keys.index(name) + 1

        for move in batch:
            score = "" if move.score is None else repr(move.score)
            values += [key(move.source), key(move.index), _bytes(move.delivery_tag), score, move.seen]
            values += [key(move.destination), move.served, move.written, _bytes(move.note_field), move.note]
        return [_bytes(name) for name in keys], values  # type: ignore[misc]  # redis-py takes both


def _batches(moves: Sequence[Move]) -> Iterator[list[Move]]:
    batch: list[Move] = []
    weight = 0
    for move in moves:
        size = len(move.seen) + len(move.written)
        if batch and (weight + size > BATCH_BYTES or len(batch) == BATCH_MOVES):
            yield batch
            batch, weight = [], 0
        batch.append(move)
        weight += size
    if batch:
        yield batch


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
