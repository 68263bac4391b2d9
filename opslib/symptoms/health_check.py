"""A whole deployment: a Snapshot with everything → what is wrong in any of its parts, and each part in one word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib import sizes
from opslib.durations import seconds
from opslib.errors import BadParameter, near
from opslib.facts.care import Area
from opslib.facts.snapshot import Snapshot
from opslib.findings import CODES, Finding, worst_first
from opslib.symptoms import (
    deploying,
    dlq_triage,
    node_care,
    overview,
    queue_backlog,
    retry_storm,
    server_care,
    sight,
    stuck_tasks,
)
from opslib.symptoms.overview import in_words

if TYPE_CHECKING:
    from opslib.broker import Broker

__all__ = ["GATES", "Thresholds", "areas", "diagnose", "in_words"]

#: What may be asked before something is done, with the codes that matter then; what could not be seen always does.
GATES = {
    "deploy": frozenset(
        {
            *("no-workers", "worker-not-consuming", "stuck-active", "orphaned-unacked", "retry-loop", "retry-storm"),
            *("hopeless-retry", "retries-beyond-cap", "scheduled-beyond-visibility", "eta-flood", "queue-backlog"),
            *("queue-without-consumer", "unregistered-task", "unreadable-message", "dead-letters-growing"),
            *("redis-persistence", "save-failing", "backup-old", "redis-memory", "redis-replica", "deploy-risk"),
        }
    )
}


#: What says that not all was seen: it counts at every gate, and nobody can accept it.
BLIND = frozenset({"cannot-see", "worker-silent"})
#: Places of which a finding of their own says more than that they were not seen.
_OWN_WORDS = frozenset({"persistence", "slow log"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """
    When a deployment counts as unwell; its parts are judged by the thresholds of their own runbooks.

    Attributes:
        gate: What is judged: empty for everything, or a key of GATES.

        accepted: Codes that somebody knows of and lives with; a silent node or a place unseen is never accepted.

        worker_memory_bytes: Memory that a node has; 0 where nobody said.

        grace_s: How long a deployment waits for a node to end what it runs.

        held_at_most: Tasks that nodes may hold for their time to come at a deployment.
    """

    stuck: stuck_tasks.Thresholds = field(default_factory=stuck_tasks.Thresholds)
    backlog: queue_backlog.Thresholds = field(default_factory=queue_backlog.Thresholds)
    retries: retry_storm.Thresholds = field(default_factory=retry_storm.Thresholds)
    letters: dlq_triage.Thresholds = field(default_factory=dlq_triage.Thresholds)
    server: server_care.Limits = field(default_factory=server_care.Limits)
    gate: str = ""
    accepted: frozenset[str] = frozenset()
    worker_memory_bytes: int = 0
    grace_s: float = 30.0
    held_at_most: int = 100

    @classmethod
    def of(
        cls, broker: Broker, *, gate: str = "", accept: str = "", grace: str = "30s", held_at_most: int = 100
    ) -> Thresholds:
        """
        Return the target's own, and what was asked for.

        Args:
            accept: Codes with commas between them.

        Raises:
            BadParameter: If there is no such gate or code, or a number is negative.

            SettingsError: If a duration has no unit.
        """
        if gate and gate not in GATES:
            raise BadParameter(f"There is no gate {gate!r}.", hint=near(gate, GATES))
        codes = frozenset(code.strip() for code in accept.split(",") if code.strip())
        for code in sorted(codes - CODES.keys()):
            raise BadParameter(f"accept: there is no finding {code!r}.", hint=near(code, CODES))
        if held_at_most < 0:
            raise BadParameter(f"held_at_most: {held_at_most} is no number of tasks.", hint="0 allows none.")
        own = broker.target.thresholds
        return cls(
            stuck=stuck_tasks.Thresholds.of(broker),
            backlog=queue_backlog.Thresholds.of(broker),
            retries=retry_storm.Thresholds.of(broker),
            letters=dlq_triage.Thresholds.of(broker),
            server=server_care.Limits(
                memory_bytes=sizes.parse(own.redis_memory, "redis_memory"),
                full_percent=own.full_percent,
                save_after_s=seconds(own.save_after, "save_after"),
                slow_s=own.slow_command_ms / 1000,
            ),
            gate=gate,
            accepted=codes,
            worker_memory_bytes=sizes.parse(own.worker_memory, "worker_memory") if own.worker_memory else 0,
            grace_s=seconds(grace, "grace"),
            held_at_most=held_at_most,
        )


def diagnose(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """
    Say what is wrong anywhere, worst first, and what could not be told.

    Pure: a saved snapshot gives the same findings again. Each thing is judged once, by the runbook that answers it.
    """
    return [finding for finding in everything(snapshot, limits) if not _is_accepted(finding, limits)]


def accepted(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """Return what is wrong and was accepted, worst first."""
    return [finding for finding in everything(snapshot, limits) if _is_accepted(finding, limits)]


def areas(snapshot: Snapshot, limits: Thresholds) -> tuple[Area, ...]:
    """Return each part of the deployment in a word and a figure, in the order in which a task meets them."""
    judged = GATES.get(limits.gate)
    return overview.areas(
        snapshot,
        diagnose(snapshot, limits),
        accepted=accepted(snapshot, limits),
        judged=judged,
        has_worker_limit=bool(limits.worker_memory_bytes),
    )


def everything(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    """Return all findings of the gate, those among them that are accepted too."""
    wanted = GATES.get(limits.gate)
    return worst_first(
        finding for finding in _each_once(_all(snapshot, limits)) if wanted is None or finding.code in wanted | BLIND
    )


def _is_accepted(finding: Finding, limits: Thresholds) -> bool:
    return finding.code in limits.accepted - BLIND


def _all(snapshot: Snapshot, limits: Thresholds) -> Iterator[Finding]:
    """Yield what every runbook finds; how nodes work is judged by the one that knows why a full one takes nothing."""
    common = {(finding.code, finding.subject) for finding in sight.judge(snapshot)}
    yield from (each for each in queue_backlog.diagnose(snapshot, limits.backlog) if not _said_better(snapshot, each))
    for found in (
        retry_storm.diagnose(snapshot, limits.retries),
        stuck_tasks.diagnose(snapshot, limits.stuck),
        _letters(snapshot, limits),
    ):
        yield from (each for each in found if (each.code, each.subject) not in common)
    if snapshot.care is not None:
        yield from server_care.judge(snapshot, snapshot.care, limits.server)
        yield from node_care.judge(
            snapshot,
            snapshot.care,
            memory_bytes=limits.worker_memory_bytes,
            full_percent=limits.server.full_percent,
        )
    if limits.gate == "deploy":
        yield from deploying.judge(snapshot, grace_s=limits.grace_s, held_at_most=limits.held_at_most)


def _said_better(snapshot: Snapshot, finding: Finding) -> bool:
    """Whether a place has words of its own, or is called empty although it holds dead letters."""
    if finding.code == "cannot-see" and finding.subject in _OWN_WORDS and snapshot.care is not None:
        return True
    empty = finding.code == "cannot-see" and finding.subject == f"database {snapshot.server.database}"
    return empty and bool(dlq_triage.letters_of(snapshot).lists)


def _letters(snapshot: Snapshot, limits: Thresholds) -> Iterator[Finding]:
    """Yield what is wrong with dead letters; a few failures of which only results tell are every day's."""
    few = {
        each.key
        for each in dlq_triage.letters_of(snapshot).lists
        if each.source == "results" and each.length < limits.letters.dead_warn
    }
    for finding in dlq_triage.diagnose(snapshot, limits.letters):
        if not (finding.code == "uncaptured-failures" and finding.subject in few):
            yield finding


def _each_once(findings: Iterable[Finding]) -> Iterator[Finding]:
    told: set[tuple[str, str]] = set()
    for finding in findings:
        if (finding.code, finding.subject) not in told:
            told.add((finding.code, finding.subject))
            yield finding
