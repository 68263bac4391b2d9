"""Two records of one runbook on one target → what is new, worse, better and gone since, and what cannot be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from opslib.errors import BadParameter, NotFound
from opslib.findings import ORDER, Verdict
from opslib.records import RunRecord
from opslib.render import archive, judged, words
from opslib.render.grid import Cell, Column, Line, Table
from opslib.render.words import Row

#: What became of a finding, in the order in which a reader wants to know.
CHANGES = ("new", "worse", "better", "gone", "not seen", "remains")
#: Parameters that say how a run is made, not what it looks at.
_MANNERS = frozenset({"dry_run", "target", "yes", "reason", "run"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """
    What became of one finding between two runs.

    Attributes:
        change: One of CHANGES; "not seen" where it was not met again, and the later run did not see everything.

        was: Its severity in the earlier run; empty if it is new.

        severity: In the later run; empty if it was not met there.

        message: As the later run has it; of what was not met there, as the earlier one did.
    """

    change: str
    code: str
    was: str
    severity: str
    subject: str
    task: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """
    One place or part, as two runs told of it.

    Attributes:
        kind: "place", of which each run says how much it read; or "part", which a daily look judges in a figure.

        was: What the earlier run says of it; empty where it did not look there. The same for `now` and the later run.
    """

    kind: str
    name: str
    was: str
    now: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """
    Two runs of one runbook on one target, the earlier one first.

    Attributes:
        figures: Places and parts of which the two runs tell different things.

        asked: How the runs themselves differ, as sentences: what is judged by other limits, or lies on another server,
            may differ for that alone.

        unseen: Places that the earlier or the later run did not see whole, as sentences.
    """

    earlier: RunRecord
    later: RunRecord
    findings: tuple[Changed, ...]
    figures: tuple[Figure, ...]
    asked: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def worse(self) -> list[Changed]:
        """What was not there, or was less bad."""
        return [row for row in self.findings if row.change in {"new", "worse"}]


def chosen(root: Path, ids: tuple[str, str], *, runbook: str = "", target: str = "") -> tuple[RunRecord, RunRecord]:
    """
    Return the runs to compare, the earlier one first.

    Args:
        ids: Of two runs; of one, and empty: the run before it is taken. Both empty: the newest, and the one before.

        runbook: Where no id is given, only runs of this one; the same for `target`.

    Raises:
        NotFound: If there is no such run, or none before it.
    """
    if all(ids):
        earlier, later = sorted((archive.find(root, run_id) for run_id in ids), key=_began)
        return earlier, later
    found = (run for run in archive.runs(root) if run.verdict != Verdict.FAILED)
    if any(ids):
        later = archive.find(root, "".join(ids))
    else:
        meant = (run for run in found if runbook in {"", run.runbook} and target in {"", run.target})
        newest = next(meant, None)
        if newest is None:
            raise NotFound("No such run has been archived yet.", hint="`ops reports list` shows the archived runs.")
        later = newest
    earlier_runs = (run for run in found if _site(run) == _site(later) and _began(run) < _began(later))
    before = next(earlier_runs, None)
    if before is None:
        hint = f"`ops run {later.runbook} --target {later.target}` makes another; `ops reports list` shows all."
        raise NotFound(f"There is no run of {later.runbook} on {later.target} before {later.run_id}.", hint=hint)
    return before, later


def compare(earlier: RunRecord, later: RunRecord) -> Compared:
    """
    Compare what two runs left behind: after the changes of those that made some.

    Raises:
        BadParameter: If they looked at different things, or one of them failed: nothing would follow from it.
    """
    for run in (earlier, later):
        if run.verdict == Verdict.FAILED:
            hint = f"`ops reports open {run.run_id}` shows how far it came."
            raise BadParameter(f"{run.run_id} failed, so it tells of nothing that could be compared.", hint=hint)
    if earlier.run_id == later.run_id:
        raise BadParameter("A run is the same as itself: name two.", hint="`ops reports list` shows the archived runs.")
    if _site(earlier) != _site(later):
        both = " and ".join(f"{run.runbook} on {run.target}" for run in (earlier, later))
        hint = "What one of them does not look for, the other cannot have lost."
        raise BadParameter(f"These are runs of {both}: only two of one runbook on one target compare.", hint=hint)
    partial = {"earlier": _partial(earlier), "later": _partial(later)}
    return Compared(
        earlier=earlier,
        later=later,
        findings=tuple(_findings(earlier, later, is_partial=bool(partial["later"]))),
        figures=tuple(_figures(earlier, later)),
        asked=tuple(_asked(earlier, later)),
        unseen=tuple(
            f"The {which} run did not see all of: {', '.join(places)}." for which, places in partial.items() if places
        ),
    )


def _began(run: RunRecord) -> str:
    return run.started_at or run.run_id


def _site(run: RunRecord) -> tuple[str, str]:
    return run.runbook, run.target


def _partial(run: RunRecord) -> list[str]:
    return [str(row.get("place")) for row in run.coverage if row.get("silent")]


def _findings(earlier: RunRecord, later: RunRecord, *, is_partial: bool) -> list[Changed]:
    old, new = ({judged.key(row): row for row in words.worst_first(run.remaining)} for run in (earlier, later))
    missed = "not seen" if is_partial else "gone"
    pairs: list[tuple[Row | None, Row | None]] = [(old.get(key), row) for key, row in new.items()]
    pairs += [(row, None) for key, row in old.items() if key not in new]
    told = [_changed(before, after, missed) for before, after in pairs]
    return sorted(told, key=lambda row: CHANGES.index(row.change))


def _changed(before: Row | None, after: Row | None, missed: str) -> Changed:
    was, severity = (str(row.get("severity")) if row else "" for row in (before, after))
    row = after or before or {}
    if not before or not after:
        change = "new" if after else missed
    elif severity == was:
        change = "remains"
    else:
        change = "worse" if _rank(severity) < _rank(was) else "better"
    subject, task, message = (str(row.get(name) or "") for name in ("subject", "task", "message"))
    return Changed(
        change=change,
        code=str(row.get("code")),
        was=was,
        severity=severity,
        subject=subject,
        task=task,
        message=message,
    )


def _rank(severity: str) -> int:
    return list(map(str, ORDER)).index(severity) if severity in ORDER else len(ORDER)


def _figures(earlier: RunRecord, later: RunRecord) -> Iterator[Figure]:
    for kind, was, now in (
        ("part", _parts(earlier.areas), _parts(later.areas)),
        ("place", _places(earlier.coverage), _places(later.coverage)),
    ):
        for name in dict.fromkeys((*now, *was)):
            if was.get(name) != now.get(name):
                yield Figure(kind=kind, name=name, was=was.get(name, ""), now=now.get(name, ""))


def _parts(areas: Iterable[Row]) -> dict[str, str]:
    return {str(row.get("name")): f"{row.get('state')}: {row.get('figure')}" for row in areas}


def _places(coverage: Iterable[Row]) -> dict[str, str]:
    return {str(row.get("place")): _read(row) for row in coverage}


def _read(row: Row) -> str:
    silent = f", {words.count(row['silent'])} not" if row.get("silent") else ""
    return f"{words.count(row.get('seen'))} read{silent}"


def _asked(earlier: RunRecord, later: RunRecord) -> Iterator[str]:
    if earlier.broker != later.broker:
        yield f"The broker was {earlier.broker or 'not told'}, and is {later.broker or 'not told'} in the later run."
    for name in sorted({*earlier.parameters, *later.parameters} - _MANNERS):
        was, now = (run.parameters.get(name, "its default") for run in (earlier, later))
        if was != now:
            yield f"{name} was {words.shown(was, 60)}, and is {words.shown(now, 60)} in the later run."


# --- for a program, and for a person ---


def document(found: Compared) -> dict[str, object]:
    """Return the comparison for a program."""
    told = asdict(found)
    for which in ("earlier", "later"):
        run: RunRecord = getattr(found, which)
        told[which] = {"run_id": run.run_id, "started_at": run.started_at, "verdict": run.verdict}
    return {"runbook": found.later.runbook, "target": found.later.target, **told}


def shown(found: Compared) -> list[object]:
    """Return the comparison for a person."""
    counts = Counter(row.change for row in found.findings)
    head = [
        f"{found.later.runbook} on {found.later.target}",
        f"{found.earlier.verdict} → {found.later.verdict}",
        *(f"{counts[word]:,} {word}" for word in CHANGES if counts[word]),
    ]
    runs = [f"earlier: {found.earlier.run_id}", f"later: {found.later.run_id}", _apart(found)]
    doubts = [*found.unseen, *found.asked]
    lines = [Line(tuple(head)), Line(tuple(runs)), *(Line((f"Mind: {sentence}",)) for sentence in doubts)]
    return [*lines, _changes(found), *([_told(found)] if found.figures else [])]


def _apart(found: Compared) -> str:
    was, now = words.moment(found.earlier.started_at), words.moment(found.later.started_at)
    return f"{words.age((now - was).total_seconds())} later" if was and now else ""


def _changes(found: Compared) -> Table:
    return Table(
        title="Findings",
        columns=(
            Column("Since then", "state"),
            Column("Severity", "state"),
            Column("Finding"),
            Column("Task or subject", "code"),
        ),
        rows=[
            (
                row.change,
                row.severity or row.was,
                Cell(row.message, f"it was {row.was}" if row.change in {"worse", "better"} else ""),
                Cell(row.task, row.subject) if row.task else Cell(row.subject),
            )
            for row in found.findings
        ],
        empty="No findings then, and none now.",
        limit=200,
        stack=True,
    )


def _told(found: Compared) -> Table:
    return Table(
        title="Figures that differ",
        columns=(Column("What"), Column("Then"), Column("Now")),
        rows=[(row.name, row.was or "not looked at", row.now or "not looked at") for row in found.figures],
        limit=200,
    )
