"""Dead letters → the queues that they came from, each sent and taken out of its list in one step."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from opslib import letters, pidbox, plain_letters, redriving, refusals
from opslib.collectors import results
from opslib.envelope import Unreadable, digest
from opslib.errors import OpsError
from opslib.keys import DEAD, key_name, raw_name
from opslib.letters import Letter
from opslib.plan import Action, Outcome, Redrive, Status
from opslib.redriving import REFUSALS, Known, Note
from opslib.selection import DeadSelection
from opslib.writer import journal as journals
from opslib.writer import lists
from opslib.writer.moves import CHANGED, MOVED
from opslib.writer.primitive import JOURNAL_LIFE_S, Batch, Primitive

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
_SAMPLES = 100
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


class _Item(NamedTuple):
    """
    What the script is told of one letter.

    Attributes:
        known: What knows it again: "i" and its entry id, or "s" and the sha1 of its bytes.

        number: Number of the list that its message goes to; 0 if it stays.

        was: Its task's id in the list.

        group, member, place: In a chord: key of the group, the task's id there, its index; empty for none.
    """

    known: str
    number: int
    message: str
    was: str
    group: str = ""
    member: str = ""
    place: str = ""


@dataclass(kw_only=True)
class _Window:
    """
    Some letters that lie side by side, decided about.

    Attributes:
        letters: Their entries, the oldest first.

        passed: How many letters at the served end were passed over before them.

        seed: What their tags were made of.

        notes: Why each stays; None for one that is sent, or is not meant.

        meant: How many of them are meant.

        batch: How the server is asked to send them; None if nothing is to be sent, or it was.
    """

    letters: Sequence[bytes]
    passed: int
    seed: str
    items: list[_Item]
    notes: list[Note | None]
    meant: int
    batch: Batch | None = None

    @cached_property
    def sends(self) -> int:
        """How many of them are to be sent."""
        return sum(1 for item in self.items if item.number)


class _Following:
    """The window after the one that the server works on; what hinders it is raised once somebody asks for it."""

    def __init__(self, decide: Callable[[], _Window]) -> None:
        self._decide = decide
        self._found: _Window | None = None
        self._error: Exception | None = None

    def get_ready(self) -> None:
        """Decide about it, while the server works: an error now would hide what the server answers."""
        from redis.exceptions import RedisError

        try:
            self._found = self._decide()
        except (OpsError, RedisError) as error:
            self._error = error

    @property
    def window(self) -> _Window:
        """It, once it was got ready."""
        if self._error is not None:
            raise self._error
        return cast("_Window", self._found)


class _Redriving:
    """The letters of one action, list by list."""

    def __init__(self, primitive: Primitive, action: Action) -> None:
        self.primitive, self._action = primitive, action
        self._broker: Broker = primitive.broker
        self._how = action.redrive or Redrive()
        self._only = action.letters or DeadSelection()
        self._began = time.monotonic()
        self._numbers: dict[tuple[str, int], int] = {}
        self._lists: list[str] = []
        self._states = results.States(primitive.broker)
        self._left = self._passed = self._room = 0
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
        try:
            self._room = self._broker.writes.llen(raw_name(key))
            while self._room > 0 and self._left > 0 and self._go_through(key):
                looks, self._passed = looks + 1, 0
                if looks > _LOOKS:
                    self.account.halted = "The list keeps changing; run it again."
                    return
                self._room = self._broker.writes.llen(raw_name(key))
            if self.account.sent or self.before:
                self._note_done(key)
        except (OpsError, RedisError) as error:
            if not self.account.sent:
                raise
            self.account.halted = refusals.of(error, self._broker.target.shown_broker).message

    def _go_through(self, key: str) -> bool:
        """
        Send a list window by window; return whether it has moved on, so that it is to be looked at from its end again.

        While the server works on one window, the next one is decided about and put on record; and the one after that is
        asked for right behind the script, so that the server reads it before anybody waits for it.
        """
        window = self._window(key, self._read(key, self._passed, 0), self._passed)
        try:
            beyond = self._read(key, self._passed, len(window.items))
            while window.items:
                self._room -= len(window.items)
                passed = window.passed + len(window.items) - window.sends
                following = _Following(partial(self._window, key, beyond, passed))
                ahead = self._command(key, passed, len(beyond)) if beyond else ()
                said, found = self._one(window, following.get_ready, ahead)
                if said[:1] == CHANGED:
                    self._left += following.window.meant
                    return True
                window = following.window
                if self._passed != passed:  # more of them stayed than was known before they were sent
                    window = self._window_again(key, window)
                    found = None
                beyond = self._read(key, self._passed, len(window.items)) if found is None else found[::-1]
        finally:
            self.primitive.drop()
        return False

    def _read(self, key: str, passed: int, beyond: int) -> list[bytes]:
        """Return the oldest letters that were not passed over, beyond so many of them."""
        command = self._command(key, passed, beyond)
        if not command:
            return []
        return cast("list[bytes]", self._broker.writes.lrange(raw_name(key), command[2], command[3]))[::-1]

    def _command(self, key: str, passed: int, beyond: int) -> tuple[Any, ...]:
        """
        Return how a window of letters is asked for, by number, by what letters weigh, and by the rate; empty for none.
        """
        client = self._broker.writes
        watch = self.primitive.watch
        used = client.memory_usage(raw_name(key), samples=_SAMPLES) or 1
        most = _BATCH * watch.batch // watch.MOST if watch else _BATCH
        most = min(most, _BATCH_BYTES * max(1, client.llen(raw_name(key))) // used)
        most = min(most, int(self._how.rate_per_s)) if self._how.rate_per_s else most
        wanted = min(max(1, most), self._room - beyond)
        wanted = min(wanted, self._left) if self._only.is_everything else wanted
        if wanted <= 0:
            return ()
        return "LRANGE", raw_name(key), -passed - beyond - wanted, -passed - beyond - 1

    def _note_done(self, key: str) -> None:
        """Have the journal know that a list is done with: letters that come later are none of this run's any more."""
        receipt = {"op": "note", "role": "taken", "items": [{"a": self._action.id, "s": key, "key": key}]}
        self.primitive.call("note", self.primitive.keys(), [MOVED], receipt=receipt, about={"taken": key})

    def _window(self, key: str, window: Sequence[bytes], passed: int) -> _Window:
        """Decide about each of some letters, what is sent for it or why it stays, and put that on record."""
        seed = uuid.uuid4().hex
        tags = plain_letters.tags(len(window), seed)
        items: list[_Item] = []
        notes: list[Note | None] = []
        before = self._left
        quick = self._only.is_everything and self._how in plain_letters.AS_IT_WAS and self._results is not None
        for raw, tag in zip(window, tags, strict=True):
            item = self._quick(key, raw, tag) if quick and self._left > 0 and not self._known else None
            note = None
            if item is None:
                item, note = self._decided(key, raw, tag)
            else:
                self._left -= 1
            items.append(item)
            notes.append(note)
        found = _Window(letters=window, passed=passed, seed=seed, items=items, notes=notes, meant=before - self._left)
        return self._intended(key, found)

    def _window_again(self, key: str, window: _Window) -> _Window:
        """Put letters on record again, of which more are passed over before them than was thought."""
        self.primitive.drop()
        return self._intended(key, replace(window, passed=self._passed))

    def _quick(self, key: str, raw: bytes, tag: str) -> _Item | None:
        """Return what is sent for a letter of which nothing is special; None for any other."""
        found = plain_letters.message(raw, tag)
        if found is None:
            return None
        brief, message = found
        if brief.task_id in self._revoked[0] or (brief.cause == letters.Cause.WORKER_LOST and not self._how.poison):
            return None
        number = self._number(key, brief.queue, 0)
        return _Item(f"i{brief.entry_id}", number, message, brief.task_id) if number else None

    def _decided(self, key: str, raw: bytes, tag: str) -> tuple[_Item, Note | None]:
        """Return what is sent for any letter, or that it stays, and why; nothing more for one that is not meant."""
        letter = letters.read(raw)
        known = f"s{hashlib.sha1(raw, usedforsecurity=False).hexdigest()}"
        if isinstance(letter, Letter) and letter.v == letters.VERSION:
            known = f"i{letter.entry_id}"
        stays = _Item(known, 0, "", "")
        is_meant = self._only.is_everything or (isinstance(letter, Letter) and self._only.fits(letters.Row(letter)))
        if not is_meant or self._left <= 0 or (self._known and digest(raw) in self._known):
            return stays, None
        self._left -= 1
        new_id = str(uuid.uuid4()) if self._how.new_ids else ""
        told = Known(
            now=time.time() + self._broker.clock_offset_s,
            revoked=self._revoked[0],
            succeeded=self._succeeded([letter]),
        )
        found = redriving.decide(letter, self._how, told, tag=tag, task_id=new_id)
        if isinstance(found, Note) or not isinstance(letter, Letter):
            return stays, found if isinstance(found, Note) else Note.UNREADABLE
        if found.chord and self._results is None:
            return stays, Note.CHORD_ELSEWHERE
        number = self._number(key, found.queue, found.priority)
        if not number:
            return stays, Note.UNWRITABLE
        if new_id and len(self.account.renamed) < _SHOWN_IDS:
            self.account.renamed.append((letter.task_id, new_id))
        item = _Item(known, number, found.message.decode(), letter.task_id)
        if not found.chord:
            return item, None
        place = "" if found.index is None else f"{found.index:g}"
        return item._replace(group=self._broker.keys.group(found.chord), member=found.task_id, place=place), None

    def _number(self, key: str, queue: str, priority: int) -> int:
        """
        Return the number of the list that a message goes to; 0 if that can be none.

        What an entry says of its queue is only what somebody wrote. Where nobody says, it is the one that the list of
        letters is named after.
        """
        space = self._broker.keys
        name = queue or origin(key.removeprefix(space.prefix))
        if (name, priority) not in self._numbers:
            kinds = {key_name(self._broker.reads.type(raw_name(each))) for each in space.queue_lists(name)}
            can_be = space.is_queue_name(name) and not name.endswith(DEAD) and kinds <= {"list", "none"}
            if can_be:
                self._lists.append(space.queue(name, priority))
            self._numbers[name, priority] = len(self._lists) if can_be else 0
        return self._numbers[name, priority]

    def _succeeded(self, read: Sequence[Letter | Unreadable]) -> set[str]:
        """Return the tasks that have succeeded by now; none where the script looks itself, in the same step."""
        if self._results is not None:
            return set()
        ids = [each.task_id for each in read if isinstance(each, Letter) and each.task_id]
        return {task_id for task_id, state in self._states.of(ids).items() if state == _SUCCESS}

    def _intended(self, key: str, window: _Window) -> _Window:
        """Return a window with how it is to be sent, written into the audit; one of which nothing is sent as it is."""
        if not window.sends:
            return window
        space, items = self._broker.keys, window.items
        kept = space.redriven(self.primitive.run_id, key)
        keys = self.primitive.keys(key, kept)
        base = len(keys.names)
        keys.names += self._lists
        away = self._results
        where = [space.database if away else "", away or "", space.result_root if away is not None else ""]
        columns = {"a": [self._action.id] * len(items), "to": [item.number for item in items]}
        told = {"lists": list(self._lists), "seed": window.seed, "columns": columns}
        batch = self.primitive.intend(
            "redrive",
            keys,
            [JOURNAL_LIFE_S * 1000, window.passed, base, *where, space.checkpoint(""), _packed(items)],
            receipt={"op": "redrive", "role": "redrive", "list": key, "kept": kept, **told},
            about={"list": key, "letters": window.sends},
        )
        return replace(window, batch=batch)

    def _one(self, window: _Window, meanwhile: Callable[[], None], ahead: Sequence[object]) -> tuple[str, Any]:
        """Send a window; return what became of its letters, and the answer to what was asked behind the script."""
        if window.batch is None:
            said, found = STAYS * len(window.items), None
            meanwhile()
        else:
            self._wait()
            answer = self.primitive.run(window.batch, meanwhile=meanwhile, ahead=ahead)
            said, found = answer.letters, answer.ahead
        self._count(window, said)
        return said, found

    def _count(self, window: _Window, said: str) -> None:
        """Account for a window: what stays is passed over from now on; where none was sent, all are looked at again."""
        if said[:1] == CHANGED:
            self._left += window.meant
            return
        self.account.sent += said.count(MOVED)
        if said.count(MOVED) == len(said):
            return
        for raw, note, letter in zip(window.letters, window.notes, said, strict=True):
            if letter == MOVED:
                continue
            self._passed += 1
            self._known.add(digest(raw))
            why = _SAID.get(letter, note)
            if why is not None:
                self.account.stays[why] += 1

    def _wait(self) -> None:
        """Keep to the rate that was asked for: what was sent has taken as long as it should have."""
        if self._how.rate_per_s:
            due_s = self._began + self.account.sent / self._how.rate_per_s - time.monotonic()
            if due_s > 0:
                time.sleep(due_s)


def _packed(items: Sequence[_Item]) -> bytes:
    """Return a window as the script reads it."""
    chords = [(n, each.group, each.member, each.place) for n, each in enumerate(items, 1) if each.group]
    ends = (items[0].known, items[-1].known)
    columns = ([each.number for each in items], [each.message for each in items], [each.was for each in items])
    return msgspec.msgpack.encode((ends, *columns, chords))


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
