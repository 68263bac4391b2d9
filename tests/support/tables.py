"""A database's URL → the tables that Django, Celery and an application have there, made as they make them, and rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from opslib.embedded import processes
from tests.support.waiting import until
from tests.support.workers import DEADLINE_S, Deployment

#: What an entry of a schedule in Django's tables may be sent by.
KINDS = ("interval", "crontab", "solar", "clocked")
#: The Django packages whose tables `django` makes.
BEAT, RESULTS = "django_celery_beat", "django_celery_results"
#: Celery's own backend writes these once a node stores its first result.
CELERY_RESULTS = "celery_taskmeta"

#: What such an application calls the table that it keeps of its tasks, and how far each of them is.
TASK_MANAGER = "task_manager_taskmanager"
STATUSES = ("PENDING", "DONE", "CANCELLED", "REVERSED", "PAUSED", "ABORTED", "ERROR", "SCHEDULED")
#: A node as a Django site; its database is told by `site`.
SITE = "tests.support.shop_site"

_METADATA = sa.MetaData()
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_ZONED = sa.DateTime(timezone=True)
task_manager = sa.Table(
    TASK_MANAGER,
    _METADATA,
    # An INTEGER alone is what SQLite counts up by itself.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("task_module", sa.String(255), nullable=False),
    sa.Column("task_name", sa.String(255), nullable=False),
    sa.Column("reverse_module", sa.String(255)),
    sa.Column("reverse_name", sa.String(255)),
    sa.Column("exception_module", sa.String(255)),
    sa.Column("arguments", _JSON, nullable=False, default=dict),
    sa.Column("status", sa.String(20), nullable=False, default="PENDING"),
    sa.Column("status_message", sa.Text()),
    sa.Column("task_id", sa.String(36)),
    sa.Column("attempts", sa.Integer(), nullable=False, default=1),
    sa.Column("current_page", sa.Integer(), nullable=False, default=0),
    sa.Column("total_pages", sa.Integer(), nullable=False, default=0),
    sa.Column("killed", sa.Boolean(), nullable=False, default=False),
    sa.Column("last_run", _ZONED),
    sa.Column("created_at", _ZONED, nullable=False, default=lambda: datetime.now(UTC)),
    sa.Column("updated_at", _ZONED, nullable=False, default=lambda: datetime.now(UTC)),
)
#: The first row, and of how many numbers to count on from there; one column a number, without a table to read it from.
_COUNTED = {
    "sqlite": "WITH RECURSIVE counted(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM counted WHERE i < :last) ",
    "postgresql": "WITH counted AS (SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS i) ",
    "mysql": "",
}
_ID = {
    "sqlite": "printf('%08x-0000-4000-8000-%012x', i % 4294967296, i)",
    "postgresql": "lpad(to_hex(i), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(i), 12, '0')",
    "mysql": "concat(lpad(lower(hex(i)), 8, '0'), '-0000-4000-8000-', lpad(lower(hex(i)), 12, '0'))",
}
_AGO = {
    # As SQLAlchemy writes an instant there: with six digits and no zone.
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', :now, '-' || ({}) || ' seconds')",
    "postgresql": "CAST(:now AS timestamptz) - make_interval(secs => {})",
    "mysql": "date_sub(:now, INTERVAL {} SECOND)",
}
_PICKED = {
    "sqlite": "json_extract(:{0}, '$[' || (i % :{0}_count) || ']')",
    "postgresql": "CAST(:{0} AS jsonb) ->> CAST(i % :{0}_count AS integer)",
    "mysql": "json_value(:{0}, concat('$[', mod(i, :{0}_count), ']'))",
}
_JSON_OF_ROW = {
    "sqlite": "json_object('order', i, 'card', :secret)",
    "postgresql": "jsonb_build_object('order', i, 'card', CAST(:secret AS text))",
    "mysql": "json_object('order', i, 'card', :secret)",
}


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Return a connection whose changes are there once the block ends."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def sqlite(path: object) -> str:
    """Return the URL of a file of SQLite's."""
    return f"sqlite:///{path}"


def site(url: str) -> dict[str, str]:
    """Return the variables by which SITE finds its database."""
    return {"TRIAL_DATABASE": url}


def django(url: str, **environment: str) -> None:
    """Make the tables of BEAT and RESULTS by their own migrations, in a process that is a Django site."""
    done = subprocess.run(
        [sys.executable, "-m", SITE],
        env=processes.environment(**site(url), **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr


def entry(url: str, name: str, kind: str = "interval", sent: Mapping[str, Any] | None = None, **values: Any) -> int:
    """
    Add an entry to the schedule in Django's tables, of which beat is not told; return its id.

    Args:
        sent: The row of the table of that kind; every 10 minutes, where none is given.

        values: What the entry has that Django's defaults have not.
    """
    with connected(url) as connection:
        found = _reflected(connection, f"{BEAT}_{kind}schedule", f"{BEAT}_periodictask")
        clock, tasks = found[f"{BEAT}_{kind}schedule"], found[f"{BEAT}_periodictask"]
        times = connection.execute(sa.insert(clock).values(sent or {"every": 10, "period": "minutes"}))
        known = {"name": name, "task": "tests.ok", "args": "[]", "kwargs": "{}", "headers": "{}", "description": ""}
        known |= {"enabled": True, "one_off": False, "total_run_count": 0, "date_changed": at(0.0)}
        made = connection.execute(
            sa.insert(tasks).values({**known, f"{kind}_id": times.inserted_primary_key[0], **values})
        )
        return int(made.inserted_primary_key[0])


def told(url: str, when: datetime) -> None:
    """Have beat be told of a change, at that instant."""
    with connected(url) as connection:
        notice = _reflected(connection, f"{BEAT}_periodictasks")[f"{BEAT}_periodictasks"]
        connection.execute(sa.delete(notice))
        connection.execute(sa.insert(notice).values(ident=1, last_update=when))


def row(url: str, name: str) -> dict[str, Any]:
    """Return an entry of Django's tables, and when beat was last told of a change as `told`."""
    with connected(url) as connection:
        found = connection.execute(
            sa.text(f"SELECT * FROM {BEAT}_periodictask WHERE name = :name"), {"name": name}
        ).mappings()
        last = connection.scalar(sa.text(f"SELECT last_update FROM {BEAT}_periodictasks"))
        return {**found.one(), "told": last}


def emptied(url: str) -> None:
    """Take every row out of Django's tables of a schedule."""
    names = [f"{BEAT}_{each}" for each in ("periodictask", "periodictasks", *(f"{kind}schedule" for kind in KINDS))]
    with connected(url) as connection:
        for table in _reflected(connection, *names).values():
            connection.execute(sa.delete(table))


def celery(trial: Deployment, url: str, *tasks: tuple[str, tuple[object, ...]], **conf: object) -> list[str]:
    """Have a real node store the results of these tasks, and return their ids; Celery makes its tables itself."""
    worker = trial.worker(pool="solo", queues="tables", conf={"result_backend": f"db+{url}", **conf})
    ids = [trial.send(name, *args, queue="tables") for name, args in tasks]
    try:
        trial.until_running(*ids)
        _until_stored(url, ids)
    finally:
        worker.kill()
    return ids


def make(url: str) -> None:
    """Make the application's own table of its tasks."""
    with connected(url) as connection:
        _METADATA.create_all(connection)


def add(url: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the application's own table; what a row does not say is as the application has it."""
    known = {"task_module": "orders.tasks", "task_name": "ship"}
    with connected(url) as connection:
        for row in rows:
            connection.execute(sa.insert(task_manager), {**known, **row})


def task_id(number: int) -> str:
    """Return the id of the task of the row that `fill` gave that number."""
    return f"{number % 2**32:08x}-0000-4000-8000-{number:012x}"


def fill(
    url: str,
    rows: int,
    *,
    first: int = 1,
    statuses: Sequence[str] = ("SCHEDULED",),
    modules: Sequence[str] = ("orders.tasks",),
    names: Sequence[str] = ("ship",),
    youngest_s: int = 3 * 3600,
    oldest_s: int = 900 * 3600,
    secret: str = "card-4711-secret",
) -> None:
    """
    Add many rows to the application's own table by one statement; a million take some seconds.

    Row i has the id i, `task_id(i)`, and of each list the value number i, modulo its length.

    Args:
        youngest_s: How long ago the last of them was last run; the first one was `oldest_s` ago, by even steps.

        secret: An argument of each.
    """
    with connected(url) as connection:
        kind = connection.dialect.name
        span, last = max(0, oldest_s - youngest_s), first + rows - 1
        ago = _AGO[kind].format(f"CAST({oldest_s} - {span} * (i - {first}) / {max(1, rows - 1)} AS integer)")
        lists = {"statuses": statuses, "modules": modules, "names": names}
        columns = {
            "id": "i",
            "task_module": _PICKED[kind].format("modules"),
            "task_name": _PICKED[kind].format("names"),
            "arguments": _JSON_OF_ROW[kind],
            "status": _PICKED[kind].format("statuses"),
            "task_id": _ID[kind],
            "attempts": "1",
            "current_page": "0",
            "total_pages": "0",
            "killed": "false",
            **dict.fromkeys(("last_run", "created_at", "updated_at"), ago),
        }
        statement = (
            f"{_COUNTED[kind] if kind == 'postgresql' else ''}"
            f"INSERT INTO {TASK_MANAGER} ({', '.join(columns)}) "
            f"{_COUNTED[kind] if kind == 'sqlite' else ''}SELECT {', '.join(columns.values())} "
            f"FROM {f'(SELECT seq AS i FROM seq_{first}_to_{last}) AS counted' if kind == 'mysql' else 'counted'}"
        )
        known = {name: _json(values) for name, values in lists.items()}
        counts = {f"{name}_count": len(values) for name, values in lists.items()}
        now = datetime.now(UTC)
        given = now if kind == "postgresql" else now.strftime("%Y-%m-%d %H:%M:%S")
        connection.execute(
            sa.text(statement), {**known, **counts, "first": first, "last": last, "now": given, "secret": secret}
        )
        if kind == "postgresql":  # which does not count the ids that it was given
            column = f"pg_get_serial_sequence('{TASK_MANAGER}', 'id')"
            connection.execute(sa.text(f"SELECT setval({column}, (SELECT max(id) FROM {TASK_MANAGER}))"))


def _reflected(connection: Connection, *names: str) -> dict[str, sa.Table]:
    """Return tables as they are in the database."""
    metadata = sa.MetaData()
    return {name: sa.Table(name, metadata, autoload_with=connection, resolve_fks=False) for name in names}


def _json(values: Sequence[str]) -> str:
    return json.dumps(list(values))


def _until_stored(url: str, ids: Sequence[str]) -> None:
    """Wait until each of these has a row of a state that is an end."""
    query = sa.text(f"SELECT task_id FROM {CELERY_RESULTS} WHERE status IN ('SUCCESS', 'FAILURE')")

    def stored() -> bool:
        with connected(url) as connection:
            return sa.inspect(connection).has_table(CELERY_RESULTS) and set(ids) <= set(connection.scalars(query))

    until(stored, DEADLINE_S, "every result is in its table")


def at(ago_s: float) -> datetime:
    """Return the instant so many seconds ago."""
    return datetime.now(UTC) - timedelta(seconds=ago_s)
