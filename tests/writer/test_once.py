"""A plan is carried out once, as far as a person agreed to it, on what it shows; and what is kept stays."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opslib import plan as plans
from opslib import records
from opslib.collectors.deployment import collect
from opslib.collectors.find import find
from opslib.collectors.parts import depths
from opslib.collectors.quarantine import lists as lists_of
from opslib.errors import Refused
from opslib.plan import Action, Copy, Kind
from opslib.rewrite import fresh
from opslib.symptoms import asked
from opslib.writer import apply, journal, lists, points, resume, undo
from tests.support.plans import planned, purge_of, told, undone, values
from tests.support.seed import KEYS, seed_waiting, waiting_ids

QUEUE = "celery"
RUN = "20261121T030000Z-trial-abc123"


def quarantine_of(seeded):
    """Return the action that takes a waiting message out of circulation."""
    copy = Copy(place="waiting", key=seeded.key, queue=seeded.queue, sha256=seeded.sha256)
    return Action(kind=Kind.QUARANTINE, subject=seeded.task_id, source=QUEUE, destination="quarantine", copies=(copy,))


def run_id():
    """Return the id of the run that this test is."""
    return records.context().run_id


def cut_off_aside(broker, redis, monkeypatch, seeded):
    """Cut a run off while it sorts a long list; return the run's id."""

    def cut(name):
        if name == "list-set-aside":
            raise KeyboardInterrupt

    monkeypatch.setattr(lists, "SEARCHABLE", 10)
    with monkeypatch.context() as patched:
        patched.setattr(points, "watchers", [cut])
        with pytest.raises(KeyboardInterrupt):
            apply(planned(broker, quarantine_of(seeded[-1])), broker, dry_run=False)
    redis.delete(KEYS.lock)
    return run_id()


def test_what_is_kept_does_not_expire_with_its_queue(broker, redis):
    """A queue may be bound to expire, and a name keeps its life when it is changed."""
    for _ in range(3):
        seed_waiting(redis)
    redis.pexpire(QUEUE, 60_000)

    assert told(apply(planned(broker, purge_of(broker, QUEUE)), broker, dry_run=False)) == ["applied"]

    assert redis.ttl(KEYS.quarantine(run_id(), QUEUE)) == -1
    assert redis.ttl(KEYS.journal(run_id())) == -1  # nor does the way back
    assert told(undone(broker, run_id())) == ["applied"]
    assert redis.ttl(KEYS.journal(run_id())) > 0


def test_a_purge_of_which_one_list_has_grown_too_much_leaves_them_all(broker, redis):
    """All or nothing."""
    for priority in (0, 9):
        for _ in range(5):
            seed_waiting(redis, priority=priority)
    plan = planned(broker, purge_of(broker, QUEUE))
    for _ in range(50):
        seed_waiting(redis, priority=9)
    before = values(redis)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "skipped"
    assert "holds 55 messages by now, 5 were planned" in outcome.reason
    assert values(redis) == before


def test_a_plan_that_goes_on_with_a_journal_is_carried_out_once(broker, redis):
    """What came meanwhile was never meant, however often the plan is sent."""
    for _ in range(3):
        seed_waiting(redis)
    plan = replace(planned(broker, purge_of(broker, QUEUE)), continues=RUN)
    assert told(apply(plan, broker, dry_run=False)) == ["applied"]
    seed_waiting(redis)
    before = values(redis)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "skipped"
    assert "done already" in outcome.reason
    assert values(redis) == before


def test_what_nobody_agreed_to_is_not_even_saved(broker, redis, tmp_path, monkeypatch):
    """A resume would carry it out."""
    agreed, late = seed_waiting(redis), seed_waiting(redis)
    path = tmp_path / "confirmed.json"
    path.write_bytes(plans.write(planned(broker, quarantine_of(agreed))))
    told_run = {"run_id": RUN, "record": str(tmp_path / "record.json"), "confirmed": str(path)}
    monkeypatch.setenv("OPS_RUN", json.dumps(told_run))

    outcomes = apply(planned(broker, quarantine_of(agreed), quarantine_of(late)), broker, dry_run=False)

    assert told(outcomes) == ["applied", "skipped"]
    saved = plans.read((tmp_path / "plan.json").read_bytes())
    assert [action.subject for action in saved] == [agreed.task_id]
    assert len(resume.remaining(saved, broker, RUN)) == 0


def test_a_run_that_was_undone_is_not_gone_on_with(broker, redis):
    """Nobody asked for half of it."""
    plan = planned(broker, *(quarantine_of(seed_waiting(redis)) for _ in range(2)))
    apply(plan, broker, dry_run=False)
    undone(broker, run_id())

    with pytest.raises(Refused, match="was undone"):
        resume.remaining(plan, broker, run_id())


def test_a_saved_plan_that_was_applied_and_undone_is_not_gone_on_with(broker, redis):
    """Whatever run it was that applied it."""
    actions = [quarantine_of(seed_waiting(redis)) for _ in range(2)]
    plan = replace(planned(broker, *actions), continues=RUN)
    apply(plan, broker, dry_run=False)
    undone(broker, RUN)

    with pytest.raises(Refused, match="was undone"):
        resume.remaining(plan, broker, run_id())


def test_an_undo_that_was_cut_off_is_gone_on_with(broker, redis):
    """It goes on with what it had put back itself."""
    for priority in (0, 9):
        seed_waiting(redis, priority=priority)
    before = values(redis)
    apply(planned(broker, purge_of(broker, QUEUE)), broker, dry_run=False)
    back = undo.plan(broker, run_id())
    first = replace(back, actions=back.actions[:1])
    assert told(apply(first, broker, dry_run=False)) == ["applied"]

    left = resume.remaining(back, broker, run_id())

    assert [action.id for action in left] == [2]
    assert told(apply(left, broker, dry_run=False)) == ["applied"]
    assert values(redis) == before


@pytest.mark.parametrize("life_s", [900, -1])
def test_without_its_journal_only_a_fresh_plan_is_gone_on_with(broker, redis, life_s):
    """An old one may have been carried out long ago."""
    plan = planned(broker, quarantine_of(seed_waiting(redis)), life_s=life_s)

    if life_s > 0:
        assert len(resume.remaining(plan, broker, RUN)) == 1
    else:
        with pytest.raises(Refused, match="no journal"):
            resume.remaining(plan, broker, RUN)


@pytest.mark.parametrize(
    "copy",
    [
        Copy(place="list", key="payments", queue=QUEUE, count=1),
        Copy(place="waiting", key="payments", queue=QUEUE, sha256="0"),
        Copy(place="unacked", key="payments", queue=QUEUE),
        Copy(place="key", key="payments"),
        Copy(place="key", key="opslib:lock"),
        Copy(place="list", key="opslib:lock", count=1),
        Copy(place="list", key="payments", queue="payments", count=1),
        Copy(place="list", key="unacked", queue="unacked", count=1),
        Copy(place="waiting", key="unacked", queue="unacked", sha256="0"),
        Copy(place="waiting", key="_kombu.binding.celery", queue="_kombu.binding.celery", sha256="0"),
        Copy(place="waiting", key="opslib:audit", queue="opslib:audit", sha256="0"),
        Copy(place="waiting", key=f"opslib:run:{RUN}:q:celery", queue=f"opslib:run:{RUN}:q:celery", sha256="0"),
    ],
)
def test_what_is_shown_is_what_is_changed(broker, redis, copy):
    """A plan whose keys are not those of what it names is refused, whoever made it."""
    redis.rpush("payments", "x")
    kind = {"list": Kind.PURGE, "key": Kind.DELETE}.get(copy.place, Kind.QUARANTINE)
    action = Action(kind=kind, subject=QUEUE, source=QUEUE, destination="quarantine", copies=(copy,))
    before = values(redis)

    with pytest.raises(Refused, match="and is about"):
        apply(planned(broker, action), broker, dry_run=False)

    assert values(redis) == before


@pytest.mark.parametrize(
    "key", ["opslib:lock", "opslib:audit", f"opslib:run:{RUN}:j", f"opslib:run:{RUN}:w:celery", QUEUE]
)
def test_nothing_but_a_quarantine_is_dropped(broker, redis, key):
    """Whatever else this tool keeps, or a queue, is none."""
    redis.rpush(key, "x")
    copy = Copy(place="list", key=key, count=1)
    action = Action(kind=Kind.DROP, subject=key, source="quarantine", destination="vault", copies=(copy,))

    with pytest.raises(Refused, match="and is about"):
        apply(planned(broker, action), broker, dry_run=False)

    assert redis.lrange(key, 0, -1) == [b"x"]


@pytest.mark.parametrize("name", ["unacked", "_kombu.binding.celery", "opslib:lock", f"opslib:run:{RUN}:q:celery"])
@pytest.mark.parametrize("kind", [Kind.MOVE, Kind.SEND])
def test_nothing_is_put_where_no_queue_can_be(broker, redis, kind, name):
    """Not even by a plan that says so."""
    seeded = seed_waiting(redis)
    copy = Copy(place="waiting", key=QUEUE, queue=QUEUE, sha256=seeded.sha256)
    copies = (copy,) if kind is Kind.MOVE else ()
    message = seeded.raw.decode()
    action = Action(kind=kind, subject=seeded.task_id, source=QUEUE, destination=name, copies=copies, message=message)
    before = values(redis)

    with pytest.raises(Refused, match="no queue"):
        apply(planned(broker, action), broker, dry_run=False)

    assert values(redis) == before


def test_messages_are_sent_in_batches_that_are_bounded_by_number_and_bytes(broker, redis):
    """Each is one short stall for everybody else, and nothing of a batch is too large for the server."""
    large = [fresh("tests.ok", ["x" * 100_000], {}, task_id=f"l{n}", queue=QUEUE).decode() for n in range(5)]
    huge = [fresh("tests.ok", ["x" * 500_000], {}, task_id="h0", queue=QUEUE).decode()]
    small = [fresh("tests.ok", [], {}, task_id=f"s{n}", queue=QUEUE).decode() for n in range(210)]
    names = [*(f"l{n}" for n in range(5)), "h0", *(f"s{n}" for n in range(210))]
    actions = [
        Action(kind=Kind.SEND, subject=name, source="ops", destination=QUEUE, message=message)
        for name, message in zip(names, [*large, *huge, *small], strict=True)
    ]

    outcomes = apply(planned(broker, *actions), broker, dry_run=False)

    assert set(told(outcomes)) == {"applied"}
    assert waiting_ids(redis) == names
    sizes = [len(batch.items) for batch in journal.read(broker, run_id()).batches if batch.receipt["op"] == "send"]
    assert sizes == [1] * 6 + [200, 10]  # in a message, bytes are a third more


@pytest.mark.parametrize("shown", ["subject", "source"])
def test_a_list_is_that_of_the_queue_that_is_shown(broker, redis, shown):
    """As its subject, or where its messages are taken from."""
    seed_waiting(redis)
    (copy,) = purge_of(broker, QUEUE).copies
    named = {"subject": "some", "source": "some"} | {shown: QUEUE}
    action = Action(kind=Kind.PURGE, destination="quarantine", copies=(copy,), **named)

    assert told(apply(planned(broker, action), broker, dry_run=False)) == ["applied"]


@pytest.mark.parametrize("ttl_s", [None, 0, -5])
def test_a_life_that_is_none_deletes_nothing(broker, redis, ttl_s):
    """It is skipped, with why."""
    redis.set("key", "x")
    copy = Copy(place="key", key="key", life_s=-1)
    action = Action(kind=Kind.EXPIRE, subject="key", source="key", destination="key", copies=(copy,), ttl_s=ttl_s)

    assert told(apply(planned(broker, action), broker, dry_run=False)) == ["skipped"]

    assert redis.ttl("key") == -1


def test_what_is_set_aside_is_a_place_that_was_not_seen(broker, redis, monkeypatch):
    """Every look says so; a resume deals it back, in its order."""
    seeded = [seed_waiting(redis) for _ in range(100)]
    before = redis.lrange(QUEUE, 0, -1)
    run = cut_off_aside(broker, redis, monkeypatch, seeded)
    assert not redis.exists(QUEUE)

    looks = [
        find(broker, [seeded[0].task_id], answer_within="0.1s").coverage,
        collect(broker, settle="0.01s", answer_within="0.1s").coverage,
        depths(broker, answer_within="0.1s")[1],
    ]
    for coverage in looks:
        (row,) = [row for row in coverage if row.place == "set aside"]
        assert row.silent == 100
        assert run in row.note
    plan = planned(broker, quarantine_of(seeded[-1]))
    assert journal.read(broker, run).batches
    left = resume.remaining(plan, broker, run)
    assert set(told(apply(left, broker, dry_run=False))) == {"applied"}
    assert redis.lrange(QUEUE, 0, -1) == before[1:]


def test_a_quarantine_of_a_run_that_was_cut_off_is_not_dropped(broker, redis, monkeypatch):
    """Some of it is only on its way; whoever made the plan, and whenever."""
    seeded = [seed_waiting(redis) for _ in range(50)]
    run = cut_off_aside(broker, redis, monkeypatch, seeded)
    kept = KEYS.quarantine(run, QUEUE)
    redis.rename(KEYS.work(run, QUEUE), kept)
    plan = planned(broker, *asked.drop(lists_of(broker, run)))
    redis.copy(kept, KEYS.work(run, QUEUE))
    before = redis.lrange(kept, 0, -1)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert outcome.status == "skipped"
    assert "cut off with messages on their way" in outcome.reason
    assert f"`ops resume {run}`" in outcome.reason
    assert redis.lrange(kept, 0, -1) == before
    redis.delete(KEYS.work(run, QUEUE))
    assert told(apply(plan, broker, dry_run=False)) == ["applied"]
    assert not redis.exists(kept)


def test_however_many_lists_are_dropped_the_broker_is_looked_through_once(broker, redis):
    """Each look at it passes over every key."""
    for n in range(30):
        redis.lpush(KEYS.quarantine(RUN, f"q{n}"), "x")
    plan = planned(broker, *asked.drop(lists_of(broker, RUN)))

    def calls(command):
        return redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)

    scans, reads = calls("scan"), calls("hscan")
    assert told(apply(plan, broker, dry_run=False)) == ["applied"] * 30

    assert calls("scan") - scans < 10
    assert calls("hscan") - reads < 10


def test_a_dropped_quarantine_is_not_said_to_be_put_back(broker, redis, monkeypatch):
    """Nothing of the pass is there any more."""
    monkeypatch.setattr(lists, "SEARCHABLE", 10)
    seeded = [seed_waiting(redis) for _ in range(50)]
    apply(planned(broker, quarantine_of(seeded[40])), broker, dry_run=False)
    redis.delete(KEYS.quarantine(run_id(), QUEUE, part=2))

    (outcome,) = undone(broker, run_id())

    assert outcome.status == "skipped"
    assert "dropped" in outcome.reason
    assert redis.lrange(QUEUE, 0, -1) == [each.raw for n, each in enumerate(seeded) if n != 40][::-1]


@pytest.mark.parametrize("field", ["run", "1.1:u", "1.1"])
def test_a_journal_that_is_none_of_ours_is_told(broker, redis, field):
    """No defect, and no traceback."""
    redis.hset(KEYS.journal(RUN), mapping={"1.1": "A", field: b"\xff\x00"})

    with pytest.raises(Refused, match="cannot be read"):
        journal.read(broker, RUN)
