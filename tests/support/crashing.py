"""A place in a run and a way to die there → a run that was cut off, and everything that has to be true of it then."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from opslib import checkpoints, direct, folders, records, session
from opslib import plan as plans
from opslib.broker import Broker, connect
from opslib.checkpoints import Document
from opslib.collectors import queues
from opslib.collectors.deployment import collect as _load  # noqa: F401 - forked processes find it loaded
from opslib.envelope import digest
from opslib.errors import NotFound, OpsError, Refused
from opslib.plan import Action, Copy, Kind, Outcome, Plan, Status
from opslib.render import report
from opslib.rewrite import fresh
from opslib.selection import ResultSelection, Selection
from opslib.settings import Target
from opslib.symptoms import asked
from opslib.writer import (
    apply,
    audited,
    lists,
    lock,
    moves,
    points,
    primitive,
    putback,
    repair,
    resume,
    selected,
    sent,
    stop,
    stored,
    swept,
    undo,
    vault,
    verify,
)
from opslib.writer import journal as journals
from opslib.writer import watch as watching
from tests.support.plans import audit, planned, purge_of
from tests.support.seed import KEYS, Seeded, seed_unacked, seed_waiting
from tests.support.waiting import until

NAME = "trial"
_DEADLINE_S = 60.0
#: Scores of deliveries, the same in every run; what is indexed now has a later one.
_LONG_AGO, _LATE = 1_700_000_000.0, 1_750_000_000.0
#: Two lives are the same if they end within this.
_SAME_LIFE_MS = 20_000

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


# Where


@dataclass(frozen=True, kw_only=True)
class Cut:
    """
    A place at which a run is cut off.

    Attributes:
        point: As `points.passed` is told, or one of HOOKS.

        nth: Which passing of it.
    """

    point: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.point}{f'-{self.nth}' if self.nth > 1 else ''}"


def cut(text: str) -> Cut:
    """Return the place that a text names: "after-intent-2"."""
    name, _, number = text.rpartition("-")
    return Cut(point=name, nth=int(number)) if number.isdigit() else Cut(point=text)


class Crash(RuntimeError):
    """Raised at a point: an error that nobody expects."""


class _Cutter:
    """Does something at one place, once."""

    def __init__(self, where: Cut, deed: Callable[[], None]) -> None:
        self._where, self._deed = where, deed
        self._passed = 0
        self.done = False

    def __call__(self, point: str) -> None:
        if point != self._where.point or self.done:
            return
        self._passed += 1
        if self._passed == self._where.nth:
            self.done = True
            self._deed()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen for the time of a `with` block."""
        points.watchers.append(self)
        with _hooks(self):
            try:
                yield
            finally:
                points.watchers.remove(self)


@contextmanager
def _hooks(told: Callable[[str], None]) -> Iterator[None]:
    """Tell of those places too that lie in the middle of something."""

    def torn(path: Path, point: str) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        try:
            told(point)
        finally:
            if path.exists():
                path.write_bytes(content)

    def flushed(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}")
        if folders.PLAN in str(name.resolve()):
            torn(name.resolve(), "in-plan-file")
        fsync(handle)

    def compared(temporary: Path, *others: Any) -> None:
        torn(temporary, "in-vault")
        compare(temporary, *others)

    def looked_for(*arguments: Any) -> Any:
        told("in-verify")
        return missing(*arguments)

    def collected(*arguments: Any, **options: Any) -> Any:
        told("in-look")
        return collect(*arguments, **options)

    def reported(*arguments: Any, **options: Any) -> Any:
        told("in-report")
        return write_report(*arguments, **options)

    from opslib.collectors import deployment

    fsync, compare, missing = os.fsync, vault._compare, verify._missing
    collect, write_report = deployment.collect, report.write_report
    places: list[tuple[Any, str, Callable[..., Any], Any]] = [
        (os, "fsync", flushed, fsync),
        (vault, "_compare", compared, compare),
        (verify, "_missing", looked_for, missing),
        (deployment, "collect", collected, collect),
        (report, "write_report", reported, write_report),
    ]
    for owner, name, new, _ in places:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, _, old in places:
            setattr(owner, name, old)


#: What makes a handful of messages as many batches as a thousand would be, and a short list a long one.
_SMALL: tuple[tuple[Any, str, float], ...] = (
    (moves, "BATCH_MOVES", 2),
    (selected, "BATCH_MOVES", 4),
    (sent, "BATCH_MOVES", 2),
    (stored, "_PER_BATCH", 2),
    (repair, "_PER_BATCH", 2),
    (watching, "_FIRST", 6),
    (watching, "_MOST", 6),
    (lists, "_WINDOW", 6),
    (lists, "SEARCHABLE", 20),
    (putback, "_PER_GO", 3),
    (swept, "_BATCH", 3),
    (watching, "_LONGEST_PAUSE_S", 1.0),
    (stop, "_PAUSE_S", 0.0),
)


@contextmanager
def small() -> Iterator[None]:
    """Have small batches for the time of a `with` block."""
    before = [getattr(owner, name) for owner, name, _ in _SMALL]
    for owner, name, value in _SMALL:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(_SMALL, before, strict=True):
            setattr(owner, name, value)


# What


class Field:
    """Puts messages and keys into a server, the same ones each time, and says what a plan says of them."""

    def __init__(self, redis: Redis) -> None:
        self._redis, self._count = redis, 0

    def waiting(self, queue: str, *, priority: int = 0, task_id: str = "", task: str = "tests.ok") -> Seeded:
        """Publish a message that is like no other."""
        return seed_waiting(self._redis, task, queue=queue, priority=priority, **self._own(task_id))

    def fresh(self, queue: str) -> Action:
        """Return the publishing of a message, the same each time but for its own tags."""
        task_id = self._own("")["task_id"]
        message = fresh("tests.ok", [self._count], {}, task_id=task_id, queue=queue, priority=self._count % 4).decode()
        return Action(kind=Kind.SEND, subject=task_id, source="ops", destination=queue, message=message)

    def checkpoint(self, life_s: int | None) -> tuple[str, Copy]:
        """Save a task's state; return its id, and what a plan says of the state."""
        task_id = self._own("")["task_id"]
        document = Document(task_id=task_id, task="tests.ok", args=[self._count], kwargs={}, results={"done": 3})
        key, raw = KEYS.checkpoint(task_id), checkpoints.write(document)
        self._redis.set(key, raw, ex=life_s)
        return task_id, Copy(place="state", key=key, sha256=digest(raw))

    def unacked(self, queue: str, *, task_id: str = "") -> Seeded:
        """Leave a message delivered, long ago."""
        seeded = seed_unacked(self._redis, queue=queue, **self._own(task_id))
        score = _LONG_AGO + self._count
        self._redis.zadd(KEYS.unacked_index, {seeded.tag: score})
        return replace(seeded, score=score)

    def set(self, name: str, kind: str, life_s: int | None) -> str:
        """Write a key."""
        write: dict[str, Callable[[], object]] = {
            "string": lambda: self._redis.set(name, b"\x00\xff" * 50),
            "hash": lambda: self._redis.hset(name, mapping={f"f{n}": n for n in range(9)}),
            "list": lambda: self._redis.rpush(name, *range(9)),
            "set": lambda: self._redis.sadd(name, *range(9)),
            "zset": lambda: self._redis.zadd(name, {f"m{n}": n / 7 for n in range(9)}),
        }
        write[kind]()
        if life_s:
            self._redis.expire(name, life_s)
        return name

    def entry(self, key: str, *, is_on: bool) -> Copy:
        """Write an entry of a schedule as redbeat does, and return how a plan names it."""
        raw = json.dumps({"name": key, "task": "tests.ok", "args": [1], "enabled": is_on})
        self._redis.hset(key, mapping={"definition": raw, "meta": "{}"})
        return Copy(place="entry", key=key, sha256=digest(raw.encode()))

    def result(self, task: str, n: int, life_s: int | None) -> str:
        """Store the result of a task that succeeded long ago."""
        task_id = f"{task}-{n}"
        done = datetime.fromtimestamp(_LONG_AGO, UTC).isoformat()
        value = {"status": "SUCCESS", "result": n, "date_done": done, "name": task, "task_id": task_id}
        self._redis.set(KEYS.result(task_id), json.dumps(value), ex=life_s)
        return KEYS.result(task_id)

    def remove(self, seeded: Seeded, *, from_hash: bool) -> Seeded:
        """Have hash and index disagree about a delivered message."""
        if from_hash:
            self._redis.hdel(KEYS.unacked, seeded.tag)
        else:
            self._redis.zrem(KEYS.unacked_index, seeded.tag)
        return seeded

    @cached_property
    def broker(self) -> Broker:
        """The server, to look at."""
        return connect(Target(name=NAME, broker_url=_url(self._redis)))

    def purge(self, queue: str) -> Action:
        """Return the purge of a queue as it is now."""
        return purge_of(self.broker, queue)

    def _own(self, task_id: str) -> dict[str, Any]:
        self._count += 1
        n = self._count
        return {"task_id": task_id or f"{n:08d}-0000-4000-8000-000000000000", "tag": f"tag-{n:04}", "args": (n,)}


def _url(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return f"redis://:{options['password']}@127.0.0.1:{options['port']}/0"


def _action(kind: Kind, *copies: Seeded, to: str = "quarantine") -> Action:
    first = copies[0]
    return Action(
        kind=kind,
        subject=first.task_id,
        source=first.queue,
        destination=to,
        task="tests.ok",
        copies=tuple(_copy(each) for each in copies),
    )


def _copy(of: Seeded) -> Copy:
    if of.key == KEYS.unacked:
        place = {"place": "unacked", "key": of.key, "delivery_tag": of.tag, "score": of.score}
    else:
        place = {"place": "waiting", "key": of.key}
    return Copy(queue=of.queue, sha256=of.sha256, **place)  # type: ignore[arg-type]


Maker = Callable[[Field], list[Action]]
#: A filter, and the same for fewer than fit it.
_MEANT, _FEW = Selection(task="shop.*"), Selection(task="shop.*", limit=17)


def _restore(field: Field) -> list[Action]:
    for _ in range(3):
        field.waiting("back")
    dead = [field.unacked("back") for _ in range(7)]
    return [_action(Kind.RESTORE, dead[n], to="back") for n in (0, 1, 3, 4, 6)]


def _quarantine(field: Field) -> list[Action]:
    waiting = [field.waiting("out") for _ in range(7)]
    other = field.waiting("out", task_id=waiting[4].task_id)
    third = field.unacked("out", task_id=waiting[4].task_id)
    dead, _ = field.unacked("out"), field.unacked("out")
    alone = [_action(Kind.QUARANTINE, each) for each in (waiting[0], waiting[3], waiting[6], dead)]
    return [*alone[:3], _action(Kind.QUARANTINE, waiting[4], other, third), alone[3]]


def _move(field: Field) -> list[Action]:
    waiting = [field.waiting("from") for _ in range(8)]
    field.waiting("slow")
    return [_action(Kind.MOVE, waiting[n], to="slow") for n in (0, 7, 3, 4, 1)]


def _reorder(field: Field) -> list[Action]:
    waiting = [field.waiting("line") for _ in range(8)]
    ways = zip((1, 5, 7, 3, 0, 2), ("next", "last", "2", "next", "4", "last"), strict=True)
    return [_action(Kind.REORDER, waiting[n], to=to) for n, to in ways]


def _purge(field: Field) -> list[Action]:
    for queue in ("bulk", "junk", "dust"):
        for _ in range(4):
            field.waiting(queue)
        field.waiting(queue, priority=6)
    return [field.purge(queue) for queue in ("bulk", "junk", "dust")]


def _sieve(field: Field) -> list[Action]:
    waiting = [field.waiting("long") for _ in range(25)]
    again = field.waiting("long", task_id=waiting[2].task_id)
    assert again
    chosen = [waiting[n] for n in (2, 9, 10, 24)]
    return [
        Action(kind=Kind.STOP, subject=each.task_id, source="long", destination="quarantine", copies=())
        for each in chosen
    ]


def _deep(kind: Kind, *to: str) -> Maker:
    """Return what takes some messages from near the end that is served, and some from where only a pass finds them."""

    def make(field: Field) -> list[Action]:
        waiting = [field.waiting("long") for _ in range(26)]
        places = (3, 14, 13, 19, 12, 5)
        return [_action(kind, waiting[n], to=to[n % len(to)]) for n in places]

    return make


def _delete(field: Field) -> list[Action]:
    kinds = (("string", None), ("hash", 3600), ("list", None), ("set", 3600), ("zset", None), ("string", 3600))
    names = [field.set(f"celery-task-meta-{n}", kind, life) for n, (kind, life) in enumerate(kinds)]
    field.set("celery-task-meta-stays", "string", None)
    return [
        Action(kind=Kind.DELETE, subject=name, source=name, destination="vault", copies=(Copy(place="key", key=name),))
        for name in names
    ]


def _expire(field: Field) -> list[Action]:
    names = [field.set(f"old-{n}", "string", life) for n, life in enumerate((None, 3600, None, 3600, 3600))]
    lives = (-1.0, 3600.0, -1.0, 3600.0, 3600.0)
    return [
        Action(
            kind=Kind.EXPIRE,
            subject=name,
            source=name,
            destination=name,
            copies=(Copy(place="key", key=name, life_s=life),),
            ttl_s=600.0,
        )
        for name, life in zip(names, lives, strict=True)
    ]


def _repair(field: Field) -> list[Action]:
    lost = [field.remove(field.unacked("kept"), from_hash=False) for _ in range(3)]
    named = [field.remove(field.unacked("kept"), from_hash=True) for _ in range(2)]
    field.unacked("kept")
    found = [(each, "unacked", None) for each in lost] + [(each, "index", each.score) for each in named]
    return [
        Action(
            kind=Kind.REPAIR,
            subject=each.task_id,
            source="unacked",
            destination="unacked",
            copies=(Copy(place=place, key=KEYS.unacked, delivery_tag=each.tag, score=score),),
        )
        for each, place, score in found
    ]


def _mixed(field: Field, queue: str, count: int) -> None:
    """Fill two lists of a queue, every other message with one that a filter means."""
    for n in range(count):
        field.waiting(queue, priority=3 * (n // 2 % 2), task="shop.order" if n % 2 else "tests.ok")


def _lengths(field: Field, queue: str, only: Selection | None = None) -> Mapping[str, int]:
    """Return how many messages of each of a queue's lists are meant."""
    listings, _ = queues.lists(field.broker, [queue])
    listings.sort(key=lambda each: each.priority)
    return queues.meant(field.broker, listings, only) if only else {each.key: each.length for each in listings}


def _move_queue(field: Field) -> list[Action]:
    _mixed(field, "whole", 22)
    field.waiting("elsewhere", priority=3)
    return asked.move("whole", "elsewhere", _lengths(field, "whole"))


def _purge_some(queue: str, count: int) -> Maker:
    """Return what purges by a filter; of many messages it sieves the list."""

    def make(field: Field) -> list[Action]:
        _mixed(field, queue, count)
        return asked.purge(queue, _lengths(field, queue, _MEANT), _MEANT)

    return make


def _move_some(field: Field) -> list[Action]:
    _mixed(field, "part", 46)
    field.waiting("apart")
    return asked.move("part", "apart", _lengths(field, "part", _FEW), _FEW)


def _expedite(field: Field) -> list[Action]:
    _mixed(field, "urgent", 34)
    return asked.expedite("urgent", _lengths(field, "urgent", _MEANT), _MEANT)


def _expedite_some(field: Field) -> list[Action]:
    _mixed(field, "pressing", 46)
    return asked.expedite("pressing", _lengths(field, "pressing", _FEW), _FEW)


def _send(field: Field) -> list[Action]:
    field.waiting("sent")
    return [field.fresh("sent") for _ in range(7)]


def _handover(field: Field) -> list[Action]:
    sends = [field.fresh("onward") for _ in range(5)]
    states = [field.checkpoint(life_s) for life_s in (3600, None, 3600, None, 3600)]
    return [
        *(
            Action(kind=Kind.HANDOVER, subject=task_id, source="checkpoint", destination=send.subject, copies=(copy,))
            for (task_id, copy), send in zip(states, sends, strict=True)
        ),
        *sends,
    ]


def _switch(field: Field) -> list[Action]:
    return [
        Action(kind=Kind.SWITCH, subject=key, source=key, destination=to, copies=(field.entry(key, is_on=to == "off"),))
        for key, to in ((f"redbeat:entry-{n}", ("on", "off")[n % 2]) for n in range(5))
    ]


def _sweep(field: Field) -> list[Action]:
    """Results past their retention, to be removed; and others that never expire, to be given a life."""
    for n in range(10):
        field.result("tests.old", n, 3600 if n % 3 else 7200)
        field.result("tests.lasting", n, None)
        field.result("tests.stays", n, 3600)
    root = KEYS.result_root
    common = {"subject": f"{root}*", "source": "results", "destination": "vault"}
    copy = Copy(place="results", key=root, count=10)
    old = ResultSelection(rule="tests.old", written_by=_LONG_AGO + 1, lasting=False)
    lasting = ResultSelection(rule="tests.lasting", lasting=True)
    return [
        Action(kind=Kind.DELETE, copies=(copy,), results=old, **common),
        Action(kind=Kind.EXPIRE, copies=(copy,), results=lasting, ttl_s=3600.0, **common),
    ]


VERBS: dict[str, Maker] = {
    "restore": _restore,
    "quarantine": _quarantine,
    "purge": _purge,
    "move": _move,
    "reorder": _reorder,
    "delete": _delete,
    "expire": _expire,
    "repair": _repair,
    "sieve": _sieve,
    "quarantine-deep": _deep(Kind.QUARANTINE, "quarantine"),
    "move-deep": _deep(Kind.MOVE, "slow"),
    "reorder-deep": _deep(Kind.REORDER, "next", "last", "3"),
    "move-queue": _move_queue,
    "purge-some": _purge_some("mixed", 30),
    "purge-some-deep": _purge_some("mingled", 46),
    "move-some-deep": _move_some,
    "expedite": _expedite,
    "expedite-deep": _expedite_some,
    "send": _send,
    "handover": _handover,
    "switch": _switch,
    "sweep": _sweep,
}


def _everything(field: Field) -> list[Action]:
    return [action for make in VERBS.values() for action in make(field)]


MAKERS = {**VERBS, "everything": _everything}
#: What these do changes the bytes of a message, on purpose.
_REWRITING = frozenset(
    {"restore", "move", "move-deep", "move-queue", "move-some-deep", "expedite", "expedite-deep", "everything"}
)


# What is there


@dataclass(frozen=True, kw_only=True)
class Seen:
    """
    What is in a database.

    Attributes:
        values: Of every key but this tool's own and the control plane's.

        lives: In how many ms they expire; of those that do.

        kept: Messages in quarantine, by queue, in no order.

        messages: Whatever list or hash holds them, this tool's too, how often each is there.
    """

    values: Mapping[str, Any]
    lives: Mapping[str, int]
    kept: Mapping[str, Counter[bytes]]
    messages: Counter[bytes]


def look(redis: Redis) -> Seen:
    """Return what is in a database."""
    values: dict[str, Any] = {}
    lives: dict[str, int] = {}
    kept: dict[str, Counter[bytes]] = {}
    messages: Counter[bytes] = Counter()
    for name in sorted(redis.scan_iter()):
        key, value = name.decode(), _value(redis, name)
        if "pidbox" in key:
            continue
        if isinstance(value, list) and not key.startswith("celery-task-meta"):
            messages.update(value)
        elif key == KEYS.unacked:
            messages.update(value.values())
        if found := KEYS.quarantined(key):
            kept[found[1]] = kept.get(found[1], Counter()) + Counter(value)
        elif "opslib:" not in key or key.startswith(KEYS.checkpoint_root):
            values[key] = value
            if (life := redis.pttl(name)) >= 0:
                lives[key] = life
    return Seen(values=values, lives=lives, kept=kept, messages=messages)


def _value(redis: Redis, name: bytes) -> Any:
    read: dict[bytes, Callable[[], Any]] = {
        b"string": lambda: redis.get(name),
        b"list": lambda: redis.lrange(name, 0, -1),
        b"hash": lambda: redis.hgetall(name),
        b"set": lambda: sorted(redis.smembers(name)),
        b"zset": lambda: dict(redis.zrange(name, 0, -1, withscores=True)),
        b"stream": lambda: redis.xlen(name),
    }
    return read[redis.type(name)]()


def bodies(messages: Counter[bytes]) -> Counter[str]:
    """Return the messages by what no change alters: their arguments."""
    return sum((Counter({_body(raw): count}) for raw, count in messages.items()), Counter())


def _body(raw: bytes) -> str:
    found = json.loads(raw)
    envelope = found[0] if isinstance(found, list) else found
    return str(envelope["body"])


def settled(seen: Seen) -> tuple[object, ...]:
    """Return what is the same at the end of a run, however often it was cut off: all but what is new each time."""
    values = {key: _settled(value) for key, value in seen.values.items()}
    return values, {queue: sorted(map(_lasting, some.elements())) for queue, some in seen.kept.items()}


def _settled(value: Any) -> object:
    if isinstance(value, list):
        return [_lasting(raw) for raw in value]
    if isinstance(value, dict):
        return {name: _lasting(each) if isinstance(each, bytes) else _then(each) for name, each in value.items()}
    return value


def _then(score: float) -> float:
    return min(score, _LATE)


def _lasting(raw: bytes) -> str:
    """Return a message without what chance decides."""
    try:
        message = json.loads(raw)
        properties = (message[0] if isinstance(message, list) else message)["properties"]
    except (ValueError, TypeError, KeyError):
        return repr(raw)
    properties |= {"delivery_tag": "", "reply_to": ""}
    return json.dumps(message)


def same_lives(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether the same keys expire, at the same time but for how long a test takes."""
    return one.keys() == other.keys() and all(abs(one[key] - other[key]) < _SAME_LIFE_MS for key in one)


# How


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process is to do, and where it dies."""

    url: str
    archive: str
    name: str
    plan: bytes
    where: Cut
    signal: int
    life_ms: int
    whole: bool


def carry_out(order: Order) -> None:
    """Do what a command does that has a plan; be killed, or stopped, at the place."""
    os.environ["OPS_REPORTS"] = order.archive
    os.environ.pop(records.RUN_ENV, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for module in (lock, watching, primitive):
        module.LIFE_MS = order.life_ms
    broker, plan = connect(Target(name=NAME, broker_url=order.url)), plans.read(order.plan)
    cutter = _Cutter(order.where, lambda: os.kill(os.getpid(), order.signal))
    with small(), cutter.installed():
        if order.whole:
            direct.run(order.name, plan, broker, dry_run=False)
        else:
            run(order.name, plan, broker)


def begin(order: Order) -> BaseProcess:
    """Have an order carried out by a process of its own."""
    process = _FORKS.Process(target=carry_out, args=(order,), daemon=True)
    process.start()
    return process


def run(name: str, plan: Plan, broker: Broker) -> tuple[str, Sequence[Outcome]]:
    """Do what `direct.run` does, but for the look and the report at the end; return the run's id and its outcomes."""
    parameters: dict[str, Any] = {"dry_run": False, **({"run": plan.continues} if plan.continues else {})}
    context = session.context(name, target=NAME, reason="a test cuts it off", parameters=parameters)
    with session.environment(context):
        records.draft([])
        return context.run_id, apply(plan, broker, dry_run=False)


@dataclass(kw_only=True)
class Trial:
    """
    One database, what is in it, and a run over it that is cut off.

    Attributes:
        before: What was there before the run.

        sent: Messages that it publishes.

        run_id: Of the run that was cut off.

        of: Of the run whose journal it wrote; another one if it was an undo.

        heal_s: How long it took to come to an end afterwards.
    """

    redis: Redis
    url: str
    archive: Path
    verb: str
    before: Seen = field(init=False)
    begun: Seen = field(init=False)
    plan: Plan = field(init=False)
    sent: Counter[bytes] = field(init=False)
    run_id: str = ""
    of: str = ""
    undoing: bool = False
    heal_s: float = 0.0

    def __post_init__(self) -> None:
        self.redis.flushdb()
        actions = MAKERS[self.verb](Field(self.redis))
        self.before = self.begun = look(self.redis)
        with self.broker() as broker:
            self.plan = planned(broker, *actions)
        self.sent = Counter(action.message.encode() for action in actions if action.message)

    @contextmanager
    def broker(self, url: str = "") -> Iterator[Broker]:
        """Open a broker for the time of a `with` block."""
        broker = connect(Target(name=NAME, broker_url=url or self.url))
        try:
            yield broker
        finally:
            broker.reads.close()
            if "writes" in broker.__dict__:
                broker.writes.close()

    def complete(self) -> str:
        """Carry the run out; return its id."""
        run_id, outcomes = self._run("trial", self.plan)
        assert {outcome.status for outcome in outcomes} == {Status.APPLIED}, outcomes
        return run_id

    def then_undo(self) -> None:
        """Carry the run out, so that it is its undoing that is cut off."""
        self.of = self.complete()
        self.begun = look(self.redis)
        self.undoing = True
        with self.broker() as broker:
            self.plan = undo.plan(broker, self.of)

    @property
    def name(self) -> str:
        """What the run is called that is cut off."""
        return "undo" if self.undoing else "trial"

    # Cut off

    def in_process(self, where: Cut, deed: Callable[[], None], *, url: str = "") -> Sequence[Outcome]:
        """Begin the run here, and do something at the place; return its outcomes if it came to its end all the same."""
        cutter = _Cutter(where, deed)
        outcomes: Sequence[Outcome] = ()
        with cutter.installed(), suppress(Crash, KeyboardInterrupt, OpsError, RedisError), _interruptible():
            _, outcomes = self._run(self.name, self.plan, url=url)
        self.run_id = self._newest()
        assert cutter.done, f"the run did not come to {where}"
        return outcomes

    def process(self, where: Cut, number: int, *, life_ms: int = lock.LIFE_MS, whole: bool = False) -> BaseProcess:
        """Begin the run in a process of its own, which gets a signal at the place; the whole of what a command does."""
        order = Order(
            url=self.url,
            archive=str(self.archive),
            name=self.name,
            plan=plans.write(self.plan),
            where=where,
            signal=number,
            life_ms=life_ms,
            whole=whole,
        )
        return begin(order)

    def killed(self, where: Cut) -> None:
        """Have the run's process killed at the place."""
        process = self.process(where, signal.SIGKILL, whole=True)
        process.join(_DEADLINE_S)
        assert process.exitcode == -signal.SIGKILL, f"the run did not come to {where}: {process.exitcode}"
        process.close()
        self.run_id = self._newest()

    @contextmanager
    def stopped(self, where: Cut, *, life_ms: int = lock.LIFE_MS) -> Iterator[None]:
        """Have the run's process stopped at the place, and go on after a `with` block."""
        process = self.process(where, signal.SIGSTOP, life_ms=life_ms)
        pid = process.pid
        try:
            until(lambda: _state(pid) == "T", _DEADLINE_S, f"the run has come to {where}")
            self.run_id = self._newest()
            yield
            os.kill(pid, signal.SIGCONT)
            process.join(_DEADLINE_S)
            assert process.exitcode == 0, process.exitcode
        finally:
            if process.is_alive():
                process.kill()
                process.join()
            process.close()

    def outlive_lock(self) -> None:
        """Let the time pass after which the lock of a dead run frees itself."""
        left = self.redis.pttl(KEYS.lock)
        if left != -2:
            assert 0 < left <= lock.LIFE_MS
            self.redis.pexpire(KEYS.lock, 1)
            until(lambda: not self.redis.exists(KEYS.lock), _DEADLINE_S, "the lock has gone")

    # Brought to an end, from the id alone

    def resume(self) -> bool:
        """Go on with the run; False if it had changed nothing and cannot be gone on with."""
        began = time.monotonic()
        try:
            plan, record = direct.saved(self.archive, self.run_id)
            with self.broker() as broker:
                left = resume.remaining(plan, broker, self.run_id)
        except (NotFound, Refused):  # the caller looks whether that is so
            return False
        assert record.parameters["dry_run"] is False
        if left:
            _, outcomes = self._run("resume", left)
            assert {o.status for o in outcomes} <= {Status.APPLIED}, outcomes
        self.heal_s = time.monotonic() - began
        return True

    def undo(self) -> bool:
        """Put back what the run did; False if it did nothing."""
        began = time.monotonic()
        with self.broker() as broker:
            try:
                plan = undo.plan(broker, self.of or self.run_id)
            except NotFound:
                return False
        if plan:
            _, outcomes = self._run("undo", plan)
            assert {o.status for o in outcomes} <= {Status.APPLIED}, outcomes
        self.heal_s = time.monotonic() - began
        return True

    def left(self) -> Plan:
        """Return what there is still to resume."""
        plan, _ = direct.saved(self.archive, self.run_id)
        with self.broker() as broker:
            return resume.remaining(plan, broker, self.run_id)

    # What has to be true

    def check_nothing_lost(self) -> None:
        """Every message is in one place, and every key there or in a vault."""
        now = look(self.redis)
        others = now.messages - self.sent  # each of which is there once at most
        if self.verb in _REWRITING:
            assert bodies(others) == bodies(self.before.messages)
        else:
            assert others == self.before.messages
        vaults = dict(self._vaults())
        for key, value in self.before.values.items():
            if key.startswith("celery-task-meta") and key not in now.values:
                assert vaults[key] == value

    def check_unchanged(self) -> None:
        """Nothing is other than before the run that was cut off."""
        now = look(self.redis)
        assert now.values == self.begun.values
        assert now.kept == self.begun.kept
        assert same_lives(now.lives, self.begun.lives)

    def check_put_back(self) -> None:
        """All is as it was before anything was done, to the byte."""
        now = look(self.redis)
        assert now.values == self.before.values
        assert same_lives(now.lives, self.before.lives)
        assert sum(now.kept.values(), Counter()) - self.sent == Counter()  # there is no way back for what is new
        self.check_rest()

    def check_done(self, expected: Seen) -> None:
        """All is as after a run that nothing came in between of."""
        now = look(self.redis)
        assert settled(now) == settled(expected)
        assert same_lives(now.lives, expected.lives)
        self.check_once()
        self.check_rest()

    def check_once(self) -> None:
        """No message or key was changed twice by what was planned once."""
        with self.broker() as broker:
            journal = journals.read(broker, self.of or self.run_id)
        done = Counter(
            json.dumps([item["a"], *(item.get(name) for name in ("s", "from", "key", "tag", "sha"))])
            for batch in journal.batches
            for n, item in enumerate(batch.items)
            if batch.done(n) and "a" in item and "undoes" not in item and batch.receipt["op"] != "note"
        )
        assert set(done.values()) <= {1}, done
        assert not journal.partial

    def check_rest(self) -> None:
        """Nothing is set aside any more, nobody holds the lock, and the audit is whole."""
        assert list(self.redis.scan_iter(match=f"{KEYS.own_runs}*:w:*")) == []
        assert not self.redis.exists(KEYS.lock)
        self.check_audit()

    def check_audit(self) -> None:
        """Each line holds the digest of the one before, and says what the journals say; who was cut off, it tells."""
        assert audit(self.archive)
        with self.broker() as broker:
            found = audited.reconcile(audited.verify(self.archive / "audit.jsonl"), broker)
        own = {"cut-off", "no-answer"}
        others = [each for each in found.problems if not (each.kind in own and each.run_id == self.run_id)]
        assert [each for each in others if each.person] == []

    def _vaults(self) -> Iterator[tuple[str, Any]]:
        for path in self.archive.rglob(vault.FILE.replace(".", "*.", 1)):
            yield from ((kept.key.decode(), _value_of(kept)) for kept in vault.read(path)[1] if kept.parts)

    def _run(self, name: str, plan: Plan, *, url: str = "") -> tuple[str, Sequence[Outcome]]:
        with self.broker(url) as broker:
            return run(name, plan, broker)

    def _newest(self) -> str:
        runs = [path for path in self.archive.glob("*/*/*/*") if path.name.split("-")[1] == self.name]
        return max(runs, key=lambda path: path.stat().st_ctime_ns).name


def _value_of(kept: vault.Kept) -> Any:
    """Return what a vault keeps as `_value` reads it from a server."""
    pairs = dict(zip(kept.parts[::2], kept.parts[1::2], strict=False))
    read: dict[str, Callable[[], Any]] = {
        "string": lambda: kept.parts[0],
        "list": lambda: list(kept.parts),
        "hash": lambda: pairs,
        "set": lambda: sorted(kept.parts),
        "zset": lambda: {member: float(score) for member, score in pairs.items()},
    }
    return read[kept.type]()


def _state(pid: int | None) -> str:
    """Return what a process does, as Linux spells it; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT interrupt, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def crash() -> None:
    """Raise what nobody expects."""
    raise Crash


def interrupt() -> None:
    """Press Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
