"""A target → open clients of its broker and result backend: the only place where clients are made."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import msgspec

from opslib import records, redact, refusals, settings, urls
from opslib.errors import BrokerUnreachable, NotABroker, Refused, SettingsError
from opslib.keys import Keyspace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from opslib.settings import Target

#: Long enough for a loaded server, short enough that a dead one is told within five seconds.
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 5.0
#: A batch of changes that was sent is waited for; cutting it off would only make its outcome unknown.
WRITE_TIMEOUT_S = 15.0
OLDEST = (6, 2)
#: So far apart, two clocks are worth a word; so far, one of them is wrong, and nothing is changed.
CLOCK_ODD_S, CLOCK_WRONG_S = 5.0, 300.0
CLIENT_NAME = "opslib"
#: Longer than any that `ops config stamp` writes; what is longer is none.
_STAMP_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Broker:
    """
    Open clients of one deployment. Replies are bytes: what is in a broker is not always text.

    Attributes:
        reads: Small retry, short timeouts.

        database: Number of the database, as the server counts it.

        results: Client of the result backend; None if it is not Redis.

        apps: Clients of the databases of the application's own keys, by the name that the target has for the key.

        beat: Client of the database in which redbeat keeps its schedule, where the target names one.

        environment: What the broker's stamp says of itself (`ops config stamp`); empty if it has none that can be read.

        clock_offset_s: How far the server's clock is ahead of this machine's; negative if it is behind.

        home: Where this is another database of a deployment: its broker, whose nodes run the tasks.
    """

    target: Target
    reads: Redis
    keys: Keyspace
    results: Redis | None
    information: Mapping[str, Any] = field(repr=False)
    apps: Mapping[str, Redis] = field(default_factory=dict, repr=False)
    beat: Redis | None = field(default=None, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    clock_offset_s: float = 0.0
    home: Broker | None = field(default=None, repr=False)

    @cached_property
    def writes(self) -> Redis:
        """
        The client for changes: no retry at all.

        redis-py repeats commands by itself, and a repeated push is a duplicate (safety §0.1). It is named for the run,
        so that others can see whether a run still lives.
        """
        run_id = records.context().run_id
        return _client(self.target.broker_url, self.target, retries=0, timeout_s=WRITE_TIMEOUT_S, name=run_id)

    @cached_property
    def control(self) -> Redis:
        """The client for questions and orders to nodes: what is sent twice is answered twice, and counted twice."""
        return _client(self.target.broker_url, self.target, retries=0, timeout_s=READ_TIMEOUT_S)

    @property
    def fingerprint(self) -> str:
        """Identity of server, database and prefix: a plan made on one fingerprint applies only there."""
        info = self.information
        return f"{info.get('run_id', '')}/{info.get('master_replid', '')}/{self.keys.database}/{self.keys.prefix}"

    def elsewhere(self, client: Redis, url: str) -> Broker:
        """
        Return another database of this deployment as one that can be changed, or this one, if it is that.

        No prefix stands there before the names of our own keys: `global_keyprefix` is the broker's alone.

        Raises:
            OpsError: If it does not answer, or does not say which server it is.
        """
        if client is self.reads:
            return self
        with refusals.explained(redact.url(url)):
            information = cast("Mapping[str, Any]", client.info())
        database = int(client.connection_pool.connection_kwargs.get("db") or 0)
        same_server = information.get("run_id") and information.get("run_id") == self.information.get("run_id")
        if same_server and database == self.keys.database:
            return self
        return replace(
            self,
            target=msgspec.structs.replace(self.target, broker_url=url),
            reads=client,
            keys=Keyspace(database=database, result_prefix=self.keys.result_prefix),
            information=information,
            home=self.home or self,
        )

    def beside(self, url: str) -> Redis | None:
        """
        Return a client of another database of this server, to read there with the broker's own credentials.

        Args:
            url: As somebody else calls it; None is returned unless that is this server.
        """
        own, theirs = urls.place(self.target.broker_url), urls.place(url)
        server, _, number = theirs.rpartition("/")
        is_plain = self.target.broker_url.startswith(("redis://", "rediss://")) and number.isdecimal()
        if not is_plain or server != own.rpartition("/")[0]:
            return None
        beside = urlsplit(self.target.broker_url)._replace(path=f"/{number}").geturl()
        return _client(beside, self.target, retries=1, timeout_s=READ_TIMEOUT_S)

    @property
    def environment_problem(self) -> str:
        """Why it is not proven that this is the environment that the target names; empty if it is, or names none."""
        if not self.target.environment or self.environment:
            return ""  # with another stamp, nobody would have got this far
        return (
            f"{self.target.shown_broker} has no stamp that can be read; the target expects {self.target.environment!r}."
        )

    @property
    def clock_problem(self) -> str:
        """How far this machine's clock is from the server's; empty if they agree to within seconds."""
        offset_s = self.clock_offset_s
        if abs(offset_s) <= CLOCK_ODD_S:
            return ""
        where = "ahead of" if offset_s > 0 else "behind"
        return f"The clock of {self.target.shown_broker} is {abs(offset_s):,.0f} s {where} this machine's."

    @property
    def role(self) -> str:
        """What the server calls itself: master or slave."""
        return str(self.information.get("role", ""))

    def server_time(self) -> datetime:
        """
        Return the server's clock: every age and cut-off counts from it, not from this machine's.

        Raises:
            BrokerUnreachable: If it does not say; BrokerRefused if it may not.
        """
        with refusals.explained(self.target.shown_broker):
            seconds, micros = self.reads.time()
        return datetime.fromtimestamp(seconds + micros / 1e6, UTC)

    def __repr__(self) -> str:
        info = self.information
        product = "Valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "Redis"
        version = info.get("valkey_version") or info.get("redis_version", "?")
        problems = filter(None, (self.environment_problem, self.clock_problem))
        warnings = "".join(f"\n! {warning}" for warning in [*self.target.warnings, *problems])
        when = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        name = redact.plain(" ".join(self.environment.get("env", "")[:100].split()))
        stamp = f" · stamped {name}" if name else ""
        return f"{self.target.name}: {self.target.shown_broker} · {product} {version}{stamp} · {when}{warnings}"


def connect(target: str | Target = "") -> Broker:
    """
    Open a target's broker and result backend and make sure that they can be what they should.

    Args:
        target: A name (empty for the default, see `settings.load`) or a Target.

    Raises:
        SettingsError: If the target cannot be used as configured.

        BrokerUnreachable: If nothing answers within CONNECT_TIMEOUT_S.

        BrokerRefused: If credentials, rights, TLS or the database are refused.

        NotABroker: If the server is a cluster node or too old.

        Refused: If the target names an environment, and the broker's stamp says another one.
    """
    redact.remember_environment()
    chosen = settings.load(target) if isinstance(target, str) else target
    reads = _client(chosen.broker_url, chosen, retries=1, timeout_s=READ_TIMEOUT_S)
    database = int(reads.connection_pool.connection_kwargs.get("db") or 0)
    keys = Keyspace(database=database, prefix=chosen.global_keyprefix, result_prefix=chosen.result_keyprefix)
    info, stamp, offset_s = _hello(chosen, keys)
    results = _results(chosen, reads)
    return Broker(
        target=chosen,
        reads=reads,
        keys=keys,
        results=results,
        apps=_apps(chosen, reads, results),
        beat=_client(chosen.beat_url, chosen, retries=1, timeout_s=READ_TIMEOUT_S) if chosen.beat_url else None,
        information=info,
        environment=stamp,
        clock_offset_s=offset_s,
    )


def _hello(target: Target, keys: Keyspace) -> tuple[Mapping[str, Any], Mapping[str, str], float]:
    """Ask the server who and where it is, and what time it is, once and without retry: a dead one is told at once."""
    with (
        refusals.explained(target.shown_broker),
        _client(target.broker_url, target, retries=0, timeout_s=CONNECT_TIMEOUT_S) as client,
    ):
        try:
            # No PING before it: a server that cannot write to its disk refuses that, and can be looked at all the same.
            info = dict(cast("Mapping[str, Any]", client.info()))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # redis-py takes the first answers apart without a look at what they are.
            raise NotABroker(
                f"{target.shown_broker} answers, but not as Redis does.",
                hint="Is another program listening on this port?",
            ) from error
        _check(info, target)
        stamp = _stamp(client, keys)
        offset_s = _clock_offset(client)
    if target.environment and stamp and target.environment not in {stamp["env"], stamp.get("id")}:
        raise Refused(
            f"{target.shown_broker} is stamped {redact.plain(stamp['env'][:100])!r}; "
            f"target {target.name} expects {target.environment!r}.",
            hint=f"Is that the right URL? `ops config show --target {target.name}` says where it comes from.",
        )
    return info, stamp, offset_s


def _clock_offset(client: Redis) -> float:
    """Return how far the server's clock is ahead; 0 for a user who may not ask, and who may change nothing either."""
    from redis.exceptions import ResponseError

    began = time.time()
    try:
        seconds, micros = client.time()
    except ResponseError:
        return 0.0
    return seconds + micros / 1e6 - (began + time.time()) / 2


def _stamp(client: Redis, keys: Keyspace) -> Mapping[str, str]:
    """Return the broker's stamp; empty if there is none, or none that this user can read."""
    from redis.exceptions import ResponseError

    try:
        stamp = msgspec.json.decode(
            cast("bytes", client.getrange(keys.environment, 0, _STAMP_BYTES)), type=dict[str, str]
        )
    except (ResponseError, msgspec.DecodeError):
        return {}
    return stamp if stamp.get("env") else {}


def _check(info: Mapping[str, Any], target: Target) -> None:
    if "cluster" in {info.get("redis_mode"), info.get("server_mode")}:  # Valkey has the second
        raise NotABroker(
            f"{target.shown_broker} is a node of a Redis Cluster, which cannot be a Celery broker.",
            hint="Name the server that Celery uses.",
        )
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2] if part.isdigit())
    if version < OLDEST:
        raise NotABroker(
            f"{target.shown_broker} runs Redis {info.get('redis_version')}; Celery 5.7 needs 6.2 or later."
        )
    if int(info.get("loading", 0) or 0):
        raise BrokerUnreachable(
            f"{target.shown_broker} is loading its data.", hint="Wait until it has loaded, then run this again."
        )


def _results(target: Target, broker: Redis) -> Redis | None:
    if not target.result_backend:
        return broker
    if not urls.is_redis(target.result_backend):
        return None
    return _client(target.result_backend, target, retries=1, timeout_s=READ_TIMEOUT_S)


def _apps(target: Target, broker: Redis, results: Redis | None) -> Mapping[str, Redis]:
    """Return a client for each of the application's keys; one and the same, where they are in one database."""
    known = {"": broker, target.broker_url: broker}
    if results is not None:
        known.setdefault(target.result_backend, results)
    for app_key in target.app_keys.values():
        if app_key.url not in known:
            known[app_key.url] = _client(app_key.url, target, retries=1, timeout_s=READ_TIMEOUT_S)
    return {name: known[app_key.url] for name, app_key in target.app_keys.items()}


def _client(url: str, target: Target, *, retries: int, timeout_s: float, name: str = "") -> Redis:
    from redis import Redis
    from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": timeout_s,
        "client_name": f"{CLIENT_NAME}:{name or os.getpid()}",
        "retry": Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), retries) if retries else Retry(NoBackoff(), 0),
    }
    if url.startswith("sentinel:"):
        return _through_sentinel(url, target, options)
    return Redis.from_url(url, **options)


def _through_sentinel(url: str, target: Target, options: dict[str, Any]) -> Redis:
    """Ask the sentinels who is master now; they are asked again at every new connection."""
    from redis.sentinel import Sentinel

    if not target.master_name:
        raise SettingsError(
            "A sentinel:// URL needs the master's name.", hint='Set master_name = "mymaster" in the target\'s table.'
        )
    parts = [urlsplit(part) for part in url.split(";")]
    nodes = [(part.hostname or "localhost", part.port or 26379) for part in parts]
    credentials = {"username": unquote(parts[0].username or ""), "password": unquote(parts[0].password or "")}
    # However long a change may take, a sentinel that says nothing is passed over soon.
    own = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": CONNECT_TIMEOUT_S, "retry": options["retry"]}
    sentinel = Sentinel(nodes, sentinel_kwargs=own, **{k: v for k, v in credentials.items() if v})
    return cast("Redis", sentinel.master_for(target.master_name, db=int(parts[0].path.strip("/") or 0), **options))
