"""A snapshot → the overall figures of a deployment: what runs, what waits, what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from opslib.facts.system import FINAL_STATES
from opslib.render import rows as tables_of_tasks
from opslib.render import tables
from opslib.render.grid import Column, Table
from opslib.render.words import compact, count, shown, size

if TYPE_CHECKING:
    from opslib.facts.snapshot import Snapshot


def figures(seen: Snapshot) -> dict[str, object]:
    """Return the figures by name, for a program."""
    places = {place: sum(task.place == place for task in seen.held) for place in ("active", "reserved", "scheduled")}
    return {
        "taken_at": seen.taken_at,
        "nodes": len(seen.answering),
        "nodes_silent": seen.silent_nodes,
        "slots": sum(node.concurrency for node in seen.answering),
        **places,
        "unacked": len(seen.unacked),
        "waiting": sum(queue.depth for queue in seen.queues),
        "retrying": sum(sum(queue.retrying.values()) for queue in seen.queues)
        + sum(m.retries > 0 for m in seen.unacked),
        "queues": {queue.name: queue.depth for queue in seen.queues},
        "results": dict(seen.result_states),
        "accepted": sum(node.accepted for node in seen.answering),
        "memory_bytes": seen.server.used_memory_bytes,
        "memory_limit_bytes": seen.server.maxmemory_bytes,
        "clients": seen.server.connected_clients,
        "rows": [{"table": row.table, "status": row.status, "count": row.count} for row in seen.statuses],
        "coverage": seen.coverage,
    }


def stats(seen: Snapshot) -> list[object]:
    """Return the figures as tables for a person, and what was not seen."""
    known = figures(seen)
    slots = sum(node.concurrency for node in seen.answering)
    silent = f"{seen.silent_nodes} heard the question and did not answer" if seen.silent_nodes else _all(seen)
    full = [queue.name for queue in seen.queues if queue.depth]
    final = sum(n for state, n in seen.result_states.items() if state in FINAL_STATES)
    limit = f"of {size(seen.server.maxmemory_bytes)}" if seen.server.maxmemory_bytes else "no limit"
    rows = [
        ("Nodes", count(known["nodes"]), silent),
        ("Active", count(known["active"]), f"of {slots:,} slots"),
        ("Reserved", count(known["reserved"]), "taken by a node, not begun"),
        ("Scheduled", count(known["scheduled"]), "held by a node until their time"),
        ("Waiting", count(known["waiting"]), f"in {', '.join(full[:5])}{' …' * (len(full) > 5)}" if full else ""),
        ("Unacked", count(known["unacked"]), "delivered and not acknowledged"),
        ("Retrying", count(known["retrying"]), "waiting or unacked for another attempt"),
        ("Results", count(sum(seen.result_states.values())), f"{final:,} final; {_by_state(seen.result_states)}"),
        ("Accepted", count(known["accepted"]), "by these nodes since each was started"),
        ("Memory", size(seen.server.used_memory_bytes), limit),
        ("Clients", count(known["clients"]), f"connected to {seen.server.product} {seen.server.version}"),
    ]
    columns = (Column("Figure"), Column("Now", "number"), Column("Of this"))
    return [
        Table(title=f"{seen.target}", columns=columns, rows=rows),
        tables.nodes(seen.nodes, seen.held),
        *([tables_of_tasks.statuses(seen.statuses)] if seen.statuses else []),
    ]


def _all(seen: Snapshot) -> str:
    """Say that every node that listens has answered, and what the other names are that the broker remembers."""
    gone = [shown(node.name) for node in seen.nodes if not node.answered]
    if not gone:
        return "all answered"
    return f"all that listen; {f'{gone[0]} is gone' if len(gone) == 1 else f'{len(gone):,} names are of nodes gone'}"


def _by_state(states: Mapping[str, int]) -> str:
    return (
        ", ".join(f"{state} {compact(n)}" for state, n in sorted(states.items(), key=lambda each: -each[1])) or "none"
    )
