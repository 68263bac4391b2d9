"""What a person asks for by name, and the facts about it → the actions that would do so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from opslib import durations
from opslib.errors import BadParameter, NotFound, OpsError
from opslib.facts.messages import Quarantined, WaitingMessage
from opslib.facts.system import NodeInfo, QueueInfo
from opslib.facts.whereabouts import Whereabouts
from opslib.plan import Action, Copy, Kind
from opslib.selection import Selection
from opslib.symptoms.stops import copy_of

#: Of a longer list, so many messages at either end can step aside for one that is put among them.
ASIDE = 1_000


def purge(queue: str, lengths: Mapping[str, int], only: Selection | None = None) -> list[Action]:
    """
    Take what waits in a queue out of circulation; nothing where nothing waits.

    What nodes hold already, unacked, active or reserved, is none of the queue's any more and stays.

    Args:
        lengths: Messages by key, for each of the queue's lists: those that are meant.

        only: Which messages are meant; None for all.
    """
    how, at_once = (_how(only), "") if only else ("", " at once")
    one = sum(lengths.values()) == 1
    does = f"leave{'s' * one} circulation{at_once} and {'is' if one else 'are'} kept"
    effect = f"{_told(lengths)}{how} {does}; what nodes hold already stays there."
    return _of_lists(Kind.PURGE, queue, "quarantine", lengths, only, effect)


def move(source: str, to: str, lengths: Mapping[str, int], only: Selection | None = None) -> list[Action]:
    """
    Put what waits in a queue into another one, in its order, each message behind those of its own priority.

    Args:
        lengths: Messages by key, for each of the source's lists, the first served first: those that are meant.

        only: Which messages are meant; None for all.
    """
    wait, order, them = ("waits", "", "it") if sum(lengths.values()) == 1 else ("wait", ", in their order", "them")
    effect = f"{_told(lengths)}{_how(only)} {wait} in {to} from now on{order}; a retry of {them} stays there."
    return _of_lists(Kind.MOVE, source, to, lengths, only, effect)


def expedite(queue: str, lengths: Mapping[str, int], only: Selection) -> list[Action]:
    """
    Have some of what waits in a queue served before everything else in it, in its order.

    Args:
        lengths: Messages by key, for each of the queue's lists, the first served first: those that are meant.
    """
    are, order = ("is", "") if sum(lengths.values()) == 1 else ("are", ", in their order")
    effect = f"{_told(lengths)}{_how(only)} {are} served next{order}, with priority 0."
    return _of_lists(Kind.REORDER, queue, "next", lengths, only, effect)


def _of_lists(
    kind: Kind, queue: str, to: str, lengths: Mapping[str, int], only: Selection | None, effect: str
) -> list[Action]:
    copies = tuple(Copy(place="list", key=key, queue=queue, count=count) for key, count in lengths.items() if count)
    action = Action(kind=kind, subject=queue, source=queue, destination=to, copies=copies, only=only, effect=effect)
    return [action] if copies else []


def _told(lengths: Mapping[str, int]) -> str:
    count = sum(lengths.values())
    return f"{count:,} message{'s' * (count != 1)}"


def _how(only: Selection | None) -> str:
    """Return which messages are meant, as words behind their number; how many there are at most, that number says."""
    words = replace(only, limit=0).words() if only else ""
    return f" {words}" if words else ""


def consuming(kind: Kind, queue: str, nodes: Iterable[str] = ()) -> list[Action]:
    """
    Have nodes stop consuming a queue, or consume it.

    Args:
        kind: PAUSE or RESUME.

        nodes: Their names; to pause, all of them where none is named.

    Raises:
        BadParameter: If nobody is named who shall consume it: every node would, those too that never have.
    """
    names = ",".join(sorted(nodes))
    if kind is Kind.RESUME and not names:
        hint = "Name a node; or `ops undo RUN_ID` of the pause tells just those that consumed it before."
        raise BadParameter(f"Which nodes shall consume {queue}? Every one would, those too that never have.", hint=hint)
    who = names or "Every node"
    effect = (
        f"{who} takes no more of {queue}; what it has already, it runs, and what it is being served in that moment it "
        "puts back, last. A node that starts later consumes it again."
        if kind is Kind.PAUSE
        else f"{who} consumes {queue}, as long as it lives."
    )
    source, to = (queue, "paused") if kind is Kind.PAUSE else ("paused", queue)
    return [Action(kind=kind, subject=queue, source=source, destination=to, node=names, effect=effect)]


def reordered(seen: Whereabouts, task_id: str, to: str) -> Action:
    """
    Put one waiting task elsewhere in its own list.

    Args:
        to: "next", "last", or how many messages shall be served before it.

    Raises:
        NotFound: If it is nowhere.

        BadParameter: If it does not wait, or not just once, or its list has no such place.
    """
    copies = [message for message in seen.waiting if message.task_id == task_id]
    if len(copies) != 1:
        raise _not_in_one_list(seen, task_id, len(copies))
    (message,) = copies
    depth = next((q.by_priority.get(_step(q, message), 0) for q in seen.queues if q.name == message.queue), 0)
    if to not in {"next", "last"}:
        _fitting(to, message, depth)
    where = {"next": "Served next", "last": "Served last"}.get(to, f"Served after {to} others")
    return Action(
        kind=Kind.REORDER,
        subject=task_id,
        task=message.task,
        source=message.queue,
        destination=to,
        copies=(copy_of(message),),
        effect=f"{where} of priority {message.priority} in {message.queue}; {message.position:,} are before it now.",
    )


def _step(queue: QueueInfo, message: WaitingMessage) -> int:
    """Return the step of the list that a message is in: the highest that its priority reaches."""
    return max((step for step in queue.by_priority if step <= max(0, message.priority)), default=0)


def _fitting(to: str, message: WaitingMessage, depth: int) -> None:
    if not (to.isascii() and to.isdecimal()):
        raise BadParameter(f"{to!r} is no place in a queue.", hint="Say next, last, or a number: 0 is served next.")
    if int(to) >= max(1, depth):
        raise BadParameter(
            f"{message.queue} has {depth:,} messages of that priority: places are 0 to {max(0, depth - 1):,}, not {to}."
        )
    if int(to) > ASIDE and depth - int(to) > ASIDE:
        raise BadParameter(
            f"Place {int(to):,} of {depth:,} is too deep: so many messages would have to step aside at once.",
            hint=f"Say next, last, or a place among the first or the last {ASIDE:,}.",
        )


def _not_in_one_list(seen: Whereabouts, task_id: str, copies: int) -> OpsError:
    places = list(dict.fromkeys(seen.places.get(task_id, ())))
    if copies > 1:
        hint = "`ops find` shows both; `ops task stop` takes all of them out of circulation."
        return BadParameter(f"{task_id} waits {copies} times; which of them is meant?", hint=hint)
    if places:
        hint = "Only a task that waits in a queue has a place there: a node has this one already, or it is finished."
        return BadParameter(f"{task_id} does not wait: it is {', '.join(places)}.", hint=hint)
    blind = [row.place for row in seen.silent_places]
    unseen = f"; not everything could be seen: {', '.join(blind)}" if blind else ""
    return NotFound(f"{task_id} was found nowhere{unseen}.", hint="Is the id whole, and is this its deployment?")


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


def refuse_size(node: NodeInfo, by: int) -> None:
    """
    Refuse to resize a node's pool so that it would not do it, or could run nothing any more.

    Args:
        by: How many processes more; below zero to take away.

    Raises:
        BadParameter: If its pool cannot change its size, or none would be left.
    """
    now = node.concurrency
    if not node.can_resize:
        raise BadParameter(
            f"The pool of {node.name} ({node.pool or 'unknown'}) cannot change its size while it runs.",
            hint="Restart the node with another --concurrency, or start one more.",
        )
    if now + by < 1:
        raise BadParameter(
            f"{node.name} has {now} process{'es' * (now != 1)}, and at least one has to stay.",
            hint="To have it take nothing at all, pause its queues: `ops queue pause QUEUE`.",
        )


def resized(node: NodeInfo, by: int) -> Action:
    """
    Add processes to a node's pool, or take some away.

    Args:
        by: How many; below zero to take away.
    """
    now = node.concurrency
    after = max(0, now + by)
    words = f"{after} task{'s' * (after != 1)}"
    took = "" if by > 0 else " Only idle ones go: a task that runs is not ended."
    return Action(
        kind=Kind.GROW if by > 0 else Kind.SHRINK,
        subject=node.name,
        source=str(now),
        destination=str(abs(by)),
        node=node.name,
        effect=f"{node.name} runs {words} at once instead of {now}, and its prefetch changes with it."
        f"{took} It has its own number again once it is restarted.",
    )


def limited(task: str, rate: str, nodes: Iterable[NodeInfo]) -> list[Action]:
    """
    Have nodes keep to a rate for a task; nothing where no node is named.

    Args:
        rate: "10/m"; "0" or "none" for no limit.

        nodes: Those that can run it, each of which counts for itself.

    Raises:
        ValueError: If the rate is none.
    """
    wanted = durations.rate(rate)
    had = {node.name: each.rate_limit for node in nodes for each in node.tasks if each.name == task}
    if not had:
        return []
    names, count = ", ".join(sorted(had)), len(had)
    each = f" each, {count} nodes together {count} times that" * (count > 1)
    does = (
        f"{names} begin{'s' * (count == 1)} it at most {wanted}{each}." if wanted else f"No limit any more on {names}."
    )
    old = ", ".join(sorted(filter(None, set(had.values()))))
    trap = f" What they have received under {old} goes on at that pace." if old else ""
    effect = f"{does}{trap} A node that is restarted has its own limit again."
    return [
        Action(
            kind=Kind.LIMIT,
            subject=task,
            source=old or "none",
            destination=wanted or "none",
            node=",".join(sorted(had)),
            effect=effect,
        )
    ]


def revoked(ids: Iterable[str]) -> list[Action]:
    """Have every node drop tasks that it has not begun; only those that listen now hear it."""
    effect = (
        "Nodes that listen now drop it when its turn comes; its message stays, and its result may say REVOKED at once. "
        "What runs goes on. Nodes forget it when they are restarted."
    )
    return [
        Action(kind=Kind.REVOKE, subject=task_id, source="nodes", destination="revoked", effect=effect)
        for task_id in dict.fromkeys(ids)
    ]
