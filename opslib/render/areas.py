"""Areas of a deployment → tiles that tell at a glance what is well, and the same as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from opslib.render import words
from opslib.render.grid import Cell, Column, Table
from opslib.render.words import SIGNS, Row, row_of

if TYPE_CHECKING:
    from opslib.facts.care import Area

#: A notebook has no sheet of ours; a report drops this and brings its own, where a dark page is thought of too.
STYLE = (
    "<style>.ops-tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(12.5rem,1fr));gap:.6rem;"
    "list-style:none;padding:0;margin:.3rem 0}"
    ".ops-tile{border:1px solid rgba(128,128,128,.4);border-left:5px solid var(--edge,#8c959f);border-radius:.3rem;"
    "padding:.55rem .8rem;margin:0}"
    ".ops-tile-fine{--edge:#14713a}.ops-tile-attention{--edge:#b07a00}.ops-tile-critical{--edge:#b3122b}"
    ".ops-tile-not-seen{--edge:#5b3fa0}"
    ".ops-tile-name,.ops-tile-figure,.ops-tile small{display:block}.ops-tile-name{font-size:.85em;opacity:.8}"
    ".ops-tile-figure{font-size:1.25em;font-weight:650}.ops-tile small{opacity:.8}</style>"
)
#: Behind what it says, for eyes that see no colour and readers that read aloud.
_STATES = ("fine", "attention", "critical", "not seen", "not judged")


@dataclass(frozen=True)
class Tiles:
    """
    Every part of a deployment, one tile each.
    """

    rows: Sequence[Row]

    def html(self) -> str:
        """Return the tiles without a style of their own, for a report."""
        return f'<ul class="ops-tiles">{"".join(map(_tile, self.rows))}</ul>'

    def _repr_html_(self) -> str:
        return STYLE + self.html()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401 - IPython's printer has no type
        printer.text(str(self))

    def __str__(self) -> str:
        return table(self.rows).text()


def tiles(rows: Iterable[Area | Row]) -> Tiles:
    """Return areas as tiles."""
    return Tiles([row_of(row) for row in rows])


def table(rows: Iterable[Area | Row]) -> Table:
    """Return areas as a table."""
    return Table(
        title="At a glance",
        columns=(Column("State", "state"), Column("Part"), Column("Figure", "number"), Column("What it says")),
        rows=[
            (_state(row), str(row.get("name")), str(row.get("figure")), Cell(str(row.get("says") or " "), _answer(row)))
            for row in map(row_of, rows)
        ],
    )


def _tile(row: Row) -> str:
    state = _state(row)
    look = state.replace(" ", "-")
    sign = f'<span class="ops-state ops-{look}"><span aria-hidden="true">{SIGNS[state]}</span> {state}</span>'
    parts = [
        f'<span class="ops-tile-name">{sign} {escape(words.shown(row.get("name")))}</span>',
        f'<span class="ops-tile-figure">{escape(words.shown(row.get("figure")))}</span>',
    ]
    if row.get("says"):
        parts.append(f"<small>{escape(words.shown(row['says']))}</small>")
    if answer := _answer(row):
        parts.append(f'<small class="ops-tile-answer">{escape(answer)}</small>')
    return f'<li class="ops-tile ops-tile-{look}">{"".join(parts)}</li>'


def _state(row: Row) -> str:
    """Return the state; a word that is none, out of a record of another version, is none that was judged."""
    state = str(row.get("state"))
    return state if state in _STATES else "not judged"


def _answer(row: Row) -> str:
    runbook = str(row.get("runbook") or "")
    return f"→ {words.shown(runbook, 60)}" if runbook and runbook != "health-check" else ""
