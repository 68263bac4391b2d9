"""No credential leaves, in whatever form it stands, and no text drives a terminal."""

from __future__ import annotations

import base64
import html
import json
import re
import traceback
import unicodedata
from urllib.parse import quote, quote_plus

import nbformat
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from opslib import redact, urls

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
        "rediss://broker/0?ssl_password=geheim",
        r'{"url": "redis:\/\/ops:geheim@broker"}',
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
        base64.urlsafe_b64encode(PASSWORD.encode()).decode(),
        re.sub("%..", lambda match: match.group().lower(), quote(PASSWORD, safe="")),
        quote_plus(PASSWORD),
        quote(PASSWORD),
        html.escape(PASSWORD),
        html.escape(PASSWORD, quote=False),
        html.escape(json.dumps(PASSWORD)[1:-1]),
    ],
    ids=[
        "raw",
        "percent-encoded",
        "JSON",
        "JSON in UTF-8",
        "JSON in JSON",
        "repr",
        "base64",
        "base64 for URLs",
        "percent-encoded in small letters",
        "form-encoded",
        "percent-encoded but for slashes",
        "HTML",
        "HTML in an element",
        "JSON in HTML",
    ],
)
def test_a_remembered_password_is_masked_in_each_of_its_forms(form):
    """Alone, without a URL around it, it is known by what it is."""
    assert form in redact.text(f"before {form} after")

    redact.remember(URL)

    assert redact.text(f"before {form} after") == "before *** after"


@pytest.mark.parametrize("around", ["ops:{}", "a{}", "AUTH {} 0", "{}\r\n", '{{"args": ["{}"]}}'])
def test_a_password_within_something_in_base64_is_masked(around):
    """As a message's body holds it, or a header of HTTP, whatever stands around it and wherever it begins."""
    redact.remember("redis://:correct-horse@broker")
    encoded = base64.b64encode(around.format("correct-horse").encode()).decode()

    masked = redact.text(encoded)

    assert "***" in masked
    assert len(encoded) - len(masked.replace("***", "")) >= len("correct-horse") * 8 // 6 - 1


def test_a_password_that_colours_cut_into_pieces_is_masked():
    """A traceback highlights the escapes within a quoted text, and the pieces of it are no password any more."""
    redact.remember(URL)
    coloured = "\x1b[31mAUTH\x1b[0m 'gé\x1b[33m\"\x1b[39mh\x1b[33m\\\\\x1b[39me@im/№'"

    assert redact.text(coloured) == "AUTH '***'"
    assert redact.text("\x1b[31mAUTH\x1b[0m is red") == "\x1b[31mAUTH\x1b[0m is red"


def test_a_password_of_several_lines_is_masked_on_one():
    """What is shown on one line has a space where the line ended."""
    redact.remember("redis://:first%0Asecond@broker")

    assert redact.text("first\nsecond, first second, first%0Asecond, first\\nsecond") == "***, ***, ***, ***"
    assert redact.text("first, second") == "first, second"


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 9,
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-1234567890-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    ],
)
def test_what_services_give_out_as_a_token_is_masked(token):
    """By the shape that its maker gave it; nobody has to have told of it."""
    assert redact.text(f"said {token}, and no") == "said ***, and no"


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


@pytest.mark.parametrize("url", ["redis://:abc@127.0.0.1/0", "redis://h/0?password=ab", "unix://:a%62c@/run/r.sock"])
def test_a_password_too_short_to_mask_is_warned_of(url):
    """Whoever checks the settings is told, without the password; a longer one, or none, is no cause."""
    _, warnings = urls.check(url, "broker_url")

    assert warnings == [
        "broker_url: the password is shorter than 4 characters, so it is masked in URLs and nowhere else."
    ]
    assert urls.check("redis://:abcd@h/0", "broker_url")[1] == urls.check("redis://h/0", "broker_url")[1] == []


def test_what_a_variable_is_called_makes_its_value_a_secret(monkeypatch):
    """A password by itself in a variable with such a name; not the file that holds one, nor a switch."""
    for name, value in {
        "REDISCLI_AUTH": "first-secret",
        "SHOP_DB_PASSWORD": "second-secret",
        "AWS_SECRET_ACCESS_KEY": "third/secret",
        "API_KEY": "fourth-secret",
        "DB_PASSWORD_FILE": "run-secrets-db",
        "PGPASSWORD": "disabled"[:5],
        "TOKEN_PATH": "no-secret-path",
        "SECRET_DIR": "/run/secrets",
    }.items():
        monkeypatch.setenv(name, value)
    redact.remember_environment()

    masked = redact.text("first-secret second-secret third/secret fourth-secret run-secrets-db disab no-secret-path")

    assert masked == "*** *** *** *** run-secrets-db disab no-secret-path"


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
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("unseen\U000e0041tag", "unseen\\U000e0041tag"),
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


# --- documents ---

#: Words of the formats, what needs an escape in them, and what is masked in URLs only.
PASSWORDS = [
    "cell",
    "cells",
    "code",
    "outputs",
    "output_type",
    "source",
    "metadata",
    "stream",
    "stdout",
    "text",
    "text/plain",
    "setup",
    "nbformat",
    "critical",
    "stuck",
    "null",
    "true",
    "1.00",
    '"""""',
    "\\\\\\\\",
    "first\nsecond",
    "a\u2028b\x85c",
    "пароль-№",
    "p%41ss%20w",
    PASSWORD,
]


def executed(password: str) -> nbformat.NotebookNode:
    """Return a notebook that says a password wherever one can be said."""
    url = f"redis://ops:{quote(password, safe='')}@broker/0"
    lines = f"before\n{password}\nafter\n"
    outputs = [
        new_output("stream", name="stdout", text=f"{lines}{lines[:11]}"),
        new_output("stream", name="stderr", text=url),
        new_output("stream", name="stdout", text=lines[11:]),
        new_output("error", ename="AuthError", evalue=password, traceback=["---", *f"at {url}\n{lines}".split("\n")]),
        new_output(
            "display_data",
            data={
                "text/plain": lines,
                "text/html": f"<table><tr><td title='x'>{html.escape(lines)}</td></tr></table>",
                "image/svg+xml": f"<svg><!-- {html.escape(url)} --><text>{html.escape(lines)}</text></svg>",
                "application/json": {"list": [password, url], "text": password},
            },
        ),
        new_output("execute_result", data={"text/plain": repr(password)}, execution_count=2),
    ]
    cells = [
        new_markdown_cell(f"# The source\n\n{url}", id="title"),
        new_code_cell(f"url = {url!r}\npassword = {password!r}", id="setup", outputs=outputs, execution_count=1),
    ]
    cells[1].metadata = {"tags": ["parameters"], "papermill": {"exception": True, "said": lines}}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    made: nbformat.NotebookNode = new_notebook(
        cells=cells, metadata={**kernel, "papermill": {"parameters": {"u": url}}}
    )
    return made


def said(node: nbformat.NotebookNode) -> str:
    """Return every text of a notebook that is none of the format's own words."""
    texts = [node.metadata.papermill.parameters.u]
    for cell in node.cells:
        texts += [cell.source, str(cell.metadata.get("papermill", {}).get("said"))]
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), output.get("evalue", ""), "\n".join(output.get("traceback", []))]
            data = output.get("data", {})
            texts += [data.get("text/plain", ""), *map(str, data.get("application/json", {}).get("list", []))]
            texts += [html.unescape(data.get(kind, "")) for kind in ("text/html", "image/svg+xml")]
    return "\n".join(texts)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_notebook_stays_one_whatever_the_password_is(password):
    """Its cells, outputs and words of the format are as before; what it says is said without the password."""
    redact.remember(f"redis://ops:{quote(password, safe='')}@broker/0")
    before = executed(password)

    after = nbformat.reads(redact.notebook(nbformat.writes(before)), as_version=4)

    nbformat.validate(after)
    assert [(cell.cell_type, cell.id) for cell in after.cells] == [("markdown", "title"), ("code", "setup")]
    assert after.cells[1].metadata.tags == ["parameters"]
    kinds = [output.output_type for output in after.cells[1].outputs]
    assert [kind for kind in kinds if kind != "stream"] == ["error", "display_data", "execute_result"]
    found = re_markup(said(after)) if password.isascii() and password.isalpha() else said(after)
    assert "***" in found
    assert not [form for form in (password, quote(password, safe=""), json.dumps(password)[1:-1]) if form in found]


def re_markup(text: str) -> str:
    """Return a text without the tags that a password may be a word of, and without the words of this test."""
    for word in ("<table>", "</table>", "<text>", "</text>", "The source", "AuthError"):
        text = text.replace(word, "")
    return text


@given(st.text(min_size=4, alphabet=st.characters(exclude_categories=["Cs"])))
@example("execution_count")
@example('": [')
@example("\n   ")
@example("iopub.status.busy")
def test_no_password_damages_a_notebook(password):
    """Whatever it is, and however often the same notebook is masked."""
    redact.remember(f"redis://ops:{quote(password, safe='')}@broker/0")

    once = redact.notebook(nbformat.writes(executed(password)))

    nbformat.validate(nbformat.reads(once, as_version=4))
    assert json.loads(redact.notebook(once)) == json.loads(once)


def test_a_notebook_without_a_secret_stays_as_it_is():
    """To the byte, as papermill hands it over."""
    made = executed("x")
    made.metadata.papermill.parameters.u = made.cells[0].source = made.cells[1].source = "nothing"
    made.cells[1].outputs = [new_output("stream", name="stdout", text="one\ntwo\n\nthree ümläut")]

    assert redact.notebook(nbformat.writes(made)) == nbformat.writes(made)


def test_a_secret_cannot_hide_at_the_end_of_an_output():
    """A kernel may flush in the middle of a word: then the outputs of that stream become one."""
    redact.remember("redis://:geheimnis@broker")
    outputs = [new_output("stream", name="stdout", text=text) for text in ("AUTH gehe", "imnis failed\n")]
    other = new_output("stream", name="stderr", text="in between")

    masked = nbformat.reads(
        redact.notebook(nbformat.writes(new_notebook(cells=[new_code_cell(outputs=[outputs[0], other, outputs[1]])]))),
        as_version=4,
    )

    assert [output.text for output in masked.cells[0].outputs] == ["AUTH *** failed\n", "in between"]


@pytest.mark.parametrize("password", ["verdict", "critical", "status", "applied", "stuck", "2026", "name", "sentence"])
def test_a_document_keeps_its_structure_whatever_the_password_is(password):
    """Fields keep their names, and words and names of ours as their values; the same word in a text is masked."""
    redact.remember(f"redis://:{password}@broker")
    document = {
        "run_id": "20261121T021500Z-stuck-tasks-7f3a9c",
        "runbook": "stuck-tasks",
        "started_at": "2026-11-21T02:15:00Z",
        "verdict": "critical",
        "findings": [{"severity": "critical", "code": "stuck-active", "message": f"a {password} b"}],
        "outcomes": [{"status": "applied", "reason": password}],
    }

    assert redact.values(document) == {
        **document,
        "findings": [{"severity": "critical", "code": "stuck-active", "message": "a *** b"}],
        "outcomes": [{"status": "applied", "reason": "***"}],
    }


def test_a_name_that_somebody_else_gave_is_masked_too():
    """A queue's or a key's name may stand where JSON has a field's, and two that become one stay two."""
    redact.remember("redis://:S3cret-word@broker")
    document = {
        "by_task": {"a.S3cret-word": 1, "a.***": 2, "redis://u:p@h": 3, "shop.charge": 4},
        "status": "x S3cret-word",
    }

    masked = redact.values(document)

    assert masked == {
        "by_task": {"a.***": 1, "a.*** (2)": 2, "redis://u:***@h": 3, "shop.charge": 4},
        "status": "x ***",
    }


def test_a_word_of_ours_in_somebody_elses_field_is_masked():
    """Evidence and parameters are not ours to trust, whatever their fields are called."""
    redact.remember("redis://:correcthorse@broker")

    assert redact.values({"evidence": {"status": "correcthorse"}, "parameters": {"kind": "correcthorse"}}) == {
        "evidence": {"status": "***"},
        "parameters": {"kind": "***"},
    }


@pytest.mark.parametrize("password", ["table", "style", "title", "content", "width"])
def test_markup_keeps_its_tags_whatever_the_password_is(password):
    """Text, comments and what a picture says are masked; tags and styles are not text."""
    redact.remember(f"redis://:{password}@broker")
    page = (
        f'<style>table{{width:1px}}</style><table width="1" title="{password}">'
        f"<!-- {password} --><td>{password}</td></table>"
    )

    assert redact.markup(page) == (
        '<style>table{width:1px}</style><table width="1" title="***"><!-- *** --><td>***</td></table>'
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize("markup", ["<" * 300_000, "<style>" * 60_000, "<!--" * 60_000, "<a title='" * 30_000])
def test_broken_markup_takes_no_time(markup):
    """Nobody can stop a notebook from being written."""
    redact.remember("redis://:geheimnis@broker")

    assert redact.markup(markup) == markup
