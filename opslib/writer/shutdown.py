"""An order to end → a node that ends once its tasks have; it sends no reply, so its silence is waited for elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from opslib import pidbox
from opslib.facts.system import NodeInfo
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import journal as journals
from opslib.writer import nodes, points

if TYPE_CHECKING:
    from opslib.writer.journal import Journal
    from opslib.writer.primitive import Primitive

#: Nobody answers an order to end.
_NO_ANSWER_S = 0.05
#: A node counts its uptime in whole seconds, by its own clock.
_CLOCKS_S = 2.0


def order(primitive: Primitive, action: Action) -> Outcome:
    """
    Tell one node to end as SIGTERM does; the journal knows before the node does.

    One that was told by this run, and was started again since, is not told once more.
    """
    broker = primitive.broker
    there, _, silent = nodes.look(broker)
    node = there.get(action.node)
    if node is None:
        left = f" Not known of {nodes.unseen(silent)}." if silent else ""
        reason = f"{action.node} does not answer, so that it could not be told.{left}"
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    now = broker.server_time().timestamp()
    if is_younger(node, told_at(journals.read(broker, primitive.run_id)).get(action.node), now):
        reason = f"{action.node} was told before, and was started again since."
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    item = {"a": action.id, "s": action.subject, "node": action.node, "at": now}
    nodes.write_down(primitive, Kind.SHUTDOWN, [item], op="note")
    points.passed("before-shutdown")
    pidbox.ask(broker, [pidbox.Call(method="shutdown", destination=(action.node,))], timeout_s=_NO_ANSWER_S)
    reason = "It was told to end once its tasks have; it sends no reply, and the next gate waits for its silence."
    return Outcome(action=action, status=Status.APPLIED, reason=reason)


def told_at(journal: Journal) -> Mapping[str, float]:
    """Return the nodes that a run told to end, with the epoch seconds at which it did so first."""
    found: dict[str, float] = {}
    for batch in journal.of("note", str(Kind.SHUTDOWN)):
        for item in batch.items:
            found.setdefault(str(item["node"]), float(item["at"]))
    return found


def is_younger(node: NodeInfo, at: float | None, now: float) -> bool:
    """Whether a node was started after an instant: then it is another process of the same name."""
    return at is not None and node.uptime_s + _CLOCKS_S < now - at
