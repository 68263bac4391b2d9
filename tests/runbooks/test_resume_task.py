"""resume-task on real nodes: what was lost or failed half-way goes on from there; what may still run is left alone."""

from __future__ import annotations

import json
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
from tests.support.seed import KEYS, seed_result, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

SECRET = "card-4711-secret"
IMPORTS = {"imports": ["tests.support.steps"]}


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


def resume(**parameters: Any) -> RunResult:
    """Run the notebook."""
    return run.run(catalog.find("resume-task"), parameters, reason="the night's import failed")


def steps(system: Deployment, job: str) -> dict[int, int]:
    """Return how often each step was made."""
    return {int(step): int(count) for step, count in sorted(system.redis.hgetall(f"steps:{job}").items())}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """
    A task that failed, one whose node was killed, one that saved nothing, one that waits; and the runs about them.

    Attributes:
        ids: Task ids by what happened to them.
    """

    ids: dict[str, str]
    before: dict[bytes, bytes]
    looked: RunResult
    after_looking: dict[bytes, bytes]
    applied: RunResult

    @property
    def heirs(self) -> dict[str, str]:
        """Ids of those that went on, by what had happened to the task that they went on from."""
        sent = {row["source"]: row["subject"] for row in self.applied.record.plan["actions"] if row["kind"] == "send"}
        return {name: sent[each] for name, each in self.ids.items() if each in sent}


@pytest.fixture(scope="module")
def scene(trial: Deployment) -> Scene:
    """Failed, looked at and resumed, with a node that finishes the work."""
    node = trial.worker(queues="celery", conf=IMPORTS)
    trial.redis.hset("breaks:raises", "3", "boom")
    trial.redis.hset("breaks:early", "0", "boom")
    trial.redis.hset("breaks:lost", "2", "hang")
    ids = {name: trial.send("steps", name, 5, SECRET) for name in ("raises", "early", "lost")}
    until(lambda: trial.redis.exists("hangs:lost"), DEADLINE_S, "the last of them is at its third step")
    node.kill()
    heir = trial.worker(queues="celery", conf=IMPORTS)
    ids["waits"] = trial.send("steps", "waits", 5, SECRET, queue="strays")
    before = contents(trial.redis)
    looked = resume(task_id=", ".join(ids.values()))
    after_looking = contents(trial.redis)
    applied = resume(task_id=", ".join(ids.values()), dry_run=False)
    made = Scene(ids=ids, before=before, looked=looked, after_looking=after_looking, applied=applied)
    trial.until_done(*made.heirs.values())
    assert heir
    return made


def passing(found: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return all but what a node that joins declares."""
    return {key: value for key, value in found.items() if not key.startswith(b"_kombu")}


class TestLooking:
    """The dry run."""

    def test_it_says_who_can_go_on_and_why_the_others_cannot(self, scene: Scene) -> None:
        """Two can; one has saved nothing and one waits."""
        found = {row["subject"]: row for row in scene.looked.record.findings}

        assert {found[scene.ids[name]]["code"] for name in ("raises", "lost")} == {"task-resumable"}
        assert {found[scene.ids[name]]["code"] for name in ("early", "waits")} == {"task-not-resumable"}
        assert "It failed: ValueError: boom" in found[scene.ids["raises"]]["message"]
        assert "at 60%, with 2 results" in found[scene.ids["raises"]]["message"]
        assert "Its result says STARTED, and nobody has it any more" in found[scene.ids["lost"]]["message"]
        assert "No saved state" in found[scene.ids["early"]]["message"]
        assert "It is waiting: it goes on by itself" in found[scene.ids["waits"]]["message"]
        assert (scene.looked.record.verdict, scene.looked.exit_code) == ("attention", Exit.ATTENTION)

    def test_it_changes_nothing_and_shows_no_argument(self, scene: Scene) -> None:
        """In no file but the plan's, which is for one user, is what tasks were called with."""
        assert passing(scene.after_looking) == passing(scene.before)
        for result in (scene.looked, scene.applied):
            holding = [path for path in result.folder.iterdir() if SECRET.encode() in path.read_bytes()]
            assert [path.name for path in holding] == ["plan.json"]
            assert holding[0].stat().st_mode & 0o077 == 0


class TestApplied:
    """Gone on."""

    def test_each_step_was_made_once(self, trial: Deployment, scene: Scene) -> None:
        """By one task or by the other."""
        assert steps(trial, "raises") == steps(trial, "lost") == dict.fromkeys(range(5), 1)
        for name in ("raises", "lost"):
            by = trial.redis.hgetall(f"steps-by:{name}")
            assert {by[b"0"].decode(), by[b"4"].decode()} == {scene.ids[name], scene.heirs[name]}

    def test_little_is_left_of_their_states(self, trial: Deployment, scene: Scene) -> None:
        """Nothing of the new; of the old, that another task went on."""
        until(
            lambda: not trial.redis.exists(*map(KEYS.checkpoint, scene.heirs.values())), DEADLINE_S, "they are removed"
        )
        left = [json.loads(trial.redis.get(KEYS.checkpoint(scene.ids[name])) or "{}") for name in ("raises", "lost")]
        assert [each["results"] for each in left] == [{}, {}]
        assert {each["resumed_as"] for each in left} == set(scene.heirs.values())
        assert waiting_ids(trial.redis, "strays") == [scene.ids["waits"]]

    def test_the_record_says_so(self, scene: Scene) -> None:
        """All that was planned was done; of the others it is said once more, and no more than that."""
        record = scene.applied.record

        assert [row["kind"] for row in record.plan["actions"]] == ["handover", "handover", "send", "send"]
        assert [row["status"] for row in record.outcomes] == ["applied"] * 4, record.outcomes
        assert {row["subject"] for row in record.remaining} == {scene.ids["early"], scene.ids["waits"]}
        assert archive.verify(scene.applied.folder) == []
        text = BeautifulSoup(scene.applied.report.read_text(), "html.parser").get_text(" ", strip=True)
        assert all(each in text for each in scene.heirs.values())


def test_what_a_person_confirmed_is_what_is_done(trial: Deployment) -> None:
    """The run that applies looks and plans again, and comes to the same ids and the same message."""
    task_id = seed_result(trial.redis, "FAILURE", name="tests.ok", args=[SECRET], kwargs={}, queue="strays")
    trial.redis.set(KEYS.checkpoint(task_id), json.dumps({"v": 1, "task": "tests.ok", "results": {"rows": 1}}), ex=600)
    looked = resume(task_id=task_id)
    agreed = str(looked.folder / "plan.json")

    done = run.run(catalog.find("resume-task"), {"task_id": task_id, "dry_run": False}, confirmed=agreed)

    assert [row["status"] for row in done.record.outcomes] == ["applied"] * 2, done.record.outcomes
    assert done.record.plan["actions"][1]["subject"] in waiting_ids(trial.redis, "strays")


def test_a_state_in_another_database_is_left_to_the_command(trial: Deployment) -> None:
    """One plan is for one database; the finding says what makes both."""
    (trial.folder / "ops.toml").write_text(
        '[targets.own]\nbroker_url = "env:OPS_BROKER_URL"\n[targets.own.app_keys.progress]\n'
        'url = "env:OPS_BROKER_URL_OF_APP"\npattern = "p:{task_id}"\nstate = true\n'
    )
    url = trial.server.url[:-1] + "4"
    with pytest.MonkeyPatch.context() as patch, trial.server.client() as other:
        patch.setenv("OPS_BROKER_URL_OF_APP", url)
        other.select(4)
        other.set("p:t-1", json.dumps({"task": "tests.ok", "args": [], "progress": 50}))

        result = resume(task_id="t-1", target="own", dry_run=False)

        assert other.get("p:t-1") == json.dumps({"task": "tests.ok", "args": [], "progress": 50}).encode()
        other.flushdb()
    (trial.folder / "ops.toml").unlink()
    (finding,) = result.record.findings
    assert finding["code"] == "task-resumable"
    assert "two runs" in finding["hint"]
    assert result.record.plan["actions"] == []


def test_where_no_task_is_named_nothing_is_changed(trial: Deployment) -> None:
    """What could go on is looked at; which of it should is for a person to say."""
    result = resume(dry_run=False)

    assert trial
    assert (result.exit_code, result.record.error) == (Exit.DONE, None)
    assert result.record.plan.get("actions", []) == []
