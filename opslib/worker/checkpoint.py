"""
A running task → how far it has come, kept in the broker, so that it goes on from there after a failure.

    @app.task(bind=True)
    def import_rows(self, path):
        state = checkpoint(self)
        for row in range(state.get("rows", 0), total):
            ...
            state.save(progress=(row + 1) / total, rows=row + 1)

A retry has the same id and finds it; `ops task resume` gives it to a task under a new id. It goes with its task's
success. Nothing that happens to it ends the task.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import signals

from opslib import checkpoints
from opslib.checkpoints import Document, Failure
from opslib.envelope import Unreadable
from opslib.errors import SettingsError
from opslib.worker import connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery import Celery, Task

logger = logging.getLogger(__name__)
#: What went wrong in this process, by its kind: "read", "write", "remove", "too large", "no JSON".
troubles: Counter[str] = Counter()
#: Those of the tasks that run in this process, by the task's id.
_open: dict[str, Checkpoint] = {}
_MOST_TEXT = 500


def checkpoint(
    task: Task[Any, Any],
    *,
    life: timedelta | float | None = None,
    most_bytes: int = checkpoints.MOST_BYTES,
    strict: bool = False,
) -> Checkpoint:
    """
    Return how far a bound task has come, if it has begun before; empty otherwise.

    Args:
        life: How long it is kept after each save, in seconds: as long as somebody may want to resume a failure. Never
            shorter than results are; without it 14 days, or for ever where results never expire.

        most_bytes: What it may weigh as JSON.

        strict: Whether what is too large or no JSON raises ValueError. Otherwise it is logged, and the last state that
            could be saved stays.
    """
    opened = Checkpoint(task, life_s=_life_s(task.app, life), most_bytes=most_bytes, strict=strict)
    if opened.is_kept:
        _open[opened.task_id] = opened
    return opened


class Checkpoint:
    """
    How far one task has come.

    Attributes:
        results: What it has so far, by names of its own; JSON.

        progress: From 0 to 1; None if the task did not say.

        is_resumed: Whether it goes on from an earlier try of the same task, or from the task that it was resumed from.

        resumed_from: Id of the task that this one goes on from; empty for none.

        is_kept: Whether it is written anywhere; a task that is called as a function has it in memory alone.

        problem: What last went wrong with it, as a sentence; empty if all is well.
    """

    def __init__(self, task: Task[Any, Any], *, life_s: float, most_bytes: int, strict: bool) -> None:
        request = task.request
        self.task_id = str(request.id or "")
        self.is_kept = bool(self.task_id) and not request.is_eager
        self.problem = ""
        self._app, self._most_bytes, self._strict = task.app, most_bytes, strict
        self._document = Document(task_id=self.task_id, task=str(task.name))
        found = self._read() if self.is_kept else None
        self.is_resumed = found is not None
        if found is not None:
            self._document = found
        information: Mapping[str, Any] = request.delivery_info or {}
        self._document.args, self._document.kwargs = _parameters(request.args, request.kwargs)
        self._document.queue = _queue(task.app, information)
        self._document.priority = int(information.get("priority") or 0)
        self._document.retries = int(request.retries or 0)
        self._document.life_s = life_s

    @property
    def results(self) -> dict[str, Any]:
        """What it has so far."""
        return self._document.results

    @property
    def progress(self) -> float | None:
        """From 0 to 1."""
        return self._document.progress

    @property
    def resumed_from(self) -> str:
        """Id of the task that this one goes on from."""
        return self._document.resumed_from

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Return one of the results, or the default on a first try."""
        return self.results.get(name, default)

    def save(self, *, progress: float | None = None, **results: object) -> bool:
        """
        Keep how far the task has come, and these results beside those that it had.

        Returns:
            Whether it is written; `problem` says why not.

        Raises:
            ValueError: Where it is strict, if the state is too large or no JSON.
        """
        self.results.update(results)
        if progress is not None:
            self._document.progress = float(progress)
        self._document.failed, self._document.refused = None, ""
        return self._write()

    def give_up(self, reason: str) -> bool:
        """Say that the task must not be gone on with, such as for a damaged file; `ops task resume` tells it."""
        self._document.refused = str(reason)[:_MOST_TEXT] or "its task says so"
        return self._write()

    def discard(self) -> bool:
        """Forget it, with those that it goes on from: the next try begins at the beginning."""
        self._document.results, self._document.progress, self._document.saves = {}, None, 0
        return self._tried("remove", self._remove) if self.is_kept else True

    # What the signals of Celery lead to

    def fail(self, error: BaseException) -> None:
        """Note how the task ended; one that has saved nothing leaves nothing."""
        if self._document.saves:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            name, text = type(error).__name__, str(error)[:_MOST_TEXT]
            self._document.failed = Failure(exc_type=name, exception=text, failed_at=at)
            self._write()

    def _read(self) -> Document | None:
        found: list[Document] = []

        def read() -> None:
            raw: Any = connection.client(self._app).get(self._key)
            document = checkpoints.read(raw) if raw is not None else None
            if isinstance(document, Unreadable):
                raise ValueError(document.reason)
            if document is not None and document.task in {"", self._document.task}:
                found.append(document)

        # Once more: to begin at the beginning is dear.
        if not self._tried("read", read, log=False):
            self.problem = ""
            self._tried("read", read)
        return found[0] if found else None

    def _write(self) -> bool:
        if not self.is_kept:
            return True
        self._document.saved_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._document.saves += 1
        try:
            raw = checkpoints.write(self._document)
        except ValueError as error:
            return self._refused("no JSON", f"its state is no JSON: {error}", error)
        if len(raw) > self._most_bytes:
            said = f"its state has {len(raw):,} bytes, and {self._most_bytes:,} is the most: keep less, or elsewhere"
            return self._refused("too large", said)
        life_ms = math.ceil(self._document.life_s * 1000) or None
        return self._tried("write", lambda: connection.client(self._app).set(self._key, raw, px=life_ms))

    def _remove(self) -> None:
        """
        Remove it, and of its ancestors, those that name it as what goes on from them, all but that.

        Their dead letters may lie there still, and must not be sent again as if nobody had gone on.
        """
        client, space = connection.client(self._app), connection.keys(self._app)
        ids = [self.task_id]
        parent = self._document.resumed_from
        while parent and parent not in ids and len(ids) < checkpoints.MOST_LINKS:
            raw: Any = client.get(space.checkpoint(parent))
            document = checkpoints.read(raw) if raw is not None else None
            if not isinstance(document, Document) or document.resumed_as != ids[-1]:
                break
            client.set(space.checkpoint(parent), checkpoints.write(checkpoints.over(document)), keepttl=True)
            ids.append(parent)
            parent = document.resumed_from
        client.delete(space.checkpoint(self.task_id))

    @property
    def _key(self) -> str:
        return connection.keys(self._app).checkpoint(self.task_id)

    def _tried(self, what: str, do: Callable[[], object], *, log: bool = True) -> bool:
        """Do something with the broker; whatever comes of it, the task goes on."""
        from redis.exceptions import RedisError

        try:
            do()
        except (RedisError, OSError, SettingsError, ValueError) as error:
            self.problem = f"The checkpoint of {self.task_id} could not be {_DONE[what]}: {error}"
            if log:
                troubles[what] += 1
                logger.warning("%s", self.problem)
            return False
        self.problem = ""
        return True

    def _refused(self, what: str, why: str, cause: Exception | None = None) -> bool:
        self.problem = f"The checkpoint of {self.task_id} was not saved: {why}."
        troubles[what] += 1
        if self._strict:
            raise ValueError(self.problem) from cause
        logger.error("%s The one before stays.", self.problem)
        return False


_DONE = {"read": "read, so the task begins at the beginning", "write": "saved", "remove": "removed"}


def _life_s(app: Celery, life: timedelta | float | None) -> float:
    """Return how long a checkpoint lives; 0 for ever."""
    wanted = None if life is None else _seconds(life)
    lives = [_seconds(app.conf.get(name)) for name in ("result_expires", "result_failure_expires")]
    results_s = lives[0]
    if not results_s and wanted is None:
        return 0.0
    return max(checkpoints.LIFE_S if wanted is None else wanted, *lives)


def _seconds(value: timedelta | float | str | None) -> float:
    try:
        found = value.total_seconds() if isinstance(value, timedelta) else float(value or 0)
    except ValueError:
        return 0.0
    return max(0.0, found)


def _parameters(args: object, kwargs: object) -> tuple[list[Any] | None, dict[str, Any] | None]:
    """Return what the task was called with, as far as JSON can say it; otherwise its dead letter has to."""
    called = Document(args=list(args or ()), kwargs=dict(kwargs or {}))  # type: ignore[call-overload]
    try:
        checkpoints.write(called)
    except ValueError:
        return None, None
    return called.args, called.kwargs


def _queue(app: Celery, information: Mapping[str, Any]) -> str:
    """Return the queue that a message came from, by its exchange and routing key."""
    exchange, routing_key = str(information.get("exchange") or ""), str(information.get("routing_key") or "")
    if not exchange:
        return routing_key
    for name, queue in app.amqp.queues.items():
        if queue.exchange and queue.exchange.name == exchange and queue.routing_key == routing_key:
            return str(name)
    return routing_key


def _on_success(sender: Task[Any, Any], **_: object) -> None:
    """Remove what nobody will go on from."""
    found = _open.get(str(sender.request.id))
    if found is not None:
        found.discard()


def _on_failure(task_id: str, exception: BaseException, **_: object) -> None:
    found = _open.get(str(task_id))
    if found is not None:
        found.fail(exception)


def _after(task_id: str, **_: object) -> None:
    _open.pop(str(task_id), None)


signals.task_success.connect(_on_success, weak=False, dispatch_uid="opslib.checkpoint.success")
signals.task_failure.connect(_on_failure, weak=False, dispatch_uid="opslib.checkpoint.failure")
signals.task_postrun.connect(_after, weak=False, dispatch_uid="opslib.checkpoint.after")
