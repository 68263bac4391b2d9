"""A million stored results, counted and aged → what that takes against a bare SCAN, and what others notice of it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from redis import Redis
from redrive import server

RATIO_GOAL, MEMORY_BYTES, PING_GOAL = 3.0, 32 * 2**20, 2.0
_PER_PUSH, _TASKS, _DAYS = 2_000, 7, 40
#: Others are asked for so much of the time that a count takes: no PING after its end tells of it.
_AMID = 0.8

#: The floor for finding keys at all: nothing is read of them.
SCAN = """
import json, sys, time
from redis import Redis
client = Redis.from_url(sys.argv[1])
client.ping()
began, cursor, seen = time.perf_counter(), 0, 0
while True:
    cursor, names = client.scan(cursor, count=1000)
    seen += len(names)
    if not cursor:
        break
print(json.dumps({"seen": seen, "took_s": time.perf_counter() - began}))
"""

#: What `ops results stats` does once it is connected.
OURS = """
import gc, json, sys, time
from opslib import broker as brokers, cli, retention, settings
from opslib.collectors.stored import stored
gc.set_threshold(*cli.SELDOM)
broker = brokers.connect(settings.Target(name="bench", broker_url=sys.argv[1]))
rules = retention.read({"shop.*": "24h"})
print("ready", flush=True)
def memory(name):  # not rusage: a child inherits its parent's peak there
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
before = memory("VmRSS")
began = time.perf_counter()
seen = stored(broker, rules, only_count=True)
took_s = time.perf_counter() - began
print(json.dumps({
    "seen": seen.count, "took_s": took_s, "before_bytes": before, "peak_bytes": memory("VmHWM"),
    "past": sum(row.count for row in seen.groups if row.standing == "past"),
    "lasting": sum(row.count for row in seen.groups if row.lasting),
}))
"""

#: The plainest reading of the same that is correct: steps that others bear well, a pipeline for each, one at a time.
PLAIN = """
import json, sys
from redis import Redis
client = Redis.from_url(sys.argv[1])
client.ping()
print("ready", flush=True)
cursor, counts = None, {}
while cursor != 0:
    cursor, names = client.scan(cursor or 0, count=100)
    with client.pipeline(transaction=False) as pipe:
        pipe.mget(names)
        for name in names:
            pipe.pttl(name)
        values, *lives = pipe.execute()
    for value, life in zip(values, lives):
        found = json.loads(value)
        of = (found["status"], found["name"], found["date_done"][:10], life == -1)
        counts[of] = counts.get(of, 0) + 1
"""

#: A process that keeps a core busy and never asks the server anything; two of them are what a machine of two cores
#: costs others by itself while a server and whoever reads it are busy.
BURN = """
print("ready", flush=True)
while True:
    pass
"""

#: Another client, with one PING each half millisecond.
PROBE = """
import json, socket, sys, time
host, port, password = sys.argv[1], int(sys.argv[2]), sys.argv[3]
line = socket.create_connection((host, port))
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if password:
    line.sendall(b"*2\\r\\n$4\\r\\nAUTH\\r\\n$%d\\r\\n%b\\r\\n" % (len(password), password.encode()))
    line.recv(64)
print("ready", flush=True)
took, until = [], time.perf_counter() + float(sys.argv[4])
while time.perf_counter() < until:
    began = time.perf_counter()
    line.sendall(b"PING\\r\\n")
    line.recv(64)
    took.append((time.perf_counter() - began) * 1000)
    time.sleep(0.0005)
took.sort()
print(json.dumps({"p99_ms": took[int(len(took) * 0.99)], "max_ms": took[-1], "pings": len(took)}))
"""


def measure(count: int, rounds: int) -> bool:
    """Print what a count of so many results costs beside a bare SCAN, and whether that is as it should be."""
    ratios, grown = [], 0
    pings: dict[tuple[str, ...], list[float]] = {(OURS,): [], (PLAIN,): [], (BURN, BURN): [], (BURN,): []}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as url:
        _seed(url, count)
        for _ in range(rounds):
            floor = _python(SCAN, url)
            ours = _python(OURS, url)
            assert floor["seen"] == ours["seen"] == count, (floor, ours)
            assert (ours["lasting"], ours["past"] > count // 2) == (count // 4, True), ours
            ratios.append(ours["took_s"] / floor["took_s"])
            grown = max(grown, ours["peak_bytes"] - ours["before_bytes"])
            for programs, found in pings.items():
                found.append(_pinged(url, programs, ours["took_s"] * _AMID))
    ratio = statistics.median(ratios)
    ping, plain, both, one = (statistics.median(found) for found in pings.values())
    sys.stdout.write(
        f"{count:,} results counted: {ratio:.2f} x a bare SCAN (from {min(ratios):.2f} to {max(ratios):.2f}); "
        f"at most {RATIO_GOAL}\n"
        f"memory {grown / 2**20:.1f} MiB more than before; at most {MEMORY_BYTES / 2**20:.0f}\n"
        f"PING of others: p99 {ping:.2f} ms, with as many busy cores and no reading {both:.2f}; at most {PING_GOAL} x\n"
        f"  while the plainest client reads the same {plain:.2f}; with one busy core alone {one:.2f}\n"
    )
    return ratio <= RATIO_GOAL and grown <= MEMORY_BYTES and ping <= PING_GOAL * both


def _seed(url: str, count: int) -> None:
    now = datetime.now(UTC)
    with Redis.from_url(url) as client, client.pipeline(transaction=False) as pipe:
        for n in range(count):
            done = now - timedelta(seconds=n % (_DAYS * 86_400))
            task_id = f"{n:08x}-0000-4000-8000-{n:012x}"
            value = {"status": "SUCCESS" if n % 10 else "FAILURE", "result": n, "traceback": None, "children": []}
            value |= {"date_done": done.isoformat(), "name": f"shop.task{n % _TASKS}", "args": [n], "kwargs": {}}
            value |= {"worker": "w@bench", "retries": 0, "queue": "celery", "task_id": task_id}
            pipe.set(f"celery-task-meta-{task_id}", json.dumps(value), ex=86_400 if n % 4 else None)
            if n % _PER_PUSH == _PER_PUSH - 1:
                pipe.execute()
        pipe.execute()


def _pinged(url: str, programs: Sequence[str], for_s: float) -> float:
    """Return the p99 in ms of another client's PINGs while programs run, which are ended then."""
    with Redis.from_url(url) as client:
        options = client.connection_pool.connection_kwargs
    address = (str(options["host"]), str(options["port"]), str(options.get("password") or ""))
    with ExitStack() as stack:
        for program in programs:
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE))
            stack.callback(busy.kill)
            assert busy.stdout
            busy.stdout.readline()
        probe = subprocess.run([sys.executable, "-c", PROBE, *address, str(for_s)], check=True, capture_output=True)
    return float(json.loads(probe.stdout.splitlines()[-1])["p99_ms"])


def _python(program: str, url: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", program, url], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
