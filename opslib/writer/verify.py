"""What was done → whether it can be found where it was put: an outcome that cannot be proven says so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opslib import pidbox
from opslib.collectors import windows
from opslib.envelope import digest
from opslib.keys import raw_name
from opslib.plan import Kind, Outcome, Status
from opslib.writer import journal as journals
from opslib.writer import row_batches
from opslib.writer.journal import Batch, Journal

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.primitive import Primitive

_ANSWER_S = 2.0
#: What these do is looked for message by message; the others prove it by themselves, or change no message.
_LOOKED_FOR = {Kind.RESTORE, Kind.QUARANTINE, Kind.MOVE, Kind.STOP, Kind.PURGE, Kind.SEND, Kind.HANDOVER}
#: A stop may have found no message, and then the journal has none.
_JOURNALLED = _LOOKED_FOR - {Kind.STOP}


def checked(primitive: Primitive, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """
    Look for every message that was moved, and mark the outcomes of those that are nowhere.

    A quarantine has to hold what was put there, for nobody else touches it. A message that went back to a queue may
    have been taken by a worker: that is believed if a node consumes the queue, and not otherwise.
    """
    kinds = {o.action.id: o.action.kind for o in outcomes if o.status is Status.APPLIED}
    applied = {number for number, kind in kinds.items() if kind in _LOOKED_FOR}
    outcomes = _rows_checked(primitive, outcomes)
    if not applied:
        return list(outcomes)
    try:
        journal = journals.read(primitive.broker, primitive.run_id)
        missing = _missing(primitive.broker, journal, primitive.epoch, applied)
        told = {item.get("a") for batch in journal.batches for item in batch.items}
        rolled_back = {number for number in applied - told if kinds[number] in _JOURNALLED}
        missing |= dict.fromkeys(rolled_back, "the journal has nothing of it: a failover or a restart rolled it back")
    except Exception as error:  # noqa: BLE001 - whatever a server or a node answers, the account must stay
        missing = dict.fromkeys(applied, f"it could not be looked for ({type(error).__name__})")
    return [
        replace(o, status=Status.UNVERIFIED, reason=f"{o.reason} But {missing[o.action.id]}.")
        if o.action.id in missing and o.action.id in applied
        else o
        for o in outcomes
    ]


def _rows_checked(primitive: Primitive, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Look whether rows hold what was written, and mark the outcomes of those of which that cannot be said."""
    asked = {o.action.id for o in outcomes if o.status is Status.APPLIED and o.action.kind is Kind.UPDATE}
    if not asked:
        return outcomes
    try:
        lost = row_batches.unproven(primitive, asked)
    except Exception as error:  # noqa: BLE001 - as above
        lost = dict.fromkeys(asked, f"it could not be looked for ({type(error).__name__})")
    return [
        replace(o, status=Status.UNVERIFIED, reason=f"{o.reason} But {lost[o.action.id]}.")
        if o.action.id in lost
        else o
        for o in outcomes
    ]


def _missing(broker: Broker, journal: Journal, epoch: int, actions: set[int]) -> dict[int, str]:
    """Return actions whose messages are not where they were put under this lock, each with what is missing."""
    expected: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    lost: dict[int, str] = {}
    for batch in journal.batches:
        if batch.order[0] != epoch:
            continue
        for n in journal.standing(batch):
            item = batch.items[n]
            if item.get("a") not in actions:
                continue
            if batch.receipt["op"] == "rename":
                lost |= _renamed(broker, item, batch, n)
            elif key := _where(batch, item):
                expected[key].append((item["sha"], item["a"]))
    lost |= _letters_lost(broker, journal, epoch, actions)
    for key, wanted in expected.items():
        absent = _absent(broker, key, wanted)
        if absent and broker.keys.quarantined(key):
            lost |= dict.fromkeys(absent, f"it is not in {key}")
        elif absent and not _consumed(broker, key):
            lost |= dict.fromkeys(absent, f"it is not in {key}, which no node consumes")
    return lost


def _letters_lost(broker: Broker, journal: Journal, epoch: int, actions: set[int]) -> dict[int, str]:
    """Return actions that sent letters of which not all are kept; what became of their messages, workers decide."""
    sent, of = Counter[str](), defaultdict[str, set[int]](set)
    for batch in journal.of("redrive", "redrive"):
        kept = str(batch.receipt["kept"])
        sent[kept] += sum(map(batch.done, range(len(batch.items))))
        if batch.order[0] == epoch:
            of[kept] |= {int(item["a"]) for item in batch.items}
    lost: dict[int, str] = {}
    for kept, count in sent.items():
        short = count - broker.reads.llen(raw_name(kept))
        if short > 0:
            lost |= dict.fromkeys(of[kept] & actions, f"{short:,} letters are not kept in {kept}")
    return lost


def _where(batch: Batch, item: Mapping[str, Any]) -> str:
    """Return the list that an item was moved to; empty if it is none."""
    if batch.receipt["op"] == "deal":
        return next((to for _, _, to, _, _ in batch.receipt["runs"] if to != batch.receipt["list"]), "")
    return "" if batch.receipt["op"] not in {"move", "send"} or item["to"][1] else str(item["to"][0])


def _renamed(broker: Broker, item: Mapping[str, Any], batch: Batch, n: int) -> dict[int, str]:
    length = broker.reads.llen(raw_name(item["to"]))
    short = int(batch.place(n) or 0) - length
    return {int(item["a"]): f"{short:,} messages are not in {item['to']}"} if short > 0 else {}


def _absent(broker: Broker, key: str, wanted: Sequence[tuple[str, int]]) -> set[int]:
    """Return the actions whose messages a list does not hold."""
    left: defaultdict[str, list[int]] = defaultdict(list)
    for sha, action in wanted:
        left[sha].append(action)
    for raw in windows.likely(broker, key):
        actions = left.get(digest(raw))
        if actions:
            actions.pop()
        if not any(left.values()):
            break
    return {action for actions in left.values() for action in actions}


def _consumed(broker: Broker, key: str) -> bool:
    found = broker.keys.queue_of(key)
    name = found[0] if found else key
    said = pidbox.order(broker, pidbox.Call(method="active_queues"), timeout_s=_ANSWER_S).values()
    every = [each for queues in said if isinstance(queues, list) for each in queues]
    return any(isinstance(each, dict) and each.get("name") == name for each in every)
