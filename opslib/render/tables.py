"""Facts as rows → tables with columns for a person."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from opslib.durations import spell
from opslib.facts.messages import UnackedMessage, UnreadableMessage, WaitingMessage
from opslib.facts.rates import Rate, figure
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage, HeldTask, NodeInfo, QueueInfo, ServerInfo, StoredResult
from opslib.render import words
from opslib.render.grid import Cell, Column, Line, Table
from opslib.render.words import Row, age, row_of, size


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
        stack=True,
    )


def rates(rows: Iterable[Rate]) -> Table:
    """Return how fast queues fill and drain, the fullest first."""
    ranked = sorted(rows, key=lambda rate: (-rate.depth, rate.queue))
    watched = max((rate.watched_s for rate in ranked), default=0.0)
    return Table(
        title="Rates",
        columns=(
            Column("Queue", "code"),
            Column("Waiting", "number"),
            Column("Come a minute", "number"),
            Column("Taken a minute", "number"),
            Column("What to expect"),
        ),
        rows=[
            (
                words.shown(rate.queue),
                rate.depth,
                _pace(rate, rate.arrival_per_min),
                _pace(rate, rate.drain_per_min),
                rate.outlook or "not watched",
            )
            for rate in ranked
        ],
        caption=f"Watched for {spell(watched)}." if watched else "",
        empty="No queue exists: Redis keeps no empty list, so nothing waits.",
    )


def _pace(rate: Rate, per_min: float) -> str:
    if not rate.watched_s:
        return ""
    return f"{'' if rate.exact else 'at least '}{figure(per_min)}"


def nodes(rows: Sequence[NodeInfo | Row], held: Iterable[HeldTask | Row] = ()) -> Table:
    """Return the nodes, first the names that did not answer: a dead one's name stays in the broker."""
    places = Counter((task["node"], task["place"]) for task in map(row_of, held))
    return Table(
        title="Nodes",
        columns=(
            Column("Node", "code"),
            Column("Answer", "state"),
            Column("Busy"),
            Column("Reserved", "number"),
            Column("Scheduled", "number"),
            Column("Prefetch", "number"),
            Column("Memory", "number"),
            Column("Up", "number"),
            Column("Queues"),
        ),
        rows=[_node(row, places) for row in sorted(map(row_of, rows), key=lambda row: (row["answered"], row["name"]))],
        empty="No node answered.",
        stack=True,
    )


def _node(row: Row, places: Mapping[tuple[str, str], int]) -> tuple[object, ...]:
    if not row["answered"]:
        return (words.shown(row["name"]), "no answer", *[""] * 7)
    slots = f"{places.get((row['name'], 'active'), 0)} of {row['concurrency']}"
    up = spell(row["uptime_s"]) if row["uptime_s"] else ""
    return (
        words.shown(row["name"]),
        "answered",
        f"{slots} {row['pool']}".rstrip(),
        *(places.get((row["name"], place), 0) for place in ("reserved", "scheduled")),
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


def waiting(rows: Sequence[WaitingMessage | UnreadableMessage | Row]) -> Table:
    """Return waiting messages, in the order in which they are served; of those that nobody can decode, why."""
    ranked = sorted(map(row_of, rows), key=lambda row: (row["queue"], row["key"], row["position"]))
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
            (
                Cell("(unreadable)", row["reason"]) if "reason" in row else _task(row),
                row["queue"],
                row.get("priority", ""),
                row["position"],
                row.get("retries", ""),
                size(row["size_bytes"]),
            )
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
        ),
        rows=[
            (
                Cell(row.get("place"), row.get("note") or ""),
                "partly" if row.get("silent") else "whole",
                row.get("seen"),
                row.get("silent"),
            )
            for row in ranked
        ],
        empty="It was not recorded what was looked into.",
    )


_TASK = Column("Task", "code")


def _task(row: Row) -> Cell:
    return Cell(row.get("task") or "(unknown)", str(row.get("task_id") or ""))


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
