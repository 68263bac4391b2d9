"""WRITE. A Plan → one Outcome for each action: the only part that changes a system, and the whole of it."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from opslib import records, refusals
from opslib.collectors import queues
from opslib.collectors.find import Whereabouts
from opslib.envelope import digest, restored
from opslib.errors import Refused
from opslib.plan import Action, Copy, Kind, Outcome, Plan, Status
from opslib.writer import audit, lock
from opslib.writer.moves import CHANGED, GONE, MOVED, UNDONE, Move, Mover
from opslib.writer.stop import stop

if TYPE_CHECKING:
    from opslib.broker import Broker

_WHY_NOT = {
    GONE: "It is no longer there: a worker took or acknowledged it meanwhile.",
    CHANGED: "It is not as it was planned: delivered again meanwhile.",
}


def apply(plan: Plan, broker: Broker, *, dry_run: bool = True) -> tuple[Outcome, ...]:
    """
    Carry out a plan, or say what that would do.

    Each action is checked again in the same atomic step that carries it out; one that is no longer as planned is
    skipped. Nothing is deleted: what leaves circulation is kept in this run's quarantine lists.

    Args:
        dry_run: True changes nothing; the only place where that is decided.

    Raises:
        Refused: If the plan was made for another server, or the server is a replica or is loading.

        LockHeld: If another run is changing this broker.

        BrokerUnreachable: If the server does not answer before anything was changed.
    """
    if dry_run or not plan:
        return tuple(Outcome(action=a, status=Status.SKIPPED, reason=f"Dry run. {a.effect}") for a in plan)
    allowed, unconfirmed = _confirmed(plan)
    run_id = records.context().run_id
    try:
        _identify(plan, broker)
        audit.write("begin", plan=plan.digest, target=plan.target, actions=plan.summary())
        with lock.held(broker, run_id=run_id, plan_digest=plan.digest) as held:
            mover = Mover(broker, held, run_id=run_id, plan_digest=plan.digest)
            outcomes = _carry_out(allowed, broker, mover, held, run_id)
            mover.close()
    except Exception as error:
        known = refusals.of(error, broker.target.shown_broker)
        audit.note("refused", plan=plan.digest, why=str(known))
        raise known from error
    audit.note("end", plan=plan.digest, outcomes=dict(Counter(str(o.status) for o in outcomes)))
    return tuple(sorted([*outcomes, *unconfirmed], key=lambda outcome: outcome.action.id))


def _confirmed(plan: Plan) -> tuple[list[Action], list[Outcome]]:
    """Split a plan by what a person confirmed before this run; everything, where nobody had to."""
    path = records.context().confirmed
    if not path:
        return list(plan), []
    agreed = {(kind, subject) for kind, subject in json.loads(Path(path).read_text("utf-8"))}
    reason = "It was not in the plan that was confirmed; look at it and run again."
    late = [action for action in plan if (str(action.kind), action.subject) not in agreed]
    return [action for action in plan if action not in late], [
        Outcome(action=a, status=Status.SKIPPED, reason=reason) for a in late
    ]


def _identify(plan: Plan, broker: Broker) -> None:
    """Make sure that this is the server, database and role that the plan was made for."""
    info = cast("Mapping[str, object]", broker.writes.info())
    space = broker.keys
    now = f"{info.get('run_id', '')}/{info.get('master_replid', '')}/{space.database}/{space.prefix}"
    if info.get("role") != "master":
        raise Refused(
            f"{broker.target.shown_broker} is a replica; changes belong on its master.",
            hint="Name the master, or a Sentinel.",
        )
    if plan.fingerprint != now:
        raise Refused(
            "The server was restarted, failed over or is another one since the plan was made.",
            hint="Run the runbook again.",
        )


def _carry_out(actions: Sequence[Action], broker: Broker, mover: Mover, held: lock.Lock, run_id: str) -> list[Outcome]:
    """Stop first, for a stopped task must not be restored; a failure ends its group, not the account of it."""
    quarantine = _Quarantine(broker, mover, run_id)
    groups = (
        (
            [a for a in actions if a.kind is Kind.STOP],
            lambda some: stop(broker, some, quarantine.everything, held.renew),
        ),
        ([a for a in actions if a.kind is Kind.RESTORE], lambda some: _restore(some, broker, mover)),
        ([a for a in actions if a.kind is Kind.QUARANTINE], quarantine.unreadable),
    )
    outcomes: list[Outcome] = []
    for group, do in groups:
        try:
            outcomes += do(group)
        except Exception as error:  # noqa: BLE001 - `refusals` sorts them, and raises what it does not know
            known = refusals.of(error, broker.target.shown_broker)
            outcomes += [Outcome(action=action, status=Status.FAILED, reason=known.message) for action in group]
    return outcomes


def _restore(actions: Sequence[Action], broker: Broker, mover: Mover) -> list[Outcome]:
    """Put unacked messages back to their queue, next to be served, under a new delivery tag."""
    moves: dict[int, Move] = {}
    outcomes: list[Outcome] = []
    for action in actions:
        copy = action.copies[0]
        raw = cast("bytes | None", broker.writes.hget(broker.keys.unacked, _name(copy.delivery_tag)))
        if raw is None or digest(raw) != copy.sha256:
            outcomes.append(
                Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[GONE if raw is None else CHANGED])
            )
            continue
        try:
            written = restored(raw, str(uuid.uuid4()))
        except ValueError as error:
            outcomes.append(Outcome(action=action, status=Status.FAILED, reason=f"It cannot be put back: {error}."))
            continue
        moves[action.id] = Move(
            subject=action.subject,
            source=broker.keys.unacked,
            index=broker.keys.unacked_index,
            delivery_tag=copy.delivery_tag,
            score=copy.score,
            seen=raw,
            destination=broker.keys.queue(action.destination, copy.priority),
            served="next",
            written=written,
        )
    letters = dict(zip(moves, mover.move(list(moves.values())), strict=True))
    return outcomes + [
        _of_letter(action, letters[action.id], f"Back in {action.destination}.", mover)
        for action in actions
        if action.id in letters
    ]


class _Quarantine:
    """Takes messages out of circulation and keeps them, with where they came from."""

    def __init__(self, broker: Broker, mover: Mover, run_id: str) -> None:
        self._broker, self._mover, self._run_id = broker, mover, run_id

    def everything(self, seen: Whereabouts) -> dict[str, int]:
        """Move every message of what was found; answer how many by task id."""
        found = [
            (m.task_id, self._unacked_move(m.task_id, m.queue, m.delivery_tag, m.delivered_at)) for m in seen.unacked
        ]
        if seen.waiting:
            listings, _ = queues.lists(self._broker, {m.queue for m in seen.waiting})
            found += [
                (row.task_id, self._list_move(row.task_id, row.queue, row.key, raw))
                for row, raw in queues.matches(self._broker, listings, ids=seen.ids)
            ]
        moves = [(task_id, move) for task_id, move in found if move]
        letters = self._mover.move([move for _, move in moves])
        return dict(Counter(task_id for (task_id, _), letter in zip(moves, letters, strict=True) if letter == MOVED))

    def unreadable(self, actions: Sequence[Action]) -> list[Outcome]:
        """Move messages that nobody can decode, each by its exact bytes."""
        moves: dict[int, Move] = {}
        outcomes = []
        for action in actions:
            move = self._unreadable_move(action, action.copies[0])
            if move:
                moves[action.id] = move
            else:
                outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[GONE]))
        letters = dict(zip(moves, self._mover.move(list(moves.values())), strict=True))
        return outcomes + [
            _of_letter(a, letters[a.id], f"Kept in {moves[a.id].destination}.", self._mover)
            for a in actions
            if a.id in letters
        ]

    def _unreadable_move(self, action: Action, copy: Copy) -> Move | None:
        if copy.place == "unacked":
            move = self._unacked_move(action.subject, copy.queue, copy.delivery_tag, copy.score)
            return move if move and digest(move.seen) == copy.sha256 else None
        listings, _ = queues.lists(self._broker, [copy.queue])
        same = (
            raw
            for each in listings
            if each.key == copy.key
            for _, raw in queues.stream(self._broker, each)
            if digest(raw) == copy.sha256
        )
        raw = next(same, None)
        return self._list_move(action.subject, copy.queue, copy.key, raw) if raw is not None else None

    def _unacked_move(self, subject: str, queue: str, tag: str, score: float | None) -> Move | None:
        space = self._broker.keys
        raw = cast("bytes | None", self._broker.writes.hget(space.unacked, _name(tag)))
        if raw is None:
            return None
        note = {"place": "unacked", "tag": tag, "score": score, "queue": queue, "subject": subject}
        return Move(
            subject=subject,
            source=space.unacked,
            index=space.unacked_index,
            delivery_tag=tag,
            score=score,
            seen=raw,
            destination=space.quarantine(self._run_id, queue or "unacked"),
            note_field=digest(raw),
            note=json.dumps(note),
        )

    def _list_move(self, subject: str, queue: str, key: str, raw: bytes) -> Move:
        return Move(
            subject=subject,
            source=key,
            seen=raw,
            destination=self._broker.keys.quarantine(self._run_id, queue),
            note_field=digest(raw),
            note=json.dumps({"place": "waiting", "key": key, "queue": queue, "subject": subject}),
        )


def _of_letter(action: Action, letter: str, done: str, mover: Mover) -> Outcome:
    if letter == MOVED:
        return Outcome(action=action, status=Status.APPLIED, reason=done)
    if letter == UNDONE:
        return Outcome(action=action, status=Status.FAILED, reason=mover.halted)
    return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[letter])


def _name(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
