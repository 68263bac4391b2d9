"""Tasks that somebody is done with, and the keys kept for them → which keys may go, or why not one of them may."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from opslib import plan as plans
from opslib.durations import spell
from opslib.errors import Refused
from opslib.facts.app_keys import TaskKey
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding, Severity, worst_first
from opslib.keys import RESULT
from opslib.plan import Action, Copy, Kind, Plan
from opslib.symptoms import sight
from opslib.symptoms.stop_task import PLACES

#: Places in which a task could still be, so that one that was not wholly seen leaves everything open.
_LIVE = frozenset({"keyspace", "waiting", "unacked", "workers", "set aside"})
_NAMED = 5


def apart_from_queues(seen: Whereabouts, keys: Iterable[TaskKey]) -> list[TaskKey]:
    """Return the keys, each that is a queue's list as one that cannot be removed: an id was meant, not its messages."""
    lists = {each.key: queue.name for queue in seen.queues for each in queue.lists}
    return [
        replace(key, fixed=f"It is a list of queue {lists[key.key]}.")
        if key.fingerprint == seen.fingerprint and key.key in lists
        else key
        for key in keys
    ]


def diagnose(seen: Whereabouts, keys: Iterable[TaskKey]) -> list[Finding]:
    """Say which keys are left of the tasks, and what could not be looked into."""
    names = {row.task_id: row.task for row in seen.results if row.task}
    found = [_left(key, names.get(key.task_id, "")) for key in keys]
    return worst_first([*sight.unseen(seen), *found])


def refuse_live(seen: Whereabouts) -> None:
    """
    Refuse to touch any key while one of the tasks can still be run.

    It would write its keys again, and then they are neither the old ones nor whole, and an undo leaves them so.

    Raises:
        Refused: If one is waiting, unacked, active, reserved or scheduled; it says which, and where.
    """
    found = {task_id: [p for p in dict.fromkeys(places) if p in PLACES] for task_id, places in seen.places.items()}
    live = {task_id: places for task_id, places in found.items() if places}
    if not live:
        return
    told = [f"{task_id} is {_where(seen, task_id, places)}" for task_id, places in list(live.items())[:_NAMED]]
    more = f", and {len(live) - _NAMED:,} more are in circulation" if len(live) > _NAMED else ""
    ids = " ".join(list(live)[:_NAMED])
    timers = all(places == ["scheduled"] for places in live.values())
    hint = (
        "A node has it in its timer alone: if it was revoked, it is dropped when its time comes. Clean up after that."
        if timers
        else f"`ops task stop {ids}` first: it takes out of circulation what is left of it. Or let it end."
    )
    raise Refused(f"{'; '.join(told)}{more}. Nothing was changed.", hint=hint)


def blind(seen: Whereabouts) -> list[str]:
    """
    Return why nobody can say that the tasks are over, a sentence each; nothing if that was seen.

    Even a final result is no proof: a message that was delivered twice runs again after it was written.
    """
    found = [
        f"{row.place}: {row.note or f'{row.silent:,} not seen.'}" for row in seen.silent_places if row.place in _LIVE
    ]
    if not seen.receivers and seen.server.consumers != 0:
        who = "nobody can say whether connections consume" if seen.server.consumers is None else "connections consume"
        found.append(f"workers: no node listens to control messages, and {who}.")
    return list(dict.fromkeys(found))


def plan(seen: Whereabouts, keys: Sequence[TaskKey]) -> list[Plan]:
    """
    Propose to remove the keys, each after its value is in the vault: one plan for each database.

    That of the results is the last, so that a task keeps its result for as long as anything else is left of it.

    Args:
        seen: A view in which none of the tasks is in circulation, and nothing that matters was unseen.
    """
    names = {row.task_id: row.task for row in seen.results if row.task}
    states = {row.task_id: row.state for row in seen.results}
    by_database: dict[str, list[TaskKey]] = {}
    for key in sorted(keys, key=lambda key: key.name == RESULT):
        if not key.fixed and key.sha256:
            by_database.setdefault(key.fingerprint, []).append(key)
    last = {key.fingerprint for key in keys if key.name == RESULT}
    return [
        plans.make(
            seen.target,
            fingerprint,
            [_removed(key, names.get(key.task_id, ""), states.get(key.task_id, "")) for key in some],
            max_actions=len(some),
            made_at=seen.taken_at,
        )
        for fingerprint, some in sorted(by_database.items(), key=lambda each: each[0] in last)
    ]


def _left(key: TaskKey, task: str) -> Finding:
    size = f"{key.size_bytes:,} bytes" if key.type == "string" else f"{key.elements:,} elements"
    life = "never expires" if key.life_s < 0 else f"expires in {spell(key.life_s)}"
    what = f"its {key.name}, a {key.type} of {size} that {life}"
    return Finding(
        code="task-remnant",
        severity=Severity.ATTENTION,
        subject=key.task_id if key.name == RESULT else key.key,
        task=task,
        message=f"Left in {key.database}: {what}. {key.fixed}".strip(),
        evidence={
            "key": key.key,
            "database": key.database,
            "group": key.group,
            "life_s": round(key.life_s),
            "size_bytes": key.size_bytes,
        },
        hint="`ops task cleanup` removes it; `ops undo` writes it again." if not key.fixed else _by_hand(key),
        runbook="find-task",
    )


def _by_hand(key: TaskKey) -> str:
    if key.fixed.startswith("It is a list of queue"):
        return "`ops queue purge` takes messages out of circulation. Is the id right, and the pattern?"
    if key.life_s >= 0:
        return "It goes when its life is over."
    return "It is left as it is: what cannot be kept is not removed. Give it a life where it is written."


def _removed(key: TaskKey, task: str, state: str) -> Action:
    return Action(
        kind=Kind.DELETE,
        subject=key.task_id if key.name == RESULT else key.key,
        task=task,
        source=key.name,
        destination="vault",
        copies=(Copy(place="key", key=key.key, sha256=key.sha256, life_s=key.life_s),),
        why="task-remnant",
        effect=_effect(key, state),
    )


def _effect(key: TaskKey, state: str) -> str:
    if key.name != RESULT:
        return f"The key with its {key.name} leaves {key.database}; the value is in the vault of this run."
    said = f" ({state})" if state else ""
    group = f" It is one of group {key.group}, whose own bookkeeping stays." if key.group else ""
    return f"Its result{said} leaves {key.database}: whoever asks for it is told PENDING.{group}"


def _where(seen: Whereabouts, task_id: str, places: Sequence[str]) -> str:
    nodes = sorted({task.node for task in seen.held if task.task_id == task_id})
    queues = sorted({row.queue for row in seen.waiting if row.task_id == task_id and row.queue})
    where = [f"on {', '.join(nodes)}"] if nodes else []
    where += [f"in {', '.join(queues)}"] if queues else []
    return " ".join([" and ".join(places), *where])
