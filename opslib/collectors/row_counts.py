"""Open rows, a page at a time, and what is known of every task → where each was met, counted, and some kept whole."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib.collectors import results, task_rows
from opslib.collectors.mentions import UUID
from opslib.facts.rows import (
    BEGUN,
    BEYOND,
    CLASSES,
    DEAD,
    ENDED,
    HELD,
    NAMELESS,
    NOWHERE,
    ORDER,
    OTHERS,
    QUARANTINED,
    UNACKED,
    UNSEEN,
    WAITING,
    RowCount,
    TaskRow,
    age_of,
)
from opslib.facts.system import FINAL_STATES

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.collectors.circulation import Circulation
    from opslib.collectors.horizon import Horizon
    from opslib.collectors.marks import Marks
    from opslib.collectors.task_rows import Row
    from opslib.database import Database
    from opslib.tables import Mapped

#: Names of tasks that are told apart; whoever names each task anew must not fill this machine's memory.
_MOST_TASKS = 1_000
#: States of a result that only a task has which was begun.
_BEGUN = frozenset({"STARTED", "RETRY", "RECEIVED"})
#: Rows that are kept as such: those with a node, and those that are nowhere.
MOST_KEPT, MOST_GONE = 10_000, 2_000


@dataclass(frozen=True, kw_only=True)
class Places:
    """
    What is known of every task that is somewhere, besides its result.

    Attributes:
        unseen: Why nobody can say of a task that is not among them that it is nowhere; empty if that was seen.

        running: Why nobody can call a task lost that may come after another one; empty where none runs whose message is
            gone.

        carried: Every id that a message names, its own among them.

        damaged: Messages that no node could run, one after the other; what they say besides is all there is to know.
    """

    circulating: Sequence[Circulation]
    nodes: Mapping[str, str]
    unacked: frozenset[str]
    dead: Marks
    aside: Marks
    carried: Marks
    running: str
    unseen: str
    horizon: Horizon
    damaged: bytes = b""
    damaged_ids: frozenset[bytes] = frozenset()

    def of(self, task_id: str) -> str:
        """Return where a task is that can still be run; empty for nowhere."""
        if task_id in self.nodes:
            return HELD
        if task_id in self.unacked:
            return UNACKED
        return WAITING if any(task_id in each for each in self.circulating) else ""

    def why_unseen(self, task_id: str) -> str:
        """Return why nobody can say of a task that is not among them that it is nowhere; empty if that was seen."""
        spelled = task_id.encode("utf-8", "surrogateescape")
        if spelled in (self.damaged_ids if UUID.fullmatch(spelled) else self.damaged):
            return "A message that cannot be decoded names it."
        if task_id in self.carried:
            return "Another task's message names it: it may be sent once that has run."
        return self.unseen


class Stored:
    """
    The states of tasks' results, wherever results are kept.

    Attributes:
        unread: Why they are not all known; empty as long as they are.
    """

    def __init__(self, broker: Broker, base: Database, backends: Sequence[Mapped]) -> None:
        self._redis = results.States(broker)
        self._base, self._backends = base, backends
        self._in_tables, self._no_redis = bool(backends), broker.results is None
        self.unread = ""

    def of(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the state of each task that has a result."""
        found: dict[str, str] = {}
        for each in self._backends:
            found |= task_rows.states(self._base, each, ids)
        found |= self._redis.of(ids)
        if self._redis.unread and not (self._in_tables and self._no_redis):
            self.unread = f"{self._redis.unread}."
        return found


@dataclass(kw_only=True)
class Count:
    """What was met so far, in memory that does not grow with the number of rows."""

    now: float
    open_for_s: float
    limit: int
    most_gone: int
    places: Places
    met: list[TaskRow] = field(default_factory=list)
    _cells: dict[tuple[str, str, str, str, str, str, str], list[float]] = field(default_factory=dict)
    _tasks: set[str] = field(default_factory=set)
    _oldest: defaultdict[tuple[str, str, str], list[tuple[float, int, TaskRow]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _gone: list[tuple[float, int, TaskRow]] = field(default_factory=list)
    _by_class: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    _number: int = 0

    def note(self, table: Mapped, page: Sequence[Row], stored: Stored) -> None:
        """Count those rows of a page that have been open for long enough."""
        old = [row for row in page if row.at is None or self.now - row.at >= self.open_for_s]
        in_table = table.says.results
        if in_table:  # its status says what a result would
            states = {row.task_id: row.status for row in old if row.status in _BEGUN}
        else:
            states = stored.of([row.task_id for row in old if row.task_id])
        for row in old:
            where, state, why = self._sighted(row, states, in_table=in_table, unread=stored.unread)
            if where == NOWHERE and table.says.chains and self.places.running:
                where, why = UNSEEN, self.places.running
            self._add(table, row, where, state, why)

    def _sighted(self, row: Row, states: Mapping[str, str], *, in_table: bool, unread: str) -> tuple[str, str, str]:
        """Return where the task of a row was met, the state of its result, and what stands against a verdict."""
        task_id, places = row.task_id, self.places
        if not task_id:
            return NAMELESS, "", "It has no task id to look for."
        state = states.get(task_id, "")
        if place := places.of(task_id):
            return place, state, ""
        if state in FINAL_STATES:
            return ENDED, state, ""
        if task_id in places.dead:
            return DEAD, state, ""
        if task_id in places.aside:
            return QUARANTINED, state, ""
        if why := places.why_unseen(task_id) or unread:
            return UNSEEN, state, why
        if in_table and (why := places.horizon.why_not(row.task, row.at, in_table=True)):
            return BEYOND, state, why
        if state and state != results.UNREADABLE:
            return BEGUN, state, ""
        if state:
            return BEYOND, state, "Its result cannot be read."
        why = places.horizon.why_not(row.task, row.at, in_table=in_table)
        return (BEYOND if why else NOWHERE), "", why

    def _add(self, table: Mapped, row: Row, sighting: str, state: str, why: str) -> None:
        age_s = None if row.at is None else max(0.0, self.now - row.at)
        age = age_of(age_s)
        task = row.task
        if task not in self._tasks:
            if len(self._tasks) >= _MOST_TASKS:
                task = OTHERS
            self._tasks.add(task)
        cell = self._cells.setdefault((table.name, task, row.status, sighting, state, why, age), [0, -1.0])
        cell[0] += 1
        cell[1] = max(cell[1], -1.0 if age_s is None else age_s)
        self._by_class[table.name, CLASSES[sighting]] += 1
        self._keep(table, row, task, sighting, state, why)

    def _keep(self, table: Mapped, row: Row, task: str, sighting: str, state: str, why: str) -> None:
        """Keep a row as such where it is among the oldest of its kind, or with a node, or gone."""
        self._number += 1
        order = (-(row.at or 0.0), -self._number)
        heap = self._oldest[table.name, task, sighting]
        is_sample = len(heap) < self.limit or order > heap[0][:2]
        is_met = sighting in {HELD, UNACKED} and len(self.met) < MOST_KEPT
        is_gone = sighting in {NOWHERE, BEGUN} and (
            len(self._gone) < self.most_gone or bool(self._gone and order > self._gone[0][:2])
        )
        if not (is_sample or is_met or is_gone):
            return
        kept = TaskRow(
            table=table.name,
            row_id=str(row.key),
            task_id=row.task_id,
            task=row.task,
            status=row.status,
            last_run_at=row.at,
            sighting=sighting,
            state=state,
            node=self.places.nodes.get(row.task_id, ""),
            why=why,
            last_run=task_rows.as_text(row.last_run),
        )
        if is_sample:
            _push(heap, (*order, kept), self.limit)
        if is_met:
            self.met.append(kept)
        if is_gone:
            _push(self._gone, (*order, kept), self.most_gone)

    def rows(self) -> Iterator[RowCount]:
        """Yield what was counted, the most first."""
        for of, (count, longest_s) in sorted(self._cells.items(), key=lambda each: (-each[1][0], each[0])):
            table, task, status, sighting, state, why, age = of
            yield RowCount(
                table=table,
                task=task,
                status=status,
                sighting=sighting,
                state=state,
                why=why,
                age=age,
                count=int(count),
                longest_s=longest_s if longest_s >= 0 else None,
            )

    def samples(self) -> list[TaskRow]:
        """Return of each task and sighting those that have waited the longest."""
        return [row for heap in self._oldest.values() for *_, row in sorted(heap, reverse=True)]

    def gone(self) -> list[TaskRow]:
        """Return the lost ones that are kept, the oldest first."""
        return [row for *_, row in sorted(self._gone, reverse=True)]

    def words(self, table: str) -> str:
        """Return what was found so far, class by class."""
        return ", ".join(f"{n:,} {kind}" for kind in ORDER if (n := self._by_class.get((table, kind), 0)))


def _push(heap: list[tuple[float, int, TaskRow]], entry: tuple[float, int, TaskRow], most: int) -> None:
    """Keep the largest; no two numbers are the same, so rows are never compared."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)
