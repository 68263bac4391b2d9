"""Unacknowledged messages → which of them nobody holds, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator

from opslib.durations import spell
from opslib.facts.messages import UNKNOWN_TASK, UnackedMessage
from opslib.facts.system import FINAL_STATES, StoredResult
from opslib.findings import Finding, Severity
from opslib.symptoms.view import View

#: An unacked message younger than this may still be on its way into a node's memory.
ORPHAN_MARGIN_S = 1.0


def judge(view: View) -> Iterator[Finding]:
    """
    Messages that were delivered and that no node holds (facts §2.5).

    Claimed only if two looks saw the same delivery, everyone who heard the question answered both times, and the
    task has no rate limit: those wait in no reply. Otherwise unknown.
    """
    snapshot = view.snapshot
    for message in snapshot.unacked:
        if message.task_id in view.held or message.task_id in view.held_before:
            continue
        age_s = None if message.delivered_at is None else view.now - message.delivered_at
        if not view.steady(message) or (age_s is not None and age_s < ORPHAN_MARGIN_S):
            continue
        doubt = _doubt(view, message)
        result = view.results.get(message.task_id)
        finished = result is not None and result.state in FINAL_STATES
        due = max(0.0, snapshot.visibility_timeout_s - (age_s or 0.0))
        ago = "at an unknown time" if age_s is None else f"{spell(age_s)} ago"
        yield Finding(
            code="orphaned-unacked",
            severity=Severity.UNKNOWN if doubt else Severity.CRITICAL,
            subject=message.task_id,
            task=message.task or UNKNOWN_TASK,
            message=_message(ago, doubt, result if finished else None, due),
            evidence={
                "delivery_tag": message.delivery_tag,
                "age_s": None if age_s is None else round(age_s, 1),
                "queue": message.queue or f"none is bound for {message.routing_key!r} of {message.exchange!r}",
                "nodes_answered": f"{len(snapshot.answering)} of {snapshot.receivers}",
                "looks": 2,
                "result": result.state if result else "none stored",
            },
            hint=_hint(message, finished=finished, doubt=doubt),
        )


def _doubt(view: View, message: UnackedMessage) -> str:
    """Return why an unheld message may have an owner after all; empty if nothing speaks for it."""
    snapshot = view.snapshot
    if snapshot.silent_nodes or (
        snapshot.earlier and snapshot.earlier.receivers > sum(n.answered for n in snapshot.earlier.nodes)
    ):
        return "a node that did not answer may hold it"
    if any(row.place == "workers" and row.silent for row in snapshot.coverage):
        return "not every expected node was asked"
    if message.task in view.rate_limited:
        return "its task has a rate limit, and tasks held back by one are in no node's answer"
    if not message.task_id:
        return "it names no task id to look for"
    if not snapshot.receivers and snapshot.server.consumers is None:
        return "CLIENT LIST is not permitted, so a worker that takes no control messages cannot be ruled out"
    if snapshot.server.consumers and snapshot.server.consumers > snapshot.receivers:
        return "more connections consume than nodes answer, so somebody does not listen to control messages"
    return ""


def _message(ago: str, doubt: str, finished: StoredResult | None, due_s: float) -> str:
    if doubt:
        return f"Delivered {ago}, and no node that answered holds it; but {doubt}."
    if finished:
        again = f"it will run again within {spell(due_s)}"
        return f"Delivered {ago} and held by no node, though its result says {finished.state}; {again}."
    return (
        f"Delivered {ago} to a node that is gone; nothing will run it for another {spell(due_s)} unless it is restored."
    )


def _hint(message: UnackedMessage, *, finished: bool, doubt: str) -> str:
    if doubt:
        return "Restoring it without proof may run it twice."
    if finished:
        return "It ran to its end and was not acknowledged: restoring it would run it twice, so it is left alone."
    if not message.queue:
        return "No queue, or more than one, is bound for it, so it cannot be put back by itself."
    return "Restoring puts it back to its queue, next to be served; if its node lives after all, it runs twice."


def missing_from_index(view: View) -> Iterator[Finding]:
    """Messages that Celery's own sweep will never restore (facts §2.3)."""
    for message in view.snapshot.unacked:
        if message.delivered_at is None and view.steady(message):
            yield Finding(
                code="unacked-index-mismatch",
                severity=Severity.ATTENTION,
                subject=message.task_id,
                task=message.task,
                message="Unacked, but missing from the index: Celery's own sweep will never restore it.",
                evidence={"delivery_tag": message.delivery_tag},
                hint="Left alone it stays for ever; indexed, it is restored should its node die.",
            )
