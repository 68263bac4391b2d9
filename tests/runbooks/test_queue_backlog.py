"""queue-backlog on two thousand real messages of three priorities: it says why they wait, and moves what it is told."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, records, run
from opslib.errors import BadParameter, Exit
from opslib.keys import Keyspace
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.shop import contents
from tests.support.seed import envelope, iso
from tests.support.workers import Deployment

KEYS = Keyspace(prefix="shop:")
NODE = "orders@shop"
#: What waits in `orders`, by task and priority; 10 is none of Celery's, and lies in the list of 9.
ORDERS = {
    ("tests.ok", 0): 1100,
    ("tests.sleep", 0): 100,
    ("tests.sleep", 3): 500,
    ("tests.ok", 9): 248,
    ("tests.ok", 10): 40,
    ("tests.nowhere", 9): 12,
}
LOST = 30


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A deployment under a prefix, whose one node is busy, and an archive beside it."""

    redis: Redis
    folder: Path

    def run(self, **parameters: object) -> RunResult:
        """Run the notebook with a short look."""
        given = {"target": "shop", "window": "0.5s", **parameters}
        return run.run(catalog.find("queue-backlog"), given, target="shop", reason="too long")

    def contents(self) -> dict[bytes, object]:
        """Return every key but those that live workers touch all the time, under a prefix too."""
        restless = (b"unacked_mutex", b"_kombu.binding_deadlines")
        return {key: value for key, value in contents(self.redis).items() if not key.endswith(restless)}

    def lists(self) -> dict[str, list[bytes]]:
        """Return every list of a queue, newest message first."""
        names = [key for queue in ("orders", "lost", "overflow") for key in KEYS.queue_lists(queue)]
        return {key: found for key in names if (found := self.redis.lrange(key, 0, -1))}

    def ops(self, *words: str) -> command_line.Done:
        """Run a command."""
        return command_line.ops(*words, env=dict(os.environ), cwd=self.folder, timeout_s=90)


def task(raw: bytes) -> str:
    """Return the task of a message."""
    return str(json.loads(raw)["headers"]["task"])


@pytest.fixture(scope="module")
def shop(trial: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Two queues, one of them with a node whose only process is busy for as long as it takes."""
    trial.app.conf.broker_transport_options = {"ack_emulation": False, "global_keyprefix": KEYS.prefix}
    options = {"broker_transport_options": {"global_keyprefix": KEYS.prefix}, "worker_prefetch_multiplier": 1}
    trial.worker(name=NODE, queues="orders", conf=options)
    trial.until_running(trial.send("gate", queue="orders"))
    shuffled = [pair for pair, count in ORDERS.items() for _ in range(count)]
    random.Random(7).shuffle(shuffled)
    with trial.redis.pipeline(transaction=False) as pipe:
        for at, (name, priority) in enumerate(shuffled):
            expires = iso(-60) if at % 100 == 0 else None
            message = envelope(name, queue="orders", priority=priority, args=[at], expires=expires)
            pipe.lpush(KEYS.queue("orders", priority), json.dumps(message))
        for _ in range(LOST):
            pipe.lpush(KEYS.queue("lost"), json.dumps(envelope("tests.ok", queue="lost")))
        pipe.execute()
    folder = tmp_path_factory.mktemp("backlog")
    (folder / "ops.toml").write_text(
        f'[targets.shop]\nbroker_url = "env:SHOP_URL"\nglobal_keyprefix = "{KEYS.prefix}"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(command_line.environment()):
            patch.delenv(name)
        patch.setenv("SHOP_URL", trial.server.url)
        patch.setenv("OPS_REPORTS", str(folder / "reports"))
        patch.setattr(records, "_HAND", [])
        patch.chdir(folder)
        yield Shop(redis=trial.redis, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A run with the notebook's defaults, and what was there before and after it."""

    result: RunResult
    before: Mapping[bytes, object]
    after: Mapping[bytes, object]


@pytest.fixture(scope="module")
def looked(shop: Shop) -> Looked:
    """The dry run, which is the default."""
    before = shop.contents()
    result = shop.run()
    return Looked(result=result, before=before, after=shop.contents())


@pytest.fixture(scope="module")
def as_it_was(shop: Shop, looked: Looked) -> dict[str, list[bytes]]:
    """The lists before anything was changed."""
    assert looked.after == looked.before
    return shop.lists()


@pytest.fixture(scope="module")
def purged(shop: Shop, as_it_was: dict[str, list[bytes]]) -> RunResult:
    """One task's messages out of circulation."""
    assert as_it_was
    return shop.run(do="purge", queue="orders", task="tests.sleep", dry_run=False)


class TestLooking:
    """Nothing is asked for."""

    def test_it_says_why_messages_wait(self, looked: Looked) -> None:
        """Every code that is true of this deployment, and no other."""
        found = {(row["code"], row["subject"]): row for row in looked.result.record.findings}

        assert set(found) == {
            ("queue-backlog", "orders"),
            ("queue-backlog", "lost"),
            ("queue-without-consumer", "lost"),
            ("priority-inverted", "orders"),
            ("unregistered-task", "tests.nowhere"),
        }
        assert {found[key]["severity"] for key in found if "lost" in key} == {"critical"}
        assert found["unregistered-task", "tests.nowhere"]["severity"] == "critical"
        assert found["queue-backlog", "orders"]["severity"] == "attention"
        assert looked.result.exit_code == Exit.ATTENTION

    def test_its_figures_are_those_of_the_deployment(self, looked: Looked) -> None:
        """Depths, tasks, slots, what has expired, and which priority is none."""
        found = {(row["code"], row["subject"]): row["evidence"] for row in looked.result.record.findings}
        backlog = found["queue-backlog", "orders"]

        assert (backlog["depth"], backlog["expired"]) == (2000, 20)
        assert backlog["by_priority"] == {"0": 1200, "3": 500, "9": 300}
        assert backlog["tasks"] == {"tests.ok": 1388, "tests.sleep": 600, "tests.nowhere": 12}
        assert (backlog["consumers"], backlog["slots"]) == ([NODE], "1 of 1 busy")
        assert found["priority-inverted", "orders"]["odd_priorities"] == {"tests.ok at 10": 40}

    def test_nothing_is_planned_and_nothing_changes(self, looked: Looked) -> None:
        """A backlog alone asks for nothing."""
        assert looked.result.record.plan["actions"] == []
        assert looked.after == looked.before

    def test_the_report_has_both_pictures(self, looked: Looked) -> None:
        """Each as a picture with its sentence."""
        page = BeautifulSoup(looked.result.report.read_text(), "html.parser")
        alts = [picture["alt"] for picture in page.select("img[alt]")]

        assert [alt.partition(",")[0] for alt in alts] == ["Messages waiting", "What to expect within 1 h"]
        assert "orders 2,000 (0: 1,200, 3: 500, 9: 300; 1 consumer)" in alts[0]
        assert "orders (2,000 now): it stands still" in alts[1]
        assert archive.verify(looked.result.folder) == []


class TestPurging:
    """The messages of one task."""

    def test_only_these_leave_and_the_others_keep_their_order(
        self, shop: Shop, as_it_was: dict[str, list[bytes]], purged: RunResult
    ) -> None:
        """Byte for byte, list by list; and they are kept."""
        left = {key: [raw for raw in raws if task(raw) != "tests.sleep"] for key, raws in as_it_was.items()}
        kept = [raw for key in shop.redis.scan_iter("shop:opslib:run:*:q*") for raw in shop.redis.lrange(key, 0, -1)]

        assert shop.lists() == {key: raws for key, raws in left.items() if raws}
        assert sorted(kept) == sorted(r for raws in as_it_was.values() for r in raws if task(r) == "tests.sleep")
        assert [row["status"] for row in purged.record.outcomes] == ["applied"]

    def test_undo_puts_each_back_where_it_was(
        self, shop: Shop, as_it_was: dict[str, list[bytes]], purged: RunResult
    ) -> None:
        """Every byte, in its place."""
        done = shop.ops("undo", purged.record.run_id, "--apply", "--yes")

        assert done.code in {Exit.DONE, Exit.ATTENTION}, done.err
        assert shop.lists() == as_it_was


class TestMoving:
    """A queue into another, by the command line."""

    def test_its_messages_wait_in_the_other_in_their_order(
        self, shop: Shop, as_it_was: dict[str, list[bytes]], purged: RunResult
    ) -> None:
        """Behind those of their own priority; a plan that was shown is what is done."""
        assert purged
        words = "-p do=move -p queue=lost -p to=overflow -p window=0.5s --apply --yes"
        done = shop.ops("run", "queue-backlog", "--target", "shop", *words.split())

        moved = [json.loads(raw) for raw in shop.redis.lrange(KEYS.queue("overflow"), 0, -1)]
        ids = [json.loads(raw)["headers"]["id"] for raw in as_it_was[KEYS.queue("lost")]]
        assert done.code == Exit.ATTENTION, done.err
        assert [message["headers"]["id"] for message in moved] == ids
        assert {message["properties"]["delivery_info"]["routing_key"] for message in moved} == {"overflow"}
        assert not shop.redis.exists(KEYS.queue("lost"))

    def test_a_slip_of_the_finger_is_refused_with_the_nearest_name(self, shop: Shop) -> None:
        """Nothing is changed, and the sentence is the last word."""
        before = shop.lists()
        result = shop.run(do="purge", queue="order", dry_run=False)

        assert (result.exit_code, result.record.error["type"]) == (Exit.USAGE, BadParameter.__name__)
        assert "Did you mean orders?" in result.record.error["hint"]
        assert shop.lists() == before
