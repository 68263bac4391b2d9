"""Ctrl-C in the middle of something that must be whole → the same Ctrl-C, a moment later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred() -> Iterator[None]:
    """
    Hold SIGINT back until the block has ended, then let it through.

    Only the main thread is ever interrupted, so elsewhere this does nothing.

    Raises:
        KeyboardInterrupt: At the end of the block, if it was interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt
