"""Groups and chords of real workers: their keys go once nothing of them can run, and not a moment before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from redis import Redis

from opslib.broker import connect
from opslib.collectors.remains import remains
from opslib.collectors.stored import stored
from opslib.plan import Outcome
from opslib.settings import Target
from opslib.symptoms import weekly_cleanup
from opslib.writer import apply
from tests.support.remains import DAY_S, aged
from tests.support.seed import KEYS
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment


def groups(redis: Redis) -> set[str]:
    """Return the groups of which a key is left."""
    names = (key.decode().removeprefix(KEYS.group("")) for key in redis.scan_iter(match=KEYS.group("*")))
    return {name.partition(".")[0] for name in names}


def cleaned(trial: Deployment) -> list[Outcome]:
    """Have every group look three days old, and clean."""
    for key in list(trial.redis.scan_iter(match=KEYS.group("*"))):
        aged(trial.redis, key.decode(), 3 * DAY_S)
    broker = connect(Target(name="trial", broker_url=trial.server.url))
    seen = remains(broker, stored(broker, weekly_cleanup.asked(broker), answer_within="5s"), answer_within="5s")
    plan = weekly_cleanup.plan(seen, weekly_cleanup.diagnose(seen), clean="groups")
    return list(apply(plan, broker, dry_run=False))


#: A producer of its own: what Celery returns for a chord asks for its result when it is collected, whenever that is.
_PRODUCER = """
import json, sys
from celery import Celery, chain, chord, group
app = Celery("producer", broker=sys.argv[1], backend=sys.argv[1])
task = lambda name: app.signature("tests." + name, immutable=True)
failed = chord([task("ok"), task("sleep")])(task("ok"))  # it lacks its argument
running = chord([task("ok"), task("hang")])(task("ok"))
chained = chord([chain(task("gate"), task("ok")), task("ok")])(task("ok"))
saved = group([task("ok"), task("ok")]).apply_async()
saved.save()
ids = {"failed": failed.parent.id, "running": running.parent.id, "chained": chained.parent.id, "saved": saved.id}
print(json.dumps([ids, failed.id, [each.id for each in saved]]))
"""


def started(url: str) -> tuple[dict[str, str], str, list[str]]:
    """
    Send a chord that fails, one that hangs, one with a chain in it, and a group that is saved.

    Returns:
        The ids of the four, that of the first one's body, and those of the last one's members.
    """
    done = subprocess.run([sys.executable, "-c", _PRODUCER, url], capture_output=True, check=True, timeout=60)
    ids, body, members = json.loads(done.stdout)
    return ids, body, members


def test_only_what_is_proven_to_be_over_goes(trial: Deployment, archive: Path) -> None:
    """While a task runs that could be anybody's member, of a chord that is not counted to its end nothing goes."""
    assert archive.is_dir()
    worker = trial.worker(name="w@groups", concurrency=3)
    of, body, members = started(trial.server.url)
    until(lambda: trial.state(body) == "FAILURE", DEADLINE_S, "the first chord has failed")
    trial.until_done(*members)
    until(lambda: trial.redis.zcard(f"{KEYS.group(of['running'])}.j") == 1, DEADLINE_S, "one of two has ended")
    until(lambda: trial.redis.zcard(f"{KEYS.group(of['chained'])}.j") == 1, DEADLINE_S, "one of two has ended")
    until(lambda: len(trial.unacked()) == 1, DEADLINE_S, "only the gate is not acknowledged")
    assert groups(trial.redis) == set(of.values())

    (outcome,) = cleaned(trial)

    assert outcome.reason.startswith("1 keys of groups were removed")
    assert "stay: it is not proven that every task of theirs is over" in outcome.reason
    assert groups(trial.redis) == {of["failed"], of["running"], of["chained"]}

    worker.kill()
    (outcome,) = cleaned(trial)

    assert groups(trial.redis) == {of["chained"]}  # its gate is unacknowledged, and will be delivered again
