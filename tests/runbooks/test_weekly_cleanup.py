"""weekly-cleanup beside a real worker: what is past its retention goes, and what somebody still writes stays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, records, run
from opslib.errors import Exit
from opslib.keys import Keyspace
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.support.remains import chord, file, quarantine, run_of
from tests.support.stored import DAY_S, HOUR_S, held, ids, store
from tests.support.waiting import until
from tests.support.workers import Deployment

KEYS = Keyspace()
#: How many results of each task there are, by state and age.
STORED = {
    ("transcription.audio", "SUCCESS", 30 * HOUR_S): 120,
    ("transcription.audio", "SUCCESS", 13 * HOUR_S): 40,
    ("vod_processing.cut", "FAILURE", 50 * HOUR_S): 30,
    ("vod_processing.cut", "SUCCESS", 30 * HOUR_S): 25,
    ("shop.mail", "SUCCESS", 13 * HOUR_S): 60,
    ("shop.mail", "FAILURE", 1 * HOUR_S): 15,
}
PAST = {
    ("transcription.audio", "SUCCESS", 30 * HOUR_S),
    ("vod_processing.cut", "FAILURE", 50 * HOUR_S),
    ("shop.mail", "SUCCESS", 13 * HOUR_S),
}
LASTING = 20


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A deployment whose worker has been up for days, and an archive beside it."""

    redis: Redis
    folder: Path
    running: str
    finished: str
    orphan: str

    def run(self, **parameters: object) -> RunResult:
        """Run the notebook."""
        given = {"target": "shop", "idle": "1s", "answer_within": "20s", **parameters}
        return run.run(catalog.find("weekly-cleanup"), given, target="shop", reason="it is Sunday")

    def ops(self, *words: str) -> command_line.Done:
        """Run a command."""
        return command_line.ops(*words, env=dict(os.environ), cwd=self.folder, timeout_s=90)


@pytest.fixture(scope="module")
def shop(trial: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Results of every age, a task that runs, and one that has just finished."""
    trial.worker(name="w@shop")
    running = trial.send("gate")
    trial.until_running(running)
    finished = trial.send("ok")
    trial.redis.delete(KEYS.result(finished))
    store(trial.redis, running, "FAILURE", age_s=90 * DAY_S, task="shop.mail")
    for (task, state, age_s), count in STORED.items():
        for n in range(count):
            store(trial.redis, f"{task}-{state}-{age_s:.0f}-{n}", state, age_s=age_s, task=task)
    for n in range(LASTING):
        store(trial.redis, f"lasting-{n}", age_s=3 * DAY_S, task="shop.mail", life_s=None)
    orphan = KEYS.reply_list("6a0d9c4e")
    trial.redis.rpush(orphan, b'{"w@shop": {"ok": "pong"}}')
    until(lambda: (trial.redis.object("idletime", orphan) or 0) >= 1, 30, "nobody reads the answer")
    folder = tmp_path_factory.mktemp("weekly")
    (folder / "uploads").mkdir()
    (folder / "ops.toml").write_text(
        '[targets.shop]\nbroker_url = "env:SHOP_URL"\n[targets.shop.retention]\n'
        '"transcription.*" = "24h"\n"vod_processing.*" = "48h"\ndefault = "12h"\n'
        f'[targets.shop.temporary_files.uploads]\nfolder = "{folder}/uploads"\npattern = "*.part"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("SHOP_URL", trial.server.url)
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        yield Shop(redis=trial.redis, folder=folder, running=running, finished=finished, orphan=orphan)


@pytest.fixture(scope="module")
def before(shop: Shop) -> Mapping[bytes, tuple[bytes | None, int]]:
    """Every result as it was."""
    return held(shop.redis)


@pytest.fixture(scope="module")
def looked(shop: Shop, before: Mapping[bytes, object]) -> RunResult:
    """The dry run, which is the default."""
    result = shop.run()
    assert held(shop.redis) == before
    return result


@pytest.fixture(scope="module")
def cleaned(shop: Shop, looked: RunResult) -> RunResult:
    """The run that changes something."""
    assert looked.record.dry_run
    return shop.run(dry_run=False)


class TestLooking:
    """Nothing is changed."""

    def test_it_says_what_is_kept_too_long_and_for_ever(self, looked: RunResult) -> None:
        """For each retention, with its numbers; and the answer that nobody reads."""
        found = {(row["code"], row["subject"]): row["evidence"] for row in looked.record.findings}

        assert set(found) == {
            ("results-expired", "transcription.*"),
            ("results-expired", "vod_processing.*"),
            ("results-expired", "default"),
            ("results-without-ttl", "default"),
            ("orphan-reply-keys", "*.reply.celery.pidbox"),
        }
        assert found["results-expired", "transcription.*"]["by_age"] == {"1 to 2 d": 120}
        assert found["results-expired", "vod_processing.*"]["by_state"] == {"FAILURE": 30}
        assert found["results-expired", "default"]["by_task"] == {"shop.mail": 80}
        assert looked.exit_code == Exit.ATTENTION

    def test_the_plan_is_an_action_for_each_kind(self, looked: RunResult) -> None:
        """Not one for each key."""
        actions = looked.record.plan["actions"]
        told = [(row["kind"], row["task"], row["source"], row["copies"][0]["count"]) for row in actions]

        assert told == [
            ("delete", "vod_processing.*", "FAILURE, older than 2 d", 30),
            ("delete", "transcription.*", "SUCCESS, older than 1 d", 120),
            ("delete", "tasks without a rule", "SUCCESS, older than 12 h", 60),
            ("expire", "tasks without a rule", "never expires", 20),
            ("delete", "", "idle for 1.0 s", 1),
        ]

    def test_the_report_has_the_picture(self, looked: RunResult) -> None:
        """By age and state, with its sentence."""
        page = BeautifulSoup(looked.report.read_text(), "html.parser")
        alts = [picture["alt"] for picture in page.select("img[alt]")]

        assert len(alts) == 2
        assert "1 to 2 d 145 (SUCCESS 145)" in alts[0]
        assert "145, 145 after" not in alts[0]
        assert archive.verify(looked.folder) == []


class TestCleaning:
    """The plan carried out."""

    def test_exactly_what_is_past_its_retention_goes(self, shop: Shop, cleaned: RunResult) -> None:
        """By task, state and age; what never expired has a life."""
        assert {row["status"] for row in cleaned.record.outcomes} == {"applied"}
        left = {
            f"{task}-{state}-{age_s:.0f}-{n}"
            for (task, state, age_s), count in STORED.items()
            for n in range(count)
            if (task, state, age_s) not in PAST
        }
        assert ids(shop.redis) == left | {f"lasting-{n}" for n in range(LASTING)} | {shop.running}
        lives = [shop.redis.ttl(KEYS.result(f"lasting-{n}")) for n in range(LASTING)]
        assert all(12 * HOUR_S - 600 <= life <= 15 * HOUR_S for life in lives)
        assert not shop.redis.exists(shop.orphan)

    def test_a_running_task_keeps_its_result(self, shop: Shop, cleaned: RunResult) -> None:
        """However old it says to be."""
        assert cleaned.record.verdict == "healthy"
        assert shop.redis.exists(KEYS.result(shop.running))

    def test_bytes_freed_are_told(self, cleaned: RunResult) -> None:
        """In the picture's sentence, and in a table."""
        text = BeautifulSoup(cleaned.report.read_text(), "html.parser").get_text(" ")

        assert "What the cleanup changed" in text
        assert "210 fewer" in text

    def test_undo_brings_back_every_value_and_life(
        self, shop: Shop, before: Mapping[bytes, object], cleaned: RunResult
    ) -> None:
        """By the id of the run."""
        done = shop.ops("undo", cleaned.record.run_id, "--apply", "--yes")

        assert done.code in {Exit.DONE, Exit.ATTENTION, Exit.CANNOT_SEE}, done.err
        assert held(shop.redis) == before
        assert shop.redis.lrange(shop.orphan, 0, -1) == [b'{"w@shop": {"ok": "pong"}}']


def test_the_old_weekly_cleanup_by_the_command_line(shop: Shop, cleaned: RunResult) -> None:
    """A plan that is shown is what is done: the confirmed one is looked at again a moment later."""
    assert cleaned
    words = "-p older_than=25h -p status=SUCCESS -p lasting=leave -p clean=results -p answer_within=20s --apply --yes"

    done = shop.ops("run", "weekly-cleanup", "--target", "shop", *words.split())

    assert done.code == Exit.ATTENTION, done.err  # those without a life are left as they are
    assert not any(name.startswith("transcription.audio-SUCCESS-108000") for name in ids(shop.redis))
    assert len([name for name in ids(shop.redis) if name.startswith("vod_processing")]) == 30


def test_any_age_needs_its_own_confirmation(shop: Shop, cleaned: RunResult) -> None:
    """Before anything is looked at."""
    assert cleaned
    before = held(shop.redis)

    result = shop.run(older_than="0", dry_run=False)
    star = shop.run(task="*", dry_run=False)

    assert {result.exit_code, star.exit_code} == {Exit.USAGE}
    assert "everything=True" in result.record.error["hint"]
    assert held(shop.redis) == before


def test_what_is_left_beside_results_goes_in_one_run_and_comes_back(shop: Shop, cleaned: RunResult) -> None:
    """A chord, a file and an old quarantine, which alone is not brought back."""
    assert cleaned
    group_id, part = (
        chord(shop.redis, idle_s=3 * DAY_S),
        file(shop.folder / "uploads" / "a" / "film.part", content=b"half a film"),
    )
    kept = quarantine(shop.redis, run_of(40))
    names = {f"celery-taskset-meta-{group_id}.{suffix}" for suffix in "sjd"}

    result = shop.run(dry_run=False, lasting="leave")

    by_kind = {row["kind"]: row for row in result.record.plan["actions"]}
    assert {"drop", "delete", "remove"} <= set(by_kind), by_kind.keys()
    assert {row["status"] for row in result.record.outcomes} == {"applied"}
    assert (shop.redis.exists(*names, kept), part.exists()) == (0, False)
    text = BeautifulSoup(result.report.read_text(), "html.parser").get_text(" ")
    assert "Left beside results" in text
    assert str(part) in text
    done = shop.ops("undo", result.record.run_id, "--apply", "--yes")
    assert done.code in {Exit.DONE, Exit.ATTENTION, Exit.CANNOT_SEE}, done.err
    assert "1 quarantine list was dropped" in done.err
    assert (shop.redis.exists(*names), shop.redis.exists(kept), part.read_bytes()) == (3, 0, b"half a film")
    assert archive.verify(result.report.parent) == []
