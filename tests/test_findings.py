"""Findings are read worst first, and one word stands over all of them."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opslib.findings import CODES, NOUNS, ORDER, Finding, Severity, Verdict, counted, verdict, worst_first

_FINDINGS = st.builds(
    Finding,
    code=st.sampled_from(sorted(CODES)),
    severity=st.sampled_from(Severity),
    subject=st.text(max_size=3),
    message=st.just("It is so."),
)


def finding(severity: str, code: str = "stuck-active", subject: str = "") -> Finding:
    """Return a finding of which nothing else matters."""
    return Finding(code=code, severity=Severity(severity), subject=subject, message="It is so.")


@pytest.mark.parametrize(
    ("severities", "word"),
    [
        ("", "healthy"),
        ("attention", "attention"),
        ("unknown", "unknown"),
        ("critical", "critical"),
        ("attention unknown", "unknown"),
        ("attention critical", "critical"),
        ("unknown critical", "critical"),
        ("attention unknown critical", "critical"),
    ],
)
def test_the_verdict_is_the_worst_severity(severities, word):
    """Unknown outranks attention, as what was not seen may be worse; critical outranks unknown, as it was seen."""
    for order in permutations(severities.split()):
        assert verdict([finding(each) for each in order]) is Verdict(word)


@given(st.lists(_FINDINGS, max_size=8), _FINDINGS)
def test_one_more_finding_never_makes_a_verdict_better(findings, more):
    """Looking at more can only lower the verdict; and nothing but an empty list is healthy."""
    ranks = [*map(str, ORDER), "healthy"]

    assert ranks.index(verdict([*findings, more])) <= ranks.index(verdict(findings))
    assert (verdict(findings) is Verdict.HEALTHY) == (not findings)


def test_a_code_that_nobody_explains_is_refused():
    """Each code is in the one table that the documentation is checked against."""
    with pytest.raises(ValueError, match=r"'sleepy-worker' is not in findings\.CODES"):
        finding("critical", "sleepy-worker")


def test_findings_stand_worst_first_then_by_code_then_by_subject():
    """The same findings come in the same order, whoever found which first."""
    ordered = [
        finding("critical", "stuck-active", "b"),
        finding("critical", "retry-loop", "a"),
        finding("critical", "retry-loop", "c"),
        finding("unknown", "cannot-see"),
        finding("attention", "stuck-active"),
    ]

    for shuffled in permutations(ordered):
        assert worst_first(shuffled) == ordered


def test_codes_are_counted_as_a_person_counts_them():
    """One is singular, more are plural, thousands have a comma; the order is the one given."""
    codes = ["retry-loop", *["orphaned-unacked"] * 1200, "retry-loop"]

    assert counted(["stuck-active"]) == "1 hung task"
    assert counted(codes) == "2 retry loops, 1,200 orphaned messages"
    assert counted([]) == ""


def test_every_code_has_words_to_count_it_by():
    """A headline never shows a code where a person expects a word."""
    assert NOUNS.keys() == CODES.keys()
    assert all(one and more and one != more for one, more in NOUNS.values())


def test_every_code_is_explained_by_a_sentence():
    """A code is words with hyphens; its sentence ends with a full stop."""
    for code, sentence in CODES.items():
        assert code.replace("-", "").isalpha()
        assert code.islower()
        assert sentence.endswith(".")
