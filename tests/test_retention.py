"""The most exact rule counts, and nothing that means everything is taken for one."""

from __future__ import annotations

import pytest

from opslib.aging import Brief
from opslib.errors import BadParameter, SettingsError
from opslib.retention import read, rule_of, told

RULES = {"shop.*": "24h", "shop.mail": "1h", "shop.mail.*": "2d"}
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        ("shop.mail", "shop.mail"),
        ("shop.mail.big", "shop.mail.*"),
        ("shop.charge", "shop.*"),
        ("other", "default"),
        ("", "default"),
    ],
)
def test_the_most_exact_rule_counts(task, rule):
    """A name before any glob, a longer glob before a shorter one; and each selection means just its own."""
    found = read(RULES)

    assert found.rules[rule_of(found.rules, task)].name == rule
    assert [only.named(task) for only in found.past(NOW)].count(True) == 1
    assert found.past(NOW)[rule_of(found.rules, task)].named(task)


@pytest.mark.parametrize(("age_s", "meant"), [(86_399.0, False), (86_400.0, True), (86_401.0, True), (None, False)])
def test_what_is_as_old_as_its_retention_is_past_it(age_s, meant):
    """And what is of no known age never."""
    only = read(RULES).past(NOW)[rule_of(read(RULES).rules, "shop.charge")]
    at = None if age_s is None else NOW - age_s

    assert only.fits(Brief("SUCCESS", "shop.charge"), at, lasting=False) is meant


def test_an_age_stands_in_place_of_all_rules():
    """Whatever the task."""
    found = read(RULES, older_than="36h", states=["FAILURE", " FAILURE "])

    assert [(rule.name, rule.keep_s) for rule in found.rules] == [("default", 129_600.0)]
    assert found.states == ("FAILURE",)


@pytest.mark.parametrize(
    "asked", [{"older_than": "0"}, {"older_than": "0s"}, {"older_than": "59s"}, {"task": "*"}, {"task": "**?"}]
)
def test_what_means_everything_wants_a_word_of_its_own(asked):
    """That word is `everything`."""
    with pytest.raises(BadParameter) as refused:
        read(RULES, **asked)

    assert "everything=True" in refused.value.hint
    assert read(RULES, **asked, everything=True).everything


@pytest.mark.parametrize("rules", [{"*": "24h"}, {"?*": "24h"}, {"": "24h"}, {"a": "30s"}, {"a": "24"}, {"a": "soon"}])
def test_a_table_that_cannot_be_followed_is_refused(rules):
    """Before anybody looks at a result."""
    with pytest.raises(SettingsError):
        read(rules)


def test_it_is_told_in_words():
    """With the default that is built in."""
    assert told(read({"a": "24h"}).rules) == "a 1 d, default 12 h"
