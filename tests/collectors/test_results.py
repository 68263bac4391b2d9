"""Results that are not final are rows, all are counted, and what cannot be read is named."""

from __future__ import annotations

import json
import pickle
import time
import zlib

import pytest

from opslib.collectors import results
from opslib.collectors.deployment import collect
from opslib.facts.system import FINAL_STATES
from opslib.findings import Verdict, verdict
from opslib.symptoms.stuck_tasks import Thresholds, diagnose
from tests.support import servers
from tests.support.seed import KEYS, seed_result, seed_unacked


def read(broker, *, max_keys=10_000):
    """Read with the keys that a pass over the broker's database would have met."""
    known = list(broker.reads.scan_iter(match="celery-task-meta-*"))
    return results.read(broker, known, max_keys=max_keys)


@pytest.mark.parametrize("state", ["STARTED", "RETRY", "RECEIVED", "PROGRESS", "resizing"])
def test_a_result_that_is_not_final_is_a_row(broker, redis, state):
    """Celery's own states and an application's."""
    task_id = seed_result(redis, state, result={"pid": 42, "hostname": "w1@lab"}, name="tests.ok", queue="mail")

    rows, states, coverage = read(broker)

    assert [(row.task_id, row.state, row.node, row.pid) for row in rows] == [(task_id, state, "w1@lab", 42)]
    assert [(row.task, row.queue) for row in rows] == [("tests.ok", "mail")]
    assert states == {state: 1}
    assert (coverage.seen, coverage.silent) == (1, 0)


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_a_final_result_is_counted_and_no_row(broker, redis, state):
    """There may be millions of them."""
    seed_result(redis, state)

    rows, states, coverage = read(broker)

    assert (rows, dict(states), coverage.silent) == ([], {state: 1}, 0)


@pytest.mark.parametrize(("life_s", "lasts"), [(100, True), (None, False)])
def test_a_row_says_when_it_expires(broker, redis, life_s, lasts):
    """Epoch seconds by the server's clock; none for a result without an end."""
    seed_result(redis, "STARTED", life_s=life_s)

    (row,), _, _ = read(broker)

    assert row.expires_at == (pytest.approx(time.time() + 100, abs=5) if lasts else None)


OPAQUE = {
    "compressed": b"\x00celery-compressed\x00zlib\x00" + zlib.compress(b"{}"),
    "pickled": pickle.dumps({"status": "SUCCESS"}),
    "no JSON": b"oops",
    "no object": b"[1]",
    "empty status": b'{"status": ""}',
}


@pytest.mark.parametrize("case", OPAQUE)
def test_a_result_that_is_no_json_is_counted_and_accused_of_nothing(broker, redis, case):
    """Its state is not known: it is neither under way nor whole, and that is what is said."""
    redis.set(KEYS.result("opaque"), OPAQUE[case])

    rows, states, coverage = read(broker)
    findings = diagnose(collect(broker, settle="0.01s"), Thresholds())

    assert (rows, dict(states)) == ([], {results.UNREADABLE: 1})
    assert coverage.silent == 1
    assert "zombie-result" not in {finding.code for finding in findings}


@pytest.mark.parametrize("state", ["SUCCESS", "STARTED"])
def test_a_huge_result_is_read_by_its_head(broker, redis, state):
    """A traceback of 20 MB is neither fetched nor decoded."""
    redis.set(KEYS.result("huge"), json.dumps({"status": state, "result": "x" * 20_000_000}))
    redis.config_resetstat()

    rows, states, _ = read(broker)

    assert dict(states) == {state: 1}
    assert [(row.state, row.size_bytes > 20_000_000) for row in rows] == [("STARTED", True)] * (state == "STARTED")
    assert redis.info("stats")["total_net_output_bytes"] < 200_000


def test_a_key_of_another_type_is_counted(broker, redis):
    """It stands under a result's name and is none."""
    redis.lpush(KEYS.result("list"), "x")

    rows, states, coverage = read(broker)

    assert (rows, dict(states), coverage.silent) == ([], {results.UNREADABLE: 1}, 1)


def test_a_key_that_vanishes_meanwhile_is_left_out(broker):
    """Between the pass over the keys and the look at its value, it expired."""
    rows, states, coverage = results.read(broker, [KEYS.result("gone").encode()], max_keys=10)

    assert (rows, dict(states), coverage.seen, coverage.silent) == ([], {}, 0, 0)
    assert results.by_id(broker, ["gone"])[0] == []


@pytest.mark.usefixtures("redis")
def test_results_of_another_database_are_found(server):
    """The result backend is often a database of its own."""
    apart = servers.broker(server, result_backend=server.url[:-1] + "1")
    with server.client() as other:
        other.select(1)
        task_id = seed_result(other, "STARTED")
        other.set("something else", "x")

    rows, states, coverage = results.read(apart, [], max_keys=100)

    assert [row.task_id for row in rows] == [task_id]
    assert (dict(states), coverage.silent) == ({"STARTED": 1}, 0)


@pytest.mark.usefixtures("redis")
def test_a_pass_over_another_database_stops_at_its_limit(server):
    """And says how many keys were left."""
    apart = servers.broker(server, result_backend=server.url[:-1] + "1")
    with server.client() as other:
        other.select(1)
        for _ in range(600):
            seed_result(other, "SUCCESS")

    _, _, coverage = results.read(apart, [], max_keys=100)

    assert coverage.silent == 500
    assert "max_keys" in coverage.note


def test_more_open_results_than_are_kept_are_said(broker, redis, monkeypatch):
    """Rows are bounded; the count of those left out is not."""
    monkeypatch.setattr(results, "_MOST_OPEN", 3)
    for _ in range(5):
        seed_result(redis, "STARTED")

    rows, states, coverage = read(broker)

    assert (len(rows), dict(states), coverage.silent) == (3, {"STARTED": 5}, 2)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("redis://127.0.0.1:1/0", id="nobody listens"),
        pytest.param("db+sqlite:///results.db", id="not Redis"),
    ],
)
def test_results_out_of_reach_are_a_place_not_seen(redis, server, backend):
    """The rest is seen all the same, in both looks, and the verdict is never healthy."""
    apart = servers.broker(server, result_backend=backend)
    seeded = seed_unacked(redis)

    snapshot = collect(apart, settle="0.01s")

    assert snapshot.earlier is not None
    assert [row.task_id for row in snapshot.unacked] == [seeded.task_id]
    assert [row.silent for row in snapshot.coverage if row.place == "results"] == [1]
    assert verdict(diagnose(snapshot, Thresholds())) in {Verdict.UNKNOWN, Verdict.CRITICAL}


def test_ids_with_odd_characters_are_looked_up_as_they_are(broker, redis):
    """An id is whatever a producer chose."""
    for task_id in ("order:4711", "ünïcode", "a b", "*"):
        seed_result(redis, "SUCCESS", task_id=task_id)

    rows, coverage = results.by_id(broker, ["*", "a b", "order:4711", "ünïcode", "none"])

    assert [row.task_id for row in rows] == ["*", "a b", "order:4711", "ünïcode"]
    assert (coverage.seen, coverage.silent) == (5, 0)
