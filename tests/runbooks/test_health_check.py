"""health-check on the demo, of which much is wrong, and on a sound deployment, of which nothing is: what cron gets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, demo, records, run
from opslib.demo import Demo
from opslib.errors import BadParameter, Exit
from opslib.findings import CODES
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.support import engines, servers
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, deployment

PREFIX = "shop:"
OPTIONS = {"global_keyprefix": PREFIX}
CONF = {"broker_transport_options": OPTIONS, "result_backend_transport_options": OPTIONS}


def check(target: str, **parameters: object) -> RunResult:
    """Run the notebook with a short pause."""
    given = {"target": target, "settle": "0.5s", "answer_within": "5s", **parameters}
    return run.run(catalog.find("health-check"), given, target=target, reason="every morning")


def states(result: RunResult) -> dict[str, object]:
    """Return the state of each part."""
    return {str(row["name"]): row["state"] for row in result.record.areas}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an archive, and no variables of this machine's."""
    folder = tmp_path_factory.mktemp("health")
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("OPS_DEMO_DIR", str(folder / "demo"))
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        yield folder


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The demo, and a run on it."""

    demo: Demo
    result: RunResult
    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def found(self) -> set[tuple[str, str]]:
        """Code and subject of all that was found."""
        return {(str(row["code"]), str(row["subject"])) for row in self.result.record.findings}


@pytest.fixture(scope="module")
def broken(place: Path) -> Iterator[Broken]:
    """All that is wrong with the demo, looked at once."""
    running = demo.up(place / "demo", within_s=90)
    try:
        with Redis.from_url(running.url) as client:
            before = _kinds(client)
            result = check("demo")
            yield Broken(demo=running, result=result, before=before, after=_kinds(client))
    finally:
        demo.down(place / "demo")


def _kinds(client: Redis) -> dict[str, int]:
    """Return how many keys there are of this tool's own, and of lists for answers: what a look may leave behind."""
    names = [key.decode("utf-8", "replace") for key in client.scan_iter(count=1000)]
    return {
        "locks and journals": sum(name.startswith(("opslib:lock", "opslib:run:", "opslib:audit")) for name in names),
        "answers": sum(name.endswith(".reply.celery.pidbox") for name in names),
    }


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A deployment of which nothing is wrong."""

    trial: Deployment
    node: str


@pytest.fixture(scope="module")
def sound(place: Path) -> Iterator[Sound]:
    """A server that writes everything down, under a prefix, and one node with a time limit."""
    folder = place / "sound"
    folder.mkdir()
    extra = ["slowlog-log-slower-than 60000000"]
    with (
        engines.start(engines.VALKEY, folder, persistent=True, extra=extra) as server,
        deployment(server, folder) as trial,
    ):
        trial.app.conf.broker_transport_options = {"ack_emulation": False, **OPTIONS}
        node = trial.worker(module="tests.support.wellkept", name="tidy@shop", conf=CONF)
        done = trial.send("ok")
        until(lambda: trial.ran(done), DEADLINE_S, "the node works")
        servers.user(trial.redis, servers.READ_ONLY, "reader")
        (place / "ops.toml").write_text(
            f'[targets.sound]\nbroker_url = "env:SOUND_URL"\nglobal_keyprefix = "{PREFIX}"\n'
            f'result_keyprefix = "{PREFIX}"\n[targets.sound.thresholds]\nworker_memory = "8GiB"\n'
            f'[targets.reader]\nbroker_url = "env:READER_URL"\nglobal_keyprefix = "{PREFIX}"\n'
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SOUND_URL", server.url)
            patch.setenv("READER_URL", servers.as_user(server, "reader"))
            yield Sound(trial=trial, node=node.name)


class TestTheDemo:
    """Much is wrong, and nothing is changed."""

    def test_everything_that_is_wrong_is_found(self, broken: Broken) -> None:
        """Each fault of every runbook that looks at a whole deployment, by its code and subject."""
        of = {"stuck-tasks", "queue-backlog", "retry-storm"}
        faults = {(fault.code, fault.subject) for fault in broken.demo.faults if fault.runbook in of}

        assert faults <= broken.found
        assert {("risky-setting", "task_time_limit"), ("risky-setting", "max_retries")} <= broken.found

    def test_the_record_has_each_part(self, broken: Broken) -> None:
        """The worst of it decides."""
        found = states(broken.result)

        assert len(found) == 13
        assert {found[name] for name in ("Queues", "Unacknowledged", "Retries", "Running tasks")} == {"critical"}
        assert {found["Settings"], found["Dead letters"]} <= {"attention", "critical"}
        assert {found[name] for name in ("Nodes", "Redis data", "Redis memory")} == {"fine"}
        assert found["Node memory"] == "not judged"
        assert broken.result.exit_code == Exit.ATTENTION
        assert broken.result.record.verdict == "critical"
        assert broken.result.record.headline.startswith("Critical: ")

    def test_each_finding_names_a_runbook_that_answers_it(self, broken: Broken) -> None:
        """One that there is."""
        named = {str(row["runbook"]) for row in broken.result.record.findings}

        assert named <= set(catalog.names())
        assert {"stuck-tasks", "queue-backlog", "retry-storm", "dlq-triage", "health-check"} <= named
        assert {str(row["code"]) for row in broken.result.record.findings} <= set(CODES)

    def test_nothing_is_left_behind(self, broken: Broken) -> None:
        """Neither a lock nor a list for answers."""
        assert broken.after == broken.before
        assert broken.result.record.plan == {}
        assert broken.result.record.outcomes == []

    def test_report_begins_with_all_parts(self, broken: Broken) -> None:
        """Before any finding, each with a word beside its colour; and it names the runbooks that answer."""
        page = BeautifulSoup(broken.result.report.read_text(), "html.parser")
        tiles = page.select("#glance .ops-tile")
        sections = [section["id"] for section in page.select("main > section[id]")]

        assert sections[:2] == ["glance", "findings"]
        names = [tile.select_one(".ops-tile-name").get_text(" ") for tile in tiles]
        assert [" ".join(name.split()[1:]) for name in names[:2]] == ["fine Nodes", "not judged Node memory"]
        assert len(tiles) == 13
        assert "→ retry-storm" in page.select_one("#glance").get_text(" ")
        assert "Its runbook: dlq-triage" in page.select_one("#findings").get_text(" ")
        assert archive.verify(broken.result.folder) == []

    def test_gate_leaves_out_what_does_not_matter_then(self, broken: Broken) -> None:
        """Settings and letters that lie there; and adds what a restart would kill."""
        result = check("demo", gate="deploy", grace="0.5s")
        codes = {str(row["code"]) for row in result.record.findings}

        assert {"deploy-risk", "queue-backlog", "retry-storm"} <= codes
        assert not {"risky-setting", "dead-letters", "zombie-result"} & codes
        assert (states(result)["Settings"], result.exit_code) == ("not judged", Exit.ATTENTION)
        assert broken.demo.ready


class TestSound:
    """Nothing is wrong."""

    @pytest.mark.parametrize("gate", ["", "deploy"])
    def test_exit_code_is_that_of_health(self, sound: Sound, gate: str) -> None:
        """0, with a verdict over all that was asked."""
        result = check("sound", gate=gate)

        assert result.record.findings == []
        assert (result.exit_code, result.record.verdict) == (Exit.DONE, "healthy")
        assert set(states(result).values()) == ({"fine"} if not gate else {"fine", "not judged"})
        assert "parts that were judged are fine" in result.record.headline
        assert sound.node

    def test_command_line_gives_cron_a_document(self, sound: Sound, place: Path) -> None:
        """Parts and findings as JSON on stdout, and the code."""
        words = "run health-check --target sound -p settle=0.2s -p answer_within=5s --quiet --output json"
        done = command_line.ops(*words.split(), env=dict(os.environ), cwd=place, timeout_s=90)

        assert done.code == Exit.DONE, done.err
        document = json.loads(done.out)
        assert {row["state"] for row in document["areas"]} == {"fine"}
        assert document["remaining"] == []
        assert sound.node

    def test_terminal_shows_each_part_first(self, sound: Sound, place: Path) -> None:
        """As a table."""
        words = "run health-check --target sound -p settle=0.2s -p answer_within=5s"
        done = command_line.ops(*words.split(), env=dict(os.environ), cwd=place, timeout_s=90)

        assert done.out.splitlines()[0].strip() == "At a glance"
        assert "✓ fine" in done.out
        assert sound.node

    def test_user_who_may_only_read_cannot_tell(self, sound: Sound) -> None:
        """Nodes cannot be asked by it: 4, and the server is judged all the same."""
        result = check("reader")
        found = states(result)

        assert (result.exit_code, result.record.verdict) == (Exit.CANNOT_SEE, "unknown")
        assert (found["Nodes"], found["Settings"]) == ("not seen", "not seen")
        assert (found["Redis data"], found["Redis server"]) == ("fine", "fine")
        assert sound.node

    @pytest.mark.parametrize(
        ("parameters", "hint"),
        [({"gate": "deplyo"}, "Did you mean deploy?"), ({"accept": "redis-versoin"}, "Did you mean redis-version?")],
    )
    def test_a_slip_of_the_finger_is_refused(self, sound: Sound, parameters: dict[str, str], hint: str) -> None:
        """Before anything is looked at."""
        result = check("sound", **parameters)

        assert (result.exit_code, result.record.error["type"]) == (Exit.USAGE, BadParameter.__name__)
        assert hint in result.record.error["hint"]
        assert sound.node

    def test_silent_node(self, sound: Sound) -> None:
        """What is seen is told, and the rest is not known."""
        worker = sound.trial.worker(module="tests.support.wellkept", name="second@shop", conf=CONF, queues="other")
        try:
            with worker.frozen():
                result = check("sound", answer_within="1.5s")
        finally:
            worker.kill()

        assert (result.exit_code, result.record.verdict) == (Exit.CANNOT_SEE, "unknown")
        assert (states(result)["Nodes"], states(result)["Redis memory"]) == ("not seen", "fine")
