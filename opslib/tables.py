"""A configured table and the database it is in → its columns by our names, proven to be there and of a usable kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from opslib.errors import SettingsError, near
from opslib.task_tables import PRESETS, StateRow, TaskTable, resolved

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection, Table
    from sqlalchemy.engine import Inspector

    from opslib.database import Database
    from opslib.settings import Target

#: So many names of tables are compared with one that is not there.
_MOST_NAMES = 2_000


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """
    A table with a row for each task.

    Attributes:
        name: As people call it in the settings, or the preset by which it was known.

        says: What is configured of it.

        table: As it was found.

        columns: Its columns by our names.

        kind: Of its database: postgresql, mysql or sqlite.
    """

    name: str
    says: TaskTable
    table: Table
    columns: Mapping[str, Column[Any]]
    kind: str

    def selected(self, *fields: str) -> list[Any]:
        """Return those of these columns that there are, labelled by our names."""
        return [as_read(self.columns[field], self.kind).label(field) for field in fields if field in self.columns]

    def instant(self, value: object) -> datetime | None:
        """Return what a column says of when, aware; None if that is no instant. A naive one is in the table's zone."""
        return instant(value, self.says.zone)


def instant(value: object, zone: str) -> datetime | None:
    """
    Return what a database says of when, aware; None if that is no instant.

    Args:
        zone: Of one that has none.
    """
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            moment = datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError):
            return None
    if not isinstance(moment, datetime):
        return None
    try:
        aware = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
        return aware.astimezone(UTC)
    except OverflowError:
        return None


def task_tables(target: Target, database: Database) -> list[Mapped]:
    """
    Find the tables that a target is configured with, or, without any, those that are known by their names.

    Raises:
        SettingsError: If a configured one is not there, or not as configured.

        OpsError: If the database does not answer, or says no.
    """
    from sqlalchemy import inspect

    with database.reading() as connection:
        inspector = inspect(connection)
        if target.task_tables:
            return [_mapped(connection, inspector, name, says) for name, says in target.task_tables.items()]
        found = set(inspector.get_table_names())
        known = {name: resolved(name, TaskTable(preset=name), name) for name in PRESETS}
        return [_mapped(connection, inspector, name, says) for name, says in known.items() if says.table in found]


def task_table(target: Target, database: Database, name: str) -> Mapped:
    """
    Find one of those tables by its name.

    Raises:
        SettingsError: If there is none of that name, or it is not as configured.

        OpsError: If the database does not answer, or says no.
    """
    found = {each.name: each for each in task_tables(target, database)}
    if name not in found:
        raise SettingsError(f"There is no task table {name!r} in {database.shown}.", hint=near(name, found))
    return found[name]


def state_table(database: Database, name: str, row: StateRow) -> Table:
    """
    Return the table of a state row, if it has the columns that its settings name.

    Raises:
        SettingsError: If it is not there, or not as configured.
    """
    return table_of(database, row.table, f"state_rows.{name}", (*row.key, *row.idle))


def table_of(database: Database, name: str, where: str, columns: Iterable[str] = ()) -> Table:
    """
    Return a table, if it has these columns.

    Args:
        where: Who asks for it, for the error.

    Raises:
        SettingsError: If it is not there, or has not all of them.
    """
    from sqlalchemy import inspect

    with database.reading() as connection:
        table = _reflected(connection, inspect(connection), name, where)
    for column in columns:
        _column(table, column, where)
    return table


def _mapped(connection: Connection, inspector: Inspector, name: str, says: TaskTable) -> Mapped:
    from sqlalchemy import TIMESTAMP, String, Uuid

    where = f"task_tables.{name}"
    table = _reflected(connection, inspector, says.table, where)
    columns = {field: _column(table, column, f"{where}.columns.{field}") for field, column in says.columns.items()}
    if not _is_unique(inspector, table, columns["id"].name):
        raise SettingsError(
            f"{where}.columns.id: {columns['id'].name} of {says.table} is not unique, so rows cannot be told apart.",
            hint="Name the primary key.",
        )
    is_text = isinstance(columns["task_id"].type, String | Uuid) or connection.dialect.name == "sqlite"
    if not is_text:
        raise SettingsError(
            f"{where}.columns.task_id: {columns['task_id'].name} of {says.table} is {columns['task_id'].type}; "
            "a task's id is a text or a UUID.",
            hint="Name the column that holds what Celery calls the task's id.",
        )
    if not _tells_when(columns["last_run"]):
        raise SettingsError(
            f"{where}.columns.last_run: {columns['last_run'].name} of {says.table} is {columns['last_run'].type}, "
            "which is no instant.",
            hint="A column of dates with times is wanted.",
        )
    is_instant = connection.dialect.name == "mysql" and isinstance(columns["last_run"].type, TIMESTAMP)
    if is_instant and says.zone not in {"", "UTC"}:
        raise SettingsError(
            f"{where}.zone: {columns['last_run'].name} of {says.table} is a TIMESTAMP, which the server tells in UTC.",
            hint="Leave the zone away; it is for a DATETIME.",
        )
    if not isinstance(columns["status"].type, String):
        raise SettingsError(
            f"{where}.columns.status: {columns['status'].name} of {says.table} is {columns['status'].type}, "
            "which is no text.",
            hint="A column of words such as SCHEDULED is wanted.",
        )
    return Mapped(name=name, says=says, table=table, columns=columns, kind=connection.dialect.name)


def _reflected(connection: Connection, inspector: Inspector, name: str, where: str) -> Table:
    from sqlalchemy import MetaData, Table
    from sqlalchemy.exc import NoSuchTableError

    schema, _, bare = name.rpartition(".")
    if schema and schema not in (schemas := inspector.get_schema_names()):
        raise SettingsError(f"{where}: there is no schema {schema!r} for {name!r}.", hint=near(schema, schemas))
    if not inspector.has_table(bare, schema=schema or None):
        there = [*inspector.get_table_names(schema=schema or None), *inspector.get_view_names(schema=schema or None)]
        raise SettingsError(
            f"{where}: there is no table {name!r} in {connection.engine.url.database or 'the database'}.",
            hint=near(bare, there[:_MOST_NAMES]),
        )
    try:
        return Table(bare, MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)
    except NoSuchTableError:
        raise SettingsError(f"{where}: the table {name!r} cannot be read.") from None


def _column(table: Table, name: str, where: str) -> Column[Any]:
    if name not in table.columns:
        raise SettingsError(f"{where}: {table.name} has no column {name!r}.", hint=near(name, table.columns.keys()))
    return table.columns[name]


def _is_unique(inspector: Inspector, table: Table, column: str) -> bool:
    is_key = [column] == inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
    return is_key or (not table.columns[column].nullable and [column] in list(_keys(inspector, table)))


def _keys(inspector: Inspector, table: Table) -> Iterator[Sequence[str | None]]:
    yield inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
    for constraint in inspector.get_unique_constraints(table.name, schema=table.schema):
        yield constraint["column_names"]
    for index in inspector.get_indexes(table.name, schema=table.schema):
        if index["unique"] and not any("where" in option for option in index.get("dialect_options", {})):
            yield index["column_names"]


def _tells_when(column: Column[Any]) -> bool:
    from sqlalchemy import DateTime, Integer, Numeric, String

    return isinstance(column.type, DateTime | Integer | Numeric | String)


def as_read(column: Column[Any], kind: str) -> Any:  # noqa: ANN401 - a column, or what it is read as
    """Return a column as it is selected: documents as text, and SQLite's dates, for one may be spelled oddly."""
    from sqlalchemy import JSON, Date, DateTime, Integer, Numeric, String, Text, Time, cast, type_coerce

    if isinstance(column.type, JSON):
        return type_coerce(column, Text()) if kind == "sqlite" else cast(column, Text())
    # SQLite takes what it does not know, such as UUID, for a number, and keeps it as it is.
    is_odd = isinstance(column.type, DateTime | Date | Time | Numeric) and not isinstance(column.type, Integer)
    return type_coerce(column, String()) if kind == "sqlite" and is_odd else column
