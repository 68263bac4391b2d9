"""A task in a Snapshot → the action that stops it for good, and what stopping it means where it is."""

from __future__ import annotations

from opslib.facts.messages import Message, UnackedMessage, WaitingMessage
from opslib.facts.snapshot import Snapshot
from opslib.plan import Action, Copy, Kind


def of(snapshot: Snapshot, subject: str, *, task: str, why: str) -> Action:
    """
    Return the durable stop of one task, with every copy of its message that the snapshot has.

    Args:
        why: Code of the finding that asks for it.
    """
    copies = [m for m in (*snapshot.waiting, *snapshot.unacked) if m.task_id == subject]
    running = next((t for t in snapshot.held if t.task_id == subject and t.place == "active"), None)
    node = next((n for n in snapshot.nodes if running and n.name == running.node), None)
    terminate = node is not None and node.can_terminate
    if running and not terminate:
        pool = f"a {node.pool} pool" if node and node.pool else "its pool"
        effect = f"Revoked everywhere; {pool} cannot end a running task, so it runs until {running.node} is restarted."
    elif running:
        effect = f"Ended on {running.node} and revoked everywhere; its work so far is lost."
    else:
        effect = "Revoked everywhere; every copy of its message is kept in quarantine."
    return Action(
        kind=Kind.STOP,
        subject=subject,
        task=task,
        source=", ".join(
            sorted(
                {m.queue if isinstance(m, WaitingMessage) else "unacked" for m in copies}
                | ({"active"} if running else set())
            )
        ),
        destination="quarantine",
        copies=tuple(copy_of(message) for message in copies),
        node=running.node if running else "",
        terminate=terminate,
        why=why,
        effect=effect,
    )


def copy_of(message: Message) -> Copy:
    """Return a message as an action names it."""
    return Copy(
        place="unacked" if isinstance(message, UnackedMessage) else "waiting",
        key=message.key,
        queue=message.queue,
        priority=message.priority,
        delivery_tag=message.delivery_tag,
        sha256=message.sha256,
        score=getattr(message, "delivered_at", None),
    )
