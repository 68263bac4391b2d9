"""Rows of the application's own SQL tables → locked, compared and set, in one transaction; and looked at again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from opslib import tables
from opslib.errors import DatabaseLocked, Refused, SettingsError
from opslib.plan import RowChange
from opslib.writer import cells, points
from opslib.writer.moves import MOVED

if TYPE_CHECKING:
    from sqlalchemy import Column, ColumnElement, Connection, Table

    from opslib.database import Database
    from opslib.settings import Target
    from opslib.tables import Mapped

#: What the names begin with by which a plan means a table.
TASKS, STATE = "task_tables.", "state_rows."
#: What became of a row: it was set (MOVED), it was changed before or is gone, it is locked, its key fits several, or
#: nothing was done.
CHANGED, GONE, LOCKED, SEVERAL, UNDONE = "C", "G", "L", "M", "U"
#: How rows are locked.
SKIPPING, WAITING = "skipping", "waiting"
WHY_NOT = {
    CHANGED: "It was changed since it was planned; look at it again.",
    GONE: "The row is gone.",
    LOCKED: "Another transaction holds a lock on it; try again in a moment.",
    SEVERAL: "Its key fits more than one row, so nobody knows which is meant.",
    UNDONE: "The transaction was not committed; nothing of it was changed.",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """
    A table whose rows are set.

    Attributes:
        name: As a plan calls it.

        names: Columns by the names that the settings have for them.

        zone: Of times that have none.
    """

    name: str
    table: Table
    kind: str
    names: Mapping[str, Column[Any]] = field(default_factory=dict)
    zone: str = "UTC"

    def column(self, name: str) -> Column[Any]:
        """
        Return a column by the settings' name for it, or by its own.

        Raises:
            SettingsError: If there is none.
        """
        if name in self.names:
            return self.names[name]
        if name not in self.table.columns:
            raise SettingsError(f"{self.table.name} has no column {name!r}.")
        return self.table.columns[name]

    def owned(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return values by their columns' own names."""
        return {self.column(name).name: value for name, value in said.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """
    One row that is set; values as JSON has them, by column.

    Attributes:
        key: By which it is found.

        held: What it has to hold besides, before and after.

        old: What it holds where it will be set, and new: what it is set to there.
    """

    key: Mapping[str, Any]
    held: Mapping[str, Any]
    old: Mapping[str, Any]
    new: Mapping[str, Any]

    @property
    def back(self) -> Change:
        """What sets it back."""
        return Change(key=self.key, held=self.held, old=self.new, new=self.old)


def place(target: Target, database: Database, name: str) -> Place:
    """
    Return the table that a plan means by a name.

    Raises:
        SettingsError: If the target has none of that name, or it is not as configured.

        OpsError: If the database does not answer, or says no.
    """
    if name.startswith(STATE):
        row = target.state_rows.get(name.removeprefix(STATE))
        if row is None:
            raise SettingsError(f"Target {target.name} has no {name}.")
        table = tables.state_table(database, name.removeprefix(STATE), row)
        return Place(name=name, table=table, kind=database.kind)
    return of_tasks(tables.task_table(target, database, name.removeprefix(TASKS)))


def of_tasks(table: Mapped) -> Place:
    """Return a task table as one whose rows are set."""
    return Place(
        name=f"{TASKS}{table.name}", table=table.table, kind=table.kind, names=table.columns, zone=table.says.zone
    )


def changed(connection: Connection, where: Place, some: Sequence[Change]) -> str:
    """
    Set rows in a transaction that is open, and tell by a letter what became of each.

    They are locked first, without waiting for a lock where the database can do that, then compared, then set.

    Raises:
        Refused: If fewer rows were set than were locked; the transaction has to be undone then.

        Unkeepable: If a value is none that its column takes.
    """
    from sqlalchemy import update as set_rows

    found = find(connection, where, some, lock=SKIPPING)
    letters = [letter(where, each, rows) for each, rows in zip(some, found, strict=True)]
    if GONE in letters:
        there = find(connection, where, [c for c, x in zip(some, letters, strict=True) if x == GONE])
        rest = iter(there)
        letters = [LOCKED if what == GONE and next(rest) else what for what in letters]
    alike: defaultdict[str, list[Change]] = defaultdict(list)
    for each, what in zip(some, letters, strict=True):
        if what == MOVED:
            alike[json.dumps(each.new)].append(each)
    for group in alike.values():
        values = {
            where.table.c[n]: cells.bound(where.table.c[n], v, where.kind, where.zone) for n, v in group[0].new.items()
        }
        done = connection.execute(set_rows(where.table).where(_is_any(where, group)).values(values))
        if done.rowcount != len(group):
            raise Refused(f"{where.name}: {done.rowcount:,} rows were set where {len(group):,} were meant; all stay.")
    return "".join(letters)


def written(database: Database, where: Place, some: Sequence[Change]) -> str:
    """Set rows in a transaction of their own; return a letter for each."""
    with database.changing() as connection:
        letters = changed(connection, where, some)
        points.passed("in-rows")
    return letters


def returned(database: Database, where: Place, some: Sequence[Change]) -> str:
    """Set rows back; those that are so already, by an undo that was cut off, are back as well."""
    if not some:
        return ""
    try:
        with database.changing() as connection:
            letters = changed(connection, where, some)
            rest = [each for each, what in zip(some, letters, strict=True) if what == CHANGED]
            now = iter(find(connection, where, [each.back for each in rest]))
            points.passed("in-rows")
    except DatabaseLocked:
        return LOCKED * len(some)
    again = {
        n: MOVED if letter(where, each.back, next(now)) == MOVED else CHANGED
        for n, (each, what) in enumerate(zip(some, letters, strict=True))
        if what == CHANGED
    }
    return "".join(again.get(n, what) for n, what in enumerate(letters))


def as_planned(database: Database, where: Place, row: RowChange, *, of: str = "") -> str:
    """
    Return why a row is not as it was planned; empty if it is.

    Args:
        of: Task that it has to be about.
    """
    if of and "task_id" in where.names:
        row = replace(row, was=json.dumps({**said(row.was), "task_id": of}))
    found = seen(database, where, row)
    return "" if isinstance(found, Change) else found


def seen(database: Database, where: Place, row: RowChange) -> Change | str:
    """Return a row as a change, with its old values; or why it cannot be set as planned."""
    key, was, new = (where.owned(said(text)) for text in (row.key, row.was, row.becomes))
    wanted = Change(key=key, held={n: v for n, v in was.items() if n not in new}, old={}, new=new)
    try:
        with database.reading() as connection:
            (found,) = find(connection, where, [wanted], more=new)
    except cells.Unkeepable as error:
        return f"{error}. It was left as it is."
    if len(found) != 1:
        return WHY_NOT[SEVERAL if found else GONE]
    differ = sorted(n for n, value in was.items() if not cells.same(found[0][n], value, where.zone))
    if differ:
        return f"{', '.join(differ)}: no longer as planned. Look at it again."
    old = {name: found[0][name] for name in new}
    return Change(key=key, held={name: found[0][name] for name in wanted.held}, old=old, new=new)


def may(database: Database, where: Place, becomes: Mapping[str, Any]) -> None:
    """
    Make sure that these columns may be set, before anything is written down; nothing is.

    Raises:
        DatabaseRefused: If they may not.
    """
    from sqlalchemy import false
    from sqlalchemy import update as set_rows

    columns = [where.column(name) for name in becomes]
    with database.changing() as connection:
        connection.execute(set_rows(where.table).where(false()).values({column: column for column in columns}))
        connection.get_transaction().rollback()  # type: ignore[union-attr]  # it is open


def find(
    connection: Connection,
    where: Place,
    some: Sequence[Change],
    *,
    lock: str = "",
    more: Mapping[str, Any] | None = None,
) -> list[list[dict[str, Any]]]:
    """
    Return of each change the rows that its key fits, as JSON has them; one at most where many are looked for.

    Args:
        lock: SKIPPING those that somebody else has locked, where the database can do that; or WAITING for them.

        more: Columns that are read besides.
    """
    from sqlalchemy import select

    if not some:
        return []
    names = list(dict.fromkeys([*some[0].key, *some[0].held, *some[0].old, *(more or ())]))
    columns = [tables.as_read(where.table.c[name], where.kind).label(name) for name in names]
    asked = select(*columns).where(_is_any(where, some)).limit(len(some) + 1)
    if lock:
        asked = asked.with_for_update(skip_locked=lock == SKIPPING and _can_skip(connection), key_share=True)
    rows = [{name: cells.kept(row[name]) for name in names} for row in connection.execute(asked).mappings()]
    if len(some) == 1:
        return [rows]
    (key,) = some[0].key
    by_key: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_key[str(row[key])].append(row)
    return [by_key[str(each.key[key])] for each in some]


def looked_at(database: Database, where: Place, some: Sequence[Change]) -> str:
    """
    Tell by a letter which rows were set by a transaction of which nobody knows how it ended.

    What it locked is waited for: as long as it has not ended, nobody can say.

    Raises:
        DatabaseLocked: If it does not end.
    """
    with database.changing() as connection:
        found = find(connection, where, [each.back for each in some], lock=WAITING)
    return "".join(
        MOVED if letter(where, each.back, rows) == MOVED else UNDONE for each, rows in zip(some, found, strict=True)
    )


def letter(where: Place, wanted: Change, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return MOVED if of the rows that its key fits there is one, as it has to be; otherwise what is the case."""
    if len(rows) != 1:
        return SEVERAL if rows else GONE
    expected = {**wanted.held, **wanted.old}
    alike = all(cells.same(rows[0][name], value, where.zone) for name, value in expected.items())
    return MOVED if alike else CHANGED


def said(text: str) -> dict[str, Any]:
    """Return the values of a plan's JSON object."""
    return cast("dict[str, Any]", json.loads(text or "{}"))


def _is_any(where: Place, some: Sequence[Change]) -> ColumnElement[bool]:
    """Return the condition that a row is one of these; many of them have one column as their key."""
    from sqlalchemy import Integer, String, and_

    def value(each: Change, name: str) -> Any:  # noqa: ANN401 - an expression
        return cells.bound(where.table.c[name], each.key[name], where.kind, where.zone)

    if len(some) == 1:
        return and_(*(where.table.c[name] == value(some[0], name) for name in some[0].key))
    (key,) = some[0].key
    column = where.table.c[key]
    if isinstance(column.type, Integer | String):  # as almost every key is
        return column.in_([cells.plain(column, each.key[key], where.zone) for each in some])
    return column.in_([value(each, key) for each in some])


def _can_skip(connection: Connection) -> bool:
    """Whether a database can leave out rows that somebody has locked; otherwise it waits for them, a little."""
    dialect = connection.dialect
    if dialect.name != "mysql":
        return dialect.name == "postgresql"
    version = dialect.server_version_info or ()
    return version >= ((10, 6) if getattr(dialect, "is_mariadb", False) else (8, 0))
