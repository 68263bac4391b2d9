"""No credential leaves, in whatever form it stands, and no text drives a terminal."""

from __future__ import annotations

import base64
import json
import traceback
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opslib import redact

PASSWORD = 'gé"h\\e@im/№'
URL = f"redis://ops:{quote(PASSWORD, safe='')}@broker:6379/0"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """What is remembered here is forgotten afterwards."""
    monkeypatch.setattr(redact, "_known", set())


@pytest.mark.parametrize(
    "text",
    [
        "redis://ops:geheim@broker:6379/0",
        "redis://:geheim@broker",
        "rediss://ops:geheim@broker/0?ssl_cert_reqs=none",
        "sentinel://:geheim@one:26379/0;sentinel://:geheim@two:26379/0",
        "db+postgresql://ops:geheim@db/shop",
        "amqp://ops:ge:heim@broker//",
        '{"url": "redis://ops:geheim@broker"}',
        "Error 111 connecting to redis://ops:geheim@broker:6379.",
        "redis://broker/0?password=geheim&db=1",
        "https://host/?token=geheim",
        "unix:///run/redis.sock?PASSWORD=geheim",
    ],
)
def test_what_has_the_shape_of_a_credential_is_masked(text):
    """Nobody has to know a password for it to be masked where a URL shows what it is."""
    masked = redact.text(text)

    assert "heim" not in masked
    assert "***" in masked
    assert redact.text(masked) == masked


@pytest.mark.parametrize(
    "form",
    [
        PASSWORD,
        quote(PASSWORD, safe=""),
        json.dumps(PASSWORD)[1:-1],
        json.dumps(PASSWORD, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(PASSWORD))[3:-3],
        repr(PASSWORD)[1:-1],
        base64.b64encode(PASSWORD.encode()).decode(),
    ],
    ids=["raw", "percent-encoded", "JSON", "JSON in UTF-8", "JSON in JSON", "repr", "base64"],
)
def test_a_remembered_password_is_masked_in_each_of_its_forms(form):
    """Alone, without a URL around it, it is known by what it is."""
    assert form in redact.text(f"before {form} after")

    redact.remember(URL)

    assert redact.text(f"before {form} after") == "before *** after"


def refuse(password: str) -> None:
    """Raise what a careless library raises."""
    raise ConnectionError(f"AUTH {password!r} failed")


def test_a_password_is_masked_in_an_exception():
    """In the message, in its repr and in the traceback, whoever raised it."""
    redact.remember(URL)
    with pytest.raises(ConnectionError) as caught:
        refuse(PASSWORD)
    error = caught.value

    for each in (
        str(error),
        repr(error),
        "".join(traceback.format_exception(error)),
        json.dumps({"said": str(error)}),
    ):
        assert "***" in redact.text(each)
        assert "№" not in redact.text(each)
        assert "2116" not in redact.text(each)


@pytest.mark.parametrize("password", ["ge/heim", "ge?heim", "ge#heim", "ge@heim", "ge:heim", "ge;heim", "ge heim"])
def test_a_password_that_was_not_escaped_is_remembered_and_never_shown(password):
    """What ends a URL for a parser does not end the password for the one who typed it."""
    url = f"redis://ops:{password}@broker:6379/0"
    redact.remember(url)

    assert redact.url(url) == "redis://ops:***@broker:6379/0"
    assert redact.text(f"AUTH {password}") == "AUTH ***"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://broker:6379/0", "redis://broker:6379/0"),
        ("redis://ops@broker/0", "redis://ops@broker/0"),
        ("redis://:geheim@broker/0?ssl_certfile=/x", "redis://:***@broker/0"),
        ("sentinel://:geheim@one/0;sentinel://two/0", "sentinel://:***@one/0;sentinel://two/0"),
        ("rpc://", "rpc://"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_password_and_query(url, shown):
    """Place, user and database stay, so that a person recognises it."""
    assert redact.url(url) == shown


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("redis://broker/0", False),
        ("redis://ops@broker/0", False),
        ("redis://:geheim@broker/0", True),
        ("redis://:ge/heim@broker/0", True),
        ("redis://broker/0?password=geheim", True),
        ("sentinel://one/0;sentinel://:geheim@two/0", True),
        ("redis://[::1", False),
    ],
)
def test_a_url_with_a_password_is_known_as_one(url, answer):
    """It may not stand in a file that is committed, in whichever part it hides."""
    assert redact.has_password(url) is answer


@pytest.mark.parametrize(("password", "masked"), [("abc", False), ("abcd", True)])
def test_a_password_of_three_letters_is_masked_in_urls_alone(password, masked):
    """To mask every `abc` would garble every text; four letters are enough of a secret."""
    redact.remember(f"redis://:{password}@broker")

    assert (redact.text(f"x {password} y") == "x *** y") is masked
    assert password not in redact.text(f"redis://:{password}@broker")


def test_passwords_of_the_environment_are_remembered(monkeypatch):
    """In any variable, alone, in a list or in JSON; bytes that are not UTF-8 do no harm."""
    monkeypatch.setenv("BROKER_URL", "redis://:first-secret@broker")
    monkeypatch.setenv("SEVERAL", "redis://:second-secret@a, redis://:third-secret@b")
    monkeypatch.setenv("DOCUMENT", '{"url": "redis://:fourth-secret@broker", "mail": "ada@example.com"}')
    monkeypatch.setenv("ODD", "redis://:\udcff\udcfe\udcfd\udcfc@broker")
    redact.remember_environment()

    masked = redact.text("first-secret second-secret third-secret fourth-secret mail")

    assert masked == "*** *** *** *** mail"


@given(st.text(min_size=4, alphabet=st.characters(exclude_categories=["Cs"])))
@example("%41%42%43%44")
@example("////")
def test_any_password_is_masked_in_its_url_and_alone(password):
    """Remembered from an escaped URL, it stands in no text afterwards."""
    redact.remember(f"redis://ops:{quote(password, safe='')}@broker/0")

    for text in (
        password,
        json.dumps({"a": password}),
        repr(password),
        f"redis://ops:{quote(password, safe='')}@broker",
    ):
        assert password not in redact.text(f"<{text}>").replace("***", "") or password in '<>{"a": }redis://ops:@broker'


@given(st.text())
def test_a_text_without_a_secret_stays_as_it_is(text):
    """What holds no URL is handed through."""
    if "://" in text or "=" in text:
        return
    assert redact.text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("bell\x07", "bell\\x07"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\x1b]8;;http://evil\x07link", "\\x1b]8;;http://evil\\x07link"),
        ("c1\x9b31m", "c1\\x9b31m"),
        ("nul\0", "nul\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066isolated\u2069", "\\u2066isolated\\u2069"),
        ("\u061cmark", "\\u061cmark"),
        ("line\u2028separator", "line\\u2028separator"),
        ("half \ud800", "half \\ud800"),
        ("tab\tand\nline stay", "tab\tand\nline stay"),
        ("ümläut \U0001f955", "ümläut \U0001f955"),
    ],
)
def test_control_and_direction_characters_become_visible(text, shown):
    """A task's name can neither colour, ring, overwrite nor turn round what is written about it."""
    assert redact.plain(text) == shown


@given(st.text(st.characters()))
def test_what_is_shown_can_be_printed_and_obeys_nobody(text):
    """Any text can be encoded afterwards, and holds no character of the kinds that terminals act upon."""
    shown = redact.plain(text)

    shown.encode()
    assert not {each for each in shown if unicodedata.category(each) == "Cc"} - {"\n", "\t"}
    assert not {
        each
        for each in shown
        if unicodedata.bidirectional(each) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    }
