"""Which system a command works on is decided once, in a known order, and nothing is ever guessed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from opslib import redact, settings, task_tables
from opslib.errors import Exit, SettingsError
from opslib.settings import BROKER_NAMES, RESULT_NAMES, Target
from opslib.task_tables import StateRow, TaskTable, Verifier

TABLE = TaskTable(preset="task-manager", table="jobs", verify={"a.*": Verifier(sql="SELECT true")})
PROD = '[targets.prod]\nbroker_url = "redis://prod/0"\n'


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """No password of another test is masked in this one."""
    monkeypatch.setattr(redact, "_known", set())


@pytest.fixture
def load(tmp_path):
    """Load a target from what is given: files of the project's folder, and an environment."""

    def load(
        name: str = "", *, toml: str = "", dotenv: str = "", env: dict[str, str] | None = None, env_file: str = ""
    ) -> Target:
        if toml:
            (tmp_path / "ops.toml").write_text(toml)
        if dotenv:
            (tmp_path / ".env").write_text(dotenv)
        return settings.load(name, env_file=env_file, environ=env or {}, start=tmp_path)

    return load


def refused(call, *args, **kwargs):
    """Return the error with which a call ends; it is always the user's own, with exit code 2."""
    with pytest.raises(SettingsError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code is Exit.USAGE
    return caught.value


# Which target


def test_nothing_configured_is_an_error_and_never_the_demo(load):
    """Whoever configured nothing is told how, and gets no system at all."""
    error = refused(load)

    assert error.message == "No target is named, and the environment describes none."
    assert error.hint == "Set OPS_BROKER_URL, or try `--target demo`."


def test_targets_without_a_default_are_named(load):
    """A file of targets is no choice of one."""
    assert refused(load, toml=PROD).hint == "Name one with --target: prod, demo."


@pytest.mark.parametrize(
    ("name", "env", "toml", "chosen"),
    [
        ("prod", {"OPS_TARGET": "staging", "OPS_BROKER_URL": "redis://env"}, "", "redis://prod/0"),
        (
            "",
            {"OPS_TARGET": "staging", "OPS_BROKER_URL": "redis://env"},
            'default_target = "prod"\n',
            "redis://staging/0",
        ),
        ("", {"OPS_BROKER_URL": "redis://env"}, 'default_target = "prod"\n', "redis://prod/0"),
        ("", {"OPS_BROKER_URL": "redis://env"}, "", "redis://env/0"),
    ],
    ids=["flag", "OPS_TARGET", "default_target", "environment"],
)
def test_the_flag_wins_then_ops_target_then_the_file_then_the_environment(load, name, env, toml, chosen):
    """Each of these is asked only when those before it say nothing."""
    files = toml + PROD + '[targets.staging]\nbroker_url = "redis://staging/0"\n'

    assert load(name, toml=files, env=env).broker_url == chosen


def test_a_named_target_is_not_redirected_by_the_environment(load):
    """A BROKER_URL that was left in a shell never leads `--target prod` to another server."""
    strays = dict.fromkeys((*BROKER_NAMES, *RESULT_NAMES), "redis://stray/5")

    target = load("prod", toml=PROD, env=strays, dotenv="OPS_BROKER_URL=redis://stray/6\n")

    assert target.broker_url == "redis://prod/0"
    assert target.result_backend == ""
    assert target.warnings == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("prd", "Did you mean prod?"),
        ("prod ", "Did you mean prod?"),
        ("Prod", "Did you mean prod?"),
        ("zzz", "Known: demo, prod."),
    ],
)
def test_an_unknown_target_is_refused_with_the_nearest_name(load, name, hint):
    """A typo chooses nothing; white space and capitals are typos too."""
    error = refused(load, name, toml=PROD)

    assert repr(name) in error.message
    assert error.hint == hint


def test_ops_target_may_have_white_space_around_it(load):
    """A variable from a file often has a blank at its end."""
    assert load(toml=PROD, env={"OPS_TARGET": " prod "}).name == "prod"


def test_a_target_called_demo_in_the_file_is_the_files(load):
    """Who takes the name for a system of their own gets that system."""
    assert load("demo", toml='[targets.demo]\nbroker_url = "redis://mine"\n').broker_url == "redis://mine/0"


def test_the_demo_without_a_demo_says_how_to_start_one(load, monkeypatch, tmp_path):
    """It is never started by reading settings."""
    monkeypatch.setenv("OPS_DEMO_DIR", str(tmp_path / "none"))

    assert "`ops demo up`" in refused(load, "demo").hint


# The environment


@pytest.mark.parametrize(
    ("names", "field"), [(BROKER_NAMES, "broker_url"), (RESULT_NAMES, "result_backend")], ids=["broker", "results"]
)
def test_the_first_name_that_is_set_wins_and_the_others_are_warned_of(load, names, field):
    """Two variables that disagree are an accident waiting to happen: the warning names the winner and the losers."""
    for first, winner in enumerate(names):
        env = {name: f"redis://host-{n}" for n, name in enumerate(names) if n >= first}
        if field == "result_backend":
            env["OPS_BROKER_URL"] = "redis://h"

        target = load(env=env)

        assert getattr(target, field) == f"redis://host-{first}/0"
        assert target.origins[field] == f"environment: {winner}"
        losers = ", ".join(f"{name} (environment)" for name in names[first + 1 :])
        assert target.warnings == ([f"{losers} says something else; environment: {winner} wins."] if losers else [])


def test_two_variables_that_agree_are_no_warning(load):
    """The same URL twice is one URL."""
    assert load(env={"OPS_BROKER_URL": "redis://h", "BROKER_URL": "redis://h"}).warnings == []


def test_the_environment_wins_over_the_env_file(load):
    """Even under a lesser name: what was exported now counts more than what was written once; and it is said."""
    target = load(env={"REDIS_URL": "redis://shell"}, dotenv="OPS_BROKER_URL=redis://file\n")

    assert target.broker_url == "redis://shell/0"
    assert target.warnings == ["OPS_BROKER_URL (.env) says something else; environment: REDIS_URL wins."]


def test_an_empty_variable_is_none(load):
    """A blank value is what `export NAME=` leaves, not a broker."""
    assert (
        load(env={"OPS_BROKER_URL": "  ", "BROKER_URL": "redis://h"}).origins["broker_url"] == "environment: BROKER_URL"
    )


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_another_env_file_is_read_instead(load, tmp_path, how):
    """`--env-file` and OPS_ENV_FILE name it; the `.env` beside it is then not read."""
    (tmp_path / "other.env").write_text('export OPS_BROKER_URL="redis://other"\n')
    path = str(tmp_path / "other.env")
    said = {"env_file": path} if how == "flag" else {"env": {"OPS_ENV_FILE": path}}

    target = load(dotenv="OPS_BROKER_URL=redis://beside\n", **said)

    assert target.broker_url == "redis://other/0"
    assert target.origins["broker_url"] == "other.env: OPS_BROKER_URL"


def test_an_env_file_that_is_not_there_is_an_error(load):
    """A `.env` may be missing; a file that was named may not."""
    assert "no file nowhere.env" in refused(load, env_file="nowhere.env").message


def test_an_env_file_that_is_no_text_is_an_error(load, tmp_path):
    """It says which file, and shows none of it."""
    (tmp_path / ".env").write_bytes(b"OPS_BROKER_URL=\xff\n")

    assert refused(load).message.startswith(".env cannot be read")


def test_a_result_backend_of_another_kind_is_kept_as_it_is(load):
    """It cannot be looked into, which is for the coverage to say; its password is masked all the same."""
    target = load(env={"OPS_BROKER_URL": "redis://h", "RESULT_BACKEND": "db+postgresql://ops:geheim@db/shop"})

    assert target.result_backend == "db+postgresql://ops:geheim@db/shop"
    assert target.shown_results == "db+postgresql://ops:***@db/shop"
    assert redact.text("geheim") == "***"


@pytest.mark.parametrize("name", ["OPS_BROKER_URL", "OPS_RESULT_BACKEND"])
def test_a_broken_url_of_the_environment_is_refused_without_its_password(load, name):
    """The error says which setting it is, and what is wrong with it."""
    env = {"OPS_BROKER_URL": "redis://h", name: "redis://:geheim@h/abc"}

    error = refused(load, env=env)

    assert "no database number" in error.message
    assert "geheim" not in str(error)


# ops.toml


def test_a_url_may_come_from_a_variable(load):
    """`env:NAME` is looked up in the environment, then in the `.env`; the origin says where it was."""
    toml = '[targets.prod]\nbroker_url = "env:PROD_URL"\n'

    assert load("prod", toml=toml, env={"PROD_URL": "redis://:geheim@h"}).broker_url == "redis://:geheim@h/0"
    target = load("prod", toml=toml, dotenv="PROD_URL=redis://:geheim@h/1\n")
    assert target.broker_url == "redis://:geheim@h/1"
    assert target.origins["broker_url"] == ".env: PROD_URL"


@pytest.mark.parametrize("variable", ["PROD_URL", ""])
def test_a_variable_that_is_not_set_is_an_error(load, variable):
    """There is nothing else that could be meant."""
    error = refused(
        load, "prod", toml=f'[targets.prod]\nbroker_url = "env:{variable}"\n', env={"OPS_BROKER_URL": "redis://h"}
    )

    assert error.message == f"ops.toml: targets.prod.broker_url names the variable {variable}, which is not set."


@pytest.mark.parametrize(
    ("mode", "usable"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o620, False)]
)
def test_a_secret_file_is_its_owners_alone(load, tmp_path, mode, usable):
    """`file:PATH` is read only if nobody else may read or change it; the hint is the command that makes it so."""
    secret = tmp_path / "secret"
    secret.write_text("redis://:geheim@h/0\n")
    secret.chmod(mode)
    toml = f'[targets.prod]\nbroker_url = "file:{secret}"\n'

    if usable:
        assert load("prod", toml=toml).broker_url == "redis://:geheim@h/0"
    else:
        assert refused(load, "prod", toml=toml).hint == f"chmod 600 {secret}"


def test_a_relative_secret_file_lies_beside_the_settings(load, tmp_path, monkeypatch):
    """A kernel works in another folder than the command that started it, and must find the same file."""
    (tmp_path / "secret").write_text("redis://h/4")
    (tmp_path / "secret").chmod(0o600)
    monkeypatch.chdir("/")

    assert load("prod", toml='[targets.prod]\nbroker_url = "file:secret"\n').broker_url == "redis://h/4"


@pytest.mark.parametrize("name", ["nowhere", ".", "~nobody-of-that-name/x", "a\\u0000b", "binary"])
def test_a_secret_file_that_cannot_be_read_is_an_error(load, tmp_path, name):
    """Missing, a folder, no such user, no such name, no text: a sentence each, and no fall-back."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)

    error = refused(
        load, "prod", toml=f'[targets.prod]\nbroker_url = "file:{name}"\n', env={"OPS_BROKER_URL": "redis://h"}
    )

    assert "which cannot be read" in error.message


@pytest.mark.parametrize(
    "url",
    ["redis://:geheim@h/0", "redis://:ge/heim@h/0", "redis://h/0?password=geheim", "sentinel://a;sentinel://:geheim@b"],
)
@pytest.mark.parametrize("key", ["broker_url", "result_backend"])
def test_a_password_in_the_file_is_refused(load, key, url):
    """The file may be committed, so no secret may stand in it, in whichever part of the URL."""
    values = {"broker_url": "redis://h", key: url}
    toml = "\n".join(["[targets.prod]", *(f'{name} = "{value}"' for name, value in values.items())])

    error = refused(load, "prod", toml=toml)

    assert error.message == f"ops.toml: targets.prod.{key} holds a password."
    assert "env:NAME" in error.hint


@pytest.mark.parametrize(
    ("toml", "message", "hint"),
    [
        ("defualt_target = 'prod'", "'defualt_target' is no setting of this file", "Did you mean default_target?"),
        ("[target.prod]", "'target' is no setting of this file", "Did you mean targets?"),
        (PROD + "protekted = true", "unknown field `protekted`", "Did you mean protected?"),
        (
            PROD + "[targets.prod.thresholds]\nstuckafter = '3h'",
            "unknown field `stuckafter`",
            "Did you mean stuck_after?",
        ),
        (PROD + "name = 'x'", "'name' is no setting", "Known: app_keys, beat_url"),
        (PROD + "warnings = []", "'warnings' is no setting", "Known: app_keys, beat_url"),
        (PROD + "protected = 'yes'", "protected: expected `bool`, got `str`", ""),
        (PROD + "nodes = 'w1@h'", "nodes: expected `array`, got `str`", ""),
        ("[targets.prod]\nbroker_url = 5", "broker_url: expected `str`, got `int`", ""),
        ("[targets.prod]\nprotected = true", "targets.prod has no broker_url", "env:PROD_BROKER_URL"),
        (
            PROD + "[targets.prod.thresholds]\nstuck_after = 3",
            "stuck_after: expected `str`, got `int`",
            "text with a unit",
        ),
        (PROD + "[targets.prod.thresholds]\nstuck_after = '3'", "'3' has no unit", "3h"),
        (PROD + "[targets.prod.thresholds]\nvisibility_timeout = '0s'", "not a duration above zero", "3h"),
        (PROD + "[targets.prod.thresholds]\nloop_after = 0", "loop_after: expected `int` >= 1", ""),
        (PROD + "[targets.prod.thresholds]\nloop_after = -5", "loop_after: expected `int` >= 1", ""),
        ("targets = 5", "targets is not a table", ""),
        ("targets.prod = 5", "targets.prod is not a table", ""),
        ("[targets.prod", "not valid TOML", ""),
    ],
)
def test_what_the_file_may_not_say_is_refused(load, toml, message, hint):
    """A misspelt name, a wrong type and a missing value are told by their place, with the nearest right name."""
    error = refused(load, "prod", toml=toml)

    assert message in error.message
    assert hint in error.hint


def test_the_file_is_looked_for_upwards(tmp_path):
    """It counts in every folder of the project."""
    (tmp_path / "ops.toml").write_text(PROD)
    (tmp_path / "a" / "b").mkdir(parents=True)

    assert settings.load("prod", environ={}, start=tmp_path / "a" / "b").broker_url == "redis://prod/0"


def test_every_setting_of_the_file_reaches_the_target(load):
    """What is written there is what counts."""
    target = load(
        "prod",
        toml=f"""{PROD}result_backend = "redis://results/1"
environment = "prod-eu"
protected = true
global_keyprefix = "app:"
result_keyprefix = "res:"
master_name = "mymaster"
nodes = ["w1@h", "w2@h"]
queues = ["mail"]
beat_url = "redis://beat/2"
app_keys.progress = {{ pattern = "p:{{task_id}}", url = "redis://app/1" }}
retention = {{ "mail.*" = "2d", default = "6h" }}
temporary_files.uploads = {{ folder = "/srv/app/uploads", pattern = "*.part" }}
database_url = "mysql://db/shop"
task_tables.tasks = {{ preset = "task-manager", table = "jobs", verify."a.*" = {{ sql = "SELECT true" }} }}
state_rows.agent = {{ table = "agent", key = {{ id = 1 }}, idle = {{ status = "idle" }} }}
thresholds = {{ stuck_after = "90m", loop_after = 3, visibility_timeout = "2h" }}
""",
    )

    assert msgspec.structs.asdict(target) | {"origins": {}} == {
        "name": "prod",
        "broker_url": "redis://prod/0",
        "result_backend": "redis://results/1",
        "environment": "prod-eu",
        "protected": True,
        "global_keyprefix": "app:",
        "result_keyprefix": "res:",
        "master_name": "mymaster",
        "nodes": ["w1@h", "w2@h"],
        "queues": ["mail"],
        "beat_url": "redis://beat/2",
        "app_keys": {"progress": settings.AppKey(pattern="p:{task_id}", url="redis://app/1")},
        "retention": {"mail.*": "2d", "default": "6h"},
        "temporary_files": {"uploads": settings.TemporaryFolder(folder="/srv/app/uploads", pattern="*.part")},
        "database_url": "mysql+pymysql://db/shop",
        "task_tables": {"tasks": task_tables.resolved("tasks", TABLE, "")},
        "state_rows": {"agent": StateRow(table="agent", key={"id": 1}, idle={"status": "idle"})},
        "thresholds": settings.Thresholds(stuck_after="90m", loop_after=3, visibility_timeout="2h"),
        "origins": {},
        "warnings": [],
    }


# The application's SQL database


@pytest.mark.parametrize("name", settings.DATABASE_NAMES)
def test_the_environment_names_a_database(load, name):
    """Ours first, then the one that applications use."""
    found = load(env={"REDIS_URL": "redis://h", name: "postgres://shop:geheim@db/shop?conn_max_age=60"})

    assert found.database_url == "postgresql+psycopg://shop:geheim@db/shop"
    assert found.shown_database == "postgresql://shop:***@db/shop"
    assert found.origins["database_url"] == f"environment: {name}"


def test_an_application_s_database_of_another_kind_is_no_reason_to_refuse_a_run(load):
    """Nobody asked to look there; that it is not looked at is said."""
    found = load(env={"REDIS_URL": "redis://h", "DATABASE_URL": "mongodb://db/shop"})

    assert found.database_url == ""
    assert found.warnings == [
        "environment: DATABASE_URL: 'mongodb://db/shop' is no URL of PostgreSQL, MySQL or SQLite; it is not looked at."
    ]


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ('database_url = "postgresql://u:geheim@db/shop"', "holds a password", "env:NAME"),
        ('task_tables.tasks = { preset = "celery" }', "has task_tables and no database_url", "env:PROD_DATABASE_URL"),
        ('database_url = "mysql://db/shop"\ntask_tables.t = { presett = "x" }', "presett", "Did you mean preset?"),
        ('database_url = "mysql://db/shop"\ntask_tables.t = { open = "NEW" }', "task_tables", ""),
        ('database_url = "mysql://db/shop"\nstate_rows.a = { table = "a", key = { id = 1 } }', "idle", ""),
        ('database_url = "mysql://db/shop"\ntask_tables.t = { verify.a = { sqll = "" } }', "sqll", "Did you mean sql?"),
    ],
)
def test_what_cannot_be_meant_about_tables_is_refused(load, line, said, hint):
    """With the setting's name, and without the password."""
    error = refused(load, "prod", toml=f"{PROD}{line}\n")

    assert said in error.message
    assert hint in error.hint
    assert "geheim" not in str(error)


def test_beat_s_database_is_named_by_a_variable_or_the_file(load):
    """And masked wherever it is shown."""
    env = {"OPS_BEAT_URL": "redis://:a-long-password@h/4", "REDIS_URL": "redis://h"}
    by_variable = load(env=env)
    by_file = load("prod", toml=f'{PROD}beat_url = "env:OPS_BEAT_URL"\n', env=env)
    (row,) = [row for row in settings.described(by_file) if row["setting"] == "beat_url"]

    assert by_variable.beat_url == by_file.beat_url == env["OPS_BEAT_URL"]
    assert row["value"] == "redis://:***@h/4"
    assert refused(load, env={**env, "OPS_BEAT_URL": "http://h"}).message.startswith("beat_url: 'http://h'")


# How long results are kept


def test_variables_of_the_old_scripts_say_how_many_hours_results_are_kept(load):
    """A bare number is hours there, as it always was; a target of the file does not take them."""
    env = {
        "REDIS_URL": "redis://h",
        "CLEANUP_RETENTION_TRANSCRIPTION": "24",
        "CLEANUP_RETENTION_VOD_PROCESSING": "2d",
        "CLEANUP_RETENTION_DEFAULT": "12",
    }

    found = load(env=env)

    assert found.retention == {"*transcription*": "24h", "*vod_processing*": "2d", "default": "12h"}
    assert found.origins["retention.*transcription*"] == "environment: CLEANUP_RETENTION_TRANSCRIPTION"
    assert load("prod", toml=PROD, env=env).retention == {}


@pytest.mark.parametrize(
    ("rule", "said"),
    [('"*" = "24h"', "means every task"), ('"mail.*" = "5s"', "too short"), ('"mail.*" = "24"', "no unit")],
)
def test_a_retention_that_would_take_everything_is_refused(load, rule, said):
    """Before anything is looked at."""
    with pytest.raises(SettingsError, match=said):
        load("prod", toml=f"{PROD}retention = {{ {rule} }}\n")


# The application's own keys


def test_variables_of_the_application_name_its_keys(load):
    """Under the names and patterns that go with them; a target of the file does not take them."""
    env = {"REDIS_URL": "redis://h", "REDIS_PROGRESS_URL": "redis://:geheim@h/1", "REDIS_LOGS_URL": "redis://h/2"}

    target = load(env=env)

    assert {name: (each.key("x"), each.url) for name, each in target.app_keys.items()} == {
        "progress": ("progress:x", "redis://:geheim@h/1"),
        "logs": ("logs:x", "redis://h/2"),
    }
    said = {row["setting"]: (row["value"], row["from"]) for row in settings.described(target)}
    assert said["app_keys"] == ("progress, logs", "environment")
    assert said["app_keys.progress.url"] == ("redis://:***@h/1", "environment: REDIS_PROGRESS_URL")
    assert said["app_keys.progress.pattern"] == ("progress:{task_id}", "built in")
    assert redact.text("geheim") == "***"
    assert load("prod", toml=PROD, env=env).app_keys == {}


@pytest.mark.parametrize("task_id", ["x", "", "a:b", "{task_id}", "*", "\\1", "%s", "\udcff"])
@pytest.mark.parametrize("pattern", ["progress:{task_id}", "{task_id}:p", "a{{task_id}}b", "p.{task_id}.q"])
def test_a_key_is_the_pattern_with_the_id_in_it(pattern, task_id):
    """Character for character, and back again."""
    app_key = settings.AppKey(pattern=pattern)

    assert app_key.key(task_id) == task_id.join(pattern.split("{task_id}"))
    assert app_key.task_id(app_key.key(task_id)) == task_id


@pytest.mark.parametrize("url", ["env:APP_URL", "file:secret", "redis://h/1"])
def test_its_url_is_told_as_any_other(load, tmp_path, url):
    """From a variable, a file of one's own, or as it is; never with a password in the file."""
    (tmp_path / "secret").write_text("redis://:geheim@h/1")
    (tmp_path / "secret").chmod(0o600)
    toml = f'{PROD}[targets.prod.app_keys.progress]\npattern = "p:{{task_id}}"\nurl = "{url}"\n'

    target = load("prod", toml=toml, env={"APP_URL": "redis://:geheim@h/1"})

    assert target.app_keys["progress"].url.endswith("h/1")
    assert "geheim" not in str(settings.described(target))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('url = "redis://:geheim@h/1"\npattern = "p:{task_id}"', "app_keys.progress.url holds a password"),
        ('url = "env:NOWHERE"\npattern = "p:{task_id}"', "NOWHERE, which is not set"),
        ('url = "http://h"\npattern = "p:{task_id}"', "app_keys.progress.url: 'http://h' is no Redis URL"),
        ('url = "redis://h/x"\npattern = "p:{task_id}"', "no database number"),
        ('url = "redis://h/1"', "app_keys.progress.pattern: '' must have {task_id} in it, once"),
        ('pattern = "progress"', "must have {task_id} in it, once"),
        ('pattern = "{task_id}:{task_id}"', "must have {task_id} in it, once"),
        ('pattern = "{task_id}"', "could be any key"),
        ('pattern = "p*:{task_id}"', "is a glob"),
        ('pattern = "{user}:{task_id}"', "{user} in '{user}:{task_id}' stands for nothing"),
        ('pattern = "celery-task-meta-{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "celery-taskset-meta-{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "opslib:run:{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "_kombu{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "unacked{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "app:unacked{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "app:opslib:{task_id}"', "the name of Celery's keys, or of ours"),
        ('pattern = "redbeat:{task_id}"', "the name of Celery's keys, or of ours"),
        ("pattern = 3", "expected `str`, got `int`"),
        ('patn = "p:{task_id}"', "unknown field `patn`"),
    ],
)
def test_a_pattern_that_could_mean_another_key_is_refused(load, table, message):
    """What it means may be removed by its name alone."""
    toml = f'{PROD}global_keyprefix = "app:"\n[targets.prod.app_keys.progress]\n{table}\n'

    error = refused(load, "prod", toml=toml)

    assert message in error.message
    assert "geheim" not in str(error)


@pytest.mark.parametrize("name", ["result", "Progress", '"a b"', '""', "9"])
def test_a_name_that_no_command_could_have_is_refused(load, name):
    """It is a word of the command line, and not the one for Celery's own key."""
    error = refused(load, "prod", toml=f'{PROD}[targets.prod.app_keys.{name}]\npattern = "p:{{task_id}}"\n')

    assert "is no name for a key of the application" in error.message


# What is shown of it


def test_a_target_is_described_with_origins_and_without_secrets(load):
    """Each value says whether a file, a variable or nobody set it; a table that sets one threshold sets not all."""
    toml = '[targets.prod]\nbroker_url = "env:URL"\n[targets.prod.thresholds]\nstuck_after = "90m"\n'
    rows = settings.described(load("prod", toml=toml, env={"URL": "redis://ops:geheim@h/0?ssl_cert_reqs=none"}))

    said = {row["setting"]: (row["value"], row["from"]) for row in rows}
    assert said["broker_url"] == ("rediss://ops:***@h/0", "environment: URL")
    assert said["thresholds.stuck_after"] == ("90m", "ops.toml")
    assert said["thresholds.loop_after"] == ("10", "default")
    assert said["result_backend"] == ("the broker's own database", "default")
    assert "geheim" not in str(rows)


def test_every_setting_is_described():
    """`ops config show` leaves out no value that counts."""
    rows = settings.described(Target(name="x", broker_url="redis://h"))

    fields = set(Target.__struct_fields__) - {"name", "origins", "warnings", "thresholds"}
    fields |= {f"thresholds.{name}" for name in settings.Thresholds.__struct_fields__}
    assert {row["setting"] for row in rows} == fields
    assert all(row["value"] and row["from"] for row in rows)


def test_a_warning_about_a_certificate_is_kept_with_the_target(load):
    """Whoever uses the target says it aloud."""
    target = load(env={"OPS_BROKER_URL": "rediss://h?ssl_cert_reqs=CERT_NONE"})

    assert target.warnings == ["broker_url: the server's certificate is not verified (ssl_cert_reqs=none)."]


@pytest.mark.parametrize(("there", "expected"), [("reports", "reports"), (None, "deep/er/reports")])
def test_reports_go_to_the_nearest_folder_of_that_name(tmp_path, monkeypatch, there, expected):
    """Here, or above; where there is none, a new one here. OPS_REPORTS wins over both."""
    here = tmp_path / "deep" / "er"
    here.mkdir(parents=True)
    if there:
        (tmp_path / there).mkdir()
    monkeypatch.delenv("OPS_REPORTS", raising=False)
    monkeypatch.setenv("OPS_PROJECT", str(here))

    assert settings.reports_root() == tmp_path / expected
    monkeypatch.setenv("OPS_REPORTS", str(tmp_path / "elsewhere"))
    assert settings.reports_root() == Path(tmp_path / "elsewhere")


def test_the_names_that_could_be_used_are_listed(tmp_path, monkeypatch):
    """Targets of the file, the environment's if it describes one, and the demo at the end."""
    for name in (*BROKER_NAMES, "OPS_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPS_PROJECT", str(tmp_path))
    (tmp_path / "ops.toml").write_text(PROD)

    assert settings.names() == ["prod", "demo"]
    monkeypatch.setenv("REDIS_URL", "redis://h")
    assert settings.names() == ["prod", "default", "demo"]
