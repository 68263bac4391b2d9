"""What is stored is shown in numbers that add up, and hostile names do no harm."""

from __future__ import annotations

from dataclasses import replace

from opslib.facts.stored import KEPT, OPAQUE, PAST, UNDATED, UNKNOWN_AGE, Leftover
from opslib.render import stored as rendered
from opslib.render.display import views
from tests.symptoms.test_weekly_cleanup import group, stored

HOSTILE = '<script>alert("x")</script>\x1b[31m'


def text(*things):
    """Return what is printed of things."""
    return "\n".join(str(thing) for thing in things)


def test_each_result_is_in_one_column_of_its_retention():
    """Past it, within it, or of unknown age; and beside that, whether it ever expires."""
    seen = stored(group(PAST, 5), group(KEPT, 3, lasting=True), group(UNDATED, 2, age=UNKNOWN_AGE), group(OPAQUE, 4))

    default = rendered.retentions(seen).rows[1]

    assert default == ("default", "12 h", 14, 5, "500 Bytes", 3, 2, 3, 0)


def test_all_of_it_is_shown_without_harm():
    """A task's name, a state and a life are whatever somebody wrote."""
    seen = stored(
        group(PAST, task=HOSTILE, state=HOSTILE),
        leftovers=(Leftover(name="replies", count=3, orphaned=2, size_bytes=90), Leftover(name="groups", count=1)),
        strangers=7,
        lives_s=(86_400.0, 86_401.0),
    )

    shown = views(seen)
    html = "".join(thing.html() for thing in shown if hasattr(thing, "html"))

    assert "<script>" not in html + rendered.results_by_age(seen).svg
    assert "\x1b" not in text(*shown)
    assert "7 keys of others, left alone" in text(*shown)
    assert "each was given 1 d to live" in text(*shown)


def test_the_picture_says_what_was_and_what_is():
    """By age; an age of which there is nothing left too."""
    before = stored(group(PAST, 9, age="2 to 7 d"), group(KEPT, 4, age="under 1 h", state="FAILURE"))
    after = replace(before, groups=before.groups[1:])

    alone, both = rendered.results_by_age(before), rendered.results_by_age(before, after)

    assert str(alone) == "Results by age and state: under 1 h 4 (FAILURE 4); 2 to 7 d 9 (SUCCESS 9)."
    assert "2 to 7 d 9 (SUCCESS 9), 0 after" in str(both)
    assert "freed" in str(both)
    assert alone.svg != both.svg
    assert rendered.results_by_age(before, after).svg == both.svg


def test_nothing_has_a_picture_too():
    """And a sentence."""
    assert str(rendered.results_by_age(stored())) == "Results by age and state: none are stored."
    assert "No result is stored." in text(*views(stored()))


def test_what_a_cleanup_changed_is_a_difference():
    """Fewer results, fewer bytes, and fewer that never expire."""
    before = stored(group(PAST, 9), group(KEPT, 4, lasting=True))
    after = replace(before, groups=(replace(before.groups[1], lasting=False),))

    rows = {row[0]: row[1:] for row in rendered.freed(before, after).rows}

    assert rows["Results"] == ("13", "4", "9 fewer")
    assert rows["Bytes of values"][2] == "900 Bytes freed"
    assert rows["Results that never expire"] == ("4", "0", "4 fewer")
    assert rows["Memory of the server"][2] == "the same"
