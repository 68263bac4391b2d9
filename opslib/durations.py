"""Text such as "3h", "1h30m", "90 s" or "PT2H" → seconds, a bare number is refused; "10/m" → how many a second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isfinite, nan

import msgspec
from pytimeparse import parse

from opslib.errors import BadParameter, SettingsError

#: Beyond this no clock can be counted forward or back.
LONGEST_S = 100 * 365 * 86400.0
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(value: str, name: str = "duration") -> float:
    """
    Return a duration in seconds.

    Args:
        name: What the value is called, for the error.

    Raises:
        SettingsError: If it has no unit, does not parse, or is not above zero.
    """
    text = value.strip()
    if text.replace(".", "", 1).isdigit():
        raise SettingsError(f"{name}: {text!r} has no unit.", hint=f"Write {text}s, {text}m, {text}h or {text}d.")
    found = _parsed(text)
    if not found or found <= 0:
        raise SettingsError(f"{name}: {value!r} is not a duration above zero.", hint="Write 90s, 15m, 3h, 1h30m or 2d.")
    if found > LONGEST_S:
        raise SettingsError(f"{name}: {value!r} is longer than a century.", hint="Write 90s, 15m, 3h, 1h30m or 2d.")
    return found


def _parsed(text: str) -> float | None:
    try:
        if text[:1] in {"P", "p"}:
            return msgspec.convert(text, timedelta).total_seconds()
        found = parse(text)
        return None if found is None else float(found)
    except (msgspec.ValidationError, OverflowError):
        return None


def moment(text: str, name: str) -> datetime:
    """
    Return an instant that a person writes in ISO 8601, in UTC.

    Raises:
        BadParameter: If it is none, or has no time zone: an hour's difference would not be seen.
    """
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            raise BadParameter(f"{name}: {text} has no time zone.", hint="Write 2026-11-21T18:00:00Z or …+01:00.")
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadParameter(f"{name}: {text!r} is no instant.", hint="Write 2026-11-21T18:00:00+01:00.") from None


def after(start: datetime, length_s: float) -> datetime:
    """Return the instant so many seconds after another."""
    return start + timedelta(seconds=length_s)


def spell(value_s: float | None) -> str:
    """Return seconds as a person says them, two units at most: "3 h 12 min"; "unknown" for None or infinity."""
    if value_s is None or not isfinite(value_s):
        return "unknown"
    rest, words = max(0.0, value_s), []
    if rest < 10:
        return f"{rest:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, rest = divmod(rest, size)
        if amount:
            words.append(f"{int(amount)} {unit}")
        if len(words) == 2 or (words and not amount):
            break
    return " ".join(words[:2])


def rate(text: str) -> str:
    """
    Return a rate limit as a node is told it, "10/m"; empty for none: "none", "0", "0/m".

    Raises:
        ValueError: If it is none. Neither is nothing at all: a limit is not taken away by leaving something out.
    """
    wanted = text.strip()
    if wanted == "none":
        return ""
    if not wanted:
        raise ValueError("nothing is no rate")
    return wanted if pace(wanted) else ""


def pace(text: str) -> float:
    """
    Return how many a second a rate such as "10/m" allows, as Celery reads it; 0 for no limit.

    Raises:
        ValueError: If it is none.
    """
    number, _, unit = (text.strip() or "0").partition("/")
    try:
        per_s = float(number) / _UNITS_S.get(unit or "s", nan)
    except ValueError:
        per_s = nan
    if not isfinite(per_s) or per_s < 0:
        raise ValueError(f"{text!r} is no rate")
    return per_s
