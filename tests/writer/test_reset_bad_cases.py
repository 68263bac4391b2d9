"""A reset that nobody hears, or a silent node, of a queue that grows, on a full server: what is known is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from opslib import pidbox, records
from opslib.broker import Broker
from opslib.collectors import quarantine as kept_lists
from opslib.collectors.deployment import collect
from opslib.embedded.server import Server
from opslib.errors import Refused
from opslib.keys import Keyspace
from opslib.plan import Action, Gate, Kind
from opslib.symptoms import asked, emergency_reset
from opslib.symptoms.emergency_reset import Thresholds
from opslib.writer import apply, consumers, gates, held, nodes, resume, vault
from opslib.writer import lists as writer_lists
from tests.support import servers
from tests.support.plans import planned, told, undone
from tests.support.resets import CONF, NODE, by_step, carried_out, consumed, ids, lists, own, reset, seed, unacked
from tests.support.seed import seed_unacked, seed_waiting
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment


@pytest.fixture
def broken(tmp_path: Path, archive: Path) -> Iterator[Deployment]:
    """A deployment of its own."""
    assert archive.is_dir()
    with own(tmp_path / "server") as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for those that stay silent."""
    for module in (gates, held, nodes, consumers):
        monkeypatch.setattr(module, "_ANSWER_S", 0.5)


class TestNobody:
    """No node is there."""

    def test_everything_is_taken_and_nothing_is_claimed_of_nodes(self, redis: Redis, broker: Broker) -> None:
        """What waits and what a dead node left; there is nobody to pause, and no canary could be taken."""
        for n in range(5):
            seed_waiting(redis, priority=n % 2 * 9)
            seed_unacked(redis, age_s=60)
        before, delivered = lists(redis), unacked(redis)
        plan = reset(broker)
        assert [(a.step, str(a.kind)) for a in plan] == [
            ("revoke", "stop"),
            ("clear", "purge"),
            ("clear", "await"),
        ]

        outcomes = carried_out(broker, plan)

        assert told(outcomes) == ["applied"] * 3
        assert not lists(redis)
        assert not unacked(redis)
        undone(broker, records.context().run_id)
        assert lists(redis) == before
        assert unacked(redis) == delivered

    def test_a_canary_that_nobody_takes_is_taken_out_again(self, redis: Redis, broker: Broker) -> None:
        """It says so; nothing is left in the queue, and nothing comes back with an undo."""
        seed_waiting(redis)
        before = lists(redis)
        action = Action(
            kind=Kind.CANARY,
            subject="celery",
            source="canary",
            destination="celery",
            step="canary",
            gate=Gate(until="ran", within_s=0.5),
        )

        (outcome,) = apply(planned(broker, action), broker, dry_run=False)

        assert (str(outcome.status), outcome.reason) == (
            "failed",
            "No node took it within 0.5 s. It was taken out again.",
        )
        assert lists(redis) == before
        assert not undone(broker, records.context().run_id)
        assert lists(redis) == before

    def test_under_a_prefix(self, redis: Redis, server: Server, archive: Path) -> None:
        """Its own lists, and those alone."""
        assert archive.is_dir()
        space = Keyspace(prefix="shop:")
        for _ in range(3):
            seed_waiting(redis, keys=space)
            seed_unacked(redis, keys=space)
            seed_waiting(redis)
        broker = servers.broker(server, global_keyprefix="shop:")

        outcomes = carried_out(broker, reset(broker))

        assert told(outcomes) == ["applied"] * 3
        assert list(lists(redis)) == [b"celery"]
        assert not redis.hlen(space.unacked)


@pytest.mark.usefixtures("quick")
class TestSilent:
    """A node hears and does not answer, or does not even listen."""

    def test_what_a_silent_node_may_hold_is_left_and_told(self, broken: Deployment) -> None:
        """What waits is taken all the same; what it was delivered is neither taken nor called safe."""
        there = seed(broken)
        broker = servers.broker(broken.server)
        delivered = unacked(broken.redis)
        with there.worker.frozen():
            before = collect(broker, settle="0.2s", answer_within="0.5s")
            findings = emergency_reset.diagnose(before, Thresholds())
            plan = emergency_reset.plan(before, findings, mode="complete", wait="2s")
            (choice,) = [c for c in emergency_reset.choices(before, findings) if c.mode == "complete"]

            outcomes = carried_out(broker, plan)

            after = collect(broker, settle="0.2s", answer_within="0.5s")
            remaining = emergency_reset.diagnose(after, Thresholds(), before=before, outcomes=outcomes)
            assert unacked(broken.redis) == delivered
            assert not lists(broken.redis)
        assert choice.left == len(delivered)
        beyond = next(f for f in findings if f.code == "reset-beyond-reach")
        assert f"{len(delivered):,} unacknowledged messages may be theirs" in beyond.message
        (stop,) = [o for o in outcomes if o.action.kind is Kind.STOP]
        assert f"{len(delivered):,} may be held by a node that does not answer" in stop.reason.lower()
        behind = [f for f in remaining if f.code == "reset-left-behind"]
        assert {f.severity for f in behind} == {"unknown"}
        assert {f.subject for f in behind} >= set(there.timed)

    def test_a_node_that_falls_silent_on_the_way_closes_the_gate(self, broken: Deployment) -> None:
        """It answered when this was planned; now nobody knows what it takes."""
        there = seed(broken)
        broker = servers.broker(broken.server)
        plan = reset(broker, wait="1s")
        waited = ids(broken.redis)

        with there.worker.frozen():
            outcomes = carried_out(broker, plan)

        gate = next(o for o in outcomes if o.action.kind is Kind.AWAIT)
        assert gate.status == "failed"
        assert "1 node heard the question and did not answer" in gate.reason
        assert by_step(outcomes)["clear"] == {"skipped"}
        assert waited <= ids(broken.redis) | broken.unacked().keys()

    def test_of_a_task_that_runs_twice_on_a_node_one_cannot_be_ended(self, broken: Deployment) -> None:
        """It was delivered again while it ran; that is said before, and the gate names it."""
        broken.worker(name=NODE, queues="celery", concurrency=2, conf=CONF)
        hung = broken.send("hang_late")
        until(lambda: broken.ran(hung) > 1, DEADLINE_S, "it runs for the second time")
        broker = servers.broker(broken.server)
        findings = emergency_reset.diagnose(collect(broker, settle="0.2s"), Thresholds())

        outcomes = carried_out(broker, reset(broker, wait="1s"))

        assert [f.subject for f in findings if f.code == "reset-beyond-reach"] == [hung]
        (stop,) = [o for o in outcomes if o.action.kind is Kind.STOP]
        assert f"{hung}: it ran more than once on {NODE}" in stop.reason
        assert by_step(outcomes)["clear"] == {"skipped"}

    def test_of_a_worker_without_remote_control_only_what_waits_is_taken(self, broken: Deployment) -> None:
        """It cannot be paused, nor told to end anything; what it holds is left, and that is said before."""
        broken.worker(name=NODE, queues="celery", ready=False, conf={"worker_enable_remote_control": False})
        hung = broken.send("hang_late")
        broken.until_running(hung)
        other = [broken.send("ok", queue="mail") for _ in range(4)]
        broker = servers.broker(broken.server)
        before = collect(broker, settle="0.2s", answer_within="0.5s")
        findings = emergency_reset.diagnose(before, Thresholds())
        plan = emergency_reset.plan(before, findings, mode="complete", wait="2s")

        outcomes = carried_out(broker, plan)

        assert [f.subject for f in findings if f.code == "reset-beyond-reach"] == ["connections without remote control"]
        assert not set(other) & ids(broken.redis)
        assert hung in broken.unacked()
        assert by_step(outcomes)["clear"] == {"applied"}
        after = collect(broker, settle="0.2s", answer_within="0.5s")
        remaining = emergency_reset.diagnose(after, Thresholds(), before=before, outcomes=outcomes)
        behind = [(f.subject, str(f.severity)) for f in remaining if f.code == "reset-left-behind"]
        assert behind == [(hung, "unknown")]


def test_a_queue_is_taken_up_again_as_it_was_declared(broken: Deployment) -> None:
    """With its own exchange and routing key, which nobody but the node knew."""
    broken.worker(name=NODE, queues="celery")
    given = {"exchange": "orders", "exchange_type": "topic", "routing_key": "orders.#"}
    broken.app.control.add_consumer("vip", destination=[NODE], reply=True, **given)
    broker = servers.broker(broken.server)

    def declared() -> dict[str, Any]:
        said = pidbox.order(broker, pidbox.Call(method="active_queues"), timeout_s=2)
        return next((each for each in said.get(NODE, []) if each["name"] == "vip"), {})

    before = until(declared, DEADLINE_S, "it consumes the queue")

    outcomes = carried_out(broker, reset(broker))

    assert by_step(outcomes)["resume"] == {"applied"}
    after = declared()
    assert [after[key] for key in ("exchange", "routing_key")] == [before[key] for key in ("exchange", "routing_key")]
    assert after["exchange"]["name"] == "orders"


class TestGrown:
    """Producers go on while it is done."""

    def test_of_a_queue_that_has_grown_the_oldest_are_taken(self, redis: Redis, broker: Broker) -> None:
        """As many as were planned and a few more, in their order; what came after them stays."""
        old = [seed_waiting(redis).task_id for _ in range(40)]
        plan = reset(broker)
        new = [seed_waiting(redis).task_id for _ in range(200)]

        outcomes = carried_out(broker, plan)

        left = ids(redis)
        assert told(outcomes)[:1] == ["applied"]
        assert not set(old) & left
        assert len(left) == 200 + 40 - writer_lists.most(40)
        assert set(new[-180:]) <= left
        undone(broker, records.context().run_id)
        assert ids(redis) == {*old, *new}


class TestPartial:
    """Only what is old and stuck."""

    def test_the_young_and_the_healthy_are_left_alone(self, broken: Deployment) -> None:
        """A hung task and a dead node's message are taken; what runs since a moment and what waits go on."""
        broken.worker(name=NODE, queues="celery,mail", concurrency=2)
        hung = broken.send("hang_late")
        broken.until_running(hung)
        young = broken.send("gate", queue="mail")
        broken.until_running(young)
        lost = seed_unacked(broken.redis, age_s=600)
        waits = [broken.send("ok") for _ in range(3)]
        broker = servers.broker(broken.server)
        before = collect(broker, settle="0.2s")
        started = {task.task_id: task.started_at or 0 for task in before.held}
        now = before.taken_at.timestamp()
        limit = (now - started[hung] + now - started[young]) / 2
        findings = emergency_reset.diagnose(before, Thresholds(stuck_after_s=limit))

        plan = emergency_reset.plan(before, findings, mode="partial", wait="20s", canary=False)
        outcomes = carried_out(broker, plan)

        assert {a.subject for a in plan} == {hung, lost.task_id}
        assert told(outcomes) == ["applied"] * 2
        assert hung not in broken.unacked()
        assert lost.task_id not in broken.unacked()
        assert young in broken.unacked()
        broken.redis.set("open", 1)
        broken.until_done(young, *waits)


class TestFull:
    """The server has no memory left."""

    def test_queues_are_set_aside_written_to_a_file_and_there_is_room_again(
        self, redis: Redis, broker: Broker, archive: Path
    ) -> None:
        """Without a lock and a journal; what is dropped is in the vault, byte for byte."""
        raws = [seed_waiting(redis, queue=queue).raw for queue in ("big", "big", "small") for _ in range(50)]
        plan = reset(broker, mode="memory")
        assert [(a.subject, a.count, a.step) for a in plan] == [("big", 100, ""), ("small", 50, "")]
        redis.config_set("maxmemory", "1")

        assert told(carried_out(broker, plan)) == ["applied"] * 2
        assert not lists(redis)
        found = kept_lists.lists(broker, records.context().run_id)
        assert sum(row.count for row in found) == 150
        drops = asked.drop(found)
        outcomes = apply(planned(broker, *drops), broker, dry_run=False)

        assert told(outcomes) == ["applied"] * 2
        assert "no lock" in outcomes[0].reason
        assert not list(redis.scan_iter("opslib:run:*"))
        (path,) = archive.rglob("vault*")
        _, entries = vault.read(path)
        assert sorted(entry.parts[0] for entry in entries) == sorted(raws)

    def test_a_list_that_somebody_added_to_is_not_dropped(self, redis: Redis, broker: Broker) -> None:
        """It holds more than the file."""
        seed_waiting(redis)
        plan = reset(broker, mode="memory")
        redis.config_set("maxmemory", "1")
        carried_out(broker, plan)
        drops = asked.drop(kept_lists.lists(broker, records.context().run_id))
        redis.config_set("maxmemory", "256mb")
        redis.lpush(drops[0].copies[0].key, b"another")
        plan = planned(broker, *drops)
        redis.config_set("maxmemory", "1")

        (outcome,) = apply(plan, broker, dry_run=False)

        assert outcome.status == "skipped"
        assert redis.llen(drops[0].copies[0].key) == 2

    def test_a_complete_reset_is_refused_and_nothing_is_half_done(self, redis: Redis, broker: Broker) -> None:
        """To pause and to prove needs a journal."""
        seed_waiting(redis)
        plan = reset(broker)
        redis.config_set("maxmemory", "1")
        before = lists(redis)

        with pytest.raises(Refused, match="out of memory"):
            carried_out(broker, plan)

        assert lists(redis) == before


class TestShutdown:
    """Nodes end before anything is cleared."""

    def test_they_end_and_the_run_waits_for_them_to_be_started(self, broken: Deployment) -> None:
        """Whoever is asked to start them reads how; once they are there, the canaries run."""
        there = seed(broken)
        broker = servers.broker(broken.server)
        plan = reset(broker, shutdown="warm", wait="3s")

        outcomes = carried_out(broker, plan)

        found = by_step(outcomes)
        assert found["shutdown"] == {"applied"}
        assert found["start"] == {"failed"}
        assert found["canary"] == {"skipped"}
        until(lambda: there.worker.child.process.poll() is not None, DEADLINE_S, "the node has ended")
        (start,) = [a for a in plan if a.step == "start"]
        assert f"celery -A APP worker -n {NODE} -Q celery,mail -c 2 -P prefork" in start.effect
        broken.worker(name=NODE, queues="celery,mail", concurrency=2)
        left = resume.remaining(plan, broker, records.context().run_id)
        assert [str(a.kind) for a in left] == ["await", "canary", "canary"]
        assert told(apply(left, broker, dry_run=False)) == ["applied"] * 3
        assert consumed(broker) == {NODE: ("celery", "mail")}
