"""What is stored: a Stored → what is kept too long or for ever, what is orphaned, and how it would be cleaned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from opslib import plan as plans
from opslib import retention as retentions
from opslib.durations import spell
from opslib.errors import BadParameter
from opslib.facts.stored import HELD, KEPT, OPAQUE, PAST, UNDATED, Stored, StoredGroup
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Outcome, Plan, Status
from opslib.retention import Retention
from opslib.selection import REPLIES, RESULTS, ResultSelection
from opslib.symptoms import remnants, sight
from opslib.symptoms.remnants import Part

if TYPE_CHECKING:
    from opslib.broker import Broker

#: What may be done with results that never expire.
EXPIRE, DELETE, LEAVE = "expire", "delete", "leave"
#: Nothing is given a shorter life, however short its retention is.
_SHORTEST_LIFE_S = 3600.0
_RUNBOOK = "weekly-cleanup"


def asked(
    broker: Broker,
    *,
    older_than: str = "",
    status: str = "",
    task: str = "",
    result_expires: str = "",
    everything: bool = False,
) -> Retention:
    """
    Return how long the target's results are kept, or what a person asks for in place of that.

    Args:
        older_than: Older than this, whatever the task; "0" for any age.

        status: States, with commas between them, also of the application's own; empty for any.

        task: Glob of the task's name; empty for any.

        result_expires: The application's setting of that name.

        everything: Confirms what would mean all results.

    Raises:
        BadParameter: If all results would be meant, and nobody has confirmed that.

        SettingsError: If a duration is none.
    """
    return retentions.read(
        broker.target.retention,
        older_than=older_than,
        states=[each for each in status.split(",") if each.strip()],
        task=task.strip(),
        result_expires=result_expires,
        everything=everything,
    )


def diagnose(stored: Stored, *, outcomes: Iterable[Outcome] = ()) -> list[Finding]:
    """
    Say what is kept too long, what for ever, what is orphaned, and what could not be told.

    Args:
        outcomes: Of what was just done: results that were given a life are past their retention, and go by themselves.
    """
    given: Counter[str] = Counter()
    for outcome in outcomes:
        only = outcome.action.results
        if only is not None and outcome.action.kind is Kind.EXPIRE and outcome.status is Status.APPLIED:
            given[only.rule] += outcome.action.count
    found = [
        *(each for each in sight.unseen(stored) if not (stored.count and each.subject.startswith("database "))),
        *(each for each in sight.absent(stored) if each.severity is Severity.UNKNOWN),
        *_past(stored, given),
        *_lasting(stored),
        *_replies(stored),
        *remnants.diagnose(stored),
    ]
    return worst_first(found)


def _past(stored: Stored, given: Mapping[str, int]) -> Iterator[Finding]:
    for n, rule in enumerate(stored.retention.rules):
        rows = [row for row in stored.groups if row.rule == n and row.standing == PAST]
        if sum(row.count for row in rows) <= given.get(rule.task, 0):
            continue
        keep = f"older than {spell(rule.keep_s)}" if rule.keep_s else "of whatever age"
        yield Finding(
            code="results-expired",
            severity=Severity.ATTENTION,
            subject=rule.name,
            message=f"{_counted(rows)} are {keep}; they take {_size(rows)}.",
            evidence={
                "keep": spell(rule.keep_s),
                "by_state": _by(rows, "state"),
                "by_task": _by(rows, "task"),
                "by_age": _by(rows, "age"),
            },
            hint="The plan removes those that expire some day; whoever asks for one then is told PENDING.",
            runbook=_RUNBOOK,
        )


def _lasting(stored: Stored) -> Iterator[Finding]:
    for n, rule in enumerate(stored.retention.rules):
        rows = [row for row in stored.groups if row.rule == n and row.lasting]
        meant = [row for row in rows if row.standing in {PAST, KEPT, UNDATED}]
        opaque = sum(row.count for row in rows if row.standing == OPAQUE)
        if not meant and not opaque:
            continue
        left = f" {opaque:,} of them cannot be read, and are left alone." if opaque else ""
        yield Finding(
            code="results-without-ttl",
            severity=Severity.ATTENTION,
            subject=rule.name,
            message=f"{_counted(rows)} never expire; they take {_size(rows)}.{left}",
            evidence={"by_state": _by(rows, "state"), "by_task": _by(rows, "task"), "by_age": _by(rows, "age")},
            hint="The plan gives them a life. Set result_expires in the application, or more will come.",
            runbook=_RUNBOOK,
        )


def _replies(stored: Stored) -> Iterator[Finding]:
    row = stored.leftover("replies")
    if not row.orphaned:
        return
    apart = stored.site != stored.replies_site
    yield Finding(
        code="orphan-reply-keys",
        severity=Severity.ATTENTION,
        subject="*.reply.celery.pidbox",
        message=f"{row.orphaned:,} lists of answers were not touched for {spell(stored.idle_s)}; "
        f"they take {row.size_bytes:,} bytes.",
        evidence={"lists": row.count, "orphaned": row.orphaned, "idle": spell(stored.idle_s)},
        hint="A control client died before it read them. "
        + ("They are in another database than the results: -p clean=replies." if apart else "The plan removes them."),
        runbook=_RUNBOOK,
    )


def plan(
    stored: Stored,
    findings: Iterable[Finding],
    *,
    lasting: str = EXPIRE,
    clean: str = "",
    max_actions: int = 500,
) -> Plan:
    """
    Propose to remove what is past its retention, and to give a life to what has none: an action for each kind.

    Results of tasks that can still be run stay; where that was not seen of every task, no result is touched.

    Args:
        lasting: What becomes of results that never expire: "expire" gives each a life as long as its retention and up
            to a quarter more, "delete" removes those past it, "leave" does nothing.

        clean: The only kind that is meant: "results", "replies", "quarantine", "groups", "checkpoints", "files", or
            "app_keys.NAME". A plan is for one database; without it, that of the results.

    Raises:
        BadParameter: If one of these is none of the words.

        PlanTooLarge: If more than `max_actions` are needed.
    """
    del findings
    parts = _parts(stored, lasting)
    for name, value, known in (("lasting", lasting, (EXPIRE, DELETE, LEAVE)), ("clean", clean, ("", *parts))):
        if value not in known:
            raise BadParameter(f"{name}: {value!r} is unknown.", hint=f"Known: {', '.join(filter(None, known))}.")
    site = parts[clean].site if clean else stored.site or stored.replies_site
    chosen = [part for name, part in parts.items() if (name == clean if clean else part.site == site)]
    actions: list[Action] = []
    for part in chosen:
        actions += part.actions(max_actions - len(actions))
    return plans.make(stored.target, site, actions, max_actions=max_actions, made_at=stored.taken_at)


def _parts(stored: Stored, lasting: str) -> Mapping[str, Part]:
    """Return what a plan may be made of, by name."""
    seen = stored.site and not stored.unseen
    return {
        RESULTS: Part(stored.site or stored.replies_site, lambda _: list(_results(stored, lasting)) if seen else []),
        REPLIES: Part(stored.replies_site, lambda _: list(_orphans(stored))),
        **remnants.parts(stored),
    }


def _results(stored: Stored, lasting: str) -> Iterator[Action]:
    selections = stored.retention.past(stored.taken_at.timestamp())
    for n, only in enumerate(selections):
        rows = [row for row in stored.groups if row.rule == n]
        past = [row for row in rows if row.standing == PAST and (lasting == DELETE or not row.lasting)]
        for state in dict.fromkeys(row.state for row in past):
            if not state.startswith("("):  # beyond those that are told apart, no filter could name it
                meant = replace(only, states=(state,), lasting=None if lasting == DELETE else False)
                yield _removed(stored, n, meant, [row for row in past if row.state == state])
        standings = {KEPT, UNDATED} if lasting == DELETE else {PAST, KEPT, UNDATED}
        for_ever = [row for row in rows if row.lasting and row.standing in standings]
        if for_ever and lasting != LEAVE:
            yield _given_life(stored, n, replace(only, written_by=None, keep_s=0.0, lasting=True), for_ever)


def _removed(stored: Stored, n: int, only: ResultSelection, rows: list[StoredGroup]) -> Action:
    count = sum(row.count for row in rows)
    left = stored.count - sum(row.count for row in stored.groups if row.standing in {OPAQUE, HELD})
    every = " These are all the results that there are." if count == left else ""
    age = f"older than {spell(only.keep_s)}" if only.keep_s else "of any age"
    return Action(
        kind=Kind.DELETE,
        subject=f"{stored.result_root}*",
        task=_named(stored, n),
        source=f"{only.states[0]}, {age}",
        destination="vault",
        copies=(Copy(place="results", key=stored.result_root, count=count),),
        results=only,
        why="results-expired",
        effect=f"{count:,} {only.states[0]} results {age} are removed and kept in the vault of this run; that frees "
        f"{_size(rows)}. Whoever asks for one is told PENDING.{every}",
    )


def _given_life(stored: Stored, n: int, only: ResultSelection, rows: list[StoredGroup]) -> Action:
    count, life_s = sum(row.count for row in rows), max(_SHORTEST_LIFE_S, stored.retention.rules[n].keep_s)
    return Action(
        kind=Kind.EXPIRE,
        subject=f"{stored.result_root}*",
        task=_named(stored, n),
        source="never expires",
        destination=f"{spell(life_s)} to {spell(life_s * 1.25)}",
        copies=(Copy(place="results", key=stored.result_root, count=count, life_s=-1.0),),
        results=only,
        ttl_s=life_s,
        why="results-without-ttl",
        effect=f"{count:,} results that never expire go in {spell(life_s)} or up to a quarter later, not all at once; "
        f"that will free {_size(rows)}.",
    )


def _orphans(stored: Stored) -> Iterator[Action]:
    row = stored.leftover("replies")
    if row.orphaned:
        head, tail = stored.reply_root.rsplit(".reply.celery.pidbox", 1)[0], ".reply.celery.pidbox"
        yield Action(
            kind=Kind.DELETE,
            subject=f"{head}*{tail}",
            source=f"idle for {spell(stored.idle_s)}",
            destination="vault",
            copies=(Copy(place="replies", key=stored.reply_root, count=row.orphaned),),
            results=ResultSelection(what=REPLIES, idle_s=stored.idle_s),
            why="orphan-reply-keys",
            effect=f"{row.orphaned:,} lists of answers that nobody reads are removed and kept in the vault; that frees "
            f"{row.size_bytes:,} bytes.",
        )


def _named(stored: Stored, n: int) -> str:
    """Return whose results an action is about, in a few words."""
    rule, task = stored.retention.rules[n], stored.retention.task
    said = [each for each in dict.fromkeys((rule.task, task)) if each.strip("*")]
    return " and ".join(said) or ("all tasks" if len(stored.retention.rules) == 1 else "tasks without a rule")


def _counted(rows: Iterable[StoredGroup]) -> str:
    count = sum(row.count for row in rows)
    return f"{count:,} result{'s' * (count != 1)}"


def _size(rows: Iterable[StoredGroup]) -> str:
    return f"{sum(row.size_bytes for row in rows):,} bytes of values"


def _by(rows: Iterable[StoredGroup], name: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[str(getattr(row, name)) or "(name not stored)"] += row.count
    return dict(counts.most_common(7))
