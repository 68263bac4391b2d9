"""ops results: what is stored of results, and what of it has been kept long enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opslib.errors import Exit
from opslib.keys import Keyspace
from tests.command_line import Done, call
from tests.support.stored import DAY_S, HOUR_S, held, ids, store
from tests.support.workers import Deployment

KEYS = Keyspace()
HIDDEN = "for nobody else, 7"
#: Changes made; what else is wrong, or not seen, is no matter of these tests.
MADE = {Exit.DONE, Exit.ATTENTION, Exit.CANNOT_SEE}


def clean(*words: str) -> Done:
    """Run the command; on a machine that has much else to do, nodes take their time."""
    return call("results", "clean", "--timeout", "20s", *words)


@pytest.fixture(autouse=True)
def _results(shop: Deployment) -> None:
    """Of every state, age and life, and nothing that other tests have left."""
    for key in shop.redis.scan_iter(match="celery-task-meta-*"):
        shop.redis.delete(key)
    for n in range(6):
        store(shop.redis, f"old-{n}", age_s=8 * DAY_S, task="shop.mail", result=HIDDEN)
        store(shop.redis, f"failed-{n}", "FAILURE", age_s=30 * HOUR_S, task="shop.charge")
        store(shop.redis, f"young-{n}", age_s=60, task="shop.mail")
    store(shop.redis, "progress", "PROGRESS", life_s=HOUR_S, task="shop.video")
    store(shop.redis, "lasting", age_s=10 * DAY_S, life_s=None)


@pytest.mark.usefixtures("shop")
class TestStats:
    """What there is."""

    def test_it_counts_by_state_age_and_task(self) -> None:
        """For a person, without a value."""
        done = call("results", "stats")

        assert done.code == Exit.DONE, done.err
        assert "20 results" in done.out
        assert "PROGRESS" in done.out
        assert "(name not stored)" in done.out
        assert HIDDEN not in done.out + done.err

    def test_a_program_reads_the_same(self) -> None:
        """Every group with its figures, and the names of tasks as ids."""
        document = json.loads(call("results", "stats", "--older-than", "24h", "-o", "json").out)
        names = call("results", "stats", "-o", "ids").out.split("\n")

        assert document["results"] == 20
        found = {(g["state"], g["task"], g["age"], g["standing"]): g["count"] for g in document["groups"]}
        assert found == {
            ("SUCCESS", "shop.mail", "7 to 30 d", "past"): 6,
            ("SUCCESS", "shop.mail", "under 1 h", "kept"): 6,
            ("FAILURE", "shop.charge", "1 to 2 d", "past"): 6,
            ("PROGRESS", "shop.video", "unknown", "undated"): 1,
            ("SUCCESS", "", "7 to 30 d", "past"): 1,
        }
        assert {"shop.mail", "shop.charge", "shop.video"} <= set(names)

    def test_a_result_backend_that_is_not_redis_is_said(self, place: Path) -> None:
        """A count of nothing would pass for an empty backend."""
        (place / ".env").write_text("OPS_RESULT_BACKEND=db+postgresql://h/results\n")

        done = call("results", "stats")

        assert done.code == Exit.CANNOT_SEE
        assert "not Redis" in done.err


class TestClean:
    """What is kept too long."""

    def test_the_dry_run_is_the_default(self, shop: Deployment) -> None:
        """It shows the plan, and says how many."""
        before = held(shop.redis)

        done = clean()

        assert done.code == Exit.ATTENTION
        assert "6 SUCCESS results older than 12 h are removed" in " ".join(done.out.split())
        assert held(shop.redis) == before

    def test_failures_older_than_a_day_and_back(self, shop: Deployment) -> None:
        """The old `clear-old-tasks --older-than 24 --status FAILURE`."""
        before = held(shop.redis)
        words = ("--older-than", "24h", "--status", "FAILURE", "--apply", "--yes", "-o", "json")

        done = clean(*words)

        record = json.loads(done.out)
        assert done.code == Exit.DONE, done.err
        assert {name for name in ids(shop.redis) if name.startswith("failed")} == set()
        assert len(ids(shop.redis)) == 14
        assert call("undo", record["run_id"], "--apply", "--yes").code in MADE
        assert held(shop.redis) == before

    def test_several_states_also_one_of_the_applications_own(self, shop: Deployment) -> None:
        """The old `--status FAILURE --status PROGRESS`; the age of PROGRESS is known by the setting."""
        words = ("--status", "FAILURE", "--status", "PROGRESS", "--older-than", "12h", "--result-expires", "24h")

        done = clean(*words, "--apply", "--yes")

        assert done.code == Exit.DONE, done.err
        assert {name.partition("-")[0] for name in ids(shop.redis)} == {"old", "young", "lasting"}

    def test_the_old_weekly_line(self, shop: Deployment) -> None:
        """`--older-than 168 --status SUCCESS`: hours need their unit now; what never expires gets a life."""
        refused = clean("--older-than", "168", "--status", "SUCCESS")

        done = clean("--older-than", "168h", "--status", "SUCCESS", "--apply", "--yes")

        assert refused.code == Exit.USAGE
        assert "168h" in refused.err
        assert done.code == Exit.DONE, done.err
        assert {name.partition("-")[0] for name in ids(shop.redis)} == {"failed", "young", "progress", "lasting"}
        assert 0 < shop.redis.ttl(KEYS.result("lasting")) <= 1.25 * 7 * DAY_S

    def test_only_tasks_of_a_glob(self, shop: Deployment) -> None:
        """By the retention of the target."""
        done = clean("--task", "shop.c*", "--apply", "--yes")

        assert done.code == Exit.DONE, done.err
        assert {name.partition("-")[0] for name in ids(shop.redis)} == {"old", "young", "progress", "lasting"}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--older-than", "0"), "just now"),
            (("--older-than", "0h"), "just now"),
            (("--older-than", "1s"), "just now"),
            (("--task", "*"), "every task"),
            (("--lasting", "keep"), "unknown"),
            (("--clean", "everything"), "unknown"),
            (("--older-than", "soon"), "not a duration"),
        ],
    )
    def test_what_would_take_everything_is_refused(self, shop: Deployment, words: tuple[str, ...], said: str) -> None:
        """Before anything is changed, and with what to say instead."""
        before = held(shop.redis)

        done = clean(*words, "--apply", "--yes")

        assert done.code == Exit.USAGE
        assert said in done.err
        assert held(shop.redis) == before

    def test_everything_once_that_is_confirmed(self, shop: Deployment) -> None:
        """The old `clear-old-tasks --older-than 0`, with its own word; of no known age, one stays."""
        words = ("--older-than", "0", "--everything", "--lasting", "delete", "--apply", "--yes")

        done = clean(*words)

        assert done.code == Exit.DONE, done.err
        assert ids(shop.redis) == {"progress"}

    def test_the_saved_plan_is_carried_out_by_its_id(self, shop: Deployment) -> None:
        """Exactly that, and only once."""
        shown = json.loads(clean("-o", "json").out)

        done = call("apply", shown["run_id"], "--yes")
        again = call("apply", shown["run_id"], "--yes")

        assert done.code in MADE, done.err
        assert {name.partition("-")[0] for name in ids(shop.redis)} == {"young", "progress", "lasting"}
        assert again.code == Exit.REFUSED

    def test_with_nothing_to_do_it_says_so(self, shop: Deployment) -> None:
        """And changes nothing."""
        for key in shop.redis.scan_iter(match="celery-task-meta-*"):
            shop.redis.delete(key)

        done = clean("--apply", "--yes")

        assert done.code == Exit.DONE, done.err
