"""A filter in a person's words → whether it means a message, a dead letter or a stored result."""

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


class DeadMeant(Protocol):
    """What a filter of dead letters looks at."""

    @property
    def entry_id(self) -> str:
        """The entry's own name."""

    @property
    def task_id(self) -> str:
        """Id of the task that failed."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def signature(self) -> str:
        """What failures of one cause have in common."""

    @property
    def cause(self) -> str:
        """How the task died."""

    @property
    def failed_at(self) -> float | None:
        """Epoch seconds of the failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadSelection:
    """
    Which dead letters are meant: those for which every condition holds.

    Attributes:
        ids: Entry ids or task ids; empty for any.

        task: Glob that the task's name fits.

        signature: A signature's short name, or a glob that its text fits.

        cause: How the task died; empty for any.

        failed_before, failed_after: Epoch seconds. A letter that does not say when it failed fits neither.

        limit: So many at most, the oldest first; 0 for all.
    """

    ids: tuple[str, ...] = ()
    task: str = "*"
    signature: str = ""
    cause: str = ""
    failed_before: float | None = None
    failed_after: float | None = None
    limit: int = 0

    @property
    def is_everything(self) -> bool:
        """Whether it leaves nothing out, but for a limit."""
        others = (self.ids, self.task.strip("*?"), self.signature.strip("*"), self.cause)
        return not any(others) and self.failed_before is None and self.failed_after is None

    def fits(self, letter: DeadMeant) -> bool:
        """Whether it means this one."""
        at = letter.failed_at
        return (
            (not self.ids or letter.entry_id in self.ids or letter.task_id in self.ids)
            and (not self.cause or letter.cause == self.cause)
            and (self.failed_before is None or (at is not None and at <= self.failed_before))
            and (self.failed_after is None or (at is not None and at >= self.failed_after))
            and (self.task == "*" or fnmatchcase(letter.task, self.task))
            and (not self.signature or self._is_signed(letter.signature))
        )

    def _is_signed(self, signature: str) -> bool:
        from opslib import letters

        return letters.name_of(signature) == self.signature or fnmatchcase(signature, self.signature)

    def words(self, now: float | None = None) -> str:
        """Return it as a sentence says it; empty for everything."""
        said = [f"of {self.task}"] if self.task.strip("*") else []
        said += [f"with signature {self.signature}"] if self.signature else []
        said += [f"that died as {self.cause}"] if self.cause else []
        for at, how in ((self.failed_before, "more"), (self.failed_after, "less")):
            said += [f"failed {how} than {spell(max(0.0, now - at))} ago"] if at is not None and now is not None else []
        said += [f"{len(self.ids)} by id"] if self.ids else []
        said += [f"at most {self.limit:,}"] if self.limit else []
        return ", ".join(said)


class ResultMeant(Protocol):
    """What a filter of stored results looks at."""

    @property
    def state(self) -> str:
        """As Celery spells it, also one of the application's own."""

    @property
    def task(self) -> str:
        """Name of the task; empty if the result does not say."""


#: What Celery leaves in its result backend and in the broker's database, and what a filter can mean of it.
RESULTS, REPLIES = "results", "replies"
#: What groups and chords count under, and the states that tasks have saved.
GROUPS, CHECKPOINTS = "groups", "checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultSelection:
    """
    Which stored keys are meant: those for which every condition holds.

    Attributes:
        what: RESULTS of tasks; REPLIES: lists in which nodes answered a control client that is gone; GROUPS: what
            groups and chords keep beside the results of their members; CHECKPOINTS: states that tasks have saved.

        rule: Glob of the retention that it is about; "*" for the default.

        besides: Globs of tasks that have a retention of their own, and are not meant.

        task: Glob that the task's name fits as well.

        states: Any of these; empty for any that can be read.

        written_by: Epoch seconds: written by then. An instant and no duration, so that a plan means the same results
            whenever it is applied. One of which nobody knows when it was written is not meant. None for any.

        keep_s: How old that was when it was asked for; says in words what the instant means.

        lasting: Those that never expire, or those that do; None for both.

        expires_after_s: Life that the application gives each result, which tells when an unfinished one was written;
            0 where nobody said.

        idle_s: Replies and groups: nobody has read or written it for so long.
    """

    what: str = RESULTS
    rule: str = "*"
    besides: tuple[str, ...] = ()
    task: str = "*"
    states: tuple[str, ...] = ()
    written_by: float | None = None
    keep_s: float = 0.0
    lasting: bool | None = None
    expires_after_s: float = 0.0
    idle_s: float = 0.0

    def named(self, task: str) -> bool:
        """Whether it means results of a task of this name."""
        return (
            (self.rule == "*" or fnmatchcase(task, self.rule))
            and (self.task == "*" or fnmatchcase(task, self.task))
            and not any(fnmatchcase(task, each) for each in self.besides)
        )

    def fits(self, result: ResultMeant, written_at: float | None, *, lasting: bool) -> bool:
        """Whether it means this one, which can be read."""
        return (
            self.lasting in {None, lasting}
            and (not self.states or result.state in self.states)
            and (self.written_by is None or (written_at is not None and written_at <= self.written_by))
            and self.named(result.task)
        )

    def words(self) -> str:
        """Return it as a sentence says it: "of shop.*, older than 1 d"; empty for everything."""
        said = [f"of {each}" for each in dict.fromkeys((self.rule, self.task)) if each.strip("*")]
        said += [f"in state {', '.join(self.states)}"] if self.states else []
        if self.written_by is not None:
            said.append(f"older than {spell(self.keep_s)}" if self.keep_s else "of any age")
        said += ["that never expire"] if self.lasting else []
        said += [f"idle for {spell(self.idle_s)}"] if self.idle_s else []
        return ", ".join(said)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSelection:
    """
    Which rows of a task table are meant: open ones of tasks that have ended, by their stored results.

    Attributes:
        table: Name of the table in the target's settings.

        task: The task's whole name, its module included; "*" for any.

        statuses: Any of these, as the table spells them.

        last_run_by: Epoch seconds: last run by then. An instant and no duration, so that a plan means the same rows
            whenever it is applied.

        open_for_s: How long that was when it was asked for; says in words what the instant means.

        state: Final state of Celery's that the task's result has to have.

        becomes: Status that such a row is given.
    """

    table: str
    state: str
    becomes: str
    task: str = "*"
    statuses: tuple[str, ...] = ()
    last_run_by: float | None = None
    open_for_s: float = 0.0

    def fits(self, task: str, status: str, last_run_at: float | None) -> bool:
        """Whether it means a row of this task, with this status; what its result says is looked up."""
        return (
            self.task in {"*", task}
            and (not self.statuses or status in self.statuses)
            and (self.last_run_by is None or (last_run_at is not None and last_run_at <= self.last_run_by))
        )

    def words(self) -> str:
        """Return it as a sentence says it."""
        said = [f"of {self.task}"] if self.task != "*" else []
        said += [f"in status {', '.join(self.statuses)}"] if self.statuses else []
        said += [f"open for {spell(self.open_for_s)} or more"] if self.open_for_s else []
        return ", ".join([*said, f"whose result is {self.state}"])
