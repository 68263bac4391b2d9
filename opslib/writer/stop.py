"""
Tasks to stop → every copy quarantined, revoked on every node, ended where a pool can, and proven twice.

A revoke lives in the memory of the workers that heard it (facts §4.4); the message is what brings a task back after
a worker's death. So both are taken away: the message first, for a worker that heard the revoke drops what it has, and
then what came meanwhile, until nothing is found (facts §4.5).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib import pidbox
from opslib.collectors.find import find
from opslib.collectors.quarantine import set_aside
from opslib.durations import spell
from opslib.facts.whereabouts import Whereabouts
from opslib.plan import Action, Outcome, Status
from opslib.writer import lists, nodes

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.primitive import Primitive

_ANSWER_S = 2.0
#: A node forgets a task that it was told to end, and knows no second order for it: one that minds SIGTERM in its own
#: way would run on, in nobody's answer. So the only order is the one that nothing minds.
_SIGNAL = "SIGKILL"
#: A pool looks after its processes every five seconds.
_END_WITHIN_S = 8.0
_ROUNDS = 20
_PAUSE_S = 0.25
#: A next attempt that is due sooner is waited for, and the looks that prove the stop come after it.
_DUE_WITHIN_S = 20.0
_DUE_MARGIN_S = 1.0
_LOOK_EVERY_S = 2.0
#: Places, as the coverage names them, from which a task could come back.
_CARRIES = frozenset({"keyspace", "waiting", "unacked", "workers"})
_PROVE_WITHIN_S = 60.0
#: So long a node remembers a revoke once another one joins (facts §4.4).
_REMEMBERED_S = 10_800.0


@dataclass(kw_only=True)
class _Progress:
    """
    What is known of one stop on its way.

    Attributes:
        blind: What the latest looks could not see; a copy may be there.

        due_at: Epoch seconds of its next attempt, where that is soon; it is proven only after that.

        timers: Nodes that have it in memory until its time comes, with that time; 0 for those that have reserved it.
    """

    action: Action
    steps: list[str] = field(default_factory=list)
    quarantined: int = 0
    clean: int = 0
    unheard: str = ""
    blind: str = ""
    due_at: float = 0.0
    timers: dict[str, float] = field(default_factory=dict)


def stop(
    primitive: Primitive,
    actions: Sequence[Action],
    everything: Callable[[Whereabouts, Mapping[str, Action]], dict[str, int]],
    still_mine: Callable[[], bool],
) -> list[Outcome]:
    """
    Stop tasks for good and say how far that is proven.

    Args:
        everything: Takes every message of what was found out of circulation; answers how many by task id.

        still_mine: Renews the lock; nothing is ordered once it is lost.
    """
    if not actions or not still_mine():
        return [
            Outcome(action=action, status=Status.FAILED, reason="The lock was lost before it was begun.")
            for action in actions
        ]
    broker = primitive.broker
    todo = {action.subject: _Progress(action=action) for action in actions}
    by_id = {action.subject: action for action in actions}

    def quarantine(seen: Whereabouts) -> dict[str, int]:
        return everything(seen, by_id)

    lists.settle(primitive)
    _keep(broker, todo, quarantine)
    nodes.note_revoked(primitive, actions)
    _revoke(broker, todo)
    running = [progress for progress in todo.values() if progress.action.terminate]
    if running and still_mine():
        _terminate(broker, running)
    rounds, deadline = 0, time.monotonic() + _PROVE_WITHIN_S
    while rounds < _ROUNDS and still_mine():
        open_ids = [task_id for task_id, progress in todo.items() if progress.clean < 2]
        if not open_ids:
            break
        wait_s = _round(broker, todo, open_ids, quarantine)
        rounds += not wait_s or time.monotonic() > deadline  # before the next attempt nothing can be proven
        time.sleep(min(max(wait_s, _PAUSE_S), _LOOK_EVERY_S))
    for run_id, count in set_aside(broker).items():
        for progress in todo.values():
            why = (
                f"run {run_id} was interrupted and has {count:,} messages set aside; resume or undo it, then stop again"
            )
            progress.unheard = progress.unheard or why
    return [_outcome(progress) for progress in todo.values()]


def _keep(broker: Broker, todo: dict[str, _Progress], quarantine: Callable[[Whereabouts], dict[str, int]]) -> None:
    """Quarantine what is there before any node hears of it: one that is about to start it would drop its message."""
    for task_id, moved in quarantine(find(broker, list(todo), kept=False)).items():
        todo[task_id].quarantined += moved


def _revoke(broker: Broker, todo: dict[str, _Progress]) -> None:
    """Tell every node to drop these ids; one that stays silent may still run them."""
    call = pidbox.Call(method="revoke", arguments={"task_id": list(todo), "terminate": False})
    answers = pidbox.ask(broker, [call], timeout_s=_ANSWER_S)
    heard = sorted(answers.nodes)
    silent = answers.receivers - len(heard)
    for progress in todo.values():
        progress.steps.append(f"revoked on {', '.join(heard)}" if heard else "no node to revoke it on")
        if silent > 0:
            progress.unheard = f"{silent} node{'s' * (silent != 1)} did not confirm the revoke and may still run it"


def _terminate(broker: Broker, running: Sequence[_Progress]) -> None:
    """End running tasks, all at once, and wait until their processes have left the pools of their nodes."""
    pids: dict[str, int | None] = {}
    of_node: defaultdict[str, list[str]] = defaultdict(list)
    for progress in running:
        seen = _on_node(broker, progress.action)
        if seen and seen[0] != "active":
            progress.steps.append("it no longer ran")
            continue
        pids[progress.action.subject] = seen[1] if seen else None
        of_node[progress.action.node].append(progress.action.subject)
    for node, ids in of_node.items():
        arguments = {"task_id": ids, "terminate": True, "signal": _SIGNAL}
        pidbox.order(
            broker, pidbox.Call(method="revoke", arguments=arguments, destination=(node,)), timeout_s=_ANSWER_S
        )
    deadline = time.monotonic() + _END_WITHIN_S
    for progress in (each for each in running if each.action.subject in pids):
        node = progress.action.node
        ended = _has_ended(broker, progress.action, pids[progress.action.subject], deadline)
        progress.steps += [f"{_SIGNAL} sent on {node}", "it ended" if ended else "it did not end"]
        if not ended:
            progress.unheard = progress.unheard or f"{node} did not say that its process has ended"


def _has_ended(broker: Broker, action: Action, pid: int | None, deadline: float) -> bool:
    while True:
        seen = _on_node(broker, action)
        if seen and seen[0] != "active" and pid not in seen[2]:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)


def _on_node(broker: Broker, action: Action) -> tuple[str, int | None, list[int]] | None:
    """Return the task's state on its node, the process that runs it, and the pool's processes; None for no answer."""
    questions = {"query_task": {"ids": [action.subject]}, "stats": {}}
    calls = [pidbox.Call(method=name, arguments=asked, destination=(action.node,)) for name, asked in questions.items()]
    replies = pidbox.ask(broker, calls, timeout_s=_ANSWER_S).replies
    raw = [replies[name].get(action.node) for name in questions]
    tasks, stats = map(pidbox.read, raw)
    if not isinstance(tasks, dict) or not isinstance(stats, dict):
        return None
    known = tasks.get(action.subject)
    if not isinstance(known, list) or len(known) != 2 or not isinstance(known[1], dict):
        known = ["", {}]
    pid = known[1].get("worker_pid")
    return str(known[0]), pid, stats.get("pool", {}).get("processes", [])


def _round(
    broker: Broker, todo: dict[str, _Progress], ids: Sequence[str], quarantine: Callable[[Whereabouts], dict[str, int]]
) -> float:
    """
    Look everywhere once more; what is found is quarantined, what is not found twice running is proven clean.

    A retry that is due soon is waited for: it may be what brings the task back. The answer is how many seconds that is.
    """
    seen = find(broker, ids, kept=False)
    moved = quarantine(seen)
    active = {task.task_id for task in seen.held if task.place == "active"}
    present = {message.task_id for message in seen.messages}
    blind = ", ".join(row.place for row in seen.silent_places if row.place in _CARRIES)
    now = seen.taken_at.timestamp()
    for task in seen.held:
        if task.place == "active" or task.task_id not in ids:
            continue
        progress = todo[task.task_id]
        progress.timers[task.node] = task.eta_at or 0.0
        if task.eta_at and task.eta_at - now <= _DUE_WITHIN_S:
            progress.due_at = max(progress.due_at, task.eta_at + _DUE_MARGIN_S)
    wait_s = 0.0
    for task_id in ids:
        progress = todo[task_id]
        progress.quarantined += moved.get(task_id, 0)
        clean = task_id not in active | present
        progress.blind = blind or (progress.blind if progress.clean else "")
        wait_s = max(wait_s, progress.due_at - now if clean else 0.0)
        progress.clean = progress.clean + 1 if clean and now >= progress.due_at else 0
    return wait_s


def _outcome(progress: _Progress) -> Outcome:
    n = progress.quarantined
    steps = [*progress.steps, f"{n} cop{'y' if n == 1 else 'ies'} quarantined"]
    if progress.due_at and progress.clean >= 2:
        steps.append("its next attempt came due, and did not run")
    now = time.time()
    later = {node: at - now for node, at in progress.timers.items() if at > now}
    steps += [f"{node} drops what it remembers in {spell(left)}" for node, left in sorted(later.items())]
    reserved = sorted(node for node, at in progress.timers.items() if not at)
    steps += [f"{node} drops what it remembers when its turn comes" for node in reserved]
    if progress.clean < 2:
        reason = "It was still found at the last look; run this again."
        if progress.action.node and not progress.action.terminate:
            where = progress.action.node
            reason = f"It still runs on {where}, whose pool cannot end it: restart that node. It will not come back."
        return Outcome(action=progress.action, status=Status.FAILED, reason=reason, steps=tuple(steps))
    forgotten = sorted(node for node, left in later.items() if left > _REMEMBERED_S)
    if forgotten and not progress.unheard:
        progress.unheard = (
            f"{', '.join(forgotten)} would run it in {spell(max(later.values()))}, and forgets the revoke before that "
            "if another node joins: restart that node, its message is gone"
        )
    if progress.blind:
        progress.unheard = progress.unheard or f"not everything could be seen: {progress.blind}"
    if progress.unheard:
        return Outcome(
            action=progress.action, status=Status.FAILED, reason=f"Not proven: {progress.unheard}.", steps=tuple(steps)
        )
    return Outcome(
        action=progress.action,
        status=Status.APPLIED,
        reason="Out of circulation: found in no queue, twice." if later or reserved else "Found nowhere, twice.",
        steps=(*steps, "found nowhere, twice" if not later and not reserved else "found in no queue, twice"),
    )
