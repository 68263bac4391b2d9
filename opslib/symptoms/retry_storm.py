"""Tasks that are retried: a Snapshot → which, how often, after what, whether that ends, and what would end it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib import signatures
from opslib.errors import BadParameter, near, typed
from opslib.facts.retries import RetryingTask, TaskRetries
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Plan
from opslib.symptoms import causes, messages, sight, stops
from opslib.symptoms.retries import CHORD_UNLOCK, by_task, retries_in_window, retrying
from opslib.symptoms.view import View

if TYPE_CHECKING:
    from opslib.broker import Broker

__all__ = ["Thresholds", "by_task", "diagnose", "plan", "retrying"]

RUNBOOK = "retry-storm"
#: Retries in a window below which they are no rate: three in five seconds may be chance.
_FEWEST = 5
#: Loops of one task name that get a finding of their own; the others are counted.
_MOST_LOOPS = 10
#: Tasks that a finding about a name lists, and errors that it quotes.
_MOST_IDS, _MOST_ERRORS = 20, 5


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
    storm_per_minute: int = 300

    @classmethod
    def of(cls, broker: Broker, *, loop_after: int = 0, storm_after: int = 0, storm_per_minute: int = 0) -> Thresholds:
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
    loops = Counter(row.task for row in rows if row.retries >= limits.loop_after)
    heard = retries_in_window(snapshot)
    for name in names:
        rate = name.per_minute or 0.0
        fast = rate >= limits.storm_per_minute and heard[name.task] >= _FEWEST
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
            "max_retries": _cap(name),
            "per_minute": name.per_minute,
            "told_by": name.told_by,
            "loops": loops,
            "errors": dict(list(name.errors.items())[:_MOST_ERRORS]),
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
    if name.cap is not None:
        yield f"Its code gives up after {_times(name.cap)}."
    elif name.endless:
        yield "Its code has no max_retries, so nothing ends that."
    else:
        yield "No node that answered has it, so nothing tells whether that ends."
    if name.count > name.rows:
        yield f"The {name.rows:,} most retried were looked at one by one; the others are counted."


def _cap(name: TaskRetries) -> int | str:
    return ("none" if name.endless else "unknown") if name.cap is None else name.cap


def _storm_hint(name: TaskRetries) -> str:
    error = next(iter(name.errors), "")
    cause = f"See to the cause first: {error}." if error else "See a node's log for the cause first."
    return (
        f"{cause} To stop what is in vain: `ops run {RUNBOOK} -p task={typed(name.task)}`. In its code: max_retries, a "
        "backoff with jitter. A rate limit only slows it, and what a node holds back already keeps to the old one."
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
            severity=Severity.CRITICAL if name.cap is None else Severity.ATTENTION,
            subject=name.task,
            task=name.task,
            message=f"{_tasks(count)} of it retried after {error}{others}: a retry does not heal it, as {why}.",
            evidence={
                "errors": {each: name.errors[each] for each in list(reasons)[:_MOST_ERRORS]},
                "max_retries": _cap(name),
                "told_by": "events and results" if name.told_by == "events" else "results",
            },
            hint=(
                "Retry only after what can pass (autoretry_for, dont_autoretry_for). To stop those: "
                f"`ops run {RUNBOOK} -p task={typed(name.task)} -p signature='{typed(signatures.kind(error))}*'`."
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
                hint=f"`ops run {RUNBOOK} -p stop_loops=true` stops every loop, these among them.",
                runbook=RUNBOOK,
            )


def _retries(finding: Finding) -> int:
    return int(str(finding.evidence["retries"]))


def _unlock_message(finding: Finding) -> str:
    return f"{finding.message} It asks again and again whether a chord is complete, and this one never is."


def _unlock_hint() -> str:
    return (
        "A member of the chord failed, was lost or was stopped, or its result has expired. With results in Redis "
        "Celery needs no such task: whoever sends it has another result backend. To stop it is to give the chord's "
        "body up."
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
    del findings  # they are what a person reads before naming anything; none of them asks by itself
    rows = retrying(snapshot)
    reasons = dict.fromkeys(_named(rows, task, signature, limit), "")
    if stop_loops:
        reasons |= {row.task_id: "retry-loop" for row in rows if row.retries >= limits.loop_after}
    names = {row.task_id: row.task for row in rows}
    actions = [_stop(snapshot, task_id, names[task_id], why) for task_id, why in reasons.items()]
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )


def _stop(snapshot: Snapshot, task_id: str, task: str, why: str) -> Action:
    action = stops.of(snapshot, task_id, task=task, why=why)
    if task == CHORD_UNLOCK:
        return replace(action, effect=f"{action.effect} The chord is given up: its body never runs.")
    return action


def _named(rows: Sequence[RetryingTask], task: str, signature: str, limit: int) -> list[str]:
    """Return the ids of what a person names, the most retried first."""
    if not (task or signature):
        return []
    if not task.strip("*") and not signature.strip("*") and not limit:
        raise BadParameter("This means every task that is retried.", hint="Say how many at most: limit=20.")
    meant = [row for row in rows if _fits(row.task, task) and _fits(row.error, signature)]
    if rows and not meant:
        _refuse(rows, task, signature)
    return [row.task_id for row in meant][: limit or None]


def _fits(text: str, wanted: str) -> bool:
    """Whether a text is what is wanted, or fits it as a glob; an error's text may have brackets in it."""
    return not wanted or text == wanted or (bool(text) and fnmatchcase(text, wanted))


def _refuse(rows: Sequence[RetryingTask], task: str, signature: str) -> None:
    """Say what there is instead: a misspelt name must not pass as a storm that is over."""
    of_task = [row for row in rows if _fits(row.task, task)]
    name, wanted = ("signature", signature) if of_task else ("task", task)
    there = {row.error for row in of_task if row.error} if of_task else {row.task for row in rows}
    hint = near(wanted, there) if there else "Nothing tells what these tasks failed of."
    raise BadParameter(f"{name}: nothing that is retried fits {wanted!r}.", hint=hint)
