"""A plan changes what it says and nothing else; what is no longer as planned is left as it is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta

import pytest

from opslib import folders, records
from opslib import plan as plans
from opslib.envelope import digest
from opslib.errors import Refused
from opslib.plan import Kind
from opslib.writer import apply, moves, points
from opslib.writer.primitive import Primitive
from tests.support.impostor import listening, reply
from tests.support.plans import audit, foreign, interrupted, planned, proposed, told
from tests.support.seed import (
    KEYS,
    bind,
    quarantined,
    seed_result,
    seed_unacked,
    seed_waiting,
    unacked,
    waiting,
    waiting_ids,
)
from tests.support.servers import dump

ODD = b"SKU-4711;stock=12"


def test_a_dry_run_changes_nothing(broker, redis, archive):
    """Not a key, not the lock, not the audit; it says what it would do."""
    bind(redis, "celery", "celery")
    seed_unacked(redis)
    seed_waiting(redis, retries=12)
    redis.lpush("celery", ODD)
    plan = proposed(broker)
    before = dump(redis)

    outcomes = apply(plan, broker)

    assert {action.kind for action in plan} == {Kind.STOP, Kind.RESTORE, Kind.QUARANTINE}
    assert told(outcomes) == ["skipped"] * 3
    assert all(outcome.reason.startswith("Dry run. ") for outcome in outcomes)
    assert dump(redis) == before
    assert audit(archive) == []


def test_an_empty_plan_takes_no_lock(broker, redis):
    """Nothing to do is nothing done."""
    assert apply(proposed(broker), broker, dry_run=False) == ()
    assert list(redis.scan_iter()) == []


# Restore


def test_an_orphan_goes_back_next_to_be_served(broker, redis):
    """In front of what waits, marked as redelivered, under a new tag, otherwise as it was; index and hash are clean."""
    first, second = seed_waiting(redis), seed_waiting(redis)
    orphan = seed_unacked(redis, args=[1, "ä"], eta=None)

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert waiting_ids(redis) == [orphan.task_id, first.task_id, second.task_id]
    back, sent = waiting(redis)[0], json.loads(orphan.raw)[0]
    assert back["headers"].pop("redelivered") is True
    assert back["properties"]["delivery_info"].pop("redelivered") is True
    assert back["properties"].pop("delivery_tag") != sent["properties"].pop("delivery_tag")
    assert back == sent
    assert (redis.hlen(KEYS.unacked), redis.zcard(KEYS.unacked_index)) == (0, 0)


@pytest.mark.parametrize(("priority", "step"), [(0, 0), (2, 0), (3, 3), (5, 3), (9, 9), (255, 9), (-1, 0)])
def test_an_orphan_goes_back_to_its_priority(broker, redis, priority, step):
    """To the list from which a worker takes it at its turn."""
    orphan = seed_unacked(redis, queue="mail", priority=priority)

    apply(proposed(broker), broker, dry_run=False)

    assert waiting_ids(redis, "mail", step) == [orphan.task_id]


def test_an_orphan_goes_where_its_exchange_leads(broker, redis):
    """Which is not where its routing key would."""
    bind(redis, "orders", "orders-new", routing_key="new")
    orphan = seed_unacked(redis, exchange="orders", queue="new")

    apply(proposed(broker), broker, dry_run=False)

    assert waiting_ids(redis, "orders-new") == [orphan.task_id]
    assert not redis.exists("new")


def test_what_the_index_lacks_goes_back_too(broker, redis):
    """Nobody else would ever restore it."""
    orphan = seed_unacked(redis, indexed=False)

    assert told(apply(proposed(broker), broker, dry_run=False)) == ["applied"]
    assert waiting_ids(redis) == [orphan.task_id]


def acknowledge(redis, orphan):
    """Do as a worker does that was alive after all, and has finished."""
    redis.hdel(KEYS.unacked, orphan.tag)
    redis.zrem(KEYS.unacked_index, orphan.tag)


MEANWHILE = {
    "acknowledged": (acknowledge, "no longer there"),
    "delivered again": (lambda redis, orphan: redis.zadd(KEYS.unacked_index, {orphan.tag: orphan.score + 1}), "again"),
    "gone from the index": (lambda redis, orphan: redis.zrem(KEYS.unacked_index, orphan.tag), "again"),
    "other bytes": (lambda redis, orphan: redis.hset(KEYS.unacked, orphan.tag, orphan.raw + b" "), "again"),
}


@pytest.mark.parametrize("case", MEANWHILE)
def test_an_orphan_that_changed_meanwhile_is_skipped(broker, redis, case):
    """With the reason; its neighbour, which did not change, is put back."""
    change, reason = MEANWHILE[case]
    orphan, neighbour = seed_unacked(redis), seed_unacked(redis)
    plan = proposed(broker)
    change(redis, orphan)
    before = foreign(redis)
    kept = {name: before[name] for name in before if name not in (b"unacked", b"unacked_index", b"celery")}

    outcomes = {outcome.action.subject: outcome for outcome in apply(plan, broker, dry_run=False)}

    assert (outcomes[orphan.task_id].status, outcomes[neighbour.task_id].status) == ("skipped", "applied")
    assert reason in outcomes[orphan.task_id].reason
    assert waiting_ids(redis) == [neighbour.task_id]
    assert (orphan.task_id in unacked(redis)) is (case != "acknowledged")
    assert foreign(redis).items() >= kept.items()


@pytest.mark.parametrize("case", MEANWHILE)
def test_a_change_between_reading_and_moving_is_seen_too(broker, redis, case, monkeypatch):
    """The script compares once more, in the step that moves: here the change comes right before it."""
    change, _ = MEANWHILE[case]
    orphan = seed_unacked(redis)
    plan = proposed(broker)
    send, sent = Primitive._eval, []

    def too_late(self, *batch):
        sent.append(change(redis, orphan))
        return send(self, *batch)

    monkeypatch.setattr(Primitive, "_eval", too_late)
    outcomes = apply(plan, broker, dry_run=False)

    assert len(sent) == 1
    assert told(outcomes) == ["skipped"]
    assert waiting_ids(redis) == []
    assert quarantined(redis) == {}


def test_many_orphans_keep_their_number(broker, redis):
    """More than one batch, each message once."""
    orphans = [seed_unacked(redis) for _ in range(120)]

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert told(outcomes) == ["applied"] * 120
    assert sorted(waiting_ids(redis)) == sorted(orphan.task_id for orphan in orphans)
    assert redis.hlen(KEYS.unacked) == 0


def test_an_orphan_that_has_finished_stays(broker, redis):
    """Its result says so; it would run again."""
    orphan = seed_unacked(redis)
    seed_result(redis, "SUCCESS", task_id=orphan.task_id)

    assert len(proposed(broker)) == 0


def test_two_plans_in_one_session_both_count(broker, redis):
    """By hand, the same run goes on: a second change must not be taken for the first one asked again."""
    first = seed_unacked(redis)
    assert told(apply(proposed(broker), broker, dry_run=False)) == ["applied"]
    second, third = seed_unacked(redis), seed_unacked(redis)

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert told(outcomes) == ["applied", "applied"]
    assert sorted(waiting_ids(redis)) == sorted(each.task_id for each in (first, second, third))


def test_what_an_earlier_plan_of_the_same_run_did_is_no_excuse_for_a_later_one(broker, redis, monkeypatch):
    """Their actions have the same numbers; the journal of the first must not speak for the second."""
    seed_unacked(redis)
    assert told(apply(proposed(broker), broker, dry_run=False)) == ["applied"]
    orphan = seed_unacked(redis)
    plan = proposed(broker)
    monkeypatch.setattr(points, "watchers", [lambda name: redis.delete(KEYS.lock) if name == "after-intent" else None])

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "failed"
    assert list(unacked(redis)) == [orphan.task_id]


# Quarantine


def test_an_unreadable_message_is_kept_as_it_is(broker, redis):
    """Its bytes, where it came from and why; what lies around it stays in its order."""
    before = seed_waiting(redis)
    redis.lpush("celery", ODD)
    after = seed_waiting(redis)

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert waiting_ids(redis) == [before.task_id, after.task_id]
    assert quarantined(redis) == {"celery": [ODD]}
    (notes,) = redis.scan_iter(match="opslib:run:*:m")
    (note,) = map(json.loads, redis.hgetall(notes).values())
    assert (note["place"], note["key"], note["queue"]) == ("waiting", "celery", "celery")
    assert redis.ttl(next(redis.scan_iter(match="*:q:celery"))) == -1


@pytest.mark.parametrize("raw", [b"", b"\x00\xff", b"x" * 300_000, "ä\r\n".encode()])
def test_any_bytes_are_kept(broker, redis, raw):
    """Empty, binary, larger than a batch."""
    bind(redis, "celery", "celery")
    redis.lpush("celery", raw)

    apply(proposed(broker), broker, dry_run=False)

    assert quarantined(redis) == {"celery": [raw]}
    assert redis.llen("celery") == 0


def test_an_unreadable_delivery_is_kept_and_its_index_cleaned(broker, redis):
    """Celery's own sweep would stop at it for ever."""
    redis.hset(KEYS.unacked, "tag", ODD)
    redis.zadd(KEYS.unacked_index, {"tag": 1})

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert told(outcomes) == ["applied"]
    assert quarantined(redis) == {"unacked": [ODD]}
    assert (redis.hlen(KEYS.unacked), redis.zcard(KEYS.unacked_index)) == (0, 0)


def test_a_good_message_under_a_bad_ones_tag_is_left_alone(broker, redis):
    """Meanwhile the tag is another message's, and that one is fine."""
    redis.hset(KEYS.unacked, "tag", ODD)
    redis.zadd(KEYS.unacked_index, {"tag": 1})
    plan = proposed(broker)
    good = seed_unacked(redis, tag="tag")

    outcomes = apply(plan, broker, dry_run=False)

    assert told(outcomes) == ["skipped"]
    assert list(unacked(redis)) == [good.task_id]
    assert quarantined(redis) == {}


def test_an_unreadable_message_that_was_taken_is_skipped(broker, redis):
    """A worker was faster, and has died of it."""
    bind(redis, "celery", "celery")
    redis.lpush("celery", ODD)
    plan = proposed(broker)
    redis.rpop("celery")

    assert told(apply(plan, broker, dry_run=False)) == ["skipped"]
    assert quarantined(redis) == {}


@pytest.mark.parametrize(("left", "told_of"), [(2, ["applied", "applied"]), (1, ["applied", "skipped"])])
def test_equal_messages_are_each_moved_once(broker, redis, left, told_of):
    """Two with the same bytes; of one that is gone meanwhile there is no copy in quarantine."""
    bind(redis, "celery", "celery")
    redis.lpush("celery", ODD, ODD)
    plan = proposed(broker)
    redis.ltrim("celery", 0, left - 1)

    outcomes = apply(plan, broker, dry_run=False)

    assert sorted(told(outcomes)) == told_of
    assert quarantined(redis) == {"celery": [ODD] * left}
    assert redis.llen("celery") == 0


# What was confirmed


@pytest.fixture
def confirmed(tmp_path, monkeypatch):
    """Have this run know what a person confirmed before it; return where that is kept."""
    path = tmp_path / "confirmed.json"
    context = records.RunContext(run_id="20261121T030000Z-trial-abc123", confirmed=str(path))
    monkeypatch.setattr(records, "context", lambda: context)
    return path


def test_only_what_was_confirmed_is_done(broker, redis, confirmed):
    """A plan that has grown since a person read it does not do more than that person read."""
    agreed = seed_unacked(redis)
    confirmed.write_bytes(plans.write(proposed(broker)))
    late = seed_unacked(redis)

    outcomes = apply(proposed(broker), broker, dry_run=False)

    assert {o.action.subject: str(o.status) for o in outcomes} == {
        agreed.task_id: "applied",
        late.task_id: "skipped",
    }
    assert list(unacked(redis)) == [late.task_id]


def test_another_kind_of_change_was_not_confirmed(broker, redis, confirmed):
    """A person agreed to put it back, and not to stop it."""
    orphan = seed_unacked(redis)
    plan = proposed(broker)
    stopped = replace(plan, actions=tuple(replace(action, kind=Kind.STOP) for action in plan))
    confirmed.write_bytes(plans.write(plan))
    before = dump(redis)

    assert told(apply(stopped, broker, dry_run=False)) == ["skipped"]

    assert list(unacked(redis)) == [orphan.task_id]
    assert foreign(redis) == {key: value for key, value in before.items() if b"opslib:" not in key}


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-1], lambda raw: raw.replace(b"restore", b"stop"), lambda _: b"[]"])
def test_a_confirmed_plan_that_was_edited_is_none(broker, redis, confirmed, spoil):
    """Nobody knows what was agreed to, so nothing is done; not even the lock is taken."""
    seed_unacked(redis)
    plan = proposed(broker)
    confirmed.write_bytes(spoil(plans.write(plan)))
    before = dump(redis)

    with pytest.raises(Refused):
        apply(plan, broker, dry_run=False)

    assert dump(redis) == before


# The plan in its folder


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """Be inside a run; return its folder."""
    context = records.RunContext(run_id="20261121T030000Z-trial-abc123", record=str(tmp_path / "record.json"))
    monkeypatch.setattr(records, "context", lambda: context)
    return tmp_path


@pytest.mark.parametrize("dry_run", [True, False])
def test_inside_a_run_the_plan_is_saved(broker, redis, inside, dry_run):
    """Also where it is not carried out: it can be, later, by its name. Only its owner can read it."""
    seed_unacked(redis)
    plan = proposed(broker)

    apply(plan, broker, dry_run=dry_run)

    assert plans.read((inside / "plan.json").read_bytes()) == plan
    assert (inside / "plan.json").stat().st_mode & 0o777 == 0o600


def test_a_plan_is_saved_before_the_first_change(broker, redis, inside, monkeypatch):
    """Whatever becomes of the run, what it was about to do is known."""
    seed_unacked(redis)
    plan, before, seen = proposed(broker), foreign(redis), []

    def at(place):
        if place == "after-plan-file":
            seen.append(((inside / "plan.json").exists(), foreign(redis) == before, redis.exists(KEYS.lock)))

    monkeypatch.setattr(points, "watchers", [at])
    apply(plan, broker, dry_run=False)

    assert seen == [(True, True, 0)]


def test_a_plan_that_cannot_be_saved_is_not_carried_out(broker, redis, inside, monkeypatch):
    """No change goes unrecorded."""
    seed_unacked(redis)
    plan, before = proposed(broker), dump(redis)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match=r"No space left on device\. No change goes unrecorded"):
        apply(plan, broker, dry_run=False)

    assert dump(redis) == before
    assert not [each for each in inside.iterdir() if "plan" in each.name]


def test_by_hand_a_change_makes_its_run_a_folder_and_a_dry_run_makes_none(broker, redis, archive):
    """It has to be found again, by whoever wants it undone."""
    seed_unacked(redis)
    plan = proposed(broker)

    apply(plan, broker)
    assert list(archive.rglob("plan.json")) == []

    apply(plan, broker, dry_run=False)
    (kept,) = archive.rglob("plan.json")
    assert kept.parent == folders.folder(archive, records.context().run_id)
    assert plans.read(kept.read_bytes()) == plan


# Too late


def test_a_plan_that_is_too_old_is_refused(broker, redis):
    """By the server's clock; the sentence says of when it is. Nothing is changed, not even the lock is taken."""
    seed_unacked(redis)
    fresh = proposed(broker)
    made_at = broker.server_time() - timedelta(seconds=plans.LIFE_S + 1)
    stale = plans.make(fresh.target, fresh.fingerprint, fresh.actions, max_actions=9, made_at=made_at)
    before = dump(redis)

    with pytest.raises(Refused, match=f"The plan is of {stale.made_at} and was good until {stale.expires_at}"):
        apply(stale, broker, dry_run=False)

    assert dump(redis) == before
    assert told(apply(stale, broker)) == ["skipped"]
    assert told(apply(fresh, broker, dry_run=False)) == ["applied"]


# Accounts


def test_a_run_that_loses_its_lock_says_what_it_did(broker, redis, monkeypatch):
    """The first batch was applied and is told so; nothing after it was."""
    monkeypatch.setattr(moves, "BATCH_MOVES", 2)
    for _ in range(5):
        seed_unacked(redis)
    plan = proposed(broker)
    interrupted(broker, lambda _: redis.delete(KEYS.lock))

    outcomes = apply(plan, broker, dry_run=False)

    assert told(outcomes) == ["applied"] * 2 + ["failed"] * 3
    assert (redis.llen("celery"), redis.hlen(KEYS.unacked)) == (2, 3)
    assert all("lock was lost" in outcome.reason for outcome in outcomes[2:])


def test_an_action_that_names_no_message_is_skipped(broker, redis):
    """There is nothing to do about it; its neighbours are done, and all of it is told."""
    orphan = seed_unacked(redis)
    (restore,) = proposed(broker)
    empty = [
        replace(restore, kind=kind, subject=str(kind), copies=())
        for kind in (Kind.RESTORE, Kind.QUARANTINE, Kind.MOVE, Kind.REORDER)
    ]

    outcomes = apply(planned(broker, restore, *empty), broker, dry_run=False)

    assert told(outcomes) == ["applied", *["skipped"] * 4]
    assert all(outcome.reason for outcome in outcomes)
    assert waiting_ids(redis) == [orphan.task_id]


# Looked for afterwards


def lose(redis, key, messages):
    """Have messages vanish right before it is looked whether they are where they were put."""

    def at(place):
        if place == "before-verify":
            for each in messages:
                for found in redis.scan_iter(match=key):
                    redis.lrem(found, 1, each)

    return [at]


def test_a_message_that_is_not_in_quarantine_is_not_called_kept(broker, redis, monkeypatch):
    """Nobody else touches it; where it has gone, nobody knows."""
    bind(redis, "celery", "celery")
    redis.lpush("celery", ODD, ODD + b"2")
    plan = proposed(broker)
    monkeypatch.setattr(points, "watchers", lose(redis, "*:q:celery", [ODD]))

    outcomes = apply(plan, broker, dry_run=False)

    assert sorted(told(outcomes)) == ["applied", "unverified"]
    (unsure,) = [outcome for outcome in outcomes if str(outcome.status) == "unverified"]
    assert unsure.action.copies[0].sha256 == digest(ODD)
    assert "it is not in" in unsure.reason


def test_of_equal_messages_as_many_are_looked_for_as_were_moved(broker, redis, monkeypatch):
    """One of two is no proof of both."""
    bind(redis, "celery", "celery")
    redis.lpush("celery", ODD, ODD)
    plan = proposed(broker)
    monkeypatch.setattr(points, "watchers", lose(redis, "*:q:celery", [ODD]))

    assert sorted(told(apply(plan, broker, dry_run=False))) == ["applied", "unverified"]


def test_a_restored_message_that_is_gone_from_a_queue_that_nobody_consumes_is_not_called_back(
    broker, redis, monkeypatch
):
    """No worker can have taken it."""
    seed_unacked(redis)
    plan = proposed(broker)

    def at(place):
        if place == "before-verify":
            redis.delete("celery")

    monkeypatch.setattr(points, "watchers", [at])
    (outcome,) = apply(plan, broker, dry_run=False)

    assert str(outcome.status) == "unverified"
    assert "celery, which no node consumes" in outcome.reason


@pytest.mark.parametrize(("queues", "status"), [(["celery"], "applied"), (["celery2", "mail"], "unverified")])
def test_a_restored_message_that_is_gone_was_taken_if_a_node_consumes_its_queue(
    broker, redis, server, monkeypatch, queues, status
):
    """That is what it was put back for; a node that consumes another queue proves nothing."""
    orphan = seed_unacked(redis)
    plan = proposed(broker)
    monkeypatch.setattr(points, "watchers", [lambda place: place == "before-verify" and redis.delete("celery")])

    def answer(asked):
        said = {"active_queues": [{"name": name} for name in queues]}
        return [reply(asked, "n@x", said.get(asked["method"], []))]

    with listening(server, answer):
        (outcome,) = apply(plan, broker, dry_run=False)

    assert (outcome.action.subject, str(outcome.status)) == (orphan.task_id, status)


def test_what_an_earlier_plan_of_the_same_run_did_is_not_looked_for_again(broker, redis):
    """Its messages went their way since; numbers of actions begin anew with each plan."""
    first = seed_unacked(redis)
    assert told(apply(proposed(broker), broker, dry_run=False)) == ["applied"]
    assert waiting_ids(redis) == [first.task_id]
    redis.delete("celery")
    seed_unacked(redis)

    assert told(apply(proposed(broker), broker, dry_run=False)) == ["applied"]
