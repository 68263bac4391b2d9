"""The shop and what is wrong with it → rows of its tasks that stay open, for a reason each, and the truth."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from opslib.demo import ledger
from opslib.demo.faults import CROWD, DOOMED, KEPT_S, LOST_HOOK, Fault, Stage, state
from opslib.demo.ledger import TABLE
from opslib.keys import Keyspace

if TYPE_CHECKING:
    from opslib.demo.failures import Sent

SIGNAL, HOOK, VIEW = "shop.signals.send_signal", "shop.hooks.deliver_hook", "shop.pages.count_view"
#: Tasks that were done while their rows could not be written, and how many hours ago: their results are still there.
DONE_SIGNALS, DONE_HOOKS, VIEWS = 24, 21, 2
#: Others of those, whose results have expired since: their rows are the oldest.
OLD_SIGNALS, OLD_HOOKS = 6, 8
#: Messages that somebody took out of a list by hand.
POPPED_SIGNALS, POPPED_HOOKS = 2, 1
#: Invoices that wait in vain behind the others.
INVOICES = 3
#: What was done after the repair, and what has other statuses.
CLOSED, OTHERS = 12, {"PENDING": 4, "ERROR": 2, "CANCELLED": 1, "PAUSED": 1}
_LONGEST_H = 906.6
_OVER = ("SUCCESS", "FAILURE")
_KEYS = Keyspace()


@dataclass(frozen=True, kw_only=True)
class Begun:
    """
    Tasks that were sent with their rows.

    Attributes:
        ended: Ids of those whose results will tell.

        expired: Ids of those whose results will be gone.

        silent: Ids of those that store none.
    """

    ended: Sequence[str]
    expired: Sequence[str]
    silent: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A task that is sent with a row, which is so many hours old."""

    name: str
    arguments: Mapping[str, object]
    hours: float
    queue: str = "celery"

    def sent(self, stage: Stage, task_id: str) -> str:
        stage.app.send_task(self.name, kwargs=dict(self.arguments), queue=self.queue, task_id=task_id)
        return task_id


def begin(stage: Stage) -> Begun:
    """Send what is to run while no row can be changed; and, before all, a hook to the node that will be killed."""
    ledger.add_hooks({hook: _receiver(hook) for hook in range(1, LOST_HOOK + 1)})
    _send(stage, [_Task(name=HOOK, arguments=_hook(LOST_HOOK), hours=33.3, queue="reports")])
    old = [_Task(name=SIGNAL, arguments=_signal(n), hours=h) for n, h in enumerate(_ages(OLD_SIGNALS), 1)]
    old += [_Task(name=HOOK, arguments=_hook(n), hours=h - 0.1) for n, h in enumerate(_ages(OLD_HOOKS), 1)]
    young = [
        *(_Task(name=SIGNAL, arguments=_signal(40 + n), hours=25 + 1.8 * n) for n in range(DONE_SIGNALS)),
        *(_Task(name=HOOK, arguments=_hook(9 + n), hours=25.5 + 1.9 * n) for n in range(DONE_HOOKS)),
    ]
    views = [_Task(name=VIEW, arguments={"page": "/offers"}, hours=27.0 + n) for n in range(VIEWS)]
    return Begun(ended=_send(stage, young), expired=_send(stage, old), silent=_send(stage, views))


def leave(stage: Stage, begun: Begun, failing: Sent, made: Iterable[Fault]) -> tuple[Fault, ...]:
    """Wait until those have run, and leave a row for each other way in which one stays open; return the faults."""
    all_ids, stored = {*begun.ended, *begun.expired, *begun.silent}, (*begun.ended, *begun.expired)
    # One that was in the wrong process, as that was killed by another task, has failed.
    stage.until("their results are there", lambda: all(state(stage.redis, each) in _OVER for each in stored))
    failed = {each for each in stored if state(stage.redis, each) == "FAILURE"}
    stage.until("no row of what was done is closed", lambda: all_ids - failed <= ledger.not_closed())
    ledger.repair()
    for task_id in begun.expired:
        stage.redis.pexpire(_KEYS.result(task_id), 1)
    _pop(stage)
    _refuse(stage)
    _others(stage, failing, made)
    _send(stage, [_Task(name=SIGNAL, arguments=_signal(70 + n), hours=0.0) for n in range(CLOSED)])
    stage.say(f"a migration stops half-way, and {len(all_ids)} tasks end whose rows in {TABLE} stay SCHEDULED")
    stage.say("the agent whose state is busy was killed with its node")
    return _faults()


def _send(stage: Stage, tasks: Sequence[_Task]) -> list[str]:
    """Write a row for each, and send it."""
    ids = [str(uuid.uuid4()) for _ in tasks]
    ledger.write(
        (task.name, task_id, task.arguments, "SCHEDULED", task.hours * 3600)
        for task, task_id in zip(tasks, ids, strict=True)
    )
    return [task.sent(stage, task_id) for task, task_id in zip(tasks, ids, strict=True)]


def _ages(count: int) -> list[float]:
    """Return so many ages, in hours, of which the oldest comes first; the youngest is beyond the life of results."""
    youngest = KEPT_S / 3600 + 24
    return [_LONGEST_H - n * (_LONGEST_H - youngest) / (count - 1) for n in range(count)]


def _signal(order: int) -> dict[str, object]:
    return {"instance_id": 6000 + order, "model": "shop.orders.Order", "action": "status_updated"}


def _hook(number: int) -> dict[str, object]:
    return {"hook_id": number, "retry": False}


def _receiver(hook: int) -> str:
    """Return where a hook goes: of the oldest one was received, one was refused, and of the others nobody says."""
    host = "slow" if hook == LOST_HOOK else "gone" if hook == 2 else "later" if 2 < hook <= OLD_HOOKS else "customer"
    return f"https://{host}.example/hooks/{hook}"


def _pop(stage: Stage) -> None:
    """Send some to a queue whose node is gone, and take their messages away as one does who tidies a list by hand."""
    tasks = [
        _Task(name=SIGNAL, arguments=_signal(30 + n), hours=26.0 + n, queue="imports") for n in range(POPPED_SIGNALS)
    ]
    tasks += [
        _Task(name=HOOK, arguments=_hook(LOST_HOOK - 1), hours=28.0, queue="imports") for _ in range(POPPED_HOOKS)
    ]
    queue, ids = _KEYS.queue("imports"), set(_send(stage, tasks))
    for raw in cast("list[bytes]", stage.redis.lrange(queue, 0, -1)):
        if _id(raw) in ids:
            stage.redis.lrem(queue, 1, cast("str", raw))


def _refuse(stage: Stage) -> None:
    """Write a row for a signal that then cannot be sent, for one of its arguments is no JSON; so it has no id."""
    ledger.write([(SIGNAL, None, {"instance_id": "6039", "model": "shop.orders.Order"}, "SCHEDULED", 12.5 * 86_400)])
    with suppress(Exception):
        stage.app.send_task(SIGNAL, kwargs={"instance_id": {6039}, "model": object()}, queue="celery")


def _others(stage: Stage, failing: Sent, made: Iterable[Fault]) -> None:
    """Write the rows of tasks that fail, hang, wait or are gone, whatever of; the application writes none of that."""
    ended = {"notify_supplier": failing.ids["notify_supplier"][-1], "send_offer": failing.ids["send_offer"][-1]}
    wanted = {"notify_supplier": "FAILURE", "send_offer": "REVOKED"}
    stage.until(
        "a notice and an offer have ended", lambda: {n: state(stage.redis, i) for n, i in ended.items()} == wanted
    )
    of = {(fault.code, fault.task): fault.subject for fault in made}
    last = cast("list[bytes]", stage.redis.lrange(_KEYS.queue("invoices", 9), 0, -1))
    invoices = [_id(raw) for raw in last if b'"shop.print_invoice"' in raw][:INVOICES]
    rows: list[tuple[str, str, dict[str, object], float]] = [
        ("notify_supplier", ended["notify_supplier"], {"order": 6111}, 26.0),
        ("send_offer", ended["send_offer"], {"customer": 6501}, 49.0),
        ("book_order", failing.ids["(undecodable)"][0], {"order": 6212}, 30.0),
        ("sync_inventory", of["stuck-active", "shop.sync_inventory"], {"supplier": "acme"}, 31.0),
        ("render_report", of["orphaned-unacked", "shop.render_report"], {"month": "2026-06"}, 32.0),
        ("transcode_video", of["zombie-result", "shop.transcode_video"], {"video": 77}, 33.0),
        ("send_reminder", of["scheduled-beyond-visibility", "shop.send_reminder"], {"order": 4712}, 24.5),
    ]
    rows += [("print_invoice", each, {"order": 4711}, 29.0) for each in invoices]
    ledger.write((f"shop.{name}", task_id, args, "SCHEDULED", hours * 3600) for name, task_id, args, hours in rows)
    ledger.write(
        (SIGNAL, str(uuid.uuid4()), _signal(90), status, 40 * 3600.0) for status, n in OTHERS.items() for _ in range(n)
    )


def _id(raw: bytes) -> str:
    with suppress(ValueError):
        return str(json.loads(raw)["headers"]["id"])
    return ""


def _faults() -> tuple[Fault, ...]:
    done = "A migration stopped half-way, and no row could be changed while they ended."
    found = {
        "table-finished-but-open": {
            SIGNAL: done,
            HOOK: f"{done} One of the oldest was received, though its result is gone.",
            "shop.notify_supplier": "It failed, and the application only writes down what ends well.",
            "shop.send_offer": "It expired, and the application only writes down what ends well.",
        },
        "table-lost": {
            SIGNAL: "Somebody tidied the queue imports by hand, and took their messages along.",
            HOOK: f"{DOOMED} was killed while it delivered one; another one's message was taken by hand.",
            "shop.transcode_video": f"{DOOMED} ran it when it was killed.",
        },
        "table-stuck": {
            "shop.sync_inventory": f"It hangs on {CROWD}.",
            "shop.render_report": f"{DOOMED} had its message when it was killed, and nobody has it now.",
            "shop.book_order": "Its body is no JSON, so that it is a dead letter that no node ever ran.",
        },
        "table-unknown": {
            SIGNAL: "Their results have expired; one was never sent, so that its row has no task id.",
            HOOK: "Their results have expired, and their receivers never said whether they came.",
            VIEW: "Its result is not stored.",
        },
    }
    return tuple(
        Fault(name="open-rows", code=code, subject=task, task=task, what=what, key=TABLE, runbook="reconcile-tasks")
        for code, tasks in found.items()
        for task, what in tasks.items()
    )
