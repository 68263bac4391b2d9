"""A million rows of a task table, most of them closed → what it takes to look for the task of every open one."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from redis import Redis
from redrive import server

#: As many open rows as in an old incident, in two groups, and a table of a million around them.
FIRST, SECOND, ALL = 66_597, 63_090, 1_000_000
RATIO_GOAL, MEMORY_BYTES = 4.0, 64 * 2**20
_WAITING = 20_000

#: The floor: the same rows, a page at a time by their keys, and the head of each one's result; nothing is judged.
PLAIN = """
import json, sys, time
import sqlalchemy as sa
from redis import Redis
began = time.perf_counter()
client, engine = Redis.from_url(sys.argv[1]), sa.create_engine(sys.argv[2], poolclass=sa.NullPool)
ask = sa.text("SELECT id, task_id, task_module, task_name, status, last_run FROM task_manager_taskmanager"
              " WHERE status = 'SCHEDULED' AND id > :after ORDER BY id LIMIT 2000")
after, seen = 0, 0
while True:
    with engine.connect() as connection:
        rows = connection.execute(ask, {"after": after}).all()
    if not rows:
        break
    with client.pipeline(transaction=False) as pipe:
        for row in rows:
            pipe.getrange(f"celery-task-meta-{row.task_id}", 0, 95)
        pipe.execute()
    after, seen = rows[-1].id, seen + len(rows)
print(json.dumps({"seen": seen, "took_s": time.perf_counter() - began}))
"""

OURS = """
import gc, json, sys, time
from opslib import broker as brokers, cli, settings, task_tables
from opslib.collectors.reconciling import reconcile
from opslib.symptoms import reconcile_tasks
gc.set_threshold(*cli.SELDOM)
def memory(name):  # not rusage: a child inherits its parent's peak there
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
table = task_tables.resolved("tasks", task_tables.TaskTable(preset="task-manager"), "tasks")
target = settings.Target(name="bench", broker_url=sys.argv[1], database_url=sys.argv[2], task_tables={"tasks": table})
broker = brokers.connect(target)
import sqlalchemy, psycopg, opslib.collectors
before, began = memory("VmRSS"), time.perf_counter()
seen = reconcile(broker, hours=24.0)
took_s = time.perf_counter() - began
classes = reconcile_tasks.classify(seen, reconcile_tasks.Thresholds())
print(json.dumps({
    "seen": seen.rows, "took_s": took_s, "before_bytes": before, "peak_bytes": memory("VmHWM"),
    "ended": classes.count("finished but open"), "waiting": classes.count("still on its way"),
}))
"""


def measure(rounds: int) -> bool:
    """Print what it takes, against a plain reading of the same rows and results, and whether that is as it should."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support import postgres, tables

    ratios, times, grown = [], [], 0
    opened = FIRST + SECOND
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder)) as url,
        postgres.start() as running,
        running.database() as table,
    ):
        tables.make(table)
        tables.fill(table, FIRST, names=["execute_signal"], modules=["orders.signals"], youngest_s=90_000)
        tables.fill(table, SECOND, first=FIRST + 1, names=["deliver_hook"], youngest_s=90_000)
        tables.fill(table, ALL - opened, first=opened + 1, statuses=["DONE", "DONE", "ERROR"])
        with tables.connected(table) as connection:
            connection.execute(sa.text("ANALYZE"))  # as a database does by itself, soon after
        ended = _seed(url, opened)
        for _ in range(rounds):
            floor, ours = _python(PLAIN, url, table), _python(OURS, url, table)
            assert floor["seen"] == ours["seen"] == opened, (floor, ours)
            assert (ours["ended"], ours["waiting"]) == (ended, _WAITING), ours
            ratios.append(ours["took_s"] / floor["took_s"])
            times.append(ours["took_s"])
            grown = max(grown, int(ours["peak_bytes"] - ours["before_bytes"]))
    ratio, took_s = statistics.median(ratios), statistics.median(times)
    sys.stdout.write(f"{opened:,} open rows of {ALL:,} looked for: {took_s:.1f} s, {opened / took_s:,.0f} a second\n")
    sys.stdout.write(f"that is {ratio:.2f} x a plain reading of rows and results; at most {RATIO_GOAL}\n")
    sys.stdout.write(f"memory {grown / 2**20:.1f} MiB more than before; at most {MEMORY_BYTES / 2**20:.0f}\n")
    return ratio <= RATIO_GOAL and grown <= MEMORY_BYTES


def _seed(url: str, opened: int) -> int:
    """Store results of a third of the tasks, and let others wait; return how many have a result."""
    from tests.support import tables
    from tests.support.seed import envelope

    value = json.dumps({"status": "SUCCESS", "result": None, "traceback": None, "children": []})
    with Redis.from_url(url) as client, client.pipeline(transaction=False) as pipe:
        for n in range(1, opened + 1):
            if n % 3 == 0:
                pipe.set(f"celery-task-meta-{tables.task_id(n)}", value)
            elif n % 3 == 1 and n // 3 < _WAITING:
                pipe.lpush("celery", json.dumps(envelope("orders.tasks.ship", task_id=tables.task_id(n))))
            if n % 2_000 == 0:
                pipe.execute()
        pipe.execute()
    return opened // 3


def _python(program: str, *arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
