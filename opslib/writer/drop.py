"""Quarantine lists that nobody needs any more → a file of their messages, read back and compared, and no list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opslib import settings
from opslib.collectors import quarantine, windows
from opslib.errors import Refused
from opslib.keys import raw_name
from opslib.plan import Action, Outcome, Status
from opslib.writer import journal, points, stored, vault
from opslib.writer.vault import Kept

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.primitive import Primitive


def drop(primitive: Primitive, actions: Sequence[Action], path: Path) -> list[Outcome]:
    """
    Write every message of the lists to the vault, and only then remove the lists.

    A list that holds another number of messages than was planned is left alone: somebody put something there. So is
    one of a run that was cut off with messages on their way.
    """
    outcomes, meant = sorted_out(primitive.broker, actions)
    if not meant:
        return outcomes
    header = vault.Header(
        run_id=primitive.run_id, target=primitive.broker.target.name, broker=primitive.broker.fingerprint
    )
    receipt = vault.write(path, header, messages(primitive.broker, meant))
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
    for run_id in {_run_of(primitive.broker, action) for action in meant}:
        primitive.close(run_id)
    return outcomes


def sorted_out(broker: Broker, actions: Sequence[Action]) -> tuple[list[Outcome], list[Action]]:
    """Return what is left alone, with why, and the actions whose lists may go."""
    outcomes: list[Outcome] = []
    meant: list[Action] = []
    unfinished = _unfinished(broker, {_run_of(broker, action) for action in actions})
    for action in actions:
        reason = _why_not(broker, action, unfinished)
        if reason:
            outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=reason))
        else:
            meant.append(action)
    return outcomes, meant


def refuse_unfinished(broker: Broker, run_id: str) -> None:
    """
    Refuse to drop what an interrupted run has only on its way.

    Raises:
        Refused: If some of its messages are aside, or in quarantine for a moment alone.
    """
    for refused in _unfinished(broker, {run_id}).values():
        raise refused


def _unfinished(broker: Broker, run_ids: Iterable[str]) -> dict[str, Refused]:
    """Return those runs that were cut off with messages on their way, by one look at the broker, with a refusal."""
    aside = quarantine.set_aside(broker)
    found: dict[str, Refused] = {}
    for run_id in run_ids:
        try:
            told = journal.read(broker, run_id)
            if aside.get(run_id) or told.on_the_way or told.partial:
                hint = f"`ops resume {run_id}` finishes it, `ops undo {run_id}` puts it back."
                found[run_id] = Refused(
                    f"Run {run_id} was cut off with messages on their way. Nothing was changed.", hint=hint
                )
        except Refused as unreadable:
            found[run_id] = unreadable
    return found


def _why_not(broker: Broker, action: Action, unfinished: Mapping[str, Refused]) -> str:
    """Return why a list is left alone; empty if it may go."""
    copy = action.copies[0]
    if refused := unfinished.get(_run_of(broker, action)):
        return f"{refused.message} {refused.hint}"
    length = broker.reads.llen(raw_name(copy.key))
    return f"It holds {length:,} messages; {copy.count:,} were planned." if length != copy.count else ""


def _run_of(broker: Broker, action: Action) -> str:
    """Return the run whose quarantine an action is about; that it is one was made sure of before the lock."""
    found = broker.keys.quarantined(action.copies[0].key)
    return found[0] if found else ""


def messages(broker: Broker, actions: Sequence[Action]) -> Iterator[Kept]:
    """Yield every message of the lists, as the vault keeps it."""
    for action in actions:
        copy = action.copies[0]
        listing = windows.Listing(key=copy.key, length=copy.count)
        for _, raw in windows.stream(broker, listing):
            yield Kept(key=raw_name(copy.key), type="message", parts=(raw,), note={"queue": copy.queue})
