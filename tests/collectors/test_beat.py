"""What real beats leave behind is read: redbeat's keys, nodes' configuration, messages of two; what is odd is said."""

from __future__ import annotations

import json
import time

import pytest
from redis import Redis

from opslib import records
from opslib.collectors.beat import schedule
from opslib.demo import server as embedded
from opslib.errors import BadParameter
from opslib.symptoms import beat_schedule
from opslib.writer import apply
from tests.support import servers
from tests.support.plans import told, undone
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, deployment

ENTRIES = {
    "often": {
        "task": "tests.ok",
        "schedule": 1.0,
        "args": [1, "a secret"],
        "options": {"queue": "clock", "priority": 3},
    },
    "rarely": {"task": "tests.sleep", "schedule": 86_400.0},
}
REDBEAT = "redbeat.RedBeatScheduler"
PERSISTENT = "celery.beat.PersistentScheduler"


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A server with one node that tells its configuration, and consumes nothing that beat sends."""
    folder = tmp_path_factory.mktemp("beat")
    with embedded.start(folder) as server, deployment(server, folder) as found:
        yield found


@pytest.fixture(scope="module")
def conf(system):
    """The application's configuration, as nodes and beats have it."""
    url = system.server.url
    return {
        "beat_schedule": ENTRIES,
        "beat_max_loop_interval": 2,
        "redbeat_lock_timeout": 300,
        "redbeat_redis_url": url,
    }


@pytest.fixture(scope="module")
def node(system, conf):
    """A node."""
    return system.worker(pool="solo", conf=conf)


@pytest.fixture
def clean(system, node):
    """The server without what an earlier test's beat left; its node answers still."""
    assert node
    for key in [*system.redis.scan_iter("redbeat*"), "clock", "clock\x06\x163"]:
        system.redis.delete(key)
    return servers.broker(system.server)


def by_name(seen):
    """Return the entries of a schedule by their names."""
    return {row.name: row for row in seen.entries}


def test_redbeat_s_entries_are_read_as_it_writes_them(system, conf, clean):
    """What, how often, when last and next; and its beat's lock, with when that was renewed."""
    beat = system.beat(conf=conf)
    until(lambda: system.redis.exists("redbeat:often"), DEADLINE_S, "redbeat has written its schedule")
    until(lambda: by_name(schedule(clean))["often"].runs, DEADLINE_S, "an entry was sent")
    seen = schedule(clean)
    beat.kill()
    often, rarely = by_name(seen)["often"], by_name(seen)["rarely"]

    assert (often.source, often.task, often.when) == ("redbeat", "tests.ok", "every 1.0 s")
    assert (often.queue, often.priority, often.is_on, often.is_static) == ("clock", 3, True, True)
    assert abs(often.last_run_at - seen.taken_at.timestamp()) < 30
    assert json.loads(often.call)["args"] == [1, "a secret"]
    assert "a secret" not in repr(often)
    assert (rarely.when, rarely.runs) == ("every 1 d", None)
    assert rarely.due_at - seen.taken_at.timestamp() > 80_000
    assert (seen.lock.key, seen.interval_s, seen.elsewhere) == ("redbeat::lock", 2.0, "")
    assert 0 <= seen.lock.renewed_ago_s < 60
    assert not seen.silent_places


def test_a_schedule_that_is_only_configured_is_told_by_nodes(clean):
    """When it ran, and whether beat lives, is not seen, and that is said."""
    seen = schedule(clean)
    often = by_name(seen)["often"]

    assert (often.source, often.when, often.queue) == ("configuration", "every 1.0 s", "clock")
    assert (often.is_on, often.last_run_at, often.due_at, seen.lock) == (None, None, None, None)
    assert [row.place for row in seen.silent_places] == ["beat's own file"]


def test_two_beats_are_seen_by_their_messages(system, conf, clean):
    """Of Celery's own kind, which know nothing of each other; one after the other is no such thing."""
    first = system.beat(scheduler=PERSISTENT, conf=conf, name="first")
    until(lambda: system.redis.llen("clock\x06\x163") >= 3, DEADLINE_S, "the first beat sends")
    first.kill()
    second = system.beat(scheduler=PERSISTENT, conf=conf, name="second")
    until(lambda: system.redis.llen("clock\x06\x163") >= 6, DEADLINE_S, "the second beat sends")
    assert schedule(clean).twice == ()

    third = system.beat(scheduler=PERSISTENT, conf=conf, name="third")
    until(lambda: schedule(clean).twice, DEADLINE_S, "both were seen")
    second.kill()
    third.kill()
    (found,) = schedule(clean).twice

    assert (found.task, found.queue) == ("tests.ok", "clock")
    assert len(found.senders) >= 2


def test_what_redbeat_cannot_have_written_is_named(system, clean):
    """Each with why; the others are read, and the view is said not to be whole."""
    redis, now = system.redis, time.time()
    redis.hset("redbeat:good", "definition", json.dumps({"name": "good", "task": "tests.ok", "schedule": 5}))
    redis.hset("redbeat:odd", "definition", "{no JSON")
    redis.hset("redbeat:list", "definition", "[1]")
    redis.hset("redbeat:large", "definition", "x" * 300_000)
    redis.set("redbeat:text", "a")
    names = ["good", "odd", "list", "large", "text", "gone"]
    redis.zadd("redbeat::schedule", {f"redbeat:{name}": now + 60 for name in names})

    seen = schedule(clean)
    why = {name: row.problem for name, row in by_name(seen).items() if row.source == "redbeat"}

    assert why.pop("good") == ""
    assert why == {
        "odd": "Its definition cannot be read.",
        "list": "Its definition cannot be read.",
        "large": "Its definition has 300,000 bytes.",
        "text": "Its key is no hash of redbeat's.",
        "gone": "It stands in the schedule and has no definition; beat drops it.",
    }
    (row,) = [row for row in seen.silent_places if row.place == "schedule"]
    assert row.silent == 5


def test_a_name_that_is_something_else_is_no_schedule(system, clean):
    """Nor is a lock of another type."""
    system.redis.set("redbeat::schedule", "a text")
    system.redis.rpush("redbeat::lock", "a list")

    seen = schedule(clean)

    assert (seen.lock, {row.source for row in seen.entries}) == (None, {"configuration"})


@pytest.fixture
def beside(system):
    """Another database of the server, with an entry of redbeat's."""
    with embedded_client(system, 7) as client:
        definition = {"name": "nightly", "task": "tests.ok", "schedule": 60, "enabled": True}
        client.hset("redbeat:nightly", "definition", json.dumps(definition))
        client.zadd("redbeat::schedule", {"redbeat:nightly": time.time() + 60})
        yield client
        client.delete("redbeat:nightly", "redbeat::schedule")


def embedded_client(system, number):
    """Return a client of another database of the system's server."""
    return Redis.from_url(elsewhere(system, number))


def elsewhere(system, number):
    """Return the URL of another database of the system's server."""
    return system.server.url.replace("/0", f"/{number}")


def test_one_that_a_node_says_is_beside_the_broker_is_read_and_not_changed(system, conf, clean, beside):
    """With the broker's own credentials; on another server, it is only named, without its password."""
    known = {**conf, "redbeat_redis_url": elsewhere(system, 7)}
    node = system.worker(pool="solo", conf=known, name="another@trial")
    seen = schedule(clean)
    node.kill()
    with pytest.raises(BadParameter, match="as a node says"):
        beat_schedule.plan(seen, do="pause", name="nightly")

    assert beside.exists("redbeat:nightly")
    assert (by_name(seen)["nightly"].source, seen.site) == ("redbeat", "")
    assert seen.elsewhere.endswith("/7")
    assert "***" in seen.elsewhere
    assert not seen.silent_places
    assert beat_schedule.plan(seen, do="run", name="nightly")


def test_one_on_another_server_is_named(system, conf, clean):
    """What a node says is not enough to connect to a stranger."""
    known = {**conf, "redbeat_redis_url": "redis://:a-password@elsewhere.invalid/7"}
    node = system.worker(pool="solo", conf=known, name="another@trial")
    seen = schedule(clean)
    node.kill()
    (row,) = [row for row in seen.silent_places if row.place == "schedule"]

    assert seen.elsewhere == "redis://:***@elsewhere.invalid/7"
    assert seen.elsewhere in row.note
    assert "beat_url" in row.note


def test_one_that_the_target_names_is_read_and_changed_there(system, clean, beside, archive):
    """Under a lock and with a journal of that database; an undo finds it."""
    assert archive.is_dir()
    assert clean
    broker = servers.broker(system.server, beat_url=elsewhere(system, 7))
    seen = schedule(broker)
    (outcome,) = apply(beat_schedule.plan(seen, do="pause", name="nightly"), broker, dry_run=False)
    paused = json.loads(beside.hget("redbeat:nightly", "definition"))
    back = undone(broker, records.context().run_id)

    assert seen.site not in {"", seen.fingerprint}
    assert (outcome.status, paused["enabled"]) == ("applied", False)
    assert told(back) == ["applied"]
    assert json.loads(beside.hget("redbeat:nightly", "definition"))["enabled"]


def test_one_that_does_not_answer_is_not_an_empty_one(system, clean):
    """The rest is seen all the same."""
    assert clean
    seen = schedule(servers.broker(system.server, beat_url="redis://:a-password@127.0.0.1:1/0"))

    assert seen.nodes
    assert [row.place for row in seen.silent_places if row.place == "schedule"] == ["schedule"]
    assert not [row for row in seen.silent_places if "a-password" in row.note]


def test_without_nodes_and_schedule_there_is_nothing(broker):
    """And nothing is claimed of a lock's age, as nobody tells for how long it is taken."""
    broker.writes.set("redbeat::lock", "token", ex=1_000)

    seen = schedule(broker)

    assert seen.entries == ()
    assert (seen.lock.renewed_ago_s, round(seen.lock.life_s)) == (None, 1_000)
