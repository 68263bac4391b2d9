"""Where certain tasks are, at one moment, and what could not be looked into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opslib.facts.dead import DeadLetter
from opslib.facts.messages import QuarantinedMessage, UnackedMessage, WaitingMessage
from opslib.facts.rows import TaskRow
from opslib.facts.snapshot import Snapshot
from opslib.selection import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts(Snapshot):
    """
    A snapshot of certain tasks alone: its messages, held tasks and results are theirs.

    Attributes:
        ids: Those that were asked for, or that the selection means.

        selection: What they were chosen by; None where they were named.

        unasked: Whether nobody named or chose them: they have been delivered and unacknowledged the longest.

        more: Tasks that the selection means beyond those, for there is a limit.

        quarantined: Their messages that earlier runs took out of circulation.

        dead: Their dead letters.

        rows: Their rows in the application's own task tables, where somebody asked for those.

        offspring: Messages of other ids that these tasks have sent, or their own offspring has.
    """

    scope: ClassVar[str] = "tasks"

    ids: frozenset[str] = frozenset()
    selection: Selection | None = None
    unasked: bool = False
    more: int = 0
    quarantined: tuple[QuarantinedMessage, ...] = ()
    dead: tuple[DeadLetter, ...] = ()
    rows: tuple[TaskRow, ...] = ()
    offspring: tuple[WaitingMessage | UnackedMessage, ...] = ()

    @property
    def messages(self) -> tuple[WaitingMessage | UnackedMessage, ...]:
        """Every message of these tasks in the broker."""
        return (*self.waiting, *self.unacked)

    @property
    def places(self) -> dict[str, list[str]]:
        """The places of each id, in the order of a task's life; none for one that was found nowhere."""
        found: dict[str, list[str]] = {task_id: [] for task_id in sorted(self.ids)}
        for waiting in self.waiting:
            found[waiting.task_id].append("waiting")
        for message in self.unacked:
            found[message.task_id].append("unacked")
        for task in self.held:
            found[task.task_id].append(task.place)
        for result in self.results:
            found[result.task_id].append("result")
        for letter in self.dead:
            found[letter.task_id].append("dead")
        for kept in self.quarantined:
            found[kept.subject].append("quarantined")
        return found
