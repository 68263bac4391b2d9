"""ops queue purge and ops quarantine: a queue out of circulation, what is kept of it, and the way back or out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from opslib.errors import Exit
from opslib.render import archive
from opslib.writer import vault
from tests.command_line import call, on_terminal, ops
from tests.shop import contents
from tests.support.seed import KEYS, bind, seed_waiting
from tests.support.workers import Deployment

QUEUE = "strays"


@pytest.fixture
def strays(shop: Deployment):
    """A queue that no node consumes, with messages of two priorities and one that nobody can decode."""
    seeded = [seed_waiting(shop.redis, queue=QUEUE, priority=priority) for priority in (0, 0, 0, 6)]
    shop.redis.lpush(QUEUE, b"no JSON \x1b[31m")
    yield seeded
    shop.redis.delete(QUEUE, f"{QUEUE}\x06\x166")


def newest(place: Path, name: str = "purge-queue", *, dry_run: bool = False):
    """Return the record of a command's only run; runs of one second have no order."""
    (run,) = (run for run in archive.runs(place / "reports") if (run.runbook, run.dry_run) == (name, dry_run))
    return run


def purged(place: Path) -> str:
    """Purge the queue; return the run's id."""
    done = call("queue", "purge", QUEUE, "--apply", "--yes", "--reason", "sent twice by mistake")
    assert done.code in {Exit.ATTENTION, Exit.DONE}, done
    return newest(place).run_id


@pytest.mark.usefixtures("strays")
class TestPurge:
    """Nothing without --apply; with it, all at once."""

    def test_a_dry_run_shows_the_plan_and_how_it_is_applied(self, shop, place):
        """And leaves everything where it is."""
        before = contents(shop.redis)

        done = call("queue", "purge", QUEUE)

        assert done.code == Exit.ATTENTION
        assert "5 messages leave circulation at once" in done.out
        assert f"ops apply {newest(place, dry_run=True).run_id}" in done.out
        assert contents(shop.redis) == before

    def test_the_saved_plan_is_applied_by_its_run(self, shop, place):
        """Just as it was shown."""
        call("queue", "purge", QUEUE)

        call("apply", newest(place, dry_run=True).run_id, "--yes")

        assert not shop.redis.exists(QUEUE)
        assert [row["status"] for row in newest(place).outcomes] == ["applied"]

    def test_what_was_purged_comes_back(self, shop, place):
        """Bytes, order and priorities; a second undo has nothing to do."""
        before = contents(shop.redis)
        run_id = purged(place)
        assert newest(place).reason == "sent twice by mistake"
        assert not shop.redis.exists(QUEUE)

        done = call("undo", run_id, "--apply", "--yes")

        assert "3 messages are back" in done.out or "4 messages are back" in done.out
        after = {name: value for name, value in contents(shop.redis).items() if not name.startswith(b"opslib:")}
        assert after == before
        again = call("undo", run_id, "--apply", "--yes")
        assert (again.code, again.out) == (Exit.DONE, "")
        assert "left to put back" in again.err

    def test_whoever_types_something_else_changes_nothing(self, shop, place):
        """The phrase has target, verb and count."""
        before = contents(shop.redis)

        done = on_terminal(
            "queue", "purge", QUEUE, "--apply", env=dict(os.environ), cwd=place, answer=lambda _: "default Purge 1"
        )

        assert "type: default purge 5" in done.out
        assert "That is not it" in done.out
        assert contents(shop.redis) == before

    @pytest.mark.parametrize("name", ["unacked", "opslib:lock", "_kombu.binding.celery"])
    def test_a_name_that_is_no_queue_is_refused(self, name):
        """Celery's own keys and ours are none."""
        done = call("queue", "purge", name, "--apply", "--yes")

        assert done.code == Exit.USAGE
        assert "is no queue" in done.err

    def test_a_queue_or_all_of_them_has_to_be_named(self):
        """A script's variable that is not set must not mean every queue."""
        assert call("queue", "purge", "", "--apply", "--yes").code == Exit.USAGE
        assert call("queue", "purge", QUEUE, "--all", "--apply", "--yes").code == Exit.USAGE

    def test_an_empty_queue_needs_nothing(self, shop, place):
        """It is said, and there is no run."""
        bind(shop.redis, "idle", "idle")

        done = call("queue", "purge", "idle", "--apply", "--yes")
        shop.redis.delete(KEYS.bindings("idle"))

        assert done.code == Exit.DONE
        assert "waits in idle. Nothing was changed" in done.err
        assert not (place / "reports").exists()

    def test_a_queue_that_nobody_knows_is_told_with_the_nearest(self, place):
        """For a typo is likelier than a queue that is empty, undeclared and consumed by nobody."""
        done = call("queue", "purge", f"{QUEUE}s", "--apply", "--yes")

        assert done.code == Exit.USAGE
        assert f"Did you mean {QUEUE}?" in done.err
        assert not (place / "reports").exists()


@pytest.mark.usefixtures("strays")
class TestQuarantine:
    """What is kept can be seen, and is removed only after it was written down."""

    def test_it_is_listed_by_run_and_queue(self, place):
        """With how many messages there are."""
        run_id = purged(place)

        rows = json.loads(call("quarantine", "list", "-o", "json").out)

        assert {(row["run_id"], row["queue"], row["count"]) for row in rows} == {
            (run_id, QUEUE, 4),
            (run_id, f"{QUEUE}\x06\x166", 1),
        }

    def test_its_messages_are_shown_without_arguments(self, place, strays):
        """And without anything that a terminal would obey."""
        run_id = purged(place)

        done = call("quarantine", "show", run_id)

        assert done.code == Exit.DONE
        assert all(each.task_id in done.out for each in strays)
        assert "unreadable" in done.out
        assert "\x1b[31m" not in done.out

    def test_it_is_dropped_after_it_was_written_down(self, shop, place, strays):
        """The file holds every byte."""
        run_id = purged(place)
        assert call("quarantine", "drop", run_id).code == Exit.ATTENTION
        assert len(json.loads(call("quarantine", "list", "-o", "json").out)) == 2

        call("quarantine", "drop", run_id, "--apply", "--yes")

        assert call("quarantine", "list", "-o", "json").out.strip() == "[]"
        run = newest(place, "drop-quarantine")
        assert [row["status"] for row in run.outcomes] == ["applied", "applied"]
        _, kept = vault.read((place / "reports" / run.report).with_name(vault.FILE))
        assert sorted(each.parts[0] for each in kept) == sorted([*(each.raw for each in strays), b"no JSON \x1b[31m"])
        assert not shop.redis.exists(QUEUE)
        undone = call("undo", run_id, "--apply", "--yes")
        assert "dropped" in undone.out

    @pytest.mark.parametrize("run_id", ["../../etc/passwd", "x", "20261121T021500Z-stuck-tasks-7f3a9c"])
    def test_a_run_that_keeps_nothing_is_told(self, run_id):
        """Also a path, which can never pass for a run."""
        for command in ("show", "drop"):
            done = call("quarantine", command, run_id)

            assert done.code == Exit.USAGE
            assert done.err


@pytest.mark.usefixtures("strays")
def test_without_a_terminal_and_without_yes_nothing_is_changed(shop, place):
    """Whatever the command."""
    run_id = purged(place)
    before = contents(shop.redis)

    for words in (
        ["queue", "purge", QUEUE, "--apply"],
        ["undo", run_id, "--apply"],
        ["quarantine", "drop", run_id, "--apply"],
    ):
        done = ops(*words, env=dict(os.environ), cwd=place)

        assert (done.code, done.out) == (Exit.REFUSED, "")
        assert "--yes" in done.err
    assert contents(shop.redis) == before
