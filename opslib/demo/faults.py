"""A healthy shop → the faults of the demo, made for real, and the truth about each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from opslib.demo import ledger
from opslib.keys import Keyspace

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

    from opslib.embedded.processes import Child

#: True, or anything that counts as true, once what is waited for is the case.
Condition = Callable[[], object]

DOOMED, IMPORTS, CROWD, CLERK = "doomed@shop", "imports@shop", "crowd@shop", "clerk@shop"
#: Two of them run when their worker is killed, the others are prefetched.
REPORTS, REPORTS_RUNNING = 6, 2
RETRIES_SEEN = 12
TWO_HOURS_S = 7200
#: So long the shop keeps results.
KEPT_S = 3 * 86_400
#: Tasks that all fail for the same reason; fewer retries than count as a loop of one task.
STORM, STORM_RETRIES = 20, 4
#: Invoices that wait before the demo is ready, by the priority that their sender gave them: 10 was meant to be urgent.
INVOICES = {0: 30, 3: 12, 10: 8}
#: The hook that a node delivers when it is killed.
LOST_HOOK = 31
#: What a shell script of the shop's pushes into the wrong list.
POISON = (b"SKU-4411;stock=12;warehouse=B", b"SKU-4412;stock=0;warehouse=B")

_KEYS = Keyspace()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """
    One thing that is truly wrong with the demo.

    Attributes:
        name: The mishap that it is a part of.

        code: The finding that says so, a key of `findings.CODES`.

        subject: Task id; the sha256 of its bytes for an unreadable message; else the queue.

        task: Name of the task; empty where there is none.

        what: What happened, as a sentence.

        key: Redis key in which it shows.

        runbook: The runbook that finds it.
    """

    name: str
    code: str
    subject: str
    task: str
    what: str
    key: str
    runbook: str = "stuck-tasks"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """
    What the faults are made with.

    Attributes:
        app: The shop's app, as a producer.

        workers: The running workers by node name.

        until: Waits until its second argument says so; its first tells what was waited for, should it take too long.

        say: Tells what is being broken.
    """

    app: Celery
    redis: Redis
    workers: Mapping[str, Child]
    until: Callable[[str, Condition], None]
    say: Callable[[str], None]

    def send(self, task: str, *args: object, queue: str, countdown: float | None = None, priority: int = 0) -> str:
        """Publish a task and return its id."""
        sent = self.app.send_task(f"shop.{task}", args, queue=queue, countdown=countdown, priority=priority)
        return str(sent.id)


def make(stage: Stage) -> tuple[Fault, ...]:
    """
    Break the shop in every way that its runbook knows, and return what is wrong once all of it shows in Redis.

    Everything is sent first, so that every node meets its mishap at the same time; only then is each waited for.
    """
    loop = stage.send("charge_card", 4711, queue="celery")
    hanging = stage.send("sync_inventory", "acme", queue="celery")
    reminder = stage.send("send_reminder", 4712, queue="emails", countdown=TWO_HOURS_S)
    storm = [stage.send("update_price", article, queue="celery") for article in range(STORM)]
    backlog = _backlog(stage)
    stage.redis.lpush("imports", POISON[0])
    # The video first: it has to be running, not waiting, when its node dies.
    video = stage.send("transcode_video", 77, 1800, queue="reports")
    reports = [stage.send("render_report", f"2026-{month:02}", queue="reports") for month in range(1, 1 + REPORTS)]

    faults = _killed_node(stage, video, reports)
    faults += _poisoned_queue(stage)
    _hand_over(stage, "reports")
    faults += _hanging_task(stage, hanging)
    faults += _late_reminder(stage, reminder)
    faults += _retry_loop(stage, loop)
    return (*faults, *_retry_storm(stage, storm), *backlog)


def _killed_node(stage: Stage, video: str, reports: list[str]) -> tuple[Fault, ...]:
    """SIGKILL a worker that has six late-acknowledged reports; a video and a hook were acknowledged at their start."""
    worker = stage.workers[DOOMED]
    stage.until(f"{DOOMED} has every report", lambda: set(reports) <= unacked(stage.redis).keys())
    # Its process writes STARTED before the node acknowledges it; killed in between, it would leave its message behind.
    stage.until(f"{DOOMED} runs the video", lambda: state(stage.redis, video) == "STARTED")
    stage.until(f"{DOOMED} has acknowledged the video", lambda: video not in unacked(stage.redis))
    stage.until(f"{DOOMED} has told what its agent is at", lambda: ledger.agent() == "busy")
    stage.until(f"{DOOMED} delivers a hook", lambda: ledger.is_tried(LOST_HOOK))
    stage.until(f"{DOOMED} has acknowledged the hook", lambda: not _unacked_of(stage.redis, "shop.hooks.deliver_hook"))
    stage.until(f"{DOOMED} runs two reports", lambda: len(_running(stage.redis, reports)) == REPORTS_RUNNING)
    running = _running(stage.redis, reports)
    stage.say(f"{DOOMED} takes {len(reports)} reports, a video and a hook, and is killed with SIGKILL")
    worker.kill()
    stage.until(f"the pool of {DOOMED} is gone", worker.has_gone)
    return (
        *(
            Fault(
                name="killed-node",
                code="orphaned-unacked",
                subject=report,
                task="shop.render_report",
                what=f"{DOOMED} {'ran it' if report in running else 'had it prefetched'} when it was killed.",
                key=_KEYS.unacked,
            )
            for report in reports
        ),
        Fault(
            name="killed-node",
            code="zombie-result",
            subject=video,
            task="shop.transcode_video",
            what=f"{DOOMED} ran it when it was killed; it was acknowledged at its start, so no message is left.",
            key=_KEYS.result(video),
        ),
    )


def _poisoned_queue(stage: Stage) -> tuple[Fault, ...]:
    """Let a worker die of a message that is not JSON; leave a second one, with a good message behind it."""
    worker = stage.workers[IMPORTS]
    # Of the message, and of nothing else: it took it out of the list.
    stage.until(f"{IMPORTS} dies of its message", lambda: worker.has_gone() and not stage.redis.llen("imports"))
    code = worker.process.returncode
    stage.say(f"{IMPORTS} took a message that is not JSON and exited with code {code}; another one waits for the next")
    stage.redis.lpush("imports", POISON[1])
    stage.send("resize_thumbnail", 4412, queue="imports")
    return (
        Fault(
            name="poisoned-queue",
            code="unreadable-message",
            subject=hashlib.sha256(POISON[1]).hexdigest(),
            task="",
            what="It is not JSON; a worker that takes it exits, and the message is lost.",
            key=_KEYS.queue("imports"),
        ),
        Fault(
            name="poisoned-queue",
            code="queue-without-consumer",
            subject="imports",
            task="",
            what=f"{IMPORTS}, which died of a message, was the only node that consumed it.",
            key=_KEYS.queue("imports"),
        ),
    )


def _hand_over(stage: Stage, queue: str) -> None:
    """Have the healthy node consume a queue from now on: a report that is put back there gets done."""

    def told() -> bool:
        replies = stage.app.control.add_consumer(queue, destination=[CROWD], reply=True, timeout=1)
        return any("ok" in reply.get(CROWD, {}) for reply in replies or [])

    stage.until(f"{CROWD} consumes {queue}", told)


def _hanging_task(stage: Stage, hanging: str) -> tuple[Fault, ...]:
    stage.until("the synchronisation runs", lambda: state(stage.redis, hanging) == "STARTED")
    stage.say(f"shop.sync_inventory hangs on {CROWD}, and will for ever")
    return (
        Fault(
            name="hanging-task",
            code="stuck-active",
            subject=hanging,
            task="shop.sync_inventory",
            what=f"It hangs, and holds one of the four processes of {CROWD}.",
            key=_KEYS.result(hanging),
        ),
    )


def _late_reminder(stage: Stage, reminder: str) -> tuple[Fault, ...]:
    stage.until(f"{CROWD} has the reminder", lambda: reminder in unacked(stage.redis))
    stage.say("a reminder waits for two hours, which is beyond the visibility timeout")
    return (
        Fault(
            name="late-reminder",
            code="scheduled-beyond-visibility",
            subject=reminder,
            task="shop.send_reminder",
            what=f"It waits on {CROWD} for two hours; after one, Celery delivers it a second time.",
            key=_KEYS.unacked,
        ),
    )


def _retry_loop(stage: Stage, loop: str) -> tuple[Fault, ...]:
    stage.until(f"the charge was retried {RETRIES_SEEN} times", lambda: retries(stage.redis, loop) >= RETRIES_SEEN)
    stage.say(f"shop.charge_card has failed {RETRIES_SEEN} times, and retries for ever")
    return (
        Fault(
            name="retry-loop",
            code="retry-loop",
            subject=loop,
            task="shop.charge_card",
            what="The payment gateway never answers, and the task may retry without limit.",
            key=_KEYS.unacked,
        ),
    )


def _retry_storm(stage: Stage, storm: list[str]) -> tuple[Fault, ...]:
    stage.until(
        f"{STORM} prices were retried {STORM_RETRIES} times",
        lambda: all(retries(stage.redis, each) >= STORM_RETRIES for each in storm),
    )
    stage.say(f"{STORM} tasks shop.update_price fail of a defect in their code, and are retried without an end")
    found = {
        "retry-storm": "A supplier answers otherwise since last night, and every task that asks it retries.",
        "hopeless-retry": "It is a TypeError: the next attempt meets the same code.",
    }
    return tuple(
        Fault(
            name="retry-storm",
            code=code,
            subject="shop.update_price",
            task="shop.update_price",
            what=what,
            key=_KEYS.unacked,
            runbook="retry-storm",
        )
        for code, what in found.items()
    )


def _backlog(stage: Stage) -> tuple[Fault, ...]:
    """Have more invoices than the clerk prints, some with the priority of an old guide, and one of an old release."""
    for priority, count in INVOICES.items():
        for number in range(count):
            stage.send("print_invoice", number, queue="invoices", priority=priority)
    stage.send("print_invoices", 4711, queue="invoices", priority=9)
    stage.say(f"invoices pile up: {CLERK} prints one a second, and five are sent")
    found = {
        "queue-backlog": ("invoices", "", "Five times as many invoices are sent as one printer can print."),
        "priority-inverted": (
            "invoices",
            "",
            "Some have priority 10, meant as urgent: on Redis 0 is, and 9 is last.",
        ),
        "unregistered-task": (
            "shop.print_invoices",
            "shop.print_invoices",
            "The last release renamed the task; nobody has the old name any more.",
        ),
    }
    return tuple(
        Fault(
            name="backlog",
            code=code,
            subject=subject,
            task=task,
            what=what,
            key=_KEYS.queue("invoices"),
            runbook="queue-backlog",
        )
        for code, (subject, task, what) in found.items()
    )


def unacked(redis: Redis) -> dict[str, dict[str, Any]]:
    """Return the headers of every unacknowledged message by task id; the demo has but a few."""
    triples = [json.loads(value) for value in cast("list[bytes]", redis.hvals(_KEYS.unacked))]
    return {triple[0]["headers"]["id"]: triple[0]["headers"] for triple in triples}


def _unacked_of(redis: Redis, task: str) -> bool:
    return any(headers["task"] == task for headers in unacked(redis).values())


def state(redis: Redis, task_id: str) -> str:
    """Return the state of a stored result; empty if there is none."""
    value = cast("bytes | None", redis.get(_KEYS.result(task_id)))
    return str(json.loads(value)["status"]) if value else ""


def retries(redis: Redis, task_id: str) -> int:
    """Return how often an unacknowledged task was retried; 0 while it is between two deliveries."""
    return int(unacked(redis).get(task_id, {}).get("retries", 0))


def _running(redis: Redis, task_ids: list[str]) -> list[str]:
    return [task_id for task_id in task_ids if state(redis, task_id) == "STARTED"]
