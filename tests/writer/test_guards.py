"""
Each guard of a change, there and blinded: with it the harm does not happen, without it the harm is real.

Every test runs twice. "guarded" fails as soon as somebody removes the guard; "blind" shows that nothing else stood in
the way, so that the guard is not there for show. What guards what:

    token of the lock, in every script     test_who_lost_the_lock_writes_nothing
    ... and of one server                  test_a_batch_is_for_one_server
    ... in letting go of it                test_who_lost_the_lock_does_not_free_it
    ... in taking it by hand               test_only_the_lock_that_was_named_is_taken
    journal: done is not done again        test_a_batch_without_an_answer_is_done_once
    journal: begun and not ended           test_a_batch_that_was_cut_off_is_not_taken_for_done
    types, before the first write          test_a_wrong_type_leaves_no_batch_half_done
    rights, before the first write         test_a_missing_right_leaves_no_message_twice
    add, then remove                       test_a_failure_in_between_loses_nothing
    memory, before the first removal       test_a_full_server_loses_nothing (the same order)
    bytes as they were seen                test_another_message_under_the_same_tag_stays
    score as it was seen                   test_a_message_that_was_delivered_again_stays
    nothing in its place                   test_what_is_in_the_old_place_is_not_overwritten
    length of the list, for an exact place test_a_place_that_has_moved_on_is_nobodys
    most messages of a purge               test_a_purge_takes_no_more_than_was_seen
    a name that is free, for a purge       test_a_quarantine_is_never_renamed_over
    fingerprint of a key                   test_a_value_written_meanwhile_is_not_deleted
    a key that is free, for its return     test_a_value_written_since_is_not_overwritten
    vault before removal                   test_what_cannot_be_kept_is_not_removed
    the index's tag has no message         test_a_tag_that_is_delivered_meanwhile_stays_indexed
    identity of the server                 test_a_plan_is_for_one_database
    age of the plan                        test_an_old_plan_is_not_carried_out
    digest of the plan's file              test_a_plan_that_was_edited_is_none
    no retries of the writing client       test_a_lost_answer_is_not_sent_again
    revoked ids, before an undo            test_what_a_node_would_drop_is_not_put_back

And elsewhere: a replica (test_faults), what was confirmed (test_apply), the vault's own seals (test_vault), the
audit before the change (test_apply).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ResponseError

from opslib import broker as brokers
from opslib import pidbox, records, writer
from opslib import plan as plans
from opslib.errors import NotFound, Refused
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply, audit, lists, lock, points, putback, scripts, vault
from opslib.writer.moves import Move, Mover, Place
from opslib.writer.primitive import Primitive
from tests.support import proxy, servers
from tests.support.plans import RUN, mover, planned, purge_of, told, undone
from tests.support.seed import KEYS, quarantined, seed_unacked, seed_waiting
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S

QUEUE = "celery"
DESTINATION = KEYS.quarantine(RUN, QUEUE)
REASON = "a test wants to know"

both = pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "blind"])


@pytest.fixture
def blind(monkeypatch):
    """Return what takes a guard out of the scripts' text, or puts something else in its place."""

    def change(guard, instead="", *, of="move"):
        text = scripts.text
        assert text(of).count(guard) == 1, f"{of} has another guard by now"
        monkeypatch.setattr(scripts, "text", lambda name: text(name).replace(guard, instead))

    return change


def of_list(raw, **fields):
    """Return the move of a waiting message to quarantine."""
    return Move(
        subject="x", source=Place(key=QUEUE), seen=raw, destination=Place(key=DESTINATION, served="last"), **fields
    )


def of_unacked(seeded):
    """Return the move of a delivered message to its queue."""
    there = Place(key=KEYS.unacked, index=KEYS.unacked_index, tag=seeded.tag, score=seeded.score)
    return Move(subject=seeded.task_id, source=there, seen=seeded.raw, destination=Place(key=QUEUE))


def deletion_of(key):
    """Return the action that removes a key."""
    return Action(kind=Kind.DELETE, subject=key, source=key, destination="vault", copies=(Copy(place="key", key=key),))


def run_id():
    """Return the id of the run that this test is."""
    return records.context().run_id


# The lock


@both
def test_who_lost_the_lock_writes_nothing(broker, redis, blind, guarded):
    """Blind: two runs write at the same time."""
    redis.rpush(QUEUE, b"x")
    if not guarded:
        blind("or holder.token ~= ARGV[1] then return {'FENCED'} end", "then return {'FENCED'} end")

    with mover(broker) as hand, suppress(Refused):
        redis.set(KEYS.lock, json.dumps({"token": "another"}))
        hand.move([of_list(b"x")])

    assert redis.exists(QUEUE) == guarded
    assert redis.exists(DESTINATION) == (not guarded)


@both
def test_who_lost_the_lock_does_not_free_it(broker, redis, blind, guarded):
    """Blind: a third run comes in while the second one is at work."""
    if not guarded:
        blind("or holder.token ~= ARGV[1] then", "then", of="keep_lock")

    with lock.held(broker, run_id=RUN, plan_digest="d"):
        redis.set(KEYS.lock, json.dumps({"token": "another"}))

    assert redis.exists(KEYS.lock) == guarded


@both
def test_only_the_lock_that_was_named_is_taken(broker, redis, blind, monkeypatch, guarded):
    """It changes hands between the look and the step; blind: the new holder loses a lock that nobody meant."""
    if not guarded:
        blind("or string.sub(token, 1, #ID) ~= ID then", "then", of="unlock")
    dead, alive = json.dumps({"token": "d" * 32, "run": RUN}), json.dumps({"token": "a" * 32, "run": "another"})
    redis.set(KEYS.lock, dead)
    write = audit.write

    def changes_hands(event, **detail):
        write(event, **detail)
        if detail["stage"] == "intent":
            redis.set(KEYS.lock, alive)

    monkeypatch.setattr(audit, "write", changes_hands)
    with suppress(Refused):
        lock.unlock(broker, "d" * 12, REASON)

    assert redis.get(KEYS.lock) == (alive.encode() if guarded else None)


@both
def test_a_batch_is_for_one_server(broker, redis, blind, guarded):
    """The lock is replicated; blind: a client that was led to another server goes on there, unasked."""
    redis.rpush(QUEUE, b"x")
    if not guarded:
        blind("'run_id:' .. server", "'run_id:'")

    with lock.held(broker, run_id=RUN, plan_digest="d") as held, suppress(Refused):
        told_of = {"plan": "d", "server": "f" * 40}
        Mover(Primitive(broker, held, run_id=RUN, told=told_of)).move([of_list(b"x")])

    assert redis.exists(QUEUE) == guarded


# The journal


@both
def test_a_batch_without_an_answer_is_done_once(broker, redis, server, blind, guarded):
    """It is asked for again; blind: of two equal messages, both move."""
    redis.rpush(QUEUE, b"x", b"x")
    if not guarded:
        blind("if before then return {'REPLAY', before, redis.call('HGET', JOURNAL, BATCH .. ':p') or ''} end")

    with proxy.before(server) as road, mover(servers.elsewhere(broker, road.url)) as hand:
        road.lose(b"Move messages")
        hand.move([of_list(b"x")])

    assert road.lost == 1
    assert (redis.llen(QUEUE), redis.llen(DESTINATION)) == ((1, 1) if guarded else (0, 2))


@both
def test_a_batch_that_was_cut_off_is_not_taken_for_done(broker, redis, blind, guarded):
    """Blind: "intent" is taken for its letters, and the run goes on."""
    redis.rpush(QUEUE, b"x")
    if not guarded:
        blind("if before == 'intent' then return {'PARTIAL'} end")

    with mover(broker) as hand:
        redis.hset(KEYS.journal(RUN), "1.1", "intent")
        if guarded:
            with pytest.raises(Refused, match="begun and not ended"):
                hand.move([of_list(b"x")])
        else:
            assert hand.move([of_list(b"x")]) == list("intent")


# Before the first write, and in which order


@both
def test_a_wrong_type_leaves_no_batch_half_done(broker, redis, blind, guarded):
    """Blind: the first message has moved, the second has not, and no journal tells which."""
    redis.rpush(QUEUE, b"x", b"y")
    redis.set("other", "no list")
    if not guarded:
        blind("if found ~= kind and found ~= 'none' then", "if false then")

    with mover(broker) as hand, suppress(Refused, ResponseError):
        hand.move([of_list(b"x"), replace(of_list(b"y"), destination=Place(key="other"))])

    assert redis.lrange(QUEUE, 0, -1) == ([b"x", b"y"] if guarded else [b"y"])
    assert redis.hget(KEYS.journal(RUN), "1.1") == (None if guarded else b"intent")


@both
def test_a_missing_right_leaves_no_message_twice(broker, redis, server, blind, guarded):
    """Adding is permitted, removing is not; blind: it is found out in between."""
    redis.rpush(QUEUE, b"x")
    if not guarded:
        blind("if redis.acl_check_cmd and not redis.acl_check_cmd(command, key, ...) then", "if false then")
    servers.user(redis, f"{servers.READ_WRITE} -lrem")

    with mover(servers.elsewhere(broker, servers.as_user(server))) as hand, suppress(Refused, ResponseError):
        hand.move([of_list(b"x")])

    assert (redis.llen(QUEUE), redis.llen(DESTINATION)) == ((1, 0) if guarded else (1, 1))


@both
def test_a_failure_in_between_loses_nothing(broker, redis, blind, guarded):
    """The check of types has overlooked something; blind: it is removed before it is added, and gone."""
    redis.rpush(QUEUE, b"x")
    redis.set(DESTINATION, "no list")
    blind("if found ~= kind and found ~= 'none' then", "if false then")
    if not guarded:
        blind(
            "    if item.field ~= ''", "    redis.call('LREM', item.source, '-1', item.seen)\n    if item.field ~= ''"
        )

    with mover(broker) as hand, suppress(Refused, ResponseError):
        hand.move([of_list(b"x")])

    assert redis.exists(QUEUE) == guarded
    assert redis.get(DESTINATION) == b"no list"


@both
def test_a_full_server_loses_nothing(broker, redis, blind, guarded):
    """The first write of a batch needs memory; blind: the server refuses only after it has removed the message."""
    redis.rpush(QUEUE, b"x")
    if not guarded:
        removal = "redis.call('LREM', 'celery', '-1', 'x')"
        blind("local function begin()", f"local function begin()\n  {removal}")

    with mover(broker) as hand, suppress(Refused, ResponseError):
        redis.config_set("maxmemory", "1")
        hand.move([of_list(b"x")])
    redis.config_set("maxmemory", "256mb")

    assert redis.exists(QUEUE) == guarded
    assert not redis.exists(DESTINATION)


# Compared in the step that moves


@both
def test_another_message_under_the_same_tag_stays(broker, redis, blind, guarded):
    """Blind: it is removed, and what was planned is put into the queue in its stead."""
    seen = seed_unacked(redis)
    other = seed_unacked(redis, tag=seen.tag)
    redis.zadd(KEYS.unacked_index, {seen.tag: seen.score})
    if not guarded:
        blind("value ~= item.seen or", "false or")

    with mover(broker) as hand:
        hand.move([of_unacked(seen)])

    assert redis.hget(KEYS.unacked, seen.tag) == (other.raw if guarded else None)
    assert redis.lrange(QUEUE, 0, -1) == ([] if guarded else [seen.raw])


@both
def test_a_message_that_was_delivered_again_stays(broker, redis, blind, guarded):
    """The same bytes, and a worker that has just begun with them; blind: it runs twice."""
    seeded = seed_unacked(redis)
    redis.zadd(KEYS.unacked_index, {seeded.tag: seeded.score + 60})
    if not guarded:
        blind("(item.score ~= '' and (not score or tonumber(score) ~= tonumber(item.score)))", "false")

    with mover(broker) as hand:
        hand.move([of_unacked(seeded)])

    assert redis.hexists(KEYS.unacked, seeded.tag) == guarded
    assert redis.llen(QUEUE) == (not guarded)


@both
def test_what_is_in_the_old_place_is_not_overwritten(broker, redis, blind, guarded):
    """Something else is delivered under a restored message's old tag; blind: undoing loses it."""
    seeded = seed_unacked(redis)
    copy = Copy(
        place="unacked",
        key=KEYS.unacked,
        queue=QUEUE,
        delivery_tag=seeded.tag,
        sha256=seeded.sha256,
        score=seeded.score,
    )
    action = Action(kind=Kind.RESTORE, subject=seeded.task_id, source="unacked", destination=QUEUE, copies=(copy,))
    apply(planned(broker, action), broker, dry_run=False)
    other = seed_unacked(redis, tag=seeded.tag)
    if not guarded:
        blind(
            "if letter == 'A' and item.to_index and redis.call('HEXISTS', item.to, item.to_tag) == 1 then",
            "if false then",
        )

    undone(broker, run_id())

    assert redis.hget(KEYS.unacked, seeded.tag) == (other.raw if guarded else seeded.raw)


@both
def test_a_place_that_has_moved_on_is_nobodys(broker, redis, blind, guarded):
    """A worker took two since; blind: a message that was third comes back behind a younger one."""
    seeded = [seed_waiting(redis) for _ in range(5)]
    copy = Copy(place="waiting", key=QUEUE, queue=QUEUE, sha256=seeded[2].sha256)
    action = Action(
        kind=Kind.QUARANTINE, subject=seeded[2].task_id, source=QUEUE, destination="quarantine", copies=(copy,)
    )
    apply(planned(broker, action), broker, dry_run=False)
    redis.rpop(QUEUE, 2)
    if not guarded:
        blind("expected ~= '' and tonumber(expected) ~= redis.call('LLEN', item.to)", "false")

    undone(broker, run_id())

    order = [2, 3, 4] if guarded else [3, 4, 2]
    assert redis.lrange(QUEUE, 0, -1)[::-1] == [seeded[n].raw for n in order]


# Whole lists


@both
def test_a_purge_takes_no_more_than_was_seen(broker, redis, blind, guarded):
    """Blind: hundreds go that nobody has confirmed."""
    seed_waiting(redis)
    plan = planned(broker, purge_of(broker, QUEUE))
    redis.lpush(QUEUE, *(b"%d" % n for n in range(300)))
    if not guarded:
        blind("each[3] and length > each[3]", "false", of="rename")

    outcomes = apply(plan, broker, dry_run=False)

    assert told(outcomes) == ["skipped" if guarded else "applied"]
    assert redis.llen(QUEUE) == (301 if guarded else 0)


@both
def test_a_quarantine_is_never_renamed_over(broker, redis, blind, monkeypatch, guarded):
    """The name is taken after it was found to be free; blind: what was kept there is lost."""
    seed_waiting(redis)
    plan = planned(broker, purge_of(broker, QUEUE))
    kept = KEYS.quarantine(run_id(), QUEUE)
    free = lists._free

    def taken_meanwhile(*args):
        name = free(*args)
        redis.rpush(name, b"kept")
        return name

    monkeypatch.setattr(lists, "_free", taken_meanwhile)
    if not guarded:
        blind("redis.call('RENAMENX', each[1], each[2]) == 1", "redis.call('RENAME', each[1], each[2])", of="rename")

    apply(plan, broker, dry_run=False)

    assert (redis.lindex(kept, 0) == b"kept") is guarded
    assert redis.llen(QUEUE) == guarded


# Keys


@both
def test_a_value_written_meanwhile_is_not_deleted(broker, redis, blind, monkeypatch, guarded):
    """After the old one was kept; blind: the new one is nowhere."""
    redis.set("key", "old")
    meanwhile = {"after-vault": lambda: redis.set("key", "new")}
    monkeypatch.setattr(points, "watchers", [lambda name: meanwhile.get(name, bool)()])
    if not guarded:
        blind("fingerprint(item.key, kind) ~= item.print", "false", of="keys")

    outcomes = apply(planned(broker, deletion_of("key")), broker, dry_run=False)

    assert told(outcomes) == ["skipped" if guarded else "applied"]
    assert redis.get("key") == (b"new" if guarded else None)


@both
def test_a_value_written_since_is_not_overwritten(broker, redis, blind, guarded):
    """By an undo; blind: the old value is back, and the new one nowhere."""
    redis.set("key", "old")
    apply(planned(broker, deletion_of("key")), broker, dry_run=False)
    redis.set("key", "new")
    if not guarded:
        blind("if kind == 'none' then put(item) else letter = 'X' end", "put(item)", of="keys")

    undone(broker, run_id())

    assert redis.get("key") == (b"new" if guarded else b"old")


@both
def test_what_cannot_be_kept_is_not_removed(broker, redis, monkeypatch, guarded):
    """The disk is full; blind: the value is gone, and no undo brings it back."""
    redis.set("key", "value")

    def full(*_):
        raise Refused("The vault cannot be written: No space left on device.")

    monkeypatch.setattr(vault, "write", full if guarded else lambda *_: None)

    apply(planned(broker, deletion_of("key")), broker, dry_run=False)
    with suppress(Refused, NotFound):
        undone(broker, run_id())

    assert redis.get("key") == (b"value" if guarded else None)


@both
def test_a_tag_that_is_delivered_meanwhile_stays_indexed(broker, redis, blind, guarded):
    """It was in the index alone; blind: Celery's own sweep never finds the message."""
    seeded = seed_unacked(redis)
    redis.hdel(KEYS.unacked, seeded.tag)
    copy = Copy(place="index", key=KEYS.unacked, delivery_tag=seeded.tag, score=seeded.score)
    action = Action(kind=Kind.REPAIR, subject=seeded.task_id, source="unacked", destination="unacked", copies=(copy,))
    plan = planned(broker, action)
    redis.hset(KEYS.unacked, seeded.tag, seeded.raw)
    if not guarded:
        blind("indexed and (not held or mode == 'undo')", "indexed", of="index")

    apply(plan, broker, dry_run=False)

    assert (redis.zscore(KEYS.unacked_index, seeded.tag) is not None) is guarded


# The plan


@both
def test_a_plan_is_for_one_database(broker, redis, server, monkeypatch, guarded):
    """Of two with a queue of the same name; blind: the wrong one is purged."""
    seed_waiting(redis)
    plan = planned(broker, purge_of(broker, QUEUE))
    elsewhere = servers.broker(server, broker_url=f"{server.url[:-2]}/1")
    elsewhere.writes.lpush(QUEUE, b"not meant")
    if not guarded:
        monkeypatch.setattr(writer, "_identify", lambda *_: None)

    with suppress(Refused):
        apply(plan, elsewhere, dry_run=False)

    assert elsewhere.reads.llen(QUEUE) == guarded


@both
def test_an_old_plan_is_not_carried_out(broker, redis, monkeypatch, guarded):
    """Blind: what was judged long ago is done now."""
    seed_waiting(redis)
    plan = planned(broker, purge_of(broker, QUEUE), life_s=0)
    if not guarded:
        monkeypatch.setattr(plans, "stale", lambda *_: False)

    with suppress(Refused):
        apply(plan, broker, dry_run=False)

    assert redis.exists(QUEUE) == guarded


@both
def test_a_plan_that_was_edited_is_none(broker, redis, monkeypatch, guarded):
    """One word of it; blind: another queue than the one that was read and confirmed is purged."""
    seed_waiting(redis, queue="trash")
    seed_waiting(redis, queue="money")
    edited = plans.write(planned(broker, purge_of(broker, "trash"))).replace(b'"trash"', b'"money"')
    if not guarded:
        monkeypatch.setattr(plans, "write", lambda plan: edited if plan else b"")

    with suppress(Refused):
        apply(plans.read(edited), broker, dry_run=False)

    assert redis.exists("money") == guarded


# The client


@both
def test_a_lost_answer_is_not_sent_again(broker, redis, server, guarded):
    """A batch has its journal; a command of its own has none. Blind: it is there twice."""
    with proxy.before(server) as road:
        remote = servers.elsewhere(broker, road.url)
        client = remote.writes
        if not guarded:
            client = brokers._client(remote.target.broker_url, remote.target, retries=3, timeout_s=5)
        road.lose(b"LPUSH")
        with suppress(Lost):
            client.lpush(QUEUE, b"x")

    assert road.lost == 1
    assert redis.llen(QUEUE) == (1 if guarded else 2)


def test_every_node_that_remembers_a_revoke_is_named(monkeypatch):
    """Whoever restarts one of two would find the task dropped by the other."""
    replies = {"revoked": {"b@x": b'["t1", "t2"]', "a@x": b'["t1"]', "c@x": b"[]"}}
    answers = pidbox.Answers(receivers=3, replies=replies, late=False)
    monkeypatch.setattr(pidbox, "ask", lambda *_, **__: answers)
    noted = SimpleNamespace(of=lambda *_: [SimpleNamespace(items=[{"s": each} for each in ("t1", "t2", "t3")])])

    assert putback._remembered(None, noted) == {
        "t1": "each of a@x, b@x remembers the revoke",
        "t2": "b@x remembers the revoke",
    }


@both
def test_what_a_node_would_drop_is_not_put_back(trial, archive, monkeypatch, guarded):
    """It remembers the revoke; blind: it acknowledges the message unrun, and it is nowhere."""
    assert archive
    node = trial.worker(name=f"{'guarded' if guarded else 'blind'}@trial", queues="idle", pool="solo")
    broker = servers.broker(trial.server)
    task_id = trial.send("ok", queue="late")
    stop = Action(kind=Kind.STOP, subject=task_id, source="late", destination="quarantine")
    assert told(apply(planned(broker, stop), broker, dry_run=False)) == ["applied"]
    if not guarded:
        monkeypatch.setattr(putback, "_remembered", lambda *_: {})

    outcomes = undone(broker, run_id())
    trial.app.control.add_consumer("late", destination=[node.name], reply=True)
    kept = [raw for raws in quarantined(trial.redis).values() for raw in raws if task_id.encode() in raw]
    after = trial.send("ok", queue="late")
    until(lambda: trial.ran(after), DEADLINE_S, "what came after it has run")
    node.kill()

    assert told(outcomes) == ["failed" if guarded else "applied"]
    assert len(kept) == guarded
    assert not trial.ran(task_id)
    assert trial.redis.llen("late") == 0
    assert task_id not in trial.unacked()
    trial.redis.flushall()
