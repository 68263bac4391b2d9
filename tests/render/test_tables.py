"""Tables say what there is, what there is not, and how much of it is not shown."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bs4 import BeautifulSoup

from opslib import records
from opslib.facts.messages import UnreadableMessage, WaitingMessage
from opslib.facts.system import Coverage, QueueInfo
from opslib.plan import Status
from opslib.render import display, judged, tables, words
from opslib.render.grid import Cell, Column, Table, cells
from tests.render import samples
from tests.render.samples import TAKEN_AT, action, finding, held, message, node, outcome, plan, record, snapshot
from tests.support.seed import KEYS


def soup(table: Table) -> BeautifulSoup:
    """Return a table as it is parsed."""
    return BeautifulSoup(table.html(), "html.parser")


def column(table: Table, title: str) -> list[object]:
    """Return one column as text."""
    at = [each.title for each in table.columns].index(title)
    return [str(row[at]) for row in table.rows]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (judged.findings([]), "No findings in what was seen."),
        (tables.waiting(()), "Nothing waits."),
        (tables.unacked(()), "Nothing is unacknowledged."),
        (tables.held(()), "The nodes that answered hold no task."),
        (tables.nodes(()), "No node answered."),
        (judged.plan(plan()), "Nothing would be done."),
        (judged.outcomes(()), "Nothing was done."),
        (judged.comparison([], []), "No findings before, and none after."),
    ],
)
def test_an_empty_table_is_a_sentence(table, sentence):
    """Where there are no rows there is no frame either, in HTML as in text."""
    assert sentence in table.html()
    assert sentence in str(table)
    assert "<table" not in table.html()


def test_no_findings_is_not_called_healthy():
    """Only a verdict may say healthy: an empty list may come from an empty view."""
    assert "healthy" not in judged.findings([]).html().lower()


@pytest.mark.parametrize(("count", "said"), [(50, None), (51, "1 more"), (1000, "950 more")])
def test_a_long_table_says_how_many_rows_are_not_shown(count, said):
    """Fifty rows are shown; from the fifty-first on a sentence counts the others."""
    table = tables.unacked([message(number) for number in range(count)], taken_at=TAKEN_AT)

    assert len(soup(table).select("tbody tr")) == min(count, 50)
    assert (said in table.html() and said in str(table)) if said else "more" not in table.html()


def test_a_severity_is_a_sign_and_a_word():
    """Colour alone never carries a severity."""
    cell = soup(judged.findings([finding()])).select_one("td.ops-state")

    assert cell.get_text(" ", strip=True) == "✕ critical"
    assert cell.select_one("[aria-hidden=true]").text == "✕"


def test_findings_stand_worst_first_and_unknown_above_attention():
    """What could not be judged may be worse than what only needs attention."""
    rows = [finding(1, "attention"), finding(2, "unknown"), finding(3, "critical")]

    assert column(judged.findings(rows), "Severity") == ["critical", "unknown", "attention"]


def test_numbers_are_aligned_to_the_right_and_columns_have_a_scope():
    """A number column is marked in its head and its cells, and every head has a scope."""
    page = soup(tables.queues([QueueInfo(name="celery", depth=1204, by_priority={0: 1204})]))

    assert page.select_one("td.ops-number").text == "1,204"
    assert all(head["scope"] == "col" for head in page.select("th"))


def test_an_id_is_shown_whole():
    """Ids are there to be copied."""
    assert samples.uid(0) in judged.findings([finding(0)]).html()
    assert samples.uid(0) in judged.findings([finding(0)]).text(60)


def test_ages_are_counted_from_the_snapshot_and_not_from_the_clock():
    """Two looks at the same snapshot show the same age; without a snapshot the instant is shown."""
    assert column(tables.unacked([message(age_s=7500)], taken_at=TAKEN_AT), "Delivered") == ["2 h 5 min ago"]
    assert column(tables.unacked([message(age_s=7500)]), "Delivered") == ["2026-11-21 00:10:00 UTC"]
    assert column(tables.unacked([message(age_s=None)], taken_at=TAKEN_AT), "Delivered") == ["unknown"]


def test_an_unacked_message_names_its_holders_or_that_nobody_answered():
    """The holder is who says so; silence is not called absence."""
    table = tables.unacked([message(1), message(2)], taken_at=TAKEN_AT, held=[held(1)])

    assert set(column(table, "Held by")) == {samples.NODE, "nobody that answered"}


def test_busy_slots_count_the_running_tasks_of_a_node():
    """Reserved tasks take no slot."""
    table = tables.nodes([node()], [held(1), held(2), held(3, "reserved")])

    assert column(table, "Busy") == ["2 of 4 prefork"]


def test_nodes_that_do_not_answer_stand_first():
    """What is missing is read before what is there."""
    assert column(tables.nodes([node("a"), node("z", answered=False)]), "Answer") == ["no answer", "answered"]


def test_partly_seen_places_stand_first():
    """A place with a silent part heads the coverage."""
    table = tables.coverage([Coverage(place="server", seen=1), Coverage(place="workers", seen=2, silent=1)])

    assert column(table, "View") == ["partly", "whole"]


def test_a_comparison_tells_gone_remaining_and_new_apart():
    """A finding is the same one if its code and its subject are."""
    table = judged.comparison([finding(1), finding(2)], [finding(2), finding(3)])

    assert column(table, "Now") == ["new", "remains", "gone"]


def test_outcomes_of_a_record_find_their_action_by_number():
    """A record keeps numbers; the table shows the task, and what failed stands first."""
    proposed = plan(action(1), action(2))
    run = record(
        proposed=proposed, outcomes=[outcome(proposed.actions[0]), outcome(proposed.actions[1], Status.FAILED, "No.")]
    )

    table = judged.outcomes(run.outcomes, words.actions_of(run))

    assert column(table, "Outcome") == ["failed", "applied"]
    assert samples.uid(2) in str(table)


def test_waiting_messages_stand_in_the_order_of_service():
    """Priority first, then the position in the list."""
    fields = {
        name: getattr(message(), name)
        for name in ("eta_at", "expires_at", "sha256", "size_bytes", "retries", "delivery_tag")
    }
    rows = [
        WaitingMessage(
            task_id=str(at),
            task="t",
            queue="q",
            key=KEYS.queue("q", priority),
            priority=priority,
            position=position,
            **fields,
        )
        for at, (priority, position) in enumerate([(3, 1), (4, 0), (0, 5), (0, 2)])
    ]

    assert column(tables.waiting(rows), "Served before it") == ["2", "5", "0", "1"]


def test_a_message_that_nobody_can_decode_is_among_those_that_wait():
    """With why, in its place; it has no task, and no retries."""
    odd = UnreadableMessage(
        place="waiting",
        queue="q",
        key="q",
        position=0,
        delivery_tag="",
        sha256="s",
        size_bytes=9,
        reason="it is not JSON",
    )

    table = tables.waiting([odd])

    assert "(unreadable)" in str(table)
    assert "it is not JSON" in str(table)


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_text_fits_the_terminal_where_its_codes_allow(width):
    """Sentences wrap; no line is wider than the terminal unless an id is."""
    rows = [("a sentence that is much too long for one line of any terminal " * 3, 12)]
    table = Table(title="", columns=(Column("What"), Column("Count", "number")), rows=rows)

    assert max(cells(line) for line in table.text(width).splitlines()) <= width


def test_folded_a_value_of_several_lines_takes_several_and_no_more_width():
    """Names that stand one below the other are not taken for one long name."""
    names = "\n".join(f"shop.task_{n}" for n in range(9))
    table = Table(title="", columns=(Column("What"), Column("Tasks", "code")), rows=[("a sentence of its own", names)])

    lines = table.text(60, fold=True).splitlines()

    assert [line.split()[-1] for line in lines[2:]] == names.split("\n")
    assert lines[2].startswith("a sentence of its own")


def test_a_hash_leaves_the_sentence_beside_it_room():
    """Codes longer than any id are folded before a sentence becomes a ribbon; an id stays on its line."""
    sentence, task_id = "a sentence that is to be read at three in the morning, beside a hash " * 2, "4" * 36
    rows = [(sentence, "0" * 64), (sentence, task_id)]
    table = Table(title="", columns=(Column("What"), Column("Subject", "code")), rows=rows)

    lines = table.text(100, fold=True).splitlines()[2:]

    assert len(lines) < 8
    assert any(task_id in line for line in lines)
    assert max(map(cells, lines)) <= 100


def test_wide_characters_keep_the_columns_straight():
    """A character that takes two columns is counted as two."""
    table = Table(title="", columns=(Column("Name"), Column("Count", "number")), rows=[("队列", 1), ("abcd", 22)])

    first, second = table.text(80).splitlines()[2:]

    assert cells(first) == cells(second)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        ("", "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.5, "0.5"),
        ("a\nb\r\nc", "a b c"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
        pytest.param(10**5000, "a number of more than 4,300 digits", id="huge"),
        ({"a": 1}, '{"a": 1}'),
        ("redis://u:hunter2@h/0", "redis://u:***@h/0"),
    ],
)
def test_any_value_becomes_one_harmless_line(value, shown):
    """No control character, no credential, no second line and no error comes out of a value."""
    assert words.shown(value) == shown


def test_an_endless_value_is_cut_and_says_its_length():
    """A task name of ten kilobytes takes a line, not a page."""
    assert words.shown("x" * 10240).endswith("… (10,240 characters)")
    assert len(words.shown("x" * 10240)) < 450


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "unknown"),
        (float("nan"), "unknown"),
        (float("inf"), "unknown"),
        ("soon", "unknown"),
        (-3600, "in the future"),
        (-1, "0.0 s"),
        (11520, "3 h 12 min"),
        (1e300, "over 100 years"),
    ],
)
def test_odd_ages_are_said_and_not_raised(seconds, said):
    """An age that is none has a word."""
    assert words.age(seconds) == said


def test_evidence_reads_by_the_unit_in_its_name():
    """Seconds are spelled, bytes are sized, instants are dated, lists are joined."""
    facts = {"age_s": 11520, "size_bytes": 2**20, "eta_at": samples.NOW, "nodes": ["a", "b"], "retries": 3}

    assert (
        words.evidence(facts) == "age 3 h 12 min · size 1.0 MiB · eta 2026-11-21 02:15:00 UTC · nodes a, b · retries 3"
    )


def test_a_run_that_died_while_applying_does_not_claim_that_nothing_changed():
    """A draft says dry_run by default; the parameters know better."""
    run = record(verdict="failed", error={"type": "X", "message": "m", "hint": ""}, parameters={"dry_run": False})

    assert words.changes(run)[0] == "Not known"
    assert "nothing was changed" not in words.mode(run)


def test_a_run_that_was_asked_for_what_cannot_be_done_changed_nothing():
    """It ended before the cell that applies; only that is told by its exit code."""
    wrong = {"type": "BadParameter", "message": "do: 'stopp' is none of these.", "hint": ""}
    run = record(verdict="failed", error=wrong, exit_code=2, outcomes=[], parameters={"dry_run": False})

    assert (words.changes(run)[0], words.mode(run)) == ("None made", "Stopped: nothing was changed")


def test_show_prints_where_there_is_no_notebook(capsys):
    """In a script, things are text on stdout; a snapshot shows what it did not see."""
    display.show(
        snapshot(coverage=(Coverage(place="workers", seen=1, silent=2),)), [finding()], plan(action()), record()
    )

    said = capsys.readouterr().out
    assert "Redis 7.2.4" in said
    assert "? partly" in said
    assert "✕ critical" in said
    assert "restore" in said
    assert "✓ HEALTHY" in said


def test_show_of_an_empty_list_means_findings(capsys):
    """Only findings come as lists; an empty tuple makes no claim about findings."""
    display.show([])
    display.show(())

    assert capsys.readouterr().out == "Findings: No findings in what was seen.\n\nNothing of this kind was seen.\n\n"


def test_show_compares_before_and_after(capsys):
    """What was given as before and after becomes one table."""
    display.show([], compare=([finding(1)], []))

    assert "✓ gone" in capsys.readouterr().out


def test_findings_are_drafted_before_they_are_displayed(monkeypatch):
    """What a reader was shown survives a kernel that dies later; an empty list would only wipe it out."""
    seen: list[list[object]] = []
    monkeypatch.setattr(records, "draft", seen.append)

    display.show([finding()], [], plan(action()), (outcome(action()),), ())

    assert [len(each) for each in seen] == [1]


def test_an_old_locale_gets_question_marks_and_no_error():
    """A terminal without Unicode shows the table all the same."""
    imports = "from opslib.render.display import show; from opslib.render.judged import findings"
    script = f"{imports}; show([]); show(findings([]))"
    run = subprocess.run(
        [sys.executable, "-c", f"{script}; show((lambda: '✕')())"],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "?" in run.stdout


def test_tables_cost_no_pandas_matplotlib_or_ipython():
    """A kernel that only shows tables imports none of the three."""
    heavy = "{'pandas', 'matplotlib', 'IPython', 'bs4', 'rich'}"
    script = f"import sys, opslib.render.tables; print({heavy} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.strip() == "set()"


def test_a_cell_with_a_note_has_two_lines():
    """The note is quieter, and stands below."""
    table = Table(title="", columns=(Column("Task", "code"),), rows=[(Cell("shop.charge", "id-1"),)])

    assert table.text(80).splitlines()[-2:] == ["shop.charge", "id-1"]
    assert "<small>id-1</small>" in table.html()


def test_a_dry_run_s_outcomes_are_one_sentence():
    """Nine times "skipped: dry run" says no more than once."""
    outcomes = [outcome(action(number), Status.SKIPPED, "Dry run. Would go back.") for number in range(9)]

    assert str(judged.outcomes(outcomes)).endswith("Dry run: none of the 9 planned actions was carried out.")
    assert len(judged.outcomes([*outcomes, outcome(action(9))]).rows) == 10


def test_a_figure_is_shown_as_a_picture_of_the_report_s_kind():
    """Whoever draws with matplotlib gets the same SVG, without a date in it."""
    from matplotlib.figure import Figure

    (chart,) = display.views(Figure(figsize=(2, 1)))

    assert chart.svg.startswith("<?xml")
    assert chart.alt == "A picture without a description."


def test_in_a_notebook_a_thing_is_displayed_and_not_printed(monkeypatch, capsys):
    """Under IPython a table goes through display, with HTML and text."""
    displayed: list[object] = []
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", displayed.append)

    display.show(plan(action()))

    assert [type(each) for each in displayed] == [Table]
    assert capsys.readouterr().out == ""


def test_counts_in_the_evidence_read_as_counts():
    """A person gets "celery: 1,200" and no JSON."""
    said = words.evidence({"by_priority": {0: 1200, 9: 3}, "tasks": {}})

    assert "0: 1,200, 9: 3" in said
    assert "none" in said
    assert "{" not in said
