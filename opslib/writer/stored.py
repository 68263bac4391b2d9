"""Keys to remove or to let expire → their values in the run's vault first, then gone; and back again from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from opslib import pieces, settings, values
from opslib.errors import Refused
from opslib.keys import key_name, raw_name
from opslib.plan import Action, Outcome, Status
from opslib.writer import points, scripts, vault
from opslib.writer.primitive import Primitive
from opslib.writer.vault import Kept

#: What an element costs beside its bytes, in a batch.
_ELEMENT = 500
_PER_BATCH = 50
T = TypeVar("T")
#: Verb, key, type, fingerprint, life to give, life as seen, parts; what keys.lua takes for one key.
_Order = tuple[str, str, str, str, int | str, str, tuple[bytes, ...]]
_BATCH_BYTES = 1024 * 1024

_WHY_NOT = {
    "G": "It is gone: it expired, or somebody removed it.",
    "C": "It was written again since it was planned.",
    "X": "A key of that name exists again; it was left as it is.",
}


def delete(primitive: Primitive, actions: Sequence[Action], path: Path) -> list[Outcome]:
    """Save what the keys hold to the vault, and remove those that still hold it."""
    outcomes: list[Outcome] = []
    kept: list[tuple[Action, Kept, str]] = []
    for action in actions:
        found = read(primitive, action.copies[0].key)
        if isinstance(found, str):
            outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=found))
        elif action.copies[0].sha256 not in {"", values.digest(found[0].type, found[0].parts)}:
            outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=_WHY_NOT["C"]))
        else:
            kept.append((action, *found))
    if not kept:
        return outcomes
    header = vault.Header(
        run_id=primitive.run_id, target=primitive.broker.target.name, broker=primitive.broker.fingerprint
    )
    vault.write(path, header, (each for _, each, _ in kept))
    points.passed("after-vault")
    where = str(path.relative_to(settings.reports_root()))
    for some in batches(kept, lambda each: _weight(each[1].parts)):
        items = [
            {"a": a.id, "s": a.subject, "key": a.copies[0].key, "until": k.expires_at_ms, "vault": where}
            for a, k, _ in some
        ]
        orders = [("delete", a.copies[0].key, k.type, print_, "", "", ()) for a, k, print_ in some]
        letters = _call(primitive, "delete", orders, items)
        outcomes += [
            Outcome(action=a, status=Status.APPLIED, reason="Removed; its value is in the vault.")
            if letter == "A"
            else Outcome(action=a, status=Status.SKIPPED, reason=_WHY_NOT[letter])
            for (a, _, _), letter in zip(some, letters, strict=True)
        ]
    return outcomes


def expire(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """Give keys a life; how long they had is in the journal."""
    now_ms = int(primitive.broker.server_time().timestamp() * 1000)
    reason = "It says no life that a key could have."
    outcomes = [Outcome(action=a, status=Status.SKIPPED, reason=reason) for a in actions if not _lives(a)]
    actions = [a for a in actions if _lives(a)]
    for start in range(0, len(actions), _PER_BATCH):
        some = actions[start : start + _PER_BATCH]
        items = [{"a": a.id, "s": a.subject, "key": a.copies[0].key, "at": now_ms} for a in some]
        orders = [
            ("expire", a.copies[0].key, "", "", max(1, int((a.ttl_s or 0) * 1000)), _life(a.copies[0].life_s), ())
            for a in some
        ]
        letters = _call(primitive, "expire", orders, items)
        outcomes += [
            Outcome(action=a, status=Status.APPLIED, reason=f"It expires in {a.ttl_s:.0f} s.")
            if letter == "A"
            else Outcome(action=a, status=Status.SKIPPED, reason=_WHY_NOT[letter])
            for a, letter in zip(some, letters, strict=True)
        ]
    return outcomes


def _lives(action: Action) -> bool:
    return action.ttl_s is not None and action.ttl_s > 0


def put_back(primitive: Primitive, items: Sequence[tuple[Mapping[str, Any], str, tuple[str, int]]]) -> list[str]:
    """
    Write removed keys again from their vault, with the instant at which they were to expire; or give lives back.

    Args:
        items: Receipts, the life in ms that the script saw, and what each undoes.

    Returns:
        A letter for each; E for one that would have expired meanwhile.

    Raises:
        Refused: If a vault is missing or damaged; nothing was written.
    """
    now_ms = int(primitive.broker.server_time().timestamp() * 1000)
    kept_values = from_vaults(items)
    letters = ["E"] * len(items)
    orders: list[tuple[int, _Order, dict[str, Any]]] = []
    for at, (item, life, undoes) in enumerate(items):
        key, until = str(item["key"]), item.get("until")
        receipt = {**item, "undoes": list(undoes)}
        if "vault" not in item:
            left = "" if int(life) < 0 else max(1, int(life) - (now_ms - int(item["at"])))
            orders.append((at, ("expire", key, "", "", left, "", ()), receipt))
        elif until is None or int(until) > now_ms:
            kept = kept_values[key]
            left = "" if until is None else int(until) - now_ms
            orders.append((at, ("put", key, kept.type, "", left, "", kept.parts), receipt))
    for some in batches(orders, lambda each: _weight(each[1][-1])):
        said = _call(primitive, "put", [order for _, order, _ in some], [receipt for *_, receipt in some])
        for (at, *_), letter in zip(some, said, strict=True):
            letters[at] = letter
    return letters


def read(primitive: Primitive, key: str) -> tuple[Kept, str] | str:
    """Return what a key holds and its fingerprint, or why it cannot be kept."""
    name = raw_name(key)
    weight = primitive.broker.reads.memory_usage(name) or 0
    if weight > values.MOST_BYTES and primitive.broker.reads.type(name) != b"string":
        return values.too_large("", 0, weight)
    text = scripts.text("read_key")
    answer = cast("list[Any]", primitive.broker.writes.eval(text, 1, name, values.MOST_ELEMENTS))
    kind = answer[0].decode()
    if kind == "none":
        return _WHY_NOT["G"]
    if kind == "TOOLARGE":
        return values.too_large("", int(answer[1]), 0)
    if len(answer) == 1:
        return values.not_kept(kind)
    life = int(answer[1])
    expires_at_ms = None if life < 0 else int(primitive.broker.server_time().timestamp() * 1000) + life
    return Kept(key=name, type=kind, parts=tuple(answer[3]), expires_at_ms=expires_at_ms), answer[2].decode()


def remove(primitive: Primitive, action: Action, where: str) -> str:
    """Remove a list whose messages are in a vault already; return a letter."""
    key = action.copies[0].key
    items = [{"a": action.id, "s": action.subject, "key": key, "vault": where}]
    return _call(primitive, "drop", [("delete", key, "", "", "", "", ())], items)


def _call(primitive: Primitive, role: str, orders: Sequence[_Order], items: Sequence[Mapping[str, Any]]) -> str:
    keys = primitive.keys()
    given: list[bytes | str | float] = []
    for verb, key, kind, print_, life, was, parts in orders:
        given += [keys.number(key), verb, kind, print_, life, was, len(parts), *parts]
    receipt = {"op": "keys", "role": role, "items": list(items)}
    return primitive.call("keys", keys, given, receipt=receipt, about={role: [item["key"] for item in items]}).letters


def _weight(parts: Sequence[bytes]) -> int:
    return sum(map(len, parts)) + _ELEMENT * len(parts)


def batches(each_of: Sequence[T], weight_of: Callable[[T], int], most: int = 0) -> Iterator[list[T]]:
    """Cut by number and by bytes."""
    return pieces.cut(each_of, weight_of, most_bytes=_BATCH_BYTES, most=lambda: most or _PER_BATCH)


def from_vaults(items: Sequence[tuple[Mapping[str, Any], str, tuple[str, int]]]) -> dict[str, Kept]:
    """Return what vaults keep of keys, by the names of those; raise `Refused` unless all of it is there."""
    wanted = {raw_name(str(item["key"])) for item, _, _ in items if "vault" in item}
    found: dict[str, Kept] = {}
    for where in sorted({str(item["vault"]) for item, _, _ in items if "vault" in item}):
        path = (settings.reports_root() / where).resolve()
        if not path.is_relative_to(settings.reports_root().resolve()):
            raise Refused(f"The journal names a vault outside the archive: {where}.")
        _, entries = vault.read(path)
        found |= {key_name(k.key): k for k in entries if k.key in wanted}
    missing = wanted - {raw_name(name) for name in found}
    if missing:
        raise Refused(f"The vault does not hold {len(missing)} of the keys that were removed; nothing was put back.")
    return found


def _life(life_s: float | None) -> str:
    return "" if life_s is None else str(int(life_s * 1000))
