"""A large broker and an operator who changes it → what that costs everybody else, measured from outside both."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from redis import Redis

from opslib import broker as brokers
from opslib import errors, folders, records, settings
from opslib import plan as plans
from opslib.demo import server
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply, lock, points, resume, undo

QUEUE = "celery"
#: What the seed calls its messages.
ID = "{:08d}-bbbb-4ccc-8ddd-eeeeeeeeeeee"
#: What a message of a queue by another priority has in common with it.
PRIORITY = "\x06\x16{}"
BLOCK_P99_MS, BLOCK_MAX_MS, PING_MS, MEMORY_BYTES = 5.0, 20.0, 2.0, 200 * 2**20
_NOTED_US = 100
_ATTEMPTS = 1_000

Seed = Callable[[str, int], None]
#: A figure's name, what it should be, what it is, and whether that is as it should be; None where nothing is promised.
Row = tuple[str, str, str, bool | None]


@dataclass(kw_only=True)
class Cost:
    """
    What one change cost.

    Attributes:
        told: What the operator's process says: seconds, memory, its run's id and what became of its actions.

        pings: Latencies in ms that a third process saw meanwhile, by their name.

        scripts: Durations in ms of the slower of our scripts on the server, the slowest first.

        calls: How many scripts there were.

        slowest: Duration in ms and name of the slowest command that is no script.
    """

    told: dict[str, Any]
    pings: dict[str, float]
    scripts: list[float]
    calls: int
    slowest: tuple[float, str]

    @property
    def p99(self) -> float:
        """Of the scripts' durations."""
        at = self.calls // 100
        return self.scripts[at] if at < len(self.scripts) else _NOTED_US / 1000

    @property
    def longest(self) -> float:
        """The longest single stop of the server."""
        return max([*self.scripts[:1], self.slowest[0]])


@dataclass(kw_only=True)
class Bench:
    """A server, and an archive for what is done to it."""

    url: str
    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {**os.environ, "OPS_BROKER_URL": self.url, "OPS_REPORTS": str(self.folder / "reports")}
        self.environment.pop(records.RUN_ENV, None)

    def cost(self, *order: str) -> Cost:
        """Have an operator do something, and watch the server meanwhile."""
        with self.client() as client:
            client.config_set("slowlog-log-slower-than", _NOTED_US)
            client.config_set("slowlog-max-len", 1_000_000)
            client.config_resetstat()
            client.slowlog_reset()
            with self.pinged() as pings:
                told = json.loads(self.operator(*order).communicate()[0])
            noted = client.slowlog_get(1_000_000)
            calls = client.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)
        times = [(each["duration"] / 1000, each["command"].split(b" ")[0].decode()) for each in noted]
        scripts = sorted((took for took, name in times if name.upper() == "EVAL"), reverse=True)
        others = [each for each in times if each[1].upper() not in {"EVAL", "CONFIG", "SLOWLOG", "INFO"}]
        return Cost(told=told, pings=pings, scripts=scripts, calls=calls, slowest=max(others, default=(0.0, "")))

    def operator(self, *order: str) -> subprocess.Popen[str]:
        """Start an operator's process."""
        command = [sys.executable, __file__, *order]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)

    @contextmanager
    def pinged(self) -> Iterator[dict[str, float]]:
        """Have a process send a PING every millisecond for the time of a `with` block; its latencies are there then."""
        command = [sys.executable, __file__, "ping"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, env=self.environment, text=True, **pipes)
        found: dict[str, float] = {}
        process.stdout.readline()
        yield found
        found |= json.loads(process.communicate("")[0])

    def client(self) -> Redis:
        """Return a client that waits."""
        return Redis.from_url(self.url, socket_timeout=120)

    def digest(self) -> str:
        """Return the sha256 of all that is in the queue's lists, in their order."""
        found = sha256()
        with self.client() as client:
            for key in sorted(client.keys(f"{QUEUE}*")):
                found.update(b"%b %d\n" % (key, client.llen(key)))
                for start in range(0, client.llen(key), 1_000):
                    found.update(b"\n".join(client.lrange(key, start, start + 999)))
        return found.hexdigest()


def rows(seed: Seed, messages: int) -> Iterator[Row]:
    """Yield each figure."""
    with _bench(seed, messages) as bench:
        with bench.pinged() as idle:
            time.sleep(3)
        yield f"PING of an idle server with {messages:,} messages, p95 / p99 / max", "", _pings(idle), None
        for name, *order in (
            (f"purge of {messages:,}", "purge"),
            ("move of 1,000", "move", "1000"),
            (f"stop of 1,000 tasks among {messages:,} (sieve)", "stop", "1000"),
        ):
            before = bench.digest()
            cost = bench.cost(*order)
            yield from _costs(name, cost, idle, messages if order[0] == "stop" else 0)
            yield from _costs(f"undo of the {name}", bench.cost("undo", cost.told["run_id"]), idle)
            yield f"... every byte where it was, after the {name} and its undo", "yes", *_yes(bench.digest() == before)
        yield from _interrupted(bench)
    with _bench(seed, 100_000) as bench:
        yield from _with_priorities(bench)
        yield from _second_operator(bench)
    with _bench(seed, 2_000) as bench:
        cost = bench.cost("quarantine", "2000")
        rate = 2_000 / cost.told["took_s"]
        yield "messages/s into quarantine, one by one by their bytes", "≥ 500", f"{rate:,.0f}", rate >= 500
    with _bench(seed, 5_000) as bench:
        yield from _killed(bench)


def _costs(name: str, cost: Cost, idle: dict[str, float], messages: int = 0) -> Iterator[Row]:
    what = f"p99 {cost.p99:.1f}, max {cost.longest:.1f} ms ({cost.calls:,} scripts"
    what += f"; slowest other {cost.slowest[1]} {cost.slowest[0]:.1f})"
    limit = f"p99 ≤ {BLOCK_P99_MS:.0f}, max ≤ {BLOCK_MAX_MS:.0f} ms"
    yield f"{name}: longest stop of the server", limit, what, cost.p99 <= BLOCK_P99_MS and cost.longest <= BLOCK_MAX_MS
    added = cost.pings["p95"] - idle["p95"]
    yield (
        "... PING meanwhile, added p95",
        f"≤ {PING_MS:.0f} ms",
        f"{added:.2f} ms ({_pings(cost.pings)})",
        added <= PING_MS,
    )
    peak = cost.told["peak_bytes"]
    yield "... memory of the operator", f"≤ {MEMORY_BYTES >> 20} MiB", f"{peak >> 20} MiB", peak <= MEMORY_BYTES
    rate = f", {messages / cost.told['took_s']:,.0f} messages/s" if messages else ""
    yield "... seconds, and what became of it", "", f"{cost.told['took_s']:.1f} s{rate}; {cost.told['became']}", None


def _interrupted(bench: Bench) -> Iterator[Row]:
    """Ctrl-C in the middle of a sieve, and then what it had set aside is put back."""
    before = _batches(bench)
    process = bench.operator("stop", "1000")
    _until(lambda: _batches(bench) > before + 50)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = json.loads(process.communicate()[0])
    after = [at for at in told["scripts_at"] if at > sent]
    took = max([told["ended_at"], *after]) - sent
    yield "SIGINT: batches that still ended", "≤ 1", f"{len(after)}", len(after) <= 1
    yield "SIGINT: until the lock is free", "≤ 250 ms", f"{took * 1000:.0f} ms", took <= 0.25
    back = bench.cost("undo", told["run_id"])
    yield "... undo of what was interrupted", "", f"{back.told['took_s']:.1f} s; {back.told['became']}", None


def _with_priorities(bench: Bench) -> Iterator[Row]:
    with bench.client() as client:
        for step in (3, 6, 9):
            for _ in range(10_000):
                client.lmove(QUEUE, QUEUE + PRIORITY.format(step), "RIGHT", "LEFT")
    before = bench.digest()
    purge = bench.cost("purge")
    back = bench.cost("undo", purge.told["run_id"])
    name = "purge of 100,000 with four priorities, and its undo"
    yield f"{name}: every byte where it was", "yes", *_yes(bench.digest() == before)
    yield "... seconds", "", f"{purge.told['took_s']:.2f} + {back.told['took_s']:.2f} s", None


def _second_operator(bench: Bench) -> Iterator[Row]:
    target = settings.Target(name="bench", broker_url=bench.url)
    holder = brokers.connect(target)

    def attempt(broker: brokers.Broker) -> bool:
        try:
            with lock.held(broker, run_id="20261121T030000Z-second-000000", plan_digest="d"):
                return False
        except errors.LockHeld as refusal:
            return "20261121T030000Z-first-000000" in str(refusal)

    with lock.held(holder, run_id="20261121T030000Z-first-000000", plan_digest="d"), ThreadPoolExecutor(20) as pool:
        others = [brokers.connect(target) for _ in range(20)]
        refused = sum(pool.map(attempt, [others[n % 20] for n in range(_ATTEMPTS)]))
    wanted = f"{_ATTEMPTS:,} of {_ATTEMPTS:,}"
    yield (
        "second operator refused, and told who is first",
        wanted,
        f"{refused:,} of {_ATTEMPTS:,}",
        refused == _ATTEMPTS,
    )


def _killed(bench: Bench) -> Iterator[Row]:
    """SIGKILL in the middle of a quarantine; its lock is taken by its id, then it is gone on with by its run's id."""
    process = bench.operator("quarantine", "5000")
    _until(lambda: _batches(bench) > 10)
    process.kill()
    process.wait()
    broker = brokers.connect(settings.Target(name="bench", broker_url=bench.url))
    held = lock.look(broker)
    os.environ["OPS_REPORTS"] = bench.environment["OPS_REPORTS"]
    lock.unlock(broker, held.lock_id, "killed by the bench", though_connected=True)
    began = time.monotonic()
    told = json.loads(bench.operator("resume", held.run).communicate()[0])
    first = told["scripts_at"][0] - began
    yield "resume after SIGKILL: until its first batch", "≤ 3 s", f"{first:.2f} s", first <= 3
    yield "... until all is done", "", f"{told['ended_at'] - began:.2f} s; {told['became']}", None


def _batches(bench: Bench) -> int:
    with bench.client() as client:
        return client.xinfo_stream("opslib:audit")["entries-added"] if client.exists("opslib:audit") else 0


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("It did not begin.")
        time.sleep(0.01)


def _yes(is_so: bool) -> tuple[str, bool]:  # noqa: FBT001 - there is nothing else to say
    return "yes" if is_so else "NO", is_so


def _pings(found: dict[str, float]) -> str:
    return f"{found['p95']:.2f} / {found['p99']:.2f} / {found['max']:.1f} ms"


@contextmanager
def _bench(seed: Seed, messages: int) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder, server.start(Path(folder), extra=("maxmemory 0",)) as running:
        seed(running.url, messages)
        (Path(folder) / "reports").mkdir(mode=0o700)
        yield Bench(url=running.url, folder=Path(folder))


# In a process of its own


def ping() -> None:
    """Send a PING every millisecond until nobody listens any more; tell the latencies in ms."""
    took: list[float] = []
    with Redis.from_url(os.environ["OPS_BROKER_URL"], socket_timeout=None) as client:
        client.ping()
        print(flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            began = time.perf_counter()
            client.ping()
            took.append((time.perf_counter() - began) * 1000)
            time.sleep(0.001)
    took.sort()
    found = {f"p{n}": took[min(len(took) - 1, len(took) * n // 100)] for n in (50, 95, 99)}
    print(json.dumps({**found, "max": took[-1]}))


def operate(verb: str, *options: str) -> None:
    """Make a plan and carry it out, as a command does; tell what it took."""
    scripts_at: list[float] = []
    points.watchers.append(lambda name: scripts_at.append(time.monotonic()) if name == "after-script" else None)
    broker = brokers.connect()
    context = records.context()
    plan = _PLANS[verb](broker, *options)
    began, became = time.monotonic(), "interrupted"
    try:
        outcomes = apply(plan, broker, dry_run=False)
        statuses = [str(outcome.status) for outcome in outcomes]
        became = ", ".join(f"{statuses.count(each)} {each}" for each in sorted(set(statuses)))
    except KeyboardInterrupt:
        pass
    ended = time.monotonic()
    memory = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    told = {"run_id": context.run_id, "took_s": ended - began, "became": became, "scripts_at": scripts_at}
    print(json.dumps({**told, "ended_at": ended, "peak_bytes": int(memory.split()[1]) * 1024}))


def _plan(broker: brokers.Broker, actions: Sequence[Action]) -> plans.Plan:
    most, made_at = len(actions), broker.server_time()
    return plans.make(broker.target.name, broker.fingerprint, actions, max_actions=most, made_at=made_at)


def _purge(broker: brokers.Broker) -> plans.Plan:
    lengths = {key: broker.reads.llen(key) for key in broker.keys.queue_lists(QUEUE)}
    copies = tuple(Copy(place="list", key=key, queue=QUEUE, count=length) for key, length in lengths.items() if length)
    return _plan(
        broker, [Action(kind=Kind.PURGE, subject=QUEUE, source=QUEUE, destination="quarantine", copies=copies)]
    )


def _singles(broker: brokers.Broker, kind: Kind, destination: str, number: str) -> plans.Plan:
    """Of messages that lie evenly in the whole queue."""
    length, actions = broker.reads.llen(QUEUE), []
    for n in range(int(number)):
        raw = broker.reads.lindex(QUEUE, n * length // int(number))
        copy = Copy(place="waiting", key=QUEUE, queue=QUEUE, sha256=sha256(raw).hexdigest())
        task_id = json.loads(raw)["headers"]["id"]
        actions.append(Action(kind=kind, subject=task_id, source=QUEUE, destination=destination, copies=(copy,)))
    return _plan(broker, actions)


def _stop(broker: brokers.Broker, number: str) -> plans.Plan:
    length = broker.reads.llen(QUEUE)
    ids = [ID.format(n * length // int(number)) for n in range(int(number))]
    return _plan(broker, [Action(kind=Kind.STOP, subject=each, source=QUEUE, destination="quarantine") for each in ids])


def _resume(broker: brokers.Broker, run_id: str) -> plans.Plan:
    path = folders.folder(settings.reports_root(), run_id) / folders.PLAN
    return resume.remaining(plans.read(path.read_bytes()), broker, run_id)


_PLANS: dict[str, Callable[..., plans.Plan]] = {
    "purge": _purge,
    "move": lambda broker, number: _singles(broker, Kind.MOVE, "slow", number),
    "quarantine": lambda broker, number: _singles(broker, Kind.QUARANTINE, "quarantine", number),
    "stop": _stop,
    "undo": undo.plan,
    "resume": _resume,
}

if __name__ == "__main__":
    ping() if sys.argv[1] == "ping" else operate(*sys.argv[1:])
