"""Whoever finds a broker locked is shown by whom, and can take the lock from a run that is gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from opslib.broker import Broker
from opslib.embedded.server import Server
from opslib.errors import Exit
from opslib.writer import lock
from tests.command_line import call, ops
from tests.support import servers
from tests.support.plans import RUN, audit
from tests.support.seed import KEYS

REASON = "its host was lost at noon"


@pytest.fixture(autouse=True)
def _target(server: Server, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared server as the default target."""
    assert broker
    monkeypatch.setenv("OPS_BROKER_URL", server.url)


@pytest.fixture
def held(broker: Broker) -> Iterator[lock.Lock]:
    """A lock that a run holds."""
    with lock.held(broker, run_id=RUN, plan_digest="d") as taken:
        yield taken


class TestLooking:
    """Without an id, nothing is changed."""

    def test_free(self, redis: Redis) -> None:
        """Exit 0, and a sentence; for a program, that there is no holder."""
        done = call("unlock")

        assert (done.code, done.err) == (Exit.DONE, "")
        assert "Nobody is changing" in done.out
        assert json.loads(call("unlock", "-o", "json").out) == {"held": False, "holders": []}
        assert call("unlock", "-o", "ids").out == ""
        assert not redis.dbsize()

    def test_held(self, redis: Redis, held: lock.Lock) -> None:
        """Exit 1, who it is, and the line that takes the lock."""
        before = redis.get(KEYS.lock)

        done = call("unlock")

        assert done.code == Exit.ATTENTION
        assert RUN in done.out
        assert f"--lock-id {held.token[:12]} --reason" in done.out
        assert held.token not in done.out
        assert redis.get(KEYS.lock) == before

    def test_held_for_a_program(self, held: lock.Lock) -> None:
        """Every field by its name; with -o ids the id alone."""
        done = call("unlock", "--json")

        assert done.code == Exit.ATTENTION
        (holder,) = json.loads(done.out)["holders"]
        assert (holder["run"], holder["lock_id"], holder["connected"]) == (RUN, held.token[:12], False)
        assert call("unlock", "-o", "ids").out == f"{held.token[:12]}\n"

    @pytest.mark.parametrize(
        ("letters", "said"),
        [({}, "none on record"), ({"3.1": "AAG"}, "3.1, ended with 3"), ({"3.1": "intent"}, "not ended")],
    )
    def test_last_batch(self, redis: Redis, held: lock.Lock, letters: dict[str, str], said: str) -> None:
        """How far the run has come."""
        assert held
        if letters:
            redis.hset(KEYS.journal(RUN), mapping=letters)

        assert said in call("unlock").out

    def test_no_lock_of_ours(self, redis: Redis) -> None:
        """It is shown too, whatever it says."""
        redis.set(KEYS.lock, "\x1b[31mmine")
        assert "none of ours" in call("unlock").out
        assert "\x1b" not in call("unlock").out
        redis.delete(KEYS.lock)
        redis.hset(KEYS.lock, "a", "b")
        assert "is no lock" in call("unlock").out

    def test_result_backend(self, server: Server, held: lock.Lock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where it is another database, it has a lock of its own; each is shown, and taken by its own id."""
        elsewhere = servers.broker(server, broker_url=f"{server.url.rpartition('/')[0]}/5")
        monkeypatch.setenv("OPS_RESULT_BACKEND", elsewhere.target.broker_url)
        with lock.held(elsewhere, run_id="another", plan_digest="d") as other:
            holders = json.loads(call("unlock", "--json").out)["holders"]
            assert [holder["run"] for holder in holders] == [RUN, "another"]
            for taken in (other, held):
                assert call("unlock", "--lock-id", taken.token[:8], "--reason", REASON).code == Exit.DONE
                assert not taken.renew()
            assert call("unlock").code == Exit.DONE

    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 4: it cannot be told."""
        monkeypatch.setenv("OPS_BROKER_URL", "redis://127.0.0.1:1/0")

        assert call("unlock").code == Exit.CANNOT_SEE


class TestUnlocking:
    """With an id and a reason, the lock is taken."""

    def test_taken(self, redis: Redis, held: lock.Lock, place: Path) -> None:
        """Exit 0, a sentence, and two lines in the audit."""
        done = ops("unlock", "--lock-id", held.token[:8], "--reason", REASON, env=dict(os.environ), cwd=place)

        assert (done.code, done.out) == (Exit.DONE, "")
        assert f"taken from {RUN}" in done.err
        assert not redis.exists(KEYS.lock)
        assert [line["reason"] for line in audit(place / "reports")] == [REASON, REASON]

    def test_free_by_then(self) -> None:
        """Exit 0: that is what was wanted."""
        done = call("unlock", "--lock-id", "12345678", "--reason", REASON)

        assert (done.code, "not locked any more" in done.err) == (Exit.DONE, True)

    @pytest.mark.parametrize(
        "words", [["--lock-id", "12345678", "--reason", REASON], ["--lock-id", "1"], ["--lock-id", "TOKEN"]]
    )
    def test_refused(self, redis: Redis, held: lock.Lock, words: list[str]) -> None:
        """Exit 5: another lock, too short an id, no reason."""
        done = call("unlock", *(held.token[:8] if word == "TOKEN" else word for word in words))

        assert (done.code, done.out) == (Exit.REFUSED, "")
        assert "Nothing was changed" in done.err
        assert redis.exists(KEYS.lock)

    @pytest.mark.parametrize("words", [["--reason", REASON], ["--yes"], ["--lock-id", "", "--reason", REASON]])
    def test_nothing_is_named(self, held: lock.Lock, words: list[str]) -> None:
        """Exit 2: a script whose variable is empty must not believe that it unlocked something."""
        assert held
        assert call("unlock", *words).code == Exit.USAGE

    def test_still_connected(self, redis: Redis, server: Server, held: lock.Lock) -> None:
        """Exit 5, and what --yes would do; with it, exit 0."""
        words = ["unlock", "--lock-id", held.token[:8], "--reason", REASON]
        with Redis.from_url(server.url, client_name=f"opslib:{RUN}") as client:
            client.ping()
            assert "it may only be slow" in call("unlock").out
            done = call(*words)
            assert (done.code, "--yes" in done.err) == (Exit.REFUSED, True)
            assert redis.exists(KEYS.lock)
            assert call(*words, "--yes").code == Exit.DONE

        assert not redis.exists(KEYS.lock)
