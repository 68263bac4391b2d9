"""Keys that an application has of tasks that are over → in a vault and gone, each only if its task is still over."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from opslib import records, refusals
from opslib.collectors import circulation, quarantine, windows
from opslib.collectors.find import find
from opslib.envelope import Head, head, unacked_head
from opslib.errors import OpsError
from opslib.facts.app_keys import ids_in
from opslib.keys import raw_name
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.symptoms.stop_task import PLACES
from opslib.writer import journal as journals
from opslib.writer import lock, stored, vault
from opslib.writer.moves import MOVED
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.collectors.circulation import Circulation

_ANSWER_S = 5.0
_TICK_S = 2.0
#: Tasks whose keys are removed in one go: their values are in memory until they are in the vault.
_PER_GO = 500
#: Places from which a task that was revoked can still be run: a node that had heard nothing of it may take it there.
_LIVE = frozenset(PLACES) - {"reserved", "scheduled"}
#: The judgement that asks for the keys of tasks that are over.
_CODE = "app-keys"


def sorted_out(primitive: Primitive, actions: Sequence[Action]) -> tuple[list[Action], list[Outcome]]:
    """
    Return the actions that may be carried out, and outcomes of the others: somebody may have sent a task again.

    Only those are looked at that are about an application's keys of tasks that were over.
    """
    asked = {action.id: _task_of(primitive.broker, action) for action in actions if action.why == _CODE}
    if not asked:
        return list(actions), []
    held = circulation.read(primitive.broker.home or primitive.broker, timeout_s=_ANSWER_S)
    touched = _touched(primitive.broker, [action for action in actions if action.id in asked])
    ready, outcomes = [], []
    for action in actions:
        reason = ""
        if action.id in asked and held.unseen:
            reason = f"Which tasks can still be run was not wholly seen: {held.unseen[0]} Nothing was changed."
        elif action.id in asked and any(each in held for each in ids_in(asked[action.id])):
            reason = "Its task is in circulation by now: its key stays."
        elif action.id in touched:
            reason = "Somebody has read or written it since it was planned: it stays."
        if reason:
            outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=reason))
        else:
            ready.append(action)
    return ready, outcomes


def is_pattern(action: Action, key: str, broker: Broker) -> bool:
    """Whether an action shows the pattern by which it means keys of the application."""
    app_key = broker.target.app_keys.get(action.source)
    return app_key is not None and key == action.subject == app_key.pattern and bool(action.step)


def clear(primitive: Primitive, action: Action, folder: Path) -> Outcome:
    """
    Remove the keys that the application has, under one name, of the tasks that this run took out of circulation.

    They may be in a database of their own: then it has a lock and a journal of this run, too.
    """
    broker = primitive.broker
    app_key = broker.target.app_keys[action.source]
    held = circulation.read(broker.home or broker, timeout_s=_ANSWER_S)
    if held.unseen:
        hint = f"`ops app flush {action.source}` removes the keys once that can be seen."
        reason = f"Which tasks can still be run was not wholly seen: {held.unseen[0]} {hint}"
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    count: Counter[str] = Counter()
    try:
        site = broker.elsewhere(broker.apps[action.source], app_key.url or broker.target.broker_url)
        _clear(primitive, action, site, held, folder, count)
    except (OpsError, _errors()) as error:
        if primitive.over or not app_key.url:
            raise  # it is the broker itself
        # The nodes have to go on all the same: what is left here is for `ops app flush`.
        why = refusals.of(error, app_key.shown).message
        reason = f"{count['done']:,} keys were removed; then: {why} `ops app flush {action.source}` removes the rest."
        return Outcome(action=action, status=Status.FAILED, reason=reason)
    item = {"a": action.id, "s": action.subject, "key": action.subject}
    item |= {"beside": site.fingerprint} if site.fingerprint != broker.fingerprint else {}
    receipt = {"op": "note", "role": "taken", "items": [item]}
    primitive.call("note", primitive.keys(), [MOVED], receipt=receipt, about={"taken": action.subject})
    left = f" {count['left']:,} stay: too large to be kept, or written again." if count["left"] else ""
    if not count["done"]:
        reason = f"None of these tasks has a key {app_key.pattern}.{left}"
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    reason = f"{count['done']:,} keys {app_key.pattern} were removed; their values are in the vault.{left}"
    return Outcome(action=action, status=Status.APPLIED, reason=reason)


def _errors() -> type[Exception]:
    from redis.exceptions import RedisError

    return RedisError


def _clear(
    primitive: Primitive, action: Action, site: Broker, held: Circulation, folder: Path, count: Counter[str]
) -> None:
    """Remove the keys, some at a time, and count what became of them."""
    broker = primitive.broker
    app_key = broker.target.app_keys[action.source]
    dropped = _dropped(primitive, held)
    ids = (task_id for task_id in _taken(primitive) if task_id in dropped or task_id not in held)
    with _at(primitive, site) as there:
        while some := list(islice(ids, _PER_GO)):
            keys = [key for task_id in some if not broker.keys.is_reserved(key := app_key.key(task_id))]
            there_are = _there(site, dict.fromkeys(keys))
            acts = [
                Action(
                    kind=Kind.DELETE,
                    subject=key,
                    source=action.source,
                    destination="vault",
                    copies=(Copy(place="key", key=key),),
                    id=action.id,
                )
                for key in there_are
            ]
            for outcome in stored.delete(there, acts, vault.free(folder)) if acts else ():
                count["done" if outcome.status is Status.APPLIED else "left"] += 1
        if there is not primitive:
            there.close()


def _touched(broker: Broker, actions: Sequence[Action]) -> set[int]:
    """Return the actions whose key was read or written since it was looked at; its clock ticks in seconds."""
    asked = [action for action in actions if action.copies[0].idle_s]
    with broker.reads.pipeline(transaction=False) as pipe:
        for action in asked:
            pipe.object("idletime", raw_name(action.copies[0].key))
        said = pipe.execute(raise_on_error=False) if asked else []
    return {
        action.id
        for action, idle in zip(asked, said, strict=True)
        if isinstance(idle, int) and idle < (action.copies[0].idle_s or 0.0) - _TICK_S
    }


def _task_of(broker: Broker, action: Action) -> str:
    app_key = broker.target.app_keys.get(action.source)
    return app_key.task_id(action.subject) if app_key else action.subject


def _taken(primitive: Primitive) -> Iterator[str]:
    """Yield the tasks that this run took out of circulation, each once: those that it keeps, and those it revoked."""
    broker, known = primitive.broker, set[str]()

    def fresh(ids: Iterable[str]) -> Iterator[str]:
        for task_id in ids:
            if task_id and task_id not in known:
                known.add(task_id)
                yield task_id

    yield from fresh(_revoked(primitive))
    for row in quarantine.lists(broker, primitive.run_id):
        listing = windows.Listing(key=row.key, length=row.count)
        yield from fresh(map(_id_of, (raw for _, raw in windows.stream(broker, listing))))


def _revoked(primitive: Primitive) -> list[str]:
    journal = journals.read(primitive.broker, primitive.run_id)
    return [str(item["s"]) for batch in journal.of("note", "revoke") for item in batch.items]


def _dropped(primitive: Primitive, held: Circulation) -> set[str]:
    """Return the tasks that this run revoked and that a node has only in its timer or aside: it drops them there."""
    wanted = [task_id for task_id in _revoked(primitive) if task_id in held]
    if not wanted:
        return set()
    broker = primitive.broker.home or primitive.broker
    seen = find(broker, wanted, kept=False, answer_within=f"{_ANSWER_S}s")
    return {task_id for task_id in wanted if _LIVE.isdisjoint(seen.places.get(task_id, ()))}


def _id_of(raw: bytes) -> str:
    found = unacked_head(raw)[0] if raw[:1] == b"[" else head(raw)
    return found.task_id if isinstance(found, Head) else ""


def _there(site: Broker, keys: Iterable[str]) -> list[str]:
    names = list(keys)
    with site.reads.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(raw_name(name))
        return [name for name, there in zip(names, pipe.execute(), strict=True) if there]


@contextmanager
def _at(primitive: Primitive, site: Broker) -> Iterator[Primitive]:
    """Give what changes the database of the keys: the run's own, or one under a lock of its own."""
    if site.fingerprint == primitive.broker.fingerprint:
        yield primitive
        return
    told = {"plan": primitive.plan, "target": site.target.name, "runbook": records.context().runbook}
    told |= {"server": str(site.information.get("run_id", "")), "host": socket.gethostname()}
    site = replace(site, home=primitive.broker.home or primitive.broker)
    with lock.held(site, run_id=records.context().run_id, plan_digest=primitive.plan) as mine:
        yield Primitive(site, mine, run_id=primitive.run_id, told=told, goes_on=primitive.goes_on)
