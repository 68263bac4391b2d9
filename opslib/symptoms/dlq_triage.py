"""Dead letters: a Snapshot → what each group of them comes of, what is lost or unread, and what a person may do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib.durations import spell
from opslib.errors import BadParameter, typed
from opslib.facts.dead import DeadGroup, DeadLetters, DeadList
from opslib.facts.snapshot import Snapshot
from opslib.findings import Finding, Severity, worst_first
from opslib.keys import DEAD
from opslib.plan import Plan
from opslib.symptoms import autopsy, letters_asked, sight
from opslib.symptoms.autopsy import Judgement

if TYPE_CHECKING:
    from opslib.broker import Broker

RUNBOOK = "dlq-triage"
#: Groups that get a finding of their own, the largest; of more, the rest is counted in one.
_MOST_GROUPS = 30
_MOST_NAMES = 5
#: So many deaths of one cause, and it was no single accident.
_POISON_CRITICAL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When dead letters count as wrong.

    Attributes:
        dead_warn: Letters in one list; so many are for attention.

        dead_critical: Letters in one list, or of one group; so many are critical.
    """

    dead_warn: int = 10
    dead_critical: int = 100

    @classmethod
    def of(cls, broker: Broker, *, dead_warn: int = 0, dead_critical: int = 0) -> Thresholds:
        """
        Return what was asked for, and for the rest the target's own.

        Raises:
            BadParameter: If a number is negative.
        """
        given = {"dead_warn": dead_warn, "dead_critical": dead_critical}
        for name, value in given.items():
            if value < 0:
                raise BadParameter(f"{name}: {value} is no number of letters.", hint="0 takes the target's own.")
        own = broker.target.thresholds
        return cls(**{name: value or getattr(own, name) for name, value in given.items()})


def letters_of(snapshot: Snapshot) -> DeadLetters:
    """Return a snapshot's dead letters; none where nobody looked for them."""
    return snapshot.letters or DeadLetters()


def groups(snapshot: Snapshot) -> tuple[DeadGroup, ...]:
    """Return every group with the word for what it comes of, the largest first."""
    letters = letters_of(snapshot)
    return tuple(replace(group, judgement=autopsy.judge(group, letters).word) for group in letters.groups)


def diagnose(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """
    Say what failed for good and of what, worst first, and what could not be told.

    Pure: a saved snapshot gives the same findings again. A list of exactly `dead_warn` letters is for attention, one of
    exactly `dead_critical` is critical.
    """
    found = [
        *_seen(snapshot),
        *_groups(snapshot, limits),
        *(finding for each in _lists(snapshot) for finding in _of_list(snapshot, each, limits)),
        *_uncaptured(snapshot),
    ]
    return worst_first(found)


def _seen(snapshot: Snapshot) -> Iterator[Finding]:
    """Say what could not be seen; a database with dead letters alone is not the wrong one."""
    empty = f"database {snapshot.server.database}"
    for finding in sight.judge(snapshot):
        if not (letters_of(snapshot).lists and finding.code == "cannot-see" and finding.subject == empty):
            yield finding


def _lists(snapshot: Snapshot) -> list[DeadList]:
    return [each for each in letters_of(snapshot).lists if each.source == "list"]


# --- groups ---


def _groups(snapshot: Snapshot, limits: Thresholds) -> Iterator[Finding]:
    """
    One finding for each group in a list that holds as many as count; what kills workers counts in any number.

    Critical is a group of `dead_critical`, and the largest group of each list that holds so many.
    """
    letters = letters_of(snapshot)
    lengths = {each.key: each.length for each in _lists(snapshot)}
    leading = {
        next((group.name for group in letters.groups if key in group.keys), "")
        for key, length in lengths.items()
        if length >= limits.dead_critical
    }
    beyond: list[DeadGroup] = []
    told = 0
    for group in letters.groups:
        opinion = autopsy.judge(group, letters)
        poison = opinion.word is Judgement.POISON
        if not poison and max((lengths.get(key, 0) for key in group.keys), default=0) < limits.dead_warn:
            continue
        if not poison and told >= _MOST_GROUPS:
            beyond.append(group)
            continue
        told += not poison
        critical = group.count >= limits.dead_critical or group.name in leading
        if poison:
            critical = group.count >= _POISON_CRITICAL or bool(group.redriven) or critical
        yield _group(snapshot, group, opinion, critical=critical)
    rest = letters.ungrouped + sum(group.count for group in beyond)
    if rest:
        yield _rest(rest, len(beyond), letters.ungrouped)


def _group(snapshot: Snapshot, group: DeadGroup, opinion: autopsy.Opinion, *, critical: bool) -> Finding:
    now = snapshot.taken_at.timestamp()
    many = f"{group.count:,} letter{'s' * (group.count != 1)}"
    tasks = f" of {_some(group.tasks)}" if any(group.tasks) else ""
    return Finding(
        code="poison-task" if opinion.word is Judgement.POISON else "dead-letters",
        severity=Severity.CRITICAL if critical else Severity.ATTENTION,
        subject=group.name,
        task=next(iter(group.tasks), ""),
        message=(
            f"{many}{tasks}: {group.signature.rstrip('.')}. {_capital(opinion.word)}: {opinion.why}. "
            f"{_capital(autopsy.when(group, now))}."
        ),
        evidence={
            "judged": str(opinion.word),
            "letters": group.count,
            "lists": {_name(snapshot, key): n for key, n in islice(group.keys.items(), _MOST_NAMES)},
            "tasks": dict(islice(group.tasks.items(), _MOST_NAMES)),
            "causes": dict(group.causes),
            **({"workers": dict(islice(group.workers.items(), _MOST_NAMES))} if any(group.workers) else {}),
            **_spread(group, now),
            **({"sent_again_before": group.redriven} if group.redriven else {}),
            **({"refused": dict(group.refused)} if group.refused else {}),
            **({"without_message": group.inexact} if group.inexact else {}),
        },
        hint=autopsy.advice(group, opinion.word, now),
        runbook=RUNBOOK,
    )


def _spread(group: DeadGroup, now: float) -> dict[str, object]:
    if group.first_at is None or group.last_at is None:
        return {}
    peak = max((n for _, n in group.times), default=0)
    return {
        "first_ago_s": round(now - group.first_at, 1),
        "last_ago_s": round(now - group.last_at, 1),
        "most_at_once": peak,
    }


def _rest(count: int, groups_beyond: int, ungrouped: int) -> Finding:
    return Finding(
        code="dead-letters",
        severity=Severity.ATTENTION,
        subject="(other signatures)",
        message=f"{count:,} more letters have other signatures, too many to be told one by one.",
        evidence={"groups": groups_beyond, "ungrouped": ungrouped},
        hint="Many signatures of one cause have a text that varies: narrow them by task or cause, -p task='shop.*'.",
        runbook=RUNBOOK,
    )


# --- lists ---


def _of_list(snapshot: Snapshot, each: DeadList, limits: Thresholds) -> Iterator[Finding]:
    name = _name(snapshot, each.key)
    if each.arrived:
        watched_s = letters_of(snapshot).watched_s
        pace = f", about {each.arrived * 60 / watched_s:,.0f} a minute" if watched_s else ""
        yield Finding(
            code="dead-letters-growing",
            severity=Severity.CRITICAL if each.length >= limits.dead_critical else Severity.ATTENTION,
            subject=name,
            message=f"{each.arrived:,} came into {name} within {spell(watched_s)}{pace}; it holds {each.length:,}.",
            evidence={"arrived": each.arrived, "length": each.length, "watched_s": round(watched_s, 1)},
            hint=(
                "Whatever makes them fail goes on: mend it before anything is sent again. To stop it for now, pause "
                f"the queue: `ops run queue-backlog -p do=pause -p queue={typed(each.queue)}`."
            ),
            runbook=RUNBOOK,
        )
    if each.dropped:
        yield Finding(
            code="dead-letters-dropped",
            severity=Severity.CRITICAL if each.arrived else Severity.ATTENTION,
            subject=name,
            message=f"{name} was full, and {each.dropped:,} of its letters, the oldest each time, were lost for good.",
            evidence={"dropped": each.dropped, "length": each.length},
            hint="Send again or purge what is in it, so that there is room, or give the capture a higher bound.",
            runbook=RUNBOOK,
        )
    if each.unreadable:
        many = f"{each.unreadable:,} {'entries' if each.unreadable != 1 else 'entry'}"
        yield Finding(
            code="unreadable-letter",
            severity=Severity.ATTENTION,
            subject=name,
            message=f"{many} of {name} cannot be read by anybody, so nobody knows of which task.",
            evidence={"unreadable": each.unreadable, "length": each.length},
            hint="See what else writes into this list. They stay where they are: no filter means them.",
            runbook=RUNBOOK,
        )


def _uncaptured(snapshot: Snapshot) -> Iterator[Finding]:
    letters = letters_of(snapshot)
    rows = [each for each in letters.letters if not each.entry_id]
    tasks: dict[str, int] = {}
    for row in rows:
        tasks[row.task] = tasks.get(row.task, 0) + 1
    ranked = dict(sorted(tasks.items(), key=lambda item: -item[1])[:_MOST_NAMES])
    for each in letters.lists:
        if each.source != "results":
            continue
        one = each.length == 1
        does = "does" if each.unreadable == 1 else "do"
        unnamed = f" {each.unreadable:,} of them {does} not even name the task." if each.unreadable else ""
        yield Finding(
            code="uncaptured-failures",
            severity=Severity.ATTENTION,
            subject=each.key,
            message=(
                f"{each.length:,} result{'s' * (not one)} say{'s' * one} FAILURE, and no letter is kept of "
                f"{'it' if one else 'them'}: {'it' if one else 'they'} cannot be sent again from here.{unnamed}"
            ),
            evidence={"results": each.length, "without_name": each.unreadable, "tasks": ranked},
            hint=(
                "A result holds no message: no chain, no headers, and arguments only with result_extended. Have the "
                "workers keep letters (opslib.worker), so that the next failure can be sent again."
            ),
            runbook=RUNBOOK,
        )


def _name(snapshot: Snapshot, key: str) -> str:
    """Return a list's name without the deployment's prefix."""
    found = next((each for each in letters_of(snapshot).lists if each.key == key), None)
    return f"{found.queue}{DEAD}" if found else key


def _some(counts: Mapping[str, int]) -> str:
    names = [name or "(unknown)" for name in islice(counts, 3)]
    return f"{', '.join(names)}{' …' * (len(counts) > 3)}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


# --- plan ---


def plan(
    snapshot: Snapshot,
    findings: Iterable[Finding],
    *,
    do: str = "",
    queue: str = "",
    task: str = "*",
    signature: str = "",
    cause: str = "",
    entry: str = "",
    older_than: str = "",
    limit: int = 0,
    rate: str = "",
    to: str = "",
    new_ids: bool = False,
    keep_retries: bool = False,
    expired: bool = False,
    args: str = "",
    kwargs: str = "",
    max_actions: int = 500,
) -> Plan:
    """
    Return what a person asks for, and nothing where nothing is asked: whether a task shall run again is theirs to know.

    Args:
        do: redrive, quarantine or purge.

        queue: Queue whose dead letters are meant, or the name of their list; "*" for all of them.

        task: Glob of the task's name.

        signature: Short name of a signature, as the findings say it, or a glob of its text.

        cause: How the task died; a word of `letters.Cause`.

        entry: Entry ids or task ids.

        older_than: Only what failed longer ago, with a unit.

        limit: So many at most, the oldest first; 0 for all.

        rate: So many a second or minute at most, as 10/s.

        to: Queue to send them to; each to its own, where none is named.

        new_ids, keep_retries, expired, args, kwargs: See `plan.Redrive`.

    Raises:
        BadParameter: If something is missing, unknown, or cannot be meant.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    del findings  # they are what a person reads before asking; none of them asks by itself
    wish = letters_asked.Wish(
        do=do,
        queue=queue,
        task=task,
        signature=signature,
        cause=cause,
        entry=entry,
        older_than=older_than,
        limit=limit,
        rate=rate,
        to=to,
        new_ids=new_ids,
        keep_retries=keep_retries,
        expired=expired,
        args=args,
        kwargs=kwargs,
    )
    actions = letters_asked.actions(snapshot, wish) if do else []
    return plans.make(
        snapshot.target, snapshot.fingerprint, actions, max_actions=max_actions, made_at=snapshot.taken_at
    )
