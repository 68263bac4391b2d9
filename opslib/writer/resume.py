"""A saved plan and the journal of the run that began it → what is left of it, as a plan that goes on with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.errors import Refused
from opslib.plan import Action, Kind, Plan
from opslib.writer import journal as journals
from opslib.writer import sites
from opslib.writer.journal import Journal

if TYPE_CHECKING:
    from opslib.broker import Broker


def remaining(plan: Plan, broker: Broker, run_id: str) -> Plan:
    """
    Return what an interrupted run has not done yet; its actions keep their numbers.

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
    if not journal.batches and plan.fingerprint != broker.fingerprint:
        raise Refused(
            "The run had changed nothing yet, and the server is another one, or was restarted, since.",
            hint="Run the runbook again.",
        )
    left = [action for action in plan if not done(action, journal)]
    now = broker.server_time()
    return replace(
        plan,
        actions=tuple(left),
        fingerprint=broker.fingerprint,
        continues=plan.continues or run_id,
        made_at=plans.instant(now),
        expires_at=plans.instant(now + timedelta(seconds=plans.LIFE_S)),
    )


def _site(plan: Plan, broker: Broker, run_id: str) -> tuple[Broker, Journal]:
    """Return the database that has the run's journal; where none has, the one that it was planned for."""
    for site in sites.of(broker):
        journal = journals.read(site, run_id)
        if journal.batches:
            return site, journal
    return sites.planned(broker, plan.fingerprint), Journal(run_id=run_id)


def done(action: Action, journal: Journal) -> bool:
    """Whether an action was carried out as a whole; a stop never counts as that, for it ends with a proof."""
    if action.kind is Kind.STOP:
        return False
    if action.kind is Kind.UNDO:
        return all(_put_back(copy.place, copy.key, int(copy.delivery_tag or 0), journal) for copy in action.copies)
    done = Counter(
        int(item["a"])
        for batch in journal.batches
        for n, item in enumerate(batch.items)
        if batch.done(n) and "undoes" not in item and "a" in item
    )
    return done[action.id] >= len(action.copies) > 0


def _put_back(place: str, number: str, n: int, journal: Journal) -> bool:
    return number in journal.undone_passes if place == "pass" else (number, n) in journal.undone
