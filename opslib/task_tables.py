"""A preset's name or a mapping of ops.toml → which column of an application's own table says what of a task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from zoneinfo import ZoneInfo

import msgspec

from opslib.errors import SettingsError, near

#: What a column can say, by our names; the first four have to be there.
NEEDED = ("id", "task_id", "status", "last_run")
FIELDS = (*NEEDED, "task_name", "task_module", "arguments", "kwargs", "status_message", "attempts")
#: Final states of Celery's, of which a row can be told.
FINAL = ("SUCCESS", "FAILURE", "REVOKED")
_MOST_STATUSES = 50
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Verifier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How one looks for what a task was to bring about.

    Attributes:
        sql: A SELECT; `:name` stands for an argument of the task, `:row_id`, `:task_id` and `:last_run` for the row's.
            Its first column is true, false, or NULL where nobody can tell; a second one says why. No row means false.

        python: `module:function` in its place. It is given the same names as a dictionary, and returns true, false or
            None, or a pair of that and a sentence.
    """

    sql: str = ""
    python: str = ""


class TaskTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A table in which an application, or a result backend, keeps a row for each task.

    Attributes:
        preset: A key of PRESETS, whose values hold where nothing else is said.

        table: Its name, with `schema.` before it where it is not in the default one.

        columns: Which column says what, by our names (see FIELDS).

        open: Statuses of tasks that are yet to end and that are looked into.

        closed: Statuses of tasks that are over; all others are neither, and counted.

        becomes: What is written for a final state of Celery's.

        zone: Of times that have none.

        results: Whether it is the result backend itself, so that an open row says that no result was ever stored.

        chains: Whether its tasks may come after others, in a chain or a chord. One of these is in no message as long as
            the one before it runs, so that nobody can call it lost then.

        verify: How the effect of tasks is looked for, by their name or a glob of it.
    """

    preset: str = ""
    table: str = ""
    columns: dict[str, str] = {}
    open: list[str] = []
    closed: list[str] = []
    becomes: dict[str, str] = {}
    zone: str = ""
    results: bool = False
    chains: bool = True
    verify: dict[str, Verifier] = {}


class StateRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A row that says what the application itself is at, and can be set back.

    Attributes:
        key: Columns and values by which it is found; one row at most.

        idle: Columns and values that it is set to.
    """

    table: str
    key: dict[str, str | int | bool]
    idle: dict[str, str | int | float | bool | None]


_UNDER_WAY = ["PENDING", "RECEIVED", "STARTED", "RETRY"]

#: Tables that are known by their name: those of result backends, and that of a task manager as applications have it.
PRESETS: Mapping[str, TaskTable] = {
    "django-celery-results": TaskTable(
        table="django_celery_results_taskresult",
        columns={
            "id": "id",
            "task_id": "task_id",
            "task_name": "task_name",
            "arguments": "task_args",
            "kwargs": "task_kwargs",
            "status": "status",
            "last_run": "date_done",
        },
        open=_UNDER_WAY,
        closed=[*FINAL],
        results=True,
    ),
    "celery": TaskTable(
        table="celery_taskmeta",
        columns={"id": "id", "task_id": "task_id", "task_name": "name", "status": "status", "last_run": "date_done"},
        open=_UNDER_WAY,
        closed=[*FINAL],
        results=True,
    ),
    "task-manager": TaskTable(
        table="task_manager_taskmanager",
        columns={
            "id": "id",
            "task_id": "task_id",
            "task_module": "task_module",
            "task_name": "task_name",
            "arguments": "arguments",
            "status": "status",
            "status_message": "status_message",
            "attempts": "attempts",
            "last_run": "last_run",
        },
        open=["SCHEDULED"],
        closed=["DONE", "CANCELLED", "REVERSED", "ABORTED", "ERROR"],
        becomes={"SUCCESS": "DONE", "FAILURE": "ERROR", "REVOKED": "CANCELLED"},
    ),
}


def resolved(name: str, given: TaskTable, where: str) -> TaskTable:
    """
    Return a table with its preset's values where it says nothing itself.

    Raises:
        SettingsError: If it does not say enough, or something that cannot be meant.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise SettingsError(f"{where}: {name!r} is no name.", hint="Small letters, digits, _ and -, such as tasks.")
    if given.preset and given.preset not in PRESETS:
        raise SettingsError(f"{where}.preset: there is no {given.preset!r}.", hint=near(given.preset, PRESETS))
    base = PRESETS.get(given.preset, TaskTable())
    closed = given.closed or base.closed
    becomes = {state: status for state, status in base.becomes.items() if status in closed}
    made = TaskTable(
        preset=given.preset,
        table=given.table or base.table,
        columns={**base.columns, **given.columns},
        open=given.open or base.open,
        closed=closed,
        becomes={**becomes, **given.becomes} or _itself(closed),
        zone=given.zone or base.zone or "UTC",
        results=given.results or base.results,
        chains=given.chains,
        verify=given.verify,
    )
    _check(made, where)
    return made


def check_state(name: str, row: StateRow, where: str) -> None:
    """
    Refuse a state that is not one row, or that nothing would be set of.

    Raises:
        SettingsError: If it is.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise SettingsError(f"{where}: {name!r} is no name.", hint="Small letters, digits, _ and -, such as agent.")
    for said, what in ((row.table, "table"), (row.key, "key"), (row.idle, "idle")):
        if not said:
            hint = 'For instance table = "agent", key = { id = 1 } and idle = { status = "idle" }.'
            raise SettingsError(f"{where} does not say its {what}.", hint=hint)
    if both := sorted(set(row.key) & set(row.idle)):
        raise SettingsError(f"{where}: {both[0]!r} finds the row and would be changed.")


def _itself(closed: Iterable[str]) -> dict[str, str]:
    """Return what a table that uses Celery's own words writes for a final state."""
    return {state: state for state in FINAL if state in set(closed)}


def _check(table: TaskTable, where: str) -> None:
    _check_columns(table, where)
    _check_statuses(table, where)
    try:
        ZoneInfo(table.zone)
    except (KeyError, ValueError, OSError):
        raise SettingsError(f"{where}.zone: {table.zone!r} is no time zone.", hint='For instance "UTC".') from None
    for task, verifier in table.verify.items():
        _check_verifier(verifier, f"{where}.verify.{task}")


def _check_columns(table: TaskTable, where: str) -> None:
    if not table.table:
        hint = f"Give it `table` and `columns`, or a preset: {', '.join(PRESETS)}."
        raise SettingsError(f"{where} names no table.", hint=hint)
    for field in table.columns:
        if field not in FIELDS:
            raise SettingsError(f"{where}.columns: {field!r} is nothing that a column says.", hint=near(field, FIELDS))
    if missing := [field for field in NEEDED if not table.columns.get(field)]:
        raise SettingsError(
            f"{where}.columns does not say which column is {' nor '.join(missing)}.",
            hint=f'For instance {missing[0]} = "{missing[0]}".',
        )


def _check_statuses(table: TaskTable, where: str) -> None:
    for what, statuses in (("open", table.open), ("closed", table.closed)):
        if not statuses:
            hint = 'For instance open = ["SCHEDULED"] and closed = ["DONE", "ERROR"].'
            raise SettingsError(f"{where} does not say which statuses are {what}.", hint=hint)
    if both := sorted(set(table.open) & set(table.closed)):
        raise SettingsError(f"{where}: {both[0]!r} is open and closed.")
    if len({*table.open, *table.closed}) > _MOST_STATUSES:
        raise SettingsError(f"{where} has more than {_MOST_STATUSES} statuses.")
    for state, status in table.becomes.items():
        if state not in FINAL:
            raise SettingsError(f"{where}.becomes: {state!r} is no final state of Celery's.", hint=near(state, FINAL))
        if status not in table.closed:
            raise SettingsError(
                f"{where}.becomes: {status!r} is not among the closed statuses.", hint=near(status, table.closed)
            )


def _check_verifier(verifier: Verifier, where: str) -> None:
    if bool(verifier.sql) is bool(verifier.python):
        raise SettingsError(f"{where} needs one of sql and python.")
    if verifier.sql and not re.match(r"\s*(select|with)\b", verifier.sql, re.IGNORECASE):
        raise SettingsError(f"{where}.sql is no SELECT.", hint="It is run in a transaction that cannot write.")
    if verifier.python and not _ENTRY_POINT.fullmatch(verifier.python):
        raise SettingsError(f"{where}.python: {verifier.python!r} is no module:function.")
