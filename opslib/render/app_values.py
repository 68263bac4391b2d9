"""What a key of an application holds, and how many keys it keeps → tables for a person."""

from __future__ import annotations

from collections.abc import Sequence

from opslib.durations import spell
from opslib.facts.app_keys import AppValue, KeyScan
from opslib.render.grid import Cell, Column, Line, Table
from opslib.render.words import plural, size

#: What the elements of each type are called, and what stands before each of them.
_ELEMENTS = {
    "list": ("line", "#"),
    "hash": ("field", "Field"),
    "set": ("member", ""),
    "zset": ("member", "Score"),
    "stream": ("element", "Entry"),
}


def value(found: AppValue) -> list[object]:
    """Return one key on a line, and what it holds; the caption says what of it is not shown."""
    word, label = _ELEMENTS.get(found.type, ("byte", ""))
    life = "never expires" if found.life_s < 0 else f"expires in {spell(found.life_s)}"
    facts = (found.key, found.type, plural(found.elements, word), size(found.size_bytes), life, found.database)
    labels = [Column(label, "number" if label == "#" else "code")] if label else []
    return [
        Line(facts),
        Table(
            title=f"The {found.name} of {found.task_id}",
            columns=[*labels, Column("Value", "code")],
            rows=[((label_of, text) if label else (text,)) for label_of, text in found.parts],
            caption=_rest(found, word),
            empty=f"A {found.type} is not read here.",
            limit=max(1, len(found.parts)),
        ),
    ]


def counts(rows: Sequence[KeyScan], names: Sequence[tuple[str, str, str]]) -> Table:
    """
    Return how many keys there are of each name.

    Args:
        names: Every name with its pattern and its database, also of those that could not be counted.
    """
    found = {row.name: row for row in rows}
    return Table(
        title="The application's own keys",
        columns=(
            Column("Name", "code"),
            Column("Pattern", "code"),
            Column("Keys", "number"),
            Column("Weight", "number"),
            Column("Never expire", "number"),
            Column("Database", "code"),
        ),
        rows=[
            (
                name,
                pattern,
                Cell(found[name].keys, f"about {found[name].left:,} keys not visited" if found[name].left else ""),
                size(found[name].size_bytes),
                found[name].forever,
                database,
            )
            if name in found
            else (name, pattern, "not seen", "", "", database)
            for name, pattern, database in names
        ],
        empty="The target names none: app_keys in ops.toml, or REDIS_PROGRESS_URL and REDIS_LOGS_URL.",
    )


def _rest(found: AppValue, word: str) -> str:
    said = []
    if found.unread:
        said.append(f"{plural(found.unread, word)} more {'is' if found.unread == 1 else 'are'} not shown.")
    if found.cut:
        said.append(f"{plural(found.cut, 'value')} {'is' if found.cut == 1 else 'are'} cut.")
    return " ".join(said)
