"""Messages that were found or planned → moves: out of circulation, into a queue, or elsewhere in their own list."""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from opslib.collectors import queues, windows
from opslib.envelope import digest
from opslib.facts.whereabouts import Whereabouts
from opslib.keys import raw_name
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.rewrite import rerouted, restored
from opslib.writer import journal as journals
from opslib.writer import lists, selected
from opslib.writer.moves import BATCH_STEPS, CHANGED, GONE, MOVED, MOVED_NEXT, TAKEN, UNDONE, Move, Mover, Place

if TYPE_CHECKING:
    from opslib.broker import Broker

_WHY_NOT = {
    GONE: "It is no longer there: a worker took or acknowledged it meanwhile.",
    CHANGED: "It is not as it was planned: delivered again meanwhile.",
    TAKEN: "Something else is in its place by now.",
}
_TOO_DEEP = "Its place is too deep in the queue by now"
#: For what was on its way through quarantine, and has no place to go on to.
_KEPT = "K"


#: A move, and whether its message lies too deep in a list to be searched for by its bytes.
_Found = tuple[Move, bool]


class Handler:
    """Carries out what a plan says about single messages."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self._primitive = mover.primitive
        self._broker: Broker = mover.primitive.broker
        self._run_id = mover.primitive.run_id

    def everything(self, seen: Whereabouts, actions: Mapping[str, Action]) -> dict[str, int]:
        """Take every message of what was found out of circulation; answer how many by task id."""
        moves: list[_Found] = []
        for m in seen.unacked:
            move = self._from_unacked(actions[m.task_id], m.queue, m.delivery_tag, m.delivered_at)
            moves += [(move, False)] if move else []
        if seen.waiting:
            listings, _ = queues.lists(self._broker, {m.queue for m in seen.waiting})
            lengths = {each.key: each.length for each in listings}
            for row, raw in queues.matches(self._broker, listings, ids=seen.ids):
                move = self._from_list(actions[row.task_id], row.queue, row.key, raw)
                moves.append((move, lists.is_deep(row.position, lengths[row.key])))
        letters = self._move(moves)
        return dict(Counter(m.subject for (m, _), letter in zip(moves, letters, strict=True) if letter == MOVED))

    def single(self, actions: Sequence[Action]) -> list[Outcome]:
        """
        Restore, quarantine, purge, move or reorder messages, each by its exact bytes.

        What is about whole lists is gone through list by list, before that.
        """
        whole = [action for action in actions if any(copy.place == "list" for copy in action.copies)]
        if whole:
            rest = [action for action in actions if action not in whole]
            return [*(selected.carry_out(self._mover, action) for action in whole), *self.single(rest)]
        lists.settle(self._primitive)
        moves: dict[int, list[_Found]] = {}
        outcomes: list[Outcome] = []
        halfway = self._halfway()
        bytes_of = self._waiting([copy for action in actions for copy in action.copies if copy.place == "waiting"])
        for action in actions:
            try:
                moves[action.id] = [self._planned(action, copy, bytes_of, halfway) for copy in action.copies]
            except LookupError as error:
                outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[str(error.args[0])]))
            except ValueError as error:
                reason = f"It cannot be written again: {error}."
                outcomes.append(Outcome(action=action, status=Status.FAILED, reason=reason))
        every = [move for some in moves.values() for move in some]
        letters = iter(self._move(every))
        return outcomes + [
            self._outcome(action, [move for move, _ in moves[action.id]], [next(letters) for _ in moves[action.id]])
            for action in actions
            if action.id in moves
        ]

    def _move(self, found: Sequence[_Found]) -> list[str]:
        """Move messages, those too deep in a long list by a pass over the whole of it; return a letter for each."""
        letters: dict[int, str] = {}
        near = {n: move for n, (move, deep) in enumerate(found) if not deep}
        far: defaultdict[str, defaultdict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for n, (move, deep) in enumerate(found):
            if deep and self._is_too_deep(move.destination):
                letters[n] = CHANGED  # before all of the list is set aside for it
            elif deep:
                # What is only on its way through quarantine is not done yet, should the run be interrupted there.
                role = "a" if self._broker.keys.quarantined(move.destination.key) else "for"
                account = {role: move.action, "s": move.subject, "t": move.task, "n": n}
                far[move.source.key][digest(move.seen)].append(account)
                letters[n] = GONE
        for key, wanted in far.items():
            for item in lists.sieve(self._primitive, key, lists.by_sha(wanted)):
                n, move = int(item["n"]), found[int(item["n"])][0]
                letters[n] = MOVED
                if not self._broker.keys.quarantined(move.destination.key):
                    near[n] = replace(move, source=Place(key=str(item["to"])))
        for (n, move), letter in zip(near.items(), self._mover.move(list(near.values())), strict=True):
            letters[n] = _KEPT if letter == CHANGED and move.source != found[n][0].source else letter
        return [letters[n] for n in range(len(found))]

    def _is_too_deep(self, place: Place) -> bool:
        """Whether too many would step aside for a message that is to go to a place of the list that it is in."""
        served = place.served.removesuffix("/")
        if not served.isdigit():
            return False
        length = self._broker.writes.llen(raw_name(place.key))
        return int(served) > BATCH_STEPS and length - min(int(served), length - 1) > BATCH_STEPS

    def _outcome(self, action: Action, moves: Sequence[Move], letters: Sequence[str]) -> Outcome:
        moved = [letter for letter in letters if letter in {MOVED, MOVED_NEXT}]
        if not letters:
            return Outcome(action=action, status=Status.SKIPPED, reason="It names no message.")
        if UNDONE in letters:
            return Outcome(action=action, status=Status.FAILED, reason=self._mover.halted)
        if _KEPT in letters:
            reason = f"{_TOO_DEEP}. It is kept in quarantine; `ops undo {self._run_id}` puts it back."
            return Outcome(action=action, status=Status.FAILED, reason=reason)
        if not moved:
            too_deep = action.kind is Kind.REORDER and letters[0] == CHANGED
            reason = f"{_TOO_DEEP}; plan it again." if too_deep else _WHY_NOT[letters[0]]
            return Outcome(action=action, status=Status.SKIPPED, reason=reason)
        missing = f" {len(letters) - len(moved)} were gone." if len(moved) < len(letters) else ""
        done = {
            Kind.RESTORE: f"Back in {action.destination}.",
            Kind.MOVE: f"Now in {action.destination}.",
            Kind.REORDER: "In its new place.",
        }.get(action.kind, f"Kept in {moves[0].destination.key}.")
        return Outcome(action=action, status=Status.APPLIED, reason=f"{done}{missing}")

    def _planned(
        self,
        action: Action,
        copy: Copy,
        bytes_of: Mapping[tuple[str, str], tuple[bytes, bool]],
        halfway: Mapping[tuple[int, str], str],
    ) -> _Found:
        """
        Return the move of one planned message, and whether it is deep in a long list.

        Raises:
            LookupError: With a letter, if it is gone or changed.

            ValueError: If it cannot be written as it has to be.
        """
        deep = False
        if copy.place == "unacked":
            move = self._from_unacked(action, copy.queue, copy.delivery_tag, copy.score)
            if move is None:
                raise LookupError(GONE)
            if digest(move.seen) != copy.sha256:
                raise LookupError(CHANGED)
        else:
            key = halfway.get((action.id, copy.sha256), copy.key)
            raw, deep = self._kept(key, copy) if key != copy.key else bytes_of.get((key, copy.sha256), (b"", False))
            if not raw and copy.sha256 != digest(b""):
                raise LookupError(GONE)
            move = self._from_list(action, copy.queue, key, raw)
        if action.kind is Kind.QUARANTINE:
            return move, deep
        if action.kind is Kind.REORDER:
            place = Place(
                key=copy.key, served=action.destination if action.destination in _ENDS else f"{action.destination}/"
            )
            written = b""
        elif copy.place == "unacked":
            place = Place(key=self._broker.keys.queue(action.destination, copy.priority), served="next")
            written = restored(move.seen, str(uuid.uuid4()))
        else:
            place = Place(key=self._broker.keys.queue(action.destination, copy.priority))
            written = rerouted(move.seen, action.destination)
        return replace(move, destination=place, written=written, note_field="", note=""), deep

    def _halfway(self) -> dict[tuple[int, str], str]:
        """Return the quarantines of what this run had on its way when it was interrupted, by action and sha256."""
        passes = journals.read(self._broker, self._run_id).of("deal", "sieve")
        items = [item for batch in passes for item in batch.items if "for" in item]
        return {(int(item["for"]), str(item["sha"])): str(item["to"]) for item in items}

    def _kept(self, key: str, copy: Copy) -> tuple[bytes, bool]:
        """Return the bytes of a message that is in a quarantine."""
        length = self._broker.writes.llen(raw_name(key))
        every = windows.stream(self._broker, windows.Listing(key=key, length=length))
        return next((raw for _, raw in every if digest(raw) == copy.sha256), b""), False

    def _waiting(self, copies: Sequence[Copy]) -> dict[tuple[str, str], tuple[bytes, bool]]:
        """Read the bytes of planned messages that wait, each list once, and whether they are deep in it."""
        wanted: defaultdict[str, set[str]] = defaultdict(set)
        for copy in copies:
            wanted[copy.key].add(copy.sha256)
        found: dict[tuple[str, str], tuple[bytes, bool]] = {}
        listings, _ = queues.lists(self._broker, {copy.queue for copy in copies})
        for each in listings:
            if not wanted.get(each.key):
                continue
            left = set(wanted[each.key])
            for position, raw in windows.stream(self._broker, each):
                sha = digest(raw)
                if sha in wanted[each.key]:
                    found[each.key, sha] = raw, lists.is_deep(position, each.length)
                    left.discard(sha)
                    if not left:
                        break
        return found

    def _from_unacked(self, action: Action, queue: str, tag: str, score: float | None) -> Move | None:
        space = self._broker.keys
        raw = cast("bytes | None", self._broker.writes.hget(space.unacked, raw_name(tag)))
        if raw is None:
            return None
        note = {"place": "unacked", "tag": tag, "score": score, "queue": queue, "subject": action.subject}
        return Move(
            action=action.id,
            subject=action.subject,
            task=action.task,
            source=Place(key=space.unacked, index=space.unacked_index, tag=tag, score=score),
            destination=Place(key=space.quarantine(self._run_id, queue or "unacked")),
            seen=raw,
            note_field=digest(raw),
            note=json.dumps(note),
        )

    def _from_list(self, action: Action, queue: str, key: str, raw: bytes) -> Move:
        return Move(
            action=action.id,
            subject=action.subject,
            task=action.task,
            source=Place(key=key),
            destination=Place(key=self._broker.keys.quarantine(self._run_id, queue)),
            seen=raw,
            note_field=digest(raw),
            note=json.dumps({"place": "waiting", "key": key, "queue": queue, "subject": action.subject}),
        )


_ENDS = {"next", "last"}
