"""How far a task of the demo is, and what it says → keys of the shop's own, in databases beside the broker's."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from opslib.embedded import server

if TYPE_CHECKING:
    from redis import Redis

PROGRESS, LOGS = 1, 2
PATTERN = "progress:{task_id}"


def beside(url: str, database: int) -> str:
    """Return the URL of another database of the demo's server."""
    return f"{url.rpartition('/')[0]}/{database}"


def note(task_id: str, percent: int, line: str) -> None:
    """Write down how far a task is and what it does, for ever, as many applications do."""
    url = os.environ["DEMO_BROKER_URL"]
    _client(beside(url, PROGRESS)).hset(f"progress:{task_id}", mapping={"percent": percent, "step": line})
    _client(beside(url, LOGS)).rpush(f"logs:{task_id}", line)


@cache
def _client(url: str) -> Redis:
    return server.client(url)
