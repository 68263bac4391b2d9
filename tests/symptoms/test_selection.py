"""A filter means a message for which every one of its conditions holds, at the border as well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opslib.selection import Selection
from tests.support.rows import waiting


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("*", "", True),
        ("*", "shop.charge", True),
        ("shop.*", "shop.charge", True),
        ("shop.*", "shop.", True),
        ("shop.*", "shop", False),
        ("shop.*", "workshop.charge", False),
        ("*.charge", "shop.charge", True),
        ("shop.charge", "shop.charge_card", False),
        ("Shop.*", "shop.charge", False),
        ("shop.charge_?", "shop.charge_1", True),
        ("shop.charge_?", "shop.charge_", False),
        ("shop.[ab]", "shop.b", True),
        ("shop.[!ab]", "shop.b", False),
        ("shop.[a", "shop.[a", True),
        ("[[]red]", "[red]", True),
        ("a.b", "a_b", False),
        ("", "", True),
        ("", "shop.charge", False),
    ],
)
def test_a_name_fits_a_glob_whole_and_by_its_capitals(glob, name, fits):
    """Only the glob's own characters mean something: a dot is a dot."""
    assert Selection(task=glob).fits(waiting(task=name)) is fits


@pytest.mark.parametrize(("wanted", "retries", "fits"), [(0, 0, True), (3, 2, False), (3, 3, True), (3, 4, True)])
def test_so_many_retries_or_more(wanted, retries, fits):
    """At the border it fits."""
    assert Selection(retries=wanted).fits(waiting(retries=retries)) is fits


@pytest.mark.parametrize(
    ("at", "expires_at", "fits"),
    [(100.0, 99.9, True), (100.0, 100.0, True), (100.0, 100.1, False), (100.0, None, False)],
)
def test_expired_by_an_instant(at, expires_at, fits):
    """One that never expires has not."""
    assert Selection(expired_at=at).fits(waiting(expires_at=expires_at)) is fits


def test_whether_it_expires_does_not_matter_unless_it_is_asked():
    """Nor when it did."""
    assert Selection().fits(waiting(expires_at=1.0))
    assert Selection().fits(waiting(expires_at=None))


def test_every_condition_has_to_hold():
    """One that does not is enough."""
    only = Selection(task="shop.*", retries=3, expired_at=100.0)
    good = waiting(task="shop.charge", retries=3, expires_at=100.0)

    assert only.fits(good)
    assert not only.fits(replace(good, task="tests.ok"))
    assert not only.fits(replace(good, retries=2))
    assert not only.fits(replace(good, expires_at=101.0))


@pytest.mark.parametrize(
    ("only", "everything"),
    [
        (Selection(), True),
        (Selection(task="**"), True),
        (Selection(limit=5), True),
        (Selection(task="?*"), True),
        (Selection(task="x"), False),
        (Selection(retries=1), False),
        (Selection(expired_at=0.0), False),
    ],
)
def test_what_leaves_nothing_out(only, everything):
    """A limit says how many, and not which; the beginning of time is an instant."""
    assert only.is_everything is everything


@pytest.mark.parametrize(
    ("only", "words"),
    [
        (Selection(), ""),
        (Selection(task="shop.*"), "of shop.*"),
        (Selection(task="{0}%s"), "of {0}%s"),
        (Selection(retries=3), "retried 3 times or more"),
        (Selection(limit=1_000), "at most 1,000"),
        (Selection(expired_at=10.0), "expired"),
        (Selection(task="a", retries=2, expired_at=10.0, limit=4), "of a, retried 2 times or more, expired, at most 4"),
    ],
)
def test_it_says_what_it_means(only, words):
    """In the words of a sentence."""
    assert only.words() == words


@pytest.mark.parametrize(
    ("now", "words"), [(10.5, "expired"), (11.0, "expired 1.0 s ago"), (3_610.0, "expired 1 h ago")]
)
def test_how_long_ago_an_expiry_was(now, words):
    """From a second on."""
    assert Selection(expired_at=10.0).words(now) == words
