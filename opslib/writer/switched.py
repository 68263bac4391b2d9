"""Entries of a schedule → left out by beat, or sent again; and back to how they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from opslib.envelope import digest
from opslib.keys import raw_name
from opslib.plan import Action, Outcome, Status
from opslib.writer import switched_rows
from opslib.writer.journal import Batch
from opslib.writer.primitive import Primitive

ON, OFF = "on", "off"
_FIELD = "definition"
_GONE = "The entry is gone: somebody has removed it."
_CHANGED = "The entry was written again since it was planned; look at it anew."
_WHY_NOT = {"G": _GONE, "C": _CHANGED}


def switch(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """Have beat leave entries out or send them, each only if it is as it was planned."""
    return [
        switched_rows.switch(primitive, action) if action.row is not None else _switched(primitive, action)
        for action in actions
    ]


def put_back(primitive: Primitive, action: Action, batch: Batch) -> Outcome:
    """Write an entry as it was, unless it was written since."""
    n = int(action.copies[0].delivery_tag)
    item = batch.items[n]
    if "row" in item:
        return switched_rows.put_back(primitive, action, item, (batch.number, n))
    undoes = {"undoes": [batch.number, n]}
    letter = _call(primitive, {**item, "was": item["is"], "is": item["was"], **undoes}, "back")
    if letter == "A":
        return Outcome(action=action, status=Status.APPLIED, reason="It is as it was.")
    return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[letter])


def _switched(primitive: Primitive, action: Action) -> Outcome:
    (copy,) = action.copies
    raw = cast("bytes | None", primitive.broker.reads.hget(raw_name(copy.key), _FIELD))
    if raw is None:
        return Outcome(action=action, status=Status.SKIPPED, reason=_GONE)
    if digest(raw) != copy.sha256:
        return Outcome(action=action, status=Status.SKIPPED, reason=_CHANGED)
    try:
        text = raw.decode()
        definition = {**json.loads(text), "enabled": action.destination == ON}
    except (ValueError, TypeError, RecursionError):
        return Outcome(action=action, status=Status.FAILED, reason="Its definition cannot be read.")
    item = {"a": action.id, "s": action.subject, "t": action.task, "key": copy.key}
    letter = _call(primitive, {**item, "was": text, "is": json.dumps(definition)}, "switch")
    if letter != "A":
        return Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[letter])
    said = "Beat sends it again." if action.destination == ON else "Beat leaves it out from now on."
    return Outcome(action=action, status=Status.APPLIED, reason=said)


def _call(primitive: Primitive, item: dict[str, object], role: str) -> str:
    keys = primitive.keys()
    key = str(item["key"])
    values: list[bytes | str | float] = [keys.number(key), str(item["was"]), str(item["is"])]
    receipt = {"op": "switch", "role": role, "items": [item]}
    return primitive.call("switch", keys, values, receipt=receipt, about={"schedule": key}).letters
