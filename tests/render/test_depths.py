"""The pictures of queues: what waits where and what is to be expected, the same bytes for the same facts, no error."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opslib.facts.rates import Rate
from opslib.facts.system import QueueInfo
from opslib.render import depths as module
from opslib.render import display, tables
from opslib.render.depths import depths, forecast, shade
from opslib.render.pen import ALARM
from tests.render.samples import NODE, snapshot


def queue(name="celery", consumers=(NODE,), **by_priority):
    """Return a queue with so many messages of p0, p3 and so on."""
    steps = {int(step[1:]): count for step, count in by_priority.items()}
    return QueueInfo(name=name, depth=sum(steps.values()), by_priority=steps, consumers=tuple(consumers))


def rate(name="celery", depth=100, arrived=0, served=0, **fields):
    """Return what came and went in six seconds."""
    given = {"before": depth - arrived + served, "watched_s": 6.0, **fields}
    return Rate(queue=name, depth=depth, arrived=arrived, served=served, **given)


def texts(svg):
    """Return what is written in a picture."""
    return ["".join(each.itertext()) for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def drawn(*queues, limit=0, **fields):
    """Return the picture of these queues."""
    return depths(snapshot(queues=queues, **fields), queue_depth=limit)


def bars(svg, colour):
    """Return how wide each bar of that colour is."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*fill: {colour}', svg)
    xs = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", path)] for path in found]
    return [max(each) - min(each) for each in xs if each]


def test_the_same_facts_make_the_same_bytes():
    """No date, no random id: also in another process."""
    script = (
        "from tests.render.test_depths import *; import hashlib;"
        "svgs = drawn(queue(p0=4, p9=2), limit=3).svg + forecast([rate(served=40)]).svg;"
        "print(hashlib.sha256(svgs.encode()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed, "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(runs) == 1


def test_what_is_served_first_is_the_darkest():
    """So the order can be seen without any colour."""
    brightness = [int(shade(priority)[1:3], 16) for priority in range(10)]

    assert brightness == sorted(brightness)
    assert len(set(brightness)) == 10


def test_a_bar_is_as_long_as_what_waits():
    """Its parts stand in proportion, over all queues."""
    svg = drawn(queue(p0=300, p9=100), queue("mail", p0=100)).svg

    first, last = sorted(bars(svg, shade(0)), reverse=True)[:2], bars(svg, shade(9))
    assert first[0] / max(last) == pytest.approx(3, rel=0.1)
    assert first[0] / first[1] == pytest.approx(3, rel=0.1)


def test_the_deepest_queue_stands_first_with_its_figures():
    """Name, total, and each priority where there is more than one."""
    said = texts(drawn(queue("mail", p0=7), queue(p0=1000, p3=240)).svg)

    assert said.index("celery") < said.index("mail")
    assert {"1,240", "7", "0: 1,000, 3: 240"} <= set(said)
    assert "0: 7" not in said


def test_a_queue_that_nobody_consumes_stands_out():
    """In words and in the colour of alarm; with a silent node it cannot be told."""
    alone = drawn(queue("lost", (), p0=5))
    doubtful = drawn(queue("lost", (), p0=5), receivers=2)

    assert "nobody consumes it" in texts(alone.svg)
    assert ALARM in alone.svg
    assert "no consumer seen" in texts(doubtful.svg)
    assert ALARM not in doubtful.svg


@pytest.mark.parametrize(("limit", "shown"), [(0, False), (10, True), (100, True), (101, False), (1, False)])
def test_a_limit_is_drawn_where_it_can_be_seen(limit, shown):
    """Neither in the axis nor beyond the longest bar."""
    assert (f"{limit} may wait" in texts(drawn(queue(p0=100), limit=limit).svg)) is shown


@pytest.mark.parametrize(("number", "rest"), [(12, ""), (13, "1 more queue with 1 message"), (500, "488 more queues")])
def test_many_queues_make_one_page(number, rest):
    """Twelve are drawn, the others are counted."""
    chart = drawn(*(queue(f"q{n:03}", p0=1 + (n < 12)) for n in range(number)))

    assert sum(text.startswith("q0") for text in texts(chart.svg)) == module.MOST
    assert any(text.startswith(rest) for text in texts(chart.svg))
    assert len(chart.svg) < 40_000


def test_nothing_waits_is_said():
    """An empty picture has a sentence in it."""
    assert "Nothing waits." in texts(drawn(queue()).svg)
    assert "Nothing waits, and nothing grows." in texts(forecast([rate(depth=0)]).svg)


def test_the_sentence_says_what_the_picture_shows():
    """For whoever cannot see it."""
    chart = drawn(queue(p0=1000, p9=240), queue("lost", (), p0=5))

    assert chart.alt == (
        "Messages waiting, by queue and priority (0 is served first): celery 1,240 (0: 1,000, 9: 240; 1 consumer); "
        "lost 5 (0: 5; nobody consumes it)."
    )


# Forecast


@pytest.mark.parametrize(
    ("row", "colour", "said"),
    [
        (rate(depth=100, served=50), "#0072b2", "empty in about 12 s"),
        (rate(depth=100, arrived=50), "#d55e00", "never empty: it grows by 500 a minute, to about 30,100 in 1 h"),
        (rate(depth=100, arrived=50, served=50), "#57606a", "neither grew nor drained clearly"),
        (rate(), "#57606a", "it stands still"),
        (rate(watched_s=0.0), "#57606a", "nobody watched how fast it moves"),
    ],
    ids=["drains", "grows", "steady", "still", "unwatched"],
)
def test_a_queue_has_the_colour_and_the_words_of_what_is_to_be_expected(row, colour, said):
    """Only growth is in the colour of warning."""
    chart = forecast([row])

    assert any(said in text for text in texts(chart.svg))
    assert said in chart.alt
    assert colour in chart.svg.lower()
    assert ("#d55e00" in chart.svg.lower()) is row.grows


@pytest.mark.parametrize(
    ("depth", "horizon"), [(390, "1 min"), (410, "5 min"), (2_010, "15 min"), (6_010, "1 h"), (10**6, "1 h")]
)
def test_an_axis_is_as_long_as_it_takes(depth, horizon):
    """600 a minute leave; half as long again has room, an hour is the longest."""
    chart = forecast([rate(depth=depth, served=60)])

    assert f"What to expect within {horizon}" in texts(chart.svg)


def test_a_short_look_has_a_wide_band():
    """The earliest and the latest are said, and "never" where chance could have made all of it."""
    (wide,) = [text for text in texts(forecast([rate(depth=600, arrived=80, served=100)]).svg) if "neither" in text]
    narrow = forecast([rate(depth=600, arrived=0, served=100)]).alt
    never = forecast([rate(depth=600, arrived=10, served=20, before=620)]).alt

    assert wide == "in 6.0 s it neither grew nor drained clearly"
    assert "empty in about 36 s, between 30 s and 45 s" in narrow
    assert "and" in never


def test_a_queue_that_is_empty_and_grows_is_shown():
    """It is the one to look at."""
    assert "mail" in texts(forecast([rate("mail", depth=9, arrived=9, before=0), rate(depth=0)]).svg)


def test_the_table_of_rates_says_what_is_exact_and_what_is_not():
    """Deepest first; a lower bound is called one, and what nobody watched has no figures."""
    rows = [
        rate("slow", depth=1, arrived=1, exact=False),
        rate("quick", depth=9, arrived=3, served=60),
        rate("unseen", depth=2, watched_s=0.0),
    ]

    table = tables.rates(rows)

    assert [row[:4] for row in table.rows] == [
        ("quick", 9, "30", "600"),
        ("unseen", 2, "", ""),
        ("slow", 1, "at least 10", "at least 0"),
    ]
    assert [row[4] for row in table.rows[:2]] == ["empty in about 0.9 s", "not watched"]
    assert table.below() == "Watched for 6.0 s."
    assert [view.title for view in display.views(tuple(rows))] == ["Rates"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.text(max_size=20), *(st.integers(0, 10**12) for _ in range(4)), st.sampled_from([0.0, 1e-9, 5.0])),
        max_size=14,
    ),
    st.integers(0, 10**12),
)
def test_no_value_makes_it_raise(rows, limit):
    """Names of any characters and figures of any size make pictures that are well-formed XML."""
    queues = tuple(QueueInfo(name=name, depth=a + b, by_priority={0: a, 9: b}, consumers=()) for name, a, b, *_ in rows)
    rates = [
        Rate(queue=name, depth=a, before=b, arrived=c, served=d, watched_s=length) for name, a, b, c, d, length in rows
    ]

    for chart in (depths(snapshot(queues=queues), queue_depth=limit), forecast(rates)):
        assert ET.fromstring(chart.svg) is not None
        assert chart.alt


@pytest.mark.parametrize("name", ["$x^2$", "<script>alert(1)</script>", "\x1b[31m", "\u202eevil", "\ud800", "队列 🐇"])
def test_a_hostile_name_is_only_text(name):
    """No mathematics, no markup and no control character comes out of a queue's name."""
    for chart in (drawn(queue(name, p0=3)), forecast([rate(name, served=9)])):
        root = ET.fromstring(chart.svg)
        assert not [each for each in root.iter() if each.tag.endswith(("script", "foreignObject"))]
        assert not re.search("[\x00-\x08\x1b\u202e]", chart.svg)
