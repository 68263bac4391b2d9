"""What was done in a time, as figures → a document for a program, and tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from opslib.facts.system import FINAL_STATES
from opslib.render import words
from opslib.render.grid import Column, Line, Table

_VERDICTS = ("healthy", "attention", "critical", "unknown", "failed")


@dataclass(kw_only=True, slots=True)
class Runs:
    """
    The runs of one name.

    Attributes:
        kind: "runbook"; "command" for a change that was asked for by name; or "by hand", cell by cell, which the audit
            alone knows.

        dry: Runs that were not to change anything.

        audited: How many of them are known from the audit alone; they have no verdict.

        median_s: Of how long they took; None where none tells.
    """

    name: str
    kind: str
    runs: int = 0
    dry: int = 0
    applied: int = 0
    healthy: int = 0
    attention: int = 0
    critical: int = 0
    unknown: int = 0
    failed: int = 0
    audited: int = 0
    median_s: float | None = None


@dataclass(kw_only=True, slots=True)
class Actions:
    """
    The actions of one kind.

    Attributes:
        proposed: In dry runs, which carry nothing out.

        planned: In runs that were to carry them out.

        untold: Planned, and no outcome is on record: the run was refused, or cut off.

        error_rate: Failed and unverified of those that were tried; None where none was.
    """

    kind: str
    proposed: int = 0
    planned: int = 0
    applied: int = 0
    skipped: int = 0
    failed: int = 0
    unverified: int = 0
    untold: int = 0
    error_rate: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """
    Tasks whose work was given to new ones.

    Attributes:
        ids: Of the new tasks, by target.

        looked: Whether their results were asked for.

        succeeded, failed, underway: By the state of their results.

        without_result: There is none: not begun, expired, or not kept. It proves nothing.

        unseen: Why a target's results could not be asked, a sentence each.
    """

    tasks: int = 0
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    looked: bool = False
    succeeded: int = 0
    failed: int = 0
    underway: int = 0
    without_result: int = 0
    unseen: tuple[str, ...] = ()

    @property
    def success_rate(self) -> float | None:
        """Succeeded of those that have ended; None where none is known to have."""
        ended = self.succeeded + self.failed
        return self.succeeded / ended if ended else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """
    What was done to tasks, letters and keys.

    Attributes:
        reordered: Messages that were put elsewhere in their own list.

        keys_removed: Keys of which the value went to a vault.

        bytes_freed: Of those keys whose size is on record.

        sizes_unknown: Keys removed whose size is not on record.

        lives_given: Keys that were given a life, or a shorter one.

        redriven: Dead letters that were sent again.

        redrive_refused: Dead letters that were meant, and not sent again.

        redrives_untold: Actions on dead letters of which the record does not say how many letters they sent.
    """

    reordered: int = 0
    keys_removed: int = 0
    bytes_freed: int = 0
    sizes_unknown: int = 0
    lives_given: int = 0
    redriven: int = 0
    redrive_refused: int = 0
    redrives_untold: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """
    What was done in a time.

    Attributes:
        since: Of the oldest run that is counted; empty where all are.

        newest, oldest: Ids of the runs at both ends; empty where there is none.

        unreadable: Runs whose record is missing or broken; what the audit knows of them is counted.

        audited: Runs that the audit alone knows.

        broken_lines: Lines of the audit that could not be read.

        attention: Ids of the runs that failed, or in which an action did.
    """

    since: str = ""
    target: str = ""
    newest: str = ""
    oldest: str = ""
    runs: int = 0
    unreadable: int = 0
    audited: int = 0
    broken_lines: int = 0
    by_run: tuple[Runs, ...] = ()
    by_kind: tuple[Actions, ...] = ()
    resumed: Resumed = field(default_factory=Resumed)
    work: Work = field(default_factory=Work)
    attention: tuple[str, ...] = ()


# --- how the resumed tasks have ended ---


def looked(found: Figures, states: Mapping[str, Mapping[str, str]], unseen: Sequence[str] = ()) -> Figures:
    """
    Return the figures with how the resumed tasks have ended.

    Args:
        states: State of the result of each task that has one, by the target; a target that was not seen is absent.

        unseen: Why one was not, a sentence each.
    """
    known = [
        states[target].get(each, "") for target, ids in found.resumed.ids.items() if target in states for each in ids
    ]
    succeeded = sum(state == "SUCCESS" for state in known)
    ended = sum(state in FINAL_STATES for state in known)
    return replace(
        found,
        resumed=replace(
            found.resumed,
            looked=bool(states) or not found.resumed.ids,
            succeeded=succeeded,
            failed=ended - succeeded,
            underway=sum(bool(state) for state in known) - ended,
            without_result=sum(not state for state in known),
            unseen=tuple(unseen),
        ),
    )


# --- as data and as tables ---


def document(found: Figures) -> dict[str, object]:
    """Return the figures for a program, with the rate that is worked out."""
    told = asdict(found)
    told["resumed"]["success_rate"] = found.resumed.success_rate
    return told


def tables(found: Figures) -> list[object]:
    """Return the figures for a person."""
    return [Line(_head(found)), _runs(found), _kinds(found), _work(found)]


def _head(found: Figures) -> tuple[str, ...]:
    parts = [words.plural(found.runs, "run"), f"on {found.target}" if found.target else "on every target"]
    parts.append(f"since {words.clock(found.since)}" if found.since else "since the oldest that is kept")
    if found.unreadable:
        parts.append(f"{found.unreadable:,} without a readable record")
    if found.audited:
        parts.append(f"{found.audited:,} known from the audit alone")
    if found.broken_lines:
        parts.append(f"{words.plural(found.broken_lines, 'line')} of the audit not readable")
    return tuple(parts)


def _runs(found: Figures) -> Table:
    commands = any(row.kind == "command" for row in found.by_run)
    judged = [word for word in _VERDICTS if any(getattr(row, word) for row in found.by_run)]
    columns = [Column("Run", "code"), Column("Kind")]
    columns += [Column(title, "number") for title in ("Runs", "Dry", "Applied", *map(str.capitalize, judged), "Median")]
    return Table(
        title="Runs",
        columns=columns,
        rows=[
            (
                row.name,
                row.kind,
                *map(words.count, (row.runs, row.dry, row.applied, *(getattr(row, word) for word in judged))),
                "–" if row.median_s is None else words.age(row.median_s),
            )
            for row in found.by_run
        ],
        caption="A command is healthy if all of its change was made." if commands else "",
        empty="No run has been archived in that time.",
        limit=len(found.by_run) or 1,
    )


def _kinds(found: Figures) -> Table:
    titles = ("In dry runs", "To be made", "Applied", "Skipped", "Failed", "Unverified", "Untold", "Error rate")
    return Table(
        title="Changes",
        columns=[Column("Change", "code"), *(Column(title, "number") for title in titles)],
        rows=[
            (
                row.kind,
                *map(
                    words.count,
                    (row.proposed, row.planned, row.applied, row.skipped, row.failed, row.unverified, row.untold),
                ),
                _share(row.error_rate),
            )
            for row in found.by_kind
        ],
        caption="Error rate: failed and unverified of those that were tried; what was skipped was not tried.",
        empty="Nothing was changed, and nothing was to be.",
        limit=len(found.by_kind) or 1,
    )


def _work(found: Figures) -> Table:
    work, resumed = found.work, found.resumed
    rows = [
        ("Tasks resumed", resumed.tasks, _ended(resumed)),
        ("Messages reordered", work.reordered, ""),
        ("Keys removed", work.keys_removed, _freed(work)),
        ("Keys given a life", work.lives_given, ""),
        ("Letters sent again", work.redriven, ""),
        ("Letters refused", work.redrive_refused, ""),
        ("Redrives without figures", work.redrives_untold, "how many letters they sent is not on record"),
    ]
    return Table(
        title="Tasks, keys and letters",
        columns=[Column("What"), Column("How many", "number"), Column("Of this")],
        rows=[(what, words.count(number), told) for what, number, told in rows if number],
        empty="None was resumed, reordered, removed or sent again.",
    )


def _ended(resumed: Resumed) -> str:
    if not resumed.tasks:
        return ""
    if not resumed.looked and not resumed.unseen:
        return "how they have ended was not looked at: --results asks for it"
    parts = [
        (resumed.succeeded, "succeeded"),
        (resumed.failed, "failed"),
        (resumed.underway, "under way"),
        (resumed.without_result, "without a result, which proves nothing"),
    ]
    told = [f"{number:,} {what}" for number, what in parts if number]
    if resumed.success_rate is not None:
        told.append(f"success rate {_share(resumed.success_rate)} of those that have ended")
    unknown = resumed.tasks - sum(number for number, _ in parts)
    if unknown:
        told.append(f"{unknown:,} could not be looked at")
    return ", ".join(told)


def _freed(work: Work) -> str:
    if not work.keys_removed:
        return ""
    told = [f"{words.size(work.bytes_freed)} freed"] if work.bytes_freed else []
    if work.sizes_unknown:
        told.append(f"the size of {work.sizes_unknown:,} is not on record")
    return ", ".join(told)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
