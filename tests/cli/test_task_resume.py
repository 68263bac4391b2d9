"""ops task resume on real nodes: a task goes on from where it failed, once, under a new id, with all that it had."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from opslib import letters
from opslib.cli import confirm
from opslib.errors import Exit
from opslib.render import archive
from opslib.writer import points
from tests.command_line import Done, call
from tests.shop import contents
from tests.support.seed import KEYS, envelope, quarantined, seed_result, seed_waiting, waiting, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker

SECRET = "card-4711-secret"
IMPORTS = {"imports": ["tests.support.steps"], "worker_proc_alive_timeout": 20}


@pytest.fixture(scope="module")
def _node(trial: Deployment) -> Worker:
    return trial.worker(name="steps@trial", queues="celery,other", conf=IMPORTS)


@pytest.fixture
def node(_node: Worker) -> Worker:
    """The node that all of them share."""
    return _node


@pytest.fixture
def system(trial: Deployment, _node: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A node and its server as the default target; what a test leaves in it is cleared away."""
    assert _node
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    yield trial
    trial.redis.delete(*(key for key in trial.redis.scan_iter() if not key.startswith(b"_kombu.")), "nothing")


def failed(system: Deployment, job: str, *, at: int = 3, how: str = "boom", count: int = 5, **options: Any) -> str:
    """Run a task that ends at a step; return its id."""
    system.redis.hset(f"breaks:{job}", str(at), how)
    task_id = system.send("steps", job, count, SECRET, **options)
    until(lambda: system.state(task_id) == "FAILURE", DEADLINE_S, "it has failed")
    if how == "boom" and at:  # what it failed of is written after its result
        until(lambda: state(system, task_id).get("failed"), DEADLINE_S, "its state says so")
    return task_id


def resume(*words: str) -> Done:
    """Resume, and ask nobody."""
    return call("task", "resume", *words, "--apply", "--yes")


def state(system: Deployment, task_id: str) -> dict[str, Any]:
    """Return a task's checkpoint; empty for none."""
    raw = system.redis.get(KEYS.checkpoint(task_id))
    return json.loads(raw) if raw else {}


def counts(system: Deployment, job: str) -> list[int]:
    """Return how often each step was made, in their order."""
    found = {int(step): int(count) for step, count in system.redis.hgetall(f"steps:{job}").items()}
    return [found[step] for step in sorted(found)]


def opened(system: Deployment, job: str) -> list[dict[str, Any]]:
    """Return what each attempt found when it began."""
    return [json.loads(raw) for raw in system.redis.lrange(f"opened:{job}", 0, -1)]


class TestGoingOn:
    """A worker makes the steps that were not made, and no other."""

    @pytest.mark.parametrize("how", ["boom", "kill"])
    def test_each_step_is_made_once(self, system, how):
        """Whether it raised or its process was killed; afterwards nothing is left of either checkpoint."""
        task_id = failed(system, how, how=how)
        assert counts(system, how) == [1, 1, 1]

        done = resume(task_id, "-o", "ids")

        assert done.code == Exit.DONE, done
        (new_id,) = done.out.split()
        system.until_done(new_id)
        assert counts(system, how) == [1] * 5
        begins = {"at": 3, "resumed": True, "from": task_id}
        assert opened(system, how) == [{"at": 0, "resumed": False, "from": ""}, begins]
        until(lambda: not state(system, new_id), DEADLINE_S, "it is removed")
        assert (state(system, task_id)["resumed_as"], state(system, task_id)["results"]) == (new_id, {})
        assert json.loads(system.redis.get(KEYS.result(new_id)))["result"] == 0 + 1 + 2 + 3 + 4

    def test_a_retry_goes_on_by_itself(self, system):
        """It has the same id."""
        system.redis.hset("breaks:again", "2", "retry")
        task_id = system.send("steps", "again", 4)
        system.until_done(task_id)

        assert counts(system, "again") == [1] * 4
        assert [each["at"] for each in opened(system, "again")] == [0, 2]

    def test_it_is_resumed_again_from_where_the_second_failed(self, system):
        """By the first id: the last of the line goes on, and after its success nothing of them is left but that."""
        first = failed(system, "twice", at=1)
        system.redis.hset("breaks:twice", "3", "boom")
        (second,) = resume(first, "-o", "ids").out.split()
        until(lambda: system.state(second) == "FAILURE", DEADLINE_S, "the second has failed too")

        done = resume(first, "-o", "ids")

        (third,) = done.out.split()
        assert (done.code, len({first, second, third})) == (Exit.DONE, 3), done
        system.until_done(third)
        assert counts(system, "twice") == [1] * 5
        until(lambda: not state(system, third), DEADLINE_S, "its own is gone")
        assert [state(system, each)["resumed_as"] for each in (first, second)] == [second, third]
        assert [state(system, each)["results"] for each in (first, second)] == [{}, {}]

    def test_it_waits_where_it_is_told_to(self, system):
        """Linked both ways, with its headers and arguments; neither checkpoint lives shorter than before."""
        task_id = failed(system, "elsewhere", priority=6, headers={"x-tenant": "acme"})
        before = system.redis.pttl(KEYS.checkpoint(task_id))

        done = resume(task_id, "--to", "nobodys", "--json")

        assert done.code in {Exit.DONE, Exit.ATTENTION}, done
        (row,) = json.loads(done.out)["resumed"]
        assert (row["success"], row["task_id"]) == (True, task_id)
        new_id = row["new_task_id"]
        assert waiting_ids(system.redis, "nobodys", 6) == [new_id]
        (message,) = waiting(system.redis, "nobodys", 6)
        assert message["headers"]["x-resumes"] == task_id
        old, new = state(system, task_id), state(system, new_id)
        assert (old["resumed_as"], new["resumed_from"], new["task_id"]) == (new_id, task_id, new_id)
        assert (new["results"], new["progress"]) == (old["results"], 0.6)
        assert min(map(system.redis.pttl, (KEYS.checkpoint(task_id), KEYS.checkpoint(new_id)))) >= before - 60_000
        assert SECRET not in done.out + done.err

    def test_a_state_of_the_applications_own(self, system, place):
        """Under a key of the target's: copied, marked, and found by the task under its new id."""
        (place / "ops.toml").write_text(
            '[targets.own]\nbroker_url = "env:OPS_BROKER_URL"\n[targets.own.app_keys.state]\n'
            'pattern = "archivist:task_state:{task_id}"\nstate = true\n'
        )
        system.redis.hset("breaks:own", "2", "boom")
        task_id = system.send("own_steps", "own", 4)
        until(lambda: system.state(task_id) == "FAILURE", DEADLINE_S, "it has failed")

        done = resume(task_id, "-o", "ids", "--target", "own")

        (new_id,) = done.out.split()
        assert done.code == Exit.DONE, done
        system.until_done(new_id)
        assert counts(system, "own") == [1] * 4
        old, new = (json.loads(system.redis.get(f"archivist:task_state:{each}")) for each in (task_id, new_id))
        assert (old["resumed_as"], new["resumed_from"], new["done"]) == (new_id, task_id, 4)

    def test_a_state_in_another_database_takes_two_runs(self, system, place, monkeypatch):
        """It is handed over there first; of a dry run's two plans, the second is not applied before the first."""
        url = system.server.url[:-1] + "5"
        (place / "ops.toml").write_text(
            '[targets.own]\nbroker_url = "env:OPS_BROKER_URL"\n[targets.own.app_keys.progress]\n'
            'url = "env:OWN"\npattern = "p:{task_id}"\nstate = true\n'
        )
        monkeypatch.setenv("OWN", url)
        task_id = seed_result(system.redis, "FAILURE", name="tests.ok", args=[SECRET], kwargs={}, queue="nobodys")
        with Redis.from_url(url) as other:
            other.set(f"p:{task_id}", b'{"progress": 50}', ex=60)
            call("task", "resume", task_id, "--target", "own")
            planned = [run for run in archive.runs(place / "reports") if run.plan["actions"][-1]["kind"] == "send"]
            early = call("apply", planned[0].run_id, "--yes")
            assert early.code == Exit.REFUSED, early
            assert "is not handed over yet" in early.err

            done = resume(task_id, "--target", "own", "--json")

            (row,) = json.loads(done.out)["resumed"]
            assert (row["success"], len(json.loads(done.out)["runs"])) == (True, 2), done
            new = json.loads(other.get(f"p:{row['new_task_id']}"))
            assert new == {"progress": 50, "resumed_from": task_id}
            (message,) = waiting(system.redis, "nobodys")
            assert message["headers"]["argsrepr"] == repr((SECRET,))
            other.flushdb()

    def test_the_message_that_failed_is_sent_where_its_dead_letter_was_kept(self, system):
        """With its headers, its chain and its arguments to the byte; its retries begin anew."""
        task_id = str(uuid.uuid4())
        raw = envelope(
            "tests.ok", task_id=task_id, args=[SECRET], queue="nobodys", priority=6, retries=3, tenant="acme"
        )
        raw["headers"] |= {"group": "g", "group_index": 2, "expires": "2020-01-01T00:00:00+00:00"}
        letter = letters.Letter(v=1, entry_id="e", task_id=task_id, task_name="tests.ok", envelope=json.dumps(raw))
        system.redis.lpush("nobodys.dead", letters.write(letter))
        saved = {"v": 1, "task_id": task_id, "task": "tests.ok", "results": {"rows": 7}, "queue": "nobodys"}
        system.redis.set(KEYS.checkpoint(task_id), json.dumps(saved), ex=600)

        done = resume(task_id, "-o", "ids")

        (new_id,) = done.out.split()
        (message,) = waiting(system.redis, "nobodys", 6)
        headers, properties = message["headers"], message["properties"]
        assert message["body"] == raw["body"]
        assert (headers["id"], headers["root_id"], headers["retries"], headers["tenant"]) == (new_id, new_id, 0, "acme")
        assert (headers["group"], headers["group_index"], headers["expires"]) == (None, None, None)
        assert properties["correlation_id"] == new_id
        assert properties["delivery_tag"] != raw["properties"]["delivery_tag"]
        assert system.redis.llen("nobodys.dead") == 1


class TestRefused:
    """With the reason; nothing is changed."""

    def nothing(self, system: Deployment, *words: str, said: str, code: int = Exit.ATTENTION) -> Done:
        """Nothing is done, and this is said."""
        before = contents(system.redis)
        done = resume(*words, "--json")
        assert done.code == code, done
        assert said in done.out + done.err, done
        assert contents(system.redis) == before
        return done

    def test_one_that_has_finished(self, system):
        """Whatever state it left."""
        task_id = system.send("ok")
        system.until_done(task_id)
        system.redis.set(KEYS.checkpoint(task_id), json.dumps({"v": 1, "task": "tests.ok", "args": [], "kwargs": {}}))

        self.nothing(system, task_id, said="It has finished: its result says SUCCESS.")

    def test_one_that_runs_waits_or_is_scheduled(self, system):
        """It goes on by itself."""
        running = system.send("gate")
        system.until_running(running)
        (_, later) = system.send("ok"), system.send("ok", countdown=3600)
        idle = seed_waiting(system.redis, queue="nobodys").task_id
        system.until_unacked(running)
        for task_id, place in ((running, "active"), (idle, "waiting"), (later, "")):
            raw = json.dumps({"v": 1, "task_id": task_id, "task": "tests.ok", "args": [], "kwargs": {}})
            system.redis.set(KEYS.checkpoint(task_id), raw, ex=600)
            done = resume(task_id)
            assert done.code == Exit.ATTENTION, done
            assert place in done.out
            assert "it goes on by itself" in " ".join(done.out.split())
        system.redis.set("open", 1)
        system.until_done(running)

    def test_one_that_was_resumed_already(self, system):
        """It would do the work twice."""
        task_id = failed(system, "once")
        (new_id,) = resume(task_id, "--to", "nobodys", "-o", "ids").out.split()

        self.nothing(system, task_id, said=f"It was resumed as {new_id}. That one: it is waiting")

    def test_one_that_is_revoked_or_says_itself_that_it_must_not(self, system):
        """A person's word, and the task's own."""
        revoked, hopeless = failed(system, "revoked"), failed(system, "hopeless", how="give up")
        seed_result(system.redis, "REVOKED", task_id=revoked)

        self.nothing(system, revoked, said="It is revoked")
        self.nothing(system, hopeless, said="It must not go on: the file is damaged")

    def test_one_that_may_run_on_a_node_that_does_not_answer(self, system, node):
        """No plan is made on half a view."""
        task_id = failed(system, "silent")
        with node.frozen():
            self.nothing(system, task_id, said="Whether it still runs is not known", code=Exit.CANNOT_SEE)

    def test_one_whose_message_is_in_quarantine(self, system):
        """An undo would bring it back, and then there were two."""
        waits = seed_waiting(system.redis, queue="nobodys")
        saved = {"v": 1, "task_id": waits.task_id, "task": "tests.ok", "args": [], "kwargs": {}}
        system.redis.set(KEYS.checkpoint(waits.task_id), json.dumps(saved), ex=600)
        call("queue", "purge", "nobodys", "--apply", "--yes")

        self.nothing(system, waits.task_id, said="is in the quarantine of run")

    def test_one_of_which_nobody_knows_what_it_was_called_with(self, system):
        """A state alone makes no message."""
        task_id = str(uuid.uuid4())
        system.redis.set(KEYS.checkpoint(task_id), b'{"v": 1, "results": {"rows": 7}}', ex=600)

        self.nothing(system, task_id, said="What it was called with is known to nobody")

    @pytest.mark.parametrize("raw", [b"no JSON", b"[]", b'{"v": 2}', b"\xff", b"x" * 5_000_000])
    def test_one_whose_state_cannot_be_used(self, system, raw):
        """Said, and left as it is."""
        task_id = str(uuid.uuid4())
        system.redis.set(KEYS.checkpoint(task_id), raw, ex=600)

        self.nothing(system, task_id, said="cannot be used")

    def test_one_that_has_no_state(self, system):
        """With what can be done instead; what is nowhere at all too."""
        task_id = failed(system, "early", at=0)

        self.nothing(system, task_id, said="No saved state of it is there")
        done = self.nothing(system, str(uuid.uuid4()), said="It was found nowhere else either")
        assert "ops task send" in done.out

    def test_one_whose_state_has_expired(self, system):
        """As if there never had been one."""
        task_id = failed(system, "late")
        system.redis.pexpire(KEYS.checkpoint(task_id), 1)
        until(lambda: not system.redis.exists(KEYS.checkpoint(task_id)), 5, "it has expired")

        self.nothing(system, task_id, said="or that has expired")

    @pytest.mark.parametrize(
        "task_id", ["../../x", "a\n\x1b[31mred", "*", "x" * 5000, "\u202eevil", "{task_id}", "a b", "'; FLUSHALL"]
    )
    def test_ids_that_are_none(self, system, task_id):
        """Looked for as they are, and shown harmlessly."""
        before = contents(system.redis)

        done = resume(task_id)

        assert done.code in {Exit.ATTENTION, Exit.USAGE}, done
        assert "\x1b" not in done.out + done.err
        assert contents(system.redis) == before

    def test_an_id_that_would_make_a_key_of_ours(self, system, place):
        """Refused as no id, before anything is read."""
        (place / "ops.toml").write_text(
            '[targets.own]\nbroker_url = "env:OPS_BROKER_URL"\n[targets.own.app_keys.state]\n'
            'pattern = "{task_id}:state"\nstate = true\n'
        )

        self.nothing(system, "opslib:x", "--target", "own", said="is no task id", code=Exit.USAGE)

    def test_one_whose_state_changes_before_it_is_handed_over(self, system):
        """Nobody can have both: the message is not sent either."""
        task_id = failed(system, "moved")
        key = KEYS.checkpoint(task_id)

        def write(point: str) -> None:
            if point == "before-intent":
                points.watchers.remove(write)
                system.redis.set(key, system.redis.get(key).replace(b'"saves"', b'"again":1,"saves"'), keepttl=True)

        points.watchers.append(write)
        done = resume(task_id, "--json")

        (row,) = json.loads(done.out)["resumed"]
        assert (row["success"], row["message"]) == (
            False,
            "The state that it goes on from was not handed over, so it was not sent.",
        )
        assert not system.redis.exists("celery", KEYS.checkpoint(row["new_task_id"]))
        assert "resumed_as" in state(system, task_id)
        assert state(system, task_id)["resumed_as"] == ""


class TestRuns:
    """Like any change: shown first, recorded, taken back, gone on with."""

    def test_a_dry_run_changes_nothing_and_is_applied_by_its_id(self, system, place):
        """Exactly that; and once."""
        task_id = failed(system, "planned")
        before = contents(system.redis)
        looked = call("task", "resume", task_id, "--to", "nobodys")
        assert (looked.code, contents(system.redis)) == (Exit.ATTENTION, before), looked
        assert "60%" in looked.out
        (run,) = archive.runs(place / "reports")

        done, again = (call("apply", run.run_id, "--yes") for _ in range(2))

        assert (done.code, again.code) == (Exit.DONE, Exit.REFUSED), (done, again)
        assert waiting_ids(system.redis, "nobodys") == [state(system, task_id)["resumed_as"]]

    @pytest.mark.parametrize("moved", [False, True])
    def test_what_moves_on_while_a_person_reads_is_not_resumed(self, system, place, monkeypatch, moved):
        """Everything is looked at again once it was agreed to."""
        assert place
        task_id = failed(system, f"read-{moved}")

        def agree(*_: object) -> bool:
            if moved:
                seed_waiting(system.redis, queue="nobodys", task_id=task_id)
            return True

        monkeypatch.setattr(confirm, "ask", agree)
        monkeypatch.setattr(confirm, "possible", lambda **_: None)
        done = call("task", "resume", task_id, "--to", "nobodys", "--apply")

        assert done.code == (Exit.REFUSED if moved else Exit.DONE), done
        new_id = state(system, task_id)["resumed_as"]
        assert waiting_ids(system.redis, "nobodys") == [task_id if moved else new_id]
        assert bool(new_id) is not moved

    def test_a_plan_of_a_task_that_was_sent_again_is_refused(self, system, place):
        """It says what the state was, and not that nobody has it."""
        task_id = failed(system, "resent")
        call("task", "resume", task_id)
        (run,) = archive.runs(place / "reports")
        seed_waiting(system.redis, queue="nobodys", task_id=task_id)

        done = call("apply", run.run_id, "--yes")

        assert done.code == Exit.REFUSED, done
        assert "it goes on by itself" in done.err.replace("It goes", "it goes")

    def test_undo_takes_all_of_it_back(self, system, place):
        """The message is kept, the copy is gone, the state is as it was, to the byte; then it can be resumed again."""
        task_id = failed(system, "undone")
        key = KEYS.checkpoint(task_id)
        before, life = system.redis.get(key), system.redis.pttl(key)
        (new_id,) = resume(task_id, "--to", "nobodys", "-o", "ids").out.split()
        (run,) = archive.runs(place / "reports")

        done = call("undo", run.run_id, "--apply", "--yes")

        assert done.code == Exit.DONE, done
        assert (system.redis.get(key), system.redis.exists(KEYS.checkpoint(new_id))) == (before, 0)
        assert abs(system.redis.pttl(key) - life) < 60_000
        assert waiting_ids(system.redis, "nobodys") == []
        assert list(quarantined(system.redis)) == ["nobodys"]
        again = resume(task_id)
        assert "is in the quarantine" not in again.out
        assert again.code == Exit.DONE, again
        system.until_done(new_id)
        assert counts(system, "undone") == [1] * 5

    def test_undo_leaves_the_state_with_a_task_that_has_begun(self, system, place):
        """Its message is not there to be taken back."""
        task_id = failed(system, "begun")
        system.redis.hset("breaks:begun", "4", "boom")
        (new_id,) = resume(task_id, "-o", "ids").out.split()
        until(lambda: system.state(new_id) == "FAILURE", DEADLINE_S, "it has failed again")
        (run,) = archive.runs(place / "reports")
        before = state(system, task_id), state(system, new_id)

        done = call("undo", run.run_id, "--apply", "--yes", "--json")

        assert {row["status"] for row in json.loads(done.out)["outcomes"]} == {"skipped"}, done
        assert (state(system, task_id), state(system, new_id)) == before

    @pytest.mark.parametrize(
        ("at", "nth"),
        [
            *((at, nth) for at in ("before-intent", "after-script", "after-result") for nth in (1, 2)),
            ("after-vault", 1),
            ("before-verify", 1),
        ],
    )
    def test_a_run_that_was_cut_off_is_gone_on_with(self, system, place, at, nth):
        """Between the handing over and the sending too: one message at the end, and both states linked."""
        task_id = failed(system, f"cut-{at}-{nth}")
        passed = []

        def fall(point: str) -> None:
            passed.append(point)
            if passed.count(at) == nth:
                points.watchers.remove(fall)
                raise KeyboardInterrupt

        points.watchers.append(fall)
        begun = resume(task_id, "--to", "nobodys")
        (run,) = archive.runs(place / "reports")

        done = call("resume", run.run_id)

        assert begun.code == Exit.INTERRUPTED, begun
        assert done.code == Exit.DONE, done
        new_id = state(system, task_id)["resumed_as"]
        assert waiting_ids(system.redis, "nobodys") == [new_id]
        assert state(system, new_id)["resumed_from"] == task_id

    def test_what_tasks_were_called_with_is_in_the_plan_alone(self, system, place):
        """And in the vault, from which an undo writes it; in no report, and on no screen."""
        task_id = failed(system, "secret")

        shown = [resume(task_id), call("task", "resume", task_id)]

        assert not [each for each in shown if SECRET in each.out + each.err]
        files = [path for path in Path(place / "reports").rglob("*") if path.is_file()]
        assert {path.name for path in files if SECRET.encode() in path.read_bytes()} <= {"plan.json"}
