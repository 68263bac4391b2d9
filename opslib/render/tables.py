"""Facts, findings, plans, outcomes and records → tables with columns for a person; `show` puts them on the screen."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from opslib.durations import spell
from opslib.facts import (
    Coverage,
    HeldTask,
    NodeInfo,
    QueueInfo,
    ServerInfo,
    Snapshot,
    StoredResult,
    UnackedMessage,
    UnreadableMessage,
    WaitingMessage,
)
from opslib.findings import Finding
from opslib.plan import Action, Outcome, Plan
from opslib.records import RunRecord
from opslib.render import words
from opslib.render.grid import Cell, Column, Line, Table
from opslib.render.words import Row, age, row_of, size

if TYPE_CHECKING:
    from opslib.render.charts import Chart

__all__ = ["Card", "Cell", "Column", "Line", "Table", "observers", "show"]

NO_FINDINGS = "No findings in what was seen."

#: Called with every list of findings that `show` displays, before it is displayed.
observers: list[Callable[[Sequence[Finding]], None]] = []


def show(*things: object, compare: tuple[Sequence[Finding], Sequence[Finding]] | None = None) -> None:
    """
    Display each thing in a notebook, or print it where there is none.

    Args:
        things: Snapshots, lists of findings, plans, outcomes, records, facts rows, charts and figures.
            An empty list stands for findings, because only findings are lists; rows and outcomes are tuples.

        compare: Findings before and after, shown as one table: gone, remains, new.
    """
    taken_at = next((thing.taken_at for thing in things if isinstance(thing, Snapshot)), None)
    for thing in things:
        _observe(thing)
        for view in views(thing, taken_at):
            _display(view)
    if compare:
        _display(comparison(*compare))


def views(thing: object, taken_at: datetime | None = None, *, held: Iterable[HeldTask] = ()) -> list[object]:
    """
    Return what `show` displays for a thing.

    Args:
        taken_at: The instant from which rows count their ages; without it they say when instead of how long ago.

        held: What the nodes hold, for rows of unacked messages.
    """
    for kind, view in _VIEWS.items():
        if isinstance(thing, kind):
            return view(thing)
    if isinstance(thing, (list, tuple)):
        return [_rows(thing, taken_at, held)]
    return [_picture(thing) or thing]


# --- facts ---


def snapshot(seen: Snapshot) -> list[object]:
    """Return a snapshot's overview: the server, the nodes, the queues, and what was not seen."""
    return [server(seen), nodes(seen.nodes, seen.held), queues(seen.queues), coverage(seen.coverage)]


def server(seen: Snapshot | ServerInfo) -> Line:
    """Return the broker's server on one line."""
    info = seen.server if isinstance(seen, Snapshot) else seen
    limit = f" of {size(info.maxmemory_bytes)}" if info.maxmemory_bytes else ""
    where = [seen.target, f"read at {words.clock(seen.taken_at)}"] if isinstance(seen, Snapshot) else []
    return Line(
        (
            *where,
            f"{info.product} {info.version}",
            info.role,
            f"database {info.database}",
            words.plural(info.keys, "key"),
            f"{size(info.used_memory_bytes)}{limit} ({info.maxmemory_policy})",
            f"up {spell(info.uptime_s)}",
            words.plural(info.connected_clients, "connection"),
        )
    )


def queues(rows: Sequence[QueueInfo | Row]) -> Table:
    """Return the queues, the fullest first."""
    ranked = sorted(map(row_of, rows), key=lambda row: (-row["depth"], row["name"]))
    return Table(
        title="Queues",
        columns=(
            Column("Queue", "code"),
            Column("Waiting", "number"),
            Column("By priority (0 is served first)"),
            Column("Mostly"),
            Column("Consumers"),
        ),
        rows=[
            (
                words.shown(row["name"]),
                row["depth"],
                _counts(row["by_priority"]),
                _counts(row["by_task"], 3),
                _names(row["consumers"], "nobody"),
            )
            for row in ranked
        ],
        empty="No queue exists: Redis keeps no empty list, so nothing waits.",
    )


def nodes(rows: Sequence[NodeInfo | Row], held: Iterable[HeldTask | Row] = ()) -> Table:
    """Return the nodes, first the names that did not answer: a dead one's name stays in the broker."""
    busy = Counter(task["node"] for task in map(row_of, held) if task["place"] == "active")
    return Table(
        title="Nodes",
        columns=(
            Column("Node", "code"),
            Column("Answer", "state"),
            Column("Pool"),
            Column("Busy", "number"),
            Column("Prefetch", "number"),
            Column("Memory", "number"),
            Column("Up", "number"),
            Column("Queues", "code"),
        ),
        rows=[_node(row, busy) for row in sorted(map(row_of, rows), key=lambda row: (row["answered"], row["name"]))],
        empty="No node answered.",
    )


def _node(row: Row, busy: Mapping[str, int]) -> tuple[object, ...]:
    if not row["answered"]:
        return (words.shown(row["name"]), "no answer", "", "", "", "", "", "")
    slots = f"{busy.get(row['name'], 0)} of {row['concurrency']}"
    up = spell(row["uptime_s"]) if row["uptime_s"] else ""
    return (
        words.shown(row["name"]),
        "answered",
        row["pool"],
        slots,
        row["prefetch"],
        size(row["memory_bytes"]),
        up,
        _names(row["queues"]),
    )


def unacked(
    rows: Sequence[UnackedMessage | Row], *, taken_at: datetime | None = None, held: Iterable[HeldTask | Row] = ()
) -> Table:
    """Return the unacked messages, the oldest first, with the nodes that hold them."""
    holders = defaultdict(set)
    for task in map(row_of, held):
        holders[task["task_id"]].add(task["node"])
    ranked = sorted(map(row_of, rows), key=lambda row: row["delivered_at"] or 0.0)
    return Table(
        title="Unacknowledged",
        columns=(
            _TASK,
            Column("Queue", "code"),
            Column("Delivered", "number"),
            Column("Retries", "number"),
            Column("Held by"),
        ),
        rows=[
            (
                _task(row),
                row["queue"],
                _ago(row["delivered_at"], taken_at),
                row["retries"],
                _names(sorted(holders[row["task_id"]]), "nobody that answered"),
            )
            for row in ranked
        ],
        empty="Nothing is unacknowledged.",
    )


def held(rows: Sequence[HeldTask | Row], *, taken_at: datetime | None = None) -> Table:
    """Return the tasks that nodes hold, the longest running first."""
    ranked = sorted(map(row_of, rows), key=lambda row: (row["place"], row["started_at"] or 0.0, row["task_id"]))
    return Table(
        title="Held by nodes",
        columns=(_TASK, Column("Place"), Column("Node", "code"), Column("Running", "number"), Column("Due", "number")),
        rows=[
            (_task(row), row["place"], row["node"], _for(row["started_at"], taken_at), _until(row["eta_at"], taken_at))
            for row in ranked
        ],
        empty="The nodes that answered hold no task.",
    )


def waiting(rows: Sequence[WaitingMessage | Row]) -> Table:
    """Return waiting messages, in the order in which they are served."""
    ranked = sorted(map(row_of, rows), key=lambda row: (row["queue"], row["priority"], row["position"]))
    return Table(
        title="Waiting",
        columns=(
            _TASK,
            Column("Queue", "code"),
            Column("Priority", "number"),
            Column("Served before it", "number"),
            Column("Retries", "number"),
            Column("Size", "number"),
        ),
        rows=[
            (_task(row), row["queue"], row["priority"], row["position"], row["retries"], size(row["size_bytes"]))
            for row in ranked
        ],
        empty="Nothing waits.",
    )


def unreadable(rows: Sequence[UnreadableMessage | Row]) -> Table:
    """Return the messages that no worker can decode."""
    return Table(
        title="Unreadable",
        columns=(
            Column("Key", "code"),
            Column("Place"),
            Column("Why"),
            Column("Size", "number"),
            Column("SHA-256", "code"),
        ),
        rows=[
            (row["key"], row["place"], row["reason"], size(row["size_bytes"]), row["sha256"][:12])
            for row in map(row_of, rows)
        ],
        empty="Every message that was read can be decoded.",
    )


def results(rows: Sequence[StoredResult | Row]) -> Table:
    """Return stored results."""
    return Table(
        title="Results",
        columns=(
            _TASK,
            Column("State"),
            Column("Node", "code"),
            Column("Retries", "number"),
            Column("Exception"),
            Column("Expires"),
        ),
        rows=[
            (
                _task(row),
                row["state"],
                row["node"],
                row["retries"],
                row["exception"],
                words.clock(row["expires_at"]) or "never",
            )
            for row in map(row_of, rows)
        ],
        empty="No result was found.",
    )


def coverage(rows: Sequence[Coverage | Row]) -> Table:
    """Return what was looked into, the places with unseen parts first."""
    ranked = sorted(map(row_of, rows), key=lambda row: not row.get("silent"))
    return Table(
        title="Coverage",
        columns=(
            Column("Place"),
            Column("View", "state"),
            Column("Seen", "number"),
            Column("Not seen", "number"),
            Column("Note"),
        ),
        rows=[
            (
                row.get("place"),
                "partly" if row.get("silent") else "whole",
                row.get("seen"),
                row.get("silent"),
                row.get("note"),
            )
            for row in ranked
        ],
        empty="It was not recorded what was looked into.",
    )


# --- judgements ---


def findings(rows: Iterable[Finding | Row], title: str = "Findings") -> Table:
    """Return findings, the worst first, each with its evidence and what to do."""
    return Table(
        title=title,
        columns=(
            Column("Severity", "state"),
            Column("Finding"),
            Column("Task or subject", "code"),
            Column("What to do"),
        ),
        rows=[
            (
                row.get("severity"),
                Cell(row.get("message"), words.evidence(row.get("evidence"))),
                _subject(row),
                row.get("hint"),
            )
            for row in words.worst_first(rows)
        ],
        empty=NO_FINDINGS,
        stack=True,
    )


def comparison(before: Iterable[Finding | Row], after: Iterable[Finding | Row]) -> Table:
    """Return findings before and after: what is new, what remains, what is gone."""
    old, new = ({key(row): row for row in words.worst_first(rows)} for rows in (before, after))
    ranked = [
        *(("new", row) for key, row in new.items() if key not in old),
        *(("remains", row) for key, row in new.items() if key in old),
        *(("gone", row) for key, row in old.items() if key not in new),
    ]
    counts = Counter(word for word, _ in ranked)
    return Table(
        title="Before and after",
        columns=(
            Column("Now", "state"),
            Column("Severity", "state"),
            Column("Finding"),
            Column("Task or subject", "code"),
        ),
        rows=[(word, row.get("severity"), row.get("message"), _subject(row)) for word, row in ranked],
        caption=", ".join(f"{counts[word]:,} {word}" for word in ("new", "remains", "gone") if counts[word]),
        empty="No findings before, and none after.",
        stack=True,
    )


def plan(proposed: Plan | Row) -> Table:
    """Return what a plan would do."""
    content: Row = (
        {**proposed.content(), "digest": proposed.digest, "notes": proposed.notes}
        if isinstance(proposed, Plan)
        else proposed
    )
    actions = [row_of(action) for action in content.get("actions") or ()]
    notes = [str(note) for note in content.get("notes") or ()]
    bound = (
        f"{words.plural(len(actions), 'action')}: {words.kinds(actions)}. Digest {str(content.get('digest', ''))[:12]}."
    )
    return Table(
        title="Plan: what would be done",
        columns=(
            Column("#", "number"),
            Column("Would", "text"),
            Column("Task or subject", "code"),
            Column("From → to", "code"),
            Column("What happens"),
        ),
        rows=[_action(row) for row in actions],
        caption=" ".join([bound, *notes]),
        empty="Nothing would be done.",
        limit=200,
        stack=True,
    )


def _action(row: Row) -> tuple[object, ...]:
    return (row.get("id"), _kind(row), _subject(row), way(row), Cell(row.get("effect"), _because(row)))


def joined(rows: Iterable[Outcome | Row], actions: Iterable[Action | Row] = ()) -> list[tuple[Row, Row]]:
    """Return each outcome with its action, which a record names by number only."""
    known = {row.get("id"): row for row in map(row_of, actions)}
    return [(row, _planned(row.get("action"), known)) for row in map(row_of, rows)]


def outcomes(rows: Iterable[Outcome | Row], actions: Iterable[Action | Row] = ()) -> Table:
    """
    Return what became of each action.

    Args:
        actions: The plan's rows, for outcomes out of a record, which name their action by number.
    """
    rank = {"failed": 0, "skipped": 1}
    pairs = sorted(
        joined(rows, actions), key=lambda pair: (rank.get(str(pair[0].get("status")), 2), pair[1].get("id") or 0)
    )
    counts = Counter(str(row.get("status")) for row, _ in pairs)
    if pairs and all(str(row.get("reason")).startswith("Dry run") for row, _ in pairs):
        pairs, dry = [], f"Dry run: none of the {words.plural(len(pairs), 'planned action')} was carried out."
    else:
        dry = "Nothing was done."
    return Table(
        title="Outcomes: what was done",
        columns=(
            Column("#", "number"),
            Column("Outcome", "state"),
            Column("Action"),
            Column("Task or subject", "code"),
            Column("From → to", "code"),
            Column("What was done, or why not"),
        ),
        rows=[
            (
                action.get("id"),
                str(row.get("status")),
                _kind(action),
                _subject(action),
                way(action),
                Cell(row.get("reason") or row.get("status"), " → ".join(map(str, row.get("steps") or ()))),
            )
            for row, action in pairs
        ],
        caption=", ".join(f"{number:,} {word}" for word, number in sorted(counts.items())),
        empty=dry,
        limit=200,
        stack=True,
    )


@dataclass(frozen=True)
class Card:
    """
    The verdict over a run, as the last cell shows it.
    """

    record: RunRecord

    def _repr_html_(self) -> str:
        word = words.verdict_of(self.record)
        head = f'<span class="ops-{word}"><span aria-hidden="true">{words.SIGNS[word]}</span> {word.upper()}</span>'
        lines = "".join(f"<br><small>{escape(words.shown(line))}</small>" for line in self._lines())
        said = escape(words.shown(words.headline(self.record)))
        return f'<p class="ops-card"><strong>{head}</strong> {said}{lines}</p>'

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401 - IPython's printer has no type
        printer.text(str(self))

    def __str__(self) -> str:
        word = words.verdict_of(self.record)
        head = f"{words.SIGNS[word]} {word.upper()}  {words.shown(words.headline(self.record))}"
        return "\n".join([head, *(words.shown(line) for line in self._lines())])

    def _lines(self) -> list[str]:
        run = self.record
        facts = [
            words.mode(run),
            f"exit code {words.exit_meaning(run.exit_code)}",
            words.took(run) and f"took {words.took(run)}",
        ]
        return [" · ".join(fact for fact in facts if fact), f"run {run.run_id}"]


def way(row: Row) -> str:
    """Return where an action takes something from, and where it puts it."""
    return f"{words.shown(row.get('source') or '?')} → {words.shown(row.get('destination') or '?')}"


# --- helpers ---

_TASK = Column("Task", "code")


def _task(row: Row) -> Cell:
    return Cell(row.get("task") or "(unknown)", str(row.get("task_id") or ""))


def _subject(row: Row) -> Cell:
    subject = str(row.get("subject") or "")
    return Cell(row["task"], subject) if row.get("task") else Cell(subject)


def key(row: Row) -> tuple[str, str]:
    """Return what makes two findings the same one."""
    return str(row.get("code")), str(row.get("subject"))


def _kind(row: Row) -> Cell:
    return Cell(str(row.get("kind") or ""), "may end the running task" if row.get("terminate") else "")


def _because(row: Row) -> str:
    node = f" on {row['node']}" if row.get("node") else ""
    return f"because of {row['why']}{node}" if row.get("why") else ""


def _planned(action: object, known: Mapping[object, Row]) -> Row:
    return known.get(action, {"id": action}) if isinstance(action, int) else row_of(action)


def _ago(at: float | None, taken_at: datetime | None, unknown: str = "unknown") -> str:
    if at is None or taken_at is None:
        return words.clock(at) or unknown
    return f"{age(taken_at.timestamp() - at)} ago"


def _for(at: float | None, taken_at: datetime | None) -> str:
    if at is None or taken_at is None:
        return words.clock(at) and f"since {words.clock(at)}"
    return age(taken_at.timestamp() - at)


def _until(at: float | None, taken_at: datetime | None) -> str:
    if at is None or taken_at is None:
        return words.clock(at)
    left = at - taken_at.timestamp()
    return f"in {age(left)}" if left > 0 else f"{age(-left)} ago"


def _counts(numbers: Mapping[Any, int], most: int = 10) -> str:
    ranked = sorted(numbers.items(), key=lambda item: -item[1]) if most < len(numbers) else list(numbers.items())
    rest = f", {len(ranked) - most} more" if len(ranked) > most else ""
    return ", ".join(f"{name}: {number:,}" for name, number in ranked[:most]) + rest


def _names(names: Iterable[str], nobody: str = "") -> str:
    return ", ".join(names) or nobody


def _rows(rows: Sequence[Any], taken_at: datetime | None, holders: Iterable[HeldTask] = ()) -> object:
    if not rows:
        return findings([]) if isinstance(rows, list) else Line(("Nothing of this kind was seen.",))
    if isinstance(rows[0], UnackedMessage):
        return unacked(rows, taken_at=taken_at, held=holders)
    if isinstance(rows[0], HeldTask):
        return held(rows, taken_at=taken_at)
    view = next((view for kind, view in _ROW_VIEWS.items() if isinstance(rows[0], kind)), None)
    return view(rows) if view else Line(rows)


def _observe(thing: object) -> None:
    if (isinstance(thing, list) or (isinstance(thing, tuple) and thing)) and all(
        isinstance(row, Finding) for row in thing
    ):
        for observer in observers:
            observer(thing)


def _picture(thing: object) -> Chart | None:
    """Return a matplotlib figure as a chart; matplotlib is asked only where it is loaded already."""
    figure = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
    if figure is None or not isinstance(thing, figure):
        return None
    from opslib.render.charts import from_figure

    return from_figure(thing)


def _display(thing: object) -> None:
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(thing)
        return
    out = sys.stdout
    # A terminal in an old locale gets question marks in place of an error.
    print(str(thing).encode(out.encoding or "utf-8", "replace").decode(out.encoding or "utf-8"), file=out, end="\n\n")


_VIEWS: dict[type, Callable[[Any], list[object]]] = {
    Snapshot: snapshot,
    Plan: lambda thing: [plan(thing)],
    RunRecord: lambda thing: [Card(thing)],
    ServerInfo: lambda thing: [server(thing)],
    Finding: lambda thing: [findings([thing])],
}

_ROW_VIEWS: dict[type, Callable[[Any], object]] = {
    Finding: findings,
    Outcome: outcomes,
    QueueInfo: queues,
    NodeInfo: nodes,
    WaitingMessage: waiting,
    UnreadableMessage: unreadable,
    StoredResult: results,
    Coverage: coverage,
}
