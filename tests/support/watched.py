"""A client → the same client, with each window of a list noted, and the system moving between two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis


class Watched:
    """
    Passes every command on.

    Attributes:
        windows: Bytes of each LRANGE reply.

        asked: Index range of each LRANGE.
    """

    def __init__(self, client: Redis, meanwhile: Callable[[int], None] = lambda _: None) -> None:
        self._client, self._meanwhile = client, meanwhile
        self.windows: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def lrange(self, name: bytes, start: int, end: int) -> list[bytes]:
        """Answer one window; before it, but for the first, whatever else goes on is done."""
        if self.asked:
            self._meanwhile(len(self.asked))
        found = self._client.lrange(name, start, end)
        self.windows.append(sum(map(len, found)))
        self.asked.append((start, end))
        return found
