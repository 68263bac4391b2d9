"""beat-schedule on real redbeats: one is killed, unlocked and followed; entries are sent, paused and resumed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from bs4 import BeautifulSoup

from opslib import catalog, records, run
from opslib.broker import connect
from opslib.demo import server as embedded
from opslib.errors import Exit
from opslib.run import RunResult
from tests import command_line
from tests.support import servers, tables
from tests.support.plans import told, undone
from tests.support.postgres import Postgres
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, deployment

SECRET = "card-4711-secret"
ENTRIES = {
    "often": {"task": "tests.ok", "schedule": 1.0, "args": [SECRET], "options": {"queue": "clock"}},
    "rarely": {"task": "tests.ok", "schedule": 86_400.0, "args": [SECRET], "options": {"queue": "rare"}},
    "in vain": {"task": "tests.was_renamed", "schedule": 86_400.0},
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server as the default target, with a node that consumes nothing that beat sends."""
    folder = tmp_path_factory.mktemp("clock")
    with pytest.MonkeyPatch.context() as patch, embedded.start(folder) as server, deployment(server, folder) as found:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("OPS_BROKER_URL", server.url)
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        found.worker(pool="solo", conf=conf(found), name="w@clock")
        yield found


def conf(system: Deployment) -> dict[str, object]:
    """The application's configuration, as nodes and beats have it."""
    url = system.server.url
    return {
        "beat_schedule": ENTRIES,
        "beat_max_loop_interval": 1,
        "redbeat_lock_timeout": 600,
        "redbeat_redis_url": url,
    }


def look(**parameters: Any) -> RunResult:
    """Run the notebook; what is three seconds late is overdue."""
    return run.run(catalog.find("beat-schedule"), {"overdue_after": "3s", "answer_within": "5s", **parameters})


def runs(system: Deployment, name: str = "often") -> int:
    """Return how often redbeat says that it has sent an entry."""
    meta = json.loads(system.redis.hget(f"redbeat:{name}", "meta") or "{}")
    return int(meta.get("total_run_count") or 0)


def stale() -> RunResult | None:
    """Return a look that finds the lock stale; None if this one does not yet."""
    found = look()
    return found if ("beat-lock-stale", "redbeat::lock") in codes(found) else None


def codes(result: RunResult) -> set[tuple[str, str]]:
    """Return what remains, by code and subject."""
    return {(str(row["code"]), str(row["subject"])) for row in result.record.remaining}


def test_a_killed_beat_is_proven_dead_unlocked_and_followed(system: Deployment) -> None:
    """Its lock would have kept the next one from beginning for ten minutes."""
    beat = system.beat(conf=conf(system))
    until(lambda: runs(system) >= 2, DEADLINE_S, "beat sends")
    while_it_lived = look(do="", dry_run=True)
    beat.kill()
    sent = runs(system)
    found = until(stale, DEADLINE_S, "its lock is known to be a dead one's")
    unlocked = look(do="unlock", dry_run=False)
    gone = not system.redis.exists("redbeat::lock")
    follower = system.beat(conf=conf(system))
    until(lambda: runs(system) > sent, DEADLINE_S, "the next beat sends")
    follower.kill()

    assert not {code for code, _ in codes(while_it_lived)} & {"schedule-overdue", "beat-lock-stale"}
    assert ("schedule-overdue", "often") in codes(found)
    assert ("schedule-broken", "in vain") in codes(found)
    assert [row["status"] for row in unlocked.record.outcomes] == ["applied"]
    assert gone
    assert unlocked.exit_code is Exit.ATTENTION


def test_what_is_paused_is_left_out_until_it_is_resumed(system: Deployment) -> None:
    """By a real redbeat that runs all the while; and an undo resumes it, too."""
    system.redis.delete("redbeat::lock")
    beat = system.beat(conf=conf(system))
    until(lambda: system.redis.exists("redbeat::lock"), DEADLINE_S, "beat serves the schedule")
    before = system.redis.hget("redbeat:often", "definition")
    paused = look(do="pause", name="often", dry_run=False)
    assert [row["status"] for row in paused.record.outcomes] == ["applied"], paused.record.outcomes
    after = system.redis.hget("redbeat:often", "definition")
    count = runs(system)
    lock = system.redis.pttl("redbeat::lock")
    until(lambda: system.redis.pttl("redbeat::lock") > lock, DEADLINE_S, "beat has looked again")
    still = runs(system)
    put_back = undone(connect(servers.target(system.server)), paused.record.run_id)
    until(lambda: runs(system) > count, DEADLINE_S, "beat sends it again")
    beat.kill()

    assert json.loads(after) == {**json.loads(before), "enabled": False}
    assert still <= count + 1  # it may have been sending at that moment
    assert told(put_back) == ["applied"]
    assert system.redis.hget("redbeat:often", "definition") == before


def test_one_is_sent_now(system: Deployment) -> None:
    """With its own arguments, to its own queue; and no report shows what those are."""
    length = system.redis.llen("rare")
    sent = look(do="run", name="rarely", dry_run=False)
    message = json.loads(system.redis.lindex("rare", 0))
    texts = [path.read_text() for path in sent.folder.iterdir() if path.name != "plan.json"]

    assert system.redis.llen("rare") == length + 1
    assert message["headers"]["task"] == "tests.ok"
    assert not [text for text in texts if SECRET in text]
    page = BeautifulSoup(sent.report.read_text(), "html.parser").get_text(" ", strip=True)
    assert "rarely" in page
    assert "every 1 d" in page


def test_an_entry_in_django_s_tables_is_sent_and_paused(
    system: Deployment, postgres_url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headless, with the database's password in the environment alone; no file of the run has that, or an argument."""
    tables.django(postgres_url)
    tables.entry(postgres_url, "in a table", args=json.dumps([SECRET]), queue="rare", last_run_at=tables.at(1_200))
    tables.told(postgres_url, tables.at(60))
    monkeypatch.setenv("OPS_DATABASE_URL", postgres_url)
    system.redis.delete("rare")
    found = look()
    sent = look(do="run", name="in a table", dry_run=False)
    message = json.loads(system.redis.lindex("rare", 0))
    paused = look(do="pause", name="in a table", dry_run=False)
    row = tables.row(postgres_url, "in a table")
    texts = [path.read_text() for run in (sent, paused) for path in run.folder.iterdir() if path.suffix != ".gz"]
    plan = (sent.folder / "plan.json").read_text()

    assert ("schedule-overdue", "in a table") in codes(found)
    assert message["headers"]["task"] == "tests.ok"
    assert json.loads(base64.b64decode(message["body"]))[0] == [SECRET]
    assert [each["status"] for each in paused.record.outcomes] == ["applied"], paused.record.outcomes
    assert row["enabled"] is False
    assert ("schedule-overdue", "in a table") not in codes(paused)
    assert not [text for text in texts if postgres.password in text]
    assert not [text for text in texts if SECRET in text and text != plan]


def test_a_pause_is_refused_where_the_entry_was_written_since(system: Deployment) -> None:
    """Somebody else changed it between the look and the change."""
    from opslib.collectors.beat import schedule
    from opslib.symptoms import beat_schedule
    from opslib.writer import apply

    broker = connect(servers.target(system.server))
    plan = beat_schedule.plan(schedule(broker), do="pause", name="rarely")
    definition = json.loads(system.redis.hget("redbeat:rarely", "definition"))
    changed = json.dumps({**definition, "schedule": {"__type__": "interval", "every": 9.0, "relative": False}})
    system.redis.hset("redbeat:rarely", "definition", changed)

    (outcome,) = apply(plan, broker, dry_run=False)

    assert (outcome.status, "written again" in outcome.reason) == ("skipped", True)
    assert system.redis.hget("redbeat:rarely", "definition").decode() == changed
