"""The modes of a reset, nodes to drain, a plan of steps and what became of it → tables that say it in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from opslib.durations import spell
from opslib.facts.resets import DrainNode, ResetChoice
from opslib.plan import Kind, Outcome, Plan, Status
from opslib.render import words
from opslib.render.grid import Cell, Column, Table
from opslib.render.words import Row, row_of

#: What each step of a plan is for.
STEPS = {
    "freeze": "nodes take no more",
    "revoke": "what nodes hold is revoked, ended and kept",
    "shutdown": "nodes end",
    "clear": "what waits is kept",
    "state": "what the application noted down of these tasks goes",
    "start": "nodes are started again",
    "resume": "nodes consume again",
    "canary": "a task through every queue",
    "drain": "what runs comes to its end",
}


def choices(rows: Sequence[ResetChoice | Row]) -> Table:
    """Return what each mode would take, end and leave, as numbers."""
    return Table(
        title="What each mode would do",
        columns=(
            Column("Mode"),
            Column("Queues frozen", "number"),
            Column("Running: ended", "number"),
            Column("run on", "number"),
            Column("Held by nodes", "number"),
            Column("Unacked kept", "number"),
            Column("Waiting kept", "number"),
            Column("Unacked left", "number"),
            Column("Nodes shut down", "number"),
            Column("Canaries", "number"),
        ),
        rows=[
            (
                Cell(row["mode"], row["meaning"]),
                *(
                    row[name]
                    for name in (
                        "frozen",
                        "ended",
                        "running_on",
                        "held",
                        "unacked",
                        "waiting",
                        "left",
                        "nodes",
                        "canaries",
                    )
                ),
            )
            for row in map(row_of, rows)
        ],
        empty="There is no mode.",
        stack=True,
    )


def nodes(rows: Sequence[DrainNode | Row]) -> Table:
    """Return what each node has to end, and what would be lost with it."""
    return Table(
        title="What each node has to end",
        columns=(
            Column("Node", "code"),
            Column("Running", "number"),
            Column("Lost if killed", "number"),
            Column("Reserved", "number"),
            Column("Scheduled", "number"),
            Column("Longest"),
            Column("Consumes", "code"),
            Column("Nobody else consumes", "code"),
        ),
        rows=[
            (
                row["node"],
                row["running"],
                row["lost"],
                row["reserved"],
                row["scheduled"],
                spell(row["longest_s"]) if row["running"] else "",
                ", ".join(row["queues"]),
                ", ".join(row["alone"]),
            )
            for row in map(row_of, rows)
        ],
        empty="No node answers.",
        stack=True,
    )


def steps(plan: Plan | Row) -> Table:
    """Return a plan step by step: how many actions, about how many messages, and the gate that ends each."""
    content: Row = plan.content() if isinstance(plan, Plan) else plan
    actions = [row_of(action) for action in content.get("actions") or ()]
    return Table(
        title="Step by step: what would be done",
        columns=(
            Column("#", "number"),
            Column("Step"),
            Column("Actions"),
            Column("Messages", "number"),
            Column("It goes on once"),
        ),
        rows=[
            (
                number,
                _name(name),
                words.kinds(action for action in some if not _is_gate(action)),
                sum(int(copy.get("count") or 0) for each in some for copy in map(row_of, each.get("copies") or ())),
                "; ".join(words.shown(action.get("subject")) for action in some if _is_gate(action)),
            )
            for number, (name, some) in enumerate(_steps(actions).items(), 1)
        ],
        empty="Nothing would be done.",
    )


def became(outcomes: Iterable[Outcome]) -> Table:
    """Return what became of a plan, step by step: how far it came, and what held it up."""
    found: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda each: each.action.id):
        found.setdefault(outcome.action.step, []).append(outcome)
    return Table(
        title="Step by step: what was done",
        columns=(
            Column("#", "number"),
            Column("Step"),
            Column("Outcome", "state"),
            Column("Actions"),
            Column("What held it up"),
        ),
        rows=[
            (
                number,
                _name(name),
                _worst(some),
                ", ".join(f"{n:,} {word}" for word, n in sorted(Counter(str(o.status) for o in some).items())),
                next((o.reason for o in some if o.status not in {Status.APPLIED, Status.SKIPPED}), ""),
            )
            for number, (name, some) in enumerate(found.items(), 1)
        ],
        empty="Nothing was done.",
    )


def _worst(outcomes: Sequence[Outcome]) -> str:
    """Return the word for a step: nothing to do is no fault where something else of it was done."""
    order = (Status.FAILED, Status.UNVERIFIED, Status.APPLIED, Status.SKIPPED)
    return str(next(word for word in order if any(o.status is word for o in outcomes)))


def _steps(actions: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for action in actions:
        found.setdefault(str(action.get("step") or ""), []).append(action)
    return found


def _is_gate(action: Row) -> bool:
    return action.get("kind") == Kind.AWAIT


def _name(step: str) -> Cell:
    return Cell(words.shown(step or "at once"), STEPS.get(step, ""))
