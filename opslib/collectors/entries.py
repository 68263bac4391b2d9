"""What a schedule says of one entry → how often in words, where its tasks wait, and the call as it is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opslib.durations import spell
from opslib.facts.beat import CONFIGURATION, ScheduleEntry

#: Entries that are read; a schedule of more is told of as not wholly seen.
MOST = 5_000
LARGEST = 256 * 1024
#: What an entry calls its task with.
_CALL: tuple[tuple[str, type], ...] = (("args", list), ("kwargs", dict), ("options", dict))
#: How a node spells a length of time: 0:02:00, or 1 day, 0:00:00.
_CLOCK = re.compile(r"(?:\d+ days?, )?\d+:\d\d:\d\d(?:\.\d+)?")


def call(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry calls its task with, whatever it leaves out."""
    return {each: said.get(each) or kind() for each, kind in _CALL}


def aimed(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry's call says of where its tasks wait, and the call as it is kept."""
    options = call["options"]
    return {
        "queue": str(options.get("queue") or ""),
        "priority": whole(options.get("priority")) or 0,
        "call": json.dumps(call),
    }


def configured(schedule: Mapping[str, Any]) -> Iterator[ScheduleEntry]:
    """Yield the entries that the nodes' configuration has; when they last ran, it does not say."""
    for name, said in sorted(schedule.items()):
        row = ScheduleEntry(name=name, source=CONFIGURATION)
        try:
            yield replace(row, task=str(said["task"]), when=every(said["schedule"]), **aimed(call(said)))
        except (KeyError, TypeError, AttributeError, ValueError):
            yield replace(row, problem="The nodes' configuration does not tell what it does.")


def every(schedule: object) -> str:
    """Return how often, in words: of seconds, of a crontab, of what a node spells for people."""
    if isinstance(schedule, (int, float)):
        return f"every {spell(float(schedule))}"
    if isinstance(schedule, dict):
        kind = schedule.get("__type__")
        if kind == "interval":
            return f"every {spell(float(schedule['every']))}"
        if kind == "crontab":
            fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
            return f"crontab {' '.join(str(schedule[each]) for each in fields)}"
        return str(kind or "")
    text = (
        str(schedule).removeprefix("<").removesuffix(">").replace(" (m/h/dM/MY/d)", "").replace("crontab:", "crontab")
    )
    return f"every {text}" if _CLOCK.fullmatch(text) else text


def whole(value: object) -> int | None:
    """Return a whole number, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
