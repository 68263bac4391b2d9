"""A deployment in which nothing goes right → the plan that resets it, and what is there before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from opslib.broker import Broker
from opslib.collectors.deployment import collect
from opslib.collectors.parts import nodes
from opslib.demo import server as embedded
from opslib.plan import Outcome, Plan
from opslib.symptoms import emergency_reset
from opslib.symptoms.emergency_reset import Thresholds
from opslib.writer import apply, points
from tests.support.workers import Deployment, Worker, deployment

NODE = "w1@trial"
#: Short, so that what is unacknowledged would be back soon; prefork sweeps at least as often.
VISIBILITY_S = 3
CONF: Mapping[str, object] = {
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY_S,
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
    },
    "worker_prefetch_multiplier": 4,
}
#: So many looks in a row have to see the same.
_STEADY = 20


class Cut(BaseException):
    """What a signal does to a run."""


@contextmanager
def cut_at(name: str) -> Iterator[None]:
    """Have the run die at a place, for the time of a `with` block."""

    def watcher(place: str) -> None:
        if place == name:
            raise Cut

    points.watchers.append(watcher)
    try:
        yield
    finally:
        points.watchers.remove(watcher)


@contextmanager
def own(folder: Path) -> Iterator[Deployment]:
    """A server of its own, for nodes that do not survive their test."""
    folder.mkdir()
    with embedded.start(folder) as running, deployment(running, folder) as made:
        yield made


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """What is in flight: tasks that hang on a node, that wait for their time there, and that wait in a queue."""

    worker: Worker
    hung: list[str]
    timed: list[str]
    waits: list[str]

    @property
    def every(self) -> set[str]:
        """All of their ids."""
        return {*self.hung, *self.timed, *self.waits}


def seed(trial: Deployment, **of: Any) -> Seeded:
    """Start a node, have two tasks hang on it, three wait for their time there, and twenty in two priorities."""
    given = {"name": NODE, "queues": "celery,mail", "concurrency": 2, "conf": CONF, **of}
    worker = trial.worker(**given)
    hung = [trial.send("hang_late"), trial.send("hang")]
    trial.until_running(*hung)
    timed = [trial.send("ok", queue="mail", countdown=3600) for _ in range(3)]
    trial.until_unacked(*timed)
    return Seeded(
        worker=worker, hung=hung, timed=timed, waits=[trial.send("ok", priority=n % 2 * 3) for n in range(20)]
    )


def reset(broker: Broker, **asked: Any) -> Plan:
    """Look, judge and plan, as the runbook does."""
    before = collect(broker, settle="0.2s", answer_within="0.7s")
    findings = emergency_reset.diagnose(before, Thresholds())
    return emergency_reset.plan(before, findings, **{"mode": "complete", "wait": "20s", **asked})


def carried_out(broker: Broker, plan: Plan) -> list[Outcome]:
    """Carry a plan out."""
    return list(apply(plan, broker, dry_run=False))


def by_step(outcomes: list[Outcome]) -> dict[str, set[str]]:
    """Return what became of the actions of each step."""
    found: dict[str, set[str]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.action.step, set()).add(str(outcome.status))
    return found


def consumed(broker: Broker) -> dict[str, tuple[str, ...]]:
    """Return what each node says that it consumes."""
    return {row.name: row.queues for row in nodes(broker)[0] if row.answered}


def lists(redis: Redis) -> dict[bytes, list[bytes]]:
    """Return every queue's messages, byte for byte."""
    names = [key for key in redis.scan_iter("*") if redis.type(key) == b"list" and b"pidbox" not in key]
    return {key: redis.lrange(key, 0, -1) for key in names if b"opslib:" not in key}


def ids(redis: Redis) -> set[str]:
    """Return the ids of all messages that wait."""
    return {json.loads(raw)["headers"]["id"] for raws in lists(redis).values() for raw in raws}


def unacked(redis: Redis) -> dict[bytes, tuple[bytes, float | None]]:
    """Return what is unacknowledged, byte for byte, with its place in the index."""
    return {tag: (raw, redis.zscore("unacked_index", tag)) for tag, raw in redis.hgetall("unacked").items()}
