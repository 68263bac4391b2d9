"""More or fewer processes for a node → its pool's new size, as it says itself, and a receipt that leads back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opslib import pidbox
from opslib.facts.system import NodeInfo
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import nodes
from opslib.writer.journal import Batch
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

#: So many at once; each is a process that needs memory.
MOST = 100
_ANSWER_S = 2.0
#: A node looks after its pool every five seconds.
_WITHIN_S = 12.0
_PAUSE_S = 0.1


def resize(primitive: Primitive, action: Action) -> Outcome:
    """
    Add processes to a node's pool, or take some away; the journal knows before the node does.

    Processes are taken away one by one: a node that has not as many idle ones would take away what it has, answer an
    error, and be wrong about its prefetch from then on.
    """
    by = int(action.destination) if action.destination.isdecimal() else 0
    there, _, silent = nodes.look(primitive.broker)
    node = there.get(action.subject)
    if node is None:
        reason = f"{action.subject} is not among the nodes that answer."
        left = f" Not known of {nodes.unseen(silent)}." if silent else ""
        return Outcome(action=action, status=Status.SKIPPED, reason=reason + left)
    if why := _why_not(action.kind, node, by):
        return Outcome(action=action, status=Status.SKIPPED, reason=why)
    was, name = node.concurrency, node.name
    item = {"a": action.id, "s": name, "node": name, "was": was}
    grows = action.kind is Kind.GROW
    for n in [by] if grows else [1] * by:
        number = nodes.write_down(primitive, action.kind, [item] * n)
        status, words = _ordered(primitive.broker, action.kind, name, n)
        if status is Status.FAILED:
            nodes.strike_out(primitive, action.kind, [(item, (number, k)) for k in range(n)])
        if status is not Status.APPLIED:
            return Outcome(action=action, status=status, reason=f"{words} {_size_words(primitive.broker, name, was)}")
    reason = f"{_size_words(primitive.broker, name, was)} It has its own number again once it is restarted."
    return Outcome(action=action, status=Status.APPLIED, reason=reason)


def put_back(primitive: Primitive, action: Action, batches: Mapping[str, Batch]) -> Outcome:
    """
    Take back what was added to a node, or add what was taken away; never beyond what it had.

    A node that was restarted has its own number again, and one that somebody else resized keeps what that one did.
    """
    orders = [(copy.key, int(copy.delivery_tag)) for copy in action.copies]
    items = [batches[number].items[n] for number, n in orders]
    kind, name = Kind(str(batches[orders[0][0]].receipt["role"])), str(items[0]["node"])
    there, _, _ = nodes.look(primitive.broker)
    if name not in there:
        reason = f"{name} does not answer. If it was restarted, it has its own number of processes again."
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    was, now = max(int(item["was"]) for item in items), there[name].concurrency
    by = min(len(items), max(0, now - was if kind is Kind.GROW else was - now))
    left = list(zip(items, orders, strict=True))
    nodes.strike_out(primitive, kind, left[by:])
    if not by:
        reason = f"It has {now}, as it had before: it was restarted or resized meanwhile."
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    left = left[:by]
    back = Kind.SHRINK if kind is Kind.GROW else Kind.GROW
    for n in [by] if back is Kind.GROW else [1] * by:
        status, words = _ordered(primitive.broker, back, name, n)
        if status is not Status.APPLIED:
            return Outcome(action=action, status=status, reason=f"{words} {_size_words(primitive.broker, name, now)}")
        nodes.strike_out(primitive, kind, left[:n])
        left = left[n:]
    return Outcome(action=action, status=Status.APPLIED, reason=_size_words(primitive.broker, name, now))


def _why_not(kind: Kind, node: NodeInfo, by: int) -> str:
    if not 1 <= by <= MOST:
        return f"It says no number from 1 to {MOST}."
    if not node.can_resize:
        pool = node.pool or "unknown"
        return f"Its pool ({pool}) cannot change its size while it runs; restart it with another --concurrency."
    if kind is Kind.SHRINK and node.concurrency - by < 1:
        return f"It has {node.concurrency}, and one has to stay: without any, it would take tasks and run none."
    return ""


def _ordered(broker: Broker, kind: Kind, name: str, n: int) -> tuple[Status, str]:
    """Give one order and wait until the pool has changed; return how that ended, with words where it did not."""
    before = _size(broker, name)
    grows = kind is Kind.GROW
    refused, mute = nodes.tell(broker, "pool_grow" if grows else "pool_shrink", {"n": n}, [name])
    if refused:
        return Status.FAILED, f"{name} says: {refused[name]}."
    if mute or before is None:
        return Status.UNVERIFIED, f"{name} did not answer, and may do as it was told later."
    deadline = time.monotonic() + _WITHIN_S
    while time.monotonic() < deadline:
        now = _size(broker, name)
        if now is not None and (now >= before + n if grows else now <= before - n):
            return Status.APPLIED, ""
        time.sleep(_PAUSE_S)
    return Status.UNVERIFIED, f"{name} agreed, and has not done so within {_WITHIN_S:.0f} s."


def _size(broker: Broker, name: str) -> int | None:
    """Return how many processes or slots a node has; None if it does not say."""
    call = pidbox.Call(method="stats", destination=(name,))
    answers = pidbox.ask(broker, [call], timeout_s=_ANSWER_S).replies["stats"]
    pool = nodes.decoded(answers[name]).get("pool") if name in answers else None
    if not isinstance(pool, dict):
        return None
    processes: Sequence[object] = pool.get("processes") or ()
    return len(processes) or int(pool.get("max-concurrency") or 0)


def _size_words(broker: Broker, name: str, was: int) -> str:
    now = _size(broker, name)
    return f"{name} has {now} by now, and had {was} before." if now is not None else f"It had {was} before."
