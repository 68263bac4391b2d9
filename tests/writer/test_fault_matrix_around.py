"""Faults around a change: rights, clocks, versions, stamps, disks, kernels, the look afterwards → refused, or told."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from opslib import broker as brokers
from opslib import catalog, direct, folders, records, run
from opslib import plan as plans
from opslib.broker import connect
from opslib.collectors import deployment
from opslib.envelope import digest
from opslib.errors import BrokerRefused, Exit, Refused
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply
from tests import command_line, tiny
from tests.command_line import call
from tests.support import engines, proxy, servers
from tests.support.faults import counted, crowd, even, quarantine_of, reasons, statuses, striking
from tests.support.plans import audit, planned, values
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.waiting import until

#: What docs/safety.md gives a user who may apply.
RECIPE = re.search(
    r"^ACL SETUSER ops_change on >PASSWORD (.*)$",
    (Path(__file__).parents[2] / "docs" / "safety.md").read_text("utf-8"),
    flags=re.MULTILINE,
)[1]
#: Its single rights, without the groups.
RIGHTS = [word.removeprefix("+") for word in RECIPE.split() if word.startswith("+") and "@" not in word]
PURGE = ("queue", "purge", "celery", "--target", "trial", "--apply", "--yes")


pytestmark = pytest.mark.usefixtures(even.__name__)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Nothing of the developer's shell, a folder of its own, and the target `trial`."""
    for name in os.environ.keys() - command_line.environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("OPS_RUNBOOKS", str(tmp_path / "runbooks"))
    monkeypatch.setenv("TRIAL", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Do not wait between two looks: nothing here moves."""
    monkeypatch.setattr(deployment, "collect", partial(deployment.collect, settle="0.01s"))


@pytest.fixture
def impatient(monkeypatch):
    """Give up early: what takes its time to fail need not take a test's."""
    for name in ("CONNECT_TIMEOUT_S", "READ_TIMEOUT_S", "WRITE_TIMEOUT_S"):
        monkeypatch.setattr(brokers, name, 0.5)


@pytest.fixture
def scene(place, server, redis):
    """The shared server, with a queue and a plan for it."""
    return crowd(redis, opened(place, server.url))


def opened(place, url, **values):
    """Configure the target `trial` and open it."""
    lines = [f'{name} = "{value}"' for name, value in {"broker_url": "env:TRIAL", **values}.items()]
    (place / "ops.toml").write_text("\n".join(["[targets.trial]", *lines, ""]))
    os.environ["TRIAL"] = url
    return connect("trial")


def dry_run(scene):
    """Return the id of a dry run whose plan can be applied."""
    plan = planned(scene.broker, *map(quarantine_of, scene.seeded))
    return direct.run("trial", plan, scene.broker, dry_run=True).record.run_id


def refused(scene, *said, words=()):
    """Neither a plan nor a purge is carried out: exit 5, this sentence, nothing touched."""
    done = scene.run()
    purged = call(*(words or PURGE))

    assert (done.exit_code, purged.code) == (Exit.REFUSED, Exit.REFUSED), (done.record.error, purged)
    for sentence in said:
        assert sentence in done.record.error["message"]
        assert sentence in purged.out + purged.err
    assert values(scene.client) == scene.before
    assert not scene.client.exists(KEYS.lock)


# Rights


def everything(client):
    """Return a plan's actions of every kind, and the keys that they are about."""
    seeded = [seed_waiting(client) for _ in range(3)]
    mail, orphan, lost = seed_waiting(client, queue="mail"), seed_unacked(client), seed_unacked(client)
    client.zrem(KEYS.unacked_index, lost.tag)
    client.set("text", "x")
    client.hset("hash", "a", "b")
    client.set("for ever", "x")
    state = b'{"v":1,"task_id":"old","task":"tests.ok"}'
    client.set(KEYS.checkpoint("old"), state, ex=600)
    saved = Copy(place="state", key=KEYS.checkpoint("old"), sha256=digest(state))

    def of(kind, subject, copy, to="", **fields):
        return Action(kind=kind, subject=subject, source=copy.key, destination=to, copies=(copy,), **fields)

    def waits(n):
        return Copy(place="waiting", key="celery", queue="celery", sha256=seeded[n].sha256)

    held = {"delivery_tag": orphan.tag, "sha256": orphan.sha256, "score": orphan.score}
    return [
        of(Kind.RESTORE, orphan.task_id, Copy(place="unacked", key=KEYS.unacked, queue="celery", **held), "celery"),
        of(Kind.QUARANTINE, seeded[0].task_id, waits(0), "quarantine"),
        of(Kind.MOVE, seeded[1].task_id, waits(1), "slow"),
        of(Kind.REORDER, seeded[2].task_id, waits(2), "1"),
        of(Kind.REPAIR, "x", Copy(place="unacked", key=KEYS.unacked, delivery_tag=lost.tag)),
        of(Kind.PURGE, "mail", Copy(place="list", key=mail.key, queue="mail"), "quarantine"),
        replace(of(Kind.HANDOVER, "old", saved, "new"), source="checkpoint"),
        of(Kind.DELETE, "text", Copy(place="key", key="text")),
        of(Kind.DELETE, "hash", Copy(place="key", key="hash")),
        of(Kind.EXPIRE, "for ever", Copy(place="key", key="for ever", life_s=-1.0), ttl_s=60.0),
    ]


@pytest.mark.parametrize("missing", RIGHTS)
def test_without_one_right_no_batch_is_half_done(place, server, redis, missing):
    """What could not be done is as it was, what was done is undone by the run's id, and the exit code says so."""
    broker = opened(place, server.url)
    plan = planned(broker, *everything(redis))
    ids, before = counted(redis), values(redis)
    servers.user(redis, f"{RECIPE} -{missing}")
    os.environ["TRIAL"] = servers.as_user(server)
    if missing in {"info", "client|setname"}:
        with pytest.raises(BrokerRefused, match="does not permit"):
            servers.elsewhere(broker, servers.as_user(server))
        assert call(*PURGE).code == Exit.CANNOT_SEE
        assert values(redis) == before
        return

    done = direct.run("trial", plan, servers.elsewhere(broker, servers.as_user(server)), dry_run=False)
    purged = call(*PURGE)

    allowed = {Exit.DONE, Exit.ATTENTION, Exit.CANNOT_SEE}
    assert done.exit_code in allowed, done.record.error
    assert (done.exit_code is Exit.DONE) == (set(statuses(done)) == {"applied"})
    # Without unlink, the first of the two cannot let go of its lock: it is told, and frees itself.
    assert purged.code in allowed | ({Exit.REFUSED} if missing == "unlink" else set()), purged
    assert done.record.verdict != "healthy"
    assert "correct-horse" not in json.dumps(done.record.outcomes) + purged.out + purged.err
    if statuses(done)["failed"]:
        assert "permi" in reasons(done) or "NOPERM" in reasons(done)
    assert counted(redis) == ids
    os.environ["TRIAL"] = server.url
    redis.delete(KEYS.lock)  # without eval, or pexpire, nobody could free it
    for run_id in _changed(place):
        assert call("undo", run_id, "--apply", "--yes").code == Exit.DONE
    for key in redis.scan_iter(match="*reply.celery.pidbox"):  # without srem, or del, a look cannot clean up
        redis.delete(key)
    assert values(redis) == before


def _changed(place):
    """Return the runs that changed something, the latest first."""
    lines = audit(place / "reports") if (place / "reports" / "audit.jsonl").exists() else []
    done = [line["run_id"] for line in lines if line["event"] == "result" and line["said"] == "APPLIED"]
    return list(dict.fromkeys(reversed(done)))


@pytest.mark.parametrize("missing", ["lrem", "hdel", "zrem", "rpush", "lpush", "hset"])
def test_the_oldest_server_cannot_ask_for_rights_and_loses_nothing_either(place, missing, tmp_path):
    """Redis 6.2 finds it in the middle of a script: what was added is there twice, and a person is told."""
    (tmp_path / "oldest").mkdir()
    with engines.start(engines.OLDEST, tmp_path / "oldest") as running, running.client() as client:
        broker = opened(place, running.url)
        plan = planned(broker, *everything(client))
        ids = counted(client)
        servers.user(client, f"{RECIPE} -{missing}")

        done = direct.run("trial", plan, servers.elsewhere(broker, servers.as_user(running)), dry_run=False)

        assert done.exit_code is not Exit.DONE
        assert "permi" in reasons(done)
        assert not ids - counted(client)
        journal = client.hgetall(KEYS.journal(done.record.run_id))
        if counted(client) != ids:
            assert b"intent" in journal.values()
        if b"intent" in journal.values():
            resumed = call("resume", done.record.run_id)
            assert resumed.code == Exit.REFUSED
            assert "begun and not ended" in resumed.err


# Places


def test_another_database(scene, place, server):
    """The same server is not enough."""
    run_id = dry_run(scene)
    opened(place, server.url[:-1] + "7")

    done = call("apply", run_id, "--yes")

    assert done.code == Exit.REFUSED
    assert "another one" in done.out
    assert values(scene.client) == scene.before


def test_a_stamp_that_is_missing(scene, place, server):
    """Looking is allowed, and says so; changing is not."""
    scene.broker = opened(place, server.url, environment="prod")

    refused(scene, "has no stamp that can be read", "Nothing was changed")
    looked = call(*(word for word in PURGE if word not in {"--apply", "--yes"}))
    assert looked.code == Exit.ATTENTION
    assert "Warning:" in looked.err


def test_the_stamp_of_another_environment(scene, place, server):
    """Nothing is even opened there."""
    run_id = dry_run(scene)
    scene.client.set("opslib:env", '{"env": "staging", "id": "1"}')
    with pytest.raises(Refused):
        opened(place, server.url, environment="prod")

    for words in (PURGE, ("apply", run_id, "--yes"), ("undo", run_id, "--apply", "--yes")):
        done = call(*words)
        assert (done.code, done.out) == (Exit.REFUSED, "")
        assert "is stamped 'staging'" in done.err
    assert values(scene.client) == scene.before


# Versions and clocks


@pytest.mark.parametrize("version", ["0.0.1", ""])
def test_the_plan_of_another_version_is_refused(scene, place, version):
    """It may have meant something else by the same words; undoing and resuming go by the journal."""
    run_id = dry_run(scene)
    path = folders.folder(place / "reports", run_id) / folders.PLAN
    path.write_bytes(plans.write(replace(plans.read(path.read_bytes()), tool_version=version)))

    done = call("apply", run_id, "--yes")

    assert (done.code, done.out) == (Exit.REFUSED, "")
    assert version in done.err
    assert "Run the runbook again" in done.err
    assert values(scene.client) == scene.before


@contextmanager
def skewed(monkeypatch, by_s):
    """Put this machine's clock forward or back."""
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + by_s)
        yield


@pytest.mark.parametrize("day_s", [-86_400, 86_400])
def test_a_clock_that_is_a_day_off_changes_nothing(scene, place, server, monkeypatch, day_s):
    """One of the two is wrong, and ages that are a day off would be acted upon."""
    with skewed(monkeypatch, day_s):
        scene.broker = opened(place, server.url)
        ahead = "behind" if day_s > 0 else "ahead of"

        refused(scene, "86,400 s " + ahead, "Nothing was changed")

        assert f"\n! The clock of {scene.broker.target.shown_broker} is 86,400 s {ahead} this machine's." in repr(
            scene.broker
        )


@pytest.mark.parametrize(("off_s", "warns"), [(4, False), (60, True), (-60, True), (290, True)])
def test_a_clock_that_is_a_little_off_is_told(scene, place, server, monkeypatch, off_s, warns):
    """From five seconds on; what lives by a clock lives by the server's."""
    with skewed(monkeypatch, off_s):
        scene.broker = opened(place, server.url)
        done = call(*PURGE)

    assert done.code == Exit.DONE
    assert ("Warning: The clock of" in done.err) is warns
    assert ("! The clock of" in repr(scene.broker)) is warns
    scene.conserved()


def test_a_plan_expires_by_the_servers_clock(scene, monkeypatch):
    """That of this machine may have moved since it connected."""
    fresh = planned(scene.broker, quarantine_of(scene.seeded[0]))
    old = planned(scene.broker, quarantine_of(scene.seeded[1]), life_s=0.01)
    until(lambda: plans.stale(old, scene.broker.server_time()), 5, "it has expired")

    with skewed(monkeypatch, 86_400):
        assert [str(o.status) for o in apply(fresh, scene.broker, dry_run=False)] == ["applied"]
    with skewed(monkeypatch, -86_400), pytest.raises(Refused, match="was good until"):
        apply(old, scene.broker, dry_run=False)


# This machine's disk


@contextmanager
def full(monkeypatch, code=errno.ENOSPC):
    """Let the disk take nothing more."""

    def fsync(_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_from_the_beginning(scene, monkeypatch, code):
    """No lock is taken, and the exit code is that of a refusal."""
    with full(monkeypatch, code):
        done = direct.run("trial", planned(scene.broker, quarantine_of(scene.seeded[0])), scene.broker, dry_run=False)
        purged = call(*PURGE)

    assert (done.exit_code, purged.code) == (Exit.REFUSED, Exit.REFUSED)
    assert os.strerror(code) in done.record.error["message"]
    assert os.strerror(code) in purged.out
    assert values(scene.client) == scene.before
    assert not scene.client.exists(KEYS.epoch)


@pytest.mark.parametrize("place_of", ["before-plan-file", "after-plan-file", "after-lock", "before-intent"])
def test_a_disk_that_fills_up_before_the_first_batch(scene, monkeypatch, place_of):
    """Plan and audit come before the change: without them there is none."""
    with _filling(monkeypatch, place_of, time_of=1):
        done = scene.run(reported=False)

    assert done.exit_code in {Exit.REFUSED, Exit.ATTENTION}
    assert "No change goes unrecorded" in reasons(done)
    assert values(scene.client) == scene.before
    assert not scene.client.exists(KEYS.lock)


@contextmanager
def _filling(monkeypatch, place_of, *, time_of):
    """Let the disk take nothing more from some place on, until the block ends."""

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, striking(place_of, lambda: patch.setattr(os, "fsync", fsync), time=time_of):
        yield


@pytest.mark.parametrize("place_of", ["before-intent", "after-intent", "after-script", "before-verify"])
def test_a_disk_that_fills_up_in_the_middle(scene, monkeypatch, place_of):
    """It stops before the next batch; what was done is told though no file takes it, and the run can be finished."""
    time_of = 1 if place_of == "before-verify" else 2
    with _filling(monkeypatch, place_of, time_of=time_of):
        done = scene.run(reported=False)

    done_by_then = {"before-intent": 20, "before-verify": len(scene.seeded)}.get(place_of, 40)
    whole = done_by_then == len(scene.seeded)
    assert done.exit_code is (Exit.DONE if whole else Exit.ATTENTION), done.record.error
    assert statuses(done)["applied"] == scene.kept() == done_by_then
    assert statuses(done)["failed"] == len(scene.seeded) - done_by_then
    scene.conserved()
    assert not scene.client.exists(KEYS.lock)
    if done_by_then < len(scene.seeded):
        assert "No change goes unrecorded" in reasons(done)
        scene.resumed(done.record.run_id)
    scene.undone(done.record.run_id)


def test_a_disk_that_takes_no_vault(scene, monkeypatch):
    """What cannot be kept is not removed."""
    for n in range(3):
        scene.client.set(f"text-{n}", "x")
    before = values(scene.client)
    copies = [Copy(place="key", key=f"text-{n}") for n in range(3)]
    actions = [
        Action(kind=Kind.DELETE, subject=copy.key, source=copy.key, destination="vault", copies=(copy,))
        for copy in copies
    ]

    with _filling(monkeypatch, "after-lock", time_of=1):
        done = direct.run("trial", planned(scene.broker, *actions), scene.broker, dry_run=False)

    assert statuses(done) == {"failed": 3}
    assert os.strerror(errno.ENOSPC) in reasons(done)
    assert values(scene.client) == before


@pytest.fixture
def small_disk(place, monkeypatch):
    """An archive on a disk of its own, and what fills it up."""
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("Only root may mount a disk.")
    monkeypatch.setenv("OPS_REPORTS", str(disk / "reports"))
    filler = disk / "filler"

    def fill():
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    try:
        yield fill, filler
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_real_disk_that_is_full_in_the_middle(place, server, redis, small_disk):
    """Not one more byte fits: the outcome is told without record and report, and both are there once there is room."""
    fill, filler = small_disk
    scene = crowd(redis, opened(place, server.url))
    with striking("before-intent", fill, time=3):
        done = scene.run(reported=False)

    assert done.report is None
    assert done.exit_code is Exit.ATTENTION
    assert statuses(done)["failed"] == len(scene.seeded) - scene.kept() > 0
    assert "No space left" in reasons(done)
    scene.conserved()
    filler.unlink()
    resumed = scene.resumed(done.record.run_id)
    assert "changes are made; going on" in resumed.err
    scene.undone(done.record.run_id)


def test_a_real_disk_that_is_full_from_the_beginning(place, server, redis, small_disk):
    """A command ends with a sentence, and has done nothing."""
    scene = crowd(redis, opened(place, server.url))
    small_disk[0]()

    done = call(*PURGE)

    assert done.code in {Exit.USAGE, Exit.REFUSED}
    assert "No space left" in done.out + done.err
    assert values(redis) == scene.before


# The kernel


APPLY = """
import os
from opslib import apply, connect, folders, plan, records
from opslib.writer import points
passed = []
def at(name):
    if name == "{place}":
        passed.append(name)
        if len(passed) == {time}:
            os.kill(os.getpid(), 9)
points.watchers.append(at)
apply(plan.read(open("{plan}", "rb").read()), connect(target), dry_run=dry_run)
""".strip()


@pytest.mark.parametrize(("place_of", "time_of"), [("after-result", 1), ("after-script", 2), ("before-verify", 1)])
def test_a_kernel_that_dies_in_the_middle(scene, place, place_of, time_of):
    """The report says that it failed and how to go on, and both ways lead on."""
    saved = place / "planned.json"
    saved.write_bytes(plans.write(planned(scene.broker, *map(quarantine_of, scene.seeded))))
    source = APPLY.format(place=place_of, time=time_of, plan=saved)
    tiny.runbook(place / "runbooks", "tiny", source, tiny.CONCLUDE)

    died = run.run(catalog.find("tiny"), {"target": "trial", "dry_run": False}, target="trial")

    run_id = died.record.run_id
    assert (died.exit_code, died.record.verdict) == (Exit.FAILED, "failed")
    assert "The kernel died" in died.record.error["message"]
    assert f"`ops resume {run_id}`" in died.record.error["hint"]
    assert f"`ops undo {run_id}`" in died.record.error["hint"]
    assert died.report.is_file()
    scene.conserved()
    assert scene.kept() >= 20
    if place_of != "before-verify":
        held = call("resume", run_id)
        assert held.code == Exit.REFUSED
        assert run_id in held.out
    lock_id = json.loads(scene.client.get(KEYS.lock))["token"][:12]
    freed = call("unlock", "--target", "trial", "--lock-id", lock_id, "--reason", "its kernel is dead", "--yes")
    assert freed.code == Exit.DONE, freed
    if place_of == "before-verify":
        assert "Nothing was changed" in call("resume", run_id).err
    else:
        scene.resumed(run_id)
    scene.undone(run_id)


# The look afterwards


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_server_that_is_gone_when_its_changes_are_looked_for(place, fault):
    """What was done is in the record all the same, as unknown, and the exit code says that nobody can see."""
    with engines.start(engines.REDIS, place, persistent=True) as running, running.client() as client:
        scene = crowd(client, opened(place, running.url), 30)
        with striking("before-verify", running.kill if fault == "killed" else running.freeze, time=1):
            done = scene.run()
        running.start() if fault == "killed" else running.thaw()

        assert done.exit_code is Exit.CANNOT_SEE
        assert done.record.verdict == "unknown"
        assert statuses(done) == {"unverified": 30}
        assert "could not be looked for" in reasons(done)
        told = records.read(Path(done.folder) / folders.RECORD)
        assert Counter(row["status"] for row in told.outcomes) == statuses(done)
        assert len(told.plan["actions"]) == 30
        scene.conserved()
        client.delete(KEYS.lock)
        assert "has made all of its 30 changes" in call("resume", done.record.run_id).err


def test_an_answer_that_is_lost_while_looking_for_changes_is_asked_for_again(place, server, redis):
    """A look may be repeated."""
    with proxy.before(server) as road:
        scene = crowd(redis, opened(place, road.url), 10)
        with striking("before-verify", lambda: road.lose(b"HSCAN"), time=1):
            done = scene.run()

    assert road.lost == 1
    assert statuses(done) == {"applied": 10}
    scene.conserved()


def test_a_server_that_is_paused_while_its_changes_are_looked_for(scene, server):
    """It is waited for."""

    def pause():
        with server.client() as client:
            client.client_pause(700, all=True)

    with striking("before-verify", pause, time=1):
        done = scene.run()

    assert statuses(done) == {"applied": len(scene.seeded)}
    scene.conserved()


def test_memory_that_runs_out_while_changes_are_looked_for(scene):
    """Messages are found all the same, but no node can be asked what it holds: the view is not the whole one."""
    with striking("before-verify", lambda: scene.client.config_set("maxmemory", 1), time=1):
        done = scene.run()
    scene.client.config_set("maxmemory", "256mb")

    assert statuses(done) == {"applied": len(scene.seeded)}
    assert (done.record.verdict, done.exit_code) == ("unknown", Exit.DONE)  # the changes themselves were seen
    scene.conserved()


def test_what_another_took_from_quarantine_is_told_as_unknown(scene):
    """Nobody else has business there."""
    key = []

    def steal():
        key.extend(scene.client.scan_iter(match="*opslib:run:*:q:*"))
        scene.client.rpop(key[0], 3)

    with striking("before-verify", steal, time=1):
        done = scene.run()

    assert statuses(done) == {"applied": len(scene.seeded) - 3, "unverified": 3}
    assert "cannot-see" in {row["code"] for row in done.record.remaining}
