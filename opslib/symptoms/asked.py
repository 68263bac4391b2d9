"""What a person asks for by name, and the facts about it → the actions that would do so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opslib.facts import Quarantined
from opslib.plan import Action, Copy, Kind


def purge(queue: str, lengths: Mapping[str, int]) -> list[Action]:
    """
    Take all that waits in a queue out of circulation; nothing where nothing waits.

    What nodes hold already, unacked, active or reserved, is none of the queue's any more and stays.

    Args:
        lengths: Messages by key, for each of the queue's lists.
    """
    copies = tuple(Copy(place="list", key=key, queue=queue, count=count) for key, count in lengths.items() if count)
    count = sum(copy.count for copy in copies)
    if not count:
        return []
    return [
        Action(
            kind=Kind.PURGE,
            subject=queue,
            source=queue,
            destination="quarantine",
            copies=copies,
            effect=f"{count:,} messages leave circulation at once and are kept; what nodes hold already stays there.",
        )
    ]


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
