"""The audit's lines, and a broker's journals → what does not fit: lines that were changed, runs that were cut off."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opslib import refusals
from opslib.errors import NotFound, OpsError
from opslib.keys import key_name, raw_name
from opslib.writer import lock, sites

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Keys that are visited in search of journals.
MAX_KEYS = 1_000_000
_STEP = 250
_PAGE = 200
_BATCH = re.compile(r"\d+\.\d+")
_GLOB = re.compile(r"([*?\[\]\\])")
_DONE = frozenset({"APPLIED", "REPLAY"})
_ENDS = frozenset({"end", "refused", "interrupted"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """
    Something that does not fit.

    Attributes:
        kind: altered, missing, misplaced, torn, not-json; cut-off, no-answer, unpaired; and, compared with the broker:
            rolled-back, unknown-batch, differs, unended, elsewhere, running.

        says: A sentence.

        line: Number of the line that it is about; 0 for none.

        person: Whether somebody has to look at it; otherwise it is only good to know.
    """

    kind: str
    says: str
    line: int = 0
    run_id: str = ""
    batch: str = ""
    person: bool = True


@dataclass(slots=True)
class Batch:
    """
    One change, as the file has it.

    Attributes:
        said: What the server said of it; empty for an intent without a result.
    """

    line: int
    said: str = ""
    letters: str = ""


@dataclass(slots=True)
class Run:
    """
    One run, as the file has it.

    Attributes:
        journal: The run in whose journal its changes are: another one, where it resumes or undoes that.

        begun: Line on which it last began; 0 for what is no run of a plan.

        ended: Whether it came to an end of any kind, so that somebody was told how.

        done: Whether it came to the end of its plan.

        orders: What was begun outside of a plan and has no result, such as unlocking, with its line.

        settled: Whether a later run that went on with it, or undid it, came to the end of its plan.
    """

    run_id: str
    journal: str
    target: str = ""
    begun: int = 0
    ended: bool = False
    done: bool = False
    settled: bool = False
    batches: dict[str, Batch] = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """
    What was found.

    Attributes:
        runs: By run id.

        broker: The server that the file was compared with; empty if it was not.

        unseen: Why the comparison is not the whole one; empty if it is.
    """

    path: Path
    lines: int
    runs: Mapping[str, Run]
    problems: tuple[Problem, ...]
    broker: str = ""
    unseen: str = ""

    @property
    def whole(self) -> bool:
        """Whether nobody has to look at anything."""
        return not any(problem.person for problem in self.problems)


def verify(path: Path) -> Report:
    """
    Read the audit from its first line, and say what does not fit.

    The last line is vouched for by nothing after it; only the broker's journals know whether lines after it are gone.

    Raises:
        NotFound: If there is no such file, or it cannot be read.
    """
    chain, book = _Chain(), _Book()
    try:
        for line in _lines(path):
            entry = chain.add(line)
            if entry is not None:
                book.add(chain.number, entry)
    except OSError as error:
        raise NotFound(
            f"The audit {path} cannot be read: {error.strerror}.",
            hint="It is written by the first change; OPS_REPORTS says in which folder.",
        ) from None
    chain.end()
    runs = book.runs
    for last in [run for run in runs.values() if run.done]:
        for run in runs.values():
            run.settled = run.settled or (run.journal == last.journal and run.begun < last.begun)
    problems = (*chain.problems, *book.problems, *(p for run in runs.values() for p in _unended(run)))
    return Report(path=path, lines=chain.number, runs=runs, problems=tuple(sorted(problems, key=lambda p: p.line)))


def reconcile(report: Report, broker: Broker, *, max_keys: int = MAX_KEYS) -> Report:
    """
    Compare what the file says with the journals that the deployment still has; return the report with what differs.

    Raises:
        OpsError: If the broker does not answer, or a database does not permit to look.
    """
    shown, unseen = [], []
    silent: list[OpsError] = []
    with refusals.explained(broker.target.shown_broker):
        for site in sites.of(broker, unseen=silent):
            report, left = _reconciled(report, site, max_keys)
            shown.append(site.target.shown_broker)
            unseen += [left] if left else []
    unseen += [error.message for error in silent]
    return replace(report, broker=", ".join(shown), unseen=" ".join(unseen))


def _reconciled(report: Report, site: Broker, max_keys: int) -> tuple[Report, str]:
    """Return the report with what differs from one database, and what was not seen of that."""
    holder = lock.look(site)
    known = {run.journal for run in report.runs.values() if run.begun or run.batches}
    journals = {run_id: found for run_id in sorted(known) if (found := _journal(site, run_id))}
    strangers, unseen = _strangers(site, known | {holder.run if holder else ""}, max_keys)
    problems = [_still_running(p) if holder and p.run_id == holder.run else p for p in report.problems]
    for run_id, journal in journals.items():
        runs = {run.run_id: run for run in report.runs.values() if run.journal == run_id}
        problems = [_with_journal(p, journal) if p.run_id in runs else p for p in problems]
        problems += _compared(run_id, list(runs.values()), journal, holder.epoch if holder else None)
    return replace(report, problems=(*problems, *strangers)), unseen


class _Chain:
    """
    Lines → whether each fits the one before it.

    Attributes:
        number: Of the line that was added last.
    """

    def __init__(self) -> None:
        self.number = 0
        self.problems: list[Problem] = []
        self._previous, self._seq = "0" * 64, 0
        #: Lines since then that are no JSON, and the digest of the last of them: the next one tells what they are.
        self._broken = 0
        self._broken_digest = ""
        self._ended = True

    def add(self, line: bytes) -> dict[str, Any] | None:
        """Check one line; return what it says, or None for one that says nothing."""
        self.number += 1
        self._ended = line.endswith(b"\n")
        body = line.removesuffix(b"\n")
        entry, digest = _entry(body), hashlib.sha256(body).hexdigest()
        if entry is None:
            self._broken += 1
            self._broken_digest = digest
            return None
        seq = entry["seq"] if isinstance(entry.get("seq"), int) else None
        fits = entry.get("prev_sha256")
        if fits != self._previous and seq is not None and seq <= self._seq:
            self._say("misplaced", self.number, "stands where it does not belong: repeated, or out of its order")
            return entry
        if self._broken and fits == self._broken_digest:
            what = "was cut off while it was written: power was lost, the disk full or the run killed"
            self._say("torn", self.number - 1, what, person=False)
        elif fits != self._previous:
            self._does_not_fit(seq)
        elif self._broken:
            self._say("not-json", self.number - 1, "is no JSON, and was added")
        self._previous, self._seq = digest, self._seq + self._broken + 1 if seq is None else seq
        self._broken, self._broken_digest = 0, ""
        return entry

    def end(self) -> None:
        """Say what is wrong with the last line."""
        if self._broken and not self._ended:
            self._say("torn", self.number, "is the last one, and was cut off while it was written")
        elif self._broken:
            self._say("not-json", self.number, "is no JSON: it was altered or added")

    def _does_not_fit(self, seq: int | None) -> None:
        before = self.number - 1
        missing = 0 if seq is None else seq - self._seq - self._broken - 1
        if seq == self.number == 1:
            self._say("altered", 1, "was altered, for it is the first and names one before it")
        elif missing > 0 or not before:
            count = f"{missing:,} line{'s' * (missing != 1)}" if missing > 0 else "Lines"
            says = f"{count} before line {self.number} {'is' if missing == 1 else 'are'} missing."
            self.problems.append(Problem(kind="missing", says=says, line=self.number))
        elif seq is None and not self._broken:
            self._say("altered", before, "was altered, or lines after it are missing")
        else:
            self._say("altered", before, "was altered; it is not what the next line vouches for")

    def _say(self, kind: str, line: int, what: str, *, person: bool = True) -> None:
        self.problems.append(Problem(kind=kind, says=f"Line {line} {what}.", line=line, person=person))


class _Book:
    """Lines → runs, with their batches."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.problems: list[Problem] = []

    def add(self, number: int, entry: Mapping[str, Any]) -> None:
        event, run_id, batch = (str(entry.get(name, "")) for name in ("event", "run_id", "batch"))
        run = self.runs.setdefault(run_id, Run(run_id=run_id, journal=run_id))
        if event == "begin":
            run.begun, run.ended, run.done = number, False, False
            run.target, run.journal = str(entry.get("target", "")), str(entry.get("continues") or run_id)
        elif event == "intent":
            run.batches[batch] = Batch(number)
        elif event == "result" and batch in run.batches:
            run.batches[batch].said, run.batches[batch].letters = str(entry.get("said")), str(entry.get("letters", ""))
        elif event == "result":
            says = f"Line {number} is the result of batch {batch} of {run_id}, and there is no intent for it."
            self.problems.append(Problem(kind="unpaired", says=says, line=number, run_id=run_id, batch=batch))
        elif event in _ENDS:
            run.ended, run.done = True, event == "end"
        elif entry.get("stage") == "intent":
            run.orders[event] = number
        elif "stage" in entry:
            run.orders.pop(event, None)


def _unended(run: Run) -> Iterator[Problem]:
    """Yield what a run has left open."""
    whose = f"Run {run.run_id}" + (f" on {run.target}" if run.target else "")
    for number, batch in run.batches.items():
        if batch.said or run.settled:
            continue
        kind, what = ("no-answer", "got no answer for") if run.ended else ("cut-off", "was cut off in")
        says = f"{whose} {what} batch {number}: line {batch.line} is its intent, and there is no result."
        yield Problem(kind=kind, says=says, line=batch.line, run_id=run.run_id, batch=number, person=not run.ended)
    if run.begun and not (run.ended or run.settled) and all(batch.said for batch in run.batches.values()):
        says = f"{whose} was cut off between two batches: it began on line {run.begun} and never ended."
        yield Problem(kind="cut-off", says=says, line=run.begun, run_id=run.run_id)
    for event, line in run.orders.items():
        says = f"{event!r} was cut off: line {line} is its intent, and there is no result."
        yield Problem(kind="cut-off", says=says, line=line, run_id=run.run_id)


def _still_running(problem: Problem) -> Problem:
    """Return what looks like a run that was cut off as what it is, where that run holds the lock."""
    if problem.kind not in {"cut-off", "no-answer"}:
        return problem
    return replace(problem, kind="running", says=f"Run {problem.run_id} is still running.", person=False)


def _with_journal(problem: Problem, journal: Mapping[str, str]) -> Problem:
    """Return an intent without a result together with what the journal knows of it."""
    if problem.kind not in {"cut-off", "no-answer"} or not problem.batch:
        return problem
    if problem.batch not in journal:
        return replace(problem, says=f"{problem.says} The journal has nothing of it: it was not done.")
    said = "it was done, and nobody was told"
    return replace(problem, says=f"{problem.says} The journal says that {said}: {journal[problem.batch]}.", person=True)


def _compared(run_id: str, runs: list[Run], journal: Mapping[str, str], epoch: int | None) -> Iterator[Problem]:
    """Yield what differs between the file's runs and their common journal; a run of that epoch is still at it."""
    filed = {number: batch for run in runs for number, batch in run.batches.items()}
    for number, letters in journal.items():
        batch = filed.get(number)
        if number.startswith(f"{epoch}."):
            continue
        about: dict[str, Any] = {"run_id": run_id, "batch": number, "line": batch.line if batch else 0}
        if batch is None:
            says = f"The journal of {run_id} has batch {number}, and the file has no intent for it"
            yield Problem(
                kind="unknown-batch", says=f"{says}: lines are missing, or it was done from another machine.", **about
            )
        elif letters == "intent":
            says = f"Batch {number} of {run_id} was begun and not ended; compare journal and quarantine."
            yield Problem(kind="unended", says=says, **about)
        elif batch.said and batch.letters != letters:
            says = (
                f"Batch {number} of {run_id} is {batch.said} {batch.letters} in the file, and {letters} in the journal."
            )
            yield Problem(kind="differs", says=says, **about)
    for number, batch in filed.items():
        if batch.said in _DONE and number not in journal:
            says = f"Batch {number} of {run_id} was done, and the journal has nothing of it: rolled back by a failover."
            yield Problem(kind="rolled-back", says=says, run_id=run_id, batch=number, line=batch.line)


def _journal(broker: Broker, run_id: str) -> dict[str, str]:
    """Return the batches of a run's journal with their letters; nothing if there is none, or it is none of ours."""
    from redis.exceptions import ResponseError

    found: dict[str, str] = {}
    name = raw_name(broker.keys.journal(run_id))
    try:
        for number, letters in broker.reads.hscan_iter(name, match="[0-9]*.*[0-9]", count=_PAGE):
            text = cast("bytes", number).decode("utf-8", "replace")
            if _BATCH.fullmatch(text):
                found[text] = cast("bytes", letters).decode("utf-8", "backslashreplace")
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
    return found


def _strangers(broker: Broker, known: set[str], max_keys: int) -> tuple[list[Problem], str]:
    """Return the runs that have a journal and no line in the file, and what was not looked at."""
    start = broker.keys.own_runs
    pattern = raw_name(_GLOB.sub(r"\\\1", start)) + b"*:j"
    found: set[str] = set()
    cursor, visited, total = 0, 0, broker.reads.dbsize()
    while True:
        cursor, names = cast("tuple[int, list[bytes]]", broker.reads.scan(cursor, match=pattern, count=_STEP))
        visited += _STEP
        found |= {key_name(name).removeprefix(start).removesuffix(":j") for name in names} - known
        if cursor == 0:
            return [_stranger(broker, run_id) for run_id in sorted(found) if ":" not in run_id], ""
        if visited >= max_keys:
            note = f"Journals were looked for among {visited:,} of about {total:,} keys."
            return [_stranger(broker, run_id) for run_id in sorted(found) if ":" not in run_id], note


def _stranger(broker: Broker, run_id: str) -> Problem:
    """Say from where a run came that the file knows nothing of, if its journal does."""
    told: object = None
    with suppress(ValueError, RecursionError):
        name = raw_name(broker.keys.journal(run_id))
        told = json.loads(cast("bytes | None", broker.reads.hget(name, "run")) or b"{}")
    host = str(told.get("host") or "") if isinstance(told, dict) else ""
    if host and host != socket.gethostname():
        return Problem(
            kind="elsewhere",
            says=f"Run {run_id} changed the broker from another machine: {host}.",
            run_id=run_id,
            person=False,
        )
    says = f"Run {run_id} changed the broker, and the file knows nothing of it"
    where = "though it was this machine" if host else "it was another machine, or lines are missing"
    return Problem(kind="elsewhere", says=f"{says}: {where}.", run_id=run_id)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that there are now; a run that adds to them meanwhile is not waited for, and does not wait."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # no line is half written
        left = os.fstat(handle).st_size
        fcntl.flock(file, fcntl.LOCK_UN)
        while left > 0 and (line := file.readline(left)):
            left -= len(line)
            yield line


def _entry(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("prev_sha256"), str) else None
