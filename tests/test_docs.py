"""
The documentation says what the code does: its tables, its commands and its links.

docs/commands.md is written by this file: `python -m tests.test_docs > docs/commands.md`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer
from redis import Redis

from opslib import broker as brokers
from opslib import catalog, records, settings, urls
from opslib.cli import app
from opslib.collectors.deployment import collect
from opslib.durations import seconds
from opslib.envelope import digest
from opslib.errors import Exit
from opslib.facts.system import Coverage
from opslib.findings import CODES, Finding, Severity
from opslib.keys import Keyspace
from opslib.plan import Action, Copy, Kind, Status
from opslib.records import RunRecord
from opslib.settings import BROKER_NAMES, RESULT_NAMES, Target, Thresholds
from opslib.symptoms import stuck_tasks
from opslib.task_tables import FIELDS, PRESETS, TaskTable
from opslib.writer import apply
from tests.support.plans import planned, purge_of, undone
from tests.support.seed import seed_unacked, seed_waiting
from tests.support.waiting import until

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "runbooks" / "README.md"])
RUN = "20261121T021500Z-stuck-tasks-7f3a9c"
#: What the runner tells the kernel; nobody else sets them.
INTERNAL = {"OPS_RUN", "OPS_PROJECT"}


def read(name: str) -> str:
    """Return a page's text."""
    return (ROOT / name).read_text("utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """Return the rows of every table, cell by cell, without its head and without code marks."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")])
        inside = line.startswith("|")
    return [[row for row in table[1:] if not set(row[0]) <= set("-|")] for table in found]


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    return re.split(rf"^#{{1,{level}}} ", text.split(f"\n{heading}\n")[1], flags=re.MULTILINE)[0]


def blocks(text: str, *kinds: str) -> Iterator[str]:
    """Yield the fenced blocks of some kinds."""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind in kinds:
            yield block


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# Reference: each table is the code's


def home_of(code: str) -> str:
    """Return the page that has a finding code's paragraph, as the one table links to it."""
    (page,) = re.findall(rf"^\| \[`{code}`\]\(([\w-]+\.md)#{code}\) ", read("docs/findings.md"), re.MULTILINE)
    return f"docs/{page}"


def test_every_finding_code_is_explained():
    """The one table has the codes and sentences of the code, in its order."""
    rows, *_ = tables(read("docs/findings.md"))

    said = {re.sub(r"\[(.*)\]\(.*\)", r"\1", code): sentence for code, sentence, _ in rows}
    assert said == CODES
    assert list(said) == list(CODES)
    for code, _, severity in rows:
        assert set(severity.split(", or ")) <= set(map(str, Severity)), code


def test_no_finding_code_is_explained_twice():
    """Its paragraph stands on the page that the table links to; no page explains what is no code."""
    for path in {home_of(code) for code in CODES}:
        paragraphs = re.findall(r"^### (.*)$", section(read(path), "## The findings"), re.MULTILINE)
        assert paragraphs == [code for code in CODES if home_of(code) == path], path


@pytest.mark.parametrize("code", CODES)
def test_every_paragraph_says_on_what_evidence_and_what_is_done(code):
    """Evidence first; then what is planned or what a person does, and when it cannot be told."""
    paragraph = section(read(home_of(code)), f"### {code}")

    assert "- **Evidence**" in paragraph
    assert "- **Plan**" in paragraph or "- **What to do**" in paragraph
    assert "unknown" in paragraph.lower() or code == "no-workers"


def test_every_exit_code_is_explained():
    """Number and name of each, in the order of the enumeration."""
    rows, verdicts = tables(read("docs/exit-codes.md"))

    assert [(int(code), name) for code, name, *_ in rows] == [(int(each), each.name) for each in Exit]
    assert [verdict for verdict, _ in verdicts] == ["healthy", "attention", "critical", "unknown", "failed"]


def test_every_field_of_the_record_is_explained():
    """Of the document, and of the rows inside it; no field is described that is not there."""
    page = read("docs/record.md")

    def fields(heading: str) -> list[str]:
        return [row[0] for row in tables(section(page, heading))[0]]

    assert sorted(row[0] for row in tables(page)[0]) == sorted(RunRecord.__struct_fields__)
    assert fields("## coverage") == [each.name for each in dataclasses.fields(Coverage)]
    assert sorted(fields("## findings")) == sorted(each.name for each in dataclasses.fields(Finding))
    assert sorted(fields("## plan")) == sorted(each.name for each in dataclasses.fields(Action))
    assert fields("## outcomes") == ["action", "status", "reason", "steps"]
    for each in dataclasses.fields(Copy):
        assert f"`{each.name}`" in section(page, "## plan")
    for word in (*Kind, *Status):
        assert f"`{word}`" in page


def test_every_setting_is_explained():
    """Each setting and each threshold of a target, with its default."""
    page = section(read("docs/configuration.md"), "## By ops.toml")
    plain, thresholds = tables(page)

    assert [row[0] for row in plain] == [
        name for name in Target.__struct_fields__ if name in set(settings._SETTINGS) - {"thresholds"}
    ]
    assert [row[0] for row in thresholds] == list(Thresholds.__struct_fields__)
    said = {row[0]: row[2] for row in thresholds}
    assert said["stuck_after"] == Thresholds().stuck_after
    assert said["loop_after"] == str(Thresholds().loop_after)
    described = {row["setting"]: row["value"] for row in settings.described(Target(name="x", broker_url="redis://h"))}
    for name, _, default, _ in plain:
        if name not in {"broker_url", "protected"}:
            assert described[name] == default


def test_every_variable_is_explained():
    """The names of broker and results in their order, and each OPS_ name that the code reads."""
    page = section(read("docs/configuration.md"), "## By the environment")
    rows = [row[0].split(", ") for row in tables(page)[0]]

    assert rows[0] == list(BROKER_NAMES)
    assert rows[1] == list(RESULT_NAMES)
    used = {name for path in (ROOT / "opslib").rglob("*.py") for name in re.findall(r"\bOPS_[A-Z_]+", path.read_text())}
    assert used - INTERNAL == {name for row in rows for name in row if name.startswith("OPS_")}
    for name in INTERNAL:
        assert f"`{name}`" in page


def test_the_example_of_a_file_works(tmp_path):
    """It is read as it stands there, once the variable is set."""
    page = section(read("docs/configuration.md"), "## By ops.toml")
    (example,) = blocks(page, "toml")
    (tmp_path / "ops.toml").write_text(example.replace("/etc/ops/prod-results", "results"))
    (tmp_path / "results").write_text("redis://results")
    (tmp_path / "results").chmod(0o600)
    env = {"PROD_BROKER_URL": "redis://:geheim@h"}

    assert set(tomllib.loads(example)["targets"]) == {"staging", "prod"}
    assert settings.load(environ=env, start=tmp_path).name == "staging"
    assert settings.load("prod", environ=env, start=tmp_path).thresholds == Thresholds(stuck_after="90m", loop_after=20)


def test_every_form_of_a_url_works():
    """Each is accepted as it stands in the table; the one without verification warns."""
    rows = tables(section(read("docs/configuration.md"), "## URLs"))[0]

    for url, _ in rows:
        _, warnings = urls.check(url, "broker_url")
        assert bool(warnings) == ("ssl_cert_reqs=none" in url)


def test_what_is_said_of_an_sql_database_works(tmp_path):
    """The example is read as it stands there, every form of a URL is one, and every setting is in its table."""
    page = section(read("docs/configuration.md"), "## The application's SQL database")
    (example,) = blocks(page, "toml")
    forms, plain = tables(page)
    (tmp_path / "ops.toml").write_text(example)
    env = {"PROD_BROKER_URL": "redis://h", "PROD_DATABASE_URL": forms[0][0]}
    found = settings.load("prod", environ=env, start=tmp_path)

    assert {each.preset for each in found.task_tables.values()} == set(PRESETS)
    assert [each.table for each in found.state_rows.values()] == ["agent"]
    for url, _ in forms:
        assert urls.database(url, "database_url")
    assert [row[0] for row in plain] == list(TaskTable.__struct_fields__)
    for field in FIELDS:
        assert f"`{field}`" in page


def test_every_form_of_a_duration_works():
    """Those that are named are read."""
    first = section(read("docs/configuration.md"), "## Durations").strip().splitlines()[0]

    assert len([seconds(each) for each in re.findall(r"`(.*?)`", first)]) == 6


def test_every_key_of_ours_is_named():
    """The table of what is kept in the server has each name that the code makes."""
    rows = [row[0] for row in tables(section(read("docs/safety.md"), "## What it keeps in the server"))[0]]
    space = Keyspace()

    assert set(rows) == {
        space.environment,
        space.lock,
        space.epoch,
        space.audit,
        space.checkpoint("TASK_ID"),
        space.dead_dropped,
        space.dead_sender("NODE"),
        space.journal("RUN_ID"),
        space.redriven("RUN_ID", "LIST"),
        space.quarantine("RUN_ID", "QUEUE"),
        space.quarantine_of_full("RUN_ID", "QUEUE"),
        space.work("RUN_ID", "QUEUE"),
        space.work_back("RUN_ID", "QUEUE"),
        space.quarantine_notes("RUN_ID"),
    }


def test_every_module_has_a_question():
    """Each module of the package is named by the architecture, and each name is one."""
    named = set(re.findall(r"`(opslib/[\w/.]+)`", read("docs/architecture.md")))

    assert all((ROOT / each).exists() for each in named)
    there = {path for path in (ROOT / "opslib").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    silent = {"__init__.py", "__main__.py", "durations.py"}
    assert {path.name for path in there} - silent == {each.rstrip("/").split("/")[1] for each in named}


# Commands


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command and group with its words, in the order of the help."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield words, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(f"{words} {name}", child)

    return walk("ops", typer.main.get_command(app))


def options(command: Any) -> Iterator[Any]:
    """Yield a command's options but those of the shell's completion."""
    for each in command.params:
        if each.param_type_name == "option" and "completion" not in each.name:
            yield each


def page_of_commands() -> str:
    """Return docs/commands.md."""
    parts = [
        "# Commands\n",
        "Data goes to stdout, talk and progress to stderr; an [exit code](exit-codes.md) says how it ended.",
        "`python -m opslib` is the same as `ops`, `-h` or `--help` shows the help of each command,",
        "and `ops --install-completion` teaches the shell to complete them.",
    ]
    for words, command in commands():
        parts += [f"\n## {words}\n", *_help(words, command)]
        if rows := [*map(_argument, _arguments(command)), *map(_option, options(command))]:
            parts += ["", "| option | default | what it says |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def _help(words: str, command: Any) -> Iterator[str]:
    usage = " ".join([words, *(f"{each.metavar}" for each in _arguments(command))])
    for paragraph in (command.help or "").split("\n\n"):
        if example := paragraph.removeprefix("Example: ") if paragraph.startswith("Example: ") else "":
            yield from ("", "```sh", example, "```")
        else:
            yield re.sub(r"(?<=[.;]) (?=[A-Z0-9])", "\n", " ".join(paragraph.split()))
    if any(_arguments(command)):
        yield f"\nUsage: `{usage}`"


def _arguments(command: Any) -> list[Any]:
    return [each for each in command.params if each.param_type_name == "argument"]


def _argument(each: Any) -> str:
    return f"| `{each.metavar}` | {'required' if each.required else ''} | {each.help} |"


def _option(each: Any) -> str:
    choices = "\\|".join(type(each.default)) if isinstance(each.default, StrEnum) else each.metavar or ""
    names = ", ".join(f"`{name}`" for name in sorted(each.opts, key=len, reverse=True))
    default = "" if each.default in (None, "", False, []) else f"`{each.default}`"
    return f"| {names}{f' `{choices}`' if choices else ''} | {default} | {each.help} |"


def test_every_command_and_option_is_on_its_page():
    """The page is made from the command line itself; `python -m tests.test_docs > docs/commands.md` makes it anew."""
    page = read("docs/commands.md")

    for words, command in commands():
        part = section(page, f"## {words}")
        for option in options(command):
            assert all(f"`{name}`" in part for name in option.opts), words
    assert page == page_of_commands()


def spoken() -> Iterator[tuple[str, str]]:
    """Yield every command line that a page shows, with the page's name."""
    for path in PAGES:
        text = path.read_text("utf-8")
        lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
        lines += [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
        lines += re.findall(r"`((?:ops|make|\.venv/bin/ops) [^`]+)`", prose(text).replace("\\|", "|"))
        for line in lines:
            for each in re.split(r" && |\$\(|\)|; ", line.split("  #")[0].split(" > ")[0].strip()):
                if re.match(r"(\S*/)?(ops|make) ", each):
                    yield path.name, each


@pytest.mark.parametrize(("page", "line"), sorted(set(spoken())))
def test_every_command_that_is_shown_exists(page, line):
    """A command of ops has these words and options, one of make is a target."""
    program, *words = [word.strip('"') for word in shlex.split(line) if word not in {"…", "\\"}]
    known = dict(commands())
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
        assert next(word for word in words if "=" not in word and not word.startswith("-")) in targets, page
        if arguments := next((word.removeprefix("args=") for word in words if word.startswith("args=")), ""):
            words = ["run", "NAME", *shlex.split(arguments)] if "runbook" in words else []
        else:
            return
    path = "ops"
    while words and f"{path} {words[0]}" in known:
        path = f"{path} {words.pop(0)}"
    assert path != "ops" or not words or words[0].startswith("--"), f"{page}: {line}"
    names = {name for option in options(known[path]) for name in option.opts} | {"--help", "-h", "--install-completion"}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= names, page


def test_every_proof_exists():
    """Each row of what took the place of scripts names a test, and the test is there."""
    page = read("docs/coming-from-scripts.md")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)

    rows = [row for table in tables(page) for row in table if len(row) == 4]
    assert all(re.search(r"tests/[\w/]+\.py::\w+", row[-1]) for row in rows), rows
    assert [each for each in named if not re.search(rf"def {each[1]}\b", read(each[0]))] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_parameter_that_is_shown_exists(path):
    """What stands behind -p is a parameter of a runbook, and its value fits."""
    runbooks = catalog.everything()

    for name, value in re.findall(r"-p ([a-z_]+)=([\w.]+)", path.read_text("utf-8")):
        knowing = [each for each in runbooks if name in {parameter.name for parameter in each.parameters}]
        assert knowing, name
        catalog.convert(knowing[0], {name: value})


def test_defaults_that_are_named_are_the_notebooks():
    """The few figures in the page about stuck tasks are those that `ops show` shows."""
    page = read("docs/stuck-tasks.md")
    defaults = {each.name: each.default for each in catalog.find("stuck-tasks").parameters}

    for name, value in re.findall(r"`(settle|answer_within|max_actions)` \(([\d.]+)", page):
        assert str(defaults[name]).rstrip("s") == value


# Pages


def anchors(path: Path) -> set[str]:
    """Return the anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    """A relative link names a file that is there, and a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text("utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_on_the_map():
    """Nobody has to guess what else there is."""
    listed = set(re.findall(r"\]\((\S+?\.md)", read("docs/index.md")))

    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= listed
    assert "docs/index.md" in read("README.md")


def test_the_readme_begins_with_two_commands_and_is_short():
    """One to see it work, one to see it tested; and all of it is read in a minute."""
    readme = read("README.md")
    first = next(blocks(readme, "sh"))

    assert [line.split("  ")[0].strip() for line in first.splitlines()] == [
        "make runbook name=stuck-tasks target=demo",
        "make test",
    ]
    assert len(readme.splitlines()) <= 90


def test_the_readme_names_every_runbook():
    """By its command, beside the symptom."""
    for runbook in catalog.everything():
        assert f"make runbook name={runbook.name}" in read("README.md")
        assert f"make runbook name={runbook.name}" in read("runbooks/README.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_sentence_has_a_line_of_its_own(path):
    """So that a change shows as a sentence."""
    for line in prose(path.read_text("utf-8")).splitlines():
        if not line.startswith(("|", "#", "[")):
            assert not re.search(r"[a-z`)*][.!?] [A-Z*`]", re.sub(r"^\s*(\d+\.|-) ", "", line)), line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_names_a_machine(path):
    """No home, no temporary folder, no address of a registry."""
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/|pypi|simple/", path.read_text("utf-8"))


# Safety: what the page says is done here


def rights(name: str) -> list[str]:
    """Return the rules that the page gives a user."""
    (rules,) = re.findall(rf"ACL SETUSER {name} (.*)", read("docs/safety.md"))
    return [*rules.replace("PASSWORD", "geheim").split()]


def as_user(redis: Redis, target: Target, name: str) -> brokers.Broker:
    """Make the user, with exactly what the page says, and connect as it."""
    redis.execute_command("ACL", "SETUSER", name, "reset", *rights(name))
    redis.execute_command("ACL", "LOG", "RESET")
    place = target.broker_url.rpartition("@")[2]
    return brokers.connect(Target(name="trial", broker_url=f"redis://{name}:geheim@{place}"))


def denied(redis: Redis) -> list[str]:
    """Return what users were not permitted since they were made."""
    return [str(entry["object"]) for entry in redis.acl_log()]


@pytest.mark.usefixtures("archive")
def test_a_user_that_may_only_read_sees_all_but_the_workers(redis, target):
    """It may write nothing, and the coverage says what that costs."""
    seed_unacked(redis)

    seen = collect(as_user(redis, target, "ops_read"), settle="0.1s")

    assert [row.place for row in seen.silent_places] == ["workers"]
    assert len(seen.unacked) == 1
    assert set(denied(redis)) <= {"sadd", "srem", "publish"}


@pytest.mark.usefixtures("archive")
def test_a_user_that_may_look_sees_everything_and_changes_nothing(redis, target):
    """All of a dry run works with it; to apply is refused by the server, before anything is written."""
    seed_unacked(redis)
    broker = as_user(redis, target, "ops_look")

    seen = collect(broker, window="0.5s")
    plan = stuck_tasks.plan(seen, stuck_tasks.diagnose(seen, stuck_tasks.Thresholds()), max_actions=5)

    assert seen.silent_places == ()
    assert denied(redis) == []
    assert plan.summary() == "restore 1"
    with pytest.raises(Exception, match=r"docs/safety\.md"):
        apply(plan, broker, dry_run=False)
    assert redis.hlen("unacked") == 1
    assert not redis.exists("celery")


@pytest.mark.usefixtures("archive")
def test_a_user_that_may_change_lacks_no_right(redis, target):
    """Restore, stop, quarantine and purge are applied and undone, and the server had nothing to deny."""
    seed_unacked(redis)
    seed_waiting(redis, retries=20)
    redis.lpush("celery", b"no JSON")
    broker = as_user(redis, target, "ops_change")

    seen = collect(broker, settle="0.1s")
    plan = stuck_tasks.plan(seen, stuck_tasks.diagnose(seen, stuck_tasks.Thresholds()), max_actions=5)
    outcomes = apply(plan, broker, dry_run=False)

    assert sorted(str(each.action.kind) for each in outcomes) == ["quarantine", "restore", "stop"]
    assert {each.status for each in outcomes} == {Status.APPLIED}
    apply(planned(broker, purge_of(broker, "celery")), broker, dry_run=False)
    assert {each.status for each in undone(broker, records.context().run_id)} == {Status.APPLIED}
    assert denied(redis) == []


@pytest.mark.parametrize("name", ["ops_read", "ops_look", "ops_change"])
@pytest.mark.parametrize("command", ["KEYS *", "CONFIG GET maxmemory", "FLUSHDB", "RESTORE x 0 y", "DEBUG SLEEP 0"])
def test_no_user_may_do_what_blocks_or_destroys(redis, name, command):
    """The server itself refuses it."""
    redis.execute_command("ACL", "SETUSER", name, "reset", *rights(name))

    assert b"permission" in redis.execute_command("ACL", "DRYRUN", name, *command.split())


def by_hand(redis: Redis, heading: str, *, number: int = 0, **names: str) -> Any:
    """Type a command of the page, with these names put in."""
    lines = [line for block in blocks(section(read("docs/safety.md"), heading), "sh") for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("redis-cli")]
    program, *words = shlex.split(lines[number])
    assert program == "redis-cli"
    words = [re.sub(r"\b(RUN_ID|QUEUE|KEY|TAG)\b", lambda found: names.get(found[1], found[1]), word) for word in words]
    if words[0] == "--scan":
        return sorted(redis.scan_iter(match=words[2]))
    return redis.execute_command(*words)


LOOK, MOVE, PUT = 0, 1, 2


@pytest.mark.xdist_group("docs")
def test_a_message_is_put_back_by_hand_as_the_page_says(trial, archive, monkeypatch):
    """Two stopped tasks and an unreadable message come back by the page's commands, and a worker runs the two."""
    monkeypatch.setenv("OPS_RUN", json.dumps({"run_id": RUN}))
    assert archive.is_dir()
    redis = trial.redis
    waiting = trial.send("ok")
    taken = trial.send("ok")
    for raw in redis.lrange("celery", 0, -1):
        redis.lrem("celery", 1, raw)
        message = json.loads(raw)
        message["headers"]["retries"] = 20
        tag = message["properties"]["delivery_tag"]
        if message["headers"]["id"] == waiting:
            redis.lpush("celery", json.dumps(message))
        else:
            redis.hset("unacked", tag, json.dumps([message, "", "celery"]))
            redis.zadd("unacked_index", {tag: 1795225339.5})
    redis.lpush("strays", b"no JSON")
    before = {"waiting": redis.lindex("celery", -1), "unacked": redis.hgetall("unacked")}
    broker = brokers.connect(Target(name="trial", broker_url=trial.server.url, queues=["strays"]))
    seen = collect(broker, settle="0.1s")
    plan = stuck_tasks.plan(seen, stuck_tasks.diagnose(seen, stuck_tasks.Thresholds()), max_actions=5)
    assert {each.status for each in apply(plan, broker, dry_run=False)} == {Status.APPLIED}
    assert not redis.exists("celery", "unacked", "strays")

    kept = by_hand(redis, "## Quarantine", number=0, RUN_ID=RUN)
    notes = {name: json.loads(value) for name, value in redis.hgetall(f"opslib:run:{RUN}:m").items()}
    assert kept == [f"opslib:run:{RUN}:q:{name}".encode() for name in ("celery", "strays")]
    assert by_hand(redis, "## Quarantine", number=1, RUN_ID=RUN)

    for key in kept:
        queue = key.decode().rpartition(":")[2]
        while redis.llen(key):
            raw = by_hand(redis, "## Putting a message back", number=LOOK, RUN_ID=RUN, QUEUE=queue)
            note = notes[digest(raw).encode()]
            if raw.startswith(b"["):
                names = {"RUN_ID": RUN, "QUEUE": queue, "TAG": note["tag"]}
                assert by_hand(redis, "## Putting a message back", number=PUT, **names) == 1
                assert by_hand(redis, "## Putting a message back", number=PUT, **names) == 0
            else:
                names = {"RUN_ID": RUN, "QUEUE": queue, "KEY": note["key"]}
                assert by_hand(redis, "## Putting a message back", number=MOVE, **names) == raw

    assert redis.lrange("celery", 0, -1) == [before["waiting"]]
    assert redis.hgetall("unacked") == before["unacked"]
    assert redis.lrange("strays", 0, -1) == [b"no JSON"]
    trial.worker()
    until(lambda: trial.ran(waiting) == trial.ran(taken) == 1, 60, "both tasks ran")


if __name__ == "__main__":
    sys.stdout.write(page_of_commands())
