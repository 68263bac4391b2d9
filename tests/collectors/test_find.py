"""A task is found in every place that holds it, and each place that was not seen is named."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest

from opslib import records
from opslib.collectors import dead_letters, looks, quarantine, workers
from opslib.collectors.find import find
from opslib.demo import server as embedded
from opslib.envelope import digest
from opslib.errors import BrokerUnreachable
from opslib.keys import Keyspace
from opslib.plan import Action, Copy, Kind
from opslib.selection import Selection
from opslib.writer import apply
from tests.support import odd, servers
from tests.support.impostor import listening, reply
from tests.support.plans import planned
from tests.support.seed import bind, envelope, seed_result, seed_unacked, seed_waiting
from tests.support.watched import Watched


def test_every_place_of_a_task_is_named(broker, redis, server):
    """Two lists of different priorities, a delivery, a node and a result; in the order of a task's life."""
    seed_waiting(redis, task_id="x", queue="mail", priority=9)
    seed_waiting(redis, task_id="x")
    seed_unacked(redis, task_id="x")
    seed_result(redis, "RETRY", task_id="x")
    answers = {"stats": {}, "scheduled": [{"request": {"id": "x"}, "eta": None}]}

    with listening(server, lambda asked: [reply(asked, "a@x", answers.get(asked["method"], []))]):
        found = find(broker, ["x"])

    assert found.places == {"x": ["waiting", "waiting", "unacked", "scheduled", "result"]}
    assert sorted(row.queue for row in found.waiting) == ["celery", "mail"]
    assert not any(row.silent for row in found.coverage)


def test_an_id_that_is_nowhere_has_no_place(broker, redis):
    """It is answered like any other, so that its absence can be read."""
    seed_waiting(redis)

    found = find(broker, ["here-not", "nor-there"])

    assert found.places == {"here-not": [], "nor-there": []}
    assert found.messages == ()


def test_only_the_ids_that_were_asked_for_are_found(broker, redis):
    """Of many messages, one."""
    for _ in range(20):
        seed_waiting(redis)
    wanted = seed_waiting(redis, queue="mail")
    seed_unacked(redis)

    found = find(broker, [wanted.task_id])

    assert [row.sha256 for row in found.messages] == [wanted.sha256]


@pytest.mark.parametrize(
    ("place", "hide"),
    [
        ("unacked", lambda redis: redis.set("unacked", "x")),
        ("waiting", lambda redis: redis.set("celery", "x")),
    ],
)
def test_a_place_that_is_hidden_is_named(broker, redis, place, hide):
    """It may hold the task unseen."""
    bind(redis, "celery", "celery")
    hide(redis)

    found = find(broker, ["x"])

    assert [row.place for row in found.coverage if row.silent] == [place]


def test_a_silent_node_may_hold_it(broker, server):
    """Then the coverage of the nodes is not whole."""
    with listening(server, lambda _: []):
        found = find(broker, ["x"], answer_within="0.2s")

    assert [row.place for row in found.coverage if row.silent] == ["workers"]


@pytest.mark.parametrize("backend", ["redis://127.0.0.1:1/0", "db+sqlite:///results.db"])
def test_results_out_of_reach_are_named(redis, server, backend):
    """The messages are found all the same."""
    seeded = seed_waiting(redis)

    found = find(servers.broker(server, result_backend=backend), [seeded.task_id])

    assert found.places == {seeded.task_id: ["waiting"]}
    assert [row.place for row in found.coverage if row.silent] == ["results"]


def test_a_server_that_is_gone_is_an_error(tmp_path):
    """Not an empty answer."""
    with embedded.start(tmp_path) as running:
        broker = servers.broker(running)

    with pytest.raises(BrokerUnreachable):
        find(broker, ["x"])


ENTRIES = {
    "with an envelope": {
        "v": 1,
        "entry_id": "e",
        "task_id": "x",
        "task_name": "tests.ok",
        "args": [1],
        "kwargs": {},
        "exception": "no such order",
        "exc_type": "ValueError",
        "traceback": "…",
        "failed_at": 1795225339.5,
        "envelope": json.dumps(envelope(task_id="x")),
    },
    "without one": {
        "task_id": "x",
        "task_name": "tests.ok",
        "args": [1],
        "kwargs": {},
        "exception": "no such order",
        "failed_at": "2026-11-21T02:00:00Z",
    },
    "the message itself": envelope(task_id="x"),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_dead_letter_is_found_whoever_wrote_it(broker, redis, entry):
    """By the id that it names; its arguments are not read."""
    redis.lpush("mail.dead", json.dumps({"task_id": "another"}), json.dumps(entry))

    found = find(broker, ["x"])

    assert found.places == {"x": ["dead"]}
    (letter,) = found.dead
    assert (letter.key, letter.task) == ("mail.dead", "tests.ok")
    assert ("no such order" in letter.exception) is ("exception" in entry)
    assert letter.exception.startswith("ValueError: ") is ("exc_type" in entry)


@pytest.mark.parametrize("raw", [b"no JSON", b"[1]", b'{"task_id": {"x": 1}}', b"\xff", b"[" * 100_000])
def test_a_letter_that_cannot_be_read_hides_no_other(broker, redis, raw):
    """It is counted, and the one behind it is found."""
    redis.lpush("mail.dead", json.dumps({"task_id": "x"}), raw)

    found = find(broker, ["x"])

    assert found.places == {"x": ["dead"]}
    assert not found.silent_places


@pytest.mark.parametrize(("kind", "silent"), [("set", 1), ("hash", 1), ("string", 0)])
def test_dead_letters_of_another_kind_are_named_as_not_seen(broker, redis, kind, silent):
    """A collection could hold them; a plain value is somebody's own."""
    {"set": redis.sadd, "string": redis.set}.get(kind, lambda key, value: redis.hset(key, value, "1"))("mail.dead", "x")

    (row,) = [row for row in find(broker, ["x"]).coverage if row.place == "dead letters"]

    assert row.silent == silent
    assert (f"mail.dead is a {kind}" in row.note) is bool(silent)


def test_a_queue_that_is_called_like_dead_letters_is_a_queue(broker, redis):
    """Its messages wait; they are not told twice."""
    bind(redis, "mail.dead", "mail.dead")
    seed_waiting(redis, task_id="x", queue="mail.dead")

    assert find(broker, ["x"]).places == {"x": ["waiting"]}


@pytest.mark.parametrize("place", ["waiting", "unacked"])
def test_what_a_run_put_aside_is_found(broker, redis, archive, place):
    """With the run that did it, and the place that it was taken from."""
    seed = seed_waiting if place == "waiting" else seed_unacked
    bind(redis, "celery", "celery")
    seeded, other = seed(redis), seed(redis)
    copies = [
        Copy(place=place, key=each.key, queue="celery", delivery_tag=each.tag, sha256=each.sha256)
        for each in (seeded, other)
    ]
    actions = [
        Action(kind=Kind.QUARANTINE, subject=each.task_id, source=place, destination="quarantine", copies=(copy,))
        for each, copy in zip((seeded, other), copies, strict=True)
    ]
    apply(planned(broker, *actions), broker, dry_run=False)
    assert archive.is_dir()

    found = find(broker, [seeded.task_id])

    assert found.places == {seeded.task_id: ["quarantined"]}
    (row,) = found.quarantined
    assert (row.run_id, row.queue, row.place) == (records.context().run_id, "celery", place)


def test_a_bound_on_what_is_kept_is_said(broker, redis, monkeypatch):
    """Of dead letters the newest are read; what was left out may hold the task."""
    monkeypatch.setattr(dead_letters, "MOST_ENTRIES", 2)
    monkeypatch.setattr(quarantine, "MOST_MESSAGES", 2)
    aside = Keyspace().quarantine("20261121T021500Z-trial-0a1b2c", "celery")
    for task_id in ("old", "a", "b"):
        redis.lpush("mail.dead", json.dumps({"task_id": task_id}))
        redis.lpush(aside, json.dumps(envelope(task_id=f"q-{task_id}")))
    redis.lpush("more.dead", json.dumps({"task_id": "c"}))

    found = find(broker, ["old", "a", "b"])

    silent = {row.place: (row.seen, row.silent) for row in found.silent_places}
    assert {place for place, _ in silent.items()} == {"dead letters", "quarantine"}
    assert all(seen == 2 for seen, _ in silent.values())
    assert silent["dead letters"][1] == 2
    assert silent["quarantine"][1] == 1
    assert not found.places["old"]


def test_a_quarantine_that_is_no_list_is_named(broker, redis):
    """Somebody has written over it; nothing is claimed of what it held."""
    redis.set(Keyspace().quarantine("20261121T021500Z-trial-0a1b2c", "celery"), "x")

    (row,) = find(broker, ["x"]).silent_places

    assert row.place == "quarantine"
    assert "cannot be read" in row.note


def test_a_message_nobody_can_decode_is_found_in_quarantine_by_its_note(broker, redis):
    """The run that took it wrote down what it was."""
    aside = Keyspace().quarantine("20261121T021500Z-trial-0a1b2c", "celery")
    redis.lpush(aside, b"no JSON")
    note = json.dumps({"subject": "x", "place": "waiting", "queue": "celery"})
    redis.hset(Keyspace().quarantine_notes("20261121T021500Z-trial-0a1b2c"), digest(b"no JSON"), note)

    (row,) = find(broker, ["x"]).quarantined

    assert (row.subject, row.queue, bool(row.unreadable)) == ("x", "celery", True)


def test_looking_without_what_is_kept(broker, redis):
    """It is neither searched nor claimed to be."""
    redis.lpush("mail.dead", json.dumps({"task_id": "x"}))

    found = find(broker, ["x"], kept=False)

    assert found.places == {"x": []}
    assert not {"dead letters", "quarantine"} & {row.place for row in found.coverage}


def test_every_place_is_found_under_a_key_prefix(redis, server):
    """And nothing that stands without it."""
    space = Keyspace(prefix="shop:", result_prefix="res:")
    broker = servers.broker(server, global_keyprefix="shop:", result_keyprefix="res:")
    seed_waiting(redis, task_id="x", priority=6, keys=space)
    seed_unacked(redis, task_id="x", keys=space)
    redis.set(space.result("x"), json.dumps({"status": "RETRY", "result": None}))
    redis.lpush("shop:mail.dead", json.dumps({"task_id": "x"}))
    redis.lpush(space.quarantine("20261121T021500Z-trial-0a1b2c", "celery"), json.dumps(envelope(task_id="x")))
    seed_waiting(redis, task_id="y")
    redis.lpush("mail.dead", json.dumps({"task_id": "y"}))

    found = find(broker, ["x", "y"])

    assert found.places == {"x": ["waiting", "unacked", "result", "dead", "quarantined"], "y": []}


@pytest.mark.parametrize("priority", [0, 3, 5, 9, 255, -1])
def test_a_task_is_found_in_the_list_of_any_priority(broker, redis, priority):
    """With those that are served before it."""
    seed_waiting(redis, priority=priority)
    seed_waiting(redis, task_id="x", priority=priority)

    (row,) = find(broker, ["x"]).waiting

    assert (row.position, row.priority) == (1, priority)


IDS = {
    "a path": "../../etc/passwd",
    "markup": "<script>alert(1)</script>",
    "10 kB": "x" * 10_240,
    "a pattern": "*",
    "a line feed": "a\nb",
    "a null": "a\x00b",
    "an emoji": "💥",
    "half a surrogate pair": "\ud800",
    "quotes": "'\";--",
}


@pytest.mark.parametrize("task_id", IDS.values(), ids=IDS)
def test_an_id_may_be_any_text(broker, redis, task_id):
    """It is looked for as it is, and is no pattern and no path."""
    seed_waiting(redis, task_id=task_id)
    seed_unacked(redis)
    redis.lpush("mail.dead", json.dumps({"task_id": task_id}))

    found = find(broker, [task_id])

    (places,) = found.places.values()
    assert places[0] == "waiting"
    assert len(found.ids) == 1


def test_names_that_are_no_utf8_are_found(broker, redis):
    """A queue, a list of dead letters and a result, as bytes."""
    name = b"caf\xe9"
    bind(redis, "celery", "celery")
    redis.lpush(name, json.dumps(envelope(task_id="x")))
    redis.lpush(name + b".dead", json.dumps({"task_id": "x"}))
    redis.set(b"celery-task-meta-" + name, json.dumps({"status": "SUCCESS", "result": 1}))

    found = find(broker, ["x", name.decode("utf-8", "surrogateescape")])

    assert sorted(found.places.values()) == [["result"], ["waiting", "dead"]]


def test_a_message_without_protocol_2_is_found(broker, redis):
    """Its id stands in its body."""
    redis.lpush("celery", odd.ODD["8 protocol 1"])

    assert find(broker, ["old-1"]).places == {"old-1": ["waiting"]}


def test_messages_that_cannot_be_decoded_are_noted_where_they_are(broker, redis):
    """The place was seen whole, and still nobody can say whether one of them is the task."""
    bind(redis, "mail", "mail")
    redis.lpush("mail", b"no JSON", b"{}")
    redis.hset("unacked", "tag", b"no JSON")

    notes = {row.place: row.note for row in find(broker, ["x"], settle="0.01s").coverage}

    assert notes["waiting"] == "2 messages in mail cannot be decoded, so nobody knows of which task."
    assert notes["unacked"] == "1 message cannot be decoded, so nobody knows of which task."


def test_one_id_for_every_message_fills_no_memory(broker, redis):
    """Those that are served next are kept, and there is no end to the others."""
    for _ in range(looks.MOST_COPIES + 20):
        seed_waiting(redis, task_id="nightly")

    for found in (find(broker, ["nightly"]), find(broker, ["nightly"], settle="0.01s")):
        assert sorted(row.position for row in found.waiting) == list(range(looks.MOST_COPIES))


def test_what_a_task_has_sent_is_kept_beside_it(broker, redis):
    """By the root that a message names; it is no copy of the task."""
    seed_waiting(redis, task_id="x")
    sent = [seed_waiting(redis, root_id="x").task_id, seed_unacked(redis, root_id="x").task_id]
    seed_waiting(redis)

    found = find(broker, ["x"], settle="0.01s")

    assert found.places == {"x": ["waiting"]}
    assert sorted(row.task_id for row in found.offspring) == sorted(sent)


def moving(monkeypatch, step):
    """Let something happen between the look at the nodes and the one at the waiting lists, once."""
    real, left = workers.read, [step]

    def read(*words, **options):
        answer = real(*words, **options)
        if left:
            left.pop()()
        return answer

    monkeypatch.setattr(workers, "read", read)


def test_a_task_that_overtakes_the_first_look_meets_the_second(broker, redis, monkeypatch):
    """It waited while the delivered messages were read, and was delivered when the lists were."""
    seeded = seed_waiting(redis, task_id="x")

    def deliver():
        redis.delete(seeded.key)
        seed_unacked(redis, task_id="x")

    moving(monkeypatch, deliver)
    assert find(broker, ["x"]).places == {"x": []}
    redis.delete("unacked", "unacked_index")
    seed_waiting(redis, task_id="x")
    moving(monkeypatch, deliver)

    assert find(broker, ["x"], settle="0.01s").places == {"x": ["unacked"]}


def test_a_task_that_is_put_aside_between_the_looks_is_found(broker, redis, monkeypatch):
    """Whoever stops it meanwhile leaves it in quarantine."""
    seed_unacked(redis, task_id="x")
    space = Keyspace()
    redis.lpush(space.quarantine("20261121T021500Z-trial-0a1b2c", "celery"), json.dumps(envelope()))

    def stop(_):
        redis.delete("unacked", "unacked_index")
        redis.lpush(space.quarantine("20261121T021500Z-trial-0a1b2c", "celery"), json.dumps(envelope(task_id="x")))

    monkeypatch.setattr("opslib.collectors.find.time.sleep", stop)

    assert find(broker, ["x"], settle="1s").places == {"x": ["quarantined"]}


def test_a_task_that_is_put_back_between_the_looks_is_found(broker, redis, monkeypatch):
    """It was delivered, and waits by now: lists in which it was not are read again."""
    seed_unacked(redis, task_id="x")
    bind(redis, "celery", "celery")

    def restore(_):
        redis.delete("unacked", "unacked_index")
        seed_waiting(redis, task_id="x")

    monkeypatch.setattr("opslib.collectors.find.time.sleep", restore)

    assert find(broker, ["x"], settle="1s").places == {"x": ["waiting"]}


def test_what_is_finished_needs_no_second_look(broker, redis, monkeypatch):
    """Nor does a task that waits where somebody consumes."""
    seed_result(redis, "SUCCESS", task_id="done")
    seed_waiting(redis, task_id="waits")
    monkeypatch.setattr("opslib.collectors.find.time.sleep", lambda _: pytest.fail("waited for nothing"))

    assert find(broker, ["done", "waits"], settle="1s").places == {"done": ["result"], "waits": ["waiting"]}


def test_a_node_that_is_stopped_is_named(trial):
    """What it holds may be the task, so nothing is said of the nodes as a whole."""
    worker = trial.worker()
    broker = servers.broker(trial.server)
    with worker.frozen():
        found = find(broker, ["x"], settle="0.05s", answer_within="0.3s")
    worker.kill()

    (row,) = found.silent_places
    assert (row.place, row.seen, row.silent) == ("workers", 0, 1)
    assert "1 heard the question" in row.note


def test_a_long_queue_is_read_in_small_pieces(broker, redis):
    """20,000 messages: one is found, no reply is large, and no memory is needed for the others."""
    with redis.pipeline(transaction=False) as pipe:
        for number in range(20_000):
            pipe.lpush("celery", json.dumps(envelope(task_id=f"t{number}", tag=f"g{number}")))
        pipe.execute()
    watched = Watched(broker.reads)
    slow = replace(broker, reads=watched)

    tracemalloc.start()
    found = find(slow, ["t777"], settle="0.01s")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [row.position for row in found.waiting] == [777]
    assert max(watched.windows) < 600 * 1024
    assert peak < 12 * 1024 * 1024


class TestSelection:
    """A filter in place of ids."""

    def test_name_and_retries(self, broker, redis):
        """Each condition holds; whatever else is of the same task comes along."""
        seed_waiting(redis, "mail.send", retries=5)
        meant = seed_waiting(redis, "shop.charge", retries=5).task_id
        seed_waiting(redis, "shop.charge", task_id=meant, queue="a-queue-read-before", retries=0)
        seed_unacked(redis, "shop.charge", retries=2)

        found = find(broker, selection=Selection(task="shop.*", retries=3))

        assert found.places == {meant: ["waiting", "waiting"]}
        assert found.selection == Selection(task="shop.*", retries=3)

    def test_places(self, broker, redis):
        """Only tasks in one of them; of these, every copy."""
        waits = seed_waiting(redis, "shop.charge").task_id
        delivered = seed_unacked(redis, "shop.charge").task_id
        seed_waiting(redis, "shop.charge", task_id=delivered)

        assert find(broker, selection=Selection(), places=["unacked"]).places == {delivered: ["waiting", "unacked"]}
        assert set(find(broker, selection=Selection(), places=["waiting"]).places) == {waits, delivered}

    def test_a_held_task_is_judged_by_its_message(self, broker, redis, server):
        """One without a message has no retries that anybody knows."""
        retried = seed_unacked(redis, retries=4).task_id
        answers = {"stats": {}, "active": [{"id": each, "type": "tests.ok"} for each in (retried, "early")]}

        with listening(server, lambda asked: [reply(asked, "a@x", answers.get(asked["method"], []))]):
            loops = find(broker, selection=Selection(retries=3), places=["active"])
            everything = find(broker, selection=Selection(task="tests.*"), places=["active"])

        assert set(loops.places) == {retried}
        assert set(everything.places) == {retried, "early"}

    def test_a_limit_counts_the_others(self, broker, redis):
        """Those delivered the longest ago come first, and each task is counted once."""
        ids = [seed_unacked(redis, age_s=age_s).task_id for age_s in (30, 20, 10)]
        seed_waiting(redis, task_id=ids[2])
        for _ in range(4):
            seed_waiting(redis)

        found = find(broker, selection=Selection(), limit=2)

        assert found.ids == frozenset(ids[:2])
        assert found.more == 5

    def test_nothing_fits(self, broker, redis):
        """No task, and every place was seen."""
        seed_waiting(redis)

        found = find(broker, selection=Selection(task="nobody.*"), settle="0.01s")

        assert (found.places, found.more, found.silent_places) == ({}, 0, ())


def test_without_a_name_the_longest_unacknowledged_are_looked_for(broker, redis):
    """So many, by the time of their delivery."""
    ids = [seed_unacked(redis, age_s=age_s).task_id for age_s in (10, 300, 200)]
    seed_result(redis, "RETRY", task_id=ids[1])

    assert find(broker, oldest=2).places == {ids[1]: ["unacked", "result"], ids[2]: ["unacked"]}
    assert find(broker, ["x"], oldest=2).places == {"x": []}
    assert (find(broker, oldest=2).unasked, find(broker, ["x"], oldest=2).unasked) == (True, False)
    assert find(broker).places == {}
