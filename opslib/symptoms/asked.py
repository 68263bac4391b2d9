"""What a person asks for by name, and the facts about it → the actions that would do so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opslib.facts import Quarantined, WaitingMessage
from opslib.plan import Action, Copy, Kind
from opslib.selection import Selection
from opslib.symptoms.stops import copy_of


def purge(queue: str, lengths: Mapping[str, int], only: Selection | None = None) -> list[Action]:
    """
    Take what waits in a queue out of circulation; nothing where nothing waits.

    What nodes hold already, unacked, active or reserved, is none of the queue's any more and stays.

    Args:
        lengths: Messages by key, for each of the queue's lists: those that are meant.

        only: Which messages are meant; None for all.
    """
    how = f"{only.words()} " if only else ""
    return _of_lists(
        Kind.PURGE,
        queue,
        "quarantine",
        lengths,
        only,
        f"{{count}} {how}leave circulation and are kept; what nodes hold already stays there.",
    )


def move(source: str, to: str, lengths: Mapping[str, int], only: Selection | None = None) -> list[Action]:
    """
    Put what waits in a queue into another one, in its order, each message behind those of its own priority.

    Args:
        lengths: Messages by key, for each of the source's lists, the first served first: those that are meant.

        only: Which messages are meant; None for all.
    """
    how = f" {only.words()}" if only else ""
    effect = f"{{count}}{how} wait in {to} from now on, in their order; a retry of them stays there."
    return _of_lists(Kind.MOVE, source, to, lengths, only, effect)


def expedite(queue: str, lengths: Mapping[str, int], only: Selection) -> list[Action]:
    """
    Have some of what waits in a queue served before everything else in it, in its order.

    Args:
        lengths: Messages by key, for each of the queue's lists, the first served first: those that are meant.
    """
    effect = f"{{count}} {only.words()} are served next, in their order, with priority 0."
    return _of_lists(Kind.REORDER, queue, "next", lengths, only, effect)


def _of_lists(
    kind: Kind, queue: str, to: str, lengths: Mapping[str, int], only: Selection | None, effect: str
) -> list[Action]:
    copies = tuple(Copy(place="list", key=key, queue=queue, count=count) for key, count in lengths.items() if count)
    count = sum(copy.count for copy in copies)
    if not count:
        return []
    told = f"{count:,} message{'s' * (count != 1)}"
    effect = effect.format(count=told)
    return [Action(kind=kind, subject=queue, source=queue, destination=to, copies=copies, only=only, effect=effect)]


def consuming(kind: Kind, queue: str, nodes: Iterable[str] = ()) -> list[Action]:
    """
    Have nodes stop consuming a queue, or consume it.

    Args:
        kind: PAUSE or RESUME.

        nodes: Their names; all of them where none is named.
    """
    names = ",".join(sorted(nodes))
    who = names or "every node"
    effect = (
        f"{who} takes no more of {queue}; what it has already, it runs. A node that starts later consumes it again."
        if kind is Kind.PAUSE
        else f"{who} consumes {queue} again."
    )
    source, to = (queue, "paused") if kind is Kind.PAUSE else ("paused", queue)
    return [Action(kind=kind, subject=queue, source=source, destination=to, node=names, effect=effect)]


def reorder(message: WaitingMessage, to: str) -> Action:
    """
    Put one waiting message elsewhere in its own list.

    Args:
        to: "next", "last", or how many messages shall be served before it.
    """
    where = {"next": "Served next", "last": "Served last"}.get(to, f"Served after {to} others")
    return Action(
        kind=Kind.REORDER,
        subject=message.task_id,
        task=message.task,
        source=message.queue,
        destination=to,
        copies=(copy_of(message),),
        effect=f"{where} of priority {message.priority} in {message.queue}; now {message.position:,} are before it.",
    )


def send(task_id: str, task: str, queue: str, message: str, *, due: str = "", consumers: int = 1) -> Action:
    """
    Publish a message.

    Args:
        message: As Celery writes it, with the queue in it.

        due: When it is run, as a person says it; empty for at once.

        consumers: Nodes that consume the queue.
    """
    when = f"runs {due}" if due else "runs when its turn comes"
    nobody = "" if consumers else " No node that answered consumes that queue."
    effect = f"A new task {task} waits in {queue} and {when}.{nobody}"
    return Action(
        kind=Kind.SEND, subject=task_id, task=task, source="", destination=queue, message=message, effect=effect
    )


def drop(lists: Iterable[Quarantined]) -> list[Action]:
    """Remove quarantine lists for good, each after its messages were written to a file."""
    return [
        Action(
            kind=Kind.DROP,
            subject=row.key,
            source="quarantine",
            destination="vault",
            copies=(Copy(place="list", key=row.key, queue=row.queue, count=row.count),),
            effect=f"{row.count:,} messages of {row.queue} go to the vault of this run, and leave the server for good.",
        )
        for row in lists
    ]
