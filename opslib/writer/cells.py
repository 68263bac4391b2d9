"""What a column of an SQL table holds → JSON, and back; and whether it is still what was planned."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from opslib.tables import instant

if TYPE_CHECKING:
    from sqlalchemy import Column

#: What a plan says of an instant may have lost what is below a millisecond.
_ALIKE = timedelta(milliseconds=1)


class Unkeepable(ValueError):
    """Raised for a value that could not be put back as it was, or that its column does not take."""


def kept(value: object) -> str | int | float | bool | None:
    """
    Return what was read of a column as JSON has it, so that `bound` writes the same again.

    Raises:
        Unkeepable: If nobody could.
    """
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise Unkeepable(f"{type(value).__name__} cannot be kept in a file and written again")


def same(seen: object, said: object, zone: str) -> bool:
    """
    Whether what `kept` gave is what a plan says: the same value, or the same instant however that is spelled.

    Args:
        zone: Of an instant that has none.
    """
    if seen is None or said is None:  # nothing is nothing, also where a plan has it as text
        return seen in {None, ""} and said in {None, ""}
    if seen == said or str(seen) == str(said):
        return True
    if isinstance(seen, bool) or isinstance(said, bool):
        return False
    if isinstance(seen, int | float) or isinstance(said, int | float):
        try:
            if Decimal(str(seen)) == Decimal(str(said)):
                return True
        except InvalidOperation:
            pass
    ours, theirs = instant(seen, zone), instant(said, zone)
    if ours is not None and theirs is not None:
        return abs(ours - theirs) < _ALIKE
    return _same_id(seen, said)


def bound(column: Column[Any], value: object, kind: str, zone: str) -> Any:  # noqa: ANN401 - an expression
    """
    Return a value of JSON as a column takes it, to be compared or written.

    Raises:
        Unkeepable: If it is none of that column's.
    """
    from sqlalchemy import JSON, Date, DateTime, String, Text, Time, cast, literal, null

    if value is None:
        return null()
    if isinstance(column.type, JSON):
        text = literal(str(value), Text())
        return text if kind == "sqlite" else cast(text, column.type)
    if kind == "sqlite" and isinstance(column.type, DateTime | Date | Time):
        return literal(str(value), String())
    return literal(plain(column, value, zone), column.type)


def plain(column: Column[Any], value: object, zone: str) -> object:
    """
    Return a value of JSON as its column's type wants it from Python.

    Raises:
        Unkeepable: If it is none of that column's.
    """
    try:
        return _native(column, value, zone)
    except (ValueError, TypeError, OverflowError, InvalidOperation):
        raise Unkeepable(f"{column.name} does not take what it is to be set to") from None


def _native(column: Column[Any], value: object, zone: str) -> object:
    from sqlalchemy import Boolean, Date, DateTime, Float, Integer, Numeric, String, Time, Uuid

    if isinstance(column.type, DateTime):
        moment = datetime.fromisoformat(str(value))
        if column.type.timezone:
            return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
        return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) if moment.tzinfo else moment
    ways: tuple[tuple[type[Any], Callable[[Any], object]], ...] = (
        (Date, lambda given: date.fromisoformat(str(given))),
        (Time, lambda given: time.fromisoformat(str(given))),
        (Uuid, lambda given: UUID(str(given))),
        (Boolean, bool),
        (Integer, int),
        (Float, float),
        (Numeric, lambda given: Decimal(str(given))),
        (String, str),
    )
    return next((way(value) for kind, way in ways if isinstance(column.type, kind)), value)


def _same_id(seen: object, said: object) -> bool:
    """Whether both are one UUID; some databases keep it without its dashes."""
    if not (isinstance(seen, str) and isinstance(said, str)):
        return False
    try:
        return UUID(seen) == UUID(said)
    except ValueError:
        return False
