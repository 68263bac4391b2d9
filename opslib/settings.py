"""Flags, environment, .env and ops.toml → one Target, with where each of its values came from."""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from opslib import redact, retention, sizes, task_tables, temporary, urls
from opslib.durations import seconds
from opslib.errors import SettingsError
from opslib.keys import RESULT, Keyspace
from opslib.target import TASK_ID, AppKey, Target, TemporaryFolder, Thresholds
from opslib.task_tables import StateRow, TaskTable, Verifier

__all__ = [
    "APP_KEY_NAMES",
    "BEAT_NAMES",
    "BROKER_NAMES",
    "BY_ENVIRONMENT",
    "DATABASE_NAMES",
    "DEMO",
    "FILE",
    "RESULT_NAMES",
    "RETENTION_NAMES",
    "TASK_ID",
    "AppKey",
    "Target",
    "TemporaryFolder",
    "Thresholds",
    "described",
    "load",
    "names",
    "project",
    "reports_root",
]

FILE = "ops.toml"
DEMO = "demo"
BY_ENVIRONMENT = "default"

BROKER_NAMES = ("OPS_BROKER_URL", "BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL")
RESULT_NAMES = ("OPS_RESULT_BACKEND", "CELERY_RESULT_BACKEND", "RESULT_BACKEND")
BEAT_NAMES = ("OPS_BEAT_URL",)
DATABASE_NAMES = ("OPS_DATABASE_URL", "DATABASE_URL")
#: Variables by which applications name the databases of keys of their own; what those are, and what they are called.
APP_KEY_NAMES = {"REDIS_PROGRESS_URL": ("progress", "progress:{task_id}"), "REDIS_LOGS_URL": ("logs", "logs:{task_id}")}

#: Variables by which the old scripts said how many hours results are kept; the tasks that each is about.
RETENTION_NAMES = {
    "CLEANUP_RETENTION_TRANSCRIPTION": "*transcription*",
    "CLEANUP_RETENTION_VOD_PROCESSING": "*vod_processing*",
    "CLEANUP_RETENTION_DEFAULT": retention.DEFAULT,
}

#: What an empty threshold means.
_UNSET = {"worker_memory": "not judged", "visibility_timeout": "as the nodes say"}
_APP_KEY_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")

#: What the parts of a table's settings can say, the innermost first.
_TABLES = {
    "verify": Verifier.__struct_fields__,
    "task_tables": TaskTable.__struct_fields__,
    "state_rows": StateRow.__struct_fields__,
}
#: Fields that are filled in here, whatever a file says.
_NOT_IN_A_FILE = {"name", "origins", "warnings"}
_SETTINGS = sorted(set(Target.__struct_fields__) - _NOT_IN_A_FILE)


def load(
    name: str = "", *, env_file: str = "", environ: Mapping[str, str] | None = None, start: Path | None = None
) -> Target:
    """
    Return the target of that name, or the default one.

    The default is OPS_TARGET, then `default_target` of ops.toml, then what the environment describes. A target of
    ops.toml takes its URLs from its own table alone: a BROKER_URL left in a shell never redirects `--target prod`.

    Raises:
        SettingsError: If nothing is configured, the name is unknown, or a value cannot be used.
    """
    environ = os.environ if environ is None else environ
    start = start or project(environ)
    variables = _Environment(environ, env_file or environ.get("OPS_ENV_FILE", ""), start)
    file, document = _document(start)
    for key in document.keys() - {"default_target", "targets"}:
        raise SettingsError(
            f"{FILE}: {key!r} is no setting of this file.", hint=_names_hint(key, ["default_target", "targets"])
        )
    targets = _table(document.get("targets", {}), f"{FILE}: targets")
    wanted = name or variables.get("OPS_TARGET") or str(document.get("default_target", "")) or BY_ENVIRONMENT
    if wanted == DEMO and DEMO not in targets:
        return _demo()
    if wanted in targets:
        return _from_table(wanted, _table(targets[wanted], f"{FILE}: targets.{wanted}"), variables, file)
    if wanted == BY_ENVIRONMENT:
        return _from_environment(variables, configured=sorted(targets))
    raise SettingsError(f"There is no target named {wanted!r}.", hint=_names_hint(wanted, [*targets, DEMO]))


def described(target: Target) -> list[dict[str, str]]:
    """Return a target's values as they may be shown, each with where it came from."""
    shown = {
        "broker_url": target.shown_broker,
        "result_backend": target.shown_results,
        "environment": target.environment or "not checked",
        "protected": "yes" if target.protected else "no",
        "global_keyprefix": target.global_keyprefix or "none",
        "result_keyprefix": target.result_keyprefix or "none",
        "master_name": target.master_name or "none",
        "nodes": ", ".join(target.nodes) or "whoever answers",
        "queues": ", ".join(target.queues) or "those that are found",
        "app_keys": ", ".join(target.app_keys) or "none",
        "beat_url": redact.url(target.beat_url) if target.beat_url else "the broker's own database",
        "database_url": target.shown_database,
        "task_tables": ", ".join(target.task_tables) or "those that are known by their name",
        "state_rows": ", ".join(target.state_rows) or "none",
    }
    for name, each in target.app_keys.items():
        shown |= {f"app_keys.{name}.url": each.shown, f"app_keys.{name}.pattern": each.pattern}
        shown |= {f"app_keys.{name}.state": "yes"} if each.state else {}
    shown |= {f"task_tables.{name}.table": each.table for name, each in target.task_tables.items()}
    shown |= {f"state_rows.{name}.table": each.table for name, each in target.state_rows.items()}
    shown["temporary_files"] = ", ".join(target.temporary_files) or "none"
    for name, place in target.temporary_files.items():
        told = f"{place.pattern} in {place.folder}, older than {place.older_than}"
        shown |= {f"temporary_files.{name}": told}
    kept = {**target.retention, retention.DEFAULT: target.retention.get(retention.DEFAULT, retention.DEFAULT_LIFE)}
    shown["retention"] = ", ".join(f"{task} {life}" for task, life in kept.items())
    values = {
        **shown,
        **{
            f"thresholds.{name}": str(getattr(target.thresholds, name)) or _UNSET[name]
            for name in Thresholds.__struct_fields__
        },
    }
    return [
        {"setting": name, "value": text, "from": target.origins.get(name) or "default"} for name, text in values.items()
    ]


def names(*, env_file: str = "") -> list[str]:
    """Return the names of every target that could be used, the demo last."""
    start = project(os.environ)
    variables = _Environment(os.environ, env_file or os.environ.get("OPS_ENV_FILE", ""), start)
    found = list(_table(_document(start)[1].get("targets", {}), f"{FILE}: targets"))
    if any(variables.get(variable) for variable in BROKER_NAMES):
        found.append(BY_ENVIRONMENT)
    return [*found, DEMO]


def project(environ: Mapping[str, str]) -> Path:
    """Return the folder whose settings count: the runner's (a kernel works in the runbooks folder), or this one."""
    return Path(environ.get("OPS_PROJECT") or Path.cwd())


def reports_root() -> Path:
    """Return the archive's folder: OPS_REPORTS, the nearest `reports` folder here or above, or a new one here."""
    if os.environ.get("OPS_REPORTS"):
        return Path(os.environ["OPS_REPORTS"]).absolute()
    here = project(os.environ).absolute()
    return next(
        (folder / "reports" for folder in (here, *here.parents) if (folder / "reports").is_dir()), here / "reports"
    )


class _Environment:
    """Process variables first, then those of the .env file, each with its name for the origin."""

    def __init__(self, environ: Mapping[str, str], env_file: str, start: Path) -> None:
        from dotenv import dotenv_values

        path = Path(env_file) if env_file else start / ".env"
        if env_file and not path.is_file():
            raise SettingsError(f"There is no file {env_file} to read the environment from.")
        self.sources = [("environment", environ)]
        if path.is_file():
            try:
                found = dotenv_values(path)
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{path.name} cannot be read: {error}.") from None
            self.sources.append((path.name, {k: v for k, v in found.items() if v is not None}))

    def get(self, name: str) -> str:
        return next((values[name].strip() for _, values in self.sources if values.get(name, "").strip()), "")

    def first(self, names: Iterable[str]) -> tuple[str, str, list[str]]:
        """Return value and origin of the first name that is set, and the names that say something else."""
        found = [
            (origin, name, values[name].strip())
            for origin, values in self.sources
            for name in names
            if values.get(name, "").strip()
        ]
        if not found:
            return "", "", []
        origin, name, value = found[0]
        return value, f"{origin}: {name}", [f"{other} ({where})" for where, other, else_ in found[1:] if else_ != value]


def _document(start: Path) -> tuple[Path, dict[str, Any]]:
    """Return ops.toml of this folder or the nearest above it, and its path."""
    for folder in (start, *start.parents):
        path = folder / FILE
        if path.is_file():
            try:
                return path, tomllib.loads(path.read_text("utf-8"))
            except OSError as error:
                raise SettingsError(f"{path.name} cannot be read: {error}.") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise SettingsError(f"{path.name} is not valid TOML: {error}.") from None
    return start / FILE, {}


def _from_environment(variables: _Environment, configured: list[str]) -> Target:
    broker, origin, others = variables.first(BROKER_NAMES)
    if not broker:
        choose = (
            f"Name one with --target: {', '.join([*configured, DEMO])}"
            if configured
            else "Set OPS_BROKER_URL, or try `--target demo`"
        )
        raise SettingsError("No target is named, and the environment describes none.", hint=f"{choose}.")
    results, result_origin, result_others = variables.first(RESULT_NAMES)
    beat, beat_origin, _ = variables.first(BEAT_NAMES)
    database, sql_origin, sql_others = variables.first(DATABASE_NAMES)
    database, unknown = _database(database, sql_origin)
    warnings = [
        f"{', '.join(differing)} says something else; {winner} wins."
        for differing, winner in ((others, origin), (result_others, result_origin), (sql_others, sql_origin))
        if differing
    ]
    warnings += unknown
    app_keys: dict[str, Any] = {}
    app_origins: dict[str, str] = {}
    for variable, (name, pattern) in APP_KEY_NAMES.items():
        url, url_origin, _ = variables.first([variable])
        if url:
            app_keys[name] = {"url": url, "pattern": pattern}
            app_origins |= {f"app_keys.{name}.url": url_origin, f"app_keys.{name}.pattern": "built in"}
            app_origins["app_keys"] = "environment"
    kept, kept_origins = _retention(variables)
    return _target(
        BY_ENVIRONMENT,
        {
            "broker_url": broker,
            "result_backend": results,
            "app_keys": app_keys,
            "beat_url": beat,
            "database_url": database,
            "retention": kept,
        },
        {
            "broker_url": origin,
            "result_backend": result_origin,
            "beat_url": beat_origin,
            "database_url": sql_origin,
            **app_origins,
            **kept_origins,
        },
        warnings,
    )


def _database(url: str, origin: str) -> tuple[str, list[str]]:
    """
    Return the URL of a database that a variable names for the application, and what is said of one that is unknown.

    Nobody has asked this tool to look there, so a kind of database that it does not know is no reason to refuse a run.
    """
    try:
        return (urls.database(url, origin), []) if url else ("", [])
    except SettingsError as error:
        return "", [f"{error.message.rstrip('.')}; it is not looked at."]


def _retention(variables: _Environment) -> tuple[dict[str, str], dict[str, str]]:
    """Return what variables say of how long results are kept, and which; a bare number is hours, as it always was."""
    found: dict[str, str] = {}
    origins: dict[str, str] = {}
    for variable, task in RETENTION_NAMES.items():
        value, origin, _ = variables.first([variable])
        if value:
            found[task] = f"{value}h" if value.replace(".", "", 1).isdigit() else value
            origins[f"retention.{task}"] = origin
    return found, origins


def _from_table(name: str, table: dict[str, Any], variables: _Environment, file: Path) -> Target:
    for key in table.keys() & _NOT_IN_A_FILE:
        raise SettingsError(f"Target {name}: {key!r} is no setting.", hint=_names_hint(key, _SETTINGS))
    values, origins = dict(table), dict.fromkeys(table, FILE)
    if isinstance(table.get("thresholds"), dict):
        origins.update(dict.fromkeys((f"thresholds.{key}" for key in table["thresholds"]), FILE))
    if isinstance(table.get("retention"), dict):
        origins.update(dict.fromkeys((f"retention.{key}" for key in table["retention"]), FILE))
    for key in ("broker_url", "result_backend", "beat_url", "database_url"):
        if isinstance(values.get(key), str):
            where = f"{FILE}: targets.{name}.{key}"
            values[key], origins[key] = _resolve(values[key], where, variables, file.parent)
    values["app_keys"] = _table(values.get("app_keys", {}), f"{FILE}: targets.{name}.app_keys")
    for key, value in values["app_keys"].items():
        where = f"app_keys.{key}"
        each = dict(_table(value, f"{FILE}: targets.{name}.{where}"))
        origins |= dict.fromkeys((f"{where}.{field}" for field in each), FILE)
        if isinstance(each.get("url"), str) and each["url"]:
            full = f"{FILE}: targets.{name}.{where}.url"
            each["url"], origins[f"{where}.url"] = _resolve(each["url"], full, variables, file.parent)
        values["app_keys"] = {**values["app_keys"], key: each}
    if not values.get("broker_url"):
        raise SettingsError(
            f"{FILE}: targets.{name} has no broker_url.",
            hint='Give it one, for instance broker_url = "env:PROD_BROKER_URL".',
        )
    return _target(name, values, origins, [])


def _resolve(value: str, where: str, variables: _Environment, folder: Path) -> tuple[str, str]:
    """Return the URL behind `env:NAME`, `file:PATH` (from the folder of ops.toml) or a literal without a password."""
    kind, _, rest = value.partition(":")
    if kind == "env":
        found, origin, _ = variables.first([rest])
        if not found:
            raise SettingsError(f"{where} names the variable {rest}, which is not set.")
        return found, origin
    if kind == "file":
        return _secret_file(rest, where, folder), f"file: {rest}"
    if redact.has_password(value):
        raise SettingsError(f"{where} holds a password.", hint="Write env:NAME or file:PATH (mode 0600) in its place.")
    return value, FILE


def _secret_file(name: str, where: str, folder: Path) -> str:
    path = Path(name)
    try:
        path = folder / path.expanduser()
        mode = path.stat().st_mode
        text = path.read_text("utf-8").strip()
    except (OSError, ValueError, RuntimeError) as error:  # among them: no text, no such user, a NUL in the name
        raise SettingsError(f"{where} names the file {path}, which cannot be read: {str(error).rstrip('.')}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(f"{where} names the file {path}, which others may read.", hint=f"chmod 600 {path}")
    return text


def _demo() -> Target:
    """Return the demo's target: its URL is known once it is up, its thresholds suit its short life."""
    from opslib import demo
    from opslib.demo import ledger, notes

    running = demo.status()
    if running is None or not running.ready:
        raise SettingsError(
            "The demo is not running.", hint="`ops demo up` starts it; `ops run … --target demo` starts one of its own."
        )
    beside = {"progress": notes.PROGRESS, "logs": notes.LOGS}
    patterns = dict(APP_KEY_NAMES.values())
    app_keys = {n: {"url": notes.beside(running.url, at), "pattern": patterns[n]} for n, at in beside.items()}
    origins = {f"app_keys.{name}.{field}": "built in" for name in beside for field in ("url", "pattern")}
    return _target(
        DEMO,
        {
            "broker_url": running.url,
            "thresholds": {"stuck_after": "3s"},
            "app_keys": app_keys,
            "database_url": ledger.url(running.folder),
            "task_tables": {
                "tasks": {
                    "preset": "task-manager",
                    "chains": False,
                    "verify": {ledger.HOOKS: {"sql": ledger.DELIVERED}},
                }
            },
            "state_rows": {"agent": {"table": "agent_state", "key": {"id": ledger.AGENT}, "idle": ledger.IDLE}},
        },
        {
            "broker_url": "the running demo",
            "thresholds.stuck_after": "built in",
            "database_url": "the running demo",
            **dict.fromkeys(("app_keys", "task_tables", "state_rows"), "built in"),
            **origins,
        },
        [],
    )


def _target(name: str, values: dict[str, Any], origins: dict[str, str], warnings: list[str]) -> Target:
    values, warnings = dict(values), [*warnings]
    places = [(values, key, key) for key in ("broker_url", "result_backend", "beat_url")]
    places += [(table, "url", f"app_keys.{key}.url") for key, table in values.get("app_keys", {}).items()]
    for table, key, what in places:
        url = table.get(key)
        if not isinstance(url, str) or not (url or key == "broker_url"):
            continue
        if key == "result_backend" and not urls.is_redis(url):
            redact.remember(url)
            continue
        table[key], said = urls.check(url, what)
        warnings += said
    if isinstance(values.get("database_url"), str) and values["database_url"]:
        values["database_url"] = urls.database(values["database_url"], "database_url")
    try:
        target = msgspec.convert({**values, "name": name, "origins": origins, "warnings": warnings}, Target)
    except msgspec.ValidationError as error:
        raise SettingsError(f"Target {name}: {_explain(str(error))}", hint=_field_hint(str(error))) from None
    _check_thresholds(target.thresholds)
    retention.check(target.retention)
    for key, each in target.app_keys.items():
        _check_app_key(target, key, each)
    for key, place in target.temporary_files.items():
        _check_temporary(target, key, place)
    return _with_tables(target)


def _check_thresholds(thresholds: Thresholds) -> None:
    for label in ("stuck_after", "save_after", "quarantine_after", "visibility_timeout"):
        if text := getattr(thresholds, label):
            seconds(text, label)
    for label in ("redis_memory", "worker_memory"):
        if text := getattr(thresholds, label):
            sizes.parse(text, label)


def _with_tables(target: Target) -> Target:
    """Return a target whose tables are complete and can be meant."""
    for kind in ("task_tables", "state_rows"):
        if getattr(target, kind) and not target.database_url:
            hint = 'For instance database_url = "env:PROD_DATABASE_URL".'
            raise SettingsError(f"Target {target.name} has {kind} and no database_url.", hint=hint)
    where = f"Target {target.name}"
    for key, row in target.state_rows.items():
        task_tables.check_state(key, row, f"{where}: state_rows.{key}")
    tables = {
        key: task_tables.resolved(key, each, f"{where}: task_tables.{key}") for key, each in target.task_tables.items()
    }
    return msgspec.structs.replace(target, task_tables=tables)


def _check_app_key(target: Target, name: str, app_key: AppKey) -> None:
    """Refuse a key that is none of the application's: what a pattern means may be removed by its name alone."""
    where, pattern = f"Target {target.name}: app_keys.{name}", app_key.pattern
    if not _APP_KEY_NAME.fullmatch(name) or name == RESULT:
        hint = f"Small letters, digits, _ and -, such as progress; {RESULT!r} is Celery's own."
        raise SettingsError(f"Target {target.name}: {name!r} is no name for a key of the application.", hint=hint)
    hint = 'For instance pattern = "progress:{task_id}".'
    fixed = pattern.replace(TASK_ID, "")
    if pattern.count(TASK_ID) != 1:
        raise SettingsError(f"{where}.pattern: {pattern!r} must have {TASK_ID} in it, once.", hint=hint)
    if not fixed.strip():
        raise SettingsError(f"{where}.pattern: {pattern!r} could be any key.", hint=hint)
    if "*" in pattern:
        raise SettingsError(f"{where}.pattern: {pattern!r} is a glob; a key's name is wanted.", hint=hint)
    if unknown := re.search(r"\{\w+\}", fixed):
        raise SettingsError(f"{where}.pattern: {unknown[0]} in {pattern!r} stands for nothing.", hint=hint)
    space = Keyspace(prefix=target.global_keyprefix, result_prefix=target.result_keyprefix)
    bare = {pattern.removeprefix(prefix) for prefix in ("", space.prefix, space.result_prefix)}
    if space.is_reserved(pattern) or any(each.startswith(("unacked", "_kombu")) for each in bare):
        what = "Name the application's own keys; Celery's result is removed with them."
        raise SettingsError(f"{where}.pattern: {pattern!r} is the name of Celery's keys, or of ours.", hint=what)


def _check_temporary(target: Target, name: str, place: TemporaryFolder) -> None:
    """Refuse a folder, a pattern or an age by which files could go that no task has left."""
    where = f"Target {target.name}: temporary_files.{name}"
    if not _APP_KEY_NAME.fullmatch(name):
        raise SettingsError(f"{where} is no name.", hint="Small letters, digits, _ and -, such as uploads.")
    if why := temporary.why_not(place.folder):
        raise SettingsError(f"{where}.folder: {why}", hint='For instance folder = "/var/tmp/app".')
    if why := temporary.means_too_much(place.pattern):
        raise SettingsError(f"{where}.pattern: {why}", hint='For instance pattern = "*.part".')
    if seconds(place.older_than, f"temporary_files.{name}.older_than") < temporary.YOUNGEST_S:
        raise SettingsError(
            f"{where}.older_than: {place.older_than} is too short: a task that runs may have just written the file.",
            hint='An hour at least, such as older_than = "24h".',
        )


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{where} is not a table.")
    return value


def _explain(message: str) -> str:
    """Turn msgspec's sentence into one with the path first: "thresholds.stuck_after: expected `str`, got `int`"."""
    text, _, path = message.partition(" - at `$")
    return f"{path.rstrip('`').lstrip('.') or 'its table'}: {text[:1].lower()}{text[1:]}."


def _field_hint(message: str) -> str:
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if not unknown:
        is_duration = "Expected `str`" in message and "thresholds" in message
        return 'A duration is text with a unit, such as stuck_after = "3h".' if is_duration else ""
    if "app_keys" in message:
        return _names_hint(unknown.group(1), AppKey.__struct_fields__)
    if "temporary_files" in message:
        return _names_hint(unknown.group(1), TemporaryFolder.__struct_fields__)
    for kind, fields in _TABLES.items():
        if kind in message:
            return _names_hint(unknown.group(1), fields)
    return _names_hint(unknown.group(1), Thresholds.__struct_fields__ if "thresholds" in message else _SETTINGS)


def _names_hint(wanted: str, known: Iterable[str]) -> str:
    choices = sorted(set(known))
    near = difflib.get_close_matches(wanted, choices, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(choices)}."
