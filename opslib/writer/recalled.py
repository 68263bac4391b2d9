"""Dead letters that a run sent again → back in their list, those whose messages no worker has taken yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from opslib import plain_letters
from opslib.collectors import windows
from opslib.envelope import Head, digest, head
from opslib.keys import raw_name
from opslib.plan import Action, Outcome, Status
from opslib.writer import journal as journals
from opslib.writer.journal import Batch, Journal
from opslib.writer.moves import MOVED, MOVED_NEXT, Move, Mover, Place

if TYPE_CHECKING:
    from opslib.broker import Broker


def standing(journal: Journal) -> dict[str, int]:
    """Return how many letters of each list were sent again and not recalled."""
    found: defaultdict[str, int] = defaultdict(int)
    for batch in journal.of("redrive", "redrive"):
        found[str(batch.receipt["list"])] += len(journal.standing(batch))
    return {key: count for key, count in found.items() if count}


def recall(mover: Mover, action: Action) -> Outcome:
    """Take the messages of letters out of their queues again, and put the letters back in their order, oldest next."""
    broker, key = mover.primitive.broker, action.copies[0].key
    journal = journals.read(broker, mover.primitive.run_id)
    back = gone = 0
    for batch in reversed(journal.of("redrive", "redrive", list=key)):
        numbers = journal.standing(batch)[::-1]
        found, letters = _waiting(broker, batch, numbers), _letters(broker, batch)
        moves = [_move(action, batch, n, found[n], letters[n]) for n in numbers if n in found and n in letters]
        said = mover.move(moves)
        if mover.halted:
            return Outcome(action=action, status=Status.FAILED, reason=mover.halted)
        came = sum(letter in {MOVED, MOVED_NEXT} for letter in said)
        back, gone = back + came, gone + len(numbers) - came
    if not back:
        reason = "No message of them waits any more: workers have taken them."
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    taken = f" {gone:,} have been taken by workers." if gone else ""
    are = "letters are" if back != 1 else "letter is"
    return Outcome(action=action, status=Status.APPLIED, reason=f"{back:,} {are} back in {key}.{taken}")


def _waiting(broker: Broker, batch: Batch, numbers: Sequence[int]) -> dict[int, bytes]:
    """Return the messages of a batch that still wait, by the number of the letter; their tags follow from its seed."""
    tags = plain_letters.tags(len(batch.items), str(batch.receipt["seed"]))
    wanted: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for n in numbers:
        wanted[_list(batch, n)][tags[n]] = n
    found: dict[int, bytes] = {}
    for key, left in wanted.items():
        for raw in windows.likely(broker, key):
            said = head(raw)
            if isinstance(said, Head) and said.delivery_tag in left:
                found[left.pop(said.delivery_tag)] = raw
            if not left:
                break
    return found


def _list(batch: Batch, n: int) -> str:
    return str(batch.receipt["lists"][batch.items[n]["to"] - 1])


def _letters(broker: Broker, batch: Batch) -> dict[int, bytes]:
    """Return the letters that a batch has sent, by their number in it, from where the run keeps them."""
    sent = [n for n in range(len(batch.items)) if batch.done(n)]
    before = int(batch.place(0) or 0)
    kept = broker.writes.lrange(raw_name(str(batch.receipt["kept"])), -before - len(sent), -before - 1)
    return dict(zip(sent, cast("list[bytes]", kept)[::-1], strict=False))


def _move(action: Action, batch: Batch, n: int, message: bytes, letter: bytes) -> Move:
    said = head(message)
    return Move(
        action=action.id,
        subject=said.task_id if isinstance(said, Head) else "",
        task=said.task if isinstance(said, Head) else "",
        source=Place(key=_list(batch, n)),
        destination=Place(key=str(batch.receipt["list"]), served="next"),
        seen=message,
        written=letter,
        undoes=(batch.number, n),
    )


def arrived(broker: Broker, items: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the bytes of messages where a run put them, by sha256; those that are gone are missing."""
    found: dict[str, bytes] = {}
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        key, index, tag, _ = item["to"]
        if index:
            raw = cast("bytes | None", broker.writes.hget(raw_name(key), raw_name(tag)))
            if raw is not None and digest(raw) == item["sha"]:
                found[item["sha"]] = raw
        else:
            wanted[key].add(item["sha"])
    for key, shas in wanted.items():
        left = set(shas)
        for raw in windows.likely(broker, key):
            sha = digest(raw)
            if sha in left:
                left.discard(sha)
                found[sha] = raw
            if not left:
                break
    return found
