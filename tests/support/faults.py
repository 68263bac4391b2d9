"""A deployment with messages and a plan for them → a run that a fault strikes in the middle, and a count of it all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis

from opslib import direct
from opslib.broker import Broker
from opslib.errors import Exit
from opslib.plan import Action, Copy, Kind
from opslib.session import RunResult
from opslib.writer import points, watch
from tests.command_line import Done, call
from tests.support.plans import planned, values
from tests.support.seed import Seeded, bind, seed_waiting

#: Messages in each batch, and in all of them.
EACH, MANY = 20, 90


@dataclass(kw_only=True)
class Scene:
    """
    A queue, and a plan that takes every message of it out of circulation, one by one.

    Attributes:
        client: Of the server, past whatever stands before it.

        before: What was there.
    """

    client: Redis
    broker: Broker
    seeded: list[Seeded]
    before: dict[bytes, object] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.before = values(self.client)

    def run(self, *, reported: bool = True) -> RunResult:
        """
        Carry the plan out as a run of its own, which must not promise more than it did.

        Args:
            reported: Whether there has to be a report.
        """
        done = direct.run("trial", planned(self.broker, *map(quarantine_of, self.seeded)), self.broker, dry_run=False)
        assert done.record.verdict != "healthy"
        if statuses(done)["failed"] or done.record.error:
            assert done.exit_code is not Exit.DONE
            assert reasons(done).strip()
        assert not reported or (done.report and done.report.is_file())
        return done

    def conserved(self, client: Redis | None = None) -> None:
        """Make sure that every message is there once, wherever it is."""
        assert counted(client or self.client) == Counter(each.task_id for each in self.seeded)

    def kept(self, client: Redis | None = None) -> int:
        """Return how many messages are out of circulation."""
        chosen = client or self.client
        return sum(chosen.llen(key) for key in chosen.scan_iter(match="*opslib:run:*:q*:*"))

    def resumed(self, run_id: str, client: Redis | None = None) -> Done:
        """Finish a run from the command line: then all is done, and nothing twice."""
        done = call("resume", run_id)
        assert done.code in {Exit.DONE, Exit.ATTENTION}, done  # what else is wrong counts where a runbook judges
        self.conserved(client)
        assert self.kept(client) == len(self.seeded)
        return done

    def undone(self, run_id: str, client: Redis | None = None) -> Done:
        """Put back from the command line what a run did: then all is as it was."""
        done = call("undo", run_id, "--apply", "--yes")
        assert done.code in {Exit.DONE, Exit.ATTENTION}, done  # what else is wrong counts where a runbook judges
        assert values(client or self.client) == self.before
        return done


def crowd(client: Redis, broker: Broker, number: int = MANY) -> Scene:
    """Put that many messages into a queue."""
    bind(client, "celery", "celery")
    return Scene(client=client, broker=broker, seeded=[seed_waiting(client) for _ in range(number)])


def quarantine_of(seeded: Seeded) -> Action:
    """Return the action that takes a waiting message out of circulation."""
    copy = Copy(place="waiting", key=seeded.key, queue=seeded.queue, sha256=seeded.sha256)
    return Action(
        kind=Kind.QUARANTINE, subject=seeded.task_id, source=seeded.queue, destination="quarantine", copies=(copy,)
    )


def counted(client: Redis) -> Counter[str]:
    """Return how often each task id is there, over all queues, quarantines, lists set aside, and the unacked hash."""
    raws: list[bytes] = []
    for key in client.scan_iter():
        kind = client.type(key)
        raws += client.lrange(key, 0, -1) if kind == b"list" else client.hvals(key) if key == b"unacked" else []
    return Counter(_task_id(json.loads(raw)) for raw in raws)


def _task_id(message: Any) -> str:
    return str((message[0] if isinstance(message, list) else message)["headers"]["id"])


def statuses(done: RunResult) -> Counter[str]:
    """Return how many actions came to what."""
    return Counter(str(row["status"]) for row in done.record.outcomes)


def reasons(done: RunResult) -> str:
    """Return all that is said of what was not done, each sentence once."""
    rows = [str(row["reason"]) for row in done.record.outcomes if row["status"] != "applied"]
    return " ".join([*dict.fromkeys(rows), (done.record.error or {}).get("message", "")])


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each batch be as large as the first, however quick or slow this machine is."""
    monkeypatch.setattr(watch.Watch, "after_batch", lambda *_: None)


@contextmanager
def striking(place: str, strike: Callable[[], object], *, time: int = 2) -> Iterator[list[int]]:
    """Let something happen when a run passes a place for the n-th time, and once; yield how often it passed."""
    passed = [0]

    def at(name: str) -> None:
        if name == place:
            passed[0] += 1
            if passed[0] == time:
                strike()

    points.watchers.append(at)
    try:
        yield passed
    finally:
        points.watchers.remove(at)
