"""ops task send: a worker runs it, once, with these arguments, and nobody else ever sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib import plan as plans
from opslib.embedded.server import Server
from opslib.errors import Exit
from opslib.records import RunRecord
from opslib.render import archive
from opslib.writer import points
from tests.command_line import Done, call
from tests.shop import contents
from tests.support import servers
from tests.support.seed import KEYS, iso, quarantined, waiting, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker

SECRET = "card-4711-secret"


@pytest.fixture(scope="module")
def _nodes(trial: Deployment) -> tuple[Worker, Worker]:
    first = trial.worker(name="now@trial", queues="celery,urgent", ready=False)
    second = trial.worker(name="later@trial", queues="later", ready=False)
    for each in (first, second):
        trial.wait_for(each)
    return first, second


@pytest.fixture
def system(trial: Deployment, _nodes: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """Two nodes and their server as the default target; what a test leaves in it is cleared away."""
    assert _nodes
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    yield trial
    trial.redis.delete(*(key for key in trial.redis.scan_iter() if not key.startswith(b"_kombu.")), "nothing")


def send(*words: str) -> Done:
    """Send a task."""
    return call("task", "send", *words, "--apply", "--yes")


def sent(place: Path, *, dry_run: bool = False) -> RunRecord:
    """Return the record of the only run that sent something, or was to."""
    (run,) = (run for run in archive.runs(place / "reports") if (run.runbook, run.dry_run) == ("send-task", dry_run))
    return run


def id_of(run: RunRecord) -> str:
    """Return the id of the task that a run sent."""
    (action,) = run.plan["actions"]
    return str(action["subject"])


def result(system: Deployment, task_id: str) -> dict:
    """Wait for a task's result, and return it."""
    system.until_done(task_id)
    return json.loads(system.redis.get(KEYS.result(task_id)))


class TestSending:
    """As a producer would have sent it."""

    def test_it_is_run_with_exactly_these_arguments(self, system, place):
        """Once, and it succeeds; large numbers, text of any script and nested values come as they were typed."""
        args: list[object] = [
            4711,
            "Zoë 漢\n\t\"'\\",
            None,
            True,
            1.5,
            [],
            {"a": [{}]},
            12345678901234567890,
            "\u202e[red]",
        ]
        done = send("tests.ok", "--args", json.dumps(args), "--kwargs", "{}")

        assert done.code == Exit.DONE, done
        stored = result(system, id_of(sent(place)))
        assert (stored["status"], stored["args"], stored["kwargs"]) == ("SUCCESS", args, {})
        assert system.ran(stored["task_id"]) == 1

    def test_named_arguments(self, system, place):
        """By their names."""
        done = send("tests.sleep", "--kwargs", '{"length_s": 0.01}')

        assert done.code == Exit.DONE, done
        stored = result(system, id_of(sent(place)))
        assert (stored["args"], stored["kwargs"]) == ([], {"length_s": 0.01})

    @pytest.mark.parametrize("when", ["--countdown", "--eta"])
    def test_it_runs_at_its_time(self, system, place, when):
        """Not before."""
        begins = float(system.redis.time()[0]) + 2

        done = send("tests.ok", when, "2s" if when == "--countdown" else iso(2.5))
        task_id = id_of(sent(place))
        until(lambda: task_id in system.unacked(), DEADLINE_S, "a node keeps it until its time")

        assert done.code == Exit.DONE, done
        assert "runs in 2." in str(sent(place).plan["actions"][0]["effect"])
        assert system.ran(task_id) == 0
        result(system, task_id)
        assert float(system.redis.time()[0]) >= begins

    def test_it_waits_in_its_queue_behind_those_of_its_priority(self, system, place):
        """In the list that the priority is rounded down to; a queue that nobody consumes is warned of."""
        for _ in range(2):
            done = send("tests.ok", "--queue", "strays", "--priority", "7")

        assert done.code == Exit.DONE, done
        assert "No node that answered consumes strays" in done.err
        ids = {id_of(run) for run in archive.runs(place / "reports")}
        assert set(waiting_ids(system.redis, "strays", 6)) == ids
        assert [each["properties"]["priority"] for each in waiting(system.redis, "strays", 6)] == [7, 7]
        assert waiting(system.redis, "strays", 6)[0]["properties"]["delivery_info"]["routing_key"] == "strays"

    def test_a_queue_is_served_by_its_own_nodes(self, system, place):
        """Without a word of warning."""
        done = send("tests.ok", "--queue", "later")

        assert "Warning" not in done.err
        assert result(system, id_of(sent(place)))["worker"] == "later@trial"

    def test_an_unknown_task_is_warned_of_with_the_nearest(self, system):
        """It would be dropped; but a node that knows it may be about to be started, so it is not refused."""
        assert system
        done = call("task", "send", "tests.slep")

        assert "knows a task tests.slep: it would be dropped as not registered. Did you mean tests.sleep?" in done.err
        assert done.code == Exit.ATTENTION

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["tests.ok", "--args", "[4711"], "--args is not a JSON list"),
            (["tests.ok", "--args", "{}"], "--args is not a JSON list"),
            (["tests.ok", "--args", "[NaN]"], "--args is not a JSON list"),
            (["tests.ok", "--args", "[1e999]"], "--args is not a JSON list"),
            (["tests.ok", "--args", "[" * 5000], "--args is not a JSON list"),
            (["tests.ok", "--kwargs", "[]"], "--kwargs is not a JSON object"),
            (["tests.ok", "--countdown", "5m", "--eta", "2030-01-01T00:00:00Z"], "exclude each other"),
            (["tests.ok", "--countdown=-5m"], "--countdown"),
            (["tests.ok", "--countdown", "5"], "has no unit"),
            (["tests.ok", "--countdown", "999999999d"], "longer than a century"),
            (["tests.ok", "--eta", "2030-01-01T00:00:00"], "has no time zone"),
            (["tests.ok", "--eta", "tomorrow"], "is no instant"),
            (["tests.ok", "--eta", "0001-01-01T00:00:00+23:00"], "is no instant"),
            (["tests.ok", "--priority", "10"], "--priority"),
            (["tests.ok", "--queue", "unacked"], "is no queue"),
            (["tests.ok", "--queue", "opslib:lock"], "is no queue"),
            (["tests.ok", "--queue", ""], "is no queue"),
            (["tests ok"], "is no task's name"),
            ([""], "is no task's name"),
        ],
    )
    def test_what_makes_no_message_is_refused(self, system, place, words, said):
        """With what is wrong; nothing is begun."""
        before = contents(system.redis)

        done = send(*words)

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert said in done.err
        assert contents(system.redis) == before
        assert not (place / "reports").exists()

    def test_a_queue_that_is_no_list_is_left_as_it_is(self, system, place):
        """The server would refuse it; that is said, and nothing sent."""
        system.redis.set("text", "x")

        done = send("tests.ok", "--queue", "text")

        assert done.code in {Exit.ATTENTION, Exit.USAGE}
        assert system.redis.get("text") == b"x"
        assert not place.joinpath("reports").exists() or sent(place).outcomes[0]["status"] == "failed"


class TestSecrecy:
    """Arguments may be anybody's data."""

    def test_arguments_are_in_the_plan_and_nowhere_else(self, system, place):
        """Not on the terminal, in the record, the report, the audit or a journal; the plan's file is for one user."""
        args, kwargs = json.dumps([SECRET]), json.dumps({"token": SECRET})
        words = ["tests.ok", "--args", args, "--kwargs", kwargs, "--queue", "strays"]

        looked = [call("task", "send", *words), call("task", "send", *words, "--json")]
        done = [send(*words), send(*words, "--json")]
        call("undo", min(archive.runs(place / "reports"), key=lambda run: run.dry_run).run_id, "--apply", "--yes")

        shown = [each.out + each.err for each in (*looked, *done)]
        assert not [text for text in shown if SECRET in text]
        files = [path for path in (place / "reports").rglob("*") if path.is_file()]
        holding = {path.name for path in files if SECRET.encode() in path.read_bytes()}
        assert holding == {"plan.json"}
        plan_files = [path for path in files if path.name == "plan.json" and SECRET.encode() in path.read_bytes()]
        assert {path.stat().st_mode & 0o077 for path in plan_files} == {0}
        holders = {key.decode() for key, value in contents(system.redis).items() if SECRET in repr(value)}
        assert all(key == "strays" or ":q:" in key for key in holders), holders

    def test_a_password_in_an_argument_does_not_keep_a_plan_from_being_applied(self, system, place):
        """What looks like a credential is sent as it was typed."""
        url = "redis://user:hunter2@host/0"
        looked = call("task", "send", "tests.ok", "--args", json.dumps([url]))

        assert "hunter2" not in looked.out + looked.err
        done = call("apply", sent(place, dry_run=True).run_id, "--yes")

        assert done.code == Exit.DONE, done
        assert result(system, id_of(sent(place)))["args"] == [url]
        assert "hunter2" not in done.out + done.err


class TestOnce:
    """A plan is sent once, whatever happens on the way, and can be taken back while it waits."""

    def test_a_saved_plan_is_sent_once(self, system, place):
        """And never again."""
        call("task", "send", "tests.ok", "--queue", "strays")
        run = sent(place, dry_run=True)
        assert waiting_ids(system.redis, "strays") == []

        done = call("apply", run.run_id, "--yes")
        again = call("apply", run.run_id, "--yes")
        and_again = call("resume", sent(place).run_id)

        assert (done.code, again.code) == (Exit.DONE, Exit.REFUSED), (done, again)
        assert "was applied already" in again.err
        assert "Nothing was changed" in and_again.err
        assert waiting_ids(system.redis, "strays") == [id_of(run)]

    @pytest.mark.parametrize("at", ["before-intent", "after-intent", "after-script", "after-result", "before-verify"])
    def test_a_run_that_was_cut_off_is_gone_on_with(self, system, place, at):
        """Before the script, between it and its answer, or after both: there is one message at the end."""

        def fall(point: str) -> None:
            if point == at:
                points.watchers.remove(fall)
                raise KeyboardInterrupt

        points.watchers.append(fall)
        begun = send("tests.ok", "--queue", "strays", "--args", json.dumps([SECRET]))
        run = sent(place)
        (path,) = (place / "reports").rglob("plan.json")

        done = call("resume", run.run_id)

        assert begun.code == Exit.INTERRUPTED
        assert done.code == Exit.DONE, done
        assert waiting_ids(system.redis, "strays") == [json.loads(path.read_text())["actions"][0]["subject"]]
        assert SECRET not in begun.out + begun.err + done.out + done.err

    def test_what_waits_is_taken_back(self, system, place):
        """It is kept, as it was sent; a second undo has nothing to do."""
        send("tests.ok", "--queue", "strays")
        run = sent(place)
        (raw,) = system.redis.lrange("strays", 0, -1)

        done = call("undo", run.run_id, "--apply", "--yes")

        assert done.code == Exit.DONE, done
        assert "Taken back; it is kept in quarantine." in done.out
        assert not system.redis.exists("strays")
        assert quarantined(system.redis) == {"strays": [raw]}
        assert "left to put back" in call("undo", run.run_id, "--apply", "--yes").err

    def test_what_a_worker_has_taken_is_not_said_to_be_back(self, system, place):
        """It ran."""
        send("tests.ok")
        run = sent(place)
        result(system, id_of(run))

        done = call("undo", run.run_id, "--apply", "--yes", "--json")

        (outcome,) = json.loads(done.out)["outcomes"]
        assert outcome["status"] == "skipped"
        assert "a worker has taken it meanwhile" in outcome["reason"]
        assert quarantined(system.redis) == {}

    def test_a_plan_that_was_altered_is_refused(self, system, place):
        """Nobody has read what it says by now."""
        call("task", "send", "tests.ok", "--queue", "strays")
        run = sent(place, dry_run=True)
        (path,) = (place / "reports").rglob("plan.json")
        text = path.read_text()
        path.chmod(0o600)
        path.write_text(text.replace("tests.ok", "tests.no"))

        done = call("apply", run.run_id, "--yes")

        assert done.code == Exit.REFUSED
        assert "was edited" in done.err
        assert not system.redis.exists("strays")


def test_a_message_that_is_another_task_than_its_action_says_is_not_sent(system: Deployment, server: Server) -> None:
    """A plan's file that shows one id and holds another would deceive whoever read it."""
    from opslib.plan import Action, Kind
    from opslib.rewrite import fresh
    from opslib.writer import apply

    assert server
    broker = servers.broker(system.server)
    good, other = (fresh("tests.ok", [], {}, task_id=each, queue="strays").decode() for each in ("good", "other"))
    actions = [
        Action(kind=Kind.SEND, subject=subject, source="ops", destination="strays", message=message)
        for subject, message in (("good", good), ("shown", other), ("none", "no JSON"))
    ]
    now = broker.server_time()
    plan = plans.make(broker.target.name, broker.fingerprint, actions, max_actions=3, made_at=now)

    outcomes = {o.action.subject: str(o.status) for o in apply(plan, broker, dry_run=False)}

    assert outcomes == {"good": "applied", "shown": "failed", "none": "failed"}
    assert waiting_ids(system.redis, "strays") == ["good"]
