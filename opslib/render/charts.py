"""A snapshot → one picture of every task in flight by age and place; the same facts make the same bytes of SVG."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opslib.render.pen import INK, LEFT, LETTER, QUIET, RIGHT, RULE, WIDTH, Chart, Pen
from opslib.render.words import age, clock, plural, shown

if TYPE_CHECKING:
    from opslib.facts.snapshot import Snapshot
    from opslib.facts.system import HeldTask


def ages(snapshot: Snapshot, *, stuck_after_s: float) -> Chart:
    """
    Draw every task in flight by its age and place.

    A task is drawn once, where it is: running, reserved, scheduled, or delivered and held by no node that answered.
    Age counts from delivery, of a running task from its start; waiting messages have none, Redis keeps no date of them.
    A task is named in the picture if no node holds it, if it runs for longer than `stuck_after_s`, or if its ETA lies
    beyond the visibility timeout, so that it will be delivered again before it starts.
    """
    lanes = _lanes(snapshot, stuck_after_s)
    limits = [
        Limit(stuck_after_s, f"stuck after {age(stuck_after_s)}"),
        Limit(snapshot.visibility_timeout_s, f"visibility timeout {age(snapshot.visibility_timeout_s)}"),
    ]
    known = [limit for limit in limits if math.isfinite(limit.at_s) and limit.at_s > 0]
    return Chart(
        _draw(lanes, known, _waiting(snapshot), clock(snapshot.taken_at)), _alt(lanes, snapshot, stuck_after_s)
    )


# --- what is drawn ---

#: Lanes from the top, the most alarming first; colours by Okabe and Ito, safe for colour-blind eyes.
COLOURS = {"ownerless": "#D55E00", "active": "#0072B2", "reserved": "#56B4E9", "scheduled": "#009E73"}
NAMES = {"ownerless": "held by no node", "active": "running", "reserved": "reserved", "scheduled": "scheduled"}
#: Tasks named in one picture; more would hide what they name.
NAMED = 8


@dataclass(frozen=True, slots=True)
class Point:
    """
    One task.

    Attributes:
        due_s: The age that it will have at its ETA; None without one.

        alarming: Whether it stands out.
    """

    task: str
    task_id: str
    age_s: float
    due_s: float | None = None
    alarming: bool = False

    @property
    def label(self) -> str:
        """Its id, shortened, and its age; with the ETA where it has one."""
        due = f", due at {age(self.due_s)}" if self.due_s is not None else ""
        return f"{shown(self.task_id)[:8]} · {age(self.age_s)}{due}"


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A vertical line.
    """

    at_s: float
    text: str


@dataclass(slots=True)
class Lane:
    """
    The tasks of one place, the oldest first.

    Attributes:
        title: What stands beside it.

        named: Those that get a line of their own, with their name.

        undated: How many have no known age and are not drawn.
    """

    place: str
    title: str
    points: list[Point] = field(default_factory=list)
    named: list[Point] = field(default_factory=list)
    undated: int = 0

    @property
    def size(self) -> int:
        """How many tasks it has, drawn or not."""
        return len(self.points) + self.undated

    @property
    def crowd(self) -> list[Point]:
        """The tasks without a line of their own."""
        named = set(map(id, self.named))
        return [point for point in self.points if id(point) not in named]


def _lanes(snapshot: Snapshot, stuck_after_s: float) -> list[Lane]:
    # A node that did not answer may hold what nobody else does: then nothing is called ownerless.
    names = {**NAMES, "ownerless": "held by none seen"} if snapshot.silent_nodes else NAMES
    lanes = {place: Lane(place, names[place]) for place in COLOURS}
    now, delivered = snapshot.taken_at.timestamp(), {row.task_id: row.delivered_at for row in snapshot.unacked}
    for task in snapshot.held:
        lane = lanes.get(task.place, lanes["reserved"])
        _add(lane, _held_point(task, delivered.get(task.task_id), now, stuck_after_s, snapshot.visibility_timeout_s))
    held = {task.task_id for task in snapshot.held}
    for message in snapshot.unacked:
        if message.task_id not in held:
            _add(
                lanes["ownerless"],
                _point(message.task, message.task_id, _since(message.delivered_at, now), alarming=True),
            )
    for lane in lanes.values():
        lane.points.sort(key=lambda point: (-point.age_s, point.task, point.task_id))
    _name(lanes.values())
    return [lane for lane in lanes.values() if lane.size]


def _held_point(
    task: HeldTask, delivered_at: float | None, now: float, stuck_after_s: float, visibility_s: float
) -> Point | None:
    start = task.started_at if task.place == "active" and task.started_at is not None else delivered_at
    age_s, due_s = _since(start, now), None
    if task.place == "scheduled" and age_s is not None and task.eta_at is not None and math.isfinite(task.eta_at):
        due_s = max(age_s, age_s + task.eta_at - now)
    alarming = (due_s or 0.0) > visibility_s or (task.place == "active" and age_s is not None and age_s > stuck_after_s)
    return _point(task.task, task.task_id, age_s, due_s=due_s, alarming=alarming)


def _since(at: float | None, now: float) -> float | None:
    return now - at if at is not None and math.isfinite(at) else None


def _point(task: str, task_id: str, age_s: float | None, *, due_s: float | None = None, alarming: bool) -> Point | None:
    return None if age_s is None else Point(task, task_id, age_s, due_s, alarming)


def _add(lane: Lane, point: Point | None) -> None:
    if point is None:
        lane.undated += 1
    else:
        lane.points.append(point)


def _name(lanes: Iterable[Lane]) -> None:
    """Share the names out lane by lane in turn, so that a thousand ownerless messages do not hide one stuck task."""
    queues = [(lane, iter([point for point in lane.points if point.alarming])) for lane in lanes]
    left = NAMED
    while left and queues:
        for lane, points in list(queues):
            point = next(points, None)
            if point is None:
                queues.remove((lane, points))
            elif left:
                lane.named.append(point)
                left -= 1


def _waiting(snapshot: Snapshot) -> str:
    depths = Counter({queue.name: queue.depth for queue in snapshot.queues if queue.depth > 0})
    if not depths:
        return "none"
    most = ", ".join(f"{shown(name, 40)} {depth:,}" for name, depth in depths.most_common(4))
    more = f", {plural(len(depths) - 4, 'more queue')}" if len(depths) > 4 else ""
    return f"{depths.total():,} ({most}{more}); Redis does not record since when"


def _alt(lanes: Sequence[Lane], snapshot: Snapshot, stuck_after_s: float) -> str:
    parts = [f"{lane.size:,} {lane.title}{_oldest(lane)}" for lane in lanes] or ["none"]
    alarming = sum(point.alarming for lane in lanes for point in lane.points)
    stand_out = (
        f" {plural(alarming, 'task')} stand{'s' * (alarming == 1)} out; stuck means longer than {age(stuck_after_s)}."
    )
    return f"Tasks in flight, by age: {', '.join(parts)}.{stand_out if lanes else ''} Waiting: {_waiting(snapshot)}."


def _oldest(lane: Lane) -> str:
    return f" (the oldest for {age(lane.points[0].age_s)})" if lane.points else " (of unknown age)"


# --- how it is drawn ---

HEAD, LANE, ROW, FOOT = 54.0, 38.0, 15.0, 40.0
DOT, PITCH, TALLEST = 3.0, 6.4, 6
TICKS = (1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400, 3650 * 86400)
TICK_NAMES = ("1 s", "10 s", "1 min", "10 min", "1 h", "6 h", "1 d", "7 d", "30 d", "1 y", "10 y")


@dataclass(frozen=True, slots=True)
class Scale:
    """
    Ages → places on a logarithmic axis, ends included.
    """

    low_s: float
    high_s: float

    def __call__(self, age_s: float) -> float:
        """Return where an age stands."""
        within = min(max(age_s, self.low_s), self.high_s)
        share = math.log(within / self.low_s) / math.log(self.high_s / self.low_s)
        return LEFT + share * (RIGHT - LEFT)


def _scale(lanes: Sequence[Lane], limits: Sequence[Limit]) -> Scale:
    """Choose the ends so that every age, every ETA and every limit lies within, with air on both sides."""
    seen = [
        value for lane in lanes for point in lane.points for value in (point.age_s, point.due_s) if value is not None
    ]
    seen += [limit.at_s for limit in limits]
    inside = [min(max(value, 1.0), float(TICKS[-1])) for value in seen] or [1.0, 3600.0]
    low = max((tick for tick in TICKS if tick <= min(inside) / 1.2), default=1)
    return Scale(float(low), max(max(inside) * 2.0, low * 100.0))


def _draw(lanes: Sequence[Lane], limits: Sequence[Limit], waiting: str, when: str) -> str:
    scale = _scale(lanes, limits)
    strips = [_strip(lane, scale) for lane in lanes]
    heights = [
        max(LANE, strip.height + sum(map(_row, lane.named)) + 14.0) for lane, strip in zip(lanes, strips, strict=True)
    ]
    bottom = HEAD + (sum(heights) if lanes else 30.0)
    pen = Pen(bottom + FOOT + 22.0)
    pen.text(0, 14, "Tasks in flight, by age", weight="bold", size=11)
    pen.text(WIDTH, 14, when, colour=QUIET, ha="right")
    _axis(pen, scale, limits, bottom, due=any(point.due_s is not None for lane in lanes for point in lane.named))
    top = HEAD
    for lane, strip, height in zip(lanes, strips, heights, strict=True):
        _lane(pen, lane, strip, scale, top, height)
        top += height
    if not lanes:
        pen.text(LEFT + 8, HEAD + 18, "Nothing is in flight.", colour=QUIET)
    pen.text(0, bottom + FOOT + 10, "waiting", weight="bold")
    pen.text(LEFT, bottom + FOOT + 10, waiting, colour=QUIET)
    return pen.svg()


def _axis(pen: Pen, scale: Scale, limits: Sequence[Limit], bottom: float, *, due: bool) -> None:
    for tick, name in zip(TICKS, TICK_NAMES, strict=True):
        if scale.low_s <= tick <= scale.high_s:
            pen.line([scale(tick)] * 2, [HEAD, bottom], RULE, 0.6)
            pen.text(scale(tick), bottom + 13, name, colour=QUIET, ha="center")
    pen.line([LEFT, RIGHT], [bottom, bottom], QUIET, 0.8)
    legend = "; a line ends where its ETA is" if due else ""
    pen.text(LEFT, bottom + 27, f"age since delivery, of a running task since its start{legend}", colour=QUIET, size=8)
    for row, limit in enumerate(sorted(limits, key=lambda limit: -limit.at_s)):
        # The earlier limit writes to its left and below, so that neither line crosses the other's text.
        x, y = scale(limit.at_s), 32.0 + 12.0 * row
        left = row or x > RIGHT - 120
        pen.line([x, x], [y - 7, bottom], INK, 0.9, dashes=(0, (4, 3)))
        pen.text(x - 5 if left else x + 5, y, limit.text, size=8.5, ha="right" if left else "left")


def _lane(pen: Pen, lane: Lane, strip: Strip, scale: Scale, top: float, height: float) -> None:
    colour = COLOURS[lane.place]
    pen.text(0, top + 16, lane.title, weight="bold")
    pen.text(0, top + 28, _figures(lane), colour=QUIET, size=8.5)
    pen.line([0, RIGHT], [top + height] * 2, RULE, 0.6)
    y = top + 13
    for point in lane.named:
        _named(pen, point, scale, y, colour)
        y += _row(point)
    strip.draw(pen, y - 6 + strip.height, colour)


def _row(point: Point) -> float:
    return ROW if point.due_s is None else 1.6 * ROW


def _figures(lane: Lane) -> str:
    alarming = sum(point.alarming for point in lane.points)
    more = f", {len(lane.named)} named" if alarming > len(lane.named) else ""
    undated = f", {lane.undated:,} undated" if lane.undated else ""
    return f"{plural(lane.size, 'task')}{more}{undated}"


def _named(pen: Pen, point: Point, scale: Scale, y: float, colour: str) -> None:
    x = scale(point.age_s)
    if point.due_s is None:
        pen.dots([x], [y], colour, DOT * 1.5, edge=INK)
        right, left = RIGHT - x - 8, x - LEFT - 8
        text = _fitting(point, max(right, left))
        pen.text(x + 8 if right >= left else x - 8, y + 3, text, ha="left" if right >= left else "right")
        return
    # Its line would run through a text beside the dot, so the text stands above it.
    text, end = _fitting(point, RIGHT - LEFT), scale(point.due_s)
    pen.text(max(LEFT, min(x - DOT, RIGHT - len(text) * LETTER)), y + 2, text)
    pen.line([x, end], [y + 10, y + 10], colour, 1.4)
    pen.line([end, end], [y + 6, y + 14], colour, 1.4)
    pen.dots([x], [y + 10], colour, DOT * 1.5, edge=INK)


def _fitting(point: Point, room: float) -> str:
    """Return a task's name and label; what does not fit goes from the name, never from the id."""
    longest = int(room / LETTER) - len(point.label) - 3
    return f"{_tail(shown(point.task or '(unknown)', 200), max(longest, 4))} · {point.label}"


def _tail(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"…{name[-longest + 1 :]}"


@dataclass(frozen=True, slots=True)
class Strip:
    """
    The tasks of a lane that are not named, gathered by age: dots while they can be told apart, bars beyond.

    Attributes:
        columns: Tasks by column, (calm, alarming).
    """

    columns: Mapping[int, tuple[int, int]]

    @property
    def tallest(self) -> int:
        """The most tasks in one column."""
        return max((sum(pair) for pair in self.columns.values()), default=0)

    @property
    def height(self) -> float:
        """What it takes on the page."""
        words = 10.0 if self.tallest > TALLEST else 0.0
        return 0.0 if not self.columns else min(self.tallest, TALLEST) * PITCH + 4.0 + words

    def draw(self, pen: Pen, base: float, colour: str) -> None:
        """Draw it upwards from its base line."""
        if self.tallest > TALLEST:
            self._bars(pen, base, colour)
            return
        for alarming in (False, True):
            places = list(self._places(alarming, base))
            pen.dots([x for x, _ in places], [y for _, y in places], colour, DOT, edge=INK if alarming else "none")

    def _places(self, alarming: bool, base: float) -> Iterator[tuple[float, float]]:
        for column, (calm, alarm) in sorted(self.columns.items()):
            for at in range(calm, calm + alarm) if alarming else range(calm):
                yield LEFT + (column + 0.5) * PITCH, base - (at + 0.5) * PITCH

    def _bars(self, pen: Pen, base: float, colour: str) -> None:
        full = TALLEST * PITCH
        for column, (calm, alarm) in sorted(self.columns.items()):
            tall, x = max(1.5, full * (calm + alarm) / self.tallest), LEFT + column * PITCH
            pen.bar(x + 0.6, base - tall, PITCH - 1.2, tall, colour, edge=INK if alarm else "none")
        peak = min(column for column, pair in self.columns.items() if sum(pair) == self.tallest)
        right = LEFT + peak * PITCH < (LEFT + RIGHT) / 2
        pen.text(
            LEFT + (peak + (1.5 if right else -0.5)) * PITCH,
            base - full - 4,
            f"{self.tallest:,} of about this age",
            colour=QUIET,
            size=8,
            ha="left" if right else "right",
        )


def _strip(lane: Lane, scale: Scale) -> Strip:
    columns: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    last = int((RIGHT - LEFT) / PITCH) - 1
    for point in lane.crowd:
        columns[min(last, int((scale(point.age_s) - LEFT) / PITCH))][point.alarming] += 1
    return Strip({column: (calm, alarm) for column, (calm, alarm) in columns.items()})
