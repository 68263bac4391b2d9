"""Quarantine lists that nobody needs any more → a file of their messages, read back and compared, and no list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from opslib import settings
from opslib.collectors import queues
from opslib.keys import raw_name
from opslib.plan import Action, Outcome, Status
from opslib.writer import points, stored, vault
from opslib.writer.primitive import Primitive
from opslib.writer.vault import Kept


def drop(primitive: Primitive, actions: Sequence[Action], path: Path) -> list[Outcome]:
    """
    Write every message of the lists to the vault, and only then remove the lists.

    A list that holds another number of messages than was planned is left alone: somebody put something there.
    """
    outcomes = []
    meant: list[Action] = []
    for action in actions:
        copy = action.copies[0]
        length = primitive.broker.reads.llen(raw_name(copy.key))
        if length != copy.count:
            reason = f"It holds {length:,} messages; {copy.count:,} were planned."
            outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=reason))
        else:
            meant.append(action)
    if not meant:
        return outcomes
    header = vault.Header(
        run_id=primitive.run_id, target=primitive.broker.target.name, broker=primitive.broker.fingerprint
    )
    receipt = vault.write(path, header, _messages(primitive, meant))
    if receipt.entries != sum(action.count for action in meant):
        reason = f"The vault holds {receipt.entries:,} messages and not all; the list was left as it is."
        return outcomes + [Outcome(action=action, status=Status.FAILED, reason=reason) for action in meant]
    points.passed("after-vault")
    where = str(path.relative_to(settings.reports_root()))
    for action in meant:
        letter = stored.remove(primitive, action, where)
        reason = f"Removed; its {action.count:,} messages are in {where}." if letter == "A" else "It is gone already."
        outcomes.append(
            Outcome(action=action, status=Status.APPLIED if letter == "A" else Status.SKIPPED, reason=reason)
        )
    for run_id in {found[0] for action in meant if (found := primitive.broker.keys.quarantined(action.subject))}:
        primitive.close(run_id)
    return outcomes


def _messages(primitive: Primitive, actions: Sequence[Action]) -> Iterator[Kept]:
    for action in actions:
        copy = action.copies[0]
        listing = queues.Listing(key=copy.key, queue=copy.queue, priority=0, length=copy.count)
        for _, raw in queues.stream(primitive.broker, listing):
            yield Kept(key=raw_name(copy.key), type="message", parts=(raw,), note={"queue": copy.queue})
