"""A server that is out of memory can still be relieved of a queue, and gets it back when it has room again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib import records
from opslib.envelope import digest
from opslib.errors import LockHeld, Refused
from opslib.plan import Action, Copy, Kind
from opslib.selection import Selection
from opslib.writer import apply, undo
from tests.support import servers
from tests.support.plans import RUN, audit, planned, purge_of, told, undone, values
from tests.support.seed import KEYS, seed_waiting


@pytest.fixture
def full(any_server, archive):
    """A broker of each kind that has room for nothing, with two queues; audited in an archive of its own."""
    assert archive.is_dir()
    with any_server.client() as client:
        for priority in (0, 3):
            for _ in range(20):
                seed_waiting(client, priority=priority)
        broker = servers.broker(any_server)
        plan = planned(broker, purge_of(broker, "celery"))
        client.config_set("maxmemory", "1")
        yield broker, plan, client
        client.config_set("maxmemory", "256mb")


def test_a_full_server_is_relieved_of_a_queue(full, archive):
    """By renaming alone, on record in the file; once it has room, everything is where it was."""
    broker, plan, client = full
    before = values(client)

    (outcome,) = apply(plan, broker, dry_run=False)
    assert outcome.status == "applied"
    assert "no journal" in outcome.reason
    assert not values(client)
    assert [line["event"] for line in audit(archive)] == ["begin", "intent", "result", "end"]
    client.config_set("maxmemory", "256mb")
    assert told(undone(broker, records.context().run_id)) == ["applied"] * 2

    assert values(client) == before
    assert len(undo.plan(broker, records.context().run_id)) == 0


def test_what_was_purged_for_another_run_is_undone_by_that_ones_id(full):
    """A saved plan is applied under the id by which a person knows it."""
    broker, plan, client = full
    before = values(client)

    assert told(apply(replace(plan, continues=RUN), broker, dry_run=False)) == ["applied"]
    client.config_set("maxmemory", "256mb")

    assert len(undo.plan(broker, RUN)) == 2
    assert told(undone(broker, RUN)) == ["applied"] * 2
    assert values(client) == before


def test_what_is_kept_does_not_expire_with_its_queue(full):
    """A queue may be bound to expire, and a name keeps its life when it is changed."""
    broker, plan, client = full
    client.config_set("maxmemory", "256mb")
    assert client.pexpire("celery", 600_000)
    client.config_set("maxmemory", "1")

    assert told(apply(plan, broker, dry_run=False)) == ["applied"]

    kept = KEYS.quarantine_of_full(records.context().run_id, "celery")
    assert (client.llen(kept), client.ttl(kept)) == (20, -1)


def test_a_part_of_a_queue_is_not_purged_as_a_whole(full):
    """To tell what is meant from the rest needs memory."""
    broker, plan, client = full
    (action,) = plan
    part = replace(action, only=Selection(task="tests.other"))
    before = values(client)

    with pytest.raises(Refused, match="out of memory"):
        apply(planned(broker, part), broker, dry_run=False)

    assert values(client) == before


def test_whoever_holds_the_lock_is_not_passed_by(full):
    """It was taken while there was room."""
    broker, plan, client = full
    client.config_set("maxmemory", "256mb")
    client.set(KEYS.lock, '{"token": "another", "run": "r"}')
    client.config_set("maxmemory", "1")
    before = values(client)

    with pytest.raises(LockHeld):
        apply(plan, broker, dry_run=False)

    assert values(client) == before


def test_another_run_that_is_connected_for_changes_is_not_passed_by(full):
    """There is no lock to tell, so its name must do."""
    broker, plan, client = full
    client.client_setname("opslib:20261121T021500Z-stuck-tasks-7f3a9c")
    before = values(client)

    with pytest.raises(LockHeld, match="7f3a9c"):
        apply(plan, broker, dry_run=False)

    assert values(client) == before


def test_nothing_else_is_done_on_a_full_server(full):
    """Whatever needs a journal is refused, with what to do."""
    broker, _, client = full
    (raw,) = client.lrange("celery", -1, -1)
    copy = Copy(place="waiting", key="celery", queue="celery", sha256=digest(raw))
    action = Action(kind=Kind.QUARANTINE, subject="x", source="celery", destination="quarantine", copies=(copy,))
    before = values(client)

    with pytest.raises(Refused, match="out of memory"):
        apply(planned(broker, action), broker, dry_run=False)

    assert values(client) == before
