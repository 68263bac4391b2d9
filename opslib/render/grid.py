"""Columns and rows → one table that reads alike as HTML in a notebook and as text in a terminal."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from opslib.render.words import SIGNS, shown

Kind = Literal["text", "number", "code", "state"]

#: JupyterLab centres and right-aligns tables; a report brings its own style and drops this one.
STYLE = (
    "<style>.ops-table table{border-collapse:collapse;margin:0}"
    ".ops-table caption{text-align:left;font-weight:600;padding:.3em 0;white-space:nowrap}"
    ".ops-table :is(th,td){text-align:left!important;vertical-align:top!important;padding:.3em 1em .3em 0}"
    ".ops-table .ops-number{text-align:right!important;font-variant-numeric:tabular-nums}"
    ".ops-table .ops-code{font-family:monospace;overflow-wrap:anywhere}"
    ".ops-table .ops-state{white-space:nowrap;font-weight:600}.ops-table small{display:block;opacity:.75}</style>"
)

NARROWEST = 14
#: What holds a task's id behind a short prefix, or a run's, on one line.
_LONGEST_CODE = 46
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """
    One column.

    Attributes:
        kind: number is right-aligned; code is monospaced and never cut; state is a word with its sign.
    """

    title: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """
    A cell with a second, quieter line.
    """

    text: object
    note: str = ""

    def __str__(self) -> str:
        return shown(self.text)


@dataclass(frozen=True, kw_only=True)
class Table:
    """
    Rows for a person; escaped and masked on the way out, never before.

    Attributes:
        caption: A sentence below the table.

        empty: The sentence that stands in place of an empty frame.

        limit: Rows shown; the number of the others is said.

        stack: Whether a phone shows each row as a block, because its text would not fit beside the rest.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    empty: str = "Nothing to show."
    limit: int = 50
    stack: bool = False

    def html(self) -> str:
        """Return the table as HTML without a style of its own, for a report."""
        return _html(self)

    def text(self, width: int | None = None, *, fold: bool = False) -> str:
        """
        Return the table as plain text of `width` columns.

        Args:
            fold: As on a terminal, codes are folded where they are wider, and a new line in a value begins one.
        """
        return _text(self, width or shutil.get_terminal_size((100, 24)).columns, fold=fold)

    def _repr_html_(self) -> str:
        return STYLE + _html(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401 - IPython's printer has no type
        printer.text(self.text())

    def __str__(self) -> str:
        return self.text()

    def below(self) -> str:
        """Return what stands below the rows: the caption, and how many rows are not shown."""
        rest = len(self.rows) - self.limit
        more = f"The first {self.limit:,} of {len(self.rows):,}; {rest:,} more are not shown here." if rest > 0 else ""
        return " ".join(part for part in (more, shown(self.caption) if self.caption else "") if part)


@dataclass(frozen=True)
class Line:
    """
    A few facts on one line.
    """

    parts: Sequence[object] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the line as HTML."""
        return f'<p class="ops-line">{escape(str(self))}</p>'

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401 - IPython's printer has no type
        printer.text(str(self))

    def __str__(self) -> str:
        return " · ".join(shown(part) for part in self.parts if part)


def _html(table: Table) -> str:
    title = f"<caption>{escape(shown(table.title))}</caption>" if table.title else ""
    if not table.rows:
        head = f"<strong>{escape(shown(table.title))}</strong> " if table.title else ""
        return f'<p class="ops-empty">{head}{escape(table.empty)}</p>'
    heads = "".join(f'<th scope="col" class="ops-{c.kind}">{escape(c.title)}</th>' for c in table.columns)
    rows = "".join(f"<tr>{_cells(table.columns, row)}</tr>" for row in table.rows[: table.limit])
    note = f'<p class="ops-note">{escape(table.below())}</p>' if table.below() else ""
    stack = " ops-stack" if table.stack else ""
    body = f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="ops-table{stack}">{body}{note}</div>'


def _cells(columns: Sequence[Column], row: Sequence[object]) -> str:
    return "".join(
        f'<td class="ops-{column.kind}" data-label="{escape(column.title)}">{_cell(column, cell)}</td>'
        for column, cell in zip(columns, row, strict=True)
    )


def _cell(column: Column, value: object) -> str:
    text, note = escape(_shown(value)), escape(shown(value.note)) if isinstance(value, Cell) and value.note else ""
    if column.kind == "state" and text in SIGNS:
        text = f'<span class="ops-{text.replace(" ", "-")}"><span aria-hidden="true">{SIGNS[text]}</span> {text}</span>'
    return f"{text}<small>{note}</small>" if note else text


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Cell) else shown(value)


def _text(table: Table, width: int, *, fold: bool) -> str:
    if not table.rows:
        return f"{shown(table.title)}: {table.empty}" if table.title else table.empty
    grid = [
        [_lines(column, cell, fold=fold) for column, cell in zip(table.columns, row, strict=True)]
        for row in table.rows[: table.limit]
    ]
    widths = _fit(table.columns, grid, width, ("text", "code") if fold else ("text",))
    lines = [_line([column.title for column in table.columns], table.columns, widths)]
    lines.append(_line(["─" * each for each in widths], table.columns, widths))
    for row in grid:
        lines += _wrapped(row, table.columns, widths)
    return "\n".join(
        [*([shown(table.title)] if table.title else []), *lines, *([table.below()] if table.below() else [])]
    )


def _lines(column: Column, value: object, *, fold: bool) -> list[str]:
    if fold and isinstance(value, str) and "\n" in value:
        return [shown(line) for line in value.split("\n")]
    text = _shown(value)
    if column.kind == "state" and text in SIGNS:
        text = f"{SIGNS[text]} {text}"
    return [text, shown(value.note)] if isinstance(value, Cell) and value.note else [text]


def _fit(
    columns: Sequence[Column], grid: Iterable[Sequence[Sequence[str]]], width: int, elastic: Sequence[Kind]
) -> list[int]:
    """
    Give every column its natural width, then take until a row fits.

    Codes longer than any id give first, then the widest of each kind that gives.
    """
    rows = list(grid)
    widths = [
        max([cells(column.title), *(cells(line) for row in rows for line in row[at])])
        for at, column in enumerate(columns)
    ]
    for at, column in enumerate(columns):
        if column.kind == "code" and "code" in elastic:  # or one hash would leave no room for the sentence beside it
            over = sum(widths) + len(_GAP) * (len(widths) - 1) - width
            widths[at] -= max(0, min(over, widths[at] - _LONGEST_CODE))
    for kind in elastic:
        giving = [at for at, column in enumerate(columns) if column.kind == kind]
        while giving and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
            widest = max(giving, key=lambda at: widths[at])
            if widths[widest] <= NARROWEST:
                break
            widths[widest] -= 1
    return widths


def _wrapped(row: Sequence[Sequence[str]], columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    blocks = [
        [piece for line in lines for piece in _pieces(line, size)] for lines, size in zip(row, widths, strict=True)
    ]
    height = max(len(block) for block in blocks)
    return [_line([block[at] if at < len(block) else "" for block in blocks], columns, widths) for at in range(height)]


def _pieces(line: str, size: int) -> list[str]:
    """Return a line in pieces; what a piece goes on with is indented, or it could pass for a line of ours."""
    return textwrap.wrap(line, size, subsequent_indent=" ") if cells(line) > size else [line]


def _line(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = [
        f"{' ' * (size - cells(text))}{text}" if column.kind == "number" else f"{text}{' ' * (size - cells(text))}"
        for text, column, size in zip(texts, columns, widths, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
