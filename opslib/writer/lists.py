"""Whole lists → taken out of circulation at once, or sorted message by message where they are too long to search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from opslib.envelope import digest
from opslib.errors import Refused
from opslib.keys import raw_name
from opslib.plan import Action, Outcome, Status
from opslib.writer import journal as journals
from opslib.writer import points
from opslib.writer.journal import Batch
from opslib.writer.moves import CHANGED, GONE, MOVED
from opslib.writer.primitive import Answer, Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

#: What gives the account of a message that is wanted, from its bytes.
Taking = Callable[[bytes], "Mapping[str, Any] | None"]

#: In a list of up to so many messages, one is found quickly enough by its bytes, and put back to its place.
SEARCHABLE = 2_000
#: A purge goes on if the queue has grown by so much since it was planned, and is refused beyond.
_GROWTH, _MARGIN = 1.2, 10
_WINDOW = 200
_WINDOW_BYTES = 256 * 1024
_SAMPLES = 100


def purge(primitive: Primitive, action: Action) -> Outcome:
    """Give each of a queue's lists the name of a quarantine: all is out of circulation, and nothing is touched."""
    copies = list(action.copies)
    space = primitive.broker.keys
    destinations = [_free(primitive, copy.key.removeprefix(space.prefix)) for copy in copies]
    answer = _rename(
        primitive,
        [(copy.key, to, most(copy.count)) for copy, to in zip(copies, destinations, strict=True)],
        role="purge",
        items=[{"a": action.id, "s": action.subject}] * len(copies),
    )
    moved = sum(int(n) for letter, n in zip(answer.letters, answer.seen, strict=True) if letter == MOVED)
    grown = [
        f"{copy.key} holds {n} messages by now, {copy.count:,} were planned"
        for copy, letter, n in zip(copies, answer.letters, answer.seen, strict=True)
        if letter == CHANGED
    ]
    if grown:
        return Outcome(action=action, status=Status.SKIPPED, reason=f"{'; '.join(grown)}. Plan it again.")
    if not moved:
        return Outcome(action=action, status=Status.SKIPPED, reason="The queue is empty by now.")
    return Outcome(action=action, status=Status.APPLIED, reason=f"{moved:,} messages are kept in quarantine.")


def is_deep(served_before: int, length: int) -> bool:
    """Whether a message is too far from the end that is served to be searched for by its bytes, in one script."""
    return length > SEARCHABLE and served_before > SEARCHABLE // 2


def most(planned: int) -> int:
    """Return how many messages a list may hold by now, for a purge that was planned with so many."""
    return int(planned * _GROWTH) + _MARGIN


def by_sha(wanted: Mapping[str, Sequence[Mapping[str, Any]]]) -> Taking:
    """Take messages by their sha256: as many of each as there are accounts of it."""
    left = {sha: list(accounts) for sha, accounts in wanted.items()}

    def taking(raw: bytes) -> Mapping[str, Any] | None:
        return left[sha].pop() if left.get(sha := digest(raw)) else None

    return taking


def sieve(primitive: Primitive, key: str, taking: Taking) -> list[dict[str, Any]]:
    """
    Take messages out of a list that is too long to search, by reading it once from its served end.

    The list is set aside under another name, in constant time, and dealt back in its order, but for what is wanted.
    What is pushed meanwhile comes to stand among what is dealt back; what workers are served stays in order.

    Args:
        taking: Asked of each message once, the first served first; gives its account if it is wanted.

    Returns:
        The accounts of what was taken, each with the message's sha256 and the list that it is in now.
    """
    work = aside(primitive.broker, primitive.run_id, key)
    if primitive.broker.writes.exists(raw_name(work)):  # an interrupted pass, gone on with
        begun = journals.read(primitive.broker, primitive.run_id).of("rename", "sieve", list=key)[-1].number
    else:
        answer = _rename(primitive, [(key, work, None)], role="sieve", items=[{"s": key}], list=key)
        if answer.letters != MOVED:
            return []
        begun = answer.number
        points.passed("list-set-aside")
    quarantine = _free(primitive, key.removeprefix(primitive.broker.keys.prefix), first=2)
    taken: list[dict[str, Any]] = []
    while window := served_end(primitive, work):  # to its end, for the rest must not stay aside either
        here = [taking(raw) for raw in window]
        runs = [
            (quarantine if out else key, len(list(some)))
            for out, some in itertools.groupby(account is not None for account in here)
        ]
        items = [
            {**account, "sha": digest(raw), "to": quarantine}
            for account, raw in zip(here, window, strict=True)
            if account is not None
        ]
        way = [(work, "RIGHT", to, "LEFT", count) for to, count in runs]
        deal(primitive, way, role="sieve", list=key, items=items, **{"pass": begun})
        taken += items
    return taken


def underway(count: int) -> str:
    """Say how many messages an error left in quarantine that were to go on from there; nothing for none."""
    them = f"{count:,} messages are on their" if count != 1 else "1 message is on its"
    return f" {them} way in quarantine; `ops resume` finishes it." if count else ""


def finish(primitive: Primitive, key: str) -> int:
    """Deal back what an interrupted run still has set aside of a list; return how many messages that were."""
    way = (aside(primitive.broker, primitive.run_id, key), "RIGHT", key, "LEFT")
    return pour(primitive, way, role="finish", list=key)


def settle(primitive: Primitive) -> None:
    """Deal back all that this run had set aside when it was interrupted: there, nobody would look for a message."""
    journal = journals.read(primitive.broker, primitive.run_id)
    for key in {str(batch.receipt["list"]) for batch in journal.of("rename", "sieve")}:
        finish(primitive, key)


def unpurge(primitive: Primitive, batch: Batch, n: int) -> str:
    """Put back what a purge renamed; MOVED, or GONE if it was dropped."""
    item = batch.items[n]
    letter = unrename(primitive, item["from"], item["to"])
    if letter == MOVED:
        _note_undone(primitive, item["from"], items=[{"s": item["s"], "undoes": [batch.number, n]}])
    return letter


def unrename(primitive: Primitive, key: str, quarantine: str) -> str:
    """
    Give a list its name back, and let what was pushed meanwhile follow behind it.

    Returns:
        MOVED, or GONE if nothing is or was under the other name.
    """
    work = aside(primitive.broker, primitive.run_id, key)
    letter = GONE
    if primitive.broker.writes.exists(raw_name(quarantine)):
        pushed = [(key, work, None)] if primitive.broker.writes.exists(raw_name(key)) else []
        items = [{"s": key}] * (len(pushed) + 1)
        answer = _rename(primitive, [*pushed, (quarantine, key, None)], role="unpurge", items=items)
        letter = answer.letters[-1]
        if letter != MOVED:
            raise Refused(f"{key} could not be put back: its name was taken in that moment. Undo it again.")
    elif any(
        batch.items[-1]["from"] == quarantine and batch.done(len(batch.items) - 1)
        for batch in journals.read(primitive.broker, primitive.run_id).of("rename", "unpurge")
    ):
        letter = MOVED  # by an undo that was interrupted
    pour(primitive, (work, "RIGHT", key, "LEFT"), role="unpurge", list=key)
    return letter


def unsieve(primitive: Primitive, key: str, begun: str) -> tuple[int, str]:
    """
    Put back what one pass sieved out of a list.

    Where the list still holds just what was dealt back into it, and the quarantine all that was taken, each message
    goes to its old place: the list is set aside once more, and both are dealt together as they were dealt apart. Where
    one of them has moved on, they go to the end that is served next, in their order: which of the places are those of
    what is missing, nobody knows.

    Args:
        begun: Number of the batch that set the list aside.

    Returns:
        How many were put back, and where, as words.
    """
    finish(primitive, key)
    journal = journals.read(primitive.broker, primitive.run_id)
    told: dict[str, Any] = {"list": key, "returns": begun}
    runs = [run for b in journal.of("deal", "sieve", **{"pass": begun}) for run in b.receipt["runs"]]
    back = primitive.broker.keys.work_back(primitive.run_id, key.removeprefix(primitive.broker.keys.prefix))
    merged = sum(_dealt(b) for b in journal.of("deal", "merge", returns=begun))
    returned, elsewhere = _before(runs, key, merged), ""
    kept_in = list(dict.fromkeys(str(to) for _, _, to, _, _ in runs if to != key))
    if not merged and not primitive.broker.writes.exists(raw_name(back)):
        kept = sum(count for _, _, to, _, count in runs if to == key)
        after = sum(_dealt(b) for b in journal.of("deal", "finish", list=key) if b.order > _order(begun))
        taken = sum(count for _, _, to, _, count in runs if to != key)
        before = journal.of("deal", "next", returns=begun)  # by an undo that was interrupted
        missing = taken - sum(primitive.broker.writes.llen(raw_name(each)) for each in kept_in)
        missing -= sum(_dealt(b) for b in before)
        if before or missing < 0 or primitive.broker.writes.llen(raw_name(key)) != kept + after:
            elsewhere = "the queue has moved on"
        elif missing:
            are = "are" if missing != 1 else "is"
            elsewhere = f"{missing:,} of them {are} gone, and the places of the others are not known"
        elif kept + after:
            _rename(primitive, [(key, back, None)], role="merge", items=[{"s": key}], list=key)
    if not elsewhere:
        for some in _windows(_rest(runs, merged), lambda to: _most(primitive, to if to != key else back)):
            way = [(to if to != key else back, "RIGHT", key, "LEFT", count) for _, _, to, _, count in some]
            counts = deal(primitive, way, role="merge", items=[], **told)
            returned += sum(n for n, run in zip(counts, some, strict=True) if run[2] != key)
        pour(primitive, (back, "RIGHT", key, "LEFT"), role="merge-rest", **told)
    else:
        for each in kept_in:
            returned += pour(primitive, (each, "LEFT", key, "RIGHT"), role="next", **told)
    _note_undone(primitive, key, undoes_pass=begun)
    return returned, f"next to be served, for {elsewhere}" if elsewhere else "where they were"


def _before(runs: Sequence[Sequence[Any]], key: str, merged: int) -> int:
    """Return how many messages of a pass an undo that was interrupted had put back already."""
    taken, rest = (sum(int(run[4]) for run in some if run[2] != key) for some in (runs, _rest(runs, merged)))
    return taken - rest


def deal(primitive: Primitive, runs: Sequence[tuple[str, str, str, str, int]], **about: object) -> list[int]:
    """Deal messages between lists in the order of the runs; return how many of each run there were."""
    keys = primitive.keys()
    values: list[bytes | str | float] = []
    for source, leave, to, join, count in runs:
        values += [keys.number(source), leave, keys.number(to), join, count]
    receipt = {"op": "deal", "runs": [list(run) for run in runs], **about}
    told = {"list": about.get("list", ""), "count": sum(count for *_, count in runs)}
    answer = primitive.call("deal", keys, values, receipt=receipt, about=told)
    return [int(n) for n in answer.letters.split(",")]


def pour(primitive: Primitive, way: tuple[str, str, str, str], **about: object) -> int:
    """Deal all of one list into another; return how many messages that were."""
    total = 0
    while primitive.broker.writes.exists(raw_name(way[0])):
        total += sum(deal(primitive, [(*way, _most(primitive, way[0]))], items=[], **about))
    return total


def _note_undone(primitive: Primitive, key: str, items: Sequence[Mapping[str, Any]] = (), **about: object) -> None:
    """Call something undone, once all of it is back: what is interrupted before is gone on with by another undo."""
    receipt = {"op": "note", "role": "undone", "items": items, **about}
    primitive.call("note", primitive.keys(), [MOVED * len(items)], receipt=receipt, about={"undone": key})


def _rename(
    primitive: Primitive,
    renames: Sequence[tuple[str, str, int | None]],
    *,
    role: str,
    items: Sequence[dict[str, Any]],
    **about: object,
) -> Answer:
    keys = primitive.keys()
    values: list[bytes | str | float] = []
    for key, to, most in renames:
        values += [keys.number(key), keys.number(to), "" if most is None else most]
    kept = [{**item, "from": key, "to": to} for item, (key, to, _) in zip(items, renames, strict=True)]
    return primitive.call(
        "rename",
        keys,
        values,
        receipt={"op": "rename", "role": role, "items": kept, **about},
        about={"renames": [[key, to] for key, to, _ in renames]},
    )


def aside(broker: Broker, run_id: str, key: str) -> str:
    """Return the name that a list has while a run sorts it."""
    return broker.keys.work(run_id, key.removeprefix(broker.keys.prefix))


def _free(primitive: Primitive, name: str, first: int = 1) -> str:
    """
    Return the name of a quarantine of that list which this run has not used yet; under the lock nobody else does.

    Args:
        first: 2 for a pass, whose messages must not lie among those that were taken one by one.
    """
    space = primitive.broker.keys
    names = (space.quarantine(primitive.run_id, name, part) for part in itertools.count(first))
    return next(each for each in names if not primitive.broker.writes.exists(raw_name(each)))


def _most(primitive: Primitive, key: str) -> int:
    """Return how many messages of a list one script may deal: as many as the broker bears, few where they are heavy."""
    client = primitive.broker.writes
    used = client.memory_usage(raw_name(key), samples=_SAMPLES) or 1
    most = primitive.watch.batch if primitive.watch else _WINDOW
    return max(1, min(most, _WINDOW_BYTES * client.llen(raw_name(key)) // used))


def served_end(primitive: Primitive, key: str, wanted: int = 0, passed: int = 0) -> list[bytes]:
    """
    Return a window of the messages that would be served next, the first of them first.

    Args:
        wanted: So many, as far as one script may deal them, and at least one; 0 for as many as it may.

        passed: So many at that end are passed over.
    """
    most = _most(primitive, key)
    most = min(most, wanted) if wanted else most
    window = primitive.broker.writes.lrange(raw_name(key), -passed - most, -passed - 1)
    return cast("list[bytes]", window)[::-1]


def _dealt(batch: Batch) -> int:
    return sum(int(n) for n in batch.said.split(","))


def _order(number: str) -> tuple[int, int]:
    epoch, place = number.split(".")
    return int(epoch), int(place)


def _rest(runs: Sequence[Sequence[Any]], done: int) -> list[Sequence[Any]]:
    """Return what is left of runs after so many messages of them were dealt."""
    left: list[Sequence[Any]] = []
    for *way, count in runs:
        skipped = min(done, count)
        done -= skipped
        if count > skipped:
            left.append([*way, count - skipped])
    return left


def _windows(runs: Sequence[Sequence[Any]], most: Callable[[str], int]) -> Iterator[list[Sequence[Any]]]:
    """Cut runs into batches of as many messages as a script may move by then, of the list that they come from."""
    window: list[Sequence[Any]] = []
    room = 0
    for *way, count in runs:
        rest = count
        while rest:
            room = room or most(way[2])
            now = min(room, rest)
            window.append([*way, now])
            rest, room = rest - now, room - now
            if not room:
                yield window
                window = []
    if window:
        yield window
