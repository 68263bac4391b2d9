"""The control plane → which nodes live, what each holds, and how many heard the question without answering."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from opslib import pidbox
from opslib.durations import pace
from opslib.envelope import instant
from opslib.facts.system import Coverage, HeldTask, NodeInfo, TaskInfo

if TYPE_CHECKING:
    from opslib.broker import Broker

_QUESTIONS = (
    pidbox.Call(method="stats"),
    pidbox.Call(method="active", arguments={"safe": True}),
    pidbox.Call(method="reserved"),
    pidbox.Call(method="scheduled"),
    pidbox.Call(method="active_queues"),
    pidbox.Call(method="registered", arguments={"taskinfoitems": ["rate_limit", "max_retries"]}),
)
#: How a node writes a task that it can run: "shop.charge [rate_limit=10/m max_retries=3]".
_REGISTERED = re.compile(r"(?P<name>\S+)(?: \[(?P<fields>.*)\])?", re.DOTALL)
#: The broker remembers every node that there ever was; in a cluster of short-lived pods these are many.
_MOST_ABSENT = 50

#: Why a server takes no question, by the client's exception or by what the server says first. The rest can be seen.
_UNASKED = {
    "NoPermissionError": "This user may not publish control messages",
    "ReadOnlyError": "This server is a replica, where answers cannot be left",
    "OutOfMemoryError": "This server is out of memory: no answer can be stored, and no worker can acknowledge",
    "NOREPLICAS": "This server takes no writes, as it has too few replicas: no worker can acknowledge",
    "MISCONF": "This server takes no writes, as it cannot save its data: no worker can acknowledge",
}

T = TypeVar("T")


class _Delivery(msgspec.Struct):
    exchange: str | None = ""
    routing_key: str | None = ""
    redelivered: bool | None = False


class _Request(msgspec.Struct):
    """The fields of a request that any question needs; arguments are skipped."""

    id: str
    type: str | None = ""
    time_start: float | None = None
    acknowledged: bool | None = False
    delivery_info: _Delivery = msgspec.field(default_factory=_Delivery)
    worker_pid: int | None = None


class _Scheduled(msgspec.Struct):
    request: _Request
    eta: str | None = None


class _Pool(msgspec.Struct):
    implementation: str = ""
    max_concurrency: int | None = msgspec.field(name="max-concurrency", default=0)
    processes: list[int] = []


class _BrokerOptions(msgspec.Struct):
    transport_options: dict[str, object] = {}


class _Usage(msgspec.Struct):
    maxrss: int = 0


class _Stats(msgspec.Struct):
    total: dict[str, int] = {}
    uptime: int = 0
    pool: _Pool = msgspec.field(default_factory=_Pool)
    broker: _BrokerOptions = msgspec.field(default_factory=_BrokerOptions)
    prefetch_count: int | None = 0
    rusage: _Usage = msgspec.field(default_factory=_Usage)


class _Queue(msgspec.Struct):
    name: str


#: What an answer that counts has to be: who answers otherwise may hold anything.
_SHAPES: Mapping[str, Any] = {
    "active": list[_Request],
    "reserved": list[_Request],
    "scheduled": list[_Scheduled],
    "active_queues": list[_Queue],
    "registered": list[str],
}
#: Modules whose name is not the word of the command line.
_POOLS = {"thread": "threads"}


def read(
    broker: Broker, *, timeout_s: float, remembered: Iterable[str] = ()
) -> tuple[list[NodeInfo], list[HeldTask], int, Coverage]:
    """
    Ask every node for all it holds.

    Args:
        timeout_s: How long to wait for a node that heard the question and stays silent.

        remembered: Names that the broker remembers; those that did not answer become rows too.

    Returns:
        Nodes, the tasks they hold, the number of subscribers that heard the question, and the coverage.
    """
    from redis.exceptions import ResponseError

    try:
        answers = pidbox.ask(broker, _QUESTIONS, timeout_s=timeout_s)
    except ResponseError as error:
        note = _unasked(error)
        if not note:
            raise
        return [], [], 0, Coverage(place="workers", seen=0, silent=1, note=f"{note}, so no node was asked.")
    complete = {name for name in answers.nodes if _is_complete(name, answers.replies)}
    nodes = [_node(name, answers.replies) for name in sorted(complete)]
    expected = set(broker.target.nodes)
    absent = sorted((set(remembered) | expected | answers.nodes) - complete)
    nodes += [NodeInfo(name=name, answered=False) for name in absent[:_MOST_ABSENT]]
    held = [task for name in sorted(complete) for task in _held(name, answers.replies)]
    silent = max(answers.receivers - len(complete), len(expected - complete))
    note = _note(answers.receivers - len(complete), sorted(expected - complete), timeout_s)
    return nodes, held, answers.receivers, Coverage(place="workers", seen=len(complete), silent=silent, note=note)


def accepted(broker: Broker, *, timeout_s: float) -> dict[str, Mapping[str, int]]:
    """Return how many tasks each node that answers has accepted since it started, by name."""
    from redis.exceptions import ResponseError

    try:
        answers = pidbox.ask(broker, [pidbox.Call(method="stats")], timeout_s=timeout_s)
    except ResponseError as error:
        if not _unasked(error):
            raise
        return {}
    stats = {name: _convert(raw, _Stats) for name, raw in answers.replies["stats"].items()}
    return {name: said.total for name, said in stats.items() if said is not None}


def _unasked(error: Exception) -> str:
    """Return why the server did not take a question, or nothing if that is not among what can be the case."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return next((why for sign, why in _UNASKED.items() if sign in kinds or str(error).startswith(sign)), "")


def _is_complete(name: str, replies: Mapping[str, Mapping[str, bytes]]) -> bool:
    """Whether a node gave every answer, those that count in their shape: what it holds is known only then."""
    return all(name in by_node for by_node in replies.values()) and all(
        _convert(replies[method][name], shape) is not None for method, shape in _SHAPES.items()
    )


def _note(unanswered: int, missing: Sequence[str], timeout_s: float) -> str:
    said = []
    if unanswered > 0:
        said.append(f"{unanswered} heard the question and did not answer within {timeout_s:g} s.")
    if missing:
        said.append(f"Expected, and not heard from: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}.")
    return " ".join(said)


def _node(name: str, replies: Mapping[str, Mapping[str, bytes]]) -> NodeInfo:
    """Put one node's row together; statistics of a strange shape leave its fields at their zero."""
    stats = _convert(replies["stats"][name], _Stats) or _Stats()
    queues = _convert(replies["active_queues"][name], list[_Queue]) or []
    registered = _convert(replies["registered"][name], list[str]) or []
    pool = stats.pool.implementation.rpartition(":")[0].rpartition(".")[2]
    visibility = stats.broker.transport_options.get("visibility_timeout", 3600)
    return NodeInfo(
        name=name,
        answered=True,
        pool=_POOLS.get(pool, pool),
        concurrency=len(stats.pool.processes) or stats.pool.max_concurrency or 0,  # the latter stays when a pool grows
        processes=tuple(stats.pool.processes),
        prefetch=stats.prefetch_count or 0,
        queues=tuple(sorted(queue.name for queue in queues)),
        accepted=sum(stats.total.values()),
        tasks=tuple(_task_info(line) for line in sorted(registered)),
        memory_bytes=stats.rusage.maxrss * 1024,
        uptime_s=stats.uptime,
        visibility_timeout_s=float(visibility) if isinstance(visibility, int | float) else None,
    )


def _task_info(line: str) -> TaskInfo:
    """Read a line of a node's list of tasks; a task without a cap has none in it."""
    found = _REGISTERED.match(line)
    fields = dict(part.partition("=")[::2] for part in (found["fields"] or "").split()) if found else {}
    cap = fields.get("max_retries", "")
    return TaskInfo(
        name=found["name"] if found else line,
        rate_limit=_limit(fields.get("rate_limit", "")),
        max_retries=int(cap) if cap.isdigit() else None,
    )


def _limit(text: str) -> str:
    """Return a rate limit as the node has it; empty for one that limits nothing, such as "0" or "0/m"."""
    try:
        return text if pace(text) else ""
    except ValueError:
        return text


def _held(name: str, replies: Mapping[str, Mapping[str, bytes]]) -> list[HeldTask]:
    """Return what one node holds; a timer entry that stands twice after a lost connection counts once (facts §2.2)."""
    tasks = [
        _task(name, place, request)
        for place in ("active", "reserved")
        for request in _convert(replies[place][name], list[_Request]) or []
    ]
    scheduled = {
        entry.request.id: _task(name, "scheduled", entry.request, eta_at=instant(entry.eta))
        for entry in _convert(replies["scheduled"][name], list[_Scheduled]) or []
    }
    return tasks + list(scheduled.values())


def _task(node: str, place: str, request: _Request, *, eta_at: float | None = None) -> HeldTask:
    return HeldTask(
        place=place,
        node=node,
        task_id=request.id,
        task=request.type or "",
        queue=request.delivery_info.routing_key or "",
        started_at=request.time_start,
        eta_at=eta_at,
        acknowledged=bool(request.acknowledged),
        redelivered=bool(request.delivery_info.redelivered),
        pid=request.worker_pid,
    )


def _convert(raw: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError:
        return None
