"""A run's journal → a plan that puts back what the run changed, the latest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from opslib.collectors import quarantine
from opslib.errors import NotFound, OpsError
from opslib.keys import OWN, raw_name
from opslib.plan import Action, Copy, Kind, Plan, make
from opslib.writer import canary, gates, lists, row_batches, shutdown, sites, swept
from opslib.writer import journal as journals
from opslib.writer.journal import Batch, Journal

if TYPE_CHECKING:
    from opslib.broker import Broker


def plan(broker: Broker, run_id: str) -> Plan:
    """
    Propose to put back all that a run changed and that was not put back yet.

    Raises:
        NotFound: If this broker knows nothing of the run.
    """
    site, journal = _found(broker, run_id)
    aside = list(_of_full(broker, run_id))
    if not journal.batches and not aside:
        raise NotFound(
            f"{broker.target.name} knows nothing of a run {run_id}.",
            hint="It changed nothing here, or more than 14 days ago; `ops reports list` shows what runs did.",
        )
    actions = [*aside, *set_aside(site, journal), *_standing(journal)]
    made = make(broker.target.name, site.fingerprint, actions, max_actions=len(actions), made_at=site.server_time())
    return replace(made, continues=run_id)


def has_revoked(broker: Broker, run_id: str) -> bool:
    """Whether a run told nodes to drop tasks: what they remember is in no list, and is not put back."""
    return bool(journals.read(broker, run_id).of("note", "revoke"))


def not_undone(broker: Broker, run_id: str) -> list[str]:
    """Return what a run did that no undo puts back, each as a sentence."""
    journal = journals.read(broker, run_id)
    told = [f"{node} was shut down: start it as it is always started." for node in shutdown.told_at(journal)]
    is_of_steps = told or journal.of("note", gates.ROLE)
    if is_of_steps and journal.of("note", "revoke"):
        told.append("A task that was ended while it ran has lost its work; nodes that run on drop what was revoked.")
    if dropped := sum(len(batch.items) for batch in journal.of("keys", "drop")):
        lists = f"{dropped} quarantine list{'s were' if dropped != 1 else ' was'}"
        told.append(f"{lists} dropped: the messages are in the vault of the run.")
    if ran := len(canary.ended(journal)):
        told.append(f"{ran} canar{'y' if ran == 1 else 'ies'} ran, and changed nothing.")
    return told


def _found(broker: Broker, run_id: str) -> tuple[Broker, Journal]:
    """
    Return the run's journal and the database that has it; of several, the first with something to put back.

    A run by hand may have changed several, and each is undone by itself. Once it is found, the others need not answer.
    What an application keeps beside the broker comes first: who gets his messages back has to find it.
    """
    found: list[tuple[Broker, Journal]] = []
    unseen: list[OpsError] = []
    first: tuple[Broker, Journal] | None = None
    for site in sites.of(broker, unseen=unseen):
        journal = journals.read(site, run_id)
        if journal.batches:
            found.append((site, journal))
            if any(set_aside(site, journal)) or any(_standing(journal)):
                if not any("beside" in item for batch in journal.of("note", "taken") for item in batch.items):
                    return found[-1]
                first = first or found[-1]
    if first is not None:
        return first
    if unseen and not found:
        raise unseen[0]
    return found[0] if found else (broker, Journal(run_id=run_id))


def elsewhere(broker: Broker, run_id: str) -> int:
    """Return in how many databases beside the first there is something of a run to put back: each has its own undo."""
    unseen: list[OpsError] = []
    found = 0
    for site in sites.of(broker, unseen=unseen):
        journal = journals.read(site, run_id)
        found += any(set_aside(site, journal)) or any(_standing(journal))
    return max(0, found - 1)


def _of_full(broker: Broker, run_id: str) -> Iterator[Action]:
    """Yield what was set aside of a server that had no memory for a journal."""
    root = broker.keys.quarantine_of_full(run_id, "")
    for row in quarantine.lists(broker, run_id):
        if row.key.startswith(root):
            key = broker.keys.prefix + row.queue
            yield Action(
                kind=Kind.UNDO,
                subject=row.queue,
                source="quarantine",
                destination=key,
                copies=(Copy(place="full", key=row.key, queue=key, count=row.count),),
                effect=f"{row.count:,} messages come back to {key}, ahead of what was pushed since.",
            )


def set_aside(broker: Broker, journal: Journal, *, begun: bool = False) -> Iterator[Action]:
    """
    Yield what a run, or an undo of it, had set aside of a list when it was interrupted.

    Args:
        begun: Also where the pass over the list has taken messages out already, and has an undoing of its own.
    """
    latest = {b.items[0]["to"]: b for b in (*journal.of("rename", "sieve"), *journal.of("rename", "unpurge"))}
    for batch in latest.values():
        item = batch.items[0]
        is_aside = item["to"] == lists.aside(broker, journal.run_id, item["from"])
        count = broker.reads.llen(raw_name(item["to"])) if is_aside else 0
        if count and (begun or not _dealt_with(journal, batch)):
            yield Action(
                kind=Kind.UNDO,
                subject=item["s"],
                source=item["to"],
                destination=item["from"],
                copies=(Copy(place="aside", key=item["to"], queue=item["from"], count=count),),
                effect=f"{count:,} messages that an interrupted run had set aside come back to {item['from']}.",
            )


def _dealt_with(journal: Journal, batch: Batch) -> bool:
    """Whether the pass that a batch began has messages to put back, and so an action of its own."""
    return any(journal.standing(each) for each in journal.of("deal", "sieve", **{"pass": batch.number}))


def _standing(journal: Journal) -> Iterator[Action]:
    """Yield an action for each thing that was changed, the latest first."""
    for (op, role, group), some in groupby(journal.changed(), key=lambda at: _group(*at)):
        found = list(some)
        if (op == "rename" and role != "purge") or op == "note" or role in {"drop", canary.ROLE}:
            continue
        if op == swept.OP:
            yield _of_swept(str(group), role, found)
            continue
        if op == row_batches.OP:
            yield from _of_rows(journal, str(group), role, found)
            continue
        yield _of_letters(str(group), len(found)) if op == "redrive" else _action(op, group, found)


def _group(batch: Batch, n: int) -> tuple[str, str, object]:
    """Return what belongs together: a pass over a list; the messages of one action; otherwise each thing by itself."""
    op, role = str(batch.receipt.get("op", "")), str(batch.receipt.get("role", ""))
    item = batch.items[n]
    if op == "deal":
        return op, role, batch.receipt.get("pass", "")
    if op == "redrive":
        return op, role, batch.receipt["list"]
    if op == row_batches.OP:
        return op, role, batch.receipt["vault"] if role == row_batches.MANY else batch.number
    if op == swept.OP:
        return op, role, batch.receipt["vault"]
    if op == "move":
        return op, role, (item["a"], item["s"], item["from"][0], item["to"][0])
    if op in {"node", "files"}:
        return op, role, (item["a"], item["s"])
    return op, role, (batch.number, n)


def _of_swept(where: str, role: str, found: Sequence[tuple[Batch, int]]) -> Action:
    """Return what writes again all that a filter has swept away, or takes back the lives that it gave."""
    subject = str(found[0][0].items[0]["s"])
    count = sum(swept.count_of(batch) for batch, _ in found)
    keys = f"{count:,} key{'s' * (count != 1)}"
    back = "are written again with their values and lives" if role == "delete" else "live for ever again, as they did"
    return Action(
        kind=Kind.UNDO,
        subject=subject,
        source="vault" if role == "delete" else subject,
        destination=subject,
        copies=(Copy(place=swept.OP, key=where, count=count),),
        effect=f"{keys} {back}, but for those that were written since.",
    )


def _of_rows(journal: Journal, group: str, role: str, found: Sequence[tuple[Batch, int]]) -> Iterator[Action]:
    """Yield what sets rows back: all that a filter meant at once, by the vault; a single one by its batch."""
    batch, n = found[0]
    subject, table = str(batch.items[n]["s"]), str(batch.receipt["table"])
    count = sum(row_batches.count_of(each, journal) for each, _ in found)
    if not count:
        return
    many = f"{count:,} row{'s' * (count != 1)} of {table} {'are' if count != 1 else 'is'} set back"
    copy = Copy(place=row_batches.OP, key=group, count=count)
    yield Action(
        kind=Kind.UNDO,
        subject=subject,
        source="vault",
        destination=table,
        copies=(copy if role == row_batches.MANY else Copy(place="journal", key=group, delivery_tag=str(n)),),
        effect=f"{many}, but for what was changed since.",
    )


def _of_letters(key: str, count: int) -> Action:
    """Return what recalls the letters of one list: by the journal, however many they are."""
    letters = f"{count:,} letter{'s' * (count != 1)}"
    return Action(
        kind=Kind.UNDO,
        subject=key,
        source="their queues",
        destination=key,
        copies=(Copy(place="redriven", key=key, queue=key, count=count),),
        effect=f"{letters} come{'s' * (count == 1)} back to {key}, those that no worker has taken yet.",
    )


def _action(op: str, group: object, found: Sequence[tuple[Batch, int]]) -> Action:
    batch, n = found[0]
    item = batch.items[n]
    if op == "deal":
        key = str(batch.receipt["list"])
        copies: tuple[Copy, ...] = (Copy(place="pass", key=str(group), queue=key, count=len(found)),)
        source, destination, effect = "quarantine", key, f"{len(found):,} messages come back to {key}, where they were."
    else:
        copies = tuple(
            Copy(place="journal", key=b.number, delivery_tag=str(i), count=_count(op, b, i)) for b, i in found
        )
        source, destination, effect = _way(op, item, sum(copy.count for copy in copies), str(batch.receipt.get("role")))
    return Action(
        kind=Kind.UNDO,
        subject=str(item["s"]),
        task=str(item.get("t", "")),
        source=source,
        destination=destination,
        copies=copies,
        effect=effect,
    )


def _count(op: str, batch: Batch, n: int) -> int:
    return int(batch.place(n) or 0) if op == "rename" else 1


def _way(op: str, item: Mapping[str, Any], count: int, role: str) -> tuple[str, str, str]:
    """Return where an undone thing comes from, where it goes, and what that means."""
    messages = f"{count:,} message{'s' * (count != 1)}"
    if op == "move":
        source, destination = _shown(item["to"][0]), item["from"][0]
        return (
            source,
            destination,
            f"{messages} come{'s' * (count == 1)} back to {destination}, if nobody has taken it.",
        )
    if op == "send":
        key = item["to"][0]
        return key, "quarantine", f"The message that was sent is taken out of {key} again, if nobody has taken it."
    if op == "switch":
        return item["key"], item["key"], "The entry of the schedule is as it was, unless it was written since."
    if op == "files":
        files = f"{count:,} file{'s' * (count != 1)} of {item['host']}"
        return "vault", item["s"], f"{files} come{'s' * (count == 1)} back, with rights and times, if nothing is there."
    if op == "hand":
        back = f"The state of {item['s']} is as it was again, and the copy for {item['new']} is removed"
        return item["to"], item["key"], f"{back}, unless that one has it by now."
    if op == "rename":
        return (
            _shown(item["to"]),
            item["from"],
            f"{messages} come back to {item['from']}, ahead of what was pushed since.",
        )
    if op == "keys":
        verb = "is written again with its value" if role == "delete" else "gets the life back that it had"
        return (
            "vault" if role == "delete" else item["key"],
            item["key"],
            f"The key {verb}, unless it was written since.",
        )
    if op == "index":
        return "unacked", "unacked", "Hash and index disagree again as they did."
    if op == "node":
        return _way_of_order(item, count, role)
    back = "consumes it again" if role == Kind.PAUSE else "no longer consumes it"
    return item["node"], item["s"], f"{item['node']} {back}."


def _way_of_order(item: Mapping[str, Any], count: int, role: str) -> tuple[str, str, str]:
    """Return the same of an order to nodes."""
    if role == Kind.LIMIT:
        who = "1 node gets" if count == 1 else f"{count} nodes get"
        effect = f"{who} back the limit that each had for {item['s']}."
        return item["rate"] or "no limit", item["had"] or "no limit", effect
    verb = "gives up" if role == Kind.GROW else "gets back"
    processes = f"{count} process{'es' * (count != 1)}"
    effect = f"{item['node']} {verb} {processes}, unless it was restarted or resized meanwhile."
    return item["node"], item["node"], effect


def _shown(key: str) -> str:
    return "quarantine" if OWN in key else key
