"""ops workers, ops worker: what each node is and holds, and orders that are shown before they are given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from opslib.errors import Exit
from opslib.render import archive
from tests.command_line import call
from tests.shop import NODE, contents
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

TASK = "tests.slow_lane"


def node(name: str = NODE) -> dict[str, object]:
    """Return what is told of one node."""
    (row,) = (row for row in json.loads(call("workers", "-o", "json").out) if row["name"] == name)
    return row


def limit_of(task: str = TASK) -> str:
    """Return the limit that the node has for a task."""
    return next(each["rate_limit"] for each in node()["tasks"] if each["name"] == task)


def applied(place: Path) -> archive.RunRecord:
    """Return the record of the one run that changed something."""
    (run,) = (run for run in archive.runs(place / "reports") if not run.dry_run)
    return run


class TestView:
    """One look at everything that nodes say."""

    def test_each_node_is_shown_with_what_it_holds(self, busy):
        """As counts beside what it is; with --tasks every task with its place and its time."""
        done = call("workers", "--tasks")

        assert done.code == Exit.DONE
        (line,) = (line for line in done.out.splitlines() if busy.worker.name in line and "answered" in line)
        words = line.split()
        assert words[3:9] == ["1", "of", "1", "prefork", "1", "2"]
        for place in ("active", "reserved", "scheduled", "retrying"):
            assert busy.ids[place] in done.out
        assert re.search(r"in \d+ min", done.out)  # the scheduled one and the retry
        assert "Held by nodes" not in call("workers").out

    def test_as_data_it_is_the_same(self, busy):
        """The counts always; the tasks where they are wanted, without their arguments."""
        (row,) = (row for row in json.loads(call("workers", "-o", "json").out) if row["name"] == busy.worker.name)
        assert (row["active"], row["reserved"], row["scheduled"]) == (1, 1, 2)
        assert "holds" not in row

        (line,) = call("workers", "--tasks", "-o", "jsonl").out.splitlines()
        holds = {task["task_id"]: task["place"] for task in json.loads(line)["holds"]}

        assert holds == {
            busy.ids["active"]: "active",
            busy.ids["reserved"]: "reserved",
            busy.ids["scheduled"]: "scheduled",
            busy.ids["retrying"]: "scheduled",
        }
        assert not {"args", "kwargs"} & json.loads(line)["holds"][0].keys()

    def test_names_are_those_of_nodes_or_of_their_tasks(self, busy):
        """One a line."""
        assert call("workers", "-o", "ids").out.split() == [busy.worker.name]
        assert set(call("workers", "--tasks", "-o", "ids").out.split()) == {
            busy.ids[place] for place in ("active", "reserved", "scheduled", "retrying")
        }

    def test_a_longer_list_says_so(self, busy):
        """The rest is counted."""
        assert busy.ids
        done = call("workers", "--tasks", "--limit", "1")

        assert "3 tasks more" in done.err

    def test_only_the_control_plane_is_asked(self, busy):
        """Not a key more, however many there are."""
        before = busy.system.redis.info("commandstats").get("cmdstat_scan", {}).get("calls", 0)

        assert call("workers", "--tasks").code == Exit.DONE

        assert busy.system.redis.info("commandstats").get("cmdstat_scan", {}).get("calls", 0) == before

    def test_a_silent_node_is_told(self, shop: Deployment):
        """By name, and as a view that is not whole."""
        other = shop.worker(name="silent@shop", queues="silent")
        try:
            with other.frozen():
                done = call("workers", "--tasks", "--timeout", "0.5s")
        finally:
            other.kill()

        assert done.code == Exit.CANNOT_SEE
        assert "silent@shop" in done.out
        assert "no answer" in done.out
        assert "1 heard the question and did not answer" in done.err

        until(lambda: call("workers").code == Exit.DONE, DEADLINE_S, "nobody listens under its name any more")
        assert "Nobody listens any more as silent@shop" in call("workers").err
        assert "all that listen; silent@shop is gone" in call("stats").out
        refused = call("worker", "grow", "silent@shop")
        assert refused.code == Exit.USAGE
        assert "silent@shop is known here, and does not answer." in refused.err


class TestPool:
    """More or fewer processes."""

    def test_a_dry_run_shows_what_would_be_ordered(self, shop, place):
        """And orders nothing."""
        before = contents(shop.redis)

        done = call("worker", "grow", NODE, "--by", "2")

        assert done.code == Exit.ATTENTION
        assert "2 + 2" in done.out
        (run,) = archive.runs(place / "reports")
        assert f"ops apply {run.run_id}" in done.out
        assert node()["concurrency"] == 2
        assert contents(shop.redis) == before

    def test_it_grows_and_goes_back_by_the_id_of_the_plan(self, shop, place):
        """The plan was saved by one run and applied by another."""
        assert shop
        call("worker", "grow", NODE)
        (planned,) = archive.runs(place / "reports")

        done = call("apply", planned.run_id, "--yes")
        assert done.code in {Exit.DONE, Exit.ATTENTION}, done
        assert [row["status"] for row in applied(place).outcomes] == ["applied"]
        assert node()["concurrency"] == 3
        assert "steady@shop gives up 1 process" in call("undo", planned.run_id).out
        call("undo", planned.run_id, "--apply", "--yes")

        assert node()["concurrency"] == 2

    def test_it_shrinks_and_goes_back(self, shop, place):
        """With the record of a run."""
        assert shop
        done = call("worker", "shrink", NODE, "--apply", "--yes", "--reason", "the database is slow")
        assert done.code in {Exit.DONE, Exit.ATTENTION}, done
        assert f"{NODE} has 1 by now, and had 2 before" in " ".join(done.out.split())
        run = applied(place)
        assert (run.runbook, run.reason) == ("shrink-worker", "the database is slow")

        call("undo", run.run_id, "--apply", "--yes")

        until(lambda: node()["concurrency"] == 2, DEADLINE_S, "it has its number again")

    @pytest.mark.parametrize("verb", ["grow", "shrink"])
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["stedy@shop"], "Did you mean steady@shop?"),
            (["nobody"], "`ops workers` lists the nodes"),
            ([NODE, "--by", "0"], "--by"),
            ([NODE, "--by", "-1"], "--by"),
            ([NODE, "--by", "101"], "--by"),
            ([NODE, "--by", "x"], "--by"),
        ],
    )
    def test_bad_words_are_refused(self, shop, place, verb, words, said):
        """Before there is a run."""
        assert shop
        done = call("worker", verb, *words, "--apply", "--yes")

        assert done.code == Exit.USAGE
        assert said in done.err
        assert not (place / "reports").exists()

    def test_the_last_process_stays(self, shop, place):
        """Before there is a plan that promises otherwise."""
        assert shop
        done = call("worker", "shrink", NODE, "--by", "2")

        assert done.code == Exit.USAGE
        assert f"{NODE} has 2 processes, and at least one has to stay." in done.err
        assert not (place / "reports").exists()


class TestLimit:
    """How often a task is begun."""

    @pytest.mark.parametrize("only", [[], ["--node", NODE]])
    def test_it_is_limited_and_goes_back(self, shop, place, only):
        """On all nodes that have it, or on some."""
        assert shop
        done = call("worker", "limit", TASK, "10/m", *only, "--apply", "--yes")
        assert done.code in {Exit.DONE, Exit.ATTENTION}, done
        assert f"10/m at most on {NODE}." in done.out
        assert limit_of() == "10/m"

        call("undo", applied(place).run_id, "--apply", "--yes")

        assert limit_of() == ""

    def test_a_dry_run_tells_what_it_means(self, shop):
        """For what each node has already, too."""
        assert shop
        done = call("worker", "limit", TASK, "10/m")

        assert done.code == Exit.ATTENTION
        assert "none → 10/m" in done.out
        assert f"{NODE} begins it at most 10/m" in " ".join(done.out.split())
        assert limit_of() == ""

    def test_a_limit_that_is_there_already_is_no_change(self, shop, place):
        """It is said, and there is no plan that would do nothing."""
        assert shop
        done = call("worker", "limit", TASK, "none", "--apply", "--yes")

        assert (done.code, done.out) == (Exit.DONE, "")
        assert f"{TASK} has no limit on {NODE}" in done.err
        assert not (place / "reports").exists()

    @pytest.mark.parametrize("rate", ["fast", "10/d", "", "/m", "-1/m", "nan/s", "inf", "10/m/s", "1e400/s"])
    def test_what_is_no_rate_is_refused(self, shop, rate, place):
        """Before anybody is asked."""
        assert shop
        done = call("worker", "limit", "--apply", "--yes", "--", TASK, rate)

        assert (done.code, "10/s, 10/m, 10/h, or none" in done.err) == (Exit.USAGE, True)
        assert not (place / "reports").exists()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["tests.slow_lain", "10/m"], "Did you mean tests.slow_lane?"),
            ([TASK, "10/m", "--node", "steady@shp"], "Did you mean steady@shop?"),
        ],
    )
    def test_what_nobody_has_is_refused(self, shop, words, said):
        """With the nearest that there is."""
        assert shop
        done = call("worker", "limit", *words)

        assert (done.code, said in done.err) == (Exit.USAGE, True)
