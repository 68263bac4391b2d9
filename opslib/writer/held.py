"""
All that nodes hold of a queue → out of circulation: revoked, ended where a pool can, and every message of it kept.

Which tasks that are is seen in the moment in which it is done, for nodes take on until they consume no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib.collectors import holding, server
from opslib.collectors.holding import Holding
from opslib.plan import Action, Kind, Outcome, Status
from opslib.writer import lists

if TYPE_CHECKING:
    from opslib.writer.primitive import Primitive

_ANSWER_S = 2.0
_MOST_NAMED = 3
#: What stops tasks that are named by their ids, as `stop.stop` does.
Stop = Callable[[Sequence[Action]], list[Outcome]]


def stop(primitive: Primitive, actions: Sequence[Action], stopped: Stop) -> list[Outcome]:
    """
    Stop tasks that are named, and those that nodes hold of a queue; return what became of each action.

    Args:
        stopped: Stops tasks by their ids.
    """
    named = [action for action in actions if not is_held(action)]
    outcomes = stopped(named) if named else []
    meant = [action for action in actions if is_held(action)]
    return outcomes + (_held(primitive, meant, stopped) if meant else [])


def is_held(action: Action) -> bool:
    """Whether an action is about all that nodes hold of a queue."""
    return any(copy.place == "held" for copy in action.copies)


@dataclass(kw_only=True)
class _Meant:
    """
    What one action turned out to mean.

    Attributes:
        left: Unacknowledged messages that only a node which does not answer may hold: nothing is claimed of them.

        nameless: Unacknowledged messages without an id, which nobody could revoke.

        others: Tasks that another action of the plan has already.

        twice: Tasks that run more than once on one node, which ends only one of them by an order, with that node.
    """

    action: Action
    stops: list[Action] = field(default_factory=list)
    left: int = 0
    nameless: int = 0
    others: int = 0
    twice: dict[str, str] = field(default_factory=dict)
    too_many: str = ""


def _held(primitive: Primitive, actions: Sequence[Action], stopped: Stop) -> list[Outcome]:
    broker = primitive.broker
    seen = holding.look(broker, holding.routes(broker), timeout_s=_ANSWER_S)
    if seen.unasked:
        reason = f"{seen.unasked} Nothing of it was taken, for somebody may run it."
        return [Outcome(action=action, status=Status.FAILED, reason=reason) for action in actions]
    consuming = server.read(broker)[0].consumers
    hidden = (consuming is None and not seen.receivers) or (consuming or 0) > seen.receivers
    known: set[str] = set()
    every = [_meant(seen, action, known, sure=not seen.silent and not hidden) for action in actions]
    done = stopped([each for meant in every for each in meant.stops])
    by_id = {outcome.action.subject: outcome for outcome in done}
    return [_outcome(meant, [by_id[each.subject] for each in meant.stops]) for meant in every]


def _meant(seen: Holding, action: Action, known: set[str], *, sure: bool) -> _Meant:
    """
    Return the tasks that an action means, each as a stop of its own.

    What no node that answered holds counts only where everybody answered who may hold it (facts §2.5).

    Args:
        known: Ids that another action has already; these are added to it.

        sure: Whether nobody else can hold anything.
    """
    meant = _Meant(action=action)
    task = action.only.task if action.only else "*"
    held, delivered = seen.of((action.subject,) if action.subject != "*" else ("",), task)
    names = {each.task_id: each.task for each in held}
    running = {each.task_id: each.node for each in held if each.place == "active"}
    copies = Counter((each.task_id, each.node) for each in held if each.place == "active")
    meant.twice = {task_id: node for (task_id, node), count in copies.items() if count > 1}
    for message in delivered:
        if not message.task_id:
            meant.nameless += 1
        elif message.task_id in names or sure:
            names.setdefault(message.task_id, message.task)
        else:
            meant.left += 1
    room = sum(node.prefetch + node.concurrency for node in seen.nodes.values())
    most = lists.most(action.count) + room
    if len(names) > most:
        meant.too_many = f"Nodes hold {len(names):,} of it by now, and {action.count:,} were planned. Plan it again."
        return meant
    for task_id in [each for each in names if each not in known]:
        node = running.get(task_id, "")
        meant.stops.append(
            Action(
                kind=Kind.STOP,
                id=action.id,
                subject=task_id,
                task=names[task_id],
                source=action.subject,
                destination="quarantine",
                node=node,
                terminate=bool(node) and seen.nodes[node].can_terminate,
            )
        )
    meant.others = len(known & names.keys())
    known.update(names)
    return meant


def _outcome(meant: _Meant, stopped: Sequence[Outcome]) -> Outcome:
    action = meant.action
    if meant.too_many:
        return Outcome(action=action, status=Status.FAILED, reason=meant.too_many)
    odd = [f"{meant.others:,} are another action's already"] if meant.others else []
    odd += [f"{meant.nameless:,} have no id, and stay"] if meant.nameless else []
    odd += [f"{meant.left:,} may be held by a node that does not answer, and stay unacknowledged"] if meant.left else []
    also = f" {'; '.join(odd).capitalize()}." if odd else ""
    if not stopped:
        reason = f"No node that answers holds anything {'else ' * bool(meant.others)}of it.{also}"
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    failed = [each for each in stopped if each.status is not Status.APPLIED]
    ended = sum(1 for each in stopped if "it ended" in each.steps)
    done = len(stopped) - len(failed)
    kept = sum(int(step.split()[0]) for each in stopped for step in each.steps if step.endswith("quarantined"))
    steps = (f"{kept:,} messages kept", f"{ended:,} ended while they ran", f"{done:,} found in no queue, twice")
    every = f"{len(stopped):,} task{'s' * (len(stopped) != 1)}"
    how_many = f"Of {every}, {done:,} are proven to be" if failed else every
    reason = f"{how_many} out of circulation, {kept:,} of their messages are kept; {ended:,} ended as they ran.{also}"
    if failed:
        named = "; ".join(f"{each.action.subject}: {_why(meant, each)}" for each in failed[:_MOST_NAMED])
        more = f" … and {len(failed) - _MOST_NAMED:,} more" if len(failed) > _MOST_NAMED else ""
        return Outcome(action=action, status=Status.FAILED, reason=f"{reason} Not proven of {named}{more}", steps=steps)
    return Outcome(action=action, status=Status.APPLIED, reason=reason, steps=steps)


def _why(meant: _Meant, outcome: Outcome) -> str:
    node = meant.twice.get(outcome.action.subject)
    if node is None:
        return outcome.reason
    return f"it ran more than once on {node}, and an order ends one of them only: restart that node."
