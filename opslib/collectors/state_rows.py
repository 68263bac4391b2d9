"""The rows that say what an application is at → what each holds now, in the columns that it would be set back in."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from opslib import database, tables
from opslib.collectors import task_rows
from opslib.errors import NotFound, OpsError, near
from opslib.facts.rows import StateNow

if TYPE_CHECKING:
    from opslib.broker import Broker
    from opslib.database import Database
    from opslib.task_tables import StateRow


def read(broker: Broker, name: str = "") -> list[StateNow]:
    """
    Return the state rows that a target is configured with, or the one of that name.

    Raises:
        NotFound: If the target has none of that name, or none at all.

        SettingsError: If one is not as configured.

        OpsError: If the database does not answer, or says no.
    """
    known = broker.target.state_rows
    if not known:
        raise NotFound(
            f"Target {broker.target.name} has no state_rows.",
            hint="docs/configuration.md says how ops.toml names one: its table, the key of the row, and what is idle.",
        )
    if name and name not in known:
        raise NotFound(f"Target {broker.target.name} has no state row {name!r}.", hint=near(name, known))
    base = database.connect(broker.target)
    return [_now(base, each, row) for each, row in known.items() if name in {"", each}]


def app_state(broker: Broker, names: str = "*") -> tuple[StateNow, ...]:
    """
    Return the state rows whose names fit a glob; of a database that does not answer, only that it does not.

    A reset must not wait for a database that has troubles of its own.

    Args:
        names: Glob of the names that the target has for them; empty for none.

    Raises:
        NotFound: If the target has none of that name.
    """
    known = {name: row for name, row in broker.target.state_rows.items() if fnmatchcase(name, names)}
    if names.strip("*") and not known:
        hint = near(names, broker.target.state_rows)
        raise NotFound(f"state: target {broker.target.name} has no state row that fits {names!r}.", hint=hint)
    found = []
    for name, row in known.items():
        try:
            found.append(_now(database.connect(broker.target), name, row))
        except OpsError as error:
            said = StateNow(name=name, table=row.table, key=json.dumps(row.key), idle=json.dumps(row.idle))
            found.append(replace(said, problem=error.message))
    return tuple(found)


def _now(base: Database, name: str, row: StateRow) -> StateNow:
    from sqlalchemy import select

    table = tables.state_table(base, name, row)
    wanted = select(*(table.columns[column] for column in row.idle))
    for column, value in row.key.items():
        wanted = wanted.where(table.columns[column] == value)
    with base.reading() as connection:
        found = connection.execute(wanted.limit(2)).mappings().all()
    said = StateNow(name=name, table=row.table, key=json.dumps(row.key), idle=json.dumps(row.idle))
    if not found:
        return replace(said, problem="There is no such row.")
    if len(found) > 1:
        return replace(said, problem="Its key fits more than one row.")
    values = {column: _plain(found[0][column]) for column in row.idle}
    return replace(said, now=json.dumps(values))


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float | bool) else task_rows.as_text(value)
