"""What nodes and the result backend's server say → since when a stored result would still be there, task by task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec

from opslib import pidbox, urls
from opslib.durations import seconds, spell
from opslib.facts.system import Coverage

if TYPE_CHECKING:
    from opslib.broker import Broker

#: Celery's own default of `result_expires`.
_EXPIRES_S = 86400.0
#: How a node writes a task with what was asked for: "shop.charge [ignore_result=False]".
_REGISTERED = re.compile(r"(?P<name>\S+)(?: \[(?P<fields>.*)\])?", re.DOTALL)
#: How Python writes a length of time: "1 day, 2:03:04".
_LENGTH = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)(?:\.\d+)?")
#: Runs that remove results by their age, and entries of their audit that are read at a time.
_SWEEPERS, _PAGE = (b"weekly-cleanup", b"clean-results"), 1_000
_QUESTIONS = (
    pidbox.Call(method="conf", arguments={"with_defaults": False}),
    pidbox.Call(method="registered", arguments={"taskinfoitems": ["ignore_result"]}),
)


class _Conf(msgspec.Struct):
    """The settings that matter here; no other is kept."""

    result_expires: Any = msgspec.UNSET
    result_backend: Any = None
    result_backend_transport_options: Any = None


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """
    How far back stored results tell what became of a task.

    Attributes:
        expires_s: How long a result is kept; None where nobody said, or nodes disagree beyond telling.

        backends: Where nodes store results, as they say.

        here: Where it was looked for them, in the same words.

        doubt: Why that may be another server all the same, as a sentence.

        ignored: Whether a task's result is ignored, by its name, as any node says.

        since_at: Epoch seconds: the server has lost nothing since then; minus infinity if it never did.

        lost_by: Why nothing before that counts, as a sentence.

        retention: How long the target keeps results, by the glob of their task.
    """

    answered: int
    expires_s: float | None
    backends: tuple[str, ...]
    ignored: Mapping[str, bool]
    since_at: float
    lost_by: str
    now: float
    here: frozenset[str]
    doubt: str = ""
    retention: Mapping[str, float] = field(default_factory=dict)

    def why_not(self, task: str, last_run_at: float | None, *, in_table: bool) -> str:
        """
        Return why the absence of a result proves nothing of a task, as a sentence; empty where it does.

        Args:
            last_run_at: Epoch seconds after which its result must have been stored, if it was.
                A row of a result backend need not have one.

            in_table: Whether the row's table is the result backend itself.
        """
        if not self.answered:
            return "No node answered, so nobody said whether and for how long results are kept."
        if in_table:
            elsewhere = [each for each in self.backends if each not in self.here]
            if elsewhere:
                return f"Nodes store their results in {elsewhere[0]}, not in this table."
            # Another application may keep its results in the same table.
            return "" if task in self.ignored else "No node that answered knows this task, so it may be another's."
        if last_run_at is None:
            return "It does not say when it was last run."
        return self._elsewhere() or self._unstored(task) or self._gone(task, last_run_at)

    def _elsewhere(self) -> str:
        strange = [each for each in self.backends if each not in self.here]
        looked = " and ".join(sorted(self.here))
        return f"Nodes store their results in {strange[0]}; it was looked in {looked}." if strange else self.doubt

    def _unstored(self, task: str) -> str:
        ignored = self.ignored.get(task)
        if ignored is None:
            return "No node that answered knows this task, so nobody said whether its result is stored."
        return "Its result is not stored (ignore_result)." if ignored else ""

    def _gone(self, task: str, last_run_at: float) -> str:
        if self.expires_s is None:
            return "Nobody said how long results are kept."
        kept_s = min([self.expires_s, *(life for glob, life in self.retention.items() if fnmatchcase(task, glob))])
        if last_run_at < self.now - kept_s:
            return f"Results are kept for {spell(kept_s)}, and it was last run before that."
        return self.lost_by if last_run_at < self.since_at else ""


def read(
    broker: Broker, *, timeout_s: float, results_kept: str, now: float, stored: int = 0, tables: bool = False
) -> tuple[Horizon, Coverage]:
    """
    Ask nodes and server what speaks against the absence of a result.

    Args:
        results_kept: How long results are surely kept, with a unit; empty for as long as nodes say.

        stored: How many results there are where it was looked.

        tables: Whether tables of results are looked into as well.

    Raises:
        redis.exceptions.RedisError: If the broker does not answer.
    """
    answers = pidbox.ask(broker, _QUESTIONS, timeout_s=timeout_s)
    confs = [conf for raw in answers.replies["conf"].values() if (conf := _conf(raw)) is not None]
    ignored: dict[str, bool] = {}
    for raw in answers.replies["registered"].values():
        for name, ignores in _ignored(raw):
            ignored[name] = ignored.get(name, False) or ignores
    backends = tuple(sorted({_place(conf.result_backend, conf.result_backend_transport_options) for conf in confs}))
    ours = {_sql(broker.target.database_url), "django-db", "database"} if tables else set()
    looked = {_here(broker), *(each for each in backends if each in ours or (tables and "django_celery" in each))}
    in_redis = not backends or not all(map(_is_table, backends))
    since_at, lost_by = _server(broker, now) if in_redis else (-inf, "")
    lives = [_life(conf.result_expires) for conf in confs]
    told = [life for life in lives if life is not None]
    silent = max(0, answers.receivers - len(confs))
    note = f"{silent:,} node{'s' * (silent != 1)} did not say how results are stored." if silent else ""
    horizon = Horizon(
        answered=len(confs),
        expires_s=seconds(results_kept, "results_kept")
        if results_kept
        else min(told)
        if told and len(told) == len(lives)
        else None,
        backends=backends,
        ignored=ignored,
        since_at=since_at,
        lost_by=lost_by,
        now=now,
        here=frozenset(looked),
        doubt=_doubt(broker, confs) if in_redis and not stored else "",
        retention={} if results_kept else _kept(broker.target.retention),
    )
    return horizon, Coverage(place="settings", seen=len(confs), silent=silent, note=note)


def _kept(rules: Mapping[str, str]) -> dict[str, float]:
    """Return the target's own retention by glob: whoever sets one removes results by it."""
    return {"*" if task == "default" else task: seconds(life, f"retention.{task}") for task, life in rules.items()}


def _conf(raw: bytes) -> _Conf | None:
    try:
        return msgspec.convert(pidbox.read(raw), _Conf)
    except msgspec.ValidationError:
        return None


def _ignored(raw: bytes) -> Iterable[tuple[str, bool]]:
    lines = pidbox.read(raw)
    for line in lines if isinstance(lines, list) else []:
        found = _REGISTERED.fullmatch(str(line))
        if found:
            fields = dict(part.partition("=")[::2] for part in (found["fields"] or "").split())
            yield found["name"], fields.get("ignore_result") == "True"


def _life(value: object) -> float | None:
    """Return how long a result lives by a node's setting, in seconds; None if that cannot be read."""
    if value is msgspec.UNSET:
        return _EXPIRES_S
    if value is None:
        return inf
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if value > 0 else inf
    found = _LENGTH.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest) or inf


def _place(backend: object, options: object = None) -> str:
    """Return where a node stores results, without host and user: a host has many names."""
    text = str(backend or "nowhere")
    if not urls.is_redis(text):
        return _sql(text) if text.startswith("db+") else text.partition(":")[0]
    path = urlsplit(text.partition(";")[0]).path.strip("/")
    prefix = options.get("global_keyprefix") if isinstance(options, dict) else ""
    return _named(int(path) if path.isdecimal() else 0, str(prefix or ""))


def _sql(url: str) -> str:
    """Return which database a URL means: its host and its name; a file's path."""
    parts = urlsplit(url.removeprefix("db+"))
    return f"db {parts.hostname or ''}/{parts.path.strip('/')}"


def _named(number: int, prefix: str) -> str:
    return f"Redis database {number}{f' with prefix {prefix!r}' if prefix else ''}"


def _doubt(broker: Broker, confs: Iterable[_Conf]) -> str:
    """Return why it may have been looked on another server: there is not one result, and nodes name another host."""
    ours = urlsplit(broker.target.result_backend or broker.target.broker_url).hostname
    theirs = {urlsplit(str(conf.result_backend).partition(";")[0]).hostname for conf in confs}
    others = sorted(str(host) for host in theirs - {ours, None})
    return f"No result at all is stored where it was looked, and nodes store theirs on {others[0]}." if others else ""


def _is_table(place: str) -> bool:
    return place in {"database", "django-db"} or place.startswith("db ") or "django_celery_results" in place


def _here(broker: Broker) -> str:
    if broker.results is None:
        return "no Redis"
    number = int(broker.results.connection_pool.connection_kwargs.get("db") or 0)
    return _named(number, broker.keys.result_prefix)


def _server(broker: Broker, now: float) -> tuple[float, str]:
    """Return since when the server of the results has lost none, and why not for longer."""
    if broker.results is None:
        return inf, "Results are not in Redis."
    info: Mapping[str, Any] = broker.results.info()
    started_at = now - float(info.get("uptime_in_seconds", 0))
    if int(info.get("evicted_keys", 0)):
        return inf, "The server has evicted keys to save memory, and a result may have been among them."
    if int(info.get("maxmemory", 0)) and str(info.get("maxmemory_policy", "noeviction")) != "noeviction":
        ago = spell(now - started_at)
        return started_at, f"The server may evict keys, and knows what it evicted only since its start, {ago} ago."
    if not int(info.get("aof_enabled", 0)):
        ago = spell(now - started_at)
        return started_at, f"The server was started {ago} ago and keeps no log of changes: a result may be lost since."
    return _swept(broker, now)


def _swept(broker: Broker, now: float) -> tuple[float, str]:
    """Return when a run removed results by their age for the last time, as the broker's own audit tells it."""
    from redis.exceptions import ResponseError

    upper = "+"
    while True:
        try:
            found = broker.reads.xrevrange(broker.keys.audit, upper, "-", count=_PAGE)
        except ResponseError as error:
            return inf, f"Whether a run has removed results is not known: {str(error).rstrip('.')}."
        page = cast("list[tuple[bytes, Mapping[bytes, bytes]]]", found)
        for moment, fields in page:
            if any(b'"%s"' % each in fields.get(b"line", b"") for each in _SWEEPERS):
                at = int(moment.partition(b"-")[0]) / 1000
                ago = spell(max(0.0, now - at))
                return at, f"A run removed old results {ago} ago, and that of this task may have been among them."
        if len(page) < _PAGE:
            return -inf, ""
        upper = f"({page[-1][0].decode()}"
