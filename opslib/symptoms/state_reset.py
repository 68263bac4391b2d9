"""What an application says that it is at → the actions that set it back to idle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from opslib.facts.rows import StateNow
from opslib.plan import Action, Copy, Kind, RowChange


def actions(rows: Iterable[StateNow], *, step: str = "") -> Iterator[Action]:
    """
    Return an action for each row that can be set back and is not idle already.

    Args:
        step: Of a plan of steps.
    """
    for row in rows:
        if row.problem or row.is_idle:
            continue
        table = f"state_rows.{row.name}"
        yield Action(
            kind=Kind.UPDATE,
            subject=row.name,
            source=table,
            destination="idle",
            copies=(Copy(place="row", key=row.name),),
            row=RowChange(table=table, key=row.key, was=row.now, becomes=row.idle),
            step=step,
            # What it holds may be about somebody; the plan compares it, and shows it nowhere.
            effect=f"Of the row of {row.table}, {_columns(row.idle)} become idle, if they still hold what was seen.",
        )


def _columns(values: str) -> str:
    return " and ".join(json.loads(values))
