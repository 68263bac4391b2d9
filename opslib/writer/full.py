"""
A purge on a server that is out of memory → the queue set aside all the same, without a lock or a journal.

Such a server refuses every write that needs memory, so neither can be written. Renaming needs none. Nothing else is
done this way: that nobody is changing the broker is seen from its clients, and the quarantine's name is the receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from opslib import records, refusals
from opslib.errors import LockHeld, Refused
from opslib.keys import raw_name
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import audit, lists, scripts

if TYPE_CHECKING:
    from opslib.broker import Broker


def answers(error: BaseException, actions: Sequence[Action]) -> bool:
    """Whether a plan failed only because the server is full, and consists of what can be done nevertheless."""
    all_can = all(action.kind is Kind.PURGE and not (action.only or action.letters) for action in actions)
    return bool(actions) and all_can and refusals.is_full(error)


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
