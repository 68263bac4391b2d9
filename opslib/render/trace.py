"""A view of certain tasks, and what was judged of them → what is of one of them, in words for each place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from opslib.durations import spell
from opslib.facts.dead import DeadLetter
from opslib.facts.messages import QuarantinedMessage, UnackedMessage, WaitingMessage
from opslib.facts.rows import TaskRow
from opslib.facts.system import FINAL_STATES, HeldTask, StoredResult
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding
from opslib.keys import SEPARATOR
from opslib.render import words

#: Copies of one task in one place that are described; the others are counted.
_DESCRIBED = 4
#: Characters of an exception that are quoted.
_QUOTED = 120


@dataclass(frozen=True, kw_only=True)
class Trace:
    """
    One task of a view.

    Attributes:
        findings: What was judged of it, by code.

        subjects: What was judged of anything, by code and subject: of the queue that it waits in, for instance.
    """

    seen: Whereabouts
    task_id: str
    waiting: Sequence[WaitingMessage]
    unacked: Sequence[UnackedMessage]
    held: Sequence[HeldTask]
    results: Sequence[StoredResult]
    dead: Sequence[DeadLetter]
    quarantined: Sequence[QuarantinedMessage]
    rows: Sequence[TaskRow]
    findings: dict[str, Finding]
    subjects: dict[tuple[str, str], Finding]

    @property
    def now(self) -> float:
        """Epoch seconds of the view, from which every age is counted."""
        return self.seen.taken_at.timestamp()

    @property
    def task(self) -> str:
        """Name of the task; empty where nothing names it."""
        named = [row.task for row in (*self.waiting, *self.unacked)] + [row.task for row in self.held]
        named += [row.task for row in self.results] + [row.task for row in self.dead]
        named += [row.task for row in self.quarantined] + [row.task for row in self.rows]
        return next(filter(None, named), "")

    @property
    def retries(self) -> int:
        """How often it was retried, as far as its messages know."""
        return max((message.retries for message in (*self.waiting, *self.unacked)), default=0)

    @property
    def result(self) -> StoredResult | None:
        """Its stored result, of which there is one at most."""
        return next(iter(self.results), None)

    @property
    def has_ended(self) -> bool:
        """Whether its result is a final one."""
        return self.result is not None and self.result.state in FINAL_STATES

    def active(self) -> list[HeldTask]:
        """What nodes run of it."""
        return [task for task in self.held if task.place == "active"]


def of(seen: Whereabouts, task_id: str, findings: Iterable[Finding] = ()) -> Trace:
    """Return what is of one task."""
    known = list(findings)
    return Trace(
        seen=seen,
        task_id=task_id,
        waiting=sorted((row for row in seen.waiting if row.task_id == task_id), key=lambda row: row.position),
        unacked=[row for row in seen.unacked if row.task_id == task_id],
        held=[row for row in seen.held if row.task_id == task_id],
        results=[row for row in seen.results if row.task_id == task_id],
        dead=[row for row in seen.dead if row.task_id == task_id],
        quarantined=[row for row in seen.quarantined if row.subject == task_id],
        rows=[row for row in seen.rows if row.task_id == task_id],
        findings={finding.code: finding for finding in known if finding.subject == task_id},
        subjects={(finding.code, finding.subject): finding for finding in known},
    )


# --- each place in words ---


def waiting(row: WaitingMessage, seen: Whereabouts, now: float) -> str:
    """Return where in its queue a message stands."""
    return f"in {shown(row.queue)}, {turn(row, seen)}{_attempts(row, now)}"


def turn(row: WaitingMessage, seen: Whereabouts) -> str:
    """Return what is served before a message, those of higher priority among it."""
    _, separated, step = row.key.rpartition(SEPARATOR)
    own = int(step) if separated and step.isdigit() else 0
    queue = next((queue for queue in seen.queues if queue.name == row.queue), None)
    higher = sum(length for each, length in queue.by_priority.items() if each < own) if queue else 0
    before = f"behind {row.position:,}" if row.position else "" if higher else "next to be served"
    others = f"behind {higher:,} of higher priority" if higher else ""
    return f"{' and '.join(filter(None, (before, others)))} (priority {row.priority})"


def unacked(row: UnackedMessage, now: float, visibility_s: float) -> str:
    """Return when a message was delivered, and when Celery would give it back."""
    queue = f" from {shown(row.queue)}" if row.queue else ", from no queue that is known"
    if row.delivered_at is None:
        return f"delivered at an unknown time{queue}; missing from the index{_attempts(row, now)}"
    back = f"given back at {clock(row.delivered_at + visibility_s, now)} unless it is acknowledged by then"
    return f"delivered {ago(row.delivered_at, now)}{queue}; {back}{_attempts(row, now)}"


def held(task: HeldTask, now: float) -> str:
    """Return which node holds a task, since when or until when."""
    pid = f", pid {task.pid}" if task.pid else ""
    since = f", for {words.age(now - task.started_at)}" if task.started_at else ""
    return f"on {shown(task.node)}{pid}{since}{_due(task.eta_at, now)}"


def result(row: StoredResult, now: float) -> str:
    """Return what a result says, and for how long it will."""
    node = f" by {shown(row.node)}" if row.node else ""
    why = f" ({shown(row.exception)})" if row.exception else ""
    life = f"expires in {spell(row.expires_at - now)}" if row.expires_at else "never expires"
    return f"{shown(row.state)}{why}{node}; {life}"


def dead(row: DeadLetter, now: float) -> str:
    """Return where a letter lies, and what it says of the end."""
    when = f", {ago(row.failed_at, now)}" if row.failed_at else ""
    return f"in {shown(row.key)}{f': {shown(row.exception)}' if row.exception else ''}{when}"


def quarantined(row: QuarantinedMessage) -> str:
    """Return who took a message out of circulation, and where from."""
    return f"by run {shown(row.run_id)}, from {shown(row.queue)} ({shown(row.place)})"


def in_table(row: TaskRow, now: float) -> str:
    """Return what the application's own row says of a task."""
    when = f", last run {ago(row.last_run_at, now)}" if row.last_run_at else ""
    tries = f", {words.plural(row.attempts, 'attempt')}" if row.attempts else ""
    said = f": {shown(row.status_message)}" if row.status_message else ""
    return f"{shown(row.table)} says {shown(row.status)}{when}{tries}{said}"


def several(said: Sequence[str]) -> str:
    """Return the copies in one place, each described once; those beyond a few are counted."""
    rest = len(said) - _DESCRIBED
    return "; ".join([*said[:_DESCRIBED], *([f"{rest:,} more"] if rest > 0 else [])])


def ago(at: float, now: float) -> str:
    """Return how long ago an instant was."""
    return f"{words.age(max(0.0, now - at))} ago"


def clock(at: float, now: float) -> str:
    """Return an instant by its time of day; with its date, where that is another one."""
    said = words.clock(at)
    return said.partition(" ")[2] if said[:10] == words.clock(now)[:10] else said


def shown(value: object) -> str:
    """Return what comes out of a message as one short line of harmless text."""
    return words.shown(value, _QUOTED)


def _attempts(row: WaitingMessage | UnackedMessage, now: float) -> str:
    retried = f"; retried {words.plural(row.retries, 'time')}" if row.retries else ""
    expired = ""
    if row.expires_at is not None:
        over = row.expires_at <= now
        expired = f"; expired {ago(row.expires_at, now)}" if over else f"; expires in {spell(row.expires_at - now)}"
    return f"{retried}{_due(row.eta_at, now, before='; ')}{expired}"


def _due(at: float | None, now: float, *, before: str = ", ") -> str:
    if at is None:
        return ""
    return f"{before}due in {words.age(at - now)}" if at > now else f"{before}was due {ago(at, now)}"
