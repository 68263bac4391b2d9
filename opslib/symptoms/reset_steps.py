"""
What a reset is about → the steps of each of its modes, in their order.

Nodes are told while they listen; what they hold is taken while nobody consumes; and only then do they go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from opslib.errors import BadParameter
from opslib.facts.system import NodeInfo
from opslib.findings import Finding
from opslib.keys import Keyspace
from opslib.plan import Action, Copy, Kind
from opslib.symptoms import asked, reset_reach, state_reset, steps, stuck_tasks
from opslib.symptoms.reset_scope import Scope

#: A canary goes behind what waits; behind more than this it would prove nothing in time.
_CANARY_BEHIND = 100
_FREEZE, _REVOKE, _CLEAR, _STATE, _START, _RESUME = "freeze", "revoke", "clear", "state", "start", "resume"


def complete(scope: Scope, shutdown: str) -> Iterator[Action]:
    """All of it: nobody takes any more, what is held is ended and kept, what waits is kept, and all begin anew."""
    nodes, consumed = scope.nodes, scope.consumed
    for queue in consumed:
        (pause,) = asked.consuming(Kind.PAUSE, queue.name)
        yield replace(pause, step=_FREEZE, effect=f"{pause.effect} Producers go on: what they send waits.")
    if consumed:
        yield scope.gate("paused", _FREEZE)
    yield from _stops(scope)
    if nodes:
        yield scope.gate("idle", _REVOKE)
    if shutdown:
        yield from (steps.shut_down(node) for node in nodes)
        if nodes:
            yield scope.gate("gone", steps.SHUTDOWN, nodes=[node.name for node in nodes])
            yield scope.gate("paused", steps.SHUTDOWN)
    yield from _purges(scope)
    yield from _unreadable(scope)
    yield scope.gate("cleared", _CLEAR)
    yield from _states(scope, sum(q.depth for q in scope.queues) + len(scope.unacked), "nodes consume again")
    if scope.every and scope.only is None:
        yield from state_reset.actions(scope.state, step=_STATE)
    if shutdown and consumed:
        gate = scope.gate("served", _START, queues=[queue.name for queue in consumed])
        yield replace(gate, effect=f"{_how_to_start(nodes)} {gate.effect}")
    if shutdown:
        return
    for queue in consumed:
        (back,) = asked.consuming(Kind.RESUME, queue.name, queue.consumers)
        yield replace(back, step=_RESUME)
    for queues, names in _by_queues(scope).items():
        yield scope.gate("consumed", _RESUME, nodes=names, queues=queues)


def partial(scope: Scope, findings: Sequence[Finding]) -> list[Action]:
    """What is old and stuck: stopped where it can still run, and kept where nobody holds it; the rest is left alone."""
    snapshot = scope.snapshot
    found = stuck_tasks.plan(snapshot, findings, max_actions=10**9)
    queue_of = {each.task_id: each.queue for each in snapshot.held}
    queue_of |= {each.task_id: each.queue for each in (*snapshot.waiting, *snapshot.unacked)}
    stops: list[Action] = []
    takes: list[Action] = []
    for action in found:
        queue = next((copy.queue for copy in action.copies), queue_of.get(action.subject, ""))
        if not scope.has(queue, action.task) or (scope.only and not action.task):
            continue
        if action.kind is Kind.STOP:
            stops.append(replace(action, step=_REVOKE))
        elif action.kind is Kind.RESTORE:
            effect = "Nobody holds it: kept, instead of being delivered again. `ops run stuck-tasks` restores instead."
            takes.append(replace(action, kind=Kind.QUARANTINE, destination="quarantine", step=_CLEAR, effect=effect))
        elif action.kind is Kind.QUARANTINE:
            takes.append(replace(action, step=_CLEAR))
    return [*stops, *takes, *_states(scope, len(stops) + len(takes), "anybody sends them anew")]


def memory(scope: Scope) -> list[Action]:
    """
    What waits, the longest queue first, each as a whole: that alone a full server can still do.

    Raises:
        BadParameter: If only some tasks are meant: to tell them apart needs memory.
    """
    if scope.only:
        raise BadParameter(
            "mode=memory takes whole queues: to tell tasks apart needs memory.", hint="Name a queue, or leave task out."
        )
    ranked = sorted(scope.queues, key=lambda queue: -queue.depth)
    actions = [a for q in ranked for a in asked.purge(q.name, {each.key: each.length for each in q.lists})]
    frees = " It frees no memory by itself: `ops quarantine drop RUN_ID --apply` writes it to a file and does."
    return [replace(action, effect=f"{action.effect}{frees}") for action in actions]


def canaries(scope: Scope, mode: str) -> list[Action]:
    """A task that does nothing, through each queue that is consumed; what waits before it would only delay it."""
    emptied = mode == "complete" and not scope.only
    found = [queue for queue in scope.consumed if emptied or queue.depth <= _CANARY_BEHIND]
    return [steps.canary(queue.name, scope.wait_s) for queue in found]


def _stops(scope: Scope) -> Iterator[Action]:
    """All that nodes hold, by queue; what that is, is seen once they take no more."""
    doubt = reset_reach.doubt(scope.snapshot)
    for name in ("*",) if scope.every else scope.names:
        of_queue = replace(scope, names=scope.names if name == "*" else (name,), every=name == "*")
        held, unacked = of_queue.held, of_queue.unacked
        places = [
            f"{count:,} {'run' if place == 'active' else place}"
            for place in ("active", "reserved", "scheduled")
            if (count := len({each.task_id for each in held if each.place == place}))
        ]
        ids = {each.task_id for each in held} | {message.task_id for message in unacked}
        if not ids and not of_queue.nodes:
            continue
        now = ", ".join([*places, f"{len(unacked):,} unacknowledged"])
        left = (
            f" What no node that answers holds stays: {doubt}."
            if doubt
            else " What is unacknowledged and held by nobody is taken as well."
        )
        yield Action(
            kind=Kind.STOP,
            subject=name,
            source="nodes, unacked",
            destination="quarantine",
            copies=(Copy(place="held", key="", queue=name, count=len(ids)),),
            only=scope.only,
            terminate=True,
            step=_REVOKE,
            effect=f"{now} now; all that nodes hold by then is revoked and its messages are kept. What runs is ended "
            f"where the pool can, and its work is lost: no undo brings that back. A node that runs on drops "
            f"these tasks, also after an undo, until it is restarted.{left}",
        )


def _purges(scope: Scope) -> Iterator[Action]:
    """What waits, and what tasks leave behind that are ended: their retries, and what they had sent."""
    prefix = Keyspace(prefix=scope.snapshot.fingerprint.split("/", 3)[-1]) if scope.snapshot.fingerprint else Keyspace()
    for queue in scope.queues:
        held = {each.task_id for each in scope.held if each.queue == queue.name}
        lengths = {each.key: scope.waiting(each) for each in queue.lists}
        waits = sum(lengths.values())
        base = prefix.queue(queue.name)
        lengths[base] = lengths.get(base, 0) + len(held)
        also = f" Up to {len(held):,} more, of what tasks leave that are ended." if held else ""
        for purge in asked.purge(queue.name, lengths, scope.only):
            effect = f"{waits:,} messages leave circulation and are kept.{also} What comes after them is new and stays."
            yield replace(purge, step=_CLEAR, effect=effect)


def _unreadable(scope: Scope) -> Iterator[Action]:
    for message in scope.snapshot.unreadable:
        if message.place == "unacked" and scope.every and not scope.only:
            yield replace(stuck_tasks.quarantine(message), step=_CLEAR)


def _states(scope: Scope, tasks: int, before: str) -> Iterator[Action]:
    """What the application itself has written down for tasks that are reset: who begins anew has to find none of it."""
    for name, pattern in scope.keys.items() if tasks else ():
        yield Action(
            kind=Kind.DELETE,
            subject=pattern,
            source=name,
            destination="vault",
            copies=(Copy(place="app", key=pattern, count=tasks),),
            step=_STATE,
            effect=f"The {name} of every task that this run took is removed before {before}, up to {tasks:,} keys, "
            "each after its value is in the vault. That of a task which can still be run stays. Where they have a "
            "database of their own, `ops undo` is run once more for it.",
        )


def _by_queues(scope: Scope) -> dict[tuple[str, ...], list[str]]:
    """Return the nodes by those of the queues that they consume."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for node in scope.nodes:
        queues = tuple(sorted(set(node.queues) & set(scope.names)))
        if queues:
            found[queues].append(node.name)
    return found


def _how_to_start(nodes: Sequence[NodeInfo]) -> str:
    more = f" and {len(nodes) - 3:,} more" if len(nodes) > 3 else ""
    return f"Start the nodes again as they are always started, now: {'; '.join(map(steps.start, nodes[:3]))}{more}."
