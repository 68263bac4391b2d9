"""Waiting lists are read in bounded windows, and nothing that stays in them is missed or told twice."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from opslib.collectors import queues, windows
from opslib.collectors import scan as scans
from opslib.collectors.deployment import collect
from opslib.collectors.windows import WINDOW_BYTES, Listing
from opslib.envelope import Head, head
from tests.support import servers
from tests.support.seed import KEYS, bind, envelope, iso, seed_waiting
from tests.support.watched import Watched

KIB = 1024


def listing(redis, queue="celery", priority=0):
    """Return a queue's list as `queues.lists` finds it."""
    key = KEYS.queue(queue, priority)
    return Listing(key=key, queue=queue, priority=priority, length=redis.llen(key))


def fill(redis, sizes, queue="celery"):
    """Publish one message for each size in bytes, in that order; return their ids."""
    raws = []
    for size in sizes:
        message = envelope(queue=queue)
        message["body"] = "x" * max(0, size - len(json.dumps(message)))
        raws.append(json.dumps(message).encode())
    for start in range(0, len(raws), 500):
        redis.lpush(queue, *raws[start : start + 500])
    return [json.loads(raw)["headers"]["id"] for raw in raws]


def ids(streamed):
    """Return the task ids of what a stream yielded."""
    return [json.loads(raw)["headers"]["id"] for _, raw in streamed]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([KIB] * 3000, id="small"),
        pytest.param([100 * KIB] * 40, id="large"),
        pytest.param([KIB] * 600 + [2048 * KIB] + [KIB] * 600, id="one heavy among small"),
    ],
)
def test_no_reply_weighs_more_than_a_window_and_one_message(broker, redis, sizes):
    """The server is never asked for more than it can answer at once, whatever the messages weigh."""
    sent = fill(redis, sizes)
    client = Watched(redis)

    read = ids(windows.stream(replace(broker, reads=client), listing(redis)))

    assert sorted(read) == sorted(sent)
    assert max(client.windows) <= WINDOW_BYTES + max(sizes) + 32 * KIB
    assert (0, -1) not in client.asked


def test_heavy_messages_behind_light_ones_do_not_come_all_at_once(broker, redis):
    """Where some weigh a thousand times the others, each window is a small one; without that, this is one of 25 MiB."""
    sent = fill(redis, [1024 * KIB] * 25 + [KIB] * 2000)
    client = Watched(redis)

    read = ids(windows.stream(replace(broker, reads=client), listing(redis)))

    assert sorted(read) == sorted(sent)
    average_bytes = (25 * 1024 * KIB + 2000 * KIB) // 2025
    assert max(client.windows) <= (WINDOW_BYTES // average_bytes + 2) * 1024 * KIB < 25 * 1024 * KIB


def test_a_list_is_read_in_few_windows(broker, redis):
    """Windows by bytes make as many replies as the bytes need, not as many as there are messages."""
    fill(redis, [KIB] * 3000)
    client = Watched(redis)

    list(windows.stream(replace(broker, reads=client), listing(redis)))

    assert len(client.windows) <= 3000 * KIB // WINDOW_BYTES * 2


@pytest.mark.parametrize("popped", [0, 1, 7])
@pytest.mark.parametrize("pushed", [0, 1, 9, 10, 11, 35])
def test_no_survivor_is_missed_and_none_is_told_twice(broker, redis, monkeypatch, pushed, popped):
    """Between windows of ten messages, producers push and workers take; what stays is seen once."""
    monkeypatch.setattr(windows, "_MOST_PER_WINDOW", 10)
    sent = fill(redis, [KIB] * 100)

    def meanwhile(window):
        for _ in range(popped):
            redis.rpop("celery")
        if pushed < 10 or window < 4:  # nobody pushes faster than a list is read, for long
            fill(redis, [KIB] * pushed)

    read = ids(windows.stream(replace(broker, reads=Watched(redis, meanwhile)), listing(redis)))

    stayed = {json.loads(raw)["headers"]["id"] for raw in redis.lrange("celery", 0, -1)} & set(sent)
    assert stayed <= set(read)
    assert not [each for each, times in Counter(read).items() if times > 1]


def test_no_survivor_is_missed_under_real_traffic(broker, redis, server):
    """The same, with a producer and a consumer that wait for nobody."""
    sent, done = fill(redis, [KIB] * 4000), threading.Event()

    def traffic():
        with server.client() as other:
            while not done.is_set():
                fill(other, [KIB] * 3)
                other.rpop("celery")

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        read = ids(windows.stream(broker, listing(redis)))
    finally:
        done.set()
        thread.join()

    stayed = {json.loads(raw)["headers"]["id"] for raw in redis.lrange("celery", 0, -1)} & set(sent)
    assert stayed <= set(read)
    assert max(Counter(read).values()) == 1


def test_a_list_that_vanishes_ends_the_stream(broker, redis, monkeypatch):
    """Workers may empty a queue while it is read."""
    monkeypatch.setattr(windows, "_MOST_PER_WINDOW", 10)
    fill(redis, [KIB] * 30)
    client = Watched(redis, lambda _: redis.delete("celery"))

    read = ids(windows.stream(replace(broker, reads=client), listing(redis)))

    assert len(read) == 10


def test_a_position_counts_what_is_served_before(broker, redis):
    """The message that is next to be served has none before it."""
    sent = fill(redis, [KIB] * 5)

    positions = {json.loads(raw)["headers"]["id"]: at for at, raw in windows.stream(broker, listing(redis))}

    assert positions == {task_id: at for at, task_id in enumerate(sent)}


@pytest.mark.parametrize(("limit", "seen"), [(0, 0), (1, 1), (4, 4), (5, 5), (6, 5)])
def test_a_limit_keeps_the_next_to_be_served(broker, redis, limit, seen):
    """What is left out is the newest, and it is counted."""
    sent = fill(redis, [KIB] * 5)

    read = ids(windows.stream(broker, listing(redis), limit=limit))
    scan = queues.scan(broker, [listing(redis)], watch=[], max_messages=limit)

    assert sorted(read) == sorted(sent[:seen])
    assert (scan.total, scan.unread) == (seen, 5 - seen)


def test_every_priority_is_a_list_of_its_own(broker, redis):
    """A priority is rounded down to its step, and one without the base list is found too."""
    for priority in (3, 4, 5, 9):
        seed_waiting(redis, queue="mail", priority=priority)

    listings, strange = queues.lists(broker, ["mail"])
    rows = queues.infos(["mail"], listings, {}, queues.scan(broker, listings, watch=[], max_messages=99))

    assert [(row.depth, dict(row.by_priority)) for row in rows] == [(4, {3: 3, 9: 1})]
    assert [each.key for each in listings] == ["mail\x06\x163", "mail\x06\x169"]
    assert strange == {}


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("string", lambda redis: redis.set("celery", "x")),
        ("hash", lambda redis: redis.hset("celery", "a", "b")),
        ("stream", lambda redis: redis.xadd("celery", {"a": "b"})),
        ("set", lambda redis: redis.sadd("celery", "a")),
    ],
)
def test_a_queue_that_is_no_list_is_named(broker, redis, kind, make):
    """A key of the wrong type is a place not seen, and no error."""
    make(redis)

    listings, strange = queues.lists(broker, ["celery"])

    assert (listings, strange) == ([], {"celery": kind})
    assert queues.coverage(0, 0, strange, []).silent == 1


@pytest.mark.parametrize(
    "name",
    ["two words", "a*?[b]\\", "ünïcode \N{WASTEBASKET}", "turned\u202eround", "new\nline", "x\x06\x165", "k" * 1024],
)
def test_any_name_is_a_queue(broker, redis, name):
    """Names go to the server as they are, not as patterns."""
    seeded = seed_waiting(redis, queue=name)

    listings, _ = queues.lists(broker, [name])

    assert [row.task_id for row, _ in queues.matches(broker, listings, ids=frozenset([seeded.task_id]))] == [
        seeded.task_id
    ]
    assert [each.queue for each in listings] == [name]


def test_a_name_that_is_not_text_survives(broker, redis):
    """Bytes that are no UTF-8 come back as the very same key."""
    raw = json.dumps(envelope()).encode()
    redis.lpush(b"caf\xe9", raw)

    listings, _ = queues.lists(broker, [b"caf\xe9".decode("utf-8", "surrogateescape")])

    assert [found for each in listings for _, found in windows.stream(broker, each)] == [raw]


def test_only_what_a_question_needs_is_kept(broker, redis):
    """Of a deep queue, the retried, the scheduled, the watched and the repeated are rows; all are counted."""
    for _ in range(50):
        seed_waiting(redis)
    retried = seed_waiting(redis, retries=3)
    later = seed_waiting(redis, eta=iso(60))
    watched = seed_waiting(redis)
    twice = [seed_waiting(redis, task_id="twice") for _ in range(2)]
    listings, _ = queues.lists(broker, ["celery"])

    scan = queues.scan(broker, listings, watch=[watched.task_id], max_messages=1000)
    repeated = [row.task_id for row, _ in queues.matches(broker, listings, hashes=scan.repeated)]

    assert {row.task_id for row in scan.kept} == {retried.task_id, later.task_id, watched.task_id}
    assert repeated == [each.task_id for each in twice]
    assert scan.total == 50 + 5
    assert scan.tasks["celery"] == {"tests.ok": 55}


def test_the_extremes_are_kept_and_their_number_is_bounded(broker, redis, monkeypatch):
    """Of more retried messages than are kept, it is the most retried that stay."""
    monkeypatch.setattr(scans, "_KEEP", 20)
    for retries in range(1, 31):
        seed_waiting(redis, retries=retries)
    listings, _ = queues.lists(broker, ["celery"])

    kept = queues.scan(broker, listings, watch=[], max_messages=1000).kept

    assert sorted(row.retries for row in kept) == list(range(11, 31))


def test_a_list_of_the_application_is_no_queue(broker, redis):
    """What nobody declared counts as a queue only if its next message is one of Celery's."""
    redis.lpush("recent-searches", "shoes", "hats")
    seeded = seed_waiting(redis, queue="undeclared")

    assert not queues.looks_like_one(broker, "recent-searches")
    assert queues.looks_like_one(broker, "undeclared")
    assert isinstance(head(seeded.raw), Head)


def test_the_server_may_hide_how_much_a_list_weighs(broker, redis, server):
    """Without MEMORY USAGE the first window is one message, and the rest follows."""
    servers.user(redis, f"{servers.READ_ONLY} -memory")
    limited = servers.elsewhere(broker, servers.as_user(server))
    sent = fill(redis, [KIB] * 20)
    client = Watched(limited.reads)

    read = ids(windows.stream(replace(limited, reads=client), listing(redis)))

    assert sorted(read) == sorted(sent)
    assert client.asked[0] == (0, 0)


def test_a_bound_queue_is_read_though_its_next_message_is_odd(broker, redis):
    """A declared queue is one, whatever lies in it."""
    bind(redis, "celery", "celery")
    redis.lpush("celery", "no JSON")

    listings, _ = queues.lists(broker, ["celery"])
    scan = queues.scan(broker, listings, watch=[], max_messages=10)

    assert [row.reason for row in scan.unreadable] == ["it is not JSON (Expecting value)"]
    assert (scan.unreadable_count, scan.unlisted) == (1, 0)


@pytest.mark.parametrize(("number", "unlisted"), [(2, 0), (3, 1)])
def test_unreadable_messages_beyond_the_rows_are_counted(broker, redis, monkeypatch, number, unlisted):
    """Rows are bounded; how many more there are is said."""
    monkeypatch.setattr(scans, "_KEEP", 2)
    bind(redis, "celery", "celery")
    redis.lpush("celery", *(f"no JSON {n}" for n in range(number)))

    snapshot = collect(broker)

    assert len(snapshot.unreadable) == 2
    (note,) = [row.note for row in snapshot.coverage if row.place == "waiting"]
    assert note.startswith("1 more") is bool(unlisted)


def test_one_enormous_message_hides_no_neighbour(broker, redis):
    """It comes whole, as no command tells an element's weight; the others are read all the same."""
    bind(redis, "celery", "celery")
    before, after = (seed_waiting(redis, retries=1) for _ in range(2))
    fill(redis, [64 * 1024 * KIB])
    last = seed_waiting(redis, retries=1)

    snapshot = collect(broker, settle="0.01s")

    (queue,) = snapshot.queues
    assert (queue.depth, queue.read, sum(queue.by_task.values())) == (4, 4, 4)
    assert {row.task_id for row in snapshot.waiting} >= {before.task_id, after.task_id, last.task_id}


def test_half_a_million_elements_that_are_no_messages(broker, redis):
    """Each is counted, few are listed, and what is left out is said."""
    bind(redis, "celery", "celery")
    for _ in range(50):
        redis.lpush("celery", *([b"x"] * 10_000))

    snapshot = collect(broker, settle="0.01s")

    (queue,) = snapshot.queues
    assert (queue.depth, queue.read, dict(queue.by_task)) == (500_000, 500_000, {"(unreadable)": 500_000})
    assert len(snapshot.unreadable) < 5_000
    assert "cannot be decoded" in next(row.note for row in snapshot.coverage if row.place == "waiting")


@pytest.mark.parametrize("declare", ["bound", "of the target"])
def test_what_this_tool_keeps_is_no_queue_whoever_says_so(redis, server, declare):
    """A quarantined message does not wait, even if a route or the settings call its list a queue."""
    kept = KEYS.quarantine("20261121T030000Z-trial-abc123", "mail")
    seed_waiting(redis, queue=kept)
    if declare == "bound":
        bind(redis, "mail", kept)

    found = servers.broker(server, queues=[kept] if declare == "of the target" else [])
    snapshot = collect(found, settle="0.01s")

    assert kept not in {queue.name for queue in snapshot.queues}
    assert snapshot.waiting == ()


def seen_of(broker, name="celery", now=0.0, consumers=()):
    """Return the row of a queue after its messages were read."""
    listings, _ = queues.lists(broker, [name])
    scan = queues.scan(broker, listings, watch=[], max_messages=10_000, now=now)
    (row,) = queues.infos([name], listings, {name: consumers}, scan)
    return row


@pytest.mark.parametrize(("priority", "step", "odd"), [(-1, 0, True), (0, 0, False), (9, 9, False), (10, 9, True)])
def test_a_priority_beyond_the_range_is_counted_by_what_the_message_says(broker, redis, priority, step, odd):
    """Its list tells only the step that kombu took for it."""
    seed_waiting(redis, "shop.pay", priority=priority)

    row = seen_of(broker)

    assert (dict(row.by_priority), row.odd_priorities) == ({step: 1}, {"shop.pay": {priority: 1}} if odd else {})


@pytest.mark.parametrize("protocol", [1, 2])
def test_what_has_expired_is_counted_by_its_list(broker, redis, protocol):
    """At the very instant it counts as expired, as it does for a worker; what cannot be parsed does not."""
    for expires in (100.0, 100.1, None, "soon", ""):
        message = envelope(expires=expires)
        if protocol == 1:
            body = json.dumps({"task": "tests.ok", "id": "x", "args": [], "kwargs": {}, "expires": expires})
            message |= {"headers": {}, "body": base64.b64encode(body.encode()).decode()}
        redis.lpush("celery", json.dumps(message))
    seed_waiting(redis, priority=9, expires=iso(-5))

    assert [each.expired for each in seen_of(broker, now=100.0).lists] == [1, 0]
    assert seen_of(broker, now=time.time()).expired == 3


def test_messages_with_an_eta_are_counted(broker, redis):
    """Whether or not they become rows."""
    for eta in (None, iso(60), iso(-60)):
        seed_waiting(redis, eta=eta)

    assert seen_of(broker).scheduled == 2


def test_a_queue_has_its_lists_with_what_waits_in_each(broker, redis):
    """By key, so that somebody who may not know how keys are called can say which messages are meant."""
    prefixed = replace(broker, keys=replace(broker.keys, prefix="shop:"))
    for task, priority in (("shop.ok", 0), ("shop.ok", 0), ("shop.pay", 3), ("shop.pay", 9)):
        seed_waiting(redis, task, priority=priority, keys=prefixed.keys)

    row = seen_of(prefixed)

    assert [(each.key, each.length, dict(each.by_task)) for each in row.lists] == [
        ("shop:celery", 2, {"shop.ok": 2}),
        ("shop:celery\x06\x163", 1, {"shop.pay": 1}),
        ("shop:celery\x06\x169", 1, {"shop.pay": 1}),
    ]
    assert list(row.by_task) == ["shop.ok", "shop.pay"]


def test_task_names_and_priorities_without_end_do_not_fill_the_memory(broker, redis, monkeypatch):
    """Beyond a number they are counted together, each message once."""
    monkeypatch.setattr(scans, "_TASK_NAMES", 3)
    monkeypatch.setattr(scans, "_ODD_PAIRS", 2)
    for number in range(6):
        seed_waiting(redis, f"shop.{number}", priority=10 + number)
    seed_waiting(redis, "shop.7", priority=-1)
    redis.lpush(
        "celery", b'{"headers": {"task": "odd", "id": "i"}, "properties": {"delivery_tag": "t"}, "body": "eA=="}'
    )

    row = seen_of(broker)

    assert sum(row.by_task.values()) == 8
    assert sum(count for odd in row.odd_priorities.values() for count in odd.values()) == 7
    assert len(row.odd_priorities) == 3


def test_a_later_look_renews_the_depth_of_each_list(broker, redis):
    """What was read of the messages stays; a list that is new is there with its length."""
    seed_waiting(redis, "shop.ok")
    before = seen_of(broker, consumers=("w1@lab",))
    seed_waiting(redis, "shop.ok")
    seed_waiting(redis, "shop.pay", priority=9)
    listings, _ = queues.lists(broker, ["celery"])

    (after,) = queues.renewed([before], listings, {"celery": ["w2@lab"]})

    assert (after.depth, dict(after.by_priority), after.consumers) == (3, {0: 2, 9: 1}, ("w2@lab",))
    assert [dict(each.by_task) for each in after.lists] == [{"shop.ok": 1}, {}]
    assert (after.read, dict(after.by_task)) == (1, {"shop.ok": 1})
