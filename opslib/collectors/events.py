"""Celery's events over a window → how many of each kind, by task and exception, and which nodes send any."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from opslib import interrupts, pidbox, signatures
from opslib.facts.system import Coverage
from opslib.facts.window import TaskEvents

if TYPE_CHECKING:
    from redis.client import PubSub

    from opslib.broker import Broker

#: Rows that are told apart, tasks that each names, nodes, and ids whose task is remembered or still to be found.
_MOST_ROWS, _MOST_IDS, _MOST_NODES, _MOST_NAMES, _MOST_NAMELESS = 100, 20, 1_000, 50_000, 5_000
#: A node gathers up to 24 events in one message, tracebacks included; what weighs more is none.
_LARGEST_BYTES = 4 * 1024 * 1024
_TEXT_LIMIT = 512
_SUBSCRIBED_WITHIN_S = 2.0

#: What Celery sends about tasks; task-sent comes from whoever published it.
KINDS = frozenset(
    f"task-{word}" for word in ("sent", "received", "started", "succeeded", "failed", "retried", "rejected", "revoked")
)
OTHERS = "(others)"
_ENABLED = b'"task events enabled"'
#: What to do where nodes tell nothing.
_HOW = "start workers with `-E` or `worker_send_task_events = True`"


class _Encoding(msgspec.Struct):
    body_encoding: str | None = None


class _Message(msgspec.Struct):
    body: str
    content_type: str | None = msgspec.field(name="content-type", default=None)
    properties: _Encoding = msgspec.field(default_factory=_Encoding)


class _Event(msgspec.Struct):
    """The fields of an event that any question needs; arguments, results and tracebacks are skipped."""

    type: str
    hostname: str | None = None
    uuid: str | None = None
    name: str | None = None
    exception: str | None = None


_decode = msgspec.json.Decoder(_Message).decode
_decode_one = msgspec.json.Decoder(_Event).decode
_decode_several = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(kw_only=True)
class _Row:
    count: int = 0
    ids: dict[str, None] = field(default_factory=dict)

    def add(self, task_id: str) -> None:
        self.count += 1
        if task_id and len(self.ids) < _MOST_IDS:
            self.ids[task_id] = None


@dataclass(kw_only=True)
class Heard:
    """
    Events that came in, counted; memory is bounded whatever comes.

    Attributes:
        senders: Nodes that sent an event of a task.

        heard: Nodes that sent anything.

        unreadable: Messages and events that are not what Celery writes as JSON.
    """

    senders: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)
    unreadable: int = 0
    _rows: dict[tuple[str, str, str], _Row] = field(default_factory=dict)
    _nameless: list[tuple[str, str, str]] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def take(self, raw: bytes) -> None:
        """Count what one message of the channel says: an event, or several that a node gathered."""
        try:
            for event in _events(raw):
                self._count(event)
        except (msgspec.DecodeError, ValueError, RecursionError):
            self.unreadable += 1

    def rows(self, names: Mapping[str, str]) -> list[TaskEvents]:
        """
        Return the events, the most frequent first.

        Args:
            names: Tasks by id, as messages name them: an event that was not preceded by another says only its id.
        """
        for kind, task_id, exception in self._nameless:
            self._add(kind, self._names.get(task_id) or names.get(task_id, ""), exception, task_id)
        self._nameless.clear()
        found = [
            TaskEvents(kind=kind, task=task, exception=exception, count=row.count, ids=tuple(row.ids))
            for (kind, task, exception), row in self._rows.items()
        ]
        return sorted(found, key=lambda row: (-row.count, row.kind, row.task, row.exception))

    def _count(self, event: _Event) -> None:
        kind, task_id = event.type, (event.uuid or "")[:_TEXT_LIMIT]
        node = (event.hostname or "")[:_TEXT_LIMIT]
        if kind.startswith("worker-"):
            _note(self.heard, node)
            return
        if kind not in KINDS:
            return
        if kind != "task-sent":
            _note(self.heard, node)
            _note(self.senders, node)
        if event.name and task_id and len(self._names) < _MOST_NAMES:
            self._names[task_id] = event.name[:_TEXT_LIMIT]
        exception = signatures.of(event.exception or "") if kind in {"task-retried", "task-failed"} else ""
        task = (event.name or "")[:_TEXT_LIMIT] or self._names.get(task_id, "")
        if task or len(self._nameless) >= _MOST_NAMELESS:
            self._add(kind, task, exception, task_id)
        else:
            self._nameless.append((kind, task_id, exception))

    def _add(self, kind: str, task: str, exception: str, task_id: str) -> None:
        row = self._rows.get((kind, task, exception))
        if row is None and len(self._rows) < _MOST_ROWS:
            row = self._rows[(kind, task, exception)] = _Row()
        if row is None:
            row = self._rows.setdefault((kind, OTHERS, ""), _Row())
        row.add(task_id)


def _note(names: set[str], name: str) -> None:
    if name and len(names) < _MOST_NODES:
        names.add(name)


def _events(raw: bytes) -> Iterator[_Event]:
    """
    Yield the events of one message.

    Raises:
        ValueError: If it is none, or one of its events is not; the others come first.
    """
    if len(raw) > _LARGEST_BYTES:
        raise ValueError("too large")
    message = _decode(raw)
    body = base64.b64decode(message.body) if message.properties.body_encoding == "base64" else message.body.encode()
    if body.lstrip()[:1] != b"[":
        yield _decode_one(body)
        return
    odd = 0
    for each in _decode_several(body):
        try:
            yield _decode_one(each)
        except msgspec.DecodeError:
            odd += 1
    if odd:
        raise ValueError("some are no events")


class Listener:
    """
    A subscription to a deployment's events.

    Attributes:
        problem: Why nothing more is heard, as a sentence; empty while it listens.
    """

    def __init__(self, broker: Broker) -> None:
        self.heard = Heard()
        self.problem = ""
        self._pattern = _literal(f"{broker.keys.prefix}/{broker.keys.database}.celeryev/") + "*"
        self._subscription: PubSub = broker.control.pubsub()

    def open(self) -> None:
        """Subscribe, and wait until the server says so; what is published from then on is heard."""
        from redis.exceptions import ResponseError

        deadline = time.monotonic() + _SUBSCRIBED_WITHIN_S
        try:
            self._subscription.psubscribe(self._pattern)
            while time.monotonic() < deadline:
                message: dict[str, Any] | None = self._subscription.get_message(timeout=0.1)
                if message and message["type"] == "psubscribe":
                    return
        except ResponseError as error:
            self.problem = f"This user may not listen to events ({str(error).rstrip('.')})."
            return
        self.problem = "The server did not confirm the subscription to events in time."

    def gather(self, until: float) -> None:
        """Take in what comes until an instant of the monotonic clock."""
        from redis.exceptions import ConnectionError as Closed

        while (left := until - time.monotonic()) > 0:
            if self.problem:
                time.sleep(left)
                return
            try:
                message: dict[str, Any] | None = self._subscription.get_message(timeout=left)
            except Closed:
                # A server closes a subscriber who is too slow; whether it is gone itself, the next sample tells.
                self.problem = "The server closed the subscription before the end, so events are missing."
                continue
            if message and message["type"] == "pmessage" and isinstance(message["data"], bytes):
                self.heard.take(message["data"])

    def close(self) -> None:
        """End the subscription."""
        from redis.exceptions import RedisError

        with contextlib.suppress(RedisError, OSError):
            self._subscription.close()


@contextmanager
def told(broker: Broker, *, timeout_s: float) -> Iterator[tuple[list[str], list[str]]]:
    """
    Have every node send events of tasks for the length of a `with` block.

    The one order that a look gives, and only where it is asked for. Nodes that send them already are left alone, for
    their answer tells them apart.

    Yields:
        The nodes that send events because of this; and sentences about what did not work, which may grow at the end.
    """
    from redis.exceptions import RedisError, ResponseError

    problems: list[str] = []
    switched: list[str] = []
    try:
        # Ctrl-C waits for the answers: without them nobody would know which nodes are to be told to stop again.
        with interrupts.deferred():
            try:
                answers = pidbox.ask(broker, [pidbox.Call(method="enable_events")], timeout_s=timeout_s)
                replies = answers.replies["enable_events"]
                switched += sorted(node for node, reply in replies.items() if _ENABLED in reply)
                if unsure := answers.receivers - len(replies):
                    problems.append(
                        f"Nodes that did not answer the order to send events, and may yet obey it: {unsure}."
                    )
            except ResponseError as error:
                problems.append(f"Nodes could not be told to send events ({str(error).rstrip('.')}).")
        yield switched, problems
    finally:
        # A second Ctrl-C waits here: a node that goes on telling would be a change that nobody asked for.
        with interrupts.deferred():
            left = set(switched)
            if switched:
                with contextlib.suppress(RedisError):
                    call = pidbox.Call(method="disable_events", destination=tuple(switched))
                    left -= pidbox.order(broker, call, timeout_s=timeout_s).keys()
            if left:
                names = ", ".join(sorted(left)[:5])
                problems.append(f"Still sending events: {names}; `celery control disable_events` ends that.")


def coverage(heard: Heard, mute: Sequence[str], ran: int, problems: Sequence[str]) -> Coverage:
    """
    Say how many nodes were heard, and whether what was not heard means anything.

    Never silent in the sense of a place that was not seen: what a node does not tell is seen by its messages as well.

    Args:
        mute: Nodes that accepted tasks and told nothing of them.

        ran: Tasks that were accepted meanwhile.
    """
    notes = list(problems)
    if mute:
        names = f"{', '.join(mute[:5])}{' …' * (len(mute) > 5)}"
        notes.append(f"Ran tasks and sent no event of them: {names}; to hear of retries and failures, {_HOW}.")
    elif not heard.senders and not ran:
        notes.append("No task began in the window, so it cannot be told which nodes send events of tasks.")
    if heard.unreadable:
        notes.append(f"Events that could not be read: {heard.unreadable:,}.")
    return Coverage(place="events", seen=len(heard.heard), note=" ".join(notes))


def _literal(text: str) -> str:
    """Return text as a pattern that means only itself."""
    return "".join(f"\\{sign}" if sign in "\\*?[]^-" else sign for sign in text)
