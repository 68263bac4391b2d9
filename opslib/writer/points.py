"""
Where a run may be cut off → the same place, by name, for a test that cuts it there; otherwise nothing.

A promise that holds "whatever happens in between" is only as good as the places that were tried (safety §2.10).
"""

from __future__ import annotations

from collections.abc import Callable

#: Called with the name of each place that a run passes; empty outside of tests.
watchers: list[Callable[[str], None]] = []


def passed(name: str) -> None:
    """Say that a run is at this place."""
    for watcher in watchers:
        watcher(name)
