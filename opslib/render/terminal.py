"""Tables and lines → what rich puts on a terminal: colours where they help, none of them alone."""

from __future__ import annotations

from rich.table import Table as RichTable
from rich.text import Text

from opslib.redact import plain
from opslib.render.grid import Cell, Column, Table
from opslib.render.summary import Verdict
from opslib.render.words import SIGNS, shown

_STYLES = {
    "critical": "bold red",
    "failed": "bold red",
    "unverified": "bold magenta",
    "attention": "yellow",
    "unknown": "magenta",
    "healthy": "bold green",
    "fine": "green",
    "not seen": "magenta",
    "not judged": "dim",
    "applied": "green",
    "skipped": "dim",
}


def of(thing: object) -> RichTable | Text:
    """Return a thing as rich prints it; nothing in it is markup, whatever it looks like."""
    if isinstance(thing, Table):
        return _table(thing) if thing.rows else Text(str(thing))
    if isinstance(thing, str):
        return Text(shown(thing, 10 * len(thing)))
    return Text(plain(thing), style=_STYLES.get(thing.word, "") if isinstance(thing, Verdict) else "")


def _table(table: Table) -> RichTable:
    # Text and not str: what rich gets as str it reads as markup, and a caption quotes names out of the broker.
    grid = RichTable(
        title=Text(shown(table.title), style="bold") if table.title else None,
        caption=Text(plain(table.below()), style="dim") if table.below() else None,
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for column in table.columns:
        grid.add_column(Text(column.title), justify="right" if column.kind == "number" else "left", **_fit(column))  # type: ignore[arg-type]
    for row in table.rows[: table.limit]:
        grid.add_row(*(_cell(column, value) for column, value in zip(table.columns, row, strict=True)))
    return grid


def _fit(column: Column) -> dict[str, object]:
    """Ids are folded, never cut: they are there to be copied. Words of a state stay whole."""
    if column.kind == "state":
        return {"no_wrap": True}
    return {"overflow": "fold", "min_width": 8} if column.kind == "code" else {"overflow": "fold", "min_width": 12}


def _cell(column: Column, value: object) -> Text:
    text = str(value) if isinstance(value, Cell) else _lines(value)
    if column.kind == "state":
        return Text(f"{SIGNS.get(text, '')} {text}".strip(), style=_STYLES.get(text, ""))
    if isinstance(value, Cell) and value.note:
        return Text.assemble(text, "\n", (shown(value.note), "dim"))
    return Text(text)


def _lines(value: object) -> str:
    """Return a value as text; a new line in it is meant: what comes from the broker is one line by now."""
    return (
        "\n".join(shown(line) for line in str(value).split("\n")) if isinstance(value, str) and value else shown(value)
    )
