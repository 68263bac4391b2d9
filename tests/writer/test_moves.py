"""One batch is one step: each message is moved whole or not at all, once, and only by whoever holds the lock."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from opslib.envelope import digest
from opslib.errors import Refused
from opslib.rewrite import restored
from opslib.writer import journal as journals
from opslib.writer import lock, moves, scripts
from opslib.writer.moves import CHANGED, GONE, MOVED, MOVED_NEXT, TAKEN, UNDONE, Move, Mover, Place, old_bytes
from opslib.writer.primitive import Fenced, Primitive
from tests.support.plans import RUN, audit, foreign, interrupted, mover
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.servers import dump

DESTINATION = KEYS.quarantine(RUN, "celery")


def of_list(raw, *, source="celery", destination=DESTINATION, served="last", **fields):
    """Return the move of a waiting message."""
    return Move(
        subject="x",
        source=Place(key=source),
        seen=raw,
        destination=Place(key=destination, served=served),
        **fields,
    )


def of_unacked(seeded, *, destination="celery", **fields):
    """Return the move of a delivered message; `score` is the one that was seen."""
    score = fields.pop("score", seeded.score)
    return Move(
        subject=seeded.task_id,
        source=Place(key=KEYS.unacked, index=KEYS.unacked_index, tag=seeded.tag, score=score),
        destination=Place(key=destination),
        **{"seen": seeded.raw, **fields},
    )


def to_unacked(raw, tag, *, source="celery", score=5.0):
    """Return the move of a waiting message to where delivered ones are."""
    there = Place(key=KEYS.unacked, index=KEYS.unacked_index, tag=tag, score=score)
    return Move(subject="x", source=Place(key=source), destination=there, seen=raw)


def journal(redis):
    """Return what each batch did, in their order."""
    fields = {number.decode(): said for number, said in redis.hgetall(KEYS.journal(RUN)).items()}
    numbers = sorted(
        (name for name in fields if name != "run" and ":" not in name), key=lambda name: [*map(int, name.split("."))]
    )
    return {name: fields[name].decode() for name in numbers}


@pytest.mark.parametrize(("served", "order"), [("next", [b"b", b"a", b"x"]), ("last", [b"x", b"b", b"a"])])
def test_a_message_goes_to_the_end_that_is_meant(broker, redis, served, order):
    """Producers push on the left, workers pop on the right."""
    redis.rpush("celery", b"x")
    redis.rpush(DESTINATION, b"b", b"a")

    with mover(broker) as hand:
        assert hand.move([of_list(b"x", served=served)]) == [MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == order
    assert not redis.exists("celery")


def test_what_is_written_may_differ_from_what_was_seen(broker, redis):
    """A restored message has a new tag; compared is what lies there."""
    redis.rpush("celery", b"old")

    with mover(broker) as hand:
        hand.move([of_list(b"old", written=b"new", note_field="f", note="why")])

    assert redis.lrange(DESTINATION, 0, -1) == [b"new"]
    assert redis.hgetall(KEYS.quarantine_notes(RUN)) == {b"f": b"why"}


def test_of_equal_messages_the_next_to_be_served_moves(broker, redis):
    """One move takes one, from the workers' end."""
    redis.rpush("celery", b"x", b"1", b"x", b"2")

    with mover(broker) as hand:
        hand.move([of_list(b"x")])

    assert redis.lrange("celery", 0, -1) == [b"x", b"1", b"2"]


def test_each_move_has_its_letter(broker, redis):
    """In the order in which they were given."""
    redis.rpush("celery", b"x")
    steady, changed, gone = (seed_unacked(redis) for _ in range(3))
    redis.zadd(KEYS.unacked_index, {changed.tag: 1})
    redis.hdel(KEYS.unacked, gone.tag)

    with mover(broker) as hand:
        letters = hand.move([of_list(b"no"), of_list(b"x"), *map(of_unacked, (changed, gone, steady))])

    assert letters == [GONE, MOVED, CHANGED, GONE, MOVED]
    assert journal(redis) == {"1.1": "GACGA"}


@pytest.mark.parametrize("kind", ["waiting", "unacked"])
def test_a_message_named_twice_moves_once(broker, redis, kind):
    """The second of both finds it gone, and leaves no copy."""
    if kind == "waiting":
        redis.rpush("celery", b"x")
        move = of_list(b"x")
    else:
        move = of_unacked(seed_unacked(redis), destination=DESTINATION)

    with mover(broker) as hand:
        assert hand.move([move, move]) == [MOVED, GONE]

    assert redis.llen(DESTINATION) == 1


def test_a_score_is_compared_to_its_last_bit(broker, redis):
    """It is all that tells two deliveries of the same bytes apart."""
    seeded = seed_unacked(redis, age_s=0.1)
    score = redis.zscore(KEYS.unacked_index, seeded.tag)

    with mover(broker) as hand:
        assert hand.move([of_unacked(seeded, score=score + 1e-6)]) == [CHANGED]
        assert hand.move([of_unacked(seeded, score=score)]) == [MOVED]


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), 0.0, 0, -5.0, 1e-300, 1795225339.123457])
def test_any_score_can_be_compared(broker, redis, score):
    """Also one of no calendar."""
    seeded = seed_unacked(redis)
    redis.zadd(KEYS.unacked_index, {seeded.tag: score})

    with mover(broker) as hand:
        assert hand.move([of_unacked(seeded, score=score - 1 if abs(score) < 1e300 else 0.0)]) == [CHANGED]
        assert hand.move([of_unacked(seeded, score=0 if score else 1)]) == [CHANGED]
        assert hand.move([of_unacked(seeded, score=score)]) == [MOVED]


def test_no_score_to_compare_takes_any(broker, redis):
    """Nothing was seen of it; an entry that the index lacks is one of those."""
    indexed, lost = seed_unacked(redis), seed_unacked(redis, indexed=False)

    with mover(broker) as hand:
        assert hand.move([of_unacked(each, score=None) for each in (indexed, lost)]) == [MOVED, MOVED]

    assert (redis.hlen(KEYS.unacked), redis.zcard(KEYS.unacked_index)) == (0, 0)


# Into the unacked hash


@pytest.mark.parametrize("score", [5.0, 1795225339.123457, "1795225339.1234567", float("inf")])
def test_a_message_gets_its_tag_and_score(broker, redis, score):
    """Hash and index both have it, as if a worker had taken it then."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        assert hand.move([to_unacked(b"x", "tag", score=score)]) == [MOVED]

    assert redis.hgetall(KEYS.unacked) == {b"tag": b"x"}
    assert redis.zrange(KEYS.unacked_index, 0, -1, withscores=True) == [(b"tag", float(score))]
    assert not redis.exists("celery")


def test_a_message_that_had_no_score_gets_none(broker, redis):
    """It is as lost as it was."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        assert hand.move([to_unacked(b"x", "tag", score=None)]) == [MOVED]

    assert redis.hgetall(KEYS.unacked) == {b"tag": b"x"}
    assert not redis.exists(KEYS.unacked_index)


@pytest.mark.parametrize("there", ["another", "equal"])
def test_what_is_under_a_tag_already_is_never_overwritten(broker, redis, there):
    """Another message, or the same one delivered again: it stays, and so does what was to be put over it."""
    seeded = seed_unacked(redis)
    mine = seeded.raw if there == "equal" else b"mine"
    redis.rpush("celery", b"1", mine, b"2")
    before = foreign(redis)

    with mover(broker) as hand:
        move = to_unacked(mine, seeded.tag)
        assert hand.move([replace(move, note_field="f", note="n")]) == [TAKEN]
        (batch,) = journals.read(broker, RUN).batches
        assert not batch.done(0)

    assert foreign(redis) == before
    assert not redis.exists(KEYS.quarantine_notes(RUN))


def test_of_two_messages_for_one_tag_the_second_stays(broker, redis):
    """The first has the place by then, in the same batch."""
    redis.rpush("celery", b"a", b"b")

    with mover(broker) as hand:
        assert hand.move([to_unacked(b"a", "tag"), to_unacked(b"b", "tag", score=6.0)]) == [MOVED, TAKEN]

    assert redis.hgetall(KEYS.unacked) == {b"tag": b"a"}
    assert redis.zscore(KEYS.unacked_index, "tag") == 5.0
    assert redis.lrange("celery", 0, -1) == [b"b"]


# To a place in a list


SIX = [b"f", b"e", b"d", b"c", b"b", b"a"]  # a is served first


def with_one_more(served):
    """Return a list of six and x, behind so many that are served before it."""
    order = SIX[::-1]
    return [*order[:served], b"x", *order[served:]][::-1]


@pytest.mark.parametrize("length", ["6", ""], ids=["of the length that was seen", "of any length"])
@pytest.mark.parametrize("served", range(7))
def test_a_message_goes_behind_as_many_as_are_meant(broker, redis, served, length):
    """From the served end and from the other one: all others keep their order, whichever of them step aside."""
    redis.rpush("celery", b"x")
    redis.rpush(DESTINATION, *SIX)

    with mover(broker) as hand:
        assert hand.move([of_list(b"x", served=f"{served}/{length}")]) == [MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == with_one_more(served)
    assert not redis.exists("celery")


@pytest.mark.parametrize("length", [0, 5, 7, 60])
@pytest.mark.parametrize("served", [0, 3, 6, 7])
def test_a_message_is_served_next_where_its_list_has_moved_on(broker, redis, served, length):
    """Its old place is nobody's any more, and that is told: N."""
    redis.rpush("celery", b"x")
    redis.rpush(DESTINATION, *SIX)

    with mover(broker) as hand:
        assert hand.move([of_list(b"x", served=f"{served}/{length}")]) == [MOVED_NEXT]
        (batch,) = journals.read(broker, RUN).batches
        assert batch.done(0)

    assert redis.lrange(DESTINATION, 0, -1) == [*SIX, b"x"]
    assert not redis.exists("celery")


@pytest.mark.parametrize("served", [7, 100, 10**9])
def test_behind_more_than_there_are_is_last(broker, redis, served):
    """As far back as it goes."""
    redis.rpush("celery", b"x")
    redis.rpush(DESTINATION, *SIX)

    with mover(broker) as hand:
        assert hand.move([of_list(b"x", served=f"{served}/")]) == [MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == [b"x", *SIX]


@pytest.mark.parametrize("served", ["0/0", "0/", "3/", "next", "last"])
def test_an_empty_list_has_one_place(broker, redis, served):
    """Whatever was meant."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        assert hand.move([of_list(b"x", served=served)]) == [MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == [b"x"]


def test_messages_of_one_batch_go_to_places_that_the_ones_before_left(broker, redis):
    """Each length is that of its moment."""
    redis.rpush("celery", b"x", b"y")
    redis.rpush(DESTINATION, b"b", b"a")

    with mover(broker) as hand:
        assert hand.move([of_list(b"x", served="1/2"), of_list(b"y", served="1/3")]) == [MOVED, MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == [b"b", b"x", b"y", b"a"]


# Elsewhere in its own list


def reordered(order, at, to):
    """Return a list, the next to be served first, after one of it went behind `to` of the others."""
    others = [each for n, each in enumerate(order) if n != at]
    return [*others[:to], order[at], *others[to:]]


@pytest.mark.parametrize("length", ["5", ""], ids=["of the length that was seen", "of any length"])
@pytest.mark.parametrize("to", range(5))
@pytest.mark.parametrize("at", range(5))
def test_a_message_goes_to_any_place_of_its_own_list(broker, redis, at, to, length):
    """One of it, before and after; it says where it was."""
    order = [b"a", b"b", b"c", b"d", b"e"]
    redis.lpush("celery", *order)

    with mover(broker) as hand:
        assert hand.move([of_list(order[at], destination="celery", served=f"{to}/{length}")]) == [MOVED]
        (batch,) = journals.read(broker, RUN).batches

    assert redis.lrange("celery", 0, -1) == reordered(order, at, to)[::-1]
    assert batch.seen == (f"{at}/5",)


@pytest.mark.parametrize("written", [b"", b"new"], ids=["as it was", "written anew"])
@pytest.mark.parametrize("to", range(5))
@pytest.mark.parametrize(
    "order", ["xxbcd", "xbxcd", "xbcxd", "xbcdx", "axxcd", "axcxd", "abxxd", "abxdx", "abcxx", "xxxcd", "xxxxx"]
)
def test_of_equal_messages_the_next_to_be_served_goes_elsewhere(broker, redis, order, to, written):
    """Just that one, and one copy of it: the others stand where they stood."""
    before = [letter.encode() for letter in order]
    redis.lpush("celery", *before)

    with mover(broker) as hand:
        move = of_list(b"x", destination="celery", served=f"{to}/5", written=written)
        assert hand.move([move]) == [MOVED]

    at = order.index("x")
    before[at] = written or b"x"
    assert redis.lrange("celery", 0, -1) == reordered(before, at, to)[::-1]


@pytest.mark.parametrize("written", [b"", b"new"], ids=["as it was", "written anew"])
@pytest.mark.parametrize(("served", "to"), [("next", 0), ("last", 4), ("2/9", 0)])
@pytest.mark.parametrize("order", ["xbcde", "axcde", "abcdx", "xxcdx", "axxxe", "xxxxx"])
def test_a_message_goes_to_an_end_of_its_own_list(broker, redis, order, served, to, written):
    """The one that was meant, or the served one where the list has moved on."""
    before = [letter.encode() for letter in order]
    redis.lpush("celery", *before)

    with mover(broker) as hand:
        (letter,) = hand.move([of_list(b"x", destination="celery", served=served, written=written)])

    assert letter == (MOVED_NEXT if "/" in served else MOVED)
    at = order.index("x")
    before[at] = written or b"x"
    assert redis.lrange("celery", 0, -1) == reordered(before, at, to)[::-1]


def test_one_place_may_be_source_and_destination(broker, redis):
    """Whoever says so means the same list; what is compared and where it goes are two things all the same."""
    redis.rpush("celery", b"x", b"a")
    place = Place(key="celery", served="next")

    with mover(broker) as hand:
        assert hand.move([Move(subject="x", source=place, destination=place, seen=b"x")]) == [MOVED]

    assert redis.lrange("celery", 0, -1) == [b"a", b"x"]


def test_a_list_that_a_message_never_leaves_is_not_forgotten(broker, redis):
    """It is its only one."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        for served in ("next", "last", "0/1", "0/", "5/"):
            assert hand.move([of_list(b"x", destination="celery", served=served)]) == [MOVED]
            assert redis.lrange("celery", 0, -1) == [b"x"]


# The way back


def large(size):
    """Return a delivered message with a body of that size which no packer makes smaller."""
    return random.Random(size).randbytes(size).hex()[:size]


@pytest.mark.parametrize("size", [0, 100, 32 * 1024, 33 * 1024, 100_000, 400_000])
@pytest.mark.parametrize("kind", ["random", "same", "words"])
def test_a_receipt_leads_back_to_the_old_bytes(broker, redis, size, kind):
    """Of a restored message, whose tag and mark are new: also where it is larger than what a packer looks back."""
    body = {"random": large(size), "same": "a" * size, "words": "charge customer 4711 " * (size // 21)}[kind]
    seeded = seed_unacked(redis, argsrepr=body)

    with mover(broker) as hand:
        assert hand.move([of_unacked(seeded, written=restored(seeded.raw, "new-tag"))]) == [MOVED]
        (batch,) = journals.read(broker, RUN).batches

    (arrived,) = redis.lrange("celery", 0, -1)
    assert arrived != seeded.raw
    assert old_bytes(batch.items[0], arrived) == seeded.raw
    assert batch.items[0]["sha"] == digest(arrived)


@pytest.mark.parametrize(
    ("old", "new"), [(b"", b"new"), (b"\x00\xff", b"\xff\x00" * 40_000), (b"a" * 70_000, b"b"), (b"old", b"old" * 3)]
)
def test_any_bytes_can_be_told_from_any_others(broker, redis, old, new):
    """However little the two have in common."""
    redis.rpush("celery", old)

    with mover(broker) as hand:
        assert hand.move([of_list(old, written=new)]) == [MOVED]
        (batch,) = journals.read(broker, RUN).batches

    assert old_bytes(batch.items[0], new) == old


def test_bytes_that_do_not_change_are_not_kept_twice(broker, redis):
    """The message itself is where it went; its receipt stays small, however large it is."""
    raw = large(200_000).encode()
    redis.rpush("celery", raw)

    with mover(broker) as hand:
        hand.move([of_list(raw, written=raw)])
        (batch,) = journals.read(broker, RUN).batches

    assert old_bytes(batch.items[0], raw) == raw
    assert redis.hstrlen(KEYS.journal(RUN), "1.1:u") < 1_000


# Asked again


def movers(broker, held, count=2):
    """Return as many that begin to count their batches anew, as if each were the run asked again."""
    return [Mover(Primitive(broker, held, run_id=RUN, told={"plan": "d"})) for _ in range(count)]


def answers(hand, monkeypatch):
    """Return a list that gets what each batch answers."""
    given, call = [], hand.primitive.call

    def kept(*args, **options):
        given.append(call(*args, **options))
        return given[-1]

    monkeypatch.setattr(hand.primitive, "call", kept)
    return given


def test_a_batch_that_is_asked_again_is_not_done_again(broker, redis):
    """It answers what it did; an equal message that came meanwhile stays."""
    redis.rpush("celery", b"x")
    with lock.held(broker, run_id=RUN, plan_digest="d") as held:
        first, again = movers(broker, held)
        done = first.move([of_list(b"x"), of_list(b"gone")])
        redis.rpush("celery", b"x", b"gone")
        before = foreign(redis)
        kept = redis.hgetall(KEYS.journal(RUN))

        assert again.move([of_list(b"x"), of_list(b"gone")]) == done == [MOVED, GONE]

    assert foreign(redis) == before
    assert redis.hgetall(KEYS.journal(RUN)) == kept
    assert redis.lrange(DESTINATION, 0, -1) == [b"x"]


def test_a_batch_that_is_asked_again_answers_its_own_letters_and_places(broker, redis, monkeypatch):
    """Of each batch the ones of that batch, also where the lists look quite different by then."""
    monkeypatch.setattr(moves, "BATCH_MOVES", 2)
    seeded = seed_unacked(redis)
    redis.rpush("celery", *[b"%d" % n for n in range(5)])
    wanted = [of_list(b"1"), of_list(b"no"), of_list(b"0"), of_unacked(seeded, destination="elsewhere")]

    with lock.held(broker, run_id=RUN, plan_digest="d") as held:
        first, again = movers(broker, held)
        told, told_again = answers(first, monkeypatch), answers(again, monkeypatch)
        letters = first.move(wanted)
        redis.lpush("celery", b"0", b"1", b"no")
        redis.rpush("celery", b"0", b"1", b"no")

        assert again.move(wanted) == letters == [MOVED, GONE, MOVED, MOVED]

    assert told == told_again
    score = redis.hget(KEYS.journal(RUN), "1.2:p").decode().rpartition(",")[2]
    assert [answer.seen for answer in told] == [("3/5", ""), ("3/4", score)]
    assert float(score) == seeded.score
    assert redis.llen(DESTINATION) == 2


def test_what_the_journal_tells_is_what_was_done(broker, redis):
    """The run once, and of each batch letters, places and receipts, in their order."""
    redis.rpush("celery", b"a", b"b", b"c")

    with mover(broker) as hand:
        hand.move([of_list(b"b", action=7), of_list(b"no")])
        hand.move([of_list(b"c", note_field="f", note="n")])
        found = journals.read(broker, RUN)

    assert found.run == {"run": RUN, "plan": "d"}
    assert [(batch.number, batch.said, batch.seen) for batch in found.batches] == [
        ("1.1", "AG", ("1/3", "")),
        ("1.2", "A", ("0/2",)),
    ]
    first, second = (batch.items[0] for batch in found.batches)
    assert (first["a"], first["from"], first["to"]) == (7, ["celery", "", "", None], [DESTINATION, "", "", None])
    assert second["note"] == ["f", "n"]
    assert [(batch.number, n) for batch, n in found.changed()] == [("1.2", 0), ("1.1", 0)]


def test_a_batch_that_was_begun_and_not_ended_needs_a_person(broker, redis):
    """Nobody can say how much of it was done, so nothing more is."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        redis.hset(KEYS.journal(RUN), "1.1", "intent")
        with pytest.raises(Refused, match="begun and not ended"):
            hand.move([of_list(b"x")])

    assert redis.lrange("celery", 0, -1) == [b"x"]
    assert not redis.exists(DESTINATION)


# The lock


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda redis: redis.delete(KEYS.lock), id="gone"),
        pytest.param(lambda redis: redis.set(KEYS.lock, json.dumps({"token": "another"})), id="another's"),
    ],
)
def test_without_the_lock_nothing_is_written(broker, redis, lose):
    """It was lost while this run was paused: the token is compared in the step that writes."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        lose(redis)
        before = dump(redis)
        with pytest.raises(Fenced):
            hand.move([of_list(b"x")])
        assert dump(redis) == before


@pytest.mark.parametrize("another", [b"", b'{"token": "another"}'])
def test_nothing_is_written_after_the_lock_was_lost(broker, redis, monkeypatch, another):
    """Between two batches it went; what was done is told, and so is what was not."""
    monkeypatch.setattr(moves, "BATCH_MOVES", 2)
    redis.rpush("celery", *b"abcde")
    lists = [of_list(raw) for raw in redis.lrange("celery", 0, -1)]
    between = interrupted(broker, lambda _: redis.set(KEYS.lock, another) if another else redis.delete(KEYS.lock))

    with mover(broker) as hand:
        letters = hand.move(lists)

    assert letters == [MOVED] * 2 + [UNDONE] * 3
    assert "lock was lost" in hand.halted
    assert (redis.llen("celery"), redis.llen(DESTINATION), between.batches) == (3, 2, 2)


def test_every_batch_prolongs_the_lock(broker, redis):
    """A long run does not outlive it."""
    redis.rpush("celery", b"x")

    with mover(broker) as hand:
        redis.pexpire(KEYS.lock, 5000)
        hand.move([of_list(b"x")])

        assert redis.pttl(KEYS.lock) > lock.LIFE_MS / 2


# Refused before the first write


WRONG = {
    "source list": ("celery", lambda redis, key: redis.set(key, "x")),
    "destination": (DESTINATION, lambda redis, key: redis.set(key, "x")),
    "journal": (KEYS.journal(RUN), lambda redis, key: redis.set(key, "x")),
    "audit": (KEYS.audit, lambda redis, key: redis.lpush(key, "x")),
    "notes": (KEYS.quarantine_notes(RUN), lambda redis, key: redis.lpush(key, "x")),
    "unacked": (KEYS.unacked, lambda redis, key: redis.set(key, "x")),
    "index": (KEYS.unacked_index, lambda redis, key: redis.set(key, "x")),
}


@pytest.mark.parametrize("which", WRONG)
def test_a_key_of_another_type_refuses_the_whole_batch(broker, redis, which):
    """Nothing rolls back in a script, so nothing may fail half way: here the wrong one comes last."""
    redis.rpush("other", b"x")
    seeded = seed_unacked(redis)
    key, spoil = WRONG[which]
    batch = [
        of_list(b"x", source="other", destination="elsewhere", note_field="f", note="n"),
        of_unacked(seeded),
        of_list(b"y", source="celery" if which == "source list" else "other"),
    ]
    redis.delete(key)
    spoil(redis, key)
    before = foreign(redis)

    with mover(broker) as hand, pytest.raises(Exception, match=r"WRONGTYPE|wrong kind"):
        hand.move(batch)

    assert foreign(redis) == before


def test_a_full_server_refuses_before_anything_is_removed(broker, redis):
    """Removing would be allowed, adding is not: so adding comes first."""
    redis.rpush("celery", b"x" * 100)
    seeded = seed_unacked(redis)
    before = foreign(redis)

    with mover(broker) as hand:
        redis.config_set("maxmemory", "1")
        with pytest.raises(Exception, match=r"OOM|out of memory|maxmemory"):
            hand.move([of_list(b"x" * 100), of_unacked(seeded, destination="celery")])
        redis.config_set("maxmemory", "256mb")

    assert foreign(redis) == before
    assert journal(redis) == {}


def test_a_message_is_added_before_it_is_removed(broker, redis, monkeypatch):
    """Were a check to overlook something, nothing would be lost, and the batch be known as unfinished."""
    blind = scripts.text("move").replace("if found ~= kind and found ~= 'none' then", "if false then")
    assert blind != scripts.text("move")
    redis.rpush("celery", b"x")
    seeded = seed_unacked(redis)
    redis.set(DESTINATION, "no list")
    before = foreign(redis)
    monkeypatch.setattr(scripts, "text", {**_texts(), "move": blind}.__getitem__)

    for batch in ([of_list(b"x")], [of_unacked(seeded, destination=DESTINATION)]):
        with mover(broker) as hand, pytest.raises(ResponseError):
            hand.move(batch)

    assert foreign(redis) == before
    assert journal(redis) == {"1.1": "intent", "2.1": "intent"}


def _texts():
    return {name: scripts.text(name) for name in ("take_lock", "keep_lock", "move")}


# Batches


def test_batches_are_bounded_by_number_and_bytes(broker, redis, archive):
    """Each is one short stall for everybody else; each has its number, its line in the stream and in the file."""
    raws = [bytes([65 + n]) * 100_000 for n in range(6)] + [b"%d" % n for n in range(210)]
    redis.rpush("celery", *raws)

    with mover(broker) as hand:
        letters = hand.move([of_list(raw) for raw in raws])

    assert letters == [MOVED] * 216
    sizes = [len(letters) for letters in journal(redis).values()]
    assert sizes == [2, 2, 200, 12]
    assert [entry[b"letters"].decode() for _, entry in redis.xrange(KEYS.audit)] == list(journal(redis).values())
    assert [line["event"] for line in audit(archive)] == ["intent", "result"] * 4


def test_one_message_may_be_larger_than_a_batch(broker, redis):
    """It is a batch by itself."""
    raw = b"x" * (2 * moves.BATCH_BYTES)
    redis.rpush("celery", raw)

    with mover(broker) as hand:
        assert hand.move([of_list(raw)]) == [MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == [raw]


def test_names_that_are_no_text_can_be_moved(broker, redis):
    """Of keys and of delivery tags."""
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    redis.rpush(b"caf\xe9", b"x")
    seeded = seed_waiting(redis)
    redis.hset(KEYS.unacked, b"\xff", seeded.raw)
    redis.zadd(KEYS.unacked_index, {b"\xff": 5})
    tag = b"\xff".decode("utf-8", "surrogateescape")
    batch = [
        of_list(b"x", source=odd),
        Move(
            subject="y",
            source=Place(key=KEYS.unacked, index=KEYS.unacked_index, tag=tag, score=5.0),
            seen=seeded.raw,
            destination=Place(key=DESTINATION),
        ),
    ]

    with mover(broker) as hand:
        assert hand.move(batch) == [MOVED, MOVED]

        (batch,) = journals.read(broker, RUN).batches

    assert redis.lrange(DESTINATION, 0, -1) == [seeded.raw, b"x"]
    assert [item["from"] for item in batch.items] == [
        [odd, "", "", None],
        [KEYS.unacked, KEYS.unacked_index, tag, 5.0],
    ]
