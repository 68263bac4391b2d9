"""The schedule in Django's tables is read as beat serves it, and what cannot be read there is said."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab

from opslib.collectors import clocks, django_beat
from opslib.collectors.beat import schedule
from opslib.settings import Target
from tests.support import servers, tables

NOW = datetime.now(UTC)


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


@pytest.fixture
def file(made, tmp_path):
    """A file of SQLite's with Django's tables, all of them empty."""
    url = tables.sqlite(shutil.copy(made, tmp_path / "shop.db"))
    tables.emptied(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """A database of each kind in turn with Django's tables, all of them empty."""
    found = request.getfixturevalue("file" if request.param == "sqlite" else "on_postgres")
    tables.emptied(found)
    return found


def read(url, **more):
    """Read a schedule, as seen at NOW."""
    return django_beat.read(Target(name="x", broker_url="redis://nowhere", database_url=url), NOW, **more)


def ahead_s(row):
    """Return how long it is until an entry is due, in whole seconds."""
    return None if row.due_at is None else round(row.due_at - NOW.timestamp())


def test_an_entry_is_read_with_what_it_is_sent_by(url):
    """Its arguments are kept, and shown nowhere."""
    last = NOW - timedelta(minutes=4)
    tables.told(url, last)
    number = tables.entry(
        url,
        "nightly",
        args='["card-4711"]',
        kwargs='{"a": 1}',
        queue="reports",
        priority=3,
        expire_seconds=60,
        last_run_at=last,
        total_run_count=7,
    )
    found = read(url)
    (row,) = found.entries

    assert (row.name, row.source, row.task, row.when) == ("nightly", "django-celery-beat", "tests.ok", "every 10 min")
    assert (row.queue, row.priority, row.is_on, row.runs, row.row) == ("reports", 3, True, 7, number)
    assert (ahead_s(row), round(row.last_run_at - NOW.timestamp())) == (360, -240)
    assert json.loads(row.call)["args"] == ["card-4711"]
    assert set(json.loads(row.call)["options"]) == {"queue", "priority", "expires"}
    assert "card-4711" not in repr(row)
    assert round(found.told_at - NOW.timestamp()) == -240
    assert [(each.seen, each.silent) for each in found.coverage] == [(1, 0)]


@pytest.mark.parametrize(
    ("kind", "sent", "values", "when", "due_s"),
    [
        ("interval", {"every": 2, "period": "days"}, {}, "every 2 d", 172_800 - 3_600),
        ("clocked", {"clocked_time": NOW + timedelta(hours=5)}, {"one_off": True}, "at ", 18_000),
        ("interval", None, {"enabled": False}, "every 10 min", None),
        ("interval", None, {"one_off": True, "total_run_count": 1}, "every 10 min", None),
        ("interval", None, {"expires": NOW - timedelta(seconds=1)}, "every 10 min", None),
        ("interval", None, {"start_time": NOW + timedelta(hours=2)}, "every 10 min", 7_200),
        ("interval", None, {"start_time": NOW - timedelta(hours=2), "last_run_at": None}, "every 10 min", -7_200),
        ("interval", None, {"last_run_at": None, "date_changed": NOW}, "every 10 min", 600),
    ],
    ids=["days", "clocked", "off", "once", "expired", "not yet", "since", "never sent"],
)
def test_when_it_is_due_is_reckoned_as_beat_does(url, kind, sent, values, when, due_s):
    """From its last run an hour ago; one that never ran counts from when it was saved, or from its start."""
    tables.entry(url, "it", kind, sent, **{"last_run_at": NOW - timedelta(hours=1), **values})
    (row,) = read(url).entries

    assert row.when.startswith(when)
    assert ahead_s(row) == due_s


def test_a_crontab_counts_in_its_own_zone(url):
    """Four o'clock in Kolkata is not four o'clock in UTC."""
    at_four = {"minute": "0", "hour": "4", "day_of_month": "*", "month_of_year": "*", "day_of_week": "*"}
    last = datetime(2026, 11, 20, 12, tzinfo=UTC)
    tables.entry(url, "it", "crontab", {**at_four, "timezone": "Asia/Kolkata"}, last_run_at=last)
    (row,) = read(url).entries

    assert row.when == "crontab 0 4 * * * Asia/Kolkata"
    assert datetime.fromtimestamp(row.due_at, UTC) == datetime(2026, 11, 20, 22, 30, tzinfo=UTC)


def test_crontabs_mean_what_celery_means():
    """Whatever their fields, the zone and the last run; and what never comes is refused by both."""
    app, chosen, never = Celery("reckoning", set_as_current=False), random.Random(4), 0
    for _ in range(600):
        fields = {
            "minute": chosen.choice(["*", "*/7", "0", "30", "5,35", "10-20"]),
            "hour": chosen.choice(["*", "4", "*/5", "22-3", "0"]),
            "day_of_month": chosen.choice(["*", "1", "31", "1-7", "29"]),
            "month_of_year": chosen.choice(["*", "2", "*/3", "1"]),
            "day_of_week": chosen.choice(["*", "0", "1-5", "sun,wed"]),
        }
        zone = ZoneInfo(chosen.choice(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]))
        last = datetime.fromtimestamp(1_700_000_000 + chosen.random() * 9e7, UTC)
        try:
            theirs = crontab(**fields, app=app, nowfun=lambda last=last, zone=zone: last.astimezone(zone))
        except ValueError:
            never += 1
            with pytest.raises(ValueError, match="never occurs"):
                clocks.read(**fields)
            continue
        theirs.tz = zone
        began, rest, _ = theirs.remaining_delta(last.astimezone(zone))

        assert clocks.read(**fields).after(last, zone) == began + rest, (fields, zone, last)

    assert 10 < never < 100


@pytest.mark.parametrize(
    ("kind", "sent", "values", "words"),
    [
        ("interval", {"every": 5, "period": "fortnights"}, {}, "5 fortnights, which is no time"),
        ("crontab", {"minute": "61", "timezone": "UTC"}, {}, "Beat cannot read its crontab 61 4"),
        ("crontab", {"minute": "1", "timezone": "Mars/Olympus"}, {}, "Beat cannot read its crontab 1 4"),
        ("interval", None, {"interval_id": None}, "It has no schedule"),
        ("interval", None, {"args": "{no"}, "Its args are not what beat can read"),
        ("interval", None, {"kwargs": "[1]"}, "Its kwargs are not what beat can read"),
    ],
)
def test_what_beat_cannot_serve_is_named(file, kind, sent, values, words):
    """Each with why; the others are read all the same."""
    known = {"hour": "4", "day_of_month": "*", "month_of_year": "*", "day_of_week": "*"} if kind == "crontab" else {}
    tables.entry(file, "odd", kind, {**known, **sent} if sent else None, **values)
    tables.entry(file, "good")
    rows = {row.name: row for row in read(file).entries}

    assert words in rows["odd"].problem
    assert rows["odd"].due_at is None
    assert (rows["good"].problem, rows["good"].due_at is None) == ("", False)


def test_what_is_too_large_or_follows_the_sun_is_said(file):
    """Beat serves both; that something was not read or reckoned here, the coverage tells."""
    tables.entry(file, "large", args=json.dumps(["x" * 300_000]))
    sun = {"event": "sunset", "latitude": 52.5, "longitude": 13.4}
    tables.entry(file, "sunny", "solar", sun)
    found = read(file)
    rows = {row.name: row for row in found.entries}
    (coverage,) = found.coverage

    assert (rows["large"].call, rows["large"].problem, rows["large"].due_at is None) == ("", "", False)
    assert (rows["sunny"].when, rows["sunny"].is_unreckoned) == ("sunset at 52.5 13.4", True)
    assert (coverage.seen, coverage.silent, "ephem" in coverage.note) == (1, 1, True)


def test_times_of_another_zone_are_not_believed(file):
    """With USE_TZ off, a file of SQLite's has the zone of the application's clock, and does not say which."""
    tables.told(file, NOW + timedelta(hours=2))
    tables.entry(file, "it", last_run_at=NOW + timedelta(hours=2))
    found = read(file)

    assert [(row.due_at, row.is_unreckoned) for row in found.entries] == [(None, True)]
    assert found.coverage[0].silent == 1
    assert "USE_TZ" in found.coverage[0].note


def test_what_may_not_be_read_is_never_an_empty_schedule(postgres, on_postgres):
    """Nor is a database that is not there, or one that the nodes know of and the target does not."""
    tables.emptied(on_postgres)
    tables.entry(on_postgres, "it")
    with postgres.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS stranger")
        connection.execute(f"CREATE ROLE stranger LOGIN PASSWORD '{postgres.password}'")
    refused = read(postgres.url(on_postgres.rpartition("/")[2], "stranger"))
    gone = read(on_postgres.replace(f":{postgres.port}/", ":1/"))
    unnamed = read("", expected=True)

    assert [found.entries for found in (refused, gone, unnamed)] == [(), (), ()]
    assert [found.coverage[0].silent for found in (refused, gone, unnamed)] == [1, 1, 1]
    assert "permission denied" in refused.coverage[0].note
    assert "database_url" in unnamed.coverage[0].note
    assert not [found for found in (refused, gone) if postgres.password in found.coverage[0].note]
    assert read("") == django_beat.Found()
    assert [row.name for row in read(postgres.as_reader(on_postgres)).entries] == ["it"]


def test_it_is_part_of_what_is_looked_at(broker, server, file):
    """With the nodes and the queues; an entry that nobody may see makes the whole view partial."""
    tables.told(file, NOW)
    tables.entry(file, "it", last_run_at=NOW)
    seen = schedule(servers.broker(server, database_url=file))
    unseen = schedule(servers.broker(server, database_url=f"{file}.gone"))

    assert [row.name for row in seen.entries] == ["it"]
    assert round(seen.told_at - NOW.timestamp()) == 0
    assert (unseen.entries, [row.place for row in unseen.silent_places]) == ((), ["django-celery-beat"])
    assert broker.reads.dbsize() == 0
