"""A target → its application's SQL database: the only place where a connection to one is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import redact
from opslib.errors import DatabaseLocked, DatabaseRefused, DatabaseUnreachable, OpsError, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from opslib.settings import Target

CONNECT_TIMEOUT_S = 5
#: A statement of ours that takes longer would burden a database that has other work to do.
STATEMENT_TIMEOUT_S = 30
#: So long a change waits for a row that somebody else has locked.
LOCK_TIMEOUT_S = 3
#: So long a transaction may stand still.
IDLE_TIMEOUT_S = 60
#: As others see us, in `pg_stat_activity`.
NAME = "opslib"
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "sqlite": "sql"}
#: What PostgreSQL's codes mean, and MySQL's numbers; each by what it begins with.
_DENIED = ("42501", "28", "1044", "1045", "1142", "1143", "1227")
_LATE = ("57014", "3024", "1969")
_LOCKED = ("55P03", "40P01", "40001", "1205", "1213")
#: Complaints about a value, which quote it.
_VALUE = ("22", "1264", "1265", "1292", "1366", "1411", "1525", "1690")
_READ_ONLY = ("25006", "1792", "1290")


@dataclass(frozen=True, kw_only=True)
class Database:
    """
    The SQL database of a deployment's application. Nothing is open until a block is entered.

    Attributes:
        url: With credentials, as SQLAlchemy understands it; never printed, see `shown`.
    """

    url: str = field(repr=False)
    shown: str

    @property
    def kind(self) -> str:
        """Which it is: postgresql, mysql or sqlite."""
        return self.url.partition(":")[0].partition("+")[0]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        Open a transaction that cannot write, for a block.

        It is meant to be short: a long one keeps a database from tidying up after others.

        Raises:
            DatabaseUnreachable: If it does not answer, or not in time; DatabaseRefused if it says no.
        """
        with self.explained(), self._engine.connect() as connection, connection.begin():
            _settle(connection, self.kind, read_only=True)
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """
        Open a transaction that can write: committed at the end of the block, undone if an error leaves it.

        Raises:
            DatabaseUnreachable: If it does not answer, or not in time; DatabaseRefused if it says no.
        """
        with self.explained(), self._engine.connect() as connection, connection.begin():
            _settle(connection, self.kind, read_only=False)
            yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """
        Let no error of the driver out of a block but as what it means.

        Raises:
            OpsError: In place of an error of SQLAlchemy.
        """
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            raise _of(error, self.shown) from None

    @cached_property
    def _engine(self) -> Engine:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        arguments: dict[str, Any] = {
            "postgresql": {
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": NAME,
                # A pooler that shares its connections knows nothing of what one of its clients has prepared.
                "prepare_threshold": None,
            },
            "mysql": {
                "connect_timeout": CONNECT_TIMEOUT_S,
                "read_timeout": STATEMENT_TIMEOUT_S + CONNECT_TIMEOUT_S,
                "write_timeout": STATEMENT_TIMEOUT_S + CONNECT_TIMEOUT_S,
            },
            # A file that is not there is not made.
            "sqlite": {"timeout": LOCK_TIMEOUT_S, "uri": True},
        }
        url = self.url
        if self.kind == "sqlite":
            url = f"sqlite:///{Path(url.removeprefix('sqlite:///')).as_uri()}?mode=rw&uri=true"
        # One connection that is closed after its block: a pool would hold what the application could need.
        return create_engine(url, connect_args=arguments[self.kind], poolclass=NullPool, hide_parameters=True)


def connect(target: Target) -> Database:
    """
    Return the SQL database of a target's application, and make sure that it answers.

    Raises:
        SettingsError: If the target has none, or what is needed for its kind is not installed.

        DatabaseUnreachable: If it does not answer; DatabaseRefused if it says no.
    """
    if not target.database_url:
        raise SettingsError(
            f"Target {target.name} names no SQL database.",
            hint='Set OPS_DATABASE_URL, or database_url = "env:NAME" in ops.toml.',
        )
    database = Database(url=target.database_url, shown=target.shown_database)
    try:
        with database.reading():
            pass
    except ImportError as error:
        extra = _EXTRAS[database.kind]
        raise SettingsError(
            f"{database.shown} cannot be looked at: {error.name or 'its driver'} is not installed.",
            hint=f"Install it: pip install 'opslib[{extra}]'.",
        ) from None
    return database


def _settle(connection: Connection, kind: str, *, read_only: bool) -> None:
    """Bound what the transaction may take, and say that it only reads, where it does."""
    if kind == "postgresql":
        limits = {
            "statement_timeout": STATEMENT_TIMEOUT_S,
            "lock_timeout": LOCK_TIMEOUT_S,
            # A process of ours that is stopped in the middle must not keep rows locked.
            "idle_in_transaction_session_timeout": IDLE_TIMEOUT_S,
        }
        for name, seconds in limits.items():
            connection.exec_driver_sql(f"SET LOCAL {name} = '{seconds}s'")
        if read_only:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
    elif kind == "mysql":
        connection.exec_driver_sql("SET SESSION time_zone = '+00:00'")  # in which it tells a TIMESTAMP
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_S}")
        is_maria = "MariaDB" in str(connection.exec_driver_sql("SELECT VERSION()").scalar())
        limit = (
            f"max_statement_time = {STATEMENT_TIMEOUT_S}"
            if is_maria
            else f"max_execution_time = {STATEMENT_TIMEOUT_S * 1000}"
        )
        connection.exec_driver_sql(f"SET SESSION {limit}")
        # At its own level, a change would wait for each row that it passes, and lock those that nobody has written yet.
        manner = "READ ONLY" if read_only else "ISOLATION LEVEL READ COMMITTED"
        connection.exec_driver_sql(f"SET SESSION TRANSACTION {manner}")
        connection.exec_driver_sql("COMMIT")  # that holds from the next transaction on
    elif read_only:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    else:
        # What is compared must be what is changed: the lock is taken before the look, not with the first change.
        driver: Any = connection.connection.dbapi_connection
        driver.isolation_level = None
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _of(error: Exception, shown: str) -> OpsError:
    """Return what an error of a driver means; its statement and parameters are no part of what is told."""
    original = getattr(error, "orig", None) or error
    code = _code(original)
    said = redact.plain(str(original).strip().partition("\n")[0])[:300].rstrip(".") or type(original).__name__
    if code.startswith(_VALUE):  # an argument of a task may be among them
        said = said.partition(":")[0].partition("'")[0].strip()
    if code.startswith(_DENIED) or "authentication failed" in said:
        return DatabaseRefused(f"{shown} does not permit what is needed: {said}.")
    if code.startswith(_LATE):
        return DatabaseUnreachable(
            f"{shown} took longer than {STATEMENT_TIMEOUT_S} s for one statement, which was ended.",
            hint="Is there an index on the columns that are asked for? Is it busy?",
        )
    if code.startswith(_LOCKED) or "database is locked" in said:
        return DatabaseLocked(f"{shown}: somebody else holds a lock on what is needed: {said}.")
    if code.startswith(_READ_ONLY) or "readonly database" in said:
        return DatabaseRefused(
            f"{shown} takes no changes: {said}.", hint="Name the primary, and a user that may write."
        )
    return DatabaseUnreachable(f"{shown}: {said}.")


def _code(error: object) -> str:
    """Return the code by which a driver tells an error: five characters of PostgreSQL, a number of MySQL."""
    arguments = getattr(error, "args", ())
    if arguments and isinstance(arguments[0], int):  # MySQL's drivers tell a state beside it, which is less exact
        return str(arguments[0])
    return str(getattr(error, "sqlstate", None) or "")
