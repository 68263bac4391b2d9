"""Results are counted as they are, whatever they look like; what was not seen is said."""

from __future__ import annotations

import random
import tracemalloc
import uuid

import pytest

from opslib import retention as retentions
from opslib.aging import UNREADABLE
from opslib.broker import connect
from opslib.collectors import pages
from opslib.collectors.circulation import read as circulating
from opslib.collectors.stored import OTHERS, stored
from opslib.keys import raw_name
from opslib.settings import Target
from tests.support import servers
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.stored import DAY_S, HOUR_S, store, value

RULES = retentions.read({"shop.*": "24h"})


def counts(seen):
    """Return how many results there are of each kind."""
    return {
        (row.state, row.task, row.age, row.lasting, row.standing): (row.count, row.size_bytes) for row in seen.groups
    }


def test_each_result_is_counted_once_with_its_bytes(broker, redis):
    """By state, task, age and life."""
    sizes = {}
    for n in range(700):
        state, task = ("SUCCESS", "FAILURE")[n % 2], ("", "shop.mail")[n // 2 % 2]
        age_s, life_s = (HOUR_S / 2, 30 * HOUR_S)[n // 4 % 2], (None, DAY_S)[n // 8 % 2]
        key = store(redis, f"id-{n}", state, task=task, age_s=age_s, life_s=life_s)
        standing = "past" if age_s > (DAY_S if task else DAY_S / 2) else "kept"
        of = (state, task, "under 1 h" if age_s < HOUR_S else "1 to 2 d", life_s is None, standing)
        count, size = sizes.get(of, (0, 0))
        sizes[of] = (count + 1, size + redis.strlen(key))

    seen = stored(broker, RULES)

    assert counts(seen) == sizes
    assert seen.count == 700
    assert not [row for row in seen.coverage if row.silent]


def test_memory_does_not_grow_with_their_number(broker, redis):
    """Of twenty times as many results, no more than a few pages are held at a time."""
    raw = value(redis, "ID", task="shop.mail", age_s=60)

    def peak(count):
        with redis.pipeline(transaction=False) as pipe:
            for n in range(count):
                task_id = str(uuid.UUID(int=random.Random(n).getrandbits(128)))
                pipe.set(KEYS.result(task_id), raw.replace(b"ID", task_id.encode()))
            pipe.execute()
        stored(broker, RULES, only_count=True)
        tracemalloc.start()
        try:
            assert stored(broker, RULES).count == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(1_500)
    large = peak(30_000)

    assert large < small + 1_500_000


def test_names_without_an_end_are_counted_together(broker, redis):
    """Whoever names each task anew must not fill this machine's memory."""
    for n in range(900):
        store(redis, f"id-{n}", task=f"task-{n}")

    seen = stored(broker, RULES)

    assert seen.count == 900
    assert len(seen.groups) < 600
    assert sum(row.count for row in seen.groups if row.task == OTHERS) == 400


def test_who_is_in_circulation_is_known_from_every_place(broker, redis):
    """Waiting in any list, or unacknowledged, also where the index lacks it; what no worker can read is no task."""
    waiting = [seed_waiting(redis, priority=priority).task_id for priority in (0, 3, 6, 9)]
    delivered = seed_unacked(redis, indexed=False).task_id
    redis.lpush("celery", b"no JSON")

    held = circulating(broker, timeout_s=0.2)

    assert len(held) == 5
    assert all(task_id in held for task_id in (*waiting, delivered))
    assert str(uuid.uuid4()) not in held
    assert held.unseen == ()


def test_results_in_another_database_are_counted_there(broker, redis, server):
    """And the other keys of the broker's are still met."""
    assert broker
    apart = connect(Target(name="trial", broker_url=server.url, result_backend=server.url.replace("/0", "/5")))
    other = servers.broker(server, broker_url=server.url.replace("/0", "/5"))
    store(other.reads, "a", age_s=DAY_S)
    store(redis, "b", age_s=DAY_S)
    redis.rpush(KEYS.reply_list("0e3f"), b"{}")

    seen = stored(apart, RULES)

    assert seen.count == 1
    assert seen.leftover("replies").count == 1
    assert seen.site != seen.replies_site
    other.reads.flushdb()


def test_a_user_who_may_not_read_is_told(server, redis):
    """Nothing is counted as empty that could not be read."""
    store(redis, "a")
    servers.user(redis, "on >geheim ~* &* +@all -getrange")

    seen = stored(connect(Target(name="trial", broker_url=servers.as_user(server))), RULES)

    (row,) = [row for row in seen.coverage if row.place == "results"]
    assert (seen.count, row.silent) == (0, 1)
    assert "getrange" in row.note


@pytest.mark.parametrize("size", [pages.HEAD_BYTES - 1, pages.HEAD_BYTES, pages.HEAD_BYTES + 1, pages.WHOLE_BYTES + 1])
def test_a_value_of_any_length_is_understood(broker, redis, size):
    """At the lengths where it is read another way."""
    bare = len(value(redis, "a", age_s=DAY_S * 3, result=""))
    store(redis, "a", age_s=DAY_S * 3, result="x" * (size - bare))
    assert abs(redis.strlen(KEYS.result("a")) - size) <= 12  # a date without a fraction is shorter

    (group,) = stored(broker, RULES).groups

    assert (group.state, group.age, group.standing, group.size_bytes) == (
        "SUCCESS",
        "2 to 7 d",
        "past",
        redis.strlen(KEYS.result("a")),
    )


def test_a_retention_that_ends_amid_an_age_parts_only_what_it_judges(broker, redis):
    """Of a task that can still be run, one row tells of both sides of it."""
    for age_s in (30 * HOUR_S, 40 * HOUR_S):
        store(redis, f"id-{age_s}", task="shop.mail", age_s=age_s)
        store(redis, seed_waiting(redis).task_id, task="shop.mail", age_s=age_s)

    seen = stored(broker, retentions.read({"shop.*": "36h"}))

    assert {of[2:]: count for of, (count, _) in counts(seen).items()} == {
        ("1 to 2 d", False, "kept"): 1,
        ("1 to 2 d", False, "past"): 1,
        ("1 to 2 d", False, "held"): 2,
    }
    assert len(seen.groups) == 3


def test_kept_for_no_time_also_what_is_dated_ahead_is_past(broker, redis):
    """As the clock of whoever wrote it may be."""
    store(redis, "a", age_s=-60)

    (group,) = stored(broker, retentions.read({}, older_than="0", everything=True)).groups

    assert (group.age, group.standing) == ("under 1 h", "past")


def test_names_of_any_length_are_understood_beside_each_other(broker, redis):
    """Also one that is not UTF-8, which no value can be the result of."""
    for n in range(120):
        store(redis, "x" * n)
    redis.set(raw_name(KEYS.result_root) + b"\xff", value(redis, "\ufffd"))

    assert {row.state: row.count for row in stored(broker, RULES).groups} == {"SUCCESS": 120, UNREADABLE: 1}


def test_max_keys_makes_the_view_partial(broker, redis):
    """And that is said."""
    for n in range(3_000):
        store(redis, f"id-{n}")

    seen = stored(broker, RULES, max_keys=1_000)

    (row,) = [row for row in seen.coverage if row.place == "results"]
    assert 1_000 <= row.seen < 3_000
    assert row.silent == 2_000
