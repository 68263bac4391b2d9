"""Where certain tasks were found, and what was judged of them → a table of every place for each, and its sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from opslib.render import story, tables, trace, words
from opslib.render.grid import Cell, Column, Line, Table

if TYPE_CHECKING:
    from opslib.facts.system import Coverage
    from opslib.facts.whereabouts import Whereabouts
    from opslib.findings import Finding
    from opslib.render.story import Story
    from opslib.render.trace import Trace

#: Rows of a table of several tasks.
_MOST_ROWS = 200
_HELD = ("reserved", "scheduled", "active")
#: A row of the table, by the rows of coverage that say how much of it was seen.
_SEARCHED = {
    "waiting": ("waiting", "set aside", "keyspace"),
    "unacked": ("unacked",),
    "reserved": ("workers",),
    "scheduled": ("workers",),
    "active": ("workers",),
    "result": ("results",),
    "dead letters": ("dead letters", "keyspace"),
    "quarantine": ("quarantine", "keyspace"),
    "task tables": ("task tables",),
}


def show(seen: Whereabouts) -> list[object]:
    """Return where tasks are, and what was not seen: of one task every place, of several those that hold them."""
    if not seen.ids:
        return [Line((_none(seen),)), *coverage(seen)]
    if len(seen.ids) > 1:
        return [places(seen), *coverage(seen)]
    (task_id,) = seen.ids
    name = trace.of(seen, task_id).task
    return [Line((name or "of no name that is known", task_id)), lifecycle(seen, task_id), *coverage(seen)]


def answers(seen: Whereabouts, findings: Iterable[Finding] = ()) -> Table:
    """Return for each task one sentence that says how it stands, and the step that comes next."""
    known = list(findings)
    told = [tell(seen, task_id, known) for task_id in sorted(seen.ids)]
    return Table(
        title="How it stands",
        columns=(Column("Task", "code"), Column("How it stands"), Column("What to do")),
        rows=[(_name(each), _sentence(each.sentence), Cell(each.step, each.command)) for each in told],
        caption=f"{seen.more:,} more tasks are meant, and were only counted." if seen.more else "",
        empty=_none(seen),
        limit=_MOST_ROWS,
        stack=True,
    )


def tell(seen: Whereabouts, task_id: str, findings: Iterable[Finding] = ()) -> Story:
    """Return how one task stands, and what to do."""
    return story.tell(trace.of(seen, task_id, findings))


def sentence(seen: Whereabouts, task_id: str, findings: Iterable[Finding] = ()) -> str:
    """Return how one task stands, in one sentence."""
    return story.sentence(trace.of(seen, task_id, findings))


def in_words(seen: Whereabouts, findings: Iterable[Finding] = ()) -> str:
    """Return the answer to who asked, in one sentence: how the task stands, or how many of several stand how."""
    known = list(findings)
    if not seen.ids:
        return _none(seen)
    if len(seen.ids) == 1:
        (task_id,) = seen.ids
        of = trace.of(seen, task_id, known)
        said = story.sentence(of)
        return f"{of.task or task_id}: {said}"
    lost = sum(not places for places in seen.places.values())
    wrong = len({f.subject for f in known if f.subject in seen.ids})
    nowhere = f", {lost:,} found nowhere" if lost else ""
    which = "The tasks unacknowledged the longest" if seen.unasked else f"{len(seen.ids):,} tasks"
    return f"{which}: {len(seen.ids) - wrong:,} as they should be, {wrong:,} not{nowhere}."


def lifecycle(seen: Whereabouts, task_id: str) -> Table:
    """
    Return every place that was searched for a task, in the order of its life, with what was found there.

    A place that holds it is *there*; one that was looked through in vain is *not there*; one of which some part could
    not be seen, and in the rest of which it was not, is *not seen*.
    """
    of = trace.of(seen, task_id)
    sent = len(seen.offspring) if len(seen.ids) == 1 else 0
    return Table(
        title="Where it is",
        columns=(Column("Place"), Column("View", "state"), Column("What is there")),
        rows=_rows(of),
        caption=f"Messages of tasks that it has sent, or that these have: {sent:,}." if sent else "",
    )


def places(seen: Whereabouts) -> Table:
    """Return the places that hold several tasks, and those that were not seen."""
    rows: list[tuple[object, ...]] = []
    for task_id in sorted(seen.ids):
        of = trace.of(seen, task_id)
        name = Cell(of.task, task_id) if of.task else Cell(task_id)
        found = [row for row in _rows(of) if row[1] != "not there"]
        rows += [(name, *row) for row in found] or [
            (name, "anywhere", "not there", "It was looked for in every place.")
        ]
    return Table(
        title="Where they are",
        columns=(Column("Task", "code"), Column("Place"), Column("View", "state"), Column("What is there")),
        rows=rows,
        caption=f"{seen.more:,} more tasks are meant, and were only counted." if seen.more else "",
        limit=_MOST_ROWS,
        stack=True,
    )


def coverage(seen: Whereabouts) -> list[object]:
    """Return what was looked into: on one line where all of it answered."""
    if any(row.silent for row in seen.coverage):
        return [tables.coverage(seen.coverage)]
    looks = "two looks" if seen.earlier else "one look"
    # The table of a single task has the notes where they belong.
    notes = [row.note for row in seen.coverage if row.note and len(seen.ids) != 1]
    return [Line((f"Every place answered: {', '.join(row.place for row in seen.coverage)}", looks, *notes))]


def _none(seen: Whereabouts) -> str:
    if seen.selection is not None:
        return f"No task {seen.selection.words(seen.taken_at.timestamp())} is in flight.".replace("  ", " ")
    return "No task was named, and none is unacknowledged. Name one by its id: task_id."


def _found(of: Trace) -> dict[str, list[str]]:
    """Return what was found in each place, in words."""
    now = of.now
    held = {place: [trace.held(task, now) for task in of.held if task.place == place] for place in _HELD}
    return {
        "waiting": [trace.waiting(row, of.seen, now) for row in of.waiting],
        "unacked": [trace.unacked(row, now, of.seen.visibility_timeout_s) for row in of.unacked],
        **held,
        "result": [trace.result(row, now) for row in of.results],
        "dead letters": [trace.dead(row, now) for row in of.dead],
        "quarantine": [trace.quarantined(row) for row in of.quarantined],
        "task tables": [trace.in_table(row, now) for row in of.rows],
    }


def _rows(of: Trace) -> list[tuple[str, str, str]]:
    """Return every place that was searched for a task, with what was found there."""
    known = {row.place: row for row in of.seen.coverage}
    found = _found(of)
    rows = []
    for place, parts in _SEARCHED.items():
        searched = [known[part] for part in parts if part in known]
        if found[place] or (searched and searched[0].place == parts[0]):
            rows.append((place, *_row(of, place, found[place], searched)))
    return rows


def _row(of: Trace, place: str, found: Sequence[str], searched: Sequence[Coverage]) -> tuple[str, str]:
    silent = [row for row in searched if row.silent]
    if found:
        return "there", trace.several(found)
    if silent:
        return "not seen", " ".join(row.note or f"{row.silent:,} of {row.place} not seen." for row in silent)
    note = next((f" {row.note}" for row in searched[:1] if row.note), "")
    return "not there", f"{_searched(of, place, searched[0].seen)}{note}"


def _searched(of: Trace, place: str, number: int) -> str:
    """Return how much was looked through in vain."""
    if place == "waiting":
        queues = sum(1 for queue in of.seen.queues if queue.depth)
        return (
            f"{words.plural(number, 'message')} in {words.plural(queues, 'queue')} looked through."
            if number
            else "Nothing waits."
        )
    if place in _HELD:
        return f"{words.plural(number, 'node')} answered." if number else "No node is there to have it."
    if place == "result":
        return "No result is stored; one that has expired, or was never kept, looks the same."
    if place == "task tables":
        return f"{words.plural(number, 'table')} of the application asked; none has a row for it."
    if not number:
        return "Nothing is there."
    return f"{words.plural(number, 'message' if place != 'dead letters' else 'letter')} looked through."


def _name(told: Story) -> Cell:
    return Cell(told.task or told.task_id, told.task_id if told.task else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
