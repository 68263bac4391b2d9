"""What a filter means of stored results goes, and nothing else; every value and life comes back."""

from __future__ import annotations

import itertools
import json
import pickle
import random
from dataclasses import replace

import pytest

from opslib import records
from opslib.broker import connect
from opslib.collectors.stored import stored
from opslib.errors import Refused
from opslib.settings import Target
from opslib.symptoms import weekly_cleanup
from opslib.writer import apply, points, swept, undo
from tests.support.plans import told, undone, values
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.stored import DAY_S, HOUR_S, held, ids, store, value
from tests.support.waiting import until

RULES = {"transcription.*": "24h", "vod_processing.*": "48h", "default": "12h"}
KEPT_S = {
    "transcription.audio": 24 * HOUR_S,
    "vod_processing.cut": 48 * HOUR_S,
    "shop.mail": 12 * HOUR_S,
    "": 12 * HOUR_S,
}


@pytest.fixture
def site(broker, server):
    """The shared server with the retention of the old scripts."""
    assert broker
    return connect(Target(name="trial", broker_url=server.url, retention=RULES))


def seen(site, **asked):
    """Look at what is stored."""
    return stored(site, weekly_cleanup.asked(site, **asked))


def planned(site, lasting="expire", **asked):
    """Look, judge and plan, as the runbook does."""
    found = seen(site, **asked)
    return weekly_cleanup.plan(found, weekly_cleanup.diagnose(found), lasting=lasting)


def clean(site, **asked):
    """Clean, and return the outcomes."""
    return apply(planned(site, **asked), site, dry_run=False)


def populate(redis, count):
    """Store results of every kind; return the ids of those that are past their retention, by whether they last."""
    rnd = random.Random(7)
    kinds = itertools.cycle(itertools.product(KEPT_S, ("SUCCESS", "FAILURE", "REVOKED"), (True, False)))
    past = {True: set(), False: set()}
    with redis.pipeline(transaction=False) as pipe:
        for n, (task, state, lasting) in zip(range(count), kinds, strict=False):
            age_s = rnd.choice([0.5, 0.98, 1.02, 5.0]) * KEPT_S[task]
            raw = value(redis, f"id-{n}", state, age_s=age_s, task=task) if n < 48 else None
            template = raw or _template(redis, f"id-{n}", state, age_s, task)
            pipe.set(KEYS.result(f"id-{n}"), template, px=None if lasting else int(3 * DAY_S * 1000))
            if age_s > KEPT_S[task]:
                past[lasting].add(f"id-{n}")
            if n % 5000 == 0:
                pipe.execute()
        pipe.execute()
    return past


_NOW = {}


def _template(redis, task_id, state, age_s, task):
    """Return a result without asking the server for the time again."""
    key = (state, age_s, task)
    if key not in _NOW or _NOW[key][0] is not redis:
        _NOW[key] = (redis, value(redis, "ID", state, age_s=age_s, task=task))
    return _NOW[key][1].replace(b'"ID"', f'"{task_id}"'.encode())


class TestSurvivors:
    """Exactly those, by age, state, task and life."""

    @pytest.mark.parametrize("count", [3_000, pytest.param(200_000, marks=pytest.mark.slow)])
    def test_what_is_past_its_retention_goes_and_nothing_else(self, site, redis, count):
        """By the rule of each task; what never expires gets a life and stays."""
        past = populate(redis, count)
        before = ids(redis)

        outcomes = clean(site)

        assert set(told(outcomes)) == {"applied"}
        assert ids(redis) == before - past[False]
        assert all(life >= 0 for _, life in held(redis).values())

    def test_undo_brings_back_every_value_and_life(self, site, redis):
        """To the byte; and what had none has none again."""
        populate(redis, 3_000)
        before = held(redis)
        clean(site)

        outcomes = undone(site, records.context().run_id)

        assert set(told(outcomes)) == {"applied"}
        assert held(redis) == before
        assert not undo.plan(site, records.context().run_id)

    def test_lives_are_given_with_jitter(self, site, redis):
        """As long as the retention, and up to a quarter more: not all end at once."""
        for n in range(300):
            store(redis, f"id-{n}", task="transcription.audio", life_s=None)

        clean(site)

        lives = [redis.pttl(KEYS.result(f"id-{n}")) / 1000 for n in range(300)]
        assert min(lives) > DAY_S - 60
        assert max(lives) <= DAY_S * (1 + swept.JITTER)
        assert max(lives) - min(lives) > DAY_S * swept.JITTER * 0.8

    def test_those_that_never_expire_are_removed_only_if_that_is_asked_for(self, site, redis):
        """Then the old ones go, and the young get a life."""
        past = populate(redis, 600)
        before = ids(redis)

        clean(site, lasting="delete")

        assert ids(redis) == before - past[True] - past[False]
        assert all(life >= 0 for _, life in held(redis).values())

    def test_only_the_states_that_were_asked_for(self, site, redis):
        """Several, also one of the application's own, whose age the life tells."""
        for state, n in itertools.product(("SUCCESS", "FAILURE", "REVOKED"), range(3)):
            store(redis, f"{state}-{n}", state, age_s=30 * HOUR_S)
        store(redis, "progress-old", "PROGRESS", life_s=4 * HOUR_S)
        store(redis, "progress-young", "PROGRESS", life_s=47 * HOUR_S)

        clean(site, older_than="24h", status="FAILURE,PROGRESS", result_expires="48h")

        assert ids(redis) == {f"{s}-{n}" for s in ("SUCCESS", "REVOKED") for n in range(3)} | {"progress-young"}

    def test_without_the_setting_nobody_knows_how_old_an_unfinished_one_is(self, site, redis):
        """So it stays."""
        store(redis, "progress-old", "PROGRESS", life_s=1 * HOUR_S)

        assert not planned(site, older_than="1h", status="PROGRESS")

    def test_a_glob_of_names_and_an_age(self, site, redis):
        """Both have to fit; a name that is not stored fits no glob."""
        store(redis, "a", task="shop.mail", age_s=3 * DAY_S)
        store(redis, "b", task="shop.mail", age_s=1 * HOUR_S)
        store(redis, "c", task="transcription.audio", age_s=3 * DAY_S)
        store(redis, "d", age_s=3 * DAY_S)

        clean(site, older_than="48h", task="shop.*")

        assert ids(redis) == {"b", "c", "d"}

    def test_any_age_once_it_is_confirmed(self, site, redis):
        """Everything that can be read."""
        populate(redis, 100)
        store(redis, "young")

        clean(site, older_than="0", everything=True, lasting="delete")

        assert ids(redis) == set()


class TestRewritten:
    """Between the look and the deed, the world goes on."""

    def test_a_result_that_was_written_since_stays(self, site, redis, monkeypatch):
        """Whatever was written: another value, or the same one with a new life."""
        for n in range(40):
            store(redis, f"id-{n}", age_s=DAY_S, life_s=HOUR_S)
        again = {key: (redis.get(key), 7200) for key in map(KEYS.result, ("id-1", "id-2"))}
        again[KEYS.result("id-3")] = (value(redis, "id-3", "SUCCESS"), 3600)

        def rewrite(place):
            if place == "after-vault":
                for key, (raw, life_s) in again.items():
                    redis.set(key, raw, ex=life_s)
                redis.delete(KEYS.result("id-4"))

        plan = planned(site)
        monkeypatch.setattr(points, "passed", rewrite)

        (outcome,) = apply(plan, site, dry_run=False)

        assert ids(redis) == {"id-1", "id-2", "id-3"}
        assert "36 results were removed" in outcome.reason
        assert "3 were written again meanwhile, and stay." in outcome.reason
        assert "1 were gone already." in outcome.reason

    def test_undo_leaves_what_was_written_since(self, site, redis):
        """The newer value is the true one."""
        store(redis, "a", age_s=DAY_S)
        store(redis, "b", age_s=DAY_S)
        store(redis, "c", life_s=None)
        clean(site)
        store(redis, "a", result="new")
        redis.set(KEYS.result("c"), b"new", ex=60)
        newer = redis.get(KEYS.result("a"))

        outcomes = undone(site, records.context().run_id)

        assert redis.get(KEYS.result("a")) == newer
        assert redis.get(KEYS.result("c")) == b"new"
        assert 0 < redis.ttl(KEYS.result("c")) <= 60
        assert ids(redis) == {"a", "b", "c"}
        assert any("were written again meanwhile" in outcome.reason for outcome in outcomes)

    def test_what_would_have_expired_meanwhile_is_not_brought_back(self, site, redis):
        """Its life is over."""
        store(redis, "a", age_s=DAY_S, life_s=2.0)
        store(redis, "b", age_s=DAY_S)
        plan = planned(site)
        apply(plan, site, dry_run=False)
        clock = redis.time()[0]
        until(lambda: redis.time()[0] > clock + 3, 20, "its life is over")

        (outcome,) = undone(site, records.context().run_id)

        assert ids(redis) == {"b"}
        assert "1 would have expired meanwhile." in outcome.reason

    def test_no_more_go_than_were_counted_and_what_may_have_come_since(self, site, redis):
        """What a filter means by then is not what a person has read."""
        for n in range(10):
            store(redis, f"id-{n}", age_s=DAY_S)
        plan = planned(site)
        for n in range(10, 100):
            store(redis, f"id-{n}", age_s=DAY_S)

        (outcome,) = apply(plan, site, dry_run=False)

        assert len(ids(redis)) == 100 - 22
        assert "78 more fit than were planned, and stay: run it again." in outcome.reason


class TestInCirculation:
    """Who may still write his result keeps it."""

    def test_tasks_that_wait_or_are_unacknowledged_keep_theirs(self, site, redis):
        """Whatever the age, and of whatever priority."""
        waiting = [seed_waiting(redis, priority=priority).task_id for priority in (0, 3, 9)]
        delivered = seed_unacked(redis).task_id
        for task_id in (*waiting, delivered, "over"):
            store(redis, task_id, "FAILURE", age_s=30 * DAY_S)
        store(redis, seed_waiting(redis).task_id, "RETRY", life_s=None)

        clean(site)

        assert ids(redis) >= {*waiting, delivered}
        assert "over" not in ids(redis)
        assert sum(redis.pttl(key) == -1 for key in redis.scan_iter(match=f"{KEYS.result_root}*")) == 1

    def test_one_that_came_back_after_the_plan_keeps_its_own(self, site, redis):
        """Who can be run is found out when the plan is carried out."""
        for n in range(5):
            store(redis, f"id-{n}", "FAILURE", age_s=DAY_S)
        plan = planned(site)
        seed_waiting(redis, task_id="id-3")

        apply(plan, site, dry_run=False)

        assert ids(redis) == {"id-3"}

    def test_where_a_place_was_not_seen_no_result_is_touched(self, site, redis):
        """And that is said."""
        store(redis, "a", age_s=DAY_S)
        plan = planned(site)
        seed_waiting(redis)
        redis.set(KEYS.queue("celery", 3), "no list")
        before = values(redis)

        (outcome,) = apply(plan, site, dry_run=False)
        again = planned(site)

        assert outcome.status == "skipped"
        assert "not wholly seen" in outcome.reason
        assert values(redis) == before
        assert not again
        assert "cannot-see" in {finding.code for finding in weekly_cleanup.diagnose(seen(site))}


class TestLeftAlone:
    """What cannot be judged, and what belongs to others."""

    def test_what_cannot_be_read_stays(self, site, redis):
        """Pickled, compressed, cut off, of another type, or under another task's id."""
        raws = {
            "pickled": pickle.dumps({"status": "SUCCESS"}),
            "compressed": b"\x00celery-compressed\x00zlib\x00\x78\x9c",
            "cut": value(redis, "cut", age_s=DAY_S)[:40],
            "foreign": value(redis, "another-id", age_s=DAY_S),
            "list": json.dumps([1, 2]).encode(),
            "number": b"7",
            "empty": b"{}",
        }
        for name, raw in raws.items():
            redis.set(KEYS.result(name), raw)
        redis.hset(KEYS.result("hash"), "status", "SUCCESS")
        before = values(redis)

        found = seen(site, older_than="0", everything=True)
        plan = weekly_cleanup.plan(found, [], lasting="delete")

        assert not plan
        assert values(redis) == before
        assert sum(row.count for row in found.groups if row.standing == "opaque") == len(raws) + 1

    def test_keys_of_others_stay_and_are_counted(self, site, redis):
        """Even those that look a little like Celery's."""
        store(redis, "a", age_s=DAY_S)
        others = ["session:1", "xcelery-task-meta-1", "my.reply.celery.pidbox.backup", "progress:7"]
        for name in others:
            redis.set(name, value(redis, "x", age_s=30 * DAY_S))
        before = values(redis)

        found = seen(site)
        clean(site)

        assert found.strangers == len(others)
        assert values(redis) == {key: held for key, held in before.items() if key != b"celery-task-meta-a"}

    def test_a_prefix_keeps_deployments_apart(self, broker, redis, server):
        """Two applications in one database: only the target's own results."""
        assert broker
        store(redis, "a", age_s=DAY_S, root="one:celery-task-meta-")
        store(redis, "a", age_s=DAY_S, root="two:celery-task-meta-")
        site = connect(Target(name="trial", broker_url=server.url, result_keyprefix="one:", global_keyprefix="one:"))

        clean(site)

        assert [key for key in redis.scan_iter() if b"task-meta" in key] == [b"two:celery-task-meta-a"]


def test_a_plan_that_was_made_otherwise_is_refused(site, redis):
    """What a person reads has to be what is done."""
    store(redis, "a", age_s=DAY_S)
    plan = planned(site)
    (action,) = plan
    (copy,) = action.copies
    forged = [
        replace(action, copies=(replace(copy, key="session:"),)),
        replace(action, subject="session:*"),
        replace(action, results=None),
        replace(action, results=replace(action.results, what="replies")),
        replace(action, results=replace(action.results, what="everything")),
    ]

    for each in forged:
        with pytest.raises(Refused, match="is about"):
            apply(replace(plan, actions=(each,)), site, dry_run=False)
    assert ids(redis) == {"a"}


def test_a_dry_run_changes_nothing(site, redis):
    """Not even a key of its own."""
    populate(redis, 60)
    before = dict(held(redis))
    size = redis.dbsize()

    outcomes = apply(planned(site), site)

    assert set(told(outcomes)) == {"skipped"}
    assert (held(redis), redis.dbsize()) == (before, size)


def test_answers_that_nobody_reads_go_and_come_back(site, redis):
    """Once they have been idle for long enough; one that was just written stays."""
    old, young = KEYS.reply_list("0e3f"), KEYS.reply_list("91ab")
    redis.rpush(old, b'{"w@h": 1}', b'{"x@h": 2}')
    until(lambda: redis.object("idletime", old) >= 2, 30, "nobody has touched it for two seconds")
    redis.rpush(young, b"{}")
    found = stored(site, weekly_cleanup.asked(site), idle="2s")

    (outcome,) = apply(weekly_cleanup.plan(found, []), site, dry_run=False)

    assert (redis.exists(old), redis.exists(young)) == (0, 1)
    assert "1 replies were removed" in outcome.reason
    undone(site, records.context().run_id)
    assert redis.lrange(old, 0, -1) == [b'{"w@h": 1}', b'{"x@h": 2}']


def test_a_vault_that_is_gone_is_said_before_anything_is_put_back(site, redis, archive):
    """What is lost is not guessed."""
    store(redis, "a", age_s=DAY_S)
    clean(site)
    (path,) = archive.rglob("vault*.jsonl.gz")
    path.unlink()

    outcomes = undone(site, records.context().run_id)

    assert told(outcomes) == ["failed"]
    assert ids(redis) == set()


def test_an_empty_database_has_nothing_to_clean(site):
    """And that is no error."""
    found = seen(site)

    assert (found.count, found.groups, found.leftovers) == (0, (), ())
    assert not weekly_cleanup.plan(found, [])


def test_values_too_long_to_be_fetched_are_known_by_their_ends(site, redis):
    """Their date is taken only if nothing else in them could be it."""
    store(redis, "long", age_s=DAY_S, result="x" * 300_000)
    store(redis, "middling", age_s=DAY_S, result="x" * 9_000)
    key = store(redis, "doubtful", age_s=0, result="x" * 300_000)
    stuffed = redis.get(key)[:-1] + b', "meta": {"date_done": "2001-01-01T00:00:00+00:00"}}'
    redis.set(key, stuffed, ex=3600)
    before = held(redis)

    clean(site)

    assert ids(redis) == {"doubtful"}
    undone(site, records.context().run_id)
    assert held(redis) == before


def test_results_in_a_database_of_their_own(broker, redis, server):
    """Which tasks can still be run is known by the broker, and the way back is in theirs."""
    assert broker
    url = server.url.replace("/0", "/5")
    site = connect(Target(name="trial", broker_url=server.url, result_backend=url))
    results = site.results
    waiting = seed_waiting(redis).task_id
    for task_id in (waiting, "over"):
        store(results, task_id, age_s=3 * DAY_S)
    before = held(results)

    (outcome,) = clean(site)

    assert outcome.status == "applied"
    assert ids(results) == {waiting}
    assert not list(redis.scan_iter(match="opslib:run:*"))
    undone(site, records.context().run_id)
    assert held(results) == before
    results.flushdb()
