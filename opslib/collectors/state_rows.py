"""The rows that say what an application is at → what each holds now, in the columns that it would be set back in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from opslib import database, tables
from opslib.collectors import task_rows
from opslib.errors import NotFound, near
from opslib.facts import StateNow

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
        return _with(said, problem="There is no such row.")
    if len(found) > 1:
        return _with(said, problem="Its key fits more than one row.")
    values = {column: _plain(found[0][column]) for column in row.idle}
    return _with(said, now=json.dumps(values))


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float | bool) else task_rows.as_text(value)


def _with(said: StateNow, **more: str) -> StateNow:
    from dataclasses import replace

    return replace(said, **more)
