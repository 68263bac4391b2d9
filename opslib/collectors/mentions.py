"""Ids of groups, and every message that can still be run → which of them a message names, and what stayed unseen."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from opslib.collectors import circulation, keyspace, looks, queues, unacked, windows, workers
from opslib.collectors.circulation import Circulation
from opslib.envelope import unacked_head

if TYPE_CHECKING:
    from opslib.broker import Broker

_MOST_MESSAGES = 20_000_000
_MOST_KEYS = 100_000_000
#: What Celery makes ids of; others are looked for one by one.
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: The id that a signature was given.
_NAMED = re.compile(rb'"task_id":\s*"([^"\\]{1,200})"')
#: What could be a body, in a message of another shape than Celery's.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{48,}={0,2}")


class _Properties(msgspec.Struct):
    body_encoding: str | None = None


class _Message(msgspec.Struct):
    """Where a message's body is, and how it was spelled."""

    body: str = ""
    properties: _Properties = msgspec.field(default_factory=_Properties)
    headers: dict[str, object] = {}


_decode = msgspec.json.Decoder(_Message).decode
_decode_unacked = msgspec.json.Decoder(tuple[_Message, str | None, str | None]).decode


@dataclass(kw_only=True)
class Mentions:
    """
    What a look at all messages came to.

    Attributes:
        held: The tasks that can still be run.

        named: Ids that a message names, in its head or in what it carries: the rest of a chain, the body of a chord.

        doubtful: Tasks that run and whose message is gone, so that nobody can say to which group they belong.

        unseen: Why nobody can say of any group that it is over, a sentence each.

        lists: Keys of every queue's lists.
    """

    held: Circulation
    named: frozenset[str]
    doubtful: int
    unseen: tuple[str, ...]
    lists: frozenset[str] = frozenset()


def read(broker: Broker, ids: Collection[str], *, timeout_s: float) -> Mentions:
    """
    Look for ids in all that waits or is unacknowledged, in the order in which a message moves; then at the nodes.

    Args:
        broker: The deployment's own, wherever its groups are kept.

        ids: Of groups; none of them leaves the messages unread.

    Raises:
        redis.exceptions.RedisError: If the server stops answering on the way.
    """
    named: set[str] = set()
    opaque = 0
    wanted = {each.encode("utf-8", "surrogateescape"): each for each in ids}
    odd = [each for each in wanted if not UUID.fullmatch(each)]
    unacknowledged: set[str] = set()
    names = _queues(broker, timeout_s)
    for raw, delivered in _messages(broker, names) if wanted else ():
        if delivered:
            unacknowledged.add(getattr(unacked_head(raw)[0], "task_id", ""))
        text = _text(raw)
        if text is None:
            opaque += 1
            continue
        named |= {wanted[each] for each in set(UUID.findall(text)) if each in wanted}
        named |= {wanted[each] for each in odd if each in text}
    held = circulation.read(broker, timeout_s=timeout_s)
    doubtful = _doubtful(broker, unacknowledged, timeout_s=timeout_s) if wanted and not held.unseen else 0
    unseen = held.unseen
    if opaque:
        unseen = (*unseen, f"messages: {opaque:,} cannot be read (compressed, encrypted), so nobody knows their group.")
    lists = frozenset(key for name in names for key in broker.keys.queue_lists(name))
    return Mentions(held=held, named=frozenset(named), doubtful=doubtful, unseen=unseen, lists=lists)


def carried(broker: Broker, note: Callable[[str], None], *, timeout_s: float) -> int:
    """
    Tell `note` of every id that a message carries, its own among them; return how many messages cannot be read.

    Of what comes after a task (chain, chord, callbacks), ids of any spelling; of all else, what looks like one.

    A task that is to be sent once another one has run is in no message of its own until then.
    """
    opaque = 0
    for raw, _ in _messages(broker, _queues(broker, timeout_s)):
        text = _text(raw)
        opaque += text is None
        for each in set(UUID.findall((text or b"").lower())):
            note(each.decode())
        for named in set(_NAMED.findall(text or b"")):
            note(named.decode("utf-8", "surrogateescape"))
    return opaque


def _queues(broker: Broker, timeout_s: float) -> set[str]:
    found, _ = keyspace.read(broker, max_keys=_MOST_KEYS, keep_results=False)
    nodes, _, _, _ = workers.read(broker, timeout_s=timeout_s)
    return looks.queue_names(broker, found, nodes)[0]


def _messages(broker: Broker, names: Collection[str]) -> Iterator[tuple[bytes, bool]]:
    """Yield every message as it is stored, and whether it is delivered."""
    listings, _ = queues.lists(broker, names)
    for listing in listings:
        for _, raw in windows.stream(broker, listing, limit=_MOST_MESSAGES):
            yield raw, False
    for raw in unacked.raws(broker):
        yield raw, True


def _text(raw: bytes) -> bytes | None:
    """
    Return what a message says, its body spelled out; None if that cannot be read.

    What is no message at all is what it is: no worker makes a task of it.
    """
    try:
        message = _decode_unacked(raw)[0] if raw[:1] == b"[" else _decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return raw + b"".join(b"\n" + found for each in _BASE64.findall(raw) if (found := _unpacked(each)))
    body: bytes | None = message.body.encode("utf-8", "surrogateescape")
    if message.properties.body_encoding == "base64":
        body = _unpacked(body or b"")
    return None if body is None or message.headers.get("compression") else raw + b"\n" + body


def _unpacked(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _doubtful(broker: Broker, unacknowledged: Collection[str], *, timeout_s: float) -> int:
    _, held, _, _ = workers.read(broker, timeout_s=timeout_s)
    return len({task.task_id for task in held if task.task_id not in unacknowledged})
