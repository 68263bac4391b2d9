"""A state is handed over once, only as it was seen, and before anything is sent; and it comes back to the byte."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opslib import checkpoints
from opslib.broker import connect
from opslib.checkpoints import Document
from opslib.envelope import digest
from opslib.errors import Refused
from opslib.plan import Action, Copy, Kind, Status
from opslib.records import context
from opslib.rewrite import fresh
from opslib.settings import AppKey
from opslib.writer import apply, handed, points
from tests.support import servers
from tests.support.plans import planned, undone
from tests.support.seed import KEYS, waiting_ids

OLD, NEW = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


def saved(redis, task_id=OLD, *, life_s=3600, key="", **fields):
    """Save a state, and return what a plan says of it."""
    raw = checkpoints.write(Document(task_id=task_id, task="tests.ok", args=[1], kwargs={}, **fields))
    key = key or KEYS.checkpoint(task_id)
    redis.set(key, raw, ex=life_s)
    return raw, Copy(place="state", key=key, sha256=digest(raw))


def handover(copy, *, old=OLD, new=NEW, name="checkpoint"):
    """Return the action that hands a state over."""
    return Action(kind=Kind.HANDOVER, subject=old, source=name, destination=new, copies=(copy,))


def send(new=NEW, queue="onward"):
    """Return the action that sends the message of the task that goes on."""
    message = fresh("tests.ok", [1], {}, task_id=new, queue=queue).decode()
    return Action(kind=Kind.SEND, subject=new, source=OLD, destination=queue, message=message)


def run(broker, *actions):
    """Carry actions out; return what became of each, in their order."""
    return [each.status for each in apply(planned(broker, *actions), broker, dry_run=False)]


def both(redis, old=OLD, new=NEW):
    """Return both documents."""
    return [json.loads(redis.get(KEYS.checkpoint(each)) or b"null") for each in (old, new)]


def test_both_name_each_other_and_live_as_long(broker, redis):
    """The copy has all that the state says, and neither lives shorter than it did."""
    raw, copy = saved(redis, results={"rows": 7}, life_s=3600)

    assert run(broker, handover(copy), send()) == [Status.APPLIED] * 2

    old, new = both(redis)
    assert (old, new) == (
        {**json.loads(raw), "resumed_as": NEW},
        {**json.loads(raw), "task_id": NEW, "resumed_from": OLD},
    )
    lives = [redis.pttl(KEYS.checkpoint(each)) for each in (OLD, NEW)]
    assert all(checkpoints.LIFE_S * 1000 - 60_000 < life <= checkpoints.LIFE_S * 1000 for life in lives)
    assert waiting_ids(redis, "onward") == [NEW]


@pytest.mark.parametrize(("left_s", "life_s"), [(None, 600.0), (3600, 0.0)], ids=["its key", "what it says"])
def test_what_lives_for_ever_does_so_afterwards(broker, redis, left_s, life_s):
    """By its key, or by what it says of itself."""
    _, copy = saved(redis, life_s=left_s)
    raw = json.dumps({**json.loads(redis.get(copy.key)), "life_s": life_s}).encode()
    redis.set(copy.key, raw, ex=left_s)

    run(broker, handover(replace(copy, sha256=digest(raw))))

    assert [redis.pttl(KEYS.checkpoint(each)) for each in (OLD, NEW)] == [-1, -1]


@pytest.mark.parametrize("case", ["changed", "gone", "taken", "other type"])
def test_what_is_not_as_it_was_seen_is_not_handed_over_and_nothing_is_sent(broker, redis, case):
    """Whoever wrote there meanwhile keeps what is theirs."""
    _, copy = saved(redis)
    if case == "changed":
        saved(redis, results={"rows": 8})
    elif case == "taken":
        saved(redis, NEW)
    else:
        redis.delete(copy.key)
        if case == "other type":
            redis.hset(copy.key, "a", "b")
    before = servers.dump(redis)

    assert run(broker, handover(copy), send()) == [Status.SKIPPED] * 2

    after = servers.dump(redis)
    assert {key: value for key, value in after.items() if b"run:" not in key and b"audit" not in key} == {
        **before,
        **{key: after[key] for key in (b"opslib:epoch",) if key in after},
    }
    assert not redis.exists("onward")


def test_one_that_fails_does_not_keep_others_from_going_on(broker, redis):
    """Each message depends on its own state."""
    (_, good), (_, bad) = saved(redis), saved(redis, "bad")
    bad = replace(bad, sha256="0" * 64)

    done = run(broker, handover(bad, old="bad", new="worse"), handover(good), send(), send("worse"))

    assert done == [Status.SKIPPED, Status.APPLIED, Status.APPLIED, Status.SKIPPED]
    assert waiting_ids(redis, "onward") == [NEW]


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda copy: handover(replace(copy, key=KEYS.lock)), "is about opslib:lock"),
        (lambda copy: handover(replace(copy, key=KEYS.checkpoint("another"))), "is about opslib:checkpoint:another"),
        (lambda copy: handover(copy, name="unknown"), "is about"),
        (lambda copy: handover(copy, new=OLD), "is about"),
        (lambda copy: replace(handover(copy), kind=Kind.DELETE, subject=copy.key), "is about"),
    ],
    ids=["our lock", "another task's", "no such state", "to itself", "another kind"],
)
def test_an_action_that_is_about_another_key_than_it_shows_is_refused(broker, redis, action, said):
    """Before anything is done."""
    _, copy = saved(redis)
    before = servers.dump(redis)

    with pytest.raises(Refused, match=said):
        run(broker, action(copy))

    assert servers.dump(redis) == before


def test_undone_to_the_byte(broker, redis):
    """With the life that it had left; and the copy is gone, the message kept."""
    raw, copy = saved(redis, life_s=3600, results={"name": "Zoë"})
    run(broker, handover(copy), send())

    assert [each.status for each in undone(broker, context().run_id)] == [Status.APPLIED] * 2

    assert redis.get(copy.key) == raw
    assert 3_500_000 < redis.pttl(copy.key) <= 3_600_000
    assert not redis.exists(KEYS.checkpoint(NEW), "onward")
    assert undone(broker, context().run_id) == ()


@pytest.mark.parametrize("case", ["taken", "saved again", "old gone", "old saved again"])
def test_what_has_moved_on_is_not_undone(broker, redis, case):
    """The task that goes on keeps what it has."""
    _, copy = saved(redis)
    run(broker, handover(copy), send())
    if case == "taken":
        redis.delete("onward")
    elif case == "saved again":
        saved(redis, NEW, results={"rows": 9})
    elif case == "old gone":
        redis.delete(copy.key)
    else:
        saved(redis, results={"rows": 9})
    before = both(redis)

    statuses = {each.action.destination: each.status for each in undone(broker, context().run_id)}

    assert statuses[copy.key] is Status.SKIPPED
    assert both(redis) == before


def test_a_state_of_the_application_in_another_database(server, redis, archive):
    """Its own lock, journal and undo are there; nothing of ours is left in the broker."""
    assert archive
    elsewhere = f"{server.url[:-1]}3"
    key = AppKey(pattern="state:{task_id}", url=elsewhere, state=True)
    target = servers.target(server)
    target = type(target)(name=target.name, broker_url=target.broker_url, app_keys={"progress": key})
    broker = connect(target)
    with server.client() as other:
        other.select(3)
        raw = b'{"task_id": "' + OLD.encode() + b'", "done": 3}'
        other.set(f"state:{OLD}", raw, ex=60)
        site = broker.elsewhere(broker.apps["progress"], elsewhere)
        copy = Copy(place="state", key=f"state:{OLD}", sha256=digest(raw))

        assert run(site, handover(copy, name="progress")) == [Status.APPLIED]

        copied = json.loads(other.get(f"state:{NEW}"))
        assert copied == {"task_id": NEW, "done": 3, "resumed_from": OLD}
        assert json.loads(other.get(f"state:{OLD}"))["resumed_as"] == NEW
        assert other.pttl(f"state:{NEW}") > 13 * 86_400_000
        assert redis.dbsize() == 0
        assert [each.status for each in undone(broker, context().run_id)] == [Status.APPLIED]
        assert other.get(f"state:{OLD}") == raw
        assert not other.exists(f"state:{NEW}")
        other.flushdb()


def test_a_state_that_says_that_it_is_none_of_ours(broker, redis):
    """A key of the application's that is no state, by its settings, is not handed over."""
    assert redis is not None
    target = type(broker.target)(
        name="x", broker_url=broker.target.broker_url, app_keys={"progress": AppKey(pattern="p:{task_id}")}
    )
    assert handed.key_of(replace(broker, target=target), "progress", OLD) == ""


def test_many_are_handed_over_in_few_batches(broker, redis, monkeypatch):
    """As many as a batch takes, and all of them once."""
    actions = []
    for number in range(120):
        _, copy = saved(redis, f"old-{number}")
        actions.append(handover(copy, old=f"old-{number}", new=f"new-{number}"))
    passed = []
    monkeypatch.setattr(points, "watchers", [passed.append])

    assert set(run(broker, *actions)) == {Status.APPLIED}

    assert passed.count("after-script") == 3
    assert len(redis.keys("opslib:checkpoint:new-*")) == 120
