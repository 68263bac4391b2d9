"""Each thing that may be wrong with a deployment is found from its threshold on, and not before; and never twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from opslib.errors import BadParameter, SettingsError
from opslib.facts.care import Care, NodeCare, Replica, ResultLife, ServerCare, SlowCommand, TaskCare
from opslib.facts.dead import DeadLetters, DeadList
from opslib.facts.system import Coverage, TaskInfo
from opslib.findings import Severity, Verdict, verdict
from opslib.settings import Target
from opslib.settings import Thresholds as Settings
from opslib.symptoms import health_check, overview, stuck_tasks
from opslib.symptoms.health_check import GATES, Thresholds, areas, diagnose
from opslib.symptoms.server_care import Limits
from tests.support import rows

MIB, GIB = 2**20, 2**30
SOUND = ServerCare(
    rss_bytes=10**6, fragmentation=1.0, maxclients=10_000, rejected=0, evicted=0, aof=True, unsaved=0, saves=""
)
TASK = TaskCare(name="tests.ok")
OLD = ("backup-old", Severity.ATTENTION)
LIVES = ResultLife(total=10, looked=10, endless=0)
SET_UP = NodeCare(name=rows.NODE, time_limit_s=900, versions={"celery": "5.7.0", "kombu": "5.7.0"}, tasks=(TASK,))
LIMITS = Thresholds()


def care(server=SOUND, nodes=(SET_UP,), results=LIVES):
    """Return what nothing is wrong with, but for what is given."""
    return Care(server=server, nodes=tuple(nodes), results=results)


def seen(*, of=None, **fields):
    """Return a deployment in which all is well, but for what is given."""
    given = {"nodes": [rows.node(tasks=(TaskInfo(name="tests.ok", max_retries=3),))], "letters": DeadLetters()}
    return rows.snapshot(care=of or care(), **{**given, **fields})


def found(snapshot, code, limits=LIMITS):
    """Return the findings of a code."""
    return [each for each in diagnose(snapshot, limits) if each.code == code]


def severity(snapshot, code, limits=LIMITS):
    """Return the severity of the one finding of a code; None where there is none."""
    those = found(snapshot, code, limits)
    assert len(those) <= 1, those
    return those[0].severity if those else None


def state(snapshot, name, limits=LIMITS):
    """Return the state of a part."""
    return {area.name: area.state for area in areas(snapshot, limits)}[name]


class TestTheWhole:
    """What is said of all of it."""

    def test_nothing_is_wrong(self):
        """Then it is healthy, and each part that can be judged is fine."""
        assert diagnose(seen(), LIMITS) == []
        assert {area.state for area in areas(seen(), LIMITS)} == {"fine", "not judged"}
        assert state(seen(), "Node memory") == "not judged"
        assert health_check.in_words(areas(seen(), LIMITS)) == "All 11 parts that were judged are fine."

    def test_each_thing_is_judged_once(self):
        """A node that stands still, a silent one and a place that was not seen belong to several runbooks."""
        two = [rows.node(), rows.silent()]
        snapshot = seen(nodes=two, receivers=2, coverage=rows.coverage(results=3))
        counts = Counter((each.code, each.subject) for each in diagnose(snapshot, LIMITS))

        assert set(counts.values()) == {1}
        assert {code for code, _ in counts} == {"worker-silent", "cannot-see"}
        assert set(Counter((f.code, f.subject) for f in diagnose(_everything_wrong(), LIMITS)).values()) == {1}

    def test_every_code_of_its_runbooks_has_a_part(self):
        """Or a finding would count and show nowhere."""
        known = {code for codes in overview.PARTS.values() for code in codes}

        assert GATES["deploy"] <= known
        assert {each.code for each in diagnose(_everything_wrong(), LIMITS)} - {"cannot-see"} <= known

    def test_part_is_as_bad_as_its_worst(self):
        """Critical before not seen, before attention; and it says how many."""
        snapshot = seen(queues=[rows.queue("a", 11), rows.queue("b", 1, consumers=())])
        part = next(area for area in areas(snapshot, LIMITS) if area.name == "Queues")

        assert (part.state, part.findings, part.figure) == ("critical", 2, "12 waiting")
        assert part.says == "1 queue without a consumer, 1 long queue"
        assert part.runbook in {"stuck-tasks", "queue-backlog"}

    @pytest.mark.parametrize(
        ("place", "parts"),
        [
            ("results", {"Results"}),
            ("settings", {"Settings"}),
            ("dead letters", {"Dead letters"}),
            ("keyspace", {"Queues", "Dead letters", "Results"}),
        ],
    )
    def test_what_was_not_seen_is_not_fine(self, place, parts):
        """Of just the parts that depend on it, and the verdict is unknown."""
        row = Coverage(place=place, seen=1, silent=1, note="Refused.")
        snapshot = seen(coverage=(*rows.coverage(), row))
        assert diagnose(seen(coverage=rows.coverage()), LIMITS) == []
        unseen = {area.name for area in areas(snapshot, LIMITS) if area.state == "not seen"}

        assert unseen == parts
        assert verdict(diagnose(snapshot, LIMITS)) is Verdict.UNKNOWN

    def test_with_a_silent_node_nobody_knows_what_runs(self):
        """All parts that nodes tell of."""
        snapshot = seen(receivers=2)
        unseen = {area.name for area in areas(snapshot, LIMITS) if area.state == "not seen"}

        assert unseen == {"Nodes", "Node memory", "Running tasks", "Retries", "Unacknowledged", "Settings"}

    def test_without_dead_letters_and_care_nothing_breaks(self):
        """A snapshot of another runbook can be judged too."""
        found = {area.name: area.state for area in areas(rows.snapshot(), LIMITS)}

        assert diagnose(rows.snapshot(), LIMITS) == []
        assert set(found) == set(overview.PARTS) - {overview.TABLES}
        unknown = {"Node memory", "Settings", "Redis data", "Redis server", "Dead letters"}
        assert {name for name, state in found.items() if state == "not judged"} == unknown

    def test_without_nodes_no_setting_is_fine(self):
        """There is none."""
        snapshot = seen(nodes=[], receivers=0, of=care(nodes=()))

        assert (state(snapshot, "Nodes"), state(snapshot, "Settings")) == ("attention", "not judged")


class TestAccepting:
    """What somebody knows of and lives with."""

    def test_it_counts_no_more_and_is_still_counted(self):
        """In its part."""
        off = seen(of=care(replace(SOUND, aof=False)))
        limits = replace(LIMITS, accepted=frozenset({"redis-persistence"}))
        part = next(area for area in areas(off, limits) if area.name == "Redis data")

        assert found(off, "redis-persistence")
        assert diagnose(off, limits) == []
        assert part.state == "fine"
        assert "1 accepted" in part.says

    @pytest.mark.parametrize(
        ("place", "code", "part"),
        [("persistence", "redis-persistence", "Redis data"), ("slow log", "redis-slow", "Redis server")],
    )
    def test_what_a_server_hides_can_be_known_otherwise(self, place, code, part):
        """It is not seen; and once somebody says that they know, it is not judged, and never fine."""
        hidden = Coverage(place=place, seen=0, silent=1, note="Refused.")
        snapshot = seen(of=care(replace(SOUND, aof=False, saves=None)), coverage=(*rows.coverage(), hidden))
        limits = replace(LIMITS, accepted=frozenset({code}))

        assert severity(snapshot, code) is Severity.UNKNOWN
        assert (state(snapshot, part), state(snapshot, part, limits)) == ("not seen", "not judged")
        assert diagnose(snapshot, limits) == []

    def test_what_is_not_seen_is_never_accepted(self):
        """Or an empty view would be healthy."""
        limits = replace(LIMITS, accepted=frozenset({"cannot-see", "worker-silent"}))
        snapshot = seen(receivers=2, coverage=rows.coverage(results=1))

        assert {each.code for each in diagnose(snapshot, limits)} == {"cannot-see", "worker-silent"}


class TestTheServer:
    """What the server says of itself."""

    @pytest.mark.parametrize(
        ("used", "most", "expected"),
        [
            (79, 100, None),
            (80, 100, Severity.ATTENTION),
            (94, 100, Severity.ATTENTION),
            (95, 100, Severity.CRITICAL),
            (95, 0, None),
        ],
    )
    def test_memory_by_its_own_limit(self, used, most, expected):
        """80 % for attention, 95 % critical; a server without a limit has none to reach."""
        server = rows.server(used_memory_bytes=used * MIB, maxmemory_bytes=most * MIB)

        assert severity(seen(server=server), "redis-memory") is expected

    @pytest.mark.parametrize(("used", "wrong"), [(10**9 - 1, False), (10**9, True)])
    @pytest.mark.parametrize("most", [0, 10 * GIB])
    def test_memory_by_what_is_expected(self, used, most, wrong):
        """1 GB, whether it has a limit or not."""
        server = rows.server(used_memory_bytes=used, maxmemory_bytes=most)

        assert bool(found(seen(server=server), "redis-memory")) is wrong

    @pytest.mark.parametrize(
        ("rss", "ratio", "wrong"),
        [(356 * MIB, 3.56, True), (355 * MIB, 3.55, False), (800 * MIB, 1.49, False), (90 * MIB, 0.89, True)],
    )
    def test_fragmentation_counts_once_it_costs_something(self, rss, ratio, wrong):
        """A ratio of ten of an empty server is nobody's concern."""
        server = rows.server(used_memory_bytes=100 * MIB)
        snapshot = seen(server=server, of=care(replace(SOUND, rss_bytes=rss, fragmentation=ratio)))

        assert bool(found(snapshot, "redis-memory")) is wrong

    @pytest.mark.parametrize(
        ("policy", "most", "expected"),
        [
            ("noeviction", 100, None),
            ("allkeys-lru", 100, Severity.CRITICAL),
            ("allkeys-lru", 0, Severity.ATTENTION),
            ("volatile-ttl", 100, Severity.ATTENTION),
            ("", 100, Severity.UNKNOWN),
        ],
    )
    def test_eviction(self, policy, most, expected):
        """Anything but noeviction; one that is not told is not known."""
        server = rows.server(maxmemory_policy=policy, maxmemory_bytes=most * GIB)

        assert severity(seen(server=server), "redis-eviction") is expected

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({}, None),
            ({"aof_failed": True}, ("save-failing", Severity.CRITICAL)),
            ({"save_failed": True}, ("save-failing", Severity.CRITICAL)),
            ({"aof": False}, ("redis-persistence", Severity.ATTENTION)),
            ({"aof": False, "saves": "3600 1"}, None),
            ({"aof": False, "saves": "3600 1", "save_age_s": 86400.0, "unsaved": 1}, OLD),
            ({"aof": False, "saves": "3600 1", "save_age_s": 86399.0, "unsaved": 1}, None),
            ({"aof": False, "saves": "3600 1", "save_age_s": 86400.0, "unsaved": 0}, None),
            ({"aof": False, "saves": "", "save_age_s": 60.0, "unsaved": 1}, None),
            ({"aof": False, "saves": None, "save_age_s": 86400.0, "unsaved": 1}, OLD),
            ({"aof": None, "saves": None}, None),
        ],
    )
    def test_persistence(self, changed, expected):
        """Off, failed, or too old; one that somebody else has save is judged by its age; what is not told, not here."""
        those = diagnose(seen(of=care(replace(SOUND, **changed))), LIMITS)

        assert [(each.code, each.severity) for each in those] == ([expected] if expected else [])

    def test_server_that_never_saved_since_it_started(self):
        """Though it should have."""
        never = care(replace(SOUND, aof=False, saves="3600 1", unsaved=5))

        assert severity(seen(of=never, server=rows.server(uptime_s=86399)), "backup-old") is None
        assert severity(seen(of=never, server=rows.server(uptime_s=86400)), "backup-old") is Severity.ATTENTION

    @pytest.mark.parametrize(
        ("product", "version", "wrong"),
        [
            ("Redis", "6.2.19", True),
            ("Redis", "6.2.20", False),
            ("Redis", "7.0.15", True),
            ("Redis", "7.4.6", False),
            ("Redis", "8.2.1", True),
            ("Redis", "8.2.2", False),
            ("Redis", "8.4.0", False),
            ("Valkey", "8.0.5", True),
            ("Valkey", "8.1.4", False),
            ("Valkey", "9.0.0", False),
            ("Redis", "", False),
            ("KeyDB", "6.3.4", False),
        ],
    )
    def test_version(self, product, version, wrong):
        """Against the first release of its series that is mended; a newer series is, an older one never was."""
        snapshot = seen(server=rows.server(product=product, version=version))

        assert bool(found(snapshot, "redis-version")) is wrong

    @pytest.mark.parametrize(
        ("longest_s", "ago_s", "wrong"),
        [(0.1, 0, True), (0.0999, 0, False), (5.0, 86400, True), (5.0, 86401, False)],
    )
    def test_slow_commands(self, longest_s, ago_s, wrong):
        """From 100 ms on, of the last day."""
        row = SlowCommand(name="KEYS", count=2, longest_s=longest_s, last_at=rows.NOW_S - ago_s)
        snapshot = seen(of=care(replace(SOUND, slow=(row,))))

        assert bool(found(snapshot, "redis-slow")) is wrong

    @pytest.mark.parametrize(
        ("open_", "most", "expected"),
        [(79, 100, None), (80, 100, Severity.ATTENTION), (95, 100, Severity.CRITICAL), (95, None, None)],
    )
    def test_connections(self, open_, most, expected):
        """By the limit; one that is not told is not judged."""
        snapshot = seen(server=rows.server(connected_clients=open_), of=care(replace(SOUND, maxclients=most)))

        assert severity(snapshot, "redis-clients") is expected

    @pytest.mark.parametrize(
        ("replica", "wrong"),
        [
            (Replica(name="r", state="online", lag_s=29), False),
            (Replica(name="r", state="online", lag_s=30), True),
            (Replica(name="r", state="online", behind_bytes=16 * MIB), True),
            (Replica(name="r", state="wait_bgsave"), True),
        ],
    )
    def test_replicas(self, replica, wrong):
        """One that follows is fine."""
        assert bool(found(seen(of=care(replace(SOUND, replicas=(replica,)))), "redis-replica")) is wrong

    @pytest.mark.parametrize(("link", "expected"), [("up", Severity.ATTENTION), ("down", Severity.CRITICAL)])
    def test_replica_that_is_asked_for_a_broker(self, link, expected):
        """It is none."""
        snapshot = seen(server=rows.server(role="slave"), of=care(replace(SOUND, master_link=link)))

        assert severity(snapshot, "redis-replica") is expected


class TestTheNodes:
    """How nodes are set up."""

    @pytest.mark.parametrize(
        ("peak", "limit", "expected"),
        [
            (79, 100, None),
            (80, 100, Severity.ATTENTION),
            (100, 100, Severity.CRITICAL),
            (100, 0, None),
        ],
    )
    def test_memory(self, peak, limit, expected):
        """By what it has; where nobody said, it is not judged."""
        snapshot = seen(nodes=[rows.node(memory_bytes=peak * MIB)])
        limits = replace(LIMITS, worker_memory_bytes=limit * MIB)

        assert severity(snapshot, "worker-memory", limits) is expected
        if limit and expected is None:
            assert state(snapshot, "Node memory", limits) == "fine"

    @pytest.mark.parametrize(
        ("versions", "subjects"),
        [
            ({"celery": "5.4.0", "kombu": "5.5.0"}, {"celery"}),
            ({"celery": "5.5.0", "kombu": "5.4.2", "redis-py": "4.5.3"}, {"kombu", "redis-py"}),
            ({"celery": "5.5.0rc1", "redis-py": "4.5.4"}, set()),
            ({}, set()),
        ],
    )
    def test_old_versions(self, versions, subjects):
        """Each by what is wrong with it; what is not told is not judged."""
        snapshot = seen(of=care(nodes=[replace(SET_UP, versions=versions)]))

        assert {each.subject for each in found(snapshot, "celery-version")} == subjects

    def test_two_versions_side_by_side(self):
        """Patch releases are one version."""
        nodes = [replace(SET_UP, name=name, versions={"celery": v}) for name, v in (("a", "5.6.1"), ("b", "5.6.2"))]
        other = replace(SET_UP, name="c", versions={"celery": "5.7.0"})

        assert not found(seen(of=care(nodes=nodes)), "celery-version")
        assert [each.subject for each in found(seen(of=care(nodes=[*nodes, other])), "celery-version")] == [
            "celery (several)"
        ]

    @pytest.mark.parametrize(
        ("node", "task", "pool", "wrong"),
        [
            ({"time_limit_s": None}, {}, "prefork", True),
            ({"time_limit_s": None, "soft_time_limit_s": 60}, {}, "prefork", False),
            ({"time_limit_s": None}, {"time_limit_s": 60}, "prefork", False),
            ({}, {}, "prefork", False),
            ({}, {}, "solo", True),
            ({}, {"time_limit_s": 60}, "threads", True),
        ],
    )
    def test_no_time_limit(self, node, task, pool, wrong):
        """Of the task, of the node, or a soft one; and a pool that enforces none has none."""
        each = replace(SET_UP, tasks=(replace(TASK, **task),), **node)
        snapshot = seen(of=care(nodes=[each]), nodes=[rows.node(pool=pool, tasks=(TaskInfo(name="t", max_retries=3),))])

        assert ("task_time_limit" in {f.subject for f in found(snapshot, "risky-setting")}) is wrong

    @pytest.mark.parametrize(("cap", "wrong"), [(None, True), (0, False), (3, False)])
    def test_no_end_of_retries(self, cap, wrong):
        """A task without max_retries."""
        snapshot = seen(nodes=[rows.node(tasks=(TaskInfo(name="tests.ok", max_retries=cap),))])

        assert ("max_retries" in {f.subject for f in found(snapshot, "risky-setting")}) is wrong

    @pytest.mark.parametrize(
        ("limit", "late", "wrong"), [(3600, True, True), (3599, True, False), (7200, False, False)]
    )
    def test_visibility_timeout_and_the_longest_task(self, limit, late, wrong):
        """Only what is acknowledged late is delivered again."""
        node = replace(SET_UP, time_limit_s=limit, tasks=(replace(TASK, acks_late=late),))

        subjects = {f.subject for f in found(seen(of=care(nodes=[node])), "risky-setting")}
        assert ("visibility_timeout" in subjects) is wrong

    @pytest.mark.parametrize(
        ("age_s", "acknowledged", "wrong"), [(3600, False, True), (3599, False, False), (3600, True, False)]
    )
    def test_visibility_timeout_and_what_runs(self, age_s, acknowledged, wrong):
        """Whatever its limit says."""
        snapshot = seen(held=[rows.held("t", age_s=age_s, acknowledged=acknowledged)])

        assert ("visibility_timeout" in {f.subject for f in found(snapshot, "risky-setting")}) is wrong

    def test_nodes_that_differ_in_it(self):
        """The shortest counts for all."""
        nodes = [rows.node(name, visibility_timeout_s=s) for name, s in (("a", 3600.0), ("b", 7200.0))]
        nodes = [replace(each, tasks=(TaskInfo(name="tests.ok", max_retries=3),)) for each in nodes]
        subjects = {f.subject for f in found(seen(nodes=nodes, receivers=2), "risky-setting")}

        assert subjects == {"visibility_timeout (several)"}

    @pytest.mark.parametrize(
        ("age_s", "prefetch", "reserved", "wrong"),
        [(600, 8, 1, True), (599, 8, 1, False), (600, 2, 1, False), (600, 8, 0, False)],
    )
    def test_prefetch_behind_long_tasks(self, age_s, prefetch, reserved, wrong):
        """What a node has taken and cannot begin; one that takes no more than it runs has none."""
        held = [rows.held("t", age_s=age_s, acknowledged=True)]
        held += [rows.held(f"r{n}", "reserved") for n in range(reserved)]
        nodes = [rows.node(prefetch=prefetch, tasks=(TaskInfo(name="tests.ok", max_retries=3),))]
        subjects = {f.subject for f in found(seen(held=held, nodes=nodes), "risky-setting")}

        assert ("worker_prefetch_multiplier" in subjects) is wrong

    @pytest.mark.parametrize(
        ("late", "back", "wrong"), [(True, True, True), (True, False, False), (False, True, False)]
    )
    def test_poison_loop(self, late, back, wrong):
        """Only where the message is still there when its process dies."""
        node = replace(SET_UP, tasks=(replace(TASK, acks_late=late, comes_back=back),))

        subjects = {f.subject for f in found(seen(of=care(nodes=[node])), "risky-setting")}
        assert ("task_reject_on_worker_lost" in subjects) is wrong


class TestResultsAndLetters:
    """What is kept."""

    @pytest.mark.parametrize(
        ("life", "wrong"),
        [
            (ResultLife(total=1000, looked=1000, endless=99), False),
            (ResultLife(total=1000, looked=1000, endless=100), True),
            (ResultLife(total=10_000, looked=1000, endless=10), True),
            (ResultLife(total=10_000, looked=1000, endless=9), False),
            (None, False),
        ],
    )
    def test_results_without_an_end(self, life, wrong):
        """A hundred of all, counted or estimated, and it says which."""
        those = found(seen(of=care(results=life)), "results-without-ttl")

        assert bool(those) is wrong
        if life and wrong:
            assert ("estimated" in those[0].message) is not life.exact

    @pytest.mark.parametrize(("length", "wrong"), [(9, False), (10, True)])
    def test_failures_without_a_letter_count_from_the_threshold_on(self, length, wrong):
        """A few are every day's."""
        row = DeadList(key="celery-task-meta-*", queue="", length=length, source="results")

        snapshot = seen(letters=DeadLetters(lists=(row,)))
        part = next(area for area in areas(snapshot, LIMITS) if area.name == "Dead letters")

        assert bool(found(snapshot, "uncaptured-failures")) is wrong
        assert (f"{length} failures without a letter" in part.says) is wrong


class TestTheGate:
    """Before a deployment."""

    LIMITS = Thresholds(gate="deploy", grace_s=30, held_at_most=2)

    @pytest.mark.parametrize(
        ("age_s", "acknowledged", "expected"),
        [(29, True, None), (30, True, Severity.CRITICAL), (30, False, Severity.ATTENTION)],
    )
    def test_tasks_that_a_restart_would_kill(self, age_s, acknowledged, expected):
        """Critical where they would be lost for good."""
        snapshot = seen(held=[rows.held("t", age_s=age_s, acknowledged=acknowledged)])

        assert severity(snapshot, "deploy-risk", self.LIMITS) is expected
        assert found(snapshot, "deploy-risk") == []

    @pytest.mark.parametrize(("count", "wrong"), [(2, False), (3, True)])
    def test_tasks_that_nodes_hold_for_their_time(self, count, wrong):
        """More than may."""
        held = [rows.held(f"t{n}", "scheduled", eta_at=rows.NOW_S + 60) for n in range(count)]

        assert bool(found(seen(held=held), "deploy-risk", self.LIMITS)) is wrong

    @pytest.mark.parametrize(
        ("arrived", "length", "codes"),
        [(1, 50, {"dead-letters-growing"}), (0, 50, set())],
    )
    def test_dead_letters_only_where_they_come(self, arrived, length, codes):
        """Those that lie there are the daily run's."""
        row = DeadList(key="celery.dead", queue="celery", length=length, arrived=arrived)
        letters = DeadLetters(lists=(row,), watched_s=2.0)

        assert {each.code for each in diagnose(seen(letters=letters), self.LIMITS)} == codes

    def test_what_does_not_matter_then_is_left_out(self):
        """An old server is no reason to wait, and its part is not judged."""
        snapshot = seen(server=rows.server(product="Redis", version="7.0.15"))

        assert found(snapshot, "redis-version")
        assert diagnose(snapshot, self.LIMITS) == []
        assert state(snapshot, "Redis server", self.LIMITS) == "not judged"

    def test_what_matters_counts(self):
        """A backlog, a server that saves nothing."""
        snapshot = seen(queues=[rows.queue(depth=11)], of=care(replace(SOUND, aof=False)))

        assert {each.code for each in diagnose(snapshot, self.LIMITS)} == {"queue-backlog", "redis-persistence"}

    def test_what_is_not_seen_counts_always(self):
        """Nobody deploys blindly."""
        row = Coverage(place="results", seen=0, silent=1)

        assert verdict(diagnose(seen(coverage=(row,)), self.LIMITS)) is Verdict.UNKNOWN

    def test_slow_log_that_is_refused_is_no_reason_to_wait(self):
        """Nor what it would have said."""
        row = Coverage(place="slow log", seen=0, silent=1)

        assert found(seen(coverage=(row,)), "redis-slow")
        assert diagnose(seen(coverage=(row,)), self.LIMITS) == []


class TestThresholds:
    """What is asked for, and what the target has."""

    class _Broker:
        def __init__(self, **thresholds):
            self.target = Target(name="t", broker_url="redis://h", thresholds=Settings(**thresholds))

    def test_the_targets_own(self):
        """All of them."""
        own = self._Broker(redis_memory="2GiB", worker_memory="512MB", full_percent=70, save_after="1h", dead_warn=3)
        limits = Thresholds.of(own, grace="2m")

        assert limits.server == Limits(memory_bytes=2 * GIB, full_percent=70, save_after_s=3600, slow_s=0.1)
        assert (limits.worker_memory_bytes, limits.letters.dead_warn, limits.grace_s) == (512 * 10**6, 3, 120)
        assert limits.stuck == stuck_tasks.Thresholds()

    @pytest.mark.parametrize(
        ("given", "error", "hint"),
        [
            ({"gate": "deplyo"}, BadParameter, "Did you mean deploy?"),
            ({"gate": "friday"}, BadParameter, "deploy"),
            ({"accept": "redis-versoin"}, BadParameter, "Did you mean redis-version?"),
            ({"held_at_most": -1}, BadParameter, "0 allows none"),
            ({"grace": "30"}, SettingsError, "30s"),
        ],
    )
    def test_a_slip_of_the_finger_is_refused(self, given, error, hint):
        """With the nearest name."""
        with pytest.raises(error) as refused:
            Thresholds.of(self._Broker(), **given)

        assert hint in refused.value.hint

    def test_codes_are_taken_with_commas_between_them(self):
        """And blanks."""
        limits = Thresholds.of(self._Broker(), accept="redis-version, risky-setting,")

        assert limits.accepted == {"redis-version", "risky-setting"}


def _everything_wrong():
    """Return a deployment with as much wrong as fits."""
    server = rows.server(
        product="Redis",
        version="6.2.5",
        role="slave",
        used_memory_bytes=99 * MIB,
        maxmemory_bytes=100 * MIB,
        maxmemory_policy="allkeys-lru",
        connected_clients=99,
    )
    slow = SlowCommand(name="KEYS", count=1, longest_s=1.0, last_at=rows.NOW_S)
    bad = ServerCare(maxclients=100, aof=False, saves="", save_failed=True, slow=(slow,))
    node = NodeCare(
        name=rows.NODE, versions={"celery": "5.3.0"}, tasks=(replace(TASK, acks_late=True, comes_back=True),)
    )
    lists = (DeadList(key="celery.dead", queue="celery", length=200, arrived=3, dropped=1, unreadable=1),)
    return rows.twice(
        seen(
            of=Care(server=bad, nodes=(node,), results=ResultLife(total=500, looked=500, endless=500)),
            server=server,
            queues=[rows.queue("a", 100), rows.queue("b", 5, consumers=())],
            held=[rows.held("h", age_s=86400), rows.held("h2", age_s=1, node="w9@lab")],
            unacked=[rows.delivered("o"), rows.delivered("i", age_s=None), rows.delivered("r", retries=50)],
            unreadable=[rows.unreadable()],
            results=[rows.result("z")],
            letters=DeadLetters(lists=lists, watched_s=2.0),
        )
    )
