"""A broker that says which environment it is, and the target that expects it: written once, and checked ever after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from opslib.embedded.server import Server
from opslib.errors import Exit, Refused
from tests.command_line import Done, call
from tests.support import servers
from tests.support.seed import seed_waiting

KEY = "opslib:env"


@pytest.fixture
def target(server: Server, place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write an ops.toml with the one target `prod` on the shared server."""

    def write(*lines: str) -> None:
        monkeypatch.setenv("OPS_TARGET", "prod")
        monkeypatch.setenv("THE_BROKER", server.url)
        (place / "ops.toml").write_text("\n".join(["[targets.prod]", 'broker_url = "env:THE_BROKER"', *lines, ""]))

    write()
    return write


def stamp(*words: str) -> tuple[Done, dict[str, str]]:
    """Run the command; return what it did, and the stamp that it told."""
    done = call("config", "stamp", "--json", *words)
    return done, {row["setting"]: row["value"] for row in json.loads(done.out or "[]")}


@pytest.mark.usefixtures("target")
def test_without_apply_nothing_is_written(redis: Redis) -> None:
    """It shows what it would write, and where."""
    done, told = stamp()

    assert done.code == Exit.ATTENTION
    assert told["env"] == told["label"] == "prod"
    assert "would be written to opslib:env of redis://:***@127.0.0.1" in done.err
    assert not redis.dbsize()


def test_it_is_written_once_and_checked_ever_after(redis: Redis, place: Path, target: Callable[..., None]) -> None:
    """A second time it is only shown; a target that expects it works without a word."""
    seed_waiting(redis, queue="celery")
    target('environment = "prod-eu"')
    warned = f"Warning: {_shown()} has no stamp that can be read; the target expects 'prod-eu'.\n"
    assert call("queues").err.startswith(warned)

    done, told = stamp("--apply", "--label", "Production, Europe")

    assert done.code == Exit.DONE
    assert json.loads(redis.get(KEY)) == told
    assert (told["env"], told["label"], told["created"][-1]) == ("prod-eu", "Production, Europe", "Z")
    assert redis.ttl(KEY) == -1
    assert stamp()[1] == stamp("--apply")[1] == told
    for expected in ("prod-eu", told["id"]):
        target(f'environment = "{expected}"')
        looked = call("queues")
        assert (looked.code, "Warning" in looked.err) == (Exit.DONE, False)
    audit = [json.loads(line) for line in (place / "reports" / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("stage")) for line in audit] == [("stamp", "intent"), ("stamp", "result")]


def test_another_environment_is_refused(redis: Redis, target: Callable[..., None]) -> None:
    """Nothing is shown of a broker that is not the one that was meant, and its stamp stays."""
    redis.set(KEY, '{"env": "staging", "id": "1"}')
    before = redis.dump(KEY)
    target('environment = "prod"')

    for words in (["queues"], ["tasks"], ["config", "check"], ["config", "stamp", "--apply"], ["find", "x"]):
        done = call(*words)
        assert (done.code, done.out) == (Exit.REFUSED, ""), words
        assert "is stamped 'staging'; target prod expects 'prod'" in done.err

    target()  # names no environment: looking is not checked, but a stamp is not overwritten all the same
    assert call("queues").code == Exit.DONE
    done, _ = stamp("--apply")
    assert (done.code, redis.dump(KEY)) == (Exit.REFUSED, before)


@pytest.mark.parametrize(
    "odd",
    [b"", b"prod", b"\xff", b"[]", b"{}", b'{"env": ""}', b'{"env": 1}', b'{"env": "prod"' + b" " * 5000 + b"}"],
    ids=["empty", "a word", "no text", "a list", "nothing", "no name", "a number", "too long"],
)
def test_what_is_no_stamp_proves_nothing(redis: Redis, target: Callable[..., None], odd: bytes) -> None:
    """It is as good as none for who looks, and is not overwritten."""
    redis.set(KEY, odd)
    target('environment = "prod"')

    looked = call("queues")
    done, _ = stamp("--apply")

    assert looked.code == Exit.DONE
    assert "no stamp that can be read" in looked.err
    assert done.code == Exit.REFUSED
    assert "something in opslib:env already" in done.err
    assert redis.get(KEY) == odd


def test_a_key_of_another_type_is_no_stamp(redis: Redis, target: Callable[..., None]) -> None:
    """Nor is it touched."""
    redis.lpush(KEY, "x")
    target('environment = "prod"')

    assert call("queues").code == Exit.DONE
    assert stamp("--apply")[0].code == Exit.REFUSED
    assert redis.lrange(KEY, 0, -1) == [b"x"]


def test_two_who_stamp_at_once_write_one_stamp(redis: Redis, server: Server, target: Callable[..., None]) -> None:
    """Both saw none; the second is refused by the broker itself."""
    from opslib.writer import stamp as stamps

    target()
    broker = servers.broker(server)
    first, second = stamps.make(broker, "one"), stamps.make(broker, "two")
    stamps.write(broker, first)

    with pytest.raises(Refused, match="already"):
        stamps.write(broker, second)

    assert json.loads(redis.get(KEY)) == first


def test_a_protected_target_has_to_be_named(redis: Redis, target: Callable[..., None]) -> None:
    """As for any other change."""
    target("protected = true")

    assert stamp("--apply")[0].code == Exit.REFUSED
    assert stamp("--apply", "--confirm", "staging")[0].code == Exit.REFUSED
    assert not redis.exists(KEY)
    assert stamp("--apply", "--confirm", "prod")[0].code == Exit.DONE
    assert redis.exists(KEY)


def test_a_server_without_room_is_not_stamped(redis: Redis, target: Callable[..., None]) -> None:
    """It says why, and the audit has both the intent and that."""
    target()
    redis.config_set("maxmemory", 1)

    done, _ = stamp("--apply")

    redis.config_set("maxmemory", "256mb")
    assert done.code == Exit.REFUSED
    assert "out of memory" in done.err
    assert not redis.exists(KEY)


def test_who_may_not_read_the_stamp_may_look_at_the_rest(redis: Redis, server: Server) -> None:
    """The target's expectation is then not proven, so changes are refused."""
    redis.set(KEY, '{"env": "prod"}')
    servers.user(redis, "~celery* ~_kombu* ~unacked* resetchannels nocommands +@read +info +scan +time +client|setname")

    found = servers.broker(server, broker_url=servers.as_user(server), environment="prod")

    assert found.environment == {}
    assert "expects 'prod'" in found.environment_problem
    assert "! " in repr(found)


def test_the_stamp_is_shown_and_stands_under_the_prefix(redis: Redis, server: Server) -> None:
    """Whoever opens the broker in a notebook sees where they are; what it says is shown as text."""
    redis.set(f"shop:{KEY}", json.dumps({"env": "prod\n\x1b[31m", "id": "1"}))

    found = servers.broker(server, global_keyprefix="shop:")

    assert found.environment["id"] == "1"
    assert found.environment_problem == ""
    assert "· stamped prod " in repr(found)
    assert "\n" not in repr(found)
    assert "\x1b" not in repr(found)
    assert servers.broker(server).environment == {}


def _shown() -> str:
    rows = json.loads(call("config", "show", "--json").out)
    return str(next(row["value"] for row in rows if row["setting"] == "broker_url"))
