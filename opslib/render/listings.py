"""Runbooks, runs, settings and faults → the tables of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opslib.render import display, words
from opslib.render.grid import Column, Line, Table

if TYPE_CHECKING:
    from opslib.catalog import Runbook
    from opslib.demo import Fault
    from opslib.facts.messages import Quarantined, QuarantinedMessage
    from opslib.facts.snapshot import Snapshot
    from opslib.records import RunRecord
    from opslib.render.prune import OldRun
    from opslib.writer.audited import Report
    from opslib.writer.lock import Holder


def runbooks(rows: Sequence[Runbook]) -> Table:
    """Return the runbooks by symptom."""
    return Table(
        title="",
        columns=[Column("runbook", "code"), Column("when")],
        rows=[(row.name, row.symptom) for row in rows],
        caption="ops show NAME for its parameters, ops run NAME to run it: nothing is changed without --apply.",
        empty="There are no runbooks here.",
    )


def runbook(row: Runbook) -> list[object]:
    """Return one runbook: what it is for, and its parameters."""
    parameters = Table(
        title="Parameters",
        columns=[Column("name", "code"), Column("type"), Column("default", "code"), Column("meaning")],
        rows=[(each.name, each.type, repr(each.default), each.help) for each in row.parameters],
        caption=f"ops run {row.name} -p NAME=VALUE",
    )
    about = row.about.replace("**", "").replace("`", "")
    return [Line((row.title,)), Line((row.symptom,)), Line((about,)), parameters]


def runs(rows: Sequence[RunRecord]) -> Table:
    """Return runs, as they are given."""
    return Table(
        title="",
        columns=[
            Column("verdict", "state"),
            Column("run", "code"),
            Column("target"),
            Column("operator"),
            Column("what came of it"),
        ],
        rows=[(words.badge(row)[1], row.run_id, row.target, row.operator, row.headline) for row in rows],
        empty="No run has been archived yet.",
        limit=len(rows) or 1,
    )


def altered(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return what no longer agrees with what runs were sealed with."""
    return Table(
        title="",
        columns=[Column("run", "code"), Column("what")],
        rows=[(row["run_id"], row["problem"]) for row in rows],
        empty="Every file is as it was when its run ended.",
        limit=len(rows) or 1,
    )


def old_runs(rows: Sequence[OldRun]) -> Table:
    """Return runs that are older than somebody wants to keep them."""
    return Table(
        title="",
        columns=[Column("run", "code"), Column("size", "number"), Column("keeps what is nowhere else", "code")],
        rows=[(row.run_id, words.size(row.size_bytes), ", ".join(row.kept)) for row in rows],
        empty="No run is as old as that.",
        limit=len(rows) or 1,
    )


def values(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return settings with their origins."""
    columns = [Column("setting", "code"), Column("value", "code"), Column("from")]
    return Table(title="", columns=columns, rows=[(row["setting"], row["value"], row["from"]) for row in rows])


def faults(rows: Sequence[Fault]) -> Table:
    """Return what is truly wrong with the demo."""
    return Table(
        title="What is broken",
        columns=[
            Column("found by", "code"),
            Column("finding", "code"),
            Column("task"),
            Column("subject", "code"),
            Column("what happened"),
        ],
        rows=[(row.runbook, row.code, row.task, row.subject, row.what) for row in rows],
        caption="`ops run NAME --target demo` finds it, whichever stands at its left.",
        limit=len(rows) or 1,
    )


def quarantines(rows: Sequence[Quarantined]) -> Table:
    """Return what every run keeps out of circulation."""
    return Table(
        title="",
        columns=[Column("run", "code"), Column("from", "code"), Column("messages", "number"), Column("size", "number")],
        rows=[(row.run_id, row.queue, words.count(row.count), words.size(row.size_bytes)) for row in rows],
        caption="ops quarantine show RUN for the messages, ops undo RUN to put them back.",
        empty="Nothing is in quarantine here.",
        limit=len(rows) or 1,
    )


def quarantined(rows: Sequence[QuarantinedMessage], total: int) -> Table:
    """Return messages that are kept out of circulation."""
    return Table(
        title="",
        columns=[
            Column("task"),
            Column("task id or sha256", "code"),
            Column("was", "code"),
            Column("queue", "code"),
            Column("size", "number"),
            Column("note"),
        ],
        rows=[
            (row.task or "unreadable", row.subject, row.place, row.queue, words.size(row.size_bytes), row.unreadable)
            for row in rows
        ],
        caption=f"{len(rows):,} of {words.plural(total, 'message')}; their arguments are not shown.",
        limit=len(rows) or 1,
    )


def locks(held: Sequence[tuple[str, Holder]], target: str) -> list[object]:
    """Return who holds the locks of a deployment, whether those runs still live, and how a lock is taken from one."""
    return [_lock(server, holder, target) for server, holder in held] or [Line((f"Nobody is changing {target}.",))]


def _lock(server: str, holder: Holder, target: str) -> Table:
    connected = {
        True: "yes: it may only be slow",
        False: "no client of that run is connected",
        None: "that cannot be seen",
    }[holder.connected]
    left = "never: it has no life" if holder.remaining_ms is None else f"in {words.age(holder.remaining_ms / 1000)}"
    facts = [
        ("lock id", holder.lock_id),
        ("run", holder.run or "none of ours"),
        ("runbook", holder.runbook),
        ("who", holder.who),
        ("host", holder.host),
        ("process", "" if holder.pid is None else str(holder.pid)),
        ("taken", f"{holder.started}, {words.age(holder.age_s)} ago" if holder.age_s is not None else holder.started),
        ("frees itself", left),
        ("still connected", connected),
        ("last batch", _batch(holder)),
    ]
    how = f'ops unlock --target {target} --lock-id {holder.lock_id} --reason "…"'
    return Table(
        title=f"{server} is being changed",
        columns=[Column("what"), Column("value", "code")],
        rows=[(name, value) for name, value in facts if value],
        caption=f"To take the lock from it: {how}" if holder.lock_id else "What has the lock's name is no lock.",
    )


def audit(report: Report) -> list[object]:
    """Return what does not fit in the audit: first what a person has to look at."""
    rows = sorted(report.problems, key=lambda row: not row.person)
    compared = f"compared with {report.broker}" if report.broker else "not compared with a broker"
    found = "whole" if report.whole else f"{sum(row.person for row in rows):,} to look at"
    return [
        Table(
            title="",
            columns=[Column("what"), Column("line", "number"), Column("what it means")],
            rows=[
                (row.kind if row.person else f"({row.kind})", row.line or "", row.says.replace("\n", " "))
                for row in rows
            ],
            caption="What stands in brackets is only good to know." if any(not row.person for row in rows) else "",
            empty="Every line fits the one before it, and every change has its result.",
            limit=len(rows) or 1,
        ),
        Line((str(report.path), words.plural(report.lines, "line"), compared, found)),
    ]


def _batch(holder: Holder) -> str:
    if not holder.last_batch:
        return "none on record"
    if holder.last_letters == "intent":
        return f"{holder.last_batch}, begun and not ended"
    return f"{holder.last_batch}, ended with {words.plural(len(holder.last_letters), 'item')}"


def tasks(rows: Sequence[object], seen: Snapshot) -> list[object]:
    """Return tasks of any place, a table for each kind of row, with their ages at the time of the snapshot."""
    kinds: dict[type, list[object]] = {}
    for row in rows:
        kinds.setdefault(type(row), []).append(row)
    views = [view for same in kinds.values() for view in display.views(same, seen.taken_at, held=seen.held)]
    return views or [Line(("No such task was seen.",))]
