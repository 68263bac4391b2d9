"""A schedule and the beat that serves it → what is overdue, broken or sent twice, and what a person may do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opslib import plan as plans
from opslib.durations import seconds, spell
from opslib.errors import BadParameter, NotFound, near
from opslib.facts.beat import CONFIGURATION, DJANGO, REDBEAT, ScheduleEntry, Schedules
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Plan, RowChange
from opslib.rewrite import id_for
from opslib.symptoms import sending, sight

RUNBOOK = "beat-schedule"
#: What a person may ask for.
RUN, PAUSE, RESUME, UNLOCK = "run", "pause", "resume", "unlock"
DEEDS = (RUN, PAUSE, RESUME, UNLOCK)
#: Where a task waits whose entry names no queue: Celery's own default.
_DEFAULT_QUEUE = "celery"
#: What a plan calls the table of django-celery-beat's entries.
_BEAT_TABLE = "beat"
#: A beat on tables writes down within so long that it has sent something, whatever else it does.
_WRITTEN_WITHIN_S = 600.0
#: Options of an entry that a message of ours has as well.
_KEPT_OPTIONS = frozenset({"queue", "priority", "routing_key", "exchange"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When an entry counts as overdue.

    Attributes:
        overdue_after_s: Seconds past the moment at which it was due. A beat that sleeps learns of an entry that
            somebody added no sooner than it wakes, after 300 s unless that was set.
    """

    overdue_after_s: float = 360.0

    @classmethod
    def of(cls, overdue_after: str) -> Thresholds:
        """
        Return what was asked for.

        Raises:
            SettingsError: If it is no duration with a unit.
        """
        return cls(overdue_after_s=seconds(overdue_after, "overdue_after"))


def diagnose(seen: Schedules, limits: Thresholds | None = None) -> list[Finding]:
    """Say which entries are overdue or cannot do what they are for, whether beat is dead, and who sends twice."""
    limits = limits or Thresholds()
    late = overdue(seen, limits)
    found = [*sight.unseen(seen), *_late(seen, late), *_stale(seen, limits), *_broken(seen), *_untold(seen)]
    found += _twice(seen)
    return worst_first(found)


def overdue(seen: Schedules, limits: Thresholds) -> list[ScheduleEntry]:
    """Return the entries that beat should have sent by now, and has not."""
    latest = seen.taken_at.timestamp() - limits.overdue_after_s
    return [row for row in seen.entries if row.is_on and row.due_at is not None and row.due_at < latest]


def slept_through(seen: Schedules, limits: Thresholds) -> list[ScheduleEntry]:
    """
    Return the entries that the beat which holds the lock has slept through: due long ago, and later than it looked.

    A beat renews its lock each time that it looks at the schedule, and it looks when something is due, also for what
    is paused.
    """
    if seen.lock is None or seen.lock.renewed_ago_s is None:
        return []
    now = seen.taken_at.timestamp()
    looked_at = now - seen.lock.renewed_ago_s
    return [row for row in seen.entries if row.due_at and looked_at < row.due_at < now - limits.overdue_after_s]


def _late(seen: Schedules, late: Sequence[ScheduleEntry]) -> Iterator[Finding]:
    now = seen.taken_at.timestamp()
    newest = max((row.last_run_at for row in seen.entries if row.source == DJANGO and row.last_run_at), default=None)
    for row in late:
        last = f"it was last sent {spell(now - row.last_run_at)} ago" if row.last_run_at else "it was never sent"
        who, hint = _served(seen, row, newest)
        yield Finding(
            code="schedule-overdue",
            severity=Severity.CRITICAL,
            subject=row.name,
            task=row.task,
            message=f"Due {spell(now - (row.due_at or now))} ago ({row.when}); {last}. {who}.",
            evidence={"due_at": row.due_at, "last_run_at": row.last_run_at, "key": row.key},
            hint=hint,
            runbook=RUNBOOK,
        )


def _served(seen: Schedules, row: ScheduleEntry, newest: float | None) -> tuple[str, str]:
    """Return what is known of the beat that should have sent an entry, and what to do about that."""
    if row.source == DJANGO:
        ago = f"{spell(seen.taken_at.timestamp() - newest)} ago" if newest else "never"
        hint = (
            "If that is long ago, start beat; it sends what is overdue once, at once. Else see its log; a beat of an "
            "older release writes a run down only when it sends the next thing."
        )
        return f"The newest run that a beat wrote down, of any entry, was {ago}", hint
    if seen.lock is None:
        return "No beat holds the schedule's lock", "Start beat. It sends what is overdue once, at once."
    hint = "See its log. Where its lock is stale, `-p do=unlock` lets another one begin."
    return "A beat holds the schedule's lock, and sleeps", hint


def untold(seen: Schedules) -> list[ScheduleEntry]:
    """
    Return the entries of a table that were changed, and of which beat was not told.

    Django tells beat of each change that it makes, but not of one by SQL or by `QuerySet.update`. A row that beat has
    saved itself shows by the run that it wrote down with that.
    """
    told_at = seen.told_at or 0.0
    found = []
    for row in seen.entries:
        if row.source != DJANGO or row.changed_at is None:
            continue
        if row.is_on is False:
            # Whoever switches one off by Django forgets its last run as well, and tells beat of it.
            is_untold = row.last_run_at is not None and told_at <= row.last_run_at
        else:
            by_beat = row.last_run_at is not None and row.changed_at - row.last_run_at < _WRITTEN_WITHIN_S
            is_untold = row.changed_at > told_at + 1 and not by_beat
        found += [row] if is_untold else []
    return found


def _untold(seen: Schedules) -> Iterator[Finding]:
    now = seen.taken_at.timestamp()
    told = f"{spell(now - seen.told_at)} ago" if seen.told_at else "never"
    for row in untold(seen):
        what = "It is switched off" if row.is_on is False else "It was changed"
        yield Finding(
            code="schedule-untold",
            severity=Severity.ATTENTION,
            subject=row.name,
            task=row.task,
            message=f"{what}, and beat was not told: it was last told of a change {told}. It goes on as before.",
            evidence={"changed_at": row.changed_at, "told_at": seen.told_at, "key": row.key},
            hint="Save any entry in Django's admin, or restart beat. One of a recent release reads all of it again "
            "every 5 minutes.",
            runbook=RUNBOOK,
        )


def _stale(seen: Schedules, limits: Thresholds) -> Iterator[Finding]:
    lock, missed = seen.lock, slept_through(seen, limits)
    if lock is None or not missed:
        return
    longest = max(seen.taken_at.timestamp() - (row.due_at or 0.0) for row in missed)
    yield Finding(
        code="beat-lock-stale",
        severity=Severity.CRITICAL,
        subject=lock.key,
        message=f"It was last renewed {spell(lock.renewed_ago_s)} ago, and something has been due for "
        f"{spell(longest)}: its beat has ended, or hangs. No other one begins for another {spell(lock.life_s)}.",
        evidence={"life_s": round(lock.life_s), "renewed_ago_s": lock.renewed_ago_s, "slept_through": len(missed)},
        hint="Make sure that the old beat is gone; `-p do=unlock` removes the lock, so that a new one begins at once.",
        runbook=RUNBOOK,
    )


def _broken(seen: Schedules) -> Iterator[Finding]:
    """Entries that beat sends in vain: nobody has the task, or nobody consumes the queue; or that it cannot read."""
    known = {task.name for node in seen.answering for task in node.tasks}
    consumed = {name for node in seen.answering for name in node.queues}
    whole = bool(seen.answering) and not seen.silent_nodes
    for row in seen.entries:
        if row.is_on is False:
            continue
        why = row.problem
        # A node does not tell of Celery's own tasks, such as celery.backend_cleanup; every node has them.
        if not why and whole and known and row.task not in known and not row.task.startswith("celery."):
            why = f"No node has a task {row.task}: what beat sends is dropped as not registered."
        elif not why and whole and row.queue and row.queue not in consumed:
            why = f"No node consumes {row.queue}, where its tasks wait."
        if why:
            yield Finding(
                code="schedule-broken",
                severity=Severity.ATTENTION,
                subject=row.name,
                task=row.task,
                message=f"{why} ({row.when})" if row.when else why,
                evidence={"queue": row.queue, "source": row.source, "key": row.key},
                hint="Was the task renamed, or its node not deployed? Mend the entry where it is written down.",
                runbook=RUNBOOK,
            )


def _twice(seen: Schedules) -> Iterator[Finding]:
    for row in seen.twice:
        yield Finding(
            code="beat-twice",
            severity=Severity.CRITICAL,
            subject=row.queue,
            task=row.task,
            message=f"{len(row.senders)} processes send it by turns, as {row.messages:,} messages of theirs tell.",
            evidence={"senders": list(row.senders), "messages": row.messages},
            hint="Two beats run: every task runs twice. The hosts stand in the senders' names; end all but one.",
            runbook=RUNBOOK,
        )


def plan(seen: Schedules, limits: Thresholds | None = None, *, do: str, name: str = "", to: str = "") -> Plan:
    """
    Propose what a person asks for: send an entry's task now, leave an entry out, let it in again, or unlock.

    Args:
        do: One of DEEDS; empty proposes nothing.

        name: The entry that is meant, for all but unlock.

        to: run: the queue where the task waits; empty for the one that the entry names.

    Raises:
        BadParameter: If it is none of these, needs a name, or cannot be done to that entry.

        NotFound: If there is no entry of that name.
    """
    actions: list[Action] = []
    fingerprint = seen.fingerprint
    if do and do not in DEEDS:
        raise BadParameter(f"do: {do!r} is none of {', '.join(DEEDS)}.", hint=near(do, DEEDS))
    if do == UNLOCK:
        actions, fingerprint = [_unlocked(seen, limits or Thresholds())], _site(seen)
    elif do:
        row = _named(seen, name, do)
        actions = [_sent(seen, row, to)] if do == RUN else [_switched(row, on=do == RESUME)]
        fingerprint = _site(seen) if do != RUN and row.source == REDBEAT else fingerprint
    return plans.make(seen.target, fingerprint, actions, max_actions=1, made_at=seen.taken_at)


def _site(seen: Schedules) -> str:
    """Return the database where redbeat's keys may be changed; raise `BadParameter` if they may only be read."""
    if seen.elsewhere and not seen.site:
        raise BadParameter(
            f"redbeat keeps its schedule in {seen.elsewhere}, as a node says: enough to look there, not to change it.",
            hint='Name it in the target: beat_url = "env:NAME".',
        )
    return seen.site or seen.fingerprint


def _named(seen: Schedules, name: str, do: str) -> ScheduleEntry:
    names = [row.name for row in seen.entries]
    if not name:
        raise BadParameter(
            f"do={do} needs a name: which entry of the schedule?", hint=f"There are: {', '.join(names)}."
        )
    for row in seen.entries:
        if row.name == name:
            return row
    raise NotFound(
        f"The schedule has no entry {name}.",
        hint=near(name, names, otherwise="`ops schedule list` shows what there is."),
    )


def _sent(seen: Schedules, row: ScheduleEntry, to: str) -> Action:
    if row.problem:
        raise BadParameter(f"{row.name} cannot be sent. {row.problem}")
    if not row.call:
        raise BadParameter(f"{row.name} cannot be sent from here: its arguments are too large to be read.")
    call: dict[str, Any] = json.loads(row.call)
    queue = to or row.queue or _DEFAULT_QUEUE
    order = sending.Order(task=row.task, args=call["args"], kwargs=call["kwargs"], priority=row.priority)
    task_id = id_for(f"{seen.fingerprint}/{row.name}", seen.taken_at.isoformat())
    action = sending.action(order, queue, task_id=task_id, now=seen.taken_at)
    left_out = sorted(set(call["options"]) - _KEPT_OPTIONS)
    more = f" Left out are its options: {', '.join(left_out)}." if left_out else ""
    return replace(action, source=row.name, effect=f"{action.effect} The schedule goes on as before.{more}")


def _switched(row: ScheduleEntry, *, on: bool) -> Action:
    if row.source == CONFIGURATION:
        raise BadParameter(
            f"{row.name} stands in the application's configuration alone, which nobody changes while beat runs.",
            hint="Take it out there and start beat anew; or let redbeat or django-celery-beat keep the schedule.",
        )
    if row.problem:
        raise BadParameter(f"{row.name} cannot be changed. {row.problem}")
    if row.is_on is on:
        raise BadParameter(f"{row.name} is {'sent' if on else 'left out'} already. Nothing was changed.")
    effect = (
        "Beat sends it again; if it was due meanwhile, at once." if on else "Beat leaves it out until it is resumed."
    )
    change = None
    if row.row is not None:
        key, was = {"id": row.row, "name": row.name}, {"enabled": row.is_on}
        texts = (json.dumps(each) for each in (key, was, {"enabled": on}))
        change = RowChange(table=_BEAT_TABLE, **dict(zip(("key", "was", "becomes"), texts, strict=True)))
        effect += " It is told of the change, and reads its tables anew."
    elif row.is_static and not on:
        effect += " It is configured as well: a beat that starts writes it anew, and sends it again."
    return Action(
        kind=Kind.SWITCH,
        subject=row.name,
        task=row.task,
        source=row.key,
        destination="on" if on else "off",
        copies=(Copy(place="entry", key=row.key, sha256=row.sha256),),
        row=change,
        effect=effect,
    )


def _unlocked(seen: Schedules, limits: Thresholds) -> Action:
    lock = seen.lock
    if lock is None:
        raise BadParameter("Nobody holds the schedule's lock. Nothing was changed.")
    if not slept_through(seen, limits):
        raise BadParameter(
            f"{lock.key} is held by a beat that has slept through nothing: it may well live.",
            hint="A beat that ends as it should removes its lock. Otherwise wait until something is overdue.",
        )
    return Action(
        kind=Kind.DELETE,
        subject=lock.key,
        source="schedule",
        destination="vault",
        copies=(Copy(place="key", key=lock.key, sha256=lock.sha256, life_s=lock.life_s),),
        why="beat-lock-stale",
        effect="A new beat begins at once. An old one that only hung ends itself as soon as it finds its lock gone.",
    )
