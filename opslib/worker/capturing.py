"""
A message that its node is done with, and that has not done its work → a letter in its queue's dead-letter list.

One rule decides: a message is dead once it is out of the broker, and neither succeeded nor goes on as another one. What
will be delivered again is not dead.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import bootsteps
from celery.exceptions import Ignore, NotRegistered, Reject, Retry, Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.imports import symbol_by_name
from kombu.utils.encoding import safe_repr
from kombu.utils.json import dumps

from opslib import letters
from opslib.envelope import Head, head
from opslib.keys import PRIORITY_STEPS, SEPARATOR, Binding, Keyspace, destinations
from opslib.letters import MOST_EXCEPTION, MOST_TRACEBACK, REDRIVES, VERSION, Cause, Letter
from opslib.worker import connection, requests, wishes
from opslib.worker.outbox import Entry, Outbox
from opslib.worker.transport import connect

# ruff: noqa: ANN401, SLF001 - Celery says what a step is given; a message's own text is nowhere but in `_raw`

#: A node that ends waits no longer for its letters.
LAST_CALL_S = 4.0
_MOST_LOGGED = 20

#: A consumer's methods for messages that no task gets: the cause, and where the message and the error are given.
_UNREAD: dict[str, tuple[Cause, int, int | None]] = {
    "on_unknown_task": (Cause.UNKNOWN_TASK, 1, 2),
    "on_unknown_message": (Cause.UNDECODABLE, 1, None),
    "on_invalid_task": (Cause.UNDECODABLE, 1, 2),
    "on_decode_error": (Cause.UNDECODABLE, 0, 1),
}
_CAUSES = ((Reject, Cause.REJECTED), (WorkerLostError, Cause.WORKER_LOST), (TimeLimitExceeded, Cause.TIME_LIMIT))

logger = logging.getLogger("opslib.worker")


class Capture(bootsteps.StartStopStep):
    """
    What watches one node: its requests, and the messages that never become one.

    Attributes:
        outbox: Where the letters go.

        quiet: Ends what is done within its `with` block at the first error, so that the node goes on.
    """

    label = "Dead letters"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        app = consumer.app
        self.wish = wishes.of(app)
        self.outbox = Outbox(partial(connect, app, self.wish.url), connection.keys(app), most=self.wish.most)
        self.quiet = _Quiet()
        self._consumer = consumer
        self._is_on = True
        self._cancelled: list[Any] = []
        requests.watching[app] = self
        for name, where in _UNREAD.items():
            setattr(consumer, name, self._watched(getattr(consumer, name), *where))
        consumer.update_strategies = self._with_requests(consumer.update_strategies)

    def start(self, consumer: Any) -> None:
        """Have each message know the queue that it comes from: its routing key may lead to several."""
        kind = consumer.connection.transport.driver_type
        self._is_on = kind == "redis"
        if not self._is_on:
            logger.warning("Dead letters are not captured: the broker is of type %s, and not Redis.", kind)
            return
        channel = consumer.task_consumer.channel
        original = channel.basic_consume

        def basic_consume(queue: str, *args: Any, **kwargs: Any) -> Any:
            if receive := kwargs.get("callback"):

                def marked(message: Any) -> Any:
                    message.opslib_queue = queue
                    return receive(message)

                kwargs["callback"] = marked
            return original(queue, *args, **kwargs)

        channel.basic_consume = basic_consume

    def shutdown(self, _consumer: Any) -> None:
        """Write what is left; the pool has ended, so nothing comes after it."""
        from celery.worker import state

        for request in self._cancelled:
            with self.quiet:
                if request.id not in state.successful_requests:
                    error = WorkerLostError("Ended by a cold shutdown.")
                    self.keep(request, Cause.WORKER_LOST, error)
        self._cancelled.clear()
        with self.quiet:
            self.outbox.flush(LAST_CALL_S)

    def failed(self, request: Any, info: Any) -> None:
        """Learn how a request ended that raised, or whose process did."""
        error = info.exception
        # Only what Celery wraps it in: a Retry has the reason for it as its own `exc`, and is no failure.
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        is_gone = isinstance(error, SystemExit | KeyboardInterrupt | WorkerLostError)
        if isinstance(error, Retry | Ignore | Terminated) or request._already_revoked:
            return
        if is_gone and request._already_cancelled:
            return
        # The frames of the pool that misses a process, or ends one, say nothing of the task.
        has_frames = not isinstance(error, WorkerLostError | TimeLimitExceeded)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            error = WorkerLostError(f"Worker exited prematurely: {error!r}.")
        cause = next((cause for kind, cause in _CAUSES if isinstance(error, kind)), Cause.RAISED)
        self.keep(request, cause, error, str(getattr(info, "traceback", "") or "") if has_frames else "")

    def cancelled(self, request: Any) -> None:
        """Learn of a request that a cold shutdown ends; whether it was quicker is known once the pool has ended."""
        if request._already_cancelled:
            self._cancelled.append(request)

    def expired(self, request: Any) -> None:
        """Learn of a request that came too late."""
        if self.wish.expired:
            self.keep(request, Cause.EXPIRED, None)

    def keep(self, request: Any, cause: Cause, error: BaseException | None, traceback: str = "") -> None:
        """Keep a request's message, unless it goes on."""
        if requests.went_on(request):
            return
        found = request.request_dict
        self._post(
            request.message,
            cause,
            error,
            traceback,
            task_id=_bounded(request.id),
            task_name=_bounded(request.type),
            args=_bounded(found.get("argsrepr")),
            kwargs=_bounded(found.get("kwargsrepr")),
            retries=_whole(found.get("retries")),
        )

    def _watched(
        self, original: Callable[..., Any], cause: Cause, message_at: int, error_at: int | None
    ) -> Callable[..., Any]:
        """Return a consumer's method for messages that no task gets, with a look at the message afterwards."""

        def method(*args: Any) -> Any:
            try:
                return original(*args)
            finally:
                with self.quiet:
                    if args[message_at].acknowledged:
                        self._keep_unread(args[message_at], cause, None if error_at is None else args[error_at])

        return method

    def _keep_unread(self, message: Any, cause: Cause, error: BaseException | None) -> None:
        headers = message.headers if isinstance(message.headers, dict) else {}
        found = head(dumps(message._raw).encode())
        task = found.task if isinstance(found, Head) else _bounded(headers.get("task"))
        self._post(
            message,
            cause,
            NotRegistered(task) if cause is Cause.UNKNOWN_TASK else error,
            task_id=(
                (found.task_id if isinstance(found, Head) else _bounded(headers.get("id")))
                or _bounded(message.properties.get("correlation_id"))
            ),
            task_name=task,
            args=_bounded(headers.get("argsrepr")),
            kwargs=_bounded(headers.get("kwargsrepr")),
            retries=found.retries if isinstance(found, Head) else 0,
        )

    def _post(
        self,
        message: Any,
        cause: Cause,
        error: BaseException | None,
        traceback: str = "",
        **values: Any,
    ) -> None:
        """Write a letter, once for each message: the message as kombu writes it, so as it was if kombu wrote it."""
        if not self._is_on or getattr(message, "opslib_is_kept", False):
            return
        message.opslib_is_kept = True
        queue = self._queue_of(message)
        channel = message.channel
        space = Keyspace(
            prefix=str(getattr(channel, "global_keyprefix", "") or ""),
            separator=str(getattr(channel, "sep", SEPARATOR)),
            priority_steps=tuple(getattr(channel, "priority_steps", PRIORITY_STEPS)),
        )
        exc_type, said = _described(error)
        letter = Letter(
            v=VERSION,
            entry_id=uuid.uuid4().hex,
            exception=_bounded(said),
            exc_type=exc_type,
            traceback=_plain(_shortened(traceback, error)[-MOST_TRACEBACK:]),
            failed_at=datetime.now(UTC).isoformat(),
            worker=str(self._consumer.hostname),
            queue=queue,
            list_key=space.queue(queue, _whole(message.properties.get("priority"))),
            redrives=_whole((message.headers or {}).get(REDRIVES)),
            cause=cause,
            envelope=dumps(message._raw),
            **values,
        )
        self.outbox.put(Entry(queue, letters.write(letter), letter.task_id))

    def _queue_of(self, message: Any) -> str:
        """Return the queue that a message was taken from."""
        if marked := getattr(message, "opslib_queue", ""):
            return str(marked)
        information = message.delivery_info or {}
        exchange, routing_key = str(information.get("exchange") or ""), str(information.get("routing_key") or "")
        taken = [
            Binding(exchange=each.exchange.name, routing_key=each.routing_key or "", pattern="", queue=each.name)
            for each in (self._consumer.task_consumer.queues if exchange else ())
            if each.exchange and each.exchange.name == exchange
        ]
        return next(iter(destinations({exchange: taken}, exchange, routing_key)), routing_key)

    def _with_requests(self, original: Callable[[], Any]) -> Callable[[], Any]:
        """Return a consumer's `update_strategies` that has the requests of every task watched first."""

        def update_strategies() -> Any:
            with self.quiet:
                for task in self._consumer.app.tasks.values():
                    task.Request = requests.watched(symbol_by_name(task.Request))
            return original()

        return update_strategies


class _Quiet:
    """Ends a `with` block at its first error, which is logged the first times."""

    def __init__(self) -> None:
        self.errors = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        self.errors += 1
        if self.errors <= _MOST_LOGGED:
            logger.error("The end of a task could not be captured: %s", safe_repr(error), exc_info=error)
        return True


def _described(error: BaseException | None) -> tuple[str, str]:
    """Return an exception's class and its text; Celery wraps one that cannot be pickled, and says what it was."""
    if error is None:
        return "", ""
    if name := getattr(error, "exc_cls_name", ""):
        return str(name), str(getattr(error, "text", ""))
    return type(error).__name__, safe_repr(error)


def _shortened(traceback: str, error: BaseException | None) -> str:
    """Return a traceback in which an endless text does not take the place of the frames."""
    if error is None or len(traceback) <= MOST_TRACEBACK:
        return traceback
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the application's own code
        return traceback
    return traceback.replace(text, f"{text[:MOST_EXCEPTION]}…") if len(text) > MOST_EXCEPTION else traceback


def _bounded(value: object) -> str:
    return _plain(value[:MOST_EXCEPTION]) if isinstance(value, str) else ""


def _plain(text: str) -> str:
    """Return text that can be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0
