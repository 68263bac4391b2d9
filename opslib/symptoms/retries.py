"""A Snapshot → every task that is retried, as a row, and all of them by name: how many, how fast, after what."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from opslib import signatures
from opslib.facts.messages import UNKNOWN_TASK, UnackedMessage, WaitingMessage
from opslib.facts.retries import RetryingTask, TaskRetries
from opslib.facts.snapshot import Reading, Snapshot
from opslib.facts.system import FINAL_STATES, HeldTask, StoredResult, TaskInfo
from opslib.facts.window import TaskEvents

#: Celery's own task that waits for a chord's members where the result backend cannot count them; in no node's list.
CHORD_UNLOCK = "celery.chord_unlock"
#: A task that is in several places is where it is farthest.
_PLACES = ("active", "reserved", "scheduled")
#: What is stored for a retry that no exception asked for, and for one whose node was shut down cold.
_NO_ERROR = frozenset({"", "NoneType", "Retry"})


def retrying(snapshot: Snapshot) -> tuple[RetryingTask, ...]:
    """
    Return every task that was retried and is in flight, the most retried first.

    One row for each id, by the message of its latest attempt. A task that runs and whose message is acknowledged is
    known by its result, where the application keeps extended ones; where not, nobody knows how often it was retried.
    """
    now, held, caps = snapshot.taken_at.timestamp(), _held(snapshot), _caps(snapshot)
    results = {result.task_id: result for result in snapshot.results}
    found: dict[str, RetryingTask] = {}
    messages: Iterable[UnackedMessage | WaitingMessage] = chain(snapshot.unacked, snapshot.waiting)
    for message in messages:
        known = found.get(message.task_id)
        if message.retries > 0 and (known is None or message.retries > known.retries):
            found[message.task_id] = _by_message(message, held.get(message.task_id), now)
    for task in held.values():
        result = results.get(task.task_id)
        if task.task_id not in found and result and result.retries > 0 and result.state not in FINAL_STATES:
            found[task.task_id] = _by_result(task, result)
    errors = _Errors(snapshot)
    rows = [
        replace(row, error=errors.of(row, results.get(row.task_id)), cap=caps.get(row.task)) for row in found.values()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.retries, row.task, row.task_id)))


def by_task(snapshot: Snapshot) -> tuple[TaskRetries, ...]:
    """
    Return what is retried by the name of the task, the name with the most tasks first.

    Of the waiting messages only the most retried have a row, but all are counted.
    """
    rows: dict[str, list[RetryingTask]] = defaultdict(list)
    for row in retrying(snapshot):
        rows[row.task].append(row)
    counted, heard, grown, caps = _only_counted(snapshot), _told(snapshot), _grown(snapshot), _caps(snapshot)
    endless = {task.name for task in _known_tasks(snapshot) if task.max_retries is None} | {CHORD_UNLOCK}
    found: list[TaskRetries] = []
    for task in rows.keys() | counted.keys() | (heard | grown).keys():
        per_minute, told_by = _rate(snapshot, heard[task], grown[task])
        name = _of_name(task, rows[task], counted[task], [each for each in _retried(snapshot) if each.task == task])
        found.append(replace(name, cap=caps.get(task), endless=task in endless, per_minute=per_minute, told_by=told_by))
    return tuple(sorted(found, key=lambda row: (-row.count, -(row.per_minute or 0.0), row.task)))


def retries_in_window(snapshot: Snapshot) -> Counter[str]:
    """Return the retries that were seen in the window, by task: told by nodes, or by two looks, whichever is more."""
    if snapshot.window is None:
        return Counter()
    return _told(snapshot) | _grown(snapshot)


def _of_name(task: str, rows: Sequence[RetryingTask], counted: int, events: Sequence[TaskEvents]) -> TaskRetries:
    errors = Counter(row.error for row in rows if row.error)
    for event in events:
        if event.exception and event.exception not in errors:
            errors[event.exception] = len(event.ids)  # those of its tasks that are no longer in flight, or run just now
    dues = [row.due_in_s for row in rows if row.due_in_s is not None]
    return TaskRetries(
        task=task,
        count=len(rows) + counted,
        rows=len(rows),
        most=max((row.retries for row in rows), default=0),
        errors=dict(sorted(errors.items(), key=lambda item: (-item[1], item[0]))),
        queues=tuple(sorted({row.queue for row in rows if row.queue})),
        nodes=tuple(sorted({row.node for row in rows if row.node})),
        next_in_s=max(0.0, min(dues)) if dues else None,
    )


def _by_message(message: UnackedMessage | WaitingMessage, task: HeldTask | None, now: float) -> RetryingTask:
    waits = isinstance(message, WaitingMessage)
    place = "waiting" if waits else task.place if task else "unacked"
    return RetryingTask(
        task_id=message.task_id,
        task=message.task or UNKNOWN_TASK,
        retries=message.retries,
        place=place,
        queue=message.queue,
        node=task.node if task and not waits else "",
        due_in_s=None if message.eta_at is None or place == "active" else round(message.eta_at - now, 3),
    )


def _by_result(task: HeldTask, result: StoredResult) -> RetryingTask:
    return RetryingTask(
        task_id=task.task_id,
        task=task.task or result.task or UNKNOWN_TASK,
        retries=result.retries,
        place=task.place,
        queue=task.queue,
        node=task.node,
    )


def _held(snapshot: Snapshot) -> dict[str, HeldTask]:
    """Return what nodes hold, by id."""
    found: dict[str, HeldTask] = {}
    for task in sorted(snapshot.held, key=lambda task: _PLACES.index(task.place) if task.place in _PLACES else 9):
        found.setdefault(task.task_id, task)
    return found


def _caps(snapshot: Snapshot) -> Mapping[str, int]:
    """Return the caps that nodes say, by task: the highest where they differ, and none where one of them has none."""
    said: dict[str, list[int | None]] = defaultdict(list)
    for task in _known_tasks(snapshot):
        said[task.name].append(task.max_retries)
    return {task: max(cap for cap in caps if cap is not None) for task, caps in said.items() if None not in caps}


def _known_tasks(snapshot: Snapshot) -> Iterator[TaskInfo]:
    return (task for node in snapshot.answering for task in node.tasks)


class _Errors:
    """
    What attempts failed of, as events tell it of a few tasks whole, and results of every task by its type.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._by_id = {task_id: row.exception for row in _retried(snapshot) for task_id in row.ids}
        self._by_type: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in _retried(snapshot):
            self._by_type[row.task, signatures.kind(row.exception)].add(row.exception)

    def of(self, row: RetryingTask, result: StoredResult | None) -> str:
        """Return a task's error: where only its type is known, the one error of that type that its name has."""
        if told := self._by_id.get(row.task_id):
            return told
        kept = result.exception if result and result.state == "RETRY" else ""
        kind = "" if kept in _NO_ERROR else signatures.of(kept)
        whole = self._by_type.get((row.task, kind), set()) if kind else set()
        return next(iter(whole)) if len(whole) == 1 else kind


# --- how many, and how fast ---


def _only_counted(snapshot: Snapshot) -> Counter[str]:
    """Return the waiting messages by task that were retried and have no row: only the most retried are kept."""
    first: Reading = snapshot.earlier or snapshot
    counted = Counter[str]()
    for queue in snapshot.queues:
        counted.update(queue.retrying)
    counted.subtract(Counter(row.task for row in first.waiting if row.retries > 0))
    return +counted


def _retried(snapshot: Snapshot) -> list[TaskEvents]:
    """Return what nodes told of retries in the window."""
    return [row for row in (snapshot.window.events if snapshot.window else ()) if row.kind == "task-retried"]


def _told(snapshot: Snapshot) -> Counter[str]:
    told = Counter[str]()
    for row in _retried(snapshot):
        if row.task:
            told[row.task] += row.count
    return told


def _grown(snapshot: Snapshot) -> Counter[str]:
    """Return by how much the retries of what both looks saw grew, by task: the least that there were."""
    grown = Counter[str]()
    before = _counts(snapshot.earlier) if snapshot.earlier else {}
    for task_id, (task, retries) in _counts(snapshot).items():
        if task_id in before and retries > before[task_id][1]:
            grown[task] += retries - before[task_id][1]
    return grown


def _counts(look: Reading) -> dict[str, tuple[str, int]]:
    """Return task and retries by id."""
    found: dict[str, tuple[str, int]] = {}
    for message in (*look.unacked, *look.waiting):
        if message.retries >= found.get(message.task_id, ("", 0))[1]:
            found[message.task_id] = (message.task, message.retries)
    return found


def _rate(snapshot: Snapshot, told: int, grown: int) -> tuple[float | None, str]:
    """Return a name's retries in a minute, and by what they are known: whichever saw more of them."""
    window = snapshot.window
    if window is None:
        return None, ""
    apart_s = (snapshot.taken_at - snapshot.earlier.taken_at).total_seconds() if snapshot.earlier else 0.0
    by_looks = grown * 60 / apart_s if apart_s > 0 else 0.0
    by_events = window.per_minute(told)
    if by_events >= by_looks and (told or (window.senders and not window.mute)):
        return round(by_events, 1), "events"
    return round(by_looks, 1), "two looks"
