"""Whoever wants to know whether the audit is whole is told so, with an exit code that a script can go by."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from redis import Redis

from opslib.broker import Broker
from opslib.embedded.server import Server
from opslib.errors import Exit
from opslib.writer import audit
from tests.command_line import call
from tests.support.plans import RUN
from tests.support.seed import KEYS


@pytest.fixture(autouse=True)
def _target(server: Server, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared server as the default target."""
    assert broker
    monkeypatch.setenv("OPS_BROKER_URL", server.url)


@pytest.fixture
def lines() -> None:
    """A run that came to its end."""
    audit.write("begin", target="trial", continues="")
    audit.write("intent", batch="1.1")
    audit.write("result", batch="1.1", said="APPLIED", letters="A")
    audit.write("end")


@pytest.mark.usefixtures("lines")
class TestVerify:
    """The file, and what the broker says to it."""

    def test_whole(self) -> None:
        """Exit 0, how much there is, and what it was compared with."""
        done = call("audit", "verify")

        assert (done.code, done.err) == (Exit.DONE, "")
        assert "Every line fits" in done.out
        assert re.search(r"audit.jsonl · 4 lines · compared with redis://.* · whole", done.out)
        told = json.loads(call("audit", "verify", "-o", "json").out)
        assert (told["lines"], told["whole"], told["problems"], told["unseen"]) == (4, True, [], "")

    def test_altered(self) -> None:
        """Exit 1, with the line."""
        audit.path().write_bytes(audit.path().read_bytes().replace(b'"A"', b'"G"'))

        done = call("audit", "verify")

        assert (done.code, "Line 3 was altered" in done.out) == (Exit.ATTENTION, True)
        (problem,) = json.loads(call("audit", "verify", "--json").out)["problems"]
        assert (problem["kind"], problem["line"], problem["person"]) == ("altered", 3, True)

    def test_only_good_to_know(self, redis: Redis) -> None:
        """Exit 0: nobody has to do anything about it."""
        redis.hset(KEYS.journal(RUN), "run", '{"host": "elsewhere"}')

        done = call("audit", "verify")

        assert done.code == Exit.DONE
        assert "(elsewhere)" in done.out
        assert call("audit", "verify", "-o", "ids").out == f"{RUN}\n"

    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 4, and what is known of the file is shown all the same; what is wrong in it weighs more."""
        monkeypatch.setenv("OPS_BROKER_URL", "redis://127.0.0.1:1/0")

        done = call("audit", "verify")
        told = call("audit", "verify", "-o", "json")

        assert (done.code, told.code) == (Exit.CANNOT_SEE, Exit.CANNOT_SEE)
        assert "not compared with a broker" in done.out
        assert "cannot be reached" in done.err
        assert (json.loads(told.out)["whole"], json.loads(told.out)["broker"]) == (True, None)
        audit.path().write_bytes(audit.path().read_bytes().replace(b'"A"', b'"G"'))
        assert call("audit", "verify").code == Exit.ATTENTION

    def test_no_target(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 2, after the file."""
        monkeypatch.delenv("OPS_BROKER_URL")

        done = call("audit", "verify")

        assert (done.code, "Every line fits" in done.out) == (Exit.USAGE, True)
        assert "No target is named" in done.err

    def test_not_all_of_it(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 4: a run that nobody knows of may be among the rest."""
        monkeypatch.setattr("opslib.writer.audited.reconcile.__kwdefaults__", {"max_keys": 250})
        redis.mset({f"key-{n}": "" for n in range(2_000)})

        done = call("audit", "verify")

        assert (done.code, "Not the whole view" in done.err) == (Exit.CANNOT_SEE, True)

    def test_hostile_lines(self) -> None:
        """What somebody wrote into the file drives no terminal."""
        with audit.path().open("ab") as file:
            file.write(b'{"event": "begin", "run_id": "\\u001b[31m\\n\\u202e"}\n')

        done = call("audit", "verify")

        assert done.code == Exit.ATTENTION
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", done.out + done.err)


def test_no_file(place: Path) -> None:
    """Exit 2: nothing was changed from here yet, or this is the wrong folder."""
    done = call("audit", "verify")

    assert (done.code, done.out) == (Exit.USAGE, "")
    assert str(place) in done.err
