"""Tasks of rows that are to be sent again → those that are still lost, right before that; the others, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from opslib import database as databases
from opslib.collectors import circulation, mentions
from opslib.collectors.marks import Marks
from opslib.collectors.results import UNREADABLE
from opslib.errors import OpsError
from opslib.facts.system import FINAL_STATES
from opslib.plan import Action, Outcome, RowChange, Status
from opslib.writer import rows, updated

if TYPE_CHECKING:
    from opslib.collectors.circulation import Circulation
    from opslib.database import Database
    from opslib.writer.primitive import Primitive
    from opslib.writer.rows import Place

#: Nodes that answer are not waited for.
_ANSWER_S = 5.0


class Lost:
    """What tells of some tasks that they are lost: it is looked at once that any is about to be sent."""

    def __init__(self, primitive: Primitive) -> None:
        self._primitive = primitive
        self._places: dict[str, Place] = {}
        self._sent: set[str] = set()

    def ready(self, actions: Sequence[Action]) -> tuple[list[Action], list[Outcome]]:
        """Split what is to be sent by whether it still may be; what is about no row always may."""
        asked = [action for action in actions if action.row is not None]
        if not asked:
            return list(actions), []
        try:
            held = self._held_back(asked)
        except OpsError as error:
            held = dict.fromkeys((action.id for action in asked), f"{error.message} It was not sent.")
        skipped = [
            Outcome(action=action, status=Status.SKIPPED, reason=held[action.id])
            for action in asked
            if action.id in held
        ]
        return [action for action in actions if action.id not in held], skipped

    def _held_back(self, actions: Sequence[Action]) -> dict[int, str]:
        """Return why tasks are not sent; in the order in which one moves on: circulation, result, row."""
        _ = self._carried  # read first: what it names is sent later, and then in circulation
        if unseen := self._circulation.unseen:
            why = f"Whether it is still on its way was not wholly seen: {' '.join(unseen)} It was not sent."
            return dict.fromkeys((action.id for action in actions), why)
        if opaque := self._opaque:
            why = f"It may be among the messages that cannot be decoded ({opaque:,}). It was not sent."
            return dict.fromkeys((action.id for action in actions), why)
        states = self._results.of([action.subject for action in actions])
        if self._results.unread:
            why = f"Whether it has ended was not seen: {self._results.unread}. It was not sent."
            return dict.fromkeys((action.id for action in actions), why)
        held: dict[int, str] = {}
        for action in actions:
            if why := self._why_not(action, states.get(action.subject, "")):
                held[action.id] = why
            else:
                self._sent.add(action.subject)
        return held

    def _why_not(self, action: Action, state: str) -> str:
        if action.subject in self._sent:
            return "It was sent by an action before this one."
        if action.subject in self._circulation:
            return "It is on its way or runs by now; it was not sent again."
        spelled = action.subject.encode("utf-8", "surrogateescape")
        if any(spelled in raw for raw in self._circulation.damaged):
            return "A message that cannot be decoded names it. It was not sent."
        if action.subject in self._carried:
            return "Another task's message names it: it may be sent once that has run. It was not sent."
        if state in FINAL_STATES or state == UNREADABLE:
            return f"It has a result by now: {state}. It was not sent again."
        row = cast("RowChange", action.row)
        if row.table not in self._places:
            self._places[row.table] = rows.place(self._primitive.broker.target, self._database, row.table)
        return rows.as_planned(self._database, self._places[row.table], row, of=action.subject)

    @property
    def _opaque(self) -> int:
        """How many messages might be those of any task: all that cannot be decoded, where most cannot."""
        look = self._circulation
        return look.unreadable - (len(look.damaged) if len(look) > look.unreadable else 0)

    @cached_property
    def _database(self) -> Database:
        return databases.connect(self._primitive.broker.target)

    @cached_property
    def _carried(self) -> Marks:
        carried = Marks()
        home = self._primitive.broker.home or self._primitive.broker
        mentions.carried(home, carried.note, timeout_s=_ANSWER_S)
        return carried.sealed()

    @cached_property
    def _circulation(self) -> Circulation:
        return circulation.read(self._primitive.broker.home or self._primitive.broker, timeout_s=_ANSWER_S)

    @cached_property
    def _results(self) -> updated.Results:
        return updated.Results(self._primitive, self._database)
