"""Our commands against their limits, side by side in one run → ratios; seconds alone say nothing on a noisy machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import typer

from opslib import broker, settings
from opslib.collectors import parts
from opslib.collectors.windows import WINDOW_BYTES
from opslib.demo import server

OVERHEAD_GOAL = 1.6
MEMORY_GOAL_BYTES = 100 * 1024 * 1024
HELP_GOAL = 1.2
LIVE_GOAL = 0.05

app = typer.Typer(add_completion=False, help=__doc__)

#: What any notebook costs that is run by papermill and kept as HTML.
EMPTY_RUN = """
import sys
import papermill
from nbconvert import HTMLExporter
papermill.execute_notebook(sys.argv[1], sys.argv[2], kernel_name="python3", progress_bar=False)
page, _ = HTMLExporter().from_filename(sys.argv[2])
open(sys.argv[2] + ".html", "w").write(page)
"""

TWO_COMMANDS = """
import typer
app = typer.Typer()

@app.command()
def one(name: str = ""):
    "Say one thing."

@app.command()
def two(name: str = ""):
    "Say another."

app()
"""

#: What Celery offers for a look at all nodes: one command for each question, one after the other.
FIVE_INSPECTS = """
import subprocess, sys
for question in ("active", "reserved", "scheduled", "stats", "active_queues"):
    command = [sys.executable, "-m", "celery", "-b", sys.argv[1], "inspect", question]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
"""

#: Collects once and prints what it saw, the largest reply of a list, and the process's peak memory.
COLLECT = """
import json, time
from redis import Redis
from opslib import broker
from opslib.collectors import deployment
largest, lrange = 0, Redis.lrange
def noting(self, *args):
    global largest
    reply = lrange(self, *args)
    largest = max(largest, sum(map(len, reply)))
    return reply
Redis.lrange = noting
connected = broker.connect()
def memory(name):  # not rusage: a child inherits its parent's peak there
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
before = memory("VmRSS")
began = time.perf_counter()
seen = deployment.collect(connected)
print(json.dumps({
    "took_s": time.perf_counter() - began,
    "read": sum(queue.read for queue in seen.queues),
    "tasks": {name: n for queue in seen.queues for name, n in queue.by_task.items()},
    "largest_reply_bytes": largest,
    "before_bytes": before,
    "peak_bytes": memory("VmHWM"),
    "silent": sum(row.silent for row in seen.coverage if row.place != "workers"),
}))
"""


@app.command()
def overhead(rounds: int = 5) -> None:
    """`ops run stuck-tasks` on a small broker, against an empty papermill run with its HTML export."""
    with tempfile.TemporaryDirectory() as folder, _small_system(Path(folder)) as url:
        notebook = _empty_notebook(Path(folder))
        ours = ["-m", "opslib", "run", "stuck-tasks", "--quiet"]
        limit = ["-c", EMPTY_RUN, str(notebook), str(notebook.with_name("executed.ipynb"))]
        environment = {"OPS_BROKER_URL": url, "OPS_REPORTS": str(Path(folder) / "reports")}
        _compare("ops run stuck-tasks / empty papermill run + HTML", ours, limit, environment, rounds, OVERHEAD_GOAL)


@app.command(name="help")
def help_(rounds: int = 15) -> None:
    """`ops --help`, against a Typer program with two commands."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "two_commands.py"
        program.write_text(TWO_COMMANDS)
        _compare(
            "ops --help / two-command Typer --help",
            ["-m", "opslib", "--help"],
            [str(program), "--help"],
            {},
            rounds,
            HELP_GOAL,
        )


@app.command()
def live(rounds: int = 3, nodes: int = 4) -> None:
    """`ops workers --tasks`, against the five commands of `celery inspect` that tell the same, with four nodes."""
    with tempfile.TemporaryDirectory() as folder, server.start(Path(folder)) as running, ExitStack() as workers:
        for number in range(nodes):
            workers.enter_context(_node(running.url, f"live{number}@bench", "solo", 1))
        _until_answered(running.url, nodes)
        seen = json.loads(
            _python(["-m", "opslib", "workers", "--tasks", "-o", "json"], {"OPS_BROKER_URL": running.url})
        )
        assert sum(row["answered"] for row in seen) == nodes, seen
        environment = {"OPS_BROKER_URL": running.url, "DEMO_BROKER_URL": running.url}
        ours, limit = ["-m", "opslib", "workers", "--tasks"], ["-c", FIVE_INSPECTS, running.url]
        _compare("ops workers --tasks / five celery inspect", ours, limit, environment, rounds, LIVE_GOAL)


@app.command()
def million(messages: int = 1_000_000) -> None:
    """Diagnose a queue of a million messages: memory of the collectors, and the largest reply."""
    with tempfile.TemporaryDirectory() as folder, server.start(Path(folder), extra=("maxmemory 0",)) as running:
        _seed(running.url, messages)
        seen = json.loads(_python(["-c", COLLECT], {"OPS_BROKER_URL": running.url}))
    assert seen["read"] == messages, f"read {seen['read']:,} of {messages:,}"
    assert not seen["silent"], seen
    used = seen["peak_bytes"] - seen["before_bytes"]
    _say(f"{messages:,} messages read in {seen['took_s']:.1f} s: {seen['tasks']}")
    whole = f"whole process {seen['peak_bytes'] / 2**20:.1f} MiB"
    _say(f"memory of the collectors {used / 2**20:.1f} MiB of {MEMORY_GOAL_BYTES / 2**20:.0f}; {whole}")
    _say(f"largest reply {seen['largest_reply_bytes'] / 1024:.0f} KiB of {WINDOW_BYTES / 1024:.0f}")
    _judge(met=used <= MEMORY_GOAL_BYTES and seen["largest_reply_bytes"] <= WINDOW_BYTES * 1.5)


@app.command()
def redrive(letters: int = 100_000, by_hand: int = 5_000, rounds: int = 3) -> None:
    """Send dead letters again by a plan, against the loop that pops and sends each, and what memory that takes."""
    import redrive as measured

    _judge(met=measured.measure(letters, by_hand, rounds))


@app.command()
def results(count: int = 1_000_000, rounds: int = 3) -> None:
    """Count and age a million stored results, against a bare SCAN; memory, and what other clients notice."""
    import results as measured

    _judge(met=measured.measure(count, rounds))


@app.command()
def rows(rounds: int = 3) -> None:
    """Look for the task of each open row of a million in PostgreSQL, against a plain reading of the same."""
    import rows as measured

    _judge(met=measured.measure(rounds))


@app.command()
def safety(messages: int = 1_000_000) -> None:
    """What changes of a large queue cost everybody else, and how safe they are, as a table (docs/safety.md)."""
    import safety as measured

    _say("| figure | limit | measured | met |\n|---|---|---|---|")
    for name, limit, found, met in measured.rows(_seed, messages):
        _say(f"| {name} | {limit} | {found} | {'' if met is None else 'yes' if met else '**no**'} |")
        if met is False:
            _MISSED.append(True)


@app.command(name="all")
def everything() -> None:
    """Every comparison."""
    help_()
    overhead()
    live()
    million()
    redrive()
    results()
    rows()


def _compare(
    name: str, ours: Sequence[str], limit: Sequence[str], environment: dict[str, str], rounds: int, goal: float
) -> None:
    """Run both in turn, A B A B …, and judge the median of the ratios pair by pair."""
    _timed(ours, environment), _timed(limit, environment)
    pairs = [(_timed(ours, environment), _timed(limit, environment)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    median = statistics.median(ratios)
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    _say(f"{name}: {median:.3g} × (from {ratios[0]:.3g} to {ratios[-1]:.3g}; {a:.2f} s / {b:.2f} s); goal {goal} ×")
    _judge(met=median <= goal)


def _timed(arguments: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    _python(arguments, environment)
    return time.perf_counter() - began


def _python(arguments: Sequence[str], environment: dict[str, str]) -> str:
    told = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | environment
    done = subprocess.run([sys.executable, *arguments], env=told, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise SystemExit(
            f"{' '.join(arguments)[:80]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


@contextmanager
def _small_system(folder: Path) -> Iterator[str]:
    """A server and one real worker with two processes."""
    with server.start(folder) as running, _node(running.url, "one@bench", "prefork", 2):
        _until_answered(running.url)
        yield running.url


@contextmanager
def _node(url: str, name: str, pool: str, concurrency: int) -> Iterator[None]:
    """A real worker; who needs it waits for its answer."""
    command = [sys.executable, "-m", "celery", "-A", "opslib.demo.app", "worker", "-n", name, "-P", pool]
    command += ["-c", str(concurrency), "-l", "ERROR"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(command, env={**os.environ, "DEMO_BROKER_URL": url}, **quiet)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


def _until_answered(url: str, nodes: int = 1) -> None:
    deadline = time.monotonic() + 30
    connected = broker.connect(settings.Target(name="bench", broker_url=url))
    while sum(row.answered for row in parts.nodes(connected, answer_within="0.5s")[0]) < nodes:
        if time.monotonic() > deadline:
            raise SystemExit("The workers did not come up.")
        time.sleep(0.1)


def _empty_notebook(folder: Path) -> Path:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = folder / "empty.ipynb"
    path.write_text(json.dumps({"cells": [], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def _seed(url: str, messages: int) -> None:
    """Fill a queue with envelopes as Celery writes them, each with its own ids, by a script on the server."""
    from redis import Redis

    script = textwrap.dedent(
        """
        for n = tonumber(ARGV[2]), tonumber(ARGV[3]) do
          local id = string.format('%08d-bbbb-4ccc-8ddd-eeeeeeeeeeee', n)
          local text = string.gsub(string.gsub(ARGV[1], 'TASK_ID', id), 'TASK_NAME', 'shop.task_' .. n % 7)
          redis.call('LPUSH', KEYS[1], text)
        end
        """
    )
    envelope = Path(__file__).with_name("envelope.json").read_text("utf-8").strip()
    with Redis.from_url(url) as client:
        for start in range(0, messages, 10_000):
            client.eval(script, 1, "celery", envelope, start, min(messages, start + 10_000) - 1)


def _say(line: str) -> None:
    typer.echo(line)


_MISSED: list[bool] = []


def _judge(*, met: bool) -> None:
    typer.echo("  met" if met else "  NOT met")
    if not met:
        _MISSED.append(True)


if __name__ == "__main__":
    app(standalone_mode=False)
    sys.exit(bool(_MISSED))
