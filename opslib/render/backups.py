"""How a server saves, what was kept of it, what a rehearsed restore held, and the way back → tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opslib.durations import spell
from opslib.facts.backup import Backup, Census, Compared, Family, RestoreStep, Saves
from opslib.render import tables
from opslib.render.grid import Cell, Column, Table
from opslib.render.words import Row, clock, plural, row_of, size


def saves(seen: Saves) -> list[object]:
    """Return the server, how it saves, its keys, and what was not seen."""
    return [tables.server(seen), saving(seen), families(seen.census), tables.coverage(seen.coverage)]


def saving(seen: Saves) -> Table:
    """Return how the server saves its data."""
    each = seen.saving
    age_s = max(0.0, (seen.taken_at - each.last_save_at).total_seconds())
    points = {None: "not told", "": "never"}.get(each.save_points, f"after {each.save_points}")
    where = f"{each.directory.rstrip('/')}/{each.file}" if each.directory else "not told"
    rows: list[tuple[object, object]] = [
        ("Last save", Cell(clock(each.last_save_at), _last(seen, age_s))),
        ("Changes since", f"{each.changes:,}"),
        ("State", "saving now" if each.running else "the last save failed" if each.failing else "in order"),
        ("By itself", points),
        ("File", Cell(where, each.untold)),
        ("Append-only file", Cell("on" if each.aof else "off", each.aof_folder if each.aof else "")),
        (
            "Memory",
            Cell(size(each.used_bytes), f"a save may take as much again; the machine has {size(each.machine_bytes)}"),
        ),
        ("Replicas", each.replicas),
        ("Keys", ", ".join(f"{keys:,} in database {n}" for n, keys in sorted(each.databases.items())) or "none"),
    ]
    if each.elsewhere:
        rows.append(("On other servers", Cell(", ".join(each.elsewhere), "not in a dump of this one")))
    return Table(title="How it is saved", columns=(Column("What"), Column("How it stands")), rows=rows)


def families(census: Census) -> Table:
    """Return the keys of the broker's database by family and type."""
    of = f" One key of {census.one_of:,} was looked at, chosen by its name." if census.one_of > 1 else ""
    return Table(
        title="Keys of the broker's database",
        columns=(Column("Family"), Column("Type"), Column("Keys", "number"), Column("Elements or bytes", "number")),
        rows=[(each.family, each.type, each.keys, f"{each.elements:,}") for each in census.families],
        caption=f"{plural(census.keys, 'key')} in all.{of}",
        empty="No key is in the broker's database.",
    )


def backup(made: Backup) -> list[object]:
    """Return what was kept, and how the rehearsal ended, with the keys side by side."""
    kept = "These files are kept in the run's folder, readable for their owner alone: they hold arguments and results."
    tried = (
        "Nothing was saved by this run, so this was only tried, on whatever dump was there, and nothing of it is kept."
    )
    return [
        Table(
            title="The backup",
            columns=(
                Column("What"),
                Column("State", "state"),
                Column("Size", "number"),
                Column("Of"),
                Column("File", "code"),
            ),
            rows=[
                (
                    each.kind,
                    "not seen" if each.problem else "whole",
                    size(each.size_bytes),
                    Cell(
                        clock(each.saved_at) if each.saved_at else "now" if each.size_bytes else "–",
                        each.problem or each.note,
                    ),
                    Cell(each.path or "not kept", f"sha256 {each.sha256}" if each.sha256 else ""),
                )
                for each in made.files
            ],
            caption=kept if made.fresh else tried,
            stack=True,
        ),
        _rehearsed(made),
        *[_side_by_side(each, made.census) for each in made.compared if not each.problem],
    ]


def steps(rows: Sequence[RestoreStep | Row]) -> Table:
    """Return how a deployment is restored, in order."""
    return Table(
        title="How to restore it",
        columns=(Column("", "number"), Column("Step"), Column("Command", "code"), Column("Otherwise")),
        rows=[(number, row["title"], row["command"], row["why"]) for number, row in enumerate(map(row_of, rows), 1)],
        stack=True,
    )


def _last(seen: Saves, age_s: float) -> str:
    each = seen.saving
    took = f", took {each.took_s:,.0f} s" if each.took_s >= 0 else ", none since the server was started"
    return f"{spell(age_s)} ago{took}"


def _rehearsed(made: Backup) -> Table:
    return Table(
        title="Restore, rehearsed",
        columns=(
            Column("Of"),
            Column("State", "state"),
            Column("Keys", "number"),
            Column("Stood still", "number"),
            Column("Held as they are", "number"),
            Column("By"),
        ),
        rows=[
            (
                each.of,
                _state(each, fresh=made.fresh),
                each.keys,
                each.settled,
                each.same,
                Cell(each.by or "nobody", each.problem or _loaded(each)),
            )
            for each in made.compared
        ],
        caption="A key that stood still looked the same before the save and after it, so a backup has to hold it so.",
        empty="Nothing was rehearsed.",
        stack=True,
    )


def _loaded(each: Compared) -> str:
    if not each.databases:
        return ""
    counts = ", ".join(f"{keys:,} keys in database {number}" for number, keys in sorted(each.databases.items()))
    return f"loaded in {each.took_s:.1f} s: {counts}"


def _state(each: Compared, *, fresh: bool) -> str:
    if each.problem:
        return "not seen"
    if each.same == each.settled:
        return "whole"
    return "partly" if fresh or each.of == "export" else "not there" if not each.same else "partly"


def _side_by_side(each: Compared, census: Census) -> Table:
    theirs, ours = _counted(census.families), _counted(each.families)
    return Table(
        title=f"The server and the {each.of}, side by side",
        columns=(
            Column("Family"),
            Column("Type"),
            Column("Keys on the server", "number"),
            Column(f"in the {each.of}", "number"),
        ),
        rows=[
            (*pair, theirs[pair].keys if pair in theirs else 0, ours[pair].keys if pair in ours else 0)
            for pair in dict.fromkeys([*theirs, *ours])
        ],
        caption="Replies, streams and the application's own keys are in a dump alone." if each.of == "export" else "",
        empty="Neither has a key.",
    )


def _counted(rows: Iterable[Family]) -> dict[tuple[str, str], Family]:
    return {(row.family, row.type): row for row in rows}
