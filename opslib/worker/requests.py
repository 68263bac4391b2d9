"""
The class of requests that an application has → the same, watched: how a request ended, and where its message went.

It runs in a node's main process, where also the death of a pool's process is learnt of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery.exceptions import TimeLimitExceeded

from opslib.letters import Cause

if TYPE_CHECKING:
    from celery import Celery

    from opslib.worker.capturing import Capture

# ruff: noqa: ANN401 - Celery says what these are given

#: By application, what watches its node while one runs in this process.
watching: WeakKeyDictionary[Celery, Capture] = WeakKeyDictionary()


@cache
def watched(base: type) -> type:
    """Return a class of requests, watched; the application's own stays what it is, below."""
    if issubclass(base, _Watched):
        return base
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (_Watched, base), names)


def went_on(request: Any) -> bool:
    """Whether a request's message is still in the broker, or was followed by another one, or did its work."""
    return not request.acknowledged or request.opslib_went_back or request.opslib_is_settled


if TYPE_CHECKING:
    from celery.worker.request import Request
else:
    Request = object


class _Watched(Request):
    opslib_went_back = False
    opslib_is_settled = False

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().on_failure(exc_info, *args, **kwargs)
        finally:
            _tell(self, lambda capture: capture.failed(self, exc_info))

    def on_timeout(self, soft: Any, timeout: Any) -> Any:
        try:
            return super().on_timeout(soft, timeout)
        finally:
            if not soft:
                _tell(self, lambda capture: capture.keep(self, Cause.TIME_LIMIT, TimeLimitExceeded(timeout)))

    def reject(self, requeue: bool = False) -> Any:  # noqa: FBT001, FBT002 - as Celery has it
        if requeue and not self.acknowledged:
            self.opslib_went_back = True
        return super().reject(requeue=requeue)

    def cancel(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().cancel(*args, **kwargs)
        finally:
            _tell(self, lambda capture: capture.cancelled(self))

    def _announce_revoked(self, reason: Any, terminated: Any, signum: Any, expired: Any) -> Any:
        try:
            return super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        finally:
            if expired:
                _tell(self, lambda capture: capture.expired(self))

    def _success_was_stored(self) -> Any:
        """Celery asks it of a request whose process was lost."""
        found = super()._success_was_stored()  # type: ignore[misc]
        self.opslib_is_settled |= bool(found)
        return found

    def _retry_worker_lost(self, *args: Any, **kwargs: Any) -> Any:
        """Celery says by it whether such a request goes on as another message."""
        found = super()._retry_worker_lost(*args, **kwargs)  # type: ignore[misc]
        self.opslib_is_settled |= bool(found)
        return found


def _tell(request: Any, what: Callable[[Capture], object]) -> None:
    """Tell whoever watches the node of a request; nothing that comes of it gets any further."""
    capture = watching.get(request.app)
    if capture is not None:
        with capture.quiet:
            what(capture)
