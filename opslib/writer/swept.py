"""A filter of results, replies, groups or states → those that fit: in a vault and gone, or given a life; and back."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opslib import aging, pieces, refusals, settings
from opslib.collectors import circulation, mentions, pages, remains
from opslib.collectors import stored as collected
from opslib.errors import OpsError, Refused
from opslib.keys import key_name, raw_name
from opslib.plan import Action, Kind, Outcome, Status
from opslib.selection import CHECKPOINTS, GROUPS, REPLIES, RESULTS, ResultSelection
from opslib.writer import groups as grouped
from opslib.writer import journal as journals
from opslib.writer import lists, points, stored, vault
from opslib.writer.moves import MOVED
from opslib.writer.vault import Kept

if TYPE_CHECKING:
    from redis import Redis

    from opslib.collectors.circulation import Circulation
    from opslib.writer.journal import Batch, Journal
    from opslib.writer.primitive import Primitive

OP = "swept"
#: Nodes that answer are not waited for; of one that is only busy, a short wait would leave everything as it is.
_ANSWER_S = 5.0
_BATCH, _BATCH_BYTES = 250, 1024 * 1024
#: A value beyond this is left alone: to read it would take this machine's memory.
LARGEST_BYTES = 64 * 1024 * 1024
#: Keys that are given a life at once must not end at once: each gets up to a quarter more.
JITTER = 0.25
#: What keys are called in an outcome.
_WORDS = {RESULTS: "results", REPLIES: "replies", GROUPS: "keys of groups", CHECKPOINTS: "saved states"}
#: A string counts by its length and both its ends, as value.lua reckons.
_WHOLE = 1_048_576


@dataclass(kw_only=True)
class _Account:
    """
    What became of the keys of one action.

    Attributes:
        kept: Those that are in the vault.

        done: Those that were removed, or given a life.

        freed_bytes: What their values weighed.

        beyond: Those that fit and stay, for they are more than were planned.

        busy: Those that stay, for a task of theirs can still be run, or nobody can say that none can.
    """

    kept: int = 0
    done: int = 0
    freed_bytes: int = 0
    changed: int = 0
    gone: int = 0
    beyond: int = 0
    large: int = 0
    busy: int = 0


@dataclass(kw_only=True)
class _Work:
    """
    The keys of several actions of one kind, met in one pass.

    Attributes:
        left: How many keys each action may still have.
    """

    primitive: Primitive
    actions: Sequence[Action]
    held: Circulation
    now: float
    left: dict[int, int]
    accounts: defaultdict[int, _Account] = field(default_factory=lambda: defaultdict(_Account))
    busy: int = 0
    _began: float = field(default_factory=time.monotonic)

    @property
    def verb(self) -> str:
        return "delete" if self.actions[0].kind is Kind.DELETE else "expire"

    def bears(self) -> int:
        """Return how many keys the server may be told of at once, as it is burdened now."""
        watch = self.primitive.watch
        return max(1, _BATCH * watch.batch // watch.MOST) if watch else _BATCH

    def meant(self) -> Iterator[Kept]:
        """Yield what is to be kept of every key that an action means, as it is at this moment."""
        results = [action for action in self.actions if _of(action).what == RESULTS]
        if results:
            yield from self._results(results)
        for action in self.actions:
            what = _of(action).what
            if what == REPLIES:
                yield from self._replies(action)
            elif what == GROUPS:
                yield from self._groups(action)
            elif what == CHECKPOINTS:
                yield from self._checkpoints(action)

    def _results(self, actions: Sequence[Action]) -> Iterator[Kept]:
        broker = self.primitive.broker
        root = raw_name(broker.keys.result_root)
        for page in pages.walk(broker.reads, root, self.now):
            chosen = [(value, action) for value in page if (action := self._wanted(value, actions, len(root)))]
            for some in stored.batches(chosen, lambda each: each[0].size_bytes, pages.STEP):
                yield from self._values(broker.reads, some, len(root))

    def _wanted(self, value: pages.Value, actions: Sequence[Action], start: int) -> Action | None:
        """Return the action that means a result; none for one that cannot be read, or of a task in circulation."""
        if value.brief.state == aging.UNREADABLE:
            return None
        for action in actions:
            only = _of(action)
            written_at = aging.by_life(value.brief, value.life_s, only.expires_after_s, self.now)
            if not only.fits(value.brief, written_at, lasting=value.life_s is None):
                continue
            if key_name(value.key[start:]) in self.held:
                self.busy += 1
                return None
            return action
        return None

    def _values(self, client: Redis, some: Sequence[tuple[pages.Value, Action]], start: int) -> Iterator[Kept]:
        """Read what was chosen by its head, and judge it once more by all that it holds."""
        with client.pipeline(transaction=False) as pipe:
            asked = []
            for value, action in some:
                if value.size_bytes > LARGEST_BYTES:
                    self.accounts[action.id].large += 1
                    continue
                asked.append((value, action))
                pipe.get(value.key)
                pipe.pttl(value.key)
            replies = pipe.execute(raise_on_error=False)
        for (value, action), raw, life in zip(asked, replies[::2], replies[1::2], strict=True):
            if not isinstance(raw, bytes) or not isinstance(life, int):
                continue
            life_s = None if life < 0 else life / 1000
            # What is too long to be understood whole was understood by its ends, and both are compared by the script.
            whole = len(raw) <= pages.WHOLE_BYTES
            brief = aging.brief(raw, key_name(value.key[start:]), self.now) if whole else value.brief
            again = pages.Value(value.key, brief, len(raw), life_s)
            if (whole or len(raw) == value.size_bytes) and self._wanted(again, [action], start) and self._room(action):
                yield self._kept(action, again.key, "string", (raw,), life)

    def _replies(self, action: Action) -> Iterator[Kept]:
        for names in collected.reply_names(self.primitive.broker):
            for row in collected.idle_of(self.primitive.broker.reads, names):
                if row.idle_s is None or row.idle_s < _of(action).idle_s:
                    continue
                found = stored.read(self.primitive, key_name(row.key))
                if isinstance(found, str):
                    self.accounts[action.id].large += 1
                elif found[0].type == "list" and self._room(action):
                    life = -1 if found[0].expires_at_ms is None else max(0, found[0].expires_at_ms - self._now_ms)
                    yield self._kept(action, row.key, "list", found[0].parts, life)

    def _groups(self, action: Action) -> Iterator[Kept]:
        """Read the groups that nobody has touched, and keep those of which every member is known to be over."""
        broker, account = self.primitive.broker, self.accounts[action.id]
        root = raw_name(action.copies[0].key)
        found: dict[str, list[bytes]] = {}
        for key, weight in remains.idle_keys(broker.reads, root, _of(action).idle_s):
            group_id = remains.group_of(key, root)
            if weight is not None and (group_id in found or len(found) < remains.MOST_GROUPS):
                found.setdefault(group_id, []).append(key)
        met = mentions.read(broker.home or broker, found, timeout_s=_ANSWER_S)
        for group_id, names in found.items():
            if met.unseen or group_id in met.named or not grouped.is_over(broker.reads, root, group_id, met):
                account.busy += len(names)
                continue
            for name in names:
                yield from self._whole(action, name)

    def _whole(self, action: Action, name: bytes) -> Iterator[Kept]:
        """Keep a key of any type, if it is small enough to be compared in one step."""
        found = stored.read(self.primitive, key_name(name))
        if isinstance(found, str):
            self.accounts[action.id].large += 1
        elif self._room(action):
            kept, print_ = found
            life = -1 if kept.expires_at_ms is None else max(0, kept.expires_at_ms - self._now_ms)
            yield self._kept(action, name, kept.type, kept.parts, life, print_=print_)

    def _checkpoints(self, action: Action) -> Iterator[Kept]:
        """Keep the states that should have expired, of tasks that are over, and whose heirs are."""
        root = raw_name(action.copies[0].key)
        for name, raw in remains.lasting_strings(self.primitive.broker.reads, root):
            state = remains.past_its_life(raw, self.now)
            if state is None:
                continue
            if key_name(name[len(root) :]) in self.held or (state.resumed_as and state.resumed_as in self.held):
                self.accounts[action.id].busy += 1
            elif self._room(action):
                yield self._kept(action, name, "string", (raw,), -1)

    @property
    def _now_ms(self) -> int:
        return int((self.now + time.monotonic() - self._began) * 1000)

    def _room(self, action: Action) -> bool:
        account = self.accounts[action.id]
        if account.kept < self.left[action.id]:
            return True
        account.beyond += 1
        return False

    def _kept(
        self, action: Action, key: bytes, kind: str, parts: tuple[bytes, ...], life: int, *, print_: str = ""
    ) -> Kept:
        self.accounts[action.id].kept += 1
        until = None if life < 0 else self._now_ms + life
        note: dict[str, Any] = {"a": action.id, "was": life, "print": print_ or fingerprint(kind, parts)}
        note |= {"bytes": sum(map(len, parts))}
        return Kept(key=key, type=kind, parts=parts if self.verb == "delete" else (), expires_at_ms=until, note=note)


def sweep(primitive: Primitive, actions: Sequence[Action], path: Path) -> list[Outcome]:
    """
    Remove the keys that actions mean, or give them a life, after what undoes it is on the disk.

    Every key is judged anew, in little memory, and again in the step that changes it: a result that was written since
    stays. So does that of a task which can still be run; where that cannot be told of every task, nothing is changed.
    """
    home = primitive.broker.home or primitive.broker
    held = circulation.read(home, timeout_s=_ANSWER_S)
    if held.unseen and any(_of(action).what != REPLIES for action in actions):
        reason = f"Which tasks can still be run was not wholly seen: {' '.join(held.unseen)} Nothing was changed."
        return [Outcome(action=action, status=Status.SKIPPED, reason=reason) for action in actions]
    before = _before(primitive)
    left = {action.id: max(0, lists.most(action.count) - before[action.id]) for action in actions}
    now = primitive.broker.server_time().timestamp()
    work = _Work(primitive=primitive, actions=actions, held=held, now=now, left=left)
    header = vault.Header(
        run_id=primitive.run_id, target=primitive.broker.target.name, broker=primitive.broker.fingerprint
    )
    vault.write(path, header, work.meant())
    points.passed("after-vault")
    halted = ""
    try:
        _carry_out(work, path)
        for action in actions:
            _note_done(primitive, action)
    except (OpsError, _errors()) as error:
        if not any(account.done for account in work.accounts.values()):
            raise
        halted = refusals.of(error, primitive.broker.target.shown_broker).message
    return [_outcome(work, action, before[action.id], path, halted) for action in actions]


def fingerprint(kind: str, parts: Sequence[bytes]) -> str:
    """Return what value.lua answers for a string or a list."""
    flat = parts
    if kind == "string" and len(parts[0]) > _WHOLE:
        flat = (parts[0][: _WHOLE // 2], str(len(parts[0])).encode(), parts[0][-_WHOLE // 2 :])
    text = b"\n".join([kind.encode(), *(b"%d:%b" % (len(part), part) for part in flat)])
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()


def jittered(key: bytes, ttl_s: float) -> int:
    """Return a key's life in ms: what is asked for, and up to JITTER more, the same for the same key."""
    return max(1, int(ttl_s * 1000 * (1 + JITTER * zlib.crc32(key) / 2**32)))


def put_back(primitive: Primitive, action: Action) -> Outcome:
    """Write again what a run swept away, out of its vault, or take the lives back that it gave; what is new stays."""
    journal = journals.read(primitive.broker, primitive.run_id)
    where = action.copies[0].key
    batches = standing(journal, where)
    letters: Counter[str] = Counter()
    now_ms = int(primitive.broker.server_time().timestamp() * 1000)
    for batch, entries in _of_vault(vault_of(where), batches):
        done = [kept for kept, letter in zip(entries, batch.place(0), strict=True) if letter == MOVED]
        alive = [kept for kept in done if kept.expires_at_ms is None or kept.expires_at_ms > now_ms]
        letters["E"] += len(done) - len(alive)
        verb = "put" if batch.receipt["role"] == "delete" else "keep"
        orders = [_back(kept, verb, now_ms) for kept in alive]
        receipt = {"op": OP, "role": verb, "vault": where, "items": [{"undoes": [batch.number, 0]}]}
        letters.update(_call(primitive, verb, alive, orders, receipt, where))
    back = letters[MOVED]
    said = [f"{back:,} are as they were."] if back else []
    said += [f"{letters['E']:,} would have expired meanwhile."] if letters["E"] else []
    left = letters["X"] + letters["C"] + letters["G"]
    said += [f"{left:,} were written again meanwhile, or are gone, and were left as they are."] if left else []
    status = Status.APPLIED if back or not left else Status.SKIPPED
    return Outcome(action=action, status=status, reason=" ".join(said) or "Nothing was left to put back.")


def standing(journal: Journal, where: str) -> list[Batch]:
    """Return the batches whose keys a vault keeps and that were not put back yet, in the order of the vault."""
    found = [batch for batch in journal.batches if batch.receipt.get("op") == OP and batch.receipt["vault"] == where]
    found = [batch for batch in found if journal.standing(batch)]
    return sorted(found, key=lambda batch: int(batch.items[0]["from"]))


def count_of(batch: Batch) -> int:
    """Return how many keys a batch has changed."""
    return batch.place(0).count(MOVED)


def vault_of(where: str) -> Path:
    """
    Return the path of a vault that a journal names.

    Raises:
        Refused: If that is outside the archive.
    """
    root = settings.reports_root()
    path = root / where
    if not path.resolve().is_relative_to(root.resolve()):
        raise Refused(f"The journal names a vault outside the archive: {where}.")
    return path


def _errors() -> type[Exception]:
    from redis.exceptions import RedisError

    return RedisError


def _of(action: Action) -> ResultSelection:
    return cast("ResultSelection", action.results)


def _carry_out(work: _Work, path: Path) -> None:
    """Go through the vault, and change what it keeps."""
    where = str(path.relative_to(settings.reports_root()))
    ttl = {action.id: action.ttl_s or 0.0 for action in work.actions}
    _, entries = vault.read(path)
    at = 0
    for some in pieces.cut(entries, lambda kept: int(kept.note["bytes"]), most_bytes=_BATCH_BYTES, most=work.bears):
        orders = [
            (
                kept.type,
                kept.note["print"],
                kept.note["was"],
                jittered(kept.key, ttl[kept.note["a"]]) if work.verb == "expire" else "",
                0,
            )
            for kept in some
        ]
        planned = Counter(str(kept.note["a"]) for kept in some)
        receipt = {
            "op": OP,
            "role": work.verb,
            "vault": where,
            "items": [{"from": at, "count": len(some), "of": planned, "s": work.actions[0].subject}],
        }
        letters = _call(work.primitive, work.verb, some, orders, receipt, where)
        for kept, letter in zip(some, letters, strict=True):
            account = work.accounts[kept.note["a"]]
            if letter == MOVED:
                account.done += 1
                account.freed_bytes += int(kept.note["bytes"])
            elif letter == "G":
                account.gone += 1
            else:
                account.changed += 1
        at += len(some)


def _call(
    primitive: Primitive,
    verb: str,
    some: Sequence[Kept],
    orders: Sequence[tuple[Any, ...]],
    receipt: dict[str, Any],
    where: str,
) -> str:
    keys = primitive.keys(*(key_name(kept.key) for kept in some))
    values = [verb, *(value for order in orders for value in order)]
    about = {verb: f"{len(some)} keys", "vault": where}
    return "".join(primitive.call("sweep", keys, values, receipt=receipt, about=about).seen)


def _back(kept: Kept, verb: str, now_ms: int) -> tuple[Any, ...]:
    if verb == "keep":
        return kept.type, kept.note["print"], "", "", 0
    life = "" if kept.expires_at_ms is None else max(1, kept.expires_at_ms - now_ms)
    return kept.type, "", "", life, len(kept.parts), *kept.parts


def _of_vault(path: Path, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Kept]]]:
    """
    Yield each batch with its entries of a vault, in little memory.

    Raises:
        Refused: If the vault is missing or damaged, or holds fewer.
    """
    _, entries = vault.read(path)
    at = 0
    for batch in batches:
        start, count = int(batch.items[0]["from"]), int(batch.items[0]["count"])
        some = []
        for kept in entries:
            at += 1
            if at > start:
                some.append(kept)
            if at == start + count:
                break
        if len(some) != count:
            raise Refused(f"The vault {path} does not hold what was removed; nothing more was put back.")
        yield batch, some


def _before(primitive: Primitive) -> Counter[int]:
    """Return how many keys of each action an interrupted run had dealt with, which this one goes on with."""
    found: Counter[int] = Counter()
    if primitive.goes_on:
        for batch in journals.read(primitive.broker, primitive.run_id).batches:
            if batch.receipt.get("op") == OP:
                for number, count in batch.items[0].get("of", {}).items():
                    found[int(number)] += int(count)
    return found


def _note_done(primitive: Primitive, action: Action) -> None:
    """Have the journal know that an action is done with: what comes later is none of this run's any more."""
    key = action.copies[0].key
    receipt = {"op": "note", "role": "taken", "items": [{"a": action.id, "s": action.subject, "key": key}]}
    primitive.call("note", primitive.keys(), [MOVED], receipt=receipt, about={"taken": key})


def _outcome(work: _Work, action: Action, before: int, path: Path, halted: str) -> Outcome:
    account = work.accounts[action.id]
    what = _WORDS[_of(action).what]
    if work.verb == "delete":
        done = f"{account.done:,} {what} were removed, {account.freed_bytes:,} bytes of values, kept in {path.name}."
    else:
        done = f"{account.done:,} {what} were given a life of {action.ttl_s:,.0f} s and up to a quarter more."
    said = [done] if account.done or not account.changed + account.gone + account.beyond + account.busy else []
    said += [f"{before:,} had been dealt with before the run was interrupted."] if before else []
    said += [f"{account.changed:,} were written again meanwhile, and stay."] if account.changed else []
    said += [f"{account.gone:,} were gone already."] if account.gone else []
    said += [f"{account.beyond:,} more fit than were planned, and stay: run it again."] if account.beyond else []
    said += [f"{account.large:,} are too large to be kept, and stay."] if account.large else []
    said += [f"{account.busy:,} stay: it is not proven that every task of theirs is over."] if account.busy else []
    if halted:
        return Outcome(action=action, status=Status.FAILED, reason=" ".join([*said, halted]))
    if not account.done and not before:
        reason = (
            " ".join(said)
            if said and (account.changed or account.gone or account.large or account.busy)
            else "None is left."
        )
        return Outcome(action=action, status=Status.SKIPPED, reason=reason)
    return Outcome(action=action, status=Status.APPLIED, reason=" ".join(said))
