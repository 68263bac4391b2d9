"""
A queue → whether a node takes from it and finishes what it takes, by a task of Celery's own that does nothing.

`celery.accumulate` is on every node. It is published as any task is, behind what waits; it expires soon, so that none
is left that anybody would run later, and one that nobody takes is taken out again.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from opslib.collectors import results
from opslib.durations import spell
from opslib.envelope import Head, digest, head
from opslib.keys import raw_name
from opslib.plan import Action, Kind, Outcome, Status
from opslib.rewrite import fresh
from opslib.writer import journal as journals
from opslib.writer import points
from opslib.writer.moves import MOVED, MOVED_NEXT, Move, Mover, Place

if TYPE_CHECKING:
    from opslib.writer.journal import Journal
    from opslib.writer.primitive import Primitive

TASK = "celery.accumulate"
#: What the journal calls it: when it is published, and once it is known what became of it.
ROLE = "canary"
_WITHIN_S = 30.0
#: Beyond the wait for it, so long a canary can still be taken by a worker.
_LIVES_ON_S = 60.0
#: So long a result is waited for after its message has gone: it is written while the message is acknowledged.
_RESULT_S = 3.0
_PAUSE_S = 0.2
#: So many messages at the end of a list are looked through for it.
_NEAR = 5_000
_ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED"})


@dataclass(kw_only=True)
class _Canary:
    """
    One that is under way.

    Attributes:
        at: Batch and item of the journal that published it.

        gone_at: When its message was first found nowhere; 0 while it is somewhere.
    """

    action: Action
    key: str
    raw: bytes
    task_id: str
    tag: str
    at: tuple[str, int]
    gone_at: float = 0.0
    outcome: Outcome | None = None


def fly(primitive: Primitive, mover: Mover, actions: Sequence[Action]) -> list[Outcome]:
    """Publish one task into each queue and wait for them together; say of each what it proved."""
    journal = journals.read(primitive.broker, primitive.run_id)
    under_way = [_again(action, journal) or _publish(primitive, action) for action in actions]
    points.passed("canary-published")
    began = time.monotonic()
    within_s = max((action.gate.within_s for action in actions if action.gate), default=_WITHIN_S)
    while open_ones := [each for each in under_way if each.outcome is None]:
        _look(primitive, open_ones, began)
        if time.monotonic() - began > within_s:
            for each in open_ones:
                each.outcome = each.outcome or _given_up(primitive, mover, each, within_s)
        else:
            time.sleep(_PAUSE_S)
    done = [each.outcome for each in under_way if each.outcome is not None]
    _note(primitive, done)
    return done


def ended(journal: Journal) -> set[int]:
    """Return the actions of which it is known what became of their canary."""
    return {int(item["a"]) for batch in journal.of("note", ROLE) for item in batch.items}


def _publish(primitive: Primitive, action: Action) -> _Canary:
    broker = primitive.broker
    task_id = str(uuid.uuid4())
    within_s = action.gate.within_s if action.gate else _WITHIN_S
    expires = broker.server_time() + timedelta(seconds=within_s + _LIVES_ON_S)
    raw = fresh(TASK, [], {}, task_id=task_id, queue=action.destination, expires=expires.isoformat())
    keys, key = primitive.keys(), broker.keys.queue(action.destination)
    item = {"a": action.id, "s": task_id, "t": TASK, "to": [key, "", "", None], "sha": digest(raw)}
    item |= {"raw": raw.decode()}
    done = primitive.call(
        "push",
        keys,
        [keys.number(key), raw],
        receipt={"op": "send", "role": ROLE, "items": [item]},
        about={ROLE: [[task_id, key]]},
    )
    return _of(action, key, raw, (done.number, 0))


def _again(action: Action, journal: Journal) -> _Canary | None:
    """Return the one that an interrupted run has published for an action; None if it has none, or took it out."""
    for batch in journal.of("send", ROLE):
        for n, item in enumerate(batch.items):
            if item.get("a") == action.id and n in journal.standing(batch):
                return _of(action, str(item["to"][0]), str(item["raw"]).encode(), (batch.number, n))
    return None


def _of(action: Action, key: str, raw: bytes, at: tuple[str, int]) -> _Canary:
    found = head(raw)
    task_id, tag = (found.task_id, found.delivery_tag) if isinstance(found, Head) else ("", "")
    return _Canary(action=action, key=key, raw=raw, task_id=task_id, tag=tag, at=at)


def _look(primitive: Primitive, canaries: Sequence[_Canary], began: float) -> None:
    """See which of them have ended, by their results, and which messages are nowhere any more."""
    broker = primitive.broker
    stored, coverage = results.by_id(broker, [each.task_id for each in canaries])
    states = {row.task_id: row for row in stored}
    took = f"{spell(time.monotonic() - began)}" if time.monotonic() - began >= 1 else "less than 1 s"
    for each in canaries:
        row = states.get(each.task_id)
        if row and row.state in _ENDED:
            on = f" on {row.node}" if row.node else ""
            good = row.state == "SUCCESS"
            reason = f"It was taken and ran{on}, in {took}: its result says {row.state}."
            each.outcome = _said(each, Status.APPLIED if good else Status.FAILED, reason)
            continue
        if _waits(primitive, each) or _is_unacked(primitive, each):
            each.gone_at = 0.0
            continue
        each.gone_at = each.gone_at or time.monotonic()
        if time.monotonic() - each.gone_at > _RESULT_S:
            known = " Results cannot be read." if coverage.silent else " No result of it is stored."
            reason = f"It was taken and acknowledged, in {took}.{known} That it ran to its end is not proven."
            each.outcome = _said(each, Status.APPLIED, reason)


def _waits(primitive: Primitive, each: _Canary) -> bool:
    """Whether it is in its list, near the end where it was put."""
    name, reads = raw_name(each.key), primitive.broker.reads
    found = reads.lpos(name, each.raw, rank=1, maxlen=_NEAR)  # type: ignore[arg-type]
    return found is not None or reads.llen(name) > _NEAR  # deeper than that, it cannot be told


def _is_unacked(primitive: Primitive, each: _Canary) -> bool:
    return bool(primitive.broker.reads.hexists(primitive.broker.keys.unacked, each.tag))


def _given_up(primitive: Primitive, mover: Mover, each: _Canary, within_s: float) -> Outcome:
    """Take it out again if nobody took it; otherwise say where it is."""
    if _is_unacked(primitive, each):
        reason = f"A node took it and did not finish it within {spell(within_s)}: are all its processes busy?"
        return _said(each, Status.FAILED, f"{reason} It expires by itself.")
    broker = primitive.broker
    name = each.key.removeprefix(broker.keys.prefix)
    names = (broker.keys.quarantine(primitive.run_id, name, part) for part in itertools.count(2))
    kept = next(key for key in names if not broker.writes.exists(raw_name(key)))
    move = Move(
        action=each.action.id,
        subject=each.task_id,
        task=TASK,
        source=Place(key=each.key),
        destination=Place(key=kept),
        seen=each.raw,
        undoes=each.at,
    )
    (letter,) = mover.move([move])
    out = " It was taken out again." if letter in {MOVED, MOVED_NEXT} else " It was gone in that moment."
    return _said(each, Status.FAILED, f"No node took it within {spell(within_s)}.{out}")


def _said(each: _Canary, status: Status, reason: str) -> Outcome:
    return Outcome(action=each.action, status=status, reason=reason, steps=(f"{TASK} {each.task_id}",))


def _note(primitive: Primitive, outcomes: Sequence[Outcome]) -> None:
    """Have the journal know of those that ended well: a run that goes on sends none for them any more."""
    items = [{"a": o.action.id, "s": o.action.subject} for o in outcomes if o.status is Status.APPLIED]
    if items:
        primitive.call(
            "note",
            primitive.keys(),
            ["A" * len(items)],
            receipt={"op": "note", "role": ROLE, "items": items},
            about={str(Kind.CANARY): [item["s"] for item in items]},
        )
