"""The priorities of waiting messages, and how they are served → those that somebody had the wrong way round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import sqrt

from opslib.facts.snapshot import Snapshot
from opslib.facts.system import QueueInfo
from opslib.facts.window import Flow
from opslib.findings import Finding, Severity

#: So many more urgent messages have to be served in the window, before what is not served beside them starves.
_SERVED = 5
#: The lowest that Celery knows; a higher number counts as this one (facts §1.2).
_LAST = 9


def inverted(snapshot: Snapshot, queue_depth: int) -> Iterator[Finding]:
    """
    Say of each queue whose priorities are out of range, and which of its lists starves.

    A list starves if more than `queue_depth` messages wait in it and none of them was served, or it clearly grew, while
    the same nodes served at least five messages of more urgent steps, and as many came again: nodes take these first,
    of whatever queue. Where the more urgent ones become fewer, its turn comes.
    """
    for queue in snapshot.queues:
        odd = _odd(queue)
        starving = _starving(snapshot, queue, queue_depth)
        if odd or starving:
            yield Finding(
                code="priority-inverted",
                severity=Severity.ATTENTION,
                subject=queue.name,
                message=" ".join([*_told_of_odd(odd), *_told_of_starving(starving)]),
                evidence={
                    "odd_priorities": {f"{task} at {priority}": n for (task, priority), n in odd.most_common(10)},
                    "starving": {f"priority {flow.priority}": flow.after for flow, _ in starving},
                    "more_urgent_served": {f"before {flow.priority}": served for flow, served in starving},
                },
                hint=_hint(),
                runbook="queue-backlog",
            )


def _odd(queue: QueueInfo) -> Counter[tuple[str, int]]:
    return Counter({(task, n): count for task, odd in queue.odd_priorities.items() for n, count in odd.items()})


def _told_of_odd(odd: Counter[tuple[str, int]]) -> Iterator[str]:
    late = Counter[int]()
    early = Counter[int]()
    for (_, priority), count in odd.items():
        (late if priority > _LAST else early)[priority] += count
    for some, end in ((late, "is served last"), (early, "is served first")):
        if some:
            values = ", ".join(str(priority) for priority, _ in some.most_common(3))
            more = " …" * (len(some) > 3)
            counts_as = _LAST if some is late else 0
            yield (
                f"{some.total():,} of its messages {'has' if some.total() == 1 else 'have'} priority {values}{more}: "
                f"that counts as {counts_as}, and {end}."
            )


def _starving(snapshot: Snapshot, queue: QueueInfo, queue_depth: int) -> list[tuple[Flow, int]]:
    """Return the lists of a queue that starve, with how many more urgent messages were served meanwhile."""
    if snapshot.window is None or not queue.consumers:
        return []
    shared = {other.name for other in snapshot.queues if set(other.consumers) & set(queue.consumers)}
    flows = [flow for flow in snapshot.window.flows if flow.queue in shared]
    found = []
    for flow in flows:
        if flow.queue != queue.name or flow.after <= queue_depth:
            continue
        urgent = [other for other in flows if other.priority < flow.priority]
        served = sum(other.served for other in urgent)
        unserved = flow.before > 0 and not flow.served and flow.exact
        if served >= _SERVED and not _clearly(urgent, -1) and (unserved or _clearly([flow], 1)):
            found.append((flow, served))
    return found


def _clearly(flows: Sequence[Flow], sign: int) -> bool:
    """Whether lists grew, or with a sign of -1 became shorter, by more than chance makes of as much coming as going."""
    change = sum(flow.after - flow.before for flow in flows)
    return sign * change > 2 * sqrt(sum(flow.arrived + flow.restored + flow.served for flow in flows))


def _told_of_starving(starving: Sequence[tuple[Flow, int]]) -> Iterator[str]:
    if starving:
        lists = " and ".join(f"{flow.after:,} of priority {flow.priority}" for flow, _ in starving)
        taken = sum(flow.served for flow, _ in starving)
        served = max(served for _, served in starving)
        yield (
            f"{lists} wait, of which {taken or 'none'} {'was' if taken < 2 else 'were'} served while {served:,} more "
            "urgent ones were, and as many came again."
        )


def _hint() -> str:
    return (
        "On Redis 0 is the most urgent and 9 the least: a table in which 10 is critical has to be turned round. "
        "What waits already can be put in front one by one: `ops task reorder`, or by name: `ops queue expedite`."
    )
