"""What is stored → tables by retention, by task and state, and a picture of how old it is, before and after."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from opslib.durations import spell
from opslib.facts.stored import AGES, HELD, KEPT, OPAQUE, PAST, UNDATED, UNKNOWN_AGE
from opslib.render import tables
from opslib.render.grid import Cell, Column, Line, Table
from opslib.render.pen import ALARM, LEFT, QUIET, RIGHT, RULE, WIDTH, Chart, Pen
from opslib.render.words import clock, plural, shown, size

if TYPE_CHECKING:
    from opslib.facts.remains import Remains, TemporaryFiles
    from opslib.facts.stored import Leftover, Stored, StoredGroup

_MOST_ROWS = 40
_MOST_FILES = 20
_NO_NAME = "(name not stored)"
_ABOUT = {
    "replies": ("answers of nodes to control clients", "idle for longer than {idle}"),
    "groups": ("bookkeeping of groups and chords", "never expire"),
    "checkpoints": ("saved states of tasks, of this tool", "never expire"),
}


def show(seen: Stored) -> list[object]:
    """Return everything that is told of what is stored."""
    return [
        tables.server(seen),
        summary(seen),
        retentions(seen),
        kinds(seen),
        *([leftovers(seen)] if seen.leftovers else []),
        *([remains(seen.remains)] if seen.remains else []),
        *[files(each) for each in (seen.remains.files if seen.remains else ()) if each.rows],
        tables.coverage(seen.coverage),
    ]


def summary(seen: Stored) -> Line:
    """Return the whole on one line."""
    return Line(
        (
            plural(seen.count, "result"),
            f"{size(seen.size_bytes)} of values",
            f"{sum(row.count for row in seen.groups if row.lasting):,} never expire",
            f"{seen.circulating:,} tasks can still be run" if not seen.unseen else "",
            f"{seen.strangers:,} keys of others, left alone" if seen.strangers else "",
            _lives(seen),
        )
    )


def _lives(seen: Stored) -> str:
    """Say what life results were given, which is the application's result_expires."""
    if seen.lives_s is None:
        return ""
    low, high = seen.lives_s
    if high - low < max(5.0, low * 0.01):
        return f"each was given {spell(low)} to live"
    return f"each was given {spell(low)} to {spell(high)} to live"


def retentions(seen: Stored) -> Table:
    """Return how many results are kept by each rule, and how they stand to it."""
    rows = []
    for n, rule in enumerate(seen.retention.rules):
        of = [row for row in seen.groups if row.rule == n]
        past = [row for row in of if row.standing == PAST]
        rows.append(
            (
                rule.name,
                spell(rule.keep_s) if rule.keep_s else "any age",
                _count(of),
                _count(past),
                size(sum(row.size_bytes for row in past)),
                _count(row for row in of if row.standing == KEPT),
                _count(row for row in of if row.standing == UNDATED),
                _count(row for row in of if row.lasting),
                _count(row for row in of if row.standing == HELD),
            )
        )
    asked = [f"in state {', '.join(seen.retention.states)}"] if seen.retention.states else []
    asked += [f"of {seen.retention.task}"] if seen.retention.task != "*" else []
    return Table(
        title="Results by retention",
        columns=(
            Column("Tasks", "code"),
            Column("Kept for"),
            Column("Results", "number"),
            Column("Past it", "number"),
            Column("These weigh", "number"),
            Column("Within it", "number"),
            Column("Age unknown", "number"),
            Column("Never expire", "number"),
            Column("Task in circulation", "number"),
        ),
        rows=rows,
        caption=f"Asked about: results {' and '.join(asked)}." if asked else "",
    )


def kinds(seen: Stored) -> Table:
    """Return how many results there are by task and state, those that weigh most first."""
    by_kind: defaultdict[tuple[str, str], list[StoredGroup]] = defaultdict(list)
    for row in seen.groups:
        by_kind[row.task, row.state].append(row)
    ranked = sorted(by_kind.items(), key=lambda each: (-sum(row.size_bytes for row in each[1]), each[0]))
    return Table(
        title="Results by task and state",
        columns=(
            Column("Task", "code"),
            Column("State"),
            Column("Results", "number"),
            Column("Weigh", "number"),
            Column("Past retention", "number"),
            Column("Never expire", "number"),
            Column("Oldest"),
        ),
        rows=[
            (
                shown(task or _NO_NAME),
                shown(state, 40),
                _count(rows),
                size(sum(row.size_bytes for row in rows)),
                _count(row for row in rows if row.standing == PAST),
                _count(row for row in rows if row.lasting),
                _oldest(rows),
            )
            for (task, state), rows in ranked
        ],
        caption="Names are stored only where the application sets result_extended.",
        empty="No result is stored.",
        limit=_MOST_ROWS,
    )


def leftovers(seen: Stored) -> Table:
    """Return what else is stored."""
    return Table(
        title="Stored besides",
        columns=(
            Column("Keys"),
            Column("There are", "number"),
            Column("Of these", "number"),
            Column("They weigh", "number"),
            Column("Which"),
        ),
        rows=[_leftover(row, seen.idle_s) for row in seen.leftovers],
    )


def _leftover(row: Leftover, idle_s: float) -> tuple[object, ...]:
    what, which = _ABOUT.get(row.name, ("", ""))
    return (Cell(row.name, what), row.count, row.orphaned, size(row.size_bytes), which.format(idle=spell(idle_s)))


def remains(found: Remains) -> Table:
    """Return what is left beside results, that is old enough, and what of it stays."""
    return Table(
        title="Left beside results",
        columns=(
            Column("What"),
            Column("Old enough", "number"),
            Column("They weigh", "number"),
            Column("Kept for"),
            Column("Where"),
            Column("Besides"),
        ),
        rows=list(_remains(found)),
        caption="How old a key is that does not say so, the server tells: for how long nobody has read or written it.",
    )


def _remains(found: Remains) -> Iterator[tuple[object, ...]]:
    go, stay = ([row for row in found.quarantines if bool(row.stays) is stays] for stays in (False, True))
    yield (
        Cell("quarantine", "messages that runs took out of circulation"),
        sum(row.count for row in go),
        size(sum(row.size_bytes for row in go)),
        spell(found.quarantine_after_s),
        f"{plural(len(go), 'run')}" if go else "",
        f"{plural(len(stay), 'run')} may be gone on with" if stay else "",
    )
    for row, what in ((found.groups, "keys of groups and chords"), (found.checkpoints, "saved states of tasks")):
        if row is not None:
            besides = [f"{row.in_use:,} of tasks in circulation"] if row.in_use else []
            besides += [f"{row.doubtful:,} tasks run whose group nobody knows"] if row.doubtful else []
            besides += ["more than are looked at in one run"] if row.more else []
            yield (
                Cell(row.name, what),
                row.count,
                size(row.size_bytes),
                spell(row.keep_s),
                shown(row.root),
                ", ".join(besides),
            )
    for app in found.apps:
        stays = len(app.scan.rows) - len(app.rows)
        yield (
            Cell(app.scan.name, "keys of the application"),
            len(app.rows),
            size(sum(row.size_bytes for row in app.rows)),
            spell(app.keep_s),
            shown(f"{app.scan.pattern} in {app.scan.database}"),
            f"{app.scan.keys:,} in all" + (f", {stays:,} of tasks in circulation" if stays else ""),
        )
    for each in found.files:
        besides = [f"{each.open:,} open"] if each.open else []
        besides += [f"{each.links:,} links"] if each.links else []
        besides += [f"{each.young:,} younger"] if each.young else []
        yield (
            Cell(each.name, "files of failed tasks"),
            len(each.rows) + each.more,
            size(each.size_bytes),
            spell(each.older_than_s),
            shown(f"{each.folder}/{each.pattern} on {each.host}"),
            each.problem or ", ".join(besides),
        )
    if found.reports is not None:
        yield (
            Cell("reports", "runs in the archive of this machine"),
            found.reports.count,
            size(found.reports.size_bytes),
            spell(found.reports.older_than_s),
            "",
            f"{found.reports.kept:,} hold what was taken out of a broker" if found.reports.kept else "",
        )


def files(found: TemporaryFiles) -> Table:
    """Return the files of one folder that may go, the oldest first."""
    return Table(
        title=f"Files of {found.host}: {found.name}",
        columns=(Column("File", "code"), Column("Bytes", "number"), Column("Not changed for")),
        rows=[(shown(row.path, 200), row.size_bytes, spell(row.age_s)) for row in found.rows],
        limit=_MOST_FILES,
    )


def _count(rows: Iterable[StoredGroup]) -> int:
    return sum(row.count for row in rows)


def _oldest(rows: Sequence[StoredGroup]) -> str:
    order = [name for _, name in AGES]
    known = [row.age for row in rows if row.age != UNKNOWN_AGE]
    return max(known, key=order.index) if known else UNKNOWN_AGE


# --- the picture ---

#: By Okabe and Ito, which colour-blind eyes tell apart; the words stand beside them besides.
_COLOURS = {"SUCCESS": "#0072B2", "FAILURE": "#D55E00", "other states": "#E69F00", "unreadable": "#8c959f"}
HEAD, ROW, BAR, SECOND = 56.0, 30.0, 13.0, 7.0
FULL = RIGHT - 96.0


def results_by_age(before: Stored, after: Stored | None = None) -> Chart:
    """
    Draw how many results there are of each age, by state; with a second look, what is left in a second bar.

    Args:
        after: What is stored after a cleanup.
    """
    first, second = _by_age(before), _by_age(after) if after else None
    return Chart(_bars(before, first, second), _told(before, first, second, after))


def _class(row: StoredGroup) -> str:
    if row.standing == OPAQUE:
        return "unreadable"
    return row.state if row.state in {"SUCCESS", "FAILURE"} else "other states"


def _by_age(seen: Stored) -> dict[str, Counter[str]]:
    """Return how many results of each class there are, by age; and how many of an age never expire."""
    found: dict[str, Counter[str]] = {name: Counter() for name in (*(name for _, name in AGES), UNKNOWN_AGE)}
    for row in seen.groups:
        found[row.age][_class(row)] += row.count
        found[row.age]["lasting"] += row.count if row.lasting else 0
    return found


def _total(counts: Counter[str]) -> int:
    return sum(n for name, n in counts.items() if name != "lasting")


def _bars(before: Stored, first: dict[str, Counter[str]], second: dict[str, Counter[str]] | None) -> str:
    ages = list(first)
    row = ROW + (SECOND + 4 if second else 0)
    pen = Pen(HEAD + row * len(ages) + 10)
    title = "Results by age and state" + (", before and, in the thin bars, after" if second else "")
    pen.text(0, 14, title, weight="bold", size=11)
    pen.text(WIDTH, 14, clock(before.taken_at), colour=QUIET, ha="right")
    x = LEFT
    there = sum(first.values(), Counter()) + sum((second or {}).values(), Counter())
    for name, colour in ((name, colour) for name, colour in _COLOURS.items() if there[name]):
        pen.bar(x, 26, 9, 9, colour, edge="none")
        pen.text(x + 13, 34, name, colour=QUIET, size=8.5)
        x += 13 + 5.2 * len(name) + 16
    most = max(1, *(_total(each) for each in first.values()), *(_total(each) for each in (second or {}).values()))
    for at, age in enumerate(ages):
        top = HEAD + row * at
        pen.text(0, top + 11, age if age != UNKNOWN_AGE else "age unknown", weight="bold")
        if lasting := first[age]["lasting"]:
            pen.text(0, top + 23, f"{lasting:,} never expire", colour=ALARM, size=8)
        _bar(pen, first[age], top + 1, BAR, most, faded=False)
        said, end = f"{_total(first[age]):,}", _end(_total(first[age]), most)
        if second and (_total(first[age]) or _total(second[age])):
            _bar(pen, second[age], top + 3 + BAR, SECOND, most, faded=True)
            said += f", {_total(second[age]):,} after"
            end = max(end, _end(_total(second[age]), most))
        pen.text(end + 6, top + 11, said, weight="bold" if _total(first[age]) else "normal", size=8.5)
    pen.line([LEFT, LEFT], [HEAD - 4, HEAD + row * len(ages)], RULE, 0.8)
    return pen.svg()


def _end(count: int, most: int) -> float:
    return LEFT + (FULL - LEFT) * count / most


def _bar(pen: Pen, counts: Counter[str], top: float, height: float, most: int, *, faded: bool) -> None:
    x = LEFT
    for name, colour in _COLOURS.items():
        if counts[name]:
            width = (FULL - LEFT) * counts[name] / most
            pen.bar(x, top, max(width, 0.8), height, colour, edge="#ffffff" if width > 4 and not faded else "none")
            x += width


def _told(
    before: Stored, first: dict[str, Counter[str]], second: dict[str, Counter[str]] | None, after: Stored | None
) -> str:
    if not before.count and not (after and after.count):
        return "Results by age and state: none are stored."
    told = []
    for age, counts in first.items():
        left = f", {_total(second[age]):,} after" if second else ""
        if _total(counts) or (second and _total(second[age])):
            split = ", ".join(f"{name} {counts[name]:,}" for name in _COLOURS if counts[name])
            told.append(f"{age} {_total(counts):,}{f' ({split})' if split else ''}{left}")
    freed = ""
    if after:
        fewer = before.size_bytes - after.size_bytes
        freed = f" {size(before.size_bytes)} of values before, {size(after.size_bytes)} after: {_changed(fewer)}."
    return f"Results by age and state: {'; '.join(told)}.{freed}"


def freed(before: Stored, after: Stored) -> Table:
    """Return what a cleanup has changed: how many results there are, what they weigh, and which never expire."""
    rows = [
        ("Results", f"{before.count:,}", f"{after.count:,}", f"{before.count - after.count:,} fewer"),
        (
            "Bytes of values",
            size(before.size_bytes),
            size(after.size_bytes),
            _changed(before.size_bytes - after.size_bytes),
        ),
        *(
            (name, f"{was:,}", f"{now:,}", f"{was - now:,} fewer")
            for name, was, now in (
                (
                    "Results that never expire",
                    _count(row for row in before.groups if row.lasting),
                    _count(row for row in after.groups if row.lasting),
                ),
                ("Orphaned answers", before.leftover("replies").orphaned, after.leftover("replies").orphaned),
                *_both(before, after),
            )
        ),
        (
            "Memory of the server",
            size(before.server.used_memory_bytes),
            size(after.server.used_memory_bytes),
            _changed(before.server.used_memory_bytes - after.server.used_memory_bytes),
        ),
    ]
    return Table(
        title="What the cleanup changed",
        columns=(Column("What"), Column("Before", "number"), Column("After", "number"), Column("Difference")),
        rows=rows,
        caption="The server's memory counts everything in it, and what it gives back comes later than the keys go.",
    )


def _both(before: Stored, after: Stored) -> Iterator[tuple[str, int, int]]:
    """Yield how much of each kind is left beside results, where both looks have it and there was any."""
    for (name, was), (_, now) in zip(_beside(before), _beside(after), strict=False):
        if was or now:
            yield name, was, now


def _beside(seen: Stored) -> list[tuple[str, int]]:
    found = seen.remains
    if found is None:
        return []
    return [
        ("Messages in old quarantines", sum(row.count for row in found.quarantines)),
        ("Old keys of groups", found.groups.count if found.groups else 0),
        ("Old saved states", found.checkpoints.count if found.checkpoints else 0),
        *((f"Old {app.scan.name} of the application", len(app.rows)) for app in found.apps),
        *((f"Old files {each.name}", len(each.rows) + each.more) for each in found.files),
    ]


def _changed(fewer: int) -> str:
    return f"{size(abs(fewer))} {'freed' if fewer > 0 else 'more'}" if fewer else "the same"
