"""A message is in quarantine before anybody can drop it."""

from __future__ import annotations

from opslib import pidbox
from opslib.writer import apply
from tests.support.plans import proposed, told
from tests.support.seed import quarantined, seed_unacked, seed_waiting


def test_a_message_is_kept_before_any_node_hears_of_the_stop(broker, redis, monkeypatch):
    """A node that is about to start a revoked task acknowledges it unrun: revoked first, its message would be lost."""
    copies = [seed_unacked(redis, task_id="x", retries=12), seed_waiting(redis, task_id="x", retries=13)]
    plan = proposed(broker)
    kept, ask = [], pidbox.ask

    def watched(broker, calls, **more):
        if calls[0].method == "revoke":
            kept.append(sorted(raw for raws in quarantined(redis).values() for raw in raws))
        return ask(broker, calls, **more)

    monkeypatch.setattr(pidbox, "ask", watched)

    assert told(apply(plan, broker, dry_run=False)) == ["applied"]
    assert kept == [sorted(copy.raw for copy in copies)]
