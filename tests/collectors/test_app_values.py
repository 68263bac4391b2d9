"""A key of the application is shown by its type, as far as somebody can read it, and what is left out is counted."""

from __future__ import annotations

import pytest

from opslib.collectors import app_values
from opslib.errors import BadParameter
from opslib.settings import AppKey
from tests.support import servers


@pytest.fixture
def read(server, redis, archive):
    """Reads the key of a task, from the broker's own database."""
    assert archive
    assert not redis.dbsize()
    broker = servers.broker(server, app_keys={"p": AppKey(pattern="p:{task_id}")})
    return lambda task_id="x", **more: app_values.read(broker, "p", task_id, **more)


def test_hash(read, redis):
    """Field and value; bytes that are no text are spelled out."""
    redis.hset("p:x", mapping={"percent": "40", b"\xff": b"\x00\xfe"})
    redis.expire("p:x", 500)

    found = read()

    assert (found.type, found.elements, found.unread, found.cut) == ("hash", 2, 0, 0)
    assert dict(found.parts) == {"percent": "40", "\\xff": "\x00\\xfe"}
    assert 490 < found.life_s <= 500


@pytest.mark.parametrize(("first", "shown"), [(False, ["8", "9", "10"]), (True, ["1", "2", "3"])])
def test_list(read, redis, first, shown):
    """The last lines, or the first ones, each with its place."""
    redis.rpush("p:x", *(f"line {n}" for n in range(1, 11)))

    found = read(limit=3, first=first)

    assert list(found.parts) == [(n, f"line {n}") for n in shown]
    assert (found.elements, found.unread, found.life_s) == (10, 7, -1.0)


def test_sorted_set_set_and_stream(read, redis):
    """Each with what stands before its members."""
    redis.zadd("p:z", {"one": 1.5, "two": 2})
    redis.sadd("p:s", "member")
    for n in range(3):
        redis.xadd("p:st", {"step": str(n)}, id=f"{n + 1}-0")

    assert read("z").parts == (("1.5", "one"), ("2", "two"))
    assert read("s").parts == (("", "member"),)
    assert read("st", limit=2).parts == (("2-0", "step=1"), ("3-0", "step=2"))
    assert read("st", limit=2, first=True).parts == (("1-0", "step=0"), ("2-0", "step=1"))


def test_string_beyond_the_limit(read, redis):
    """Its beginning, and how many bytes are not shown."""
    redis.set("p:x", b"a" * (app_values.PART_BYTES + 7))

    found = read()

    assert (found.elements, found.unread, found.cut) == (app_values.PART_BYTES + 7, 7, 0)
    assert found.parts == (("", "a" * app_values.PART_BYTES),)


@pytest.mark.parametrize("count", [500, 3000])
def test_large_hash_gives_its_first_fields(read, redis, count):
    """However many there are, no more than the limit."""
    redis.hset("p:x", mapping={f"f{n}": "v" for n in range(count)})

    found = read(limit=5)

    assert (len(found.parts), found.elements, found.unread) == (5, count, count - 5)


def test_heavy_lines_are_few(read, redis):
    """So much is not even fetched; a line that is too long is cut, and that is counted."""
    redis.rpush("p:x", *(b"%d" % n * 500_000 for n in range(10)), *(b"%d" % n * 500_000 for n in range(10)))

    found = read(limit=20)

    assert 0 < len(found.parts) < 12
    assert found.cut == len(found.parts)
    assert all(len(text) == app_values.PART_BYTES for _, text in found.parts)
    assert found.parts[-1][0] == "20"


def test_no_such_key(read):
    """Is none."""
    assert read("nobody") is None


def test_an_id_is_only_a_part_of_a_name(server, redis):
    """An id that would make one of Celery's keys of it is refused, and a star is a star."""
    broker = servers.broker(server, app_keys={"p": AppKey(pattern="c{task_id}")})
    redis.set("celery-task-meta-x", "secret")

    with pytest.raises(BadParameter, match="is no task id"):
        app_values.read(broker, "p", "elery-task-meta-x")
    assert app_values.read(broker, "p", "*") is None
