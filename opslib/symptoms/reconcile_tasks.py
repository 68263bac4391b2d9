"""The open rows of an application's own table, and where their tasks were met → what became of each, and what to do."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from opslib import plan as plans
from opslib.durations import spell
from opslib.errors import BadParameter
from opslib.facts import ClassCount, Classes, NodeInfo, Reconciled, RowCount, Sample, TaskRow
from opslib.facts.rows import (
    AGES,
    BEGUN,
    BEYOND,
    CLASSES,
    DEAD,
    ENDED,
    FINISHED,
    HELD,
    LOST,
    NAMELESS,
    NOWHERE,
    OTHERS,
    QUARANTINED,
    STUCK,
    UNACKED,
    UNKNOWN,
    UNKNOWN_AGE,
    UNSEEN,
    WAITING,
    age_of,
)
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Plan, RowChange
from opslib.rewrite import fresh
from opslib.selection import RowSelection
from opslib.symptoms import messages, orphans, sight, stuck_tasks
from opslib.symptoms.stuck_tasks import Thresholds
from opslib.symptoms.view import View

__all__ = ["Thresholds", "classify", "diagnose", "plan"]

_RUNBOOK = "reconcile-tasks"
#: Tasks of one class that have a finding of their own; the others share one.
_MOST_FINDINGS = 20
_MOST_NAMED = 5
#: What makes a task that a node has, or had, one that does not move.
_STUCK_CODES = frozenset({"stuck-active", "orphaned-unacked", "retry-loop"})
_SAID = {
    ENDED: "Its result is {state}.",
    BEGUN: "Its result says {state}, and neither a queue nor a node has it.",
    WAITING: "Its message waits in a queue.",
    UNACKED: "Its message was delivered and is not acknowledged.",
    HELD: "{node} has it.",
    DEAD: "It is a dead letter.",
    QUARANTINED: "A run took its message out of circulation and keeps it.",
    NOWHERE: "It is nowhere, everything was seen, and a result of it would still be there.",
    BEYOND: "It is nowhere. {why}",
    UNSEEN: "It was not found. {why}",
    NAMELESS: "{why}",
}
#: A class → code, severity, what is the case for one row and for several, what to do, and the runbook that does it.
_TOLD: Mapping[str, tuple[str, Severity, str, str, str, str]] = {
    FINISHED: (
        "table-finished-but-open",
        Severity.ATTENTION,
        "1 row is open, and its task has ended",
        "{n} rows are open, and their tasks have ended",
        "The plan writes down how each ended. Then look at what the application does after a task: that fails.",
        _RUNBOOK,
    ),
    LOST: (
        "table-lost",
        Severity.CRITICAL,
        "1 row waits for a task that is nowhere",
        "{n} rows wait for tasks that are nowhere",
        "Each was lost before it ran, or its node died in it. After a look at its effect, -p resend=True sends it.",
        _RUNBOOK,
    ),
    STUCK: (
        "table-stuck",
        Severity.CRITICAL,
        "1 row waits for a task that does not move by itself",
        "{n} rows wait for tasks that do not move by themselves",
        "{cure}",
        "stuck-tasks",
    ),
    UNKNOWN: (
        "table-unknown",
        Severity.UNKNOWN,
        "1 row is open, and nobody can say what became of its task",
        "{n} rows are open, and nobody can say what became of their tasks",
        "No result proves nothing here. A verifier of the task's effect can tell, with -p check_execution=True.",
        _RUNBOOK,
    ),
}
_CURE = {
    DEAD: "The runbook dlq-triage shows why they failed, and sends them again.",
    QUARANTINED: "`ops quarantine` shows which run keeps them; `ops undo` puts them back.",
}


# --- what became of them ---


def classify(seen: Reconciled, limits: Thresholds) -> Classes:
    """
    Sort the rows by what became of their tasks.

    Pure. What a verifier says of a row of which all is told beats a result that is not there; it does not beat a
    message or a node that still has the task.
    """
    stuck = _stuck(seen, limits)
    moved = Counter(_cell(row, seen) for row in seen.met if row.task_id in stuck)
    rows: list[ClassCount] = []
    for each in seen.counts:
        of = (each.table, each.task, each.status, each.sighting, each.age)
        some = min(each.count, moved[of])
        moved[of] -= some
        base = _of(each)
        rows += [replace(base, kind=STUCK, count=some)] if some else []
        rows += [replace(base, count=each.count - some)] if each.count > some else []
    samples = [Sample(row=row, kind=_kind(row, stuck), evidence=_evidence(row, stuck)) for row in seen.samples]
    for sample in samples:
        rows = _corrected(rows, sample, _cell(sample.row, seen))
    return Classes(
        at=seen.taken_at.timestamp(),
        database=seen.database,
        open_for_s=seen.open_for_s,
        tables=seen.tables,
        rows=tuple(_merged(rows)),
        samples=tuple(samples),
        statuses=seen.statuses,
    )


def _stuck(seen: Reconciled, limits: Thresholds) -> Mapping[str, Finding]:
    """Return what is wrong with each task that does not move, by its id."""
    view = View(seen)
    found = [
        *stuck_tasks.active_too_long(view, limits),
        *orphans.judge(view),
        *messages.retry_loops(view, limits.loop_after),
    ]
    return {each.subject: each for each in found if each.code in _STUCK_CODES}


def _of(each: RowCount) -> ClassCount:
    return ClassCount(
        table=each.table,
        task=each.task,
        status=each.status,
        kind=CLASSES[each.sighting],
        state=each.state if each.sighting in {ENDED, BEGUN} else "",
        age=each.age,
        why=each.why or _said(each.sighting, each.state),
        count=each.count,
        longest_s=each.longest_s,
    )


def _cell(row: TaskRow, seen: Reconciled) -> tuple[str, str, str, str, str]:
    known = {each.task for each in seen.counts if each.table == row.table}
    age_s = None if row.last_run_at is None else max(0.0, seen.taken_at.timestamp() - row.last_run_at)
    return row.table, row.task if row.task in known else OTHERS, row.status, row.sighting, age_of(age_s)


def _kind(row: TaskRow, stuck: Mapping[str, Finding]) -> str:
    """Return a row's class, by where it was met and by what its verifier says."""
    kind = CLASSES[row.sighting]
    if row.task_id in stuck and row.sighting in {UNACKED, HELD}:
        return STUCK
    if row.effect and kind in {LOST, UNKNOWN}:
        return FINISHED
    # That it did not happen, and that it is nowhere: only what could not be seen leaves it open.
    return LOST if row.effect is False and row.sighting == BEYOND else kind


def _evidence(row: TaskRow, stuck: Mapping[str, Finding]) -> str:
    said = _said(row.sighting, row.state, row.node, row.why)
    if row.task_id in stuck and row.sighting in {UNACKED, HELD}:
        said = stuck[row.task_id].message
    told = "" if row.effect is None else f"What it brings about is {'' if row.effect else 'not '}there."
    return " ".join(filter(None, (said, told, row.effect_said)))


def _said(sighting: str, state: str = "", node: str = "", why: str = "") -> str:
    return _SAID[sighting].format(state=state, node=node or "A node", why=why)


def _corrected(rows: list[ClassCount], sample: Sample, of: tuple[str, str, str, str, str]) -> list[ClassCount]:
    """Return the counts with one row in the class that its verifier has put it into."""
    table, task, status, sighting, age = of
    kind = CLASSES[sighting]
    if sample.kind in {kind, STUCK}:
        return rows
    for n, each in enumerate(rows):
        same = (each.table, each.task, each.status, each.kind, each.age) == (table, task, status, kind, age)
        if same and each.why == (sample.row.why or _said(sighting, sample.row.state)):
            one = replace(each, kind=sample.kind, count=1, state="", why="Its verifier says so.")
            left = [replace(each, count=each.count - 1)] if each.count > 1 else []
            return [*rows[:n], *left, *rows[n + 1 :], one]
    return rows


def _merged(rows: Iterable[ClassCount]) -> list[ClassCount]:
    """Return the counts with those that are alike as one, the most first."""
    found: dict[ClassCount, tuple[int, float]] = {}
    for row in rows:
        of = replace(row, count=0, longest_s=None)
        count, longest_s = found.get(of, (0, -1.0))
        found[of] = count + row.count, max(longest_s, -1.0 if row.longest_s is None else row.longest_s)
    made = [replace(of, count=n, longest_s=s if s >= 0 else None) for of, (n, s) in found.items()]
    return sorted(made, key=lambda row: (-row.count, row.table, row.task, row.kind, row.age))


# --- what is wrong ---


def diagnose(seen: Reconciled, limits: Thresholds) -> list[Finding]:
    """
    Say for each task which open rows are over, lost, stuck or not to be told of, worst first.

    Pure. Rows whose tasks are still on their way are none; that those ways are open, the deployment's own findings say.
    """
    classes = classify(seen, limits)
    found = [*sight.judge(seen), *messages.without_consumer(seen)]
    for kind in (FINISHED, LOST, STUCK, UNKNOWN):
        found += _of_class(classes, kind)
    return worst_first(found)


def _of_class(classes: Classes, kind: str) -> Iterator[Finding]:
    by_task: defaultdict[tuple[str, str], list[ClassCount]] = defaultdict(list)
    for row in classes.rows:
        if row.kind == kind:
            by_task[row.table, row.task].append(row)
    ranked = sorted(by_task.items(), key=lambda each: (-sum(row.count for row in each[1]), each[0]))
    for (table, task), rows in ranked[:_MOST_FINDINGS]:
        yield _finding(classes, kind, rows, subject=task or "(no name)", table=table)
    rest = ranked[_MOST_FINDINGS:]
    if rest:
        rows = [row for _, some in rest for row in some]
        yield _finding(classes, kind, rows, subject=f"{len(rest):,} further tasks", table=rows[0].table)


def _finding(classes: Classes, kind: str, rows: Sequence[ClassCount], *, subject: str, table: str) -> Finding:
    code, severity, one, several, hint, runbook = _TOLD[kind]
    count = sum(row.count for row in rows)
    known = [row.longest_s for row in rows if row.longest_s is not None]
    longest = spell(max(known)) if known else "nobody knows how long"
    why = f" {next(iter(_counts(rows, 'why')))}" if kind == UNKNOWN else ""
    named = [s.row for s in classes.samples if s.kind == kind and s.row.table == table and s.row.task == subject]
    told = one if count == 1 else several.format(n=f"{count:,}")
    return Finding(
        code=code,
        severity=severity,
        subject=subject,
        message=f"{told}; {'the longest ' * (count > 1)}for {longest}.{why}",
        evidence={
            "table": table,
            "rows": count,
            "by_status": _counts(rows, "status"),
            "by_age": _by_age(rows),
            "because": {why.rstrip("."): n for why, n in _counts(rows, "why").items()},
            "task_ids": [row.task_id for row in named if row.task_id][:_MOST_NAMED],
        },
        hint=hint.format(cure=_cure(rows)),
        runbook=runbook if kind != STUCK or not _is_dead(rows) else "dlq-triage",
    )


def _cure(rows: Sequence[ClassCount]) -> str:
    said = [cure for sighting, cure in _CURE.items() if any(row.why == _said(sighting) for row in rows)]
    others = any(row.why not in {_said(sighting) for sighting in _CURE} for row in rows)
    return " ".join(
        [*(["The runbook stuck-tasks says what holds them, and moves them again."] if others else []), *said]
    )


def _is_dead(rows: Sequence[ClassCount]) -> bool:
    return all(row.why == _said(DEAD) for row in rows)


def _counts(rows: Iterable[ClassCount], field: str) -> dict[str, int]:
    found = Counter[str]()
    for row in rows:
        found[str(getattr(row, field)) or "(none)"] += row.count
    return dict(found.most_common(_MOST_NAMED))


def _by_age(rows: Iterable[ClassCount]) -> dict[str, int]:
    found = Counter[str]()
    for row in rows:
        found[row.age] += row.count
    return {name: found[name] for name in (*(name for _, name in AGES), UNKNOWN_AGE) if found[name]}


# --- what to do ---


def plan(
    seen: Reconciled,
    findings: Sequence[Finding],
    limits: Thresholds,
    *,
    settle: bool = True,
    resend: bool = False,
    queue: str = "",
    max_actions: int = 500,
) -> Plan:
    """
    Propose to write down how tasks ended, and, if asked for, to send again those that are lost.

    A task of which anything is unknown is never sent; nor is one that had begun, unless its verifier says that what it
    brings about is not there.

    Args:
        settle: Whether rows of tasks that have ended are given their status.

        resend: Whether lost tasks are sent again, under the ids that their rows have.

        queue: Where to; empty for the only queue that the nodes which know the task consume.

        max_actions: More are refused: a task that is sent is an action, and so are all rows of one task and end.

    Raises:
        PlanTooLarge: If there are more actions.

        BadParameter: If tasks are to be sent, and nobody knows where to.
    """
    del findings  # they tell the same, in words
    actions = [*_settling(classify(seen, limits), seen)] if settle else []
    actions += [*_resending(seen, limits, queue)] if resend else []
    return plans.make(seen.target, seen.fingerprint, actions, max_actions=max_actions, made_at=seen.taken_at)


def _settling(classes: Classes, seen: Reconciled) -> Iterator[Action]:
    becomes = {table.name: dict(table.becomes) for table in seen.tables}
    by_end: defaultdict[tuple[str, str, str], list[ClassCount]] = defaultdict(list)
    for row in classes.rows:
        if row.kind == FINISHED and row.state in becomes[row.table] and row.task != OTHERS:
            by_end[row.table, row.task, row.state].append(row)
    for (table, task, state), rows in sorted(by_end.items()):
        status = becomes[table][state]
        count = sum(row.count for row in rows)
        only = RowSelection(
            table=table,
            task=task,
            statuses=tuple(sorted({row.status for row in rows})),
            last_run_by=classes.at - classes.open_for_s,
            open_for_s=classes.open_for_s,
            state=state,
            becomes=status,
        )
        yield Action(
            kind=Kind.UPDATE,
            subject=task or table,
            source=f"task_tables.{table}",
            destination=status,
            copies=(Copy(place="rows", key=table, count=count),),
            rows=only,
            why="table-finished-but-open",
            effect=f"{count:,} row{'s get' if count > 1 else ' gets'} the status {status}, for the result is {state}; "
            "each only if row and result still are as they were.",
        )
    yield from _settling_by_effect(classes, becomes)


def _settling_by_effect(classes: Classes, becomes: Mapping[str, Mapping[str, str]]) -> Iterator[Action]:
    """Yield an action for each row of which no result but a verifier says that it is over."""
    for sample in classes.samples:
        row = sample.row
        status = becomes[row.table].get("SUCCESS", "")
        if sample.kind == FINISHED and row.sighting != ENDED and status:
            yield Action(
                kind=Kind.UPDATE,
                subject=row.row_id,
                task=row.task,
                source=f"task_tables.{row.table}",
                destination=status,
                copies=(Copy(place="row", key=row.table, delivery_tag=row.row_id),),
                row=_as_it_was(row, becomes=status),
                why="table-finished-but-open",
                effect=f"The row gets the status {status}, for what its task brings about is there.",
            )


def _resending(seen: Reconciled, limits: Thresholds, queue: str) -> Iterator[Action]:
    stuck = _stuck(seen, limits)
    for row in seen.gone:
        if _kind(row, stuck) != LOST or (row.sighting == BEGUN and row.effect is not False):
            continue
        call = _call(row)
        if call is None or not row.task_id:
            continue
        where = queue or _only_queue(row.task, seen.answering)
        args, kwargs = call
        message = fresh(row.task, args, kwargs, task_id=row.task_id, queue=where)
        yield Action(
            kind=Kind.SEND,
            subject=row.task_id,
            task=row.task,
            source=f"task_tables.{row.table}",
            destination=where,
            message=message.decode(),
            row=_as_it_was(row),
            why="table-lost",
            effect=f"The task waits in {where} again, under the id that its row has; only if that is still open.",
        )


def _as_it_was(row: TaskRow, becomes: str = "") -> RowChange:
    return RowChange(
        table=f"task_tables.{row.table}",
        key=json.dumps({"id": row.row_id}),
        was=json.dumps({"status": row.status, "last_run": row.last_run}),
        becomes=json.dumps({"status": becomes} if becomes else {}),
    )


def _call(row: TaskRow) -> tuple[list[object], dict[str, object]] | None:
    """Return the arguments of a row as they were meant: a list by position, an object by name; None if nobody can."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for text in (row.arguments, row.kwargs):
        try:
            said = json.loads(text or "null")
        except (ValueError, RecursionError):
            return None
        if isinstance(said, list):
            args = said
        elif isinstance(said, dict):
            kwargs = said
        elif said is not None:
            return None
    return args, kwargs


def _only_queue(task: str, nodes: Iterable[NodeInfo]) -> str:
    knowing = [node for node in nodes if any(each.name == task for each in node.tasks)]
    names = sorted({name for node in knowing for name in node.queues})
    if len(names) != 1:
        found = f"the nodes that know it consume {', '.join(names[:5])}" if names else "no node that answers knows it"
        raise BadParameter(f"queue: nobody can say where {task} is sent to: {found}.", hint="Name it: -p queue=celery.")
    return names[0]
