"""Records of the archive, and the audit where one is missing → figures: what was run, changed, resumed and freed."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opslib import catalog
from opslib.findings import Verdict
from opslib.folders import NOTEBOOK
from opslib.plan import Kind, Status
from opslib.render import archive, words
from opslib.render.figures import Actions, Figures, Resumed, Runs, Work

if TYPE_CHECKING:
    from opslib.records import RunRecord

#: File of the audit, in the archive.
AUDIT = "audit.jsonl"
#: Why a message is sent that gives a failed task's work to a new one.
_RESUMED = "task-resumable"
#: A figure with more is none of ours.
_MOST_DIGITS = 12
#: What an end of a run looks like in the audit; everything else there is about single batches.
_EVENTS = (b'"begin"', b'"end"', b'"refused"', b'"interrupted"')
_PLANNED = re.compile(r"([a-z]{1,40}) (\d{1,9})")
#: How an outcome tells of letters: "1,204 letters were sent again. 3 stay: …; 1 stays: …".
_SENT, _NONE = re.compile(r"([\d,]+) letters? (?:was|were) sent again"), re.compile(r"^None (?:was sent|of them)")
_REFUSED = re.compile(r"([\d,]+) stays?: ")
#: Outcomes, which are fields of `Actions`, too.
_STATUSES = frozenset(map(str, Status))
#: What a run is called whose notebook a person ran cell by cell; it has no record.
_BY_HAND = "by-hand"
#: A kind for changes of several kinds of which the audit has only the sum.
MIXED = "(several kinds)"


class Audited(msgspec.Struct, kw_only=True):
    """
    What the audit says of a run that was to change something.

    Attributes:
        planned: Actions by kind.

        outcomes: Actions by what became of them; empty for a run that never said.
    """

    run_id: str
    at: str = ""
    target: str = ""
    planned: Counter[str] = msgspec.field(default_factory=Counter)
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)


class _Line(msgspec.Struct):
    """The fields of the audit's lines that are counted."""

    event: str = ""
    run_id: str = ""
    at: str = ""
    target: str = ""
    actions: str = ""
    outcomes: dict[str, int] = {}


_decode = msgspec.json.Decoder(_Line).decode


def read(path: Path) -> tuple[dict[str, Audited], int]:
    """
    Return what the audit says of each run that was to change something, and how many lines could not be read.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    found: dict[str, Audited] = {}
    broken = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found, 0
    with file:
        for line in file:
            if not any(event in line for event in _EVENTS):
                broken += not line.rstrip().endswith(b"}")
                continue
            try:
                said = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                broken += 1
                continue
            _add(found, said)
    return found, broken


def _add(found: dict[str, Audited], said: _Line) -> None:
    if said.event == "begin":
        planned = Counter({kind: int(n) for kind, n in _PLANNED.findall(said.actions)})
        found[said.run_id] = Audited(run_id=said.run_id, at=said.at, target=said.target, planned=planned)
    elif said.event == "end" and said.run_id in found:
        found[said.run_id].outcomes = Counter({s: n for s, n in said.outcomes.items() if s in _STATUSES and n > 0})


def of(root: Path, audited: Mapping[str, Audited], *, since: str = "", target: str = "", broken: int = 0) -> Figures:
    """
    Count what was done.

    Args:
        audited: As `read` returns them.

        since: RFC 3339 in UTC, such as 2026-11-21T02:15:00Z; empty for all that there is.

        target: Only runs on this one; a run without a readable record counts if the audit says so.

        broken: Lines of the audit that could not be read.
    """
    count = _Count()
    stamp = re.sub(r"[-:]", "", since)
    known: set[str] = set()
    for run, record in archive.entries(root, stamp):
        known.add(run.name)
        told = audited.get(run.name)
        on = record.target or (told.target if told else "")
        if not target or on == target:
            count.run(record, told, on, notebook=(run / NOTEBOOK).is_file())
    # What is older than `since` was not opened, and so is not known; its instant says that it is not meant.
    for told in audited.values():
        if told.run_id not in known and told.at >= since and (not target or told.target == target):
            count.audited_only(told)
    return count.figures(since=since, target=target, broken=broken)


class _Count:
    """Runs, one after the other → the figures over all of them."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Runs] = {}
        self._took: dict[tuple[str, str], list[float]] = {}
        self._kinds: dict[str, Actions] = {}
        self._ids: list[str] = []
        self._attention: list[str] = []
        self._resumed: dict[str, list[str]] = {}
        self._tasks = self._unreadable = self._audited = 0
        self._work: Counter[str] = Counter()
        self._names = frozenset(catalog.names())

    def run(self, record: RunRecord, told: Audited | None, target: str, *, notebook: bool) -> None:
        """Add a run of the archive."""
        is_broken = record.error is not None and record.error.get("type") == "NoRecord"
        # A command may have the name of the runbook whose judgement it uses; only the runbook leaves a notebook.
        is_runbook = record.runbook in self._names and (notebook or is_broken or bool(record.error))
        row = self._named(record.runbook, is_runbook=is_runbook)
        dry = record.dry_run and not told
        row.runs += 1
        row.dry, row.applied = row.dry + dry, row.applied + (not dry)
        word = words.badge(record)[0]
        setattr(row, word, getattr(row, word) + 1)
        self._unreadable += is_broken
        self._ids.append(record.run_id)
        if (took_s := _took_s(record)) is not None:
            self._took.setdefault((row.name, row.kind), []).append(took_s)
        if told and not record.outcomes:
            self._of_audit(told)
            bad = bool(_bad(told.outcomes))
        else:
            self._of_record(record, target)
            bad = bool(_bad(words.done(record)))
        if bad or word == Verdict.FAILED:
            self._attention.append(record.run_id)

    def audited_only(self, told: Audited) -> None:
        """Add a run whose folder is gone."""
        name = told.run_id[17:].rpartition("-")[0] or told.run_id
        row = self._named(name, is_runbook=name in self._names)
        row.runs, row.applied, row.audited = row.runs + 1, row.applied + 1, row.audited + 1
        self._audited += 1
        self._ids.append(told.run_id)
        self._of_audit(told)
        if _bad(told.outcomes):
            self._attention.append(told.run_id)

    def figures(self, *, since: str, target: str, broken: int) -> Figures:
        """Return the figures of what was added."""
        for where, took_s in self._took.items():
            self._runs[where].median_s = statistics.median(took_s)
        for row in self._kinds.values():
            row.untold = max(0, row.planned - row.applied - row.skipped - row.failed - row.unverified)
            tried = row.applied + row.failed + row.unverified
            row.error_rate = (row.failed + row.unverified) / tried if tried else None
        return Figures(
            since=since,
            target=target,
            newest=max(self._ids, default=""),
            oldest=min(self._ids, default=""),
            runs=len(self._ids),
            unreadable=self._unreadable,
            audited=self._audited,
            broken_lines=broken,
            by_run=tuple(sorted(self._runs.values(), key=lambda row: (row.kind != "runbook", -row.runs, row.name))),
            by_kind=tuple(sorted(self._kinds.values(), key=lambda row: (-row.planned, -row.proposed, row.kind))),
            resumed=Resumed(tasks=self._tasks, ids=self._resumed),
            work=Work(**self._work),
            attention=tuple(sorted(self._attention, reverse=True)),
        )

    def _named(self, name: str, *, is_runbook: bool) -> Runs:
        kind = "runbook" if is_runbook else "by hand" if name == _BY_HAND else "command"
        return self._runs.setdefault((name, kind), Runs(name=name, kind=kind))

    def _kind(self, name: str) -> Actions:
        return self._kinds.setdefault(name, Actions(kind=name))

    def _of_audit(self, told: Audited) -> None:
        """Add what the audit knows: how many of each kind, and what became of them over all kinds."""
        if len(told.outcomes) == 1 and told.outcomes.total() == told.planned.total():
            (status,) = told.outcomes
            parts = [(kind, number, Counter({status: number})) for kind, number in told.planned.items()]
        elif told.outcomes and len(told.planned) != 1:
            parts = [(MIXED, told.planned.total(), told.outcomes)]
        else:
            parts = [(kind, number, told.outcomes) for kind, number in told.planned.items()]
        for kind, number, outcomes in parts:
            row = self._kind(kind)
            row.planned += number
            for each, done in outcomes.items():
                _add_to(row, each, done)
            self._done_by_audit(kind, outcomes[Status.APPLIED])

    def _done_by_audit(self, kind: str, applied: int) -> None:
        if kind == Kind.REORDER:
            self._work["reordered"] += applied
        elif kind == Kind.DELETE:
            self._work["keys_removed"] += applied
            self._work["sizes_unknown"] += applied
        elif kind == Kind.EXPIRE:
            self._work["lives_given"] += applied
        elif kind == Kind.REDRIVE:
            self._work["redrives_untold"] += applied

    def _of_record(self, record: RunRecord, target: str) -> None:
        actions = words.actions_of(record)
        if record.dry_run:
            for action in actions:
                self._kind(str(action.get("kind"))).proposed += 1
            return
        for action in actions:
            self._kind(str(action.get("kind"))).planned += 1
        by_id = {action.get("id"): action for action in actions if isinstance(action.get("id"), int)}
        applied: list[Mapping[str, object]] = []
        for outcome in record.outcomes:
            number = outcome.get("action")
            if not isinstance(number, int) or number not in by_id:
                continue
            action = by_id[number]
            _add_to(self._kind(str(action.get("kind"))), str(outcome.get("status")), 1)
            if action.get("kind") == Kind.REDRIVE:
                self._redrive(outcome)
            if outcome.get("status") == Status.APPLIED:
                applied.append(action)
        self._done(record, applied, target)

    def _done(self, record: RunRecord, applied: Sequence[Mapping[str, object]], target: str) -> None:
        of = {kind: [row for row in applied if row.get("kind") == kind] for kind in Kind}
        self._work["reordered"] += len(of[Kind.REORDER])
        self._work["lives_given"] += len(of[Kind.EXPIRE])
        sizes = _sizes(record) if of[Kind.DELETE] else {}
        for action in of[Kind.DELETE]:
            size = sizes.get(_key_of(action))
            self._work["keys_removed"] += 1
            self._work["sizes_unknown" if size is None else "bytes_freed"] += 1 if size is None else size
        if new := [str(action.get("subject")) for action in of[Kind.SEND] if action.get("why") == _RESUMED]:
            self._tasks += len(new)
            self._resumed.setdefault(target, []).extend(new)

    def _redrive(self, outcome: Mapping[str, object]) -> None:
        told = _redriven(outcome)
        if told is None:
            self._work["redrives_untold"] += 1
        else:
            self._work["redriven"] += told[0]
            self._work["redrive_refused"] += told[1]


def _add_to(row: Actions, status: str, number: int) -> None:
    if status in _STATUSES:
        setattr(row, status, getattr(row, status) + number)


def _bad(outcomes: Mapping[str, int]) -> int:
    return outcomes.get(Status.FAILED, 0) + outcomes.get(Status.UNVERIFIED, 0)


def _took_s(record: RunRecord) -> float | None:
    """Return how long a run took; None where an end is missing, or a clock was set back meanwhile."""
    start, end = words.moment(record.started_at), words.moment(record.finished_at)
    took_s = (end - start).total_seconds() if start and end else -1.0
    return took_s if took_s >= 0 else None


def _sizes(record: RunRecord) -> dict[str, int]:
    """Return the size of each key that was found, where the record has it."""
    found: dict[str, int] = {}
    for row in record.findings:
        evidence = row.get("evidence")
        if isinstance(evidence, dict) and isinstance(evidence.get("size_bytes"), int):
            found[str(evidence.get("key"))] = max(0, evidence["size_bytes"])
    return found


def _key_of(action: Mapping[str, object]) -> str:
    copies = action.get("copies")
    first = copies[0] if isinstance(copies, list) and copies else None
    return str(first.get("key")) if isinstance(first, dict) else ""


def _redriven(outcome: Mapping[str, object]) -> tuple[int, int] | None:
    """Return how many letters an action sent again, and how many it refused; None where its outcome does not say."""
    text = str(outcome.get("reason"))
    sent = _SENT.search(text)
    if sent is None and not _NONE.match(text):
        return None
    return _whole(sent[1]) if sent else 0, sum(map(_whole, _REFUSED.findall(text)))


def _whole(figure: str) -> int:
    digits = figure.replace(",", "")
    return int(digits) if 0 < len(digits) < _MOST_DIGITS else 0
