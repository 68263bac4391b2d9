"""
Nodes that have to go for a while: a Snapshot → what each has to end, what would be lost, and its drain step by step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.durations import seconds
from opslib.errors import BadParameter, near
from opslib.facts.resets import DrainNode
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import NodeInfo
from opslib.findings import Finding, worst_first
from opslib.naming import named
from opslib.plan import CONDITIONS, Action, Gate, Kind, Plan
from opslib.symptoms import asked, deploying, sight, steps

if TYPE_CHECKING:
    from opslib.broker import Broker

WISHES = ("drain", "canary")
_FREEZE, _DRAIN = "freeze", "drain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When a drain is at risk.

    Attributes:
        wait_s: How long nodes are given to end what they run.

        scheduled_per_node: Tasks that nodes may hold for their time.
    """

    wait_s: float = 600.0
    scheduled_per_node: int = 10_000

    @classmethod
    def of(cls, broker: Broker, *, wait: str = "10m") -> Thresholds:
        """
        Return what was asked for, and for the rest the target's own.

        Raises:
            SettingsError: If the duration has no unit or is not above zero.
        """
        return cls(wait_s=seconds(wait, "wait"), scheduled_per_node=broker.target.thresholds.scheduled_per_node)


def nodes(snapshot: Snapshot, node: str = "*") -> tuple[DrainNode, ...]:
    """
    Return what each node has to end.

    Args:
        node: Glob of the names that are meant.

    Raises:
        BadParameter: If no node fits that answers.
    """
    return tuple(_row(snapshot, each) for each in _meant(snapshot, node))


def _row(snapshot: Snapshot, node: NodeInfo) -> DrainNode:
    held = [each for each in snapshot.held if each.node == node.name]
    running = [each for each in held if each.place == "active"]
    now = snapshot.taken_at.timestamp()
    return DrainNode(
        node=node.name,
        queues=node.queues,
        running=len(running),
        lost=sum(each.acknowledged for each in running),
        reserved=sum(each.place == "reserved" for each in held),
        scheduled=sum(each.place == "scheduled" for each in held),
        longest_s=max((now - each.started_at for each in running if each.started_at is not None), default=0.0),
        alone=tuple(name for name in node.queues if _consumers(snapshot, name) == {node.name}),
    )


def _consumers(snapshot: Snapshot, queue: str) -> set[str]:
    return {node.name for node in snapshot.answering if queue in node.queues}


def diagnose(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """Say which nodes do not answer or work, and what speaks against ending nodes now."""
    found = [
        *sight.judge(snapshot),
        *deploying.judge(snapshot, grace_s=limits.wait_s, held_at_most=limits.scheduled_per_node),
    ]
    return worst_first(found)


def plan(
    snapshot: Snapshot,
    findings: Iterable[Finding],
    *,
    do: str = "",
    node: str = "*",
    shutdown: str = "",
    wait: str = "10m",
    max_actions: int = 500,
) -> Plan:
    """
    Return a drain as steps in their order, or canaries; nothing where nothing is asked.

    Args:
        do: "drain", or "canary" once the nodes are back.

        node: Glob of the nodes that are meant.

        shutdown: "warm" to have them end once nothing runs; empty leaves them running, with nothing to do.

        wait: How long nodes are given to end what they run, and each other gate.

    Raises:
        BadParameter: If something is unknown, or cannot be meant.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    del findings  # they are what a person reads before asking
    if do and do not in WISHES:
        raise BadParameter(f"do: {do!r} is nothing that can be done here.", hint=near(do, WISHES))
    steps.refuse_unordered(shutdown)
    wait_s = seconds(wait, "wait")
    meant = _meant(snapshot, node)
    actions: list[Action] = []
    if do == "drain":
        actions = list(_drain(snapshot, meant, wait_s, shutdown))
    elif do == "canary":
        names = sorted({name for each in meant for name in each.queues})
        actions = [steps.canary(name, wait_s) for name in names]
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )


def _meant(snapshot: Snapshot, node: str) -> list[NodeInfo]:
    found = [each for each in snapshot.answering if fnmatchcase(each.name, node)]
    if not found and node.strip("*"):
        known = [each.name for each in snapshot.answering]
        raise BadParameter(f"node: no node that answers fits {node!r}.", hint=near(node, known))
    return found


def _drain(snapshot: Snapshot, meant: Sequence[NodeInfo], wait_s: float, shutdown: str) -> Iterator[Action]:
    """Nodes take no more; what they have comes to its end; and only then are they ended."""
    if not meant:
        return
    names = [each.name for each in meant]
    by_queue: dict[str, list[str]] = defaultdict(list)
    for each in meant:
        for queue in each.queues:
            by_queue[queue].append(each.name)
    for queue, consumers in sorted(by_queue.items()):
        (pause,) = asked.consuming(Kind.PAUSE, queue, consumers)
        nobody = " Nobody else consumes it: what comes waits." if _consumers(snapshot, queue) <= set(names) else ""
        yield replace(pause, step=_FREEZE, effect=f"{pause.effect}{nobody}")
    if by_queue:
        yield _gate(snapshot, "paused", _FREEZE, names, wait_s, queues=sorted(by_queue))
    rows = [_row(snapshot, each) for each in meant]
    running, lost = sum(row.running for row in rows), sum(row.lost for row in rows)
    gate = _gate(snapshot, "drained", _DRAIN, names, wait_s)
    about = sum(row.reserved for row in rows)
    now = f"{running:,} run now, {about:,} are about to; killed now, {lost:,} would be lost."
    yield replace(gate, effect=f"{now} {gate.effect}")
    if shutdown:
        yield from (steps.shut_down(each) for each in meant)
        yield _gate(snapshot, "gone", steps.SHUTDOWN, names, wait_s)


def _gate(
    snapshot: Snapshot, until: str, step: str, names: Sequence[str], wait_s: float, *, queues: Sequence[str] = ()
) -> Action:
    condition = Gate(
        until=until, queues=tuple(queues), nodes=tuple(names), within_s=wait_s, silent=snapshot.silent_nodes
    )
    if until == "paused":
        return steps.gate(step, f"none of {named(names)} consumes its queues", condition)
    return steps.gate(step, CONDITIONS[until].format(nodes=named(names)), condition)
