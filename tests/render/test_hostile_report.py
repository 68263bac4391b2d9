"""Whatever an attacker writes into a task, a queue or an exception, a report of it stays a page that does nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup, Comment
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_output

from opslib import records, redact
from opslib.facts.system import Coverage, QueueInfo
from opslib.kernel import OpsKernelManager
from opslib.plan import Status
from opslib.records import RunRecord
from opslib.render import archive
from opslib.render.charts import ages
from opslib.render.clean import clean
from opslib.render.report import render_report
from tests.render.samples import (
    action,
    code,
    displayed,
    finding,
    held,
    html_output,
    message,
    node,
    notebook,
    outcome,
    plan,
    record,
    snapshot,
    text,
)

SCRIPT = "<script>document.documentElement.dataset.pwned=1</script>"
IMAGE = '<img src=x onerror="document.documentElement.dataset.pwned=1">'
#: Data as it comes in task names, queue names, node names and exception texts.
DATA = [
    SCRIPT,
    IMAGE,
    f"</td></table></code></pre></main>{SCRIPT}",
    f"\"'>{SCRIPT}",
    f"]]>--></style></title></textarea>{IMAGE}",
    "javascript:alert(1)",
    "[link=javascript:alert(1)]click[/link]",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "{{ 7*7 }}{% raw %}",
    "$\\href{javascript:alert(1)}{x}$",
    "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "\x1b[2J\x1b[31mred",
    "\u202egnp.exe",
    "\x00\x07\x85\u2028\ud800\ufffe",
    "=cmd|' /C calc'!A0",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]
#: What a careless cell could display as HTML or Markdown.
MARKUP = [
    SCRIPT,
    IMAGE,
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<iframe src=http://evil.example></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example/>",
    "<form action=http://evil.example><input name=q><button>go</button></form>",
    "<object data=http://evil.example></object><embed src=http://evil.example>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<style>.verdict{display:none} @import url(http://evil.example)</style>",
    "<div style='position:fixed;inset:0;background:url(http://evil.example)' class='verdict head'>HEALTHY</div>",
    "<a href=javascript:alert(1)>x</a><a href=' java\tscript:alert(1)'>y</a><a href=http://evil.example>z</a>",
    "<a href=data:text/html;base64,PHNjcmlwdD4=>x</a>",
    "<img src=http://evil.example/x.png><img src='data:text/html,<script>'><img srcset=http://evil.example>",
    "<video src=http://evil.example autoplay></video><audio src=x onerror=alert(1)>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<table><tr><td onmouseover=alert(1) id=main>x",
    "<!--><script>alert(1)</script>-->",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template><textarea><script>alert(1)</script></textarea>",
    "<title><img src=x onerror=alert(1)></title>",
    "<blink onclick=alert(1)>x</blink><x-y onfocus=alert(1) tabindex=1 autofocus>y</x-y>",
    "<plaintext><xmp><script>alert(1)</script>",
    "</section></main></div></body></html><h1>Healthy</h1>",
    "<![CDATA[<script>alert(1)</script>]]><?php echo 1 ?><!DOCTYPE x>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<p xlink:href=javascript:alert(1) formaction=javascript:alert(1) background=http://evil.example>x</p>",
    "<" * 2000 + "div>" * 2000,
]

ALLOWED_SOURCES = re.compile(r"data:image/(svg\+xml|png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]*")


def assert_inert(html: str) -> BeautifulSoup:
    """Parse a page and look for anything that acts, loads, leads away or poses as the page."""
    page = BeautifulSoup(html, "html.parser")
    first = page.head.find(True)
    assert first.get("http-equiv") == "Content-Security-Policy"
    assert first["content"].startswith("default-src 'none'")
    assert not page.select(
        "script, iframe, object, embed, form, input, button, base, link, video, audio, template, noscript, svg, math"
    )
    assert len(page.select("meta")) == 5
    assert len(page.select("style")) == 1
    assert len(page.select("title")) == 1
    assert len(page.select("h1")) == 1
    assert len(page.select("main")) == 1
    assert len(page.select(".verdict")) == 1
    assert not page.find_all(string=lambda text: isinstance(text, Comment))
    for tag in page.find_all(name=True):
        for name, value in tag.attrs.items():
            assert not name.startswith("on"), (tag.name, name)
            assert name not in {"srcset", "srcdoc", "formaction", "action", "background", "xlink:href", "ping", "data"}
            if name == "href":
                assert value.startswith("#"), value
            if name == "src":
                assert ALLOWED_SOURCES.fullmatch(value), value[:60]
            if name == "style":
                assert not re.search(r"url|position|expression|@|\(", value), value
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    return page


def hostile_run(value: str) -> tuple[nbformat.NotebookNode, RunRecord]:
    """Return a run in which everything that comes from the system says `value`."""
    seen = snapshot(
        target=value,
        unacked=(message(1, age_s=9000, task=value, task_id=value, queue=value),),
        held=(held(2, task=value, node=value, age_s=9),),
        nodes=(node(value, queues=(value,), pool=value),),
        queues=(QueueInfo(name=value, depth=3, by_priority={0: 3}, consumers=(value,), by_task={value: 3}),),
        coverage=(Coverage(place=value, seen=1, silent=1, note=value),),
    )
    findings = [
        finding(subject=value, task=value, message=value, hint=value, evidence={value: value, "exception": [value]})
    ]
    proposed = plan(
        action(subject=value, task=value, source=value, destination=value, node=value, effect=value, terminate=True)
    )
    outcomes = (outcome(proposed.actions[0], Status.FAILED, value),)
    error = new_output("error", ename=value, evalue=value, traceback=[value, value, value])
    cells = [
        text("about", "## Diagnosis"),
        code("facts", f"# {value}\nshow(before)", *displayed(seen, seen.unacked, seen.held)),
        code("picture", "show(ages(before))", *displayed(ages(seen, stuck_after_s=10))),
        code("diagnosis", "show(findings)", *displayed(findings, proposed, outcomes)),
        code(
            "print",
            "print(value)",
            new_output("stream", name="stdout", text=value),
            new_output("stream", name="stderr", text=value),
        ),
        code("repr", "value", new_output("execute_result", data={"text/plain": value}, execution_count=1)),
        code("error", "raise", error),
    ]
    run = record(
        findings=findings,
        proposed=proposed,
        outcomes=outcomes,
        dry_run=False,
        target=value,
        runbook=value,
        operator=value,
        reason=value,
        broker=value,
        parameters={value: value},
        coverage=[{"place": value, "seen": 1, "silent": 1, "note": value}],
        error={"type": value, "message": value, "hint": value},
    )
    return notebook(*cells), run


@pytest.mark.parametrize("value", DATA)
def test_hostile_data_is_only_text(value):
    """Names, ids, evidence, reasons, prints and exceptions cannot be more than text, wherever they stand."""
    page = assert_inert(render_report(*hostile_run(value)))

    assert "{{" not in value or "{{ 7*7 }}" in page.select_one("#findings").get_text()


def assert_index_inert(markup: str) -> None:
    """Look for anything in the archive's page that acts, loads or leads elsewhere."""
    page = BeautifulSoup(markup, "html.parser")
    assert page.head.find(True)["content"].startswith("default-src 'none'")
    assert not page.select("script, iframe, object, embed, form, base, link, img, video, svg, template, [style]")
    assert len(page.select("style")) == len(page.select("h1")) == len(page.select("main")) == 1
    for tag in page.find_all(name=True):
        assert not [name for name in tag.attrs if name.startswith("on") or name in {"src", "srcset", "srcdoc", "ping"}]
        assert re.fullmatch(r"#main|\d{4}/\d\d/\d\d/[0-9A-Za-z/.-]+|", tag.get("href", "")), tag
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|url\\(|@import", markup)


@pytest.mark.parametrize("value", DATA)
def test_hostile_data_is_only_text_in_the_index(tmp_path, value):
    """The page over all runs is made of the same names, reasons and errors."""
    _, run = hostile_run(value)
    run.run_id = "20261121T021500Z-stuck-tasks-7f3a9c"
    folder = tmp_path / "2026/11/21" / run.run_id
    folder.mkdir(parents=True)
    records.write(run, folder / "record.json")

    markup = archive.index(tmp_path).read_text()

    assert_index_inert(markup)
    if value.isprintable() and value.isascii():
        assert value in BeautifulSoup(markup, "html.parser").select_one(".run-headline").get_text()


@pytest.mark.parametrize(
    "value", ["{{ 7*7 }}", "$7*7$", "**49**", "[49](http://x)", "[bold]49[/bold]", "`49`", "<b>49</b>"]
)
def test_no_language_is_read_in_data(value):
    """Neither Jinja nor Markdown nor MathJax nor rich nor HTML: what was written is what is shown."""
    page = assert_inert(render_report(*hostile_run(value)))

    bare = value.replace("`", "")  # only our own sentences are set with it, and it takes nothing but the ticks away
    assert bare in page.select_one("#findings").get_text()
    assert value in page.select_one("[id='cell-id=print'] .stream").get_text()
    assert not page.select("#findings b, #findings strong, #findings a:not(.jump)")


def test_hostile_data_is_still_legible():
    """An engineer has to see what the attacker wrote."""
    page = assert_inert(render_report(*hostile_run(SCRIPT)))

    assert page.select_one("#findings .name").get_text() == SCRIPT
    assert SCRIPT in page.select_one("[id='cell-id=print'] .stream").get_text()


@pytest.mark.parametrize("markup", MARKUP)
@pytest.mark.parametrize("kind", ["html", "markdown output", "markdown cell"])
def test_hostile_markup_is_refused(markup, kind):
    """Where a cell displays markup from outside, it is taken off, and the page around it stays whole."""
    cells = {
        "html": code("x", "HTML(…)", html_output(markup)),
        "markdown output": code("x", "Markdown(…)", new_output("display_data", data={"text/markdown": markup})),
        "markdown cell": text("x", markup),
    }

    page = assert_inert(render_report(notebook(cells[kind], text("after", "After it.")), record()))

    assert "After it." in page.select_one("[id='cell-id=after']").get_text()
    assert page.select_one("[id='cell-id=after']").find_parent("main")
    assert page.select_one("footer").find_parent("main") is None


@pytest.mark.parametrize(
    "markup",
    [
        SCRIPT,
        IMAGE,
        "<iframe></iframe>",
        "<meta charset=x>",
        "<base>",
        "<form></form>",
        "<object></object>",
        "<embed>",
        "<link>",
    ],
)
def test_what_was_refused_is_said(markup):
    """A visible sentence stands where something was taken out."""
    assert "Removed here, because a report does not act" in clean(markup)


@pytest.mark.parametrize(
    "data",
    [
        {"application/javascript": "alert(1)"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}},
        {"text/latex": "$x$"},
        {"application/pdf": "JVBERi0="},
    ],
)
def test_an_output_that_a_report_cannot_show_is_said(data):
    """Scripts, widgets and documents leave a sentence; nothing of them is in the page."""
    page = assert_inert(render_report(notebook(code("x", "", new_output("display_data", data=data))), record()))

    assert (
        f"An output of type {next(iter(data))} is not shown in a report."
        in page.select_one("[id='cell-id=x']").get_text()
    )


def test_harmless_markup_stays():
    """Tables of pandas, prose and pictures that are part of the file keep their shape."""
    pixel = base64.b64encode(b"\x89PNG").decode()
    table = '<table border="1" class="dataframe"><tbody><tr><td style="text-align: right">1</td></tr></tbody></table>'

    cleaned = BeautifulSoup(
        clean(f'{table}<p><b>bold</b> <code>x</code></p><img src="data:image/png;base64,{pixel}" alt="dot">'),
        "html.parser",
    )

    assert cleaned.select_one("table.dataframe td")["style"] == "text-align:right"
    assert cleaned.b.text == "bold"
    assert cleaned.img["alt"] == "dot"
    assert not cleaned.select(".ops-removed")


def test_a_link_in_prose_becomes_its_address():
    """An archive leads nowhere, but the address is there to be read."""
    assert (
        clean('<p>See <a href="https://docs.example/x">the docs</a>.</p>')
        == "<p>See the docs (https://docs.example/x).</p>"
    )


def test_the_address_of_a_link_is_harmless_and_without_its_password():
    """It becomes text, and is treated as any other text."""
    cleaned = clean('<p><a href="https://ada:geheim@docs.example/\x1b[31m\u202ex">docs</a></p>')

    assert cleaned == "<p>docs (https://ada:***@docs.example/\\x1b[31m\\u202ex)</p>"


def test_a_picture_in_markdown_is_never_read_from_the_disk(tmp_path, monkeypatch):
    """A hostile Markdown output cannot take a file of this machine into the report."""
    (tmp_path / "secret.png").write_text("hunter2-of-the-disk")
    monkeypatch.chdir(tmp_path)
    output = new_output("display_data", data={"text/markdown": "![x](secret.png) ![y](attachment:nothing.png)"})

    html = render_report(notebook(code("x", "", output)), record())

    assert_inert(html)
    assert base64.b64encode(b"hunter2-of-the-disk").decode()[:12] not in html


@pytest.fixture
def _forgotten(monkeypatch):
    monkeypatch.setattr(redact, "_known", set())


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("password", ["hunter2!", "p&<\"'>ss", "table", "content", "main", "pä$$wörd"])
def test_no_credential_is_left_and_no_markup_breaks(password):
    """A password is masked wherever it can be read; one that is a word of HTML does not break the page."""
    url = f"redis://ops:{password}@redis:6379/0"
    redact._known.add(password)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><text>{password} {url}</text></svg>'
    foreign = new_output("display_data", data={"image/svg+xml": svg, "text/plain": f"<Figure {password}>"})
    seen = snapshot(unacked=(message(1, age_s=9000, task=f"task {password}"),))
    cells = [
        code(
            "facts",
            f"url = {url!r}",
            *displayed(seen, seen.unacked),
            html_output(f"<p title='{url}'>{url} {password}</p>"),
        ),
        code("picture", "", *displayed(ages(seen, stuck_after_s=10)), foreign),
        code("error", "", new_output("error", ename="E", evalue=f"{url}: {password}", traceback=[url, password, ""])),
        text("prose", f"The password is {password}."),
    ]
    run = record(
        findings=[finding(message=f"Tried {url}", subject=password)],
        broker=url,
        reason=password,
        parameters={"url": url},
    )

    page = assert_inert(render_report(notebook(*cells), run))

    pictures = "".join(base64.b64decode(image["src"].partition(",")[2]).decode() for image in page.select("img"))
    spoken = " ".join(str(tag.get(name, "")) for tag in page.find_all(name=True) for name in ("title", "alt"))
    page.style.decompose()
    for readable in (page.get_text(), spoken, re.sub("<style.*?</style>|<[^>]*>", "", pictures, flags=re.DOTALL)):
        assert password not in readable
    assert "***" in page.select_one("#findings").get_text()


def test_a_kernel_that_shows_hostile_data_makes_an_inert_report(tmp_path):
    """The whole way, with a real kernel: facts are shown, an exception ends the run, and the page does nothing."""
    values = tmp_path / "values.json"
    values.write_text(json.dumps(DATA[:12]))
    cells = [
        code(
            "facts",
            "import json\nfrom opslib import ages, show\nfrom tests.render.samples import *\n"
            f"values = json.load(open({str(values)!r}))\n"
            "seen = snapshot(unacked=tuple(message(n, age_s=9000, task=v, queue=v) for n, v in enumerate(values)))\n"
            "show(seen, seen.unacked, [finding(n, task=v, message=v) for n, v in enumerate(values)], record())\n"
            "show(ages(seen, stuck_after_s=60))\nprint(values)",
            ran=False,
        ),
        code("error", "raise ValueError(values)", ran=False),
        code("after", "print('never')", ran=False),
    ]
    executed = notebook(*cells)
    root = Path(__file__).parents[2]
    client = NotebookClient(
        executed, kernel_manager_class=OpsKernelManager, resources={"metadata": {"path": str(root)}}, timeout=60
    )

    with pytest.raises(CellExecutionError):
        client.execute()
    page = assert_inert(render_report(executed, None))

    assert page.select_one("[id='cell-id=facts'] .group, [id='cell-id=facts'] .ops-table")
    assert page.select_one("[id='cell-id=facts'] img")["alt"].startswith("Tasks in flight")
    assert page.select_one("[id='cell-id=error'] .mark").get_text() == "failed"
    assert page.select_one("[id='cell-id=after'] .mark").get_text() == "not run"
    assert "ValueError" in page.select_one("[id='cell-id=error'] .stopped").get_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_runs_nothing_of_it(tmp_path):
    """Chromium opens the page with every probe in it, and no script has touched it."""
    cells = [
        *(code(f"html-{at}", "", html_output(markup)) for at, markup in enumerate(MARKUP)),
        *(text(f"text-{at}", markup) for at, markup in enumerate([*MARKUP, *DATA])),
    ]
    path = tmp_path / "report.html"
    path.write_text(
        render_report(notebook(*cells), hostile_run(SCRIPT)[1]), encoding="utf-8", errors="backslashreplace"
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]

    run = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    page = BeautifulSoup(run.stdout, "html.parser")
    assert not page.html.has_attr("data-pwned")
    assert page.select_one("footer")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "markup", ["<div>" * 40_000, "<form>" * 30_000, "<b><i>" * 30_000, "<a href=http://x>" * 10_000]
)
def test_deeply_nested_markup_takes_no_time(markup):
    """Nobody can stop a report from being written by nesting."""
    assert isinstance(clean(markup), str)
