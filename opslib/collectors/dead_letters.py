"""Dead-letter lists → every entry, whoever wrote it: counted by what it failed of, and the entries of certain tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, cast

from opslib import letters, pidbox, redriving
from opslib.collectors import results, windows
from opslib.collectors.graves import Tally
from opslib.envelope import Unreadable
from opslib.facts.dead import DeadLetter, DeadLetters, DeadList
from opslib.facts.system import Coverage
from opslib.keys import DEAD, key_name, raw_name
from opslib.letters import Letter

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Entries of all lists that are read, newest first in each.
MOST_ENTRIES = 200_000
#: Entries that a look at everything reads: a list holds 10,000, unless its capture was told otherwise.
MAX_ENTRIES = 1_000_000
#: Entries that are kept as rows; the others are only counted.
MAX_LETTERS = 50_000
#: Entries of the tasks that are searched for that become rows.
_MOST_ROWS = 1_000
#: What is decoded at a time, before the results of those tasks are asked for.
_CHUNK, _CHUNK_BYTES = 250, 4 * 1024 * 1024
#: Entries before the newest of a first look that are searched for it.
_MOST_ARRIVED = 20_000
#: A heavier entry is not sent to the server to ask where it is now.
_MARK_BYTES = 256 * 1024
_QUOTED = 200
_NAME = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """
    How a list stood at a first look.

    Attributes:
        newest: Its newest entry; empty where it is too heavy to be looked for again.
    """

    length: int
    newest: bytes
    at: float


def of_tasks(broker: Broker, keys: Sequence[str], ids: frozenset[str]) -> tuple[list[DeadLetter], Coverage]:
    """
    Return the entries of these tasks, and how many were looked through.

    An entry names its task, or is the task's message itself, as somebody moved it there.
    """
    rows: list[DeadLetter] = []
    odd = 0
    reading = _Reading(broker, keys, MOST_ENTRIES)
    for key, raw in reading:
        found = letters.read(raw)
        odd += isinstance(found, Unreadable)
        if isinstance(found, Letter) and found.task_id in ids and len(rows) < _MOST_ROWS:
            rows.append(row(found, key, len(raw)))
    said = [f"{odd:,} cannot be decoded, so nobody knows of which task."] if odd else []
    return rows, reading.coverage(said)


def ids(broker: Broker, keys: Sequence[str], note: Callable[[str], None]) -> Coverage:
    """Tell `note` the id of every task that has an entry; return how many were looked through."""
    odd = 0
    reading = _Reading(broker, keys, MAX_ENTRIES)
    for _, raw in reading:
        found = letters.read(raw)
        if isinstance(found, Letter):
            note(found.task_id)
        else:
            odd += 1
    return reading.coverage([f"{odd:,} cannot be decoded, so nobody knows of which task."] if odd else [])


def entries(broker: Broker, keys: Sequence[str], ids: Iterable[str]) -> Iterator[tuple[DeadLetter, Letter]]:
    """Yield the entries with these entry ids or task ids, newest first in each list, whole."""
    wanted = frozenset(ids)
    for key, raw in _Reading(broker, keys, MAX_ENTRIES):
        found = letters.read(raw)
        if isinstance(found, Letter) and (found.entry_id in wanted or found.task_id in wanted):
            yield row(found, key, len(raw)), found


def marks(broker: Broker, keys: Sequence[str]) -> dict[str, Mark]:
    """Return how the lists among some keys stand now; what comes from now on has arrived."""
    found = {}
    for key in keys:
        if key_name(broker.reads.type(raw_name(key))) == "list":
            newest = cast("bytes | None", broker.reads.lindex(raw_name(key), 0)) or b""
            length = broker.reads.llen(raw_name(key))
            kept = newest if len(newest) <= _MARK_BYTES else b""
            found[key] = Mark(length=length, newest=kept, at=time.monotonic())
    return found


def again(broker: Broker, seen: DeadLetters, before: Mapping[str, Mark]) -> DeadLetters:
    """Return the lists as they stand some time after their marks were made, with what has arrived meanwhile."""
    dropped = _dropped(broker, seen.lists)
    lists = []
    for each in seen.lists:
        if each.source != "list" or each.key not in before:
            lists.append(each)
            continue
        length = broker.reads.llen(raw_name(each.key))
        arrived = _arrived(broker, each.key, before[each.key], length)
        lists.append(replace(each, length=length, arrived=arrived, dropped=dropped.get(each.queue, each.dropped)))
    began = min((mark.at for mark in before.values()), default=time.monotonic())
    return replace(seen, lists=tuple(lists), watched_s=time.monotonic() - began)


def _arrived(broker: Broker, key: str, mark: Mark, length: int) -> int:
    """
    Return how many entries lie before the one that was the newest.

    A list at its bound stays as long as it was while letters come, and one of which letters are taken gets shorter.
    """
    from redis.exceptions import ResponseError

    more = max(0, length - mark.length)
    if not mark.newest:
        return more
    try:
        newest = cast("str", mark.newest)  # bytes will do
        at = cast("int | None", broker.reads.lpos(raw_name(key), newest, maxlen=more + _MOST_ARRIVED))
    except ResponseError:
        return more
    return more if at is None else at


def read(
    broker: Broker,
    keys: Sequence[str],
    *,
    now: float,
    known_results: Sequence[bytes] = (),
    revoked: frozenset[str] = frozenset(),
    max_letters: int = MAX_LETTERS,
    max_entries: int = MAX_ENTRIES,
    max_keys: int = MAX_ENTRIES,
    elsewhere: Callable[[frozenset[str]], Collection[str]] | None = None,
) -> tuple[DeadLetters, list[Coverage]]:
    """
    Read every entry once, in bounded memory, and look for tasks that failed without leaving one.

    Args:
        keys: Of lists; what is none is named in the coverage.

        now: Epoch seconds by the server's clock.

        known_results: Keys of results that a pass over the broker's database met.

        revoked: Ids that nodes remember as revoked.

        max_letters: Entries that are kept as rows, newest first in each list.

        max_entries: Entries that are read.

        max_keys: Results that are looked at.

        elsewhere: Tells which of some failed tasks are somewhere else, so that they are not without a letter.
    """
    tally = Tally(now=now, max_letters=max_letters)
    reading = _Reading(broker, keys, max_entries)
    states = results.States(broker)
    for chunk in _chunks(reading):
        found = [(key, letters.read(raw), len(raw)) for key, raw in chunk]
        of = states.of([each.task_id for _, each, _ in found if isinstance(each, Letter)])
        for key, letter, size in found:
            if isinstance(letter, Unreadable):
                tally.unreadable(key, size)
                continue
            signature, frame = tally.signature(letter)
            notes = redriving.notes(letter, now=now, revoked=revoked, states=of)
            tally.take(row(letter, key, size, signature, frame, tuple(map(str, notes))))
    lists = [_list(broker, key, length, tally) for key, length in reading.lengths.items()]
    dropped = _dropped(broker, lists)
    lists = [replace(each, dropped=dropped.get(each.queue, 0)) for each in lists]
    lost, lost_coverage = _uncaptured(broker, known_results, tally, max_keys, elsewhere)
    seen = tally.result((*lists, *lost), revoked)
    said = [f"{states.unread}, so nobody can say which of these tasks have succeeded since."] if states.unread else []
    return seen, [reading.coverage(said), lost_coverage]


def revoked(broker: Broker, *, timeout_s: float) -> tuple[frozenset[str], int]:
    """Return the ids that nodes remember as revoked, and how many nodes heard the question and did not say."""
    from redis.exceptions import RedisError

    try:
        answers = pidbox.ask(broker, [pidbox.Call(method="revoked")], timeout_s=timeout_s)
    except RedisError:
        return frozenset(), 1
    found: set[str] = set()
    told = 0
    for raw in answers.replies["revoked"].values():
        said = pidbox.read(raw)
        if isinstance(said, list):
            told += 1
            found.update(each for each in said if isinstance(each, str))
    return frozenset(found), max(0, answers.receivers - told)


def row(
    letter: Letter, key: str, size_bytes: int, signature: str = "", frame: str = "", notes: tuple[str, ...] = ()
) -> DeadLetter:
    """Return an entry as a row; without what is costly to tell, unless that is given."""
    text = letter.exception[:_QUOTED].strip()
    kind = letter.exc_type[:_QUOTED].strip()
    return DeadLetter(
        task_id=letter.task_id,
        task=letter.task_name[:_NAME],
        key=key,
        queue=letter.queue[:_NAME],
        entry_id=letter.entry_id,
        exception=text if text.startswith(f"{kind}(") else ": ".join(dict.fromkeys(filter(None, (kind, text)))),
        exc_type=kind,
        signature=signature,
        frame=frame,
        cause=letter.cause[:_NAME] or str(letters.Cause.UNKNOWN),
        failed_at=letter.failed_epoch,
        worker=letter.worker[:_NAME],
        retries=letter.retries,
        redrives=letter.redrives,
        exact=bool(letter.envelope or letter.envelope_base64),
        size_bytes=size_bytes,
        notes=notes,
    )


def put_aside(broker: Broker, quarantines: Iterable[str], ids: frozenset[str]) -> set[str]:
    """Return those of some tasks whose letters a run has put into quarantine."""
    of_dead = [key for key in quarantines if (broker.keys.quarantined(key) or ("", ""))[1].endswith(DEAD)]
    found = (letters.read(raw) for _, raw in _Reading(broker, of_dead, MOST_ENTRIES))
    return {each.task_id for each in found if isinstance(each, Letter)} & ids


class _Reading:
    """
    A pass over some lists, newest entry first in each, that remembers what it could not read.

    Attributes:
        lengths: Of each list that is one, as it was when it was reached.
    """

    def __init__(self, broker: Broker, keys: Sequence[str], most: int) -> None:
        self._broker, self._keys, self._most = broker, keys, most
        self.lengths: dict[str, int] = {}
        self._seen = self._silent = 0
        self._unread: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        from redis.exceptions import ResponseError

        for key in self._keys:
            try:
                length = self._broker.reads.llen(raw_name(key))
                if not length:
                    continue  # it was emptied since it was met
                self.lengths[key] = length
                room = max(0, self._most - self._seen)
                self._seen, self._silent = self._seen + min(length, room), self._silent + max(0, length - room)
                listing = windows.Listing(key=key, length=length)
                yield from ((key, raw) for _, raw in islice(windows.stream(self._broker, listing), room))
            except ResponseError as error:
                if why := _unread(self._broker, key, error):
                    self._unread.append(why)

    def coverage(self, said: Iterable[str] = ()) -> Coverage:
        """Return how much was read."""
        older = [f"{self._silent:,} older entries were not looked through."] if self._silent else []
        note = " ".join([*older, *said, *self._unread[:3]])
        return Coverage(place="dead letters", seen=self._seen, silent=self._silent + len(self._unread), note=note)


def _unread(broker: Broker, key: str, error: Exception) -> str:
    """Return why a key that is called like a list of dead letters was not read; empty for a plain value."""
    if not str(error).startswith("WRONGTYPE"):
        return f"{key} cannot be read: {str(error).rstrip('.')}."
    kind = key_name(broker.reads.type(raw_name(key)))
    return "" if kind in {"string", "none"} else f"{key} is a {kind}, not a list."


def _chunks(entries: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    chunk: list[tuple[str, bytes]] = []
    weight = 0
    for key, raw in entries:
        chunk.append((key, raw))
        weight += len(raw)
        if len(chunk) == _CHUNK or weight >= _CHUNK_BYTES:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk


def _list(broker: Broker, key: str, length: int, tally: Tally) -> DeadList:
    queue = key.removeprefix(broker.keys.prefix).removesuffix(DEAD)
    return DeadList(key=key, queue=queue, length=length, **tally.of_list(key))


def _dropped(broker: Broker, lists: Sequence[DeadList]) -> dict[str, int]:
    """Return how many entries each queue's list has lost to its bound, as far as a capture has counted them."""
    from redis.exceptions import ResponseError

    names = list(dict.fromkeys(each.queue for each in lists if each.source == "list"))
    if not names:
        return {}
    try:
        counts = cast(
            "list[bytes | None]", broker.reads.hmget(raw_name(broker.keys.dead_dropped), [raw_name(n) for n in names])
        )
    except ResponseError:
        return {}
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count and count.isdigit()}


def _uncaptured(
    broker: Broker,
    known: Sequence[bytes],
    tally: Tally,
    max_keys: int,
    elsewhere: Callable[[frozenset[str]], Collection[str]] | None,
) -> tuple[list[DeadList], Coverage]:
    """Return the failed tasks of which only a result tells, as a list of their own."""
    found = results.failures(broker, known, tally.ids, max_keys=max_keys, elsewhere=elsewhere)
    root = broker.keys.result_root
    for stored in found.rows:
        if stored.task:
            tally.keep(
                DeadLetter(
                    task_id=stored.task_id,
                    task=stored.task[:_NAME],
                    key=stored.key,
                    queue=stored.queue[:_NAME],
                    exception=stored.exception[:_QUOTED],
                    exc_type=stored.exception[:_QUOTED],
                    worker=stored.node[:_NAME],
                    retries=stored.retries,
                    exact=False,
                    size_bytes=stored.size_bytes,
                    notes=(str(redriving.Note.INEXACT),),
                )
            )
    named = sum(bool(stored.task) for stored in found.rows)
    row_ = DeadList(key=f"{root}*", queue="", length=found.count, source="results", unreadable=len(found.rows) - named)
    return [row_] if found.count else [], found.coverage
