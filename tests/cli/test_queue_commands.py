"""ops queue: what waits is shown, kept, moved, served first or left alone, while real workers take from it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from redis import Redis

from opslib.errors import Exit
from opslib.keys import Keyspace
from opslib.records import RunRecord
from opslib.render import archive
from opslib.writer import consumers
from tests.cli.test_applying import asked
from tests.command_line import Done, call, on_terminal
from tests.shop import contents
from tests.support.seed import KEYS, bind, envelope, iso, quarantined, seed_waiting, waiting, waiting_ids
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment, Worker

SECRET = "card-4711-secret"
STEPS = (0, 3, 9)


@pytest.fixture(scope="module")
def _nodes(trial: Deployment) -> tuple[Worker, Worker]:
    """A prefork and a solo node, each with a queue of its own and one that they share."""
    fork = trial.worker(name="fork@trial", queues="forked,shared", ready=False)
    solo = trial.worker(name="solo@trial", queues="soloed,shared", pool="solo", ready=False)
    for each in (fork, solo):
        trial.wait_for(each)
    return fork, solo


@pytest.fixture
def system(trial: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A server as the default target; what a test leaves in it is cleared away, but for what nodes declared."""
    monkeypatch.setenv("OPS_BROKER_URL", trial.server.url)
    yield trial
    trial.redis.delete(*(key for key in trial.redis.scan_iter() if not key.startswith(b"_kombu.")), "nothing")


@pytest.fixture
def nodes(system: Deployment, _nodes: tuple[Worker, Worker]) -> tuple[Worker, Worker]:
    """The two nodes of that system."""
    assert system
    return _nodes


@pytest.fixture
def strays(system: Deployment) -> Redis:
    """A queue that nobody consumes: three lists of it, each with one task of the shop's and two others."""
    bind(system.redis, "strays", "strays")
    for priority in (9, 0, 3):
        for name in ("tests.ok", "shop.order", "tests.ok"):
            seed_waiting(system.redis, name, queue="strays", priority=priority, args=[SECRET])
    return system.redis


def newest(place: Path, name: str, *, dry_run: bool = False) -> RunRecord:
    """Return the record of a command's only run."""
    (run,) = (run for run in archive.runs(place / "reports") if (run.runbook, run.dry_run) == (name, dry_run))
    return run


def applied(*words: str) -> Done:
    """Carry out a command that changes something."""
    done = call("queue", *words, "--apply", "--yes")
    assert done.code == Exit.DONE, done
    return done


def ids_of(redis: Redis, queue: str, *names: str) -> list[str]:
    """Return the ids of a queue in the order of their service, those of some tasks alone."""
    every = [each["headers"] for step in STEPS for each in waiting(redis, queue, step)]
    return [each["id"] for each in every if not names or each["task"] in names]


class TestPeek:
    """It looks, and takes nothing."""

    def test_the_next_to_be_served_come_first(self, strays):
        """Over all priorities; nothing of it is changed, and no argument is shown."""
        before = contents(strays)

        done = call("queue", "peek", "strays")
        ids = call("queue", "peek", "strays", "-o", "ids").out.split()
        rows = json.loads(call("queue", "peek", "strays", "--json").out)

        assert done.code == Exit.DONE
        assert ids == ids_of(strays, "strays") == [row["task_id"] for row in rows]
        assert [row["position"] for row in rows] == [0, 1, 2] * 3
        places = [done.out.index(each) for each in ids]
        assert places == sorted(places)
        assert "9 of 9 that wait in strays" in done.err
        assert SECRET not in done.out + done.err + json.dumps(rows)
        assert contents(strays) == before

    def test_a_filter_and_a_limit(self, strays):
        """Those served first of those that are meant."""
        done = call("queue", "peek", "strays", "--task", "shop.*", "--limit", "2", "-o", "ids")

        assert done.out.split() == ids_of(strays, "strays", "shop.order")[:2]
        assert "2 of 9" in done.err
        none = call("queue", "peek", "strays", "--task", "nothing.*")
        assert (none.code, none.out) == (Exit.DONE, "")
        assert "No task nothing.* is among the 9 that wait in strays." in none.err

    def test_what_nobody_can_decode_is_shown_in_its_place(self, strays):
        """With why: it may be what stands in the way. A filter cannot mean it, and it has no id."""
        strays.rpush("strays", b"no \x1b[31mJSON [bold]")

        done = call("queue", "peek", "strays", "--limit", "1")
        rows = json.loads(call("queue", "peek", "strays", "--json").out)

        assert "(unreadable)" in done.out
        assert "it is not JSON" in done.out
        assert "\x1b" not in done.out
        assert (rows[0]["position"], rows[0]["reason"].split("(")[0].strip()) == (0, "it is not JSON")
        assert [row["position"] for row in rows[1:4]] == [1, 2, 3]
        assert call("queue", "peek", "strays", "-o", "ids").out.split() == ids_of_readable(strays)
        assert "(unreadable)" not in call("queue", "peek", "strays", "--task", "*order").out

    @pytest.mark.parametrize("command", ["peek", "purge", "pause", "resume"])
    def test_an_unknown_name_is_told_with_the_nearest(self, strays, place, command):
        """It may be a slip of the pen; whatever the command, nothing is begun."""
        assert strays
        done = call("queue", command, "stray")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert "Did you mean strays?" in done.err
        assert not (place / "reports").exists()

    def test_an_empty_queue_is_no_unknown_one(self, system):
        """A route says that there is one."""
        bind(system.redis, "idle", "idle")

        done = call("queue", "peek", "idle")

        assert done.code == Exit.DONE
        assert "Nothing waits in idle." in done.err
        system.redis.delete(KEYS.bindings("idle"))


class TestDeclaredDead:
    """A queue that is named like dead letters, and is one because a route says so."""

    @pytest.fixture
    def dead(self, system):
        """Return a server with one task in such a queue, and one in an ordinary one."""
        bind(system.redis, "orders.dead", "orders.dead")
        seed_waiting(system.redis, task_id="x", queue="orders.dead")
        seed_waiting(system.redis, task_id="y", queue="others")
        yield system.redis
        system.redis.delete(KEYS.bindings("orders.dead"))

    def test_it_is_looked_into_and_emptied_as_any_other(self, dead):
        """It is listed, so it can be named."""
        assert "orders.dead" in call("queues", "-o", "ids").out.split()
        assert call("queue", "peek", "orders.dead", "-o", "ids").out.split() == ["x"]

        applied("move", "others", "orders.dead")
        applied("purge", "orders.dead")

        assert not dead.exists("orders.dead", "others")

    def test_a_task_in_it_does_not_stand_in_the_way_of_others(self, dead):
        """Both are stopped."""
        done = call("task", "stop", "x", "y", "--apply", "--yes")

        assert done.code == Exit.DONE, done
        assert not dead.exists("orders.dead", "others")


@pytest.mark.parametrize(
    "words",
    [
        ("queue", "peek", "strays.dead"),
        ("queue", "purge", "strays.dead", "--apply", "--yes"),
        ("queue", "move", "strays.dead", "strays", "--apply", "--yes"),
        ("queue", "move", "strays", "strays.dead", "--apply", "--yes"),
        ("queue", "expedite", "strays.dead", "--task", "shop.*", "--apply", "--yes"),
        ("task", "send", "shop.order", "--queue", "strays.dead", "--apply", "--yes"),
    ],
)
def test_a_list_of_dead_letters_is_no_queue(strays, place, words):
    """A letter that a node took as a message would be lost with it; the commands for them are named."""
    strays.lpush("strays.dead", json.dumps({"v": 1, "task_id": "x", "task_name": "shop.order"}))
    before = contents(strays)

    done = call(*words)

    assert (done.code, done.out) == (Exit.USAGE, "")
    assert "`ops dead redrive`" in done.err
    assert contents(strays) == before
    assert not (place / "reports").exists()


def ids_of_readable(redis: Redis) -> list[str]:
    """Return the ids of the strays that can be decoded."""
    raws = [raw for step in STEPS for raw in redis.lrange(KEYS.queue("strays", step), 0, -1)[::-1]]
    return [json.loads(raw)["headers"]["id"] for raw in raws if raw.startswith(b"{")]


class TestPurge:
    """Only what is meant, and only what waits."""

    def test_what_a_node_holds_is_not_touched_and_that_is_said(self, system, nodes):
        """What runs, what it has in advance, and what it keeps until its time; all of it is done later."""
        fork, _ = nodes
        running = system.send("gate", queue="forked")
        system.until_running(running)
        held = [system.send("late", 0, queue="forked") for _ in range(3)]
        system.until_unacked(running, *held)
        waits = [seed_waiting(system.redis, queue="forked").task_id for _ in range(40)]
        until(lambda: len(waiting_ids(system.redis, "forked")) == len(waits), DEADLINE_S, "none of them fits any more")
        delivered = system.redis.hgetall(KEYS.unacked)

        plan = call("queue", "purge", "forked")
        applied("purge", "forked")

        assert "what nodes hold already stays there" in " ".join(plan.out.split())
        assert system.redis.hgetall(KEYS.unacked) == delivered
        assert not system.redis.exists("forked")
        assert system.answers(fork)
        system.redis.set("open", 1)
        system.until_done(running, *held)
        assert not any(system.ran(each) for each in waits)

    def test_only_those_of_a_task(self, strays, place):
        """The others keep their order; undo puts them back between them."""
        before, rest = contents(strays), ids_of(strays, "strays", "tests.ok")

        applied("purge", "strays", "--task", "shop.*")

        assert ids_of(strays, "strays") == rest
        assert sum(map(len, quarantined(strays).values())) == 3
        run = newest(place, "purge-queue")
        assert [row["reason"] for row in run.outcomes] == ["3 messages are kept in quarantine."]
        assert call("undo", run.run_id, "--apply", "--yes").code == Exit.DONE
        assert {key: value for key, value in contents(strays).items() if not key.startswith(b"opslib:")} == before

    def test_only_those_whose_time_has_passed(self, system):
        """One that expires later, and one that never does, stay."""
        gone = [seed_waiting(system.redis, queue="strays", expires=iso(-ago)) for ago in (1, 3600)]
        stay = [seed_waiting(system.redis, queue="strays", **of).task_id for of in ({}, {"expires": iso(3600)})]

        applied("purge", "strays", "--expired")

        assert waiting_ids(system.redis, "strays") == stay
        assert quarantined(system.redis)["strays"] == [each.raw for each in reversed(gone)]

    def test_those_served_first_up_to_a_limit(self, strays):
        """Over the priorities."""
        before = ids_of(strays, "strays")

        applied("purge", "strays", "--limit", "4")

        assert ids_of(strays, "strays") == before[4:]

    def test_every_queue(self, strays):
        """With a filter as well; what nobody waits in needs nothing."""
        seed_waiting(strays, "shop.order", queue="others")
        kept = seed_waiting(strays, queue="others").task_id

        applied("purge", "--all", "--task", "shop.*")
        assert ids_of(strays, "others") == [kept]
        assert ids_of(strays, "strays", "shop.order") == []
        assert len(ids_of(strays, "strays")) == 6

        applied("purge", "--all")
        assert not strays.exists("strays", "others")
        assert sum(strays.llen(key) for key in strays.scan_iter(match="*opslib:run:*:q*")) == 11

    @pytest.mark.parametrize("words", [["--apply", "--yes"], []])
    def test_every_queue_is_not_every_one_while_a_node_is_silent(self, strays, system, nodes, place, words):
        """What it saw is done or shown; that there may be more is said, and is the exit code."""
        assert place
        fork, _ = nodes
        with fork.frozen():
            done = call("queue", "purge", "--all", "--task", "shop.*", *words)
        system.wait_for(fork)

        assert done.code == Exit.CANNOT_SEE, done
        assert "Not the whole view: workers" in done.err
        assert len(ids_of(strays, "strays", "shop.order")) == (0 if words else 3)

    def test_a_limit_is_one_for_each_queue(self, strays):
        """As its help says."""
        for _ in range(2):
            seed_waiting(strays, queue="others")

        applied("purge", "--all", "--limit", "1")

        assert (len(ids_of(strays, "strays")), len(ids_of(strays, "others"))) == (8, 1)
        assert "of each queue" in " ".join(call("queue", "purge", "--help").out.replace("│", "").split())

    @pytest.mark.parametrize("glob", ["[red]x[/red]", "{0}", "shop.{order", "<b>*</b>", "$(rm)"])
    def test_a_filter_is_no_markup(self, strays, glob):
        """It is matched, and said, as it was typed."""
        message = envelope(glob.replace("*", "x"), queue="strays")
        strays.lpush("strays", json.dumps(message))

        done = call("queue", "purge", "strays", "--task", glob.replace("[", "[[]"))

        assert done.code == Exit.ATTENTION, done
        assert "1 message of" in done.out
        assert "is kept" in " ".join(done.out.split())

    def test_a_phrase_has_how_many_messages_there_are(self, strays, place):
        """So that nobody confirms nine by the habit of confirming one."""
        assert strays
        done = on_terminal(
            "queue", "move", "strays", "bulk", "--apply", env=dict(os.environ), cwd=place, answer=lambda _: "no"
        )

        assert asked(done.out) == "default move 9"


class TestMove:
    """In their order, once each, with all that they are."""

    def test_two_thousand_under_a_prefix_while_both_queues_are_consumed(self, trial, place, monkeypatch):
        """Each message runs once, on one side or the other; on each, those of one priority run in their order."""
        keys = Keyspace(prefix="pre:")
        monkeypatch.setenv("PREFIXED", trial.server.url)
        (place / "ops.toml").write_text('[targets.prefixed]\nbroker_url = "env:PREFIXED"\nglobal_keyprefix = "pre:"\n')
        conf = {"broker_transport_options": {"global_keyprefix": "pre:"}, "task_track_started": False}
        sent = [envelope(task_id=f"m{n:04}", queue="from", priority=STEPS[n % 3]) for n in range(2_000)]
        first = [envelope(task_id=f"first{n}", queue=name) for n, name in enumerate(("from", "to"))]
        publish(trial.redis, keys, [("from", first[0]), ("to", first[1])])
        workers = [trial.worker(queues=name, conf=conf, ready=False) for name in ("from", "to")]
        trial.until_done("first0", "first1")
        publish(trial.redis, keys, [("from", message) for message in sent])

        done = call("queue", "move", "from", "to", "--target", "prefixed", "--apply", "--yes")

        assert done.code == Exit.DONE, done
        ids = [message["headers"]["id"] for message in sent]
        until(lambda: trial.redis.hlen("ran") >= 2_002, DEADLINE_S, "all of them ran")
        trial.until_done(*ids)
        for each in workers:
            each.kill()
        assert set(trial.redis.hvals("ran")) == {b"1"}
        steps = {message["headers"]["id"]: message["properties"]["priority"] for message in sent}
        for mine in by_node(trial.redis, ids):
            assert len(mine) > 50, "both have to have taken some"
            for step in STEPS:
                assert [each for each in mine if steps[each] == step] == sorted(x for x in mine if steps[x] == step)
        assert newest(place, "move-queue").outcomes[0]["status"] == "applied"
        assert [key for key in trial.redis.scan_iter(match="*opslib:*") if not key.startswith(b"pre:")] == []
        trial.redis.flushall()

    def test_a_retry_of_what_was_moved_stays_there(self, system, nodes, place):
        """As the plan says: the message knows of no other queue any more."""
        assert nodes
        ids = [system.send("flaky", queue="strays") for _ in range(3)]

        applied("move", "strays", "forked", "--limit", "2")
        system.until_done(*ids[:2])

        assert [system.ran(each) for each in ids] == [2, 2, 0]
        assert waiting_ids(system.redis, "strays") == ids[2:]
        assert newest(place, "move-queue").outcomes[0]["reason"].startswith("2 messages now in forked.")

    def test_a_destination_that_nobody_consumes_is_warned_of(self, strays, nodes):
        """What is moved there waits; one that a node consumes needs no word."""
        assert nodes
        assert "No node that answered consumes bulk" in call("queue", "move", "strays", "bulk").err
        assert "Warning" not in call("queue", "move", "strays", "forked").err
        assert len(ids_of(strays, "strays")) == 9

    @pytest.mark.parametrize(
        ("to", "said"),
        [
            ("strays", "is both"),
            ("unacked", "is no queue"),
            ("unacked_index", "is no queue"),
            ("opslib:lock", "is no queue"),
            ("_kombu.binding.celery", "is no queue"),
            ("celery-task-meta-x", "is no queue"),
            ("x.reply.celery.pidbox", "is no queue"),
            ("", "is no queue"),
            (KEYS.queue("strays", 3), "is no queue"),
            ("text", "text is a string, not a queue"),
        ],
    )
    def test_what_can_be_no_destination_is_refused(self, strays, place, to, said):
        """Itself, a key of Celery's or ours, a key of another type; before anything is begun."""
        strays.set("text", "x")
        before = contents(strays)

        done = call("queue", "move", "strays", to, "--apply", "--yes")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert said in done.err
        assert contents(strays) == before
        assert not (place / "reports").exists()

    def test_an_unknown_source_is_told(self, strays):
        """With the nearest name."""
        assert strays
        assert "Did you mean strays?" in call("queue", "move", "stray", "bulk").err


class TestExpedite:
    """Some are served before all the others."""

    def test_a_task_over_all_priorities(self, strays, place):
        """The more urgent first, as they were; undo gives each its place and its priority back."""
        before = contents(strays)
        first = ids_of(strays, "strays", "shop.order")
        rest = ids_of(strays, "strays", "tests.ok")

        applied("expedite", "strays", "--task", "shop.*")

        assert ids_of(strays, "strays") == first + rest
        assert [each["properties"]["priority"] for each in waiting(strays, "strays")[:3]] == [0, 0, 0]
        call("undo", newest(place, "expedite").run_id, "--apply", "--yes")
        assert {key: value for key, value in contents(strays).items() if not key.startswith(b"opslib:")} == before

    def test_workers_serve_them_first(self, system, nodes):
        """Each once."""
        assert nodes
        ids = [f"e{n:02}" for n in range(30)]
        for n, each in enumerate(ids):
            name = "flaky" if n % 3 == 2 else "ok"
            seed_waiting(system.redis, f"tests.{name}", queue="strays", task_id=each, priority=STEPS[n % 2])

        applied("expedite", "strays", "--task", "tests.flaky")
        order = ids_of(system.redis, "strays")
        applied("move", "strays", "forked")

        system.until_done(*ids)
        assert all(int(each[1:]) % 3 == 2 for each in order[:10])
        assert {each: system.ran(each) for each in ids} == {each: 2 if int(each[1:]) % 3 == 2 else 1 for each in ids}

    @pytest.mark.parametrize("glob", ["*", "**"])
    def test_everything_is_refused(self, strays, glob):
        """It would leave the order as it is, and every priority lost."""
        before = contents(strays)

        done = call("queue", "expedite", "strays", "--task", glob, "--apply", "--yes")

        assert done.code == Exit.USAGE
        assert "This means every message" in done.err
        assert contents(strays) == before


class TestPauseAndResume:
    """Nodes leave a queue alone, and take it up again."""

    def test_a_paused_queue_is_left_alone_until_it_is_resumed(self, system, nodes):
        """
        By a prefork and by a solo node; the other queues go on.

        The server may be about to serve each of them one more: that one they put back, last, and do not run it.
        """
        assert nodes
        applied("pause", "shared")
        waits = [system.send("ok", queue="shared") for _ in range(6)]
        others = [system.send("ok", queue=name) for name in ("forked", "soloed") for _ in range(2)]
        system.until_done(*others)
        until(lambda: len(waiting_ids(system.redis, "shared")) == 6, DEADLINE_S, "all of them wait")
        assert sorted(waiting_ids(system.redis, "shared")) == sorted(waits)
        assert not any(system.ran(each) for each in waits)

        applied("resume", "shared", *[word for node in nodes for word in ("--node", node.name)])

        system.until_done(*waits)
        assert {system.ran(each) for each in waits} == {1}

    def test_one_node_alone(self, system, nodes, place):
        """The other goes on; undo tells only the one that was told."""
        fork, solo = nodes
        applied("pause", "shared", "--node", fork.name)
        sent = [system.send("ok", queue="shared") for _ in range(8)]
        system.until_done(*sent)
        assert {worker_of(system.redis, each) for each in sent} == {solo.name}
        again = call("queue", "pause", "shared", "--node", fork.name, "--apply", "--yes")
        assert "skipped" in again.out

        run = next(run for run in archive.runs(place / "reports") if run.outcomes[0]["status"] == "applied")
        assert call("undo", run.run_id, "--apply", "--yes").code == Exit.DONE

        consumed = system.app.control.inspect(destination=[fork.name]).active_queues()[fork.name]
        assert sorted(each["name"] for each in consumed) == ["forked", "shared"]

    def test_an_unknown_node_is_told_with_the_nearest(self, system, nodes, place):
        """Nothing is begun."""
        assert system
        assert nodes
        done = call("queue", "pause", "shared", "--node", "fork@tria", "--apply", "--yes")

        assert (done.code, done.out) == (Exit.USAGE, "")
        assert "Did you mean fork@trial?" in done.err
        assert not (place / "reports").exists()

    def test_a_node_that_does_not_answer_leaves_it_open(self, system, nodes, place, monkeypatch):
        """It is no success: the others are named, and the exit code says that not everything was seen."""
        monkeypatch.setattr(consumers, "_ANSWER_S", 0.6)
        fork, solo = nodes

        with fork.frozen():
            done = call("queue", "pause", "shared", "--apply", "--yes")
        system.wait_for(fork)

        assert done.code == Exit.CANNOT_SEE, done
        (row,) = newest(place, "pause-queue").outcomes
        assert row["status"] == "unverified"
        assert row["reason"].startswith(f"Not known of 1 silent node. {solo.name} obeyed.")
        assert "was not told: run this again" in row["reason"]
        assert call("undo", newest(place, "pause-queue").run_id, "--apply", "--yes").code == Exit.DONE


def publish(redis: Redis, keys: Keyspace, messages: Sequence[tuple[str, dict]]) -> None:
    """Publish messages in one go."""
    with redis.pipeline(transaction=False) as pipe:
        for queue, message in messages:
            pipe.lpush(keys.queue(queue, message["properties"]["priority"]), json.dumps(message))
        pipe.execute()


def worker_of(redis: Redis, task_id: str) -> str:
    """Return the node that ran a task."""
    return str(json.loads(redis.get(KEYS.result(task_id)))["worker"])


def by_node(redis: Redis, ids: Sequence[str]) -> list[list[str]]:
    """Return for each node the tasks that it ran, in the order in which it finished them."""
    results = [json.loads(raw) for raw in redis.mget([KEYS.result(each) for each in ids])]
    done = sorted(results, key=lambda each: each["date_done"])
    names = Counter(each["worker"] for each in results)
    assert len(names) == 2, names
    return [[each["task_id"] for each in done if each["worker"] == name] for name in names]


@pytest.mark.parametrize(
    "words",
    [("peek", "strays"), ("purge", "strays"), ("purge", "--all"), ("move", "strays", "x"), ("expedite", "strays")],
)
def test_an_empty_name_of_a_task_does_not_mean_all(strays, words):
    """It is a variable of the shell that is not set."""
    before = contents(strays)

    done = call("queue", *words, "--task", "", *(["--apply", "--yes"] if words[0] != "peek" else []))

    assert (done.code, done.out) == (Exit.USAGE, "")
    assert "--task is empty." in done.err
    assert contents(strays) == before


@pytest.mark.parametrize("words", [("purge", "strays"), ("move", "strays", "celery"), ("expedite", "strays")])
def test_a_name_that_nothing_has_is_said(strays, words):
    """A slip of the pen ends with exit 1 and what to look at, not with a quiet success."""
    before = contents(strays)

    done = call("queue", *words, "--task", "shop.ordr", "--apply", "--yes")

    assert done.code == Exit.ATTENTION
    assert "No task shop.ordr waits in strays; `ops queue peek` shows what does. Nothing was changed." in done.err
    assert contents(strays) == before
