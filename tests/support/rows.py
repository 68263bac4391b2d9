"""Rows of facts with sensible defaults → snapshots to judge, without any server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields as fields_of
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from opslib.facts.dead import DeadLetter
from opslib.facts.messages import QuarantinedMessage, UnackedMessage, UnreadableMessage, WaitingMessage
from opslib.facts.snapshot import Reading, Snapshot
from opslib.facts.system import Coverage, HeldTask, NodeInfo, QueueInfo, ServerInfo, StoredResult, TaskInfo
from opslib.facts.whereabouts import Whereabouts

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
NOW_S = NOW.timestamp()
NODE = "w1@lab"
RUN = "20261121T021500Z-stuck-tasks-7f3a9c"
PLACES = ("server", "keyspace", "workers", "waiting", "unacked", "results")
AnySnapshot = TypeVar("AnySnapshot", bound=Snapshot)
_NUMBERS = count(1)


def server(**fields: Any) -> ServerInfo:
    """Return a server on which nobody waits in BRPOP."""
    given = {
        "product": "Valkey",
        "version": "9.1.2",
        "role": "master",
        "mode": "standalone",
        "run_id": "r",
        "replication_id": "p",
        "database": 0,
        "keys": 9,
        "other_databases": {},
        "uptime_s": 1000,
        "used_memory_bytes": 10**6,
        "maxmemory_bytes": 0,
        "maxmemory_policy": "noeviction",
        "connected_clients": 3,
        "consumers": 0,
    }
    return ServerInfo(**{**given, **fields})


def node(name: str = NODE, **fields: Any) -> NodeInfo:
    """Return a prefork node that answered and consumes `celery`."""
    given = {"answered": True, "pool": "prefork", "concurrency": 2, "queues": ("celery",), "accepted": 5}
    return NodeInfo(name=name, **{**given, **fields})


def limited(task: str) -> tuple[TaskInfo, ...]:
    """Return what a node has that may run one task but once an hour."""
    return (TaskInfo(name=task, rate_limit="1/h"),)


def silent(name: str = "w2@lab") -> NodeInfo:
    """Return a node that only the broker remembers."""
    return NodeInfo(name=name, answered=False)


def held(task_id: str, place: str = "active", *, age_s: float | None = 60.0, **fields: Any) -> HeldTask:
    """Return a task that a node holds; its age counts only while it is active."""
    started_at = NOW_S - age_s if place == "active" and age_s is not None else None
    given = {"node": NODE, "task": "tests.ok", "queue": "celery", "started_at": started_at}
    return HeldTask(place=place, task_id=task_id, **{**given, **fields})


def delivered(
    task_id: str = "", *, age_s: float | None = 600.0, eta_in_s: float | None = None, **fields: Any
) -> UnackedMessage:
    """Return a message that was delivered so long ago; without an age it is missing from the index."""
    given = _message(task_id, eta_in_s) | {
        "key": "unacked",
        "delivered_at": None if age_s is None else NOW_S - age_s,
        "exchange": "",
        "routing_key": "celery",
    }
    return UnackedMessage(**{**given, **fields})


def waiting(task_id: str = "", *, eta_in_s: float | None = None, **fields: Any) -> WaitingMessage:
    """Return a message that waits in `celery`."""
    return WaitingMessage(**{**_message(task_id, eta_in_s), "key": "celery", "position": 0, **fields})


def unreadable(sha256: str = "", **fields: Any) -> UnreadableMessage:
    """Return a message in `celery` that is no JSON."""
    given = {
        "place": "waiting",
        "queue": "celery",
        "key": "celery",
        "position": 0,
        "delivery_tag": "",
        "sha256": sha256 or f"{next(_NUMBERS):064x}",
        "size_bytes": 10,
        "reason": "it is not JSON",
    }
    return UnreadableMessage(**{**given, **fields})


def result(task_id: str, state: str = "STARTED", **fields: Any) -> StoredResult:
    """Return a stored result that a node wrote."""
    given = {
        "key": f"celery-task-meta-{task_id}",
        "task": "tests.ok",
        "node": NODE,
        "sha256": "s",
        "expires_at": NOW_S + 100,
    }
    return StoredResult(task_id=task_id, state=state, **{**given, **fields})


def queue(name: str = "celery", depth: int = 0, consumers: Iterable[str] = (NODE,)) -> QueueInfo:
    """Return a queue that a node consumes."""
    return QueueInfo(name=name, depth=depth, by_priority={0: depth} if depth else {}, consumers=tuple(consumers))


def coverage(**silences: int) -> tuple[Coverage, ...]:
    """Return every place as seen whole, but for those named with how much of them was silent."""
    return tuple(Coverage(place=place, seen=1, silent=silences.get(place, 0)) for place in PLACES)


def snapshot(**fields: Any) -> Snapshot:
    """Return one look at a system with one node that answered, and an empty queue."""
    given = {
        "taken_at": NOW,
        "target": "trial",
        "broker": "redis://h/0",
        "fingerprint": "r/p/0/",
        "server": server(),
        "nodes": (node(),),
        "receivers": 1,
        "queues": (queue(),),
        "coverage": coverage(),
    }
    return Snapshot(**{**given, **{name: _rows(value) for name, value in fields.items()}})


def whereabouts(*ids: str, **fields: Any) -> Whereabouts:
    """Return one look at certain tasks in that system; every place was searched, what is kept aside too."""
    seen = snapshot()
    given = {each.name: getattr(seen, each.name) for each in fields_of(seen)}
    kept = tuple(Coverage(place=place, seen=1) for place in ("quarantine", "dead letters"))
    mine = {"ids": frozenset(ids), "coverage": (*seen.coverage, *kept)}
    return Whereabouts(**{**given, **mine, **{name: _rows(value) for name, value in fields.items()}})


def letter(task_id: str, **fields: Any) -> DeadLetter:
    """Return an entry of a list of dead letters."""
    return DeadLetter(task_id=task_id, **{"task": "tests.ok", "key": "celery.dead", **fields})


def put_aside(task_id: str, **fields: Any) -> QuarantinedMessage:
    """Return a message that a run took out of circulation."""
    given = {"run_id": RUN, "queue": "celery", "place": "waiting", "task": "tests.ok", "unreadable": ""}
    return QuarantinedMessage(**{"subject": task_id, **given, "sha256": "s", "size_bytes": 900, **fields})


def twice(seen: AnySnapshot, **before: Any) -> AnySnapshot:
    """Return the snapshot as the second of two looks; the first, two seconds earlier, saw the same but for `before`."""
    first = {name: getattr(seen, name) for name in Reading.__slots__ if name != "taken_at"}
    changed = {name: _rows(value) for name, value in before.items()}
    return replace(seen, earlier=Reading(taken_at=NOW - timedelta(seconds=2), **{**first, **changed}))


def _message(task_id: str, eta_in_s: float | None) -> dict[str, Any]:
    number = next(_NUMBERS)
    return {
        "task_id": task_id or f"t{number}",
        "task": "tests.ok",
        "queue": "celery",
        "priority": 0,
        "retries": 0,
        "eta_at": None if eta_in_s is None else NOW_S + eta_in_s,
        "expires_at": None,
        "delivery_tag": f"tag-{number}",
        "sha256": f"{number:064x}",
        "size_bytes": 900,
    }


def _rows(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
