"""dlq-triage on a real deployment: it says what each group comes of, sends what it is told, and puts poison aside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from redis import Redis

from opslib import catalog, records, run
from opslib.errors import BadParameter, Exit
from opslib.keys import Keyspace
from opslib.letters import Letter, name_of
from opslib.render import archive
from opslib.run import RunResult
from tests import command_line
from tests.shop import contents
from tests.support import graveyard
from tests.support.graveyard import SECRET, bury, letter
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

KEYS = Keyspace(prefix="shop:")
NODE = "orders@shop"
MARKUP = "<script>alert(1)</script>"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A deployment under a prefix with one node, dead letters, and an archive beside it."""

    system: Deployment
    folder: Path
    buried: Mapping[str, list[Letter]]

    @property
    def redis(self) -> Redis:
        """A client of its server."""
        return self.system.redis

    def run(self, **parameters: object) -> RunResult:
        """Run the notebook with a short look."""
        given = {"target": "shop", "window": "0.3s", **parameters}
        return run.run(catalog.find("dlq-triage"), given, target="shop", reason="mended")

    def contents(self) -> dict[bytes, object]:
        """Return every key but those that live workers touch all the time, under a prefix too."""
        restless = (b"unacked_mutex", b"_kombu.binding_deadlines")
        return {key: value for key, value in contents(self.redis).items() if not key.endswith(restless)}

    def left(self, queue: str) -> list[str]:
        """Return the task ids of a list of dead letters, the oldest first."""
        return graveyard.left_ids(self.redis, queue, KEYS)

    def name(self, judgement: str) -> str:
        """Return the short name of a group's signature."""
        return name_of(self.buried[judgement][0].signature)


@pytest.fixture(scope="module")
def shop(trial: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Three groups in `orders`, which a node consumes, and one in `mail`, which nobody does."""
    trial.app.conf.broker_transport_options = {"ack_emulation": False, "global_keyprefix": KEYS.prefix}
    trial.worker(name=NODE, queues="orders", conf={"broker_transport_options": {"global_keyprefix": KEYS.prefix}})
    buried = {
        "transient": [letter("tests.ok", queue="orders", age_s=5400.0 - 20 * n) for n in range(120)],
        "permanent": [letter(MARKUP, queue="orders", age_s=900.0 - n, **graveyard.CODE) for n in range(3)],
        "poison": [letter("tests.ok", queue="mail", age_s=1800.0 - n, **graveyard.KILLED) for n in range(4)],
    }
    for of_one in buried.values():
        bury(trial.redis, *of_one, queue=of_one[0].queue, keys=KEYS)
    bury(trial.redis, *graveyard.odd().values(), queue="mail", keys=KEYS)
    folder = tmp_path_factory.mktemp("dead")
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
        yield Shop(system=trial, folder=folder, buried=buried)


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


class TestLooking:
    """Nothing is asked for."""

    def test_each_group_is_judged(self, shop: Shop, looked: Looked) -> None:
        """By its short name, with what it comes of; and what nobody can read is told."""
        found = {(row["code"], row["subject"]): row for row in looked.result.record.findings}

        assert set(found) == {
            ("dead-letters", shop.name("transient")),
            ("dead-letters", shop.name("permanent")),
            ("poison-task", shop.name("poison")),
            ("unreadable-letter", "mail.dead"),
        }
        judged = {row["evidence"]["judged"] for row in found.values() if "judged" in row["evidence"]}
        assert judged == {"transient", "permanent", "poison"}
        assert found["dead-letters", shop.name("transient")]["severity"] == "critical"
        assert found["dead-letters", shop.name("transient")]["evidence"]["lists"] == {"orders.dead": 120}
        assert looked.result.exit_code == Exit.ATTENTION

    def test_nothing_is_planned_and_nothing_changes(self, looked: Looked) -> None:
        """Whether a task runs again is for a person to say."""
        assert looked.result.record.plan["actions"] == []
        assert looked.after == looked.before

    def test_the_report_has_the_picture_and_no_argument(self, looked: Looked) -> None:
        """With its sentence; a task that is called like markup is a text."""
        html = looked.result.report.read_text()
        page = BeautifulSoup(html, "html.parser")
        (alt,) = [picture["alt"] for picture in page.select("img[alt]")]

        assert alt.startswith("Failures by signature, within the last")
        assert "120 letters, transient" in alt
        assert MARKUP not in html
        assert SECRET not in html
        assert archive.verify(looked.result.folder) == []

    def test_what_would_be_sent_is_counted(self, shop: Shop, looked: Looked) -> None:
        """And nothing is sent."""
        result = shop.run(do="redrive", signature=shop.name("transient"), limit=10)
        (action,) = result.record.plan["actions"]

        assert (action["kind"], action["subject"], action["destination"]) == ("redrive", "orders.dead", "orders")
        assert action["effect"] == "10 letters to orders."
        assert shop.contents() == looked.before

    def test_a_slip_of_the_finger_is_refused_with_the_nearest_name(self, shop: Shop, looked: Looked) -> None:
        """Nothing is changed, and the sentence is the last word."""
        name = shop.name("transient")
        result = shop.run(do="redrive", signature=f"{name[:-1]}{'0' if name[-1] != '0' else '1'}", dry_run=False)

        assert (result.exit_code, result.record.error["type"]) == (Exit.USAGE, BadParameter.__name__)
        assert f"Did you mean {name}?" in result.record.error["hint"]
        assert shop.contents() == looked.before


class TestActing:
    """What is told is done."""

    def test_poison_is_put_aside(self, shop: Shop, looked: Looked) -> None:
        """By how it died; what cannot be read stays."""
        assert looked
        result = shop.run(do="quarantine", cause="worker-lost", dry_run=False)
        kept = [raw for key in shop.redis.scan_iter("shop:opslib:run:*:q*") for raw in shop.redis.lrange(key, 0, -1)]

        assert [row["status"] for row in result.record.outcomes] == ["applied"], result.record.outcomes
        assert shop.left("mail") == []
        assert shop.redis.llen("shop:mail.dead") == len(graveyard.odd())
        assert len(kept) == 4

    def test_ten_of_a_group_are_sent_again_and_run(self, shop: Shop, looked: Looked) -> None:
        """The oldest first, under their own ids; the others stay."""
        assert looked
        oldest = [each.task_id for each in shop.buried["transient"][:10]]
        before = shop.left("orders")
        result = shop.run(do="redrive", signature=shop.name("transient"), limit=10, dry_run=False)

        assert [row["status"] for row in result.record.outcomes] == ["applied"], result.record.outcomes
        shop.system.until_done(*oldest)
        assert shop.left("orders") == [task_id for task_id in before if task_id not in oldest]

    def test_the_rest_of_a_group_goes(self, shop: Shop, looked: Looked) -> None:
        """By the command line; then the group is gone, and each ran once."""
        assert looked
        words = f"-p do=redrive -p signature={shop.name('transient')} -p window=0.3s --apply --yes"
        done = command_line.ops(
            "run", "dlq-triage", "--target", "shop", *words.split(), env=dict(os.environ), cwd=shop.folder, timeout_s=90
        )
        ids = [each.task_id for each in shop.buried["transient"]]

        assert done.code in {Exit.DONE, Exit.ATTENTION}, done.err
        assert set(shop.left("orders")) == {each.task_id for each in shop.buried["permanent"]}
        until(lambda: {shop.system.ran(task_id) for task_id in ids} == {1}, DEADLINE_S, "each ran once")
