"""A filter in a person's words → whether it means a message: by its task's name, its retries, its expiry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from opslib.durations import spell

_BETWEEN = re.compile(r"[\s,;]+")


def ids(text: str) -> list[str]:
    """Return the task ids in a text that a person wrote, each once; between them are commas or white space."""
    return list(dict.fromkeys(each for each in _BETWEEN.split(text) if each))


class Meant(Protocol):
    """What a filter looks at; a message's head and its row both have it."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def retries(self) -> int:
        """How often it was retried."""

    @property
    def expires_at(self) -> float | None:
        """Epoch seconds after which no worker runs it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """
    Which messages are meant: those for which every condition holds.

    Attributes:
        task: Glob that the task's name fits, capitals and all.

        retries: Retried so often or more.

        expired_at: Epoch seconds: expired by then. An instant and no duration, so that a plan means the same messages
            whenever it is applied. None for any.

        limit: So many of them at most, those that are served first; 0 for all.
    """

    task: str = "*"
    retries: int = 0
    expired_at: float | None = None
    limit: int = 0

    @property
    def is_everything(self) -> bool:
        """Whether it leaves nothing out."""
        return not self.task.strip("*?") and not self.retries and self.expired_at is None

    def fits(self, message: Meant) -> bool:
        """Whether it means this one."""
        return (
            (self.expired_at is None or (message.expires_at is not None and message.expires_at <= self.expired_at))
            and message.retries >= self.retries
            and fnmatchcase(message.task, self.task)
        )

    def words(self, now: float | None = None) -> str:
        """
        Return it as a sentence says it: "of shop.*, retried 3 times or more"; empty for everything.

        Args:
            now: Epoch seconds, to say how long ago an expiry was.
        """
        said = [f"of {self.task}"] if self.task.strip("*") else []
        said += [f"retried {self.retries} times or more"] if self.retries else []
        if self.expired_at is not None:
            ago = f" {spell(now - self.expired_at)} ago" if now is not None and now - self.expired_at >= 1 else ""
            said.append(f"expired{ago}")
        said += [f"at most {self.limit:,}"] if self.limit else []
        return ", ".join(said)
