"""An application's task tables → their open rows, page by page; how many there are of each status; some rows whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from opslib import redact
from opslib.database import connect
from opslib.errors import OpsError
from opslib.facts.rows import TaskRow
from opslib.facts.system import Coverage, StatusCount
from opslib.tables import as_read, task_tables

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

    from opslib.database import Database
    from opslib.settings import Target
    from opslib.tables import Mapped

#: The task tables as a whole, in a coverage.
PLACE = "task tables"
#: Rows of a page: each is a short transaction by itself.
PAGE = 2_000
#: Ids that are asked for at once.
_AT_ONCE = 500
_MOST_STATUSES = 200
#: Rows of the tasks that are searched for.
_MOST_ROWS = 1_000
_MOST_MESSAGE, _LONGEST_NAME = 200, 300
_UUID = re.compile(r"[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_BRIEF = ("id", "task_id", "task_module", "task_name", "status", "last_run")
_WHOLE = (*_BRIEF, "status_message", "attempts")


class Row(NamedTuple):
    """
    What is read of every open row.

    Attributes:
        key: What its column `id` holds.

        task_id: As Celery spells it, however the column does.

        last_run: What that column holds; `at` is the same in epoch seconds, None where that is no instant.

        stored_id: What its column `task_id` holds.
    """

    key: Any
    task_id: str
    task: str
    status: str
    last_run: Any
    at: float | None
    stored_id: Any


def pages(
    database: Database,
    table: Mapped,
    *,
    after: object = None,
    size: int = PAGE,
    most: int = 0,
) -> Iterator[list[Row]]:
    """
    Yield a table's open rows in the order of their keys, each page in a transaction of its own, in constant memory.

    A row that comes or goes meanwhile is met or not; none is met twice.

    Args:
        after: Key after which to begin; None for the first.

        most: Rows after which to stop; 0 for none.

    Raises:
        OpsError: If the database does not answer, or not in time.
    """
    column, seen = as_read(table.columns["id"], table.kind), 0
    open_rows = _selected(table, _BRIEF).where(table.columns["status"].in_(table.says.open)).order_by(column)
    while not most or seen < most:
        wanted = min(size, most - seen) if most else size
        with database.reading() as connection:
            asked = open_rows if after is None else open_rows.where(column > after)
            found = connection.execute(asked.limit(wanted)).mappings().all()
        if found:
            yield [row(table, each) for each in found]
        if len(found) < wanted:
            return
        after, seen = found[-1]["id"], seen + len(found)


def row(table: Mapped, said: Any) -> Row:  # noqa: ANN401 - a mapping of SQLAlchemy's
    """Return what a page says of one row."""
    moment = table.instant(said["last_run"])
    return Row(
        key=said["id"],
        task_id=spelled(said["task_id"]),
        task=name(said.get("task_module"), said.get("task_name")),
        status=_text(said["status"]),
        last_run=said["last_run"],
        at=None if moment is None else moment.timestamp(),
        stored_id=said["task_id"],
    )


def spelled(value: object) -> str:
    """Return a task's id as Celery spells it: some databases keep a UUID without its dashes, or in capitals."""
    text = _text(value).strip()
    return str(UUID(text)) if _UUID.fullmatch(text) else text


def name(module: object, task: object) -> str:
    """Return the whole name of a task, as a node registers it: some tables have its module in a column of its own."""
    short, long = _text(task).strip()[:_LONGEST_NAME], _text(module).strip()[:_LONGEST_NAME]
    return short if not long or short.startswith(f"{long}.") else f"{long}.{short}"


def statuses(database: Database, table: Mapped) -> tuple[list[StatusCount], int]:
    """
    Return how many rows there are of each status, the commonest first, and how many of statuses that are left out.

    Raises:
        OpsError: If the database does not answer, or not in time.
    """
    from sqlalchemy import func, select

    status = table.columns["status"]
    with database.reading() as connection:
        counted = connection.execute(
            select(status.label("status"), func.count().label("n")).group_by(status).order_by(func.count().desc())
        ).all()
    of = dict.fromkeys(table.says.open, "open") | dict.fromkeys(table.says.closed, "closed")
    rows = [
        StatusCount(table=table.name, status=text, standing=of.get(text, "other"), count=int(n))
        for text, n in ((_text(status), n) for status, n in counted[:_MOST_STATUSES])
    ]
    return rows, sum(int(n) for _, n in counted[_MOST_STATUSES:])


def overall(target: Target) -> tuple[list[StatusCount], list[Coverage]]:
    """
    Return how many rows the tables that a target is configured with have of each status; nothing where it has none.

    What cannot be read is a row of coverage: who asks how a deployment is has asked about more than that.
    """
    if not target.task_tables:
        return [], []
    found: list[StatusCount] = []
    beyond = 0
    try:
        base = connect(target)
        for table in task_tables(target, base):
            rows, rest = statuses(base, table)
            found += rows
            beyond += rest
    except OpsError as error:
        return found, [Coverage(place=PLACE, seen=0, silent=1, note=error.message)]
    note = f"{beyond:,} rows have statuses beyond those that are told apart." if beyond else ""
    return found, [Coverage(place=PLACE, seen=sum(row.count for row in found), silent=beyond, note=note)]


def of_tasks(target: Target, ids: Sequence[str]) -> tuple[list[TaskRow], list[Coverage]]:
    """
    Return the rows that the tables which a target is configured with have for these tasks.

    The coverage counts tables; there is none where the target has no table, or nobody asks for a task.
    """
    if not target.task_tables or not ids:
        return [], []
    found: list[TaskRow] = []
    seen = 0
    try:
        base = connect(target)
        for table in task_tables(target, base):
            found += _of_ids(base, table, ids)
            seen += 1
    except OpsError as error:
        silent = len(target.task_tables) - seen
        return found, [Coverage(place=PLACE, seen=seen, silent=silent, note=error.message)]
    return found, [Coverage(place=PLACE, seen=seen)]


def _of_ids(database: Database, table: Mapped, ids: Sequence[str]) -> list[TaskRow]:
    found: list[TaskRow] = []
    with database.reading() as connection:
        for start in range(0, len(ids), _AT_ONCE):
            asked = _selected(table, _WHOLE).where(_is_in(table, ids[start : start + _AT_ONCE]))
            for said in connection.execute(asked.limit(_MOST_ROWS)).mappings():
                of = row(table, said)
                attempts = said.get("attempts")
                found.append(
                    TaskRow(
                        table=table.name,
                        row_id=str(of.key),
                        task_id=of.task_id,
                        task=of.task,
                        status=of.status,
                        last_run_at=of.at,
                        status_message=redact.plain(_text(said.get("status_message")))[:_MOST_MESSAGE],
                        attempts=attempts if isinstance(attempts, int) else None,
                    )
                )
    return found[:_MOST_ROWS]


def _is_in(table: Mapped, ids: Sequence[str]) -> ColumnElement[bool]:
    from sqlalchemy import String, cast

    column = table.columns["task_id"]
    each_way = [*ids, *(each.replace("-", "") for each in ids if _UUID.fullmatch(each))]
    return (column if isinstance(column.type, String) else cast(column, String)).in_(each_way)


def states(database: Database, table: Mapped, ids: Sequence[str]) -> dict[str, str]:
    """
    Return the states that a table of results has for these tasks.

    Raises:
        OpsError: If the database does not answer.
    """
    from sqlalchemy import select

    task_id, status = table.columns["task_id"], table.columns["status"]
    found: dict[str, str] = {}
    with database.reading() as connection:
        for start in range(0, len(ids), _AT_ONCE):
            is_in = _is_in(table, ids[start : start + _AT_ONCE])
            found |= {
                spelled(each): _text(state) for each, state in connection.execute(select(task_id, status).where(is_in))
            }
    return found


def whole(database: Database, table: Mapped, rows: Iterable[TaskRow], *, arguments: bool) -> list[TaskRow]:
    """
    Return rows with what was not read of every one: message, attempts, and how large the arguments are.

    Args:
        arguments: Whether those are kept as well; nothing shows them.

    Raises:
        OpsError: If the database does not answer.
    """
    by_key = {each.row_id: each for each in rows}
    fields = (*_WHOLE, "arguments", "kwargs")
    found: list[TaskRow] = []
    keys = [_as_key(table, each) for each in by_key]
    with database.reading() as connection:
        for start in range(0, len(keys), _AT_ONCE):
            some = _selected(table, fields).where(
                as_read(table.columns["id"], table.kind).in_(keys[start : start + _AT_ONCE])
            )
            for said in connection.execute(some).mappings():
                args, kwargs = _document(said.get("arguments")), _document(said.get("kwargs"))
                attempts = said.get("attempts")
                found.append(
                    replace(
                        by_key[str(said["id"])],
                        status_message=redact.plain(_text(said.get("status_message")))[:_MOST_MESSAGE],
                        attempts=attempts if isinstance(attempts, int) else None,
                        arguments_bytes=len(args) + len(kwargs),
                        arguments=args if arguments else "",
                        kwargs=kwargs if arguments else "",
                    )
                )
    return found


def as_text(value: object) -> str:
    """Return what a column holds as a plan has it: instants by ISO 8601, anything else as its text."""
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat else _text(value)


def _as_key(table: Mapped, text: str) -> object:
    """Return a key as its column compares it."""
    from sqlalchemy import Integer

    return int(text) if isinstance(table.columns["id"].type, Integer) else text


def _selected(table: Mapped, fields: Sequence[str]) -> Select[Any]:
    from sqlalchemy import select

    return select(*table.selected(*fields))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _document(value: object) -> str:
    """Return arguments as JSON text, however a driver hands them over."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
