"""A condition and a deadline → its value once it is true; a sleep would be too short or too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE_S = 0.02


def until(condition: Callable[[], T], deadline_s: float, what: str) -> T:
    """
    Return the condition's first value that counts as true.

    Raises:
        AssertionError: If there is none within `deadline_s`; says `what` was waited for.
    """
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain until {what}"
        time.sleep(_PAUSE_S)
    return value
