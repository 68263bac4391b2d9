"""A reset on real nodes: nothing old comes back, the new goes on, and all that was taken can be put back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib import records
from opslib.broker import Broker
from opslib.collectors.deployment import collect
from opslib.plan import Kind
from opslib.writer import undo
from tests.support import servers
from tests.support.plans import undone
from tests.support.resets import (
    NODE,
    VISIBILITY_S,
    Seeded,
    by_step,
    carried_out,
    consumed,
    ids,
    lists,
    own,
    reset,
    seed,
    unacked,
)
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment


@pytest.fixture
def broken(tmp_path: Path, archive: Path) -> Iterator[Deployment]:
    """A deployment of its own."""
    assert archive.is_dir()
    with own(tmp_path / "server") as made:
        yield made


@pytest.fixture
def there(broken: Deployment) -> Seeded:
    """What is in flight on it."""
    return seed(broken)


@pytest.fixture
def broker(broken: Deployment) -> Broker:
    """Open clients of it."""
    return servers.broker(broken.server)


def test_nothing_old_runs_or_comes_back_and_the_new_does(broken: Deployment, there: Seeded, broker: Broker) -> None:
    """Under a live producer, over more than two visibility timeouts."""
    plan = reset(broker)
    new: list[str] = []
    over = threading.Event()

    def produce() -> None:
        while not over.wait(0.1):
            new.append(broken.send("ok"))

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        outcomes = carried_out(broker, plan)
        cleared = len(new)
        ran = {each: broken.ran(each) for each in there.every}
        until(lambda: len(new) > cleared + 5, DEADLINE_S, "the producer has gone on")
    finally:
        over.set()
        producer.join()

    assert all(words <= {"applied", "skipped"} for words in by_step(outcomes).values()), outcomes
    canaries = [o for o in outcomes if o.action.kind is Kind.CANARY]
    assert [o.action.subject for o in canaries] == ["celery", "mail"]
    assert all(f"ran on {NODE}" in o.reason and "SUCCESS" in o.reason for o in canaries)
    broken.until_done(*new[cleared:])
    swept_at = time.monotonic() + 2 * VISIBILITY_S + 1

    def none_is_back() -> bool:
        assert not there.every & (broken.unacked().keys() | ids(broken.redis))
        return time.monotonic() > swept_at  # it has to stay so; what would come back, comes within this

    until(none_is_back, DEADLINE_S, "two visibility timeouts are over")
    assert {each: broken.ran(each) for each in there.every} == ran
    assert not [row for row in collect(broker, settle="0.1s").held if row.place == "active"]
    assert consumed(broker) == {NODE: ("celery", "mail")}


def test_undo_puts_every_message_back_once_no_node_remembers(broken: Deployment, there: Seeded, broker: Broker) -> None:
    """To the byte: lists in their order, deliveries with their scores."""
    before, delivered = lists(broken.redis), unacked(broken.redis)
    assert len(delivered) >= 4
    carried_out(broker, reset(broker, canary=False))
    assert not unacked(broken.redis)
    assert not lists(broken.redis)
    there.worker.kill()  # it remembers what was revoked, and would drop it

    undone(broker, records.context().run_id)

    assert lists(broken.redis) == before
    assert unacked(broken.redis) == delivered


def test_undo_keeps_what_a_node_would_drop_and_has_it_consume_again(
    broken: Deployment, there: Seeded, broker: Broker
) -> None:
    """What waited runs; what was revoked stays kept, with the reason; what is not undone is said."""
    plan = reset(broker)
    carried_out(broker, plan)
    run_id = records.context().run_id

    outcomes = undone(broker, run_id)

    kept = [o for o in outcomes if o.status == "failed"]
    assert kept
    assert all("remembers the revoke" in o.reason and "It stays kept" in o.reason for o in kept)
    assert not {o.action.subject for o in kept} - there.every
    waited = there.every - {o.action.subject for o in kept} - set(there.hung)
    broken.until_done(*waited)
    assert consumed(broker) == {NODE: ("celery", "mail")}
    (stop,) = [action for action in plan if action.kind is Kind.STOP]
    assert "no undo brings that back" in stop.effect
    assert undo.not_undone(broker, run_id) == [
        "A task that was ended while it ran has lost its work; nodes that run on drop what was revoked.",
        "2 canaries ran, and changed nothing.",
    ]


def test_only_what_fits_queue_and_task_is_taken(broken: Deployment, there: Seeded, broker: Broker) -> None:
    """Another queue is not paused, and another task of the same queue waits on."""
    others = {broken.send("sleep", 0) for _ in range(5)}
    plan = reset(broker, queue="cel*", task="tests.ok", canary=False)
    assert {a.subject for a in plan if a.kind in {Kind.PAUSE, Kind.PURGE, Kind.STOP, Kind.RESUME}} == {"celery"}

    outcomes = carried_out(broker, plan)

    assert all(words <= {"applied", "skipped"} for words in by_step(outcomes).values()), outcomes
    left = ids(broken.redis) | broken.unacked().keys()
    assert others | set(there.timed) | set(there.hung[:1]) <= left
    assert not set(there.waits) & left
    assert consumed(broker) == {NODE: ("celery", "mail")}
