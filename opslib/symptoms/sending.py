"""A task in a person's words → the action that publishes it, and what speaks against it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opslib.durations import after, moment, seconds, spell
from opslib.errors import BadParameter
from opslib.facts.system import NodeInfo
from opslib.plan import Action, Kind
from opslib.rewrite import fresh

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """
    One task to be sent.

    Attributes:
        countdown_s: Seconds from now until it is run; None for at once, or where `eta` says when.

        eta: Instant at which it is run; None for at once.
    """

    task: str
    args: Sequence[object]
    kwargs: Mapping[str, object]
    priority: int = 0
    countdown_s: float | None = None
    eta: datetime | None = None


def order(task: str, args: str, kwargs: str, *, countdown: str = "", eta: str = "", priority: int = 0) -> Order:
    """
    Read a task from the words of a command line.

    Raises:
        BadParameter: If the name is empty, the arguments are no JSON of their kind, or both times are given, or one
            cannot be read.

        SettingsError: If the countdown has no unit, or is not above zero.
    """
    if not task.strip() or any(char.isspace() for char in task):
        raise BadParameter(f"{task!r} is no task's name.")
    if countdown and eta:
        raise BadParameter("--countdown and --eta exclude each other.")
    return Order(
        task=task,
        args=_json(args, list, "--args", "a JSON list, such as '[4711]'"),
        kwargs=_json(kwargs, dict, "--kwargs", "a JSON object, such as '{\"order\": 4711}'"),
        priority=priority,
        countdown_s=seconds(countdown, "--countdown") if countdown else None,
        eta=moment(eta, "--eta") if eta else None,
    )


def action(wanted: Order, queue: str, *, task_id: str, now: datetime) -> Action:
    """
    Return the action that publishes a task to a queue.

    Args:
        now: Server time, from which a countdown is counted.
    """
    due = wanted.eta or (after(now, wanted.countdown_s) if wanted.countdown_s else None)
    message = fresh(
        wanted.task,
        wanted.args,
        wanted.kwargs,
        task_id=task_id,
        queue=queue,
        priority=wanted.priority,
        eta=due.isoformat() if due else None,
    )
    when = f"runs in {spell((due - now).total_seconds())}" if due and due > now else "runs when its turn comes"
    urgency = f" with priority {wanted.priority}" if wanted.priority else ""
    return Action(
        kind=Kind.SEND,
        subject=task_id,
        task=wanted.task,
        source="ops",
        destination=queue,
        message=message.decode(),
        effect=f"A new task {wanted.task} waits in {queue}{urgency} and {when}.",
    )


def doubts(wanted: Order, queue: str, nodes: Sequence[NodeInfo], *, now: datetime, whole: bool) -> Iterator[str]:
    """
    Say what speaks against it, each as a sentence.

    Args:
        whole: Whether every node answered; of those that did not, nobody knows what they can run.
    """
    answering = [node for node in nodes if node.answered]
    consuming = [node for node in answering if queue in node.queues]
    others = "" if whole else " Not every node answered, though."
    if not consuming:
        yield f"No node that answered consumes {queue}: it would wait there until one does.{others}"
    known = sorted({task.name for node in (consuming or answering) for task in node.tasks})
    if known and wanted.task not in known:
        near = difflib.get_close_matches(wanted.task, known, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        yield f"No node that answered knows a task {wanted.task}: it would be dropped as not registered.{meant}{others}"
    ahead_s = (wanted.eta - now).total_seconds() if wanted.eta else wanted.countdown_s or 0.0
    if ahead_s < 0:
        yield f"Its ETA was {spell(-ahead_s)} ago: it runs as soon as its turn comes."
    shortest_s = min((node.visibility_timeout_s or ahead_s for node in consuming), default=ahead_s)
    if ahead_s > shortest_s:
        yield f"It is due beyond the visibility timeout of {spell(shortest_s)}, so it may be delivered more than once."


def _json(text: str, kind: type, name: str, wanted: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # NaN and what is too large for a float: Python reads them, JSON has none
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise BadParameter(f"{name} is not {wanted}.")
    return value
