"""What a plan of steps has besides orders: the gate that ends a step, a node's end, and a canary."""

from __future__ import annotations

from opslib.durations import spell
from opslib.errors import BadParameter
from opslib.facts.system import NodeInfo
from opslib.plan import Action, Gate, Kind

SHUTDOWN, CANARY = "shutdown", "canary"


def gate(step: str, said: str, condition: Gate, *, doubt: str = "") -> Action:
    """
    Return the gate that ends a step.

    Args:
        said: Its condition, as a sentence says it.

        doubt: What nobody can tell, as a sentence that follows.
    """
    return Action(
        kind=Kind.AWAIT,
        subject=said,
        source=step,
        destination="go on",
        step=step,
        gate=condition,
        effect=f"Goes on once {said}; after {spell(condition.within_s)} in vain, nothing more is done.{doubt}",
    )


def refuse_unordered(shutdown: str) -> None:
    """Refuse a way to end nodes that nobody can order over the broker; empty is none at all."""
    if shutdown not in {"", "warm"}:
        raise BadParameter(
            f"shutdown: {shutdown!r} is none that can be ordered.",
            hint="Over the broker a node ends warm only: say warm; SIGQUIT on its machine ends it cold.",
        )


def shut_down(node: NodeInfo) -> Action:
    """Have one node end once its tasks have."""
    return Action(
        kind=Kind.SHUTDOWN,
        subject=node.name,
        source=node.name,
        destination="ended",
        node=node.name,
        step=SHUTDOWN,
        effect="It ends once its tasks have, and sends no reply. Its supervisor may start it again at once: hold that "
        f"one off. Nothing here starts a node: {start(node)}.",
    )


def start(node: NodeInfo) -> str:
    """Return the command by which a person starts a node again."""
    pool = f" -P {node.pool}" if node.pool else ""
    return f"`celery -A APP worker -n {node.name} -Q {','.join(node.queues)} -c {node.concurrency}{pool}`"


def canary(queue: str, wait_s: float) -> Action:
    """Send a task that does nothing through a queue."""
    return Action(
        kind=Kind.CANARY,
        subject=queue,
        source="canary",
        destination=queue,
        step=CANARY,
        gate=Gate(until="ran", queues=(queue,), within_s=wait_s),
        effect="A task of Celery's own that does nothing is taken and run, which shows that the queue is served; "
        "one that nobody takes is taken out again. It proves nothing of your own tasks, and is not undone.",
    )
