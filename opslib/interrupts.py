"""Ctrl-C in the middle of something that must be whole → the same Ctrl-C, a moment later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Held:
    """Notes that a signal came, for the end of the block."""

    def __init__(self, caught: list[int]) -> None:
        self._caught = caught

    def __call__(self, number: int, _frame: object) -> None:
        self._caught.append(number)


@contextmanager
def deferred() -> Iterator[None]:
    """
    Hold SIGINT back until the block has ended, then let it through.

    Only the main thread is ever interrupted, so elsewhere this does nothing; nor does it within another such block,
    whose end is waited for.

    Raises:
        KeyboardInterrupt: At the end of the block, if it was interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or isinstance(before, _Held):
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, _Held(caught))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt
