"""Dead letters that are meant, and how they are sent again → what a plan says of them, as sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from opslib import redriving
from opslib.durations import spell
from opslib.facts.snapshot import Snapshot
from opslib.keys import DEAD
from opslib.plan import Redrive
from opslib.redriving import Note
from opslib.selection import DeadSelection
from opslib.symptoms import serving
from opslib.symptoms.letters_meant import Meant

_MOST_NAMED = 3
#: Why a letter is not sent again, in as few words as a plan has room for.
_SHORT: Mapping[str, str] = {
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


def again(snapshot: Snapshot, meant: Meant, how: Redrive) -> str:
    """Return what happens if they are sent again."""
    return " ".join(_again(snapshot, meant, how))


def away(meant: Meant, selection: DeadSelection, now: float) -> str:
    """Return what happens if they are taken away and kept."""
    name = f"{meant.listed.queue}{DEAD}"
    least, words = "" if meant.exact else "At most ", replace(selection, limit=0).words(now)
    leave, kept = ("leaves", "is") if meant.count == 1 else ("leave", "are")
    said = f"{least}{_letters(meant.count)} {words} {leave} {name} and {kept} kept in quarantine.".replace("  ", " ")
    return said if selection.failed_before is None else f"{said} Those that do not say when they failed stay."


def refusals(refused: Mapping[str, int]) -> str:
    """Return how many are refused for which reason, the most first."""
    ranked = sorted(refused.items(), key=lambda item: -item[1])
    return "; ".join(f"{n:,} refused: {_SHORT.get(note, note)}" for note, n in ranked)


def _again(snapshot: Snapshot, meant: Meant, how: Redrive) -> Iterable[str]:
    count, sent = meant.count, meant.sent
    where = how.queue or meant.queue or "the queue that each came from"
    of = f"{sent:,} of {count:,} letters" if sent != count else _letters(count)
    least = "" if meant.exact else "at most "
    parts = [f"{least}{of}{_options(how)} to {where}"]
    if meant.refused:
        parts.append(refusals(meant.refused))
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


def _consumers(snapshot: Snapshot, meant: Meant, how: Redrive) -> Iterable[str]:
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


def _letters(count: int) -> str:
    return f"{count:,} letter{'s' * (count != 1)}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
