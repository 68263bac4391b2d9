"""Dead letters → the queues that they came from, each sent and taken out of its list in one step."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

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
from opslib.writer.primitive import JOURNAL_LIFE_S, Primitive

if TYPE_CHECKING:
    from opslib.broker import Broker

STAYS, NO_CHORD = "S", "K"
_ANSWER_S = 2.0
#: So often a list is looked at from its end again, because somebody else took letters of it or its bound did.
_LOOKS = 20
_SHOWN_IDS = 50
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
    unheard = f" {work.unheard} did not say which ids are revoked." if work.unheard else ""
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
        self._primitive, self._action = primitive, action
        self._broker: Broker = primitive.broker
        self._how = action.redrive or Redrive()
        self._only = action.letters or DeadSelection()
        self._began = time.monotonic()
        self._queues: dict[str, bool] = {}
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
        """How many nodes did not say what is revoked, as words; empty for none."""
        count = self._revoked[1]
        return f"{count} node{'s' * (count != 1)}" if count else ""

    @cached_property
    def _chords(self) -> str | None:
        """Number of the database in which chords are counted, empty for the broker's own; None on another server."""
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

        room = self._broker.writes.llen(raw_name(key))
        most = min(lists.most(planned) - self.before, self._only.limit - self.before if self._only.limit else room)
        passed, looks, known = 0, 0, set[str]()
        try:
            while room > 0 and most > 0:
                window = self._window(key, passed, min(room, most) if self._only.is_everything else room)
                if not window:
                    return
                decided = self._decided(window, known, most)
                moved_on, sent, stays = self._one(key, decided, passed)
                if moved_on:
                    looks, passed = looks + 1, 0
                    if looks > _LOOKS:
                        self.account.halted = "The list keeps changing; run it again."
                        return
                    room = self._broker.writes.llen(raw_name(key))
                    continue
                most, passed, room = most - sent, passed + len(stays), room - len(window)
                known.update(digest(raw) for raw in stays)
        except (OpsError, RedisError) as error:
            if not self.account.sent:
                raise
            self.account.halted = refusals.of(error, self._broker.target.shown_broker).message

    def _window(self, key: str, passed: int, wanted: int) -> list[bytes]:
        """Return the oldest letters that were not passed over; few at once, where only so many a second are sent."""
        pace = max(1, int(self._how.rate_per_s)) if self._how.rate_per_s else wanted
        return lists.served_end(self._primitive, key, min(wanted, pace), passed)

    def _decided(self, window: Sequence[bytes], known: set[str], most: int) -> list[_Decided]:
        """Decide about each letter; None for one that is not meant, or that was accounted for already."""
        read = [letters.read(raw) for raw in window]
        everything = self._only.is_everything
        meant = [
            (not known or digest(raw) not in known)
            and (everything or (isinstance(each, Letter) and self._only.fits(letters.Row(each))))
            for raw, each in zip(window, read, strict=True)
        ]
        told = Known(
            now=self._broker.server_time().timestamp(),
            revoked=self._revoked[0],
            succeeded=self._succeeded([each for each, is_one in zip(read, meant, strict=True) if is_one]),
        )
        tags, ids = redriving.tags(len(window)), redriving.tags(len(window)) if self._how.new_ids else []
        decided: list[_Decided] = []
        for n, (raw, each, is_one) in enumerate(zip(window, read, meant, strict=True)):
            if not is_one or most <= 0:
                decided.append((raw, each, None))
                continue
            found = self._checked(redriving.decide(each, self._how, told, tag=tags[n], task_id=ids[n] if ids else ""))
            most -= isinstance(found, Sending)
            decided.append((raw, each, found))
        return decided

    def _checked(self, found: Sending | Note) -> Sending | Note:
        """Refuse what only a look at the broker tells: a queue that can be none, a chord that is out of reach."""
        if isinstance(found, Note):
            return found
        if found.chord and self._chords is None:
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
        """Return the tasks that have succeeded by now: what has run is not sent again."""
        ids = [each.task_id for each in read if isinstance(each, Letter) and each.task_id]
        return {task_id for task_id, state in results.states(self._broker, ids) if state == _SUCCESS}

    def _one(self, key: str, decided: Sequence[_Decided], passed: int) -> tuple[bool, int, list[bytes]]:
        """Send a window of letters; return whether the list has moved on, how many were sent, and those that stay."""
        if not any(isinstance(found, Sending) for *_, found in decided):
            self._count(decided, STAYS * len(decided))
            return False, 0, [raw for raw, *_ in decided]
        self._wait()
        space = self._broker.keys
        kept = space.redriven(self._primitive.run_id, key)
        keys = self._primitive.keys(key, kept)
        needs_chords = any(isinstance(found, Sending) and found.chord for *_, found in decided)
        chords = self._chords or "" if needs_chords else ""
        values: list[bytes | str | float] = [JOURNAL_LIFE_S * 1000, passed, space.database if chords else "", chords]
        items = [item for raw, letter, found in decided for item in [self._item(key, keys, values, raw, letter, found)]]
        receipt = {"op": "redrive", "role": "redrive", "list": key, "kept": kept, "items": items}
        about = {"list": key, "letters": sum(map(bool, items))}
        answer = self._primitive.call("redrive", keys, values, receipt=receipt, about=about)
        if answer.letters[:1] == CHANGED:
            return True, 0, []
        self._count(decided, answer.letters)
        stays = [raw for (raw, *_), letter in zip(decided, answer.letters, strict=True) if letter != MOVED]
        return False, len(decided) - len(stays), stays

    def _item(
        self,
        key: str,
        keys: Any,  # noqa: ANN401
        values: list[bytes | str | float],
        raw: bytes,
        letter: Letter | Unreadable,
        found: Sending | Note | None,
    ) -> dict[str, object]:
        """Add what the script is told of one letter; return what its receipt says, nothing for one that stays."""
        if isinstance(letter, Letter) and letter.v == letters.VERSION:
            values.append(f"i{letter.entry_id}")
        else:
            values.append(f"s{hashlib.sha1(raw, usedforsecurity=False).hexdigest()}")
        if not isinstance(found, Sending) or not isinstance(letter, Letter):
            values += [0, b"", "", "", ""]
            return {}
        space = self._broker.keys
        to = space.queue(found.queue or _origin(key.removeprefix(space.prefix)), found.priority)
        index = "" if found.index is None else f"{found.index:g}"
        group = [space.group(found.chord), found.task_id, index] if found.chord else ["", "", ""]
        values += [keys.number(to), found.message, *group]
        sha = hashlib.sha256(found.message).hexdigest()
        item = {"a": self._action.id, "s": found.task_id, "t": letter.task_name, "to": [to, "", "", None], "sha": sha}
        if found.task_id != letter.task_id and len(self.account.renamed) < _SHOWN_IDS:
            self.account.renamed.append((letter.task_id, found.task_id))
        return item

    def _count(self, decided: Sequence[_Decided], said: str) -> None:
        for (_, _, found), letter in zip(decided, said, strict=True):
            if letter == MOVED:
                self.account.sent += 1
            elif letter == NO_CHORD:
                self.account.stays[Note.CHORD_UNKNOWN] += 1
            elif isinstance(found, Note):
                self.account.stays[found] += 1

    def _wait(self) -> None:
        """Keep to the rate that was asked for: what was sent has taken as long as it should have."""
        if self._how.rate_per_s:
            due_s = self._began + self.account.sent / self._how.rate_per_s - time.monotonic()
            if due_s > 0:
                time.sleep(due_s)


def _origin(name: str) -> str:
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
