"""A record → what stands above the notebook: the answers of the head, and findings, plan and outcomes in groups."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from opslib import catalog, redact
from opslib.findings import CODES
from opslib.render import areas, judged, resets, tables, words
from opslib.render.grid import Column, Table
from opslib.render.words import SIGNS, Row

if TYPE_CHECKING:
    from opslib.catalog import Parameter
    from opslib.records import RunRecord

#: Rows of a group that stand open; the others are folded.
OPEN = 6
#: Rows of all groups of a section; record.json has every one.
MOST = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """
    One row of a group.

    Attributes:
        number: Of its action; empty for a finding.

        code: Task id, queue or key, whole.
    """

    name: str
    code: str
    text: str
    note: str = ""
    number: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """
    Rows that mean the same, under one head that says it once.

    Attributes:
        word: The severity, kind or status that they share; `sign` stands beside it.

        lead: What to do about all of them, or what happens to all of them.

        note: Why, in a quieter line.
    """

    word: str
    sign: str
    title: str
    lead: str
    items: Sequence[Item]
    note: str = ""

    @property
    def open(self) -> Sequence[Item]:
        """The rows that are seen at once; a single one more is not worth a fold."""
        return self.items if len(self.items) <= OPEN + 1 else self.items[:OPEN]

    @property
    def folded(self) -> Sequence[Item]:
        """The rows that are not."""
        return self.items[len(self.open) :]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """
    One part of the page above the notebook.

    Attributes:
        cells: Ids of the notebook's cells that it comes from; the first that exists is linked.

        empty: The sentence in place of groups.
    """

    id: str
    title: str
    cells: tuple[str, ...]
    count: int = 0
    groups: Sequence[Group] = ()
    table: Markup = field(default_factory=Markup)
    empty: str = ""
    note: str = ""


def answers(run: RunRecord, *, known: bool) -> list[dict[str, str]]:
    """
    Answer what a person asks first: where, what was found, what was changed, how much was seen.

    Args:
        known: False where the run left no record, so that nothing is known of its changes.
    """
    made, behind = words.changes(run) if known else ("Not known", "The run left no record.")
    found, look, then = _found(run)
    broker = words.shown(redact.url(run.broker)) if run.broker else ""
    return [
        _answer("Where", words.shown(run.target) if run.target else "Not known", broker),
        _answer("Found" if run.scope != "change" else "Found beside it", found, then, look),
        _answer("Changes", made, behind, "unknown" if made == "Not known" else ""),
        _seen(run),
    ]


def facts(run: RunRecord) -> list[dict[str, object]]:
    """Return the run's circumstances, those that are known."""
    known = [
        ("Started", words.clock(run.started_at), False),
        ("Took", words.took(run), False),
        ("Operator", run.operator, False),
        ("Reason", run.reason, False),
        ("Exit code", words.exit_meaning(run.exit_code), False),
        ("Runbook", run.runbook, False),
        ("Run", run.run_id, True),
        ("Of run", str(run.parameters.get("run") or ""), True),
    ]
    return [{"term": term, "value": words.shown(value), "code": code} for term, value, code in known if value]


def unseen(run: RunRecord) -> list[dict[str, str]]:
    """Return the places of which some part was not seen."""
    return [
        {
            "place": words.shown(row.get("place"), 80),
            "figures": f"{words.shown(row.get('silent'))} of {_total(row)} not seen",
            "note": words.maybe(row.get("note")),
        }
        for row in run.coverage
        if row.get("silent")
    ]


def following(run: RunRecord) -> list[dict[str, str]]:
    """Return the commands that come next, where there are some."""
    actions = words.actions_of(run)
    if run.error or not actions:
        return []
    if not run.dry_run:
        of = run.parameters.get("run") or run.run_id
        before = words.way_back(run)
        text = f"To put back what was changed. {before}" if before else "To put back what was changed:"
        return [_step(text, "ops", "undo", str(of))] if words.undoable(run) else []
    exactly = _step("To make just these changes, within 15 minutes of the plan:", "ops", "apply", run.run_id)
    if run.runbook not in catalog.names():
        return [exactly]
    given = [f"{name}={value}" for name, value in run.parameters.items() if name not in {"dry_run", "target"}]
    target = ["--target", run.target] if run.target else []
    pairs = itertools.chain.from_iterable(("-p", pair) for pair in given)
    return [exactly, _step("Later, after one more look:", "ops", "run", run.runbook, *target, *pairs, "--apply")]


def _step(text: str, *command: str) -> dict[str, str]:
    return {"text": text, "command": redact.plain(shlex.join(command))}


def sections(run: RunRecord) -> list[Section]:
    """Return the sections in reading order: what was done or found, what would be done, what was seen."""
    if words.changed(run):
        parts = [
            _outcomes(run),
            _findings("What remains", run.remaining, ("verify",), before=run.findings),
            *_gone(run),
        ]
    else:
        title = "Findings so far" if run.error else "Findings"
        empty = "The run stopped before it could judge." if run.error else judged.NO_FINDINGS
        of = run.runbook if run.areas else ""
        parts = [_findings(title, _left(run), ("diagnosis",), empty=empty, of=of), *_plan(run)]
    return [*_glance(run), *parts, *_coverage(run)]


def parameters(run: RunRecord, declared: Iterable[Parameter]) -> Markup:
    """Return the parameters as a table: what was given, what that is by default, what it means."""
    known = {parameter.name: parameter for parameter in declared}
    rows = [_parameter(name, run.parameters, known) for name in dict.fromkeys([*known, *run.parameters])]
    if not rows:
        return Markup()
    columns = (Column("Parameter", "code"), Column("Value", "code"), Column("Given"), Column("Meaning"))
    return _markup(Table(title="Parameters", columns=columns, rows=rows, limit=len(rows)))


# --- the head ---


def _answer(term: str, value: str, note: str, look: str = "") -> dict[str, str]:
    return {"term": term, "value": value, "note": note, "look": look}


def _found(run: RunRecord) -> tuple[str, str, str]:
    rows = _left(run)
    if run.error and not rows:
        return "Not known", "", "The run stopped before it could judge."
    figures = words.by_severity(rows).capitalize() if rows else "Nothing"
    worst = str(words.worst_first(rows)[0].get("severity")) if rows else ""
    before = f"At the start: {words.by_severity(run.findings)}" if words.changed(run) else ""
    if run.error:
        before = "So far; the run did not end."
    return figures, worst if worst in SIGNS else "", before


def _left(run: RunRecord) -> Sequence[Row]:
    """Return what remains; a run that stopped has only what it had found so far."""
    return run.remaining if run.remaining or not run.error else run.findings


def _seen(run: RunRecord) -> dict[str, str]:
    if not run.coverage:
        return _answer("Seen", "Not recorded", "")
    silent = [words.shown(row.get("place"), 40) for row in run.coverage if row.get("silent")]
    if silent:
        return _answer("Seen", "Partly", f"Not all of: {', '.join(silent)}", "unknown")
    return _answer("Seen", "All that was asked", f"{words.plural(len(run.coverage), 'place')} answered")


def _total(row: Row) -> str:
    seen, silent = row.get("seen"), row.get("silent")
    return words.shown(seen + silent) if isinstance(seen, int) and isinstance(silent, int) else "some"


# --- the sections ---


def _findings(
    title: str,
    rows: Sequence[Row],
    cells: tuple[str, ...],
    *,
    before: Sequence[Row] | None = None,
    empty: str = judged.NO_FINDINGS,
    of: str = "",
) -> Section:
    """
    Return findings by severity and code; those that `before` lacks are called new.

    Args:
        of: The runbook that looked at everything: what another one answers names it.
    """
    ranked, old = words.worst_first(rows), None if before is None else {judged.key(row) for row in before}
    marked = [
        {**row, "new": old is not None and judged.key(row) not in old, "answer": words.elsewhere(row, of)}
        for row in ranked
    ]
    return Section(
        id="findings",
        title=title,
        cells=cells,
        count=len(ranked),
        groups=_grouped(marked[:MOST], ("severity", "code", "answer"), _finding_group),
        empty=empty,
        note=_rest(len(ranked)),
    )


def _finding_group(rows: Sequence[Row]) -> Group:
    first, hints = rows[0], {str(row.get("hint") or "") for row in rows}
    shared = len(hints) == 1
    return Group(
        word=words.shown(first.get("severity"), 20),
        sign=SIGNS.get(str(first.get("severity")), "?"),
        title=_sentence(first),
        lead=words.maybe(hints.pop()) if shared else "",
        items=[_finding_item(row, hint="" if shared else str(row.get("hint") or "")) for row in rows],
        note=f"Its runbook: {first['answer']}" if first.get("answer") else "",
    )


def _finding_item(row: Row, hint: str) -> Item:
    name, code = _named(row)
    new = "New since the start. " if row.get("new") else ""
    notes = [words.evidence(row.get("evidence")), words.maybe(hint)]
    return Item(name=name, code=code, text=new + words.maybe(row.get("message")), note=" — ".join(filter(None, notes)))


def _gone(run: RunRecord) -> list[Section]:
    left = {judged.key(row) for row in run.remaining}
    gone = [row for row in words.worst_first(run.findings) if judged.key(row) not in left]
    groups = _grouped(gone[:MOST], ("code",), _gone_group)
    return (
        [
            Section(
                id="gone",
                title="What is gone",
                cells=("diagnosis",),
                count=len(gone),
                groups=groups,
                note=_rest(len(gone)),
            )
        ]
        if gone
        else []
    )


def _gone_group(rows: Sequence[Row]) -> Group:
    items = [Item(name=name, code=code, text="") for name, code in map(_named, rows)]
    return Group(word="gone", sign=SIGNS["gone"], title=_sentence(rows[0]), lead="", items=items)


def _sentence(row: Row) -> str:
    """Return what a finding's code means, as docs/findings.md says it."""
    code = str(row.get("code"))
    return CODES.get(code, words.shown(code, 80))


def _plan(run: RunRecord) -> list[Section]:
    actions = words.actions_of(run)
    if not actions:
        return []
    return [
        Section(
            id="plan",
            title="What would be done" if run.dry_run else "What was planned",
            cells=("plan",),
            count=len(actions),
            groups=_planned(actions[:MOST]),
            note=_rest(len(actions)),
        )
    ]


def _planned(actions: Sequence[Row]) -> list[Group]:
    """Return the plan's actions: those of steps step by step, others by what they mean."""
    if any(action.get("step") for action in actions):
        return _grouped(actions, ("step",), _step_group)
    return _grouped(actions, ("kind", "source", "destination", "effect", "why"), _action_group)


def _step_group(rows: Sequence[Row]) -> Group:
    """Return one step: what was done of it where that is known, otherwise what would be."""
    first = rows[0]
    step = str(first.get("step") or "")
    done = "status" in first
    return Group(
        word=words.shown(first["status"] if done else step or "at once", 40),
        sign=SIGNS.get(first["status"], "?") if done else "→",
        title=f"{words.shown(step or 'at once')}: {resets.STEPS.get(step, '')}" if done else resets.STEPS.get(step, ""),
        lead="",
        items=[_step_item(row) for row in rows],
    )


def _step_item(row: Row) -> Item:
    outcome = row.get("outcome")
    name, code = _named(row)
    said, steps = (outcome.get("reason"), _steps(outcome)) if isinstance(outcome, Mapping) else (row.get("effect"), "")
    kind = words.shown(row.get("kind") or "action", 40)
    return Item(
        name=f"{kind} {name}".strip(), code=code, text=words.maybe(said), note=steps, number=words.maybe(row.get("id"))
    )


def _action_group(rows: Sequence[Row]) -> Group:
    first = rows[0]
    return Group(
        word=words.shown(first.get("kind"), 40),
        sign="→",
        title=judged.way(first),
        lead=words.maybe(first.get("effect")),
        items=[_action_item(row, _running(row)) for row in rows],
        note=f"Because: {CODES.get(str(first['why']), words.shown(first['why']))}" if first.get("why") else "",
    )


def _action_item(row: Row, text: str, note: str = "") -> Item:
    name, code = _named(row)
    number = words.maybe(row.get("id"))
    return Item(name=name, code=code, text=text, note=note, number=number)


def _running(row: Row) -> str:
    """Return what cannot be taken back: that a task which runs may be ended, and where."""
    node = f" on {words.shown(row['node'])}" if row.get("node") else ""
    return f"May end the task that runs{node}." if row.get("terminate") else node.strip().capitalize()


def _glance(run: RunRecord) -> list[Section]:
    if not run.areas:
        return []
    picture = Markup(areas.tiles(run.areas).html())  # noqa: S704 - the tiles escape their cells
    return [Section(id="glance", title="At a glance", cells=("areas",), table=picture)]


def _outcomes(run: RunRecord) -> Section:
    joined = judged.joined(run.outcomes, words.actions_of(run))
    stepped = any(action.get("step") for _, action in joined)
    rank = {} if stepped else {"failed": 0, "unverified": 0, "skipped": 1, "applied": 2}
    flat = [{**action, "status": str(row.get("status")), "outcome": row} for row, action in joined]
    flat.sort(key=lambda row: rank.get(row["status"], 0))
    return Section(
        id="outcomes",
        title="What was done",
        cells=("apply",),
        count=len(flat),
        groups=_grouped(flat[:MOST], ("step", "status"), _step_group)
        if stepped
        else _grouped(flat[:MOST], ("status", "kind", "source", "destination"), _outcome_group),
        empty="Nothing was done.",
        note=_rest(len(flat)),
    )


def _outcome_group(rows: Sequence[Row]) -> Group:
    first = rows[0]
    return Group(
        word=words.shown(first["status"], 20),
        sign=SIGNS.get(first["status"], "?"),
        title=f"{words.shown(first.get('kind') or 'action', 40)}: {judged.way(first)}",
        lead="",
        items=[_action_item(row, words.maybe(row["outcome"].get("reason")), _steps(row["outcome"])) for row in rows],
    )


def _steps(outcome: Row) -> str:
    return " → ".join(words.shown(step) for step in outcome.get("steps") or ())


def _coverage(run: RunRecord) -> list[Section]:
    if not run.coverage:
        return []
    title, cells = "What was seen, and what was not", ("facts",)
    if any(row.get("silent") or row.get("note") for row in run.coverage):
        return [Section(id="coverage", title=title, cells=cells, table=_markup(tables.coverage(run.coverage)))]
    figures = ", ".join(f"{words.shown(row.get('place'), 80)} {words.shown(row.get('seen'))}" for row in run.coverage)
    return [Section(id="coverage", title=title, cells=cells, empty=f"Everything that was asked answered: {figures}.")]


def _parameter(name: str, given: Mapping[str, object], known: Mapping[str, Parameter]) -> tuple[object, ...]:
    declared = known.get(name)
    value = given.get(name, declared.default if declared else "")
    # As it is written on the command line: 2000000, not 2,000,000.
    return (
        name,
        "(empty)" if value == "" else str(value),
        "given" if name in given else "default",
        declared.help if declared else "",
    )


def _named(row: Row) -> tuple[str, str]:
    subject = words.maybe(row.get("subject"))
    return (words.shown(row["task"], 200), subject) if row.get("task") else ("", subject)


def _grouped(rows: Iterable[Row], by: Sequence[str], make: Callable[[Sequence[Row]], Group]) -> list[Group]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(name)) for name in by), []).append(row)
    return [make(group) for group in groups.values()]


def _rest(count: int) -> str:
    return f"The first {MOST:,} of {count:,}; record.json has them all." if count > MOST else ""


def _markup(table: Table) -> Markup:
    return Markup(table.html())  # noqa: S704 - the table escapes its cells
