"""A hundred thousand messages leave circulation and come back by two commands: every byte, every place."""

from __future__ import annotations

import hashlib
import json
import uuid

import pytest

from opslib.embedded.server import Server
from opslib.errors import Exit
from opslib.keys import Keyspace
from opslib.render import archive
from tests.command_line import call
from tests.support.seed import envelope

MESSAGES = 100_000
LISTS = {0: 70_000, 3: 20_000, 6: 9_000, 9: 1_000}


def fingerprints(client) -> dict[bytes, str]:
    """Return the digest of every list that is not ours, read in windows."""
    found = {}
    for key in sorted(key for key in client.scan_iter() if b"opslib:" not in key):
        seen = hashlib.sha256()
        for start in range(0, client.llen(key), 2_000):
            for raw in client.lrange(key, start, start + 1_999):
                seen.update(b"%d:%b" % (len(raw), raw))
        found[key] = seen.hexdigest()
    return found


@pytest.fixture
def full(server: Server, redis, monkeypatch):
    """A queue of four priorities; no two messages are alike."""
    model = json.dumps(envelope(task_id="TASK", queue="celery", tag="TAG"))
    for priority, count in LISTS.items():
        with redis.pipeline(transaction=False) as pipe:
            for _ in range(count):
                message = model.replace("TASK", str(uuid.uuid4())).replace("TAG", str(uuid.uuid4()))
                pipe.lpush(Keyspace().queue("celery", priority), message)
            pipe.execute()
    monkeypatch.setenv("OPS_BROKER_URL", server.url)
    return redis


def test_a_purge_and_its_undo_leave_the_broker_byte_for_byte_as_it_was(full, place):
    """In constant time, whatever the size; priorities included."""
    before = fingerprints(full)
    assert sum(full.llen(key) for key in before) == MESSAGES

    purged = call("queue", "purge", "celery", "--apply", "--yes")
    assert f"{MESSAGES:,} messages are kept in quarantine" in purged.out
    assert fingerprints(full) == {}
    (run,) = archive.runs(place / "reports")
    undone = call("undo", run.run_id, "--apply", "--yes")

    assert undone.code == Exit.DONE
    assert fingerprints(full) == before
