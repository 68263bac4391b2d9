"""A filter and the lists of a queue → the messages that it means, elsewhere: kept, in another queue, or served next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from opslib.collectors import queues
from opslib.envelope import Head, digest, head
from opslib.keys import raw_name
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.rewrite import reprioritised, rerouted
from opslib.writer import journal as journals
from opslib.writer import lists
from opslib.writer.moves import BATCH_MOVES, MOVED, MOVED_NEXT, UNDONE, Move, Mover, Place

if TYPE_CHECKING:
    from opslib.broker import Broker


@dataclass(kw_only=True)
class _Account:
    """
    What became of the messages of one action.

    Attributes:
        unwritable: Sha256 of those that stay where they are, for they cannot be written as they would have to be.
    """

    moved: int = 0
    gone: int = 0
    unwritable: set[str] = field(default_factory=set)
    halted: str = ""

    @property
    def met(self) -> int:
        """How many were dealt with, whatever became of them."""
        return self.moved + self.gone + len(self.unwritable)


def carry_out(mover: Mover, action: Action) -> Outcome:
    """
    Take what an action means of whole lists to where it says, each message in the order in which it would be served.

    As many as were counted when it was planned, and a fifth more; what came beyond that waits for another plan. A list
    that is too long to search is sieved once; messages that only pass through quarantine go on from there.
    """
    lists.settle(mover.primitive)
    work = _Selected(mover, action)
    # What shall be served next is put there one before the other, so the last comes first.
    for copy in reversed(action.copies) if work.ends_next else action.copies:
        work.take(copy)
        if work.account.halted:
            break
    return _outcome(action, work.account)


def _outcome(action: Action, account: _Account) -> Outcome:
    moved = f"{account.moved:,} message{'s' * (account.moved != 1)}"
    gone = f" {account.gone:,} were taken meanwhile." if account.gone else ""
    left = len(account.unwritable)
    odd = f" {left:,} cannot be written again and stay where they are." if left else ""
    if account.halted:
        return Outcome(action=action, status=Status.FAILED, reason=f"{moved} were moved. {account.halted}")
    if not account.moved:
        return Outcome(action=action, status=Status.SKIPPED, reason=f"None of them waits any more.{gone}{odd}")
    where = {
        Kind.PURGE: "are kept in quarantine" if account.moved != 1 else "is kept in quarantine",
        Kind.MOVE: f"now in {action.destination}",
        Kind.REORDER: "served next",
    }[action.kind]
    return Outcome(action=action, status=Status.APPLIED, reason=f"{moved} {where}.{gone}{odd}")


class _Selected:
    """The messages of one action, list by list."""

    def __init__(self, mover: Mover, action: Action) -> None:
        self._mover, self._action = mover, action
        self._primitive = mover.primitive
        self._broker: Broker = mover.primitive.broker
        self.account = _Account()
        self.ends_next = action.kind is Kind.REORDER

    def take(self, copy: Copy) -> None:
        """Take what is meant out of one list."""
        began, most = self.account.met, self._most(copy)
        for key in self._on_the_way(copy.key):
            self._pour(key, copy, most)
        most -= self.account.met - began
        if self._action.only is None:
            self._pour(copy.key, copy, most)
            return
        length = self._broker.writes.llen(raw_name(copy.key))
        if length <= lists.SEARCHABLE:
            meant = [raw for raw in self._all(copy.key, length) if self._means(raw)][: max(0, most)]
            self._move([(copy.key, raw) for raw in meant], copy)
        else:
            self._sieve(copy, most)

    def _most(self, copy: Copy) -> int:
        """Return how many messages of one list may be taken: as many as were planned and a few more, or as were said."""
        only = self._action.only
        return min(copy.count, only.limit - self.account.met) if only and only.limit else lists.most(copy.count)

    def _sieve(self, copy: Copy, most: int) -> None:
        """Sieve a long list; what was taken goes on from its quarantine, unless it is to stay there."""
        stays = self._action.kind is Kind.PURGE
        account = {"a" if stays else "for": self._action.id, "s": self._action.subject}
        left = most

        def taking(raw: bytes) -> Mapping[str, Any] | None:
            nonlocal left
            if left <= 0 or not self._means(raw) or not self._is_writable(raw, copy):
                return None
            left -= 1
            return account

        taken = lists.sieve(self._primitive, copy.key, taking)
        if stays:
            self.account.moved += len(taken)
        else:
            for key in dict.fromkeys(str(item["to"]) for item in taken):
                self._pour(key, copy, most)

    def _pour(self, source: str, copy: Copy, most: int) -> None:
        """Move all that a list holds, window by window from the end that the rest of them follows."""
        began = self.account.met
        while (left := most - (self.account.met - began)) > 0 and not self.account.halted:
            window = [raw for raw in self._window(source, BATCH_MOVES) if digest(raw) not in self.account.unwritable]
            if not window:
                return
            window = window[-left:] if self.ends_next else window[:left]
            self._move([(source, raw) for raw in window], copy)

    def _window(self, source: str, most: int) -> list[bytes]:
        """Return messages of a list in the order of their service; of what shall be served next, the last of them."""
        most += len(self.account.unwritable)
        if self.ends_next:
            window = cast("list[bytes]", self._broker.writes.lrange(raw_name(source), 0, most - 1))
            return window[::-1]
        return lists.served_end(self._primitive, source, most)

    def _move(self, found: Sequence[tuple[str, bytes]], copy: Copy) -> None:
        """Move messages that are given in the order of their service."""
        moves = []
        for source, raw in found:
            if self._is_writable(raw, copy):
                moves.append(self._moving(source, raw, copy))
        for letter in self._mover.move(moves[::-1] if self.ends_next else moves):
            self.account.moved += letter in {MOVED, MOVED_NEXT}
            self.account.gone += letter not in {MOVED, MOVED_NEXT, UNDONE}
        self.account.halted = self._mover.halted

    def _moving(self, source: str, raw: bytes, copy: Copy) -> Move:
        """
        Return the move of one message.

        Raises:
            ValueError: If it cannot be written as it has to be.
        """
        space, action = self._broker.keys, self._action
        step = (space.queue_of(copy.key) or ("", 0))[1]
        note_field = note = ""
        written = b""
        if action.kind is Kind.PURGE:
            place = Place(key=space.quarantine(self._primitive.run_id, copy.queue))
            note_field = digest(raw)
            note = json.dumps({"place": "waiting", "key": copy.key, "queue": copy.queue, "subject": _id(raw)})
        elif action.kind is Kind.MOVE:
            place = Place(key=space.queue(action.destination, step))
            written = rerouted(raw, action.destination)
        else:
            place = Place(key=space.queue(copy.queue), served="next")
            written = reprioritised(raw, 0) if step else b""
        return Move(
            action=action.id,
            subject=action.subject,
            task=action.only.task if action.only else "",
            source=Place(key=source),
            destination=place,
            seen=raw,
            written=written,
            note_field=note_field,
            note=note,
        )

    def _is_writable(self, raw: bytes, copy: Copy) -> bool:
        """Whether a message can be written as it has to be; one that cannot is remembered, and stays where it is."""
        try:
            self._moving(copy.key, raw, copy)
        except ValueError:
            self.account.unwritable.add(digest(raw))
            return False
        return True

    def _means(self, raw: bytes) -> bool:
        found = head(raw)
        return self._action.only is None or (isinstance(found, Head) and self._action.only.fits(found))

    def _all(self, key: str, length: int) -> list[bytes]:
        """Return what a short list holds, the first served first."""
        listing = queues.Listing(key=key, queue="", priority=0, length=length)
        return [raw for _, raw in queues.stream(self._broker, listing)][::-1]

    def _on_the_way(self, key: str) -> Iterator[str]:
        """Yield the quarantines through which messages of that list were on their way when the run was interrupted."""
        journal = journals.read(self._broker, self._primitive.run_id)
        passes = journal.of("deal", "sieve", list=key)
        items = (item for batch in passes for item in batch.items if item.get("for") == self._action.id)
        yield from dict.fromkeys(str(item["to"]) for item in items)


def _id(raw: bytes) -> str:
    found = head(raw)
    return found.task_id if isinstance(found, Head) else digest(raw)
