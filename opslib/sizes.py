"""Text such as "1GB" or "512 MiB" → bytes, a bare number is refused; and back, as a person says them."""

from __future__ import annotations

import re

from opslib.errors import SettingsError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT])(i?)[bB]?")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_HINT = "Write 512MB, 1GB or 1.5GiB."


def parse(value: str, name: str = "size") -> int:
    """
    Return a size in bytes: GB by thousands, GiB by 1024.

    Args:
        name: What the value is called, for the error.

    Raises:
        SettingsError: If it has no unit, does not parse, or is not above zero.
    """
    found = _SIZE.fullmatch(value.strip())
    if not found:
        raise SettingsError(f"{name}: {value!r} is not a size with a unit.", hint=_HINT)
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])
    if size <= 0:
        raise SettingsError(f"{name}: {value!r} is not above zero.", hint=_HINT)
    return size


def spell(value_bytes: float) -> str:
    """Return bytes as a person says them: "1.5 GiB"."""
    value, unit = float(value_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
