"""The servers that faults are made with are what they claim to be: otherwise a test of a fault proves nothing."""

from __future__ import annotations

import pytest

from tests.support import certificates, engines
from tests.support.engines import Engine

_SINCE = {engines.VALKEY: (7, 2), engines.REDIS: (6, 2), engines.OLDEST: (6, 2)}


def test_each_kind_is_the_server_that_it_is_called(any_server: Engine) -> None:
    """It answers with its own pid, and an older kind is not a newer one by another name."""
    with any_server.client() as client:
        info = client.info()

    version = tuple(map(int, info["redis_version"].split(".")[:2]))
    assert info["process_id"] == any_server.pid
    assert (info.get("server_name") == "valkey") is (any_server.kind == engines.VALKEY)
    assert version == (6, 2) if any_server.kind == engines.OLDEST else version >= _SINCE[any_server.kind]


@pytest.mark.parametrize("kind", engines.KINDS)
def test_what_was_answered_survives_a_kill(kind, tmp_path):
    """A persistent server is on the same port again, with every change that it ever confirmed."""
    with engines.start(kind, tmp_path, persistent=True) as running:
        with running.client() as client:
            client.lpush("celery", "x", "y")
            before = client.info("server")["run_id"]
        port = running.port

        running.restart()

        assert running.port == port
        with running.client() as client:
            assert client.lrange("celery", 0, -1) == [b"y", b"x"]
            assert client.info("server")["run_id"] != before


def test_a_server_that_is_missing_is_a_skip_with_its_reason(monkeypatch):
    """Where nobody asked for it."""
    monkeypatch.setattr(engines, "ARE_REQUIRED", False)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        engines.available(engines.REDIS)


def test_a_server_that_is_missing_and_required_is_a_failure(monkeypatch):
    """A test that was silently left out must not look like one that held."""
    monkeypatch.setattr(engines, "ARE_REQUIRED", True)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(pytest.fail.Exception, match="redis-server is not installed"):
        engines.available(engines.REDIS)


def test_tls_is_spoken_with_an_authority_of_its_own(tmp_path):
    """The URL names the authority, so that the certificate is checked."""
    shown = certificates.issue(certificates.authority(tmp_path))
    with engines.start(engines.REDIS, tmp_path, certificate=shown) as running, running.client() as client:
        assert running.url.startswith("rediss://")
        assert client.ping()


@pytest.mark.parametrize("kind", engines.KINDS)
def test_a_frozen_primary_is_replaced_within_seconds(kind, tmp_path):
    """The sentinels agree, and the replica takes over with what it was given."""
    engines.available(kind)
    with engines.failover(tmp_path, kind=kind) as group:
        with group.primary.client() as client:
            client.set("here", 1)
            assert client.wait(1, 2000) == 1

        with group.primary.frozen():
            group.until_failed_over()
            with group.replica.client() as client:
                assert client.get("here") == b"1"
