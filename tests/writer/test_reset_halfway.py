"""A reset that is cut off at a gate, or stopped by one → the rest of it and no more, or all of it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from opslib import plan as plans
from opslib import records
from opslib.broker import Broker
from opslib.plan import Action, Kind, Plan
from opslib.writer import apply, resume
from tests.support import servers
from tests.support.plans import undone
from tests.support.resets import (
    NODE,
    Cut,
    by_step,
    carried_out,
    consumed,
    cut_at,
    ids,
    lists,
    own,
    reset,
    seed,
    unacked,
)
from tests.support.workers import Deployment

PLACES = [
    *(f"gate-{name}{passed}" for name in ("paused", "idle", "cleared", "consumed") for passed in ("", "-passed")),
    "canary-published",
]


@pytest.fixture
def broken(tmp_path: Path, archive: Path) -> Iterator[Deployment]:
    """A deployment of its own."""
    assert archive.is_dir()
    with own(tmp_path / "server") as made:
        yield made


@pytest.fixture
def broker(broken: Deployment) -> Broker:
    """Open clients of it."""
    return servers.broker(broken.server)


def cut_off(broker: Broker, plan: Plan, place: str) -> str:
    """Carry a plan out until a place at which the run dies; return its id."""
    with cut_at(place), pytest.raises(Cut):
        apply(plan, broker, dry_run=False)
    broker.writes.delete(broker.keys.lock)  # a dead run's lock frees itself, after a minute
    return records.context().run_id


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_each_gate_it_is_resumed(place: str, broken: Deployment, broker: Broker) -> None:
    """What stands before the last gate that was passed is not done again, and the rest is done."""
    there = seed(broken)
    plan = reset(broker)
    run_id = cut_off(broker, plan, place)

    left = resume.remaining(plan, broker, run_id)
    gate = next((a for a in plan if a.gate and place.startswith(f"gate-{a.gate.until}")), plan.actions[-1])
    done_already = {a.id for a in plan if a.id <= gate.id} if place.endswith("-passed") else set()
    assert not done_already & {action.id for action in left}
    assert {action.id for action in left} >= {a.id for a in plan if a.id > gate.id and a.kind is not Kind.PURGE}
    outcomes = list(apply(left, broker, dry_run=False))

    assert all(words <= {"applied", "skipped"} for words in by_step(outcomes).values()), outcomes
    assert not there.every & (ids(broken.redis) | broken.unacked().keys())
    assert consumed(broker) == {NODE: ("celery", "mail")}
    canaries = [o.reason for o in outcomes if o.action.kind is Kind.CANARY]
    assert len(canaries) == 2
    assert all("SUCCESS" in reason for reason in canaries)
    assert not resume.remaining(plan, broker, run_id).actions


@pytest.mark.parametrize("place", ["gate-idle", "gate-cleared-passed", "canary-published"])
def test_killed_at_a_gate_it_is_undone(place: str, broken: Deployment, broker: Broker) -> None:
    """Every message is where it was, once the node that remembers is gone."""
    there = seed(broken)
    before, delivered = lists(broken.redis), unacked(broken.redis)
    run_id = cut_off(broker, reset(broker), place)
    there.worker.kill()

    undone(broker, run_id)

    after = {key: [raw for raw in raws if b"celery.accumulate" not in raw] for key, raws in lists(broken.redis).items()}
    assert {key: raws for key, raws in after.items() if raws} == before
    assert {tag: each for tag, each in unacked(broken.redis).items() if tag in delivered} == delivered


def test_a_gate_that_is_not_met_stops_the_rest_and_is_gone_on_from(broken: Deployment, broker: Broker) -> None:
    """A threads pool ends no task: nothing is cleared until its node is; then the rest is done."""
    there = seed(broken, pool="threads")
    plan = reset(broker, wait="1s")
    waited = lists(broken.redis)

    outcomes = carried_out(broker, plan)

    found = by_step(outcomes)
    assert found["freeze"] == {"applied"}
    assert found["revoke"] == {"failed"}
    assert found["clear"] == found["resume"] == found["canary"] == {"skipped"}
    gate = next(o for o in outcomes if o.action.kind is Kind.AWAIT and o.status == "failed")
    assert f"runs on {NODE}" in gate.reason
    assert all(f"gate {gate.action.id} was not passed" in o.reason for o in outcomes if o.status == "skipped")
    assert {k: r for k, r in lists(broken.redis).items() if r} == {k: r for k, r in waited.items() if r}
    assert consumed(broker) == {NODE: ()}

    there.worker.kill()
    broken.worker(name=NODE, queues="celery,mail", concurrency=2)
    left = resume.remaining(plan, broker, records.context().run_id)
    outcomes = list(apply(left, broker, dry_run=False))

    assert all(words <= {"applied", "skipped"} for words in by_step(outcomes).values()), outcomes
    assert not set(there.waits) & ids(broken.redis)
    assert consumed(broker) == {NODE: ("celery", "mail")}


def test_what_was_not_confirmed_is_not_done_but_its_gates_hold(
    broken: Deployment, broker: Broker, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate is never dropped from a plan: without the pause before it, it stays closed."""
    seed(broken)
    plan = reset(broker, wait="1s")
    first: Action = plan.actions[0]
    agreed = replace(plan, actions=tuple(a for a in plan if a.id != first.id and a.kind is not Kind.AWAIT))
    path = archive / "confirmed.json"
    path.write_bytes(plans.write(agreed))
    context = replace_context(path)
    monkeypatch.setattr(records, "context", lambda: context)
    waited = lists(broken.redis)

    outcomes = carried_out(broker, plan)

    assert outcomes[0].status == "skipped"
    assert "confirmed" in outcomes[0].reason
    gates = [o for o in outcomes if o.action.kind is Kind.AWAIT]
    assert gates[0].status == "failed"
    assert {str(o.status) for o in gates[1:]} == {"skipped"}
    assert lists(broken.redis) == waited


def replace_context(path: Path) -> records.RunContext:
    """Return this run's context, with a plan that somebody confirmed."""
    return msgspec.structs.replace(records.context(), confirmed=str(path))
