"""What is said of a table is complete and can be meant, or a sentence says what is wrong with it."""

from __future__ import annotations

import pytest

from opslib.errors import SettingsError
from opslib.task_tables import FIELDS, FINAL, NEEDED, PRESETS, StateRow, TaskTable, Verifier, check_state, resolved

WHERE = "Target trial: task_tables.tasks"
OWN = TaskTable(
    table="jobs", columns={name: f"c_{name}" for name in NEEDED}, open=["NEW", "BUSY"], closed=["OK", "BAD"], zone="UTC"
)


def with_(**values):
    """Return a table of an application's own that says something else."""
    return TaskTable(**{**{name: getattr(OWN, name) for name in OWN.__struct_fields__}, **values})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete(name):
    """Every column by a name of ours, statuses that are apart, and a status for each end that it can tell."""
    made = resolved("tasks", TaskTable(preset=name), WHERE)

    assert set(NEEDED) <= made.columns.keys() <= set(FIELDS)
    assert not set(made.open) & set(made.closed)
    assert set(made.becomes) == set(FINAL)
    assert set(made.becomes.values()) <= set(made.closed)
    assert made.zone == "UTC"


def test_only_tables_of_results_are_called_that():
    """Their open rows say that no result was stored; those of a task manager say what the application believes."""
    assert {name for name in PRESETS if PRESETS[name].results} == {"django-celery-results", "celery"}


def test_what_is_said_beats_the_preset_and_the_rest_is_its():
    """One column, one status and the zone of a table that is almost a task manager's."""
    given = TaskTable(
        preset="task-manager",
        table="shop.tasks",
        columns={"last_run": "started_at"},
        closed=["DONE", "ERROR", "CANCELLED", "GONE"],
        becomes={"REVOKED": "GONE"},
        zone="Europe/Berlin",
    )

    made = resolved("tasks", given, WHERE)

    assert (made.table, made.zone, made.open) == ("shop.tasks", "Europe/Berlin", ["SCHEDULED"])
    assert made.columns == {**PRESETS["task-manager"].columns, "last_run": "started_at"}
    assert made.becomes == {"SUCCESS": "DONE", "FAILURE": "ERROR", "REVOKED": "GONE"}


def test_a_status_that_a_table_has_not_is_not_written_for_a_preset_says_it():
    """Whoever says which statuses are closed has said it of the preset's too."""
    given = TaskTable(preset="task-manager", closed=["DONE", "BROKEN"])

    assert resolved("tasks", given, WHERE).becomes == {"SUCCESS": "DONE"}


def test_a_table_of_celerys_own_words_needs_not_say_what_becomes_of_a_state():
    """It becomes that state, where it is among the closed ones; what a table has no status for is not written."""
    assert resolved("tasks", with_(closed=["SUCCESS", "FAILURE"]), WHERE).becomes == {
        "SUCCESS": "SUCCESS",
        "FAILURE": "FAILURE",
    }
    assert resolved("tasks", with_(), WHERE).becomes == {}


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        (TaskTable(), "names no table", "django-celery-results"),
        (TaskTable(preset="task-manger"), "there is no 'task-manger'", "Did you mean task-manager?"),
        (with_(columns={**OWN.columns, "satus": "s"}), "'satus' is nothing that a column says", "Did you mean status?"),
        (with_(columns={"id": "id", "status": "s"}), "which column is task_id nor last_run", 'task_id = "task_id"'),
        (with_(columns={**OWN.columns, "id": ""}), "which column is id", 'id = "id"'),
        (with_(open=[]), "which statuses are open", "SCHEDULED"),
        (with_(closed=[]), "which statuses are closed", "DONE"),
        (with_(open=["NEW", "OK"]), "'OK' is open and closed", ""),
        (with_(open=[f"s{n}" for n in range(49)]), "more than 50 statuses", ""),
        (with_(becomes={"SUCESS": "OK"}), "'SUCESS' is no final state of Celery's", "Did you mean SUCCESS?"),
        (with_(becomes={"SUCCESS": "NEW"}), "'NEW' is not among the closed statuses", "OK"),
        (with_(zone="Mars/Olympus"), "'Mars/Olympus' is no time zone", "UTC"),
        (with_(zone="../../etc/passwd"), "is no time zone", "UTC"),
        (with_(verify={"a": Verifier()}), "verify.a needs one of sql and python", ""),
        (with_(verify={"a": Verifier(sql="SELECT 1", python="m:f")}), "needs one of sql and python", ""),
        (with_(verify={"a": Verifier(sql="DELETE FROM x")}), "is no SELECT", "cannot write"),
        (with_(verify={"a": Verifier(sql="selection FROM x")}), "is no SELECT", "cannot write"),
        (with_(verify={"a": Verifier(python="os.system")}), "is no module:function", ""),
        (with_(verify={"a": Verifier(python="m:f(1)")}), "is no module:function", ""),
    ],
)
def test_what_cannot_be_meant_is_refused(given, said, hint):
    """The sentence names the setting and what is wrong with it; the hint names the nearest that would do."""
    with pytest.raises(SettingsError) as caught:
        resolved("tasks", given, WHERE)

    assert caught.value.message.startswith(WHERE)
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["", "Tasks", "1st", "a.b", "a" * 32, "täglich", "x;drop"])
def test_a_name_is_one_that_can_be_typed(name):
    """It stands in commands, in plans and in reports."""
    with pytest.raises(SettingsError, match="is no name"):
        resolved(name, OWN, WHERE)
    with pytest.raises(SettingsError, match="is no name"):
        check_state(name, StateRow(table="agent", key={"id": 1}, idle={"status": "idle"}), WHERE)


@pytest.mark.parametrize("sql", ["SELECT 1", "  select\n1", "WITH x AS (SELECT 1) SELECT * FROM x"])
def test_a_verifier_is_a_select_however_it_is_spelled(sql):
    """What it may do besides, its transaction forbids."""
    assert resolved("tasks", with_(verify={"shop.*": Verifier(sql=sql)}), WHERE).verify["shop.*"].sql == sql


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"table": ""}, "does not say its table"),
        ({"key": {}}, "does not say its key"),
        ({"idle": {}}, "does not say its idle"),
        ({"idle": {"id": 2, "status": "idle"}}, "'id' finds the row and would be changed"),
    ],
)
def test_a_row_of_state_is_one_row_and_says_what_it_is_set_to(values, said):
    """One without a key would be every row."""
    row = StateRow(**{"table": "agent", "key": {"id": 1}, "idle": {"status": "idle"}, **values})
    with pytest.raises(SettingsError, match=said):
        check_state("agent", row, "Target trial: state_rows.agent")
