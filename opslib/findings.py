"""One judgement each: a code, its severity, its evidence; and the verdict over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is; `unknown` is one that could not be judged."""

    CRITICAL = "critical"
    UNKNOWN = "unknown"
    ATTENTION = "attention"


class Verdict(StrEnum):
    """The one word over a run."""

    HEALTHY = "healthy"
    ATTENTION = "attention"
    CRITICAL = "critical"
    UNKNOWN = "unknown"
    FAILED = "failed"


#: Worst first. Unknown ranks above attention: what was not seen may be the worse half.
ORDER = (Severity.CRITICAL, Severity.UNKNOWN, Severity.ATTENTION)

#: Every code, with the sentence that docs/findings.md opens its paragraph with.
CODES = {
    "stuck-active": "A task has been running longer than it may.",
    "orphaned-unacked": "A message was delivered, and no live node holds it.",
    "retry-loop": "A task retries again and again.",
    "scheduled-beyond-visibility": "A task waits longer than the visibility timeout, and is delivered again.",
    "duplicate-task-id": "One task id stands in two places at once.",
    "zombie-result": "A result says that a task is under way, and nothing will ever finish it.",
    "unreadable-message": "A message cannot be decoded; a worker that takes it may die of it.",
    "queue-without-consumer": "Messages wait in a queue that no answering node consumes.",
    "worker-silent": "A node heard the question and did not answer.",
    "no-workers": "No node is connected to the broker.",
    "worker-not-consuming": "A node answers, but takes no messages.",
    "unacked-index-mismatch": "An unacked message is missing from the index, so Celery will never restore it.",
    "queue-backlog": "More messages wait in a queue than may, or they come faster than they are taken.",
    "priority-inverted": "Messages have a priority that is served last; 0 is served first on Redis.",
    "unregistered-task": "Messages wait for a task that a node which would take them does not have.",
    "eta-flood": "A node is full of tasks that wait for their time.",
    "rate-limited": "A rate limit holds tasks back while messages wait.",
    "retry-storm": "Many tasks of one name are retrying at once.",
    "hopeless-retry": "A task is retried after an error that no retry heals.",
    "retries-beyond-cap": "A task was retried more often than its own limit allows.",
    "task-in-circulation": "A task that was asked for can still be run.",
    "task-not-found": "A task that was asked for was found nowhere.",
    "task-failed": "A task that was asked for has failed, and nothing will run it again by itself.",
    "resent-task": "A task sends itself again under new ids, so that stopping it by its id cannot hold it.",
    "task-remnant": "A key is left of a task that is not in circulation any more.",
    "app-keys": "Keys that the application keeps are left of tasks that are over.",
    "dead-letters": "Tasks failed for good, and their letters wait for a decision.",
    "dead-letters-growing": "Dead letters come while one looks.",
    "poison-task": "A task kills the process that runs it.",
    "dead-letters-dropped": "A dead-letter list is full, and the oldest letters were lost.",
    "unreadable-letter": "An entry of a dead-letter list cannot be read.",
    "uncaptured-failures": "Tasks have failed of which no letter was kept, only a result.",
    "task-resumable": "A task failed and left a state from which it can go on.",
    "task-not-resumable": "A task cannot go on from where it failed.",
    "reset-beyond-reach": "A reset could not end or take everything, for somebody does not take orders.",
    "reset-left-behind": "After a reset, a message of before is still to be delivered again.",
    "worker-memory": "A node has used nearly all of the memory that it has.",
    "celery-version": "Nodes run a version with a known defect, or versions that do not fit together.",
    "risky-setting": "A setting works today and causes an incident one day.",
    "results-without-ttl": "Results are kept for ever.",
    "results-expired": "Results are kept longer than their retention says.",
    "orphan-reply-keys": "Answers lie in the broker, and whoever asked is gone.",
    "quarantine-expired": "What a run took out of circulation is kept longer than anybody needs it.",
    "group-keys": "Keys of groups and chords are left, and no task that can still be run belongs to them.",
    "checkpoints-expired": "A task has saved a state that should have expired, and never does.",
    "temporary-files": "Files are left of tasks that failed.",
    "old-reports": "The archive holds runs of long ago.",
    "redis-memory": "The server's memory is nearly used up, or badly used.",
    "redis-eviction": "The server throws keys away to make room.",
    "redis-persistence": "A restart of the server would lose messages.",
    "redis-version": "The server's version has a known defect.",
    "redis-slow": "Commands hold the server up.",
    "redis-clients": "The server is running out of connections.",
    "redis-replica": "A replica does not follow, or is asked in place of its master.",
    "deploy-risk": "A deployment now would interrupt or lose work.",
    "schedule-overdue": "Beat should have sent a task, and has not.",
    "schedule-broken": "Beat sends a task in vain, or cannot read an entry of its schedule.",
    "schedule-untold": "An entry of a schedule was changed, and beat was not told.",
    "beat-lock-stale": "A beat that has ended or hangs keeps another one from beginning.",
    "beat-twice": "Two beats send the same tasks.",
    "save-failing": "The server cannot save its data, or has failed to.",
    "backup-old": "The server has changes that are on no disk, or in no recent dump.",
    "save-memory": "A save may need more memory than the server's machine has.",
    "backup-unproven": "It was not proven that a backup can be restored.",
    "restore-differs": "A rehearsed restore does not hold what the server holds.",
    "table-finished-but-open": "Tasks have ended, and the application's table still calls them open.",
    "table-lost": "The application's table waits for tasks that are nowhere any more.",
    "table-stuck": "The application's table waits for tasks that do not move by themselves.",
    "table-unknown": "Of open rows of the application's table nobody can say what became of their tasks.",
    "cannot-see": "A part of the system could not be looked into.",
}

#: How a headline counts each code: one, and more of them.
NOUNS = {
    "stuck-active": ("hung task", "hung tasks"),
    "orphaned-unacked": ("orphaned message", "orphaned messages"),
    "retry-loop": ("retry loop", "retry loops"),
    "scheduled-beyond-visibility": ("ETA beyond the visibility timeout", "ETAs beyond the visibility timeout"),
    "duplicate-task-id": ("task id in two places", "task ids in two places"),
    "zombie-result": ("result that will never finish", "results that will never finish"),
    "unreadable-message": ("unreadable message", "unreadable messages"),
    "queue-without-consumer": ("queue without a consumer", "queues without a consumer"),
    "worker-silent": ("silent node", "silent nodes"),
    "no-workers": ("broker without workers", "brokers without workers"),
    "worker-not-consuming": ("node that takes no messages", "nodes that take no messages"),
    "unacked-index-mismatch": ("message that nothing will restore", "messages that nothing will restore"),
    "queue-backlog": ("long queue", "long queues"),
    "priority-inverted": ("queue with inverted priorities", "queues with inverted priorities"),
    "unregistered-task": ("task that a node lacks", "tasks that nodes lack"),
    "eta-flood": ("node full of scheduled tasks", "nodes full of scheduled tasks"),
    "rate-limited": ("task held back by a rate limit", "tasks held back by rate limits"),
    "retry-storm": ("retry storm", "retry storms"),
    "hopeless-retry": ("retry that cannot succeed", "retries that cannot succeed"),
    "retries-beyond-cap": ("task beyond its retry limit", "tasks beyond their retry limit"),
    "task-in-circulation": ("task still in circulation", "tasks still in circulation"),
    "task-not-found": ("task found nowhere", "tasks found nowhere"),
    "task-failed": ("failed task", "failed tasks"),
    "resent-task": ("task that sends itself again", "tasks that send themselves again"),
    "task-remnant": ("key left of a task", "keys left of tasks"),
    "app-keys": ("pattern of keys left of tasks", "patterns of keys left of tasks"),
    "dead-letters": ("group of dead letters", "groups of dead letters"),
    "dead-letters-growing": ("growing dead-letter list", "growing dead-letter lists"),
    "poison-task": ("task that kills its worker", "tasks that kill their workers"),
    "dead-letters-dropped": ("full dead-letter list", "full dead-letter lists"),
    "unreadable-letter": ("unreadable dead letter", "unreadable dead letters"),
    "uncaptured-failures": ("failure without a letter", "failures without a letter"),
    "task-resumable": ("task that can go on", "tasks that can go on"),
    "task-not-resumable": ("task that cannot go on", "tasks that cannot go on"),
    "reset-beyond-reach": ("place beyond the reach of a reset", "places beyond the reach of a reset"),
    "reset-left-behind": ("message that a reset left", "messages that a reset left"),
    "worker-memory": ("node short of memory", "nodes short of memory"),
    "celery-version": ("version of Celery to see to", "versions of Celery to see to"),
    "risky-setting": ("risky setting", "risky settings"),
    "results-without-ttl": ("heap of results without an end", "heaps of results without an end"),
    "redis-memory": ("memory problem of the server", "memory problems of the server"),
    "redis-eviction": ("server that evicts", "servers that evict"),
    "redis-persistence": ("server that does not save", "servers that do not save"),
    "redis-version": ("server to upgrade", "servers to upgrade"),
    "redis-slow": ("slow command", "slow commands"),
    "redis-clients": ("server short of connections", "servers short of connections"),
    "redis-replica": ("replica to see to", "replicas to see to"),
    "deploy-risk": ("reason to wait with a deployment", "reasons to wait with a deployment"),
    "schedule-overdue": ("overdue schedule", "overdue schedules"),
    "schedule-broken": ("schedule in vain", "schedules in vain"),
    "schedule-untold": ("change untold to beat", "changes untold to beat"),
    "beat-lock-stale": ("stale lock of beat", "stale locks of beat"),
    "beat-twice": ("task sent by two beats", "tasks sent by two beats"),
    "results-expired": ("retention with results past it", "retentions with results past them"),
    "orphan-reply-keys": ("heap of orphaned answers", "heaps of orphaned answers"),
    "quarantine-expired": ("heap of old quarantines", "heaps of old quarantines"),
    "group-keys": ("heap of keys of groups", "heaps of keys of groups"),
    "checkpoints-expired": ("heap of old states", "heaps of old states"),
    "temporary-files": ("folder with files that were left", "folders with files that were left"),
    "old-reports": ("archive with old runs", "archives with old runs"),
    "save-failing": ("save that fails", "saves that fail"),
    "backup-old": ("backup that is too old", "backups that are too old"),
    "save-memory": ("save that is short of memory", "saves that are short of memory"),
    "backup-unproven": ("backup that is not proven", "backups that are not proven"),
    "restore-differs": ("backup that differs", "backups that differ"),
    "table-finished-but-open": ("task that is over and open in a table", "tasks that are over and open in a table"),
    "table-lost": ("task whose rows wait in vain", "tasks whose rows wait in vain"),
    "table-stuck": ("task that is stuck behind open rows", "tasks that are stuck behind open rows"),
    "table-unknown": ("task whose open rows tell nothing", "tasks whose open rows tell nothing"),
    "cannot-see": ("place not seen", "places not seen"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """
    One thing that is wrong, or could not be told.

    Attributes:
        code: A key of CODES.

        subject: Task id, queue, node or key that it is about.

        message: What is the case, with figures.

        evidence: The facts it was judged on, by name.

        hint: What to do about it.

        runbook: The runbook that answers it.
    """

    code: str
    severity: Severity
    subject: str
    message: str
    task: str = ""
    evidence: Mapping[str, object] = field(default_factory=dict)
    hint: str = ""
    runbook: str = "stuck-tasks"

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"finding code {self.code!r} is not in findings.CODES")


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings in reading order: by severity, then code, then subject."""
    return sorted(findings, key=lambda f: (ORDER.index(f.severity), list(CODES).index(f.code), f.subject))


def counted(codes: Iterable[str]) -> str:
    """Return codes as a person counts them: "6 orphaned messages, 1 hung task"; in the order that they are given."""
    return ", ".join(f"{n:,} {NOUNS.get(code, (code, code))[n != 1]}" for code, n in Counter(codes).items())


def verdict(findings: Iterable[Finding]) -> Verdict:
    """
    Return one word for all findings: the worst severity, or healthy if there is none.

    An unknown outranks attention, so a partial view is never called anything better than unknown.
    """
    seen = {finding.severity for finding in findings}
    return next((Verdict(severity) for severity in ORDER if severity in seen), Verdict.HEALTHY)
