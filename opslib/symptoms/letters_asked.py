"""What a person asks for about dead letters, and the letters → the actions for it, or the one thing that is wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from opslib import letters, redriving
from opslib.durations import pace, seconds
from opslib.errors import BadParameter, near
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.facts.snapshot import Snapshot
from opslib.keys import DEAD, Keyspace
from opslib.letters import Cause
from opslib.plan import Action, Copy, Kind, Redrive
from opslib.selection import DeadSelection, ids
from opslib.symptoms import letters_meant, letters_told
from opslib.symptoms.letters_meant import Meant

REDRIVE, QUARANTINE, PURGE = "redrive", "quarantine", "purge"
DOES = (REDRIVE, QUARANTINE, PURGE)
EVERY = "*"
#: What names poison, so that it is meant.
_NAMING = ("entry", "signature", "cause")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """
    What a person asks for, as parameters and options say it; see `dlq_triage.plan`.
    """

    do: str
    queue: str = ""
    task: str = EVERY
    signature: str = ""
    cause: str = ""
    entry: str = ""
    older_than: str = ""
    limit: int = 0
    rate: str = ""
    to: str = ""
    new_ids: bool = False
    keep_retries: bool = False
    expired: bool = False
    args: str = ""
    kwargs: str = ""

    @property
    def narrows(self) -> bool:
        """Whether it says at all which letters are meant."""
        words = (self.queue, self.signature.strip("*"), self.cause, self.entry, self.older_than, self.limit)
        return any(words) or bool(self.task.strip("*"))


def actions(snapshot: Snapshot, wish: Wish) -> list[Action]:
    """
    Return what would do as a person wishes, one action for each list; nothing where there is no letter at all.

    Raises:
        BadParameter: If something is missing, unknown, or cannot be meant.
    """
    _check(wish)
    found = snapshot.letters or DeadLetters()
    if not _lists(found):
        return []
    now = snapshot.taken_at.timestamp()
    selection, how = selected(wish, now), _how(wish)
    lists = _lists(found, wish.queue)
    meant = [each for each in (letters_meant.of_list(found, each, selection, how) for each in lists) if each.count]
    if not meant:
        raise _nothing(found, {each.key for each in lists}, wish)
    meant = letters_meant.limited(meant, wish.limit, how)
    _one_only(meant, wish)
    if how is None:
        kept = [(each, letters_told.away(each, selection, now)) for each in meant]
        return [_action(Kind.PURGE, each, selection, "quarantine", said) for each, said in kept]
    sent = [(each, letters_told.again(snapshot, each, how)) for each in meant if each.sent]
    made = [_action(Kind.REDRIVE, each, selection, how.queue or each.queue, said) for each, said in sent]
    if not made:
        refused = sum((Counter(each.refused) for each in meant), Counter[str]())
        count = sum(each.count for each in meant)
        raise BadParameter(
            f"This means {count:,} letter{'s' * (count != 1)}, none of which can be sent again: "
            f"{letters_told.refusals(refused)}.",
            hint=redriving.REFUSALS.get(next(iter(refused), ""), ""),
        )
    return [replace(each, redrive=how) for each in made]


def selected(wish: Wish, now: float) -> DeadSelection:
    """
    Return which letters a wish means, in whatever list.

    Raises:
        BadParameter: If its duration is none.
    """
    before = now - seconds(wish.older_than, "older_than") if wish.older_than else None
    return DeadSelection(
        ids=tuple(ids(wish.entry)),
        task=wish.task or EVERY,
        signature=wish.signature,
        cause=wish.cause,
        failed_before=before,
        limit=wish.limit,
    )


def rows(snapshot: Snapshot, wish: Wish) -> list[DeadLetter]:
    """
    Return the letters that a wish means, of those that are known one by one, whatever is to be done with them.

    The latest comes first; those that do not say when they failed come last.

    Raises:
        BadParameter: If its queue has no dead letters, or its duration is none.
    """
    found = snapshot.letters or DeadLetters()
    keys = {each.key for each in _lists(found, wish.queue)} if _lists(found) else set()
    selection = selected(wish, snapshot.taken_at.timestamp())
    meant = [each for each in found.letters if each.key in keys and selection.fits(each)]
    return sorted(meant, key=lambda each: each.failed_at or 0.0, reverse=True)


def _check(wish: Wish) -> None:
    if wish.do not in DOES:
        raise BadParameter(f"do: {wish.do!r} is nothing that can be done here.", hint=near(wish.do, DOES))
    if wish.limit < 0:
        raise BadParameter(f"limit: {wish.limit} is no number of letters.", hint="0 means all of them.")
    if wish.cause and wish.cause not in set(Cause):
        raise BadParameter(f"cause: {wish.cause!r} is none.", hint=near(wish.cause, map(str, Cause)))
    if not wish.narrows:
        raise BadParameter(
            f"To {wish.do} without a word more means every dead letter of every queue.",
            hint="Say which: by signature, task, cause, entry, age, number or queue; queue * means all of them.",
        )
    only = {
        name: getattr(wish, name) for name in ("to", "rate", "new_ids", "keep_retries", "expired", "args", "kwargs")
    }
    if wish.do != REDRIVE and (said := [name for name, value in only.items() if value]):
        raise BadParameter(f"{said[0]}: this is only for do=redrive; do={wish.do} sends nothing.")
    if wish.to and not Keyspace().is_queue_name(wish.to):  # a target's own names, the writer knows
        raise BadParameter(f"to: {wish.to!r} is no queue: Celery keeps something else under that name.")
    if wish.to.endswith(DEAD):
        raise BadParameter(f"to: {wish.to!r} is called like a dead-letter list, from which no worker takes.")
    _check_json("args", wish.args, list, "'[1, \"two\"]'")
    _check_json("kwargs", wish.kwargs, dict, "'{\"name\": 1}'")


def _check_json(name: str, text: str, kind: type, example: str) -> None:
    """Refuse what is no JSON of its kind, without a word of what it says: an argument's value is never shown."""
    if not text:
        return
    what = "list" if kind is list else "object"
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadParameter(f"{name}: this is no JSON.", hint=f"Write a {what}, such as {example}.") from None
    if not isinstance(value, kind):
        raise BadParameter(f"{name}: this JSON is no {what}.", hint=f"Write a {what}, such as {example}.")


def _no_constant(name: str) -> object:
    raise ValueError(name)


def _how(wish: Wish) -> Redrive | None:
    """Return how letters are sent again; None where none is."""
    if wish.do != REDRIVE:
        return None
    try:
        rate_per_s = pace(wish.rate) if wish.rate else 0.0
    except ValueError:
        raise BadParameter(f"rate: {wish.rate!r} is no rate.", hint="Write 10/s, 100/m or 500/h.") from None
    return Redrive(
        queue=wish.to,
        new_ids=wish.new_ids,
        keep_retries=wish.keep_retries,
        expired=wish.expired,
        poison=any(getattr(wish, name).strip("*") for name in _NAMING),
        args=wish.args,
        kwargs=wish.kwargs,
        rate_per_s=rate_per_s,
    )


def _lists(letters: DeadLetters, queue: str = EVERY) -> list[DeadList]:
    lists = [each for each in letters.lists if each.source == "list" and each.length]
    if queue in {"", EVERY}:
        return lists
    found = [each for each in lists if queue in {each.queue, f"{each.queue}{DEAD}", each.key}]
    if not found:
        known = [each.queue for each in lists]
        raise BadParameter(f"queue: there are no dead letters of {queue!r}.", hint=near(queue, known))
    return found


def _one_only(meant: Sequence[Meant], wish: Wish) -> None:
    count = sum(each.count for each in meant)
    if (wish.args or wish.kwargs) and count != 1:
        name = "args" if wish.args else "kwargs"
        raise BadParameter(
            f"{name}: other arguments are for one letter; this means {count:,}.", hint="Name it: entry=ENTRY_ID."
        )


def _nothing(found: DeadLetters, keys: set[str], wish: Wish) -> BadParameter:
    """Say what there is instead: a misspelt name must not pass as a matter that is settled."""
    groups = [group for group in found.groups if keys & group.keys.keys()]
    if wish.entry:
        known = {each.entry_id for each in found.letters} | {each.task_id for each in found.letters}
        hint = "`ops dead show` lists them; one that was sent again or purged is gone from here."
        wanted = next(iter(ids(wish.entry)), "")
        hint = near(wanted, known, otherwise=hint)
        return BadParameter(f"entry: no dead letter that fits is named {wish.entry!r}.", hint=hint)
    if wish.signature and not any(_signed(group, wish.signature) for group in groups):
        names = {group.name for group in groups} | {group.signature for group in groups}
        hint = near(wish.signature, names, otherwise=near("", {group.name for group in groups}))
        return BadParameter(f"signature: no dead letter has {wish.signature!r}.", hint=hint)
    tasks = {name for group in groups for name in group.tasks}
    if wish.task.strip("*") and not any(fnmatchcase(name, wish.task) for name in tasks):
        return BadParameter(f"task: no dead letter is of {wish.task!r}.", hint=near(wish.task, tasks))
    causes = {name for group in groups for name in group.causes}
    if wish.cause and wish.cause not in causes:
        return BadParameter(f"cause: no dead letter died as {wish.cause}.", hint=near(wish.cause, causes))
    if wish.older_than and not (wish.signature or wish.cause or wish.task.strip("*")):
        hint = "One that does not say when it failed is never meant by its age."
        return BadParameter(f"older_than: no dead letter failed more than {wish.older_than} ago.", hint=hint)
    return BadParameter("No dead letter fits all of this at once.", hint="Leave one of the filters out.")


def _signed(group: DeadGroup, signature: str) -> bool:
    return letters.name_of(group.signature) == signature or fnmatchcase(group.signature, signature)


def _action(kind: Kind, meant: Meant, selection: DeadSelection, destination: str, effect: str) -> Action:
    name = f"{meant.listed.queue}{DEAD}"
    return Action(
        kind=kind,
        subject=name,
        task=meant.task,
        source=name,
        destination=destination,
        copies=(Copy(place="list", key=meant.listed.key, queue=name, count=meant.count),),
        letters=replace(selection, limit=meant.count if selection.limit else 0),
        why="dead-letters",
        effect=effect,
    )
