"""One batch is one step: each message is moved whole or not at all, once, and only by whoever holds the lock."""

from __future__ import annotations

import json

import pytest
from redis.exceptions import ResponseError

from opslib.errors import Refused
from opslib.writer import lock, moves, scripts
from opslib.writer.moves import CHANGED, GONE, MOVED, UNDONE, Fenced, Move, Mover
from tests.support.plans import RUN, audit, foreign, interrupted, mover
from tests.support.seed import KEYS, seed_unacked, seed_waiting
from tests.support.servers import dump

DESTINATION = KEYS.quarantine(RUN, "celery")


def of_list(raw, *, source="celery", destination=DESTINATION, **fields):
    """Return the move of a waiting message."""
    return Move(subject="x", source=source, seen=raw, destination=destination, **fields)


def of_unacked(seeded, *, destination="celery", **fields):
    """Return the move of a delivered message."""
    return Move(
        subject=seeded.task_id,
        source=KEYS.unacked,
        index=KEYS.unacked_index,
        delivery_tag=seeded.tag,
        **{"score": seeded.score, "seen": seeded.raw, **fields},
        destination=destination,
    )


def journal(redis):
    """Return what each batch did."""
    return {number.decode(): said.decode() for number, said in redis.hgetall(KEYS.journal(RUN)).items()}


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


@pytest.mark.parametrize("score", [float("inf"), 0.0, -5.0])
def test_any_score_can_be_compared(broker, redis, score):
    """Also one of no calendar."""
    seeded = seed_unacked(redis)
    redis.zadd(KEYS.unacked_index, {seeded.tag: score})

    with mover(broker) as hand:
        assert hand.move([of_unacked(seeded, score=score)]) == [MOVED]


# Asked again


def test_a_batch_that_is_asked_again_is_not_done_again(broker, redis):
    """It answers what it did; an equal message that came meanwhile stays."""
    redis.rpush("celery", b"x")
    with lock.held(broker, run_id=RUN, plan_digest="d") as held:
        first, again = (Mover(broker, held, run_id=RUN, plan_digest="d") for _ in range(2))
        done = first.move([of_list(b"x"), of_list(b"gone")])
        redis.rpush("celery", b"x", b"gone")
        before = foreign(redis)

        assert again.move([of_list(b"x"), of_list(b"gone")]) == done == [MOVED, GONE]

    assert foreign(redis) == before
    assert redis.lrange(DESTINATION, 0, -1) == [b"x"]


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
    blind = scripts.text("move").replace("return found == kind or found == 'none'", "return true")
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
    raws = [bytes([65 + n]) * 100_000 for n in range(6)] + [b"%d" % n for n in range(60)]
    redis.rpush("celery", *raws)

    with mover(broker) as hand:
        letters = hand.move([of_list(raw) for raw in raws])

    assert letters == [MOVED] * 66
    sizes = [len(letters) for letters in journal(redis).values()]
    assert sizes == [2, 2, 50, 12]
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
            source=KEYS.unacked,
            index=KEYS.unacked_index,
            delivery_tag=tag,
            score=5.0,
            seen=seeded.raw,
            destination=DESTINATION,
        ),
    ]

    with mover(broker) as hand:
        assert hand.move(batch) == [MOVED, MOVED]

    assert redis.lrange(DESTINATION, 0, -1) == [seeded.raw, b"x"]
