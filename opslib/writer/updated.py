"""Changes of rows that a plan has, one by one or by a filter → set, and what became of each; and set back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from opslib import database as databases
from opslib import tables
from opslib.collectors import circulation, task_rows
from opslib.collectors.results import States
from opslib.errors import OpsError
from opslib.plan import Action, Outcome, RowChange, Status
from opslib.writer import cells, lists, points, row_batches, rows, vault
from opslib.writer.moves import MOVED
from opslib.writer.row_batches import Transaction
from opslib.writer.rows import CHANGED, GONE, LOCKED, SEVERAL, Change, Place
from opslib.writer.vault import Kept

if TYPE_CHECKING:
    from opslib.database import Database
    from opslib.selection import RowSelection
    from opslib.tables import Mapped
    from opslib.writer.primitive import Primitive

#: Rows of one transaction.
_PAGE = 1_000
#: Nodes that answer are not waited for.
_ANSWER_S = 5.0


def update(primitive: Primitive, actions: Sequence[Action], free: Callable[[], Path]) -> list[Outcome]:
    """
    Set rows as planned: the single ones, then those that filters mean.

    Args:
        free: Gives the path of a vault that is not there yet.
    """
    database = databases.connect(primitive.broker.target)
    single = [action for action in actions if action.row is not None]
    outcomes = change(primitive, single, free(), database=database) if single else []
    for action in actions:
        if action.rows is not None:
            outcomes.append(_Many(primitive, database, action, action.rows).carried_out(free()))
    return outcomes


def change(
    primitive: Primitive, actions: Sequence[Action], path: Path, *, database: Database | None = None
) -> list[Outcome]:
    """Set single rows, each in a transaction of its own, after all that undoes it is in a vault."""
    database = database or databases.connect(primitive.broker.target)
    before = row_batches.before(primitive, database)
    earlier = "It had been set before the run was interrupted."
    outcomes = {a.id: row_batches.taken(primitive, a, earlier) for a in actions if before[a.id]}
    asked: list[tuple[Action, Place, Change]] = []
    places: dict[str, Place] = {}
    for action in actions:
        if action.id in outcomes:
            continue
        row = cast("RowChange", action.row)
        if row.table not in places:
            places[row.table] = rows.place(primitive.broker.target, database, row.table)
            rows.may(database, places[row.table], rows.said(row.becomes))
        found = rows.seen(database, places[row.table], row)
        if isinstance(found, Change):
            asked.append((action, places[row.table], found))
        else:
            outcomes[action.id] = Outcome(action=action, status=Status.SKIPPED, reason=found)
    if asked:
        kept = (row_batches.kept(action, where.name, found) for action, where, found in asked)
        vault.write(path, row_batches.header(primitive), kept)
        points.passed("after-vault")
    for at, (action, where, found) in enumerate(asked):
        batch = Transaction(place=where, changes=[found], vault=path, at=at, of={action.id: 1}, role=row_batches.ONE)
        letter, why = row_batches.carried_out(primitive, database, batch, action.subject)
        if letter == MOVED:
            outcomes[action.id] = row_batches.taken(primitive, action, f"Set: {', '.join(found.new)}.")
        elif why and letter != LOCKED:
            outcomes[action.id] = Outcome(action=action, status=Status.FAILED, reason=why)
        else:
            outcomes[action.id] = Outcome(action=action, status=Status.SKIPPED, reason=rows.WHY_NOT[letter])
    return [outcomes[action.id] for action in actions]


def put_back(primitive: Primitive, actions: Sequence[Action]) -> list[Outcome]:
    """Set rows back, batch by batch, each only if it holds what the run has written; what is new stays."""
    database = databases.connect(primitive.broker.target)
    journal = row_batches.settled(primitive, database)
    by_number = {batch.number: batch for batch in journal.batches}
    single = {c.key: by_number[c.key] for a in actions for c in a.copies if c.place != row_batches.OP}
    few = {batch.number: (batch, some) for batch, some in row_batches.of_vaults([*single.values()])}
    outcomes = []
    for action in actions:
        copy = action.copies[0]
        if copy.place == row_batches.OP:
            found = row_batches.of_vaults(row_batches.standing(journal, copy.key))
        else:
            found = iter([few[each.key] for each in action.copies if journal.standing(by_number[each.key])])
        outcomes.append(_back_outcome(action, row_batches.put_back(primitive, database, journal, found)))
    return outcomes


class Results:
    """
    Where results are stored → the states of many tasks; the result backend in Redis, or tables of results.

    Attributes:
        unread: Why they are not known; empty as long as they are.
    """

    def __init__(self, primitive: Primitive, database: Database) -> None:
        broker = primitive.broker.home or primitive.broker
        self._redis = States(broker) if broker.results is not None else None
        self._database = database
        self._tables = [t for t in tables.task_tables(broker.target, database) if t.says.results]
        none = self._redis is None and not self._tables
        self.unread = "the result backend is neither Redis nor a task table" if none else ""

    def of(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the state of each task that has a result."""
        if self.unread or not ids:
            return {}
        found: dict[str, str] = {}
        for table in self._tables:
            found |= task_rows.states(self._database, table, ids)
        if self._redis is not None:
            found |= self._redis.of(ids)
            self.unread = self._redis.unread
        return found


@dataclass
class _Many:
    """The rows of one action that a filter means."""

    primitive: Primitive
    database: Database
    action: Action
    only: RowSelection
    kept: int = 0
    beyond: int = 0
    busy: int = 0
    letters: Counter[str] = field(default_factory=Counter)
    halted: str = ""

    def carried_out(self, path: Path) -> Outcome:
        """Write down what is meant, then set it batch by batch."""
        primitive, database = self.primitive, self.database
        before = row_batches.before(primitive, database)[self.action.id]
        table = tables.task_table(primitive.broker.target, database, self.only.table)
        where, sources = rows.of_tasks(table), Results(primitive, database)
        if table.says.results:
            return self._skipped(f"{table.name} holds the results themselves.")
        rows.may(database, where, {"status": self.only.becomes})
        room = max(0, lists.most(self.action.count) - before)
        vault.write(path, row_batches.header(primitive), self._meant(table, sources, room))
        points.passed("after-vault")
        if sources.unread:
            return self._skipped(f"Which tasks have ended was not wholly seen: {sources.unread}. Nothing was changed.")
        self._set(where, path)
        outcome = self._outcome(before)
        if outcome.status is Status.APPLIED:
            return row_batches.taken(primitive, self.action, outcome.reason)
        return outcome

    def _set(self, where: Place, path: Path) -> None:
        """Go through the vault, and set what it keeps, until that is all or something stands in the way."""
        _, entries = vault.read(path)
        at = 0
        while not self.halted and (some := list(islice(entries, _PAGE))):
            changes = [row_batches.change_of(kept) for kept in some]
            batch = Transaction(
                place=where, changes=changes, vault=path, at=at, of={self.action.id: len(some)}, role=row_batches.MANY
            )
            try:
                letters, self.halted = row_batches.carried_out(
                    self.primitive, self.database, batch, self.action.subject
                )
            except OpsError as error:
                if not self.letters[MOVED]:
                    raise
                letters, self.halted = "", error.message
            self.letters.update(letters)
            at += len(some)

    def _meant(self, table: Mapped, sources: Results, room: int) -> Iterator[Kept]:
        """Yield the rows that fit and whose tasks have ended, as they are at this moment."""
        id_, status, last_run, task_id = (table.columns[name].name for name in ("id", "status", "last_run", "task_id"))
        held = circulation.read(self.primitive.broker.home or self.primitive.broker, timeout_s=_ANSWER_S)
        for page in task_rows.pages(self.database, table, size=_PAGE):
            fitting = [row for row in page if row.task_id and self.only.fits(row.task, row.status, row.at)]
            states = sources.of([row.task_id for row in fitting])
            if sources.unread:
                return
            for row in fitting:
                if states.get(row.task_id) != self.only.state:
                    continue
                if row.task_id in held:  # it was sent again, and its result is of before
                    self.busy += 1
                    continue
                if self.kept >= room:
                    self.beyond += 1
                    continue
                self.kept += 1
                meant = Change(
                    key={id_: cells.kept(row.key)},
                    held={last_run: cells.kept(row.last_run), task_id: cells.kept(row.stored_id)},
                    old={status: row.status},
                    new={status: self.only.becomes},
                )
                yield row_batches.kept(self.action, f"{rows.TASKS}{self.only.table}", meant)

    def _skipped(self, reason: str) -> Outcome:
        return Outcome(action=self.action, status=Status.SKIPPED, reason=reason)

    def _outcome(self, before: int) -> Outcome:
        done, letters = self.letters[MOVED], self.letters
        said = [f"{done:,} row{'s were' if done != 1 else ' was'} set to {self.only.becomes}."] if done else []
        said += [f"{before:,} had been set before the run was interrupted."] if before else []
        said += [f"{n:,} were changed meanwhile, and stay." for n in (letters[CHANGED],) if n]
        said += [f"{n:,} are gone." for n in (letters[GONE],) if n]
        said += [f"{n:,} are locked by another transaction, and stay: run it again." for n in (letters[LOCKED],) if n]
        said += [f"{n:,} can still be run, and stay." for n in (self.busy,) if n]
        said += [f"{self.beyond:,} more fit than were planned, and stay: run it again."] if self.beyond else []
        if self.halted:
            return Outcome(action=self.action, status=Status.FAILED, reason=" ".join([*said, self.halted]))
        status = Status.APPLIED if done or before else Status.SKIPPED
        return Outcome(action=self.action, status=status, reason=" ".join(said) or "None is left.")


def _back_outcome(action: Action, count: Counter[str]) -> Outcome:
    back, left = count[MOVED], count[CHANGED] + count[GONE] + count[SEVERAL]
    said = [f"{back:,} {'are' if back != 1 else 'is'} as {'they were' if back != 1 else 'it was'}."] if back else []
    said += [f"{left:,} were changed since, or are gone, and were left as they are."] if left else []
    said += [f"{n:,} are locked by another transaction: undo it again." for n in (count[LOCKED],) if n]
    if count[LOCKED]:
        return Outcome(action=action, status=Status.FAILED, reason=" ".join(said))
    status = Status.APPLIED if back or not left else Status.SKIPPED
    return Outcome(action=action, status=status, reason=" ".join(said) or "Nothing was left to set back.")
