"""A plan that puts things back → each of them where it was, or why it is not there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from opslib import pidbox
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import (
    consumers,
    handed,
    lists,
    nodes,
    pools,
    rates,
    recalled,
    repair,
    row_batches,
    stored,
    swept,
    switched,
    temporary,
    updated,
)
from opslib.writer import journal as journals
from opslib.writer.journal import Batch, Journal
from opslib.writer.moves import MOVED, MOVED_NEXT, UNDONE, Move, Mover, Place, old_bytes
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

_ANSWER_S = 2.0
#: Messages put back in one go: their bytes are in memory until then.
_PER_GO = 500
_NOT_THERE = (
    "It was not found where the run put it, near either end: a worker has taken it meanwhile, or somebody moved or "
    "dropped it."
)


def carry_out(primitive: Primitive, mover: Mover, actions: Sequence[Action]) -> list[Outcome]:
    """Put things back, the latest first; what a worker took, or what was written anew, is left alone and told."""
    lists.settle(primitive)
    journal = journals.read(primitive.broker, primitive.run_id)
    batches = {batch.number: batch for batch in journal.batches}
    remembered = _remembered(primitive.broker, journal)
    outcomes: list[Outcome] = []
    for op, some in groupby(actions, key=lambda action: _op(batches, action)):
        if op in {"move", "send"}:
            outcomes += _moves_back(primitive, mover, list(some), batches, remembered)
        elif op == "hand":
            outcomes += handed.put_back(primitive, list(some), journals.read(primitive.broker, primitive.run_id))
        elif op == "keys":
            outcomes += _keys_back(primitive, list(some), batches)
        elif op == "switch":
            outcomes += [switched.put_back(primitive, each, batches[each.copies[0].key]) for each in some]
        elif op == temporary.OP:
            outcomes += [temporary.put_back(primitive, each, _items(batches, each)) for each in some]
        elif op == row_batches.OP:
            outcomes += updated.put_back(primitive, list(some))
        elif op == swept.OP:
            outcomes += [swept.put_back(primitive, action) for action in some]
        elif op == "redrive":
            outcomes += [recalled.recall(mover, action) for action in some]
        elif op == "node":
            outcomes += [_order_back(primitive, action, batches) for action in some]
        else:
            outcomes += [
                _kept_back(action, why)
                if (why := _dropped_at_once(journal, action, remembered))
                else _back(primitive, action, batches)
                for action in some
            ]
    return outcomes


def _dropped_at_once(journal: Journal, action: Action, remembered: Mapping[str, str]) -> str:
    """Return why a node would drop what an action puts back; empty if none would."""
    copy = action.copies[0]
    subjects = {action.subject}
    if copy.place == "pass":
        subjects |= {
            str(item["s"]) for batch in journal.of("deal", "sieve", **{"pass": copy.key}) for item in batch.items
        }
    return next((why for task_id, why in remembered.items() if task_id in subjects), "")


def _kept_back(action: Action, why: str) -> Outcome:
    reason = (
        f"{why}, so that it would be dropped at once and lost: restart each such node, then undo again. It stays kept."
    )
    return Outcome(action=action, status=Status.FAILED, reason=reason)


def _op(batches: Mapping[str, Batch], action: Action) -> str:
    """Return what kind of change an action puts back; empty for a whole list."""
    copy = action.copies[0]
    if copy.place == "redriven":
        return "redrive"
    if copy.place in {swept.OP, row_batches.OP}:
        return copy.place
    return str(batches[copy.key].receipt.get("op")) if copy.place == "journal" else ""


def _remembered(broker: Broker, journal: Journal) -> dict[str, str]:
    """Return the ids that this run had revoked and that a node would drop at once, each with why."""
    ids = {str(item["s"]) for batch in journal.of("note", "revoke") for item in batch.items}
    if not ids:
        return {}
    answers = pidbox.ask(broker, [pidbox.Call(method="revoked")], timeout_s=_ANSWER_S)
    silent = answers.receivers - len(answers.replies["revoked"])
    if silent > 0:
        why = f"{silent} node{'s' * (silent != 1)} did not say whether they remember the revoke"
        return dict.fromkeys(ids, why)
    told = answers.replies["revoked"].items()
    having = {task_id: sorted(node for node, raw in told if task_id.encode() in raw) for task_id in ids}
    return {
        task_id: f"{'each of ' * (len(nodes) > 1)}{', '.join(nodes)} remembers the revoke"
        for task_id, nodes in having.items()
        if nodes
    }


def _moves_back(
    primitive: Primitive,
    mover: Mover,
    actions: Sequence[Action],
    batches: Mapping[str, Batch],
    remembered: Mapping[str, str],
) -> list[Outcome]:
    outcomes = {
        action.id: _kept_back(action, remembered[action.subject]) for action in actions if action.subject in remembered
    }
    wanted = [
        (action, batches[copy.key], int(copy.delivery_tag))
        for action in actions
        if action.id not in outcomes
        for copy in action.copies
    ]
    letters: defaultdict[int, list[str]] = defaultdict(list)
    for start in range(0, len(wanted), _PER_GO):
        some = wanted[start : start + _PER_GO]
        found = recalled.arrived(primitive.broker, [batch.items[n] for _, batch, n in some])
        moves = [
            (action, _reverse(primitive, batch, n, found[batch.items[n]["sha"]], action))
            for action, batch, n in some
            if batch.items[n]["sha"] in found
        ]
        for action, batch, n in some:
            if batch.items[n]["sha"] not in found:
                letters[action.id].append("G")
        for (action, _), letter in zip(moves, mover.move([move for _, move in moves]), strict=True):
            letters[action.id].append(letter)
    for action in actions:
        if action.id not in outcomes:
            outcomes[action.id] = _moved_back(action, letters[action.id], mover)
    return [outcomes[action.id] for action in actions]


def _moved_back(action: Action, letters: Sequence[str], mover: Mover) -> Outcome:
    back = sum(1 for letter in letters if letter in {MOVED, MOVED_NEXT})
    if UNDONE in letters:
        return Outcome(action=action, status=Status.FAILED, reason=mover.halted)
    if not back:
        taken = "X" in letters
        reason = "Something with its delivery tag is there again; it stays in quarantine." if taken else _NOT_THERE
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    if action.destination == "quarantine":
        return Outcome(action=action, status=Status.APPLIED, reason="Taken back; it is kept in quarantine.")
    where = "where it was" if MOVED_NEXT not in letters else "next to be served, for the queue has moved on"
    gone = f" {len(letters) - back} of {len(letters)} were taken meanwhile." if back < len(letters) else ""
    if mover.primitive.broker.keys.quarantined(action.destination):
        reason = f"Back in quarantine, on the way to {'its place' if back == 1 else 'their places'}.{gone}"
        return Outcome(action=action, status=Status.APPLIED, reason=reason)
    return Outcome(action=action, status=Status.APPLIED, reason=f"Back in {action.destination}, {where}.{gone}")


def _reverse(primitive: Primitive, batch: Batch, n: int, arrived: bytes, action: Action) -> Move:
    """Return the move that takes a message from where a run put it to where it had been; one that was sent, nowhere."""
    item = batch.items[n]
    if batch.receipt["op"] == "send":
        space, key = primitive.broker.keys, str(item["to"][0])
        kept = space.quarantine(primitive.run_id, key.removeprefix(space.prefix))
        return Move(
            action=action.id,
            subject=str(item["s"]),
            task=str(item.get("t", "")),
            source=Place(key=key),
            destination=Place(key=kept),
            seen=arrived,
            undoes=(batch.number, n),
        )
    key, index, tag, score = item["from"]
    seen = batch.place(n)
    served = "next"
    if not index and seen:
        place, _, length = seen.partition("/")
        same_list = item["from"][0] == item["to"][0]
        served = f"{place}/{int(length) - (not same_list)}"
    to_key, to_index, to_tag, to_score = item["to"]
    return Move(
        action=action.id,
        subject=str(item["s"]),
        task=str(item.get("t", "")),
        source=Place(key=to_key, index=to_index, tag=to_tag, score=to_score),
        destination=Place(key=key, index=index, tag=tag, score=(seen or score) if index else None, served=served),
        seen=arrived,
        written=old_bytes(item, arrived),
        undoes=(batch.number, n),
    )


def _items(batches: Mapping[str, Batch], action: Action) -> list[temporary.Put]:
    """Return what an action puts back, as the journal has it, and where in the journal."""
    places = [(copy.key, int(copy.delivery_tag)) for copy in action.copies]
    return [(batches[number].items[n], (number, n)) for number, n in places]


def _keys_back(primitive: Primitive, actions: Sequence[Action], batches: Mapping[str, Batch]) -> list[Outcome]:
    """Write removed keys again, and give lives back."""
    items = []
    for action in actions:
        number, n = action.copies[0].key, int(action.copies[0].delivery_tag)
        items.append((batches[number].items[n], batches[number].place(n), (number, n)))
    return [
        Outcome(action=action, status=Status.APPLIED, reason="As it was.")
        if letter == MOVED
        else Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT.get(letter, _NOT_THERE))
        for action, letter in zip(actions, stored.put_back(primitive, items), strict=True)
    ]


def _order_back(primitive: Primitive, action: Action, batches: Mapping[str, Batch]) -> Outcome:
    """Have nodes do the opposite of what they were told."""
    if batches[action.copies[0].key].receipt["role"] == Kind.LIMIT:
        return rates.put_back(primitive, action, batches)
    return pools.put_back(primitive, action, batches)


def _back(primitive: Primitive, action: Action, batches: Mapping[str, Batch]) -> Outcome:
    """Put one thing back that is no single message."""
    copy = action.copies[0]
    if copy.place == "full":
        done = lists.unrename(primitive, copy.queue, copy.key)
        return Outcome(
            action=action,
            status=Status.APPLIED if done == MOVED else Status.SKIPPED,
            reason="As it was." if done == MOVED else _NOT_THERE,
        )
    if copy.place == "aside":
        count = lists.finish(primitive, copy.queue) or copy.count
        return Outcome(action=action, status=Status.APPLIED, reason=f"{count:,} messages are back, in their order.")
    if copy.place == "pass":
        count, where = lists.unsieve(primitive, copy.queue, copy.key)
        if not count:
            return Outcome(action=action, status=Status.SKIPPED, reason=_NOT_THERE)
        words = "messages are" if count != 1 else "message is"
        return Outcome(action=action, status=Status.APPLIED, reason=f"{count:,} {words} back, {where}.")
    batch, n = batches[copy.key], int(copy.delivery_tag)
    item, op, at = batch.items[n], batch.receipt["op"], (copy.key, int(copy.delivery_tag))
    if op == "rename":
        letter = lists.unpurge(primitive, batch, n)
    elif op == "index":
        letter = repair.put_back(primitive, item, batch.place(n), at)
    else:
        letter = _consuming_back(primitive, item, at, str(batch.receipt["role"]))
    if letter == MOVED:
        reason = f"{copy.count:,} messages are back." if op == "rename" else "As it was."
        return Outcome(action=action, status=Status.APPLIED, reason=reason)
    if letter == "S":
        return Outcome(action=action, status=Status.FAILED, reason=f"{item['node']} did not do as it was told.")
    return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT.get(letter, _NOT_THERE))


def _consuming_back(primitive: Primitive, item: Mapping[str, Any], at: tuple[str, int], role: str) -> str:
    """Undo an order about a queue; of a node that is gone there is nothing to undo."""
    there, _, silent = nodes.look(primitive.broker)
    if item["node"] not in there and not silent:
        return "D"
    return MOVED if consumers.put_back(primitive, item, at, role) else "S"


_WHY_NOT = {
    "D": "That node is gone: once it is started again, it consumes what its command line says.",
    "X": "A key of that name exists again; it was left as it is.",
    "C": "It was changed again meanwhile; it was left as it is.",
    "E": "It would have expired meanwhile; its value is in the vault.",
}
