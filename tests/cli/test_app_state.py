"""The row in which an application says what it is at: shown, set back, and as it was again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from opslib.errors import Exit
from tests.command_line import Done, call
from tests.support import tables
from tests.support.workers import Deployment

TOML = """
default_target = "shop"
[targets.shop]
broker_url = "env:OPS_BROKER_URL"
database_url = "env:SHOP_DATABASE"
[targets.shop.state_rows.agent]
table = "agent_state"
key = { id = 1 }
idle = { status = "idle", current_task = "none" }
[targets.shop.state_rows.ghost]
table = "agent_state"
key = { id = 99 }
idle = { status = "idle" }
[targets.shop.state_rows.all]
table = "agent_state"
key = { kind = "agent" }
idle = { status = "idle" }
"""


@pytest.fixture
def url(shop: Deployment, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An agent that died while it was busy, and another one."""
    assert shop
    found = tables.sqlite(place / "shop.db")
    monkeypatch.setenv("SHOP_DATABASE", found)
    (place / "ops.toml").write_text(TOML)
    with tables.connected(found) as connection:
        connection.execute(
            sa.text("CREATE TABLE agent_state (id integer PRIMARY KEY, kind text, status text, current_task text)")
        )
        connection.execute(
            sa.text("INSERT INTO agent_state VALUES (1, 'agent', 'busy', 'import 4711'), (2, 'agent', 'busy', 'x')")
        )
    return found


def held(url: str) -> list[tuple[object, ...]]:
    """Return all rows."""
    with tables.connected(url) as connection:
        return [tuple(row) for row in connection.execute(sa.text("SELECT id, status, current_task FROM agent_state"))]


BEFORE = [(1, "busy", "import 4711"), (2, "busy", "x")]
IDLE = [(1, "idle", "none"), (2, "busy", "x")]


def reset(name: str = "agent") -> Done:
    """Set it back."""
    return call("app", "reset", name, "--apply", "--yes", "--reason", "it died", "--json")


def test_it_is_shown(url: str) -> None:
    """Exit 1, for it is not idle; one that is not there, and one that is several, are told as such."""
    done = call("app", "state", "--json")
    found = {row["name"]: row for row in json.loads(done.out)}

    assert done.code == Exit.ATTENTION
    assert json.loads(found["agent"]["now"]) == {"status": "busy", "current_task": "import 4711"}
    assert "no such row" in found["ghost"]["problem"]
    assert "more than one row" in found["all"]["problem"]
    assert held(url) == BEFORE


def test_without_apply_it_is_only_planned(url: str) -> None:
    """It says which columns, and not what they hold: that may be about somebody."""
    done = call("app", "reset", "agent")

    assert "status and current_task become idle" in " ".join(done.out.split())
    assert "4711" not in done.out
    assert held(url) == BEFORE


def test_it_is_set_back_and_undone(url: str) -> None:
    """That row and no other; and it holds what it held."""
    done = reset()
    assert done.code == Exit.DONE, done.err
    assert held(url) == IDLE
    run_id = json.loads(done.out)["run_id"]

    undone = call("undo", run_id, "--apply", "--yes")

    assert undone.code == Exit.DONE, undone.err
    assert held(url) == BEFORE


def test_what_the_application_has_set_since_is_left(url: str) -> None:
    """An undo compares too."""
    run_id = json.loads(reset().out)["run_id"]
    with tables.connected(url) as connection:
        connection.execute(sa.text("UPDATE agent_state SET status = 'busy', current_task = 'next' WHERE id = 1"))

    undone = call("undo", run_id, "--apply", "--yes")

    assert undone.code == Exit.ATTENTION
    assert held(url)[0] == (1, "busy", "next")


def test_one_that_is_idle_needs_nothing(url: str) -> None:
    """A second reset changes nothing."""
    assert reset().code == Exit.DONE
    again = call("app", "reset", "agent")

    assert again.code == Exit.DONE
    assert held(url) == IDLE


@pytest.mark.parametrize(
    ("name", "said"), [("ghost", "no such row"), ("all", "more than one row"), ("agnet", "Did you mean agent?")]
)
def test_what_cannot_be_meant_is_refused(url: str, name: str, said: str) -> None:
    """With the nearest name, where there is one."""
    done = call("app", "reset", name, "--apply", "--yes")

    assert done.code == Exit.USAGE
    assert said in done.err
    assert held(url) == BEFORE


def test_a_target_without_one_is_told_how_to_name_it(shop: Deployment) -> None:
    """It leads to the page."""
    assert shop
    done = call("app", "state")

    assert done.code == Exit.USAGE
    assert "state_rows" in done.err
