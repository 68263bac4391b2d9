"""A block of SQL reads, or changes, or says why it cannot: in time, without a password, and without a trace."""

from __future__ import annotations

import builtins
import traceback

import pytest
import sqlalchemy as sa

from opslib import database as databases
from opslib import redact, settings
from opslib.database import Database, connect
from opslib.errors import DatabaseLocked, DatabaseRefused, DatabaseUnreachable, OpsError, SettingsError
from opslib.settings import Target
from tests.support import tables
from tests.support.tables import task_manager

SECRET = "Corr3ct-h0rse"
C = task_manager.c


def of(url):
    """Return a database as a target leads to it, whose settings were read as they are from a file."""
    return connect(_target(url))


def _target(url):
    given = {"database_url": url.replace("postgresql+psycopg", "postgresql")}
    return settings._target("trial", {"broker_url": "redis://h:6379/0", **given}, {}, [])


def full(url, rows=3):
    """Make the table and some rows."""
    tables.make(url)
    tables.fill(url, rows)
    return of(url)


def attempts(url):
    """Return what every row holds."""
    with tables.connected(url) as connection:
        return list(connection.scalars(sa.select(C.attempts).order_by(C.id)))


def _break_off(connection):
    connection.execute(sa.update(task_manager).values(attempts=9))
    raise ZeroDivisionError


def _ask(known, statement, secret):
    with known.reading() as connection:
        connection.execute(sa.text(statement), {"secret": secret})


class TestBlocks:
    """What a block may do."""

    def test_a_block_that_reads_cannot_write(self, url):
        """The database itself says no."""
        known = full(url)
        with pytest.raises(DatabaseRefused, match="takes no changes"), known.reading() as connection:
            connection.execute(sa.update(task_manager).values(attempts=9))
        assert attempts(url) == [1, 1, 1]

    def test_nor_can_it_be_talked_into_it(self, postgres_url):
        """A statement of somebody's settings may be more than it seems."""
        known = full(postgres_url)
        talk = "SELECT set_config('transaction_read_only', 'off', false)"
        with pytest.raises(OpsError, match="must be set before any query"), known.reading() as connection:
            connection.exec_driver_sql(talk)
        with pytest.raises(OpsError), known.reading() as connection:
            connection.exec_driver_sql(f"{talk}; UPDATE task_manager_taskmanager SET attempts = 9")
        assert attempts(postgres_url) == [1, 1, 1]

    def test_a_block_that_changes_is_committed_at_its_end(self, url):
        """And is undone by any error that leaves it."""
        known = full(url)
        with known.changing() as connection:
            connection.execute(sa.update(task_manager).where(C.id == 1).values(attempts=2))
        with pytest.raises(ZeroDivisionError), known.changing() as connection:
            _break_off(connection)
        assert attempts(url) == [2, 1, 1]

    def test_a_user_of_whom_the_administrator_wants_no_changes_makes_none(self, postgres, postgres_url):
        """What is set for the user is not set aside."""
        known = full(postgres_url)
        name = postgres_url.rpartition("/")[2]
        with postgres.connect() as connection:
            connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with pytest.raises(DatabaseRefused, match="takes no changes"), known.changing() as connection:
            connection.execute(sa.update(task_manager).values(attempts=9))
        with postgres.connect() as connection:  # who is to look has to write here
            connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        assert attempts(postgres_url) == [1, 1, 1]

    def test_no_connection_stays_open(self, postgres, postgres_url):
        """The application needs them itself."""
        known = full(postgres_url)
        for _ in range(3):
            with known.reading() as connection:
                connection.execute(sa.select(C.id))
        with postgres.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            assert connection.execute(query, [databases.NAME]).fetchone() == (0,)

    def test_others_see_who_it_is(self, postgres, postgres_url):
        """Whoever wonders what burdens the server finds a name."""
        known = of(postgres_url)
        with known.reading(), postgres.connect() as other:
            query = "SELECT state FROM pg_stat_activity WHERE application_name = %s"
            assert other.execute(query, [databases.NAME]).fetchall() == [("idle in transaction",)]


class TestRefusals:
    """Every no has its own sentence."""

    def test_a_server_that_is_not_there(self, postgres_url):
        """Before anything else is tried."""
        host = postgres_url.partition("@")[2].partition("/")[0]
        with pytest.raises(DatabaseUnreachable) as caught:
            of(postgres_url.replace(host, "127.0.0.1:1"))
        assert "127.0.0.1:1" in caught.value.message

    def test_a_wrong_password(self, postgres, postgres_url):
        """It is not shown, right or wrong."""
        with pytest.raises(DatabaseRefused, match="does not permit") as caught:
            of(postgres_url.replace(postgres.password, SECRET))
        assert SECRET not in str(caught.value)

    def test_a_database_that_is_not_there(self, postgres_url, tmp_path):
        """A file that is not there is not made."""
        with pytest.raises(DatabaseUnreachable, match="does not exist"):
            of(f"{postgres_url}_2")
        with pytest.raises(DatabaseUnreachable, match="unable to open"):
            of(tables.sqlite(tmp_path / "none.db"))
        assert not (tmp_path / "none.db").exists()

    def test_a_file_that_is_no_database(self, tmp_path):
        """As a path easily leads elsewhere."""
        (tmp_path / "shop.db").write_bytes(b"no database at all " * 100)
        known = of(tables.sqlite(tmp_path / "shop.db"))
        with pytest.raises(DatabaseUnreachable, match="not a database"), known.reading() as connection:
            connection.exec_driver_sql("SELECT 1 FROM sqlite_master")

    def test_a_user_without_rights(self, postgres, postgres_url):
        """To read, or to change."""
        full(postgres_url)
        reader = of(postgres.as_reader(postgres_url))
        with reader.reading() as connection:
            assert connection.scalar(sa.select(sa.func.count(C.id))) == 3
        with pytest.raises(DatabaseRefused, match="does not permit"), reader.changing() as connection:
            connection.execute(sa.update(task_manager).values(attempts=9))
        with postgres.connect() as connection:
            connection.execute("REVOKE pg_read_all_data FROM reader")
        try:
            with pytest.raises(DatabaseRefused, match="does not permit"), reader.reading() as connection:
                connection.execute(sa.select(C.id))
        finally:
            with postgres.connect() as connection:
                connection.execute("GRANT pg_read_all_data TO reader")


class TestTime:
    """It is kind to a server that has other work."""

    def test_a_statement_that_takes_too_long_is_ended(self, postgres, postgres_url, monkeypatch):
        """By the server, which does no more work on it."""
        monkeypatch.setattr(databases, "STATEMENT_TIMEOUT_S", 1)
        known = of(postgres_url)
        with pytest.raises(DatabaseUnreachable, match="took longer than 1 s"), known.reading() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(30)")
        with postgres.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active'"
            assert connection.execute(f"{query} AND pid <> pg_backend_pid()").fetchone() == (0,)

    def test_a_lock_of_somebody_else_is_waited_for_a_little(self, url, monkeypatch):
        """Then it is told, as what it is."""
        monkeypatch.setattr(databases, "LOCK_TIMEOUT_S", 1)
        known = full(url)
        with tables.connected(url) as other:
            other.execute(sa.update(task_manager).values(attempts=5))
            with pytest.raises(DatabaseLocked, match="holds a lock"), known.changing() as connection:
                connection.execute(sa.update(task_manager).values(attempts=9))
        assert attempts(url) == [5, 5, 5]

    def test_sqlite_locks_before_it_looks(self, sqlite_url, monkeypatch):
        """What a block that changes has seen, nobody changes before its end."""
        monkeypatch.setattr(databases, "LOCK_TIMEOUT_S", 0.1)
        known = full(sqlite_url)
        with known.changing() as connection:
            seen = connection.scalar(sa.select(C.attempts).where(C.id == 1))
            with pytest.raises(DatabaseLocked), known.changing():
                pass
            connection.execute(sa.update(task_manager).values(attempts=seen + 1))
        assert attempts(sqlite_url) == [2, 2, 2]


class TestSecrets:
    """A password is nowhere but in the connection."""

    def test_it_is_in_no_repr_and_no_message(self):
        """Of a database, of an error, of the settings that are shown."""
        url = f"postgresql://shop:{SECRET}@127.0.0.1:1/shop?sslmode=disable"
        target = _target(url)
        known = Database(url=target.database_url, shown=target.shown_database)
        with pytest.raises(DatabaseUnreachable) as caught:
            connect(target)

        shown = [repr(known), str(caught.value), repr(caught.value), target.shown_database, known.shown]
        shown += [str(settings.described(target)), *traceback.format_exception(caught.value)]
        assert not [text for text in shown if SECRET in text]
        assert SECRET not in redact.text(f"somebody says {SECRET}")
        assert known.shown == "postgresql://shop:***@127.0.0.1:1/shop"

    def test_an_error_shows_neither_statement_nor_values(self, postgres_url):
        """Arguments of tasks are among them."""
        known = full(postgres_url)
        with pytest.raises(DatabaseUnreachable) as caught, known.reading() as connection:
            connection.execute(sa.text("SELECT 1 / (:secret)::int"), {"secret": "0"})
        assert "SELECT" not in str(caught.value)
        with pytest.raises(DatabaseUnreachable, match="invalid input syntax for type integer") as caught:
            _ask(known, "SELECT (:secret)::text::int", SECRET)
        assert SECRET not in str(caught.value)
        with pytest.raises(DatabaseUnreachable) as caught, known.reading() as connection:
            connection.execute(sa.text("SELECT nothing FROM task_manager_taskmanager WHERE 'x' = :s"), {"s": SECRET})
        assert SECRET not in str(caught.value)


class TestNotInstalled:
    """What is missing has a name, and a command that installs it."""

    @pytest.mark.parametrize(
        ("missing", "url", "extra"),
        [
            ("sqlalchemy", "postgresql://h/shop", "postgres"),
            ("psycopg", "postgresql://h/shop", "postgres"),
            ("pymysql", "mysql://h/shop", "mysql"),
            ("sqlalchemy", "sqlite:////shop.db", "sql"),
        ],
    )
    def test_a_driver(self, monkeypatch, missing, url, extra):
        """It is said before anything is tried."""
        real = builtins.__import__

        def without(name, *args, **options):
            if name.partition(".")[0] == missing and not (args[3:] or (0,))[0]:  # a dialect is called like its driver
                raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
            return real(name, *args, **options)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(SettingsError) as caught:
            of(url)

        assert f"{missing} is not installed" in caught.value.message
        assert f"opslib[{extra}]" in caught.value.hint

    def test_a_target_without_a_database(self):
        """It says which setting is missing."""
        with pytest.raises(SettingsError, match="names no SQL database"):
            connect(Target(name="trial", broker_url="redis://h"))
