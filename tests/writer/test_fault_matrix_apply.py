"""Each fault that can strike a change in its middle → whole batches, every message, the truth, and a way on."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
from redis import RedisError

from opslib import broker as brokers
from opslib.broker import connect
from opslib.errors import Exit
from opslib.writer import lock, watch
from opslib.writer.moves import Move, Mover, Place
from opslib.writer.primitive import Primitive
from opslib.writer.watch import Halted
from tests import command_line
from tests.command_line import call
from tests.support import engines, proxy, roads, servers
from tests.support.faults import counted, crowd, even, reasons, statuses, striking
from tests.support.plans import RUN, audit, values
from tests.support.seed import KEYS
from tests.support.waiting import until

#: Words of the script that moves messages.
MOVES = b"Move messages from where they are"
PATIENCE_S = 0.5
#: What a batch teaches the next ones; otherwise they are all of one size here.
LEARN = watch.Watch.after_batch


pytestmark = pytest.mark.usefixtures(even.__name__)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Nothing of the developer's shell, a folder of its own, and nothing slower than it has to be."""
    for name in os.environ.keys() - command_line.environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("TRIAL", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def impatient(monkeypatch):
    """Give up early: what takes its time to fail need not take a test's."""
    monkeypatch.setattr(brokers, "CONNECT_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(brokers, "READ_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(brokers, "WRITE_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(watch, "_LONGEST_PAUSE_S", 2 * PATIENCE_S)


@pytest.fixture
def scene(place, any_server):
    """A server of each kind, with a queue and a plan for it."""
    with any_server.client() as client:
        yield crowd(client, opened(place, any_server.url))


@pytest.fixture
def near(place, server, redis):
    """The shared server with the same, where the fault is on the way to it."""
    return crowd(redis, opened(place, server.url))


def opened(place, url, **values):
    """Configure the target `trial` and open it."""
    configured(place, url, **values)
    return connect("trial")


def configured(place, url, **values):
    """Configure the target `trial`."""
    lines = [f'{name} = "{value}"' for name, value in {"broker_url": "env:TRIAL", **values}.items()]
    (place / "ops.toml").write_text("\n".join(["[targets.trial]", *lines, ""]))
    os.environ["TRIAL"] = url


def batches(place):
    """Return what the server said of each batch."""
    return [line["said"] for line in audit(place / "reports") if line["event"] == "result"]


def freed(client):
    """Let the lock of a run that could not free it expire."""
    client.delete(KEYS.lock)


# Nobody there, or nobody who says anything


@pytest.mark.parametrize(
    ("url", "said"),
    [("redis://127.0.0.1:1/0", "Connection refused"), ("redis://no-such-host.invalid:6379/0", "cannot be reached")],
    ids=["refused", "unknown host"],
)
def test_nobody_there_between_plan_and_apply(near, server, place, url, said):
    """The command ends at once with exit 4 and a sentence; the plan can be applied once somebody is there."""
    run_id = _planned(near)
    configured(place, url)

    for words in (("apply", run_id, "--yes"), ("undo", run_id, "--apply", "--yes"), ("queue", "purge", "celery")):
        done = call(*words, *(("--target", "trial") if words[0] == "queue" else ()))
        assert (done.code, done.out) == (Exit.CANNOT_SEE, "")
        assert said in done.err

    assert values(near.client) == near.before
    configured(place, server.url)
    assert call("apply", run_id, "--yes").code == Exit.DONE
    near.conserved()
    assert near.kept() == len(near.seeded)


def _planned(scene):
    """Return the id of a dry run whose plan can be applied."""
    from opslib import direct
    from tests.support.faults import quarantine_of
    from tests.support.plans import planned

    plan = planned(scene.broker, *map(quarantine_of, scene.seeded))
    return direct.run("trial", plan, scene.broker, dry_run=True).record.run_id


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_killed_in_the_middle(place):
    """What its disk has is whole batches, and the run goes on after it is back: another process, the same data."""
    with engines.start(engines.REDIS, place, persistent=True) as running, running.client() as client:
        scene = crowd(client, opened(place, running.url))
        with striking("after-intent", running.kill):
            done = scene.run()

        assert done.exit_code is Exit.CANNOT_SEE
        assert f"`ops resume {done.record.run_id}`" in done.record.error["hint"]
        assert statuses(done) == {"unverified": 20, "failed": len(scene.seeded) - 20}
        running.start()
        scene.conserved()
        assert scene.kept() == 20
        freed(client)
        scene.resumed(done.record.run_id)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stops_in_the_middle(scene, any_server):
    """Asked twice for the batch, then left alone; what it did in its sleep is in its journal, and is not done again."""
    begun = time.monotonic()
    try:
        with striking("after-intent", any_server.freeze) as passed:
            done = scene.run()
        took_s = time.monotonic() - begun
    finally:
        any_server.thaw()

    assert passed == [2]
    assert took_s < 15 * PATIENCE_S
    assert done.exit_code is Exit.CANNOT_SEE
    assert f"`ops resume {done.record.run_id}`" in done.record.error["hint"]
    assert not statuses(done)["applied"]
    scene.conserved()
    freed(scene.client)
    scene.resumed(done.record.run_id)
    scene.undone(done.record.run_id)


def test_a_server_that_stops_between_two_batches_is_waited_for(scene, any_server, place):
    """Nothing is sent into the silence; once it answers again, the run goes on."""
    timers = []

    def freeze():
        any_server.freeze()
        timers.append(threading.Timer(1.5, any_server.thaw))
        timers[0].start()
        time.sleep(0.6)  # the watch has to have asked

    try:
        with striking("after-result", freeze, time=1):
            done = scene.run()
    finally:
        timers[0].join()

    assert statuses(done) == {"applied": len(scene.seeded)}
    assert set(batches(place)) == {"APPLIED"}
    scene.conserved()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("end", ["black hole", "closed port", "garbage", "half a reply"])
def test_a_road_that_ends_in_the_middle(near, server, place, end):
    """From one batch to the next there is another listener behind the name: it is asked once more, and left."""
    with roads.switched(server.port) as (port, switch):
        near.broker = opened(place, server.url.replace(f":{server.port}/", f":{port}/"))
        with striking("after-intent", lambda: switch(end)):
            done = near.run()
        switch("")
        assert done.exit_code is Exit.CANNOT_SEE, done.record.error
        assert "defect" not in reasons(done)
        near.conserved()
        assert near.kept() == 20
        freed(near.client)
        near.resumed(done.record.run_id)


# Answers that get lost, come in pieces or take their time


@pytest.mark.parametrize("time_of", [1, 3])
def test_an_answer_that_is_lost_after_the_batch_was_done(near, server, place, time_of):
    """The journal answers when it is asked again, and nothing is there twice."""
    with proxy.before(server) as road:
        near.broker = opened(place, road.url)
        with striking("after-intent", lambda: road.lose(MOVES), time=time_of):
            done = near.run()

    assert road.lost == 1
    assert statuses(done) == {"applied": len(near.seeded)}
    assert Counter(batches(place))["REPLAY"] == 1
    near.conserved()
    configured(place, server.url)
    near.undone(done.record.run_id)


def test_a_batch_whose_answer_is_lost_twice_is_told_by_its_journal(near, server, place):
    """Nothing more is sent; what the journal has is told as done, and the rest is done by resuming."""
    with proxy.before(server) as road:
        near.broker = opened(place, road.url)
        with striking("after-intent", lambda: road.lose(MOVES, times=2)) as passed:
            done = near.run()
        assert passed == [2]
        assert done.exit_code is Exit.ATTENTION
        assert 20 <= statuses(done)["applied"] < len(near.seeded)
        assert statuses(done)["failed"] == len(near.seeded) - statuses(done)["applied"]
        near.conserved()
        near.resumed(done.record.run_id)


def test_a_server_far_away(near, server, place, monkeypatch):
    """A tenth of a second for each answer: the run ends well, is not taken for trouble, and its batches do not grow."""
    sizes = []

    def noted(self, took_s):
        LEARN(self, took_s)
        sizes.append(self.batch)

    monkeypatch.setattr(watch.Watch, "after_batch", noted)
    with roads.slow(server.port, 0.1) as port:
        near.broker = opened(place, server.url.replace(f":{server.port}/", f":{port}/"))
        with striking("after-result", lambda: time.sleep(2.5), time=1):  # until the watch knows the way
            done = near.run()

    assert statuses(done) == {"applied": len(near.seeded)}
    assert max(sizes) <= 20
    near.conserved()


# Servers that are busy


def test_a_server_paused_for_a_second_is_waited_for(scene, place):
    """Reads and writes alike: the batch on its way takes as long as the pause."""
    with striking("after-intent", lambda: scene.client.client_pause(1000, all=True)):
        done = scene.run()

    assert statuses(done) == {"applied": len(scene.seeded)}
    assert set(batches(place)) == {"APPLIED"}
    scene.conserved()


@pytest.mark.usefixtures("impatient")
def test_a_server_whose_writes_are_paused_for_long(scene):
    """As before a failover by hand: what was sent is not done later, and what is told is true."""
    begun = time.monotonic()
    with striking("after-intent", lambda: scene.client.client_pause(60_000, all=False)):
        done = scene.run()
    took_s = time.monotonic() - begun
    scene.client.client_unpause()

    assert done.exit_code is Exit.CANNOT_SEE
    assert took_s < 15 * PATIENCE_S
    assert scene.kept() == 20
    scene.conserved()
    freed(scene.client)
    scene.resumed(done.record.run_id)


@pytest.mark.parametrize("ends", [True, False], ids=["ends soon", "goes on"])
@pytest.mark.usefixtures("impatient")
def test_a_server_busy_with_a_script(scene, any_server, monkeypatch, ends):
    """Met between two batches, it is waited for; one that does not end ends the run, with whole batches."""
    monkeypatch.setattr(watch, "_LONGEST_PAUSE_S", 20 if ends else 1)
    scene.client.config_set("lua-time-limit", 50)
    script = "local t = redis.call('TIME')[1] + ARGV[1] while redis.call('TIME')[1] + 0 < t do end"

    def block():
        with any_server.client(timeout_s=0.3) as client, suppress(RedisError):
            client.eval(script if ends else "while true do end", 0, 2)

    def block_and_wait():
        block()
        until(lambda: any(thread.name == "opslib-watch" for thread in threading.enumerate()), 5, "it is watched")
        time.sleep(0.3)

    try:
        with striking("after-result", block_and_wait, time=1):
            done = scene.run()
    finally:
        with any_server.client() as client:
            if not ends:
                client.script_kill()
            until(lambda: _answers(client), 10, "the script is gone")

    if ends:
        assert statuses(done) == {"applied": len(scene.seeded)}
    else:
        assert done.exit_code is Exit.CANNOT_SEE
        assert "busy with a script" in reasons(done)
        assert scene.kept() == 20
    scene.conserved()
    freed(scene.client)
    if not ends:
        scene.resumed(done.record.run_id)


def _answers(client):
    with suppress(RedisError):
        return client.ping()
    return False


# Servers that take no more writes


def _no_memory(client):
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", "256mb")


def _too_few_replicas(client):
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


def _demoted(client):
    client.replicaof("127.0.0.1", 1)
    return lambda: client.replicaof("no", "one")


REFUSING = {
    "out of memory": (_no_memory, "out of memory"),
    "too few replicas": (_too_few_replicas, "takes no writes"),
    "demoted": (_demoted, "is a replica"),
}


@pytest.mark.parametrize("case", REFUSING)
def test_a_server_that_takes_no_more_writes_in_the_middle(scene, any_server, case):
    """The batch is refused whole, before anything is removed; the verdict is unknown, and the run can be ended."""
    if (any_server.kind, case) == (engines.OLDEST, "too few replicas"):
        pytest.skip("Redis 6.2 does not refuse it to a script")
    refuse, said = REFUSING[case]
    heal = []
    with striking("after-intent", lambda: heal.append(refuse(scene.client))):
        done = scene.run()
    heal[0]()

    assert said in reasons(done)
    assert (done.record.verdict, done.exit_code) == ("unknown", Exit.ATTENTION)
    assert statuses(done)["failed"] == len(scene.seeded) - 20
    assert scene.kept() == 20
    scene.conserved()
    freed(scene.client)
    scene.resumed(done.record.run_id)
    scene.undone(done.record.run_id)


@pytest.mark.parametrize("case", [name for name in REFUSING if name != "out of memory"])
def test_a_server_that_takes_no_writes_at_all(scene, case):
    """The run is refused with exit 5 before it holds the lock, and nothing is removed."""
    refuse, said = REFUSING[case]
    heal = refuse(scene.client)
    try:
        done = scene.run()
        purged = call("queue", "purge", "celery", "--target", "trial", "--apply", "--yes")
    finally:
        heal()

    assert (done.exit_code, purged.code) == (Exit.REFUSED, Exit.REFUSED)
    assert said in done.record.error["message"]
    assert said in purged.out
    assert values(scene.client) == scene.before
    assert not scene.client.exists(KEYS.lock)


def test_a_full_server_is_purged_from_the_command_line_and_not_called_healthy(scene):
    """Renaming needs no memory; that nodes cannot be asked then makes the verdict unknown."""
    scene.client.config_set("maxmemory", 1)

    refused = scene.run()
    for each in scene.client.client_list():  # in one process with this test; that they are connected counts as a run
        if each["name"].startswith("opslib:"):
            scene.client.client_kill_filter(_id=each["id"])
    purged = call("queue", "purge", "celery", "--target", "trial", "--apply", "--yes", "-o", "json")

    scene.client.config_set("maxmemory", "256mb")
    assert refused.exit_code is Exit.REFUSED
    assert purged.code == Exit.DONE
    assert '"verdict": "unknown"' in purged.out
    assert not scene.client.exists("celery")
    assert counted(scene.client) == Counter(each.task_id for each in scene.seeded)


def test_a_disk_of_the_server_that_takes_no_more(place):
    """Its last copy to the disk failed on the way: it refuses whole batches from then on."""
    disk = place / "disk"
    disk.mkdir()
    lines = [f"dir {disk}", "save 3600 100000"]
    with engines.start(engines.REDIS, place, extra=lines) as running, running.client() as client:
        scene = crowd(client, opened(place, running.url))

        def fail():
            disk.rmdir()
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10, "it could not save")

        with striking("after-intent", fail):
            done = scene.run()
        client.config_set("stop-writes-on-bgsave-error", "no")

        assert "takes no writes" in reasons(done)
        assert done.exit_code is Exit.ATTENTION
        assert scene.kept() == 20
        freed(client)
        scene.resumed(done.record.run_id)


def test_connections_run_out_in_the_middle(scene, monkeypatch):
    """A run that takes part in a leak of connections leaves: whoever works there needs them more."""
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.1)

    def crowded():
        gc.collect()  # connections of other tests
        scene.client.config_set("maxclients", scene.client.info("clients")["connected_clients"])
        time.sleep(0.6)

    try:
        with striking("after-result", crowded, time=1):
            done = scene.run()
    finally:
        scene.client.config_set("maxclients", 1000)

    assert "connections in use" in reasons(done)
    assert statuses(done)["applied"] == scene.kept() == 20
    scene.conserved()
    scene.resumed(done.record.run_id)


# Other servers under the same name


def test_a_failover_in_the_middle(place):
    """Nothing is sent to the new primary; what the failover rolled back is told as unknown, and then done there."""
    with engines.failover(place) as group, group.primary.client() as client, group.replica.client() as other:
        scene = crowd(client, opened(place, group.url, master_name=engines.MASTER))
        assert client.wait(1, 5000) == 1

        def fail_over():
            # What was done until now has reached the replica, and the next batch will not.
            assert client.wait(1, 5000) == 1
            group.replica.freeze()
            client.client_kill_filter(_type="replica")

        def kill():
            group.primary.kill()
            group.replica.thaw()
            group.until_failed_over()

        with striking("after-intent", fail_over), striking("after-result", kill):
            done = scene.run()

        scene.conserved(other)
        assert scene.kept(other) == 20
        assert statuses(done) == {"applied": 20, "unverified": 20, "failed": len(scene.seeded) - 40}
        assert "cannot-see" in {row["code"] for row in done.record.remaining}
        assert "rolled it back" in reasons(done)
        assert "failed over" in reasons(done)
        freed(other)
        scene.resumed(done.record.run_id, other)
        scene.undone(done.record.run_id, other)


@pytest.mark.slow
def test_a_planned_failover_in_the_middle(place):
    """Both live, and have changed their roles from one batch to the next: the run ends, and goes on as another one."""
    with engines.failover(place) as group, group.primary.client() as client, group.replica.client() as other:
        scene = crowd(client, opened(place, group.url, master_name=engines.MASTER))

        def fail_over():
            assert client.wait(1, 5000) == 1
            with engines.sentinel(group.ports[0]) as sentinel:
                sentinel.execute_command("SENTINEL", "FAILOVER", engines.MASTER)
            group.until_failed_over()
            until(lambda: client.info("replication")["role"] == "slave", 20, "the old primary follows")

        with striking("after-result", fail_over, time=1):
            done = scene.run()

        assert statuses(done)["applied"] == scene.kept(other) == 20
        assert statuses(done)["failed"] == len(scene.seeded) - 20
        assert "failed over" in reasons(done) or "is a replica" in reasons(done)
        scene.conserved(other)
        freed(other)
        scene.resumed(done.record.run_id, other)


def test_a_batch_for_another_server_is_refused_by_its_script(scene):
    """The lock is replicated, and a client connects again by itself: the script knows for which server it is."""
    taken = scene.seeded[0]
    move = Move(subject="x", source=Place(key="celery"), seen=taken.raw, destination=Place(key="elsewhere"))
    with lock.held(scene.broker, run_id=RUN, plan_digest="d") as held:
        hand = Mover(Primitive(scene.broker, held, run_id=RUN, told={"server": "another"}))
        for _ in range(2):
            with pytest.raises(Halted, match="failed over"):
                hand.move([move])

    assert values(scene.client) == scene.before
    assert not scene.client.exists(KEYS.journal(RUN))


def test_a_node_of_a_cluster_is_not_changed(place):
    """Celery cannot use one, so nothing there is meant."""
    with engines.start(engines.REDIS, place, extra=["cluster-enabled yes"]) as running:
        configured(place, running.url)

        done = call("queue", "purge", "celery", "--target", "trial", "--apply", "--yes")

    assert (done.code, done.out) == (Exit.CANNOT_SEE, "")
    assert "Redis Cluster" in done.err


def test_a_server_restarted_empty(place):
    """Neither the plan nor the rest of a run is for it, whatever its name."""
    with engines.start(engines.REDIS, place) as running, running.client() as client:
        scene = crowd(client, opened(place, running.url))
        planned = _planned(scene)
        with striking("before-verify", lambda: None), striking("after-intent", running.kill):
            begun = scene.run()
        running.start()
        crowd(client, scene.broker)
        before = servers.dump(client)

        for words in (("apply", planned, "--yes"), ("resume", begun.record.run_id)):
            done = call(*words)
            assert done.code == Exit.REFUSED, done
            assert "restarted" in done.out + done.err
        undone = call("undo", begun.record.run_id, "--apply", "--yes")

        assert undone.code == Exit.USAGE
        assert "knows nothing of a run" in undone.err
        assert servers.dump(client) == before


# The lock


def test_a_second_operator_is_told_who_the_first_is(near):
    """Exit 5, with the run that holds the broker; nothing is changed, and nothing taken from the first."""
    near.client.set(KEYS.lock, '{"token": "0123456789abcdef", "run": "20261121T021500Z-x-7f3a9c", "who": "ada"}')
    held = near.client.get(KEYS.lock)

    done = near.run()
    purged = call("queue", "purge", "celery", "--target", "trial", "--apply", "--yes")

    assert (done.exit_code, purged.code) == (Exit.REFUSED, Exit.REFUSED)
    for said in (done.record.error["message"], purged.out):
        assert "20261121T021500Z-x-7f3a9c by ada" in said
    assert near.client.get(KEYS.lock) == held
    assert values(near.client) == near.before


@pytest.mark.parametrize("noticed", [True, False], ids=["by the watch", "by the script"])
def test_a_lock_that_is_lost_while_the_run_is_paused(scene, monkeypatch, noticed, place):
    """Another run holds the broker by now: nothing more is written, and its lock stays."""
    if noticed:
        monkeypatch.setattr(watch, "_RENEW_EVERY_S", 0.0)
    other = '{"token": "another", "run": "r"}'

    def lose():
        scene.client.set(KEYS.lock, other)
        if noticed:
            time.sleep(0.5)

    with striking(*(("after-result", lose) if noticed else ("after-intent", lose)), time=1 if noticed else 2):
        done = scene.run()

    assert "lock was lost" in reasons(done)
    assert ("FENCED" in batches(place)) is not noticed
    assert statuses(done)["applied"] == scene.kept() == 20
    assert scene.client.get(KEYS.lock) == other.encode()
    scene.conserved()
    freed(scene.client)
    scene.resumed(done.record.run_id)


def test_a_purge_is_one_batch_whatever_strikes(near, server, place):
    """All of a queue or nothing of it, and the way back by the run's id."""
    with proxy.before(server) as road:
        opened(place, road.url)
        road.lose(b"Give whole lists another name")

        done = call("queue", "purge", "celery", "--target", "trial", "--apply", "--yes", "-o", "json")

    assert road.lost == 1
    assert done.code == Exit.DONE
    assert batches(place) == ["REPLAY"]
    near.conserved()
    opened(place, server.url)
    near.undone(audit(place / "reports")[0]["run_id"])
