"""Groups of dead letters → a picture of when they failed, by signature: a burst, a trickle, or one bad hour."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from opslib.render.pen import INK, LETTER, QUIET, RIGHT, RULE, WIDTH, Chart, Pen
from opslib.render.words import age, clock, plural, shown

if TYPE_CHECKING:
    from opslib.facts.dead import DeadGroup

#: Groups of one picture; of the smaller ones only their number is said.
MOST = 10
#: By Okabe and Ito, which colour-blind eyes tell apart; the word stands beside each besides.
_COLOURS = {
    "transient": "#0072B2",
    "permanent": "#D55E00",
    "poison": "#1b1f24",
    "bad arguments": "#E69F00",
    "deploy-related": "#CC79A7",
    "expired": "#56B4E9",
}
_UNKNOWN = "#8c959f"

HEAD, NAME, ROOM, FOOT = 30.0, 30.0, 26.0, 34.0
PITCH = 6.0
START = 2.0
#: What a tick may be apart, in seconds.
_STEPS = (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, *(86400 * n for n in (1, 2, 7, 14, 30, 90, 365)))
_MOST_TICKS = 6
#: So few of the letters, the oldest, are left out where the others would be drawn this much larger for it.
_FEW, _LARGER = 0.02, 4.0
_SHORTEST_S = 60.0


def failures(groups: Iterable[DeadGroup], *, taken_at: datetime) -> Chart:
    """
    Draw when the letters of each group failed, the largest group first, each on its own scale.

    Args:
        taken_at: The instant that is now, at the right end.
    """
    rows = [group for group in groups if group.times]
    span = _span(rows[:MOST], taken_at.timestamp())
    return Chart(_draw(rows, span, taken_at), _alt(rows, span, taken_at))


@dataclass(frozen=True, slots=True)
class Span:
    """
    The time that is drawn.

    Attributes:
        older: Letters that failed before it.
    """

    start: float
    end: float
    older: int

    def __call__(self, at: float) -> float:
        """Return where an instant stands."""
        share = (at - self.start) / (self.end - self.start)
        return START + min(max(share, 0.0), 1.0) * (RIGHT - START - PITCH)


def _span(rows: Sequence[DeadGroup], now: float) -> Span:
    times: Counter[float] = Counter()
    for group in rows:
        for at, count in group.times:
            times[at] += count
    if not times:
        return Span(now - _SHORTEST_S, now, 0)
    end, first, few = max(now, *times), min(times), _FEW * times.total()
    older = 0
    for at in sorted(times):
        if older > few:
            break
        if (end - first) / max(end - at, _SHORTEST_S) >= _LARGER:
            return Span(min(at, end - _SHORTEST_S), end, older)
        older += times[at]
    return Span(min(first, end - _SHORTEST_S), end, 0)


def _alt(rows: Sequence[DeadGroup], span: Span, taken_at: datetime) -> str:
    if not rows:
        return "Failures by signature: none of them says when it was."
    said = [f"{group.name} {_words(group)}, {_course(group, taken_at.timestamp())}" for group in rows[:MOST]]
    rest = f"; {_more(rows)}" if len(rows) > MOST else ""
    older = f" {_older(span)}." if span.older else ""
    return f"Failures by signature, within the last {age(span.end - span.start)}: {'; '.join(said)}{rest}.{older}"


def _words(group: DeadGroup) -> str:
    judged = f", {group.judgement}" if group.judgement else ""
    return f"{plural(group.count, 'letter')}{judged}"


def _course(group: DeadGroup, now: float) -> str:
    if group.first_at is None or group.last_at is None:
        return "none says when"
    return f"from {age(max(0.0, now - group.first_at))} to {age(max(0.0, now - group.last_at))} ago"


def _more(rows: Sequence[DeadGroup]) -> str:
    rest = rows[MOST:]
    return f"{plural(len(rest), 'more signature')} with {plural(sum(group.count for group in rest), 'letter')}"


def _older(span: Span) -> str:
    return f"{plural(span.older, 'older letter')} {'are' if span.older != 1 else 'is'} not drawn"


def _draw(rows: Sequence[DeadGroup], span: Span, taken_at: datetime) -> str:
    drawn = rows[:MOST]
    lane = NAME + ROOM + 6.0
    bottom = HEAD + (lane * len(drawn) if drawn else 30.0)
    foot = [_more(rows)] if len(rows) > MOST else []
    foot += [_older(span)] if span.older else []
    pen = Pen(bottom + FOOT + (14.0 if foot else 0.0))
    pen.text(0, 14, "Failures over time, by signature", weight="bold", size=11)
    pen.text(WIDTH, 14, clock(taken_at), colour=QUIET, ha="right")
    if not drawn:
        pen.text(8, HEAD + 16, "No letter says when it failed.", colour=QUIET)
        return pen.svg()
    _axis(pen, span, bottom)
    for at, group in enumerate(drawn):
        _lane(pen, group, span, HEAD + lane * at, lane)
    if foot:
        pen.text(0, bottom + FOOT + 8, "; ".join(foot), colour=QUIET)
    return pen.svg()


def _axis(pen: Pen, span: Span, bottom: float) -> None:
    length = span.end - span.start
    step = next((each for each in _STEPS if length / each <= _MOST_TICKS), length)
    for number in range(int(length / step) + 1):
        x = span(span.end - number * step) + PITCH / 2
        pen.line([x, x], [HEAD, bottom], RULE, 0.6)
        if number and x < 24.0:
            continue
        said = f"{age(number * step)} ago".replace(".0 s", " s") if number else "now"
        pen.text(x, bottom + 13, said, colour=QUIET, size=8.5, ha="center" if number else "right")
    pen.line([0, RIGHT], [bottom, bottom], QUIET, 0.8)


def _lane(pen: Pen, group: DeadGroup, span: Span, top: float, height: float) -> None:
    colour = _COLOURS.get(str(group.judgement), _UNKNOWN)
    said = _words(group)
    pen.bar(0, top + 9, 8, 8, colour, edge="none")
    pen.text(13, top + 17, group.name, weight="bold")
    room = int((WIDTH - 13 - 60 - 14) / LETTER) - len(said)
    pen.text(76, top + 17, _fitting(group.signature, max(room, 12)), colour=INK, size=8.5)
    pen.text(RIGHT, top + 17, said, colour=QUIET, size=8.5, ha="right")
    base, columns = top + height - 4.0, _columns(group, span)
    tallest = max(columns.values(), default=1)
    for column, count in sorted(columns.items()):
        # By the root: one letter beside a thousand has to be seen.
        tall = max(2.0, ROOM * math.sqrt(count / tallest))
        pen.bar(START + column * PITCH + 0.6, base - tall, PITCH - 1.2, tall, colour, edge="none")
    pen.line([0, RIGHT], [base, base], RULE, 0.6)


def _columns(group: DeadGroup, span: Span) -> dict[int, int]:
    found: Counter[int] = Counter()
    for at, count in group.times:
        if at >= span.start:
            found[int((span(at) - START) / PITCH)] += count
    return dict(found)


def _fitting(text: str, longest: int) -> str:
    text = shown(text, 300)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
