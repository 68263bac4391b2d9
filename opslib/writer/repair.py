"""Delivery tags of which the unacked hash and its index do not agree → tags of which they do."""

from __future__ import annotations

from collections.abc import Sequence

from opslib.plan import Action, Outcome, Status
from opslib.writer.primitive import Primitive

_PER_BATCH = 100
_WHY_NOT = {
    "G": "Hash and index agree by now.",
    "C": "It was delivered again meanwhile.",
}


def repair(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """Index what only the hash has, as delivered now, so that Celery restores it; drop what only the index has."""
    outcomes: list[Outcome] = []
    now = primitive.broker.server_time().timestamp()
    for start in range(0, len(actions), _PER_BATCH):
        some = actions[start : start + _PER_BATCH]
        values: list[bytes | str | float] = []
        items = []
        for action in some:
            copy = action.copies[0]
            verb = "add" if copy.place == "unacked" else "drop"
            score = repr(now) if verb == "add" else "" if copy.score is None else repr(copy.score)
            values += [copy.delivery_tag, verb, score, "agree"]
            items.append({"a": action.id, "s": action.subject, "tag": copy.delivery_tag, "verb": verb, "score": score})
        letters = _call(primitive, values, "repair", items)
        outcomes += [
            Outcome(action=action, status=Status.APPLIED, reason="Hash and index agree.")
            if letter == "A"
            else Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT[letter])
            for action, letter in zip(some, letters, strict=True)
        ]
    return outcomes


def put_back(primitive: Primitive, item: dict[str, str], seen: str, undoes: tuple[str, int]) -> str:
    """Make them disagree again as they did; return a letter."""
    added = item["verb"] == "add"
    values = [item["tag"], "drop" if added else "add", item["score"] if added else seen, "undo"]
    return _call(primitive, values, "put-back", [{**item, "undoes": list(undoes)}])


def _call(
    primitive: Primitive, values: Sequence[bytes | str | float], role: str, items: Sequence[dict[str, object]]
) -> str:
    space = primitive.broker.keys
    keys = primitive.keys(space.unacked, space.unacked_index)
    receipt = {"op": "index", "role": role, "items": list(items)}
    return primitive.call("index", keys, values, receipt=receipt, about={role: [item["tag"] for item in items]}).letters
