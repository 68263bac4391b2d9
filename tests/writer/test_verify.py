"""What was done is looked for; what is nowhere is told, and makes the verdict unknown."""

from __future__ import annotations

import pytest

from opslib import records
from opslib.collectors.deployment import collect
from opslib.findings import Severity
from opslib.plan import Action, Copy, Kind, Outcome, Status
from opslib.writer import apply, points
from tests.support.plans import planned, purge_of, told
from tests.support.seed import KEYS, seed_unacked, seed_waiting


@pytest.fixture
def before_verify(monkeypatch):
    """Let something happen between the change and the look for it."""
    happenings = []
    monkeypatch.setattr(
        points, "watchers", [lambda name: [each() for each in happenings] if name == "before-verify" else None]
    )
    return happenings


def quarantine_of(seeded):
    """Return the action that takes a waiting message out of circulation."""
    copy = Copy(place="waiting", key=seeded.key, queue=seeded.queue, sha256=seeded.sha256)
    return Action(
        kind=Kind.QUARANTINE, subject=seeded.task_id, source="celery", destination="quarantine", copies=(copy,)
    )


def restore_of(seeded):
    """Return the action that puts a delivered message back."""
    copy = Copy(
        place="unacked",
        key=KEYS.unacked,
        queue="celery",
        delivery_tag=seeded.tag,
        sha256=seeded.sha256,
        score=seeded.score,
    )
    return Action(kind=Kind.RESTORE, subject=seeded.task_id, source="unacked", destination="celery", copies=(copy,))


def test_what_is_where_it_was_put_is_applied(broker, redis):
    """In quarantine, and back in its queue."""
    plan = planned(broker, quarantine_of(seed_waiting(redis)), restore_of(seed_unacked(redis)))

    assert told(apply(plan, broker, dry_run=False)) == ["applied", "applied"]


def test_a_quarantine_that_lost_a_message_is_told(broker, redis, before_verify):
    """Nobody but this tool has business there."""
    lost, kept = seed_waiting(redis), seed_waiting(redis)
    before_verify.append(lambda: redis.lrem(KEYS.quarantine(records.context().run_id, "celery"), 1, lost.raw))

    outcomes = apply(planned(broker, quarantine_of(lost), quarantine_of(kept)), broker, dry_run=False)

    assert told(outcomes) == ["unverified", "applied"]
    assert "it is not in opslib:run" in outcomes[0].reason


def test_a_purge_is_counted_again(broker, redis, before_verify):
    """By what its quarantine holds."""
    for _ in range(5):
        seed_waiting(redis)
    before_verify.append(lambda: redis.lpop(KEYS.quarantine(records.context().run_id, "celery"), 2))

    (outcome,) = apply(planned(broker, purge_of(broker, "celery")), broker, dry_run=False)

    assert outcome.status == "unverified"
    assert "2 messages are not in" in outcome.reason


def test_a_restored_message_that_vanished_where_no_node_consumes_is_told(broker, redis, before_verify):
    """Where one does, a worker has taken it; here none can have."""
    seeded = seed_unacked(redis)
    before_verify.append(lambda: redis.rpop("celery"))

    (outcome,) = apply(planned(broker, restore_of(seeded)), broker, dry_run=False)

    assert outcome.status == "unverified"
    assert "no node consumes" in outcome.reason


def test_a_look_that_fails_proves_nothing(broker, redis, before_verify, monkeypatch):
    """The change is made, and nobody can say what is true now."""
    from redis.exceptions import ConnectionError as Lost

    from opslib.writer import journal

    def lost(*_):
        raise Lost("gone")

    seeded = seed_waiting(redis)
    before_verify.append(lambda: monkeypatch.setattr(journal, "read", lost))

    (outcome,) = apply(planned(broker, quarantine_of(seeded)), broker, dry_run=False)

    assert outcome.status == "unverified"
    assert "could not be looked for" in outcome.reason


def test_what_cannot_be_proven_makes_the_verdict_unknown(broker, redis):
    """Whatever else looks well."""
    seed_waiting(redis)
    seen = collect(broker, settle="0.01s", answer_within="0.1s")
    action = Action(kind=Kind.RESTORE, subject="x", source="unacked", destination="celery", id=1)
    outcome = Outcome(action=action, status=Status.UNVERIFIED, reason="It is nowhere.")

    record = records.record(
        "stuck-tasks",
        before=seen,
        findings=[],
        plan=planned(broker, action),
        outcomes=[outcome],
        after=seen,
        remaining=[],
        dry_run=False,
    )

    assert (record.verdict, record.exit_code) == ("unknown", 4)
    assert record.remaining[0]["severity"] == Severity.UNKNOWN
