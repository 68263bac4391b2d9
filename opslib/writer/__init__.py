"""WRITE. A Plan → one Outcome for each action: the only part that changes a system, and the whole of it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, cast

from opslib import folders, records, redact, refusals, settings
from opslib import plan as plans
from opslib.broker import CLOCK_WRONG_S
from opslib.collectors.quarantine import set_aside
from opslib.errors import Refused
from opslib.keys import OWN, raw_name
from opslib.plan import Action, Kind, Outcome, Plan, Status
from opslib.selection import CHECKPOINTS, GROUPS, REPLIES, RESULTS
from opslib.writer import (
    audit,
    beside,
    canary,
    consumers,
    drop,
    full,
    gates,
    handed,
    held,
    lists,
    lock,
    nodes,
    points,
    pools,
    putback,
    rates,
    redriven,
    repair,
    resume,
    row_rules,
    saved,
    selected,
    sent,
    shutdown,
    sites,
    stored,
    swept,
    switched,
    temporary,
    updated,
    vault,
    verify,
)
from opslib.writer import journal as journals
from opslib.writer.journal import Journal
from opslib.writer.moves import Mover
from opslib.writer.primitive import Primitive
from opslib.writer.quarantine import Handler
from opslib.writer.stop import stop as stop_tasks
from opslib.writer.watch import watching

if TYPE_CHECKING:
    from opslib.broker import Broker


#: What may be about all that lists hold, or about what a filter means of it.
_OF_LISTS = {Kind.PURGE, Kind.MOVE, Kind.REORDER, Kind.REDRIVE}


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
        if records.context().record and not _has_credential(plan):
            _save(plan)  # unmasked, or it could not be applied
        return tuple(Outcome(action=a, status=Status.SKIPPED, reason=f"Dry run. {a.effect}") for a in plan)
    _named(broker, confirm)
    allowed, unconfirmed = _confirmed(plan)
    plan = replace(plan, actions=tuple(allowed))  # what nobody agreed to is not even saved: it could be resumed
    broker = sites.planned(broker, plan.fingerprint)
    try:
        points.passed("before-lock")
        _identify(plan, broker)
        for action in plan:
            _fitting(action, broker)
        folder = _save(plan)
        audit.write("begin", plan=plan.digest, target=plan.target, continues=plan.continues, actions=plan.summary())
        outcomes = _under_lock_or_full(plan, broker, folder)
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


def _has_credential(plan: Plan) -> bool:
    """Whether a plan holds a credential; in what it is to publish, somebody's data, only one of ours counts."""
    ours = redact.known()
    return redact.has_credential(plan.shown()) or any(each in action.message for each in ours for action in plan)


def _named(broker: Broker, confirm: str) -> None:
    """Refuse a protected target that nobody named: a headless run has asked, a cell run by hand has not."""
    target = broker.target
    if target.protected and not records.context().record and confirm != target.name:
        hint = f'apply(plan, broker, dry_run=False, confirm="{target.name}")'
        raise Refused(f"{target.name} is protected. Nothing was changed.", hint=hint)


def _fitting(action: Action, broker: Broker) -> None:
    """
    Refuse an action whose keys are not those of what it shows: what a person reads has to be what is done.

    Raises:
        Refused: If a key is another one than its place says, or one that is no queue's where a queue's is meant.
    """
    space = broker.keys
    if why := row_rules.refused(action, broker.target):
        raise Refused(f"Action {action.id} cannot be carried out: {why}. Nothing was changed.")
    for copy in action.copies:
        of_queue = copy.key in space.queue_lists(copy.queue) and space.is_queue_like(space.queue(copy.queue))
        own = copy.key.removeprefix(space.prefix).startswith(OWN)
        dropped = copy.key == action.subject and space.quarantined(copy.key) is not None
        fits = {
            "waiting": of_queue,
            "list": dropped if action.kind is Kind.DROP else of_queue and copy.queue in {action.subject, action.source},
            "unacked": copy.key == space.unacked,
            "held": action.kind is Kind.STOP and not copy.key and copy.queue == action.subject,
            "index": copy.key in {space.unacked, space.unacked_index},
            "results": _swept(action, RESULTS, space.result_root, copy.key),
            "replies": _swept(action, REPLIES, space.reply_list(""), copy.key),
            "groups": _swept(action, GROUPS, space.group(""), copy.key),
            "checkpoints": _swept(action, CHECKPOINTS, space.checkpoint_root, copy.key),
            "key": copy.key in {action.subject, space.result(action.subject)} and not own,
            "app": action.kind is Kind.DELETE and beside.is_pattern(action, copy.key, broker),
            "file": action.kind is Kind.REMOVE and temporary.is_meant(action, copy.key, broker),
            "entry": action.kind is Kind.SWITCH and copy.key == action.source and not own,
            "state": action.kind is Kind.HANDOVER and _hands_over(action, copy.key, broker),
            "row": action.row is not None and copy.key in {action.row.table, action.row.table.partition(".")[2]},
            "rows": action.kind is Kind.UNDO or action.rows is not None,  # as `row_rules` has said
        }.get(copy.place, action.kind is Kind.UNDO)
        if not fits:
            raise Refused(f"Action {action.id} shows {action.subject}, and is about {copy.key}. Nothing was changed.")
    named = action.kind in {Kind.MOVE, Kind.SEND, Kind.CANARY} or (action.kind is Kind.REDRIVE and action.destination)
    if named and not space.is_queue_name(action.destination):
        raise Refused(f"Action {action.id} puts messages into {action.destination}, which is no queue's name.")


def _swept(action: Action, what: str, key: str, shown: str) -> bool:
    """Whether an action is about what a filter means of the keys that it shows."""
    only, kinds = action.results, {Kind.DELETE, Kind.EXPIRE} if what == RESULTS else {Kind.DELETE}
    named = action.subject.replace("*", "") == key
    return only is not None and only.what == what and action.kind in kinds and shown == key and named


def _hands_over(action: Action, key: str, broker: Broker) -> bool:
    """Whether a key is the state of the task that is shown, and the other task can have one."""
    names = {handed.key_of(broker, action.source, task_id) for task_id in (action.subject, action.destination)}
    return key == handed.key_of(broker, action.source, action.subject) and len(names - {""}) == 2


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
    allowed = {a.id for a in plan if a.kind is Kind.AWAIT or _intent(a) in agreed}  # a gate only ever holds back
    return [action for action in plan if action.id in allowed], [
        Outcome(action=action, status=Status.SKIPPED, reason=reason) for action in plan if action.id not in allowed
    ]


def _intent(action: Action) -> tuple[object, ...]:
    """Return what a person agreed to; how a message lies is looked at again."""
    return (
        action.kind,
        action.subject,
        action.destination,
        action.node,
        action.terminate,
        action.only,
        action.letters,
        action.redrive,
        # "Older than a day" is agreed to; which instant that is, is reckoned when it is looked at again.
        replace(action.results, written_by=None) if action.results else None,
        action.row,
        replace(action.rows, last_run_by=None) if action.rows else None,
        action.message,
        action.ttl_s,
    )


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


def _under_lock_or_full(plan: Plan, broker: Broker, folder: Path) -> list[Outcome]:
    """Carry out under the lock; where a full server has no memory for one, do what can be done without."""
    try:
        return _under_lock(plan, broker, folder)
    except Exception as error:
        if full.answers(error, plan.actions):
            return full.carry_out(broker, plan.actions, plan.continues or records.context().run_id, folder)
        raise


def _under_lock(plan: Plan, broker: Broker, folder: Path) -> list[Outcome]:
    run_id = plan.continues or records.context().run_id
    told = {"plan": plan.digest, "target": plan.target, "runbook": records.context().runbook}
    told |= {"server": str(broker.information.get("run_id", "")), "host": socket.gethostname()}
    with (
        lock.held(broker, run_id=records.context().run_id, plan_digest=plan.digest) as mine,
        watching(broker, mine) as watch,
    ):
        points.passed("after-lock")
        goes_on = bool(plan.continues)
        primitive = Primitive(broker, mine, run_id=run_id, told=told, watch=watch, goes_on=goes_on)
        left, outcomes = _not_done(plan, primitive)
        outcomes += _carry_out(left, primitive, mine, folder)
        points.passed("before-verify")
        outcomes = verify.checked(primitive, outcomes)
        points.passed("before-release")
        primitive.close()
    return outcomes


def _not_done(plan: Plan, primitive: Primitive) -> tuple[list[Action], list[Outcome]]:
    """
    Split a plan that goes on with a journal by what that journal says is done.

    What was left of it was looked at before the lock was taken; another one may have gone on with it meanwhile.
    """
    if not plan.continues:
        return list(plan), []
    journal = journals.read(primitive.broker, primitive.run_id)
    left = resume.left(plan, journal)
    reason = "It is done already: another run went on with this one meanwhile."
    return [some for _, some in left if some], [
        Outcome(action=action, status=Status.SKIPPED, reason=reason) for action, some in left if not some
    ]


def _carry_out(actions: Sequence[Action], primitive: Primitive, lock_held: lock.Lock, folder: Path) -> list[Outcome]:
    """
    Stop first, for a stopped task must not be restored; a failure ends its group, not the account of it.

    A plan of steps is carried out as it stands. There, a gate that stays closed ends it, and so does a failure that
    nobody foresaw: what comes after was to be done on a system that is not there.
    """
    mover = Mover(primitive)
    handler = Handler(mover)

    def stopped(some: Sequence[Action]) -> list[Outcome]:
        return stop_tasks(primitive, some, handler.everything, lock_held.renew)

    groups: tuple[tuple[set[Kind], Callable[[list[Action]], list[Outcome]]], ...] = (
        ({Kind.PAUSE}, lambda some: [consumers.order(primitive, action) for action in some]),
        ({Kind.REVOKE}, lambda some: nodes.revoke(primitive, some)),
        ({Kind.STOP}, lambda some: held.stop(primitive, some, stopped)),
        ({Kind.LIMIT}, lambda some: [rates.limit(primitive, action) for action in some]),
        ({Kind.RESTORE}, handler.single),
        ({Kind.QUARANTINE, Kind.MOVE, Kind.REORDER}, handler.single),
        ({Kind.REPAIR}, lambda some: repair.repair(primitive, some)),
        ({Kind.PURGE}, lambda some: [_purge(mover, action) for action in some]),
        ({Kind.REDRIVE}, lambda some: [redriven.redrive(primitive, action) for action in some]),
        ({Kind.HANDOVER}, lambda some: handed.hand(primitive, some, vault.free(folder))),
        ({Kind.SEND}, lambda some: sent.send(primitive, some)),
        ({Kind.SWITCH}, lambda some: switched.switch(primitive, some)),
        ({Kind.UPDATE}, lambda some: updated.update(primitive, some, lambda: vault.free(folder))),
        ({Kind.DELETE}, lambda some: _apart(primitive, some, folder, stored.delete)),
        ({Kind.EXPIRE}, lambda some: _apart(primitive, some, folder, lambda p, a, _: stored.expire(p, a))),
        ({Kind.DROP}, lambda some: drop.drop(primitive, some, vault.free(folder))),
        ({Kind.REMOVE}, lambda some: [temporary.remove(primitive, action, folder) for action in some]),
        ({Kind.GROW, Kind.SHRINK}, lambda some: [pools.resize(primitive, action) for action in some]),
        ({Kind.RESUME}, lambda some: [consumers.order(primitive, action) for action in some]),
        ({Kind.SHUTDOWN}, lambda some: [shutdown.order(primitive, action) for action in some]),
        ({Kind.AWAIT}, lambda some: gates.wait(primitive, some)),
        ({Kind.CANARY}, lambda some: canary.fly(primitive, mover, some)),
        ({Kind.SAVE}, lambda some: [saved.save(primitive, action) for action in some]),
        ({Kind.UNDO}, lambda some: putback.carry_out(primitive, mover, some)),
    )
    outcomes: list[Outcome] = []
    shut = ""
    for group, do in _in_order(actions, groups):
        if shut:
            outcomes += [Outcome(action=a, status=Status.SKIPPED, reason=shut) for a in group]
            continue
        if primitive.over:
            outcomes += [Outcome(action=a, status=Status.FAILED, reason=primitive.over) for a in group]
            continue
        ready, held_back = handed.ready(group, outcomes)
        outcomes += held_back
        try:
            made = do(ready) if ready else []
            outcomes += made
            shut = gates.closed(made, primitive.run_id)
        except Exception as error:  # noqa: BLE001 - `refusals` sorts them, and raises what it does not know
            known = refusals.of(error, primitive.broker.target.shown_broker)
            outcomes += _broken_off(primitive, ready, f"{known.message}{_aside(primitive)}")
            if any(action.step for action in group):
                again = f"`ops resume {primitive.run_id}` goes on there"
                shut = f"Not done: action {group[0].id} was broken off. See to it; then {again}."
    return outcomes


def _in_order(
    actions: Sequence[Action], groups: Sequence[tuple[set[Kind], Callable[[list[Action]], list[Outcome]]]]
) -> Iterator[tuple[list[Action], Callable[[list[Action]], list[Outcome]]]]:
    """Yield what is carried out together: in the order of a plan of steps, otherwise in that of the kinds."""
    yield from _parted([action for action in actions if not action.step], groups)
    for _, some in groupby((a for a in actions if a.step), key=lambda action: (action.step, action.kind)):
        yield from _parted(list(some), groups)


def _parted(
    actions: Sequence[Action], groups: Sequence[tuple[set[Kind], Callable[[list[Action]], list[Outcome]]]]
) -> Iterator[tuple[list[Action], Callable[[list[Action]], list[Outcome]]]]:
    """
    Yield what is carried out together, with what does so.

    An order to nodes is by itself, for no journal proves one; and so is what is about whole lists: that it is done, the
    journal cannot say, for nobody knows what else would have been meant.
    """
    for kinds, do in groups:
        group = [action for action in actions if action.kind in kinds]
        alone = [action for action in group if kinds <= resume.ORDERS - {Kind.REVOKE} or _is_of_lists(action)]
        together = [action for action in group if action not in alone]
        yield from ((part, do) for part in [*([action] for action in alone), *([together] if together else [])])


def _is_of_lists(action: Action) -> bool:
    return action.kind in _OF_LISTS and any(copy.place == "list" for copy in action.copies)


def _purge(mover: Mover, action: Action) -> Outcome:
    """Take what a filter means, or the lists as they are; in a plan of steps, of one that has grown what is oldest."""
    writes = mover.primitive.broker.writes
    grown = action.step and any(writes.llen(raw_name(c.key)) > lists.most(c.count) for c in action.copies)
    if action.only or action.letters or grown:
        return selected.carry_out(mover, action)
    return lists.purge(mover.primitive, action)


def _apart(
    primitive: Primitive,
    actions: Sequence[Action],
    folder: Path,
    singly: Callable[[Primitive, Sequence[Action], Path], list[Outcome]],
) -> list[Outcome]:
    """Carry out what is about single keys, and then what a filter means."""
    of_tasks = [action for action in actions if any(copy.place == "app" for copy in action.copies)]
    single = [action for action in actions if action.results is None and action not in of_tasks]
    meant = [action for action in actions if action.results is not None]
    single, outcomes = beside.sorted_out(primitive, single)
    outcomes += singly(primitive, single, vault.free(folder)) if single else []
    outcomes += [beside.clear(primitive, action, folder) for action in of_tasks]
    for what in (RESULTS, REPLIES, GROUPS, CHECKPOINTS):
        some = [action for action in meant if action.results and action.results.what == what]
        outcomes += swept.sweep(primitive, some, vault.free(folder)) if some else []
    return outcomes


def _aside(primitive: Primitive) -> str:
    """Say how many messages an error left aside, or on their way in quarantine: no worker sees them there."""
    try:
        count = set_aside(primitive.broker).get(primitive.run_id, 0)
        kept = lists.underway(journals.read(primitive.broker, primitive.run_id).on_the_way)
    except Exception as error:  # noqa: BLE001 - as above
        refusals.of(error, primitive.broker.target.shown_broker)
        return ""
    return (f" {count:,} messages are set aside; `ops resume` deals them back." if count else "") + kept


def _broken_off(primitive: Primitive, group: Sequence[Action], why: str) -> list[Outcome]:
    """Account for a group that an error ended: what its earlier batches did is done, as the journal says."""
    try:
        journal = journals.read(primitive.broker, primitive.run_id)
    except Exception as error:  # noqa: BLE001 - as above
        refusals.of(error, primitive.broker.target.shown_broker)
        journal = Journal(run_id=primitive.run_id)
    # What is undone is known by its batch; all else by its number, which an earlier plan of this run has had too.
    done = resume.done([action for action in group if action.kind is Kind.UNDO], journal)
    if primitive.run_id == records.context().run_id:
        journal = replace(journal, batches=tuple(b for b in journal.batches if b.order[0] == primitive.epoch))
    done |= resume.done([action for action in group if action.kind is not Kind.UNDO], journal)
    return [
        Outcome(action=action, status=Status.APPLIED, reason="It was done before the next ones failed.")
        if action.id in done
        else Outcome(action=action, status=Status.FAILED, reason=why)
        for action in group
    ]
