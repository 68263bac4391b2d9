"""What a schedule is judged by, and what may be done about it: overdue, stale, broken, twice."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from opslib.errors import BadParameter, NotFound
from opslib.facts.beat import BeatLock, ScheduleEntry, Schedules, SentTwice
from opslib.facts.snapshot import Snapshot
from opslib.plan import Kind
from opslib.symptoms.beat_schedule import Thresholds, diagnose, plan
from tests.support import rows

LIMITS = Thresholds(overdue_after_s=60.0)
CALL = json.dumps({"args": [1], "kwargs": {"a": 2}, "options": {"expires": 10, "queue": "orders"}})


def entry(name="nightly", *, due_in_s=600.0, **more):
    """Return an entry of redbeat's that is due in so many seconds."""
    known = {"source": "redbeat", "task": "tests.ok", "when": "every 10 min", "is_on": True, "key": f"redbeat:{name}"}
    return ScheduleEntry(
        **{"name": name, "sha256": "e" * 64, "call": CALL, **known, "due_at": rows.NOW_S + due_in_s, **more}
    )


def lock(renewed_ago_s=10.0, life_s=290.0):
    """Return a lock."""
    return BeatLock(key="redbeat::lock", life_s=life_s, renewed_ago_s=renewed_ago_s, sha256="f" * 64)


def seen(*entries, held=None, **more):
    """Return a look at a schedule, with one node that has the task and consumes two queues."""
    node = rows.node(tasks=rows.limited("tests.ok"), queues=("celery", "orders"))
    base = rows.snapshot(**{"nodes": (node,), "queues": (rows.queue(), rows.queue("orders")), **more})
    known = {each.name: getattr(base, each.name) for each in fields(Snapshot)}
    return Schedules(**known, entries=entries, lock=held)


def codes(found):
    """Return codes with subjects."""
    return {(finding.code, finding.subject) for finding in found}


def test_a_schedule_that_is_served_is_fine():
    """Also what is a little late, and what has no next time."""
    assert diagnose(seen(entry(), entry("late", due_in_s=-59), entry("never", due_at=None), held=lock()), LIMITS) == []


@pytest.mark.parametrize(("due_in_s", "is_late"), [(-60.0, False), (-60.1, True)])
def test_overdue_begins_behind_the_threshold(due_in_s, is_late):
    """By the server's clock."""
    found = codes(diagnose(seen(entry(due_in_s=due_in_s)), LIMITS))

    assert found == ({("schedule-overdue", "nightly")} if is_late else set())


def test_what_is_paused_is_not_overdue():
    """Somebody wanted it so."""
    assert diagnose(seen(entry(due_in_s=-9_000, is_on=False)), LIMITS) == []


def test_without_a_lock_beat_is_to_be_started():
    """With one, it is the lock's holder that sleeps."""
    (alone,) = diagnose(seen(entry(due_in_s=-600)), LIMITS)
    held = diagnose(seen(entry(due_in_s=-600), held=lock(5.0)), LIMITS)

    assert "No beat holds" in alone.message
    assert alone.hint.startswith("Start beat")
    assert "sleeps" in held[0].message


@pytest.mark.parametrize(
    ("renewed_ago_s", "is_stale"), [(599.0, False), (601.0, True), (None, False)], ids=["after", "before", "unknown"]
)
def test_a_lock_is_stale_if_its_beat_slept_through_what_was_due(renewed_ago_s, is_stale):
    """A beat renews it each time that it looks; where nobody says for how long it is taken, nothing is claimed."""
    found = codes(diagnose(seen(entry(due_in_s=-600), held=lock(renewed_ago_s)), LIMITS))

    assert (("beat-lock-stale", "redbeat::lock") in found) == is_stale


def test_what_is_paused_wakes_a_beat_as_well():
    """So one that slept through it is as dead."""
    found = codes(diagnose(seen(entry(due_in_s=-600, is_on=False), held=lock(601.0)), LIMITS))

    assert found == {("beat-lock-stale", "redbeat::lock")}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "tests.gone"}, "No node has a task tests.gone"),
        ({"queue": "nobody"}, "No node consumes nobody"),
        ({"problem": "Its definition cannot be read."}, "cannot be read"),
    ],
)
def test_what_is_sent_in_vain_is_broken(fields, words):
    """Where every node answered; one that is silent may have the task."""
    (found,) = diagnose(seen(entry(**fields), held=lock()), LIMITS)
    silent = codes(diagnose(seen(entry(**fields), held=lock(), receivers=2), LIMITS))

    assert found.code == "schedule-broken"
    assert words in found.message
    assert (("schedule-broken", "nightly") in silent) == ("problem" in fields)


def in_table(name="nightly", *, changed_ago_s=1_000.0, sent_ago_s=None, **more):
    """Return an entry of a table, saved and last sent so many seconds ago."""
    sent_at = None if sent_ago_s is None else rows.NOW_S - sent_ago_s
    known = {"source": "django-celery-beat", "key": f"db#table/{name}", "row": 4}
    return entry(name, changed_at=rows.NOW_S - changed_ago_s, last_run_at=sent_at, **{**known, **more})


@pytest.mark.parametrize(
    ("row", "told_ago_s", "is_untold"),
    [
        (in_table(changed_ago_s=100), 100, False),
        (in_table(changed_ago_s=100), 102, True),
        (in_table(changed_ago_s=100), None, True),
        (in_table(changed_ago_s=100, sent_ago_s=699), 5_000, False),
        (in_table(changed_ago_s=100, sent_ago_s=701), 5_000, True),
        (in_table(is_on=False, sent_ago_s=100), 100, True),
        (in_table(is_on=False, sent_ago_s=100), 99, False),
        (in_table(is_on=False, changed_ago_s=50), 5_000, False),
        (entry(), None, False),
    ],
    ids=["told", "later", "never", "by beat", "not by beat", "off by SQL", "told since", "off by beat", "redbeat"],
)
def test_a_change_of_which_beat_was_not_told_is_seen(row, told_ago_s, is_untold):
    """Beat itself saves a row with the run that it has sent; Django forgets the last run of what it switches off."""
    told_at = None if told_ago_s is None else rows.NOW_S - told_ago_s
    found = codes(diagnose(replace(seen(row, held=lock()), told_at=told_at), LIMITS))

    assert found == ({("schedule-untold", "nightly")} if is_untold else set())


def test_what_is_overdue_in_a_table_tells_of_the_newest_run():
    """Of any entry: only that says whether a beat lives."""
    late = in_table(due_in_s=-600, sent_ago_s=1_200)
    (found,) = diagnose(replace(seen(late, in_table("other", sent_ago_s=30)), told_at=rows.NOW_S), LIMITS)

    assert (found.code, found.subject) == ("schedule-overdue", "nightly")
    assert "of any entry, was 30 s ago" in found.message


def test_celery_s_own_tasks_are_on_every_node():
    """A node leaves them out of what it tells; Django's tables always have one."""
    assert diagnose(seen(entry(task="celery.backend_cleanup"), held=lock()), LIMITS) == []


def test_two_beats_are_named():
    """With how many messages tell so."""
    twice = SentTwice(task="tests.ok", queue="celery", senders=("gen1@a", "gen2@b"), messages=40)
    base = seen()
    known = {each.name: getattr(base, each.name) for each in fields(Schedules)}

    (found,) = diagnose(Schedules(**{**known, "twice": (twice,)}), LIMITS)

    assert (found.code, found.task) == ("beat-twice", "tests.ok")
    assert found.evidence["senders"] == ["gen1@a", "gen2@b"]


class TestPlan:
    """What a person asks for, and what cannot be done."""

    def test_nothing_by_itself(self):
        """However much is overdue."""
        assert len(plan(seen(entry(due_in_s=-9_000), held=lock(9_500.0)), LIMITS, do="")) == 0

    def test_run_sends_the_entry_s_own_call(self):
        """To the queue that it names, or another; what the message cannot have is said."""
        (action,) = plan(seen(entry(queue="orders")), do="run", name="nightly")
        (other,) = plan(seen(entry(queue="orders")), do="run", name="nightly", to="celery")
        message = json.loads(action.message)

        assert (action.kind, action.destination, other.destination) == (Kind.SEND, "orders", "celery")
        assert message["headers"]["task"] == "tests.ok"
        assert "Left out are its options: expires." in action.effect

    @pytest.mark.parametrize(("do", "is_on", "to"), [("pause", True, "off"), ("resume", False, "on")])
    def test_an_entry_is_switched_as_it_was_seen(self, do, is_on, to):
        """A plan has its definition's digest."""
        (action,) = plan(seen(entry(is_on=is_on)), do=do, name="nightly")

        assert (action.kind, action.source, action.destination) == (Kind.SWITCH, "redbeat:nightly", to)
        assert action.copies[0].sha256 == "e" * 64

    def test_a_row_is_switched_by_its_number_and_name(self):
        """And beat is told of it."""
        (action,) = plan(seen(in_table()), do="pause", name="nightly")

        assert (action.kind, action.source, action.row.table) == (Kind.SWITCH, "db#table/nightly", "beat")
        assert json.loads(action.row.key) == {"id": 4, "name": "nightly"}
        assert (json.loads(action.row.was), json.loads(action.row.becomes)) == ({"enabled": True}, {"enabled": False})
        assert "told of the change" in action.effect

    def test_in_another_database_redbeat_s_entries_are_changed_there(self):
        """What is sent now goes to the broker all the same; where nobody may change it, nothing is planned."""
        there = replace(seen(entry()), elsewhere="redis://there/7", site="a/b/7/")

        assert plan(there, do="pause", name="nightly").fingerprint == "a/b/7/"
        assert plan(there, do="run", name="nightly").fingerprint == there.fingerprint
        with pytest.raises(BadParameter, match="not to change it"):
            plan(replace(there, site=""), do="pause", name="nightly")

    def test_arguments_that_nobody_read_are_not_sent(self):
        """They would be others."""
        with pytest.raises(BadParameter, match="too large to be read"):
            plan(seen(entry(call="")), do="run", name="nightly")

    def test_a_configured_one_is_said_to_come_back(self):
        """Beat writes it anew when it starts."""
        (action,) = plan(seen(entry(is_static=True)), do="pause", name="nightly")

        assert "writes it anew" in action.effect

    def test_a_stale_lock_is_removed_as_it_was_seen(self):
        """And is in the vault before."""
        (action,) = plan(seen(entry(due_in_s=-600), held=lock(700.0)), LIMITS, do="unlock")

        assert (action.kind, action.subject, action.copies[0].sha256) == (Kind.DELETE, "redbeat::lock", "f" * 64)

    @pytest.mark.parametrize(
        ("asked", "error", "words"),
        [
            ({"do": "stop"}, BadParameter, "none of run, pause, resume, unlock"),
            ({"do": "pause"}, BadParameter, "needs a name"),
            ({"do": "pause", "name": "nightli"}, NotFound, "no entry nightli"),
            ({"do": "resume", "name": "nightly"}, BadParameter, "is sent already"),
            ({"do": "pause", "name": "configured"}, BadParameter, "configuration alone"),
            ({"do": "run", "name": "odd"}, BadParameter, "cannot be sent"),
            ({"do": "unlock"}, BadParameter, "may well live"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, asked, error, words):
        """With what there is instead."""
        found = seen(
            entry(),
            entry("configured", source="configuration", key=""),
            entry("odd", problem="It is odd."),
            held=lock(),
        )

        with pytest.raises(error, match=words):
            plan(found, LIMITS, **{"name": "", **asked})

    def test_without_a_lock_there_is_nothing_to_unlock(self):
        """Which is what somebody who asks twice is told."""
        with pytest.raises(BadParameter, match="Nobody holds"):
            plan(seen(entry(due_in_s=-600)), LIMITS, do="unlock")
