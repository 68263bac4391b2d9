"""What a person asks for about dead letters, and the letters → the actions for it, or the one thing that is wrong."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from opslib import letters, redriving
from opslib.durations import pace, seconds, spell
from opslib.errors import BadParameter, near
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.facts.snapshot import Snapshot
from opslib.keys import DEAD, Keyspace
from opslib.letters import Cause
from opslib.plan import Action, Copy, Kind, Redrive
from opslib.redriving import Note
from opslib.selection import DeadSelection, ids
from opslib.symptoms import serving

REDRIVE, QUARANTINE, PURGE = "redrive", "quarantine", "purge"
DOES = (REDRIVE, QUARANTINE, PURGE)
EVERY = "*"
_MOST_NAMED = 3

#: Why a letter is not sent again, in as few words as a plan has room for.
_SHORT = {
    Note.LOOPING: f"sent again {redriving.LOOPS} times already",
    Note.REVOKED: "revoked",
    Note.SUCCEEDED: "succeeded since",
    Note.RESUMED: "gone on with as another task",
    Note.EXPIRED: "expired",
    Note.CHORD_UNKNOWN: "of a chord that cannot be counted",
    Note.CHORD_ID: "of a chord, which knows it by its id",
    Note.CHORD_ELSEWHERE: "of a chord that is counted elsewhere",
    Note.POISON: "poison, sent only by name",
    Note.NO_ARGUMENTS: "without message and arguments",
    Note.UNREADABLE: "unreadable",
    Note.UNWRITABLE: "not to be written so",
}
#: What is worth a word before a letter is sent again: for one, and for more of them.
_WARNED = {
    Note.POISON: ("ended the process that ran it", "ended the processes that ran them"),
    Note.INEXACT: ("is made anew, without chain, chord and headers", "are made anew, without chain, chord and headers"),
    Note.CHORD: ("is one of a chord's tasks, whose count is mended", "are of chords, whose counts are mended"),
    Note.CHAIN: ("has a chain, which goes on after it", "have chains, which go on after them"),
    Note.ERRBACKS: (
        "has errbacks, which were called and may be again",
        "have errbacks, which were called and may be again",
    ),
    Note.ETA: ("waits for its time", "wait for their time"),
}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meant:
    """
    The letters of one list that are meant.

    Attributes:
        count: How many; at most so many, unless it is `exact`.

        rows: Those of them that are known one by one.
    """

    listed: DeadList
    count: int
    exact: bool
    rows: Sequence[DeadLetter]
    refused: Mapping[str, int]
    noted: Mapping[str, int]


def actions(snapshot: Snapshot, wish: Wish) -> list[Action]:
    """
    Return what would do as a person wishes, one action for each list; nothing where there is no letter at all.

    Raises:
        BadParameter: If something is missing, unknown, or cannot be meant.
    """
    _check(wish)
    found = snapshot.letters or DeadLetters()
    lists = [each for each in found.lists if each.source == "list" and each.length]
    if not lists:
        return []
    selection = selected(wish, snapshot.taken_at.timestamp())
    how = _how(wish)
    lists = _lists(lists, wish.queue)
    meant = [each for each in (_meant(found, each, selection, how) for each in lists) if each.count]
    if not meant:
        raise _nothing(found, {each.key for each in lists}, wish)
    meant = _limited(meant, wish.limit, how)
    _one_only(meant, wish)
    if how is None:
        now = snapshot.taken_at.timestamp()
        return [_away(each, selection, wish, now) for each in meant]
    made = [_again(snapshot, each, selection, how) for each in meant if _sent(each)]
    if not made:
        refused = sum((Counter(each.refused) for each in meant), Counter[str]())
        count = sum(each.count for each in meant)
        raise BadParameter(
            f"This means {count:,} letter{'s' * (count != 1)}, none of which can be sent again: {_refusals(refused)}.",
            hint=_sentence(next(iter(refused), "")),
        )
    return made


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
    lists = [each for each in found.lists if each.source == "list" and each.length]
    keys = {each.key for each in (_lists(lists, wish.queue) if lists else [])}
    selection = selected(wish, snapshot.taken_at.timestamp())
    meant = [each for each in found.letters if each.key in keys and selection.fits(each)]
    return sorted(meant, key=lambda each: each.failed_at or 0.0, reverse=True)


# --- what a person may ask for ---


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


def _lists(lists: Sequence[DeadList], queue: str) -> list[DeadList]:
    if queue in {"", EVERY}:
        return list(lists)
    found = [each for each in lists if queue in {each.queue, f"{each.queue}{DEAD}", each.key}]
    if not found:
        known = [each.queue for each in lists]
        raise BadParameter(f"queue: there are no dead letters of {queue!r}.", hint=near(queue, known))
    return found


# --- which letters are meant ---


def _meant(found: DeadLetters, listed: DeadList, selection: DeadSelection, how: Redrive | None) -> _Meant:
    """Count the letters of a list that are meant: one by one where all of them are known, by groups where not."""
    own = [each for each in found.letters if each.entry_id and each.key == listed.key]
    rows = [each for each in own if selection.fits(each)]
    if len(own) + listed.unreadable >= listed.length - (listed.arrived or 0):
        refused, noted = _told(rows, how)
        return _Meant(listed=listed, count=len(rows), exact=True, rows=rows, refused=refused, noted=noted)
    groups = [group for group in found.groups if listed.key in group.keys and _may_fit(group, selection)]
    count = sum(min(group.keys[listed.key], _of_group(group, selection)) for group in groups)
    count += 0 if selection.signature else _unsorted(found, listed)
    refused = sum((Counter(_lifted(group.refused, how)) for group in groups), Counter[str]())
    noted = sum((Counter(group.notes) for group in groups), Counter[str]())
    if how and how.poison and (sent := refused.pop(str(Note.POISON), 0)):
        noted[str(Note.POISON)] = sent
    if selection.ids:
        count, refused, noted = len(rows), Counter(), Counter()
    return _Meant(listed=listed, count=count, exact=False, rows=rows, refused=refused, noted=noted)


def _unsorted(found: DeadLetters, listed: DeadList) -> int:
    """Return how many readable letters of a list are in no group."""
    grouped = sum(group.keys.get(listed.key, 0) for group in found.groups)
    return max(0, listed.length - listed.unreadable - grouped) if found.ungrouped else 0


def _may_fit(group: DeadGroup, selection: DeadSelection) -> bool:
    example = group.example
    probe = replace(selection, ids=(), task=EVERY, cause="", failed_before=None, failed_after=None)
    late = selection.failed_before is not None and (group.first_at is None or group.first_at > selection.failed_before)
    return probe.fits(example) and not late


def _of_group(group: DeadGroup, selection: DeadSelection) -> int:
    """Return how many letters of a group fit, at most."""
    by_task = sum(n for name, n in group.tasks.items() if name == "(others)" or fnmatchcase(name, selection.task))
    by_cause = group.causes.get(selection.cause, 0) if selection.cause else group.count
    by_time = group.count
    if selection.failed_before is not None:
        by_time = sum(n for at, n in group.times if at <= selection.failed_before)
    return min(by_task, by_cause, by_time)


def _notes(noted: Iterable[str], how: Redrive | None) -> list[str]:
    """Return the notes of one letter that are left, once it is said how it is sent."""
    if how is None:
        return []
    left = [note for note in noted if note not in _LIFTS or not _LIFTS[note](how)]
    if how.new_ids and Note.CHORD in left:
        left = [Note.CHORD_ID, *(note for note in left if note != Note.CHORD)]
    return left


def _told(rows: Iterable[DeadLetter], how: Redrive | None) -> tuple[Counter[str], Counter[str]]:
    """Return why letters are refused, and what else is worth a word of them, each with how many."""
    noted = Counter(note for row in rows for note in _notes(row.notes, how))
    sent = {str(Note.POISON)} if how and how.poison else set()
    refused = Counter({note: n for note, n in noted.items() if note in redriving.REFUSALS and note not in sent})
    return refused, noted - refused


def _lifted(counts: Mapping[str, int], how: Redrive | None) -> dict[str, int]:
    if how is None:
        return {}
    return {note: n for note, n in counts.items() if note not in _LIFTS or not _LIFTS[note](how)}


#: What is refused no more, if it is asked for in a certain way.
_LIFTS = {
    str(Note.REVOKED): lambda how: how.new_ids,
    str(Note.EXPIRED): lambda how: how.expired,
}
#: What names poison, so that it is meant.
_NAMING = ("entry", "signature", "cause")


def _limited(meant: list[_Meant], limit: int, how: Redrive | None) -> list[_Meant]:
    """Keep so many letters over all lists, the oldest of each first, the list with the oldest letter first."""
    if not limit:
        return meant
    left, kept = limit, []
    for each in sorted(meant, key=lambda one: one.listed.oldest_at or 0.0):
        count = min(left, each.count)
        left -= count
        if not count:
            continue
        if count == each.count:
            kept.append(each)
            continue
        rows = sorted(each.rows, key=lambda row: row.failed_at or 0.0)[:count] if each.exact else each.rows
        refused, noted = _told(rows, how)
        kept.append(
            replace(
                each,
                count=count,
                rows=rows,
                refused=refused if each.exact else each.refused,
                noted=noted if each.exact else each.noted,
            )
        )
    return kept


def _one_only(meant: Sequence[_Meant], wish: Wish) -> None:
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


# --- actions ---


def _sent(meant: _Meant) -> int:
    return max(0, meant.count - sum(meant.refused.values()))


def _again(snapshot: Snapshot, meant: _Meant, selection: DeadSelection, how: Redrive) -> Action:
    name = f"{meant.listed.queue}{DEAD}"
    return Action(
        kind=Kind.REDRIVE,
        subject=name,
        task=_only_task(meant),
        source=name,
        destination=how.queue or _only_queue(meant),
        copies=(Copy(place="list", key=meant.listed.key, queue=name, count=meant.count),),
        letters=_bounded(selection, meant),
        redrive=how,
        why="dead-letters",
        effect=" ".join(_effect(snapshot, meant, how)),
    )


def _away(meant: _Meant, selection: DeadSelection, wish: Wish, now: float) -> Action:
    name = f"{meant.listed.queue}{DEAD}"
    one = meant.count == 1
    words = replace(selection, limit=0).words(now)
    leave = "leaves" if one else "leave"
    said = f"{_many(meant)} {words} {leave} {name} and {'is' if one else 'are'} kept in quarantine.".replace("  ", " ")
    if wish.older_than:
        said = f"{said} Those that do not say when they failed stay."
    return Action(
        kind=Kind.PURGE,
        subject=name,
        task=_only_task(meant),
        source=name,
        destination="quarantine",
        copies=(Copy(place="list", key=meant.listed.key, queue=name, count=meant.count),),
        letters=_bounded(selection, meant),
        why="dead-letters",
        effect=said,
    )


def _bounded(selection: DeadSelection, meant: _Meant) -> DeadSelection:
    return replace(selection, limit=meant.count if selection.limit else 0)


def _only_task(meant: _Meant) -> str:
    names = {row.task for row in meant.rows}
    return next(iter(names)) if meant.exact and len(names) == 1 else ""


def _only_queue(meant: _Meant) -> str:
    """Return the queue that they go back to; empty where it is each one's own, and those differ."""
    names = {row.queue or meant.listed.queue for row in meant.rows} or {meant.listed.queue}
    return next(iter(names)) if len(names) == 1 else ""


def _effect(snapshot: Snapshot, meant: _Meant, how: Redrive) -> Iterable[str]:
    count, sent = meant.count, _sent(meant)
    where = how.queue or _only_queue(meant) or "the queue that each came from"
    of = f"{sent:,} of {count:,} letters" if sent != count else f"{count:,} letter{'s' * (count != 1)}"
    least = "" if meant.exact else "at most "
    parts = [f"{least}{of}{_options(how)} to {where}"]
    if meant.refused:
        parts.append(_refusals(meant.refused))
    yield f"{_capital('; '.join(parts))}."
    if how.rate_per_s:
        yield f"At {_rate(how.rate_per_s)} at most; that takes {spell(sent / how.rate_per_s)}."
    for note, (one, many) in _WARNED.items():
        if n := meant.noted.get(note, 0):
            yield f"{n:,} {one if n == 1 else many}."
    yield from _consumers(snapshot, meant, how)
    if how.new_ids:
        yield "Under new ids nobody who waits for the old ones learns of it."
    if how.args or how.kwargs:
        yield "With the arguments that were given, in place of those that it had."


def _options(how: Redrive) -> str:
    said = [" under new ids"] if how.new_ids else []
    said += [" with the retries that they had"] if how.keep_retries else []
    return ",".join(said)


def _rate(per_s: float) -> str:
    return f"{per_s:,.4g} a second" if per_s >= 1 else f"{per_s * 60:,.4g} a minute"


def _consumers(snapshot: Snapshot, meant: _Meant, how: Redrive) -> Iterable[str]:
    """Say which of the queues that they go to nobody consumes: there they would only wait."""
    by_queue: defaultdict[str, int] = defaultdict(int)
    for row in meant.rows:
        by_queue[how.queue or row.queue or meant.listed.queue] += 1
    if not by_queue:
        by_queue[how.queue or meant.listed.queue] = meant.count
    served = {queue.name for queue in snapshot.queues if queue.consumers}
    idle = [name for name in by_queue if name not in served]
    if not idle:
        return
    names = f"{', '.join(idle[:_MOST_NAMED])}{' …' * (len(idle) > _MOST_NAMED)}"
    if doubt := serving.unheard(snapshot):
        yield f"Whether anybody consumes {names} cannot be told: {doubt}."
    else:
        yield f"Nobody consumes {names}: there they wait until a node does."


def _refusals(refused: Mapping[str, int]) -> str:
    ranked = sorted(refused.items(), key=lambda item: -item[1])
    return "; ".join(f"{n:,} refused: {_short(note)}" for note, n in ranked)


def _short(note: str) -> str:
    return {str(key): text for key, text in _SHORT.items()}.get(note, note)


def _sentence(note: str) -> str:
    return {str(key): text for key, text in redriving.REFUSALS.items()}.get(note, "")


def _many(meant: _Meant) -> str:
    least = "" if meant.exact else "At most "
    return f"{least}{meant.count:,} letter{'s' * (meant.count != 1)}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
