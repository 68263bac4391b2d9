"""What the shop keeps in SQL → a file of SQLite's: a row for each task, its hooks, and what its agent is at."""

# ruff: noqa: S608 - no name in a statement comes from anybody else

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

#: What it is called in the demo's folder, and by which its processes know it; one without it keeps no rows.
FILE, VARIABLE = "shop.sqlite3", "DEMO_DATABASE"
TABLE = "task_manager_taskmanager"
#: Who does the work that a row of `agent_state` tells of.
AGENT = 1
IDLE: dict[str, str | int | float | bool | None] = {"status": "idle", "task_id": None}
#: How one looks whether a hook has come to its receiver.
HOOKS, DELIVERED = "shop.hooks.*", "SELECT delivered, answer FROM shop_hook WHERE id = :hook_id"
#: So long a task waits for others that write.
_TIMEOUT_S = 5.0
#: With a log beside it, in which one writes while others read. It need not survive the machine.
_TABLES = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE {TABLE} (
    id INTEGER PRIMARY KEY,
    task_module VARCHAR(255) NOT NULL,
    task_name VARCHAR(255) NOT NULL,
    arguments JSON NOT NULL,
    status VARCHAR(20) NOT NULL,
    status_message TEXT,
    attempts INTEGER NOT NULL DEFAULT 1,
    task_id VARCHAR(36),
    last_run DATETIME
);
CREATE INDEX {TABLE}_task_id ON {TABLE} (task_id);
CREATE TABLE task_manager_error (task_id VARCHAR(36), message TEXT NOT NULL);
CREATE TABLE shop_hook (
    id INTEGER PRIMARY KEY,
    url TEXT NOT NULL,
    tried BOOLEAN NOT NULL DEFAULT 0,
    delivered BOOLEAN DEFAULT 0,
    answer TEXT NOT NULL DEFAULT 'It was not tried.'
);
CREATE TABLE agent_state (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, status VARCHAR(20) NOT NULL, task_id VARCHAR(36)
);
INSERT INTO agent_state VALUES ({AGENT}, 'transcoder', 'idle', NULL);
"""
#: What a migration of Friday's left behind: it writes into a table that the next one was to make.
_HALF_MIGRATED = f"""
CREATE TRIGGER task_manager_history AFTER UPDATE ON {TABLE} BEGIN
    INSERT INTO task_manager_statuschange VALUES (NEW.id, OLD.status, NEW.status);
END;
"""


def url(folder: Path) -> str:
    """Return the URL of a demo's database."""
    return f"sqlite:///{quote(str(folder / FILE))}"


def make() -> None:
    """Make the tables, as they are in the middle of a migration."""
    with _open() as connection:
        connection.executescript(_TABLES + _HALF_MIGRATED)


def repair() -> None:
    """Take away what keeps rows from being changed, as somebody did on Monday."""
    with _open() as connection:
        connection.execute("DROP TRIGGER task_manager_history")


def write(rows: Iterable[tuple[str, str | None, Mapping[str, object], str, float]]) -> None:
    """
    Write rows as the application does when it sends tasks.

    Args:
        rows: Name, id, arguments and status of each task, and how many seconds ago it was sent.
    """
    now = datetime.now(UTC)
    with _open() as connection:
        for task, task_id, arguments, status, ago_s in rows:
            module, _, name = task.rpartition(".")
            last_run = (now - timedelta(seconds=ago_s)).replace(tzinfo=None).isoformat(" ")
            connection.execute(
                f"INSERT INTO {TABLE} (task_module, task_name, task_id, arguments, status, last_run) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (module, name, task_id, json.dumps(arguments), status, last_run),
            )


def close(task_id: str) -> None:
    """Write down that a task is done, if it has a row that is open; what goes wrong with that is noted, and no more."""
    if VARIABLE not in os.environ:
        return
    with suppress(sqlite3.Error), _open() as connection:
        is_open = f"SELECT 1 FROM {TABLE} WHERE task_id = ? AND status = 'SCHEDULED'"
        if not connection.execute(is_open, (task_id,)).fetchall():
            return  # nobody waits for others that write, where there is nothing to be written
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(f"UPDATE {TABLE} SET status = 'DONE' WHERE task_id = ?", (task_id,))
        except sqlite3.Error as error:
            connection.execute("INSERT INTO task_manager_error VALUES (?, ?)", (task_id, str(error)))


def not_closed() -> set[str]:
    """Return the ids of tasks that were done and could not write so into their rows."""
    with _open() as connection:
        return {task_id for (task_id,) in connection.execute("SELECT task_id FROM task_manager_error")}


def add_hooks(urls: Mapping[int, str]) -> None:
    """Add hooks that are to be delivered."""
    with _open() as connection:
        connection.executemany("INSERT INTO shop_hook (id, url) VALUES (?, ?)", urls.items())


def try_hook(hook: int) -> tuple[str, bool]:
    """Write down that a hook is being delivered, and return where to, and whether it was tried before."""
    with _open() as connection:
        connection.execute("BEGIN IMMEDIATE")
        ((url, tried),) = connection.execute("SELECT url, tried FROM shop_hook WHERE id = ?", (hook,)).fetchall()
        connection.execute("UPDATE shop_hook SET tried = 1, answer = 'Nobody answered.' WHERE id = ?", (hook,))
        return str(url), bool(tried)


def answer_hook(hook: int, *, delivered: bool | None, answer: str) -> None:
    """Write down what came of a hook; None for one whose receiver says so later, if ever."""
    with _open() as connection:
        connection.execute("UPDATE shop_hook SET delivered = ?, answer = ? WHERE id = ?", (delivered, answer, hook))


def is_tried(hook: int) -> bool:
    """Say whether a hook's delivery has begun."""
    with _open() as connection:
        return bool(connection.execute("SELECT 1 FROM shop_hook WHERE id = ? AND tried", (hook,)).fetchone())


def set_agent(status: str, task_id: str | None = None) -> None:
    """Write down what the agent is at."""
    if VARIABLE in os.environ:
        with _open() as connection:
            connection.execute("UPDATE agent_state SET status = ?, task_id = ? WHERE id = ?", (status, task_id, AGENT))


def agent() -> str:
    """Return what the agent is at."""
    with _open() as connection:
        return str(connection.execute("SELECT status FROM agent_state WHERE id = ?", (AGENT,)).fetchone()[0])


@contextmanager
def _open() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(os.environ[VARIABLE], timeout=_TIMEOUT_S)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            yield connection
    finally:
        connection.close()
