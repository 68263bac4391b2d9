"""What most tests stand on: one clean server for each process of xdist, an archive of their own, no runner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from opslib import records
from opslib.broker import Broker, connect
from opslib.demo import server as embedded
from opslib.embedded.server import Server
from opslib.settings import Target
from tests.support import engines, servers, tables
from tests.support import mariadb as mariadbs
from tests.support import postgres as postgresql
from tests.support.engines import Engine
from tests.support.mariadb import MariaDB
from tests.support.postgres import Postgres
from tests.support.workers import Deployment, deployment


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a process that share it; each finds it empty through `redis`."""
    with embedded.start(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def redis(server: Server) -> Iterator[Redis]:
    """A plain client of the shared server, which is empty and as it was configured."""
    with server.client() as client:
        client.config_set("maxmemory", "256mb")
        client.flushall()
        yield client


@pytest.fixture(scope="session", params=engines.KINDS)
def _engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engines.start(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def any_server(_engine: Engine) -> Engine:
    """A server of each kind in turn, which is empty and as it was configured."""
    with _engine.client() as client:
        client.config_set("maxmemory", "256mb")
        client.flushall()
    return _engine


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests of a process that ask for it; databases of their own come from `postgres_url`."""
    with postgresql.start() as running:
        yield running


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database for the application, with its password."""
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """One MariaDB for all tests of a process that ask for it; databases of their own come from `mariadb_url`."""
    with mariadbs.start() as running:
        yield running


@pytest.fixture
def mariadb_url(mariadb: MariaDB) -> Iterator[str]:
    """An empty database for the application, with its password."""
    with mariadb.database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file of its own."""
    return tables.sqlite(tmp_path / "shop.db")


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def target(server: Server) -> Target:
    """The shared server as a target."""
    return servers.target(server)


@pytest.fixture
def broker(redis: Redis, target: Target, archive: Path) -> Broker:
    """Open clients of the shared server, whatever its test seeds; changes are audited in `archive`."""
    assert not redis.dbsize()
    assert archive.is_dir()
    return connect(target)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of its own, and a run of its own, by hand."""
    folder = tmp_path / "reports"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("OPS_REPORTS", str(folder))
    monkeypatch.delenv("OPS_RUN", raising=False)
    monkeypatch.setattr(records, "_HAND", [])
    return folder


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server of the module's own, for the workers that its tests share."""
    folder = tmp_path_factory.mktemp("trial")
    with embedded.start(folder) as running, deployment(running, folder) as made:
        yield made
