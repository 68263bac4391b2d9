"""A deployment, watched for a while → its flows, its events, and what its nodes accepted meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from opslib.collectors import events, flows, workers
from opslib.facts.snapshot import Snapshot
from opslib.facts.window import Flow, Window

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Between two samples; longer where one takes long, so that watching never keeps a server busy.
STEP_S = 0.5
_REST = 4.0

Totals = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """
    What a window gave, before the second look joins it to the tasks' names.

    Attributes:
        accepted: Tasks that each node accepted meanwhile, by name.

        known: Nodes whose counters were read at both ends.

        deaf: Whether events could not be listened to from begin to end.

        problems: What did not work, as sentences.
    """

    started_at: datetime
    length_s: float
    flows: tuple[Flow, ...]
    heard: events.Heard
    accepted: Totals
    known: frozenset[str]
    told: tuple[str, ...]
    deaf: bool
    problems: tuple[str, ...]


def watch(
    broker: Broker, queues: Iterable[str], *, length_s: float, timeout_s: float, tell_events: bool = False
) -> Watched:
    """
    Watch for a while: in one thread, events are taken in between two samples of the lists.

    Args:
        queues: Names of all that are sampled.

        timeout_s: How long a silent node is waited for, at either end.

        tell_events: Have nodes that send no events send them meanwhile.
    """
    problems: list[str] = []
    told: list[str] = []
    with ExitStack() as stack:
        if tell_events:
            told, problems = stack.enter_context(events.told(broker, timeout_s=timeout_s))
        listener = events.Listener(broker)
        stack.callback(listener.close)
        before = workers.accepted(broker, timeout_s=timeout_s)
        listener.open()
        meter = flows.Meter(broker, queues)
        started_at = broker.server_time()
        begun = time.monotonic()
        meter.sample()
        end, pause_s = begun + length_s, STEP_S
        while (now := time.monotonic()) < end:
            listener.gather(min(end, now + pause_s))
            sampled = time.monotonic()
            meter.sample()
            pause_s = max(STEP_S, _REST * (time.monotonic() - sampled))
        ended = time.monotonic()
        after = workers.accepted(broker, timeout_s=timeout_s)
    if listener.problem:
        problems.append(listener.problem)
    return Watched(
        started_at=started_at,
        length_s=ended - begun,
        flows=tuple(meter.rows()),
        heard=listener.heard,
        accepted={node: _grown(before[node], after[node]) for node in before.keys() & after.keys()},
        known=frozenset(before.keys() & after.keys()),
        told=tuple(told),
        deaf=bool(listener.problem),
        problems=tuple(problems),
    )


def joined(watched: Watched, snapshot: Snapshot) -> Snapshot:
    """Return a second look with what was watched before it."""
    heard = watched.heard
    ran = Counter[str]()
    for by_task in watched.accepted.values():
        ran.update(by_task)
    quiet = sorted(node for node, by_task in watched.accepted.items() if by_task and node not in heard.senders)
    mute = [] if watched.deaf else quiet
    window = Window(
        started_at=watched.started_at,
        length_s=round(watched.length_s, 3),
        flows=tuple(_settled(flow, watched, snapshot) for flow in watched.flows),
        events=tuple(heard.rows(_names(snapshot))),
        senders=tuple(sorted(heard.senders)),
        mute=tuple(mute),
        heard=tuple(sorted(heard.heard)),
        told=watched.told,
        accepted=dict(ran.most_common()),
    )
    row = events.coverage(heard, mute, ran.total(), watched.problems)
    return replace(snapshot, window=window, coverage=(*snapshot.coverage, row))


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Return by how much each counter grew; those of a node that was restarted meanwhile began again."""
    restarted = any(after.get(task, 0) < count for task, count in before.items())
    grown = {task: count - (0 if restarted else before.get(task, 0)) for task, count in after.items()}
    return {task: count for task, count in grown.items() if count}


def _settled(flow: Flow, watched: Watched, snapshot: Snapshot) -> Flow:
    """
    Return a list that was empty at every sample as exact, if nothing can have passed through it.

    That is so if everybody who consumes its queue was asked, accepted nothing, and was delivered nothing meanwhile.
    """
    if flow.exact or flow.before or flow.after or flow.arrived or snapshot.silent_nodes:
        return flow
    consumers = {node.name for node in snapshot.answering if flow.queue in node.queues}
    idle = consumers <= watched.known and not any(watched.accepted[node] for node in consumers)
    since = watched.started_at.timestamp()
    delivered = any(row.queue == flow.queue and (row.delivered_at or since) >= since for row in snapshot.unacked)
    return replace(flow, exact=idle and not delivered)


def _names(snapshot: Snapshot) -> dict[str, str]:
    """Return the tasks of all ids that both looks saw."""
    looks = (snapshot,) if snapshot.earlier is None else (snapshot.earlier, snapshot)
    rows = [row for look in looks for place in (look.unacked, look.held, look.results, look.waiting) for row in place]
    return {row.task_id: row.task for row in rows if row.task}
