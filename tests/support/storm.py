"""A seed → runs and a server killed at random moments under live traffic, and what became of every message."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from opslib import folders, records
from opslib import plan as plans
from opslib.broker import connect
from opslib.envelope import digest
from opslib.errors import NotFound, OpsError, Refused
from opslib.plan import Action, Copy, Kind, Plan, Status
from opslib.settings import Target
from opslib.writer import apply, lists, lock, resume, undo
from opslib.writer import journal as journals
from tests.support.engines import Engine
from tests.support.plans import planned, purge_of
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.waiting import until

NAME = "storm"
#: What the traffic pushes to all the time; what is filled before a stop sieves it; what is purged; what is moved to.
HOT, LONG, BULK, SLOW = "hot", "long", "bulk", "slow"
LISTS = (HOT, LONG, BULK, KEYS.queue(BULK, 3), SLOW)
_REASON = "its process was killed by a test"
_DEADLINE_S = 30.0
#: A list of more is sieved. What is pushed meanwhile comes to stand among the others, so the traffic's own list, whose
#: order is looked at, stays shorter.
_SEARCHABLE, _HOT = 500, 300
_PACE_S = 0.004
_MOST_HEALS = 60
#: Ids that were acknowledged, each with how often; in the server, so that it is as true as the acknowledgement.
LEDGER = "traffic:consumed"
_ACKNOWLEDGE = """
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[3], ARGV[2], 1) end
"""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__, "redis"])


@dataclass(frozen=True, kw_only=True)
class Order:
    """
    What a process is to do.

    Attributes:
        of: Run that it resumes or undoes; empty for a run of its own.

        plan: Plan's file, for a run of its own.
    """

    url: str
    archive: str
    run_id: str
    verb: str
    of: str = ""
    plan: bytes = b""


def carry_out(order: Order, told: Connection) -> None:
    """Do what a command does that has a plan, or a run id and nothing else; tell how it ended."""
    os.environ["OPS_REPORTS"] = order.archive
    os.environ[records.RUN_ENV] = msgspec.json.encode(records.RunContext(run_id=order.run_id)).decode()
    lists.SEARCHABLE = _SEARCHABLE
    import_module("opslib.writer.stop")._PAUSE_S = 0.0  # `writer.stop` is the function
    told.send("begun")
    try:
        broker = connect(Target(name=NAME, broker_url=order.url))
        if order.verb == "undo":
            plan = undo.plan(broker, order.of)
        elif order.verb == "resume":
            path = folders.folder(Path(order.archive), order.of) / folders.PLAN
            plan = resume.remaining(plans.read(path.read_bytes()), broker, order.of)
        else:
            plan = plans.read(order.plan)
        outcomes = apply(plan, broker, dry_run=False)
    except (OpsError, OSError) as error:
        told.send(f"{type(error).__name__}: {error}")
        return
    failed = [o.reason for o in outcomes if o.status is Status.FAILED]
    told.send(f"failed: {failed[0]}" if failed else "done")


@dataclass(kw_only=True)
class Traffic:
    """
    A producer and a worker in one thread, which fetches, records and acknowledges as kombu does.

    Between its BRPOP and its record, a worker has the only copy of a message: a server that is killed there loses it,
    whatever we do (Celery's own window). So while a server is killed, this worker has no BRPOP on its way; and what it
    has fetched, it records and acknowledges until the server has said so.

    Attributes:
        sent: Ids by list, in the order in which they were pushed.

        fetched: List and id of each message that was fetched, in order.

    """

    engine: Engine
    sent: dict[str, list[str]] = field(default_factory=lambda: {key: [] for key in LISTS})
    fetched: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn = 0
        self._talking, self._pushing = threading.Lock(), threading.Lock()
        self._may_talk, self._end, self._at_rest = threading.Event(), threading.Event(), threading.Event()
        self._may_talk.set()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._client = self.engine.client()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._may_talk.set()
        self._thread.join()
        self._client.close()

    def push(self, client: Redis, queue: str, count: int, *, priority: int = 0) -> None:
        """Publish messages."""
        for _ in range(count):
            with self._pushing:  # two threads do, and `sent` is in the order of the list
                seeded = seed_waiting(client, queue=queue, priority=priority)
                self.sent[seeded.key].append(seeded.task_id)

    @contextmanager
    def silent(self, *, at_rest: bool = False) -> Iterator[None]:
        """Neither push nor fetch for the time of a `with` block; at rest, hold nothing either."""
        self._may_talk.clear()
        with self._talking:
            if at_rest:
                until(self._at_rest.is_set, _DEADLINE_S, "the traffic is at rest")
            yield
            self._may_talk.set()

    def _run(self) -> None:
        while not self._end.is_set():
            self._may_talk.wait()
            with self._talking:
                if not self._may_talk.is_set():
                    continue
                self._at_rest.clear()
                fetched = self._talk()
            if fetched:
                self._work(*fetched)
            self._at_rest.set()
            time.sleep(_PACE_S)

    def _talk(self) -> tuple[str, bytes] | None:
        self._turn += 1
        self._until_answered(lambda client: client.ping())  # the server may have been killed since
        if self._turn % 2 and self._client.llen(HOT) < _HOT:
            self.push(self._client, HOT, 1)
        at = self._turn % len(LISTS)
        found = self._client.brpop([*LISTS[at:], *LISTS[:at]], timeout=0.01)
        if not found:
            return None
        key, raw = found[0].decode(), found[1]
        self.fetched.append((key, _id(raw)))
        return key, raw

    def _work(self, key: str, raw: bytes) -> None:
        message = json.loads(raw)
        tag, task_id = message["properties"]["delivery_tag"], message["headers"]["id"]
        entry = json.dumps([message, "", key])

        def record(client: Redis) -> Any:
            with client.pipeline() as pipe:
                return pipe.zadd(KEYS.unacked_index, {tag: time.time()}).hset(KEYS.unacked, tag, entry).execute()

        self._until_answered(record)
        # What it removes, it also writes down in that step: asked for again, nobody has to guess. What it does not
        # find, a run has taken out of circulation while it was being worked on, and holds it now.
        self._until_answered(
            lambda client: client.eval(_ACKNOWLEDGE, 3, KEYS.unacked_index, KEYS.unacked, LEDGER, tag, task_id)
        )

    def consumed(self) -> Counter[str]:
        """Return how often each id was acknowledged."""
        with self.engine.client() as client:
            return Counter({task_id.decode(): int(times) for task_id, times in client.hgetall(LEDGER).items()})

    def _until_answered(self, ask: Any) -> Any:
        for _ in range(10_000):
            with suppress(RedisError):
                return ask(self._client)
            time.sleep(0.01)
        raise AssertionError("the server did not come back")


@dataclass(kw_only=True)
class Storm:
    """
    Runs that are killed, and what became of them.

    Attributes:
        touched: Ids that a plan named.

        left: Runs that were ended and may be undone.
    """

    engine: Engine
    archive: Path
    seed: int
    traffic: Traffic
    client_kills: int = 0
    server_kills: int = 0
    runs: int = 0
    processes: int = 0
    touched: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._typical: defaultdict[tuple[object, str], float] = defaultdict(lambda: 0.2)
        self._what: object = None

    def rage(self, *, client_kills: int, server_kills: int) -> None:
        """Begin runs, kill them, and end them by their ids, until so many were killed."""
        while self.client_kills < client_kills or self.server_kills < server_kills:
            self._what = self.chance.choice([self._messages, self._messages, self._purge, self._deep, self._undo])
            self._what(kill_server=self.server_kills < server_kills)

    def lost_and_doubled(self) -> tuple[list[str], list[str]]:
        """Return the ids that are nowhere, and those that are in more than one place."""
        there = self.traffic.consumed() + Counter(self._ids())
        sent = Counter(task_id for ids in self.traffic.sent.values() for task_id in ids)
        lost = [task_id for task_id, count in sent.items() if there[task_id] < count]
        return lost, [task_id for task_id, count in there.items() if count > sent[task_id]]

    def out_of_order(self) -> dict[str, list[str]]:
        """Return the lists whose untouched messages were not served in the order in which they were sent."""
        wrong = {}
        for key in (HOT, LONG):
            untouched = [task_id for task_id in self.traffic.sent[key] if task_id not in self.touched]
            known = set(untouched)
            served = [task_id for queue, task_id in self.traffic.fetched if queue == key and task_id in known]
            with self.engine.client() as client:
                served += [task_id for raw in reversed(client.lrange(key, 0, -1)) if (task_id := _id(raw)) in known]
            if served != untouched:
                wrong[key] = served
        return wrong

    def stranded(self) -> list[str]:
        """Return the lists that a run had set aside for a moment, and that still hold something."""
        with self.engine.client() as client:
            return [key.decode() for key in client.scan_iter(match=f"{KEYS.own_runs}*:w:*")]

    def __str__(self) -> str:
        sent = sum(map(len, self.traffic.sent.values()))
        return (
            f"seed {self.seed}: {self.client_kills} runs and {self.server_kills} servers killed in {self.runs} runs of "
            f"{self.processes} processes; {sent:,} messages sent, {self.traffic.consumed().total():,} consumed, "
            f"{len(self.touched):,} touched"
        )

    # What is begun

    def _messages(self, *, kill_server: bool) -> None:
        """Single messages: out of circulation, elsewhere, and back from a dead worker."""
        with self.engine.client() as client:
            dead = [seed_unacked(client, queue=HOT) for _ in range(self.chance.randrange(8))]
            self.traffic.sent.setdefault("unacked", []).extend(each.task_id for each in dead)
            waiting = client.lrange(HOT, 0, -1)
        chosen = self.chance.sample(waiting, min(len(waiting), self.chance.randrange(120)))
        actions = [_of_waiting(raw, *self.chance.choice(_WAYS)) for raw in chosen]
        actions += [_of_dead(each) for each in dead]
        self.touched |= {action.subject for action in actions}
        self._begin(actions, kill_server=kill_server)

    def _purge(self, *, kill_server: bool) -> None:
        with self.engine.client() as client:
            for priority in (0, 3):
                self.traffic.push(client, BULK, self.chance.randrange(150), priority=priority)
        with self._broker() as broker:
            purge = purge_of(broker, BULK)
        if purge.copies:
            self._begin([purge], kill_server=kill_server)

    def _deep(self, *, kill_server: bool) -> None:
        """Of the youngest of a long list, which the worker does not come to before the run has ended."""
        with self.engine.client() as client:
            self.traffic.push(client, LONG, max(100, 700 - client.llen(LONG)))
            young = client.lrange(LONG, 0, 150)
        chosen = self.chance.sample(young, self.chance.randrange(1, 60))
        if self.chance.random() < 0.5:
            actions = [
                Action(kind=Kind.STOP, subject=_id(raw), source=LONG, destination="quarantine") for raw in chosen
            ]
        else:
            actions = [_of_waiting(raw, *self.chance.choice(_WAYS[:2]), queue=LONG) for raw in chosen]
        self.touched |= {action.subject for action in actions}
        self._begin(actions, kill_server=kill_server)

    def _undo(self, *, kill_server: bool) -> None:
        if self.left:
            run_id = self.left.pop(self.chance.randrange(len(self.left)))
            self._until_done(self._order("undo", of=run_id), kill_server=kill_server)

    def _begin(self, actions: Sequence[Action], *, kill_server: bool) -> None:
        with self._broker() as broker:
            plan: Plan = planned(broker, *actions)
        order = self._order("apply", plan=plans.write(plan))
        self.runs += 1
        if self._until_done(order, kill_server=kill_server) != "undo":
            self.left.append(order.run_id)

    # What becomes of it

    def _order(self, verb: str, *, of: str = "", plan: bytes = b"") -> Order:
        run_id = f"20261121T030000Z-storm-{self.seed:02x}{self.processes:04x}"
        return Order(url=self.engine.url, archive=str(self.archive), run_id=run_id, verb=verb, of=of, plan=plan)

    def _until_done(self, order: Order, *, kill_server: bool) -> str:
        """Have it carried out, by one process after the other; return the verb that ended it."""
        run_id = order.of or order.run_id
        way = ""
        for _ in range(_MOST_HEALS):
            said = self._process(order, kill_server=kill_server)
            if said == "done" or self._nothing_to_do(said, run_id):
                return order.verb
            assert "begun and not ended" not in said, said
            way = way or ("undo" if order.verb == "undo" else self.chance.choice(["resume", "undo"]))
            order = self._order(way, of=run_id)
        raise AssertionError(f"{run_id} cannot be ended: {said}")

    def _nothing_to_do(self, said: str, run_id: str) -> bool:
        """Whether a run was killed before it changed anything: then nothing is left to resume or to undo."""
        if not said.startswith((Refused.__name__, NotFound.__name__, FileNotFoundError.__name__)):
            return False
        with self._broker() as broker:
            return not journals.read(broker, run_id).batches

    def _process(self, order: Order, *, kill_server: bool) -> str:
        """Have a process carry it out, and perhaps kill it or its server; return what it said last."""
        self.processes += 1
        self._unlock()
        ours, theirs = _FORKS.Pipe()
        process = _FORKS.Process(target=carry_out, args=(order, theirs), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(_DEADLINE_S), "the process did not begin"
        ours.recv()
        began = time.monotonic()
        fate = self.chance.random()
        process.join(self.chance.random() * self._typical[self._what, order.verb] if fate < 0.85 else _DEADLINE_S)
        if process.exitcode is None and fate < (0.2 if kill_server else 0.0):
            with self.traffic.silent():
                self.engine.restart()
            self.server_kills += 1
        elif process.exitcode is None:
            process.kill()
            self.client_kills += 1
        process.join(_DEADLINE_S)
        assert process.exitcode is not None, "the process did not end"
        said = "killed"
        with suppress(EOFError):
            said = ours.recv()
        ours.close()
        if said == "done":
            self._typical[self._what, order.verb] += (
                time.monotonic() - began - self._typical[self._what, order.verb]
            ) / 4
        process.close()
        return said

    def _unlock(self) -> None:
        """Do as an operator does who knows that the run is dead."""
        with self._broker() as broker:
            if found := lock.look(broker):
                lock.unlock(broker, found.lock_id, _REASON, though_connected=True)

    @contextmanager
    def _broker(self) -> Iterator[Any]:
        broker = connect(Target(name=NAME, broker_url=self.engine.url))
        try:
            yield broker
        finally:
            broker.reads.close()
            broker.writes.close()

    def _ids(self) -> Iterator[str]:
        """Yield the id of every message that any key holds."""
        with self.engine.client() as client:
            for key in client.scan_iter():
                kind = client.type(key)
                if kind == b"list":
                    yield from map(_id, client.lrange(key, 0, -1))
                elif key == KEYS.unacked.encode():
                    yield from (json.loads(raw)[0]["headers"]["id"] for raw in client.hvals(key))


#: What is done to a waiting message, and where it goes.
_WAYS = ((Kind.QUARANTINE, "quarantine"), (Kind.MOVE, SLOW), (Kind.REORDER, "next"), (Kind.REORDER, "last"))


def _of_waiting(raw: bytes, kind: Kind, destination: str, *, queue: str = HOT) -> Action:
    copy = Copy(place="waiting", key=queue, queue=queue, sha256=digest(raw))
    return Action(kind=kind, subject=_id(raw), source=queue, destination=destination, copies=(copy,))


def _of_dead(seeded: Any) -> Action:
    copy = Copy(
        place="unacked",
        key=KEYS.unacked,
        queue=HOT,
        delivery_tag=seeded.tag,
        sha256=seeded.sha256,
        score=seeded.score,
    )
    return Action(kind=Kind.RESTORE, subject=seeded.task_id, source="unacked", destination=HOT, copies=(copy,))


def _id(raw: bytes) -> str:
    """Return a message's task id, of a list's or, once quarantined, of the unacked hash's shape."""
    message = json.loads(raw)
    return str((message[0] if isinstance(message, list) else message)["headers"]["id"])
