"""Looks at one task, one after the other → whether it is in a retry loop, and on what evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from opslib.durations import spell
from opslib.facts.messages import UnackedMessage, WaitingMessage
from opslib.facts.whereabouts import Whereabouts
from opslib.symptoms.stuck_tasks import Thresholds


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """
    Whether a task is in a retry loop.

    Attributes:
        is_loop: None where it cannot be told.

        sentence: The answer, beginning with yes, no, or that it cannot be told.

        evidence: The facts it was judged on, by name.
    """

    is_loop: bool | None
    sentence: str
    evidence: Mapping[str, object] = field(default_factory=dict)


def judge(looks: Sequence[Whereabouts], task_id: str, limits: Thresholds) -> Answer:
    """
    Say whether a task retries without an end.

    It does if it was retried `loop_after` times or more; or if its retries rose while it was watched, everything could
    be seen, and the nodes' code does not end them. How often it was retried, its message knows, and its result where
    the application keeps extended ones; what a node runs and has acknowledged says nothing, so only a longer watch may
    see it.

    Args:
        looks: At least one, the latest last.
    """
    last = looks[-1]
    counts = [count for count in (_retries(look, task_id) for look in looks) if count is not None]
    retries = max(counts, default=None)
    rose = max(counts) - counts[0] if counts else 0
    caps = _caps(looks, task_id)
    cap = _cap(caps)
    watched_s = (last.taken_at - looks[0].taken_at).total_seconds()
    evidence = {
        "retries": retries,
        "rose_by": rose,
        "watched_s": round(watched_s, 1),
        "max_retries": cap,
        "loop_after": limits.loop_after,
        "next_attempt_at": _due(last, task_id),
        "result": next((row.state for row in last.results if row.task_id == task_id), ""),
        "not_seen": [row.place for row in last.silent_places],
    }

    is_loop, said = _judged(looks, task_id, limits, retries=retries, rose=rose, caps=caps)
    return Answer(is_loop=is_loop, sentence=f"{said}.", evidence=evidence)


def _judged(
    looks: Sequence[Whereabouts],
    task_id: str,
    limits: Thresholds,
    *,
    retries: int | None,
    rose: int,
    caps: Sequence[int | None],
) -> tuple[bool | None, str]:
    last, then, cap = looks[-1], _then(looks[-1], task_id), _cap(caps)
    watched_s = (last.taken_at - looks[0].taken_at).total_seconds()
    risen = f", {rose} of them within {spell(watched_s)}" if rose else ""
    if retries is not None and retries >= limits.loop_after:
        return True, f"Yes: retried {_times(retries)}{risen}, where {limits.loop_after} count as a loop{then}"
    blind = [row.place for row in last.silent_places]
    if blind:
        seen = f"it was retried {_times(retries)} so far{risen}"
        seen = "nobody who answered knows how often" if retries is None else seen
        return None, f"Cannot tell: {seen}, but not everything could be seen: {', '.join(blind)}"
    if rose:
        told = f"its retries rose by {rose} to {retries} within {spell(watched_s)}"
        if not caps:
            return None, f"Cannot tell: {told}, but no node that answered has the task, nor says whether they end{then}"
        if cap is None:
            return True, f"Yes: {told}, and the nodes' code has no limit for them{then}"
        if retries is not None and retries > cap:
            return True, f"Yes: {told}, and its own limit of {cap} does not hold it{then}"
    return _within_bounds(last, task_id, retries=retries, cap=cap, then=then, still_s=0.0 if rose else watched_s)


def _within_bounds(
    last: Whereabouts, task_id: str, *, retries: int | None, cap: int | None, then: str, still_s: float
) -> tuple[bool | None, str]:
    """Answer where everything was seen, and nothing speaks for a loop yet."""
    state = next((row.state for row in last.results if row.task_id == task_id), "")
    in_flight = [place for place in last.places.get(task_id, []) if place not in {"result", "dead", "quarantined"}]
    if not in_flight:
        where = ", ".join(dict.fromkeys(last.places.get(task_id, [])))
        said = f"its result says {state}, and no attempt is under way" if state else f"it is {where}" if where else ""
        return False, f"No: {said or 'it was found nowhere, so nothing retries it'}"
    if retries is None:
        said = "it runs, and its message is acknowledged, so nobody knows how often it was retried"
        return None, f"Cannot tell: {said}; --watch sees its next attempts"
    if not retries:
        return False, f"No: it has not been retried; it is {in_flight[-1]}"
    bound = f", of at most {cap}" if cap is not None else ""
    watched = f", and not once more in the {spell(still_s)} that it was watched" if still_s >= 1 else ""
    return False, f"No: retried {_times(retries)}{bound}{watched}{then}"


def _retries(look: Whereabouts, task_id: str) -> int | None:
    """Return how often a task was retried by one look; None where nothing tells."""
    known = [message.retries for message in look.messages if message.task_id == task_id]
    known += [row.retries for row in look.results if row.task_id == task_id and row.task]  # an extended result
    return max(known, default=None)


def _caps(looks: Sequence[Whereabouts], task_id: str) -> list[int | None]:
    """Return what each node's code allows, None for no end, by the latest look at which any node had the task."""
    rows = [row for look in looks for row in (*look.messages, *look.held, *look.results)]
    names = {row.task for row in rows if row.task_id == task_id}
    each = ([t.max_retries for node in look.answering for t in node.tasks if t.name in names] for look in looks[::-1])
    return next(filter(None, each), [])


def _cap(caps: Sequence[int | None]) -> int | None:
    """Return the most retries that any node allows; None for no end, or where no node says."""
    known = [cap for cap in caps if cap is not None]
    return max(known) if known and len(known) == len(caps) else None


def _due(look: Whereabouts, task_id: str) -> float | None:
    message = _latest(look, task_id)
    return message.eta_at if message else None


def _latest(look: Whereabouts, task_id: str) -> WaitingMessage | UnackedMessage | None:
    """Return the message of the latest attempt."""
    return max((m for m in look.messages if m.task_id == task_id), key=lambda m: m.retries, default=None)


def _then(look: Whereabouts, task_id: str) -> str:
    due_at = _due(look, task_id)
    if due_at is None:
        return ""
    left_s = due_at - look.taken_at.timestamp()
    node = next((t.node for t in look.held if t.task_id == task_id and t.place == "scheduled"), "")
    return (
        f"; the next attempt {f'is due in {spell(left_s)}' if left_s > 0 else 'is due'}{f' on {node}' if node else ''}"
    )


def _times(number: int | None) -> str:
    return f"{number} time{'s' * (number != 1)}"
