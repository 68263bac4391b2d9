"""The picture and the tables of retried tasks: the same bytes for the same rows, and nothing of theirs is obeyed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from opslib import retries
from opslib.facts.retries import RetryingTask, TaskRetries
from opslib.render.display import views
from opslib.render.retries import LOOP, MOST

ROW = RetryingTask(
    task_id="a", task="shop.charge", retries=3, cap=5, place="scheduled", queue="celery", node="w1@lab", due_in_s=40.0
)
NAME = TaskRetries(
    task="shop.charge",
    count=20,
    rows=20,
    most=41,
    endless=True,
    per_minute=800.4,
    told_by="events",
    errors={"TypeError: x": 19, "KeyError": 1},
    queues=("celery", "slow"),
    next_in_s=0.5,
)


def texts(chart):
    """Return every text of a picture."""
    return ["".join(each.itertext()) for each in ET.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text")]


def test_nothing_retried_is_a_picture_too():
    """It says so, in the picture and beside it."""
    chart = retries([])

    assert "Nothing is being retried." in texts(chart)
    assert chart.alt == "Nothing is being retried."


def test_each_name_says_how_many_and_how_far():
    """The most tasks first; loops are counted apart."""
    rows = [ROW, *(replace(ROW, task_id=f"b{n}", task="shop.pack", cap=None, retries=9 + n) for n in range(3))]

    chart = retries(rows, loop_after=10)

    said = texts(chart)
    assert said.index("shop.pack") < said.index("shop.charge")
    assert "3 tasks, 2 loops, up to 11 retries" in said
    assert "1 task, up to 3 retries of 5" in said
    assert "the next in 40 s" in chart.alt
    assert LOOP.lower() in chart.svg.lower()


@pytest.mark.parametrize("due_in_s", [None, -5.0, 0.0, 0.3, 1.0, 3600.0, 1e12, float("inf"), float("nan")])
def test_any_time_has_its_place(due_in_s):
    """What is late or runs stands under now; what is farther off than a year, at its end."""
    chart = retries([replace(ROW, due_in_s=due_in_s)])

    assert ET.fromstring(chart.svg) is not None
    assert "now" in texts(chart)


def test_a_thousand_at_one_moment_are_a_bar():
    """With its height as a figure; dots would hide each other."""
    chart = retries(replace(ROW, task_id=str(n)) for n in range(1_000))

    assert "1,000 at about this moment" in texts(chart)
    assert len(chart.svg) < 60_000


def test_more_names_than_fit_are_counted():
    """So that the picture stays one page."""
    chart = retries(replace(ROW, task_id=str(n), task=f"t{n:02}") for n in range(MOST + 3))

    assert "3 more names with 3 tasks" in texts(chart)
    assert "3 more names" in chart.alt


def test_the_same_rows_make_the_same_bytes():
    """A picture in a report can be compared."""
    rows = [replace(ROW, task_id=str(n), due_in_s=n * 1.7) for n in range(50)]

    assert retries(rows).svg == retries(rows).svg


def test_a_name_cannot_write_into_the_page():
    """It is text, in the picture and in the tables, however long."""
    name = "<script>alert(1)</script>\x1b[31m" + "x" * 9_000
    hostile = replace(ROW, task=name, task_id=name, queue=name, node=name, error=name)
    chart = retries([hostile])
    tables = [*views((hostile,)), *views((replace(NAME, task=name, errors={name: 1}, queues=(name,)),))]
    page = chart.svg + "".join(table._repr_html_() for table in tables)

    assert "<script" not in page
    assert "\x1b" not in page + chart.alt
    assert len(chart.svg) < 20_000


def test_the_tables_say_it_in_words():
    """By name, and one by one."""
    (by_name,) = views((NAME,))
    (single,) = views((ROW, replace(ROW, task_id="b", cap=None, place="active", due_in_s=None)))

    said, told = by_name.text(160), single.text(160)
    assert all(
        word in said for word in ("no end", "800", "in 0.5 s", "TypeError: x (19); KeyError (1)", "celery, slow")
    )
    assert "≥" not in said
    assert all(word in told for word in ("3 of 5", "in 40 s", "w1@lab", "runs now"))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"per_minute": None, "told_by": ""}, "not watched"),
        ({"per_minute": 4.0, "told_by": "two looks"}, "≥ 4"),
        ({"cap": 3, "endless": False}, "of 3"),
        ({"endless": False}, "end unknown"),
        ({"errors": {}}, "nothing tells"),
        ({"errors": {f"E{n}": 1 for n in range(5)}}, "2 more"),
        ({"next_in_s": None}, "at once"),
    ],
)
def test_what_is_not_known_is_said(fields, word):
    """In place of a figure that would look like one."""
    (table,) = views((replace(NAME, **fields),))

    assert word in table.text(160)
