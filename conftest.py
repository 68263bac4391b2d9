"""
The notebooks as tests: each runs with its defaults on a small real system, and must leave it as it was.

nbmake makes their items, which run no fixtures; so hooks start the system, when the first of them is about to run.
What it is made of, `--stack` says: an embedded server and processes, or containers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.shop import contents, embedded, open_shop, orphan
from tests.support import tables
from tests.support.workers import Deployment

#: Tests of containers; there are none where the stack has none.
_OF_CONTAINERS = Path(__file__).with_name("tests") / "docker"
_SHOP = pytest.StashKey[Deployment]()
_TABLE = pytest.StashKey[Path]()
_BEFORE = pytest.StashKey[dict[bytes, object]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller choose what the notebooks run on."""
    parser.addoption("--stack", choices=["embedded", "docker"], default="embedded", help="what the notebooks run on")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests of containers out, unless containers are asked for."""
    return True if collection_path == _OF_CONTAINERS and config.option.stack != "docker" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the notebooks, so that `-m notebook` chooses them."""
    for item in filter(_is_notebook, items):
        item.add_marker("notebook")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have the system up before the kernel inherits the environment that leads to it."""
    if _is_notebook(item):
        if _SHOP not in item.config.stash:
            item.config.stash[_SHOP] = _start(item.config)
        item.stash[_BEFORE] = _contents(item.config)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Fail a notebook whose defaults changed anything: the same keys with the same bytes have to be there."""
    if _BEFORE in item.stash:
        after = _contents(item.config)
        if after != item.stash[_BEFORE]:
            names = [name for name in after | item.stash[_BEFORE] if after.get(name) != item.stash[_BEFORE].get(name)]
            pytest.fail(
                f"With its defaults, a notebook has to leave broker and database as they were; it changed {names}."
            )


def _contents(config: pytest.Config) -> dict[bytes, object]:
    """Return all keys of the broker, and the file of the application's database."""
    return {**contents(config.stash[_SHOP].redis), b"database": config.stash[_TABLE].read_bytes()}


def _is_notebook(item: pytest.Item) -> bool:
    return getattr(item, "nbmake", False)


def _stack(config: pytest.Config) -> Callable[[Path], AbstractContextManager[Deployment]]:
    if config.option.stack == "embedded":
        return embedded
    from tests.support import containers

    return partial(containers.stack, containers.shared(config))


def _start(config: pytest.Config) -> Deployment:
    stack = _stack(config)  # before what ends with this system, for it ends after it
    running = ExitStack()
    config.add_cleanup(running.close)
    folder = Path(running.enter_context(TemporaryDirectory(prefix="opslib-notebooks-")))
    shop = running.enter_context(open_shop(folder, stack))
    orphaned = orphan(shop)
    config.stash[_TABLE] = folder / "shop.db"
    url = tables.sqlite(config.stash[_TABLE])
    tables.make(url)
    known = {"task_module": "tests", "status": "SCHEDULED", "last_run": tables.at(30 * 3600)}
    tables.add(url, [{**known, "task_name": "late", "task_id": each} for each in (orphaned, tables.task_id(1))])
    environment = running.enter_context(pytest.MonkeyPatch.context())
    for name in ("OPS_TARGET", "OPS_ENV_FILE", "OPS_RUN", "JUPYTER_PATH", "DATABASE_URL"):
        environment.delenv(name, raising=False)
    for name, value in {
        "OPS_BROKER_URL": shop.server.url,
        "OPS_RESULT_BACKEND": shop.server.url,
        "OPS_DATABASE_URL": url,
        "OPS_PROJECT": str(folder),  # whatever .env and ops.toml the checkout has
        "OPS_REPORTS": str(folder / "reports"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }.items():
        environment.setenv(name, value)
    return shop
