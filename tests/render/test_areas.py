"""Tiles say in a word, a sign and a colour how each part is; nothing in them acts, whatever it is called."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from opslib.facts.care import Area
from opslib.render import areas
from opslib.render.clean import clean
from opslib.render.display import views
from opslib.render.terminal import of
from opslib.render.words import SIGNS

STATES = ("fine", "attention", "critical", "not seen", "not judged")
HOSTILE = "<img src=x onerror=alert(1)> redis://:swordfish@h/0 \x1b[31m"


def area(state="fine", **fields):
    """Return a part."""
    return Area(**{"name": "Queues", "state": state, "figure": "12 waiting", "says": "in 2 queues", **fields})


@pytest.mark.parametrize("state", STATES)
def test_state_is_said_in_a_word_with_a_sign(state):
    """Not by colour alone, in HTML and in a terminal."""
    tile = BeautifulSoup(areas.tiles([area(state)]).html(), "html.parser").select_one(".ops-tile")
    text = str(areas.tiles([area(state)]))

    assert state in tile.get_text(" ")
    assert f"ops-tile-{state.replace(' ', '-')}" in tile["class"]
    assert f"{SIGNS[state]} {state}" in text
    assert "12 waiting" in text
    assert f"{SIGNS[state]} {state}" in "".join(cell.plain for cell in of(areas.table([area(state)])).columns[0].cells)


def test_runbook_that_answers_is_named_unless_it_is_this_one():
    """An arrow to it."""
    assert "→ retry-storm" in areas.tiles([area("critical", runbook="retry-storm")]).html()
    assert "→" not in areas.tiles([area("critical", runbook="health-check")]).html()
    assert "→ retry-storm" in str(areas.tiles([area("critical", runbook="retry-storm")]))


def test_what_comes_from_outside_is_text():
    """No tag, no password, no control character; also out of a record that somebody has edited."""
    row = {"name": HOSTILE, "state": HOSTILE, "figure": HOSTILE, "says": HOSTILE, "runbook": HOSTILE}
    html, text = areas.tiles([row]).html(), str(areas.tiles([row]))

    for shown in (html, text):
        assert "swordfish" not in shown
        assert "\x1b" not in shown
    assert "<img" not in html
    assert "ops-tile-not-judged" in html


def test_report_keeps_all_of_it():
    """What cleans a notebook's outputs takes nothing off but the style."""
    html = areas.tiles([area("critical", runbook="retry-storm")]).html()

    assert clean(html) == html.replace(' aria-hidden="true"', "")


def test_show_knows_a_tuple_of_them():
    """As the notebook gives it."""
    (view,) = views((area(), area("critical")))

    assert isinstance(view, areas.Tiles)
    assert view._repr_html_().startswith("<style>")
