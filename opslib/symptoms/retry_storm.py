"""Tasks that are retried: a Snapshot → which, how often, after what, whether that ends, and what would end it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib import signatures
from opslib.durations import spell
from opslib.errors import BadParameter
from opslib.facts import (
    FINAL_STATES,
    UNKNOWN_TASK,
    HeldTask,
    Reading,
    RetryingTask,
    Snapshot,
    StoredResult,
    TaskRetries,
    UnackedMessage,
    WaitingMessage,
)
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Plan
from opslib.symptoms import causes, messages, sight, stops
from opslib.symptoms.view import View

if TYPE_CHECKING:
    from opslib.broker import Broker

RUNBOOK = "retry-storm"
#: Celery's own task that waits for the members of a chord, where the result backend cannot count them.
CHORD_UNLOCK = "celery.chord_unlock"
#: Retries in a window below which they are no rate: three in five seconds may be chance.
_FEWEST = 5
#: Loops of one task name that get a finding of their own; the others are counted.
_MOST_LOOPS = 10
#: Tasks that a finding about a name lists.
_MOST_IDS = 20
_PLACES = ("active", "reserved", "scheduled")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When retries count as wrong.

    Attributes:
        loop_after: Retries after which a task counts as looping.

        storm_after: Tasks of one name that are retried at once; so many are a storm.

        storm_per_minute: Retries of one name in a minute; so many are a storm as well.
    """

    loop_after: int = 10
    storm_after: int = 20
    storm_per_minute: int = 60

    @classmethod
    def of(
        cls, broker: Broker, *, loop_after: int = 0, storm_after: int = 0, storm_per_minute: int = 0
    ) -> Thresholds:
        """
        Return what was asked for, and for the rest the target's own.

        Raises:
            BadParameter: If a number is negative.
        """
        given = {"loop_after": loop_after, "storm_after": storm_after, "storm_per_minute": storm_per_minute}
        for name, value in given.items():
            if value < 0:
                raise BadParameter(f"{name}: {value} must not be negative.", hint="0 takes the target's own.")
        own = broker.target.thresholds
        return cls(**{name: value or getattr(own, name) for name, value in given.items()})


# --- what is retried ---


def retrying(snapshot: Snapshot) -> tuple[RetryingTask, ...]:
    """
    Return every task that was retried and is in flight, the most retried first.

    One row for each id, by the message of its latest attempt. A task that runs and whose message is acknowledged is
    known by its result, where the application keeps extended ones; where not, nobody knows how often it was retried.
    """
    now = snapshot.taken_at.timestamp()
    held, results, errors, caps = _held(snapshot), _results(snapshot), _told_errors(snapshot), _caps(snapshot)
    found: dict[str, RetryingTask] = {}
    for message in (*snapshot.unacked, *snapshot.waiting):
        known = found.get(message.task_id)
        if message.retries > 0 and (known is None or message.retries > known.retries):
            found[message.task_id] = _row_of_message(message, held.get(message.task_id), now)
    for task in held.values():
        result = results.get(task.task_id)
        if task.task_id not in found and result and result.retries > 0 and result.state not in FINAL_STATES:
            found[task.task_id] = _row_of_task(task, result)
    rows = [
        replace(
            row,
            error=_error(results.get(row.task_id), errors.get(row.task_id, "")),
            cap=caps.get(row.task),
            capped=caps.get(row.task) is not None,
        )
        for row in found.values()
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
    counted, told, grown = _only_counted(snapshot), _told_retries(snapshot), _grown(snapshot)
    caps = _caps(snapshot)
    found = []
    for task in rows.keys() | counted.keys() | told.keys():
        per_minute, told_by = _rate(snapshot, told[task], grown[task])
        known = rows[task]
        dues = [row.due_in_s for row in known if row.due_in_s is not None]
        found.append(
            TaskRetries(
                task=task,
                count=len(known) + counted[task],
                rows=len(known),
                most=max((row.retries for row in known), default=0),
                cap=caps.get(task),
                capped=caps.get(task) is not None,
                per_minute=per_minute,
                told_by=told_by,
                errors=_errors(known, snapshot, task),
                queues=tuple(sorted({row.queue for row in known if row.queue})),
                nodes=tuple(sorted({row.node for row in known if row.node})),
                next_in_s=max(0.0, min(dues)) if dues else None,
            )
        )
    return tuple(sorted(found, key=lambda row: (-row.count, -(row.per_minute or 0.0), row.task)))


def _row_of_message(message: UnackedMessage | WaitingMessage, task: HeldTask | None, now: float) -> RetryingTask:
    waits = isinstance(message, WaitingMessage)
    place = "waiting" if waits else task.place if task else "unacked"
    runs = place == "active"
    return RetryingTask(
        task_id=message.task_id,
        task=message.task or UNKNOWN_TASK,
        retries=message.retries,
        place=place,
        queue=message.queue,
        node=task.node if task and not waits else "",
        due_in_s=None if message.eta_at is None or runs else round(message.eta_at - now, 3),
    )


def _row_of_task(task: HeldTask, result: StoredResult) -> RetryingTask:
    return RetryingTask(
        task_id=task.task_id,
        task=task.task or result.task or UNKNOWN_TASK,
        retries=result.retries,
        place=task.place,
        queue=task.queue,
        node=task.node,
    )


def _held(snapshot: Snapshot) -> dict[str, HeldTask]:
    """Return what nodes hold by id; of a task that is in several places, where it is farthest."""
    found: dict[str, HeldTask] = {}
    for task in sorted(snapshot.held, key=lambda task: _PLACES.index(task.place) if task.place in _PLACES else 9):
        found.setdefault(task.task_id, task)
    return found


def _results(snapshot: Snapshot) -> dict[str, StoredResult]:
    return {result.task_id: result for result in snapshot.results}


def _caps(snapshot: Snapshot) -> dict[str, int]:
    """Return the caps that nodes say, by task; the highest where they differ, and none where one of them has none."""
    said: dict[str, list[int | None]] = defaultdict(list)
    for node in snapshot.answering:
        for task in node.tasks:
            said[task.name].append(task.max_retries)
    return {task: max(cap for cap in caps if cap is not None) for task, caps in said.items() if None not in caps}


def _told_errors(snapshot: Snapshot) -> dict[str, str]:
    """Return the errors that nodes told in the window, by id."""
    events = snapshot.window.events if snapshot.window else ()
    return {task_id: row.exception for row in events if row.kind == "task-retried" for task_id in row.ids}


def _error(result: StoredResult | None, told: str) -> str:
    """Return what an attempt failed of: as the node told it, or the type that its result keeps."""
    kept = result.exception if result and result.state == "RETRY" else ""
    # A retry that no exception asked for is stored as one of None's type.
    return told or signatures.of("" if kept in {"NoneType", "Retry"} else kept)


def _errors(rows: Sequence[RetryingTask], snapshot: Snapshot, task: str) -> dict[str, int]:
    """
    Return tasks by error, the commonest first.

    An event names only a few ids, and a result only the type: where one error of that type was told, it is that one.
    """
    told = [row.exception for row in _retried_events(snapshot, task) if row.exception]
    whole = {kind: names for kind in map(signatures.kind, told) if len(names := [t for t in told if signatures.kind(t) == kind]) == 1}
    counts = Counter(whole.get(row.error, [row.error])[0] for row in rows if row.error)
    for each in told:
        counts.setdefault(each, 0)
    for row in _retried_events(snapshot, task):
        if row.exception and not counts[row.exception]:
            counts[row.exception] = len(row.ids)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _retried_events(snapshot: Snapshot, task: str) -> list:  # type: ignore[type-arg]
    events = snapshot.window.events if snapshot.window else ()
    return [row for row in events if row.kind == "task-retried" and row.task == task]


# --- how many, and how fast ---


def _only_counted(snapshot: Snapshot) -> Counter[str]:
    """Return the waiting messages by task that were retried and have no row: only the most retried are kept."""
    first: Reading = snapshot.earlier or snapshot
    counted = Counter[str]()
    for queue in snapshot.queues:
        counted.update(queue.retrying)
    kept = Counter(row.task for row in first.waiting if row.retries > 0)
    counted.subtract(kept)
    return Counter({task: count for task, count in counted.items() if count > 0})


def _told_retries(snapshot: Snapshot) -> Counter[str]:
    """Return the retries that nodes told in the window, by task."""
    told = Counter[str]()
    for row in snapshot.window.events if snapshot.window else ():
        if row.kind == "task-retried" and row.task:
            told[row.task] += row.count
    return told


def _grown(snapshot: Snapshot) -> Counter[str]:
    """Return by how much the retries of what both looks saw grew, by task: the least that there were."""
    grown = Counter[str]()
    if snapshot.earlier is None:
        return grown
    before = _counts(snapshot.earlier)
    for task_id, (task, retries) in _counts(snapshot).items():
        if task_id in before:
            grown[task] += max(0, retries - before[task_id][1])
    return grown


def _counts(look: Reading) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for message in (*look.unacked, *look.waiting):
        if message.retries >= found.get(message.task_id, ("", 0))[1]:
            found[message.task_id] = (message.task, message.retries)
    return found


def _rate(snapshot: Snapshot, told: int, grown: int) -> tuple[float | None, str]:
    """Return retries in a minute, and by what they are known: whichever saw more of them."""
    window = snapshot.window
    if window is None or snapshot.earlier is None:
        return None, ""
    apart_s = (snapshot.taken_at - snapshot.earlier.taken_at).total_seconds()
    by_looks = grown * 60 / apart_s if apart_s > 0 else 0.0
    by_events = window.per_minute(told)
    if by_events >= by_looks and (told or (window.senders and not window.mute)):
        return round(by_events, 1), "events"
    return round(by_looks, 1), "two looks"


# --- judgement ---


def diagnose(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """
    Say what is retried too much or in vain, worst first, and what could not be told.

    Pure: a saved snapshot gives the same findings again. The boundaries count as wrong.
    """
    rows, names = retrying(snapshot), by_task(snapshot)
    view = View(snapshot)
    ids = {row.task_id for row in rows}
    found = [
        *sight.judge(snapshot),
        *_storms(snapshot, names, rows, limits),
        *_hopeless(names),
        *_beyond_cap(rows),
        *_loops(view, limits),
        *(each for each in messages.beyond_visibility(view) if each.subject in ids),
    ]
    return worst_first(found)


def _storms(
    snapshot: Snapshot, names: Sequence[TaskRetries], rows: Sequence[RetryingTask], limits: Thresholds
) -> Iterator[Finding]:
    told, grown = _told_retries(snapshot), _grown(snapshot)
    loops = Counter(row.task for row in rows if row.retries >= limits.loop_after)
    for name in names:
        seen = max(told[name.task], grown[name.task])
        fast = name.per_minute is not None and name.per_minute >= limits.storm_per_minute and seen >= _FEWEST
        if name.count >= limits.storm_after or fast:
            yield _storm(name, loops[name.task], limits)


def _storm(name: TaskRetries, loops: int, limits: Thresholds) -> Finding:
    return Finding(
        code="retry-storm",
        severity=Severity.CRITICAL,
        subject=name.task,
        task=name.task,
        message=" ".join(_storm_sentences(name)),
        evidence={
            "retrying": name.count,
            "most_retries": name.most,
            "max_retries": name.cap if name.capped else "no end, or no node says",
            "per_minute": name.per_minute,
            "told_by": name.told_by,
            "loops": loops,
            "errors": dict(list(name.errors.items())[:5]),
            "queues": list(name.queues[:20]),
            "storm_after": limits.storm_after,
            **({"beyond_rows": name.count - name.rows} if name.count > name.rows else {}),
        },
        hint=_unlock_hint() if name.task == CHORD_UNLOCK else _storm_hint(name),
        runbook=RUNBOOK,
    )


def _storm_sentences(name: TaskRetries) -> Iterator[str]:
    often = f", one of them {_times(name.most)} so far" if name.most else ""
    yield f"{_tasks(name.count)} of it {'is' if name.count == 1 else 'are'} being retried{often}."
    if name.per_minute:
        least = "at least " if name.told_by == "two looks" else ""
        yield f"That is {least}{name.per_minute:,.0f} retries a minute."
    if name.capped:
        yield f"Its code gives up after {name.cap}."
    else:
        yield "No node says an end to that."
    if name.count > name.rows:
        yield f"The {name.rows:,} most retried were looked at one by one; the others are counted."


def _storm_hint(name: TaskRetries) -> str:
    error = next(iter(name.errors), "")
    cause = f"See to the cause first: {error}." if error else "See a node's log for the cause first."
    return (
        f"{cause} What is in vain is stopped with -p task={name.task}. In its code: max_retries, a backoff with jitter. "
        "A rate limit only slows it, and what a node holds back already stays at the old one."
    )


def _hopeless(names: Sequence[TaskRetries]) -> Iterator[Finding]:
    """Names that are retried after an error that the next attempt meets as well."""
    for name in names:
        reasons = {error: why for error in name.errors if (why := causes.hopeless(error))}
        if not reasons:
            continue
        count = sum(name.errors[error] for error in reasons)
        error, why = next(iter(reasons.items()))
        others = f", and {len(reasons) - 1} more such errors" if len(reasons) > 1 else ""
        yield Finding(
            code="hopeless-retry",
            severity=Severity.ATTENTION if name.capped else Severity.CRITICAL,
            subject=name.task,
            task=name.task,
            message=f"{_tasks(count)} of it retried after {error}{others}: a retry does not heal it, as {why}.",
            evidence={
                "errors": {each: name.errors[each] for each in list(reasons)[:5]},
                "max_retries": name.cap if name.capped else "no end, or no node says",
                "told_by": "events and results" if name.told_by == "events" else "results",
            },
            hint=(
                f"Retry only what can pass (autoretry_for, dont_autoretry_for). To stop those that do: -p task={name.task} "
                f"-p signature='{signatures.kind(error)}*'."
            ),
            runbook=RUNBOOK,
        )


def _beyond_cap(rows: Sequence[RetryingTask]) -> Iterator[Finding]:
    """Names of which a task was retried more often than the nodes' code would have it."""
    beyond: dict[str, list[RetryingTask]] = defaultdict(list)
    for row in rows:
        if row.beyond:
            beyond[row.task].append(row)
    for task, those in beyond.items():
        most = those[0]
        yield Finding(
            code="retries-beyond-cap",
            severity=Severity.ATTENTION,
            subject=task,
            task=task,
            message=(
                f"{_tasks(len(those))} of it went beyond max_retries={most.cap}, which is what the nodes have; one was "
                f"retried {_times(most.retries)}."
            ),
            evidence={"tasks": [row.task_id for row in those[:_MOST_IDS]], "max_retries": most.cap},
            hint=(
                "retry(max_retries=…), or retry_kwargs with it, overrides the task's own limit; or an older node still "
                "runs code without one. What the code says there is what counts."
            ),
            runbook=RUNBOOK,
        )


def _loops(view: View, limits: Thresholds) -> Iterator[Finding]:
    """Tasks that loop, the most retried of each name one by one."""
    by_name: dict[str, list[Finding]] = defaultdict(list)
    for finding in messages.retry_loops(view, limits.loop_after):
        by_name[finding.task].append(finding)
    for task, loops in by_name.items():
        loops.sort(key=lambda each: (-_retries(each), each.subject))
        for each in loops[:_MOST_LOOPS]:
            told = replace(each, message=_unlock_message(each), hint=_unlock_hint()) if task == CHORD_UNLOCK else each
            yield replace(told, runbook=RUNBOOK)
        if rest := loops[_MOST_LOOPS:]:
            yield Finding(
                code="retry-loop",
                severity=Severity.CRITICAL,
                subject=f"{task} (others)",
                task=task,
                message=(
                    f"{_tasks(len(rest))} more of it loop, retried {_retries(rest[-1])} to {_retries(rest[0])} times; "
                    f"{limits.loop_after} count as a loop."
                ),
                evidence={"tasks": [each.subject for each in rest[:_MOST_IDS]]},
                hint="-p stop_loops=true stops every loop, these among them.",
                runbook=RUNBOOK,
            )


def _retries(finding: Finding) -> int:
    return int(str(finding.evidence["retries"]))


def _unlock_message(finding: Finding) -> str:
    return f"{finding.message} It asks again and again whether a chord is complete, and this one never is."


def _unlock_hint() -> str:
    return (
        "A member of the chord failed, was lost or was stopped, or its result has expired. With results in Redis Celery "
        "needs no such task: whoever sends it has another result backend. Stopping it gives the chord's body up."
    )


def _tasks(number: int) -> str:
    return f"{number:,} task{'s' * (number != 1)}"


def _times(number: int) -> str:
    return f"{number:,} time{'s' * (number != 1)}"


# --- proposal ---


def plan(
    snapshot: Snapshot,
    findings: Iterable[Finding],
    limits: Thresholds,
    *,
    task: str = "",
    signature: str = "",
    stop_loops: bool = False,
    limit: int = 0,
    max_actions: int = 500,
) -> Plan:
    """
    Propose a durable stop of those retrying tasks that a person names, and nothing where nothing is named.

    Args:
        task: Glob of the tasks' name.

        signature: What they failed of, as the findings say it; a glob of it will do. Where nothing tells what a task
            failed of, it is not meant.

        stop_loops: Every task besides that was retried `loop_after` times or more.

        limit: Tasks at most that are named by task and signature, the most retried first; 0 for all.

    Raises:
        BadParameter: If a glob means everything without a limit, or nothing of what is retried.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    if limit < 0:
        raise BadParameter(f"limit: {limit} must not be negative.", hint="0 means all of them.")
    rows = retrying(snapshot)
    named = _named(rows, _whole_errors(snapshot, rows), task, signature, limit) if task or signature else []
    certain = {f.code for f in findings if f.severity is not Severity.UNKNOWN}
    loops = [row for row in rows if row.retries >= limits.loop_after] if stop_loops and "retry-loop" in certain else []
    reasons: Mapping[str, str] = {**dict.fromkeys((row.task_id for row in named), ""), **{r.task_id: "retry-loop" for r in loops}}
    names = {row.task_id: row.task for row in rows}
    actions = [stops.of(snapshot, task_id, task=names[task_id], why=why) for task_id, why in reasons.items()]
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )
