"""Dead letters are sent again once, in their order, and only those that may be; what was sent can be recalled."""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from opslib import checkpoints, letters
from opslib.broker import connect
from opslib.collectors.deployment import collect
from opslib.collectors.find import find
from opslib.errors import OpsError, Refused
from opslib.keys import Keyspace
from opslib.plan import Action, Copy, Kind, Redrive
from opslib.selection import DeadSelection
from opslib.writer import apply, audit, audited, points, redriven, resume
from tests.support import graveyard, servers
from tests.support.graveyard import bury, letter
from tests.support.plans import planned, told, undone
from tests.support.seed import KEYS, envelope, iso, seed_waiting, waiting
from tests.writer.test_undo import run_id

DEAD = "celery.dead"
SAFETY = Path(__file__).parents[2] / "docs" / "safety.md"


def again(count, *, only=None, how=None, keys=KEYS, **fields):
    """Return the action that sends letters of the list again."""
    key = f"{keys.prefix}{DEAD}"
    return Action(
        kind=Kind.REDRIVE,
        subject=DEAD,
        source=DEAD,
        destination=(how or Redrive()).queue,
        copies=(Copy(place="list", key=key, queue=DEAD, count=count),),
        letters=only or DeadSelection(),
        redrive=how or Redrive(),
        **fields,
    )


def redrive(broker, count, **asked):
    """Send letters again, and return the one outcome."""
    (outcome,) = apply(planned(broker, again(count, **asked)), broker, dry_run=False)
    return outcome


def buried(redis, count, **fields):
    """Put so many letters into the list, the oldest first; return their ids in that order."""
    some = [letter(age_s=count - n, **fields) for n in range(count)]
    bury(redis, *some)
    return [each.task_id for each in some]


def dead(redis, key=DEAD):
    """Return the ids of the letters in a list, the oldest first."""
    return [letters.read(raw).task_id for raw in redis.lrange(key, 0, -1)[::-1]]


def ids(redis, queue="celery"):
    """Return the ids of what waits in a queue, the next to be served first."""
    return [json.loads(raw)["headers"]["id"] for raw in redis.lrange(queue, 0, -1)[::-1]]


def test_every_letter_is_sent_once_the_oldest_first(broker, redis):
    """Behind what waits there; the list is empty, and so gone."""
    (first,) = [seed_waiting(redis).task_id]
    sent = buried(redis, 1_234)

    outcome = redrive(broker, 1_234)

    assert (outcome.status, outcome.reason) == ("applied", "1,234 letters were sent again.")
    assert ids(redis) == [first, *sent]
    assert not redis.exists(DEAD)


def test_what_was_sent_is_kept_for_a_while(broker, redis):
    """To the byte, in its order, for as long as the journal that knows of it."""
    buried(redis, 20)
    before = redis.lrange(DEAD, 0, -1)

    redrive(broker, 20)

    kept = KEYS.redriven(run_id(), DEAD)
    assert redis.lrange(kept, 0, -1) == before
    assert 13 * 86_400 < redis.ttl(kept) <= 14 * 86_400


def test_priority_and_queue_are_those_of_the_message(broker, redis):
    """A list may hold letters of several."""
    some = [envelope("tests.ok", queue="mail", priority=9), envelope("tests.ok", queue="mail")]
    bury(redis, *(letter(message=each, queue="mail") for each in some))

    redrive(broker, 2)

    assert [ids(redis, KEYS.queue("mail", each)) for each in (9, 0)] == [[each["headers"]["id"]] for each in some]


def test_a_message_without_a_queue_goes_where_the_list_is_named_after(broker, redis):
    """Entries of older scripts do not say."""
    bury(redis, graveyard.of_script(task_id="x"))

    redrive(broker, 1)

    assert ids(redis) == ["x"]


def test_only_those_that_are_meant_are_sent(broker, redis):
    """By signature, from all over a long list; the others keep their order."""
    some = [letter(**(graveyard.CODE if n % 3 == 0 else {})) for n in range(1_000)]
    bury(redis, *some)
    name = letters.name_of(some[0].signature)
    wanted = [each.task_id for each in some if each.signature == some[0].signature]

    outcome = redrive(broker, len(wanted), only=DeadSelection(signature=name))

    assert outcome.reason == f"{len(wanted)} letters were sent again."
    assert ids(redis) == wanted
    assert dead(redis) == [each.task_id for each in some if each.task_id not in set(wanted)]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (7, 7), (50, 20)])
def test_no_more_than_the_limit_the_oldest_first(broker, redis, limit, count):
    """Those of them that are refused count, as they do in the plan."""
    some = buried(redis, 20)

    redrive(broker, 20, only=DeadSelection(limit=limit))

    assert ids(redis) == some[:count]
    assert dead(redis) == some[count:]


def test_what_came_since_it_was_planned_stays(broker, redis):
    """A fifth more and ten, as in every plan about whole lists: one that fails again is not sent round and round."""
    buried(redis, 100)

    redrive(broker, 50)

    assert len(ids(redis)) == 70


def test_what_may_not_be_sent_stays_and_is_told(broker, redis):
    """Each reason with its count, and in their order; the others are sent."""
    expired, looping = envelope("tests.ok"), envelope("tests.ok")
    expired["headers"]["expires"] = iso(-60)
    looping["headers"]["x-redrive"] = 3
    good = [letter() for _ in range(3)]
    odd = [letter(message=expired), letter(message=looping), letter(exact=False)]
    bury(redis, odd[0], good[0], b"no JSON", good[1], odd[1], odd[2], good[2])

    outcome = redrive(broker, 7)

    assert ids(redis) == [each.task_id for each in good]
    assert redis.llen(DEAD) == 4
    assert "3 letters were sent again. 1 stays: It expired" in outcome.reason
    for words in ("1 stays: It was sent again 3 times", "1 stays: It cannot be read", "1 stays: Neither its message"):
        assert words in outcome.reason


def test_a_plain_letter_is_refused_like_any_other(broker, redis, monkeypatch):
    """Of which nothing else is special: its id is revoked, or it ended the process that ran it."""
    some = buried(redis, 3)
    bury(redis, letter(cause="worker-lost"))
    monkeypatch.setattr(redriven._Redriving, "_revoked", (frozenset({some[1]}), 0))

    outcome = redrive(broker, 4)

    assert ids(redis) == [some[0], some[2]]
    assert "1 stays: Its id is revoked" in outcome.reason
    assert "1 stays: It ended the process that ran it" in outcome.reason


def test_what_stays_in_every_window_is_no_change_of_the_list(broker, redis, monkeypatch):
    """What the server alone knows of is passed over, and what lies behind it is asked for anew."""
    monkeypatch.setattr(redriven, "_BATCH", 20)
    some = buried(redis, 600)
    for task_id in some[::7]:
        redis.set(KEYS.result(task_id), json.dumps({"status": "SUCCESS"}))

    outcome = redrive(broker, 600)

    assert outcome.status == "applied"
    assert ids(redis) == [task_id for n, task_id in enumerate(some) if n % 7]
    assert dead(redis) == some[::7]


def test_nothing_that_may_be_sent_is_no_success(broker, redis):
    """It is skipped, with the reason."""
    bury(redis, b"1", b"2")

    outcome = redrive(broker, 2)

    assert (outcome.status, outcome.reason) == ("skipped", "None was sent. 2 stay: It cannot be read.")


def test_what_has_run_is_not_sent(broker, redis):
    """As its result says in the very step that would send it."""
    some = buried(redis, 3)
    redis.set(KEYS.result(some[1]), json.dumps({"status": "SUCCESS", "result": "FAILURE"}))
    redis.set(KEYS.result(some[2]), json.dumps({"status": "FAILURE", "result": "SUCCESS"}))

    outcome = redrive(broker, 3)

    assert ids(redis) == [some[0], some[2]]
    assert "1 stays: Its result says SUCCESS" in outcome.reason


def test_what_another_task_goes_on_with_is_not_sent(broker, redis):
    """It would begin at the beginning what is half done; also once that one has succeeded."""
    some = buried(redis, 3)
    document = checkpoints.Document(task_id=some[0], results={"a": 1}, resumed_as="new")
    redis.set(KEYS.checkpoint(some[0]), checkpoints.write(document))
    redis.set(KEYS.checkpoint(some[1]), checkpoints.write(checkpoints.over(document)))
    redis.set(KEYS.checkpoint(some[2]), checkpoints.write(checkpoints.Document(task_id=some[2])))

    outcome = redrive(broker, 3)

    assert ids(redis) == some[2:]
    assert "2 stay: Another task has gone on" in outcome.reason


@pytest.mark.parametrize("elsewhere", ["database", "server"])
def test_what_has_run_is_known_wherever_results_are(server, redis, archive, engine_of_results, elsewhere):
    """In another database the script looks there; on another server we do, right before."""
    url = server.url.rsplit("/", 1)[0] + "/5" if elsewhere == "database" else engine_of_results
    broker = connect(servers.target(server, result_backend=url))
    some = buried(redis, 2)
    broker.results.set(KEYS.result(some[0]), json.dumps({"status": "SUCCESS"}))

    outcome = redrive(broker, 2)

    broker.results.flushdb()
    assert archive
    assert ids(redis) == [some[1]]
    assert "1 stays: Its result says SUCCESS" in outcome.reason


def test_nothing_of_ours_is_written_where_results_are(server, redis, archive):
    """Journal, audit and what is kept stand with the messages, and come back from there."""
    broker = connect(servers.target(server, result_backend=server.url.rsplit("/", 1)[0] + "/5"))
    some = buried(redis, 60)
    broker.results.set(KEYS.result(some[0]), json.dumps({"status": "SUCCESS"}))

    redrive(broker, 60)
    found = broker.results.keys()
    undone(broker, run_id())
    broker.results.flushdb()

    assert archive
    assert found == [KEYS.result(some[0]).encode()]
    assert sorted(dead(redis)) == sorted(some)


@pytest.fixture(scope="module")
def engine_of_results(tmp_path_factory):
    """The URL of another server."""
    from opslib.demo import server as embedded

    with embedded.start(tmp_path_factory.mktemp("results")) as running:
        yield running.url


@pytest.mark.parametrize(
    "queue", ["unacked", "unacked_index", "_kombu.binding.x", "celery.dead", "hash", "opslib:lock"]
)
def test_a_letter_cannot_say_that_it_belongs_to_what_is_no_queue(broker, redis, queue):
    """What an entry says is what somebody wrote."""
    redis.hset("hash", "field", "value")
    redis.hset("unacked", "tag", "value")
    some = letter(queue=queue), letter()
    bury(redis, *some)
    before = {key: redis.dump(key) for key in ("hash", "unacked")}

    outcome = redrive(broker, 2)

    assert ids(redis) == [some[1].task_id]
    assert "1 stays: Its message cannot be written" in outcome.reason
    assert {key: redis.dump(key) for key in before} == before


def test_new_ids_are_told(broker, redis):
    """Whoever waits for a task has to know what it is called by now."""
    (old,) = buried(redis, 1)

    outcome = redrive(broker, 1, how=Redrive(new_ids=True))

    (new,) = ids(redis)
    assert outcome.steps == (f"{old} is {new} now",)


def test_a_rate_is_kept(broker, redis):
    """Fifteen at thirty a second take about half a second, and not less."""
    buried(redis, 15)
    began = time.monotonic()

    outcome = redrive(broker, 15, how=Redrive(rate_per_s=10.0))

    assert time.monotonic() - began >= 0.45
    assert outcome.reason.startswith("15 letters")


def test_a_prefix_and_other_steps(server, redis, archive):
    """The list, the queues and what is kept are under the deployment's own names."""
    keys = Keyspace(prefix="shop:")
    some = letter(queue="mail")
    bury(redis, some, queue="celery", keys=keys)

    outcome = redrive(servers.broker(server, global_keyprefix="shop:"), 1, keys=keys)

    assert archive
    assert outcome.status == "applied"
    assert ids(redis, "shop:mail") == [some.task_id]
    assert redis.exists(keys.redriven(run_id(), f"shop:{DEAD}"))


def audit_lines(archive):
    """Return the lines of the audit."""
    return [json.loads(line) for line in (archive / audit.FILE).read_text("utf-8").splitlines()]


class Meanwhile:
    """A client for changes, before each of whose batches something happens to the list."""

    def __init__(self, client, what):
        self._client, self._what, self.pool = client, what, client.connection_pool

    def __getattr__(self, name):
        return getattr(self._client, name)

    @property
    def connection_pool(self):
        """The pool that a batch takes its connection from."""
        self._what()
        return self.pool


def meddled(broker, what):
    """Have something happen before each batch."""
    object.__setattr__(broker, "writes", Meanwhile(broker.writes, what))
    return broker


def test_what_is_pushed_and_trimmed_meanwhile_changes_nothing_for_the_rest(broker, redis):
    """Workers capture, and their bound takes the oldest: none is sent twice, and none that was taken away."""
    some = buried(redis, 300)
    times = iter(range(5))

    def what():
        if next(times, None) is not None:
            redis.lpush(DEAD, letters.write(letter()))
            redis.ltrim(DEAD, 0, redis.llen(DEAD) - 3)

    outcome = redrive(meddled(broker, what), 300)

    sent = ids(redis)
    assert outcome.status == "applied"
    assert len(sent) == len(set(sent))
    assert set(sent) & set(dead(redis)) == set()
    assert sent == [each for each in some if each in set(sent)] + [each for each in sent if each not in set(some)]
    assert len(sent) >= 290


def test_two_runs_at_once_send_each_letter_once(broker, redis):
    """By hand, somebody pops from the other end of the same list."""
    some, taken = buried(redis, 200), []

    def what():
        taken.extend(filter(None, [redis.rpop(DEAD)]))

    redrive(meddled(broker, what), 200)

    popped = [letters.read(raw).task_id for raw in taken]
    assert sorted([*ids(redis), *popped, *dead(redis)]) == sorted(some)


@pytest.mark.parametrize("at", ["first", "last", "within"])
def test_a_window_that_is_not_as_it_was_seen_is_not_sent(broker, redis, at):
    """Somebody takes one letter of it right before: it is looked at again, and each other one is sent once."""
    some, times = buried(redis, 40), iter(range(9))
    gone = some[{"first": 0, "last": 39, "within": 20}[at]]
    (entry,) = [raw for raw in redis.lrange(DEAD, 0, -1) if letters.read(raw).task_id == gone]

    def what():
        if next(times) == 0:
            redis.lrem(DEAD, 1, entry)

    redrive(meddled(broker, what), 40)

    assert ids(redis) == [each for each in some if each != gone]
    assert dead(redis) == []


def test_a_list_that_never_holds_still_is_left_alone_some_day(broker, redis):
    """Somebody pops, whatever is tried: it is said, and nothing was sent that was not there."""
    buried(redis, 200)

    outcome = redrive(meddled(broker, lambda: redis.rpop(DEAD)), 200)

    assert (outcome.status, outcome.reason) == (
        "failed",
        "0 letters were sent again. The list keeps changing; run it again.",
    )
    assert ids(redis) == []
    assert redis.llen(DEAD) > 100


def test_a_window_that_was_put_on_record_and_not_sent_is_told_so(broker, redis, archive):
    """The next one is written into the audit while the server works on this one, which finds the list moved on."""
    buried(redis, 200)

    redrive(meddled(broker, lambda: redis.rpop(DEAD)), 200)

    said = {line["batch"]: line["said"] for line in audit_lines(archive) if line["event"] == "result"}
    assert "UNSENT" in said.values()
    assert {line["batch"] for line in audit_lines(archive) if line["event"] == "intent"} == set(said)
    assert audited.reconcile(audited.verify(archive / audit.FILE), broker).whole


def test_what_hinders_the_next_window_hides_nothing_of_this_one(broker, redis, monkeypatch):
    """The disk is full while the server sends: what it sent is counted, and what was not sent is where it was."""
    some, times, write = buried(redis, 200), iter(range(9)), audit.write

    def full(event, **detail):
        if event == "intent" and next(times) == 2:
            raise Refused("The audit cannot be written: No space left on device.")
        write(event, **detail)

    monkeypatch.setattr(audit, "write", full)

    outcome = redrive(broker, 200)

    assert outcome.status == "failed"
    count = int(re.match(r"(\d+) letters were sent again\. The audit cannot be written", outcome.reason)[1])
    assert 0 < count < 200
    assert (ids(redis), dead(redis)) == (some[:count], some[count:])


class TestChord:
    """One of a chord's tasks is sent again, and the chord waits for it again."""

    def failed(self, redis, size=3, *, ordered=True, counted=True, extra=0):
        """Leave what Celery leaves of a chord of which the first task failed, once all have returned."""
        group = str(uuid.uuid4())
        members = [graveyard.chord_member(group=group) for _ in range(size)]
        for n, each in enumerate(members):
            each["headers"]["group_index"] = n
            state = "FAILURE" if n == 0 else "SUCCESS"
            entry = json.dumps([1, each["headers"]["id"], state, n])
            if ordered:
                redis.zadd(KEYS.group(group) + ".j", {entry: n})
            else:
                redis.rpush(KEYS.group(group) + ".j", entry)
            redis.sadd(KEYS.group(group) + ".d", f"{each['headers']['id']}:{n}")
        if not counted:
            redis.set(KEYS.group(group) + ".s", size)
        if extra:
            redis.set(KEYS.group(group) + ".t", extra)
        redis.set(KEYS.group(group) + ".c", "done", ex=300)
        redis.expire(KEYS.group(group) + ".j", 3_600)
        bury(redis, letter(message=members[0]))
        return KEYS.group(group), members[0]["headers"]["id"]

    @pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
    @pytest.mark.parametrize("extra", [0, 1])
    def test_its_count_is_mended(self, broker, redis, ordered, extra):
        """Its failure is forgotten, the size is there again for as long as the rest, and nobody has dispatched."""
        key, member = self.failed(redis, ordered=ordered, extra=extra)

        outcome = redrive(broker, 1)

        assert outcome.status == "applied"
        assert ids(redis) == [member]
        assert int(redis.get(f"{key}.s")) == 3 - extra
        assert 3_500 < redis.ttl(f"{key}.s") <= 3_600
        left = redis.zrange(f"{key}.j", 0, -1) if ordered else redis.lrange(f"{key}.j", 0, -1)
        assert member.encode() not in b"".join(left)
        assert len(left) == 2
        assert not redis.sismember(f"{key}.d", f"{member}:0")
        assert not redis.exists(f"{key}.c")

    def test_one_that_still_waits_for_others_keeps_its_size(self, broker, redis):
        """Only the failure goes."""
        key, _ = self.failed(redis, counted=False)
        redis.set(f"{key}.s", 10)

        redrive(broker, 1)

        assert redis.get(f"{key}.s") == b"10"

    def test_a_second_one_finds_the_size(self, broker, redis):
        """Two failed; the count is mended once, for both."""
        key, _ = self.failed(redis)
        second = graveyard.chord_member(group=key.rsplit("-meta-", 1)[1])
        second["headers"]["group_index"] = 7
        redis.zadd(f"{key}.j", {json.dumps([1, second["headers"]["id"], "FAILURE", None]): 7})
        bury(redis, letter(message=second))

        redrive(broker, 2)

        assert redis.get(f"{key}.s") == b"4"
        assert redis.zcard(f"{key}.j") == 2

    def test_one_of_which_nothing_is_left_is_refused(self, broker, redis):
        """How many it waits for, nobody knows; sent, it would never end it."""
        bury(redis, letter(message=graveyard.chord_member()))

        outcome = redrive(broker, 1)

        assert outcome.status == "skipped"
        assert "how many those are is not known any more" in outcome.reason
        assert redis.llen(DEAD) == 1

    def test_in_another_database(self, server, redis, archive):
        """In the same step, whatever database of the server it is."""
        broker = connect(servers.target(server, result_backend=server.url.rsplit("/", 1)[0] + "/5"))
        key, _ = self.failed(broker.results)
        redis.lpush(DEAD, broker.results.rpop(DEAD))

        outcome = redrive(broker, 1)

        size = broker.results.get(f"{key}.s")
        broker.results.flushdb()
        assert archive
        assert (outcome.status, size, redis.dbsize() > 2) == ("applied", b"3", True)

    def test_on_another_server_is_refused(self, server, redis, archive, engine_of_results):
        """Two servers have no step in common."""
        broker = connect(servers.target(server, result_backend=engine_of_results))
        bury(redis, letter(message=graveyard.chord_member()))

        outcome = redrive(broker, 1)

        assert archive
        assert "counted on another server" in outcome.reason


class TestWayBack:
    """What was sent is recalled, as far as it still waits."""

    def test_all_letters_come_back_to_the_byte(self, broker, redis):
        """In their order, into a list that others have written to since."""
        (waits,) = [seed_waiting(redis).task_id]
        some = buried(redis, 700)
        before = redis.lrange(DEAD, 0, -1)
        redrive(broker, 700)
        later = letter()
        bury(redis, later)

        (outcome,) = undone(broker, run_id())

        assert (outcome.status, outcome.reason) == ("applied", "700 letters are back in celery.dead.")
        assert redis.lrange(DEAD, 0, -1) == [letters.write(later), *before]
        assert dead(redis)[:-1] == some
        assert ids(redis) == [waits]

    def test_what_workers_took_is_left_to_them(self, broker, redis):
        """Only the others come back."""
        some = buried(redis, 5)
        redrive(broker, 5)
        redis.rpop("celery", 2)

        (outcome,) = undone(broker, run_id())

        assert outcome.reason == "3 letters are back in celery.dead. 2 have been taken by workers."
        assert dead(redis) == some[2:]

    def test_only_what_was_sent_comes_back(self, broker, redis):
        """Between letters that had stayed."""
        some = [letter(**(graveyard.CODE if n % 2 else {})) for n in range(10)]
        bury(redis, *some)
        redrive(broker, 5, only=DeadSelection(signature=letters.name_of(some[1].signature)))

        undone(broker, run_id())

        assert sorted(dead(redis)) == sorted(each.task_id for each in some)
        assert not waiting(redis)

    def test_a_second_undo_finds_nothing(self, broker, redis):
        """It was put back."""
        buried(redis, 3)
        redrive(broker, 3)
        undone(broker, run_id())

        assert undone(broker, run_id()) == ()


#: Where a batch can be cut off, and which one.
CUTS = [
    (point, batch) for point in ("before-intent", "after-intent", "after-script", "after-result") for batch in range(4)
]


@pytest.fixture(params=CUTS, ids=lambda cut: f"{cut[0]}-{cut[1]}")
def cut_off(request, broker, redis, monkeypatch):
    """Cut a run over a hundred letters off; return its plan and all their ids."""
    point, batch = request.param
    monkeypatch.setattr(redriven, "_BATCH", 100)
    some = buried(redis, 100)
    seen = iter(range(batch))

    def watcher(name):
        if name == point and next(seen, None) is None:
            raise KeyboardInterrupt

    made = planned(broker, again(100, only=DeadSelection(limit=90)))
    with monkeypatch.context() as patched:
        patched.setattr(points, "watchers", [watcher])
        with pytest.raises(KeyboardInterrupt):
            apply(made, broker, dry_run=False)
    redis.delete(KEYS.lock)
    return made, some


class TestCutOff:
    """A run that is cut off has sent a letter, or not."""

    def test_each_is_in_one_place(self, redis, cut_off):
        """The oldest were sent, in their order; the others are where they were."""
        _, some = cut_off

        assert [*ids(redis), *dead(redis)] == some

    def test_it_is_gone_on_with(self, broker, redis, cut_off):
        """By its run id, to the number that was planned, and no further if that is done again."""
        made, some = cut_off

        for _ in range(2):
            apply(resume.remaining(made, broker, run_id()), broker, dry_run=False)

        assert (ids(redis), dead(redis)) == (some[:90], some[90:])

    def test_or_run_again(self, broker, redis, cut_off):
        """What is left in the list is what was not sent."""
        _, some = cut_off

        redrive(broker, redis.llen(DEAD))

        assert (ids(redis), dead(redis)) == (some, [])

    def test_or_put_back(self, broker, redis, cut_off):
        """All are in the list again, in their order."""
        _, some = cut_off
        if ids(redis):
            undone(broker, run_id())

        assert (ids(redis), dead(redis)) == ([], some)


def test_what_is_done_is_not_gone_on_with(broker, redis):
    """Letters that failed since are none of that run's."""
    made = planned(broker, again(3))
    buried(redis, 3)
    apply(made, broker, dry_run=False)
    bury(redis, letter())

    assert len(resume.remaining(made, broker, run_id())) == 0


class TestPurge:
    """Letters leave their list, and are kept."""

    @pytest.mark.parametrize("only", [DeadSelection(), DeadSelection(cause="worker-lost")], ids=["all", "some"])
    def test_they_are_in_quarantine_and_come_back(self, broker, redis, only):
        """As messages are; what nobody can read as well, if all are meant."""
        some = [letter(**(graveyard.KILLED if n % 2 else {})) for n in range(6)]
        bury(redis, *some, b"no JSON")
        before = redis.lrange(DEAD, 0, -1)
        action = replace(again(7, only=only), kind=Kind.PURGE, destination="quarantine", redrive=None)

        outcomes = apply(planned(broker, action), broker, dry_run=False)

        assert told(outcomes) == ["applied"]
        left = 0 if only.is_everything else 4
        assert redis.llen(DEAD) == left
        undone(broker, run_id())
        assert redis.lrange(DEAD, 0, -1) == before


def test_what_was_sent_is_no_dead_letter_any_more(broker, redis):
    """Though it is kept, in a list whose name ends as theirs do."""
    some = buried(redis, 2)
    redrive(broker, 2)

    seen = collect(broker, dead_letters=True, settle="0.01s")

    assert seen.letters.lists == ()
    assert find(broker, some).places == {each: ["waiting"] for each in sorted(some)}


@pytest.mark.parametrize("missing", ["", "lmove", "lset", "lrem", "lpush", "pexpire", "xadd", "select"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "results elsewhere"])
def test_without_one_right_nothing_is_half_done(server, redis, archive, missing, elsewhere):
    """All that a batch needs is asked for before it writes; with the documented rights it goes through."""
    some = buried(redis, 5)
    servers.user(redis, f"{ops_change()} {f'-{missing}' if missing else ''}")
    url = servers.as_user(server)
    results = url.rsplit("/", 1)[0] + "/5" if elsewhere else url

    try:
        outcome = redrive(connect(servers.target(server, broker_url=url, result_backend=results)), 5)
    except OpsError:
        if not missing:
            raise
    else:
        assert (outcome.status == "applied") == bool(ids(redis)), outcome
        assert outcome.status == "applied" or missing, outcome

    assert archive
    assert [*ids(redis), *dead(redis)] == some


def ops_change():
    """Return the rights that the documentation gives to whoever may apply."""
    (line,) = re.findall(r"ACL SETUSER ops_change on >PASSWORD (.*)", SAFETY.read_text("utf-8"))
    return line
