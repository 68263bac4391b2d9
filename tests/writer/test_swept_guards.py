"""What stands between a filter and a key that it must not have: each taken away in turn, one of these fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib import records
from opslib.collectors import circulation, pages
from opslib.collectors import stored as collecting
from opslib.errors import Refused
from opslib.symptoms import weekly_cleanup
from opslib.writer import apply, journal, points, resume, stored, swept, undo, vault
from tests.support import servers
from tests.support.plans import told, undone
from tests.support.resets import Cut, cut_at
from tests.support.seed import KEYS
from tests.support.stored import DAY_S, held, ids, store, value
from tests.writer.test_swept import clean, planned, site

__all__ = ["site"]


def run_id():
    """Return the id of the run that this test is."""
    return records.context().run_id


def key(name):
    """Return the key of a result."""
    return KEYS.result(name)


@pytest.fixture
def meanwhile(monkeypatch):
    """Return what has something happen at a place, once or each time."""

    def at(place, do):
        monkeypatch.setattr(points, "watchers", [lambda name: do() if name == place else None])

    return at


@pytest.fixture
def idle(monkeypatch):
    """Have every list of answers count as untouched for long."""
    idle_of = collecting.idle_of
    found = lambda *args: (replace(each, idle_s=10**6) for each in idle_of(*args))  # noqa: E731
    monkeypatch.setattr(collecting, "idle_of", found)


class TestMeanwhile:
    """Between the vault and the deed."""

    def test_one_that_is_to_last_from_now_on_stays(self, site, redis, meanwhile):
        """Somebody took its life away, so that it would stay."""
        store(redis, "a", age_s=DAY_S)
        meanwhile("after-vault", lambda: redis.persist(key("a")))

        (outcome,) = clean(site)

        assert redis.ttl(key("a")) == -1
        assert "1 were written again meanwhile" in outcome.reason

    def test_a_life_that_was_given_by_another_is_kept(self, site, redis, meanwhile):
        """It had none when it was looked at."""
        store(redis, "a", life_s=None)
        meanwhile("after-vault", lambda: redis.expire(key("a"), 10**6))

        clean(site)

        assert redis.ttl(key("a")) > 10**6 - 60

    def test_another_type_stays_and_leaves_no_batch_half_done(self, site, redis, meanwhile):
        """Even one that cannot be compared."""
        store(redis, "a", life_s=None)

        def replaced():
            redis.delete(key("a"))
            redis.xadd(key("a"), {"a": "b"})

        meanwhile("after-vault", replaced)

        (outcome,) = clean(site)

        assert redis.xlen(key("a")) == 1
        assert (outcome.status, "1 were written again meanwhile" in outcome.reason) == ("skipped", True)

    def test_what_was_gone_before_is_not_brought_back(self, site, redis, meanwhile):
        """It is in the vault, and was removed by somebody else."""
        store(redis, "a", age_s=DAY_S)
        store(redis, "b", age_s=DAY_S)
        meanwhile("after-vault", lambda: redis.delete(key("a")))
        clean(site)

        undone(site, run_id())

        assert ids(redis) == {"b"}

    @pytest.mark.parametrize("longer", [0, 300_000], ids=["short", "long"])
    def test_one_that_is_written_while_it_is_read_stays(self, site, redis, monkeypatch, longer):
        """Its head was old, and what is read whole is new."""
        store(redis, "a", age_s=DAY_S, result="x" * longer)
        walk = pages.walk

        def rewritten(*args):
            for page in walk(*args):
                store(redis, "a", result="x" * (longer + 7))
                yield page

        plan = planned(site)
        monkeypatch.setattr(pages, "walk", rewritten)

        apply(plan, site, dry_run=False)

        assert ids(redis) == {"a"}


@pytest.mark.usefixtures("idle")
class TestRights:
    """What may not be done is found out before anything is."""

    @pytest.mark.parametrize(
        "case",
        [
            ("unlink", DAY_S, False),
            ("pexpire", None, False),
            ("persist", None, True),
            ("set", DAY_S, True),
            ("rpush", 0, True),
        ],
    )
    def test_a_right_that_is_missing_leaves_no_batch_half_done(self, site, redis, server, monkeypatch, case):
        """Neither on the way there nor on the way back: one that was begun would stand in the way of both."""
        right, life_s, back = case
        whole = circulation.read(site, timeout_s=0.2)
        monkeypatch.setattr(circulation, "read", lambda *_, **__: whole)
        if life_s == 0:
            redis.rpush(KEYS.reply_list("0e3f"), b"{}")
        else:
            store(redis, "a", age_s=DAY_S, life_s=life_s)
        seen = look(site)
        plan = weekly_cleanup.plan(seen, weekly_cleanup.diagnose(seen))
        assert len(plan) == 1
        if back:
            apply(plan, site, dry_run=False)
        before = held(redis)
        servers.user(redis, f"{servers.READ_WRITE} -{right}")
        redis.execute_command("ACL", "SETUSER", "limited", f"(+{right} ~opslib:*)")
        limited = servers.elsewhere(site, servers.as_user(server))

        outcomes = undone(limited, run_id()) if back else apply(plan, limited, dry_run=False)

        assert told(outcomes) == ["failed"]
        assert held(redis) == before
        assert not journal.read(site, run_id()).partial


class TestMeant:
    """Judged by all that it holds, and by nothing less."""

    def test_what_cannot_be_read_stays_beside_what_goes(self, site, redis):
        """Even where a plan asks for any state and any age."""
        store(redis, "a")
        redis.set(key("odd"), b"\x80\x04}", ex=60)
        redis.set(key("cut"), value(redis, "cut")[:40], ex=60)
        plan = planned(site, older_than="0", everything=True)
        (action,) = plan
        any_ = replace(action, results=replace(action.results, states=(), written_by=None))

        apply(replace(plan, actions=(any_,)), site, dry_run=False)

        assert ids(redis) == {"odd", "cut"}

    def test_what_is_too_large_to_be_kept_stays(self, site, redis, monkeypatch):
        """And that is said."""
        monkeypatch.setattr(swept, "LARGEST_BYTES", 1_000)
        store(redis, "a", age_s=DAY_S, result="x" * 2_000)
        store(redis, "b", age_s=DAY_S)

        (outcome,) = clean(site)

        assert ids(redis) == {"a"}
        assert "1 are too large to be kept, and stay." in outcome.reason

    def test_one_that_only_its_ends_are_compared_of_goes_and_comes_back(self, site, redis):
        """As the script reckons, so do we."""
        store(redis, "a", age_s=DAY_S, result="x" * 1_500_000)
        before = held(redis)
        clean(site)
        assert not ids(redis)

        undone(site, run_id())

        assert held(redis) == before

    @pytest.mark.usefixtures("idle")
    def test_answers_are_lists_and_no_more_than_were_counted(self, site, redis):
        """Nothing else that is called so goes."""
        redis.rpush(KEYS.reply_list("0"), b"{}")
        seen = look(site)
        plan = weekly_cleanup.plan(seen, [])
        for n in range(1, 40):
            redis.rpush(KEYS.reply_list(str(n)), b"{}")
        redis.set(KEYS.reply_list("text"), b"{}")

        (outcome,) = apply(plan, site, dry_run=False)

        assert "11 replies were removed" in outcome.reason
        assert redis.dbsize() >= 40 - 11 + 1
        assert redis.get(KEYS.reply_list("text")) == b"{}"

    @pytest.mark.usefixtures("idle")
    def test_an_answer_that_is_too_large_stays(self, site, redis, monkeypatch):
        """It cannot be kept."""
        redis.rpush(KEYS.reply_list("0"), b"{}")
        plan = weekly_cleanup.plan(look(site), [])
        monkeypatch.setattr(stored, "read", lambda *_: "It is too large.")

        (outcome,) = apply(plan, site, dry_run=False)

        assert redis.exists(KEYS.reply_list("0"))
        assert "1 are too large" in outcome.reason


class TestBatches:
    """Little at a time, and what was done is done once."""

    @pytest.mark.parametrize(("limit", "value", "most"), [("_BATCH", 5, 5), ("_BATCH_BYTES", 1, 1)])
    def test_no_batch_stops_the_server_for_long(self, site, redis, monkeypatch, limit, value, most):
        """By number, and by what it has to compare."""
        monkeypatch.setattr(swept, limit, value)
        for n in range(40):
            store(redis, f"id-{n}", age_s=DAY_S)

        clean(site)

        batches = [each for each in journal.read(site, run_id()).batches if each.receipt["op"] == swept.OP]
        assert not ids(redis)
        assert max(map(swept.count_of, batches)) == most

    def test_one_that_is_gone_on_with_takes_no_more_than_was_planned(self, site, redis, monkeypatch):
        """What its first half took counts."""
        monkeypatch.setattr(swept, "_BATCH", 5)
        for n in range(10):
            store(redis, f"id-{n}", age_s=DAY_S)
        plan = planned(site)
        for n in range(10, 100):
            store(redis, f"id-{n}", age_s=DAY_S)
        with cut_at("after-script"), pytest.raises(Cut):
            apply(plan, site, dry_run=False)
        site.writes.delete(site.keys.lock)
        done = 100 - len(ids(redis))
        assert 0 < done <= 5

        (outcome,) = apply(resume.remaining(plan, site, run_id()), site, dry_run=False)

        assert len(ids(redis)) == 100 - 22
        assert f"{done} had been dealt with before the run was interrupted." in outcome.reason

    def test_what_is_done_is_not_done_again(self, site, redis):
        """What fits the first filter by now is none of this run's."""
        store(redis, "a", age_s=DAY_S)
        store(redis, "lasts", life_s=None)
        plan = planned(site)
        assert [str(action.kind) for action in plan] == ["delete", "expire"]
        passed = []

        def second(name):
            passed.append(name)
            if passed.count("after-vault") == 2:
                raise Cut

        points.watchers.append(second)
        try:
            with pytest.raises(Cut):
                apply(plan, site, dry_run=False)
        finally:
            points.watchers.remove(second)
        site.writes.delete(site.keys.lock)

        assert [str(action.kind) for action in resume.remaining(plan, site, run_id())] == ["expire"]

    def test_what_was_done_before_it_failed_is_said(self, site, redis, monkeypatch):
        """And can be put back."""
        monkeypatch.setattr(swept, "_BATCH", 5)
        for n in range(12):
            store(redis, f"id-{n}", age_s=DAY_S)
        before = held(redis)
        passed = []

        def third(name):
            passed.append(name)
            if name == "before-intent" and passed.count(name) == 3:
                raise Refused("The disk is full.")

        monkeypatch.setattr(points, "watchers", [third])
        (outcome,) = clean(site)
        monkeypatch.setattr(points, "watchers", [])

        done = 12 - len(ids(redis))
        assert outcome.status == "failed"
        assert outcome.reason.startswith(f"{done} results were removed")
        assert outcome.reason.endswith("The disk is full.")
        undone(site, run_id())
        assert held(redis) == before


class TestBack:
    """Only what a run took, out of its own vault, once."""

    def test_what_went_after_an_undo_stays_gone(self, site, redis):
        """An undo that is carried out twice puts nothing back twice."""
        store(redis, "a", age_s=DAY_S)
        clean(site)
        back = undo.plan(site, run_id())
        apply(back, site, dry_run=False)
        redis.delete(key("a"))

        apply(back, site, dry_run=False)

        assert not ids(redis)

    def test_a_vault_of_another_run_is_not_poured_out(self, site, redis, archive):
        """It is whole, and holds fewer."""
        for name in ("a", "b"):
            store(redis, name, age_s=DAY_S)
        clean(site)
        (path,) = archive.rglob("vault*.jsonl.gz")
        header, entries = vault.read(path)
        (first, *_) = entries
        path.unlink()
        vault.write(path, header, iter([first]))

        (outcome,) = undone(site, run_id())

        assert (outcome.status, "does not hold what was removed" in outcome.reason) == ("failed", True)
        assert not ids(redis)

    def test_a_vault_outside_the_archive_is_not_read(self, archive):
        """Whoever can write a journal can name any file."""
        (archive.parent / "vault.jsonl.gz").write_bytes(b"")

        for where in ("../vault.jsonl.gz", str(archive.parent / "vault.jsonl.gz")):
            with pytest.raises(Refused, match="outside the archive"):
                swept.vault_of(where)


def look(site):
    """Return what is stored."""
    return collecting.stored(site, weekly_cleanup.asked(site))
