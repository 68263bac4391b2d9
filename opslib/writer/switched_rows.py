"""Entries in the tables of django-celery-beat → left out by beat, or sent again, and beat told of it; and back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from opslib import database
from opslib.collectors import django_beat
from opslib.collectors.django_beat import NOTICE, TASKS
from opslib.errors import OpsError
from opslib.interrupts import deferred
from opslib.plan import Action, Outcome, Status
from opslib.writer.primitive import Primitive

if TYPE_CHECKING:
    from sqlalchemy import Connection, TableClause

    from opslib.database import Database

_FIELD = "enabled"
#: Beat saves a row by reading all of it and writing all of it: what is written in between, it writes over. It takes it
#: less than this.
_BEAT_SAVES_WITHIN_S = 0.2
_WHY_NOT = {
    "G": "The entry is gone: somebody has removed it.",
    "C": "The entry was written again since it was planned; look at it anew.",
    "S": "It is so already.",
    "B": "Beat wrote the whole entry at the same moment, and this over with it. Try again.",
    "D": "The plan was made for another database than the one that the target names now.",
}


class _NotDone(Exception):
    """Raised inside a transaction, so that it ends without a change; has the letter that says why."""


def switch(primitive: Primitive, action: Action) -> Outcome:
    """Have beat leave an entry out or send it, if it is as it was planned; the journal knows before the table does."""
    row = json.loads(action.row.key if action.row else "{}")
    was, to = (
        (bool(json.loads(text)[_FIELD]) for text in (action.row.was, action.row.becomes)) if action.row else (0, 0)
    )
    item = {"a": action.id, "s": action.subject, "t": action.task, "key": action.source, "row": row}
    item |= {"was": was, "is": to}
    letter = _change(primitive, item, role="switch", sha256=action.copies[0].sha256)
    if letter == "A":
        said = "Beat sends it again" if to else "Beat leaves it out"
        return Outcome(action=action, status=Status.APPLIED, reason=f"{said}; it was told of the change.")
    status = Status.FAILED if letter == "B" else Status.SKIPPED
    return Outcome(action=action, status=status, reason=_WHY_NOT[letter])


def put_back(primitive: Primitive, action: Action, item: Mapping[str, Any], at: tuple[str, int]) -> Outcome:
    """Have an entry be sent or left out as it was, unless somebody has switched it since."""
    back = {**item, "was": item["is"], "is": item["was"], "undoes": list(at)}
    letter = _change(primitive, back, role="back")
    if letter == "A":
        return Outcome(action=action, status=Status.APPLIED, reason="It is as it was, and beat was told of that.")
    status = Status.FAILED if letter == "B" else Status.SKIPPED
    return Outcome(action=action, status=status, reason=_WHY_NOT[letter])


def _change(primitive: Primitive, item: Mapping[str, Any], *, role: str, sha256: str = "") -> str:
    """
    Switch one row and tell beat, in one transaction; return a letter of _WHY_NOT, or A.

    Args:
        sha256: What the entry's definition has to be still; empty for whatever it is.
    """
    target = primitive.broker.target
    row, name, to = int(item["row"]["id"]), str(item["row"]["name"]), bool(item["is"])
    if item["key"] != django_beat.key_of(target.shown_database, row):
        return "D"
    known = database.connect(target)
    number = ""
    with deferred():
        try:
            with known.changing() as connection:
                _switched(connection, row, name, to=to, sha256=sha256)
                number = _note(primitive, item, role)
                _tell(connection)
        except _NotDone as why:
            return str(why)
        except OpsError:
            # It may have been committed, if the connection broke in that moment.
            if not number or _is(known, row, name) is not to:
                _strike_out(primitive, item, number)
                raise
    time.sleep(_BEAT_SAVES_WITHIN_S)
    if _is(known, row, name) is not to:
        _strike_out(primitive, item, number)
        return "B"
    return "A"


def _switched(connection: Connection, row: int, name: str, *, to: bool, sha256: str) -> None:
    """Write the one word, and raise `_NotDone` if the row is not as it should be: it is locked from then on."""
    table = _table(TASKS, "id", "name", _FIELD)
    c = table.c
    found = connection.execute(
        table.update().where(c.id == row, c.name == name, c[_FIELD] == (not to)).values({_FIELD: to})
    )
    said = django_beat.definition(connection, row)
    if said is None:
        raise _NotDone("G")
    if sha256 not in {"", said[0]}:
        raise _NotDone("C")
    if found.rowcount != 1:
        raise _NotDone("S" if said[1] is to else "C")


def _tell(connection: Connection) -> None:
    """Move the instant at which beat was last told of a change, as Django does: beat looks whether it has moved."""
    from sqlalchemy import select

    table = _table(NOTICE, "ident", "last_update")
    before = connection.execute(select(table.c.last_update).where(table.c.ident == 1)).first()
    now = datetime.now(UTC)
    told = django_beat.instant(before[0]) if before else None
    if told is not None:
        now = max(now, told + timedelta(milliseconds=1))
    value: object = now
    if connection.dialect.name != "postgresql":  # which has zones
        value = now.replace(tzinfo=None)
    if connection.dialect.name == "sqlite":
        value = f"{value:%Y-%m-%d %H:%M:%S.%f}"
    if before is None:
        connection.execute(table.insert().values(ident=1, last_update=value))
    else:
        connection.execute(table.update().where(table.c.ident == 1).values(last_update=value))


def _is(known: Database, row: int, name: str) -> bool | None:
    """Return whether an entry is enabled; None if it is gone, or the database does not say."""
    from sqlalchemy import select

    table = _table(TASKS, "id", "name", _FIELD)
    with suppress(OpsError), known.reading() as connection:
        found = connection.execute(select(table.c[_FIELD]).where(table.c.id == row, table.c.name == name)).first()
        return None if found is None else bool(found[0])
    return None


def _table(name: str, *columns: str) -> TableClause:
    from sqlalchemy import column, table

    return table(name, *(column(each) for each in columns))


def _note(primitive: Primitive, item: Mapping[str, Any], role: str) -> str:
    """Put it into the journal; return the batch's number there."""
    receipt = {"op": "switch", "role": role, "items": [dict(item)]}
    about = {"schedule": item["key"], _FIELD: item["is"]}
    return primitive.call("note", primitive.keys(), ["A"], receipt=receipt, about=about).number


def _strike_out(primitive: Primitive, item: Mapping[str, Any], number: str) -> None:
    """Have the journal know that nothing came of it: there is nothing to undo."""
    if number:
        _note(primitive, {**item, "undoes": [number, 0]}, "struck")
