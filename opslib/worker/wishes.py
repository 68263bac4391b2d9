"""
An application → what it wants its nodes to keep; nothing else is loaded until one of them starts.

    app = Celery("shop", broker="redis://…")
    worker.capture(app)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from opslib import urls
from opslib.errors import SettingsError

if TYPE_CHECKING:
    from celery import Celery

#: Letters of one list; the oldest are dropped, and counted.
MOST_LETTERS = 10_000
_STEP = "opslib.worker.capturing:Capture"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """
    What an application wants.

    Attributes:
        most: Letters that a list holds.

        expired: Whether tasks are kept that had expired.

        url: Where the lists are; empty for the broker.
    """

    most: int = MOST_LETTERS
    expired: bool = False
    url: str = ""


_wishes: WeakKeyDictionary[Celery, Wish] = WeakKeyDictionary()


def capture(app: Celery, *, most: int = MOST_LETTERS, expired: bool = False, url: str = "") -> None:
    """
    Have the nodes of an application keep each task that dies, with its message, in `<queue>.dead`.

    Called where the application is made, before a node starts; once more only replaces the options. A process that
    only sends tasks is not changed by it.

    Args:
        most: Letters that a list holds; beyond that the oldest are dropped, and counted.

        expired: Whether a task is kept as well whose time to be run had passed when a node took it.

        url: Where the lists are, if not in the broker: another Redis, or another database.

    Raises:
        SettingsError: If an option cannot be meant so.
    """
    if type(most) is not int or most < 1:
        raise SettingsError(f"capture() was given most={most!r}.", hint="Give the number of letters that a list holds.")
    if url:
        urls.check(url, "url")
    app = getattr(app, "_get_current_object", lambda: app)()
    _wishes[app] = Wish(most=most, expired=expired, url=url)
    # By its name: a process that only sends need not load what a node is made of.
    app.steps["consumer"].add(_STEP)


def of(app: Celery) -> Wish:
    """Return what an application wants."""
    return _wishes.get(app, Wish())
