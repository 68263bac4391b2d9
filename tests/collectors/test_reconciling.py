"""The task of every open row, looked for in a real broker: what is claimed of it, and of what nothing is claimed."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from math import inf

import msgspec
import pytest
import sqlalchemy as sa

from opslib import progress
from opslib.broker import connect
from opslib.collectors import care, circulation, horizon, mentions, reconciling, results, task_rows
from opslib.collectors.circulation import Circulation
from opslib.collectors.find import find
from opslib.collectors.horizon import Horizon
from opslib.collectors.marks import Marks
from opslib.errors import BadParameter, DatabaseUnreachable, SettingsError
from opslib.facts.rows import (
    BEGUN,
    BEYOND,
    DEAD,
    ENDED,
    NAMELESS,
    NOWHERE,
    OTHERS,
    QUARANTINED,
    UNACKED,
    UNSEEN,
    WAITING,
)
from opslib.facts.system import Coverage
from opslib.findings import Severity
from opslib.render import whereabouts
from opslib.symptoms import health_check, overview, reconcile_tasks
from opslib.task_tables import TaskTable, Verifier, resolved
from tests.support import tables
from tests.support.seed import KEYS, envelope, seed_result, seed_unacked, seed_waiting

DAY_S = 86400.0
NOW = 1_800_000_000.0
#: Older than rows have to be.
OLD_S = 90_000
#: What nodes say of a deployment in which a missing result proves something.
SURE = Horizon(
    answered=1,
    expires_s=inf,
    backends=("Redis database 0",),
    ignored={"orders.tasks.ship": False},
    since_at=-inf,
    lost_by="",
    now=NOW,
    here=frozenset({"Redis database 0"}),
)
LIMITS = reconcile_tasks.Thresholds()


@pytest.fixture
def shop(broker, redis, tmp_path):
    """A broker, and the application's table in a file beside it."""
    url = tables.sqlite(tmp_path / "shop.db")
    tables.make(url)

    def seen(*rows, says=None, mapped=None, **asked):
        tables.add(url, [{"status": "SCHEDULED", "last_run": tables.at(30 * 3600), **row} for row in rows])
        table = resolved("tasks", mapped or TaskTable(preset="task-manager", **(says or {})), "tasks")
        target = msgspec.structs.replace(broker.target, database_url=url, task_tables={"tasks": table})
        return reconciling.reconcile(connect(target), **asked)

    seen.url, seen.redis = url, redis
    return seen


@pytest.fixture
def sure(monkeypatch):
    """Have nodes say that results are kept for ever."""
    monkeypatch.setattr(horizon, "read", lambda *_, **__: (SURE, Coverage(place="settings", seen=1)))


def sightings(seen):
    """Return how many rows were met where."""
    found = Counter()
    for row in seen.counts:
        found[row.sighting] += row.count
    return dict(found)


def _link(task_id):
    """Return a later task of a chain, as its first message has it."""
    return {"task": "tests.second", "args": [], "options": {"task_id": task_id}}


@pytest.mark.usefixtures("sure")
class TestLooking:
    """Each place is looked into, and the first that says something of a task decides."""

    def test_each_place_is_looked_into(self, shop, redis):
        """Waiting in any priority, unacknowledged, ended, begun, dead, in quarantine; and nowhere."""
        wanted = {
            WAITING: [seed_waiting(redis).task_id, seed_waiting(redis, priority=6).task_id],
            UNACKED: [seed_unacked(redis).task_id],
            ENDED: [seed_result(redis, "SUCCESS"), seed_result(redis, "FAILURE"), seed_result(redis, "REVOKED")],
            BEGUN: [seed_result(redis, "STARTED")],
            DEAD: ["dead-1"],
            QUARANTINED: ["aside-1"],
            NOWHERE: [tables.task_id(1)],
        }
        redis.lpush(KEYS.dead_list("celery"), json.dumps({"task_id": "dead-1", "task_name": "x", "exception": "boom"}))
        run = "20261121T021500Z-stuck-tasks-7f3a9c"
        redis.lpush(KEYS.quarantine(run, "celery"), json.dumps(envelope(task_id="aside-1")))

        seen = shop(*({"task_id": each} for some in wanted.values() for each in some))

        assert sightings(seen) == {place: len(some) for place, some in wanted.items()}

    def test_a_task_that_runs_again_has_not_ended(self, shop, redis):
        """Its result is of before."""
        task_id = seed_result(redis, "FAILURE")
        seed_waiting(redis, task_id=task_id)

        assert sightings(shop({"task_id": task_id})) == {WAITING: 1}

    def test_what_cannot_be_decoded_could_be_any_task(self, shop, redis):
        """So of nothing that was not found it is said that it is lost."""
        seed_waiting(redis)
        redis.lpush("celery", b"\x80\x04 no message")

        seen = shop({"task_id": tables.task_id(1)})

        assert sightings(seen) == {UNSEEN: 1}
        (finding,) = [each for each in reconcile_tasks.diagnose(seen, LIMITS) if each.code.startswith("table-")]
        assert finding.severity is Severity.UNKNOWN
        assert "cannot be decoded" in finding.message

    def test_one_of_many_that_cannot_be_decoded_is_of_the_task_that_it_names(self, shop, redis):
        """No node could run it; of a task that it does not name it says nothing, so that it may be lost."""
        for _ in range(3):
            seed_waiting(redis)
        damaged = json.dumps(envelope(task_id=tables.task_id(1)))[:-1]
        redis.lpush("celery", damaged, "SKU-4711;an-id-of-old;stock=12")

        seen = shop(*({"task_id": each} for each in (tables.task_id(1), "an-id-of-old", tables.task_id(2), "4712")))

        assert sightings(seen) == {UNSEEN: 2, NOWHERE: 2}
        assert {row.why for row in seen.counts if row.why} == {"A message that cannot be decoded names it."}

    def test_a_task_of_a_chain_is_not_lost_before_its_turn(self, shop, redis):
        """It is in no message of its own yet, but in that of the one before it."""
        message = envelope("tests.first")
        after = {"chain": [_link(tables.task_id(1)), _link("order-17")]}
        message["body"] = base64.b64encode(json.dumps([[], {}, after]).encode()).decode()
        redis.lpush("celery", json.dumps(message))

        seen = shop(*({"task_id": each} for each in (tables.task_id(1), "order-17", tables.task_id(2))))

        assert sightings(seen) == {UNSEEN: 2, NOWHERE: 1}
        assert "may be sent once that has run" in next(row.why for row in seen.counts if row.sighting == UNSEEN)

    def test_one_id_is_found_however_it_is_spelled(self, shop, redis):
        """Some databases keep a UUID without its dashes, some in capitals."""
        ids = [seed_waiting(redis).task_id, seed_result(redis, "SUCCESS")]

        seen = shop({"task_id": ids[0].replace("-", "")}, {"task_id": ids[1].upper()})

        assert sightings(seen) == {WAITING: 1, ENDED: 1}

    def test_ids_that_are_none_are_looked_for_as_they_are(self, shop, redis):
        """A path, markup, a very long one; and none at all."""
        odd = ["../../etc/passwd", "<script>alert(1)</script>", "x" * 36, "%s %(a)s", "';DROP TABLE--"]
        seed_result(redis, "SUCCESS", task_id=odd[1])

        seen = shop(*({"task_id": each} for each in [*odd, None, "", "  "]))

        assert sightings(seen) == {ENDED: 1, NOWHERE: 4, NAMELESS: 3}

    def test_rows_that_are_young_or_closed_are_left_out(self, shop):
        """By the threshold; and one that does not say when it was run is looked into."""
        young = {"task_id": "a", "last_run": tables.at(3600)}
        seen = shop(young, {"task_id": "b", "status": "DONE"}, {"task_id": "c", "last_run": None}, hours=24)

        assert seen.rows == 1
        assert {row.status: row.count for row in seen.statuses} == {"SCHEDULED": 2, "DONE": 1}

    def test_a_row_that_is_closed_meanwhile_is_not_met(self, shop, monkeypatch):
        """The rows are read last."""

        def closing(*given, **asked):
            with tables.connected(shop.url) as connection:
                connection.execute(sa.update(tables.task_manager).values(status="DONE"))
            return everywhere(*given, **asked)

        everywhere = reconciling._everywhere
        monkeypatch.setattr(reconciling, "_everywhere", closing)

        assert shop({"task_id": tables.task_id(1)}).rows == 0

    def test_names_without_number_stay_bounded(self, shop):
        """Ten thousand tasks: a thousand are told apart, and a few have a finding of their own."""
        tables.fill(shop.url, 10_000, names=[f"task{n}" for n in range(10_000)], youngest_s=OLD_S)
        seen = shop()
        findings = reconcile_tasks.diagnose(seen, LIMITS)

        assert seen.rows == 10_000
        assert len({row.task for row in seen.counts}) == 1_001
        assert next(row.count for row in seen.counts if row.task == OTHERS) > 1_000
        assert len(findings) <= 30
        assert any("further tasks" in each.subject for each in findings)

    def test_more_rows_than_may_be_read_are_told(self, shop):
        """The coverage is partial, and so is the verdict."""
        tables.fill(shop.url, 500, youngest_s=OLD_S)
        seen = shop(max_rows=200)

        assert seen.rows == 200
        assert next(row.silent for row in seen.coverage if row.place == "rows of tasks") == 300

    def test_memory_does_not_grow_with_the_rows(self, shop):
        """Twenty thousand take what two thousand take, and the page that is in memory."""
        tables.fill(shop.url, 2_000, youngest_s=OLD_S)
        shop()
        tracemalloc.start()
        shop()
        _, few = tracemalloc.get_traced_memory()
        tables.fill(shop.url, 18_000, first=10_001, youngest_s=OLD_S)
        tracemalloc.reset_peak()
        assert shop().rows == 20_000
        _, many = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert many < few + 8 * 2**20


@pytest.mark.usefixtures("sure")
class TestBrokenOff:
    """What was seen until then stays."""

    def test_a_connection_that_is_lost_half_way_leaves_what_was_read(self, shop, monkeypatch):
        """And says how far it came."""
        tables.fill(shop.url, 12_000, youngest_s=OLD_S)
        whole = task_rows.pages

        def some(*given, **asked):
            yield from (page for _, page in zip(range(2), whole(*given, **asked), strict=False))
            raise DatabaseUnreachable("sqlite: server closed the connection unexpectedly.")

        monkeypatch.setattr(task_rows, "pages", some)
        seen = shop()
        (row,) = [each for each in seen.coverage if each.place == "rows of tasks"]

        assert (seen.rows, row.seen, row.silent) == (4_000, 4_000, 8_000)
        assert any(each.code == "cannot-see" for each in reconcile_tasks.diagnose(seen, LIMITS))

    def test_an_interrupted_look_leaves_its_log(self, shop, tmp_path, monkeypatch):
        """With what was found until then."""
        tables.fill(shop.url, 6_000, youngest_s=OLD_S)
        whole = task_rows.pages

        def some(*given, **asked):
            yield next(whole(*given, **asked))
            raise KeyboardInterrupt

        monkeypatch.setattr(task_rows, "pages", some)
        with pytest.raises(KeyboardInterrupt):
            shop(log_file=str(tmp_path / "look.log"))

        last = (tmp_path / "look.log").read_text().splitlines()[-1]
        assert "was broken off: 2,000 of 6,000" in last
        assert "2,000 lost" in last

    def test_a_log_that_cannot_be_written_is_refused_at_once(self, shop, tmp_path):
        """Before anything is looked at."""
        with pytest.raises(SettingsError, match="log_file"):
            shop(log_file=str(tmp_path / "nowhere" / "look.log"))


class TestWhatIsAsked:
    """Refused, with what to do about it."""

    @pytest.mark.parametrize(
        "asked", [{"hours": -1.0}, {"hours": inf}, {"hours": float("nan")}, {"limit": 0}, {"limit": 10**6}]
    )
    def test_a_number_that_is_none(self, shop, asked):
        """Hours below zero, or without end; samples without number."""
        with pytest.raises(BadParameter):
            shop(**asked)

    def test_a_table_that_is_not_configured(self, shop):
        """The nearest one is named."""
        with pytest.raises(BadParameter, match="Did you mean tasks"):
            shop(table="task")

    def test_a_deployment_without_a_database(self, broker):
        """It says how to name one."""
        with pytest.raises(SettingsError, match="OPS_DATABASE_URL"):
            reconciling.reconcile(broker)

    def test_a_database_without_a_table(self, broker, tmp_path):
        """Of those that are known by their names."""
        url = tables.sqlite(tmp_path / "empty.db")
        with tables.connected(url) as connection:
            connection.execute(sa.text("CREATE TABLE other (id integer)"))
        target = msgspec.structs.replace(broker.target, database_url=url)

        with pytest.raises(SettingsError, match="No table of the database is known"):
            reconciling.reconcile(connect(target))


class TestHorizon:
    """When a missing result proves nothing."""

    def why(self, *, ago_s=DAY_S, task="orders.tasks.ship", in_table=False, **known):
        """Return why not."""
        return replace(SURE, **known).why_not(task, NOW - ago_s, in_table=in_table)

    def test_it_proves_something_where_all_is_known(self):
        """Nothing speaks against it."""
        assert self.why() == ""

    @pytest.mark.parametrize(
        ("known", "said"),
        [
            ({"answered": 0}, "No node answered"),
            ({"expires_s": None}, "Nobody said how long"),
            ({"expires_s": DAY_S - 1}, "last run before that"),
            ({"retention": {"orders.*": 3600.0}}, "kept for 1 h"),
            ({"ignored": {}}, "No node that answered knows this task"),
            ({"ignored": {"orders.tasks.ship": True}}, "ignore_result"),
            ({"backends": ("Redis database 3",)}, "Redis database 3; it was looked in Redis database 0"),
            ({"doubt": "It may be another server."}, "another server"),
            ({"since_at": NOW - 60, "lost_by": "It was restarted."}, "It was restarted."),
        ],
    )
    def test_it_proves_nothing(self, known, said):
        """And the reason is told."""
        assert said in self.why(**known)

    @pytest.mark.parametrize(
        ("backend", "options", "place"),
        [
            ("redis://:**@cache:6379/3", None, "Redis database 3"),
            ("rediss://cache/", {}, "Redis database 0"),
            ("redis://cache/1", {"global_keyprefix": "app:"}, "Redis database 1 with prefix 'app:'"),
            ("sentinel://a:26379/2;sentinel://b:26379/2", None, "Redis database 2"),
            ("db+postgresql://u:**@h:5432/x", None, "db h/x"),
            ("db+sqlite:////srv/results.db", None, "db /srv/results.db"),
            ("django-db", None, "django-db"),
            (None, None, "nowhere"),
        ],
    )
    def test_where_nodes_store_results_is_compared_without_hosts(self, backend, options, place):
        """A host has many names; a database and a prefix have one."""
        assert horizon._place(backend, options) == place

    def test_another_host_is_doubted_only_where_not_one_result_is_stored(self, broker):
        """One that is stored shows that it is the same server, whatever it is called."""
        confs = [horizon._Conf(result_backend="redis://elsewhere:6379/0")]
        same = [horizon._Conf(result_backend=broker.target.broker_url)]

        assert "nodes store theirs on elsewhere" in horizon._doubt(broker, confs)
        assert horizon._doubt(broker, same) == ""

    def test_the_last_moment_of_a_result_still_counts(self):
        """Exactly as long as it is kept."""
        assert self.why(expires_s=DAY_S) == ""

    def test_a_row_without_an_instant_proves_nothing(self):
        """Nobody knows since when a result should be there."""
        assert SURE.why_not("orders.tasks.ship", None, in_table=False)

    def test_a_table_that_is_the_backend_needs_no_life_of_results(self):
        """But nodes have to store there."""
        here = frozenset({"django-db"})
        assert self.why(in_table=True, backends=("django-db",), here=here, expires_s=1.0) == ""
        assert "not in this table" in self.why(in_table=True, here=here)
        assert "may be another's" in self.why(in_table=True, backends=("django-db",), here=here, ignored={})

    @pytest.mark.parametrize(
        ("setting", "life_s"),
        [
            (msgspec.UNSET, DAY_S),
            (None, inf),
            (0, inf),
            (3600, 3600.0),
            ("1 day, 2:00:01", 93601.0),
            ("0:30:00", 1800.0),
            ({"__type__": "timedelta"}, None),
            ("soon", None),
        ],
    )
    def test_the_life_of_results_is_read_as_nodes_tell_it(self, setting, life_s):
        """A number of seconds, a length of time as Python writes it, none at all; anything else is not known."""
        assert horizon._life(setting) == life_s

    def test_a_server_without_a_log_of_changes_may_have_lost_results(self, broker):
        """What was stored before it was started is no proof."""
        since_at, said = horizon._server(broker, NOW)

        assert NOW - 7 * DAY_S < since_at <= NOW
        assert "keeps no log of changes" in said

    def test_a_run_that_removed_results_leaves_what_was_before_it_open(self, broker, redis):
        """By the broker's own audit, however many other runs have changed something since."""
        others = [{"run": f"r{n}", "runbook": "stuck-tasks", "target": "t"} for n in range(horizon._PAGE + 1)]
        assert horizon._swept(broker, NOW) == (-inf, "")
        redis.xadd(KEYS.audit, {"line": json.dumps({"runbook": "weekly-cleanup"})}, id=f"{int(NOW - DAY_S)}000-0")
        for n, line in enumerate(others):
            redis.xadd(KEYS.audit, {"line": json.dumps(line)}, id=f"{int(NOW)}000-{n}")

        at, said = horizon._swept(broker, NOW)

        assert at == NOW - DAY_S
        assert said == "A run removed old results 1 d ago, and that of this task may have been among them."


class TestVerifiers:
    """What an effect says of a task that no result tells of."""

    SQL = "SELECT delivered, 'hook ' || id FROM hook WHERE id = :hook"

    def sample(self, shop, arguments, **verifier):
        """Return the only row, after its verifier was asked, with its class."""
        with tables.connected(shop.url) as connection:
            connection.execute(sa.text("CREATE TABLE hook (id integer PRIMARY KEY, delivered boolean)"))
            connection.execute(sa.text("INSERT INTO hook VALUES (1, true), (2, false), (3, NULL), (4, 'FAILED')"))
        says = {"verify": {"orders.*": Verifier(**(verifier or {"sql": self.SQL}))}}
        row = {"task_id": tables.task_id(1), "arguments": arguments}
        seen = shop(row, says=says, check_execution=True)
        (sample,) = reconcile_tasks.classify(seen, LIMITS).samples
        assert sample.row.sighting == BEYOND
        assert sum(each.count for each in reconcile_tasks.classify(seen, LIMITS).rows) == 1
        return sample

    @pytest.mark.parametrize(
        ("arguments", "kind", "said"),
        [
            ({"hook": 1}, "finished but open", "hook 1"),
            ({"hook": 2}, "lost", "hook 2"),
            ({"hook": 3}, "unknown", ""),
            ({"hook": 9}, "lost", "found nothing"),
            ({}, "unknown", "no argument 'hook'"),
            ({"hook": "1; DROP TABLE hook"}, "lost", "found nothing"),
            ({"hook": [1]}, "lost", "found nothing"),
            ({"hook": 4}, "unknown", "neither true nor false"),
        ],
    )
    def test_a_query_decides(self, shop, arguments, kind, said):
        """True, false, NULL and no row; an argument is a value, whatever it holds."""
        sample = self.sample(shop, arguments)

        assert sample.kind == kind
        assert said in sample.evidence

    @pytest.mark.parametrize(
        ("sql", "said"),
        [
            ("SELECT no_such FROM hook", "no such column"),
            ("WITH x AS (SELECT 1) DELETE FROM hook", "takes no changes"),
        ],
    )
    def test_one_that_fails_decides_nothing(self, shop, sql, said):
        """Its own words are told; and it cannot write."""
        sample = self.sample(shop, {"hook": 1}, sql=sql)

        assert sample.kind == "unknown"
        assert said in sample.evidence

    def test_a_function_of_the_application_decides(self, shop, tmp_path, monkeypatch):
        """It is given arguments and ids; what it raises is told."""
        (tmp_path / "checks_of_shop.py").write_text(
            "def done(names):\n    return names['hook'] == 1, f\"looked at {names['task_id']}\"\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        sample = self.sample(shop, {"hook": 1}, python="checks_of_shop:done")

        assert sample.kind == "finished but open"
        assert f"looked at {tables.task_id(1)}" in sample.evidence

    def test_a_function_that_is_not_there_is_refused(self, shop):
        """It names what could not be loaded."""
        with pytest.raises(SettingsError, match="cannot be loaded"):
            self.sample(shop, {"hook": 1}, python="no_such_module:done")

    def test_an_effect_does_not_overrule_a_message(self, shop, redis):
        """What can still be run is on its way, whatever is there already."""
        seed_waiting(redis, task_id=tables.task_id(1))
        with tables.connected(shop.url) as connection:
            connection.execute(sa.text("CREATE TABLE hook (id integer PRIMARY KEY, delivered boolean)"))
            connection.execute(sa.text("INSERT INTO hook VALUES (1, true)"))
        says = {"verify": {"*": Verifier(sql=self.SQL)}}
        seen = shop({"task_id": tables.task_id(1), "arguments": {"hook": 1}}, says=says, check_execution=True)

        assert {row.kind for row in reconcile_tasks.classify(seen, LIMITS).rows} == {"still on its way"}


def test_progress_says_how_much_is_left(tmp_path, monkeypatch):
    """Phase, how many of how many, how fast, how long it still takes."""
    monkeypatch.delenv("OPS_RUN", raising=False)
    clock = iter(range(0, 1000, 5))
    log = tmp_path / "log"
    with progress.Progress(str(log), now=lambda: float(next(clock))).phase("Rows", 400) as step:
        step(100, "lost 3")

    lines = [line[20:] for line in log.read_text().splitlines()]
    assert lines[0] == "Rows …"
    assert lines[1] == "Rows: 100 of 400, 10 a second, 30 s left; so far lost 3"
    assert lines[2].startswith("Rows: 100 in ")
    assert log.stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.usefixtures("sure")
def test_a_million_rows_of_postgresql(broker, postgres_url):
    """As many open ones as in an old incident, each looked for; in memory that does not grow with them."""
    tables.make(postgres_url)
    tables.fill(postgres_url, 129_687, names=["execute_signal", "deliver_hook"])
    tables.fill(postgres_url, 870_313, first=129_688, statuses=["DONE", "ERROR"])
    table = resolved("tasks", TaskTable(preset="task-manager"), "tasks")
    target = msgspec.structs.replace(broker.target, database_url=postgres_url, task_tables={"tasks": table})
    tracemalloc.start()
    seen = reconciling.reconcile(connect(target), hours=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert seen.rows == 129_687
    assert sum(row.count for row in seen.statuses) == 1_000_000
    assert peak < 48 * 2**20


class TestTheDailyLook:
    """Rows by status, where a table is configured."""

    def test_a_configured_table_is_counted_by_the_daily_look(self, shop, broker):
        """In the health check's parts; and one that cannot be read is a part that was not seen."""
        tables.fill(shop.url, 30, statuses=["SCHEDULED", "DONE", "PAUSED"])
        table = resolved("tasks", TaskTable(preset="task-manager"), "tasks")
        target = msgspec.structs.replace(broker.target, database_url=shop.url, task_tables={"tasks": table})
        seen = care.checkup(connect(target), settle="0.01s")
        gone = msgspec.structs.replace(target, database_url="sqlite:////nowhere/shop.db")
        blind = care.checkup(connect(gone), settle="0.01s")

        def part(found):
            limits = health_check.Thresholds.of(connect(target))
            return next(area for area in health_check.areas(found, limits) if area.name == overview.TABLES)

        assert (part(seen).figure, part(seen).says) == ("10 open", "of 30 rows; 10 neither open nor over")
        assert part(blind).state == "not seen"
        assert not any(row.place == "task tables" for row in care.checkup(broker, settle="0.01s").coverage)


class TestASearch:
    """`ops find` tells what the application's row says, beside every other place."""

    @pytest.fixture
    def found(self, shop, redis, broker):
        """A task that waits, one that is nowhere, and the broker with their table."""
        ids = [seed_waiting(redis).task_id, tables.task_id(1)]
        message = {"attempts": 2, "status_message": "sent"}
        tables.add(shop.url, [{"task_id": each, "last_run": tables.at(DAY_S), **message} for each in ids])
        table = resolved("tasks", TaskTable(preset="task-manager"), "tasks")
        target = msgspec.structs.replace(broker.target, database_url=shop.url, task_tables={"tasks": table})
        return ids, target

    def test_the_row_is_told_beside_the_places(self, found):
        """Status, age and attempts; a row alone is no place in which a task could be."""
        (waiting, nowhere), target = found
        seen = find(connect(target), [waiting, nowhere], in_tables=True)
        told = whereabouts.lifecycle(find(connect(target), [nowhere], in_tables=True), nowhere).text(200)

        assert {row.task_id: (row.status, row.task) for row in seen.rows} == dict.fromkeys(
            (waiting, nowhere), ("PENDING", "orders.tasks.ship")
        )
        assert seen.places == {nowhere: [], waiting: ["waiting"]}
        assert "tasks says PENDING, last run 1 d ago, 2 attempts: sent" in " ".join(told.split())

    def test_who_asks_for_no_table_asks_none(self, found):
        """A stop, for instance, must not wait for a database."""
        (waiting, _), target = found
        seen = find(connect(msgspec.structs.replace(target, database_url="sqlite:////nowhere/x.db")), [waiting])

        assert not any(row.place == task_rows.PLACE for row in seen.coverage)

    def test_a_database_that_does_not_answer_is_a_place_that_was_not_seen(self, found):
        """And the rest is told all the same."""
        (waiting, _), target = found
        gone = connect(msgspec.structs.replace(target, database_url="sqlite:////nowhere/x.db"))
        seen = find(gone, [waiting], in_tables=True)

        assert next(row for row in seen.coverage if row.place == task_rows.PLACE).silent == 1
        assert seen.places[waiting] == ["waiting"]


@pytest.mark.usefixtures("sure")
class TestWhatIsSentAgain:
    """Only what is lost, whole, and not known to have happened."""

    def planned(self, shop, *rows, **says):
        """Return the kinds and rows of the actions that a plan would have."""
        seen = shop(*rows, with_arguments=True, says=says)
        plan = reconcile_tasks.plan(seen, [], LIMITS, resend=True, queue="celery")
        return [(str(action.kind), action.subject) for action in plan]

    def test_a_task_with_its_arguments_is_sent(self, shop):
        """An empty object says that it had none; what is missing, or no JSON of Celery's, says nothing."""
        rows = [{"task_id": tables.task_id(n), "arguments": each} for n, each in enumerate([{}, {"a": 1}, [1, 2]])]

        assert self.planned(shop, *rows) == [("send", tables.task_id(n)) for n in range(3)]

    def test_one_whose_table_has_no_arguments_is_not(self, shop):
        """It would run without what it was given."""
        columns = {each: each for each in ("id", "task_id", "status", "last_run", "task_name", "task_module")}
        table = TaskTable(table=tables.TASK_MANAGER, columns=columns, open=["SCHEDULED"], closed=["DONE"])
        tables.add(shop.url, [{"task_id": tables.task_id(1), "status": "SCHEDULED", "last_run": tables.at(DAY_S * 2)}])
        seen = shop(mapped=table, with_arguments=True)

        assert sightings(seen) == {NOWHERE: 1}
        assert not reconcile_tasks.plan(seen, [], LIMITS, resend=True, queue="celery").actions

    @pytest.mark.parametrize(
        ("sql", "sent"),
        [("SELECT false", True), ("SELECT NULL", False), ("SELECT true", False), ("SELECT no_such_column", False)],
    )
    def test_with_a_verifier_only_what_it_says_did_not_happen(self, shop, sql, sent):
        """One that fails or does not know says nothing."""
        found = self.planned(shop, {"task_id": tables.task_id(1), "arguments": {}}, verify={"*": Verifier(sql=sql)})

        assert (("send", tables.task_id(1)) in found) is sent


@pytest.mark.usefixtures("sure")
class TestGuards:
    """Each of what keeps a row from being called lost, by itself."""

    def test_a_task_that_only_the_second_look_meets_is_on_its_way(self, shop, monkeypatch):
        """One that is retried goes back while the first look goes on."""
        met = Marks()
        met.note(tables.task_id(1))
        looks = iter([Circulation(), Circulation(_marks=met.sealed())])
        monkeypatch.setattr(circulation, "read", lambda *_, **__: next(looks))

        assert sightings(shop({"task_id": tables.task_id(1)}, {"task_id": tables.task_id(2)})) == {
            WAITING: 1,
            NOWHERE: 1,
        }

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_place_that_one_of_two_looks_did_not_see_leaves_all_open(self, shop, monkeypatch, which):
        """Whichever it was."""
        looks = [Circulation(), Circulation()]
        looks[which] = Circulation(unseen=("unacked: refused.",))
        monkeypatch.setattr(circulation, "read", lambda *_, **__: looks.pop(0))

        assert sightings(shop({"task_id": tables.task_id(1)})) == {UNSEEN: 1}

    def test_a_node_that_did_not_say_how_results_are_stored_leaves_all_open(self, shop, monkeypatch):
        """It may be the one that ignores them."""
        silent = Coverage(place="settings", seen=1, silent=1, note="1 node did not say how results are stored.")
        monkeypatch.setattr(horizon, "read", lambda *_, **__: (SURE, silent))

        assert sightings(shop({"task_id": tables.task_id(1)})) == {UNSEEN: 1}

    def test_messages_that_are_compressed_leave_all_open(self, shop, monkeypatch):
        """Nobody knows what comes after their tasks."""
        monkeypatch.setattr(mentions, "carried", lambda *_, **__: 3)

        assert sightings(shop({"task_id": tables.task_id(1)})) == {UNSEEN: 1}

    def test_results_that_cannot_be_read_leave_all_open(self, shop, monkeypatch):
        """From the row on at which they could not."""

        def broken(self, ids):
            assert ids
            self.unread = "Results: the server is loading its data"
            return {}

        monkeypatch.setattr(results.States, "of", broken)

        assert sightings(shop({"task_id": tables.task_id(1)})) == {UNSEEN: 1}

    def test_an_effect_closes_nothing_where_a_place_was_silent(self, shop, redis):
        """The task may run there right now."""
        seed_waiting(redis)
        redis.lpush("celery", json.dumps({"headers": {"id": tables.task_id(1)}}))
        says = {"verify": {"*": Verifier(sql="SELECT true")}}
        seen = shop({"task_id": tables.task_id(1), "arguments": {}}, says=says, check_execution=True)
        (sample,) = reconcile_tasks.classify(seen, LIMITS).samples

        assert (sample.row.sighting, sample.row.effect, sample.kind) == (UNSEEN, True, "unknown")

    def test_a_server_that_may_evict_knows_it_only_since_its_start(self, broker, redis):
        """What it evicted before, nobody counts any more."""
        assert not int(redis.info("stats")["evicted_keys"])
        known = dict(redis.info())

        class Said:
            """A client of the results that says what a server of another setting would."""

            def info(self):
                return {**known, "aof_enabled": 1, "maxmemory": 1 << 20, "maxmemory_policy": "volatile-lru"}

        since_at, said = horizon._server(replace(broker, results=Said()), NOW)

        assert NOW - 7 * DAY_S < since_at <= NOW
        assert "may evict keys" in said
