"""Runbooks, runs, settings and faults → the tables of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opslib.render import display
from opslib.render.grid import Column, Line, Table

if TYPE_CHECKING:
    from opslib.catalog import Runbook
    from opslib.demo import Fault
    from opslib.facts import Snapshot
    from opslib.records import RunRecord


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
        rows=[(row.verdict, row.run_id, row.target, row.operator, row.headline) for row in rows],
        empty="No run has been archived yet.",
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
        columns=[Column("finding", "code"), Column("task"), Column("subject", "code"), Column("what happened")],
        rows=[(row.code, row.task, row.subject, row.what) for row in rows],
        caption="ops run stuck-tasks --target demo finds it.",
    )


def tasks(rows: Sequence[object], seen: Snapshot) -> list[object]:
    """Return tasks of any place, a table for each kind of row, with their ages at the time of the snapshot."""
    kinds: dict[type, list[object]] = {}
    for row in rows:
        kinds.setdefault(type(row), []).append(row)
    views = [view for same in kinds.values() for view in display.views(same, seen.taken_at, held=seen.held)]
    return views or [Line(("No such task was seen.",))]
