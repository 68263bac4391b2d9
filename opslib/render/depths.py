"""A snapshot, and the rates of its queues → two pictures: what waits where, and when it will be gone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opslib.render.pen import ALARM, INK, LEFT, LETTER, QUIET, RIGHT, RULE, WIDTH, Chart, Pen
from opslib.render.words import age, clock, plural, shown

if TYPE_CHECKING:
    from opslib.facts.rates import Rate
    from opslib.facts.snapshot import Snapshot
    from opslib.facts.system import QueueInfo

#: Queues of one picture; those that hold less are only counted.
MOST = 12
#: How far a forecast may go, in minutes, and into how many parts its axis falls; nothing that was watched for
#: seconds tells more than an hour.
HORIZONS = {1: 4, 5: 5, 15: 3, 60: 4}


def depths(snapshot: Snapshot, *, queue_depth: int = 0) -> Chart:
    """
    Draw what waits by queue and priority, what is served first in the darkest colour.

    Args:
        queue_depth: Messages that may wait in a queue, as a line; 0 for no line.
    """
    filled = sorted((row for row in snapshot.queues if row.depth > 0), key=lambda row: (-row.depth, row.name))
    silent = bool(snapshot.silent_nodes)
    return Chart(
        _bars(filled, queue_depth, clock(snapshot.taken_at), silent=silent), _told_of_depths(filled, silent=silent)
    )


def forecast(rates: Iterable[Rate]) -> Chart:
    """
    Draw what is to be expected of each queue if all goes on as it was watched, each on its own scale.

    For an hour, or until what drains is empty. The band around a line is what chance alone may make of it: a few
    seconds tell little of an hour.
    """
    known = sorted((row for row in rates if row.depth > 0 or row.grows), key=lambda row: (-row.depth, row.queue))
    return Chart(_lanes(known), _told_of_forecast(known))


# --- depths ---

#: From the most urgent to the least; one hue, so that they tell apart without colours too.
_DARKEST, _LIGHTEST = (8, 62, 112), (190, 215, 238)
_LAST = 9
HEAD, ROW, BAR = 52.0, 42.0, 13.0
#: Where bars end, so that their figure has room behind them.
FULL = RIGHT - 64.0


def shade(priority: int) -> str:
    """Return the colour of a priority."""
    share = min(max(priority, 0), _LAST) / _LAST
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_DARKEST, _LIGHTEST, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _bars(rows: Sequence[QueueInfo], limit: int, when: str, *, silent: bool) -> str:
    drawn, rest = rows[:MOST], rows[MOST:]
    bottom = HEAD + (ROW * len(drawn) if drawn else 30.0)
    pen = Pen(bottom + (44.0 if rest else 28.0))
    pen.text(0, 14, "Messages waiting, by queue and priority", weight="bold", size=11)
    pen.text(WIDTH, 14, when, colour=QUIET, ha="right")
    if not drawn:
        pen.text(LEFT + 8, HEAD + 8, "Nothing waits.", colour=QUIET)
        return pen.svg()
    _legend(pen, sorted({step for row in drawn for step, n in row.by_priority.items() if n}))
    _scale(pen, max(row.depth for row in drawn), limit, bottom)
    for at, row in enumerate(drawn):
        _bar(pen, row, HEAD + ROW * at, max(row.depth for row in drawn), silent=silent)
    if rest:
        more = f"{plural(len(rest), 'more queue')} with {plural(sum(row.depth for row in rest), 'message')}"
        pen.text(0, bottom + 34, more, colour=QUIET)
    return pen.svg()


def _legend(pen: Pen, steps: Sequence[int]) -> None:
    x = LEFT
    for at, step in enumerate(steps):
        said = f"priority {step}" if not at else str(step)
        if len(steps) > 1 and at in {0, len(steps) - 1}:
            said += ", served first" if not at else ", served last"
        pen.bar(x, 26, 9, 9, shade(step), edge="none")
        pen.text(x + 13, 34, said, colour=QUIET, size=8.5)
        x += 13 + 4.7 * len(said) + 14


def _scale(pen: Pen, most: int, limit: int, bottom: float) -> None:
    for tick in _ticks(most):
        x = _at(tick, most)
        pen.line([x, x], [HEAD - 4, bottom], RULE, 0.6)
        pen.text(x, bottom + 12, f"{tick:,}", colour=QUIET, ha="center", size=8.5)
    pen.line([LEFT, FULL], [bottom, bottom], QUIET, 0.8)
    # A limit that would lie in the axis, or beyond the longest bar, has nothing to say.
    if limit <= most and _at(limit, most) >= LEFT + 8:
        x = _at(limit, most)
        pen.line([x, x], [HEAD - 4, bottom], INK, 0.9, dashes=(0, (4, 3)))
        right = x > (LEFT + FULL) / 2
        pen.text(x - 4 if right else x + 4, HEAD - 1, f"{limit:,} may wait", size=8, ha="right" if right else "left")


def _ticks(most: int) -> list[int]:
    """Return round figures from 0 up, five at most."""
    step = next(figure * 10**power for power in range(20) for figure in (1, 2, 5) if most // (figure * 10**power) <= 4)
    return list(range(0, most + 1, step))


def _at(count: float, most: int) -> float:
    return LEFT + (FULL - LEFT) * min(1.0, count / max(1, most))


def _bar(pen: Pen, row: QueueInfo, top: float, most: int, *, silent: bool) -> None:
    pen.text(0, top + 15, _fitting(row.name), weight="bold")
    words, alarming = _consumed(row, silent=silent)
    pen.text(0, top + 28, words, colour=ALARM if alarming else QUIET, size=8.5)
    x, end = LEFT, _at(row.depth, most)
    split = {step: n for step, n in sorted(row.by_priority.items()) if n} or {0: row.depth}
    for step, n in split.items():
        # The last one ends where the whole does; rounding must not make a bar longer than its figure.
        width = min(end - x, (end - LEFT) * n / max(1, row.depth)) if step != max(split) else end - x
        pen.bar(x, top + 6, max(width, 0.8), BAR, shade(step), edge="#ffffff" if width > 4 else "none")
        x += width
    pen.text(max(end, LEFT + 2) + 6, top + 16, f"{row.depth:,}", weight="bold")
    if len(split) > 1:
        pen.text(LEFT + 1, top + 30, _split(split), colour=QUIET, size=8)


def _consumed(row: QueueInfo, *, silent: bool) -> tuple[str, bool]:
    if row.consumers:
        return plural(len(row.consumers), "consumer"), False
    return ("no consumer seen", False) if silent else ("nobody consumes it", True)


def _split(split: Mapping[int, int]) -> str:
    return ", ".join(f"{step}: {n:,}" for step, n in split.items() if n)


def _told_of_depths(rows: Sequence[QueueInfo], *, silent: bool) -> str:
    if not rows:
        return "Messages waiting, by queue and priority: none."
    told = [
        f"{shown(row.name, 40)} {row.depth:,} ({_split(row.by_priority)}; {_consumed(row, silent=silent)[0]})"
        for row in rows[:MOST]
    ]
    rest = rows[MOST:]
    more = (
        f"; {plural(len(rest), 'more queue')} with {plural(sum(row.depth for row in rest), 'message')}" if rest else ""
    )
    return f"Messages waiting, by queue and priority (0 is served first): {'; '.join(told)}{more}."


# --- forecast ---

LANE = 56.0
#: Line and band by what is to be expected; Okabe and Ito's blue and vermilion, safe for colour-blind eyes.
_DRAINS, _GROWS, _UNCLEAR = ("#0072B2", "#d3e5f3"), ("#D55E00", "#fadfcb"), ("#57606a", "#e9ebee")


@dataclass(frozen=True, slots=True)
class _Course:
    """
    What is to be expected of one queue.

    Attributes:
        minutes: The instants at which it bends.

        low, middle, high: Messages at each of them.
    """

    minutes: Sequence[float]
    low: Sequence[float]
    middle: Sequence[float]
    high: Sequence[float]

    @property
    def top(self) -> float:
        """The most that is drawn."""
        return max(*self.high, *self.middle, 1.0)


def _course(rate: Rate, horizon: float) -> _Course:
    slope, doubt = (rate.growth_per_min, rate.doubt_per_min) if rate.watched_s else (0.0, 0.0)
    slopes = (slope - doubt, slope, slope + doubt)
    bends = {rate.depth / -each for each in slopes if each < 0}
    minutes = sorted({0.0, horizon, *(bend for bend in bends if bend < horizon)})
    low, middle, high = ([max(0.0, rate.depth + each * t) for t in minutes] for each in slopes)
    return _Course(minutes, low, middle, high)


def _horizon(rows: Iterable[Rate]) -> int:
    """Return the minutes after which what drains is empty, even if that takes half as long again; an hour at most."""
    ends = [1.5 * row.empty_in_s / 60 for row in rows if row.drains and row.empty_in_s is not None]
    return next((each for each in HORIZONS if ends and each >= max(ends)), max(HORIZONS))


def _lanes(rows: Sequence[Rate]) -> str:
    drawn, rest = rows[:MOST], rows[MOST:]
    bottom = HEAD - 18 + (LANE * len(drawn) if drawn else 30.0)
    pen = Pen(bottom + (58.0 if rest else 44.0))
    horizon = _horizon(drawn)
    pen.text(0, 14, _title(horizon), weight="bold", size=11)
    if not drawn:
        pen.text(LEFT + 8, HEAD - 4, "Nothing waits, and nothing grows.", colour=QUIET)
        return pen.svg()
    parts = HORIZONS[horizon]
    for at in range(parts + 1):
        x = LEFT + (RIGHT - LEFT) * at / parts
        pen.line([x, x], [HEAD - 18, bottom], RULE, 0.6)
        said = age(horizon * 60 * at / parts) if at else "now"
        pen.text(x, bottom + 13, said, colour=QUIET, ha="right" if at == parts else "center", size=8.5)
    for at, row in enumerate(drawn):
        _lane(pen, row, HEAD - 18 + LANE * at, horizon)
    pen.text(LEFT, bottom + 29, _footnote(drawn), colour=QUIET, size=8)
    if rest:
        pen.text(0, bottom + 46, f"{plural(len(rest), 'more queue')}, less deep", colour=QUIET)
    return pen.svg()


def _footnote(rows: Sequence[Rate]) -> str:
    longest = max(row.watched_s for row in rows)
    if not longest:
        return "nobody watched how fast they move"
    return f"if all goes on as in the {age(longest)} that were watched; shaded: what chance may make of it"


def _title(horizon: int) -> str:
    return f"What to expect within {age(horizon * 60)}"


def _lane(pen: Pen, rate: Rate, top: float, horizon: int) -> None:
    base, room = top + LANE - 6, LANE - 26
    colour, band = _GROWS if rate.grows else _DRAINS if rate.drains else _UNCLEAR
    course = _course(rate, horizon)
    # What neither grows nor drains clearly runs through the middle, so that its band has room on both sides.
    full = course.top if rate.grows or rate.drains else max(course.top, 2.0 * rate.depth)

    def height(counts: Sequence[float]) -> list[float]:
        return [base - room * min(1.0, count / full) for count in counts]

    xs = [LEFT + (RIGHT - LEFT) * each / horizon for each in course.minutes]
    pen.text(0, top + 20, _fitting(rate.queue), weight="bold")
    pen.text(0, top + 33, f"{rate.depth:,} now", colour=QUIET, size=8.5)
    if rate.watched_s:
        pen.area(xs, height(course.low), height(course.high), band)
    pen.line([LEFT, RIGHT], [base, base], RULE, 0.6)
    # A queue that is empty stays so in this picture, and needs no line any more.
    shown_until = next((at for at, count in enumerate(course.middle) if not count), len(xs)) + 1
    dashes = "-" if rate.grows or rate.drains else (0, (4, 3))
    pen.line(xs[:shown_until], height(course.middle)[:shown_until], colour, 1.8, dashes=dashes)
    pen.dots([LEFT], height([float(rate.depth)]), colour, 3.2, edge="#ffffff")
    if rate.drains and rate.empty_in_s is not None and rate.empty_in_s <= horizon * 60:
        pen.dots([LEFT + (RIGHT - LEFT) * rate.empty_in_s / 60 / horizon], [base], colour, 3.2, edge="#ffffff")
    right = rate.drains  # a draining line leaves the right side free, any other the left
    pen.text(
        RIGHT - 2 if right else LEFT + 8,
        top + 13,
        _said(rate, horizon),
        colour=ALARM if rate.grows else INK,
        size=8.5,
        ha="right" if right else "left",
    )


def _said(rate: Rate, horizon: int) -> str:
    if not rate.watched_s:
        return "nobody watched how fast it moves"
    if rate.grows:
        return f"{rate.outlook}, to about {rate.depth + rate.growth_per_min * horizon:,.0f} in {age(horizon * 60)}"
    return f"{rate.outlook}{_between(rate)}"


def _between(rate: Rate) -> str:
    """Say the earliest and the latest that a draining queue is empty, where chance makes them differ by much."""
    if not rate.drains or not rate.doubt_per_min:
        return ""
    fast, slow = rate.growth_per_min - rate.doubt_per_min, rate.growth_per_min + rate.doubt_per_min
    latest = age(rate.depth * 60 / -slow) if slow < 0 and math.isfinite(rate.depth / slow) else "never"
    return f", between {age(rate.depth * 60 / -fast)} and {latest}"


def _told_of_forecast(rows: Sequence[Rate]) -> str:
    if not rows:
        return "What to expect: nothing waits, and nothing grows."
    horizon = _horizon(rows[:MOST])
    told = [f"{shown(row.queue, 40)} ({row.depth:,} now): {_said(row, horizon)}" for row in rows[:MOST]]
    return f"{_title(horizon)}, {_footnote(rows)}. {'; '.join(told)}."


def _fitting(name: str) -> str:
    """Return a queue's name as it fits beside the bars; the end of a name tells more than its beginning."""
    text, longest = shown(name, 200), int((LEFT - 10) / LETTER)
    return text if len(text) <= longest else f"…{text[-longest + 1 :].lstrip('. ')}"
