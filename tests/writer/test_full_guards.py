"""On a full server there is neither lock nor journal: what else stands in the way of a loss, each seen to hold."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from opslib import records
from opslib.collectors import quarantine
from opslib.errors import LockHeld, OpsError, Refused
from opslib.selection import DeadSelection
from opslib.symptoms import asked
from opslib.writer import apply, audit, drop
from tests.support import plans, servers
from tests.support.plans import planned, purge_of, told
from tests.support.seed import KEYS, seed_waiting

QUEUE = "celery"


@pytest.fixture(autouse=True)
def _alone(redis):
    """Close what earlier tests have left open under the names of their runs."""
    for client in redis.client_list():
        if client["name"].startswith("opslib:"):
            redis.client_kill_filter(_id=client["id"])


@pytest.fixture
def purge(broker, redis):
    """A purge of twenty messages, on a server that is full by now."""
    for _ in range(20):
        seed_waiting(redis)
    plan = planned(broker, purge_of(broker, QUEUE))
    redis.config_set("maxmemory", "1")
    return plan


@pytest.fixture
def removal(broker, redis):
    """The removal of a quarantine list with twenty messages, on a server that is full by now; and the list."""
    for _ in range(20):
        seed_waiting(redis)
    apply(planned(broker, purge_of(broker, QUEUE)), broker, dry_run=False)
    plan = planned(broker, *asked.drop(quarantine.lists(broker, records.context().run_id)))
    redis.config_set("maxmemory", "1")
    return plan, plan.actions[0].copies[0].key


@pytest.fixture
def meanwhile(redis, monkeypatch):
    """Return what has something happen after the last look, and before the step that changes something."""
    write = audit.write

    def happens(do):
        def watched(event, **detail):
            write(event, **detail)
            if event == "intent" and detail["script"].endswith("_full"):
                redis.config_set("maxmemory", "256mb")
                do()
                redis.config_set("maxmemory", "1")

        monkeypatch.setattr(audit, "write", watched)

    return happens


class TestPurge:
    """A queue is set aside by its name alone."""

    def test_whoever_takes_the_lock_meanwhile_is_not_passed_by(self, broker, redis, purge, meanwhile):
        """Room was made, and another run began."""
        meanwhile(lambda: redis.set(KEYS.lock, "another"))

        with pytest.raises(LockHeld):
            apply(purge, broker, dry_run=False)

        assert redis.llen(QUEUE) == 20

    def test_what_is_no_list_by_now_is_refused(self, broker, redis, purge, meanwhile):
        """And named."""
        meanwhile(lambda: (redis.delete(QUEUE), redis.set(QUEUE, "text")))

        with pytest.raises(Refused, match="celery is no list"):
            apply(purge, broker, dry_run=False)

        assert redis.get(QUEUE) == b"text"

    @pytest.mark.parametrize("count", [0, 300])
    def test_no_more_than_was_seen_and_not_nothing(self, broker, redis, purge, meanwhile, count):
        """Hundreds would go that nobody has confirmed; of what is empty, nobody says that it was kept."""
        meanwhile(lambda: (redis.delete(QUEUE), [redis.lpush(QUEUE, b"x") for _ in range(count)]))

        assert told(apply(purge, broker, dry_run=False)) == ["skipped"]
        assert redis.llen(QUEUE) == count

    def test_what_is_kept_is_not_renamed_over(self, broker, redis, purge, meanwhile):
        """By that name, something is there already."""
        kept = KEYS.quarantine_of_full(records.context().run_id, QUEUE)
        meanwhile(lambda: redis.rpush(kept, b"kept"))

        assert told(apply(purge, broker, dry_run=False)) == ["skipped"]
        assert redis.lrange(kept, 0, -1) == [b"kept"]
        assert redis.llen(QUEUE) == 20

    def test_letters_are_not_purged_as_a_whole(self, broker, redis, purge):
        """To tell those that are meant from the rest needs memory."""
        (action,) = purge
        letters = replace(purge, actions=(replace(action, letters=DeadSelection(cause="x")),))

        with suppress(OpsError):
            apply(letters, broker, dry_run=False)

        assert redis.llen(QUEUE) == 20

    def test_a_lock_that_may_not_be_taken_is_no_full_server(self, broker, redis, purge, server):
        """Whatever else keeps a run from its lock keeps it from the change."""
        redis.config_set("maxmemory", "256mb")
        servers.user(redis, f"{servers.READ_WRITE} -set")

        with pytest.raises(OpsError):
            apply(purge, servers.elsewhere(broker, servers.as_user(server)), dry_run=False)

        assert redis.llen(QUEUE) == 20


class TestDrop:
    """A list is removed once its messages are in a file."""

    def test_it_is_on_record_before(self, broker, archive, removal):
        """With the file in which they are."""
        plan, key = removal

        assert told(apply(plan, broker, dry_run=False)) == ["applied"]
        begin, intent, result, end = plans.audit(archive)[-4:]
        assert [begin["event"], result["event"], end["event"]] == ["begin", "result", "end"]
        assert (intent["event"], intent["drop"]) == ("intent", key)
        assert (archive / intent["vault"]).is_file()

    def test_another_run_is_not_passed_by(self, broker, redis, removal):
        """There is no lock to tell, so its name must do."""
        plan, key = removal
        redis.client_setname("opslib:20261121T021500Z-stuck-tasks-7f3a9c")

        with pytest.raises(LockHeld, match="7f3a9c"):
            apply(plan, broker, dry_run=False)

        assert redis.llen(key) == 20

    def test_whoever_takes_the_lock_meanwhile_is_not_passed_by_either(self, broker, redis, removal, meanwhile):
        """Room was made, and another run began."""
        plan, key = removal
        meanwhile(lambda: redis.set(KEYS.lock, "another"))

        with pytest.raises(LockHeld):
            apply(plan, broker, dry_run=False)

        assert redis.llen(key) == 20

    @pytest.mark.parametrize("change", ["more", "text"])
    def test_what_is_another_by_now_stays(self, broker, redis, removal, meanwhile, change):
        """The file does not have it."""
        plan, key = removal
        put = {"more": lambda: redis.lpush(key, b"x"), "text": lambda: (redis.delete(key), redis.set(key, "text"))}
        meanwhile(put[change])

        assert told(apply(plan, broker, dry_run=False)) == ["skipped"]
        assert redis.exists(key)

    def test_what_was_not_wholly_written_stays(self, broker, redis, removal, monkeypatch):
        """Every message is counted in the file before one goes."""
        plan, key = removal
        messages = drop.messages
        monkeypatch.setattr(drop, "messages", lambda *args: list(messages(*args))[1:])

        (outcome,) = apply(plan, broker, dry_run=False)

        assert (outcome.status, "not all" in outcome.reason) == ("failed", True)
        assert redis.llen(key) == 20
