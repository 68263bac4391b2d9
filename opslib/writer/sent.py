"""New messages → the lists of their queues, once each, with a receipt by which they can be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from opslib import pieces
from opslib.envelope import Head, digest, head
from opslib.plan import Action, Outcome, Status
from opslib.writer import resent
from opslib.writer.moves import BATCH_BYTES, BATCH_MOVES
from opslib.writer.primitive import Primitive


def send(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """
    Publish messages as Celery does it by the default exchange: behind all that waits in their list.

    What is sent again for a row of the application's is looked for once more: it must still be lost.
    """
    outcomes: list[Outcome] = []
    lost = resent.Lost(primitive)
    messages = ((action, action.message.encode()) for action in actions)
    for batch in pieces.cut(messages, lambda each: len(each[1]), most_bytes=BATCH_BYTES, most=lambda: BATCH_MOVES):
        ready, held = lost.ready([action for action, _ in batch])
        outcomes += held
        some = [(action, raw) for action, raw in batch if action in ready]
        keys = primitive.keys()
        values: list[bytes | str | float] = []
        items = []
        for action, raw in some:
            found = head(raw)
            if not isinstance(found, Head) or found.task_id != action.subject:
                reason = "Its message is none that a worker could read as that task."
                outcomes.append(Outcome(action=action, status=Status.FAILED, reason=reason))
                continue
            key = primitive.broker.keys.queue(action.destination, found.priority)
            values += [keys.number(key), raw]
            items.append(
                {"a": action.id, "s": action.subject, "t": action.task, "to": [key, "", "", None], "sha": digest(raw)}
            )
        if items:
            about = {"send": [[item["s"], item["to"]] for item in items]}
            primitive.call("push", keys, values, receipt={"op": "send", "items": items}, about=about)
            sent = {item["a"] for item in items}
            outcomes += [
                Outcome(action=action, status=Status.APPLIED, reason=f"It was put into {action.destination}.")
                for action, _ in some
                if action.id in sent
            ]
    return outcomes
