"""The tables of django-celery-beat → the entries of its schedule, when each is due, when beat was last told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from opslib import database
from opslib.collectors import clocks, entries
from opslib.durations import spell
from opslib.envelope import digest
from opslib.errors import OpsError
from opslib.facts.beat import DJANGO, ScheduleEntry
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

    from opslib.settings import Target

PLACE = "django-celery-beat"
TASKS = "django_celery_beat_periodictask"
#: Of one row, which says when the schedule changed last: beat reads all of it anew when that has moved.
NOTICE = "django_celery_beat_periodictasks"
#: What an entry may be sent by: the table of it, by the column that leads there.
_KINDS = {kind: f"django_celery_beat_{kind}schedule" for kind in ("interval", "crontab", "solar", "clocked")}
_NEEDED = frozenset(
    {"id", "name", "task", "args", "kwargs", "enabled", "last_run_at", "total_run_count", "date_changed"}
)
#: What somebody decided of an entry; the rest of it, beat writes.
_DEFINED = (
    *("name", "task", "args", "kwargs", "queue", "exchange", "routing_key", "headers", "priority"),
    *("expires", "expire_seconds", "one_off", "start_time", *(f"{kind}_id" for kind in _KINDS)),
)
#: An entry that never ran and has a start is due from then on; so far back, beat puts its last run.
_LONG_AGO = timedelta(days=365 * 30)
#: A time that is so far ahead was written by a clock of another zone.
_AHEAD_S = 120.0
_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """
    What the tables say.

    Attributes:
        told_at: Epoch seconds at which beat was last told of a change; None for never.
    """

    entries: tuple[ScheduleEntry, ...] = ()
    told_at: float | None = None
    coverage: tuple[Coverage, ...] = ()


class _Odd(Exception):
    """Raised for an entry that beat cannot serve; says why."""


def read(target: Target, now: datetime, *, expected: bool = False) -> Found:
    """
    Return the schedule in a target's database; nothing where it names none, or that has no such tables.

    Args:
        expected: Whether the nodes' configuration says that the schedule is there.
    """
    if not target.database_url:
        note = "The nodes say that it is in a database; the target names none (`database_url`)."
        return _unseen(note) if expected else Found()
    try:
        with database.connect(target).reading() as connection:
            columns = _columns(connection)
            if TASKS not in columns:
                return _unseen(f"{target.shown_database} has no table {TASKS}.") if expected else Found()
            if missing := sorted(_NEEDED - columns[TASKS]):
                return _unseen(f"{TASKS} has no column {missing[0]}.")
            return _read(connection, columns, target.shown_database, now)
    except OpsError as error:
        return _unseen(error.message)


def definition(connection: Connection, row: int) -> tuple[str, bool] | None:
    """Return the digest of what somebody decided of an entry, and whether it is enabled; None if it is gone."""
    found = connection.execute(_query(_columns(connection), row)).mappings().first()
    return None if found is None else (_digest(dict(found)), bool(found["enabled"]))


def key_of(shown: str, row: int) -> str:
    """Return what an entry's place is called: its database, without driver, user and password, and its id there."""
    return f"{shown.rpartition('://')[2].rpartition('@')[2]}#periodictask/{row}"


def instant(value: object) -> datetime | None:
    """Return a time as Django writes it, aware; a naive one is UTC, as it is with USE_TZ. None for what is none."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _unseen(note: str) -> Found:
    return Found(coverage=(Coverage(place=PLACE, seen=0, silent=1, note=note),))


def _columns(connection: Connection) -> dict[str, frozenset[str]]:
    """Return the columns of those of the tables that there are: older releases have fewer."""
    from sqlalchemy import inspect

    inspector = inspect(connection)
    there = [name for name in (TASKS, NOTICE, *_KINDS.values()) if inspector.has_table(name)]
    return {name: frozenset(str(each["name"]) for each in inspector.get_columns(name)) for name in there}


def _table(name: str, columns: object) -> Any:  # noqa: ANN401 - a table without types, for each driver has its own
    from sqlalchemy import column, table

    return table(name, *(column(each) for each in sorted(columns)))  # type: ignore[call-overload]


def _query(columns: Mapping[str, frozenset[str]], row: int | None = None) -> Select[Any]:
    """Return a query of all entries or of one, each with what it is sent by; too large arguments are left out."""
    from sqlalchemy import case, func, select

    tasks = _table(TASKS, columns[TASKS])
    wanted = [*(_NEEDED - {"args", "kwargs"}), *(each for each in _DEFINED if each in columns[TASKS] - _NEEDED)]
    selected = [tasks.c[each] for each in sorted(wanted)]
    for each in ("args", "kwargs"):
        length = func.length(tasks.c[each])
        selected += [case((length <= entries.LARGEST, tasks.c[each])).label(each), length.label(f"{each}_length")]
    source = tasks
    for kind, name in _KINDS.items():
        if name in columns and f"{kind}_id" in columns[TASKS]:
            other = _table(name, columns[name])
            source = source.outerjoin(other, tasks.c[f"{kind}_id"] == other.c.id)
            selected += [other.c[each].label(f"{kind}_{each}") for each in sorted(columns[name] - {"id"})]
    query = select(*selected).select_from(source).order_by(tasks.c.id)
    return query if row is None else query.where(tasks.c.id == row)


def _read(connection: Connection, columns: Mapping[str, frozenset[str]], shown: str, now: datetime) -> Found:
    from sqlalchemy import func, select

    count = int(connection.scalar(select(func.count()).select_from(_table(TASKS, ["id"]))) or 0)
    rows = connection.execute(_query(columns).limit(entries.MOST)).mappings()
    found = [_entry(dict(row), shown, now) for row in rows]
    told_at = None
    if NOTICE in columns:
        notice = _table(NOTICE, ["ident", "last_update"])
        told = instant(connection.scalar(select(notice.c.last_update).where(notice.c.ident == 1)))
        told_at = told.timestamp() if told else None
    ahead_s = max([told_at or 0.0, *(row.last_run_at or 0.0 for row in found)]) - now.timestamp()
    rest = max(0, count - len(found))
    sunny = sum(1 for row in found if row.is_unreckoned)
    notes = [f"{rest:,} more were not looked at."] if rest else []
    verb = "follows" if sunny == 1 else "follow"
    notes += [f"{sunny:,} {verb} the sun: to reckon when that is, `ephem` has to be installed."] if sunny else []
    if ahead_s > _AHEAD_S:
        notes.append(
            f"Its times are {spell(ahead_s)} ahead: with USE_TZ off, they are another zone's, and nobody can tell what "
            "is due."
        )
        found = [replace(row, due_at=None, is_unreckoned=True) for row in found]
        sunny = len(found)
    seen = Coverage(place=PLACE, seen=len(found) - sunny, silent=rest + sunny, note=" ".join(notes))
    return Found(entries=tuple(found), told_at=told_at, coverage=(seen,))


def _entry(row: Mapping[str, Any], shown: str, now: datetime) -> ScheduleEntry:
    last, changed = instant(row["last_run_at"]), instant(row["date_changed"])
    known = ScheduleEntry(
        name=str(row["name"]),
        source=DJANGO,
        task=str(row["task"]),
        is_on=bool(row["enabled"]),
        bounds=_bounds(row, now),
        last_run_at=last.timestamp() if last else None,
        changed_at=changed.timestamp() if changed else None,
        runs=entries.whole(row["total_run_count"]),
        key=key_of(shown, int(row["id"])),
        row=int(row["id"]),
        sha256=_digest(row),
    )
    try:
        when, due = _when(row)
        known = replace(known, when=when)
        known = replace(known, **_aimed(row))
        if not known.is_on or _is_over(row, now):
            return known
        due_at = _due(row, last, changed or now, due)
        return replace(known, due_at=due_at.timestamp() if due_at else None)
    except _Odd as odd:
        return replace(known, problem=str(odd))
    except ImportError:
        return replace(known, is_unreckoned=True)


def _digest(row: Mapping[str, Any]) -> str:
    """Return the digest of what somebody decided of an entry; of arguments that are too large, of their length."""
    said = {each: str(row.get(each)) for each in (*_DEFINED, "args_length", "kwargs_length")}
    return digest(json.dumps(said, sort_keys=True).encode())


def _aimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return where an entry's tasks wait, and what it calls its task with, unless that is too large."""
    call: dict[str, Any] = {}
    for each, kind in (("args", list), ("kwargs", dict)):
        if row[each] is None and row[f"{each}_length"]:
            return {**entries.aimed({"options": _options(row)}), "call": ""}
        try:
            call[each] = json.loads(row[each] or "null") or kind()
        except (ValueError, RecursionError):
            call[each] = None
        if not isinstance(call[each], kind):
            raise _Odd(f"Its {each} are not what beat can read; it switches such an entry off.")
    return entries.aimed({**call, "options": _options(row)})


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's options; of those that no message of ours has, only that there are any."""
    known = ("queue", "exchange", "routing_key", "priority")
    options = {each: row[each] for each in known if row.get(each) is not None}
    options |= {"expires": True} if row.get("expires") or row.get("expire_seconds") else {}
    return options | ({"headers": True} if row.get("headers") not in {None, "", "{}"} else {})


def _bounds(row: Mapping[str, Any], now: datetime) -> str:
    """Return from when, until when and whether once only, in words."""
    said = []
    if row.get("one_off"):
        said.append("once, and it was sent" if row["total_run_count"] else "once")
    if start := instant(row.get("start_time")):
        said.append(f"from {_spelt(start)}")
    if end := instant(row.get("expires")):
        said.append(f"until {_spelt(end)}{', which is over' if end <= now else ''}")
    return "; ".join(said)


def _is_over(row: Mapping[str, Any], now: datetime) -> bool:
    """Whether beat switches an entry off the next time that it looks at it."""
    end = instant(row.get("expires"))
    return bool(row.get("one_off") and row["total_run_count"]) or (end is not None and end <= now)


#: The last run of an entry → when it is sent next.
_Next = Callable[[datetime], datetime | None]


def _when(row: Mapping[str, Any]) -> tuple[str, _Next]:
    """Return how often an entry is sent, in words and as what reckons; raise `_Odd` for what beat cannot reckon."""
    kinds = [kind for kind in _KINDS if row.get(f"{kind}_id") is not None]
    if not kinds:
        raise _Odd("It has no schedule: whatever it was sent by was removed.")
    return {"interval": _interval, "crontab": _crontab, "solar": _solar, "clocked": _clocked}[kinds[0]](row)


def _interval(row: Mapping[str, Any]) -> tuple[str, _Next]:
    try:
        every = timedelta(**{str(row["interval_period"]): int(row["interval_every"])})
    except (TypeError, ValueError, OverflowError):
        raise _Odd(f"It is sent every {row['interval_every']} {row['interval_period']}, which is no time.") from None
    words = spell(every.total_seconds()) if every >= timedelta(seconds=1) else f"{every.total_seconds():g} s"
    return f"every {words}", lambda last: last + every


def _crontab(row: Mapping[str, Any]) -> tuple[str, _Next]:
    fields = [str(row[f"crontab_{each}"]).replace(" ", "") or "*" for each in _FIELDS]
    name = str(row.get("crontab_timezone") or "UTC")
    words = f"crontab {' '.join(fields)} {name}"
    try:
        return words, partial(clocks.read(*fields).after, zone=ZoneInfo(name))
    except (ValueError, KeyError, OSError) as error:
        raise _Odd(f"Beat cannot read its {words}: {str(error).rstrip('.')}.") from None


def _solar(row: Mapping[str, Any]) -> tuple[str, _Next]:
    latitude, longitude = float(row["solar_latitude"]), float(row["solar_longitude"])
    words = f"{row['solar_event']} at {latitude:g} {longitude:g}".replace("_", " ")

    return words, partial(clocks.by_the_sun, str(row["solar_event"]), latitude, longitude)


def _clocked(row: Mapping[str, Any]) -> tuple[str, _Next]:
    moment = instant(row["clocked_clocked_time"])
    if moment is None:
        raise _Odd("The time at which it is sent cannot be read.")
    return f"at {_spelt(moment)}", lambda _: moment


def _due(row: Mapping[str, Any], last: datetime | None, changed: datetime, after: _Next) -> datetime | None:
    """Return when an entry is sent next, reckoned as beat does it."""
    start, end = instant(row.get("start_time")), instant(row.get("expires"))
    try:
        due = after(last or (changed - _LONG_AGO if start else changed))
        if start and due and due < start:
            due = after(start) if row.get("crontab_id") is not None else start
    except (OverflowError, ValueError):
        return None
    return None if due and end and due >= end else due


def _spelt(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
