"""Orders to nodes → what they say of them, and a journal that knows of each before any node does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opslib import pidbox, redact
from opslib.collectors import workers
from opslib.facts.system import HeldTask, NodeInfo
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

_ANSWER_S = 2.0
#: Of what a node says when it refuses.
_QUOTED = 200
_FOR_GOOD = "`ops task stop` takes its message away."
#: Batch and item of the journal.
At = tuple[str, int]


def look(broker: Broker) -> tuple[dict[str, NodeInfo], list[HeldTask], int]:
    """Return the nodes that answer by name, what they hold, and how many heard the question or are missed."""
    rows, held, _, coverage = workers.read(broker, timeout_s=_ANSWER_S)
    return {row.name: row for row in rows if row.answered}, held, coverage.silent


def tell(
    broker: Broker, method: str, arguments: Mapping[str, object], names: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Give an order to these nodes; return what those say that refuse it, and the names of those that say nothing."""
    call = pidbox.Call(method=method, arguments=arguments, destination=tuple(names))
    said = pidbox.order(broker, call, timeout_s=_ANSWER_S)
    refused = {
        name: redact.plain(each["error"])[:_QUOTED]
        for name, each in said.items()
        if isinstance(each, dict) and "error" in each
    }
    return refused, [name for name in names if name not in said]


def write_down(primitive: Primitive, kind: Kind, items: Sequence[Mapping[str, Any]], op: str = "node") -> str:
    """Put orders into the journal before they are given; return the batch's number there."""
    done = primitive.call(
        "note",
        primitive.keys(),
        ["A" * len(items)],
        receipt={"op": op, "role": str(kind), "items": list(items)},
        about={str(kind): [[item["s"], item["node"]] for item in items]},
    )
    return done.number


def strike_out(primitive: Primitive, kind: Kind, orders: Sequence[tuple[Mapping[str, Any], At]]) -> None:
    """Have the journal know of orders that nobody obeyed, or that were taken back: there is nothing to undo of them."""
    if orders:
        items = [{"s": item["s"], "node": item["node"], "undoes": list(at)} for item, at in orders]
        write_down(primitive, kind, items)


def unseen(silent: int) -> str:
    """Return how many nodes did not answer, as words for the end of a sentence; empty for none."""
    return f"{silent} node{'s' * (silent != 1)} that did not answer" if silent else ""


def revoke(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """
    Tell every node that listens to drop these tasks, in one order; whoever runs one of them goes on.

    Only the nodes' memory knows of it. That undo puts nothing back which they would drop, it reads in the journal.
    """
    broker = primitive.broker
    ids = [action.subject for action in actions]
    if not pidbox.ask(broker, [pidbox.Call(method="ping")], timeout_s=_ANSWER_S).receivers:
        reason = f"No node listens, so that none would know of it. {_FOR_GOOD}"
        return [Outcome(action=action, status=Status.SKIPPED, reason=reason) for action in actions]
    note_revoked(primitive, actions)
    call = pidbox.Call(method="revoke", arguments={"task_id": ids, "terminate": False})
    answers = pidbox.ask(broker, [call], timeout_s=_ANSWER_S)
    silent = max(0, answers.receivers - len(answers.nodes))
    remembering = pidbox.order(broker, pidbox.Call(method="revoked"), timeout_s=_ANSWER_S)
    return [_revoked(action, sorted(answers.nodes), remembering, silent) for action in actions]


def note_revoked(primitive: Primitive, actions: Sequence[Action]) -> None:
    """Have the journal know of a revoke before any node does: whoever undoes this has to know that nodes remember."""
    items = [{"a": action.id, "s": action.subject} for action in actions]
    primitive.call(
        "note",
        primitive.keys(),
        ["A" * len(items)],
        receipt={"op": "note", "role": "revoke", "items": items},
        about={"revoke": [action.subject for action in actions]},
    )


def _revoked(action: Action, told: Sequence[str], remembering: Mapping[str, Any], silent: int) -> Outcome:
    """Return what became of one of the ids, by what the nodes say that they remember."""
    on = [name for name in told if isinstance(ids := remembering.get(name), list) and action.subject in ids]
    left = [*(name for name in told if name not in on), *filter(None, [unseen(silent)])]
    if left:
        done = f"Revoked on {', '.join(on)}. " if on else ""
        reason = f"{done}Not known of {', '.join(left)}: it may still run there. {_FOR_GOOD}"
        return Outcome(action=action, status=Status.UNVERIFIED, reason=reason)
    reason = (
        f"Revoked on {', '.join(on)}. It lives in their memory alone: a node that is restarted, or started without "
        f"hearing of it, runs the task all the same. {_FOR_GOOD}"
    )
    return Outcome(action=action, status=Status.APPLIED, reason=reason)


def decoded(raw: bytes) -> dict[str, Any]:
    """Return an answer that should be an object; an empty one if it is none."""
    value = pidbox.read(raw)
    return value if isinstance(value, dict) else {}
