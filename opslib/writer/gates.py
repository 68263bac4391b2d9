"""
A condition and a deadline → whether a plan goes on: what has to be true first is waited for, and nothing is changed.

A gate that was passed is in the journal: a run that goes on later does nothing again of what stands before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opslib.collectors import holding
from opslib.collectors.holding import Holding
from opslib.durations import spell
from opslib.naming import named
from opslib.plan import Action, Gate, Kind, Outcome, Status
from opslib.writer import journal as journals
from opslib.writer import points, shutdown

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.writer.primitive import Primitive

_ANSWER_S = 2.0
_PAUSE_S = 0.25
#: A gate is passed once its condition was true so often, one look after the other.
_LOOKS = 2
_MOST_STEPS = 10
#: What the journal calls a gate that was passed.
ROLE = "gate"


def wait(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """Wait at each gate; what stands behind one that stays closed is not tried."""
    outcomes: list[Outcome] = []
    for action in actions:
        why = closed(outcomes, primitive.run_id)
        outcomes.append(Outcome(action=action, status=Status.SKIPPED, reason=why) if why else _wait(primitive, action))
    return outcomes


def closed(outcomes: Sequence[Outcome], run_id: str) -> str:
    """Return why nothing more of a plan may be done; empty if no gate is closed."""
    failed = next((o for o in outcomes if o.action.kind is Kind.AWAIT and o.status is Status.FAILED), None)
    if failed is None:
        return ""
    return f"Not done: gate {failed.action.id} was not passed. See to it; then `ops resume {run_id}` goes on there."


def _wait(primitive: Primitive, action: Action) -> Outcome:
    gate = action.gate
    if gate is None or gate.until not in _WHY_NOT:
        return Outcome(action=action, status=Status.FAILED, reason="It says no condition that could be waited for.")
    points.passed(f"gate-{gate.until}")
    deadline = time.monotonic() + gate.within_s
    began, met = time.monotonic(), 0
    look = _WHY_NOT[gate.until](primitive, gate)
    progress: list[str] = []
    while True:
        why = look()
        _note_progress(progress, why, time.monotonic() - began)
        met = 0 if why else met + 1
        if met >= _LOOKS:
            break
        if time.monotonic() > deadline:
            left = why or "it was true for a moment only"
            reason = f"Not within {spell(gate.within_s)}: {left}. Nothing behind this gate was done."
            return Outcome(action=action, status=Status.FAILED, reason=reason, steps=tuple(progress))
        time.sleep(_PAUSE_S)
    primitive.call(
        "note",
        primitive.keys(),
        ["A"],
        receipt={"op": "note", "role": ROLE, "items": [{"a": action.id, "s": action.subject}]},
        about={ROLE: action.subject},
    )
    points.passed(f"gate-{gate.until}-passed")
    took = time.monotonic() - began
    how_long = f"after {spell(took)}" if took >= 1 else "at once"
    return Outcome(action=action, status=Status.APPLIED, reason=f"It is so, {how_long}.", steps=tuple(progress))


def _note_progress(progress: list[str], why: str, after_s: float) -> None:
    """Keep how many there were and when, each time that the number is another one; the last few of many."""
    count, _, _ = why.partition(" ")
    if not count[:1].isdigit() or (progress and progress[-1].startswith(f"{count} ")):
        return
    progress.append(f"{count} after {spell(after_s)}")
    del progress[1:-_MOST_STEPS]


def _asked(broker: Broker, gate: Gate) -> tuple[Holding, str]:
    """Ask the nodes; and say why their answers do not count, empty if they do."""
    return _counting(holding.nodes(broker, timeout_s=_ANSWER_S), gate)


def _counting(seen: Holding, gate: Gate) -> tuple[Holding, str]:
    if seen.unasked:
        return seen, seen.unasked.rstrip(".")
    if seen.silent > gate.silent:
        more = "" if not gate.silent else f", {gate.silent} did when this was planned"
        return seen, f"{seen.silent} node{'s' * (seen.silent != 1)} heard the question and did not answer{more}"
    return seen, ""


def _paused(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    def look() -> str:
        seen, doubt = _asked(primitive.broker, gate)
        every = "" in gate.queues
        still = sorted(
            f"{name} consumes {queue}"
            for name, node in seen.nodes.items()
            for queue in node.queues
            if (every or queue in gate.queues) and (not gate.nodes or name in gate.nodes)
        )
        return doubt or named(still)

    return look


def _idle(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    bindings = holding.routes(primitive.broker)

    def look() -> str:
        seen, doubt = _counting(holding.look(primitive.broker, bindings, timeout_s=_ANSWER_S), gate)
        held, _ = seen.of(gate.queues, gate.task)
        runs = sorted(f"{each.task} {each.task_id} runs on {each.node}" for each in held if each.place == "active")
        return doubt or named(runs)

    return look


def _drained(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    """Look what nodes run or have taken, and what would become of it if they were ended now."""

    def look() -> str:
        seen, doubt = _asked(primitive.broker, gate)
        left = [each for each in seen.held if each.node in gate.nodes and each.place in {"active", "reserved"}]
        if doubt or not left:
            return doubt
        lost = sum(each.acknowledged for each in left)
        fate = f"{lost:,} of them would be lost if their node ended now, {len(left) - lost:,} would run again"
        which = named(sorted(f"{each.task} {each.task_id} on {each.node}" for each in left))
        return f"{len(left):,} run or are about to; {fate}: {which}"

    return look


def _gone(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    told = shutdown.told_at(journals.read(primitive.broker, primitive.run_id))

    def look() -> str:
        seen, doubt = _asked(primitive.broker, gate)
        now = primitive.broker.server_time().timestamp()
        here = [
            f"{name} still answers"
            for name in gate.nodes
            if name in seen.nodes and not shutdown.is_younger(seen.nodes[name], told.get(name), now)
        ]
        return named(here) or doubt

    return look


def _cleared(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    """Look whether anything is unacknowledged; nothing is claimed of what somebody may hold who does not answer."""
    bindings, beyond = holding.routes(primitive.broker), gate.silent or gate.hidden

    def look() -> str:
        seen, doubt = _counting(holding.look(primitive.broker, bindings, timeout_s=_ANSWER_S), gate)
        held, delivered = seen.of(gate.queues, gate.task)
        ids = {each.task_id for each in held}
        left = [m for m in delivered if (not beyond and m.task_id) or m.task_id in ids]
        return doubt or named(sorted(f"{m.task} {m.task_id} is unacknowledged" for m in left))

    return look


def _consumed(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    def look() -> str:
        seen = holding.nodes(primitive.broker, timeout_s=_ANSWER_S)
        if seen.unasked:
            return seen.unasked.rstrip(".")
        missing = [f"{name} does not answer" for name in gate.nodes if name not in seen.nodes]
        missing += [
            f"{name} does not consume {queue}"
            for name in gate.nodes
            if name in seen.nodes
            for queue in gate.queues
            if queue not in seen.nodes[name].queues
        ]
        return named(missing)

    return look


def _served(primitive: Primitive, gate: Gate) -> Callable[[], str]:
    """Look whether each queue has a consumer: a node that is started anew may have another name."""

    def look() -> str:
        seen = holding.nodes(primitive.broker, timeout_s=_ANSWER_S)
        if seen.unasked:
            return seen.unasked.rstrip(".")
        served = {queue for node in seen.nodes.values() for queue in node.queues}
        return named([f"nobody consumes {queue}" for queue in gate.queues if queue not in served])

    return look


#: Each condition → what says, again and again, why it is not true; empty once it is.
_WHY_NOT: dict[str, Callable[[Primitive, Gate], Callable[[], str]]] = {
    "paused": _paused,
    "idle": _idle,
    "drained": _drained,
    "gone": _gone,
    "cleared": _cleared,
    "consumed": _consumed,
    "served": _served,
}
