"""What became of the tasks of open rows → what is wrong, and how rows are closed and lost tasks sent again."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from opslib import plan as plans
from opslib.durations import spell
from opslib.errors import BadParameter
from opslib.facts.rows import (
    AGES,
    BEGUN,
    DEAD,
    ENDED,
    FINISHED,
    LOST,
    OTHERS,
    QUARANTINED,
    STUCK,
    UNKNOWN,
    UNKNOWN_AGE,
    ClassCount,
    Classes,
    Reconciled,
    TaskRow,
)
from opslib.facts.system import NodeInfo
from opslib.findings import Finding, Severity, worst_first
from opslib.plan import Action, Copy, Kind, Plan, RowChange
from opslib.rewrite import fresh
from opslib.selection import RowSelection
from opslib.symptoms import messages, row_classes, sight
from opslib.symptoms.row_classes import classify
from opslib.symptoms.stuck_tasks import Thresholds

__all__ = ["Thresholds", "classify", "diagnose", "plan"]

_RUNBOOK = "reconcile-tasks"
#: Tasks of one class that have a finding of their own; the others share one.
_MOST_FINDINGS = 20
_MOST_NAMED = 5
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
        "Each was lost before it ran, or its node died in it. -p resend=True sends what had not begun once more.",
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
        "That no result is stored does not show that it did not run. A verifier can tell: -p check_execution=True.",
        _RUNBOOK,
    ),
}
_CURE = {
    DEAD: "The runbook dlq-triage shows why they failed, and sends them again.",
    QUARANTINED: "`ops quarantine` shows which run keeps them; `ops undo` puts them back.",
}


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
    said = [cure for sighting, cure in _CURE.items() if any(row.why == row_classes.said(sighting) for row in rows)]
    others = any(row.why not in {row_classes.said(sighting) for sighting in _CURE} for row in rows)
    return " ".join(
        [*(["The runbook stuck-tasks says what holds them, and moves them again."] if others else []), *said]
    )


def _is_dead(rows: Sequence[ClassCount]) -> bool:
    return all(row.why == row_classes.said(DEAD) for row in rows)


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
        if row.age == UNKNOWN_AGE:
            continue  # whether it was open for so long nobody knows, so no filter means it
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
    stuck = row_classes.not_moving(seen, limits)
    for row in seen.gone:
        if row_classes.kind_of(row, stuck) != LOST:
            continue
        if (row.asked or row.sighting == BEGUN) and row.effect is not False:
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
        was=json.dumps({"status": row.status, "last_run": row.last_run, "task_id": row.task_id}),
        becomes=json.dumps({"status": becomes} if becomes else {}),
    )


def _call(row: TaskRow) -> tuple[list[object], dict[str, object]] | None:
    """
    Return the arguments of a row as they were meant: a list by position, an object by name.

    None if nobody can: a table that does not have them says nothing of what the task was given.
    """
    if not row.arguments and not row.kwargs:
        return None
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for text in (row.arguments, row.kwargs):
        try:
            said = json.loads(text or "null")
            json.dumps(said, allow_nan=False)  # which Python reads, and JSON has not
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
