"""A plan that a command makes → its run: the folder, record, audit and report of a runbook's, without a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import __version__, catalog, errors, folders, records, redact, refusals, session
from opslib import plan as plans
from opslib.errors import NotFound, OpsError, Refused
from opslib.plan import Plan, Status
from opslib.session import RunResult

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.facts.snapshot import Snapshot
    from opslib.findings import Finding
    from opslib.plan import Outcome
    from opslib.records import RunRecord

#: What is the case after a change, by what became of it: a view of the system, and what is judged wrong in it.
Look = Callable[["Broker", Sequence["Outcome"]], "tuple[Snapshot, list[Finding]]"]
#: The judgement that fits any deployment; and the runbooks whose own needs no more than a look at everything, or at all
#: dead letters.
_JUDGE, _DEAD = "stuck-tasks", "dlq-triage"
_JUDGES = {_JUDGE, "emergency-reset", "queue-backlog", "retry-storm", _DEAD}
#: The one whose judgement is of the tasks that its plan names.
_STOP = "stop-task"
#: The one that makes others of them.
_RESUME = "resume-task"
#: The one whose judgement is of how a server saves.
_BACKUP = "redis-backup"


def run(
    name: str,
    plan: Plan,
    broker: Broker,
    *,
    dry_run: bool,
    reason: str = "",
    runbook: str = "",
    found: Sequence[dict[str, object]] = (),
    look: Look | None = None,
) -> RunResult:
    """
    Carry out a plan, or only record it, look at the broker again, judge it, and archive the run, however it ends.

    Args:
        name: Of the run, as its id and its report have it: "undo", "purge-queue".

        runbook: Whose judgement is asked what the deployment is like afterwards.

        found: Findings of the run that made the plan.

        look: Looks and judges afterwards, instead of the runbook's judgement.

    Raises:
        SettingsError: If the archive cannot be written.
    """
    parameters: dict[str, Any] = {"dry_run": dry_run, **({"run": plan.continues} if plan.continues else {})}
    context = session.context(name, target=broker.target.name, reason=reason, parameters=parameters)
    redact.remember_environment()
    problem: OpsError | None = None
    record: RunRecord | None = None
    with session.environment(context), session.sigterm_interrupts():
        try:
            records.draft([])
            scope = "change" if look is None and runbook not in catalog.names() else ""
            record = _carried_out(plan, broker, look or _judging(runbook, plan), dry_run=dry_run, scope=scope)
            record.findings = list(found) or record.findings
            with suppress(OSError):  # what was done is told all the same
                records.write(record, context.record)
        except KeyboardInterrupt:
            problem = errors.Interrupted("The run was interrupted.")
        except Exception as error:  # noqa: BLE001 - `refusals` sorts them, and raises what it does not know
            problem = refusals.of(error, broker.target.shown_broker)
    with session.uninterrupted():
        return session.archived(session.concluded(context, problem, record), Path(context.record).parent)


def _carried_out(plan: Plan, broker: Broker, look: Look, *, dry_run: bool, scope: str) -> RunRecord:
    from opslib.writer import apply

    outcomes = apply(plan, broker, dry_run=dry_run)
    after, remaining = look(broker, outcomes)
    return records.record(
        records.context().runbook,
        before=after,
        findings=remaining,
        plan=plan,
        outcomes=outcomes,
        after=after,
        remaining=remaining,
        dry_run=dry_run,
        scope=scope,
        written=False,
    )


def _judging(runbook: str, plan: Plan) -> Look:
    """Return a look at everything, judged by the runbook's own module or by the one that fits any deployment."""
    if runbook == _STOP:
        return _at_stopped([action.subject for action in plan])
    if runbook == _RESUME:
        return _at_resumed(plan)
    if runbook == _BACKUP:
        return _at_saves
    name = runbook if runbook in _JUDGES else _JUDGE
    module = import_module(f"opslib.symptoms.{name.replace('-', '_')}")

    def look(broker: Broker, _: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.collectors.deployment import collect

        seen = collect(broker, dead_letters=name == _DEAD)
        return seen, list(module.diagnose(seen, module.Thresholds.of(broker)))

    return look


def _at_stopped(ids: Sequence[str]) -> Look:
    """Return a look at certain tasks alone: whether they can still be run."""

    def look(broker: Broker, outcomes: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.collectors.find import find
        from opslib.symptoms import stop_task

        seen = find(broker, ids)
        return seen, stop_task.diagnose(seen, outcomes=outcomes)

    return look


def _at_resumed(plan: Plan) -> Look:
    """Return a look at the tasks that a plan goes on from: whether anything is left to go on with."""

    def look(broker: Broker, outcomes: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
        from opslib.collectors.checkpoints import resumable
        from opslib.symptoms import resume_task

        seen = resumable(broker, resume_task.meant(plan))
        return seen, resume_task.diagnose(seen, outcomes=outcomes)

    return look


def _at_saves(broker: Broker, outcomes: Sequence[Outcome]) -> tuple[Snapshot, list[Finding]]:
    """Look at how the server saves."""
    from opslib.collectors.backup import saves
    from opslib.symptoms import redis_backup

    seen = saves(broker)
    return seen, redis_backup.diagnose(seen, redis_backup.Thresholds(), outcomes=outcomes)


def saved(root: Path, run_id: str) -> tuple[Plan, RunRecord]:
    """
    Return the plan that a run saved, and the run's record.

    Raises:
        NotFound: If there is no such run, or it made no plan.

        Refused: If the plan was edited, or is of another schema.
    """
    from opslib.render import archive

    folders.folder(root, run_id)  # an empty id, out of an unset variable, must not mean the newest run
    record = archive.find(root, run_id)
    path = folders.folder(root, record.run_id) / folders.PLAN
    try:
        return plans.read(path.read_bytes()), record
    except OSError:
        raise NotFound(
            f"Run {run_id} saved no plan.", hint="Only a run that came to its plan can be applied."
        ) from None


def finished(record: RunRecord) -> bool:
    """Whether a run came to its end, with nothing left that failed or cannot be told."""
    settled = {Status.APPLIED, Status.SKIPPED}
    return record.error is None and bool(record.outcomes) and all(row["status"] in settled for row in record.outcomes)


def refused_unless_current(plan: Plan) -> None:
    """
    Refuse a plan that another version of the tool made: it may have meant something else by it.

    Raises:
        Refused: If it is another one.
    """
    if plan.tool_version != __version__:
        raise Refused(
            f"The plan was made by opslib {redact.plain(plan.tool_version)[:40] or 'of an unknown version'}, "
            f"and this is {__version__}. Nothing was changed.",
            hint="Run the runbook again; it saves a new plan.",
        )


def refused_unless_same(plan: Plan, target: str) -> None:
    """
    Refuse a target other than the plan's.

    Raises:
        Refused: If another one is named.
    """
    if target and target != plan.target:
        raise Refused(f"The plan is for {plan.target}, not for {target}. Nothing was changed.")
