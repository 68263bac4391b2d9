"""Orders about consuming a queue → nodes that do or do not, as they say themselves, and a receipt that leads back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opslib import pidbox
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import journal as journals
from opslib.writer import nodes
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

#: What the journal calls such an order.
_OP = "consume"
_ANSWER_S = 2.0
_WITHIN_S = 6.0
_PAUSE_S = 0.2


def order(primitive: Primitive, action: Action) -> Outcome:
    """
    Have nodes consume a queue, or no longer; the journal knows before the nodes do.

    Nodes that are silent are not told, for nobody could tell afterwards which of them to tell the opposite; one that is
    started later consumes what its command line says.
    """
    broker = primitive.broker
    before, silent = _consuming(broker)
    named = set(filter(None, action.node.split(",")))
    concerned = sorted(
        node
        for node, queues in before.items()
        if (action.subject in queues) is (action.kind is Kind.PAUSE) and (not named or node in named)
    )
    if named:  # of the others, nobody asked
        silent = len(named - before.keys())
    unseen = f"{silent} silent node{'s' * (silent != 1)}" if silent else ""
    if not concerned and not silent:
        already = "consumes it any more" if action.kind is Kind.PAUSE else "has to begin: all do"
        return Outcome(action=action, status=Status.SKIPPED, reason=f"No node {already}.")
    known = _declared(primitive, action)
    items = [
        {"a": action.id, "s": action.subject, "node": node, "declared": before[node].get(action.subject) or known(node)}
        for node in concerned
    ]
    nodes.write_down(primitive, action.kind, items, op=_OP)
    _tell(broker, action.kind, items)
    left = _left(broker, action.kind, action.subject, concerned)
    if left or silent:
        others = ", ".join(node for node in concerned if node not in left)
        obeyed = f" {others} obeyed." if others else ""
        again = " A silent node was not told: run this again once it answers." if silent else ""
        reason = f"Not known of {', '.join(filter(None, [*left, unseen]))}.{obeyed}{again}"
        return Outcome(action=action, status=Status.UNVERIFIED, reason=reason)
    verb = "No longer consumed" if action.kind is Kind.PAUSE else "Consumed"
    return Outcome(action=action, status=Status.APPLIED, reason=f"{verb} by {', '.join(concerned)}.")


def _declared(primitive: Primitive, action: Action) -> Callable[[str], Mapping[str, Any]]:
    """Return what says how a node had declared a queue that this run had it let go, and is to take up again."""
    found: dict[str, Mapping[str, Any]] = {}
    if action.kind is Kind.RESUME:
        for batch in journals.read(primitive.broker, primitive.run_id).of(_OP, str(Kind.PAUSE)):
            found |= {str(i["node"]): i.get("declared") or {} for i in batch.items if i["s"] == action.subject}
    return lambda node: found.get(node, {})


def put_back(primitive: Primitive, item: Mapping[str, Any], undoes: tuple[str, int], role: str) -> bool:
    """Undo an order to one node; answer whether the node says that it did."""
    kind = Kind.RESUME if role == Kind.PAUSE else Kind.PAUSE
    items = [{**item, "undoes": list(undoes)}]
    _tell(primitive.broker, kind, items)
    done = not _left(primitive.broker, kind, str(item["s"]), [str(item["node"])])
    if done:
        nodes.write_down(primitive, kind, items, op=_OP)
    return done


def _tell(broker: Broker, kind: Kind, items: Sequence[Mapping[str, Any]]) -> None:
    """Give the orders, each node's with what it had declared of the queue."""
    for item in items:
        arguments: dict[str, object] = {"queue": item["s"]}
        declared = item.get("declared") or {}
        if kind is Kind.RESUME and declared:
            said = declared.get("exchange")
            exchange = said if isinstance(said, dict) else {}
            arguments |= {
                "exchange": exchange.get("name") or "",
                "exchange_type": exchange.get("type") or "direct",
                "routing_key": declared.get("routing_key") or item["s"],
            }
        method = "add_consumer" if kind is Kind.RESUME else "cancel_consumer"
        nodes.tell(broker, method, arguments, [str(item["node"])])


def _left(broker: Broker, kind: Kind, queue: str, names: Sequence[str]) -> list[str]:
    """Wait until the nodes say that they do as told; return those that do not."""
    deadline = time.monotonic() + _WITHIN_S
    while True:
        now, _ = _consuming(broker)
        left = [node for node in names if (queue in now.get(node, {})) is not (kind is Kind.RESUME) or node not in now]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_PAUSE_S)


def _consuming(broker: Broker) -> tuple[dict[str, dict[str, Any]], int]:
    """Return what each node consumes, and how many nodes heard the question and stay silent."""
    answers = pidbox.ask(broker, [pidbox.Call(method="active_queues")], timeout_s=_ANSWER_S)
    queues = {
        node: {str(each.get("name")): each for each in some if isinstance(each, dict)}
        for node, raw in answers.replies["active_queues"].items()
        if isinstance(some := pidbox.read(raw), list)
    }
    return queues, max(0, answers.receivers - len(queues))
