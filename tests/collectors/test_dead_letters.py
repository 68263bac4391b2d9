"""Dead-letter lists on a real server: every entry is counted by what it failed of, whatever lies in there."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest

from opslib import collect, letters
from opslib.collectors import dead_letters, graves
from opslib.collectors.find import find
from opslib.facts.dead import DeadGroup, DeadLetters, DeadList
from opslib.facts.snapshot import Snapshot
from opslib.keys import Keyspace
from tests.support import graveyard, servers
from tests.support.graveyard import SECRET, bury, letter
from tests.support.rows import RUN
from tests.support.seed import KEYS, bind, seed_result, seed_unacked, seed_waiting
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment


def look(broker, **options) -> Snapshot:
    """Look at the dead letters with hardly a pause."""
    return collect(broker, dead_letters=True, **{"settle": "0.01s", "answer_within": "0.2s", **options})


def found(broker, **options) -> DeadLetters:
    """Return the dead letters."""
    seen = look(broker, **options).letters
    assert seen is not None
    return seen


def only(seen: DeadLetters) -> tuple[DeadList, DeadGroup]:
    """Return the one list and the one group that there are."""
    (listed,), (group,) = seen.lists, seen.groups
    return listed, group


class TestCounting:
    """Lists, groups and letters."""

    def test_letters_are_grouped_by_what_they_failed_of(self, broker, redis):
        """Each kind with its own count, names and times."""
        buried = graveyard.shop(redis)
        seen = found(broker)
        by_name = {group.name: group for group in seen.groups}

        assert {each.key: each.length for each in seen.lists} == {"orders.dead": 146, "mail.dead": 5}
        for of_one in buried.values():
            group = by_name[letters.name_of(of_one[0].signature)]
            assert group.count == len(of_one)
            assert group.tasks == {of_one[0].task_name: len(of_one)}
            assert sum(n for _, n in group.times) == len(of_one)
            assert group.example.entry_id == max(of_one, key=lambda each: each.failed_at).entry_id
            times = sorted(each.failed_epoch for each in of_one)
            assert (group.first_at, group.last_at) == (times[0], times[-1])
        assert seen.read == len(seen.letters) == 151

    def test_a_lists_row_has_its_age_its_weight_and_its_losses(self, server, redis):
        """Under the deployment's prefix too, and not those of another."""
        keys = Keyspace(prefix="shop:")
        bury(redis, letter(queue="mail", age_s=100), letter(queue="mail", age_s=10), b"odd", queue="mail", keys=keys)
        bury(redis, letter(), queue="mail")
        graveyard.lose(redis, 7, queue="mail", keys=keys)
        (row,) = found(servers.broker(server, global_keyprefix="shop:")).lists

        assert (row.key, row.queue, row.length, row.unreadable, row.dropped) == ("shop:mail.dead", "mail", 3, 1, 7)
        assert row.newest_at - row.oldest_at == pytest.approx(90, abs=1)
        assert row.size_bytes == sum(map(len, redis.lrange("shop:mail.dead", 0, -1)))

    def test_nothing_there_is_nothing(self, broker):
        """No list, and a whole view."""
        seen = look(broker)

        assert seen.letters == DeadLetters()
        assert not seen.silent_places

    def test_what_is_kept_and_told_apart_is_bounded(self, broker, redis, monkeypatch):
        """The rest is counted, the latest kept."""
        monkeypatch.setattr(graves, "MOST_GROUPS", 3)
        bury(redis, *(letter(exc_type=f"E{chr(97 + n)}", exception="x", age_s=60 - n) for n in range(10)))
        seen = found(broker, max_letters=4)

        assert (seen.read, len(seen.groups), seen.ungrouped, len(seen.letters)) == (10, 3, 7, 4)
        assert [each.exc_type for each in seen.letters] == ["Ej", "Ei", "Eh", "Eg"]

    def test_times_stay_few_however_long_they_span(self, broker, redis):
        """The same length of a bucket for every group; what is no time at all is left out."""
        span = [letter(age_s=3600.0 * n) for n in range(400)]
        short = [letter(exc_type="KeyError", exception="KeyError('k')", age_s=n) for n in range(3)]
        odd = [letter(failed_at=value) for value in (None, "yesterday", 1e300, -5, "9999-12-31T00:00:00", [1], True)]
        bury(redis, *odd, *span, *short)
        seen = found(broker)
        (long,) = [group for group in seen.groups if group.count > 3]
        starts = [at for group in seen.groups for at, _ in group.times]
        width = min(b - a for a, b in zip(sorted(set(starts)), sorted(set(starts))[1:], strict=False))

        assert long.count == 407
        assert len(long.times) <= 120
        assert sum(n for _, n in long.times) == 400
        assert all(at % width == 0 for at in starts)
        assert time.time() - long.first_at == pytest.approx(399 * 3600, abs=60)


class TestTheMeantime:
    """What comes between the two looks."""

    def test_what_arrives_is_counted(self, broker, redis):
        """By where the newest one is now, so that a list at its bound grows too."""
        key = bury(redis, *(letter() for _ in range(5)))
        before = dead_letters.marks(broker, [key])
        seen, _ = dead_letters.read(broker, [key], now=time.time())
        bury(redis, letter(), letter(), letter())
        redis.ltrim(key, 0, 4)
        (row,) = dead_letters.again(broker, seen, before).lists

        assert (row.length, row.arrived) == (5, 3)

    def test_what_leaves_is_not_arrival(self, broker, redis):
        """The newest itself, and more."""
        key = bury(redis, *(letter() for _ in range(5)))
        before = dead_letters.marks(broker, [key])
        seen, _ = dead_letters.read(broker, [key], now=time.time())
        redis.lpop(key, 2)
        (row,) = dead_letters.again(broker, seen, before).lists

        assert (row.length, row.arrived) == (3, 0)

    def test_a_quiet_list_has_none(self, broker, redis):
        """Through the whole look."""
        bury(redis, letter())
        listed, _ = only(found(broker))

        assert listed.arrived == 0


class TestNotes:
    """What is known of a letter's task beside it."""

    def test_a_task_that_has_succeeded_since_is_refused(self, broker, redis):
        """By its result."""
        done, failed = letter(), letter()
        bury(redis, done, failed)
        seed_result(redis, "SUCCESS", task_id=done.task_id)
        seed_result(redis, "FAILURE", task_id=failed.task_id)
        seen = found(broker)
        _, group = only(seen)

        assert group.refused == {"succeeded": 1}
        assert {each.task_id: each.notes for each in seen.letters} == {done.task_id: ("succeeded",), failed.task_id: ()}

    def test_what_others_depend_on_is_noted(self, broker, redis):
        """A chord's task, one with a chain or errbacks, one that looped, one without a message."""
        of = {
            "chord": letter(message=graveyard.chord_member()),
            "chain": letter(message=graveyard.embedded(chain=[graveyard.signature()])),
            "errbacks": letter(message=graveyard.embedded(errbacks=[graveyard.signature()])),
            "looping": letter(redrives=3),
            "no-arguments": letter(exact=False),
        }
        bury(redis, *of.values())
        _, group = only(found(broker))

        assert {**group.notes, **group.refused} == dict.fromkeys(of, 1)
        assert group.inexact == 1

    def test_where_results_cannot_be_read_it_is_said(self, server, redis):
        """A backend that is not Redis."""
        bury(redis, letter())
        seen = look(servers.broker(server, result_backend="db+sqlite:///results.db"))
        (row,) = [each for each in seen.coverage if each.place == "dead letters"]

        assert "nobody can say which of these tasks have succeeded" in row.note


@pytest.mark.parametrize("kind", graveyard.odd())
def test_what_nobody_can_read_is_counted(broker, redis, kind):
    """And stops nothing."""
    bury(redis, letter(), graveyard.odd()[kind], letter())
    listed, group = only(found(broker))

    assert (listed.unreadable, listed.length, group.count) == (1, 3, 2)


@pytest.mark.parametrize("message", [graveyard.pickled(), graveyard.compressed()], ids=["pickled", "compressed"])
def test_bodies_are_not_opened(broker, redis, message):
    """What is pickled or compressed is a letter like any other."""
    bury(redis, letter(message=message))
    listed, group = only(found(broker))

    assert (listed.unreadable, group.count, group.inexact) == (0, 1, 0)


def test_entries_of_other_shapes_are_read(broker, redis):
    """An older script's, and a message that was moved there as it was."""
    script = graveyard.of_script("shop.old")
    message = graveyard.embedded("shop.moved")
    bury(redis, script, message)
    seen = found(broker)

    assert {each.task: (each.exact, bool(each.entry_id)) for each in seen.letters} == {
        "shop.old": (False, True),
        "shop.moved": (True, True),
    }


def test_no_argument_leaves_the_collector(broker, redis):
    """In no row of it."""
    bury(redis, letter(), letter(exact=False), graveyard.of_script(), graveyard.pickled())

    assert SECRET not in repr(look(broker))


def test_a_traceback_of_megabytes_is_read(broker, redis):
    """And not kept."""
    endless = graveyard.traceback_of("ValueError", "x" * 10_000_000)
    bury(redis, letter(traceback=endless), letter(exception="y" * 10_000_000))
    tracemalloc.start()
    seen = found(broker)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert seen.read == 2
    assert kept < 5_000_000


def test_many_are_read_in_bounded_memory(broker, redis):
    """Whatever their number: rows up to a limit, and what is kept of the others does not hold them."""
    raw = letters.write(letter())
    entries = [raw.replace(b'"entry_id":"', b'"entry_id":"%d-' % n) for n in range(20_000)]
    for start in range(0, len(entries), 1_000):
        redis.lpush("many.dead", *entries[start : start + 1_000])
    del entries
    tracemalloc.start()
    seen, _ = dead_letters.read(broker, ["many.dead"], now=time.time(), max_letters=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (seen.read, seen.groups[0].count, len(seen.letters)) == (20_000, 20_000, 100)
    assert peak < 25_000_000


class TestPlaces:
    """Which lists are meant."""

    def test_a_queue_that_is_called_so_is_none(self, broker, redis):
        """What a route declares is a queue; it is said that it was left alone."""
        bind(redis, "mail.dead", "mail.dead")
        seed_waiting(redis, queue="mail.dead")
        bury(redis, letter())
        seen = look(broker)
        (row,) = [each for each in seen.coverage if each.place == "dead letters"]

        assert [each.key for each in seen.letters.lists] == ["celery.dead"]
        assert "mail.dead is declared as a queue" in row.note

    @pytest.mark.parametrize(("kind", "silent"), [("set", 1), ("hash", 1), ("string", 0)])
    def test_what_is_no_list_is_named(self, broker, redis, kind, silent):
        """A plain value of the application's is nobody's list."""
        write = {"set": redis.sadd, "string": redis.set}.get(kind, lambda key, value: redis.hset(key, value, "1"))
        write("mail.dead", "x")
        seen = look(broker)
        (row,) = [each for each in seen.coverage if each.place == "dead letters"]

        assert (row.silent, seen.letters.lists) == (silent, ())

    def test_more_than_may_be_read_is_not_seen(self, broker, redis):
        """The newest are read."""
        key = bury(redis, *(letter(age_s=9 - n) for n in range(9)))
        seen, coverage = dead_letters.read(broker, [key], now=time.time(), max_entries=4)

        assert (seen.read, coverage[0].seen, coverage[0].silent) == (4, 4, 5)
        assert seen.lists[0].length == 9

    def test_names_that_are_no_text_survive(self, broker, redis):
        """A queue named in bytes."""
        redis.lpush(b"m\xff.dead", letters.write(letter()))
        (row,) = found(broker).lists

        assert (row.key.encode("utf-8", "surrogateescape"), row.length) == (b"m\xff.dead", 1)


class TestResults:
    """Failures of which only a result tells."""

    def test_failures_without_a_letter_are_counted(self, broker, redis):
        """With their task where the result has it; those with a letter, and what did not fail, are not among them."""
        kept = letter()
        bury(redis, kept)
        seed_result(redis, "FAILURE", task_id=kept.task_id, name="tests.ok")
        named = seed_result(redis, "FAILURE", name="shop.old", queue="orders", worker="w1@lab")
        seed_result(redis, "FAILURE")
        seed_result(redis, "SUCCESS")
        seen = found(broker)
        (row,) = [each for each in seen.lists if each.source == "results"]
        (stored,) = [each for each in seen.letters if not each.entry_id]

        assert (row.length, row.unreadable) == (2, 1)
        assert (stored.task_id, stored.task, stored.queue, stored.exact) == (named, "shop.old", "orders", False)
        assert stored.key == KEYS.result(named)
        assert seen.length == 1

    def test_a_task_that_is_somewhere_else_is_not_without_a_letter(self, broker, redis):
        """Sent again and not run yet, or put aside by a run."""
        waiting, delivered, aside, lost = (seed_result(redis, "FAILURE") for _ in range(4))
        seed_waiting(redis, task_id=waiting)
        seed_unacked(redis, task_id=delivered)
        redis.lpush(KEYS.quarantine(RUN, "celery.dead"), letters.write(letter(task_id=aside)))
        (row,) = found(broker).lists

        assert (row.source, row.length) == ("results", 1)
        assert lost

    def test_compressed_results_are_not_seen(self, broker, redis):
        """Whether they failed is not known."""
        redis.set(KEYS.result("x"), b"\x00celery-compressed\x00...")
        (row,) = [each for each in look(broker).coverage if each.place == "results"]

        assert row.silent == 1


class TestFinding:
    """The letters of certain tasks."""

    def test_they_are_found_with_their_signature_of_old(self, broker, redis):
        """Exception, time and list."""
        wanted = letter("shop.charge")
        bury(redis, letter(), wanted, b"odd")
        (row,) = find(broker, [wanted.task_id]).dead

        assert (row.task, row.key, row.exception) == ("shop.charge", "celery.dead", wanted.exception)
        assert row.failed_at == wanted.failed_epoch

    def test_whole_entries_come_by_either_id(self, broker, redis):
        """Every one of a task."""
        one = letter()
        again = letter(task_id=one.task_id)
        key = bury(redis, one, letter(), again)

        by_task = [found.entry_id for _, found in dead_letters.entries(broker, [key], [one.task_id])]
        ((row, whole),) = dead_letters.entries(broker, [key], [one.entry_id])
        assert by_task == [again.entry_id, one.entry_id]
        assert (row.entry_id, whole) == (one.entry_id, one)


def test_nodes_tell_what_is_revoked(trial: Deployment):
    """A letter whose id is revoked is refused; and the queues of the node are known."""
    trial.worker(name="w1@graves", queues="orders")
    revoked, free = letter(queue="orders"), letter(queue="orders")
    bury(trial.redis, revoked, free, queue="orders")
    trial.app.control.revoke(revoked.task_id)
    broker = servers.broker(trial.server)
    until(lambda: dead_letters.revoked(broker, timeout_s=1.0)[0], DEADLINE_S, "the node remembers the revoke")
    seen = look(broker, answer_within="2s")

    notes = {each.task_id: each.notes for each in seen.letters.letters}
    assert notes == {revoked.task_id: ("revoked",), free.task_id: ()}
    assert seen.letters.revoked == {revoked.task_id}
    assert [queue.consumers for queue in seen.queues if queue.name == "orders"] == [("w1@graves",)]


@pytest.mark.parametrize(
    "entry",
    [
        {"task_id": "\ud800", "task_name": "x" * 10_000},
        {"task_id": "x", "envelope": "\ud800"},
        {"task_id": "x", "envelope": {"headers": {"task": "\ud800"}}},
        {"task_id": ["x"], "task_name": {"a": 1}, "exception": [1], "retries": "many", "queue": None, "envelope": 5},
        {"task_id": "x", "failed_at": {}, "cause": "\x1b[31m", "worker": "<b>", "traceback": 7},
    ],
)
def test_hostile_entries_stop_nothing(broker, redis, entry):
    """What they say can be written down, and is not endless."""
    bury(redis, letter("a\x1b[31mb", worker="w\n\u202e", queue="<b>"), json.dumps(entry).encode())
    seen = found(broker)

    assert seen.read == 2
    assert json.dumps([each.task_id for each in seen.letters]).encode()
    assert max(len(each.task) for each in seen.letters) <= 512
    for each in seen.letters:
        f"{each}".encode()
