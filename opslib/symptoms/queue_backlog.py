"""Queues that are long: a Snapshot → how long, how fast they move, what holds them up, and what a person may do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.errors import BadParameter, typed
from opslib.facts.rates import Rate
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import QueueInfo
from opslib.facts.window import Flow
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Plan
from opslib.symptoms import messages, priorities, relief, serving, sight
from opslib.symptoms.serving import Slots

if TYPE_CHECKING:
    from opslib.broker import Broker


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When a queue counts as long.

    Attributes:
        queue_depth: Messages that may wait in a queue; more are a backlog.

        scheduled_per_node: Tasks that a node may hold for their time to come; so many are too many.
    """

    queue_depth: int = 10
    scheduled_per_node: int = 10_000

    @classmethod
    def of(cls, broker: Broker, *, queue_depth: int = 0, scheduled_per_node: int = 0) -> Thresholds:
        """
        Return what was asked for, and for the rest the target's own.

        Raises:
            BadParameter: If a number is negative: then no queue could be short enough.
        """
        for name, value in (("queue_depth", queue_depth), ("scheduled_per_node", scheduled_per_node)):
            if value < 0:
                raise BadParameter(f"{name}: {value} is no number of messages.", hint="0 takes the target's own.")
        own = broker.target.thresholds
        return cls(
            queue_depth=queue_depth or own.queue_depth,
            scheduled_per_node=scheduled_per_node or own.scheduled_per_node,
        )


def rates(snapshot: Snapshot) -> tuple[Rate, ...]:
    """Return how fast each queue fills and drains, deepest first; where nobody watched, its depth alone."""
    by_queue: dict[str, list[Flow]] = defaultdict(list)
    for flow in snapshot.window.flows if snapshot.window else ():
        by_queue[flow.queue].append(flow)
    length_s = snapshot.window.length_s if snapshot.window else 0.0
    rows = [_rate(queue, by_queue[queue.name], length_s) for queue in snapshot.queues]
    return tuple(sorted(rows, key=lambda row: (-row.depth, row.queue)))


def _rate(queue: QueueInfo, flows: list[Flow], length_s: float) -> Rate:
    if not flows:
        return Rate(queue=queue.name, depth=queue.depth, before=queue.depth)
    return Rate(
        queue=queue.name,
        depth=sum(flow.after for flow in flows),
        before=sum(flow.before for flow in flows),
        arrived=sum(flow.arrived + flow.restored for flow in flows),
        served=sum(flow.served for flow in flows),
        watched_s=length_s,
        exact=all(flow.exact for flow in flows),
    )


def diagnose(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """
    Say which queues are long and why, worst first, and what could not be told.

    Pure: a saved snapshot gives the same findings again. A queue of exactly `queue_depth` messages is no backlog; a
    node with exactly `scheduled_per_node` scheduled tasks has too many.
    """
    floods = list(serving.eta_flood(snapshot, limits.scheduled_per_node))
    # Such a node takes nothing, and rightly so: its restart, which is the cure for one that lost its consumer, is none.
    full = {("worker-not-consuming", each.subject) for each in floods if each.severity is Severity.CRITICAL}
    found = [
        *(each for each in sight.judge(snapshot) if (each.code, each.subject) not in full),
        *_backlogs(snapshot, limits),
        *messages.without_consumer(snapshot),
        *messages.unreadable(snapshot),
        *serving.unregistered(snapshot),
        *priorities.inverted(snapshot, limits.queue_depth),
        *floods,
        *serving.rate_limited(snapshot),
    ]
    return worst_first(found)


def _backlogs(snapshot: Snapshot, limits: Thresholds) -> Iterator[Finding]:
    """Queues in which more waits than may; critical where they grow, or where it is certain that nobody consumes."""
    moving = {rate.queue: rate for rate in rates(snapshot)}
    for queue in snapshot.queues:
        if queue.depth > limits.queue_depth:
            yield _backlog(snapshot, queue, moving[queue.name], limits)


def _backlog(snapshot: Snapshot, queue: QueueInfo, rate: Rate, limits: Thresholds) -> Finding:
    room = serving.slots(snapshot, queue.consumers)
    nobody = not queue.consumers and not serving.unheard(snapshot)
    return Finding(
        code="queue-backlog",
        severity=Severity.CRITICAL if rate.grows or nobody else Severity.ATTENTION,
        subject=queue.name,
        message=_message(queue, rate, limits),
        evidence={
            "depth": queue.depth,
            "by_priority": dict(queue.by_priority),
            "tasks": dict(islice(queue.by_task.items(), 5)),
            **_moving(rate),
            "consumers": list(queue.consumers[:20]),
            **({"slots": str(room)} if room.total else {}),
            **({"expired": queue.expired} if queue.expired else {}),
            **({"with_eta": queue.scheduled} if queue.scheduled else {}),
        },
        hint=" ".join(_hints(snapshot, queue, rate, room)),
        runbook="queue-backlog",
    )


def _message(queue: QueueInfo, rate: Rate, limits: Thresholds) -> str:
    steps = [f"{n:,} of priority {step}" for step, n in queue.by_priority.items() if n]
    split = f" ({', '.join(steps)})" if len(steps) > 1 or any(queue.by_priority) else ""
    task = next(iter(queue.by_task), "")
    mostly = f", {'all' if len(queue.by_task) == 1 else 'mostly'} {task}" if task else ""
    moving = f" {_sentence(f'{rate.speed}; {rate.outlook}')}" if rate.speed else ""
    return f"{queue.depth:,} messages wait{split}{mostly}; {limits.queue_depth:,} may.{moving}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _moving(rate: Rate) -> dict[str, object]:
    if not rate.watched_s:
        return {}
    least = "" if rate.exact else "at_least_"
    return {
        f"{least}arrive_per_min": round(rate.arrival_per_min, 1),
        f"{least}taken_per_min": round(rate.drain_per_min, 1),
        "growth_per_min": round(rate.growth_per_min, 1),
        "empty_in_s": None if rate.empty_in_s is None else round(rate.empty_in_s, 1),
        "watched_s": round(rate.watched_s, 1),
    }


def _hints(snapshot: Snapshot, queue: QueueInfo, rate: Rate, room: Slots) -> Iterator[str]:
    if queue.expired:
        out = f"`{serving.RELIEF} do=purge-expired -p queue={typed(queue.name)}`"
        yield f"{queue.expired:,} of them have expired, and no worker runs them: {out}."
    if not queue.consumers:
        doubt = serving.unheard(snapshot)
        yield f"Whether anybody consumes it cannot be told: {doubt}." if doubt else "Start a worker with -Q for it."
    elif not room.free:
        yield (
            f"{_busy(room.total)}: start workers, or give these more processes: "
            f"`{serving.RELIEF} do=grow -p queue={typed(queue.name)} -p by=2`."
        )
    elif not rate.served:
        yield (
            f"{room.free:,} of {room.total:,} slots are free and it stands still: see whether a node takes nothing, is "
            "full of tasks with an ETA, or holds tasks back by a rate limit."
        )
    if rate.grows and queue.consumers:
        yield "More comes than is taken: find what sends so much before it is too long to be worth running."


def _busy(slots: int) -> str:
    each = (
        "The only slot of the node that consumes it is"
        if slots == 1
        else f"All {slots:,} slots of the nodes that consume it are"
    )
    return f"{each} busy"


def plan(
    snapshot: Snapshot,
    findings: Iterable[Finding],
    *,
    do: str = "",
    queue: str = "",
    task: str = "*",
    to: str = "",
    node: str = "",
    by: int = 1,
    rate: str = "",
    limit: int = 0,
    max_actions: int = 500,
) -> Plan:
    """
    Return what a person asks for, and nothing where nothing is asked: no backlog is reason enough to drop messages.

    Args:
        do: purge, purge-expired, move, expedite, pause, resume, grow, shrink or limit.

        queue: Queue that is meant; "*" for all of them, where that can be (see `relief.actions`).

        task: Glob of the task's name, for messages; the name itself for a rate limit.

        to: Queue to move messages to.

        node: Node that is meant; all that consume the queue, where none is.

        by: Processes to add to each pool, or to take away.

        rate: Rate limit such as 10/m; 0 for none.

        limit: Messages at most, those that are served first; 0 for all.

    Raises:
        BadParameter: If something is missing, unknown, or cannot be meant.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    del findings  # they are what a person reads before asking; none of them asks by itself
    wish = relief.Wish(do=do, queue=queue, task=task, to=to, node=node, by=by, rate=rate, limit=limit)
    actions = relief.actions(snapshot, wish) if do else []
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )
