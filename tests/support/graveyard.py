"""Dead letters of many shapes, as a capture, older scripts and accidents leave them → into lists, and out again."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from redis import Redis

from opslib import letters
from opslib.envelope import Unreadable
from opslib.keys import DEAD, Keyspace
from opslib.letters import Cause, Letter
from tests.support.seed import KEYS, envelope, iso

#: What must never be seen: it stands in the arguments of every letter that is made here.
SECRET = "4111-1111-1111-1111"
_BATCH = 500

TIMEOUT = {"exc_type": "ConnectionError", "exception": "ConnectionError('Error 111 connecting to pay.example:443.')"}
CODE = {"exc_type": "AttributeError", "exception": "AttributeError(\"'NoneType' object has no attribute 'total'\")"}
ARGUMENTS = {
    "exc_type": "TypeError",
    "exception": "TypeError(\"charge() missing 1 required positional argument: 'currency'\")",
}
KILLED = {
    "exc_type": "WorkerLostError",
    "exception": "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL) Job: 7.')",
    "cause": Cause.WORKER_LOST,
    "traceback": "",
}
NOT_REGISTERED = {
    "exc_type": "NotRegistered",
    "exception": "NotRegistered('shop.gone')",
    "cause": Cause.UNKNOWN_TASK,
    "traceback": "",
}


def traceback_of(exc_type: str, exception: str, *, function: str = "charge", file: str = "/srv/shop/tasks.py") -> str:
    """Return a traceback that ends in a function of the application."""
    return (
        "Traceback (most recent call last):\n"
        '  File "/usr/lib/python3/site-packages/celery/app/trace.py", line 453, in trace_task\n'
        "    R = retval = fun(*args, **kwargs)\n"
        f'  File "{file}", line 12, in {function}\n'
        "    gateway.pay(order)\n"
        f"{exc_type}: {exception}\n"
    )


def letter(
    task: str = "tests.ok",
    *,
    queue: str = "celery",
    age_s: float = 60.0,
    task_id: str = "",
    message: Mapping[str, Any] | bytes | None = None,
    exact: bool = True,
    **fields: Any,
) -> Letter:
    """
    Return a letter as the capture in a worker writes it: a connection that was refused, so long ago.

    Args:
        message: The message that failed, or its bytes; without one it is a plain message of this task.

        exact: Whether it has its message at all.
    """
    task_id = task_id or str(uuid.uuid4())
    raw = b""
    if isinstance(message, bytes):
        raw = message
    elif exact:
        found = message or envelope(task, task_id=task_id, queue=queue, args=[SECRET])
        raw = json.dumps(found).encode()
        task_id, task = found["headers"]["id"], found["headers"]["task"]
    text = _text(raw)
    said = {**TIMEOUT, **fields}
    given: dict[str, Any] = {
        "v": letters.VERSION,
        "entry_id": uuid.uuid4().hex,
        "task_id": task_id,
        "task_name": task,
        "args": repr((SECRET,)),
        "kwargs": "{}",
        "traceback": traceback_of(said["exc_type"], said["exception"]),
        "failed_at": iso(-age_s),
        "worker": "w1@lab",
        "queue": queue,
        "list_key": queue,
        "retries": 3,
        "cause": Cause.RAISED,
        "envelope": text or "",
        "envelope_base64": base64.b64encode(raw).decode() if text is None else "",
    }
    return Letter(**{**given, **said})


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def embedded(task: str = "tests.ok", *, headers: Mapping[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    """
    Return a message that others depend on.

    Args:
        headers: In place of the plain ones: group, group_index, expires, eta.

        body: What it embeds: chain, chord, errbacks, callbacks; each a signature or a list of them.
    """
    found = envelope(task, **dict(headers or {}))
    parts = {"callbacks": None, "errbacks": None, "chain": None, "chord": None, **body}
    found["body"] = base64.b64encode(json.dumps([[SECRET], {}, parts]).encode()).decode()
    return found


def signature(task: str = "tests.ok") -> dict[str, Any]:
    """Return a task that is embedded in another one's message."""
    options = {"task_id": str(uuid.uuid4())}
    return {"task": task, "args": [], "kwargs": {}, "options": options, "subtask_type": None, "immutable": False}


def chord_member(task: str = "tests.ok", *, group: str = "") -> dict[str, Any]:
    """Return the message of one of a chord's tasks."""
    group = group or str(uuid.uuid4())
    return embedded(task, headers={"group": group, "group_index": 0}, chord=signature("tests.sum"))


def pickled(task: str = "tests.ok") -> dict[str, Any]:
    """Return a message whose body nobody should open."""
    found = envelope(task)
    found["body"] = base64.b64encode(pickle.dumps(([SECRET], {}, {}))).decode()
    return {**found, "content-type": "application/x-python-serialize", "content-encoding": "binary"}


def compressed(task: str = "tests.ok") -> dict[str, Any]:
    """Return a message whose body is compressed."""
    found = envelope(task)
    found["body"] = base64.b64encode(zlib.compress(base64.b64decode(found["body"]))).decode()
    found["headers"]["compression"] = "application/x-gzip"
    return found


def of_script(task: str = "tests.ok", **fields: Any) -> dict[str, Any]:
    """Return an entry as older scripts write it: no message, and the arguments as they are."""
    return {
        "task_id": str(uuid.uuid4()),
        "task_name": task,
        "args": [SECRET],
        "kwargs": {},
        "exception": "Connection refused",
        "failed_at": iso(-3600),
        **fields,
    }


def odd() -> dict[str, bytes]:
    """Return what lies in such lists by accident, by what it is; nobody can read any of it."""
    return {
        "no JSON": b"\x80\x05\x95 no JSON \x1b[31m",
        "empty": b"",
        "a number": b"42",
        "a list": b"[1, 2, 3]",
        "not ours": json.dumps({"hello": SECRET}).encode(),
        "nested": b"[" * 100_000,
    }


def bury(
    redis: Redis, *buried: Letter | Mapping[str, Any] | bytes, queue: str = "celery", keys: Keyspace = KEYS
) -> str:
    """Put entries into a queue's dead-letter list, the oldest first; return its key."""
    key = list_of(queue, keys)
    entries = [_entry(each) for each in buried]
    for start in range(0, len(entries), _BATCH):
        redis.lpush(key, *entries[start : start + _BATCH])
    return key


def bury_many(redis: Redis, count: int, *, queue: str = "celery", **fields: Any) -> str:
    """Put so many letters of one failure into a list, one of them a second, the latest just now."""
    return bury(redis, *(letter(queue=queue, age_s=float(count - n), **fields) for n in range(count)), queue=queue)


def list_of(queue: str = "celery", keys: Keyspace = KEYS) -> str:
    """Return the key of a queue's dead-letter list."""
    return f"{keys.prefix}{queue}{DEAD}"


def lose(redis: Redis, count: int, *, queue: str = "celery", keys: Keyspace = KEYS) -> None:
    """Count letters as lost to a list's bound, as the capture does."""
    redis.hincrby(f"{keys.prefix}opslib:dead:dropped", queue, count)


def left(redis: Redis, queue: str = "celery", keys: Keyspace = KEYS) -> list[Letter | Unreadable]:
    """Return what a list holds, the oldest first."""
    return [letters.read(raw) for raw in reversed(redis.lrange(list_of(queue, keys), 0, -1))]


def left_ids(redis: Redis, queue: str = "celery", keys: Keyspace = KEYS) -> list[str]:
    """Return the task ids of a list, the oldest first."""
    return [each.task_id for each in left(redis, queue, keys) if isinstance(each, Letter)]


def shop(redis: Redis) -> dict[str, list[Letter]]:
    """
    Fill two lists with one group of every kind; return their letters by judgement.

    In `orders`: transient, permanent, bad arguments, deploy-related; in `mail`: poison.
    """
    minutes = 60.0
    found = {
        "transient": [letter("shop.charge", queue="orders", age_s=90 * minutes - 20 * n) for n in range(124)],
        "permanent": [letter("shop.invoice", queue="orders", age_s=86_400.0 - 3600 * n, **CODE) for n in range(6)],
        "bad arguments": [letter("shop.charge", queue="orders", age_s=7200.0 - n, **ARGUMENTS) for n in range(4)],
        "deploy-related": [letter("shop.gone", queue="orders", age_s=600.0 - n, **NOT_REGISTERED) for n in range(12)],
        "poison": [letter("shop.resize", queue="mail", age_s=1800.0 * (5 - n), **KILLED) for n in range(5)],
    }
    ordered = sorted(_all(found.values()), key=lambda each: str(each.failed_at))
    for queue in ("orders", "mail"):
        bury(redis, *(each for each in ordered if each.queue == queue), queue=queue)
    return found


def _all(groups: Iterable[list[Letter]]) -> list[Letter]:
    return [each for group in groups for each in group]


def _entry(each: Letter | Mapping[str, Any] | bytes) -> bytes:
    if isinstance(each, bytes):
        return each
    return letters.write(each) if isinstance(each, Letter) else json.dumps(each).encode()
