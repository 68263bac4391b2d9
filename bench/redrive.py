"""Dead letters, sent again by hand and by a plan, turn by turn → how much faster that is, and what memory it takes."""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from opslib import letters
from opslib.demo import server as embedded

GOAL, MEMORY_BYTES = 30.0, 100 * 2**20
QUEUE = "celery"
ID, TAG = "{:08d}-bbbb-4ccc-8ddd-eeeeeeeeeeee", "{:08d}-aaaa-4ccc-8ddd-eeeeeeeeeeee"
_PER_PUSH = 1_000

#: What people do today: pop, decode, send. It loses a letter if it dies in between, and has no way back.
NAIVE = """
import json, sys, time
from celery import Celery
from redis import Redis
url, source, queue, most = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
app, client = Celery("naive", broker=url, backend=url), Redis.from_url(url)
began, sent = time.perf_counter(), 0
while sent < most and (entry := client.rpop(source)):
    letter = json.loads(entry)
    app.send_task(letter["task_name"], [sent], {}, queue=queue)
    sent += 1
print(json.dumps({"sent": sent, "took_s": time.perf_counter() - began}))
"""

#: What a command does once its plan is confirmed: lock, journal, audit, letters kept, and a look whether all are there.
OURS = """
import gc, json, resource, sys, time
from opslib import broker as brokers, cli, settings
from opslib.plan import Action, Copy, Kind, Redrive, make
from opslib.selection import DeadSelection
from opslib.writer import apply
gc.set_threshold(*cli.SELDOM)
url, source, queue, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
broker = brokers.connect(settings.Target(name="bench", broker_url=url))
copies = (Copy(place="list", key=source, queue=source, count=count),)
action = Action(kind=Kind.REDRIVE, subject=source, source=source, destination=queue, copies=copies,
                letters=DeadSelection(), redrive=Redrive())
plan = make("bench", broker.fingerprint, [action], max_actions=1, made_at=broker.server_time())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
(outcome,) = apply(plan, broker, dry_run=False)
took_s = time.perf_counter() - began
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"status": outcome.status, "said": outcome.reason, "took_s": took_s, "grown_bytes": grown * 1024}))
"""


def measure(count: int, by_hand: int, rounds: int) -> bool:
    """Print how many times as fast a plan is as the loop, and whether that and its memory are as they should be."""
    ratios, ours_per_s, naive_per_s, grown = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as url:
        for _ in range(rounds):
            with Redis.from_url(url) as client:
                client.flushall()
                seed(client, "by-hand.dead", by_hand)
                seed(client, f"{QUEUE}.dead", count)
                naive = _python(folder, NAIVE, url, "by-hand.dead", QUEUE, str(by_hand))
                client.delete(QUEUE)
                ours = _python(folder, OURS, url, f"{QUEUE}.dead", QUEUE, str(count))
                assert (ours["status"], client.llen(QUEUE)) == ("applied", count), ours
                assert not client.exists(f"{QUEUE}.dead")
            naive_per_s.append(by_hand / naive["took_s"])
            ours_per_s.append(count / ours["took_s"])
            ratios.append(ours_per_s[-1] / naive_per_s[-1])
            grown = max(grown, ours["grown_bytes"])
    ratio = statistics.median(ratios)
    fast, slow = (statistics.median(side) for side in (ours_per_s, naive_per_s))
    met = ratio >= GOAL and grown <= MEMORY_BYTES
    sys.stdout.write(
        f"redrive of {count:,} letters / pop and send_task: "
        f"{ratio:.1f} × (from {min(ratios):.1f} to {max(ratios):.1f}; "
        f"{fast:,.0f} a second to {slow:,.0f}); goal {GOAL:.0f} ×\n"
        f"memory that it takes: {grown / 2**20:.0f} MiB; goal {MEMORY_BYTES / 2**20:.0f} MiB\n"
    )
    return met


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start the server that is installed, with the allocator of those in production; without one, the embedded one."""
    program = shutil.which("redis-server")
    if program is None:
        with embedded.start(folder, extra=("maxmemory 0",)) as running:
            yield running.url
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port) as client:
            _until_there(client)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _until_there(client: Redis, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            client.ping()
        except RedisError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def seed(client: Redis, key: str, count: int) -> None:
    """Fill a list with letters as nodes write them, of two kilobytes each."""
    envelope = (Path(__file__).parent / "envelope.json").read_text().strip()
    traceback = "Traceback (most recent call last):\n" + textwrap.indent(
        'File "/srv/shop/tasks.py", line 12, in charge\n  gateway.charge(order)\n' * 10, "  "
    )
    for start in range(0, count, _PER_PUSH):
        client.lpush(key, *(_letter(n, envelope, traceback) for n in range(start, min(count, start + _PER_PUSH))))


def _letter(number: int, envelope: str, traceback: str) -> bytes:
    task_id, tag = ID.format(number), TAG.format(number)
    envelope = envelope.replace('"delivery_tag": "TASK_ID"', f'"delivery_tag": "{tag}"')
    return letters.write(
        letters.Letter(
            v=letters.VERSION,
            entry_id=f"{number:032x}",
            task_id=task_id,
            task_name="shop.charge",
            args="(1, 'eur')",
            kwargs="{}",
            exception=f"KeyError('card-{number}')",
            exc_type="KeyError",
            traceback=traceback,
            failed_at="2026-11-21T10:00:00+00:00",
            worker="w1@shop",
            queue=QUEUE,
            list_key=QUEUE,
            cause="raised",
            envelope=envelope.replace("TASK_ID", task_id).replace("TASK_NAME", "shop.charge"),
        )
    )


def _python(folder: str, code: str, *arguments: str) -> dict[str, float]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": folder, "OPS_REPORTS": f"{folder}/reports"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
