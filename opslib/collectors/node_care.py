"""READ. Four questions to the nodes → how each is set up: limits, versions, and what its tasks promise."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from opslib import pidbox
from opslib.facts.care import NodeCare, TaskCare
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker

_MOST_VERSION = 40
_KIB = 1024
_QUESTIONS = (
    pidbox.Call(method="stats"),
    pidbox.Call(method="conf"),
    pidbox.Call(method="report"),
    pidbox.Call(
        method="registered",
        arguments={"taskinfoitems": ["time_limit", "soft_time_limit", "acks_late", "reject_on_worker_lost"]},
    ),
)
_REGISTERED = re.compile(r"(?P<name>\S+)(?: \[(?P<fields>.*)\])?", re.DOTALL)
#: Of a node's report only this is read; the settings behind it may hold somebody's password.
_SOFTWARE = re.compile(r"\b(celery|kombu|redis):(\d[\w.]*)")
_REPORT_HEAD = 400

T = TypeVar("T")


class _Pool(msgspec.Struct):
    timeouts: Any = None
    most_tasks: Any = msgspec.field(name="max-tasks-per-child", default=None)


class _Stats(msgspec.Struct):
    pool: _Pool = msgspec.field(default_factory=_Pool)


class _Conf(msgspec.Struct):
    """The settings that are judged; no other is kept, whatever it is called."""

    result_expires: Any = msgspec.UNSET
    worker_max_memory_per_child: Any = None


class _Report(msgspec.Struct):
    ok: str = ""


@dataclass(frozen=True, slots=True)
class _Said:
    stats: _Stats
    conf: _Conf
    report: _Report
    registered: list[str]


def read(broker: Broker, expected: Collection[str], *, timeout_s: float) -> tuple[tuple[NodeCare, ...], Coverage]:
    """
    Ask nodes how they are set up; one that does not say is counted as silent.

    Args:
        expected: Those that answer other questions: a silent one is known, and need not be waited for again.
    """
    from redis.exceptions import ResponseError

    if not expected:
        return (), Coverage(place="settings", seen=0)
    try:
        calls = [replace(each, destination=tuple(sorted(expected))) for each in _QUESTIONS]
        answers = pidbox.ask(broker, calls, timeout_s=timeout_s)
    except ResponseError as error:
        note = f"Nodes could not be asked for their settings: {str(error).rstrip('.')}."
        return (), Coverage(place="settings", seen=0, silent=len(expected), note=note)
    rows = []
    for name in sorted(answers.nodes):
        said = _said(name, answers.replies)
        if said is not None:
            rows.append(_node(name, said))
    missing = sorted(set(expected) - {row.name for row in rows})
    note = f"How these are set up is not known: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}." if missing else ""
    return tuple(rows), Coverage(place="settings", seen=len(rows), silent=len(missing), note=note)


def _said(name: str, replies: Mapping[str, Mapping[str, bytes]]) -> _Said | None:
    stats = _convert(replies["stats"].get(name), _Stats)
    conf = _convert(replies["conf"].get(name), _Conf)
    report = _convert(replies["report"].get(name), _Report)
    registered = _convert(replies["registered"].get(name), list[str])
    if stats is None or conf is None or report is None or registered is None:
        return None
    return _Said(stats, conf, report, registered)


def _node(name: str, said: _Said) -> NodeCare:
    timeouts = said.stats.pool.timeouts
    soft, hard = timeouts if isinstance(timeouts, list) and len(timeouts) == 2 else (None, None)
    most_tasks, most_kib = said.stats.pool.most_tasks, said.conf.worker_max_memory_per_child
    expires = said.conf.result_expires
    return NodeCare(
        name=name,
        time_limit_s=_limit(hard),
        soft_time_limit_s=_limit(soft),
        max_tasks_per_child=most_tasks if isinstance(most_tasks, int) and most_tasks > 0 else None,
        max_memory_per_child_bytes=most_kib * _KIB if isinstance(most_kib, int) and most_kib > 0 else None,
        results_for_ever=expires is None or (isinstance(expires, int | float) and expires <= 0),
        versions={("redis-py" if what == "redis" else what): version for what, version in _software(said.report.ok)},
        tasks=tuple(_task(line) for line in sorted(said.registered)),
    )


def _software(report: str) -> list[tuple[str, str]]:
    head = report[:_REPORT_HEAD].partition("platform ->")[0]
    return [(what, version[:_MOST_VERSION]) for what, version in _SOFTWARE.findall(head)]


def _task(line: str) -> TaskCare:
    found = _REGISTERED.match(line)
    if found is None:
        return TaskCare(name=line)
    fields = dict(part.partition("=")[::2] for part in (found["fields"] or "").split())
    return TaskCare(
        name=found["name"],
        time_limit_s=_limit(fields.get("time_limit")),
        soft_time_limit_s=_limit(fields.get("soft_time_limit")),
        acks_late=fields.get("acks_late") == "True",
        comes_back=fields.get("reject_on_worker_lost") == "True",
    )


def _limit(value: object) -> float | None:
    """Return a limit in seconds; 0 is none, and so is what nobody can read."""
    try:
        limit = float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        return None
    return limit if limit > 0 else None


def _convert(raw: bytes | None, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(raw or b"", type=kind)
    except msgspec.DecodeError:
        return None
