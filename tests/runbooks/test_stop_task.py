"""stop-task on real nodes: what it stops stays stopped though its worker dies; what is not proven is not said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from bs4 import BeautifulSoup

from opslib import catalog, records, run
from opslib.errors import Exit
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.shop import contents
from tests.support.seed import quarantined, seed_waiting, waiting_ids
from tests.support.workers import Deployment, Worker

COUNTDOWN_S = 0.5
SECRET = "card-4711-secret"
HASTY = {"broker_transport_options": {"visibility_timeout": 3}}


@pytest.fixture(scope="module", autouse=True)
def _target(trial: Deployment) -> Iterator[None]:
    """The server as the default target, and an archive beside it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("OPS_BROKER_URL", trial.server.url)
        patch.setenv("OPS_REPORTS", str(trial.folder / "reports"))
        patch.setenv("OPS_OPERATOR", "ada")
        patch.setattr(records, "_HAND", [])
        patch.chdir(trial.folder)
        yield


def stop(**parameters: Any) -> RunResult:
    """Run the notebook."""
    return run.run(catalog.find("stop-task"), parameters, reason="it loops")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """
    A node with a loop, a task that hangs, one that is due soon and one that is due in an hour; and the runs about them.

    Attributes:
        ids: Task ids by what they do.

        attempts: How often each had been begun when the stop had ended.
    """

    node: Worker
    ids: dict[str, str]
    before: dict[bytes, bytes]
    looked: RunResult
    after_looking: dict[bytes, bytes]
    applied: RunResult
    attempts: dict[str, int]


def lasting(system: Deployment) -> dict[bytes, bytes]:
    """Return all that a node leaves alone while a loop goes on."""
    passing = (b"celery-task-meta-", b"unacked", b"loops", b"ran")
    return {key: value for key, value in contents(system.redis).items() if not key.startswith(passing)}


@pytest.fixture(scope="module")
def scene(trial: Deployment) -> Scene:
    """Looked at, stopped, and then the node is killed and another one joins."""
    node = trial.worker(queues="loops", concurrency=2, conf=HASTY)
    ids = {
        "loop": trial.send("retry_forever", COUNTDOWN_S, queue="loops"),
        "hangs": trial.send("hang_late", queue="loops"),
        "far": trial.send("ok", SECRET, queue="loops", countdown=3600),
    }
    trial.until_running(ids["loop"], ids["hangs"])
    seed_waiting(trial.redis, queue="strays", args=[SECRET])
    before = lasting(trial)
    looked = stop(task_id=" ".join(ids.values()))
    after_looking = lasting(trial)
    ids["soon"] = trial.send("ok", queue="loops", countdown=14)
    trial.until_unacked(ids["far"], ids["soon"])
    applied = stop(task_id=", ".join(ids.values()), dry_run=False)
    attempts = {name: trial.ran(each) for name, each in ids.items()}
    node.kill()
    heir = trial.worker(queues="loops", conf=HASTY)
    trial.until_done(trial.send("ok", queue="loops", countdown=4 * COUNTDOWN_S))
    heir.kill()
    return Scene(
        node=node,
        ids=ids,
        before=before,
        looked=looked,
        after_looking=after_looking,
        applied=applied,
        attempts=attempts,
    )


class TestLooking:
    """The dry run."""

    def test_it_says_where_they_are_and_what_would_be_done(self, scene: Scene) -> None:
        """Each is in circulation, and has one action; the exit code says that a plan waits."""
        record = scene.looked.record

        assert {row["code"] for row in record.findings} == {"task-in-circulation"}
        subjects = {row["subject"] for row in record.plan["actions"]}
        assert subjects == {scene.ids[name] for name in ("loop", "hangs", "far")}
        (hung,) = [row for row in record.plan["actions"] if row["subject"] == scene.ids["hangs"]]
        assert (hung["node"], hung["terminate"]) == (scene.node.name, True)
        assert (record.verdict, record.scope, scene.looked.exit_code) == ("attention", "tasks", Exit.ATTENTION)

    def test_it_changes_nothing_and_shows_no_argument(self, scene: Scene) -> None:
        """Not a key of ours is there; in no file is what tasks were given."""
        assert scene.after_looking == scene.before
        assert not [key for key in scene.after_looking if b"opslib:" in key]
        for result in (scene.looked, scene.applied):
            assert not [path for path in result.folder.iterdir() if SECRET in path.read_text()]


class TestApplied:
    """Stopped for good."""

    def test_everything_was_stopped_and_proven(self, scene: Scene) -> None:
        """In no queue, twice; the one that was due while it was looked at did not run."""
        record = scene.applied.record

        assert [row["status"] for row in record.outcomes] == ["applied"] * 4, record.outcomes
        steps = {row["subject"]: " ".join(record.outcomes[row["id"] - 1]["steps"]) for row in record.plan["actions"]}
        assert all("found nowhere, twice" in each or "found in no queue, twice" in each for each in steps.values())
        assert f"{scene.node.name} drops what it remembers in" in steps[scene.ids["far"]]
        assert "came due, and did not run" in steps[scene.ids["soon"]]
        assert f"SIGKILL sent on {scene.node.name} it ended" in steps[scene.ids["hangs"]]
        assert (record.remaining, record.exit_code, scene.applied.exit_code) == ([], 0, Exit.DONE)

    def test_none_of_it_ran_again(self, trial: Deployment, scene: Scene) -> None:
        """After the death of the only node that had heard of it, and with one that has not."""
        now = {name: trial.ran(each) for name, each in scene.ids.items()}

        assert now == scene.attempts
        assert (now["soon"], now["far"], now["hangs"]) == (0, 0, 1)
        assert not {*scene.ids.values()} & trial.unacked().keys()
        assert waiting_ids(trial.redis, "loops") == []
        assert len(waiting_ids(trial.redis, "strays")) == 1

    def test_its_messages_are_kept(self, trial: Deployment, scene: Scene) -> None:
        """Under the run's own name."""
        keys = trial.redis.scan_iter(match=f"opslib:run:{scene.applied.record.run_id}:q*")
        kept = [raw for key in keys for raw in trial.redis.lrange(key, 0, -1)]

        for name in ("hangs", "far", "soon"):
            assert [raw for raw in kept if scene.ids[name].encode() in raw], name
        assert quarantined(trial.redis).keys() == {"loops"}

    def test_the_report_says_so(self, scene: Scene) -> None:
        """With every task, and how it was stopped; sealed."""
        text = BeautifulSoup(scene.applied.report.read_text(), "html.parser").get_text(" ", strip=True)

        assert all(each in text for each in scene.ids.values())
        assert "found nowhere, twice" in text
        assert "Applied: 4 changes made" in text
        assert archive.verify(scene.applied.folder) == []


def test_a_node_that_does_not_answer_leaves_the_verdict_open(trial: Deployment) -> None:
    """It may run the task: no plan makes that a success, and it is told what to do about it."""
    node = trial.worker(queues="frozen")
    running = trial.send("gate", queue="frozen")
    trial.until_running(running)
    behind = trial.send("late", 0, queue="frozen")
    trial.until_unacked(running, behind)

    with node.frozen():
        result = stop(task_id=behind, dry_run=False)
    trial.redis.set("open", 1)
    trial.until_done(running, trial.send("ok", queue="frozen"))
    node.kill()

    assert (result.record.verdict, result.exit_code) == ("unknown", Exit.CANNOT_SEE)
    (outcome,) = result.record.outcomes
    assert outcome["status"] == "failed"
    assert "Not proven: 1 node did not confirm" in outcome["reason"]
    assert trial.ran(behind) == 0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"task": "*"}, "This means every task there is"),
        ({"place": "active"}, "This means every task that is active"),
        ({"place": "anywhere", "limit": 3}, "place: 'anywhere' is none"),
    ],
)
def test_what_means_everything_is_refused(trial: Deployment, parameters: dict[str, Any], said: str) -> None:
    """The run ends with the sentence, as a wrong parameter; nothing was looked at, and nothing done."""
    seed_waiting(trial.redis, queue="strays")
    before = waiting_ids(trial.redis, "strays")

    result = stop(**parameters, dry_run=False)

    assert result.exit_code == Exit.USAGE
    assert said in str((result.record.error or {})["message"])
    assert waiting_ids(trial.redis, "strays") == before


def test_nothing_named_is_told(trial: Deployment) -> None:
    """As its defaults are: there is nothing to stop, and how to say what is meant."""
    assert trial
    result = stop()

    (finding,) = [row for row in result.record.findings if row["code"] == "task-not-found"]
    assert (finding["message"], result.exit_code) == ("No task was named.", Exit.ATTENTION)
    assert result.record.headline == "No task was named."
    assert result.record.plan["actions"] == []
