"""A healthy shop → tasks that have failed for good, in every way there is, and the truth about each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from opslib import letters
from opslib.demo.faults import CLERK, CROWD, Fault, Stage, state
from opslib.keys import DEAD, Keyspace
from opslib.letters import Letter

if TYPE_CHECKING:
    from redis import Redis

#: Where all of them were sent.
QUEUE = "orders"
LIST = f"{QUEUE}{DEAD}"
#: Notices that a supplier refused: one of them has a receipt that follows it, one is a part of a summary.
REFUSED = 12
#: Bookings that fail since the last release.
BOOKED = 12
PAGES = 10
#: How long ago the refused notices failed, as the letters say: now and then, since yesterday.
_REFUSED_AGO_S = [3600.0 * hours for hours in (20, 19.5, 17, 14, 13.8, 11, 9, 8.5, 6, 4, 2.5, 1.5)]
#: The bookings: all at once, since the release forty minutes ago.
_BOOKED_AGO_S = [2400.0 - 15 * number for number in range(BOOKED)]
_FORGOTTEN_AGO_S = [18_000.0, 10_800.0, 7_200.0]

#: What a script wrote in former times, and what it wrote when its disk was full.
OLD_ID = "5f0c1d0e-7f5c-4a3e-9d0e-2b1f6c1d7a10"
OLD = {
    "task_id": OLD_ID,
    "task_name": "shop.send_receipt",
    "args": [6800],
    "kwargs": {},
    "exception": "OperationalError('the database is locked')",
    "failed_at": "2026-01-12T03:04:05Z",
    "retries": 3,
    "queue": "emails",
}
CUT_OFF = b'{"task_id": "9b1c7c1e-0e0f-4a55-8'

_KEYS = Keyspace()


@dataclass(frozen=True, kw_only=True)
class Sent:
    """
    What was sent, in order to fail.

    Attributes:
        ids: Task ids by the task's name.

        stopped: Of the catalogue that can be gone on with, and of the one that cannot.

        uncaptured: Of the one that fails on a node which keeps no letters.
    """

    ids: Mapping[str, Sequence[str]]
    stopped: tuple[str, str]
    uncaptured: str

    @property
    def all_ids(self) -> set[str]:
        """Return the ids of all that leave a letter."""
        return {each for ids in self.ids.values() for each in ids}


def send(stage: Stage) -> Sent:
    """
    Send everything at once; what is slowest to die goes first.

    The poster takes a process with it, and what was handed to that one in the same moment: a quick task, for the export
    would be run once more without its limit, and hang.
    """
    from opslib.demo import app as shop  # imports Celery, and needs the broker's URL

    stage.redis.rpush(_KEYS.queue(LIST), json.dumps(OLD), CUT_OFF)
    ids: dict[str, list[str]] = {}

    def sent(task: str, *args: object, time_limit: int | None = None, expires: datetime | None = None) -> str:
        result = stage.app.send_task(f"shop.{task}", args, queue=QUEUE, time_limit=time_limit, expires=expires)
        made = str(result.id)
        ids.setdefault(task, []).append(made)
        return made

    sent("print_poster", 6001)
    ids["notify_supplier"] = [shop.receipt_after_notice(6100, QUEUE), shop.summary_of_notice(6101, QUEUE)]
    for order in range(REFUSED - 2):
        sent("notify_supplier", 6102 + order)
    for order in range(BOOKED):
        sent("book_order", 6200 + order)
    for order in range(len(_FORGOTTEN_AGO_S)):
        sent("apply_discount", 6300 + order)
    for order in range(2):
        sent("reserve_stock", 6400 + order)
        sent("send_offer", 6500 + order, expires=datetime.now(UTC) - timedelta(minutes=1))
    sent("export_orders", 2026, time_limit=1)
    sent("print_labels", 6600)
    ids["(undecodable)"] = [_undecodable(stage.redis)]
    stopped = sent("import_catalogue", "spring", PAGES), sent("import_catalogue", "damaged", PAGES)
    return Sent(ids=ids, stopped=stopped, uncaptured=stage.send("apply_discount", 6700, queue="invoices"))


def buried(stage: Stage, sent: Sent) -> tuple[Fault, ...]:
    """Wait until each has left its letter, date back what is to have failed earlier, and return what is wrong."""
    for task, ids in sent.ids.items():
        _until_kept(stage, task, set(ids))
    stage.until(f"a discount failed on {CLERK}", lambda: state(stage.redis, sent.uncaptured) == "FAILURE")
    found = _dated(stage.redis, sent)
    stage.say(f"{len(sent.all_ids)} orders fail for good on {CROWD}, in ten ways; their letters are kept in {LIST}")
    stage.say("shop.import_catalogue fails half-way, and has saved how far it came")
    return (*_groups(sent, found), *_others(found), *_catalogues(sent))


def _until_kept(stage: Stage, task: str, ids: set[str]) -> None:
    stage.until(f"every {task} has left its letter", lambda: ids <= _found(stage.redis).keys())


def _groups(sent: Sent, found: Mapping[str, Letter]) -> tuple[Fault, ...]:
    what = {
        "notify_supplier": "A supplier refuses connections now and then since yesterday; each was tried three times.",
        "book_order": "The last release looks for a name that orders do not have: each failed since.",
        "apply_discount": "One of its senders forgets an argument.",
        "reserve_stock": "The task rejects its message: the article is not sold any more.",
        "print_poster": "It kills the process that runs it.",
        "export_orders": "It takes longer than its hard time limit.",
        "send_offer": "They expired before a node took them.",
        "print_labels": "No node has a task of that name.",
        "(undecodable)": "Its body is no JSON: whoever sent it used another serializer than it says.",
    }
    known = {task: ids[0] for task, ids in sent.ids.items() if task in what}
    groups = [
        Fault(
            name="dead-letters",
            code="poison-task" if task in {"print_poster", "export_orders"} else "dead-letters",
            subject=letters.name_of(found[task_id].signature),
            task=found[task_id].task_name,
            what=what[task],
            key=_KEYS.queue(LIST),
            runbook="dlq-triage",
        )
        for task, task_id in known.items()
    ]
    stopped = ("The catalogues' server has reset a connection.", "A file of a catalogue is damaged.")
    return (
        *groups,
        *(
            Fault(
                name="dead-letters",
                code="dead-letters",
                subject=letters.name_of(found[task_id].signature),
                task="shop.import_catalogue",
                what=why,
                key=_KEYS.queue(LIST),
                runbook="dlq-triage",
            )
            for task_id, why in zip(sent.stopped, stopped, strict=True)
        ),
    )


def _others(found: Mapping[str, Letter]) -> tuple[Fault, ...]:
    others = {
        "dead-letters": (
            letters.name_of(found[OLD_ID].signature),
            found[OLD_ID].task_name,
            "An older script of the shop's wrote this letter: it has arguments, and no message.",
        ),
        "unreadable-letter": (LIST, "", "An older script of the shop's wrote it, and was cut off."),
        "uncaptured-failures": (
            f"{_KEYS.result_root}*",
            "",
            f"{CLERK} has the release before the last, which keeps no letters: only the result tells of a discount.",
        ),
    }
    return tuple(
        Fault(
            name="dead-letters",
            code=code,
            subject=subject,
            task=task,
            what=what,
            key=_KEYS.queue(LIST) if code != "uncaptured-failures" else subject,
            runbook="dlq-triage",
        )
        for code, (subject, task, what) in others.items()
    )


def _catalogues(sent: Sent) -> tuple[Fault, ...]:
    what = {
        "task-resumable": "It lost its connection half-way through a catalogue, and has saved how far it came.",
        "task-not-resumable": "It has saved how far it came, and that its file is damaged.",
    }
    return tuple(
        Fault(
            name="stopped-import",
            code=code,
            subject=task_id,
            task="shop.import_catalogue",
            what=what[code],
            key=_KEYS.checkpoint(task_id),
            runbook="resume-task",
        )
        for code, task_id in zip(what, sent.stopped, strict=True)
    )


def _undecodable(redis: Redis) -> str:
    """Put a message into the queue whose body is not what it says."""
    task_id = str(uuid.uuid4())
    headers = {"lang": "py", "task": "shop.book_order", "id": task_id, "retries": 0, "root_id": task_id}
    properties = {
        "correlation_id": task_id,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "delivery_tag": task_id,
        "priority": 0,
        "body_encoding": "base64",
    }
    message = {"body": "gASVCgAAAAAA", "content-encoding": "utf-8", "content-type": "application/json"}
    redis.lpush(_KEYS.queue(QUEUE), json.dumps({**message, "headers": headers, "properties": properties}))
    return task_id


def _found(redis: Redis) -> dict[str, Letter]:
    """Return the letters that are there by task id."""
    read = map(letters.read, cast("list[bytes]", redis.lrange(_KEYS.queue(LIST), 0, -1)))
    return {letter.task_id: letter for letter in read if isinstance(letter, Letter)}


def _dated(redis: Redis, sent: Sent) -> dict[str, Letter]:
    """Write the list anew, with the times of a day that nobody wants to wait for; return its letters."""
    now = datetime.now(UTC)
    ago_s = {"notify_supplier": _REFUSED_AGO_S, "book_order": _BOOKED_AGO_S, "apply_discount": _FORGOTTEN_AGO_S}
    aged = {task_id: s for task, some in ago_s.items() for task_id, s in zip(sent.ids[task], some, strict=True)}
    dated: list[tuple[float, bytes]] = []
    for raw in cast("list[bytes]", redis.lrange(_KEYS.queue(LIST), 0, -1)):
        letter = letters.read(raw)
        if isinstance(letter, Letter) and letter.task_id in aged:
            letter.failed_at = (now - timedelta(seconds=aged[letter.task_id])).isoformat(timespec="milliseconds")
            dated.append((letter.failed_epoch or 0.0, letters.write(letter)))
        else:
            dated.append(((letter.failed_epoch or 0.0) if isinstance(letter, Letter) else 0.0, raw))
    newest_first = [raw for _, raw in sorted(dated, key=lambda pair: -pair[0])]
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(_KEYS.queue(LIST))
        pipe.rpush(_KEYS.queue(LIST), *newest_first)
        pipe.execute()
    return _found(redis)
