"""A task's row and the verifier that is configured for its name → whether what it was to bring about is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opslib import redact
from opslib.errors import OpsError, SettingsError
from opslib.facts.rows import TaskRow

if TYPE_CHECKING:
    from opslib.database import Database
    from opslib.tables import Mapped
    from opslib.task_tables import Verifier

_MOST_SAID = 200
#: What counts as an answer; a text such as "FAILED" is true to Python, and says the opposite. 0 and 1 are these too.
_TRUTHS: Mapping[object, bool] = {True: True, False: False, b"\x01": True, b"\x00": False}


def verified(
    database: Database, table: Mapped, rows: Iterable[TaskRow], *, step: Callable[[int], object] = lambda _: None
) -> list[TaskRow]:
    """
    Return rows with what their verifiers say; one that has none, or whose verifier fails, is told so in its own words.

    Args:
        rows: With their arguments.

        step: Told how many are done.

    Raises:
        SettingsError: If a verifier of Python's is not there.
    """
    asked = [(glob, _asker(database, each, glob)) for glob, each in table.says.verify.items()]
    found = []
    for n, row in enumerate(rows, 1):
        ask = next((ask for glob, ask in asked if fnmatchcase(row.task, glob)), None)
        found.append(row if ask is None else _with_effect(replace(row, asked=True), ask))
        step(n)
    return found


def _with_effect(row: TaskRow, ask: Callable[[Mapping[str, Any]], tuple[object, object]]) -> TaskRow:
    names: dict[str, Any] = {}
    for text in (row.arguments, row.kwargs):
        with suppress(ValueError, RecursionError):
            said = json.loads(text or "null")
            names |= said if isinstance(said, dict) else {}
            names |= {f"arg{n}": each for n, each in enumerate(said)} if isinstance(said, list) else {}
    names |= {"row_id": row.row_id, "task_id": row.task_id, "last_run": row.last_run}
    try:
        effect, said = ask(names)
    except OpsError as error:
        return replace(row, effect_said=f"Its verifier failed: {error.message}"[:_MOST_SAID])
    except Exception as error:  # noqa: BLE001 - a verifier is somebody else's code
        # What it raised may quote what it was given, so its words are not told.
        return replace(row, effect_said=f"Its verifier failed: {type(error).__name__}.")
    told = redact.plain(said or "")[:_MOST_SAID]
    if effect is not None and not _is_answer(effect):
        told = f"Its verifier answered with neither true nor false ({type(effect).__name__})."
    return replace(row, effect=_TRUTHS[effect] if _is_answer(effect) else None, effect_said=told)


def _is_answer(said: object) -> bool:
    return isinstance(said, bool | int | bytes) and said in _TRUTHS


def _asker(database: Database, verifier: Verifier, glob: str) -> Callable[[Mapping[str, Any]], tuple[object, object]]:
    if verifier.python:
        return _of_python(verifier.python, glob)
    return lambda names: _of_sql(database, verifier.sql, names)


def _of_sql(database: Database, statement: str, names: Mapping[str, Any]) -> tuple[object, object]:
    """Ask the database, in a transaction that cannot write; an argument that is no plain value is not handed over."""
    from sqlalchemy import text

    asked = text(statement)
    wanted = set(asked.compile().params)
    if missing := sorted(wanted - names.keys()):
        return None, f"The task has no argument {missing[0]!r}."
    with database.reading() as connection:
        first = connection.execute(asked, {name: _plain(names[name]) for name in wanted}).first()
    if first is None:
        return False, "The query found nothing."
    return first[0], first[1] if len(first) > 1 else ""


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _of_python(entry: str, glob: str) -> Callable[[Mapping[str, Any]], tuple[object, object]]:
    module, _, attribute = entry.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"The verifier of {glob} is {entry}, which cannot be loaded: {error}.",
            hint="Is the application installed in this environment, or its folder on PYTHONPATH?",
        ) from None

    def ask(names: Mapping[str, Any]) -> tuple[object, object]:
        said = function(dict(names))
        return (said[0], said[1]) if isinstance(said, tuple) and len(said) == 2 else (said, "")

    return ask
