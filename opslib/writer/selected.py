"""A filter and the lists of a queue → the messages that it means, elsewhere: kept, in another queue, or served next."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from opslib import letters, refusals
from opslib.collectors import windows
from opslib.envelope import Head, digest, head
from opslib.errors import OpsError
from opslib.keys import raw_name
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.rewrite import reprioritised, rerouted
from opslib.writer import journal as journals
from opslib.writer import lists
from opslib.writer.moves import BATCH_MOVES, MOVED, MOVED_NEXT, UNDONE, Move, Mover, Place

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.primitive import Primitive


#: What an error says of its batch alone would be taken for the action.
_OF_THE_BATCH = re.compile(r"; nothing of (?:this|it) was changed")
#: So often a list is looked at from its end, where workers took of what had been looked at already.
_LOOKS = 10


@dataclass(kw_only=True)
class _Account:
    """
    What became of the messages of one action.

    Attributes:
        unwritable: Those that stay where they are, for they cannot be written as they would have to be.

        on_the_way: Those that are in quarantine, and go on from there.

        halted: Why it was not gone on with; empty if it was.
    """

    moved: int = 0
    gone: int = 0
    unwritable: int = 0
    on_the_way: int = 0
    halted: str = ""

    @property
    def met(self) -> int:
        """How many were dealt with, whether or not a worker was quicker."""
        return self.moved + self.gone


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
    return _outcome(action, work.account, work.before)


def _outcome(action: Action, account: _Account, before: int) -> Outcome:
    noun = "letter" if action.letters else "message"
    moved = f"{account.moved:,} {noun}{'s' * (account.moved != 1)}"
    were = "was" if account.gone == 1 else "were"
    gone = f" {account.gone:,} {were} taken meanwhile." if account.gone else ""
    left = account.unwritable
    odd = f" {left:,} cannot be written again, and stay{'s' * (left == 1)} behind." if left else ""
    if account.halted:
        why = _OF_THE_BATCH.sub("", account.halted)
        reason = f"Of the messages, {account.moved:,} were moved. {why}{lists.underway(account.on_the_way)}"
        return Outcome(action=action, status=Status.FAILED, reason=reason)
    earlier = f" {before:,} had been taken before the run was interrupted." if before else ""
    if not account.moved:
        status = Status.APPLIED if before else Status.SKIPPED
        return Outcome(action=action, status=status, reason=f"None of them waits any more.{earlier}{gone}{odd}")
    where = {
        Kind.PURGE: "are kept in quarantine" if account.moved != 1 else "is kept in quarantine",
        Kind.MOVE: f"now in {action.destination}",
        Kind.REORDER: "served next",
    }[action.kind]
    return Outcome(action=action, status=Status.APPLIED, reason=f"{moved} {where}.{earlier}{gone}{odd}")


class _Selected:
    """The messages of one action, list by list."""

    def __init__(self, mover: Mover, action: Action) -> None:
        self._mover, self._action = mover, action
        self._only = action.only or action.letters
        self._primitive = mover.primitive
        self._broker: Broker = mover.primitive.broker
        self.account = _Account()
        self.ends_next = action.kind is Kind.REORDER
        self._past = _past(self._primitive, action)
        self.account.on_the_way = self._past.on_the_way
        self._halfway = 0  # of those that were met, so many had been taken before

    @property
    def before(self) -> int:
        """How many messages an interrupted run had dealt with for good."""
        return self._past.taken.total() - self._halfway

    def take(self, copy: Copy) -> None:
        """Take what is meant out of one list, and what an interrupted run had on its way out of it."""
        halfway = list(self._past.halfway[copy.key])
        # Later ones are before those on their way, once each is put next; otherwise behind them.
        if self.ends_next:
            self._take_meant(copy)
            halfway.reverse()
        began = self.account.met
        for key in halfway:
            self._pour(key, copy)
        self._halfway += self.account.met - began
        if not self.ends_next:
            self._take_meant(copy)
        if not self.account.halted and (self.account.moved or self._past.taken[copy.key]):
            self._note_done(copy)

    def _note_done(self, copy: Copy) -> None:
        """Have the journal know that a list is done with: what comes into it later is none of this run's any more."""
        item = {"a": self._action.id, "s": self._action.subject, "key": copy.key}
        receipt = {"op": "note", "role": "taken", "items": [item]}
        self._primitive.call("note", self._primitive.keys(), [MOVED], receipt=receipt, about={"taken": copy.key})

    def _take_meant(self, copy: Copy) -> None:
        only, most = self._only, self._most(copy)
        if most <= 0 or self.account.halted:
            return
        if only is None or (only.is_everything and not self.ends_next):
            self._pour(copy.key, copy, most)
            return
        length = self._broker.writes.llen(raw_name(copy.key))
        is_short = length <= lists.SEARCHABLE
        meant = self._meant(self._all(copy.key, length) if is_short else self._near(copy.key), copy)[:most]
        if is_short or (only.limit and len(meant) == most):
            self._move([(copy.key, raw) for raw in meant], copy)
        else:
            self._sieve(copy, most)

    def _most(self, copy: Copy) -> int:
        """Return how many messages of one list may be taken: as many as planned and a few more, or as were said."""
        only, taken = self._only, self._past.taken
        if not (only and only.limit):
            return lists.most(copy.count) - taken[copy.key]
        return min(copy.count - taken[copy.key], only.limit - self.before - self.account.met)

    def _sieve(self, copy: Copy, most: int) -> None:
        """Sieve a long list; what was taken goes on from its quarantine, unless it is to stay there."""
        stays = self._action.kind is Kind.PURGE
        account = {"a" if stays else "for": self._action.id, "s": self._action.subject}
        means, left = self._meaning(copy), most

        def taking(raw: bytes) -> Mapping[str, Any] | None:
            nonlocal left
            if left <= 0 or not means(raw):
                return None
            if self._moving(copy.key, raw, copy) is None:
                self.account.unwritable += 1
                return None
            left -= 1
            return account

        taken = lists.sieve(self._primitive, copy.key, taking)
        if stays:
            self.account.moved += len(taken)
        else:
            self.account.on_the_way += len(taken)
            for key in dict.fromkeys(str(item["to"]) for item in taken):
                self._pour(key, copy)

    def _pour(self, source: str, copy: Copy, most: int | None = None) -> None:
        """
        Move what a list holds, window by window from the end that the rest of them follows.

        What stays is passed over. Once workers took some of that, as many behind it would be passed over as well, so
        that it is looked at from the end again.

        Args:
            most: So many at most; None for all.
        """
        began, looks, passed = self.account.met, 1, 0
        stays: set[str] = set()
        known: frozenset[str] = frozenset()  # counted already
        last = b""
        while not self.account.halted:
            wanted = BATCH_MOVES if most is None else min(BATCH_MOVES, most - (self.account.met - began))
            window = self._window(source, wanted, passed) if wanted > 0 else []
            if passed and looks < _LOOKS and not self.ends_next and self._is_shorter(source, passed, last):
                looks, known, passed = looks + 1, frozenset(stays), 0
                continue
            if not window:
                return
            found = [raw for raw in window if not known or digest(raw) not in known]
            stays.update(map(digest, self._move([(source, raw) for raw in found], copy)))
            rest = [raw for raw in window if stays and digest(raw) in stays]
            passed, last = passed + len(rest), rest[-1] if rest else last

    def _is_shorter(self, source: str, passed: int, last: bytes) -> bool:
        """Whether workers took some of those that were passed over, by where the last of them is."""
        return self._broker.writes.lindex(raw_name(source), -passed) != last

    def _window(self, source: str, most: int, passed: int) -> list[bytes]:
        """Return messages of a list in the order of their service; of what shall be served next, the last of them."""
        if self.ends_next:
            window = self._broker.writes.lrange(raw_name(source), passed, passed + most - 1)
            return cast("list[bytes]", window)[::-1]
        return lists.served_end(self._primitive, source, most, passed)

    def _move(self, found: Sequence[tuple[str, bytes]], copy: Copy) -> list[bytes]:
        """Move messages that are given in the order of their service; return what stays, for it cannot be rewritten."""
        from redis.exceptions import RedisError

        given = [self._moving(source, raw, copy) for source, raw in found]
        moves = [move for move in given if move is not None]
        stays = [raw for (_, raw), move in zip(found, given, strict=True) if move is None]
        self.account.unwritable += len(stays)
        if self.ends_next:
            moves.reverse()
        try:
            letters = self._mover.move(moves)
        except (OpsError, RedisError) as error:
            if not self.account.moved and not self.account.on_the_way:
                raise
            self.account.halted = refusals.of(error, self._broker.target.shown_broker).message
            return stays
        for move, letter in zip(moves, letters, strict=True):
            if letter != UNDONE and self._broker.keys.quarantined(move.source.key):
                self.account.on_the_way -= 1
            if letter in {MOVED, MOVED_NEXT}:
                self.account.moved += 1
                if self.ends_next:
                    self._past.arrived[digest(move.arrives)] += 1
        self.account.gone += sum(letter not in {MOVED, MOVED_NEXT, UNDONE} for letter in letters)
        self.account.halted = self._mover.halted
        return stays

    def _moving(self, source: str, raw: bytes, copy: Copy) -> Move | None:
        """Return the move of one message; None if it cannot be written as it has to be."""
        try:
            return self._move_of(source, raw, copy)
        except ValueError:
            return None

    def _move_of(self, source: str, raw: bytes, copy: Copy) -> Move:
        space, action = self._broker.keys, self._action
        step = (space.queue_of(copy.key) or ("", 0))[1]
        note_field = note = ""
        written = b""
        if action.kind is Kind.PURGE:
            place = Place(key=space.quarantine(self._primitive.run_id, copy.queue))
            note_field = digest(raw)
            note = json.dumps({"place": "waiting", "key": copy.key, "queue": copy.queue, "subject": _id(raw, action)})
        elif action.kind is Kind.MOVE:
            place = Place(key=space.queue(action.destination, step))
            written = rerouted(raw, action.destination)
        else:
            place = Place(key=space.queue(copy.queue), served="next")
            written = reprioritised(raw, 0) if step else b""
        return Move(
            action=action.id,
            subject=action.subject,
            task=self._only.task if self._only else "",
            source=Place(key=source),
            destination=place,
            seen=raw,
            written=written,
            note_field=note_field,
            note=note,
        )

    def _meant(self, raws: Iterable[bytes], copy: Copy) -> list[bytes]:
        """Return those of a list's messages that are meant, in the order of their service."""
        means = self._meaning(copy)
        return [raw for raw in raws if means(raw)]

    def _meaning(self, copy: Copy) -> Callable[[bytes], bool]:
        """
        Return what is asked of each message of a list once, those served first first.

        What this action has put next is in the list of the greatest urgency, and fits its own filter: it is not meant
        once more, or it would be taken for what waits there.
        """
        is_goal = self.ends_next and copy.key == self._broker.keys.queue(copy.queue)
        arrived = Counter(self._past.arrived) if is_goal else Counter[str]()

        def means(raw: bytes) -> bool:
            if not self._fits(raw):
                return False
            if arrived and arrived[sha := digest(raw)] > 0:
                arrived[sha] -= 1
                return False
            return True

        return means

    def _fits(self, raw: bytes) -> bool:
        """Whether a filter means what a list holds there: a message, or a dead letter."""
        if dead := self._action.letters:
            letter = letters.read(raw)
            return dead.is_everything or (isinstance(letter, letters.Letter) and dead.fits(letters.Row(letter)))
        found = head(raw)
        return not self._action.only or (isinstance(found, Head) and self._action.only.fits(found))

    def _all(self, key: str, length: int) -> list[bytes]:
        """Return what a short list holds, the first served first."""
        listing = windows.Listing(key=key, length=length)
        return [raw for _, raw in windows.stream(self._broker, listing)][::-1]

    def _near(self, key: str) -> list[bytes]:
        """Return what of a long list is near enough to its served end to be found by its bytes, in that order."""
        found: list[bytes] = []
        for _ in range(_LOOKS):
            found = []
            while len(found) < lists.SEARCHABLE // 2:
                window = lists.served_end(self._primitive, key, 0, len(found))
                if found and self._is_shorter(key, len(found), found[-1]):
                    break  # as many behind them were passed over: look again from the end
                if not window:
                    return found
                found += window
            else:
                break
        return found[: lists.SEARCHABLE // 2]


@dataclass(kw_only=True)
class _Past:
    """
    What an interrupted run, which this one goes on with, had done of an action.

    Attributes:
        taken: Messages that it had taken, by their list.

        halfway: By list, the quarantines of messages that were to go on from there, in the order in which they were
            taken.

        on_the_way: How many are in those quarantines.

        arrived: Sha256 of what was put next, by it or by this run.
    """

    taken: Counter[str] = field(default_factory=Counter)
    halfway: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    on_the_way: int = 0
    arrived: Counter[str] = field(default_factory=Counter)


def _past(primitive: Primitive, action: Action) -> _Past:
    """Read from the journal what was done of an action; nothing where this run has begun it."""
    past = _Past()
    if not primitive.goes_on:
        return past
    for batch in journals.read(primitive.broker, primitive.run_id).batches:
        op, role = batch.receipt.get("op"), batch.receipt.get("role")
        for n, item in enumerate(batch.items):
            if action.id not in {item.get("a"), item.get("for")} or "undoes" in item or not batch.done(n):
                continue
            if op == "deal" and role == "sieve":
                key = str(batch.receipt["list"])
                past.taken[key] += 1
                if "for" in item:
                    past.halfway[key].setdefault(str(item["to"]))
                    past.on_the_way += 1
            elif op == "move":
                was_kept = primitive.broker.keys.quarantined(item["from"][0]) is not None
                past.taken[str(item["from"][0])] += not was_kept
                past.on_the_way -= was_kept
                if action.kind is Kind.REORDER:
                    past.arrived[str(item["sha"])] += 1
    return past


def _id(raw: bytes, action: Action) -> str:
    if action.letters:
        letter = letters.read(raw)
        return letter.task_id if isinstance(letter, letters.Letter) and letter.task_id else digest(raw)
    found = head(raw)
    return found.task_id if isinstance(found, Head) else digest(raw)
