"""Messages that were found or planned → moves: out of circulation, into a queue, or elsewhere in their own list."""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from opslib.collectors import queues
from opslib.collectors.find import Whereabouts
from opslib.envelope import digest, rerouted, restored
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.writer import lists
from opslib.writer.moves import CHANGED, GONE, MOVED, MOVED_NEXT, TAKEN, UNDONE, Move, Mover, Place

if TYPE_CHECKING:
    from opslib.broker import Broker

_WHY_NOT = {
    GONE: "It is no longer there: a worker took or acknowledged it meanwhile.",
    CHANGED: "It is not as it was planned: delivered again meanwhile.",
    TAKEN: "Something else is in its place by now.",
}


class Handler:
    """Carries out what a plan says about single messages."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self._primitive = mover.primitive
        self._broker: Broker = mover.primitive.broker
        self._run_id = mover.primitive.run_id

    def everything(self, seen: Whereabouts, actions: Mapping[str, Action]) -> dict[str, int]:
        """Take every message of what was found out of circulation; answer how many by task id."""
        moves: list[Move] = []
        for m in seen.unacked:
            move = self._from_unacked(actions[m.task_id], m.queue, m.delivery_tag, m.delivered_at)
            moves += [move] if move else []
        taken: Counter[str] = Counter()
        long: defaultdict[str, defaultdict[str, list[dict[str, object]]]] = defaultdict(lambda: defaultdict(list))
        if seen.waiting:
            listings, _ = queues.lists(self._broker, {m.queue for m in seen.waiting})
            lengths = {each.key: each.length for each in listings}
            for row, raw in queues.matches(self._broker, listings, ids=seen.ids):
                action = actions[row.task_id]
                if lengths[row.key] > lists.SEARCHABLE:
                    long[row.key][digest(raw)].append({"a": action.id, "s": row.task_id, "t": row.task})
                else:
                    moves.append(self._from_list(action, row.queue, row.key, raw))
        letters = self._mover.move(moves)
        taken.update(m.subject for m, letter in zip(moves, letters, strict=True) if letter == MOVED)
        for key, wanted in long.items():
            taken.update(str(item["s"]) for item in lists.sieve(self._primitive, key, wanted))
        return dict(taken)

    def single(self, actions: Sequence[Action]) -> list[Outcome]:
        """Restore, quarantine, move or reorder messages, each by its exact bytes."""
        moves: dict[int, list[Move]] = {}
        outcomes: list[Outcome] = []
        bytes_of = self._waiting([copy for action in actions for copy in action.copies if copy.place == "waiting"])
        for action in actions:
            try:
                moves[action.id] = [self._planned(action, copy, bytes_of) for copy in action.copies]
            except LookupError as error:
                outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[str(error.args[0])]))
            except ValueError as error:
                reason = f"It cannot be written again: {error}."
                outcomes.append(Outcome(action=action, status=Status.FAILED, reason=reason))
        every = [move for some in moves.values() for move in some]
        letters = iter(self._mover.move(every))
        return outcomes + [
            self._outcome(action, moves[action.id], [next(letters) for _ in moves[action.id]])
            for action in actions
            if action.id in moves
        ]

    def _outcome(self, action: Action, moves: Sequence[Move], letters: Sequence[str]) -> Outcome:
        moved = [letter for letter in letters if letter in {MOVED, MOVED_NEXT}]
        if not letters:
            return Outcome(action=action, status=Status.SKIPPED, reason="It names no message.")
        if UNDONE in letters:
            return Outcome(action=action, status=Status.FAILED, reason=self._mover.halted)
        if not moved:
            return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[letters[0]])
        missing = f" {len(letters) - len(moved)} were gone." if len(moved) < len(letters) else ""
        done = {
            Kind.RESTORE: f"Back in {action.destination}.",
            Kind.MOVE: f"Now in {action.destination}.",
            Kind.REORDER: "In its new place.",
        }.get(action.kind, f"Kept in {moves[0].destination.key}.")
        return Outcome(action=action, status=Status.APPLIED, reason=f"{done}{missing}")

    def _planned(self, action: Action, copy: Copy, bytes_of: Mapping[tuple[str, str], bytes]) -> Move:
        """
        Return the move of one planned message.

        Raises:
            LookupError: With a letter, if it is gone or changed.

            ValueError: If it cannot be written as it has to be.
        """
        if copy.place == "unacked":
            move = self._from_unacked(action, copy.queue, copy.delivery_tag, copy.score)
            if move is None:
                raise LookupError(GONE)
            if digest(move.seen) != copy.sha256:
                raise LookupError(CHANGED)
        else:
            raw = bytes_of.get((copy.key, copy.sha256))
            if raw is None:
                raise LookupError(GONE)
            move = self._from_list(action, copy.queue, copy.key, raw)
        if action.kind is Kind.QUARANTINE:
            return move
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
        return Move(
            action=action.id,
            subject=action.subject,
            task=action.task,
            source=move.source,
            destination=place,
            seen=move.seen,
            written=written,
        )

    def _waiting(self, copies: Sequence[Copy]) -> dict[tuple[str, str], bytes]:
        """Read the bytes of planned messages that wait, each list once."""
        wanted: defaultdict[str, set[str]] = defaultdict(set)
        for copy in copies:
            wanted[copy.key].add(copy.sha256)
        found: dict[tuple[str, str], bytes] = {}
        listings, _ = queues.lists(self._broker, {copy.queue for copy in copies})
        for each in listings:
            if not wanted.get(each.key):
                continue
            for _, raw in queues.stream(self._broker, each):
                if digest(raw) in wanted[each.key]:
                    found[each.key, digest(raw)] = raw
                    if sum(1 for key, _ in found if key == each.key) == len(wanted[each.key]):
                        break
        return found

    def _from_unacked(self, action: Action, queue: str, tag: str, score: float | None) -> Move | None:
        space = self._broker.keys
        raw = cast("bytes | None", self._broker.writes.hget(space.unacked, tag.encode("utf-8", "surrogateescape")))
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
