"""
A system in which nothing goes right: a Snapshot → what a reset would take, end and leave, and its steps in order.

What it is about is in `reset_scope`, what it does not reach in `reset_reach`, and its steps are in `reset_steps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.errors import BadParameter, near
from opslib.facts.resets import ResetChoice
from opslib.facts.rows import StateNow
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, worst_first
from opslib.plan import Action, Kind, Outcome, Plan
from opslib.symptoms import reset_reach, reset_scope, reset_steps, steps, stuck_tasks
from opslib.symptoms.reset_scope import Scope
from opslib.symptoms.stuck_tasks import Thresholds

if TYPE_CHECKING:
    from opslib.broker import Broker

MODES = {
    "partial": "only what is old and stuck: tasks that run too long, loops, messages that nobody holds",
    "complete": "everything: what runs, what nodes hold, and what waits",
    "memory": "what waits, at once and without any memory: for a server that is full",
}
__all__ = ["MODES", "Thresholds", "app_keys", "choices", "diagnose", "plan"]


def app_keys(broker: Broker, names: str = "*") -> Mapping[str, str]:
    """
    Return the patterns of the application's own keys that a reset removes with the tasks, by their names.

    Args:
        names: Glob of the names that the target has for them; empty for none.

    Raises:
        BadParameter: If the target has none of that name.
    """
    known = broker.target.app_keys
    found = {name: each.pattern for name, each in known.items() if fnmatchcase(name, names)}
    if names.strip("*") and not found:
        raise BadParameter(f"keys: the target names no keys that fit {names!r}.", hint=near(names, known))
    return found


def diagnose(
    snapshot: Snapshot, limits: Thresholds, *, before: Snapshot | None = None, outcomes: Iterable[Outcome] = ()
) -> list[Finding]:
    """
    Say what is stuck, what a reset could not reach, and after one, what of the old is still there.

    Args:
        before: The look before the reset.

        outcomes: What became of its actions.
    """
    found = [*stuck_tasks.diagnose(snapshot, limits), *reset_reach.beyond(snapshot)]
    if before is not None:
        found += reset_reach.left_behind(before, snapshot, list(outcomes))
    return worst_first(found)


def choices(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    *,
    queue: str = "*",
    task: str = "*",
    shutdown: str = "",
    wait: str = "60s",
    canary: bool = True,
    mode: str = "",
    keys: Mapping[str, str] | None = None,
    state: Sequence[StateNow] = (),
) -> tuple[ResetChoice, ...]:
    """Return what each mode would do, in numbers, whichever is asked for; raise as `plan` does."""
    del mode, keys, state
    scope = reset_scope.meant(snapshot, queue, task, wait)
    return tuple(_choice(scope, findings, each, shutdown, canary=canary) for each in MODES)


def _choice(scope: Scope, findings: Sequence[Finding], mode: str, shutdown: str, *, canary: bool) -> ResetChoice:
    running = [each for each in scope.held if each.place == "active"]
    able = {node.name for node in scope.snapshot.answering if node.can_terminate}
    canaries = len(reset_steps.canaries(scope, mode)) if canary and mode != "memory" else 0
    if mode == "memory":
        waits = sum(queue.depth for queue in scope.queues) if not scope.only else 0
        return ResetChoice(mode=mode, meaning=MODES[mode], waiting=waits, left=len(scope.unacked))
    if mode == "partial":
        actions = reset_steps.partial(scope, findings)
        stops = [action for action in actions if action.kind is Kind.STOP]
        copies = [copy for action in actions for copy in action.copies]
        unacked = sum(copy.place == "unacked" for copy in copies)
        return ResetChoice(
            mode=mode,
            meaning=MODES[mode],
            ended=sum(action.terminate for action in stops),
            running_on=sum(bool(action.node) and not action.terminate for action in stops),
            unacked=unacked,
            waiting=sum(copy.place == "waiting" for copy in copies),
            left=len(scope.unacked) - unacked,
            canaries=canaries,
        )
    unheld = reset_reach.unheld(scope.snapshot) if reset_reach.doubt(scope.snapshot) else []
    doubtful = sum(message in scope.unacked for message in unheld)
    return ResetChoice(
        mode=mode,
        meaning=MODES[mode],
        frozen=len(scope.consumed),
        ended=sum(each.node in able for each in running),
        running_on=sum(each.node not in able for each in running),
        held=len({each.task_id for each in scope.held if each.place != "active"}),
        unacked=len(scope.unacked) - doubtful,
        waiting=sum(scope.waiting(each) for queue in scope.queues for each in queue.lists),
        left=doubtful,
        nodes=len(scope.nodes) if shutdown else 0,
        canaries=canaries,
    )


def plan(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    *,
    mode: str = "",
    queue: str = "*",
    task: str = "*",
    shutdown: str = "",
    wait: str = "60s",
    canary: bool = True,
    keys: Mapping[str, str] | None = None,
    state: Sequence[StateNow] = (),
    max_actions: int = 500,
) -> Plan:
    """
    Return a reset as steps in their order; nothing where no mode is said.

    Args:
        findings: What is stuck, for the partial mode.

        mode: A key of `MODES`; empty plans nothing.

        queue, task: Globs of the queues and tasks that are meant.

        shutdown: "warm" to have nodes end before anything is cleared; empty to leave them running.

        wait: Deadline of each gate.

        canary: Whether a task is sent through each queue afterwards.

        keys: Patterns of the application's keys that go with the tasks, by their names (`app_keys`); None for none.

        state: Rows that say what the application is at; a complete reset of everything sets them to idle.

    Raises:
        BadParameter: If something is unknown, or cannot be meant.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    scope = replace(reset_scope.meant(snapshot, queue, task, wait), keys=keys or {}, state=tuple(state))
    if mode and mode not in MODES:
        raise BadParameter(f"mode: {mode!r} is none.", hint=near(mode, MODES))
    steps.refuse_unordered(shutdown)
    if shutdown and mode not in {"", "complete"}:
        raise BadParameter(f"shutdown={shutdown} belongs to mode=complete; {mode} leaves nodes alone.")
    canaries = reset_steps.canaries(scope, mode) if canary else []
    actions: list[Action] = []
    if mode == "memory":
        actions = reset_steps.memory(scope)
    elif mode == "partial":
        actions = [*reset_steps.partial(scope, findings), *canaries]
    elif mode == "complete":
        actions = [*reset_steps.complete(scope, shutdown), *canaries]
        actions = actions if any(action.kind is not Kind.AWAIT for action in actions) else []
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )
