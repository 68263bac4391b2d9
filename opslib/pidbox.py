"""
Questions and orders to all nodes → their answers, over Celery's control plane spoken directly in Redis.

Celery's own client would run kombu's visibility sweep with *its* timeout and so redeliver other workers' messages
(facts §0.1), and cannot say how many nodes heard it. PUBLISH can: its reply counts the subscribers.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:
    from redis import Redis

    from opslib.broker import Broker
    from opslib.keys import Keyspace

#: One wait at the server; well within the client's own timeout for an answer, however long all of them may take.
_PATIENCE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """
    One control command.

    Attributes:
        method: As Celery names it: stats, active, revoke …

        destination: Nodes that it is meant for; empty for all.
    """

    method: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    destination: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """
    What came back.

    Attributes:
        receivers: Subscribers that the broadcast reached, answering or not.

        replies: By method, by node, the raw JSON of the answer.

        late: Whether the wait ended by its deadline rather than with the last answer.
    """

    receivers: int
    replies: Mapping[str, Mapping[str, bytes]]
    late: bool

    @property
    def nodes(self) -> set[str]:
        """Every node that answered anything."""
        return {node for by_node in self.replies.values() for node in by_node}


class _ReplyHeaders(msgspec.Struct):
    ticket: str = ""


class _Reply(msgspec.Struct):
    body: str
    headers: _ReplyHeaders = msgspec.field(default_factory=_ReplyHeaders)


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_body = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def ask(broker: Broker, calls: Sequence[Call], *, timeout_s: float) -> Answers:
    """
    Send every call at once and gather answers until each receiver gave all of them, or the time is over.

    Raises:
        redis.exceptions.RedisError: If the server refuses; who may not publish cannot ask.
    """
    oid = str(uuid.uuid4())
    keys, client = broker.keys, broker.control
    tickets = {str(uuid.uuid4()): call for call in calls}
    replies: dict[str, dict[str, bytes]] = {call.method: {} for call in calls}
    reply_list = keys.reply_list(oid)
    deadline = time.monotonic() + timeout_s
    late = False
    # Outside of what is cleaned up after: a server that takes no writes now would be waited for once more.
    client.sadd(keys.reply_bindings, keys.reply_member(oid))
    try:
        with client.pipeline(transaction=False) as pipe:
            for ticket, call in tickets.items():
                pipe.publish(keys.control_channel, _message(call, oid, ticket, timeout_s))
            heard = cast("list[int]", pipe.execute())
        expected = sum(
            n if not call.destination else min(n, len(call.destination)) for n, call in zip(heard, calls, strict=True)
        )
        came = 0
        while came < expected:
            left = deadline - time.monotonic()
            if left <= 0:
                late = True
                break
            patience = min(max(0.01, left), _PATIENCE_S)
            popped = cast("tuple[bytes, bytes] | None", client.brpop([reply_list], timeout=patience))
            if popped:
                came += _note(popped[1], tickets, replies)
    finally:
        _clean_up(client, keys, oid)
    return Answers(receivers=max(heard, default=0), replies=replies, late=late)


def order(broker: Broker, call: Call, *, timeout_s: float) -> dict[str, Any]:
    """Send one order and return what each node answers, as `read` does; an absent node did not answer in time."""
    answers = ask(broker, [call], timeout_s=timeout_s)
    return {node: read(raw) for node, raw in answers.replies[call.method].items()}


def read(raw: bytes | None) -> object:
    """Return what a node says; None if nobody can read it: what others were told has its account all the same."""
    try:
        return json.loads(raw or b"null")
    except (ValueError, RecursionError):
        return None


def _note(raw: bytes, tickets: Mapping[str, Call], replies: dict[str, dict[str, bytes]]) -> int:
    """File one reply; return 1 if it answers one of our questions."""
    try:
        reply = _decode_reply(raw)
        by_node = _decode_body(base64.b64decode(reply.body))
    except (msgspec.DecodeError, ValueError):
        return 0
    call = tickets.get(reply.headers.ticket)
    if call is None:
        return 0
    for node, answer in by_node.items():
        replies[call.method][node] = bytes(answer)
    return 1


def _message(call: Call, oid: str, ticket: str, timeout_s: float) -> str:
    body = {
        "method": call.method,
        "arguments": dict(call.arguments),
        "destination": list(call.destination) or None,
        "pattern": None,
        "matcher": None,
        "ticket": ticket,
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": oid},
    }
    envelope = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": time.time() + timeout_s},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(envelope)


def _clean_up(client: Redis, keys: Keyspace, oid: str) -> None:
    """Take the reply list and its route away; a late answer is then unroutable and dropped."""
    from redis.exceptions import RedisError

    with contextlib.suppress(RedisError):
        client.srem(keys.reply_bindings, keys.reply_member(oid))
        client.delete(keys.reply_list(oid))
