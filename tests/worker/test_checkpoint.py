"""A task's own view of its checkpoint: what it finds, what it keeps, and that nothing about it ever ends the task."""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from redis import Redis

from opslib import checkpoints, resumable
from opslib.worker import checkpoint
from opslib.worker.checkpoint import troubles
from tests.support import roads, servers
from tests.support.seed import KEYS

DAY_S = 86_400


@pytest.fixture
def app(server, redis):
    """An application on the shared server, which is empty."""
    assert redis
    with Celery("notes", broker=server.url, backend=server.url) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_troubles():
    troubles.clear()


def task(app: Celery, task_id: str = "t-1", *, name: str = "shop.import", **fields: Any) -> Any:
    """Return a task as it is while it runs."""
    information = {"exchange": "", "routing_key": "imports", "priority": 3, "redelivered": False}
    request = {"id": task_id, "args": ["a.csv", 7], "kwargs": {"b": None}, "retries": 0, "is_eager": False}
    return _Task(app, name, SimpleNamespace(**{**request, "delivery_info": information, **fields}))


class _Task:
    def __init__(self, app: Celery, name: str, request: SimpleNamespace) -> None:
        self.app, self.name, self.request = app, name, request


def stored(redis: Redis, task_id: str = "t-1", keys=KEYS) -> dict[str, Any]:
    """Return what is stored; empty for nothing."""
    raw = redis.get(keys.checkpoint(task_id))
    return json.loads(raw) if raw else {}


def succeed(of: Any) -> None:
    """End a task well, as a worker tells it."""
    signals.task_success.send(sender=of, result=None)
    signals.task_postrun.send(sender=of, task_id=of.request.id, task=of, state="SUCCESS")


class TestKeeping:
    """What is saved, and found again."""

    def test_a_first_try_finds_nothing_and_writes_nothing(self, app, redis):
        """Until it has something to save."""
        state = checkpoint(task(app))

        assert (state.get("rows", 0), state.results, state.progress) == (0, {}, None)
        assert (state.is_resumed, state.resumed_from, state.problem) == (False, "", "")
        assert redis.dbsize() == 0

    def test_what_was_saved_is_found_by_the_next_try(self, app, redis):
        """Each save adds to what was there; what the task was called with is kept beside it."""
        state = checkpoint(task(app))
        assert state.save(progress=0.25, rows=1, name="Zoë 漢\u202e")
        assert state.save(progress=0.5, rows=2)

        again = checkpoint(task(app, retries=1))

        assert (again.results, again.progress, again.is_resumed) == ({"rows": 2, "name": "Zoë 漢\u202e"}, 0.5, True)
        found = stored(redis)
        assert (found["task"], found["args"], found["kwargs"]) == ("shop.import", ["a.csv", 7], {"b": None})
        assert (found["queue"], found["priority"], found["saves"]) == ("imports", 3, 2)

    def test_of_another_task_with_the_same_id_nothing_is_found(self, app):
        """A task that was replaced leaves its id to another one."""
        checkpoint(task(app)).save(rows=1)

        assert checkpoint(task(app, name="shop.other")).results == {}

    def test_the_queue_behind_an_exchange(self, app, redis):
        """A named exchange and a routing key are a queue's, as the application declares it."""
        from kombu import Exchange, Queue

        app.conf.task_queues = [Queue("slow", Exchange("shop", type="direct"), routing_key="bulk")]
        information = {"exchange": "shop", "routing_key": "bulk", "priority": None}

        checkpoint(task(app, delivery_info=information)).save(rows=1)

        assert (stored(redis)["queue"], stored(redis)["priority"]) == ("slow", 0)

    def test_under_a_prefix(self, server, redis):
        """As the broker's other keys."""
        with Celery("notes", broker=server.url) as app:
            app.conf.broker_transport_options = {"global_keyprefix": "shop:"}
            checkpoint(task(app)).save(rows=1)

        assert redis.keys() == [b"shop:opslib:checkpoint:t-1"]

    def test_arguments_that_are_no_json_are_left_to_the_dead_letter(self, app, redis):
        """The results are kept all the same."""
        state = checkpoint(task(app, args=(object(),)))

        assert state.save(rows=1)
        assert (stored(redis)["args"], stored(redis)["results"]) == (None, {"rows": 1})

    @pytest.mark.parametrize("fields", [{"id": None}, {"is_eager": True}])
    def test_a_task_that_no_worker_runs_has_it_in_memory(self, app, redis, fields):
        """Called as a function, or eagerly."""
        state = checkpoint(task(app, **fields))

        assert state.save(rows=1)
        assert (state.get("rows"), redis.dbsize()) == (1, 0)


class TestLife:
    """At least as long as somebody may resume the failure."""

    @pytest.mark.parametrize(
        ("expires", "life", "days"),
        [
            (3600, None, 14),
            (timedelta(days=1), 3600, 1),
            (timedelta(days=30), None, 30),
            (3600, timedelta(days=40), 40),
            (None, None, None),
            (0, None, None),
            (None, 2 * DAY_S, 2),
        ],
    )
    def test_never_shorter_than_results(self, app, redis, expires, life, days):
        """Nor than the option says; for ever where results never expire and nobody says otherwise."""
        app.conf.result_expires = expires

        checkpoint(task(app), life=life).save(rows=1)

        left = redis.pttl(KEYS.checkpoint("t-1"))
        assert left == -1 if days is None else days * DAY_S * 1000 - 60_000 < left <= days * DAY_S * 1000

    def test_each_save_renews_it(self, app, redis):
        """What a task works on does not expire."""
        state = checkpoint(task(app))
        state.save(rows=1)
        redis.pexpire(KEYS.checkpoint("t-1"), 5000)
        state.save(rows=2)

        assert redis.pttl(KEYS.checkpoint("t-1")) > 13 * DAY_S * 1000


class TestEnd:
    """What becomes of it with its task."""

    def test_success_removes_it_and_what_its_ancestors_have(self, app, redis):
        """Of those that name it as the one that goes on only that is left, for as long; another one's stays."""
        for child, parent in (("t-1", "t-0"), ("t-0", "t-x"), ("other", "")):
            checkpoint(task(app, child)).save(rows=1)
            document = {**stored(redis, child), "resumed_from": parent, "resumed_as": "t-1" if child == "t-0" else ""}
            redis.set(KEYS.checkpoint(child), json.dumps(document))
        checkpoint(task(app, "t-x")).save(rows=1)  # which names nobody, so it is not theirs to remove
        running = task(app)
        assert checkpoint(running).resumed_from == "t-0"

        succeed(running)

        left = {b"opslib:checkpoint:other", b"opslib:checkpoint:t-x", b"opslib:checkpoint:t-0"}
        assert set(redis.keys()) == left
        parent = stored(redis, "t-0")
        assert (parent["resumed_as"], parent["results"], parent["args"]) == ("t-1", {}, None)
        assert "has succeeded" in parent["refused"]

    def test_a_circle_of_ancestors_ends(self, app, redis):
        """Whoever wrote it."""
        checkpoint(task(app)).save(rows=1)
        redis.set(KEYS.checkpoint("t-1"), json.dumps({**stored(redis), "resumed_from": "t-1", "resumed_as": "t-1"}))
        running = task(app)
        checkpoint(running)

        succeed(running)

        assert redis.dbsize() == 0

    def test_a_failure_is_noted(self, app, redis):
        """With what it was; the next save takes the note away."""
        running = task(app)
        state = checkpoint(running)
        state.save(rows=1)
        signals.task_failure.send(sender=running, task_id="t-1", exception=ValueError("no such file"))
        assert stored(redis)["failed"]["exc_type"] == "ValueError"
        assert stored(redis)["failed"]["exception"] == "no such file"

        checkpoint(task(app, retries=1)).save(rows=2)

        assert stored(redis)["failed"] is None

    def test_a_failure_before_the_first_save_leaves_nothing(self, app, redis):
        """There is nothing to go on from."""
        running = task(app)
        checkpoint(running)
        signals.task_failure.send(sender=running, task_id="t-1", exception=ValueError("x"))

        assert redis.dbsize() == 0

    def test_discarded(self, app, redis):
        """The next try begins at its beginning."""
        state = checkpoint(task(app))
        state.save(rows=1)

        assert state.discard()
        assert (state.results, redis.dbsize()) == ({}, 0)


class TestNeverInTheWay:
    """Whatever happens to it, the task goes on."""

    def test_what_is_too_large_is_not_saved_and_said(self, app, redis, caplog):
        """The state before stays."""
        state = checkpoint(task(app), most_bytes=2000)
        assert state.save(rows=1)

        with caplog.at_level(logging.ERROR, "opslib.worker.checkpoint"):
            assert not state.save(rows="x" * 2000)

        assert "bytes, and 2,000 is the most" in state.problem
        assert "bytes, and 2,000 is the most" in caplog.text
        assert stored(redis)["results"] == {"rows": 1}
        assert troubles == {"too large": 1}

    @pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, b"x", "\udc80"])
    def test_what_is_no_json_is_not_saved_and_said(self, app, redis, value):
        """Nor does it end the task."""
        state = checkpoint(task(app))

        assert not state.save(value=value)
        assert "is no JSON" in state.problem
        assert redis.dbsize() == 0

    def test_both_raise_where_that_is_wanted(self, app):
        """To be found where the task is written."""
        for state, value in (
            (checkpoint(task(app), strict=True), object()),
            (checkpoint(task(app), strict=True, most_bytes=500), "x" * 500),
        ):
            with pytest.raises(ValueError, match="was not saved"):
                state.save(value=value)

    def test_a_broker_that_is_gone(self, redis, caplog):
        """Said in a sentence, counted, and over within a second or two."""
        assert redis
        with Celery("notes", broker="redis://127.0.0.1:1/0") as app:
            running = task(app)
            state = checkpoint(running)
            assert "begins at the beginning" in state.problem

            assert not state.save(rows=1)
            succeed(running)

        assert (troubles["read"], troubles["write"], troubles["remove"]) == (1, 1, 1)
        assert "could not be saved" in caplog.text

    def test_a_broker_that_refuses_to_write(self, app, redis):
        """A full one, for instance; what was saved before is there."""
        state = checkpoint(task(app))
        state.save(rows=1)
        redis.config_set("maxmemory", 1)
        try:
            assert not state.save(rows=2)
        finally:
            redis.config_set("maxmemory", "256mb")

        assert state.problem
        assert stored(redis)["results"] == {"rows": 1}
        assert state.save(rows=3)
        assert state.problem == ""

    def test_a_server_that_says_nothing_is_not_waited_for(self):
        """Longer than a second each time: the task has other work."""
        with roads.black_hole() as port, Celery("notes", broker=f"redis://127.0.0.1:{port}/0") as app:
            begun = time.monotonic()
            state = checkpoint(task(app))
            state.save(rows=1)

        assert state.problem
        assert time.monotonic() - begun < 9

    @pytest.mark.parametrize("raw", [b"\xff\xfe", b"[]", b'{"v": 99}', b"[" * 5000, b'{"v": 1, "results": 7}'])
    def test_what_cannot_be_read_is_as_if_it_were_not_there(self, app, redis, raw):
        """And is said."""
        redis.set(KEYS.checkpoint("t-1"), raw)
        state = checkpoint(task(app))

        assert (state.results, state.is_resumed) == ({}, False)
        assert "could not be read, so the task begins at the beginning" in state.problem
        assert state.save(rows=1)

    def test_a_broker_that_is_no_redis(self):
        """There is nothing to write to, and nothing breaks."""
        with Celery("notes", broker="memory://") as app:
            state = checkpoint(task(app))

            assert not state.save(rows=1)
            assert state.problem


class TestFormat:
    """What stands in the key, read by everybody else."""

    def test_a_copy_says_all_that_the_state_said(self):
        """Whoever wrote it, with fields that nobody here knows."""
        raw = b'{"task_id": "old", "big": 12345678901234567890, "f": 1.5, "nest": {"a": [null]}, "resumed_as": "x"}'

        copy, marked = (json.loads(each) for each in checkpoints.handed(raw, old="old", new="new"))

        assert copy == {**json.loads(raw), "task_id": "new", "resumed_from": "old", "resumed_as": ""}
        assert marked == {**json.loads(raw), "resumed_as": "new"}

    @pytest.mark.parametrize("raw", [b"[]", b"7", b"", b"\xff{}", b'{"a": "\\ud800"}', b"[" * 5000])
    def test_what_cannot_be_written_back_is_not_copied(self, raw):
        """Half of a surrogate pair is no text."""
        with pytest.raises(ValueError, match=r"."):
            checkpoints.handed(raw, old="old", new="new")

    def test_a_successor_is_the_same_for_the_same_state(self):
        """And another one for another."""
        assert checkpoints.successor("a", "1") == checkpoints.successor("a", "1")
        assert len({checkpoints.successor(*each) for each in (("a", "1"), ("a", "2"), ("b", "1"))}) == 3

    @pytest.mark.parametrize(
        "state",
        [
            {"task_name": "shop.x", "args": [1], "kwargs": {}, "progress": 40},
            {"task": "shop.x", "parameters": {"args": [1], "kwargs": {}}, "percent": 40.0},
            {"name": "shop.x", "task_args": [1], "progress": 0.4},
        ],
    )
    def test_states_of_applications(self, state):
        """Under the names that they use."""
        found = checkpoints.state(json.dumps(state).encode(), own=False)

        assert (found.task, json.loads(found.parameters), found.progress) == (
            "shop.x",
            {"args": [1], "kwargs": {}},
            0.4,
        )


class TestUnnamed:
    """Where nobody says which tasks are meant."""

    @pytest.mark.parametrize(("count", "silent"), [(0, 0), (2, 0), (50, 0), (51, 1)])
    def test_those_that_have_left_a_checkpoint_are_looked_at(self, server, redis, count, silent):
        """Fifty at most; that there are more is told, and makes the view a partial one."""
        for n in range(count):
            redis.set(KEYS.checkpoint(f"t-{n:02}"), checkpoints.write(checkpoints.Document(task_id=f"t-{n:02}")))
        redis.set("another", "key")

        found = resumable(servers.broker(server), [])

        assert found.asked == tuple(f"t-{n:02}" for n in range(min(count, 50)))
        assert not found.named
        (row,) = (row for row in found.coverage if row.place == "checkpoints")
        assert (row.seen, row.silent) == (min(count, 50), silent)
