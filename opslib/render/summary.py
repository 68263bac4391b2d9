"""A run's record → what its command prints at the end: verdict, findings, changes, report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opslib.findings import counted
from opslib.plan import LIFE_S, Status
from opslib.render import areas, judged, words
from opslib.render.grid import Column, Line, Table
from opslib.render.words import Row

if TYPE_CHECKING:
    from opslib.records import RunRecord

#: Ids of one group that are spelled out; the report has them all.
_SUBJECTS = 6
_LIFE = f"{LIFE_S / 60:.0f} min"
#: Outcomes that are all spelled out on a terminal.
_OUTCOMES = 20


def of_run(run: RunRecord, report: str, *, by_make: bool = False) -> tuple[object, ...]:
    """
    Return what a person at a terminal has to know of a run, the most important last, where the eye is.

    Args:
        report: Path of the report as it may be opened from here; empty if there is none.

        by_make: Whether the next command is spelled for make, because this one was.
    """
    shown: list[object] = [areas.table(run.areas)] if run.areas else []
    left = run.remaining or (run.findings if run.error else [])
    beside = run.scope == "change" and not run.error
    if left and not beside:
        shown.append(_findings(left, of=run.runbook if run.areas else ""))
    if run.outcomes and not run.dry_run:
        shown += _outcomes(run)
    silent = [row for row in run.coverage if row.get("silent")]
    shown += [Line((f"Not seen: {row.get('place')}: {row.get('note')}",)) for row in silent]
    shown.append(Verdict(run))
    if beside and left:
        codes = counted(str(row["code"]) for row in left)
        shown.append(Line((f"Beside that, on {run.target}: {codes}. `ops run stuck-tasks` says more.",)))
    shown += [Line((line,)) for line in _next(run, report, by_make=by_make)]
    return tuple(shown)


class Verdict(Line):
    """The verdict's line; a terminal shows it in the verdict's colour."""

    def __init__(self, run: RunRecord) -> None:
        self.word, said = words.badge(run)
        super().__init__(
            (f"{words.SIGNS.get(self.word, '')} {said.upper()}", f"{run.runbook} on {run.target}", words.headline(run))
        )


def _findings(rows: list[dict[str, object]], *, of: str = "") -> Table:
    """
    Put findings of one code and task into one row: forty messages of a dead worker are one thing that is wrong.

    Not those for which something else is to be done.

    Args:
        of: The runbook that looked at everything: what another one answers names it.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in words.worst_first(rows):
        groups.setdefault((row.get("severity"), row.get("code"), row.get("task"), row.get("hint")), []).append(row)
    return Table(
        title="",
        columns=[Column("severity", "state"), Column("finding", "code"), Column("what"), Column("subject", "code")],
        rows=[
            (severity, code, _what(task, group, words.elsewhere(group[0], of)), _subjects(group))
            for (severity, code, task, _), group in groups.items()
        ],
        limit=30,
    )


def _outcomes(run: RunRecord) -> list[object]:
    """Show what became of each action; of many, only those that a person has to look at."""
    actions = words.actions_of(run)
    if len(run.outcomes) <= _OUTCOMES:
        return [judged.outcomes(run.outcomes, actions)]
    counts = ", ".join(f"{n:,} {word}" for word, n in sorted(words.done(run).items()))
    rest = [row for row in run.outcomes if row.get("status") != Status.APPLIED]
    return [
        *([judged.outcomes(rest, actions)] if rest else []),
        Line((f"Outcomes: {counts}; the report has them all.",)),
    ]


def _what(task: object, group: Sequence[Row], runbook: str) -> str:
    more = f" And {len(group) - 1:,} more like it." if len(group) > 1 else ""
    hint = f"\n→ {group[0]['hint']}" if group[0].get("hint") else ""
    message = str(group[0].get("message"))
    hint += f"\n→ ops run {runbook}" if runbook else ""
    return f"{f'{task}: ' if task and str(task) not in message else ''}{message}{more}{hint}"


def _subjects(group: Sequence[Row]) -> str:
    more = [f"+ {len(group) - _SUBJECTS:,} more"] if len(group) > _SUBJECTS else []
    return "\n".join([*(words.shown(row.get("subject")) for row in group[:_SUBJECTS]), *more])


def _next(run: RunRecord, report: str, *, by_make: bool) -> list[str]:
    lines = []
    if run.error and run.error.get("hint"):
        lines.append(run.error["hint"])
    actions = words.actions_of(run)
    if run.dry_run and actions and not run.error:
        lines.append(f"Would: {words.kinds(actions)}. To do just that, within {_LIFE}: ops apply {run.run_id}")
        if by_make:
            lines.append(f'Or, looking anew: make runbook name={run.runbook} target={run.target} args="--apply"')
    if words.undoable(run):
        lines.append(f"To put it back: ops undo {run.parameters.get('run') or run.run_id}")
        lines += filter(None, [words.way_back(run)])
    if report:
        lines.append(f"Report: {report}")
    return lines
