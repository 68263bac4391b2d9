"""A saved plan and the journal of the run that began it → what is left of it, as a plan that goes on with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from opslib import plan as plans
from opslib.errors import Refused
from opslib.plan import Action, Copy, Kind, Plan
from opslib.writer import canary, gates, recalled, row_batches, sites, swept, undo
from opslib.writer import journal as journals
from opslib.writer.journal import Journal

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Orders to nodes, which say themselves whether they obeyed: the journal knows of one before it is given.
ORDERS = frozenset({Kind.PAUSE, Kind.RESUME, Kind.REVOKE, Kind.GROW, Kind.SHRINK, Kind.LIMIT, Kind.SHUTDOWN, Kind.SAVE})
#: By action, the names of copies.
_Made = defaultdict[int, Counter[tuple[str, str]]]


def remaining(plan: Plan, broker: Broker, run_id: str) -> Plan:
    """
    Return what an interrupted run has not done yet; its actions keep their numbers, and have the copies that are left.

    A list that it had set aside is dealt back in any case: there, nobody would look for a message.

    That this is the broker on which it was begun is proven by its journal, which a restart of the server does not
    change; a run that wrote nothing is bound to the server that it was planned on.

    Raises:
        Refused: If a batch was begun and not ended, or nothing proves that this is the broker.
    """
    broker, journal = _site(plan, broker, plan.continues or run_id)
    if journal.partial:
        raise Refused(
            f"Batch {journal.partial[0]} was begun and not ended; a person has to compare journal and quarantine.",
            hint="docs/safety.md says how.",
        )
    if not journal.batches and (plan.fingerprint != broker.fingerprint or plans.stale(plan, broker.server_time())):
        raise Refused(
            "There is no journal of the run: it had changed nothing yet and its plan is too old by now, or the journal "
            "has expired, or the server is another one, or was restarted, since.",
            hint="Run the runbook again.",
        )
    puts_back = any(action.kind is Kind.UNDO for action in plan)  # an undo of that run, which may be gone on with
    if not puts_back and (_undone(journal) or journal.undone_passes):
        raise Refused("The run was undone, at least in part; it is not gone on with.", hint="Run the runbook again.")
    made = _made(journal)
    rest = [some for action in plan if not _is_aside(action) and (some := _left(action, journal, made))]
    count = max((action.id for action in plan), default=0)
    rest += [
        replace(action, id=number)
        for number, action in enumerate(undo.set_aside(broker, journal, begun=True), count + 1)
    ]
    now = broker.server_time()
    return replace(
        plan,
        actions=tuple(rest),
        fingerprint=broker.fingerprint,
        continues=plan.continues or run_id,
        made_at=plans.instant(now),
        expires_at=plans.instant(now + timedelta(seconds=plans.LIFE_S)),
    )


def begun(plan: Plan, broker: Broker, run_id: str) -> bool:
    """Whether a saved plan was applied before, by what the broker's journals say."""
    return not plan.continues and bool(_site(plan, broker, run_id)[1].batches)


def _site(plan: Plan, broker: Broker, run_id: str) -> tuple[Broker, Journal]:
    """Return the database that has the run's journal; where none has, the one that it was planned for."""
    for site in sites.of(broker):
        journal = journals.read(site, run_id)
        if journal.batches:
            return site, journal
    return sites.planned(broker, plan.fingerprint), Journal(run_id=run_id)


def done(actions: Iterable[Action], journal: Journal) -> set[int]:
    """Return the numbers of actions that were carried out whole; a stop never is, for it ends with a proof."""
    made = _made(journal)
    return {action.id for action in actions if _left(action, journal, made) is None}


def left(actions: Iterable[Action], journal: Journal) -> list[tuple[Action, Action | None]]:
    """Return each action with what is left of it, by a journal that it goes on with; None if nothing is."""
    made = _made(journal)
    return [(action, action if _is_aside(action) else _left(action, journal, made)) for action in actions]


def _left(action: Action, journal: Journal, made: _Made) -> Action | None:
    """Return what is left of an action, with those copies alone that are not dealt with; None if nothing is."""
    if action.step and action.id <= _passed(journal):
        return None
    if action.kind is Kind.CANARY:
        return None if action.id in canary.ended(journal) else action
    if action.kind is Kind.UNDO:
        rest = [c for c in action.copies if not _put_back(c.place, c.key, int(c.delivery_tag or 0), journal)]
    elif action.kind is Kind.STOP or action.kind in ORDERS or _is_switched_row(action):
        return action
    elif not action.copies:
        return None if made[action.id] else action
    else:
        names = Counter(made[action.id])
        rest = []
        for copy in action.copies:
            name = _name(action, copy)
            names[name] -= 1
            rest += [copy] if names[name] < 0 else []
    return replace(action, copies=tuple(rest)) if rest else None


def _is_switched_row(action: Action) -> bool:
    """Whether it is about a row of a table: the journal knows of it before the table does."""
    return action.kind is Kind.SWITCH and action.row is not None


def _passed(journal: Journal) -> int:
    """Return the number of the last gate that was passed: what stands before it was done, or was not to be done."""
    return max((int(item["a"]) for batch in journal.of("note", gates.ROLE) for item in batch.items), default=0)


def _undone(journal: Journal) -> set[tuple[str, int]]:
    """Return what was put back by an undo: a canary that nobody took, its own run took out again."""
    canaries = {batch.number for batch in journal.of("send", canary.ROLE)}
    return {at for at in journal.undone if at[0] not in canaries}


def _is_aside(action: Action) -> bool:
    """Whether it deals back a list that was set aside; which of those there are now, is looked at anew."""
    return action.kind is Kind.UNDO and any(copy.place == "aside" for copy in action.copies)


def _put_back(place: str, number: str, n: int, journal: Journal) -> bool:
    if place == "redriven":
        return number not in recalled.standing(journal)
    if place == swept.OP:
        return not swept.standing(journal, number)
    if place == row_batches.OP:
        return not row_batches.standing(journal, number)
    return number in journal.undone_passes if place == "pass" else (number, n) in journal.undone


def _name(action: Action, copy: Copy) -> tuple[str, str]:
    """Return what a journal knows a copy by: where it was, and which one there."""
    if action.kind is Kind.REPAIR:
        return "", copy.delivery_tag
    if copy.place == "unacked":
        return copy.key, copy.delivery_tag
    return copy.key, copy.sha256 if copy.place == "waiting" else ""


def _made(journal: Journal) -> _Made:
    """Return the names of the copies that were dealt with, by the action that asked for it."""
    made: _Made = defaultdict(Counter)
    lists = {
        item["to"]: str(batch.receipt["list"])
        for batch in journal.of("deal", "sieve")
        for item in batch.items
        if "to" in item
    }
    for batch in journal.batches:
        op = str(batch.receipt.get("op", ""))
        for n, item in enumerate(batch.items):
            was_empty = op == "rename" and batch.said[n : n + 1] == "G"  # what it holds by now was not meant
            if "a" in item and "undoes" not in item and (batch.done(n) or was_empty):
                made[int(item["a"])][_name_of(op, item, batch.receipt, lists)] += 1
    return made


def _name_of(op: str, item: Mapping[str, Any], receipt: Mapping[str, Any], lists: Mapping[str, str]) -> tuple[str, str]:
    """
    Return the name of the copy that an item of the journal was.

    Args:
        lists: By the key of a quarantine, the list that a pass took its messages out of.
    """
    if op == "move":
        key, _, tag, _ = item["from"]
        return lists.get(key, key), tag or str(item.get("was", item["sha"]))
    if op == "deal":
        return str(receipt["list"]), str(item["sha"])
    if op == "index":
        return "", str(item["tag"])
    return str(item["from"] if op == "rename" else item.get("key", "")), ""
