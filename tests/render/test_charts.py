"""The picture of ages: every task once, at its place, the same bytes for the same facts, and never an error."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opslib.facts.system import QueueInfo
from opslib.render import charts
from opslib.render.charts import ages
from tests.render.samples import NOW, held, message, snapshot, uid

LIMIT_S = 10800.0


def texts(svg: str) -> list[str]:
    """Return what is written in a picture."""
    root = ET.fromstring(svg)
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_same_facts_make_the_same_bytes():
    """No date, no random id: also in another process."""
    script = (
        "from tests.render.samples import *; from opslib.render.charts import ages; import hashlib;"
        "s = snapshot(unacked=tuple(message(n, age_s=20.0 * n) for n in range(40)));"
        "print(hashlib.sha256(ages(s, stuck_after_s=600).svg.encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed, "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]

    assert runs[0] == runs[1]


def test_an_ownerless_task_is_named_and_a_young_running_one_is_not():
    """What nobody holds stands out by name, short id and age; what is in order is a dot."""
    chart = ages(snapshot(unacked=(message(1, age_s=7200),), held=(held(2, age_s=5),)), stuck_after_s=LIMIT_S)

    named = [text for text in texts(chart.svg) if "shop.charge" in text]
    assert named == [f"shop.charge · {uid(1)[:8]} · 2 h"]


@pytest.mark.parametrize(("age_s", "named"), [(LIMIT_S - 1, False), (LIMIT_S, False), (LIMIT_S + 1, True)])
def test_a_running_task_stands_out_beyond_the_limit(age_s, named):
    """Too young, exactly as old as allowed, too old."""
    chart = ages(snapshot(held=(held(1, age_s=age_s),)), stuck_after_s=LIMIT_S)

    assert any(uid(1)[:8] in text for text in texts(chart.svg)) is named


@pytest.mark.parametrize(("eta_s", "named"), [(600, False), (7200, True)])
def test_a_scheduled_task_stands_out_if_its_eta_is_beyond_the_visibility_timeout(eta_s, named):
    """It would be delivered again before it starts."""
    chart = ages(
        snapshot(
            unacked=(message(1, age_s=300),),
            held=(held(1, "scheduled", eta_at=NOW + eta_s),),
            visibility_timeout_s=3600.0,
        ),
        stuck_after_s=LIMIT_S,
    )

    assert any(uid(1)[:8] in text for text in texts(chart.svg)) is named


def test_a_task_is_drawn_once_where_it_is():
    """A message that is unacked because a node runs it is running, not ownerless."""
    chart = ages(snapshot(unacked=(message(1, age_s=9),), held=(held(1, age_s=8),)), stuck_after_s=LIMIT_S)

    assert "1 running" in chart.alt
    assert "held by no node" not in chart.alt


def test_at_most_eight_tasks_are_named_and_the_others_are_counted():
    """A thousand ownerless messages neither fill the page nor hide one stuck task."""
    crowd = tuple(message(number, age_s=100.0 + number) for number in range(1000))
    chart = ages(snapshot(unacked=crowd, held=(held("stuck", age_s=LIMIT_S * 2),)), stuck_after_s=LIMIT_S)

    named = [text for text in texts(chart.svg) if text.startswith("shop.charge")]
    assert len(named) == charts.NAMED
    assert any(uid("stuck")[:8] in text for text in named)
    assert "1,000 tasks, 7 named" in texts(chart.svg)


def test_labels_do_not_collide():
    """Every named task has a line of its own, within the picture."""
    chart = ages(snapshot(unacked=tuple(message(number, age_s=100.0) for number in range(8))), stuck_after_s=LIMIT_S)

    lines = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>shop\.charge', chart.svg)]
    assert len(lines) == 8
    assert min(b - a for a, b in zip(sorted(lines), sorted(lines)[1:], strict=False)) >= 12


def test_five_thousand_tasks_make_a_small_picture():
    """Beyond what can be told apart, tasks are bars: the file does not grow with them."""
    tasks = tuple(message(number, age_s=1.003**number) for number in range(5000))
    chart = ages(
        snapshot(unacked=tasks, held=tuple(held(number, "reserved") for number in range(5000))), stuck_after_s=LIMIT_S
    )

    assert "5,000 reserved" in chart.alt
    assert len(chart.svg) < 60_000


def test_nothing_in_flight_is_said():
    """An empty picture says so, and still says what waits."""
    chart = ages(snapshot(queues=(QueueInfo(name="mail", depth=12, by_priority={0: 12}),)), stuck_after_s=LIMIT_S)

    assert "Nothing is in flight." in texts(chart.svg)
    assert "12 (mail 12); Redis does not record since when" in chart.alt
    assert chart.alt.startswith("Tasks in flight, by age: none.")


def test_both_limits_are_drawn_and_named():
    """The lines that a reader measures by have their figures."""
    said = texts(ages(snapshot(visibility_timeout_s=3600.0), stuck_after_s=LIMIT_S).svg)

    assert "stuck after 3 h" in said
    assert "visibility timeout 1 h" in said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats()), st.one_of(st.none(), st.floats()), st.text(max_size=20)),
        max_size=12,
    ),
    st.floats(),
    st.floats(),
)
def test_no_value_makes_it_raise(rows, stuck_after_s, visibility_s):
    """Ages that are NaN, negative or endless, and names of any characters, make a picture that is well-formed XML."""
    unacked = tuple(message(at, age_s=None, delivered_at=age, task=name) for at, (age, _, name) in enumerate(rows))
    tasks = tuple(
        held(at, place, started_at=age, eta_at=eta, task=name)
        for at, (age, eta, name) in enumerate(rows[::2])
        for place in ("active", "scheduled")
    )

    chart = ages(snapshot(unacked=unacked, held=tasks, visibility_timeout_s=visibility_s), stuck_after_s=stuck_after_s)

    assert ET.fromstring(chart.svg) is not None
    assert chart.alt


@pytest.mark.parametrize(
    "name",
    ["$x^2$", "<script>alert(1)</script>", "a & b", "\x1b[31m", "\u202eevil", "\ud800", "\uffff", "\x00", "队列 🐇"],
)
def test_a_hostile_name_is_only_text(name):
    """No mathematics, no markup and no control character comes out of a task's name."""
    chart = ages(snapshot(unacked=(message(1, age_s=7200, task=name),)), stuck_after_s=LIMIT_S)

    root = ET.fromstring(chart.svg)
    assert not [each for each in root.iter() if each.tag.endswith(("script", "foreignObject"))]
    assert not re.search("[\x00-\x08\x1b\u202e]", chart.svg)


def test_a_chart_is_a_picture_with_a_sentence():
    """A notebook stores the SVG, and the sentence as its text."""
    chart = ages(snapshot(), stuck_after_s=LIMIT_S)

    assert chart._repr_mimebundle_() == {"image/svg+xml": chart.svg, "text/plain": chart.alt}
    assert "date" not in chart.svg.lower()
    assert math.isfinite(len(chart.svg))


def test_a_chart_needs_no_pyplot():
    """Pyplot keeps global state, and costs a fifth of a second more."""
    script = (
        "import sys; from tests.render.samples import snapshot; from opslib.render.charts import ages;"
        "ages(snapshot(), stuck_after_s=60); print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.strip() == "False"


def test_a_scheduled_task_is_named_within_the_picture_wherever_its_line_runs():
    """A line from a few seconds to two hours leaves no room beside it; the text stands above."""
    chart = ages(
        snapshot(
            unacked=(message(1, age_s=7, task="shop." + "x" * 300),), held=(held(1, "scheduled", eta_at=NOW + 7000),)
        ),
        stuck_after_s=3.0,
    )

    label = next(text for text in texts(chart.svg) if uid(1)[:8] in text)
    at = float(re.search(rf'x="([\d.]+)"[^>]*>[^<]*{uid(1)[:8]}', chart.svg)[1])
    assert at >= charts.LEFT
    assert at + len(label) * charts.LETTER <= charts.RIGHT + 1


def test_a_silent_node_may_hold_what_nobody_else_does():
    """With a node that did not answer, a message is not called ownerless."""
    chart = ages(snapshot(unacked=(message(1),), receivers=2), stuck_after_s=LIMIT_S)

    assert "held by none seen" in chart.alt
    assert "held by no node" not in chart.svg
