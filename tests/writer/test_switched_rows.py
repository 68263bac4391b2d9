"""An entry in Django's tables is switched only as it was seen, beat is told in the same step, and undo does both."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest
import sqlalchemy as sa

from opslib.collectors import django_beat
from opslib.collectors.beat import schedule
from opslib.demo import server as embedded
from opslib.plan import Kind
from opslib.symptoms import beat_schedule
from opslib.writer import apply, points, switched_rows
from opslib.writer import resume as resuming
from tests.support import servers, tables
from tests.support.plans import told, undone
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, deployment
from tests.writer.test_undo import run_id


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of SQLite's with Django's tables."""
    path = tmp_path_factory.mktemp("django") / "made.db"
    tables.django(tables.sqlite(path))
    return path


@pytest.fixture(scope="module")
def on_postgres(postgres):
    """A database of PostgreSQL's with Django's tables."""
    with postgres.database() as url:
        tables.django(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A database of each kind in turn, with one entry of which beat was told."""
    if request.param == "sqlite":
        found = tables.sqlite(shutil.copy(request.getfixturevalue("made"), tmp_path / "shop.db"))
    else:
        found = request.getfixturevalue("on_postgres")
    tables.emptied(found)
    tables.entry(found, "nightly", args='["card-4711"]', last_run_at=tables.at(60))
    tables.told(found, tables.at(30))
    return found


@pytest.fixture
def site(server, redis, archive, url):
    """A broker whose application has that database."""
    assert not redis.dbsize()
    assert archive.is_dir()
    return servers.broker(server, database_url=url)


def planned(site, do="pause"):
    """Look at the schedule, and plan this for its entry."""
    return beat_schedule.plan(schedule(site), do=do, name="nightly")


def execute(url, statement):
    """Do what somebody else does meanwhile."""
    with tables.connected(url) as connection:
        connection.execute(sa.text(statement))


def test_one_word_is_another_and_beat_is_told(site, url):
    """Nothing else of the row; and the undo tells beat as well."""
    before = tables.row(url, "nightly")
    (outcome,) = apply(planned(site), site, dry_run=False)
    paused = tables.row(url, "nightly")
    back = undone(site, run_id())
    after = tables.row(url, "nightly")

    assert (outcome.status, outcome.action.kind) == ("applied", Kind.SWITCH)
    assert {**paused, "enabled": before["enabled"], "told": before["told"]} == before
    assert [bool(row["enabled"]) for row in (before, paused, after)] == [True, False, True]
    instants = [django_beat.instant(row["told"]) for row in (before, paused, after)]
    assert instants == sorted(set(instants))
    assert told(back) == ["applied"]
    assert type(paused["told"]) is type(before["told"])


def test_a_dry_run_and_a_second_time_change_nothing(site, url):
    """A plan that was carried out is not as it was planned any more."""
    plan = planned(site)
    before = tables.row(url, "nightly")
    (dry,) = apply(plan, site)
    untouched = tables.row(url, "nightly")
    apply(plan, site, dry_run=False)
    paused = tables.row(url, "nightly")
    (again,) = apply(plan, site, dry_run=False)

    assert (dry.status, untouched) == ("skipped", before)
    assert (again.status, again.reason) == ("skipped", "It is so already.")
    assert tables.row(url, "nightly") == paused


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE {} SET queue = 'other'", "written again"),
        ("UPDATE {} SET args = '[1]'", "written again"),
        ("UPDATE {} SET name = 'another'", "written again"),
        ("DELETE FROM {}", "removed it"),
    ],
)
def test_what_changed_since_the_plan_stays_as_it_is(site, url, statement, words):
    """Whoever wrote it meant that; beat is told nothing, and there is nothing to undo."""
    plan = planned(site)
    execute(url, statement.format(django_beat.TASKS))
    (outcome,) = apply(plan, site, dry_run=False)
    with tables.connected(url) as connection:
        enabled = connection.scalars(sa.text(f"SELECT enabled FROM {django_beat.TASKS}")).all()
        last = connection.scalar(sa.text(f"SELECT last_update FROM {django_beat.NOTICE}"))

    assert (outcome.status, words in outcome.reason) == ("skipped", True)
    assert all(enabled)
    assert (schedule(site).taken_at - django_beat.instant(last)).total_seconds() > 20


def test_what_beat_wrote_meanwhile_is_no_other_entry(site, url):
    """It writes down each run; that is not what was planned about."""
    plan = planned(site)
    execute(url, f"UPDATE {django_beat.TASKS} SET total_run_count = 5")
    (outcome,) = apply(plan, site, dry_run=False)
    row = tables.row(url, "nightly")

    assert (outcome.status, row["total_run_count"], bool(row["enabled"])) == ("applied", 5, False)


def test_beat_s_clock_may_be_ahead(site, url):
    """It compares with the instant that it has read: what is told has to be later than that."""
    plan = planned(site)
    tables.told(url, tables.at(-600))
    before = django_beat.instant(tables.row(url, "nightly")["told"])
    apply(plan, site, dry_run=False)

    assert django_beat.instant(tables.row(url, "nightly")["told"]) - before == timedelta(milliseconds=1)


def test_what_is_cut_off_before_the_end_changed_nothing(site, url, monkeypatch):
    """The journal knew of it before the table did; neither an undo nor a resumption makes anything of it."""

    def cut(*_):
        raise sa.exc.OperationalError("UPDATE", {}, ConnectionError("cut off"))

    with monkeypatch.context() as patch:
        patch.setattr(switched_rows, "_tell", cut)
        (outcome,) = apply(planned(site), site, dry_run=False)
    row = tables.row(url, "nightly")
    back = undone(site, run_id())

    assert (outcome.status, bool(row["enabled"])) == ("failed", True)
    assert told(back) == []


def test_a_run_that_dies_in_the_middle_is_resumed(site, url, monkeypatch):
    """It had told the journal, and not the table."""

    def die(*_):
        raise KeyboardInterrupt

    plan = planned(site)
    with monkeypatch.context() as patch:
        patch.setattr(switched_rows, "_tell", die)
        with pytest.raises(KeyboardInterrupt):
            apply(plan, site, dry_run=False)
    untouched = bool(tables.row(url, "nightly")["enabled"])
    (outcome,) = apply(resuming.remaining(plan, site, run_id()), site, dry_run=False)

    assert untouched
    assert (outcome.status, bool(tables.row(url, "nightly")["enabled"])) == ("applied", False)


def test_who_may_only_read_is_told_so(server, redis, archive, postgres, on_postgres):
    """And nothing was changed."""
    assert archive.is_dir()
    assert not redis.dbsize()
    tables.emptied(on_postgres)
    tables.entry(on_postgres, "nightly")
    reader = servers.broker(server, database_url=postgres.as_reader(on_postgres))
    (outcome,) = apply(planned(reader), reader, dry_run=False)

    assert (outcome.status, "permission denied" in outcome.reason) == ("failed", True)


def test_a_plan_is_for_one_database(site, url, server, made):
    """Another one may have an entry of the same name and number."""
    plan = planned(site)
    other = servers.broker(server, database_url=tables.sqlite(made))
    (outcome,) = apply(plan, other, dry_run=False)

    assert (outcome.status, "another database" in outcome.reason) == ("skipped", True)
    assert tables.row(url, "nightly")["enabled"]


def test_what_beat_writes_over_at_the_same_moment_is_told(site, url, monkeypatch):
    """Beat saves a whole row, as it had read it before."""
    plan = planned(site)
    at_once = iter([True])

    def beat(name):
        if name == "after-result" and next(at_once, False):
            monkeypatch.setattr(
                switched_rows.time, "sleep", lambda _: execute(url, f"UPDATE {django_beat.TASKS} SET enabled = true")
            )

    monkeypatch.setattr(points, "passed", beat)
    (outcome,) = apply(plan, site, dry_run=False)
    back = undone(site, run_id())

    assert (outcome.status, "same moment" in outcome.reason) == ("failed", True)
    assert told(back) == []


def test_a_real_beat_sees_the_pause_and_the_undo(tmp_path, archive, on_postgres):
    """Within seconds, as it looks whether it was told; its own rows are read as Django writes them."""
    assert archive.is_dir()
    tables.emptied(on_postgres)
    entries = {"often": {"task": "tests.ok", "schedule": 1.0, "options": {"queue": "clock"}}}
    conf = {"beat_schedule": entries, "beat_max_loop_interval": 1, "beat_sync_every": 1}
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    with embedded.start(tmp_path) as server, deployment(server, tmp_path) as system:
        site = servers.broker(server, database_url=on_postgres)

        def sent():
            return system.redis.llen("clock")

        beat = system.beat(scheduler=scheduler, conf=conf, module=tables.SITE, environment=tables.site(on_postgres))
        until(lambda: sent() >= 2, DEADLINE_S, "beat sends")
        seen = schedule(site)
        often = next(row for row in seen.entries if row.name == "often")
        found = {finding.code for finding in beat_schedule.diagnose(seen)}
        (outcome,) = apply(beat_schedule.plan(seen, do="pause", name="often"), site, dry_run=False)
        log = tmp_path / f"{beat.name}.log"
        until(lambda: "Schedule changed" in log.read_text(), DEADLINE_S, "beat has read its tables anew")
        count, paused = sent(), tables.row(on_postgres, "often")
        later = schedule(site).taken_at + timedelta(seconds=3)
        until(lambda: site.server_time() > later, DEADLINE_S, "three of its times have passed")
        still = sent()
        back = undone(site, run_id())
        until(lambda: sent() > still, DEADLINE_S, "beat sends it again")
        beat.kill()

    assert (often.when, often.queue, often.is_on, often.problem) == ("every 1.0 s", "clock", True, "")
    assert "schedule-untold" not in found
    assert (outcome.status, paused["enabled"]) == ("applied", False)
    assert still <= count + 1  # it may have been sending at that moment
    assert told(back) == ["applied"]
