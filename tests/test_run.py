"""However a run ends, its record and its report are there and say so; and what is around it does not matter."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from bs4 import BeautifulSoup

from opslib import catalog, folders, kernel, records, run
from opslib.broker import CONNECT_TIMEOUT_S
from opslib.demo import server
from opslib.embedded.server import Server
from opslib.errors import Exit
from opslib.render import archive
from opslib.run import RunResult, Step
from tests import command_line, tiny
from tests.support.waiting import until
from tests.support.workers import Deployment

#: What a dead broker may cost a person, from the command to the answer.
ANSWER_WITHIN_S = 5.0
PASSWORD = "p4ss-wörd/@:%-of-the-tests"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runbooks and an archive of its own, and nothing of the developer's shell."""
    for name in set(os.environ) - set(command_line.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_RUNBOOKS", str(tmp_path / "runbooks"))
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a password that has to be quoted, and one message that nobody takes."""
    folder, at_once = tmp_path_factory.mktemp("server"), ["repl-diskless-sync-delay 0"]
    with server.start(folder, password=PASSWORD, extra=at_once) as running, running.client() as client:
        headers = {"id": "8a1f0000-0000-4000-8000-000000000001", "task": "shop.send_receipt"}
        properties = {"delivery_tag": "t1", "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0}
        message = {"body": "W1tdLHt9LG51bGxd", "content-type": "application/json", "content-encoding": "utf-8"}
        client.lpush("celery", json.dumps({**message, "headers": headers, "properties": properties}))
        yield running


def run_tiny(place: Path, *cells: str, **parameters: catalog.Value) -> RunResult:
    """Run a tiny runbook of these cells in this process."""
    tiny.runbook(place / "runbooks", "tiny", *cells)
    return run.run(catalog.find("tiny"), parameters)


def page_of(result: RunResult) -> str:
    """Return the text of a run's report, after a look at everything that any run has to leave behind."""
    folder = result.folder
    assert records.read(folder / "record.json") == result.record
    assert archive.verify(folder) == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert result.record.run_id in [each.run_id for each in archive.runs(folder.parents[3])]
    assert result.report == folder / "report.html"
    assert result.record.finished_at >= result.record.started_at
    text = BeautifulSoup(result.report.read_text(), "html.parser").get_text(" ", strip=True)
    assert result.record.run_id in text
    assert result.record.verdict.upper() in text
    return text


def marks_of(result: RunResult) -> dict[str, str]:
    """Return what the report says of each code cell that did not simply run: its id and the mark."""
    assert result.report is not None
    page = BeautifulSoup(result.report.read_text(), "html.parser")
    cells = {cell["id"].removeprefix("cell-id="): cell for cell in page.select("[id^='cell-id=']")}
    words = ("failed", "cut off", "not run")
    heads = {name: cell.get_text(" ", strip=True)[:80].lower() for name, cell in cells.items()}
    return {name: word for name, head in heads.items() for word in words if word in head}


class TestEnds:
    """A cell can stop a run in many ways, and each is told apart."""

    def test_good_end_is_the_kernels_own(self, place: Path) -> None:
        """A run whose last cell wrote the record ends as that says, and each step was told of."""
        steps: list[Step] = []
        tiny.runbook(place / "runbooks", "tiny", "1 + 1", tiny.CONCLUDE)

        result = run.run(catalog.find("tiny"), {"target": "elsewhere"}, say=steps.append)

        assert (result.exit_code, result.record.verdict, result.record.error) == (Exit.DONE, "healthy", None)
        assert marks_of(result) == {}
        assert page_of(result)
        assert [step.name for step in steps if step.took_s is None] == ["parameters", "cell-1", "cell-2"]
        assert not any(step.failed for step in steps)

    @pytest.mark.parametrize(
        ("source", "code", "said", "mark"),
        [
            ("1 / 0", Exit.FAILED, "ZeroDivisionError: division by zero", "failed"),
            ("def", Exit.FAILED, "SyntaxError", "failed"),
            ("import sys; sys.exit(0)", Exit.FAILED, "without its record", "failed"),
            ("input()", Exit.FAILED, "StdinNotImplementedError", "failed"),
            ("raise KeyboardInterrupt", Exit.INTERRUPTED, "interrupted", "failed"),
            ("from opslib.errors import Refused; raise Refused('Not so.', hint='So.')", Exit.REFUSED, "Not so.", ""),
            ("import os; os.kill(os.getpid(), 9)", Exit.FAILED, "The kernel died", "cut off"),
        ],
        ids=["exception", "syntax", "sys.exit(0)", "input", "interrupt", "own error", "SIGKILL"],
    )
    def test_stopped_in_a_cell(self, place: Path, source: str, code: Exit, said: str, mark: str) -> None:
        """The run ends with the cause's exit code, and the report names the cell and those that never ran."""
        result = run_tiny(place, "before = 1", source, tiny.CONCLUDE)

        assert result.exit_code is code
        assert result.record.verdict == "failed"
        assert result.record.error is not None
        assert said in result.record.error["message"]
        text = page_of(result)
        assert said in text
        assert marks_of(result) == {"cell-2": mark or "failed", "cell-3": "not run"}

    def test_cell_that_takes_too_long(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A cell beyond the limit is cut off, and the run says so."""
        monkeypatch.setattr(run, "CELL_TIMEOUT_S", 1)

        result = run_tiny(place, "import time; time.sleep(60)", tiny.CONCLUDE)

        assert result.exit_code is Exit.FAILED
        assert "cut off" in page_of(result)
        assert marks_of(result) == {"cell-1": "cut off", "cell-2": "not run"}

    def test_without_its_record_is_no_success(self, place: Path) -> None:
        """A notebook that runs to its end and leaves no record has failed."""
        result = run_tiny(place, "1 + 1")

        assert result.exit_code is Exit.FAILED
        assert "without its record" in page_of(result)

    def test_damaged_record_is_no_success(self, place: Path) -> None:
        """Half a record counts as none."""
        result = run_tiny(place, "from opslib import records; open(records.context().record, 'w').write('{')")

        assert result.exit_code is Exit.FAILED
        assert "without its record" in page_of(result)

    def test_findings_outlive_the_kernel(self, place: Path) -> None:
        """What was found and shown before the kernel died is in the record and the report."""
        finding = "Finding(code='retry-loop', severity=Severity.CRITICAL, subject='task-4711', message='Again.')"
        source = f"from opslib import show; from opslib.findings import Finding, Severity; show([{finding}])"

        result = run_tiny(place, source, "import os; os.kill(os.getpid(), 9)")

        assert result.exit_code is Exit.FAILED
        assert [row["subject"] for row in result.record.findings] == ["task-4711"]
        assert "The kernel died" in result.record.error["message"]
        assert "task-4711" in page_of(result)

    def test_death_while_applying_is_not_called_a_dry_run(self, place: Path) -> None:
        """A run that was allowed to change something, and died, does not say that nothing was changed."""
        result = run_tiny(place, "import os; os.kill(os.getpid(), 9)", dry_run=False)

        assert result.record.dry_run is False
        text = page_of(result)
        assert "what was changed is not known" in text
        assert "nothing was changed" not in text.lower()


class TestSignals:
    """A run that is stopped from outside still leaves its report."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ends_with_a_report(self, place: Path, number: signal.Signals) -> None:
        """Ctrl-C or SIGTERM ends `ops run` with 130, its kernel too, and the report shows where it was cut off."""
        waiting = place / "waiting"
        source = f"import os, time; open({str(waiting)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        tiny.runbook(place / "runbooks", "tiny", source, tiny.CONCLUDE)
        with command_line.start("run", "tiny", env=with_broker("redis://127.0.0.1:1/0"), cwd=place) as process:
            until(lambda: waiting.exists() and waiting.read_text(), 30, "the cell runs")
            inside = psutil.Process(int(waiting.read_text()))
            process.send_signal(number)
            out, err = process.communicate(timeout=30)

        assert process.returncode == Exit.INTERRUPTED
        assert "Traceback" not in out + err
        assert "interrupted" in out
        (record,) = archive.runs(place / "reports")
        folder = folders.folder(place / "reports", record.run_id)
        assert (record.verdict, record.exit_code) == ("failed", Exit.INTERRUPTED)
        result = RunResult(record=record, folder=folder, report=folder / "report.html")
        assert "The run was interrupted" in page_of(result)
        assert marks_of(result) == {"cell-1": "cut off", "cell-2": "not run"}
        until(lambda: not inside.is_running() or inside.status() == psutil.STATUS_ZOMBIE, 30, "the kernel has ended")

    def test_lock_is_let_go(self, trial: Deployment, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C while a plan is carried out frees the broker at once, and does not call the run a dry one."""
        monkeypatch.delenv("OPS_RUNBOOKS")
        trial.worker()
        trial.until_running(trial.send("hang"))
        words = ["run", "stuck-tasks", "--apply", "--yes", "-q", "-p", "stuck_after=0.1s", "-p", "settle=0.1s"]
        with command_line.start(*words, env=with_broker(trial.server.url), cwd=place) as process:
            until(lambda: trial.redis.exists("opslib:lock"), 30, "the plan is being carried out")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)

        assert process.returncode == Exit.INTERRUPTED, err
        until(lambda: not trial.redis.exists("opslib:lock"), 3, "the lock is free")
        assert "interrupted" in out
        (record,) = archive.runs(place / "reports")
        assert record.dry_run is False
        audit = [json.loads(line) for line in (place / "reports/audit.jsonl").read_text().splitlines()]
        assert [line["event"] for line in audit][:1] == ["begin"]
        assert {line["run_id"] for line in audit} == {record.run_id}


def with_broker(url: str) -> dict[str, str]:
    """Return this test's environment, with this broker as the default target."""
    return {**os.environ, "OPS_BROKER_URL": url}


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(20)
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


class TestBroker:
    """A broker that cannot be used is exit 4 with its cause, and a report: never a verdict, never a traceback."""

    @pytest.fixture(autouse=True)
    def real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The runbook is the project's own."""
        monkeypatch.delenv("OPS_RUNBOOKS")

    @pytest.fixture
    def looked(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[RunResult, float]]:
        """Run stuck-tasks on a URL; return the run, and how long its connecting took."""

        def look(url: str) -> tuple[RunResult, float]:
            steps: list[Step] = []
            monkeypatch.setenv("OPS_BROKER_URL", url)
            result = run.run(catalog.find("stuck-tasks"), {}, say=steps.append)
            return result, next((step.took_s or 0.0 for step in steps if step.name == "setup" and step.took_s), 0.0)

        return look

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("redis://127.0.0.1:1/0", "cannot be reached"),
            ("redis://no-such-host.invalid/0", "cannot be reached"),
            ("redis://:not-the-password@127.0.0.1:{port}/0", "refused the credentials"),
            ("redis://127.0.0.1:{port}/0", "refused the credentials"),
            ("redis://:{password}@127.0.0.1:{port}/99", "no such database"),
        ],
        ids=["refused", "unknown host", "wrong password", "no password", "database 99"],
    )
    def test_cause_is_told(
        self, protected: Server, looked: Callable[[str], tuple[RunResult, float]], url: str, said: str
    ) -> None:
        """The record and the report name the cause, and the verdict is unknown."""
        result, took_s = looked(url.format(port=protected.port, password=quote(PASSWORD, safe="")))

        assert (result.exit_code, result.record.verdict) == (Exit.CANNOT_SEE, "unknown")
        assert result.record.error is not None
        assert said in result.record.error["message"]
        assert said in page_of(result)
        assert took_s < CONNECT_TIMEOUT_S

    @pytest.mark.parametrize("tls", [False, True], ids=["black hole", "TLS on a plain port"])
    def test_silence_is_waited_for_once(
        self, protected: Server, silent: str, looked: Callable[[str], tuple[RunResult, float]], tls: bool
    ) -> None:
        """Who never answers is given up after one timeout, and the hint asks for TLS."""
        result, took_s = looked(protected.url.replace("redis://", "rediss://") if tls else silent)

        assert (result.exit_code, result.record.verdict) == (Exit.CANNOT_SEE, "unknown")
        assert "did not answer" in page_of(result)
        assert "TLS" in result.record.error["hint"]
        assert CONNECT_TIMEOUT_S <= took_s < CONNECT_TIMEOUT_S + 1.5

    @pytest.mark.parametrize("command", [("run", "stuck-tasks"), ("config", "check"), ("find", "x")])
    @pytest.mark.parametrize("dead", ["refused", "black hole"])
    def test_person_knows_within_five_seconds(
        self, place: Path, silent: str, command: tuple[str, ...], dead: str
    ) -> None:
        """From the command to the answer a dead broker costs less than five seconds."""
        env = with_broker(silent if dead == "black hole" else "redis://127.0.0.1:1/0")
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = command_line.ops(*command, env=env, cwd=place)
        wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)

        # On a machine that is busy with other things, what it would have taken on one that is not.
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert done.code == Exit.CANNOT_SEE
        assert min(wall_s, cpu_s + CONNECT_TIMEOUT_S) < ANSWER_WITHIN_S

    def test_cluster_is_refused(self, tmp_path: Path, looked: Callable[[str], tuple[RunResult, float]]) -> None:
        """A node of a Redis Cluster cannot be a Celery broker, and is told apart at once."""
        with server.start(tmp_path, extra=["cluster-enabled yes"]) as node:
            result, _ = looked(node.url)

        assert result.exit_code is Exit.CANNOT_SEE
        assert "cannot be a Celery broker" in page_of(result)

    def test_replica_is_looked_at_and_not_changed(
        self, protected: Server, tmp_path: Path, looked: Callable[[str], tuple[RunResult, float]]
    ) -> None:
        """On a replica the messages are seen, the nodes cannot be asked, and a plan is refused."""
        with protected.client() as client:
            client.lpush("broken", b"{")
            client.sadd("_kombu.binding.broken", b"broken\x06\x16\x06\x16broken")
        extra = [f"replicaof 127.0.0.1 {protected.port}", f"masterauth {json.dumps(PASSWORD, ensure_ascii=False)}"]
        with server.start(tmp_path, extra=extra) as replica, replica.client() as client:
            until(lambda: client.exists("broken"), 30, "the replica is in step")
            result, _ = looked(replica.url)
            applied = run.run(catalog.find("stuck-tasks"), {"dry_run": False})

        assert (result.exit_code, result.record.verdict) == (Exit.ATTENTION, "critical")
        assert [row["code"] for row in result.record.findings] == ["unreadable-message", "cannot-see"]
        assert "replica" in page_of(result)
        assert applied.exit_code is Exit.REFUSED
        assert "changes belong on its master" in applied.record.error["message"]

    def test_without_workers(self, protected: Server, looked: Callable[[str], tuple[RunResult, float]]) -> None:
        """Messages and nobody to take them is critical, and nothing else is claimed."""
        with protected.client() as client:
            client.delete("broken", "_kombu.binding.broken")

        result, _ = looked(protected.url)

        assert (result.exit_code, result.record.verdict) == (Exit.ATTENTION, "critical")
        assert [row["code"] for row in result.record.remaining] == ["no-workers"]
        assert "No node is connected" in page_of(result)

    def test_empty_database_is_not_healthy(
        self, protected: Server, looked: Callable[[str], tuple[RunResult, float]]
    ) -> None:
        """Nothing at all is more often the wrong place than a quiet one: unknown, with where keys are."""
        result, _ = looked(protected.url.removesuffix("0") + "7")

        assert (result.exit_code, result.record.verdict) == (Exit.CANNOT_SEE, "unknown")
        assert "Other databases of this server hold keys: 0" in page_of(result)


class TestBeforeAKernel:
    """A mistake in the command costs nothing: no kernel starts, and no run is archived."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["run", "tinny"], "Did you mean tiny?"),
            (["run", "tiny", "-p", "dryrun=false"], "Did you mean dry_run?"),
            (["run", "tiny", "-p", "count=many"], "count must be a whole number"),
            (["run", "tiny", "-p", "count=1.0"], "count must be a whole number"),
            (["run", "tiny", "-p", "share=nan"], "share must be a number"),
            (["run", "tiny", "-p", "dry_run=nope"], "dry_run must be true or false"),
            (["run", "tiny", "-p", "count"], "is not NAME=VALUE"),
            (["run", "tiny", "-p", "count=1", "-p", "count=2"], "given twice"),
            (["run", "tiny", "-p", "x=1;import os#=1"], "has no parameter"),
            (["run", "tiny", "--target", "prod "], "no target named"),
            (["run", "tiny", "--env-file", "none.env"], "no file"),
            (["run", "tiny", "--apply", "--dry-run"], "exclude each other"),
        ],
    )
    def test_is_refused(self, place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
        """A name or a value that cannot be meant so is exit 2 with what was meant."""
        parameters = f"{tiny.PARAMETERS}\ncount: int = 1  # how many\nshare: float = 0.5  # of what"
        tiny.runbook(place / "runbooks", "tiny", tiny.CONCLUDE, parameters=parameters)
        monkeypatch.setattr(kernel.OpsKernelManager, "__init__", None)

        done = command_line.call(*words)

        assert done.code == Exit.USAGE
        assert said in done.err
        assert done.out == ""
        assert not (place / "reports").exists()

    def test_damaged_runbook_is_told(self, place: Path) -> None:
        """A file that is no notebook is exit 2, and does not hide the others' names."""
        tiny.runbook(place / "runbooks", "good", tiny.CONCLUDE)
        (place / "runbooks" / "bad.ipynb").write_text("{")

        done = command_line.call("run", "bad")

        assert done.code == Exit.USAGE
        assert "bad.ipynb cannot be read" in done.err


class TestSurroundings:
    """What the machine, the user and the working directory have lying about does not change a run."""

    def test_kernels_and_startup_files_of_the_machine(self, place: Path) -> None:
        """No kernelspec of another place is used, and nothing of the user's own runs inside."""
        canary = place / "canary"
        kernels = [place / "jupyter" / "kernels" / "python3", place / "home/.local/share/jupyter/kernels/python3"]
        for folder in kernels:
            folder.mkdir(parents=True)
            argv = ["/bin/sh", "-c", f"echo kernel >> {canary}; exit 1"]
            (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "bad", "language": "python"}))
        startup = place / "home/.ipython/profile_default/startup"
        startup.mkdir(parents=True)
        for file in (startup / "00-first.py", place / "pythonstartup.py"):
            file.write_text(f"open({str(canary)!r}, 'a').write({file.name!r})")
        config = 'c.InteractiveShellApp.exec_lines = ["1 / 0"]'
        (startup.parent / "ipython_kernel_config.py").write_text(config)
        tiny.runbook(place / "runbooks", "tiny", tiny.CONCLUDE)
        env = with_broker("redis://127.0.0.1:1/0")
        more = {"JUPYTER_PATH": str(place / "jupyter"), "PYTHONSTARTUP": str(place / "pythonstartup.py")}

        done = command_line.ops("run", "tiny", env={**env, **more, "HOME": str(place / "home")}, cwd=place)

        assert done.code == Exit.DONE
        assert not canary.exists()

    def test_modules_in_the_working_directory(self, place: Path) -> None:
        """Files called like the modules that a run needs are not imported, neither here nor in the kernel."""
        for name in ("html", "json", "redis", "opslib", "typing", "celery"):
            (place / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
        tiny.runbook(place / "runbooks", "tiny", "import html, json, redis, celery", tiny.CONCLUDE)

        done = command_line.ops("run", "tiny", env=with_broker("redis://127.0.0.1:1/0"), cwd=place)

        assert (done.code, "the wrong" in done.out + done.err) == (Exit.DONE, False)

    def test_bare_environment(self, place: Path) -> None:
        """Without HOME, TERM and a locale, in another time zone and with Python's own switches, a run is a run."""
        tiny.runbook(place / "runbooks", "tiny", "print('é → ✓')", tiny.CONCLUDE)
        kept = {name: os.environ[name] for name in ("OPS_RUNBOOKS", "OPS_REPORTS", "PATH")}
        env = {**kept, "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "OPS_BROKER_URL": "redis://127.0.0.1:1/0"}

        done = command_line.ops("run", "tiny", env=env, cwd=place)

        assert done.code == Exit.DONE
        (record,) = archive.runs(place / "reports")
        assert record.started_at.endswith("Z")
        age_s = time.time() - records_time(record.started_at)
        assert 0 <= age_s < 120

    def test_archive_with_any_name(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Braces, blanks, percent signs and other letters in the archive's path are not read as anything."""
        root = place / "re ports {dry_run} {0} {pm.__class__} %s 'é'"
        monkeypatch.setenv("OPS_REPORTS", str(root))

        result = run_tiny(place, tiny.CONCLUDE)

        assert result.exit_code is Exit.DONE
        assert result.folder.is_relative_to(root)
        assert page_of(result)

    def test_relative_archive(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative archive is that of the caller's directory, in the kernel too."""
        monkeypatch.setenv("OPS_REPORTS", "kept/here")

        result = run_tiny(
            place, "from opslib import settings; assert settings.reports_root().name == 'here'", tiny.CONCLUDE
        )

        assert result.exit_code is Exit.DONE
        assert result.folder.is_relative_to(place / "kept" / "here")


def records_time(text: str) -> float:
    """Return an instant of a record as epoch seconds."""
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


class TestArchive:
    """Where a run is kept."""

    def test_that_cannot_be_written(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a place for its report a run does not begin: exit 2, one sentence and what to set."""
        (place / "file").write_text("")
        tiny.runbook(place / "runbooks", "tiny", tiny.CONCLUDE)
        monkeypatch.setenv("OPS_REPORTS", str(place / "file" / "reports"))
        monkeypatch.setenv("OPS_BROKER_URL", "redis://127.0.0.1:1/0")

        done = command_line.call("run", "tiny")

        assert done.code == Exit.USAGE
        assert "cannot be written" in done.err
        assert "Set OPS_REPORTS" in done.err

    def test_two_runs_at_once(self, place: Path) -> None:
        """Two runs of one runbook that begin together have different ids, and the index has both."""
        tiny.runbook(place / "runbooks", "tiny", tiny.CONCLUDE)
        env = with_broker("redis://127.0.0.1:1/0")
        words = ["run", "tiny", "-o", "json"]
        with (
            command_line.start(*words, env=env, cwd=place) as one,
            command_line.start(*words, env=env, cwd=place) as two,
        ):
            told = [json.loads(process.communicate(timeout=60)[0])["run_id"] for process in (one, two)]

        listed = [json.loads(line)["run_id"] for line in (place / "reports/index.jsonl").read_text().splitlines()]
        assert len(set(told)) == 2
        assert sorted(told) == sorted(listed)


class TestSecrets:
    """No password of a target gets into anything that a run leaves behind or prints."""

    @pytest.mark.parametrize(
        "source",
        [
            "print(connect().target.broker_url)",
            "raise RuntimeError(f'cannot open {connect().target.broker_url!r}')",
            "{'url': connect().target.broker_url, 'pool': connect().reads.connection_pool.connection_kwargs}",
            "import os; os.write(2, os.environ['OPS_BROKER_URL'].encode()); os.kill(os.getpid(), 9)",
            "import logging; logging.warning('broker %s', os.environ['OPS_BROKER_URL'])",
        ],
        ids=["printed", "raised", "shown", "dying", "logged"],
    )
    def test_stays_out_of_the_archive(
        self, protected: Server, place: Path, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        """Whatever a cell does with a URL, neither its password nor the quoted form is in any file."""
        monkeypatch.setenv("OPS_BROKER_URL", protected.url)

        result = run_tiny(place, "import os; from opslib import connect", source)

        assert page_of(result)
        forms = {PASSWORD, quote(PASSWORD, safe=""), json.dumps(PASSWORD).strip('"')}
        files = [path for path in (place / "reports").rglob("*") if path.is_file()]
        assert len(files) >= 5
        assert not [(path.name, form) for path in files for form in forms if form in path.read_text()]

    def test_stays_off_the_terminal(self, protected: Server, place: Path) -> None:
        """No command prints it, and no process has it among its arguments."""
        tiny.runbook(place / "runbooks", "tiny", "raise RuntimeError(__import__('os').environ['OPS_BROKER_URL'])")
        env = with_broker(protected.url)

        printed = [
            command_line.ops(*words, env=env, cwd=place)
            for words in (
                ["run", "tiny"],
                ["run", "tiny", "-o", "json"],
                ["config", "show"],
                ["config", "show", "--json"],
            )
        ]

        assert [done.code for done in printed] == [3, 3, 0, 0]
        forms = {PASSWORD, quote(PASSWORD, safe="")}
        assert not any(form in done.out + done.err for done in printed for form in forms)
