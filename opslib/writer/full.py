"""
A purge on a server that is out of memory → the queue set aside all the same, without a lock or a journal.

Such a server refuses every write that needs memory, so neither can be written. Renaming needs none, and neither does
removing a list that was written to a file before, which is what makes room. Nothing else is done this way: that nobody
is changing the broker is seen from its clients, and the quarantine's name and the vault are the receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opslib import records, refusals, settings
from opslib.errors import LockHeld, Refused
from opslib.keys import raw_name
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import audit, drop, lists, scripts, vault

if TYPE_CHECKING:
    from opslib.broker import Broker


def answers(error: BaseException, actions: Sequence[Action]) -> bool:
    """Whether a plan failed only because the server is full, and consists of what can be done nevertheless."""
    purges = all(action.kind is Kind.PURGE and not (action.only or action.letters) for action in actions)
    drops = all(action.kind is Kind.DROP for action in actions)
    return bool(actions) and (purges or drops) and refusals.is_full(error)


def carry_out(broker: Broker, actions: Sequence[Action], run_id: str, folder: Path) -> list[Outcome]:
    """
    Do what can be done without memory.

    Args:
        run_id: By which purges are undone.

        folder: Of the run, for its vault.

    Raises:
        LockHeld: If somebody holds the lock, or another run is connected for changes.
    """
    if actions[0].kind is Kind.DROP:
        return _drop(broker, actions, vault.free(folder))
    return purge(broker, actions, run_id)


def _drop(broker: Broker, actions: Sequence[Action], path: Path) -> list[Outcome]:
    """Write the messages of quarantine lists to the vault, read them back, and only then remove the lists."""
    _alone(broker)
    outcomes, meant = drop.sorted_out(broker, actions)
    if not meant:
        return outcomes
    header = vault.Header(run_id=records.context().run_id, target=broker.target.name, broker=broker.fingerprint)
    receipt = vault.write(path, header, drop.messages(broker, meant))
    if receipt.entries != sum(action.count for action in meant):
        reason = f"The vault holds {receipt.entries:,} messages and not all; the list was left as it is."
        return outcomes + [Outcome(action=action, status=Status.FAILED, reason=reason) for action in meant]
    where = str(path.relative_to(settings.reports_root()))
    for action in meant:
        key = action.copies[0].key
        audit.write("intent", plan="", script="drop_full", drop=key, vault=where)
        said = cast(
            "list[bytes]",
            broker.writes.eval(
                scripts.text("drop_full"), 2, raw_name(broker.keys.lock), raw_name(key), action.copies[0].count
            ),
        )
        audit.note("result", script="drop_full", said=said[0].decode(), letters="")
        if said[0] == b"HELD":
            raise LockHeld("The broker is being changed by another run, and is out of memory.")
        done = said[0] == b"DONE"
        reason = (
            f"Removed; its {action.count:,} messages are in {where}. The server was full: there was no lock."
            if done
            else "It is gone, or holds another number of messages by now; it was left as it is."
        )
        outcomes.append(Outcome(action=action, status=Status.APPLIED if done else Status.SKIPPED, reason=reason))
    return outcomes


def purge(broker: Broker, actions: Sequence[Action], run_id: str) -> list[Outcome]:
    """
    Set queues aside by their names alone.

    Args:
        run_id: By which they are undone; in their names, for there is nowhere else to write it.

    Raises:
        LockHeld: If somebody holds the lock, or another run is connected for changes.
    """
    _alone(broker)
    outcomes = []
    for action in actions:
        pairs = [
            (copy.key, broker.keys.quarantine_of_full(run_id, copy.key), lists.most(copy.count))
            for copy in action.copies
        ]
        keys = [broker.keys.lock, *(key for pair in pairs for key in pair[:2])]
        audit.write("intent", plan="", script="rename_full", renames=[list(pair[:2]) for pair in pairs])
        names = [raw_name(key) for key in keys]
        said = cast(
            "list[Any]",
            broker.writes.eval(scripts.text("rename_full"), len(names), *names, *(most for _, _, most in pairs)),
        )
        audit.note("result", script="rename_full", said=said[0].decode(), letters=b",".join(said[1:]).decode())
        outcomes.append(_outcome(action, said))
    return outcomes


def _alone(broker: Broker) -> None:
    """Refuse if the clients show another run that may be changing the broker: there is no lock to tell."""
    clients = broker.reads.client_list()
    others = {
        client["name"].removeprefix("opslib:")
        for client in clients
        if client.get("name", "").startswith("opslib:") and client["name"][7:8].isdigit() and "Z-" in client["name"]
    } - {records.context().run_id}
    if others:
        raise LockHeld(f"{broker.target.name} is being changed by another run, it seems: {', '.join(sorted(others))}.")


def _outcome(action: Action, said: Sequence[bytes]) -> Outcome:
    if said[0] == b"HELD":
        raise LockHeld("The broker is being changed by another run, and is out of memory.")
    if said[0] == b"WRONGTYPE":
        raise Refused(f"{said[1].decode('utf-8', 'replace')} is no list; nothing was changed.")
    moved = sum(int(n) for n in said[1:] if n.isdigit())
    if not moved:
        reason = "It is empty by now, holds more than was planned, or was set aside by this run before."
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    reason = f"{moved:,} messages are kept in quarantine. The server was full: there was no lock, and is no journal."
    return Outcome(action=action, status=Status.APPLIED, reason=reason)
