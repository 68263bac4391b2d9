"""Tasks that are retried, as rows → a picture of when they come back, and two tables: by name, and one by one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib.durations import spell
from opslib.render import words
from opslib.render.grid import Cell, Column, Table
from opslib.render.pen import INK, LETTER, QUIET, RIGHT, RULE, WIDTH, Chart, Pen
from opslib.render.words import Row, age, plural, row_of, shown

if TYPE_CHECKING:
    from opslib.facts.retries import RetryingTask, TaskRetries

#: Names of one picture; those with fewer tasks are only counted.
MOST = 10


def retries(rows: Iterable[RetryingTask], *, loop_after: int = 10) -> Chart:
    """
    Draw by the name of the task when its attempts come, one dot for each task, or bars where they are many.

    A wall of them at one moment is a storm that strikes all at once; a comb is a loop with a fixed countdown.

    Args:
        loop_after: Retries from which on a task is drawn as a loop.
    """
    lanes = _lanes(rows, loop_after)
    return Chart(_draw(lanes, loop_after), _alt(lanes, loop_after))


# --- what is drawn ---

#: Blue and vermilion by Okabe and Ito, which colour-blind eyes tell apart; loops stand on top besides.
CALM, LOOP = "#0072B2", "#D55E00"


@dataclass(frozen=True, slots=True)
class Point:
    """
    One task.

    Attributes:
        due_in_s: Until its next attempt; 0 for one that may run at once, or runs.
    """

    due_in_s: float
    retries: int
    loops: bool


@dataclass(slots=True)
class Lane:
    """
    The tasks of one name.
    """

    task: str
    cap: int | None = None
    points: list[Point] = field(default_factory=list)

    @property
    def loops(self) -> int:
        """How many of them loop."""
        return sum(point.loops for point in self.points)

    @property
    def words(self) -> str:
        """How many there are, how far they came, and what bounds them."""
        most = max(point.retries for point in self.points)
        bound = f" of {self.cap}" if self.cap is not None else ""
        loops = f", {plural(self.loops, 'loop')}" if self.loops else ""
        return f"{plural(len(self.points), 'task')}{loops}, up to {plural(most, 'retry')}{bound}".replace(
            "retrys", "retries"
        )


def _lanes(rows: Iterable[RetryingTask], loop_after: int) -> list[Lane]:
    """Return the names, the one with the most tasks first."""
    found: dict[str, Lane] = {}
    for row in rows:
        lane = found.setdefault(row.task, Lane(row.task, row.cap))
        due = row.due_in_s if row.due_in_s is not None and math.isfinite(row.due_in_s) else 0.0
        lane.points.append(Point(max(0.0, due), row.retries, row.retries >= loop_after))
    return sorted(found.values(), key=lambda lane: (-len(lane.points), lane.task))


def _alt(lanes: Sequence[Lane], loop_after: int) -> str:
    if not lanes:
        return "Nothing is being retried."
    said = [f"{shown(lane.task, 120)}: {lane.words}, the next {_next(lane)}" for lane in lanes[:MOST]]
    more = f" {plural(len(lanes) - MOST, 'more name')}." if len(lanes) > MOST else ""
    return f"Retried tasks, by their next attempt. {'. '.join(said)}. {loop_after} retries count as a loop.{more}"


def _next(lane: Lane) -> str:
    soonest = min(point.due_in_s for point in lane.points)
    return f"in {age(soonest)}" if soonest > 0 else "at once"


# --- how it is drawn ---

HEAD, NAME, FOOT = 48.0, 26.0, 34.0
DOT, PITCH, TALLEST = 3.0, 6.4, 6
#: What is due now has a column of its own; behind it the axis is logarithmic, from a second on.
NOW, START = 14.0, 46.0
TICKS = (1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400)
TICK_NAMES = ("1 s", "10 s", "1 min", "10 min", "1 h", "6 h", "1 d", "7 d", "30 d", "1 y")


@dataclass(frozen=True, slots=True)
class Scale:
    """
    Seconds until an attempt → places, ends included.
    """

    high_s: float

    def __call__(self, due_in_s: float) -> float:
        """Return where an attempt stands."""
        if due_in_s <= 0:
            return NOW
        share = math.log(min(max(due_in_s, 1.0), self.high_s)) / math.log(self.high_s)
        return START + share * (RIGHT - START - PITCH)


def _draw(lanes: Sequence[Lane], loop_after: int) -> str:
    drawn, rest = lanes[:MOST], lanes[MOST:]
    farthest = max((point.due_in_s for lane in drawn for point in lane.points), default=0.0)
    scale = Scale(float(next((tick for tick in TICKS if tick >= max(60.0, farthest)), TICKS[-1])))
    stacks = [_stacks(lane, scale) for lane in drawn]
    heights = [NAME + _height(columns) for columns in stacks]
    bottom = HEAD + (sum(heights) if drawn else 30.0)
    pen = Pen(bottom + FOOT + (14.0 if rest else 0.0))
    pen.text(0, 14, "Retried tasks, by their next attempt", weight="bold", size=11)
    if not drawn:
        pen.text(8, HEAD + 8, "Nothing is being retried.", colour=QUIET)
        return pen.svg()
    _legend(pen, loop_after)
    _axis(pen, scale, bottom)
    top = HEAD
    for lane, columns, height in zip(drawn, stacks, heights, strict=True):
        _lane(pen, lane, columns, top, height)
        top += height
    if rest:
        tasks = plural(sum(len(lane.points) for lane in rest), "task")
        pen.text(0, bottom + FOOT + 6, f"{plural(len(rest), 'more name')} with {tasks}", colour=QUIET)
    return pen.svg()


def _legend(pen: Pen, loop_after: int) -> None:
    pen.bar(0, 26, 9, 9, CALM, edge="none")
    pen.text(13, 34, "retried", colour=QUIET, size=8.5)
    pen.bar(62, 26, 9, 9, LOOP, edge=INK)
    pen.text(75, 34, f"{loop_after} times or more", colour=QUIET, size=8.5)


def _axis(pen: Pen, scale: Scale, bottom: float) -> None:
    for tick, name in zip(TICKS, TICK_NAMES, strict=True):
        if tick <= scale.high_s:
            pen.line([scale(tick)] * 2, [HEAD, bottom], RULE, 0.6)
            pen.text(scale(tick), bottom + 13, name, colour=QUIET, ha="right" if tick == scale.high_s else "center")
    pen.line([START, RIGHT], [bottom, bottom], QUIET, 0.8)
    pen.line([NOW - 12, NOW + 12], [bottom, bottom], QUIET, 0.8)
    pen.text(NOW, bottom + 13, "now", colour=QUIET, ha="center")
    pen.text(START, bottom + 26, "until the next attempt", colour=QUIET, size=8)


def _lane(pen: Pen, lane: Lane, columns: Mapping[int, tuple[int, int]], top: float, height: float) -> None:
    said = lane.words
    room = int((WIDTH - 8) / LETTER) - len(said) - 3
    pen.text(0, top + 13, _tail(shown(lane.task or "(unknown)", 200), max(room, 12)), weight="bold")
    pen.text(RIGHT, top + 13, said, colour=QUIET, size=8.5, ha="right")
    pen.line([0, RIGHT], [top + height] * 2, RULE, 0.6)
    base, tallest = top + height - 4.0, max(map(sum, columns.values()))
    if tallest <= TALLEST:
        for loops in (False, True):
            places = list(_dots(columns, base, loops=loops))
            colour, edge = (LOOP, INK) if loops else (CALM, "none")
            pen.dots([x for x, _ in places], [y for _, y in places], colour, DOT, edge=edge)
        return
    for column, (calm, loops_there) in sorted(columns.items()):
        full = TALLEST * PITCH * (calm + loops_there) / tallest
        tall = max(1.5, full)
        low = tall * calm / (calm + loops_there)
        x = column * PITCH
        if calm:
            pen.bar(x + 0.6, base - low, PITCH - 1.2, low, CALM, edge="none")
        if loops_there:
            pen.bar(x + 0.6, base - tall, PITCH - 1.2, tall - low, LOOP, edge=INK)
    _peak(pen, columns, tallest, base)


def _peak(pen: Pen, columns: Mapping[int, tuple[int, int]], tallest: int, base: float) -> None:
    peak = min(column for column, pair in columns.items() if sum(pair) == tallest)
    right = peak * PITCH < WIDTH / 2
    x = (peak + (1.5 if right else -0.5)) * PITCH
    said = f"{tallest:,} at about this moment"
    pen.text(x, base - TALLEST * PITCH + 6, said, colour=QUIET, size=8, ha="left" if right else "right")


def _dots(columns: Mapping[int, tuple[int, int]], base: float, *, loops: bool) -> Iterator[tuple[float, float]]:
    for column, (calm, loop) in sorted(columns.items()):
        for at in range(calm, calm + loop) if loops else range(calm):
            yield (column + 0.5) * PITCH, base - (at + 0.5) * PITCH


def _stacks(lane: Lane, scale: Scale) -> dict[int, tuple[int, int]]:
    """Return tasks by column: those that do not loop, those that do."""
    columns: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for point in lane.points:
        columns[int(scale(point.due_in_s) / PITCH)][point.loops] += 1
    return {column: (calm, loops) for column, (calm, loops) in columns.items()}


def _height(columns: Mapping[int, tuple[int, int]]) -> float:
    return min(max(map(sum, columns.values())), TALLEST) * PITCH + 4.0


def _tail(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"…{name[-longest + 1 :]}"


# --- tables ---


def names(rows: Iterable[TaskRetries | Row]) -> Table:
    """Return what is retried by the name of the task."""
    seen = list(map(row_of, rows))
    least = "≥ is the least that it can be: what two looks saw of it, where no node told of its retries."
    return Table(
        title="Retries, by task",
        columns=(
            Column("Task", "code"),
            Column("Retried now", "number"),
            Column("Most retries", "number"),
            Column("Per minute", "number"),
            Column("Next attempt", "number"),
            Column("After"),
        ),
        rows=[_name(row) for row in seen],
        caption=least if any(row["told_by"] == _LOOKS for row in seen) else "",
        empty="Nothing is being retried.",
        limit=30,
        stack=True,
    )


_LOOKS = "two looks"


def _name(row: Row) -> tuple[object, ...]:
    errors = [f"{shown(error, 160)} ({words.count(count)})" for error, count in list(row["errors"].items())[:3]]
    more = [f"{len(row['errors']) - 3} more"] if len(row["errors"]) > 3 else []
    return (
        Cell(row["task"], ", ".join(row["queues"][:5])),
        row["count"],
        Cell(row["most"] or "unknown", _bound(row)),
        _per_minute(row),
        _due(row["next_in_s"]) if row["count"] else "",
        "; ".join([*errors, *more]) or "nothing tells",
    )


def _per_minute(row: Row) -> str:
    if row["per_minute"] is None:
        return "not watched"
    return f"{'≥ ' * (row['told_by'] == _LOOKS)}{row['per_minute']:,.0f}"


def _bound(row: Row) -> str:
    if row["cap"] is not None:
        return f"of {words.count(row['cap'])}"
    return "no end" if row["endless"] else "end unknown"


def tasks(rows: Iterable[RetryingTask | Row]) -> Table:
    """Return the tasks that are retried, the most retried first."""
    return Table(
        title="Retried tasks",
        columns=(
            Column("Task", "code"),
            Column("Retries", "number"),
            Column("Next attempt", "number"),
            Column("Where"),
            Column("Queue"),
            Column("After"),
        ),
        rows=[
            (
                Cell(row["task"], str(row["task_id"])),
                row["retries"] if row["cap"] is None else f"{row['retries']:,} of {row['cap']:,}",
                "runs now" if row["place"] == "active" else _due(row["due_in_s"]),
                Cell(row["place"], row["node"]),
                row["queue"],
                row["error"],
            )
            for row in map(row_of, rows)
        ],
        empty="Nothing is being retried.",
        stack=True,
    )


def _due(due_in_s: float | None) -> str:
    if due_in_s is None or due_in_s <= 0:
        return "at once" if due_in_s is None or due_in_s > -1 else f"{spell(-due_in_s)} late"
    return f"in {spell(due_in_s)}"
