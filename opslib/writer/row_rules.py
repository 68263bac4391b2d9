"""An action about rows → whether it is about what it shows, and about what its target's settings let it change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opslib.facts.system import FINAL_STATES
from opslib.plan import Action, Kind, RowChange
from opslib.task_tables import PRESETS
from opslib.writer.row_batches import OP
from opslib.writer.rows import STATE, TASKS

if TYPE_CHECKING:
    from opslib.selection import RowSelection
    from opslib.settings import Target


def refused(action: Action, target: Target) -> str:
    """Return why an action is not about the rows that it shows, or about none that may be set; empty if it is."""
    if action.rows is not None:
        return _many_refused(action, action.rows, target)
    if action.row is None:
        return "it names no row" if action.kind is Kind.UPDATE else ""
    if action.kind is Kind.SWITCH:  # a schedule's, which is looked at where it is switched
        return ""
    return _one_refused(action, action.row, target)


def _many_refused(action: Action, only: RowSelection, target: Target) -> str:
    says = target.task_tables.get(only.table) or (PRESETS.get(only.table) if not target.task_tables else None)
    name = f"{TASKS}{only.table}"
    if action.kind is not Kind.UPDATE or action.row is not None:
        return "it is about a row and about many"
    if says is None:
        return f"the target has no task table {only.table}"
    if says.results:
        return f"{only.table} holds the results themselves"
    if [copy.place for copy in action.copies] != [OP] or action.copies[0].key not in {only.table, name}:
        return f"it does not show how many rows of {name} it means"
    if only.state not in FINAL_STATES or not (set(only.statuses or says.open) <= set(says.open)):
        return "it means rows that are not open, or a state that is not final"
    if only.becomes not in says.closed or action.destination != only.becomes:
        return f"it shows {action.destination}, and would write {only.becomes}"
    if action.subject not in {only.table, name, only.task}:
        return f"it shows {action.subject}, and is about {name}"
    return "" if action.task in {"", only.task} else f"it shows {action.task}, and is about {only.task}"


def _one_refused(action: Action, row: RowChange, target: Target) -> str:
    said = [_parsed(text) for text in (row.key, row.was, row.becomes)]
    if None in said or not said[0]:
        return "its row cannot be found by what it says"
    key, was, becomes = (each or {} for each in said)
    if action.kind is Kind.SEND:
        return "" if not becomes and _named(row.table, target) else "it would send a task and set a row"
    if action.kind is not Kind.UPDATE or not becomes:
        return "it does not say what a row is set to"
    if set(key) & set(becomes):
        return "it would change what the row is found by"
    shown = {str(value) for value in (*key.values(), *was.values())} | {row.table, row.table.partition(".")[2]}
    if action.subject not in shown:
        return f"it shows {action.subject}, and is about another row"
    return _not_as_configured(action, row, key, becomes, target)


def _not_as_configured(
    action: Action, row: RowChange, key: Mapping[str, Any], becomes: Mapping[str, Any], target: Target
) -> str:
    if not _named(row.table, target):
        return f"the target has no {row.table}"
    if row.table.startswith(STATE):
        says = target.state_rows[row.table.removeprefix(STATE)]
        return "" if (key, becomes) == (says.key, says.idle) else f"it is not what {row.table} says"
    if row.table.startswith(TASKS):
        name = row.table.removeprefix(TASKS)
        table = target.task_tables.get(name) or PRESETS[name]
        status = becomes.get("status", becomes.get(table.columns["status"], ""))
        if table.results:
            return f"{name} holds the results themselves"
        if status and status not in {*table.open, *table.closed}:
            return f"{status} is no status of {name}"
        return "" if not status or status == action.destination else f"it shows {action.destination}, not {status}"
    return ""


def _parsed(text: str) -> dict[str, Any] | None:
    """Return the values of a JSON object; None if it is none, or holds more than plain values."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    plain = isinstance(found, dict) and not any(isinstance(value, dict | list) for value in found.values())
    return found if plain else None


def _named(name: str, target: Target) -> bool:
    """Whether a target has a table of that name."""
    if name.startswith(STATE):
        return name.removeprefix(STATE) in target.state_rows
    if name.startswith(TASKS):
        return name.removeprefix(TASKS) in (target.task_tables or PRESETS)
    return False
