"""A secret wherever a deployment can have one → no file, no line and no list of processes with it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
import subprocess
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import pytest
from bs4 import BeautifulSoup, Comment
from nbformat.v4 import new_code_cell, new_notebook, new_output, writes
from redis import Redis

from opslib import redact
from opslib.demo import server
from opslib.embedded.server import Server
from opslib.errors import Exit
from opslib.records import RunRecord
from opslib.render import archive, leaks
from tests import command_line, tiny
from tests.support import seed
from tests.support.workers import DEADLINE_S, Deployment, deployment

RUN_ID = "20261121T021500Z-stuck-tasks-7f3a9c"
SECRET = "correct-horse/42"
#: The password of the server: what a URL, JSON, HTML, a repr and a shell each spell in their own way.
BROKER = 'k4narie/"v\\ogel"@<№>&%2F \'x'
#: Of the result backend, of another service, of a variable, and of the one who gets it wrong.
RESULTS, DATABASE, TOKEN, WRONG = "r3sults-Canary-7", "d4tabase:Canary?8", "t0ken_Canary_9", "wr0ng/Canary=10"
CANARIES = {"broker": BROKER, "results": RESULTS, "database": DATABASE, "token": TOKEN, "wrong": WRONG}

MARKUP = "[red]x[/red][link=http://evil.invalid]y[/link]:boom:[/]"
HOSTILE = f"\x1b]8;;http://evil.invalid\x07\x1b[2J\r\x9b1m\x7f\u202e\u2066\u200b{MARKUP}"
#: What a terminal may be sent: text, and the colours of our own.
DRIVING = re.compile(
    "[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[0-9;]*m)"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and an archive of their own; no password of another test is masked in this one."""
    for name in set(os.environ) - set(command_line.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setattr(redact, "_known", set())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forms(secret: str) -> dict[str, str]:
    """Return the spellings of a secret, each by its name."""
    content, encoded = secret.encode(), quote(secret, safe="")
    middles = {f"base64 behind {before} bytes": middle(content, before) for before in range(3)}
    return {
        "plain": secret,
        "percent-encoded": encoded,
        "percent-encoded in small letters": re.sub("%..", lambda match: match.group().lower(), encoded),
        "form-encoded": quote_plus(secret),
        "JSON": json.dumps(secret)[1:-1],
        "JSON in UTF-8": json.dumps(secret, ensure_ascii=False)[1:-1],
        "JSON in JSON": json.dumps(json.dumps(secret)[1:-1])[1:-1],
        "HTML": html.escape(secret),
        "HTML in an element": html.escape(secret, quote=False),
        "repr": repr(secret)[1:-1],
        "base64": base64.b64encode(content).decode(),
        "base64 for URLs": base64.urlsafe_b64encode(content).decode(),
        **middles,
    }


def middle(content: bytes, before: int) -> str:
    """Return what two texts in base64 share because of the same content at the same place."""
    around = [b"\x00", b"\xff"]
    one, other = (base64.b64encode(each * before + content + each * 3).decode() for each in around)
    same = "".join(mine if mine == theirs else " " for mine, theirs in zip(one, other, strict=True))
    return max(same.split(), key=len)


# --- the search after the mask ---


@dataclass(frozen=True, kw_only=True)
class Run:
    """
    The folder of a run in an archive, as it is once the run has ended.
    """

    root: Path
    folder: Path
    record: RunRecord

    def swept(self) -> list[str]:
        """Search it, and return what is said."""
        return leaks.swept(self.root, self.folder, self.record)

    def write(self, name: str, content: str | bytes) -> Path:
        """Put a file into the folder, whatever stood there."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def names(self) -> set[str]:
        """Return the names of its files."""
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def ended(place: Path) -> Run:
    """A run without a fault, sealed and in the index; one secret is remembered."""
    redact.remember(f"redis://ops:{quote(SECRET, safe='')}@broker/0")
    folder = place / "reports/2026/11/21" / RUN_ID
    folder.mkdir(parents=True)
    record = RunRecord(
        run_id=RUN_ID,
        runbook="stuck-tasks",
        target="prod",
        operator="ada",
        started_at="2026-11-21T02:15:00Z",
        verdict="healthy",
        exit_code=0,
        findings=[{"code": "stuck-active", "severity": "critical", "subject": "x", "message": f"AUTH {SECRET}"}],
    )
    run = Run(root=place / "reports", folder=folder, record=record)
    cell = new_code_cell("1", outputs=[new_output("stream", text="nothing is wrong\n")], id="facts")
    run.write("runbook.ipynb", redact.notebook(writes(new_notebook(cells=[cell]))))
    leaks.records.write(record, folder / "record.json")
    assert archive.keep(run.root, folder, record)
    return run


def test_a_clean_run_stays_as_it_is(ended: Run) -> None:
    """Nothing is said, nothing is written, and the seal holds."""
    before = {path: path.read_bytes() for path in ended.root.rglob("*") if path.is_file()}

    assert ended.swept() == []
    assert {path: path.read_bytes() for path in ended.root.rglob("*") if path.is_file()} == before
    assert (ended.record.verdict, ended.record.exit_code, ended.record.error) == ("healthy", 0, None)


@pytest.mark.parametrize("form", list(forms(SECRET)))
@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("notes.txt", "before {} after"),
        ("plan.json", '{{"a": ["before {} after"]}}'),
        ("more.jsonl", '{{"a": 1}}\n{{"a": "before {} after"}}\n'),
        ("page.html", "<p>before {} after</p>"),
        ("undo.jsonl.gz", '{{"a": "before {} after"}}\n'),
    ],
)
def test_what_holds_a_credential_is_removed_and_said(ended: Run, name: str, around: str, form: str) -> None:
    """In whatever form and file, named without the secret; the record fails, and what is left is sealed."""
    content = around.format(forms(SECRET)[form]).encode()
    path = ended.write(name, gzip.compress(content) if name.endswith(".gz") else content)

    (sentence,) = ended.swept()

    assert sentence == f"2026/11/21/{RUN_ID}/{name} held a credential and was removed."
    assert not path.exists()
    assert archive.verify(ended.folder) == []
    record = leaks.records.read(ended.folder / "record.json")
    assert (
        (record.verdict, record.exit_code) == ("failed", Exit.FAILED) == (ended.record.verdict, ended.record.exit_code)
    )
    assert record.error
    assert record.error["type"] == "CredentialFound"
    assert sentence in record.error["message"]
    assert record.findings[0]["message"] == "AUTH ***"
    assert sentence in BeautifulSoup((ended.folder / "report.html").read_text(), "html.parser").get_text()
    assert "held a credential" in (ended.root / "index.jsonl").read_text()
    assert not any(
        each in file.read_text()
        for file in ended.root.rglob("*.*")
        if file.is_file()
        for each in forms(SECRET).values()
    )


@pytest.mark.parametrize("url", ["redis://:unknown-secret@h/0", "amqp://u:p@h//", "https://h/?token=unknown"])
def test_what_has_the_shape_of_a_credential_is_found_too(ended: Run, url: str) -> None:
    """Nobody has to have told of it."""
    ended.write("notes.txt", url)

    assert len(ended.swept()) == 1
    assert "notes.txt" not in ended.names()


def test_a_secret_cut_into_pieces_is_found(ended: Run) -> None:
    """By the tags of a page, the lines of a notebook and its outputs, and in a picture that is part of a page."""
    redact.remember("redis://:first%0Asecond@broker")
    picture = base64.b64encode(f"<svg><text>{SECRET}</text></svg>".encode()).decode()
    cell = new_code_cell(
        outputs=[
            new_output("stream", name="stdout", text=f"AUTH {SECRET[:5]}"),
            new_output("stream", name="stdout", text=SECRET[5:]),
        ]
    )
    files = {
        "tags.html": f"<p>{SECRET[:4]}<span>{SECRET[4:6]}</span><b>{SECRET[6:]}</b></p>",
        "title.html": f"<p title='AUTH {SECRET}'>x</p>",
        "picture.html": f'<img src="data:image/svg+xml;base64,{picture}">',
        "comment.html": f"<!-- {SECRET} -->",
        "outputs.ipynb": writes(new_notebook(cells=[cell])),
        "lines.ipynb": writes(new_notebook(cells=[new_code_cell("# first\n# no\nfirst\nsecond")])),
        "half.ipynb": f'{{"cells": [{{"source": "{SECRET}',
        "half.gz": gzip.compress(SECRET.encode() * 9)[:-9],
    }
    for name, content in files.items():
        ended.write(name, content)

    said = ended.swept()

    assert not ended.names() & files.keys()
    assert len(said) == len(files)


@pytest.mark.parametrize(
    "password", ["cell", "source", "table", "style", "verdict", "healthy", "2026", "true", "stuck"]
)
def test_a_word_of_the_formats_is_no_leak(ended: Run, password: str) -> None:
    """A password such as "table" stands in every page, and no run may end because of it."""
    redact.remember(f"redis://:{password}@broker")
    leaks.records.write(ended.record, ended.folder / "record.json")
    assert archive.keep(ended.root, ended.folder, ended.record)
    (ended.root / "index.jsonl").unlink()
    ended.write("runbook.ipynb", redact.notebook((ended.folder / "runbook.ipynb").read_text()))

    assert [path.name for path in ended.folder.iterdir() if leaks.holds(path)] == []
    assert not leaks.holds(ended.root / "index.html")
    ended.write("notes.txt", f"the password is {password}")
    assert leaks.holds(ended.folder / "notes.txt")


def test_a_credential_in_the_record_leaves_a_record_that_says_so(ended: Run) -> None:
    """It is written anew through the mask, and so are the report and the index."""
    (ended.folder / "record.json").write_text(f'{{"reason": "AUTH {SECRET}"}}')
    (ended.folder / "report.html").write_text(f"<p>AUTH {SECRET}</p>")

    said = ended.swept()

    assert [sentence.split(" ")[0].rpartition("/")[2] for sentence in said] == ["record.json", "report.html"]
    assert ended.names() == {"record.json", "report.html", "manifest.sha256", "runbook.ipynb"}
    assert leaks.records.read(ended.folder / "record.json").error
    assert ended.swept() == []


def test_only_copy_of_a_message_is_kept_and_said(ended: Run) -> None:
    """Nothing of a broker may be lost for the sake of a password; a URL of somebody else's is part of a message."""
    ended.write("vault.jsonl.gz", gzip.compress(b'{"body": "https://u:p@partner.example"}'))
    assert ended.swept() == []
    body = base64.b64encode(json.dumps([["AUTH", SECRET]]).encode()).decode()
    vault = ended.write("vault.jsonl.gz", gzip.compress(json.dumps({"body": body}).encode()))

    (sentence,) = ended.swept()

    assert sentence.endswith(
        "vault.jsonl.gz holds a credential; it stays, because the run is finished or undone with it."
    )
    assert vault.exists()
    assert ended.record.exit_code == Exit.FAILED
    assert archive.verify(ended.folder) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_plan_of_a_run_that_changed_something_is_kept(ended: Run, dry_run: bool) -> None:
    """Without it an interrupted run could not be finished; that of a dry run is made again by the next one."""
    ended.record.dry_run = dry_run
    plan = ended.write("plan.json", json.dumps({"actions": [{"subject": SECRET}]}))

    (sentence,) = ended.swept()

    assert ("it stays" in sentence, plan.exists()) == (not dry_run, not dry_run)
    assert ended.record.exit_code == Exit.FAILED


def test_a_line_of_the_audit_is_reported_and_stays(ended: Run) -> None:
    """Its lines are chained; and only those of this run are this run's fault."""
    lines = [{"run_id": run_id, "event": "intent", "why": f"AUTH {SECRET}"} for run_id in ("another", RUN_ID)]
    audit = ended.root / "audit.jsonl"
    audit.write_text(json.dumps(lines[0]) + "\n")
    assert ended.swept() == []
    audit.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    assert ended.swept() == [
        "audit.jsonl holds a credential in a line of this run; it stays, because its lines are chained."
    ]
    assert len(audit.read_text().splitlines()) == 2
    assert ended.record.exit_code == Exit.FAILED


def test_an_index_with_a_credential_is_removed_and_made_anew(ended: Run) -> None:
    """It is made of the records of all runs."""
    with (ended.root / "index.jsonl").open("a") as index:
        index.write(json.dumps({"headline": f"AUTH {SECRET}"}) + "\n")

    assert ended.swept() == ["index.jsonl held a credential and was removed."]
    assert SECRET not in (ended.root / "index.jsonl").read_text()
    assert ended.record.exit_code == Exit.FAILED


def test_what_cannot_be_removed_or_read_is_said(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that did not take place is no clean one."""
    path = ended.write("notes.txt", SECRET)
    monkeypatch.setattr(
        Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert ended.swept()[0].endswith("notes.txt holds a credential and could not be removed: Permission denied.")
    assert ended.record.exit_code == Exit.FAILED
    monkeypatch.undo()
    path.unlink()
    opened = Path.open

    def refusing(self: Path, *args: object, **options: object) -> object:
        if self.name == "record.json" and args == ("rb",):
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refusing)
    assert ended.swept()[0].endswith("record.json could not be searched for credentials: Permission denied.")


def test_a_link_is_not_followed(ended: Run, place: Path) -> None:
    """What it leads to is nobody's artefact."""
    (place / "elsewhere.txt").write_text(SECRET)
    (ended.folder / "link.txt").symlink_to(place / "elsewhere.txt")

    assert ended.swept() == []
    assert (place / "elsewhere.txt").exists()


@pytest.mark.parametrize("at", [0, 1024 * 1024 - 7, 40 * 1024 * 1024 - 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_large_file_is_searched_in_little_memory(ended: Run, at: int, compressed: bool) -> None:
    """Wherever it stands, on the border of two windows too, and however much is packed into a small file."""
    path = ended.folder / ("large.txt.gz" if compressed else "large.txt")
    with gzip.open(path, "wb", compresslevel=1) if compressed else path.open("wb") as file:
        block = (b"message " * 8192)[: 64 * 1024]
        for _ in range(at // len(block)):
            file.write(block)
        file.write(block[: at % len(block)] + SECRET.encode())
    tracemalloc.start()
    try:
        assert leaks.holds(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_run_that_leaks_fails_and_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: a cell writes a URL into the archive, and neither the file nor the URL is there afterwards."""
    source = (
        "import os, pathlib\nfrom opslib import records\n"
        "folder = pathlib.Path(records.context().record).parent\n"
        "(folder / 'notes.txt').write_text(os.environ['OPS_BROKER_URL'])"
    )
    tiny.runbook(place / "runbooks", "leaky", source, tiny.CONCLUDE)
    monkeypatch.setenv("OPS_RUNBOOKS", str(place / "runbooks"))
    env = {**os.environ, "OPS_BROKER_URL": f"redis://:{quote(SECRET, safe='')}@127.0.0.1:1/0"}

    done = command_line.ops("run", "leaky", "-q", "-p", "target=x", "--json", env=env, cwd=place)

    assert done.code == Exit.FAILED
    assert re.fullmatch(r"2026/.*/notes\.txt held a credential and was removed\.\n".replace("2026", r"\d{4}"), done.err)
    assert json.loads(done.out)["error"]["type"] == "CredentialFound"
    assert not list((place / "reports").rglob("notes.txt"))
    found = [path for path in (place / "reports").rglob("*") if path.is_file() and SECRET[-5:] in path.read_text()]
    assert found == []


# --- the canaries ---


@dataclass(frozen=True, kw_only=True)
class Printed:
    """
    What a command left behind besides files.

    Attributes:
        arguments: Of every process that it started, itself included.
    """

    code: int
    out: str
    err: str
    arguments: frozenset[str]


def watched(*words: str, env: Mapping[str, str], place: Path) -> Printed:
    """Run `ops` and look at the list of processes as long as it runs."""
    with (place / "out.txt").open("w+") as out, (place / "err.txt").open("w+") as err:
        process = subprocess.Popen(
            [command_line.OPS, *words], env=dict(env), cwd=place, stdout=out, stderr=err, stdin=subprocess.DEVNULL
        )
        seen: set[str] = set()
        deadline = time.monotonic() + DEADLINE_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                ours = psutil.Process(process.pid)
                seen |= {" ".join(each.cmdline()) for each in (ours, *ours.children(recursive=True))}
            except psutil.Error:
                continue
            time.sleep(0.02)
        process.kill()
        code = process.wait()
        out.seek(0)
        err.seek(0)
        return Printed(code=code, out=out.read(), err=err.read(), arguments=frozenset(seen))


def sightings(name: str, text: str) -> list[tuple[str, str, str]]:
    """Return which canary is in a text, and in which form: by where it is."""
    return [
        (name, whose, form)
        for whose, secret in CANARIES.items()
        for form, spelled in forms(secret).items()
        if spelled in text
    ]


def readings(path: Path) -> Iterator[str]:
    """Return a file's text as it is, and as those read it who know its format."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8", "replace")
    yield text
    if path.suffix in {".json", ".ipynb", ".jsonl"}:
        documents = text.splitlines() if path.suffix == ".jsonl" else [text]
        for document in documents:
            yield from _strings(json.loads(document))
    if path.suffix == ".html":
        page = BeautifulSoup(text, "html.parser")
        yield page.get_text()
        for tag in page.find_all(name=True):
            yield from map(str, tag.attrs.values())
        for image in page.select("img[src^='data:image/svg']"):
            yield html.unescape(base64.b64decode(image["src"].partition(",")[2]).decode())


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        if value and all(isinstance(each, str) for each in value):
            yield "".join(value)
        for each in value:
            yield from _strings(each)


@pytest.fixture(scope="module")
def haunted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with a secret in everything that a secret can be in."""
    folder = tmp_path_factory.mktemp("haunted")
    with server.start(folder, password=BROKER) as running, deployment(running, folder) as system:
        system.worker(name=f"{RESULTS}@shop")
        redis = system.redis
        redis.execute_command("ACL", "SETUSER", "results", "on", f">{RESULTS}", "~*", "&*", "+@all")
        _seeded(redis, running)
        with Redis.from_url(running.url, client_name=f"app-{TOKEN}") as app:
            app.ping()  # CLIENT LIST shows its name for as long as it is connected
            yield system


def _seeded(redis: Redis, running: Server) -> None:
    said = {
        "argsrepr": repr((BROKER, running.url)),
        "kwargsrepr": json.dumps(json.dumps({"url": running.url, "password": BROKER})),
        "origin": base64.b64encode(f"gen1@ops:{BROKER}".encode()).decode(),
        "shadow": html.escape(BROKER),
        "group": quote(DATABASE, safe="").lower(),
        "retries": 50,
    }
    queue = f"q-{RESULTS}"
    seed.bind(redis, f"x-{TOKEN}", queue, routing_key=quote(DATABASE, safe=""))
    seed.bind(redis, "celery.pidbox", f"gone-{TOKEN}@shop.celery.pidbox")
    args = [BROKER, running.url, {"nested": TOKEN}]
    seed.seed_waiting(redis, f"shop.{TOKEN}.charge", queue=queue, args=args, eta=seed.iso(90_000), **said)
    for number, age_s in enumerate((9000.0, 90_000.0)):
        task_id = f"order-{DATABASE}-{number}"
        seed.seed_unacked(
            redis, f"shop.{TOKEN}.pay", task_id=task_id, queue=queue, exchange="", age_s=age_s, args=args, **said
        )
        failure = {"exc_type": "AuthError", "exc_message": [f"AUTH {BROKER}"], "exc_module": TOKEN, "hostname": RESULTS}
        seed.seed_result(redis, "STARTED", task_id=task_id, result=failure, traceback=f"at {running.url}\n{BROKER}")
    redis.lpush("celery-broken", f"no message: {BROKER} {running.url} {RESULTS}")
    seed.bind(redis, "", "celery-broken")
    redis.set(f"app:{TOKEN}:{BROKER}", BROKER)


@pytest.fixture
def env(haunted: Deployment) -> dict[str, str]:
    """The environment of somebody on call: four secrets, and a name that quotes one."""
    port = haunted.server.port
    return {
        **os.environ,
        "OPS_BROKER_URL": haunted.server.url,
        "OPS_RESULT_BACKEND": f"redis://results:{RESULTS}@127.0.0.1:{port}/0",
        "DATABASE_URL": f"postgresql://shop:{quote(DATABASE, safe='')}@db.invalid/shop",
        "SHOP_API_TOKEN": TOKEN,
        "OPS_OPERATOR": f"ada {haunted.server.url} {TOKEN}",
    }


def test_no_canary_gets_out(haunted: Deployment, env: dict[str, str], place: Path) -> None:
    """Three runs, dry, applied and refused by the server: no form of five secrets in any file, line or argument."""
    settle = ["-p", "settle=0.1s"]
    dry = watched("run", "stuck-tasks", *settle, env=env, place=place)
    applied = watched("run", "stuck-tasks", *settle, "--apply", "--yes", "-o", "json", env=env, place=place)
    wrong = f"redis://:{quote(WRONG, safe='')}@127.0.0.1:{haunted.server.port}/0"
    refused = watched("run", "stuck-tasks", env={**env, "OPS_BROKER_URL": wrong}, place=place)

    assert (refused.code, "refused the credentials" in refused.out) == (Exit.CANNOT_SEE, True)
    # A plan names tasks and queues as they are, so it cannot be masked: it is removed, or it stays and that is said.
    assert dry.code in {Exit.ATTENTION, Exit.CANNOT_SEE} or "plan.json held a credential and was removed" in dry.err
    assert "applied" in {row["status"] for row in json.loads(applied.out)["outcomes"]}
    stays = {line.split(" holds a credential; it stays")[0] for line in applied.err.splitlines()}
    assert {name.rpartition("/")[2] for name in stays if name.startswith("2")} <= {"plan.json"}
    archived = [path for path in (place / "reports").rglob("*") if path.is_file()]
    files = [path for path in archived if path.relative_to(place / "reports").as_posix() not in stays]
    names = {path.name for path in files}
    assert names >= {"report.html", "runbook.ipynb", "record.json", "manifest.sha256", "index.html", "audit.jsonl"}
    assert len([path for path in files if path.name == "report.html"]) == 3
    found = [seen for path in files for text in readings(path) for seen in sightings(path.name, text)]
    found += [seen for path in files for seen in sightings("a path", str(path))]
    for which, run in (("dry", dry), ("applied", applied), ("refused", refused)):
        assert any("ipykernel" in each for each in run.arguments)
        found += sightings(f"stdout of {which}", run.out) + sightings(f"stderr of {which}", run.err)
        found += [seen for each in run.arguments for seen in sightings(f"ps of {which}", each)]
    found += [seen for text in _strings(json.loads(applied.out)) for seen in sightings("JSON on stdout", text)]
    assert found == []
    assert "***" in dry.out
    for path in files:
        if path.suffix == ".html":
            assert_inert(path.read_text())


@pytest.mark.parametrize(
    "words",
    [
        ["queues"],
        ["workers"],
        ["tasks", "--state", "unacked"],
        ["tasks", "--state", "retrying"],
        ["tasks", "--state", "stuck"],
        ["find", f"order-{DATABASE}-0"],
        ["task", "status", f"order-{DATABASE}-0"],
        ["config", "show"],
        ["config", "check"],
    ],
    ids=" ".join,
)
def test_no_canary_is_printed(
    haunted: Deployment, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """By no command that looks, in no form of its output."""
    assert haunted
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for form in ("table", "json") if "stuck" in words else ("table", "json", "jsonl", "ids"):
        done = command_line.call(*words, "-o", form)

        assert "defect" not in done.err
        assert sightings(form, done.out + done.err) == []
        if form == "json":
            assert [seen for text in _strings(json.loads(done.out)) for seen in sightings(form, text)] == []


def assert_inert(markup: str) -> None:
    """Make sure that a page runs nothing, loads nothing and leads nowhere but to its own archive."""
    page = BeautifulSoup(markup, "html.parser")
    assert page.head.find(True)["content"].startswith("default-src 'none'")
    assert not page.select("script, iframe, object, embed, form, base, link, video, audio, template, svg, math")
    assert not page.find_all(string=lambda text: isinstance(text, Comment))
    for tag in page.find_all(name=True):
        for name, value in tag.attrs.items():
            assert not name.startswith("on"), (tag.name, name)
            text = " ".join(value) if isinstance(value, list) else value
            if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "style"}:
                assert not re.match(r"\s*(?!data:image/)[a-z][a-z0-9+.\-]*:|\s*//", text, re.IGNORECASE), (name, text)
                assert "url(" not in text
    assert not re.search(r"url\(|@import|expression\(", page.style.get_text())


# --- names that attack a terminal ---


class TestNamesOnATerminal:
    """What is in a broker cannot drive, colour, link or turn round what a terminal shows."""

    @pytest.fixture(autouse=True)
    def hostile(self, redis: Redis, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broker in which every name is an attack, on the terminal and on the library that draws tables."""
        monkeypatch.setenv("OPS_BROKER_URL", server.url)
        seed.bind(redis, f"x{HOSTILE}", f"q{HOSTILE}")
        seed.bind(redis, "celery.pidbox", f"node{HOSTILE}.celery.pidbox")
        for put in (seed.seed_waiting, seed.seed_unacked):
            put(redis, f"task{HOSTILE}", task_id=f"id{HOSTILE}", queue=f"q{HOSTILE}", retries=50, eta=seed.iso(90_000))
        seed.seed_result(redis, "STARTED", task_id=f"id{HOSTILE}", result={"hostname": HOSTILE, "pid": 1})
        redis.lpush(f"q{HOSTILE}", HOSTILE)

    @pytest.mark.parametrize(
        "words",
        [
            ["queues"],
            ["workers"],
            ["tasks", "--state", "waiting"],
            ["tasks", "--state", "unacked"],
            ["tasks", "--state", "stuck"],
            ["find", f"id{HOSTILE}"],
            ["task", "status", f"id{HOSTILE}"],
            ["run", "stuck-tasks", "-p", "settle=0.1s", "-p", "answer_within=0.2s"],
            ["reports", "open", HOSTILE, "--path"],
        ],
        ids=lambda words: " ".join(words[:3]).replace(HOSTILE, "!"),
    )
    def test_are_text(self, place: Path, words: list[str]) -> None:
        """The brackets of rich are shown, and what drives a terminal is spelled out."""
        done = command_line.on_terminal(*words, env=dict(os.environ), cwd=place)

        shown = re.sub(r"\x1b\[[0-9;]*m", "", done.out)
        assert not DRIVING.search(done.out.replace("\x1b[?25l", "").replace("\x1b[?25h", "")) or words[0] == "run"
        assert not re.search("\x1b\\]|\x07|\u202e|\u2066|\x9b|\x7f|\u200b", done.out)
        assert "💥" not in shown
        if words[0] != "workers":
            assert "[red]x[/red][" in "".join(shown.split())

    @pytest.mark.parametrize("form", ["json", "jsonl"])
    def test_are_whole_and_ascii_as_json(self, form: str) -> None:
        """A program gets back what is in the broker, and a terminal on the way gets nothing to obey."""
        done = command_line.call("tasks", "--state", "waiting", "-o", form)

        assert done.out.isascii()
        assert not DRIVING.search(done.out)
        document = json.loads(done.out)
        row = document[0] if form == "json" else document
        assert (row["task"], row["queue"]) == (f"task{HOSTILE}", f"q{HOSTILE}")


def test_config_check_warns_of_a_short_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is masked where a URL shows what it is; who checks the settings is told that this is all."""
    monkeypatch.setenv("OPS_BROKER_URL", f"redis://:abc@127.0.0.1:{server.port}/0")

    done = command_line.call("config", "check")

    assert done.err.startswith("Warning: broker_url: the password is shorter than 4 characters")
    assert "redis://:***@127.0.0.1" in done.err
    assert "abc" not in done.err + done.out


def test_a_digest_in_the_manifest_is_no_leak(ended: Run) -> None:
    """A password of hex digits is part of some digest sooner or later."""
    digest = hashlib.sha256((ended.folder / "record.json").read_bytes()).hexdigest()
    redact.remember(f"redis://:{digest[8:12]}@broker")

    assert not leaks.holds(ended.folder / "manifest.sha256")
