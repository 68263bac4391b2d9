"""What is said of dead letters, and what is planned for them: pure judgement on seeded snapshots."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from opslib import letters as written
from opslib.errors import BadParameter, PlanTooLarge
from opslib.facts.dead import DeadGroup, DeadLetter, DeadLetters, DeadList
from opslib.facts.snapshot import Snapshot
from opslib.facts.system import Coverage
from opslib.findings import Severity, verdict
from opslib.letters import Cause
from opslib.plan import Action, Kind
from opslib.symptoms import autopsy, dlq_triage
from opslib.symptoms.autopsy import Judgement
from opslib.symptoms.dlq_triage import Thresholds
from tests.support import rows
from tests.support.rows import NOW_S

LIMITS = Thresholds(dead_warn=10, dead_critical=100)
TIMEOUT = "ConnectionError: Error <n> connecting to pay.example:<n> @ tasks.py:charge"
NAME = written.name_of(TIMEOUT)
_NUMBERS = itertools.count(1)


def dead(count: int = 1, signature: str = TIMEOUT, *, age_s: float = 3600.0, **fields: Any) -> list[DeadLetter]:
    """Return letters that failed one second after the other, the latest first."""
    given = {"task": "shop.charge", "key": "orders.dead", "queue": "orders", "cause": "raised", "worker": "w1@lab"}
    return [
        DeadLetter(
            task_id=f"t{n}",
            entry_id=f"e{n}",
            signature=signature,
            **{**given, "failed_at": NOW_S - age_s - at, **fields},
        )
        for at, n in ((at, next(_NUMBERS)) for at in range(count))
    ]


def grouped(letters: list[DeadLetter]) -> tuple[DeadGroup, ...]:
    """Return letters in groups, as the collector counts them."""
    from opslib.collectors.graves import Tally

    tally = Tally(now=NOW_S, max_letters=0)
    for each in letters:
        tally.take(each)
    return tally.result((), frozenset()).groups


def snapshot(*letters: list[DeadLetter], of_lists: dict[str, dict[str, Any]] | None = None, **fields: Any) -> Snapshot:
    """Return a look at one node that consumes `celery` and `orders`, and at these letters in their lists."""
    every = [each for some in letters for each in some]
    keys = dict.fromkeys([*(each.key for each in every), *(of_lists or {})])
    lists = tuple(
        _list(key, [each for each in every if each.key == key], (of_lists or {}).get(key, {})) for key in keys
    )
    known = {"groups": grouped(every), "letters": tuple(every), "read": len(every), "watched_s": 5.0}
    found = DeadLetters(lists=lists, **{**known, **{k: fields.pop(k) for k in known if k in fields}})
    given: dict[str, Any] = {
        "queues": [rows.queue(), rows.queue("orders")],
        "nodes": [rows.node(queues=("celery", "orders"))],
    }
    return rows.snapshot(letters=found, **{**given, **fields})


def _list(key: str, letters: list[DeadLetter], said: dict[str, Any]) -> DeadList:
    times = [each.failed_at for each in letters if each.failed_at is not None]
    given = {
        "key": key,
        "queue": key.removesuffix(".dead").removeprefix("shop:"),
        "length": len(letters),
        "oldest_at": min(times, default=None),
        "newest_at": max(times, default=None),
        "arrived": 0,
    }
    return DeadList(**{**given, **said})


def codes(seen: Snapshot) -> list[tuple[str, str]]:
    """Return codes and subjects of what is found."""
    return [(found.code, found.subject) for found in dlq_triage.diagnose(seen, LIMITS)]


def planned(seen: Snapshot, **asked: Any) -> list[Action]:
    """Return what would be done."""
    return list(dlq_triage.plan(seen, [], **asked))


class TestThresholds:
    """The boundaries count."""

    @pytest.mark.parametrize(
        ("count", "severity"),
        [(9, None), (10, Severity.ATTENTION), (99, Severity.ATTENTION), (100, Severity.CRITICAL)],
    )
    def test_a_list_counts_from_its_threshold_on(self, count, severity):
        """Ten are for attention, a hundred critical."""
        found = dlq_triage.diagnose(snapshot(dead(count)), LIMITS)

        assert [each.severity for each in found] == ([severity] if severity else [])

    def test_of_many_small_groups_in_a_long_list_the_largest_is_critical(self):
        """A list of a hundred is critical, whatever it consists of."""
        every = [dead(3, f"ValueError: {n} @ a.py:f") for n in ("x", "y")] + [dead(94, "OtherError: z @ a.py:f")]
        found = dlq_triage.diagnose(snapshot(*every), LIMITS)

        assert [each.severity for each in found] == [Severity.CRITICAL, Severity.ATTENTION, Severity.ATTENTION]
        assert found[0].evidence["letters"] == 94

    def test_none_is_below_zero(self, broker):
        """A negative number is refused; 0 takes the target's own."""
        assert Thresholds.of(broker) == Thresholds()
        assert Thresholds.of(broker, dead_warn=3).dead_warn == 3
        with pytest.raises(BadParameter, match="dead_warn"):
            Thresholds.of(broker, dead_warn=-1)


class TestJudgement:
    """Each word with its rule."""

    @pytest.mark.parametrize(
        ("signature", "cause", "word"),
        [
            (TIMEOUT, "raised", Judgement.TRANSIENT),
            ("HTTPError: 503 Service Unavailable", "raised", Judgement.TRANSIENT),
            ("HTTPError: 429 Too Many Requests @ a.py:f", "raised", Judgement.TRANSIENT),
            ("OperationalError: deadlock detected", "raised", Judgement.TRANSIENT),
            ("SoftTimeLimitExceeded", "raised", Judgement.TRANSIENT),
            ("KeyError: '…' @ a.py:f", "raised", Judgement.PERMANENT),
            ("HTTPError: 404 Not Found", "raised", Judgement.PERMANENT),
            ("Reject: '…'", "rejected", Judgement.PERMANENT),
            ("TypeError: f() missing <n> required positional argument: '…' @ a.py:f", "raised", Judgement.ARGUMENTS),
            ("TypeError: f() got an unexpected keyword argument '…'", "raised", Judgement.ARGUMENTS),
            ("TypeError: can only concatenate str @ a.py:f", "raised", Judgement.PERMANENT),
            ("ValidationError: <n> validation errors for Order", "raised", Judgement.ARGUMENTS),
            ("(no exception)", "undecodable", Judgement.ARGUMENTS),
            ("HTTPError: 422 Unprocessable Entity", "raised", Judgement.ARGUMENTS),
            ("NotRegistered: shop.gone", "raised", Judgement.DEPLOY),
            ("(no exception)", "unknown-task", Judgement.DEPLOY),
            ("ModuleNotFoundError: No module named '…'", "raised", Judgement.DEPLOY),
            ("WorkerLostError: Worker exited prematurely: signal <n> (SIGKILL) Job: <n>.", "raised", Judgement.POISON),
            ("anything", "worker-lost", Judgement.POISON),
            ("TimeLimitExceeded: TimeLimitExceeded(<n>)", "time-limit", Judgement.POISON),
            ("(no exception)", "expired", Judgement.EXPIRED),
            ("ShopError: sold out @ a.py:f", "raised", Judgement.UNKNOWN),
        ],
    )
    def test_the_first_rule_that_knows_an_error_decides(self, signature, cause, word):
        """By the cause of death first, then by the error."""
        seen = snapshot(dead(12, signature, cause=cause))
        (group,) = dlq_triage.groups(seen)

        assert group.judgement == word

    @pytest.mark.parametrize(
        ("count", "before_s", "word"),
        [
            (10, 3600.0, Judgement.DEPLOY),
            (9, 3600.0, Judgement.PERMANENT),
            (10, 60.0, Judgement.PERMANENT),
        ],
    )
    def test_a_code_error_that_began_at_once_is_of_a_deployment(self, count, before_s, word):
        """Where the list goes back far enough to show that it began, and it is enough to be no chance."""
        older = dead(1, "OtherError: x @ a.py:f", age_s=600.0 + before_s)
        seen = snapshot(dead(count, "KeyError: '…' @ a.py:f", age_s=600.0), older)

        assert dlq_triage.groups(seen)[0].judgement == word

    def test_arguments_that_do_not_fit_are_no_deployment(self):
        """Who is called otherwise than before is told as such, however it began."""
        seen = snapshot(
            dead(20, "TypeError: f() missing <n> required positional argument: '…'"), dead(1, "X", age_s=9e4)
        )

        assert dlq_triage.groups(seen)[0].judgement == Judgement.ARGUMENTS

    def test_every_word_has_advice(self):
        """With the group's short name in the command."""
        (group,) = grouped(dead(3))

        for word in Judgement:
            assert group.name in autopsy.advice(group, word, NOW_S)

    @pytest.mark.parametrize(("age_s", "fresh"), [(300.0, True), (301.0, False)])
    def test_what_failed_a_moment_ago_is_not_over(self, age_s, fresh):
        """Five minutes."""
        (group,) = grouped(dead(1, age_s=age_s))

        assert autopsy.advice(group, Judgement.TRANSIENT, NOW_S).startswith("It was failing") is fresh


class TestFindings:
    """What is wrong beside the groups."""

    def test_poison_is_told_in_any_number(self):
        """One death is for attention; three, or one that was sent again and died again, are critical."""
        one, three = dead(1, "x", cause="worker-lost"), dead(3, "x", cause="worker-lost")
        again = dead(1, "x", cause="time-limit", redrives=1)

        for letters, severity in ((one, Severity.ATTENTION), (three, Severity.CRITICAL), (again, Severity.CRITICAL)):
            (found,) = dlq_triage.diagnose(snapshot(letters), LIMITS)
            assert (found.code, found.severity) == ("poison-task", severity)

    def test_what_came_meanwhile_is_told_with_its_pace(self):
        """Critical where the list is long already."""
        seen = snapshot(dead(2), of_lists={"orders.dead": {"arrived": 5, "length": 7}})
        (found,) = dlq_triage.diagnose(seen, LIMITS)
        (long,) = [
            each
            for each in dlq_triage.diagnose(snapshot(of_lists={"a.dead": {"arrived": 1, "length": 100}}), LIMITS)
            if each.code == "dead-letters-growing"
        ]

        assert (found.code, found.severity) == ("dead-letters-growing", Severity.ATTENTION)
        assert "about 60 a minute" in found.message
        assert long.severity is Severity.CRITICAL

    def test_what_a_full_list_has_lost_is_told(self):
        """Critical while more come."""
        for arrived, severity in ((0, Severity.ATTENTION), (3, Severity.CRITICAL)):
            seen = snapshot(of_lists={"a.dead": {"dropped": 4, "length": 5, "arrived": arrived}})
            (found,) = [each for each in dlq_triage.diagnose(seen, LIMITS) if each.code == "dead-letters-dropped"]
            assert found.severity is severity

    def test_unreadable_entries_and_results_without_a_letter_are_told(self):
        """Of results with how many have no name."""
        stored = DeadLetter(task_id="r", task="shop.old", key="celery-task-meta-r", exact=False)
        lists = {
            "a.dead": {"unreadable": 1, "length": 1},
            "celery-task-meta-*": {"source": "results", "queue": "", "length": 3, "unreadable": 2},
        }
        seen = snapshot(of_lists=lists, letters=(stored,))
        found = {each.code: each for each in dlq_triage.diagnose(seen, LIMITS)}

        assert set(found) == {"unreadable-letter", "uncaptured-failures"}
        assert found["uncaptured-failures"].evidence == {"results": 3, "without_name": 2, "tasks": {"shop.old": 1}}
        assert "1 entry of a.dead" in found["unreadable-letter"].message

    def test_the_verdict_is_unknown_where_letters_were_not_read(self):
        """Nor are few letters any health."""
        coverage = (*rows.coverage(), Coverage(place="dead letters", seen=1, silent=5))
        found = dlq_triage.diagnose(snapshot(dead(1), coverage=coverage), LIMITS)

        assert verdict(found) == "unknown"

    def test_no_letters_is_healthy(self):
        """And so is a list that was emptied."""
        assert dlq_triage.diagnose(snapshot(), LIMITS) == []

    def test_groups_beyond_those_that_are_told_are_counted(self):
        """In one finding, with those that were not even grouped."""
        many = [dead(1, f"ShopError: {chr(97 + n // 26)}{chr(97 + n % 26)}") for n in range(40)]
        found = dlq_triage.diagnose(snapshot(*many, of_lists={"orders.dead": {"length": 47}}), LIMITS)
        (rest,) = [each for each in found if each.subject == "(other signatures)"]

        assert len(found) == 31
        assert rest.message.startswith("10 more letters")

    def test_judging_again_gives_the_same(self):
        """It is pure."""
        seen = snapshot(dead(120), dead(3, "x", cause="worker-lost"))

        assert dlq_triage.diagnose(seen, LIMITS) == dlq_triage.diagnose(seen, LIMITS)


class TestAsking:
    """What a person may ask for, and what the plan says of it."""

    def test_nothing_is_planned_by_itself(self):
        """Whatever is found."""
        assert planned(snapshot(dead(200))) == []
        assert planned(snapshot(), do="redrive", signature="nothing") == []

    def test_a_group_is_sent_again_to_its_queue(self):
        """One action for its list, by its selection."""
        seen = snapshot(dead(4), dead(2, "Other: x"))
        (action,) = planned(seen, do="redrive", signature=NAME)

        assert (action.kind, action.subject, action.source, action.destination) == (
            Kind.REDRIVE,
            "orders.dead",
            "orders.dead",
            "orders",
        )
        assert [(copy.place, copy.key, copy.count) for copy in action.copies] == [("list", "orders.dead", 4)]
        assert action.letters.signature == NAME
        assert action.task == "shop.charge"
        assert action.effect == "4 letters to orders."

    def test_refusals_are_counted_by_their_reason(self):
        """As many go as the sentence says."""
        seen = snapshot(dead(4), dead(2, notes=("revoked",)), dead(1, notes=("looping",)))
        (action,) = planned(seen, do="redrive", queue="orders")

        assert action.effect.startswith(
            "4 of 7 letters to orders; 2 refused: revoked; 1 refused: sent again 3 times already."
        )
        assert action.count == 7

    def test_a_new_id_lifts_a_revoke_and_expired_an_expiry(self):
        """But under a new id a chord's task is refused: its chord knows it by its id."""
        seen = snapshot(dead(2, notes=("revoked",)), dead(1, notes=("expired",)), dead(1, notes=("chord",)))

        (new,) = planned(seen, do="redrive", queue="orders", new_ids=True)
        (late,) = planned(seen, do="redrive", queue="orders", expired=True)

        assert new.effect.startswith(
            "2 of 4 letters under new ids to orders; 1 refused: expired; 1 refused: of a chord"
        )
        assert late.effect.startswith("2 of 4 letters to orders; 2 refused: revoked. 1 is one of a chord's")

    def test_where_all_are_refused_nothing_is_planned(self):
        """It is said why."""
        with pytest.raises(BadParameter, match="2 refused: succeeded since"):
            planned(snapshot(dead(2, notes=("succeeded",))), do="redrive", queue="orders")

    @pytest.mark.parametrize(
        ("note", "said"),
        [
            ("inexact", "1 is made anew"),
            ("chain", "1 has a chain"),
            ("errbacks", "1 has errbacks"),
            ("eta", "1 waits for its time"),
        ],
    )
    def test_what_is_to_be_known_beforehand_is_said(self, note, said):
        """Of each kind how many."""
        (action,) = planned(snapshot(dead(1, notes=(note,)), dead(2)), do="redrive", queue="orders")

        assert said in action.effect

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"queue": "orders"}, "2 of 3 letters to orders; 1 refused: poison, sent only by name."),
            ({"queue": "orders", "cause": "raised"}, "1 ended the process that ran it."),
        ],
    )
    def test_poison_is_sent_only_if_it_is_named(self, asked, said):
        """With all others it would end the process that runs it, and with that what else ran there."""
        (action,) = planned(snapshot(dead(1, notes=("poison",)), dead(2)), do="redrive", **asked)

        assert said in action.effect
        assert action.redrive.poison is ("cause" in asked)

    def test_a_queue_that_nobody_consumes_is_said(self):
        """With doubt where a node stayed silent; nothing where somebody does."""
        seen = snapshot(dead(1))
        silent = snapshot(dead(1), nodes=[], receivers=1)

        assert "Nobody consumes lonely" in planned(seen, do="redrive", queue="orders", to="lonely")[0].effect
        assert "consumes" not in planned(seen, do="redrive", queue="orders")[0].effect
        (doubtful,) = planned(silent, do="redrive", queue="orders", to="lonely")
        assert "cannot be told: a node stayed silent" in doubtful.effect

    def test_lists_have_an_action_each(self):
        """And letters that go to several queues name none."""
        seen = snapshot(
            dead(2), dead(3, key="shop:mail.dead", queue="mail"), dead(1, key="shop:mail.dead", queue="celery")
        )
        made = planned(seen, do="redrive", queue="*")

        assert [(each.subject, each.copies[0].key, each.count, each.destination) for each in made] == [
            ("orders.dead", "orders.dead", 2, "orders"),
            ("mail.dead", "shop:mail.dead", 4, ""),
        ]
        with pytest.raises(PlanTooLarge):
            planned(seen, do="redrive", queue="*", max_actions=1)

    def test_a_limit_is_over_all_lists_and_takes_the_oldest_first(self):
        """The list with the oldest letter first; of its letters the oldest, with their refusals alone."""
        old = dead(2, key="mail.dead", queue="mail", age_s=9000.0)
        seen = snapshot(dead(2, age_s=100.0, notes=("revoked",)), dead(2, age_s=3600.0), old)
        made = planned(seen, do="redrive", queue="*", limit=3)

        assert [(each.subject, each.letters.limit, each.count) for each in made] == [
            ("mail.dead", 2, 2),
            ("orders.dead", 1, 1),
        ]
        assert "refused" not in made[1].effect

    def test_putting_aside_keeps_them(self):
        """Poison by its cause, old ones by their age."""
        seen = snapshot(dead(2, "x", cause=Cause.WORKER_LOST), dead(3, age_s=86_400.0), dead(1, failed_at=None))

        (poison,) = planned(seen, do="quarantine", cause="worker-lost")
        (old,) = planned(seen, do="purge", older_than="12h")

        assert (poison.kind, poison.destination, poison.count) == (Kind.PURGE, "quarantine", 2)
        assert (old.count, old.letters.failed_before) == (3, NOW_S - 12 * 3600)
        assert "Those that do not say when they failed stay" in old.effect

    def test_single_letters_are_named_by_entry_or_task(self):
        """Commas between them."""
        one, two, _ = dead(3)
        (action,) = planned(snapshot([one, two, _]), do="redrive", entry=f"{one.entry_id}, {two.task_id}")

        assert action.letters.ids == (one.entry_id, two.task_id)
        assert action.count == 2

    def test_other_arguments_are_for_one_letter(self):
        """A list and an object; what they say is in the action, and in no sentence."""
        one, other = dead(2)
        asked = {"do": "redrive", "args": json.dumps(["geheim"]), "kwargs": '{"a": 1}'}
        (action,) = planned(snapshot([one, other]), entry=one.entry_id, **asked)

        assert (action.redrive.args, action.redrive.kwargs) == ('["geheim"]', '{"a": 1}')
        assert "geheim" not in action.effect
        with pytest.raises(BadParameter, match="this means 2"):
            planned(snapshot([one, other]), queue="orders", **asked)

    def test_a_rate_says_how_long_it_takes(self):
        """Per second, from whatever unit."""
        (action,) = planned(snapshot(dead(120)), do="redrive", queue="orders", rate="60/m")

        assert action.redrive.rate_per_s == 1.0
        assert "At 1 a second at most; that takes 2 min" in action.effect

    @pytest.mark.parametrize(
        ("asked", "said", "hint"),
        [
            ({"do": "redrve", "queue": "*"}, "nothing that can be done", "Did you mean redrive?"),
            ({"do": "redrive"}, "means every dead letter", "queue * means"),
            ({"do": "redrive", "task": "*"}, "means every dead letter", "queue * means"),
            ({"do": "purge", "signature": "*"}, "means every dead letter", "queue * means"),
            ({"do": "redrive", "queue": "order"}, "no dead letters of 'order'", "Did you mean orders?"),
            ({"do": "redrive", "signature": f"{NAME[:-1]}x"}, "no dead letter has", f"Did you mean {NAME}?"),
            ({"do": "redrive", "signature": "zzz"}, "no dead letter has 'zzz'", NAME),
            ({"do": "redrive", "task": "shop.chrge"}, "no dead letter is of", "Did you mean shop.charge?"),
            ({"do": "redrive", "cause": "rased"}, "'rased' is none", "Did you mean raised?"),
            ({"do": "redrive", "cause": "expired"}, "no dead letter died as", "raised"),
            ({"do": "redrive", "entry": "nope"}, "named 'nope'", "ops dead show"),
            ({"do": "purge", "older_than": "9d"}, "failed more than 9d ago", "never meant by its age"),
            ({"do": "redrive", "limit": -1}, "-1 is no number", "0 means all"),
            ({"do": "redrive", "queue": "*", "rate": "fast"}, "'fast' is no rate", "10/s"),
            ({"do": "redrive", "queue": "*", "to": "unacked"}, "is no queue", ""),
            ({"do": "redrive", "queue": "*", "to": "orders.dead"}, "from which no worker takes", ""),
            ({"do": "purge", "queue": "*", "to": "x"}, "only for do=redrive", ""),
            ({"do": "redrive", "queue": "*", "args": "[geheim"}, "args: this is no JSON", "list"),
            ({"do": "redrive", "queue": "*", "args": "{}"}, "args: this JSON is no list", "list"),
            ({"do": "redrive", "queue": "*", "kwargs": "[NaN]"}, "kwargs: this is no JSON", "object"),
        ],
    )
    def test_a_slip_of_the_finger_is_refused(self, asked, said, hint):
        """With the nearest right name, and without any argument's value."""
        with pytest.raises(BadParameter) as raised:
            planned(snapshot(dead(3)), **asked)

        assert said in raised.value.message
        assert hint in raised.value.hint
        assert "geheim" not in str(raised.value)


class TestCountingByGroups:
    """More letters than are known one by one."""

    def test_a_plan_says_at_most(self):
        """By the groups; a filter of task and cause is a bound."""
        every = [*dead(20), *dead(5, task="shop.mail"), *dead(4, "Other: x", notes=("revoked",))]
        seen = snapshot(every, letters=tuple(every[:3]))

        (group,) = planned(seen, do="redrive", signature=NAME)
        (task,) = planned(seen, do="redrive", task="shop.mail")
        (all_of,) = planned(seen, do="redrive", queue="orders")

        assert group.effect.startswith("At most 25 letters to orders.")
        assert task.count == 5
        assert all_of.effect.startswith("At most 25 of 29 letters to orders; 4 refused: revoked.")

    def test_age_is_counted_by_the_times_of_each_group(self):
        """As far as they tell."""
        every = [*dead(20, age_s=86_400.0), *dead(30, age_s=60.0)]
        seen = snapshot(every, letters=())

        (action,) = planned(seen, do="purge", older_than="12h")

        assert action.count == 20
        assert action.effect.startswith("At most 20 letters")
