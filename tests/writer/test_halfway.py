"""A message that lies deep takes two steps: what was interrupted between them is brought to its end, or back."""

from __future__ import annotations

import pytest

from opslib import folders, records
from opslib import plan as plans
from opslib.plan import Action, Copy, Kind
from opslib.writer import apply, lists, points, resume, watch
from tests.support.plans import planned, told, undone, values
from tests.support.seed import quarantined, seed_waiting, waiting_ids

QUEUE = "celery"


class Cut(BaseException):
    """Raised where a run is cut off."""


@pytest.fixture
def cut(broker, redis, archive, monkeypatch):
    """Return what was there, the messages that a run was to move, the cut-off run's id, and what goes on with it."""
    monkeypatch.setattr(lists, "SEARCHABLE", 10)
    monkeypatch.setattr(watch, "_FIRST", 15)
    monkeypatch.setattr(watch, "_MOST", 15)
    seeded = [seed_waiting(redis) for _ in range(40)]
    before = values(redis)
    deep = seeded[20:23]
    copies = [Copy(place="waiting", key=QUEUE, queue=QUEUE, sha256=each.sha256) for each in deep]
    actions = [
        Action(kind=Kind.MOVE, subject=each.task_id, source=QUEUE, destination="slow", copies=(copy,))
        for each, copy in zip(deep, copies, strict=True)
    ]

    def cut_at(passed):
        seen = []

        def at(name):
            seen.append(name)
            if seen.count("after-result") == passed:
                raise Cut

        monkeypatch.setattr(points, "watchers", [at])
        run_id = records.context().run_id
        with pytest.raises(Cut):
            apply(planned(broker, *actions), broker, dry_run=False)
        monkeypatch.setattr(points, "watchers", [])
        monkeypatch.setattr(records, "_HAND", [])
        plan = plans.read((folders.folder(archive, run_id) / folders.PLAN).read_bytes())
        return before, deep, run_id, lambda: apply(resume.remaining(plan, broker, run_id), broker, dry_run=False)

    return cut_at


@pytest.mark.parametrize("passed", range(1, 5))
def test_a_move_that_was_cut_off_is_brought_to_its_end(redis, cut, passed):
    """Also after the list was set aside, and where all are in quarantine and none is where it belongs."""
    _, deep, _, go_on = cut(passed)

    assert told(outcome for outcome in go_on() if outcome.action.kind is Kind.MOVE) == ["applied"] * 3
    assert waiting_ids(redis, "slow") == [each.task_id for each in deep]
    assert not any(quarantined(redis).values())
    assert redis.llen(QUEUE) == 37


@pytest.mark.parametrize("passed", range(1, 5))
def test_a_move_that_was_cut_off_is_put_back(broker, redis, cut, passed):
    """Every byte where it was."""
    before, _, run_id, _ = cut(passed)

    undone(broker, run_id)

    assert values(redis) == before
