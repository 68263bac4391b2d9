"""Tasks that fail until somebody has mended their cause, in workflows; only workers that capture import it."""

from __future__ import annotations

from typing import Any

from celery import Task, chain, chord

from tests.support.app import _ran
from tests.support.dying import app


@app.task(name="tests.needs", bind=True)
def needs(self: Task[Any, Any], number: int = 1, fails: bool = True) -> int:
    """Give a number back, once the key `mended` is there."""
    _ran(self)
    if fails and not app.backend.client.exists("mended"):
        raise RuntimeError("not mended yet")
    return number


@app.task(name="tests.total", bind=True)
def total(self: Task[Any, Any], numbers: list[int]) -> int:
    """Add up."""
    _ran(self)
    return sum(numbers)


@app.task(name="tests.plus", bind=True)
def plus(self: Task[Any, Any], number: int, more: int) -> int:
    """Add one to another."""
    _ran(self)
    return number + more


def workflow_of_chord(size: int, failing: int) -> Any:
    """Send a chord, some of whose tasks fail; return the result of its body."""
    return chord([needs.s(n, fails=n < failing) for n in range(size)])(total.s())


def workflow_of_chain() -> Any:
    """Send a chain whose first task fails; return the result of its last."""
    return chain(needs.s(1), plus.s(10), plus.s(100)).apply_async()
