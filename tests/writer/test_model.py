"""Any order of traffic, changes, crashes, resumes and undos → the messages that there were, each as often, no other."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from opslib import folders, records
from opslib import plan as plans
from opslib.envelope import digest
from opslib.errors import NotFound, Refused
from opslib.plan import Action, Copy, Kind, Status
from opslib.writer import apply, lists, points, resume, undo, vault
from tests.support import servers
from tests.support.plans import planned, purge_of, values
from tests.support.seed import KEYS, seed_result, seed_unacked, seed_waiting

QUEUES = ("left", "right", "slow")
PRIORITIES = (0, 3)
#: Numbers that choose among what is there: the same one always chooses the same.
picks = st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True)
#: At which of its places a run is cut off; a short one has a dozen.
cuts = st.one_of(st.none(), st.integers(0, 25))
queues = st.sampled_from(QUEUES)
priorities = st.sampled_from(PRIORITIES)


class Cut(BaseException):
    """Raised where a run is cut off; nothing handles it, as nothing handles a kill."""


class Broker(RuleBasedStateMachine):
    """
    A broker with producers, a worker, and an operator whose runs are cut off now and then.

    Attributes:
        sent: How often each id was sent.

        consumed: How often each id was acknowledged.

        held: Tags that the worker has fetched and not acknowledged; it forgets them when it dies.

        stored: Results by key, as they were written last.

        runs: Ids of the runs so far.
    """

    def __init__(self, server, archive):
        super().__init__()
        self.archive = Path(archive)
        self.redis = server.client()
        self.redis.flushall()
        self.broker = servers.broker(server)
        self.sent, self.consumed = Counter(), Counter()
        self.held: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.runs: list[str] = []
        self._numbers = count()

    def teardown(self):
        """Whatever is not under its key any more has to be in a vault."""
        kept = {}
        for run_id in self.runs:
            path = folders.folder(self.archive, run_id) / vault.FILE
            if path.exists():
                kept |= {each.key.decode(): each.parts[0] for each in vault.read(path)[1]}
        for key, value in self.stored.items():
            assert value in (self.redis.get(key), kept.get(key)), f"{key} is lost"
        self.redis.close()
        self.broker.reads.close()
        self.broker.writes.close()

    # Traffic

    @initialize(number=st.integers(2, 5))
    def begin(self, number):
        """There is something in every list."""
        for queue in QUEUES:
            for priority in PRIORITIES:
                self.push(queue, priority, number)
        for _ in range(number):
            self.sent[seed_unacked(self.redis, queue=QUEUES[0], **self._next()).task_id] += 1
            self.store(3600)

    @rule(queue=queues, priority=priorities, number=st.integers(1, 4))
    def push(self, queue, priority, number):
        """A producer publishes."""
        for _ in range(number):
            self.sent[seed_waiting(self.redis, queue=queue, priority=priority, **self._next()).task_id] += 1

    @rule(pick=st.integers(0, 30))
    def push_again(self, pick):
        """A message is there twice, byte by byte."""
        if filled := self._filled():
            key = KEYS.queue(*filled[pick % len(filled)])
            raw = self.redis.lindex(key, 0)
            self.redis.lpush(key, raw)
            self.sent[_id(raw)] += 1

    @rule(pick=st.integers(0, 30))
    def fetch(self, pick):
        """The worker takes one, as kombu does; of two with one tag, it would lose the first by itself."""
        filled = self._filled()
        if not filled:
            return
        queue, priority = filled[pick % len(filled)]
        key = KEYS.queue(queue, priority)
        raw = self.redis.lindex(key, -1)
        if not self.redis.hexists(KEYS.unacked, tag := json.loads(raw)["properties"]["delivery_tag"]):
            self.redis.rpop(key)
            self.redis.zadd(KEYS.unacked_index, {tag: self.redis.time()[0]})
            self.redis.hset(KEYS.unacked, tag, json.dumps([json.loads(raw), "", queue]))
            self.held.append(tag)

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 30))
    def acknowledge(self, pick):
        """The worker has done one; if a run took it away meanwhile, it is not the worker's to count."""
        tag = self.held.pop(pick % len(self.held))
        raw = self.redis.hget(KEYS.unacked, tag)
        self.redis.zrem(KEYS.unacked_index, tag)
        if raw and self.redis.hdel(KEYS.unacked, tag):
            self.consumed[_id(raw)] += 1

    @precondition(lambda self: self.held)
    @rule()
    def die(self):
        """What the worker held stays unacknowledged."""
        self.held.clear()

    @rule(queue=queues)
    def lose_from_the_index(self, queue):
        """Something is delivered that Celery's own sweep would never find."""
        self.sent[seed_unacked(self.redis, queue=queue, indexed=False, **self._next()).task_id] += 1

    @rule(pick=st.integers(0, 5))
    def lose_from_the_hash(self, pick):
        """The index names what is not there."""
        self.redis.zadd(KEYS.unacked_index, {f"no-{pick}": pick})

    @rule(life=st.sampled_from([3600, 86_400]))
    def store(self, life):
        """A result is stored."""
        key = KEYS.result(seed_result(self.redis, "SUCCESS", task_id=self._next()["task_id"], life_s=life))
        self.stored[key] = self.redis.get(key)

    # Changes

    @rule(picks=picks, cut=cuts, back=st.booleans())
    def quarantine(self, picks, cut, back):
        """Out of circulation."""
        self._change(self._waiting(Kind.QUARANTINE, picks, "quarantine"), cut, back)

    @rule(picks=picks, cut=cuts, back=st.booleans())
    def move(self, picks, cut, back):
        """To another queue."""
        self._change(self._waiting(Kind.MOVE, picks, QUEUES[-1]), cut, back)

    @rule(picks=picks, to=st.sampled_from(["next", "last", "0", "1", "7"]), cut=cuts, back=st.booleans())
    def reorder(self, picks, to, cut, back):
        """Elsewhere in its own list."""
        self._change(self._waiting(Kind.REORDER, picks, to), cut, back)

    @rule(picks=picks, cut=cuts, back=st.booleans())
    def restore(self, picks, cut, back):
        """From unacked to the queue."""
        entries = sorted(self.redis.hgetall(KEYS.unacked).items(), key=lambda entry: _id(entry[1]))
        self._change([self._restore_of(*entry) for entry in _chosen(entries, picks)], cut, back)

    @rule(queue=queues, cut=cuts, back=st.booleans())
    def purge(self, queue, cut, back):
        """All of it, with its priorities."""
        action = purge_of(self.broker, queue)
        self._change([action] if action.copies else [], cut, back)

    @rule(picks=picks, cut=cuts, back=st.booleans())
    def sieve(self, picks, cut, back):
        """Every copy of some tasks, from lists that are taken for long."""
        found = sorted({task_id for (_, task_id) in self._places()})
        stops = [
            Action(kind=Kind.STOP, subject=each, source="", destination="quarantine") for each in _chosen(found, picks)
        ]
        self._change(stops, cut, back)

    @rule(cut=cuts, back=st.booleans())
    def repair(self, cut, back):
        """Hash and index agree."""
        hashed, indexed = (
            set(self.redis.hkeys(KEYS.unacked)),
            dict(self.redis.zrange(KEYS.unacked_index, 0, -1, withscores=True)),
        )
        odd = [(tag, "unacked", None) for tag in sorted(hashed - set(indexed))]
        odd += [(tag, "index", indexed[tag]) for tag in sorted(set(indexed) - hashed)]
        actions = [
            Action(
                kind=Kind.REPAIR,
                subject=tag.decode(),
                source="unacked",
                destination="unacked",
                copies=(Copy(place=place, key=KEYS.unacked, delivery_tag=tag.decode(), score=score),),
            )
            for tag, place, score in odd
        ]
        self._change(actions, cut, back)

    @precondition(lambda self: self.stored)
    @rule(picks=picks, cut=cuts, back=st.booleans())
    def delete(self, picks, cut, back):
        """Results, into the vault."""
        there = sorted(key for key in self.stored if self.redis.exists(key))
        self._change([_of_key(Kind.DELETE, key) for key in _chosen(there, picks)], cut, back)

    @precondition(lambda self: self.stored)
    @rule(picks=picks, cut=cuts, back=st.booleans())
    def expire(self, picks, cut, back):
        """Results get a shorter life."""
        some = [_of_key(Kind.EXPIRE, key, ttl_s=1800) for key in _chosen(sorted(self.stored), picks)]
        self._change(some, cut, back)

    @precondition(lambda self: self.runs)
    @rule(pick=st.integers(0, 30), cut=cuts)
    def resume(self, pick, cut):
        """An earlier run goes on, by its id; one that was ended has nothing left."""
        run_id = self.runs[-1 - pick % len(self.runs)]
        path = folders.folder(self.archive, run_id) / folders.PLAN
        if path.exists():
            with self._run(cut):
                apply(resume.remaining(plans.read(path.read_bytes()), self.broker, run_id), self.broker, dry_run=False)

    @precondition(lambda self: self.runs)
    @rule(pick=st.integers(0, 30), cut=cuts)
    def undo(self, pick, cut):
        """An earlier run is put back, by its id, as far as that goes."""
        with self._run(cut):
            apply(undo.plan(self.broker, self.runs[-1 - pick % len(self.runs)]), self.broker, dry_run=False)

    # What holds

    @invariant()
    def nothing_is_lost_or_doubled(self):
        """Every message is in one place, or has been acknowledged."""
        assert Counter(task_id for _, task_id in self._places()) + self.consumed == self.sent

    def _change(self, actions, cut, back):
        """Carry a plan out; uncut, it has done what its outcomes say, and an undo leaves every byte where it was."""
        if not actions:
            return
        before, places = values(self.redis), Counter(self._places())
        outcomes = []
        with self._run(cut) as run_id:
            outcomes += apply(planned(self.broker, *actions), self.broker, dry_run=False)
        self.runs.append(run_id)
        if not outcomes:
            return
        sure = {Status.APPLIED, Status.SKIPPED}
        assert all(o.status in sure or "set aside" in o.reason for o in outcomes), outcomes
        for outcome in outcomes:
            if outcome.status is not Status.SKIPPED:
                _moved(places, outcome.action)
        assert Counter(self._places()) == +places
        if back:
            with self._run(None):
                apply(undo.plan(self.broker, run_id), self.broker, dry_run=False)
            assert values(self.redis) == before

    @contextmanager
    def _run(self, cut):
        """Be a run of its own, and be cut off at one of its places; give the run's id."""
        run_id = f"20261121T030000Z-model-{next(_NUMBERS):06x}"
        records._HAND[:] = [records.RunContext(run_id=run_id)]
        passed = count()

        def at(_):
            if next(passed) == cut:
                raise Cut

        points.watchers.append(at)
        try:
            yield run_id
        except (Cut, NotFound, Refused):
            pass
        finally:
            points.watchers.clear()

    def _places(self):
        """Return where each message is: its list, its part of unacked, or "quarantine", and its id."""
        found = []
        for key in self.redis.scan_iter():
            kind, name = self.redis.type(key), key.decode()
            if kind == b"list":
                place = "quarantine" if KEYS.quarantined(name) else name
                found += [(place, _id(raw)) for raw in self.redis.lrange(key, 0, -1)]
            elif name == KEYS.unacked:
                found += [("unacked", _id(raw)) for raw in self.redis.hvals(key)]
        return found

    def _next(self):
        """Return the next id and tag: not random ones, for the same steps have to choose the same messages."""
        number = next(self._numbers)
        return {"task_id": f"task-{number:04}", "tag": f"tag-{number:04}"}

    def _filled(self):
        """Return queue and priority of every list that holds something."""
        lists = [(queue, priority) for queue in QUEUES for priority in PRIORITIES]
        return [each for each in lists if self.redis.exists(KEYS.queue(*each))]

    def _waiting(self, kind, picks, destination):
        filled = self._filled()
        if not filled:
            return []
        queue, priority = filled[picks[0] % len(filled)]
        key = KEYS.queue(queue, priority)
        return [
            Action(
                kind=kind,
                subject=_id(raw),
                source=queue,
                destination=destination,
                copies=(Copy(place="waiting", key=key, queue=queue, sha256=digest(raw), priority=priority),),
            )
            for raw in _chosen(self.redis.lrange(key, 0, -1), picks)
        ]

    def _restore_of(self, tag, raw):
        queue = json.loads(raw)[2]
        copy = Copy(
            place="unacked",
            key=KEYS.unacked,
            queue=queue,
            delivery_tag=tag.decode(),
            sha256=digest(raw),
            score=self.redis.zscore(KEYS.unacked_index, tag),
        )
        return Action(kind=Kind.RESTORE, subject=_id(raw), source="unacked", destination=queue, copies=(copy,))


_NUMBERS = count()


def _id(raw):
    message = json.loads(raw)
    return (message[0] if isinstance(message, list) else message)["headers"]["id"]


def _chosen(some, picks):
    """Return as many different ones as there are, of those that were picked."""
    return [some[n] for n in sorted({pick % len(some) for pick in picks})] if some else []


def _of_key(kind, key, **more):
    return Action(kind=kind, subject=key, source=key, destination=key, copies=(Copy(place="key", key=key),), **more)


def _moved(places, action):
    """Have an action's messages where it says that it has put them."""
    for copy in action.copies:
        if action.kind is Kind.PURGE:
            for place, task_id in [each for each in places if each[0] == copy.key]:
                places["quarantine", task_id] += places.pop((place, task_id))
            continue
        if action.kind in {Kind.REPAIR, Kind.DELETE, Kind.EXPIRE, Kind.REORDER}:
            continue
        places[copy.key, action.subject] -= 1
        to = action.destination
        places[to if to == "quarantine" else KEYS.queue(to, copy.priority), action.subject] += 1
    if action.kind is Kind.STOP:  # of what an interrupted run has set aside, it says that it is not sure
        here = (*(KEYS.queue(queue, step) for queue in QUEUES for step in PRIORITIES), "unacked")
        for place in here:
            places["quarantine", action.subject] += places.pop((place, action.subject), 0)


@pytest.mark.usefixtures("broker")
def test_whatever_happens_no_message_is_lost_or_doubled(server, archive, monkeypatch):
    """Hundreds of steps, the same in every run of this test; what fails is shown as the shortest way to it."""
    monkeypatch.setattr(lists, "SEARCHABLE", 3)
    monkeypatch.setattr(lists, "_WINDOW", 2)
    monkeypatch.setattr(import_module("opslib.writer.stop"), "_PAUSE_S", 0)  # `writer.stop` is the function
    run_state_machine_as_test(
        partial(Broker, server, archive),
        settings=settings(
            max_examples=80,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
