"""Findings → what would be changed, as data that can be read, counted, limited, saved, compared and refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import cast

import msgspec

from opslib import __version__, redact
from opslib.errors import PlanTooLarge, Refused
from opslib.selection import DeadSelection, ResultSelection, RowSelection, Selection

SCHEMA_VERSION = 1
#: What was judged longer ago than this is looked at again before it is acted upon.
LIFE_S = 15 * 60.0
#: A file that weighs more is no plan that a person has read.
MOST_BYTES = 64 * 1024 * 1024
_QUOTED = 200


class Kind(StrEnum):
    """
    What an action does.

    Attributes:
        RESTORE: Move an unacked message back to its queue, served next.

        STOP: Revoke a task everywhere, end it where its pool can, and quarantine every copy of it.

        QUARANTINE: Take one message out of circulation and keep it.

        PURGE: Take every message of a queue out of circulation at once and keep them.

        MOVE: Put waiting messages into another queue.

        REORDER: Put a waiting message elsewhere in its own list.

        REPAIR: Make the unacked hash and its index agree on one delivery tag.

        DELETE: Remove a key, after its value is in the run's vault.

        EXPIRE: Give a key a life, or a shorter one.

        REMOVE: Take files of this machine away, and keep them in the run's folder.

        PAUSE: Have nodes stop consuming a queue.

        RESUME: Have nodes consume a queue.

        REVOKE: Tell every node to drop a task; only those that listen now will.

        SEND: Publish a message.

        REDRIVE: Send dead letters again, and take them out of their list in the same step.

        HANDOVER: Give a task's saved state to the task that goes on with its work, and link the two.

        SWITCH: Have beat leave an entry of its schedule out, or send it again.

        UPDATE: Set values of rows in the application's own SQL tables, each only if it is as it was planned.

        GROW: Add processes or threads to a node's pool.

        SHRINK: Take some away from it.

        LIMIT: Set a task's rate limit on every node.

        AWAIT: A gate: wait until a condition is true, at most so long. It changes nothing; if it is not met, nothing
            that comes after it in the plan is done.

        SHUTDOWN: Ask a node to end once its tasks have ended.

        CANARY: Publish a task of Celery's own that does nothing, and see it run.

        SAVE: Have the server save its data in the background, and wait until it has; of the data, it changes nothing.

        DROP: Remove a quarantine list for good, after its messages are in the run's vault.

        UNDO: Put back what an action of an earlier run changed.
    """

    RESTORE = "restore"
    STOP = "stop"
    QUARANTINE = "quarantine"
    PURGE = "purge"
    MOVE = "move"
    REORDER = "reorder"
    REPAIR = "repair"
    DELETE = "delete"
    EXPIRE = "expire"
    REMOVE = "remove"
    PAUSE = "pause"
    RESUME = "resume"
    REVOKE = "revoke"
    SEND = "send"
    REDRIVE = "redrive"
    HANDOVER = "handover"
    SWITCH = "switch"
    UPDATE = "update"
    GROW = "grow"
    SHRINK = "shrink"
    LIMIT = "limit"
    AWAIT = "await"
    SHUTDOWN = "shutdown"
    CANARY = "canary"
    SAVE = "save"
    DROP = "drop"
    UNDO = "undo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """
    One message, list or key that an action is about, as it was observed; applied only if it still is so.

    Attributes:
        place: "waiting", "unacked" or "index" for one message; "list" for all that a list holds; "key" for a key;
            "results", "replies", "groups" or "checkpoints" for those keys that a filter means; "app" for the keys that
            an application has of the tasks which the run itself took out of circulation; "file" for a file of this
            machine; "held" for all that nodes hold of a queue; "row" for a row of an SQL table, and "rows" for those
            that a filter means, with the table's name as the key, such as "task_tables.NAME".

        key: List that holds it, the unacked hash, or the key itself.

        queue: Queue that it belongs to; names its quarantine.

        priority: As the message has it.

        delivery_tag: Field in the unacked hash, or the message's own tag.

        score: The index's score that was seen; None if there was none.

        sha256: Of the stored bytes that were seen; empty for a whole list. Of a file, by what it is known again.

        count: Messages that a whole list held.

        life_s: How long a key had to live; negative for ever, None for unknown.

        idle_s: For how long nobody had read or written a key; one that somebody has touched since stays. None where
            that does not matter.
    """

    place: str
    key: str
    queue: str = ""
    delivery_tag: str = ""
    sha256: str = ""
    priority: int = 0
    score: float | None = None
    count: int = 1
    life_s: float | None = None
    idle_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Redrive:
    """
    How dead letters are sent again.

    Attributes:
        queue: Where to; empty for the queue that each came from.

        new_ids: Whether each gets an id of its own: nobody waits for it, and a revoke of the old one does not hold it.

        keep_retries: Whether the retries that it had count; otherwise it has all of them again.

        expired: Whether what has expired is sent as well, without its expiry; otherwise it is refused.

        poison: Whether what ended the process that ran it is sent as well; otherwise it is refused.

        args, kwargs: JSON of other arguments, for one letter; empty for those that it had.

        rate_per_s: So many a second at most; 0 for as many as the broker bears.
    """

    queue: str = ""
    new_ids: bool = False
    keep_retries: bool = False
    expired: bool = False
    poison: bool = False
    args: str = ""
    kwargs: str = ""
    rate_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RowChange:
    """
    One row of an SQL table, as it was seen, and what becomes of it.

    Attributes:
        table: Which table of the target's settings: "task_tables.NAME", "state_rows.NAME", or "beat" for the periodic
            tasks of django-celery-beat.

        key: JSON object of the columns and values by which it is found; one row at most. Columns of a task table are
            called as in its settings ("id", "task_id", "status"), those of any other as they are.

        was: JSON object of columns and the values that they still must have; instants as ISO 8601 text.

        becomes: JSON object of columns and the values that they are set to; empty where the row is only compared, so
            that something else is done only if it is as it was.
    """

    table: str
    key: str
    was: str = "{}"
    becomes: str = "{}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """
    What has to be true before a plan goes on.

    Attributes:
        until: A key of `CONDITIONS`.

        queues: Queues that it is about; where it is about what nodes hold, "" stands for no known queue.

        nodes: Nodes that it is about; empty for all.

        task: Glob of the tasks' names that it is about.

        within_s: So long at most.

        silent: Nodes that stayed silent when the plan was made: of these nobody can tell.

        hidden: Connections that consumed then and belong to nobody who listens: nor of these.
    """

    until: str
    queues: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    task: str = "*"
    within_s: float = 60.0
    silent: int = 0
    hidden: int = 0


#: Conditions of gates, each as a sentence says it.
CONDITIONS = {
    "paused": "no node consumes {queues}",
    "idle": "nothing of {queues} runs",
    "drained": "nothing runs on {nodes}, and nothing is about to",
    "gone": "each of {nodes} is gone",
    "cleared": "nothing of {queues} is unacknowledged",
    "consumed": "each of {nodes} consumes {queues}",
    "served": "somebody consumes each of {queues}",
    "ran": "a canary has run through {queues}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """
    One intended change.

    Attributes:
        id: Its number in the plan, from 1.

        subject: Task id, or the key of an unreadable message.

        source: Where it is taken from.

        destination: Where it goes: a queue, or "quarantine"; "next", "last" or a number of messages before it in its
            own list; a number of processes; a rate.

        copies: The messages it moves, with the state they must still be in.

        node: Node that runs the task; empty if none does.

        terminate: Whether the running task may be ended.

        only: Which messages of its lists are meant; None for all.

        letters: Which dead letters of its lists are meant; None for what is not about dead letters.

        redrive: How they are sent again.

        results: Which stored results, or other keys of Celery's, are meant; None for what is not about those.

        row: Row that it changes, or that has to be as it was; None for what is not about one row.

        rows: Which rows of a task table are meant; None for what is not about those.

        message: Bytes to publish, as text.

        ttl_s: Seconds that a key shall live from now on; None for no change.

        step: Step of a plan that is carried out step by step, in the order in which it stands; empty where the kinds
            decide the order.

        gate: What is waited for.

        why: Code of the finding that asks for it; empty where a person asked by name.

        effect: What happens, and what can go wrong, as a sentence.
    """

    kind: Kind
    subject: str
    source: str
    destination: str
    why: str = ""
    task: str = ""
    copies: tuple[Copy, ...] = ()
    node: str = ""
    terminate: bool = False
    only: Selection | None = None
    letters: DeadSelection | None = None
    redrive: Redrive | None = None
    results: ResultSelection | None = None
    row: RowChange | None = None
    rows: RowSelection | None = None
    message: str = ""
    ttl_s: float | None = None
    step: str = ""
    gate: Gate | None = None
    effect: str = ""
    id: int = 0

    @property
    def count(self) -> int:
        """How many messages or keys it is about."""
        return sum(copy.count for copy in self.copies)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    An ordered list of actions for one target; iterates over them.

    Attributes:
        fingerprint: Identity of the server and database that it was made on; it applies only there.

        made_at: When its facts were seen, by the server's clock; RFC 3339 in UTC.

        expires_at: After this, a saved plan is refused.

        max_actions: Size that it must not exceed.

        tool_version: Of the tool that made it; another one may mean something else by it.

        continues: Run whose journal this goes on with, to finish or to undo it; empty for a run of its own.
    """

    target: str
    fingerprint: str
    actions: tuple[Action, ...] = ()
    made_at: str = ""
    expires_at: str = ""
    max_actions: int = 0
    tool_version: str = ""
    continues: str = ""
    schema_version: int = SCHEMA_VERSION

    def __iter__(self) -> Iterator[Action]:
        return iter(self.actions)

    def __len__(self) -> int:
        return len(self.actions)

    @cached_property
    def digest(self) -> str:
        """Sha256 of the canonical JSON of everything that it would do, where, and until when."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def content(self) -> Mapping[str, object]:
        """Return the plan as JSON types, without the digest."""
        return cast("Mapping[str, object]", json.loads(json.dumps(asdict(self))))

    def shown(self) -> dict[str, object]:
        """Return the plan as a record has it: with its digest; of messages and arguments no more than their size."""
        content = dict(self.content())
        content["actions"] = [
            {
                **row,
                "message": _size(row["message"]),
                "redrive": _without_arguments(row["redrive"]),
                "row": _without_content(row["row"]),
            }
            for row in cast("list[dict[str, object]]", content["actions"])
        ]
        return {"digest": self.digest, **content}

    def summary(self) -> str:
        """Return the counts in words: "restore 4, stop 2"; "nothing" for an empty plan."""
        counts = Counter(str(action.kind) for action in self.actions)
        return ", ".join(f"{kind} {n}" for kind, n in counts.items()) or "nothing"


def _size(text: object) -> str:
    return f"{len(str(text)):,} bytes" if text else ""


def _without_arguments(redrive: object) -> object:
    if not isinstance(redrive, dict):
        return redrive
    return {**redrive, "args": _size(redrive["args"]), "kwargs": _size(redrive["kwargs"])}


def _without_content(row: object) -> object:
    """Return a row's change with no more of what it held than the names of the columns."""
    if not isinstance(row, dict):
        return row
    try:
        return {**row, "was": ", ".join(json.loads(row["was"] or "{}"))}
    except (ValueError, TypeError, RecursionError):
        return {**row, "was": _size(row["was"])}


class Status(StrEnum):
    """
    What became of an action.

    Attributes:
        UNVERIFIED: It was done, and then what it did could not be found; the run cannot tell what is true now.
    """

    APPLIED = "applied"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """
    What became of one action.

    Attributes:
        action: The action as planned.

        reason: Why it was skipped or failed, or what was done, as a sentence.

        steps: What was done on the way, in order.
    """

    action: Action
    status: Status
    reason: str = ""
    steps: tuple[str, ...] = ()


def make(
    target: str,
    fingerprint: str,
    actions: Iterable[Action],
    *,
    max_actions: int,
    made_at: datetime,
    life_s: float = LIFE_S,
) -> Plan:
    """
    Number the actions and refuse too many of them.

    Args:
        made_at: When its facts were seen, by the server's clock.

    Raises:
        PlanTooLarge: If there are more than `max_actions`; a partial plan would be a surprise.
    """
    numbered = tuple(replace(action, id=number) for number, action in enumerate(actions, 1))
    if len(numbered) > max_actions:
        raise PlanTooLarge(
            f"The plan has {len(numbered)} actions; max_actions allows {max_actions}. Nothing was changed."
        )
    made = Plan(
        target=target,
        fingerprint=fingerprint,
        actions=numbered,
        made_at=instant(made_at),
        expires_at=instant(made_at + timedelta(seconds=life_s)),
        max_actions=max_actions,
        tool_version=__version__,
    )
    return msgspec.convert(made.content(), Plan)  # as its file will be read: a whole number of seconds is a float


def write(plan: Plan) -> bytes:
    """Return a plan as its file holds it: canonical JSON with its digest, the same bytes for the same plan."""
    document = {"digest": plan.digest, **plan.content()}
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def read(content: bytes) -> Plan:
    """
    Return the plan of a file, if not a byte of it was changed since it was written.

    Raises:
        Refused: If it is no plan, of another schema, or was edited.
    """
    hint = "Run the runbook again; it saves a new plan."
    if len(content) > MOST_BYTES:
        raise Refused(f"The plan's file has {len(content):,} bytes; {MOST_BYTES:,} is the most.", hint=hint)
    try:
        document = json.loads(content)
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
            found = redact.plain(repr(document.get("schema_version")))[:_QUOTED]
            raise Refused(f"The plan has schema {found}, not {SCHEMA_VERSION}.", hint=hint)
        plan = msgspec.convert(document, Plan)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise Refused(f"The file holds no plan: {redact.plain(error)[:_QUOTED]}.", hint=hint) from None
    if write(plan) != content:
        raise Refused("The plan was edited after it was made: its digest does not fit.", hint=hint)
    return plan


def stale(plan: Plan, now: datetime) -> bool:
    """Whether a plan's facts are too old to be acted upon, by the server's clock."""
    try:
        return now >= datetime.fromisoformat(plan.expires_at)
    except (ValueError, TypeError):
        return True


def instant(moment: datetime) -> str:
    """Return an instant as a plan writes it: UTC, milliseconds, with a Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
