"""Small numbers → facts, findings, plans, records and executed notebooks for the tests of what is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from opslib.facts.messages import UnackedMessage
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage, HeldTask, NodeInfo, QueueInfo, ServerInfo
from opslib.findings import Finding, Severity
from opslib.plan import Action, Kind, Outcome, Plan, Status, make
from opslib.records import RunRecord
from opslib.render import display, words

TAKEN_AT = datetime(2026, 11, 21, 2, 15, tzinfo=UTC)
NOW = TAKEN_AT.timestamp()
RUN_ID = "20261121T021500Z-stuck-tasks-7f3a9c"
NODE = "shop@worker-1"


def uid(number: object) -> str:
    """Return a task id that is always the same for the same thing."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"


def message(
    number: object = 0, *, age_s: float | None = 60.0, task: str = "shop.charge", **more: Any
) -> UnackedMessage:
    """Return an unacked message of that age."""
    fields: dict[str, Any] = {
        "task_id": uid(number),
        "task": task,
        "queue": "celery",
        "key": "unacked",
        "priority": 0,
        "retries": 0,
        "eta_at": None,
        "expires_at": None,
        "delivery_tag": uid(f"tag {number}"),
        "sha256": "ab" * 32,
        "size_bytes": 812,
        "delivered_at": None if age_s is None else NOW - age_s,
        "exchange": "",
        "routing_key": "celery",
    }
    return UnackedMessage(**{**fields, **more})


def held(number: object = 0, place: str = "active", *, age_s: float | None = None, **more: Any) -> HeldTask:
    """Return a task that a node holds."""
    fields: dict[str, Any] = {
        "place": place,
        "node": NODE,
        "task_id": uid(number),
        "task": "shop.charge",
        "queue": "celery",
        "started_at": None if age_s is None else NOW - age_s,
    }
    return HeldTask(**{**fields, **more})


def server(**more: Any) -> ServerInfo:
    """Return a server that nothing is wrong with."""
    fields: dict[str, Any] = {
        "product": "Redis",
        "version": "7.2.4",
        "role": "master",
        "mode": "standalone",
        "run_id": "r" * 40,
        "replication_id": "p" * 40,
        "database": 0,
        "keys": 1312,
        "other_databases": {},
        "uptime_s": 90061,
        "used_memory_bytes": 48_000_000,
        "maxmemory_bytes": 0,
        "maxmemory_policy": "noeviction",
        "connected_clients": 23,
    }
    return ServerInfo(**{**fields, **more})


def node(name: str = NODE, *, answered: bool = True, **more: Any) -> NodeInfo:
    """Return a node with four slots."""
    known: dict[str, Any] = {
        "pool": "prefork",
        "concurrency": 4,
        "prefetch": 16,
        "queues": ("celery",),
        "memory_bytes": 2**20 * 312,
    }
    return NodeInfo(name=name, answered=answered, **{**(known if answered else {}), **more})


def snapshot(**more: Any) -> Snapshot:
    """Return a snapshot of a calm system."""
    fields: dict[str, Any] = {
        "taken_at": TAKEN_AT,
        "target": "demo",
        "broker": "redis://ops:***@redis:6379/0",
        "fingerprint": "f" * 16,
        "server": server(),
        "receivers": 1,
        "nodes": (node(),),
        "queues": (
            QueueInfo(name="celery", depth=3, by_priority={0: 2, 3: 1}, consumers=(NODE,), by_task={"shop.charge": 3}),
        ),
        "coverage": (Coverage(place="server", seen=1), Coverage(place="workers", seen=1)),
    }
    return Snapshot(**{**fields, **more})


def finding(
    number: object = 0, severity: Severity = Severity.CRITICAL, code: str = "orphaned-unacked", **more: Any
) -> Finding:
    """Return a finding about a task."""
    fields: dict[str, Any] = {
        "subject": uid(number),
        "task": "shop.charge",
        "message": "Delivered 3 h ago, and no live node holds it.",
        "evidence": {"age_s": 10800.0, "queue": "celery"},
        "hint": "Restore it.",
    }
    return Finding(code=code, severity=severity, **{**fields, **more})


def action(number: object = 0, **more: Any) -> Action:
    """Return an action that restores a message."""
    fields: dict[str, Any] = {
        "kind": Kind.RESTORE,
        "subject": uid(number),
        "source": "unacked",
        "destination": "celery",
        "why": "orphaned-unacked",
        "task": "shop.charge",
        "effect": "Goes back to its queue and is served next.",
    }
    return Action(**{**fields, **more})


def plan(*actions: Action) -> Plan:
    """Return a plan of those actions."""
    return make("demo", "f" * 16, actions, max_actions=1000, made_at=TAKEN_AT)


def outcome(of: Action, status: Status = Status.APPLIED, reason: str = "Moved.") -> Outcome:
    """Return what became of an action."""
    return Outcome(action=of, status=status, reason=reason)


def record(
    *,
    findings: Sequence[Finding] = (),
    remaining: Sequence[Finding | dict[str, Any]] | None = None,
    proposed: Plan | None = None,
    outcomes: Sequence[Outcome] = (),
    **more: Any,
) -> RunRecord:
    """Return the record of a run; by default one that found nothing."""
    proposed = proposed or plan()
    fields: dict[str, Any] = {
        "run_id": RUN_ID,
        "runbook": "stuck-tasks",
        "target": "demo",
        "operator": "ada",
        "started_at": "2026-11-21T02:15:00Z",
        "finished_at": "2026-11-21T02:15:03Z",
        "verdict": "critical" if findings else "healthy",
        "exit_code": 1 if findings else 0,
        "broker": "redis://ops:***@redis:6379/0",
        "coverage": [asdict(row) for row in snapshot().coverage],
        "findings": [asdict(each) for each in findings],
        "remaining": [dict(words.row_of(each)) for each in (findings if remaining is None else remaining)],
        "plan": {"digest": proposed.digest, **proposed.content()},
        "outcomes": [
            {"action": o.action.id, "status": str(o.status), "reason": o.reason, "steps": []} for o in outcomes
        ],
    }
    return RunRecord(**{**fields, **more})


def displayed(*things: object) -> list[NotebookNode]:
    """Return the outputs that `show` leaves in a kernel."""
    outputs = []
    for thing in things:
        for view in display.views(thing, TAKEN_AT):
            picture = getattr(view, "_repr_mimebundle_", None)
            html = {"text/html": view._repr_html_()} if hasattr(view, "_repr_html_") else {}
            outputs.append(new_output("display_data", data=picture() if picture else {"text/plain": str(view), **html}))
    return outputs


def code(
    name: str, source: str = "show(before)", *outputs: NotebookNode, ran: bool = True, replied: bool = True
) -> NotebookNode:
    """Return a code cell with the stamps that nbclient leaves on those that it started."""
    stamps = {
        "iopub.execute_input": "2026-11-21T02:15:00Z",
        **({"shell.execute_reply": "2026-11-21T02:15:01Z"} if replied else {}),
    }
    return new_code_cell(source, id=name, outputs=list(outputs), metadata={"execution": stamps} if ran else {})


def text(name: str, source: str) -> NotebookNode:
    """Return a Markdown cell."""
    return new_markdown_cell(source, id=name)


def notebook(*cells: NotebookNode) -> NotebookNode:
    """Return a notebook that begins as every runbook does."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    title = text("title", "# Stuck tasks\n\nTasks were sent and do not finish.")
    return new_notebook(cells=[title, *cells], metadata={"kernelspec": kernel})


def html_output(html: str) -> NotebookNode:
    """Return an output of raw HTML, as a careless cell would make."""
    return new_output("display_data", data={"text/html": html, "text/plain": "…"})


def output(**data: object) -> NotebookNode:
    """Return any output."""
    return from_dict(data)
