"""Findings → what would be changed, as data that can be read, counted, limited and compared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from opslib.errors import PlanTooLarge


class Kind(StrEnum):
    """
    What an action does.

    Attributes:
        RESTORE: Move an unacked message back to its queue, served next.

        STOP: Revoke a task everywhere, end it where its pool can, and quarantine every copy of it.

        QUARANTINE: Take one message out of circulation and keep it.
    """

    RESTORE = "restore"
    STOP = "stop"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """
    One message that an action is about, as it was observed; applied only if it still is so.

    Attributes:
        place: "waiting" or "unacked".

        key: List that holds it, or the unacked hash.

        queue: Queue that it belongs to; names its quarantine.

        priority: As the message has it.

        delivery_tag: Field in the unacked hash, or the message's own tag.

        score: The index's score that was seen; None if there was none.

        sha256: Of the stored bytes that were seen.
    """

    place: str
    key: str
    queue: str
    delivery_tag: str
    sha256: str
    priority: int = 0
    score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """
    One intended change.

    Attributes:
        id: Its number in the plan, from 1.

        subject: Task id, or the key of an unreadable message.

        source: Where it is taken from.

        destination: Where it goes; a queue, or "quarantine".

        copies: The messages it moves, with the state they must still be in.

        node: Node that runs the task; empty if none does.

        terminate: Whether the running task may be ended.

        why: Code of the finding that asks for it.

        effect: What happens, and what can go wrong, as a sentence.
    """

    kind: Kind
    subject: str
    source: str
    destination: str
    why: str
    task: str = ""
    copies: tuple[Copy, ...] = ()
    node: str = ""
    terminate: bool = False
    effect: str = ""
    id: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """
    An ordered list of actions for one target; iterates over them.

    Attributes:
        fingerprint: Identity of the server and database that it was made on; it applies only there.

        max_actions: Size that it must not exceed.
    """

    target: str
    fingerprint: str
    actions: tuple[Action, ...] = ()
    max_actions: int = 0
    notes: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Action]:
        return iter(self.actions)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def digest(self) -> str:
        """Sha256 of the canonical JSON of everything that it would do, and where."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def content(self) -> Mapping[str, object]:
        """Return what the plan would do as JSON types, without the digest."""
        return {"target": self.target, "fingerprint": self.fingerprint, "actions": [asdict(a) for a in self.actions]}

    def summary(self) -> str:
        """Return the counts in words: "restore 4, stop 2"; "nothing" for an empty plan."""
        counts = Counter(str(action.kind) for action in self.actions)
        return ", ".join(f"{kind} {n}" for kind, n in counts.items()) or "nothing"


class Status(StrEnum):
    """What became of an action."""

    APPLIED = "applied"
    SKIPPED = "skipped"
    FAILED = "failed"


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
    target: str, fingerprint: str, actions: Iterable[Action], *, max_actions: int, notes: Iterable[str] = ()
) -> Plan:
    """
    Number the actions and refuse too many of them.

    Raises:
        PlanTooLarge: If there are more than `max_actions`; a partial plan would be a surprise.
    """
    numbered = tuple(replace(action, id=number) for number, action in enumerate(actions, 1))
    if len(numbered) > max_actions:
        raise PlanTooLarge(
            f"The plan has {len(numbered)} actions; max_actions allows {max_actions}. Nothing was changed."
        )
    return Plan(target=target, fingerprint=fingerprint, actions=numbered, max_actions=max_actions, notes=tuple(notes))
