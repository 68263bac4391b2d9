"""A task goes on only if it is over, has left a state, and nobody goes on from it yet; otherwise it is told why not."""

from __future__ import annotations

import json
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

import pytest

from opslib import plan as plans
from opslib.envelope import head
from opslib.errors import PlanTooLarge
from opslib.facts.checkpoints import Checkpoint, Resumable
from opslib.facts.system import Coverage
from opslib.facts.whereabouts import Whereabouts
from opslib.findings import Finding, Severity
from opslib.plan import Kind, Outcome, Status
from opslib.render import display
from opslib.symptoms import resume_task
from tests.support.rows import (
    NOW_S,
    coverage,
    delivered,
    held,
    letter,
    node,
    put_aside,
    result,
    server,
    waiting,
    whereabouts,
)
from tests.support.seed import envelope

HERE, THERE = "r/p/0/", "r/p/1/"
SECRET = "card-4711-secret"


def state(task_id: str = "x", **fields: Any) -> Checkpoint:
    """Return a state that a task has saved in the broker's database."""
    given: dict[str, Any] = {
        "name": "checkpoint",
        "key": f"opslib:checkpoint:{task_id}",
        "database": "redis://h/0",
        "fingerprint": HERE,
        "task": "shop.import",
        "sha256": "a" * 64,
        "progress": 0.4,
        "results": 2,
        "saved_at": NOW_S - 300,
        "queue": "imports",
        "parameters": json.dumps({"args": [SECRET], "kwargs": {}}),
        "source": "state",
    }
    return Checkpoint(task_id=task_id, **{**given, **fields})


def seen(*states: Checkpoint, asked: tuple[str, ...] = ("x",), **fields: Any) -> Resumable:
    """Return a view of tasks that failed, of whatever else is said."""
    ids = {*asked, *(row.task_id for row in states), *(row.resumed_as for row in states)} - {""}
    found = whereabouts(*ids, **{"fingerprint": HERE, "results": [result("x", "FAILURE")], **fields})
    known = {each.name: getattr(found, each.name) for each in fields_of(Whereabouts)}
    return Resumable(**known, asked=asked, checkpoints=tuple(states))


def judged(view: Resumable, **known: Any) -> list[Finding]:
    """Return what is said of the tasks."""
    return [f for f in resume_task.diagnose(view, **known) if f.code.startswith("task-")]


def planned(view: Resumable, **options: Any) -> plans.Plan:
    """Return what is proposed."""
    return resume_task.plan(view, resume_task.diagnose(view), **options)


def only(view: Resumable) -> Finding:
    """Return the only thing that is said of the tasks."""
    (finding,) = judged(view)
    return finding


class TestResumable:
    """Over, and with a state."""

    @pytest.mark.parametrize(
        ("view", "said"),
        [
            (seen(state()), "It failed."),
            (seen(state(failure="ValueError: no such file")), "It failed: ValueError: no such file."),
            (seen(state(), results=[result("x", "FAILURE", exception="ValueError")]), "It failed: ValueError."),
            (seen(state(), results=[result("x", "STARTED")]), "Its result says STARTED, and nobody has it any more."),
            (seen(state(), results=[result("x", "RETRY")]), "Its result says RETRY, and nobody has it any more."),
            (seen(state(), results=[]), "Nobody has it any more, and it has no result."),
        ],
    )
    def test_however_it_ended(self, view, said):
        """Failed for good, or lost with its worker."""
        finding = only(view)

        assert (finding.code, finding.severity, finding.subject) == ("task-resumable", Severity.ATTENTION, "x")
        assert finding.message.startswith(said)
        assert "at 40%, with 2 results, saved 5 min ago" in finding.message

    def test_hand_over_then_send(self):
        """One of each, with one new id; what the task is called with is in the message alone."""
        view = seen(state())

        handover, send = planned(view)

        assert (handover.kind, handover.subject, handover.source) == (Kind.HANDOVER, "x", "checkpoint")
        assert (send.kind, send.source, send.destination) == (Kind.SEND, "x", "imports")
        assert handover.destination == send.subject != "x"
        found = head(send.message.encode())
        assert (found.task_id, found.task, found.root_id) == (send.subject, "shop.import", send.subject)
        assert json.loads(send.message)["headers"]["x-resumes"] == "x"
        told = repr((resume_task.diagnose(view), handover, replace(send, message=""), view))
        assert SECRET not in told

    def test_the_same_plan_of_the_same_state(self):
        """So whoever confirmed it meets it again; another state has another successor."""
        once, twice, other = (planned(seen(state(sha256=each * 64))) for each in "aab")

        assert once.actions == twice.actions
        assert once.actions[1].subject != other.actions[1].subject

    def test_to_another_queue(self):
        """And by default where it came from; a state that names none waits where Celery's own do."""
        assert planned(seen(state()), to="slow").actions[1].destination == "slow"
        assert planned(seen(state(queue=""))).actions[1].destination == "celery"

    def test_the_priority_that_it_had(self):
        """With 0 served first."""
        assert head(planned(seen(state(priority=6))).actions[1].message.encode()).priority == 6

    def test_the_message_that_failed_is_preferred(self):
        """Whatever the state says beside it."""
        raw = json.dumps(
            envelope("shop.import", task_id="x", args=["exact"], queue="imports", retries=5, tenant="acme")
        )

        _, send = planned(seen(state(message=raw.encode())))

        sent = json.loads(send.message)
        assert sent["body"] == json.loads(raw)["body"]
        assert (sent["headers"]["tenant"], sent["headers"]["retries"]) == ("acme", 0)
        assert "called with what its dead letter's message says" in send.effect

    @pytest.mark.parametrize("raw", [b"no JSON", b'{"properties": {}, "headers": {}}', b"\xff"])
    def test_a_message_that_cannot_be_rewritten_is_left_for_the_state(self, raw):
        """An old one keeps its id in its body."""
        _, send = planned(seen(state(message=raw)))

        assert head(send.message.encode()).task == "shop.import"

    def test_states_in_two_databases_are_two_plans(self):
        """The broker's is the last, and sends; the notebook's plan leaves such a task to the command."""
        view = seen(state(), state(name="progress", key="p:x", fingerprint=THERE, database="redis://h/1"))
        findings = resume_task.diagnose(view)

        there, here = resume_task.steps(view, findings)

        assert [action.kind for action in there] == [Kind.HANDOVER]
        assert [action.kind for action in here] == [Kind.HANDOVER, Kind.SEND]
        assert (there.fingerprint, here.fingerprint) == (THERE, HERE)
        assert {action.destination for action in (*there, here.actions[0])} == {here.actions[1].subject}
        assert len(resume_task.plan(view, findings)) == 0
        assert "two runs" in judged(view)[0].hint

    def test_too_many(self):
        """No partial plan."""
        with pytest.raises(PlanTooLarge, match="2 actions; max_actions allows 1"):
            planned(seen(state()), max_actions=1)


class TestNotResumable:
    """With the reason, and what can be done instead; nothing is planned."""

    @pytest.mark.parametrize(
        ("view", "said", "instead"),
        [
            (seen(state(), waiting=[waiting("x")]), "It is waiting: it goes on by itself.", "ops task stop x"),
            (seen(state(), held=[held("x")]), "It is active: it goes on by itself.", "ops task stop x"),
            (
                seen(state(), held=[held("x", "scheduled")], unacked=[delivered("x")]),
                "It is unacked and scheduled",
                "Let it end",
            ),
            (seen(state(), results=[result("x", "SUCCESS")]), "It has finished", "nothing to go on with"),
            (seen(state(), results=[result("x", "REVOKED")]), "It is revoked", "ops task send"),
            (seen(state(), quarantined=[put_aside("x")]), "A message of it is in the quarantine of run", "ops undo"),
            (seen(), "No saved state of it is there", "ops task send"),
            (seen(dead=[letter("x")]), "No saved state of it is there", "ops dead redrive"),
            (seen(results=[]), "It was found nowhere else either", "ops task send"),
            (seen(state(problem="It is a hash.")), "cannot be used. It is a hash.", "ops task send"),
            (seen(state(refused="the file is damaged")), "It must not go on: the file is damaged.", "ops task send"),
            (seen(state(parameters="", source="")), "What it was called with is known to nobody", "ops task send"),
            (seen(state(task="")), "What it was called with is known to nobody", "ops task send"),
        ],
    )
    def test_why(self, view, said, instead):
        """One sentence each."""
        finding = only(view)

        assert (finding.code, finding.severity) == ("task-not-resumable", Severity.ATTENTION)
        assert said in finding.message
        assert instead in finding.hint
        assert len(planned(view)) == 0


class TestLines:
    """A task that was resumed, and what became of the one that went on."""

    OLD = state("x", resumed_as="y")
    NEW = state("y", resumed_from="x", sha256="b" * 64, progress=0.8)
    FAILED = result("x", "FAILURE")

    def test_the_last_of_the_line_goes_on(self):
        """It has come further."""
        view = seen(self.OLD, self.NEW, results=[self.FAILED, result("y", "FAILURE")])

        finding = only(view)

        assert (finding.code, finding.subject) == ("task-resumable", "y")
        assert "at 80%" in finding.message
        assert "It goes on from x." in finding.message
        assert [action.subject for action in planned(view) if action.kind is Kind.HANDOVER] == ["y"]

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"waiting": [waiting("y")]}, "It was resumed as y. That one: it is waiting"),
            ({"held": [held("y")]}, "It was resumed as y. That one: it is active"),
            ({"results": [FAILED, result("y", "SUCCESS")]}, "It was resumed as y. That one: it has finished"),
            ({"results": [FAILED, result("y", "REVOKED")]}, "It was resumed as y. That one: it is revoked"),
        ],
    )
    def test_one_that_goes_on_is_left_alone(self, fields, said):
        """It would do the work twice."""
        finding = only(seen(self.OLD, self.NEW, **fields))

        assert (finding.code, finding.subject) == ("task-not-resumable", "x")
        assert said in finding.message

    def test_a_successor_that_failed_without_a_state(self):
        """What it began from is the best there is."""
        finding = only(seen(self.OLD, results=[self.FAILED, result("y", "FAILURE")]))

        assert (finding.code, finding.subject) == ("task-resumable", "x")

    def test_a_successor_of_which_nothing_is_left(self):
        """It may have finished: that is not known, so nothing is done."""
        view = seen(self.OLD)
        finding = only(view)

        assert (finding.code, finding.severity) == ("task-not-resumable", Severity.UNKNOWN)
        assert "it may have finished" in finding.message
        assert len(planned(view)) == 0

    def test_a_successor_that_was_never_sent(self):
        """Its run was cut off: its state is there and nobody has it, so it goes on."""
        assert only(seen(self.OLD, self.NEW)).subject == "y"

    def test_a_circle_ends(self):
        """Whoever wrote it."""
        view = seen(state("x", resumed_as="y"), state("y", resumed_as="x"))

        assert len(judged(view)) == 1


class TestHalfAView:
    """What was not seen may be where it runs."""

    @pytest.mark.parametrize("place", ["workers", "waiting", "unacked", "keyspace", "states in redis://h/1"])
    def test_nothing_is_planned(self, place):
        """The severity says why."""
        rows = (*coverage(), Coverage(place=place, seen=0, silent=1, note="It did not answer."))
        view = seen(state(), coverage=rows)

        finding = only(view)

        assert (finding.code, finding.severity) == ("task-resumable", Severity.UNKNOWN)
        assert "Whether it still runs is not known" in finding.message
        assert len(planned(view)) == 0

    def test_results_that_are_not_there_do_not_matter_once_the_state_says_that_it_failed(self):
        """Otherwise they do."""
        rows = (Coverage(place="results", seen=0, silent=1, note="It is not Redis."),)

        assert only(seen(state(), coverage=rows, results=[])).severity is Severity.UNKNOWN
        assert only(seen(state(failure="E"), coverage=rows, results=[])).severity is Severity.ATTENTION

    def test_nobody_listens_and_somebody_consumes(self):
        """It may run where nobody can ask."""
        view = seen(state(), receivers=0, nodes=[], server=server(consumers=1))

        assert only(view).severity is Severity.UNKNOWN

    def test_more_consume_than_listen(self):
        """Unless it has failed for sure."""
        fields: dict[str, Any] = {"receivers": 1, "nodes": [node()], "server": server(consumers=3)}

        assert only(seen(state(), results=[], **fields)).severity is Severity.UNKNOWN
        assert only(seen(state(), **fields)).severity is Severity.ATTENTION

    def test_a_database_of_states_that_is_silent(self):
        """No state there proves nothing."""
        view = seen(coverage=(*coverage(), Coverage(place="states in redis://h/1", seen=0, silent=1)))

        assert only(view).severity is Severity.UNKNOWN


class TestAfterwards:
    """What remains once they were resumed."""

    def outcomes(self, status: Status = Status.APPLIED) -> list[Outcome]:
        """Return what became of the plan."""
        return [Outcome(action=action, status=status) for action in planned(seen(state()))]

    def test_one_that_goes_on_is_no_finding(self):
        """It waits, runs, or has finished and left nothing."""
        new_id = planned(seen(state())).actions[1].subject
        old = state(resumed_as=new_id)

        assert judged(seen(old, state(new_id), waiting=[waiting(new_id)]), outcomes=self.outcomes()) == []
        assert judged(seen(), outcomes=self.outcomes()) == []

    def test_one_that_has_failed_again_is(self):
        """Under its new id."""
        new_id = planned(seen(state())).actions[1].subject
        results = [result("x", "FAILURE"), result(new_id, "FAILURE")]
        view = seen(state(resumed_as=new_id), state(new_id), results=results)

        (finding,) = judged(view, outcomes=self.outcomes())

        assert (finding.code, finding.subject) == ("task-resumable", new_id)

    def test_one_that_was_not_resumed_is_as_before(self):
        """A skipped action changes nothing."""
        assert [f.code for f in judged(seen(state()), outcomes=self.outcomes(Status.SKIPPED))] == ["task-resumable"]

    def test_a_whole_line_that_is_gone(self):
        """The one that was named had been resumed before."""
        before = seen(state("x", resumed_as="y"), state("y"), results=[result("y", "FAILURE")])
        outcomes = [Outcome(action=action, status=Status.APPLIED) for action in planned(before)]

        assert judged(seen(results=[]), before=before, outcomes=outcomes) == []


class TestSavedPlans:
    """What is looked at again before a plan is carried out."""

    def test_as_it_was(self):
        """Nothing speaks against it."""
        assert resume_task.why_not(seen(state()), planned(seen(state()))) == []

    def test_sent_again_meanwhile(self):
        """It goes on by itself."""
        against = resume_task.why_not(seen(state(), waiting=[waiting("x")]), planned(seen(state())))

        assert against == ["x: It is waiting: it goes on by itself."]

    def test_half_done(self):
        """Its state is handed over, and its message not sent yet: that is what is left of it."""
        plan = planned(seen(state()))
        new_id = plan.actions[1].subject
        view = seen(state(resumed_as=new_id), state(new_id))

        assert resume_task.why_not(view, replace(plan, actions=plan.actions[1:])) == []
        running = replace(view, waiting=(waiting(new_id),))
        assert "was resumed as" in resume_task.why_not(running, plan)[0]

    def test_half_a_view(self):
        """Nobody can say."""
        view = seen(state(), coverage=(Coverage(place="workers", seen=0, silent=1, note="Silent."),))

        assert resume_task.why_not(view, planned(seen(state()))) == ["workers: Silent."]


def test_where_nobody_named_a_task_nothing_is_planned():
    """What could go on is told; which of them should is for a person to say. What cannot is no matter."""
    view = replace(seen(state()), named=False)

    findings = resume_task.diagnose(view)

    assert [each.code for each in findings] == ["task-resumable"]
    assert len(resume_task.plan(view, findings)) == 0
    assert len(resume_task.plan(replace(view, named=True), findings)) == 2
    assert resume_task.diagnose(replace(seen(), named=False)) == []
    assert (resume_task.wanted(" , "), resume_task.wanted("a, b a")) == ([], ["a", "b"])


def test_what_states_say_is_harmless_and_never_what_tasks_were_called_with(capsys):
    """In the table of them, and in every finding."""
    hostile = "\x1b[31m<script>\u202e\n|"
    rows = [
        state(task=hostile, failure=hostile, refused="", source=hostile, resumed_from=hostile),
        state(problem=hostile, resumed_as=hostile),
    ]
    view = seen(*rows)

    display.show(view, resume_task.diagnose(view), tuple(view.checkpoints))

    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert SECRET not in said
