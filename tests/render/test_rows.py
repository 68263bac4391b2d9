"""Open rows, shown: every class by task and age, the evidence of single ones, and nothing that they were given."""

from __future__ import annotations

from bs4 import BeautifulSoup

from opslib.facts.rows import (
    BEYOND,
    FINISHED,
    LOST,
    UNKNOWN,
    UNKNOWN_AGE,
    ClassCount,
    Classes,
    Sample,
    SeenTable,
    StateNow,
    TaskRow,
)
from opslib.facts.system import StatusCount
from opslib.render import rows
from opslib.render.display import views

SECRET, HOSTILE = "card-4711-secret", "<script>alert(1)</script>\x1b[31m"
NOW, DAY_S = 1_800_000_000.0, 86400.0


def count(kind: str, number: int, *, task: str = "shop.ship", age: str = "1 to 3 d", why: str = "") -> ClassCount:
    """Return rows of one class."""
    return ClassCount(
        table="tasks",
        task=task,
        status="SCHEDULED",
        kind=kind,
        state="",
        age=age,
        why=why or f"It is {kind}.",
        count=number,
        longest_s=2 * DAY_S,
    )


def classes(*counted: ClassCount) -> Classes:
    """Return rows that were sorted."""
    table = SeenTable(name="tasks", table="task_manager_taskmanager", results=False, becomes=(), read=9)
    return Classes(
        at=NOW, database="sqlite:///x", open_for_s=DAY_S, tables=(table,), rows=counted, samples=(), statuses=()
    )


SORTED = classes(
    count(FINISHED, 1_200),
    count(LOST, 3),
    count(UNKNOWN, 66_597, task=HOSTILE, age="over 90 d"),
    count(UNKNOWN, 2, age=UNKNOWN_AGE),
)


def test_each_task_is_a_row_and_each_class_a_column():
    """The one with the most first; classes that nobody is in are left out."""
    table = rows.by_task(SORTED)

    assert [column.title for column in table.columns][3:] == ["Finished but open", "Lost", "Unknown"]
    assert [row[1:] for row in table.rows] == [(66_597, "2 d", 0, 0, 66_597), (1_205, "2 d", 1_200, 3, 2)]


def test_a_hostile_name_is_text():
    """In tables as in the picture."""
    for view in (*views(SORTED), rows.open_rows(SORTED)):
        html = view.svg if hasattr(view, "svg") else view._repr_html_() if hasattr(view, "_repr_html_") else ""

        assert "<script>alert" not in html
        assert "\x1b" not in html


def test_the_picture_says_what_is_in_it():
    """For those who cannot see it: every age that has rows, before and after."""
    alt = rows.open_rows(SORTED, classes(count(LOST, 3))).alt

    assert "1 to 3 d 1,203 (finished but open 1,200, lost 3), 3 after" in alt
    assert "over 90 d 66,597 (unknown 66,597), 0 after" in alt
    assert "age unknown 2 (unknown 2)" in alt
    assert "3 to 7 d" not in alt


def test_nothing_at_all_is_drawn_too():
    """An empty picture says so."""
    assert rows.open_rows(classes()).alt == "Open rows by age and class: there are none."
    assert "No row has been open" in rows.by_task(classes()).text(80)


def test_a_sample_shows_its_evidence_and_no_argument():
    """How large those are; what the application wrote beside is a text like any other."""
    row = TaskRow(
        table="tasks",
        row_id="12345678",
        task_id="87d6f3a5",
        task="shop.ship",
        status="SCHEDULED",
        last_run_at=NOW - DAY_S,
        sighting=BEYOND,
        status_message=HOSTILE,
        attempts=2,
        arguments_bytes=512,
        arguments=SECRET,
    )
    samples = (Sample(row=row, kind=UNKNOWN, evidence="It is nowhere."),)
    text = " ".join(rows.samples(samples).text(300).split())
    page = BeautifulSoup(rows.samples(samples, NOW).html(), "html.parser")

    assert "row 12345678, last run 2027-01-14 08:00:00 UTC; arguments of 512 Bytes, hidden" in text
    assert "SCHEDULED after 2 attempts" in text
    assert "last run 1 d ago" in page.get_text(" ")
    assert page.find("script") is None
    assert SECRET not in repr(row) + text + str(page)


def test_a_status_says_whether_anybody_looks_into_it():
    """Open, over, or neither."""
    found = [
        StatusCount(table="tasks", status=status, standing=standing, count=n)
        for status, standing, n in (("DONE", "closed", 5), ("SCHEDULED", "open", 3), ("PAUSED", "other", 1))
    ]

    assert [row[-1] for row in rows.statuses(found).rows] == ["over", "looked into", "neither open nor over"]


def test_a_state_is_shown_with_what_idle_is():
    """Or with why it cannot be set back."""
    known = {"table": "agent_state", "key": '{"id": 1}', "idle": '{"status": "idle"}'}
    text = rows.states(
        [
            StateNow(name="agent", **known, now='{"status": "busy"}'),
            StateNow(name="ghost", **known, problem="There is no such row."),
        ]
    ).text(120)

    assert "status busy" in text
    assert "There is no such row." in text
