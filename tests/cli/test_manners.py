"""How the commands speak: streams, colours, help, and whatever strange thing is put into them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from redis import Redis

from opslib.cli import app
from opslib.embedded.server import Server
from opslib.errors import Exit
from tests.cli.conftest import Busy
from tests.command_line import OPS, call, on_terminal, ops
from tests.support import seed

#: What drives a terminal or turns the direction of text; a new line may stand in a table.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|38)[;m]")
#: As much of it as a message may carry: a window's title, a colour, a link, a bell, a new line, another direction.
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x1b]8;;http://evil.invalid\x1b\\\r\n✓ HEALTHY\u202e\x9b2J"


def commands() -> Iterator[tuple[str, ...]]:
    """Iterate over every command there is, by its words."""
    groups = [((), typer.main.get_command(app))]
    for words, group in groups:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append(((*words, name), command))
            else:
                yield (*words, name)


class TestHelp:
    """Every command explains itself."""

    def test_there_are_commands(self) -> None:
        """The walk over the commands finds them."""
        assert {("list",), ("run",), ("task", "status"), ("config", "check"), ("demo", "up")} <= set(commands())

    @pytest.mark.parametrize("words", list(commands()), ids=" ".join)
    def test_has_an_example(self, words: tuple[str, ...]) -> None:
        """The help ends well, says what the command does, and shows one line that could be typed."""
        done = call(*words, "--help")

        assert done.code == Exit.DONE
        example = re.search(r"^\s*Example: (ops .*)$", done.out, re.MULTILINE)
        assert example, done.out
        assert example[1].split()[1 : 1 + len(words)] == list(words)
        assert call(*words, "-h").out == done.out

    def test_groups_and_version(self) -> None:
        """Without a command the help is shown, as usage; the version is one line."""
        for words in ([], ["task"], ["config"], ["reports"], ["demo"]):
            done = call(*words)
            assert done.code == Exit.USAGE
            assert "Usage: ops" in done.out + done.err
        assert re.fullmatch(r"opslib \d+\.\d+\.\d+\n", call("--version").out)

    def test_module_is_the_script(self, place: Path) -> None:
        """`python -m opslib` is `ops`, to the name in its help."""
        words = ["-m", "opslib", "list", "--help"]
        as_module = subprocess.run([sys.executable, *words], cwd=place, check=True, capture_output=True, text=True)

        assert as_module.stdout == ops("list", "--help", env=dict(os.environ), cwd=place).out


class TestStreams:
    """Data is on stdout, talk on stderr."""

    def test_talk_does_not_disturb_data(self, busy: Busy, place: Path) -> None:
        """Warnings and progress are on stderr, and stdout is one JSON document."""
        env = {**os.environ, "CELERY_BROKER_URL": "redis://elsewhere/0"}

        listed = ops("queues", "-o", "json", env=env, cwd=place)
        run = ops("run", "stuck-tasks", "-p", "settle=0.1s", "--json", env=env, cwd=place)

        assert busy
        assert json.loads(listed.out)
        assert (
            listed.err
            == "Warning: CELERY_BROKER_URL (environment) says something else; environment: OPS_BROKER_URL wins.\n"
        )
        assert json.loads(run.out)["exit_code"] == run.code
        assert "✔ record" in run.err

    def test_quiet_says_nothing(self, busy: Busy, place: Path) -> None:
        """With -q there is no progress, and what went wrong is said all the same."""
        assert busy
        assert ops("run", "stuck-tasks", "-q", "-p", "settle=0.1s", env=dict(os.environ), cwd=place).err == ""
        assert "no runbook" in call("run", "stuck", "-q").err

    def test_lines_of_json(self, busy: Busy) -> None:
        """With -o jsonl each line is a document."""
        for words in (["queues"], ["workers"], ["list"], ["config", "show"], ["find", busy.ids["active"]]):
            done = call(*words, "-o", "jsonl")
            assert all(isinstance(json.loads(line), dict) for line in done.out.splitlines()), words

    def test_errors_are_no_data(self) -> None:
        """What went wrong is two sentences on stderr, and stdout is empty."""
        done = call("queues", "-o", "json")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert done.err.splitlines() == [
            "✖ No target is named, and the environment describes none.",
            "  Set OPS_BROKER_URL, or try `--target demo`.",
        ]

    def test_closed_pipe(self, busy: Busy, place: Path) -> None:
        """A reader that stops reading is no defect."""
        assert busy
        script = f"({OPS} tasks --state unacked -o json; echo $? >&2) | head -c 1"

        done = subprocess.run(["/bin/sh", "-c", script], cwd=place, check=True, capture_output=True, text=True)

        assert done.stdout == "["
        assert done.stderr.splitlines()[:-1] == []


class TestTerminal:
    """What a terminal shows."""

    def test_colours_only_where_they_are_wanted(self, place: Path) -> None:
        """On a terminal there are colours; with NO_COLOR, with a dumb one or without one there are none."""
        env = dict(os.environ)

        assert COLOUR.search(on_terminal("run", "stuck-task", env=env, cwd=place).out)
        assert not COLOUR.search(on_terminal("run", "stuck-task", env={**env, "NO_COLOR": "1"}, cwd=place).out)
        assert "\x1b" not in ops("run", "stuck-task", env=env, cwd=place).err

    def test_width_is_honoured(self, busy: Busy, place: Path) -> None:
        """COLUMNS decides where lines end, and no id is cut: it is folded."""
        narrow = ops("tasks", "--state", "unacked", env={**os.environ, "COLUMNS": "70"}, cwd=place).out
        wide = ops("tasks", "--state", "unacked", env=dict(os.environ), cwd=place).out

        assert max(map(len, narrow.splitlines())) <= 70
        assert busy.ids["orphan"] in wide
        parts = "".join(line.split()[0] for line in narrow.splitlines() if line.strip())
        assert busy.ids["orphan"] in parts


class TestHostileText:
    """What is in a broker, or typed, cannot drive the terminal of who looks."""

    @pytest.fixture(autouse=True)
    def hostile(self, redis: Redis, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broker in which every name is an attack."""
        monkeypatch.setenv("OPS_BROKER_URL", server.url)
        seed.bind(redis, f"x{HOSTILE}", f"q{HOSTILE}")
        seed.bind(redis, "celery.pidbox", f"node{HOSTILE}.celery.pidbox")
        for place in (seed.seed_waiting, seed.seed_unacked):
            place(redis, f"task{HOSTILE}", task_id=f"id{HOSTILE}", queue=f"q{HOSTILE}", retries=50, eta=seed.iso(9000))
        seed.seed_result(redis, "STARTED", task_id=f"id{HOSTILE}", result={"hostname": HOSTILE, "pid": 1})

    @pytest.mark.parametrize(
        "words",
        [
            ["queues"],
            ["workers"],
            ["tasks", "--state", "waiting"],
            ["tasks", "--state", "unacked"],
            ["tasks", "--state", "retrying"],
            ["tasks", "--state", "stuck"],
            ["find", f"id{HOSTILE}"],
            ["find", f"id{HOSTILE}", f"no{HOSTILE}"],
            ["task", "status", f"id{HOSTILE}"],
            ["task", "info", f"no{HOSTILE}"],
            ["show", HOSTILE],
            ["run", HOSTILE],
            ["run", "stuck-tasks", "-p", f"x{HOSTILE}=1"],
            ["run", "stuck-tasks", "-p", f"max_actions={HOSTILE}"],
            ["reports", "open", HOSTILE, "--path"],
            ["reports", "list", "--runbook", HOSTILE],
            ["config", "show", "--target", HOSTILE],
            ["config", "show", "--env-file", HOSTILE],
            ["tasks", "--older-than", HOSTILE],
            ["tasks", "--task", HOSTILE],
            ["tasks", "--state", HOSTILE],
            [HOSTILE],
        ],
        ids=lambda words: " ".join(words).replace(HOSTILE, "!"),
    )
    def test_is_shown_and_not_obeyed(self, words: list[str]) -> None:
        """In no form does a control character, or a line of somebody else's making, get out."""
        for form in ([], ["-o", "ids"], ["-o", "json"]):
            if form and words[0] == HOSTILE:
                continue
            done = call(*words, *form)
            assert not CONTROL.search(done.out + done.err), (form, done)
            assert not [line for line in (done.out + done.err).splitlines() if line.startswith("✓ HEALTHY")], (
                form,
                done,
            )
            assert "defect" not in done.err

    def test_ids_are_one_line_each(self) -> None:
        """A program that reads ids line by line gets as many as there are."""
        assert len(call("find", f"id{HOSTILE}", "-o", "ids").out.splitlines()) == 1
        assert len(call("tasks", "--state", "waiting", "-o", "ids").out.splitlines()) == 1

    def test_json_gives_back_the_bytes(self) -> None:
        """What is only shown harmless to a person is whole for a program."""
        (row,) = json.loads(call("tasks", "--state", "waiting", "-o", "json").out)

        assert (row["task_id"], row["task"], row["queue"]) == (f"id{HOSTILE}", f"task{HOSTILE}", f"q{HOSTILE}")

    def test_report_of_it(self, place: Path) -> None:
        """A run over it prints nothing hostile, and its record and report are written."""
        done = call("run", "stuck-tasks", "-p", "settle=0.1s", "-p", "answer_within=0.2s")

        assert done.code == Exit.ATTENTION
        assert not CONTROL.search(done.out)
        (report,) = (place / "reports").rglob("report.html")
        assert not CONTROL.search(report.read_text())


WRONG = [
    ["nonsense"],
    ["run"],
    ["run", "-p"],
    ["run", "stuck-tasks", "--appply"],
    ["run", ""],
    ["run", "../stuck-tasks"],
    ["run", "stuck-tasks.ipynb"],
    ["run", "stuck-tasks\x00"],
    ["run", "stuck-tasks", "-p", "=1"],
    ["run", "stuck-tasks", "-p", "max_actions="],
    ["run", "stuck-tasks", "-p", "max_actions=1e3"],
    ["run", "stuck-tasks", "-p", f"max_actions={'9' * 5000}"],
    ["run", "stuck-tasks", "-p", "Target=demo"],
    ["show"],
    ["show", "../../etc/passwd"],
    ["find"],
    ["task", "status"],
    ["task", "status", "a", "b"],
    ["task", "nonsense", "a"],
    ["tasks", "--state", "gone"],
    ["tasks", "--limit", "0"],
    ["tasks", "--limit", "-1"],
    ["tasks", "--limit", "many"],
    ["tasks", "--older-than", "24"],
    ["tasks", "--older-than", "soon"],
    ["tasks", "--older-than", "-3h"],
    ["queues", "-o", "xml"],
    ["queues", "extra"],
    ["queues", "--timeout", "0s"],
    ["queues", "--timeout", "1"],
    ["queues", "--timeout", "1000y"],
    ["queues", "--target", "prod "],
    ["queues", "--target", "demo"],
    ["queues", "--env-file", "/"],
    ["workers", "--env-file", "no-such-file"],
    ["reports", "open", "../../etc/passwd", "--path"],
    ["reports", "open", "x" * 5000, "--path"],
    ["reports", "list", "--limit", "0"],
    ["config", "show", "--target", "💥"],
]

URLS = [
    ("localhost", Exit.USAGE),
    ("redis//localhost", Exit.USAGE),
    ("http://localhost:6379/0", Exit.USAGE),
    ("redis://", Exit.USAGE),
    ("redis://h/abc", Exit.USAGE),
    ("redis://h/-1", Exit.USAGE),
    ("redis://h:99999/0", Exit.USAGE),
    ("redis://h:0/0", Exit.USAGE),
    ("redis://h:port/0", Exit.USAGE),
    ("redis://a:b@c@h/0", Exit.USAGE),
    ("redis://:p#w@h:6379/0", Exit.USAGE),
    ("redis://h/0?db=1", Exit.USAGE),
    ("redis://h/ 0", Exit.USAGE),
    ("redis://[::1/0", Exit.USAGE),
    ("redis+cluster://h/0", Exit.USAGE),
    ("rediss://h/0?ssl_cert_reqs=maybe", Exit.USAGE),
    ("sentinel://127.0.0.1:1/0", Exit.USAGE),
    ("redis://[::1]:1/0", Exit.CANNOT_SEE),
    ("redis://127.0.0.1:1/2147483648", Exit.CANNOT_SEE),
    ("redis://127.0.0.1:1/99999999999999999999", Exit.CANNOT_SEE),
    ("unix:///no/such.sock", Exit.CANNOT_SEE),
    ("redis+socket:///no/such.sock?virtual_host=1", Exit.CANNOT_SEE),
    ("rediss://127.0.0.1:1/0?ssl_ca_certs=/no/such.pem", Exit.CANNOT_SEE),
    (f"redis://:{'p' * 9000}@127.0.0.1:1/0", Exit.CANNOT_SEE),
]


class TestWrongInput:
    """Nothing that can be typed or configured ends in a traceback."""

    @pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:40].replace("\x00", "0"))
    def test_words(self, busy: Busy, words: list[str]) -> None:
        """A mistake in the words is exit 2, with the cause on stderr."""
        assert busy

        done = call(*words)

        assert (done.code, done.out) == (Exit.USAGE, ""), done
        assert done.err.strip()
        assert "defect" not in done.err
        assert len(done.err) < 2000

    @pytest.mark.parametrize(("url", "code"), URLS, ids=lambda value: str(value)[:50])
    def test_urls(self, monkeypatch: pytest.MonkeyPatch, url: str, code: Exit) -> None:
        """A URL that cannot be meant so is exit 2; one that leads nowhere is exit 4; both say which."""
        monkeypatch.setenv("OPS_BROKER_URL", url)

        done = call("config", "check")

        assert (done.code, done.out) == (code, ""), done
        assert done.err.startswith("✖ ")
        assert "defect" not in done.err
        assert len(done.err) < 1000

    @pytest.mark.parametrize("task_id", ["", " ", "\udcff", "a\x00b", "*", "x" * 100_000, "💥", "'; FLUSHALL"])
    def test_ids(self, busy: Busy, task_id: str) -> None:
        """Any text is an id that nobody knows; none of it is a pattern, and an empty one is no id."""
        assert busy
        for words in (["find", task_id], ["task", "status", task_id]):
            done = call(*words)
            assert done.code == (Exit.ATTENTION if task_id.strip() else Exit.USAGE), (words, done)
            assert "defect" not in done.err

    @pytest.mark.parametrize(
        ("toml", "said"),
        [
            ("[targets.a", "not valid TOML"),
            ("targets = 1", "not a table"),
            ("[targets]\na = 1", "not a table"),
            ("[targets.a]\n", "no broker_url"),
            ("[targets.a]\nbroker_url = 1", "broker_url"),
            ('[targets.a]\nbroker_url = "redis://:secret-word@h/0"', "holds a password"),
            ('[targets.a]\nbroker_url = "env:NOT_SET"', "NOT_SET, which is not set"),
            ('[targets.a]\nbroker_url = "file:/no/such"', "cannot be read"),
            ('[targets.a]\nbroker_url = "redis://h/0"\nbroker = "x"', "broker_url?"),
            ('[targets.a]\nbroker_url = "redis://h/0"\n[targets.a.thresholds]\nstuck_after = 3', "stuck_after"),
            ('[targets.a]\nbroker_url = "redis://h/0"\n[targets.a.thresholds]\nstuck_after = "24"', "24h"),
            ('[targets.a]\nbroker_url = "redis://h/0"\nprotected = "yes"', "protected"),
        ],
    )
    def test_settings(self, place: Path, toml: str, said: str) -> None:
        """A mistake in ops.toml is exit 2 and named, and a password in it is not repeated."""
        (place / "ops.toml").write_text(toml)

        done = call("config", "show", "--target", "a")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert said in done.err
        assert "secret-word" not in done.err
