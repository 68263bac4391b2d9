"""Dead letters as they were seen: one row for each, each list, and each group with one signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """
    One task that failed for good, as an entry of a dead-letter list says it, or its result.

    Attributes:
        key: List that holds it; the result's key where there is no entry.

        queue: Queue that its message was taken from.

        entry_id: Its own name; one that has none is named by its bytes.

        signature: What failures of one cause have in common.

        cause: One of `letters.Cause`.

        failed_at: Epoch seconds; None if it does not say.

        redrives: How often it had been sent again already.

        exact: Whether it holds the message as it was; otherwise one can only be made anew from task and arguments.

        size_bytes: Of the entry.

        notes: What speaks for care, or against sending it again; words of `redriving.Note`.
    """

    task_id: str
    task: str
    key: str
    queue: str = ""
    entry_id: str = ""
    exception: str = ""
    exc_type: str = ""
    signature: str = ""
    frame: str = ""
    cause: str = "unknown"
    failed_at: float | None = None
    worker: str = ""
    retries: int = 0
    redrives: int = 0
    exact: bool = True
    size_bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadList:
    """
    One dead-letter list.

    Attributes:
        key: Its name; of results, the pattern of their keys.

        queue: Queue that its letters come from, by its name.

        source: "list", or "results" for tasks whose failure only a result tells.

        oldest_at, newest_at: Epoch seconds of the first and the last failure that says when; None if none does.

        unreadable: Entries that nobody can read; of results, those that do not name their task.

        dropped: Entries that were lost to its bound, as the capture has counted; the oldest each time.

        arrived: Entries that came between the two looks; None where only one was taken.
    """

    key: str
    queue: str
    length: int
    source: str = "list"
    size_bytes: int = 0
    oldest_at: float | None = None
    newest_at: float | None = None
    unreadable: int = 0
    dropped: int = 0
    arrived: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadGroup:
    """
    Dead letters with one signature.

    Attributes:
        name: The signature's short name.

        tasks, queues, workers, causes: How many of each, the most frequent first; of many names, the most frequent.

        first_at, last_at: Epoch seconds; None if none says when.

        times: Failures by time: epoch seconds at which a bucket begins, and how many are in it.

        example: The latest of them.

        redriven: Letters that had been sent again before and failed once more.

        refused: Letters that would not be sent again, by the reason.

        inexact: Letters without their message.

        judgement: What it comes of, in a word; empty until it was judged.
    """

    signature: str
    name: str
    count: int
    example: DeadLetter
    tasks: Mapping[str, int] = field(default_factory=dict)
    queues: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
    causes: Mapping[str, int] = field(default_factory=dict)
    first_at: float | None = None
    last_at: float | None = None
    times: tuple[tuple[float, int], ...] = ()
    redriven: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    inexact: int = 0
    judgement: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetters:
    """
    Every dead letter that was looked at.

    Attributes:
        groups: By signature, the largest first.

        letters: The latest of them, so many as were asked for.

        read: Entries that were read.

        ungrouped: Entries of signatures beyond those that are kept.

        revoked: Ids that nodes remember as revoked, among those of the letters.

        watched_s: Seconds between the two looks; 0 where only one was taken.
    """

    lists: tuple[DeadList, ...] = ()
    groups: tuple[DeadGroup, ...] = ()
    letters: tuple[DeadLetter, ...] = ()
    read: int = 0
    ungrouped: int = 0
    revoked: frozenset[str] = frozenset()
    watched_s: float = 0.0

    @property
    def length(self) -> int:
        """How many entries all lists hold; what only a result tells is none of them."""
        return sum(each.length for each in self.lists if each.source == "list")
