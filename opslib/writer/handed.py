"""Saved states of tasks → copies for the tasks that go on from them, each naming the other; and back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opslib import checkpoints, settings
from opslib.envelope import Unreadable, digest
from opslib.keys import raw_name
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import points, stored, vault
from opslib.writer.primitive import Primitive
from opslib.writer.vault import Kept

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.journal import Batch, Journal

#: What one of our own is called, beside the names of an application's keys.
OWN = "checkpoint"
_WHY_NOT = {
    "G": "The state is gone: it expired, or its task removed it.",
    "C": "The state was written again since it was planned: its task goes on, or was resumed by somebody else.",
    "X": "The task that would go on has a state already.",
}
_NOT_BACK = {
    "G": "The old state is gone; the copy stays.",
    "C": "One of the two was written since: the task that goes on has begun. Both stay as they are.",
    "E": "The old state would have expired meanwhile; its value is in the vault.",
}
_SENT = "The message of the task that goes on was not taken back, so its state stays with it."
NOT_HANDED = "The state that it goes on from was not handed over, so it was not sent."


def key_of(broker: Broker, name: str, task_id: str) -> str:
    """Return the key of a task's state; empty if there is none of that name, or the id would make another key of it."""
    if name == OWN:
        return broker.keys.checkpoint(task_id)
    app_key = broker.target.app_keys.get(name)
    key = app_key.key(task_id) if app_key and app_key.state else ""
    return "" if not key or broker.keys.is_reserved(key) else key


def hand(primitive: Primitive, actions: Sequence[Action], path: Path) -> list[Outcome]:
    """Save the states to the vault, and hand over those that are still as they were seen."""
    outcomes: list[Outcome] = []
    found: list[tuple[Action, bytes, bytes, bytes, int | None]] = []
    for action in actions:
        read = _read(primitive, action)
        if isinstance(read, Outcome):
            outcomes.append(read)
        else:
            found.append((action, *read))
    if not found:
        return outcomes
    header = vault.Header(
        run_id=primitive.run_id, target=primitive.broker.target.name, broker=primitive.broker.fingerprint
    )
    until = {action.id: _until(primitive, life) for action, *_, life in found}
    vault.write(
        path,
        header,
        (
            Kept(key=raw_name(action.copies[0].key), type="string", parts=(raw,), expires_at_ms=until[action.id])
            for action, raw, *_ in found
        ),
    )
    points.passed("after-vault")
    where = str(path.relative_to(settings.reports_root()))
    for some in stored.batches(found, lambda each: 2 * len(each[1])):
        items: list[Mapping[str, Any]] = []
        orders = []
        for action, raw, copy, marked, life in some:
            key, new_key = action.copies[0].key, key_of(primitive.broker, action.source, action.destination)
            known = {"a": action.id, "s": action.subject, "t": action.task, "key": key, "to": new_key}
            shas = {"copy": digest(copy), "marked": digest(marked), "until": until[action.id], "vault": where}
            items.append({**known, "new": action.destination, **shas})
            orders.append((key, new_key, "hand", raw, b"", marked, copy, _life(raw, life, own=action.source == OWN)))
        letters = _call(primitive, "hand", orders, items)
        outcomes += [
            Outcome(action=action, status=Status.APPLIED, reason=f"{action.destination} has it now.")
            if letter == "A"
            else Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[letter])
            for (action, *_), letter in zip(some, letters, strict=True)
        ]
    return outcomes


def ready(actions: Sequence[Action], outcomes: Sequence[Outcome]) -> tuple[list[Action], list[Outcome]]:
    """
    Split what is to be sent by whether the states were handed over that it goes on from.

    Args:
        outcomes: Of what this run has done so far.
    """
    failed = {
        each.action.destination
        for each in outcomes
        if each.action.kind is Kind.HANDOVER and each.status is not Status.APPLIED
    }
    held = [a for a in actions if a.kind is Kind.SEND and a.subject in failed]
    return [a for a in actions if a not in held], [
        Outcome(action=action, status=Status.SKIPPED, reason=NOT_HANDED) for action in held
    ]


def put_back(primitive: Primitive, actions: Sequence[Action], journal: Journal) -> list[Outcome]:
    """
    Take copies away again, and write the old states as they were; not of tasks whose message is out.

    Args:
        journal: As it is now, after messages were taken back.
    """
    batches = {batch.number: batch for batch in journal.batches}
    out = {
        str(batch.items[n]["s"])
        for batch in journal.batches
        if batch.receipt.get("op") == "send"
        for n in journal.standing(batch)
    }
    outcomes = []
    for action in actions:
        number, n = action.copies[0].key, int(action.copies[0].delivery_tag)
        if str(batches[number].items[n]["new"]) in out:
            outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=_SENT))
            continue
        letter = _back(primitive, batches[number], n)
        done = letter == "A"
        reason = "As it was, and the copy is gone." if done else _NOT_BACK[letter]
        outcomes.append(Outcome(action=action, status=Status.APPLIED if done else Status.SKIPPED, reason=reason))
    return outcomes


def _back(primitive: Primitive, batch: Batch, n: int) -> str:
    item = batch.items[n]
    old, new = (cast("bytes | None", primitive.broker.reads.get(raw_name(item[each]))) for each in ("key", "to"))
    if old is None:
        return "G"
    if digest(old) != item["marked"] or (new is not None and digest(new) != item["copy"]):
        return "C"
    now_ms = int(primitive.broker.server_time().timestamp() * 1000)
    until = item["until"]
    if until is not None and int(until) <= now_ms:
        return "E"
    at = (batch.number, n)
    kept = stored.from_vaults([(item, "", at)])[str(item["key"])]
    life = "" if until is None else str(int(until) - now_ms)
    order = (item["key"], item["to"], "back", old, new or b"", kept.parts[0], b"", life)
    return _call(primitive, "back", [order], [{**item, "undoes": list(at)}])


_Order = tuple[str, str, str, bytes, bytes, bytes, bytes, str]


def _call(primitive: Primitive, role: str, orders: Sequence[_Order], items: Sequence[Mapping[str, Any]]) -> str:
    keys = primitive.keys()
    given: list[bytes | str | float] = []
    for order in orders:
        old, new, *_ = order
        given += [keys.number(old), keys.number(new)]
        given += order[2:]
    receipt = {"op": "hand", "role": role, "items": list(items)}
    about = {role: [[item["key"], item["to"]] for item in items]}
    return primitive.call("hand", keys, given, receipt=receipt, about=about).letters


def _read(primitive: Primitive, action: Action) -> tuple[bytes, bytes, bytes, int | None] | Outcome:
    """Return a state as it is, the copy, the state as it will be, and its life in ms; or why it is not handed over."""
    name = raw_name(action.copies[0].key)
    reads = primitive.broker.reads
    if reads.type(name) not in {b"string", b"none"} or reads.strlen(name) > checkpoints.MOST_STATE_BYTES:
        return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT["C"])
    raw, life = cast("bytes | None", reads.get(name)), int(reads.pttl(name))
    if raw is None:
        return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT["G"])
    if action.copies[0].sha256 != digest(raw):
        return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT["C"])
    try:
        copy, marked = checkpoints.handed(raw, old=action.subject, new=action.destination)
    except ValueError as error:
        return Outcome(action=action, status=Status.FAILED, reason=f"The state cannot be copied: {str(error)[:100]}.")
    return raw, copy, marked, life if life >= 0 else None


def _life(raw: bytes, life: int | None, *, own: bool) -> str:
    """Return how long both are kept from now on: what is left, and never shorter than a new one would be."""
    found = checkpoints.state(raw, own=own)
    full_s = checkpoints.LIFE_S if isinstance(found, Unreadable) else found.life_s
    return "" if life is None or not full_s else str(max(life, int(full_s * 1000)))


def _until(primitive: Primitive, life: int | None) -> int | None:
    return None if life is None else int(primitive.broker.server_time().timestamp() * 1000) + life
