"""A group of dead letters → what it most likely comes of, in one word, on what evidence, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from opslib import signatures
from opslib.durations import spell
from opslib.facts.dead import DeadGroup, DeadLetters
from opslib.letters import Cause
from opslib.symptoms import causes

#: What began no longer ago than this, in seconds, may still be going on.
_JUST_NOW_S = 300.0
#: Failures that a beginning is judged by: fewer may come together by chance.
_FEWEST = 10
#: How many times as long the lists go back as a group does, for it to have begun in their time.
_LONGER = 2.0


class Judgement(StrEnum):
    """
    What a group of failures comes of.

    Attributes:
        TRANSIENT: Something that the task needs was away or overloaded; it passes.

        PERMANENT: The same code fails the same way again.

        POISON: Running it ends the process that runs it.

        ARGUMENTS: The task was sent with what it cannot take.

        DEPLOY: A node's code and what is sent to it do not fit, or did not after a deployment.

        EXPIRED: It was not taken in time.

        UNKNOWN: No rule knows this error.
    """

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    POISON = "poison"
    ARGUMENTS = "bad arguments"
    DEPLOY = "deploy-related"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Opinion:
    """
    What a group is judged to be.

    Attributes:
        why: The evidence, as half a sentence.
    """

    word: Judgement
    why: str


def judge(group: DeadGroup, letters: DeadLetters) -> Opinion:
    """Return what a group comes of; the first rule that knows it decides."""
    for rule in _RULES:
        if opinion := rule(group, letters):
            return opinion
    return Opinion(Judgement.UNKNOWN, "no rule knows this error")


def advice(group: DeadGroup, word: Judgement, now: float) -> str:
    """Return what to do about a group, as sentences; commands are for the runbook's own parameters."""
    first = _FRESH if word is Judgement.TRANSIENT and _is_fresh(group, now) else ""
    return first + _ADVICE[word].format(ask=f"-p signature={group.name}", name=group.name)


def when(group: DeadGroup, now: float) -> str:
    """Say when a group's failures were: at once, or from then until then."""
    if group.first_at is None or group.last_at is None:
        return "none says when"
    last = f"{spell(max(0.0, now - group.last_at))} ago"
    length = group.last_at - group.first_at
    if group.count == 1:
        return last
    return f"all within {spell(length)}, the last {last}" if length <= 60 else f"over {spell(length)}, the last {last}"


def _is_fresh(group: DeadGroup, now: float) -> bool:
    return group.last_at is not None and now - group.last_at <= _JUST_NOW_S


# --- rules ---


def _mostly(group: DeadGroup, *wanted: Cause) -> bool:
    """Whether at least half of a group died this way."""
    return 2 * sum(group.causes.get(cause, 0) for cause in wanted) >= max(1, group.count)


def _poison(group: DeadGroup, _: DeadLetters) -> Opinion | None:
    if _mostly(group, Cause.WORKER_LOST) or _kind(group) == "WorkerLostError":
        return Opinion(Judgement.POISON, "the process that ran it ended")
    if _mostly(group, Cause.TIME_LIMIT) or _kind(group) == "TimeLimitExceeded":
        return Opinion(Judgement.POISON, "its hard time limit ended the process that ran it")
    return None


def _expired(group: DeadGroup, _: DeadLetters) -> Opinion | None:
    return (
        Opinion(Judgement.EXPIRED, "its time had passed when a node took it") if _mostly(group, Cause.EXPIRED) else None
    )


def _deploy(group: DeadGroup, letters: DeadLetters) -> Opinion | None:
    if _mostly(group, Cause.UNKNOWN_TASK) or _kind(group) == "NotRegistered":
        return Opinion(Judgement.DEPLOY, "the node that took it does not have this task")
    reason = causes.hopeless(group.signature)
    if "deployed" in reason or "the node's settings" in reason:
        return Opinion(Judgement.DEPLOY, reason)
    if reason and len(group.tasks) == 1 and not _ARGUMENT.search(group.signature) and _began(group, letters):
        return Opinion(Judgement.DEPLOY, "one task began to fail at once, and by an error of its code")
    return None


def _began(group: DeadGroup, letters: DeadLetters) -> bool:
    """Whether letters go back far enough to show that a group's failures began, and many then came close together."""
    oldest = [each.oldest_at for each in letters.lists if each.oldest_at is not None and each.key in group.keys]
    if group.count < _FEWEST or group.first_at is None or group.last_at is None or not oldest:
        return False
    length = max(group.last_at - group.first_at, 60.0)
    return group.first_at - min(oldest) >= _LONGER * length


#: What Python says when a function is called with what it does not take.
_ARGUMENT = re.compile(
    r"positional argument|unexpected keyword argument|multiple values for (?:keyword )?argument|required keyword-only"
)
_INPUT = {"ValidationError", "UnicodeDecodeError", "UnicodeEncodeError", "InvalidOperation", "DecodeError"}
_INPUT |= {"ContentDisallowed", "JSONDecodeError", "SerializationError", "PydanticCustomError"}
_BAD_REQUEST = re.compile(r"\b(400|413|414|415|422)\b")


def _arguments(group: DeadGroup, _: DeadLetters) -> Opinion | None:
    kind = _kind(group)
    if _mostly(group, Cause.UNDECODABLE) or kind in {"DecodeError", "ContentDisallowed"}:
        return Opinion(Judgement.ARGUMENTS, "the node could not decode its message, or may not")
    if kind == "TypeError" and _ARGUMENT.search(group.signature):
        return Opinion(Judgement.ARGUMENTS, "it was called with other arguments than it takes")
    if kind in _INPUT:
        return Opinion(Judgement.ARGUMENTS, "what it was given did not pass a check")
    if causes.hopeless(group.signature) and _BAD_REQUEST.search(group.signature):
        return Opinion(Judgement.ARGUMENTS, "the service it calls refuses what it was given")
    return None


def _permanent(group: DeadGroup, _: DeadLetters) -> Opinion | None:
    if _mostly(group, Cause.REJECTED):
        return Opinion(Judgement.PERMANENT, "its own code rejected it")
    reason = causes.hopeless(group.signature)
    return Opinion(Judgement.PERMANENT, reason) if reason else None


#: Types, and words in texts, of what passes; of HTTP, the answers that a later call may not get.
_PASSES = re.compile(
    r"time(?:d)?[ _-]?out|connect(?:ion)?[ _-]?(?:error|refused|reset|aborted|timeout|closed)|refused|unreachable|"
    r"unavailable|try again|throttl|too ?many|rate ?limit|OperationalError|InterfaceError|BrokenPipe|gaierror|"
    r"deadlock|serialization failure|lock wait|RemoteDisconnected|IncompleteRead|SSLError|ServerDisconnected|"
    r"BadGateway|OSError|NetworkError|MaxRetriesExceeded|ClusterDown|ReadOnlyError|MasterDown|BusyLoading",
    re.IGNORECASE,
)
_STATUS = re.compile(r"\b(408|409|423|425|429|5\d\d)\b")


def _transient(group: DeadGroup, _: DeadLetters) -> Opinion | None:
    if status := _STATUS.search(group.signature.partition(" @ ")[0]):
        return Opinion(Judgement.TRANSIENT, f"a service answered {status[1]}, which passes")
    if _kind(group) == "SoftTimeLimitExceeded":
        return Opinion(Judgement.TRANSIENT, "it ran into its own soft time limit, as where something is slow")
    if _PASSES.search(group.signature.partition(" @ ")[0]):
        return Opinion(Judgement.TRANSIENT, "what it needs did not answer, or not in time")
    return None


def _kind(group: DeadGroup) -> str:
    return signatures.kind(group.signature.partition(" @ ")[0])


#: In the order in which they decide: what kills a worker is told before anything else.
_RULES: tuple[Callable[[DeadGroup, DeadLetters], Opinion | None], ...] = (
    _poison,
    _expired,
    _deploy,
    _arguments,
    _permanent,
    _transient,
)


# --- advice ---

_FRESH = "It was failing a moment ago: first see that it has stopped. "
_ADVICE = {
    Judgement.TRANSIENT: (
        "Once it has passed, send them again, a few at first: -p do=redrive {ask} -p limit=10; then all, at a rate."
    ),
    Judgement.PERMANENT: (
        "Mend and deploy the code first, or each fails again. Then -p do=redrive {ask}; what is not worth it: do=purge."
    ),
    Judgement.POISON: (
        "Do not send it again as it is: it ends its process each time. Take it aside, -p do=quarantine {ask}, and see "
        "the node's memory and log. One that only died with its node may be sent again alone, by its -p entry."
    ),
    Judgement.ARGUMENTS: (
        "Mend who sends it, or have the task take both spellings, and deploy. One letter can be sent with other "
        "arguments: -p do=redrive -p entry=… -p args='[…]'; the rest is for do=purge {ask}."
    ),
    Judgement.DEPLOY: (
        "Deploy the code that fits to every node of the queue, or roll back; then all can go: -p do=redrive {ask}."
    ),
    Judgement.EXPIRED: (
        "See queue-backlog for why it was not taken in time. What still makes sense: -p do=redrive {ask} "
        "-p expired=true -p new_ids=true, for nodes drop what they have seen expired; the rest: do=purge."
    ),
    Judgement.UNKNOWN: (
        "Read one: `ops dead show {name}`. If its cause is mended: -p do=redrive {ask} -p limit=1, and see what comes "
        "of it."
    ),
}
