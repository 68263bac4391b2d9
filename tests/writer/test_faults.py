"""Servers that refuse, answers that get lost, rights that are missing: nothing is lost, and nothing done twice."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as Lost

from opslib import records
from opslib.demo import server as embedded
from opslib.errors import BrokerRefused, BrokerUnreachable, Refused
from opslib.plan import Action, Copy, Kind, Status
from opslib.writer import apply, journal, lock
from opslib.writer.moves import MOVED, MOVED_NEXT, Move, Place
from tests.support import proxy, servers
from tests.support.plans import RUN, audit, foreign, mover, planned, proposed, told, undone, values
from tests.support.seed import KEYS, bind, quarantined, seed_unacked, seed_waiting, unacked, waiting_ids
from tests.support.waiting import until

ODD = b"SKU-4711;stock=12"
#: Words of the script that moves, and of the one that takes the lock.
MOVES, TAKES = b"Move messages from where they are", b"One run at a time"


@pytest.fixture
def road(server):
    """A way to the server on which answers can get lost."""
    with proxy.before(server) as way:
        yield way


@pytest.fixture
def remote(broker, road):
    """The broker at the end of that way."""
    return servers.elsewhere(broker, road.url)


# Lost answers


def test_a_change_whose_answer_is_lost_is_not_repeated(redis, remote, road):
    """It was carried out; the client says that it does not know, and sends it no second time."""
    road.lose(b"LPUSH")

    with pytest.raises(Lost):
        remote.writes.lpush("celery", "x")

    assert road.lost == 1
    assert redis.lrange("celery", 0, -1) == [b"x"]


def test_a_batch_whose_answer_is_lost_is_done_once(redis, remote, road):
    """Its journal says what it did: of two equal messages, one moves."""
    redis.rpush("celery", "x", "x")
    quarantine = KEYS.quarantine(RUN, "celery")
    road.lose(MOVES)

    with mover(remote) as hand:
        move = Move(subject="x", source=Place(key="celery"), seen=b"x", destination=Place(key=quarantine))
        letters = hand.move([move])

    assert (letters, road.lost) == ([MOVED], 1)
    assert (redis.llen("celery"), redis.llen(quarantine)) == (1, 1)


def test_a_restore_whose_answer_is_lost_is_told_as_done(redis, remote, road, archive):
    """Exactly one copy is back, and the record says that it was asked again."""
    orphan = seed_unacked(redis)
    plan = proposed(remote)
    road.lose(MOVES)

    outcomes = apply(plan, remote, dry_run=False)

    assert (told(outcomes), road.lost) == (["applied"], 1)
    assert waiting_ids(redis) == [orphan.task_id]
    assert [line["said"] for line in audit(archive) if line["event"] == "result"] == ["REPLAY"]


def test_a_batch_that_never_answers_is_looked_up_in_the_journal(redis, remote, road, archive):
    """It is not sent a third time; what the journal says it did is told."""
    orphan = seed_unacked(redis)
    plan = proposed(remote)
    road.lose(MOVES, times=2)

    outcomes = apply(plan, remote, dry_run=False)

    assert (told(outcomes), road.lost) == (["applied"], 2)
    assert "before the next ones failed" in outcomes[0].reason
    assert waiting_ids(redis) == [orphan.task_id]
    assert unacked(redis) == {}
    assert "intent" in [line["event"] for line in audit(archive)]


def test_where_the_journal_cannot_be_read_either_a_batch_is_not_called_done(redis, remote, road, monkeypatch):
    """Nobody knows what became of it; whoever resumes will."""
    seed_unacked(redis)
    plan = proposed(remote)
    road.lose(MOVES, times=2)
    monkeypatch.setattr(journal, "read", lambda *_: (_ for _ in ()).throw(Lost("gone")))

    outcomes = apply(plan, remote, dry_run=False)

    assert told(outcomes) == ["failed"]


def test_a_lock_whose_answer_is_lost_stops_the_run(redis, remote, road):
    """Nobody knows who holds it, so nothing is changed; it frees itself."""
    seed_unacked(redis)
    plan = proposed(remote)
    before = foreign(redis)
    road.lose(TAKES)

    with pytest.raises(BrokerUnreachable):
        apply(plan, remote, dry_run=False)

    assert foreign(redis) == before
    assert 0 < redis.pttl(KEYS.lock) <= lock.LIFE_MS


# Another server than the plan's


def test_a_restarted_server_is_another_one(tmp_path, archive):
    """It may hold other data under the same keys."""
    assert archive
    with embedded.start(tmp_path) as running, running.client() as client:
        seed_unacked(client)
        plan = proposed(servers.broker(running))

    with embedded.start(tmp_path) as running, running.client() as client:
        seed_unacked(client)
        before = servers.dump(client)
        with pytest.raises(Refused, match="restarted, failed over or is another one"):
            apply(plan, servers.broker(running), dry_run=False)
        assert servers.dump(client) == before


@pytest.mark.parametrize("change", [{"broker_url": "/1"}, {"global_keyprefix": "shop:"}])
def test_another_database_or_prefix_is_another_one(broker, redis, server, change):
    """Though it is the same server."""
    seed_unacked(redis)
    plan = proposed(broker)
    if "broker_url" in change:
        change = {"broker_url": server.url[:-2] + change["broker_url"]}

    with pytest.raises(Refused, match="another one"):
        apply(plan, servers.broker(server, **change), dry_run=False)


def test_a_replica_is_refused(broker, redis, server, tmp_path):
    """Its data is a copy; what is changed there is lost at the next synchronisation."""
    orphan = seed_unacked(redis)
    lines = [
        f"replicaof 127.0.0.1 {server.port}",
        f"primaryauth {server.password}",
        "replica-read-only no",  # or the server would refuse by itself
    ]
    redis.config_set("repl-diskless-sync-delay", "0")
    with embedded.start(tmp_path, extra=lines) as running, running.client() as client:
        until(lambda: client.info("replication")["master_link_status"] == "up", 20, "it is in step")
        replica = servers.broker(running)
        plan = replace(proposed(broker), fingerprint=replica.fingerprint)

        with pytest.raises(Refused, match="is a replica"):
            apply(plan, replica, dry_run=False)

        assert list(unacked(client)) == [orphan.task_id]
        assert not client.exists(KEYS.lock)


# No room


def test_a_full_server_takes_no_lock(broker, redis):
    """The run is refused before it begins."""
    seed_unacked(redis)
    plan = proposed(broker)
    before = foreign(redis)
    redis.config_set("maxmemory", "1")

    with pytest.raises(Refused, match="out of memory"):
        apply(plan, broker, dry_run=False)

    redis.config_set("maxmemory", "256mb")
    assert foreign(redis) == before


def test_a_server_that_fills_up_on_the_way_loses_nothing(broker, redis, monkeypatch):
    """The batch is refused whole; its messages are where they were."""
    bind(redis, "celery", "celery")
    seed_unacked(redis)
    redis.lpush("celery", ODD)
    plan = proposed(broker)
    before = foreign(redis)
    hold = lock.held

    @contextmanager
    def fill(*args, **options):
        with hold(*args, **options) as held:
            redis.config_set("maxmemory", "1")
            yield held

    monkeypatch.setattr(lock, "held", fill)
    outcomes = apply(plan, broker, dry_run=False)

    redis.config_set("maxmemory", "256mb")
    assert told(outcomes) == ["failed", "failed"]
    assert all("out of memory" in outcome.reason for outcome in outcomes)
    assert foreign(redis) == before


# Rights


#: Without a right, what can be done all the same: a move that does not need it.
RIGHTS = {
    **dict.fromkeys(("eval", "set", "incr", "hset", "xadd", "pexpire"), frozenset()),
    **dict.fromkeys(("rpush", "hdel", "zrem"), frozenset({"quarantine"})),
    **dict.fromkeys(("lpush", "lrem"), frozenset({"restore"})),
}


@pytest.mark.parametrize("missing", RIGHTS)
def test_a_missing_right_is_found_before_the_first_write(broker, redis, server, missing):
    """A script does not roll back, so a right that it lacks in the middle must not let it begin."""
    bind(redis, "celery", "celery")
    orphan = seed_unacked(redis)
    redis.lpush("mail", ODD)
    bind(redis, "mail", "mail")
    plan = proposed(broker)
    servers.user(redis, f"{RECIPE} -{missing}")

    applied, why = _carried_out(plan, servers.elsewhere(broker, servers.as_user(server)))

    assert applied == RIGHTS[missing]
    assert "permi" in why or "NOPERM" in why
    assert (waiting_ids(redis), list(unacked(redis))) == (
        ([orphan.task_id], []) if "restore" in applied else ([], [orphan.task_id])
    )
    assert (quarantined(redis), redis.lrange("mail", 0, -1)) == (
        ({"mail": [ODD]}, []) if "quarantine" in applied else ({}, [ODD])
    )


def _carried_out(plan, broker):
    """Return the kinds of actions that were applied, and what was said about the others."""
    try:
        outcomes = apply(plan, broker, dry_run=False)
    except BrokerRefused as refusal:
        return set(), str(refusal)
    failed = [outcome.reason for outcome in outcomes if outcome.status is Status.FAILED]
    return {str(o.action.kind) for o in outcomes if o.status is Status.APPLIED}, " ".join(failed)


@pytest.mark.parametrize("missing", ["rpush", "lpush", "lset", "lrem", "hset", "zadd", "zrem", "hdel"])
@pytest.mark.parametrize("where", ["0/6", "1/6", "5/6", "6/6", "6/9", "3/", "next", "last", "same", "unacked"])
def test_a_missing_right_is_found_wherever_a_message_goes(broker, redis, server, where, missing):
    """Which end of a list has to step aside is known late; still nothing is begun that could not be ended."""
    redis.rpush("celery", *"abcde", b"x")
    redis.rpush("mail", *"fedcba")
    seeded = seed_unacked(redis)
    there = {
        "same": Place(key="celery", served="5/6"),
        "unacked": Place(key=KEYS.unacked, index=KEYS.unacked_index, tag="tag", score=5.0),
    }.get(where, Place(key="mail", served=where))
    moves = [
        Move(subject="x", source=Place(key="celery"), seen=b"x", destination=there),
        Move(
            subject="y",
            source=Place(key=KEYS.unacked, index=KEYS.unacked_index, tag=seeded.tag, score=seeded.score),
            seen=seeded.raw,
            destination=Place(key="mail", served=where if "/" in where else "next"),
        ),
    ]
    before = foreign(redis)
    servers.user(redis, f"{RECIPE} -{missing}")

    with mover(servers.elsewhere(broker, servers.as_user(server))) as hand:
        try:
            done = hand.move(moves)
        except Refused as refusal:
            done, why = [], refusal.message
        else:
            why = ""

    said = redis.hget(KEYS.journal(RUN), "1.1")
    if why:
        assert "NOPERM" in why
        assert (said, foreign(redis)) == (None, before)
    else:
        assert set(done) <= {MOVED, MOVED_NEXT}
        assert said.decode() == "".join(done)


#: What docs/safety.md gives a user who may apply.
RECIPE = re.search(
    r"^ACL SETUSER ops_change on >PASSWORD (.*)$",
    (Path(__file__).parents[2] / "docs" / "safety.md").read_text("utf-8"),
    flags=re.MULTILINE,
)[1]


def test_the_rights_of_the_recipe_are_enough(broker, redis, server):
    """As docs/safety.md gives them: for what a run changes, and for the way back."""
    bind(redis, "celery", "celery")
    orphan = seed_unacked(redis)
    redis.lpush("celery", ODD)
    before, plan = values(redis), proposed(broker)
    servers.user(redis, RECIPE)
    limited = servers.elsewhere(broker, servers.as_user(server))

    outcomes = apply(plan, limited, dry_run=False)

    assert told(outcomes) == ["applied", "applied"]
    assert waiting_ids(redis) == [orphan.task_id]
    assert quarantined(redis) == {"celery": [ODD]}
    assert not redis.exists(KEYS.lock)
    assert told(undone(limited, records.context().run_id)) == ["applied", "applied"]
    assert values(redis) == before


def test_the_rights_of_the_recipe_are_enough_for_every_kind_of_change(broker, redis, server):
    """Keys of every type, whole queues, places in a queue, hash and index; there and back."""
    seeded = [seed_waiting(redis) for _ in range(4)]
    lost, other = seed_unacked(redis), seed_waiting(redis, queue="mail")
    redis.zrem(KEYS.unacked_index, lost.tag)
    redis.set("text", "x")
    redis.set("short", "x", px=500_000)
    redis.hset("hash", "a", "b")
    redis.rpush("list", "a", "b")
    redis.sadd("set", "a", "b")
    redis.zadd("zset", {"a": 1})
    redis.set("for ever", "x")
    before = {key: value for key, (value, _) in values(redis).items()}

    def of(kind, subject, copy, to="", **fields):
        return Action(kind=kind, subject=subject, source=copy.key, destination=to, copies=(copy,), **fields)

    def waits(n):
        return Copy(place="waiting", key="celery", queue="celery", sha256=seeded[n].sha256)

    plan = planned(
        broker,
        of(Kind.QUARANTINE, seeded[0].task_id, waits(0), "quarantine"),
        of(Kind.MOVE, seeded[1].task_id, waits(1), "slow"),
        of(Kind.REORDER, seeded[2].task_id, waits(2), "1"),
        of(Kind.PURGE, "mail", Copy(place="list", key=other.key, queue="mail"), "quarantine"),
        of(Kind.REPAIR, "x", Copy(place="unacked", key=KEYS.unacked, delivery_tag=lost.tag)),
        of(Kind.EXPIRE, "for ever", Copy(place="key", key="for ever", life_s=-1.0), ttl_s=60.0),
        *(of(Kind.DELETE, key, Copy(place="key", key=key)) for key in ("text", "short", "hash", "list", "set", "zset")),
    )
    servers.user(redis, RECIPE)
    limited = servers.elsewhere(broker, servers.as_user(server))

    outcomes = apply(plan, limited, dry_run=False)

    assert told(outcomes) == ["applied"] * 12, outcomes
    back = undone(limited, records.context().run_id)
    assert told(back) == ["applied"] * 12, back
    assert {key: value for key, (value, _) in values(redis).items()} == before
    assert 490_000 < redis.pttl("short") <= 500_000
    assert redis.pttl("for ever") == redis.pttl("text") == -1


def test_a_user_who_may_only_read_changes_nothing(broker, redis, server):
    """And is told what is missing."""
    seed_unacked(redis)
    plan = proposed(broker)
    before = servers.dump(redis)
    servers.user(redis, servers.READ_ONLY)

    with pytest.raises(BrokerRefused, match="does not permit"):
        apply(plan, servers.elsewhere(broker, servers.as_user(server)), dry_run=False)

    assert servers.dump(redis) == before


# Wrong types


def test_a_destination_of_another_type_leaves_the_source_intact(broker, redis):
    """The queue's name is taken by something else since the plan was made."""
    orphan = seed_unacked(redis, queue="mail")
    plan = proposed(broker)
    redis.set("mail", "x")
    before = foreign(redis)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status is Status.FAILED
    assert "WRONGTYPE mail" in outcome.reason
    assert foreign(redis) == before
    assert list(unacked(redis)) == [orphan.task_id]
