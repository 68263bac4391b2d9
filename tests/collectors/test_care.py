"""What server, nodes and results say of their health is read as it is, whatever the server; a refusal is told."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from redis import Redis

from opslib import settings
from opslib.collectors.care import checkup
from opslib.errors import BadParameter
from opslib.findings import Verdict, verdict
from opslib.symptoms import health_check
from opslib.symptoms.health_check import Thresholds, areas, diagnose
from tests.support import engines, servers
from tests.support.seed import envelope, iso
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, deployment

LIMITS = Thresholds()
#: Of the server's own figures, what every server starts with.
NOTHING_SLOW = "slowlog-log-slower-than 60000000"


def look(server, *, answer_within="5s", **values):
    """Return a snapshot with a short pause; nodes on a busy machine have all the time that they need."""
    return checkup(servers.broker(server, **values), settle="0.3s", answer_within=answer_within)


def place(seen, name):
    """Return the coverage of a place."""
    return next(row for row in seen.coverage if row.place == name)


def codes(seen):
    """Return the codes of all findings."""
    return {each.code for each in diagnose(seen, LIMITS)}


@pytest.fixture
def client(any_server):
    """A plain client of a server of each kind in turn."""
    with any_server.client() as client:
        client.config_set("slowlog-log-slower-than", 60_000_000)
        client.slowlog_reset()
        yield client
        for name, value in (
            ("save", ""),
            ("maxmemory-policy", "noeviction"),
            ("appendonly", "no"),
            ("maxmemory", "256mb"),
        ):
            client.config_set(name, value)


def has_run(client):
    """Say whether a save of now is told from the start; Redis 6.2 does not count its saves, and names an instant."""
    info = client.info()
    return "rdb_saves" in info or info["uptime_in_seconds"] > 5


class TestTheServer:
    """INFO, CONFIG and the slow log."""

    def test_server_that_saves_nothing(self, any_server, client):
        """As the demo's: neither snapshots nor a file."""
        assert client.config_get("save") == {"save": ""}
        seen = look(any_server)

        assert (seen.care.server.aof, seen.care.server.saves, seen.care.server.save_age_s) == (False, "", None)
        assert place(seen, "persistence").silent == 0
        assert "redis-persistence" in codes(seen)

    def test_server_that_takes_snapshots(self, any_server, client):
        """Before the first one, and after it."""
        client.config_set("save", "3600 1")
        before = look(any_server)
        until(lambda: has_run(client), DEADLINE_S, "it has run for a while")
        client.set("changed", "1")
        client.save()
        after = look(any_server)

        assert (before.care.server.saves, after.care.server.saves) == ("3600 1", "3600 1")
        assert 0 <= after.care.server.save_age_s < 60
        assert not {"redis-persistence"} & (codes(before) | codes(after))

    def test_server_with_an_append_only_file(self, any_server, client):
        """Nothing to complain of."""
        client.config_set("appendonly", "yes")
        until(lambda: not client.info()["aof_rewrite_in_progress"], DEADLINE_S, "the file is there")
        seen = look(any_server)

        assert seen.care.server.aof is True
        assert "redis-persistence" not in codes(seen)

    def test_save_that_fails(self, any_server, client):
        """A folder in which nobody can write a file of that name."""
        name = client.config_get("dbfilename")["dbfilename"]
        (any_server.folder / "taken").mkdir(exist_ok=True)
        client.config_set("save", "3600 1")
        target = any_server.folder / name
        target.unlink(missing_ok=True)
        target.mkdir()
        (target / "in the way").touch()
        try:
            client.bgsave()
            until(lambda: client.info()["rdb_last_bgsave_status"] == "err", DEADLINE_S, "it could not be written")
            seen = look(any_server)
        finally:
            (target / "in the way").unlink()
            target.rmdir()
            client.save()

        assert seen.care.server.save_failed
        assert "save-failing" in codes(seen)

    def test_policy_and_limit(self, any_server, client):
        """Policy, limit, evicted keys and connections."""
        client.config_set("maxmemory-policy", "allkeys-lru")
        seen = look(any_server)

        assert (seen.server.maxmemory_policy, seen.care.server.evicted) == ("allkeys-lru", 0)
        assert seen.care.server.maxclients == 10_000
        assert seen.care.server.rss_bytes > 0
        assert seen.care.server.fragmentation > 0
        assert "redis-eviction" in codes(seen)

    def test_limit_of_memory(self, any_server, client):
        """Nearly reached, and out of reach."""
        used = client.info()["used_memory"]
        client.config_set("maxmemory", used * 100)
        far = codes(look(any_server))
        client.config_set("maxmemory", int(used * 1.1))
        near = codes(look(any_server))

        assert ("redis-memory" in far, "redis-memory" in near) == (False, True)

    def test_what_is_expected_of_its_memory(self, any_server, client):
        """By the target's own threshold."""
        client.set("filled", b"x" * 2_000_000)
        broker = servers.broker(any_server, thresholds=settings.Thresholds(redis_memory="2MB"))

        assert "redis-memory" in {each.code for each in diagnose(look(any_server), Thresholds.of(broker))}
        assert "redis-memory" not in codes(look(any_server))

    def test_connections(self, any_server, client):
        """Nearly all of them taken."""
        most = client.config_get("maxclients")["maxclients"]
        with ExitStack() as held:
            try:
                client.config_set("maxclients", 40)
                for _ in range(33):
                    held.enter_context(any_server.client()).ping()
                few = codes(look(any_server))
            finally:
                client.config_set("maxclients", most)

        assert "redis-clients" in few
        assert "redis-clients" not in codes(look(any_server))

    def test_version(self, any_server):
        """That of Redis 6.2.5 and of 7.0.15 is known to be defective, that of the newest Valkey is not."""
        assert ("redis-version" in codes(look(any_server))) is (any_server.kind != engines.VALKEY)

    def test_slow_command(self, any_server, client):
        """One that took long, by its name: a script that counts, further each time until it takes long enough."""
        client.config_set("slowlog-log-slower-than", 150_000)
        steps = 1_000_000
        while not client.slowlog_len():
            client.eval("local n = 0 for i = 1, ARGV[1] do n = n + i end return 1", 0, steps)
            steps *= 2
        client.config_set("slowlog-log-slower-than", 60_000_000)
        (finding,) = [each for each in diagnose(look(any_server), LIMITS) if each.code == "redis-slow"]

        assert finding.subject == "EVAL"
        assert finding.evidence["longest_ms"] >= 150

    def test_slow_log_without_what_stands_behind_the_command(self, any_server, client):
        """Its name alone, counted."""
        client.config_set("slowlog-log-slower-than", 0)
        client.set("card", "4111-1111-1111-1111")
        client.execute_command("KEYS", "secret-*")
        client.config_set("slowlog-log-slower-than", 60_000_000)
        seen = look(any_server)
        slow = {row.name: row for row in seen.care.server.slow}

        assert {"SET", "KEYS"} <= set(slow)
        assert slow["KEYS"].count == 1
        assert 0 < slow["KEYS"].longest_s < 60
        assert abs(slow["KEYS"].last_at - seen.taken_at.timestamp()) < 60
        assert "4111" not in str(seen.care)
        assert "secret" not in str(seen.care)


class TestRights:
    """Users who may less."""

    @pytest.fixture
    def limited(self, any_server, client):
        """Give a user rights, and return a look as that user."""

        def look_with(rules):
            servers.user(client, rules)
            return look(any_server, broker_url=servers.as_user(any_server))

        yield look_with
        client.execute_command("ACL", "DELUSER", "limited")

    #: As docs/safety.md has it for a user who may ask the nodes.
    LOOK = f"{servers.READ_ONLY} &* +publish +psubscribe +sadd +srem +brpop +del"

    def test_documented_user_needs_no_config(self, limited, client):
        """With an append-only file, nothing is left unknown."""
        client.config_set("appendonly", "yes")
        until(lambda: not client.info()["aof_rewrite_in_progress"], DEADLINE_S, "the file is there")
        seen = limited(self.LOOK)

        assert seen.care.server.saves is None
        assert {row.place for row in seen.coverage if row.silent} == set()
        assert "CONFIG GET" in place(seen, "persistence").note
        assert "redis-persistence" not in codes(seen)

    def test_no_slow_log(self, limited):
        """A row of the coverage, and no error."""
        seen = limited(f"{self.LOOK} -slowlog")

        assert "slow log" in {row.place for row in seen.coverage if row.silent}
        assert "SLOWLOG" in place(seen, "slow log").note
        assert seen.care.server.slow == ()
        assert "redis-slow" in codes(seen)

    def test_no_client_list(self, limited):
        """Connections are counted by INFO all the same."""
        seen = limited(f"{self.LOOK} -client +client|setname")

        assert seen.server.consumers is None
        assert seen.server.connected_clients > 0
        assert "CLIENT LIST" in place(seen, "server").note

    def test_who_may_not_ask_the_nodes(self, limited):
        """Nodes are not seen, the server is."""
        seen = limited(servers.READ_ONLY)

        assert {"workers"} <= {row.place for row in seen.coverage if row.silent}
        assert seen.care.server.maxclients == 10_000


@pytest.mark.parametrize("kind", engines.KINDS)
def test_whether_it_saves_stays_unknown_without_config(kind, tmp_path):
    """Where nothing that it did tells it either: a server that has just begun."""
    with engines.start(kind, tmp_path) as fresh, fresh.client() as client:
        servers.user(client, TestRights.LOOK)
        seen = look(fresh, broker_url=servers.as_user(fresh))

        assert place(seen, "persistence").silent == 1
        assert [f.severity for f in diagnose(seen, LIMITS) if f.code == "redis-persistence"] == ["unknown"]
        assert "Redis data" in {area.name for area in areas(seen, LIMITS) if area.state == "not seen"}


@pytest.mark.parametrize("kind", engines.KINDS)
def test_start_is_no_snapshot(kind, tmp_path):
    """Every server names an instant of its last save, and before the first one it is that of its start."""
    with engines.start(kind, tmp_path) as fresh, fresh.client() as client:
        until(lambda: has_run(client), DEADLINE_S, "it has run for a while")
        never = look(fresh).care.server.save_age_s
        client.save()
        saved = look(fresh).care.server.save_age_s

    assert never is None
    assert 0 <= saved < 5


class TestResults:
    """How long results live."""

    @staticmethod
    def store(client, count, *, ttl_s=None, start=0, root="celery-task-meta-"):
        """Store results."""
        for at in range(start, start + count):
            client.set(f"{root}r{at}", json.dumps({"status": "SUCCESS", "result": at}), ex=ttl_s)

    @pytest.mark.parametrize(("endless", "wrong"), [(99, False), (100, True)])
    def test_all_are_asked_where_there_are_few(self, server, redis, endless, wrong):
        """Exactly."""
        self.store(redis, endless)
        self.store(redis, 50, ttl_s=1000, start=1000)
        seen = look(server)
        life = seen.care.results

        assert (life.total, life.looked, life.endless, life.exact) == (endless + 50, endless + 50, endless, True)
        assert ("results-without-ttl" in codes(seen)) is wrong

    def test_sample_of_many(self, server, redis):
        """Evenly, and it says so."""
        self.store(redis, 600)
        self.store(redis, 600, ttl_s=1000, start=600)
        seen = checkup(servers.broker(server), settle="0.3s", sample=200)
        life = seen.care.results

        assert (life.total, life.looked) == (1200, 200)
        assert 300 < life.estimate < 900
        assert "sample" in place(seen, "results' life").note
        assert place(seen, "results' life").silent == 0

    def test_another_database(self, server, redis):
        """Where results have one of their own."""
        self.store(redis, 3)
        with Redis.from_url(server.url.replace("/0", "/3")) as other:
            self.store(other, 150)
            other.set("not a result", "1")
            seen = look(server, result_backend=server.url.replace("/0", "/3"))

        assert (seen.care.results.total, seen.care.results.endless) == (150, 150)

    def test_prefix(self, server, redis):
        """As the target has it."""
        self.store(redis, 120, root="shop:celery-task-meta-")
        seen = look(server, global_keyprefix="shop:", result_keyprefix="shop:")

        assert seen.care.results.endless == 120

    def test_backend_that_is_not_redis(self, server, redis):
        """Nothing is claimed."""
        assert redis.set("x", 1)
        seen = look(server, result_backend="db+sqlite:///results.db")

        assert seen.care.results is None
        assert "results" in {row.place for row in seen.coverage if row.silent}


def test_sample_of_nothing_is_refused(server, redis):
    """Or all results would seem to expire."""
    assert not redis.dbsize()
    with pytest.raises(BadParameter, match="sample"):
        checkup(servers.broker(server), sample=0)


def test_nothing_there_at_all(server, redis):
    """An empty database is more often the wrong one than a quiet deployment."""
    assert not redis.dbsize()
    seen = look(server)
    unseen = {area.name for area in areas(seen, LIMITS) if area.state == "not seen"}

    assert verdict(diagnose(seen, LIMITS)) is Verdict.UNKNOWN
    assert {"Nodes", "Queues", "Settings"} <= unseen
    assert "Redis memory" not in unseen


def test_replica(tmp_path):
    """One that follows is fine; one that is asked in place of its master is none to work with."""
    with engines.failover(tmp_path) as group:
        master, replica = look(group.primary), look(group.replica)

    assert [each.state for each in master.care.server.replicas] == ["online"]
    assert "redis-replica" not in codes(master)
    assert "redis-replica" in codes(replica)
    assert replica.care.server.master_link == "up"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A server that loses nothing, and no nodes yet."""
    folder = tmp_path_factory.mktemp("sound")
    with (
        engines.start(engines.VALKEY, folder, persistent=True, extra=[NOTHING_SLOW]) as server,
        deployment(server, folder) as made,
    ):
        yield made


class TestNodes:
    """How real nodes are set up."""

    @pytest.fixture
    def node(self, sound):
        """Start a node of the tidy application, or of the tests' own; it ends with the test."""
        started = []

        def start(**given):
            started.append(sound.worker(**{"module": "tests.support.wellkept", **given}))
            return started[-1]

        yield start
        for each in started:
            each.kill()
        sound.redis.flushall()

    def test_sound_deployment_is_healthy(self, sound, node):
        """Exit code 0: nothing is found, all is seen."""
        node()
        sound.until_done(sound.send("ok"))
        seen = look(sound.server)

        assert diagnose(seen, LIMITS) == []
        assert [row for row in seen.coverage if row.silent] == []
        assert {area.state for area in areas(seen, LIMITS)} == {"fine", "not judged"}
        assert diagnose(seen, Thresholds(gate="deploy")) == []
        (care,) = seen.care.nodes
        assert care.time_limit_s == 900
        assert {"celery", "kombu", "redis-py"} == set(care.versions)
        assert all(version[0].isdigit() for version in care.versions.values())

    def test_settings_that_cause_an_incident(self, sound, node):
        """Each told by a node that has it, of just the tasks that it concerns."""
        conf = {
            "task_time_limit": None,
            "task_reject_on_worker_lost": True,
            "result_expires": None,
            "worker_max_memory_per_child": 200_000,
            "worker_max_tasks_per_child": 500,
            "broker_transport_options": {"visibility_timeout": 60},
        }
        name = node(module="tests.support.app", conf=conf, name="risky@trial").name
        seen = look(sound.server)
        found = {each.subject: each for each in diagnose(seen, LIMITS) if each.code == "risky-setting"}
        (care,) = seen.care.nodes

        assert set(found) == {"task_time_limit", "max_retries", "task_reject_on_worker_lost"}
        assert found["max_retries"].evidence["tasks"] == ["tests.broken", "tests.retry_forever"]
        late = ["tests.gate", "tests.hang_late", "tests.late"]
        assert found["task_reject_on_worker_lost"].evidence["tasks"] == late
        assert found["task_time_limit"].evidence["acknowledged_late"] == late
        assert (care.name, care.results_for_ever, care.max_tasks_per_child) == (name, True, 500)
        assert care.max_memory_per_child_bytes == 200_000 * 1024
        assert seen.visibility_timeout_s == 60

    def test_late_tasks_that_may_outlast_the_visibility_timeout(self, sound, node):
        """A limit of more than that."""
        conf = {"task_acks_late": True, "broker_transport_options": {"visibility_timeout": 600}}
        node(conf=conf)
        seen = look(sound.server)
        (finding,) = diagnose(seen, LIMITS)

        assert (finding.code, finding.subject) == ("risky-setting", "visibility_timeout")
        assert finding.evidence["tasks"] == ["tests.ok", "tests.sleep"]

    def test_pool_that_enforces_no_limit(self, sound, node):
        """Whatever is set."""
        node(pool="threads")
        subjects = {each.subject for each in diagnose(look(sound.server), LIMITS)}

        assert subjects == {"task_time_limit"}

    def test_tasks_that_a_deployment_would_kill(self, sound, node):
        """Acknowledged at the start, so lost for good."""
        node()
        task = sound.send("sleep", 600)
        sound.until_running(task)
        limits = Thresholds(gate="deploy", grace_s=0.5)
        until(lambda: diagnose(look(sound.server), limits), DEADLINE_S, "it has run for long enough")
        (finding,) = diagnose(look(sound.server), limits)

        assert (finding.code, finding.subject, finding.severity) == ("deploy-risk", "tests.sleep", "critical")
        assert finding.evidence["tasks"] == [task]
        assert diagnose(look(sound.server), Thresholds(gate="deploy", grace_s=3600)) == []

    def test_tasks_that_wait_inside_a_node(self, sound, node):
        """A wave that comes late if the node is killed."""
        node()
        raw = [json.dumps(envelope("tests.ok", eta=iso(1000))) for _ in range(5)]
        sound.redis.lpush("celery", *raw)
        until(lambda: sound.redis.hlen("unacked") == 5, DEADLINE_S, "the node holds them")
        seen = look(sound.server)

        assert [each.code for each in diagnose(seen, Thresholds(gate="deploy", held_at_most=4))] == ["deploy-risk"]
        assert diagnose(seen, Thresholds(gate="deploy", held_at_most=5)) == []

    def test_memory_of_a_node(self, sound, node):
        """Its peak, against what the target says that it has."""
        name = node().name
        seen = look(sound.server)
        (peak,) = [each.memory_bytes for each in seen.answering]
        tight, wide = (Thresholds(worker_memory_bytes=bytes_) for bytes_ in (peak, peak * 2))

        assert peak > 10**6
        assert [(each.code, each.subject) for each in diagnose(seen, tight)] == [("worker-memory", name)]
        assert diagnose(seen, wide) == []

    def test_nodes_that_differ_in_the_visibility_timeout(self, sound, node):
        """The shortest counts for all."""
        node()
        node(conf={"broker_transport_options": {"visibility_timeout": 7200}})

        assert {each.subject for each in diagnose(look(sound.server), LIMITS)} == {"visibility_timeout (several)"}

    def test_silent_node(self, sound, node):
        """Nobody knows what it runs, and nothing of it is called fine; the other one is told."""
        frozen, other = node(), node()
        with frozen.frozen():
            seen = look(sound.server, answer_within="1.5s")
        states = {area.name: area.state for area in areas(seen, LIMITS)}

        assert verdict(diagnose(seen, LIMITS)) is Verdict.UNKNOWN
        assert (states["Nodes"], states["Settings"], states["Redis data"]) == ("not seen", "not seen", "fine")
        assert [row.name for row in seen.care.nodes] == [other.name]
        assert "Not seen: Nodes" in health_check.in_words(areas(seen, LIMITS))

    def test_password_in_a_setting_is_not_kept(self, sound, node):
        """Nor anything else of what nodes say of their settings."""
        conf = {"redbeat_redis_url": "redis://:swordfish@elsewhere/1"}
        node(conf=conf)
        seen = look(sound.server)

        assert seen.care.nodes
        assert "swordfish" not in str(seen)
