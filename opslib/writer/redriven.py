"""Dead letters → the queues that they came from, each sent and taken out of its list in one step."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import msgspec

from opslib import letters, pidbox, redriving, refusals
from opslib.collectors import results
from opslib.envelope import Unreadable, digest
from opslib.errors import OpsError
from opslib.keys import DEAD, key_name, raw_name
from opslib.letters import Letter
from opslib.plan import Action, Outcome, Redrive, Status
from opslib.redriving import REFUSALS, Known, Note, Sending
from opslib.selection import DeadSelection
from opslib.writer import journal as journals
from opslib.writer import lists
from opslib.writer.moves import CHANGED, MOVED
from opslib.writer.primitive import JOURNAL_LIFE_S, Keys, Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

STAYS, HAS_RUN, GOES_ON, NO_CHORD = "S", "R", "E", "K"
_SAID = {HAS_RUN: Note.SUCCEEDED, GOES_ON: Note.RESUMED, NO_CHORD: Note.CHORD_UNKNOWN}
_ANSWER_S = 2.0
#: So often a list is looked at from its end again, because somebody else took letters of it or its bound did.
_LOOKS = 20
_SHOWN_IDS = 50
#: Letters in one script, at most: each costs the server less than a move, for none is searched for.
_BATCH, _BATCH_BYTES = 500, 1024 * 1024
#: What is read at once, and so held in memory.
_CHUNK, _CHUNK_BYTES, _SAMPLES = 4_000, 8 * 1024 * 1024, 100
_SUCCESS = "SUCCESS"


@dataclass(kw_only=True)
class _Account:
    """
    What became of the letters of one action.

    Attributes:
        stays: Those that were meant and stay where they are, by the reason.

        renamed: Old and new ids, where they got new ones; the first of them.

        halted: Why it was not gone on with; empty if it was.
    """

    sent: int = 0
    stays: Counter[Note] = field(default_factory=Counter)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    halted: str = ""


def redrive(primitive: Primitive, action: Action) -> Outcome:
    """
    Send the dead letters that an action means again, the oldest first; what was sent is kept as long as the journal.

    A letter leaves its list in the script that puts its message into the queue: a run that is cut off has sent a letter
    or not, and whoever runs again goes on with those that are there.
    """
    work = _Redriving(primitive, action)
    for copy in action.copies:
        work.send(copy.key, copy.count)
        if work.account.halted:
            break
    return _outcome(action, work)


def _outcome(action: Action, work: _Redriving) -> Outcome:
    account, before = work.account, work.before
    left = "; ".join(f"{count:,} stay{'s' * (count == 1)}: {REFUSALS[note]}" for note, count in account.stays.items())
    unheard = work.unheard
    sent = f"{account.sent:,} letter{'s were' if account.sent != 1 else ' was'} sent again."
    earlier = f" {before:,} had been sent before the run was interrupted." if before else ""
    steps = tuple(f"{old} is {new} now" for old, new in account.renamed)
    if account.halted:
        reason = f"{sent}{earlier} {account.halted}"
        return Outcome(action=action, status=Status.FAILED, reason=reason, steps=steps)
    if not account.sent and not before:
        reason = f"None was sent. {left}" if left else "None of them is there any more."
        return Outcome(action=action, status=Status.SKIPPED, reason=f"{reason}{unheard}")
    reason = f"{sent}{earlier}{unheard} {left}".strip()
    return Outcome(action=action, status=Status.APPLIED, reason=reason, steps=steps)


#: One letter as it was read: its bytes, what they say, and what is decided about it.
_Decided = tuple[bytes, "Letter | Unreadable", "Sending | Note | None"]


class _Redriving:
    """The letters of one action, list by list."""

    def __init__(self, primitive: Primitive, action: Action) -> None:
        self.primitive, self._action = primitive, action
        self._broker: Broker = primitive.broker
        self._how = action.redrive or Redrive()
        self._only = action.letters or DeadSelection()
        self._began = time.monotonic()
        self._queues: dict[str, bool] = {}
        self._states = results.States(primitive.broker)
        self._left = self._passed = 0
        self._known: set[str] = set()
        self.account = _Account()
        self.before = _sent_before(primitive, action)

    @cached_property
    def _revoked(self) -> tuple[frozenset[str], int]:
        """The ids that nodes remember as revoked, and how many nodes did not say."""
        answers = pidbox.ask(self._broker, [pidbox.Call(method="revoked")], timeout_s=_ANSWER_S)
        said = [pidbox.read(raw) for raw in answers.replies["revoked"].values()]
        ids = frozenset(str(each) for some in said if isinstance(some, list) for each in some)
        return ids, max(0, answers.receivers - len(said))

    @property
    def unheard(self) -> str:
        """What was not known when it was decided what may be sent, as sentences; empty if everything was."""
        count = self._revoked[1]
        said = f" {count} node{'s' * (count != 1)} did not say which ids are revoked." if count else ""
        unread = self._states.unread if self._results is None else ""
        return f"{said} Which tasks have succeeded since is not known: {unread}." if unread else said

    @cached_property
    def _results(self) -> str | None:
        """Number of the results' database, empty for the broker's own; None where they are on another server."""
        client = self._broker.results
        if client is None:
            return None
        site = self._broker.elsewhere(client, self._broker.target.result_backend or self._broker.target.broker_url)
        if site is self._broker:
            return ""
        same = site.information.get("run_id") == self._broker.information.get("run_id")
        return str(site.keys.database) if same else None

    def send(self, key: str, planned: int) -> None:
        """Send what is meant of one list, from its oldest letter on: no more than were there at first."""
        from redis.exceptions import RedisError

        self._passed, self._known, looks = 0, set(), 0
        self._left = (self._only.limit or lists.most(planned)) - self.before
        room = self._broker.writes.llen(raw_name(key))
        try:
            while room > 0 and self._left > 0 and (chunk := self._chunk(key, room)):
                done = self._go_through(key, chunk)
                room -= done
                if done == len(chunk):
                    continue
                looks, self._passed = looks + 1, 0
                if looks > _LOOKS:
                    self.account.halted = "The list keeps changing; run it again."
                    return
                room = self._broker.writes.llen(raw_name(key))
            if self.account.sent or self.before:
                self._note_done(key)
        except (OpsError, RedisError) as error:
            if not self.account.sent:
                raise
            self.account.halted = refusals.of(error, self._broker.target.shown_broker).message

    def _note_done(self, key: str) -> None:
        """Have the journal know that a list is done with: letters that come later are none of this run's any more."""
        receipt = {"op": "note", "role": "taken", "items": [{"a": self._action.id, "s": key, "key": key}]}
        self.primitive.call("note", self.primitive.keys(), [MOVED], receipt=receipt, about={"taken": key})

    def _chunk(self, key: str, room: int) -> list[bytes]:
        """Return the oldest letters that were not passed over, as many as are read at once."""
        wanted = min(room, self._left) if self._only.is_everything else room
        client = self._broker.writes
        used = client.memory_usage(raw_name(key), samples=_SAMPLES) or 1
        most = max(1, min(_CHUNK, wanted, _CHUNK_BYTES * max(1, client.llen(raw_name(key))) // used))
        found = client.lrange(raw_name(key), -self._passed - most, -self._passed - 1)
        return cast("list[bytes]", found)[::-1]

    def _go_through(self, key: str, chunk: Sequence[bytes]) -> int:
        """Send a chunk batch by batch, the next one prepared while the server works; return how far it was right."""
        windows = self._windows(chunk)
        done, decided = 0, self._decided(next(windows))
        while decided:
            following: list[_Decided] = []

            def prepare(into: list[_Decided] = following) -> None:
                into += self._decided(next(windows, []))

            if self._one(key, decided, prepare):
                self._left += sum(found is not None for *_, found in following)
                return done
            done, decided = done + len(decided), following
        return done

    def _windows(self, chunk: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        """Cut by number, by what they weigh on average, and where only so many a second are sent."""
        by_weight = max(1, _BATCH_BYTES * len(chunk) // sum(map(len, chunk)))
        at = 0
        while at < len(chunk):
            watch = self.primitive.watch
            most = min(by_weight, _BATCH * watch.batch // watch.MOST if watch else _BATCH)
            most = min(most, int(self._how.rate_per_s)) if self._how.rate_per_s else most
            yield chunk[at : at + max(1, most)]
            at += max(1, most)

    def _decided(self, window: Sequence[bytes]) -> list[_Decided]:
        """Decide about each letter; None for one that is not meant, or that was accounted for already."""
        if not window:
            return []
        read = [letters.read(raw) for raw in window]
        everything, known = self._only.is_everything, self._known
        meant = [
            (not known or digest(raw) not in known)
            and (everything or (isinstance(each, Letter) and self._only.fits(letters.Row(each))))
            for raw, each in zip(window, read, strict=True)
        ]
        told = Known(
            now=time.time() + self._broker.clock_offset_s,
            revoked=self._revoked[0],
            succeeded=self._succeeded([each for each, is_one in zip(read, meant, strict=True) if is_one]),
        )
        tags, ids = redriving.tags(len(window)), redriving.tags(len(window)) if self._how.new_ids else []
        decided: list[_Decided] = []
        for n, (raw, each, is_one) in enumerate(zip(window, read, meant, strict=True)):
            if not is_one or self._left <= 0:
                decided.append((raw, each, None))
                continue
            found = self._checked(redriving.decide(each, self._how, told, tag=tags[n], task_id=ids[n] if ids else ""))
            self._left -= 1
            decided.append((raw, each, found))
        return decided

    def _checked(self, found: Sending | Note) -> Sending | Note:
        """Refuse what only a look at the broker tells: a queue that can be none, a chord that is out of reach."""
        if isinstance(found, Note):
            return found
        if found.chord and self._results is None:
            return Note.CHORD_ELSEWHERE
        return found if not found.queue or self._is_queue(found.queue) else Note.UNWRITABLE

    def _is_queue(self, name: str) -> bool:
        """Whether letters may be sent there: what an entry says of its queue is only what somebody wrote."""
        if name not in self._queues:
            space = self._broker.keys
            kinds = {key_name(self._broker.reads.type(raw_name(key))) for key in space.queue_lists(name)}
            self._queues[name] = space.is_queue_name(name) and not name.endswith(DEAD) and kinds <= {"list", "none"}
        return self._queues[name]

    def _succeeded(self, read: Sequence[Letter | Unreadable]) -> set[str]:
        """Return the tasks that have succeeded by now; none where the script looks itself, in the same step."""
        if self._results is not None:
            return set()
        ids = [each.task_id for each in read if isinstance(each, Letter) and each.task_id]
        return {task_id for task_id, state in self._states.of(ids).items() if state == _SUCCESS}

    def _one(self, key: str, decided: Sequence[_Decided], meanwhile: Callable[[], None]) -> bool:
        """Send a window of letters; return whether the list has moved on, so that none of them was."""
        if not any(isinstance(found, Sending) for *_, found in decided):
            self._count(decided, STAYS * len(decided))
            meanwhile()
            return False
        self._wait()
        space = self._broker.keys
        kept = space.redriven(self.primitive.run_id, key)
        keys = self.primitive.keys(key, kept)
        numbers: dict[tuple[str, int], int] = {}
        items = [self._item(key, keys, numbers, raw, letter, found) for raw, letter, found in decided]
        away = self._results
        where = [space.database if away else "", away or "", space.result_root if away is not None else ""]
        packed = msgspec.msgpack.encode([item[:7] for item in items])
        receipt = {"op": "redrive", "role": "redrive", "list": key, "kept": kept, "columns": self._columns(keys, items)}
        answer = self.primitive.call(
            "redrive",
            keys,
            [JOURNAL_LIFE_S * 1000, self._passed, *where, space.checkpoint(""), packed],
            receipt=receipt,
            about={"list": key, "letters": sum(1 for item in items if item[1])},
            meanwhile=meanwhile,
        )
        moved_on = answer.letters[:1] == CHANGED
        self._count(decided, answer.letters)
        return moved_on

    def _item(
        self,
        key: str,
        keys: Keys,
        numbers: dict[tuple[str, int], int],
        raw: bytes,
        letter: Letter | Unreadable,
        found: Sending | Note | None,
    ) -> tuple[Any, ...]:
        """Return what the script is told of one letter, and its task's name."""
        if isinstance(letter, Letter) and letter.v == letters.VERSION:
            known = f"i{letter.entry_id}"
        else:
            known = f"s{hashlib.sha1(raw, usedforsecurity=False).hexdigest()}"
        if not isinstance(found, Sending) or not isinstance(letter, Letter):
            return known, 0, "", "", "", "", "", ""
        where = found.queue, found.priority
        if where not in numbers:
            numbers[where] = keys.number(self._list(key, *where))
        number = numbers[where]
        if found.task_id != letter.task_id and len(self.account.renamed) < _SHOWN_IDS:
            self.account.renamed.append((letter.task_id, found.task_id))
        if not found.chord:
            return known, number, found.message.decode(), letter.task_id, "", found.task_id, "", letter.task_name
        index = "" if found.index is None else f"{found.index:g}"
        group = self._broker.keys.group(found.chord)
        return known, number, found.message.decode(), letter.task_id, group, found.task_id, index, letter.task_name

    def _list(self, key: str, queue: str, priority: int) -> str:
        """Return the list that a message goes to; the one that the letters' list is named after where nobody says."""
        space = self._broker.keys
        return space.queue(queue or origin(key.removeprefix(space.prefix)), priority)

    def _columns(self, keys: Keys, items: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
        """Return the receipt of a window, of which many say the same: what was sent, and where it went."""
        places = [None, *([name, "", "", None] for name in keys.names)]
        return {
            "a": [self._action.id] * len(items),
            "s": [item[5] for item in items],
            "t": [item[7] for item in items],
            "to": [places[item[1]] for item in items],
            "sha": [hashlib.sha256(item[2].encode()).hexdigest() if item[1] else "" for item in items],
        }

    def _count(self, decided: Sequence[_Decided], said: str) -> None:
        """Account for a window: what stays is passed over from now on; where none was sent, all are looked at again."""
        for (raw, _, found), letter in zip(decided, said, strict=True):
            if letter == MOVED:
                self.account.sent += 1
                continue
            if letter == CHANGED:
                self._left += found is not None
                continue
            self._passed += 1
            self._known.add(digest(raw))
            if letter in _SAID:
                self.account.stays[_SAID[letter]] += 1
            elif isinstance(found, Note):
                self.account.stays[found] += 1

    def _wait(self) -> None:
        """Keep to the rate that was asked for: what was sent has taken as long as it should have."""
        if self._how.rate_per_s:
            due_s = self._began + self.account.sent / self._how.rate_per_s - time.monotonic()
            if due_s > 0:
                time.sleep(due_s)


def origin(name: str) -> str:
    """Return the queue whose letters a list has by its name."""
    return name.removesuffix(DEAD)


def _sent_before(primitive: Primitive, action: Action) -> int:
    """Return how many letters of an action an interrupted run had sent, which this one goes on with."""
    if not primitive.goes_on:
        return 0
    return sum(1 for _ in _sent(journals.read(primitive.broker, primitive.run_id), action.id))


def _sent(journal: journals.Journal, number: int) -> Iterator[dict[str, Any]]:
    for batch in journal.of("redrive", "redrive"):
        for n in journal.standing(batch):
            if batch.items[n].get("a") == number:
                yield batch.items[n]
