"""A server → something on its control channel that is no worker, and answers as it likes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from redis import Redis

from opslib.embedded.server import Server

#: Given one question's body, the raw elements that go to the asker's reply list.
Answer = Callable[[Mapping[str, Any]], Iterable[bytes]]

_CHANNEL = "/0.celery.pidbox"


def reply(question: Mapping[str, Any], node: str, value: object, *, ticket: str = "") -> bytes:
    """Return an answer as a node writes it."""
    body = base64.b64encode(json.dumps({node: value}).encode()).decode()
    return json.dumps({"body": body, "headers": {"ticket": ticket or question["ticket"]}}).encode()


@contextmanager
def listening(server: Server, answer: Answer) -> Iterator[list[Mapping[str, Any]]]:
    """Subscribe for the time of a `with` block; return the questions that were heard, as they come."""
    heard: list[Mapping[str, Any]] = []
    over = threading.Event()
    with server.client() as client, client.pubsub() as subscription:
        subscription.subscribe(_CHANNEL)
        assert subscription.get_message(timeout=2)
        thread = threading.Thread(target=_serve, args=(subscription, client, answer, heard, over))
        thread.start()
        try:
            yield heard
        finally:
            over.set()
            thread.join()


def _serve(
    subscription: Any, client: Redis, answer: Answer, heard: list[Mapping[str, Any]], over: threading.Event
) -> None:
    while not over.is_set():
        message = subscription.get_message(ignore_subscribe_messages=True, timeout=0.05)
        if not message:
            continue
        question = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
        heard.append(question)
        for raw in answer(question):
            client.lpush(f"{question['reply_to']['routing_key']}.reply.celery.pidbox", raw)
