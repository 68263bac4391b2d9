"""
Bytes of a message → the bytes that it has elsewhere; and a task in a person's words → the bytes of a new message.

What is not meant to change stays as it is: a message is loaded as kombu loads it, never decoded and encoded anew.
"""

from __future__ import annotations

import base64
import json
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from opslib.envelope import Unreadable, instant, load


def restored(raw: bytes, delivery_tag: str) -> bytes:
    """
    Return the envelope of an unacked entry as it goes back to its queue.

    Marked redelivered, as kombu does it, and with a new delivery tag: should a live worker hold the message
    after all, its late ack cannot remove the restored copy (facts §2.6).

    Raises:
        ValueError: If the entry cannot be written back without changing what it says.
    """
    value = load(raw, errors="strict")
    if (
        isinstance(value, Unreadable)
        or not isinstance(value, list)
        or len(value) != 3
        or not isinstance(value[0], dict)
    ):
        raise ValueError("the entry is not a list of envelope, exchange and routing key")
    envelope = value[0]
    headers, properties = envelope.get("headers") or {}, envelope.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        raise ValueError("the entry has no headers or no properties")
    headers["redelivered"] = True
    envelope["headers"] = headers
    properties["delivery_info"] = {**_information(properties), "redelivered": True}
    properties["delivery_tag"] = delivery_tag
    return json.dumps(envelope, allow_nan=False).encode()


def rerouted(raw: bytes, queue: str) -> bytes:
    """
    Return a waiting message as it goes to another queue: should it be restored some day, it comes back to that one.

    Raises:
        ValueError: If it cannot be written back without changing what it says.
    """
    value, properties = _waiting(raw)
    properties["delivery_info"] = {**_information(properties), "exchange": "", "routing_key": queue}
    return json.dumps(value, allow_nan=False).encode()


def reprioritised(raw: bytes, priority: int) -> bytes:
    """
    Return a waiting message with another priority: should it be restored some day, it comes back to that one's list.

    Raises:
        ValueError: If it cannot be written back without changing what it says.
    """
    value, properties = _waiting(raw)
    properties["priority"] = priority
    return json.dumps(value, allow_nan=False).encode()


def id_for(subject: str, at: str) -> str:
    """Return the id of a task that is sent for something that was seen at an instant: the same one for the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{subject}@{at}"))


def fresh(
    task: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    task_id: str,
    queue: str,
    priority: int = 0,
    eta: str | None = None,
    expires: str | None = None,
) -> bytes:
    """
    Return a new message of protocol 2, as Celery 5.7 publishes it by the default exchange (facts §1.3).

    Args:
        eta: Instant before which it is not run, in ISO 8601 with an offset; None for at once.

        expires: Instant after which it is not run, in the same form; None for never.

    Raises:
        ValueError: If an argument is not JSON.
    """
    body = [list(args), dict(kwargs), {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    headers: dict[str, object] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": eta,
        "expires": expires,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr(tuple(args)),
        "kwargsrepr": repr(dict(kwargs)),
        "origin": f"ops@{socket.gethostname()}",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    envelope = {
        "body": base64.b64encode(json.dumps(body, allow_nan=False).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": task_id,
            "reply_to": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(envelope, allow_nan=False).encode()


def resumed(raw: bytes, *, task_id: str, old_id: str, queue: str, now: float) -> bytes:
    """
    Return a message as the task has it that goes on from another one: a new id, all its tries, due at once.

    What follows it in a chain still does. It leaves its group or chord: there, nobody counts its new id. The same
    message comes of it each time, so that one plan can be compared with another.

    Args:
        now: Epoch seconds; an expiry that has passed by then is dropped.

    Raises:
        ValueError: If it cannot be written back without changing what it says, or keeps its id in its body.
    """
    value, properties = _waiting(raw)
    headers = value.get("headers")
    if not isinstance(headers, dict) or not headers.get("task"):
        raise ValueError("the message keeps its id in its body")
    expires_at = instant(headers.get("expires"))
    if expires_at is not None and expires_at <= now:
        headers["expires"] = None
        properties.pop("expiration", None)
    root = headers.get("root_id")
    headers |= {"id": task_id, "root_id": task_id if root in {None, old_id} else root, "x-resumes": old_id}
    headers |= {"group": None, "group_index": None, "retries": 0, "eta": None}
    headers.pop("redelivered", None)
    tag = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{task_id}/{old_id}"))
    properties |= {"correlation_id": task_id, "delivery_tag": tag}
    properties["delivery_info"] = {**_information(properties), "exchange": "", "routing_key": queue}
    properties["delivery_info"].pop("redelivered", None)
    return json.dumps(value, allow_nan=False).encode()


def _waiting(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    value = load(raw, errors="strict")
    properties = value.get("properties") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(properties, dict):
        raise ValueError("the message has no properties")
    return value, properties


def _information(properties: Mapping[str, Any]) -> dict[str, Any]:
    found = properties.get("delivery_info")
    return found if isinstance(found, dict) else {}
