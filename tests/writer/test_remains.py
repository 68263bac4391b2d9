"""What is left beside results goes once nobody can need it, each kind kept before; and what may be needed stays."""

from __future__ import annotations

import json
import uuid

import pytest

from opslib import records
from opslib.broker import connect
from opslib.collectors.remains import remains
from opslib.collectors.stored import stored
from opslib.errors import BadParameter
from opslib.plan import Kind
from opslib.settings import AppKey, Target
from opslib.symptoms import weekly_cleanup
from opslib.writer import apply, drop, points, vault
from opslib.writer import undo as undoing
from tests.support.plans import told, undone, values
from tests.support.remains import (
    DAY_S,
    aged,
    archived,
    checkpoint,
    chord,
    group,
    held_by,
    quarantine,
    run_of,
    values_before,
)
from tests.support.seed import KEYS, envelope, seed_unacked, seed_waiting


@pytest.fixture
def site(broker, server):
    """The shared server; its application keeps its progress in the broker's database."""
    assert broker
    return connect(Target(name="trial", broker_url=server.url, app_keys={"progress": AppKey(pattern="at:{task_id}")}))


def seen(site, **asked):
    """Look at what is stored, and at what is left beside it."""
    return remains(site, stored(site, weekly_cleanup.asked(site)), **asked)


def planned(site, clean="", **asked):
    """Look, judge and plan, as the runbook does."""
    found = seen(site, **asked)
    return weekly_cleanup.plan(found, weekly_cleanup.diagnose(found), clean=clean)


def found(site, **asked):
    """Return the findings by their code."""
    return {finding.code: finding for finding in weekly_cleanup.diagnose(seen(site, **asked))}


def keys_of(redis, group_id):
    """Return which keys of a group there are."""
    root = KEYS.group(group_id)
    return {key.decode().removeprefix(root) for key in redis.scan_iter(match=f"{root}*")}


def clean(site, **asked):
    """Clean, and return the outcomes."""
    return apply(planned(site, **asked), site, dry_run=False)


class TestQuarantine:
    """Lists of runs that nobody goes on with."""

    def test_only_that_of_an_old_run_that_came_to_its_end_is_dropped(self, site, redis, archive):
        """Its messages are in a file; a young one, one that may go on, and one of another machine stay."""
        old, young, cut, by_hand, foreign = (run_of(days) for days in (40, 20, 40, 40, 40))
        lists = {run_id: quarantine(redis, run_id) for run_id in (old, young, cut)}
        lists[by_hand] = quarantine(redis, by_hand)
        lists[foreign] = quarantine(redis, foreign, host="elsewhere")
        archived(archive, old, ended_days=39.9)
        archived(archive, young, ended_days=20)
        archived(archive, cut, statuses=("applied", "failed"), ended_days=39.9)
        messages = redis.lrange(lists[old], 0, -1)

        findings = [f for f in weekly_cleanup.diagnose(seen(site)) if f.code == "quarantine-expired"]
        outcomes = clean(site)

        goes, stays = sorted(findings, key=lambda finding: finding.subject)
        assert set(goes.evidence["runs"]) == {old, by_hand}
        assert set(stays.evidence["runs"]) == {cut, foreign}
        assert "ops resume" in stays.evidence["runs"][cut]
        assert "elsewhere" in stays.evidence["runs"][foreign]
        assert told(outcomes) == ["applied", "applied"]
        assert {run_id for run_id, key in lists.items() if redis.exists(key)} == {young, cut, foreign}
        _, entries = vault.read(next(iter(archive.rglob("vault*.jsonl.gz"))))
        assert {part for kept in entries for part in kept.parts} >= set(messages)

    def test_one_that_was_resumed_counts_by_the_end_of_that(self, site, redis, archive):
        """A cut run that was resumed to its end is over; one whose plan was applied and cut off is not."""
        resumed, applied = run_of(50), run_of(50)
        keys = {run_id: quarantine(redis, run_id) for run_id in (resumed, applied)}
        archived(archive, resumed, statuses=("failed",), ended_days=50)
        archived(archive, run_of(45, "resume"), ended_days=45, continues=resumed)
        archived(archive, applied, statuses=("skipped",), ended_days=50)
        archived(archive, run_of(45, "apply"), statuses=("failed",), ended_days=45, continues=applied)

        clean(site)

        assert [redis.exists(keys[run_id]) for run_id in (resumed, applied)] == [0, 1]

    def test_a_run_that_was_gone_on_with_lately_keeps_its_own(self, site, redis):
        """The broker's audit has its last batch."""
        run_id = run_of(40)
        quarantine(redis, run_id)
        redis.xadd(KEYS.audit, {"batch": "3.1", "letters": "A", "line": json.dumps({"run": run_id})})

        assert not planned(site)

    def test_a_run_with_messages_on_their_way_keeps_its_own(self, site, redis):
        """Also where the list was set aside after the look."""
        run_id = run_of(40)
        quarantine(redis, run_id)
        plan = planned(site)
        redis.lpush(KEYS.work(run_id, "celery"), json.dumps(envelope()))

        (outcome,) = apply(plan, site, dry_run=False)

        assert (outcome.status, outcome.action.kind) == ("skipped", Kind.DROP)
        assert not planned(site)

    def test_one_that_holds_more_by_now_stays(self, site, redis):
        """Somebody has put something there."""
        key = quarantine(redis, run_of(40))
        plan = planned(site)
        redis.lpush(key, json.dumps(envelope()))

        assert told(apply(plan, site, dry_run=False)) == ["skipped"]
        assert redis.llen(key) == 4

    def test_less_than_an_undo_needs_is_to_be_confirmed(self, site, redis):
        """Fourteen days."""
        quarantine(redis, run_of(2))

        with pytest.raises(BadParameter, match="14 days"):
            seen(site, quarantine_after="1d")
        assert len(planned(site, quarantine_after="1d", everything=True)) == 1


class TestGroups:
    """Keys of groups and chords, of any type."""

    def test_those_that_are_over_go_and_come_back(self, site, redis):
        """Sorted sets, sets and strings, to the byte; a young one stays."""
        whole, failed, saved = chord(redis), chord(redis, ended=1, done=True), group(redis, ["a", "b"])
        before = values_before(redis, "celery-taskset-*")
        young = chord(redis, idle_s=60)

        (outcome,) = clean(site)

        assert "6 keys of groups were removed" in outcome.reason
        assert [keys_of(redis, each) for each in (whole, failed, saved)] == [set()] * 3
        assert keys_of(redis, young) == {".s", ".j", ".d"}
        assert told(undone(site, records.context().run_id)) == ["applied"]
        assert {key: held for key, held in values(redis).items() if young.encode() not in key} == before

    @pytest.mark.parametrize("place", ["waiting", "unacked", "chain"])
    def test_none_of_a_group_that_a_message_names(self, site, redis, place):
        """Neither of a member that waits or is delivered, nor of one that only comes later in a chain."""
        group_id = chord(redis, ended=1)
        if place == "waiting":
            seed_waiting(redis, group=group_id)
        elif place == "unacked":
            seed_unacked(redis, group=group_id)
        else:
            later = {"task": "tests.ok", "options": {"group_id": group_id}}
            seed_waiting(redis, args=[later], argsrepr="()")  # only its body says so

        assert not planned(site)
        assert "group-keys" not in found(site)

    def test_one_whose_member_was_sent_again_since_stays(self, site, redis):
        """It is looked at anew when the plan is carried out."""
        member = str(uuid.uuid4())
        named, chorded = group(redis, [member]), chord(redis, ended=1)
        plan = planned(site)
        seed_waiting(redis, task_id=member)
        seed_waiting(redis, group=chorded)

        (outcome,) = apply(plan, site, dry_run=False)

        assert outcome.status == "skipped"
        assert "4 stay" in outcome.reason
        assert keys_of(redis, named) == {""}
        assert keys_of(redis, chorded) == {".s", ".j", ".d"}

    def test_where_a_message_cannot_be_read_none_goes(self, site, redis):
        """It could be of any group."""
        chord(redis)
        seed_waiting(redis, compression="application/x-gzip")

        assert not planned(site)
        assert "compressed" in found(site)["group-keys"].hint

    def test_one_that_was_written_since_stays(self, site, redis, monkeypatch):
        """Each key is compared in the step that removes it."""
        group_id = chord(redis)

        def write(place):
            if place == "after-vault":
                redis.sadd(f"{KEYS.group(group_id)}.d", "late:2")

        plan = planned(site)
        monkeypatch.setattr(points, "passed", write)

        (outcome,) = apply(plan, site, dry_run=False)

        assert "1 were written again meanwhile" in outcome.reason
        assert keys_of(redis, group_id) == {".d"}


class TestCheckpoints:
    """Saved states that should have expired."""

    def test_only_those_past_their_life_that_never_expire(self, site, redis):
        """Not of a task in circulation, nor one from which such a task goes on."""
        old = checkpoint(redis, "old", age_s=20 * DAY_S)
        stay = [
            checkpoint(redis, "young", age_s=5 * DAY_S),
            checkpoint(redis, "expires", age_s=20 * DAY_S, life_s=60),
            checkpoint(redis, "waits", age_s=20 * DAY_S),
            checkpoint(redis, "heir-waits", age_s=20 * DAY_S, resumed_as="heir"),
        ]
        seed_waiting(redis, task_id="waits")
        seed_waiting(redis, task_id="heir")
        raw = redis.get(old)

        (outcome,) = clean(site)

        assert outcome.reason.startswith("1 saved states were removed")
        assert not redis.exists(old)
        assert all(redis.exists(key) for key in stay)
        undone(site, records.context().run_id)
        assert (redis.get(old), redis.ttl(old)) == (raw, -1)


class TestAppKeys:
    """What the application keeps, by the same plan as `ops app flush`."""

    def test_what_nobody_touched_of_tasks_that_are_over(self, site, redis):
        """One that came back into circulation meanwhile stays."""
        for name in ("over", "waits", "again", "read"):
            redis.hset(f"at:{name}", "percent", 80)
            aged(redis, f"at:{name}", DAY_S)
        redis.hset("at:young", "percent", 1)
        before = values_before(redis, "at:[^y]*")
        seed_waiting(redis, task_id="waits")
        plan = planned(site, clean="app_keys.progress")
        seed_waiting(redis, task_id="again")
        redis.hgetall("at:read")

        outcomes = apply(plan, site, dry_run=False)

        became = {o.action.subject: str(o.status) for o in outcomes}
        assert became == {"at:over": "applied", "at:again": "skipped", "at:read": "skipped"}
        assert {key for key in before if not redis.exists(key)} == {b"at:over"}
        undone(site, records.context().run_id)
        assert held_by(redis, "at:over") == {b"percent": b"80"}


def test_old_runs_of_the_archive_are_told(site, redis, archive):
    """How many, and how to prune them; one that keeps something needs a word of its own."""
    assert redis
    archived(archive, run_of(100), ended_days=100)
    (archived(archive, run_of(91), ended_days=91) / "vault.jsonl.gz").write_bytes(b"x" * 1000)
    archived(archive, run_of(89), ended_days=89)

    finding = found(site)["old-reports"]

    assert (finding.evidence["runs"], finding.evidence["hold_something"]) == (2, 1)
    assert "ops reports prune --older-than 90d --apply" in finding.hint
    assert not planned(site)


def test_where_the_server_keeps_no_time_keys_stay(site, redis):
    """It evicts by how often keys are used; that is told."""
    chord(redis)
    redis.set("at:over", "80")
    redis.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        view = seen(site)
    finally:
        redis.config_set("maxmemory-policy", "noeviction")

    assert not weekly_cleanup.plan(view, weekly_cleanup.diagnose(view))
    assert [row.silent for row in view.coverage if row.place == "keys of groups"] == [3]
    assert any(row.place.startswith("keys in ") and row.silent for row in view.coverage)


def test_where_a_node_is_silent_only_quarantines_go(site, redis):
    """They are nobody's; of all else nobody can say that its task is over."""
    chord(redis)
    checkpoint(redis, "old", age_s=20 * DAY_S)
    redis.hset("at:over", "percent", 80)
    aged(redis, "at:over", DAY_S)
    quarantine(redis, run_of(40))
    with redis.pubsub() as deaf:
        deaf.subscribe(KEYS.control_channel)
        deaf.get_message(timeout=5)

        view = remains(site, stored(site, weekly_cleanup.asked(site), answer_within="0.3s"), answer_within="0.3s")

    findings = weekly_cleanup.diagnose(view)
    assert [action.kind for action in weekly_cleanup.plan(view, findings)] == [Kind.DROP]
    assert {"group-keys", "checkpoints-expired", "app-keys"} <= {finding.code for finding in findings}


def test_a_journal_that_was_cut_off_is_not_dropped(site, redis):
    """A batch that was begun and not ended is a person's to compare."""
    run_id = run_of(40)
    quarantine(redis, run_id)
    plan = planned(site)
    redis.hset(KEYS.journal(run_id), "7.1", "intent")

    outcomes, meant = drop.sorted_out(site, list(plan))

    assert not meant
    assert told(outcomes) == ["skipped"]


def test_the_undo_of_a_mixed_run_brings_back_all_but_what_was_dropped(site, redis):
    """One plan, one run."""
    chord(redis)
    checkpoint(redis, "old", age_s=20 * DAY_S)
    before = values_before(redis, "celery-taskset-*")
    states = held_by(redis, KEYS.checkpoint("old"))
    key = quarantine(redis, run_of(40))

    outcomes = clean(site)
    run_id = records.context().run_id

    assert set(told(outcomes)) == {"applied"}
    assert len(outcomes) == 3
    assert not redis.exists(key)
    undone(site, run_id)
    assert values(redis) == before
    assert held_by(redis, KEYS.checkpoint("old")) == states
    assert not undoing.plan(site, run_id)
