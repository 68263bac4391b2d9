"""WRITE. A Plan → one Outcome for each action: the only part that changes a system, and the whole of it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from opslib import folders, records, redact, refusals, settings
from opslib import plan as plans
from opslib.broker import CLOCK_WRONG_S
from opslib.errors import Refused
from opslib.plan import Action, Kind, Outcome, Plan, Status
from opslib.writer import (
    audit,
    consumers,
    drop,
    full,
    lists,
    lock,
    points,
    repair,
    resume,
    sites,
    stored,
    undo,
    vault,
    verify,
)
from opslib.writer import journal as journals
from opslib.writer.journal import Journal
from opslib.writer.moves import Mover
from opslib.writer.primitive import Primitive
from opslib.writer.quarantine import Handler
from opslib.writer.stop import stop
from opslib.writer.watch import watching

if TYPE_CHECKING:
    from opslib.broker import Broker


def apply(plan: Plan, broker: Broker, *, dry_run: bool = True, confirm: str = "") -> tuple[Outcome, ...]:
    """
    Carry out a plan, or say what that would do; inside a run the plan is saved either way.

    Each action is checked again in the same atomic step that carries it out; one that is no longer as planned is
    skipped. Nothing is deleted: what leaves circulation is kept in this run's quarantine lists, and what is removed is
    in its vault before.

    Args:
        dry_run: True changes nothing; the only place where that is decided.

        confirm: The target's name, where it is protected and no command has asked for it.

    Raises:
        Refused: If the plan was made for another server or is too old, the server is a replica or is loading, or the
            target is protected and was not named.

        LockHeld: If another run is changing this broker.

        BrokerUnreachable: If the server does not answer before anything was changed.
    """
    if dry_run or not plan:
        if records.context().record and not redact.has_credential(plan.content()):
            _save(plan)  # unmasked, or it could not be applied
        return tuple(Outcome(action=a, status=Status.SKIPPED, reason=f"Dry run. {a.effect}") for a in plan)
    _named(broker, confirm)
    allowed, unconfirmed = _confirmed(plan)
    broker = sites.planned(broker, plan.fingerprint)
    try:
        points.passed("before-lock")
        _identify(plan, broker)
        folder = _save(plan)
        audit.write("begin", plan=plan.digest, target=plan.target, continues=plan.continues, actions=plan.summary())
        outcomes = _under_lock_or_full(allowed, plan, broker, folder)
    except Exception as error:
        known = refusals.of(error, broker.target.shown_broker)
        audit.note("refused", plan=plan.digest, why=str(known))
        raise known from error
    except KeyboardInterrupt:
        audit.note("interrupted", plan=plan.digest)
        raise
    audit.note("end", plan=plan.digest, outcomes=dict(Counter(str(o.status) for o in outcomes)))
    every = sorted([*outcomes, *unconfirmed], key=lambda outcome: outcome.action.id)
    records.carried_out(plan, every)
    return tuple(every)


def _named(broker: Broker, confirm: str) -> None:
    """Refuse a protected target that nobody named: a headless run has asked, a cell run by hand has not."""
    target = broker.target
    if target.protected and not records.context().record and confirm != target.name:
        hint = f'apply(plan, broker, dry_run=False, confirm="{target.name}")'
        raise Refused(f"{target.name} is protected. Nothing was changed.", hint=hint)


def _save(plan: Plan) -> Path:
    """Write the plan into the run's folder, whole or not at all; return the folder."""
    ctx = records.context()
    points.passed("before-plan-file")
    try:
        folder = Path(ctx.record).parent if ctx.record else folders.create(settings.reports_root(), ctx.run_id)
        records.write_atomically(folder / folders.PLAN, plans.write(plan))
    except OSError as error:
        hint = "Set OPS_REPORTS to a folder that can be written."
        raise Refused(f"The plan cannot be saved: {error.strerror}. No change goes unrecorded.", hint=hint) from None
    points.passed("after-plan-file")
    return folder


def _confirmed(plan: Plan) -> tuple[list[Action], list[Outcome]]:
    """Split a plan by what a person confirmed before this run; everything, where nobody had to."""
    path = records.context().confirmed
    if not path:
        return list(plan), []
    try:
        confirmed = plans.read(Path(path).read_bytes())
    except OSError as error:
        raise Refused(f"The plan that was confirmed cannot be read: {error.strerror}. Nothing was changed.") from None
    agreed = {_intent(action) for action in confirmed}
    reason = "It was not in the plan that was confirmed; look at it and run again."
    late = [action for action in plan if _intent(action) not in agreed]
    return [action for action in plan if action not in late], [
        Outcome(action=a, status=Status.SKIPPED, reason=reason) for a in late
    ]


def _intent(action: Action) -> tuple[object, ...]:
    """Return what a person agreed to; how a message lies is looked at again."""
    return action.kind, action.subject, action.destination, action.node, action.terminate


def _identify(plan: Plan, broker: Broker) -> None:
    """Make sure that this is the server, database and role that the plan was made for, and that it is fresh."""
    info = cast("Mapping[str, object]", broker.writes.info())
    space = broker.keys
    now = f"{info.get('run_id', '')}/{info.get('master_replid', '')}/{space.database}/{space.prefix}"
    if info.get("role") != "master":
        raise Refused(
            f"{broker.target.shown_broker} is a replica; changes belong on its master.",
            hint="Name the master, or a Sentinel.",
        )
    if plan.fingerprint != now:
        raise Refused(
            "The server was restarted, failed over or is another one since the plan was made.",
            hint="Run the runbook again.",
        )
    # Where a number of replicas is demanded, and none is there; Redis 6.2 does not refuse a script for that.
    if info.get("min_slaves_good_slaves") == 0:
        raise Refused(
            f"{broker.target.shown_broker} takes no writes: it has too few replicas. Nothing was changed.",
            hint="See to its replicas first.",
        )
    if broker.environment_problem:
        raise Refused(f"{broker.environment_problem} Nothing was changed.", hint="`ops config stamp` writes one, once.")
    if abs(broker.clock_offset_s) > CLOCK_WRONG_S:
        raise Refused(
            f"{broker.clock_problem} Nothing was changed.", hint="Set the clock that is wrong, then run this again."
        )
    if plans.stale(plan, broker.server_time()):
        raise Refused(
            f"The plan is of {plan.made_at} and was good until {plan.expires_at}.", hint="Run the runbook again."
        )


def _under_lock_or_full(actions: Sequence[Action], plan: Plan, broker: Broker, folder: Path) -> list[Outcome]:
    """Carry out under the lock; where a full server has no memory for one, do what can be done without."""
    try:
        return _under_lock(actions, plan, broker, folder)
    except Exception as error:
        if full.answers(error, actions):
            return full.purge(broker, actions, records.context().run_id)
        raise


def _under_lock(actions: Sequence[Action], plan: Plan, broker: Broker, folder: Path) -> list[Outcome]:
    run_id = plan.continues or records.context().run_id
    told = {"plan": plan.digest, "target": plan.target, "runbook": records.context().runbook}
    told |= {"server": str(broker.information.get("run_id", "")), "host": socket.gethostname()}
    with (
        lock.held(broker, run_id=records.context().run_id, plan_digest=plan.digest) as held,
        watching(broker, held) as watch,
    ):
        points.passed("after-lock")
        primitive = Primitive(broker, held, run_id=run_id, told=told, watch=watch)
        outcomes = _carry_out(actions, primitive, held, folder)
        points.passed("before-verify")
        outcomes = verify.checked(primitive, outcomes)
        points.passed("before-release")
        primitive.close()
    return outcomes


def _carry_out(actions: Sequence[Action], primitive: Primitive, held: lock.Lock, folder: Path) -> list[Outcome]:
    """Stop first, for a stopped task must not be restored; a failure ends its group, not the account of it."""
    mover = Mover(primitive)
    handler = Handler(mover)
    groups: tuple[tuple[set[Kind], Callable[[list[Action]], list[Outcome]]], ...] = (
        ({Kind.PAUSE}, lambda some: [consumers.order(primitive, action) for action in some]),
        ({Kind.STOP}, lambda some: stop(primitive, some, handler.everything, held.renew)),
        ({Kind.RESTORE}, handler.single),
        ({Kind.QUARANTINE, Kind.MOVE, Kind.REORDER}, handler.single),
        ({Kind.REPAIR}, lambda some: repair.repair(primitive, some)),
        ({Kind.PURGE}, lambda some: [lists.purge(primitive, action) for action in some]),
        ({Kind.DELETE}, lambda some: stored.delete(primitive, some, vault.free(folder))),
        ({Kind.EXPIRE}, lambda some: stored.expire(primitive, some)),
        ({Kind.DROP}, lambda some: drop.drop(primitive, some, vault.free(folder))),
        ({Kind.RESUME}, lambda some: [consumers.order(primitive, action) for action in some]),
        ({Kind.UNDO}, lambda some: undo.carry_out(primitive, mover, some)),
    )
    outcomes: list[Outcome] = []
    for kinds, do in groups:
        group = [action for action in actions if action.kind in kinds]
        if primitive.over:
            outcomes += [Outcome(action=a, status=Status.FAILED, reason=primitive.over) for a in group]
            continue
        try:
            outcomes += do(group) if group else []
        except Exception as error:  # noqa: BLE001 - `refusals` sorts them, and raises what it does not know
            known = refusals.of(error, primitive.broker.target.shown_broker)
            outcomes += _broken_off(primitive, group, known.message)
    return outcomes


def _broken_off(primitive: Primitive, group: Sequence[Action], why: str) -> list[Outcome]:
    """Account for a group that an error ended: what its earlier batches did is done, as the journal says."""
    try:
        journal = journals.read(primitive.broker, primitive.run_id)
    except Exception as error:  # noqa: BLE001 - as above
        refusals.of(error, primitive.broker.target.shown_broker)
        journal = Journal(run_id=primitive.run_id)
    if primitive.run_id == records.context().run_id:  # an earlier plan of this run had the same numbers
        journal = replace(journal, batches=tuple(b for b in journal.batches if b.order[0] == primitive.epoch))
    return [
        Outcome(action=action, status=Status.APPLIED, reason="It was done before the next ones failed.")
        if resume.done(action, journal)
        else Outcome(action=action, status=Status.FAILED, reason=why)
        for action in group
    ]
