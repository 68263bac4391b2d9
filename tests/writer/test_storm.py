"""Runs and servers are killed at random moments under live traffic: every message is in one place, in its order."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import pytest

from tests.support import engines
from tests.support.storm import Storm, Traffic

SEEDS = range(1, 11)
KINDS = (engines.VALKEY, engines.REDIS)


@contextmanager
def weather(tmp_path, monkeypatch, seed, *, client_kills, server_kills):
    """Let a storm rage, and return it once everything is at rest."""
    archive = tmp_path / "reports"
    archive.mkdir(mode=0o700)
    monkeypatch.setenv("OPS_REPORTS", str(archive))
    kind = KINDS[seed % len(KINDS)]
    engines.available(kind)
    (tmp_path / "server").mkdir()
    with (
        engines.start(kind, tmp_path / "server", persistent=True) as engine,
        Traffic(engine=engine) as traffic,
    ):
        storm = Storm(engine=engine, archive=archive, seed=seed, traffic=traffic)
        storm.rage(client_kills=client_kills, server_kills=server_kills)
        with traffic.silent(at_rest=True):
            yield storm


def test_a_short_storm_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """What every change of this project has to stand."""
    with weather(tmp_path, monkeypatch, 0, client_kills=10, server_kills=2) as storm:
        assert storm.lost_and_doubled() == ([], []), str(storm)
        assert storm.out_of_order() == {}, str(storm)
        assert storm.stranded() == [], str(storm)


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_loses_and_doubles_nothing(tmp_path, monkeypatch, capsys, seed):
    """More than a hundred runs and twenty servers killed, over all seeds."""
    with weather(tmp_path, monkeypatch, seed, client_kills=15, server_kills=3) as storm:
        with capsys.disabled():
            sys.stdout.write(f"\n{storm}\n")
        assert storm.lost_and_doubled() == ([], [])
        assert storm.out_of_order() == {}
        assert storm.stranded() == []
