"""What server and nodes say of their own health → tables with columns for a person."""

from __future__ import annotations

from opslib.durations import spell
from opslib.facts.care import Care, NodeCare, ServerCare
from opslib.render import words
from opslib.render.grid import Cell, Column, Table
from opslib.render.words import clock, count, size


def show(care: Care) -> list[object]:
    """Return the server's own figures, how nodes are set up, and what was slow."""
    return [server(care.server), nodes(care), slow(care.server)]


def server(care: ServerCare) -> Table:
    """Return what the server says of memory, disk and connections; "not told" for what it does not."""
    told = "not told"
    age = spell(care.save_age_s) if care.save_age_s is not None else "none since it started"
    saves = {None: told, "": "never"}.get(care.saves, care.saves)
    rows = [
        ("Memory of the machine", size(care.rss_bytes) if care.rss_bytes else told, _ratio(care.fragmentation)),
        ("Keys thrown away", told if care.evicted is None else count(care.evicted), "since it started, to make room"),
        ("Append-only file", {True: "on", False: "off", None: told}[care.aof], _failed(failed=care.aof_failed)),
        ("Last snapshot", age, _failed(failed=care.save_failed)),
        ("Takes snapshots", saves, "seconds and changes, as `save` has them" if care.saves else ""),
        ("Not in a snapshot", told if care.unsaved is None else count(care.unsaved), "changes since the last one"),
        ("Connections at most", told if care.maxclients is None else count(care.maxclients), _refused(care.rejected)),
        ("Replicas", count(len(care.replicas)), ", ".join(f"{each.name} {each.state}" for each in care.replicas)),
    ]
    return Table(title="Server", columns=(Column("What"), Column("Now"), Column("Of this")), rows=rows)


def _ratio(fragmentation: float | None) -> str:
    return "" if fragmentation is None else f"{fragmentation:.1f} times what it keeps"


def _failed(*, failed: bool) -> str:
    return "the last attempt failed" if failed else ""


def _refused(rejected: int | None) -> str:
    return f"{rejected:,} were refused since it started" if rejected else ""


def nodes(care: Care) -> Table:
    """Return how each node is set up."""
    return Table(
        title="How nodes are set up",
        columns=(
            Column("Node", "code"),
            Column("Time limit"),
            Column("Tasks without one", "number"),
            Column("A process is replaced"),
            Column("Acknowledged late", "number"),
            Column("Versions"),
        ),
        rows=[_node(node) for node in care.nodes],
        empty="No node said how it is set up.",
    )


def _node(node: NodeCare) -> tuple[object, ...]:
    soft = f"asked to end after {spell(node.soft_time_limit_s)}" if node.soft_time_limit_s else ""
    limit = spell(node.time_limit_s) if node.time_limit_s else "none"
    without = 0 if node.time_limit_s else sum(task.time_limit_s is None for task in node.tasks)
    after = [f"after {node.max_tasks_per_child:,} tasks"] if node.max_tasks_per_child else []
    after += [f"beyond {size(node.max_memory_per_child_bytes)}"] if node.max_memory_per_child_bytes else []
    return (
        words.shown(node.name),
        Cell(limit, soft),
        f"{without:,} of {len(node.tasks):,}",
        ", ".join(after) or "never",
        sum(task.acks_late for task in node.tasks),
        ", ".join(f"{what} {version}" for what, version in node.versions.items()) or "not told",
    )


def slow(care: ServerCare) -> Table:
    """Return the slow log by command, the slowest first."""
    return Table(
        title="Slow log",
        columns=(
            Column("Command", "code"),
            Column("Times", "number"),
            Column("Longest", "number"),
            Column("Last"),
        ),
        rows=[(row.name, row.count, f"{row.longest_s * 1000:,.0f} ms", clock(row.last_at)) for row in care.slow],
        empty="No slow command.",
        limit=10,
    )
