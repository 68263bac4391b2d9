"""A protected target is changed by hand only if it is named there, too."""

from __future__ import annotations

import json

import pytest

from opslib.errors import Refused
from opslib.writer import apply
from tests.support import servers
from tests.support.plans import planned, purge_of, told, values
from tests.support.seed import seed_waiting


@pytest.fixture
def protected(server, redis, archive):
    """A protected target with something to purge, and its plan."""
    assert archive.is_dir()
    seed_waiting(redis)
    broker = servers.broker(server, protected=True)
    return broker, planned(broker, purge_of(broker, "celery"))


@pytest.mark.parametrize("name", ["", "Trial", "trial ", "other"])
def test_by_hand_it_has_to_be_named_to_the_letter(protected, redis, name):
    """In a notebook there is no command that asks."""
    broker, plan = protected
    before = values(redis)

    with pytest.raises(Refused, match="protected"):
        apply(plan, broker, dry_run=False, confirm=name)

    assert values(redis) == before


def test_named_it_is_changed(protected, redis):
    """By whoever means it."""
    broker, plan = protected

    assert told(apply(plan, broker, dry_run=False, confirm="trial")) == ["applied"]
    assert not values(redis)


def test_looking_needs_no_name(protected):
    """It changes nothing."""
    broker, plan = protected

    assert told(apply(plan, broker)) == ["skipped"]


def test_a_headless_run_was_asked_by_its_command(protected, redis, tmp_path, monkeypatch):
    """Which does not start it otherwise."""
    broker, plan = protected
    monkeypatch.setenv("OPS_RUN", json.dumps({"run_id": "r", "record": str(tmp_path / "record.json")}))

    assert told(apply(plan, broker, dry_run=False)) == ["applied"]
    assert not values(redis)
