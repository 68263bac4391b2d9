"""Two failures with one cause have one signature; what an argument may have brought into the text is not in it."""

from __future__ import annotations

import time

import pytest

from opslib import signatures


@pytest.mark.parametrize(
    ("exception", "signature"),
    [
        ("", ""),
        ("None", ""),
        ("ValueError()", "ValueError"),
        ("KeyError('customer')", "KeyError: customer"),
        ("KeyError: 'customer'", "KeyError: customer"),
        ("KeyError('order-123')", "KeyError: '…'"),
        ("NotRegistered('shop.charge')", "NotRegistered: shop.charge"),
        (
            "ConnectionError('Error 111 connecting to 10.0.0.3:6379. Connection refused.')",
            "ConnectionError: Error <n> connecting to <n>. Connection refused.",
        ),
        (
            "requests.exceptions.HTTPError('404 Client Error: Not Found for url: https://u:p@pay.example.com/o/17?x=1')",
            "HTTPError: 404 Client Error: Not Found for url: https://pay.example.com/…",
        ),
        ("<HTTPError 404: 'Not Found'>", "HTTPError: 404: '…'"),
        ("ApiError(status_code=422, body={'a': 1})", "ApiError: status_code=422, body={'…': <n>}"),
        ("Timeout('order 17 of jane@example.org after 2.5s')", "Timeout: order <n> of <mail> after <n>s"),
        ("Gone('no 7f0c6ff4-0c3e-4c6d-8b70-6c2f1d1f8a55 in 0xdeadbeef')", "Gone: no <id> in <hex>"),
        ("Gone('at deadbeef1234 and decade')", "Gone: at <hex> and decade"),
        ("(psycopg2) something 'quoted' else", "(psycopg2) something '…' else"),
        (
            "OperationalError('could not connect: host \"db-1\"\\n')",
            "OperationalError: could not connect: host '…'",
        ),
    ],
)
def test_what_varies_is_left_out(exception, signature):
    """The type stays, and the text but for numbers, ids, addresses and what stands in quotes."""
    assert signatures.of(exception) == signature


def test_a_signature_is_its_own():
    """Shown again, it stays the same, so that it can be given as a parameter."""
    for exception in ("KeyError('customer')", "Timeout('order 17 failed')", "ValueError()"):
        assert signatures.of(signatures.of(exception)) == signatures.of(exception)


def test_the_type_stands_first():
    """Judgements go by it."""
    assert signatures.kind("KeyError: customer") == "KeyError"
    assert signatures.kind("ValueError") == "ValueError"
    assert signatures.kind("") == ""


@pytest.mark.parametrize("part", ["'", "0", "a", "http ", "a.a@", "a://", "deadbee1", "\\", "(", "1.", "-a", "<a "])
def test_no_text_takes_long(part):
    """However it is made up, and however long it is; what is kept of it is short."""
    begun = time.perf_counter()

    for text in (part * 3_000, f"E('{part * 3_000}')", f"E({part * 3_000}"):
        assert len(signatures.of(text)) <= 200

    assert time.perf_counter() - begun < 0.5
