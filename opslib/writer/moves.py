"""Messages to move → batches through the one script that moves them, each with a receipt that leads back."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opslib import refusals
from opslib.errors import OpsError
from opslib.writer.primitive import Primitive

BATCH_BYTES = 256 * 1024
BATCH_MOVES = 200
#: Messages of a list that step aside for others: so many take the server two or three milliseconds.
BATCH_STEPS = 1_000

MOVED, GONE, CHANGED, TAKEN = "A", "G", "C", "X"
#: Moved as well, but to the end that is served next: the list has moved on, and its old place with it.
MOVED_NEXT = "N"
#: For what was not tried any more, after a batch before it failed.
UNDONE = "U"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """
    Where a message is, or should be.

    Attributes:
        key: List or hash.

        index: Sorted set beside a hash; empty for a list.

        tag: Field of the hash; empty for a list.

        score: Score in the sorted set, as the server spells it where it came from there; None to compare none, or to
            write none.

        served: "next", "last", or "p/length": behind p others in a list that still has this length; without a length,
            whatever it has.
    """

    key: str
    index: str = ""
    tag: str = ""
    score: float | str | None = None
    served: str = "last"


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """
    One message, from where it was seen to where it should be.

    Attributes:
        action: Number of the action in its plan.

        subject: What it is about, for the audit; `task` is its name where it has one.

        seen: Bytes as they were seen; it moves only if they still are so.

        written: Bytes to write; empty for the bytes as seen.

        note: What quarantine remembers of it, under `note_field`; empty for nothing.

        undoes: Batch and item that this puts back.
    """

    subject: str
    source: Place
    destination: Place
    seen: bytes
    action: int = 0
    task: str = ""
    written: bytes = b""
    note_field: str = ""
    note: str = ""
    undoes: tuple[str, int] | None = None

    @property
    def arrives(self) -> bytes:
        """The bytes that its destination holds afterwards."""
        return self.written or self.seen


class Mover:
    """
    Moves messages batch by batch.

    Attributes:
        halted: Why the last moves that are UNDONE were not tried.
    """

    halted: str = ""

    def __init__(self, primitive: Primitive) -> None:
        self.primitive = primitive

    def move(self, moves: Sequence[Move]) -> list[str]:
        """
        Move every message and return a letter for each.

        Once a batch was done, a later one that fails ends it without an error, so that the account stays whole: what
        was not done is UNDONE, and `halted` says why.

        Raises:
            Refused: If the first batch could not be done; nothing was changed.

            redis.exceptions.RedisError: If the server does not say what became of the first batch, asked twice.
        """
        from redis.exceptions import RedisError

        letters: list[str] = []
        for batch in self._batches(moves):
            try:
                letters += self._batch(batch)
            except (OpsError, RedisError) as error:
                if not letters:
                    raise
                self.halted = refusals.of(error, self.primitive.broker.target.shown_broker).message
                return letters + [UNDONE] * (len(moves) - len(letters))
        return letters

    def _batch(self, batch: Sequence[Move]) -> str:
        keys = self.primitive.keys(self.primitive.broker.keys.quarantine_notes(self.primitive.run_id))
        values: list[bytes | str | float] = []
        for move in batch:
            for place, last in ((move.source, move.seen), (move.destination, move.destination.served)):
                values += [keys.number(place.key), keys.number(place.index), place.tag, _score(place.score), last]
            values += [move.written, move.note_field, move.note]
        answer = self.primitive.call(
            "move",
            keys,
            values,
            receipt={"op": "move", "items": [receipt(move) for move in batch]},
            about={"moves": [[m.subject, m.source.key, m.destination.key] for m in batch]},
        )
        return answer.letters

    def _batches(self, moves: Sequence[Move]) -> Iterator[list[Move]]:
        """Cut by bytes, by how many messages have to step aside, and by how many the broker bears."""
        batch: list[Move] = []
        weight = aside = 0
        for move in moves:
            size, steps = len(move.seen) + len(move.written), _steps(move.destination.served)
            watch = self.primitive.watch
            most = min(BATCH_MOVES, watch.batch) if watch else BATCH_MOVES
            if batch and (weight + size > BATCH_BYTES or aside + steps > BATCH_STEPS or len(batch) >= most):
                yield batch
                batch, weight, aside = [], 0, 0
            batch.append(move)
            weight, aside = weight + size, aside + steps
        if batch:
            yield batch


def _steps(served: str) -> int:
    """Return how many messages step aside for one that goes to this place."""
    before, _, length = served.partition("/")
    if not before.isdigit():
        return 0
    return min(int(before), abs(int(length) - int(before))) if length else min(int(before), BATCH_STEPS)


def receipt(move: Move) -> dict[str, Any]:
    """Return what putting a message back needs: both places, and its old bytes where they differ from the new."""
    kept: dict[str, Any] = {
        "a": move.action,
        "s": move.subject,
        "t": move.task,
        "from": [move.source.key, move.source.index, move.source.tag, move.source.score],
        "to": [move.destination.key, move.destination.index, move.destination.tag, move.destination.score],
        "sha": hashlib.sha256(move.arrives).hexdigest(),
    }
    if move.written and move.written != move.seen:
        kept["old"] = _squeezed(move.seen, move.written)
        kept |= {} if move.source.index else {"was": hashlib.sha256(move.seen).hexdigest()}
    if move.note_field:
        kept["note"] = [move.note_field, move.note]
    if move.undoes:
        kept["undoes"] = list(move.undoes)
    return kept


def old_bytes(item: dict[str, Any], arrived: bytes) -> bytes:
    """Return the bytes that a message had before it was moved, from its receipt and the bytes that it has now."""
    if "old" not in item:
        return arrived
    return zlib.decompressobj(zdict=arrived).decompress(base64.b64decode(item["old"]))


def _squeezed(old: bytes, new: bytes) -> str:
    """Return the old bytes as little more than what differs from the new ones."""
    packer = zlib.compressobj(zdict=new)
    return base64.b64encode(packer.compress(old) + packer.flush()).decode()


def _score(score: float | str | None) -> str:
    return "" if score is None else str(score)
