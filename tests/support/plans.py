"""A broker → what the runbook would do about it, and what it was that it did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis

from opslib.broker import Broker
from opslib.collectors.deployment import collect
from opslib.plan import Action, Copy, Kind, Outcome, Plan, make
from opslib.symptoms.stuck_tasks import Thresholds, diagnose, plan
from opslib.writer import apply, lock, undo
from opslib.writer.moves import Mover
from opslib.writer.primitive import Primitive
from tests.support.servers import dump

RUN = "20261121T030000Z-trial-abc123"


def proposed(broker: Broker, *, max_actions: int = 200, limits: Thresholds | None = None) -> Plan:
    """Look, judge and plan, as the runbook does."""
    snapshot = collect(broker, settle="0.01s")
    return plan(snapshot, diagnose(snapshot, limits or Thresholds()), max_actions=max_actions)


def told(outcomes: Sequence[Any]) -> list[str]:
    """Return what became of each action, in the plan's order."""
    return [str(outcome.status) for outcome in outcomes]


@contextmanager
def mover(broker: Broker, run_id: str = RUN) -> Iterator[Mover]:
    """Hold the lock, and give what moves messages under it."""
    with lock.held(broker, run_id=run_id, plan_digest="d") as held:
        yield Mover(Primitive(broker, held, run_id=run_id, told={"plan": "d"}))


def foreign(redis: Redis) -> dict[bytes, object]:
    """Return all that is in the database but this tool's own keys."""
    return {key: value for key, value in dump(redis).items() if b"opslib:" not in key}


def audit(archive: Path) -> list[dict[str, Any]]:
    """Return the audit's lines, after each was found to hold the digest of the one before."""
    path = archive / "audit.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    previous = "0" * 64
    for line in lines:
        assert json.loads(line)["prev_sha256"] == previous
        previous = hashlib.sha256(line).hexdigest()
    return [json.loads(line) for line in lines]


class Between:
    """A client for changes that lets something happen right after each batch."""

    def __init__(self, client: Redis, after: Callable[[int], None]) -> None:
        self._client, self._after, self.batches = client, after, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def eval(self, script: str, *values: Any) -> Any:
        """Run a script; after a batch of moves, tell its number."""
        answer = self._client.eval(script, *values)
        if "Move messages" in script:
            self.batches += 1
            self._after(self.batches)
        return answer


def interrupted(broker: Broker, after: Callable[[int], None]) -> Between:
    """Have something happen after each batch that this broker's changes consist of."""
    between = Between(broker.writes, after)
    broker.__dict__["writes"] = between  # where the cached property keeps it
    return between


def planned(broker: Broker, *actions: Action, life_s: float = 900) -> Plan:
    """Return a plan of these actions, made now on this server."""
    return make(
        broker.target.name,
        broker.fingerprint,
        actions,
        max_actions=len(actions),
        made_at=broker.server_time(),
        life_s=life_s,
    )


def purge_of(broker: Broker, queue: str) -> Action:
    """Return the purge of a queue as it is now, priorities included."""
    lengths = {key: broker.reads.llen(key) for key in broker.keys.queue_lists(queue)}
    copies = [Copy(place="list", key=key, queue=queue, count=length) for key, length in lengths.items() if length]
    return Action(kind=Kind.PURGE, subject=queue, source=queue, destination="quarantine", copies=tuple(copies))


def undone(broker: Broker, run_id: str) -> tuple[Outcome, ...]:
    """Put back what a run changed."""
    return apply(undo.plan(broker, run_id), broker, dry_run=False)


def values(redis: Redis) -> dict[bytes, object]:
    """Return what every foreign key holds, as its bytes, and about when it expires."""
    found: dict[bytes, object] = {}
    for key in redis.scan_iter():
        if b"opslib:" in key:
            continue
        kind = redis.type(key)
        read: dict[bytes, Callable[[], object]] = {
            b"string": lambda key=key: redis.get(key),
            b"list": lambda key=key: redis.lrange(key, 0, -1),
            b"hash": lambda key=key: redis.hgetall(key),
            b"set": lambda key=key: redis.smembers(key),
            b"zset": lambda key=key: redis.zrange(key, 0, -1, withscores=True),
        }
        life = redis.pttl(key)
        seconds, micros = redis.time()
        found[key] = (read[kind](), life if life < 0 else _Until(seconds * 1000 + micros // 1000 + life))
    return found


class _Until(int):
    """An instant in ms, which equals another of the same five seconds: to ask for a life takes a moment, too."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and abs(int(self) - int(other)) < 5_000

    def __ne__(self, other: object) -> bool:
        return not self == other
