"""The page says the verdict, where, what was found, what was changed and how much was seen, however the run ended."""

from __future__ import annotations

import re
import stat
from itertools import pairwise

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_output

from opslib.catalog import Parameter
from opslib.facts.system import Coverage
from opslib.plan import Status
from opslib.render.charts import ages
from opslib.render.page import TEMPLATES
from opslib.render.report import CellState, State, cell_states, render_report, write_report
from tests.render.samples import (
    RUN_ID,
    action,
    code,
    displayed,
    finding,
    message,
    notebook,
    outcome,
    plan,
    record,
    snapshot,
    text,
    uid,
)

CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; form-action 'none'; base-uri 'none'"
)


def page(node, run, **more) -> BeautifulSoup:
    """Return the parsed report of a run."""
    return BeautifulSoup(render_report(node, run, **more), "html.parser")


def said(tag) -> str:
    """Return what a part of the page says, on one line."""
    return " ".join(tag.get_text(" ").split())


def executed(*cells):
    """Return a notebook with a diagnosis."""
    return notebook(text("diagnosis-head", "## Diagnosis\n\nHealthy: every node answers."), *cells)


@pytest.fixture(scope="module")
def critical() -> BeautifulSoup:
    """A dry run with nine findings, a plan and a picture."""
    findings = [
        *(finding(number) for number in range(6)),
        *(finding(number, "attention", "retry-loop") for number in range(6, 9)),
    ]
    proposed = plan(*(action(number) for number in range(6)))
    seen = snapshot(unacked=tuple(message(number, age_s=9000.0 + number) for number in range(6)))
    node = executed(
        code("facts", "before = collect(broker)\nshow(before)", *displayed(seen)),
        code("picture", "show(ages(before))", *displayed(ages(seen, stuck_after_s=10800))),
        code("diagnosis", "show(findings)", *displayed(findings)),
        code("plan", "show(plan)", *displayed(proposed)),
    )
    return page(node, record(findings=findings, proposed=proposed))


def test_the_head_answers_what_a_tired_engineer_asks(critical):
    """Verdict, what, where, what would be changed, and that nothing was, stand before anything else."""
    head = critical.select_one("header")

    assert said(head.select_one(".verdict")) == "✕ CRITICAL"
    assert said(head.select_one(".mode")) == "Dry run: nothing was changed"
    assert said(head.select_one("h1")) == "Stuck tasks"
    assert [said(each) for each in head.select(".answer")] == [
        "Where demo redis://ops:***@redis:6379/0",
        "Found 6 critical, 3 attention",
        "Changes None made Dry run; 6 would be: restore 6",
        "Seen All that was asked 2 places answered",
    ]
    assert "1: a person is needed" in said(head.select_one(".facts"))


def test_findings_that_mean_the_same_are_said_once(critical):
    """A group has one sentence, one count and one hint; each row keeps its id and its evidence."""
    first = critical.select_one("#findings .group")

    assert said(first.caption) == "✕ critical A message was delivered, and no live node holds it. 6 Restore it."
    assert {said(each) for each in first.select(".code-text")} == {uid(number) for number in range(6)}
    assert "age 3 h" in said(first)


def test_the_next_command_is_there_to_be_copied(critical):
    """A plan that waits says how to carry it out."""
    exactly, later = critical.select(".next code")
    assert said(exactly) == f"ops apply {RUN_ID}"
    assert said(later) == "ops run stuck-tasks --target demo --apply"


def test_the_next_command_keeps_the_parameters_and_quotes_them():
    """What was given is given again; a value with a blank or a quote stays one argument."""
    run = record(findings=[finding()], proposed=plan(action()), parameters={"queue": "a b'; rm -rf", "dry_run": True})

    assert "-p 'queue=a b'\"'\"'; rm -rf'" in said(page(None, run).select(".next code")[1])


def test_there_is_one_h1_and_the_notebook_does_not_repeat_it(critical):
    """The notebook's own title became the page's."""
    assert len(critical.select("h1")) == 1
    assert "Stuck tasks" not in said(critical.select_one("#notebook"))
    assert "Tasks were sent and do not finish." in said(critical.select_one("#notebook"))


def test_every_link_leads_somewhere_on_the_page(critical):
    """Contents, jumps to cells and the skip link have their targets."""
    ids = {each["id"] for each in critical.select("[id]")}
    targets = [each["href"] for each in critical.select("a[href]")]

    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    assert "#cell-id=diagnosis" in targets
    assert "#cell-id=plan" in targets


def test_ids_are_unique(critical):
    """A link has one target."""
    ids = [each["id"] for each in critical.select("[id]")]

    assert len(ids) == len(set(ids))


def test_the_page_reads_without_eyes(critical):
    """Language, skip link, landmarks, scopes and descriptions are there."""
    assert critical.html["lang"] == "en"
    assert critical.select_one("a.skip")["href"] == "#main"
    assert len(critical.select("main")) == 1
    assert critical.select_one("nav")["aria-label"]
    assert all(head.get("scope") for head in critical.select("#main th") if not head.find_parent(class_="prose"))
    assert all(len(image["alt"]) > 20 for image in critical.select("img"))
    assert "6 held by no node" in critical.img["alt"]


def test_headings_are_never_skipped(critical):
    """From one heading to the next, the level rises by one at most."""
    levels = [int(each.name[1]) for each in critical.find_all(re.compile("^h[1-6]$"))]

    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_policy_stands_first(critical):
    """Nothing on the page is read before the content-security policy."""
    first = critical.head.find(True)

    assert first["http-equiv"] == "Content-Security-Policy"
    assert first["content"] == CSP


def test_a_normal_report_is_small(critical):
    """Nine findings and a picture stay well below 150 KB."""
    assert len(str(critical).encode()) < 150_000


def test_code_is_folded_and_nothing_is_hidden(critical):
    """Inputs are there, closed; outputs are open."""
    folds = critical.select("details.code")

    assert len(folds) == 4
    assert not any(fold.has_attr("open") for fold in folds)
    assert "collect" in said(folds[0])


def test_an_applied_run_says_what_was_done_what_remains_and_what_is_gone():
    """The order of reading after a change: deeds, then what is left, then what it solved; a new one is called so."""
    proposed = plan(action(1), action(2))
    run = record(
        findings=[finding(1), finding(2)],
        remaining=[finding(2), finding(3)],
        proposed=proposed,
        outcomes=[
            outcome(proposed.actions[0]),
            outcome(proposed.actions[1], Status.SKIPPED, "Acknowledged meanwhile."),
        ],
        dry_run=False,
        verdict="critical",
    )

    report = page(executed(), run)

    assert said(report.select_one(".mode")) == "Applied: 1 change made"
    assert [said(each).split(" in the notebook")[0] for each in report.select(".part .title h2")] == [
        "What was done 2",
        "What remains 2",
        "What is gone 1",
        "What was seen, and what was not",
    ]
    assert "Acknowledged meanwhile." in said(report.select_one("#outcomes"))
    assert said(report.select_one("#findings")).count("New since the start.") == 1
    assert uid(1) in said(report.select_one("#gone"))
    assert said(report.select_one(".next code")) == f"ops undo {RUN_ID}"
    assert "remembers a stopped task" not in said(report.select_one(".next"))


@pytest.mark.parametrize("error", [None, {"type": "LockHeld", "message": "Held.", "hint": ""}])
def test_a_command_has_a_report_without_a_notebook(error):
    """None is missed; what comes next is by the run's id alone."""
    run = record(runbook="purge-queue", proposed=plan(action()), error=error)

    report = page(None, run)

    assert not report.select("#notebook")
    assert [said(each) for each in report.select(".next code")] == ([] if error else [f"ops apply {RUN_ID}"])


def test_a_healthy_run_is_called_healthy_by_its_verdict_alone():
    """The empty list of findings claims no more than what was seen."""
    report = page(executed(), record())

    assert said(report.select_one(".verdict")) == "✓ HEALTHY"
    assert said(report.select_one("#findings .ops-empty")) == "No findings in what was seen."


def test_what_was_not_seen_stands_above_the_findings():
    """A partial view is said before what was found in it."""
    silent = {"place": "workers", "seen": 2, "silent": 1, "note": "shop@worker-2 did not answer."}
    report = page(
        executed(), record(coverage=[silent], verdict="unknown", findings=[finding(0, "unknown", "worker-silent")])
    )

    notice, findings = report.select_one(".notice-unknown"), report.select_one("#findings")
    assert "workers : 1 of 3 not seen. shop@worker-2 did not answer." in said(notice)
    assert str(report).index(str(notice)) < str(report).index(str(findings))
    assert said(report.select(".answer")[3]) == "Seen Partly Not all of: workers"


def failed_notebook():
    """Return a notebook that was stopped by an error in its plan."""
    error = new_output(
        "error",
        ename="PlanTooLarge",
        evalue="The plan has 61 actions.\nRead them.",
        traceback=["PlanTooLarge: …", "Hint: Read them."],
    )
    return executed(
        code("facts"),
        code("plan", "plan(…)", error),
        text("verify-head", "## Verify"),
        code("verify", ran=False),
    )


def test_a_failed_run_leads_to_the_cell_that_stopped_it():
    """Message and hint are in a box; the failed cell and those that did not run are marked, in the contents too."""
    error = {"type": "PlanTooLarge", "message": "The plan has 61 actions.", "hint": "Read `ops show` first."}
    report = page(failed_notebook(), record(verdict="failed", exit_code=5, error=error, findings=[finding()]))

    box = report.select_one("#error")
    assert "The plan has 61 actions." in said(box)
    assert said(box.code) == "ops show"
    assert box.a["href"] == "#cell-id=plan"
    assert said(report.select_one("[id='cell-id=plan'] .mark")) == "failed"
    assert said(report.select_one("[id='cell-id=verify'] .mark")) == "not run"
    assert not report.select_one("[id='cell-id=facts'] .mark")
    assert said(report.select_one("li.contents-failed a[href='#cell-id=diagnosis-head']")) == "Diagnosis"
    assert report.select_one("#findings h2").text.startswith("Findings so far")


def test_a_run_without_a_record_is_failed_and_claims_nothing():
    """The kernel died: the page is there, says where, and does not say that nothing was changed."""
    report = page(executed(code("facts", replied=False), code("diagnosis", ran=False)), None)

    head = said(report.select_one("header"))
    assert said(report.select_one(".verdict")) == "⊘ FAILED"
    assert "what was changed is not known" in head
    assert "nothing was changed" not in head
    assert said(report.select_one("[id='cell-id=facts'] .mark")) == "cut off before it ended"
    assert "No findings" not in said(report)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"cells": 3}', b"\xff\xfe", b'{"nbformat": 4, "nbformat_minor": 5}']
)
def test_a_missing_or_broken_notebook_still_makes_a_report(tmp_path, content):
    """The record alone fills the page."""
    path = tmp_path / "runbook.ipynb"
    if content is not None:
        path.write_bytes(content)

    report = page(path, record(findings=[finding()]))

    assert said(report.select_one("h1")) == "stuck-tasks"
    assert uid(0) in said(report)


def test_a_record_of_another_version_still_makes_a_report():
    """Unknown words and missing fields are shown as they are."""
    run = record(
        verdict="splendid",
        exit_code=99,
        coverage=[{}],
        findings=[],
        remaining=[{"severity": "odd", "code": "new-code"}, {}],
        plan={"actions": [{"kind": "fly"}, {}, 3]},
        started_at="yesterday",
    )

    report = page(None, run)

    assert said(report.select_one(".verdict")) == "⊘ FAILED"
    assert "new-code" in said(report)
    assert "fly" in said(report)


def test_the_states_of_cells_come_from_the_stamps():
    """Papermill calls a cut-off cell completed; nbclient's stamps tell what truly happened."""
    error = new_output("error", ename="E", evalue="", traceback=[])
    expected = code("expected", "1/0", error)
    expected.metadata["tags"] = ["raises-exception"]
    skipped = code("skipped", ran=False)
    skipped.metadata["tags"] = ["skip-execution"]
    node = notebook(
        code("done"),
        code("failed", "1/0", error),
        code("cut", replied=False),
        code("never", ran=False),
        code("empty", "", ran=False),
        expected,
        skipped,
    )

    assert cell_states(node) == [
        CellState("done", State.DONE),
        CellState("failed", State.FAILED),
        CellState("cut", State.CUT_OFF),
        CellState("never", State.NOT_RUN),
        CellState("empty", State.DONE),
        CellState("expected", State.DONE),
        CellState("skipped", State.DONE),
    ]


def test_states_that_the_runner_knows_better_are_taken():
    """The caller's states win over the stamps."""
    report = page(executed(code("facts")), record(), cells=[CellState("facts", State.CUT_OFF)])

    assert report.select_one("[id='cell-id=facts'] .mark-cut-off")


def test_parameters_are_a_table_and_their_cells_are_gone():
    """Given values, defaults and meanings are told apart; papermill's own cells and banner are not shown."""
    declared = (
        Parameter(name="stuck_after", type="str", default="3h", help="How long."),
        Parameter(name="queue", type="str", default="", help="Which."),
    )
    cells = [code("p", "stuck_after = 'DEFAULT'"), code("i", "stuck_after = 'INJECTED'"), text("b", "BANNER")]
    for cell, tag in zip(cells, ["parameters", "injected-parameters", "papermill-error-cell-tag"], strict=True):
        cell.metadata["tags"] = [tag]

    report = page(executed(*cells), record(parameters={"stuck_after": "1h"}), declared=declared)

    assert [said(row) for row in report.select("#parameters tbody tr")] == [
        "stuck_after 1h given How long.",
        "queue (empty) default Which.",
    ]
    assert not re.search("DEFAULT|INJECTED|BANNER", str(report))


def test_the_foot_says_what_it_was_made_from(tmp_path):
    """Version, schema, plan and the checksum of the notebook that was executed."""
    path = tmp_path / "runbook.ipynb"
    nbformat.write(executed(), path)

    foot = said(page(path, record(proposed=plan(action()))).select_one("footer"))

    assert re.search(r"opslib \S+ · record schema 1 · plan [0-9a-f]{16} · executed notebook sha256 [0-9a-f]{64}", foot)


def test_a_report_is_written_whole_and_for_its_owner_only(tmp_path):
    """No half page and no reader beside the owner."""
    path = write_report(tmp_path / "report.html", executed(), record())

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().endswith("</html>")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_many_findings_are_counted_folded_and_bounded():
    """A group shows six rows and folds the others; beyond two hundred, the record has them."""
    few, many = (page(None, record(findings=[finding(number) for number in range(count)])) for count in (7, 500))

    assert not few.select("#findings .group details")
    assert said(many.select_one("#findings .group details summary")) == "194 more"
    assert "The first 200 of 500; record.json has them all." in said(many.select_one("#findings"))
    assert len(str(many)) < 150_000


def test_an_endless_output_is_cut():
    """A megabyte of prints does not make a report of a megabyte."""
    node = executed(code("facts", "", new_output("stream", name="stdout", text="a line of prints\n" * 50_000)))

    html = render_report(node, record())

    assert len(html) < 100_000
    assert "810,000 characters are left out here" in html


def test_coverage_that_is_whole_is_one_sentence():
    """Nothing was silent: no table is needed to say so."""
    whole = record(coverage=[{"place": "workers", "seen": 2, "silent": 0, "note": ""}])
    noted = record(coverage=[{"place": "workers", "seen": 2, "silent": 0, "note": "Asked once."}])

    assert (
        said(page(None, whole).select_one("#coverage .ops-empty")) == "Everything that was asked answered: workers 2."
    )
    assert "Asked once." in said(page(None, noted).select_one("#coverage table"))


def test_colours_are_readable_in_both_themes():
    """Every text has the contrast that WCAG AA asks for: 4.5 to 1."""
    style = (TEMPLATES / "report.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("prefers-color-scheme: dark")[:2]
    )

    for theme in (light, {**light, **dark}):
        for word in ("critical", "attention", "unknown", "healthy", "failed"):
            assert contrast("#ffffff", theme[f"{word}-solid"]) >= 4.5
            assert all(
                contrast(theme[f"{word}-ink"], theme[ground]) >= 4.5 for ground in ("page", "sheet", f"{word}-tint")
            )
        assert all(
            contrast(theme[each], theme[ground]) >= 4.5
            for each in ("ink", "quiet", "link")
            for ground in ("page", "sheet", "code")
        )
        assert all(contrast(theme["quiet"], theme[f"{word}-tint"]) >= 4.5 for word in ("critical", "unknown"))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG counts it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Return how bright a colour is, as WCAG counts it."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_unseen_units_are_said_even_where_a_count_is_odd():
    """A coverage row without figures is still a row."""
    assert "workers : 1 of some not seen" in said(page(None, record(coverage=[{"place": "workers", "silent": 1}])))


def test_a_snapshot_with_coverage_shows_it_in_the_notebook_too():
    """The notebook's own tables stand in the page as they were displayed."""
    seen = snapshot(coverage=(Coverage(place="results", seen=0, silent=3, note="No permission."),))

    assert "No permission." in said(
        page(executed(code("facts", "show(before)", *displayed(seen))), record()).select_one("#notebook")
    )
